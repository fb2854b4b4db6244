"""`ddplug tune`: what is swept, what is chosen, the confirmation on fresh seeds, and the lines to paste."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ddplug.cli import app as cli
from ddplug.cli.compare import compare as compare_command
from ddplug.cli.compare import tune as tune_command
from ddplug.datasets.images import ImageData
from ddplug.errors import DataError, DDPlugError, InputError
from ddplug.lab.judge import Judge
from ddplug.lab.own_trainer import Own
from ddplug.lab.plan import Settings
from ddplug.lab.setup import Setup
from ddplug.lab.tune import Tuned, said, tune
from ddplug.proxies.pool import ProxyPool

# Networks of an epoch or none are enough for what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:proxy .* is right on")

pytest.importorskip("sklearn")

GRID = {"representation": ["feature", "logit"], "weighting": ["relative"]}


@pytest.fixture(scope="module")
def pool(trained: Callable[..., Path]) -> Path:
    return trained(1)


@pytest.fixture
def setup(digits: ImageData, pool: Path) -> Setup:
    settings = Settings(
        ipc=2, iterations=3, batch_real=4, strategy="color_crop", width=8, checkpoints=1, runs=1, epochs=2,
        regularizer={"calibrate": 1},
    )  # fmt: skip
    return Setup("own", Judge(digits, settings, ProxyPool.load(pool), None, torch.device("cpu")))


@pytest.fixture
def distilled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that were distilled, with the representation they saw."""
    notes: list[str] = []
    attached = Own._attached

    def note(own: Own, trainer: Any, run: Any) -> Any:
        notes.append(f"{own.settings.option('representation')} {run.name}")
        return attached(own, trainer, run)

    monkeypatch.setattr(Own, "_attached", note)
    return notes


