"""Proxies from an expert buffer: the `replay_buffer_*.pt` files of MTT, DATM and hosts derived from them.

    --proxies buffer:FOLDER            the last snapshot of every expert in FOLDER
    --proxies buffer:FOLDER#20         the snapshot after epoch 20 of each; 0 is before training, -1 the last
    --proxies buffer:replay_buffer_3.pt

A buffer file is a list of experts; an expert is the list of its snapshots, one per epoch; a snapshot is the list of the
network's parameters in the order of its layers. The network is named by the file's folder, as in
`BUFFERS/CIFAR10_NO_ZCA/ConvNet/`, or by the host's own option.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddplug.datasets.zca import ZCASpace
from ddplug.errors import HostError, InputError, ProxyError
from ddplug.hosting.names import Names
from ddplug.networks.zoo import build, seeded
from ddplug.proxies.pool import PoolInfo, Proxy, ProxyPool
from ddplug.utils.digest import short_sha256
from ddplug.utils.files import user_path
from ddplug.utils.reading import load_tensors

Snapshot = Sequence[Tensor]
Expert = Sequence[Snapshot]

FILES = "replay_buffer_*.pt"
INSTEAD = "Use a pool: --proxies FOLDER of `ddplug run`, --cmi_proxies FOLDER of a patched host."
NO_ZCA = "_NO_ZCA"
WITH_AND_WITHOUT = ("CIFAR10", "CIFAR100")
"""Data sets whose folder of experts ends in `_NO_ZCA` unless the images were whitened; of others it is not known."""

PLAIN = ("ConvNet", "ConvNetIN", "ConvNetAR", "ConvNetAP")
"""Names of one network, with ConvNet's defaults: instance norm, ReLU and average pooling."""


@dataclass(frozen=True)
class Architecture:
    """Arguments of `ddplug.networks.build` for the hosts' name of a network."""

    name: str
    options: Mapping[str, Any]


def architecture(model: str) -> Architecture:
    """The network that the hosts call `model`; `ProxyError` if it cannot be built here, or cannot be a proxy."""
    if model.endswith(("BN", "BN_AP", "BN_Tiny")):
        raise ProxyError(
            f"experts of model {model} cannot be proxies: a buffer keeps a network's parameters, but not the running "
            f"statistics of its batch norm. {INSTEAD}"
        )
    if model in PLAIN:
        return Architecture("convnet", {})
    if model == "ResNet18":
        return Architecture("resnet18", {})
    if model in ("ConvNetNN", "ConvNetKIP"):
        return Architecture("convnet", {"norm": "none", **({"width": 1024} if model == "ConvNetKIP" else {})})
    sized = re.fullmatch(r"ConvNet(?:D(\d+)|W(\d+))", model)
    if sized is None:
        raise ProxyError(
            f"ddplug does not build networks of model {model!r} from a buffer; it knows {', '.join(PLAIN)}, "
            f"ConvNetD1 and so on, ConvNetW32 and so on, ConvNetNN, ConvNetKIP and ResNet18. {INSTEAD}"
        )
    depth, width = sized.groups()
    return Architecture("convnet", {"depth": int(depth)} if depth else {"width": int(width)})


def files_in(path: Path) -> list[Path]:
    """The buffer files in a folder, in the order of their numbers, or the one file; `ProxyError` if there is none."""
    if path.is_file():
        return [path]
    found = sorted(path.glob(FILES), key=lambda file: (len(file.name), file.name))
    if not found:
        deeper = sorted({str(file.parent.relative_to(path)) for file in path.glob(f"**/{FILES}")})
        hint = f" There are some in its folders {', '.join(deeper[:6])}; name one of them." if deeper else ""
        raise ProxyError(
            f"no expert buffer in '{path}': expected files {FILES}, as written by the host's buffer script.{hint}"
        )
    return found


