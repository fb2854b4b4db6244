"""A comparison that several processes make together is the one of a single process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from ddplug.lab.compare import _Work
from ddplug.lab.plan import BASELINE, Run
from ddplug.utils.files import HeldError
from ddplug.utils.processes import environment_of_one

pytest.importorskip("sklearn")

COMPARING = """
    import json, os, signal, sys, time, warnings
    from pathlib import Path
    warnings.simplefilter("ignore")  # networks of an epoch know little
    import torch
    import torch._dynamo  # every child would import it for itself
    from ddplug import ProxyPool, datasets
    from ddplug.lab.compare import compare
    from ddplug.lab.judge import Judge
    from ddplug.lab.own_trainer import Own
    from ddplug.lab.plan import Settings, arms
    from ddplug.proxies.pretrain import pretrain

    torch.set_num_threads(1)
    folder, cpu, data = Path(sys.argv[1]), torch.device("cpu"), datasets.load("digits")
    pool = pretrain(data, folder / "pool", count=1, epochs=1, options={"width": 8}, progress=False)
    settings = Settings(
        ipc=2, iterations=4, batch_real=4, strategy="color_crop", width=8, checkpoints=2, runs=2, epochs=1,
        regularizer={"calibrate": 2},
    )

    def made(out, first=0, **more):
        judge, distil = Judge(data, settings, pool, None, cpu), Own(data, settings, pool, cpu, save_every=0)
        return compare(distil, arms([1.0, 3.0]), 2, out, judge, first_seed=first, **more)

    def plain(result):
        return json.dumps({key: value for key, value in result.items() if key != "times"}, sort_keys=True)

    def written(out):
        content = json.loads((out / "compare.json").read_text())
        del content["sha256"]
        return plain(content)

    def fork(rank, out, expected, killed_at=None, **more):
        if (child := os.fork()) == 0:
            os.environ["RANK"] = str(rank)
            if killed_at is not None:
                replace = os.replace
                def killing(source, target):
                    replace(source, target)
                    if str(target).endswith(killed_at):
                        os.kill(os.getpid(), signal.SIGKILL)
                os.replace = killing
            os._exit(0 if plain(made(out, shared=True, **more)) == expected else 1)
        return child

    def together(size, out, expected, **more):
        os.environ["WORLD_SIZE"] = str(size)
        children = [fork(rank, out, expected, **more) for rank in range(size)]
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
"""

PARTS = {
    # The second of two is killed in its first run; the first makes what it left.
    "a process that is killed": """
        alone = plain(made(folder / "alone"))
        out = folder / "two"
        os.environ["WORLD_SIZE"] = "2"
        first, second = fork(0, out, alone), fork(1, out, alone, killed_at="running.pt")
        assert os.waitstatus_to_exitcode(os.waitpid(second, 0)[1]) == -signal.SIGKILL
        assert os.waitpid(first, 0)[1] == 0
        assert written(out) == alone == written(folder / "alone")
    """,
    # Both are killed after their first run, and three go on.
    "another number of processes": """
        alone, out = plain(made(folder / "alone")), folder / "three"
        assert together(2, out, alone, killed_at="distilled.json") == [-signal.SIGKILL] * 2
        done = {path: path.stat().st_mtime_ns for path in out.glob("entries/*/distilled.json")}
        assert len(done) == 2, "each began with a run of its own"
        assert together(3, out, alone) == [0, 0, 0]
        assert written(out) == alone
        assert all(path.stat().st_mtime_ns == when for path, when in done.items()), "what is there is not made again"
        left = [str(path) for path in out.rglob(".*")]
        assert left == [], left
    """,
    "a baseline": """
        source = folder / "alone"
        made(source)
        taken = plain(made(folder / "taken alone", baseline=source))
        assert "taken_from" in taken
        assert together(2, folder / "taken", taken, baseline=source) == [0, 0]
    """,
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("part", PARTS)
def test_several_processes_make_what_one_does(tmp_path: Path, part: str) -> None:
    program = textwrap.dedent(COMPARING) + textwrap.dedent(PARTS[part])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_run_is_made_by_one_process_at_a_time(tmp_path: Path) -> None:
    def run(size: int) -> AbstractContextManager[None]:
        return _Work(None, tmp_path, None, "own", 1, None, 0, size)._lock("run")  # type: ignore[arg-type]

    with run(2):
        with pytest.raises(HeldError), run(2):
            pass
        with run(1):  # whoever is alone has the whole folder
            pass


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_runs_are_divided(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process begins with runs of its own, and goes through all."""
    orders = []
    for rank in range(size):
        order: list[Any] = []
        monkeypatch.setattr(_Work, "_run", lambda _, run, order=order: order.append(run))
        runs: list[Any] = [Run(BASELINE, seed) for seed in range(7)]
        _Work(None, Path(), None, "own", 7, None, rank, size)._share(runs)  # type: ignore[arg-type]
        orders.append([run.seed for run in order])
    if size == 1:
        assert orders == [[]], "one process makes them in turn"
        return
    assert all(sorted(order) == list(range(7)) for order in orders)
    own = [order[: len(range(rank, 7, size))] for rank, order in enumerate(orders)]
    assert sorted(seed for part in own for seed in part) == list(range(7))


def test_a_hosts_own_process_is_no_part_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    before = environment_of_one()
    assert "CUDA_VISIBLE_DEVICES" not in before
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK"):
        monkeypatch.setenv(name, "1")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    for name in ("MASTER_ADDR", "MASTER_PORT", "ROLE_NAME", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.setenv(name, "x")
    assert environment_of_one() == {**before, "CUDA_VISIBLE_DEVICES": "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert environment_of_one() == {**before, "CUDA_VISIBLE_DEVICES": "6"}
