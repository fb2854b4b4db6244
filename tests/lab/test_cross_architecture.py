"""Further architectures that judge the last sets of a comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ddplug import ProxyPool
from ddplug.datasets.images import ImageData
from ddplug.datasets.synthetic import load_set
from ddplug.errors import InputError, ProxyError
from ddplug.lab.compare import compare
from ddplug.lab.judge import Judge, judge_seed
from ddplug.lab.judging import DSAPerNetwork, Recipe, maker
from ddplug.lab.own_trainer import Own
from ddplug.lab.page import write_page
from ddplug.lab.plan import Settings, arms
from ddplug.lab.plot import plot
from ddplug.lab.tables import tables

# Networks of an epoch or none are enough for what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:proxy .* is right on")

pytest.importorskip("sklearn")

TINY = Settings(
    ipc=2, iterations=4, batch_real=4, strategy="color_crop", width=8, checkpoints=2, runs=1, epochs=2,
    regularizer={"calibrate": 1},
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pool(trained: Callable[..., Path]) -> ProxyPool:
    return ProxyPool.load(trained(1))


@pytest.fixture
def run(digits: ImageData, pool: ProxyPool) -> Any:
    """`compare` with the tiny settings."""

    def call(out: Path, seeds: int = 1, cross_arch: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
        judge = Judge(digits, TINY, pool, None, CPU, cross_arch)
        return compare(Own(digits, TINY, pool, CPU), arms([1.0]), seeds, out, judge, **more)

    return call


def test_further_architectures_judge_the_last_set(tmp_path: Path, run: Any, digits: ImageData) -> None:
    run(tmp_path)
    result = run(tmp_path, cross_arch=("AlexNet",))
    for entry in result["entries"]:
        first, last = entry["checkpoints"]
        assert "accuracies_by_arch" not in first
        assert list(last["accuracies_by_arch"]) == ["alexnet"]
        synthetic = load_set(tmp_path / f"entries/{entry['name']}/set-000004.pt")
        score = Recipe(2, TINY.judge_lr, augment=DSAPerNetwork(TINY.strategy)).judge(
            synthetic.images, synthetic.labels, digits, maker("alexnet", digits, {}), seed=judge_seed(0, 0)
        )
        assert last["accuracies_by_arch"]["alexnet"] == [score]
    baseline, arm = result["summary"]
    without, with_ = (each["checkpoints"][-1]["accuracies_by_arch"]["alexnet"][0] for each in result["entries"])
    assert baseline["by_arch"]["alexnet"]["accuracy"] == without
    assert arm["by_arch"]["alexnet"]["difference"] == pytest.approx(with_ - without)
    assert "by_arch" not in run(tmp_path)["summary"][1], "what is not asked for is not in the report"
    kept = json.loads((tmp_path / "entries/weight-0-seed0/set-000004.json").read_text())
    assert list(kept["accuracies_by_arch"]) == ["alexnet"], "and is kept"


def test_architectures_that_cannot_judge_are_refused_first(tmp_path: Path, run: Any) -> None:
    for given in (("ConvNet",), ("AlexNet", "alexnet")):
        with pytest.raises(InputError, match="names further architectures, each once"):
            run(tmp_path / "out", cross_arch=given)
    with pytest.raises(ProxyError, match="unknown architecture"):
        run(tmp_path / "out", cross_arch=("nothing",))
    assert not (tmp_path / "out").exists()


def test_an_architecture_is_the_same_however_it_is_spelt(digits: ImageData, pool: ProxyPool) -> None:
    for arch, further in (("ConvNet", "convnet"), ("convnet", "ConvNet")):
        with pytest.raises(InputError, match="names further architectures, each once"):
            Judge(digits, replace(TINY, arch=arch), pool, None, CPU, (further,)).check()


def test_architectures_are_shown(tmp_path: Path, run: Any, digits: ImageData, pool: ProxyPool) -> None:
    pytest.importorskip("matplotlib")
    result = run(tmp_path / "out", cross_arch=("AlexNet",))
    results, costs, cross = tables(result)
    assert list(results.columns[0].cells) == ["0", "1"]
    assert next(costs.columns[2].cells) == "", "the baseline has no share"
    assert [column.header for column in cross.columns] == ["weight", "alexnet: accuracy %", "difference"]
    judge = Judge(digits, TINY, pool, None, CPU)
    page = write_page(result, tmp_path / "out", tmp_path / "out/entries", judge).read_text()
    assert "alexnet: accuracy" in page
    plot({"it": tmp_path / "out"}, tmp_path / "p.png")
