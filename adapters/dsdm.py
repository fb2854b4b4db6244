"""DSDM (Li-Hongcheng/DSDM, DSDM.py): IDC's loop with one step per class and outer iteration, under trained networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddplug.adapters import register
from ddplug.hosting.arguments import absolute, option
from ddplug.hosting.host import linked
from ddplug.hosting.idc_like import IDCLike


@register("dsdm")
class DSDM(IDCLike):
    """Option names are IDC's, and --niter counts outer iterations."""

    name = "dsdm"
    least = 1
    sets = "results/*/*/data_best.pt"
    reserved = ("seed", "evaluate_iter")
    defaults: Mapping[str, Any] = {
        **{name: value for name, value in IDCLike.defaults.items() if name != "inner_loop"},
        "data_dir": "./data", "niter": 10000, "save_pretrain_dir": "./pre_trained_model",
    }  # fmt: skip

    def command(self, arguments: Sequence[str], folder: Path) -> list[str]:
        """Judged once, at the end: the host saves a set only when it has judged it, the best one so far."""
        linked(option(arguments, "save_pretrain_dir", self.defaults["save_pretrain_dir"]), folder)
        once = ("--evaluate_iter", str(self.options(arguments)["niter"]))
        return [*arguments, *absolute(arguments, {"data_dir": self.defaults["data_dir"]}), *once]
