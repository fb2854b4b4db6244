"""What an adapter of a patched host has in common with the others: the base class, and the patch in memory.

One integration, however it gets in: the lines of `patches/NAME.patch` are run by `ddplug run` out of memory, by the
host itself once `ddplug patch` wrote them to its files, and by `ddplug.attach` in the functions of the imported module,
whose code is compiled again with the lines in.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ddplug.datasets import ImageData
from ddplug.errors import AttachError, HostError, InputError
from ddplug.files import user_path
from ddplug.hooks import Undo
from ddplug.hosting import NAME, Attached, Inner, Views
from ddplug.hosts import HostSpec, load
from ddplug.proxies import ProxyPool
from ddplug.regularizer import Regularizer
from ddplug.sets import SyntheticSet
from ddplug.spaces import AnySpace, InputSpace
from ddplug.splits import gathered


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

        What their images mean they say by their space or, as `ddplug.evaluate.with_space` has it, by their meaning.
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


def patch_module(module: types.ModuleType, original: bytes, patched: bytes, hosting: Attached) -> Undo:
    """Give those functions of `module` that differ between the two texts the code of `patched`; undo restores it.

    The function objects stay the same, so it holds wherever they have been imported to; nothing at the top level of the
    module is run again. `hosting` stands under the name that our lines use.
    """
    file = module.__file__ or module.__name__
    before, after = (dict(_functions(compile(text, file, "exec", dont_inherit=True))) for text in (original, patched))
    changed = {name: code for name, code in after.items() if not _same(before[name], code)}
    if not changed:
        raise AttachError(f"the patch changes no function of {module.__name__}; run it with `ddplug run`.")
    targets = {name: _function(module, name) for name in changed}
    originals = {name: function.__code__ for name, function in targets.items()}
    active = True
    vars(module)[NAME] = hosting
    for name, function in targets.items():
        function.__code__ = changed[name]

    def undo() -> None:
        nonlocal active
        if not active:
            return
        active = False
        hosting.save()
        for name, function in targets.items():
            function.__code__ = originals[name]
        vars(module).pop(NAME, None)

    return undo


def stacked(data: Any) -> tuple[Tensor, Tensor]:
    """Images float32 (n, c, h, w) and labels int64 (n,) on the CPU, of a pair of tensors or a torch data set."""
    images, labels = gathered(data)
    return images.detach().float().cpu(), labels.detach().long().cpu()


def option(arguments: Sequence[str], name: str, default: str) -> str:
    """The value of `--name` on a command line, for `preflight`."""
    value = default
    for index, argument in enumerate(arguments):
        if argument == f"--{name}" and index + 1 < len(arguments):
            value = arguments[index + 1]
        elif argument.startswith(f"--{name}="):
            value = argument.split("=", 1)[1]
    return value


def absolute(arguments: Sequence[str], folders: Mapping[str, str]) -> list[str]:
    """Options that name folders, with their defaults, as they mean the same wherever the host is started."""
    return [
        word
        for name, default in folders.items()
        for word in (f"--{name}", str(user_path(option(arguments, name, default)).resolve()))
    ]


def refuse_short(arguments: Sequence[str], names: Sequence[str]) -> None:
    """`InputError` for an abbreviation of one of `names`, which the host would understand and we would not see."""
    words = [word[2:].partition("=")[0] for word in arguments if word.startswith("--")]
    short = [word for word in words if word not in names and any(name.startswith(word) for name in names)]
    if short:
        raise InputError(f"--{short[0]} is an abbreviation; write the host's options in full for `ddplug compare`.")


def refuse(arguments: Sequence[str], names: Sequence[str]) -> None:
    """`InputError` for options that `ddplug compare` sets itself."""
    flags = [f"--{name}" for name in names]
    taken = [flag for flag in flags for word in arguments if word == flag or word.startswith(f"{flag}=")]
    if taken:
        raise InputError(
            f"{', '.join(taken)} is set by `ddplug compare`, which runs the host once per seed and judges its sets "
            "itself; leave it out."
        )


def whole(arguments: Sequence[str], name: str, default: str) -> int:
    """The value of `--name`, a whole number; `HostError` for another."""
    given = option(arguments, name, default)
    try:
        return int(given)
    except ValueError as error:
        raise HostError(f"the host's --{name} is a whole number, got {given!r}.") from error


TORCHVISION_FILES = {
    "CIFAR10": "cifar-10-batches-py",
    "CIFAR100": "cifar-100-python",
    "MNIST": "MNIST/raw",
    "FashionMNIST": "FashionMNIST/raw",
    "SVHN": "train_32x32.mat",
    "TinyImageNet": "tinyimagenet.pt",
}
"""By the name the hosts give a data set, what has to be in their data folder for it not to be fetched."""


def check_data(host: str, dataset: str, folder: str, names: Mapping[str, str] = TORCHVISION_FILES) -> None:
    """`HostError` unless `dataset` is in `folder`: the hosts would make the folder and go to the network for it."""
    wanted = names.get(dataset)
    if wanted is not None and not (Path(folder) / wanted).exists():
        raise HostError(
            f"{host} would look for {dataset} in '{folder}', where there is no {wanted}. Name the folder that has it "
            "among the host's own arguments, or let the host fetch it: `ddplug run --download`. Nothing was changed."
        )


def _functions(code: types.CodeType) -> Iterator[tuple[str, types.CodeType]]:
    """Functions and methods of a module's code by qualified name; not those within functions."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            if constant.co_flags & inspect.CO_NEWLOCALS and constant.co_flags & inspect.CO_OPTIMIZED:
                yield constant.co_qualname, constant
            else:
                yield from _functions(constant)  # the body of a class


def _function(module: types.ModuleType, name: str) -> types.FunctionType:
    """The function of `module` with this qualified name, below its decorators."""
    found: Any = module
    for part in name.split("."):
        found = inspect.getattr_static(found, part, None)
    found = inspect.unwrap(getattr(found, "__func__", found)) if found is not None else None
    if not isinstance(found, types.FunctionType):
        raise AttachError(f"{module.__name__} has no function '{name}' any more; it was replaced by somebody else.")
    return found


def _same(first: types.CodeType, second: types.CodeType) -> bool:
    """Whether two code objects do the same, line numbers aside."""
    if (first.co_code, first.co_names, first.co_varnames) != (second.co_code, second.co_names, second.co_varnames):
        return False
    if len(first.co_consts) != len(second.co_consts):
        return False
    return all(
        _same(a, b) if isinstance(a, types.CodeType) and isinstance(b, types.CodeType) else repr(a) == repr(b)
        for a, b in zip(first.co_consts, second.co_consts, strict=True)
    )
