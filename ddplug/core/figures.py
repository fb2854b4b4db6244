"""Pictures of a history: the term, lambda and the share, round by round."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddplug.core.history import History
from ddplug.errors import DataError, InputError
from ddplug.terms.base import Term
from ddplug.utils.files import replacing

PICTURES = (".png", ".svg", ".pdf")
"""The endings of a picture's name."""


def plot_history(history: History, term: Term, path: str | Path | None = None) -> Any:
    """A figure of the rounds of `history` in which the regulariser acted, saved to `path` if there is one.

    Raises:
        InputError: `path` does not end as a picture's name.
        DataError: the regulariser has acted in no round, or matplotlib is missing.
        FileError: it cannot be written.
    """
    rounds = [each for each in history.state_dict() if not each["skipped"]]
    if not rounds:
        raise DataError("there is no round to draw: none has come through the layer yet, or each was skipped.")
    figure = rounds_figure({"this run": rounds}, f"{term.label} of the views ({term.unit})")
    if path is not None:
        save_figure(figure, path)
    return figure


def rounds_figure(runs: Mapping[str, Sequence[Mapping[str, Any]]], term: str) -> Any:
    """A figure of the term and lambda by round and, if any run knows it, the share.

    Args:
        runs: by label, the rounds in which the regulariser acted, as `History.state_dict` has them.
        term: the label of the axis of the value, with its unit.
    """
    shares = {label: [of for of in rounds if of["share"] is not None] for label, rounds in runs.items()}
    shown = [("value", term), ("lam", "lambda")]
    if any(shares.values()):
        shown.append(("share", "share of the host's gradient"))
    figure = figure_of(5.2 * len(shown), 4.0)
    figure.set_layout_engine("constrained")
    for axis, (key, meaning) in zip(figure.subplots(1, len(shown)), shown, strict=True):
        for number, label in enumerate(runs):
            rounds = shares[label] if key == "share" else runs[label]
            if rounds:
                # One or two rounds need markers. A run has one colour in all panels.
                axis.plot(
                    [of["number"] for of in rounds], [of[key] for of in rounds], label=label, color=f"C{number}",
                    linewidth=1.2, marker="o" if len(rounds) < 3 else None,
                )  # fmt: skip
        axis.set(xlabel="round", ylabel=meaning)
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    return figure


def figure_of(width: float, height: float) -> Any:
    """An empty figure, in inches, that notebooks show. Pyplot is not used, so the host's figures stay as they are."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError("plots need matplotlib, which is not installed: pip install 'ddplug[demo]'") from error

    class Shown(Figure):
        def _repr_png_(self) -> bytes:  # notebooks look for it
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=80, bbox_inches="tight")
            return buffer.getvalue()

    return Shown(figsize=(width, height))


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure whole or not at all, in the format that the file's ending names."""
    if Path(path).suffix not in PICTURES:
        raise InputError(f"cannot draw '{path}'; a picture's name ends in {', '.join(PICTURES)}.")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, bbox_inches="tight")
