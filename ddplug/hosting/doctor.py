"""Examine versions, devices and their speed, the cache, and hosts with the state of their patches.

Nothing is changed, downloaded or executed but a few matrix products; whatever cannot be found out is said, not raised.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch

from ddplug.attaching import registry
from ddplug.errors import DDPlugError, HostError
from ddplug.hosting.checkout import HostSpec, find_repo
from ddplug.hosting.host import Host
from ddplug.networks.precision import fast_bf16
from ddplug.proxies.pool_header import HEADER, read_header
from ddplug.proxies.pretrain import cache_folder

_FOR_TESTS = re.compile("extra == .test")

SIDE = 1024
"""Rows and columns of the matrices that are multiplied to see what is fast."""


def examine(hosts: Path | None = None) -> dict[str, Any]:
    """Return the content of a bug report, as JSON's own types.

    Args:
        hosts: the folder of the upstream checkouts; None for the one named by DDPLUG_HOSTS, and the current one.

    Returns:
        `versions`, package to version or None; `system`; `devices`, a list; `cache`; `hosts`, a list; `problems`,
        sentences. Sizes are in bytes, speeds in 1e9 operations per second.
    """
    found: dict[str, Any] = {
        "versions": versions(), "system": system(), "devices": devices(), "cache": cache(cache_folder()),
        "hosts": [host(name, hosts) for name in registry.names()],
    }  # fmt: skip
    problems = [f"cache: {pool['name']}: {pool['problem']}" for pool in found["cache"]["pools"] if pool["problem"]]
    problems += [f"host {each['name']}: {each['problem']}" for each in found["hosts"] if each["problem"]]
    return {**found, "problems": problems}


def versions() -> dict[str, str | None]:
    """ddplug's version and those of the packages that it uses, needed or optional; None for one that is not there."""
    from ddplug import __version__

    try:
        used = [requirement for requirement in requires("ddplug") or [] if not _FOR_TESTS.search(requirement)]
        named = [re.split(r"[^\w.-]", requirement)[0] for requirement in used]
    except PackageNotFoundError:  # a checkout on the path, installed nowhere
        named = ["torch", "torchvision"]
    packages = {name: _version(name) for name in dict.fromkeys(named) if name != "ddplug"}
    return {"ddplug": __version__, "python": platform.python_version(), **packages}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def system() -> dict[str, Any]:
    """The machine: system, processor, processors that this process may use, torch's threads, memory in bytes."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    known = getattr(os, "sysconf_names", {})
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in known else None
    return {
        "platform": platform.platform(), "processor": _processor(), "processors": processors, "memory": memory,
        "threads": torch.get_num_threads(), "instructions": torch.backends.cpu.get_cpu_capability(),
        "executable": _short(Path(sys.executable)),
    }  # fmt: skip


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()


def devices() -> list[dict[str, Any]]:
    """The CPU and every CUDA device: memory, bf16 support and speed of multiplication."""
    found = [_device(torch.device("cpu"), "CPU", None)]
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found.append(_device(torch.device("cuda", index), about.name, about.total_memory))
    return found


def _device(device: torch.device, name: str, memory: int | None) -> dict[str, Any]:
    exact, half = _speed(device, torch.float32), _speed(device, torch.bfloat16)
    fast = fast_bf16(device)
    return {
        "device": str(device), "name": name, "memory": memory, "bf16": fast,
        "precision_auto": "bf16 in the backward pass" if fast else "fp32 throughout",
        "fp32_speed": exact, "bf16_speed": half,
    }  # fmt: skip


def _speed(device: torch.device, dtype: torch.dtype) -> float | None:
    """1e9 operations per second of the fastest of five matrix products; None if the device cannot."""
    wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    try:
        matrix = torch.ones(SIDE, SIDE, device=device, dtype=dtype)
        times = []
        for _ in range(5):
            wait()
            start = time.perf_counter()
            matrix @ matrix
            wait()
            times.append(time.perf_counter() - start)
    except RuntimeError:
        return None
    return round(2 * SIDE**3 / min(times) / 1e9, 1)


def cache(folder: Path) -> dict[str, Any]:
    """The cache: where, its size, what is free there, and each pool in it with what is wrong with it, if anything."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    pools = folder / "pools"
    listed = sorted(path for path in pools.iterdir() if path.is_dir()) if pools.is_dir() else []
    return {
        "folder": _short(folder), "named_by": "DDPLUG_CACHE" if os.environ.get("DDPLUG_CACHE") else None,
        "bytes": _size(folder), "free": shutil.disk_usage(existing).free, "pools": [_pool(path) for path in listed],
    }  # fmt: skip


def _pool(folder: Path) -> dict[str, Any]:
    found = {"name": folder.name, "bytes": _size(folder), "networks": None, "wanted": None, "problem": None}
    if not (folder / HEADER).is_file():
        return {**found, "problem": f"no {HEADER}; delete the folder"}
    try:
        header = read_header(folder)
    except DDPlugError as error:
        return {**found, "problem": str(error)}
    lacking = [record["file"] for record in header.networks if not (folder / record["file"]).is_file()]
    problem = f"it lacks {', '.join(lacking)}; delete the folder" if lacking else None
    return {**found, "networks": len(header.networks), "wanted": header.wanted, "problem": problem}


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def host(name: str, hosts: Path | None = None) -> dict[str, Any]:
    """The host `name`: where its checkout is, and "clean", "patched", "interrupted", "other", "not found" or "broken".

    Args:
        name: of its adapter.
        hosts: the folder with its checkout in a folder of the usual name, as `examine` takes it.
    """
    found = {"name": name, "title": None, "repo": None, "state": "broken", "problem": None}
    try:
        adapter = registry.make(name)
        if not isinstance(adapter, Host):
            return {**found, "state": "attach only"}
        spec = adapter.spec()
    except Exception as error:  # other packages' code; theirs is to be named, not to end the report
        return {**found, "problem": f"its adapter cannot be made: {type(error).__name__}: {error}"}
    found["title"] = spec.title
    try:
        repo = _repo(spec, hosts)
    except DDPlugError:
        return {**found, "state": "not found"}
    found["repo"] = _short(repo)
    try:
        held = set(spec.states(repo).values())
    except DDPlugError as error:
        return {**found, "state": "other", "problem": str(error)}
    if len(held) > 1:
        return {**found, "state": "interrupted", "problem": f"complete its patch: ddplug patch {name} {_short(repo)}"}
    return {**found, "state": held.pop()}


def _repo(spec: HostSpec, hosts: Path | None) -> Path:
    if hosts is None:
        return find_repo(spec)
    repo = hosts / spec.folder
    if not (repo / spec.script).is_file():
        raise HostError(f"there is no {spec.title} in '{repo}'. Get it with: {spec.clone}")
    return find_repo(spec, repo)


def _short(path: Path) -> str:
    """A path as people write it, without the name of whose home it is in."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path != home and path.is_relative_to(home) else str(path)
