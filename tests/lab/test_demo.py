"""The demo: a comparison under a preset, its table and pictures, and that it is resumed."""

from __future__ import annotations

import json
import math
import re
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
from ddplug.lab.demo import DIGITS, PRESETS, Preset, run_demo
from ddplug.lab.judging import Recipe
from ddplug.lab.measure import measure
from ddplug.lab.plan import Settings
from ddplug.networks.zoo import build, seeded

# Networks of an epoch or none are enough for what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:proxy .* is right on")

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

TINY = Preset(
    Settings(
        ipc=3, iterations=4, batch_real=4, width=8, strategy="color_crop", checkpoints=2, judge_last=True, runs=2,
        epochs=2, regularizer={"calibrate": 1},
    ),
    seeds=2, proxy_width=8, proxies=1, held_out=1, proxy_epochs=1,
)  # fmt: skip
DEMO = ("demo", "--data", "digits", "--seeds", "1", "--ipc", "2", "--device", "cpu")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "digits", TINY)


def demo(*arguments: object) -> str:
    """What the command printed; it must end well."""
    result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(cli.app, [*map(str, (*DEMO, *arguments))])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def compared(out: Path) -> dict[str, Any]:
    """What its `compare.json` says, times apart."""
    content = json.loads((out / "comparison/compare.json").read_text())
    del content["times"], content["sha256"]
    return content  # type: ignore[no-any-return]


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def no(what: str) -> Callable[..., None]:
    return lambda *_, **__: pytest.fail(f"{what} again")


def test_a_table_a_picture_and_a_comparison(tmp_path: Path, digits: ImageData, untouched: None) -> None:
    from PIL import Image

    shown = demo("--out", tmp_path / "out")
    assert re.search(r"without CMI .*%.*s", shown)
    assert re.search(r"with CMI .*%.*s", shown)
    assert re.search(r"difference .*[+-]\d+\.\d\d points", shown)
    assert "2 images per class, 4 iterations" in shown
    assert re.search(r"\nseed 0, weight 0: \d+\.\d\d %\nseed 0, CMI, weight 1: \d+\.\d\d %, [+-]\d", shown)
    assert re.search(r"\nCMI, weight 1, against weight 0 on own and digits: [+-]\d+\.\d\d points of accuracy", shown)
    assert f"{len(digits.train_images)} training" in shown
    assert str(tmp_path / "out/demo.png") in shown
    with Image.open(tmp_path / "out/demo.png") as picture:
        picture.load()
    kept = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert kept == ["comparison", "demo.png", "learning.json", "proxies"]


def test_the_table_holds_the_numbers_of_the_runs(tmp_path: Path, digits: ImageData) -> None:
    shown = demo("--out", tmp_path)
    result, means = compared(tmp_path), []
    for run, name in zip(result["entries"], ("without CMI", "with CMI"), strict=True):
        *before, last = run["checkpoints"]
        assert [point["accuracies"] for point in before] == [[]], "only the last set is judged"
        assert all(point["cmi_heldout"] > 0 for point in before)
        means.append(100 * sum(last["accuracies"]) / 2)
        row = next(line for line in shown.splitlines() if f" {name}" in line and "%" in line)
        for number in (f"{means[-1]:.2f}", f"{last['cmi_heldout']:.3e}"):
            assert number in row
        made = load_set(tmp_path / "comparison/entries" / run["name"] / "set-000004.pt")
        heldout = ProxyPool(ProxyPool.load(tmp_path / "proxies").proxies[-1:])
        assert last["cmi_heldout"] == pytest.approx(
            measure(heldout, made.images, made.labels, representation="logit").cmi, rel=1e-5
        )
        assert last["cmi"] != last["cmi_heldout"]
    assert f"{means[1] - means[0]:+.2f} points" in shown
    images = [load_set(path).images for path in sorted((tmp_path / "comparison/entries").glob("*/set-000004.pt"))]
    assert not torch.equal(*images)


