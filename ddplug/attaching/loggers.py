"""Rounds where people look for them: CSV, `logging`, TensorBoard, Weights & Biases.

A logger is anything with `write(rounds)` and `close()`. Rounds that have been read from the device are passed to it, in
blocks, so that it makes nobody wait: the host has logged later steps by then. Under torch.distributed, log in one
process.
"""

from __future__ import annotations

import csv
import logging
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
    ends = [history.tell(logger.write) for logger in loggers]
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


class LoggingLog:
    """A line of Python's `logging` for every so manieth round, and a warning for each that was skipped.

    Args:
        logger: a `logging.Logger`, or the name of one.
        every: rounds between two lines.
        level: of the lines.
    """

    def __init__(self, logger: logging.Logger | str = "ddplug", *, every: int = 10, level: int = logging.INFO) -> None:
        self.logger = logging.getLogger(logger) if isinstance(logger, str) else logger
        self.every, self.level = every, level

    def write(self, rounds: Sequence[Round]) -> None:
        """Log `rounds`."""
        for each in rounds:
            share = "" if each.share is None else f", share {each.share:.3g}"
            text = f"round {each.number}: {each.value:.4g}, lambda {each.lam:.4g}{share}, {each.images} images"
            if each.skipped:
                self.logger.warning("%s; skipped, as its gradient was not finite", text)
            elif each.number % self.every == 0:
                self.logger.log(self.level, "%s", text)

    def close(self) -> None:
        """Do nothing."""


class TensorBoardLog:
    """Scalars `ddplug/value`, `ddplug/lambda` and `ddplug/share` for TensorBoard.

    Args:
        folder: of the event files, or your own `SummaryWriter` (anything with `add_scalar`), which stays open.

    Raises:
        DataError: a folder is given, and tensorboard is not installed.
    """

    def __init__(self, folder: str | Path | Any) -> None:
        self._own = isinstance(folder, str | Path)
        self._writer: Any = folder
        if self._own:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise DataError(
                    "TensorBoardLog needs tensorboard, which is not installed: pip install 'ddplug[logs]'"
                ) from error
            self._writer = SummaryWriter(str(user_path(folder)))

    def write(self, rounds: Sequence[Round]) -> None:
        """Add a point per round to each curve."""
        for each in rounds:
            for name, value in _scalars(each).items():
                self._writer.add_scalar(name, value, each.number)

    def close(self) -> None:
        """Close the writer, if it was made here, else write out what it holds."""
        if self._own:
            self._writer.close()
        elif hasattr(self._writer, "flush"):
            self._writer.flush()


class WandbLog:
    """`ddplug/value`, `ddplug/lambda` and `ddplug/share` to a run of Weights & Biases, over `ddplug/round`.

    A row of its own would move the run's step, and wandb drops what the host then logs for an earlier one. Rounds so
    join the host's next row, which has room for the last of them; a `CSVLog` holds all.

    Args:
        run: what `wandb.init()` returned; it stays open.
        commit: give every round a row of its own, in a run that nothing else logs to.
    """

    def __init__(self, run: Any, *, commit: bool = False) -> None:
        self._run, self.commit = run, commit
        run.define_metric("ddplug/round")
        run.define_metric("ddplug/*", step_metric="ddplug/round")

    def write(self, rounds: Sequence[Round]) -> None:
        """Log `rounds`."""
        for each in rounds if self.commit else rounds[-1:]:
            self._run.log({"ddplug/round": each.number, **_scalars(each)}, commit=self.commit)

    def close(self) -> None:
        """Leave the run open: its maker finishes it."""


def _scalars(round_: Round) -> dict[str, float]:
    """The numbers of a round that have curves; those of a skipped one would be no numbers."""
    if round_.skipped:
        return {}
    found = {"ddplug/value": round_.value, "ddplug/lambda": round_.lam}
    return found if round_.share is None else {**found, "ddplug/share": round_.share}
