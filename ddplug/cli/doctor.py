"""The command `ddplug doctor`: the content of a bug report."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated

import typer

from ddplug.utils.output import say

STATES = {"clean": "the patch fits", "patched": "patched"}


def doctor(
    hosts: Annotated[
        Path | None, typer.Option(help="Folder of the hosts' checkouts; by default DDPLUG_HOSTS, then this folder.")
    ] = None,
) -> None:
    """Print versions, devices, the cached pools, and which hosts' patches fit their checkouts."""
    for line in (*_versions(), *_devices(), *_pools(), *_hosts(hosts)):
        say(line.replace(str(Path.home()), "~"))


def _versions() -> Iterator[str]:
    """Versions of ddplug and of the packages that it needs or can use."""
    named = [re.split(r"[^\w-]", line)[0] for line in requires("ddplug") or [] if "test" not in line.partition(";")[2]]
    found, missing = [f"python {platform.python_version()}"], []
    for name in dict.fromkeys(("ddplug", *named)):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    yield f"versions  {', '.join(found)}"
    yield f"missing   {', '.join(missing) or '-'}"


def _devices() -> Iterator[str]:
    """The machine, and each device with its memory and the precision that precision="auto" takes."""
    import torch

    from ddplug.networks.precision import fast_bf16

    yield (
        f"system    {platform.platform()}, {os.cpu_count()} processors, {torch.get_num_threads()} threads, "
        f"instructions up to {torch.backends.cpu.get_cpu_capability()}"
    )
    devices = {torch.device("cpu"): platform.processor() or platform.machine()}
    for index in range(torch.cuda.device_count()):
        held = torch.cuda.get_device_properties(index)
        devices[torch.device("cuda", index)] = f"{held.name}, {held.total_memory / 2**30:.0f} GiB"
    for device, name in devices.items():
        yield f'{device!s:9} {name}: precision="auto" is {"bf16" if fast_bf16(device) else "fp32"}'


def _pools() -> Iterator[str]:
    """The pools in the cache, with an error instead of the contents of a damaged one."""
    from ddplug.errors import DDPlugError
    from ddplug.proxies.pool_files import read_header
    from ddplug.utils.files import cache_folder

    yield f"cache     {cache_folder()}"
    for folder in sorted(cache_folder().glob("pools/*/")):
        try:
            header = read_header(folder)
            missing = [record["file"] for record in header.networks if not (folder / record["file"]).is_file()]
            contents = f"{len(header.networks)} of {header.wanted} networks"
            yield f"pool      {folder.name}: {f'missing {missing}; delete the folder' if missing else contents}"
        except DDPlugError as error:
            yield f"pool      {folder.name}: {error}"


def _hosts(folder: Path | None) -> Iterator[str]:
    """The state of each host's checkout, or the reason for which it has none."""
    from ddplug.attaching.registry import names
    from ddplug.errors import HostError
    from ddplug.hosting.checkout import find_repo
    from ddplug.hosting.host import upstream
    from ddplug.utils.files import user_path

    for name in names():
        try:
            spec = upstream(name).spec()
            repo = find_repo(spec, user_path(folder) / spec.folder if folder is not None else None)
            held = set(spec.states(repo).values())
            state = "patched in part" if len(held) > 1 else STATES[held.pop()] if spec.run is None else "needs no patch"
            yield f"host      {name}: {state} in {repo}"
        except HostError as error:
            yield f"host      {name}: {re.split('[;.] ', str(error))[0]}"
        except Exception as error:  # adapters of other packages may raise anything
            yield f"host      {name}: {type(error).__name__}: {re.split('[;.] ', str(error))[0]}"
