"""Settings of a comparison's folder, in `settings.json`, which are the same for all of its runs."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ddplug.errors import DataError, InputError
from ddplug.lab.judge import Judge
from ddplug.lab.records import read_json
from ddplug.proxies.pool import ProxyPool
from ddplug.utils.files import write_json

SETTINGS = "settings.json"
REGULARIZERS = ("proxies", "heldout", "regularizer", "term")
"""Settings that a baseline does not depend on."""


def made_with(host: str, judge: Judge) -> dict[str, Any]:
    """Return the inputs of a run's outcome that are the same for all runs, as read back from JSON."""
    return {
        "host": host, "data": {"name": judge.data.name, "fingerprint": judge.data.fingerprint()},
        "proxies": _digests(judge.pool), "heldout": _digests(judge.heldout), "device": judge.device.type,
        "settings": judge.settings.to_json(), "ddplug": importlib.metadata.version("ddplug"),
        "torch": torch.__version__,
    }  # fmt: skip


def _digests(pool: ProxyPool | None) -> list[str] | None:
    return None if pool is None else [proxy.digest() for proxy in pool]


def check_folder(out: Path) -> None:
    """Raise `DataError` if `out` is not empty and is not the folder of a comparison."""
    foreign = out.exists() and (not out.is_dir() or any(not held.name.startswith(".") for held in out.iterdir()))
    if foreign and not (out / SETTINGS).is_file():  # last, as another process may be making it
        raise DataError(f"'{out}' exists and is no folder of a comparison; choose another --out.")


def claim(out: Path, wanted: dict[str, Any]) -> None:
    """Write the settings `wanted` into `out`; raise `InputError` if it has others."""
    path = out / SETTINGS
    if not path.is_file():
        write_json(wanted, path)
    if found := differing(out, wanted):
        raise InputError(
            f"'{out}' holds a comparison with other settings: {'; '.join(found)}. Choose another --out, or the "
            "settings it has; seeds, weights and views can be added to it."
        )


def differing(folder: Path, wanted: dict[str, Any], ignored: Sequence[str] = ()) -> list[str]:
    """Return a phrase for each setting in which the comparison in `folder` differs from `wanted`.

    Raises `DataError` where there is no comparison.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise DataError(f"'{folder}' is no folder of a comparison: it has no {SETTINGS}.")
    there = read_json(path)
    found, asked = _flat(there, ignored), _flat(wanted, ignored)
    return [
        f"{key} ({found.get(key)} there, {asked.get(key)} asked for)"
        for key in dict.fromkeys([*found, *asked])
        if found.get(key) != asked.get(key)
    ]


def _flat(record: dict[str, Any], ignored: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one dictionary."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if key in ignored:
            continue
        if isinstance(value, dict):
            flat |= _flat(value, ignored, "" if key in ("settings", "regularizer") else f"{key} ")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
