"""Networks of torchvision and timm by name, without pretrained weights, with a record of how to build them again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ddplug.errors import ProxyError

LIBRARIES = ("torchvision/", "timm/")
"""Prefixes of the names of networks that other packages build."""


def spec_of(architecture: str, options: dict[str, Any]) -> dict[str, Any]:
    """The record of how a network was built, in JSON's own types."""
    try:
        return {"architecture": architecture, "options": json.loads(json.dumps(options))}
    except TypeError as error:
        raise ProxyError(
            f"the options of {architecture} must be numbers, strings, lists or booleans, to be kept in a file, "
            f"got {options}: {error}"
        ) from error


@contextmanager
def plain_defaults() -> Iterator[None]:
    """Within, tensors are made in fp32 on the CPU unless another is named, whatever defaults the host has set."""
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float32)
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(default)


def build_from_library(architecture: str, options: dict[str, Any]) -> nn.Module:
    """The network "torchvision/NAME" or "timm/NAME", on the CPU; `ProxyError` as of `ddplug.networks.build`."""
    spec = spec_of(architecture, options)
    library, _, name = architecture.partition("/")
    try:
        with plain_defaults():
            network = (_torchvision if library == "torchvision" else _timm)(name, dict(options))
    except ImportError as error:
        raise ProxyError(f"{architecture} needs timm, which is not installed: pip install 'ddplug[timm]'") from error
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ProxyError(f"{architecture} cannot be built with the options {options}: {error}") from error
    network.__dict__["spec"] = spec  # a plain attribute; nn.Module's own are typed as tensors and modules
    return network


def _torchvision(name: str, options: dict[str, Any]) -> nn.Module:
    from torchvision import models  # seconds of import that only these networks need

    if (channels := options.pop("channels", 3)) != 3:
        raise ValueError(f"it takes images of 3 channels, got channels={channels}; use convnet, or timm/NAME")
    options.pop("size", None)
    network: nn.Module = models.get_model(name, weights=None, **options)
    return network


def _timm(name: str, options: dict[str, Any]) -> nn.Module:
    import timm

    size = options.pop("size", None)
    given = {("in_chans" if option == "channels" else option): value for option, value in options.items()}
    network: nn.Module
    if size is not None:
        try:  # attention over a grid of patches is made for one size; convolutions take any
            network = timm.create_model(name, pretrained=False, img_size=tuple(size), **given)
            return network
        except TypeError:
            pass
    network = timm.create_model(name, pretrained=False, **given)
    return network
