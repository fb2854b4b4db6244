"""What DSA promises whatever it draws: one draw or many, replay, its own randomness, gradients, devices, refusals."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ddplug.augment.dsa import DSA, OPERATIONS, Mode, Params
from ddplug.errors import InputError

pytestmark = pytest.mark.numerical

SIZES = [(8, 8), (8, 13), (32, 32), (45, 20), (224, 224)]


def images_of(n: int, size: tuple[int, int], channels: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalised images: well outside [0, 1], and no two alike."""
    noise = torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    return (2 * noise + 0.3).to(dtype)


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_siamese_views_are_one_view_and_others_are_not(
    op: str, size: tuple[int, int], channels: int, dtype: torch.dtype
) -> None:
    batch = images_of(1, size, channels, dtype).expand(6, -1, -1, -1)
    shared = DSA(op, siamese=True, seed=1)(batch)
    assert shared.shape == batch.shape
    assert shared.dtype == dtype
    # Vector instructions compute most pixels and scalar ones the rest: under 16 roundings of numbers below 16.
    bound = 16 * 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(shared, shared[:1].expand_as(shared), rtol=0, atol=bound)
    each = DSA(op, siamese=False, seed=1)(batch)
    assert each.shape == batch.shape
    assert any((view - each[0]).abs().max() > bound for view in each[1:])


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("siamese", [True, False])
@pytest.mark.parametrize("size", [(8, 8), (45, 20)])
def test_params_replay_the_view_exactly(op: str, siamese: bool, size: tuple[int, int]) -> None:
    augment = DSA(op, siamese=siamese)
    images = images_of(7, size)
    views = augment(images)
    params = augment.last_params
    assert params is not None
    assert params.ops == (op,)
    augment(images)  # a later draw does not change an earlier one
    assert torch.equal(augment(images, params=params), views)
    assert torch.equal(DSA("none", seed=5)(images, params=params), views)


def test_a_siamese_draw_serves_a_batch_of_any_size() -> None:
    augment = DSA(mode="all")
    real, synthetic = images_of(9, (16, 16)), images_of(3, (16, 16))
    augment(real)
    shared = augment(synthetic, params=augment.last_params)
    both = augment(torch.cat([real, synthetic]), params=augment.last_params)
    torch.testing.assert_close(shared, both[9:], atol=1e-6, rtol=0)


@pytest.mark.parametrize("siamese", [True, False])
@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize(("size", "channels"), [((8, 8), 1), ((8, 11), 3)])
def test_gradients_are_those_of_the_picture(op: str, siamese: bool, size: tuple[int, int], channels: int) -> None:
    augment = DSA(op, siamese=siamese, seed=3)
    images = images_of(2, size, channels, torch.float64).requires_grad_()
    params = augment.draw(images)
    assert torch.autograd.gradcheck(lambda batch: augment(batch, params=params), (images,))


def test_views_can_be_differentiated_twice() -> None:
    augment = DSA(mode="all", siamese=False)
    images = images_of(2, (8, 9), 3, torch.float64).requires_grad_()
    params = augment.draw(images)
    assert torch.autograd.gradgradcheck(lambda batch: augment(batch, params=params).square(), (images,))


def test_nothing_is_clamped() -> None:
    bright = images_of(4, (8, 8)) * 100
    for op in OPERATIONS:
        views = DSA(op, siamese=False, flip=1.0)(bright)
        assert views.min() < -50, op
        assert views.max() > 50, op


def test_parameters_that_change_nothing_change_nothing() -> None:
    one, zero = torch.ones(1), torch.zeros(1)
    still = Params(
        ops=tuple(OPERATIONS),
        siamese=True,
        size=(9, 14),
        brightness=zero,
        saturation=one,
        contrast=one,
        crop=torch.zeros(1, 2, dtype=torch.int64),
        cutout=torch.tensor([[0, -7]]),
        cutout_size=(4, 7),
        flip=torch.tensor([False]),
        scale=torch.ones(1, 2),
        rotate=zero,
    )
    images = images_of(3, (9, 14), dtype=torch.float64)
    torch.testing.assert_close(DSA()(images, params=still), images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", OPERATIONS)
def test_half_precision_images_keep_their_dtype_and_their_place(op: str, dtype: torch.dtype) -> None:
    images = images_of(4, (40, 224)).to(dtype)
    augment = DSA(op, siamese=False)
    views = augment(images)
    assert views.dtype == dtype
    exact = augment(images.float(), params=augment.last_params)
    torch.testing.assert_close(views.float(), exact, atol=0.1, rtol=0.02)


def test_an_empty_batch_and_an_empty_strategy_pass() -> None:
    for siamese in (True, False):
        assert DSA(mode="all", siamese=siamese)(torch.randn(0, 3, 8, 8)).shape == (0, 3, 8, 8)
    images = images_of(2, (8, 8))
    for strategy in ("", "none", "None"):
        augment = DSA(strategy)
        assert augment(images) is images
        assert augment.last_params is not None
        assert augment.last_params.ops == ()


# --- Randomness of its own -------------------------------------------------------------------------------------------


def test_the_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    modes: tuple[Mode, ...] = ("single", "all", "idc")
    for mode in modes:
        DSA(mode=mode, siamese=False)(images_of(4, (8, 8)))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]
    assert random.getstate() == before[2]


def test_the_global_seed_changes_nothing_and_its_own_seed_everything() -> None:
    images = images_of(4, (8, 8))
    torch.manual_seed(1)
    first = DSA(mode="all", seed=3)(images)
    torch.manual_seed(2)
    assert torch.equal(DSA(mode="all", seed=3)(images), first)
    assert not torch.equal(DSA(mode="all", seed=4)(images), first)
    augment = DSA(mode="all", seed=9)
    augment(images)
    assert torch.equal(augment.manual_seed(3)(images), first)


