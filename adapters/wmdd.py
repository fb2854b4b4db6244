"""WMDD (Liu-Hy/WMDD, recover/data_synthesis_new.py): images recovered from a network, saved as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ddplug.datasets.synthetic import SyntheticSet, load_set
from ddplug.hosting.arguments import absolute, option
from ddplug.hosting.host import Host
from ddplug.utils.digest import file_sha256


class WMDD(Host):
    """The data set is a folder of images, of 224 pixels."""

    defaults: Mapping[str, Any] = MappingProxyType({"ipc": 50, "iteration": 1000})
    spelt_out: Sequence[str] = ("real-data-path", "ckpt-path")
    compare: Sequence[str] = ("--syn-data-path", "{folder}/sets", "--exp-name", "last", "--store-best-images")

    def command(self, arguments: Sequence[str], folder: Path) -> list[str]:
        """The arguments of a run; also the network's file is absolute."""
        paths = {name: "" for name in self.spelt_out if option(arguments, name, "")}
        return [*super().command(arguments, folder), *absolute(arguments, paths)]

    def saved(self, folder: Path, arguments: Sequence[str]) -> dict[int, SyntheticSet]:
        """The pictures."""
        return {self.options(arguments)["iteration"]: load_set(path) for path in folder.glob("sets/*/last")}

    def expected_setting(self, arguments: Sequence[str]) -> tuple[str, str, int]:
        """The setting, whose data set is a folder."""
        return self.name, "folder", self.options(arguments)["ipc"]

    def extra_inputs(self, arguments: Sequence[str]) -> dict[str, Any]:
        """A digest of the network."""
        network = option(arguments, "ckpt-path", "")
        return {"network": file_sha256(Path(network)) if network else None}
