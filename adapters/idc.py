"""IDC (snu-mllab/Efficient-Dataset-Condensation, condense.py): a step per class, several views formed of each image.

The stored images are in [0, 1]; the host's augmentation normalises them, real and synthetic ones in one batch, so the
layer goes on the synthetic rows of what it returns. Each step of the image optimizer covers one class: a round is that
class's step, and no other class's rows get a gradient. `condense_mp.py`, the same loop over a part of the classes, is
patched along.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ddplug.adapters import register
from ddplug.datasets.images import ImageData
from ddplug.datasets.spaces import InputSpace
from ddplug.datasets.synthetic import SyntheticSet, load_set
from ddplug.errors import HostError
from ddplug.hosting.adapter import UpstreamAdapter, stacked
from ddplug.hosting.arguments import TORCHVISION_FILES, absolute, option, refuse, refuse_short
from ddplug.proxies.idc_checkpoints import PRETRAINED, read
from ddplug.proxies.pool import ProxyPool

FILES = {
    "cifar10": TORCHVISION_FILES["CIFAR10"],
    "cifar100": TORCHVISION_FILES["CIFAR100"],
    "svhn": "svhn/train_32x32.mat",
    "mnist": TORCHVISION_FILES["MNIST"],
    "fashion": TORCHVISION_FILES["FashionMNIST"],
}
"""By the host's name for a data set, what has to be in the folder of its option --data_dir."""

DATA = "/data_large/readonly"
"""The host's default of --data_dir."""

LEAST = 50
"""Outer iterations that the host needs: it logs every n // 50 of them."""


