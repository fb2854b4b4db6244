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
    assert sum(count for what, count in found.counts.items() if what.endswith("refused")) > 1


def test_a_reader_that_fails_is_noticed(tmp_path: Path) -> None:
    """The fuzz itself: foreign errors, other content, and slowness."""
    path = tmp_path / "a.json"
    path.write_text('{"a": 1, "b": 2}')

    def slow() -> str:
        text = path.read_text(errors="replace")
        while text != '{"a": 1, "b": 2}':
            pass
        return text

    ways = {
        "other content": path.read_bytes,
        "JSONDecodeError": lambda: json.loads(path.read_bytes()),
        "than 5 s": slow,
    }
    for said, read in ways.items():
        made = fuzz.Cases("x", fuzz.Reader(path, read))
        for number in range(1 if read is slow else 20):
            made.run(number)
        assert any(said in failure for failure in made.failures), said
