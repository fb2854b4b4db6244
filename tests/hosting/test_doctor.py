"""`ddplug doctor` says what is here, and names what is wrong instead of failing on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import ddplug
from ddplug import HostError, ProxyPool
from ddplug.attaching import registry
from ddplug.cli.app import app
from ddplug.cli.doctor import size
from ddplug.hosting import doctor
from ddplug.hosting.checkout import HostSpec, from_record
from ddplug.hosting.host import Host
from ddplug.hosting.patch import blob_hash
from ddplug.networks.zoo import build, seeded

LOOP = b"a = 1\nb = 2\n"
PATCH = b"--- a/loop.py\n+++ b/loop.py\n@@ -1,0 +2 @@\n+import ddplug\n"
PATCH += b"--- a/more.py\n+++ b/more.py\n@@ -1,0 +2 @@\n+c = 3\n"


class Loop(Host):
    """A host of two files of our own."""

    name = "loop"

    def spec(self) -> HostSpec:
        record = {
            "title": "our own loop", "url": "https://example.org/loop", "commit": "0" * 40, "licence": "MIT",
            "folder": "loop", "script": "loop.py", "files": dict.fromkeys(("loop.py", "more.py"), blob_hash(LOOP)),
        }  # fmt: skip
        return from_record("loop", record, PATCH)


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


def test_states_of_a_host(hosts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def state(folder: Path | None = hosts) -> tuple[str, str | None]:
        found = doctor.host("loop", folder)
        return found["state"], found["problem"]

    spec, repo = Loop().spec(), hosts / "loop"
    assert state() == ("clean", None)
    assert state(hosts / "elsewhere") == state(None) == ("not found", None)
    monkeypatch.setenv("DDPLUG_HOSTS", str(hosts))
    assert state(None) == ("clean", None)
    spec.apply(repo)
    assert state() == ("patched", None)
    (repo / "more.py").write_bytes(LOOP)
    assert state()[0] == "interrupted"
    (repo / "more.py").write_bytes(b"other\n")
    how, problem = state()
    assert how == "other"
    assert problem is not None
    assert "is not the file that the patch was made for" in problem


def test_an_adapter_that_cannot_be_made_is_named(hosts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._ADAPTERS, "broken", Broken)  # type: ignore[arg-type]
    found = doctor.examine(hosts)
    assert [said for said in found["problems"] if "host broken" in said and "ZeroDivisionError: by its maker" in said]
    assert {each["name"]: each["state"] for each in found["hosts"]}["loop"] == "clean"


def test_pools_in_the_cache(hosts: Path, tmp_path: Path) -> None:
    with seeded(0):
        network = build("convnet", channels=1, size=(8, 8), width=4)
    pools = tmp_path / "cache" / "pools"
    ProxyPool.from_modules(network).save(pools / "whole")
    shutil.copytree(pools / "whole", pools / "lacking")
    (pools / "lacking" / "proxy_000.safetensors").unlink()
    shutil.copytree(pools / "whole", pools / "damaged")
    header = pools / "damaged" / "pool.json"
    header.write_text(header.read_text().replace('"wanted": 1', '"wanted": 2'))
    (pools / "empty").mkdir()
    found = doctor.cache(tmp_path / "cache")
    problems = {pool["name"]: pool["problem"] for pool in found["pools"]}
    assert problems["whole"] is None
    assert "lacks proxy_000.safetensors" in problems["lacking"]
    assert "no pool.json" in problems["empty"]
    assert "sha256" in problems["damaged"] or "checksum" in problems["damaged"]
    assert found["bytes"] == sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    whole = next(pool for pool in found["pools"] if pool["name"] == "whole")
    assert (whole["networks"], whole["wanted"]) == (1, 1)


def test_the_command(hosts: Path) -> None:
    said = CliRunner().invoke(app, ["doctor", "--hosts", str(hosts)])
    assert said.exit_code == 0, said.output
    assert f"ddplug {ddplug.__version__}" in said.output
    assert f"torch {torch.__version__.split('+')[0]}" in said.output
    assert "host loop    the patch fits" in said.output
    assert "no problem found" in said.output
    assert not (hosts.parent / "cache").exists(), "nothing is made"


def test_as_json(hosts: Path) -> None:
    (hosts / "loop" / "more.py").write_bytes(b"other\n")
    said = CliRunner().invoke(app, ["doctor", "--json", "--hosts", str(hosts)])
    found: dict[str, Any] = json.loads(said.output)
    assert set(found) == {"versions", "system", "devices", "cache", "hosts", "problems"}
    assert found["devices"][0]["device"] == "cpu"
    assert found["devices"][0]["fp32_speed"] > 0
    assert len(found["problems"]) == 1


def test_no_home_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert doctor._short(tmp_path / "a" / "b") == "~/a/b"
    assert doctor._short(Path("/elsewhere")) == "/elsewhere"


def test_a_folder_without_the_host_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="git clone"):
        doctor._repo(Loop().spec(), tmp_path)


@pytest.mark.parametrize(
    ("count", "said"),
    [(None, "unknown"), (0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (1 << 50, "1024.0 TiB")],
)
def test_sizes(count: int | None, said: str) -> None:
    assert size(count) == said
