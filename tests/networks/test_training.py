"""Training: what it learns, what it repeats bit for bit, what it resumes, and the random state it leaves alone."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddplug.datasets.images import ImageData, load, random_real
from ddplug.errors import InputError, ProxyError
from ddplug.networks.training import (
    MOST_STEPS,
    ShiftAndFlip,
    accuracy,
    certainty,
    cycles,
    fit,
    fit_until_steady,
)  # fmt: skip
from ddplug.networks.zoo import build, seeded

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Networks this small gain nothing from a second thread, and on a busy machine wait for it ten times over."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load("digits")


@pytest.fixture(scope="module")
def few(digits):
    """Ten digits of each class: (images, labels)."""
    return random_real(digits, 10, torch.Generator().manual_seed(0))


def small_net(seed=0, **options):
    with seeded(seed):
        return build("convnet", **({"channels": 1, "size": (8, 8), "width": 16, "depth": 2} | options))


def net_with_dropout():
    with seeded(0):
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(288, 10)
        )


def weights(net):
    return [tensor.clone() for tensor in net.state_dict().values()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class InterruptError(Exception):
    pass


def interrupt_after(epochs):
    def on_epoch(done, loss):
        if done == epochs:
            raise InterruptError

    return on_epoch


# ---- fit


def test_fit_learns_the_digits(digits):
    net = small_net()
    before = accuracy(net, digits.test_images, digits.test_labels)
    losses = []
    returned = fit(
        net,
        digits.train_images,
        digits.train_labels,
        epochs=6,
        lr=0.05,
        batch_size=64,
        seed=0,
        on_epoch=lambda done, loss: losses.append((done, loss)),
    )
    assert returned is net
    assert not net.training
    assert [done for done, _ in losses] == [1, 2, 3, 4, 5, 6]
    assert losses[-1][1] < 0.3 * losses[0][1]
    assert before < 0.3
    assert accuracy(net, digits.test_images, digits.test_labels) > 0.9


def test_the_reported_loss_is_the_mean_over_images_not_over_batches(few):
    images, labels = few
    net = small_net()
    expected = nn.functional.cross_entropy(net(images), labels).item()
    losses = []
    # a learning rate of zero keeps the network as it is; batches of 64 and 36
    fit(net, images, labels, epochs=1, lr=0.0, batch_size=64, seed=0, on_epoch=lambda _, loss: losses.append(loss))
    assert losses[0] == pytest.approx(expected, rel=1e-5)


def test_soft_labels_of_one_are_hard_labels(few):
    images, labels = few
    soft = nn.functional.one_hot(labels, 10).float()
    hard_net, soft_net = small_net(), small_net()
    fit(hard_net, images, labels, epochs=2, seed=0)
    fit(soft_net, images, soft, epochs=2, seed=0)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights(hard_net), weights(soft_net), strict=True))


def test_soft_labels_are_not_taken_for_their_largest_entry(few):
    images, labels = few
    soft = nn.functional.one_hot(labels, 10) * 0.5 + 0.05
    hard_net, soft_net = small_net(), small_net()
    fit(hard_net, images, labels, epochs=2, seed=0)
    fit(soft_net, images, soft, epochs=2, seed=0)
    assert not torch.allclose(hard_net.classifier.weight, soft_net.classifier.weight, atol=1e-4)


def rates(monkeypatch, few, **settings):
    """The learning rate of every optimizer step that `fit` takes."""
    seen = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: seen.append(self.param_groups[0]["lr"]) or step(self))
    fit(small_net(), *few, seed=0, **settings)
    return seen


def test_step_schedule_decays_once_half_way(monkeypatch, few):
    # 6 epochs of 2 batches: epochs 0 to 3 (that is, 6 // 2 + 1 of them) at lr, 4 and 5 at a tenth
    assert rates(monkeypatch, few, epochs=6, lr=0.1, batch_size=50) == pytest.approx([0.1] * 8 + [0.01] * 4)


def test_cosine_schedule_goes_to_zero_batch_by_batch(monkeypatch, few):
    seen = rates(monkeypatch, few, epochs=3, lr=0.1, batch_size=50, schedule="cosine")
    assert seen == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 6)) for step in range(6)])


@pytest.mark.parametrize("make", [small_net, net_with_dropout])
def test_fit_repeats_itself_bit_for_bit_and_seeds_differ(few, make):
    def trained(seed):
        return weights(fit(make(), *few, epochs=2, batch_size=32, augment=ShiftAndFlip(1, True), seed=seed))

    first = trained(0)
    torch.rand(3)  # what the host draws in between does not matter
    assert same(first, trained(0))
    assert not same(first, trained(1))


@pytest.mark.usefixtures("untouched")
def test_nothing_moves_the_global_random_state(digits, few, tmp_path):
    seen = []
    fit(
        net_with_dropout(),
        *few,
        epochs=2,
        augment=ShiftAndFlip(1, True),
        seed=0,
        checkpoint=tmp_path / "c.pt",
        on_epoch=lambda *_: seen.append(torch.get_rng_state()),
    )
    assert all(torch.equal(state, torch.get_rng_state()) for state in seen)


def test_fit_works_where_the_host_has_gradients_switched_off(few):
    expected = weights(fit(small_net(), *few, epochs=1, seed=0))
    with torch.no_grad():
        assert same(expected, weights(fit(small_net(), *few, epochs=1, seed=0)))


def test_augmentation_gets_every_batch_and_an_own_generator(few):
    seen = []

    def augment(batch, generator):
        assert generator is not torch.default_generator
        seen.append(len(batch))
        return torch.zeros_like(batch)

    fit(small_net(), *few, epochs=1, batch_size=64, augment=augment, seed=0)
    assert seen == [64, 36]


def test_every_epoch_shows_every_image_once_in_a_new_order(few):
    images, labels = few
    marked = torch.zeros_like(images) + torch.arange(100.0)[:, None, None, None]
    seen = []

    def augment(batch, generator):
        seen.extend(batch[:, 0, 0, 0].long().tolist())
        return batch / 100

    fit(small_net(), marked, labels, epochs=2, batch_size=64, augment=augment, seed=0)
    first, second = seen[:100], seen[100:]
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second
    assert first != sorted(first)


def test_a_loss_that_explodes_is_named_with_its_epoch_and_rate(few):
    with pytest.raises(ProxyError, match=r"became (nan|inf) in epoch \d of 5, at lr=1e\+15.*smaller lr"):
        fit(small_net(norm="none"), *few, epochs=5, lr=1e15, batch_size=10, seed=0)


def test_exploded_weights_are_not_saved(few, tmp_path):
    file = tmp_path / "c.pt"
    images, labels = few
    with pytest.raises(ProxyError, match="epoch 1 of 2"):
        fit(small_net(), images * math.nan, labels, epochs=2, seed=0, checkpoint=file)
    assert list(tmp_path.iterdir()) == []


def test_one_label_for_each_image(few):
    with pytest.raises(InputError, match="got 100 images and 101 labels"):
        fit(small_net(), few[0], torch.zeros(101, dtype=torch.int64), epochs=1, seed=0)


# ---- checkpoints


@pytest.mark.parametrize("schedule", ["step", "cosine"])
@pytest.mark.parametrize("make", [small_net, net_with_dropout])
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_an_interrupted_training_ends_at_the_very_same_weights(few, tmp_path, make, stop, schedule):
    file = tmp_path / "runs" / "fit.pt"
    settings = {"epochs": 4, "batch_size": 32, "augment": ShiftAndFlip(1, True), "seed": 5, "schedule": schedule}
    expected = weights(fit(make(), *few, **settings))
    with pytest.raises(InterruptError):
        fit(make(), *few, **settings, checkpoint=file, on_epoch=interrupt_after(stop))
    assert [entry.name for entry in file.parent.iterdir()] == ["fit.pt"]
    told = []
    resumed = fit(make(), *few, **settings, checkpoint=file, on_epoch=lambda done, _: told.append(done))
    assert told == list(range(stop + 1, 5))
    assert same(expected, weights(resumed))
    assert not file.exists()


def interrupted(few, file, **changed):
    settings = {"epochs": 3, "seed": 0, "augment": ShiftAndFlip(1, True)} | changed
    with pytest.raises(InterruptError):
        fit(small_net(), *few, **settings, checkpoint=file, on_epoch=interrupt_after(1))


@pytest.mark.parametrize(
    "changed",
    [
        {"epochs": 4},
        {"seed": 1},
        {"lr": 0.02},
        {"momentum": 0.8},
        {"weight_decay": 0.0},
        {"batch_size": 10},
        {"schedule": "cosine"},
        {"augment": None},
        {"augment": ShiftAndFlip(2, True)},
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_and_kept(few, tmp_path, changed):
    file = tmp_path / "fit.pt"
    interrupted(few, file)
    before = file.read_bytes()
    with pytest.raises(ProxyError, match=r"fit.pt is of a training with other arguments.*delete it"):
        fit(
            small_net(),
            *few,
            **({"epochs": 3, "seed": 0, "augment": ShiftAndFlip(1, True)} | changed),
            checkpoint=file,
        )
    assert file.read_bytes() == before


def test_a_checkpoint_of_other_data_or_another_network_is_refused(few, tmp_path):
    file = tmp_path / "fit.pt"
    settings = {"epochs": 3, "seed": 0, "augment": ShiftAndFlip(1, True), "checkpoint": file}
    images, labels = few
    interrupted(few, file)
    for net, pictures, targets in (
        (small_net(seed=1), images, labels),
        (small_net(width=8), images, labels),
        (small_net(), images + 0.1, labels),
        (small_net(), images, labels.flip(0)),
    ):
        with pytest.raises(ProxyError, match="other arguments"):
            fit(net, pictures, targets, **settings)


def test_a_function_of_the_host_can_be_the_augmentation_of_a_resumed_training(few, tmp_path):
    class Mirror:
        def __call__(self, batch, generator):
            return batch.flip(-1)

    file = tmp_path / "fit.pt"
    interrupted(few, file, augment=Mirror())
    fit(small_net(), *few, epochs=3, seed=0, augment=Mirror(), checkpoint=file)  # another object of the same kind
    interrupted(few, file, augment=lambda batch, generator: batch)
    with pytest.raises(ProxyError, match="other arguments"):
        fit(small_net(), *few, epochs=3, seed=0, augment=Mirror(), checkpoint=file)


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_damaged_checkpoint_is_refused(few, tmp_path, content):
    file = tmp_path / "fit.pt"
    interrupted(few, file)
    file.write_bytes(file.read_bytes()[:-200] if content is None else content)
    with pytest.raises(ProxyError, match=r"fit.pt' cannot be read.*Delete it"):
        fit(small_net(), *few, epochs=3, seed=0, augment=ShiftAndFlip(1, True), checkpoint=file)


def test_a_checkpoint_never_runs_code(few, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    file = tmp_path / "fit.pt"
    torch.save({"identity": Trap()}, file)
    with pytest.raises(ProxyError, match="cannot be read"):
        fit(small_net(), *few, epochs=3, seed=0, checkpoint=file)
    assert not (tmp_path / "sprung").exists()


def test_a_save_that_fails_leaves_the_last_checkpoint_whole(few, tmp_path, monkeypatch):
    file = tmp_path / "fit.pt"
    settings = {"epochs": 3, "seed": 0, "checkpoint": file}
    expected = weights(fit(small_net(), *few, epochs=3, seed=0))
    write, written = Path.write_bytes, []

    def fail_in_the_second_epoch(path, content):
        written.append(path)
        if len(written) == 2:
            write(path, content[:100])
            raise OSError("the disk is full")
        write(path, content)

    monkeypatch.setattr(Path, "write_bytes", fail_in_the_second_epoch)
    with pytest.raises(OSError, match="disk is full"):
        fit(small_net(), *few, **settings)
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["fit.pt"]
    assert same(expected, weights(fit(small_net(), *few, **settings)))


def kept_after_one_epoch(few, tmp_path):
    file = tmp_path / "fit.pt"

    def stop(done, loss):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(small_net(), *few, epochs=2, seed=0, checkpoint=file, on_epoch=stop)
    return file


def test_a_flipped_bit_in_a_checkpoint_is_noticed_or_changes_nothing(few, tmp_path):
    file = kept_after_one_epoch(few, tmp_path)
    whole, expected, refused = file.read_bytes(), weights(fit(small_net(), *few, epochs=2, seed=0)), 0
    for at in range(0, len(whole), len(whole) // 50):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            found = weights(fit(small_net(), *few, epochs=2, seed=0, checkpoint=file))
        except ProxyError as error:
            refused += bool(re.search(r"fit\.pt' cannot be read.*Delete it", str(error)))
        else:
            assert same(expected, found), "a bit that no reader looks at"
    assert refused > 25


# ---- accuracy


def test_accuracy_counts_the_right_ones_in_eval_mode_and_restores_every_mode(digits):
    net = net_with_dropout()
    net[1].eval()
    modes = [module.training for module in net.modules()]
    statistics = net[1].running_mean.clone()
    images, labels = digits.test_images[:100], digits.test_labels[:100]
    measured = accuracy(net, images, labels)
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(net[1].running_mean, statistics)
    net.eval()
    found = net(images).argmax(1)
    assert measured == int((found == labels).sum()) / 100
    assert accuracy(net, images, net(images).argmax(1)) == 1.0


def test_accuracy_restores_the_mode_when_the_network_fails(digits):
    net = small_net().train()
    with pytest.raises(RuntimeError):
        accuracy(net, torch.zeros(3, 2, 8, 8), torch.zeros(3, dtype=torch.int64))
    assert net.training


def test_accuracy_refuses_what_it_cannot_count():
    with pytest.raises(InputError, match=r"labels of shape \(3, 10\)"):
        accuracy(small_net(), torch.zeros(3, 1, 8, 8), torch.zeros(3, 10))


# ---- augmentation


def test_shift_and_flip_gives_each_image_one_of_its_possible_views():
    images = torch.arange(1.0, 2 * 3 * 4 * 5 + 1).reshape(2, 3, 4, 5).repeat(200, 1, 1, 1)
    views = ShiftAndFlip(1, True)(images, torch.Generator().manual_seed(0))
    assert views.shape == images.shape
    counts = torch.zeros(2, 2, 3, 3)
    for index, view in enumerate(views):
        matches = []
        for mirrored in (0, 1):
            image = images[index].flip(-1) if mirrored else images[index]
            padded = nn.functional.pad(image, [1, 1, 1, 1])
            for top in range(3):
                for left in range(3):
                    if torch.equal(view, padded[:, top : top + 4, left : left + 5]):
                        matches.append((index % 2, mirrored, top, left))
        assert len(matches) == 1
        counts[matches[0]] += 1
    # 400 views over 2 images x 18 views: every one occurs, none much too often
    assert counts.min() >= 2
    assert counts.max() <= 30


def test_shift_and_flip_without_flip_or_shift():
    images = torch.rand(50, 1, 4, 4)
    assert torch.equal(ShiftAndFlip(0, False)(images, torch.Generator()), images)
    views = ShiftAndFlip(0, True)(images, torch.Generator().manual_seed(0))
    mirrored = (views == images.flip(-1)).flatten(1).all(1)
    kept = (views == images).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 10 < mirrored.sum() < 40


def test_shift_and_flip_hands_gradients_on():
    images = torch.rand(4, 1, 4, 4, requires_grad=True)
    ShiftAndFlip(0, True)(images, torch.Generator().manual_seed(0)).sum().backward()
    assert torch.equal(images.grad, torch.ones_like(images))


# ---- on a device


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_a_cuda_device_leaves_its_random_state_alone(digits, few):
    images, labels = few
    before = torch.get_rng_state(), torch.cuda.get_rng_state()
    view = ShiftAndFlip(1, True)
    fit(net_with_dropout().cuda(), images, labels, epochs=2, augment=view, seed=0)
    net = fit(small_net().cuda(), images, labels, epochs=20, augment=view, seed=0)
    assert accuracy(net, digits.test_images, digits.test_labels) > 0.5
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], torch.cuda.get_rng_state())
    on_cpu = view(images, torch.Generator().manual_seed(0))
    assert torch.equal(view(images.cuda(), torch.Generator().manual_seed(0)).cpu(), on_cpu)


def _problem(count: int) -> tuple[Tensor, Tensor]:
    """Images of two classes that differ in their mean, and their labels."""
    generator = torch.Generator().manual_seed(4)
    labels = torch.arange(count) % 2
    return torch.randn(count, 1, 4, 4, generator=generator) + 0.4 * labels[:, None, None, None], labels


def test_cycles_are_counted_in_steps() -> None:
    """A small data set is passed more often; the first cycle is run whatever it takes."""
    assert cycles(50_000, 128) == [1, 2, 4]
    assert cycles(500, 128) == [25, 50, 100, 200]
    assert cycles(10_000_000, 128) == [1]
    for images in (1, 7, 1000, 60_000):
        assert sum(cycles(images, 128)) * -(-images // 128) <= MOST_STEPS


@pytest.mark.numerical
def test_training_stops_when_certainty_no_longer_rises(tmp_path: Path) -> None:
    """A linear network learns this problem at once, so that the second cycle brings nothing, and no third is run.

    The result is that of the two cycles as `fit` runs them; an interrupted training ends with the same weights.
    """
    images, labels = _problem(400)
    how: dict[str, Any] = {"batch_size": 40, "lr": 0.1}

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))

    def run(net: nn.Module, name: str, on_epoch: Any) -> int:
        test = images, labels
        return fit_until_steady(net, images, labels, test, checkpoint=tmp_path / name, on_epoch=on_epoch, seed=1, **how)

    epochs: list[int] = []
    trained = network()
    done = run(trained, "a", lambda epoch, _: epochs.append(epoch))
    first, second, *_ = cycles(400, 40)
    assert done == first + second
    assert epochs == list(range(1, done + 1))
    assert not list(tmp_path.iterdir())
    expected = network()
    seeds = torch.randint(2**62, (2,), generator=torch.Generator().manual_seed(1)).tolist()
    assert len(set(seeds)) == 2, "cycles do not begin with the same order of images"
    for length, seed in zip((first, second), seeds, strict=True):
        fit(expected, images, labels, epochs=length, schedule="cosine", seed=seed, **how)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), expected.parameters(), strict=True))

    def stop(epoch: int, loss: float) -> None:
        if epoch == first + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(network(), "b", stop)
    again = network()
    run(again, "b", lambda *_: None)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), trained.parameters(), strict=True))


def test_a_slow_start_is_not_the_end(tmp_path: Path) -> None:
    """Where probabilities hardly move yet, but more images are recognised after every cycle, training goes on."""
    images, labels = _problem(400)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        network[1].weight.zero_()[0] += 0.01
        network[1].bias.zero_()
    done = fit_until_steady(
        network, images, labels, (images, labels), batch_size=40, lr=2e-5, seed=1, checkpoint=tmp_path / "a",
        on_epoch=lambda *_: None,
    )  # fmt: skip
    assert done == sum(cycles(400, 40))
    assert accuracy(network, images, labels) > 0.5


def test_certainty_is_the_mean_probability_of_the_true_class() -> None:
    images, labels = _problem(10)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    expected = [float(p[label]) for p, label in zip(network(images).detach().softmax(1), labels, strict=True)]
    assert abs(certainty(network, images, labels) - sum(expected) / 10) < 1e-6
