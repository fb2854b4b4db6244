"""DANCE (Hansong-Zhang/DANCE, DANCE.py): IDC's shape; each class steps twice, for itself and against the others."""

from __future__ import annotations

from collections.abc import Sequence

from ddplug.adapters import register
from ddplug.errors import HostError
from ddplug.hosting.host import Host
from ddplug.hosting.idc_like import IDCLike


@register("dance")
class DANCE(IDCLike):
    """Dataset, networks and results are named in its arguments/reproduce_condense.py, for --reproduce."""

    name = "dance"
    saved = Host.saved  # its sets are in a folder that only its own file names

    def preflight(self, arguments: Sequence[str]) -> None:
        """Without that option the host fails when it looks for the folder of its results."""
        if "--reproduce" not in arguments:
            raise HostError(
                f"{self.name} knows its folders from its own file arguments/reproduce_condense.py, and reads that only "
                "with --reproduce. Name the folders there, and give that option. Nothing was changed."
            )
