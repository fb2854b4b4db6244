"""A host's own names: what its options and variables mean to the regulariser."""

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
    """Translates a host's names into ours. Implement `record`, and override each default that is not true of the host.

    In the methods, `args` are the host's options, and `context` the keywords that the patch passes to `start`.
    """

    name: str
    class_by_class = False
    """True if each step of the host is on the images of one class."""

    def setting(self, args: Any) -> tuple[str, str, int]:
        """(host, data set, images per class), as the paper's table of weights has them: ("dm", "cifar10", 10).

        Why: weight "paper" looks lambda up by it, and proxies of another data set are refused. By default from
        `args.dataset` and `args.ipc`; `HostError` where there are none.
        """
        try:
            return self.name, str(args.dataset).lower(), args.ipc
        except AttributeError as error:
            raise lacking(self.name, "setting", f"what data set and images per class are: {error}") from error

    def record(self, args: Any, context: Mapping[str, Any]) -> Path:
        """The JSON file for CMI's history, beside the host's results, so that the two are found together."""
        raise lacking(self.name, "record", "where the history of CMI goes")

    def space(self, args: Any, context: Mapping[str, Any]) -> AnySpace | None:
        """The input space of the views, for proxies to see what they were trained on; None if it is not known.

        By default the host's whitening, kornia's, where its option zca is set and the patch passes shape=(c, h, w);
        else the normalisation that the patch passes as space=(mean, std), if it does.
        """
        if getattr(args, "zca", False) and "shape" in context:
            channels, height, width = context["shape"]
            return ZCASpace.from_kornia(context.get("zca") or args.zca_trans, (channels, height, width))
        return InputSpace.normalized(*context["space"]) if "space" in context else None

    def experts(self, args: Any, context: Mapping[str, Any]) -> ProxyPool | None:
        """The host's own pretrained networks, which are taken as proxies if the user names none; by default none."""
        return None

    def real(self, args: Any, context: Mapping[str, Any]) -> ImageData | None:
        """The host's real data, to train proxies on if there are none; by default from classes=, train= and test=."""
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
    """The error for what the adapter of host `name` was asked and does not answer."""
    return HostError(f"the adapter of {name} does not say {what}. Give it a method `{method}`; see docs/hosts/own.md.")
