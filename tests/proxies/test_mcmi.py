"""Fine-tuning proxies by maximum CMI: its loss, what it does, and that it resumes like any other training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ddplug import ProxyPool, datasets
from ddplug.datasets.images import ImageData
from ddplug.errors import InputError, ProxyError
from ddplug.networks.training import logits_of
from ddplug.networks.zoo import build, seeded
from ddplug.proxies import mcmi, pretrain
from ddplug.proxies.mcmi import MaximumCMI, judged
from ddplug.proxies.pretrain import pretrain as train
from ddplug.proxies.proxy import StreamedProxy
from ddplug.terms.cmi import cmi

pytestmark = pytest.mark.numerical

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return datasets.load("digits")


@pytest.fixture(scope="module")
def few(digits: ImageData) -> ImageData:
    """A hundred and fifty of them: what repeats bit for bit does so on any."""
    return replace(digits, train_images=digits.train_images[:150], train_labels=digits.train_labels[:150])


class Toy(nn.Module):
    """Logits are the first three pixels, whatever the mode; what it is asked in training mode, it notes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :3] * self.scale * (2 if self.training else 1)


def toy_batch(images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(images, 1, 2, 2, generator=generator, dtype=torch.float64)
    return pictures, torch.randint(3, (images,), generator=generator)


def probabilities(logits: torch.Tensor) -> list[float]:
    parts = [math.exp(value) for value in logits.tolist()]
    return [part / sum(parts) for part in parts]


@pytest.mark.parametrize("weight", [0.15, 0.9])
def test_the_loss_is_cross_entropy_less_kl_to_the_epochs_centroids(weight: float) -> None:
    """By loops, in float64; the network's own float32 logits of the centroids' images agree to 1e-7."""
    loss, net = MaximumCMI(weight), Toy().train()
    images, labels = toy_batch(40, 0)
    loss.begin_epoch(net, images, labels)
    assert net.training, "the network is given back as it was"
    logits = toy_batch(9, 1)[0].flatten(1)[:, :3]
    targets = toy_batch(9, 1)[1]
    centroids = {}
    for c in range(3):
        own = [probabilities(image.flatten()[:3]) for image, label in zip(images, labels, strict=True) if label == c]
        centroids[c] = [sum(column) / len(own) for column in zip(*own, strict=True)]
    expected = 0.0
    for z, label in zip(logits, targets.tolist(), strict=True):
        p = probabilities(z)
        kl = sum(a * math.log(a / b) for a, b in zip(p, centroids[label], strict=True))
        expected += (-math.log(p[label]) - weight * kl) / len(targets)
    assert loss(logits, targets).item() == pytest.approx(expected, rel=1e-6)
    net.scale.data.fill_(3.0)
    assert loss(logits, targets).item() == pytest.approx(expected, rel=1e-6), "held for the epoch"
    loss.begin_epoch(net, images, labels)
    assert loss(logits, targets).item() != pytest.approx(expected, rel=1e-3), "and made anew for the next"


def test_centroids_of_large_data_are_those_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcmi, "SAMPLE", 10)
    images, labels = toy_batch(35, 0)  # every fourth image
    whole, sample = MaximumCMI(0.5), MaximumCMI(0.5)
    sample.begin_epoch(Toy(), images, labels)
    monkeypatch.setattr(mcmi, "SAMPLE", 100)
    whole.begin_epoch(Toy(), images[::4], labels[::4])
    assert sample._log_centroids is not None
    assert torch.equal(sample._log_centroids, whole._log_centroids)  # type: ignore[arg-type]
    # A class that none of the sample is of has no centroid; nearest to saying nothing is the uniform one.
    sample.begin_epoch(Toy(), images, torch.zeros(35, dtype=torch.long))
    assert sample._log_centroids[2].exp().tolist() == pytest.approx([1 / 3] * 3)


def test_weight_0_is_plain_cross_entropy() -> None:
    loss, (images, labels) = MaximumCMI(0.0), toy_batch(9, 1)
    loss.begin_epoch(Toy(), images, labels)
    logits = images.flatten(1)[:, :3]
    assert torch.equal(loss(logits, labels), nn.functional.cross_entropy(logits, labels))


@pytest.mark.parametrize("weight", [-0.1, 1.0, 2.0, math.nan, math.inf])
def test_weights_without_a_meaning(weight: float) -> None:
    with pytest.raises(InputError, match=r"the weight of MCMI must be in \[0, 1\)"):
        MaximumCMI(weight)


def test_its_repr_is_what_decides_it() -> None:
    """A checkpoint belongs to it, and centroids are made anew."""
    loss = MaximumCMI(0.15)
    loss.begin_epoch(Toy(), *toy_batch(9, 1))
    assert repr(loss) == "MaximumCMI(weight=0.15)"


