"""CMI of views and its gradient: what the regulariser computes once per round."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddplug.cmi import Groups, closed_form
from ddplug.errors import InputError
from ddplug.proxies import Proxy, Space


def cmi_gradient(
    proxies: Sequence[Proxy],
    views: Tensor,
    groups: Groups,
    *,
    space: Space,
    temperature: float,
    prepare: Callable[[Tensor], Tensor],
    augment: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """CMI under each proxy, averaged, in nats, and its gradient on `views` (n, c, h, w), in fp32 or better.

    One forward and one backward pass through each proxy; `prepare` brings images into the proxies' input space, and
    `augment`, if given, turns each view into the several that CMI is estimated on, `groups` being those of its result.
    """
    # The host may be in autocast during its backward pass; neither direction of ours is.
    with torch.enable_grad(), torch.autocast(views.device.type, enabled=False):
        # In half precision a pixel's share of CMI, 1e-8 and less, would be gone before lambda has made it large again.
        wide = views if views.dtype == torch.float64 else views.float()
        images = wide.detach().requires_grad_()
        augmented = images if augment is None else augment(images)
        if len(augmented) != len(groups.index) or not augmented.requires_grad:
            raise InputError(
                f"the further views of {len(images)} images are {len(augmented)}, expected {len(groups.index)} that "
                "depend differentiably on the images; look at view=."
            )
        seen = augmented.detach().requires_grad_()
        value, grad = torch.zeros((), device=seen.device), torch.zeros_like(seen)
        for proxy in proxies:
            features = proxy(prepare(seen), space)
            sums, derivative = closed_form(features.detach(), groups, temperature)
            share = len(seen) * len(proxies)
            (part,) = torch.autograd.grad(features, seen, (derivative / share).to(features.dtype))
            value, grad = value + sums.sum() / share, grad + part
        if augment is not None:
            (grad,) = torch.autograd.grad(augmented, images, grad)
    return value, grad
