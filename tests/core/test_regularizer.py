"""The identity layer: the gradient of L + lambda * CMI and nothing else, whatever the loop around it looks like."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from statistics import median_low
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ddplug
from ddplug.datasets.spaces import InputSpace
from ddplug.datasets.zca import ZCASpace
from ddplug.proxies.pool import PoolInfo

pytestmark = pytest.mark.numerical

Batch = tuple[Tensor, Tensor]
LAM = 0.7


def layer(pool: ddplug.ProxyPool, lam: float = LAM, **options: Any) -> ddplug.Regularizer:
    return ddplug.Regularizer(pool, lam, **{"weighting": "absolute", "announce": lambda line: None, **options})


def relative_error(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).abs().max() / expected.abs().max()).item()


def image_gradient(loss: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_()
    loss(leaf).backward()
    assert leaf.grad is not None
    return leaf.grad


# Layer = loss


@pytest.mark.parametrize("space", ["feature", "logit"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_plain_loss(
    pool: ddplug.ProxyPool, network: Callable[..., nn.Module], batch: Batch, space: Any, temperature: float
) -> None:
    images, labels = batch
    host, cmi = network(1), ddplug.CMI(pool, space, temperature=temperature)
    regularizer = layer(pool, representation=space, term=ddplug.terms.CMI(temperature))
    expected = image_gradient(lambda x: F.cross_entropy(host(1.3 * x), labels) + LAM * cmi(1.3 * x, labels), images)
    got = image_gradient(lambda x: F.cross_entropy(host(regularizer(1.3 * x, labels)), labels), images)
    without = image_gradient(lambda x: F.cross_entropy(host(1.3 * x), labels), images)
    assert relative_error(got, expected) < 1e-12
    assert relative_error(without, expected) > 1e-3  # else the comparison would say nothing
    assert regularizer.history.cmi == [pytest.approx(cmi(1.3 * images, labels).item(), rel=1e-12)]


def test_a_call_per_class(pool: ddplug.ProxyPool, network: Callable[..., nn.Module], batch: Batch) -> None:
    """As DM does: the layer sees one class at a time, CMI is of all of them, in one round."""
    images, labels = batch
    host, cmi, regularizer = network(1), ddplug.CMI(pool), layer(pool)

    def by_class(x: Tensor, through: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        rows = [(x[labels == c].tanh(), labels[labels == c]) for c in range(3)]
        return sum((host(through(view, own)).square().sum() for view, own in rows), torch.zeros(()))

    order = torch.cat([(labels == c).nonzero().flatten() for c in range(3)])
    expected = image_gradient(
        lambda x: by_class(x, lambda view, own: view) + LAM * cmi(x[order].tanh(), labels[order]), images
    )
    assert relative_error(image_gradient(lambda x: by_class(x, regularizer), images), expected) < 1e-12
    assert len(regularizer.history) == 1
    assert regularizer.history[0].images == 12


def test_unrolled_inner_loop(pool: ddplug.ProxyPool, network: Callable[..., nn.Module], batch: Batch) -> None:
    """As MTT does: inner SGD steps with create_graph, then one backward pass through all of them."""
    images, labels = batch
    cmi, regularizer, target = ddplug.CMI(pool), layer(pool), network(9)
    start = {name: value.detach().requires_grad_() for name, value in network(1).named_parameters()}

    def unrolled(x: Tensor, through: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        weights: dict[str, Tensor] = dict(start)
        for step in range(3):
            rows = slice(4 * step, 4 * step + 4)
            view = through(x[rows] * (1 + 0.1 * step), labels[rows])
            inner = F.cross_entropy(torch.func.functional_call(target, weights, (view,)), labels[rows])
            grads = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
            weights = {name: w - 0.5 * g for (name, w), g in zip(weights.items(), grads, strict=True)}
        return sum(((w - t).square().sum() for w, t in zip(weights.values(), target.parameters(), strict=True)),
                   torch.zeros(()))  # fmt: skip

    views = torch.cat([torch.full((4, 1, 1, 1), 1 + 0.1 * step, dtype=torch.float64) for step in range(3)])
    expected = image_gradient(lambda x: unrolled(x, lambda view, own: view) + LAM * cmi(x * views, labels), images)
    got = image_gradient(lambda x: unrolled(x, regularizer), images)
    assert relative_error(got, expected) < 1e-12
    assert len(regularizer.history) == 1


def test_views_used_twice_and_walked_twice(
    pool: ddplug.ProxyPool, network: Callable[..., nn.Module], batch: Batch
) -> None:
    """CMI counts once per call, also if the host splits its loss into two backward passes over one graph."""
    images, labels = batch
    host, cmi, regularizer = network(1), ddplug.CMI(pool), layer(pool)
    expected = image_gradient(lambda x: host(x).square().sum() + host(2 * x).sum() + LAM * cmi(x, labels), images)
    leaf = images.clone().requires_grad_()
    views = regularizer(leaf, labels)
    host(views).square().sum().backward(retain_graph=True)
    with pytest.warns(ddplug.DDPlugWarning, match="walked a second time"):
        host(2 * views).sum().backward()
    assert leaf.grad is not None
    assert relative_error(leaf.grad, expected) < 1e-12


def test_several_proxies_per_round_are_averaged(network: Callable[..., nn.Module], batch: Batch) -> None:
    images, labels = batch
    pool = ddplug.ProxyPool.from_modules([network(seed) for seed in range(3)])
    regularizer, cmi = layer(pool, compute=ddplug.Compute(draw=3)), ddplug.CMI(pool, draw="all")
    expected = image_gradient(lambda x: x.sum() + LAM * cmi(x, labels), images)
    assert relative_error(image_gradient(lambda x: regularizer(x, labels).sum(), images), expected) < 1e-12


def test_views_in_another_input_space(network: Callable[..., nn.Module], batch: Batch) -> None:
    images, labels = batch
    theirs = ddplug.InputSpace.normalized((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    ours = ddplug.InputSpace.unit(3)
    pool = ddplug.ProxyPool.from_modules([network(7)], info=PoolInfo(space=ours))
    by_hand = ddplug.ProxyPool.from_modules([network(7)])
    regularizer, cmi = layer(pool, input_space=theirs), ddplug.CMI(by_hand)
    expected = image_gradient(lambda x: x.sum() + LAM * cmi(theirs.to_unit(x), labels), images)
    assert relative_error(image_gradient(lambda x: regularizer(x, labels).sum(), images), expected) < 1e-12


def test_loss_form_is_twice_differentiable(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch[0][:5].clone().requires_grad_(), torch.tensor([0, 1, 0, 1, 1])
    assert torch.autograd.gradgradcheck(lambda x: ddplug.CMI(pool)(x, labels), images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_views(network: Callable[..., nn.Module], batch: Batch, dtype: torch.dtype) -> None:
    """A gradient of 1e-8 a pixel is nothing in half precision; times lambda it is something, and must not be lost."""
    faint = network(7)
    with torch.no_grad():
        faint[3].weight.mul_(1e-4)  # type: ignore[union-attr, operator]
    pool = ddplug.ProxyPool.from_modules([faint])
    images, labels = batch[0].to(dtype), batch[1]
    lam = 1e6
    grad = image_gradient(lambda x: layer(pool, lam)(x, labels).sum() * 0, images)
    exact = image_gradient(lambda x: lam * ddplug.CMI(pool)(x, labels), images.double())
    assert grad.dtype == dtype
    assert exact.abs().max() / lam < 1e-7
    assert relative_error(grad.double(), exact) < 1e-2


@pytest.mark.parametrize(("dtype", "lam"), [(torch.float16, 1e12), (torch.float32, 1e39)])
def test_what_overflows_only_with_lambda_is_not_handed_over_either(
    pool: ddplug.ProxyPool, batch: Batch, dtype: torch.dtype, lam: float
) -> None:
    regularizer = layer(pool, lam)
    with pytest.warns(ddplug.DDPlugWarning, match="not finite in round 0"):
        grad = image_gradient(lambda x: regularizer(x, batch[1]).sum(), batch[0].to(dtype))
    assert torch.equal(grad, torch.ones_like(grad))
    assert regularizer.history.skipped == 1


@pytest.mark.parametrize("about", ["network", "space", "view"])
def test_autocast_of_the_host_changes_neither_form(network: Callable[..., nn.Module], batch: Batch, about: str) -> None:
    """Not the network's layers, nor what comes before them: a whitening is a product of matrices, as a view may be."""
    images, labels = batch[0].float().clamp(0, 1), batch[1]
    whitened = ZCASpace.fit(torch.rand(60, 3, 4, 4, generator=torch.Generator().manual_seed(5)))
    info = PoolInfo(shape=(3, 4, 4), space=whitened if about == "space" else InputSpace.unit(3))
    pool = ddplug.ProxyPool.from_modules([network(7).float()], info=info)
    turn = torch.randn(4, 4, generator=torch.Generator().manual_seed(6))
    options: dict[str, Any] = {"input_space": "unit"}
    if about == "view":
        options |= {"views": ddplug.Views(2, lambda views: views @ turn)}

    def gradients() -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            of_layer = image_gradient(lambda x: layer(pool, 1.0, **options)(x, labels).sum() * 0, images)
            leaf = images.clone().requires_grad_()
            loss = ddplug.CMI(pool, input_space="unit")(leaf, labels)
        return of_layer, torch.autograd.grad(loss, leaf)[0]

    autocast = False
    expected = gradients()
    autocast = True
    for got, wanted in zip(gradients(), expected, strict=True):
        assert torch.equal(got, wanted)


