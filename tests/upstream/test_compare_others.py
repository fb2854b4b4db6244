"""`ddplug compare` with MTT, DATM and IDC: what they save where they are started is found and judged, in pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ddplug import ProxyPool
from ddplug.comparison.compare import compare
from ddplug.comparison.judge import Judge
from ddplug.comparison.plan import Settings, arms
from ddplug.comparison.upstream_host import Upstream
from ddplug.datasets.images import ImageData

pytestmark = [pytest.mark.upstream, pytest.mark.slow]


@pytest.fixture
def pairs(
    bench: Callable[[str], Any],
    cifar: ImageData,
    pools: tuple[Path, ProxyPool],
    tmp_path: Path,
    no_md5: None,
) -> Any:
    """A comparison of one seed at weight 1, and its host's runs."""

    def run(name: str, *arguments: object) -> dict[str, Any]:
        host, cpu = bench(name), torch.device("cpu")
        given = tuple(map(str, arguments))
        settings = Settings(width=8, runs=1, epochs=2, arguments=given, regularizer={"calibrate": 2})
        judge = Judge(cifar, settings, ProxyPool.load(pools[0]), pools[1], cpu)
        distil = Upstream(host.spec, host.repo, pools[0], settings)
        compare(distil, arms([1.0]), 1, tmp_path / "out", judge, host=name)
        result: dict[str, Any] = json.loads((tmp_path / "out/compare.json").read_text())
        return result

    return run


def check(result: dict[str, Any], iterations: list[int]) -> None:
    baseline, arm = result["summary"]
    for entry in result["entries"]:
        assert [point["iteration"] for point in entry["checkpoints"]] == iterations
    assert baseline["lambda"] is None
    assert arm["lambda"] > 0
    assert arm["cmi_heldout"] < baseline["cmi_heldout"]


def test_mtt(pairs: Any, data_folder: Path, experts: Path) -> None:
    result = pairs(
        "mtt", "--ipc", 2, "--model", "ConvNetW32", "--batch_syn", 10, "--syn_steps", 1, "--expert_epochs", 1,
        "--max_start_epoch", 2, "--data_path", data_folder, "--buffer_path", experts, "--lr_img", 1000,
        "--Iteration", 1000,
    )  # fmt: skip
    check(result, [1000])


def test_datm(pairs: Any, data_folder: Path, experts: Path, tmp_path: Path) -> None:
    options = {
        "dataset": "CIFAR10", "ipc": 2, "model": "ConvNetW32", "batch_syn": 10, "syn_steps": 1, "expert_epochs": 1,
        "min_start_epoch": 0, "current_max_start_epoch": 2, "max_start_epoch": 3, "expansion_end_epoch": 10,
        "data_path": str(data_folder), "buffer_path": str(experts), "zca": False, "pix_init": "real",
        "Iteration": 1000, "parall_eva": True, "lr_img": 1000, "threshold": 10.0,
    }  # fmt: skip
    (tmp_path / "options.yaml").write_text(json.dumps(options))
    check(pairs("datm", "--cfg", tmp_path / "options.yaml"), [1000])


def test_idc(pairs: Any, data_folder: Path) -> None:
    result = pairs(
        "idc", "-d", "cifar10", "--ipc", 2, "--factor", 2, "--width", 0.125, "--niter", 1, "--inner_loop", 2,
        "--n_data", 16, "--batch_real", 8, "--workers", 0, "--data_dir", data_folder,
    )  # fmt: skip
    check(result, [50])
