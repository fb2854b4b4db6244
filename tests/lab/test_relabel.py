"""Soft labels from teachers, any term measured of a set, and the commands for both."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from ddplug import DDPlugWarning, InputSpace, ProxyPool, Regularizer, datasets
from ddplug.cli import app as cli
from ddplug.datasets.images import ImageData, random_real
from ddplug.datasets.spaces import NORMALIZATIONS
from ddplug.datasets.synthetic import SyntheticSet, load_set, save_set
from ddplug.datasets.zca import ZCASpace
from ddplug.errors import InputError, ProxyError
from ddplug.lab.evaluate import evaluate
from ddplug.lab.measure import REAL_PER_CLASS, measure, measure_term, some_real
from ddplug.lab.relabel import relabel
from ddplug.proxies.pretrain import pretrain
from ddplug.terms import Real, make
from ddplug.terms.base import group

pytestmark = pytest.mark.filterwarnings("ignore:proxy .* is right on")

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return datasets.load("digits")


@pytest.fixture(scope="module")
def folder(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two teachers that have learned a little."""
    path = tmp_path_factory.mktemp("relabel") / "pool"
    options = {"width": 8, "depth": 2}
    pretrain(digits, path, count=2, epochs=1, lr=0.2, batch_size=50, options=options, progress=False)
    return path


@pytest.fixture
def pool(folder: Path) -> ProxyPool:
    return ProxyPool.load(folder)


@pytest.fixture
def few(digits: ImageData) -> SyntheticSet:
    """Three real digits of each class."""
    images, labels = random_real(digits, 3, torch.Generator().manual_seed(0))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    return SyntheticSet(images[order], labels[order], digits.space, "digits")


def expected(pool: ProxyPool, images: torch.Tensor, temperature: float) -> torch.Tensor:
    with torch.no_grad():
        said = [proxy.network(images).double() / temperature for proxy in pool]
    parts = [each.exp() / each.exp().sum(1, keepdim=True) for each in said]
    return (parts[0] + parts[1]) / 2


@pytest.mark.numerical
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_labels_are_the_teachers_mean_probabilities(pool: ProxyPool, few: SyntheticSet, temperature: float) -> None:
    made = relabel(few, pool, temperature=temperature, batch_size=7)
    assert made.labels.dtype == torch.float32
    assert not made.labels.requires_grad
    torch.testing.assert_close(made.labels.double(), expected(pool, few.images, temperature), rtol=1e-4, atol=1e-6)
    assert made.labels.double().sum(1).tolist() == pytest.approx([1.0] * 30, abs=1e-6)
    assert torch.equal(made.classes, few.labels), "also of an image that teachers take for another class's"
    assert (made.labels.argmax(1) != few.labels).any()
    assert torch.equal(made.images, few.images)
    assert (made.space, made.dataset) == (few.space, few.dataset)


def test_a_set_in_another_space_is_converted(pool: ProxyPool, few: SyntheticSet, digits: ImageData) -> None:
    unit = InputSpace.unit(1)
    other = replace(few, images=digits.space.convert(few.images, unit), space=unit)
    made = relabel(other, pool)
    torch.testing.assert_close(made.labels, relabel(few, pool).labels, rtol=1e-4, atol=1e-5)
    assert torch.equal(made.images, other.images), "in the set they stay what they are"


def test_of_a_set_that_had_soft_labels_the_classes_stay(pool: ProxyPool, few: SyntheticSet) -> None:
    once = relabel(few, pool)
    twice = relabel(once, pool, temperature=3.0)
    assert torch.equal(twice.classes, few.labels)
    assert torch.equal(twice.labels, relabel(few, pool, temperature=3.0).labels)


def test_the_file_is_judged_like_any_other(
    pool: ProxyPool, few: SyntheticSet, digits: ImageData, tmp_path: Path, untouched: None
) -> None:
    made = relabel(few, pool)
    save_set(made, tmp_path / "soft.pt")
    back = load_set(tmp_path / "soft.pt")
    assert torch.equal(back.labels, made.labels)
    assert torch.equal(back.classes, few.labels)
    how: dict[str, Any] = {"runs": 1, "epochs": 2, "batch_size": 8, "options": {"width": 8}}
    soft, hard = (evaluate(each, digits, **how) for each in (back, few))
    assert evaluate(made, digits, **how) == soft
    assert soft != hard


