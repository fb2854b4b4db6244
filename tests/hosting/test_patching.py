"""Patches: read, checked, applied to files all or none, reversed to the byte; and what is in those that are shipped."""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ddplug.cli.app import app
from ddplug.errors import HostError, InputError
from ddplug.hosting import patch as p
from ddplug.hosting.checkout import LOCK, HostSpec, _Run, find_repo, from_record, load, table
from ddplug.utils.files import exclusive_lock

LOOP = b"import math\n\ndef main():\n    total = 0\n    return total\n"
OTHER = b"a = 1\r\nb = 2\r\nlast line without an end"

RAW = b"""--- a/loop.py
+++ b/loop.py
@@ -1,0 +2 @@
+import ddplug
@@ -4,0 +6,2 @@
+    total = ddplug.cmi(total)
+    ddplug.save()
--- a/sub/other.py
+++ b/sub/other.py
@@ -1,0 +2 @@
+ddplug = 3\r
"""

PATCHED = (
    b"import math\nimport ddplug\n\ndef main():\n    total = 0\n    total = ddplug.cmi(total)\n    ddplug.save()\n"
    b"    return total\n"
)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "host"
    (folder / "sub").mkdir(parents=True)
    (folder / "loop.py").write_bytes(LOOP)
    (folder / "sub" / "other.py").write_bytes(OTHER)
    (folder / "loop.py").chmod(0o754)
    return folder


def spec(raw: bytes = RAW, **more: Any) -> HostSpec:
    record = {
        "title": "our own loop", "url": "https://example.org/loop", "commit": "0" * 40, "licence": "MIT",
        "folder": "host", "script": "loop.py",
        "files": {"loop.py": p.blob_hash(LOOP), "sub/other.py": p.blob_hash(OTHER)},
        "places": {"loop.py": {"1": "below the imports"}}, **more,
    }  # fmt: skip
    return from_record("ours", record, raw)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_parse_and_build_are_inverse() -> None:
    patch = p.parse(RAW)
    assert patch.files["loop.py"] == (
        p.Insertion(1, (b"import ddplug\n",)),
        p.Insertion(4, (b"    total = ddplug.cmi(total)\n", b"    ddplug.save()\n")),
    )
    assert p.build(patch.files) == RAW


def test_apply_then_check_then_reverse(repo: Path) -> None:
    before = tree(repo)
    assert set(spec().check(repo).values()) == {"clean"}
    assert tree(repo) == before
    assert spec().apply(repo) == ["loop.py", "sub/other.py"]
    assert (repo / "loop.py").read_bytes() == PATCHED
    assert (repo / "sub" / "other.py").read_bytes() == b"a = 1\r\nddplug = 3\r\nb = 2\r\nlast line without an end"
    assert (repo / "loop.py").stat().st_mode & 0o777 == 0o754
    assert set(spec().check(repo).values()) == {"patched"}
    with pytest.raises(HostError, match="patched already"):
        spec().apply(repo)
    spec().reverse(repo)
    assert tree(repo) == before
    with pytest.raises(HostError, match="not patched"):
        spec().reverse(repo)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_understands_it_and_counts_the_same_hashes(repo: Path) -> None:
    (repo.parent / "ours.patch").write_bytes(RAW)
    subprocess.run(["git", "apply", "--unidiff-zero", "../ours.patch"], cwd=repo, check=True, capture_output=True)
    assert set(spec().check(repo).values()) == {"patched"}
    counted = subprocess.run(
        ["git", "hash-object", "--no-filters", "loop.py"], cwd=repo, check=True, capture_output=True
    )
    assert counted.stdout.decode().strip() == p.blob_hash(PATCHED)


texts = st.lists(st.sampled_from([b"", b"x = 1", b"    y", b"+", b"-- a"]), min_size=1, max_size=8)


