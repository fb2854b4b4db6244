"""Attaching to trainers that are not ours, and leaving no trace."""

from __future__ import annotations

import copy
import pickle
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import ddplug
import ddplug.adapters as adapters
from ddplug.attaching import registry

pytestmark = pytest.mark.numerical

Batch = tuple[Tensor, Tensor]
LAM = 0.7


def attach(trainer: object, pool: ddplug.ProxyPool, **options: Any) -> ddplug.Handle:
    settings = {"weighting": "absolute", "announce": lambda line: None, **options}
    return ddplug.attach(trainer, LAM, proxies=pool, **settings)


class Trainer:
    """A loop as people write it: an augmentation, a loss, and an optimizer on the images."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images.clone().requires_grad_()
        self.labels = labels
        self.optimizer = torch.optim.SGD([self.images], lr=0.1)
        self.seen: list[Tensor] = []

    def augment(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return images * 1.5

    def loss(self, real: Tensor, synthetic: Tensor, labels: Tensor) -> Tensor:
        self.seen.append(synthetic)
        return (real.mean() - synthetic).square().sum()

    def gradient(self) -> Tensor:
        """The gradient that one step goes by."""
        self.optimizer.zero_grad()
        views = self.augment(self.images, labels=self.labels)
        real = self.augment(torch.ones(4, 3, 4, 4, dtype=torch.float64))
        self.loss(real, views, self.labels).backward()
        self.optimizer.step()
        assert self.images.grad is not None
        return self.images.grad.clone()


def expected_gradient(pool: ddplug.ProxyPool, batch: Batch, scale: float = 1.5) -> Tensor:
    trainer = Trainer(*batch)
    leaf = batch[0].clone().requires_grad_()
    (of_cmi,) = torch.autograd.grad(ddplug.CMI(pool)(leaf * scale, batch[1]), leaf)
    return trainer.gradient() + LAM * of_cmi


def check(trainer: Any, pool: ddplug.ProxyPool, batch: Batch, scale: float = 1.5, **options: Any) -> None:
    """Attached, the step goes by L + lambda * CMI; detached, everything is as if nothing had been."""
    attributes = dict(vars(trainer))
    with attach(trainer, pool, **options) as handle:
        got = trainer.gradient()
        torch.testing.assert_close(got, expected_gradient(pool, batch, scale), rtol=1e-12, atol=0)
        assert len(handle.history) == 1
        assert handle.attached
    assert not handle.attached
    assert vars(trainer).keys() == attributes.keys()
    assert all(vars(trainer)[key] is value for key, value in attributes.items())
    with torch.no_grad():
        trainer.images.copy_(batch[0])
    assert torch.equal(trainer.gradient(), Trainer(*batch).gradient())


@pytest.mark.parametrize(
    "where",
    [
        {},
        {"at": "augment"},
        {"at": "augment", "labels": "labels"},
        {"at": "loss"},
        {"at": "loss", "images": "synthetic", "labels": "labels"},
        {"at": "loss", "on": "argument"},
    ],
)
def test_a_method(pool: ddplug.ProxyPool, batch: Batch, where: dict[str, Any]) -> None:
    check(Trainer(*batch), pool, batch, **where)


def test_labels_as_a_tensor_a_function_or_an_attribute(pool: ddplug.ProxyPool, batch: Batch) -> None:
    class Bare(Trainer):
        def augment(self, images: Tensor, **_: object) -> Tensor:  # type: ignore[override]
            return images * 1.5

    check(Bare(*batch), pool, batch, at="augment")  # self.labels is found
    for labels in (batch[1], lambda views: batch[1][: len(views)], "secret"):
        trainer = Bare(*batch)
        trainer.secret = batch[1]  # type: ignore[attr-defined]
        check(trainer, pool, batch, at="augment", labels=labels)


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


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer(pool: ddplug.ProxyPool, batch: Batch, kind: Callable[..., torch.optim.Optimizer]) -> None:
    trainer = Trainer(*batch)
    trainer.optimizer = kind([trainer.images], lr=0.1)
    hooks = dict(trainer.optimizer._optimizer_step_pre_hooks)
    attributes = set(vars(trainer.optimizer))
    with attach(trainer.optimizer, pool, labels=batch[1]) as handle:
        got = trainer.gradient()
    torch.testing.assert_close(got, expected_gradient(pool, batch, scale=1.0), rtol=1e-12, atol=0)
    assert len(handle.history) == 1
    assert dict(trainer.optimizer._optimizer_step_pre_hooks) == hooks
    assert set(vars(trainer.optimizer)) == attributes


def test_an_optimizer_stepped_class_by_class(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """As IDC does: images without a gradient in this step are not in the round."""
    images, labels = batch
    leaf = images.clone().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=0.1)
    rows = labels == 1
    with attach(optimizer, pool, labels=labels) as handle:
        leaf[rows].sum().backward()
        optimizer.step()
    own = images[rows].clone().requires_grad_()
    (of_cmi,) = torch.autograd.grad(ddplug.CMI(pool)(own, labels[rows]), own)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad[rows], 1 + LAM * of_cmi, rtol=1e-12, atol=0)
    assert not leaf.grad[~rows].any()
    assert handle.history[0].images == int(rows.sum())


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
    options: dict[str, Any] = {"weighting": "relative", "calibrate": 2}
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


# Copies, and owners of other kinds


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


def test_a_maximising_optimizer_still_lowers_cmi(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    leaf = images.clone().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=1.0, maximize=True)
    cmi = ddplug.CMI(pool)
    with attach(optimizer, pool, labels=labels):
        for _ in range(20):
            leaf.grad = torch.zeros_like(leaf)
            optimizer.step()
    assert cmi(leaf, labels) < 0.9 * cmi(images, labels)


def test_an_optimizer_that_unscales_by_itself(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """As fused ones do under a GradScaler, which leaves the scale on them."""
    moved = []
    for scale in (None, torch.tensor(65536.0)):
        leaf = batch[0].clone().requires_grad_()
        optimizer = torch.optim.SGD([leaf], lr=1.0, fused=True)
        if scale is not None:
            optimizer.grad_scale, optimizer.found_inf = scale, torch.tensor(0.0)  # type: ignore[attr-defined]
        with attach(optimizer, pool, labels=batch[1], weighting="relative", calibrate=1) as handle:
            for _ in range(2):
                leaf.grad = torch.ones_like(leaf) * (1.0 if scale is None else scale)
                with torch.no_grad():
                    leaf.copy_(batch[0])
                optimizer.step()
        moved.append((handle.lam, leaf.detach() - batch[0]))
    assert moved[1][0] == pytest.approx(moved[0][0], rel=1e-6)
    torch.testing.assert_close(moved[1][1], moved[0][1], rtol=1e-6, atol=0)


# The data that the trainer holds


def test_proxies_of_other_data_are_refused_and_the_space_is_the_datas(
    network: Callable[..., nn.Module], batch: Batch
) -> None:
    images, labels = batch
    space = ddplug.InputSpace.normalized((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    data = ddplug.datasets.ImageData("ours", ("a", "b", "c"), space, images, labels, images, labels)
    trainer = Trainer(*batch)
    trainer.data = data  # type: ignore[attr-defined]

    def pool(**info: Any) -> ddplug.ProxyPool:
        return ddplug.ProxyPool.from_modules([network(7)], info=ddplug.PoolInfo(**info))

    with attach(trainer, pool(dataset="ours", fingerprint=data.fingerprint(), space=space)) as handle:
        assert handle.regularizer.input_space == space
        trainer.gradient()
    for info, says in (
        ({"dataset": "theirs"}, "trained on theirs, not on ours"),
        ({"dataset": "ours", "fingerprint": "0123"}, "another edition of ours"),
    ):
        with pytest.raises(ddplug.PoolError, match=says):
            attach(trainer, pool(**info))
        with pytest.raises(ddplug.PoolError, match=says):
            attach(Trainer(*batch), pool(**info), data=data)
    assert "augment" not in vars(trainer)


# Refusals


def test_arguments_that_mean_nothing(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Trainer(*batch)
    with pytest.raises(ddplug.AttachError, match="unknown option wieght; known are weighting"):
        ddplug.attach(trainer, proxies=pool, wieght=2.0)
    with pytest.raises(ddplug.AttachError, match="unknown on='outptu'"):
        attach(trainer, pool, at="augment", on="outptu")
    with pytest.raises(ddplug.AttachError, match="got the class Trainer, expected an instance"):
        attach(Trainer, pool)

    def fails(line: str) -> None:
        raise OSError("no such device")

    with pytest.raises(OSError, match="no such device"):
        attach(trainer, pool, announce=fails)
    assert "augment" not in vars(trainer)


def test_labels_as_a_list_or_an_array(pool: ddplug.ProxyPool, batch: Batch) -> None:
    for labels in (batch[1].tolist(), batch[1].numpy()):
        check(Trainer(*batch), pool, batch, at="augment", labels=labels)


def test_attaching_twice(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Trainer(*batch)
    with attach(trainer, pool) as handle:
        with pytest.raises(ddplug.AttachError, match="already attached at Trainer.augment.*detach"):
            attach(trainer, pool, at="augment")
        trainer.gradient()
    handle.detach()
    check(Trainer(*batch), pool, batch)
    with (
        attach(trainer.optimizer, pool, labels=batch[1]),
        pytest.raises(ddplug.AttachError, match="already attached to this optimizer"),
    ):
        trainer.gradient()
        attach(trainer.optimizer, pool, labels=batch[1])


def test_nothing_recognised(pool: ddplug.ProxyPool) -> None:
    class Strange:
        def munge(self, stuff: Tensor) -> Tensor:
            return stuff

    with pytest.raises(ddplug.AttachError, match=r"(?s)in Strange.*augment.*loss.*optimizer.*munge.*at='NAME'"):
        attach(Strange(), pool)
    with pytest.raises(ddplug.AttachError, match=r"no method or function 'augmnet'; it has: munge"):
        attach(Strange(), pool, at="augmnet")
    with pytest.raises(ddplug.AttachError, match=r"no labels for 'munge\(stuff: .*looked for labels_syn"):
        attach(Strange(), pool, at="munge")
    with pytest.raises(ddplug.AttachError, match=r"has not an image argument"):
        attach(Strange(), pool, at="munge", on="argument", labels=torch.arange(3))
    with pytest.raises(ddplug.AttachError, match=r"has not an argument 'pictures'"):
        attach(Strange(), pool, at="munge", images="pictures", labels=torch.arange(3))
    with pytest.raises(ddplug.AttachError, match="got the class Strange, expected an instance"):
        attach(Strange, pool, at="munge", labels=torch.arange(3))


def test_labels_missing_at_the_call(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Trainer(*batch)
    with (
        pytest.raises(ddplug.AttachError, match="called on synthetic images without 'labels'"),
        attach(trainer, pool, at="augment"),
    ):
        trainer.augment(trainer.images)


def test_a_trainer_that_takes_no_attributes(pool: ddplug.ProxyPool) -> None:
    class Slots:
        __slots__ = ("labels",)

        def augment(self, images: Tensor, labels: Tensor) -> Tensor:
            return images

    with pytest.raises(ddplug.AttachError, match="cannot be replaced.*by hand"):
        attach(Slots(), pool)


def test_optimizers_that_do_not_hold_images(pool: ddplug.ProxyPool, batch: Batch) -> None:
    leaf = batch[0].clone().requires_grad_()
    with pytest.raises(ddplug.AttachError, match=r"holds 0 tensors .*\[\(5, 4\), \(5,\)\]"):
        attach(torch.optim.SGD(nn.Linear(4, 5).parameters(), lr=1), pool, labels=batch[1])
    with pytest.raises(ddplug.AttachError, match=r"labels of its 12 images"):
        attach(torch.optim.SGD([leaf], lr=1), pool)
    optimizer = torch.optim.SGD([leaf], lr=1)
    with (
        pytest.warns(ddplug.DDPlugWarning, match="never came into action"),
        attach(optimizer, pool, labels=batch[1][:5]),
    ):
        leaf.sum().backward()
        with pytest.raises(ddplug.InputError, match=r"labels of shape \(5,\) for 12 images"):
            optimizer.step()


def test_no_proxies_and_nothing_to_train_them_on(pool: ddplug.ProxyPool, batch: Batch) -> None:
    with pytest.raises(ddplug.AttachError, match="no proxies given.*ddplug pretrain"):
        ddplug.attach(Trainer(*batch))
    with pytest.raises(ddplug.PoolError, match="there is no pool at 'nowhere'"):
        ddplug.attach(Trainer(*batch), proxies="nowhere")


def test_an_error_leaves_the_trainer_as_it_was(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Trainer(*batch)
    before = dict(vars(trainer))
    for options in ({"representation": "none"}, {"weight": -1.0}, {"at": "nothing"}):
        weight = options.pop("weight", LAM)  # type: ignore[call-overload]
        with pytest.raises(ddplug.DDPlugError):
            ddplug.attach(trainer, weight, proxies=pool, **options)  # type: ignore[arg-type]
    assert vars(trainer) == before


# Never silent


def test_never_in_action_is_said(pool: ddplug.ProxyPool, batch: Batch) -> None:
    with (
        pytest.warns(ddplug.DDPlugWarning, match=r"Trainer.augment never came into action"),
        attach(Trainer(*batch), pool),
    ):
        pass


def test_the_hosts_own_exception_comes_through(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Trainer(*batch)
    with pytest.raises(ZeroDivisionError), attach(trainer, pool):
        raise ZeroDivisionError
    assert "augment" not in vars(trainer)


def test_somebody_else_replaced_it_meanwhile(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Trainer(*batch)
    handle = attach(trainer, pool)
    trainer.gradient()
    ours = trainer.augment
    theirs = lambda images, labels=None: 2 * ours(images, labels)  # noqa: E731
    trainer.augment = theirs  # type: ignore[method-assign]
    with pytest.warns(ddplug.DDPlugWarning, match="replaced by somebody else"):
        handle.detach()
    assert trainer.augment is theirs
    rounds = handle.regularizer.rounds
    assert torch.equal(trainer.augment(trainer.images, trainer.labels), trainer.images * 3.0)
    trainer.gradient()
    assert handle.regularizer.rounds == rounds


def test_kornia_is_gone_after_detach_even_then(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Trainer(*batch)
    handle = attach(trainer, pool, augment="kornia")
    trainer.gradient()
    ours = trainer.augment
    trainer.augment = lambda images, labels=None: ours(images, labels)  # type: ignore[method-assign]
    with pytest.warns(ddplug.DDPlugWarning, match="replaced by somebody else"):
        handle.detach()
    assert torch.equal(trainer.augment(batch[0]), batch[0] * 1.5)


# Adapters


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
    with pytest.raises(ddplug.AttachError, match="already is an adapter named 'mine'"):
        adapters.register("mine")(type("Other", (Mine,), {}))


# Which views


def test_clean_views(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """The layer before the augmentation: CMI of the images themselves."""
    check(Trainer(*batch), pool, batch, scale=1.0, views="clean")

    class Augment(nn.Module):
        def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
            return images * 1.5

    trainer = Trainer(*batch)
    trainer.augment = Augment()  # type: ignore[method-assign, assignment]
    check(trainer, pool, batch, scale=1.0, views="clean")


class Siamese(Trainer):
    """Real before synthetic, as DM does, with an augmentation that can be looked at."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        super().__init__(images, labels)
        self.real: list[Tensor] = []

    def loss(self, real: Tensor, synthetic: Tensor, labels: Tensor) -> Tensor:
        self.real.append(real)
        return super().loss(real, synthetic, labels)

    def step(self) -> Tensor:
        real = self.augment(self.images.detach())
        self.images.grad = None
        self.loss(real, self.augment(self.images, self.labels), self.labels).backward()
        assert self.images.grad is not None
        return self.images.grad.clone()


