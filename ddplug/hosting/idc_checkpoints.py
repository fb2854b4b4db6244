"""Proxies from the checkpoints of IDC's pretrain.py, which are torch files of weights alone.

They are `pretrained/DATASET/EXPERIMENT_SEED/checkpointEPOCH.pth.tar`. The network is inferred from the names and shapes
of the weights. `ddplug.networks` builds a ConvNet and the ResNet-18 for small images, so that the pool can be saved;
other networks need the host's own code, which is available while the host runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ddplug.datasets.spaces import InputSpace
from ddplug.errors import ProxyError
from ddplug.hosting.names import Names
from ddplug.networks.zoo import Norm, build, seeded
from ddplug.proxies.pool import PoolInfo, Proxy, ProxyPool
from ddplug.utils.files import user_path
from ddplug.utils.reading import load_tensors

PRETRAINED = "pretrained"
"""The host's folder of checkpoints, in the folder that it is started in."""

Weights = Mapping[str, Tensor]
Builder = Callable[[], nn.Module]

_CIFAR = InputSpace.normalized((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
SPACES = {
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "svhn": InputSpace.normalized((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "mnist": InputSpace.normalized((0.1307,), (0.3081,)),
    "fashion": InputSpace.normalized((0.2861,), (0.3530,)),
    "imagenet": InputSpace.normalized((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""IDC's normalisation of each data set, by its name for it."""


def read_for_host(path: str, adapter: Names, args: Any, context: Mapping[str, Any]) -> ProxyPool:
    """`--proxies idc:PATH` of any host: PATH is a file, an experiment's folder, or a folder of experiments."""
    folder = user_path(path)
    dataset = next((part for part in reversed(folder.parts) if _space(part)), adapter.setting(args)[1])
    space = _space(dataset)
    if space is None:
        raise ProxyError(
            f"IDC trains no networks on {dataset}, so '{path}' cannot be used here; it knows {', '.join(SPACES)}."
        )
    fresh = getattr(adapter, "network", None) if "network" in context else None  # IDC itself is what runs
    return read([folder], dataset, space, (lambda: fresh(args, context)) if fresh else None)


def read(folders: Sequence[Path], dataset: str, space: InputSpace, builder: Builder | None = None) -> ProxyPool:
    """A pool of pretrained networks: of each experiment below `folders` the last checkpoint.

    Args:
        folders: files, folders of checkpoints, or folders of such folders.
        dataset: the data set that the networks were trained on.
        space: its normalisation.
        builder: makes a network of the host's own, for weights that fit none of ours.

    Raises:
        ProxyError: there are no checkpoints, a file has other contents, or the networks are for different data.
        ProxyError: neither ddplug nor `builder` makes such a network.
    """
    files = [file for folder in folders for file in checkpoints(folder)]
    made = [network(weights(file), str(file), builder) for file in files]
    shapes = {_taken(proxy) for proxy in made}
    if len(shapes) > 1:
        named = "; ".join(f"{file}: {_taken(proxy)}" for file, proxy in zip(files, made, strict=True))
        raise ProxyError(
            f"the networks are for different images or numbers of classes ({named}); name one experiment's folder."
        )
    ((shape, _),) = shapes
    proxies = [
        Proxy(proxy, name=f"{file.parent.name}/{file.name.partition('.')[0]}", record={"epoch": _epoch(file)})
        for file, proxy in zip(files, made, strict=True)
    ]
    return ProxyPool(proxies, PoolInfo(dataset=dataset, shape=shape, space=space))


def checkpoints(path: Path) -> list[Path]:
    """The file `path`, or the last checkpoint of each experiment in the folder `path`."""
    if path.is_file():
        return [path]
    found = sorted({*path.glob("checkpoint*.pth.tar"), *path.glob("*/checkpoint*.pth.tar")})
    last: dict[Path, Path] = {}
    for file in found:
        if file.parent not in last or _epoch(file) > _epoch(last[file.parent]):
            last[file.parent] = file
    if not last:
        held = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing" if path.is_dir() else "no such folder"
        raise ProxyError(
            f"there are no networks of IDC at '{path}' ({held}); expected checkpointEPOCH.pth.tar there or in its "
            f"folders, as the host's pretrain.py writes them below {PRETRAINED}/DATASET."
        )
    return list(last.values())


def weights(file: Path) -> dict[str, Tensor]:
    """The state dict in `file`, by itself or as its entry "state_dict", without the prefixes of wrappers."""
    held = load_tensors(
        file, "checkpoint", "a torch file of weights alone", "Copy it again, or train it again.", error=ProxyError
    )
    if isinstance(held, Mapping) and isinstance(held.get("state_dict"), Mapping):
        held = held["state_dict"]
    if (
        not isinstance(held, Mapping)
        or not held
        or not all(isinstance(value, Tensor) and not value.is_complex() for value in held.values())
        or not all(value.numel() for value in held.values())
    ):
        raise ProxyError(f"'{file}' has {type(held).__name__} instead of a state dict; expected a checkpoint of IDC.")
    return {str(name).replace("_orig_mod.", "").removeprefix("module."): value for name, value in held.items()}


def network(held: Weights, file: str, builder: Builder | None = None) -> nn.Module:
    """The network with the weights `held`; `ProxyError` if none fits them."""
    ours = _convnet(held) or _resnet18(held)
    if ours is not None:
        architecture, options, names = ours
        renamed = {_renamed(name, names): value for name, value in held.items()}
        try:
            with seeded(0):  # the drawn weights are overwritten; global generators must not change
                made = build(architecture, **options)
            problem = _load(made, renamed)
            if problem is None:
                return made
        except ProxyError as error:
            problem = str(error)
    else:
        problem = f"its layers are {', '.join(dict.fromkeys(name.partition('.')[0] for name in held))}"
    if builder is not None:
        with seeded(0):
            made = builder()
        other = _load(made, held)
        if other is None:
            return made
        problem = f"{problem}; for the host's own {type(made).__name__}, {other}"
    raise ProxyError(
        f"'{file}' is not a network that ddplug can build ({problem}); expected IDC's ConvNet, or its ResNet-18 for "
        "small images, with instance or batch norm. Others are read while IDC runs with the same network "
        "(-n, --depth, --norm_type, --width), or given as modules: ddplug.ProxyPool.from_modules([...])."
    )


def _load(made: nn.Module, held: Weights) -> str | None:
    """Load all weights, and return the reason if they do not fit, otherwise None."""
    try:
        made.load_state_dict(held)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        return " ".join(lines[1:3])[:300]
    return None


Found = tuple[str, dict[str, Any], Sequence[tuple[str, str]]]
"""Architecture, options, and the renaming of weights: patterns and replacements."""


def _convnet(held: Weights) -> Found | None:
    """IDC's ConvNet, with the size inferred from the width of its head; None for another network."""
    depth = sum(1 for name in held if re.fullmatch(r"layers\.conv\.\d+\.weight", name))
    head, first = held.get("classifier.weight"), held.get("layers.conv.0.weight")
    if head is None or first is None or head.ndim != 2 or first.ndim != 4:
        return None
    width, channels = int(first.shape[0]), int(first.shape[1])
    side = math.isqrt(int(head.shape[1]) // width) * 2**depth
    # IDC pads every image of one channel by 3 pixels, ours only those of 28 x 28, so other sizes are not supported.
    size = 28 if channels == 1 else side
    options = {
        "num_classes": int(head.shape[0]), "channels": channels, "size": [size, size], "width": width, "depth": depth,
        "norm": _norm(held, "layers.norm.0"),
    }  # fmt: skip
    names = [(rf"layers\.{kind}\.{n}\.", f"features.{4 * n + at}.")
             for n in range(depth) for at, kind in enumerate(("conv", "norm"))]  # fmt: skip
    return "convnet", options, names


def _resnet18(held: Weights) -> Found | None:
    """IDC's ResNet-18 for small images, of any width; None for another depth or stem."""
    head, first = held.get("fc.weight"), held.get("layer0.conv1.weight")
    blocks = {match[0] for name in held if (match := re.match(r"layer[1-4]\.\d+", name))}
    if head is None or first is None or blocks != {f"layer{stage}.{n}" for stage in range(1, 5) for n in range(2)}:
        return None
    if tuple(first.shape[2:]) != (3, 3) or "layer1.0.conv3.weight" in held:
        return None
    options = {
        "num_classes": int(head.shape[0]), "channels": int(first.shape[1]), "width": int(first.shape[0]),
        "norm": _norm(held, "layer0.bn1"),
    }  # fmt: skip
    names = [(r"layer0\.conv1\.", "stem.0."), (r"layer0\.bn1\.", "stem.1."), (r"fc\.", "classifier.")]
    inner = (("conv1", "residual.0"), ("bn1", "residual.1"), ("conv2", "residual.3"), ("bn2", "residual.4"),
             ("downsample", "shortcut"))  # fmt: skip
    names += [
        (rf"layer{stage}\.{n}\.{theirs}\.", f"stages.{2 * (stage - 1) + n}.{ours}.")
        for stage in range(1, 5) for n in range(2) for theirs, ours in inner
    ]  # fmt: skip
    return "resnet18", options, names


def _renamed(name: str, names: Sequence[tuple[str, str]]) -> str:
    for pattern, ours in names:
        new, count = re.subn(f"^{pattern}", ours, name)
        if count:
            return new
    return name


def _norm(held: Weights, layer: str) -> Norm:
    """The kind of normalisation of a layer, by its weights."""
    if f"{layer}.running_mean" in held:
        return "batch"
    return "instance" if f"{layer}.weight" in held else "none"


def _taken(made: nn.Module) -> tuple[tuple[int, int, int] | None, int]:
    """Shape of a network's images, None if it is not known, and its number of classes."""
    spec: Mapping[str, Any] = getattr(made, "spec", {})
    heads = [module for module in made.modules() if isinstance(module, nn.Linear)]
    shape = (spec["options"]["channels"], *spec["options"]["size"]) if spec.get("architecture") == "convnet" else None
    return shape, heads[-1].out_features if heads else 0


def _epoch(file: Path) -> int:
    found = re.search(r"\d+", file.name)
    return int(found[0]) if found else -1


def _space(dataset: str) -> InputSpace | None:
    """The space of a data set by the name of its folder; ImageNet's subsets have a number at the end."""
    return SPACES.get(dataset) or (SPACES["imagenet"] if re.match(r"imagenet\d", dataset) else None)
