"""Proxies through `torch.compile`: one compiled module for all proxies of a kind, whose weights are copied in."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ddplug.errors import ProxyError
from ddplug.proxies.pool import Proxy
from ddplug.proxies.representations import Representation


class Compiled(Proxy):
    """A compiled copy of a proxy's network, with or without its head, for any proxy of the same `kind`."""

    def __init__(self, of: Proxy, representation: Representation) -> None:
        network = copy.deepcopy(of.network)
        super().__init__(network, of.head, of.name)
        self._values = network.state_dict()
        self._representation, self._checked = representation, set[int]()
        if representation != "logit":
            parent, _, name = (self.head or "").rpartition(".")
            setattr(network.get_submodule(parent), name, nn.Identity())
        self._compiled: Any = torch.compile(network, options=_instructions(network))

    @torch.no_grad()
    def take(self, proxy: Proxy) -> None:
        """Compute with the weights of `proxy` from now on. Graphs made with earlier weights become invalid."""
        weights = proxy.weights()
        torch._foreach_copy_(list(self._values.values()), [weights[key] for key in self._values])

    @torch.no_grad()
    def check(self, of: Proxy, images: Tensor) -> None:
        """Raise `ProxyError` unless the copy computes the same as `of` for `images`; checked once per proxy."""
        if id(of) in self._checked:
            return
        images = images.to(self.dtype)
        expected, got = of(images, self._representation), self._of_output(self.network(images))
        if got.shape != expected.shape or not torch.allclose(got, expected, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ProxyError(
                f"proxy '{of.name}' ({type(of.network).__name__}) cannot be compiled: without its head '{of.head}' it "
                "gives something else than its features. Leave compile out."
            )
        self._checked.add(id(of))

    def _compute(self, images: Tensor) -> Any:
        return self._compiled(images)

    def _read(self, images: Tensor, representation: Representation) -> Tensor:
        return self._of_output(self._compute(images))

    def _of_output(self, output: Any) -> Tensor:
        found: Tensor = output[0] if isinstance(output, tuple | list) else output
        return found.flatten(1)


def _instructions(network: nn.Module) -> dict[str, Any] | None:
    """The width of the processor's vectors, as an option of torch.compile; None if unknown or not on a CPU.

    torch's cache of compiled code is keyed by options, not by processor. Without this option it would reuse code for
    other vectors after a change of ATEN_CPU_CAPABILITY, or on another machine with the same cache.
    """
    if any(value.device.type != "cpu" for value in network.state_dict().values()):
        return None
    try:  # torch has no public name for this
        from torch._inductor.cpu_vec_isa import pick_vec_isa
    except ImportError:
        return None
    return {"cpp.simdlen": pick_vec_isa().bit_width()}
