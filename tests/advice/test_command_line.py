"""Every message of the command line that names an option, a command or a file is provoked, and its advice followed.

A row is a command line that provokes the message, the words of the message, the command line that it advises, and
what that gives: a file, or words that are printed.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

import ddplug
from ddplug.attaching import registry
from ddplug.cli.app import app
from ddplug.errors import DDPlugError
from ddplug.hosting.host import upstream
from ddplug.hosting.options import OPTIONS
from ddplug.lab import page
from ddplug.lab.demo import PRESETS, Preset
from ddplug.lab.deterministic import run_host
from ddplug.lab.plan import Settings
from ddplug.lab.upstream_host import Upstream
from ddplug.networks import build
from ddplug.proxies.pool import PoolInfo, ProxyPool
from ddplug.utils.digest import blob_hash
from ddplug.utils.files import write_json

# Networks of an epoch or none are enough for what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:proxy .* is right on", "ignore:The set was distilled")

HOST = """
    import argparse
    import torch

    def main():
        parser = argparse.ArgumentParser()
        for name in ("dataset=digits", "save_path=.", "data_path=data", "method=toy", "model=model"):
            parser.add_argument(f"--{name.split('=')[0]}", default=name.split("=")[1])
        for name, default in (("ipc", 2), ("Iteration", 3), ("num_exp", 1), ("num_eval", 1)):
            parser.add_argument(f"--{name}", type=int, default=default)
        args = parser.parse_args()
        mean_std = (0.5,), (0.5,)
        images = torch.randn(10 * args.ipc, 1, 8, 8, requires_grad=True)
        labels = torch.arange(10).repeat_interleave(args.ipc)
        optimizer = torch.optim.SGD([images], lr=0.1)
        for it in range(args.Iteration + 1):
            views = images * 1
            optimizer.zero_grad()
            views.square().sum().backward()
            optimizer.step()
        torch.save({"data": [[images.detach(), labels]], "accs_all_exps": {}}, f"{args.save_path}/res_toy.pt")

    if __name__ == "__main__":
        main()
"""
INSERTED = {
    2: "import ddplug.hosting as ddplug_cmi",
    9: "    ddplug_cmi.add_options(parser)",
    14: "    cmi = ddplug_cmi.start('toy', args, exp=0, space=mean_std, classes=range(10), train=(images, labels))",
    16: "        views = cmi(views, labels)",
}
"""Lines of the patch, after those of the script."""
COMMANDS = [each.name or each.callback.__name__ for each in app.registered_commands if each.callback is not None]
ADAPTER = """
    from ddplug.hosting.shapes import DMLike

    class Toy(DMLike):
        name = "toy"
        patches = __name__
        defaults = {**DMLike.defaults, "dataset": "digits", "ipc": 2, "Iteration": 3}
"""
TABLE = """
    [toy]
    title = "a toy"
    url = "https://example.org/toy"
    commit = "0000000000000000000000000000000000000000"
    licence = "MIT"
    folder = "toy"
    script = "toy.py"
    files = {{"toy.py" = "{hash}"}}
"""
SCRIPT = """
    import sys
    import torch

    def views_of(images):
        return torch.roll(images, 1, 3)

    def main(steps):
        images = torch.randn(20, 1, 8, 8, requires_grad=True)
        labels = torch.arange(10).repeat_interleave(2)
        optimizer = torch.optim.SGD([images], lr=0.1)
        for it in range(steps):
            optimizer.zero_grad()
            if "--by-class" in sys.argv:
                sum(views_of(images[2 * c : 2 * c + 2]).square().sum() for c in range(10)).backward()
            else:
                views = views_of(images)
                views.square().sum().backward()
            optimizer.step()

    if __name__ == "__main__":
        main(int(sys.argv[sys.argv.index("--steps") + 1]))
