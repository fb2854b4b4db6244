"""What `ddplug compare` asks of a host's adapter. A host without it can be run and attached to all the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ddplug.datasets.synthetic import SyntheticSet
from ddplug.hosting.arguments import refuse, refuse_short
from ddplug.hosting.host_names import lacking
from ddplug.hosting.patched_host import PatchedHost


class ComparableHost(PatchedHost):
    """A host whose sets a comparison can make and find. Implement `command` and `saved`; the rest has defaults.

    In the methods, `arguments` are the host's own, as the user gave them.
    """

    quiet_env: Mapping[str, str] = MappingProxyType({})
    """Variables of the environment under which a comparison's many runs are not reported anywhere, unless set."""
    reserved: tuple[str, ...] = ()
    """Options that `command` sets, and the user therefore may not."""
    spelt_out: tuple[str, ...] = ()
    """Options besides those of `defaults` and `reserved` that the adapter reads, and that may not be abbreviated."""

    def comparable(self, arguments: Sequence[str]) -> None:
        """Raise for arguments that a comparison sets itself, or with which no set would be saved."""
        refuse_short(arguments, (*self.reserved, *self.spelt_out, *self.defaults))
        refuse(arguments, self.reserved)

    def command(self, arguments: Sequence[str], folder: Path) -> list[str]:
        """The arguments of a run that is started in `folder`, makes one set and saves it there, and judges nothing.

        Files that the run needs may be written to `folder`. Folders in `arguments` are relative to where we are.
        """
        raise lacking(self.name, "command", "how it is run for a comparison")

    def saved(self, folder: Path, arguments: Sequence[str]) -> dict[int, SyntheticSet]:
        """The sets that a run by `command` left in `folder`, by the iterations they were made in.

        What their images mean they say by their space or, as `ddplug.lab.evaluate.with_space` has it, by their
        meaning.
        """
        raise lacking(self.name, "saved", "where a run leaves its sets")

    def expected_setting(self, arguments: Sequence[str]) -> tuple[str, str, int]:
        """What `setting` will say in a run with `arguments`; by default from `defaults`' method, dataset and ipc."""
        given = self.options(arguments)
        if not {"dataset", "ipc"} <= set(given):
            raise lacking(self.name, "expected_setting", "what a run will distil")
        return str(given.get("method", self.name)).lower(), str(given["dataset"]).lower(), given["ipc"]

    def views_per_class(self, arguments: Sequence[str]) -> int:
        """How many images of a class the layer sees; by default the images per class."""
        return self.expected_setting(arguments)[2]

    def extra_inputs(self, arguments: Sequence[str]) -> dict[str, Any]:
        """What decides a run besides its arguments, the data set and the checkout, as JSON: files they name, say."""
        return {}


def linked(name: str, folder: Path) -> None:
    """Have networks that the host looks for where it is started, in `name`, found when that is `folder`."""
    trained = Path(name).resolve()
    if trained.is_dir():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(trained, target_is_directory=True)
