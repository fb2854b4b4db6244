"""Hosts of DM's shape: one call of the layer per class, all classes in one backward pass; no experts, hard labels.

    cmi = ddplug_cmi.start('NAME', args, exp=exp, space=(mean, std), classes=class_names, train=..., test=...)
    img_syn = cmi(img_syn, c)                          # for each class, below its augmentation

Option names are those of VICO-UoE/DatasetCondensation, which hosts derived from it keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddplug.datasets.synthetic import SyntheticSet, load_set
from ddplug.hosting.arguments import absolute, check_data
from ddplug.hosting.host import Host


class DMLike(Host):
    """Images are stored normalised."""

    defaults: Mapping[str, Any] = {"dataset": "CIFAR10", "data_path": "data"}
    named_by_method = True
    """Whether the option `method` is the host's name in the table of weights; forks keep it without that meaning."""
    reserved: tuple[str, ...] = ("save_path", "num_exp", "num_eval")
    beyond = 1
    """How many steps more than `--Iteration` says the set has that is saved last."""

    def setting(self, args: Any) -> tuple[str, str, int]:
        """Return the setting, with the name of the method in the options."""
        name, dataset, ipc = super().setting(args)
        return str(args.method).lower() if self.named_by_method and hasattr(args, "method") else name, dataset, ipc

    def record(self, args: Any, context: Mapping[str, Any]) -> Path:
        """One file per experiment, named as the host names its results."""
        name = f"cmi_{args.method}_{args.dataset}_{args.model}_{args.ipc}ipc_exp{context['exp']}.json"
        return Path(args.save_path) / name

    def preflight(self, arguments: Sequence[str]) -> None:
        """Is the data set there?"""
        given = self.options(arguments)
        check_data(self.name, given["dataset"], given["data_path"])

    def command(self, arguments: Sequence[str], folder: Path) -> list[str]:
        """One experiment, and no evaluations, which take longer than distilling."""
        places = absolute(arguments, {"data_path": self.defaults["data_path"]})
        return [*arguments, *places, "--save_path", str(folder), "--num_exp", "1", "--num_eval", "0"]

    def factor(self, arguments: Sequence[str]) -> int:
        """Number of images along the side of one, for hosts that form several of one."""
        return 1

    def views_per_class(self, arguments: Sequence[str]) -> int:
        """An image holds the square of the factor."""
        return super().views_per_class(arguments) * self.factor(arguments) ** 2

    def saved(self, folder: Path, arguments: Sequence[str]) -> dict[int, SyntheticSet]:
        """The final set, which is all that is saved; whitened if the host was told to."""
        given, found = self.options(arguments), sorted(folder.glob("res_*.pt"))
        if not found:
            return {}
        made = load_set(found[-1], factor=self.factor(arguments))
        return {given["Iteration"] + self.beyond: replace(made, meaning="zca") if given.get("zca") else made}