"""


def in_this_process(_: Upstream, command: list[str], log: Path) -> int:
    """A host's run of a comparison without a process of its own."""
    given, here = json.loads(command[-1]), Path.cwd()
    os.chdir(given["folder"])
    try:
        run_host(given, upstream(given["host"]).spec())
    except DDPlugError as error:
        log.write_text(str(error))
        return 2
    finally:
        os.chdir(here)
    write_json({"seconds": 1.0}, Path(given["times"]))
    return 0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a pool, a set, a host's checkout, and a script; the host's adapter is installed."""
    patch = pytest.MonkeyPatch()
    folder, site = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("site")
    (folder / "checkout").mkdir()
    host = textwrap.dedent(HOST).lstrip()
    (folder / "checkout/toy.py").write_text(host)
    (folder / "script.py").write_text(textwrap.dedent(SCRIPT))
    hunks = "".join(
        f"@@ -{after},0 +{after + number} @@\n+{line}\n" for number, (after, line) in enumerate(INSERTED.items(), 1)
    )
    package = site / "toy_adapter"
    (site / "toy-1.dist-info").mkdir()
    (site / "toy-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
    (site / "toy-1.dist-info/entry_points.txt").write_text(f"[{registry.GROUP}]\ntoy = toy_adapter:Toy\n")
    package.mkdir()
    (package / "__init__.py").write_text(textwrap.dedent(ADAPTER))
    (package / "hosts.toml").write_text(textwrap.dedent(TABLE).format(hash=blob_hash(host.encode())))
    (package / "toy.patch").write_text(f"--- a/toy.py\n+++ b/toy.py\n{hunks}")
    patch.syspath_prepend(str(site))
    patch.setenv("PYTHONPATH", str(site))
    patch.setenv("OMP_NUM_THREADS", "1")
    patch.setenv("COLUMNS", "300")
    patch.setattr(sys, "dont_write_bytecode", True)
    patch.setattr(page, "lacking", lambda: "no page")  # it would take longer than all the rest
    quick = Settings(width=8, runs=1, epochs=1, checkpoints=1, strategy="color_crop")
    patch.setitem(PRESETS, "digits", Preset(quick, held_out=1))
    patch.setattr(Upstream, "_wait_for", in_this_process)
    patch.chdir(folder)
    typed("pretrain pool --count 2 --epochs 1 --width 8 --device cpu")
    header = json.loads(Path("pool/pool.json").read_text())
    header["dataset"]["fingerprint"] = "0" * 16
    shutil.copytree("pool", "edition")
    write_json({key: value for key, value in header.items() if key != "sha256"}, Path("edition/pool.json"))
    large = build("convnet", num_classes=10, channels=3, size=(32, 32), width=8)
    ProxyPool.from_modules([large], info=PoolInfo(shape=(3, 32, 32))).save("large")
    experts = [[[*build("convnet", num_classes=10, channels=1, size=(8, 8)).parameters()] for _ in "ab"]]
    Path(EXPERTS).mkdir(parents=True)
    torch.save([[[p.detach() for p in each] for each in expert] for expert in experts], f"{EXPERTS}/replay_buffer_0.pt")
    typed(COMPARE.replace("--out out", "--out done"))
    torch.save({"images": torch.rand(20, 1, 8, 8), "labels": torch.arange(10).repeat(2)}, "bare.pt")
    typed("run toy --repo checkout --weight 0 -- --save_path .")
    yield folder
    patch.undo()


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world, in which commands are typed."""
    shutil.copytree(world, tmp_path / "here dir")
    monkeypatch.chdir(tmp_path / "here dir")
    return tmp_path / "here dir"


def typed(line: str) -> tuple[int, str]:
    """Status and output of a line typed in a shell; commands of ddplug run in this process."""
    if line.split()[0] not in COMMANDS:
        ran = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
        return ran.returncode, ran.stdout + ran.stderr
    result = CliRunner().invoke(app, shlex.split(line))
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        return 2, result.output + str(error)
    return result.exit_code, result.output


COMPARE = (
    "compare own --proxies pool --out out --ipc 2 --iterations 2 --checkpoints 1 --width 8 --runs 1 --epochs 1 "
    "--seeds 1 --weighting absolute"
)
TUNE = (
    "tune own --proxies pool --out out --weights 1 --seeds 1 --confirm 2 --ipc 2 --iterations 2 --checkpoints 1 "
    "--width 8 --runs 1 --epochs 1 --weighting absolute"
)
HOSTED = "compare toy --repo checkout --proxies pool --out out --width 8 --runs 1 --epochs 1 --seeds 1 --calibrate 1"
EVALUATE = "evaluate res_toy.pt --runs 1 --epochs 1 --width 8"
TIMES = "out/entries/weight-0-seed0/host/times.json"
RUN = "run toy --repo checkout --proxies pool --calibrate 1"
SCRIPTED = "run --script script.py --proxies pool --calibrate 1"
LINE = 1 + textwrap.dedent(SCRIPT).splitlines().index("            views = views_of(images)")
CIRCLE = f"{SCRIPTED} --at nothing -- --steps 3"
EXPERTS, OTHER = "experts/DIGITS/ConvNet", SCRIPTED.replace("script.py", "other.py")
OUT, RECORD, SCRIPTS = "out/compare.json", "cmi_toy_digits_model_2ipc_exp0.json", "cmi_script.json"
ADVISED = "the command in backquotes"

