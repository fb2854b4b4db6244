"""Progress of long work: live bars on a terminal, and a line at every tenth where the output goes to a file.

Work whose results come one by one says each as a line of its own, which stays, above the bars or in the file.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from ddplug.utils.output import Safe, load_rich, say

WIDE = 80
"""Columns of a terminal from which on a bar has room for its note."""


class Bars:
    """Bars by name: `bars(what, done, total, note)`. A context manager; off, it says nothing."""

    def __init__(self, *, on: bool = True) -> None:
        load_rich()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        self._on = on
        console = Console(file=Safe(sys.stdout))  # type: ignore[arg-type]
        shortened = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        columns = [
            TextColumn("{task.description}", table_column=shortened), BarColumn(10), MofNCompleteColumn(),
            TimeRemainingColumn(),
        ]  # fmt: skip
        if console.width >= WIDE:
            columns.append(TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)))
        self._live = Progress(*columns, console=console, expand=True)
        self._tasks: dict[str, Any] = {}
        self._said: dict[str, int] = {}
        self._lines = False

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live.console.is_terminal:
            self._live.stop()

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of `what` are done."""
        if not self._on:
            return
        if not self._live.console.is_terminal:
            self._line(what, done, total, note)
            return
        if not self._tasks:
            self._live.start()  # not before there is something: two live displays at a time cannot be
        if what not in self._tasks:
            self._tasks[what] = self._live.add_task(what, total=total, note="")
        self._live.update(self._tasks[what], completed=done, total=total, note=note)

    def say(self, line: str) -> None:
        """A line that stays. Where the output goes to a file, lines take the place of those at every tenth."""
        if self._on:
            self._lines = True
            self._live.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _line(self, what: str, done: int, total: int, note: str) -> None:
        tenth = 10 * done // max(total, 1)
        if not self._lines and tenth != self._said.get(what, 0):
            self._said[what] = tenth
            say(f"{what}: {done}/{total}{'  ' + note if note else ''}")
