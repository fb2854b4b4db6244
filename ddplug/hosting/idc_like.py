"""Hosts of IDC's shape: a step of the image optimizer per class, on several views formed of each image.

    cmi = ddplug_cmi.start('NAME', args, space=(mean, std), train=..., test=..., network=define_model)
    img_aug = cmi(img_aug, lab_syn, first=n)           # below the augmentation of n real and of the synthetic images

The stored images are in [0, 1]; the host's augmentation normalises them, real and synthetic ones in one batch, so the
layer goes on the synthetic rows of what it returns. A round is one class's step, and no other class's rows get a
gradient. Labels are those of the views. Option names are those of snu-mllab/Efficient-Dataset-Condensation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ddplug.datasets.images import ImageData
from ddplug.datasets.spaces import AnySpace, InputSpace
from ddplug.datasets.synthetic import SyntheticSet, load_set
from ddplug.errors import HostError
from ddplug.hosting.arguments import TORCHVISION_FILES, absolute, option
from ddplug.hosting.host import Host, linked
from ddplug.hosting.idc_checkpoints import PRETRAINED, read
from ddplug.hosting.names import stacked
from ddplug.proxies.pool import ProxyPool

FILES = {
    "cifar10": TORCHVISION_FILES["CIFAR10"],
    "cifar100": TORCHVISION_FILES["CIFAR100"],
    "svhn": "svhn/train_32x32.mat",
    "mnist": TORCHVISION_FILES["MNIST"],
    "fashion": TORCHVISION_FILES["FashionMNIST"],
}
"""Files that must be in the folder of the option --data_dir, by the host's name of a data set."""


class IDCLike(Host):
    """Experts are the networks that the host's pretrain.py left in its folder."""

    class_by_class = True
    defaults: Mapping[str, Any] = {
        "dataset": "cifar10", "data_dir": "/data_large/readonly", "ipc": -1, "factor": 1, "niter": 500,
        "inner_loop": 100, "reproduce": False,
    }  # fmt: skip
    short = ("dataset", "ipc", "factor")
    least = 50
    """Outer iterations that the host needs: it logs every n // least of them."""
    reserved: tuple[str, ...] = ("seed",)
    sets = "results/test/data.pt"
    """Where a run by `command` leaves its sets; of several, the one with the highest number in its name counts."""
    spelt_out = ("imagenet_dir", "decode_type", "test")

    def setting(self, args: Any) -> tuple[str, str, int]:
        """Return the setting by the options; `datatag`, where it exists, distinguishes ImageNet's subsets."""
        name, dataset, ipc = super().setting(args)
        return name, str(getattr(args, "datatag", dataset)).lower(), ipc

    def record(self, args: Any, context: Mapping[str, Any]) -> Path:
        """In the folder of the experiment."""
        return Path(args.save_dir) / "cmi.json"

    def space(self, args: Any, context: Mapping[str, Any]) -> AnySpace | None:
        """Normalised after the augmentation, [0, 1] before it."""
        if getattr(args, "cmi_views", self.views) == "host" or "space" not in context:
            return super().space(args, context)
        return InputSpace.unit(len(context["space"][0]))

    def experts(self, args: Any, context: Mapping[str, Any]) -> ProxyPool | None:
        """Load the networks that pretrain.py left in the folder in which the host itself would look."""
        if not (hasattr(args, "datatag") and hasattr(args, "modeltag")):
            return None
        folders = sorted(Path(PRETRAINED, args.datatag).glob(f"{args.modeltag}_cut*"))
        if not any(any(folder.glob("checkpoint*.pth.tar")) for folder in folders):
            return None
        space = InputSpace.normalized(*context["space"])
        return read(folders, args.datatag, space, lambda: self.network(args, context))

    def real(self, args: Any, context: Mapping[str, Any]) -> ImageData | None:
        """The host's training images, which it has in [0, 1], and its test images, which it has normalised.

        None for ImageNet, whose images are too many to be held twice: there, name proxies or pretrain some.
        """
        if not {"train", "test"} <= set(context) or args.dataset == "imagenet":
            return None
        space = InputSpace.normalized(*context["space"])
        train, train_labels = stacked(context["train"])
        test, test_labels = stacked(context["test"])
        names = getattr(context["train"], "classes", None) or range(context["train"].nclass)
        return ImageData(
            args.dataset, tuple(map(str, names)), space, space.from_unit(train), train_labels, test, test_labels
        )

    def network(self, args: Any, context: Mapping[str, Any]) -> nn.Module:
        """A fresh network of the host's own, as its options have it."""
        network: nn.Module = context["network"](args, context["train"].nclass)
        return network

    def preflight(self, arguments: Sequence[str]) -> None:
        """Is the data set there, are there images to make, and enough iterations for the host to divide by?"""
        given = self.options(arguments)
        wanted = FILES.get(given["dataset"])
        if wanted is not None and not (Path(given["data_dir"]) / wanted).exists():
            raise HostError(
                f"{self.name} would look for {given['dataset']} in '{given['data_dir']}', where there is no "
                f"{wanted}, and it does not fetch any data. Name the folder that has it: -- --data_dir FOLDER. Nothing "
                "was changed."
            )
        if given["ipc"] <= 0:
            raise HostError(
                f"{self.name} needs the number of images per class, got {given['ipc']}: -- --ipc 10. Nothing "
                "was changed."
            )
        iterations = _iterations(given)
        if iterations < self.least and not given["reproduce"]:
            raise HostError(
                f"--niter {given['niter']} and --inner_loop {given['inner_loop']} make {iterations} outer "
                f"iterations (niter * 100 // inner_loop); below {self.least}, {self.name} divides by zero at its first "
                "log line. Give a larger --niter or a smaller --inner_loop. Nothing was changed."
            )

    def comparable(self, arguments: Sequence[str]) -> None:
        """Seeds are ours to say; only sets of which we know how to take an image apart can be judged."""
        super().comparable(arguments)
        kind = option(arguments, "decode_type", "single")
        if kind != "single":
            raise HostError(f"sets of --decode_type {kind} cannot be judged here, only those of single.")

    def command(self, arguments: Sequence[str], folder: Path) -> list[str]:
        """With --test, which leaves out evaluations and nothing else, and saves in one folder whatever the options.

        The host looks for networks that it has pretrained where it is started.
        """
        linked(PRETRAINED, folder)
        folders = {"data_dir": self.defaults["data_dir"], "imagenet_dir": "/ssd_data/imagenet/"}
        return [*arguments, *absolute(arguments, folders), "--test"]

    def saved(self, folder: Path, arguments: Sequence[str]) -> dict[int, SyntheticSet]:
        """The last set, its images taken apart; iterations are outer ones, by the options that the host noted."""
        found = max(folder.glob(self.sets), key=_number, default=None)
        if found is None:
            return {}
        ran = json.loads(found.with_name("args.txt").read_text(encoding="utf-8"))
        return {_number(found) or _iterations(ran): load_set(found)}

    def views_per_class(self, arguments: Sequence[str]) -> int:
        """An image holds the square of the factor."""
        given = self.options(arguments)
        return int(given["ipc"] * given["factor"] ** 2)


def _number(path: Path) -> int:
    """The number in a set's name, 0 if there is none."""
    return int("".join(filter(str.isdigit, path.stem)) or 0)


def _iterations(given: Mapping[str, Any]) -> int:
    """Outer iterations; an inner loop of none the host will refuse by itself."""
    if "inner_loop" not in given:
        return int(given["niter"])
    return int(given["niter"] * 100 // (given["inner_loop"] or 1))
