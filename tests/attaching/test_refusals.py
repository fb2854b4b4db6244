"""What `ddplug.attach` refuses, and how errors, ours and the host's, leave a trainer."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from attaching.loop import LAM, Batch, Trainer, attach, check
from ddplug.proxies.pool import PoolInfo

pytestmark = pytest.mark.numerical


def test_proxies_of_other_data_are_refused_and_the_space_is_the_datas(
    network: Callable[..., nn.Module], batch: Batch
) -> None:
    images, labels = batch
    space = ddplug.InputSpace.normalized((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    data = ddplug.datasets.ImageData("ours", ("a", "b", "c"), space, images, labels, images, labels)
    trainer = Trainer(*batch)
    trainer.data = data  # type: ignore[attr-defined]

    def pool(**info: Any) -> ddplug.ProxyPool:
        return ddplug.ProxyPool.from_modules([network(7)], info=PoolInfo(**info))

    with attach(trainer, pool(dataset="ours", fingerprint=data.fingerprint(), space=space)) as handle:
        assert handle.regularizer.input_space == space
        trainer.gradient()
    for info, says in (
        ({"dataset": "theirs"}, "trained on theirs, not on ours"),
        ({"dataset": "ours", "fingerprint": "0123"}, "another edition of ours"),
    ):
        with pytest.raises(ddplug.errors.ProxyError, match=says):
            attach(trainer, pool(**info))
        with pytest.raises(ddplug.errors.ProxyError, match=says):
            attach(Trainer(*batch), pool(**info), data=data)
    assert "augment" not in vars(trainer)


def test_arguments_that_mean_nothing(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Trainer(*batch)
    with pytest.raises(TypeError, match="wieght"):
        ddplug.attach(trainer, proxies=pool, wieght=2.0)  # type: ignore[call-arg]
    with pytest.raises(ddplug.errors.HostError, match="got the class Trainer, expected an instance"):
        attach(Trainer, pool)

    def fails(line: str) -> None:
        raise OSError("no such device")

    with pytest.raises(OSError, match="no such device"):
        attach(trainer, pool, announce=fails)
    assert "augment" not in vars(trainer)


def test_attaching_twice(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Trainer(*batch)
    with attach(trainer, pool) as handle:
        with pytest.raises(ddplug.errors.HostError, match="already attached at Trainer.augment.*detach"):
            attach(trainer, pool, at="augment")
        trainer.gradient()
    handle.detach()
    check(Trainer(*batch), pool, batch)
    with (
        attach(trainer.optimizer, pool, labels=batch[1]),
        pytest.raises(ddplug.errors.HostError, match="already attached to this optimizer"),
    ):
        trainer.gradient()
        attach(trainer.optimizer, pool, labels=batch[1])


def test_nothing_recognised(pool: ddplug.ProxyPool) -> None:
    class Strange:
        def munge(self, stuff: Tensor) -> Tensor:
            return stuff

    with pytest.raises(ddplug.errors.HostError, match=r"(?s)in Strange.*augment.*loss.*optimizer.*munge.*at='NAME'"):
        attach(Strange(), pool)
    with pytest.raises(ddplug.errors.HostError, match=r"no method or function 'augmnet'; it has: munge"):
        attach(Strange(), pool, at="augmnet")
    with pytest.raises(ddplug.errors.HostError, match=r"no labels for 'munge\(stuff: .*looked for labels_syn"):
        attach(Strange(), pool, at="munge")
    with pytest.raises(ddplug.errors.HostError, match=r"has no image argument"):
        attach(Strange(), pool, at="munge", augment="none", labels=torch.arange(3))
    with pytest.raises(ddplug.errors.HostError, match=r"images='pictures' holds no leaf tensors"):
        attach(Strange(), pool, at="munge", images="pictures", labels=torch.arange(3))
    with pytest.raises(ddplug.errors.HostError, match="got the class Strange, expected an instance"):
        attach(Strange, pool, at="munge", labels=torch.arange(3))


def test_a_trainer_that_takes_no_attributes(pool: ddplug.ProxyPool) -> None:
    class Slots:
        __slots__ = ("labels",)

        def augment(self, images: Tensor, labels: Tensor) -> Tensor:
            return images

    with pytest.raises(ddplug.errors.HostError, match="cannot be replaced.*by hand"):
        attach(Slots(), pool)


def test_no_proxies_and_nothing_to_train_them_on(pool: ddplug.ProxyPool, batch: Batch) -> None:
    with pytest.raises(ddplug.errors.HostError, match="no proxies given.*ddplug pretrain"):
        ddplug.attach(Trainer(*batch))
    with pytest.raises(ddplug.errors.ProxyError, match="there is no pool at 'nowhere'"):
        ddplug.attach(Trainer(*batch), proxies="nowhere")


def test_an_error_leaves_the_trainer_as_it_was(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Trainer(*batch)
    before = dict(vars(trainer))
    for options in ({"representation": "none"}, {"weight": -1.0}, {"at": "nothing"}):
        weight = options.pop("weight", LAM)  # type: ignore[call-overload]
        with pytest.raises(ddplug.DDPlugError):
            ddplug.attach(trainer, weight, proxies=pool, **options)  # type: ignore[arg-type]
    assert vars(trainer) == before


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
    """In a script, whose names are looked up in a dictionary."""
    script: Any = types.ModuleType("script")
    trainer = Trainer(*batch)
    script.augment = trainer.augment
    trainer.augment = lambda *given, **named: script.augment(*given, **named)  # type: ignore[method-assign]
    handle = attach(script, pool)
    trainer.gradient()
    ours = script.augment
    theirs = lambda images, labels=None: 2 * ours(images, labels)  # noqa: E731
    script.augment = theirs
    with pytest.warns(ddplug.DDPlugWarning, match="replaced by somebody else"):
        handle.detach()
    assert script.augment is theirs
    rounds = handle.regularizer.rounds
    assert torch.equal(trainer.augment(trainer.images, trainer.labels), trainer.images * 3.0)
    trainer.gradient()
    assert handle.regularizer.rounds == rounds


def test_a_space_that_means_nothing_is_refused_when_attaching(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Trainer(*batch)
    with pytest.raises(ddplug.errors.InputError, match="does not say what its proxies were trained on"):
        attach(trainer, pool, input_space="unit")
    assert "augment" not in vars(trainer)


WRONG: dict[str, tuple[Any, str]] = {
    "one-hot": (torch.eye(3, dtype=torch.float64)[torch.arange(12) % 3], r"labels\.argmax\(1\)"),
    "one-hot integers": (torch.eye(3).long()[torch.arange(12) % 3].numpy(), r"shape \(12, 3\).*Pass labels="),
    "floats": ([0.0, 1.0] * 6, r"labels\.flatten\(\)\.long\(\)"),
    "complex": (torch.arange(12).to(torch.complex64), "must be integers"),
    "bools": (torch.arange(12) % 2 == 0, "must be integers"),
    "words": (["cat", "dog"] * 6, "is list, expected class numbers.*Pass labels="),
    "a column": (torch.zeros(12, 1, dtype=torch.int64), r"shape \(12, 1\)"),
    "nothing": ([], "empty"),
    "an optimizer": (torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1), "is SGD, expected class numbers"),
}


@pytest.mark.parametrize("by", ["value", "name"])
@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("at", [None, "augment"])
def test_labels_that_are_no_class_numbers_are_refused_at_once(
    at: str | None, kind: str, by: str, pool: ddplug.ProxyPool, batch: tuple[Tensor, Tensor]
) -> None:
    """Not at the first call, hours later: given, or held by the trainer under the name that is given."""
    given, said = WRONG[kind]

    class Loop:
        def __init__(self) -> None:
            self.images, self.kinds = batch[0].clone().requires_grad_(), given
            self.optimizer = torch.optim.SGD([self.images], lr=0.1)

        def augment(self, images: Tensor) -> Tensor:
            return images * 1

    if by == "name" and at is None:
        said = f"{said}|no integers \\(12,\\) called 'kinds'"
    with pytest.raises(ddplug.DDPlugError, match=said):
        ddplug.attach(Loop(), at=at, proxies=pool, labels=given if by == "value" else "kinds")
