"""`ddplug plot`: what is drawn, from which files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ddplug.cli import app as cli
from ddplug.errors import DataError, DDPlugError, InputError
from ddplug.lab import plot as plotting
from ddplug.lab.plot import labelled, plot

pytest.importorskip("matplotlib")


def row(weight: float | str, views: str | None, difference: float, interval: float | None) -> dict[str, Any]:
    return {
        "arm": f"weight-{weight}" + (f"-{views}" if views else ""), "weight": weight, "views": views, "accuracy": 0.4,
        "difference": difference, "interval": interval, "cmi_ratio": 0.5, "cmi_heldout_ratio": 0.25 if views else None,
    }  # fmt: skip


def comparison(folder: Path, points: int = 1, rows: Any = None) -> Path:
    """A comparison's folder with a `compare.json` of `points` checkpoints."""
    rows = rows or [row(0, None, 0.0, None), row("paper", "host", 0.01, None), row(0.3, "host", 0.03, 0.02)]
    checkpoints = [{"iteration": 10 * (n + 1), "accuracies": [0.3 + 0.01 * n]} for n in range(points)]
    content = {
        "format": "ddplug-compare", "arms": [each["arm"] for each in rows], "summary": rows,
        "entries": [{"arm": each["arm"], "checkpoints": checkpoints} for each in rows],
    }  # fmt: skip
    folder.mkdir()
    (folder / "compare.json").write_text(json.dumps(content))
    return folder


def history(path: Path) -> Path:
    rounds = [{"number": n, "value": 0.1 / (n + 1), "lam": 2.0, "images": 4, "skipped": n == 2} for n in range(5)]
    path.write_text(json.dumps({"format": "ddplug-run", "history": rounds}))
    return path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were saved."""
    figures: list[Any] = []
    save = plotting.save_figure
    monkeypatch.setattr(plotting, "save_figure", lambda figure, out: (figures.append(figure), save(figure, out)))
    return figures


def lines(axis: Any) -> dict[str, list[list[float]]]:
    """The labelled lines of an axis: [x, y] each."""
    return {
        line.get_label(): [list(line.get_xdata()), list(line.get_ydata())]
        for line in axis.get_lines()
        if not line.get_label().startswith("_")
    }


def test_differences_and_their_intervals_by_weight(tmp_path: Path, drawn: list[Any]) -> None:
    plot({"mine": comparison(tmp_path / "a")}, tmp_path / "p.png")
    gains, cmi = drawn[0].axes
    assert [text.get_text() for text in gains.get_xticklabels()] == ["0.3", "paper"], "rising, paper last"
    (bars,) = gains.containers
    x, y = bars[0].get_data()
    assert list(zip(x, y, strict=True)) == [(0.0, 3.0), (1.0, 1.0)], "from left to right, in whatever order they ran"
    spans = {round(float(s[0][0])): (float(s[0][1]), float(s[1][1])) for s in bars[2][0].get_segments()}
    assert spans[0] == pytest.approx((1.0, 5.0))
    assert spans[1] == pytest.approx((1.0, 1.0)), "one seed has no interval"
    assert lines(cmi)["mine"][1] == [0.25, 0.25], "the held-out pool's"
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_kinds_of_views_are_lines_of_their_own(tmp_path: Path, drawn: list[Any]) -> None:
    rows = [row(0, None, 0.0, None), row(1, "host", 0.01, None), row(1, "clean", 0.02, None)]
    plot({"a": comparison(tmp_path / "a", rows=rows), "b": comparison(tmp_path / "b")}, tmp_path / "p.svg")
    gains = drawn[0].axes[0]
    assert [bars.get_label() for bars in gains.containers] == ["a, host views", "a, clean views", "b"]
    places = [bars[0].get_xdata()[0] for bars in gains.containers[:2]]
    assert places[0] != places[1], "side by side"


def test_accuracy_over_the_iterations_where_there_are_several(tmp_path: Path, drawn: list[Any]) -> None:
    plot({"once": comparison(tmp_path / "a"), "often": comparison(tmp_path / "b", 3)}, tmp_path / "p.png")
    assert len(drawn[0].axes) == 3
    assert drawn[0].axes[2].get_title() == "often"
    assert lines(drawn[0].axes[2])["weight 0"] == [[10, 20, 30], pytest.approx([30.0, 31.0, 32.0])]


def test_runs_round_by_round_without_what_was_skipped(tmp_path: Path, drawn: list[Any]) -> None:
    plot({"run": history(tmp_path / "cmi_x.json")}, tmp_path / "p.png")
    cmi, lam = drawn[0].axes
    assert lines(cmi)["run"] == [[0, 1, 3, 4], pytest.approx([0.1, 0.05, 0.025, 0.02])]
    assert lines(lam)["run"][1] == [2.0] * 4


def saved(path: Path, rounds: int, shares: Any, skipped: tuple[int, ...] = ()) -> Path:
    """What a history writes by itself: the few keys that every run's file has."""
    records = [
        {"number": 2 * n, "value": 0.2 - 0.01 * n, "lam": 3.0 + n, "images": 8, "skipped": n in skipped, "share": share}
        for n, share in zip(range(rounds), shares, strict=True)
    ]
    content = {"format": "ddplug-run", "version": 1, "rounds": 2 * rounds, "skipped": len(skipped), "history": records}
    path.write_text(json.dumps(content))
    return path


