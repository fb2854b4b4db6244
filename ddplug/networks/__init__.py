"""The networks of dataset distillation, their training and their precision."""

from ddplug.networks.zoo import (
    _REGISTRY,
    Network,
    Norm,
    alexnet,
    architectures,
    build,
    convnet,
    register,
    resnet18,
    seeded,
    vgg11,
)

__all__ = [
    "_REGISTRY",
    "Network",
    "Norm",
    "alexnet",
    "architectures",
    "build",
    "convnet",
    "register",
    "resnet18",
    "seeded",
    "vgg11",
]
