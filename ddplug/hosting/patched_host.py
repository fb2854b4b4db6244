"""How the layer is put into a host: its patch, the check before a run, and `ddplug.attach` on the imported script."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddplug.attaching.hooks import Undo
from ddplug.core.regularizer import Regularizer
from ddplug.errors import AttachError
from ddplug.hosting.arguments import read_options
from ddplug.hosting.checkout import SHIPPED, HostSpec, load, table
from ddplug.hosting.inject import patch_module
from ddplug.hosting.layer import NAME, Attached
from ddplug.hosting.options import Inner, Views
from ddplug.hosting.patch import state
from ddplug.proxies.host import Host


class PatchedHost(Host):
    """A host with a patch. Nothing has to be implemented: `name` and `patches` say where the patch is.

    The patch is one and the same however it gets in: `ddplug run` puts its lines in while the script is read, `ddplug
    patch` writes them to the files, and `ddplug.attach` gives them to the functions of the imported module.
    """

    name: str
    patches: str | Path = SHIPPED
    """The package, or the folder, with `hosts.toml` and NAME.patch."""
    defaults: Mapping[str, Any] = types.MappingProxyType({})
    """Those of the host's own options that the adapter looks at, with the host's defaults: text, int, or False."""
    short: tuple[str, ...] = ()
    """Those of them that the host also takes by their first letter."""
    views: Views = "host"
    inner: Inner = "one"

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
        """Whether `host` is the imported script, of all hosts' whose scripts have its name the one that fits best."""
        spec = self.spec()
        file = Path(getattr(host, "__file__", None) or "")
        if not isinstance(host, types.ModuleType) or file.name != Path(spec.script).name:
            return False
        others = (load(name, self.patches) for name in table(self.patches) if name != self.name)
        rivals = [other for other in others if Path(other.script).name == file.name]
        return not rivals or _fit(spec, file) >= max(_fit(rival, file) for rival in rivals)

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


def _fit(spec: HostSpec, file: Path) -> tuple[bool, bool]:
    """Whether `file` is the host's script, patched or not, and whether its clone's name is the host's."""
    file = file.resolve()
    repo, wanted = file.parents[len(Path(spec.script).parts) - 1], spec.files.get(spec.script, "")
    known = file.is_file() and state(spec.patch, spec.script, file.read_bytes(), wanted) != "other"
    return known, repo.name == spec.folder
