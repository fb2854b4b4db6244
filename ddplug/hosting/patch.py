"""Patches of insertions only: reading, applying to files or to text, and reversing to the byte.

A patch is a unified diff without context and without deleted lines, so it contains only our own lines:

    --- a/loop.py
    +++ b/loop.py
    @@ -9,0 +10 @@
    +import ddplug.hosting as ddplug_cmi

inserts one line after line 9. `git apply --unidiff-zero` applies it as well. Files are identified by their git blob
hashes. A patch is applied to all its files or to none, and never outside the given folder.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddplug.errors import HostError
from ddplug.utils.digest import blob_hash
from ddplug.utils.files import not_written

State = Literal["clean", "patched", "other"]

_HUNK = re.compile(rb"@@ -(\d{1,9}),0 \+(\d{1,9})(?:,(\d{1,9}))? @@\r?\n?")


@dataclass(frozen=True)
class Insertion:
    """Our lines, with their line ends, to insert after line `after` of the original file (from 1; 0 is the top)."""

    after: int
    lines: tuple[bytes, ...]


@dataclass(frozen=True)
class Patch:
    """Insertions by file, relative to the checkout; `raw` is the patch's text."""

    files: Mapping[str, tuple[Insertion, ...]]
    raw: bytes

    def apply_text(self, name: str, text: bytes) -> bytes:
        """`text` of file `name` with our lines; unchanged if the patch does not name the file.

        Raises `HostError` if the file is too short, or its line ends differ from those of our lines.
        """
        lines = _split(text)
        made: list[bytes] = []
        done = 0
        for insertion in self.files.get(name, ()):
            if insertion.after > len(lines):
                raise HostError(f"{name} has {len(lines)} lines, so nothing can go after line {insertion.after}.")
            made += lines[done : insertion.after]
            done = insertion.after
            before = lines[done - 1] if done else lines[0] if lines else b"\n"
            for line in insertion.lines:
                if _line_end(line) != _line_end(before):
                    raise HostError(
                        f"{name} has other line ends near line {insertion.after} ({_line_end(before)}) than the lines "
                        f"to be inserted ({_line_end(line)}); check the file out as upstream stores it."
                    )
            made += insertion.lines
        return b"".join(made + lines[done:])

    def reverse_text(self, name: str, text: bytes) -> bytes:
        """`text` without our lines; `HostError` unless all of them are in place."""
        lines = _split(text)
        kept: list[bytes] = []
        done = shift = 0
        for insertion in self.files.get(name, ()):
            start = insertion.after + shift
            stop = start + len(insertion.lines)
            if tuple(lines[start:stop]) != insertion.lines:
                raise HostError(
                    f"{name} does not have our lines after line {start}, so it was not patched by this patch."
                )
            kept += lines[done:start]
            done, shift = stop, shift + len(insertion.lines)
        return b"".join(kept + lines[done:])

    def by_hand(self, name: str, places: Mapping[int, str] | None = None) -> str:
        """Describe how to insert the lines of `name` by hand; `places` describes the lines before, by number."""
        parts = []
        for insertion in self.files[name]:
            where = (places or {}).get(insertion.after)
            ours = "".join(f"    {line.decode(errors='replace').rstrip()}\n" for line in insertion.lines)
            parts.append(f"  after line {insertion.after} of the original{f' ({where})' if where else ''}:\n{ours}")
        return f"{name}:\n" + "".join(parts)


def parse(raw: bytes) -> Patch:
    """Read a patch; `HostError` for context, deletions or text after the second @@."""
    files: dict[str, tuple[Insertion, ...]] = {}
    lines = _split(raw)
    name: str | None = None
    shift = index = 0
    while index < len(lines):
        line = lines[index]
        index += 1
        if line.startswith((b"diff --git ", b"index ")):
            continue
        if line.startswith(b"--- a/") and index < len(lines) and lines[index].startswith(b"+++ b/"):
            name, other = (header[6:].decode(errors="replace").rstrip("\r\n") for header in (line, lines[index]))
            if name != other or name in files:
                raise HostError(f"a patch of ours names each file once and renames none, got {name!r} and {other!r}.")
            files[name], shift = (), 0
            index += 1
            continue
        hunk = _HUNK.fullmatch(line)
        if hunk is None or name is None:
            raise HostError(
                f"line {index} of the patch, {line.decode(errors='replace').rstrip()!r}, is not ours: a patch here has "
                "insertions only, without context, and nothing after the second @@."
            )
        after, at, count = int(hunk[1]), int(hunk[2]), int(hunk[3] or 1)
        body = lines[index : index + count]
        index += count
        if len(body) != count or not all(part.startswith(b"+") and part.endswith(b"\n") for part in body):
            raise HostError(f"the insertion after line {after} of {name} is not {count} inserted lines.")
        earlier = files[name]
        if at != after + shift + 1 or (earlier and after <= earlier[-1].after):
            raise HostError(f"the insertions of {name} are out of order or miscounted at line {after}.")
        files[name] = (*earlier, Insertion(after, tuple(part[1:] for part in body)))
        shift += count
    if not files or not all(files.values()):
        raise HostError("the patch inserts nothing.")
    return Patch(files, raw)


