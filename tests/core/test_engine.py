"""The engine: pieces, precision, compiled networks. However a round is computed, its gradient is the same."""

from __future__ import annotations

import copy
import shutil
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import ddplug
from ddplug.core import chunking as pieces
from ddplug.core.compiled import Compiled
from ddplug.core.step import PieceByPiece
from ddplug.networks.precision import layers
from ddplug.networks.zoo import build, seeded
from ddplug.proxies.pool import Proxy
from ddplug.terms.base import Groups, group
from ddplug.terms.cmi import CMI

pytestmark = pytest.mark.numerical

Result = tuple[Tensor, Tensor]
compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
TINY = {"num_classes": 3, "channels": 3, "size": (8, 8), "width": 8, "depth": 2}


def convnet(seed: int = 0, **options: Any) -> Proxy:
    with seeded(seed):
        return Proxy(build("convnet", **{**TINY, **options}), "classifier", f"convnet-{seed}")


def views(count: int = 13, dtype: torch.dtype = torch.float32, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def groups(count: int = 13, classes: int = 3) -> Groups:
    return group(torch.arange(count) * 7 % classes, count, "cpu")


def step(**options: Any) -> PieceByPiece:
    compute = ddplug.Compute(**{"precision": "exact", **options})
    return PieceByPiece("feature", CMI(), lambda images: images, compute)


def relative(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


# --- pieces


@pytest.mark.parametrize("chunk", [1, 2, 5, 12])
def test_pieces_give_the_gradient_of_the_whole_batch(chunk: int, network: Callable[..., nn.Module]) -> None:
    for proxy, images, tolerance in (
        (convnet(), views(), 1e-6),
        (Proxy(network(1)), views(dtype=torch.float64, size=4), 1e-12),
    ):
        value, grad = step(chunk=13)(proxy, images, groups())
        in_pieces = step(chunk=chunk)(proxy, images, groups())
        assert in_pieces[0].item() == pytest.approx(value.item(), abs=tolerance)  # nats
        assert relative(in_pieces[1], grad) < tolerance


@given(
    images=st.integers(2, 20), chunk=st.integers(1, 25), budget=st.integers(1, 200_000), largest=st.integers(1, 9000)
)
def test_every_plan_gives_the_same_gradient(images: int, chunk: int, budget: int, largest: int) -> None:
    """Whatever is kept from the first pass and whatever is computed again."""
    proxy = Proxy(convnet().network.double(), "classifier")
    seen, of = views(images, torch.float64), groups(images, 1 + images // 4)
    _, expected = step(chunk=images)(proxy, seen, of)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "BUDGET", budget)
        patch.setattr(pieces, "LARGEST_ON_CPU", largest)
        assert relative(step(chunk="auto")(proxy, seen, of)[1], expected) < 1e-12
    assert relative(step(chunk=chunk)(proxy, seen, of)[1], expected) < 1e-12


class Counting(nn.Module):
    """Knows how many images' graphs are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = self.passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += len(images)
        result: Tensor = Sine.apply(images, self) if torch.is_grad_enabled() else images.sin()
        return result

    def add(self, count: int) -> None:
        self.alive += count
        self.most = max(self.most, self.alive)


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, counter: Counting) -> Tensor:
        counter.add(len(images))
        ctx.save_for_backward(images)
        ctx.token = Token()
        weakref.finalize(ctx.token, counter.add, -len(images))
        return images.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.saved_tensors[0].cos(), None


class Token:
    """Lives as long as the graph that it is in."""


def counted() -> tuple[Proxy, Counting]:
    counter = Counting()
    with seeded(0):
        proxy = Proxy(nn.Sequential(counter, nn.Flatten(), nn.Linear(192, 12), nn.Tanh(), nn.Linear(12, 3)))
    step()(proxy, views(2), groups(2))  # what a pass costs is measured once
    counter.most = counter.passes = 0
    return proxy, counter


def test_memory_is_bounded_by_the_chunk_and_not_by_the_batch() -> None:
    proxy, counter = counted()
    for images in (12, 120):
        step(chunk=4)(proxy, views(images), groups(images))
        assert (counter.most, counter.alive) == (4, 0)


def test_only_what_was_not_kept_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, counter = counted()
    cost = next(iter(proxy.costs.values()))
    monkeypatch.setattr(pieces, "LARGEST_ON_CPU", 5 * cost.largest)
    monkeypatch.setattr(pieces, "BUDGET", int(15 * cost.total))
    step()(proxy, views(50), groups(50))
    assert (counter.most, counter.alive) == (15, 0)
    assert counter.passes == 50 + (50 - 15)
    monkeypatch.setattr(pieces, "BUDGET", int(50 * cost.total))
    counter.passes = 0
    step()(proxy, views(50), groups(50))
    assert counter.passes == 50


def test_what_an_image_costs_is_what_its_graph_holds() -> None:
    """Through one convolution, whose backward pass in fp32 needs its input, and a ReLU, which keeps its output."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).requires_grad_(False)
    cost = pieces.measure(lambda images: net[:3](images), views())
    assert cost.largest == 4 * 8 * 8 * 4
    assert cost.total == (4 + 3) * 8 * 8 * 4
    assert not cost.mixes


def test_a_network_that_mixes_images_is_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    with seeded(0):
        body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Flatten())
        proxy = Proxy(nn.Sequential(body, nn.Linear(144, 3)), "1")
    _, expected = step(chunk=13)(proxy, views(), groups())
    monkeypatch.setattr(pieces, "LARGEST_ON_CPU", 1)
    assert relative(step()(proxy, views(), groups())[1], expected) < 1e-6
    with pytest.raises(ddplug.errors.InputError, match="chunk=4 takes 13 images apart"):
        step(chunk=4)(proxy, views(), groups())


@pytest.mark.parametrize("chunk", [0, -1, 2.5, True, "whole"])
def test_a_chunk_that_is_none(chunk: Any) -> None:
    with pytest.raises(ddplug.errors.InputError, match="chunk must be"):
        ddplug.Regularizer(convnet(), compute=ddplug.Compute(chunk=chunk))


# --- precision


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device that is fast at bf16; others compute the same, only slowly."""
    monkeypatch.setattr("ddplug.networks.precision.fast_bf16", lambda device: True)


def plain(proxy: Proxy, images: Tensor, of: Groups) -> Result:
    """By autograd through everything, with nothing of the engine's."""
    leaf = images.clone().requires_grad_()
    network: Any = proxy.network
    log_p = F.log_softmax(network.embed(leaf), 1)
    q = torch.stack([log_p[of.index == c].exp().mean(0) for c in range(len(of.counts))])
    value = (log_p.exp() * (log_p - q.log()[of.index])).sum() / len(images)
    return value, torch.autograd.grad(value, leaf)[0]


@pytest.mark.usefixtures("bf16")
def test_exact_is_fp32_and_auto_differs_on_the_way_back_only() -> None:
    proxy, images, of = convnet(width=32), views(60), groups(60)
    value, grad = plain(proxy, images, of)
    exact, auto, low = (step(precision=p)(proxy, images, of) for p in ("exact", "auto", "bf16"))
    assert relative(exact[1], grad) < 1e-5
    assert torch.equal(auto[0], exact[0])
    assert exact[0].item() == pytest.approx(value.item(), rel=1e-4)
    assert 1e-5 < relative(auto[1], exact[1]) < 0.02
    cosine = torch.cosine_similarity(auto[1].flatten(), exact[1].flatten(), 0).item()
    assert cosine >= 0.999
    assert relative(low[1], exact[1]) > relative(auto[1], exact[1])
    assert {tensor.dtype for result in (auto, low) for tensor in result} == {torch.float32}


def test_without_fast_bf16_auto_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddplug.networks.precision.fast_bf16", lambda device: False)
    exact, auto = (step(precision=p)(convnet(), views(), groups()) for p in ("exact", "auto"))
    assert torch.equal(exact[1], auto[1])


@pytest.mark.usefixtures("bf16")
def test_only_frozen_fp32_layers_go_back_in_bf16() -> None:
    """Double stays double; a layer that is trained, or of another kind, keeps its own backward pass."""
    weight, bias = torch.randn(4, 3, 3, 3), torch.randn(4)
    cases: list[Callable[[Tensor], Tensor]] = [
        lambda x: F.conv2d(x, weight, bias, padding="same"),
        lambda x: F.conv2d(x[0], weight, bias)[None],
        lambda x: F.conv2d(x, weight.clone().requires_grad_(), bias),
        lambda x: F.conv2d(x.double(), weight.double()).float(),
        lambda x: F.conv_transpose2d(x, torch.ones(3, 4, 3, 3)),
        lambda x: F.linear(x, torch.ones(5, 8).requires_grad_()),
    ]
    for case in cases:
        gradients = []
        for precision in ("exact", "auto"):
            leaf = views(2).requires_grad_()
            with layers("cpu", precision):  # type: ignore[arg-type]
                result = case(leaf)
            gradients += torch.autograd.grad(result.sin().sum(), leaf)
        assert torch.equal(gradients[0], gradients[1])


@pytest.mark.usefixtures("bf16")
@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: F.conv2d(x, w, None, 2, 1),
        lambda x, w: F.conv2d(input=x, weight=w, padding=(1, 0), dilation=2),
        lambda x, w: F.conv2d(x, w[:, :1], groups=3) if len(w) % 3 == 0 else F.conv2d(x, w),
        lambda x, w: F.linear(x, w[0, 0, 0].expand(4, -1).repeat(1, 3)[:, :8]),
        lambda x, w: F.linear(input=x, weight=torch.eye(8)[:3], bias=torch.ones(3)),
    ],
)
def test_layers_go_back_right_however_they_are_called(call: Callable[[Tensor, Tensor], Tensor]) -> None:
    weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    results, gradients = [], []
    for precision in ("exact", "auto"):
        leaf = views(4).requires_grad_()
        with layers("cpu", precision):  # type: ignore[arg-type]
            results.append(call(leaf, weight))
        gradients += torch.autograd.grad(results[-1].square().sum(), leaf)
    assert torch.equal(results[0], results[1])
    assert 0 < relative(gradients[1], gradients[0]) < 0.01


