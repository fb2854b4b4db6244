"""What a release is made of: both distributions built and checked, the files around them of one version."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import ddplug

ROOT = Path(__file__).parents[2]
MADE_HERE = shutil.ignore_patterns(
    ".git", ".venv", "*.egg-info", "__pycache__", "site", "build", "dist", ".*_cache", ".hypothesis"
)  # fmt: skip
HEADING = re.compile(r"^## \[(\d+\.\d+\.\d+)\](?: - (?:unreleased|\d{4}-\d\d-\d\d))?$", re.MULTILINE)
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def run(*arguments: object, cwd: Path) -> str:
    ran = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both distributions, the wheel built from the source distribution, from a copy that gets no build folder."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("release")
    shutil.copytree(ROOT, folder / "source", ignore=MADE_HERE)
    run("-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source", cwd=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def unpacked(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (made,) = dist.glob("*.tar.gz")
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(made) as archive:
        archive.extractall(folder, filter="data")
    (top,) = folder.iterdir()
    return top


def test_both_are_of_this_version_and_pass_the_checks(dist: Path) -> None:
    pytest.importorskip("twine")
    pytest.importorskip("check_wheel_contents")
    made = sorted(path.name for path in dist.iterdir())
    assert made == [f"ddplug-{ddplug.__version__}-py3-none-any.whl", f"ddplug-{ddplug.__version__}.tar.gz"]
    said = run("-m", "twine", "check", "--strict", *dist.iterdir(), cwd=dist)
    assert said.count("PASSED") == 2
    assert "OK" in run("-m", "check_wheel_contents", dist / made[0], cwd=dist)


def test_the_source_distribution_holds_all_that_is_tracked(unpacked: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lacking = [name for name in tracked.splitlines() if (ROOT / name).exists() and not (unpacked / name).exists()]
    assert lacking == []


def test_tests_run_from_the_source_distribution(unpacked: Path, tmp_path: Path) -> None:
    """Installed from it, beside no checkout: some tests run, and those about the project's files can be collected."""
    installed = tmp_path / "installed"
    pip = ("-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, "--no-index", "--no-deps", "--no-build-isolation", "--target", installed, unpacked, cwd=tmp_path)
    program = f"""
import sys; sys.path.insert(0, {str(installed)!r})
import pytest, ddplug
assert ddplug.__file__.startswith({str(installed)!r}), ddplug.__file__
sys.exit(pytest.main(sys.argv[1:]) or pytest.main(["--collect-only", "-qq", "tests/project"]))
"""
    said = run("-c", program, "-q", "tests/terms/test_terms.py", cwd=unpacked)
    assert " passed" in said
    assert "tests/project/test_release.py" in said


def test_the_changelog_keeps_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = HEADING.findall(text)
    assert len(versions) == len(re.findall("^## ", text, re.MULTILINE)), "a heading of another form"
    assert versions[0] == ddplug.__version__
    numbers = [tuple(map(int, version.split("."))) for version in versions]
    assert numbers == sorted(numbers, reverse=True)
    for part in HEADING.split(text)[2::2]:
        kinds = re.findall("^### (.+)$", part, re.MULTILINE)
        assert set(kinds) <= KINDS
        assert len(kinds) == len(set(kinds)), "each kind once a version"


def test_how_to_cite_is_complete() -> None:
    said: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert said["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(said)
    assert said.get("version", ddplug.__version__) == ddplug.__version__
    (paper,) = said["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert paper["url"].endswith("/2412.09945")


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_workflows_can_be_read_and_call_what_is_there(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name != "workflows":
        return
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for job in content["jobs"].values():
        for step in job["steps"]:
            for extra in re.findall(r"-e '\.\[(\w+)\]'", step.get("run", "")):
                assert f"\n{extra} = [" in extras
            for script in re.findall(r"bash (\S+)", step.get("run", "")):
                assert (ROOT / script).is_file()


def test_hooks_before_a_commit_call_what_ci_calls() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    asked = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert len(hooks) == 3
    for hook in hooks:
        assert " ".join(word for word in hook["entry"].split() if not word.startswith("--")) in asked, hook["id"]
