"""Hosts from outside: one of each known shape, in a package of its own, of at most 40 lines; ours are not touched.

Their scripts are the loops of `standins/`; adapter, patch and table are below, as somebody else's package would hold
them. Everything is done by `ddplug run`, which finds them by their entry points.
"""

from __future__ import annotations

import importlib
import json
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ddplug
from ddplug import ProxyPool
from ddplug.attaching import registry
from ddplug.cli.app import app
from ddplug.errors import HostError, InputError
from ddplug.hosting import proxies as hostproxies
from ddplug.hosting.checkout import load
from ddplug.hosting.host import Host, comparable, upstream
from ddplug.hosting.layer import Layer
from ddplug.hosting.shapes import DMLike
from ddplug.terms import Real, make
from ddplug.terms.base import group
from ddplug.utils.digest import blob_hash

pytestmark = pytest.mark.numerical

STANDINS = Path(__file__).parents[1] / "standins"
MOST = 40

ADAPTER = """
from pathlib import Path
from ddplug.hosting.shapes import {base}

class Toy({base}):
    name = "{name}"
    patches = __name__
    defaults = {{**{base}.defaults, "dataset": "noise", "ipc": 4}}

    def setting(self, args):
        return self.name, "noise", 4

    def record(self, args, context):
        return Path(args.out).with_suffix(".json")
"""

TABLE = """
[{name}]
title = "a toy"
url = "https://example.org/toy"
commit = "0000000000000000000000000000000000000000"
licence = "MIT"
folder = "toy"
script = "{script}"
[{name}.files]
{files}
"""

PERCLASS = """
--- a/perclass.py
+++ b/perclass.py
@@ -3,0 +4 @@
+import ddplug.hosting as ddplug_cmi
@@ -13,0 +15 @@
+    ddplug_cmi.add_options(parser)
@@ -18,0 +21 @@
+    cmi = ddplug_cmi.start('toy-perclass', args)
@@ -25,0 +29 @@
+            views = cmi(views, c)
@@ -31,0 +36 @@
+    cmi.save()
"""

UNROLLED = """
--- a/unrolled.py
+++ b/unrolled.py
@@ -3,0 +4 @@
+import ddplug.hosting as ddplug_cmi
@@ -14,0 +16 @@
+    cmi = ddplug_cmi.start('toy-unrolled', args, steps=args.syn_steps)
@@ -23,0 +26 @@
+            x = cmi(x, y, step=step)
@@ -31,0 +35 @@
+    cmi.save()
@@ -39,0 +44 @@
+    ddplug_cmi.add_options(parser, inner=True)
"""

GATED = """
--- a/gated.py
+++ b/gated.py
@@ -3,0 +4 @@
+import ddplug.hosting as ddplug_cmi
@@ -16,0 +18 @@
+    cmi = ddplug_cmi.start('toy-gated', args)
@@ -22,0 +25 @@
+        x = cmi(x, chosen // 4)
@@ -25,0 +29 @@
+        cmi.gate(loss, args.threshold)
@@ -32,0 +37 @@
+    cmi.save()
@@ -40,0 +46 @@
+    ddplug_cmi.add_options(parser)
"""

FORMED = """
--- a/formed.py
+++ b/formed.py
@@ -3,0 +4 @@
+import ddplug.hosting as ddplug_cmi
@@ -16,0 +18 @@
+    cmi = ddplug_cmi.start('toy-formed', args)
@@ -23,0 +26 @@
+            both = cmi(both, lab_syn, first=n)
@@ -29,0 +33 @@
+    cmi.save()
--- a/settings.py
+++ b/settings.py
@@ -3,0 +4 @@
+import ddplug.hosting as ddplug_cmi
@@ -8,0 +10 @@
+ddplug_cmi.add_options(parser)
"""

TOYS = {
    "perclass": ("DMLike", PERCLASS),
    "unrolled": ("MTTLike", UNROLLED),
    "gated": ("MTTLike", GATED),
    "formed": ("IDCLike", FORMED),
}
OPTIONS = {"unrolled": ["--inner", "last"]}
ARGUMENTS = {"gated": ["--threshold", "9"]}


