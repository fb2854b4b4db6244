"""Trainers of people who never saw ddplug, in which it asked too late, or for what was there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ddplug
from ddplug.attaching.data import found_in
from ddplug.datasets.images import as_image_data
from ddplug.datasets.spaces import InputSpace
from ddplug.errors import DataError, HostError
from ddplug.proxies.pool import PoolInfo
from ddplug.proxies.pretrain import default_pool


def real() -> tuple[Tensor, Tensor]:
    labels = torch.arange(60) % 3
    noise = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return (noise + labels[:, None, None, None]) / 3, labels


class Holder:
    """A trainer that holds what it is made with, and an optimizer of the leaves among it."""

    def __init__(self, **held: Any) -> None:
        self.train_images, self.train_labels = real()
        vars(self).update(held)
        leaves = [value for each in held.values() for value in (each.values() if isinstance(each, dict) else [each])]
        self.optimizer = torch.optim.SGD([leaf for leaf in leaves if leaf.requires_grad], lr=1.0)


def leaf(*shape: int) -> Tensor:
    return torch.rand(*shape).requires_grad_()


class Slices(Holder):
    """Distribution matching by slices of one tensor, of which the class is known by place alone."""

    def augment(self, x: Tensor, seed: int) -> Tensor:
        return torch.roll(x, seed, -1)


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        (lambda: Slices(syn=leaf(12, 3, 8, 8)), r"'syn' .*the 12 synthetic images.*Pass labels="),
        (lambda: Holder(protos={name: leaf(4, 3, 8, 8) for name in "abc"}), r"'protos' .*the 12 synthetic images"),
        (lambda: Holder(syn=leaf(12, 3, 8, 8), hard=torch.arange(12) % 3), r"Under other names: hard\. Pass labels="),
        (lambda: Holder(latents=leaf(12, 5)), r"'latents' .*no images of shape \(3, 8, 8\).*at='NAME'"),
    ],
)  # fmt: skip
def test_missing_labels_are_said_before_proxies_are_trained(
    trainer: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was seen and what to pass is said at once: training a pool takes minutes."""
    monkeypatch.setattr("ddplug.proxies.pretrain.default_pool", lambda _: pytest.fail("proxies were trained"))
    with pytest.raises(HostError, match=said):
        ddplug.attach(trainer(), weight=0.1)


def test_arrays_and_lists_that_hang_on_the_trainer_are_its_data() -> None:
    """Images in an array, and labels in an array or a list."""
    images, labels = real()
    for given in (labels.numpy(), labels.tolist()):
        holder = nn.Identity()
        holder.X, holder.Y = images.numpy(), given  # type: ignore[assignment]
        found = found_in(holder)
        assert found is not None
        assert found.where == "X"
        np.testing.assert_array_equal(found.train[0], images.numpy())
        assert found.train[1].tolist() == labels.tolist()


def test_a_pool_in_the_cache_serves_the_same_data_in_another_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trainers of one data set, normalised in one of them and plain in the other."""
    monkeypatch.setattr("ddplug.networks.training.MOST_STEPS", 10)
    plain = as_image_data(real(), space="unit")
    first = default_pool(plain.to_space(InputSpace((0.5,) * 3, (0.25,) * 3)), cache=tmp_path, device="cpu")
    assert default_pool(plain, cache=tmp_path, device="cpu").digest() == first.digest()


def test_weight_zero_takes_the_images_that_another_weight_takes(pool: ddplug.ProxyPool) -> None:
    """Learned soft labels, a matrix of as many rows, are no second set of images, whether data are read or not."""
    labels = torch.arange(12) % 3
    for weight in (0.0, 0.1):
        trainer = Holder(syn=leaf(12, 3, 8, 8), soft=leaf(12, 3), labels=labels)
        with ddplug.attach(trainer, weight, proxies=pool) as handle:
            handle.regularizer.watch.expect("never acts")
            assert handle.where == "the optimizer of 'syn' (12, 3, 8, 8), labels 'labels'"


def test_images_are_named_by_what_holds_them_and_not_by_their_optimizer(pool: ddplug.ProxyPool) -> None:
    """A model holds them, deeper than the optimizer that hangs on the trainer."""
    model = nn.Module()
    model.images, model.labels = nn.Parameter(torch.rand(12, 3, 8, 8)), torch.arange(12) % 3  # type: ignore[assignment]
    trainer = Holder(unused=leaf(1))
    trainer.optimizer, trainer.model = torch.optim.SGD([model.images], lr=1.0), model  # type: ignore[attr-defined]
    with ddplug.attach(trainer, 0.1, proxies=pool) as handle:
        handle.regularizer.watch.expect("never acts")
        assert "'model.images'" in handle.where


def test_weight_zero_needs_no_labels() -> None:
    """The line with another weight would ask for them; a baseline is the host alone."""
    for trainer in (Slices(syn=leaf(12, 3, 8, 8)), Holder(syn=leaf(12, 3, 8, 8))):
        before = dict(vars(trainer))
        with ddplug.attach(trainer, weight=0):
            pass
        assert vars(trainer) == before


def test_the_error_of_unknown_normalisation_names_an_option_of_attach() -> None:
    """Images that leave [0, 1], given beside an optimizer; `attach` has no `space=`."""
    images, labels = real()
    syn = leaf(12, 3, 8, 8)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    pool = ddplug.ProxyPool.from_modules([network], info=PoolInfo(shape=(3, 8, 8)), input_space=InputSpace.unit(3))
    given: Any = {"data": (images * 4 - 2, labels), "labels": torch.arange(12) % 3, "proxies": pool}
    with pytest.raises(DataError, match="input_space= of attach"):
        ddplug.attach(torch.optim.SGD([syn], lr=1.0), **given)
    space = InputSpace.normalized((0.5,) * 3, (0.25,) * 3)
    with ddplug.attach(torch.optim.SGD([syn], lr=1.0), input_space=space, **given) as handle:
        handle.regularizer.watch.expect("never acts")
