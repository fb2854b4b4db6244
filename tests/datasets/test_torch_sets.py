"""Data sets of torch, as they hang on a trainer: found, their normalisation read, each image once without chance."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from ddplug.datasets import as_image_data
from ddplug.datasets.spaces import InputSpace
from ddplug.errors import DataError

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
SPACE = InputSpace(MEAN, STD)
PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8))
LABELS = torch.arange(12) % 3
PLAIN = (PIXELS.movedim(-1, 1).float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
NORMALIZE = v1.Normalize(MEAN, STD)

TRANSFORMS: dict[str, Any] = {
    "v1": v1.Compose([v1.ToTensor(), NORMALIZE]),
    "v2": v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]),
    "flipped and cropped": v1.Compose(
        [v1.RandomCrop(8, padding=4), v1.RandomHorizontalFlip(), v1.ToTensor(), NORMALIZE, v1.RandomErasing(p=1)]
    ),
    "within each other": v1.Compose([v1.ColorJitter(0.9), v1.Compose([v1.ToTensor(), nn.Sequential(NORMALIZE)])]),
    "at random within": v1.Compose([v1.RandomApply([v1.GaussianBlur(3)], p=1), v1.ToTensor(), NORMALIZE]),
    "resized": v1.Compose([v1.RandomResizedCrop(8), v1.ToTensor(), NORMALIZE]),
    "of tensors": v1.Compose([v1.ToTensor(), v1.Normalize(torch.tensor(MEAN), torch.tensor(STD))]),
}


class Pictures(Dataset):  # type: ignore[type-arg]
    """Pillow's pictures and their labels, as torchvision's CIFAR10 has them."""

    classes = ("cat", "dog", "cow")

    def __init__(self, transform: Any = None) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture: Any = Image.fromarray(PIXELS[index].numpy())
        return self.transform(picture) if self.transform else picture, int(LABELS[index])


class Transformed(Dataset):  # type: ignore[type-arg]
    """A part of another data set under transforms of its own, as people write it for a validation split."""

    def __init__(self, subset: Any, transform: Any) -> None:
        self.subset, self.transform = subset, transform

    def __len__(self) -> int:
        return len(self.subset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture, label = self.subset[index]
        return self.transform(picture), label


def whole(data: Any) -> tuple[Tensor, Tensor]:
    """Images and labels of both splits that were made of `data`, in the order of their labels' first image."""
    found = as_image_data(data)
    assert found.space == SPACE
    return torch.cat([found.train_images, found.test_images]), torch.cat([found.train_labels, found.test_labels])


def same_images(images: Tensor, expected: Tensor) -> bool:
    """True if both hold the same images in any order, to the rounding of float32."""
    distances = torch.cdist(images.flatten(1).double(), expected.flatten(1).double())
    return len(images) == len(expected) and bool((distances.min(1).values < 1e-4).all())


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_images_come_once_each_without_chance_in_the_space_of_normalize(name: str) -> None:
    """Random steps are left out wherever they stand; host's transforms and random states are as before."""
    dataset = Pictures(TRANSFORMS[name])
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    images, _ = whole(dataset)
    assert same_images(images, PLAIN)
    assert dataset.transform is TRANSFORMS[name]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # type: ignore[index]


@pytest.mark.parametrize(
    "data",
    [
        Subset(Pictures(TRANSFORMS["v2"]), range(12)),
        ConcatDataset([Subset(Pictures(TRANSFORMS["flipped and cropped"]), range(k, k + 6)) for k in (0, 6)]),
        Transformed(Subset(Pictures(), range(12)), TRANSFORMS["flipped and cropped"]),
        Transformed(Pictures(v1.RandomHorizontalFlip()), TRANSFORMS["v1"]),
    ],
)
def test_data_sets_within_data_sets_are_read_through(data: Any) -> None:
    images, labels = whole(data)
    assert same_images(images, PLAIN)
    assert labels.bincount().tolist() == [4, 4, 4]
    assert as_image_data(data).class_names[:3] in (("cat", "dog", "cow"), ("0", "1", "2"))


def test_without_normalize_images_are_intensities() -> None:
    for transform in (None, v1.ToTensor(), v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])):
        data = as_image_data(Pictures(transform))
        assert data.space == InputSpace.unit(3)
        assert data.class_names == ("cat", "dog", "cow")
    assert as_image_data(TensorDataset(PIXELS.movedim(-1, 1) / 255, LABELS)).space == InputSpace.unit(3)


def test_a_normalize_that_does_not_explain_the_images_is_not_believed() -> None:
    """A step after it moves them: (x - mean) / std of the transforms would map them far out of [0, 1]."""
    twice = v1.Compose([*TRANSFORMS["v1"].transforms, v1.Lambda(lambda image: 9 * image)])
    with pytest.raises(DataError, match="not known"):
        as_image_data(Pictures(twice))
    data = as_image_data(Pictures(twice), space="range")
    unit = data.space.to_unit(torch.cat([data.train_images, data.test_images]))
    assert unit.min().abs() < 1e-6
    assert (unit.max() - 1).abs() < 1e-6


def test_an_image_folder_is_the_data_set_it_is(tmp_path: Path) -> None:
    for index in range(12):
        folder = tmp_path / f"class{int(LABELS[index])}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(PIXELS[index].numpy()).save(folder / f"{index}.png")
    data = as_image_data(ImageFolder(str(tmp_path), TRANSFORMS["flipped and cropped"]))
    assert (data.name, data.class_names) == ("folder", ("class0", "class1", "class2"))
    assert same_images(torch.cat([data.train_images, data.test_images]), PLAIN)
