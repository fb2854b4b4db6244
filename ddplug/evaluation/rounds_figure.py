"""The rounds of one or more runs, drawn: the term, lambda and the share, round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ddplug.evaluation.report import figure_of


def rounds_figure(runs: Mapping[str, Sequence[Mapping[str, Any]]], term: str) -> Any:
    """A figure of the term and lambda by round and, if any run knows it, the share.

    Args:
        runs: by label, the rounds in which the regulariser acted, as `History.state_dict` has them.
        term: what the value is, with its unit, for the axis.
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
                # A line through one or two rounds is none; a run keeps its colour where another has no share.
                axis.plot(
                    [of["number"] for of in rounds], [of[key] for of in rounds], label=label, color=f"C{number}",
                    linewidth=1.2, marker="o" if len(rounds) < 3 else None,
                )  # fmt: skip
        axis.set(xlabel="round", ylabel=meaning)
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    return figure
