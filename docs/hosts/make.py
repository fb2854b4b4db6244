"""Write the table of README.md anew from the list of hosts, patches/hosts.toml: `python docs/hosts/make.py`."""

from __future__ import annotations

import re
from pathlib import Path

from ddplug.hosting.checkout import table
from ddplug.hosting.host import Host, from_row

HERE = Path(__file__).parent
BLOCK = re.compile(r"(<!-- hosts: written by make.py -->\n).*?(<!-- end -->)", re.DOTALL)


def rows() -> str:
    """The hosts as Markdown, one row each."""
    pages = {path.name: path.read_text(encoding="utf-8") for path in sorted(HERE.glob("[!R]*.md"))}
    lines = ["| host | method | script | licence | loop | `ddplug compare` |", "|---|---|---|---|---|---|"]
    for name, row in table().items():
        host = from_row(name)
        page = next(page for page, text in pages.items() if f"ddplug run {name} " in text)
        loop = next(kind.__name__ for kind in type(host).mro() if kind.__name__.endswith("Like"))
        compared = "no" if type(host).saved is Host.saved else "yes"
        script = f"[{row['script']}]({row['url']}/tree/{row['commit']})"
        cells = (f"[`{name}`]({page})", row["title"], script, row["licence"], loop.removesuffix("Like"), compared)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def written(text: str) -> str:
    """`text` with the present table."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{rows()}\n\n{found[2]}", text)


if __name__ == "__main__":
    page = HERE / "README.md"
    page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
