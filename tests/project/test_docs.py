"""Every code block of README and docs is run: Python as it stands, commands by the real command line, the rest read.

Pages speak of things that their readers have, a trainer, a pool, a set; here are real ones, on handwritten digits. What
would take hours is parsed by the command line that would run it, and not run.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import json
import re
import shlex
import shutil
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner

import ddplug
from ddplug.cli.app import app
from ddplug.datasets import load, random_real
from ddplug.datasets.synthetic import SyntheticSet, save_set
from ddplug.hosting.checkout import table
from ddplug.lab.dm_trainer import DistributionMatching
from ddplug.networks.zoo import convnet, seeded
from ddplug.proxies.pretrain import pretrain
from ddplug.terms import base

pytest.importorskip("sklearn")
pytestmark = [
    pytest.mark.filterwarnings("ignore:proxy .* is right on"),
    pytest.mark.filterwarnings("ignore:got labels up to"),
]

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^ *```", re.MULTILINE | re.DOTALL)
SMALLER = {
    '"cifar10:FOLDER"': '"digits"', 'load("cifar10", "data")': 'load("digits")', '("ConvNet", "VGG11")': '("ConvNet",)',
    'result.accuracies["vgg11"]': 'result.accuracies["convnet"]', "    ...\n": "", "\n...\n": "\n",
    "ddplug.attach(trainer, 1, term=": "ddplug.attach(Trainer(), 1, term=",
    "augment=DSAViews())": "augment=DSAViews(), epochs=1, runs=2, options={'width': 4})",
}  # fmt: skip
"""What stands here in the place of data that have to be fetched, of what is left out, and of hours."""
FRAGMENTS = {
    "self.optimizers()": "alternatives side by side, which tests/attaching/test_frameworks.py and the examples run",
    "class Fork(": "builds on a base that its page explains; tests/hosting/test_toy_hosts.py has one",
    "isinstance(host, PixelMatching)": "examples/own_host.py has it, and is run",
}
"""Blocks that cannot stand alone, by a piece of them, and what runs instead. They are compiled."""
RUN = (("measure", "set.pt"), ("doctor",), ("plot", "result/"))
"""How commands begin that are quick enough to be run, and whose files are there."""


OTHERS = {"pytest", "venv", "jupyter", "pre-commit", "mkdocs", "cd", "bash", "cp", "mkdir", "ls", "export"}
"""Programs of which nothing is checked."""


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found["language"], textwrap.dedent(found["text"]))
        for found in _FENCE.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMANDS = [block for block in BLOCKS if block.language == "sh"]
WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks_of(page))]


class Trainer(DistributionMatching):
    """A reader's trainer."""

    def __init__(self) -> None:
        operations = "color_crop_cutout_scale_rotate"
        super().__init__(load("digits"), ipc=3, strategy=operations, batch_real=8, options={"width": 4})

    def run(self, iterations: int = 12, *_: Any) -> None:
        super().run(iterations)


@pytest.fixture(autouse=True)
def terms_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Terms that a page registers are gone after it."""
    monkeypatch.setattr("ddplug.terms.base._TERMS", dict(base._TERMS))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pages speak of."""
    folder = tmp_path_factory.mktemp("stage")
    data = load("digits")
    pretrain(data, folder / "pool", count=2, epochs=1, options={"width": 4}, progress=False)
    images, labels = random_real(data, 10, torch.Generator().manual_seed(0))
    save_set(SyntheticSet(images, labels, data.space), folder / "set.pt")
    (folder / "result").mkdir()
    shutil.copy(ROOT / "docs/results/own-long/compare.json", folder / "result")
    (folder / "my_script.py").write_text(
        "import torch\nimages = torch.rand(30, 1, 8, 8, requires_grad=True)\n"
        "optimizer = torch.optim.SGD([images], lr=0.1)\n\n\ndef augment(images):\n    return images * 1.0\n\n\n"
        "def main():\n    for _ in range(12):\n        optimizer.zero_grad()\n"
        "        sum(augment(part).square().sum() for part in images.split(3)).backward()\n        optimizer.step()\n"
    )
    return folder