def test_judged_is_accuracy_and_cmi_of_the_test_images(digits: ImageData) -> None:
    with seeded(0):
        net = build("convnet", channels=1, size=(8, 8), width=8)
    found = judged(net, digits)
    with torch.no_grad():
        logits = net.eval()(digits.test_images)
    assert found["cmi"] == pytest.approx(cmi(logits, digits.test_labels).item(), rel=1e-5)
    assert found["test_accuracy"] == (logits.argmax(1) == digits.test_labels).double().mean().item()
    torch.testing.assert_close(logits_of(net, digits.test_images, 7), logits, rtol=1e-5, atol=1e-6)


# --- pools


RECIPE: dict[str, Any] = {"options": {"width": 8}, "progress": False, "epochs": 2, "batch_size": 50, "seed": 3}


def test_it_raises_cmi_on_real_images(digits: ImageData, tmp_path: Path, untouched: None) -> None:
    """Against the same fine-tuning by cross-entropy alone, and against what it began with."""
    how = {**RECIPE, "lr": 0.2, "epochs": 4, "options": {"width": 16, "depth": 2}}
    start, how = train(digits, tmp_path / "start", count=1, **how), {**how, "mcmi_epochs": 2}
    tuned, plain = (train(digits, tmp_path / str(weight), start=start, mcmi=weight, **how) for weight in (0.9, 0.0))
    after, control = tuned.proxies[0].record, plain.proxies[0].record
    assert after["before"] == control["before"]
    assert after["cmi"] > 1.1 * after["before"]["cmi"]
    assert after["cmi"] > 1.1 * control["cmi"]
    assert after["test_accuracy"] > control["test_accuracy"] - 0.05
    assert (after["mcmi"], after["mcmi_epochs"], after["epochs"]) == (0.9, 2, 4)
    found = judged(tuned.proxies[0].network, digits)
    assert {name: after[name] for name in found} == pytest.approx(found)


class InterruptError(Exception):
    pass


def interrupted(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], None]:
    """Fail after epoch `at`, counted over both phases and all networks; what undoes that."""
    fit, done = pretrain.fit, 0

    def failing(*args: Any, on_epoch: Any, **kwargs: Any) -> Any:
        def told(epoch: int, loss: float) -> None:
            nonlocal done
            on_epoch(epoch, loss)
            done += 1
            if done == at:
                raise InterruptError

        return fit(*args, on_epoch=told, **kwargs)

    monkeypatch.setattr(pretrain, "fit", failing)
    return lambda: monkeypatch.setattr(pretrain, "fit", fit)


@pytest.mark.parametrize("from_a_pool", [False, True])
def test_interrupted_after_any_epoch_it_ends_at_the_same_weights(
    few: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_a_pool: bool
) -> None:
    """Two networks, of two epochs of training and two of fine-tuning each."""
    how = {**RECIPE, "mcmi": 0.3, "mcmi_epochs": 2, "count": 2}
    if from_a_pool:
        how["start"] = train(few, tmp_path / "start", count=2, **RECIPE)
    whole = train(few, tmp_path / "whole", **how)
    epochs = 4 if from_a_pool else 8
    for at in range(1, epochs + 1):
        folder = tmp_path / f"cut-{at}"
        undo = interrupted(monkeypatch, at)
        with pytest.raises(InterruptError):
            train(few, folder, **how)
        undo()
        resumed = train(few, folder, **how)
        assert resumed.digest() == whole.digest(), at
        assert [proxy.record for proxy in resumed] == [proxy.record for proxy in whole]
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")], "no checkpoint is left"


def test_another_weights_checkpoint_is_refused(few: ImageData, tmp_path: Path) -> None:
    from ddplug.networks.training import fit

    def net() -> nn.Module:
        with seeded(0):
            return build("convnet", channels=1, size=(8, 8), width=8)

    def stop(done: int, loss: float) -> None:
        raise InterruptError

    how: dict[str, Any] = {"epochs": 2, "seed": 0, "checkpoint": tmp_path / "fit.pt"}
    with pytest.raises(InterruptError):
        fit(net(), few.train_images, few.train_labels, loss_of=MaximumCMI(0.1), on_epoch=stop, **how)
    for other in (MaximumCMI(0.2), None):
        with pytest.raises(ProxyError):
            fit(net(), few.train_images, few.train_labels, loss_of=other, **how)
    fit(net(), few.train_images, few.train_labels, loss_of=MaximumCMI(0.1), **how)


