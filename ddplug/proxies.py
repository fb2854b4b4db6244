"""Proxies: frozen classifiers through which the regulariser looks at the synthetic images.

A `Proxy` is a network whose penultimate features and logits can be read; a `ProxyPool` is several of them, of the same
data in the same input space, one of which is drawn per round.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ddplug.errors import DDPlugError, InputError, PoolError, ProxyError, SpaceError
from ddplug.precision import Precision, layers
from ddplug.spaces import AnySpace

Space = Literal["feature", "logit"]


@dataclass(frozen=True)
class PoolInfo:
    """What all proxies of a pool have in common; a field that is None is not known and not checked."""

    dataset: str | None = None
    """Name of the data set they were trained on."""
    class_names: tuple[str, ...] | None = None
    """Its classes, in the order of the labels."""
    shape: tuple[int, int, int] | None = None
    """Channels, height and width of its images."""
    space: AnySpace | None = None
    """What the numbers in those images mean."""
    fingerprint: str | None = None
    """A hash of the data set, which tells two of one name apart."""


@dataclass
class Proxy:
    """One frozen network and the name of its head, the layer whose input are the penultimate features.

    The network is put in eval mode and its parameters ask for no gradient. `record` holds what is known of it (seed,
    epochs, test accuracy, ...) and is saved with the pool.
    """

    network: nn.Module
    head: str | None = None
    name: str = "proxy"
    record: dict[str, Any] = field(default_factory=dict)
    costs: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What a pass over an image of some kind was seen to cost; see `ddplug.pieces`."""

    streamed: ClassVar[bool] = False
    """Whether the weights are somewhere else until they are needed."""

    def __post_init__(self) -> None:
        self._named_by_user = bool(self.head)
        self._kind: tuple[object, ...] | None = None
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
        return _digest(sorted(self.weights().items()))

    def weights(self) -> dict[str, Tensor]:
        """Everything that this proxy has and another of its architecture has differently, by name."""
        return self.network.state_dict()

    def ask_ahead(self, together: int) -> None:
        """Told that the next round will use it and `together` - 1 others."""

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for proxies that compute the same, but for their weights; for networks of unknown making, their own."""
        if self._kind is None:
            made: object = id(self.network)
            if isinstance(spec := getattr(self.network, "spec", None), Mapping):
                saved = self.network.state_dict()
                unsaved = [(key, value) for key, value in self.network.named_buffers() if key not in saved]
                # What was changed after building shows in the printed network and in what is saved with no weights.
                made = (repr(sorted(spec.items())), repr(self.network), _digest(unsaved))
            self._kind = type(self.network), made, self.head, self.dtype
        return self._kind

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the weights, to which images are cast."""
        return next((p.dtype for p in self.network.parameters() if p.is_floating_point()), torch.float32)

    def __call__(self, images: Tensor, space: Space = "feature", precision: Precision = "exact") -> Tensor:
        """(n, d) penultimate features, or logits, of `images`, (n, c, h, w); differentiable in the images.

        `precision` is that of the layers, see `ddplug.precision`; the host's own autocast is not the proxy's.

        Raises `ProxyError` if the network does not take such images or its head is not where it was said to be.
        """
        try:
            with layers(images.device, precision):
                features = self._read(images.to(self.dtype), space)
        except (torch.OutOfMemoryError, DDPlugError):
            raise
        except Exception as error:  # what a network raises for images it was not made for is its own affair
            raise ProxyError(
                f"proxy '{self.name}' ({type(self.network).__name__}) does not take images of shape "
                f"{tuple(images.shape)} ({type(error).__name__}: {_first_line(error)}). Use proxies trained on images "
                "of this size and number of channels."
            ) from error
        if len(features) != len(images):
            raise ProxyError(
                f"the head '{self.head}' of proxy '{self.name}' sees {len(features)} rows for {len(images)} images, "
                "expected one row per image. Name another head."
            )
        return features

    def _read(self, images: Tensor, space: Space) -> Tensor:
        """What goes into the head, or comes out of it, as rows."""
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
        return seen[-1][0 if space == "feature" else -1].flatten(1)

    def _compute(self, images: Tensor) -> Any:
        return self.network(images)


