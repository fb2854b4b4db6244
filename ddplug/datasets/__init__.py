"""Real and synthetic images, what their numbers mean, and the files that they come in."""

from ddplug.datasets.images import ImageData, as_image_data, load, random_real

__all__ = ["ImageData", "as_image_data", "load", "random_real"]
