"""ddplug: the class-aware CMI regulariser of arXiv 2412.09945 for existing dataset-distillation code.

import ddplug
handle = ddplug.attach(trainer, weight=0.1, proxies="pool/")    # weight: share of the host's own gradient
"""

from ddplug.attach import Handle, attach
from ddplug.cmi import class_separation, cmi, cmi_per_class, ncmi
from ddplug.errors import (
    AttachError,
    DataError,
    DDPlugError,
    DDPlugWarning,
    HostError,
    InputError,
    PatchError,
    PoolError,
    ProxyError,
    SecondDerivativeError,
    SpaceError,
    WeightError,
)
from ddplug.loss import CMI
from ddplug.proxies import PoolInfo, Proxy, ProxyPool
from ddplug.regularizer import Regularizer
from ddplug.spaces import InputSpace

__version__ = "0.1.0"

__all__ = [
    "CMI",
    "AttachError",
    "DDPlugError",
    "DDPlugWarning",
    "DataError",
    "Handle",
    "HostError",
    "InputError",
    "InputSpace",
    "PatchError",
    "PoolError",
    "PoolInfo",
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
]
