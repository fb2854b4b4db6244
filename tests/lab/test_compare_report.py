"""What `ddplug compare` says: statistics by hand, tables, the page, and the command."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ddplug import ProxyPool
from ddplug.cli import app as cli
from ddplug.datasets.synthetic import load_set
from ddplug.errors import DDPlugError, InputError
from ddplug.lab.page import template
from ddplug.lab.statistics import curve, summary, t_quantile
from ddplug.lab.tables import arm_name, result_columns, standing, term_of, verdict
from ddplug.terms import base
from ddplug.terms.base import Groups, Term

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def pools(trained: Callable[..., Path]) -> tuple[Path, Path]:
    """Folders of the training pool and of the held-out one."""
    return trained(2), trained(1, 50)


def entry(arm: str, seed: int, *checkpoints: tuple[int, list[float], float]) -> dict[str, Any]:
    """An entry of `compare.json`: iteration, accuracies, CMI."""
    weight = float(arm.split("-")[1])
    return {
        "name": f"{arm}-seed{seed}", "arm": arm, "weight": weight, "views": "host" if weight else None, "seed": seed,
        "skipped": 0,
        "checkpoints": [
            {"iteration": iteration, "accuracies": scores, "cmi": cmi, "cmi_heldout": None,
             "recognised": None, "confidence": None,
             "lambda": 5.0 if weight else None, "share": None}
            for iteration, scores, cmi in checkpoints
        ],
    }  # fmt: skip


def test_statistics_by_hand() -> None:
    """Baseline ends with 0.50, 0.52, 0.54 and the arm with 0.51, 0.55, 0.56: differences 0.01, 0.03, 0.02.

    Their mean is 0.02 and their standard deviation 0.01; t of 2 degrees of freedom is 4.3027, over sqrt(3).
    """
    entries = []
    for seed, (without, with_) in enumerate([(0.50, 0.51), (0.52, 0.55), (0.54, 0.56)]):
        entries.append(entry("weight-0", seed, (5, [0.3, 0.3], 4.0), (10, [without - 0.01, without + 0.01], 2.0)))
        entries.append(entry("weight-1-host", seed, (5, [0.52, 0.53], 1.5), (10, [with_, with_], 0.5)))
    baseline, arm = summary(entries)
    assert (baseline["accuracy"], baseline["accuracy_std"]) == (pytest.approx(0.52), pytest.approx(0.02))
    assert (baseline["difference"], baseline["interval"]) == (0.0, 0.0)
    assert baseline["reaches"] == 10
    assert arm["difference"] == pytest.approx(0.02)
    assert arm["interval"] == pytest.approx(4.302653 * 0.01 / 3**0.5, rel=1e-6)
    assert (arm["cmi"], arm["cmi_ratio"], arm["cmi_heldout"], arm["cmi_heldout_ratio"]) == (0.5, 0.25, None, None)
    assert (arm["lambda"], arm["share"]) == (5.0, None)
    assert arm["reaches"] == 5, "0.525 on average at 5, and the baseline ends with 0.52"
    assert curve(entries, "weight-1-host", "accuracies") == ([5, 10], [[0.525] * 3, [0.51, 0.55, 0.56]])
    assert curve(entries, "weight-0", "cmi_heldout") == ([], [])


def test_one_seed_has_no_interval_and_a_worse_arm_reaches_nothing() -> None:
    _, arm = summary([entry("weight-0", 0, (10, [0.5], 2.0)), entry("weight-1-host", 0, (10, [0.4], 2.0))])
    assert (arm["accuracy_std"], arm["interval"], arm["reaches"]) == (None, None, None)
    assert arm["difference"] == pytest.approx(-0.1)


def test_t_quantiles_are_those_of_scipy() -> None:
    t = pytest.importorskip("scipy.stats").t
    for freedom in range(1, 200):
        assert t_quantile(freedom) == pytest.approx(t.ppf(0.975, freedom), abs=1e-4)
    with pytest.raises(InputError, match="two seeds"):
        t_quantile(0)


def command(*arguments: object) -> str:
    """What `ddplug compare own` with tiny settings printed."""
    given = (
        "compare", "own", "--ipc", 2, "--iterations", 4, "--batch-real", 4, "--width", 8, "--checkpoints", 2, "--runs",
        1, "--epochs", 1, "--calibrate", 2, "--device", "cpu", *arguments,
    )  # fmt: skip
    result = CliRunner(env={"COLUMNS": "80", "TERM": "dumb"}).invoke(cli.app, [str(argument) for argument in given])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.filterwarnings("ignore:proxy .* is right on")
def test_the_command_prints_tables_and_writes_one_page(
    tmp_path: Path, pools: tuple[Path, Path], untouched: None
) -> None:
    pytest.importorskip("matplotlib")
    given = ("--proxies", pools[0], "--heldout", pools[1], "--weights", "0,0.5", "--views", "host,clean", "--seeds", 2)
    output = command("--out", tmp_path / "out", *given)
    assert "own on digits, host views: 2 seeds x 1 networks" in output
    assert "own on digits, clean views" in output
    assert "1 epochs at rate 0.03 each; standard is 1000 at 0.01" in output
    assert "Left out" not in output
    assert "…" not in output, "no number is cut off, even on a narrow terminal"
    result = json.loads((tmp_path / "out/compare.json").read_text())
    for row in result["summary"]:
        assert f"{100 * row['accuracy']:.2f}" in output
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 + 3 + 1, "curves of both views, images of three arms, t-SNE"
    assert not re.search(r"""(src|href)=(?!"data:)|https?://|@import|url\(""", page), "nothing from outside"
    assert "own on digits" in page
    for row in result["summary"]:
        assert f"{100 * row['accuracy']:.2f}" in page
    assert str(tmp_path) not in page + json.dumps(result)
    again = command("--out", tmp_path / "out", *given)
    assert again[again.index("own on digits, host") :] == output[output.index("own on digits, host") :]
    assert (tmp_path / "out/report.html").read_text() == page
    fewer = command("--out", tmp_path / "out", *given[:-2], "--seeds", 1)
    assert "Left out of this report, but in the folder: weight-0-seed1, weight-0.5-clean-seed1" in fewer
    assert "weight-0.5-clean-seed1" in (tmp_path / "out/report.html").read_text()


