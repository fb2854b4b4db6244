"""The hosts added later, each by one row of a table: unedited upstream scripts on real CIFAR-10, on the CPU, tiny.

What every host has to pass is below the table. Runs are ended by their world (`drive.py`) after some steps of the
image optimizer, as several hosts cannot be told to take fewer than thousands.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from ddplug import InputSpace, ProxyPool
from ddplug.datasets.host_files import apart
from ddplug.datasets.synthetic import load_set
from ddplug.errors import HostError
from ddplug.hosting.host import comparable
from ddplug.lab.evaluate import evaluate
from ddplug.lab.meaning import with_space

pytestmark = [pytest.mark.upstream, pytest.mark.slow]

NORMALISED = InputSpace.normalized((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
UNIT = InputSpace.unit(3)
CLASSES = 10

Options = Mapping[str, object]


@dataclass(frozen=True)
class Tiny:
    """How a host is run in seconds on a CPU."""

    options: Options
    """Its own; "DATA" and "EXPERTS" stand for the folders of these, True for a flag."""
    views: int
    """How many views a round has."""
    left: str
    """The files that a run leaves: what to look for below its folder."""
    compare: Options | None
    """Options of a comparison's run, over `options`; None where the host cannot be compared."""
    iterations: int
    """What the comparison's set is known by."""
    ipc: int = 4
    factor: int = 1
    """How many images one holds along its side."""
    space: InputSpace = NORMALISED
    steps: int = 6
    """Image steps that are compared."""
    long: int = 40
    """Those of the run in which CMI has to fall."""
    lam: float = 500.0
    configured: bool = False
    """Whether options are in a file, named by --cfg."""
    unedited: Options = field(default_factory=dict)
    """What the unedited script needs of its world (`drive.py`), and our lines make up for."""
    prepare: str = ""
    """Code that writes, where it is run, what the host looks for where it is started: networks that it would train."""
    formed: int | None = None
    """The factor, where the files do not say it."""
    says: str | None = None
    """What the images mean, where the files do not say it."""


DM = {"model": "ConvNetW32", "batch_real": 16, "num_exp": 1, "num_eval": 0, "data_path": "DATA"}

IDC = {"dataset": "cifar10", "data_dir": "DATA", "width": 0.125, "ipc": 2, "factor": 2, "batch_real": 8, "workers": 0}

MTT = {"model": "ConvNetW32", "batch_syn": 25, "syn_steps": 4, "expert_epochs": 1, "max_start_epoch": 2,
       "data_path": "DATA", "buffer_path": "EXPERTS", "lr_img": 1000}  # fmt: skip
SHORT = {"batch_syn": 10, "syn_steps": 1}

