"""Checksums inside the files that we write, so that a flipped bit is noticed when they are read.

A torch file is a zip archive whose own checksums torch does not verify. Its SHA-256 is put into the archive's comment,
behind everything else, where torch and every other reader of zip files ignore it. A JSON file has its SHA-256, taken of
its values and not of their layout, as the entry "sha256". Files without a checksum are read as they are.
"""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

from ddplug.utils.digest import file_sha256, sha256

KEY = "sha256"
"""The entry of a JSON file that holds its checksum."""

_MARK = b"ddplug sha256 "
_COMMENT = len(_MARK) + 64


class BrokenError(Exception):
    """The content of a file is not what was written."""


def seal_archive(archive: io.BytesIO) -> None:
    """Write the checksum of a zip archive without a comment into its comment."""
    archive.seek(-2, io.SEEK_END)
    archive.write(struct.pack("<H", _COMMENT))
    with archive.getbuffer() as body:
        checksum = sha256([body])
    archive.write(_MARK + checksum.encode())


def check_archive(path: Path) -> None:
    """Raise `BrokenError` if a torch file has a checksum that is not that of its content."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _COMMENT))
        last = file.read()
    if last.startswith(_MARK) and last[len(_MARK) :] != file_sha256(path, size - _COMMENT).encode():
        raise BrokenError("its content is not what was written: the checksum differs")


def seal_record(content: object) -> object:
    """Return `content` as JSON will give it back; a dictionary gets its checksum."""
    read_back: object = json.loads(json.dumps(content))
    if not isinstance(read_back, dict):
        return read_back
    bare = {key: value for key, value in read_back.items() if key != KEY}
    return {**bare, KEY: _of_record(bare)}


def unseal_record(content: object) -> object:
    """Return the content of a JSON file without its checksum; `BrokenError` if that is not the content's."""
    if not isinstance(content, dict) or KEY not in content:
        return content
    bare = {key: value for key, value in content.items() if key != KEY}
    if content[KEY] != _of_record(bare):
        raise BrokenError(
            f"its content is not what was written: the checksum differs; if you have edited it, delete its entry {KEY}"
        )
    return bare


def _of_record(content: dict[str, Any]) -> str:
    return sha256([json.dumps(content, sort_keys=True, separators=(",", ":")).encode()])
