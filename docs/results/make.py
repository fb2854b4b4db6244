"""Write the tables of README.md anew from the raw figures beside it: `python docs/results/make.py`.

A table is between `<!-- table: FOLDER -->` and `<!-- end -->`, where FOLDER holds the `compare.json`. The table
of all hosts at the defaults is between `<!-- hosts -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ddplug.lab.folder import read_json
from ddplug.lab.tables import COSTS, between_terms, by_views, costs, result_columns, results

HERE = Path(__file__).parent
BLOCK = re.compile(r"(<!-- (?:table: (\S+)|hosts) -->\n).*?(<!-- end -->)", re.DOTALL)
HOSTS = {
    "own-defaults": "our DM trainer, 100 steps",
    "dm-defaults": "DM, 151 steps",
    "dsa": "DSA, 30 updates of each image",
    "idc": "IDC, 1000 class steps",
    "datm": "DATM, 1000 iterations",
    "mtt": "MTT, 1000 iterations",
}
"""The comparison of each host at the defaults, and its length."""


def table(folder: Path) -> str:
    """A comparison's results as Markdown: a row per arm, the baseline first; then how arms of several terms differ."""
    result = read_json(folder / "compare.json")
    columns = ("views", *result_columns(result), *COSTS[:3])
    rows, kinds = [], by_views(result)
    for number, (views, arms) in enumerate(kinds.items()):
        for row in arms[number > 0 :]:
            shown = "" if row["views"] is None else views
            rows.append((shown, *results(row), *costs(result, row)[:3]))
    between = [part for arms in kinds.values() for part in between_terms(result, arms)]
    return "\n".join(_lines(*part) for part in ((columns, rows), *between))


def hosts() -> str:
    """The differences at weight 1 of all hosts."""
    rows = []
    for folder, length in HOSTS.items():
        without, with_cmi = read_json(HERE / folder / "compare.json")["summary"][:2]
        accuracies = (f"{100 * row['accuracy']:.2f} %" for row in (without, with_cmi))
        gain, half = 100 * with_cmi["difference"], 100 * with_cmi["interval"]
        rows.append((length, *accuracies, f"{gain:+.2f} ± {half:.2f} points"))
    return _lines(("host", "without", "with", "difference"), rows)


def _lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, ("---",) * len(columns), *rows)) + "\n"


def written(text: str) -> str:
    """`text` with all of its tables as the raw figures say."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{table(HERE / found[2]) if found[2] else hosts()}\n{found[3]}", text)


if __name__ == "__main__":
    page = HERE / "README.md"
    page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
