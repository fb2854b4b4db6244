"""Seconds and peak memory of work that is done in stretches, and may go on in another process."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import torch


class Meter:
    """`with meter:` around each stretch; `read()` in between.

    Memory is what torch had allocated on a CUDA device at its fullest, in bytes; on the CPU it is what the whole
    process had in memory, where the system tells (Linux), else None.
    """

    def __init__(self, device: torch.device | str, record: dict[str, Any] | None = None) -> None:
        """Go on from what `read` gave, or from nothing."""
        self.device = torch.device(device)
        self.seconds: float = record["seconds"] if record else 0.0
        self.memory: int | None = record["memory"] if record else None
        self._began = 0.0

    def __enter__(self) -> Meter:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            _forget_peak()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            peak: int | None = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = _peak()
        self.seconds += time.perf_counter() - self._began
        self.memory = max(peak, self.memory or 0) if peak is not None else self.memory

    def read(self) -> dict[str, Any]:
        """{"seconds": so far, "memory": bytes at the fullest, or None}."""
        return {"seconds": self.seconds, "memory": self.memory}


def _forget_peak() -> None:
    """Have Linux count the peak from here; where it cannot be asked to, the peak is that of the whole process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> int | None:
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
