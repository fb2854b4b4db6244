"""Every message that ddplug raises or warns with, read from its source, so that their page cannot be out of date."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import ddplug.errors

KINDS = {
    name: kind
    for name, kind in vars(ddplug.errors).items()
    if isinstance(kind, type) and kind.__module__ == "ddplug.errors"
}
PARTS = "Parts of messages"
NO_MESSAGES = ("tables.py",)
"""Files whose sentences are of no error."""
UNKNOWN = "…"
"""What stands for a part that is only known when it happens."""


ABOUT_PARTS = "Sentences that are made apart from the error that says them."


@dataclass(frozen=True)
class Message:
    """A message as the source has it, `UNKNOWN` for what it fills in."""

    kind: str
    text: str
    module: str
    line: int

    def holds(self, quoted: str) -> bool:
        """Whether `quoted`, in which `UNKNOWN` stands for anything, is a part of this message."""
        return re.search(".*".join(re.escape(part.strip()) for part in quoted.split(UNKNOWN)), self.text) is not None


def messages(root: Path) -> list[Message]:
    """All messages in the package at `root`, in the order of files and lines."""
    found: list[Message] = []
    for folder in ("ddplug", "adapters"):
        for path in sorted((root / folder).rglob("*.py")):
            module = path.relative_to(root).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
            module = module if module.startswith("ddplug") else f"ddplug.{module}"
            tree = ast.parse(path.read_text(encoding="utf-8"))
            bases = [(node.name, base.id) for node in tree.body if isinstance(node, ast.ClassDef)
                     for base in node.bases if isinstance(base, ast.Name)]  # fmt: skip
            KINDS.update({name: KINDS[base] for name, base in bases if base in KINDS and name not in KINDS})
            for node in ast.walk(tree):
                said = _said(node)
                if said is not None and not (said[0] == PARTS and path.name in NO_MESSAGES):
                    found.append(Message(*said, module, getattr(node, "lineno", 0)))
    return found


def _said(node: ast.AST) -> tuple[str, str] | None:
    """Kind and text of what makes one of our errors, gives one of our warnings, or returns or names a text for one."""
    if isinstance(node, ast.Call):
        kind, given, least = *_called(node), 3
    elif isinstance(node, ast.Return | ast.Assign | ast.AnnAssign):
        kind, given, least = PARTS, node.value, 9
    else:
        return None
    if kind is None or given is None:
        return None
    text = " ".join(_text(given).split())
    return (kind, text) if len(text.replace(UNKNOWN, "").split()) >= least else None


def _called(call: ast.Call) -> tuple[str | None, ast.expr | None]:
    """The kind of message that a call makes, None for none, and the expression of its text."""
    if isinstance(call.func, ast.Attribute) and call.func.attr == "warn":
        # warnings.warn(text, ...) or watch.warn(about, text)
        named = ast.unparse(call.func.value)
        return "DDPlugWarning", call.args[0 if named == "warnings" else -1] if call.args else None
    kind = call.func.id if isinstance(call.func, ast.Name) else None
    kind = "DDPlugWarning" if kind == "caution" else kind
    return (PARTS if kind == "UnfitError" else kind if kind in KINDS else None), call.args[0] if call.args else None


def _text(node: ast.expr) -> str:
    """The text of an expression that makes a message, as far as the source has it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value) for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.IfExp):
        return _text(node.body)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return re.sub(r"\{[^{}]*\}", UNKNOWN, _text(node.func.value))
    return UNKNOWN


def messages_page(root: Path) -> str:
    """The page of all messages, by kind, in Markdown."""
    by_kind: dict[str, list[Message]] = defaultdict(list)
    for message in messages(root):
        by_kind[message.kind].append(message)
    lines = [
        "# Every message",
        "",
        "All that ddplug raises or warns with, by kind, as its source has it; `…` stands for what is filled in. Search "
        "for a piece of yours. Each says what to do; more about those that people meet most is under "
        "[troubleshooting](troubleshooting.md).",
    ]
    for kind in sorted(by_kind):
        about = " ".join((KINDS[kind].__doc__ or "").split()) if kind in KINDS else ABOUT_PARTS
        lines += ["", f"## {kind}", "", about, ""]
        seen: set[str] = set()
        for message in by_kind[kind]:
            if message.text not in seen:
                lines.append(f"- {_escaped(message.text)} *({message.module})*")
                seen.add(message.text)
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#$])", r"\\\1", text)
