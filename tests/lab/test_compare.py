"""`ddplug compare`: pairs that differ by CMI only, kills at every moment, refusals, statistics, the page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from ddplug import ProxyPool
from ddplug.datasets.images import ImageData
from ddplug.datasets.synthetic import load_set
from ddplug.errors import DataError, InputError
from ddplug.lab.compare import compare
from ddplug.lab.dm_trainer import DistributionMatching
from ddplug.lab.judge import Judge, judge_seed
from ddplug.lab.measure import measure
from ddplug.lab.own_trainer import Own
from ddplug.lab.plan import Arm, Run, Settings, arms, read_weights
from ddplug.lab.tables import left_out
from ddplug.utils.files import write_json

# Networks of an epoch or none are enough for what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:proxy .* is right on")

pytest.importorskip("sklearn")

TINY = Settings(
    ipc=2, iterations=6, batch_real=4, strategy="color_crop_scale", width=8, checkpoints=2, runs=2, epochs=2,
    regularizer={"calibrate": 2},
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pools(trained: Callable[..., Path]) -> tuple[Path, Path]:
    """Folders of the training pool and of the held-out one."""
    return trained(2), trained(1, 50)


@pytest.fixture
def run(digits: ImageData, pools: tuple[Path, Path]) -> Any:
    """`compare` with the tiny settings."""

    def call(
        out: Path,
        weights: tuple[float | str, ...] = (0.0, 1.0),
        seeds: int = 1,
        settings: Settings = TINY,
        views: tuple[str, ...] = ("host",),
        heldout: bool = True,
        proxies: Path = pools[0],
        **more: Any,
    ) -> dict[str, Any]:
        pool = ProxyPool.load(proxies)
        judge = Judge(digits, settings, pool, ProxyPool.load(pools[1]) if heldout else None, CPU)
        return compare(Own(digits, settings, pool, CPU), arms(weights, views), seeds, out, judge, **more)

    return call


def results(out: Path) -> dict[str, Any]:
    """What `compare.json` says, times apart, and with them the checksum."""
    content = json.loads((out / "compare.json").read_text())
    del content["times"], content["sha256"]
    return content  # type: ignore[no-any-return]


def images(out: Path, entry: str, iteration: int = 6) -> torch.Tensor:
    return load_set(out / "entries" / entry / f"set-{iteration:06d}.pt").images


# --- what is compared


def test_the_baseline_is_one_arm_whatever_the_views() -> None:
    made = arms([0.0, 0.1, "paper", 0.1], ["host", "clean"])
    assert [arm.name for arm in made] == [
        "weight-0", "weight-0.1-host", "weight-paper-host", "weight-0.1-clean", "weight-paper-clean",
    ]  # fmt: skip
    assert arms([0.5])[0].baseline, "the baseline is run whether it is asked for or not"
    assert [arm.weight for arm in arms([0.1, 0.1 + 1e-15])] == [0.0, 0.1], "of one name there is one arm"
    assert Run(Arm(1e-7, "clean"), 3).name == "weight-1e-07-clean-seed3"


def test_weights_of_a_command_line() -> None:
    assert read_weights("0, 0.1,paper") == [0.0, 0.1, "paper"]
    for text in ("", "0,x", "-1", "nan", "0;1"):
        with pytest.raises(InputError, match="weight"):
            read_weights(text)


def test_points_end_at_the_end() -> None:
    assert replace(TINY, iterations=300, checkpoints=5).points == [60, 120, 180, 240, 300]
    assert replace(TINY, iterations=7, checkpoints=3).points == [2, 4, 7]


# --- pairs


def test_arms_of_one_seed_differ_by_cmi_only(
    tmp_path: Path, run: Any, pools: tuple[Path, Path], untouched: None
) -> None:
    settings = replace(TINY, iterations=2, checkpoints=2, regularizer={"calibrate": 1})
    result = run(tmp_path, (0.0, 1e-12, 1.0), 2, settings, ("host", "clean"))
    for seed in (0, 1):
        first = images(tmp_path, f"weight-0-seed{seed}", 1)
        for arm in result["arms"][1:]:
            # A share is not known before the first round is over, so the first step is the host's own in every arm.
            assert torch.equal(images(tmp_path, f"{arm}-seed{seed}", 1), first), arm
        last = images(tmp_path, f"weight-0-seed{seed}", 2)
        assert torch.allclose(images(tmp_path, f"weight-1e-12-host-seed{seed}", 2), last, atol=1e-6)
        assert not torch.allclose(images(tmp_path, f"weight-1-host-seed{seed}", 2), last, atol=1e-4)
        host, clean = (images(tmp_path, f"weight-1-{views}-seed{seed}", 2) for views in ("host", "clean"))
        assert not torch.equal(host, clean)
    assert not torch.equal(images(tmp_path, "weight-0-seed0", 2), images(tmp_path, "weight-0-seed1", 2))
    by_name = {entry["name"]: entry["checkpoints"] for entry in result["entries"]}
    at_start = [by_name[f"{arm}-seed0"][0]["accuracies"] for arm in result["arms"]]
    assert all(scores == at_start[0] for scores in at_start), "equal sets are judged by equal networks"
    assert by_name["weight-0-seed0"][0]["accuracies"] != by_name["weight-0-seed1"][0]["accuracies"]
    made = load_set(tmp_path / "entries/weight-1-host-seed0/set-000002.pt")
    measured = measure(ProxyPool.load(pools[1]), made.images, made.labels)
    found = by_name["weight-1-host-seed0"][-1]
    assert (found["recognised"], found["confidence"]) == (measured.recognised, measured.confidence), "held out"


def test_every_seed_has_its_own_judges() -> None:
    assert len({judge_seed(seed, run) for seed in range(20) for run in range(100)}) == 2000


def test_the_same_call_elsewhere_gives_the_same_results(tmp_path: Path, run: Any) -> None:
    for folder in ("one", "two"):
        run(tmp_path / folder)
    assert (tmp_path / "one/compare.json").read_text() != (tmp_path / "two/compare.json").read_text(), "times differ"
    assert results(tmp_path / "one") == results(tmp_path / "two")


def test_the_baseline_is_the_trainer_by_itself(tmp_path: Path, run: Any, digits: ImageData) -> None:
    run(tmp_path)
    trainer = DistributionMatching(
        digits, 2, strategy="color_crop_scale", batch_real=4, options={"width": 8}, seed=0
    )  # fmt: skip
    assert torch.equal(trainer.run(6), images(tmp_path, "weight-0-seed0"))


@pytest.mark.parametrize("views", ["host", "clean"])
def test_the_share_is_that_of_the_last_rounds(views: str, tmp_path: Path, run: Any, monkeypatch: Any) -> None:
    handles, attached = list[Any](), Own._attached

    def note(*given: Any) -> Any:
        handles.append(attached(*given))
        return handles[-1]

    monkeypatch.setattr(Own, "_attached", note)
    settings = replace(TINY, iterations=6, checkpoints=2, regularizer={"weighting": "absolute"})
    entries = run(tmp_path, (300.0,), settings=settings, views=(views,))["entries"]
    assert [point["share"] for point in entries[0]["checkpoints"]] == [None, None]
    shares = handles[1].history.share
    first, last = (point["share"] for point in entries[1]["checkpoints"])
    assert (first, last) == (pytest.approx(fmean(shares[:3])), pytest.approx(fmean(shares[2:])))
    assert last > 0.01


def test_a_relative_weight_is_about_the_share_measured(tmp_path: Path, run: Any) -> None:
    settings = replace(TINY, iterations=10, checkpoints=1, regularizer={"calibrate": 8})
    (_, entry) = run(tmp_path, (0.3,), settings=settings)["entries"]
    assert entry["checkpoints"][-1]["share"] == pytest.approx(0.3, rel=0.8)
    assert entry["checkpoints"][-1]["lambda"] > 0


# --- resuming


def test_a_trainer_goes_on_from_its_state(digits: ImageData) -> None:
    def trainer() -> DistributionMatching:
        return DistributionMatching(digits, 2, batch_real=4, options={"width": 8}, seed=3)

    through, first, second = trainer(), trainer(), trainer()
    through.run(5)
    first.run(2)
    state = first.state_dict()
    first.run(1)
    second.load_state_dict(state)
    assert torch.equal(second.run(3), through.images)
    assert second.iteration == 5
    with pytest.raises(InputError, match="it lacks dsa"):
        second.load_state_dict({key: value for key, value in state.items() if key != "dsa"})
    with pytest.raises(InputError, match="into a trainer of the same data"):
        DistributionMatching(digits, 3, seed=3).load_state_dict(state)


def test_images_that_begin_as_noise(digits: ImageData) -> None:
    """Of the trainer's own seed, and with the labels that real ones have."""
    real, *noise = (
        DistributionMatching(digits, 3, batch_real=4, options={"width": 8}, seed=seed, init=init)
        for seed, init in ((3, "real"), (3, "noise"), (3, "noise"), (4, "noise"))
    )
    assert torch.equal(noise[0].images, noise[1].images)
    assert not torch.equal(noise[0].images, noise[2].images)
    assert torch.equal(noise[0].labels, real.labels)
    # 1920 numbers: the mean is within 5 standard errors, 1 / sqrt(1920), the spread within 5 of 1 / sqrt(2 * 1920).
    assert abs(noise[0].images.mean().item()) < 0.12
    assert abs(noise[0].images.std().item() - 1) < 0.09
    with pytest.raises(InputError, match="init must be real or noise, got 'zero'"):
        replace(TINY, init="zero")  # type: ignore[arg-type]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import torch
    import torch._dynamo  # every child would import it for itself
    torch.set_num_threads(1)
    from ddplug import ProxyPool, datasets
    from ddplug.lab.compare import compare
    from ddplug.lab.own_trainer import Own
    from ddplug.lab.judge import Judge, judge_seed
    from ddplug.lab.plan import Settings, arms

    out, pool, heldout, settings = sys.argv[1:]
    data, pool, heldout = datasets.load("digits"), ProxyPool.load(pool), ProxyPool.load(heldout)
    settings, cpu = eval(settings), torch.device("cpu")
    replace, kills = os.replace, 0
    while True:
        child = os.fork()
        if child == 0:
            left = 2 + kills % 3
            def killed(source, target):
                global left
                left -= 1
                if left == 0 and kills % 2:
                    os.kill(os.getpid(), signal.SIGKILL)  # with the file still under its temporary name
                replace(source, target)
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            os.replace = killed
            distil = Own(data, settings, pool, cpu, save_every=0)
            compare(distil, arms([1.0], ["host", "clean"]), 2, out, Judge(data, settings, pool, heldout, cpu))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status == 0:
            break
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
        kills += 1
        assert kills < 150, "it gets nowhere"
    print(kills)
