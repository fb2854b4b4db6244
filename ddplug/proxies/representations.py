"""Representations for CMI: a proxy's penultimate features, or its logits."""

from __future__ import annotations

from typing import get_args

from ddplug.choices import Choice as Choice
from ddplug.choices import Representation as Representation
from ddplug.errors import InputError

MEANING = {"feature": "penultimate features", "logit": "logits"}
PLURAL = {"feature": "features", "logit": "logits"}


def check_representation(representation: str) -> Representation:
    """`representation` if it is one, else `InputError`."""
    if representation not in get_args(Representation):
        known = ", ".join(f"'{name}' ({meaning})" for name, meaning in MEANING.items())
        raise InputError(f"unknown representation {representation!r}, expected one of {known}.")
    return representation  # type: ignore[return-value]


def chosen(choice: Choice, weighting: str, required: str | None = None) -> Representation:
    """Resolve "auto": logits for a share, features for a lambda, as published lambdas are of features.

    `required` is the one that a term is defined on, if it is on one only; `InputError` for another choice.
    """
    if required is not None:
        if choice not in ("auto", required):
            raise InputError(
                f"this term is defined on {PLURAL[check_representation(required)]} only, got "
                f"representation={choice!r}; leave it out."
            )
        return check_representation(required)
    if choice != "auto":
        return check_representation(choice)
    return "feature" if weighting == "absolute" else "logit"
