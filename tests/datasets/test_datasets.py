"""Data sets: their layouts, each built small by the test itself, the digits, and what is refused."""

import functools
import hashlib
import http.server
import io
import pickle
import shutil
import tarfile
import threading
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

from ddplug.datasets.images import ImageData, as_image_data, load, random_real
from ddplug.datasets.shapes import FIGURES, draw
from ddplug.datasets.spaces import NORMALIZATIONS, InputSpace
from ddplug.errors import DataError, DDPlugWarning
from ddplug.networks.zoo import build, seeded

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def pictures(count, seed, size=(32, 32)):
    """Smooth random pictures, uint8 (count, h, w, 3): JPEG keeps them nearly as they are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    resized = [Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BILINEAR) for picture in coarse]
    return np.stack([np.asarray(picture) for picture in resized])


def write_npz(file, images, labels, classes=CIFAR_CLASSES, replaced=()):
    streams = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=98)
        streams.append(np.frombuffer(stream.getvalue(), np.uint8))
    arrays = {
        "jpeg": np.concatenate(streams),
        "offsets": np.cumsum([0, *map(len, streams)]).astype(np.int64),
        "labels": np.asarray(labels, np.uint8),
        "classes": np.array(classes),
    }
    np.savez(file, **{key: value for key, value in (arrays | dict(replaced)).items() if value is not None})


def write_folder(root, images, labels, part, classes=CIFAR_CLASSES, suffix="png"):
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / part / classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index:03}.{suffix}")


@pytest.fixture
def npz(tmp_path):
    write_npz(tmp_path / "tiny_train.npz", pictures(20, 0), list(range(10)) * 2)
    write_npz(tmp_path / "tiny_test.npz", pictures(10, 1), range(10))
    return tmp_path


@pytest.fixture
def image_folder(tmp_path):
    write_folder(tmp_path, pictures(20, 0), list(range(10)) * 2, "train")
    write_folder(tmp_path, pictures(10, 1), range(10), "test")
    return tmp_path


@pytest.fixture
def batches(tmp_path, monkeypatch):
    """A CIFAR-10 of 20 + 10 images in torchvision's layout, whose md5 sums torchvision is made to expect."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name, content):
        blob = pickle.dumps(content)
        (folder / name).write_bytes(blob)
        return [name, hashlib.md5(blob).hexdigest()]

    def batch(name, images, labels):
        return write(name, {"data": images.transpose(0, 3, 1, 2).reshape(len(images), -1), "labels": list(labels)})

    reader = torchvision.datasets.CIFAR10
    train = pictures(20, 0)
    monkeypatch.setattr(
        reader, "train_list", [batch("data_batch_1", train[:10], range(10)), batch("b2", train[10:], range(10))]
    )
    monkeypatch.setattr(reader, "test_list", [batch("test_batch", pictures(10, 1), range(10))])
    name, md5 = write("batches.meta", {"label_names": list(CIFAR_CLASSES)})
    monkeypatch.setattr(reader, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return folder


def assert_is_tiny_cifar(data, train_order=slice(None), tolerance=0.0):
    assert data.class_names == CIFAR_CLASSES
    assert data.shape == (3, 32, 32)
    assert data.train_images.dtype == data.test_images.dtype == torch.float32
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64
    assert data.train_labels.tolist() == [*range(10), *range(10)] or data.train_labels.tolist() == sorted(
        [*range(10)] * 2
    )
    assert data.test_labels.tolist() == list(range(10))
    mean = torch.tensor([0.4914, 0.4822, 0.4465])[:, None, None]
    std = torch.tensor([0.2023, 0.1994, 0.2010])[:, None, None]
    for images, pixels in ((data.train_images, pictures(20, 0)[train_order]), (data.test_images, pictures(10, 1))):
        wanted = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
        assert (images * std + mean - wanted).abs().mean() <= tolerance + 1e-6
    assert data.space == InputSpace.normalized((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def test_folders_as_two_archives_have_them(tmp_path):
    """Tiny ImageNet's validation pictures have their classes in a file, and its test pictures have none; Imagenette's
    pictures are of many sizes, which torchvision makes one, as the message says."""
    names = ["n01", "n02", "n03"]

    def picture(path, number, size=(9, 9)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*size, 3), 20 * number, np.uint8) + np.eye(*size, dtype=np.uint8)[..., None]).save(
            path
        )

    tiny, nette = tmp_path / "tiny", tmp_path / "nette"
    for label, name in enumerate(names):
        for number in range(4):
            picture(tiny / "train" / name / "images" / f"{name}_{number}.png", label)
            for part in ("train", "val"):
                picture(nette / part / name / f"{number}.png", label, (9 + number, 12 - label))
    lines = []
    for number, label in enumerate([2, 0, 1, 2]):
        picture(tiny / "val" / "images" / f"val_{number}.png", label)
        lines.append(f"val_{number}.png\t{names[label]}\t0\t0\t8\t8")
    (tiny / "val" / "val_annotations.txt").write_text("\n".join(lines))
    picture(tiny / "test" / "images" / "test_0.png", 1)
    data = load("folder", tiny)
    assert data.class_names == tuple(names)
    assert data.test_labels.tolist() == [0, 1, 2, 2]
    seen = data.space.to_unit(data.test_images).amin((1, 2, 3)) * 255 / 20
    torch.testing.assert_close(seen, data.test_labels.float(), rtol=0, atol=1e-3)
    with pytest.raises(DataError, match=r"one size.*Compose\(\[Resize\(64\), CenterCrop\(64\), ToTensor\(\)\]\)"):
        load("folder", nette)
    transform = Compose([Resize(8), CenterCrop(8), ToTensor()])
    resized = as_image_data(tuple(ImageFolder(str(nette / part), transform) for part in ("train", "val")))
    assert resized.class_names == tuple(names)
    assert resized.train_images.shape == (12, 3, 8, 8)


def test_torchvision_layout(batches):
    assert_is_tiny_cifar(load("cifar10", batches.parent))
    assert_is_tiny_cifar(load("cifar10", str(batches)))


def test_without_a_path_the_cache_is_read(batches, monkeypatch):
    monkeypatch.setenv("DDPLUG_CACHE", str(batches.parent.parent))
    batches.parent.rename(batches.parent.parent / "data")
    assert_is_tiny_cifar(load("cifar10"))


def test_torchvision_layout_that_fails_its_md5_check(batches):
    with (batches / "b2").open("ab") as file:
        file.write(b"!")
    with pytest.raises(DataError, match=r"no cifar10 could be read from .*corrupted.*--download fetches"):
        load("cifar10", batches)


def idx(*shape):
    """A file of MNIST's format: a magic number with the type and the number of sizes, the sizes, bytes."""
    content = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return content, bytes([0, 0, 8, len(shape), *np.array(shape, ">i4").tobytes()]) + content.tobytes()


def tiny_mnist(root, name, monkeypatch):
    raw = root / {"mnist": "MNIST", "fashionmnist": "FashionMNIST"}[name] / "raw"
    raw.mkdir(parents=True)
    found = []
    for part, count in (("train", 20), ("t10k", 10)):
        images, content = idx(count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(content)
        labels = np.arange(count, dtype=np.uint8) % 10
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1, *np.array([count], ">i4").tobytes(), *labels])
        )
        found.append((images[:, None], labels))
    return found


