"""A baseline taken over from another comparison, and seeds that do not start at 0."""

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
from ddplug.errors import DataError, InputError
from ddplug.lab.compare import compare
from ddplug.lab.dm_trainer import DistributionMatching
from ddplug.lab.judge import Judge
from ddplug.lab.own_trainer import Own
from ddplug.lab.plan import Settings, arms
from ddplug.utils.files import write_json

# Networks of an epoch or none are enough for what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:proxy .* is right on")

FEATURES = Settings(
    ipc=2, iterations=4, batch_real=4, strategy="color_crop", width=8, checkpoints=2, runs=2, epochs=2,
    regularizer={"calibrate": 2},
)  # fmt: skip
LOGITS = replace(FEATURES, regularizer={"calibrate": 2, "representation": "logit", "temperature": 2.0})


@pytest.fixture(scope="module")
def pools(trained: Callable[..., Path]) -> list[Path]:
    """Folders of two pools of one network."""
    return [trained(1), trained(1, 1)]


@pytest.fixture
def run(digits: ImageData, pools: list[Path]) -> Any:
    """`compare` under the first pool, or the one asked for."""

    def call(out: Path, settings: Settings = FEATURES, pool: int = 0, **more: Any) -> dict[str, Any]:
        proxies, device = ProxyPool.load(pools[pool]), torch.device("cpu")
        judge = Judge(digits, settings, proxies, None, device)
        distil, more = Own(digits, settings, proxies, device), {"seeds": 2, **more}
        return compare(distil, arms([1.0]), out=out, judge=judge, **more)

    return call


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was distilled (its seed) and judged (its network's)."""
    notes: list[tuple[str, int]] = []
    attached, train = Own._attached, Judge._train

    def note_entry(own: Own, trainer: DistributionMatching, entry: Any) -> Any:
        notes.append((entry.arm.name, entry.seed))
        return attached(own, trainer, entry)

    def note_network(judge: Judge, *arguments: Any) -> float:
        notes.append(("judge", arguments[-1]))
        return train(judge, *arguments)

    monkeypatch.setattr(Own, "_attached", note_entry)
    monkeypatch.setattr(Judge, "_train", note_network)
    return notes


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    entries = [{**entry, "taken_from": None} for entry in result["entries"]]
    return {**result, "entries": entries, "times": None}


@pytest.mark.parametrize(("settings", "pool"), [(LOGITS, 0), (FEATURES, 1)], ids=["another space", "another pool"])
def test_a_baseline_taken_over_is_the_one_that_would_have_been_made(
    settings: Settings, pool: int, tmp_path: Path, run: Any, made: list[tuple[str, int]]
) -> None:
    old = run(tmp_path / "old")
    anew = run(tmp_path / "anew", settings, pool)
    made.clear()
    taken = run(tmp_path / "taken", settings, pool, baseline=tmp_path / "old")
    assert [note for note in made if note[0] == "weight-0"] == []
    assert len([note for note in made if note[0] == "judge"]) == 2 * 2 * 2, "judges of weight 1 alone"
    assert without_times(taken) == without_times(anew)
    assert [entry["taken_from"] for entry in taken["entries"]] == ["old", None, "old", None]
    assert taken["times"]["weight-0-seed0"] == old["times"]["weight-0-seed0"]
    before, after = (result["summary"][0]["cmi"] for result in (old, taken))
    assert before != after, "CMI is that of the new comparison"
    made.clear()
    (tmp_path / "old").rename(tmp_path / "gone")
    assert run(tmp_path / "taken", settings, pool, baseline=tmp_path / "old") == taken, "it is not asked for any more"
    assert not made


def test_what_the_source_lacks_is_made(tmp_path: Path, run: Any, made: list[tuple[str, int]]) -> None:
    run(tmp_path / "old", seeds=1)
    made.clear()
    run(tmp_path / "taken", LOGITS, baseline=tmp_path / "old")
    assert [note for note in made if note[0] == "weight-0"] == [("weight-0", 1)]


def test_a_copy_that_was_broken_off_is_made_good(
    tmp_path: Path, run: Any, made: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = run(tmp_path / "old")

    def killed(content: Any, path: Path) -> None:
        if "entries" in path.parts:
            raise KeyboardInterrupt
        write_json(content, path)

    with monkeypatch.context() as patch:
        patch.setattr("ddplug.lab.folder.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "taken", baseline=tmp_path / "old")
    made.clear()
    taken = run(tmp_path / "taken", baseline=tmp_path / "old")
    assert "weight-0" not in dict(made)
    assert without_times(taken) == without_times(old)


def test_nothing_is_left_of_a_copy_that_was_broken_off_and_given_up(tmp_path: Path, run: Any) -> None:
    old = run(tmp_path / "old")
    run(tmp_path / "new", seeds=1)
    other = tmp_path / "new/entries/weight-0-seed1"
    other.mkdir()
    for number in (2, 4):
        (other / f"set-{number:06d}.json").write_text('{"accuracies": [0.99, 0.99]}')
    assert without_times(run(tmp_path / "new")) == without_times(old)


@pytest.mark.parametrize("damage", ["{", "[]", '{"sets": [{}]}'])
def test_a_damaged_source_is_named_and_nothing_is_begun(damage: str, tmp_path: Path, run: Any) -> None:
    run(tmp_path / "old", seeds=1)
    (tmp_path / "old/entries/weight-0-seed0/distilled.json").write_text(damage)
    with pytest.raises(DataError, match="Name another --baseline"):
        run(tmp_path / "new", seeds=1, baseline=tmp_path / "old")
    assert not (tmp_path / "new").exists()


def test_another_baseline_is_refused_and_nothing_is_begun(tmp_path: Path, run: Any) -> None:
    run(tmp_path / "old", seeds=1)
    with pytest.raises(InputError, match=r"the baseline of .*old' is of other settings: epochs \(2 there, 3 asked"):
        run(tmp_path / "new", replace(FEATURES, epochs=3), baseline=tmp_path / "old")
    with pytest.raises(InputError, match="has finished none of weight-0-seed5; leave --baseline out"):
        run(tmp_path / "new", seeds=1, first_seed=5, baseline=tmp_path / "old")
    with pytest.raises(DataError, match="nowhere' is no folder of a comparison"):
        run(tmp_path / "new", baseline=tmp_path / "nowhere")
    assert not (tmp_path / "new").exists()


def test_seeds_from_another_one_on_are_the_same_seeds(tmp_path: Path, run: Any) -> None:
    both = run(tmp_path / "both", seeds=2)
    second = run(tmp_path / "second", seeds=1, first_seed=1)
    assert second["entries"] == [entry for entry in both["entries"] if entry["seed"] == 1]
    assert run(tmp_path / "second", seeds=1, first_seed=0)["left_out"] == ["weight-0-seed1", "weight-1-host-seed1"]
    with pytest.raises(InputError, match="first_seed must be at least 0, got -1"):
        run(tmp_path / "second", first_seed=-1)
    assert json.loads((tmp_path / "second/compare.json").read_text())["first_seed"] == 0
