"""Under Accelerate and Lightning: the gradient is that of L + lambda * CMI, and at weight 0 nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug

pytestmark = pytest.mark.numerical

Batch = tuple[Tensor, Tensor]
LAM, STEPS = 0.7, 3
OPTIONS: dict[str, Any] = {"weighting": "absolute", "announce": lambda line: None}
CLEAN: Any = {**OPTIONS, "augment": "none"}


def by_hand(batch: Batch, cmi: Callable[[Tensor, Tensor], Tensor], scale: float) -> Tensor:
    """The images after some steps by L + lambda * CMI of their views, `scale` times the images."""
    leaf = batch[0].clone().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=0.1, momentum=0.5)
    for _ in range(STEPS):
        optimizer.zero_grad()
        ((leaf * 1.5).square().mean() + LAM * cmi(leaf * scale, batch[1])).backward()
        optimizer.step()
    return leaf.detach()


def accelerated(batch: Batch, how: str, proxies: object, weight: float) -> Tensor:
    """The same by Accelerate, in two passes a step, each of half the images."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed; the extra 'test' has it")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    images, labels = batch
    leaf = images.clone().requires_grad_()
    optimizer = accelerator.prepare(torch.optim.SGD([leaf], lr=0.1, momentum=0.5))
    halves = (slice(None, None, 2), slice(1, None, 2))
    if how == "layer":
        layer = ddplug.Regularizer(proxies, weight, **OPTIONS)
        for _ in range(STEPS):
            with layer.round():
                for half in halves:
                    with accelerator.accumulate():
                        accelerator.backward(layer(leaf[half] * 1.5, labels[half]).square().mean())
            optimizer.step()
            optimizer.zero_grad()
        assert layer.rounds == (STEPS if weight else 0)
        return leaf.detach()
    handle = ddplug.attach(optimizer, weight, proxies=proxies, labels=labels, **CLEAN) if how == "optimizer" else None
    for _ in range(STEPS):
        for half in halves:
            with accelerator.accumulate():
                accelerator.backward((leaf[half] * 1.5).square().mean())
                optimizer.step()
                optimizer.zero_grad()
    if handle is not None:
        assert handle.regularizer.rounds == (STEPS if weight else 0)
        handle.detach()
    return leaf.detach()


@pytest.mark.parametrize(("how", "scale"), [("optimizer", 1.0), ("layer", 1.5)])
def test_accelerate(pool: ddplug.ProxyPool, batch: Batch, how: str, scale: float) -> None:
    got = accelerated(batch, how, pool, LAM)
    torch.testing.assert_close(got, by_hand(batch, ddplug.CMI(pool), scale), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("how", ["optimizer", "layer"])
def test_accelerate_at_weight_zero_is_bit_identical(batch: Batch, how: str) -> None:
    single = batch[0].float(), batch[1]
    assert torch.equal(accelerated(single, how, "nowhere", 0), accelerated(single, "without", None, 0))


def lightened(batch: Batch, how: str, proxies: object, weight: float, passes: int = 1) -> Tensor:
    """The same by Lightning; attached to the module, or within it to what Lightning makes of the optimizer."""
    lightning = pytest.importorskip("lightning", reason="lightning is not installed; the extra 'test' has it")

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.images = nn.Parameter(batch[0].clone())
            self.register_buffer("labels", batch[1])
            self.automatic_optimization = how != "manual"
            self.handle: ddplug.Handle | None = None

        def augment(self, images: Tensor) -> Tensor:
            return images * 1.5

        def training_step(self, given: Tensor, number: int) -> Tensor:
            loss = self.augment(self.images).square().mean()
            if how == "manual":
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([self.images], lr=0.1, momentum=0.5)

        def on_fit_start(self) -> None:
            if how in ("optimizer", "manual"):
                self.handle = ddplug.attach(
                    self.optimizers(), weight, proxies=proxies, labels=self.labels, augment="none", **OPTIONS
                )

    module = Module()
    if how == "module":
        module.handle = ddplug.attach(module, weight, proxies=proxies, **OPTIONS)
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=STEPS, max_epochs=-1, accumulate_grad_batches=passes, **quiet
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(passes, 1)))
    if module.handle is not None:
        assert module.handle.regularizer.rounds == (STEPS if weight else 0)
        module.handle.detach()
    return module.images.detach()


@pytest.mark.parametrize(
    ("how", "scale", "passes"), [("module", 1.5, 1), ("optimizer", 1.0, 1), ("optimizer", 1.0, 2), ("manual", 1.0, 1)]
)
def test_lightning(pool: ddplug.ProxyPool, batch: Batch, how: str, scale: float, passes: int) -> None:
    got = lightened(batch, how, pool, LAM, passes)
    torch.testing.assert_close(got, by_hand(batch, ddplug.CMI(pool), scale), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("how", ["module", "optimizer"])
def test_lightning_at_weight_zero_is_bit_identical(batch: Batch, how: str) -> None:
    single = batch[0].float(), batch[1]
    assert torch.equal(lightened(single, how, "nowhere", 0), lightened(single, "without", None, 0))