@pytest.fixture
def readers(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[dict[str, Any]]:
    """The names that a reader has, in a folder of their own, with a cache that is filled already."""
    folder = tmp_path / "reader"
    shutil.copytree(stage, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("DDPLUG_CACHE", str(folder / "cache"))
    monkeypatch.setattr("ddplug.networks.training.MOST_STEPS", 1)
    modules, environment = set(sys.modules), torch.random.get_rng_state()
    data = load("digits")
    images, labels = random_real(data, 3, torch.Generator().manual_seed(0))
    with seeded(0):
        net_a, net_b = (convnet(10, channels=1, size=(8, 8), width=4) for _ in range(2))
    colour = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    trainer = Trainer()
    names: dict[str, Any] = {
        "ddplug": ddplug, "torch": torch, "trainer": trainer, "images": images.requires_grad_(), "labels": labels,
        "augment": ddplug.augment.DSA("crop_scale_rotate", seed=0), "real": data.train_images[:60], "net_a": net_a,
        "net_b": net_b, "your_loss": lambda real, views: (real.mean(0) - views.mean(0)).square().sum(),
        "data": data, "pool": ddplug.ProxyPool.load("pool"), "teacher": net_a, "Trainer": Trainer, "views": images,
        "Params": ddplug.augment.Params, "intensities": colour, "mean": (0.5,) * 3, "std": (0.2,) * 3,
    }  # fmt: skip
    if request.param.name == "augment.md":
        names.update(real=colour, synthetic=colour[:8], images=colour[:8], views=colour[:8])
        names.update(InputSpace=ddplug.InputSpace, intensities=torch.rand(400, 3, 8, 8), mean=(0.5,) * 3)
    if request.param.name == "data.md":
        classes = torch.arange(40) % 2
        names.update(images=colour, labels=classes, train=(colour, classes), test=(colour[:8], classes[:8]))
    yield names
    torch.random.set_rng_state(environment)
    for name in set(sys.modules) - modules:
        if name == "my_script":
            del sys.modules[name]


def lacking(text: str) -> list[str]:
    """Modules that a block imports and that are not there: other people's packages and hosts."""
    named = [
        name
        for node in ast.walk(ast.parse(text))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    ]  # fmt: skip
    tops = dict.fromkeys(name.partition(".")[0] for name in named)
    return [top for top in tops if importlib.util.find_spec(top) is None]


@pytest.mark.parametrize("readers", WITH_PYTHON, indirect=True, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_runs(readers: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """The blocks of a page one after the other, as a reader would."""
    page = request.node.callspec.params["readers"]
    ran, left = 0, []
    for block in blocks_of(page):
        if block.language != "python":
            continue
        text = block.text
        for usual, smaller in SMALLER.items():
            text = text.replace(usual, smaller)
        code = compile(text, str(block), "exec")
        missing, fragment = lacking(text), [reason for piece, reason in FRAGMENTS.items() if piece in text]
        if missing or fragment:
            left.append(f"{block}: {fragment or missing}")
            continue
        try:
            exec(code, readers)
        except Exception as error:
            error.add_note(f"in {block}")
            raise
        ran += 1
    if not ran:
        pytest.skip("; ".join(left))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "\n>>> " in page.read_text(encoding="utf-8")], ids=lambda page: page.stem
)
def test_examples_in_pages(page: Path) -> None:
    before = torch.random.get_rng_state()
    try:
        text = "\n".join(block.text for block in blocks_of(page) if block.language == "pycon")
        test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
        failed, tried = doctest.DocTestRunner().run(test)[:2]
    finally:
        torch.random.set_rng_state(before)
    assert (failed, tried > 0) == (0, True)


def test_examples_in_the_package() -> None:
    for path in sorted((ROOT / "ddplug").rglob("*.py")):
        if re.search(r"^ *>>> ", path.read_text(encoding="utf-8"), re.MULTILINE):
            name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            assert doctest.testmod(importlib.import_module(name)).failed == 0, name


def lines_of(text: str) -> Iterator[list[str]]:
    """The commands of a block, in words, without what a shell does around them."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        words = shlex.split(line.replace("...", ""), comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            command, words = words[:end], words[end + 1 :]
            command = [word.strip("()") for word in command] if command[0].startswith("(") else command
            while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
                command = command[1:]
            if command and command[0].startswith("--"):  # options to add to a command that the page has shown
                command = ["ddplug", "compare", "own", *command]
            if command:
                yield [command[0].removeprefix(".venv/bin/"), *command[1:]]


def check(words: list[str]) -> None:
    """That a command is one that there is, with options that it has."""
    program, *given = words
    if program in ("python", "python3", "torchrun"):
        while given and given[0].startswith("-") and given[0] != "-m":
            given = given[2:] if given[0] == "--nproc-per-node" else given[1:]
        if given[:1] == ["-m"]:
            program, given = given[1], given[2:]
        elif given:
            here, hosts = Path(given[0].removeprefix("../")), {record["folder"] for record in table().values()}
            places = (ROOT / base / here for base in ("", "docs/results", "benchmarks"))
            assert here.parts[0] in hosts or any(place.is_file() for place in places)
            return
    if program == "ddplug":
        command: Any = typer.main.get_command(app)
        if given in ([], ["--help"], ["--version"]) or given[0] == "COMMAND":
            return
        assert given[0] in command.commands, words
        given[1:] = [{"HOST": "dm"}.get(word, word) for word in given[1:]]
        with command.make_context("ddplug", list(given)) as context:
            name, found, rest = command.resolve_command(context, list(given))
            found.make_context(name, rest, parent=context)
    elif program == "pip":
        extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
        for extra in re.findall(r"\.\[([\w,]+)\]", " ".join(given)):
            assert set(extra.split(",")) <= extras
    elif program == "git" and given[0] == "clone":
        assert given[1] in {record["url"] for record in table().values()}
    elif program == "git":
        commits = {record["commit"] for record in table().values()}
        assert all(word in commits for word in given if re.fullmatch("[0-9a-f]{40}", word))
    else:
        assert program in OTHERS, words


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_commands_are_ones_that_there_are(block: Block) -> None:
    for words in lines_of(block.text):
        try:
            check(words)
        except BaseException as error:
            error.add_note(f"in {block}: {' '.join(words)}")
            raise


def test_a_command_that_there_is_not_is_found() -> None:
    wrong = ("ddplug mesure set.pt", "ddplug measure set.pt --proxy pool", "python nowhere.py", "pip install '.[no]'")
    for line in wrong:
        with pytest.raises(Exception):  # noqa: B017, PT011, of several kinds
            check(next(lines_of(line)))


@pytest.mark.parametrize("readers", [ROOT / "README.md"], indirect=True)
def test_quick_commands_run(readers: dict[str, Any]) -> None:
    ran = 0
    for block in COMMANDS:
        for words in lines_of(block.text):
            if words[0] == "ddplug" and any(tuple(words[1 : len(begin) + 1]) == begin for begin in RUN):
                done = CliRunner().invoke(app, words[1:])
                assert done.exit_code == 0, f"{block}: {done.output} {done.exception}"
                ran += 1
    assert ran >= 4


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language not in ("python", "pycon", "sh")], ids=str
)
def test_other_blocks_are_what_they_say(block: Block) -> None:
    readers = {"toml": tomllib.loads, "yaml": yaml.safe_load, "json": json.loads}
    if block.language in readers:
        assert readers[block.language](block.text)
    elif block.language == "diff":
        assert block.text.startswith("--- ")
    else:
        assert block.language in ("", "text"), f"{block}: blocks of {block.language!r} are checked by nothing"