@given(
    texts, st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.sets(st.integers(0, 7), min_size=1), st.integers(1, 3)
)
def test_applying_and_reversing_any_patch(lines: list[bytes], end: bytes, ends: bool, after: set[int], n: int) -> None:
    text = end.join([*lines, b""]) if ends else end.join([*lines, b"last"])
    places = sorted(line for line in after if line <= len(lines)) or [0]
    patch = p.parse(p.build({"f.py": tuple(p.Insertion(line, (b"ddplug" + end,) * n) for line in places)}))
    applied = patch.apply_text("f.py", text)
    assert applied.count(b"ddplug") == n * len(places)
    assert patch.reverse_text("f.py", applied) == text
    assert p.state(patch, "f.py", applied, p.blob_hash(text)) == "patched"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"--- a/f.py\n+++ b/f.py\n",
        RAW.replace(b"@@ -1,0 +2 @@", b"@@ -1,0 +2 @@ def main():"),
        b"--- a/f.py\n+++ b/f.py\n@@ -1,1 +1 @@\n-a\n+b\n",
        b"--- a/f.py\n+++ b/f.py\n@@ -1,0 +2 @@\n context\n+b\n",
        b"--- a/f.py\n+++ b/f.py\n@@ -1,0 +2,2 @@\n+b\n",
        b"--- a/f.py\n+++ b/f.py\n@@ -1,0 +3 @@\n+b\n",
        b"--- a/f.py\n+++ b/g.py\n@@ -1,0 +2 @@\n+b\n",
        b"--- /dev/null\n+++ b/f.py\n@@ -0,0 +1 @@\n+b\n",
        b"--- a/f.py\n+++ b/f.py\n@@ -4,0 +5 @@\n+b\n@@ -2,0 +4 @@\n+b\n",
        b"--- a/f.py\n+++ b/f.py\n@@ -1,0 +2 @@\n+b\n\\ No newline at end of file\n",
    ],
)
def test_what_is_not_a_patch_of_ours_is_refused(raw: bytes) -> None:
    with pytest.raises(HostError):
        p.parse(raw)


def test_a_file_that_differs_changes_nothing_and_says_what_to_insert_where(repo: Path) -> None:
    (repo / "sub" / "other.py").write_bytes(OTHER + b"#")
    before = tree(repo)
    with pytest.raises(HostError) as caught:
        spec().apply(repo)
    message = str(caught.value)
    assert "sub/other.py" in message
    assert "after line 1 of the original:\n    ddplug = 3" in message
    assert "import ddplug" not in message, "loop.py is as it should be"
    assert tree(repo) == before
    (repo / "loop.py").write_bytes(b"")
    with pytest.raises(HostError, match=r"after line 1 of the original \(below the imports\):\n    import ddplug"):
        spec().check(repo)


def test_the_wrong_folder(repo: Path, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="there is no folder"):
        spec().check(tmp_path / "nowhere")
    (repo / "loop.py").unlink()
    with pytest.raises(HostError, match=r"is not our own loop .*it has no loop.py"):
        spec().check(repo)


def test_half_patched_is_refused_where_it_would_be_run(repo: Path) -> None:
    (repo / "loop.py").write_bytes(PATCHED)
    before = tree(repo)
    for what in (spec().patched, spec().check):
        with pytest.raises(HostError, match=r"some files.*Complete it with `ddplug patch ours .*--reverse`"):
            what(repo)
    assert tree(repo) == before


def killed_after(renames: int, change: Callable[[Path], object], repo: Path) -> None:
    """Have a process of its own `change` the checkout, which `kill -9` ends after so many renamings."""
    child = os.fork()
    if child == 0:
        replace, left = os.replace, renames

        def killed(source: Any, target: Any) -> None:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            replace(source, target)

        os.replace = killed
        change(repo)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.skipif(os.name == "nt", reason="needs fork")
@pytest.mark.parametrize("killed", ["apply", "reverse"])
@pytest.mark.parametrize("repaired", ["apply", "reverse"])
@pytest.mark.parametrize("renames", [0, 1])
def test_killed_between_two_files_it_is_completed_or_taken_out(
    repo: Path, killed: str, repaired: str, renames: int
) -> None:
    whole = {"reverse": tree(repo)}
    spec().apply(repo)
    whole["apply"] = tree(repo)
    if killed == "apply":
        spec().reverse(repo)
    killed_after(renames, getattr(spec(), killed), repo)
    states = sorted(set(spec().states(repo).values()))
    assert states == (["clean", "patched"] if renames else ["patched" if killed == "reverse" else "clean"])
    if renames or killed == repaired:
        changed = getattr(spec(), repaired)(repo)
        assert len(changed) == (1 if renames else 2)
    else:
        with pytest.raises(HostError):  # nothing had been changed
            getattr(spec(), repaired)(repo)
        getattr(spec(), killed)(repo)
        getattr(spec(), repaired)(repo)
    assert tree(repo) == whole[repaired], "to the byte, and nothing is left beside the files"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root may give files away")
