"""The regulariser's options are said once: hosts, commands, comparisons and the layer itself have them from there."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import ddplug
from ddplug.cli.app import app
from ddplug.core.options import ABOUT, COMPARED, HOSTS, Options, meant
from ddplug.hosting.options import add_config, add_options, options_of
from ddplug.lab.folder import SETTINGS, differing
from ddplug.lab.plan import Settings
from ddplug.utils.files import write_json


def test_the_layers_defaults_are_these() -> None:
    parameters = inspect.signature(ddplug.Regularizer).parameters
    for name, about in ABOUT.items():
        assert (name, parameters[name].default) == (name, about.default)
        assert parameters[name].annotation == Options.__annotations__[name]


@pytest.mark.parametrize("name", ABOUT)
def test_what_is_spelt_is_meant(name: str) -> None:
    about = ABOUT[name]
    values = [about.default, *(about.choices or ()), *([True] if isinstance(about.default, bool) else [])]
    values += [] if isinstance(about.default, bool) or about.choices or about.scalar is str else [3]
    for value in values:
        spelt = about.spell(value)
        assert isinstance(spelt, int | float | str)
        assert not isinstance(spelt, bool)
        assert meant(name, spelt) == value
        assert meant(name, about.scalar(str(spelt))) == value, "as argparse reads it"


def said(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return options_of(parser.parse_args(arguments))


def test_hosts_have_the_layers_defaults() -> None:
    assert {name: said()[name] for name in HOSTS} == {name: ABOUT[name].default for name in HOSTS}
    config = argparse.Namespace()
    add_config(config)
    assert {name: value for name, value in options_of(config).items() if name != "inner"} == {
        name: value for name, value in said().items() if name != "inner"
    }


def test_hosts_say_none_as_zero() -> None:
    found = said("--cmi_classes", "0", "--cmi_chunk", "0")
    assert (found["classes"], found["chunk"]) == (None, "auto")
    found = said("--cmi_classes", "3", "--cmi_chunk", "64")
    assert (found["classes"], found["chunk"]) == (3, 64)


@pytest.mark.parametrize("command", ["run", "compare"])
def test_commands_have_the_layers_options(command: str) -> None:
    found = {option.name: option for option in get_command(app).commands[command].params}  # type: ignore[attr-defined]
    ours = [name for name in found if name in ABOUT]
    assert set(ours) == {"run": {*HOSTS}, "compare": {*HOSTS, "compile"} - {"seed"}}[command]
    for name in ours:
        assert meant(name, found[name].default) == ABOUT[name].default
        assert found[name].help


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(ddplug.InputError, match="chunk must be auto or a number, got 'few'"):
        meant("chunk", "few")


# --- records


def test_a_comparison_notes_every_option_and_names_those_that_differ(tmp_path: Path) -> None:
    made, other = (Settings(regularizer={"draw": draw}).to_json() for draw in (1, 2))
    assert made == Settings().to_json()
    assert set(made["regularizer"]) == set(COMPARED)
    write_json({"settings": made}, tmp_path / SETTINGS)
    assert not differing(tmp_path, {"settings": made})
    assert differing(tmp_path, {"settings": other}) == ["draw (1 there, 2 asked for)"]