def test_the_images_themselves_are_seen_in_fp32() -> None:
    """bf16 does not tell 1 + 2^-10 from 1, so a difference of channels that differ by no more is zero in it."""
    signs = torch.tensor([1.0, -1.0] * 4).view(1, 8, 1, 1)
    images, weight = torch.ones(2, 8, 8, 8) + (signs > 0) * 2**-10, signs.expand(4, 8, 3, 3).contiguous()
    with layers("cpu", "bf16"):
        first, later = F.conv2d(images[:, :2], weight[:, :2]), F.conv2d(images, weight)
    # Every sum on the way is exact in fp32, in any order, and the result is so in bf16.
    assert torch.equal(first, torch.full((2, 4, 6, 6), 9 * 2**-10, dtype=torch.bfloat16))
    assert torch.equal(later, torch.zeros(2, 4, 6, 6, dtype=torch.bfloat16))


@pytest.mark.usefixtures("bf16")
def test_layers_that_are_computed_again_later_stay_plain() -> None:
    """torch.utils.checkpoint runs them once more in the backward pass, where nothing of ours is around."""
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(144, 3)

        def forward(self, images: Tensor) -> Tensor:
            maps: Any = checkpoint(lambda x: self.body(x).sin(), images, use_reentrant=False)
            logits: Tensor = self.head(maps.flatten(1))
            return logits

    with seeded(0):
        proxy = Proxy(Checkpointed())
    exact, auto = (step(precision=p)(proxy, views(), groups()) for p in ("exact", "auto"))
    assert torch.equal(exact[1], auto[1])