"""


def test_killed_again_and_again_it_ends_with_the_same_results(
    tmp_path: Path, run: Any, pools: tuple[Path, Path]
) -> None:
    """Every child is killed at its second, third or fourth file, before or after the file is in place."""
    settings = replace(TINY, epochs=1, regularizer={"calibrate": 2, "draw": 2, "every": 2})
    run(tmp_path / "whole", (1.0,), 2, settings, ("host", "clean"))
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "killed"), *map(str, pools), repr(settings)],
        capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 20
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    times = json.loads((tmp_path / "killed/compare.json").read_text())["times"]
    assert all(point["seconds"] > 0 for points in times.values() for point in points)
    assert not list((tmp_path / "killed").rglob("running.pt"))


def test_more_seeds_weights_and_views_use_what_is_there(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, (0.0, 1.0), 1)
    distilled, judged = [], []
    attached, train = Own._attached, Judge._train

    def note_entry(own: Own, trainer: DistributionMatching, run: Run) -> Any:
        distilled.append(run.seed)
        return attached(own, trainer, run)

    def note_network(judge: Judge, *arguments: Any) -> float:
        judged.append(arguments)
        return train(judge, *arguments)

    monkeypatch.setattr(Own, "_attached", note_entry)
    monkeypatch.setattr(Judge, "_train", note_network)
    run(tmp_path, (0.0, 1.0), 1)
    assert not distilled
    assert not judged
    run(tmp_path, (0.0, 1.0, 2.0), 2)
    assert distilled == [0, 1, 1, 1], "a new weight of the old seed, and the new seed"
    assert len(judged) == 4 * 2 * 2
    more = results(tmp_path)
    run(tmp_path / "anew", (0.0, 1.0, 2.0), 2)
    assert results(tmp_path / "anew") == more
    distilled.clear()
    run(tmp_path, (0.0, 1.0), 2, views=("host", "clean"))
    assert distilled == [0, 1]


# --- refusals


def test_other_settings_are_refused_and_named(tmp_path: Path, run: Any, pools: tuple[Path, Path]) -> None:
    run(tmp_path, (), 1)
    before = (tmp_path / "compare.json").read_text()
    other = replace(TINY, epochs=3, regularizer={"calibrate": 4})
    with pytest.raises(InputError, match=r"epochs \(2 there, 3 asked for\); calibrate \(2 there, 4 asked for\)"):
        run(tmp_path, (), 1, other)
    with pytest.raises(InputError, match="heldout"):
        run(tmp_path, (), 1, heldout=False)
    with pytest.raises(InputError, match=r"proxies \(.* there, .* asked for\)\."):
        run(tmp_path, (), 1, proxies=pools[1])
    with pytest.raises(InputError, match=r"host \(own there, dm asked for\)"):
        run(tmp_path, (), 1, host="dm")
    assert (tmp_path / "compare.json").read_text() == before


@pytest.mark.parametrize("key", ["ddplug", "torch"])
def test_entries_of_another_version_are_refused(key: str, tmp_path: Path, run: Any) -> None:
    run(tmp_path, (), 1)
    path = tmp_path / "settings.json"
    noted = json.loads(path.read_text())
    assert results(tmp_path)[key] == noted[key] != ""
    write_json({**noted, key: "0.0.1"}, path)
    with pytest.raises(InputError, match=rf"other settings: {key} \(0\.0\.1 there, .* asked for\)\."):
        run(tmp_path, (), 1)
    del noted["settings"]["epochs"]
    write_json(noted, path)
    with pytest.raises(InputError, match=r"epochs \(None there, 2 asked for\)"):
        run(tmp_path, (), 1)


HOLDS = """
    import sys
    from pathlib import Path
    from ddplug.utils.files import exclusive_lock

    with exclusive_lock(Path(sys.argv[1]), Path("it")):
        print("held", flush=True)
        sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_one_process_at_a_time(tmp_path: Path, run: Any) -> None:
    """Held by another process; by none after it was killed, though its file is still there."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", textwrap.dedent(HOLDS), str(out / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"another process is at work in '{re.escape(str(out))}'"):
            run(out, (), 1)
        assert [path.name for path in out.iterdir()] == [".lock"]
        other.kill()
    assert (out / ".lock").is_file()
    run(out, (), 1)
    assert not (out / ".lock").exists()


def test_what_is_there_and_not_in_the_report_is_named(tmp_path: Path, run: Any) -> None:
    assert run(tmp_path, (1.0,), 2)["left_out"] == []
    (tmp_path / "entries/weight-5-host-seed0").mkdir()
    result = run(tmp_path, (2.0,), 1)
    names = ["weight-0-seed1", "weight-1-host-seed0", "weight-1-host-seed1"]
    assert results(tmp_path)["left_out"] == names, "not the one that was never finished"
    assert (said := left_out(result)) is not None
    assert ", ".join(names) in said
    assert left_out({**result, "left_out": []}) is None


def test_a_folder_of_something_else_is_refused(tmp_path: Path, run: Any) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="no folder of a comparison"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_damaged_files_are_named(tmp_path: Path, run: Any) -> None:
    run(tmp_path, (), 1)
    folder = tmp_path / "entries/weight-0-seed0"
    (folder / "set-000006.json").write_text("{")
    with pytest.raises(DataError, match=r"set-000006.json' cannot be read .*Delete it"):
        run(tmp_path, (), 1)
    (folder / "distilled.json").unlink()
    (folder / "running.pt").write_bytes(b"x")
    with pytest.raises(DataError, match=r"running.pt' cannot be read .*Delete it"):
        run(tmp_path, (), 1)


@pytest.mark.parametrize(
    ("changed", "weight", "said"),
    [
        ({"ipc": 1}, 1.0, "with one image per class .* weight-1-host would be the baseline"),
        ({"ipc": 1, "regularizer": {"calibrate": 2, "views_per_image": 2}}, 1.0, None),
        ({"ipc": 1}, 0.0, None),
        ({"regularizer": {"calibrate": 6}}, 1.0, r"first 6 rounds, and these runs have 6"),
        ({"regularizer": {"calibrate": 5}}, 1.0, None),
        ({"regularizer": {"calibrate": 2, "every": 3}}, 1.0, "and these runs have 2"),
        ({"iterations": 7, "regularizer": {"calibrate": 2, "every": 3}}, 1.0, None),
        ({"regularizer": {}}, 1.0, r"first 10 rounds"),
        ({"regularizer": {}}, 0.0, None),
        ({"regularizer": {"weighting": "absolute"}}, 1.0, None),
    ],
)
def test_weights_that_would_compare_nothing(
    changed: dict[str, Any], weight: float, said: str | None, digits: ImageData, pools: tuple[Path, Path]
) -> None:
    settings, pool = replace(TINY, **changed), ProxyPool.load(pools[0])
    judge = Judge(digits, settings, pool, None, CPU)
    with pytest.raises(InputError, match=said) if said else nullcontext():
        Own(digits, settings, pool, CPU).check(arms([weight]), judge)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"checkpoints": 7}, "7 checkpoints do not fit into 6 iterations"),
        ({"judge_lr": 0.0}, "judge_lr must be more than 0"),
        ({"lr": float("inf")}, "lr must be more than 0 and finite, got inf"),
        ({"regularizer": {"wait": 1}}, "unknown options of the regulariser, wait"),
    ],
)
def test_settings_that_mean_nothing(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        replace(TINY, **given)


def test_no_seeds_and_no_views(tmp_path: Path, run: Any) -> None:
    with pytest.raises(InputError, match="seeds must be at least 1"):
        run(tmp_path / "out", seeds=0)
    with pytest.raises(InputError, match="views must be host, clean or both, got dirty"):
        run(tmp_path / "out", views=("dirty",))
    assert not (tmp_path / "out").exists()
