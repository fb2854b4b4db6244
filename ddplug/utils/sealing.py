"""Checksums inside the files that we write, so that a flipped bit is noticed when they are read.

A torch file is a zip archive whose own checksums torch does not verify. Its SHA-256 is put into the archive's comment,
behind everything else, where torch and every other reader of zip files ignore it. A JSON file has its SHA-256, taken of
its values and not of how they are laid out, as the entry "sha256".

Files without a checksum are older ones, or somebody else's. They are read, and `note_unsealed` says so once.
"""

from __future__ import annotations

import io
import json
import re
import struct
import sys
from pathlib import Path
from typing import Any

from ddplug.utils.digest import file_sha256, sha256

KEY = "sha256"
"""The entry of a JSON file that holds its checksum."""

_MARK = b"ddplug sha256 "
_COMMENT = len(_MARK) + 64
_END_OF_ARCHIVE, _END_SIZE, _LONGEST = b"PK\x05\x06", 22, 2**16
_SHA256 = re.compile("[0-9a-f]{64}")
_noted: set[str] = set()


class BrokenError(Exception):
    """A file whose content is not what was written; the text says how that is known."""


def seal_archive(archive: io.BytesIO) -> None:
    """Give a zip archive its checksum as its comment, of which it must have none so far; nothing of it is copied."""
    archive.seek(-2, io.SEEK_END)
    archive.write(struct.pack("<H", _COMMENT))
    with archive.getbuffer() as body:
        checksum = sha256([body])
    archive.write(_MARK + checksum.encode())


def check_archive(path: Path) -> bool:
    """Return True if a torch file has a checksum; `BrokenError` if it is another's or the file's end is missing.

    A file in torch's old format, which is no archive, has none and is not judged here.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(max(0, size - _LONGEST - _END_SIZE))
        tail = file.read()
    last = tail[-_COMMENT:]
    if last.startswith(_MARK):
        if last[len(_MARK) :] != file_sha256(path, size - _COMMENT).encode():
            raise BrokenError("its content is not what was written: the checksum differs")
        return True
    if start == b"PK\x03\x04":
        comment = _comment(tail)
        # One of ours whose name is damaged still has a checksum behind it; other programs' comments are theirs.
        if comment is None or _SHA256.fullmatch(comment[len(_MARK) :].decode("latin1")):
            raise BrokenError("its end is missing or damaged")
    return False


def _comment(tail: bytes) -> bytes | None:
    """The comment of the zip archive that ends with `tail`, empty if it has none; None if its end is not there."""
    at = len(tail)
    while (at := tail.rfind(_END_OF_ARCHIVE, 0, at)) >= 0:
        comment = tail[at + _END_SIZE :]
        if tail[at + _END_SIZE - 2 : at + _END_SIZE] == struct.pack("<H", len(comment)):
            return comment
    return None


def seal_record(content: object) -> object:
    """`content` as JSON will give it back, with its checksum, instead of one that it has, if it is a dictionary."""
    read_back: object = json.loads(json.dumps(content))
    if not isinstance(read_back, dict):
        return read_back
    bare = {key: value for key, value in read_back.items() if key != KEY}
    return {**bare, KEY: _of_record(bare)}


def unseal_record(content: object) -> tuple[object, bool]:
    """Return a JSON file's content without its checksum, and True if it had one; `BrokenError` if it is another's."""
    if not isinstance(content, dict):
        return content, False
    if KEY not in content:
        if nameless := [key for key, value in content.items() if isinstance(value, str) and _SHA256.fullmatch(value)]:
            raise BrokenError(f"its checksum is called {nameless[0][:20]!r} instead of {KEY!r}")
        return content, False
    bare = {key: value for key, value in content.items() if key != KEY}
    if content[KEY] != _of_record(bare):
        raise BrokenError(
            f"its content is not what was written: the checksum differs; if you have edited it, delete its entry {KEY}"
        )
    return bare, True


def note_unsealed(path: Path, what: str) -> None:
    """Say on standard error, once for each kind of file, that `path` was written without a checksum."""
    if what not in _noted:
        _noted.add(what)
        print(
            f"ddplug: '{path}' is {what} without a checksum, as older versions wrote it; damage to it would not be "
            "noticed. It is read all the same, and so are others of its kind.",
            file=sys.stderr,
        )


def _of_record(content: dict[str, Any]) -> str:
    return sha256([json.dumps(content, sort_keys=True, separators=(",", ":")).encode()])
