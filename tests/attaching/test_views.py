"""What the term sees: the host's views, clean images, kornia's views, several views of an image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ddplug
from attaching.loop import LAM, Batch, Trainer, attach, check

pytestmark = pytest.mark.numerical


def test_kornia_is_gone_after_detach_even_then(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Trainer(*batch)
    handle = attach(trainer, pool, augment="kornia")
    trainer.gradient()
    ours = trainer.augment
    trainer.augment = lambda images, labels=None: ours(images, labels)  # type: ignore[method-assign]
    handle.detach()
    assert torch.equal(trainer.augment(batch[0]), batch[0] * 1.5)


def test_clean_views(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """The layer before the augmentation: CMI of the images themselves."""
    check(Trainer(*batch), pool, batch, scale=1.0, augment="none")

    class Augment(nn.Module):
        def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
            return images * 1.5

    trainer = Trainer(*batch)
    trainer.augment = Augment()  # type: ignore[method-assign, assignment]
    check(trainer, pool, batch, scale=1.0, augment="none")


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
def test_kornias_views_in_the_place_of_the_hosts(pool: ddplug.ProxyPool, batch: Batch, kind: type[Siamese]) -> None:
    """Real batch, synthetic batch and regulariser share one draw, a new one each step."""
    from ddplug.augment.dsa import DSA

    trainer = kind(*batch)
    before = {key: value for key, value in vars(trainer).items() if key != "images"}
    forward = vars(trainer.augment).get("forward") if isinstance(trainer.augment, nn.Module) else None
    dsa, again = DSA(seed=4), DSA(seed=4)
    draws = []
    with attach(trainer, pool, augment=dsa) as handle:
        for _ in range(6):
            got = trainer.step()
            params = again.draw(trainer.images)
            draws.append(str(params))
            leaf = batch[0].clone().requires_grad_()
            seen = again(leaf, params=params)
            assert torch.equal(trainer.real[-1], seen)
            assert torch.equal(trainer.seen[-1], seen)
            loss = (seen.detach().mean() - seen).square().sum()
            (expected,) = torch.autograd.grad(loss + LAM * ddplug.CMI(pool)(seen, batch[1]), leaf)
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-14)
        trainer.optimizer.step()
        assert len(handle.history) == 1  # each gradient but the last is wiped without a step
    assert len(set(draws)) > 1
    assert {key: value for key, value in vars(trainer).items() if key in before} == before
    if isinstance(trainer.augment, nn.Module):
        assert vars(trainer.augment).get("forward") is forward is None


def test_kornia_by_name(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Siamese(*batch)
    with attach(trainer, pool, augment="kornia", seed=3) as handle:
        trainer.step()
        assert torch.equal(trainer.real[-1], trainer.seen[-1])
        with pytest.raises(ddplug.errors.HostError, match="already attached"):
            attach(trainer, pool, at="augment")
        trainer.optimizer.step()
    assert len(handle.history) == 1


def test_views_that_cannot_be_had(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Trainer(*batch)
    for options, says in (
        ({"at": "loss", "augment": "none"}, "sees no clean images"),
        ({"at": "loss", "augment": "kornia"}, "no augmentation to replace"),
        ({"augment": "albumentations"}, "unknown augment 'albumentations', expected 'host', 'none', 'kornia'"),
    ):
        with pytest.raises(ddplug.errors.HostError, match=says):
            attach(trainer, pool, **options)  # type: ignore[arg-type]


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
    with attach(trainer, pool, augment="none", views=4, seed=1) as handle:
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
    regularizer = ddplug.Regularizer(pool, LAM, weighting="absolute", views=ddplug.Views(3, DSA(seed=5)))
    leaf = images.clone().requires_grad_()
    regularizer(leaf, labels).sum().backward()
    again, dsa = images.clone().requires_grad_(), DSA(seed=5)
    seen = torch.cat([dsa(again) for _ in range(3)])
    (again.sum() + LAM * ddplug.CMI(pool)(seen, labels.repeat(3))).backward()
    torch.testing.assert_close(leaf.grad, again.grad, rtol=1e-12, atol=0)
    with pytest.raises(ddplug.errors.InputError, match="views must be a whole number >= 1"):
        ddplug.Regularizer(pool, 0.1, views=0)
