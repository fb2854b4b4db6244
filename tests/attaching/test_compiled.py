"""Trainers and steps that are compiled, before or after."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from attaching.loop import LAM, Batch, attach

pytestmark = pytest.mark.numerical


class Compilable(nn.Module):
    """A trainer as a module, whose augmentation is one, too."""

    class Augment(nn.Module):
        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            return images * 1.5

    def __init__(self, batch: Batch, compiled: bool) -> None:
        super().__init__()
        self.images = nn.Parameter(batch[0].clone())
        self.register_buffer("labels", batch[1])
        augment = self.Augment()
        self.augment = torch.compile(augment, backend="eager") if compiled else augment

    def forward(self) -> Tensor:
        return self.augment(self.images, self.labels).square().sum()  # type: ignore[operator,no-any-return]


@pytest.mark.parametrize("compiled", ["trainer", "augmentation"])
@pytest.mark.parametrize("options", [{}, {"augment": "none"}, {"augment": ddplug.augment.DSA("flip", flip=1.0)}])
def test_compiled_modules(pool: ddplug.ProxyPool, batch: Batch, compiled: str, options: dict[str, Any]) -> None:
    gradients = []
    for plain in (True, False):
        module = Compilable(batch, compiled == "augmentation" and not plain)
        step: Any = torch.compile(module, backend="eager") if compiled == "trainer" and not plain else module
        with attach(step, pool, **options) as handle:
            step().backward()
            assert len(handle.history) == 1
        gradients.append(module.images.grad)
        module.zero_grad()
        step().backward()
        torch.testing.assert_close(module.images.grad, 4.5 * batch[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=0)
    assert not torch.equal(gradients[0], 4.5 * batch[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["layer", "round", "optimizer"])
def test_a_step_compiled_as_a_whole(pool: ddplug.ProxyPool, batch: Batch, how: str) -> None:
    """With its backward pass in it, on whose way back a compiler would otherwise come upon our own code."""
    images, labels = batch
    half = len(labels) // 2

    def run(compiled: bool) -> Tensor:
        leaf = images.clone().requires_grad_()
        optimizer = torch.optim.SGD([leaf], lr=0.1)
        handle = attach(optimizer, pool, labels=labels) if how == "optimizer" else None
        options: dict[str, Any] = {"weighting": "absolute", "announce": lambda line: None}
        layer = handle.regularizer if handle else ddplug.Regularizer(pool, LAM, **options)

        def step() -> None:
            optimizer.zero_grad()
            if how == "optimizer":
                (leaf * 1.5).square().sum().backward()
            elif how == "layer":
                layer(leaf * 1.5, labels).square().sum().backward()
            else:
                with layer.round():
                    layer(leaf[:half] * 1.5, labels[:half]).square().sum().backward()
                    layer(leaf[half:] * 1.5, labels[half:]).square().sum().backward()
            optimizer.step()

        do = torch.compile(step, backend="eager") if compiled else step
        for _ in range(3):
            do()
        assert layer.rounds == 3
        layer.detach()
        if handle:
            handle.detach()
        return leaf.detach()

    torch.testing.assert_close(run(compiled=True), run(compiled=False), rtol=1e-12, atol=0)


def test_a_trainer_that_was_compiled_before(pool: ddplug.ProxyPool, batch: Batch) -> None:
    module = Compilable(batch, False)
    step: Any = torch.compile(module, backend="eager")
    step().backward()
    with attach(step, pool) as handle:
        step().backward()
        assert len(handle.history) == 1
    module.zero_grad()
    step().backward()
    torch.testing.assert_close(module.images.grad, 4.5 * batch[0], rtol=1e-12, atol=0)


class ByMethod(nn.Module):
    """A trainer as a module, whose augmentation is a method, or a function that it holds."""

    def __init__(self, batch: Batch, held: bool) -> None:
        super().__init__()
        self.images = nn.Parameter(batch[0].clone())
        self.register_buffer("labels", batch[1])
        if held:
            self.augment = lambda images: images * 1.5  # type: ignore[method-assign]

    def augment(self, images: Tensor) -> Tensor:
        return images * 1.5

    def forward(self) -> Tensor:
        return self.augment(self.images).square().sum()


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_a_compiled_trainer_with_an_augmentation_of_its_own(
    pool: ddplug.ProxyPool, batch: Batch, held: bool, before: bool
) -> None:
    module = ByMethod(batch, held)
    step: Any = torch.compile(module, backend="eager")
    if before:
        step().backward()
        module.zero_grad()
    with attach(step, pool) as handle:
        step().backward()
        assert len(handle.history) == 1
    own = batch[0].clone().requires_grad_()
    (of_cmi,) = torch.autograd.grad(ddplug.CMI(pool)(own * 1.5, batch[1]), own)
    torch.testing.assert_close(module.images.grad, 4.5 * batch[0] + LAM * of_cmi, rtol=1e-9, atol=1e-12)
    module.zero_grad()
    step().backward()
    torch.testing.assert_close(module.images.grad, 4.5 * batch[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("how", ["layer", "loss form", "attached"])
def test_a_graph_without_breaks(pool: ddplug.ProxyPool, batch: Batch, how: str) -> None:
    """torch's error names what to leave out."""
    module = Compilable(batch, compiled=False)
    views = {
        "layer": lambda: layer(module.images * 1, batch[1]),
        "loss form": lambda: loss(module.images * 1, batch[1]),
        "attached": lambda: module.augment(module.images, batch[1]),  # type: ignore[operator]
    }[how]
    layer, loss = ddplug.Regularizer(pool, LAM, announce=lambda _: None), ddplug.CMI(pool)
    with attach(module, pool):
        torch._dynamo.reset()
        step: Any = torch.compile(lambda: views().sum(), backend="eager", fullgraph=True)
        with pytest.raises(Exception, match="leave fullgraph=True out"):
            step()
        module().backward()  # the run goes on
    layer.detach()


def test_the_loss_form_in_a_compiled_transform(pool: ddplug.ProxyPool, batch: Batch) -> None:
    cmi = ddplug.CMI(pool)
    gradient = torch.func.grad(lambda images: cmi(images, batch[1]))
    expected = gradient(batch[0])
    found = torch.compile(gradient, backend="eager")(batch[0])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