ROWS = [
    # cause, words of the message, what is typed then, what that gives; lines and words are separated by "; "
    (
        "compare own; compare own --proxies pool -- --ipc 2; compare own --device cuda; "
        "compare own --proxies pool --out .",
        "`ddplug pretrain`; leave it out; Use --device cpu; choose another --out",
        COMPARE,
        OUT,
    ),
    (
        f"{COMPARE} --checkpoints 3; {COMPARE} --weighting relative; {COMPARE} --ipc 1",
        "--checkpoints; a smaller --calibrate; --views-per-image 2",
        f"{COMPARE} --checkpoints 2 --weighting relative --calibrate 1 --ipc 1 --views-per-image 2",
        OUT,
    ),
    (f"{COMPARE} --weighting relative", "more --iterations", f"{COMPARE} --weighting relative --iterations 11", OUT),
    (f"mv done out; {COMPARE} --ipc 3", "Choose another --out", f"{COMPARE} --ipc 3 --out other", "other/compare.json"),
    (
        f"mv done out; {COMPARE} --ipc 3; {COMPARE} --weights 0,2",
        "weights and views can be added; Name their weights",
        f"{COMPARE} --weights 0,1,2",
        "weight 2",
    ),
    (
        f"mv done out; echo x > out/settings.json; {COMPARE}",
        "Choose another --out",
        f"{COMPARE} --out other",
        "other/compare.json",
    ),
    (
        f"mv done out; echo x > out/entries/weight-0-seed0/distilled.json; {COMPARE}",
        "Delete it",
        f"rm out/entries/weight-0-seed0/distilled.json; {COMPARE}",
        OUT,
    ),
    (
        f"mv done out; echo x > out/entries/weight-0-seed0/set-000002.json; {COMPARE}",
        "Delete it",
        f"rm out/entries/weight-0-seed0/set-000002.json; {COMPARE}",
        OUT,
    ),
    (
        f"{COMPARE} --ipc 3 --baseline done; {COMPARE} --baseline pool",
        "only proxies, held-out proxies and the regulariser's options differ; name another --baseline",
        f"{COMPARE} --baseline done --temperature 2",
        OUT,
    ),
    (f"{COMPARE} --first-seed 1 --baseline done", "leave --baseline out", f"{COMPARE} --first-seed 1", OUT),
    (f"{TUNE}; {TUNE} --ipc 3", "Choose another --out", f"{TUNE} --ipc 3 --out other", "other/tune.json"),
    (f"mv done out; {TUNE}", "choose another --out", f"{TUNE} --out other", "other/tune.json"),
    (
        f"{HOSTED} --ipc 2; {HOSTED} --compile; {HOSTED} -- --dataset MNIST; {HOSTED} -- --data 3; "
        f"{HOSTED} -- --num_exp 3",
        "name the option of toy instead, after --; leave it out; name the same data set in both; in full; leave it out",
        f"{HOSTED} -- --ipc 2 --dataset digits --data_path 3",
        OUT,
    ),
    (
        f"{HOSTED.replace('--repo checkout', '')}; {HOSTED} -- --ipc 1",
        "Name it with --repo PATH; --views-per-image 2",
        f"{HOSTED} --views-per-image 2 -- --ipc 1",
        OUT,
    ),
    (
        f"{HOSTED}; echo x > {TIMES}; rm out/entries/*/distilled.json; {HOSTED}",
        "Delete the folder 'out/entries/weight-0-seed0/host'",
        f"rm -r out/entries/weight-0-seed0/host; {HOSTED}",
        OUT,
    ),
    (f"{EVALUATE} --data shapes", "Name the data set", f"{EVALUATE} --data digits", "test accuracy"),
    (
        f"{EVALUATE} --json a.json; {EVALUATE} --json a.json --lr 1",
        "can be added; Use the same ones to go on",
        f"{EVALUATE} --json a.json --runs 2",
        "convnet",
    ),
    (
        f"{EVALUATE} --json a.json; {EVALUATE} --json a.json --lr 1",
        "keep these runs in another file",
        f"{EVALUATE} --json b.json --lr 1",
        "b.json",
    ),
    (
        f"{EVALUATE} --json a.json; {EVALUATE} --json a.json --lr 1",
        "or delete it",
        f"rm a.json.runs; {EVALUATE} --json a.json --lr 1",
        "a.json",
    ),
    (
        "evaluate bare.pt",
        "--input-space of the command",
        f"{EVALUATE.replace('res_toy', 'bare')} --input-space normalized",
        "test accuracy",
    ),
    ("measure --proxies pool", "give a synthetic set (its .pt file)", "measure res_toy.pt --proxies pool", "CMI of"),
    (
        "measure --proxies pool; measure --data digits --factor 2 --proxies pool",
        "(--data NAME); leave it out",
        "measure --data digits --proxies pool",
        "CMI of",
    ),
    (
        "measure res_toy.pt --proxies pool --term cmi_real; measure res_toy.pt --proxies pool --input-space zca",
        "name their data set with --data; --data of the command",
        "measure res_toy.pt --proxies pool --term cmi_real --input-space zca --data digits",
        "CMI",
    ),
    (
        "relabel res_toy.pt --teachers pool --out a.pt --input-space zca",
        "--data of the command",
        "relabel res_toy.pt --teachers pool --out a.pt --input-space zca --data digits",
        "a.pt",
    ),
    (
        "plot done done; plot nowhere",
        "LABEL=PATH; name a comparison's folder",
        "plot one=done two=done",
        "ddplug-plot.png",
    ),
    (f"{RUN}; plot nowhere", "the cmi*.json of a run", f"plot {RECORD}", "ddplug-plot.png"),
    (
        f"run; {RUN} --at here.py:there; run toy --proxies pool; {RUN} --proxies buffer:pool",
        "name a host; leave it out; --repo PATH; Use a pool: --proxies FOLDER of `ddplug run`",
        RUN,
        RECORD,
    ),
    (f"{RUN} -- --dataset CIFAR10", "--download", f"{RUN} --weight 0 --download -- --dataset CIFAR10", "res_toy.pt"),
    (
        f"{RUN} -- --dataset CIFAR10",
        "Name the folder",
        f"mkdir -p held/cifar-10-batches-py; {RUN} --weight 0 -- --dataset CIFAR10 --data_path held",
        "res_toy.pt",
    ),
    (
        "demo --data digits --proxies pool --ipc 1; demo --data digits --proxies pool --iterations 2",
        "take a larger --ipc; take more --iterations",
        "demo --data digits --proxies pool --ipc 2 --iterations 11 --seeds 1",
        "ddplug-demo/demo.png",
    ),
    (
        "patch toy checkout",
        "Now run toy.py with --cmi_weight 3",
        f"cd checkout && {sys.executable} toy.py --cmi_weight 1 --cmi_proxies ../pool --cmi_calibrate 1",
        f"checkout/{RECORD}",
    ),
    (
        "patch toy checkout; patch toy checkout --check --diff",
        "To undo; one of --check, --reverse and --diff",
        "patch toy checkout --reverse; patch toy checkout --check",
        "the patch fits",
    ),
    (f"patch toy checkout; {RUN}", "take the patch out first", ADVISED, "as upstream has it"),
    (
        f"{SCRIPTED.replace('--proxies pool', '')} -- --steps 3; {SCRIPTED} --labels calls:10 -- --steps 3; "
        f"{SCRIPTED} --at views_of --labels calls:0 -- --steps 3",
        "--proxies POOL; --at PLACE; --labels calls:10",
        f"{SCRIPTED} --at views_of --labels calls:10 -- --by-class --steps 3",
        SCRIPTS,
    ),
    (
        f"{SCRIPTED} --at views_of --labels calls:3 -- --by-class --steps 1",
        "one class for each image",
        f"{SCRIPTED} --at views_of --labels labels -- --by-class --steps 3",
        SCRIPTS,
    ),
    (
        f"{SCRIPTED} --at other.py:f -- --steps 3; {SCRIPTED} --at script.py:2 -- --steps 3",
        "--at FILE.py:LINE; Name the line in which the views get their name",
        f"{SCRIPTED} --at script.py:{LINE} -- --steps 3",
        SCRIPTS,
    ),
    (
        f"find .; find script.py; {CIRCLE}",
        "name the script in it; Its own arguments go after --; runs a few steps and prints places",
        ADVISED,
        "--at script.py:views_of",
    ),
    (f"{RUN}; plot done {RECORD}", "plot one kind at a time", f"plot {RECORD}", "ddplug-plot.png"),
    (
        "relabel res_toy.pt --teachers pool --out a.pt --input-space normalized --data digits; "
        "measure a.pt --proxies pool --input-space unit",
        "leave it out",
        "measure a.pt --proxies pool",
        "CMI of",
    ),
    (
        f"mv edition pool; {COMPARE}".replace("mv", "rm -r pool; mv"),
        "another edition of digits",
        f"pretrain own --count 1 --epochs 1 --width 8; {COMPARE} --proxies own",
        OUT,
    ),
    (
        f"{RUN} --proxies buffer:experts -- --model ConvNet; {RUN} --proxies buffer:{EXPERTS}#9; "
        f"{RUN} --proxies buffer:{EXPERTS}#x",
        f"{EXPERTS.removeprefix('experts/')}; name one of them; or -1 for the last; such as #20 or #-1",
        f"{RUN} --proxies buffer:{EXPERTS}#-1",
        RECORD,
    ),
    (f"{RUN} -- --Iteration -1", "`ddplug run --weight 0`", f"{RUN} --weight 0 -- --Iteration -1", "res_toy.pt"),
    (f"{SCRIPTED} -- --steps 0", "--weight 0", "run --script script.py --weight 0 -- --steps 0", ""),
    (
        f"{SCRIPTED} --proxies large -- --steps 3",
        "(20, 1, 8, 8). Make a pool of the script's own data",
        f"pretrain own --data digits --count 1 --epochs 1 --width 8; {SCRIPTED} --proxies own -- --steps 3",
        SCRIPTS,
    ),
    (
        f"sed s/labels/numbers/ script.py > other.py; {OTHER} -- --steps 3; {OTHER} --labels kinds -- --steps 3",
        "Name the labels: --labels EXPRESSION; main() of other.py",
        f"{OTHER} --labels numbers -- --steps 3",
        "cmi_other.json",
    ),
    (
        f"{SCRIPTED} --at views_of --steps 0 -- --steps 3",
        "expected how many calls",
        f"{SCRIPTED} --at views_of --steps 1 -- --steps 3",
        SCRIPTS,
    ),
    (
        "mkdir pk; touch pk/__init__.py pk/aug.py; echo 'from . import aug' | cat - script.py > pk/train.py; "
        "find pk/train.py",
        "name the folder that holds the package, --path FOLDER",
        f"{SCRIPTED.replace('script.py', 'pk/train.py')} --path . --at views_of -- --steps 3",
        "cmi_train.json",
    ),
    (
        f"{SCRIPTED} --at script.py:2 -- --steps 3; {SCRIPTED} --at script.py:{LINE}:views -- --steps 3",
        "--at FILE.py:LINE:FUNCTION; there are views_of",
        f"{SCRIPTED} --at script.py:{LINE}:views_of -- --steps 3",
        SCRIPTS,
    ),
]


