"""Files that are replaced as a whole, locks on folders and files, and what a path that was given means."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ddplug.errors import FileError, InputError, caution
from ddplug.utils.digest import sha256

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


def cache_folder() -> Path:
    """Return the folder of default pools and downloads: that of the variable DDPLUG_CACHE, or the user's own."""
    from platformdirs import user_cache_path

    return user_path(os.environ.get("DDPLUG_CACHE") or user_cache_path("ddplug"))


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary neighbour of `path` to write to; it takes its place at the end, or is gone if writing failed.

    It has the ending of `path`, for writers that go by that, and the permissions of the file that was there. Missing
    folders are made. Raises `FileError` if it cannot be written; what was at `path` is unchanged.
    """
    path = user_path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.is_file():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(not_written(path, error)) from error
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


def not_written(path: Path, error: OSError) -> str:
    """Return a message about `error`, which kept `path` from being written."""
    why = error.strerror or error
    return f"cannot write '{path}' ({why}); nothing was changed. Make room or choose another place, and run it again."


def write_bytes(content: bytes | memoryview, path: str | Path) -> None:
    """Write a file, whole or not at all; `FileError` if it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(content: dict[str, Any], path: str | Path) -> None:
    """Write `content` with its checksum, whole or not at all; `FileError` if it cannot be written."""
    content = json.loads(json.dumps(content))  # as it will be read
    content["sha256"] = record_sha256(content)
    write_bytes(f"{json.dumps(content, indent=1)}\n".encode(), path)


def record_sha256(content: Mapping[str, Any]) -> str:
    """The checksum of the content of a JSON file, whatever its layout and whether it is in there already."""
    bare = {key: value for key, value in content.items() if key != "sha256"}
    return sha256([json.dumps(bare, sort_keys=True, separators=(",", ":")).encode()])


class HeldError(InputError):
    """Another process holds a lock."""


@contextmanager
def exclusive_lock(lock: Path, what: Path) -> Iterator[None]:
    """Hold the file `lock`, so that no other process works in `what`, if it takes the same lock.

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
        caution(
            f"'{lock}' cannot be locked ({error.strerror}); see to it yourself that no other process works in "
            f"'{what}' at the same time.",
            stacklevel=4,
        )
    try:
        yield
    finally:
        with suppress(OSError):  # Windows deletes no open file; its locks are deleted by filelock
            lock.unlink(missing_ok=True)  # while it is still held, so that nobody else's new file is deleted
        held.release()
