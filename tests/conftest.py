"""What the tests share: small real networks, and the promise that nobody touches the global random state."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn

import ddplug

# Tests of prose, packaging, notebooks and benchmarks run in CI, or where the folder is named: `pytest tests/project`.
collect_ignore = [] if os.environ.get("CI") else ["project"]

# Small tensors: a second thread costs more than it brings, above all on a busy machine.
torch.set_num_threads(1)
# The same examples every time: a test that fails today fails tomorrow.
settings.register_profile("ddplug", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("ddplug")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """No workers for a single file: they would take longer to start than they save."""
    return 0 if len(config.args) == 1 and ".py" in config.args[0] else None


def global_state() -> tuple[object, ...]:
    """Everything of the host's that a draw would change."""
    name, keys, *rest = np.random.get_state()
    return (torch.get_rng_state().tolist(), name, keys.tolist(), *rest, random.getstate())


@pytest.fixture
def untouched() -> Iterator[None]:
    """The test must leave torch's, NumPy's and Python's global random state as it found it."""
    before = global_state()
    yield
    assert global_state() == before


def tiny_network(seed: int = 0, *, classes: int = 3, channels: int = 3, size: int = 4, width: int = 12) -> nn.Module:
    """A smooth (twice differentiable) float64 classifier of `channels` x `size` x `size` images."""
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(6 * size * size, width),
        nn.Tanh(),
        nn.Linear(width, classes),
    ).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    return network


@pytest.fixture
def network() -> Callable[..., nn.Module]:
    return tiny_network


@pytest.fixture
def pool() -> ddplug.ProxyPool:
    """One smooth float64 proxy of 3 x 4 x 4 images."""
    return ddplug.ProxyPool.from_modules([tiny_network(7)])


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Twelve float64 images (12, 3, 4, 4) and labels of three classes of unequal size, unsorted."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(12, 3, 4, 4, generator=generator, dtype=torch.float64)
    return images, torch.tensor([2, 0, 1, 1, 0, 2, 1, 0, 1, 2, 1, 1])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB in memory, which only root can make."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def fill() -> Callable[[Path, int], None]:
    """Fills the file system of a folder but for some bytes."""

    def filled(folder: Path, leave: int) -> None:
        found = os.statvfs(folder)
        (folder / "filler").write_bytes(b"x" * (found.f_bavail * found.f_frsize - leave))

    return filled
