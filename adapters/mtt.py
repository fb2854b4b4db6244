"""MTT (GeorgeCazenavette/mtt-distillation, distill.py): unrolled inner steps, one call of the layer in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddplug import buffers
from ddplug.adapters import register
from ddplug.datasets import ImageData
from ddplug.errors import HostError
from ddplug.proxies import ProxyPool
from ddplug.spaces import AnySpace, InputSpace
from ddplug.upstream import UpstreamAdapter, check_data, option
from ddplug.zca import ZCASpace


@register("mtt")
class MTT(UpstreamAdapter):
    """Images are stored normalised, or whitened with --zca; labels are hard; the experts are its own proxies.

    The views of all inner steps of an outer iteration belong to one round. Of them, only those of one inner step are
    regularised by default, see `ddplug.hosting.Layer`.
    """

    name = "mtt"

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

    def preflight(self, arguments: Sequence[str]) -> None:
        """Are the data set and the experts there?"""
        dataset = option(arguments, "dataset", "CIFAR10")
        check_data(self.name, dataset, option(arguments, "data_path", "data"))
        if dataset != "ImageNet":  # there the folder depends on two more options
            check_buffer(
                self.name, Path(option(arguments, "buffer_path", "./buffers")), dataset,
                option(arguments, "model", "ConvNet"), "--zca" in arguments,
            )  # fmt: skip


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