@pytest.mark.parametrize(("cause", "says", "follow", "gives"), ROWS)
@pytest.mark.usefixtures("here")
def test_advice_works(cause: str, says: str, follow: str, gives: str) -> None:
    said = " ".join(" ".join(typed(line)[1] for line in cause.split("; ")).split())
    for words in says.split("; "):
        assert words in said
    if follow is ADVISED:
        follow = re.findall("`ddplug ([^`]*)`", said)[-1]
    *_, (status, given) = map(typed, follow.split("; "))
    assert status == 0, given
    assert gives in given or Path(gives).is_file()


@pytest.mark.usefixtures("here")
def test_sets_are_judged_by_one_augmentation() -> None:
    """`evaluate` and `compare` mirror images of the same data sets."""
    typed(f"{EVALUATE} --json a.json")
    strategy = json.loads(Path("done/compare.json").read_text())["settings"]["strategy"]
    assert repr(strategy) in json.loads(Path("a.json").read_text())["settings"]["augment"]


def test_a_notebook_is_attached_to_as_find_says(here: Path) -> None:
    (here / "a.ipynb").write_text("{}")
    said = typed("find a.ipynb")[1]
    shutil.move("pool", "POOL")
    images, labels = torch.randn(20, 1, 8, 8, requires_grad=True), torch.arange(10).repeat_interleave(2)
    names = {"optimizer": torch.optim.SGD([images], lr=0.1), "labels": labels, "images": images, "ddplug": ddplug}
    images.square().sum().backward()
    exec(said[said.index("with ddplug") : said.index("...")] + "optimizer.step(); optimizer.step()", names)


