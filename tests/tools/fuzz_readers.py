"""The readers of `fuzz.py`: each with a valid file of its kind, and what is read from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import ddplug
from ddplug.attaching.attach import attach
from ddplug.datasets.images import ImageData
from ddplug.datasets.spaces import InputSpace
from ddplug.datasets.synthetic import SyntheticSet, load_set, save_set
from ddplug.datasets.zca import ZCASpace
from ddplug.hosting import checkout, expert_buffers, idc_checkpoints
from ddplug.hosting.patch import blob_hash
from ddplug.lab import baseline, judge, plot
from ddplug.lab import folder as comparison_folder
from ddplug.lab.dm_trainer import DistributionMatching
from ddplug.lab.own_trainer import DONE, Own, set_name
from ddplug.lab.plan import Arm, Settings
from ddplug.lab.records import Distilled, read_json
from ddplug.lab.run_store import Finished
from ddplug.lab.tune import CONFIRMED, _fresh_seed
from ddplug.lab.upstream_host import Upstream
from ddplug.networks.training import fit
from ddplug.networks.zoo import build, seeded
from ddplug.proxies.pool import PoolInfo
from ddplug.proxies.pool_files import read_header
from ddplug.utils.files import write_json
from ddplug.utils.meter import Meter

CPU = torch.device("cpu")


class Reader(NamedTuple):
    """A valid file and how it is read."""

    path: Path
    read: Callable[[], Any]
    """What is compared: of a damaged file the same as of the whole one, or one of our errors."""
    ours: bool = True
    """Whether it has a checksum, so that no change of its bytes may come through."""


READERS: dict[str, Callable[[Path], Reader]] = {}


def reader(make: Callable[[Path], Reader]) -> Callable[[Path], Reader]:
    """Make a function known that makes a reader, with its file in a folder of its own."""
    READERS[make.__name__] = make
    return make


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def small(seed: int = 0, **options: Any) -> nn.Module:
    with seeded(seed):
        return build("convnet", **{"num_classes": 2, "channels": 1, "size": (8, 8), "width": 4, **options})


def pool(space: Any = None, fingerprint: str | None = None) -> ddplug.ProxyPool:
    info = PoolInfo("mine", ("a", "b"), (1, 8, 8), space or InputSpace.normalized([0.3], [0.7]), fingerprint)
    return ddplug.ProxyPool.from_modules([small(0)], info=info)


def data() -> ImageData:
    images, labels = rand(12, 1, 8, 8), torch.arange(12) % 2
    return ImageData("mine", ("a", "b"), InputSpace.unit(1), images, labels, images[:4], labels[:4])


def whitening() -> ZCASpace:
    return ZCASpace.fit(rand(9, 1, 4, 4))


# --- sets


def of_set(path: Path, **options: Any) -> list[Any]:
    found = load_set(path, **options)
    space = found.space
    return [
        found.images, found.labels, str(space), getattr(space, "tensors", dict)(), found.dataset, found.meaning,
        found.lr, found.given_classes, found.classes,
    ]  # fmt: skip


@reader
def set_file(folder: Path) -> Reader:
    path = folder / "set.pt"
    hard = torch.arange(4) % 2
    save_set(SyntheticSet(rand(4, 1, 4, 4), hard, InputSpace.unit(1), "mine", None, 0.25, hard), path)
    return Reader(path, lambda: of_set(path))


@reader
def whitened_set(folder: Path) -> Reader:
    path = folder / "set.pt"
    save_set(SyntheticSet(rand(4, 1, 4, 4), rand(4, 2).softmax(1), whitening(), "mine", "zca"), path)
    return Reader(path, lambda: of_set(path))


@reader
def set_of_dm(folder: Path) -> Reader:
    path = folder / "res_DM.pt"
    torch.save({"data": [[rand(4, 3, 4, 4), torch.arange(4) % 2]], "accs_all_exps": {"ConvNet": [0.5]}}, path)
    return Reader(path, lambda: of_set(path, factor=2), ours=False)


def trajectory(folder: Path) -> Path:
    torch.save(rand(4, 3, 4, 4), folder / "images_10.pt")
    torch.save(rand(4, 2), folder / "labels_10.pt")
    torch.save(torch.tensor(0.01), folder / "lr_10.pt")
    return folder / "images_10.pt"


@reader
def images_of_mtt(folder: Path) -> Reader:
    path = trajectory(folder)
    return Reader(path, lambda: of_set(path), ours=False)


@reader
def labels_of_mtt(folder: Path) -> Reader:
    path = trajectory(folder)
    return Reader(folder / "labels_10.pt", lambda: of_set(path), ours=False)


@reader
def rate_of_datm(folder: Path) -> Reader:
    path = trajectory(folder)
    return Reader(folder / "lr_10.pt", lambda: of_set(path), ours=False)


def formed(folder: Path) -> Path:
    torch.save([rand(4, 3, 8, 8), torch.arange(4) % 2], folder / "data.pt")
    (folder / "args.txt").write_text(json.dumps({"factor": 2, "niter": 2000, "decode_type": "single"}))
    return folder / "data.pt"


@reader
def set_of_idc(folder: Path) -> Reader:
    path = formed(folder)
    return Reader(path, lambda: of_set(path), ours=False)


@reader
def arguments_of_idc(folder: Path) -> Reader:
    path = formed(folder)
    return Reader(folder / "args.txt", lambda: of_set(path), ours=False)


# --- networks


@reader
def fit_checkpoint(folder: Path) -> Reader:
    """A training that was interrupted after its first epoch; read by training the second."""
    kept, path = folder / "kept", folder / "fit.pt"
    images, labels = rand(8, 1, 8, 8), torch.arange(8) % 2

    def interrupt(done: int, loss: float) -> None:
        if not kept.exists():
            kept.write_bytes(path.read_bytes())

    def read() -> Any:
        whole = path.read_bytes() if path.exists() else b""
        net = fit(small(), images, labels, epochs=2, seed=0, checkpoint=path, on_epoch=interrupt)
        path.write_bytes(whole)
        return net.state_dict()

    read()
    path.write_bytes(kept.read_bytes())
    return Reader(path, read)


def of_pool(folder: Path) -> list[Any]:
    loaded = ddplug.ProxyPool.load(folder)
    info = loaded.info
    about = [info.dataset, info.class_names, info.shape, info.fingerprint, str(info.space), read_header(folder).recipe]
    about.append(getattr(info.space, "tensors", dict)())
    return [*about, *((proxy.name, proxy.head, proxy.record, proxy.network.state_dict()) for proxy in loaded)]


def pool_reader(name: str, space: Any = None) -> Callable[[Path], Reader]:
    def make(folder: Path) -> Reader:
        pool(space() if space else None, "0123").save(folder / "pool")
        return Reader(folder / "pool" / name, lambda: of_pool(folder / "pool"))

    return make


READERS["pool_header"] = pool_reader("pool.json")
READERS["pool_network"] = pool_reader("proxy_000.safetensors")
READERS["pool_space"] = pool_reader("space.safetensors", whitening)
READERS["pool_header_of_whitened"] = pool_reader("pool.json", whitening)


@reader
def expert_buffer(folder: Path) -> Reader:
    path = folder / "replay_buffer_0.pt"
    options = {"channels": 3, "width": 8, "depth": 3}
    experts = [[list(small(seed, **options).parameters()) for seed in range(2)]]
    torch.save([[[held.detach() for held in shot] for shot in expert] for expert in experts], path)

    def read() -> Any:
        read = expert_buffers.read(path, "ConvNetW8", classes=2, shape=(3, 8, 8), info=PoolInfo(None, None, (3, 8, 8)))
        return [proxy.network.state_dict() for proxy in read]

    return Reader(path, read, ours=False)


@reader
def checkpoint_of_idc(folder: Path) -> Reader:
    path = folder / "checkpoint1.pth.tar"
    held = {}
    for name, value in small(channels=3).state_dict().items():
        kind, number, what = ["classifier", "", name.split(".")[-1]] if "class" in name else name.split(".")
        layer = kind if kind == "classifier" else f"layers.{('conv', 'norm')[int(number) % 4]}.{int(number) // 4}"
        held[f"module.{layer}.{what}"] = value
    torch.save({"epoch": 1, "arch": "convnet", "state_dict": held}, path)

    def read() -> Any:
        read = idc_checkpoints.read([path], "cifar10", InputSpace.unit(3))
        return [(proxy.network.state_dict(), proxy.name, proxy.record) for proxy in read]

    return Reader(path, read, ours=False)


# --- runs and comparisons


class Loop:
    """A host of ours."""

    def __init__(self) -> None:
        self.images = rand(4, 1, 8, 8).requires_grad_()
        self.layer = ddplug.Regularizer(
            pool(), 1.0, weighting=ddplug.Relative(2), input_space="unit", announce=lambda line: None
        )

    def step(self) -> None:
        optimizer = torch.optim.SGD([self.images], 0.1)
        self.layer(self.images * 1, torch.arange(4) % 2).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@reader
def regularizer_state(folder: Path) -> Reader:
    """What a host saves of a regulariser, with torch itself."""
    path, first = folder / "state.pt", Loop()
    for _ in range(3):
        first.step()
    torch.save(first.layer.state_dict(), path)
    second = Loop()

    def read() -> Any:
        try:
            state = torch.load(path, weights_only=True)
        except Exception as error:  # the host's own reading
            raise ddplug.errors.DataError(str(error)) from error
        before = repr(second.layer.state_dict())
        try:
            second.layer.load_state_dict(state)
        except ddplug.DDPlugError:
            assert repr(second.layer.state_dict()) == before, "a refused state changed something"
            raise
        return second.layer.state_dict()

    return Reader(path, read, ours=False)


@reader
def running_checkpoint(folder: Path) -> Reader:
    """The checkpoint of a comparison's run; read by going on from it, without a further step."""
    settings = Settings(ipc=2, iterations=4, batch_real=4, width=4, checkpoints=1, regularizer={"calibrate": 1})
    own, path = Own(data(), settings, pool(), CPU), folder / "running.pt"

    def trained() -> tuple[DistributionMatching, Any]:
        trainer = own.trainer(0)
        handle = attach(trainer, proxies=own.pool, labels="labels", **own._options(Arm(1.0)))
        return trainer, handle

    trainer, handle = trained()
    trainer.step()
    trainer.step()
    own._save(path, trainer, handle, [], Meter(CPU))
    handle.detach()

    def read() -> Any:
        trainer, handle = trained()
        try:
            notes = own._resume(path, trainer, handle, Meter(CPU))
            return [notes, trainer.state_dict(), handle.state_dict()]
        finally:
            handle.detach()

    return Reader(path, read)


RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
drawn = 0


def draw(path: Path) -> Any:
    """Read for drawing; what can be read is drawn, now and then, which takes long."""
    global drawn
    result = plot._read(path)
    drawn += 1
    if drawn % 20 == 0:
        figure = plot._comparisons({"a": result}) if result["format"] == plot.COMPARISON else plot._runs({"a": result})
        figure.canvas.draw()
    return {key: value for key, value in result.items() if key != "times"}


@reader
def comparison_result(folder: Path) -> Reader:
    content = json.loads((RESULTS / "own-convnet" / "compare.json").read_text())
    arms = content["arms"][:2]
    content = {
        **content, "arms": arms, "term": {"label": "CMI", "unit": "nats"}, "summary": content["summary"][:2],
        "entries": [entry for entry in content["entries"] if entry["arm"] in arms][:4],
    }  # fmt: skip
    write_json(content, folder / "compare.json")
    return Reader(folder / "compare.json", lambda: draw(folder / "compare.json"))


@reader
def run_history(folder: Path) -> Reader:
    loop = Loop()
    for _ in range(5):
        loop.step()
    loop.layer.history.save(folder / "cmi.json")
    return Reader(folder / "cmi.json", lambda: draw(folder / "cmi.json"))


@reader
def comparison_settings(folder: Path) -> Reader:
    wanted = {
        "host": "own", "data": {"name": "mine", "fingerprint": "0"}, "proxies": ["1"], "heldout": None, "device": "cpu",
        "settings": Settings().to_json(), "ddplug": "1", "torch": "2",
    }  # fmt: skip
    write_json(wanted, folder / comparison_folder.SETTINGS)

    def read() -> Any:
        comparison_folder.claim(folder, wanted)

    return Reader(folder / comparison_folder.SETTINGS, read)


