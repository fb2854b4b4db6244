"""Several processes of one run: gradient and lambda are those of one process with all images.

The checks are in `processes.py`, which runs all of them in as many processes at once.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ddplug

pytestmark = pytest.mark.numerical

Batch = tuple[Tensor, Tensor]
SCRIPT = Path(__file__).parent / "processes.py"
CHECKS = re.findall(r"^@check\ndef (\w+)", SCRIPT.read_text(), re.MULTILINE)
IN_FOUR = ["shards", "averaged_by_ddp", "replicated", "attached_to_the_optimizer", "a_process_ends"]
"""The others are as telling in two processes."""


@pytest.fixture(scope="module")
def results() -> Callable[[int], Path]:
    """The folder with what came of all checks in so many processes."""
    ran: dict[int, Path] = {}

    def of(size: int) -> Path:
        if size not in ran:
            ran[size] = Path(tempfile.mkdtemp())
            paths = os.pathsep.join([str(SCRIPT.parents[1]), str(SCRIPT.parents[2])])
            command = [sys.executable, str(SCRIPT), str(size), str(ran[size]), *(CHECKS if size == 2 else IN_FOUR)]
            subprocess.run(command, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, timeout=300)
        return ran[size]

    return of


@pytest.mark.parametrize(("size", "name"), [*((2, name) for name in CHECKS), *((4, name) for name in IN_FOUR)])
def test_processes(results: Callable[[int], Path], size: int, name: str) -> None:
    for rank in range(size):
        found = results(size) / f"{name}-{rank}"
        assert found.exists(), f"process {rank} did not come to the end of {name}"
        assert found.read_text() == "", f"in process {rank} of {size}"


def test_asked_for_and_not_there(pool: ddplug.ProxyPool, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without others it is a process like any; but if others were started, they were forgotten."""

    def gradient(processes: Any, **options: Any) -> Tensor:
        regularizer = ddplug.Regularizer(pool, 0.7, processes=processes, announce=lambda line: None, **options)
        leaf = batch[0].clone().requires_grad_()
        for _ in range(2):
            regularizer(leaf, batch[1]).square().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    assert torch.equal(gradient("sharded"), gradient("one"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ddplug.errors.InputError, match=r"torch.distributed is not initialised"):
        gradient("sharded")
    with pytest.raises(ddplug.errors.InputError, match="unknown processes='many'"):
        gradient("many")
