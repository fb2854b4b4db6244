"""`ddplug find`: places where synthetic views enter the loss of a code base, from its text alone, the likeliest first.

Looked for are calls on what becomes of a leaf that an optimizer has, whose result comes to a backward pass, and which
augment: by their name, or because what they call draws and moves pixels. It is a list of places to try.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ddplug.attaching.labels import LIKE_LABELS
from ddplug.errors import HostError
from ddplug.scripts.flow import Flow, dotted, leaves, mentions, requires_grad, without_no_grad
from ddplug.scripts.placing import CALLED, NAMES, callable_in, has_value
from ddplug.scripts.sources import File, Function, find_module, folders_of, read, with_imports

MOVES_PIXELS = {"affine_grid", "grid_sample", "flip", "roll", "rot90", "crop", "pad", "hflip", "vflip", "interpolate"}
DRAWS = {"rand", "randn", "randint", "random", "uniform", "rand_like", "choice", "randperm"}
EVALUATES = re.compile(r"eval|test|valid|infer", re.IGNORECASE)
DEEP = 3
"""Depth of calls to which synthetic images are followed."""


@dataclass(eq=False)
class Candidate:
    """A place to try."""

    path: Path
    line: int
    code: str
    """The call."""
    score: int
    why: list[str]
    at: str
    """Spelling for `--at`."""
    labels: str = ""
    steps: str = ""

    @property
    def command(self) -> str:
        """Command that tries it; the script's own arguments go after --."""
        words = ["ddplug", "run", "--script", str(self.path), "--at", self.at]
        for option, value in (("--labels", self.labels), ("--steps", self.steps)):
            words += [option, value] if value else []
        return f"{shlex.join(words)} --proxies POOL -- ..."


@dataclass(eq=False)
class Code:
    """Files and definitions of the code that is searched."""

    files: dict[Path, File]
    named: dict[str, list[tuple[File, str]]] = field(default_factory=lambda: defaultdict(list))
    """Functions and classes by the last part of their names."""
    holding: set[str] = field(default_factory=set)
    """Names of classes whose objects hold synthetic images."""

    def __post_init__(self) -> None:
        for file in self.files.values():
            for name, node in file.definitions.items():
                self.named[node.name].append((file, name))
                if isinstance(node, ast.ClassDef) and _holds_images(node):
                    self.holding.add(node.name)

    def function(self, name: str) -> Function | None:
        """Return the function named `name`, if exactly one has that name."""
        found = self.named.get(name.rpartition(".")[2], [])
        if len({node_name for _, node_name in found}) != 1 or not found:
            return None
        file, qualified = found[0]
        node = file.definitions[qualified]
        if isinstance(node, Function):
            return node
        return next((m for c in CALLED if isinstance(m := file.definitions.get(f"{qualified}.{c}"), Function)), None)


def _holds_images(node: ast.ClassDef) -> bool:
    """Return True if objects of a class have a tensor that requires a gradient, and are no network."""
    if any("Module" in ast.unparse(base) for base in node.bases):
        return False
    made = Flow(node).assigned
    return any(targets and targets[0].startswith("self.") and requires_grad(value) for targets, value, _ in made)


def find(path: Path, folders: Sequence[Path] = ()) -> list[Candidate]:
    """Places in the script or folder `path`, the likeliest first.

    Raises:
        HostError: nothing there that can be read as Python.
    """
    files = with_imports(path, folders) if path.is_file() else _all(path)
    if not files:
        raise HostError(f"there are no Python files in '{path}'; expected a script, or the folder of a repository.")
    code = Code(files)
    found: dict[tuple[Path, int], Candidate] = {}
    for file in files.values():
        for candidate in _in_file(code, file):
            key = candidate.path, candidate.line
            if key not in found or found[key].score < candidate.score:
                found[key] = candidate
    return sorted(found.values(), key=lambda each: (-each.score, str(each.path), each.line))


def _all(folder: Path) -> dict[Path, File]:
    found = {}
    for path in sorted(folder.rglob("*.py")):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            try:
                found[path] = read(path)
            except HostError:
                continue
    return found


def _in_file(code: Code, file: File) -> Iterator[Candidate]:
    """The candidates in one file: of its top level, and of each function that has synthetic images."""
    own = {name for name, node in file.definitions.items() if isinstance(node, Function)}
    scopes: list[tuple[str, ast.AST]] = [("", file.tree)]
    scopes += [(name, file.definitions[name]) for name in own if name.rpartition(".")[0] not in own]
    members = {
        leaf.name: leaf.optimized
        for node in file.definitions.values()
        if isinstance(node, ast.ClassDef)
        for leaf in leaves(Flow(node), code.holding)
        if leaf.name.startswith("self.")
    }
    for name, scope in scopes:
        flow = Flow(scope)
        held = {leaf.name: leaf.optimized for leaf in leaves(flow, code.holding)}
        if "." in name:
            held |= {member: optimized for member, optimized in members.items() if member not in held}
        if held:
            yield from _in_scope(code, file, name, flow, held, ended=False, deep=0)