HOSTS = {
    "idm": Tiny(
        {**DM, "ipc": 4, "trained_bs": 16, "model_train_steps": 1, "fetch_net_num": 1, "train_net_num": 1,
         "embed_last": 1000, "lr_img": 0.2, "aug": True, "syn_ce": True, "save_path": "out", "eval_interval": 100000},
        views=16, factor=2, left="res_*.pt", compare={"Iteration": 3}, iterations=4, formed=2,
    ),
    "datadam": Tiny(
        {**DM, "ipc": 4, "save_path": "out", "eval_mode": "last"}, views=40, left="res_*.pt",
        compare={"Iteration": 10}, iterations=10,
    ),
    "dream": Tiny(
        {**IDC, "niter": 2, "inner_loop": 1, "n_data": 16, "match": "grad",
         "f2_init": "random", "test": True}, ipc=2, factor=2,
        views=8, space=UNIT, left="data200.pt", compare={}, iterations=200,
    ),
    "dsdm": Tiny(
        {**IDC, "niter": 50, "pretrained_model_number": 1}, ipc=2, factor=2, views=8, space=UNIT, left="data_best.pt",
        compare={"niter": 5}, iterations=5,
        prepare="from train import define_model\nos.mkdir('pre_trained_model')\n"
                "torch.save(define_model(args, 10).state_dict(), 'pre_trained_model/cifar10_model_0.pth')",
    ),
    "dance": Tiny(
        {"dataset": "cifar10", "ipc": 2, "factor": 2, "width": 0.125, "batch_real": 8, "workers": 0, "num_premodel": 1,
         "reproduce": True, "test": True}, ipc=2, factor=2, views=8, space=UNIT, left="", compare=None, iterations=0,
        prepare="from common import define_model\nshutil.copytree(data, '<>')\nfor kind in ('init', 'trained'):\n"
                "    torch.save(define_model(args, 10).state_dict(), f'<>/premodel0_{kind}.pth.tar')",
    ),
    "ftd": Tiny(
        {**MTT, "ipc": 5, "Iteration": 1000, "eval_it": -1}, ipc=5, views=25, lam=5.0, left="ema_images_1000.pt",
        says="normalized", steps=3, long=16, compare=SHORT, iterations=1000,
    ),
    "pad": Tiny(
        {**MTT, "ipc": 5, "Iteration": 1000, "eval_it": 10000, "min_start_epoch": 0, "current_max_start_epoch": 2,
         "max_start_epoch": 3, "expansion_end_epoch": 10, "dataset": "CIFAR10", "zca": False, "pix_init": "real",
         "skip_first_eva": True, "parall_eva": True, "threshold": 10.0, "loss_ratio": 0.5, "num_eval": 1,
         "epoch_eval_train": 1},
        configured=True, unedited={"configure": {"loss_threshold_low": 0.0}}, ipc=5, views=25, lam=5.0,
        left="images_1000.pt", says="normalized", compare=SHORT,
        steps=3, long=16,
        iterations=1000,
    ),
    "iid": Tiny(
        {**DM, "model": "ConvNet", "ipc": 10, "batch_real": 8, "save_path": "out"}, ipc=10, views=100, left="res_*.pt",
        steps=2, long=4, compare={"Iteration": 3}, iterations=4,
        unedited={"two_devices": True, "cpu": True, "here": "pre_dict_res18_40"},
        prepare="from utils import get_network\nos.mkdir('pre_dict_res18_40')\n"
                "net = get_network('ResNet18', 3, 10, (32, 32))\n"
                "torch.save(net.state_dict(), 'pre_dict_res18_40/buffer0.pth')",
    ),
}  # fmt: skip

PREPARE = """
import os, shutil, sys
from types import SimpleNamespace
import torch
from ddplug.hosting.script import CudaOnCpu
repo, data = sys.argv[1:3]
sys.path.insert(0, repo)
sys.dont_write_bytecode = True
args = SimpleNamespace(
    dataset="cifar10", net_type="convnet", depth=3, width=0.125, norm_type="instance", size=32, nch=3
)
torch.manual_seed(0)
with CudaOnCpu():
"""

SET_BY_COMPARE = ("save_path", "num_exp", "num_eval", "eval_interval", "eval_mode", "eval_it")


KINDS: dict[str, tuple[object, ...] | None] = {
    "direct": None,
    "zero": ("--weight", 0),
    "on": ("--weight", 1, "--calibrate", 2, "--proxies", "POOL"),
    "exact": ("--weight", "LAM", "--weighting", "absolute", "--precision", "exact", "--proxies", "ONE"),
}
"""Runs that tests share: the unedited script, or `ddplug run` with these options."""

LONG = ("direct", "on")


