"""Write the tables of README.md and scripts.md: `python docs/hosts/make.py`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from ddplug.hosting.checkout import table
from ddplug.hosting.host import Host, from_row

HERE = Path(__file__).parent
BLOCK = re.compile(r"(<!-- (hosts|checks): written by make.py -->\n).*?(<!-- end -->)", re.DOTALL)


def hosts() -> Iterator[str]:
    """The rows of the table of hosts, as Markdown."""
    pages = {path.name: path.read_text(encoding="utf-8") for path in sorted(HERE.glob("[!R]*.md"))}
    yield "| host | method | script | licence | loop | `ddplug compare` |"
    yield "|---|---|---|---|---|---|"
    for name, row in table().items():
        host = from_row(name)
        page = next(page for page, text in pages.items() if f"ddplug run {name} " in text)
        loop = next(kind.__name__ for kind in type(host).mro() if kind.__name__.endswith("Like"))
        compared = "no" if type(host).saved is Host.saved else "yes"
        script = f"[{row['script']}]({row['url']}/tree/{row['commit']})"
        cells = (f"[`{name}`]({page})", row["title"], script, row["licence"], loop.removesuffix("Like"), compared)
        yield "| " + " | ".join(cells) + " |"


def checks() -> Iterator[str]:
    """The rows of the table of checks, as Markdown."""
    yield "| host | weight 0 | held-out CMI, nats | gradient | `attach` | options typed | minutes | |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, row in tomllib.loads((HERE / "checks.toml").read_text(encoding="utf-8")).items():
        keys = ("zero", "fall", "gradient", "attach", "typed", "minutes")
        yield f"| `{name}` | {' | '.join(str(row.get(key, 'not checked')) for key in keys)} | {row.get('note', '')} |"


ROWS = {"hosts": hosts, "checks": checks}


def written(text: str) -> str:
    """`text` with the present tables."""
    return BLOCK.sub(lambda found: f"{found[1]}\n" + "\n".join(ROWS[found[2]]()) + f"\n\n{found[3]}", text)


if __name__ == "__main__":
    for name in ("README.md", "scripts.md"):
        page = HERE / name
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
