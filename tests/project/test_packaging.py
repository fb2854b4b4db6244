"""The wheel: built and installed without a network, it is whole and stands on its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
VERSION = "9.8.7"
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "ddplug", "adapters", "patches")


def python(*arguments: object, cwd: Path, path: Path | None = None) -> str:
    """What a fresh interpreter prints, with `path` first on its search path."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_"))}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    ran = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, so that the checkout gets no build folder; no torch, another version."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source, target = ROOT / name, folder / "source" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
    init = folder / "source" / "ddplug" / "__init__.py"
    init.write_text(re.sub(r'(?m)^__version__ = ".*"$', f'__version__ = "{VERSION}"', init.read_text()))
    (folder / "without" / "torch").mkdir(parents=True)
    (folder / "without" / "torch" / "__init__.py").write_text("raise ImportError('torch was asked for in a build')")
    python("-m", "pip", "--disable-pip-version-check", "wheel", "--no-index", "--no-deps", "--no-build-isolation",
           "-w", folder, folder / "source", cwd=folder, path=folder / "without")  # fmt: skip
    (made,) = folder.glob("ddplug-*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    python("-m", "pip", "--disable-pip-version-check", "install", "--no-index", "--no-deps", "--no-compile",
           "--target", target, wheel, cwd=target)  # fmt: skip
    return target


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("LICENSE")]
    sources = (path for path in (ROOT / "ddplug").rglob("*") if path.suffix in (".py", ".typed", ".j2"))
    wanted = {path.relative_to(ROOT).as_posix() for path in sources}
    wanted |= {f"ddplug/adapters/{path.name}" for path in (ROOT / "adapters").glob("*.py")}
    wanted |= {f"ddplug/patches/{path.name}" for path in (ROOT / "patches").iterdir()
               if path.suffix in (".py", ".patch", ".toml")}  # fmt: skip
    assert held == wanted
    assert licences


def test_the_installed_package_stands_on_its_own(installed: Path, tmp_path: Path) -> None:
    program = """
import importlib.resources, pathlib
import ddplug, ddplug.adapters
patches = importlib.resources.files("ddplug.patches")
typed = importlib.resources.files("ddplug") / "py.typed"
assert patches.is_dir() and typed.is_file()
for place in (ddplug.__file__, ddplug.adapters.__file__, patches):
    print(pathlib.Path(str(place)).resolve())
"""
    places = [Path(line) for line in python("-c", program, cwd=tmp_path, path=installed).splitlines()]
    assert len(places) == 3
    assert all(place.is_relative_to((installed / "ddplug").resolve()) for place in places)


def test_the_installed_version_is_the_packages(wheel: Path, installed: Path, tmp_path: Path) -> None:
    program = """
import importlib.metadata, ddplug
print(ddplug.__version__, importlib.metadata.version("ddplug"))
"""
    assert python("-c", program, cwd=tmp_path, path=installed).split() == [VERSION, VERSION]
    assert wheel.name.startswith(f"ddplug-{VERSION}-")


def test_every_public_name_is_there() -> None:
    import ddplug

    assert sorted(set(ddplug.__all__)) == sorted(ddplug.__all__)
    assert all(hasattr(ddplug, name) for name in ddplug.__all__)


def test_the_heavier_modules_come_on_first_use(installed: Path, tmp_path: Path) -> None:
    program = "import ddplug; print(ddplug.networks.convnet(size=(8, 8)).spec['architecture'], ddplug.augment.DSA)"
    assert python("-c", program, cwd=tmp_path, path=installed).startswith("convnet <class 'ddplug.augment.dsa.DSA'>")
    assert "networks" in dir(__import__("ddplug"))


def test_importing_ddplug_loads_nothing_heavy(installed: Path, tmp_path: Path) -> None:
    heavy = ("kornia", "torchvision", "matplotlib", "sklearn", "typer", "rich", "safetensors")
    program = f"import sys, ddplug; print([name for name in {heavy!r} if name in sys.modules])"
    assert python("-c", program, cwd=tmp_path, path=installed).strip() == "[]"


def test_the_command_is_declared() -> None:
    from ddplug.cli.app import main

    found: Any = [entry for entry in entry_points(group="console_scripts") if entry.name == "ddplug"]
    assert found
    assert all(entry.load() is main for entry in found)
