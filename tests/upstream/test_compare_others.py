"""`ddplug compare` with MTT, DATM and IDC: what they save where they are started is found and judged, in pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.upstream, pytest.mark.slow]

Compared = Callable[[dict[str, Any], list[int]], None]


def test_mtt(pairs: Any, compared: Compared, data_folder: Path, experts: Path) -> None:
    result = pairs(
        "mtt", "--ipc", 2, "--model", "ConvNetW32", "--batch_syn", 10, "--syn_steps", 1, "--expert_epochs", 1,
        "--max_start_epoch", 2, "--data_path", data_folder, "--buffer_path", experts, "--lr_img", 1000,
        "--Iteration", 1000,
    )  # fmt: skip
    compared(result, [1000])


def test_datm(pairs: Any, compared: Compared, data_folder: Path, experts: Path, tmp_path: Path) -> None:
    options = {
        "dataset": "CIFAR10", "ipc": 2, "model": "ConvNetW32", "batch_syn": 10, "syn_steps": 1, "expert_epochs": 1,
        "min_start_epoch": 0, "current_max_start_epoch": 2, "max_start_epoch": 3, "expansion_end_epoch": 10,
        "data_path": str(data_folder), "buffer_path": str(experts), "zca": False, "pix_init": "real",
        "Iteration": 1000, "parall_eva": True, "lr_img": 1000, "threshold": 10.0,
    }  # fmt: skip
    (tmp_path / "options.yaml").write_text(json.dumps(options))
    compared(pairs("datm", "--cfg", tmp_path / "options.yaml"), [1000])


def test_idc(pairs: Any, compared: Compared, data_folder: Path) -> None:
    result = pairs(
        "idc", "-d", "cifar10", "--ipc", 2, "--factor", 2, "--width", 0.125, "--niter", 1, "--inner_loop", 2,
        "--n_data", 16, "--batch_real", 8, "--workers", 0, "--data_dir", data_folder,
    )  # fmt: skip
    compared(result, [50])
