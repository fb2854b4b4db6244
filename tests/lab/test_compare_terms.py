"""Comparisons of several terms: arms of each, paired with one baseline and with each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ddplug import ProxyPool
from ddplug.cli import app as cli
from ddplug.datasets.images import ImageData
from ddplug.datasets.synthetic import load_set
from ddplug.errors import InputError
from ddplug.lab.compare import compare
from ddplug.lab.judge import Judge
from ddplug.lab.measure import measure_term
from ddplug.lab.own_trainer import Own
from ddplug.lab.plan import Arm, Run, Settings, arms
from ddplug.lab.plot import plot
from ddplug.lab.statistics import against
from ddplug.lab.tables import between_terms
from ddplug.terms import make

pytestmark = pytest.mark.filterwarnings("ignore:proxy .* is right on")

pytest.importorskip("sklearn")

TINY = Settings(
    ipc=2, iterations=3, batch_real=4, strategy="color_crop_scale", width=8, checkpoints=1, runs=1, epochs=1,
    regularizer={"calibrate": 1},
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pool(trained: Callable[..., Path]) -> Path:
    return trained(1)


def run(digits: ImageData, pool: Path, out: Path, chosen: list[Arm], seeds: int = 1, settings: Settings = TINY) -> Any:
    loaded = ProxyPool.load(pool)
    return compare(Own(digits, settings, loaded, CPU), chosen, seeds, out, Judge(digits, settings, loaded, None, CPU))


def test_every_term_has_an_arm_of_each_weight_and_views() -> None:
    made = arms([0, 0.5], ["host", "clean"], ["cmi", "-cmi", "cmi + 0.3*proxy_ce"])
    assert [arm.name for arm in made] == [
        "weight-0", "cmi-0.5-host", "-cmi-0.5-host", "cmi+0.3xproxy_ce-0.5-host",
        "cmi-0.5-clean", "-cmi-0.5-clean", "cmi+0.3xproxy_ce-0.5-clean",
    ]  # fmt: skip
    assert made[0].baseline
    assert Run(made[2], 4).name == "-cmi-0.5-host-seed4"
    assert [arm.name for arm in arms([0.5, 1])] == ["weight-0", "weight-0.5-host", "weight-1-host"], "as it was"
    assert [arm.name for arm in arms([1], ["host"], ["mim", "mim"])] == ["weight-0", "mim-1-host"]
    with pytest.raises(InputError, match="unknown term 'cim'"):
        arms([1], ["host"], ["cmi", "cim"])


def test_each_arm_is_regularised_by_its_term(digits: ImageData, pool: Path, tmp_path: Path, untouched: None) -> None:
    """Sets of an arm are those of a comparison of that term alone; all are measured by the term of the settings."""
    names = ("cmi", "-cmi", "mim")
    several = run(digits, pool, tmp_path / "several", arms([1.0], ["host"], names))
    assert several["arms"] == ["weight-0", "cmi-1-host", "-cmi-1-host", "mim-1-host"]
    held = {}
    for name in names:
        settings = replace(TINY, term=name)
        alone = tmp_path / f"alone{name}"
        run(digits, pool, alone, arms([1.0]), settings=settings)
        held[name] = load_set(tmp_path / f"several/entries/{name}-1-host-seed0/set-000003.pt")
        same = load_set(alone / "entries/weight-1-host-seed0/set-000003.pt")
        assert torch.equal(held[name].images, same.images), name
    baseline = load_set(tmp_path / "several/entries/weight-0-seed0/set-000003.pt")
    pairs = [(first, second) for first in names for second in names if first < second]
    assert not any(torch.equal(held[first].images, held[second].images) for first, second in pairs)
    assert not any(torch.equal(baseline.images, each.images) for each in held.values())
    by_name = {entry["name"]: entry for entry in several["entries"]}
    for name in names:
        entry = by_name[f"{name}-1-host-seed0"]
        assert entry["term"] == name
        expected = measure_term(make("cmi"), ProxyPool.load(pool), held[name], representation="logit")
        # CMI of some 1e-4 is a difference of float32 numbers of size 1 there.
        assert entry["checkpoints"][-1]["cmi"] == pytest.approx(expected, abs=5e-7), "one measure for all"
    assert "term" not in by_name["weight-0-seed0"]
    rows = {row["arm"]: row.get("term") for row in several["summary"]}
    assert rows == {"weight-0": None, "cmi-1-host": "cmi", "-cmi-1-host": "-cmi", "mim-1-host": "mim"}


def test_it_is_resumed_and_added_to(
    digits: ImageData, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, attached = list[str](), Own._attached

    def note(own: Own, trainer: Any, run: Run) -> Any:
        made.append(run.name)
        return attached(own, trainer, run)

    monkeypatch.setattr(Own, "_attached", note)
    first = run(digits, pool, tmp_path, arms([1.0], ["host"], ["cmi"]))
    run(digits, pool, tmp_path, arms([1.0], ["host"], ["cmi", "-spread"]))
    assert sorted(made) == ["-spread-1-host-seed0", "cmi-1-host-seed0", "weight-0-seed0"], "each is made once"
    again = run(digits, pool, tmp_path, arms([1.0], ["host"], ["cmi"]))
    assert again.pop("left_out") == ["-spread-1-host-seed0"]
    del first["times"], first["left_out"], again["times"]
    assert again == first
    assert len(made) == 3
    # Arms without terms of their own stand beside them.
    run(digits, pool, tmp_path, arms([1.0]))
    assert made[3:] == ["weight-1-host-seed0"]
    sets = [load_set(tmp_path / f"entries/{arm}-1-host-seed0/set-000003.pt").images for arm in ("weight", "cmi")]
    assert torch.equal(*sets), "the term of the settings is cmi"


@pytest.mark.parametrize("measured", ["spread", "mim", "proxy_ce", "centralisation-0.01*covariance"])
def test_any_term_can_be_what_all_sets_are_measured_by(
    digits: ImageData, pool: Path, tmp_path: Path, measured: str
) -> None:
    """Also one whose values are negative, whose records are read again."""
    settings = replace(TINY, term=measured)
    result = run(digits, pool, tmp_path, arms([1.0], ["host"], [measured]), settings=settings)
    synthetic = load_set(tmp_path / f"entries/{result['arms'][1]}-seed0/set-000003.pt")
    expected = measure_term(make(measured), ProxyPool.load(pool), synthetic, digits, representation="logit")
    assert result["entries"][1]["checkpoints"][-1]["cmi"] == pytest.approx(expected, rel=1e-4)
    assert (expected < 0) or measured != "spread"
    again = run(digits, pool, tmp_path, arms([1.0], ["host"], [measured]), settings=settings)
    del result["times"], again["times"]
    assert again == result
    with pytest.raises(InputError, match="term"):
        run(digits, pool, tmp_path, arms([1.0]))


def entry(term: str, seed: int, accuracy: float) -> dict[str, Any]:
    point = {"iteration": 1, "accuracies": [accuracy]}
    return {"arm": f"{term}-1-host", "term": term, "seed": seed, "checkpoints": [point]}


def test_terms_are_compared_in_pairs_of_a_seed() -> None:
    """By hand: differences 0.1, 0.2 and 0.3 have the mean 0.2 and, at 95 %, 4.303 * 0.1 / sqrt(3) around it."""
    entries = [
        *(entry("cmi", seed, accuracy) for seed, accuracy in enumerate((0.5, 0.3, 0.4, 0.9))),
        *(entry("mim", seed, accuracy) for seed, accuracy in ((2, 0.7), (0, 0.6), (1, 0.5))),
    ]
    found = against(entries, "mim-1-host", "cmi-1-host")
    assert found["difference"] == pytest.approx(0.2)
    assert found["interval"] == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
    assert against(entries, "cmi-1-host", "mim-1-host")["difference"] == pytest.approx(-0.2)
    rows: list[dict[str, Any]] = [{"arm": "weight-0", "weight": 0}]
    rows += [{"arm": f"{term}-1-host", "term": term, "weight": 1} for term in ("cmi", "mim")]
    ((columns, cells),) = between_terms({"entries": entries}, rows)
    assert columns == ("weight", "difference to cmi 1")
    assert cells[0][0] == "mim 1"
    assert "20.0" in cells[0][1]
    assert "24.8" in cells[0][1]
    assert not between_terms({"entries": entries}, rows[:2]), "one term is compared with no other"
    assert not between_terms({"entries": entries}, [{"arm": "weight-0", "weight": 0}, {"arm": "weight-1", "weight": 1}])


def command(pool: Path, out: Path, *more: object) -> str:
    given = (
        "compare", "own", "--ipc", 2, "--iterations", 3, "--batch-real", 4, "--width", 8, "--checkpoints", 1, "--runs",
        1, "--epochs", 1, "--calibrate", 1, "--device", "cpu", "--weights", "1", "--proxies", pool, "--out", out, *more,
    )  # fmt: skip
    result = CliRunner(env={"COLUMNS": "120", "TERM": "dumb"}).invoke(cli.app, [str(word) for word in given])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_by_command_with_the_table_between_terms(pool: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    said = command(pool, tmp_path / "out", "--terms", "cmi, -cmi,mim", "--seeds", 1)
    assert "difference to cmi 1" in said
    for name in ("cmi 1", "-cmi 1", "mim 1"):
        assert name in said
    content = json.loads((tmp_path / "out/compare.json").read_text())
    assert [entry.get("term") for entry in content["entries"]].count("mim") == 1
    shown = (tmp_path / "out/report.html").read_text()
    assert "difference to cmi 1" in shown
    plot({"terms": tmp_path / "out/compare.json"}, tmp_path / "plot.svg")  # by the reader's own check
