"""Real images beside distilled ones, further architectures, arms that are stopped: what is judged and what is said."""

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
from ddplug.lab.references import Reference, centres, nearest, read_references
from ddplug.lab.statistics import hopeless, summary
from ddplug.lab.tables import further_tables, stopped, tables

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


def made(out: Path, name: str) -> Any:
    return load_set(out / f"entries/{name}/set-000000.pt")


# --- references


def test_references_of_a_command_line() -> None:
    assert read_references("random, kmeans,start,random") == [
        Reference("random"), Reference("kmeans"), Reference("start"),
    ]  # fmt: skip
    assert read_references("") == []
    assert read_references("kmeans:net 1/a")[0].name == "kmeans-net-1-a"
    for text in ("kmeans:", "herding", "random:net"):
        with pytest.raises(InputError, match=r"references are random, kmeans, start or kmeans:PROXY"):
            read_references(text)


def test_real_images_are_judged_like_any_set_and_paired_by_seed(
    tmp_path: Path, run: Any, digits: ImageData, pool: ProxyPool, untouched: None
) -> None:
    name = pool.proxies[0].name
    references = read_references(f"random,start,kmeans,kmeans:{name}")
    result = run(tmp_path, 2, references=references)
    names = [reference.name for reference in references]
    assert result["arms"] == ["weight-0", "weight-1-host", *names]
    by_name = {entry["name"]: entry for entry in result["entries"]}
    real = {tuple(image.flatten().tolist()) for image in digits.train_images}
    for arm in names:
        for seed in (0, 1):
            chosen = made(tmp_path, f"{arm}-seed{seed}")
            assert chosen.labels.tolist() == [label for label in range(10) for _ in range(2)]
            assert len({tuple(image.flatten().tolist()) for image in chosen.images} & real) == 20, "no image twice"
            (point,) = by_name[f"{arm}-seed{seed}"]["checkpoints"]
            recipe = Judge(digits, TINY, pool, None, CPU).recipe
            network = maker("convnet", digits, {"width": 8})
            seed_of = judge_seed(seed, 0)
            score = recipe.judge(chosen.images, chosen.labels, digits, network, seed=seed_of)
            assert point["accuracies"] == [score], "by the judge of the seed"
            assert point["cmi"] > 0
        assert not torch.equal(made(tmp_path, f"{arm}-seed0").images, made(tmp_path, f"{arm}-seed1").images)
    start = Own(digits, TINY, pool, CPU).trainer(1).images
    assert torch.equal(made(tmp_path, "start-seed1").images, start)
    assert not torch.equal(made(tmp_path, "random-seed1").images, start)
    assert not torch.equal(made(tmp_path, "kmeans-seed0").images, made(tmp_path, f"kmeans-{name}-seed0").images)
    rows = {row["arm"]: row for row in result["summary"]}
    assert rows["random"]["weight"] is None
    gain = rows["weight-1-host"]["accuracy"] - rows["random"]["accuracy"]
    assert rows["weight-1-host"]["over_random"]["difference"] == pytest.approx(gain)
    assert "over_random" not in rows["random"]
    again = run(tmp_path, 2, references=references)
    assert {**again, "times": None} == {**result, "times": None}
    assert run(tmp_path, 2)["left_out"] == sorted(f"{arm}-seed{seed}" for arm in names for seed in (0, 1))


def test_the_nearest_to_the_centres() -> None:
    points = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.2], [5.1]])
    assert sorted(nearest(points, centres(points, 2, 0)).tolist()) == [1, 5]
    assert nearest(points, torch.tensor([[0.12], [0.11], [9.0]])).tolist() == [1, 2, 4], "each row once"


def test_references_are_in_tables_page_and_plot(tmp_path: Path, run: Any, digits: ImageData, pool: ProxyPool) -> None:
    pytest.importorskip("matplotlib")
    result = run(tmp_path / "out", references=read_references("random"), cross_arch=("AlexNet",))
    results, costs, cross, over = tables(result)
    assert list(results.columns[0].cells) == ["0", "1", "random"]
    assert [*costs.columns[2].cells][::2] == ["", "-"], "neither the baseline nor a reference has a share"
    assert [column.header for column in cross.columns] == ["weight", "alexnet: accuracy %", "difference"]
    assert [column.header for column in over.columns] == ["weight", "improvement over random (IOR)"]
    judge = Judge(digits, TINY, pool, None, CPU)
    page = write_page(result, tmp_path / "out", tmp_path / "out/entries", judge).read_text()
    assert "<td>random" in page
    assert "alexnet: accuracy" in page
    assert "improvement over random (IOR)" in page
    plot({"it": tmp_path / "out"}, tmp_path / "p.png")


def test_references_that_cannot_be_made_are_refused_first(tmp_path: Path, run: Any) -> None:
    with pytest.raises(InputError, match="no proxy called 'nobody' in the pool"):
        run(tmp_path / "out", references=read_references("kmeans:nobody"))
    with pytest.raises(InputError, match="what dm starts from is not known"):
        run(tmp_path / "out", references=read_references("start"), host="dm")
    assert not (tmp_path / "out").exists()


