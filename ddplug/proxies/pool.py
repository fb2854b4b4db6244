"""A pool of proxies: frozen networks of the same data in the same input space, one of which is drawn per round."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from ddplug.datasets.spaces import SPELLINGS, AnySpace, named_space
from ddplug.errors import InputError, ProxyError
from ddplug.proxies.draws import drawing
from ddplug.proxies.proxy import PoolInfo, Proxy
from ddplug.proxies.representations import PLURAL, Representation
from ddplug.terms.base import Term
from ddplug.terms.cmi_real import RealCentroids
from ddplug.utils.digest import short_sha256

__all__ = ["PoolInfo", "Proxy", "ProxyPool"]


class ProxyPool:
    """Frozen proxies of one data set in one input space, kept together on one device.

    Made by `from_modules`, `load` or `ddplug pretrain`; `of` accepts whatever users pass as `proxies=`.
    """

    def __init__(self, proxies: Sequence[Proxy], info: PoolInfo | None = None) -> None:
        if not proxies:
            raise ProxyError("a pool needs at least one proxy, got none.")
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
        input_space: AnySpace | str | None = None,
    ) -> ProxyPool:
        """A pool of copies of the user's own networks, whose originals stay as they are.

        Args:
            modules: trained classifiers; copied, so that training on does not change the pool.
            head: dotted name of the layer whose input are the features; found by itself if it is the last linear layer.
            info: data set, classes, image shape and input space, as far as known.
            names: for error messages and records.
            input_space: what the numbers in the images they were trained on mean, if `info` does not say: an
                `InputSpace`, "unit", or "normalized:cifar10" and the like.
        """
        modules = [modules] if isinstance(modules, nn.Module) else list(modules)
        for module in modules:
            if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
                raise ProxyError(
                    f"got {type(module).__name__} as a proxy, expected a torch.nn.Module whose layers can be read, not "
                    "one of torch.jit."
                )
        modules = [getattr(module, "_orig_mod", module) for module in modules]  # of torch.compile
        if names is not None and len(names) != len(modules):
            raise ProxyError(f"got {len(names)} names for {len(modules)} networks, expected one each.")
        names = names or [f"{type(module).__name__}-{i}" for i, module in enumerate(modules)]
        proxies = [Proxy(_copied(m), head, name) for m, name in zip(modules, names, strict=True)]
        info = info or PoolInfo()
        if input_space is not None:
            if isinstance(input_space, str):
                channels = info.shape[0] if info.shape is not None else _channels(proxies[0].network)
                input_space = named_space(input_space, channels)
            info = replace(info, space=input_space)
        return cls(proxies, info)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        dataset: str | None = None,
        budget: int = 4 << 30,
    ) -> ProxyPool:
        """Read a pool that `save` or `ddplug pretrain` wrote.

        Args:
            folder: the pool's folder.
            dataset: refuse a pool of another data set than this one.
            budget: bytes of weights. A larger pool stays in its memory-mapped files, which are read in every pass.

        Raises:
            ProxyError: no pool there, half-written, damaged, of another data set or architecture not known.
        """
        from ddplug.proxies.pool_files import read_pool

        pool = cls(*read_pool(Path(folder), budget))
        if dataset is not None:
            pool.check_data(dataset)
        return pool

    def save(self, folder: str | Path) -> None:
        """Write the pool as safetensors files and a `pool.json`; all or nothing.

        Raises `ProxyError` if the folder already holds something, or a network's architecture cannot be recorded (only
        networks of `ddplug.networks.build`, own ones by `ddplug.networks.register`, can be built again from a file).
        """
        from ddplug.proxies.pool_files import write_pool

        write_pool(self.proxies, self.info, Path(folder))

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
        raise ProxyError(
            f"got {type(proxies).__name__} as proxies, expected a ProxyPool, a pool's folder, or trained networks "
            "(torch.nn.Module)."
        )

    @property
    def pending(self) -> bool:
        """True if the pool has no proxies yet."""
        return not self.proxies

    def space_of(self, given: AnySpace | str | None) -> AnySpace | None:
        """Return the input space of images for these proxies, as the user gave it.

        Raises `InputError` for a string that means none, and for a pool that does not say what its own space is, as
        nothing could be converted and the word would be ignored.
        """
        if given is None:
            return None
        own = self.info.space
        if self.pending and isinstance(given, str):
            if given not in ("unit", "zca"):
                named_space(given)  # a name that means nothing is best refused at once
            return None
        found = named_space(given, own.channels if own is not None else 3, own) if isinstance(given, str) else given
        if not hasattr(found, "to_unit"):
            raise InputError(f"got {type(given).__name__} as an input space, expected {SPELLINGS}.")
        if own is None and not self.pending:
            raise InputError(
                f"the images are {found}, but this pool does not say what its proxies were trained on, so "
                "nothing can be converted. Say it where the pool is made: ProxyPool.from_modules(networks, "
                "input_space='normalized:cifar10'), or the like; or leave input_space out if it is the same."
            )
        return found

    def derived_space(self, found: AnySpace | None) -> AnySpace | None:
        """Return a space that was found and not given; None for a pool of unknown space, which cannot convert."""
        return found if self.info.space is not None or self.pending else None

    def check_draw(self, count: int) -> None:
        """Raise `InputError` if the pool has fewer than `count` proxies; a pending pool passes."""
        if not self.pending and not 1 <= count <= len(self):
            raise InputError(f"draw must be between 1 and the pool's size, {len(self)}, got {count}.")

    def draw(self, count: int, generator: torch.Generator) -> list[Proxy]:
        """`count` different proxies, drawn with `generator` (a CPU generator of the caller's own)."""
        self.check_draw(count)
        if len(self) == 1:
            return list(self.proxies)
        order = torch.randperm(len(self), generator=generator, device="cpu")[:count]
        return [self.proxies[i] for i in order.tolist()]

    def check(self, images: Tensor, space: AnySpace | None) -> None:
        """Raise unless these proxies take `images` in the input space `space`; reads no value.

        Raises:
            InputError: not (n, c, h, w) or not floating-point.
            ProxyError: channels or size that the pool was not trained for.
            InputError: an input space that cannot be converted.
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
            raise InputError(
                f"got images of {images.shape[1]} channels in an input space of {space.channels} ({space}). Pass the "
                "host's own input space."
            )
        if self.info.space is not None and space is not None:
            space.convert(images.detach()[:0], self.info.space)  # no image at all, but the same refusals

    def check_data(self, dataset: str, fingerprint: str | None = None, *, because: str = "") -> None:
        """Raise `ProxyError` if this pool says that it was trained on other data than `dataset`.

        Args:
            dataset: name of the data; upper case, hyphens and underscores make no difference, as hosts write CIFAR-10.
            fingerprint: `ImageData.fingerprint()` of the data, by which two editions of one name differ; None to
                compare names only.
            because: the reason why it has to be this data set, as a clause, if that is not obvious.
        """
        own = self.info
        if own.dataset is not None and _plain(own.dataset) != _plain(dataset):
            trained = f"{own.dataset}, not on {dataset}"
        elif fingerprint is not None and own.fingerprint not in (None, fingerprint):
            trained = f"another edition of {dataset}"
        else:
            return
        reason = f" ({because})" if because else ""
        raise ProxyError(
            f"this pool of proxies was trained on {trained}{reason}. A proxy says nothing useful of images it does not "
            "know. Train some on this data with `ddplug pretrain`; or, if you know better, leave dataset and "
            "fingerprint out of the pool's info."
        )

    def check_classes(self, labels: Tensor) -> None:
        """Raise `InputError` for class numbers (n,) that this pool's data set does not have; reads values."""
        names = self.info.class_names
        if names is not None and len(labels) and int(labels.max()) >= len(names):
            raise InputError(
                f"got labels up to {int(labels.max())}, but these proxies were trained on "
                f"{self.info.dataset or 'a data set'} with {len(names)} classes (0 to {len(names) - 1}). Number the "
                "classes as the pool does, or use proxies of the host's own data."
            )

    def has_centroids(self, term: Term, representation: Representation) -> bool:
        """Return True if `term` is CMI around real centroids, and every proxy has these; see `add_centroids`."""
        if not isinstance(term, RealCentroids) or self.pending:
            return False
        return all((representation, term.temperature) in proxy.centroids for proxy in self.proxies)

    def digest(self) -> str:
        """Sixteen hex digits that are equal for equal proxies in the same order."""
        return short_sha256(proxy.digest().encode() for proxy in self.proxies)

    def probe(self, images: Tensor, input_space: AnySpace | None, representation: Representation) -> None:
        """Raise `ProxyError` unless every proxy gives finite numbers for a batch, changes nothing and draws nothing.

        A proxy that is broken, or of another kind of images, is best found out before it is relied on.
        """
        with torch.no_grad():
            # Two images, as some code draws for batches only, and a copy, as some changes its input.
            image = self.prepare(torch.cat([images.detach()[:1]] * 2), input_space)
            before = image.clone()
            for proxy in self.proxies:
                features, drew = drawing(partial(proxy, image, representation), image.device)
                if drew:
                    raise ProxyError(
                        f"proxy '{proxy.name}' draws random numbers even in eval mode, from {drew}'s generator, which "
                        "is the host's; dropout called as a function does so. Make it respect eval mode."
                    )
                if not torch.allclose(image, before, rtol=0, atol=0, equal_nan=True):
                    raise proxy.error_in_place()  # through .data, which has no version
                if bool(torch.isfinite(image).all() & ~torch.isfinite(features).all()):
                    raise ProxyError(
                        f"proxy '{proxy.name}' gives {PLURAL[representation]} that are not finite for a "
                        f"finite image (range {image.min().item():.3g} to {image.max().item():.3g}): it is broken, or "
                        "was trained on images of another input space. Leave it out or train it again."
                    )

    def prepare(self, images: Tensor, space: AnySpace | None) -> Tensor:
        """Convert `images` in the input space `space` to that of these proxies; differentiable.

        An unknown space is taken to be the pool's own. Moves the pool to the images' device, once.
        """
        if self._device != images.device:
            with temporarily_clear_interpreter_stack():  # a move within torch.func's transforms breaks the weights
                self.to(images.device)
        if self.info.space is None or space is None:
            return images
        with torch.autocast(images.device.type, enabled=False):  # the host's; a whitening is a product of matrices
            return space.convert(images, self.info.space)

    def features(
        self,
        proxy: Proxy,
        images: Tensor,
        space: AnySpace | None,
        representation: Representation = "feature",
        batch_size: int = 256,
    ) -> Tensor:
        """Features (n, d) of images in `space` by one of the proxies, in batches; differentiable."""
        pieces = torch.split(images, batch_size)
        return torch.cat([proxy(self.prepare(piece, space), representation) for piece in pieces])

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
        kinds = sorted({each.name.rpartition("-")[0] or type(each.network).__name__ for each in self.proxies})
        return f"ProxyPool({len(self)} x {'/'.join(kinds)}, {self.info.dataset or 'unknown data set'})"


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


class DeferredPool(ProxyPool):
    """A pool that gets its proxies later, by `fill`, for instance when a host runs.

    `given` is what names it, for its text.
    """

    def __init__(self, given: object = "") -> None:
        self.given = given
        self.proxies: list[Proxy] = []
        self.info = PoolInfo()
        self._device = None

    def fill(self, pool: ProxyPool) -> None:
        """Become `pool`."""
        self.proxies, self.info, self._device = pool.proxies, pool.info, None

    def __repr__(self) -> str:
        return f"ProxyPool({self.given or 'to come from the host'})" if self.pending else super().__repr__()


def scheme_of(given: str) -> str | None:
    """The scheme of `SCHEME:PATH`; None for a folder, a Windows drive included."""
    name, colon, _ = given.partition(":")
    return name if colon and name.isalnum() and len(name) > 1 else None


def _copied(module: nn.Module) -> nn.Module:
    """A copy of `module`, whose weights may be computed anew in each pass, as by the old `weight_norm`."""
    held = [value for each in module.modules() for value in vars(each).values() if isinstance(value, Tensor)]
    return copy.deepcopy(module, {id(value): value.detach().clone() for value in held if not value.is_leaf})


def _channels(network: nn.Module) -> int | None:
    """Channels of the images that `network` takes, if its first convolution says so."""
    return next((module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d)), None)