def test_loss_scaling(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """With `scale=` the share stays what it is while the scale grows, as a GradScaler's does."""
    images, labels = batch
    scale = [1.0]
    plain = ddplug.Regularizer(pool, 0.5, weighting=ddplug.Relative(2), announce=lambda line: None)
    scaled = ddplug.Regularizer(
        pool, 0.5, weighting=ddplug.Relative(2), scale=lambda: scale[0], announce=lambda line: None
    )
    for scale[0] in (1.0, 256.0, 65536.0, 65536.0):
        expected = image_gradient(lambda x: plain(x, labels).square().sum(), images)
        got = image_gradient(lambda x: scaled(x, labels).square().sum() * scale[0], images)
        torch.testing.assert_close(got / scale[0], expected, rtol=1e-12, atol=0)
    assert scaled.lam == pytest.approx(plain.lam, rel=1e-12)


# What passes through untouched


def test_forward_is_the_very_same_data(pool: ddplug.ProxyPool, batch: Batch) -> None:
    leaf = batch[0].clone().requires_grad_()
    views = layer(pool)(leaf, batch[1])
    assert views.data_ptr() == leaf.data_ptr()
    assert torch.equal(views, leaf)
    assert views.requires_grad


def test_without_gradient_weight_or_attachment_the_same_object_comes_back(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    leaf = images.clone().requires_grad_()
    detached = layer(pool)
    detached.detach()
    detached.detach()
    assert layer(pool)(images, labels) is images
    assert layer(pool, 0.0)(leaf, labels) is leaf
    assert detached(leaf, labels) is leaf
    with torch.no_grad():
        assert layer(pool)(leaf, labels) is leaf


def descend(images: Tensor, labels: Tensor, host: nn.Module, through: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    leaf = images.clone().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=0.1, momentum=0.5)
    for _ in range(20):
        noise = torch.randn(leaf.shape, dtype=leaf.dtype)  # the host's own randomness
        optimizer.zero_grad()
        F.cross_entropy(host(through(leaf + 0.1 * noise, labels)), labels).backward()
        optimizer.step()
    return leaf.detach()


@pytest.mark.parametrize("state", ["weight 0", "detached", "at work"])
def test_twenty_steps_and_the_global_random_state(
    pool: ddplug.ProxyPool, network: Callable[..., nn.Module], batch: Batch, state: str
) -> None:
    """Off, the images are bit-identical; at work they are not, but the host's random state still is."""
    import random

    import numpy as np

    def run(through: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Any]:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        images = descend(*batch, network(1), through)
        return images, (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]

    several = ddplug.ProxyPool.from_modules([network(seed) for seed in range(4)])
    regularizer = layer(several, 0.0 if state == "weight 0" else 5.0)
    if state == "detached":
        regularizer.detach()
    images, random_state = run(regularizer)
    expected, expected_state = run(lambda views, labels: views)
    assert random_state == expected_state
    assert torch.equal(images, expected) == (state != "at work")
    assert len(regularizer.history) == (20 if state == "at work" else 0)


def test_detached_between_forward_and_backward(pool: ddplug.ProxyPool, batch: Batch) -> None:
    regularizer, leaf = layer(pool), batch[0].clone().requires_grad_()
    loss = regularizer(leaf, batch[1]).sum()
    regularizer.detach()
    loss.backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, torch.ones_like(leaf))


# Rounds and what is kept alive


def test_a_graph_that_is_alive_but_not_walked_is_not_in_the_round(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """As DATM does when it skips a step: the graph of the skipped loss may still be around."""
    images, labels = batch
    regularizer, cmi = layer(pool), ddplug.CMI(pool)
    skipped = regularizer(images.clone().requires_grad_() * 2, labels).sum()
    expected = image_gradient(lambda x: x.sum() + LAM * cmi(x, labels), images)
    assert relative_error(image_gradient(lambda x: regularizer(x, labels).sum(), images), expected) < 1e-12
    assert regularizer.history[0].images == 12
    skipped.backward()  # still possible, as a round of its own
    assert len(regularizer.history) == 2


def test_gradient_with_respect_to_something_else_is_no_round(pool: ddplug.ProxyPool, batch: Batch) -> None:
    regularizer, scale = layer(pool), torch.tensor(2.0, requires_grad=True)
    views = regularizer(batch[0].clone().requires_grad_(), batch[1])
    torch.autograd.grad((views * scale).sum(), scale)
    assert len(regularizer.history) == 0
    assert regularizer.rounds == 0


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(found), Tensor) for found in gc.get_objects())


