"""Sets on disk: what a file may hold, and that damage is noticed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ddplug.datasets.spaces import InputSpace
from ddplug.datasets.splits import checked
from ddplug.datasets.synthetic import SyntheticSet, load_set
from ddplug.errors import DataError

IMAGES, LABELS = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1])
NAN, INF = float("nan"), float("inf")


def with_one(number: float) -> torch.Tensor:
    images = IMAGES.clone()
    images[3, 0, 2, 1] = number
    return images


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "fractional labels": ({"labels": torch.tensor([0, 0, 1, 1.5])}, "expected class numbers"),
    "a label of -1": ({"labels": torch.tensor([0, 0, 1, -1])}, "expected class numbers"),
    "truth values": ({"labels": LABELS.bool()}, "expected class numbers"),
    "complex labels": ({"labels": LABELS + 0j}, "expected class numbers"),
    "NaN for a label": ({"labels": torch.tensor([0, 0, 1, NAN])}, "expected class numbers"),
    "channels last": ({"images": torch.rand(4, 8, 8, 3)}, r".*which is \(n, h, w, c\)"),
    "bytes": ({"images": (255 * IMAGES).byte()}, "are torch.uint8, expected floats"),
    "complex images": ({"images": IMAGES + 0j}, "are torch.complex64, expected floats"),
    "NaN in an image": ({"images": with_one(NAN)}, "not finite"),
    "infinity in an image": ({"images": with_one(INF)}, "not finite"),
    "more than single precision holds": ({"images": with_one(1.0).double() * 1e300}, "not finite"),
    "nothing": ({"images": IMAGES[:0], "labels": LABELS[:0]}, "n at least 1"),
    "no pixels": ({"images": IMAGES[:, :, :0]}, "n at least 1"),
    "a rate that is NaN": ({"lr": NAN}, r"lr: expected a number"),
    "a rate of zero": ({"lr": 0.0}, r"lr: expected a number"),
    "a rate that is a word": ({"lr": "fast"}, r"lr: expected a number"),
    "another data set": ({"dataset": 3}, r"dataset: expected a string"),
    "another meaning": ({"meaning": "whitened"}, r"meaning: expected one of 'normalized', 'zca'"),
    "a class of -1": ({"given_classes": torch.tensor([0, 0, 1, -1])}, "expected class numbers"),
    "an endless std": ({"space": {"kind": "normalized", "mean": [0.5], "std": [INF]}}, "one finite mean"),
    "a mean that is NaN": ({"space": {"kind": "normalized", "mean": [NAN], "std": [1.0]}}, "one finite mean"),
    "a space that is a tensor": ({"space": IMAGES}, "space: expected a dictionary"),
    "whitened by a list": ({"space": {"kind": "zca", "shape": [1, 4, 4], "digest": "0"}, "space_tensors": [1]},
                           "no record of an input space"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_set_is_refused(name: str, tmp_path: Path) -> None:
    change, said = REFUSED[name]
    torch.save({"images": IMAGES, "labels": LABELS, **change}, tmp_path / "set.pt")
    with pytest.raises(DataError, match=rf"set\.pt'.*{said}"):
        load_set(tmp_path / "set.pt")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32, torch.float64], ids=str)
def test_whole_numbers_of_any_type_are_labels(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save({"images": IMAGES.half(), "labels": LABELS.to(dtype)}, tmp_path / "set.pt")
    loaded = load_set(tmp_path / "set.pt")
    assert torch.equal(loaded.labels, LABELS)
    assert (loaded.images.dtype, loaded.labels.dtype) == (torch.float32, torch.int64)


LABELS_OF_SHAPES: dict[str, Any] = {
    "a list": LABELS.tolist(),
    "a column": LABELS[:, None],
    "one-hot integers": torch.eye(2)[LABELS].long(),
    "one-hot truth values": torch.eye(2)[LABELS].bool(),
    "one-hot floats": torch.eye(2)[LABELS].bfloat16(),
}


@pytest.mark.parametrize("name", LABELS_OF_SHAPES)
def test_labels_of_any_shape_that_name_one_class_are_read(name: str, tmp_path: Path) -> None:
    for record in ({"images": IMAGES, "labels": LABELS_OF_SHAPES[name]}, (IMAGES, LABELS_OF_SHAPES[name])):
        torch.save(record, tmp_path / "set.pt")
        assert load_set(tmp_path / "set.pt").labels.tolist() == [0, 0, 1, 1]
    if name != "a list":
        assert checked(IMAGES, LABELS_OF_SHAPES[name], "training")[1].tolist() == [0, 0, 1, 1]


def test_a_set_has_no_graph_and_single_precision(tmp_path: Path) -> None:
    """A set that keeps its graph cannot be trained on twice, wherever its tensors came from."""
    soft = torch.full((4, 2), 0.5)
    for dtype in (torch.bfloat16, torch.float64):
        leaf = IMAGES.to(dtype).requires_grad_()
        torch.save({"images": leaf, "labels": soft.clone().requires_grad_()}, tmp_path / "set.pt")
        for held in (load_set(tmp_path / "set.pt"), SyntheticSet(leaf * 1, soft.requires_grad_())):
            assert (held.images.requires_grad, held.labels.requires_grad) == (False, False)
            assert held.images.dtype == torch.float32
            assert torch.equal(held.images, leaf.detach().float())
    for kind in (torch.uint8, torch.uint16, torch.int32, torch.float32):
        assert SyntheticSet(IMAGES, torch.tensor([0, 0, 1, 1]).to(kind)).labels.dtype == torch.int64


def test_a_folder_of_pictures_is_a_set(tmp_path: Path) -> None:
    """As RDED and SRe2L leave it: pictures in one folder for each class."""
    pixels = torch.randint(256, (4, 3, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for number, (picture, label) in enumerate(zip(pixels, LABELS.tolist(), strict=True)):
        folder = tmp_path / "set" / f"new{label:03}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    loaded = load_set(tmp_path / "set")
    assert torch.equal((loaded.images * 255).round().byte(), pixels)
    assert (loaded.labels.tolist(), loaded.space) == ([0, 0, 1, 1], InputSpace.unit(3))
    assert len(load_set(tmp_path / "set", factor=2).labels) == 16
    shutil.copytree(tmp_path / "set", tmp_path / "split" / "train")
    shutil.copytree(tmp_path / "set", tmp_path / "split" / "val")
    assert load_set(tmp_path / "split").labels.tolist() == [0, 0, 1, 1], "train and val are no classes"
    with pytest.raises(DataError, match=r"no synthetic set at .*new000'.*a folder of pictures CLASS/\*"):
        load_set(tmp_path / "set" / "new000")


@pytest.mark.parametrize("kind", ["uint16", "uint32", "uint64", "sparse one-hot", "sparse soft"])
def test_labels_of_kinds_that_torch_cannot_compare(kind: str, tmp_path: Path) -> None:
    """Kind: what a file of a set may hold. Looked at: every integer dtype, half, sparse and one-hot labels."""
    images, labels = torch.rand(6, 3, 4, 4), torch.arange(6) % 3
    rows = torch.eye(3)[labels]
    held = {"sparse one-hot": rows.to_sparse(), "sparse soft": (0.25 + 0.25 * rows).to_sparse()}
    torch.save((images, held[kind] if kind in held else labels.to(getattr(torch, kind))), tmp_path / "set.pt")
    found = load_set(tmp_path / "set.pt")
    assert found.classes.tolist() == labels.tolist()
    assert found.labels.dtype == (torch.float32 if kind == "sparse soft" else torch.int64)
