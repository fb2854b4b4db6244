"""However a host cuts its batch, lambda and the gradient are those of the whole: one round over several passes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import ddplug

pytestmark = pytest.mark.numerical

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor], Tensor]
HALF_ULP = 2.0**-24


def layer(pool: ddplug.ProxyPool, weight: float = 0.7, **options: Any) -> ddplug.Regularizer:
    options = {
        "weighting": "absolute",
        "compute": ddplug.Compute(precision="exact"),
        "announce": lambda line: None,
        **options,
    }
    return ddplug.Regularizer(pool, weight, **options)


def single(network: nn.Module) -> ddplug.ProxyPool:
    """One fp32 proxy."""
    return ddplug.ProxyPool.from_modules([network.float()])


def host(views: Tensor) -> Tensor:
    """A sum over images, so that a batch may be cut."""
    return (views.tanh() * 1.3).square().flatten(1).sum(1).mean()


def whole(images: Tensor, labels: Tensor, regularizer: ddplug.Regularizer) -> Tensor:
    leaf = images.clone().requires_grad_()
    host(regularizer(1.5 * leaf, labels)).backward()
    assert leaf.grad is not None
    return leaf.grad


def class_rows(labels: Tensor) -> list[Tensor]:
    return [(labels == c).nonzero().flatten() for c in labels.unique()]


def micro_rows(labels: Tensor) -> list[Tensor]:
    return list(torch.arange(len(labels)).tensor_split(4))


def one_backward(images: Tensor, labels: Tensor, regularizer: ddplug.Regularizer, rows: list[Tensor]) -> Tensor:
    """A call per part, one backward pass: DM."""
    leaf = images.clone().requires_grad_()
    total = torch.zeros((), dtype=images.dtype)
    for part in rows:
        total = total + host(regularizer(1.5 * leaf[part], labels[part])) * len(part) / len(images)
    total.backward()
    assert leaf.grad is not None
    return leaf.grad


def in_a_round(images: Tensor, labels: Tensor, regularizer: ddplug.Regularizer, rows: list[Tensor]) -> Tensor:
    """A backward pass per part, within a round."""
    leaf = images.clone().requires_grad_()
    with regularizer.round():
        for part in rows:
            (host(regularizer(1.5 * leaf[part], labels[part])) * len(part) / len(images)).backward()
    assert leaf.grad is not None
    return leaf.grad


WAYS: list[tuple[str, Callable[..., Tensor], Callable[[Tensor], list[Tensor]]]] = [
    ("a call per class", one_backward, class_rows),
    ("a backward pass per class", in_a_round, class_rows),
    ("four micro-batches", in_a_round, micro_rows),
]


@pytest.mark.parametrize("way", WAYS, ids=[name for name, *_ in WAYS])
@pytest.mark.parametrize("weighting", ["absolute", "relative", "sustained"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lambda_and_gradient_are_those_of_the_whole_batch(
    network: Callable[..., nn.Module], batch: Batch, way: Any, weighting: str, dtype: torch.dtype
) -> None:
    """To 1e-6 relative in fp32 and 1e-13 in float64."""
    _, cut, parts = way
    images, labels = batch[0].to(dtype), batch[1]
    pool = ddplug.ProxyPool.from_modules([network(7).to(dtype)])
    rows = parts(labels)
    weight = 40.0 if weighting == "absolute" else 0.5
    kinds = {"relative": ddplug.Relative(2), "sustained": ddplug.Sustained(2), "absolute": ddplug.Absolute()}
    one, several = (layer(pool, weight, weighting=kinds[weighting]) for _ in range(2))
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    for shift in range(4):
        expected = whole(images + 0.1 * shift, labels, one)
        got = cut(images + 0.1 * shift, labels, several, rows)
        assert ((got - expected).norm() / expected.norm()).item() < tolerance
    assert len(several.history) == len(one.history) == 4
    assert several.lam == pytest.approx(one.lam, rel=tolerance)
    assert [r.images for r in several.history] == [r.images for r in one.history]
    share = [(r.share or 0.0) for r in one.history]
    assert [r.share for r in several.history] == pytest.approx(share, rel=tolerance)
    assert max(share) > 0.01  # else lambda would not show


@given(cuts=st.lists(st.integers(1, 11), unique=True, max_size=6), seed=st.integers(0, 100))
def test_any_cut_will_do(cuts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(12, 3, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (12,), generator=generator)
    order = torch.randperm(12, generator=generator)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    pool = ddplug.ProxyPool.from_modules([network])
    expected = whole(images, labels, layer(pool, 50.0))
    got = in_a_round(images, labels, layer(pool, 50.0), list(order.tensor_split(sorted(cuts))))
    assert ((got - expected).norm() / expected.norm()).item() < 1e-12


def test_a_host_that_steps_class_by_class_says_of_how_many_images_its_set_is(
    pool: ddplug.ProxyPool, batch: Batch
) -> None:
    """As IDM does: each class's images have a step of their own, and lambda means what it does on all at once."""
    images, labels = batch
    expected, got = whole(images, labels, layer(pool, 40.0)), torch.zeros_like(images)
    regularizer = layer(pool, 40.0, weighting=ddplug.Absolute(set_size=12))
    for rows in class_rows(labels):
        leaf = images.clone().requires_grad_()
        (host(regularizer(1.5 * leaf[rows], labels[rows])) * len(rows) / 12).backward()
        assert leaf.grad is not None
        got += leaf.grad
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
    assert len(regularizer.history) == 3
    assert [r.lam for r in regularizer.history] == pytest.approx([40.0 * len(rows) / 12 for rows in class_rows(labels)])


