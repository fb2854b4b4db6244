"""`ddplug compare` with an upstream host: what its process is told, what is kept, and the world without chance."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddplug import ProxyPool
from ddplug.attaching.registry import _ADAPTERS
from ddplug.datasets.images import ImageData
from ddplug.errors import DDPlugError, HostError, InputError
from ddplug.hosting import checkout as hosts
from ddplug.hosting.checkout import HostSpec
from ddplug.hosting.host import Host, comparable
from ddplug.hosting.shapes import DMLike
from ddplug.lab import deterministic as repeatable
from ddplug.lab.compare import compare
from ddplug.lab.deterministic import clock, seed_everything
from ddplug.lab.judge import Judge
from ddplug.lab.plan import Arm, Settings, arms
from ddplug.lab.upstream_host import Upstream
from ddplug.scripts.any_script import Unpatched

# Networks of an epoch or none are enough for what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:proxy .* is right on")

pytest.importorskip("sklearn")

TINY = Settings(
    width=8, runs=1, epochs=1, strategy="color_crop", arguments=("--Iteration", "4"), regularizer={"calibrate": 2}
)

HOST = """
    import json, os, sys, time, pathlib, torch
    given = json.loads(sys.argv[1])
    arguments = given["arguments"]
    folder = pathlib.Path(arguments[arguments.index("--save_path") + 1])
    ours = given["ours"]
    with open(pathlib.Path(sys.argv[0]).with_name("calls.txt"), "a") as calls:
        calls.write(json.dumps({"seed": given["seed"], "must": given["must"], **ours}) + "\\n")
    print("the host at work", os.environ.get("WANDB_MODE"))
    if pathlib.Path(sys.argv[0]).with_name("broken").exists():
        sys.exit("no such luck")
    generator = torch.Generator().manual_seed(given["seed"])
    images = torch.randn(20, 1, 8, 8, generator=generator) * (1 - 0.1 * float(ours["weight"]))
    torch.save({"data": [[images, torch.arange(10).repeat_interleave(2)]], "accs_all_exps": {}}, folder / "res_x.pt")
    if float(ours["weight"]):
        (folder / "cmi_x.json").write_text(json.dumps({"lambda": 7.0, "skipped": 1, "rounds": 5}))
    pathlib.Path(given["times"]).write_text(json.dumps({"seconds": 2.5, "extra_memory": None}))
"""


class Told(Upstream):
    """A host that is not there, so its checkout is not looked at."""

    def check(self, arms: Any, judge: Judge) -> None:
        self._options()


@pytest.fixture(scope="module")
def pool(trained: Callable[..., Path]) -> Path:
    return trained(1)


@pytest.fixture
def run(digits: ImageData, pool: Path, tmp_path: Path) -> Any:
    """A comparison with a script in the place of the host's process."""
    script = tmp_path / "host.py"
    script.write_text(textwrap.dedent(HOST))

    def call(weights: tuple[float, ...] = (0.5,), seeds: int = 2, settings: Settings = TINY) -> dict[str, Any]:
        distil = Told(hosts.load("dm"), tmp_path, pool, settings, runner=(sys.executable, str(script)))
        judge = Judge(digits, settings, ProxyPool.load(pool), None, torch.device("cpu"))
        return compare(distil, arms(weights), seeds, tmp_path / "out", judge, host="dm")

    return call


def calls(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "calls.txt").read_text().splitlines()]


def test_a_host_is_run_once_per_entry_and_judged_like_our_own(run: Any, tmp_path: Path, pool: Path) -> None:
    result = run()
    assert [(call["seed"], call["weight"], call["must"]) for call in calls(tmp_path)] == [
        (0, 0, False), (0, 0.5, True), (1, 0, False), (1, 0.5, True),
    ]  # fmt: skip
    baseline, arm = calls(tmp_path)[2:]
    assert baseline.keys() == {"seed", "must", "weight"}, "the baseline is the host alone"
    assert arm == {
        "seed": 1, "must": True, "weight": 0.5, "views": "host", "proxies": str(pool.resolve()), "calibrate": 2,
    }  # fmt: skip
    first, second = result["entries"][:2]
    assert [point["iteration"] for point in second["checkpoints"]] == [5], "the host takes one step more than it says"
    assert (first["checkpoints"][0]["lambda"], first["skipped"]) == (None, 0)
    assert (second["checkpoints"][0]["lambda"], second["skipped"]) == (7.0, 1)
    assert result["times"]["weight-0-seed1"] == [{"iteration": 5, "seconds": 2.5, "extra_memory": None}]
    assert result["settings"]["arguments"] == ("--Iteration", "4")
    assert "iterations" not in result["settings"], "those of our own trainer say nothing here"
    kept = tmp_path / "out/entries/weight-0.5-host-seed1/host"
    assert (kept / "host.log").read_text() == "the host at work None\n"
    before = (tmp_path / "out/compare.json").read_text()
    run()
    assert len(calls(tmp_path)) == 4
    assert (tmp_path / "out/compare.json").read_text() == before
    run(seeds=3)
    assert [(call["seed"], call["weight"]) for call in calls(tmp_path)[4:]] == [(2, 0), (2, 0.5)]


