"""`ddplug find`: the places in a script where views of the synthetic images are made, found by running it.

The script runs in a process of its own, `python -m ddplug.scripts.finding JSON`, until an optimizer has stepped images.
Meanwhile every function that returns something like a batch of images is noted. Those whose result leads back to the
stepped images, by autograd's graph, are places. No name decides.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import types
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ddplug.attaching.labels import chosen_labels
from ddplug.attaching.rows import lead
from ddplug.core.autograd import leaves, stepped_by
from ddplug.errors import DDPlugError, HostError
from ddplug.scripts.any_script import Unpatched
from ddplug.scripts.at_steps import OPTIMIZER, stepped_images
from ddplug.scripts.frames import Variables, calling, place_of, scope_of
from ddplug.scripts.placing import has_value
from ddplug.scripts.sources import File, read
from ddplug.scripts.view_calls import own_files
from ddplug.utils.files import write_json

NOTED = 3000
"""Results that are kept until an optimizer steps."""
SMALLEST = 6
"""Pixels on a side of the smallest image."""

SELECTING = {
    f"{name}Backward" for name in (
        "Slice", "Index", "IndexSelect", "Select", "Split", "SplitWithSizes", "Unbind", "Embedding", "Cat", "Stack",
        "Clone", "View", "UnsafeView", "Reshape", "Alias", "ToCopy", "Unsqueeze", "Squeeze", "Permute",
    )
} | {"torch::autograd::AccumulateGrad"}  # fmt: skip
"""Nodes of a graph by which rows are taken and joined, and nothing is changed."""


@dataclass
class Found:
    """A place for the layer."""

    at: str
    """Spelling for `--at`."""
    where: str
    """FILE:LINE of the last call."""
    calls: int
    """Calls in a step."""
    shape: list[int]
    """Shape of the views."""
    changed: bool
    """True if the views are more than rows of the images."""


@dataclass
class Report:
    """Everything that a few steps of a script showed."""

    images: list[list[int]] = field(default_factory=list)
    """Shapes of the tensors that an optimizer stepped and that may be images."""
    optimizer: str = ""
    where: str = ""
    """FILE:LINE of the step."""
    labels: str = ""
    """Name of the images' labels among the variables there."""
    doubt: str = ""
    """The reason for which labels are missing."""
    others: list[str] = field(default_factory=list)
    """Descriptions of optimizers that stepped something else."""
    places: list[Found] = field(default_factory=list)
    """Places, the one nearest to the loss first."""


@dataclass
class _Result:
    code: types.CodeType
    caller: str
    """FILE of the line that called."""
    line: int
    tensor: Tensor
    within: list[types.CodeType]
    """The functions under way then."""


