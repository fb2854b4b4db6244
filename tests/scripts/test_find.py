"""`ddplug find`: scripts of many shapes are run until they step their images, and the command that is printed works."""

from __future__ import annotations

import shlex
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from ddplug import InputSpace
from ddplug.cli.app import app
from ddplug.errors import DDPlugWarning, HostError, InputError
from ddplug.proxies.pool import PoolInfo, ProxyPool
from ddplug.scripts.any_script import Unpatched
from ddplug.scripts.finding import find

AUG = """
    import torch
    def wobble(x):
        return torch.roll(x, 1, 3)
    def DiffAugment(x, seed=0):
        return wobble(x).flip(3)
"""
"""A module that the scripts import from."""

CLASS_BY_CLASS = """
    import argparse, torch
    from aug import DiffAugment
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int)
    def main():
        args = parser.parse_args()
        image_syn = torch.randn(20, 3, 8, 8, requires_grad=True)
        label_syn = torch.arange(10).repeat_interleave(2)
        optimizer = torch.optim.SGD([image_syn, ], lr=1)
        net = torch.nn.Conv2d(3, 2, 3)
        net_optimizer = torch.optim.SGD(net.parameters(), lr=1)
        for it in range(args.rounds):
            loss = 0
            for c in range(10):
                real = DiffAugment(torch.randn(5, 3, 8, 8))
                img_syn = DiffAugment(image_syn[c * 2:(c + 1) * 2])
                loss += ((real.mean(0) - img_syn.mean(0)) ** 2).sum()
            net_optimizer.step()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    if __name__ == "__main__":
        main()
"""
WITHOUT_AUGMENTATION = """
    import torch
    images = torch.nn.Parameter(torch.randn(6, 3, 8, 8))
    labels = [0, 0, 1, 1, 2, 2]
    optimizer = torch.optim.Adam([{"params": [images]}])
    for it in range(3):
        x = torch.roll(images, 1, 3)
        optimizer.zero_grad()
        x.square().sum().backward()
        optimizer.step()
"""
LEAVES = """
    import torch
    class Images:
        def __init__(self):
            self.leaves = [torch.randn(2, 3, 8, 8, requires_grad=True) for c in range(3)]
            self.targets = torch.tensor([0, 0, 1, 1, 2, 2])
        def batch(self):
            return torch.cat(self.leaves)
    def main():
        held = Images()
        optimizer = torch.optim.SGD(held.leaves, lr=1)
        for it in range(3):
            optimizer.zero_grad()
            held.batch().square().sum().backward()
            optimizer.step()
    main()
"""
EMBEDDING = """
    import torch
    table = torch.nn.Embedding(6, 192)
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    optimizer = torch.optim.SGD(table.parameters(), lr=1)
    def images(rows):
        return table(rows).reshape(-1, 3, 8, 8)
    for it in range(3):
        optimizer.zero_grad()
        images(torch.randperm(6)).square().sum().backward()
        optimizer.step()
"""
UNROLLED = """
    import torch
    import aug as A
    syn = torch.randn(6, 3, 8, 8, requires_grad=True)
    lr = torch.tensor(1e-3, requires_grad=True)
    optimizer = torch.optim.SGD([syn, lr], lr=1e-4)
    syn_labels = torch.arange(6) // 2
    for it in range(3):
        w = torch.zeros(192, requires_grad=True)
        for step in range(2):
            rows = torch.randperm(6)[:4]
            x = A.DiffAugment(syn[rows])
            w = w - lr * torch.autograd.grad((x.flatten(1) @ w - 1).square().sum(), w, create_graph=True)[0]
        optimizer.zero_grad()
        (w ** 2).sum().backward()
        optimizer.step()
"""
INSIDE_AN_EXPRESSION = """
    import torch, torch.nn.functional as F
    def enlarge(x):
        x = F.interpolate(x, scale_factor=2.0)
        return x[:, :, ::2, ::2].flip(3)
    images = torch.randn(6, 3, 8, 8, requires_grad=True)
    labels = [0, 0, 1, 1, 2, 2]
    optimizer = torch.optim.SGD([images], lr=1)
    for it in range(3):
        views = []
        views.append(F.relu(enlarge(images)) + 1)
        loss = F.mse_loss(F.relu(views[0]) * 2, torch.zeros(6, 3, 8, 8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""
"""A library's functions, called inside of a function of the script and inside of larger expressions."""
IN_A_CHAIN = """
    import torch
    from torch import nn
    torch.manual_seed(0)
    images = torch.randn(6, 3, 8, 8, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    optimizer = torch.optim.SGD([images], lr=1)
    blur = nn.AvgPool2d(3, 1, 1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    for it in range(3):
        loss = nn.functional.cross_entropy(net(torch.roll(blur(images), 1, 3)), labels)
        smooth = images[:, :, 1:] - images[:, :, :-1]
        optimizer.zero_grad()
        (loss + smooth.square().mean()).backward()
        optimizer.step()
    torch.save(images.detach(), "images.pt")
"""
"""The network's argument is made in the same line, and a loss is of other tensors like images."""
SPAWNED = """
    import torch, torch.multiprocessing as mp
    def worker(rank, classes):
        torch.manual_seed(rank)
        images = torch.randn(2 * classes, 3, 8, 8, requires_grad=True)
        targets = torch.arange(classes).repeat(2)
        optimizer = torch.optim.SGD([images], lr=1)
        for it in range(3):
            views = torch.roll(images, 1, 3)
            optimizer.zero_grad()
            views.square().sum().backward()
            optimizer.step()
        torch.save(images.detach(), "images.pt")
    if __name__ == "__main__":
        mp.set_start_method("spawn", force=True)
        mp.spawn(worker, nprocs=1, args=(3,))
"""
"""Scripts for several GPUs start a process for each, also if there is one."""
CHAIN = "torch.roll(blur(images), 1, 3)"
COPIED = "views = blur(images)\n        kept = [views.clone()]\n        kept.append(views.clone())\n        loss = nn"
SCRIPTS = {
    "class by class": (CLASS_BY_CLASS, "aug.py:DiffAugment", "label_syn", ["--rounds", "3"]),
    "without an augmentation": (WITHOUT_AUGMENTATION, "script.py:7", "labels", []),
    "in a chain": (IN_A_CHAIN, "script.py:11:torch.roll", "labels", []),
    "a module in a chain": (
        IN_A_CHAIN.replace("torch.roll(blur(images), 1, 3)", "blur(images)"),
        "script.py:11:blur",
        "labels",
        [],
    ),
    "a leaf per class": (LEAVES, "script.py:Images.batch", "held.targets", []),
    "an embedding": (EMBEDDING, "script.py:images", "y", []),
    "a library's functions": (INSIDE_AN_EXPRESSION, "script.py:enlarge", "labels", []),
    "a copy": (IN_A_CHAIN.replace("loss = nn", COPIED).replace(CHAIN, "kept[-1]"), "script.py:11", "labels", []),
    "spawned": (SPAWNED, "script.py:9", "targets", []),
    "unrolled": (UNROLLED, "aug.py:DiffAugment", "syn_labels", []),
}


