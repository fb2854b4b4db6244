"""A pool's `pool.json`: what its data and its networks are, with a checksum of every file beside it.

It has a checksum of its own, and is written last and by renaming, so that damage is noticed and a pool that was cut off
in the middle is recognised as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ddplug.datasets.spaces import AnySpace
from ddplug.datasets.zca import space_from_json
from ddplug.errors import PoolError, SpaceError
from ddplug.proxies.proxy import PoolInfo
from ddplug.utils.digest import file_sha256
from ddplug.utils.files import user_path, write_bytes, write_json
from ddplug.utils.records import UnfitError, anything, dict_of, entries, list_of, optional, read_record, text, whole

HEADER = "pool.json"
SPACE = "space.safetensors"
FORMAT = "ddplug-pool"
VERSION = 1

_SHA256 = text(64, "[0-9a-f]{64}")
_NETWORK = {
    "file": text(255), "bytes": whole(), "sha256": _SHA256, "name": text(), "head": optional(text()),
    "architecture": text(200), "options": dict_of(anything), "record": dict_of(anything),
}  # fmt: skip
"""What a header says of each network."""
_DATASET = entries(
    {
        "name": optional(text()), "class_names": optional(list_of(text())),
        "shape": optional(list_of(whole(1, 2**20), 3, 3)), "space": optional(dict_of(anything)),
        "fingerprint": optional(text()),
    },
    {"space_file": _SHA256},
)  # fmt: skip
_CONTENT = entries(
    {
        "wanted": whole(1, 10**6), "dataset": _DATASET, "recipe": dict_of(anything),
        "networks": list_of(entries(_NETWORK)),
    }
)  # fmt: skip


def _header(record: Any) -> None:
    """Format and version first, as all else may be different in another."""
    if record.get("format") != FORMAT or not isinstance(record.get("version"), int) or record["version"] > VERSION:
        raise UnfitError(
            f"it is format {repr(record.get('format'))[:40]} version {repr(record.get('version'))[:40]}, this ddplug "
            f"reads {FORMAT!r} up to version {VERSION}. A newer ddplug may read it"
        )
    _CONTENT(record)
    if len(record["networks"]) > record["wanted"]:
        raise UnfitError(f"it names {len(record['networks'])} networks of {record['wanted']}")


MAKE_ONE = "Make one with `ddplug pretrain`, or from your own networks with ProxyPool.from_modules(...)."


@dataclass
class Header:
    """Content of `pool.json`."""

    info: PoolInfo
    wanted: int
    """Networks the pool is to have; fewer recorded ones mean that its making was interrupted."""
    networks: list[dict[str, Any]] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)
    """How the networks were trained, so that a continued pretraining can tell whether it is the same one."""

    @property
    def complete(self) -> bool:
        """True if all networks are finished."""
        return len(self.networks) == self.wanted


def read_header(folder: Path) -> Header:
    """The header of the pool in `folder`; raises `PoolError` if there is none, or not one of ours."""
    folder = user_path(folder)
    if not folder.is_dir():
        raise PoolError(f"there is no pool at '{folder}' (no such folder). {MAKE_ONE}")
    path = folder / HEADER
    if not path.is_file():
        held = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) or "nothing"
        raise PoolError(
            f"'{folder}' is not a pool, or was half-written: it has no {HEADER} (it holds {held}). {MAKE_ONE}"
        )
    advice = f"Copy the pool again, or delete the folder and make the pool again. {MAKE_ONE}"
    record = read_record(path, _header, "a pool's header", advice, error=PoolError)
    data = record["dataset"]
    info = PoolInfo(
        dataset=data["name"],
        class_names=tuple(data["class_names"]) if data["class_names"] is not None else None,
        shape=tuple(data["shape"]) if data["shape"] is not None else None,
        space=_read_space(folder, data) if data["space"] is not None else None,
        fingerprint=data["fingerprint"],
    )
    networks = [{key: network[key] for key in _NETWORK} for network in record["networks"]]
    return Header(info, record["wanted"], networks, record["recipe"])


def write_header(folder: Path, header: Header) -> None:
    """Write `pool.json`, by renaming."""
    info = header.info
    record: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
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
            save_tensors(tensors(), folder / SPACE)
        record["dataset"]["space_file"] = file_sha256(folder / SPACE)
    try:
        write_json(record, folder / HEADER)
    except (TypeError, ValueError) as error:
        raise PoolError(
            f"the pool's header cannot be written ({error}): a network's record, spec and options may hold numbers, "
            "strings, lists and dictionaries only."
        ) from error


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file, by renaming; its checksum is in the header."""
    from safetensors.torch import save

    # Copies, because safetensors takes no two tensors that share memory, as a layer used twice has.
    copies = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    write_bytes(save(copies), path)


def _read_space(folder: Path, data: dict[str, Any]) -> AnySpace:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / SPACE
    there = path.is_file()
    if "space_file" in data and not (there and file_sha256(path) == data["space_file"]):
        raise PoolError(
            f"'{path}' is not the file that the pool's header describes (it is missing or its checksum differs): it "
            "was damaged or half-copied. Copy the pool again, or delete the folder and make it anew."
        )
    try:
        return space_from_json(data["space"], load_file(path) if there else None)
    except (SpaceError, SafetensorError) as error:
        raise PoolError(f"the input space of the pool in '{folder}' cannot be read: {error} {MAKE_ONE}") from error
