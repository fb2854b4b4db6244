"""Seconds and memory of work that is done in stretches."""

from __future__ import annotations

import time
from typing import Any

import torch


class Meter:
    """`with meter:` around each stretch; `read()` in between.

    Memory, in bytes, is torch's peak on a CUDA device less what was allocated when the meter was made; None elsewhere.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.seconds = 0.0
        self.memory: int | None = None
        self._cuda = self.device.type == "cuda"
        self._before = torch.cuda.memory_allocated(self.device) if self._cuda else 0

    def go_on(self, record: dict[str, Any]) -> None:
        """Go on from a record of `read`, perhaps of another process."""
        self.seconds, self.memory = record["seconds"], record.get("extra_memory")

    def __enter__(self) -> Meter:
        if self._cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self._cuda:
            torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_allocated(self.device) - self._before
            self.memory = max(peak, self.memory or 0)
        self.seconds += time.perf_counter() - self._began

    def read(self) -> dict[str, Any]:
        """{"seconds": so far, "extra_memory": bytes at the fullest beside what was there before, or None}."""
        return {"seconds": self.seconds, "extra_memory": self.memory}
