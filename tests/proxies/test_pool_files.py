"""Pools on disk: what is written comes back, what is damaged is refused, and what was interrupted goes on."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from ddplug import InputSpace, ProxyPool, datasets
from ddplug.datasets.images import ImageData
from ddplug.datasets.zca import ZCASpace
from ddplug.errors import InputError, ProxyError
from ddplug.networks import zoo
from ddplug.networks.zoo import build, seeded
from ddplug.proxies import pretrain as pretraining
from ddplug.proxies.pool import PoolInfo
from ddplug.proxies.pool_files import read_header
from ddplug.proxies.pretrain import default_pool, pool_info, pretrain
from ddplug.utils.files import exclusive_lock

INFO = PoolInfo("mine", ("a", "b"), (1, 8, 8), InputSpace.normalized([0.3], [0.7]), "0123")


def small(seed: int = 0) -> nn.Module:
    with seeded(seed):
        return build("convnet", num_classes=2, channels=1, size=(8, 8), width=4)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[ProxyPool, Path]:
    """A pool of two networks and the folder it was saved to."""
    pool = ProxyPool.from_modules([small(0), small(1)], info=INFO, names=["first", "second"])
    pool.proxies[1].record["test_accuracy"] = 0.75
    pool.save(tmp_path / "pool")
    return pool, tmp_path / "pool"


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def change_header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((folder / "pool.json").read_text())
    del record["sha256"]  # as someone who edits it does
    change(record)
    (folder / "pool.json").write_text(json.dumps(record))


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- saving and loading


def test_a_saved_pool_comes_back_bit_for_bit(saved: tuple[ProxyPool, Path]) -> None:
    pool, folder = saved
    loaded = ProxyPool.load(folder)
    assert loaded.info == pool.info
    assert [(p.name, p.head, p.record) for p in loaded] == [(p.name, p.head, p.record) for p in pool]
    for before, after in zip(pool, loaded, strict=True):
        for space in ("feature", "logit"):
            assert torch.equal(before(images(), space), after(images(), space))
    assert everything(folder) == ["pool.json", "proxy_000.safetensors", "proxy_001.safetensors"]


def test_what_is_not_known_comes_back_unknown(tmp_path: Path) -> None:
    ProxyPool.from_modules(small()).save(tmp_path / "pool")
    assert ProxyPool.load(tmp_path / "pool").info == PoolInfo()


def test_a_compiled_network_comes_back(tmp_path: Path) -> None:
    pool = ProxyPool.from_modules([torch.compile(small())])  # type: ignore[list-item]
    pool.save(tmp_path / "pool")
    assert ProxyPool.load(tmp_path / "pool").digest() == pool.digest()


def test_a_torchvision_network_comes_back(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    with seeded(0):
        pool = ProxyPool.from_modules(build("torchvision/squeezenet1_1", num_classes=3), head="classifier")
    pool.save(tmp_path / "pool")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ProxyPool.load(tmp_path / "pool").proxies[0](x), pool.proxies[0](x))


def test_saving_and_loading_leave_the_random_state_alone(tmp_path: Path, untouched: None) -> None:
    ProxyPool.from_modules(small()).save(tmp_path / "pool")
    ProxyPool.load(tmp_path / "pool")


def test_a_pool_can_be_moved_and_saved_into_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ProxyPool.from_modules(small()).save(tmp_path / "empty")
    shutil.move(tmp_path / "empty", tmp_path / "elsewhere")
    assert len(ProxyPool.load(tmp_path / "elsewhere")) == 1


def test_a_folder_that_holds_something_is_not_saved_over(saved: tuple[ProxyPool, Path], tmp_path: Path) -> None:
    pool, folder = saved
    before = (folder / "pool.json").read_bytes()
    for target in (folder, folder / "pool.json"):
        with pytest.raises(ProxyError, match="already exists and is not an empty folder"):
            pool.save(target)
    assert (folder / "pool.json").read_bytes() == before
    assert os.listdir(tmp_path) == ["pool"]


def test_a_network_nobody_can_build_again_is_not_saved_and_nothing_is_left(
    network: Callable[..., nn.Module], tmp_path: Path
) -> None:
    pool = ProxyPool.from_modules([small(), network(0)], names=["fine", "foreign"])
    with pytest.raises(ProxyError, match=r"'foreign'.*cannot be saved.*register"):
        pool.save(tmp_path / "pool")
    assert os.listdir(tmp_path) == []


def test_an_interrupted_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ddplug.proxies.pool_files.write_header", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ProxyPool.from_modules(small()).save(tmp_path / "pool")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("record", [{"when": torch.zeros(1)}, {"when": {1, 2}}], ids=["tensor", "set"])
def test_a_record_that_json_cannot_hold_is_refused_and_nothing_is_left(record: dict[str, Any], tmp_path: Path) -> None:
    pool = ProxyPool.from_modules(small())
    pool.proxies[0].record.update(record)
    with pytest.raises(ProxyError, match="record"):
        pool.save(tmp_path / "pool")
    assert os.listdir(tmp_path) == []


# --- folders that are not, or no longer, a pool


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ProxyError, match=r"found no folder.*ddplug pretrain"):
        ProxyPool.load(tmp_path / "nowhere")


def test_a_folder_without_header_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").touch()
    with pytest.raises(ProxyError, match=r"has no pool\.json \(found weights\.pt\).*ddplug pretrain"):
        ProxyPool.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    [b"", b"not json", b"\xff\xfe\x00", b"[]", b"null", b"{}", b'{"format": "ddplug-pool", "version": "one"}'],
    ids=["empty", "text", "bytes", "list", "null", "no keys", "version is text"],
)
def test_a_garbage_header_is_called_damaged(saved: tuple[ProxyPool, Path], text: bytes) -> None:
    (saved[1] / "pool.json").write_bytes(text)
    with pytest.raises(ProxyError, match="cannot be read as a pool's header"):
        ProxyPool.load(saved[1])


def test_a_truncated_header_is_called_damaged(saved: tuple[ProxyPool, Path]) -> None:
    header = (saved[1] / "pool.json").read_bytes()
    for length in range(1, len(header) - 2, 97):
        (saved[1] / "pool.json").write_bytes(header[:length])
        with pytest.raises(ProxyError, match="damaged or half-written"):
            ProxyPool.load(saved[1])


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("dataset",), "cifar10"),
        (("dataset", "space"), "unit"),
        (("dataset", "space"), {"kind": "normalized", "mean": ["a"], "std": [1.0]}),
        (("networks",), 5),
        (("networks", 0), "proxy_000.safetensors"),
        (("networks", 0), {}),
        (("networks", 0, "file"), None),
        (("networks", 0, "options"), 3),
        (("networks", 0, "architecture"), {}),
    ],
    ids=lambda value: json.dumps(value)[:40] if not isinstance(value, tuple) else ".".join(map(str, value)),
)
def test_a_header_of_the_wrong_types_is_a_pool_error(
    saved: tuple[ProxyPool, Path], keys: tuple[Any, ...], value: object
) -> None:
    def change(record: Any) -> None:
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = value

    change_header(saved[1], change)
    with pytest.raises(ProxyError):
        ProxyPool.load(saved[1])


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("networks", 0, "sha256"), "0", r"networks\[0\]\.sha256: expected a string like"),
        (("networks", 0, "file"), "a\0b", "expected a string like"),
        (("dataset", "shape"), [1, 8], r"dataset\.shape: expected a list of at least 3 entries"),
        (("dataset", "space", "mean"), [float("nan")], "one finite mean"),
        (("dataset", "class_names"), [1, 2], r"dataset\.class_names\[0\]: expected a string"),
        (("recipe",), [], "recipe: expected a dictionary"),
        (("version",), "1", "version: expected one of 1, got '1'"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_a_header_that_cannot_be_is_refused_at_once(
    saved: tuple[ProxyPool, Path], keys: tuple[Any, ...], value: object, said: str
) -> None:
    def change(record: Any) -> None:
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = value

    change_header(saved[1], change)
    with pytest.raises(ProxyError, match=said):
        ProxyPool.load(saved[1])


def test_a_flipped_bit_in_the_header_is_noticed(saved: tuple[ProxyPool, Path]) -> None:
    path = saved[1] / "pool.json"
    whole, text = path.read_bytes(), path.read_text()
    for number in ("0.3", "0.7", "0.75"):
        at = text.index(number) + len(number) - 1
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ProxyError, match=r"pool\.json' cannot be read as a pool's header .*checksum differs"):
            ProxyPool.load(saved[1])


def test_a_flipped_bit_in_the_matrices_of_a_whitening_is_noticed(tmp_path: Path) -> None:
    space = ZCASpace.fit(torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    ProxyPool.from_modules(small(), info=replace(INFO, space=space)).save(tmp_path / "pool")
    path = tmp_path / "pool" / "space.safetensors"
    whole = path.read_bytes()
    for at in (3, 100, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ProxyError, match=r"space\.safetensors' is missing or is not the file"):
            ProxyPool.load(tmp_path / "pool")
    path.write_bytes(whole)
    assert ProxyPool.load(tmp_path / "pool").info.space == space


def test_an_unknown_kind_of_input_space_is_named(saved: tuple[ProxyPool, Path]) -> None:
    change_header(saved[1], lambda record: record["dataset"].update(space={"kind": "unheard of"}))
    with pytest.raises((ProxyError, InputError), match="unheard of"):
        ProxyPool.load(saved[1])


@pytest.mark.parametrize("change", [{"version": 2}, {"format": "another"}], ids=str)
def test_a_header_of_a_newer_version_or_another_format(saved: tuple[ProxyPool, Path], change: dict[str, Any]) -> None:
    change_header(saved[1], lambda record: record.update(change))
    with pytest.raises(ProxyError, match="expected one of"):
        ProxyPool.load(saved[1])


def test_a_missing_network_file(saved: tuple[ProxyPool, Path]) -> None:
    (saved[1] / "proxy_001.safetensors").unlink()
    with pytest.raises(ProxyError, match=r"proxy_001\.safetensors' is missing"):
        ProxyPool.load(saved[1])


@pytest.mark.parametrize("kept", [0, 5, 1000])
def test_a_truncated_network_file(saved: tuple[ProxyPool, Path], kept: int) -> None:
    path = saved[1] / "proxy_000.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ProxyError, match=r"proxy_000\.safetensors.*damaged or half-copied"):
        ProxyPool.load(saved[1])


@pytest.mark.parametrize("position", [0, 500, -1])
def test_a_flipped_bit_in_a_network_file(saved: tuple[ProxyPool, Path], position: int) -> None:
    path = saved[1] / "proxy_001.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(ProxyError, match=r"proxy_001\.safetensors.*checksum"):
        ProxyPool.load(saved[1])


@pytest.mark.parametrize("outside", ["../proxy.safetensors", "absolute", "inner/../../proxy.safetensors", "", "."])
def test_a_file_outside_the_pool_is_never_read(saved: tuple[ProxyPool, Path], outside: str) -> None:
    folder = saved[1]
    target = folder.parent / "proxy.safetensors"
    shutil.copy(folder / "proxy_000.safetensors", target)
    (folder / "inner").mkdir()
    name = str(target) if outside == "absolute" else outside
    change_header(folder, lambda record: record["networks"][0].update(file=name))
    with pytest.raises(ProxyError, match=r"file: expected a string like"):
        ProxyPool.load(folder)


def test_another_data_set_than_asked_for(saved: tuple[ProxyPool, Path]) -> None:
    assert len(ProxyPool.load(saved[1], dataset="mine")) == 2
    with pytest.raises(ProxyError, match="trained on mine, not on cifar10"):
        ProxyPool.load(saved[1], dataset="cifar10")


def test_a_pickle_in_the_place_of_weights_is_not_run(saved: tuple[ProxyPool, Path], tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    path = saved[1] / "proxy_000.safetensors"
    path.write_bytes(pickle.dumps(Touch(ran)))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    change_header(saved[1], lambda record: record["networks"][0].update(sha256=digest))
    with pytest.raises(ProxyError, match="cannot build 'first'"):
        ProxyPool.load(saved[1])
    assert not ran.exists()


class Touch:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_weights_of_another_shape_than_the_options_say(saved: tuple[ProxyPool, Path]) -> None:
    change_header(saved[1], lambda record: record["networks"][1]["options"].update(width=8))
    with pytest.raises(ProxyError, match=r"cannot build 'second'.*convnet with"):
        ProxyPool.load(saved[1])


# --- architectures that are not ddplug's


def own(features: int = 5) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, features), nn.ReLU(), nn.Linear(features, 2))


def twice() -> nn.Module:
    layer = nn.Linear(64, 64)
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer, nn.Linear(64, 2))


@pytest.mark.parametrize("function", [own, twice])
def test_an_own_architecture_is_built_by_its_registered_function(
    function: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "_REGISTRY", dict(zoo._REGISTRY))
    pool = ProxyPool.from_modules(zoo.register(function)())
    pool.save(tmp_path / "pool")
    assert torch.equal(ProxyPool.load(tmp_path / "pool").proxies[0](images()), pool.proxies[0](images()))
    monkeypatch.undo()
    with pytest.raises(ProxyError, match=rf"cannot build .*unknown architecture '{function.__name__}'.*register"):
        ProxyPool.load(tmp_path / "pool")


# --- pools that are not finished


def test_an_unfinished_pool_is_refused(saved: tuple[ProxyPool, Path]) -> None:
    change_header(saved[1], lambda record: record.update(wanted=5))
    with pytest.raises(ProxyError, match=r"unfinished: 2 of 5 networks.*ddplug pretrain"):
        ProxyPool.load(saved[1])


# --- pretraining


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def few() -> ImageData:
    """Sixty digits to train on, forty to test on."""
    pytest.importorskip("sklearn")
    data = datasets.load("digits")
    return replace(
        data,
        train_images=data.train_images[:60],
        train_labels=data.train_labels[:60],
        test_images=data.test_images[:40],
        test_labels=data.test_labels[:40],
    )


RECIPE: dict[str, Any] = {"epochs": 2, "batch_size": 20, "options": {"width": 8}, "progress": False, "seed": 3}


def train(data: ImageData, folder: Path, count: int = 2, **changes: Any) -> ProxyPool:
    return pretrain(data, folder, count=count, **{**RECIPE, **changes})


@pytest.fixture(scope="module")
def trained(few: ImageData, tmp_path_factory: pytest.TempPathFactory) -> tuple[ProxyPool, Path]:
    """A pool of two networks that nothing interrupted, and its folder; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "pool"
    return train(few, folder), folder


