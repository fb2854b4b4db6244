"""Hosts without a patch, each by one row of a table: unedited upstream scripts on real CIFAR-10, on the CPU, tiny.

What every host has to pass is below the table. Runs are ended by their world (`drive.py`) after some steps of the
images.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from ddplug import InputSpace, ProxyPool
from ddplug.networks import build
from ddplug.proxies.centroids import add_centroids
from ddplug.proxies.proxy import PoolInfo

pytestmark = [pytest.mark.upstream, pytest.mark.slow]

CLASSES = 10
IMAGENET = InputSpace.normalized((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Row:
    """How a host is run in seconds on a CPU. DATA and EXPERTS stand for folders."""

    folder: str
    """Name of the clone."""
    script: str
    arguments: str
    """The script's own."""
    at: str = ""
    """Options of `ddplug run` that say where the layer goes, if it is another place than in `hosts.toml`."""
    ipc: int = 1
    attach: Mapping[str, Any] | None = None
    """The arguments of `ddplug.attach` on the imported script; None where it has no such place."""
    line: tuple[str, int, str] | None = None
    """Where `attach` on the script is not possible: a file, the number of a line, and what is written below it."""
    views: int = 0
    """How many views a round has."""
    rounds: int = 1
    """How many rounds a step has: one per backward pass."""
    lam: float = 1.0
    """Lambda of the check of the gradient."""
    watch: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `Watch`."""
    world: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of the world."""
    prepare: str = ""
    """Code that writes what the host looks for into the current folder; the host's modules can be imported."""
    config: Mapping[str, object] = field(default_factory=dict)
    """What is in the file `config.yaml` where the host is started."""
    cuda: bool = False
    """True if the script needs CUDA."""
    path: tuple[str, ...] = ()
    """Folders for imports, relative to the checkout."""
    steps: int = 2
    """Steps of the images that are compared."""
    long: int = 5
    """Those of the runs whose CMI is compared."""
    pixels: int = 32
    """On a side of its images; with 224, networks and real images are random, and no CMI has to fall."""


RECOVER = (
    "--batch-size 5 --iteration 9 --lr 0.25 --r-bn 0.01 --ipc-end 1 --arch-name shufflenet_v2_x0_5 "
    "--verifier-arch shufflenet_v2_x0_5 "
)
STAND_INS = """
import torchvision
os.makedirs('hub/checkpoints')
for name in ('shufflenet_v2_x0_5', 'mobilenet_v2'):
    file = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url.rsplit('/', 1)[1]
    torch.save(torchvision.models.get_model(name).state_dict(), f'hub/checkpoints/{file}')
"""
IN_THE_LOOP = (
    "import sys; own = sys.modules['__main__'].__dict__; own['layer'] = own.get('layer') or "
    "(lambda proxies, **more: ddplug.Regularizer(proxies, **more))(OPTIONS); "
    "inputs_jit = own['layer'](inputs_jit, targets)"
)
HUB = {"environment": {"TORCH_HOME": "."}}

LABELS = [label for label in range(CLASSES) for _ in range(2)]

