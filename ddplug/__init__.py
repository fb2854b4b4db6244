"""ddplug: the class-aware CMI regulariser of arXiv 2412.09945 for existing dataset-distillation code.

import ddplug
handle = ddplug.attach(trainer, weight=3, proxies="pool/")    # weight: share of the host's own gradient
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ddplug.errors import DDPlugError, DDPlugWarning

if TYPE_CHECKING:
    from ddplug.attaching.attach import Handle, attach
    from ddplug.attaching.labels import one_class_per_call
    from ddplug.core.loss import CMI
    from ddplug.core.options import Absolute, Compute, Relative, Sustained, Views, paper
    from ddplug.core.regularizer import Regularizer
    from ddplug.datasets.spaces import InputSpace
    from ddplug.proxies.pool import ProxyPool
    from ddplug.terms.cmi import cmi
    from ddplug.utils.processes import Processes

# Everything that needs torch is imported on first use, so that command lines and `import ddplug` start at once.
_CLASSES_AND_FUNCTIONS = {
    "Absolute": "ddplug.core.options",
    "CMI": "ddplug.core.loss",
    "Compute": "ddplug.core.options",
    "Handle": "ddplug.attaching.attach",
    "InputSpace": "ddplug.datasets.spaces",
    "Processes": "ddplug.utils.processes",
    "ProxyPool": "ddplug.proxies.pool",
    "Regularizer": "ddplug.core.regularizer",
    "Relative": "ddplug.core.options",
    "Sustained": "ddplug.core.options",
    "Views": "ddplug.core.options",
    "attach": "ddplug.attaching.attach",
    "cmi": "ddplug.terms.cmi",
    "one_class_per_call": "ddplug.attaching.labels",
    "paper": "ddplug.core.options",
}
_MODULES = {
    "adapters": "ddplug.adapters",
    "augment": "ddplug.augment",
    "datasets": "ddplug.datasets",
    "distill": "ddplug.lab.dm_trainer",
    "networks": "ddplug.networks",
    "terms": "ddplug.terms",
    "training": "ddplug.networks.training",
    "weighting": "ddplug.core.weighting",
    "zca": "ddplug.datasets.zca",
}

__version__ = "0.2.0"

__all__ = [
    "CMI",
    "Absolute",
    "Compute",
    "DDPlugError",
    "DDPlugWarning",
    "Handle",
    "InputSpace",
    "Processes",
    "ProxyPool",
    "Regularizer",
    "Relative",
    "Sustained",
    "Views",
    "attach",
    "cmi",
    "one_class_per_call",
    "paper",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name not in _CLASSES_AND_FUNCTIONS:
        raise AttributeError(f"module 'ddplug' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(_CLASSES_AND_FUNCTIONS[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_CLASSES_AND_FUNCTIONS, *_MODULES})
