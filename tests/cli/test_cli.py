"""The command line: what each command prints and leaves behind, and how it ends when something is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import ddplug
from ddplug import InputSpace, ProxyPool, datasets
from ddplug.cli import app as cli
from ddplug.datasets.images import ImageData, random_real
from ddplug.datasets.synthetic import SyntheticSet, load_set, save_set
from ddplug.lab.measure import measure
from ddplug.utils.files import write_json

# Networks of an epoch or none are enough for what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:proxy .* is right on")

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

DEMO = ("demo", "--data", "digits", "--iterations", "2", "--seeds", "1", "--ipc", "2", "--device", "cpu")


def run(*arguments: object) -> str:
    """What a command printed; it must end well."""
    result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(
        cli.app, [str(argument) for argument in arguments]
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str]]:
    """`main` as the installed script calls it: exit status and stderr."""

    def call(*arguments: object) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["ddplug", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, " ".join(capsys.readouterr().err.split())

    return call


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return datasets.load("digits")


@pytest.fixture(scope="module")
def pool_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "pool"
    run("pretrain", folder, "--count", 2, "--epochs", 1, "--width", 8, "--seed", 5, "--device", "cpu")
    return folder


@pytest.fixture(scope="module")
def set_file(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real digits of each class, in a file that says so."""
    path = tmp_path_factory.mktemp("cli") / "set.pt"
    images, labels = random_real(digits, 2, torch.Generator().manual_seed(0))
    save_set(SyntheticSet(images, labels, digits.space, "digits"), path)
    return path


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


# --- help


def test_help_lists_the_commands() -> None:
    shown = run("--help")
    for command in ("demo", "pretrain", "measure"):
        assert re.search(rf"^\W*{command} .*\w+", shown, re.MULTILINE)
        assert "--data" in run(command, "--help")


def test_without_arguments_the_help_is_shown() -> None:
    result = CliRunner().invoke(cli.app, [])
    assert "pretrain" in result.output


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_versions_in_one_line(option: str, main: Callable[..., tuple[Any, str]], capsys: Any) -> None:
    assert run(option) == f"ddplug {ddplug.__version__}, torch {torch.__version__}\n"
    assert main(option)[0] == 0


# --- pretrain


def test_pretrain_makes_a_pool_and_shows_it(tmp_path: Path) -> None:
    command = ("pretrain", tmp_path / "pool", "--count", 2, "--epochs", 1, "--width", 8, "--seed", 5, "--device", "cpu")
    shown = run(*command)
    pool = ProxyPool.load(tmp_path / "pool", dataset="digits")
    assert [proxy.record["seed"] for proxy in pool] == [5, 6]
    for proxy in pool:
        assert f"{proxy.record['test_accuracy']:.2%}" in shown
    assert run(*command).splitlines()[-6:] == shown.splitlines()[-6:]  # again: the same table, without training


# --- measure


def measured(*arguments: object) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        run("measure", *arguments, "--device", "cpu", "--json", f"{folder}/made.json")
        record: dict[str, Any] = json.loads(Path(folder, "made.json").read_text())
    del record["sha256"]
    record["per_class"] = {int(label): value for label, value in record["per_class"].items()}
    return record


def test_measuring_a_set_shows_its_numbers(pool_folder: Path, set_file: Path) -> None:
    synthetic = load_set(set_file)
    expected = measure(pool_folder, synthetic.images, synthetic.labels, input_space=synthetic.space)
    shown = run("measure", set_file, "--proxies", pool_folder, "--device", "cpu")
    for value in (expected.cmi, expected.cmi_std, expected.ncmi, expected.separation, *expected.per_class.values()):
        assert f"{value:.6f}" in shown


def test_measuring_as_json(pool_folder: Path, set_file: Path) -> None:
    synthetic = load_set(set_file)
    for space, temperature, kind in (("feature", 1.0, "cross_entropy"), ("logit", 2.0, "kl")):
        expected = measure(
            pool_folder, synthetic.images, synthetic.labels, input_space=synthetic.space,
            representation=space, temperature=temperature, separation=kind,  # type: ignore[arg-type]
        )  # fmt: skip
        options = ("--representation", space, "--temperature", temperature, "--separation", kind)
        assert measured(set_file, "--proxies", pool_folder, *options) == expected.to_json()


@pytest.mark.parametrize("split", ["train", "test"])
def test_measuring_real_data(pool_folder: Path, digits: ImageData, split: str) -> None:
    images, labels = getattr(digits, f"{split}_images"), getattr(digits, f"{split}_labels")
    found = measured("--data", "digits", "--split", split, "--proxies", pool_folder)
    assert found == measure(pool_folder, images, labels, input_space=digits.space).to_json()


def test_images_that_hold_others_are_measured_apart(pool_folder: Path, set_file: Path) -> None:
    apart = load_set(set_file, factor=2)
    expected = measure(pool_folder, apart.images, apart.labels, input_space=apart.space).to_json()
    assert measured(set_file, "--factor", 2, "--proxies", pool_folder) == expected
    assert expected["images"] == 4 * measured(set_file, "--proxies", pool_folder)["images"]


def test_measuring_plain_intensities(pool_folder: Path, set_file: Path, tmp_path: Path) -> None:
    synthetic = load_set(set_file)
    assert synthetic.space is not None
    plain = synthetic.space.to_unit(synthetic.images)
    save_set(SyntheticSet(plain, synthetic.labels), tmp_path / "plain.pt")
    expected = measure(pool_folder, plain, synthetic.labels, input_space=InputSpace.unit(1)).to_json()
    assert measured(tmp_path / "plain.pt", "--input-space", "unit", "--proxies", pool_folder) == expected
    original = measured(set_file, "--proxies", pool_folder)
    assert expected["cmi"] == pytest.approx(original["cmi"], rel=1e-4)