def test_a_historys_own_file_with_its_shares(tmp_path: Path, drawn: list[Any]) -> None:
    first = saved(tmp_path / "a.json", 5, [None, 0.9, 0.8, 1.1, 1.0], skipped=(3,))
    plot(
        {"a": first, "old": history(tmp_path / "cmi.json"), "b": saved(tmp_path / "b.json", 1, [2.0])},
        tmp_path / "p.png",
    )
    cmi, lam, share = drawn[0].axes
    assert lines(cmi)["a"] == [[0, 2, 4, 8], pytest.approx([0.2, 0.19, 0.18, 0.16])]
    assert lines(lam)["a"][1] == [3.0, 4.0, 5.0, 7.0]
    assert lines(share) == {"a": [[2, 4, 8], [0.9, 0.8, 1.0]], "b": [[0], [2.0]]}, "old files know none"
    colours = {axis: {line.get_label(): line.get_color() for line in axis.get_lines()} for axis in (cmi, share)}
    assert {label: colours[cmi][label] for label in colours[share]} == colours[share]
    assert [line.get_marker() for line in share.get_lines()] == ["None", "o"], "a single round is seen"
    assert share.get_ylabel() == "share of the host's gradient"
    assert [text.get_text() for text in cmi.get_legend().get_texts()] == ["a", "old", "b"]


@pytest.mark.parametrize("shares", [[None] * 4, None], ids=["none known", "not spoken of"])
def test_no_panel_for_a_share_that_nobody_knows(shares: Any, tmp_path: Path, drawn: list[Any]) -> None:
    path = tmp_path / "a.json"
    plot({"a": saved(path, 4, shares) if shares else history(path)}, tmp_path / "p.png")
    assert [axis.get_ylabel() for axis in drawn[0].axes] == ["CMI of the views (nats)", "lambda"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, r"cannot be read .*lacks history"),
        ({"history": 3}, r"cannot be read .*history: expected a list, got 3"),
        ({"history": ["round"]}, r"cannot be read .*history\[0\]: expected a dictionary"),
        (
            {"history": [{"number": 0, "value": "low", "lam": 1, "images": 1, "skipped": False}]},
            r"\.value: expected a number",
        ),
        (
            {"history": [{"number": 0, "value": 1, "lam": 1, "images": 1, "skipped": False, "share": {}}]},
            r"\.share: expected",
        ),
        ({"history": []}, "no round in which the regulariser acted"),
        (
            {"history": [{"number": 0, "value": 1, "lam": 1, "images": 1, "skipped": True}]},
            "no round in which the regulariser acted",
        ),
    ],
)
def test_runs_that_cannot_be_drawn(content: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"format": "ddplug-run", **content}))
    with pytest.raises(DataError, match=rf"a\.json' .*{said}|a\.json' has {said}"):
        plot({"a": tmp_path / "a.json"}, tmp_path / "p.png")
    assert not (tmp_path / "p.png").exists()


def test_names(tmp_path: Path) -> None:
    folder, odd = tmp_path / "a", tmp_path / "x=y"
    odd.mkdir()
    assert labelled([str(folder), f"Mine=at={folder}", str(odd)]) == {
        "a": folder, "Mine": Path(f"at={folder}"), "x=y": odd,
    }  # fmt: skip
    assert list(labelled([str(folder / "compare.json"), str(tmp_path / "cmi_1.json")])) == ["a", "cmi_1"]
    (tmp_path / "w-0.1").mkdir()
    assert list(labelled([str(tmp_path / "w-0.1"), str(tmp_path / "w-0.3/cmi.json")])) == ["w-0.1", "w-0.3"]
    with pytest.raises(InputError, match=r"two of the results are called 'a'; name them: LABEL=PATH"):
        labelled([str(folder), str(folder)])
    with pytest.raises(InputError, match="plot needs the result"):
        labelled([])


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    made, run = comparison(tmp_path / "a"), history(tmp_path / "cmi_x.json")
    (tmp_path / "other.json").write_text("{}")
    refusals: list[tuple[dict[str, Path], type[DDPlugError], str]] = [
        ({"a": made, "b": run}, InputError, "comparisons and runs cannot be drawn into one figure"),
        ({"a": tmp_path}, DataError, "there is no"),
        (
            {"a": tmp_path / "other.json"},
            DataError,
            "as the result of a comparison or of a run .*lacks format",
        ),
    ]
    for paths, kind, said in refusals:
        with pytest.raises(kind, match=said):
            plot(paths, tmp_path / "p.png")
    with pytest.raises(InputError, match=r"p\.docx"):
        plot({"a": made}, tmp_path / "p.docx")
    assert not list(tmp_path.glob("*p.*"))


def test_the_command(tmp_path: Path) -> None:
    given = ["plot", f"a={comparison(tmp_path / 'x')}", "--out", str(tmp_path / "p.pdf")]
    result = CliRunner().invoke(cli.app, given)
    assert result.exit_code == 0, result.output
    assert result.output == f"wrote {tmp_path / 'p.pdf'}\n"
    assert (tmp_path / "p.pdf").read_bytes()[:4] == b"%PDF"
