"""One process at a time in a folder, or at a file: a lock that falls with the process, however it ends."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from ddplug.errors import DDPlugWarning, InputError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows has other locks; there two processes are the user's to keep apart
    fcntl = None


@contextmanager
def alone(lock: Path, what: Path) -> Iterator[None]:
    """Within, no other process is at work in `what`, as far as it asks for the same `lock`, a file of its own.

    The file is made, and is gone at the end; one that a killed process has left holds nobody up. Raises `InputError`
    if another process holds the lock.
    """
    if fcntl is None:
        yield
        return
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = _take(lock, what)
    except OSError as error:
        raise InputError(f"nothing can be kept in '{what}' ({error.strerror}); choose another place.") from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is still ours, so that nobody's new one is taken away
        os.close(held)


def _take(lock: Path, what: Path) -> int:
    """The lock's open file, locked."""
    assert fcntl is not None
    while True:
        held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(held)
            raise InputError(
                f"another process is at work in '{what}'; wait for its end, or stop it. The same command then goes on "
                "from there."
            ) from error
        except OSError as error:
            warnings.warn(
                f"'{lock}' cannot be locked ({error.strerror}); see to it yourself that no other process works in "
                f"'{what}' at the same time.",
                DDPlugWarning,
                stacklevel=5,
            )
            return held
        if _is(lock, held):
            return held
        os.close(held)  # its owner took it away between our opening and our locking it


def _is(path: Path, held: int) -> bool:
    """Whether `path` still names the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(held))
    except FileNotFoundError:
        return False
