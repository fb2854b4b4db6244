"""What comparisons need in every file of tests: real images, and pools that took a moment to train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ddplug import datasets
from ddplug.datasets.images import ImageData
from ddplug.proxies.pretrain import pretrain


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return datasets.load("digits")


@pytest.fixture(scope="session")
def trained(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a pool of so many ConvNets of width 8, trained for one epoch from this seed on."""
    folder = tmp_path_factory.mktemp("pools")

    def pool(count: int, seed: int = 0) -> Path:
        made = folder / f"{count}-from-{seed}"
        if not made.is_dir():
            pretrain(digits, made, count=count, epochs=1, seed=seed, options={"width": 8}, progress=False)
        return made

    return pool
