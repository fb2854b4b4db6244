"""Labels of the rows that a call's views show, however the host selects, joins and augments its images."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import ddplug
from attaching.loop import LAM, Batch, attach
from ddplug.attaching.held import Held
from ddplug.attaching.images import Images
from ddplug.attaching.labels import LabelReader

pytestmark = pytest.mark.numerical


def images_of(host: Any) -> list[Tensor]:
    found = host.images
    return list(found) if isinstance(found, list | nn.ParameterList) else [found]


class Host:
    """Images, their labels, and a step: `loss` of some views."""

    def __init__(self, batch: Batch) -> None:
        self.images: Any = batch[0].clone().requires_grad_()
        self.labels = batch[1].clone()

    def augment(self, images: Tensor) -> Tensor:
        return images * 1.5


def of_cmi(pool: ddplug.ProxyPool, batch: Batch, rows: Tensor, made: Callable[[Tensor], Tensor]) -> Tensor:
    """Lambda times the gradient of CMI of the views that `made` makes of the images, whose rows are given."""
    leaf = batch[0].detach().clone().requires_grad_()
    return LAM * torch.autograd.grad(ddplug.CMI(pool)(made(leaf), batch[1][rows]), leaf)[0]


def added(host: Any, pool: ddplug.ProxyPool, step: Callable[[], Tensor], rounds: int = 1, **options: Any) -> Tensor:
    """What the regulariser adds to the gradient of one step of the host."""
    gradients = []
    for weight in (LAM, 0):
        for leaf in images_of(host):
            leaf.grad = None
        settings = {"weighting": "absolute", "announce": lambda line: None, **options}
        with ddplug.attach(host, weight, proxies=pool, **settings) as handle:
            step().backward()
            if weight:
                assert handle.regularizer.rounds == rounds
        parts = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in images_of(host)]
        gradients.append(torch.cat([part.reshape(-1, *part.shape[-3:]) for part in parts]))
    return gradients[0] - gradients[1]


ROWS = torch.tensor([7, 0, 11, 3, 3, 5, 10, 1])
MASK = torch.tensor([True, False, False, True] * 3)


@pytest.mark.parametrize(
    ("rows", "select"),
    [
        (torch.arange(4, 12), lambda x: x[4:]),
        (ROWS, lambda x: x[ROWS]),
        (MASK.nonzero().flatten(), lambda x: x[MASK]),
        (torch.cat([ROWS, torch.arange(3)]), lambda x: torch.cat([x.index_select(0, ROWS), x[:3]]).clone()),
        (torch.tensor([9, 2, 0, 1]), lambda x: torch.stack([x[9], x[2], x[0], x[1]]).to("cpu", copy=True)),
        (torch.arange(11, -1, -1), lambda x: x.flip(0).sigmoid()),
        (torch.arange(12).roll(5), lambda x: (x.roll(5, 0) - 0.1).clamp(-9, 9) / 0.3),
    ],
)
def test_whatever_rows_a_call_shows(
    pool: ddplug.ProxyPool, batch: Batch, rows: Tensor, select: Callable[[Tensor], Tensor]
) -> None:
    host = Host(batch)
    got = added(host, pool, lambda: host.augment(select(host.images)).square().sum())
    torch.testing.assert_close(got, of_cmi(pool, batch, rows, lambda x: select(x) * 1.5), rtol=1e-7, atol=1e-9)


def test_a_random_permutation_at_each_call(pool: ddplug.ProxyPool, batch: Batch) -> None:
    host = Host(batch)
    with attach(host, pool):
        for seed in range(5):
            rows = torch.randperm(12, generator=torch.Generator().manual_seed(seed))[: 12 - seed]
            host.images.grad = None
            host.augment(host.images[rows]).sum().backward()
            plain = torch.zeros_like(batch[0]).index_add(0, rows, torch.full_like(batch[0][rows], 1.5))
            expected = plain + of_cmi(pool, batch, rows, lambda x, rows=rows: x[rows] * 1.5)  # type: ignore[misc]
            torch.testing.assert_close(host.images.grad, expected, rtol=1e-10, atol=1e-12)


def per_class(batch: Batch) -> tuple[list[Tensor], Tensor]:
    images, labels = batch
    parts = [images[labels == c].clone().requires_grad_() for c in range(3)]
    return parts, torch.cat([labels[labels == c] for c in range(3)])


@pytest.mark.parametrize("kind", ["list", "parameters", "optimizer", "given"])
def test_a_list_of_leaves_per_class(pool: ddplug.ProxyPool, batch: Batch, kind: str) -> None:
    host = Host(batch)
    parts, host.labels = per_class(batch)
    host.images = nn.ParameterList(parts) if kind == "parameters" else parts
    if kind == "optimizer":
        del host.images
        host.optimizer = torch.optim.SGD(parts, lr=1.0)  # type: ignore[attr-defined]
    ordered = torch.cat([part.detach() for part in parts]), host.labels
    leaves = list(host.images) if kind == "parameters" else parts
    options = {"images": parts} if kind == "given" else {}
    with attach(host, pool, **options) as handle:
        torch.cat([host.augment(part) for part in (leaves[2], leaves[0])]).sum().backward()
        if kind == "optimizer":
            host.optimizer.step()  # type: ignore[attr-defined]
        assert handle.regularizer.rounds == 1
    rows = torch.cat([(host.labels == 2).nonzero().flatten(), (host.labels == 0).nonzero().flatten()])
    expected = of_cmi(pool, ordered, rows, lambda x: x[rows] * 1.5)
    for c in (0, 2):
        got = leaves[c].grad
        assert got is not None
        torch.testing.assert_close(got - 1.5, expected[host.labels == c], rtol=1e-9, atol=1e-12)


def test_a_parameter_and_rows_of_an_embedding(pool: ddplug.ProxyPool, batch: Batch) -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding.from_pretrained(batch[0].flatten(1).clone(), freeze=False)
            self.register_buffer("targets", batch[1])

        def augment(self, images: Tensor) -> Tensor:
            return images * 1.5

    module = Module()
    with attach(module, pool):
        module.augment(module.embedding(ROWS).view(-1, *batch[0].shape[1:])).sum().backward()
    plain = torch.zeros_like(batch[0]).index_add(0, ROWS, torch.full_like(batch[0][ROWS], 1.5))
    got = module.embedding.weight.grad
    expected = (plain + of_cmi(pool, batch, ROWS, lambda x: x[ROWS] * 1.5)).flatten(1)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_labels_hang_anywhere(pool: ddplug.ProxyPool, batch: Batch) -> None:
    host = Host(batch)
    host.data = types.SimpleNamespace(images=host.images, targets=host.labels)  # type: ignore[attr-defined]
    del host.labels
    for options in ({}, {"labels": "data.targets"}, {"images": "data.images"}):
        got = added(host, pool, lambda: host.augment(host.images[ROWS]).sum(), **options)
        torch.testing.assert_close(got, of_cmi(pool, batch, ROWS, lambda x: x[ROWS] * 1.5), rtol=1e-9, atol=1e-12)


def test_an_argument_that_is_no_label(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """An offset named y became class 0 for all images."""

    class Shifted(Host):
        def augment(self, images: Tensor, y: int = 0) -> Tensor:
            return images.roll(y, 3) * 1.5

    host = Shifted(batch)
    for step in (lambda: host.augment(host.images), lambda: host.augment(host.images, 0)):
        got = added(host, pool, lambda step=step: step().sum())  # type: ignore[misc]
        torch.testing.assert_close(got, of_cmi(pool, batch, torch.arange(12), lambda x: x * 1.5), rtol=1e-9, atol=1e-12)


def test_soft_labels_are_not_replaced_by_a_real_batchs(pool: ddplug.ProxyPool, batch: Batch) -> None:
    host = Host(batch)
    host.labels_syn = torch.zeros(12, 3, dtype=torch.float64, requires_grad=True)  # type: ignore[attr-defined]
    host.labels = torch.zeros(12, dtype=torch.int64)  # of a real batch of the same size
    with pytest.raises(ddplug.errors.HostError, match=r"'labels_syn' \(12, 3\) may be soft"), attach(host, pool):
        host.augment(host.images)
    got = added(host, pool, lambda: host.augment(host.images).sum(), labels=batch[1])
    torch.testing.assert_close(got, of_cmi(pool, batch, torch.arange(12), lambda x: x * 1.5), rtol=1e-9, atol=1e-12)


def test_one_hot_labels_are_named_unless_there_are_class_numbers(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """`F.one_hot` gives integers, and the message did not mention them."""
    images = batch[0].clone().requires_grad_()
    host = types.SimpleNamespace(
        images=images, targets=nn.functional.one_hot(batch[1]), opt=torch.optim.SGD([images], 0.1)
    )
    with pytest.raises(ddplug.errors.HostError, match=r"'targets' \(12, 3\) may be soft or one-hot"):
        attach(host, pool)
    host.labels = batch[1]
    handle = attach(host, pool)
    assert "labels 'labels'" in handle.where
    handle.regularizer.watch.expect("never acts")
    handle.detach()


@pytest.mark.parametrize("named", [True, False])
def test_a_learned_augmentation_and_real_images(pool: ddplug.ProxyPool, batch: Batch, named: bool) -> None:
    """Real images never join, though their views need a gradient."""

    class Learned(Host):
        def __init__(self, batch: Batch) -> None:
            super().__init__(batch)
            self.strength = nn.Parameter(torch.tensor([1.5, 1.5, 1.5], dtype=torch.float64))

        def augment(self, images: Tensor) -> Tensor:
            return images * self.strength.view(1, 3, 1, 1)

    host = Learned(batch)
    real = torch.ones(12, 3, 4, 4, dtype=torch.float64)
    options = {} if named else {"labels": batch[1]}
    got = added(host, pool, lambda: (host.augment(real) + host.augment(host.images)).sum(), **options)  # type: ignore[arg-type]
    torch.testing.assert_close(got, of_cmi(pool, batch, torch.arange(12), lambda x: x * 1.5), rtol=1e-9, atol=1e-12)


def test_real_images_in_one_batch_with_synthetic_ones(pool: ddplug.ProxyPool, batch: Batch) -> None:
    host = Host(batch)
    real = torch.full((5, 3, 4, 4), 0.5, dtype=torch.float64)
    got = added(host, pool, lambda: host.augment(torch.cat([real, host.images[ROWS]])).square().sum())
    torch.testing.assert_close(got, of_cmi(pool, batch, ROWS, lambda x: x[ROWS] * 1.5), rtol=1e-9, atol=1e-12)


def test_real_images_of_such_a_batch_are_compared_with(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """A term that compares with real images gets those of the batch, of the class of the views."""
    host, labels = Host(batch), batch[1]
    rows, real = (labels == 0).nonzero().flatten(), torch.rand(5, 3, 4, 4, dtype=torch.float64)
    got = added(
        host, pool, lambda: host.augment(torch.cat([host.images[rows], real])).square().sum(), term="covariance"
    )
    gradients = []
    for weight in (LAM, 0):
        leaf = batch[0].clone().requires_grad_()
        plain = ddplug.Regularizer(pool, weight, weighting="absolute", term="covariance", announce=lambda line: None)
        plain(
            leaf[rows] * 1.5, labels[rows], real=(real * 1.5, torch.zeros(5, dtype=torch.long))
        ).square().sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    torch.testing.assert_close(got, gradients[0] - gradients[1], rtol=1e-9, atol=1e-12)


class Log(Host):
    """A host that takes a class after the other, and now and then one more for a log."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        self.order = [(batch[1] == c).nonzero().flatten() for c in range(3)]
        del self.labels

    def step(self, c: int) -> Tensor:
        return self.augment(self.images[self.order[c]]).square().sum()


