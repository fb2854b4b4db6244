"""Hosts of DM's shape: one call of the layer per class, all classes in one backward pass; no experts, hard labels.

    cmi = ddplug_cmi.start('NAME', args, exp=exp, space=(mean, std), classes=class_names, train=..., test=...)
    img_syn = cmi(img_syn, c)                          # for each class, below its augmentation

Option names are those of VICO-UoE/DatasetCondensation, which hosts derived from it keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddplug.datasets.synthetic import SyntheticSet, load_set
from ddplug.hosting.adapter import HostAdapter
from ddplug.hosting.arguments import absolute, check_data
from ddplug.hosting.comparable_host import ComparableHost


class DMLike(HostAdapter):
    """Images are stored normalised; `args.method`, where there is one, is the host's name in the table of weights."""

    defaults: Mapping[str, Any] = {"dataset": "CIFAR10", "data_path": "data"}

    def setting(self, args: Any) -> tuple[str, str, int]:
        """As the options say."""
        name, dataset, ipc = super().setting(args)
        return str(getattr(args, "method", name)).lower(), dataset, ipc

    def record(self, args: Any, context: Mapping[str, Any]) -> Path:
        """One file per experiment, named as the host names its results."""
        name = f"cmi_{args.method}_{args.dataset}_{args.model}_{args.ipc}ipc_exp{context['exp']}.json"
        return Path(args.save_path) / name

    def preflight(self, arguments: Sequence[str]) -> None:
        """Is the data set there?"""
        given = self.options(arguments)
        check_data(self.name, given["dataset"], given["data_path"])


class ComparableDMLike(DMLike, ComparableHost):
    """With DatasetCondensation's command line and results; `defaults` also need `ipc` and `Iteration`."""

    reserved = ("save_path", "num_exp", "num_eval")

    def command(self, arguments: Sequence[str], folder: Path) -> list[str]:
        """One experiment, and no evaluations, which take longer than distilling."""
        places = absolute(arguments, {"data_path": self.defaults["data_path"]})
        return [*arguments, *places, "--save_path", str(folder), "--num_exp", "1", "--num_eval", "0"]

    def saved(self, folder: Path, arguments: Sequence[str]) -> dict[int, SyntheticSet]:
        """The final set, which is all that is saved; the host takes one step more than `--Iteration` says."""
        found = sorted(folder.glob("res_*.pt"))
        return {self.options(arguments)["Iteration"] + 1: load_set(found[-1])} if found else {}