@reader
def tune_confirmed(folder: Path) -> Reader:
    """The seeds of confirmations, read to find out which the next sweep gets."""
    sweeps = [{"first_seed": 0, "seeds": 2, "confirm": 3, "arms": ["weight-0", arm]} for arm in ("a", "b")]
    for of in sweeps:
        _fresh_seed(folder, of)
    return Reader(folder / CONFIRMED, lambda: [_fresh_seed(folder, of) for of in sweeps])


def entry(folder: Path) -> Path:
    times = {"seconds": 1.5, "extra_memory": 2**20}
    note = {"iteration": 4, "lambda": 2.0, "share": 0.5, "times": times}
    write_json({"sets": [note], "skipped": 1}, folder / DONE)
    judged = {"accuracies": [0.5, 0.25], "cmi": 0.1, "cmi_heldout": None, "accuracies_by_arch": {"alexnet": [0.5, 0.5]}}
    write_json(judged, folder / "set-000004.json")
    save_set(SyntheticSet(rand(4, 1, 8, 8), torch.arange(4) % 2, InputSpace.unit(1)), folder / set_name(4))
    return folder


def of_entry(folder: Path) -> Any:
    """As a comparison reads it, and as another that takes its baseline from it."""
    judging = judge.Judge(data(), Settings(runs=2, width=4, epochs=1), pool(), None, CPU, ("alexnet",))
    distilled = read_json(folder / DONE, kind=Distilled)
    judgements = [
        judging(folder / set_name(made["iteration"]), 0, 2, lambda done: None, last=True) for made in distilled["sets"]
    ]
    return [distilled, judgements, baseline._finished(folder), baseline.taken_from(distilled)]