class Looking:
    """Notes what functions return until an optimizer steps images.

    Args:
        script: the script that runs.
        files: its own files.
        found: called with the report at the first step of images.
    """

    def __init__(self, script: Unpatched, files: dict[Path, File], found: Callable[[Report], object]) -> None:
        self.report, self._found = Report(), found
        self._is_hosts = own_files(script.hosts(files))
        self._files = dict(files)
        self._results: deque[_Result] = deque(maxlen=NOTED)
        self._variables = Variables("--labels")

    def start(self) -> None:
        """Begin to look."""
        register_optimizer_step_pre_hook(self._step)
        sys.setprofile(self._returned)

    def _returned(self, frame: types.FrameType, event: str, result: Any) -> None:
        if event != "return" or not isinstance(result, Tensor | tuple | list):
            return
        caller = frame.f_back
        tensor = result if isinstance(result, Tensor) else next(iter(result), None)
        if caller is None or not isinstance(tensor, Tensor) or not _like_images(tensor):
            return
        if self._is_hosts(frame.f_code.co_filename) or self._is_hosts(caller.f_code.co_filename):
            within = [frame.f_code for frame in calling(self._is_hosts)]
            self._results.append(_Result(frame.f_code, caller.f_code.co_filename, caller.f_lineno, tensor, within[1:]))

    def _step(self, optimizer: Optimizer, *_: object) -> None:
        images = stepped_images(optimizer, None)
        images = [each for each in images if each.ndim < 4 or (min(each.shape[-2:]) >= SMALLEST and each.shape[-3] < 5)]
        frames = list(calling(self._is_hosts))
        report = self.report
        report.where = place_of(frames[0]) if frames else ""
        report.labels, report.doubt = self._labels(images, frames)
        flat = images and images[0].ndim < 4
        if not images or (flat and not report.labels):  # rows of a matrix are images only if they have labels
            shapes = [tuple(each.shape) for each in stepped_by(optimizer)]
            said = f"{type(optimizer).__name__} of {len(shapes)} tensors, {', '.join(map(str, shapes[:3]))}"
            if said not in report.others:
                report.others.append(said)
            return
        sys.setprofile(None)
        report.images, report.optimizer = [list(each.shape) for each in images], type(optimizer).__name__
        report.places = self._places(images)
        self._found(report)

    def _labels(self, images: list[Tensor], frames: list[types.FrameType]) -> tuple[str, str]:
        """Return the name of the images' labels among the variables of `frames`, or the reason why none is taken."""
        self._variables.scopes = [scope_of(frame) for frame in frames]
        count = sum(math.prod(lead(each)) for each in images)
        try:
            for group in self._variables.groups():
                name, _ = chosen_labels(group, count, place_of(frames[0]))
                if name is not None:
                    return name, ""
        except DDPlugError as error:
            return "", str(error)
        finally:
            self._variables.scopes = ()
        return "", ""

    def _places(self, images: list[Tensor]) -> list[Found]:
        """Return the places of the results that lead back to `images`, the last one first."""
        ids = {id(each) for each in images}
        found: dict[str, Found] = {}
        results = [
            each
            for each in self._results
            if each.tensor.grad_fn is not None and any(id(leaf) in ids for leaf in leaves([each.tensor]))
        ]
        makers = {each.code for each in results}
        for result in reversed(results):
            if any(code in makers for code in result.within) or (at := self._at(result)) is None:
                continue  # a part of a place
            if at not in found:
                changed = _changes(result.tensor.grad_fn)
                where = f"{Path(result.caller).name}:{result.line}"
                found[at] = Found(at, where, 0, list(result.tensor.shape), changed)
            found[at].calls += 1
        return sorted(found.values(), key=lambda each: not each.changed)

    def _at(self, result: _Result) -> str | None:
        """Spelling of a place for `--at`: the function if it is the host's, else the line that calls it."""
        path = Path(result.code.co_filename)
        if self._is_hosts(str(path)):
            file = self._file(path)
            name = result.code.co_qualname
            return f"{path.stem}:{name}" if file is not None and name in file.definitions else None
        caller = self._file(Path(result.caller))
        if caller is None or not has_value(caller.tree, result.line):
            return None
        return f"{Path(result.caller).name}:{result.line}"

    def _file(self, path: Path) -> File | None:
        if path not in self._files:
            try:
                self._files[path] = read(path)
            except (DDPlugError, OSError):
                return None
        return self._files[path]


def _changes(node: Any) -> bool:
    """Return True if the graph that ends in `node` has more than selections and joins of rows."""
    names, waiting = set(), [node]
    seen = set()
    while waiting:
        if (one := waiting.pop()) is not None and one not in seen:
            seen.add(one)
            names.add(one.name().rstrip("0123456789"))
            waiting += [before for before, _ in one.next_functions]
    return not names <= SELECTING


def _like_images(tensor: Tensor) -> bool:
    shape = tensor.shape
    return tensor.requires_grad and len(shape) == 4 and shape[1] < 5 and min(shape[2:]) >= SMALLEST