def load(path: Path) -> list[Expert]:
    """The experts of one file, left on disk until they are used; no code in the file is executed.

    Raises `ProxyError` for a file that cannot be read or has other contents.
    """
    advice = "Copy it again, or write it again with the host's buffer script."
    content = load_tensors(path, "expert buffer", "an expert buffer", advice, error=ProxyError, mmap=True)
    if not _is_buffer(content):
        raise ProxyError(
            f"'{path}' is not an expert buffer: expected a list of experts, each a list of snapshots, each a list of "
            f"parameters, got {type(content).__name__}. Name a file {FILES} of the host's buffer script."
        )
    experts: list[Expert] = content
    return experts


def check_moving(experts: Sequence[Expert], path: Path) -> None:
    """Raise `ProxyError` if all snapshots of an expert are equal, as in a buffer that was made without CUDA."""
    for number, snapshots in enumerate(experts):
        if len(snapshots) > 1 and _equal(snapshots[0], snapshots[-1]):
            raise ProxyError(
                f"all snapshots of expert {number} in '{path}' are equal. That is what the buffer scripts of MTT and "
                "DATM write on a machine without CUDA: every snapshot is the live network, as it was at the end. "
                "Trajectory matching divides by the distance between snapshots, so its loss would be infinite. "
                "Write the buffer on a machine with CUDA, or with copies of the weights."
            )


def split(given: str) -> tuple[Path, int]:
    """Path and snapshot of `PATH#SNAPSHOT`; the snapshot is -1, the last, by default."""
    path, hash_, snapshot = given.rpartition("#")
    if not hash_:
        return user_path(given), -1
    if not re.fullmatch(r"-?\d+", snapshot):
        raise ProxyError(
            f"'{snapshot}' in 'buffer:{given}' is not a snapshot; expected a whole number such as #20 or #-1."
        )
    return user_path(path), int(snapshot)


def read(
    path: Path, model: str, *, classes: int, shape: tuple[int, int, int], snapshot: int = -1, info: PoolInfo
) -> ProxyPool:
    """A pool of the experts in `path`, a folder or a file, one proxy for each.

    Args:
        path: the buffer's.
        model: the hosts' name of the network.
        classes: number of classes.
        shape: channels, height and width of the images.
        snapshot: epoch of the snapshot; negative numbers count from the end.
        info: the pool's data.

    Raises:
        ProxyError: the buffer or the snapshot is missing, the file is damaged, or all snapshots are equal.
        ProxyError: the network is not `model`, is not known here, or has weights that are not finite.
    """
    kind = architecture(model)
    options = {**kind.options, "num_classes": classes, "channels": shape[0], "size": shape[1:]}
    proxies = []
    for file in files_in(path):
        experts = load(file)
        check_moving(experts, file)
        for number, snapshots in enumerate(experts):
            if not -len(snapshots) <= snapshot < len(snapshots):
                raise ProxyError(
                    f"'{file}' has no snapshot {snapshot}: expert {number} has {len(snapshots)} of them, 0 (before "
                    f"training) to {len(snapshots) - 1}, or -1 for the last."
                )
            with seeded(0):
                network = build(kind.name, **options)
            _fill(network, snapshots[snapshot], model, file)
            record = {"buffer": file.name, "expert": number, "snapshot": snapshot % len(snapshots), "model": model}
            proxies.append(Proxy(network, "classifier", f"{file.stem}/{number}#{record['snapshot']}", record))
    return ProxyPool(proxies, info)