@pytest.fixture
def sure(network: Callable[..., nn.Module]) -> tuple[nn.Module, dict[str, Any]]:
    """A network, and the options of a term that depends on which class is which: its cross-entropy."""
    module = network(7)
    options = {"term": "proxy_ce", "labels": ddplug.one_class_per_call(3)}
    return module, {**options, "pool": ddplug.ProxyPool.from_modules([module])}


def per_class_gradient(network: nn.Module, batch: Batch) -> Tensor:
    leaf = batch[0].clone().requires_grad_()
    views = leaf * 1.5
    (views.square().sum() + LAM * nn.functional.cross_entropy(network(views), batch[1])).backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("log_at", [0, 1, 2, 3])
def test_one_more_call_for_a_log_shifts_no_class(
    sure: tuple[nn.Module, dict[str, Any]], batch: Batch, log_at: int
) -> None:
    host, (network, options) = Log(batch), sure
    with attach(host, **options):
        for step in range(3):
            host.images.grad = None
            losses = []
            for c in range(3):
                losses.append(host.step(c))
                if step == log_at:
                    host.step(c)
            if log_at == 3:
                host.step(0)
            sum(losses).backward()  # type: ignore[union-attr]
            torch.testing.assert_close(host.images.grad, per_class_gradient(network, batch), rtol=1e-9, atol=1e-12)