def write(folder: Path, text: str, name: str = "script.py") -> Path:
    (folder / "aug.py").write_text(textwrap.dedent(AUG))
    (folder / name).write_text(textwrap.dedent(text))
    return folder / name


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are started in a folder of their own, each on one thread."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> ProxyPool:
    """A pool in the place of any folder."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    made = ProxyPool.from_modules([network], info=PoolInfo(shape=(3, 8, 8), class_names=tuple("abcdefghij")))
    monkeypatch.setattr(ProxyPool, "load", classmethod(lambda *_: made))
    return made


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.usefixtures("pool")
def test_the_first_command_works_as_printed(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text, at, labels, theirs = SCRIPTS[name]
    script = write(tmp_path, text)
    app(["find", str(script), "--", *theirs], standalone_mode=False)
    said = capfd.readouterr().out
    assert f"labels '{labels}'" in said
    commands = [shlex.split(line) for line in said.splitlines() if line.startswith("   ddplug run")]
    assert commands[0][commands[0].index("--at") + 1] == at
    assert commands[-1][commands[-1].index("--at") + 1] == "optimizer"
    for command in (commands[0], commands[-1]):
        app(command[1:], standalone_mode=False)
        assert "ddplug: CMI acted in 2 of 3" in capfd.readouterr().out


def test_a_process_alone_is_run_here_and_draws_what_it_would(tmp_path: Path) -> None:
    script = write(tmp_path, SPAWNED)
    subprocess.run([sys.executable, str(script)], check=True)
    alone = torch.load("images.pt")
    app(["run", "--script", str(script), "--weight", "0"], standalone_mode=False)
    assert torch.equal(torch.load("images.pt"), alone)


@pytest.mark.usefixtures("pool")
def test_a_call_in_a_line_is_the_line_where_its_result_has_a_name(tmp_path: Path) -> None:
    """The same images, to the bit."""
    views = "torch.roll(blur(images), 1, 3)"
    named = IN_A_CHAIN.replace(views, "views").replace("loss = nn", f"views = {views}\n        loss = nn")
    made = []
    for name, text, at in (("a", IN_A_CHAIN, "a.py:11:torch.roll"), ("b", named, "b.py:11"), ("c", IN_A_CHAIN, "")):
        script = str(write(tmp_path, text, f"{name}.py"))
        given = ["--at", at, "--proxies", "pool", "--calibrate", "1"] if at else ["--weight", "0"]
        app(["run", "--script", script, *given], standalone_mode=False)
        made.append(torch.load("images.pt"))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    with pytest.raises(HostError, match="'blurr' is not called in that line; there are .*, blur"):
        app(["run", "--script", script, "--at", "c.py:11:blurr", "--proxies", "pool"], standalone_mode=False)


def test_at_the_steps_the_gradient_is_that_of_attaching_to_the_optimizer(tmp_path: Path, pool: ProxyPool) -> None:
    """The same images as with `ddplug.attach(optimizer, labels=labels)` in the script, to the bit."""
    text = textwrap.dedent(WITHOUT_AUGMENTATION)
    text = text.replace("images = torch", "torch.manual_seed(0)\nimages = torch")
    text += "torch.save(images.detach(), OUT)\n"
    script = write(tmp_path, text.replace("OUT", "'a.pt'"))
    given = ["run", "--script", str(script), "--at", "optimizer", "--proxies", "pool", "--calibrate", "1"]
    app(given, standalone_mode=False)
    attached = "import ddplug\nddplug.attach(optimizer, labels=labels, proxies='pool', weighting=ddplug.Relative(1))\n"
    inside = text.replace("for it", f"{attached}for it", 1).replace("OUT", "'b.pt'")
    exec(compile(inside, "inside.py", "exec"), {"__name__": "inside"})
    plain = write(tmp_path, text.replace("OUT", "'c.pt'"), "plain.py")
    app(["run", "--script", str(plain), "--at", "optimizer", "--weight", "0"], standalone_mode=False)
    ours, theirs, without = (torch.load(f"{name}.pt") for name in "abc")
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, without)


def test_on_the_cpu_the_places_are_those_of_a_gpu(tmp_path: Path) -> None:
    script = write(tmp_path, WITHOUT_AUGMENTATION)
    redirected = find(Unpatched(script, redirect_cuda=True), [])
    assert [line.replace("--redirect-cuda ", "") for line in redirected] == find(Unpatched(script), [])


def test_images_in_the_unit_range_are_said_to_be(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a script that ignores all warnings."""
    unit = WITHOUT_AUGMENTATION.replace("torch.randn(6, 3, 8, 8)", "torch.rand(6, 3, 8, 8)")
    app(["find", str(write(tmp_path, unit))], standalone_mode=False)
    last = capfd.readouterr().out.splitlines()[-1]
    assert "--at optimizer --input-space unit --proxies" in last
    (tmp_path / "script.py").write_text("import warnings\nwarnings.filterwarnings('ignore')\n" + textwrap.dedent(unit))
    info = PoolInfo(shape=(3, 8, 8), class_names=tuple("abc"), space=InputSpace.normalized((0.5,) * 3, (0.2,) * 3))
    made = ProxyPool.from_modules([nn.Sequential(nn.Flatten(), nn.Linear(192, 3))], info=info)
    monkeypatch.setattr(ProxyPool, "load", classmethod(lambda *_: made))
    command = ["run", "--script", "script.py", "--proxies", "pool"]
    with pytest.warns(DDPlugWarning, match="run from 0"):
        app(command, standalone_mode=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        app([*command, "--input-space", "unit"], standalone_mode=False)


GENERATOR = """
    import torch
    generator = torch.nn.Linear(5, 192)
    optimizer = torch.optim.SGD(generator.parameters(), lr=1)
    for it in range(3):
        generator(torch.randn(6, 5)).square().sum().backward()
        optimizer.step()
"""


MADE = {
    "a decoder": """
    import torch
    from torch import nn
    codes = torch.randn(6, 5, requires_grad=True)
    decoder = nn.Sequential(nn.Linear(5, 192), nn.Unflatten(1, (3, 8, 8)))
    optimizer = torch.optim.SGD([codes, *decoder.parameters()], lr=1)
    net = nn.Conv2d(3, 7, 3)
    for it in range(3):
        net(decoder(codes)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    """,
    "a pyramid": """
    import torch
    from torch import nn
    levels = [torch.randn(6, 3, size, size, requires_grad=True) for size in (8, 1)]
    optimizer = torch.optim.SGD([{"params": level} for level in levels], lr=1)
    def decoder(levels):
        return sum(nn.functional.interpolate(level, (8, 8)) for level in levels)
    net = nn.Conv2d(3, 7, 3)
    for it in range(3):
        net(decoder(levels)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    """,
}


@pytest.mark.parametrize(("name", "at"), [("a decoder", "script.py:9:decoder"), ("a pyramid", "script.py:decoder")])
@pytest.mark.usefixtures("pool")
def test_images_that_are_made_of_what_is_stepped(
    name: str, at: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    app(["find", str(write(tmp_path, MADE[name]))], standalone_mode=False)
    said = capfd.readouterr().out
    assert "images are made of these" in said
    assert "--at optimizer" not in said
    command = next(shlex.split(line) for line in said.splitlines() if line.startswith("   ddplug run"))
    assert command[command.index("--at") + 1] == at
    given = ["torch.arange(6) // 2" if word == "EXPRESSION" else word for word in command]
    app(given[1:], standalone_mode=False)
    assert "ddplug: CMI acted in 2 of 3" in capfd.readouterr().out


def test_what_cannot_be_found_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    app(["find", str(write(tmp_path, GENERATOR))], standalone_mode=False)
    said = capfd.readouterr().out
    assert "No torch optimizer stepped a tensor that may be images" in said
    assert "SGD of 2 tensors, (192, 5), (192,)" in said
    unlabelled = write(tmp_path, WITHOUT_AUGMENTATION.replace("labels = [0, 0, 1, 1, 2, 2]", "numbers = 6"))
    app(["find", str(unlabelled)], standalone_mode=False)
    said = capfd.readouterr().out
    assert "no labels among the variables there" in said
    assert "--at optimizer --labels EXPRESSION" in said
    soft = write(tmp_path, WITHOUT_AUGMENTATION.replace("labels = [0, 0, 1, 1, 2, 2]", "labels = torch.eye(6)"))
    app(["find", str(soft)], standalone_mode=False)
    said = capfd.readouterr().out
    assert "'labels' (6, 6) may be soft" in said
    assert "Name the labels: --labels EXPRESSION" in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import sys\nsys.exit(3)\nimport jax\n", "uses JAX"),
        ("from .aug import wobble\n", "module of a package.*--path FOLDER"),
        ("raise SystemExit(2)\n", "ended with status 2 before"),
    ],
)
def test_scripts_that_end_before(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=says):
        find(Unpatched(write(tmp_path, text)), [])


