"""DC and DSA (VICO-UoE/DatasetCondensation, main.py): as DM, with several image steps per iteration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddplug.adapters import register
from ddplug.hosting.dm_like import DMLike


@register("dsa")
class DSA(DMLike):
    """The host's own option chooses DC or DSA; DC augments nothing."""

    name = "dsa"
    defaults: Mapping[str, Any] = {**DMLike.defaults, "ipc": 1, "Iteration": 1000, "method": "DC"}
