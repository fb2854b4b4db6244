"""The engine that all hosts share, on small loops of our own (`standins/`) that have the hosts' shapes.

Per class (DM), unrolled (MTT), gated with learned labels (DATM), a step per class on formed images with the options
parsed at import (IDC). Each is run unedited, out of memory with our lines in, patched on disk, and attached to.
"""

from __future__ import annotations

import argparse
import importlib
import json
import runpy
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import ddplug
from ddplug import InputSpace, ProxyPool, adapters, hosting
from ddplug.attaching import registry
from ddplug.errors import HostError, ProxyError
from ddplug.hosting import patch as patching
from ddplug.hosting import proxies as hostproxies
from ddplug.hosting import script as running
from ddplug.hosting.arguments import check_data, option
from ddplug.hosting.checkout import HostSpec, from_record
from ddplug.hosting.host import Host
from ddplug.hosting.layer import NAME, Layer, require_rounds, save_all
from ddplug.hosting.names import stacked
from ddplug.proxies.pool import DeferredPool, PoolInfo, scheme_of

pytestmark = pytest.mark.numerical

STANDINS = Path(__file__).parents[1] / "standins"
SAVE = "cmi.save()"

SHAPES: dict[str, dict[str, dict[int, str]]] = {
    "perclass": {"perclass.py": {
        0: "import ddplug.hosting as ddplug_cmi", 1: "ddplug_cmi.add_options(parser)",
        2: "cmi = ddplug_cmi.start('standin', args)", 3: "views = cmi.clean(views, c)", 4: "views = cmi(views, c)",
        5: SAVE,
    }},
    "unrolled": {"unrolled.py": {
        0: "import ddplug.hosting as ddplug_cmi", 1: "ddplug_cmi.add_options(parser, inner=True)",
        2: "cmi = ddplug_cmi.start('standin', args, steps=args.syn_steps)", 3: "x = cmi.clean(x, y, step=step)",
        4: "x = cmi(x, y, step=step)", 5: SAVE,
    }},
    "gated": {"gated.py": {
        0: "import ddplug.hosting as ddplug_cmi", 1: "ddplug_cmi.add_options(parser)",
        2: "cmi = ddplug_cmi.start('standin', args)", 3: "x = cmi.clean(x, chosen // 4)",
        4: "x = cmi(x, chosen // 4)", 5: SAVE,
    }},
    "formed": {
        "formed.py": {
            0: "import ddplug.hosting as ddplug_cmi", 2: "cmi = ddplug_cmi.start('standin', args)",
            4: "both = cmi(both, lab_syn, first=n)", 5: SAVE,
        },
        "settings.py": {0: "import ddplug.hosting as ddplug_cmi", 1: "ddplug_cmi.add_options(parser)"},
    },
}  # fmt: skip
"""By shape and file, what goes after each numbered comment of the stand-in; 0 is the first import."""

ROUNDS = {"perclass": 3, "unrolled": 3, "gated": 6, "formed": 6}


def insertions(text: bytes, lines: Mapping[int, str]) -> tuple[patching.Insertion, ...]:
    """Our lines, after the comments that are numbered for them, with the file's own line ends and indentation."""
    end = b"\r\n" if b"\r\n" in text else b"\n"
    made: list[patching.Insertion] = []
    for number, line in enumerate(text.split(b"\n"), 1):
        bare = line.strip()
        marked = bare[2:3].isdigit() and bare.startswith(b"# ") and bare[3:4] == b":"
        mark = int(bare[2:3]) if marked else 0 if bare.startswith(b"import ") and not made else -1
        if mark in lines:
            indent = line[: len(line) - len(line.lstrip())]
            made.append(patching.Insertion(number, (indent + lines[mark].encode() + end,)))
    return tuple(made)


class StandIn(Host):
    """The adapter of all stand-ins."""

    name = "standin"
    class_by_class = True  # as formed.py is
    its_spec: HostSpec
    found: ProxyPool | None = None

    def spec(self) -> HostSpec:
        return self.its_spec

    def setting(self, args: Any) -> tuple[str, str, int]:
        return "standin", "noise", 4

    def record(self, args: Any, context: Mapping[str, Any]) -> Path:
        return Path(args.out).with_suffix(".json")

    def space(self, args: Any, context: Mapping[str, Any]) -> InputSpace | None:
        return None

    def experts(self, args: Any, context: Mapping[str, Any]) -> ProxyPool | None:
        return self.found