def test_what_is_put_into_the_page_is_escaped() -> None:
    picture = {"text": 'of "mine"', "png": "AA=="}
    page = template().render(
        host="own", data="<script>mine</script>", seeds=1, runs=1, judging="", label="CMI", unit="nats",
        left_out="<i>none</i>", verdict="<u>",
        columns=("a < b",),
        tables=[{"views": "host", "rows": [("x & y",)], "curves": picture, "further": [(("c",), [("d & e",)])]}],
        seed=0, images=[picture], proxy="<b>",
        pool="training", embedding=picture, settings='{"a": "</pre>"}',
    )  # fmt: skip
    assert "<script>" not in page
    assert "<b>" not in page
    assert page.count("</pre>") == 1
    assert "<th>a &lt; b" in page
    assert "<td>x &amp; y" in page
    assert "<td>d &amp; e" in page
    assert "<i>none" not in page
    assert "<u>" not in page
    assert 'alt="of &#34;mine&#34;"' in page


class Spread(Term):
    """A term as somebody else would write one."""

    unit = "squared features"

    def __call__(self, features: torch.Tensor, groups: Groups) -> torch.Tensor:
        return (features - groups.mean(features)[groups.index]).square().sum(-1).mean()


@pytest.mark.filterwarnings("ignore:proxy .* is right on")
def test_another_term_is_recorded_and_named_everywhere(
    tmp_path: Path, pools: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(base._TERMS, "spread", Spread)
    monkeypatch.setattr(Spread, "name", "spread")
    monkeypatch.setattr(Spread, "label", "spread")
    given = ("--out", tmp_path / "out", "--proxies", pools[0], "--seeds", 1)
    output = command(*given, "--term", "spread")
    assert re.search(r"reaches +spread +spread held out", output)
    assert "spread in squared features, and over" in " ".join(output.split())
    result = json.loads((tmp_path / "out/compare.json").read_text())
    assert result["term"] == {"name": "spread", "label": "spread", "unit": "squared features"}
    made = load_set(tmp_path / "out/entries/weight-3-host-seed0/set-000004.pt")
    features = [proxy(made.images, "logit") for proxy in ProxyPool.load(pools[0])]
    values = [Spread()(each, base.group(made.labels, 20, "cpu")).item() for each in features]
    assert result["entries"][1]["checkpoints"][-1]["cmi"] == pytest.approx(sum(values) / 2, rel=1e-4)
    with pytest.raises(InputError, match=r"term \(spread there, cmi asked for\)"):
        command(*given)
    with pytest.raises(InputError, match="unknown term 'nothing'"):
        command("--out", tmp_path / "new", "--proxies", pools[0], "--term", "nothing")
    page = (tmp_path / "out/report.html").read_text()
    assert "with and without spread" in page
    assert "CMI" not in re.sub(r"base64,[^\"]*", "", page)


def test_records_without_a_term_are_of_cmi() -> None:
    assert term_of({}) == ("CMI", "nats")
    assert result_columns({"term": {"label": "X", "unit": "y"}})[-2:] == ("X", "X held out")


def test_without_the_packages_the_page_alone_is_left_out(
    tmp_path: Path, pools: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    output = command("--out", tmp_path / "out", "--proxies", pools[0], "--weights", "0", "--seeds", 1)
    assert output.count("report.html is left out: it needs matplotlib.") == 2
    assert "pip install 'ddplug[demo]'" in output
    assert (tmp_path / "out/compare.json").is_file()
    assert not (tmp_path / "out/report.html").exists()


def test_the_papers_weight_is_looked_up(tmp_path: Path, pools: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="the paper gives no weight for dm, digits, 2 images per class"):
        command("--out", tmp_path / "out", "--proxies", pools[0], "--weights", "paper")
    assert not (tmp_path / "out").exists(), "refused before anything is done"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "a comparison needs --proxies"),
        (("--proxies", "POOL", "--weights", "0,x"), "a weight is a number"),
        (("--proxies", "POOL", "--chunk", "few"), "chunk must be auto or a number"),
        (("--proxies", "POOL", "--draw", 9), "draw must be between 1 and the pool's size, 2"),
        (("--proxies", "POOL", "--arch", "convmet"), "unknown architecture 'convmet'"),
        (("--proxies", "POOL", "--ipc", 500), "fewer than ipc=500"),
        (("--proxies", "POOL", "--heldout", "nowhere"), "no pool at 'nowhere'"),
    ],
)
def test_bad_options(tmp_path: Path, pools: tuple[Path, Path], given: tuple[object, ...], said: str) -> None:
    with pytest.raises(DDPlugError, match=said):
        command("--out", tmp_path / "out", *(pools[0] if option == "POOL" else option for option in given))
    assert not (tmp_path / "out").exists()


