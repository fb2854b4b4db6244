"""Picture by picture against the hosts' own augmentation: their code, seeded, and ours, given the same numbers.

The hosts are read from the folder named by DDPLUG_HOSTS and are no part of this repository. Each test works out, from
the order in which a host draws, the numbers that its code is about to use, and hands them to `DSA` as `Params`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import Tensor

from ddplug.augment.dsa import DSA, OPERATIONS, Params

pytestmark = pytest.mark.upstream

STRATEGY = "color_crop_cutout_flip_scale_rotate"
SIZES = [(32, 32), (25, 40)]
Whole = Callable[[int, int], Tensor]
Uniform = Callable[[], Tensor]


@cache
def host(file: str) -> ModuleType:
    """A module of a host, read from its file; what it imports but DSA does not need is replaced by a stand-in."""
    folder = os.environ.get("DDPLUG_HOSTS")
    if not folder or not (Path(folder) / file).is_file():
        pytest.skip(f"needs {file} in the folder named by DDPLUG_HOSTS")
    spec = importlib.util.spec_from_file_location(f"host_{file.replace('/', '_')}", Path(folder) / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _stand_ins("networks", "tqdm", "scipy", "scipy.ndimage", "scipy.ndimage.interpolation"):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _stand_ins(*names: str) -> Iterator[None]:
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: MagicMock(__spec__=ModuleSpec(name, None)) for name in names})
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def images_of(size: tuple[int, int], n: int = 5) -> Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(1))


def numbers_of(op: str, size: tuple[int, int], uniform: Uniform, whole: Whole) -> dict[str, Any]:
    """The numbers of one operation, drawn in the order that all three formulations share."""
    match op:
        case "color":
            return {"brightness": uniform() - 0.5, "saturation": uniform() * 2.0, "contrast": uniform() + 0.5}
        case "crop":
            reach = [int(extent * 0.125 + 0.5) for extent in size]
            return {"crop": torch.stack([whole(-most, most + 1) for most in reach], dim=1)}
        case "cutout":
            hole = [int(extent * 0.5 + 0.5) for extent in size]
            corner = [whole(0, s + 1 - h % 2) - h // 2 for s, h in zip(size, hole, strict=True)]
            return {"cutout": torch.stack(corner, dim=1), "cutout_size": tuple(hole)}
        case "flip":
            return {"flip": uniform() < 0.5}
        case "scale":
            horizontal, vertical = (uniform() * (1.2 - 1.0 / 1.2) + 1.0 / 1.2 for _ in range(2))
            return {"scale": torch.stack([vertical, horizontal], dim=1)}
        case _:
            return {"rotate": (uniform() - 0.5) * 2 * 15.0}


def params_of(ops: tuple[str, ...], size: tuple[int, int], siamese: bool, uniform: Uniform, whole: Whole) -> Params:
    numbers: dict[str, Any] = {}
    for op in ops:
        numbers |= numbers_of(op, size, uniform, whole)
    return Params(ops, siamese, size, **numbers)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("strategy", [*OPERATIONS, STRATEGY])
@pytest.mark.parametrize("mode", ["S", "M"])
@pytest.mark.parametrize(
    ("file", "align_corners"),
    [
        ("DatasetCondensation/utils.py", False),
        ("mtt-distillation/utils.py", True),
        ("DATM/utils/utils_baseline.py", True),
    ],
)
def test_seeded_siamese_views(file: str, align_corners: bool, mode: str, strategy: str, size: tuple[int, int]) -> None:
    """With a seed, torch is seeded anew before every number, counting up, and the first row serves the batch."""
    module = host(file)
    settings = module.ParamDiffAug()
    settings.aug_mode = mode
    augment = DSA(align_corners=align_corners)
    images = images_of(size)
    chosen = set()
    for seed in range(0, 200, 10):
        theirs = _quietly(module.DiffAugment, images, strategy, seed=seed, param=settings)
        steps = iter(range(seed, seed + 100))

        def generator(steps: Iterator[int] = steps) -> torch.Generator:
            return torch.Generator().manual_seed(next(steps))

        ops = tuple(strategy.split("_"))
        if mode == "S":
            ops = (ops[int(torch.randint(0, len(ops), (1,), generator=generator()))],)
        chosen.add(ops)
        params = params_of(
            ops,
            size,
            True,
            lambda: torch.rand(len(images), generator=generator())[:1],
            lambda low, high: torch.randint(low, high, (len(images),), generator=generator())[:1],
        )
        assert_same(augment(images, params=params), theirs)
    if mode == "S" and strategy == STRATEGY:
        assert len(chosen) == len(OPERATIONS)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("strategy", [*OPERATIONS, STRATEGY])
@pytest.mark.parametrize(
    ("file", "align_corners"),
    [
        ("DatasetCondensation/utils.py", False),
        ("mtt-distillation/utils.py", True),
        ("DATM/utils/utils_baseline.py", True),
    ],
)
def test_views_with_parameters_per_image(file: str, align_corners: bool, strategy: str, size: tuple[int, int]) -> None:
    """Without a seed, as MTT and DATM call it, numbers come one after the other out of torch's global generator."""
    module = host(file)
    augment = DSA(align_corners=align_corners)
    images = images_of(size)
    for seed in range(20):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            theirs = _quietly(module.DiffAugment, images, strategy, param=module.ParamDiffAug())
        generator = torch.Generator().manual_seed(seed)
        ops = tuple(strategy.split("_"))
        params = params_of(
            (ops[int(torch.randint(0, len(ops), (1,), generator=generator))],),
            size,
            False,
            lambda generator=generator: torch.rand(len(images), generator=generator),  # type: ignore[misc]
            lambda low, high, generator=generator: torch.randint(low, high, (len(images),), generator=generator),  # type: ignore[misc]
        )
        assert_same(augment(images, params=params), theirs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("strategy", ["color_crop_cutout", STRATEGY, "crop", "flip_rotate"])
def test_idcs_views_of_a_batch(strategy: str, size: tuple[int, int]) -> None:
    """IDC draws from NumPy, once per batch: mirror, colour, one of the rest, hole."""
    module = host("Efficient-Dataset-Condensation/misc/augment.py")
    theirs_of = module.DiffAug(strategy=strategy, batch=True)
    augment = DSA(strategy, mode="idc")
    images = images_of(size)
    shape_of_ours = {augment.draw(images).ops for _ in range(100)}
    state = np.random.get_state()
    try:
        for seed in range(20):
            np.random.seed(seed)
            theirs = _quietly(theirs_of, images)
            np.random.seed(seed)
            numbers: dict[str, Any] = {}
            ops: tuple[str, ...] = ()
            rest = [op for op in strategy.split("_") if op not in ("flip", "color", "cutout")]
            for turn in ("flip", "color", "one of the rest", "cutout"):
                if turn == "one of the rest":
                    op = rest[np.random.randint(len(rest))]
                elif turn in strategy.split("_"):
                    op = turn
                else:
                    continue
                ops += (op,)
                numbers |= numbers_of(
                    op,
                    size,
                    lambda: torch.tensor([np.random.uniform()], dtype=torch.float64),
                    lambda low, high: torch.tensor([np.random.randint(low, high)]),
                )
            assert ops in shape_of_ours
            assert_same(augment(images, params=Params(ops, True, size, **numbers)), theirs)
    finally:
        np.random.set_state(state)


def _quietly(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """What a host's function returns, without its warnings about old calls, and with torch's global state put back."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)
