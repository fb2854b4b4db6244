"""What is held beside the tensors: locks over a fork, replicas of a module, several handles, garbage collection."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug

Batch = tuple[Tensor, Tensor]
LAM = 0.7
QUIET: dict[str, Any] = {"weighting": "absolute", "announce": lambda line: None}

FORKING = """
import os, sys, threading, torch, ddplug
from conftest import tiny_network

regularizer = ddplug.Regularizer([tiny_network()], 0.7, weighting="absolute", announce=lambda line: None)
images = torch.randn(6, 3, 4, 4, dtype=torch.float64)

def gradient():
    leaf = images.clone().requires_grad_()
    regularizer(leaf, torch.tensor([0, 0, 0, 1, 1, 1])).square().sum().backward()
    return leaf.grad

if sys.argv[1] == "before":
    regularizer(images.clone().requires_grad_(), torch.zeros(6, dtype=int))
    if (child := os.fork()) == 0:
        sys.exit()
    os.waitpid(child, 0)
    print("the child ended", file=sys.stderr)
else:
    expected = gradient()
    held, done = threading.Event(), threading.Event()
    def hold():
        with regularizer._keeper._lock:
            held.set()
            done.wait()
    threading.Thread(target=hold).start()
    held.wait()
    if (child := os.fork()) == 0:
        os._exit(0 if torch.equal(gradient(), expected) and len(regularizer.history) == 2 else 1)
    print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    done.set()
    print("parent", torch.equal(gradient(), expected), len(regularizer.history))
"""


def forked(when: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(str(Path(__file__).parents[up]) for up in (1, 2))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    command = [sys.executable, "-c", FORKING, when]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_goes_on_by_itself() -> None:
    """Though a thread of the parent's held the lock; it has copies of everything, and the parent its own."""
    assert forked("within").stdout.split("\n")[:2] == ["child 0", "parent True 2"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_does_not_answer_for_its_parent() -> None:
    """That no round came is said once, by the process that the layer was made in."""
    child, parent = forked("before").stderr.split("the child ended")
    assert "never came into action" not in child
    assert parent.count("never came into action") == 1


class Augmenting(nn.Module):
    def forward(self, views: Tensor, labels: Tensor) -> Tensor:
        return views * 1.5


@pytest.mark.numerical
def test_replicas_of_a_module(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """As `nn.DataParallel` makes them for every forward pass, each in a thread of its own; together one round."""
    trainer = nn.Module()
    trainer.augment = Augmenting()
    trainer.labels = batch[1]

    def gradient(run: Callable[[Tensor], list[Tensor]]) -> Tensor:
        leaf = batch[0].clone().requires_grad_()
        torch.cat(run(leaf)).square().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    def in_replicas(leaf: Tensor) -> list[Tensor]:
        found: list[Any] = [None, None]
        parts = list(zip(leaf.split(6), batch[1].split(6), strict=True))

        def forward(place: int) -> None:
            replica = trainer.augment._replicate_for_data_parallel()
            found[place] = replica(*parts[place])

        threads = [threading.Thread(target=forward, args=(place,)) for place in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    with ddplug.attach(trainer, LAM, proxies=pool, at="augment", **QUIET) as handle:
        got = gradient(in_replicas)
        expected = gradient(lambda leaf: [nn.DataParallel(trainer.augment)(leaf, batch[1])])
        assert [round_.images for round_ in handle.history] == [12, 12]
    assert (got - expected).abs().max() < 1e-12 * expected.abs().max()
    assert (got - gradient(in_replicas)).abs().max() > 1e-4 * got.abs().max()


class Trainer:
    def __init__(self, batch: Batch) -> None:
        self.images, self.labels = batch[0].clone().requires_grad_(), batch[1]
        self.optimizer = torch.optim.SGD([self.images], lr=0.1)

    def augment(self, images: Tensor) -> Tensor:
        return images * 1.5

    def gradient(self) -> Tensor:
        self.optimizer.zero_grad()
        self.augment(self.images).square().sum().backward()
        before = self.images.detach().clone()
        self.optimizer.step()
        step = (before - self.images.detach()) / 0.1
        self.images.data.copy_(before)
        return step


def test_two_handles_on_one_trainer(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """One at the augmentation, one at the optimizer: both count, and each goes without the other."""
    trainer = Trainer(batch)
    plain = trainer.gradient()
    first = ddplug.attach(trainer, LAM, proxies=pool, **QUIET)
    of_views = trainer.gradient() - plain
    second = ddplug.attach(trainer.optimizer, LAM, proxies=pool, labels=batch[1], augment="none", **QUIET)
    both = trainer.gradient()
    first.detach()
    of_images = trainer.gradient() - plain
    second.detach()
    assert torch.equal(trainer.gradient(), plain)
    assert of_views.abs().max() > 1e-6 < of_images.abs().max()
    assert (both - plain - of_views - of_images).abs().max() < 1e-12 * plain.abs().max()


@pytest.mark.parametrize("at", ["trainer", "optimizer"])
def test_nothing_keeps_a_trainer_alive(pool: ddplug.ProxyPool, batch: Batch, at: str) -> None:
    """Once it and its handle are let go of, still attached."""
    trainer = Trainer(batch)
    target = trainer if at == "trainer" else trainer.optimizer
    handle = ddplug.attach(target, LAM, proxies=pool, labels=batch[1], **QUIET)
    trainer.gradient()
    gone = [weakref.ref(held) for held in (trainer, trainer.images, trainer.optimizer, handle.regularizer)]
    del trainer, target, handle
    gc.collect()
    assert [held() for held in gone] == [None] * 4


def test_a_handle_that_is_let_go_of(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """The trainer stays as it is: attached."""
    trainer = Trainer(batch)
    plain = trainer.gradient()
    ddplug.attach(trainer, LAM, proxies=pool, **QUIET)
    gc.collect()
    regularized = trainer.gradient()
    assert (regularized - plain).abs().max() > 1e-6
    gc.collect()
    assert torch.equal(trainer.gradient(), regularized)
