"""Meaning of a host's own options and variables for the regulariser."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ddplug.datasets.images import ImageData
from ddplug.datasets.spaces import AnySpace, InputSpace
from ddplug.datasets.splits import gathered
from ddplug.datasets.zca import ZCASpace
from ddplug.errors import HostError
from ddplug.proxies.pool import ProxyPool


class Names:
    """Translation of a host's names into ours. Set `record_path`, and override each default that is wrong for the host.

    In the methods, `args` are the host's options, and `context` the keywords that the patch passes to `start`.
    """

    name: str
    class_by_class = False
    """True if each step of the host is on the images of one class."""
    record_path = ""
    """Path of the JSON file for CMI's history, beside the host's results; {args.NAME} is an option's value, and {NAME}
    that of a keyword that the patch passes."""

    def setting(self, args: Any) -> tuple[str, str, int]:
        """Host, data set and images per class, such as ("dm", "cifar10", 10); by default of args.dataset and args.ipc.

        Weight "paper" is looked up by it, and proxies of another data set are refused.
        """
        try:
            return self.name, str(args.dataset).lower(), args.ipc
        except AttributeError as error:
            raise lacking(self.name, "setting", f"its data set and images per class: {error}") from error

    def record(self, args: Any, context: Mapping[str, Any]) -> Path:
        """The JSON file for CMI's history, by default `record_path` filled in."""
        if not self.record_path:
            raise lacking(self.name, "record", "where the history of CMI goes")
        return Path(self.record_path.format(args=args, **context))

    def space(self, args: Any, context: Mapping[str, Any]) -> AnySpace | None:
        """The input space of the views, from which proxies derive theirs; None if it is not known.

        By default kornia's whitening if the host's option zca is set and the patch passes shape=(c, h, w), otherwise
        the normalisation that the patch passes as space=(mean, std).
        """
        if getattr(args, "zca", False) and "shape" in context:
            channels, height, width = context["shape"]
            return ZCASpace.from_kornia(context.get("zca") or args.zca_trans, (channels, height, width))
        return InputSpace.normalized(*context["space"]) if "space" in context else None

    def experts(self, args: Any, context: Mapping[str, Any]) -> ProxyPool | None:
        """The host's own pretrained networks, the proxies if the user names none; by default None."""
        return None

    def real(self, args: Any, context: Mapping[str, Any]) -> ImageData | None:
        """The host's real data, for training proxies; by default from the keywords classes, train and test."""
        space = self.space(args, context)
        if space is None or not {"classes", "train", "test"} <= set(context):
            return None
        train, train_labels = stacked(context["train"])
        test, test_labels = stacked(context["test"])
        names = tuple(str(name) for name in context["classes"])
        return ImageData(self.setting(args)[1], names, space, train, train_labels, test, test_labels)


def stacked(data: Any) -> tuple[Tensor, Tensor]:
    """Images float32 (n, c, h, w) and labels int64 (n,) on the CPU, of a pair of tensors or a torch data set."""
    images, labels = gathered(data)
    return images.detach().float().cpu(), labels.detach().long().cpu()


def lacking(name: str, method: str, what: str) -> HostError:
    """The error for a method that the adapter of host `name` does not implement."""
    return HostError(f"the adapter of {name} does not know {what}. Give it a method `{method}`; see docs/hosts/own.md.")
