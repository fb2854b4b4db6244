"""Real images for the terms that compare with them: where they come from, and that the gradient is theirs."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from ddplug.core.real import PER_CLASS
from ddplug.datasets.images import ImageData
from ddplug.datasets.spaces import InputSpace
from ddplug.errors import InputError
from ddplug.terms import Real, make
from ddplug.terms.base import group

pytestmark = pytest.mark.numerical

Batch = tuple[Tensor, Tensor]
LAM = 0.7
COMPARING = ["covariance", "diversity", "mim"]


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def real() -> Batch:
    """Fourteen real images of the three classes and of none other."""
    return noise(14, 3, 4, 4, seed=11), torch.tensor([1, 0, 2, 2, 1, 0, 0, 1, 2, 0, 1, 1, 2, 0])


@pytest.fixture
def data() -> ImageData:
    """A hundred real images of the three classes, most of class 1."""
    labels = torch.tensor([1] * 80 + [2] * 12 + [0] * 8)
    images = noise(100, 3, 4, 4, seed=5).float()
    return ImageData("noise", ("a", "b", "c"), InputSpace.unit(3), images, labels, images[:9], labels[:9])


def layer(pool: ddplug.ProxyPool, term: str = "mim", **options: Any) -> ddplug.Regularizer:
    how = {"weighting": "absolute", "representation": "feature", "announce": lambda line: None, **options}
    return ddplug.Regularizer(pool, LAM, term=term, **how)


def host(views: Tensor) -> Tensor:
    return (views * 2).square().sum()


def gradient(regularizer: Callable[..., Tensor], batch: Batch, **more: Any) -> Tensor:
    leaf = batch[0].clone().requires_grad_()
    host(regularizer(leaf, batch[1], **more)).backward()
    assert leaf.grad is not None
    return leaf.grad


def expected(pool: ddplug.ProxyPool, term: str, batch: Batch, real: Batch, representation: Any = "feature") -> Tensor:
    """Autograd's derivative of the host's loss plus lambda times the term."""
    leaf, proxy = batch[0].clone().requires_grad_(), pool.proxies[0]
    theirs = proxy(real[0], representation).detach()
    bound = make(term).against(Real(theirs, group(real[1], len(real[1]), "cpu")))
    value = bound(proxy(leaf, representation), group(batch[1], len(batch[1]), "cpu"))
    (grad,) = torch.autograd.grad(host(leaf) + LAM * value, leaf)
    return grad


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


# --- passed along


@pytest.mark.parametrize("term", [*COMPARING, "cmi+0.3*mim", "-diversity"])
def test_the_gradient_is_autograds(pool: ddplug.ProxyPool, batch: Batch, real: Batch, term: str) -> None:
    regularizer = layer(pool, term)
    same(gradient(regularizer, batch, real=real), expected(pool, term, batch, real))
    assert (expected(pool, term, batch, real) - batch[0] * 8).abs().max() > 1e-5, "the term does something"
    whole = regularizer.history.cmi
    plain = ddplug.Regularizer(pool, 0, term=term, representation="feature", record=True, announce=lambda line: None)
    assert torch.equal(gradient(plain, batch, real=real), batch[0] * 8), "at weight 0 the value is noted, no more"
    assert plain.history.cmi == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("chunk", [1, 5])
def test_in_pieces_it_is_the_same(pool: ddplug.ProxyPool, batch: Batch, real: Batch, chunk: int) -> None:
    same(
        gradient(layer(pool, compute=ddplug.Compute(chunk=chunk)), batch, real=real), expected(pool, "mim", batch, real)
    )


def test_of_several_proxies_it_is_the_mean(network: Callable[..., nn.Module], batch: Batch, real: Batch) -> None:
    pools = [ddplug.ProxyPool.from_modules([network(seed)]) for seed in (1, 2)]
    both = ddplug.ProxyPool.from_modules([network(1), network(2)])
    mean = (expected(pools[0], "mim", batch, real) + expected(pools[1], "mim", batch, real)) / 2
    same(gradient(layer(both, compute=ddplug.Compute(draw=2)), batch, real=real), mean)


def test_real_images_get_no_gradient(pool: ddplug.ProxyPool, batch: Batch, real: Batch) -> None:
    images = real[0].clone().requires_grad_()
    same(gradient(layer(pool), batch, real=(images, real[1])), expected(pool, "mim", batch, real))
    assert images.grad is None


def test_class_by_class_in_one_round(pool: ddplug.ProxyPool, batch: Batch, real: Batch) -> None:
    """Each call brings the real images of its own class; the term is of all of them together."""
    regularizer, leaf = layer(pool), batch[0].clone().requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    for c in (2, 0, 1):
        own, theirs = batch[1] == c, real[1] == c
        loss = loss + host(regularizer(leaf[own], batch[1][own], real=(real[0][theirs], real[1][theirs])))
    loss.backward()
    assert leaf.grad is not None
    same(leaf.grad, expected(pool, "mim", batch, real))
    assert regularizer.rounds == 1


def test_passes_and_rounds(pool: ddplug.ProxyPool, batch: Batch, real: Batch) -> None:
    first, second = torch.arange(12) < 5, torch.arange(12) >= 5
    halves = [(real[0][:6], real[1][:6]), (real[0][6:], real[1][6:])]
    regularizer, leaf = layer(pool), batch[0].clone().requires_grad_()
    with regularizer.round():
        for rows, half in zip((first, second), halves, strict=True):
            host(regularizer(leaf[rows], batch[1][rows], real=half)).backward()
    assert leaf.grad is not None
    same(leaf.grad, expected(pool, "mim", batch, real))
    assert regularizer.rounds == 1


class Twice(nn.Module):
    """Further views that depend on their number, as draws would."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images * (0.5 + 0.25 * self.calls)


