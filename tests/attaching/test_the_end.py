"""Counts of the steps of the images, and of those with CMI, as `detach()` announces them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug

Batch = tuple[Tensor, Tensor]
STEPS = 4


class Trainer:
    """Twelve images behind an augmentation; a network whose weights have the shape of images."""

    def __init__(self, batch: Batch) -> None:
        images, labels = batch
        self.images, self.labels = images.clone().requires_grad_(), labels
        self.opt = torch.optim.SGD([self.images], lr=0.1)
        self.net = nn.Conv2d(3, 2, 3, bias=False).double()
        self.net_opt = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def augment(self, x: Tensor) -> Tensor:
        return torch.roll(x, 1, dims=-1)

    def loss(self, images: Tensor) -> Tensor:
        return self.augment(images).square().mean()

    def train(self) -> None:
        for _ in range(STEPS):
            self.opt.zero_grad()
            self.loss(self.images).backward()
            self.opt.step()

    def train_network(self) -> None:
        for _ in range(STEPS):
            self.net_opt.zero_grad()
            self.net(self.images.detach()).square().mean().backward()
            self.net_opt.step()


def both(trainer: Trainer, handle: ddplug.Handle) -> None:
    trainer.train_network()
    trainer.train()


def class_by_class(trainer: Trainer, handle: ddplug.Handle) -> None:
    for _ in range(STEPS):
        trainer.opt.zero_grad()
        for c in range(3):
            trainer.loss(trainer.images[trainer.labels == c]).backward()
        trainer.opt.step()


def with_a_closure(trainer: Trainer, handle: ddplug.Handle) -> None:
    trainer.opt = torch.optim.LBFGS([trainer.images], max_iter=3)  # type: ignore[assignment]

    def closure() -> Tensor:
        trainer.opt.zero_grad()
        loss = trainer.loss(trainer.images)
        loss.backward()
        return loss

    for _ in range(STEPS):
        trainer.opt.step(closure)  # type: ignore[arg-type]


def resumed(trainer: Trainer, handle: ddplug.Handle) -> None:
    earlier = ddplug.attach(Trainer((trainer.images.detach(), trainer.labels)), proxies=handle.regularizer.pool)
    state = earlier.state_dict()
    state["rounds"] = 100
    earlier.regularizer.watch.expect("never acts")
    handle.load_state_dict(state)
    trainer.train()


def a_leaf_and_an_optimizer_per_class(trainer: Trainer, handle: ddplug.Handle) -> None:
    order = trainer.labels.argsort()
    parts = trainer.images.detach()[order].split(trainer.labels.bincount().tolist())
    trainer.labels = trainer.labels[order]
    trainer.images = [part.clone().requires_grad_() for part in parts]  # type: ignore[assignment]
    optimizers = [torch.optim.SGD([leaf], lr=0.1) for leaf in trainer.images]
    for _ in range(STEPS):
        trainer.loss(torch.cat(list(trainer.images))).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def beside_a_network(trainer: Trainer, handle: ddplug.Handle) -> None:
    trainer.opt = torch.optim.SGD([trainer.images, *trainer.net.parameters()], lr=0.1)
    trainer.train()


def without_a_gradient(trainer: Trainer, handle: ddplug.Handle) -> None:
    for _ in range(STEPS):
        trainer.opt.zero_grad()
        (0.0 * trainer.loss(trainer.images)).backward()
        trainer.opt.step()


def of_an_embedding(trainer: Trainer, handle: ddplug.Handle) -> None:
    trainer.images = nn.Embedding.from_pretrained(trainer.images.detach().flatten(1), freeze=False).weight
    trainer.opt = torch.optim.SGD([trainer.images], lr=0.1)
    for _ in range(STEPS):
        trainer.opt.zero_grad()
        trainer.loss(trainer.images.view(12, 3, 4, 4)).backward()
        trainer.opt.step()


def of_a_generator(trainer: Trainer, handle: ddplug.Handle) -> None:
    generator = nn.Linear(5, 48).double()
    trainer.opt = torch.optim.SGD(generator.parameters(), lr=0.1)
    for _ in range(STEPS):
        trainer.opt.zero_grad()
        trainer.loss(generator(torch.arange(60).view(12, 5).double().cos()).view(12, 3, 4, 4)).backward()
        trainer.opt.step()


def by_hand(trainer: Trainer, handle: ddplug.Handle) -> None:
    trainer.opt = None  # type: ignore[assignment]
    for _ in range(STEPS):
        (grad,) = torch.autograd.grad(trainer.loss(trainer.images), trainer.images)
        trainer.images.data -= grad


CASES: dict[str, tuple[Callable[[Trainer, ddplug.Handle], None], str, dict[str, Any]]] = {
    "a network's optimizer steps no images": (both, "3 of 4 steps of the images (lambda was measured first) at", {}),
    "every second round": (both, "1 of 4 steps of the images", {"compute": ddplug.Compute(every=2)}),
    "a schedule of 0": (
        both,
        "0 of 4 steps of the images",
        {"weighting": ddplug.Relative(schedule=lambda number: 0.0)},
    ),
    "a host's gradient of 0": (without_a_gradient, "0 of 4 steps of the images", {}),
    "passes that add up": (class_by_class, "4 of 4 steps of the images", {}),
    "a closure": (with_a_closure, "4 of 4 steps of the images", {}),
    "a run that goes on": (resumed, "3 of 4 steps of the images", {}),
    "an optimizer per class": (a_leaf_and_an_optimizer_per_class, "9 of 12 steps of the images", {}),
    "one optimizer for all": (beside_a_network, "3 of 4 steps of the images", {}),
    "an embedding": (of_an_embedding, "3 of 4 steps of the images", {}),
    "a generator": (of_a_generator, "3 of 4 steps of the images", {"labels": torch.arange(12) // 4}),
    "no optimizer": (by_hand, "3 of 4 rounds", {}),
}


@pytest.mark.filterwarnings("ignore::ddplug.DDPlugWarning")
@pytest.mark.parametrize("name", CASES)
def test_steps_and_those_with_cmi(name: str, batch: Batch, pool: ddplug.ProxyPool) -> None:
    train, expected, options = CASES[name]
    said: list[str] = []
    trainer = Trainer(batch)
    with ddplug.attach(trainer, proxies=pool, announce=said.append, **options) as handle:
        train(trainer, handle)
    assert f"CMI acted in {expected}" in said[-1]


def test_an_optimizer_that_steps_no_images_is_no_error(batch: Batch, pool: ddplug.ProxyPool) -> None:
    """A network alone was trained, and steps without a gradient change nothing: a warning says that CMI never acted."""
    trainer = Trainer(batch)
    handle = ddplug.attach(trainer, proxies=pool)
    trainer.train_network()
    trainer.opt.step()
    with pytest.warns(ddplug.DDPlugWarning, match="never came into action"):
        handle.detach()


def test_images_of_a_module_that_the_trainer_holds(batch: Batch, pool: ddplug.ProxyPool) -> None:
    """They are found there, so it is an error that no step of theirs had CMI."""
    trainer: Any = Trainer(batch)
    trainer.model = nn.Module()
    trainer.model.images, trainer.images = nn.Parameter(batch[0].clone()), None
    optimizer = torch.optim.SGD([trainer.model.images], lr=0.1)
    handle = ddplug.attach(trainer, proxies=pool)
    for _ in range(STEPS):
        trainer.model.images.square().sum().backward()
        optimizer.step()
    with pytest.raises(ddplug.errors.HostError, match=f"took {STEPS} steps of the images"):
        handle.detach()


@pytest.mark.parametrize("place", ["augment", "optimizer", "labels"])
def test_an_error_that_the_host_catches_is_quoted_at_the_end(place: str, pool: ddplug.ProxyPool, batch: Batch) -> None:
    """Kind: errors raised into code that is not ours. Looked at: the layer's, at an optimizer's step, labels not read.

    An error from before is none of this run's.
    """
    ddplug.errors.RAISED.append("an error of a run before")
    trainer = Trainer((batch[0], batch[1].index_fill(0, torch.tensor([0]), -1)))
    options: dict[str, Any] = {"at": "augment", "labels": trainer.labels}
    if place == "labels":
        options["labels"] = lambda views: "none"
    attached = trainer.opt if place == "optimizer" else trainer
    if place == "optimizer":
        del options["at"]
    handle = ddplug.attach(attached, proxies=pool, announce=lambda line: None, **options)
    for _ in range(STEPS):
        try:
            trainer.opt.zero_grad()
            trainer.loss(trainer.images).backward()
            trainer.opt.step()
        except ddplug.DDPlugError:
            if place != "optimizer":
                trainer.images.grad = torch.ones_like(trainer.images)
                trainer.opt.step()
    quoted = "The host caught an error: " + (".*str" if place == "labels" else "labels must be class numbers")
    if place == "optimizer":  # which was not stepped
        with pytest.warns(ddplug.DDPlugWarning, match=quoted):
            handle.detach()
    else:
        with pytest.raises(ddplug.errors.HostError, match=quoted):
            handle.detach()


def test_a_layer_whose_errors_the_host_caught(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """A line in the loop, without `attach`: every call raised, and the end quotes the first error."""
    ddplug.errors.RAISED.clear()
    layer = ddplug.Regularizer(pool, 1.0, announce=lambda _: None)
    for _ in range(3):
        with contextlib.suppress(Exception):
            layer(batch[0].clone().requires_grad_() * 1, batch[1][:5]).sum().backward()
    with pytest.warns(
        ddplug.DDPlugWarning, match=r"never came into action.*caught an error: got labels of shape \(5,\)"
    ):
        layer.watch.report()  # as at the end of the process
    layer.detach()
