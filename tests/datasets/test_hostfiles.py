"""Sets as the hosts leave them: files that belong together, and formed images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ddplug import InputSpace
from ddplug.datasets.host_files import apart
from ddplug.datasets.synthetic import SyntheticSet, load_set, save_set
from ddplug.errors import DataError


def pictures(count: int = 4, size: int = 8) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


IMAGES, LABELS = pictures(), torch.tensor([0, 0, 1, 1])
LOGITS = torch.tensor([[2.0, 0.0], [1.0, 0.5], [-1.0, 3.0], [5.0, 0.0]])


# --- DM, DC, DSA


def test_dms_images_are_normalised_as_its_data_is(tmp_path: Path) -> None:
    torch.save({"data": [[IMAGES, LABELS]], "accs_all_exps": {"ConvNet": [0.5]}}, tmp_path / "res_DM.pt")
    loaded = load_set(tmp_path / "res_DM.pt")
    assert (loaded.meaning, loaded.space, loaded.lr) == ("normalized", None, None)
    torch.save({"images": IMAGES, "labels": LABELS}, tmp_path / "set.pt")
    assert load_set(tmp_path / "set.pt").meaning is None


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_dms_accuracies_are_numpys_numbers(tmp_path: Path, kind: Any) -> None:
    torch.save({"data": [[IMAGES, LABELS]], "accs_all_exps": {"ConvNet": [kind(1)]}}, tmp_path / "res_DM.pt")
    assert torch.equal(load_set(tmp_path / "res_DM.pt").images, IMAGES)


def test_numpy_1_has_another_name_for_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "res_DM.pt"
    torch.save(
        {"data": [[IMAGES, LABELS]], "accs_all_exps": [np.float64(1)]}, path, _use_new_zipfile_serialization=False
    )
    content = path.read_bytes()
    assert b"numpy._core.multiarray" in content
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert torch.equal(load_set(path).images, IMAGES)


def test_what_is_known_of_a_set_is_kept(tmp_path: Path) -> None:
    save_set(SyntheticSet(IMAGES, LABELS, meaning="zca", lr=0.03), tmp_path / "set.pt")
    loaded = load_set(tmp_path / "set.pt")
    assert (loaded.meaning, loaded.lr) == ("zca", 0.03)


# --- MTT, DATM


def trajectory(folder: Path, labels: Tensor = LABELS, name: str = "best", **others: Tensor) -> Path:
    for kind, held in {"images": IMAGES, "labels": labels, **others}.items():
        torch.save(held, folder / f"{kind}_{name}.pt")
    return folder / f"images_{name}.pt"


def test_labels_are_found_beside_the_images(tmp_path: Path) -> None:
    trajectory(tmp_path, LABELS.flip(0), name="100")
    loaded = load_set(trajectory(tmp_path, name="2000"))
    assert torch.equal(loaded.images, IMAGES)
    assert torch.equal(loaded.labels, LABELS)
    assert (loaded.lr, loaded.meaning, loaded.space) == (None, None, None)


def test_learned_labels_are_logits_and_the_rate_is_taken(tmp_path: Path) -> None:
    loaded = load_set(trajectory(tmp_path, LOGITS.requires_grad_(), lr=torch.tensor(0.02)))
    expected = LOGITS.exp() / LOGITS.exp().sum(1, keepdim=True)
    torch.testing.assert_close(loaded.labels, expected.detach())
    assert not loaded.labels.requires_grad
    assert loaded.lr == pytest.approx(0.02)
    assert loaded.labels.argmax(1).tolist() == [0, 0, 1, 0]
    assert loaded.classes.tolist() == [0, 0, 1, 1], "by place: what a label became by learning is not the class"
    save_set(loaded, tmp_path / "ours.pt")
    assert load_set(tmp_path / "ours.pt").classes.tolist() == [0, 0, 1, 1]


def test_classes_that_are_none_are_refused(tmp_path: Path) -> None:
    torch.save({"images": IMAGES, "labels": LABELS, "given_classes": torch.tensor([0, 1])}, tmp_path / "set.pt")
    with pytest.raises(DataError, match=r"given_classes in .*, expected \(4,\)"):
        load_set(tmp_path / "set.pt")
    torch.save({"images": IMAGES, "labels": LABELS, "classes": ["cat", "dog"]}, tmp_path / "set.pt")
    assert torch.equal(load_set(tmp_path / "set.pt").classes, LABELS), "somebody else's names are not looked at"


def test_learned_labels_of_unequal_classes_say_their_class(tmp_path: Path) -> None:
    loaded = load_set(trajectory(tmp_path, torch.randn(4, 3)))
    assert torch.equal(loaded.classes, loaded.labels.argmax(1))


def test_labels_that_are_probabilities_stay_so(tmp_path: Path) -> None:
    soft = LOGITS.detach().softmax(1)
    assert torch.equal(load_set(trajectory(tmp_path, soft)).labels, soft)


def test_pictures_of_whitened_images_tell_that_they_are(tmp_path: Path) -> None:
    path = trajectory(tmp_path)
    torch.save(IMAGES, tmp_path / "images_zca_1000.pt")
    assert load_set(path).meaning == "zca"
    with pytest.raises(DataError, match=r"images_zca_1000\.pt.*labels"):
        load_set(tmp_path / "images_zca_1000.pt")  # the picture is no set


def test_images_without_their_labels(tmp_path: Path) -> None:
    torch.save(IMAGES, tmp_path / "images_5.pt")
    torch.save(LABELS, tmp_path / "labels_6.pt")
    with pytest.raises(DataError, match=r"no file of labels.*labels_5\.pt.*the host wrote"):
        load_set(tmp_path / "images_5.pt")


@pytest.mark.parametrize("rate", [torch.tensor(-0.1), torch.tensor(float("nan")), torch.zeros(2), [0.1]], ids=str)
def test_a_rate_that_is_none(tmp_path: Path, rate: Tensor) -> None:
    path = trajectory(tmp_path, lr=rate)
    with pytest.raises(DataError, match=r"lr_best\.pt' holds"):
        load_set(path)


# --- IDC


def formed(folder: Path, images: Tensor = IMAGES, **arguments: object) -> Path:
    torch.save([images, LABELS], folder / "data.pt")
    if arguments:
        (folder / "args.txt").write_text(json.dumps({"dataset": "cifar10", **arguments}))
    return folder / "data.pt"


def test_each_quarter_of_an_image_becomes_an_image() -> None:
    images, labels = apart(IMAGES, LABELS, 2, formed=True)
    assert images.shape == (16, 3, 8, 8)
    assert labels.tolist() == [0] * 8 + [1] * 8
    lower_left = F.interpolate(IMAGES[3:, :, 4:, :4], scale_factor=2, mode="bilinear")
    torch.testing.assert_close(images[14:15], lower_left)


def test_what_the_grid_lacks_is_grey() -> None:
    images, _ = apart(torch.zeros(1, 3, 8, 8), LABELS[:1], 3, formed=True)
    assert images.shape == (9, 3, 8, 8)
    assert float(images[0].max()) == 0
    assert images[8, 0, -1, -1] == 0.5


def test_soft_labels_are_handed_down() -> None:
    _, labels = apart(IMAGES, LOGITS.detach().softmax(1), 2, formed=True)
    torch.testing.assert_close(labels[4:8], LOGITS.detach().softmax(1)[1].expand(4, 2))


def test_the_factor_is_read_from_the_hosts_arguments(tmp_path: Path) -> None:
    loaded = load_set(formed(tmp_path, factor=2, decode_type="single"))
    assert torch.equal(loaded.images, apart(IMAGES, LABELS, 2, formed=True)[0])
    assert loaded.space == InputSpace.unit(3)


def test_without_arguments_the_factor_has_to_be_given(tmp_path: Path) -> None:
    path = formed(tmp_path, IMAGES * 1.2 - 0.1)
    with pytest.raises(DataError, match=r"data\.pt.*Give the factor"):
        load_set(path)
    loaded = load_set(path, factor=1)
    assert torch.equal(loaded.images, (IMAGES * 1.2 - 0.1).clamp(0, 1))
    assert len(load_set(path, factor=2).images) == 16


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"factor": "two"}'])
def test_damaged_arguments_do_not_give_a_factor(tmp_path: Path, text: str) -> None:
    path = formed(tmp_path)
    (tmp_path / "args.txt").write_text(text)
    with pytest.raises(DataError, match="Give the factor"):
        load_set(path)


def test_other_ways_of_forming_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="decode_type 'multi'"):
        load_set(formed(tmp_path, factor=2, decode_type="multi"))
    assert len(load_set(formed(tmp_path, factor=1, decode_type="multi")).images) == 4


@pytest.mark.parametrize("factor", [0, -1, 9])
def test_impossible_factors(factor: int) -> None:
    with pytest.raises(DataError, match=f"at least 1, and divides .*got {factor}"):
        apart(IMAGES, LABELS, factor, formed=True)


def test_images_that_are_not_intensities_are_not_clamped(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="intensities.*got values from"):
        load_set(formed(tmp_path, 4 * IMAGES - 2), factor=1)


def test_a_renamed_file_of_idcs(tmp_path: Path) -> None:
    torch.save((IMAGES, LABELS), tmp_path / "renamed.pt")
    assert load_set(tmp_path / "renamed.pt", factor=2).space == InputSpace.unit(3)
    assert load_set(tmp_path / "renamed.pt").space is None


# --- a factor for any file


NORMALISED = InputSpace.normalized([0.5, 0.4, 0.3], [0.25, 0.2, 0.1])
SOFT = LOGITS.softmax(1)


def ours(folder: Path, images: Tensor, labels: Tensor) -> Path:
    save_set(SyntheticSet(images, labels, NORMALISED, "mine", given_classes=LABELS), folder / "set.pt")
    return folder / "set.pt"


def dictionary(folder: Path, images: Tensor, labels: Tensor) -> Path:
    torch.save({"images": images, "labels": labels}, folder / "set.pt")
    return folder / "set.pt"


def dms(folder: Path, images: Tensor, labels: Tensor) -> Path:
    torch.save({"data": [[images, labels]], "accs_all_exps": {}}, folder / "res_DM.pt")
    return folder / "res_DM.pt"


def mtts(folder: Path, images: Tensor, labels: Tensor) -> Path:
    return trajectory(folder, labels, images=images)


@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("write", [ours, dictionary, dms, mtts])
def test_images_that_hold_others_are_taken_apart_in_any_file(write: Any, labels: Tensor, tmp_path: Path) -> None:
    mosaics = 4 * IMAGES - 2  # far from [0, 1], as normalised and whitened images are
    path = write(tmp_path, mosaics, labels)
    whole, parts = load_set(path), load_set(path, factor=2)
    assert parts.images.shape == (16, 3, 8, 8)
    for number in range(16):
        image, row, column = number // 4, number % 4 // 2 * 4, number % 2 * 4
        part = mosaics[image : image + 1, :, row : row + 4, column : column + 4]
        enlarged = F.interpolate(part, scale_factor=2, mode="bilinear")
        torch.testing.assert_close(parts.images[number : number + 1], enlarged)
        assert torch.equal(parts.labels[number], whole.labels[image])
        assert parts.classes[number] == whole.classes[image]
    assert len(parts.classes) == len(parts.labels) == 16
    if write in (ours, mtts):
        assert torch.equal(parts.classes, LABELS.repeat_interleave(4)), "the classes they were made for"
    assert (parts.space, parts.meaning, parts.dataset) == (whole.space, whole.meaning, whole.dataset)
    again = load_set(path, factor=1)
    assert torch.equal(again.images, whole.images)
    assert torch.equal(again.classes, whole.classes)


def test_images_that_are_not_square_are_taken_apart(tmp_path: Path) -> None:
    parts = load_set(dictionary(tmp_path, torch.arange(24.0).reshape(1, 1, 4, 6), LABELS[:1]), factor=2)
    assert parts.images.shape == (4, 1, 4, 6)
    assert parts.images[1, 0, 0].tolist() == pytest.approx([3, 3.25, 3.75, 4.25, 4.75, 5])


@pytest.mark.parametrize("factor", [0, -2, 3, 16])
@pytest.mark.parametrize("write", [ours, dms, mtts])
def test_a_factor_has_to_divide_the_images_of_other_files(write: Any, factor: int, tmp_path: Path) -> None:
    path = write(tmp_path, IMAGES, LABELS)
    with pytest.raises(DataError, match=f"divides its height and width; got {factor} for images of 8x8"):
        load_set(path, factor=factor)


def test_a_factor_of_nothing_is_refused_in_idcs_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 1, and divides .*got 0"):
        load_set(formed(tmp_path, factor=2), factor=0)