def test_features_without_a_gradient_are_said() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(192, 3)

        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                logits: Tensor = self.head(images.flatten(1).detach())
            return logits

    with pytest.raises(ddplug.errors.ProxyError, match="do not depend differentiably on the images"):
        step()(Proxy(Frozen()), views(), groups())


def test_tight_classes_lose_nothing_to_cancellation() -> None:
    """Where P is nearly uniform, fp32 would lose three digits of the gradient and all of CMI."""
    with seeded(0):
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.Linear(64, 3)).requires_grad_(False)
    net[1].weight.mul_(1e-3)  # type: ignore[operator, union-attr]
    value, grad = step()(Proxy(net), views(), groups())
    wanted, exactly = step()(Proxy(copy.deepcopy(net).double()), views(dtype=torch.float32).double(), groups())
    assert value.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert relative(grad.double(), exactly) < 1e-4


def test_a_precision_that_is_none() -> None:
    with pytest.raises(ddplug.errors.InputError, match="unknown precision 'fp8', expected auto, exact, bf16"):
        ddplug.Regularizer(convnet(), compute=ddplug.Compute(precision="fp8"))  # type: ignore[arg-type]


# --- compiled networks


def test_a_regulariser_goes_without_the_garbage_collector(pool: ddplug.ProxyPool) -> None:
    import gc

    regularizer = layer(pool)
    rounds(regularizer, views(9, torch.float64, size=4), torch.arange(9) % 3, 5)
    gone = weakref.ref(regularizer)
    gc.disable()
    try:
        del regularizer
        assert gone() is None
    finally:
        gc.enable()


