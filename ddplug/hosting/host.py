"""The adapter of a host: the meaning of its names, how to install the layer, and where its sets are."""

from __future__ import annotations

import pkgutil
import types
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ddplug.attaching import registry
from ddplug.attaching.hooks import Undo
from ddplug.core.flags import HOSTS, keywords
from ddplug.core.regularizer import Regularizer
from ddplug.datasets.synthetic import SyntheticSet
from ddplug.errors import HostError, noted
from ddplug.hosting.arguments import absolute, read_options, refuse, refuse_short
from ddplug.hosting.checkout import SHIPPED, HostSpec, load, table
from ddplug.hosting.inject import patch_module
from ddplug.hosting.layer import NAME, Attached, Layer, layer_of, started
from ddplug.hosting.names import Names, lacking
from ddplug.hosting.options import Inner, Views, options_of
from ddplug.hosting.patch import state
from ddplug.hosting.proxies import resolve
from ddplug.utils.output import say


class Host(Names):
    """Base class of the adapters of hosts. `ddplug compare` also needs `saved`.

    The attributes are set by a class, or by the host's row in `hosts.toml` (see `from_row`). In the methods,
    `arguments` are the host's command line. `ddplug run` inserts the patch while the script is read, `ddplug patch`
    writes it to the files, and `ddplug.attach` gives the patched code to the functions of the imported module.
    """

    patches: str | Path = SHIPPED
    """The package, or the folder, with `hosts.toml` and NAME.patch."""
    defaults: Mapping[str, Any] = MappingProxyType({})
    """The host's options that the adapter reads, with the host's own defaults: text, int, or False for a flag."""
    short: Sequence[str] = ()
    """Options of `defaults` that the host also takes by their first letter."""
    folders: Sequence[str] = ()
    """Options of `defaults` that name folders, which a comparison makes absolute."""
    links: Sequence[str] = ()
    """Folders of trained networks that the host looks for where it is started; {OPTION} is the option's value."""
    compare: Sequence[str] = ()
    """Arguments of a comparison's run, which makes one set in {folder} and evaluates nothing."""
    reserved: Sequence[str] = ()
    """Options besides those in `compare` that a comparison sets."""
    spelt_out: Sequence[str] = ()
    """Further options that the adapter reads and that may not be abbreviated."""
    quiet_env: Mapping[str, str] = MappingProxyType({})
    """Environment variables of a comparison's runs, unless they are set."""
    views: Views = "host"
    inner: Inner = "one"

    def spec(self) -> HostSpec:
        """The record of the host and its patch."""
        return load(self.name, self.patches)

    def options(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The options in `defaults` by a command line; `HostError` for text instead of a number."""
        return read_options(arguments, self.defaults, self.short)

    def preflight(self, arguments: Sequence[str]) -> None:
        """Raise `HostError` for arguments with which the host would fail late and with an unclear error."""

    def setting(self, args: Any) -> tuple[str, str, int]:
        """The setting; the host is named by its option `method` if `defaults` has it."""
        name, dataset, ipc = super().setting(args)
        return str(args.method).lower() if "method" in self.defaults else name, dataset, ipc

    def recognises(self, host: object) -> bool:
        """Return True if `host` is the imported script and no other host's script of that name fits better.

        A script of the same name is another one, unless its text or its clone's folder is the host's.
        """
        if not isinstance(host, types.ModuleType):
            return False
        spec, file = self.spec(), Path(getattr(host, "__file__", None) or "")
        if spec.run is not None or file.name != Path(spec.script).name:
            return False
        others = (load(name, self.patches) for name in table(self.patches) if name != self.name)
        rivals = [other for other in others if Path(other.script).name == file.name]
        fit = _fit(spec, file)
        return any(fit) and all(fit >= _fit(rival, file) for rival in rivals)

    def configure(self, *, views: Views = "host", inner: Inner = "one") -> None:
        """Take the options of `attach` that are not the regulariser's."""
        self.views, self.inner = views, inner

    def install(self, host: object, regularizer: Regularizer) -> Undo:
        """Add `regularizer` to the imported, unedited module `host`; returns a function that removes it (idempotent).

        Raises:
            HostError: already attached, or the module's file is not the one that the patch was made for.
        """
        assert isinstance(host, types.ModuleType)
        spec = self.spec()
        file = Path(host.__file__ or "").resolve()
        repo = file.parents[len(Path(spec.script).parts) - 1]
        if NAME in vars(host):
            raise HostError(
                f"{host.__name__} has ddplug in it already: detach() that handle first, or, if its file is patched, "
                "set --cmi_weight there."
            )
        text = spec.patched(repo)[spec.script]
        return patch_module(host, file.read_bytes(), text, Attached(self, regularizer, self.views, self.inner))

    def comparable(self, arguments: Sequence[str]) -> None:
        """Raise for arguments that a comparison sets itself, or with which no set would be saved."""
        words = pairwise((*self.compare, "--"))  # flags of ours may be repeated, options with a value may not
        ours = (word[2:] for word, value in words if word.startswith("--") and not value.startswith("--"))
        reserved = (*self.reserved, *ours)
        refuse_short(arguments, (*reserved, *self.spelt_out, *self.defaults))
        refuse(arguments, reserved)

    def command(self, arguments: Sequence[str], folder: Path) -> list[str]:
        """The arguments of a comparison's run in `folder`; folders in `arguments` are relative to the current one."""
        given = self.options(arguments)
        for name in self.links:
            _link(name.format(**given), folder)
        words = [word.format(folder=folder, **given) for word in self.compare]
        return [*arguments, *absolute(arguments, {name: self.defaults[name] for name in self.folders}), *words]

    def saved(self, folder: Path, arguments: Sequence[str]) -> dict[int, SyntheticSet]:
        """The sets that a run by `command` left in `folder`, by iteration; each has a space or a meaning."""
        raise lacking(self.name, "saved", "where a run leaves its sets")

    def expected_setting(self, arguments: Sequence[str]) -> tuple[str, str, int]:
        """The `setting` of a run with `arguments`, by default from the options method, dataset and ipc."""
        given = self.options(arguments)
        if not {"dataset", "ipc"} <= set(given):
            raise lacking(self.name, "expected_setting", "the data set of a run")
        return str(given.get("method", self.name)).lower(), str(given["dataset"]).lower(), given["ipc"]

    def views_per_class(self, arguments: Sequence[str]) -> int:
        """Number of images of a class that the layer sees; by default the images per class."""
        return self.expected_setting(arguments)[2]

    def extra_inputs(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Further inputs of a run as JSON, besides arguments, data set and checkout; for example a file's content."""
        return {}


def from_row(name: str, patches: str | Path = SHIPPED) -> Host:
    """The adapter of a host by the table `adapter` of its row in `hosts.toml`: a class and values of its attributes.

    The class is `Host` by default, one of `ddplug.hosting.shapes`, or MODULE:CLASS. `defaults` are added to those of
    the class.
    """
    given = dict(table(patches)[name].get("adapter", {}))
    kind = given.pop("class", "ddplug.hosting.host:Host")
    made: Host = pkgutil.resolve_name(kind if ":" in kind else f"ddplug.hosting.shapes:{kind}")()
    unknown = [attribute for attribute in given if not hasattr(made, attribute)]
    if unknown:
        raise HostError(f"the row of host '{name}' sets {', '.join(unknown)}, which {kind} does not have.")
    given["defaults"] = {**made.defaults, **given.get("defaults", {})}
    vars(made).update(given, name=name, patches=patches)
    return made


def upstream(name: str) -> Host:
    """The adapter of the host `name`; `HostError` if there is no host of that name."""
    made = registry.make(name)
    if not isinstance(made, Host):
        raise HostError(f"there is no host '{name}'; ddplug knows {', '.join(registry.names())}.")
    return made


def comparable(name: str) -> Host:
    """The adapter of a host for a comparison; `HostError` if it has no method `saved`."""
    made = upstream(name)
    if type(made).saved is Host.saved:
        raise HostError(
            f"`ddplug compare` cannot find the sets of {name}, whose adapter has no method `saved`. Run it with "
            "`ddplug run`, once for each weight, and judge its sets; or add the method, see docs/hosts/own.md."
        )
    return made


@noted
def start(host: str, args: Any, **context: Any) -> Layer:
    """The layer of one synthetic set, made from the host's options; at `--cmi_weight 0` one that does nothing.

    Args:
        host: the adapter's name.
        args: the host's options, ours among them.
        context: values for the adapter: normalisation, real data, number of the experiment, `steps` and so on.
    """
    options = options_of(args)
    if options["weight"] == 0:
        return Layer(None)
    adapter = upstream(host)
    pool = resolve(options["proxies"], adapter, args, context)
    regularizer = Regularizer(
        pool, input_space=pool.derived_space(adapter.space(args, context)),
        **keywords(options["weight"], adapter.setting(args), **{name: options[name] for name in HOSTS}),
    )  # fmt: skip
    regularizer.real.sample_from(lambda: adapter.real(args, context))
    say(f"ddplug: {host}, weight {options['weight']}, {pool}")
    return started(layer_of(adapter, regularizer, args, context, options["views"], options["inner"]))


def _link(name: str, folder: Path) -> None:
    """Make the trained networks in the folder `name` available in `folder`, if there are any."""
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
