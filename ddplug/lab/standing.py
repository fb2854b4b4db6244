"""Standing of a running comparison: a table that grows by a line per run, on a terminal and in a log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ddplug.lab.statistics import summary
from ddplug.lab.tables import plus_minus
from ddplug.terms import make

_COLUMNS = "{:>4}  {:<{width}}  {:>10}  {:>10}  {:>14}  {}"


class Standing:
    """Printer of a line for every new record, with the columns' names before the first.

    A line has the run's accuracy in percent, its difference to the baseline of its seed in points, the mean of these
    over the seeds so far with half its 95 % t-interval, and the term over the baseline's, under held-out proxies where
    there are some.

    Args:
        say: called with each line.
        arms: their names, or a mapping from these to names for the table.
        term: the term that is measured, as `ddplug.terms.make` reads it.
    """

    def __init__(
        self, say: Callable[[str], object], arms: Sequence[str] | Mapping[str, str], term: str = "cmi"
    ) -> None:
        self._say, self._label = say, make(term).label
        self._names = arms if isinstance(arms, Mapping) else {name: name for name in arms}
        self._width = max(len(name) for name in (*self._names.values(), "run"))
        self._said = 0

    def __call__(self, records: Sequence[dict[str, Any]]) -> None:
        """`records` are those of all runs so far, in the order in which they were made."""
        if not self._said:
            titles = ("seed", "run", "accuracy %", "difference", "so far", self._label)
            self._say(_COLUMNS.format(*titles, width=self._width))
        for count in range(self._said + 1, len(records) + 1):
            self._say(self._line(records[:count]).rstrip())
        self._said = len(records)

    def _line(self, records: Sequence[dict[str, Any]]) -> str:
        run = records[-1]
        paired = [each for each in records if each["arm"] in (records[0]["arm"], run["arm"])]
        here = summary([each for each in paired if each["seed"] == run["seed"]])[-1]
        name = self._names.get(run["arm"], run["arm"])
        shown = [run["seed"], name, plus_minus(here["accuracy"], None), "", "", ""]
        if run["arm"] != records[0]["arm"]:
            so_far = summary(paired)[-1]
            ratio = here["cmi_ratio"] if here["cmi_heldout_ratio"] is None else here["cmi_heldout_ratio"]
            shown[3:] = [
                plus_minus(here["difference"], None, sign=True),
                plus_minus(so_far["difference"], so_far["interval"], sign=True) if so_far["interval"] else "",
                "" if ratio is None else f"x {ratio:.2f}",
            ]
        return _COLUMNS.format(*shown, width=self._width)
