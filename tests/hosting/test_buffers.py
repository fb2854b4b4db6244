"""Expert buffers as pools: which network, which snapshot, which input space, and files that are no buffers."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from ddplug import InputSpace, adapters
from ddplug.datasets.zca import ZCASpace
from ddplug.errors import HostError, InputError, ProxyError
from ddplug.hosting import expert_buffers as buffers
from ddplug.networks.zoo import build, seeded
from ddplug.proxies.pool import PoolInfo

pytestmark = pytest.mark.numerical

PLAIN = InputSpace.normalized((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
CONTEXT = {"space": ((0.5,) * 3, (0.2,) * 3), "shape": (3, 8, 8), "count": 4, "classes": ["a", "b", "c", "d"]}


def network(seed: int, name: str = "convnet", **options: Any) -> nn.Module:
    with seeded(seed):
        return build(name, **{"num_classes": 4, "size": (8, 8), "width": 32, **options})


def snapshots(count: int = 3, **options: Any) -> list[list[Tensor]]:
    return [[p.detach().clone() for p in network(seed, **options).parameters()] for seed in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files, of two experts and one, of three snapshots each."""
    made = tmp_path / "buffers" / "CIFAR10_NO_ZCA" / "ConvNetW32"
    made.mkdir(parents=True)
    torch.save([snapshots(), snapshots()], made / "replay_buffer_0.pt")
    torch.save([snapshots()], made / "replay_buffer_1.pt")
    return made


def options(**more: object) -> argparse.Namespace:
    return argparse.Namespace(**{"dataset": "CIFAR10", "model": "ConvNetW32", "zca": False, "ipc": 1, **more})


def read(given: object, args: argparse.Namespace | None = None, **context: object) -> ddplug.ProxyPool:
    return buffers.read_for_host(str(given), adapters.upstream("mtt"), args or options(), {**CONTEXT, **context})


@pytest.mark.parametrize(("given", "which"), [("", 2), ("#-1", 2), ("#0", 0), ("#1", 1), ("#-2", 1)])
def test_every_expert_at_the_snapshot_asked_for(given: str, which: int, folder: Path, untouched: None) -> None:
    pool = read(f"{folder}{given}")
    assert [proxy.name for proxy in pool] == [
        f"replay_buffer_0/0#{which}", f"replay_buffer_0/1#{which}", f"replay_buffer_1/0#{which}"
    ]  # fmt: skip
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = network(which).eval()(images)
    for proxy in pool:
        assert torch.equal(proxy(images, "logit"), expected)
    assert pool.info == PoolInfo("cifar10", ("a", "b", "c", "d"), (3, 8, 8), PLAIN)


def test_one_file_is_a_buffer_too(folder: Path) -> None:
    assert len(read(folder / "replay_buffer_1.pt")) == 1


def test_files_come_in_the_order_of_their_numbers(folder: Path) -> None:
    (folder / "replay_buffer_1.pt").rename(folder / "replay_buffer_10.pt")
    torch.save([snapshots()], folder / "replay_buffer_2.pt")
    assert [file.stem[-2:] for file in buffers.files_in(folder)] == ["_0", "_2", "10"]


def test_a_pool_of_experts_can_be_saved(folder: Path, tmp_path: Path) -> None:
    pool = read(folder)
    pool.save(tmp_path / "pool")
    again = ddplug.ProxyPool.load(tmp_path / "pool")
    assert [proxy.digest() for proxy in again] == [proxy.digest() for proxy in pool]
    assert again.proxies[0].record["model"] == "ConvNetW32"


def test_the_folder_says_which_network_it_is_before_the_hosts_option_does(folder: Path) -> None:
    assert len(read(folder, options(model="ConvNet"))) == 3
    other = folder.rename(folder.parent / "mine")
    assert len(read(other, options(model="ConvNetW32"))) == 3
    with pytest.raises(ProxyError, match=r"does not hold networks of model ConvNetD3.*at parameter 0"):
        read(other, options(model="ConvNetD3"))


@pytest.mark.parametrize(
    ("model", "name", "made"),
    [
        ("ConvNet", "convnet", {"width": 128}),
        ("ConvNetIN", "convnet", {"width": 128}),
        ("ConvNetD2", "convnet", {"width": 128, "depth": 2}),
        ("ConvNetW64", "convnet", {"width": 64}),
        ("ConvNetNN", "convnet", {"width": 128, "norm": "none"}),
        ("ResNet18", "resnet18", {"width": 64, "size": (16, 16)}),
    ],
)
def test_the_hosts_names_of_networks(model: str, name: str, made: dict[str, Any], tmp_path: Path) -> None:
    size = made.get("size", (8, 8))
    torch.save([snapshots(2, name=name, **made)], tmp_path / "replay_buffer_0.pt")
    pool = buffers.read(tmp_path, model, classes=4, shape=(3, *size), info=PoolInfo())
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pool.proxies[0](images, "logit"), network(1, name, **made).eval()(images))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("ConvNetBN", "running statistics"),
        ("ResNet18BN", "running statistics"),
        ("ResNet18BN_AP", "running statistics"),
        ("ConvNetGN", "does not build networks of model 'ConvNetGN'"),
        ("VGG11", "does not build"),
        ("ResNet18_AP", "does not build"),
    ],
)
def test_networks_that_cannot_be_made_from_a_buffer(model: str, said: str) -> None:
    with pytest.raises(ProxyError, match=said):
        buffers.architecture(model)


