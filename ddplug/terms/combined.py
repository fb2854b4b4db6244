"""Terms by name, and sums of several: "cmi", "cmi+0.3*proxy_ce", "-cmi", {"cmi": 1, "proxy_ce": 0.3}."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddplug.errors import InputError
from ddplug.terms.base import Groups, Term, single
from ddplug.terms.real import Real

TermSpec = str | Term | Mapping[str, float]
"""A term as a user names it."""

_SUMMAND = re.compile(r"\s*([+-]?)\s*(?:((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*\*\s*)?([A-Za-z]\w*)\s*")


def make(term: TermSpec, **options: Any) -> Term:
    """The term that is meant, with those of `options` that it takes; a term that is made already, as it is.

    Args:
        term: a name of `ddplug.terms.terms()`; a sum of several, as text or as factors by name; or a term.

    Raises:
        InputError: an unknown name, an invalid sum, or a class in the place of a name or of a term.
    """
    if isinstance(term, Term):
        return term
    if isinstance(term, Mapping):
        factors = [(value, name) for name, value in term.items()]
    elif not isinstance(term, str) or not (factors := _read(term)):
        return single(term, **options)
    parts = [(_factor(name, factor), single(name, **options)) for factor, name in factors]
    return parts[0][1] if len(parts) == 1 and parts[0][0] == 1 else Sum(parts)


class Sum(Term):
    """A sum of terms, each times a factor, under one lambda. A negative factor turns a term's sign.

    Factors multiply the terms' *values*, as in a loss that is written down, whatever their sizes: `describe` gives the
    part of each in the gradient.

    Args:
        parts: factors, finite and not 0, and terms; a sum among them counts as its own terms.

    Raises:
        InputError: no terms, two of one name, or terms that are defined on different representations, or that remember
            earlier rounds.
    """

    def __init__(self, parts: Sequence[tuple[float, Term]]) -> None:
        self.parts = tuple(_flat(parts))
        terms = [term for _, term in self.parts]
        if not terms:
            raise InputError("a sum has no terms; expected factors by name, e.g. {'cmi': 1, 'proxy_ce': 0.3}.")
        names = [term.name for term in terms]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise InputError(
                f"term {twice[0]!r} occurs {names.count(twice[0])} times in a sum, whose terms differ by their "
                "names; add its factors up, or give the class of one another name."
            )
        kinds = sorted({term.representation for term in terms if term.representation})
        if len(kinds) > 1:
            raise InputError(f"terms of {' and of '.join(kinds)} do not add up: one pass gives one representation.")
        units = list(dict.fromkeys(term.unit for term in terms))
        self.name = _written([(factor, term.name) for factor, term in self.parts]).replace(" ", "")
        self.label = _written([(factor, term.label) for factor, term in self.parts])
        self.unit = units[0] if len(units) == 1 else "in mixed units"
        self.representation = kinds[0] if kinds else None
        self.min_per_class = max(term.min_per_class for term in terms)
        self.additive_over_classes = all(term.additive_over_classes for term in terms)
        self.needs_real = any(term.needs_real for term in terms)
        self.contrasts = any(term.contrasts for term in terms)
        self._last: list[Tensor] = []
        """Norms of the terms' parts of the last gradient."""

    def __call__(self, features: Tensor, groups: Groups) -> Tensor:
        """The sum, a scalar."""
        return torch.stack([factor * term(features, groups) for factor, term in self.parts]).sum()

    def value_and_grad(self, features: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
        """The sum and its derivative, each term by its own way."""
        found = [(factor, *term.value_and_grad(features, groups)) for factor, term in self.parts]
        grads = [factor * grad for factor, _, grad in found]
        self._last[:] = [torch.stack([grad.norm() for grad in grads])]
        return torch.stack([factor * value for factor, value, _ in found]).sum(), torch.stack(grads).sum(0)

    def against(self, real: Real) -> Term:
        """The sum with its terms bound to real images where they need them."""
        bound = Sum([(factor, term.against(real)) for factor, term in self.parts])
        bound._last = self._last
        return bound

    def settings(self) -> dict[str, Any]:
        """Every term's options under its name, and the temperature that they have in common."""
        found = {f"{term.name}.{key}": value for _, term in self.parts for key, value in term.settings().items()}
        temperatures = {value for key, value in found.items() if key.endswith(".temperature")}
        return {**found, "temperature": temperatures.pop()} if len(temperatures) == 1 else found

    def describe(self, value: float) -> str:
        """The sum's value, and how long each term's part of the last gradient on the representation was."""
        text = super().describe(value)
        if not self._last:
            return text
        norms = self._last[0].double()
        parts = zip(self.parts, (norms / norms.sum().clamp(min=1e-300)).tolist(), strict=True)
        return f"{text}; of the gradient {', '.join(f'{100 * part:.3g} % {term.label}' for (_, term), part in parts)}"


def _flat(parts: Sequence[tuple[float, Term]]) -> Iterator[tuple[float, Term]]:
    """Factors and terms, none of which is a sum."""
    for factor, term in parts:
        if isinstance(term, Sum):
            yield from ((_factor(term.name, factor) * inner, each) for inner, each in term.parts)
        else:
            yield _factor(term.name, factor), term


def _factor(name: object, value: object) -> float:
    """`value` as the factor of a term, or `InputError`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value == 0:
        raise InputError(f"the factor of term {name!r} must be a finite number other than 0, got {value!r}.")
    return float(value)


def _read(text: str) -> list[tuple[float, str]]:
    """Return the factors and names of a sum as it is written; nothing for other texts and single names."""
    summands = list(_SUMMAND.finditer(text))
    whole = "".join(found.group() for found in summands) == text
    if not whole or re.fullmatch(r"\w+", text) or not all(found.group(1) for found in summands[1:]):
        return []
    return [(float(f"{sign}{number or 1}"), name) for sign, number, name in (found.groups() for found in summands)]


def _written(parts: Sequence[tuple[float, str]]) -> str:
    """Return a sum of factors times names, as it is read."""
    times = ["" if abs(factor) == 1 else f"{abs(factor):.12g} * " for factor, _ in parts]
    signs = [" - " if factor < 0 else " + " for factor, _ in parts]
    text = "".join(f"{sign}{time}{name}" for sign, time, (_, name) in zip(signs, times, parts, strict=True))
    return re.sub("^ - ", "-", text.removeprefix(" + "))