def read_for_host(given: str, adapter: Names, args: Any, context: Mapping[str, Any]) -> ProxyPool:
    """The pool of `buffer:GIVEN` for a host; see `read`.

    Raises:
        InputError: by the folder's name the experts are of whitened images, and the host's images are not whitened.
    """
    path, snapshot = split(given)
    folder = path if path.is_dir() else path.parent
    model = folder.name if _known(folder.name) else str(args.model)
    dataset, whitened = _data(folder.parent.name)
    space = adapter.space(args, context)
    if whitened and not isinstance(space, ZCASpace):
        raise InputError(
            f"the experts in '{folder}' were trained on ZCA-whitened images (else the folder above were called "
            f"{folder.parent.name}{NO_ZCA}), but the images of this {adapter.name} run are {space}. Run the host with "
            "its option for ZCA, or name experts of images that are not whitened."
        )
    if whitened is False and isinstance(space, ZCASpace) and "space" in context:
        from ddplug.datasets.spaces import InputSpace

        space = InputSpace.normalized(*context["space"])  # an exact conversion from the host's whitened images
    shape = tuple(context["shape"]) if "shape" in context else tuple(context["train"][0].shape[1:])
    names = context.get("classes")
    count = int(context["count"]) if "count" in context else len(names or ())
    info = PoolInfo(dataset, tuple(map(str, names)) if names else None, (shape[0], shape[1], shape[2]), space)
    return read(path, model, classes=count, shape=(shape[0], shape[1], shape[2]), snapshot=snapshot, info=info)


def _known(model: str) -> bool:
    try:
        architecture(model)
    except ProxyError:
        return model.endswith("BN")  # known, but refused with a reason of its own
    return True


def _data(folder: str) -> tuple[str | None, bool | None]:
    """Data set, and True if its images were whitened, by the name of the folder; None for what is not known."""
    name = folder.removesuffix(NO_ZCA)
    if name not in WITH_AND_WITHOUT:
        return None, None
    return name.lower(), name == folder


def _is_buffer(content: object) -> bool:
    return (
        isinstance(content, list | tuple)
        and len(content) > 0
        and all(
            isinstance(expert, list | tuple)
            and len(expert) > 0
            and all(
                isinstance(snapshot, list | tuple)
                and all(isinstance(held, Tensor) and held.is_floating_point() for held in snapshot)
                for snapshot in expert
            )
            for expert in content
        )
    )


def _equal(first: Snapshot, last: Snapshot) -> bool:
    return len(first) == len(last) and all(torch.equal(a, b) for a, b in zip(first, last, strict=True))


def _fill(network: nn.Module, snapshot: Snapshot, model: str, file: Path) -> None:
    """Give `network` the parameters of `snapshot`; `ProxyError` if their shapes differ."""
    held = dict(network.named_parameters())
    wanted, got = [tuple(p.shape) for p in held.values()], [tuple(p.shape) for p in snapshot]
    if wanted != got:
        at = next((i for i, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), min(len(wanted), len(got)))
        raise ProxyError(
            f"'{file}' does not hold networks of model {model} for this data: expected {len(wanted)} parameters, got "
            f"{len(got)}; at parameter {at} expected shape {wanted[at : at + 1]}, got {got[at : at + 1]}. Name the "
            "buffer of the host's own model and data set, or put it in a folder of the model's name."
        )
    with torch.no_grad():
        for parameter, value in zip(held.values(), snapshot, strict=True):
            parameter.copy_(value)


def experts_in(folder: Path) -> str:
    """Sixteen hex digits that distinguish buffers by names, sizes and last 64 KiB of their files, which may be huge."""
    parts: list[bytes] = []
    for path in sorted(user_path(folder).rglob(FILES)):
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - 65536))
            parts.append(f"{path.name}\0{size}\0".encode() + file.read())
    return short_sha256(parts)


def check_buffer(host: str, folder: Path, dataset: str, model: str, zca: bool) -> None:
    """Raise `HostError` unless the host will find experts in `folder`, `ProxyError` if their snapshots are equal."""
    marked = dataset in WITH_AND_WITHOUT
    place = folder / (dataset + (NO_ZCA if marked and not zca else "")) / model
    first = place / "replay_buffer_0.pt"
    if not first.is_file():
        other = folder / (dataset + (NO_ZCA if zca else "")) / model
        hint = (
            f" There are experts {'without' if zca else 'with'} ZCA whitening in '{other}': change the host's option "
            "for ZCA to use them."
            if marked and any(other.glob(FILES))
            else ""
        )
        raise HostError(
            f"{host} needs expert networks, and there is no replay_buffer_0.pt in '{place}'.{hint} Write some with the "
            "host's buffer script, or name another folder among the host's own arguments (buffer_path)."
        )
    check_moving(load(first), first)