def test_proxies_of_unknown_making_are_of_a_kind_of_their_own() -> None:
    assert convnet(0).kind == convnet(1).kind
    assert convnet(0).kind != convnet(0, width=4).kind
    first, second = (Proxy(nn.Sequential(nn.Flatten(), nn.Linear(192, 3))) for _ in range(2))
    assert first.kind != second.kind


@compiler
def test_compiled_is_as_computed() -> None:
    """In torch's own cache on purpose: code kept there from runs with other ATEN_CPU_CAPABILITY must not be taken."""
    pool = ddplug.ProxyPool([Proxy(convnet(seed).network.double(), "classifier", str(seed)) for seed in range(2)])
    gradients = []
    for compile in (True, False):
        regularizer = ddplug.Regularizer(
            pool, 1.0, weighting="absolute", compute=ddplug.Compute(precision="exact", compile=compile)
        )
        for number in range(4):
            images = views(13, torch.float64, seed=number)
            gradients += rounds(regularizer, images, torch.arange(13) % 3, 1)
    # Both are float64 and differ in the order of sums of up to 8 channels x 9 weights, and 64 pixels in the two
    # normalisations: under 100 roundings a layer and way, four ways. A normalisation by a small deviation and the
    # small spread of tight classes multiply what they are given, by a thousand each at the very most here.
    bound = 4 * 100 * 1000 * torch.finfo(torch.float64).eps / 2
    for got, expected in zip(gradients[:4], gradients[4:], strict=True):
        assert relative(got, expected) < bound


def test_a_network_that_hides_its_features_is_not_compiled() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(192, 3)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head(images.flatten(1)) * 2
            return logits

    proxy = Proxy(Scaled(), "head")
    with pytest.raises(ddplug.errors.ProxyError, match="cannot be compiled: without its head 'head'"):
        Compiled(proxy, "feature").check(proxy, views(2))


# --- fewer classes, fewer rounds


def rounds(regularizer: ddplug.Regularizer, images: Tensor, labels: Tensor, number: int) -> list[Tensor]:
    gradients = []
    for _ in range(number):
        leaf = images.clone().requires_grad_()
        (regularizer(leaf, labels).sum() * 0).backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    return gradients


@pytest.fixture
def five(network: Callable[..., nn.Module]) -> ddplug.ProxyPool:
    """One smooth proxy that tells five classes apart."""
    return ddplug.ProxyPool.from_modules([network(7, classes=5)])


def layer(pool: object, **options: Any) -> ddplug.Regularizer:
    return ddplug.Regularizer(pool, 1.0, **{"weighting": "absolute", "announce": lambda line: None, **options})


@pytest.mark.parametrize("several", [1, 2])
def test_the_mean_over_all_choices_of_classes_is_cmi(five: ddplug.ProxyPool, several: int) -> None:
    """Five classes of unequal size, two at a time: ten choices, each found among many draws."""
    labels = torch.tensor([4, 4, 0, 1, 1, 1, 2, 0, 3, 3, 4, 2, 4, 1, 7 - 4])
    images = views(15, torch.float64, size=4)
    options: dict[str, Any] = {"views": ddplug.Views(2, lambda images: images * 1.5) if several > 1 else 1}
    full = rounds(layer(five, **options), images, labels, 1)[0]
    some = layer(five, compute=ddplug.Compute(classes=2), **options)
    found = {}
    for grad in rounds(some, images, labels, 120):
        chosen = tuple(labels[grad.flatten(1).abs().sum(1) > 0].unique().tolist())
        assert len(chosen) == 2
        found[chosen] = grad
    assert len(found) == 10
    assert relative(torch.stack(list(found.values())).mean(0), full) < 1e-12


