"""A pool that several processes train together is the one of a single process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.numerical

TRAINING = """
import os, signal, sys, time
from dataclasses import replace
from pathlib import Path
import torch
from ddplug import datasets
from ddplug.proxies.pretrain import pretrain

torch.set_num_threads(1)
data = datasets.load("digits")
data = replace(data, train_images=data.train_images[:60], train_labels=data.train_labels[:60])
folder = Path(sys.argv[1])

def train(folder, count, shared):
    recipe = {"epochs": 1, "options": {"width": 8}, "progress": False}
    return pretrain(data, folder, architecture="convnet", count=count, shared=shared, **recipe).digest()

def fork(rank, count):
    if (child := os.fork()) == 0:
        os.environ["RANK"] = str(rank)
        os._exit(0 if train(folder, count, True) == alone[count] else 1)
    return child

def fork(rank):
    if (child := os.fork()) == 0:
        os.environ["RANK"] = str(rank)
        os._exit(0 if train(folder, 6, True) == alone else 1)
    return child

alone = train(folder / "../alone", 6, False)
train(folder, 1, False)

# The second of three processes is killed while it waits for the others, which never came.
os.environ["WORLD_SIZE"] = "3"
child = fork(1)
while not (folder / ".proxy_004.done/pool.json").exists():
    time.sleep(0.05)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
weights = folder / "proxy_004.safetensors"
made = weights.stat().st_mtime_ns

children = [fork(1), fork(2)]
assert train(folder, 6, True) == alone
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
assert weights.stat().st_mtime_ns == made, "what was finished is not trained again"
print(sorted(os.listdir(folder)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_three_processes_train_what_one_does(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    command = [sys.executable, "-c", TRAINING, str(tmp_path / "pool")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    # Nothing is left of what was set aside, and no lock.
    assert done.stdout.strip() == str(["pool.json", *(f"proxy_{index:03d}.safetensors" for index in range(6))])
