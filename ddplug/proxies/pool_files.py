"""A pool on disk: `pool.json`, which describes data and networks, and a safetensors file of each network.

The header has its own checksum and one of every file beside it. It is written last, so that a pool that was cut off in
the middle is recognised. Nothing in a pool is ever executed: an architecture is built by its name.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from torch import Tensor, nn

from ddplug.datasets.spaces import AnySpace
from ddplug.datasets.zca import space_from_json
from ddplug.errors import DDPlugError, InputError, ProxyError
from ddplug.proxies.proxy import PoolInfo, Proxy, StreamedProxy
from ddplug.terms.real import Real
from ddplug.utils.digest import file_sha256
from ddplug.utils.files import user_path, write_bytes, write_json
from ddplug.utils.records import Count, between, like, read_record, sized

HEADER = "pool.json"
SPACE = "space.safetensors"
CENTROIDS = "centroids.safetensors"
MAKE_ONE = "Make one with `ddplug pretrain`, or from your own networks with ProxyPool.from_modules(...)."

_Sha256 = Annotated[str, like("[0-9a-f]{64}")]


class Network(TypedDict):
    """A network's entry in the header."""

    file: Annotated[str, like(r"\w[\w.-]*")]
    sha256: _Sha256
    name: str
    head: str | None
    architecture: str
    options: dict[str, Any]
    record: dict[str, Any]


class _Dataset(TypedDict):
    name: str | None
    class_names: list[str] | None
    shape: Annotated[list[Count], sized(3, 3)] | None
    space: dict[str, Any] | None
    fingerprint: str | None
    space_file: NotRequired[_Sha256]


class _Header(TypedDict):
    format: Literal["ddplug-pool"]
    version: Literal[1]
    wanted: Annotated[int, between(1)]
    dataset: _Dataset
    recipe: dict[str, Any]
    networks: list[Network]
    centroids: NotRequired[_Sha256]


@dataclass
class Header:
    """Content of `pool.json`."""

    info: PoolInfo
    wanted: int
    """Networks the pool is to have; fewer recorded ones mean that its making was interrupted."""
    networks: list[dict[str, Any]] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)
    """Settings of the training, which a pretraining that goes on compares with its own."""
    centroids: str | None = None
    """Checksum of the file of the centroids of real images, if there is one."""

    @property
    def complete(self) -> bool:
        """True if all networks are finished."""
        return len(self.networks) >= self.wanted


def read_header(folder: Path) -> Header:
    """Read the header of the pool in `folder`; raises `ProxyError` if it is missing or not one of ours."""
    folder = user_path(folder)
    path = folder / HEADER
    if not path.is_file():
        held = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) or "nothing" if folder.is_dir() else "no folder"
        raise ProxyError(f"there is no pool at '{folder}': it has no {HEADER} (found {held}). {MAKE_ONE}")
    advice = f"Copy the pool again, or delete the folder and make the pool again. {MAKE_ONE}"
    record = read_record(path, _Header, "a pool's header", advice, error=ProxyError)
    data = record["dataset"]
    info = PoolInfo(
        dataset=data["name"],
        class_names=tuple(data["class_names"]) if data["class_names"] is not None else None,
        shape=tuple(data["shape"]) if data["shape"] is not None else None,
        space=_read_space(folder, data) if data["space"] is not None else None,
        fingerprint=data["fingerprint"],
    )
    return Header(info, record["wanted"], record["networks"], record["recipe"], record.get("centroids"))


def write_header(folder: Path, header: Header) -> None:
    """Write `pool.json`, by renaming."""
    info = header.info
    record: dict[str, Any] = {
        "format": "ddplug-pool",
        "version": 1,
        "wanted": header.wanted,
        "dataset": {
            "name": info.dataset,
            "class_names": info.class_names,
            "shape": info.shape,
            "space": info.space.to_json() if info.space is not None else None,
            "fingerprint": info.fingerprint,
        },
        "recipe": header.recipe,
        "networks": header.networks,
    }
    tensors: Any = getattr(info.space, "tensors", None)
    if tensors is not None:  # a whitening matrix is nothing for a JSON file
        if not (folder / SPACE).is_file():
            _save_tensors(tensors(), folder / SPACE)
        record["dataset"]["space_file"] = file_sha256(folder / SPACE)
    if header.centroids is not None:
        record["centroids"] = header.centroids
    try:
        write_json(record, folder / HEADER)
    except (TypeError, ValueError) as error:
        raise ProxyError(
            f"the pool's header cannot be written ({error}): a network's record, spec and options may hold numbers, "
            "strings, lists and dictionaries only."
        ) from error


def write_network(folder: Path, index: int, proxy: Proxy) -> dict[str, Any]:
    """Write one network's weights, by renaming, and return its record for the header."""
    spec = getattr(proxy.network, "spec", None)
    if not isinstance(spec, Mapping) or "architecture" not in spec:
        raise ProxyError(
            f"proxy '{proxy.name}' ({type(proxy.network).__name__}) cannot be saved: nothing says how to build it "
            "again. Build it with ddplug.networks.build(...); a function of your own that builds it becomes known by "
            "ddplug.networks.register(function)."
        )
    name = f"proxy_{index:03d}.safetensors"
    _save_tensors(proxy.weights(), folder / name)
    return {
        "file": name,
        "sha256": file_sha256(folder / name),
        "name": proxy.name,
        "head": proxy.head,
        "architecture": spec["architecture"],
        "options": dict(spec.get("options", {})),
        "record": proxy.record,
    }


