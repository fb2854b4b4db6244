"""Base classes for hosts with the loop, the option names and the result files of DM, MTT or IDC.

A host that kept all of these needs only a row in `hosts.toml`. The lines that a patch inserts, by shape:

DM, one call of the layer for each class, all classes in one backward pass:

    cmi = ddplug_cmi.start('NAME', args, exp=exp, space=(mean, std), classes=class_names, train=..., test=...)
    img_syn = cmi(img_syn, c)                          # for each class, after its augmentation

MTT, unrolled inner steps with one call of the layer in each:

    cmi = ddplug_cmi.start('NAME', args, steps=args.syn_steps, shape=(c, h, w), count=num_classes, space=(mean, std),
                           classes=..., train=..., test=..., experts=expert_dir, run=wandb.run.name)
    x = cmi(x, this_y, step=step)                      # in each inner step, after its augmentation
    cmi.gate(grand_loss, args.threshold)               # in a host that skips steps, as DATM does, before backward()

IDC, a step of the image optimizer for each class, on several views formed from each image:

    cmi = ddplug_cmi.start('NAME', args, space=(mean, std), train=..., test=..., network=define_model)
    img_aug = cmi(img_aug, lab_syn, first=n)           # after the augmentation of n real and all synthetic images
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from ddplug.datasets.images import ImageData
from ddplug.datasets.spaces import AnySpace, InputSpace
from ddplug.datasets.synthetic import Meaning, SyntheticSet, load_set
from ddplug.errors import HostError
from ddplug.hosting import expert_buffers as buffers
from ddplug.hosting import idc_checkpoints as checkpoints
from ddplug.hosting.arguments import TORCHVISION_FILES, check_data, option
from ddplug.hosting.host import Host
from ddplug.hosting.names import stacked
from ddplug.proxies.pool import ProxyPool


class DMLike(Host):
    """A host of DM's shape. Images are stored normalised; the final set is saved."""

    defaults: Mapping[str, Any] = {"dataset": "CIFAR10", "data_path": "data", "ipc": 50, "Iteration": 20000}
    folders: Sequence[str] = ("data_path",)
    compare: Sequence[str] = ("--save_path", "{folder}", "--num_exp", "1", "--num_eval", "0")
    record_path = "{args.save_path}/cmi_{args.method}_{args.dataset}_{args.model}_{args.ipc}ipc_exp{exp}.json"
    beyond = 1
    """Number of steps that the saved set has had beyond `--Iteration`."""
    quartered = ""
    """The flag with which each image holds four."""

    def preflight(self, arguments: Sequence[str]) -> None:
        """Check that the data set is there."""
        given = self.options(arguments)
        check_data(self.name, given["dataset"], given["data_path"])

    def factor(self, arguments: Sequence[str]) -> int:
        """Number of images along the side of one."""
        return 2 if self.quartered and self.options(arguments)[self.quartered] else 1

    def views_per_class(self, arguments: Sequence[str]) -> int:
        """Number of images of a class times the images that each holds."""
        return super().views_per_class(arguments) * self.factor(arguments) ** 2

    def saved(self, folder: Path, arguments: Sequence[str]) -> dict[int, SyntheticSet]:
        """The final set, whitened if the option zca is given."""
        given, found = self.options(arguments), sorted(folder.glob("res_*.pt"))
        if not found:
            return {}
        made = load_set(found[-1], factor=self.factor(arguments))
        return {given["Iteration"] + self.beyond: replace(made, meaning="zca") if given.get("zca") else made}