@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
def test_a_saved_augmentation_draws_on_where_it_stopped(how: str) -> None:
    images = images_of(4, (8, 8))
    augment = DSA(siamese=False, seed=3)
    augment(images)
    if how == "state_dict":
        again = DSA(siamese=False, seed=99)
        again.load_state_dict(augment.state_dict())
    else:
        again = pickle.loads(pickle.dumps(augment)) if how == "pickle" else copy.deepcopy(augment)
    for _ in range(5):
        assert torch.equal(augment(images), again(images))


def test_eight_draws_are_not_one() -> None:
    augment = DSA()
    images = images_of(2, (32, 32))
    views = [augment(images) for _ in range(8)]
    assert all(not torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])


# --- Which operations, in which order --------------------------------------------------------------------------------


def test_modes_apply_the_operations_that_they_say_in_the_order_that_they_say() -> None:
    strategy = "scale_color_cutout_crop_flip_rotate"
    images = images_of(2, (8, 8))
    assert DSA(strategy, mode="all").draw(images).ops == ("scale", "color", "cutout", "crop", "flip", "rotate")
    single = DSA(strategy)
    assert {single.draw(images).ops for _ in range(200)} == {(op,) for op in OPERATIONS}
    idc = DSA(strategy, mode="idc")
    drawn = {idc.draw(images).ops for _ in range(100)}
    assert drawn == {("flip", "color", op, "cutout") for op in ("scale", "crop", "rotate")}
    assert DSA("cutout_color", mode="idc").draw(images).ops == ("color", "cutout")


def test_all_is_one_operation_after_the_other() -> None:
    augment = DSA(mode="all", siamese=False)
    images = images_of(5, (12, 12))
    views = augment(images)
    params = augment.last_params
    assert params is not None
    step = images
    for op in params.ops:
        numbers = {name: getattr(params, name) for name in OPERATIONS[op]}
        size = params.cutout_size if op == "cutout" else (0, 0)
        step = augment(step, params=Params((op,), False, params.size, cutout_size=size, **numbers))
    assert torch.equal(step, views)


# --- Speed that shows in what is called, not in what it takes -------------------------------------------------------


class _Calls(TorchDispatchMode):  # type: ignore[no-untyped-call,unused-ignore]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call,unused-ignore]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("siamese", [True, False])
def test_no_loop_over_images_and_nothing_read_back(siamese: bool) -> None:
    names = {}
    for n in (3, 60):
        augment = DSA(mode="all", siamese=siamese)
        images = images_of(n, (8, 8))
        params = augment.draw(images)
        with _Calls() as calls:
            augment(images, params=params)
        names[n] = calls.names
    assert names[3] == names[60]
    # A siamese flip on the CPU reads its one number there, which waits for no device.
    reads = [name for name in names[3] if "_local_scalar_dense" in name or "nonzero" in name]
    assert len(reads) == (1 if siamese else 0)


@pytest.mark.parametrize("siamese", [True, False])
def test_everything_is_made_where_the_images_are(siamese: bool) -> None:
    # A meta tensor has no numbers to read and refuses company from the CPU, as a CUDA tensor would, at no cost.
    augment = DSA(mode="all", siamese=siamese)
    views = augment(torch.empty(4, 3, 16, 16, device="meta"))
    assert views.device.type == "meta"
    assert augment.last_params is not None
    assert augment.last_params.brightness is not None
    assert augment.last_params.brightness.device.type == "cpu"


@pytest.mark.cuda
@pytest.mark.parametrize("siamese", [True, False])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_views_without_waiting(siamese: bool) -> None:
    images = images_of(16, (32, 32))
    expected = DSA(mode="all", siamese=siamese)(images)
    on_device = images.cuda()
    augment = DSA(mode="all", siamese=siamese).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        views = augment(on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(views.cpu(), expected, atol=1e-4, rtol=0)


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "color_blur"}, "'blur'.*known are color, crop, cutout, flip, scale, rotate"),
        ({"strategy": "flip_flip"}, "twice"),
        ({"mode": "multiple"}, "'single', 'all', 'idc'"),
        ({"flip": 1.5}, "flip must lie in"),
        ({"scale": 0.9}, "scale must lie in"),
        ({"rotate": -1}, "rotate must lie in"),
        ({"crop_pad": -0.1}, "crop_pad must lie in"),
        ({"cutout": 2}, "cutout must lie in"),
        ({"brightness": -1}, "brightness must lie in"),
        ({"saturation": float("nan")}, "saturation must lie in"),
        ({"contrast": float("inf")}, "contrast must lie in"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DSA(**settings)


@pytest.mark.parametrize("images", [torch.rand(3, 8, 8), torch.rand(8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)])
def test_what_is_no_batch_of_images_is_refused(images: Tensor) -> None:
    with pytest.raises(InputError, match=r"\(n, channels, height, width\)"):
        DSA()(images)


def test_params_for_another_number_of_images_are_refused() -> None:
    params = DSA("rotate", siamese=False).draw(images_of(4, (8, 8)))
    with pytest.raises(InputError, match="drawn for 4 images cannot serve 5"):
        DSA()(images_of(5, (8, 8)), params=params)


def test_whole_pixels_for_another_size_are_refused_and_the_rest_are_not() -> None:
    for op in ("crop", "cutout"):
        with pytest.raises(InputError, match=r"size \(8, 8\), got \(8, 9\)"):
            DSA()(images_of(2, (8, 9)), params=DSA(op).draw(images_of(2, (8, 8))))
    DSA()(images_of(2, (8, 9)), params=DSA("scale").draw(images_of(2, (8, 8))))


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(InputError, match="unknown operation 'blur'"):
        Params(("blur",), siamese=True)
