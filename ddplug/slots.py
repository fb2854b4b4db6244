"""One module for all proxies of a kind: weights are copied in, so that what was made once for it serves every proxy.

A CUDA graph replays kernels on fixed addresses, a compiled function belongs to one module; both are made for a slot.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ddplug.errors import ProxyError
from ddplug.proxies import Proxy, Space


class Slot(Proxy):
    """A proxy of our own, which takes on the weights of any other of the same `kind`."""

    def __init__(self, of: Proxy) -> None:
        super().__init__(copy.deepcopy(of.network), of.head, of.name)
        self._named_by_user = of._named_by_user
        self._values = self.network.state_dict()
        self.take(of)

    @torch.no_grad()
    def take(self, proxy: Proxy) -> None:
        """Compute with the weights of `proxy` from now on. Graphs made with the ones before must be done with."""
        weights = proxy.weights()
        torch._foreach_copy_(list(self._values.values()), [weights[key] for key in self._values])


class CompiledSlot(Slot):
    """A slot whose network went through torch.compile, up to its head or all of it."""

    def __init__(self, of: Proxy, space: Space) -> None:
        try:
            super().__init__(of)
        except RuntimeError as error:
            raise ProxyError(
                f"proxy '{of.name}' ({type(of.network).__name__}) cannot be copied, which compile=True needs "
                f"({error}). Leave out compile=True."
            ) from error
        self._space, self._checked = space, set[int]()
        if space == "feature":
            parent, _, name = (self.head or "").rpartition(".")
            setattr(self.network.get_submodule(parent), name, nn.Identity())
        self._compiled: Any = torch.compile(self.network)

    @torch.no_grad()
    def check(self, of: Proxy, images: Tensor) -> None:
        """Raise `ProxyError` unless it gives for `images` what `of` does; looked at once per proxy."""
        if id(of) in self._checked:
            return
        expected, got = of(images, self._space), self._first(self.network(images.to(self.dtype)))
        if got.shape != expected.shape or not torch.allclose(got, expected, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ProxyError(
                f"proxy '{of.name}' ({type(of.network).__name__}) cannot be compiled: without its head '{of.head}' it "
                "gives something else than its features. Leave out compile=True, or use space='logit'."
            )
        self._checked.add(id(of))

    def _compute(self, images: Tensor) -> Any:
        try:
            return self._compiled(images)
        except Exception as error:  # torch.compile's own troubles have many names
            raise ProxyError(
                f"proxy '{self.name}' ({type(self.network).__name__}) could not be compiled ({type(error).__name__}: "
                f"{str(error).partition(chr(10))[0]}). Leave out compile=True."
            ) from error

    def _read(self, images: Tensor, space: Space) -> Tensor:
        return self._first(self._compute(images))

    @staticmethod
    def _first(output: Any) -> Tensor:
        found: Tensor = output[0] if isinstance(output, tuple | list) else output
        return found.flatten(1)
