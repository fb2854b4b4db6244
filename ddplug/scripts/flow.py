"""Flow of synthetic images in a function, as far as its text shows: by names, without running anything.

Names stand for all values they ever have, so this errs on the side of too much; candidates are only to be tried.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

OPTIMIZERS = {"SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "LBFGS", "NAdam", "RAdam", "Adamax", "Lion"}
NO_IMAGES = re.compile(r"(^|[_.])(lr|rate|labels?|lab|logits?|params?|y|targets?|weights?|z|latents?)(_|\d|$)")
"""Names of leaves that an optimizer may have beside the images."""
CUTS = {"detach", "item", "numpy", "tolist", "size", "dim", "numel", "backward", "step", "zero_grad"}
"""Methods whose results no gradient goes through."""
FACTS = {"data", "shape", "device", "dtype", "grad", "ndim"}
"""Attributes likewise."""
PLAIN = {"len", "range", "isinstance", "print", "str", "id", "deepcopy"}
"""Functions likewise."""


def dotted(node: ast.AST) -> str:
    """`self.images` for such an expression, `a` for a name, an empty string for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def names_in(node: ast.AST) -> Iterator[str]:
    """The names in an expression through whose values a gradient may come to its result."""
    if isinstance(node, ast.Call):
        function = node.func
        last = (
            function.attr
            if isinstance(function, ast.Attribute)
            else function.id
            if isinstance(function, ast.Name)
            else ""
        )
        if last in CUTS or last in PLAIN:
            return
    if isinstance(node, ast.Attribute):
        if node.attr in FACTS:
            return
        if name := dotted(node):
            yield name
    if isinstance(node, ast.Name):
        yield node.id
    for field_name, value in ast.iter_fields(node):
        if isinstance(node, ast.Subscript) and field_name == "slice":
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from names_in(child)


def mentions(node: ast.AST, names: Iterable[str]) -> set[str]:
    """Return those of `names` that the gradient of an expression may reach."""
    return set(names_in(node)) & set(names)


@dataclass(frozen=True)
class Leaf:
    """A tensor that requires a gradient."""

    name: str
    line: int
    optimized: bool
    """True if an optimizer holds it."""


@dataclass(eq=False)
class Flow:
    """The assignments of a function, and the expressions that end in a backward pass."""

    scope: ast.AST
    assigned: list[tuple[list[str], ast.expr, int]] = field(default_factory=list)
    """Targets, value and line."""
    ended: list[ast.expr] = field(default_factory=list)
    """Expressions that a backward pass starts from."""
    returned: list[ast.expr] = field(default_factory=list)

    def __post_init__(self) -> None:
        for node in without_no_grad(self.scope):
            if isinstance(node, ast.Assign):
                # a, b = f(x), g(y) is two assignments
                pairs = [(target, node.value) for target in node.targets]
                if (
                    len(node.targets) == 1
                    and isinstance(node.targets[0], ast.Tuple)
                    and isinstance(node.value, ast.Tuple)
                    and len(node.targets[0].elts) == len(node.value.elts)
                ):
                    pairs = list(zip(node.targets[0].elts, node.value.elts, strict=True))
                self.assigned += [(list(_targets(target)), value, node.lineno) for target, value in pairs]
            elif isinstance(node, ast.AnnAssign | ast.AugAssign) and node.value is not None:
                self.assigned.append((list(_targets(node.target)), node.value, node.lineno))
            elif isinstance(node, ast.NamedExpr):
                self.assigned.append(([node.target.id], node.value, node.lineno))
            elif isinstance(node, ast.For):
                self.assigned.append((list(_targets(node.target)), node.iter, node.lineno))
            elif isinstance(node, ast.comprehension):
                self.assigned.append((list(_targets(node.target)), node.iter, node.iter.lineno))
            elif isinstance(node, ast.Return) and node.value is not None:
                self.returned.append(node.value)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr in ("append", "extend") and node.args and dotted(node.func.value):
                    self.assigned.append(([dotted(node.func.value)], node.args[0], node.lineno))
                elif node.func.attr == "backward":
                    self.ended.append(node.func.value)
                    self.ended += node.args[:1]
                elif node.func.attr == "grad" and node.args:
                    self.ended.append(node.args[0])

    def from_names(self, names: Iterable[str]) -> set[str]:
        """All names that a gradient may go through on its way to `names`, these among them."""
        reached = set(names)
        while True:
            new = {
                target
                for targets, value, _ in self.assigned
                if mentions(value, reached)
                for target in targets
                if target not in reached
            }
            if not new:
                return reached
            reached |= new

    def to_backward(self, names: Iterable[str]) -> bool:
        """Return True if a backward pass may start from values computed from `names`."""
        reached = self.from_names(names)
        return any(mentions(end, reached) for end in self.ended)

    def values_of(self, name: str) -> list[tuple[list[str], ast.expr, int]]:
        """The assignments to `name`."""
        return [each for each in self.assigned if name in each[0]]


def without_no_grad(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes within, but for those in `with torch.no_grad():`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.With) and any("no_grad" in ast.unparse(item.context_expr) for item in child.items):
            continue
        yield child
        yield from without_no_grad(child)


def _targets(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Tuple | ast.List):
        for part in node.elts:
            yield from _targets(part)
    elif isinstance(node, ast.Starred | ast.Subscript):
        yield from _targets(node.value)
    elif name := dotted(node):
        yield name


def leaves(flow: Flow, held: Iterable[str]) -> list[Leaf]:
    """The leaves of a function that may be synthetic images.

    Args:
        flow: of the function.
        held: names of classes whose objects hold such a leaf.
    """
    classes = set(held)
    found: dict[str, int] = {}
    for targets, value, line in flow.assigned:
        made = isinstance(value, ast.Call) and dotted(value.func).rpartition(".")[2] in classes
        if targets and (made or requires_grad(value)):
            found.setdefault(targets[0], line)
    for node in ast.walk(flow.scope):  # image.requires_grad = True
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            target = node.targets[0]
            if target.attr == "requires_grad" and isinstance(node.value, ast.Constant) and node.value.value is True:
                found.setdefault(dotted(target.value), node.lineno)
    optimized = set()
    for node in ast.walk(flow.scope):
        if isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in OPTIMIZERS and node.args:
            optimized |= {name for part in ast.walk(node.args[0]) if (name := dotted(part)) in found}
            if isinstance(node.args[0], ast.List):
                for part in node.args[0].elts:
                    if (name := dotted(part)) and name not in found and "param" not in name:
                        found[name] = node.lineno
                        optimized.add(name)
    return [
        Leaf(name, line, name in optimized)
        for name, line in found.items()
        if name and not NO_IMAGES.search(name.lower())
    ]


def requires_grad(value: ast.AST) -> bool:
    """Return True if an expression makes a tensor that requires a gradient."""
    for node in ast.walk(value):
        if not isinstance(node, ast.Call):
            continue
        last = dotted(node.func).rpartition(".")[2] or (node.func.attr if isinstance(node.func, ast.Attribute) else "")
        values = [each.value for each in node.keywords if each.arg == "requires_grad"]
        if any(isinstance(each, ast.Constant) and each.value is True for each in values):
            return True
        if last == "requires_grad_" and not any(isinstance(a, ast.Constant) and a.value is False for a in node.args):
            return True
        if last == "Parameter":
            return True
    return False
