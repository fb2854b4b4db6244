"""Record of a network, from which it can be built again, and the device it is built on."""

from __future__ import annotations

import json
from contextvars import ContextVar
from typing import Any

from ddplug.errors import ProxyError

LIBRARIES = ("torchvision/", "timm/")
"""What names of networks begin with that other packages build."""
building_on: ContextVar[str] = ContextVar("building_on", default="cpu")
"""The device that networks are built on: "meta" for one that has shapes, but no weights."""


def spec_of(architecture: str, options: dict[str, Any]) -> dict[str, Any]:
    """The record of how a network was built, in JSON's own types."""
    try:
        resolved = json.loads(json.dumps(options))
    except TypeError as error:
        raise ProxyError(
            f"the options of {architecture} must be numbers, strings, lists or booleans, to be kept in a file, "
            f"got {options}: {error}"
        ) from error
    return {"architecture": architecture, "options": resolved}