def _in_scope(
    code: Code, file: File, name: str, flow: Flow, held: dict[str, bool], *, ended: bool, deep: int
) -> Iterator[Candidate]:
    """The candidates in a function some of whose variables, `held`, are synthetic images, in an optimizer or not."""
    sure = flow.from_names(name for name, optimized in held.items() if optimized)
    maybe = flow.from_names(held)
    parents = {child: node for node in ast.walk(flow.scope) for child in ast.iter_child_nodes(node)}
    for node in without_no_grad(flow.scope):
        if isinstance(node, ast.Assign) and _takes_images(node, held):
            targets = [target for target in map(dotted, node.targets) if target]
            if flow.to_backward(targets) and node.lineno in _lines_with_value(file):
                yield _candidate(code, file, flow, node.value, node, parents, 5, ["the images, not augmented"], sure)
        if not isinstance(node, ast.Call):
            continue
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        reached = [part for part in given if mentions(part, maybe)]
        if not reached:
            continue
        statement = _statement_of(node, parents)
        made = _made(statement, flow)
        reaches = ended or flow.to_backward(made) or _in_an_end(node, flow)
        called = dotted(node.func)
        score, why = _augments(code, called)
        if score:
            optimized = any(mentions(part, sure) for part in reached)
            score += 3 if optimized else 1
            which = sorted({n for n, o in held.items() if not optimized or o})
            why = [
                *why,
                f"on what becomes of {', '.join(which[:3])}" + (", which an optimizer has" if optimized else ""),
            ]
            if reaches:
                score, why = score + 3, [*why, "its result comes to a backward pass"]
            if EVALUATES.search(name):
                score, why = score - 4, [*why, f"but in {name}()"]
            yield _candidate(code, file, flow, node, statement, parents, score, why, sure)
        elif deep < DEEP:
            yield from _followed(code, node, called, maybe, reaches, deep)


def _followed(code: Code, call: ast.Call, called: str, images: set[str], ended: bool, deep: int) -> Iterator[Candidate]:
    """The candidates in the function that is called with synthetic images."""
    found = code.named.get(called.rpartition(".")[2], []) if called else []
    if len(found) != 1 or not isinstance(function := found[0][0].definitions[found[0][1]], Function):
        return
    file, name = found[0]
    parameters = [each.arg for each in [*function.args.posonlyargs, *function.args.args]]
    if parameters[:1] == ["self"]:
        parameters = parameters[1:]
    held = {p: True for p, value in zip(parameters, call.args, strict=False) if mentions(value, images)}
    known = {each.arg for each in [*function.args.args, *function.args.kwonlyargs]}
    held |= {k.arg: True for k in call.keywords if k.arg in known and mentions(k.value, images)}
    if held:
        flow = Flow(function)
        yield from _in_scope(code, file, name, flow, held, ended=ended, deep=deep + 1)


def _augments(code: Code, called: str) -> tuple[int, list[str]]:
    """Return the evidence that a called function augments, and its reasons; 0 without any."""
    last = called.rpartition(".")[2]
    if not last:
        return 0, []
    if NAMES.fullmatch(last):
        return 5, [f"{last} is called like an augmentation"]
    if re.search("aug", last, re.IGNORECASE):
        return 4, [f"{last} is called much like an augmentation"]
    function = code.function(called)
    if function is None:
        return 0, []
    used = {dotted(node.func).rpartition(".")[2] for node in ast.walk(function) if isinstance(node, ast.Call)}
    if used & MOVES_PIXELS and used & DRAWS:
        return 2, [f"{last} draws ({', '.join(sorted(used & DRAWS))}) and moves pixels"]
    return 0, []


def _takes_images(node: ast.Assign, held: dict[str, bool]) -> bool:
    """Return True if a statement takes a part of the optimizer's images: `x = images[which]`."""
    return any(
        isinstance(part, ast.Subscript) and held.get(dotted(part.value)) for part in ast.walk(node.value)
    ) and not any(
        isinstance(part, ast.Call) and dotted(part.func) for part in ast.walk(node.value) if _is_function(part)
    )


