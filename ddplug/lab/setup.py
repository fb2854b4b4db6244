"""Setup that a command's comparisons share: the host, the data, the pools, the distiller and the judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ddplug.core.flags import FLAGS
from ddplug.datasets.images import ImageData
from ddplug.lab.compare import Distiller, compare
from ddplug.lab.judge import Judge
from ddplug.lab.own_trainer import Own
from ddplug.lab.plan import Arm, Settings
from ddplug.proxies.pool import ProxyPool


@dataclass(frozen=True)
class Setup:
    """All inputs but arms, seeds and the folder. `upstream` makes a host's distiller of settings; None for our own."""

    host: str
    data: ImageData
    settings: Settings
    pool: ProxyPool
    heldout: ProxyPool | None
    device: torch.device
    upstream: Callable[[Settings], Distiller] | None = None

    def judge(self, cross_arch: Sequence[str] = ()) -> Judge:
        """Build the judge of the sets."""
        return Judge(
            self.data.to(self.device), self.settings, self.pool, self.heldout, self.device, tuple(cross_arch)
        )  # fmt: skip

    def regularised(self, **options: Any) -> Setup:
        """With other options of the regulariser."""
        changed = {**self.settings.regularizer, **options}
        return replace(self, settings=replace(self.settings, regularizer=changed))

    def unusual(self) -> dict[str, Any]:
        """The regulariser's options, and the term, that are not as they are by default."""
        settings = self.settings
        given = {name: value for name, value in settings.regularizer.items() if value != FLAGS[name].default}
        return given if settings.term == Settings.term else {"term": settings.term, **given}

    def compare(self, arms: Sequence[Arm], seeds: int, out: str | Path, judge: Judge, **more: Any) -> dict[str, Any]:
        """`ddplug.lab.compare.compare` in this setting, with `more` of its arguments."""
        own = Own(self.data, self.settings, self.pool, self.device)
        distil = self.upstream(self.settings) if self.upstream else own
        return compare(distil, arms, seeds, out, judge, host=self.host, **more)
