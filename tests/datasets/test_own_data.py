"""An `ImageData` of what people have: every form of it, the test split that is drawn, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from ddplug import InputSpace, datasets
from ddplug.datasets.images import ImageData, as_image_data
from ddplug.errors import DataError, InputError
from ddplug.hosting.names import stacked

UNIT = InputSpace.unit(3)
THOUSANDTHS = InputSpace((0.0,), (0.001,))
IMAGES = torch.rand(24, 3, 4, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 2
TEST = (IMAGES[:6] / 2, LABELS[:6])


class Pairs(Dataset):  # type: ignore[type-arg]
    """A data set of somebody's own, with labels of some kind."""

    def __init__(self, images: Tensor, labels: Tensor, kind: Callable[[Tensor], Any] = int) -> None:
        self.images, self.labels, self.kind = images, labels, kind

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.images[index], self.kind(self.labels[index])


KINDS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "pair": lambda images, labels: (images, labels),
    "list": lambda images, labels: [images, labels.tolist()],
    "TensorDataset": TensorDataset,
    "ints": Pairs,
    "tensors": lambda images, labels: Pairs(images, labels, lambda label: label),
    "one-element tensors": lambda images, labels: Pairs(images, labels, lambda label: label[None]),
    "NumPy's": lambda images, labels: Pairs(images, labels, lambda label: label.numpy()[()]),
    "list of pairs": lambda images, labels: [*zip(images, labels.tolist(), strict=True)],
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
    dtypes=st.tuples(
        st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
        st.sampled_from([torch.int64, torch.int32, torch.uint8]),
    ),
    seed=st.integers(0, 999),
)
def test_both_splits_come_back(
    kind: Callable[[Tensor, Tensor], Any],
    counts: list[int],
    shape: tuple[int, int, int],
    dtypes: tuple[torch.dtype, torch.dtype],
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Two pairs in a list are two splits, so no split here is a list of exactly two.
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts) + 2)
    labels = labels[torch.randperm(len(labels), generator=generator)].to(dtypes[1])
    images = torch.randn(len(labels), *shape, generator=generator).to(dtypes[0])
    train, test = kind(images, labels), kind(images[:3].flip(0), labels[:3].flip(0))
    space = InputSpace.normalized([0.5] * shape[0], [0.2] * shape[0])
    names = [f"class {number}" for number in range(len(counts))]
    for data in (
        as_image_data((train, test), space=space, name="mine", class_names=names),
        as_image_data([train, test], space=space, name="mine", class_names=names),
        as_image_data(train, test=test, space=space, name="mine", class_names=names),
    ):
        assert (data.name, data.class_names, data.space, data.shape) == ("mine", tuple(names), space, shape)
        for found, wanted in (
            (data.train_images, images), (data.train_labels, labels),
            (data.test_images, images[:3].flip(0)), (data.test_labels, labels[:3].flip(0)),
        ):  # fmt: skip
            assert found.dtype == (torch.float32 if wanted.is_floating_point() else torch.int64)
            assert torch.equal(found.double(), wanted.double())
        assert len(data.fingerprint()) == 16
    assert as_image_data(train, space=space, test=test).class_names == tuple(map(str, range(len(counts))))
    assert as_image_data(train, space=space, test=test).name == "data"


