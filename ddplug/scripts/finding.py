"""`ddplug find`: the places in a script where views of the synthetic images are made, found by running it.

The script runs in a process of its own, `python -m ddplug.scripts.finding JSON`, until an optimizer has stepped images.
Meanwhile every function that returns something like a batch of images is noted. Those whose result leads back to the
stepped images, by autograd's graph, are places. No name decides.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import types
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode

from ddplug.attaching.labels import held_labels
from ddplug.attaching.rows import rows_in
from ddplug.attaching.stepped import like_images, stepped_images
from ddplug.core.autograd import leaves, nodes_behind, stepped_by
from ddplug.errors import HostError
from ddplug.hosting.script import CudaOnCpu
from ddplug.scripts.any_script import AT_CALLS, OPTIMIZER, Unpatched
from ddplug.scripts.frames import Variables, calling, is_hosts, place_of, scope_of
from ddplug.scripts.placing import calls_in, folders_of, functions_of, read, value_at
from ddplug.utils.files import write_json

NOTED = 3000
"""Results that are kept until an optimizer steps."""


@dataclass
class _Result:
    code: types.CodeType
    caller: str
    """FILE of the line that called."""
    line: int
    span: tuple[int | None, ...]
    """Position of the call in that file: first and last line, first and last column."""
    tensor: Tensor
    within: list[types.CodeType]
    """The host's functions under way then, but for this one."""


class _Seen(TorchFunctionMode):
    """Mode in which a function of torch that the host calls returns through a frame, so that its result is noted."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`."""
        return func(*args, **(kwargs or {}))


_TORCH = (_Seen.__torch_function__.__code__, CudaOnCpu.__torch_function__.__code__)
"""Functions through which those of torch return."""


