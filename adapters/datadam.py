"""DataDAM (DataDistillation/DataDAM, main_DataDAM.py): DM's loop, in which attention is matched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddplug.adapters import register
from ddplug.hosting.dm_like import DMLike


@register("datadam")
class DataDAM(DMLike):
    """Option names are DM's. A set is saved when it is evaluated, which is before the step of that iteration."""

    name = "datadam"
    named_by_method = False
    beyond = 0
    defaults: Mapping[str, Any] = {
        **DMLike.defaults, "data_path": "", "ipc": 50, "Iteration": 20000, "zca": False,
    }  # fmt: skip
    reserved = (*DMLike.reserved, "eval_mode", "epoch_eval_train")

    def command(self, arguments: Sequence[str], folder: Path) -> list[str]:
        """One network, after one epoch, as none would leave no set; a mode it does not know means at the end only."""
        one = ("--num_eval", "1", "--epoch_eval_train", "0", "--eval_mode", "last")
        return [*super().command(arguments, folder), *one]
