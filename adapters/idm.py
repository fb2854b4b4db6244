"""IDM (uitrbn/IDM, IDM_cifar10.py): DM's loop with a step per class, and with --aug four views formed of each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddplug.adapters import register
from ddplug.hosting.dm_like import DMLike


@register("idm")
class IDM(DMLike):
    """Option names are DM's."""

    name = "idm"
    named_by_method = False
    class_by_class = True
    defaults: Mapping[str, Any] = {
        **DMLike.defaults,
        "ipc": 50,
        "Iteration": 20000,
        "aug": False,
        "zca": False,
    }
    reserved = (*DMLike.reserved, "eval_interval")

    def factor(self, arguments: Sequence[str]) -> int:
        """Quarters, or whole images."""
        return 2 if self.options(arguments)["aug"] else 1

    def command(self, arguments: Sequence[str], folder: Path) -> list[str]:
        """Even with no networks to evaluate the host would look for a folder, so it is never time to."""
        never = str(self.options(arguments)["Iteration"] + 1)
        return [*super().command(arguments, folder), "--eval_interval", never]