def package(shape: str, folder: Path) -> int:
    """Write the toy's package into `folder`, as if it were installed there; how many lines of its own it has."""
    base, patch = TOYS[shape]
    name, home = f"toy-{shape}", folder / f"toy_{shape}"
    files = [line.removeprefix("+++ b/") for line in patch.splitlines() if line.startswith("+++ ")]
    hashes = "\n".join(f'"{file}" = "{blob_hash((STANDINS / file).read_bytes())}"' for file in files)
    texts = {
        "__init__.py": ADAPTER.format(base=base, name=name),
        "hosts.toml": TABLE.format(name=name, script=f"{shape}.py", files=hashes),
        f"{name}.patch": patch,
    }
    home.mkdir()
    for file, text in texts.items():
        (home / file).write_text(text.lstrip())
    about = folder / f"toy_{shape}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: toy-{shape}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{name} = toy_{shape}:Toy\n")
    return sum(bool(line.strip()) for text in texts.values() for line in text.splitlines())


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """All toys are installed; how many lines each has."""
    site = tmp_path_factory.mktemp("site")
    counted = {shape: package(shape, site) for shape in TOYS}
    sys.path.append(str(site))
    importlib.invalidate_caches()
    yield counted
    sys.path.remove(str(site))
    for shape in TOYS:
        sys.modules.pop(f"toy_{shape}", None)


Runner = Callable[..., None]


