"""The command `ddplug doctor`: what a bug report should say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

_STATES = {
    "clean": "the patch fits", "patched": "patched", "interrupted": "patched in part",
    "other": "the patch does not fit", "not found": "no checkout found",
    "attach only": "no patch, for attach only", "broken": "broken",
}  # fmt: skip


def doctor(
    hosts: Annotated[
        Path | None, typer.Option(help="Folder of the hosts' checkouts; else DDPLUG_HOSTS, else here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Say what is here: versions, devices and what is fast on them, the cache, hosts and whether patches fit."""
    from ddplug.hosting.doctor import examine
    from ddplug.utils.files import user_path

    found = examine(user_path(hosts).resolve() if hosts is not None else None)
    print(json.dumps(found, indent=1) if as_json else "\n".join(_lines(found)))


def _lines(found: dict[str, Any]) -> Iterator[str]:
    """The report as plain text, which survives being pasted anywhere."""
    held = {name: said for name, said in found["versions"].items() if said is not None}
    yield "versions     " + ", ".join(f"{name} {said}" for name, said in held.items())
    yield "not there    " + (", ".join(name for name in found["versions"] if name not in held) or "-")
    system = found["system"]
    yield f"system       {system['platform']}, {system['processor']}, {size(system['memory'])} of memory"
    yield (
        f"threads      {system['threads']} of torch's on {system['processors']} processors, instructions up to "
        f"{system['instructions']}"
    )
    for device in found["devices"]:
        memory = f", {size(device['memory'])}" if device["memory"] is not None else ""
        yield (
            f"{device['device']:12} {device['name']}{memory}: fp32 {_speed(device['fp32_speed'])}, bf16 "
            f'{_speed(device["bf16_speed"])}; precision="auto" is {device["precision_auto"]}'
        )
    cache = found["cache"]
    named = f" (by {cache['named_by']})" if cache["named_by"] else ""
    yield f"cache        {cache['folder']}{named}: {size(cache['bytes'])}, {size(cache['free'])} free"
    for pool in cache["pools"]:
        how_many = f"{pool['networks']} of {pool['wanted']} networks, " if pool["wanted"] is not None else ""
        yield f"  pool       {pool['name']}: {how_many}{size(pool['bytes'])}"
    for host in found["hosts"]:
        where = f" in {host['repo']}" if host["repo"] else ""
        yield f"host {host['name']:7} {_STATES[host['state']]}{where}"
    for problem in found["problems"]:
        yield f"PROBLEM      {problem}"
    if not found["problems"]:
        yield "no problem found"


def _speed(speed: float | None) -> str:
    return f"{speed:,.0f} GFLOP/s" if speed is not None else "not possible"


def size(count: int | None) -> str:
    """A number of bytes, for people."""
    if count is None:
        return "unknown"
    number, unit = float(count), "bytes"
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if number < 1024 or unit == "TiB":
            break
        number /= 1024
    return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
