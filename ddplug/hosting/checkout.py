"""Rows of `hosts.toml`, and the checkouts of the hosts that they describe."""

from __future__ import annotations

import importlib.resources
import os
import shlex
import tomllib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from ddplug.errors import HostError
from ddplug.hosting.patch import Patch, State, clear, inside, parse, states, write_all
from ddplug.utils.files import exclusive_lock, user_path
from ddplug.utils.records import check_record, like

LOCK = ".ddplug-patch.lock"
_AGAIN = "Reinstall the package that it is a part of."
_Hash = Annotated[str, like("[0-9a-f]{40}")]

SHIPPED = "ddplug.patches"
"""The package of our own patches and their table."""


class _Run(TypedDict):
    """Options of `ddplug run` for a host without a patch."""

    at: NotRequired[list[str]]
    labels: NotRequired[str]
    input_space: NotRequired[str]
    term: NotRequired[str]


class _Record(TypedDict):
    """A host's table in `hosts.toml`."""

    title: str
    url: str
    licence: str
    folder: str
    script: str
    commit: _Hash
    files: dict[str, _Hash]
    path: NotRequired[list[str]]
    packages: NotRequired[list[str]]
    numpy_aliases: NotRequired[list[str]]
    redirect_cuda: NotRequired[bool]
    places: NotRequired[dict[str, dict[str, str]]]
    adapter: NotRequired[dict[str, Any]]
    run: NotRequired[_Run]


@dataclass(frozen=True)
class HostSpec:
    """An upstream repository at one commit; `hosts.toml` explains the fields."""

    name: str
    title: str
    url: str
    commit: str
    licence: str
    folder: str
    script: str
    files: Mapping[str, str]
    patch: Patch
    path: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    redirect_cuda: bool = False
    numpy_aliases: tuple[str, ...] = ()
    places: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    adapter: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] | None = None
    """None for a host with a patch; another one's patch is empty."""

    def __post_init__(self) -> None:
        if set(self.files) != set(self.patch.files):
            touched, known = sorted(self.patch.files), sorted(self.files)
            raise HostError(f"the patch of {self.name} touches {touched}, but hashes are known of {known}.")

    @property
    def clone(self) -> str:
        """The commands that fetch the right checkout."""
        return f"git clone {self.url} && git -C {self.folder} checkout {self.commit}"

    def patched(self, repo: Path) -> dict[str, bytes]:
        """The files of the patch with our lines, in memory; `HostError` if it is not the right checkout."""
        held = self.check(repo)
        already = [name for name, how in held.items() if how == "patched"]
        if already:
            raise HostError(
                f"{', '.join(already)} in '{repo}' is patched already: run the script itself with --cmi_weight, or "
                f"take the patch out first with `{self._command(repo)} --reverse`."
            )
        return {name: self.patch.apply_text(name, inside(repo, name).read_bytes()) for name in self.files}

    def check(self, repo: Path) -> dict[str, State]:
        """The state of each file, "clean" or "patched", the same for all.

        Raises:
            HostError: `repo` is not a checkout of this host.
            HostError: a file is not the one the patch was made for; the message has the lines to insert by hand.
        """
        held = self.states(repo)
        if len(set(held.values())) > 1:
            raise HostError(
                f"some files in '{repo}' are patched and some are not ({_spelt(held)}): an earlier `ddplug patch` was "
                f"interrupted. Complete it with `{self._command(repo)}`, or take it out with "
                f"`{self._command(repo)} --reverse`. Nothing was changed."
            )
        return held

    def states(self, repo: Path) -> dict[str, State]:
        """The state of each file, "clean" or "patched"; both if a patching was interrupted. Raises as `check`."""
        if not repo.is_dir():
            raise HostError(f"there is no folder '{repo}'. Get {self.name} with: {self.clone}")
        missing = [name for name in (self.script, *self.files) if not os.path.lexists(repo / name)]
        if missing:
            raise HostError(
                f"'{repo}' is not {self.title} ({self.url}): it has no "
                f"{', '.join(dict.fromkeys(missing))}. Get it with: {self.clone}"
            )
        held = states(self.patch, repo, self.files)
        other = [name for name, how in held.items() if how == "other"]
        if other and self.run is not None:
            raise HostError(
                f"{', '.join(other)} in '{repo}' is not the file of commit {self.commit} of {self.url}. Check it out, "
                f"or find a place that fits with `ddplug find {repo / self.script} -- ARGUMENTS`."
            )
        if other:
            hand = "".join(self.patch.by_hand(name, self.places.get(name)) for name in other)
            raise HostError(
                f"{', '.join(other)} in '{repo}' is not the file that the patch was made for. "
                f"Nothing was changed. Check out commit {self.commit} of {self.url}, or insert these lines by hand:\n"
                f"{hand.rstrip()}"
            )
        return held

    def apply(self, repo: Path) -> list[str]:
        """Patch the checkout, all files or none, and return the names of the changed files.

        After an interrupted patching these are the remaining files. Raises `HostError` if all are patched,
        `InputError` if another process is patching this checkout.
        """
        with exclusive_lock(repo / LOCK, repo) if repo.is_dir() else nullcontext():
            held = self.states(repo)
            if "clean" not in held.values():
                self.patched(repo)  # raises
            return self._change(repo, [name for name, how in held.items() if how == "clean"], self.patch.apply_text)

    def reverse(self, repo: Path) -> list[str]:
        """Remove the patch from the files that have it, to the byte; their names. `HostError` if no file has it."""
        with exclusive_lock(repo / LOCK, repo) if repo.is_dir() else nullcontext():
            held = self.states(repo)
            if "patched" not in held.values():
                raise HostError(f"'{repo}' is not patched; there is nothing to take out.")
            names = [name for name, how in held.items() if how == "patched"]
            return self._change(repo, names, self.patch.reverse_text)

    def _command(self, repo: Path) -> str:
        return shlex.join(["ddplug", "patch", self.name, str(repo)])

    def _change(self, repo: Path, names: list[str], change: Callable[[str, bytes], bytes]) -> list[str]:
        clear(repo, self.files)
        write_all(repo, {name: change(name, inside(repo, name).read_bytes()) for name in names})
        return names


