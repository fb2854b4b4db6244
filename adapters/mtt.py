"""MTT (GeorgeCazenavette/mtt-distillation, distill.py): unrolled inner steps, one call of the layer in each."""

from __future__ import annotations

from collections.abc import Sequence

from ddplug.adapters import register
from ddplug.errors import HostError
from ddplug.hosting.mtt_like import MTTLike


@register("mtt")
class MTT(MTTLike):
    """The host after which the shape is called; labels are hard."""

    name = "mtt"
    spelt_out = ("texture",)

    def comparable(self, arguments: Sequence[str]) -> None:
        """Canvases of textures are no images."""
        super().comparable(arguments)
        if "--texture" in arguments:
            raise HostError("sets of --texture are larger than the data's images and cannot be judged here.")
