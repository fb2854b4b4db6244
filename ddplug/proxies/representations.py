"""Representations for CMI: a proxy's penultimate features, those averaged over positions, or its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ddplug.choices import Choice as Choice
from ddplug.choices import Representation as Representation
from ddplug.errors import InputError

Shape = tuple[int, int, int]
"""Channels, height and width."""

MEANING = {"feature": "penultimate features", "pooled": "those averaged over positions", "logit": "logits"}
PLURAL = {"feature": "features", "pooled": "pooled features", "logit": "logits"}

_TURNING = ("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis")
_POINTWISE = ("relu", "relu_", "leaky_relu", "gelu", "silu", "tanh", "sigmoid", "dropout", "clone", "contiguous")


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


def pool_positions(features: Tensor, shape: Shape) -> Tensor:
    """Maps of `shape` that were flattened to `features`, (n, c * h * w), averaged over positions: (n, c)."""
    return features if shape[1:] == (1, 1) else features.reshape(-1, *shape).mean((2, 3))


class Flattening(TorchFunctionMode):
    """Within, a network's pass is watched for where it turns its maps, (n, c, h, w), into rows.

    `shape_of` then tells of what maps rows were made. Meant for one image: every tensor of interest is kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[tuple[Tensor, Shape]] = []
        self._turned = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The call as it is; what it makes of maps is noted."""
        result = func(*args, **(kwargs or {}))
        source = args[0] if args else None
        if isinstance(source, Tensor) and isinstance(result, Tensor):
            self._note(getattr(func, "__name__", ""), source, result)
        return result

    def _note(self, name: str, source: Tensor, result: Tensor) -> None:
        if name in _TURNING:
            self._turned |= source.ndim == 4
        elif result.ndim != 2:
            return
        elif source.ndim == 4 and len(source) == len(result) and source.numel() == result.numel():
            self._rows.append((result, (source.shape[1], source.shape[2], source.shape[3])))
        elif source.ndim in (3, 4) and source.shape[:2] == result.shape:
            self._rows.append((result, (source.shape[1], 1, 1)))
        elif name in _POINTWISE and (shape := self.shape_of(source)) is not None:
            self._rows.append((result, shape))

    def shape_of(self, rows: Tensor) -> Shape | None:
        """The maps that `rows`, (n, d), were flattened from, (d, 1, 1) if they had been pooled; None if not seen."""
        for seen, shape in reversed(self._rows):
            if memory_of(seen) == memory_of(rows) and seen.shape == rows.shape:
                # Where axes changed places, the first of the maps need not be channels.
                return None if self._turned and shape[1:] != (1, 1) else shape
        return None


def memory_of(tensor: Tensor) -> int:
    """The address of the numbers of `tensor`, also within torch.func's transforms."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.data_ptr()
