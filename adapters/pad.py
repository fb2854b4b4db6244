"""PAD (NUS-HPC-AI-Lab/PAD, distill/PAD.py): DATM's loop, which leaves out the best matched of the parameters.

As published it asks for an option that it does not have; a line of the patch gives that a value.
"""

from __future__ import annotations

from ddplug.adapters import register
from ddplug.adapters.datm import DATM


@register("pad")
class PAD(DATM):
    """Options come from a file, as DATM's do."""

    name = "pad"
