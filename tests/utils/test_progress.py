"""What long work says of itself, on a terminal and in a file."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from ddplug.utils.progress import Bars


def test_in_a_file_there_is_a_line_at_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars:
        for done in range(41):
            bars("work", done, 40, "nearly" if done == 40 else "")
        bars("nothing to do", 0, 0)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [*(f"work: {done}/40" for done in range(4, 40, 4)), "work: 40/40  nearly"]


def test_in_a_file_results_take_the_place_of_lines_at_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars:
        bars("work", 1, 10)
        bars.say("a row [of it]")
        bars("work", 2, 10)
    assert capsys.readouterr().out == "work: 1/10\na row [of it]\n"


def test_on_a_terminal_results_stand_above_the_bars(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Bars() as bars:
        bars("work", 1, 4, "begun")
        bars("more work", 1, 2)
        bars.say("a row [of it]")
        bars("work", 4, 4, "ended")
    shown = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in capsys.readouterr().out.splitlines()]
    assert [line.strip() for line in shown].count("a row [of it]") == 1
    *_, work, more = (line for line in shown if line.strip())
    assert re.search(r"^work .* 4/4 .*ended", work), "the bars are drawn last, as they are in the end"
    assert re.search(r"^more work .* 1/2 ", more)


def test_nothing_is_said_where_bars_are_off(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars(on=False) as bars:
        bars("work", 1, 1)
        bars.say("a row")
    assert capsys.readouterr().out == ""


def test_the_hosts_random_state_stays() -> None:
    """Rich draws from Python's generator when it is first imported, here in a fresh process."""
    code = (
        "import random\nrandom.seed(0)\nbefore = random.getstate()\nfrom ddplug.utils.progress import Bars\n"
        "with Bars() as bars:\n    bars('work', 1, 2)\nassert random.getstate() == before"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