class SiameseModule(Siamese):
    def __init__(self, images: Tensor, labels: Tensor) -> None:
        super().__init__(images, labels)

        class Augment(nn.Module):
            def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
                raise AssertionError("the host's own augmentation was called")

        self.augment = Augment()  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize("kind", [Siamese, SiameseModule])
@pytest.mark.parametrize("views", ["host", "clean"])
def test_kornias_views_in_the_place_of_the_hosts(
    pool: ddplug.ProxyPool, batch: Batch, kind: type[Siamese], views: Any
) -> None:
    """Real batch, synthetic batch and regulariser share one draw, a new one each step."""
    from ddplug.augment.dsa import DSA

    trainer = kind(*batch)
    before = {key: value for key, value in vars(trainer).items() if key != "images"}
    forward = vars(trainer.augment).get("forward") if isinstance(trainer.augment, nn.Module) else None
    dsa, again = DSA(seed=4), DSA(seed=4)
    draws = []
    with attach(trainer, pool, augment=dsa, views=views) as handle:
        for _ in range(6):
            got = trainer.step()
            params = again.draw(trainer.images)
            draws.append(str(params))
            leaf = batch[0].clone().requires_grad_()
            seen = again(leaf, params=params)
            assert torch.equal(trainer.real[-1], seen)
            assert torch.equal(trainer.seen[-1], seen)
            loss = (seen.detach().mean() - seen).square().sum()
            (expected,) = torch.autograd.grad(
                loss + LAM * ddplug.CMI(pool)(leaf if views == "clean" else seen, batch[1]), leaf
            )
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-14)
        assert len(handle.history) == 6
    assert len(set(draws)) > 1
    assert {key: value for key, value in vars(trainer).items() if key in before} == before
    if isinstance(trainer.augment, nn.Module):
        assert vars(trainer.augment).get("forward") is forward is None


