"""A pool's networks on disk: a safetensors file of each, read and written with the pool as a whole.

Nothing in a pool is ever executed: an architecture is built by its name, and weights are numbers.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ddplug.errors import DDPlugError, PoolError
from ddplug.proxies.data_check import check_data
from ddplug.proxies.model_card import write_card
from ddplug.proxies.pool_header import MAKE_ONE, Header, read_header, save_tensors, write_header
from ddplug.proxies.proxy import PoolInfo, Proxy
from ddplug.utils.digest import file_sha256
from ddplug.utils.files import mode_of, user_path


def write_network(folder: Path, index: int, proxy: Proxy) -> dict[str, Any]:
    """Write one network's weights, by renaming, and return its record for the header."""
    spec = getattr(proxy.network, "spec", None)
    if not isinstance(spec, Mapping) or "architecture" not in spec:
        raise PoolError(
            f"proxy '{proxy.name}' ({type(proxy.network).__name__}) cannot be saved: nothing says how to build it "
            "again. Build it with ddplug.networks.build(...), or give it an attribute "
            "spec = {'architecture': NAME, 'options': {...}} and load with builders={NAME: function}."
        )
    name = f"proxy_{index:03d}.safetensors"
    save_tensors(proxy.weights(), folder / name)
    return {
        "file": name,
        "bytes": (folder / name).stat().st_size,
        "sha256": file_sha256(folder / name),
        "name": proxy.name,
        "head": proxy.head,
        "architecture": spec["architecture"],
        "options": dict(spec.get("options", {})),
        "record": proxy.record,
    }


def read_network(
    folder: Path, record: dict[str, Any], builders: Mapping[str, Callable[..., nn.Module]] | None = None
) -> Proxy:
    """Build the network of a header's `record` and load its weights; raises `PoolError` for a damaged file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from ddplug.networks.fitting import build_for
    from ddplug.networks.zoo import seeded

    path = _checked(folder, record)
    architecture, options = record["architecture"], record["options"]
    try:
        weights = load_file(path)
        with seeded(0):  # initial weights are drawn, then overwritten; nobody else's generator may notice
            builder = (builders or {}).get(architecture)
            network = builder(**options) if builder else build_for(weights, architecture, **options)
        network.load_state_dict(weights)
    except (DDPlugError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise PoolError(
            f"cannot build '{record['name']}' of the pool in '{folder}' ({architecture} with {options}): "
            f"{str(error).splitlines()[0]}. If it is an architecture of your own, pass builders={{name: function}}."
        ) from error
    return Proxy(network, record["head"], record["name"], record["record"])


def stream_networks(
    folder: Path, records: Sequence[dict[str, Any]], builders: Mapping[str, Callable[..., nn.Module]], budget: int
) -> list[Proxy]:
    """Proxies whose weights stay in their files until they are needed, `budget` bytes of them at a time.

    Every network is built and read once here, and refused as `read_network` would; later only weights are read.
    """
    from ddplug.proxies.streaming import Stream, StreamedProxy

    largest = max(record["bytes"] for record in records)
    files = [folder.resolve() / record["file"] for record in records]  # wherever the host goes from here
    stream = Stream(files, resident=budget // largest)
    modules: dict[str, nn.Module] = {}
    proxies: list[Proxy] = []
    for number, record in enumerate(records):
        kind = json.dumps([record["architecture"], record["options"]], sort_keys=True)
        # Every network is loaded once, to see that it can be; the module of its kind computes with any weights.
        network = modules.setdefault(kind, read_network(folder, record, builders).network)
        proxies.append(StreamedProxy(stream, number, network, record["head"], record["name"], record["record"]))
    return proxies


def _checked(folder: Path, record: dict[str, Any]) -> Path:
    """The file of a header's `record`; raises `PoolError` unless it is there and as it was written."""
    path: Path = folder / record["file"]
    if "\0" in record["file"] or path.parent != folder or not path.is_file():
        raise PoolError(f"the pool in '{folder}' lacks '{record['file']}', which its header names. {MAKE_ONE}")
    if path.stat().st_size != record["bytes"] or file_sha256(path) != record["sha256"]:
        raise PoolError(
            f"'{path}' is not the file that the pool's header describes (size or checksum differ): it was damaged or "
            "half-copied. Copy the pool again, or delete the folder and make it anew."
        )
    return path


def read_pool(
    folder: Path,
    *,
    dataset: str | None,
    builders: Mapping[str, Callable[..., nn.Module]],
    partial: bool,
    budget: int | None = None,
) -> tuple[list[Proxy], PoolInfo]:
    """Read the proxies and information of `ProxyPool.load`; without a budget, everything is kept."""
    folder = user_path(folder)
    header = read_header(folder)
    if dataset is not None:
        check_data(header.info, dataset, pool=f"the pool in '{folder}'", unknown=False)
    if not header.networks or not (header.complete or partial):
        raise PoolError(
            f"the pool in '{folder}' is unfinished: {len(header.networks)} of {header.wanted} networks. Run the same "
            "`ddplug pretrain` again to continue it"
            + (", or load what there is with partial=True." if header.networks else ".")
        )
    if budget is not None and sum(record["bytes"] for record in header.networks) > budget:
        return stream_networks(folder, header.networks, builders, budget), header.info
    return [read_network(folder, record, builders) for record in header.networks], header.info


def write_pool(proxies: Sequence[Proxy], info: PoolInfo, folder: Path) -> None:
    """Write a pool for `ProxyPool.save`: everything into a temporary neighbour, then one rename.

    The folder gets the permissions of the empty one that it replaces, or else those of any new folder here.
    """
    folder = user_path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PoolError(f"'{folder}' already exists and is not an empty folder; choose another, or delete it first.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    temporary.mkdir()  # not by tempfile, whose folders nobody else may enter
    try:
        records = [write_network(temporary, i, proxy) for i, proxy in enumerate(proxies)]
        header = Header(info, len(proxies), records)
        write_card(temporary, header)
        write_header(temporary, header)
        if folder.is_dir():
            temporary.chmod(mode_of(folder))
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