@given(counts=st.lists(st.integers(2, 45), min_size=1, max_size=4), seed=st.integers(0, 999))
@pytest.mark.usefixtures("untouched")
def test_a_tenth_of_each_class_is_for_testing(counts: list[int], seed: int) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    images = torch.arange(len(labels)).float().reshape(-1, 1, 1, 1)
    data = as_image_data((images, labels), space=THOUSANDTHS)
    assert data.test_labels.bincount().tolist() == [max(1, count // 10) for count in counts]
    both = torch.cat([data.train_images, data.test_images]).flatten().long()
    assert both.sort().values.tolist() == list(range(len(labels))), "each image is in one of the two"
    assert torch.equal(torch.cat([data.train_labels, data.test_labels]), labels[both])
    assert as_image_data((images, labels), space=THOUSANDTHS).fingerprint() == data.fingerprint()


def test_the_test_split_is_drawn_and_not_the_first_images() -> None:
    data = as_image_data((torch.arange(200.0).reshape(-1, 1, 1, 1), torch.zeros(200).int()), space=THOUSANDTHS)
    assert 40 < data.test_images.mean() < 160
    assert len(set(data.test_images.flatten().diff().tolist())) > 3


def test_an_image_data_and_a_name_say_it_all(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    data = as_image_data("digits")
    assert data.fingerprint() == datasets.load("digits").fingerprint()
    assert as_image_data(data) is data
    assert as_image_data(data, space=data.space) is data
    for number, part in enumerate(("train", "test")):
        for name in ("a", "b"):
            (tmp_path / "x:y" / part / name).mkdir(parents=True)
            noise = np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "x:y" / part / name / "0.png")
    assert as_image_data(f"folder:{tmp_path / 'x:y'}").class_names == ("a", "b"), "the first colon is the one"
    for given_data in (data, "digits"):
        for more in ({"space": UNIT}, {"name": "x"}, {"class_names": ["a"]}, {"test": TEST}):
            with pytest.raises(DataError, match=f"digits.* says itself what {next(iter(more))}= would say"):
                as_image_data(given_data, **more)
    for wrong, said in {
        "nothing": "unknown data set",
        "cifar10": "no cifar10 could be read",
        "digits:x": "take no path",
    }.items():
        with pytest.raises(DataError, match=said):
            as_image_data(wrong)


def test_tensors_are_taken_as_they_are_and_leave_no_graph() -> None:
    images = IMAGES.clone().requires_grad_()
    data = as_image_data((images, LABELS), test=TEST, space=UNIT)
    assert data.train_images.data_ptr() == images.data_ptr()
    assert not data.train_images.requires_grad


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter([(IMAGES[0], 0)])

    def __len__(self) -> int:
        return 1


NAN = IMAGES.clone()
NAN[3, 0, 0, 0] = float("nan")
BAD: dict[str, tuple[Any, str]] = {
    "one image": ((IMAGES[0], LABELS[0]), r"shape \(3, 4, 5\), expected \(n, c, h, w\)"),
    "none": ((IMAGES[:0], LABELS[:0]), r"at least 1"),
    "fractions": (Pairs(IMAGES, LABELS / 2, float), "whole and from 0 on"),
    "true and false": ((IMAGES, LABELS.bool()), r"type torch\.bool"),
    "numbers up to 255": ((255 * IMAGES, LABELS), r"run from .* to 25\d, and space is \[0, 1\].*/ 255"),
    "two classes each": ((IMAGES, torch.ones(24, 2).long()), r"shape \(24, 2\), expected \(24,\).*argmax"),
    "few labels": ((IMAGES, LABELS[:23]), r"shape \(23,\), expected \(24,\)"),
    "negative": ((IMAGES, LABELS - 1), "whole and from 0 on"),
    "from 1": ((IMAGES, LABELS + 1), "class 0 has no training images; expected some of each of 3 classes"),
    "a gap": ((IMAGES, LABELS * 10**12), "class 1 has no training images"),
    "NaN": ((NAN, LABELS), "not finite"),
    "one of a class": ((IMAGES[:3], LABELS[:3]), "class '1' has one image.*give a test split"),
    "channels last": ((IMAGES.permute(0, 2, 3, 1), LABELS), r"have 4 channels.*images\.permute\(0, 3, 1, 2\)"),
    "an array": (IMAGES.numpy(), "expected a pair, images .* as tensors or arrays"),
    "whole numbers": ((IMAGES.long(), LABELS), r"training split are torch\.int64, expected floats"),
    "images alone": (IMAGES, "no images and labels could be made of Tensor"),
    "three tensors": (TensorDataset(IMAGES, LABELS, LABELS), "made of TensorDataset"),
    "pictures": (Pairs(IMAGES, LABELS, lambda label: "cat"), "made of Pairs"),
    "two sizes": ([(IMAGES[0], 0), (IMAGES[0, :, :2], 0), (IMAGES[0], 0)], "Images are of one size"),
    "a stream": (Stream(), "made of Stream"),
    "a dictionary": ({0: (IMAGES[0], 0)}, "made of dict"),
    "nothing": (None, "made of NoneType"),
    "two names": (("digits", "digits"), "made of str"),
    "test of another size": (((IMAGES, LABELS), (IMAGES[..., :4], LABELS)), r"5\) and the test images \(3, 4, 4\)"),
    "test of another class": (((IMAGES, LABELS), (IMAGES, LABELS + 1)), "test labels go up to 2, but there are 2 cl"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "said"), BAD.values(), ids=BAD)
def test_what_is_no_data_is_refused(data: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        as_image_data(data, space=UNIT)


def test_what_is_said_of_the_data_must_fit() -> None:
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"space": InputSpace.unit(1)}, r"3 channels and space is \[0, 1\] x 1"),
        ({"space": 3}, "space is 3, expected an input space"),
        ({"class_names": ["cat"]}, "training labels go up to 1, but there are 1 classes, cat"),
        ({"class_names": ["cat", "dog", "cow"]}, "class 2 has no training images; expected some of each of 3"),
    ]
    for more, said in refusals:
        with pytest.raises(DataError, match=said):
            as_image_data((IMAGES, LABELS), **{"space": UNIT, **more})
    with pytest.raises(DataError, match=r"not known.*InputSpace\.normalized\(mean, std\).*'range'"):
        as_image_data((2 * IMAGES - 1, LABELS))
    with pytest.raises(DataError, match="third"):
        as_image_data(((IMAGES, LABELS), TEST), test=TEST, space=UNIT)
    with pytest.raises(InputError, match="unknown input space 'unti'"):
        as_image_data((IMAGES, LABELS), space="unti")
    assert as_image_data((IMAGES, LABELS), space="unit").space == UNIT


