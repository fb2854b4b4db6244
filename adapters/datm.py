"""DATM (NUS-HPC-AI-Lab/DATM, distill/DATM.py): as MTT, with learnable soft labels and a step that is gated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddplug.adapters import register
from ddplug.datasets.synthetic import SyntheticSet
from ddplug.errors import HostError
from ddplug.hosting.arguments import option
from ddplug.hosting.mtt_like import SAVES, MTTLike
from ddplug.utils.files import replacing, user_path

DEFAULTS: dict[str, Any] = {
    "dataset": "CIFAR10", "model": "ConvNet", "ipc": 1, "Iteration": 5000, "zca": True, "data_path": "../dataset/",
    "buffer_path": "../buffer_storage/",
}  # fmt: skip
"""What the host takes where its configuration file says nothing."""
CONFIG = "config.yaml"


@register("datm")
class DATM(MTTLike):
    """The class of an image is its place in the set, as the host's own labels are logits that it learns.

    A step is left out where the loss is above the threshold, and the round with it.
    """

    name = "datm"
    defaults = DEFAULTS
    reserved = ()  # evaluations are said in the configuration, which `command` writes anew
    spelt_out = ("cfg",)

    def record(self, args: Any, context: Mapping[str, Any]) -> Path:
        """Beside the folder where the host saves its images."""
        return Path("logged_files", args.dataset, str(args.ipc), args.model, str(context["run"]), "cmi.json")

    def options(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Options of the configuration file, the host's defaults for the rest; `HostError` if the file is missing."""
        config = Path(option(arguments, "cfg", ""))
        if not config.is_file():
            raise HostError(
                f"{self.name} takes its options from a file, and '{config}' is none. Name one: -- --cfg FILE.yaml; "
                "samples are in the checkout's folder configs. Nothing was changed."
            )
        yaml = _yaml(self.name)
        try:
            settings = {**DEFAULTS, **(yaml.safe_load(config.read_text(encoding="utf-8")) or {})}
        except (yaml.YAMLError, TypeError, UnicodeDecodeError) as error:
            raise HostError(f"'{config}' is no configuration file: {error}. Nothing was changed.") from error
        for name, default in DEFAULTS.items():
            if type(settings[name]) is not type(default):
                kind = {str: "text", int: "a whole number", bool: "True or False"}[type(default)]
                raise HostError(f"{name} in '{config}' is {settings[name]!r}, expected {kind}. Nothing was changed.")
        return settings

    def command(self, arguments: Sequence[str], folder: Path) -> list[str]:
        """The configuration with its folders made absolute and no networks to evaluate, in a file of its own."""
        given = self.options(arguments)
        places = {name: str(user_path(given[name]).resolve()) for name in ("data_path", "buffer_path")}
        config = folder / CONFIG
        ours = {**places, "num_eval": 0, "eval_it": SAVES, "skip_first_eva": True}
        with replacing(config) as temporary:
            temporary.write_text(_yaml(self.name).safe_dump({**given, **ours}), encoding="utf-8")
        return [*arguments, "--cfg", str(config)]  # the last one counts

    def saved(self, folder: Path, arguments: Sequence[str]) -> dict[int, SyntheticSet]:
        """The same, with the labels and the rate learned so far; by the configuration that the run had."""
        return super().saved(folder, ("--cfg", str(folder / CONFIG)))

    def extra_inputs(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The configuration and the experts."""
        return {"configuration": self.options(arguments), **super().extra_inputs(arguments)}


def _yaml(host: str) -> Any:
    """The module that the host reads its configuration with."""
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise HostError(f"{host} needs yaml; install with: pip install pyyaml") from error
    return yaml
