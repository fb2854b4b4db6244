"""Defaults of torch that a host has set: `torch.set_default_dtype` and `torch.set_default_device`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ddplug
from ddplug import datasets
from ddplug.augment import DSA
from ddplug.datasets.shapes import draw
from ddplug.datasets.synthetic import SyntheticSet
from ddplug.lab.evaluate import evaluate
from ddplug.proxies.pretrain import pretrain

PACKAGE = Path(ddplug.__file__).parent
FLOATS = {"zeros", "ones", "empty", "linspace", "eye", "rand", "randn"}
MAKERS = {*FLOATS, "full", "arange", "randint", "randperm", "tensor"}


def test_every_tensor_names_its_device_and_a_float_its_dtype() -> None:
    """Kind: calls that make a tensor as the host's defaults say. Looked at: all in the package.

    Not so in `metrics`, where torchmetrics moves the states itself.
    """
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or file.name == "metrics.py":
                continue
            module, _, name = ast.unparse(node.func).rpartition(".")
            named = {each.arg for each in node.keywords}
            if module == "torch" and name in MAKERS:
                assert "device" in named, f"{file}:{node.lineno} names no device"
                assert "dtype" in named or name not in FLOATS, f"{file}:{node.lineno} names no dtype"


@contextmanager
def defaults(kind: str) -> Iterator[None]:
    if kind == "float64":
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
@pytest.mark.parametrize("kind", ["float64", "meta"])
def test_the_main_paths_whatever_the_defaults(kind: str, few: datasets.ImageData, tmp_path: Path) -> None:
    """Pools, rounds with DSA views, and evaluations are the same under every default of the host's.

    Kind: tensors made without naming device and dtype. Looked at: every factory call in the package on these paths.
    """

    def run(folder: Path) -> list[float]:
        assert draw(1, seed=0)[0].dtype == torch.float32
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