def test_what_is_refused(pool: ProxyPool, few: SyntheticSet, network: Callable[..., nn.Module]) -> None:
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="temperature must be > 0"):
            relabel(few, pool, temperature=wrong)
    with pytest.raises(ProxyError, match="the set was distilled from cifar10"):
        relabel(replace(few, dataset="cifar10"), pool)
    less = ProxyPool.from_modules([network(0, channels=1, size=8, classes=5).float()])
    with pytest.raises(InputError, match="images of class 9, and the teachers know 5 classes"):
        relabel(replace(few, dataset=None, space=None), less)
    with pytest.raises(InputError):
        relabel(replace(few, space=InputSpace.unit(3)), pool)


# --- what is known of a set


def test_intensities_are_not_taken_for_normalised_images(pool: ProxyPool, few: SyntheticSet, tmp_path: Path) -> None:
    """Whoever looks at a set notices that its numbers cannot be the pool's; the layer warns of the same."""
    assert few.space is not None
    unit = replace(few, images=few.space.to_unit(few.images), space=None)
    said = "run from 0 to 1, and these proxies were trained on images normalised"
    for looks in (
        lambda given: measure(pool, given.images, given.labels, input_space=given.space).cmi,
        lambda given: measure_term(make("spread"), pool, given),
        lambda given: relabel(given, pool).labels.sum().item(),
    ):
        with pytest.raises(InputError, match=said):
            looks(unit)
        assert looks(replace(unit, space=InputSpace.unit(1))) == pytest.approx(looks(few), rel=1e-4)
    save_set(unit, tmp_path / "set.pt")
    pool.save(tmp_path / "pool")
    soft = ("relabel", tmp_path / "set.pt", "--teachers", tmp_path / "pool", "--out", tmp_path / "soft.pt")
    with pytest.raises(InputError, match=said):
        run(*soft)
    run(*soft, "--input-space", "unit")
    torch.testing.assert_close(load_set(tmp_path / "soft.pt").labels, relabel(few, pool).labels, rtol=1e-4, atol=1e-5)
    assert load_set(tmp_path / "soft.pt").space == InputSpace.unit(1)


@pytest.mark.parametrize("given", ["unit", "normalized", None])
def test_bytes_are_not_taken_for_intensities(
    pool: ProxyPool, few: SyntheticSet, digits: ImageData, given: str | None
) -> None:
    """Floats up to 255, whatever is said of them: by measure, relabel, evaluate, and by a warning of the layer."""
    assert few.space is not None
    space = {"unit": InputSpace.unit(1), "normalized": few.space, None: None}[given]
    unit = few.space.to_unit(few.images)
    held = replace(few, images=255 * unit, space=space)
    looks: list[Callable[[SyntheticSet], object]] = [
        lambda some: measure(pool, some.images, some.labels, input_space=some.space),
        lambda some: measure_term(make("spread"), pool, some),
        lambda some: relabel(some, pool),
        lambda some: evaluate(some, digits, architectures=["convnet"], runs=1, epochs=1, options={"width": 8}),
    ]
    for look in looks if given is not None else looks[:-1]:
        with pytest.raises(InputError, match="up to [0-9.]+ instead of 1. Of bytes.*float.. / 255.*input_space='unit'"):
            look(held)
        look(replace(few, images=held.images.float() / 255, space=InputSpace.unit(1)))
        look(replace(few, images=6 * few.images))  # as far from [0, 1] as distilled images may be
    layer = Regularizer(pool, 1.0, input_space=space, announce=lambda _: None)
    with pytest.warns(DDPlugWarning, match="instead of 1. Of bytes"):
        layer(held.images.clone().requires_grad_() * 1, held.labels).sum().backward()
    layer.detach()


@pytest.fixture(scope="module")
def whitening(digits: ImageData) -> ZCASpace:
    return ZCASpace.fit(digits.space.to_unit(digits.train_images).clamp(0, 1))