def weights(pool: ProxyPool) -> list[dict[str, Tensor]]:
    return [proxy.network.state_dict() for proxy in pool]


def same(first: ProxyPool, second: ProxyPool) -> bool:
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        for a, b in zip(weights(first), weights(second), strict=True)
    )


def test_pretrain_records_what_it_did(few: ImageData, trained: tuple[ProxyPool, Path]) -> None:
    pool, folder = trained
    assert pool.info == pool_info(few) == read_header(folder).info
    assert (pool.info.dataset, pool.info.space, pool.info.shape) == ("digits", few.space, (1, 8, 8))
    assert pool.info.class_names == few.class_names
    assert pool.info.fingerprint == few.fingerprint()
    assert [proxy.record["seed"] for proxy in pool] == [3, 4]
    assert [proxy.record["epochs"] for proxy in pool] == [2, 2]
    for proxy in pool:
        correct = (proxy(few.test_images, "logit").argmax(1) == few.test_labels).double().mean()
        assert proxy.record["test_accuracy"] == pytest.approx(float(correct))
    assert everything(folder) == ["pool.json", "proxy_000.safetensors", "proxy_001.safetensors"]


def test_pretrain_makes_different_networks_and_the_same_again(
    few: ImageData, trained: tuple[ProxyPool, Path], tmp_path: Path, untouched: None
) -> None:
    first, second = weights(trained[0])
    assert not torch.equal(first["classifier.weight"], second["classifier.weight"])
    assert same(train(few, tmp_path / "again"), trained[0])