def test_a_host_that_fails_is_named_and_can_be_run_again(run: Any, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    with pytest.raises(HostError, match=r"(?s)dm ended with status 1 in run weight-0-seed0.*no such luck"):
        run()
    (tmp_path / "broken").unlink()
    assert len(run()["entries"]) == 4
    assert not list((tmp_path / "out").rglob(".host-*")), "what the failed run left is gone"


def test_a_run_that_ended_well_is_not_repeated_if_we_were_killed_after_it(run: Any, tmp_path: Path) -> None:
    run()
    before = (tmp_path / "out/compare.json").read_text()
    entry = tmp_path / "out/entries/weight-0.5-host-seed0"
    for made in ("distilled.json", "set-000005.pt", "set-000005.json"):
        (entry / made).unlink()
    run()
    assert len(calls(tmp_path)) == 4
    assert (tmp_path / "out/compare.json").read_text() == before


class Patched(HostSpec):
    """A host whose checkout is the right one, whatever it is."""

    def patched(self, repo: Path) -> dict[str, bytes]:
        return {}


@pytest.mark.parametrize(
    ("host", "arguments", "weights", "changed", "said"),
    [
        ("dm", "", (0.0,), {}, r"dm would distil cifar10 \(its --dataset\), .* judged on digits"),
        ("dm", "--dataset MNIST", (0.0,), {}, "dm would distil mnist"),
        ("dm", "--dataset=Digits", (0.5,), {}, None),
        ("dm", "--dataset Digits", ("paper",), {}, "no weight for dm, digits, 50 images per class"),
        ("dsa", "--dataset Digits --method DSA --ipc 10", ("paper",), {}, "no weight for dsa, digits, 10 images"),
        ("dsa", "--dataset Digits", (0.5,), {}, "with one image per class"),
        ("dsa", "--dataset Digits", (0.0,), {}, None),
        ("dm", "--dataset Digits --ipc=1", (0.5,), {}, "with one image per class"),
        ("dm", "--dataset Digits --ipc many", (0.5,), {}, "argument --ipc: invalid int value: 'many'"),
        ("dm", "--dataset Digits", (0.5,), {"draw": 2}, "draw must be between 1 and the pool's size, 1"),
        ("dm", "--dataset Digits", (0.5,), {"representation": "pixels"}, "unknown representation 'pixels'"),
        ("dm", "--dataset Digits", (0.5,), {"temperature": -1.0}, "temperature"),
    ],
)
def test_what_would_fail_after_a_hosts_run_fails_before_it(
    host: str,
    arguments: str,
    weights: tuple[float | str, ...],
    changed: dict[str, Any],
    said: str | None,
    digits: ImageData,
    pool: Path,
    tmp_path: Path,
) -> None:
    spec = hosts.load(host)
    known = Patched(**{name: getattr(spec, name) for name in HostSpec.__dataclass_fields__})
    settings = replace(TINY, arguments=tuple(arguments.split()), regularizer=changed)
    judge = Judge(digits, settings, ProxyPool.load(pool), None, torch.device("cpu"))
    with pytest.raises(DDPlugError, match=said) if said else nullcontext():
        Upstream(known, tmp_path, pool, settings, download=True).check(arms(weights), judge)


@pytest.mark.parametrize(
    ("changed", "said"), [({"arch": "convmet"}, "unknown architecture 'convmet'"), ({"strategy": "swirl"}, "swirl")]
)
def test_no_host_is_run_for_judges_that_cannot_be(changed: dict[str, Any], said: str, run: Any, tmp_path: Path) -> None:
    with pytest.raises(DDPlugError, match=said):
        run(settings=replace(TINY, **changed))
    assert not (tmp_path / "calls.txt").exists()
    assert not (tmp_path / "out").exists()


def test_entries_of_another_checkout_are_refused(run: Any, tmp_path: Path) -> None:
    run()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/hook.py").write_text("pass")
    (tmp_path / "notes.txt").write_text("nobody's code")
    run()
    (tmp_path / "host.py").write_text((tmp_path / "host.py").read_text() + "# edited\n")
    with pytest.raises(InputError, match=r"other settings: checkout \(\w{16} there, \w{16} asked for\)"):
        run()
    assert len(calls(tmp_path)) == 4


def test_options_that_hosts_do_not_have_are_refused(
    run: Any, tmp_path: Path, digits: ImageData, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(arguments=(), regularizer={"compile": True})
    with pytest.raises(InputError, match="--compile cannot be set"):
        run(settings=settings)
    judge = Judge(digits, TINY, ProxyPool.load(pool), None, torch.device("cpu"))
    taken = Settings(arguments=("--save_path=here", "--num_eval", "3"))
    with pytest.raises(InputError, match="--save_path, --num_eval is set by `ddplug compare`"):
        Upstream(hosts.load("dm"), tmp_path, tmp_path, taken).check([Arm(0.0)], judge)
    monkeypatch.setitem(_ADAPTERS, "nobodys", type("Nobodys", (Host,), {"name": "nobodys"}))
    with pytest.raises(HostError, match="cannot find the sets of nobodys"):
        comparable("nobodys")


def test_hosts_report_nowhere_unless_they_are_told_to(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(DMLike, "quiet_env", {"WANDB_MODE": "disabled"})
    run(seeds=1)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(seeds=2)
    said = [(tmp_path / f"out/entries/weight-0-seed{seed}/host/host.log").read_text() for seed in (0, 1)]
    assert said == ["the host at work disabled\n", "the host at work offline\n"]


# --- the world without chance


def asks(folder: Path, times: int) -> list[float]:
    """What a file in `folder` is told when it asks for the time."""
    scope: dict[str, Any] = {"time": time, "times": times}
    exec(compile("told = [time.time() for _ in range(times)]", str(folder / "host.py"), "exec"), scope)
    return list(scope["told"])


def test_the_clock_depends_on_the_seed_and_the_calls_only(tmp_path: Path, untouched: None) -> None:
    real = time.time
    told = []
    for seed in (0, 0, 1):
        with clock(tmp_path, seed):
            first = asks(tmp_path, 3)
            assert abs(time.time() - real()) < 60, "others are told the time"
            told.append(first + asks(tmp_path, 2))
    assert told[0] == told[1] != told[2]
    assert all(0.5 <= later - earlier < 1.5 for earlier, later in zip(told[0], told[0][1:], strict=False))
    assert time.time is real


def test_a_host_works_in_the_folder_of_its_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def host(spec: HostSpec, repo: Path, arguments: list[str], must: bool) -> None:
        Path("left.txt").write_text(f"{spec.name} {arguments} {must}")

    (tmp_path / "entry").mkdir()
    (tmp_path / "user").mkdir()
    monkeypatch.chdir(tmp_path / "user")
    monkeypatch.setattr("ddplug.lab.deterministic.run", host)
    monkeypatch.setattr("ddplug.lab.deterministic.seed_everything", lambda seed: None)
    monkeypatch.setattr("ddplug.lab.deterministic._end_with_parent", lambda: None)
    given = {"host": "dm", "repo": str(tmp_path), "seed": 0, "must": True, "arguments": ["--ipc"],
             "ours": {"weight": 1.0}, "folder": str(tmp_path / "entry"),
             "times": str(tmp_path / "times.json")}  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["repeatable", json.dumps(given)])
    repeatable.main()
    assert (tmp_path / "entry/left.txt").read_text() == "dm ['--ipc', '--cmi_weight=1.0'] True"
    assert json.loads((tmp_path / "times.json").read_text())["seconds"] >= 0


def test_a_host_without_a_patch_is_run_by_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(repeatable, "run_unpatched", lambda *given, **flags: ran.append((*given, flags)))
    monkeypatch.setattr(Unpatched, "of_host", classmethod(lambda _, spec, repo: (spec.name, repo)))
    monkeypatch.setattr(repeatable, "seed_everything", lambda seed: None)
    monkeypatch.setattr(repeatable, "_end_with_parent", lambda: None)
    monkeypatch.chdir(tmp_path)
    for ours in ({"weight": 0}, {"weight": 1.0, "views": "host", "proxies": "pool", "seed": 4, "classes": 0}):
        given = {"host": "tesla", "repo": str(tmp_path), "seed": 0, "must": True, "arguments": ["--ipc"], "ours": ours,
                 "folder": str(tmp_path), "times": str(tmp_path / "times.json")}  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["repeatable", json.dumps(given)])
        repeatable.main()
    row = ("tesla", tmp_path)
    assert ran == [(row, ["--ipc"], 0, None, {}), (row, ["--ipc"], 1.0, "pool", {"seed": 4, "classes": None})]


def test_the_seed_is_everybodys() -> None:
    drawn = []
    state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    for seed in (3, 3, 4):
        seed_everything(seed)
        drawn.append((torch.rand(()).item(), np.random.rand(), random.random()))
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])
    random.setstate(state[2])
    assert drawn[0] == drawn[1]
    assert all(one != other for one, other in zip(drawn[0], drawn[2], strict=True))


def test_the_hosts_process_ends_with_the_one_that_started_it() -> None:
    code = "import threading, time; from ddplug.lab.deterministic import _end_with_parent as end; \
            threading.Thread(target=end, daemon=True).start(); print('up', flush=True); time.sleep(40)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"up\n"
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=20) == 1