ROWS = {
    "fyi": Row(
        "FYI", "DC_DSA_DM/main_DM.py",
        "--ipc 10 --num_exp 1 --num_eval 0 --batch_real 16 --model ConvNetW32 --data_path DATA --Iteration 200 "
        "--run_tags a",
        ipc=10, views=20, rounds=10, watch={"apart": True},
        attach={"labels": [label for label in range(CLASSES) for _ in range(10)]},
    ),
    "tesla": Row(
        "tesla", "distill.py",
        "--ipc 2 --model ConvNet --batch_syn 10 --syn_steps 4 --expert_epochs 1 --max_start_epoch 2 "
        "--data_path DATA --buffer_path . --lr_img 1000 --eval_it 1000 --num_eval 0",
        ipc=2, views=10, cuda=True, watch={"apart": True},
        attach={"labels": LABELS},
        prepare="from utils import get_network\n"
                "nets = [get_network('ConvNet', 3, 10, (32, 32)) for _ in range(2)]\n"
                "starts = [[each.detach() for each in net.parameters()] for net in nets]\n"
                "made = [[[(1 + 0.05 * t) * each for each in start] for t in range(4)] for start in starts]\n"
                "os.makedirs('CIFAR10_NO_ZCA/ConvNet')\n"
                "torch.save(made, 'CIFAR10_NO_ZCA/ConvNet/replay_buffer_0.pt')",
    ),
    "ncfm": Row(
        "NCFM", "condense/condense_script.py", "--gpu 0 --ipc 2 --config_path config.yaml",
        ipc=8, views=8, long=20, cuda=True, path=(".",), lam=77,
        watch={"apart": True, "images": "aug.transforms[0](torch.cat([self.class_sample(c)[0] for c in range(10)]))"},
        line=("condense/condense_script.py", 26, "import types; trainer = types.SimpleNamespace(augment=aug); "
              "ddplug.attach(trainer, OPTIONS, labels=condenser.targets); aug = trainer.augment"),
        world={"environment": {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
                               "MASTER_PORT": "29519"}},
        config={"backend": "gloo", "init_method": "env://", "workers": 0, "dataset": "cifar10", "nclass": 10,
                "size": 32, "data_dir": "DATA", "load_memory": True, "batch_real": 8, "nch": 3, "net_type": "convnet",
                "norm_type": "instance", "depth": 3, "width": 0.25, "evaluation_epochs": 1, "epoch_print_freq": 10,
                "epoch_eval_interval": 100, "pertrain_epochs": 60, "batch_size": 128, "lr": 0.01, "adamw_lr": 0.001,
                "eval_optimizer": "adamw", "momentum": 0.9, "weight_decay": 5e-4, "seed": 0, "model_num": 20,
                "mixup": "cut", "beta": 1.0, "mix_p": 0.5, "rrc": True, "dsa": True,
                "dsa_strategy": "color_crop_cutout_flip_scale_rotate", "aug_type": "color_crop_cutout",
                "optimizer": "adamw", "lr_scale_adam": 1.0, "lr_img": 0.01, "mom_img": 0.5, "lr_sampling_net": 1e-3,
                "save_dir": "out", "pretrain_dir": "pm", "ipc": 2, "num_premodel": 1, "niter": 100, "iter_calib": 0,
                "calib_weight": 1, "sampling_net": False, "num_freqs": 64, "dis_metrics": "NCFM", "factor": 2,
                "alpha_for_loss": 0.5, "beta_for_loss": 0.5, "decode_type": "single", "teacher_model_epoch": 20},
        prepare="from utils.utils import define_model\n"
                "os.makedirs('pm/cifar10')\n"
                "for kind in ('init', 'trained'):\n"
                "    net = define_model('cifar10', 'instance', 'convnet', 3, 3, 0.25, 10, print, 32)\n"
                "    torch.save(net.state_dict(), f'pm/cifar10/premodel0_{kind}.pth.tar')",
    ),
    "cafe": Row(
        "CAFE", "distill.py",
        "--ipc 10 --num_exp 1 --num_eval 0 --batch_real 8 --model ConvNetW32 --data_path DATA --init real "
        "--lambda_2 -1",
        ipc=10, views=100, long=3, lam=3000,
        line=("distill.py", 164, "ddplug.attach(optimizer_img, OPTIONS, labels=label_syn)"),
    ),
    "haba": Row(
        "DatasetFactorization", "distill_fac.py",
        "--ipc 2 --model ConvNetW32 --batch_syn 10 --syn_steps 3 --expert_epochs 1 --max_start_epoch 2 "
        "--data_path DATA --buffer_path EXPERTS --eval_it 1000 --num_eval 0 --n_style 2 --lr_img 1 --lr_style 0.01",
        ipc=2, views=50, cuda=True,
        watch={"images": "torch.cat([style(image_syn.flatten(0, 1)) for style in styles])"},
        line=("distill_fac.py", 174, "import sys; ddplug.attach(sys.modules['__main__'], OPTIONS, at='DiffAugment', "
              "labels=lambda views: label.repeat(len(views) // len(label)))"),
    ),
    "edf": Row(
        "EDF", "distill/edf_distill.py", "--cfg config.yaml",
        ipc=2, views=40, cuda=True, path=(".",), watch={"accumulated": True},
        attach={"labels": LABELS},
        config={"dataset": "CIFAR10", "ipc": 2, "model": "ConvNetW32", "batch_syn": 10, "syn_steps": 4,
                "expert_epochs": 1, "min_start_epoch": 0, "current_max_start_epoch": 2, "max_start_epoch": 3,
                "expansion_end_epoch": 10, "data_path": "DATA", "buffer_path": "EXPERTS", "zca": False,
                "pix_init": "real", "Iteration": 100, "skip_first_eva": True, "parall_eva": True, "eval_it": 1000,
                "num_eval": 1, "epoch_eval_train": 1, "lr_img": 1000, "threshold": 10.0, "interval": 50,
                "loss_threshold": 0.0, "model_name": "ResNet18", "target_layer_deep": "layer4",
                "activation_model_path": "activation.pt", "beta": 1.0},
        prepare="from utils.utils_gsam import get_network\n"
                "torch.save(get_network('ResNet18', 3, 10, (32, 32)).state_dict(), 'activation.pt')",
    ),
    "sre2l": Row(
        "SRe2L", "SRe2L/recover/data_synthesis.py", RECOVER + "--l2-scale 0 --tv-l2 0",
        pixels=224, ipc=1, views=5, cuda=True, world=HUB, prepare=STAND_INS, long=3,
        line=("SRe2L/recover/data_synthesis.py", 207, "ddplug.attach(model_teacher.module, OPTIONS, term='cmi_real', "
              "at='forward', images='x', labels=torch.arange(5))"),
    ),
    "cda": Row(
        "SRe2L", "CDA/recover_cda_in1k.py", RECOVER + "--ipc-start 0",
        pixels=224, ipc=1, views=5, cuda=True, world=HUB, prepare=STAND_INS, long=3,
        line=("CDA/recover_cda_in1k.py", 80, IN_THE_LOOP.replace("OPTIONS", "OPTIONS, term='cmi_real'")),
    ),
    "wmdd": Row(
        "WMDD", "recover/data_synthesis_new.py",
        "--dataset imagenette --ipc 2 --batch-size 6 --iteration 9 --lr 0.25 --r-bn 0.01 --per-class-bn true "
        "--real-data-path real",
        pixels=224, ipc=2, views=6, cuda=True, path=(".",), world=HUB, long=3,
        line=("recover/data_synthesis_new.py", 149, IN_THE_LOOP),
        prepare=STAND_INS + textwrap.dedent("""
            from torchvision.transforms.functional import to_pil_image
            for label in range(3):
                os.makedirs(f'real/train/{label}')
                to_pil_image(torch.rand(3, 224, 224)).save(f'real/train/{label}/0.png')
        """),
    ),
}  # fmt: skip

