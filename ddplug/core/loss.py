"""The loss form: CMI of images as a module, to be added to a loss by hand, and twice differentiable."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ddplug.core.autograd import uncompiled
from ddplug.core.options import check_count
from ddplug.datasets.spaces import AnySpace
from ddplug.errors import InputError, ProxyError, caution
from ddplug.proxies.pool import ProxyPool
from ddplug.proxies.representations import PLURAL, Representation, check_representation
from ddplug.terms import make
from ddplug.terms.base import batched, group


class CMI(nn.Module):
    """CMI of images under a pool of proxies, in nats: `loss = loss + lam * cmi(images, labels)`.

    Use it where the identity layer, `ddplug.Regularizer`, cannot go: when somebody differentiates through it twice.

    Args:
        proxies: a `ProxyPool`, a pool's folder, a network or a list of them.
        representation: "feature" for penultimate features (the paper's choice), or "logit".
        temperature: T > 0 in softmax(f / T).
        draw: how many proxies each call averages over, drawn by a generator of our own; "all" for every one.
        input_space: the images' normalisation, as for `ddplug.Regularizer`; None if it is the pool's.
        seed: of that generator.
    """

    def __init__(
        self,
        proxies: object,
        representation: Representation = "feature",
        *,
        temperature: float = 1.0,
        draw: int | Literal["all"] = 1,
        input_space: AnySpace | str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        # Not a submodule, so that the proxies' weights are not among the parameters of a host's module.
        self.pool = ProxyPool.of(proxies)
        self.representation = check_representation(representation)
        self.term = make("cmi", temperature=temperature)
        self.draw = len(self.pool) if draw == "all" else draw
        check_count("draw", self.draw)
        self.pool.check_draw(self.draw)
        self.input_space = self.pool.space_of(input_space)
        self.generator = torch.Generator().manual_seed(seed)
        self._probed = self._warned = False

    @uncompiled
    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """CMI of `images`, (n, c, h, w) floats, with class numbers `labels`, (n,): a scalar.

        Raises:
            InputError: invalid images or labels.
            ProxyError: proxies that do not take the images, or give features that are not finite.
            InputError: an input space that cannot be converted to the pool's.
        """
        if batched(images):
            raise InputError(
                "ddplug.CMI was called within torch.vmap, where it cannot look at values. Call it for each set in a "
                "loop; torch.func.grad, jvp and jacfwd work."
            )
        groups = group(labels, len(images), images.device)
        self.pool.check(images, self.input_space)
        if not self._probed:
            self.pool.probe(images, self.input_space, self.representation)
            self._probed = True
        if groups.one_image_per_class and not self._warned:
            self._warned = True
            caution(self.term.too_few)
        prepared = self.pool.prepare(images, self.input_space)
        values = []
        for proxy in self.pool.draw(self.draw, self.generator):
            features = proxy(prepared, self.representation)
            if not torch.isfinite(features).all():
                raise ProxyError(
                    f"proxy '{proxy.name}' gives {PLURAL[self.representation]} that are not finite for "
                    f"these images (range {images.min().item():.3g} to {images.max().item():.3g}). Check the images "
                    "for NaN and their input space against the pool's."
                )
            values.append(self.term(features, groups))
        return torch.stack(values).mean()
