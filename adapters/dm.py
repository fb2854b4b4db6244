"""DM (VICO-UoE/DatasetCondensation, main_DM.py): one call of the layer per class, all classes in one backward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddplug.adapters import register
from ddplug.datasets.synthetic import SyntheticSet, load_set
from ddplug.hosting.adapter import UpstreamAdapter
from ddplug.hosting.arguments import absolute, check_data, option, refuse, refuse_short, whole


@register("dm")
class DM(UpstreamAdapter):
    """Images are stored normalised; labels are the class whose turn it is; there are no experts."""

    name = "dm"
    iterations = "20000"
    method, ipc = "DM", "50"
    """Of the host, by default."""

    def setting(self, args: Any) -> tuple[str, str, int]:
        """As the options say."""
        return args.method.lower(), args.dataset.lower(), args.ipc

    def record(self, args: Any, known: Mapping[str, Any]) -> Path:
        """One file per experiment, named as the host names its results."""
        name = f"cmi_{args.method}_{args.dataset}_{args.model}_{args.ipc}ipc_exp{known['exp']}.json"
        return Path(args.save_path) / name

    def comparable(self, arguments: Sequence[str]) -> None:
        """Folder, experiments and evaluations are ours to say."""
        refuse_short(
            arguments, ("save_path", "num_exp", "num_eval", "data_path", "dataset", "ipc", "Iteration", "method")
        )
        refuse(arguments, ("save_path", "num_exp", "num_eval"))

    def command(self, arguments: Sequence[str], folder: Path) -> list[str]:
        """One experiment, and no evaluations, which take longer than distilling."""
        places = absolute(arguments, {"data_path": "data"})
        return [*arguments, *places, "--save_path", str(folder), "--num_exp", "1", "--num_eval", "0"]

    def saved(self, folder: Path, arguments: Sequence[str]) -> dict[int, SyntheticSet]:
        """The final set, which is all that is saved; the host takes one step more than `--Iteration` says."""
        steps = int(option(arguments, "Iteration", self.iterations)) + 1
        found = sorted(folder.glob("res_*.pt"))
        return {steps: load_set(found[-1])} if found else {}

    def told(self, arguments: Sequence[str]) -> tuple[str, str, int]:
        """As the options say; main_DM.py has no --method."""
        method = self.method if self.name == "dm" else option(arguments, "method", self.method)
        return method.lower(), option(arguments, "dataset", "CIFAR10").lower(), whole(arguments, "ipc", self.ipc)

    def preflight(self, arguments: Sequence[str]) -> None:
        """Is the data set there?"""
        check_data(self.name, option(arguments, "dataset", "CIFAR10"), option(arguments, "data_path", "data"))
