"""DANCE (Hansong-Zhang/DANCE, DANCE.py): IDC's shape; each class steps twice, for itself and against the others."""

from __future__ import annotations

from collections.abc import Sequence

from ddplug.errors import HostError
from ddplug.hosting.host import Host
from ddplug.hosting.shapes import IDCLike


class DANCE(IDCLike):
    """Data set, networks and results are named in its arguments/reproduce_condense.py, for --reproduce."""

    saved = Host.saved  # its sets are in a folder that only that file names

    def preflight(self, arguments: Sequence[str]) -> None:
        """Require --reproduce, without which the host fails when it looks for the folder of its results."""
        if "--reproduce" not in arguments:
            raise HostError(
                f"{self.name} knows its folders from its own file arguments/reproduce_condense.py, and reads that only "
                "with --reproduce. Name the folders there, and give that option. Nothing was changed."
            )
