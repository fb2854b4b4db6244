"""The adapter of a host with a patch: what its names mean, how the layer is put in, and how sets are made and found.

`dm_like`, `mtt_like` and `idc_like` have what the loops and command lines of many published hosts share.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ddplug.attaching import registry
from ddplug.attaching.hooks import Undo
from ddplug.core.regularizer import Regularizer
from ddplug.datasets.synthetic import SyntheticSet
from ddplug.errors import AttachError, HostError
from ddplug.hosting.arguments import read_options, refuse, refuse_short
from ddplug.hosting.checkout import SHIPPED, HostSpec, load, table
from ddplug.hosting.inject import patch_module
from ddplug.hosting.layer import NAME, Attached
from ddplug.hosting.names import Names, lacking
from ddplug.hosting.options import Inner, Views
from ddplug.hosting.patch import state


class Host(Names):
    """Base of the adapters of hosts with a patch. Implement `record`; for `ddplug compare` also `command` and `saved`.

    In the methods, `arguments` are the host's command line as the user gave it. The patch is the same however it gets
    in: `ddplug run` puts its lines in while the script is read, `ddplug patch` writes them to the files, and
    `ddplug.attach` gives them to the functions of the imported module.
    """

    patches: str | Path = SHIPPED
    """The package, or the folder, with `hosts.toml` and NAME.patch."""
    defaults: Mapping[str, Any] = MappingProxyType({})
    """Those of the host's own options that the adapter looks at, with the host's defaults: text, int, or False."""
    short: tuple[str, ...] = ()
    """Those of them that the host also takes by their first letter."""
    views: Views = "host"
    inner: Inner = "one"
    quiet_env: Mapping[str, str] = MappingProxyType({})
    """Variables of the environment under which a comparison's many runs are not reported anywhere, unless set."""
    reserved: tuple[str, ...] = ()
    """Options that `command` sets, and the user therefore may not."""
    spelt_out: tuple[str, ...] = ()
    """Options besides those of `defaults` and `reserved` that the adapter reads, and that may not be abbreviated."""

    def spec(self) -> HostSpec:
        """The record of the host and its patch."""
        return load(self.name, self.patches)

    def options(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The options in `defaults` as a command line gives them; `HostError` for a number that is none."""
        return read_options(arguments, self.defaults, self.short)

    def preflight(self, arguments: Sequence[str]) -> None:
        """Look at the command line before the host runs; `HostError` for what would fail late and unclearly.

        For what only the host can judge (misspelt options, say) its own error is the clear one. By default nothing.
        """

    def recognises(self, host: object) -> bool:
        """Return True if `host` is the imported script and no other host's script of that name fits better."""
        spec = self.spec()
        file = Path(getattr(host, "__file__", None) or "")
        if not isinstance(host, types.ModuleType) or file.name != Path(spec.script).name:
            return False
        others = (load(name, self.patches) for name in table(self.patches) if name != self.name)
        rivals = [other for other in others if Path(other.script).name == file.name]
        return not rivals or _fit(spec, file) >= max(_fit(rival, file) for rival in rivals)

    def configure(self, *, views: Views = "host", inner: Inner = "one") -> None:
        """Take the options of `attach` that are not the regulariser's."""
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

    def comparable(self, arguments: Sequence[str]) -> None:
        """Raise for arguments that a comparison sets itself, or with which no set would be saved."""
        refuse_short(arguments, (*self.reserved, *self.spelt_out, *self.defaults))
        refuse(arguments, self.reserved)

    def command(self, arguments: Sequence[str], folder: Path) -> list[str]:
        """The arguments of a run that is started in `folder`, makes one set and saves it there, and judges nothing.

        Files that the run needs may be written to `folder`. Folders in `arguments` are relative to where we are.
        """
        raise lacking(self.name, "command", "how it is run for a comparison")

    def saved(self, folder: Path, arguments: Sequence[str]) -> dict[int, SyntheticSet]:
        """The sets that a run by `command` left in `folder`, by the iterations they were made in.

        What their images mean they say by their space or, as `ddplug.lab.evaluate.with_space` has it, by their
        meaning.
        """
        raise lacking(self.name, "saved", "where a run leaves its sets")

    def expected_setting(self, arguments: Sequence[str]) -> tuple[str, str, int]:
        """Return the `setting` of a run with `arguments`; by default from `defaults`' method, dataset and ipc."""
        given = self.options(arguments)
        if not {"dataset", "ipc"} <= set(given):
            raise lacking(self.name, "expected_setting", "what a run will distil")
        return str(given.get("method", self.name)).lower(), str(given["dataset"]).lower(), given["ipc"]

    def views_per_class(self, arguments: Sequence[str]) -> int:
        """Number of images of a class that the layer sees; by default the images per class."""
        return self.expected_setting(arguments)[2]

    def extra_inputs(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Return further inputs of a run as JSON, besides arguments, data set and checkout: files they name, say."""
        return {}


def upstream(name: str) -> Host:
    """Return the adapter of the patched host `name`; raise `HostError` if there is no host of that name."""
    made = registry.make(name)
    if not isinstance(made, Host):
        raise HostError(f"there is no host '{name}' with a patch; ddplug knows {', '.join(registry.names())}.")
    return made


def comparable(name: str) -> Host:
    """Return the same for a comparison; raise `HostError` if the adapter lacks `command` or `saved`."""
    made = upstream(name)
    missing = [each for each in ("command", "saved") if getattr(type(made), each) is getattr(Host, each)]
    if missing:
        raise HostError(
            f"`ddplug compare` cannot find the sets of {name}, whose adapter has no {' and no '.join(missing)}. Run it "
            "with `ddplug run`, once per weight, and judge its sets; or add them, see docs/hosts/own.md."
        )
    return made


def linked(name: str, folder: Path) -> None:
    """Make `folder` the place of networks that the host looks for in `name`, where it is started."""
    trained = Path(name).resolve()
    if trained.is_dir():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(trained, target_is_directory=True)


def _fit(spec: HostSpec, file: Path) -> tuple[bool, bool]:
    """Return if `file` is the host's script, patched or not, and if its clone has the host's name."""
    file = file.resolve()
    repo, wanted = file.parents[len(Path(spec.script).parts) - 1], spec.files.get(spec.script, "")
    known = file.is_file() and state(spec.patch, spec.script, file.read_bytes(), wanted) != "other"
    return known, repo.name == spec.folder
