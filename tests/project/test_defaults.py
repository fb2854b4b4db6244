"""Defaults of torch that a host has set: `torch.set_default_dtype` and `torch.set_default_device`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

import ddplug
from ddplug import datasets
from ddplug.augment import DSA
from ddplug.datasets.synthetic import SyntheticSet
from ddplug.lab.evaluate import evaluate
from ddplug.proxies.pretrain import pretrain

PACKAGE = str(Path(ddplug.__file__).parent)
DRAWN = {torch.rand, torch.randn, torch.randint, torch.randperm}
FLOATS = {torch.zeros, torch.ones, torch.empty, torch.full, torch.linspace, torch.eye, *DRAWN}
INTEGERS = {torch.arange, torch.randint, torch.randperm, torch.full}


class Refuses(TorchFunctionMode):
    """Refuses the calls in our files that make a tensor without naming what the host can have set otherwise."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        caller = sys._getframe(1)
        if caller.f_code.co_filename.startswith(PACKAGE) and (func in FLOATS or func in INTEGERS):
            where = f"{caller.f_code.co_filename}:{caller.f_lineno}: {func.__name__}"
            assert kwargs.get("device") is not None, f"{where} names no device"
            assert func in INTEGERS or kwargs.get("dtype") is not None, f"{where} names no dtype"
        return func(*args, **kwargs)


@contextmanager
def defaults(kind: str) -> Iterator[None]:
    if kind == "refusing":
        with Refuses():  # type: ignore[no-untyped-call]
            yield
    elif kind == "float64":
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)
    else:  # a device that holds no values: whatever is made there by mistake fails
        with torch.device("meta"):
            yield


@pytest.fixture(scope="module")
def few() -> datasets.ImageData:
    pytest.importorskip("sklearn")
    data = datasets.load("digits")
    return replace(data, train_images=data.train_images[:60], train_labels=data.train_labels[:60],
                   test_images=data.test_images[:40], test_labels=data.test_labels[:40])  # fmt: skip


@pytest.mark.filterwarnings("ignore::ddplug.DDPlugWarning")
@pytest.mark.parametrize("kind", ["refusing", "float64", "meta"])
def test_the_main_paths_whatever_the_defaults(kind: str, few: datasets.ImageData, tmp_path: Path) -> None:
    """Pools, rounds with DSA views, and evaluations are the same under every default of the host's.

    Kind: tensors made without naming device and dtype. Looked at: every factory call in the package on these paths.
    """

    def run(folder: Path) -> list[float]:
        pool = pretrain(few, folder, count=2, epochs=1, options={"width": 8}, progress=False)
        leaf = few.train_images[:20].clone().requires_grad_()
        layer = ddplug.Regularizer(pool, 1.0, views=ddplug.Views(2, DSA()), announce=lambda _: None)
        optimizer = torch.optim.SGD([leaf], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            layer(leaf * 1, few.train_labels[:20]).square().sum().backward()
            optimizer.step()
        made = SyntheticSet(leaf.detach(), few.train_labels[:20], few.space)
        evaluate(made, few, architectures=["convnet"], runs=1, epochs=1, options={"width": 8})
        layer.detach()
        return layer.history.values

    expected = run(tmp_path / "plain")
    with defaults(kind):
        found = run(tmp_path / kind)
    assert found == pytest.approx(expected, rel=1e-4)
