"""The regulariser's options are said once: hosts, commands, comparisons and the layer itself have them from there."""

from __future__ import annotations

import argparse
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import ddplug
from ddplug.cli.app import app
from ddplug.core.options import ABOUT, HOSTS, Options, meant, renamed
from ddplug.hosting.options import add_config, add_options, options_of
from ddplug.lab.folder import SETTINGS, differing
from ddplug.lab.plan import Settings

RESULTS = sorted(Path(__file__).parents[2].glob("docs/results/*/compare.json"))


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


def test_hosts_understand_the_former_name() -> None:
    assert said("--cmi_space", "logit")["representation"] == "logit"
    assert said("--cmi_representation", "pooled")["representation"] == "pooled"
    assert options_of(argparse.Namespace(cmi_space="logit"))["representation"] == "logit"


@pytest.mark.parametrize("command", ["run", "compare"])
def test_commands_have_the_layers_options(command: str) -> None:
    found = {option.name: option for option in get_command(app).commands[command].params}  # type: ignore[attr-defined]
    ours = [name for name in found if name in ABOUT]
    assert set(ours) == {"run": {*HOSTS}, "compare": {*HOSTS, "compile"} - {"seed"}}[command]
    for name in ours:
        assert meant(name, found[name].default) == ABOUT[name].default
        assert found[name].help
    assert "--space" in found["representation"].opts


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(ddplug.InputError, match="chunk must be auto or a number, got 'few'"):
        meant("chunk", "few")


# --- records


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_published_comparisons_are_those_of_the_same_options(path: Path, tmp_path: Path) -> None:
    """Records of the former name, with every option said or only those that are not the default, are recognised."""
    record = json.loads(path.read_text(encoding="utf-8"))
    given = record["settings"]["regularizer"]
    (tmp_path / SETTINGS).write_text(json.dumps({"settings": record["settings"]}), encoding="utf-8")
    for options in (given, {name: value for name, value in renamed(given).items() if value != ABOUT[name].default}):
        settings = Settings(**{**record["settings"], "regularizer": options})
        written = {**record["settings"], "regularizer": settings.to_json()["regularizer"]}
        assert "space" not in written["regularizer"]
        assert not differing(tmp_path, {"settings": written})
    other = {**renamed(given), "representation": "pooled"}
    expected = [f"representation ({renamed(given)['representation']} there, pooled asked for)"]
    assert differing(tmp_path, {"settings": {**record["settings"], "regularizer": other}}) == expected


def test_there_are_published_comparisons() -> None:
    assert RESULTS