def _is_function(node: ast.AST) -> bool:
    """A call other than a method's of a tensor, like reshape."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def _lines_with_value(file: File) -> set[int]:
    return {node.lineno for node in ast.walk(file.tree) if isinstance(node, ast.Assign)}


def _statement_of(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> ast.stmt:
    while not isinstance(node, ast.stmt):
        node = parents[node]
    return node


def _made(statement: ast.stmt, flow: Flow) -> list[str]:
    """The names that the values of a statement get."""
    return [name for targets, _, line in flow.assigned if line == statement.lineno for name in targets]


def _in_an_end(node: ast.AST, flow: Flow) -> bool:
    """Return True if a call is part of the start of a backward pass, or of a returned value."""
    return any(node is part for end in (*flow.ended, *flow.returned) for part in ast.walk(end))


def _candidate(
    code: Code,
    file: File,
    flow: Flow,
    call: ast.AST,
    statement: ast.stmt,
    parents: dict[ast.AST, ast.AST],
    score: int,
    why: list[str],
    images: set[str],
) -> Candidate:
    loops = list(_loops(statement, parents))
    assert isinstance(call, ast.expr)
    labels, steps = _labels(call, flow, loops, images), _steps(loops)
    if loops:
        score += 1
    called = dotted(call.func) if isinstance(call, ast.Call) else ""
    line = call.lineno if has_value(file.tree, call.lineno) else statement.lineno
    at = _named(file, called) or f"{file.path.name}:{line}"
    return Candidate(file.path, call.lineno, ast.unparse(call), score, why, at, labels, steps)


def _named(file: File, called: str) -> str:
    """Return `--at`'s spelling of the function that a file calls by the name `called`; empty if unknown."""
    if callable_in(file, called):
        return f"{file.module}:{called}"
    for node in ast.walk(file.tree):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        for alias in node.names:
            there = find_module(node.module, folders_of(file.path)) if (alias.asname or alias.name) == called else None
            if there is not None and callable_in(read(there), alias.name):
                return f"{node.module}:{alias.name}"
    return ""


def _loops(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> Iterator[ast.For]:
    """The loops around a statement, from the innermost out."""
    while node in parents:
        node = parents[node]
        if isinstance(node, ast.For):
            yield node


def _over_range(loop: ast.For) -> str:
    """The variable of a loop over `range`, if it is one."""
    ranged = isinstance(loop.iter, ast.Call) and dotted(loop.iter.func) in ("range", "trange", "tqdm")
    return loop.target.id if ranged and isinstance(loop.target, ast.Name) else ""


def _labels(call: ast.expr, flow: Flow, loops: Sequence[ast.For], images: set[str]) -> str:
    """An expression for the labels of a call's images, by where these come from; empty if nothing says so."""
    counters = [name for loop in loops if (name := _over_range(loop))]
    grown = [targets[0] for targets, value, _ in flow.assigned if targets and requires_grad(value)]
    learned = flow.from_names(name for name in grown if LIKE_LABELS.search(name))
    if counted := _counted(call, counters):
        return counted
    for image in _likeliest(list(dict.fromkeys(name for name in names_of(call) if name in images))):
        for targets, value, line in sorted(flow.values_of(image), key=lambda each: -each[2]):
            if line > call.lineno:
                continue
            partner = [name for name in targets if name != image and LIKE_LABELS.search(name)]
            if partner:
                return partner[0]
            if counted := _counted(value, counters):
                return counted
            for index in (part.slice for part in ast.walk(value) if isinstance(part, ast.Subscript)):
                for others, other, _ in flow.assigned:
                    same = isinstance(other, ast.Subscript) and ast.dump(other.slice) == ast.dump(index)
                    if same and others and LIKE_LABELS.search(others[0]):
                        return others[0] if others[0] not in learned else f"{ast.unparse(index)} // args.ipc"
    return ""


def _counted(value: ast.expr, counters: Sequence[str]) -> str:
    """The loop's variable by which an expression picks its images: `images[c * ipc : (c + 1) * ipc]`, `sample(c)`."""
    picked = [part.slice for part in ast.walk(value) if isinstance(part, ast.Subscript)]
    picked += [arg for part in ast.walk(value) if isinstance(part, ast.Call) for arg in part.args if dotted(arg)]
    within = {node.id for part in picked for node in ast.walk(part) if isinstance(node, ast.Name)}
    return next((name for name in counters if name in within), "")


def _likeliest(names: list[str]) -> list[str]:
    """Sort names: first those that contain a word for synthetic."""
    return sorted(names, key=lambda name: "syn" not in name.lower())


def names_of(node: ast.AST) -> Iterable[str]:
    """The names in an expression, but for what is called."""
    called = {id(part.func) for part in ast.walk(node) if isinstance(part, ast.Call)}
    return [part.id for part in ast.walk(node) if isinstance(part, ast.Name) and id(part) not in called]


def _steps(loops: Sequence[ast.For]) -> str:
    """The number of inner steps, where the innermost loop is unrolled: it differentiates with create_graph=True."""
    if not loops or not _over_range(loops[0]):
        return ""
    unrolled = any(isinstance(node, ast.keyword) and node.arg == "create_graph" for node in ast.walk(loops[0]))
    counted = loops[0].iter
    return ast.unparse(counted.args[-1]) if unrolled and isinstance(counted, ast.Call) and counted.args else ""
