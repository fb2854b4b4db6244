"""`ddplug doctor` prints what a bug report needs, and a line for each thing that is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import ddplug
from ddplug import ProxyPool
from ddplug.attaching import registry
from ddplug.cli.app import app
from ddplug.hosting.checkout import HostSpec, from_record
from ddplug.hosting.host import Host
from ddplug.hosting.patch import blob_hash
from ddplug.networks.zoo import build, seeded

LOOP = b"a = 1\nb = 2\n"
PATCH = b"--- a/loop.py\n+++ b/loop.py\n@@ -1,0 +2 @@\n+import ddplug\n"
PATCH += b"--- a/more.py\n+++ b/more.py\n@@ -1,0 +2 @@\n+c = 3\n"


RECORD = {
    "title": "our own loop", "url": "https://example.org/loop", "commit": "0" * 40, "licence": "MIT",
    "folder": "loop", "script": "loop.py", "files": dict.fromkeys(("loop.py", "more.py"), blob_hash(LOOP)),
}  # fmt: skip


class Loop(Host):
    """A host of two files of our own."""

    name = "loop"

    def spec(self) -> HostSpec:
        return from_record("loop", RECORD, PATCH)


class Broken:
    """An adapter that cannot be made."""

    def __init__(self) -> None:
        raise ZeroDivisionError("by its maker")


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of checkouts, one of a host that is registered for the test, and an empty cache."""
    folder = tmp_path / "hosts"
    (folder / "loop").mkdir(parents=True)
    for name in ("loop.py", "more.py"):
        (folder / "loop" / name).write_bytes(LOOP)
    monkeypatch.setitem(registry._ADAPTERS, "loop", Loop)  # type: ignore[arg-type]
    monkeypatch.setenv("DDPLUG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DDPLUG_HOSTS", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def report(hosts: Path) -> Callable[..., str]:
    def run(folder: Path | None = hosts) -> str:
        ran = CliRunner().invoke(app, ["doctor", *(["--hosts", str(folder)] if folder else [])])
        assert ran.exit_code == 0, ran.output
        return ran.output

    return run


def test_versions_and_devices(report: Callable[..., str], hosts: Path) -> None:
    printed = report()
    assert f"ddplug {ddplug.__version__}" in printed
    assert f"torch {torch.__version__.split('+')[0]}" in printed
    assert 'precision="auto" is ' in printed
    assert not (hosts.parent / "cache").exists(), "nothing is made"


def test_states_of_a_host(report: Callable[..., str], hosts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, repo = Loop().spec(), hosts / "loop"
    assert "loop: the patch fits" in report()
    assert "loop: there is no folder" in report(hosts / "elsewhere")
    assert "loop: no checkout of our own loop was found\n" in report(None)
    monkeypatch.setenv("DDPLUG_HOSTS", str(hosts))
    assert "loop: the patch fits" in report(None)
    spec.apply(repo)
    assert "loop: patched in /" in report()
    (repo / "more.py").write_bytes(LOOP)
    assert "loop: patched in part" in report()
    (repo / "more.py").write_bytes(b"other\n")
    assert "loop: more.py" in report()


def test_a_host_without_a_patch(report: Callable[..., str], hosts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {**RECORD, "files": {"loop.py": blob_hash(LOOP)}, "run": {}}
    row = type("Row", (Host,), {"name": "row", "spec": lambda _: from_record("row", record, None)})
    monkeypatch.setitem(registry._ADAPTERS, "row", row)
    assert "row: needs no patch in /" in report()
    (hosts / "loop" / "loop.py").write_bytes(b"other\n")
    assert "row: loop.py in" in report()


def test_an_adapter_that_cannot_be_made_is_named(report: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._ADAPTERS, "broken", Broken)  # type: ignore[arg-type]
    assert "host      broken: ZeroDivisionError: by its maker" in report()


def test_pools_in_the_cache(report: Callable[..., str], tmp_path: Path) -> None:
    with seeded(0):
        network = build("convnet", channels=1, size=(8, 8), width=4)
    pools = tmp_path / "cache" / "pools"
    ProxyPool.from_modules(network).save(pools / "whole")
    shutil.copytree(pools / "whole", pools / "incomplete")
    (pools / "incomplete" / "proxy_000.safetensors").unlink()
    (pools / "empty").mkdir()
    printed = report()
    assert "whole: 1 of 1 networks" in printed
    assert "incomplete: missing ['proxy_000.safetensors']" in printed
    assert "empty: " in printed


def test_the_home_folder_is_not_printed(
    report: Callable[..., str], hosts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(hosts.parent))
    assert "loop: the patch fits in ~/hosts/loop" in report()
