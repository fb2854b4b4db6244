"""`ddplug.attach` to an optimizer: of any kind, in a wrapper, with a closure, of several tensors."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from attaching.loop import LAM, Batch, Trainer, attach, expected_gradient

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer(pool: ddplug.ProxyPool, batch: Batch, kind: Callable[..., torch.optim.Optimizer]) -> None:
    trainer = Trainer(*batch)
    trainer.optimizer = kind([trainer.images], lr=0.1)
    hooks = dict(trainer.optimizer._optimizer_step_pre_hooks)
    attributes = set(vars(trainer.optimizer))
    with attach(trainer.optimizer, pool, labels=batch[1]) as handle:
        got = trainer.gradient()
    torch.testing.assert_close(got, expected_gradient(pool, batch, scale=1.0), rtol=1e-12, atol=0)
    assert len(handle.history) == 1
    assert dict(trainer.optimizer._optimizer_step_pre_hooks) == hooks
    assert set(vars(trainer.optimizer)) == attributes


def test_an_optimizer_stepped_class_by_class(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """As IDC does: images without a gradient in this step are not in the round."""
    images, labels = batch
    leaf = images.clone().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=0.1)
    rows = labels == 1
    with attach(optimizer, pool, labels=labels) as handle:
        leaf[rows].sum().backward()
        optimizer.step()
    own = images[rows].clone().requires_grad_()
    (of_cmi,) = torch.autograd.grad(ddplug.CMI(pool)(own, labels[rows]), own)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad[rows], 1 + LAM * of_cmi, rtol=1e-12, atol=0)
    assert not leaf.grad[~rows].any()
    assert handle.history[0].images == int(rows.sum())


def test_a_maximising_optimizer_still_lowers_cmi(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    leaf = images.clone().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=1.0, maximize=True)
    cmi = ddplug.CMI(pool)
    with attach(optimizer, pool, labels=labels):
        for _ in range(20):
            leaf.grad = torch.zeros_like(leaf)
            optimizer.step()
    assert cmi(leaf, labels) < 0.9 * cmi(images, labels)


def test_an_optimizer_that_unscales_by_itself(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """As fused ones do under a GradScaler, which leaves the scale on them."""
    moved = []
    for scale in (None, torch.tensor(65536.0)):
        leaf = batch[0].clone().requires_grad_()
        optimizer = torch.optim.SGD([leaf], lr=1.0, fused=True)
        if scale is not None:
            optimizer.grad_scale, optimizer.found_inf = scale, torch.tensor(0.0)  # type: ignore[attr-defined]
        with attach(optimizer, pool, labels=batch[1], weighting=ddplug.Relative(1)) as handle:
            for _ in range(2):
                leaf.grad = torch.ones_like(leaf) * (1.0 if scale is None else scale)
                with torch.no_grad():
                    leaf.copy_(batch[0])
                optimizer.step()
        moved.append((handle.lam, leaf.detach() - batch[0]))
    assert moved[1][0] == pytest.approx(moved[0][0], rel=1e-6)
    torch.testing.assert_close(moved[1][1], moved[0][1], rtol=1e-6, atol=0)


def test_a_line_search_finds_the_minimum_with_the_loss_form(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """With the layer the search compares losses without CMI, which a warning names; the loss form ends lower."""
    weight, cmi = 300.0, ddplug.CMI(pool)

    def minimum(of_layer: bool) -> Tensor:
        images = torch.zeros_like(batch[0]).requires_grad_()
        layer = ddplug.Regularizer(pool, weight, weighting="absolute", announce=lambda _: None)
        optimizer = torch.optim.LBFGS([images], line_search_fn="strong_wolfe")

        def loss(layer: ddplug.Regularizer | None) -> Tensor:
            views = images * 1
            if layer is not None:
                return (layer(views, batch[1]) - batch[0]).square().sum()
            return (views - batch[0]).square().sum() + weight * cmi(views, batch[1])

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss(layer if of_layer else None)
            value.backward()
            return value

        for _ in range(20):
            optimizer.step(closure)
        layer.detach()
        return loss(None).detach()

    with pytest.warns(ddplug.DDPlugWarning, match=r"evaluates its closure at several images.*ddplug\.CMI"):
        by_layer = minimum(of_layer=True)
    assert minimum(of_layer=False) < by_layer
    print(by_layer, minimum(of_layer=False))


def test_optimizers_that_do_not_hold_images(pool: ddplug.ProxyPool, batch: Batch) -> None:
    leaf = batch[0].clone().requires_grad_()
    with pytest.raises(ddplug.errors.HostError, match=r"holds 0 tensors .*\[\(5, 4\), \(5,\)\]"):
        attach(torch.optim.SGD(nn.Linear(4, 5).parameters(), lr=1), pool, labels=batch[1])
    with pytest.raises(ddplug.errors.HostError, match=r"labels of its 12 images"):
        attach(torch.optim.SGD([leaf], lr=1), pool)
    optimizer = torch.optim.SGD([leaf], lr=1)
    with (
        pytest.warns(ddplug.DDPlugWarning, match="never came into action"),
        attach(optimizer, pool, labels=batch[1][:5]),
    ):
        leaf.sum().backward()
        with pytest.raises(ddplug.errors.InputError, match=r"labels of shape \(5,\) for 12 images"):
            optimizer.step()


class Wrapper(torch.optim.Optimizer):
    """An optimizer around another, as Accelerate's is."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


