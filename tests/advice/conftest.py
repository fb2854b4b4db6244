from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, nn

from advice.following import World


@pytest.fixture
def world(tmp_path: Path, network: Callable[..., nn.Module], batch: tuple[Tensor, Tensor]) -> World:
    """What the cases share."""
    return World(tmp_path, network, batch)
