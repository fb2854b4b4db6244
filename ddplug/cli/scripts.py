"""The commands about scripts without a patch: `ddplug run --script` and `ddplug find`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from ddplug.core.options import meant
from ddplug.errors import InputError
from ddplug.utils.files import user_path


def run_script(
    script: Path,
    arguments: Sequence[str],
    weight: str,
    proxies: str,
    options: dict[str, Any],
    *,
    at: Sequence[str],
    path: Sequence[Path],
    inner: str,
    record: Path | None,
    input_space: str,
    **how: Any,
) -> None:
    """What `ddplug run --script` does, with its options as they were typed."""
    from ddplug.core.weighting import check_weight
    from ddplug.hosting.any_script import Unpatched, run_unpatched
    from ddplug.hosting.options import Inner

    try:
        share = check_weight(float(weight))
    except ValueError as error:
        raise InputError(
            f"with --script the weight must be a number >= 0, got {weight!r}; the paper's go with hosts that are known."
        ) from error
    if inner not in get_args(Inner):
        raise InputError(f"unknown inner {inner!r}, expected {', '.join(get_args(Inner))}.")
    given = Unpatched(
        user_path(script).resolve(), at=tuple(at), inner=inner,  # type: ignore[arg-type]
        path=tuple(user_path(folder).resolve() for folder in path),
        record=user_path(record).absolute() if record is not None else None, **how,
    )  # fmt: skip
    said = {name: meant(name, value) for name, value in options.items()}
    where = str(user_path(proxies).resolve()) if proxies else ""
    run_unpatched(given, arguments, share, where, input_space=input_space or None, **said)