def test_a_sweep_shares_its_baseline_and_is_confirmed_on_fresh_seeds(
    tmp_path: Path, setup: Setup, distilled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(judge: Any, *given: Any) -> float:  # the more the term is weighted, the better
        return 0.5 + 1e-3 * len(distilled)

    monkeypatch.setattr("ddplug.lab.judge.Judge._train", score)
    tuned = tune(setup, tmp_path, [1.0, 3.0], GRID, seeds=1, confirm=2, first_seed=4)
    assert distilled[:5] == [
        "feature weight-0-seed4", "feature weight-1-host-seed4", "feature weight-3-host-seed4",
        "logit weight-1-host-seed4", "logit weight-3-host-seed4",
    ]  # fmt: skip
    assert [(row["weight"], row["options"]["representation"]) for row in tuned.sweep] == [
        (1.0, "feature"), (3.0, "feature"), (1.0, "logit"), (3.0, "logit"),
    ]  # fmt: skip
    assert tuned.choice == tuned.sweep[3], "the largest difference"
    assert distilled[5:] == [f"logit weight-{weight}-seed{seed}" for seed in (5, 6) for weight in ("0", "3-host")], (
        "on seeds that the sweep has not seen"
    )
    assert tuned.confirmation is not None
    assert tuned.confirmation["seeds"] == 2
    assert tuned.confirmation["difference"] == pytest.approx(1e-3)
    assert tuned.comparisons == [
        "sweep-feature-relative",
        "sweep-logit-relative",
        "confirm-weight-3-host-logit-relative",
    ]
    kept = json.loads((tmp_path / "tune.json").read_text())
    assert kept["format"] == "ddplug-tune"
    assert {name: kept[name] for name in ("choice", "confirmation")} == {
        "choice": tuned.choice, "confirmation": tuned.confirmation,
    }  # fmt: skip
    distilled.clear()
    assert tune(setup, tmp_path, [1.0, 3.0], GRID, seeds=1, confirm=2, first_seed=4) == tuned
    assert not distilled, "resumed: nothing is left to do"


def test_another_sweep_is_confirmed_on_seeds_that_nothing_has_seen(
    tmp_path: Path, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the choice would be among confirmations. The same sweep has the seeds it had."""
    used = []

    def compare(self: Setup, chosen: Any, seeds: int, out: Path, **more: Any) -> dict[str, Any]:
        if out.name.startswith("confirm"):
            used.append(list(range(more["first_seed"], more["first_seed"] + seeds)))
        return {"summary": [{"weight": arm.weight, "arm": arm.name, "difference": 0.01} for arm in chosen]}

    monkeypatch.setattr(Setup, "compare", compare)
    for weights, more in (
        ([1.0], {}), ([1.0], {}), ([1.0, 3.0], {}), ([1.0], {"confirm": 3}), ([1.0], {"first_seed": 7}), ([1.0], {}),
    ):  # fmt: skip
        tune(setup, tmp_path, weights, GRID, **{"seeds": 2, "confirm": 2, **more})  # type: ignore[arg-type]
    assert used == [[2, 3], [2, 3], [4, 5], [6, 7, 8], [9, 10], [2, 3]]
    (tmp_path / "confirmed.json").write_text('{"confirmations": [{"of": {}, "first_seed": -1, "end": 2}]}')
    with pytest.raises(DataError, match=r"first_seed: expected a whole number.*ive a --first-seed beyond"):
        tune(setup, tmp_path, [1.0], GRID)


def test_nothing_is_chosen_where_nothing_is_better(
    tmp_path: Path, setup: Setup, distilled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddplug.lab.judge.Judge._train", lambda *_: 0.5)
    tuned = tune(setup, tmp_path, [1.0], {"representation": ["feature"]}, seeds=1)
    assert (tuned.choice, tuned.confirmation) == (None, None)
    assert distilled == ["feature weight-0-seed0", "feature weight-1-host-seed0"]
    assert said(tuned, "own", "pool", {}) == [
        "No weight was better than none in the sweep; try others, more iterations, or other proxies."
    ]


def test_the_folder_of_a_comparison_is_not_mixed_with_those_of_a_sweep(tmp_path: Path, setup: Setup) -> None:
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(DataError, match="is the folder of one comparison"):
        tune(setup, tmp_path, [1.0], GRID)
    assert [held.name for held in tmp_path.iterdir()] == ["settings.json"]


def test_the_lines_to_paste() -> None:
    choice = {"weight": 3.0, "arm": "weight-3-host", "options": {"representation": "logit", "weighting": "relative"}}
    sure = {"difference": 0.03, "interval": 0.02, "seeds": 3}
    code, verdict = said(Tuned([], choice, sure, []), "own", "pool", {})
    assert verdict == (
        "weight 3, representation logit, weighting relative, against weight 0: +3.00 ± 2.00 points of accuracy (95 % "
        "interval over 3 fresh seeds, which excludes 0)."
    )
    assert code == "ddplug.attach(trainer, weight=3.0, weighting='relative', representation='logit', proxies='pool')"
    command, again = said(Tuned([], choice, sure, []), "dm", "a pool", {}, Path("DM"), ["--ipc", "10"])
    assert command == (
        "ddplug run dm --weight 3 --representation logit --weighting relative --proxies 'a pool' --repo DM -- --ipc 10"
    )
    assert again == verdict
    doubtful = said(Tuned([], choice, {**sure, "interval": 0.03}, []), "own", "pool", {})
    assert doubtful[1].endswith("includes 0).")


def test_the_lines_to_paste_have_what_was_not_swept(setup: Setup) -> None:
    held = setup.regularised(
        temperature=0.5, classes=None, chunk=8, compile=True, views_per_image=4, calibrate=10
    ).unusual()
    assert held == {"temperature": 0.5, "chunk": 8, "compile": True, "views_per_image": 4}
    choice = {"weight": 3.0, "options": {"weighting": "relative"}}
    tuned = Tuned([], choice, {"difference": 0.03, "interval": 0.02, "seeds": 3}, [])
    code, _ = said(tuned, "own", "p", held)
    assert code == (
        "ddplug.attach(trainer, weight=3.0, weighting='relative', term=ddplug.terms.make('cmi', temperature=0.5), "
        "views=4, compute=ddplug.Compute(chunk=8, compile=True), proxies='p')"
    )
    command, _ = said(tuned, "dm", "p", {"temperature": 0.5, "chunk": "auto"})
    assert "--weighting relative --temperature 0.5 --chunk 0 --proxies p" in command


@pytest.mark.parametrize(
    ("weights", "options", "more", "message"),
    [
        ([0.0], GRID, {}, "at least one weight above 0"),
        ([1.0], GRID, {"confirm": 1}, "at least 2 seeds for its interval, got 1"),
        (
            [1.0],
            {"representation": ["pixels"]},
            {},
            "representation to sweep: some of .*feature, logit.*, each",
        ),
        ([1.0], {"weighting": []}, {}, "weighting to sweep: some of .*relative"),
        ([1.0], {"representation": ["logit", "logit"]}, {}, "each once, got logit, logit"),
    ],
)
def test_what_cannot_be_swept_is_refused_first(
    weights: list[Any], options: Any, more: Any, message: str, tmp_path: Path, setup: Setup
) -> None:
    with pytest.raises(InputError, match=message):
        tune(setup, tmp_path / "out", weights, options, **more)
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path, pool: Path) -> None:
    given = (
        "tune", "own", "--proxies", pool, "--out", tmp_path / "out", "--ipc", 2, "--iterations", 4, "--batch-real", 4,
        "--width", 8, "--checkpoints", 1, "--runs", 1, "--epochs", 1, "--calibrate", 1, "--device", "cpu",
        "--weights", "1", "--weighting", "relative,sustained", "--seeds", 1, "--confirm", 2,
    )  # fmt: skip
    result = CliRunner(env={"COLUMNS": "120", "TERM": "dumb"}).invoke(cli.app, [str(word) for word in given])
    assert result.exit_code == 0, (result.output, result.exception)
    assert re.search(r"1 .*representation auto, weighting sustained", result.output)
    assert "wrote" in result.output
    assert sorted(path.name for path in (tmp_path / "out").glob("sweep-*")) == [
        "sweep-auto-relative", "sweep-auto-sustained",
    ]  # fmt: skip
    bad = CliRunner().invoke(cli.app, ["tune", "own", "--weights", "1"])
    assert isinstance(bad.exception, DDPlugError)
    assert "a comparison needs --proxies" in str(bad.exception)


def test_both_commands_have_the_options_of_a_comparison() -> None:
    compare, tune = (inspect.signature(command).parameters for command in (compare_command, tune_command))
    own = {"terms", "views", "baseline", "cross_arch"}
    assert compare.keys() - tune.keys() == own
    assert tune.keys() - compare.keys() == {"confirm"}


def test_a_setting_with_other_options(setup: Setup) -> None:
    changed = setup.regularised(representation="logit")
    assert changed.judge.settings == replace(
        setup.judge.settings, regularizer={"calibrate": 1, "representation": "logit"}
    )
