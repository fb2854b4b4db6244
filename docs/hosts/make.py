"""Write the tables of README.md and scripts.md, and the facts of each host there: `python docs/hosts/make.py`."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ddplug.hosting.checkout import table
from ddplug.hosting.host import Host, from_row

HERE = Path(__file__).parent
BLOCK = re.compile(r"(<!-- (\w+): written by make.py -->\n).*?(<!-- end -->)", re.DOTALL)


def hosts() -> Iterator[str]:
    """The rows of the table of hosts, as Markdown."""
    pages = {path.name: path.read_text(encoding="utf-8") for path in sorted(HERE.glob("[!R]*.md"))}
    yield "| host | method | script | licence | patch, its loop | `ddplug compare` |"
    yield "|---|---|---|---|---|---|"
    for name, row in table().items():
        kinds = [kind.__name__ for kind in type(from_row(name)).mro()]
        page = next(page for page, text in pages.items() if f"ddplug run {name} " in text)
        patch = "none needed"
        if "run" in row:
            page += f"#{name}"
        else:
            patch = next(kind for kind in kinds if kind.endswith("Like")).removesuffix("Like")
        compared = "no" if type(from_row(name)).saved is Host.saved else "yes"
        yield f"| [`{name}`]({page}) | {row['title']} | {_link(row)} | {row['licence']} | {patch} | {compared} |"


def _link(row: dict[str, Any]) -> str:
    return f"[{Path(row['script']).name}]({row['url']}/blob/{row['commit']}/{row['script']})"


def facts(name: str) -> Iterator[str]:
    """The facts of a host without a patch that its row has, as Markdown."""
    row = table()[name]
    run = row["run"]
    place = " and ".join(f"`{at}`" for at in run.get("at", ["optimizer"]))
    yield f"{row['title']}. [{row['script']}]({row['url']}/blob/{row['commit']}/{row['script']}), commit"
    yield f"{row['commit'][:8]}, licence {row['licence']}. CMI is added at {place}"
    if given := [f"`--{key.replace('_', '-')} {shlex.quote(value)}`" for key, value in run.items() if key != "at"]:
        yield f"with {', '.join(given)}"
    packages = ", ".join(row.get("packages", []))
    yield f"by default. Packages: {packages}." if packages else "by default."


def checks() -> Iterator[str]:
    """The rows of the table of checks, as Markdown."""
    yield "| host | weight 0 | held-out CMI, nats | gradient | `attach` | options typed | minutes | |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, row in tomllib.loads((HERE / "checks.toml").read_text(encoding="utf-8")).items():
        keys = ("zero", "fall", "gradient", "attach", "typed", "minutes")
        yield f"| `{name}` | {' | '.join(str(row.get(key, 'not checked')) for key in keys)} | {row.get('note', '')} |"


def written(text: str) -> str:
    """`text` with the present tables and facts."""
    made = {"hosts": hosts, "checks": checks, **{name: partial(facts, name) for name in table()}}
    return BLOCK.sub(lambda found: f"{found[1]}\n" + "\n".join(made[found[2]]()) + f"\n\n{found[3]}", text)


if __name__ == "__main__":
    for name in ("scripts.md", "README.md"):
        page = HERE / name
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