def test_what_was_trained_is_not_trained_again(few: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how = {**RECIPE, "mcmi": 0.3, "mcmi_epochs": 2, "count": 1}
    undo = interrupted(monkeypatch, 3)  # the first of the fine-tuning
    with pytest.raises(InterruptError):
        train(few, tmp_path / "pool", **how)
    undo()
    undo = interrupted(monkeypatch, 2)  # one is left
    train(few, tmp_path / "pool", **how)
    undo()


def test_it_begins_with_the_networks_of_plain_training(few: ImageData, tmp_path: Path) -> None:
    """Trained anew, or taken from a pool of that recipe: the same networks are fine-tuned in the same way."""
    plain = train(few, tmp_path / "plain", count=2, **RECIPE)
    anew = train(few, tmp_path / "anew", count=2, mcmi=0.3, mcmi_epochs=1, **RECIPE)
    taken = train(few, tmp_path / "taken", mcmi=0.3, mcmi_epochs=1, start=plain, **RECIPE)
    assert anew.digest() == taken.digest() != plain.digest()
    assert [proxy.name for proxy in taken] == [proxy.name for proxy in plain]
    for first, second in zip(anew, taken, strict=True):
        assert first.record == second.record
    again = train(few, tmp_path / "again", count=2, **RECIPE)
    assert again.digest() == plain.digest(), "the pool that was begun with is as it was"
    assert "mcmi" not in plain.proxies[0].record
    assert not any(parameter.requires_grad for proxy in plain for parameter in proxy.network.parameters())
    recipe = {**RECIPE, "seed": 9, "epochs": 1}
    other = train(few, tmp_path / "other", mcmi=0.3, mcmi_epochs=1, start=plain, **recipe)
    assert other.proxies[0].record["epochs"] == 2, "its training's own record is kept"


def test_weight_0_is_a_fine_tuning_by_cross_entropy(few: ImageData, tmp_path: Path) -> None:
    from ddplug.networks.training import ShiftAndFlip, fit

    plain = train(few, tmp_path / "plain", count=1, **RECIPE)
    tuned = train(few, tmp_path / "tuned", mcmi=0, mcmi_epochs=1, start=plain, **RECIPE)
    with seeded(0):
        net = build("convnet", channels=1, size=(8, 8), width=8)
    net.load_state_dict(plain.proxies[0].network.state_dict())
    fit(
        net.requires_grad_(True), few.train_images, few.train_labels, epochs=1, lr=0.005, batch_size=50, seed=3,
        schedule="cosine", augment=ShiftAndFlip(1, False),
    )  # fmt: skip
    for name, value in net.state_dict().items():
        assert torch.equal(value, tuned.proxies[0].network.state_dict()[name]), name


def test_a_quarter_of_the_epochs_unless_said(few: ImageData, tmp_path: Path) -> None:
    for epochs, expected in ((1, 1), (9, 2)):
        record = mcmi.settings_of(0.15, None, epochs, None)["mcmi"]
        assert record == {"weight": 0.15, "epochs": expected, "start": None}
    assert mcmi.settings_of(None, None, 9, None) == {}, "a pool without is what it was"


def test_what_is_refused(few: ImageData, digits: ImageData, tmp_path: Path) -> None:
    plain = train(few, tmp_path / "plain", count=1, **RECIPE)
    for given in ({"mcmi_epochs": 2}, {"start": plain}):
        with pytest.raises(InputError, match="mcmi_epochs and start are of a fine-tuning"):
            train(few, tmp_path / "pool", **given, **RECIPE)
    with pytest.raises(InputError, match="mcmi_epochs must be at least 1, got 0"):
        train(few, tmp_path / "pool", mcmi=0.1, mcmi_epochs=0, **RECIPE)
    with pytest.raises(InputError, match="must be in"):
        train(few, tmp_path / "pool", mcmi=1.0, **RECIPE)
    with pytest.raises(ProxyError, match="digits"):
        train(digits, tmp_path / "pool", mcmi=0.1, start=plain, **RECIPE)  # trained on other images
    assert not (tmp_path / "pool").exists(), "nothing is on disk"
    with pytest.raises(ProxyError, match="mcmi"):
        train(few, tmp_path / "plain", count=1, mcmi=0.1, **RECIPE)
    train(few, tmp_path / "pool", count=1, mcmi=0.1, mcmi_epochs=1, **RECIPE)
    for other in ({"mcmi": 0.2, "mcmi_epochs": 1}, {"mcmi": 0.1, "mcmi_epochs": 2}, {}):
        with pytest.raises(ProxyError, match="mcmi"):
            train(few, tmp_path / "pool", count=1, **other, **RECIPE)
    with pytest.raises(ProxyError, match="mcmi"):
        train(few, tmp_path / "pool", mcmi=0.1, mcmi_epochs=1, start=plain, **RECIPE)
    assert ProxyPool.load(tmp_path / "pool").proxies[0].record["mcmi"] == 0.1


def test_a_streamed_pool_can_be_begun_with(few: ImageData, tmp_path: Path) -> None:
    plain = train(few, tmp_path / "plain", count=2, **RECIPE)
    streamed = ProxyPool.load(tmp_path / "plain", budget=1)
    assert isinstance(streamed.proxies[0], StreamedProxy)
    how = {**RECIPE, "mcmi": 0.3, "mcmi_epochs": 1}
    expected = train(few, tmp_path / "memory", start=plain, **how)
    assert train(few, tmp_path / "streamed", start=streamed, **how).digest() == expected.digest()
