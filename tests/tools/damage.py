"""Ways to damage a file: its bytes, or its values, which are then written without a checksum."""

from __future__ import annotations

import copy
import io
import json
import math
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def damage(path: Path, whole: bytes, draw: random.Random) -> tuple[str, bytes]:
    """ "bytes" and the file with changed bytes, or "values" and it with changed values and without a checksum."""
    if draw.random() < 0.5:
        return "bytes", changed_bytes(whole, draw)
    if path.suffix == ".json" or path.name == "args.txt":
        return "values", changed_json(whole, draw)
    if whole.startswith(b"PK"):
        return "values", changed_tensors(whole, draw)
    if path.suffix in (".toml", ".patch"):
        return "values", changed_lines(whole, draw)
    return "bytes", changed_bytes(whole, draw)


def changed_bytes(whole: bytes, draw: random.Random) -> bytes:
    """A flipped bit, most of the time; or cut off, blanked, doubled, moved or lengthened."""
    made, at = bytearray(whole), draw.randrange(len(whole))
    length = draw.choice((1, 4, 64, 1024))
    way = draw.random()
    if way < 0.5:
        made[at] ^= 1 << draw.randrange(8)
    elif way < 0.65:
        del made[at:]
    elif way < 0.75:
        made[at : at + length] = bytes(len(made[at : at + length]))
    elif way < 0.85:
        made[at : at + length] = draw.randbytes(len(made[at : at + length]))
    elif way < 0.9:
        del made[at : at + length]
    elif way < 0.95:
        made[at:at] = made[at : at + length] or b"\0"
    else:
        made += draw.randbytes(length)
    return bytes(made) if made != whole else whole[:-1]


DEEP = "a list within 20 000 others"
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, 1.0, -1e30, 1e30, 10**30, 10**400, -(10**400), 2**63, math.nan, math.inf,
    -math.inf, "", "1", "\ud800", "\0", "../x", "$x_", "x" * 100_000, [], {}, [[]], [None], {"a": 1}, [1] * 1000, DEEP,
)  # fmt: skip


def places(content: Any) -> list[tuple[Any, Any]]:
    """Every place in nested lists and dictionaries: the container and the key."""
    found: list[tuple[Any, Any]] = []
    waiting = [content]
    while waiting:
        held = waiting.pop()
        for key, value in list(held.items() if isinstance(held, dict) else enumerate(held)):
            found.append((held, key))
            if isinstance(value, dict | list):
                waiting.append(value)
    return found


def change(content: Any, draw: random.Random, instead: Callable[[Any, random.Random], Any]) -> Any:
    """Change one or a few places: left out, doubled, exchanged, renamed, or something else `instead`."""
    content = listed(content)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        found = places(content) if isinstance(content, dict | list) else []
        if not found or draw.random() < 0.01:
            content = instead(content, draw)
            continue
        held, key = draw.choice(found)
        other, other_key = draw.choice(found)
        way = draw.random()
        if way < 0.2:
            del held[key]
        elif way < 0.3:
            held[key] = copy.deepcopy(other[other_key])
        elif way < 0.35 and isinstance(held, dict):
            held[f"{key}x"] = held.pop(key)
        elif way < 0.4 and isinstance(held, list):
            held.append(copy.deepcopy(held[key]))
        else:
            held[key] = instead(held[key], draw)
    return content


def listed(content: Any) -> Any:
    """A copy whose tuples are lists."""
    if isinstance(content, dict):
        return {key: listed(value) for key, value in content.items()}
    return [listed(value) for value in content] if isinstance(content, list | tuple) else content


def another_value(value: Any, draw: random.Random) -> Any:
    """Something else for what was there; a number may become another of its kind."""
    if isinstance(value, int | float) and abs(value) < 1e100 and draw.random() < 0.3:
        return draw.choice((-value, value + 1, value * 1e6, float(value), str(value)))
    return copy.deepcopy(draw.choice(VALUES))  # which the next change may change


def changed_json(whole: bytes, draw: random.Random) -> bytes:
    """A JSON file with other values, and without its checksum."""
    content = json.loads(whole)
    content.pop("sha256", None)
    text = json.dumps(change(content, draw, another_value))
    return text.replace(json.dumps(DEEP), "[" * 20_000 + draw.choice(("", "]" * 20_000))).encode()


