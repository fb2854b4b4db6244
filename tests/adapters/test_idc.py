"""What is IDC's own: its adapter, on a small loop of ours of its shape, and its pretrained networks as proxies."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

import ddplug
from ddplug import CMI, InputSpace, ProxyPool, adapters, hosting, networks
from ddplug.errors import HostError, ProxyError
from ddplug.hosting import idc_checkpoints as idcpools
from ddplug.proxies.pool import PoolInfo

from ..conftest import tiny_network

pytestmark = pytest.mark.numerical

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CLASSES, IPC, SIZE = 3, 2, 4


def options(folder: Path, **more: Any) -> argparse.Namespace:
    """The host's options as far as they matter, and ours."""
    parser = argparse.ArgumentParser()
    hosting.add_options(parser)
    ours = vars(parser.parse_args([]))
    theirs = {"dataset": "cifar10", "datatag": "cifar10", "modeltag": "conv3in", "ipc": IPC, "save_dir": str(folder)}
    return argparse.Namespace(**theirs, **{**ours, **more})


def formed(images: Tensor) -> Tensor:
    """Each image's quarters, enlarged."""
    return F.interpolate(rearrange(images, "n c (i h) (j w) -> (i j n) c h w", i=2, j=2), scale_factor=2)


def augment(images: Tensor) -> Tensor:
    """Normalised, and flipped by a draw from the host's own generator; real and synthetic ones alike."""
    mean, std = (torch.tensor(values, dtype=images.dtype).view(3, 1, 1) for values in (MEAN, STD))
    views = (images - mean) / std
    return views.flip(3) if torch.rand(()) < 0.5 else views


