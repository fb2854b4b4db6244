"""The table of mutants keeps up with the code. Whether they are red takes `tests/tools/mutants.py`, and an hour."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).parents[1] / "tools/mutants.py"


@pytest.fixture(scope="module")
def mutants() -> Any:
    spec = importlib.util.spec_from_file_location("mutants", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_mutant_changes_the_code_into_other_python(mutants: Any) -> None:
    wrong = []
    for mutant in mutants.MUTANTS:
        try:
            mutants.changed(mutant)
        except ValueError as error:
            wrong.append(f"{mutant.name}: {error}")
    assert not wrong, "\n".join(wrong)
    names = [mutant.name for mutant in mutants.MUTANTS]
    assert len(set(names)) == len(names)


def test_every_mutant_has_tests_that_are_there(mutants: Any) -> None:
    wrong = []
    for mutant in mutants.MUTANTS:
        where, _, words = mutant.tests.partition(" -k ")
        named = [file.partition("::") for file in shlex.split(where)]
        # What a check is called may stand in a program beside the test that starts it.
        texts = [path.read_text() for file, _, _ in named for path in (mutants.ROOT / file).parent.glob("*.py")]
        wanted = [name for _, _, name in named if name] + re.findall(r"[A-Za-z]\w+", words.replace(" or ", " "))
        missing = [word for word in wanted if not any(word in text for text in texts)]
        missing += [file for file, _, _ in named if not (mutants.ROOT / file).is_file()]
        wrong += [f"{mutant.name}: {', '.join(missing)} in {mutant.tests}"] if missing else []
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("never in there", "x", "not in the code"),
        ("def wide_views", "def wide_views", "not in"),
        ("import", "(", "no Python"),
    ],
)
def test_what_is_no_mutant_is_said(mutants: Any, old: str, new: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mutants.changed(mutants.Mutant("mine", "core/history.py", old, new, ""))
