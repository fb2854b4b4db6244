"""The damage that `tests/tools/fuzz.py` does in thousands of ways, here in a few hundred that are always the same."""

from __future__ import annotations

import importlib
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = str(Path(__file__).resolve().parents[1] / "tools")
sys.path.insert(0, TOOLS)
fuzz: Any = importlib.import_module("fuzz")
CASES = 12


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs signals of a clock")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", fuzz.READERS)
def test_damaged_files_are_refused_or_mean_what_they_say(name: str, tmp_path: Path) -> None:
    (found,) = fuzz.run([name], 0, CASES, tmp_path)
    assert not found.failures
    assert found.counts.total() == CASES
    assert found.counts["refused"] > 1


def test_a_reader_that_fails_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fuzz itself: foreign errors, other content, and slowness."""
    path, content = tmp_path / "a.json", b'{"a": 1, "b": 2}'
    path.write_bytes(content)
    monkeypatch.setattr(fuzz, "SLOW", 1)

    def slow() -> bytes:
        while path.read_bytes() != content:
            pass
        return content

    ways = {
        "other content": path.read_bytes,
        "JSONDecodeError": lambda: json.loads(path.read_bytes()),
        "than 1 s": slow,
    }
    for said, read in ways.items():
        made, number = fuzz.Cases("x", fuzz.Reader(path, read)), 0
        while not any(said in failure for failure in made.failures):
            made.run(number)
            number += 1
            assert number < 20, said
        assert path.read_bytes() == content
