"""CMI around stored centroids in the layer: whose they are, how long they are kept, and where they go."""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from ddplug.datasets.images import ImageData, as_image_data
from ddplug.hosting.options import add_options, options_of
from ddplug.networks.zoo import build, seeded
from ddplug.terms.around import AroundRunning

pytestmark = pytest.mark.numerical

Batch = tuple[Tensor, Tensor]
QUIET: dict[str, Any] = {"weighting": "absolute", "announce": lambda line: None}


def layer(proxies: Any, **options: Any) -> ddplug.Regularizer:
    return ddplug.Regularizer(proxies, options.pop("weight", 0.7), **{**QUIET, **options})


def train(regularizer: Any, images: Tensor, labels: Tensor, steps: int = 4, start: int = 0) -> Tensor:
    """The gradients, (steps, n, c, h, w), on images that differ from step to step."""
    gradients = []
    for step in range(start, start + steps):
        leaf = (images * (1 + 0.2 * step)).requires_grad_()
        regularizer(leaf, labels).sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad - 1)
    return torch.stack(gradients)


@pytest.fixture
def several(network: Callable[..., nn.Module]) -> ddplug.ProxyPool:
    return ddplug.ProxyPool.from_modules([network(seed) for seed in range(3)])


@pytest.fixture
def ones(batch: Batch) -> Batch:
    """One image of each of three classes."""
    return batch[0][:3], torch.tensor([2, 0, 1])


@pytest.fixture
def data(batch: Batch) -> ImageData:
    """The batch as real data, in float32."""
    split = (batch[0].float(), batch[1])
    return as_image_data((split, split), space="unit")


def rounds(regularizer: ddplug.Regularizer) -> list[list[int]]:
    """How many rounds each class's mean is of, by proxy."""
    return [held["rounds"].tolist() for held in regularizer.state_dict().get("objective", {}).values()]


def test_real_centroids_of_the_batch_are_the_batchs(several: ddplug.ProxyPool, data: ImageData) -> None:
    """The sample of data that have no more images is these images; each proxy has centroids of its own."""
    images, labels = data.train_images.double(), data.train_labels
    around, batch = (layer(several, **options) for options in ({"centroids": "real", "data": data}, {}))
    for _ in range(4):
        got, expected = train(around, images, labels, 1), train(batch, images, labels, 1)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert around.history.cmi == pytest.approx(batch.history.cmi, rel=1e-12)


def test_running_centroids_begin_with_the_batchs(several: ddplug.ProxyPool, batch: Batch) -> None:
    running, plain = layer(several, centroids="running", draw=3), layer(several, draw=3)
    got, expected = train(running, *batch), train(plain, *batch)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(got[1], expected[1])
    assert rounds(running) == [[4, 4, 4]] * 3


