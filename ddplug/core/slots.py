"""One module for all proxies of a kind: weights are copied in, so that what was made once for it serves every proxy.

A CUDA graph replays kernels on fixed addresses, a compiled function belongs to one module; both are made for a slot.
"""

from __future__ import annotations

import copy
import importlib.util
import re
import subprocess
from typing import Any

import torch
from torch import Tensor, nn

from ddplug.errors import ProxyError
from ddplug.proxies.pool import Proxy
from ddplug.proxies.representations import Representation

NEEDS = (
    "torch.compile needs, on a CPU, a C++ compiler that works (g++, on macOS clang++, or what the environment variable "
    "CXX names), and on CUDA Triton"
)
_COMPLAINT = re.compile(r"\b(errors?|cannot|not found|no such|undefined|(not |un)supported)\b", re.IGNORECASE)
_SUMMARY = re.compile(r"ld returned \d+ exit status|compilation terminated|errors? generated|TORCHDYNAMO_VERBOSE")


def cannot_compile(device: torch.device | str) -> str | None:
    """Why torch.compile is known to be of no use for `device`, or None. It looks for a compiler, and compiles nothing.

    A compiler that is there and fails at its work shows itself only at the first use.
    """
    try:
        torch.compile(nn.Identity())  # refuses versions of Python that torch does not know yet
    except RuntimeError as error:
        return _last_complaint(error)
    kind = torch.device(device).type
    if kind == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if kind != "cpu":
        return None
    try:  # torch's own search, of which there is no public form
        from torch._inductor.cpp_builder import get_cpp_compiler
    except ImportError:
        return None
    try:
        get_cpp_compiler()
    except (RuntimeError, OSError) as error:
        return _last_complaint(error)
    return None


def check_compile(compile: bool) -> bool:
    """`compile`, or `ProxyError` if it is asked for and known to work on no device of this machine."""
    if compile and (why := cannot_compile("cpu")) is not None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if found is None or cannot_compile(found) is not None:
            raise ProxyError(f"compile=True cannot work here ({why}): {NEEDS}. Install it, or leave out compile=True.")
    return compile


def _instructions(network: nn.Module) -> dict[str, Any] | None:
    """The width of the processor's vectors as an option of torch.compile: what it takes anyway, but said.

    torch finds code that it compiled before by its options, not by the processor it was for. Where ATEN_CPU_CAPABILITY
    was changed, or machines share a cache, it would take code for other vectors: some does not compile, and some gives
    wrong numbers without a word.
    """
    if any(value.device.type != "cpu" for value in network.state_dict().values()):
        return None
    try:  # no public form of this either
        from torch._inductor.cpu_vec_isa import pick_vec_isa
    except ImportError:
        return None
    return {"cpp.simdlen": pick_vec_isa().bit_width()}


def _last_complaint(error: BaseException) -> str:
    """The last line of the innermost cause's message that says what went wrong, after its type's name."""
    while (cause := getattr(error, "inner_exception", None) or error.__cause__) is not None:
        error = cause
    text = str(error)
    if isinstance(error, subprocess.CalledProcessError):  # whose own message is a command of a dozen lines
        output = error.stderr or error.output or b""
        text = output if isinstance(output, str) else output.decode(errors="replace")
        text = text.strip() or f"{error.cmd[0]} ended with exit status {error.returncode} and without a word"
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _SUMMARY.search(line)]
    said = [line for line in lines if _COMPLAINT.search(line)] or lines or ["no message"]
    return f"{type(error).__name__}: {said[-1].rstrip('.')}"


class Slot(Proxy):
    """A proxy of our own, which takes on the weights of any other of the same `kind`."""

    def __init__(self, of: Proxy) -> None:
        super().__init__(copy.deepcopy(of.network), of.head, of.name)
        self._named_by_user = of._named_by_user
        self._values = self.network.state_dict()
        self.take(of)

    @torch.no_grad()
    def take(self, proxy: Proxy) -> None:
        """Compute with the weights of `proxy` from now on. Graphs made with the ones before must be done with."""
        weights = proxy.weights()
        torch._foreach_copy_(list(self._values.values()), [weights[key] for key in self._values])


class CompiledSlot(Slot):
    """A slot whose network went through torch.compile, up to its head or all of it."""

    def __init__(self, of: Proxy, representation: Representation) -> None:
        try:
            super().__init__(of)
        except RuntimeError as error:
            raise ProxyError(
                f"proxy '{of.name}' ({type(of.network).__name__}) cannot be copied, which compile=True needs "
                f"({error}). Leave out compile=True."
            ) from error
        for device in {value.device for value in self._values.values()}:
            if (why := cannot_compile(device)) is not None:
                raise self._not_compiled(why)
        self._representation, self._checked = representation, set[int]()
        if representation != "logit":
            parent, _, name = (self.head or "").rpartition(".")
            setattr(self.network.get_submodule(parent), name, nn.Identity())
        self._compiled: Any = torch.compile(self.network, options=_instructions(self.network))

    @torch.no_grad()
    def check(self, of: Proxy, images: Tensor) -> None:
        """Raise `ProxyError` unless it gives for `images` what `of` does; looked at once per proxy."""
        if id(of) in self._checked:
            return
        images = images.to(self.dtype)
        expected, got = of(images, self._representation), self._of_output(self.network(images), images)
        if got.shape != expected.shape or not torch.allclose(got, expected, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ProxyError(
                f"proxy '{of.name}' ({type(of.network).__name__}) cannot be compiled: without its head '{of.head}' it "
                "gives something else than its features. Leave out compile=True, or use representation='logit'."
            )
        self._checked.add(id(of))

    def _compute(self, images: Tensor) -> Any:
        try:
            return self._compiled(images)
        except Exception as error:  # torch.compile's own troubles have many names
            raise self._not_compiled(_last_complaint(error)) from error

    def _not_compiled(self, why: str) -> ProxyError:
        return ProxyError(
            f"proxy '{self.name}' ({type(self.network).__name__}) could not be compiled ({why}): {NEEDS}. See to that, "
            "or leave out compile=True."
        )

    def _read(self, images: Tensor, representation: Representation) -> Tensor:
        return self._of_output(self._compute(images), images)

    def _of_output(self, output: Any, images: Tensor) -> Tensor:
        found: Tensor = output[0] if isinstance(output, tuple | list) else output
        return self._pooled(found, images) if self._representation == "pooled" else found.flatten(1)