def whitening() -> ZCASpace:
    images = torch.rand(300, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return ZCASpace.fit(images)


def test_experts_of_whitened_images_are_refused_by_a_host_without(folder: Path, tmp_path: Path) -> None:
    whitened = folder.parent.rename(tmp_path / "CIFAR10") / "ConvNetW32"
    with pytest.raises(InputError, match="trained on ZCA-whitened images"):
        read(whitened)


def test_whitened_hosts_take_experts_of_either_kind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, args = whitening(), options(zca=True)
    monkeypatch.setattr(type(adapters.upstream("mtt")), "space", lambda *_: space)
    assert read(folder, args).info.space == PLAIN, "the views are converted"
    whitened = folder.parent.rename(tmp_path / "CIFAR10") / "ConvNetW32"
    assert read(whitened, args).info.space == space


def test_a_folder_that_does_not_say_is_taken_to_be_of_the_hosts_kind(folder: Path, tmp_path: Path) -> None:
    assert read(folder.rename(tmp_path / "ConvNetW32")).info.dataset is None


def test_experts_of_another_data_set_are_refused(folder: Path) -> None:
    args = options(dataset="CIFAR100")
    with pytest.raises(ProxyError, match="trained on cifar10, not on"):
        ddplug.hosting.proxies.resolve(f"buffer:{folder}", adapters.upstream("mtt"), args, CONTEXT)


def test_snapshots_that_are_all_equal_are_the_live_network(folder: Path) -> None:
    last = snapshots()[-1]
    torch.save([snapshots(), [last, last, last]], folder / "replay_buffer_0.pt")
    with pytest.raises(ProxyError, match=r"expert 1 in .*without CUDA"):
        read(folder)


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    broken = snapshots()
    broken[-1][0][0, 0, 0, 0] = float("nan")
    torch.save([broken], folder / "replay_buffer_0.pt")
    with pytest.raises(ProxyError, match="not finite"):
        read(folder)


@pytest.mark.parametrize("given", ["#3", "#-4"])
def test_a_snapshot_that_is_not_there(given: str, folder: Path) -> None:
    with pytest.raises(ProxyError, match=r"has no snapshot -?\d: expert 0 has 3 of them, 0 .* to 2"):
        read(f"{folder}{given}")


def test_a_snapshot_is_a_number(folder: Path) -> None:
    with pytest.raises(ProxyError, match="'last' in 'buffer:.*' is not a snapshot"):
        read(f"{folder}#last")


def test_no_buffer_there_names_the_folders_that_have_one(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ProxyError, match="no expert buffer in"):
        read(tmp_path / "nowhere")
    with pytest.raises(ProxyError, match=r"There are some in its folders CIFAR10_NO_ZCA.ConvNetW32"):
        read(tmp_path / "buffers")


class Harmful:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (Path("harm"),)


@pytest.mark.parametrize(
    "content",
    [b"", b"no file of torch's", pickle.dumps(Harmful(), 2), [], [[]], [[1.0]], {"a": 1}, [[[torch.ones(2)], 3]]],
)
def test_files_that_are_no_buffers(content: object, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    file = folder / "replay_buffer_0.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(ProxyError, match="expert buffer"):
        read(folder)
    assert not Path("harm").exists()


def test_a_file_of_the_old_format_is_read(folder: Path) -> None:
    torch.save([snapshots()], folder / "replay_buffer_0.pt", _use_new_zipfile_serialization=False)
    assert len(read(folder)) == 2


# What the adapters say before the hosts run ------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data" / "cifar-10-batches-py").mkdir(parents=True)
    return tmp_path / "data"


def look(data: Path, folder: Path, *more: str) -> None:
    line = ["--data_path", str(data), "--buffer_path", str(folder.parents[1]), "--model", "ConvNetW32", *more]
    adapters.upstream("mtt").preflight(line)


def test_mtt_needs_its_experts(data: Path, folder: Path) -> None:
    look(data, folder)
    with pytest.raises(HostError, match="There are experts without ZCA whitening in"):
        look(data, folder, "--zca")
    with pytest.raises(HostError, match=r"no replay_buffer_0.pt in '.*ConvNetD4'\. Write"):
        look(data, folder, "--model", "ConvNetD4")
    with pytest.raises(HostError, match="no cifar-100-python"):
        look(data, folder, "--dataset", "CIFAR100")


def test_mtt_is_not_started_on_experts_that_stand_still(data: Path, folder: Path) -> None:
    torch.save([[snapshots()[0]] * 3], folder / "replay_buffer_0.pt")
    with pytest.raises(ProxyError, match="without CUDA"):
        look(data, folder)


def test_datm_reads_its_configuration(data: Path, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    file = tmp_path / "mine.yaml"
    text = f"model: ConvNetW32\ndata_path: {data}\nbuffer_path: {folder.parents[1]}\n"
    datm = adapters.upstream("datm")
    file.write_text(text + "zca: False\n")
    datm.preflight(["--cfg", str(file)])
    file.write_text(text)
    with pytest.raises(HostError, match="There are experts without ZCA whitening in"):
        datm.preflight([f"--cfg={file}"])
    for broken in ("a: b: c", "just words"):
        file.write_text(broken)
        with pytest.raises(HostError, match="is not a configuration file"):
            datm.preflight(["--cfg", str(file)])
    for line in ([], ["--cfg", str(tmp_path / "none.yaml")]):
        with pytest.raises(HostError, match="takes its options from a file"):
            datm.preflight(line)


def test_records_lie_where_the_hosts_results_do() -> None:
    args, context = options(ipc=10), {"run": "quick-fox-1"}
    mtt, datm = adapters.upstream("mtt"), adapters.upstream("datm")
    assert mtt.record(args, context) == Path("logged_files/CIFAR10/quick-fox-1/cmi.json")
    assert datm.record(args, context) == Path("logged_files/CIFAR10/10/ConvNetW32/quick-fox-1/cmi.json")
    assert (mtt.setting(args), datm.setting(args)) == (("mtt", "cifar10", 10), ("datm", "cifar10", 10))
