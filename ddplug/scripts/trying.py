"""`ddplug find --try`: candidate places, looked at while the script takes a few steps in a process of its own.

The process is `python -m ddplug.scripts.trying JSON`. It puts an observer at the places, which changes nothing, and
ends after so many backward passes that reached what one of them returned.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddplug.attaching.held import items_of
from ddplug.attaching.images import Images, Shown
from ddplug.attaching.labels import INTEGERS, LIKE_LABELS
from ddplug.errors import HostError
from ddplug.scripts.any_script import Unpatched
from ddplug.scripts.frames import Variables
from ddplug.scripts.placing import Place
from ddplug.scripts.view_calls import Call, ViewCalls
from ddplug.utils.files import write_json
from ddplug.utils.output import say


@dataclass
class Seen:
    """Observations of a place with synthetic images."""

    at: str
    """The place, as `--at` takes it."""
    where: str
    """FILE:LINE of the calls."""
    shape: list[int]
    """Shape of the views in the first call."""
    calls: int = 0
    passes: int = 0
    """Backward passes that brought them a gradient."""
    rows: str = ""
    """Rows of the images that they show."""
    labels: list[str] = field(default_factory=list)
    """Integers, one for each image, under names of labels."""
    others: list[str] = field(default_factory=list)
    """Integers of that length under other names."""


class Observer(ViewCalls):
    """Observer in the place of the layer: changes nothing, and records the calls."""

    def __init__(self, out: Path, at: dict[Place, str], passes: int, hosts: Sequence[Path]) -> None:
        super().__init__(self.see, hosts)
        self.out, self.passes, self.done = out, passes, 0
        self.found: dict[tuple[str, str], Seen] = {}
        self._at = at
        self._variables = Variables("--labels")
        self._images = Images(self._variables)
        self._reached: set[tuple[str, str]] = set()
        self._looking = False

    def see(self, call: Call) -> Tensor | None:
        """Record a call, and whether a gradient reaches its views."""
        key = str(call.place), call.where
        self._variables.scopes = call.scopes
        self._looking = True  # it may take gradients, which are none of the host's
        try:
            shown = self._images.shown(call.images, call.views)
        finally:
            self._variables.scopes = ()
            self._looking = False
        if shown is None:
            return None
        if key not in self.found:
            seen = self.found[key] = Seen(self._at[call.place], call.where, list(call.views.shape))
            seen.rows = rows_in_words(shown)
            for scope in call.scopes:
                for name, value in items_of(scope.local or scope.everywhere) if scope.code is not None else ():
                    if isinstance(value, Tensor) and value.shape == (shown.count,) and value.dtype in INTEGERS:
                        like = LIKE_LABELS.search(name.rpartition(".")[2])
                        (seen.labels if like else seen.others).append(f"{name} in {scope.where}")
        self.found[key].calls += 1
        call.views.register_hook(partial(self._reach, key))  # type: ignore[no-untyped-call]
        return call.views

    def _reach(self, key: tuple[str, str], _: Tensor) -> None:
        if not self._looking:
            self._reached.add(key)

    def passed(self) -> None:
        """A backward pass is over."""
        if self._looking or not self._reached:
            return
        for key in self._reached:
            self.found[key].passes += 1
        self._reached.clear()
        self.done += 1
        if self.done >= self.passes:
            self.end()

    def write(self) -> None:
        """Write what was seen."""
        write_json({"seen": [asdict(seen) for seen in self.found.values()], "passes": self.done}, self.out)

    def end(self) -> None:
        """Write it and end the process, whatever the script would do about an exception."""
        self.write()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def rows_in_words(shown: Shown) -> str:
    """Description of the rows that the views of a call show."""
    if shown.rows is None:
        return f"which rows of the images they show cannot be read: {shown.why}"
    synthetic = int((shown.rows >= 0).sum())
    real = f", beside {len(shown.rows) - synthetic} real ones" if shown.mixed else ""
    return f"{synthetic} views of the {shown.count} images{real}"


def counting(observer: Observer) -> None:
    """Report every backward pass to the observer from now on; never undone, as the process is its own."""

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            observer.passed()
            return result

        return called

    torch.autograd.backward = counted(torch.autograd.backward)
    torch.autograd.grad = counted(torch.autograd.grad)


def main() -> None:
    """Run what the command line says."""
    given = json.loads(sys.argv[1])
    script = Unpatched(
        Path(given["script"]), path=tuple(map(Path, given["path"])), redirect_cuda=given["redirect_cuda"],
        old_numpy=given["old_numpy"],
    )  # fmt: skip
    files = script.read()
    at = {replace(script, at=(text,)).places(files)[0]: text for text in given["at"]}
    observer = Observer(Path(given["out"]), at, given["passes"], script.hosts(files))
    counting(observer)
    timer = threading.Timer(given["seconds"], observer.end)
    timer.daemon = True
    timer.start()
    try:
        script.execute(given["arguments"], files, observer, list(at))
    finally:
        observer.write()


def try_places(
    script: Unpatched, at: Sequence[str], arguments: Sequence[str], *, passes: int = 3, seconds: float = 600
) -> list[Seen]:
    """Observe the places `at` in the first steps of the script, which runs in a process of its own.

    Args:
        script: the script, and how it is run.
        at: the places, as `--at` takes them.
        arguments: the script's command line.
        passes: backward passes that reach views, after which it is ended.
        seconds: after which it is ended in any case.

    Raises:
        HostError: the script failed before it got so far; what it printed is above.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seen.json"
        given = {
            "script": str(script.script), "path": [str(path) for path in script.path], "at": list(at), "out": str(out),
            "arguments": list(arguments), "passes": passes, "seconds": seconds, "redirect_cuda": script.redirect_cuda,
            "old_numpy": script.old_numpy,
        }  # fmt: skip
        ended = subprocess.run([sys.executable, "-m", "ddplug.scripts.trying", json.dumps(given)], check=False)
        if ended.returncode or not out.is_file():
            raise HostError(
                f"{script.name} ended with status {ended.returncode} before {passes} backward passes reached anything "
                "that a candidate returned; see above. Its own arguments go after --."
            )
        return [Seen(**each) for each in json.loads(out.read_text())["seen"]]


if __name__ == "__main__":
    from ddplug.errors import DDPlugError

    try:
        main()
    except DDPlugError as error:
        say(f"ddplug: error: {error}", error=True)
        sys.exit(2)