def load(name: str, patches: str | Path = SHIPPED) -> HostSpec:
    """The host `name` in `patches`, a package or a folder with `hosts.toml` and, for hosts with a patch, NAME.patch.

    Raises:
        HostError: the row or the patch is missing, or the row is not complete.
        HostError: the patch is invalid, or for other files than the row names.
    """
    known = table(patches)
    if name not in known:
        raise HostError(f"there is no host '{name}' in the hosts.toml of {patches}; it has {', '.join(sorted(known))}.")
    if "run" in known[name]:
        return from_record(name, known[name], None)
    patch = _folder(patches) / f"{name}.patch"
    if not patch.is_file():
        raise HostError(f"{patches} has a table of host '{name}', but no {name}.patch beside it.")
    return from_record(name, known[name], patch.read_bytes())


def from_record(name: str, record: Mapping[str, Any], raw: bytes | None) -> HostSpec:
    """The host of a row of `hosts.toml` and the text of its patch; None for a host without one."""
    check_record(dict(record), _Record, f"the record of host '{name}' in hosts.toml", _AGAIN, error=HostError)
    fields = {key: value for key, value in record.items() if key in _Record.__annotations__}
    fields["places"] = {
        file: {int(line): text for line, text in lines.items()} for file, lines in fields.get("places", {}).items()
    }
    for listed in ("path", "packages", "numpy_aliases"):
        fields[listed] = tuple(fields.get(listed, ()))
    patch = parse(raw) if raw is not None else Patch(dict.fromkeys(fields["files"], ()), b"")
    return HostSpec(name=name, patch=patch, **fields)


def find_repo(spec: HostSpec, given: Path | None = None) -> Path:
    """The checkout of a host: `given`, or in the folder of DDPLUG_HOSTS, or in the current folder; resolved.

    `HostError` if none of these has the host's script; `HostSpec.check` compares its files.
    """
    if given is not None:
        return user_path(given).resolve()
    hosts = os.environ.get("DDPLUG_HOSTS")
    places = [*([user_path(hosts) / spec.folder] if hosts else []), Path.cwd(), Path.cwd() / spec.folder]
    for place in places:
        if (place / spec.script).is_file():
            return place.resolve()
    looked = ", ".join(f"'{place}'" for place in places)
    raise HostError(
        f"no checkout of {spec.title} was found; looked in {looked}. Name it with --repo PATH, or get it with: "
        f"{spec.clone}"
    )


@cache
def table(patches: str | Path = SHIPPED) -> dict[str, dict[str, Any]]:
    """The rows of the `hosts.toml` of a package or folder, by host; `HostError` if it is missing or not TOML."""
    file = _folder(patches) / "hosts.toml"
    if not file.is_file():
        raise HostError(f"there is no hosts.toml in '{patches}'; docs/hosts/own.md explains it.")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise HostError(f"'{file}' is not TOML: {error}. {_AGAIN}") from error


def _folder(patches: str | Path) -> Traversable:
    """The folder at a path, or that of the package with this name."""
    if isinstance(patches, Path):
        return patches
    try:
        return importlib.resources.files(patches)
    except ModuleNotFoundError as error:
        raise HostError(f"there is no package '{patches}' to hold hosts.toml; a folder is given as a Path.") from error


def _spelt(held: Mapping[str, State]) -> str:
    return ", ".join(f"{name} {how}" for name, how in held.items())
