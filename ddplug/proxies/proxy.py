"""A proxy: a frozen classifier whose penultimate features and logits can be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ddplug.datasets.spaces import AnySpace
from ddplug.errors import DDPlugError, ProxyError
from ddplug.networks.precision import Precision, layers
from ddplug.proxies.representations import Representation
from ddplug.terms.real import Real
from ddplug.utils.digest import named_bytes, short_sha256
from ddplug.utils.memory import out_of_memory


@dataclass(frozen=True)
class PoolInfo:
    """Properties that all proxies of a pool share; a field that is None is not known and not checked."""

    dataset: str | None = None
    """Name of the data set they were trained on."""
    class_names: tuple[str, ...] | None = None
    """Its classes, in the order of the labels."""
    shape: tuple[int, int, int] | None = None
    """Channels, height and width of its images."""
    space: AnySpace | None = None
    """The meaning of the numbers in these images."""
    fingerprint: str | None = None
    """A hash of the data set, by which two of one name differ."""


@dataclass
class Proxy:
    """One frozen network and the name of its head, the layer whose input are the penultimate features.

    The network is put in eval mode and its parameters need no gradient. `record` holds what is known of it (seed,
    epochs, test accuracy, ...) and is saved with the pool.
    """

    network: nn.Module
    head: str | None = None
    name: str = "proxy"
    record: dict[str, Any] = field(default_factory=dict)
    costs: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The measured cost of a pass over an image, by its kind; see `ddplug.core.chunking`."""
    centroids: dict[tuple[str, float], Real] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Logs of real images' centroids by representation and temperature; see `ddplug.proxies.centroids`."""

    def __post_init__(self) -> None:
        self._named_by_user = bool(self.head)
        self._kind: tuple[object, ...] | None = None
        self._hash: str | None = None
        if not self.head:
            self.head = _find_head(self.network, self.name)
        else:
            _submodule(self.network, self.head, self.name)
        broken = [key for key, value in self.network.state_dict().items() if not _finite(value)]
        if broken:
            raise ProxyError(
                f"proxy '{self.name}' has weights that are not finite ({', '.join(broken[:3])}): it diverged in "
                "training or its file is damaged. Leave it out or train it again."
            )
        self.network.eval().requires_grad_(False)

    def digest(self) -> str:
        """A short hash of the weights, by which two networks are known to be one."""
        if self._hash is None:
            self._hash = short_sha256(named_bytes(sorted(self.weights().items())))
        return self._hash

    @property
    def outputs(self) -> int | None:
        """Number of classes, if its head is a linear layer."""
        head = _submodule(self.network, self.head or "", self.name)
        return head.out_features if isinstance(head, nn.Linear) else None

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors in which this proxy differs from another of its architecture, by name."""
        return self.network.state_dict()

    @property
    def kind(self) -> tuple[object, ...]:
        """A key that is equal for proxies which differ in their weights only; a network without `spec` has its own."""
        if self._kind is None:
            made: object = id(self.network)
            if isinstance(spec := getattr(self.network, "spec", None), Mapping):
                saved = self.network.state_dict()
                unsaved = [(key, value) for key, value in self.network.named_buffers() if key not in saved]
                # What was changed after building shows in the printed network and in what is saved with no weights.
                made = (repr(sorted(spec.items())), repr(self.network), short_sha256(named_bytes(unsaved)))
            self._kind = type(self.network), made, self.head, self.dtype
        return self._kind

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the weights, to which images are cast."""
        return next((p.dtype for p in self.network.parameters() if p.is_floating_point()), torch.float32)

    def error_in_place(self) -> ProxyError:
        """The error of a network that changes its input."""
        return ProxyError(
            f"proxy '{self.name}' ({type(self.network).__name__}) changes its input in place, which is the host's. "
            "Have its first layer work on a copy: inplace=False."
        )

    def __call__(
        self, images: Tensor, representation: Representation = "feature", precision: Precision = "exact"
    ) -> Tensor:
        """(n, d) penultimate features or logits of `images`, (n, c, h, w); differentiable in them.

        `precision` is that of the layers, see `ddplug.networks.precision`; the host's own autocast is not the proxy's.

        Raises `ProxyError` if the network does not take such images, or its head is not where it is named.
        """
        seen = images.to(self.dtype)
        version = None if seen.is_inference() else seen._version
        try:
            with layers(images.device, precision):
                features = self._read(seen, representation)
        except Exception as error:  # what a network raises for images it was not made for is its own affair
            if isinstance(error, DDPlugError) or out_of_memory(error):
                raise
            raise ProxyError(
                f"proxy '{self.name}' ({type(self.network).__name__}) does not take images of shape "
                f"{tuple(images.shape)} ({type(error).__name__}: {_first_line(error)}). Use proxies trained on images "
                "of this size and number of channels."
            ) from error
        if version is not None and seen._version != version:
            raise self.error_in_place()
        if len(features) != len(images):
            raise ProxyError(
                f"the head '{self.head}' of proxy '{self.name}' sees {len(features)} rows for {len(images)} images, "
                "expected one row per image. Name another head."
            )
        return features

    def _read(self, images: Tensor, representation: Representation) -> Tensor:
        """Return the head's input or output, as rows."""
        seen = self._at_head(images)
        return seen[-1 if representation == "logit" else 0].flatten(1)

    def _at_head(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the head's inputs and, at the end, its output, unchanged."""
        seen: list[tuple[Tensor, ...]] = []
        head = _submodule(self.network, self.head or "", self.name)
        # Hooks live only as long as the call, so that nothing of ours is ever left in somebody's network.
        hook = head.register_forward_hook(
            lambda _, args, kwargs, output: seen.append((*args, *kwargs.values(), output)), with_kwargs=True
        )
        try:
            output = self._compute(images)
        finally:
            hook.remove()
        if not seen or not (self._named_by_user or _same(output, seen[-1][-1])):
            raise ProxyError(
                f"'{self.head}' of proxy '{self.name}' ({type(self.network).__name__}) "
                f"{'gives something else than the network does' if seen else 'was not reached'}, so it is not the "
                f"head. Name the head (head='...'); candidates: {', '.join(_candidates(self.network)) or 'none'}."
            )
        return seen[-1]

    def _compute(self, images: Tensor) -> Any:
        return self.network(images)


class StreamedProxy(Proxy):
    """A proxy whose weights stay in a memory-mapped file; all proxies of its architecture share the module `network`.

    Args:
        file: safetensors file of the weights.
        shared: the module, whose own weights make no difference.
        of: a proxy with the same module, head, name and record.
    """

    def __init__(self, file: Path, shared: nn.Module, of: Proxy) -> None:
        super().__init__(shared, of.head, of.name, of.record)
        self._file = file

    def weights(self) -> dict[str, Tensor]:
        """Return the weights of this network, in the dtypes and on the device of the module."""
        from safetensors.torch import load_file

        try:
            mapped = load_file(self._file)
        except Exception as error:
            raise ProxyError(
                f"the weights of proxy '{self.name}' cannot be read ({type(error).__name__}: {error}). Did the pool's "
                "folder move, or was a file of it changed or deleted while it was in use?"
            ) from error
        return {name: mapped[name].to(value) for name, value in self.network.state_dict().items()}

    def _compute(self, images: Tensor) -> Any:
        # The graph holds these very tensors, so that another network's turn changes nothing in it.
        return functional_call(self.network, self.weights(), (images,), tie_weights=False)


def _find_head(network: nn.Module, name: str) -> str:
    found = _candidates(network)
    if not found:
        raise ProxyError(
            f"proxy '{name}' ({type(network).__name__}) has no linear layer to take for its head. Name the layer "
            "whose input are the penultimate features: head='...'."
        )
    return found[-1]


def _candidates(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]


def _submodule(network: nn.Module, name: str, proxy: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        raise ProxyError(
            f"proxy '{proxy}' ({type(network).__name__}) has no layer '{name}'; "
            f"linear layers: {', '.join(_candidates(network)) or 'none'}."
        ) from error


def _same(output: object, of_head: Tensor) -> bool:
    """Return True if the network's output is its head's (the first entry of a tuple counts)."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    return isinstance(first, Tensor) and first.numel() == of_head.numel() and _memory_of(first) == _memory_of(of_head)


def _memory_of(tensor: Tensor) -> int:
    """The address of the numbers of `tensor`, also within torch.func's transforms."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.data_ptr()


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