def test_root_leaves_files_their_owner_and_permissions(repo: Path) -> None:
    os.chown(repo / "loop.py", 1234, 2345)
    (repo / "loop.py").chmod(0o4750)
    for what in (spec().apply, spec().reverse):
        what(repo)
        found = (repo / "loop.py").stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (1234, 2345, 0o4750)


def test_one_process_at_a_time(repo: Path) -> None:
    before = tree(repo)
    with exclusive_lock(repo / LOCK, repo), pytest.raises(InputError, match="another process is at work in"):
        spec().apply(repo)
    assert tree(repo) == before


@pytest.mark.parametrize("files", ["new", "old"])
def test_a_full_disk_names_the_file_and_changes_nothing(
    repo: Path, files: str, small_disk: Path, fill: Callable[[Path, int], None]
) -> None:
    host = small_disk / "host"
    shutil.copytree(repo, host)
    text = b"x = 1\n" * 1500
    (host / "sub" / "other.py").write_bytes(text)
    raw = RAW.replace(b"ddplug = 3\r\n", b"ddplug = 3\n")
    ours = spec(raw, files={"loop.py": p.blob_hash(LOOP), "sub/other.py": p.blob_hash(text)})
    fill(small_disk, 8192 + (12288 + 4096 if files == "old" else 4096))  # loop.py twice; other.py once, or not at all
    before = tree(host)
    with pytest.raises(HostError, match=r"cannot write '.*other\.py' \(No space left.*nothing was changed"):
        ours.apply(host)
    assert tree(host) == before


def test_line_ends_have_to_agree(repo: Path) -> None:
    text = LOOP.replace(b"\n", b"\r\n")
    (repo / "loop.py").write_bytes(text)
    with pytest.raises(HostError, match="line ends"):
        spec(files={"loop.py": p.blob_hash(text), "sub/other.py": p.blob_hash(OTHER)}).apply(repo)


@pytest.mark.parametrize("place", ["loop.py", "sub"])
def test_a_symbolic_link_is_never_followed(repo: Path, tmp_path: Path, place: str) -> None:
    outside = tmp_path / "outside"
    shutil.move(repo / place, outside)
    (repo / place).symlink_to(outside, target_is_directory=place == "sub")
    before = tree(tmp_path)
    with pytest.raises(HostError, match="no regular file loop.py|no regular file sub/other.py"):
        spec().apply(repo)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["../loop.py", "/etc/passwd", "sub/../../loop.py", "c:\\x", "~/x", "", "sub"])
def test_names_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop.py").touch()
    (tmp_path / "root/sub").mkdir(parents=True)
    with pytest.raises(HostError):
        p.inside(tmp_path / "root", name)


