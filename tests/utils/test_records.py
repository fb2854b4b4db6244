"""The tables of what a file may hold: what each check refuses, and that nothing else comes out of reading a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ddplug.errors import DataError, ProxyError
from ddplug.utils import records as r
from ddplug.utils.reading import load_tensors

NAN, INF, HUGE = float("nan"), float("inf"), 10**400

REFUSED: dict[str, tuple[r.Check, list[Any], list[Any]]] = {
    "number": (r.number(0, 2), [0, 2, 1.5], [-1, 2.1, NAN, INF, True, "1", None, HUGE, -HUGE, [1]]),
    "any number": (r.number(), [1e300, -5], [NAN, -INF, HUGE, 1j]),
    "not finite": (r.number(-1, 1, finite=False), [NAN, INF, 0], [2, HUGE, "nan"]),
    "whole": (r.whole(1, 9), [1, 9], [0, 10, 1.0, True, HUGE, "3", None]),
    "text": (r.text(3), ["", "abc"], ["abcd", 3, None, b"a"]),
    "pattern": (r.text(9, "[a-c]+"), ["abc"], ["", "abd", "a\n"]),
    "flag": (r.flag, [True, False], [0, 1, None, "true"]),
    "one of": (r.one_of("a", 1), ["a", 1], ["b", True, 1.0, None]),
    "optional": (r.optional(r.whole()), [None, 1], ["", False]),
    "either": (r.either(r.whole(), r.text()), [1, "a"], [1.5, None]),
    "list": (r.list_of(r.whole(), 1, 2), [[1], (1, 2)], [[], [1, 2, 3], ["a"], 5, "ab", {}]),
    "dictionary": (r.dict_of(r.whole(), r.text(1)), [{}, {"a": 1}], [{1: 1}, {"a": "b"}, {"ab": 1}, [], None]),
    "entries": (r.entries({"a": r.whole()}, {"b": r.text()}), [{"a": 1, "c": NAN}, {"a": 1, "b": ""}],
                [{}, {"b": ""}, {"a": "x"}, {"a": 1, "b": 2}, [], None, "a"]),
    "tensor": (r.tensor("float", (None, 2), finite=True), [torch.zeros(3, 2), torch.zeros(0, 2).double()],
               [torch.zeros(3), torch.zeros(2, 3), torch.ones(1, 2).long(), torch.full((1, 2), NAN), [[1.0, 2.0]],
                torch.ones(1, 2, dtype=torch.complex64), torch.ones(1, 2).bool()]),
    "integers": (r.tensor("integer"), [torch.arange(3), torch.tensor(1).byte()], [torch.ones(1), torch.ones(1).bool()]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_allowed_and_what_is_not(name: str) -> None:
    check, allowed, refused = REFUSED[name]
    for value in allowed:
        check(value)
    for value in refused:
        with pytest.raises(r.UnfitError):
            check(value)
            pytest.fail(f"{value!r} passed")


def test_an_error_says_where(tmp_path: Path) -> None:
    check = r.entries({"nets": r.list_of(r.entries({"bytes": r.whole()}))})
    (tmp_path / "a.json").write_text(json.dumps({"nets": [{"bytes": 1}, {"bytes": "many"}]}))
    with pytest.raises(ProxyError, match=r"a\.json' cannot be read as a header \(nets\[1\]\.bytes: expected a whole "
                       r"number from 0 to \d+, got 'many'\).* Copy it\.$"):  # fmt: skip
        r.read_record(tmp_path / "a.json", check, "a header", "Copy it.", error=ProxyError)


DEEP = {"list": "[" * 20_000, "closed": "[" * 900 + "]" * 900, "dictionaries": '{"a":' * 5000 + "1" + "}" * 5000}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"3", b"null", b'"a"', b"\xff\xfe", b"\x00" * 99, b'{"a": 1e999}', b"1" * 5000,
        b'{"a": ' + b"9" * 5000 + b"}", *(text.encode() for text in DEEP.values()),
        b'{"a": ' + DEEP["closed"].encode() + b"}",
    ],
    ids=lambda content: f"{content[:8]!r} {len(content)}",
)  # fmt: skip
def test_whatever_is_in_a_file_is_one_of_our_errors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json' cannot be read as a header"):
        r.read_record(tmp_path / "a.json", r.entries({"a": r.number()}), "a header", "Copy it.")


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError, match="cannot be read as a header"):
            r.read_record(path, r.anything, "a header", "Copy it.")


def deep(levels: int) -> Any:
    made: Any = []
    for _ in range(levels):
        made = [made]
    return made


def shared(levels: int) -> Any:
    """As many lists as levels, but two to the power of levels ways to the innermost."""
    made: Any = []
    for _ in range(levels):
        made = [made, made]
    return made


def test_depth_and_sharing() -> None:
    r.check_depth(shared(r.DEEPEST - 1))
    cycle: list[Any] = []
    cycle.append(cycle)
    for content in (deep(r.DEEPEST), {"a": deep(5000)}, shared(r.DEEPEST), cycle):
        with pytest.raises(r.UnfitError, match="nested more than"):
            r.check_depth(content)


@pytest.mark.filterwarnings("ignore:.*(Sparse|sparse)")
def test_a_tensor_that_is_larger_than_what_is_stored(tmp_path: Path) -> None:
    torch.save(torch.zeros(1).expand(1000), tmp_path / "few.pt")
    assert len(load_tensors(tmp_path / "few.pt", "file", "a tensor")) == 1000, "as hosts write labels"
    for name, content in {
        "many": torch.zeros(1).expand(10**12), "sparse": torch.sparse_coo_tensor([[0], [1]], [1.0], (10**6, 10**6)),
        "deep": deep(300),
    }.items():  # fmt: skip
        torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(DataError, match=rf"{name}\.pt' cannot be read as a tensor"):
            load_tensors(tmp_path / f"{name}.pt", "file", "a tensor")
