"""What the site does beside Markdown: pages from files elsewhere in the project, patterns in the navigation, formulas.

Pages stay plain Markdown that reads well where it lies. Links that lead out of docs/ become links to the page made of
that file, or plain text. Formulas, `$...$` and `$$...$$`, become MathML, which browsers draw without a script.
"""

from __future__ import annotations

import html
import posixpath
import re
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
from commands import commands_page
from messages import messages_page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "benchmarks/README.md": "benchmarks.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md", "README.md": "index.md",
}  # fmt: skip
"""Pages of the site by the files outside docs/ that they are made of, or, for README.md, that they stand for."""
GENERATED = ("messages.md", "reference/commands.md")
"""Pages that have no file."""
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")
_CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_config(config: Any) -> Any:
    """Put the pages that there are in the place of the navigation's patterns, and those named nowhere under Tasks."""
    docs = Path(config["docs_dir"])
    there = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    config["nav"] = _expanded(config["nav"], there)
    named = str(config["nav"])
    (tasks,) = (entry["Tasks"] for entry in config["nav"] if isinstance(entry, dict) and "Tasks" in entry)
    tasks += [name for name in there if repr(name) not in named]
    return config


def _expanded(entry: Any, there: list[str]) -> Any:
    if isinstance(entry, dict):
        return {title: _expanded(under, there) for title, under in entry.items()}
    if not isinstance(entry, list):
        return entry
    made: list[Any] = []
    for each in entry:
        if isinstance(each, str) and "*" in each:
            made += [name for name in there if fnmatch(name, each)]
        else:
            made.append(_expanded(each, there))
    return made


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made here."""
    for source, name in PAGES.items():
        if not (Path(config["docs_dir"]) / name).exists():
            files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    for name, content in zip(GENERATED, (messages_page(ROOT), commands_page()), strict=True):
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links out of docs/ into links to pages, or plain text; hide the side bar of a page without neighbours."""
    name = page.file.src_uri
    if page.parent is None:
        page.meta["hide"] = ["navigation"]
    source = next((file for file, made in PAGES.items() if made == name and not (ROOT / "docs" / name).exists()), None)
    source = source or f"docs/{name}"
    parts = _CODE.split(markdown)
    parts[::2] = [_LINK.sub(lambda found: _link(found, source, name), part) for part in parts[::2]]
    return "".join(parts)


def _link(found: re.Match[str], source: str, page: str) -> str:
    text, target = found[1], found[2]
    path, mark, anchor = target.partition("#")
    if ":" in path or not path or path.startswith("/"):
        return found[0]
    meant = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if meant in PAGES and not source.startswith("docs/results"):
        meant = f"docs/{PAGES[meant]}"
    if (ROOT / meant).is_dir():
        meant = f"{meant}/README.md"
    made = (*PAGES.values(), *GENERATED)
    if not meant.startswith("docs/") or not ((ROOT / meant).exists() or meant.removeprefix("docs/") in made):
        return text  # a file of the project that is no page, or a folder without one
    return f"[{text}]({posixpath.relpath(meant, posixpath.dirname(f'docs/{page}'))}{mark}{anchor})"


def on_page_content(content: str, **_: Any) -> str:
    """Draw the formulas."""
    content = _BLOCK.sub(lambda found: f'<div class="formula">{_mathml(found[1], "block")}</div>', content)
    return _INLINE.sub(lambda found: _mathml(found[1], "inline"), content)


def _mathml(tex: str, display: str) -> str:
    return convert(html.unescape(tex).strip(), display=display)
