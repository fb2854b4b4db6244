"""DM (VICO-UoE/DatasetCondensation, main_DM.py): one call of the layer per class, all classes in one backward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddplug.adapters import register
from ddplug.upstream import UpstreamAdapter, check_data, option


@register("dm")
class DM(UpstreamAdapter):
    """Images are stored normalised; labels are the class whose turn it is; there are no experts."""

    name = "dm"

    def setting(self, args: Any) -> tuple[str, str, int]:
        """As the options say."""
        return args.method.lower(), args.dataset.lower(), args.ipc

    def record(self, args: Any, known: Mapping[str, Any]) -> Path:
        """One file per experiment, named as the host names its results."""
        name = f"cmi_{args.method}_{args.dataset}_{args.model}_{args.ipc}ipc_exp{known['exp']}.json"
        return Path(args.save_path) / name

    def preflight(self, arguments: Sequence[str]) -> None:
        """Is the data set there?"""
        check_data(self.name, option(arguments, "dataset", "CIFAR10"), option(arguments, "data_path", "data"))
