"""Training a network on images, and its accuracy.

Nothing here draws from the host's random state: shuffling and augmentation have a generator of their own, and layers
that draw for themselves, such as dropout, run inside `seeded`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddplug.errors import InputError, ProxyError
from ddplug.networks.precision import layers
from ddplug.networks.zoo import seeded
from ddplug.utils.digest import sha256, typed_bytes
from ddplug.utils.reading import load_tensors, reported_as, write_tensors

FIRST_STEPS, MOST_STEPS = 100, 3000
"""Steps of the first cycle of `fit_until_steady`, and of all of them together."""
LEAST_RISE = 0.01
"""Rise of accuracy, or of the mean probability of the true class, for which another cycle is worth its time."""

Augment = Callable[[Tensor, torch.Generator], Tensor]
Schedule = Literal["step", "cosine"]


class Loss(Protocol):
    """A loss in the place of cross-entropy; its repr names all its settings."""

    def begin_epoch(self, net: nn.Module, images: Tensor, labels: Tensor) -> None:
        """Hook before every epoch, with the network as it is then, and all images and labels."""

    def __call__(self, logits: Tensor, labels: Tensor, /) -> Tensor:
        """The loss of a batch, a scalar."""


def fit(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch_size: int = 256,
    schedule: Schedule = "step",
    augment: Augment | None = None,
    precision: Literal["exact", "bf16"] = "exact",
    seed: int,
    loss_of: Loss | None = None,
    checkpoint: Path | None = None,
    keep_checkpoint: bool = False,
    on_epoch: Callable[[int, float], object] | None = None,
) -> nn.Module:
    """Train `net` in place by SGD on cross-entropy, or `loss_of`, on the device it is on; returns it in eval mode.

    `images` are (n, c, h, w) floats, `labels` int64 (n,) or probabilities, float (n, classes), on any device.
    "step" is the standard schedule: `lr` for the first epochs // 2 + 1 epochs, a tenth of it for the others. "cosine"
    goes from `lr` to zero, batch by batch. With precision="bf16" the layers compute in bf16; weights stay fp32.
    `on_epoch(done, loss)` is called after every epoch with the number of epochs done and the mean loss of the last.

    With `checkpoint`, the state is saved there after every epoch (before `on_epoch`), and a later call with the same
    arguments goes on from it and ends at exactly the weights of an uninterrupted run, bit for bit where the device's
    own arithmetic repeats itself, as the CPU's does. The file is removed when the training is finished, unless
    `keep_checkpoint` is set: then the same call again gives the trained network at once.

    Raises `InputError` if images and labels differ in number, `ProxyError` if the loss stops being finite, or if the
    checkpoint cannot be read or belongs to other arguments.
    """
    if len(labels) != len(images):
        raise InputError(f"each image has a label, got {len(images)} images and {len(labels)} labels")
    device = _device(net)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    done, identity = 0, ""
    if checkpoint is not None:
        settings = (epochs, lr, momentum, weight_decay, batch_size, schedule, seed, named(augment), precision)
        if loss_of is not None:
            settings = (*settings, repr(loss_of))  # type: ignore[assignment]
        identity = identity_of(settings, (images, labels, *net.state_dict().values()))
        done = _resume(checkpoint, identity, epochs, net, optimizer, generator)

    batches = math.ceil(len(images) / batch_size)
    for epoch in range(done, epochs):
        order = torch.randperm(len(images), generator=generator, device="cpu").to(images.device)
        layer_seed = int(torch.randint(2**62, (), generator=generator, device="cpu"))
        total = torch.zeros((), dtype=torch.float32, device=device)
        if loss_of is not None:
            loss_of.begin_epoch(net, images, labels)
        net.train()
        with torch.enable_grad(), seeded(layer_seed, device):
            for step, chosen in enumerate(torch.split(order, batch_size)):
                rate = _rate(schedule, lr, epoch + step / batches, epochs)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                batch = images[chosen].to(device)
                targets = labels[chosen.to(labels.device)].to(device)
                if augment is not None:
                    batch = augment(batch, generator)
                with layers(device, precision):
                    logits = net(batch)
                loss = (loss_of or F.cross_entropy)(logits if precision == "exact" else logits.float(), targets)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                total += loss.detach() * len(batch)
        mean = float(total) / len(images)  # one wait for the device per epoch, not per batch
        if not math.isfinite(mean):
            raise ProxyError(
                f"the loss became {mean} in epoch {epoch + 1} of {epochs}, at lr={rate:g} (started at {lr:g}). "
                "Use a smaller lr, and see that the images are finite and normalised."
            )
        if checkpoint is not None:
            _save(checkpoint, identity, epoch + 1, net, optimizer, generator)
        if on_epoch is not None:
            on_epoch(epoch + 1, mean)
    if checkpoint is not None and not keep_checkpoint:
        checkpoint.unlink(missing_ok=True)
    return net.eval()


def cycles(images: int, batch_size: int) -> list[int]:
    """Return the epochs of each cycle of `fit_until_steady` on so many images: e, 2 e, 4 e, ..."""
    steps = math.ceil(images / batch_size)
    lengths = [math.ceil(FIRST_STEPS / steps)]
    while (sum(lengths) + 2 * lengths[-1]) * steps <= MOST_STEPS:
        lengths.append(2 * lengths[-1])
    return lengths


def fit_until_steady(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    test: tuple[Tensor, Tensor],
    *,
    batch_size: int,
    seed: int,
    checkpoint: Path,
    on_epoch: Callable[[int, float], object],
    **how: Any,
) -> int:
    """Train `net` in cycles, each twice as long as the one before, until one brings little; returns the epochs.

    Each cycle goes from the learning rate to zero (warm restarts, arXiv 1608.03983). Counted in steps, so that a small
    data set is passed more often than a large one. A cycle has a seed of its own, drawn from `seed`. It brings little
    if neither the accuracy nor the mean probability of the true class on the `test` images rises by `LEAST_RISE`.
    Arguments are those of `fit`, as are the errors; what is interrupted is continued by the same call.
    """
    done, reached = 0, (0.0, 0.0)
    files = []
    seeds = torch.Generator().manual_seed(seed)
    for number, epochs in enumerate(cycles(len(images), batch_size)):
        files.append(checkpoint.with_suffix(f".cycle{number}"))
        fit(
            net, images, labels, epochs=epochs, batch_size=batch_size, schedule="cosine", checkpoint=files[-1],
            seed=int(torch.randint(2**62, (), generator=seeds, device="cpu")), keep_checkpoint=True,
            on_epoch=partial(_counted_on, on_epoch, done), **how,
        )  # fmt: skip
        done += epochs
        before, reached = reached, (accuracy(net, *test), certainty(net, *test))
        if all(now - then < LEAST_RISE for now, then in zip(reached, before, strict=True)):
            break
    for file in files:
        file.unlink(missing_ok=True)
    return done


def _counted_on(on_epoch: Callable[[int, float], object], before: int, epoch: int, loss: float) -> None:
    """Report an epoch, counted from `before`."""
    on_epoch(before + epoch, loss)


def certainty(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Mean probability of the true class of `images` (n, c, h, w) with `labels` (n,); a number in [0, 1]."""
    logits = logits_of(net, images)
    return float(logits.softmax(1).gather(1, labels.to(logits.device)[:, None]).double().mean())


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of `images` (n, c, h, w) whose largest logit is at their label, int64 (n,); a number in [0, 1].

    Raises `InputError` if there is not one hard label for each image.
    """
    if labels.shape != (len(images),):
        raise InputError(
            f"accuracy needs one hard label for each of {len(images)} images, got labels of shape {tuple(labels.shape)}"
        )
    logits = logits_of(net, images)
    return int((logits.argmax(1) == labels.to(logits.device)).sum()) / len(labels)


@torch.no_grad()
def logits_of(net: nn.Module, images: Tensor, batch_size: int = 512) -> Tensor:
    """Logits (n, classes) of images (n, c, h, w), on its device, in eval mode; every submodule keeps its."""
    device = _device(net)
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        return torch.cat([net(batch.to(device)).float() for batch in torch.split(images, batch_size)])
    finally:
        for module, training in modes:
            module.training = training


@dataclass(frozen=True)
class ShiftAndFlip:
    """An augmentation: each image moved by up to `pad` pixels along both axes and, if `flip`, mirrored half the time.

    What moves in from outside is zero, which in a normalised space is the mean colour. Every image has its own draw,
    made on the generator's device, so that a CPU generator gives the same result for images on any device. Call it
    as `augment(images, generator)` on (n, c, h, w).
    """

    pad: int
    flip: bool

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Views of `images` (n, c, h, w), drawn with `generator`."""
        count, _, height, width = images.shape
        draw = torch.randint(2 * self.pad + 1, (2, count, 1), generator=generator, device=generator.device)
        top, left = draw.to(images.device)
        rows = top + torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device).expand(count, width)
        if self.flip:
            coin = torch.randint(2, (count, 1), generator=generator, device=generator.device).to(images.device)
            columns = torch.where(coin.bool(), columns.flip(1), columns)
        columns = columns + left
        # One gather does it all: picture n, all channels, its own rows, its own columns. The channels end up last.
        padded = F.pad(images, [self.pad] * 4)
        picture = torch.arange(count, device=images.device)[:, None, None]
        return padded[picture, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()


def _device(net: nn.Module) -> torch.device:
    parameter = next(net.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _rate(schedule: Schedule, lr: float, epoch: float, epochs: int) -> float:
    """The learning rate at `epoch`, counted from zero, with the part of the running epoch that is done."""
    if schedule == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    return lr if epoch < epochs // 2 + 1 else lr * 0.1


def named(augment: Augment | None) -> str:
    """Return an augmentation's name, alike in every process: its repr, or its type's if that holds an address."""
    said = repr(augment)
    if " at 0x" not in said:
        return said
    kind: Any = augment if hasattr(augment, "__qualname__") else type(augment)
    return f"{kind.__module__}.{kind.__qualname__}"


def identity_of(settings: tuple[Any, ...], tensors: Iterable[Tensor]) -> str:
    """A hash of everything that decides how a training ends: its settings, the data, the initial weights."""
    return sha256(chain([repr(settings).encode()], typed_bytes(tensors)))


def _save(
    path: Path, identity: str, done: int, net: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> None:
    state = {
        "identity": identity,
        "done": done,
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": generator.get_state(),
    }
    write_tensors(state, path)


def _resume(
    path: Path,
    identity: str,
    epochs: int,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> int:
    """Bring everything to the state saved at `path`, if there is one; returns how many epochs are done."""
    if not path.exists():
        return 0
    expected, advice = "a checkpoint of a training", "Delete it to train from the beginning."
    state = load_tensors(path, "checkpoint", expected, advice, error=ProxyError)
    with reported_as(path, expected, advice, error=ProxyError):
        if state["identity"] != identity:
            raise ProxyError(
                f"the checkpoint {path} is of a training with other arguments (settings, images, labels, augmentation "
                "or initial weights). Call with the same ones, and a network built anew from the same seed, to go on, "
                "or delete it to train from the beginning."
            )
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        return int(state["done"])