def test_a_host_that_has_ddplug_already(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(here / "checkout"))
    monkeypatch.delitem(sys.modules, "toy", raising=False)
    host = importlib.import_module("toy")
    monkeypatch.setattr(sys, "argv", ["toy.py"])
    handle = ddplug.attach(host, weight=0.1, proxies="pool")
    with pytest.raises(DDPlugError, match=r"detach\(\) that handle first"):
        ddplug.attach(host, weight=0.1, proxies="pool")
    host.main()
    handle.detach()
    again = ddplug.attach(host, weight=0.1, weighting=ddplug.Relative(1), proxies="pool")
    host.main()
    again.detach()
    assert len(again.history) == 4


def test_packages_and_pages_in_messages_exist() -> None:
    """An extra of ours has the package that it is named for, and a page is there."""
    root = Path(__file__).parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = 0
    for path in Path(ddplug.__file__).parent.rglob("*.py"):
        text = path.read_text()
        for package, extra in re.findall(
            r"needs? ([\w-]+), which is not installed: pip install 'ddplug\[(\w+)\]'", text
        ):
            assert any(line.startswith(package) for line in extras[extra]), (path, package)
            found += 1
        for page_name in re.findall(r"docs/[\w/-]+\.md", text):
            assert (root / page_name).is_file(), (path, page_name)
            found += 1
    assert found > 5