def tiny_svhn(root, name, monkeypatch):
    scipy_io = pytest.importorskip("scipy.io")
    found, lists = [], {}
    for part, count in (("train", 25), ("test", 11)):
        images = np.random.default_rng(count).integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = np.arange(count) % 10
        file = root / f"{part}_32x32.mat"
        scipy_io.savemat(file, {"X": images, "y": np.where(labels == 0, 10, labels)[:, None]})
        lists[part] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
        found.append((images.transpose(3, 2, 0, 1), labels))
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", lists)
    return found


def tiny_stl10(root, name, monkeypatch):
    folder = root / "stl10_binary"
    folder.mkdir()
    found, lists = [], {"train": [], "test": []}
    classes = "\n".join(f"kind{number}" for number in range(10))
    (folder / "class_names.txt").write_text(classes)
    for part, count in (("train", 20), ("test", 10)):
        images = np.random.default_rng(count).integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        labels = np.arange(count) % 10
        for kind, content in (("X", images.transpose(0, 1, 3, 2)), ("y", (labels + 1).astype(np.uint8))):
            file = folder / f"{part}_{kind}.bin"
            file.write_bytes(content.tobytes())
            lists[part].append([file.name, hashlib.md5(file.read_bytes()).hexdigest()])
        found.append((images, labels))
    monkeypatch.setattr(torchvision.datasets.STL10, "train_list", lists["train"])
    monkeypatch.setattr(torchvision.datasets.STL10, "test_list", lists["test"])
    return found