def test_data_of_ones_own_can_be_trained_on_and_started_from() -> None:
    data = as_image_data(Pairs(IMAGES, LABELS), space=UNIT)
    assert isinstance(data, ImageData)
    images, labels = datasets.random_real(data, 2, torch.Generator().manual_seed(0))
    assert images.shape == (4, 3, 4, 5)
    assert labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_hosts_data_are_stacked_by_the_same_code(kind: Callable[[Tensor, Tensor], Any]) -> None:
    images, labels = stacked(kind(IMAGES.double(), LABELS.int()))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert torch.equal(images, IMAGES)
    assert torch.equal(labels, LABELS)
    with pytest.raises(DataError, match="made of dict"):
        stacked({})


def test_the_page_does_it_so(monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "tasks" / "data.md").read_text()
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "as_image_data" in block)
    asked: list[Any] = []
    monkeypatch.setattr("ddplug.datasets.images.load", lambda *given: asked.append(given))
    pair = (IMAGES, LABELS)
    exec(block, {"images": IMAGES, "labels": LABELS, "train": pair, "test": pair, "mean": [0.5] * 3, "std": [0.2] * 3})
    assert asked == [("cifar10", "FOLDER")]


BYTES = (255 * torch.rand(24, 3, 6, 5, generator=torch.Generator().manual_seed(1))).byte()
LAST = BYTES.permute(0, 2, 3, 1)
FORMS: dict[str, tuple[Any, Any, Tensor]] = {
    "CIFAR's .data and .targets": (LAST.contiguous().numpy(), LABELS.tolist(), BYTES),
    "MNIST's .data and .targets": (BYTES[:, 0], LABELS, BYTES[:, :1]),
    "SVHN's .data and .labels": (BYTES.numpy(), LABELS.numpy(), BYTES),
    "a TensorDataset of bytes": (LAST, LABELS, BYTES),
    "intensities, channels last": (LAST.float() / 255, LABELS, BYTES),
    "float64 arrays, channels last": ((LAST.double() / 255).numpy(), LABELS.numpy().astype(np.uint8), BYTES),
    "one-hot": (BYTES.numpy(), np.eye(2)[LABELS.numpy()], BYTES),
}


@pytest.mark.parametrize("form", FORMS)
def test_pictures_as_data_sets_hold_them(form: str) -> None:
    """Bytes or floats, arrays or tensors, channels first, last or left out: also for the test split."""
    images, labels, expected = FORMS[form]
    pair = TensorDataset(images, labels) if form.startswith("a TensorDataset") else (images, labels)
    for made in (as_image_data(pair, test=pair), as_image_data((pair, pair))):
        torch.testing.assert_close(made.train_images, expected.float() / 255)
        torch.testing.assert_close(made.test_images, made.train_images)
        assert made.train_labels.tolist() == LABELS.tolist()
        assert made.space == InputSpace.unit(expected.shape[1])


def test_bytes_are_made_images_of_the_space_that_is_given() -> None:
    space = InputSpace.normalized((0.5,) * 3, (0.25,) * 3)
    made = as_image_data((LAST.numpy(), LABELS.numpy()), space=space, test=(BYTES, LABELS))
    for images in (made.train_images, made.test_images):
        torch.testing.assert_close(images, (BYTES.float() / 255 - 0.5) / 0.25)
    assert made.space == space
    with pytest.raises(DataError, match="images have 3 channels"):
        as_image_data((BYTES, LABELS), space=InputSpace.unit(1))


def test_arrays_wherever_torch_makes_tensors() -> None:
    """The host's default device is not that of arrays and lists."""
    with torch.device("meta"):
        made = as_image_data((IMAGES.numpy(), LABELS.tolist()), test=(IMAGES.numpy(), LABELS.numpy()))
    torch.testing.assert_close(made.train_images, IMAGES)
    assert made.train_labels.tolist() == LABELS.tolist()
