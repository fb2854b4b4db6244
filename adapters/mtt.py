"""MTT (GeorgeCazenavette/mtt-distillation, distill.py): unrolled inner steps, one call of the layer in each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ddplug.adapters import register
from ddplug.datasets.images import ImageData
from ddplug.datasets.spaces import AnySpace, InputSpace
from ddplug.datasets.synthetic import Meaning, SyntheticSet, load_set
from ddplug.datasets.zca import ZCASpace
from ddplug.errors import HostError
from ddplug.hosting.adapter import UpstreamAdapter
from ddplug.hosting.arguments import absolute, check_data, option, refuse, refuse_short, whole
from ddplug.proxies import expert_buffers as buffers
from ddplug.proxies.pool import ProxyPool
from ddplug.utils.digest import short_sha256
from ddplug.utils.files import user_path

SAVES = 1000
"""Iterations between two sets that the host saves when it has not evaluated them."""
NUMBERED = re.compile(r"images_(\d+)\.pt")


@register("mtt")
class MTT(UpstreamAdapter):
    """Images are stored normalised, or whitened with --zca; labels are hard; the experts are its own proxies.

    The views of all inner steps of an outer iteration belong to one round. Of them, only those of one inner step are
    regularised by default, see `ddplug.hosting.layer.Layer`.
    """

    name = "mtt"
    quietly: Mapping[str, str] = MappingProxyType({"WANDB_MODE": "disabled"})

    def setting(self, args: Any) -> tuple[str, str, int]:
        """As the options say."""
        return self.name, str(args.dataset).lower(), args.ipc

    def record(self, args: Any, known: Mapping[str, Any]) -> Path:
        """In the folder where the host saves its images."""
        return Path("logged_files", args.dataset, str(known["run"]), "cmi.json")

    def space(self, args: Any, known: Mapping[str, Any]) -> AnySpace | None:
        """The host's own whitening, or its normalisation."""
        if args.zca:
            channels, height, width = known["shape"]
            return ZCASpace.from_kornia(args.zca_trans, (channels, height, width))
        return InputSpace.normalized(*known["space"])

    def experts(self, args: Any, known: Mapping[str, Any]) -> ProxyPool | None:
        """The last snapshot of every expert of the host's own buffer."""
        return buffers.read_for_host(str(known["experts"]), self, args, known)

    def real(self, args: Any, known: Mapping[str, Any]) -> ImageData | None:
        """The host's real data, where it names the classes and has not renumbered them."""
        return super().real(args, known) if known.get("classes") else None

    def comparable(self, arguments: Sequence[str]) -> None:
        """Evaluations are ours to say; saved is every thousandth iteration; canvases of textures are no images."""
        refuse_short(
            arguments,
            (
                "num_eval",
                "eval_it",
                "data_path",
                "buffer_path",
                "dataset",
                "ipc",
                "Iteration",
                "zca",
                "texture",
                "model",
            ),
        )
        refuse(arguments, ("num_eval", "eval_it"))
        if "--texture" in arguments:
            raise HostError("sets of --texture are larger than the data's images and cannot be judged here.")
        check_saves(self.name, whole(arguments, "Iteration", "5000"))

    def command(self, arguments: Sequence[str], folder: Path) -> list[str]:
        """Every thousandth iteration the host would evaluate, which it does with no networks, and saves."""
        places = absolute(arguments, {"data_path": "data", "buffer_path": "./buffers"})
        return [*arguments, *places, "--num_eval", "0", "--eval_it", str(SAVES)]

    def saved(self, folder: Path, arguments: Sequence[str]) -> dict[int, SyntheticSet]:
        """The sets of every thousandth iteration but the first, whitened if the host was told to."""
        meaning: Meaning = "zca" if "--zca" in arguments else "normalized"
        return sets_in(folder, meaning)

    def decided_by(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The experts."""
        return {"experts": experts_in(Path(option(arguments, "buffer_path", "./buffers")))}

    def told(self, arguments: Sequence[str]) -> tuple[str, str, int]:
        """As the options say."""
        return self.name, option(arguments, "dataset", "CIFAR10").lower(), whole(arguments, "ipc", "1")

    def preflight(self, arguments: Sequence[str]) -> None:
        """Are the data set and the experts there?"""
        dataset = option(arguments, "dataset", "CIFAR10")
        check_data(self.name, dataset, option(arguments, "data_path", "data"))
        if dataset != "ImageNet":  # there the folder depends on two more options
            check_buffer(
                self.name, Path(option(arguments, "buffer_path", "./buffers")), dataset,
                option(arguments, "model", "ConvNet"), "--zca" in arguments,
            )  # fmt: skip


def check_saves(host: str, iterations: int) -> None:
    """`HostError` where the last iteration is none that the host saves."""
    if iterations < SAVES or iterations % SAVES:
        raise HostError(
            f"{host} saves its set every {SAVES} iterations, and Iteration is {iterations}, so what it ends with would "
            f"not be saved; name a multiple of {SAVES}."
        )


def sets_in(folder: Path, meaning: Meaning) -> dict[int, SyntheticSet]:
    """All sets below `folder` by the number in `images_N.pt`, but for number 0, which nothing has been done to."""
    files = {name[1]: path for path in folder.rglob("images_*.pt") if (name := NUMBERED.fullmatch(path.name))}
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