def test_an_optimizer_in_a_wrapper(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Trainer(*batch)
    trainer.optimizer = Wrapper(trainer.optimizer)  # type: ignore[assignment]
    with attach(trainer.optimizer, pool, labels=batch[1]) as handle:
        got = trainer.gradient()
        assert len(handle.history) == 1
    torch.testing.assert_close(got, expected_gradient(pool, batch, 1.0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_stepped_with_a_closure(
    pool: ddplug.ProxyPool, batch: Batch, kind: Callable[..., torch.optim.Optimizer], by_name: bool
) -> None:
    """As Lightning does it: what the closure returns is the host's own, and each step has a round."""
    trainer = Trainer(*batch)
    optimizer = kind([trainer.images], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = trainer.images.square().sum()
        loss.backward()
        return loss.item()

    of_cmi = ddplug.CMI(pool)
    with attach(optimizer, pool, labels=batch[1]) as handle:
        for step in range(3):
            before = trainer.images.detach().clone().requires_grad_()
            (expected,) = torch.autograd.grad(before.square().sum() + LAM * of_cmi(before, batch[1]), before)
            got = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
            assert got == before.square().sum().item()
            torch.testing.assert_close(trainer.images.grad, expected, rtol=1e-12, atol=0)
            assert len(handle.history) == step + 1
    before = trainer.images.detach().clone()
    optimizer.step(closure)
    assert torch.equal(trainer.images.grad, 2 * before)  # type: ignore[arg-type]


def test_an_optimizer_that_evaluates_its_closure_repeatedly(pool: ddplug.ProxyPool, batch: Batch) -> None:
    leaf = batch[0].clone().requires_grad_()
    optimizer = torch.optim.LBFGS([leaf], lr=0.1, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = leaf.square().sum()
        loss.backward()
        return loss

    with (
        attach(optimizer, pool, labels=batch[1]),
        pytest.raises(ddplug.errors.HostError, match="several times"),
    ):
        optimizer.step(closure)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("place", ["layer", "optimizer"])
def test_steps_that_follow_gradients_alone(place: str, pool: ddplug.ProxyPool, batch: Batch) -> None:
    """LBFGS without a line search: as with the loss form, in silence. It looks at the loss only to end early."""
    ends = []
    for of_loss in (True, False):
        leaf, cmi = batch[0].clone().requires_grad_(), ddplug.CMI(pool)
        optimizer = torch.optim.LBFGS([leaf], lr=0.1, max_iter=4, tolerance_change=0)
        layer = ddplug.Regularizer(pool, LAM, weighting="absolute", announce=lambda _: None)

        def closure(
            leaf: Tensor = leaf, optimizer: Any = optimizer, cmi: Any = cmi, layer: Any = layer, of_loss: bool = of_loss
        ) -> Tensor:
            optimizer.zero_grad()
            views = leaf * 1
            loss = (layer(views, batch[1]) if place == "layer" and not of_loss else views).square().sum()
            (loss + LAM * cmi(views, batch[1]) if of_loss else loss).backward()
            return loss.detach()

        handle = attach(optimizer, pool, labels=batch[1]) if place == "optimizer" and not of_loss else None
        for _ in range(3):
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        if handle is not None:
            assert len(handle.history) == 12
            handle.detach()
        layer.detach()
        ends.append(leaf.detach())
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-12)


def test_an_optimizer_of_one_tensor_per_class(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """Also where one class's images got no gradient in this step."""
    images, labels = batch
    order = torch.cat([(labels == c).nonzero().flatten() for c in range(3)])
    leaves = [images[labels == c].clone().requires_grad_() for c in range(3)]
    optimizer = torch.optim.SGD(leaves, lr=1.0)
    with attach(optimizer, pool, labels=labels[order]) as handle:
        sum((leaf * 2).sum() for leaf in leaves).backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()
        (leaves[1] * 2).sum().backward()
        optimizer.step()
        assert [r.images for r in handle.history] == [12, len(leaves[1])]
    whole = images[order].clone().requires_grad_()
    ddplug.CMI(pool)(whole, labels[order]).backward()
    assert whole.grad is not None
    first = images[labels == 0] - 2 - LAM * whole.grad[: int((labels == 0).sum())]
    torch.testing.assert_close(leaves[0].detach(), first, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("together", [True, False], ids=["one pass", "class by class"])
def test_an_optimizer_per_class(together: bool, pool: ddplug.ProxyPool, batch: Batch) -> None:
    """A step adds CMI to the images of its own optimizer only: the last class had it three times."""
    images, labels = batch
    parts = [images[labels == c] for c in range(3)]
    leaves = [part.clone().requires_grad_() for part in parts]
    optimizers = [torch.optim.SGD([leaf], lr=0.0) for leaf in leaves]
    trainer = SimpleNamespace(images=leaves, labels=labels.sort().values)
    weighting = ddplug.Absolute(set_size=len(labels))
    with attach(trainer, pool, augment="none", weighting=weighting) as handle:
        for _ in range(2):
            if together:
                for optimizer in optimizers:
                    optimizer.zero_grad()
                torch.cat(leaves).sum().backward()
            for leaf, optimizer in zip(leaves, optimizers, strict=True):
                if not together:
                    optimizer.zero_grad()
                    leaf.sum().backward()
                optimizer.step()
    assert [entry.images for entry in handle.history] == [len(part) for part in parts] * 2
    leaf = torch.cat(parts).requires_grad_()
    (of_cmi,) = torch.autograd.grad(ddplug.CMI(pool)(leaf, trainer.labels), leaf)
    got = torch.cat([each.grad for each in leaves if each.grad is not None])
    torch.testing.assert_close(got, 1 + LAM * of_cmi, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("zeros", [True, False], ids=["zeroed", "replaced"])
def test_two_optimizers_that_step_along_one_gradient(zeros: bool, pool: ddplug.ProxyPool, batch: Batch) -> None:
    """CMI is added to a gradient once, whoever steps along it: the second step had it twice."""
    images, labels = batch
    leaf = images.clone().requires_grad_()
    optimizers = [torch.optim.SGD([leaf], lr=0.0) for _ in range(2)]
    with attach(SimpleNamespace(images=leaf, labels=labels), pool, augment="none") as handle:
        for _ in range(2):
            optimizers[0].zero_grad(set_to_none=not zeros)
            leaf.sum().backward()
            for optimizer in optimizers:
                optimizer.step()
    other = images.clone().requires_grad_()
    (of_cmi,) = torch.autograd.grad(ddplug.CMI(pool)(other, labels), other)
    torch.testing.assert_close(leaf.grad, 1 + LAM * of_cmi, rtol=1e-12, atol=1e-14)
    assert len(handle.history) == 2


@pytest.mark.parametrize("kind", ["line search", "several", "once"])
def test_a_closure_that_is_evaluated_at_several_images(kind: str, pool: ddplug.ProxyPool, batch: Batch) -> None:
    """A layer in a closure that is evaluated at several images in a step warns, and names the loss form.

    Kind: steps that need the loss itself. Looked at: LBFGS with a line search and without (above), attached to the
    optimizer (refused, above), an unknown optimizer, a closure evaluated once, as Lightning does (no warning), and SAM
    (refused, below).
    """

    class Twice(torch.optim.SGD):
        """An optimizer that compares two losses."""

        def step(self, closure: Any = None) -> Any:
            with torch.enable_grad():
                closure()
            with torch.no_grad():
                leaf.sub_(leaf.grad, alpha=0.1)  # type: ignore[arg-type]
            with torch.enable_grad():
                return closure()

    leaf = batch[0].clone().requires_grad_()
    layer = ddplug.Regularizer(pool, 0.5, announce=lambda _: None)
    optimizer: torch.optim.Optimizer = {
        "line search": lambda: torch.optim.LBFGS([leaf], lr=0.1, line_search_fn="strong_wolfe", max_iter=4),
        "several": lambda: Twice([leaf], lr=0.1),
        "once": lambda: torch.optim.SGD([leaf], lr=0.1),
    }[kind]()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = layer(leaf * 1, batch[1]).square().sum()
        loss.backward()
        return loss

    if kind != "once":
        with pytest.warns(ddplug.DDPlugWarning, match="If it compares the losses.*loss form"):
            optimizer.step(closure)  # type: ignore[arg-type]
    else:
        for _ in range(3):
            optimizer.step(closure)  # type: ignore[arg-type]
    layer.detach()


def test_an_optimizer_with_a_first_step_is_refused(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """SAM perturbs the images along the gradient before CMI's part of it is there."""

    class SAM(torch.optim.SGD):
        def first_step(self) -> None:
            """Perturb the images."""

    leaf = batch[0].clone().requires_grad_()
    optimizer = SAM([leaf], lr=0.1)
    for host in (optimizer, SimpleNamespace(syn=leaf, labels=batch[1], optimizer=optimizer)):
        with pytest.raises(ddplug.errors.HostError, match=r"first_step.*at='NAME'"):
            attach(host, pool, labels=batch[1])


@pytest.mark.parametrize("given", ["name", "tensor", "optimizer"])
def test_images_that_are_named_among_others(given: str, pool: ddplug.ProxyPool, batch: Batch) -> None:
    """The advice of the errors: several tensors may be the images, or an optimizer steps others beside them."""
    leaf, other = (batch[0].clone().requires_grad_() for _ in range(2))
    optimizer = torch.optim.SGD([leaf, other], lr=0.1)
    trainer = SimpleNamespace(syn=leaf, other=other, labels=batch[1], optimizer=optimizer)
    host: Any = optimizer if given == "optimizer" else trainer
    labels = {"labels": batch[1]} if given == "optimizer" else {}
    said = "Attach to the optimizer of the images, or pass these" if given == "optimizer" else "images='syn', say"
    other.data = other.data[..., :2] if given == "optimizer" else other.data
    with pytest.raises(ddplug.errors.HostError, match=said):
        attach(host, pool, augment="none", **labels)
    with attach(host, pool, augment="none", images="syn" if given == "name" else leaf, **labels):
        (leaf.sum() + other.sum()).backward()
        optimizer.step()
    own = batch[0].clone().requires_grad_()
    (of_cmi,) = torch.autograd.grad(ddplug.CMI(pool)(own, batch[1]), own)
    assert leaf.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(leaf.grad - 1, LAM * of_cmi, rtol=1e-9, atol=1e-12)
    assert bool((other.grad == 1).all())