@pytest.mark.parametrize(
    ("name", "make", "shape"),
    [
        ("mnist", tiny_mnist, (1, 28, 28)), ("fashionmnist", tiny_mnist, (1, 28, 28)), ("svhn", tiny_svhn, (3, 32, 32)),
        ("stl10", tiny_stl10, (3, 96, 96)),
    ],
)  # fmt: skip
def test_data_sets_by_name_are_read_as_torchvision_has_them(name, make, shape, tmp_path, monkeypatch):
    """Other sizes than 32, one channel, and classes of uneven size."""
    expected = make(tmp_path, name, monkeypatch)
    data = load(name, tmp_path)
    assert data.shape == shape
    assert data.num_classes == 10
    assert data.space == NORMALIZATIONS[name]
    for images, labels, (pixels, numbers) in zip(
        (data.train_images, data.test_images), (data.train_labels, data.test_labels), expected, strict=True
    ):
        assert torch.allclose(data.space.to_unit(images), torch.from_numpy(pixels.copy()) / 255, atol=1e-6)
        assert labels.tolist() == numbers.tolist()
        assert labels.dtype == torch.int64
    with seeded(0):
        network = build("convnet", width=4, channels=shape[0], size=shape[1:])
    assert network(data.test_images[:2]).shape == (2, 10)


