"""NCFM (gszfwsb/NCFM, condense/condense_script.py): characteristic functions matched, on images that hold several."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ddplug.adapters.datm import CONFIG, read_config, write_config
from ddplug.datasets.synthetic import SyntheticSet, load_set
from ddplug.errors import HostError
from ddplug.hosting.arguments import check_data, read_options
from ddplug.hosting.host import Host
from ddplug.hosting.shapes import FILES
from ddplug.utils.digest import file_sha256
from ddplug.utils.files import user_path

SAVES = 1000
"""Number of iterations between two sets that the host saves."""


class NCFM(Host):
    """Options are in a YAML file, whose `ipc` goes before the command line's. Images are stored in [0, 1]."""

    defaults: Mapping[str, Any] = MappingProxyType({
        "dataset": "cifar10", "data_dir": "", "pretrain_dir": "", "niter": 20000, "factor": 1, "decode_type": "single",
    })  # fmt: skip
    folders: Sequence[str] = ("data_dir", "pretrain_dir")
    spelt_out: Sequence[str] = ("config_path", "ipc")

    def options(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Options of the configuration file; `HostError` if the file is missing."""
        return read_config(
            self.name, arguments, "config_path", {**self.defaults, **read_options(arguments, {"ipc": 1}, ("ipc",))}
        )

    def preflight(self, arguments: Sequence[str]) -> None:
        """Check that the data set is there."""
        given = self.options(arguments)
        check_data(self.name, given["dataset"], given["data_dir"], FILES, fetches=False)

    def comparable(self, arguments: Sequence[str]) -> None:
        """Check also that the last iteration is saved, in a form that is known here."""
        super().comparable(arguments)
        given = self.options(arguments)
        if given["niter"] < SAVES or given["niter"] % SAVES:
            raise HostError(
                f"{self.name} saves its set every {SAVES} iterations, and niter is {given['niter']}, so the final set "
                f"would not be saved; give a multiple of {SAVES}."
            )
        if given["decode_type"] != "single":
            raise HostError(f"sets of decode_type {given['decode_type']} cannot be judged here, only those of single.")

    def command(self, arguments: Sequence[str], folder: Path) -> list[str]:
        """Write the configuration with folders as seen from there and without a seed to `folder`, and name it last.

        The host's own seed would be that of every run.
        """
        given = self.options(arguments)
        places = {name: str(user_path(given[name]).resolve()) for name in self.folders}
        networks = os.path.relpath(places["pretrain_dir"], folder)  # the host puts "./" before it
        settings = {**given, **places, "pretrain_dir": networks, "save_dir": str(folder), "seed": 0}
        return [*arguments, "--config_path", write_config(self.name, settings, folder)]

    def saved(self, folder: Path, arguments: Sequence[str]) -> dict[int, SyntheticSet]:
        """All saved sets but the first images, taken apart."""
        factor = self.options(("--config_path", str(folder / CONFIG)))["factor"]
        found = {re.fullmatch(r"data_(\d+)", path.stem): path for path in folder.rglob("data_*.pt")}
        return {int(number[1]): load_set(path, factor=factor) for number, path in found.items() if number}

    def views_per_class(self, arguments: Sequence[str]) -> int:
        """Number of images of a class times the square of the factor."""
        given = self.options(arguments)
        return int(given["ipc"] * given["factor"] ** 2)

    def extra_inputs(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The configuration, and digests of the networks."""
        given = self.options(arguments)
        networks = sorted(Path(given["pretrain_dir"]).rglob("*.pth.tar"))
        return {"configuration": given, "networks": {path.name: file_sha256(path) for path in networks}}
