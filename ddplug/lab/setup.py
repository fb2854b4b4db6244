"""Setup that a command's comparisons share: the host, the judge with data, settings and pools, and the distiller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddplug.core.flags import FLAGS
from ddplug.lab.compare import Distiller, compare
from ddplug.lab.judge import Judge
from ddplug.lab.own_trainer import Own
from ddplug.lab.plan import Arm, Settings


@dataclass(frozen=True)
class Setup:
    """All inputs but arms, seeds and the folder. `upstream` makes a host's distiller of settings; None for our own."""

    host: str
    judge: Judge
    upstream: Callable[[Settings], Distiller] | None = None

    def regularised(self, **options: Any) -> Setup:
        """With other options of the regulariser."""
        settings = self.judge.settings
        settings = replace(settings, regularizer={**settings.regularizer, **options})
        return replace(self, judge=replace(self.judge, settings=settings))

    def unusual(self) -> dict[str, Any]:
        """The regulariser's options, and the term, that are not as they are by default."""
        settings = self.judge.settings
        given = {name: value for name, value in settings.regularizer.items() if value != FLAGS[name].default}
        return given if settings.term == Settings.term else {"term": settings.term, **given}

    def compare(self, arms: Sequence[Arm], seeds: int, out: str | Path, **more: Any) -> dict[str, Any]:
        """`ddplug.lab.compare.compare` in this setting, with `more` of its arguments."""
        judge = self.judge
        if self.upstream is None:
            distil: Distiller = Own(judge.data, judge.settings, judge.pool, judge.device)
        else:
            distil = self.upstream(judge.settings)
        return compare(distil, arms, seeds, out, judge, host=self.host, **more)
