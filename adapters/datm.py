"""DATM (NUS-HPC-AI-Lab/DATM, distill/DATM.py): as MTT, with learnable soft labels and a step that is gated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddplug.adapters import register
from ddplug.adapters.mtt import MTT, check_buffer
from ddplug.errors import HostError
from ddplug.upstream import check_data, option

DEFAULTS: dict[str, Any] = {
    "dataset": "CIFAR10", "model": "ConvNet", "zca": True, "data_path": "../dataset/",
    "buffer_path": "../buffer_storage/",
}  # fmt: skip
"""What the host takes where its configuration file says nothing."""


@register("datm")
class DATM(MTT):
    """The class of an image is its place in the set, as the host's own labels are logits that it learns.

    Where the host leaves out its step, because the loss is above the threshold, the round is left out too: it is
    neither counted nor part of the measurement of lambda.
    """

    name = "datm"

    def record(self, args: Any, known: Mapping[str, Any]) -> Path:
        """Beside the folder where the host saves its images."""
        return Path("logged_files", args.dataset, str(args.ipc), args.model, str(known["run"]), "cmi.json")

    def preflight(self, arguments: Sequence[str]) -> None:
        """Are the configuration, the data set and the experts there?"""
        config = Path(option(arguments, "cfg", ""))
        if not config.is_file():
            raise HostError(
                f"{self.name} takes its options from a file, and '{config}' is none. Name one: -- --cfg FILE.yaml; "
                "samples are in the checkout's folder configs. Nothing was changed."
            )
        try:
            import yaml  # type: ignore[import-untyped]
        except ImportError:
            return  # the host needs it too, and whoever runs the host says so
        try:
            read = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
            settings = {**DEFAULTS, **read}
        except (yaml.YAMLError, TypeError, UnicodeDecodeError) as error:
            raise HostError(f"'{config}' is no configuration file: {error}. Nothing was changed.") from error
        check_data(self.name, settings["dataset"], settings["data_path"])
        if settings["dataset"] in ("CIFAR10", "CIFAR100", "Tiny"):
            check_buffer(
                self.name, Path(settings["buffer_path"]), settings["dataset"], settings["model"], bool(settings["zca"])
            )