def build(files: Mapping[str, tuple[Insertion, ...]]) -> bytes:
    """The text of a patch with these insertions, the inverse of `parse`."""
    made = b""
    for name, insertions in files.items():
        made += f"--- a/{name}\n+++ b/{name}\n".encode()
        shift = 0
        for insertion in insertions:
            count = len(insertion.lines)
            at = insertion.after + shift + 1
            made += f"@@ -{insertion.after},0 +{at}{f',{count}' if count != 1 else ''} @@\n".encode()
            made += b"".join(b"+" + line for line in insertion.lines)
            shift += count
    return made


def inside(root: Path, name: str) -> Path:
    """The file `name` in `root`; `HostError` if it is missing, or outside by `..` or a symbolic link."""
    path = root / name
    if not path.is_file() or str(path.resolve()) != f"{root.resolve()}/{name}":
        raise HostError(f"'{root}' has no regular file {name}, without symbolic links; is it the right repository?")
    return path


def state(patch: Patch, name: str, data: bytes, wanted: str) -> State:
    """Return "clean" for the original of hash `wanted`, "patched" for that with our lines, otherwise "other"."""
    if blob_hash(data) == wanted:
        return "clean"
    try:
        return "patched" if blob_hash(patch.reverse_text(name, data)) == wanted else "other"
    except HostError:
        return "other"


def states(patch: Patch, root: Path, hashes: Mapping[str, str]) -> dict[str, State]:
    """The state of each file of the patch in `root`; `hashes` are the originals'."""
    return {name: state(patch, name, inside(root, name).read_bytes(), hashes[name]) for name in patch.files}


def clear(root: Path, names: Iterable[str]) -> None:
    """Delete files that a process killed in `write_all` has left beside the files `names` of `root`."""
    for name in names:
        path = inside(root, name)
        for kind in _BESIDE:
            _beside(path, kind).unlink(missing_ok=True)


def write_all(root: Path, texts: Mapping[str, bytes]) -> None:
    """Give each file of `root` its new content: all of them or none. Owner, group and permissions stay.

    The new contents and copies of the old ones are first written beside the files, so that replacing or restoring them
    needs no space. If the process is killed in between, some files are changed, and `states` returns which. Two
    processes need a lock.

    Raises `HostError` if a file cannot be written; nothing is changed then.
    """
    paths = {inside(root, name): text for name, text in texts.items()}
    new, old = ({path: _beside(path, kind) for path in paths} for kind in _BESIDE)
    done: list[Path] = []
    at = root
    try:
        for at, text in paths.items():
            _write_beside(new[at], text, at)
            _write_beside(old[at], at.read_bytes(), at)
        for at in paths:
            os.replace(new[at], at)
            done.append(at)
    except BaseException as error:
        for path in done:
            os.replace(old[path], path)
        if isinstance(error, OSError):
            raise HostError(not_written(at, error)) from error
        raise
    finally:
        for temporary in (*new.values(), *old.values()):
            temporary.unlink(missing_ok=True)


_BESIDE = ("new", "old")


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.ddplug-{kind}")


def _write_beside(temporary: Path, text: bytes, path: Path) -> None:
    """Write `text` to `temporary` with the owner, group and permissions of `path`."""
    temporary.unlink(missing_ok=True)  # a link, or left by a killed process
    with temporary.open("xb") as file:
        file.write(text)
    found, made = path.stat(), temporary.stat()
    if (found.st_uid, found.st_gid) != (made.st_uid, made.st_gid) and hasattr(os, "chown"):
        with suppress(PermissionError):  # only root may change the owner
            os.chown(temporary, found.st_uid, found.st_gid)
    temporary.chmod(stat.S_IMODE(found.st_mode))  # last, as a change of owner clears some bits


def _split(text: bytes) -> list[bytes]:
    """Lines with their ends; only \\n ends a line, as for git."""
    return re.findall(rb"[^\n]*\n|[^\n]+", text)


def _line_end(line: bytes) -> str:
    return "CRLF" if line.endswith(b"\r\n") else "LF" if line.endswith(b"\n") else "none"
