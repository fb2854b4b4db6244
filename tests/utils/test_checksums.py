"""Checksums inside files: one flipped bit anywhere is noticed."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ddplug.errors import DataError
from ddplug.lab.folder import read_json
from ddplug.utils.files import write_json
from ddplug.utils.reading import load_tensors, write_tensors

CONTENT = {"images": torch.arange(12.0).reshape(3, 4), "labels": torch.tensor([0, 1, 2]), "more": ["x", None, 0.1]}
RECORD = {"format": "mine", "values": [0.1, 2, -1e300, True, None], "nested": {"é": {"a": "b"}}}


def same(found: Any) -> bool:
    tensors = all(torch.equal(found[name], CONTENT[name]) for name in ("images", "labels"))  # type: ignore[arg-type]
    return tensors and found["more"] == CONTENT["more"]


def load(path: Path) -> Any:
    return load_tensors(path, "file of mine", "some tensors", "Copy it again.")


def test_a_torch_file_is_read_by_torch_and_by_others(tmp_path: Path) -> None:
    write_tensors(CONTENT, tmp_path / "a.pt")
    assert same(load(tmp_path / "a.pt"))
    for mmap in (False, True):
        assert same(torch.load(tmp_path / "a.pt", weights_only=True, mmap=mmap))
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None


def test_a_flipped_bit_of_a_torch_file_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    write_tensors(CONTENT, path)
    whole = path.read_bytes()
    refused = 0
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
        try:
            found = load(path)
        except DataError:
            refused += 1
        else:
            assert same(found), "a bit that no reader looks at"
    assert refused > 100


@pytest.mark.parametrize("length", [3, 78, 500, 1000])
def test_a_comment_of_another_program_is_no_damage(length: int, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(CONTENT, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = (b"made by hand, " * 100)[:length]
    assert same(load(path))


def test_writing_takes_the_memory_of_one_copy(tmp_path: Path) -> None:
    """Beside the content: the archive, which may be larger by an eighth, as Python lets buffers grow, not two of it."""
    content = {"images": torch.zeros(2**22)}
    tracemalloc.start()
    try:
        write_tensors(content, tmp_path / "a.pt")
        assert tracemalloc.get_traced_memory()[1] < 1.5 * content["images"].nbytes
    finally:
        tracemalloc.stop()
    assert torch.equal(load(tmp_path / "a.pt")["images"], content["images"])


@pytest.mark.parametrize("length", [1, 10, 100, 1000, -79, -100])
def test_a_torch_file_cut_short_is_refused(length: int, tmp_path: Path) -> None:
    write_tensors(CONTENT, tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:length])
    with pytest.raises(DataError, match=r"a\.pt' cannot be read as some tensors"):
        load(tmp_path / "a.pt")


def test_every_flipped_bit_of_a_record_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(RECORD, path)
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
        try:
            found = read_json(path)
        except DataError:
            continue
        assert {name: found.get(name) for name in RECORD} == RECORD


def test_how_a_record_is_laid_out_makes_no_difference(tmp_path: Path) -> None:
    write_json(RECORD, tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(dict(reversed(content.items())), indent=7))
    assert read_json(tmp_path / "a.json") == RECORD
    (tmp_path / "a.json").write_text(json.dumps({**content, "format": "yours"}))
    with pytest.raises(DataError, match="checksum differs; if you have edited it, delete its entry sha256"):
        read_json(tmp_path / "a.json")
    del content["sha256"]
    (tmp_path / "a.json").write_text(json.dumps({**content, "format": "yours"}))
    assert read_json(tmp_path / "a.json")["format"] == "yours"


def test_the_old_format_of_torch_has_no_checksum_and_is_read(tmp_path: Path) -> None:
    torch.save(CONTENT, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert same(load(tmp_path / "a.pt"))