class Loop:
    """Of IDC's shape: real and formed synthetic images through one augmentation, one class per step."""

    def __init__(self, args: argparse.Namespace, layer: bool = True) -> None:
        torch.manual_seed(5)
        self.images = torch.rand(CLASSES * IPC, 3, SIZE, SIZE, dtype=torch.float64, requires_grad=True)
        self.seen: list[tuple[Tensor, Tensor]] = []
        """Of each step, the synthetic views and the gradient at the images."""
        optimizer = torch.optim.SGD([self.images], lr=0.1, momentum=0.5)
        cmi = hosting.start("idc", args, space=(MEAN, STD)) if layer else None
        for _ in range(2):
            self.images.data = self.images.data.clamp(0, 1)
            for c in range(CLASSES):
                real = torch.rand(5, 3, SIZE, SIZE, dtype=torch.float64)
                syn = formed(self.images[c * IPC : (c + 1) * IPC])
                labels = torch.full((len(syn),), c)
                n = len(real)
                if cmi is not None:
                    syn = cmi.clean(syn, labels)
                both = augment(torch.cat([real, syn]))
                if cmi is not None:
                    both = cmi(both, labels, first=n)
                optimizer.zero_grad()
                ((both[:n].mean(0) - both[n:].mean(0)) ** 2).sum().backward()
                assert self.images.grad is not None
                self.seen.append((both[n:].detach(), self.images.grad.clone()))
                optimizer.step()
        if cmi is not None:
            cmi.save()
        self.layer = cmi


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose pool `idc:POOL` is one float64 network of normalised images."""
    pool = ProxyPool.from_modules(
        [tiny_network(7)], info=PoolInfo(dataset="cifar10", space=InputSpace.normalized(MEAN, STD))
    )
    monkeypatch.setitem(ddplug.hosting.proxies.SCHEMES, "idc", lambda *_: pool)
    return tmp_path


def test_weight_zero_is_the_loop_alone(folder: Path) -> None:
    alone, off = Loop(options(folder), layer=False), Loop(options(folder))
    assert torch.equal(alone.images, off.images)
    assert not list(folder.iterdir())


def test_each_step_adds_lambda_times_cmis_gradient_of_its_class(folder: Path) -> None:
    args = options(folder, cmi_weight=3.0, cmi_weighting="absolute", cmi_proxies="idc:POOL")
    on, off = Loop(args), Loop(options(folder))
    assert on.layer is not None
    assert on.layer.rounds == 2 * CLASSES
    assert {round_.images for round_ in on.layer.regularizer.history} == {IPC * 4}  # type: ignore[union-attr]
    cmi = CMI(ProxyPool.from_modules([tiny_network(7)]))
    for c in range(CLASSES):  # the first step of each class: both loops are at the same images of it
        views, grad = on.seen[c]
        torch.testing.assert_close(views, off.seen[c][0], rtol=0, atol=0)
        leaf = views.clone().requires_grad_()
        (of_views,) = torch.autograd.grad(cmi(leaf, torch.full((len(leaf),), c)), leaf)
        wanted = off.seen[c][1].clone()
        of_views = of_views if torch.equal(views, normalised(c)) else of_views.flip(3)
        scaled = of_views / torch.tensor(STD, dtype=torch.float64).view(3, 1, 1)
        back = rearrange(F.avg_pool2d(scaled, 2) * 4, "(i j n) c h w -> n c (i h) (j w)", i=2, j=2)
        wanted[c * IPC : (c + 1) * IPC] += 3.0 * back
        torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=1e-12)
        others = [row for row in range(CLASSES * IPC) if row // IPC != c]
        assert not grad[others].any()


def normalised(c: int) -> Tensor:
    """The first views of a class as the loop makes them, but for the flip."""
    torch.manual_seed(5)
    images = torch.rand(CLASSES * IPC, 3, SIZE, SIZE, dtype=torch.float64)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    return (formed(images[c * IPC : (c + 1) * IPC]) - mean) / std


def test_proxies_see_normalised_images_before_the_augmentation_too(folder: Path) -> None:
    args = options(folder, cmi_weight=3.0, cmi_weighting="absolute", cmi_proxies="idc:POOL", cmi_views="clean")
    on = Loop(args)
    assert on.layer is not None
    pool = ProxyPool.from_modules([tiny_network(7)])
    wanted = CMI(pool)(normalised(0), torch.zeros(IPC * 4, dtype=torch.long))
    first = next(iter(on.layer.regularizer.history))  # type: ignore[union-attr]
    assert first.cmi == pytest.approx(float(wanted), rel=1e-6)


def test_the_record_is_in_the_experiments_folder(folder: Path) -> None:
    Loop(options(folder / "run", cmi_weight=0.1, cmi_proxies="idc:POOL"))
    assert [path.name for path in (folder / "run").iterdir()] == ["cmi.json"]


def test_the_weight_is_in_the_name_of_the_folder_and_zero_is_not() -> None:
    """The lines of the patch that make it, run on their own."""
    lines = adapters.upstream("idc").spec().patch.files["argument.py"][-1].lines
    made = {}
    for weight in (0.0, 0.1, "paper"):
        names: dict[str, Any] = {"args": argparse.Namespace(tag="_mine", cmi_weight=weight, cmi_weighting="relative")}
        exec(b"".join(lines), names)
        made[weight] = names["args"].tag
    assert made == {0.0: "_mine", 0.1: "_mine_cmi-relative-0.1", "paper": "_mine_cmi-relative-paper"}


class Images(torch.utils.data.Dataset[Any]):
    """Real data as the host holds it: an image and its label by number."""

    def __init__(self, images: Tensor, names: tuple[str, ...] | None = None) -> None:
        self.images, self.nclass = images, CLASSES
        if names:
            self.classes = names

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], index % CLASSES


def test_its_real_data_is_normalised_once(folder: Path) -> None:
    """The host has its training images in [0, 1] and its test images normalised."""
    adapter, images = adapters.upstream("idc"), torch.rand(6, 3, 4, 4)
    space = InputSpace.normalized(MEAN, STD)
    context = {"space": (MEAN, STD), "train": Images(images), "test": Images(space.from_unit(images))}
    for views in ("host", "clean"):
        data = adapter.real(options(folder, cmi_views=views), context)
        assert data is not None
        assert data.space == space
        torch.testing.assert_close(data.train_images, data.test_images)
        assert data.class_names == ("0", "1", "2")
        assert data.train_labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert adapter.real(argparse.Namespace(dataset="imagenet"), context) is None


@pytest.mark.parametrize(("arguments", "said"), [
    (["--data_dir", "{}"], "no cifar-10-batches-py"),
    (["-d", "svhn", "--data_dir", "{}"], "no svhn/train_32x32.mat"),
    (["-d", "speech", "-i", "0"], "images per class, got 0"),
    (["-d", "speech"], "images per class, got -1"),
    (["-d", "speech", "--ipc=1", "--niter", "1", "--inner_loop", "3"], "make 33 outer iterations"),
    (["-d", "speech", "--ipc", "ten"], "argument --ipc/-i: invalid int value: 'ten'"),
])  # fmt: skip
def test_what_would_fail_late_is_said_early(arguments: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=re.escape(said)):
        adapters.upstream("idc").preflight([text.format(tmp_path) for text in arguments])


@pytest.mark.parametrize("arguments", [
    ["-d", "speech", "--ipc", "1", "--niter", "1", "--inner_loop", "2"],
    ["-d", "speech", "--ipc", "1", "--niter", "1", "--inner_loop", "3", "--reproduce"],  # sets its own niter
])  # fmt: skip
def test_what_the_host_takes_passes(arguments: list[str]) -> None:
    adapters.upstream("idc").preflight(arguments)


# Its pretrained networks ---------------------------------------------------------------------------------------------


def theirs(made: nn.Module) -> dict[str, Tensor]:
    """A state dict of ours under the names that IDC gives its weights."""
    inner = {"residual.0": "conv1", "residual.1": "bn1", "residual.3": "conv2", "residual.4": "bn2"}
    renamed = {}
    for name, value in made.state_dict().items():
        part = name.split(".")
        if part[0] == "features":
            at = int(part[1])
            name = f"layers.{'norm' if at % 4 else 'conv'}.{at // 4}.{part[2]}"
        elif part[0] == "stem":
            name = f"layer0.{'bn1' if int(part[1]) else 'conv1'}.{part[2]}"
        elif part[0] == "stages":
            block = f"layer{int(part[1]) // 2 + 1}.{int(part[1]) % 2}"
            of = f"downsample.{part[3]}" if part[2] == "shortcut" else inner[f"{part[2]}.{part[3]}"]
            name = f"{block}.{of}.{part[4]}"
        elif "stem.0.weight" in made.state_dict():
            name = f"fc.{part[1]}"
        renamed[name] = value
    return renamed


BUILDS: list[tuple[str, dict[str, Any], tuple[int, int, int]]] = [
    ("convnet", {"width": 4}, (3, 32, 32)),
    ("convnet", {"width": 4, "norm": "batch", "depth": 4, "num_classes": 7}, (3, 32, 32)),
    ("convnet", {"width": 4, "norm": "none", "size": [64, 64]}, (3, 64, 64)),
    ("convnet", {"width": 4, "channels": 1, "size": [28, 28]}, (1, 28, 28)),
    ("resnet18", {"width": 4}, (3, 32, 32)),
    ("resnet18", {"width": 4, "norm": "batch", "channels": 1, "num_classes": 5}, (1, 32, 32)),
]


def fresh(architecture: str, seed: int = 0, **given: Any) -> nn.Module:
    with networks.seeded(seed):
        return networks.build(architecture, **given).eval()


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("architecture", "given", "shape"), BUILDS)
def test_a_network_is_known_by_its_weights(architecture: str, given: dict[str, Any], shape: tuple[int, ...]) -> None:
    made = fresh(architecture, 3, **given)
    generator = torch.Generator().manual_seed(4)
    for value in made.state_dict().values():  # norms begin as ones and zeros, which could be taken for each other
        if value.is_floating_point():
            value += 0.1 * torch.rand(value.shape, generator=generator)
    read = idcpools.network(theirs(made), "a file").eval()
    images = torch.linspace(-1, 1, 2 * shape[0] * shape[1] * shape[2]).view(2, *shape)
    assert torch.equal(read(images), made(images))
    assert read.spec["architecture"] == architecture
    assert given.items() <= read.spec["options"].items()


def pretrained(folder: Path, *files: str, **given: Any) -> Path:
    for seed, file in enumerate(files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        torch.save(theirs(fresh("convnet", seed, width=4, **given)), folder / file)
    return folder


def host_pool(path: Path, dataset: str = "cifar10") -> ProxyPool:
    args = argparse.Namespace(datatag=dataset, dataset=dataset, ipc=1)
    return hosting.proxies.resolve(f"idc:{path}", adapters.upstream("idc"), args, {})


def test_the_last_checkpoint_of_each_experiment_is_taken(tmp_path: Path) -> None:
    folder = pretrained(
        tmp_path / "pretrained" / "cifar10", "conv3in_cut_0/checkpoint9.pth.tar",
        "conv3in_cut_0/checkpoint10.pth.tar", "conv3in_cut_1/checkpoint2.pth.tar",
    )  # fmt: skip
    pool = host_pool(folder)
    assert [proxy.name for proxy in pool] == ["conv3in_cut_0/checkpoint10", "conv3in_cut_1/checkpoint2"]
    assert [proxy.record for proxy in pool] == [{"epoch": 10}, {"epoch": 2}]
    assert (pool.info.dataset, pool.info.shape, pool.info.space) == ("cifar10", (3, 32, 32), idcpools.SPACES["cifar10"])
    assert [proxy.name for proxy in host_pool(folder / "conv3in_cut_1")] == ["conv3in_cut_1/checkpoint2"]
    assert [p.record["epoch"] for p in host_pool(folder / "conv3in_cut_0" / "checkpoint9.pth.tar")] == [9]
    pool.save(tmp_path / "pool")
    assert [proxy.digest() for proxy in ProxyPool.load(tmp_path / "pool")] == [proxy.digest() for proxy in pool]


def test_a_training_checkpoint_is_read_too(tmp_path: Path) -> None:
    held = {f"module._orig_mod.{name}": value for name, value in theirs(fresh("convnet", 1, width=4)).items()}
    torch.save({"epoch": 3, "arch": "convnet", "state_dict": held, "best_acc1": 9.5}, tmp_path / "checkpoint.pth.tar")
    (proxy,) = host_pool(tmp_path)
    assert torch.equal(proxy.network.state_dict()["classifier.weight"], held["module._orig_mod.classifier.weight"])


def test_networks_of_another_data_set_are_refused(tmp_path: Path) -> None:
    folder = pretrained(tmp_path / "pretrained" / "svhn", "conv3in_cut_0/checkpoint9.pth.tar")
    with pytest.raises(ProxyError, match="trained on svhn, not on cifar10"):
        host_pool(folder)
    with pytest.raises(ProxyError, match="IDC trains no networks on digits"):
        host_pool(pretrained(tmp_path / "other", "a_cut_0/checkpoint9.pth.tar"), "digits")


class Strange:
    """Not a tensor; unpickling it would run code of ours."""


@pytest.mark.parametrize(("held", "error", "said"), [
    (b"not a torch file", ProxyError, "cannot be read as a torch file of weights alone"),
    ({"state_dict": Strange()}, ProxyError, "holds more than tensors"),
    ([1, 2], ProxyError, "list instead of a state dict"),
    ({}, ProxyError, "dict instead of a state dict"),
    ({"block.weight": torch.ones(2)}, ProxyError, "its layers are block"),
    ({"layers.conv.0.weight": torch.ones(4, 1, 3, 3), "classifier.weight": torch.ones(10, 4 * 64)}, ProxyError,
     "not a network that ddplug can build"),  # one channel, 16 x 16: IDC pads it otherwise than ours
    ({"layers.conv.0.weight": torch.ones(4, 3, 3, 3), "classifier.weight": torch.ones(10, 4 * 64)}, ProxyError,
     'Missing key(s) in state_dict: "features.0.bias"'),
])  # fmt: skip
def test_what_is_no_network_is_said(held: Any, error: type[Exception], said: str, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint1.pth.tar"
    if isinstance(held, bytes):
        file.write_bytes(held)
    else:
        torch.save(held, file)
    with pytest.raises(error, match=re.escape(said)):
        host_pool(file)


def test_networks_for_different_images_are_refused(tmp_path: Path) -> None:
    pretrained(tmp_path, "a/checkpoint1.pth.tar")
    pretrained(tmp_path, "b/checkpoint1.pth.tar", size=[64, 64])
    with pytest.raises(ProxyError, match="different images or numbers of classes"):
        host_pool(tmp_path)


@pytest.mark.parametrize("path", ["", "nowhere"])
def test_an_empty_folder_is_said(path: str, tmp_path: Path) -> None:
    with pytest.raises(ProxyError, match=r"no networks of IDC at .* \((nothing|no such folder)\)"):
        host_pool(tmp_path / path)


@pytest.mark.usefixtures("untouched")
def test_the_hosts_own_folder_is_found_and_its_own_network_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that none of ours is: the host's own code builds it, and its random state is as it was."""
    monkeypatch.chdir(tmp_path)
    adapter = adapters.upstream("idc")
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    context = {"space": (MEAN, STD), "train": Images(images),
               "network": lambda args, nclass: nn.Sequential(nn.Flatten(), nn.Linear(48, nclass))}  # fmt: skip
    args = options(tmp_path)
    assert adapter.experts(args, context) is None
    folder = tmp_path / "pretrained" / "cifar10" / "conv3in_cut_0"
    folder.mkdir(parents=True)
    assert adapter.experts(args, context) is None
    held = {"1.weight": torch.ones(CLASSES, 48), "1.bias": torch.zeros(CLASSES)}
    torch.save(held, folder / "checkpoint5.pth.tar")
    pool = adapter.experts(args, context)
    assert pool is not None
    assert torch.equal(pool.proxies[0].network.state_dict()["1.weight"], held["1.weight"])
    assert pool.info.space == InputSpace.normalized(MEAN, STD)
    torch.save({"1.weight": torch.ones(CLASSES, 40)}, folder / "checkpoint6.pth.tar")
    with pytest.raises(ProxyError, match="for the host's own Sequential"):
        adapter.experts(args, context)
