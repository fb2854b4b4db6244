"""Hosts of MTT's shape: unrolled inner steps with one call of the layer in each, and a buffer of expert networks.

    cmi = ddplug_cmi.start('NAME', args, steps=args.syn_steps, shape=(c, h, w), count=num_classes, space=(mean, std),
                           classes=..., train=..., test=..., experts=expert_dir, run=wandb.run.name)
    x = cmi(x, this_y, step=step)                      # in each inner step, below its augmentation
    cmi.gate(grand_loss, args.threshold)               # gated as in DATM, just before its backward()

The views of all inner steps of an outer iteration belong to one round. Of them, only those of one inner step are
regularised by default, see `ddplug.hosting.layer.Layer`. Where a gated host leaves out its step, the round is left out
too: it is neither counted nor part of the measurement of lambda. Labels that are learned are no classes: there, pass
the class for which the image was made. Option names are those of GeorgeCazenavette/mtt-distillation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ddplug.datasets.images import ImageData
from ddplug.datasets.synthetic import Meaning, SyntheticSet, load_set
from ddplug.errors import HostError
from ddplug.hosting import expert_buffers as buffers
from ddplug.hosting.arguments import absolute, check_data
from ddplug.hosting.host import Host
from ddplug.proxies.pool import ProxyPool
from ddplug.utils.digest import short_sha256
from ddplug.utils.files import user_path

SAVES = 1000
"""Iterations between two sets that the host saves when it has not evaluated them."""
ONE_BUFFER = ("CIFAR10", "CIFAR100", "Tiny")
"""Data sets whose buffer's folder two options name; ImageNet's depends on two more."""


class MTTLike(Host):
    """Images are stored normalised, or whitened with --zca; the experts are the host's own proxies."""

    defaults: Mapping[str, Any] = {
        "dataset": "CIFAR10", "model": "ConvNet", "ipc": 1, "Iteration": 5000, "zca": False, "data_path": "data",
        "buffer_path": "./buffers",
    }  # fmt: skip
    quiet_env: Mapping[str, str] = MappingProxyType({"WANDB_MODE": "disabled"})
    reserved: tuple[str, ...] = ("num_eval", "eval_it")
    images = "images_"
    """What the names of the files begin with whose images count; a number follows."""

    def record(self, args: Any, context: Mapping[str, Any]) -> Path:
        """In the folder where the host saves its images."""
        return Path("logged_files", args.dataset, str(context["run"]), "cmi.json")

    def experts(self, args: Any, context: Mapping[str, Any]) -> ProxyPool | None:
        """The last snapshot of every expert of the host's own buffer, if the patch names it."""
        return buffers.read_for_host(str(context["experts"]), self, args, context) if "experts" in context else None

    def real(self, args: Any, context: Mapping[str, Any]) -> ImageData | None:
        """The host's real data, where it names the classes and has not renumbered them."""
        return super().real(args, context) if context.get("classes") else None

    def preflight(self, arguments: Sequence[str]) -> None:
        """Are the data set and the experts there?"""
        given = self.options(arguments)
        check_data(self.name, given["dataset"], given["data_path"])
        if given["dataset"] in ONE_BUFFER:
            check_buffer(self.name, Path(given["buffer_path"]), given["dataset"], given["model"], given["zca"])

    def comparable(self, arguments: Sequence[str]) -> None:
        """Evaluations are ours to say; the last iteration has to be one that the host saves."""
        super().comparable(arguments)
        iterations = self.options(arguments)["Iteration"]
        if iterations < SAVES or iterations % SAVES:
            raise HostError(
                f"{self.name} saves its set every {SAVES} iterations, and Iteration is {iterations}, so what it ends "
                f"with would not be saved; name a multiple of {SAVES}."
            )

    def command(self, arguments: Sequence[str], folder: Path) -> list[str]:
        """Every thousandth iteration the host would evaluate, which it does with no networks, and saves."""
        places = absolute(arguments, {name: self.defaults[name] for name in ("data_path", "buffer_path")})
        return [*arguments, *places, "--num_eval", "0", "--eval_it", str(SAVES)]

    def saved(self, folder: Path, arguments: Sequence[str]) -> dict[int, SyntheticSet]:
        """The sets of every thousandth iteration but the first, whitened if the host was told to."""
        return sets_in(folder, "zca" if self.options(arguments)["zca"] else "normalized", self.images)

    def extra_inputs(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The experts."""
        return {"experts": experts_in(Path(self.options(arguments)["buffer_path"]))}


def sets_in(folder: Path, meaning: Meaning, images: str = MTTLike.images) -> dict[int, SyntheticSet]:
    """All sets below `folder` by the number in `images_N.pt`, but for number 0, which nothing has been done to."""
    numbered = re.compile(rf"{re.escape(images)}(\d+)\.pt")
    files = {name[1]: path for path in folder.rglob(f"{images}*.pt") if (name := numbered.fullmatch(path.name))}
    sets = {int(number): load_set(path) for number, path in files.items() if int(number) > 0}
    return {number: replace(held, meaning=held.meaning or meaning) for number, held in sets.items()}


def experts_in(folder: Path) -> str:
    """Sixteen hex digits that tell buffers apart by their files' names, sizes and last 64 KiB: they may be huge."""
    parts: list[bytes] = []
    for path in sorted(user_path(folder).rglob(buffers.FILES)):
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - 65536))
            parts.append(f"{path.name}\0{size}\0".encode() + file.read())
    return short_sha256(parts)


def check_buffer(host: str, folder: Path, dataset: str, model: str, zca: bool) -> None:
    """`HostError` unless the host will find experts in `folder`; `PoolError` if trajectory matching cannot use them."""
    marked = dataset in buffers.WITH_AND_WITHOUT
    place = folder / (dataset + (buffers.NO_ZCA if marked and not zca else "")) / model
    first = place / "replay_buffer_0.pt"
    if not first.is_file():
        other = folder / (dataset + (buffers.NO_ZCA if zca else "")) / model
        hint = (
            f" There are experts {'without' if zca else 'with'} ZCA whitening in '{other}': change the host's option "
            "for ZCA to use them."
            if marked and any(other.glob(buffers.FILES))
            else ""
        )
        raise HostError(
            f"{host} needs expert networks, and there is no replay_buffer_0.pt in '{place}'.{hint} Write some with the "
            "host's buffer script, or name another folder among the host's own arguments (buffer_path)."
        )
    buffers.check_moving(buffers.load(first), first)
