"""Sets as files, what a pool measures of them, and the tables that show it."""

from __future__ import annotations

import io
import os
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import ddplug
from ddplug import InputSpace, ProxyPool
from ddplug.datasets.synthetic import SyntheticSet, load_set, save_set
from ddplug.errors import DataError, InputError, ProxyError
from ddplug.lab.measure import Measurement, measure
from ddplug.lab.tables import measurement_table, measurement_verdict
from ddplug.proxies.pool import PoolInfo
from ddplug.terms.separation import class_separation, cmi_per_class

pytestmark = pytest.mark.numerical

SPACE = InputSpace.normalized((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def pictures(count: int = 6, channels: int = 3, size: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


class Touch:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


# --- sets


def test_a_set_comes_back_bit_for_bit(tmp_path: Path) -> None:
    images, labels = pictures().requires_grad_(), torch.tensor([0, 0, 1, 1, 2, 2])
    save_set(SyntheticSet(images, labels, SPACE, "mine"), tmp_path / "new" / "set.pt")
    loaded = load_set(str(tmp_path / "new" / "set.pt"))
    assert torch.equal(loaded.images, images)
    assert not loaded.images.requires_grad
    assert torch.equal(loaded.labels, labels)
    assert (loaded.space, loaded.dataset) == (SPACE, "mine")
    assert os.listdir(tmp_path / "new") == ["set.pt"]


def test_a_set_may_not_know_its_space_and_data_set(tmp_path: Path) -> None:
    save_set(SyntheticSet(pictures(2), torch.tensor([0, 1])), tmp_path / "set.pt")
    loaded = load_set(tmp_path / "set.pt")
    assert (loaded.space, loaded.dataset) == (None, None)


def test_saving_again_replaces_the_set(tmp_path: Path) -> None:
    for seed in (0, 1):
        save_set(SyntheticSet(pictures(2, seed=seed), torch.tensor([0, 1])), tmp_path / "set.pt")
    assert torch.equal(load_set(tmp_path / "set.pt").images, pictures(2, seed=1))


def test_a_save_that_fails_leaves_the_old_set_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, content: bytes) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    save_set(SyntheticSet(pictures(2), torch.tensor([0, 1])), tmp_path / "set.pt")
    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(KeyboardInterrupt):
        save_set(SyntheticSet(pictures(2, seed=1), torch.tensor([0, 1])), tmp_path / "set.pt")
    assert torch.equal(load_set(tmp_path / "set.pt").images, pictures(2))
    assert os.listdir(tmp_path) == ["set.pt"]


X, Y = pictures(2, seed=5), torch.tensor([1, 0])
OLD = [pictures(2, seed=4), torch.tensor([0, 1])]


@pytest.mark.parametrize(
    "record",
    [
        {"images": X, "labels": Y},
        {"data": [OLD, [X, Y]], "accs_all_exps": {"ConvNet": [0.5]}},
        {"data": [[X, Y]]},
        {"data": {"images": X, "labels": Y}},
        (X, Y),
        [X, Y],
        [OLD, [X, Y]],
        {"images": X.double(), "labels": Y.int(), "step": 3},
    ],
    ids=["dictionary", "DM's results", "DM's, one run", "nested", "tuple", "list", "list of runs", "other dtypes"],
)
def test_sets_of_other_people_are_understood(record: object, tmp_path: Path) -> None:
    torch.save(record, tmp_path / "set.pt")
    loaded = load_set(tmp_path / "set.pt")
    assert torch.equal(loaded.images, X)
    assert torch.equal(loaded.labels, Y)
    assert (loaded.images.dtype, loaded.labels.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize(
    "record",
    [
        X,
        {"images": X},
        {"images": X, "labels": ["cat", "dog"]},
        {"weights": X},
        {"data": []},
        {"data": [[X, Y, Y]]},
        [],
        (Y, X),
        {"images": X.flatten(1), "labels": Y},
        {"images": X, "labels": torch.tensor(1)},
        {"images": X, "labels": torch.tensor([[0.9, 0.3], [0.2, 0.8]])},
        {"images": X, "labels": torch.tensor([[1.9, -0.9], [0.2, 0.8]])},
        {"images": X, "labels": torch.tensor([[1, 1], [0, 1]])},
    ],
    ids=["images only", "no labels", "labels are names", "another dictionary", "no runs", "three things", "empty",
         "swapped", "flat images", "one label", "sums of more than 1", "negative", "integers"],
)  # fmt: skip
def test_other_content_is_refused_with_what_was_expected(record: object, tmp_path: Path) -> None:
    torch.save(record, tmp_path / "set.pt")
    with pytest.raises(DataError, match=r"set\.pt.*images.*labels"):
        load_set(tmp_path / "set.pt")


def test_probabilities_are_labels_too(tmp_path: Path) -> None:
    soft = torch.tensor([[0.3, 0.7], [1.0, 0.0]])
    torch.save({"images": X, "labels": soft.double()}, tmp_path / "set.pt")
    loaded = load_set(tmp_path / "set.pt")
    assert torch.equal(loaded.labels, soft)
    assert loaded.classes.tolist() == [1, 0]
    assert load_set_again(loaded, tmp_path).labels.tolist() == soft.tolist()


def load_set_again(synthetic: SyntheticSet, folder: Path) -> SyntheticSet:
    save_set(synthetic, folder / "again.pt")
    return load_set(folder / "again.pt")


@pytest.mark.parametrize("counts", [(3, 2), (2, 3)])
def test_images_and_labels_of_different_number(tmp_path: Path, counts: tuple[int, int]) -> None:
    torch.save({"images": pictures(counts[0]), "labels": torch.zeros(counts[1], dtype=torch.long)}, tmp_path / "set.pt")
    with pytest.raises(DataError, match=rf"have shape \({counts[1]},\), expected \({counts[0]},\)"):
        load_set(tmp_path / "set.pt")


@pytest.mark.parametrize("space", ["unit", 3, {"kind": "unheard of"}, {"kind": "normalized"}], ids=str)
def test_a_space_that_is_none_of_ours_is_one_of_our_errors(tmp_path: Path, space: object) -> None:
    torch.save({"images": X, "labels": Y, "space": space}, tmp_path / "set.pt")
    with pytest.raises(ddplug.DDPlugError):
        load_set(tmp_path / "set.pt")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 40, b"hello world, this is no tensor", b"PK\x03\x04 and no zip", bytes(range(256)), b"(("],
    ids=["empty", "zeros", "text", "half a zip", "all bytes", "half a pickle"],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "set.pt").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        load_set(tmp_path / "set.pt")


def test_a_truncated_set_is_refused(tmp_path: Path) -> None:
    save_set(SyntheticSet(X, Y), tmp_path / "set.pt")
    content = (tmp_path / "set.pt").read_bytes()
    for length in (10, len(content) // 2, len(content) - 100):
        (tmp_path / "set.pt").write_bytes(content[:length])
        with pytest.raises(DataError, match="cannot be read"):
            load_set(tmp_path / "set.pt")


@pytest.mark.parametrize("way", ["torch.save", "pickle"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_set_is_not_run_and_not_advised(tmp_path: Path, way: str) -> None:
    record = {"images": X, "labels": Y, "more": Touch(tmp_path / "ran")}
    if way == "pickle":
        (tmp_path / "set.pt").write_bytes(pickle.dumps(record))
    else:
        torch.save(record, tmp_path / "set.pt")
    with pytest.raises(DataError, match="cannot be read") as caught:
        load_set(tmp_path / "set.pt")
    assert not (tmp_path / "ran").exists()
    assert "weights_only" not in str(caught.value)  # torch's own text says how to run it


def test_a_missing_set(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(DataError, match="no synthetic set at"):
            load_set(path)


# --- measuring


@pytest.fixture
def three(network: Callable[..., nn.Module]) -> ProxyPool:
    return ProxyPool.from_modules([network(seed) for seed in range(3)])


@pytest.mark.parametrize("separation", ["cross_entropy", "kl", "centroid_kl"])
@pytest.mark.parametrize(("space", "temperature"), [("feature", 1.0), ("logit", 0.5)])
def test_a_measurement_is_the_mean_over_proxies(
    three: ProxyPool, batch: tuple[Tensor, Tensor], separation: Any, space: Any, temperature: float
) -> None:
    x, y = batch
    features = [proxy(x, space) for proxy in three]
    values = [ddplug.cmi(f, y, temperature=temperature).item() for f in features]
    gammas = [class_separation(f, y, kind=separation, temperature=temperature).item() for f in features]
    classes = torch.stack([cmi_per_class(f, y, temperature=temperature) for f in features]).mean(0)
    mean = sum(values) / 3
    std = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5

    result = measure(three, x, y, representation=space, temperature=temperature, separation=separation)
    assert result.cmi == pytest.approx(mean, rel=1e-12)
    assert result.cmi_std == pytest.approx(std, rel=1e-9)
    assert result.separation == pytest.approx(sum(gammas) / 3, rel=1e-12)
    assert result.ncmi == pytest.approx(sum(v / g for v, g in zip(values, gammas, strict=True)) / 3, rel=1e-12)
    assert result.per_class == pytest.approx(dict(enumerate(classes.tolist())), rel=1e-12)
    assert (result.images, result.proxies, result.representation, result.temperature) == (12, 3, space, temperature)
    assert result.separation_name == separation


def test_tight_classes_are_measured_to_their_digits(network: Callable[..., nn.Module]) -> None:
    """Features of size 1 that differ by 1e-4 have a CMI of some 1e-9, far below the rounding of float32."""
    y = torch.arange(4).repeat_interleave(5)
    x = pictures(4)[y] + 1e-4 * pictures(20, seed=1)
    net = network(0).eval()
    with torch.no_grad():
        features = ProxyPool.from_modules(net).proxies[0](x, "logit").double()
    log_p = features.log_softmax(1)
    q = torch.stack([log_p[y == label].exp().mean(0) for label in range(4)])[y]
    expected = (log_p.exp() * (log_p - q.log())).sum(1).mean().item()
    assert 0 < expected < 1e-7
    assert measure(net, x, y).cmi == pytest.approx(expected, rel=1e-6)


def test_labels_may_be_any_class_numbers(three: ProxyPool, batch: tuple[Tensor, Tensor]) -> None:
    renamed = measure(three, batch[0], torch.tensor([40, 7, 900])[batch[1]])
    expected = measure(three, *batch)
    # Classes are summed in another order: up to 12 images of 12 features, each sum three times its result in size.
    bound = 3 * 12 * 12 * torch.finfo(torch.float64).eps
    assert renamed.cmi == pytest.approx(expected.cmi, rel=bound)
    assert list(renamed.per_class) == [7, 40, 900]
    assert renamed.per_class[900] == pytest.approx(expected.per_class[2], rel=bound)


def test_one_class_has_no_separation(three: ProxyPool, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch[0], torch.full((12,), 4)
    result = measure(three, x, y)
    assert (result.separation, result.ncmi) == (None, None)
    assert list(result.per_class) == [4]
    assert result.cmi == pytest.approx(result.per_class[4], rel=1e-12)
    assert result.cmi == pytest.approx(sum(ddplug.cmi(p(x, "logit"), y).item() for p in three) / 3, rel=1e-12)


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 0]], ids=["several classes", "one class"])
@pytest.mark.parametrize(
    "setting", [{"temperature": 0.0}, {"temperature": -1.0}, {"separation": "x"}, {"representation": "x"}], ids=str
)
def test_settings_that_mean_nothing_are_refused(
    three: ProxyPool, batch: tuple[Tensor, Tensor], labels: list[int], setting: dict[str, Any]
) -> None:
    with pytest.raises(InputError):
        measure(three, batch[0], torch.tensor(labels).repeat(4), **setting)


def test_one_image_per_class_is_measured_without_a_warning(three: ProxyPool, batch: tuple[Tensor, Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = measure(three, batch[0][:3], torch.tensor([0, 1, 2]))
    assert (result.cmi, result.cmi_std, result.ncmi) == pytest.approx((0, 0, 0), abs=1e-12)
    assert result.separation is not None
    assert result.separation > 0
    assert measure(three, batch[0][:1], torch.tensor([3])).per_class == pytest.approx({3: 0.0}, abs=1e-12)


def test_one_proxy_has_no_spread(pool: ProxyPool, batch: tuple[Tensor, Tensor]) -> None:
    assert measure(pool, *batch).cmi_std == 0.0


def test_the_images_are_converted_to_the_pools_space(
    network: Callable[..., nn.Module], batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    pool = ProxyPool.from_modules(network(0), info=PoolInfo(space=SPACE))
    by_hand = ddplug.cmi(pool.proxies[0](SPACE.from_unit(x), "logit"), y).item()
    assert measure(pool, x, y, input_space=InputSpace.unit(3)).cmi == pytest.approx(by_hand, rel=1e-12)
    assert measure(pool, x, y).cmi != pytest.approx(by_hand, rel=1e-3)


def test_it_is_the_number_of_the_history(pool: ProxyPool, batch: tuple[Tensor, Tensor]) -> None:
    """Of the same images under the same proxy, without another option."""
    x, y = batch[0].clone().requires_grad_(), batch[1]
    regularizer = ddplug.Regularizer(pool, announce=lambda _: None)
    regularizer(x, y).square().sum().backward()
    assert regularizer.history.values == pytest.approx([measure(pool, *batch).cmi], rel=1e-12)


def test_anything_that_is_a_pool_will_do(network: Callable[..., nn.Module], batch: tuple[Tensor, Tensor]) -> None:
    assert measure([network(0)], *batch) == measure(ProxyPool.from_modules(network(0)), *batch)


def test_measuring_leaves_the_random_state_and_the_images_alone(
    three: ProxyPool, batch: tuple[Tensor, Tensor], untouched: None
) -> None:
    x = batch[0].clone().requires_grad_()
    measure(three, x, batch[1])
    assert x.grad is None
    assert torch.equal(x, batch[0])


def test_what_cannot_be_measured(three: ProxyPool, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    with pytest.raises(InputError, match="one label per image"):
        measure(three, x, y[:-1])
    with pytest.raises(InputError, match="empty batch"):
        measure(three, x[:0], y[:0])
    with pytest.raises(InputError, match="floating-point"):
        measure(three, x[0], y[:3])
    with pytest.raises(ProxyError, match=r"'Sequential-0'.*not finite"):
        measure(three, torch.full_like(x, torch.nan), y)


def test_a_measurement_as_json(three: ProxyPool, batch: tuple[Tensor, Tensor]) -> None:
    result = measure(three, *batch)
    assert Measurement(**result.to_json()) == result


# --- tables


def text(table: object) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(table)
    return out.getvalue()


RESULT = Measurement(
    images=20, proxies=3, representation="logit", temperature=0.5, cmi=0.125, cmi_std=0.03125, separation_name="kl",
    separation=2.5, ncmi=0.0625, per_class={0: 0.111111, 3: 0.222222}, recognised=0.75,
    confidence=0.5,
)  # fmt: skip


def test_the_table_holds_every_number() -> None:
    shown = text(measurement_table(RESULT, "my set"))
    words = " ".join(shown.split())
    for expected in ("my set", "0.125000 ± 0.031250", "(kl)", "2.500000", "0.062500", "0.111111", "0.222222",
                     "20 images", "3 proxies", "logits", "T = 0.5"):  # fmt: skip
        assert expected in words
    rows = {line.split()[1]: line for line in shown.splitlines() if "0.1111" in line or "0.2222" in line}
    assert "0.111111" in rows["0"]
    assert "0.222222" in rows["3"]


def test_the_table_names_the_classes_it_knows() -> None:
    shown = text(measurement_table(RESULT, "", ("plane", "car", "bird")))
    assert "plane" in shown
    assert "bird" not in shown
    assert [line.split()[1] for line in shown.splitlines() if "0.222222" in line] == ["3"]


def test_the_table_of_one_class_leaves_the_separation_out() -> None:
    one = Measurement(5, 1, "feature", 1.0, 0.5, 0.0, "cross_entropy", None, None, {0: 0.5}, None, None)
    assert "NCMI" not in text(measurement_table(one, ""))


def test_the_verdict_has_the_interval_over_proxies_and_what_they_recognise() -> None:
    """4.302653 * 0.03125 / sqrt(3) = 0.077629."""
    recognised = "The proxies recognise 75.0% of its images; the mean probability of an image's class is 0.50."
    said = measurement_verdict(RESULT, "my set")
    assert said == f"CMI of my set: 0.125000 nats ± 0.077629 (95 % interval over 3 proxies). {recognised}"
    alone = replace(RESULT, proxies=1, recognised=None, confidence=None)
    assert measurement_verdict(alone, "my set") == "CMI of my set: 0.125000 nats."


def test_recognised_images_are_counted_over_the_proxies() -> None:
    images, labels = pictures(20), torch.arange(20) % 3
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double() for _ in range(2)]
    result = measure(ProxyPool.from_modules(nets), images.double(), labels)
    p = torch.stack([net(images.double()).softmax(1) for net in nets])
    assert result.recognised == pytest.approx((p.argmax(2) == labels).double().mean().item(), rel=1e-12)
    assert result.confidence == pytest.approx(p[:, torch.arange(20), labels].mean().item(), rel=1e-12)
    assert measure(ProxyPool.from_modules(nets), images.double(), labels + 1).recognised is None