class MTTLike(Host):
    """A host of MTT's shape. Images are stored normalised, or whitened with --zca; its experts are its proxies.

    The views of all inner steps of an outer iteration belong to one round; `ddplug.hosting.layer.Layer` says which of
    them are regularised. A step that the host skips is not a round. Where labels are learned, the layer is given the
    class that the image was made for.
    """

    defaults: Mapping[str, Any] = {
        "dataset": "CIFAR10", "model": "ConvNet", "ipc": 1, "Iteration": 5000, "zca": False, "data_path": "data",
        "buffer_path": "./buffers",
    }  # fmt: skip
    folders: Sequence[str] = ("data_path", "buffer_path")
    saves = 1000
    """Number of iterations between two sets that the host saves without an evaluation."""
    compare: Sequence[str] = ("--num_eval", "0", "--eval_it", "1000")
    spelt_out: Sequence[str] = ("texture",)
    quiet_env: Mapping[str, str] = MappingProxyType({"WANDB_MODE": "disabled"})
    record_path = "logged_files/{args.dataset}/{run}/cmi.json"
    images = "images_"
    """Start of the names of the image files; the iteration follows."""

    def experts(self, args: Any, context: Mapping[str, Any]) -> ProxyPool | None:
        """The last snapshot of every expert of the host's own buffer, if the patch passes its folder."""
        return buffers.read_for_host(str(context["experts"]), self, args, context) if "experts" in context else None

    def real(self, args: Any, context: Mapping[str, Any]) -> ImageData | None:
        """The host's real data, unless it has renumbered the classes and so passes no names of them."""
        return super().real(args, context) if context.get("classes") else None

    def preflight(self, arguments: Sequence[str]) -> None:
        """Check that the data set and the experts are there."""
        given = self.options(arguments)
        check_data(self.name, given["dataset"], given["data_path"])
        if given["dataset"] in ("CIFAR10", "CIFAR100", "Tiny"):  # the folder of ImageNet's depends on more options
            folder = Path(given["buffer_path"])
            buffers.check_buffer(self.name, folder, given["dataset"], given["model"], given["zca"])

    def comparable(self, arguments: Sequence[str]) -> None:
        """Check also that the last iteration is saved, as images of the data's size."""
        super().comparable(arguments)
        iterations = self.options(arguments)["Iteration"]
        if iterations < self.saves or iterations % self.saves:
            raise HostError(
                f"{self.name} saves its set every {self.saves} iterations, and Iteration is {iterations}, so the final "
                f"set would not be saved; give a multiple of {self.saves}."
            )
        if "--texture" in arguments:
            raise HostError("sets of --texture are larger than the data's images and cannot be judged here.")

    def saved(self, folder: Path, arguments: Sequence[str]) -> dict[int, SyntheticSet]:
        """All saved sets except that of iteration 0, whitened if the option zca is given."""
        meaning: Meaning = "zca" if self.options(arguments)["zca"] else "normalized"
        sets = {}
        for path in folder.rglob(f"{self.images}*.pt"):
            number = re.fullmatch(rf"{re.escape(self.images)}(\d+)\.pt", path.name)
            if number and int(number[1]):
                held = load_set(path)
                sets[int(number[1])] = replace(held, meaning=held.meaning or meaning)
        return sets

    def extra_inputs(self, arguments: Sequence[str]) -> dict[str, Any]:
        """A digest of the experts."""
        return {"experts": buffers.experts_in(Path(self.options(arguments)["buffer_path"]))}


