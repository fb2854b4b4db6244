"""DATM (NUS-HPC-AI-Lab/DATM, distill/DATM.py): MTT's loop, with learnable soft labels and steps that may be skipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ddplug.datasets.synthetic import SyntheticSet
from ddplug.errors import HostError
from ddplug.hosting.arguments import option
from ddplug.hosting.shapes import MTTLike
from ddplug.utils.files import replacing, user_path

CONFIG = "config.yaml"


class DATM(MTTLike):
    """Options are in a YAML file. The class of an image is its place in the set, as the labels are learned logits."""

    defaults: Mapping[str, Any] = MappingProxyType({
        "dataset": "CIFAR10", "model": "ConvNet", "ipc": 1, "Iteration": 5000, "zca": True, "data_path": "../dataset/",
        "buffer_path": "../buffer_storage/",
    })  # fmt: skip
    compare = ()  # evaluations are turned off in the configuration that `command` writes
    spelt_out = ("cfg",)
    record_path = "logged_files/{args.dataset}/{args.ipc}/{args.model}/{run}/cmi.json"

    def options(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Options of the configuration file, the host's defaults for the rest; `HostError` if the file is missing."""
        return read_config(self.name, arguments, "cfg", self.defaults)

    def command(self, arguments: Sequence[str], folder: Path) -> list[str]:
        """Write the configuration with absolute folders and without evaluations to `folder`, and name it last."""
        given = self.options(arguments)
        places = {name: str(user_path(given[name]).resolve()) for name in self.folders}
        ours = {**places, "num_eval": 0, "eval_it": self.saves, "skip_first_eva": True}
        return [*arguments, "--cfg", write_config(self.name, {**given, **ours}, folder)]

    def saved(self, folder: Path, arguments: Sequence[str]) -> dict[int, SyntheticSet]:
        """The sets with the labels and the rate learned so far, by the configuration of the run."""
        return super().saved(folder, ("--cfg", str(folder / CONFIG)))

    def extra_inputs(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The configuration and the experts."""
        return {"configuration": self.options(arguments), **super().extra_inputs(arguments)}


def read_config(host: str, arguments: Sequence[str], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Options in the YAML file that the option `name` names, without its sections; `defaults` for the rest.

    Raises `HostError` if there is no such file, or an option is of another type than its default.
    """
    config = Path(option(arguments, name, ""))
    if not config.is_file():
        raise HostError(
            f"{host} takes its options from a file, and '{config}' is not one. Name one: -- --{name} FILE.yaml; "
            "samples are in the checkout. Nothing was changed."
        )
    yaml = _yaml(host)
    try:
        settings = {**defaults, **_flat(yaml.safe_load(config.read_text(encoding="utf-8")) or {})}
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
        raise HostError(f"'{config}' is not a configuration file: {error}. Nothing was changed.") from error
    for key, default in defaults.items():
        if type(settings[key]) is not type(default):
            kind = {str: "text", int: "a whole number", bool: "True or False"}[type(default)]
            raise HostError(f"{key} in '{config}' is {settings[key]!r}, expected {kind}. Nothing was changed.")
    return settings


def write_config(host: str, settings: Mapping[str, Any], folder: Path) -> str:
    """Write options to a YAML file in `folder`; its path."""
    config = folder / CONFIG
    with replacing(config) as temporary:
        temporary.write_text(_yaml(host).safe_dump(dict(settings)), encoding="utf-8")
    return str(config)


def _flat(section: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a section and of those in it."""
    made: dict[str, Any] = {}
    for name, value in section.items():
        made |= _flat(value) if isinstance(value, Mapping) else {name: value}
    return made


def _yaml(host: str) -> Any:
    """The module that the host reads its configuration with."""
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise HostError(f"{host} needs yaml; install with: pip install pyyaml") from error
    return yaml