# --- further architectures


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


# --- arms that are stopped


def entry(arm: str, seed: int, score: float) -> dict[str, Any]:
    point = {"iteration": 5, "accuracies": [score], "cmi": 1.0, "cmi_heldout": None, "lambda": None, "share": None}
    weight = None if arm == "random" else float(arm.split("-")[1])
    return {"arm": arm, "seed": seed, "weight": weight, "views": "host" if weight else None, "checkpoints": [point]}


def entries(**scores: list[float]) -> list[dict[str, Any]]:
    named = {"base": "weight-0", "good": "weight-1-host", "bad": "weight-9-host", "random": "random"}
    return [entry(named[arm], seed, score) for arm, of in scores.items() for seed, score in enumerate(of)]


def test_the_rule_by_hand() -> None:
    """Differences to the best of -0.100 and -0.102: mean -0.101, half-width 12.706 * 0.001414 / sqrt(2) = 0.0127."""
    names = ["weight-0", "weight-1-host", "weight-9-host"]
    clear = entries(base=[0.5, 0.508], good=[0.6, 0.61], bad=[0.5, 0.508], random=[0.1, 0.1])
    said = hopeless(clear, names)
    assert list(said) == ["weight-9-host"], "the baseline never is, whatever it scores; references are not asked about"
    assert said["weight-9-host"] == "after 2 seeds -10.10 ± 1.27 points against weight-1-host, the best"
    assert hopeless(entries(base=[0.5, 0.51], good=[0.6, 0.61], bad=[0.5, 0.6]), names) == {}, "too uncertain"
    assert hopeless(entries(base=[0.5], good=[0.6], bad=[0.1]), names) == {}, "one seed has no interval"
    assert hopeless(entries(base=[0.5, 0.5], good=[0.6, 0.6], bad=[0.5, 0.5]), names) == {}, (
        "nor have equal differences"
    )
    assert list(hopeless(entries(base=[0.9, 0.9], good=[0.6, 0.61], bad=[0.8, 0.9]), names)) == ["weight-1-host"]


def test_fewer_seeds_are_paired_with_the_baselines_of_those_seeds() -> None:
    _, arm = summary(entries(base=[0.5, 0.6, 0.9], good=[0.51, 0.62]))
    assert arm["seeds"] == 2
    assert arm["difference"] == pytest.approx(0.015)
    _, arm, _ = summary(entries(base=[0.5, 0.6], good=[0.51, 0.62], random=[0.3, 0.4]))
    assert arm["over_random"]["difference"] == pytest.approx(0.215)
    assert further_tables([arm])[0][1] == [["1", f"+21.50 ± {100 * arm['over_random']['interval']:.2f}"]]


def test_a_hopeless_arm_gets_no_further_seeds_also_when_resumed(
    tmp_path: Path, digits: ImageData, pool: ProxyPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    distilled: list[str] = []

    class Noted(Own):
        def __call__(self, run: Any, *more: Any) -> None:
            distilled.append(run.name)
            super().__call__(run, *more)

    def scored(judge: Judge, images: Any, labels: Any, data: Any, arch: Any, seed: int) -> float:
        bad = not torch.allclose(images.mean(), good[seed // 1000 - 1], atol=5e-3)
        return 0.3 + seed / 1e6 if bad else 0.6

    one = replace(TINY, checkpoints=1, iterations=2, regularizer={"weighting": "absolute"})
    good = [Own(digits, one, pool, CPU).trainer(seed).images.detach().mean() for seed in range(4)]
    monkeypatch.setattr(Judge, "_train", scored)

    def call(out: Path, seeds: int, **more: Any) -> dict[str, Any]:
        judge = Judge(digits, one, pool, None, CPU)
        return compare(Noted(digits, one, pool, CPU), arms([1.0, 1e6]), seeds, out, judge, **more)

    result = call(tmp_path / "a", 4, stop_hopeless=True)
    assert [name for name in distilled if "1000000" in name] == [f"weight-1000000-host-seed{n}" for n in (0, 1)]
    assert list(result["stopped"]) == ["weight-1000000-host"]
    assert result["stopped"]["weight-1000000-host"].startswith("after 2 seeds -")
    assert [row["seeds"] for row in result["summary"]] == [4, 4, 2]
    said = stopped(result)
    assert said is not None
    assert said.startswith("weight-1000000-host was stopped: after 2 seeds")
    in_steps = [call(tmp_path / "b", seeds, stop_hopeless=True) for seeds in (1, 2, 3, 4)][-1]
    assert {**in_steps, "times": None} == {**result, "times": None}
    everything = call(tmp_path / "b", 3)
    assert "stopped" not in everything
    assert [row["seeds"] for row in everything["summary"]] == [3, 3, 3]
    assert call(tmp_path / "b", 4, stop_hopeless=True)["left_out"] == ["weight-1000000-host-seed2"]
