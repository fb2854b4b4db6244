"""`ddplug run --script`: the stand-ins' unedited loops, and small scripts written here, without any patch."""

from __future__ import annotations

import gc
import json
import re
import runpy
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import tiny_network
from torch import Tensor

from ddplug import Compute, ProxyPool, Regularizer, Relative, attach
from ddplug.attaching import registry
from ddplug.cli.app import app
from ddplug.errors import HostError, InputError
from ddplug.hosting.checkout import from_record
from ddplug.hosting.host import Host
from ddplug.hosting.layer import Layer
from ddplug.hosting.patch import blob_hash
from ddplug.hosting.script import Source, execute
from ddplug.scripts.any_script import Unpatched, run_unpatched
from ddplug.scripts.frames import Expression, Scope

STANDINS = Path(__file__).parents[1] / "standins"

SHAPES: dict[str, tuple[list[str], str, dict[str, Any]]] = {
    # options, the line that a patch would put in at "# 4: views", and what its layer is made with
    "perclass": (["--labels", "torch.arange(12) // 4"], "views = LAYER(views, c)", {}),
    "unrolled": (["--steps", "args.syn_steps"], "x = LAYER(x, y, step=step)", {"steps": 4}),
    "gated": (["--labels", "chosen // 4"], "x = LAYER(x, chosen // 4)", {}),
    "formed": (["--labels", "lab_syn"], "both = LAYER(both, lab_syn, first=n)", {}),
}
THEIRS = {"gated": ["--threshold", "9"]}


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the stand-ins, beside which runs are started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return shutil.copytree(STANDINS, tmp_path / "repo", ignore=shutil.ignore_patterns("__pycache__"))


