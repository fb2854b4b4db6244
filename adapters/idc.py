"""IDC (snu-mllab/Efficient-Dataset-Condensation, condense.py): a step per class, several views formed of each image.

`condense_mp.py`, the same loop over a part of the classes, is patched along.
"""

from __future__ import annotations

from ddplug.adapters import register
from ddplug.hosting.idc_like import IDCLike


@register("idc")
class IDC(IDCLike):
    """The host after which the shape is called."""

    name = "idc"