def test_each_network_has_a_seed_of_its_own(few: ImageData, trained: tuple[ProxyPool, Path], tmp_path: Path) -> None:
    assert same(train(few, tmp_path / "pool", count=1, seed=4), ProxyPool(trained[0].proxies[1:]))


def test_pretrain_learns(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    whole = datasets.load("digits")
    pool = train(whole, tmp_path / "pool", count=1, epochs=6, batch_size=64, lr=0.1, options={"width": 16})
    assert pool.proxies[0].record["test_accuracy"] > 0.4  # chance is 0.1


def test_two_processes_do_not_train_one_pool(
    few: ImageData, trained: tuple[ProxyPool, Path], tmp_path: Path, untouched: None
) -> None:
    folder = tmp_path / "pool"
    with (
        exclusive_lock(folder / ".lock", folder),
        pytest.raises(ddplug.errors.InputError, match="another process"),
    ):
        train(few, folder)
    assert same(train(few, folder), trained[0])
    with exclusive_lock(folder / ".lock", folder):
        assert same(train(few, folder), trained[0]), "a finished pool is only read"
        with pytest.raises(InputError, match="another process"):
            train(few, folder, count=3)
    assert everything(folder) == ["pool.json", "proxy_000.safetensors", "proxy_001.safetensors"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_lock_of_a_killed_process_locks_nobody_out(
    few: ImageData, trained: tuple[ProxyPool, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "pool"
    child = os.fork()
    if child == 0:
        fit = pretraining.fit

        def killed(*args: Any, **options: Any) -> Any:
            return fit(*args, **{**options, "on_epoch": lambda *_: os.kill(os.getpid(), signal.SIGKILL)})

        pretraining.fit = killed
        train(few, folder)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert everything(folder) == [".lock", ".proxy_000.checkpoint", "pool.json"]
    assert same(train(few, folder), trained[0])
    assert everything(folder) == ["pool.json", "proxy_000.safetensors", "proxy_001.safetensors"]


def interrupted(real: Callable[..., Any], at: int) -> tuple[Callable[..., Any], list[None]]:
    """`real`, but its call number `at` (from 1) is an interruption; and a list that grows with every call."""
    calls: list[None] = []

    @functools.wraps(real)
    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == at:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    return call, calls


# Three steps an epoch, two epochs a network.
@pytest.mark.parametrize("step", [2, 5, 8, 12], ids=["1st network, 1st epoch", "1st, 2nd", "2nd, 1st", "2nd, 2nd"])
def test_a_killed_pretraining_ends_with_the_same_weights(
    few: ImageData, trained: tuple[ProxyPool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", interrupted(torch.optim.SGD.step, at=step)[0])
        with pytest.raises(KeyboardInterrupt):
            train(few, tmp_path / "pool")
    counted, calls = interrupted(torch.optim.SGD.step, at=0)
    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    with pytest.raises(ProxyError, match="unfinished"):
        ProxyPool.load(tmp_path / "pool")
    assert same(train(few, tmp_path / "pool"), trained[0])
    assert len(calls) == 12 - 3 * ((step - 1) // 3)  # no finished epoch is trained again
    assert everything(tmp_path / "pool") == everything(trained[1])


@pytest.mark.parametrize("what", ["write_network", "write_header", "accuracy"])
def test_a_pretraining_killed_between_two_networks_goes_on(
    few: ImageData, trained: tuple[ProxyPool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pretraining, what, interrupted(getattr(pretraining, what), at=2)[0])
        with pytest.raises(KeyboardInterrupt):
            train(few, tmp_path / "pool")
    assert same(train(few, tmp_path / "pool"), trained[0])
    assert everything(tmp_path / "pool") == everything(trained[1])


def test_a_finished_pool_is_not_trained_again(
    few: ImageData, trained: tuple[ProxyPool, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddplug.proxies.pretrain.fit", lambda *_, **__: pytest.fail("trained again"))
    assert same(train(few, trained[1]), trained[0])


def test_a_larger_count_adds_networks(few: ImageData, trained: tuple[ProxyPool, Path], tmp_path: Path) -> None:
    shutil.copytree(trained[1], tmp_path / "pool")
    extended = train(few, tmp_path / "pool", count=3)
    assert [proxy.record["seed"] for proxy in extended] == [3, 4, 5]
    assert same(ProxyPool(extended.proxies[:2]), trained[0])
    assert len(ProxyPool.load(tmp_path / "pool")) == 3


@pytest.mark.parametrize(
    "changes",
    [{"epochs": 3}, {"lr": 0.02}, {"seed": 0}, {"options": {"width": 4}}, {"batch_size": 30}, {"flip": True}],
    ids=str,
)
def test_another_recipe_is_refused_with_what_differs(
    few: ImageData, trained: tuple[ProxyPool, Path], changes: dict[str, Any]
) -> None:
    before = everything(trained[1]), (trained[1] / "pool.json").read_bytes()
    with pytest.raises(ProxyError, match=rf"other settings \(there, asked for\): .*{next(iter(changes))}"):
        train(few, trained[1], **changes)
    assert (everything(trained[1]), (trained[1] / "pool.json").read_bytes()) == before


def test_other_data_is_refused(few: ImageData, trained: tuple[ProxyPool, Path]) -> None:
    for other in (replace(few, name="letters"), replace(few, train_images=few.train_images.flip(0))):
        with pytest.raises(ProxyError, match="made with other data: digits"):
            train(other, trained[1])


def test_a_folder_of_something_else_is_left_alone(few: ImageData, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    for target in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ProxyError, match="is not a pool of proxies"):
            train(few, target)
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("changes", [{"count": 0}, {"epochs": 0}], ids=str)
def test_a_pool_of_nothing_is_refused(few: ImageData, tmp_path: Path, changes: dict[str, int]) -> None:
    with pytest.raises(ddplug.errors.InputError, match="at least 1"):
        train(few, tmp_path / "pool", **changes)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("change", [{"architecture": "nonsense"}, {"options": {"depth": 9}}], ids=str)
def test_an_impossible_architecture_can_be_corrected_in_the_same_folder(
    few: ImageData, trained: tuple[ProxyPool, Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    with pytest.raises(ddplug.errors.ProxyError):
        train(few, tmp_path / "pool", **change)
    assert same(train(few, tmp_path / "pool"), trained[0])


def test_a_progress_bar_is_shown_on_request(few: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(few, tmp_path / "silent", count=1)
    assert capsys.readouterr() == ("", "")
    train(few, tmp_path / "shown", count=1, progress=True)
    output = capsys.readouterr()
    assert "1 x convnet on digits" in output.out + output.err
    assert "2/2" in output.out + output.err


def test_the_default_pool_lies_in_the_named_cache_and_is_trained_once(
    few: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DDPLUG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("ddplug.networks.training.MOST_STEPS", 100)
    pool = default_pool(few, device="cpu")
    (folder,) = (tmp_path / "cache" / "pools").iterdir()
    assert few.name in folder.name
    assert few.fingerprint() in folder.name
    assert f"training a small pool of digits in {folder}" in capsys.readouterr().out.replace("\n", "")
    monkeypatch.setattr("ddplug.proxies.pretrain.fit", lambda *_, **__: pytest.fail("trained again"))
    assert same(default_pool(few, device="cpu"), pool)
    assert f"taking a small pool of digits in {folder}" in capsys.readouterr().out


_DEFAULT = """
import sys
from dataclasses import replace
import torch
torch.set_num_threads(1)
from ddplug import datasets
from ddplug.networks import training
from ddplug.proxies.pretrain import default_pool
training.MOST_STEPS = 100
data = datasets.load("digits")
few = replace(data, train_images=data.train_images[:200], train_labels=data.train_labels[:200])
print("digest", default_pool(few, device="cpu").digest())
"""


def test_the_default_pool_is_trained_by_one_of_several_processes(tmp_path: Path) -> None:
    """Of three processes that want a default pool at once, one trains it, the others wait and say so.

    Kind: work that several processes of one run, or of an array of jobs, begin at once. Looked at: the default pool
    (all but one died with `HeldError`); pools, comparisons and evaluations in a folder that the user names, which are
    shared where that was asked for and else refused; patching a checkout, which `ddplug run` does in memory.
    """
    pytest.importorskip("sklearn")
    environment = {**os.environ, "DDPLUG_CACHE": str(tmp_path)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _DEFAULT],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], outputs
    assert len({output.splitlines()[-1] for output in outputs}) == 1
    assert sum("another process is training it: 0 of 2" in output for output in outputs) == 2, outputs


def test_the_default_pool_knows_two_data_sets_of_one_name_apart(
    few: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr("ddplug.proxies.pretrain.pretrain", lambda data, folder, **_: asked.append(folder))
    default_pool(few, cache=tmp_path, device="cpu")
    default_pool(replace(few, train_labels=few.train_labels.flip(0)), cache=tmp_path, device="cpu")
    assert asked[0] != asked[1]


def test_default_proxies_are_small_convnets_without_a_gpu(
    few: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(
        "ddplug.proxies.pretrain.pretrain", lambda data, folder, **how: asked.append((folder.name, how))
    )
    default_pool(few, cache=tmp_path, device="cpu")
    ((name, how),) = asked
    assert (how["architecture"], how["count"], how["epochs"]) == ("convnet", 2, "auto")
    assert how["options"] == {"width": 64}
    assert name.endswith("convnet-width64"), "pools of other sizes lie elsewhere"
