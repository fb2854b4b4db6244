"""DM (VICO-UoE/DatasetCondensation, main_DM.py): one call of the layer per class, all classes in one backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddplug.adapters import register
from ddplug.hosting.dm_like import DMLike


@register("dm")
class DM(DMLike):
    """The host after which the shape is called; it has no option --method."""

    name = "dm"
    defaults: Mapping[str, Any] = {**DMLike.defaults, "ipc": 50, "Iteration": 20000}
