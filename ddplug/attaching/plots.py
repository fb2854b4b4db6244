"""The picture of a history: what `Handle.plot` draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddplug.core.history import History
from ddplug.errors import DataError, InputError
from ddplug.evaluation.report import PICTURES, save_figure
from ddplug.evaluation.rounds_figure import rounds_figure
from ddplug.objectives.base import Objective


def plot_history(history: History, term: Objective, path: str | Path | None = None) -> Any:
    """A figure of the rounds of `history` in which the regulariser acted, saved to `path` if there is one.

    Raises:
        InputError: `path` is no picture's name.
        DataError: there is no such round, or matplotlib is missing.
        FileError: it cannot be written.
    """
    rounds = [each for each in history.state_dict() if not each["skipped"]]
    if not rounds:
        raise DataError("there is no round to draw: none has come through the layer yet, or each was skipped.")
    if path is not None and Path(path).suffix not in PICTURES:
        raise InputError(f"cannot draw '{path}'; a picture's name ends in {', '.join(PICTURES)}.")
    figure = rounds_figure({"this run": rounds}, f"{term.label} of the views ({term.unit})")
    if path is not None:
        save_figure(figure, path)
    return figure