# --- lines and sentences

CMI = "weight-1-host"


def record(arm: str, seed: int, accuracies: list[float], cmi: float, heldout: float | None) -> dict[str, Any]:
    point = {
        "iteration": 5, "accuracies": accuracies, "cmi": cmi, "cmi_heldout": heldout, "recognised": None,
        "confidence": None, "lambda": 2.0, "share": 1.0,
    }  # fmt: skip
    views, weight = (None, 0.0) if arm == "weight-0" else ("host", 1.0)
    return {
        "name": f"{arm}-seed{seed}",
        "arm": arm,
        "weight": weight,
        "views": views,
        "seed": seed,
        "checkpoints": [point],
    }


RECORDS = [
    record("weight-0", 3, [0.5, 0.6], 0.4, 0.2),
    record(CMI, 3, [0.58, 0.6], 0.1, 0.02),
    record("weight-0", 4, [0.5, 0.5], 0.4, None),
    record(CMI, 4, [0.5, 0.52], 0.3, None),
]


def test_a_line_for_every_run() -> None:
    """Differences to the baseline of the same seed; 0.04 and 0.01 have the mean 0.025, and 12.706 x 0.015 about it."""
    assert [standing(RECORDS[: count + 1], "CMI") for count in range(4)] == [
        "seed 3, weight 0: 55.00 %",
        "seed 3, CMI, weight 1: 59.00 %, +4.00 to weight 0, CMI x 0.10",
        "seed 4, weight 0: 50.00 %",
        "seed 4, CMI, weight 1: 51.00 %, +1.00 to weight 0 (so far +2.50 ± 19.06), CMI x 0.75",
    ]


def test_the_verdict_is_on_the_best_arm() -> None:
    worse = [record("weight-2-host", seed, [0.1], 0.1, None) for seed in (3, 4)]
    result = {"host": "own", "data": {"name": "digits"}, "entries": RECORDS, "summary": summary(RECORDS)}
    assert verdict(result) == (
        "CMI, weight 1, against weight 0 on own and digits: +2.50 ± 19.06 points of accuracy (95 % interval over 2 "
        "paired seeds, which includes 0)."
    )
    several = {**result, "summary": summary([*RECORDS, *worse])}
    assert verdict(several).startswith("The best of 2 arms, CMI, weight 1, against")
    assert "by chance" not in verdict(several)
    sure = [{**row, "interval": 0.01} for row in several["summary"]]
    assert verdict({**several, "summary": sure}).endswith(
        "excludes 0). The best of several may do so by chance: confirm it on other seeds."
    )
    one = {**result, "entries": RECORDS[:2], "summary": summary(RECORDS[:2])}
    assert "+4.00 points of accuracy (no interval, which takes several paired seeds)." in verdict(one)
    assert verdict({**result, "summary": summary(RECORDS[:1])}).startswith("Only weight 0 was run")


def test_arms_have_names() -> None:
    row = {"weight": 0.5, "views": "clean"}
    assert arm_name(row, "CMI") == "CMI on clean views, weight 0.5"
    assert arm_name({**row, "views": "host", "term": "mim", "weight": "paper"}, "CMI") == "mim, weight paper"
