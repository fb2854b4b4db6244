"""What an adapter of a patched host has in common with the others: the base class, and the patch in memory.

One integration, however it gets in: the lines of `patches/NAME.patch` are run by `ddplug run` out of memory, by the
host itself once `ddplug patch` wrote them to its files, and by `ddplug.attach` in the functions of the imported module,
whose code is compiled again with the lines in.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ddplug.attaching import registry
from ddplug.attaching.hooks import Undo
from ddplug.core.regularizer import Regularizer
from ddplug.datasets.images import ImageData
from ddplug.datasets.spaces import AnySpace, InputSpace
from ddplug.datasets.splits import gathered
from ddplug.datasets.synthetic import SyntheticSet
from ddplug.errors import AttachError, HostError
from ddplug.hosting.checkout import HostSpec, load
from ddplug.hosting.inject import patch_module
from ddplug.hosting.layer import NAME, Attached
from ddplug.hosting.options import Inner, Views
from ddplug.proxies.pool import ProxyPool


class UpstreamAdapter:
    """Base of the adapters of hosts with a patch: subclasses say what the host's own names mean.

    To add a host: a subclass in `adapters/NAME.py` with `name`, registered by `ddplug.adapters.register(NAME)`; a table
    in `patches/hosts.toml`; and `patches/NAME.patch`, which calls `ddplug.hosting`. In the methods, `args` are the
    host's options and `known` the keywords that the patch passes to `start`.
    """

    name: str
    views: Views = "host"
    inner: Inner = "one"
    class_by_class = False
    """Whether the host steps on one class at a time, and its lambda is meant for that."""
    quietly: Mapping[str, str] = types.MappingProxyType({})
    """Variables of the environment under which a comparison's many runs are not reported anywhere, unless set."""

    def spec(self) -> HostSpec:
        """The record of the host and its patch."""
        return load(self.name)

    # What the host's names mean ----------------------------------------------------------------------------------

    def setting(self, args: Any) -> tuple[str, str, int]:
        """(host, data set, images per class), as the paper's table of weights has them: ("dm", "cifar10", 10)."""
        raise NotImplementedError

    def record(self, args: Any, known: Mapping[str, Any]) -> Path:
        """The JSON file for CMI's history, beside the host's results."""
        raise NotImplementedError

    def space(self, args: Any, known: Mapping[str, Any]) -> AnySpace | None:
        """The input space of the views; by default the normalisation passed as space=(mean, std)."""
        mean, std = known["space"]
        return InputSpace.normalized(mean, std)

    def experts(self, args: Any, known: Mapping[str, Any]) -> ProxyPool | None:
        """The host's own pretrained networks, if it has any at hand."""
        return None

    def real(self, args: Any, known: Mapping[str, Any]) -> ImageData | None:
        """The host's real data, to train proxies on; by default from classes=, train= and test=."""
        space = self.space(args, known)
        if space is None or not {"classes", "train", "test"} <= set(known):
            return None
        train, train_labels = stacked(known["train"])
        test, test_labels = stacked(known["test"])
        names = tuple(str(name) for name in known["classes"])
        return ImageData(self.setting(args)[1], names, space, train, train_labels, test, test_labels)

    def preflight(self, arguments: Sequence[str]) -> None:
        """Look at the command line before the host runs; `HostError` for what would fail late and unclearly.

        For what only the host can judge (misspelt options, say) its own error is the clear one.
        """

    # What `ddplug compare` wants to know -------------------------------------------------------------------------

    def comparable(self, arguments: Sequence[str]) -> None:
        """Raise for arguments that a comparison sets itself, or with which no set would be saved."""
        raise HostError(
            f"`ddplug compare` does not know how to find the sets of {self.name}: its adapter has no `comparable`, "
            "`command` and `saved`. Run it with `ddplug run`, once per weight, and judge its sets."
        )

    def command(self, arguments: Sequence[str], folder: Path) -> list[str]:
        """The arguments of a run that is started in `folder`, makes one set and saves it there, and judges nothing.

        Files that the run needs may be written to `folder`. Folders in `arguments` are relative to where we are.
        """
        raise NotImplementedError

    def saved(self, folder: Path, arguments: Sequence[str]) -> dict[int, SyntheticSet]:
        """The sets that a run by `command` left in `folder`, by the iterations they were made in.

        What their images mean they say by their space or, as `ddplug.evaluation.evaluate.with_space` has it, by their
        meaning.
        """
        raise NotImplementedError

    def told(self, arguments: Sequence[str]) -> tuple[str, str, int]:
        """What `setting` will say in a run with `arguments`."""
        raise NotImplementedError

    def views_per_class(self, arguments: Sequence[str]) -> int:
        """How many images of a class the layer sees; by default the images per class."""
        return self.told(arguments)[2]

    def decided_by(self, arguments: Sequence[str]) -> dict[str, Any]:
        """What decides a run besides its arguments, the data set and the checkout, as JSON: files they name, say."""
        return {}

    # How it is put in --------------------------------------------------------------------------------------------

    def recognises(self, host: object) -> bool:
        """Whether `host` is the imported script."""
        script = Path(self.spec().script).name
        return isinstance(host, types.ModuleType) and Path(getattr(host, "__file__", None) or "").name == script

    def configure(self, *, views: Views = "host", inner: Inner = "one") -> None:
        """What `attach` was told besides the regulariser's own options."""
        self.views, self.inner = views, inner

    def install(self, host: object, regularizer: Regularizer) -> Undo:
        """Put `regularizer` into the imported, unedited module `host`; returns what takes it out (idempotent).

        Raises:
            AttachError: already attached.
            HostError, PatchError: the module's file is not the one that the patch was made for.
        """
        assert isinstance(host, types.ModuleType)
        spec = self.spec()
        file = Path(host.__file__ or "").resolve()
        repo = file.parents[len(Path(spec.script).parts) - 1]
        if NAME in vars(host):
            raise AttachError(
                f"{host.__name__} has ddplug in it already: detach() that handle first, or, if its file is patched, "
                "set --cmi_weight there."
            )
        text = spec.patched(repo)[spec.script]
        return patch_module(host, file.read_bytes(), text, Attached(self, regularizer, self.views, self.inner))


def stacked(data: Any) -> tuple[Tensor, Tensor]:
    """Images float32 (n, c, h, w) and labels int64 (n,) on the CPU, of a pair of tensors or a torch data set."""
    images, labels = gathered(data)
    return images.detach().float().cpu(), labels.detach().long().cpu()


def upstream(name: str) -> UpstreamAdapter:
    """The adapter of the patched host `name`; `HostError` if there is none of that name."""
    made = registry.make(name)
    if not isinstance(made, UpstreamAdapter):
        raise HostError(f"there is no host '{name}' with a patch; ddplug knows {', '.join(registry.names())}.")
    return made
