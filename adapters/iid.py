"""IID (VincenDen/IID, DM+ours/main_DM_IID.py): DM's loop with two losses more, one of them under trained ResNets.

As published it runs on its authors' machine only: on two GPUs that it chooses by number, with those networks in a
folder of theirs. Three lines of the patch let it run on what there is, with the networks where it is started.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ddplug.adapters import register
from ddplug.hosting.dm_like import DMLike
from ddplug.hosting.host import linked


@register("iid")
class IID(DMLike):
    """Option names are DM's."""

    name = "iid"
    named_by_method = False
    quiet_env: Mapping[str, str] = MappingProxyType({"WANDB_MODE": "disabled"})
    defaults: Mapping[str, Any] = {**DMLike.defaults, "ipc": 50, "Iteration": 20000}

    def command(self, arguments: Sequence[str], folder: Path) -> list[str]:
        """With the networks that the host's pre_model.py has left where we are."""
        linked("pre_dict_res18_40", folder)
        return super().command(arguments, folder)