class Looking:
    """Notes what the functions of a script return until an optimizer steps images.

    Args:
        script: the script, and how it is run.
        arguments: its own command line.
    """

    def __init__(self, script: Unpatched, arguments: Sequence[str]) -> None:
        self._script, self._arguments = script, arguments
        self._results: deque[_Result] = deque(maxlen=NOTED)
        self._taken: deque[Any] = deque(maxlen=NOTED)
        """Nodes of autograd of the images that modules were called on."""
        self._others: list[str] = []

    def start(self, found: Callable[[list[str]], object]) -> None:
        """Begin to look; `found` is called with what to print at the first step of images."""

        def step(optimizer: Optimizer, *_: object) -> None:
            if lines := self._stepped(optimizer):
                sys.setprofile(None)
                found(lines)

        register_optimizer_step_pre_hook(step)
        register_module_forward_pre_hook(self._called)
        _Seen().__enter__()  # type: ignore[no-untyped-call]
        sys.setprofile(self._returned)

    def nothing(self) -> list[str]:
        """Return what to print if no images were stepped."""
        return [
            "No torch optimizer stepped a tensor that may be images (n, c, h, w) or (n, d). Stepped were: "
            f"{'; '.join(dict.fromkeys(self._others)) or 'nothing'}.",
            "If images are made of these, by a generator say, name the line where: `ddplug run --script SCRIPT --at "
            "FILE.py:LINE --labels EXPRESSION`. If images are moved without an optimizer, put the layer into the loop.",
        ]

    def _called(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        self._taken += [each.grad_fn for each in args if isinstance(each, Tensor) and _viewlike(each)]

    def _returned(self, frame: types.FrameType, event: str, result: Any) -> None:
        if event != "return" or not isinstance(result, Tensor | tuple | list):
            return
        caller = frame.f_back
        tensor = result if isinstance(result, Tensor) else next(iter(result), None)
        if caller is None or not isinstance(tensor, Tensor) or not _viewlike(tensor):
            return
        if is_hosts(frame.f_code.co_filename) or is_hosts(caller.f_code.co_filename):
            code = caller.f_code
            span = next(islice(code.co_positions(), caller.f_lasti // 2, None))
            within = [each.f_code for each in calling() if each is not frame]
            self._results.append(_Result(frame.f_code, code.co_filename, caller.f_lineno, span, tensor, within))

    def _stepped(self, optimizer: Optimizer) -> list[str]:
        """Return what to print about a step, the best command first; nothing if it is not of images."""
        large = stepped_images(optimizer, None)
        images = [each for each in large if each.ndim < 4 or like_images(each)]
        frames = list(calling())
        where = place_of(frames[0]) if frames else ""
        labels, doubt, alone = _labels(images, frames)
        made = len({each.shape[1:] for each in large if each.ndim > 2}) > 1
        # Rows of a matrix are images only if they have labels.
        if not images or made or (images[0].ndim < 4 and not labels):
            return self._made(optimizer, where)
        stepped = ", ".join(str(tuple(each.shape)) for each in images[:4])
        known = f"labels '{labels}'" if labels else doubt
        lines = [f"{type(optimizer).__name__} steps images {stepped} at {where}; {known.removesuffix('.')}."]
        more = ["--term", "cmi_real", "--data", "DATA"] if alone else []
        if alone:
            lines.append(
                "Every class has one image. CMI compares the images of a class, so it is 0 here. The commands have CMI "
                "around the centroids of real images: DATA is a folder of these, or a data set's name with --data-path."
            )
        lines += self._commands(images, labels, more)
        lines.append(f"At the steps of the images{_unit(*images)}, with augmented views of the regulariser's own:")
        lines.append(self._command(OPTIMIZER, labels, more, *images))
        return lines

    def _made(self, optimizer: Optimizer, where: str) -> list[str]:
        """Return what to print about a step of tensors of which images are made; nothing if none are."""
        stepped = stepped_by(optimizer)
        shapes = ", ".join(str(tuple(each.shape)) for each in stepped[:3])
        steps = f"{type(optimizer).__name__} of {len(stepped)} tensors, {shapes}"
        if not (commands := self._commands(stepped, "", [])):
            self._others.append(steps)
            return []
        known = "images are made of these. Name the class of each view by --labels"
        return [f"A step of {steps}, at {where}; {known}.", *commands]

    def _commands(self, images: list[Tensor], labels: str, more: list[str]) -> list[str]:
        """Return lines about the places of views of `images`, each followed by its command."""
        lines = []
        for at, (calls, last) in self._places(images).items():
            views, caller = last.tensor, f"{Path(last.caller).name}:{last.line}"
            lines.append(
                f"{at} makes views {tuple(views.shape)}, {calls} calls in a step, last at {caller}{_unit(views)}:"
            )
            lines.append(self._command(at, labels, more, views))
        return lines

    def _places(self, images: list[Tensor]) -> dict[str, tuple[int, _Result]]:
        """Return the last three places of results that lead back to `images`: number of calls and the last result.

        If modules took such images, their makers alone are places: a loss may go on with images, too.
        """
        ids = {id(each) for each in images}
        made = [each for each in self._results if each.tensor.grad_fn is not None]
        results = [each for each in made if any(id(leaf) in ids for leaf in leaves([each.tensor]))]
        makers = {each.code for each in results}
        taken = nodes_behind(node for node in self._taken if node is not None)
        enter = [each for each in results if each.tensor.grad_fn in taken]
        results = enter or results
        places: list[tuple[str, _Result]] = []
        lesser: list[tuple[str, _Result]] = []
        for result in reversed(results):
            if any(code in makers for code in result.within) or (at := self._at(result)) is None:
                continue  # a part of a place
            if result.code in _TORCH and any(_equal(result, each) for each in results):
                continue  # a copy of what a function made
            whole = at.count(":") == 1
            nearest = bool(enter) and (not places or at == places[0][0])
            if nearest or (whole and result.code not in _TORCH):
                places.append((at, result))
            elif whole:
                lesser.append((at, result))
        places = places or lesser
        calls = Counter(at for at, _ in places)
        last = dict(reversed(places))
        return {at: (calls[at], last[at]) for at in list(dict.fromkeys(at for at, _ in places))[:3]}

    def _at(self, result: _Result) -> str | None:
        """Spelling of a place for `--at`: the function if it is the host's, else the line or the call in it."""
        path, within = Path(result.code.co_filename), result.code.co_qualname
        if not is_hosts(str(path)) or within not in functions_of(_tree(path)):
            path, within = Path(result.caller), str(result.line)
            if not is_hosts(str(path)):
                return None
            value = value_at(_tree(path), result.line)
            if value is None or _span(value) != result.span:
                calls = calls_in(_tree(path), result.line).items()
                name = next((name for name, found in calls if result.span in map(_span, found)), None)
                if name is None:
                    return None
                within = f"{within}:{name}"
        folders = folders_of(self._script.script, self._script.path)
        return next((f"{path.relative_to(each)}:{within}" for each in folders if path.is_relative_to(each)), None)

    def _command(self, at: str, labels: str, more: list[str], *views: Tensor) -> str:
        words = [
            *self._script.command("run", at),
            *([] if labels else ["--labels", "EXPRESSION"]), *(["--input-space", "unit"] if _unit(*views) else []),
            *more, "--proxies", "POOL",
            *(["--", *self._arguments] if self._arguments else []),
        ]  # fmt: skip
        return f"   {shlex.join(words)}"


def _labels(images: list[Tensor], frames: list[types.FrameType]) -> tuple[str, str, bool]:
    """Find the images' labels among the variables of `frames`.

    Returns:
        Their name, or the reason why none is taken; and True if all are different.
    """
    variables = Variables()
    with variables.of(lambda: [*map(scope_of, frames)]):
        try:
            found = held_labels(variables, rows_in(*images), place_of(frames[0]) if frames else "", AT_CALLS)
        except HostError as error:
            return "", str(error), False
    if found is None:
        return "", "no labels among the variables there", False
    return found[0], "", len(found[1]) == len(torch.unique(found[1])) > 1


def _unit(*views: Tensor) -> str:
    """Return what to print of views that are in [0, 1], else an empty text."""
    ends = [torch.aminmax(each.detach()) for each in views]
    return " in [0, 1]" if all(end.min >= 0 and end.max <= 1 for end in ends) else ""


@functools.cache
def _tree(path: Path) -> ast.Module:
    """The syntax tree of a file, empty if it cannot be read."""
    try:
        return read(path)
    except HostError:
        return ast.Module([], [])


def _viewlike(tensor: Tensor) -> bool:
    return tensor.requires_grad and tensor.ndim == 4 and like_images(tensor)


def _equal(result: _Result, other: _Result) -> bool:
    return other.code not in _TORCH and torch.equal(other.tensor, result.tensor)


def _span(node: ast.expr) -> tuple[int | None, ...]:
    return node.lineno, node.end_lineno, node.col_offset, node.end_col_offset


def find(script: Unpatched, arguments: Sequence[str], *, seconds: float = 600) -> list[str]:
    """Run a script until an optimizer has stepped images, and return lines to print: what was seen, and commands.

    Args:
        script: the script, and how it is run.
        arguments: its own command line.
        seconds: after which it is ended.

    Raises:
        HostError: the script failed before; what it printed is above.
    """
    name = script.script.name
    if script.script.suffix == ".ipynb":
        raise HostError(
            f"{name} is a notebook, which find does not run. Attach in a cell: "
            "with ddplug.attach(optimizer, labels=labels, proxies='POOL'): ..."
        )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        given = json.dumps([asdict(script), list(arguments), seconds, out], default=str)
        ended = subprocess.run([sys.executable, "-m", "ddplug.scripts.finding", given], check=False)
        if out.is_file():
            lines: list[str] = json.loads(out.read_text())["lines"]
            return lines
    text = script.script.read_text(encoding="utf-8", errors="replace")
    jax = " It uses JAX, whose images ddplug cannot reach." if "import jax" in text else ""
    package = " It is a module of a package: name the folder that holds the package, --path FOLDER."
    raise HostError(
        f"{name} ended with status {ended.returncode} before an optimizer stepped anything; see above. Its own "
        f"arguments go after --.{jax}{package if 'from .' in text else ''}"
    )


def main() -> None:
    """Run what the command line says."""
    given, arguments, seconds, out = json.loads(sys.argv[1])
    script = Unpatched(**{**given, "script": Path(given["script"]), "path": tuple(map(Path, given["path"]))})

    def end(lines: list[str]) -> None:
        """Write the lines and end the process, whatever the script would do about an exception."""
        write_json({"lines": lines}, Path(out))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    looking = Looking(script, arguments)
    timer = threading.Timer(seconds, lambda: end(looking.nothing()))
    timer.daemon = True
    timer.start()
    looking.start(end)
    try:
        script.execute(arguments, {})
    except HostError:
        sys.exit(1)  # its traceback is printed
    end(looking.nothing())


if __name__ == "__main__":
    main()
