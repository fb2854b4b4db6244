"""Files that are replaced as a whole, locks on folders and files, and what a path that was given means."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ddplug.errors import DDPlugWarning, FileError, InputError
from ddplug.utils.sealing import seal_record

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (
    *_NO_SPACE, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG,
)  # fmt: skip
"""Errors of a place where a file cannot be written."""

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
def replacing(path: str | Path, *, size: int | None = None) -> Iterator[Path]:
    """A temporary neighbour of `path` to write to; it takes its place at the end, or is gone if writing failed.

    It has the ending of `path`, for writers that go by that, and missing folders are made. The permissions are those
    of the file that was there, or else those that any new file gets here, whatever the writer made of them.

    Args:
        path: the file.
        size: how many bytes will be written, if that is known, for the error.

    Raises:
        FileError: the disk is full, or nothing can be written there; what was at `path` is unchanged.
    """
    path = user_path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = mode_of(path) if path.is_file() else _new_mode(temporary)
        yield temporary
        if mode_of(temporary) != mode:  # safetensors, for one, makes files that nobody else can read
            temporary.chmod(mode)
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, FileError) or error.errno not in _NOT_WRITABLE or not _concerns(error, path, temporary):
            raise
        raise FileError(not_written(path, error, size)) from error
    finally:
        with suppress(OSError):  # a name that is too long, or a folder that is a file, is no file to delete
            temporary.unlink(missing_ok=True)


def reserved(path: Path) -> Path:
    """Make an empty file at `path`, or, where there is a file, at the first free name of "-2", "-3"; return its path.

    Raises `FileError` if nothing can be written there.
    """
    free = path
    for number in itertools.count(2):
        try:
            free.parent.mkdir(parents=True, exist_ok=True)
            free.open("xb").close()
        except FileExistsError:
            free = path.with_stem(f"{path.stem}-{number}")
        except OSError as error:
            raise FileError(not_written(free, error)) from error
        else:
            break
    return free


def not_written(path: Path, error: OSError, size: int | None = None) -> str:
    """Return a message about `error`, which kept `path` from being written, with the space needed and left."""
    said = f"cannot write '{path}' ({error.strerror}); nothing was changed."
    if error.errno not in _NO_SPACE:
        return f"{said} Choose another place, or see that it can be written to."
    needed = f"It needs {size:,} bytes, and " if size is not None else ""
    with suppress(OSError):
        needed += f"{shutil.disk_usage(path.parent).free:,} bytes are free there; a limit or quota may allow less."
    return f"{said} {needed} Make room and run the same again, or choose another place.".replace("  ", " ")


def _concerns(error: OSError, path: Path, temporary: Path) -> bool:
    """Return True if an error is about the file to be written, not one that its writer reads."""
    named = error.filename2 or error.filename
    return named is None or Path(os.fsdecode(named)) in (path, temporary, *path.parents)


def write_bytes(content: bytes | memoryview, path: str | Path) -> None:
    """Write a file, whole or not at all; `FileError` if it cannot be written."""
    with replacing(path, size=len(content)) as temporary:
        temporary.write_bytes(content)


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


def write_json(content: object, path: str | Path, *, sealed: bool = True) -> None:
    """Write `content`, whole or not at all, with its checksum unless another program is to read it.

    Raises `FileError` if it cannot be written.
    """
    text = json.dumps(seal_record(content) if sealed else content, indent=1) + "\n"
    write_bytes(text.encode(), path)


class HeldError(InputError):
    """Another process holds a lock."""


@contextmanager
def exclusive_lock(lock: Path, what: Path) -> Iterator[None]:
    """Hold the file `lock`, so that no other process works in `what`, as far as it asks for the same lock.

    The lock file is made with its folders and deleted at the end; one that a killed process left behind locks nobody
    out. On a file system without locks a `DDPlugWarning` says so and nothing is held.

    Raises:
        HeldError: another process holds the lock.
        InputError: nothing can be written where it belongs.
    """
    held = FileLock(lock, blocking=False)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except Timeout as error:
        raise HeldError(
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
