"""In which precision a network is run; softmax, centroids and CMI itself are in fp32 or better whatever is chosen.

"exact": fp32, forward and backward (as the host has set up torch: on a GPU, TF32 if that is switched on).
"auto": forward like "exact", but the gradient goes back through convolutions and linear layers in bf16, where the
    device is fast at it: a cosine of 0.9999 and more with the exact gradient.
"bf16": all layers in bf16, both ways, by torch.autocast; the fastest and the least exact, cosine about 0.998 for a
    trained ResNet-18. What a bf16 forward pass loses, it loses at the ReLUs: an activation near zero changes sides, and
    with it a whole path of the gradient. Half of that comes from the rounding of the images themselves, so the first
    convolution stays in fp32.

Figures are measured by benchmarks/precision.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode

from ddplug.choices import Precision as Precision

COLOURS = 4
"""Channels that an image may have, for a convolution to be taken for the first."""


def fast_bf16(device: torch.device | str) -> bool:
    """Return True if `device` multiplies bf16 matrices in hardware: AMX, AVX512-BF16, or a GPU from Ampere on."""
    device = torch.device(device)
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # There is no public way to ask in every version of torch that we support.
        asked = [getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]
        return any(ask() for ask in asked if ask is not None)
    return False


@contextmanager
def layers(device: torch.device | str, precision: Precision) -> Iterator[None]:
    """A context for a frozen network's forward pass, which also decides its backward pass.

    Whatever autocast the host is in does not reach into it.
    """
    device = torch.device(device)
    mode: AbstractContextManager[Any] = nullcontext()
    if precision == "bf16":
        mode = _ImagesInFp32()
    elif precision == "auto" and fast_bf16(device):
        mode = _BackwardInBf16()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"), mode:
        yield


class Observer:
    """Base of hooks on saved tensors that only look at them, and to which no layer has to give way."""


class _ImagesInFp32(TorchFunctionMode):
    """Within bf16 autocast, leaves the convolution that sees the images themselves in their own precision."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The function itself, outside autocast for few input channels."""
        if func is torch.conv2d:
            inputs, weight, bias, how = _conv2d_arguments(*args, **(kwargs or {}))
            if weight.shape[1] * how[3] <= COLOURS and inputs.dtype == weight.dtype:
                with torch.autocast(inputs.device.type, enabled=False):
                    return torch.conv2d(inputs, weight, bias, *how).bfloat16()
        return func(*args, **(kwargs or {}))


class _BackwardInBf16(TorchFunctionMode):
    """Puts a bf16 backward pass under every convolution and linear layer with frozen fp32 weights."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The function itself, or ours in its place."""
        if func is torch.conv2d:
            inputs, weight, bias, how = _conv2d_arguments(*args, **(kwargs or {}))
            if _can(inputs, weight) and inputs.ndim == 4 and not isinstance(how[1], str):
                return _Conv2d.apply(inputs, weight, bias, how)
        elif func is F.linear:
            inputs, weight, bias = _linear_arguments(*args, **(kwargs or {}))
            if _can(inputs, weight):
                return _Linear.apply(inputs, weight, bias)
        return func(*args, **(kwargs or {}))


def _can(inputs: Tensor, weight: Tensor) -> bool:
    """Return True if a gradient is passed back to the inputs only, in fp32."""
    if (hooks := _saving()) is not None and not isinstance(hooks[0], Observer):
        return False  # somebody, say torch.utils.checkpoint, computes the layer again later, where we are not
    frozen = torch.is_grad_enabled() and inputs.requires_grad and not weight.requires_grad
    return frozen and inputs.dtype == weight.dtype == torch.float32


def _saving() -> Any:
    """The hooks that saved tensors pass through just now, or None; torch has no public way to ask."""
    ask = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return None if ask is None else ask(True)


def _conv2d_arguments(
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
) -> tuple[Any, ...]:
    return input, weight, bias, (stride, padding, dilation, groups)


def _linear_arguments(input: Tensor, weight: Tensor, bias: Any = None) -> tuple[Any, ...]:
    return input, weight, bias


class _Conv2d(torch.autograd.Function):
    """torch.conv2d with frozen weights, of which the backward pass needs nothing but those weights."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.how = inputs.shape, how
        return torch.conv2d(inputs, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        low: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
            ctx.shape, weight.bfloat16(), grad.bfloat16(), *ctx.how
        )
        return low.float(), None, None, None


class _Linear(torch.autograd.Function):
    """F.linear with frozen weights, likewise."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return (grad.bfloat16() @ weight.bfloat16()).float(), None, None