PRINTED_BY = {
    "cli/compare.py": "compare tune", "lab/folder.py": "compare tune demo",
    "lab/meaning.py": "measure relabel evaluate",
    "cli/options.py": "demo pretrain relabel measure compare tune evaluate", "lab/plan.py": "compare tune demo",
    "lab/tune.py": "tune", "lab/upstream_host.py": "compare tune", "hosting/arguments.py": "run compare tune",
    "hosting/checkout.py": "run compare tune", "hosting/expert_buffers.py": "run", "hosting/layer.py": "run compare",
    "scripts/any_script.py": "run", "scripts/finding.py": "run", "scripts/frames.py": "run",
    "scripts/placing.py": "run",
}  # fmt: skip
"""Commands that print the messages of a file. `find` prints command lines of `run`."""
OF_ONE = {"--baseline": ["compare"], "--reverse": ["patch"], "--checkpoints": ["compare", "tune"]}
"""Options in messages that only these commands print."""
HOSTS_OWN = ("hosting/shapes.py", "hosting/idc_checkpoints.py", "hosting/options.py", "lab/deterministic.py")
"""Files whose messages name options of hosts."""


def options_named(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Each option in a message of a file, the function it is in, and the commands that it names in backquotes."""
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    messages = [(node, each.name) for each in functions for node in ast.walk(each) if isinstance(node, ast.Raise)]
    messages += [(node, "") for node in ast.walk(tree) if isinstance(node, ast.Assign) and path.parent.name != "cli"]
    for message, function in messages:
        parts = [each.value for each in ast.walk(message) if isinstance(each, ast.Constant)]
        text = "…".join(part for part in parts if isinstance(part, str))
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*(?<!_)", text):
            yield option, function, re.findall(r"`ddplug (\w+)", text)


def test_every_option_in_a_message_exists() -> None:
    """On each command that prints the message, or on one that the message names."""
    commands = get_command(app).commands  # type: ignore[attr-defined]
    known = {name: {option for each in command.params for option in each.opts} for name, command in commands.items()}
    package, found = Path(ddplug.__file__).parent, 0
    for path in sorted(each for part in ("cli", "lab", "hosting", "scripts") for each in (package / part).glob("*.py")):
        name = path.relative_to(package).as_posix()
        for option, function, named in options_named(path):
            if name in HOSTS_OWN or option == "--dataset" or option.removeprefix("--cmi_") in {o.name for o in OPTIONS}:
                continue
            printers = [function] if function in known else PRINTED_BY[name].split()
            printers = OF_ONE.get(option, printers)
            on = [option in known[each] for each in printers]
            assert all(on) or any(option in known[each] for each in named), (name, option)
            found += 1
    assert found > 30, found
