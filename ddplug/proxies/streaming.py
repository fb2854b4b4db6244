"""Pools larger than memory: the weights of a network are read from its memory-mapped file when it is drawn.

No network is ever built: one module per architecture computes with the weights that it is given.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ddplug.errors import ProxyError
from ddplug.proxies.proxy import Proxy

Weights = dict[str, Tensor]


class WeightFiles:
    """Safetensors files of weights, of which the last ones read stay on the device.

    Args:
        files: one per network.
        most: how many networks' weights stay; one at least.
    """

    def __init__(self, files: Sequence[Path], most: int) -> None:
        self.files, self.most = list(files), max(most, 1)
        self._kept: OrderedDict[tuple[int, torch.device], Weights] = OrderedDict()

    def read(self, number: int, device: torch.device, dtypes: dict[str, torch.dtype]) -> Weights:
        """Return the weights of network `number` in the dtypes of its module."""
        from safetensors.torch import load_file

        key = number, device
        if key not in self._kept:
            try:
                mapped = load_file(self.files[number])
            except Exception as error:
                raise ProxyError(
                    f"the weights of a proxy could not be read ({type(error).__name__}: {error}). Did the pool's "
                    "folder move, or was a file of it changed or deleted while it was in use?"
                ) from error
            self._kept[key] = {name: value.to(device, dtypes[name], copy=True) for name, value in mapped.items()}
            if len(self._kept) > self.most:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy starts with nothing on the device."""
        return type(self), (self.files, self.most)


class StreamedProxy(Proxy):
    """A proxy whose weights are in a file; `network` is the module that all of its architecture compute with."""

    def __init__(
        self, source: WeightFiles, number: int, network: nn.Module, head: str | None, name: str, record: dict[str, Any]
    ) -> None:
        super().__init__(network, head, name, record)
        self._source, self._number = source, number
        self._dtypes = {key: value.dtype for key, value in network.state_dict().items()}

    def weights(self) -> Weights:
        """Return the weights of this network, on the device that the module is on."""
        return self._source.read(self._number, next(self.network.parameters()).device, self._dtypes)

    def _compute(self, images: Tensor) -> Any:
        # The graph holds these very tensors, so that another network's turn changes nothing in it.
        return functional_call(self.network, self.weights(), (images,), tie_weights=False)