def test_a_run_that_is_resumed_within_a_passage(sure: tuple[nn.Module, dict[str, Any]], batch: Batch) -> None:
    host, (network, options) = Log(batch), sure
    with attach(host, **options) as handle:
        sum(host.step(c) for c in (0, 1)).backward()  # type: ignore[union-attr]
        state = handle.state_dict()
    host.images.grad = None
    with attach(host, **{**options, "labels": ddplug.one_class_per_call(3)}) as handle:
        handle.load_state_dict(state)
        sum(host.step(c) for c in (2, 0, 1)).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(host.images.grad, per_class_gradient(network, batch), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("order", ["tile", "interleave"])
def test_several_views_of_each_image(pool: ddplug.ProxyPool, batch: Batch, order: str) -> None:
    class Several(Host):
        def augment(self, images: Tensor) -> Tensor:
            if order == "tile":
                return torch.cat([images * scale for scale in (1.5, 0.5, -1.0)])
            return torch.stack([images * scale for scale in (1.5, 0.5, -1.0)], 1).flatten(0, 1)

    host = Several(batch)
    rows = ROWS.repeat(3) if order == "tile" else ROWS.repeat_interleave(3)
    got = added(host, pool, lambda: host.augment(host.images[ROWS]).square().sum())
    torch.testing.assert_close(got, of_cmi(pool, batch, rows, lambda x: host.augment(x[ROWS])), rtol=1e-9, atol=1e-12)


def test_an_augmentation_that_shuffles(pool: ddplug.ProxyPool, batch: Batch) -> None:
    class Shuffles(Host):
        def augment(self, images: Tensor) -> Tensor:
            self.rows = torch.randperm(12, generator=self.generator)
            return images[self.rows] * 1.5

    host = Shuffles(batch)
    host.generator = torch.Generator()  # type: ignore[attr-defined]
    with attach(host, pool):
        for _ in range(3):
            host.images.grad = None
            host.augment(host.images).sum().backward()
            expected = 1.5 + of_cmi(pool, batch, host.rows, lambda x: x[host.rows] * 1.5)
            torch.testing.assert_close(host.images.grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("same", [True, False])
def test_a_mosaic_of_images(pool: ddplug.ProxyPool, batch: Batch, same: bool) -> None:
    """Views of several images have a label if these have one."""

    class Mosaic(Host):
        def augment(self, images: Tensor) -> Tensor:
            return images.unflatten(0, (-1, 2)).mean(1) * 1.5

    batch = batch[0], torch.tensor([0, 0, 2, 2, 1, 1, 2, 2, 0, 0, 1, 1])
    host = Mosaic(batch)
    rows = torch.arange(12).view(6, 2).flip(0).flatten() if same else torch.arange(12).roll(1)
    if not same:
        with pytest.raises(ddplug.errors.HostError, match="made of several images each"), attach(host, pool):
            host.augment(host.images[rows])
        return
    got = added(host, pool, lambda: host.augment(host.images[rows]).square().sum())
    expected = of_cmi(pool, batch, rows[::2], lambda x: host.augment(x[rows]))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_decoders(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """One that works row by row is crossed; one that mixes rows is not, and labels are asked for."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(6, 48, generator=generator, dtype=torch.float64)

    class Decoded(Host):
        def decode(self, rows: Tensor) -> Tensor:
            return (self.images[rows].flatten(1)[:, :6] @ basis).view(-1, 3, 4, 4)

        def generate(self, rows: Tensor) -> Tensor:
            made = self.decode(torch.arange(12))
            return (torch.eye(12, dtype=torch.float64) @ made.flatten(1)).view_as(made)[rows]

    host = Decoded(batch)
    got = added(host, pool, lambda: host.augment(host.decode(ROWS)).sum())
    made = lambda x: (x[ROWS].flatten(1)[:, :6] @ basis).view(-1, 3, 4, 4) * 1.5  # noqa: E731
    torch.testing.assert_close(got, of_cmi(pool, batch, ROWS, made), rtol=1e-9, atol=1e-12)
    got = added(host, pool, lambda: host.augment(host.generate(ROWS)).sum(), labels=lambda views: batch[1][ROWS])
    assert got.any()


def test_a_compiled_selection_asks_for_labels(pool: ddplug.ProxyPool, batch: Batch) -> None:
    host = Host(batch)
    chosen = torch.compile(lambda images: images[ROWS[:6]] * 1.0, backend="aot_eager")
    with pytest.raises(ddplug.errors.HostError, match=r"CompiledFunctionBackward.*Pass labels="), attach(host, pool):
        host.augment(chosen(host.images))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_step(pool: ddplug.ProxyPool, batch: Batch, reentrant: bool) -> None:
    host, calls = Host(batch), []

    def step(images: Tensor) -> Tensor:
        calls.append(1)
        return host.augment(images[ROWS]).square().sum()

    with attach(host, pool) as handle:
        if reentrant:
            loss = checkpoint(step, host.images, use_reentrant=True)
            with pytest.raises(ddplug.errors.HostError, match="checkpointed function.*Pass labels="):
                loss.backward()
        else:
            with pytest.raises(ddplug.errors.HostError, match="IndexBackward0.*Pass labels="):
                checkpoint(step, host.images, use_reentrant=False)
            assert len(calls) == 1
        handle.regularizer.watch.expect("never acts")


class Ops(TorchDispatchMode):
    """The names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("select", [lambda x: x[4:], lambda x: x[ROWS], lambda x: torch.cat([x[MASK], x[ROWS]]) * 2.0])
def test_a_device_is_not_waited_for(batch: Batch, select: Callable[[Tensor], Tensor]) -> None:
    """After the first call of a kind."""
    host = Host(batch)
    reader = LabelReader(Images(Held(host)), None, Held(host), "Host.augment")
    for _ in range(2):
        images = select(host.images)
        views = host.augment(images)
        with Ops() as ops:
            assert reader.read(images, views, None) is not None
    assert "arange" in ops.seen
    assert not {"_local_scalar_dense", "is_nonzero", "equal", "nonzero"} & set(ops.seen)


def test_labels_are_copied_when_the_call_is_made(pool: ddplug.ProxyPool, batch: Batch) -> None:
    host = Host(batch)

    def step() -> Tensor:
        host.labels = batch[1].clone()
        loss = host.augment(host.images).sum()
        host.labels.zero_()
        return loss

    torch.testing.assert_close(
        added(host, pool, step), of_cmi(pool, batch, torch.arange(12), lambda x: x * 1.5), rtol=1e-9, atol=1e-12
    )