@pytest.fixture
def command(repo: Path, pool: ProxyPool, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`ddplug run --script SCRIPT ...`, at `augment` of flipping.py by default, with the tests' pool for any folder."""
    monkeypatch.setattr(ProxyPool, "load", classmethod(lambda *_: pool))

    def run(script: str, *ours: object, theirs: tuple[object, ...] = ()) -> None:
        at = () if "--at" in ours else ("--at", "flipping.py:augment")
        given = ["run", "--script", str(repo / script), *at, *map(str, ours), "--", *map(str, theirs)]
        app(given, standalone_mode=False)

    return run


def write(repo: Path, text: str, name: str = "train.py") -> str:
    (repo / name).write_text(textwrap.dedent(text))
    return name


def images(out: str) -> Tensor:
    held = torch.load(out)
    return held[0] if isinstance(held, tuple) else held


OWN = ("--at", "augment")
ON = ("--weight", 0.5, "--calibrate", 1, "--proxies", "pool")


@pytest.mark.parametrize("shape", SHAPES)
def test_weight_zero_is_the_script_alone(
    shape: str, repo: Path, command: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = THEIRS.get(shape, [])
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [shape, "--out", "alone.pt", *more])
        patch.setattr(sys, "path", [str(repo), *sys.path])
        runpy.run_path(str(repo / f"{shape}.py"), run_name="__main__")
    for name in ("flipping", "settings"):
        sys.modules.pop(name, None)
    files = {path.name for path in repo.iterdir()}
    command(f"{shape}.py", *SHAPES[shape][0], "--weight", 0, theirs=("--out", "off.pt", *more))
    assert torch.equal(images("alone.pt"), images("off.pt"))
    assert {path.name for path in repo.iterdir()} == files
    assert not list(Path().glob("*.json"))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_run_of_a_patch_to_the_bit(
    shape: str, repo: Path, command: Callable[..., None], pool: ProxyPool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The patch's line goes where the stand-ins have a comment for it."""
    ours, line, how = SHAPES[shape]
    more = THEIRS.get(shape, [])
    regularizer = Regularizer(pool, 0.5, weighting=Relative(1))
    script = repo / f"{shape}.py"
    text = script.read_text().replace("# 4: views", line).encode()
    execute(script, ["--out", "patched.pt", *more], {script: Source(text, {"LAYER": Layer(regularizer, **how)})})
    command(f"{shape}.py", *ours, *ON, theirs=("--out", "on.pt", *more))
    assert torch.equal(images("patched.pt"), images("on.pt"))
    wrote = json.loads(Path(f"cmi_{shape}.json").read_text())
    assert wrote["rounds"] == regularizer.rounds > 0
    assert [round_["value"] for round_ in wrote["history"]] == regularizer.history.cmi
    said = capsys.readouterr().out
    assert re.search(r"CMI acted in \d+ of \d+ steps of the images .*at flipping.py:4 \(augment\)", said)


LOOP = """
    import torch
    {top}
    torch.manual_seed(0)
    images = torch.randn(12, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    {made}
    optimizer = torch.optim.SGD([images], lr=0.1)
    for step in range(2):
        {views}
        loss = (views ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(images.detach(), "out.pt")
"""
LABELS = "labels = torch.arange(3).repeat_interleave(4)"
PLAIN = {"top": "from flipping import augment", "made": LABELS, "views": "views = augment(images)"}


def loop(repo: Path, name: str = "train.py", **parts: str) -> str:
    filled = {**PLAIN, **parts}
    text = textwrap.dedent(LOOP)
    for key, value in filled.items():
        pad = "    " if key == "views" else ""
        text = text.replace(f"{{{key}}}", textwrap.indent(textwrap.dedent(value), pad).lstrip())
    (repo / name).write_text(text)
    return name


DEFINED = """
    def augment(images):
        return images.flip(3) * 1.1
"""
CALLED = """
    class DiffAug:
        def __call__(self, images):
            return images.flip(3) * 1.1
    aug = DiffAug()
"""
HELD = """
    def wobble(images, y=None):
        return images.flip(3) * 1.1
    class Trainer:
        @staticmethod
        def wobble(images):
            return images.flip(3) * 1.1
"""


@pytest.mark.parametrize(
    ("parts", "options"),
    [
        ({}, ()),
        ({"top": "import flipping as f", "views": "views = f.augment(images)"}, ()),
        ({"top": DEFINED}, OWN),
        ({"top": CALLED, "views": "views = aug(images)"}, ("--at", "DiffAug.__call__")),
        ({}, ("--at", "train.py:9")),
        ({"top": "from flipping import augment as a", "views": "views = a(images)"}, ("--at", "train.py:9")),
        ({"top": HELD, "views": "views = wobble(images)"}, ("--at", "train:wobble")),
        ({"top": HELD, "views": "views = Trainer().wobble(images)"}, ("--at", "Trainer.wobble")),
        ({"views": "parts = []; parts.append(augment(images)); views = parts[0]"}, ()),
        ({"top": "def augment(x): return x.detach(), x.flip(3) * 1.1", "views": "_, views = augment(images)"},
         OWN),
    ],
)  # fmt: skip
def test_however_the_views_are_made(
    parts: dict[str, str], options: tuple[str, ...], repo: Path, command: Callable[..., None], pool: ProxyPool
) -> None:
    """All of these scripts do the same, so all are regularised the same."""
    if options == ("--at", "train.py:9"):
        loop(repo, **parts)
        number = next(n for n, text in enumerate((repo / "train.py").read_text().splitlines(), 1) if "views =" in text)
        options = ("--at", f"train.py:{number}")
    command(loop(repo, **parts), *options, *ON)
    assert torch.equal(images("out.pt"), expected(pool))


GUARDED = """
    try:
        {0}
    except Exception:
        views = images.flip(3) * 1.1
"""
BROKEN = """
    def augment(images):
        return (images.flip(3) * 1.1).repeat(1, 1, {0}, 1)
    def show(views):
        try:
            views.mul_(2).sum().backward()
        except Exception:
            pass
        return views.detach().requires_grad_()
"""


@pytest.mark.parametrize(
    ("parts", "options"),
    [
        ({"views": GUARDED.format("views = augment(images)")}, ("--labels", "labels[:5]")),
        ({"views": GUARDED.format("views = augment(images)")}, ("--labels", "nothing")),
        ({"top": BROKEN.format("0"), "views": GUARDED.format("views = augment(images)")}, OWN),
        ({"top": BROKEN.format("1"), "views": "views = show(augment(images))"}, OWN),
    ],
)
def test_a_host_that_catches_exceptions_hides_none_of_ours(
    parts: dict[str, str], options: tuple[str, ...], repo: Path, command: Callable[..., None]
) -> None:
    """An error of ours that the host has caught ends the command, and is quoted.

    Kind: errors raised into code that is not ours. Looked at: labels that cannot be read (the report then raised a
    `KeyError`), views that the layer refuses, errors of the backward pass, a patched host's `start` and layer (below),
    and `ddplug.attach`, whose warning that it never acted quotes the error.
    """
    with pytest.raises(HostError, match="caught an error of ddplug's"):
        command(loop(repo, **parts), *options, *ON)


def expected(pool: ProxyPool) -> Tensor:
    """What the loop comes to, written down with the layer in it."""
    torch.manual_seed(0)
    leaf = torch.randn(12, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([leaf], lr=0.1)
    layer = Regularizer(pool, 0.5, weighting=Relative(1), announce=lambda _: None)
    for _ in range(2):
        loss = (layer(leaf.flip(3) * 1.1, torch.arange(3).repeat_interleave(4)) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return leaf.detach()


@pytest.mark.parametrize(
    ("parts", "options", "said"),
    [
        ({}, (), "`labels`, one for each image"),
        ({"made": "which = torch.arange(3).repeat_interleave(4)"}, ("--labels", "which"), "`which`, one for each"),
        ({"made": "n = 4"}, ("--labels", "torch.arange(12) // n"), "`torch.arange(12) // n`, one for each image"),
        ({"top": "def augment(images, y):\n    return images.flip(3) * 1.1",
          "views": "views = augment(images, torch.arange(3).repeat_interleave(4))", "made": ""}, OWN,
         "the labels passed to the call"),
        ({"made": "class Set: pass\nsynset = Set(); synset.targets = torch.arange(3).repeat_interleave(4)"}, (),
         "`synset.targets`, one for each image"),
    ],
)  # fmt: skip
def test_labels_are_found_and_said(
    parts: dict[str, str], options: tuple[str, ...], said: str, repo: Path, command: Callable[..., None],
    pool: ProxyPool, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command(loop(repo, **parts), *options, *ON)
    assert torch.equal(images("out.pt"), expected(pool))
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("parts", "options", "said"),
    [
        ({"made": "indices = torch.arange(12)"}, (), r"no labels for the 12 synthetic .* indices \(12,\)"),
        ({"made": LABELS + "; targets = labels.flip(0)"}, (), r"may be labels, targets, which differ"),
        ({"made": "soft = torch.zeros(12, 3)", "views": "y = soft; views = augment(images)"}, (), "may be soft"),
        ({"views": "for labels in range(3): views = augment(images)"}, (), "no labels for the 12"),
        ({"views": "views = augment(torch.compile(lambda x: x[:6] * 1.0, backend='aot_eager')(images))"}, (),
         "CompiledFunctionBackward.*Name the labels: --labels"),
        ({}, ("--labels", "labls"), "no function on the way knows all of its names"),
        ({}, ("--labels", "labels["), "is no expression"),
        ({}, ("--labels", "labels / 0"), r"labels must be integers"),
        ({}, ("--labels", "labels[:3]"), r"shape \(3,\) for 12 images.*These labels are `labels"),
        ({}, ("--labels", "1 // 0"), "could not be evaluated in .*ZeroDivisionError"),
        ({}, ("--labels", "calls:0"), "expected how many classes"),
        ({}, ("--labels", "calls:5"), "1 calls on new synthetic images, which is no multiple of 5"),
        ({}, ("--at", "agument"), "train.py has no function or method 'agument'; it has none.*ddplug find"),
        ({}, ("--at", "nowhere:augment"), "no file 'nowhere.py'"),
        ({}, ("--at", "train.py:1"), "no assignment, return"),
        ({}, ("--at", "other.py:1"), "no file 'other.py'"),
        ({"views": "views = augment(images.detach()); views = images * 1"}, (),
         "0 calls of .* were on images that need a gradient"),
        ({"views": "views = images; seen = augment(images)"}, (),
         "2 calls of .* were on images that need a gradient, and no backward pass"),
        ({}, ("--steps", "0"), "expected how many calls"),
        ({}, ("--at", "optimizer", "--labels", "calls:3"), "are for places that are called"),
        ({}, ("--views", "clean"), "--views is for hosts with a patch"),
        ({}, ("--inner", "some"), "unknown inner"),
        ({}, ("--weight", "paper"), "give the weight as a number"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused(
    parts: dict[str, str], options: tuple[str, ...], said: str, repo: Path, command: Callable[..., None]
) -> None:
    with pytest.raises((HostError, InputError), match=f"(?s){said}"):
        command(loop(repo, **parts), *(("--weight", 0.5, "--calibrate", 1, "--proxies", "pool")), *options)


def test_without_proxies_or_script_it_says_so(repo: Path) -> None:
    given = Unpatched(repo / loop(repo))
    with pytest.raises(InputError, match="no proxies given"):
        run_unpatched(given, [], 1.0, "")
    with pytest.raises(HostError, match="cannot be read"):
        run_unpatched(Unpatched(repo / "none.py"), [], 1.0, "")
    with pytest.raises(HostError, match="is no Python"):
        run_unpatched(Unpatched(repo / write(repo, "def f(")), [], 0.0, "")
    with pytest.raises(InputError, match="name a host"):
        app(["run"], standalone_mode=False)
    with pytest.raises(InputError, match="--at is for --script and hosts without a patch only"):
        app(["run", "dm", "--at", "f"], standalone_mode=False)
    with pytest.raises(InputError, match="--repo is for hosts only"):
        app(["run", "--script", "train.py", "--repo", "."], standalone_mode=False)


def test_a_class_per_call(repo: Path, command: Callable[..., None], pool: ProxyPool) -> None:
    """By counting, by the labels of the views and by those of the images: the same."""
    outs = []
    for number, labels in enumerate(("calls:3", "c", "torch.arange(12) // 4")):
        command("perclass.py", "--labels", labels, *ON, theirs=("--out", f"{number}.pt"))
        outs.append(images(f"{number}.pt"))
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("select", ["which", "which[:8]", "which > 5"])
def test_labels_of_the_images_go_with_their_rows(
    select: str, repo: Path, command: Callable[..., None], pool: ProxyPool
) -> None:
    """A loop of ten steps, whose variable is no class, draws images at random."""
    text = loop(repo, made=LABELS, views=f"which = torch.randperm(12); views = augment(images[{select}])")
    command(text, *ON)
    torch.manual_seed(0)
    leaf = torch.randn(12, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(3).repeat_interleave(4)
    optimizer = torch.optim.SGD([leaf], lr=0.1)
    layer = Regularizer(pool, 0.5, weighting=Relative(1), announce=lambda _: None)
    for _ in range(2):
        rows = eval(select, {"which": torch.randperm(12)})
        loss = (layer(leaf[rows].flip(3) * 1.1, labels[rows]) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(images("out.pt"), leaf.detach())


@pytest.mark.parametrize("line", [False, True])
def test_real_images_in_the_same_batch(line: bool, repo: Path, command: Callable[..., None], pool: ProxyPool) -> None:
    real = "torch.ones(5, 3, 4, 4, dtype=torch.float64)"
    name = loop(repo, views=f"views = augment((torch.cat([images, {real}]) - 0.5) + 0.5)[:12]")
    number = next(n for n, text in enumerate((repo / name).read_text().splitlines(), 1) if "views =" in text)
    command(name, *(("--at", f"{name}:{number}") if line else ()), *ON)
    torch.testing.assert_close(images("out.pt"), expected(pool), rtol=1e-9, atol=1e-12)


NORMALIZE = "from torchvision.transforms import Normalize\nnormalize = Normalize([0.5] * 3, [0.25, 0.5, 0.5])\n"


@pytest.mark.numerical
@pytest.mark.parametrize("at", ["flipping.py:augment", "optimizer", "attached"])
@pytest.mark.parametrize(
    ("made", "given", "std"),
    [
        (NORMALIZE, (), (0.25, 0.5, 0.5)),
        (NORMALIZE, ("--input-space", "normalized:0.5,0.5,0.5/1,2,4"), (1.0, 2.0, 4.0)),
        (NORMALIZE + "other = Normalize([0.4] * 3, [0.3] * 3)\n", (), None),
        (NORMALIZE.replace("[0.5] * 3", "[0.5] * 3 + [0.5]").replace("[0.25,", "[0.25, 0.5,"), (), None),
        ("", (), None),
    ],
    ids=["one", "given", "two", "of_other_images", "nothing"],
)
def test_views_are_normalised_as_the_script_says(
    made: str, given: tuple[str, ...], std: tuple[float, ...] | None, at: str, repo: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The proxy sees the images as it was trained on them, so CMI's gradient is that through the conversion."""
    everything = gc.get_objects
    others = {id(each) for each in everything() if type(each).__name__ == "Normalize"}  # of other modules of tests
    monkeypatch.setattr(gc, "get_objects", lambda: [each for each in everything() if id(each) not in others])
    network = tiny_network(7)
    pool = ProxyPool.from_modules([network], input_space="normalized:cifar10")
    monkeypatch.setattr(ProxyPool, "load", classmethod(lambda *_: pool))
    parts = {"top": "from flipping import augment\n" + made, "views": "views = augment(images)"}
    text = textwrap.dedent(LOOP).replace("range(2)", "range(1)")
    for key, value in {**parts, "made": LABELS}.items():
        text = text.replace(f"{{{key}}}", value)
    if at == "attached":
        monkeypatch.syspath_prepend(str(repo))
        script = ModuleType("script")
        top, rest = "from flipping import augment\n", text.replace("from flipping import augment", "")
        exec(top + "def main():\n" + textwrap.indent(rest, "    "), vars(script))
        attach(
            script, 3, proxies=pool, labels=torch.arange(3).repeat_interleave(4), weighting="absolute",
            representation="logit", compute=Compute(precision="exact"), input_space=given[1] if given else None,
        )  # fmt: skip
        vars(script)["main"]()
    else:
        write(repo, text)
        options = ["--weight", "3", "--weighting", "absolute", "--representation", "logit", "--precision", "exact"]
        run = ["run", "--script", str(repo / "train.py"), "--at", at, *options, *given, "--proxies", "pool"]
        app(run, standalone_mode=False)
    mine = "views are normalised by mean (0.5, 0.5, 0.5), std (0.25, 0.5, 0.5)" in capsys.readouterr().out
    assert mine == (std == (0.25, 0.5, 0.5))
    if at == "optimizer":
        return  # of views that are drawn
    torch.manual_seed(0)
    leaf = torch.randn(12, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    views = leaf.flip(3) * 1.1
    seen = views
    if std is not None:
        known, own = (
            [torch.tensor(ends, dtype=torch.float64)[:, None, None] for ends in pair]
            for pair in (((0.5,) * 3, std), ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)))
        )
        seen = (views * known[1] + known[0] - own[0]) / own[1]
    logs = network(seen).log_softmax(1)
    around = logs.exp().reshape(3, 4, -1).mean(1).repeat_interleave(4, 0).log()
    cmi = (logs.exp() * (logs - around)).sum() / 12
    ((views**2).sum() + 3 * cmi).backward()
    assert leaf.grad is not None
    torch.testing.assert_close(images("out.pt"), leaf.detach() - 0.1 * leaf.grad, rtol=1e-9, atol=1e-12)


def test_expressions_are_evaluated_in_the_first_function_that_knows_their_names() -> None:
    inner = Scope("inner()", {"a": 1}, {"shared": 10})
    outer = Scope("outer()", {"a": 2, "b": 3}, {"shared": 20})
    assert Expression("a + shared", "--labels").value([inner, outer])[0] == 11
    assert Expression("a + b", "--labels").value([inner, outer])[0] == 5
    assert Expression("[b + i for i in (1, 2)]", "--labels").value([inner, outer])[0] == [4, 5]
    with pytest.raises(HostError, match="has a, b"):
        Expression("c", "--labels").value([inner, outer])


def test_the_hosts_variables_are_not_kept_alive(repo: Path, command: Callable[..., None]) -> None:
    """What a function of the host's deletes is gone at once, as without us."""
    text = """
        import weakref, torch
        from flipping import augment
        def main():
            images = torch.randn(12, 3, 4, 4, dtype=torch.float64, requires_grad=True)
            labels = torch.arange(3).repeat_interleave(4)
            held = torch.zeros(3)
            gone = weakref.ref(held)
            views = augment(images)
            del held
            assert gone() is None, "kept alive"
            views.sum().backward()
        main()
    """
    gc.disable()
    try:
        command(write(repo, text), *ON)
    finally:
        gc.enable()


def test_the_random_state_is_the_scripts_own(repo: Path, command: Callable[..., None]) -> None:
    draws = "; drawn = (torch.rand(1), __import__('random').random(), __import__('numpy').random.rand())"
    for name, ours in (("off", ("--weight", 0)), ("on", ON)):
        command(loop(repo, views="views = augment(images)" + draws), *ours)
        text = (repo / "train.py").read_text() + f"\ntorch.save(torch.tensor([float(x) for x in drawn]), '{name}.pt')"
        (repo / "train.py").write_text("import random, numpy\nrandom.seed(1); numpy.random.seed(1)\n" + text)
        command("train.py", *ours)
    assert torch.equal(torch.load("off.pt"), torch.load("on.pt"))


def test_traces_show_the_scripts_own_lines(
    repo: Path, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    name = loop(repo, top=DEFINED.replace("return", "assert len(images) == 11, 'odd'\n        return"))
    with pytest.raises(HostError, match="AssertionError"):
        command(name, *OWN, *ON)
    assert "train.py\", line 4, in augment\n    assert len(images) == 11, 'odd'" in capsys.readouterr().err


def test_a_module_of_a_package_is_run_as_python_m_does(repo: Path, command: Callable[..., None]) -> None:
    package = repo / "source" / "parts"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "views.py").write_text("from flipping import augment")
    loop(package, top="from .views import augment")
    with pytest.raises(HostError, match="attempted relative import"):
        command("source/parts/train.py", *ON)
    command("source/parts/train.py", "--path", repo / "source", "--path", repo, *ON)
    assert Path("out.pt").is_file()


# Hosts without a patch ------------------------------------------------------------------------------------------------


@pytest.fixture
def rowed(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`ddplug run row ...`: the stand-in of one call per class, as a host whose row has the place and the labels."""

    def register(**more: object) -> None:
        record = {
            "title": "our own loop", "url": "https://example.org/loop", "commit": "0" * 40, "licence": "MIT",
            "folder": "repo", "script": "perclass.py", "path": ["."],
            "files": {"perclass.py": blob_hash((STANDINS / "perclass.py").read_bytes())},
            "run": {"at": ["flipping.py:augment"], "labels": "torch.arange(12) // 4"}, **more,
        }  # fmt: skip
        row = type("Row", (Host,), {"name": "row", "spec": lambda _: from_record("row", record, None)})
        monkeypatch.setitem(registry._ADAPTERS, "row", row)

    register()

    def run(*ours: object, theirs: tuple[object, ...] = (), **more: object) -> None:
        if more:
            register(**more)
        app(["run", "row", "--repo", str(repo), *map(str, ours), "--", *map(str, theirs)], standalone_mode=False)

    return run


def test_a_host_without_a_patch_is_the_script_with_the_options_of_its_row(
    command: Callable[..., None], rowed: Callable[..., None], repo: Path
) -> None:
    command("perclass.py", "--labels", "torch.arange(12) // 4", *ON, theirs=("--out", "script.pt"))
    rowed(*ON, theirs=("--out", "row.pt"))
    assert torch.equal(images("row.pt"), images("script.pt"))
    files = set(Path().glob("*"))
    rowed("--weight", 0, theirs=("--out", "off.pt"))
    assert set(Path().glob("*")) - files == {Path("off.pt")}
    assert not torch.equal(images("row.pt"), images("off.pt"))


def test_options_of_the_user_come_before_those_of_the_row(
    command: Callable[..., None], rowed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    rowed(*ON, "--at", "perclass.py:24", "--labels", "c", "--history", "own.json", theirs=("--out", "line.pt"))
    assert "at perclass.py:24" in capsys.readouterr().out
    assert Path("own.json").is_file()
    row = {"at": ["flipping.py:augment"], "labels": "c", "term": "no_such_term"}
    with pytest.raises(InputError, match="no_such_term"):
        rowed(*ON, run=row)
    rowed(*ON, "--term", "cmi", run=row)
    with pytest.raises(InputError, match="--views is for hosts with a patch only"):
        rowed(*ON, "--views", "clean")


def test_another_commit_or_a_missing_package_is_an_error(
    command: Callable[..., None], rowed: Callable[..., None], repo: Path
) -> None:
    with pytest.raises(HostError, match="row needs no_such_package; install with: pip install no_such_package"):
        rowed(*ON, packages=["no_such_package"])
    with (repo / "perclass.py").open("a") as script:
        script.write("# changed\n")
    with pytest.raises(HostError, match=r"perclass.py in .* is not the file of commit 0{40}.*ddplug find"):
        rowed(*ON, packages=[])
    with pytest.raises(HostError, match="there is no folder"):
        app(["run", "row", "--repo", "nowhere", "--proxies", "pool"], standalone_mode=False)


def test_a_host_without_a_patch_is_not_patched_and_not_recognised(rowed: Callable[..., None], repo: Path) -> None:
    with pytest.raises(InputError, match="row needs no patch: run it with `ddplug run row --repo"):
        app(["patch", "row", str(repo)], standalone_mode=False)
    script = ModuleType("perclass")
    script.__file__ = str(repo / "perclass.py")
    assert not registry.make("row").recognises(script)  # type: ignore[union-attr]
