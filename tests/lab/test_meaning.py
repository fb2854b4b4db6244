"""The meaning of a set's images, against what their pixels look like."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ddplug.datasets.images import ImageData, as_image_data, load, random_real
from ddplug.datasets.spaces import InputSpace
from ddplug.datasets.synthetic import SyntheticSet, load_set, save_set
from ddplug.datasets.zca import ZCASpace
from ddplug.errors import DDPlugWarning
from ddplug.lab import meaning
from ddplug.lab.evaluate import judged
from ddplug.lab.judge import Judge
from ddplug.lab.measure import measure_term
from ddplug.lab.plan import Settings
from ddplug.lab.relabel import relabel
from ddplug.networks.zoo import build
from ddplug.proxies.pool import PoolInfo, ProxyPool
from ddplug.proxies.proxy import Proxy
from ddplug.terms import make


@pytest.fixture(scope="module")
def shapes() -> ImageData:
    """Grey, and a fifth of them, so that their whitening is computed soon."""
    data = load("shapes")
    grey = data.space.to_unit(data.train_images[::5]).clamp(0, 1).mean(1, keepdim=True)
    unit = as_image_data((grey, data.train_labels[::5]))
    return unit.to_space(InputSpace.normalized([float(grey.mean())], [float(grey.std())]))


@pytest.fixture(scope="module")
def whitening(shapes: ImageData) -> ZCASpace:
    return ZCASpace.fit(shapes.space.to_unit(shapes.train_images).clamp(0, 1))


@pytest.fixture
def pool(shapes: ImageData) -> ProxyPool:
    network = build("convnet", num_classes=8, channels=1, size=(32, 32), width=8)
    return ProxyPool([Proxy(network, name="one")], PoolInfo(shape=shapes.shape, space=shapes.space))


@pytest.fixture(params=[1, 10])
def plain(shapes: ImageData, request: pytest.FixtureRequest) -> SyntheticSet:
    """A set as DM begins it, without a space."""
    images, labels = random_real(shapes, request.param, torch.Generator().manual_seed(request.param))
    return SyntheticSet(images, labels, meaning="normalized")


READERS: dict[str, Callable[[SyntheticSet, ProxyPool, ImageData], Any]] = {
    "evaluate and compare": lambda some, pool, data: judged(some, data),
    "measure": lambda some, pool, data: measure_term(make("spread"), pool, some),
    "relabel": lambda some, pool, data: relabel(some, pool),
}


def warned(work: Callable[[], Any]) -> list[str]:
    meaning._warn.cache_clear()
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        work()
    return [str(each.message) for each in issued if each.category is DDPlugWarning]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("form", ["dm", "mute"])
def test_every_reader_notices_a_whitened_set_that_is_taken_as_normalised(
    plain: SyntheticSet, whitening: ZCASpace, shapes: ImageData, pool: ProxyPool, reader: str, form: str, tmp_path: Path
) -> None:
    """IDM's and DataDAM's files do not say that their images are whitened."""
    images = shapes.space.convert(plain.images, whitening)
    path = tmp_path / "res_DM_shapes.pt"
    torch.save({"data": [[images, plain.labels]], "accs_all_exps": {}}, path)
    found = load_set(path) if form == "dm" else SyntheticSet(images, plain.labels)
    if (form, reader) == ("mute", "evaluate and compare"):
        pytest.skip("an error, without any meaning")
    (said,) = warned(lambda: READERS[reader](found, pool, shapes))
    assert "give --input-space zca" in said
    # With the advice followed, and for what the file says itself, nothing is left to say.
    assert not warned(lambda: meaning.with_space(found, "zca", shapes))
    assert not warned(lambda: meaning.seen_by(pool, found, "zca", shapes))
    assert not warned(lambda: READERS[reader](replace(plain, images=images, space=whitening), pool, shapes))


@pytest.mark.parametrize("reader", READERS)
def test_plain_sets_are_not_doubted(plain: SyntheticSet, shapes: ImageData, pool: ProxyPool, reader: str) -> None:
    assert not warned(lambda: READERS[reader](plain, pool, shapes))


def test_a_plain_set_that_is_taken_as_whitened_is_noticed(
    plain: SyntheticSet, whitening: ZCASpace, shapes: ImageData, pool: ProxyPool, tmp_path: Path
) -> None:
    """By the user, or because the pool is."""
    (said,) = warned(lambda: meaning.with_space(plain, "zca", shapes))
    assert "give --input-space normalized" in said
    white = ProxyPool(pool.proxies, replace(pool.info, space=whitening))
    (said,) = warned(lambda: meaning.seen_by(white, replace(plain, meaning=None)))
    assert "taken as whitened" in said
    assert not warned(lambda: meaning.with_space(plain, "normalized", shapes))
    save_set(replace(plain, space=shapes.space), tmp_path / "ours.pt")
    assert not warned(lambda: meaning.with_space(load_set(tmp_path / "ours.pt"), None, shapes))


def test_noise_is_doubted_until_the_user_says_what_it_is(shapes: ImageData, pool: ProxyPool) -> None:
    noise = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    found = SyntheticSet(noise, torch.arange(8), meaning="normalized")
    (said,) = warned(lambda: meaning.with_space(found, None, shapes))
    assert "began as noise, give --input-space normalized" in said
    assert not warned(lambda: meaning.with_space(found, "normalized", shapes))
    assert not warned(lambda: meaning.seen_by(pool, found, "normalized", shapes))


@pytest.mark.parametrize("form", ["normalized", "zca"])
def test_of_a_set_that_a_comparison_kept_the_hosts_options_are_believed(
    shapes: ImageData, whitening: ZCASpace, plain: SyntheticSet, pool: ProxyPool, form: str, tmp_path: Path
) -> None:
    """Long runs of MTT end in images that look as whitened ones do."""
    noise = torch.randn(plain.images.shape, generator=torch.Generator().manual_seed(0))
    images = noise if form == "normalized" else plain.images
    save_set(SyntheticSet(images, plain.labels, meaning=form), tmp_path / "set-000001.pt")
    judge = Judge(shapes, Settings(arch="convnet", width=8, epochs=1), pool, None, torch.device("cpu"))
    assert not warned(lambda: judge(tmp_path / "set-000001.pt", 0, 0, lambda done: None, True))
    found, space = meaning.kept_set(tmp_path / "set-000001.pt", shapes)
    assert space == (shapes.space if form == "normalized" else whitening) == found.space