def test_a_set_that_is_known_to_be_whitened_is_seen_so(
    pool: ProxyPool, folder: Path, few: SyntheticSet, whitening: ZCASpace, digits: ImageData, tmp_path: Path
) -> None:
    """MTT's images beside the picture of what they are without their whitening."""
    for name, held in {"images": digits.space.convert(few.images, whitening), "labels": few.labels,
                       "images_zca": few.images}.items():  # fmt: skip
        torch.save(held, tmp_path / f"{name}_best.pt")
    path = tmp_path / "images_best.pt"
    for words in (("measure", path, "--proxies", folder), ("measure", path, "--proxies", folder, "--term", "spread"),
                  ("relabel", path, "--teachers", folder, "--out", tmp_path / "soft.pt")):  # fmt: skip
        with pytest.raises(InputError, match="the set's images are zca, and these proxies .*--data"):
            run(*words)
    said = written(tmp_path, "measure", path, "--proxies", folder, "--data", "digits")
    assert said["cmi"] == pytest.approx(measure(pool, few.images, few.labels, input_space=few.space).cmi, rel=1e-3)
    for term in ("spread", "mim"):
        expected = measure_term(make(term), pool, few, digits)
        said = written(tmp_path, "measure", path, "--proxies", folder, "--data", "digits", "--term", term)
        assert said["value"] == pytest.approx(expected, rel=1e-3)
    run("relabel", path, "--teachers", folder, "--out", tmp_path / "soft.pt", "--data", "digits")
    torch.testing.assert_close(load_set(tmp_path / "soft.pt").labels, relabel(few, pool).labels, rtol=1e-3, atol=1e-4)


@pytest.mark.numerical
def test_a_pool_that_is_whitened_sees_sets_as_they_are(
    pool: ProxyPool, few: SyntheticSet, whitening: ZCASpace, digits: ImageData
) -> None:
    white = ProxyPool(pool.proxies, replace(pool.info, space=whitening))
    term = make("spread")
    expected = measure_term(term, white, few)
    own = replace(few, images=digits.space.convert(few.images, whitening), space=None, meaning="zca")
    assert measure_term(term, white, own) == pytest.approx(expected, rel=1e-4)
    plain = replace(few, space=None, meaning="normalized")
    with pytest.raises(InputError, match="the set's images are normalized, and these proxies .* ZCA-whitened"):
        measure_term(term, white, plain)
    with pytest.raises(InputError, match="the set's images are normalized"):
        relabel(plain, white)
    assert measure_term(term, white, plain, digits) == pytest.approx(expected, rel=1e-4)
    # The constants of a known data set are its normalisation.
    known = ProxyPool(pool.proxies, replace(white.info, dataset="mnist"))
    standard = replace(plain, images=digits.space.convert(few.images, NORMALIZATIONS["mnist"]), dataset=None)
    assert measure_term(term, known, standard) == pytest.approx(expected, rel=1e-4)


# --- any term


@pytest.mark.numerical
@pytest.mark.parametrize("name", ["cmi", "spread", "mim", "cmi-0.5*covariance"])
def test_a_term_of_a_set_is_the_mean_over_proxies(
    pool: ProxyPool, few: SyntheticSet, digits: ImageData, name: str
) -> None:
    term, real = make(name), some_real(digits, digits.space)
    values = []
    with torch.no_grad():
        for proxy in pool:
            theirs = Real(proxy(real[0], "logit").double(), group(real[1], len(real[1]), "cpu"))
            values.append(term.against(theirs)(proxy(few.images, "logit").double(), group(few.labels, 30, "cpu")))
    found = measure_term(term, pool, few, digits)
    # Features of batches of another size differ in their last digits.
    assert found == pytest.approx(((values[0] + values[1]) / 2).item(), rel=1e-4)
    if name == "cmi":
        assert found == pytest.approx(measure(pool, few.images, few.labels, input_space=few.space).cmi, rel=1e-5)


def test_a_term_is_measured_on_what_it_is_of(pool: ProxyPool, few: SyntheticSet) -> None:
    with torch.no_grad():
        losses = [nn.functional.cross_entropy(proxy.network(few.images), few.labels) for proxy in pool]
    found = measure_term(make("proxy_ce"), pool, few, representation="feature")
    assert found == pytest.approx((losses[0] + losses[1]).item() / 2, rel=1e-5)
    logits = measure_term(make("cmi"), pool, few, representation="logit")
    by_hand = measure(pool, few.images, few.labels, representation="logit", input_space=few.space).cmi
    assert logits == pytest.approx(by_hand, rel=1e-5)


def test_real_images_are_the_first_of_every_class_in_the_sets_space(digits: ImageData) -> None:
    unit = InputSpace.unit(1)
    images, labels = some_real(digits, unit)
    assert labels.bincount().tolist() == [min(REAL_PER_CLASS, int((digits.train_labels == c).sum())) for c in range(10)]
    for c in (0, 7):
        own = digits.train_images[digits.train_labels == c][:REAL_PER_CLASS]
        torch.testing.assert_close(images[labels == c], digits.space.convert(own, unit))
    sparse = replace(digits, train_images=digits.train_images[:5], train_labels=torch.tensor([3, 3, 9, 0, 3]))
    assert some_real(sparse, digits.space)[1].tolist() == [0, 3, 3, 3, 9]