def another_tensor(value: Any, draw: random.Random) -> Any:
    """Another tensor instead of one: of other type, shape, or with other numbers in it."""
    if not isinstance(value, Tensor) or draw.random() < 0.15:
        made = another_value(None if isinstance(value, Tensor) else value, draw)
        return made if made is not DEEP else nest(100)
    if value.layout != torch.strided or value.numel() > 10**6:  # changed before
        return value
    kinds = (torch.uint8, torch.bool, torch.int32, torch.float16, torch.float64, torch.complex64, torch.bfloat16)
    whole = value.detach().clone().contiguous()
    numbers = (math.nan, math.inf, -math.inf, -1.0, 0.5, 1e30, 0.0)
    ways: list[Callable[[], Tensor]] = [
        lambda: whole.to(draw.choice(kinds)), lambda: whole[:0] if whole.ndim else whole, lambda: whole.flatten(),
        lambda: whole[None], lambda: whole.transpose(0, -1) if whole.ndim > 1 else whole,
        lambda: torch.zeros(1, dtype=whole.dtype).expand(draw.choice((5, 10**6, 10**12))),
        lambda: torch.zeros((10**9, 0), dtype=whole.dtype), lambda: whole.float().to_sparse() if whole.ndim else whole,
        lambda: torch.nn.Parameter(whole.float()), lambda: torch.zeros_like(whole[:1] if whole.ndim else whole),
    ]  # fmt: skip
    if whole.numel() and draw.random() < 0.4:
        into = whole.float() if draw.random() < 0.5 else whole.clone()
        number = draw.choice(numbers)
        if into.is_floating_point() or math.isfinite(number):
            into.view(-1)[draw.randrange(into.numel())] = number if into.is_floating_point() else int(min(number, 100))
        return into
    return draw.choice(ways)()


def nest(levels: int) -> Any:
    made: list[Any] = []
    for _ in range(levels):
        made = [made]
    return made


PICKLES = (
    b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".",  # a list within 20 000 others
    b"\x80\x02]q\x00h\x00a.",  # a list that contains itself
    b"\x80\x02]q\x00" + b"".join(b"]q%c(h%ch%ce" % (n + 1, n, n) for n in range(50)) + b".",  # 2**50 ways to one list
    b"\x80\x02N.", b"\x80\x02.", b"\x80\x02K\x01.", b"",
    b"\x80\x02\x8a\xff" + b"\x01" * 255 + b".",  # a number of 255 bytes
)  # fmt: skip


def changed_tensors(whole: bytes, draw: random.Random) -> bytes:
    """A torch file with other content, and without its checksum."""
    made = io.BytesIO()
    if draw.random() < 0.05:
        torch.save([0], made)
        with zipfile.ZipFile(made) as old:
            parts = {entry.filename: old.read(entry) for entry in old.infolist()}
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as new:
            for name, content in parts.items():
                new.writestr(name, draw.choice(PICKLES) if name.endswith("data.pkl") else content)
        return made.getvalue()
    content = change(torch.load(io.BytesIO(whole), weights_only=True), draw, another_tensor)
    torch.save(content, made)
    return made.getvalue()


def changed_lines(whole: bytes, draw: random.Random) -> bytes:
    """Lines of a text left out, doubled or exchanged, or numbers in them made large."""
    lines = whole.splitlines(keepends=True)
    at = draw.randrange(len(lines))
    way = draw.random()
    if way < 0.3:
        del lines[at]
    elif way < 0.5:
        lines[at:at] = [lines[draw.randrange(len(lines))]]
    elif way < 0.8:
        number = draw.choice((b"0", b"-1", b"9" * 30, b"9" * 5000, b"1e30", b"[" * 5000, b'"', b"nan", b"'x'"))
        lines[at] = lines[at].replace(draw.choice((b"1", b"0", b"=", b'"', b"2", b",")), number)
    else:
        lines[at] = draw.choice((b"\xff\xfe\n", b"[[\n", b'"""\n', b"\0\n", b"[a]\n", b"+++ b/x\n", b"@@ -1,0 +2 @@\n"))
    return b"".join(lines)
