"""Runs checks of `test_distributed.py` in real processes on gloo, each in a group of its own.

    python tests/core/processes.py NUMBER FOLDER CHECK...

FOLDER then has a file for each check and process: empty, or what went wrong.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_network
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

import ddplug
from ddplug.datasets.images import as_image_data
from ddplug.errors import HostError
from ddplug.terms import Groups, Term

CHECKS: dict[str, Callable[[Any], None]] = {}
QUIET: dict[str, Any] = {"announce": lambda line: None, "weighting": ddplug.Relative(2)}


def check(function: Callable[[Any], None]) -> Callable[[Any], None]:
    """To be run in all processes, with their group."""
    CHECKS[function.__name__] = function
    return function


def pool() -> ddplug.ProxyPool:
    return ddplug.ProxyPool.from_modules([tiny_network(seed) for seed in range(3)])


def whole_set() -> tuple[Tensor, Tensor]:
    """Twelve images of three classes."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(12, 3, 4, 4, generator=generator, dtype=torch.float64)
    return images, torch.tensor([2, 0, 1, 1, 0, 2, 1, 0, 1, 2, 1, 1])


def here(sizes: list[int]) -> slice:
    """This process's rows, where the first has sizes[0], and so on."""
    rank = dist.get_rank()
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def even() -> slice:
    return here([12 // dist.get_world_size()] * dist.get_world_size())


UNEVEN = {2: [[9, 3], [1, 11], [12, 0]], 4: [[5, 1, 4, 2], [1, 1, 9, 1], [0, 6, 0, 6]]}
"""The second splits off one image, so one class; in the third a process has nothing."""


KINDS = {"relative": ddplug.Relative(2), "sustained": ddplug.Sustained(2), "absolute": ddplug.Absolute()}


def layer(group: Any, sharing: Any, weight: float = 0.7, **options: Any) -> ddplug.Regularizer:
    proxies = options.pop("proxies", None) or pool()
    return ddplug.Regularizer(proxies, weight, processes=ddplug.Processes(sharing, group), **{**QUIET, **options})


def train(regularizer: Any, images: Tensor, labels: Tensor, steps: int = 5) -> Tensor:
    """The images' gradients, (steps, n, c, h, w), of a host whose loss is a sum over images."""
    host, gradients = tiny_network(9), []
    for step in range(steps):
        leaf = images.clone().requires_grad_()
        (host(regularizer(1.3 * leaf, labels)).square().sum() * (1 + step)).backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
        images = images - 0.01 * leaf.grad
    return torch.stack(gradients)


def same(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    if expected.numel():
        assert (got - expected).abs().max() < 1e-12 * expected.abs().max()


def same_history(one: Any, other: Any) -> None:
    assert len(one.history) == len(other.history) > 0
    for first, second in zip(one.history, other.history, strict=True):
        assert (first.number, first.images, first.skipped) == (second.number, second.images, second.skipped)
        assert second.lam == pytest.approx(first.lam, rel=1e-12)
        # Sums in another order.
        assert second.value == pytest.approx(first.value, rel=1e-12)
        assert second.share == (None if first.share is None else pytest.approx(first.share, rel=1e-12))
    measured = other.state_dict()["weighting"]
    for key, value in one.state_dict()["weighting"].items():
        if isinstance(value, float | list):
            kept, expected = (torch.tensor(each, dtype=torch.float64) for each in (measured[key], value))
            torch.testing.assert_close(kept, expected, rtol=1e-12, atol=0.0)
        else:
            assert measured[key] == value


@check
def shards(group: Any) -> None:
    images, labels = whole_set()
    size = dist.get_world_size()
    for weighting in ("absolute", "relative", "sustained"):
        one = layer(None, "separate", weighting=KINDS[weighting])
        expected = train(one, images, labels)
        for rows in (even(), *map(here, UNEVEN[size])):
            regularizer = layer(group, "sharded", weighting=KINDS[weighting])
            same(train(regularizer, images[rows], labels[rows]), expected[:, rows])
            same_history(one, regularizer)
            assert regularizer.lam == pytest.approx(one.lam, rel=1e-12)


class Spread(Term):
    """Computed by autograd."""

    def __call__(self, features: Tensor, groups: Groups) -> Tensor:
        return (features - groups.mean(features)[groups.index]).square().sum(-1).mean()


class Apart(Term):
    """Not made up of the classes' own."""

    def __call__(self, features: Tensor, groups: Groups) -> Tensor:
        return -groups.mean(features).var(0).sum().log()


@check
def options(group: Any) -> None:
    """Whatever changes what a round is made on."""
    images, labels = whole_set()
    rows = here(UNEVEN[dist.get_world_size()][0])
    several: list[dict[str, Any]] = [
        {"term": Spread()},
        {"term": Apart()},
        {"compute": ddplug.Compute(classes=2), "weighting": "absolute"},
        {"compute": ddplug.Compute(chunk=2, draw=2), "representation": "feature"},
        {"weighting": ddplug.Relative(2, set_size=24)},
        {"compute": ddplug.Compute(every=2)},
        {"views": ddplug.Views(2, torch.tanh)},
        {"weight": 0, "record": True},
        {"weighting": ddplug.Relative(2, schedule=lambda number: 1 / (1 + number))},
    ]
    for given in several:
        one, regularizer = layer(None, "separate", **given), layer(group, "sharded", **given)
        same(train(regularizer, images[rows], labels[rows]), train(one, images, labels)[:, rows])
        same_history(one, regularizer)


@check
def stored_centroids(group: Any) -> None:
    """One sample for all, also where a process has no image."""
    images, labels = whole_set()
    split = (images.float(), labels)
    data = as_image_data((split, split), space=ddplug.InputSpace.normalized([0.5] * 3, [0.25] * 3))
    several: list[dict[str, Any]] = [
        {"term": "cmi_real", "data": data},
        {"term": "cmi_real", "data": data, "weight": 0, "record": True},
    ]
    for given in several:
        for rows in (even(), here(UNEVEN[dist.get_world_size()][-1])):
            one, regularizer = layer(None, "separate", **given), layer(group, "sharded", **given)
            same(train(regularizer, images[rows], labels[rows]), train(one, images, labels)[:, rows])
            same_history(one, regularizer)


@check
def a_round_of_passes(group: Any) -> None:
    """As many as each process takes."""
    images, labels = whole_set()
    rows = even()
    host, results = tiny_network(9), []
    for regularizer, mine, cut in ((layer(None, "separate"), slice(None), 5), (layer(group, "sharded"), rows, 2)):
        leaf = images[mine].clone().requires_grad_()
        for _ in range(3):
            leaf.grad = None
            with regularizer.round():
                for part, own in zip(leaf.split(cut), labels[mine].split(cut), strict=True):
                    host(regularizer(part * 1, own)).square().sum().backward()
        assert leaf.grad is not None
        results.append((leaf.grad, regularizer))
    same(results[1][0], results[0][0][rows])
    same_history(results[0][1], results[1][1])


class Set(nn.Module):
    """A set as a module, of which a process takes some rows."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = nn.Parameter(images.clone())

    def forward(self, rows: slice) -> Tensor:
        return self.images[rows].tanh()


def train_parallel(group: Any, regularizer: Any, rows: slice, loss: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Gradients of the set, as DDP has averaged them."""
    images, labels = whole_set()
    parallel, gradients = DistributedDataParallel(Set(images), process_group=group), []
    for step in range(5):
        parallel.zero_grad()
        loss(regularizer(parallel(rows), labels[rows]), step).backward()
        gradients.append(parallel.module.images.grad.clone())
    return torch.stack(gradients)


def mean_loss(views: Tensor, step: int) -> Tensor:
    return tiny_network(9)(views).square().mean() * (1 + step)


def alone(regularizer: Any) -> Tensor:
    """The same in one process."""
    images, labels = whole_set()
    held, gradients = Set(images), []
    for step in range(5):
        held.zero_grad()
        mean_loss(regularizer(held(slice(None)), labels), step).backward()
        assert held.images.grad is not None
        gradients.append(held.images.grad.clone())
    return torch.stack(gradients)


@check
def averaged_by_ddp(group: Any) -> None:
    """Each process takes its part of one set, and DDP divides by their number: so it does in the regulariser's part."""
    for weighting in ("absolute", "relative", "sustained"):
        one = layer(None, "separate", weighting=KINDS[weighting])
        expected = alone(one)
        regularizer = layer(group, "averaged", weighting=KINDS[weighting])
        same(train_parallel(group, regularizer, even(), mean_loss), expected)
        same_history(one, regularizer)


@check
def replicated(group: Any) -> None:
    """The whole set in each process counts once, whether gradients are averaged or not."""
    for given in ({"weighting": "absolute"}, {}, {"weighting": ddplug.Relative(2, set_size=12)}):
        one = layer(None, "separate", **given)
        expected = alone(one)
        regularizer = layer(group, "replicated", **given)
        same(train_parallel(group, regularizer, slice(None), mean_loss), expected)
        same_history(one, regularizer)
        same(alone(layer(group, "replicated", **given)), expected)


@check
def replicated_with_other_real_images(group: Any) -> None:
    """Lambda goes by the root mean square of the processes' own gradients, and is one."""
    rank, size = dist.get_rank(), dist.get_world_size()
    regularizer = layer(group, "replicated", weighting=ddplug.Relative(1))
    train_parallel(group, regularizer, slice(None), lambda views, step: mean_loss(views, 0) * (1 + rank))
    one = layer(None, "separate", weighting=ddplug.Relative(1))
    alone(one)
    assert one.lam is not None
    rms = (sum((1 + other) ** 2 for other in range(size)) / size) ** 0.5
    assert regularizer.lam == pytest.approx(rms * one.lam, rel=1e-12)


@check
def attached_to_the_optimizer(group: Any) -> None:
    """Shards, one process of which has no gradient; and copies, whose gradient is averaged when the step comes."""
    images, labels = whole_set()
    rows, rank, size = even(), dist.get_rank(), dist.get_world_size()
    weight = torch.ones(12, 1, 1, 1, dtype=torch.float64)
    weight[12 // size : 24 // size] = 0  # the second process's

    def stepped(mine: slice, sharing: Any, of: Any) -> Tensor:
        leaf = images[mine].clone().requires_grad_()
        optimizer = torch.optim.SGD([leaf], lr=0.01)
        with ddplug.attach(
            optimizer, 0.7, proxies=pool(), labels=labels[mine], processes=ddplug.Processes(sharing, of), **QUIET
        ):
            for _ in range(4):
                optimizer.zero_grad()
                if sharing != "sharded" or rank != 1:  # else there is no gradient at all
                    (leaf.square() * weight[mine]).sum().backward()
                optimizer.step()
        return leaf.detach()

    expected = stepped(slice(None), "separate", None)
    assert torch.equal(expected[12 // size : 24 // size], images[12 // size : 24 // size])
    same(stepped(rows, "sharded", group), expected[rows])
    same(stepped(slice(None), "replicated", group), expected)
    with pytest.raises(ddplug.errors.InputError, match="pass processes='replicated'"):
        stepped(slice(None), "averaged", group)


@check
def a_state_of_one_process(group: Any) -> None:
    """Goes on in several, and back."""
    images, labels = whole_set()
    rows = even()
    one, many = layer(None, "separate"), layer(group, "sharded")
    train(one, images, labels, 3)
    many.load_state_dict(one.state_dict())
    same(train(many, images[rows], labels[rows]), train(one, images, labels)[:, rows])
    again = layer(None, "separate")
    again.load_state_dict(many.state_dict())
    same(train(again, images, labels), train(one, images, labels))


@check
def not_finite_in_one(group: Any) -> None:
    """Leaves the round out in all, also where the others' images are in another."""
    images, labels = whole_set()
    scale = torch.inf if dist.get_rank() == 1 else 1.0
    for sharing, rows in (("sharded", even()), ("replicated", slice(None))):
        regularizer = layer(group, sharing, weighting="absolute")
        views = (images[rows] * scale).requires_grad_()
        with pytest.warns(ddplug.DDPlugWarning, match="not finite in round 0"):
            regularizer(views, labels[rows]).sum().backward()
        assert views.grad is not None
        assert torch.equal(views.grad, torch.ones_like(views))
        assert regularizer.history[0].skipped


@check
def said_wrongly(group: Any) -> None:
    """What is not said, and what is said differently, is an error in every process."""
    images, labels = whole_set()
    rows, rank = even(), dist.get_rank()
    with pytest.raises(ddplug.errors.InputError, match=r"runs \d processes, and each would .* Say what each"):
        train(layer(None, "one"), images, labels)
    differing: list[tuple[str, dict[str, Any]]] = [
        ("the proxies drawn", {"seed": rank}),
        ("weight", {"weight": 1.0 + rank}),
        ("temperature", {"term": ddplug.terms.CMI(1.0 + rank)}),
        ("the proxies", {"proxies": ddplug.ProxyPool.from_modules([tiny_network(rank)])}),
    ]
    for name, given in differing:
        with pytest.raises(HostError, match=f"differ in {name}: .* in process 0, .* in process 1"):
            train(layer(group, "sharded", **given), images[rows], labels[rows])
    ahead = layer(group, "replicated", compute=ddplug.Compute(every=2))
    if rank == 1:
        ahead._progress.rounds = 2
    with pytest.raises(HostError, match=r"differ in the number of rounds: 0 in process 0, 2 in process 1"):
        train(ahead, images, labels)


@check
def fewer_rounds(group: Any) -> None:
    """Whoever waits for a process that does not come is told, after the group's timeout."""
    images, labels = whole_set()
    short = dist.new_group(timeout=timedelta(seconds=1))
    regularizer = layer(short, "replicated", weighting="absolute")
    train(regularizer, images, labels, 1)
    if dist.get_rank() != 0:
        before = regularizer.state_dict()
        with pytest.raises(HostError, match="same rounds"):
            train(regularizer, images, labels, 1)
        after = regularizer.state_dict()
        assert after["rounds"] == before["rounds"] == 1
        assert len(after["history"]) == 1
    dist.barrier(group)


@check
def a_process_ends(group: Any) -> None:
    """The last check: the others end with an error instead of waiting."""
    images, labels = whole_set()
    if dist.get_rank() == 1:
        return
    with pytest.raises(HostError, match="ended or raised"):
        train(layer(group, "replicated"), images, labels)


def work(rank: int, size: int, folder: str, names: list[str]) -> None:
    """What a process does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    for name in names:
        group = dist.new_group(timeout=timedelta(seconds=20))
        told = ""
        try:
            CHECKS[name](group)
        except BaseException:
            told = traceback.format_exc()
        Path(folder, f"{name}-{rank}").write_text(told)
    os._exit(0)  # without a word to the others, as in the last check


if __name__ == "__main__":
    import torch._dynamo  # else each process does it for itself

    size = int(sys.argv[1])
    context = multiprocessing.get_context("fork")  # importing torch once is enough
    running = [context.Process(target=work, args=(rank, size, sys.argv[2], sys.argv[3:])) for rank in range(size)]
    for process in running:
        process.start()
    for process in running:
        process.join()