def test_a_share_is_of_all_of_the_set(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    one = layer(pool, 0.5, weighting=ddplug.Relative(1))
    whole(images, labels, one)
    parts = layer(pool, 0.5, weighting=ddplug.Relative(1, set_size=12))
    for rows in class_rows(labels):
        (host(parts(1.5 * images[rows].requires_grad_(), labels[rows])) * len(rows) / 12).backward()
    assert parts.lam == pytest.approx(one.lam, rel=1e-12)


# What a round of several passes must not do


def test_the_hosts_own_gradient_is_there_at_once_and_bit_for_bit(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    regularizer, leaf, plain = layer(pool), images.clone().requires_grad_(), images.clone().requires_grad_()
    with regularizer.round():
        for rows in class_rows(labels):
            views = regularizer(1.5 * leaf[rows], labels[rows])
            assert torch.equal(views, 1.5 * leaf[rows])
            host(views).backward()
            host(1.5 * plain[rows]).backward()
            assert leaf.grad is not None
            assert plain.grad is not None
            assert torch.equal(leaf.grad, plain.grad)
    assert not torch.equal(leaf.grad, plain.grad)


@pytest.mark.parametrize("off", ["weight", "detached"])
def test_off_is_off_in_a_round(pool: ddplug.ProxyPool, batch: Batch, off: str) -> None:
    images, labels = batch
    regularizer = layer(pool, 0.0 if off == "weight" else 0.7)
    if off == "detached":
        regularizer.detach()
    leaf, plain = images.clone().requires_grad_(), images.clone().requires_grad_()
    with regularizer.round():
        for rows in class_rows(labels):
            views = 1.5 * leaf[rows]
            assert regularizer(views, labels[rows]) is views
            host(views).backward()
            host(1.5 * plain[rows]).backward()
    assert leaf.grad is not None
    assert plain.grad is not None
    assert torch.equal(leaf.grad, plain.grad)


def test_detached_in_the_middle_of_a_round(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """The host's gradient still arrives, though the layer is gone, also by graphs that went through it."""
    images, labels = batch
    regularizer, leaf, plain = layer(pool), images.clone().requires_grad_(), images.clone().requires_grad_()
    with regularizer.round():
        loss = host(regularizer(1.5 * leaf, labels))
        regularizer.detach()
    loss.backward()
    host(1.5 * plain).backward()
    assert leaf.grad is not None
    assert plain.grad is not None
    assert torch.equal(leaf.grad, plain.grad)
    assert len(regularizer.history) == 0


def test_a_graph_of_a_round_that_is_walked_after_it(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    regularizer, leaf, plain = layer(pool), images.clone().requires_grad_(), images.clone().requires_grad_()
    with pytest.raises(ZeroDivisionError), regularizer.round():
        loss = host(regularizer(1.5 * leaf, labels))
        raise ZeroDivisionError
    loss.backward()
    host(1.5 * plain).backward()
    assert leaf.grad is not None
    assert plain.grad is not None
    assert torch.equal(leaf.grad, plain.grad)
    whole(images, labels, regularizer)  # and the next round is one
    assert len(regularizer.history) == 1


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_step_within_a_round_is_refused(by_hand: bool, pool: ddplug.ProxyPool, batch: Batch) -> None:
    """CMI would be of mixed images."""
    images, labels = batch
    regularizer, leaf = layer(pool), images.clone().requires_grad_()
    optimizer, other = torch.optim.SGD([leaf], lr=0.1), torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ddplug.errors.InputError, match="within a round.*after the `with"), regularizer.round():
        optimizer.step()  # nothing has come yet
        host(regularizer(1.5 * leaf, labels)).backward()
        other.step()
        if by_hand:
            with torch.no_grad():
                leaf -= 0.1 * leaf.grad  # type: ignore[operator]
        else:
            optimizer.step()
    assert len(regularizer.history) == 0
    with regularizer.round():
        host(regularizer(1.5 * leaf, labels)).backward()
    optimizer.step()


def test_what_a_round_refuses(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    regularizer = layer(pool)
    with pytest.raises(ddplug.errors.InputError, match="rounds do not nest"), regularizer.round(), regularizer.round():
        pass
    with pytest.raises(ddplug.errors.InputError, match="create_graph=True came within a round"), regularizer.round():
        host(regularizer(images.clone().requires_grad_(), labels)).backward(create_graph=True)
    with pytest.raises(ddplug.errors.InputError, match="set_size must be a whole number >= 1, got 0"):
        layer(pool, weighting=ddplug.Absolute(set_size=0))


def test_an_empty_round_is_none(pool: ddplug.ProxyPool, batch: Batch) -> None:
    regularizer = layer(pool)
    with regularizer.round():
        pass
    with pytest.warns(ddplug.DDPlugWarning, match="no gradient had come"), regularizer.round():
        regularizer(batch[0].clone().requires_grad_(), batch[1])  # dropped unwalked
    assert regularizer.rounds == 0


def test_passes_that_are_skipped_are_left_out(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """The two passes that the host takes are the round."""
    images, labels = batch
    regularizer, leaf = layer(pool), images.clone().requires_grad_()
    with regularizer.round():
        host(regularizer(1.5 * leaf[:6], labels[:6])).backward()
        host(regularizer(9.5 * leaf[6:], labels[6:]))
        regularizer.skip()
        host(regularizer(1.5 * leaf[6:], labels[6:])).backward()
    assert [r.images for r in regularizer.history] == [12]
    assert regularizer.history.cmi == pytest.approx([ddplug.CMI(pool)(1.5 * images, labels).item()], rel=1e-12)


def test_a_pass_skipped_within_a_round_goes_as_the_host_made_it(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    regularizer, leaf = layer(pool), images.clone().requires_grad_()
    with regularizer.round():
        host(regularizer(1.5 * leaf[:6], labels[:6])).backward()
        other = host(regularizer(1.5 * leaf[6:], labels[6:]))
        regularizer.skip()
        other.backward()
    assert [r.images for r in regularizer.history] == [6]
    plain = images.clone().requires_grad_()
    host(1.5 * plain[6:]).backward()
    assert leaf.grad is not None
    assert plain.grad is not None
    assert torch.equal(leaf.grad[6:], plain.grad[6:])


def test_views_that_share_a_graph_behind_them(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """Both halves come of one tensor: its graph is walked once for both."""
    images, labels = batch
    leaf = images.clone().requires_grad_()
    regularizer = layer(pool)
    with regularizer.round():
        made = leaf.tanh() * 1.5
        for rows in (slice(0, 6), slice(6, 12)):
            (regularizer(made[rows], labels[rows]).square().sum() / 12).backward(retain_graph=rows.start == 0)
    other = images.clone().requires_grad_()
    (layer(pool)(other.tanh() * 1.5, labels).square().sum() / 12).backward()
    assert leaf.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-12, atol=1e-14)


def test_several_threads_with_one_layer(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """Each thread's rounds are its own, and the history is whole."""
    images, labels = batch
    regularizer, expected = layer(pool), whole(images, labels, layer(pool))
    wrong: list[object] = []

    def work() -> None:
        try:
            for _ in range(20):
                if not torch.equal(whole(images, labels, regularizer), expected):
                    wrong.append("another gradient")
        except Exception as error:  # shown below
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(regularizer.history) == regularizer.rounds == 80
    assert sorted(r.number for r in regularizer.history) == list(range(80))


# What a hostile review found


def two_halves(regularizer: ddplug.Regularizer, leaf: Tensor, labels: Tensor) -> None:
    for rows in (slice(0, 6), slice(6, 12)):
        regularizer(1.5 * leaf[rows], labels[rows]).square().sum().backward()


@pytest.mark.parametrize(
    "options",
    [
        {"compute": ddplug.Compute(precision="exact", every=2)},
        {"weighting": ddplug.Absolute(schedule=lambda number: float(number % 2 == 0))},
    ],
)
def test_rounds_that_do_nothing(pool: ddplug.ProxyPool, batch: Batch, options: dict[str, Any]) -> None:
    """Lazy ones and those that a schedule leaves out: the host's gradient is as without."""
    regularizer, added = layer(pool, **options), []
    for _ in range(4):
        leaf, other = batch[0].clone().requires_grad_(), batch[0].clone().requires_grad_()
        with regularizer.round():
            two_halves(regularizer, leaf, batch[1])
        (1.5 * other).square().sum().backward()
        assert leaf.grad is not None
        assert other.grad is not None
        added.append((leaf.grad - other.grad).abs().max().item())
    assert [value > 1e-6 for value in added] == [True, False, True, False]
    assert regularizer.rounds == 4


def beside(regularizer: ddplug.Regularizer, batch: Batch, *, retain: bool) -> Tensor:
    """Two passes of a host that also has a penalty on what its views are made of."""
    leaf = batch[0].clone().requires_grad_()
    made = leaf.tanh()
    for rows in (slice(0, 6), slice(6, 12)):
        loss = regularizer(1.5 * made[rows], batch[1][rows]).square().sum() + made.square().sum()
        loss.backward(retain_graph=retain or rows.start == 0)
    assert leaf.grad is not None
    return leaf.grad


def test_a_graph_that_is_shared_beside_the_layer(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """Said with a way out, which works."""
    other = batch[0].clone().requires_grad_()
    made = other.tanh()
    (layer(pool, 40.0)(1.5 * made, batch[1]).square().sum() + 2 * made.square().sum()).backward()
    assert other.grad is not None
    by_hand = layer(pool, 40.0)
    with by_hand.round():
        got = beside(by_hand, batch, retain=True)
    torch.testing.assert_close(got, other.grad, rtol=1e-12, atol=0)
    with pytest.raises(RuntimeError, match="retain_graph=True"), by_hand.round():
        beside(by_hand, batch, retain=False)


def test_a_round_that_no_gradient_comes_to_is_said(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """By `inputs=`, or after the block: the host's own gradient of the latter still arrives."""
    images, labels = batch
    regularizer, leaf = layer(pool), images.clone().requires_grad_()
    with pytest.warns(ddplug.DDPlugWarning, match="no gradient had come.*plain backward"), regularizer.round():
        loss = regularizer(1.5 * leaf, labels).square().sum()
    loss.backward()
    torch.testing.assert_close(leaf.grad, 4.5 * images, rtol=1e-12, atol=0)
    again = layer(pool)
    with pytest.warns(ddplug.DDPlugWarning, match="no gradient had come.*inputs="), again.round():
        again(1.5 * leaf, labels).square().sum().backward(inputs=[leaf])


def test_what_is_dropped_or_done_is_not_kept(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    leaf, kept = images.clone().requires_grad_(), []

    def call(regularizer: ddplug.Regularizer) -> Tensor:
        views = leaf * 1.5
        kept.append(weakref.ref(views))
        return regularizer(views, labels).sum()

    dropped, done = layer(pool), layer(pool)
    with pytest.warns(ddplug.DDPlugWarning, match="no gradient"), dropped.round():
        for _ in range(5):
            call(dropped)
    with done.round():
        loss = call(done)
        loss.backward()
    assert [ref() is not None for ref in kept] == [False] * 6
    with pytest.raises(ddplug.errors.InputError, match="walked again after the round"):
        loss.backward()


def test_layers_that_meet_in_a_round(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    first, second = layer(pool, 40.0), layer(pool, 30.0)
    leaf, other = images.clone().requires_grad_(), images.clone().requires_grad_()
    with second.round(), first.round():  # the one that is nearer to the images ends last
        for rows in (slice(0, 6), slice(6, 12)):
            first(second(1.5 * leaf[rows], labels[rows]), labels[rows]).square().sum().backward()
    layer(pool, 70.0)(1.5 * other, labels).square().sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-12, atol=1e-12)
    assert [r.images for r in (*first.history, *second.history)] == [12, 12]
    with pytest.raises(ddplug.errors.InputError, match="after the round"), first.round(), second.round():
        first(second(1.5 * leaf, labels), labels).square().sum().backward()


def test_hooks_on_the_images_are_told_of(pool: ddplug.ProxyPool, batch: Batch) -> None:
    regularizer, leaf = layer(pool), batch[0].clone().requires_grad_()
    leaf.register_hook(lambda grad: grad / grad.norm())
    with pytest.warns(ddplug.DDPlugWarning, match="hook on the images' gradient sees it in two"), regularizer.round():
        two_halves(regularizer, leaf, batch[1])


def test_rounds_of_several_threads_are_their_own(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    regularizer, wrong = layer(pool), list[object]()
    expected = ddplug.CMI(pool)(1.5 * images, labels).item()
    started = threading.Barrier(2)

    def work() -> None:
        try:
            for _ in range(5):
                started.wait(timeout=20)
                leaf = images.clone().requires_grad_()
                with regularizer.round():
                    two_halves(regularizer, leaf, labels)
        except Exception as error:  # shown below
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert regularizer.history.cmi == pytest.approx([expected] * 10, rel=1e-12)


def test_recording_cuts_nothing(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """At weight 0 the host's gradient is bit for bit its own in a round, too, however it is asked for."""
    images, labels = batch[0].float(), batch[1]
    regularizer = layer(ddplug.ProxyPool.from_modules([pool.proxies[0].network.float()]), 0.0, record=True)
    leaf, plain = images.clone().requires_grad_(), images.clone().requires_grad_()
    with regularizer.round():
        for factor in (1.1, 1.3, 1.7):
            (grad,) = torch.autograd.grad(regularizer(factor * leaf, labels).tanh().sum(), [leaf])
            (expected,) = torch.autograd.grad((factor * plain).tanh().sum(), [plain])
            assert torch.equal(grad, expected)
            regularizer(factor * leaf, labels).tanh().sum().backward()
            (factor * plain).tanh().sum().backward()
    assert leaf.grad is not None
    assert plain.grad is not None
    assert torch.equal(leaf.grad, plain.grad)
    assert [r.images for r in regularizer.history] == [72]


def test_a_step_is_the_round_of_an_optimizer(pool: ddplug.ProxyPool, batch: Batch) -> None:
    leaf = batch[0].clone().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=0.1)
    with ddplug.attach(
        optimizer, 0.7, proxies=pool, labels=batch[1], augment="none", announce=lambda line: None
    ) as handle:
        leaf.square().sum().backward()
        with pytest.raises(ddplug.errors.InputError, match="so the step is the round"), handle.round():
            optimizer.step()
        handle.regularizer.watch.expect("never acts")


def test_more_views_than_the_set_is_said_to_have(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    with pytest.warns(ddplug.DDPlugWarning, match="24 views, more than set_size=12"):
        layer(pool, weighting=ddplug.Absolute(set_size=12))(
            torch.cat([images, images]).requires_grad_(), labels.repeat(2)
        ).sum().backward()