@pytest.mark.parametrize("centroids", ["running", "real"])
def test_one_image_per_class_has_a_gradient(
    several: ddplug.ProxyPool, ones: Batch, data: ImageData, centroids: Any
) -> None:
    """Around its own centroid it has none, which is warned about."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = train(layer(several, centroids=centroids, data=data, draw=3), *ones)
    assert found[1:].flatten(1).norm(dim=1).min() > 1e-4
    assert bool(found[0].any()) == (centroids == "real")


def test_the_gradient_is_of_the_value(pool: ddplug.ProxyPool, ones: Batch) -> None:
    """Around means that earlier rounds have left, by the definition."""
    regularizer = layer(pool, centroids="running", weight=1.0, representation="logit")
    p = torch.zeros(3, 3, dtype=torch.float64)
    for number in range(1, 4):
        leaf = (ones[0] * number).requires_grad_()
        own = pool.proxies[0](leaf, "logit").log_softmax(-1)
        if number > 1:
            value = (own.exp() * (own - (p / (number - 1)).log())).sum() / 3
            (expected,) = torch.autograd.grad(value, leaf, retain_graph=True)
            got = train(regularizer, leaf.detach(), ones[1], 1)[0]
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-13)
            assert regularizer.history.cmi[-1] == pytest.approx(value.item(), rel=1e-12)
        else:
            train(regularizer, leaf.detach(), ones[1], 1)
        p = p + own.detach().exp()


def test_a_continued_run_is_the_uninterrupted_one(several: ddplug.ProxyPool, ones: Batch, tmp_path: Path) -> None:
    """Bit for bit, with several proxies, through a file."""
    whole = layer(several, centroids="running")
    expected = train(whole, *ones, steps=8)
    first = layer(several, centroids="running")
    train(first, *ones, steps=4)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = layer(several, centroids="running", seed=5)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(train(second, *ones, steps=4, start=4), expected[4:])
    last, same = whole.state_dict()["objective"], second.state_dict()["objective"]
    assert last.keys() == same.keys()
    assert len(last) == 3
    for key, held in last.items():
        assert all(torch.equal(tensor, same[key][name]) for name, tensor in held.items())


def test_a_copy_goes_its_own_way(several: ddplug.ProxyPool, ones: Batch) -> None:
    """So does a term that was given to two."""
    one = layer(several, centroids="running", draw=3)
    train(one, *ones, steps=2)
    train(copy.deepcopy(one), *ones, steps=2)
    assert rounds(one) == [[2, 2, 2]] * 3
    term = AroundRunning(momentum=0.5)
    first, second = layer(several, term=term, draw=3), layer(several, term=term, draw=3)
    train(first, *ones, steps=2)
    assert (rounds(first), rounds(second)) == ([[2, 2, 2]] * 3, [])


def test_a_state_of_other_centroids_is_refused(several: ddplug.ProxyPool, ones: Batch, data: ImageData) -> None:
    layers = {
        "batch": layer(several), "running": layer(several, centroids="running"),
        "faster": layer(several, term=AroundRunning(momentum=0.1)),
        "real": layer(several, centroids="real", data=data),
    }  # fmt: skip
    for name, one in layers.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ddplug.DDPlugWarning)
            train(one, *ones, steps=1)
        for other, another in layers.items():
            if other != name:
                with pytest.raises(ddplug.InputError, match="this state was made with .*(term|momentum)"):
                    another.load_state_dict(one.state_dict())
    state = layers["running"].state_dict()
    (key, held), *_ = state["objective"].items()
    damaged = {**state, "objective": {key: {**held, "logs": held["logs"][1:]}}}
    with pytest.raises(ddplug.InputError, match="damaged"):
        layers["running"].load_state_dict(damaged)
    assert rounds(layers["running"]) == [[1, 1, 1]]


def test_a_round_that_an_exception_ends_leaves_the_means(several: ddplug.ProxyPool, ones: Batch) -> None:
    def announce(line: str) -> None:
        if stop:
            raise KeyboardInterrupt

    stop = False
    regularizer = layer(several, centroids="running", weighting="relative", calibrate=2, announce=announce)
    failed = 0
    for step in range(6):
        stop = True
        before = rounds(regularizer)
        try:
            train(regularizer, *ones, steps=1, start=step)
        except KeyboardInterrupt:
            failed += 1
            assert rounds(regularizer) == before
            stop = False
            train(regularizer, *ones, steps=1, start=step)
    assert failed == 1
    assert sum(map(sum, rounds(regularizer))) == 6 * 3


def test_a_baseline_keeps_means_too(several: ddplug.ProxyPool, ones: Batch) -> None:
    on, off = (layer(several, centroids="running", **more) for more in ({}, {"weight": 0, "record": True}))
    train(on, *ones)
    assert not train(off, *ones).any()
    assert off.history.cmi == pytest.approx(on.history.cmi, rel=1e-12)
    assert rounds(on) == rounds(off)


def test_some_classes_stand_for_all(pool: ddplug.ProxyPool, ones: Batch, data: ImageData) -> None:
    """Around real centroids the mean over draws of one class is the gradient of all three."""
    options = {"centroids": "real", "data": data}
    expected = train(layer(pool, **options), *ones, steps=1)
    some = train(layer(pool, classes=1, **options), *ones, steps=1)
    drawn = some[0].flatten(1).any(1)
    assert drawn.sum() == 1
    torch.testing.assert_close(some[0, drawn], 3 * expected[0, drawn], rtol=1e-12, atol=1e-12)
    running = layer(pool, classes=2, centroids="running")
    train(running, *ones, steps=6)
    assert sum(rounds(running)[0]) == 12


def test_proxies_in_one_module_have_centroids_of_their_own(tmp_path: Path) -> None:
    """A streamed pool computes all of a kind with one module."""
    networks = []
    for seed in range(3):
        with seeded(seed):
            networks.append(build("convnet", num_classes=3, size=(8, 8), width=4, depth=2))
    ddplug.ProxyPool.from_modules(networks).save(tmp_path / "pool")
    images = torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(9) % 3
    data = as_image_data(((images, labels), (images, labels)), space="unit")
    for centroids in ("real", "running"):
        pools = ddplug.ProxyPool.load(tmp_path / "pool", budget=1), ddplug.ProxyPool.load(tmp_path / "pool")
        options = {"centroids": centroids, "data": data, "input_space": None}
        found = [train(layer(pool, **options), images[:3], labels[:3], steps=9) for pool in pools]
        # The same operations on the same numbers, in another order at most.
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-7)


def test_the_look_at_bf16_is_no_round(ones: Batch, network: Callable[..., nn.Module]) -> None:
    pool = ddplug.ProxyPool.from_modules([network(0).float()])
    regularizer = layer(pool, centroids="running", precision="bf16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ddplug.DDPlugWarning)
        train(regularizer, ones[0].float(), ones[1], steps=2)
    assert rounds(regularizer) == [[2, 2, 2]]


def test_a_sample_is_seen_once_by_every_proxy(several: ddplug.ProxyPool, ones: Batch, data: ImageData) -> None:
    """And is the same with any seed; batches that the host shows are not compared with."""
    seen: list[int] = []
    for proxy in several:
        proxy.network.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    regularizer = layer(several, centroids="real", data=data, draw=3, chunk=100)
    other = torch.randn(5, 3, 4, 4, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2])
    regularizer.passed_by(*other)
    first = train(regularizer, *ones)
    assert seen.count(12) == 3
    again = layer(several, centroids="real", data=data, draw=3, seed=7)
    # Other chunks, and another order of the proxies: sums of at most some thousand float64 numbers in another order.
    torch.testing.assert_close(train(again, *ones), first, rtol=1e-11, atol=1e-11)


def test_what_it_cannot_be_made_with(pool: ddplug.ProxyPool, ones: Batch, data: ImageData) -> None:
    for centroids in ("running", "real"):
        with pytest.raises(ddplug.InputError, match="is of CMI, and the term is 'ncmi'"):
            layer(pool, centroids=centroids, term="ncmi")
    with pytest.raises(ddplug.InputError, match="real centroids needs the real data .* Pass data="):
        train(layer(pool, centroids="real"), *ones)


def test_hosts_say_it_on_their_command_lines() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    assert options_of(parser.parse_args([]))["centroids"] == "batch"
    assert options_of(parser.parse_args(["--cmi_centroids", "running"]))["centroids"] == "running"
    with pytest.raises(SystemExit):
        parser.parse_args(["--cmi_centroids", "stored"])
