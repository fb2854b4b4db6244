"""Networks of torchvision and timm by name, without pretrained weights, with a record of how to build them again."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from ddplug.errors import ProxyError
from ddplug.networks.spec import LIBRARIES, building_on, spec_of


def build_from_library(architecture: str, options: dict[str, Any]) -> nn.Module:
    """The network "torchvision/NAME" or "timm/NAME", on the CPU; `ProxyError` as of `ddplug.networks.build`."""
    spec = spec_of(architecture, options)
    for word in ("weights", "pretrained"):
        if options.get(word):
            raise ProxyError(
                f"{architecture} is built without pretrained weights, got {word}={options[word]!r}; "
                "load weights of your own into it, or hand the pretrained model over as it is"
            )
    passed = {option: value for option, value in options.items() if option not in ("weights", "pretrained")}
    make = _torchvision if architecture.startswith(LIBRARIES[0]) else _timm
    try:
        with torch.device(building_on.get()):
            network = make(architecture, architecture.partition("/")[2], passed)
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ProxyError(f"{architecture} cannot be built with the options {passed}: {error}") from error
    network.__dict__["spec"] = spec  # a plain attribute; nn.Module's own are typed as tensors and modules
    return network


def _torchvision(architecture: str, name: str, options: dict[str, Any]) -> nn.Module:
    from torchvision import models  # seconds of import that only these networks need

    known = models.list_models(module=models)
    if name not in known:
        raise ProxyError(f"torchvision has no classifier {name!r}; it has {', '.join(known)}")
    if (channels := options.pop("channels", 3)) != 3:
        raise ProxyError(
            f"{architecture} takes images of 3 channels, got channels={channels}; use convnet, or timm/NAME"
        )
    options.pop("size", None)
    network: nn.Module = models.get_model(name, weights=None, **options)
    return network


def _timm(architecture: str, name: str, options: dict[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ProxyError(f"{architecture} needs timm, which is not installed: pip install 'ddplug[timm]'") from error
    if not timm.is_model(name):
        alike = ", ".join(get_close_matches(name, timm.list_models())) or "nothing alike"
        raise ProxyError(f"timm has no model {name!r}; it has {alike}. timm.list_models() names all")
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