def test_further_views_of_real_images_too(pool: ddplug.ProxyPool, batch: Batch, real: Batch) -> None:
    """One further view of each real image, two of each synthetic one."""
    regularizer = layer(pool, views=ddplug.Views(2, Twice()))
    found = gradient(regularizer, batch, real=real)
    leaf, proxy = batch[0].clone().requires_grad_(), pool.proxies[0]
    theirs = proxy(real[0] * 0.75, "feature").detach()
    bound = make("mim").against(Real(theirs, group(real[1], 14, "cpu")))
    seen = torch.cat([leaf * 1.0, leaf * 1.25])
    value = bound(proxy(seen, "feature"), group(batch[1].repeat(2), 24, "cpu"))
    (wanted,) = torch.autograd.grad(host(leaf) + LAM * value, leaf)
    same(found, wanted)


def test_what_is_refused(pool: ddplug.ProxyPool, batch: Batch, real: Batch, data: ImageData) -> None:
    with pytest.raises(InputError, match="classes=2 lets some classes stand for all, but MIM loss"):
        layer(pool, compute=ddplug.Compute(classes=2))
    with pytest.raises(InputError, match="the term 'mim' compares with real images, and has none"):
        gradient(layer(pool), batch)
    with pytest.raises(InputError, match="the term 'mim' compares with real images, and has none"):
        gradient(layer(pool, "cmi+0.3*mim"), batch)
    with pytest.raises(InputError, match=r"labels of shape \(3,\) for 14 images"):
        gradient(layer(pool), batch, real=(real[0], real[1][:3]))
    keep = real[1] != 1
    with pytest.raises(InputError, match="no real images of class 1"):
        gradient(layer(pool), batch, real=(real[0][keep], real[1][keep]))
    with pytest.raises(ddplug.errors.ProxyError, match=r"does not take images of shape \(1, 3, 4, 3\)"):
        gradient(layer(pool), batch, real=(real[0][..., :3], real[1]))
    lacking = data.train_labels != 2
    few = ImageData(
        "noise", data.class_names, data.space, data.train_images[lacking], data.train_labels[lacking],
        data.test_images, data.test_labels,
    )  # fmt: skip
    with pytest.raises(InputError, match="no (real )?images of class 2"):
        gradient(layer(pool, data=few, input_space=None), batch)