PREPARE = """
import os, sys, time
import torch
from ddplug.hosting.script import CudaOnCpu
time.time = lambda: 1e9  # hosts seed by it
sys.path[:0] = sys.argv[1:]
sys.dont_write_bytecode = True
torch.manual_seed(0)
with CudaOnCpu():
"""

ON = ("--weight", 1, "--calibrate", 1, "--proxies", "POOL")
KINDS: dict[str, tuple[object, ...] | None] = {
    "direct": None,
    "zero": ("--weight", 0),
    "on": ON,
    "exact": (
        "--weight", "LAM", "--weighting", "absolute", "--representation", "logit", "--precision", "exact",
        "--proxies", "ONE",
    ),
}  # fmt: skip
"""Runs that tests share: the script by itself, or `ddplug run --script` with these options."""


@dataclass
class Runs:
    """The runs of one host; each is made when it is first asked for, in a folder of its own."""

    name: str
    row: Row
    repo: Path
    root: Path
    folders: Mapping[str, Path]
    bench_of: Callable[..., Any]
    made: dict[str, dict[str, Any]] = field(default_factory=dict)

    def bench(self, kind: str, repo: Path | None = None) -> Any:
        folder = self.root / kind
        if not folder.is_dir():
            folder.mkdir()
            for made in (self.root / "prepared").iterdir():
                (folder / made.name).symlink_to(made)
        spec: Any = SimpleNamespace(
            redirect_cuda=self.row.cuda, numpy_aliases=(), path=self.row.path, script=self.row.script
        )
        return self.bench_of(spec, repo or self.repo, folder)

    def words(self, text: str) -> list[str]:
        return [str(self.folders.get(word, word)) for word in shlex.split(text)]

    def world(self, kind: str, steps: int) -> dict[str, Any]:
        file = str(self.root / kind / "watched.pt")
        return {**self.row.world, "watch": {"file": file, "stop": steps, "steps": self.row.steps, **self.row.watch}}

    def read(self, kind: str) -> dict[str, Any]:
        return torch.load(self.root / kind / "watched.pt")  # type: ignore[no-any-return]

    def __call__(self, kind: str) -> dict[str, Any]:
        """What was seen of a run."""
        if kind not in self.made:
            row, options = self.row, KINDS[kind]
            bench, steps = self.bench(kind), 1 if kind == "exact" else row.steps if kind == "zero" else row.long
            world = self.world(kind, steps)
            if kind == "exact":
                world["watch"]["pool"] = str(self.folders["ONE"])
            if options is None:
                bench.direct(*self.words(row.arguments), **world)
            else:
                given = [{"LAM": row.lam, **self.folders}.get(str(word), word) for word in options]
                ran = bench.drive("ddplug", *self.command, *given, "--", *self.words(row.arguments), **world)
                (self.root / kind / "output.txt").write_text(ran.output)
            self.made[kind] = self.read(kind)
        return self.made[kind]

    @property
    def command(self) -> list[object]:
        """`ddplug run` on the host, up to the regulariser's options."""
        return ["run", self.name, "--repo", self.repo, *shlex.split(self.row.at)]

    def record(self, kind: str) -> dict[str, Any]:
        """What the layer wrote in a run."""
        (file,) = (self.root / kind).glob("cmi_*.json")
        return json.loads(file.read_text())  # type: ignore[no-any-return]


