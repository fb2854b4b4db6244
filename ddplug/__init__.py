"""ddplug: the class-aware CMI regulariser of arXiv 2412.09945 for existing dataset-distillation code.

import ddplug
handle = ddplug.attach(trainer, weight=1, proxies="pool/")    # weight: share of the host's own gradient
"""

from importlib import import_module
from types import ModuleType

from ddplug.attaching.attach import Handle, attach
from ddplug.attaching.labels import one_class_per_call
from ddplug.core.loss import CMI
from ddplug.core.regularizer import Regularizer
from ddplug.datasets.spaces import InputSpace
from ddplug.errors import (
    AttachError,
    DataError,
    DDPlugError,
    DDPlugWarning,
    FileError,
    HostError,
    InputError,
    PatchError,
    PoolError,
    ProcessError,
    ProxyError,
    SecondDerivativeError,
    SpaceError,
    WeightError,
)
from ddplug.proxies.pool import PoolInfo, Proxy, ProxyPool
from ddplug.terms.cmi import cmi
from ddplug.terms.separation import class_separation, cmi_per_class, ncmi

# Modules that bring torchvision, kornia or files along: there on first use, so that `import ddplug` stays light.
_ON_FIRST_USE = {
    "adapters": "ddplug.adapters",
    "augment": "ddplug.augment",
    "datasets": "ddplug.datasets",
    "distill": "ddplug.lab.dm_trainer",
    "networks": "ddplug.networks",
    "objectives": "ddplug.terms",
    "training": "ddplug.networks.training",
    "weighting": "ddplug.core.weighting",
    "zca": "ddplug.datasets.zca",
}

__version__ = "0.2.0"

__all__ = [
    "CMI",
    "AttachError",
    "DDPlugError",
    "DDPlugWarning",
    "DataError",
    "FileError",
    "Handle",
    "HostError",
    "InputError",
    "InputSpace",
    "PatchError",
    "PoolError",
    "PoolInfo",
    "ProcessError",
    "Proxy",
    "ProxyError",
    "ProxyPool",
    "Regularizer",
    "SecondDerivativeError",
    "SpaceError",
    "WeightError",
    "attach",
    "class_separation",
    "cmi",
    "cmi_per_class",
    "ncmi",
    "one_class_per_call",
]


def __getattr__(name: str) -> ModuleType:
    if name in _ON_FIRST_USE:
        return import_module(_ON_FIRST_USE[name])
    raise AttributeError(f"module 'ddplug' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_FIRST_USE})