def test_nothing_is_kept_alive_between_rounds(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    regularizer = layer(pool)

    def once(backward: bool) -> weakref.ref[Tensor]:
        leaf = images.clone().requires_grad_()
        views = leaf * 2
        loss = regularizer(views, labels).sum()
        if backward:
            loss.backward()
        return weakref.ref(views.untyped_storage())  # type: ignore[return-value]

    once(True)
    before = tensors_alive()
    gc.disable()  # reference counts alone must do: no cycles
    try:
        for backward in (True, False, True, False):
            assert once(backward)() is None
    finally:
        gc.enable()
    assert tensors_alive() == before


def test_views_are_released_even_while_the_graph_is_retained(pool: ddplug.ProxyPool, batch: Batch) -> None:
    regularizer = layer(pool)
    loss = regularizer(batch[0].clone().requires_grad_(), batch[1]).sum()
    loss.backward(retain_graph=True)
    assert not any(ref() is not None and not ref().done for ref in regularizer._keeper._pending)  # type: ignore[union-attr]


def test_every_kth_round_k_times_as_strongly(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    regularizer, cmi = layer(pool, compute=ddplug.Compute(every=3)), ddplug.CMI(pool)
    added = [image_gradient(lambda x: regularizer(x, labels).sum(), images) - 1 for _ in range(6)]
    expected = image_gradient(lambda x: 3 * LAM * cmi(x, labels), images)
    for number, grad in enumerate(added):
        if number % 3 == 0:
            assert relative_error(grad, expected) < 1e-10
        else:
            assert not grad.any()
    assert [round_.number for round_ in regularizer.history] == [0, 3]


def test_schedule(pool: ddplug.ProxyPool, batch: Batch) -> None:
    from ddplug.core.weighting import warmup

    regularizer = layer(pool, weighting=ddplug.Absolute(schedule=warmup(4)))
    for _ in range(5):
        image_gradient(lambda x: regularizer(x, batch[1]).sum(), batch[0])
    assert [round_.lam / LAM for round_ in regularizer.history] == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_proxies_are_drawn_from_the_seed_alone(network: Callable[..., nn.Module], batch: Batch) -> None:
    pool = ddplug.ProxyPool.from_modules([network(seed) for seed in range(4)])

    def run(seed: int) -> list[float]:
        regularizer = layer(pool, seed=seed)
        for _ in range(12):
            torch.manual_seed(len(regularizer.history))  # the host reseeds, as DM does
            image_gradient(lambda x: regularizer(x, batch[1]).sum(), batch[0])
        return regularizer.history.cmi

    assert run(0) == run(0)
    assert run(0) != run(1)
    assert len(set(run(0))) == 4


# The weight


def test_relative_weight_is_a_share_of_the_hosts_gradient(
    pool: ddplug.ProxyPool, network: Callable[..., nn.Module], batch: Batch
) -> None:
    images, labels = batch
    host, cmi, told = network(1), ddplug.CMI(pool, representation="logit"), []
    regularizer = ddplug.Regularizer(pool, 0.25, weighting=ddplug.Relative(3), announce=told.append)
    ratios = []
    for step in range(5):
        shift = 0.3 * step
        own = image_gradient(lambda x, s=shift: host(x + s).square().sum(), images)  # type: ignore[misc]
        of_cmi = image_gradient(lambda x, s=shift: cmi(x + s, labels), images)  # type: ignore[misc]
        got = image_gradient(lambda x, s=shift: host(regularizer(x + s, labels)).square().sum(), images)  # type: ignore[misc]
        ratios.append((own.square().sum().item(), of_cmi.square().sum().item()))
        lam = ((got - own).norm() / of_cmi.norm()).item()
        measured = ratios[: min(step, 3)]  # the complete rounds; the first only measures
        expected = 0.25 * median_low([(h / c) ** 0.5 for h, c in measured]) if measured else 0.0
        assert lam == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert (regularizer.lam is not None) == (step >= 2)
    assert len(told) == 1
    assert f"lambda = {regularizer.lam:.6g}" in told[0]


def test_a_share_is_measured_over_all_calls_of_a_round(
    pool: ddplug.ProxyPool, network: Callable[..., nn.Module], batch: Batch
) -> None:
    """And no call has another lambda than the others."""
    images, labels = batch
    host, cmi = network(1), ddplug.CMI(pool, representation="logit")
    regularizer = ddplug.Regularizer(pool, 0.5, weighting=ddplug.Relative(1), announce=lambda line: None)
    halves = (slice(0, 6), slice(6, 12))
    image_gradient(lambda x: sum(host(regularizer(x[h] * 2, labels[h])).square().sum() for h in halves), images)
    own = image_gradient(lambda x: host(x).square().sum(), 2 * images)
    of_cmi = image_gradient(lambda x: cmi(x, labels), 2 * images)
    assert regularizer.lam == pytest.approx((0.5 * own.norm() / of_cmi.norm()).item(), rel=1e-9)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf"), True, "1"])
def test_impossible_weights(pool: ddplug.ProxyPool, weight: Any) -> None:
    with pytest.raises(ddplug.errors.InputError, match="finite number >= 0"):
        ddplug.Regularizer(pool, weight)


def test_weights_by_name(pool: ddplug.ProxyPool) -> None:
    assert ddplug.Regularizer(pool, weighting=ddplug.paper("DM", "CIFAR-10", 10)).lam == 8000
    assert ddplug.Regularizer(pool, 0.5, weighting=ddplug.paper("dm", "cifar10", 10)).lam == 4000
    with pytest.raises(ddplug.errors.InputError, match="unknown weighting 'share'"):
        ddplug.Regularizer(pool, 0.1, weighting="share")  # type: ignore[arg-type]
    with pytest.raises(ddplug.errors.InputError, match=r"no weight for dm, cifar10, 1 .*cifar10 ipc 10"):
        ddplug.paper("dm", "cifar10", 1)
    with pytest.raises(ddplug.errors.InputError, match="none at all for this host"):
        ddplug.paper("mtt", "cifar10", 10)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "logit"),
        ({"weighting": "sustained"}, "logit"),
        ({"weighting": "absolute"}, "feature"),
        ({"weighting": ddplug.paper("dm", "cifar10", 10)}, "feature"),
        ({"weighting": "absolute", "representation": "logit"}, "logit"),
        ({"representation": "feature"}, "feature"),
    ],
    ids=str,
)
def test_by_default_logits_for_a_share_and_features_for_a_lambda(
    pool: ddplug.ProxyPool, options: dict[str, Any], expected: str
) -> None:
    regularizer = ddplug.Regularizer(pool, **options)
    assert regularizer.representation == regularizer.settings()["representation"] == expected