def read_network(folder: Path, record: dict[str, Any]) -> Proxy:
    """Build the network of a header's `record` and load its weights; raises `ProxyError` for a damaged file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from ddplug.networks.zoo import build, seeded

    path = _checked(folder / record["file"], record["sha256"])
    architecture, options = record["architecture"], record["options"]
    try:
        weights = load_file(path)
        with seeded(0):  # initial weights are drawn, then overwritten; nobody else's generator may notice
            network = build(architecture, **options)
        network.load_state_dict(weights)
    except (DDPlugError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise ProxyError(
            f"cannot build '{record['name']}' of the pool in '{folder}' ({architecture} with {options}): "
            f"{str(error).splitlines()[0]}. An architecture of your own becomes known by ddplug.networks.register(...)."
        ) from error
    return Proxy(network, record["head"], record["name"], record["record"])


def read_pool(folder: Path, budget: int | None = None) -> tuple[list[Proxy], PoolInfo]:
    """Read the proxies and information of `ProxyPool.load`; without a budget, everything is kept in memory."""
    folder = user_path(folder)
    if not (folder / HEADER).is_file() and (folder / "proxies" / HEADER).is_file():  # the folder of a demo
        folder /= "proxies"
    header = read_header(folder)
    if not header.complete:
        raise ProxyError(
            f"the pool in '{folder}' is unfinished: {len(header.networks)} of {header.wanted} networks. Run the same "
            "`ddplug pretrain` again to continue it, or with a smaller --count to end it."
        )
    held = sum(file.stat().st_size for file in folder.glob("proxy_*.safetensors"))
    streamed = budget is not None and held > budget
    proxies: list[Proxy] = []
    modules: dict[object, nn.Module] = {}
    for record in header.networks:
        # Every network is loaded once, to see that it can be; the first module of its kind computes with any weights.
        proxy = read_network(folder, record)
        if streamed:  # the host may change its folder
            shared = modules.setdefault(proxy.kind, proxy.network)
            proxy = StreamedProxy(folder.resolve() / record["file"], shared, proxy)
        proxies.append(proxy)
    if header.centroids is not None:
        _read_centroids(_checked(folder / CENTROIDS, header.centroids), proxies)
    return proxies, header.info


def write_pool(proxies: Sequence[Proxy], info: PoolInfo, folder: Path) -> None:
    """Write a pool for `ProxyPool.save`: everything into a temporary neighbour, then one rename.

    The folder gets the permissions of the empty one that it replaces, or else those of any new folder here.
    """
    folder = user_path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ProxyError(f"'{folder}' already exists and is not an empty folder; choose another, or delete it first.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    temporary.mkdir()  # not by tempfile, whose folders nobody else may enter
    try:
        records = [write_network(temporary, i, proxy) for i, proxy in enumerate(proxies)]
        write_header(temporary, Header(info, len(proxies), records, centroids=_save_centroids(temporary, proxies)))
        if folder.is_dir():
            shutil.copymode(folder, temporary)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_centroids(folder: Path, proxies: Sequence[Proxy]) -> None:
    """Write the centroids of `proxies`, which are those of the pool in `folder`, into it."""
    folder = user_path(folder)
    header = read_header(folder)
    header.centroids = None  # if this is interrupted, the header describes no other file than there is
    write_header(folder, header)
    header.centroids = _save_centroids(folder, proxies)
    write_header(folder, header)


def _save_centroids(folder: Path, proxies: Sequence[Proxy]) -> str | None:
    """Write the file of the centroids and return its checksum; None if no proxy has any."""
    tensors = {
        f"{index}/{representation}/{temperature!r}/{name}": tensor
        for index, proxy in enumerate(proxies)
        for (representation, temperature), real in proxy.centroids.items()
        for name, tensor in (("logs", real.features), ("classes", real.groups.classes), ("counts", real.groups.counts))
    }
    if not tensors:
        return None
    _save_tensors(tensors, folder / CENTROIDS)
    return file_sha256(folder / CENTROIDS)


def _read_centroids(path: Path, proxies: Sequence[Proxy]) -> None:
    """Read the file of the centroids into `proxies`."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    for key, logs in tensors.items():
        base, _, name = key.rpartition("/")
        if name == "logs":
            index, representation, temperature = base.split("/")
            real = Real.of_classes(logs, tensors[f"{base}/classes"], tensors[f"{base}/counts"])
            proxies[int(index)].centroids[representation, float(temperature)] = real


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save

    # Copies, because safetensors takes no two tensors that share memory, as a layer used twice has.
    copies = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    write_bytes(save(copies), path)


def _read_space(folder: Path, data: dict[str, Any]) -> AnySpace:
    from safetensors.torch import load_file

    tensors = load_file(_checked(folder / SPACE, data["space_file"])) if "space_file" in data else None
    try:
        return space_from_json(data["space"], tensors)
    except InputError as error:
        raise ProxyError(f"the input space of the pool in '{folder}' cannot be read: {error} {MAKE_ONE}") from error


def _checked(path: Path, checksum: str) -> Path:
    """Return `path`; raises `ProxyError` unless it has the checksum in the header."""
    if not path.is_file() or file_sha256(path) != checksum:
        raise ProxyError(
            f"'{path}' is missing or is not the file that the pool's header describes (the checksum differs): it was "
            "damaged or half-copied. Copy the pool again, or delete the folder and make it anew."
        )
    return path