def test_the_reported_cmi_is_right_on_average_too(pool: ddplug.ProxyPool) -> None:
    labels, images = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2]), views(9, torch.float64, size=4)
    full, some = layer(pool), layer(pool, compute=ddplug.Compute(classes=1))
    rounds(full, images, labels, 1)
    rounds(some, images, labels, 60)
    values = {round(value, 15) for value in some.history.cmi}
    assert len(values) == 3
    assert sum(values) / 3 == pytest.approx(full.history.cmi[0], rel=1e-9)
    assert {entry.images for entry in some.history} == {2, 3, 4}


def test_classes_are_drawn_apart_from_proxies(network: Callable[..., nn.Module]) -> None:
    """As many proxies as classes, whose order would be one and the same if both came from one seed."""
    pool = ddplug.ProxyPool.from_modules([network(seed, classes=4) for seed in range(4)])
    regularizer, pairs = layer(pool, compute=ddplug.Compute(classes=1)), set()
    labels, images = torch.arange(8) % 4, views(8, torch.float64, size=4)
    pool.draw = lambda count, generator, draw=pool.draw: drawn.extend(draw(count, generator)) or drawn[-1:]  # type: ignore[method-assign]
    for _ in range(100):
        drawn: list[Proxy] = []
        (grad,) = rounds(regularizer, images, labels, 1)
        pairs.add((drawn[-1].name, int(labels[grad.flatten(1).abs().sum(1) > 0][0])))
    assert len(pairs) == 16


def test_as_many_classes_as_there_are_is_all_of_them(pool: ddplug.ProxyPool) -> None:
    labels, images = torch.arange(9) % 3, views(9, torch.float64, size=4)
    assert torch.equal(
        *(rounds(layer(pool, compute=ddplug.Compute(classes=m)), images, labels, 1)[0] for m in (None, 3))
    )
    with pytest.raises(ddplug.errors.InputError, match="classes must be a whole number >= 1, got 0"):
        layer(pool, compute=ddplug.Compute(classes=0))


def test_rounds_that_calibrate_see_all_classes(pool: ddplug.ProxyPool) -> None:
    labels, images = torch.arange(12) % 3, views(12, torch.float64, size=4)
    settled = []
    for classes in (None, 1):
        regularizer = ddplug.Regularizer(
            pool, 0.5, weighting=ddplug.Relative(3), compute=ddplug.Compute(classes=classes), announce=lambda line: None
        )
        for _ in range(3):
            regularizer(images.clone().requires_grad_(), labels).square().sum().backward()
        settled.append(regularizer.lam)
    assert settled[0] == settled[1]


def test_draws_of_classes_continue(five: ddplug.ProxyPool, untouched: None) -> None:
    labels, images = torch.arange(12) % 4, views(12, torch.float64, size=4)
    whole = layer(five, compute=ddplug.Compute(classes=1))
    expected = rounds(whole, images, labels, 12)
    first, second = (
        layer(five, compute=ddplug.Compute(classes=1)),
        layer(five, compute=ddplug.Compute(classes=1), seed=5),
    )
    rounds(first, images, labels, 5)
    second.load_state_dict(first.state_dict())
    for got, wanted in zip(rounds(second, images, labels, 7), expected[5:], strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("every", [2, 5])
def test_lazy_rounds_add_up_to_all_of_them(pool: ddplug.ProxyPool, every: int) -> None:
    labels, images = torch.arange(12) % 3, views(12, torch.float64, size=4)
    full = rounds(layer(pool), images, labels, 1)[0]
    lazy = rounds(layer(pool, compute=ddplug.Compute(every=every)), images, labels, 2 * every)
    assert relative(torch.stack(lazy).mean(0), full) < 1e-12
    assert sum(grad.abs().sum() > 0 for grad in lazy) == 2