def find(script: Unpatched, arguments: Sequence[str], *, seconds: float = 600) -> Report:
    """Run a script until an optimizer has stepped images, or for so many seconds, and report what was seen.

    Args:
        script: the script, and how it is run.
        arguments: its own command line.
        seconds: after which it is ended.

    Raises:
        HostError: the script failed before; what it printed is above.
    """
    if script.script.suffix == ".ipynb":
        raise HostError(
            f"{script.name} is a notebook, which find does not run. Attach in a cell: "
            "with ddplug.attach(optimizer, labels=labels, proxies='POOL'): ..."
        )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        given = {
            "script": str(script.script), "path": [str(path) for path in script.path], "out": str(out),
            "arguments": list(arguments), "seconds": seconds, "redirect_cuda": script.redirect_cuda,
            "old_numpy": script.old_numpy,
        }  # fmt: skip
        ended = subprocess.run([sys.executable, "-m", "ddplug.scripts.finding", json.dumps(given)], check=False)
        if not out.is_file():
            text = script.script.read_text(encoding="utf-8", errors="replace")
            jax = " It uses JAX, whose images ddplug cannot reach." if "import jax" in text else ""
            package = (
                " It is a part of a package: write a file that holds only `import runpy; "
                "runpy.run_module('PACKAGE.MODULE', run_name='__main__')` beside the package, and name that."
                if "from ." in text
                else ""
            )
            raise HostError(
                f"{script.name} ended with status {ended.returncode} before an optimizer stepped anything; see above. "
                f"Its own arguments go after --.{jax}{package}"
            )
        content = json.loads(out.read_text())["report"]
        return Report(**{**content, "places": [Found(**each) for each in content["places"]]})


def commands(script: Unpatched, arguments: Sequence[str], report: Report) -> list[str]:
    """Return the lines that `ddplug find` prints: the tensors that are stepped, and commands, the best first."""
    if not report.images:
        seen = "; ".join(report.others) or "nothing"
        return [
            f"No torch optimizer stepped a tensor that may be images (n, c, h, w) or (n, d). Stepped were: {seen}.",
            "If images are made of these, by a generator say, name the line where: ddplug run --script SCRIPT --at "
            "FILE.py:LINE --labels EXPRESSION. If images are moved without an optimizer, put the layer into the loop.",
        ]
    how = [
        *(word for folder in script.path for word in ("--path", str(folder))),
        *(["--redirect-cuda"] if script.redirect_cuda else []), *(["--old-numpy"] if script.old_numpy else []),
    ]  # fmt: skip
    shapes = ", ".join(str(tuple(shape)) for shape in report.images[:4])
    labels = f"labels '{report.labels}'" if report.labels else report.doubt or "no labels among the variables there"
    lines = [f"{report.optimizer} steps images {shapes} at {report.where}; {labels}."]
    ask = [] if report.labels else ["--labels", "EXPRESSION"]
    for place in report.places[:3]:
        kind = "makes views" if place.changed else "takes rows"
        lines.append(f"{place.at} {kind} {tuple(place.shape)}, {place.calls} calls in a step, last at {place.where}:")
        lines.append(f"   {_command(script, place.at, [*how, *ask], arguments)}")
    lines.append("At the steps of the images, with augmented views of the regulariser's own:")
    lines.append(f"   {_command(script, OPTIMIZER, [*how, *ask], arguments)}")
    return lines


def _command(script: Unpatched, at: str, how: Sequence[str], arguments: Sequence[str]) -> str:
    words = ["ddplug", "run", "--script", str(script.script), "--at", at, *how, "--proxies", "POOL"]
    return shlex.join([*words, *(["--", *arguments] if arguments else [])])


def main() -> None:
    """Run what the command line says."""
    given = json.loads(sys.argv[1])
    script = Unpatched(
        Path(given["script"]), path=tuple(map(Path, given["path"])), redirect_cuda=given["redirect_cuda"],
        old_numpy=given["old_numpy"],
    )  # fmt: skip
    out = Path(given["out"])

    def end(report: Report) -> None:
        """Write the report and end the process, whatever the script would do about an exception."""
        write_json({"report": asdict(report)}, out)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    files = script.read()
    looking = Looking(script, files, end)
    timer = threading.Timer(given["seconds"], lambda: end(looking.report))
    timer.daemon = True
    timer.start()
    looking.start()
    script.execute(given["arguments"], files, None, ())
    end(looking.report)


if __name__ == "__main__":
    main()