# A run that is continued


@pytest.mark.parametrize("views_per_image", [1, 2])
@pytest.mark.parametrize("stop", [2, 5])
def test_state_dict_continues_the_run(
    network: Callable[..., nn.Module], batch: Batch, stop: int, views_per_image: int, tmp_path: Any
) -> None:
    pool = ddplug.ProxyPool.from_modules([network(seed) for seed in range(4)])
    host = network(11)

    def fresh() -> ddplug.Regularizer:
        return ddplug.Regularizer(
            pool, 0.3, weighting=ddplug.Relative(4), views=views_per_image, announce=lambda line: None
        )

    def rounds(regularizer: ddplug.Regularizer, numbers: range) -> list[Tensor]:
        return [
            image_gradient(lambda x, n=n: host(regularizer(x + n, batch[1])).sum(), batch[0])  # type: ignore[misc]
            for n in numbers
        ]

    whole, first, second = fresh(), fresh(), fresh()
    expected = rounds(whole, range(8))
    begun = rounds(first, range(stop))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for got, wanted in zip(begun + rounds(second, range(stop, 8)), expected, strict=True):
        assert torch.equal(got, wanted)
    assert list(second.history) == list(whole.history)
    with pytest.raises(ddplug.errors.InputError, match="was made with"):
        layer(pool).load_state_dict(first.state_dict())


