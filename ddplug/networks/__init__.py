"""The networks of dataset distillation, their training and their precision."""

from ddplug.networks.zoo import (
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
