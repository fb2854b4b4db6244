"""Every benchmark runs, prints its table and writes its figures; how large those are is not a test's affair."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ddplug import ProxyPool, datasets
from ddplug.core.options import Compute
from ddplug.core.step import PieceByPiece
from ddplug.lab.compare import compare
from ddplug.lab.judge import Judge
from ddplug.lab.own_trainer import Own
from ddplug.lab.plan import Settings, arms
from ddplug.networks.zoo import build, seeded
from ddplug.terms.base import group
from ddplug.terms.cmi import CMI

# A benchmark may be of untrained networks; that their gradient turns in bf16 is among its figures.
pytestmark = pytest.mark.filterwarnings("ignore:under proxy .* in bf16")

HERE = Path(__file__).parents[2] / "benchmarks"
FEW = ["--repeats", "1", "--device", "cpu"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module(request.param)


@pytest.mark.parametrize(
    ("script", "options", "figures"),
    [
        ("step", ["--images", "20"], {"seconds", "ratios"}),
        ("step", ["--images", "20", "--classes", "2"], {"seconds", "ratios", "classes"}),
        ("estimator", ["--images", "1000", "--features", "16"], {"seconds", "ratios"}),
        ("precision", [], {"rows"}),
        ("memory", ["--images", "40", "--recipe-images", "20"], {"bytes", "ratios"}),
        ("classes", ["--images", "10", "20", "--whole", "40", "--pixels", "32"], {"rows", "whole", "term"}),
        ("dm", ["--ipc", "2", "--batch-real", "2", "--architecture", "convnet"], {"seconds", "ratios"}),
    ],
    indirect=["script"],
)
def test_a_benchmark_runs(
    script: ModuleType, options: list[str], figures: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if script.__name__ in ("memory", "classes") and not Path("/proc/self/clear_refs").exists():
        pytest.skip("resident memory is read from /proc")
    script.main([*FEW, *options, "--out", str(tmp_path / "figures.json")])
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["machine"]["torch"] == torch.__version__
    assert set(written) >= figures
    assert len(capsys.readouterr().out.splitlines()) >= 3


@pytest.mark.parametrize("script", ["recipe"], indirect=True)
def test_the_recipe_is_the_same_regulariser(script: ModuleType, tmp_path: Path) -> None:
    """What is compared in time must be the same thing."""
    measuring = importlib.import_module("measuring")
    pool = measuring.random_pool(1)
    images, labels = measuring.random_images(20, torch.device("cpu"))
    script.Recipe.save([pool.proxies[0].network], tmp_path)
    expected = script.Recipe(tmp_path, torch.device("cpu")).step(images)
    step = PieceByPiece("feature", CMI(), lambda views: views, Compute(precision="exact"))
    got = step(pool.proxies[0], images, group(labels, 20, "cpu"))[1]
    assert ((got - expected).norm() / expected.norm()).item() < 1e-3


def test_epochs_until_a_network_knows_as_much(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a comparison of its own, where both arms are judged by what the comparison's own judge trains."""
    digits, device = datasets.load("digits"), torch.device("cpu")
    with seeded(0):
        networks = [build("convnet", channels=1, size=(8, 8), width=8) for _ in range(2)]
    pool = ProxyPool.from_modules(networks)
    settings = Settings(ipc=2, iterations=12, batch_real=2, checkpoints=1, width=8, runs=1, epochs=4)
    judge = Judge(digits, settings, pool, None, device)
    compare(Own(digits, settings, pool, device), arms([1.0]), 1, tmp_path / "result", judge)
    monkeypatch.syspath_prepend(str(HERE))
    given = [str(tmp_path / "result"), "weight-1-host", "--every", "2", *FEW, "--out", str(tmp_path / "figures.json")]
    importlib.import_module("epochs").main(given)
    (row,) = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [[epochs for epochs, *_ in points] for points in row["curves"].values()] == [[2, 4], [2, 4]]
    assert row["aim"] == row["curves"]["weight-0"][-1][2]
    expected = next((epochs for epochs, _, score in row["curves"]["weight-1-host"] if score >= row["aim"]), None)
    assert row["reached"] == expected
    assert len(capsys.readouterr().out.splitlines()) >= 3
