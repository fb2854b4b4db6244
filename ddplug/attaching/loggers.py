"""Rounds where people look for them: CSV, TensorBoard, Weights & Biases.

A logger is anything with `write(rounds)` and `close()`. Rounds that have been read from the device are passed to it, in
blocks, so that it makes nobody wait: the host has logged later steps by then. Under torch.distributed, log in one
process.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from ddplug.core.history import History, Round
from ddplug.errors import DataError, FileError
from ddplug.utils.files import not_written, user_path

COLUMNS = ("number", "value", "lam", "share", "images", "skipped")


class Logger(Protocol):
    """Destination of rounds."""

    def write(self, rounds: Sequence[Round]) -> None:
        """Write `rounds`, the next ones in order."""

    def close(self) -> None:
        """Close: no more rounds come."""


def log(history: History, *loggers: Logger) -> Callable[[], None]:
    """Write every round of `history` to `loggers`; return an idempotent function that writes the last and closes.

    A logger that fails is warned about once, and the run goes on.
    """
    ends = [history.subscribe(logger.write) for logger in loggers]
    left = list(zip(ends, loggers, strict=True))

    def end() -> None:
        while left:
            finish, logger = left.pop(0)
            finish()
            logger.close()

    return end


class CSVLog:
    """A row per round: number, value (of the term, in its unit), lam, share, images, skipped.

    Args:
        path: of the file. One that is there is continued, as a resumed run does.

    Raises:
        FileError: nothing can be written there.
        DataError: the file there has other columns, so it is another program's.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = user_path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] = self.path.open("a+", newline="", encoding="utf-8")
        except OSError as error:
            raise FileError(not_written(self.path, error)) from error
        self._rows = csv.writer(self._file)
        self._file.seek(0)
        if (first := self._file.readline().strip()) and first != ",".join(COLUMNS):
            self._file.close()
            raise DataError(f"'{self.path}' begins with '{first[:80]}', so it is no log of rounds; give another file.")
        if not first:
            self._rows.writerow(COLUMNS)

    def write(self, rounds: Sequence[Round]) -> None:
        """Append `rounds`."""
        self._rows.writerows([getattr(each, name) for name in COLUMNS] for each in rounds)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardLog:
    """Scalars `ddplug/value`, `ddplug/lambda` and `ddplug/share` for TensorBoard.

    Args:
        writer: a `SummaryWriter`, which stays open.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def write(self, rounds: Sequence[Round]) -> None:
        """Add a point per round to each curve."""
        for each in rounds:
            for name, value in _scalars(each).items():
                self._writer.add_scalar(name, value, each.number)

    def close(self) -> None:
        """Write out what the writer holds."""
        self._writer.flush()


class WandbLog:
    """`ddplug/value`, `ddplug/lambda` and `ddplug/share` to a run of Weights & Biases, over `ddplug/round`.

    A row of its own would move the run's step, and wandb drops what the host then logs for an earlier one. Rounds so
    join the host's next row, which has room for the last of them; a `CSVLog` holds all.

    Args:
        run: what `wandb.init()` returned; it stays open.
    """

    def __init__(self, run: Any) -> None:
        self._run = run
        run.define_metric("ddplug/round")
        run.define_metric("ddplug/*", step_metric="ddplug/round")

    def write(self, rounds: Sequence[Round]) -> None:
        """Log the last of `rounds`."""
        self._run.log({"ddplug/round": rounds[-1].number, **_scalars(rounds[-1])}, commit=False)

    def close(self) -> None:
        """Leave the run open: its maker finishes it."""


def _scalars(round_: Round) -> dict[str, float]:
    """The numbers of a round that have curves; those of a skipped one would be no numbers."""
    if round_.skipped:
        return {}
    found = {"ddplug/value": round_.value, "ddplug/lambda": round_.lam}
    return found if round_.share is None else {**found, "ddplug/share": round_.share}