class IDCLike(Host):
    """A host of IDC's shape. Images are stored in [0, 1]; the networks that its pretrain.py left are its proxies.

    The host's augmentation normalises real and synthetic images in one batch, so the layer acts on the synthetic rows
    of its result. A round is one step on one class. Labels are those of the views.
    """

    class_by_class = True
    defaults: Mapping[str, Any] = {
        "dataset": "cifar10", "data_dir": "/data_large/readonly", "imagenet_dir": "/ssd_data/imagenet/", "ipc": -1,
        "factor": 1, "niter": 500, "inner_loop": 100, "reproduce": False,
    }  # fmt: skip
    short: Sequence[str] = ("dataset", "ipc", "factor")
    folders: Sequence[str] = ("data_dir", "imagenet_dir")
    links: Sequence[str] = (checkpoints.PRETRAINED,)
    compare: Sequence[str] = ("--test",)
    """Skips evaluations, and saves in one folder whatever the other options are."""
    reserved: Sequence[str] = ("seed",)
    spelt_out: Sequence[str] = ("decode_type", "test")
    record_path = "{args.save_dir}/cmi.json"
    least = 50
    """Outer iterations that the host needs: it logs every n // least of them."""
    outer = False
    """True if the option niter counts outer iterations."""
    sets = "results/test/data.pt"
    """Pattern of the set's path; of several sets, the one with the highest number in its name is taken."""

    def setting(self, args: Any) -> tuple[str, str, int]:
        """The setting by the options; `datatag`, where it exists, distinguishes ImageNet's subsets."""
        name, dataset, ipc = super().setting(args)
        return name, str(getattr(args, "datatag", dataset)).lower(), ipc

    def space(self, args: Any, context: Mapping[str, Any]) -> AnySpace | None:
        """Normalised after the augmentation, [0, 1] before it."""
        if getattr(args, "cmi_views", self.views) == "host" or "space" not in context:
            return super().space(args, context)
        return InputSpace.unit(len(context["space"][0]))

    def experts(self, args: Any, context: Mapping[str, Any]) -> ProxyPool | None:
        """The networks that pretrain.py left in the folder in which the host itself looks."""
        if not (hasattr(args, "datatag") and hasattr(args, "modeltag")):
            return None
        folders = sorted(Path(checkpoints.PRETRAINED, args.datatag).glob(f"{args.modeltag}_cut*"))
        if not any(any(folder.glob("checkpoint*.pth.tar")) for folder in folders):
            return None
        space = InputSpace.normalized(*context["space"])
        return checkpoints.read(folders, args.datatag, space, lambda: self.network(args, context))

    def real(self, args: Any, context: Mapping[str, Any]) -> ImageData | None:
        """The host's training images, which it has in [0, 1], and its test images, which it has normalised.

        None for ImageNet, which is too large to be held twice.
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
        """A new network of the host's own kind, by its options."""
        network: nn.Module = context["network"](args, context["train"].nclass)
        return network

    def preflight(self, arguments: Sequence[str]) -> None:
        """Check the data set, the number of images, and that the host will not divide by zero iterations."""
        given = self.options(arguments)
        check_data(self.name, given["dataset"], given["data_dir"], FILES, fetches=False)
        if given["ipc"] <= 0:
            raise HostError(
                f"{self.name} needs the number of images per class, got {given['ipc']}: -- --ipc 10. Nothing "
                "was changed."
            )
        iterations = self._iterations(given)
        if iterations < self.least and not given["reproduce"]:
            raise HostError(
                f"--niter {given['niter']} and --inner_loop {given['inner_loop']} make {iterations} outer "
                f"iterations (niter * 100 // inner_loop); below {self.least}, {self.name} divides by zero at its first "
                "log line. Give a larger --niter or a smaller --inner_loop. Nothing was changed."
            )

    def comparable(self, arguments: Sequence[str]) -> None:
        """Check also that images are taken apart in the one way that is known here."""
        super().comparable(arguments)
        kind = option(arguments, "decode_type", "single")
        if kind != "single":
            raise HostError(f"sets of --decode_type {kind} cannot be judged here, only those of single.")

    def saved(self, folder: Path, arguments: Sequence[str]) -> dict[int, SyntheticSet]:
        """The last set, its images taken apart, by outer iterations as in the options that the host noted."""
        found = max(folder.glob(self.sets), key=_number, default=None)
        if found is None:
            return {}
        ran = json.loads(found.with_name("args.txt").read_text(encoding="utf-8"))
        return {_number(found) or self._iterations(ran): load_set(found)}

    def views_per_class(self, arguments: Sequence[str]) -> int:
        """Number of images of a class times the square of the factor."""
        given = self.options(arguments)
        return int(given["ipc"] * given["factor"] ** 2)

    def _iterations(self, given: Mapping[str, Any]) -> int:
        """Number of outer iterations; the host itself rejects an inner loop of length 0."""
        return int(given["niter"] if self.outer else given["niter"] * 100 // (given["inner_loop"] or 1))


FILES = {
    "cifar10": TORCHVISION_FILES["CIFAR10"],
    "cifar100": TORCHVISION_FILES["CIFAR100"],
    "svhn": "svhn/train_32x32.mat",
    "mnist": TORCHVISION_FILES["MNIST"],
    "fashion": TORCHVISION_FILES["FashionMNIST"],
}
"""Files that must be in the folder of IDC's option --data_dir, by its name of a data set."""


def _number(path: Path) -> int:
    """The number in a set's name, 0 if there is none."""
    return int("".join(filter(str.isdigit, path.stem)) or 0)