def test_kornia_by_name(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Siamese(*batch)
    with attach(trainer, pool, augment="kornia", seed=3) as handle:
        trainer.step()
        assert torch.equal(trainer.real[-1], trainer.seen[-1])
        with pytest.raises(ddplug.AttachError, match="already attached"):
            attach(trainer, pool, at="augment")
    assert len(handle.history) == 1


def test_views_that_cannot_be_had(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Trainer(*batch)
    for options, says in (
        ({"at": "loss", "views": "clean"}, "sees no clean images"),
        ({"at": "loss", "augment": "kornia"}, "no augmentation to replace"),
        ({"views": "all"}, "unknown views 'all'"),
        ({"augment": "albumentations"}, "unknown augment 'albumentations', expected 'kornia'"),
    ):
        with pytest.raises(ddplug.AttachError, match=says):
            attach(trainer, pool, **options)  # type: ignore[arg-type]
    with pytest.raises(ddplug.AttachError, match="an optimizer has no augmentation"):
        attach(trainer.optimizer, pool, labels=batch[1], augment="kornia")


def test_views_per_image_at_one_image_per_class(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """CMI means something there, and following its gradient lowers it on views that were not descended on."""
    from ddplug.augment.dsa import DSA

    labels = torch.arange(3)
    trainer = Trainer(batch[0][:3], labels)
    cmi, judge = ddplug.CMI(pool), DSA(seed=99)
    params = [judge.draw(trainer.images) for _ in range(64)]

    def measured() -> float:
        seen = torch.cat([judge(trainer.images.detach(), params=p) for p in params])
        return cmi(seen, labels.repeat(64)).item()

    before = measured()
    leaf = trainer.images
    with attach(trainer, pool, views="clean", views_per_image=4, seed=1) as handle:
        for _ in range(40):
            leaf.grad = None
            (trainer.augment(leaf, labels) * 0).sum().backward()
            assert leaf.grad is not None
            with torch.no_grad():
                leaf -= 2.0 * leaf.grad
    assert all(value > 0 for value in handle.history.cmi)
    assert handle.history[0].images == 12
    assert before > 0
    assert measured() < 0.8 * before


def test_views_per_image_is_cmi_of_those_views(pool: ddplug.ProxyPool, batch: Batch) -> None:
    from ddplug.augment.dsa import DSA

    images, labels = batch
    regularizer = ddplug.Regularizer(pool, LAM, weighting="absolute", views_per_image=3, view=DSA(seed=5))
    leaf = images.clone().requires_grad_()
    regularizer(leaf, labels).sum().backward()
    again, dsa = images.clone().requires_grad_(), DSA(seed=5)
    seen = torch.cat([dsa(again) for _ in range(3)])
    (again.sum() + LAM * ddplug.CMI(pool)(seen, labels.repeat(3))).backward()
    torch.testing.assert_close(leaf.grad, again.grad, rtol=1e-12, atol=0)
    with pytest.raises(ddplug.InputError, match="views_per_image must be a whole number >= 1"):
        ddplug.Regularizer(pool, 0.1, views_per_image=0)


# Wrapped trainers, scripts, data in any form


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
    info = ddplug.PoolInfo(dataset="ours", space=space)
    pool = ddplug.ProxyPool.from_modules([network(7)], info=info)
    if form == "name":
        with pytest.raises(ddplug.PoolError, match="trained on ours, not on digits"):
            attach(Trainer(*batch), pool, data=data)
        return
    check(Trainer(*batch), pool, batch, data=data, input_space=space)
    with pytest.raises(ddplug.DataError, match="space"):
        attach(Trainer(*batch), pool, data=data)


class Compilable(nn.Module):
    """A trainer as a module, whose augmentation is one, too."""

    class Augment(nn.Module):
        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            return images * 1.5

    def __init__(self, batch: Batch, compiled: bool) -> None:
        super().__init__()
        self.images = nn.Parameter(batch[0].clone())
        self.register_buffer("labels", batch[1])
        augment = self.Augment()
        self.augment = torch.compile(augment, backend="eager") if compiled else augment

    def forward(self) -> Tensor:
        return self.augment(self.images, self.labels).square().sum()  # type: ignore[operator,no-any-return]


@pytest.mark.parametrize("compiled", ["trainer", "augmentation"])
@pytest.mark.parametrize("options", [{}, {"views": "clean"}, {"augment": ddplug.augment.DSA("flip", flip=1.0)}])
def test_compiled_modules(pool: ddplug.ProxyPool, batch: Batch, compiled: str, options: dict[str, Any]) -> None:
    gradients = []
    for plain in (True, False):
        module = Compilable(batch, compiled == "augmentation" and not plain)
        step: Any = torch.compile(module, backend="eager") if compiled == "trainer" and not plain else module
        with attach(step, pool, **options) as handle:
            step().backward()
            assert len(handle.history) == 1
        gradients.append(module.images.grad)
        module.zero_grad()
        step().backward()
        torch.testing.assert_close(module.images.grad, 4.5 * batch[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=0)
    assert not torch.equal(gradients[0], 4.5 * batch[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["layer", "round", "optimizer"])
def test_a_step_compiled_as_a_whole(pool: ddplug.ProxyPool, batch: Batch, how: str) -> None:
    """With its backward pass in it, on whose way back a compiler would otherwise come upon our own code."""
    images, labels = batch
    half = len(labels) // 2

    def run(compiled: bool) -> Tensor:
        leaf = images.clone().requires_grad_()
        optimizer = torch.optim.SGD([leaf], lr=0.1)
        handle = attach(optimizer, pool, labels=labels) if how == "optimizer" else None
        options: dict[str, Any] = {"weighting": "absolute", "announce": lambda line: None}
        layer = handle.regularizer if handle else ddplug.Regularizer(pool, LAM, **options)

        def step() -> None:
            optimizer.zero_grad()
            if how == "optimizer":
                (leaf * 1.5).square().sum().backward()
            elif how == "layer":
                layer(leaf * 1.5, labels).square().sum().backward()
            else:
                with layer.round():
                    layer(leaf[:half] * 1.5, labels[:half]).square().sum().backward()
                    layer(leaf[half:] * 1.5, labels[half:]).square().sum().backward()
            optimizer.step()

        do = torch.compile(step, backend="eager") if compiled else step
        for _ in range(3):
            do()
        assert layer.rounds == 3
        layer.detach()
        if handle:
            handle.detach()
        return leaf.detach()

    torch.testing.assert_close(run(compiled=True), run(compiled=False), rtol=1e-12, atol=0)


class Wrapper(torch.optim.Optimizer):
    """An optimizer around another, as Accelerate's is."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


def test_an_optimizer_in_a_wrapper(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Trainer(*batch)
    trainer.optimizer = Wrapper(trainer.optimizer)  # type: ignore[assignment]
    with attach(trainer.optimizer, pool, labels=batch[1]) as handle:
        got = trainer.gradient()
        assert len(handle.history) == 1
    torch.testing.assert_close(got, expected_gradient(pool, batch, 1.0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_stepped_with_a_closure(
    pool: ddplug.ProxyPool, batch: Batch, kind: Callable[..., torch.optim.Optimizer], by_name: bool
) -> None:
    """As Lightning does it: what the closure returns is the host's own, and each step has a round."""
    trainer = Trainer(*batch)
    optimizer = kind([trainer.images], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = trainer.images.square().sum()
        loss.backward()
        return loss.item()

    of_cmi = ddplug.CMI(pool)
    with attach(optimizer, pool, labels=batch[1]) as handle:
        for step in range(3):
            before = trainer.images.detach().clone().requires_grad_()
            (expected,) = torch.autograd.grad(before.square().sum() + LAM * of_cmi(before, batch[1]), before)
            got = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
            assert got == before.square().sum().item()
            torch.testing.assert_close(trainer.images.grad, expected, rtol=1e-12, atol=0)
            assert len(handle.history) == step + 1
    before = trainer.images.detach().clone()
    optimizer.step(closure)
    assert torch.equal(trainer.images.grad, 2 * before)  # type: ignore[arg-type]


def test_an_optimizer_that_evaluates_its_closure_repeatedly(pool: ddplug.ProxyPool, batch: Batch) -> None:
    leaf = batch[0].clone().requires_grad_()
    optimizer = torch.optim.LBFGS([leaf], lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = leaf.square().sum()
        loss.backward()
        return loss

    with attach(optimizer, pool, labels=batch[1]), pytest.raises(ddplug.AttachError, match="closure several times"):
        optimizer.step(closure)  # type: ignore[no-untyped-call]


def test_an_optimizer_of_one_tensor_per_class(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """Also where one class's images got no gradient in this step."""
    images, labels = batch
    order = torch.cat([(labels == c).nonzero().flatten() for c in range(3)])
    leaves = [images[labels == c].clone().requires_grad_() for c in range(3)]
    optimizer = torch.optim.SGD(leaves, lr=1.0)
    with attach(optimizer, pool, labels=labels[order]) as handle:
        sum((leaf * 2).sum() for leaf in leaves).backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()
        (leaves[1] * 2).sum().backward()
        optimizer.step()
        assert [r.images for r in handle.history] == [12, len(leaves[1])]
    whole = images[order].clone().requires_grad_()
    ddplug.CMI(pool)(whole, labels[order]).backward()
    assert whole.grad is not None
    first = images[labels == 0] - 2 - LAM * whole.grad[: int((labels == 0).sum())]
    torch.testing.assert_close(leaves[0].detach(), first, rtol=1e-12, atol=1e-12)


def test_labels_per_call(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """A script that comes with one class after the other, and whose augmentation knows nothing of labels."""
    images, labels = batch
    script = types.ModuleType("script")
    exec(
        "def DiffAugment(images): return images * 1.5\n"
        "def loss(images, rows): return sum(DiffAugment(images[row]).square().sum() for row in rows)",
        script.__dict__,
    )
    rows = [(labels == c).nonzero().flatten() for c in range(3)]
    leaf = images.clone().requires_grad_()
    with attach(script, pool, labels=ddplug.one_class_per_call(3)) as handle:
        for _ in range(2):
            leaf.grad = None
            script.loss(leaf, rows).backward()
        script.DiffAugment(images)  # real images are no call
        assert len(handle.history) == 2
    other = images.clone().requires_grad_()
    (ddplug.CMI(pool)(1.5 * other, labels) * LAM + (1.5 * other).square().sum()).backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-12, atol=1e-12)
    assert [ddplug.one_class_per_call([4, 2])(images) for _ in range(2)] == [4, 4]
    cycle = ddplug.one_class_per_call([4, 2])
    assert [cycle(images) for _ in range(3)] == [4, 2, 4]
    for wrong in (0, [-1], []):
        with pytest.raises(ddplug.InputError, match="class numbers >= 0"):
            ddplug.one_class_per_call(wrong)


def test_labels_that_do_not_fit_say_where_they_are_from(pool: ddplug.ProxyPool, batch: Batch) -> None:
    class PerClass(Trainer):
        def augment(self, images: Tensor) -> Tensor:  # type: ignore[override]
            return images * 1.5

    trainer = PerClass(*batch)
    with (
        pytest.raises(
            ddplug.InputError,
            match=r"labels of shape \(12,\) for 4 images.*attribute 'labels' of PerClass.*lambda views.*one_class_per",
        ),
        attach(trainer, pool),
    ):
        trainer.augment(trainer.images[:4])
    with attach(trainer, pool, labels=lambda views: 2):
        trainer.augment(trainer.images[:4]).sum().backward()


def test_a_loss_is_not_taken_for_an_augmentation_without_labels(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """It may be the classifier's, and then CMI would never act."""

    class Ambiguous:
        def augment(self, images: Tensor) -> Tensor:
            return images

        def loss(self, images: Tensor, targets: Tensor) -> Tensor:
            return images.sum()

    with pytest.raises(ddplug.AttachError, match=r"(?s)augment: no labels for.*loss: not taken.*at='loss'"):
        attach(Ambiguous(), pool)
    for options in ({"labels": batch[1]}, {"at": "loss"}):
        handle = attach(Ambiguous(), pool, **options)  # type: ignore[arg-type]
        handle.regularizer.watch.expect("never acts")
        handle.detach()


def test_a_space_that_means_nothing_is_refused_when_attaching(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Trainer(*batch)
    with pytest.raises(ddplug.SpaceError, match="does not say what its proxies were trained on"):
        attach(trainer, pool, input_space="unit")
    assert "augment" not in vars(trainer)


def test_a_round_by_the_handle(pool: ddplug.ProxyPool, batch: Batch) -> None:
    labels = batch[1]
    trainer = Trainer(*batch)
    with attach(trainer, pool) as handle:
        with handle.round():
            for part in (slice(0, 6), slice(6, 12)):
                trainer.augment(trainer.images[part], labels=labels[part]).sum().backward()
        assert [r.images for r in handle.history] == [12]


def test_a_fresh_handle_takes_a_state_of_an_unrolled_host(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """The inner steps' factor is no part of the share."""
    first, second = (ddplug.Regularizer(pool, 0.5, calibrate=1, announce=lambda line: None) for _ in range(2))
    first.weighting.factor = 30.0  # type: ignore[union-attr]
    leaf = batch[0].clone().requires_grad_()
    first(leaf, batch[1]).square().sum().backward()
    second.load_state_dict(first.state_dict())
    assert second.lam == first.lam
    assert second.lam == pytest.approx(30 * _lam(pool, batch), rel=1e-12)


def _lam(pool: ddplug.ProxyPool, batch: Batch) -> float:
    plain = ddplug.Regularizer(pool, 0.5, calibrate=1, announce=lambda line: None)
    plain(batch[0].clone().requires_grad_(), batch[1]).square().sum().backward()
    assert plain.lam is not None
    return plain.lam


def test_calls_that_are_not_regularised_are_no_turn_of_a_class(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """A look at the loss under no_grad between two steps."""
    images, labels = batch

    class Matching:
        def loss(self, images: Tensor) -> Tensor:
            return images.square().sum()

    trainer, seen = Matching(), []
    cycle = ddplug.one_class_per_call(3)

    def noted(views: Tensor) -> int:
        seen.append(cycle(views))
        return seen[-1]

    leaf = images.clone().requires_grad_()
    with attach(trainer, pool, labels=noted, set_size=12):
        for _ in range(2):
            for c in range(3):
                trainer.loss(leaf[labels == c]).backward()
                leaf.grad = None
            with torch.no_grad():
                trainer.loss(leaf)
    assert seen == [0, 1, 2, 0, 1, 2]


def test_a_trainer_that_was_compiled_before(pool: ddplug.ProxyPool, batch: Batch) -> None:
    module = Compilable(batch, False)
    step: Any = torch.compile(module, backend="eager")
    step().backward()
    with attach(step, pool) as handle:
        step().backward()
        assert len(handle.history) == 1
    module.zero_grad()
    step().backward()
    torch.testing.assert_close(module.images.grad, 4.5 * batch[0], rtol=1e-12, atol=0)


def test_recording_at_weight_zero_in_a_host(pool: ddplug.ProxyPool, batch: Batch) -> None:
    from ddplug import hosting

    regularizer = ddplug.Regularizer(pool, 0, record=True)
    leaf = batch[0].clone().requires_grad_()
    hosting.Layer(regularizer)(leaf, batch[1]).sum().backward()
    assert len(regularizer.history) == 1
    assert torch.equal(leaf.grad, torch.ones_like(leaf))  # type: ignore[arg-type]
