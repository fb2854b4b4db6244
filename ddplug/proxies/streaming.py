"""A pool larger than memory: its networks' weights are read from their files ahead of use.

The files are memory-mapped. While a round is under way, another thread brings the weights that the next round will draw
to the device, on a stream of their own if it is a GPU. As many as the budget allows stay there, the least recently used
leave first. No network is ever built: one module per architecture computes with whatever weights it is handed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ddplug.errors import PoolError
from ddplug.proxies.proxy import Proxy

Weights = dict[str, Tensor]


class Stream:
    """Weights by file, on one device at a time.

    Args:
        files: safetensors files, one per network.
        resident: how many networks' weights stay on the device at least between uses; two at least.
    """

    def __init__(self, files: Sequence[Path], resident: int) -> None:
        self.files, self.resident = list(files), max(resident, 2)
        self.dtypes: dict[int, dict[str, torch.dtype]] = {}
        """By network, what its module computes with, whatever the file has."""
        self._here: OrderedDict[int, Weights] = OrderedDict()
        self._coming: dict[int, _Coming] = {}
        self._device: torch.device | None = None
        self._side: torch.cuda.Stream | None = None

    def weights(self, number: int, device: torch.device) -> Weights:
        """Those of network `number`, read now if nobody asked for them before."""
        self._move(device)
        if number not in self._here:
            coming = self._coming.pop(number, None) or _Coming(self._reader(number, device))
            self._here[number] = coming.result()
            while len(self._here) > self.resident:
                self._here.popitem(last=False)
        self._here.move_to_end(number)
        weights = self._here[number]
        if device.type == "cuda":
            stream = torch.cuda.current_stream(device)
            for tensor in weights.values():
                tensor.record_stream(stream)  # else their memory might be given away while it is still read
        return weights

    def ask_for(self, number: int, device: torch.device, together: int = 1) -> None:
        """Start bringing the weights of network `number` to `device`, to be used with `together` - 1 others."""
        self._move(device)
        self.resident = max(self.resident, together)
        if number not in self._here and number not in self._coming:
            self._coming[number] = _Coming(self._reader(number, device))
            if len(self._coming) > self.resident:  # asked for and never used
                del self._coming[next(iter(self._coming))]

    def _move(self, device: torch.device) -> None:
        if device != self._device:
            self._here.clear()
            self._coming.clear()
            self._device = device
            self._side = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def _reader(self, number: int, device: torch.device) -> Callable[[], tuple[Weights, torch.cuda.Event | None]]:
        file, side, dtypes = self.files[number], self._side, self.dtypes[number]

        def read() -> tuple[Weights, torch.cuda.Event | None]:
            from safetensors.torch import load_file

            mapped = {key: value.to(dtypes[key]) for key, value in load_file(file).items()}
            if side is None:
                return {key: value.to(device, copy=True) for key, value in mapped.items()}, None
            with torch.cuda.stream(side):
                there = {key: value.pin_memory().to(device, non_blocking=True) for key, value in mapped.items()}
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record(side)
            return there, event

        return read

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy starts with nothing on the device and nothing under way."""
        return type(self), (self.files, self.resident), {"dtypes": self.dtypes}


class StreamedProxy(Proxy):
    """A proxy whose weights are in a `Stream`; `network` is the module that all of its architecture compute with."""

    streamed = True

    def __init__(
        self, stream: Stream, number: int, network: nn.Module, head: str | None, name: str, record: dict[str, Any]
    ) -> None:
        super().__init__(network, head, name, record)
        self._stream, self._number = stream, number
        stream.dtypes[number] = {key: value.dtype for key, value in network.state_dict().items()}

    def weights(self) -> Weights:
        """Of this network, on the device that the module is on."""
        return self._stream.weights(self._number, self._device)

    def ask_ahead(self, together: int) -> None:
        """Have the weights on their way."""
        self._stream.ask_for(self._number, self._device, together)

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _compute(self, images: Tensor) -> Any:
        # The graph holds these very tensors, so that another network's turn changes nothing in it.
        return functional_call(self.network, self.weights(), (images,), tie_weights=False)


class _Coming:
    """A result that a thread is working on."""

    def __init__(self, read: Callable[[], tuple[Weights, torch.cuda.Event | None]]) -> None:
        self._found: tuple[Weights, torch.cuda.Event | None] | BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(read,), name="ddplug-weights")
        self._thread.start()

    def _run(self, read: Callable[[], tuple[Weights, torch.cuda.Event | None]]) -> None:
        try:
            self._found = read()
        except BaseException as error:  # handed to whoever waits for it
            self._found = error

    def result(self) -> Weights:
        """The weights, ready for the current stream."""
        self._thread.join()
        found = self._found
        if found is None or isinstance(found, BaseException):
            raise PoolError(
                f"the weights of a proxy could not be read ({type(found).__name__}: {found}). Did the pool's folder "
                "move, or was a file of it changed or deleted while it was in use?"
            ) from found
        weights, event = found
        if event is not None:
            torch.cuda.current_stream(next(iter(weights.values())).device).wait_event(event)
        return weights
