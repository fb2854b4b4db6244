"""DREAM (lyq312318224/DREAM, condense.py): IDC's loop, with real images that k-means chose."""

from __future__ import annotations

from collections.abc import Sequence

from ddplug.errors import HostError
from ddplug.hosting.arguments import option
from ddplug.hosting.shapes import IDCLike


class DREAM(IDCLike):
    """Option names are IDC's; sets are numbered, one every 40 outer iterations."""

    def preflight(self, arguments: Sequence[str]) -> None:
        """Check as for IDC, and refuse the default loss, which the host does not implement."""
        super().preflight(arguments)
        if option(arguments, "match", "bi_match") == "bi_match":
            raise HostError(
                f"{self.name}'s condense.py has no loss for --match bi_match, its default, and fails at its first "
                "step. Give another: -- --match grad (or feat). Nothing was changed."
            )
