"""The examples run as they are shown."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ddplug.datasets.images import load
from ddplug.proxies.pretrain import pretrain

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(arguments: list[str], folder: Path) -> str:
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / arguments[0]), *arguments[1:]],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # In a few steps a proxy learns little, which is rightly said; nothing else is.
    warned = [line for line in done.stderr.splitlines() if "DDPlugWarning" in line]
    assert all(" is right on " in line for line in warned), done.stderr
    assert "ddplug: lambda = " in done.stdout
    return done.stdout


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
    assert says in run(arguments, tmp_path)


def test_images_recovered_one_of_a_class_at_a_time(tmp_path: Path) -> None:
    """Under a network that the run never saw, CMI of the set is lower around real centroids."""
    few = ["--seeds", "1", "--ipc", "4", "--iterations", "40", "--width", "16", "--proxy-epochs", "8", "--epochs", "5"]
    said = run(["recover_images.py", *few], tmp_path)
    found = re.findall(r"^seed 0, (.+): held-out CMI (\S+) nats, accuracy \S+%$", said, re.MULTILINE)
    assert [name for name, _ in found] == ["without CMI", "CMI around real centroids"]
    without, real = (float(cmi) for _, cmi in found)
    assert real < without


@pytest.mark.parametrize(
    ("arguments", "needs"),
    [
        (["with_accelerate.py"], "accelerate"),
        (["with_accelerate.py", "--layer"], "accelerate"),
        (["with_lightning.py"], "lightning"),
        (["with_lightning.py", "--at", "fit"], "lightning"),
        (["with_lightning.py", "--at", "configure"], "lightning"),
    ],
)
def test_in_a_training_framework(arguments: list[str], needs: str, tmp_path: Path) -> None:
    """As many rounds as steps, and CMI of the images lower than without, from the same start."""
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed; the extra 'test' has it")
    said = run([*arguments, "--steps", "20"], tmp_path)
    found = re.findall(r"^weight (\d+): (\d+) rounds, CMI (\S+) -> (\S+) nats$", said, re.MULTILINE)
    assert [(weight, rounds) for weight, rounds, *_ in found] == [("0", "0"), ("1", "20")], said
    (*_, start, without), (*_, same, regularised) = found
    assert start == same
    assert float(regularised) < 0.5 * float(without)


def test_a_compiled_trainer(tmp_path: Path) -> None:
    said = run(["with_compile.py", "--steps", "12"], tmp_path)
    assert said.count("12 rounds") == 2
    difference = re.search(r"the two gradients differ by (\S+) of their norm", said)
    assert difference is not None
    assert float(difference[1]) < 1e-5
