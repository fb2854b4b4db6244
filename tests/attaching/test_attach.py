"""Attaching to trainers that are not ours, and leaving no trace."""

from __future__ import annotations

import copy
import pickle
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from conftest import tiny_network
from torch import Tensor, nn

import ddplug
import ddplug.adapters as adapters
from attaching.loop import LAM, Batch, Trainer, attach, check, expected_gradient
from ddplug.attaching import registry
from ddplug.proxies.pool import PoolInfo

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize(
    "where",
    [
        {},
        {"at": "augment"},
        {"at": "augment", "labels": "labels"},
        {"at": "loss"},
        {"at": "loss", "images": "synthetic", "labels": "labels"},
    ],
)
def test_a_method(pool: ddplug.ProxyPool, batch: Batch, where: dict[str, Any]) -> None:
    check(Trainer(*batch), pool, batch, **where)


def test_a_function_on_the_instance_is_put_back(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Trainer(*batch)
    trainer.augment = lambda images, labels=None: images * 1.5  # type: ignore[method-assign]
    check(trainer, pool, batch)


def test_a_submodule_keeps_its_place_and_its_type(pool: ddplug.ProxyPool, batch: Batch) -> None:
    class Augment(nn.Module):
        def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
            return images * 1.5

    trainer = Trainer(*batch)
    augment = trainer.augment = Augment()  # type: ignore[method-assign, assignment]
    state = {key: dict(value) if isinstance(value, dict) else value for key, value in vars(augment).items()}
    check(trainer, pool, batch)
    assert trainer.augment is augment
    assert vars(augment) == state

    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.augment = Augment()

    host = Host()
    for _ in range(2):  # after detaching it can be attached to again
        with attach(host, pool) as handle:
            leaf = batch[0].clone().requires_grad_()
            host.augment(leaf, labels=batch[1]).sum().backward()
        assert len(handle.history) == handle.regularizer.rounds == 1


def test_a_loss_that_is_a_module(pool: ddplug.ProxyPool, batch: Batch) -> None:
    class Matching(nn.Module):
        def forward(self, real: Tensor, synthetic: Tensor, labels: Tensor) -> Tensor:
            return (real.mean() - synthetic).square().sum()

    trainer = Trainer(*batch)
    trainer.loss = Matching()  # type: ignore[method-assign, assignment]
    check(trainer, pool, batch, at="loss")


def test_a_python_module(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """As an upstream script is: functions in its globals, which its other functions look up at each call."""
    script = types.ModuleType("script")
    exec(  # the source of a script, run as import would
        "def augment(images, labels):\n    raise AssertionError('real images are augmented by it elsewhere')\n"
        "def DiffAugment(x, labels=None):\n    return x * 1.5\n"
        "def main(x, y):\n    return DiffAugment(x, labels=y).sum()\n",
        vars(script),
    )
    original = script.DiffAugment
    leaf = batch[0].clone().requires_grad_()
    with attach(script, pool) as handle:
        script.main(leaf, batch[1]).backward()
    assert len(handle.history) == 1
    assert script.DiffAugment is original


@pytest.mark.parametrize(("side", "shape"), [(4, (3, 4, 4)), (6, None)], ids=["known_shape", "unknown_shape"])
def test_a_script_whose_function_makes_the_images(side: int, shape: tuple[int, int, int] | None) -> None:
    """The steps of its images are found, those of its network are not; CMI is of the images, as there are no views."""
    script = types.ModuleType("script")
    exec(  # its optimizers are variables of a function
        "import torch\n"
        "def main(images, network, steps):\n"
        "    for tensors in (network.parameters(), [images]):\n"
        "        optimizer = torch.optim.SGD(tensors, lr=0.5)\n"
        "        for _ in range(steps):\n"
        "            optimizer.zero_grad()\n"
        "            network(torch.roll(images, 1, 3)).square().sum().backward()\n"
        "            optimizer.step()\n",
        vars(script),
    )
    generator = torch.Generator().manual_seed(3)
    begun = torch.randn(6, 3, side, side, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    proxy, network = tiny_network(7, size=side), nn.Conv2d(3, 2, 3).double()
    pool = ddplug.ProxyPool.from_modules([proxy], info=PoolInfo(shape=shape))

    def ended(leaf: Tensor, own: nn.Module, weight: float) -> Tensor:
        """Written down without a layer: the network is stepped once, then the images."""
        stepped = [
            each - 0.5 * torch.autograd.grad(own(leaf.roll(1, 3)).square().sum(), each)[0] for each in own.parameters()
        ]
        logs = proxy(leaf).log_softmax(1)
        around = torch.stack([logs[labels == label].exp().mean(0) for label in labels]).log()
        cmi = (logs.exp() * (logs - around)).sum() / len(labels)
        loss = torch.conv2d(leaf.roll(1, 3), *stepped).square().sum()
        return (leaf - 0.5 * torch.autograd.grad(loss + weight * cmi, leaf)[0]).detach()

    expected = ended(begun.clone().requires_grad_(), copy.deepcopy(network), LAM)
    leaf = begun.clone().requires_grad_()
    with attach(script, pool, labels=labels, augment="none", representation="logit") as handle:
        script.main(leaf, network, 1)
    torch.testing.assert_close(leaf.detach(), expected, rtol=1e-9, atol=1e-11)
    assert len(handle.history) == 1


def test_a_dotted_name(pool: ddplug.ProxyPool, batch: Batch) -> None:
    owner = types.SimpleNamespace(inner=Trainer(*batch))
    with attach(owner, pool, at="inner.augment"):
        got = owner.inner.gradient()
    torch.testing.assert_close(got, expected_gradient(pool, batch), rtol=1e-12, atol=0)


def test_views_first_in_a_tuple(pool: ddplug.ProxyPool, batch: Batch) -> None:
    class Out(NamedTuple):
        views: Tensor
        params: str

    leaf = batch[0].clone().requires_grad_()
    for made in (lambda x: Out(x * 1.5, "kept"), lambda x: (x * 1.5, "kept"), lambda x: [x * 1.5, "kept"]):
        owner = types.SimpleNamespace(augment=made, labels=batch[1])
        with attach(owner, pool) as handle:
            result = owner.augment(leaf)
            result[0].sum().backward()
        assert type(result) is type(made(leaf))
        assert result[1] == "kept"
        assert len(handle.history) == 1


def test_weight_zero_leaves_every_step_bit_identical(pool: ddplug.ProxyPool, batch: Batch) -> None:
    for where in ({"at": "augment"}, {"at": "loss"}):
        trainer, plain = Trainer(*batch), Trainer(*batch)
        with ddplug.attach(trainer, 0, proxies=pool, announce=lambda line: None, **where):
            for _ in range(20):
                trainer.gradient(), plain.gradient()
        assert torch.equal(trainer.images, plain.images)
    trainer, plain = Trainer(*batch), Trainer(*batch)
    with ddplug.attach(trainer.optimizer, 0, proxies=pool, labels=batch[1], announce=lambda line: None):
        for _ in range(20):
            trainer.gradient(), plain.gradient()
    assert torch.equal(trainer.images, plain.images)


def test_the_loss_sees_the_tensor_that_the_regulariser_saw(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Trainer(*batch)
    passed: list[int] = []
    with attach(trainer, pool) as handle:
        inner = handle.regularizer.pool.check
        handle.regularizer.pool.check = lambda views, space: (passed.append(views.data_ptr()), inner(views, space))[1]  # type: ignore[method-assign, func-returns-value]
        trainer.gradient()
    assert [view.data_ptr() for view in trainer.seen] == passed


def test_state_continues_in_another_handle(pool: ddplug.ProxyPool, batch: Batch) -> None:
    first, second = Trainer(*batch), Trainer(*batch)
    options: dict[str, Any] = {"weighting": ddplug.Relative(2)}
    with attach(first, pool, **options) as handle:
        first.gradient(), first.gradient()
        state = handle.state_dict()
    with attach(second, pool, **options) as handle:
        handle.load_state_dict(state)
        assert handle.lam is not None
        second.gradient()
        assert len(handle.history) == 3


def test_it_says_where_it_was_put(pool: ddplug.ProxyPool, batch: Batch) -> None:
    told: list[str] = []
    handle = attach(Trainer(*batch), pool, announce=told.append)
    assert "Trainer.augment" in told[0]
    assert "Trainer.augment" in repr(handle)


def test_a_copy_of_an_attached_trainer_is_its_own(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """As people keep the best so far: the copy has nothing of the regulariser, and nothing of the original."""
    trainer = Trainer(*batch)
    with attach(trainer, pool) as handle:
        trainer.gradient()
        trainer.seen.clear()
        twin = copy.deepcopy(trainer)
        assert twin.augment.__self__ is twin  # type: ignore[attr-defined]
        rounds = handle.regularizer.rounds
        twin.gradient()
        assert handle.regularizer.rounds == rounds
        with attach(twin, pool) as other:
            twin.gradient()
        assert other.regularizer.rounds == 1


class Doubling(nn.Module):
    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return images * 1.5


def test_a_copy_of_an_attached_module_is_its_own(pool: ddplug.ProxyPool, batch: Batch) -> None:
    module = Doubling()
    trainer = types.SimpleNamespace(augment=module, labels=batch[1])
    leaf = batch[0].clone().requires_grad_()
    with attach(trainer, pool, labels=batch[1]) as handle:
        twin, stored = copy.deepcopy(module), pickle.dumps(module)
        trainer.augment(leaf).sum().backward()
        copy.copy(module)(leaf).sum().backward()  # a shallow copy has the very same hooks
        for other in (twin, pickle.loads(stored)):
            other(leaf).sum().backward()
            with attach(types.SimpleNamespace(augment=other), pool, labels=batch[1]) as another:
                other(leaf).sum().backward()
            assert another.regularizer.rounds == 1
        assert handle.regularizer.rounds == 1


class Slotted:
    __slots__ = ("__weakref__", "augment", "labels")


class Settable:
    labels: Tensor

    @property
    def augment(self) -> Callable[[Tensor], Tensor]:
        return self._augment

    @augment.setter
    def augment(self, function: Callable[[Tensor], Tensor]) -> None:
        self._augment = function


@pytest.mark.parametrize("kind", [Slotted, Settable])
def test_slots_and_properties_are_restored(pool: ddplug.ProxyPool, batch: Batch, kind: type[Any]) -> None:
    trainer = kind()
    trainer.labels = batch[1]
    own = trainer.augment = lambda images: images * 1.5
    for _ in range(2):
        with attach(trainer, pool) as handle:
            trainer.augment(batch[0].clone().requires_grad_()).sum().backward()
        assert len(handle.history) == 1
        assert trainer.augment is own


def test_weight_zero_asks_for_nothing_and_touches_nothing(batch: Batch) -> None:
    """Not for proxies, not for labels at the calls, not for a result of some kind, and not about closures."""
    trainer = Trainer(*batch)
    before = dict(vars(trainer))
    trainer.optimizer.step(lambda: torch.zeros(()))
    for host, options in ((trainer, {}), (trainer.optimizer, {"labels": batch[1]})):
        with ddplug.attach(host, 0, announce=lambda line: None, **options):  # type: ignore[arg-type]
            assert vars(trainer) == before
            assert torch.equal(trainer.augment(trainer.images), batch[0] * 1.5)
            trainer.optimizer.step(lambda: torch.zeros(()))


def test_an_adapter_is_asked_first(pool: ddplug.ProxyPool, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ADAPTERS", {})
    undone: list[str] = []

    @adapters.register("mine")
    class Mine:
        def recognises(self, host: object) -> bool:
            return isinstance(host, Trainer)

        def install(self, host: Any, regularizer: ddplug.Regularizer) -> Callable[[], None]:
            host.hook = regularizer
            return lambda: undone.append("mine")

    trainer = Trainer(*batch)
    with attach(trainer, pool) as handle:
        assert handle.where == "host mine"
        trainer.hook(trainer.images, trainer.labels).sum().backward()  # type: ignore[attr-defined]
    assert undone == ["mine"]
    assert "mine" in adapters.names()
    with pytest.raises(ddplug.errors.HostError, match="already is an adapter named 'mine'"):
        adapters.register("mine")(type("Other", (Mine,), {}))


def test_weight_zero_on_a_trainer_that_holds_its_data(batch: Batch) -> None:
    images, labels = batch
    trainer = Trainer(*batch)
    trainer.data = ddplug.datasets.ImageData(  # type: ignore[attr-defined]
        "ours", ("a", "b", "c"), ddplug.InputSpace.unit(3), images, labels, images, labels
    )
    for options in ({}, {"proxies": "nowhere"}):
        with ddplug.attach(trainer, 0, announce=lambda line: None, **options):  # type: ignore[arg-type]
            assert torch.equal(trainer.gradient(), Trainer(*batch).gradient())
        with torch.no_grad():
            trainer.images.copy_(batch[0])


@pytest.mark.parametrize("form", ["dataset", "pair", "splits", "name"])
def test_real_data_in_any_form(network: Callable[..., nn.Module], batch: Batch, form: str) -> None:
    images, labels = batch
    tensors = torch.utils.data.TensorDataset(images, labels)
    data: Any = {"dataset": tensors, "pair": batch, "splits": (tensors, tensors), "name": "digits"}[form]
    space = ddplug.InputSpace.normalized((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    info = PoolInfo(dataset="ours", space=space)
    pool = ddplug.ProxyPool.from_modules([network(7)], info=info)
    if form == "name":
        with pytest.raises(ddplug.errors.ProxyError, match="trained on ours, not on digits"):
            attach(Trainer(*batch), pool, data=data)
        return
    check(Trainer(*batch), pool, batch, data=data, input_space=space)
    with pytest.raises(ddplug.errors.DataError, match="space"):
        attach(Trainer(*batch), pool, data=data)


def test_a_round_by_the_handle(pool: ddplug.ProxyPool, batch: Batch) -> None:
    labels = batch[1]
    trainer = Trainer(*batch)
    with attach(trainer, pool) as handle:
        with handle.round():
            for part in (slice(0, 6), slice(6, 12)):
                trainer.augment(trainer.images[part], labels=labels[part]).sum().backward()
        trainer.optimizer.step()
        assert [r.images for r in handle.history] == [12]


def test_a_fresh_handle_takes_a_state_of_an_unrolled_host(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """The inner steps' factor is no part of the share."""
    first, second = (
        ddplug.Regularizer(pool, 0.5, weighting=ddplug.Relative(1), announce=lambda line: None) for _ in range(2)
    )
    first.stands_for(30)
    leaf = batch[0].clone().requires_grad_()
    first(leaf, batch[1]).square().sum().backward()
    second.load_state_dict(first.state_dict())
    assert second.lam == first.lam
    assert second.lam == pytest.approx(30 * _lam(pool, batch), rel=1e-12)


def _lam(pool: ddplug.ProxyPool, batch: Batch) -> float:
    plain = ddplug.Regularizer(pool, 0.5, weighting=ddplug.Relative(1), announce=lambda line: None)
    plain(batch[0].clone().requires_grad_(), batch[1]).square().sum().backward()
    assert plain.lam is not None
    return plain.lam


def test_recording_at_weight_zero_in_a_host(pool: ddplug.ProxyPool, batch: Batch) -> None:
    from ddplug.hosting.layer import Layer

    regularizer = ddplug.Regularizer(pool, 0, record=True)
    leaf = batch[0].clone().requires_grad_()
    Layer(regularizer)(leaf, batch[1]).sum().backward()
    assert len(regularizer.history) == 1
    assert torch.equal(leaf.grad, torch.ones_like(leaf))  # type: ignore[arg-type]