@pytest.fixture
def server(tmp_path):
    """Serves a folder from the loopback address, and yields the folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_a_missing_data_set_is_downloaded_on_request_only(batches, server, monkeypatch):
    """The message without --download has the command; a server that is gone is an error of ours."""
    folder, address = server
    archive = folder / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(batches, batches.name)
    shutil.rmtree(batches)
    reader = torchvision.datasets.CIFAR10
    monkeypatch.setattr(reader, "url", f"{address}/{archive.name}")
    monkeypatch.setattr(reader, "filename", archive.name)
    monkeypatch.setattr(reader, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    root = batches.parent / "data"
    with pytest.raises(DataError, match=r"no such folder.*same command with --download.*load\('cifar10', path, down"):
        load("cifar10", root)
    assert not root.exists()
    assert_is_tiny_cifar(load("cifar10", root, download=True))
    assert_is_tiny_cifar(load("cifar10", root))
    monkeypatch.setattr(reader, "url", f"{address}/elsewhere.tar.gz")
    with pytest.raises(DataError, match=r"cifar10 could not be fetched to .*again' .*404"):
        load("cifar10", batches.parent / "again", download=True)


def test_image_folder_layout(image_folder):
    by_class = [index for label in range(10) for index in (label, label + 10)]
    assert_is_tiny_cifar(load("cifar10", image_folder, progress=False), train_order=by_class)


def test_npz_layout(npz, capfd):
    assert_is_tiny_cifar(load("cifar10", npz, progress=False), tolerance=0.01)
    assert capfd.readouterr() == ("", "")


def test_several_npz_pairs_are_refused(npz):
    write_npz(npz / "other_train.npz", pictures(20, 2), list(range(10)) * 2)
    with pytest.raises(DataError, match=r"found there: other_train.npz, tiny_test.npz, tiny_train.* one \*train\*.npz"):
        load("cifar10", npz)


def test_cifar100_in_any_layout(tmp_path):
    names = tuple(f"class{label:03}" for label in range(100))
    write_npz(tmp_path / "train.npz", pictures(100, 0), range(100), names)
    write_npz(tmp_path / "test.npz", pictures(100, 1), range(100), names)
    data = load("cifar100", tmp_path, progress=False)
    assert data.num_classes == 100
    assert data.space == InputSpace.normalized((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
    with pytest.raises(DataError, match=r"is not cifar10: it has 100 classes.* or load it as 'folder'"):
        load("cifar10", tmp_path)
    assert load("folder", tmp_path, progress=False).class_names == names


def test_truncated_npz(npz):
    file = npz / "tiny_train.npz"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"tiny_train.npz is damaged or not of this layout"):
        load("cifar10", npz)


def test_npz_with_a_flipped_byte(npz):
    file = npz / "tiny_train.npz"
    content = bytearray(file.read_bytes())
    content[1000] ^= 255
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"tiny_train.npz is damaged"):
        load("cifar10", npz)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"labels": None}, "damaged or not of this layout.*expected the arrays jpeg, offsets, labels and classes"),
        ({"classes": np.array(CIFAR_CLASSES, dtype=object)}, "damaged or not of this layout"),
        ({"offsets": np.arange(20)}, "do not fit together"),
        ({"labels": np.full(20, 10, np.uint8)}, "do not fit together"),
        ({"jpeg": np.zeros(100, np.uint8)}, "do not fit together"),
        ({"labels": np.uint8(3)}, "damaged or not of this layout"),
    ],
)
def test_npz_whose_arrays_do_not_fit(npz, replaced, message):
    write_npz(npz / "tiny_train.npz", pictures(20, 0), list(range(10)) * 2, replaced=replaced)
    with pytest.raises(DataError, match=message):
        load("cifar10", npz)


def test_npz_with_half_a_picture(npz):
    with np.load(npz / "tiny_train.npz") as arrays:
        arrays = dict(arrays)
    arrays["jpeg"][arrays["offsets"][3] : arrays["offsets"][4]] = 0
    np.savez(npz / "tiny_train.npz", **arrays)
    with pytest.raises(DataError, match=r"image 3 of .*tiny_train.npz is not an image that can be read"):
        load("cifar10", npz)


def test_npz_pickles_are_never_run(npz, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    np.savez(npz / "tiny_train.npz", jpeg=np.array([Trap()], dtype=object), offsets=[0], labels=[0], classes=["a"])
    with pytest.raises(DataError):
        load("cifar10", npz)
    assert not (tmp_path / "sprung").exists()


def test_splits_with_different_classes(npz):
    write_npz(npz / "tiny_test.npz", pictures(10, 1), range(10), classes=CIFAR_CLASSES[::-1])
    with pytest.raises(DataError, match="must have the same classes and size"):
        load("cifar10", npz)


def test_unknown_layouts_are_answered_with_the_known_ones(tmp_path):
    (tmp_path / "readme.txt").touch()
    (tmp_path / "pictures").mkdir()
    layouts = r"torchvision's files.*train/CLASS/\*\.png.*\*train\*\.npz"
    with pytest.raises(DataError, match=r"found there: pictures, readme\.txt.*" + layouts):
        load("cifar10", tmp_path)
    with pytest.raises(DataError, match=r"nowhere' .*no such folder.*" + layouts):
        load("cifar10", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no folder could be read from .*Expected a folder with train/CLASS"):
        load("folder", tmp_path)
    with pytest.raises(DataError, match="needs its path"):
        load("folder")


def test_unknown_names_and_stray_arguments_are_refused(tmp_path):
    with pytest.raises(DataError, match="'mnst'; expected shapes, digits, cifar10, cifar100, svhn, .*, or a folder"):
        load("mnst")
    with pytest.raises(DataError, match="take no path"):
        load("digits", tmp_path)


def test_any_folder_of_images_is_normalised_by_its_own_train_split(tmp_path):
    write_folder(tmp_path, pictures(12, 0, (10, 6)), [0, 1, 1] * 4, "train", ("b", "a"), suffix="bmp")
    write_folder(tmp_path, pictures(4, 1, (10, 6)), [0, 1] * 2, "test", ("b", "a"))
    data = load("folder", tmp_path, progress=False)
    assert load(f"{tmp_path}/", progress=False).fingerprint() == data.fingerprint()
    assert data.class_names == ("a", "b")
    assert data.shape == (3, 10, 6)
    assert data.train_labels.bincount().tolist() == [8, 4]
    assert torch.allclose(data.train_images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-3)
    assert torch.allclose(data.train_images.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3)


def test_folders_of_grey_images_have_one_channel_unless_one_is_coloured(tmp_path):
    grey = pictures(4, 0)[..., 0]
    for part in ("train", "test"):
        write_folder(tmp_path, grey, [0, 1, 0, 1], part, ("a", "b"))
    data = load("folder", tmp_path, progress=False)
    assert data.shape == (1, 32, 32)
    assert torch.allclose(data.space.to_unit(data.train_images)[0, 0], torch.from_numpy(grey[0]) / 255, atol=1e-6)
    Image.fromarray(pictures(1, 5)[0]).save(tmp_path / "test" / "a" / "coloured.png")
    data = load("folder", tmp_path, progress=False)
    assert data.shape == (3, 32, 32)
    units = data.space.to_unit(data.train_images)
    assert torch.allclose(units[:, 0], units[:, 2], atol=1e-6)


def test_damaged_folders_are_refused(image_folder):
    odd = image_folder / "train" / "bird" / "odd.png"
    Image.fromarray(pictures(1, 0, (16, 32))[0]).save(odd)
    with pytest.raises(DataError, match=r"of one size.*\(32, 32\).*odd.png is \(16, 32\)"):
        load("cifar10", image_folder)
    odd.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"odd.png is not an image that can be read"):
        load("cifar10", image_folder)
    Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(odd)
    with pytest.raises(DataError, match=r"odd.png .*more than 8 bits"):
        load("cifar10", image_folder)
    odd.unlink()
    (image_folder / "test" / "unicorn").mkdir()
    Image.fromarray(pictures(1, 0)[0]).save(image_folder / "test" / "unicorn" / "0.png")
    with pytest.raises(DataError, match=r"same classes and size.*unicorn"):
        load("cifar10", image_folder)


def test_folders_of_other_layouts(tmp_path, recwarn):
    """Hidden folders are no classes, pictures may lie deeper, val/ is a test split, as is a tenth of classes alone.

    Kind: a folder that holds more, or less, than the layout that was expected. Looked at: notebooks' checkpoints in
    any place, editors' hidden files, empty folders, which are no classes.
    """
    for number, name in enumerate(("ant", "bee")):
        for part, count in (("train", 12), ("val", 3)):
            folder = tmp_path / part / name / "deeper" if name == "bee" else tmp_path / part / name
            folder.mkdir(parents=True)
            for index, image in enumerate(pictures(count, 10 * number + count, (8, 8))):
                Image.fromarray(image).save(folder / f"{index}.png")
    for hidden in ("train/.ipynb_checkpoints", "val/.ipynb_checkpoints", "train/ant/.ipynb_checkpoints"):
        (tmp_path / hidden).mkdir()
        Image.fromarray(pictures(1, 99, (8, 8))[0]).save(tmp_path / hidden / "0-checkpoint.png")
    data = load("folder", tmp_path, progress=False)
    assert data.class_names == ("ant", "bee")
    assert data.train_labels.bincount().tolist() == [12, 12]
    assert data.test_labels.bincount().tolist() == [3, 3]
    (tmp_path / "train" / "notes").mkdir()
    assert load("folder", tmp_path, progress=False).class_names == ("ant", "bee")
    alone = load("folder", tmp_path / "train", progress=False)
    assert alone.class_names == data.class_names
    assert alone.train_labels.bincount().tolist() == [11, 11]
    assert alone.test_labels.bincount().tolist() == [1, 1]
    assert not recwarn.list


def test_class_folders_that_are_numbers_or_composed_otherwise(tmp_path):
    """Numbers sort as text, as torchvision has it, which is said; one name in two normal forms is one class."""
    for name in map(str, range(11)):
        (tmp_path / "numbers" / name).mkdir(parents=True)
        for index, image in enumerate(pictures(2, int(name), (8, 8))):
            Image.fromarray(image).save(tmp_path / "numbers" / name / f"{index}.png")
    with pytest.warns(DDPlugWarning, match="order is that of text.*0, 1, 10, 2"):
        assert load("folder", tmp_path / "numbers", progress=False).class_names[2] == "10"
    for part, form in (("train", "NFC"), ("test", "NFD")):
        for name in ("caf\u00e9", "th\u00e9"):
            folder = tmp_path / "names" / part / unicodedata.normalize(form, name)
            folder.mkdir(parents=True)
            Image.fromarray(pictures(1, len(name), (8, 8))[0]).save(folder / "0.png")
    assert load("folder", tmp_path / "names", progress=False).class_names == ("caf\u00e9", "th\u00e9")


@pytest.mark.usefixtures("untouched")
def test_nothing_moves_the_global_random_state(npz):
    load("cifar10", npz)
    data = load("digits")
    random_real(data, 3, torch.Generator().manual_seed(0))
    data.fingerprint()


def test_digits_are_split_evenly_and_once_and_for_all():
    data = load("digits")
    assert data.shape == (1, 8, 8)
    assert len(data.train_images) + len(data.test_images) == 1797
    assert 1190 < len(data.train_images) < 1210
    share = data.train_labels.bincount() / (data.train_labels.bincount() + data.test_labels.bincount())
    assert ((share - 2 / 3).abs() < 0.01).all()
    assert abs(data.train_images.mean()) < 1e-3
    assert abs(data.train_images.std() - 1) < 1e-3
    # no picture is in both splits, and the split is the same in every process, for pools outlive processes
    seen = {image.numpy().tobytes() for image in data.train_images}
    assert not any(image.numpy().tobytes() in seen for image in data.test_images)
    assert data.fingerprint() == "1ad5c8fc92699b78"


def test_shapes_are_drawn_alike_every_time_and_can_be_told_apart():
    """Eight figures, as many of each; a figure covers pixels, and the same seed draws the same pictures."""
    images, labels = draw(6, seed=3)
    assert images.shape == (48, 3, 32, 32)
    assert labels.tolist() == [label for label in range(8) for _ in range(6)]
    assert 0 <= images.min() < images.max() <= 1
    again, _ = draw(6, seed=3)
    assert torch.equal(images, again)
    assert not torch.equal(images, draw(6, seed=4)[0])
    grid = torch.linspace(-1.2, 1.2, 97)
    areas = {name: float(inside(grid[None], grid[:, None]).float().mean()) for name, inside in FIGURES.items()}
    assert all(0.05 < area < 0.6 for area in areas.values()), areas


def test_shapes_are_a_data_set(monkeypatch):
    monkeypatch.setattr("ddplug.datasets.images.shapes.draw", lambda count, seed: draw(count // 50, seed))
    data = load("shapes")
    assert data.class_names == tuple(FIGURES)
    assert (len(data.train_images), len(data.test_images)) == (80, 16)
    assert data.train_images.mean().abs() < 1e-3
    with pytest.raises(DataError, match="take no path"):
        load("shapes", "somewhere")


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'ddplug\[demo\]'"):
        load("digits")


def test_fingerprint_is_of_the_data_and_not_of_its_normalisation():
    data = load("digits")
    other = InputSpace.normalized((0.2,), (0.7,))
    moved = replace(
        data,
        space=other,
        train_images=data.space.convert(data.train_images, other),
        test_images=data.space.convert(data.test_images, other),
    )
    assert moved.fingerprint() == data.fingerprint()
    order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(1))
    shuffled = replace(data, train_images=data.train_images[order], train_labels=data.train_labels[order])
    assert shuffled.fingerprint() == data.fingerprint(), "the same images in another order are the same data"
    changed = data.train_images.clone()
    changed[17, 0, 4, 4] += 0.1
    swapped = data.train_labels.clone()
    swapped[[5, 6]] = swapped[[6, 5]]
    assert data.train_labels[5] != data.train_labels[6]
    for different in (
        {"name": "digit"},
        {"class_names": data.class_names[::-1]},
        {"train_images": changed},
        {"train_labels": swapped},
        {"test_labels": data.test_labels.flip(0)},
        {"test_images": data.test_images[:-1], "test_labels": data.test_labels[:-1]},
    ):
        assert replace(data, **different).fingerprint() != data.fingerprint()


def test_to_moves_all_four_tensors():
    moved = load("digits").to("meta")
    tensors = (moved.train_images, moved.train_labels, moved.test_images, moved.test_labels)
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_random_real_images_are_real_different_and_sorted_by_class():
    data = load("digits")
    images, labels = random_real(data, 5, torch.Generator().manual_seed(1))
    assert labels.tolist() == [label for label in range(10) for _ in range(5)]
    matches = (images[:, None] == data.train_images[None]).flatten(2).all(-1)
    assert (matches.sum(1) == 1).all()
    origins = matches.int().argmax(1)
    assert origins.unique().numel() == 50
    assert torch.equal(data.train_labels[origins], labels)
    again, _ = random_real(data, 5, torch.Generator().manual_seed(1))
    other, _ = random_real(data, 5, torch.Generator().manual_seed(2))
    assert torch.equal(again, images)
    assert not torch.equal(other, images)
    images.zero_()
    assert data.train_images[origins[0]].abs().sum() > 0


def test_random_real_refuses_what_a_class_cannot_give():
    pixels = torch.rand(5, 1, 2, 2)
    labels = torch.tensor([0, 0, 0, 1, 1])
    data = ImageData("five", ("many", "few"), InputSpace.unit(1), pixels, labels, pixels, labels)
    with pytest.raises(DataError, match="class 'few' of five has 2 training images, fewer than ipc=3"):
        random_real(data, 3, torch.Generator())
    with pytest.raises(DataError, match="at least 1, got 0"):
        random_real(data, 0, torch.Generator())
