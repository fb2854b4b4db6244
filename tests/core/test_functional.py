"""torch.func, forward-mode differentiation and batched gradients: the loss form in all, the layer refuses by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from ddplug.errors import InputError

pytestmark = pytest.mark.numerical

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def images() -> Tensor:
    return torch.randn(6, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def reference(views: Tensor) -> Tensor:
    """CMI of logits, written down."""
    log_p = network()(views).log_softmax(1)
    p = log_p.exp()
    log_q = p.view(3, 2, 3).mean(1, keepdim=True).expand(3, 2, 3).reshape(6, 3).log()
    return (p * (log_p - log_q)).sum() / 6


def fresh() -> ddplug.CMI:
    """A loss form whose pool has not been used."""
    return ddplug.CMI(ddplug.ProxyPool.from_modules([network()]), "logit")


def gradient() -> Tensor:
    x = images().requires_grad_()
    (found,) = torch.autograd.grad(reference(x), x)
    return found


def close(found: Tensor, expected: Tensor) -> None:
    """Sums of a few hundred products in float64: within 1e-12 of the largest."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


def test_the_loss_form_in_transforms() -> None:
    """The first use of a pool is within the transform, and so are later ones.

    Kind: other ways of differentiating than backward(). Looked at: func.grad (a first use in it ended the process, as
    the pool's move to its device wrapped its weights), jvp, jacfwd of grad, forward_ad, is_grads_batched, vmap (values
    cannot be looked at there, so it is refused by name), functional_call of a host's own network.
    """
    cmi, x, direction = fresh(), images(), images().flip(0)
    for _ in range(2):
        close(torch.func.grad(lambda x: cmi(x, LABELS))(x), gradient())
    cmi = fresh()
    value, tangent = torch.func.jvp(lambda x: cmi(x, LABELS), (x,), (direction,))
    close(value, reference(x))
    close(tangent, (gradient() * direction).sum())
    with torch.autograd.forward_ad.dual_level():
        dual = fresh()(torch.autograd.forward_ad.make_dual(x, direction), LABELS)
        close(torch.autograd.forward_ad.unpack_dual(dual).tangent, (gradient() * direction).sum())
    leaf = x.clone().requires_grad_()
    (batch,) = torch.autograd.grad(
        fresh()(leaf, LABELS), leaf, torch.tensor([1.0, 2.0], dtype=torch.float64), is_grads_batched=True
    )
    close(batch, torch.stack([gradient(), 2 * gradient()]))
    cmi = fresh()
    second = torch.func.jacfwd(torch.func.grad(lambda x: cmi(x, LABELS)))(x).reshape(288, 288)
    expected: Any = torch.autograd.functional.hessian(reference, x)
    close(second, expected.reshape(288, 288))


@pytest.mark.parametrize("within", ["", "grad"])
def test_the_loss_form_refuses_vmap(within: str) -> None:
    cmi = fresh()
    one: Callable[[Tensor], Tensor] = lambda x: cmi(x, LABELS)  # noqa: E731
    with pytest.raises(InputError, match=r"torch\.vmap"):
        torch.func.vmap(torch.func.grad(one) if within else one)(torch.stack([images(), images()]))


def uses(layer: ddplug.Regularizer) -> dict[str, Callable[[Tensor], object]]:
    """A loss through the layer, differentiated in ways of which the layer has no part."""

    def loss(x: Tensor) -> Tensor:
        return layer(x, LABELS).square().sum()

    def forward_mode(x: Tensor) -> object:
        with torch.autograd.forward_ad.dual_level():
            return loss(torch.autograd.forward_ad.make_dual(x, x))

    def batched(x: Tensor) -> object:
        leaf = x.clone().requires_grad_()
        weights = torch.tensor([1.0, 2.0], dtype=torch.float64)
        return torch.autograd.grad(loss(leaf), leaf, weights, is_grads_batched=True)

    def closed_over(x: Tensor) -> object:
        leaf = x.clone().requires_grad_()
        return torch.func.grad(lambda w: (loss(leaf) * w).sum())(torch.ones(1, dtype=x.dtype))

    return {
        "grad": lambda x: torch.func.grad(loss)(x),
        "vmap of grad": lambda x: torch.func.vmap(torch.func.grad(loss))(torch.stack([x, x])),
        "vmap": lambda x: torch.func.vmap(loss)(torch.stack([x, x]).requires_grad_()),
        "jvp": lambda x: torch.func.jvp(loss, (x,), (x,)),
        "forward mode": forward_mode,
        "batched": batched,
        "closed over": closed_over,
    }


@pytest.mark.parametrize("use", list(uses(None)))  # type: ignore[arg-type]
def test_the_layer_refuses_by_name(use: str) -> None:
    layer = ddplug.Regularizer(ddplug.ProxyPool.from_modules([network()]), 1.0, announce=lambda _: None)
    with pytest.raises(InputError, match=r"torch\.func.*ddplug\.CMI"):
        uses(layer)[use](images())
    layer.detach()
    uses(layer)[use](images())


@pytest.mark.parametrize("use", ["grad", "vmap"])
def test_an_augmentation_that_is_attached_to_refuses_by_name(use: str) -> None:
    """vmap hides that the images need a gradient: steps went by the host's gradient alone, without a word."""

    class Trainer:
        def __init__(self) -> None:
            self.images, self.labels = images().requires_grad_(), LABELS
            self.optimizer = torch.optim.SGD([self.images], lr=0.1)

        def augment(self, images: Tensor) -> Tensor:
            return images * 1.5

    trainer = Trainer()
    handle = ddplug.attach(trainer, proxies=[network()], announce=lambda _: None)
    transform = torch.func.grad if use == "grad" else torch.func.vmap
    with pytest.raises(InputError, match=r"torch\.func.*ddplug\.CMI"):
        transform(lambda x: trainer.augment(x).square().sum())(trainer.images)
    handle.regularizer.watch.expect("never acts")
    handle.detach()


def test_real_images_pass_within_transforms() -> None:
    """A host's inner loop on real images, in torch.func, is no affair of the layer's."""
    layer = ddplug.Regularizer(ddplug.ProxyPool.from_modules([network()]), 1.0, announce=lambda _: None)
    found = torch.func.grad(lambda w: (layer(images() * 1, LABELS) * w).sum())(torch.ones(1, dtype=torch.float64))
    close(found, images().sum()[None])
    layer.detach()


def test_the_first_use_ends_no_process() -> None:
    code = (
        "import torch, ddplug; n = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)); "
        "cmi = ddplug.CMI([n], 'logit'); x = torch.randn(4, 3, 2, 2); "
        "print(torch.func.grad(lambda x: cmi(x, torch.tensor([0, 0, 1, 1])))(x).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