@dataclass
class Runs:
    """The runs of one host; each is made when it is first asked for, in a folder of its own."""

    host: Any
    tiny: Tiny
    folders: dict[str, Path]
    made: dict[str, dict[str, Any]] = field(default_factory=dict)

    def line(self, over: Options | None = None, leave: tuple[str, ...] = ()) -> list[object]:
        """The host's command line, with other options over the row's."""
        options = {name: value for name, value in {**self.tiny.options, **(over or {})}.items() if name not in leave}
        if self.tiny.configured:
            file = self.host.folder / f"{self.host.spec.name}-{len(options)}.yaml"
            file.write_text(
                json.dumps({name: self.folders.get(str(said), said) for name, said in options.items()}, default=str)
            )
            return ["--cfg", file]
        said: list[object] = []
        for name, value in options.items():
            said += [f"--{name}"] if value is True else [f"--{name}", self.folders.get(str(value), value)]
        return said

    def bench(self, kind: str) -> Any:
        """The host, with the folder of one run."""
        folder = self.host.folder / self.host.spec.name / kind
        if not folder.is_dir():
            folder.mkdir(parents=True)
            for made in self.prepared.iterdir():
                (folder / made.name).symlink_to(made)
        return replace(self.host, folder=folder)

    @cached_property
    def prepared(self) -> Path:
        """The folder with what the host looks for where it is started."""
        folder: Path = self.host.folder / self.host.spec.name / "prepared"
        folder.mkdir(parents=True)
        if self.tiny.prepare:
            code = PREPARE + textwrap.indent(self.tiny.prepare, "    ")
            script = self.host.repo / self.host.spec.script
            command = [sys.executable, "-c", code, script.parent, self.folders["DATA"]]
            subprocess.run(list(map(str, command)), cwd=folder, check=True)
        return folder

    def __call__(self, kind: str) -> dict[str, Any]:
        """What was seen of a run."""
        if kind not in self.made:
            bench, options = self.bench(kind), KINDS[kind]
            words = {"LAM": self.tiny.lam, **self.folders}
            steps = 1 if kind == "exact" else self.tiny.long if kind in LONG else self.tiny.steps
            world = bench.seen(kind, stop=steps, spy_steps=min(steps, self.tiny.steps))
            if kind == "exact":
                world["pool"] = str(self.folders["ONE"])
            if options is None:
                bench.direct(*self.line(), **world, **self.tiny.unedited)
            else:
                bench.ddplug(tuple(words.get(str(word), word) for word in options), *self.line(), **world)
            self.made[kind] = bench.read(kind)
        return self.made[kind]

    def record(self, kind: str) -> dict[str, Any]:
        """What the layer wrote in a run."""
        (file,) = self.bench(kind).folder.rglob("cmi*.json")
        return json.loads(file.read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=HOSTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def runs(
    name: str,
    benches_of_module: Callable[[str], Any],
    data_folder: Path,
    pools: tuple[Path, ProxyPool],
    request: pytest.FixtureRequest,
) -> Runs:
    host, tiny = benches_of_module(name), HOSTS[name]
    one = host.folder / "one"
    if not one.is_dir():
        pool = ProxyPool.load(pools[0])
        ProxyPool(pool.proxies[:1], pool.info).save(one)
    folders = {"DATA": data_folder, "POOL": pools[0], "ONE": one}
    if "EXPERTS" in tiny.options.values():
        folders["EXPERTS"] = request.getfixturevalue("experts")
    return Runs(host, tiny, folders)


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two runs had the same images and gradients, to the bit, at the steps that were written down of both."""
    both = list(zip(first["steps"], second["steps"], strict=False))
    assert both
    return all(torch.equal(one[key], other[key]) for one, other in both for key in ("images", "grad"))


def test_weight_zero_is_upstream_to_the_bit(runs: Runs) -> None:
    direct, zero = runs("direct"), runs("zero")
    assert (direct["count"], zero["count"]) == (runs.tiny.long, runs.tiny.steps)
    assert equal(direct, zero)
    left = [
        {path.relative_to(folder) for path in folder.rglob("*") if path.suffix != ".pt"}
        for folder in (runs.bench("direct").folder, runs.bench("zero").folder)
    ]
    assert left[0] == left[1], "weight 0 leaves nothing of ours behind"


def test_the_layer_fires_at_every_step_and_cmi_falls(runs: Runs, held_out_cmi: Callable[..., float]) -> None:
    tiny, on = runs.tiny, runs("on")
    wrote = runs.record("on")
    assert wrote["rounds"] == len(wrote["history"]) == tiny.long + 1, "each step, and the one at which the run ended"
    assert wrote["skipped"] == 0
    assert {round_["images"] for round_ in wrote["history"]} == {tiny.views}
    assert wrote["lambda"] > 0
    assert wrote["host"] == runs.host.spec.name
    labels = torch.arange(CLASSES).repeat_interleave(tiny.ipc)
    before, after = (held_out_cmi(*apart(run["last"], labels, tiny.factor), tiny.space) for run in (runs("direct"), on))
    print(f"{wrote['host']}: held-out CMI {before:.4f} -> {after:.4f}, lambda {wrote['lambda']:.4g}, {tiny.long} steps")
    assert after < before


def test_the_gradient_is_the_hosts_plus_lambda_times_cmis(runs: Runs) -> None:
    """At the first step, where both runs are at the same images."""
    lam, off, on = runs.tiny.lam, runs("direct")["steps"][0], runs("exact")["steps"][0]
    assert torch.equal(off["images"], on["images"])
    assert len(on["labels"]) == runs.tiny.views
    wanted = off["grad"] + lam * on["cmi"]
    added = (lam * on["cmi"]).norm() / off["grad"].norm()
    error = (on["grad"] - wanted).norm() / wanted.norm()
    print(f"{runs.host.spec.name}: relative error {error:.2e}, CMI's part {added:.2f} of the host's")
    assert added > 0.01, "CMI's part must be large enough to be missed"
    assert error < 1e-5


def test_attach_on_the_imported_module_is_the_same_run(runs: Runs) -> None:
    bench = runs.bench("attached")
    said = json.dumps({"weight": 1, "proxies": str(runs.folders["POOL"]), "calibrate": 2})
    world = bench.seen("attached", stop=runs.tiny.steps, spy_steps=runs.tiny.steps)
    bench.drive("attach-main", runs.host.repo / runs.host.spec.script, said, *runs.line(), **world)
    assert equal(runs("on"), bench.read("attached"))
    wrote = runs.record("attached")["history"]
    assert wrote == runs.record("on")["history"][: len(wrote)]


def test_the_patched_script_is_the_same_run_and_the_patch_comes_out(runs: Runs, tree: Callable[[Path], str]) -> None:
    spec, bench = runs.host.spec, runs.bench("patched")
    repo = bench.copy()
    before = tree(repo)
    patch = bench.folder / "ours.patch"
    patch.write_bytes(spec.patch.raw)
    subprocess.run(["git", "apply", "--unidiff-zero", str(patch)], cwd=repo, check=True, capture_output=True)
    assert set(spec.check(repo).values()) == {"patched"}
    spec.reverse(repo)
    assert tree(repo) == before
    spec.apply(repo)
    ours = ("--cmi_weight", 1, "--cmi_calibrate", 2, "--cmi_proxies", runs.folders["POOL"])
    world = bench.seen("patched", stop=runs.tiny.steps, spy_steps=runs.tiny.steps, clock=str(repo))
    world["path"] = [str(repo / folder) for folder in spec.path]
    bench.direct(*runs.line(), *ours, repo=repo, **world)
    assert equal(runs("on"), bench.read("patched"))
    spec.reverse(repo)
    assert tree(repo) == before


def test_a_comparison_finds_and_judges_its_sets(
    runs: Runs, pairs: Any, compared: Any, tmp_path: Path, cifar: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the host itself left can be judged by `evaluate`."""
    tiny, name = runs.tiny, runs.host.spec.name
    if tiny.compare is None:
        with pytest.raises(HostError, match="cannot find the sets"):
            comparable(name)
        return
    monkeypatch.chdir(runs.prepared)
    compared(pairs(name, *runs.line(tiny.compare, SET_BY_COMPARE)), [tiny.iterations])
    left = sorted((tmp_path / "out").rglob(tiny.left))
    assert len(left) == 2, "one of each run"
    for path in left:
        made = with_space(load_set(path, factor=tiny.formed), tiny.says, cifar)
        assert len(made.images) == CLASSES * tiny.ipc * tiny.factor**2
        judged = evaluate(made, cifar, runs=1, epochs=1, options={"width": 8})
        assert judged.settings["space"] == str(cifar.space)