def test_what_is_no_script(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; name the script"):
        app(["find", str(tmp_path)], standalone_mode=False)
    with pytest.raises(InputError, match="there is no"):
        app(["find", str(tmp_path / "nothing.py")], standalone_mode=False)
    notebook = tmp_path / "a.ipynb"
    notebook.write_text("{}")
    with pytest.raises(HostError, match="Attach in a cell"):
        find(Unpatched(notebook), [])


def test_a_script_that_never_steps_is_ended(tmp_path: Path) -> None:
    script = write(tmp_path, "import time\ntime.sleep(600)\n")
    assert "Stepped were: nothing." in find(Unpatched(script), [], seconds=1)[0]


@pytest.mark.usefixtures("pool")
def test_one_image_per_class_gets_cmi_around_real_centroids(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = textwrap.dedent(WITHOUT_AUGMENTATION).replace("[0, 0, 1, 1, 2, 2]", "[0, 1, 2, 3, 4, 5]")
    script = write(tmp_path, text)
    generator = torch.Generator().manual_seed(0)
    for label in "abcdefghij":
        for split in ("train", "val"):
            folder = tmp_path / "real" / split / label
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    app(["find", str(script)], standalone_mode=False)
    said = capfd.readouterr().out
    assert "Every class has one image" in said
    commands = [shlex.split(line) for line in said.splitlines() if line.startswith("   ddplug run")]
    for command in commands:
        app([str(tmp_path / "real") if word == "DATA" else word for word in command[1:]], standalone_mode=False)
        acted = capfd.readouterr().out
        assert "ddplug: CMI around real centroids acted in 2 of 3 steps" in acted
        assert "compares with a sample of folder" in acted