def _large_pool(folder: Path, pixels: int) -> Path:
    """Save a pool of one random network with centroids of random images; return a file of its centroids, made here."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build("convnet", num_classes=5, size=(pixels, pixels), width=8, depth=5)
        images = IMAGENET.from_unit(torch.rand(10, 3, pixels, pixels))
    info = PoolInfo("random", tuple("abcde"), (3, pixels, pixels), IMAGENET)
    ProxyPool.from_modules(network, info=info).save(folder / "one")
    add_centroids(folder / "one", TensorDataset(images, torch.arange(5).repeat(2)), space=IMAGENET, progress=False)
    with torch.no_grad():
        seen = network.double().eval()(images.double()).softmax(1)
    torch.save(torch.stack([seen[label::5].mean(0) for label in range(5)]), folder / "real.pt")
    return folder / "real.pt"


@pytest.fixture(scope="module", params=ROWS)
def runs(
    hosts_folder: Path,
    data_folder: Path,
    pools: tuple[Path, ProxyPool],
    tmp_path_factory: pytest.TempPathFactory,
    tree: Callable[[Path], str],
    bench_of: Callable[..., Any],
    request: pytest.FixtureRequest,
) -> Any:
    row, name = ROWS[request.param], request.param
    repo = hosts_folder / row.folder
    if not (repo / row.script).is_file():
        pytest.skip(f"no checkout of {name} in {repo}")
    root = tmp_path_factory.mktemp(name)
    if row.pixels == 32:
        pool = ProxyPool.load(pools[0])
        ProxyPool(pool.proxies[:1], pool.info).save(root / "one")
        folders = {"DATA": data_folder, "POOL": pools[0], "ONE": root / "one"}
    else:
        real = _large_pool(root, row.pixels)
        folders = {"POOL": root / "one", "ONE": root / "one"}
        row = replace(row, watch={"real": str(real)}) if row.ipc == 1 else row
    if "EXPERTS" in row.arguments or "EXPERTS" in row.config.values():
        folders["EXPERTS"] = request.getfixturevalue("experts")
    before = tree(repo)
    prepared = root / "prepared"
    prepared.mkdir()
    if row.config:
        said = {name: str(folders.get(str(value), "")) or value for name, value in row.config.items()}
        (prepared / "config.yaml").write_text(json.dumps(said))
    if row.prepare:
        script = (repo / row.script).parent
        command = [sys.executable, "-c", PREPARE + textwrap.indent(row.prepare, "    "), script, repo]
        subprocess.run(list(map(str, command)), cwd=prepared, check=True)
    yield Runs(name, row, repo, root, folders, bench_of)
    assert tree(repo) == before, f"{repo} was changed"


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two runs had the same images and gradients, to the bit, at the steps that were written down of both."""
    both = list(zip(first["steps"], second["steps"], strict=True))
    assert both
    return all(
        torch.equal(a, b) for one, other in both for key in one for a, b in zip(one[key], other[key], strict=True)
    )


def joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([each.double().flatten() for each in tensors])


def test_weight_zero_is_upstream_to_the_bit(runs: Runs) -> None:
    direct, zero = runs("direct"), runs("zero")
    assert (direct["count"], zero["count"]) == (runs.row.long, runs.row.steps)
    assert equal(direct, zero)


def test_the_layer_acts_at_every_step_and_cmi_falls(runs: Runs, held_out_cmi: Callable[..., float]) -> None:
    row, direct, on = runs.row, runs("direct"), runs("on")
    wrote = runs.record("on")
    assert wrote["lambda"] > 0
    assert wrote["skipped"] == 0
    assert wrote["rounds"] == row.rounds * (row.long + 1), "each step, and the one at which the run ended"
    assert {each["images"] for each in wrote["history"]} == {row.views}
    if row.pixels == 224:
        return
    labels = torch.arange(CLASSES).repeat_interleave(row.ipc)
    labels = labels.repeat(len(on["images"]) // len(labels))
    before, after = (held_out_cmi(run["images"], labels) for run in (direct, on))
    print(f"{runs.name}: held-out CMI {before:.4f} -> {after:.4f}, lambda {wrote['lambda']:.4g}, {row.long} steps")
    assert after < before


def test_the_gradient_is_the_hosts_plus_lambda_times_cmis(runs: Runs) -> None:
    """At the first step, where both runs are at the same images."""
    lam, off, on = runs.row.lam, runs("direct")["steps"][0], runs("exact")
    assert all(torch.equal(a, b) for a, b in zip(off["images"], on["steps"][0]["images"], strict=True))
    host, cmi = joined(off["grad"]), lam * joined(on["cmi"])
    added = cmi.norm() / host.norm()
    error = (joined(on["steps"][0]["grad"]) - host - cmi).norm() / (host + cmi).norm()
    print(f"{runs.name}: relative error {error:.2e}, CMI's part {added:.2f} of the host's")
    assert added > 0.01, "CMI's part must be large enough to be missed"
    assert error < 1e-5


def test_attach_is_the_same_run(runs: Runs) -> None:
    """On the imported script; or by one line in a copy of it, where the place is within its functions."""
    row = runs.row
    world = runs.world("attached", row.long)
    if row.attach is not None:
        said = json.dumps({"weight": 1, "proxies": str(runs.folders["POOL"]), "calibrate": 1, **row.attach})
        bench = runs.bench("attached")
        bench.drive("attach-main", runs.repo / row.script, said, *runs.words(row.arguments), **world)
    else:
        assert row.line is not None
        file, number, text = row.line
        copy = runs.root / "copy"
        shutil.copytree(runs.repo, copy, symlinks=True, ignore=shutil.ignore_patterns(".git", "__pycache__"))
        lines = (copy / file).read_text().splitlines(keepends=True)
        indent = lines[number - 1][: len(lines[number - 1]) - len(lines[number - 1].lstrip())]
        options = f"weight=1, weighting=ddplug.Relative(1), proxies={str(runs.folders['POOL'])!r}"
        lines.insert(number, f"{indent}import ddplug; {text.replace('OPTIONS', options)}\n")
        (copy / file).write_text("".join(lines))
        bench = runs.bench("attached", copy)
        bench.direct(*runs.words(row.arguments), **world)
    assert equal(runs("on"), runs.read("attached"))
