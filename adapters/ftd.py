"""FTD (AngusDujw/FTD-distillation, distill/distill_FTD.py): MTT's loop with flat trajectories and averaged images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ddplug.adapters import register
from ddplug.adapters.mtt import MTT
from ddplug.hosting.mtt_like import SAVES


@register("ftd")
class FTD(MTT):
    """The set that counts is the running average of the images, which the host keeps in a folder of its own."""

    name = "ftd"
    images = "ema_images_"
    reserved = ("num_eval", "eval_it", "epoch_eval_train")

    def command(self, arguments: Sequence[str], folder: Path) -> list[str]:
        """One network, after one epoch: with none the host has no average to save."""
        one = ("--num_eval", "1", "--epoch_eval_train", "0", "--eval_it", str(SAVES))
        return [*super().command(arguments, folder), *one]