class Host:
    """A stand-in in a folder of its own."""

    def __init__(self, shape: str, repo: Path, **more: Any) -> None:
        self.shape, self.repo = shape, repo
        shutil.copytree(STANDINS, repo, ignore=shutil.ignore_patterns("__pycache__"))
        script = repo / f"{shape}.py"
        if shape == "perclass":  # main_DM.py has CRLF line ends
            script.write_bytes(script.read_bytes().replace(b"\n", b"\r\n"))
        if shape == "formed":  # condense.py has no line end at its end
            script.write_bytes(script.read_bytes().rstrip())
        texts = {name: (repo / name).read_bytes() for name in SHAPES[shape]}
        raw = patching.build({name: insertions(texts[name], SHAPES[shape][name]) for name in texts})
        record = {
            "title": "a stand-in", "url": "https://example.org/x", "commit": "0" * 40, "licence": "MIT",
            "folder": "x", "script": f"{shape}.py",
            "files": {name: patching.blob_hash(text) for name, text in texts.items()}, **more,
        }  # fmt: skip
        self.spec = from_record("standin", record, raw)

    def direct(self, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
        """The script by itself, as it lies on disk."""
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [str(self.repo / self.spec.script), *map(str, arguments)])
            patch.setattr(sys, "path", [str(self.repo), *sys.path])
            patch.setattr(sys, "dont_write_bytecode", True)
            try:
                runpy.run_path(str(self.repo / self.spec.script), run_name="__main__")
            finally:
                for name in ("flipping", "settings"):
                    sys.modules.pop(name, None)

    def run(self, *arguments: object, must: bool = True, **ours: object) -> None:
        """What `ddplug run` does, with our options."""
        options = [f"--cmi_{name}={value}" for name, value in ours.items()]
        running.run(self.spec, self.repo, [*map(str, arguments), *options], must=must)

    def tree(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(self.repo.rglob("*")) if path.is_file()}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: ProxyPool) -> Iterator[Callable[..., Host]]:
    """Makes a stand-in of a shape, whose own experts are the pool; at the end its folder must be what it was."""
    made: list[tuple[Host, dict[str, bytes]]] = []
    monkeypatch.chdir(tmp_path)

    def make(shape: str, **more: Any) -> Host:
        one = Host(shape, tmp_path / "repo", **more)
        adapter = type("Adapter", (StandIn,), {"its_spec": one.spec, "found": pool})
        monkeypatch.setattr(registry, "_ADAPTERS", {"standin": adapter})
        made.append((one, one.tree()))
        return one

    before = (sys.argv, list(sys.path), sys.modules["__main__"], list(sys.meta_path), sys.dont_write_bytecode)
    yield make
    monkeypatch.undo()
    assert (sys.argv, list(sys.path), sys.modules["__main__"], list(sys.meta_path), sys.dont_write_bytecode) == before
    assert not {"flipping", "settings"} & set(sys.modules)
    for one, tree in made:
        assert one.tree() == tree, "the checkout was changed"


def load(name: str) -> Any:
    return torch.load(name)


def images_of(name: str) -> torch.Tensor:
    found = load(name)
    images: torch.Tensor = found[0] if isinstance(found, tuple) else found
    return images


