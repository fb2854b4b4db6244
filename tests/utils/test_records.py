"""Types as formats of files: what each refuses, and that nothing else comes out of reading a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
import torch
from torch import Tensor

from ddplug.errors import DataError, ProxyError
from ddplug.utils.reading import load_tensors
from ddplug.utils.records import Count, Finite, Fraction, UnfitError, between, check, like, read_record, sized

NAN, INF = float("nan"), float("inf")


class Typed(TypedDict):
    a: int
    b: NotRequired[str]


@dataclass
class Data:
    a: Count
    b: str = ""


class Nets(TypedDict):
    nets: list[Data]


REFUSED: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "number": (Annotated[float, between(0, 2)], [0, 2, 1.5], [-1, 2.1, NAN, INF, True, "1", None, [1]]),
    "any number": (float, [1e300, -5, NAN, INF], [1j, "1", True]),
    "finite": (Finite, [1e300, -5], [NAN, -INF]),
    "fraction": (Fraction, [0, 1, 0.5], [1.1, NAN]),
    "whole": (Count, [0, 9], [-1, 1.0, True, "3", None]),
    "pattern": (Annotated[str, like("[a-c]+")], ["abc"], ["", "abd", "a\n", 3, b"a"]),
    "flag": (bool, [True, False], [0, 1, None, "true"]),
    "one of": (Literal["a", "b"], ["a", "b"], ["c", None]),
    "optional": (Count | None, [None, 1], ["", False, -1]),
    "either": (int | str, [1, "a"], [1.5, None]),
    "list": (Annotated[list[Count], sized(1, 2)], [[1], (1, 2)], [[], [1, 2, 3], ["a"], 5, "ab", {}]),
    "dictionary": (dict[str, int], [{}, {"a": 1}], [{"a": "b"}, [], None]),
    "typed dictionary": (Typed, [{"a": 1, "c": NAN}, {"a": 1, "b": ""}], [{}, {"a": "x"}, {"a": 1, "b": 2}, [], None]),
    "dataclass": (Data, [{"a": 1, "c": NAN}, {"a": 1, "b": ""}], [{}, {"a": -1}, {"a": 1, "b": 2}, []]),
    "tensor": (Tensor, [torch.zeros(3)], [[1.0], None]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_allowed_and_what_is_not(name: str) -> None:
    kind, allowed, refused = REFUSED[name]
    for value in allowed:
        check(value, kind)
    for value in refused:
        with pytest.raises(UnfitError):
            check(value, kind)
            pytest.fail(f"{value!r} passed")


def test_an_error_says_where(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"nets": [{"a": 1}, {"a": "many"}]}))
    with pytest.raises(ProxyError, match=r"a\.json' cannot be read as a header \(UnfitError: nets\[1\]\.a: expected a "
                       r"whole number, got 'many'\).* Copy it\.$"):  # fmt: skip
        read_record(tmp_path / "a.json", Nets, "a header", "Copy it.", error=ProxyError)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b"null", b'"a"', b"\xff\xfe", b"\x00" * 99, b'{"a": 1e999}', b"[" * 20_000],
    ids=lambda content: f"{content[:8]!r} {len(content)}",
)
def test_whatever_is_in_a_file_is_one_of_our_errors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json' cannot be read as a header"):
        read_record(tmp_path / "a.json", Typed, "a header", "Copy it.")


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError, match="cannot be read as a header"):
            read_record(path, Any, "a header", "Copy it.")


def test_a_tensor_of_repeated_numbers_is_read(tmp_path: Path) -> None:
    torch.save(torch.zeros(1).expand(1000), tmp_path / "few.pt")
    assert len(load_tensors(tmp_path / "few.pt", "file", "a tensor")) == 1000, "as hosts write labels"
