"""The site is built strictly, loads nothing from elsewhere, has no dead link, and cannot fall behind the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import ddplug

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
QUOTE = re.compile(r"^> (.+(?:\n> .+)*)", re.MULTILINE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `mkdocs build --strict` does, which ends with an error for what is not right."""
    for needed in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(needed)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that reads the messages."""
    monkeypatch.syspath_prepend(str(DOCS / "_site"))
    import messages

    return messages


class Page(HTMLParser):
    """What a page links to, what it loads, and where it can be linked to."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "prev", "next") and "href" in given:
            self.loads.append(given["href"])
        elif "src" in given:
            self.loads.append(given["src"])


@cache
def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def test_no_link_is_dead(site: Path) -> None:
    dead, followed = [], 0
    for path in sorted(site.rglob("*.html")):
        for link in read(path).links + read(path).loads:
            split = urlsplit(link)
            if split.scheme or path.name == "404.html":
                continue
            target = (path.parent / unquote(split.path)).resolve() if split.path else path
            target = target / "index.html" if target.is_dir() else target
            followed += 1
            if not target.is_file():
                dead.append(f"{path.relative_to(site)}: {link}")
            elif split.fragment and target.suffix == ".html" and unquote(split.fragment) not in read(target).places:
                dead.append(f"{path.relative_to(site)}: {link}, no such place")
    assert dead == []
    assert followed > 1000


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """A page without a network is whole: no script, style, font or picture of another server."""
    for path in site.rglob("*.html"):
        assert [load for load in read(path).loads if urlsplit(load).netloc] == [], path
    for path in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", path.read_text(encoding="utf-8")), path


def test_formulas_are_drawn_and_files_are_small(site: Path) -> None:
    text = (site / "idea.html").read_text(encoding="utf-8")
    assert text.count("<math") > 20
    assert "arithmatex" not in text
    sources = [path for path in DOCS.rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in sources) < 1_000_000


def test_every_public_name_has_its_place(site: Path) -> None:
    places = set().union(*(read(path).places for path in (site / "reference").rglob("*.html")))
    for name in ddplug.__all__:
        found = getattr(ddplug, name)
        assert f"{found.__module__}.{found.__qualname__}" in places, name


def test_every_page_can_be_found(site: Path) -> None:
    """Also those that patterns in the navigation stand for."""
    pages = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.md")}
    pages = {re.sub("README.html$", "index.html", name) for name in pages}
    linked = {
        (path.parent / urlsplit(link).path).resolve().relative_to(site.resolve()).as_posix()
        for path in site.rglob("*.html")
        for link in read(path).links
        if not urlsplit(link).scheme and path.name != "404.html" and urlsplit(link).path.endswith(".html")
    }
    assert pages - linked == set()


def test_troubleshooting_quotes_what_is_said(tools: Any) -> None:
    """Every quoted message is one of the code's, so that the page cannot rot."""
    known = tools.messages(ROOT)
    quotes = [
        " ".join(found.replace("\n> ", " ").split())
        for found in QUOTE.findall((DOCS / "troubleshooting.md").read_text())
    ]
    assert len(quotes) > 20
    assert [quote for quote in quotes if not any(message.holds(quote) for message in known)] == []
    assert not any(message.holds("a message that nobody gives") for message in known)


def test_messages_are_read_as_they_are_raised(tools: Any) -> None:
    """What is raised at run time is found in what was read from the source."""
    known = tools.messages(ROOT)
    import torch

    for call in (
        lambda: ddplug.cmi(torch.rand(3, 4), torch.tensor([0, 0, -1])),
        lambda: ddplug.ProxyPool.load("nowhere"),
        lambda: ddplug.attach(object(), proxies=torch.nn.Linear(2, 2)),
        lambda: ddplug.networks.build("alexnot"),
    ):
        with pytest.raises(ddplug.DDPlugError) as raised:
            call()
        kind, said = type(raised.value).__name__, " ".join(str(raised.value).split())
        patterns = [
            ".*".join(re.escape(part) for part in each.text.split(tools.UNKNOWN)) for each in known if each.kind == kind
        ]
        assert any(re.match(pattern, said) for pattern in patterns), said
    assert len(known) > 350


def test_the_messages_page_has_every_kind(tools: Any, site: Path) -> None:
    text = (site / "messages.html").read_text(encoding="utf-8")
    for kind in {message.kind for message in tools.messages(ROOT)} & set(tools.KINDS):
        assert f">{kind}<" in text