def test_terms_that_compare_with_none_ignore_them(pool: ddplug.ProxyPool, batch: Batch, real: Batch) -> None:
    regularizer = layer(pool, "cmi")
    assert torch.equal(gradient(regularizer, batch, real=real), gradient(layer(pool, "cmi"), batch))
    regularizer.real.passed(*real)
    regularizer.real.sample_from(lambda: pytest.fail("real data was asked for in vain"))


# --- seen passing by


class Trainer:
    """A loop whose augmentation takes the real batch as well."""

    def augment(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return images * 1.5


def scaled(batch: Batch) -> Batch:
    return batch[0] * 1.5, batch[1]


def step(trainer: Any, batch: Batch, real: Batch | None, *, with_labels: bool = True) -> Tensor:
    """The gradient on the images of a step that augments the real batch first."""
    if real is not None:
        trainer.augment(*real) if with_labels else trainer.augment(real[0])
    leaf = batch[0].clone().requires_grad_()
    host(trainer.augment(leaf, batch[1]) if with_labels else trainer.augment(leaf)).backward()
    assert leaf.grad is not None
    return leaf.grad


def attached(trainer: object, pool: ddplug.ProxyPool, told: list[str], **options: Any) -> ddplug.Handle:
    how = {"weighting": "absolute", "representation": "feature", "announce": told.append, "term": "mim", **options}
    return ddplug.attach(trainer, LAM, proxies=pool, **how)


def chained(grad: Tensor) -> Tensor:
    """What `expected` on views of 1.5 times the images comes to on the images."""
    return grad * 1.5


def test_the_real_batch_of_an_augmentation(pool: ddplug.ProxyPool, batch: Batch, real: Batch) -> None:
    trainer, told = Trainer(), list[str]()
    with attached(trainer, pool, told) as handle:
        for shift in (0, 1, 2):
            now = (real[0] + shift, real[1])
            same(step(trainer, batch, now), chained(expected(pool, "mim", scaled(batch), scaled(now))))
        assert handle.regularizer.rounds == 3
        with pytest.raises(InputError, match="compares with real images, and has none"):
            step(trainer, batch, None)  # a batch serves once
    assert [line for line in told if "compares" in line] == [
        "ddplug: MIM loss compares with the host's own batch, 14 images the first time"
    ]


def test_one_class_per_call_is_the_real_batchs_too(pool: ddplug.ProxyPool, batch: Batch, real: Batch) -> None:
    """Calls in turn, real before synthetic, without labels: what passes before the views is of their class."""
    trainer, told, leaf = Trainer(), list[str](), batch[0].clone().requires_grad_()
    with attached(trainer, pool, told, labels=ddplug.one_class_per_call(3)):
        loss = torch.zeros((), dtype=torch.float64)
        for c in range(3):
            trainer.augment(real[0][real[1] == c])
            loss = loss + host(trainer.augment(leaf[batch[1] == c]))
        loss.backward()
    assert leaf.grad is not None
    same(leaf.grad, chained(expected(pool, "mim", scaled(batch), scaled(real))))
    assert any("14 images" in line for line in told)


def test_an_unlabelled_batch_beside_views_of_several_classes(
    pool: ddplug.ProxyPool, batch: Batch, real: Batch, data: ImageData
) -> None:
    """It may be of any, so it is not used: an error, or a sample where there is data."""
    trainer = Trainer()
    with (
        pytest.raises(InputError, match="compares with real images, and has none"),
        attached(trainer, pool, [], labels=batch[1]),
    ):
        step(trainer, batch, real, with_labels=False)
    told = list[str]()
    regularizer = layer(pool, data=data, announce=told.append)
    regularizer.real.passed(real[0])
    gradient(regularizer, batch)
    gradient(regularizer, batch, real=real)
    gradient(regularizer, batch, real=real)
    gradient(regularizer, batch)
    assert told == [
        f"ddplug: MIM loss compares with a sample of noise, {PER_CLASS} images of each class, drawn anew in each round",
        "ddplug: MIM loss compares with the host's own batch, 14 images the first time",
    ], "each source is told of once"


def test_labels_that_are_not_those_of_the_batch_that_passed(pool: ddplug.ProxyPool, batch: Batch, real: Batch) -> None:
    wrong, message = (real[0], real[1][:3]), r"got labels of shape \(3,\) for 14 images"
    trainer = Trainer()
    with pytest.raises(InputError, match=message), attached(trainer, pool, []):
        step(trainer, batch, wrong)


def test_what_passes_at_weight_0_is_not_kept(pool: ddplug.ProxyPool, real: Batch) -> None:
    regularizer = ddplug.Regularizer(pool, 0, term="mim")
    regularizer(*real)
    assert regularizer._estimator.real is not None
    assert regularizer._estimator.real._passing is None


# --- nothing is kept alive


def tracked(seed: int, labels: Tensor) -> tuple[Batch, Callable[[], int]]:
    """A batch, and a count of the tensors that are alive and hold its images: its own and copies of it."""
    images = torch.randn(len(labels), 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    first = images.flatten()[0].item()

    def alive() -> int:
        gc.collect()
        tensors = [held for held in gc.get_objects() if type(held) is Tensor and held.shape == images_shape]
        return sum(held.flatten()[0].item() == first for held in tensors)

    images_shape = images.shape
    return (images, labels), alive


def test_nothing_is_kept_after_a_round(pool: ddplug.ProxyPool, batch: Batch, real: Batch) -> None:
    regularizer = layer(pool)
    given, alive = tracked(0, real[1])
    leaf = batch[0].clone().requires_grad_()
    views = regularizer(leaf, batch[1], real=given)
    loss = host(views)
    del given
    assert alive() == 1, "a copy is needed until the backward pass"
    loss.backward(retain_graph=True)  # the graph may be walked again, so the call keeps its batch
    assert alive() == 1
    del views, loss
    assert alive() == 0
    # A graph that is dropped unwalked takes its batch along.
    given, alive = tracked(1, real[1])
    views = regularizer(leaf, batch[1], real=given)
    del given, views
    assert alive() == 0


def test_of_batches_that_pass_only_the_last_is_kept(pool: ddplug.ProxyPool, batch: Batch, real: Batch) -> None:
    trainer = Trainer()
    trainer.augment = lambda images, labels=None: images.view_as(images)  # type: ignore[method-assign]
    with attached(trainer, pool, []):
        counts = []
        for seed in range(4):
            evaluated, alive = tracked(seed, real[1])
            trainer.augment(*evaluated)
            counts.append(alive)
            del evaluated
        assert [alive() for alive in counts] == [0, 0, 0, 1]
        step(trainer, batch, real)
        assert counts[-1]() == 0


# --- a sample of the data


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The real images of every round."""
    from ddplug.core.real import RealImages

    found, of_round = list[Batch](), RealImages.of_round

    def note(self: Any, *args: Any) -> Any:
        batch = of_round(self, *args)
        found.append((batch.images, batch.labels))
        return batch

    monkeypatch.setattr(RealImages, "of_round", note)
    return found


def test_a_sample_of_the_data(
    pool: ddplug.ProxyPool, batch: Batch, data: ImageData, seen: list[Batch], untouched: None
) -> None:
    regularizer = layer(pool, data=data, seed=4)
    for _ in range(3):
        found = gradient(regularizer, batch)
        images, labels = seen[-1]
        assert labels.tolist() == [c for c in range(3) for _ in range(PER_CLASS)]
        for c in range(3):  # images of the class and of no other, several of them, also where there are 80
            own = {image.numpy().tobytes() for image in data.train_images[data.train_labels == c]}
            drawn = {image.numpy().tobytes() for image in images[labels == c]}
            assert drawn <= own
            assert len(drawn) > min(len(own), PER_CLASS) / 2
        same(found, expected(pool, "mim", batch, (images.double(), labels)))
    assert not torch.equal(seen[0][0], seen[1][0]), "drawn anew"
    again = layer(pool, data=data, seed=4)
    gradient(again, batch)
    assert torch.equal(seen[-1][0], seen[0][0]), "by a generator of our own, of the seed"
    gradient(layer(pool, data=data, seed=5), batch)
    assert not torch.equal(seen[-1][0], seen[0][0])


def test_a_sample_is_of_the_rounds_classes_in_the_views_space(
    network: Callable[..., nn.Module], data: ImageData, batch: Batch, seen: list[Batch]
) -> None:
    centred = InputSpace((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    pool = ddplug.ProxyPool.from_modules([network(7)], input_space=centred)
    rows = batch[1] != 1
    gradient(layer(pool, "diversity", data=data), (batch[0][rows], batch[1][rows]))
    images, labels = seen[-1]
    assert labels.unique().tolist() == [0, 2]
    own = {image.numpy().tobytes() for image in data.space.convert(data.train_images, centred)}
    assert {image.numpy().tobytes() for image in images} <= own


def test_a_continued_run_draws_the_same(
    pool: ddplug.ProxyPool, batch: Batch, data: ImageData, seen: list[Batch]
) -> None:
    regularizer = layer(pool, data=data)
    gradient(regularizer, batch)
    state = regularizer.state_dict()
    gradient(regularizer, batch)
    another = layer(pool, data=data)
    another.load_state_dict(state)
    gradient(another, batch)
    assert torch.equal(seen[-1][0], seen[-2][0])
    assert not torch.equal(seen[-1][0], seen[0][0])
    plain = layer(pool, "cmi")
    plain.load_state_dict(plain.state_dict())
    assert "real images" not in plain.state_dict()["generators"]


def test_a_round_that_an_exception_ends_leaves_the_draw(
    pool: ddplug.ProxyPool, batch: Batch, data: ImageData, seen: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    regularizer, untroubled = layer(pool, data=data), layer(pool, data=data)
    step = regularizer._estimator.step

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("the machine broke")

    with monkeypatch.context() as patch:
        patch.setattr(type(step), "__call__", fails)
        with pytest.raises(RuntimeError, match="the machine broke"):
            gradient(regularizer, batch)
    assert regularizer._estimator.step is step
    assert torch.equal(gradient(regularizer, batch), gradient(untroubled, batch))
    assert torch.equal(seen[0][0], seen[1][0])
    assert regularizer.rounds == 1


def test_attach_samples_the_data_it_is_given(
    network: Callable[..., nn.Module], batch: Batch, data: ImageData, real: Batch
) -> None:
    """Or that the trainer holds; a batch that passes goes before."""
    pool = ddplug.ProxyPool.from_modules([network(7)], input_space=data.space)
    trainer, told = Trainer(), list[str]()
    with attached(trainer, pool, told, data=data):
        step(trainer, batch, None)
        assert "a sample of noise" in told[-1]
    trainer.data, told = data, []  # type: ignore[attr-defined]
    with attached(trainer, pool, told):
        step(trainer, batch, real)
        assert "the host's own batch" in told[-1]
        step(trainer, batch, None)
        assert "a sample of noise" in told[-1]


def test_an_optimizer_has_data_only(
    network: Callable[..., nn.Module], batch: Batch, data: ImageData, seen: list[Batch]
) -> None:
    pool = ddplug.ProxyPool.from_modules([network(7)], input_space=data.space)
    leaf = batch[0].clone().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=1.0)
    with attached(optimizer, pool, [], data=data, labels=batch[1], augment="none"):
        host(leaf).backward()
        optimizer.step()
    same(batch[0] - leaf.detach(), expected(pool, "mim", batch, (seen[-1][0].double(), seen[-1][1])))