def test_a_term_that_compares_needs_data(pool: ProxyPool, few: SyntheticSet, digits: ImageData) -> None:
    with pytest.raises(InputError, match="the term 'mim' compares with real images, and has none"):
        measure_term(make("mim"), pool, few)
    with pytest.raises(InputError, match="unknown representation"):
        measure_term(make("cmi"), pool, few, representation="pixel")
    keep = digits.train_labels != 4
    lacking = replace(digits, train_images=digits.train_images[keep], train_labels=digits.train_labels[keep])
    with pytest.raises(InputError, match="no real images of class 4"):
        measure_term(make("mim"), pool, few, lacking)


# --- commands


def run(*arguments: object) -> str:
    words = [str(argument) for argument in arguments]
    result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(cli.app, [*words, "--device", "cpu"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def written(folder: Path, *arguments: object) -> Any:
    """The content of the file that `ddplug measure` writes."""
    run(*arguments, "--json", folder / "made.json")
    content = json.loads((folder / "made.json").read_text())
    del content["sha256"]
    return content


def test_relabelling_by_command(pool: ProxyPool, folder: Path, few: SyntheticSet, tmp_path: Path) -> None:
    save_set(few, tmp_path / "set.pt")
    said = run("relabel", tmp_path / "set.pt", "--teachers", folder, "--out", tmp_path / "soft.pt", "--temperature", 2)
    made = load_set(tmp_path / "soft.pt")
    torch.testing.assert_close(made.labels, relabel(few, pool, temperature=2.0).labels)
    right = (made.labels.argmax(1) == few.labels).double().mean().item()
    entropy = torch.special.entr(made.labels.double()).sum(1).mean().item()
    assert f"soft.pt: 30 images; the teachers' first choice is the image's own class for {right:.1%}" in said
    assert f"mean entropy {entropy:.3f} nats" in said
    judged = run("evaluate", tmp_path / "soft.pt", "--data", "digits", "--runs", 1, "--epochs", 1)
    assert "%" in judged


def test_measuring_a_term_by_command(
    pool: ProxyPool, folder: Path, few: SyntheticSet, digits: ImageData, tmp_path: Path
) -> None:
    save_set(few, tmp_path / "set.pt")
    given = ("measure", tmp_path / "set.pt", "--proxies", folder)
    spread = measure_term(make("spread", temperature=2.0), pool, few)
    said = written(tmp_path, *given, "--term", "spread", "--temperature", 2)
    assert said == {"term": "spread", "value": pytest.approx(spread, rel=1e-6), "unit": "nats"}
    assert f"spread {spread:.4g} nats" in run(*given, "--term", "spread", "--temperature", 2)
    mim = measure_term(make("mim"), pool, few, digits, representation="logit")
    said = written(tmp_path, *given, "--term", "mim", "--data", "digits", "--representation", "logit")
    assert said["value"] == pytest.approx(mim, rel=1e-6)
    minus = written(tmp_path, *given, "--term=-cmi")
    assert minus["value"] == pytest.approx(-measure_term(make("cmi"), pool, few), rel=1e-6)
    of_real = written(tmp_path, "measure", "--data", "digits", "--proxies", folder, "--term", "centralisation")
    test = SyntheticSet(digits.test_images, digits.test_labels, digits.space, "digits")
    assert of_real["value"] == pytest.approx(measure_term(make("centralisation"), pool, test), rel=1e-6)
    for wrong, message in (
        (("--term", "mim"), "MIM loss compares with real images: name their data set with --data"),
        (("--term", "cim"), "unknown term 'cim'"),
    ):
        with pytest.raises(InputError, match=message):
            run(*given, *wrong)


def test_pretraining_by_command_says_what_fine_tuning_did(folder: Path, tmp_path: Path) -> None:
    said = run("pretrain", tmp_path / "tuned", "--mcmi", 0.3, "--mcmi-epochs", 1, "--start", folder, "--width", 8)
    for proxy in ProxyPool.load(tmp_path / "tuned"):
        record = proxy.record
        assert f"{record['cmi']:.4g} nats" in said
        assert f"{record['before']['cmi']:.4g} nats" in said
        assert f"{record['before']['test_accuracy']:.2%}" in said
        assert f"{record['test_accuracy']:.2%}" in said
