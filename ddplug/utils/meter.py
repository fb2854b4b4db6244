"""Seconds of work that is done in stretches, and what it took of memory beside what was there before."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import torch


class Meter:
    """`with meter:` around each stretch; `read()` in between. What is in memory when it is made does not count.

    Memory, in bytes, is what torch had allocated on a CUDA device at its fullest, less what it had when the meter was
    made; on the CPU the same of all that the process had in memory, where the system tells (Linux), else None. What the
    process has freed but keeps for later is in memory too, so on the CPU it is rather less than was really used.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.seconds = 0.0
        self.memory: int | None = None
        self._stood = self._standing()
        self._counts = False
        self._began = 0.0

    def go_on(self, record: dict[str, Any]) -> None:
        """Go on from what `read` gave, perhaps in another process."""
        self.seconds, self.memory = record["seconds"], record.get("extra_memory")

    def __enter__(self) -> Meter:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._counts = _forget_peak()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            peak: int | None = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = _of_process("VmHWM") if self._counts else None
        self.seconds += time.perf_counter() - self._began
        if peak is not None and self._stood is not None:
            self.memory = max(peak - self._stood, self.memory or 0)

    def read(self) -> dict[str, Any]:
        """{"seconds": so far, "extra_memory": bytes at the fullest beside what was there before, or None}."""
        return {"seconds": self.seconds, "extra_memory": self.memory}

    def _standing(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return _of_process("VmRSS")


def _forget_peak() -> bool:
    """Make Linux count the peak from here; return True if it does."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _of_process(field: str) -> int | None:
    """Bytes that the system has of this process under `field`; None where it does not tell."""
    try:
        found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