def test_a_round_that_was_never_finished_leaves_no_trace(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """An exception of the host's in the middle of a backward pass, then the run goes on."""
    images, labels = batch
    regularizers = [
        ddplug.Regularizer(pool, 0.5, weighting=ddplug.Relative(2), announce=lambda line: None) for _ in range(2)
    ]
    leaf = images.clone().requires_grad_()
    first = regularizers[0](leaf[:6] * 1, labels[:6])
    second = leaf[6:] * 1  # made last, so its gradient comes first
    loss = (first.sum() + regularizers[0](second, labels[6:]).sum()) * 1e6
    second.register_hook(lambda grad: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    for regularizer in regularizers:
        for _ in range(2):
            image_gradient(lambda x, r=regularizer: r(x, labels).sum(), images)  # type: ignore[misc]
    assert regularizers[0].lam == pytest.approx(regularizers[1].lam)


def test_a_round_that_failed_can_be_tried_again(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    regularizer, leaf = layer(pool), images.clone().requires_grad_()
    loss = regularizer(leaf, labels).sum()
    proxy, pool.proxies = pool.proxies, []
    with pytest.raises(IndexError):  # nothing can be drawn
        loss.backward(retain_graph=True)
    pool.proxies = proxy
    loss.backward()
    assert len(regularizer.history) == 1


def test_a_skip_is_not_reported_again_after_loading(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    first, second = layer(pool), layer(pool)
    with pytest.warns(ddplug.DDPlugWarning):
        image_gradient(lambda x: first(x, labels).nan_to_num().sum(), images * torch.nan)
    second.load_state_dict(first.state_dict())
    image_gradient(lambda x: second(x, labels).sum(), images)  # a warning would be an error
    with pytest.raises(ddplug.errors.InputError, match="lacks weighting"):
        second.load_state_dict({})


def test_a_schedule_that_means_nothing(pool: ddplug.ProxyPool, batch: Batch) -> None:
    for value in (torch.nan, -1.0, "a lot"):
        with pytest.raises(ddplug.errors.InputError, match="schedule's factor for round 0 must be"):
            image_gradient(
                lambda x, v=value: layer(pool, weighting=ddplug.Absolute(schedule=lambda _: v))(x, batch[1]).sum(),
                batch[0],
            )  # type: ignore[misc]


# Trouble


def test_a_round_that_is_not_finite_is_left_out_counted_and_reported(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    regularizer = layer(pool)
    broken = images.clone()
    broken[3] = torch.nan
    with pytest.warns(ddplug.DDPlugWarning, match="not finite in round 0"):
        grad = image_gradient(lambda x: regularizer(x, labels).nan_to_num().sum(), broken)
    assert torch.equal(grad[:3], torch.ones_like(grad[:3]))
    assert torch.isfinite(grad).all()
    image_gradient(lambda x: regularizer(x, labels).sum(), images)
    assert [round_.skipped for round_ in regularizer.history] == [True, False]
    assert regularizer.history.skipped == 1


@pytest.mark.parametrize("trouble", ["images", "host"])
def test_a_round_that_is_not_finite_does_not_enter_the_calibration(
    pool: ddplug.ProxyPool, batch: Batch, trouble: str
) -> None:
    images, labels = batch
    one = ddplug.Regularizer(pool, 0.5, weighting=ddplug.Relative(2), announce=lambda line: None)
    other = ddplug.Regularizer(pool, 0.5, weighting=ddplug.Relative(2), announce=lambda line: None)
    if trouble == "images":
        broken = images.clone().index_fill(0, torch.tensor([3]), torch.nan)
        with pytest.warns(ddplug.DDPlugWarning):
            image_gradient(lambda x: one(x, labels).nan_to_num().sum(), broken)
    else:
        image_gradient(lambda x: (one(x, labels) * torch.inf).sum(), images)
    for regularizer in (one, other):
        for _ in range(2):
            image_gradient(lambda x, r=regularizer: r(x, labels).sum(), images)  # type: ignore[misc]
    assert one.lam == pytest.approx(other.lam)
    assert one.lam is not None


def test_differentiating_through_the_layer_twice(pool: ddplug.ProxyPool, batch: Batch) -> None:
    leaf = batch[0].clone().requires_grad_()
    (grad,) = torch.autograd.grad(layer(pool)(leaf, batch[1]).pow(3).sum(), leaf, create_graph=True)
    with pytest.raises(ddplug.errors.InputError, match=r"loss \+ lam \* ddplug.CMI"):
        grad.sum().backward()


def test_differentiating_twice_is_noticed_also_if_the_hosts_own_part_is_linear(
    pool: ddplug.ProxyPool, batch: Batch
) -> None:
    """The host's gradient on the views asks for no derivative there; CMI's would be lost without a word."""
    leaf = batch[0].clone().requires_grad_()
    loss = layer(pool)(leaf, batch[1]).sum() + leaf.pow(3).sum()
    (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(ddplug.errors.InputError):
        grad.square().sum().backward()


def test_create_graph_without_a_second_derivative_is_no_trouble(pool: ddplug.ProxyPool, batch: Batch) -> None:
    leaf = batch[0].clone().requires_grad_()
    layer(pool)(leaf, batch[1]).pow(3).sum().backward(create_graph=True)
    assert leaf.grad is not None
    leaf.grad = None  # breaks the cycle that create_graph makes


def test_views_changed_in_place_after_the_layer(pool: ddplug.ProxyPool, batch: Batch) -> None:
    leaf = batch[0].clone().requires_grad_()
    views = layer(pool)(leaf * 1, batch[1])
    views.mul_(2)
    with pytest.raises(ddplug.errors.InputError, match="changed in place"):
        views.sum().backward()


def test_one_image_per_class_is_said_once_and_changes_nothing(pool: ddplug.ProxyPool, batch: Batch) -> None:
    regularizer = ddplug.Regularizer(pool, 0.5, announce=lambda line: None)
    with pytest.warns(ddplug.DDPlugWarning, match="exactly one image.*several views") as caught:
        for _ in range(3):
            grad = image_gradient(lambda x: regularizer(x, torch.arange(3)).sum(), batch[0][:3])
            assert torch.equal(grad, torch.ones_like(grad))
    assert len(caught) == 1
    cmi = ddplug.CMI(pool)
    with pytest.warns(ddplug.DDPlugWarning, match="exactly one image") as caught:
        values = [cmi(batch[0][:3], torch.arange(3)).item() for _ in range(3)]
    assert values == [0, 0, 0]
    assert len(caught) == 1


def test_several_views_of_one_image_per_class_are_a_way_out(pool: ddplug.ProxyPool, batch: Batch) -> None:
    regularizer = layer(pool)
    leaf = batch[0][:3].clone().requires_grad_()
    views = torch.cat([leaf, leaf.flip(-1), 0.5 * leaf])
    regularizer(views, torch.arange(3).repeat(3)).sum().backward()
    assert regularizer.history.cmi[0] > 0


@pytest.mark.parametrize("form", [lambda pool: layer(pool), lambda pool: ddplug.CMI(pool)])
@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda x, y: (x, y[:5]), ddplug.errors.InputError, r"labels of shape \(5,\) for 12 images"),
        (lambda x, y: (x, y.double()), ddplug.errors.InputError, "must be integers"),
        (lambda x, y: (x, y - 1), ddplug.errors.InputError, "got -1"),
        (lambda x, y: (x[:0], y[:0]), ddplug.errors.InputError, "empty batch"),
        (lambda x, y: (x[:, :2], y), ddplug.errors.ProxyError, r"does not take images of shape \(\d+, 2, 4, 4\)"),
        (lambda x, y: (x[..., :3], y), ddplug.errors.ProxyError, "does not take images"),
        (lambda x, y: (x.flatten(1), y), ddplug.errors.InputError, r"\(n, channels, height, width\)"),
    ],
)
def test_bad_input(
    pool: ddplug.ProxyPool, batch: Batch, form: Any, change: Any, error: type[Exception], says: str
) -> None:
    images, labels = change(*batch)
    with pytest.raises(error, match=says):
        form(pool)(images.clone().requires_grad_(), labels)


def test_a_proxy_whose_features_are_not_finite(network: Callable[..., nn.Module], batch: Batch) -> None:
    broken = network(1)
    pool = ddplug.ProxyPool.from_modules([network(0), broken])
    with torch.no_grad():
        next(pool.proxies[1].network.parameters()).fill_(1e308).mul_(10)
    with pytest.raises(ddplug.errors.ProxyError, match="Sequential-1.*not finite"):
        layer(pool)(batch[0].clone().requires_grad_(), batch[1])
    with pytest.raises(ddplug.errors.ProxyError, match="Sequential-1.*not finite"):
        ddplug.CMI(pool, draw="all")(*batch)


def test_a_proxy_that_draws_from_the_hosts_generator(batch: Batch) -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(48, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.dropout(x.flatten(1), training=True))  # type: ignore[no-any-return]

    with pytest.raises(ddplug.errors.ProxyError, match="draws random numbers even in eval mode"):
        layer(ddplug.ProxyPool.from_modules([Dropping()]))(batch[0].clone().requires_grad_(), batch[1])


@pytest.mark.parametrize(
    ("made", "says"),
    [(lambda x: x[:2], "12 images are 4, expected 24"), (lambda x: x.detach(), "depend differentiably")],
)
def test_further_views_that_are_none(pool: ddplug.ProxyPool, batch: Batch, made: Any, says: str) -> None:
    regularizer = layer(pool, views=ddplug.Views(2, made))
    with pytest.raises(ddplug.errors.InputError, match=says):
        image_gradient(lambda x: regularizer(x, batch[1]).sum(), batch[0])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"representation": "features"}, "unknown representation 'features'"),
        ({"compute": ddplug.Compute(draw=2)}, "between 1 and the pool's size, 1"),
    ],
)
def test_bad_settings(pool: ddplug.ProxyPool, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ddplug.errors.InputError, match=says):
        layer(pool, **options)


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        (ddplug.terms.CMI, {"temperature": 0.0}, "temperature must be > 0"),
        (ddplug.terms.CMI, {"temperature": torch.inf}, "temperature must be > 0 and finite"),
        (ddplug.Compute, {"every": 2.5}, "every must be a whole number"),
        (ddplug.Compute, {"draw": True}, "draw must be a whole number"),
        (ddplug.Compute, {"every": 0}, "every must be"),
        (ddplug.Compute, {"classes": 0}, "classes must be"),
        (ddplug.Compute, {"precision": "fp8"}, "unknown precision 'fp8'"),
        (ddplug.Compute, {"chunk": "few"}, "chunk must be 'auto' or"),
        (ddplug.Relative, {"rounds": 0}, "rounds must be a whole number"),
        (ddplug.Sustained, {"set_size": 0.5}, "set_size must be a whole number"),
        (ddplug.Absolute, {"schedule": 0.5}, "schedule must be a function"),
        (ddplug.Views, {"count": 0}, "views must be a whole number"),
        (ddplug.Processes, {"sharing": "shared"}, "unknown processes='shared'"),
    ],
)
def test_options_are_checked_where_they_are_made(make: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ddplug.errors.InputError, match=says):
        make(**options)


@pytest.mark.parametrize(
    "name", ["weight", "weighting", "representation", "compute", "processes", "pool", "real", "watch", "announce"]
)
def test_an_attribute_without_effect_cannot_be_set(pool: ddplug.ProxyPool, name: str) -> None:
    regularizer = layer(pool)
    with pytest.raises(AttributeError):
        setattr(regularizer, name, getattr(regularizer, name))


def test_hundreds_of_rounds_leave_memory_flat(pool: ddplug.ProxyPool, batch: Batch) -> None:
    import tracemalloc

    regularizer = layer(pool)
    leaf = batch[0].clone().requires_grad_()

    def rounds(number: int) -> None:
        for _ in range(number):
            regularizer(leaf * 2, batch[1]).sum().backward()
            leaf.grad = None

    rounds(20)
    tensors = tensors_alive()
    tracemalloc.start()
    rounds(250)
    gc.collect()  # else the figure depends on when the collector last ran
    middle = tracemalloc.get_traced_memory()[0]
    rounds(250)
    gc.collect()
    end = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert tensors_alive() == tensors
    assert (end - middle) / 250 < 600  # bytes a round: its line in the history