# --- errors


@pytest.fixture
def cifar_pool(pool_folder: Path, tmp_path: Path) -> Path:
    """The digits' pool with the name of another data set in its header."""
    shutil.copytree(pool_folder, tmp_path / "cifar")
    header = tmp_path / "cifar" / "pool.json"
    record = json.loads(header.read_text())
    record["dataset"]["name"] = "cifar10"
    write_json(record, header)
    return tmp_path / "cifar"


def test_a_pool_of_another_data_set_is_refused(
    main: Callable[..., tuple[Any, str]], cifar_pool: Path, set_file: Path, tmp_path: Path
) -> None:
    status, error = main("measure", "--data", "digits", "--proxies", cifar_pool)
    assert status == 2
    assert "trained on cifar10, not on digits" in error
    status, error = main("measure", set_file, "--proxies", cifar_pool)
    assert status == 2
    assert "distilled from digits" in error
    assert "trained on cifar10" in error
    status, error = main(*DEMO, "--proxies", cifar_pool, "--out", tmp_path / "out")
    assert status == 2
    assert "trained on cifar10, not on digits" in error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("measure --proxies POOL", "nothing to measure"),
        ("measure --data digits --factor 2 --proxies POOL", "--factor 2 is for a synthetic set"),
        ("measure SET --factor 0 --proxies POOL", "at least 1, and divides its height and width; got 0"),
        ("measure nowhere.pt --proxies POOL", "no synthetic set at 'nowhere.pt'"),
        ("measure SET --proxies nowhere", "no pool at 'nowhere'"),
        ("measure --data digits --split all --proxies POOL", "unknown split 'all'"),
        ("measure SET --representation pixels --proxies POOL", "unknown representation 'pixels'"),
        ("measure SET --separation none --proxies POOL", "unknown separation 'none'"),
        ("measure SET --temperature 0 --proxies POOL", "temperature must be > 0"),
        ("measure SET --device gpu --proxies POOL", "unknown device 'gpu'"),
        ("measure --data imagenet --proxies POOL", "unknown data set 'imagenet'"),
        ("pretrain out --data cifar10", "no cifar10 could be read"),
        ("pretrain out --arch vgg", "unknown architecture 'vgg'"),
        ("pretrain out --count 0", "at least 1 network"),
        ("pretrain POOL --epochs 9", "other settings"),
        ("demo --seeds 0 --out out", "seeds must be at least 1"),
        ("demo --weight 0 --out out", "weight must be more than 0: what the demo compares"),
        ("demo --proxies nowhere --out out", "no pool at 'nowhere'"),
        ("demo --out SET --device cpu", "set.pt"),
        ("pretrain SET/pool --device cpu", "set.pt"),
    ],
)
def test_errors_end_with_status_2_and_one_paragraph(
    main: Callable[..., tuple[Any, str]],
    pool_folder: Path,
    set_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = arguments.replace("POOL", str(pool_folder)).replace("SET", str(set_file)).split()
    status, error = main(*words)
    assert status == 2
    assert re.match(r"ddplug: error: .+", error)
    assert expected in error


@pytest.mark.parametrize("arguments", ["measure", "nonsense", "pretrain", "demo --ipc many"])
def test_wrong_usage_has_status_2_too(main: Callable[..., tuple[Any, str]], arguments: str) -> None:
    status, error = main(*arguments.split())
    assert status == 2
    assert "Usage:" in error


def test_an_interruption_has_status_130_and_says_that_it_can_be_resumed(
    main: Callable[..., tuple[Any, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(datasets, "load", interrupt)
    status, error = main("pretrain", tmp_path / "pool")
    assert status == 130
    assert "the same command goes on" in error


def test_a_failing_process_shows_no_traceback() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", "from ddplug.cli.app import main; main()", "measure", "--proxies", "nowhere"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert ran.stderr.startswith("ddplug: error: nothing to measure")
    assert "Traceback" not in ran.stderr
    assert ran.stdout == ""


def test_the_hosts_named_in_help_are_those_that_are_known() -> None:
    from importlib.resources import files

    from ddplug.cli.options import HOSTS, PATCHED
    from ddplug.hosting.checkout import table

    shipped = {file.name.removesuffix(".patch") for file in files("ddplug.patches").iterdir() if ".patch" in file.name}
    assert set(PATCHED.split(", ")) == shipped
    assert HOSTS.split(", ") == list(table())


def test_help_versions_and_completion_import_no_torch() -> None:
    commands = [command.name or command.callback.__name__ for command in cli.app.registered_commands]
    asked = [["--help"], ["--version"], *([command, "--help"] for command in commands)]
    program = (
        "import sys\nfrom ddplug.cli import app\nfor words in " + repr(asked) + ":\n"
        "    sys.argv = ['ddplug', *words]\n    try:\n        app.main()\n    except SystemExit as ended:\n"
        "        assert not ended.code, words\n    assert 'torch' not in sys.modules, words\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert f"torch {torch.__version__}" in ended.stdout


def test_a_shell_completes_options_without_torch() -> None:
    program = (
        "import sys\nfrom ddplug.cli import app\nsys.argv = ['ddplug']\n"
        "try:\n    app.main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    words = {"_DDPLUG_COMPLETE": "complete_bash", "COMP_WORDS": "ddplug compare --see", "COMP_CWORD": "2"}
    ended = subprocess.run([sys.executable, "-c", program], env={**os.environ, **words}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["--seeds"]
