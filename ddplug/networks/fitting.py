"""Networks that are built to take weights which are there already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ddplug.errors import ProxyError
from ddplug.networks.spec import building_on
from ddplug.networks.zoo import build


def build_for(weights: Mapping[str, Tensor], architecture: str, **options: Any) -> nn.Module:
    """Return `build`'s network, after a check that its names and shapes are those of `weights`.

    So no memory is asked for that is not needed, whatever a file says of its network. Raises `ProxyError` as `build`
    does, and where the two do not fit.
    """
    token = building_on.set("meta")
    try:
        wanted = {name: tuple(value.shape) for name, value in build(architecture, **options).state_dict().items()}
    finally:
        building_on.reset(token)
    given = {name: tuple(value.shape) for name, value in weights.items()}
    differing = [name for name in dict.fromkeys([*wanted, *given]) if wanted.get(name) != given.get(name)]
    if differing:
        name = differing[0]
        raise ProxyError(
            f"the weights are not those of {architecture} with these options: {name} is {given.get(name, 'not there')}"
            f", expected {wanted.get(name, 'nothing of that name')}"
            + (f", and {len(differing) - 1} more differ" if len(differing) > 1 else "")
        )
    return build(architecture, **options)