def record(name: str) -> dict[str, Any]:
    return json.loads(Path(name).read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("shape", SHAPES)
def test_weight_zero_is_the_host_alone(
    shape: str, host: Callable[..., Host], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = host(shape)
    one.direct("--out", "theirs.pt", monkeypatch=monkeypatch)
    state = torch.get_rng_state()
    one.run("--out", "ours.pt", must=False, weight=0)
    assert torch.equal(torch.get_rng_state(), state), "not one draw more or less"
    assert torch.equal(images_of("theirs.pt"), images_of("ours.pt"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.pt", "repo", "theirs.pt"]


@pytest.mark.parametrize("shape", SHAPES)
def test_run_patched_and_attached_are_the_same(
    shape: str, host: Callable[..., Host], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = host(shape)
    one.run("--out", "run.pt", weight=0.5, calibrate=2)
    assert "ddplug: lambda = " in capsys.readouterr().out
    wrote = record("run.json")
    # A pass whose step is left out, and whose gradient is wiped, is no round; the last one's gradient is still there.
    expected = (load("run.pt")[2], load("run.pt")[2] + 1) if shape == "gated" else (ROUNDS[shape],)
    assert wrote["rounds"] == len(wrote["history"])
    assert wrote["rounds"] in expected
    assert wrote["lambda"] > 0
    one.direct("--out", "off.pt", monkeypatch=monkeypatch)
    assert not torch.equal(images_of("run.pt"), images_of("off.pt"))

    one.spec.apply(one.repo)
    one.direct("--out", "patched.pt", "--cmi_weight", 0.5, "--cmi_calibrate", 2, monkeypatch=monkeypatch)
    save_all()
    one.spec.reverse(one.repo)
    assert torch.equal(images_of("run.pt"), images_of("patched.pt"))
    assert record("patched.json") == wrote

    module = imported(one, monkeypatch)
    function = module.condense if shape == "formed" else module.main
    code = function.__code__
    monkeypatch.setattr(sys, "argv", ["x", "--out", "attached.pt"])
    args = types.SimpleNamespace(out="attached.pt", steps=ROUNDS[shape] // (3 if shape == "formed" else 1),
                                 syn_steps=4, threshold=0.18)  # fmt: skip
    with ddplug.attach(module, 0.5, weighting=ddplug.Relative(2)) as handle:
        with pytest.raises(ddplug.errors.HostError, match="in it already"):
            ddplug.attach(module, 0.5)
        function(*() if shape == "perclass" else (args,))
    assert torch.equal(images_of("run.pt"), images_of("attached.pt"))
    assert record("attached.json") == wrote
    assert handle.history.cmi == [round_["value"] for round_ in wrote["history"]]
    assert function.__code__ is code
    assert NAME not in vars(module)
    handle.detach()
    function(*() if shape == "perclass" else (args,))
    assert torch.equal(images_of("off.pt"), images_of("attached.pt")), "afterwards it is the host alone again"


def imported(one: Host, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The stand-in as a user imports it."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(one.repo), *sys.path])
        module = importlib.import_module(one.shape)
    for name in (one.shape, "flipping"):
        del sys.modules[name]
    return module


@pytest.mark.parametrize("views", ["host", "clean"])
def test_the_images_get_the_hosts_gradient_plus_lambda_times_cmis(
    views: str, host: Callable[..., Host], pool: ProxyPool
) -> None:
    """One step of lr 0.1: with CMI, the images are lower by 0.1 * lambda * dCMI, computed in the loss form."""
    one = host("perclass")
    one.run("--steps", 1, "--out", "off.pt", must=False, weight=0)
    one.run("--steps", 1, "--out", "on.pt", weight=7, weighting="absolute", views=views)
    torch.manual_seed(0)
    images = torch.randn(12, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    seen = images if views == "clean" else images.flip(3) * 1.1
    (grad,) = torch.autograd.grad(ddplug.CMI(pool)(seen, torch.arange(3).repeat_interleave(4)), images)
    assert torch.allclose(load("off.pt") - load("on.pt"), 0.1 * 7 * grad, rtol=0, atol=1e-12)
    assert grad.abs().max() > 1e-4


def test_only_the_current_classs_rows_and_only_synthetic_ones(host: Callable[..., Host], pool: ProxyPool) -> None:
    """IDC's shape: a round per class, on its four images cut into four each as the loss sees them, not on real ones."""
    one = host("formed")
    one.run("--steps", 1, "--out", "off.pt", must=False, weight=0)
    one.run("--steps", 1, "--out", "on.pt", weight=7, weighting="absolute")
    assert [round_["images"] for round_ in record("on.json")["history"]] == [16, 16, 16]
    torch.manual_seed(0)
    images = torch.rand(12, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    total = torch.zeros((), dtype=torch.float64)
    for c in range(3):
        seen = ((_formed(images[c * 4 : (c + 1) * 4]) - 0.5) / 0.25).flip(3) * 1.1
        total = total + ddplug.CMI(pool)(seen, torch.full((16,), c))
    (grad,) = torch.autograd.grad(total, images)
    assert torch.allclose(load("off.pt") - load("on.pt"), 0.1 * 7 * grad, rtol=0, atol=1e-12)


def _formed(images: torch.Tensor) -> torch.Tensor:
    """What the stand-in makes of a class's images: four of each."""
    parts = [images[:, :, i : i + 2, j : j + 2] for i in (0, 2) for j in (0, 2)]
    return torch.nn.functional.interpolate(torch.cat(parts), size=4, mode="bilinear")


def test_a_gate_is_left_alone_and_learned_labels_get_no_gradient_of_cmi(host: Callable[..., Host]) -> None:
    one = host("gated")
    for name, weight in (("off", 0.0), ("on", 5.0)):
        one.run("--steps", 1, "--threshold", 9, "--out", f"{name}.pt", must=False, weight=weight, weighting="absolute")
    (images, soft, _), (with_cmi, with_soft, _) = load("off.pt"), load("on.pt")
    assert torch.equal(soft, with_soft)
    assert not torch.equal(images, with_cmi)
    for name, weight in (("off", 0.0), ("on", 0.3)):
        one.run("--out", f"{name}.pt", must=False, weight=weight)
    assert 0 < load("off.pt")[2] < 6, "the gate is closed now and then"
    assert load("on.pt")[2] == load("off.pt")[2]


@pytest.mark.parametrize(("inner", "images"), [("one", 6), ("last", 6), ("all", 24)])
def test_inner_steps(inner: str, images: int, host: Callable[..., Host]) -> None:
    one = host("unrolled")
    one.run("--steps", 5, "--out", "on.pt", weight=0.1, inner=inner)
    wrote = record("on.json")
    assert wrote["rounds"] == 5
    assert {round_["images"] for round_ in wrote["history"]} == {images}
    assert (wrote["inner"], wrote["steps"]) == (inner, 4)


def test_one_inner_step_is_drawn_evenly_and_last_is_the_last(pool: ProxyPool) -> None:
    regularizer = ddplug.Regularizer(pool, 0.1)
    one, last = (Layer(regularizer, steps=4, inner=inner) for inner in ("one", "last"))
    taken = [[step for step in range(4) if one._takes(step)] for _ in range(400)]
    assert all(len(steps) == 1 for steps in taken)
    assert all(70 < sum(steps == [step] for steps in taken) < 130 for step in range(4))
    assert [step for step in range(4) if last._takes(step)] == [3]


def test_never_coming_into_action_is_an_error(host: Callable[..., Host]) -> None:
    one = host("perclass")
    with pytest.raises(HostError, match="no backward pass ever reached"):
        one.run("--steps", 0, "--out", "on.pt", weight=0.1)
    one.run("--steps", 0, "--out", "off.pt", must=False, weight=0)


def test_sets_distilled_in_turn_by_one_attached_regulariser_have_a_record_each(
    host: Callable[..., Host], monkeypatch: pytest.MonkeyPatch, pool: ProxyPool
) -> None:
    module = imported(host("gated"), monkeypatch)
    with ddplug.attach(module, 0.5, proxies=pool) as handle:
        for name, steps in (("first", 2), ("second", 3)):
            module.main(types.SimpleNamespace(out=f"{name}.pt", steps=steps, threshold=9))
    first, second = record("first.json"), record("second.json")
    assert (first["rounds"], second["rounds"]) == (2, 3)
    assert [round_["number"] for round_ in second["history"]] == [2, 3, 4]
    assert len(handle.history) == 5
    Path("first.json").unlink()
    save_all()
    assert not Path("first.json").exists(), "what is done is not written again when the program ends"


def test_ending_before_the_layer_is_put_in_is_an_error() -> None:
    with (
        pytest.raises(HostError, match="ended before its synthetic images were made"),
        require_rounds("x", True),
    ):
        pass


def test_a_misspelt_option_is_the_hosts_own_error(host: Callable[..., Host], tmp_path: Path) -> None:
    one = host("perclass")
    for wrong in ("--stepps", "--cmi_wait"):
        with pytest.raises(SystemExit) as caught:
            one.run(wrong, 3, weight=0.1)
        assert caught.value.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


def test_a_failure_of_the_host_shows_its_traceback(
    host: Callable[..., Host], capsys: pytest.CaptureFixture[str]
) -> None:
    one = host("perclass")
    with pytest.raises(HostError, match=r"perclass.py ended with \w+, see above"):
        one.run("--out", "no/such/folder/x.pt", must=False, weight=0)
    assert "torch.save(images.detach(), args.out)" in capsys.readouterr().err


def test_a_package_that_is_missing_is_named(host: Callable[..., Host]) -> None:
    with pytest.raises(HostError, match="pip install nosuchpackage"):
        host("perclass", packages=["nosuchpackage"]).run(weight=0.1)


def test_modules_of_the_hosts_names_do_not_get_in_its_way(
    host: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = host("perclass")
    mine = types.ModuleType("flipping")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "flipping", mine)
        one.run("--out", "on.pt", weight=0.1)
        assert sys.modules["flipping"] is mine


def test_defaults_are_off_and_any_config_can_hold_them() -> None:
    parser = argparse.ArgumentParser()
    hosting.add_options(parser, inner=True)
    args = vars(parser.parse_args([]))
    assert args["cmi_weight"] == 0.0
    assert all(type(value) in (int, float, str) for value in args.values())
    assert json.loads(json.dumps(args)) == args
    config = types.SimpleNamespace()
    hosting.add_config(config, inner=True)
    assert vars(config) == args
    assert parser.parse_args(["--cmi_weight", "paper"]).cmi_weight == "paper"
    with pytest.raises(SystemExit):
        parser.parse_args(["--cmi_weight", "much"])


def test_off_loads_nothing_and_returns_the_very_same_tensor(untouched: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddplug.hosting.host.upstream", lambda name: pytest.fail("nobody should be asked"))
    layer = hosting.start("dm", argparse.Namespace(cmi_weight=0.0, cmi_proxies="/nowhere"))
    views = torch.zeros(2, 3, 4, 4, requires_grad=True)
    assert layer(views, 0) is views
    assert layer.clean(views, 0) is views
    layer.save()


# Where proxies come from ----------------------------------------------------------------------------------------------


class Known(StandIn):
    """An adapter with nothing of its own."""

    name = "known"


def test_proxies_as_named_then_experts_then_a_small_pool(
    pool: ProxyPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = Known()
    with pytest.raises(ProxyError, match="no real data"):
        hostproxies.resolve("", adapter, None, {})

    monkeypatch.setattr("ddplug.proxies.pretrain.default_pool", lambda data: pool)
    monkeypatch.setattr(adapter, "real", lambda args, context: "data")
    assert hostproxies.resolve("", adapter, None, {}) is pool
    adapter.found = ProxyPool(pool.proxies)
    assert not capsys.readouterr().out
    assert hostproxies.resolve("", adapter, None, {}) is adapter.found
    assert "taking known's own networks" in capsys.readouterr().out, "which is worth a second thought"
    monkeypatch.setitem(hostproxies.SCHEMES, "mine", lambda rest, *_: pool if rest == "a:b" else pytest.fail(rest))
    assert hostproxies.resolve("mine:a:b", adapter, None, {}) is pool
    with pytest.raises(ProxyError, match="unknown kind of proxies 'theirs:'"):
        hostproxies.resolve("theirs:x", adapter, None, {})
    with pytest.raises(ProxyError, match="there is no pool"):
        hostproxies.resolve(str(tmp_path / "none"), adapter, None, {})


def test_a_pool_of_other_data_is_refused(pool: ProxyPool) -> None:
    pool.info = PoolInfo(dataset="cifar10")
    pool.check_data("CIFAR-10")
    with pytest.raises(ProxyError, match="trained on cifar10, not on svhn"):
        pool.check_data("svhn")


def test_a_deferred_pool_becomes_the_pool(pool: ProxyPool) -> None:
    deferred = DeferredPool("buffer:x")
    regularizer = ddplug.Regularizer(deferred, 0.1, compute=ddplug.Compute(draw=3))
    assert deferred.pending
    assert "buffer:x" in repr(regularizer.pool)
    deferred.fill(pool)
    assert len(deferred) == len(pool)
    assert not deferred.pending


@pytest.mark.parametrize(
    ("text", "scheme"), [("buffer:x", "buffer"), ("folder", None), ("C:\\x", None), ("a/b:c", None)]
)
def test_schemes(text: str, scheme: str | None) -> None:
    assert scheme_of(text) == scheme


# The adapters that ship ----------------------------------------------------------------------------------------------


def test_dm_and_dsa_say_what_upstreams_names_mean(tmp_path: Path) -> None:
    args = types.SimpleNamespace(method="DSA", dataset="CIFAR10", model="ConvNet", ipc=10, save_path="result")
    images, labels = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 0, 1])
    context = {"exp": 2, "space": ([0.5] * 3, [0.25] * 3), "classes": ["a", "b"], "train": (images, labels),
             "test": [(images[0], 1), (images[1], 0)]}  # fmt: skip
    for name in ("dm", "dsa"):
        adapter = adapters.upstream(name)
        assert adapter.name == name
        assert adapter.setting(args) == (name, "cifar10", 10)
        assert adapter.record(args, context) == Path("result/cmi_DSA_CIFAR10_ConvNet_10ipc_exp2.json")
        assert adapter.experts(args, context) is None
        data = adapter.real(args, context)
        assert data is not None
        assert data.name == "cifar10"
        assert data.class_names == ("a", "b")
        assert data.space == InputSpace.normalized([0.5] * 3, [0.25] * 3)
        assert torch.equal(data.train_images, images)
        assert data.test_labels.tolist() == [1, 0]
        with pytest.raises(HostError, match="no cifar-10-batches-py"):
            adapter.preflight(["--data_path", str(tmp_path)])
    assert not list(tmp_path.iterdir())
    with pytest.raises(HostError, match="no host 'gm'"):
        adapters.upstream("gm")


def test_paper_weights_are_looked_up_by_the_hosts_own_options(pool: ProxyPool, tmp_path: Path) -> None:
    args = types.SimpleNamespace(method="DM", dataset="CIFAR10", model="ConvNet", ipc=10, save_path=str(tmp_path))
    args.cmi_weight, args.cmi_proxies = "paper", "given:x"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hostproxies.SCHEMES, "given", lambda *_: pool)
        layer = hosting.start("dm", args, exp=0, space=([0.0] * 3, [1.0] * 3))
        assert layer.regularizer is not None
        assert layer.regularizer.lam == 8000
        args.ipc = 20
        with pytest.raises(ddplug.errors.InputError, match="no weight for dm, cifar10, 20"):
            hosting.start("dm", args, exp=0, space=([0.0] * 3, [1.0] * 3))
    save_all()
    assert not list(tmp_path.iterdir()), "nothing happened, nothing is written"


def test_command_lines_and_data_folders(tmp_path: Path) -> None:
    assert option(["--a", "1", "--data_path=x"], "data_path", "data") == "x"
    assert option(["--data_path", "y"], "data_path", "data") == "y"
    assert option([], "data_path", "data") == "data"
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    check_data("dm", "MNIST", str(tmp_path))
    check_data("dm", "NoSuchSet", str(tmp_path))  # the host says that better
    with pytest.raises(HostError, match="--download"):
        check_data("dm", "SVHN", str(tmp_path))
    images, labels = stacked((torch.ones(2, 1, 2, 2, dtype=torch.float64), torch.tensor([1, 0], dtype=torch.int32)))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)


# A machine without CUDA ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_means_the_cpu_within() -> None:
    with running.CudaOnCpu():
        made = torch.tensor([1.0], device="cuda")
        assert torch.zeros(2, device=torch.device("cuda", 0)).cuda().device.type == "cpu"
        torch.cuda.set_device(0)
        torch.cuda.reset_max_memory_allocated()
        assert torch.nn.Linear(1, 1).to("cuda").cuda()(made.to("cuda:0")).device.type == "cpu"
        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(torch.zeros, 1, device="cuda").result().device.type == "cpu"
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(1, device="cuda")


def test_names_that_numpy_dropped() -> None:
    import numpy as np

    with running.old_names(("int",)):
        assert np.int is int  # type: ignore[attr-defined]
    assert "int" not in vars(np)


@pytest.mark.parametrize("start", [True, False])
def test_a_patched_host_that_catches_exceptions_hides_none_of_ours(
    start: bool, host: Callable[..., Host], monkeypatch: pytest.MonkeyPatch, pool: ProxyPool
) -> None:
    one = host("perclass")
    script = one.repo / "perclass.py"
    text = script.read_bytes()
    main = b"    main()"
    caught = b"    try:\r\n        main()\r\n    except Exception:\r\n        pass"
    patched = {name: source.replace(main, caught) for name, source in one.spec.patched(one.repo).items()}
    assert patched[script.name] != one.spec.patched(one.repo)[script.name]
    monkeypatch.setattr(HostSpec, "patched", lambda *_: patched)
    adapter = registry._ADAPTERS["standin"]
    if start:
        monkeypatch.setattr(adapter, "found", None)
    else:
        monkeypatch.setattr(Layer, "_pass", lambda self, views, *_: self.regularizer(views, torch.zeros(1)))
    with pytest.raises(HostError, match="caught an error of ddplug's"):
        one.run("--out", "on.pt", weight=0.5)
    assert script.read_bytes() == text


_RUN = """
import json, os, signal, sys, time
from pathlib import Path
import torch
import ddplug
from ddplug.hosting.layer import Layer, started

how, steps = sys.argv[1], int(sys.argv[2])
network = torch.nn.Linear(12, 3).double()
pool = ddplug.ProxyPool.from_modules([torch.nn.Sequential(torch.nn.Flatten(), network)])
reg = ddplug.Regularizer(pool, 1.0, representation="logit", announce=lambda text: None)
cmi = started(Layer(reg, record=Path("cmi.json"), facts={"host": "x", "dataset": "y", "ipc": 2}))
images = torch.randn(6, 3, 2, 2, dtype=torch.float64, requires_grad=True)
optimizer = torch.optim.SGD([images], lr=0.1)
for step in range(steps):
    optimizer.zero_grad()
    cmi(images * 1, torch.tensor([0, 0, 1, 1, 2, 2])).square().sum().backward()
    optimizer.step()
if how == "fork":
    if (child := os.fork()) == 0:
        time.sleep(60)
    time.sleep(0.5)
    os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)
    assert json.loads(cmi.record.read_text())["rounds"] == 1
elif how != "end":
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(60)
"""


def _ended(how: str, steps: int, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "run.py").write_text(_RUN)
    return subprocess.run(
        [sys.executable, "run.py", how, str(steps)], cwd=folder, capture_output=True, text=True, timeout=200
    )


@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP", "SIGKILL", "fork"])
def test_no_end_of_a_run_loses_its_history(how: str, tmp_path: Path) -> None:
    """The history of a patched host's run is kept whatever ends the run, and the process ends by that.

    Kind: ends of a process that skip its exit functions. Looked at: SIGTERM and SIGHUP (lost all), SIGKILL and running
    out of memory (no process sees these, so the history is written during the run, at most 30 s old), Ctrl-C, a plain
    end, and a forked worker that is terminated (it must write nothing).
    """
    (tmp_path / "cmi.json").write_text("an older record")
    if how == "SIGHUP" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        pytest.skip("started by nohup, under which nothing ends by SIGHUP")
    done = _ended(how, 5, tmp_path)
    expected = -int(getattr(signal, how)) if how.startswith("SIG") else 0
    assert done.returncode == expected, done.stderr
    assert (tmp_path / "cmi.json").read_text() == "an older record"
    found = json.loads((tmp_path / "cmi-2.json").read_text())
    assert found["rounds"] == len(found["history"]) == (1 if how == "SIGKILL" else 5)


def test_the_host_makes_its_own_folder(tmp_path: Path) -> None:
    """DATM and PAD make the folders within it only if it is not there when they save for the first time.

    Kind: effects of the files of ours on the host. Looked at: the record during the run, before and after the host has
    saved, and at the end of a run that saved nothing.
    """
    pool = ddplug.ProxyPool.from_modules([torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))])
    cmi = Layer(ddplug.Regularizer(pool, 1.0, announce=lambda text: None), record=tmp_path / "run" / "cmi.json")
    images = torch.randn(6, 3, 2, 2, requires_grad=True)

    def step() -> None:
        cmi(images * 1, torch.tensor([0, 0, 1, 1, 2, 2])).square().sum().backward()

    step()
    step()
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    step()
    assert (tmp_path / "run" / "cmi.json").is_file()
    shutil.rmtree(tmp_path / "run")
    cmi.save()
    assert (tmp_path / "run" / "cmi.json").is_file()


@pytest.mark.parametrize("steps", [0, 3])
def test_an_interruption_names_the_file_if_there_is_one(
    steps: int, host: Callable[..., Host], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kind: messages that name a file. Looked at: `ddplug run` of hosts and of scripts, interrupted and ended."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    one = host("perclass")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(torch, "save", interrupt)
        one.run("--steps", steps, "--out", "on.pt", weight=0.5)
    said = capsys.readouterr().err
    assert Path("on.json").exists() == (steps > 0) == (str(Path("on.json").absolute()) in said)
    assert ("nothing is saved" in said) == (steps == 0)


def test_a_hosts_package_is_there_by_either_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a module of whatever origin, a stand-in for a logger say, and by its name for pip, which may be another."""
    (tmp_path / "a_logger.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [running._installed(name) for name in ("a_logger", "PyYAML", "no_logger")] == [True, True, False]