class ProxyPool:
    """Frozen proxies of one data set in one input space, kept together on one device.

    Made by `from_modules`, `load` or `ddplug pretrain`; `of` accepts whatever users pass as `proxies=`.
    """

    def __init__(self, proxies: Sequence[Proxy], info: PoolInfo | None = None) -> None:
        if not proxies:
            raise PoolError("a pool needs at least one proxy, got none.")
        self.proxies = list(proxies)
        self.info = info or PoolInfo()
        self._device: torch.device | None = None

    @classmethod
    def from_modules(
        cls,
        modules: Sequence[nn.Module] | nn.Module,
        *,
        head: str | None = None,
        info: PoolInfo | None = None,
        names: Sequence[str] | None = None,
    ) -> ProxyPool:
        """A pool of copies of the user's own networks, whose originals stay as they are.

        Args:
            modules: trained classifiers; copied, so that training on does not change the pool.
            head: dotted name of the layer whose input are the features; found by itself if it is the last linear layer.
            info: data set, classes, image shape and input space, as far as known.
            names: for error messages and records.
        """
        modules = [modules] if isinstance(modules, nn.Module) else list(modules)
        for module in modules:
            if not isinstance(module, nn.Module):
                raise ProxyError(f"got {type(module).__name__} as a proxy, expected a torch.nn.Module.")
        if names is not None and len(names) != len(modules):
            raise ProxyError(f"got {len(names)} names for {len(modules)} networks, expected one each.")
        names = names or [f"{type(module).__name__}-{i}" for i, module in enumerate(modules)]
        return cls([Proxy(copy.deepcopy(m), head, name) for m, name in zip(modules, names, strict=True)], info)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        dataset: str | None = None,
        builders: dict[str, Callable[..., nn.Module]] | None = None,
        partial: bool = False,
        budget: int = 4 << 30,
    ) -> ProxyPool:
        """Read a pool that `save` or `ddplug pretrain` wrote.

        Args:
            folder: the pool's folder.
            dataset: refuse a pool of another data set than this one.
            builders: how to build architectures that are neither ddplug's nor torchvision's, by their recorded name.
            partial: take the complete networks of a pool whose training was interrupted.
            budget: bytes of weights. A larger pool is streamed from its files ahead of use, and as many of its
                networks' weights as fit stay on the device; those on their way come on top.

        Raises:
            PoolError: no pool there, half-written, damaged, of another data set or architecture not known.
        """
        from ddplug.poolfiles import read_pool

        return read_pool(Path(folder), dataset=dataset, builders=builders or {}, partial=partial, budget=budget)

    def save(self, folder: str | Path) -> None:
        """Write the pool as safetensors files and a `pool.json`; all or nothing.

        Raises `PoolError` if the folder already holds something, or a network's architecture cannot be recorded (only
        networks of `ddplug.networks.build`, or with a `spec` attribute of that form, can be built again from a file).
        """
        from ddplug.poolfiles import write_pool

        write_pool(self, Path(folder))

    @classmethod
    def of(cls, proxies: object) -> ProxyPool:
        """The pool meant by a pool, a folder, one network or several."""
        if isinstance(proxies, cls):
            return proxies
        if isinstance(proxies, str | Path):
            return cls.load(proxies)
        if isinstance(proxies, Proxy):
            return cls([proxies])
        if isinstance(proxies, Sequence) and proxies and all(isinstance(given, Proxy) for given in proxies):
            return cls(proxies)
        if isinstance(proxies, nn.Module | Sequence):
            return cls.from_modules(proxies)
        raise PoolError(
            f"got {type(proxies).__name__} as proxies, expected a ProxyPool, a pool's folder, or trained networks "
            "(torch.nn.Module)."
        )

    def draw(self, count: int, generator: torch.Generator) -> list[Proxy]:
        """`count` different proxies, drawn with `generator` (a CPU generator of the caller's own)."""
        if not 1 <= count <= len(self):
            raise PoolError(f"cannot draw {count} different proxies from a pool of {len(self)}.")
        if len(self) == 1:
            return list(self.proxies)
        order = torch.randperm(len(self), generator=generator)[:count]
        return [self.proxies[i] for i in order.tolist()]

    def look_ahead(self, count: int, generator: torch.Generator) -> None:
        """Have what `draw` with the same arguments would give next on its way, if it is not here; draws nothing."""
        if any(proxy.streamed for proxy in self.proxies):
            for proxy in self.draw(count, generator.clone_state()):
                proxy.ask_ahead(count)

    def check(self, images: Tensor, space: AnySpace | None) -> None:
        """Raise unless these proxies can look at `images` of a host whose input space is `space`; reads no value.

        Raises:
            InputError: not (n, c, h, w) or not floating-point.
            ProxyError: channels or size that the pool was not trained for.
            SpaceError: an input space that cannot be converted.
        """
        if images.ndim != 4 or not images.is_floating_point():
            raise InputError(
                f"expected images as a floating-point tensor (n, channels, height, width), got {images.dtype} of "
                f"shape {tuple(images.shape)}."
            )
        if self.info.shape is not None and tuple(images.shape[1:]) != self.info.shape:
            raise ProxyError(
                f"got images of shape {tuple(images.shape[1:])} (channels, height, width), but these proxies were "
                f"trained on {self.info.shape}{f' ({self.info.dataset})' if self.info.dataset else ''}. "
                "Use a pool trained on the host's own data."
            )
        if space is not None and space.channels != images.shape[1]:
            raise SpaceError(
                f"got images of {images.shape[1]} channels in an input space of {space.channels} ({space}). Pass the "
                "host's own input space."
            )
        if self.info.space is not None and space is not None:
            space.convert(images.detach()[:0], self.info.space)  # no image at all, but the same refusals

    def probe(self, images: Tensor, input_space: AnySpace | None, space: Space) -> None:
        """Show one of `images` to every proxy, and raise `ProxyError` unless each answers with numbers, drawing none.

        A proxy that is broken, or of another kind of images, is best found out before it is relied on.
        """
        with torch.no_grad():
            image = self.prepare(images.detach()[:1], input_space)
            seen: set[object] = set()
            for proxy in self.proxies:
                if proxy.streamed and proxy.kind in seen:
                    continue  # its weights were looked at when the pool was opened, and are far away
                seen.add(proxy.kind)
                before = _random_state(image.device)
                features = proxy(image, space)
                if not torch.equal(before, _random_state(image.device)):
                    raise ProxyError(
                        f"proxy '{proxy.name}' draws random numbers even in eval mode, from the generator that is the "
                        "host's; dropout called as a function does so. Make it respect eval mode."
                    )
                if bool(torch.isfinite(image).all() & ~torch.isfinite(features).all()):
                    raise ProxyError(
                        f"proxy '{proxy.name}' gives {space}s that are not finite for a finite image (range "
                        f"{image.min().item():.3g} to {image.max().item():.3g}): it is broken, or was trained on "
                        "images of another input space. Leave it out or train it again."
                    )

    def prepare(self, images: Tensor, space: AnySpace | None) -> Tensor:
        """`images` of a host whose input space is `space`, as these proxies want them; differentiable.

        An unknown space is taken to be the pool's own. Moves the pool to the images' device, once.
        """
        if self._device != images.device:
            self.to(images.device)
        if self.info.space is None or space is None:
            return images
        return space.convert(images, self.info.space)

    def to(self, device: torch.device | str) -> ProxyPool:
        """Move all proxies to `device`; returns the pool."""
        for proxy in self.proxies:
            proxy.network.to(device)
        self._device = torch.device(device)
        return self

    def __len__(self) -> int:
        return len(self.proxies)

    def __iter__(self) -> Iterator[Proxy]:
        return iter(self.proxies)

    def __repr__(self) -> str:
        kinds = sorted({type(proxy.network).__name__ for proxy in self.proxies})
        return f"ProxyPool({len(self)} x {'/'.join(kinds)}, {self.info.dataset or 'unknown data set'})"


def check_space(space: str) -> Space:
    """`space` if it is "feature" or "logit", else `InputError`."""
    if space not in get_args(Space):
        raise InputError(f"unknown space {space!r}, expected 'feature' (penultimate features) or 'logit'.")
    return space  # type: ignore[return-value]


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    numbers = hashlib.sha256()
    for key, value in tensors:
        numbers.update(key.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return numbers.hexdigest()[:16]


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
    """Whether the network's output is its head's (a tuple's first entry counts, as some networks add features)."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    return isinstance(first, Tensor) and first.numel() == of_head.numel() and first.data_ptr() == of_head.data_ptr()


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.default_generator.get_state()
