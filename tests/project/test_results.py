"""What docs/results says is what its raw figures say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from ddplug.lab.folder import read_json
from ddplug.lab.statistics import summary

RESULTS = Path(__file__).parents[2] / "docs/results"
FOLDERS = sorted(path.parent.name for path in RESULTS.glob("*/compare.json"))
PAGE = (RESULTS / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def make() -> Any:
    spec = importlib.util.spec_from_file_location("make_results", RESULTS / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_those_of_the_raw_figures(make: Any) -> None:
    assert make.written(PAGE) == PAGE, "run docs/results/make.py"
    other = PAGE.replace("| IDC, 1000 class steps | 1 |", "| IDC, 1000 class steps | 11 |")
    assert make.written(other) == PAGE != other, "a figure that was changed by hand"


def test_every_experiment_has_its_table_and_every_file_is_there(make: Any) -> None:
    tables = re.findall(r"<!-- table: (.+) -->", PAGE)
    assert {folder for named in tables for folder in make.parts(named)} == set(FOLDERS)
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert link.startswith("http") or (RESULTS / link).exists(), link


@pytest.mark.parametrize("name", FOLDERS)
def test_summaries_follow_from_the_runs(name: str) -> None:
    result = read_json(RESULTS / name / "compare.json")
    again = summary(result["entries"])
    for row, other in zip(result["summary"], again, strict=True):
        assert {key: row[key] for key in other} == other


def test_files_are_small() -> None:
    assert all(path.stat().st_size < 1_000_000 for path in RESULTS.rglob("*"))
