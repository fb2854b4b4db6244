"""DSA on kornia: the augmentation of dataset distillation."""

from ddplug.augment.dsa import DSA, Mode
from ddplug.augment.params import OPERATIONS, Params

__all__ = ["DSA", "OPERATIONS", "Mode", "Params"]
