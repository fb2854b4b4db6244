"""The regulariser's options are said once: hosts, commands, comparisons and the layer itself have them from there."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.main import get_command

import ddplug
from ddplug.cli.app import app
from ddplug.core.flags import COMPARED, FLAGS, HOSTS, keywords, read
from ddplug.core.regularizer import Options
from ddplug.hosting.options import add_config, add_options, options_of
from ddplug.lab.folder import SETTINGS, differing
from ddplug.lab.plan import Settings
from ddplug.utils.files import write_json


def test_flags_have_the_layers_defaults(pool: ddplug.ProxyPool) -> None:
    plain, flagged = ddplug.Regularizer(pool), ddplug.Regularizer(pool, **keywords(3.0))
    assert flagged.settings() == plain.settings()
    assert (flagged.weighting, flagged.compute, flagged.weight) == (plain.weighting, plain.compute, plain.weight)


def test_the_default_weight_depends_on_its_meaning(pool: ddplug.ProxyPool) -> None:
    """A default share of 3 is no lambda of 3, and not three times the paper's."""
    for weighting, weight in (("relative", 3.0), (ddplug.Relative(4), 3.0), ("sustained", 1.0), ("absolute", 1.0)):
        assert ddplug.Regularizer(pool, weighting=weighting).weight == weight
    assert ddplug.Regularizer(pool, weighting=ddplug.paper("dm", "cifar10", 10)).lam == 8000
    trainer = SimpleNamespace(augment=lambda images: images)
    for more, weight in (({}, 3.0), ({"weighting": "sustained"}, 1.0), ({"weight": 2}, 2.0)):
        handle = ddplug.attach(trainer, proxies=pool, at="augment", labels=ddplug.one_class_per_call(3), **more)
        assert handle.regularizer.weight == weight
        with pytest.warns(ddplug.DDPlugWarning, match="never came into action"):
            handle.detach()


def test_every_flag_has_its_field() -> None:
    found = keywords(
        0.5, term="ncmi", weighting="sustained", every=2, representation="feature", temperature=0.5, calibrate=3,
        draw=4, classes=None, precision="exact", chunk=6, views_per_image=7, seed=8, compile=True,
    )  # fmt: skip
    assert found.pop("term").settings() == ddplug.terms.make("ncmi", temperature=0.5).settings()
    assert found == {
        "weight": 0.5, "weighting": ddplug.Sustained(3), "representation": "feature",
        "views": ddplug.Views(7), "seed": 8,
        "compute": ddplug.Compute(precision="exact", chunk=6, every=2, draw=4, compile=True),
    }  # fmt: skip


def test_the_papers_weight_as_a_flag() -> None:
    found = keywords("paper", ("dm", "cifar10", 10), calibrate=3)
    assert (found["weight"], found["weighting"]) == (1.0, ddplug.paper("dm", "cifar10", 10))
    for term in ("cmi_real", "proxy_ce", "cmi+0.3*ncmi"):
        with pytest.raises(ddplug.errors.InputError, match="weight paper is for CMI within the batch"):
            keywords("paper", ("dm", "cifar10", 10), term=term)
    with pytest.raises(ddplug.errors.InputError, match="hosts with a patch only"):
        keywords("paper")


def test_attach_takes_the_layers_options() -> None:
    """Written out for editors: by the same names and types."""
    own = inspect.get_annotations(ddplug.Regularizer.__init__)
    for name, kind in Options.__annotations__.items():
        assert own[name] == kind.__forward_arg__
    assert set(own) - set(Options.__annotations__) == {"pool", "weight", "data", "return"}


@pytest.mark.parametrize("name", FLAGS)
def test_what_is_spelt_is_read(name: str) -> None:
    about = FLAGS[name]
    values = [about.default, *(about.choices or ()), *([True] if isinstance(about.default, bool) else [])]
    values += [] if isinstance(about.default, bool) or about.choices or about.scalar is str else [3]
    for value in values:
        spelt = about.written(value)
        assert isinstance(spelt, int | float | str)
        assert not isinstance(spelt, bool)
        assert read(name, spelt) == value
        assert read(name, about.scalar(str(spelt))) == value, "as argparse reads it"


def said(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return options_of(parser.parse_args(arguments))


def test_hosts_have_the_layers_defaults() -> None:
    assert {name: said()[name] for name in HOSTS} == {name: FLAGS[name].default for name in HOSTS}
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
    ours = [name for name in found if name in FLAGS]
    assert set(ours) == {"run": {*HOSTS}, "compare": {*HOSTS, "compile"} - {"seed"}}[command]
    for name in ours:
        assert read(name, found[name].default) == FLAGS[name].default
        assert found[name].help


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(ddplug.errors.InputError, match="chunk must be auto or a number, got 'few'"):
        read("chunk", "few")


# --- records


def test_a_comparison_notes_every_option_and_names_those_that_differ(tmp_path: Path) -> None:
    made, other = (Settings(regularizer={"draw": draw}).to_json() for draw in (1, 2))
    assert made == Settings().to_json()
    assert set(made["regularizer"]) == set(COMPARED)
    write_json({"settings": made}, tmp_path / SETTINGS)
    assert not differing(tmp_path, {"settings": made}, "")
    assert differing(tmp_path, {"settings": other}, "") == ["draw (1 there, 2 asked for)"]
