"""ZCA as an input space: its algebra, its agreement with kornia, its file, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kornia.enhance import ZCAWhitening
from torch import Tensor

from ddplug.datasets.spaces import InputSpace
from ddplug.datasets.zca import ZCASpace, space_from_json
from ddplug.errors import InputError

pytestmark = pytest.mark.numerical

SHAPE = (3, 6, 5)


def intensities(n: int = 400, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Smooth random images in [0, 1], so that neighbouring pixels are correlated, as they are in real ones."""
    random = torch.Generator().manual_seed(seed)
    noise = torch.rand(n, *SHAPE, generator=random, dtype=torch.float64)
    return ((noise + noise.roll(1, -1) + noise.roll(1, -2)) / 3).to(dtype)


@pytest.fixture(scope="module")
def space() -> ZCASpace:
    return ZCASpace.fit(intensities(dtype=torch.float64))


def test_whitening_is_the_inverse_square_root_of_the_regularised_covariance(space: ZCASpace) -> None:
    rows = intensities(dtype=torch.float64).flatten(1).numpy()
    values, vectors = np.linalg.eigh(np.cov(rows, rowvar=False) + 0.1 * np.eye(rows.shape[1]))
    whiten = vectors @ np.diag(values**-0.5) @ vectors.T
    expected = ((rows - rows.mean(0)) @ whiten).reshape(-1, *SHAPE)
    np.testing.assert_allclose(space.from_unit(intensities(dtype=torch.float64)).numpy(), expected, atol=1e-10)


def test_without_regularisation_the_whitened_pixels_are_uncorrelated_and_of_unit_variance() -> None:
    images = intensities(2000, torch.float64)
    whitened = ZCASpace.fit(images, eps=0.0).from_unit(images).flatten(1)
    torch.testing.assert_close(whitened.T.cov(), torch.eye(90, dtype=torch.float64), atol=1e-8, rtol=0)


def test_it_is_the_whitening_that_the_field_fits_with_kornia() -> None:
    images = intensities()
    field = ZCAWhitening(eps=0.1, compute_inv=True).fit(images)
    for space in (ZCASpace.fit(images), ZCASpace.from_kornia(field, SHAPE)):
        torch.testing.assert_close(space.from_unit(images), field(images), atol=1e-5, rtol=0)
        torch.testing.assert_close(space.to_unit(images), field.inverse_transform(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("lead", [(), (7,), (2, 7)])
def test_there_and_back(dtype: torch.dtype, tolerance: float, lead: tuple[int, ...]) -> None:
    images = torch.rand(*lead, *SHAPE, dtype=dtype)
    space = ZCASpace.fit(intensities(dtype=dtype))
    assert space.from_unit(images).dtype == dtype
    assert (space.from_unit(images) - images).abs().max() > 0.1
    torch.testing.assert_close(space.to_unit(space.from_unit(images)), images, atol=tolerance, rtol=0)


def test_it_converts_to_and_from_a_per_channel_space(space: ZCASpace) -> None:
    normalised = InputSpace.normalized((0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
    images = intensities(5, torch.float64)
    whitened = space.from_unit(images)
    torch.testing.assert_close(space.convert(whitened, to=normalised), normalised.from_unit(images))
    torch.testing.assert_close(normalised.convert(normalised.from_unit(images), to=space), whitened)  # type: ignore[arg-type,unused-ignore]


def test_it_converts_to_another_zca_and_leaves_its_own_images_alone(space: ZCASpace) -> None:
    other = ZCASpace.fit(intensities(dtype=torch.float64, seed=1), eps=0.01)
    images = intensities(5, torch.float64)
    whitened = space.from_unit(images)
    torch.testing.assert_close(space.convert(whitened, to=other), other.from_unit(images))
    same = ZCASpace(space.shape, space.mean.clone(), space.whiten.clone())
    assert same == space
    assert hash(same) == hash(space)
    assert other != space
    assert ZCASpace.fit(intensities(dtype=torch.float64), eps=0.01) != space  # of the same mean
    assert space.convert(whitened, to=same) is whitened


def test_it_is_differentiable_both_ways(space: ZCASpace) -> None:
    images = torch.rand(2, *SHAPE, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(space.from_unit, (images,))
    assert torch.autograd.gradcheck(space.to_unit, (images,))


def test_half_precision_is_computed_in_single() -> None:
    space = ZCASpace.fit(intensities())
    images = intensities(5)
    whitened = space.from_unit(images.bfloat16())
    assert whitened.dtype == torch.bfloat16
    torch.testing.assert_close(whitened.float(), space.from_unit(images.bfloat16().float()), atol=0, rtol=1e-2)


def test_a_space_survives_its_record_and_tensors(space: ZCASpace) -> None:
    loaded = space_from_json(space.to_json(), {name: held.clone() for name, held in space.tensors().items()})
    assert loaded == space
    assert loaded.channels == 3
    images = intensities(5, torch.float64)
    # Tensors of a file begin anywhere in memory, so a product may be summed in another order: 90 terms for each value,
    # each rounded at the size of the sum of their absolute values.
    for matrix, name in ((space.whiten, "from_unit"), (space.unwhiten, "to_unit")):
        got, expected = getattr(loaded, name)(images), getattr(space, name)(images)
        terms = 2 * matrix.abs().sum(0).max().item() + expected.abs().max().item()
        torch.testing.assert_close(got, expected, rtol=0, atol=90 * torch.finfo(torch.float64).eps * terms)


def test_a_record_beside_the_wrong_tensors_is_refused(space: ZCASpace) -> None:
    other = ZCASpace.fit(intensities(dtype=torch.float64, seed=1))
    with pytest.raises(InputError, match="another ZCA"):
        space_from_json(space.to_json(), other.tensors())
    with pytest.raises(InputError, match=r"zca\.mean"):
        space_from_json(space.to_json())


def test_a_whitening_without_an_inverse_is_refused() -> None:
    flat = torch.full((10, *SHAPE), 0.5)
    with pytest.raises(InputError, match="larger eps"):
        ZCASpace.fit(flat, eps=0.0)
    with pytest.raises(InputError, match="larger eps"):
        ZCASpace((1, 1, 2), torch.zeros(2), torch.ones(2, 2))
    with pytest.raises(InputError, match="cannot be inverted"):
        ZCASpace((1, 1, 2), torch.zeros(2), torch.eye(2), unwhiten=2 * torch.eye(2))


def test_an_inverse_that_kornia_did_not_compute_is_computed() -> None:
    images = intensities(dtype=torch.float64)
    space = ZCASpace.from_kornia(ZCAWhitening(eps=0.1).fit(images), SHAPE)
    torch.testing.assert_close(space.to_unit(space.from_unit(images)), images)


def test_images_and_spaces_that_do_not_fit_are_refused(space: ZCASpace) -> None:
    with pytest.raises(InputError, match="3 x 6 x 5"):
        space.from_unit(torch.rand(2, 3, 5, 6))
    with pytest.raises(InputError, match="cannot convert"):
        space.convert(torch.rand(2, *SHAPE), to=InputSpace.unit(1))
    with pytest.raises(InputError, match="cannot convert"):
        space.convert(torch.rand(2, *SHAPE), to=ZCASpace((3, 1, 1), torch.zeros(3), torch.eye(3)))
    with pytest.raises(InputError, match="not fitted"):
        ZCASpace.from_kornia(ZCAWhitening(), SHAPE)


def test_fit_refuses_normalised_images() -> None:
    with pytest.raises(InputError, match="to_unit"):
        ZCASpace.fit(torch.randn(10, 3, 4, 4))