def test_a_second_demo_trains_nothing_and_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = demo("--out", tmp_path)
    monkeypatch.setattr("ddplug.proxies.pretrain.fit", no("trained"))
    monkeypatch.setattr(Recipe, "judge", no("judged"))
    monkeypatch.setattr("ddplug.lab.dm_trainer.DistributionMatching.step", no("distilled"))
    second = demo("--out", tmp_path)
    rows = [line for line in first.splitlines() if "CMI" in line or "difference" in line]
    assert len(rows) > 3
    assert all(row in second for row in rows)


def test_a_demos_folder_is_one_for_plot_and_for_proxies(tmp_path: Path) -> None:
    demo("--out", tmp_path / "out")
    result = CliRunner().invoke(cli.app, ["plot", str(tmp_path / "out"), "--out", str(tmp_path / "drawn.png")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "drawn.png").is_file()
    assert len(ProxyPool.load(tmp_path / "out")) == 2


def test_an_interrupted_demo_ends_with_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo("--out", tmp_path / "whole")
    real, calls = Recipe.judge, list[None]()

    def third_is_interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return interrupt() if len(calls) == 3 else real(*args, **kwargs)

    monkeypatch.setattr(Recipe, "judge", third_is_interrupted)
    result = CliRunner().invoke(cli.app, [*map(str, (*DEMO, "--out", tmp_path / "cut"))])
    assert result.exit_code == 130 or isinstance(result.exception, KeyboardInterrupt)
    assert not (tmp_path / "cut/comparison/compare.json").exists()
    monkeypatch.setattr("ddplug.proxies.pretrain.fit", no("trained"))
    demo("--out", tmp_path / "cut")
    assert len(calls) == 7, "only the networks that were missing"
    assert compared(tmp_path / "cut") == compared(tmp_path / "whole")


def test_other_settings_are_refused_and_another_weight_is_added(tmp_path: Path) -> None:
    demo("--out", tmp_path)
    with pytest.raises(InputError, match=r"ipc \(2 there, 3 asked for\)"):
        demo("--ipc", 3, "--out", tmp_path)
    demo("--weight", 2, "--out", tmp_path)
    assert compared(tmp_path)["left_out"] == ["weight-1-host-seed0"]


def test_a_pool_of_the_users_is_taken_and_part_of_it_only_measures(
    tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddplug.lab.demo.pretrain", no("trained"))
    networks = []
    for seed in range(2):
        with seeded(seed):
            networks.append(build("convnet", channels=1, size=(8, 8), width=8))
    pool = ProxyPool.from_modules(networks)
    preset = replace(TINY, seeds=1).changed(ipc=2, iterations=2)
    result = run_demo(digits, tmp_path, preset, pool=pool).result
    assert (result["proxies"], result["heldout"]) == tuple([proxy.digest()] for proxy in pool)
    with pytest.raises(InputError, match="needs at least one more, got a pool of 1"):
        run_demo(digits, tmp_path / "other", preset, pool=ProxyPool(pool.proxies[:1], pool.info))


def test_the_ratio_of_cmi_and_its_interval(tmp_path: Path) -> None:
    shown = demo("--out", tmp_path, "--seeds", 2)
    last = [run["checkpoints"][-1]["cmi_heldout"] for run in compared(tmp_path)["entries"]]
    logs = [math.log(last[1] / last[0]), math.log(last[3] / last[2])]
    # t with one degree of freedom, times the deviation of two, |a - b| / sqrt 2, over sqrt 2.
    middle, half = sum(logs) / 2, 12.706205 * abs(logs[0] - logs[1]) / 2
    ends = [math.exp(middle + part * half) for part in (0, -1, 1)]
    assert "x {:.2f} ({:.2f} to {:.2f})".format(*ends) in shown


def test_presets() -> None:
    assert DIGITS.changed(iterations=5, weight=2.0).settings.checkpoints == 5
    assert DIGITS.changed(ipc=None) == DIGITS
    assert DIGITS.settings.judge_last