@pytest.fixture
def run(
    lines: dict[str, int], tmp_path: Path, pool: ProxyPool, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Runner]:
    """Of a shape, what runs `ddplug run` on it; without options of ours, the script by itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setitem(hostproxies.SCHEMES, "given", lambda *_: pool)

    def make(shape: str) -> Runner:
        repo = shutil.copytree(STANDINS, tmp_path / "repo", ignore=shutil.ignore_patterns("__pycache__"))
        script = repo / f"{shape}.py"

        def start(out: str, *ours: object, steps: int = 3, theirs: tuple[str, ...] | None = None) -> None:
            more = ARGUMENTS.get(shape, []) if theirs is None else theirs
            given = ["--steps", str(steps), "--out", out, *more]
            with monkeypatch.context() as patch:
                if ours:
                    command = ["run", f"toy-{shape}", "--repo", str(repo), *OPTIONS.get(shape, []), *map(str, ours)]
                    app([*command, "--", *given], standalone_mode=False)
                    return
                patch.setattr(sys, "argv", [str(script), *given])
                patch.setattr(sys, "path", [str(repo), *sys.path])
                runpy.run_path(str(script), run_name="__main__")
            for name in ("flipping", "settings"):
                sys.modules.pop(name, None)

        return start

    return make


def saved(out: str) -> Any:
    return torch.load(out)


def images(out: str) -> Tensor:
    held = saved(out)
    return held[0] if isinstance(held, tuple) else held


def record(out: str) -> dict[str, Any]:
    return json.loads(Path(out).with_suffix(".json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("shape", TOYS)
def test_a_host_of_a_known_shape_costs_forty_lines(shape: str, lines: dict[str, int]) -> None:
    """Adapter, patch and table together."""
    assert lines[shape] <= MOST


@pytest.mark.parametrize("shape", TOYS)
def test_weight_zero_leaves_the_images_of_the_unedited_script(shape: str, run: Callable[[str], Runner]) -> None:
    start = run(shape)
    start("alone.pt")
    start("off.pt", "--weight", 0)
    assert torch.equal(images("alone.pt"), images("off.pt"))
    assert not Path("off.json").exists()


@pytest.mark.parametrize("shape", TOYS)
def test_the_layer_acts_in_every_step(shape: str, run: Callable[[str], Runner]) -> None:
    start = run(shape)
    start("alone.pt")
    start("on.pt", "--weight", 0.5, "--proxies", "given:x", "--calibrate", 1)
    wrote = record("on.pt")
    assert wrote["host"] == f"toy-{shape}"
    assert wrote["rounds"] == len(wrote["history"]) == (9 if shape == "formed" else 3)
    assert wrote["skipped"] == 0
    assert wrote["lambda"] > 0
    assert not torch.equal(images("alone.pt"), images("on.pt"))


def test_a_step_that_is_left_out_is_no_round(run: Callable[[str], Runner]) -> None:
    run("gated")("on.pt", "--weight", 0.3, "--proxies", "given:x", steps=6, theirs=())
    taken = saved("on.pt")[2]
    assert 0 < taken < 6
    assert record("on.pt")["rounds"] == taken


def regularised(shape: str) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The images that a shape's script starts from, and the views and labels of each round in its first step."""
    torch.manual_seed(0)
    draw = torch.rand if shape == "formed" else torch.randn
    leaf = draw(12, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    classes = torch.arange(3).repeat_interleave(4)
    if shape == "perclass":
        return leaf, [(leaf.flip(3) * 1.1, classes)]
    if shape == "formed":
        parts = [(leaf[:, :, i : i + 2, j : j + 2] - 0.5) / 0.25 for i in (0, 2) for j in (0, 2)]
        views = [torch.nn.functional.interpolate(part, size=4, mode="bilinear").flip(3) * 1.1 for part in parts]
        rows = [classes == c for c in range(3)]
        return leaf, [(torch.cat([part[row] for part in views]), classes[row].repeat(4)) for row in rows]
    for _ in range(4 if shape == "unrolled" else 1):
        chosen = torch.randperm(12)[: 6 if shape == "unrolled" else 8]
    return leaf, [(leaf[chosen].flip(3) * 1.1, classes[chosen])]


@pytest.mark.parametrize("shape", TOYS)
def test_the_first_steps_gradient_is_the_hosts_plus_lambda_times_cmis(
    shape: str, run: Callable[[str], Runner], pool: ProxyPool
) -> None:
    """One step of lr 0.1 in float64, in which images of size 4 are some 1e-15 apart, and sums are of dozens."""
    start, lam = run(shape), 7
    start("alone.pt", steps=1)
    start("on.pt", "--weight", lam, "--weighting", "absolute", "--proxies", "given:x", steps=1)
    leaf, rounds = regularised(shape)
    (grad,) = torch.autograd.grad(sum(ddplug.CMI(pool)(views, labels) for views, labels in rounds), leaf)
    assert torch.allclose(images("alone.pt") - images("on.pt"), 0.1 * lam * grad, rtol=0, atol=1e-12)
    assert grad.abs().max() > 1e-4


def test_rows_before_the_synthetic_ones_are_real_images_to_a_term_that_compares(
    run: Callable[[str], Runner], pool: ProxyPool
) -> None:
    """In a step per class, each with five real images of the class in front."""
    start, lam = run("formed"), 7
    start("alone.pt", steps=1)
    chosen = ("--weight", lam, "--weighting", "absolute", "--term", "0.5*covariance", "--proxies", "given:x")
    start("on.pt", *chosen, steps=1)
    leaf, rounds = regularised("formed")  # what is drawn next are the real images
    of = pool.proxies[0]
    values = []
    for views, labels in rounds:
        real = (torch.rand(5, 3, 4, 4, dtype=torch.float64) - 0.5) / 0.25
        theirs = Real(of(real.flip(3) * 1.1, "feature"), group(labels[:1].expand(5), 5, "cpu"))
        term = make("covariance").against(theirs)
        values.append(0.5 * term(of(views, "feature"), group(labels, len(labels), "cpu")))
    (grad,) = torch.autograd.grad(sum(values), leaf)
    assert torch.allclose(images("alone.pt") - images("on.pt"), 0.1 * lam * grad, rtol=0, atol=1e-12)
    assert grad.abs().max() > 1e-4
    assert record("on.pt")["term"] == {
        "name": "0.5*covariance", "label": "0.5 * covariance distance", "unit": "features to the fourth",
    }  # fmt: skip


@pytest.mark.parametrize("shape", TOYS)
def test_a_term_on_a_hosts_command_line_reaches_the_regulariser(shape: str, run: Callable[[str], Runner]) -> None:
    """Of both signs, by the same lambda: equal steps in opposite directions from the host's own."""
    start = run(shape)
    chosen = ("--weight", 0.7, "--weighting", "absolute", "--proxies", "given:x")
    start("alone.pt", steps=1)
    start("plus.pt", *chosen, "--term", "cmi", steps=1)
    start("minus.pt", *chosen, "--term=-cmi", steps=1)
    by_cmi = images("plus.pt") - images("alone.pt")
    assert by_cmi.abs().max() > 1e-5
    assert torch.allclose(images("minus.pt") - images("alone.pt"), -by_cmi, rtol=0, atol=1e-12)
    assert record("minus.pt")["term"]["name"] == "-cmi"


def test_real_images_beside_the_layer(pool: ProxyPool, batch: tuple[Tensor, Tensor]) -> None:
    """In the same batch, or beside it; the layer changes no row, and inner steps left out leave no real images."""
    regularizer = ddplug.Regularizer(pool, 1.0, term="covariance", weighting="absolute", announce=lambda line: None)
    views, real = batch[0][:4], batch[0][4:9]

    def gradient(layer: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = views.clone().requires_grad_()
        passed = layer(leaf)
        passed.square().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    layer = Layer(regularizer, steps=2, inner="last")
    beside = gradient(lambda leaf: layer(leaf, 1, real=real))
    before = gradient(lambda leaf: layer(torch.cat([real, leaf]), 1, first=5))
    assert torch.allclose(before, beside, rtol=0, atol=1e-12)
    assert torch.equal(layer(torch.cat([real, views.clone().requires_grad_()]), 1, first=5)[:5], real)
    assert not torch.allclose(beside, gradient(lambda leaf: layer(leaf, 1, real=views)), rtol=0, atol=1e-6)
    clean = Layer(regularizer, views="clean")
    assert torch.equal(gradient(lambda leaf: clean.clean(leaf, 1, real=real)), beside)
    assert torch.equal(gradient(lambda leaf: layer(leaf, 1, real=real, step=0)), 2 * views), "a step that is not used"
    with pytest.raises(InputError, match="compares with real images, and has none"):
        gradient(lambda leaf: layer(leaf, 1))


def test_attach_knows_it_too(run: Callable[[str], Runner], pool: ProxyPool, monkeypatch: pytest.MonkeyPatch) -> None:
    start = run("unrolled")
    start("run.pt", "--weight", 0.5, "--proxies", "given:x", "--calibrate", 1)
    with monkeypatch.context() as patch:
        patch.syspath_prepend("repo")
        script = importlib.import_module("unrolled")
    with ddplug.attach(script, 0.5, proxies=pool, weighting=ddplug.Relative(1), inner="last") as handle:
        script.main(type("Options", (), {"steps": 3, "syn_steps": 4, "out": "attached.pt"}))
    for name in ("unrolled", "flipping"):
        del sys.modules[name]
    assert handle.where == "host toy-unrolled"
    assert torch.equal(images("run.pt"), images("attached.pt"))


def test_a_host_without_saved_sets_cannot_be_compared() -> None:
    assert upstream("dance").name == "dance"
    with pytest.raises(HostError, match="sets of dance, whose adapter has no method `saved`"):
        comparable("dance")


def test_what_an_adapter_does_not_say_is_named() -> None:
    class Silent(Host):
        name = "silent"

    silent, nowhere = Silent(), Path()
    for method, arguments in {
        "setting": (object(),), "record": (None, {}), "saved": (nowhere, ()),
        "expected_setting": ((),),
    }.items():  # fmt: skip
        with pytest.raises(HostError, match=f"adapter of silent does not know .* a method `{method}`"):
            getattr(silent, method)(*arguments)
    assert silent.experts(None, {}) is silent.space(None, {}) is silent.real(None, {}) is None
    silent.preflight(())
    silent.comparable(())


def test_a_fork_can_be_compared_by_its_defaults_alone(tmp_path: Path) -> None:
    class Fork(DMLike):
        name = "fork"
        defaults = {**DMLike.defaults, "ipc": 5, "Iteration": 10}  # noqa: RUF012

    fork = Fork()
    assert fork.expected_setting(("--dataset=SVHN",)) == ("fork", "svhn", 5)
    assert fork.command((), tmp_path)[:2] == ["--data_path", str(Path("data").resolve())]
    with pytest.raises(InputError, match="--num_exp is set by"):
        fork.comparable(("--num_exp", "2"))
    with pytest.raises(HostError, match="argument --ipc: invalid int value: 'few'"):
        fork.expected_setting(("--ipc", "few"))


def test_a_package_without_table_or_patch_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"no hosts.toml in"):
        load("toy", tmp_path / "none")
    with pytest.raises(HostError, match="no package 'tables.of.mine'"):
        load("toy", "tables.of.mine")
    (tmp_path / "hosts.toml").write_text("[toy")
    with pytest.raises(HostError, match="hosts.toml' is not TOML"):
        load("toy", tmp_path)
    package("perclass", tmp_path)
    home = tmp_path / "toy_perclass"
    assert load("toy-perclass", home).script == "perclass.py"
    with pytest.raises(HostError, match=r"no host 'toy' in the hosts.toml of .*; it has toy-perclass"):
        load("toy", home)
    (home / "toy-perclass.patch").write_text("nothing")
    with pytest.raises(HostError):
        load("toy-perclass", home)
    (home / "toy-perclass.patch").unlink()
    with pytest.raises(HostError, match=r"no toy-perclass.patch beside it"):
        load("toy-perclass", home)