@register("idc")
class IDC(UpstreamAdapter):
    """Labels are those of the images formed; the experts are what the host's pretrain.py left in its folder."""

    name = "idc"
    class_by_class = True

    def setting(self, args: Any) -> tuple[str, str, int]:
        """As the options say; the name of the data set tells ImageNet's subsets apart."""
        return "idc", args.datatag.lower(), args.ipc

    def record(self, args: Any, known: Mapping[str, Any]) -> Path:
        """In the folder of the experiment."""
        return Path(args.save_dir) / "cmi.json"

    def space(self, args: Any, known: Mapping[str, Any]) -> InputSpace:
        """Normalised after the augmentation, [0, 1] before it."""
        normalized = InputSpace.normalized(*known["space"])
        views = getattr(args, "cmi_views", self.views)
        return normalized if views == "host" else InputSpace.unit(normalized.channels)

    def experts(self, args: Any, known: Mapping[str, Any]) -> ProxyPool | None:
        """What pretrain.py left in the folder in which the host itself would look."""
        folders = sorted(Path(PRETRAINED, args.datatag).glob(f"{args.modeltag}_cut*"))
        if not any(any(folder.glob("checkpoint*.pth.tar")) for folder in folders):
            return None
        return read(folders, args.datatag, InputSpace.normalized(*known["space"]), lambda: self.network(args, known))

    def real(self, args: Any, known: Mapping[str, Any]) -> ImageData | None:
        """The host's training images, which it has in [0, 1], and its test images, which it has normalised.

        None for ImageNet, whose images are too many to be held twice: there, name proxies or pretrain some.
        """
        if args.dataset == "imagenet":
            return None
        space = InputSpace.normalized(*known["space"])
        train, train_labels = stacked(known["train"])
        test, test_labels = stacked(known["test"])
        names = getattr(known["train"], "classes", None) or range(known["train"].nclass)
        return ImageData(
            args.dataset, tuple(map(str, names)), space, space.from_unit(train), train_labels, test, test_labels
        )

    def comparable(self, arguments: Sequence[str]) -> None:
        """Seeds are ours to say; only sets of which we know how to take an image apart can be judged."""
        refuse_short(
            arguments,
            ("seed", "data_dir", "imagenet_dir", "dataset", "ipc", "niter", "inner_loop", "factor", "decode_type",
             "reproduce", "test"),
        )  # fmt: skip
        refuse(arguments, ("seed",))
        kind = option(arguments, "decode_type", "single")
        if kind != "single":
            raise HostError(f"sets of --decode_type {kind} cannot be judged here, only those of single.")

    def command(self, arguments: Sequence[str], folder: Path) -> list[str]:
        """With --test, which leaves out evaluations and nothing else, and saves in one folder whatever the options.

        The host looks for networks that it has pretrained where it is started.
        """
        trained = Path(PRETRAINED).resolve()
        if trained.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / PRETRAINED).symlink_to(trained, target_is_directory=True)
        places = absolute(arguments, {"data_dir": DATA, "imagenet_dir": "/ssd_data/imagenet/"})
        return [*arguments, *places, "--test"]

    def saved(self, folder: Path, arguments: Sequence[str]) -> dict[int, SyntheticSet]:
        """The last set, its images taken apart; iterations are outer ones, by the options that the host noted."""
        found = folder / "results/test/data.pt"
        if not found.is_file():
            return {}
        ran = argparse.Namespace(**json.loads(found.with_name("args.txt").read_text(encoding="utf-8")))
        return {_iterations(ran) or 0: load_set(found)}

    def told(self, arguments: Sequence[str]) -> tuple[str, str, int]:
        """As the options say."""
        given = _arguments(arguments)
        return self.name, given.dataset.lower(), _number(given.ipc) or 0

    def views_per_class(self, arguments: Sequence[str]) -> int:
        """An image holds the square of the factor."""
        return self.told(arguments)[2] * (_number(_arguments(arguments).factor) or 1) ** 2

    def preflight(self, arguments: Sequence[str]) -> None:
        """Is the data set there, are there images to make, and enough iterations for the host to divide by?"""
        given = _arguments(arguments)
        wanted = FILES.get(given.dataset)
        if wanted is not None and not (Path(given.data_dir) / wanted).exists():
            raise HostError(
                f"{self.name} would look for {given.dataset} in '{given.data_dir}', where there is no {wanted}, and "
                "it does not fetch any data. Name the folder that has it: -- --data_dir FOLDER. Nothing was changed."
            )
        ipc, iterations = _number(given.ipc), _iterations(given)
        if ipc is not None and ipc <= 0:
            raise HostError(
                f"{self.name} needs the number of images per class, got {ipc}: -- --ipc 10. Nothing was changed."
            )
        if iterations is not None and iterations < LEAST and not given.reproduce:
            raise HostError(
                f"--niter {given.niter} and --inner_loop {given.inner_loop} make {iterations} outer "
                f"iterations (niter * 100 // inner_loop); below {LEAST}, {self.name} divides by zero at its first log "
                "line. Give a larger --niter or a smaller --inner_loop. Nothing was changed."
            )

    def network(self, args: Any, known: Mapping[str, Any]) -> nn.Module:
        """A fresh network of the host's own, as its options have it."""
        network: nn.Module = known["network"](args, known["train"].nclass)
        return network


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Those of the host's options that we look at, unconverted, with the host's defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-d", "--dataset", default="cifar10")
    parser.add_argument("--data_dir", default=DATA)
    parser.add_argument("-i", "--ipc", default="-1")
    parser.add_argument("-f", "--factor", default="1")
    parser.add_argument("--niter", default="500")
    parser.add_argument("--inner_loop", default="100")
    parser.add_argument("--reproduce", action="store_true")
    return parser.parse_known_args(list(arguments))[0]


def _iterations(given: argparse.Namespace) -> int | None:
    """Outer iterations; None for what the host will refuse by itself."""
    niter, inner = _number(given.niter), _number(given.inner_loop)
    return niter * 100 // inner if niter is not None and inner else None


def _number(text: object) -> int | None:
    """A whole number; None for what the host will refuse by itself."""
    try:
        return int(str(text))
    except ValueError:
        return None
