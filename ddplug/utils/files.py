"""Files that are replaced as a whole, locks on folders and files, and what a path that was given means."""

from __future__ import annotations

import errno
import json
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ddplug.errors import DDPlugWarning, InputError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of a file system that has no locks."""


def user_path(given: str | Path) -> Path:
    """`given` as a path, a leading `~` or `~user` being that user's home: `--out=~/x` is nothing a shell expands.

    Raises `InputError` if that user has no home here.
    """
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"'{given}' begins with the home folder of a user who has none here; write the path in full, from the root."
        ) from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary neighbour of `path` to write to; it takes its place at the end, or is gone if writing failed.

    It has the ending of `path`, for writers that go by that, and missing folders are made. The permissions are those
    of the file that was there, or else those that any new file gets here, whatever the writer made of them.
    """
    path = user_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    mode = mode_of(path) if path.is_file() else _new_mode(temporary)
    try:
        yield temporary
        if mode_of(temporary) != mode:  # safetensors, for one, makes files that nobody else can read
            temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def mode_of(path: Path) -> int:
    """The permissions of what is at `path`."""
    return stat.S_IMODE(path.stat().st_mode)


def _new_mode(path: Path) -> int:
    """The permissions of a new file at `path`: tried out, as asking for the umask would change it for all threads."""
    path.unlink(missing_ok=True)
    try:
        path.touch()
        return mode_of(path)
    finally:
        path.unlink(missing_ok=True)


def write_json(content: object, path: Path) -> None:
    """Write `content`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@contextmanager
def exclusive_lock(lock: Path, what: Path) -> Iterator[None]:
    """Hold the file `lock`, so that no other process works in `what`, as far as it asks for the same lock.

    The lock file is made with its folders and deleted at the end; one that a killed process left behind locks nobody
    out. On a file system without locks a `DDPlugWarning` says so and nothing is held.

    Raises:
        InputError: another process holds the lock, or nothing can be written where it belongs.
    """
    held = FileLock(lock, blocking=False)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except Timeout as error:
        raise InputError(
            f"another process is at work in '{what}'; wait for its end, or stop it. The same command then goes on "
            "from there."
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise InputError(f"nothing can be kept in '{what}' ({error.strerror}); choose another place.") from error
        warnings.warn(
            f"'{lock}' cannot be locked ({error.strerror}); see to it yourself that no other process works in "
            f"'{what}' at the same time.",
            DDPlugWarning,
            stacklevel=4,
        )
    try:
        yield
    finally:
        with suppress(OSError):  # Windows deletes no open file; its locks are deleted by filelock
            lock.unlink(missing_ok=True)  # while it is still held, so that nobody else's new file is deleted
        held.release()
