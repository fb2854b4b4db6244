"""DC and DSA (VICO-UoE/DatasetCondensation, main.py): as DM, with several image steps per iteration."""

from __future__ import annotations

from ddplug.adapters import register
from ddplug.adapters.dm import DM


@register("dsa")
class DSA(DM):
    """Which of the two methods it is, the host's own option says; DC augments nothing."""

    name = "dsa"
    iterations = "1000"
    method, ipc = "DC", "1"
