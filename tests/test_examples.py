"""The examples run as they are shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddplug.datasets.images import load
from ddplug.proxies.pretrain import pretrain

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["own_loop.py", "--steps", "12", "--proxy-epochs", "1"], "step 10: matching loss"),
        (["attach_to_a_trainer.py", "--iterations", "12", "--proxies", "pool"], "CMI of the views"),
        (["own_host.py", "--steps", "12"], "weight 0.5: CMI"),
    ],
)
def test_example(arguments: list[str], says: str, tmp_path: Path) -> None:
    if "pool" in arguments:
        pretrain(load("digits"), tmp_path / "pool", count=1, epochs=1, options={"width": 8}, progress=False)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / arguments[0]), *arguments[1:]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
    assert "ddplug: lambda = " in done.stdout