def test_all_files_or_none(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, replace, calls = tree(repo), os.replace, []

    def fails_at_the_second(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "no space left", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_at_the_second)
    with pytest.raises(HostError, match="no space left"):
        spec().apply(repo)
    assert len(calls) == 3, "two were tried, the first was put back"
    assert tree(repo) == before


def test_a_record_and_its_patch_name_the_same_files() -> None:
    with pytest.raises(HostError, match="hashes are known of"):
        spec(files={"loop.py": p.blob_hash(LOOP)})
    with pytest.raises(HostError, match="lacks url"):
        from_record("ours", {"title": "x", "files": {}}, RAW)


def test_where_a_checkout_is_looked_for(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.delenv("DDPLUG_HOSTS", raising=False)
    with pytest.raises(HostError, match="--repo PATH"):
        find_repo(spec())
    assert find_repo(spec(), repo) == repo
    monkeypatch.setenv("DDPLUG_HOSTS", str(tmp_path))
    assert find_repo(spec()) == repo
    monkeypatch.delenv("DDPLUG_HOSTS")
    monkeypatch.chdir(repo)
    assert find_repo(spec()) == repo


# What is shipped ------------------------------------------------------------------------------------------------------

SHIPPED = sorted(name for name, row in table().items() if "run" not in row)
SCRIPTS = sorted(set(table()) - set(SHIPPED))
"""Hosts without a patch."""

PUBLISHED = {
    "dance": "d9929f18cedd", "datadam": "083eba2040fb", "datm": "cf7074723475", "dm": "720465604b84",
    "dream": "7f9813f69d45", "dsa": "0ab21147963c", "dsdm": "57babd18e322", "ftd": "8bebc464ca1a",
    "idc": "209fbfeb8034", "idm": "38cda26b079b", "iid": "657425fa6d6c", "mtt": "c68e41e7f15e",
    "pad": "b8135df1b240",
}  # fmt: skip
"""Starts of the blob hashes of the patches that checkouts may have in them."""


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_patch_has_insertions_only_and_only_our_lines(name: str) -> None:
    """`parse` refuses context, deletions and text after the second @@; a line of upstream's would not speak of us."""
    host = load(name)
    assert p.blob_hash(host.patch.raw)[:12] == PUBLISHED[name], "a checkout patched by it could not be reversed"
    assert p.parse(host.patch.raw) == host.patch
    for insertions in host.patch.files.values():
        for insertion in insertions:
            for line in insertion.lines:
                assert b"cmi" in line.replace(b"ddplug", b"cmi"), line
    changed = [line for line in host.patch.raw.split(b"\n") if not line.startswith((b"--- a/", b"+++ b/", b"@@ -"))]
    assert all(line.startswith(b"+") for line in changed if line)
    assert {line[-4:] for line in host.patch.raw.split(b"\n") if line.startswith(b"@@")} <= {b"0 @@", *_ends()}


def _ends() -> set[bytes]:
    return {b"%d @@" % digit for digit in range(10)}


@pytest.mark.parametrize("name", SHIPPED + SCRIPTS)
def test_a_shipped_host_has_a_page_and_is_in_the_help(name: str) -> None:
    host, docs = load(name), Path(__file__).parents[2] / "docs/hosts"
    (page,) = [path for path in docs.glob("*.md") if f"ddplug run {name} " in path.read_text() and path.stem != "own"]
    assert host.commit in page.read_text()
    assert f"({page.name}{f'#{name}' if name in SCRIPTS else ''})" in (docs / "README.md").read_text()
    assert name in CliRunner().invoke(app, ["run", "--help"]).output


@pytest.mark.parametrize("page", ["README.md", "scripts.md"])
def test_the_tables_of_hosts_are_current(page: str) -> None:
    docs = Path(__file__).parents[2] / "docs/hosts"
    text = (docs / page).read_text(encoding="utf-8")
    assert runpy.run_path(str(docs / "make.py"))["written"](text) == text, "run docs/hosts/make.py"


@pytest.mark.parametrize("name", SHIPPED + SCRIPTS)
def test_a_shipped_record_is_whole(name: str) -> None:
    host = load(name)
    assert len(host.commit) == 40
    assert all(len(wanted) == 40 for wanted in host.files.values())
    assert host.licence in ("MIT", "none") or name in SCRIPTS
    assert host.script in host.files
    assert set(host.run or ()) <= set(_Run.__annotations__)
    for at in (host.run or {}).get("at", ()):
        file, _, place = at.partition(":")
        assert not place.isdigit() or any(known.endswith(file) for known in host.files), "lines move with other commits"
    for file, insertions in host.patch.files.items():
        assert set(host.places.get(file, {})) <= {insertion.after for insertion in insertions}, "places of no insertion"


def test_an_unknown_host_is_named_with_those_that_are_known() -> None:
    with pytest.raises(HostError, match=r"hosts.toml of ddplug.patches; it has .*dm"):
        load("gm")


def test_the_command(repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ddplug.attaching import registry
    from ddplug.cli import hosts as cli_hosts
    from ddplug.hosting.host import Host

    ours = type("Ours", (Host,), {"name": "ours", "spec": lambda adapter: spec()})
    monkeypatch.setitem(registry._ADAPTERS, "ours", ours)
    command: Callable[..., None] = cli_hosts.patch
    before = tree(repo)
    command("ours", repo, check=True, reverse=False, diff=False)
    assert "loop.py: the patch fits" in capsys.readouterr().out
    command("ours", repo, check=False, reverse=False, diff=True)
    assert capsys.readouterr().out.encode() == RAW
    assert tree(repo) == before
    command("ours", repo, check=False, reverse=False, diff=False)
    assert "loop.py: patched" in capsys.readouterr().out
    command("ours", repo, check=True, reverse=False, diff=False)
    assert "loop.py: patched" in capsys.readouterr().out
    command("ours", repo, check=False, reverse=True, diff=False)
    assert tree(repo) == before
    with pytest.raises(ValueError, match="one of"):
        command("ours", repo, check=True, reverse=True, diff=False)