@reader
def entry_distilled(folder: Path) -> Reader:
    return Reader(entry(folder) / DONE, lambda: of_entry(folder))


@reader
def entry_judged(folder: Path) -> Reader:
    return Reader(entry(folder) / "set-000004.json", lambda: of_entry(folder))


@reader
def facts_of_host(folder: Path) -> Reader:
    write_json({"lambda": 2.0, "skipped": 0, "rounds": 5}, folder / "cmi.json")

    def read() -> Any:
        facts: Any = Upstream._record(None, folder)  # type: ignore[arg-type]
        return facts["lambda"], facts["skipped"]

    return Reader(folder / "cmi.json", read)


@reader
def evaluation_runs(folder: Path) -> Reader:
    settings = {"epochs": 2, "lr": 0.01}
    path = folder / "runs.json"
    with Finished.open(path, settings) as kept:
        kept.put("convnet", 0, 0.5)

    def read() -> Any:
        with Finished.open(path, settings) as kept:
            return [kept.get("convnet", 0), kept.runs]

    return Reader(path, read)


# --- hosts

LOOP = b"import math\n\ndef main():\n    total = 0\n    return total\n"
PATCH = (
    b"--- a/loop.py\n+++ b/loop.py\n@@ -1,0 +2 @@\n+import ddplug\n@@ -4,0 +6,2 @@\n+    total = 2\n+    total = 3\n"
)


def host(folder: Path) -> tuple[Path, Path]:
    (folder / "loop.py").write_bytes(LOOP)
    (folder / "hosts.toml").write_text(
        f'''[ours]
title = "our own loop"
url = "https://example.org/loop"
commit = "{"0" * 40}"
licence = "MIT"
folder = "host"
script = "loop.py"
path = ["."]
packages = ["numpy"]
redirect_cuda = true
[ours.files]
"loop.py" = "{blob_hash(LOOP)}"
[ours.places."loop.py"]
1 = "below the imports"
'''
    )
    (folder / "ours.patch").write_bytes(PATCH)
    return folder / "hosts.toml", folder / "ours.patch"


def of_host(folder: Path) -> Any:
    """As `ddplug patch` uses them: checked, applied and taken out again."""
    table = checkout.table.__wrapped__(folder)  # which is read anew for every case
    if "ours" not in table:
        raise ddplug.errors.HostError("no such host")
    spec = checkout.from_record("ours", table["ours"], (folder / "ours.patch").read_bytes())
    (folder / "loop.py").write_bytes(LOOP)
    changed = spec.apply(folder)
    text = (folder / "loop.py").read_bytes()
    spec.reverse(folder)
    assert (folder / "loop.py").read_bytes() == LOOP
    return [changed, text, spec.patch.by_hand("loop.py", spec.places.get("loop.py")), spec.clone]


@reader
def table_of_hosts(folder: Path) -> Reader:
    return Reader(host(folder)[0], lambda: of_host(folder), ours=False)


@reader
def patch_file(folder: Path) -> Reader:
    return Reader(host(folder)[1], lambda: of_host(folder), ours=False)
