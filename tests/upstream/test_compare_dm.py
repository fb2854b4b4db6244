"""`ddplug compare dm`: the unedited upstream script, run once per weight and seed, in pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ddplug import ProxyPool
from ddplug.datasets.images import ImageData
from ddplug.datasets.synthetic import load_set
from ddplug.lab.compare import compare
from ddplug.lab.judge import Judge
from ddplug.lab.plan import Settings, arms
from ddplug.lab.upstream_host import Upstream

pytestmark = [pytest.mark.upstream, pytest.mark.slow]


def test_pairs_of_an_upstream_host(
    bench: Callable[[str], Any],
    data_folder: Path,
    cifar: ImageData,
    pools: tuple[Path, ProxyPool],
    tmp_path: Path,
    no_md5: None,
) -> None:
    """Draws are the same in all arms of a seed, others in another; CMI falls; a second run gives the same."""
    host = bench("dm")
    arguments = ("--model", "ConvNetW32", "--ipc", "10", "--batch_real", "16", "--Iteration", "5")
    settings = Settings(
        width=8, runs=1, epochs=2, arguments=(*arguments, "--data_path", str(data_folder)), regularizer={"calibrate": 2}
    )
    cpu = torch.device("cpu")

    def run(out: str, weights: tuple[float, ...], seeds: int) -> dict[str, Any]:
        judge = Judge(cifar, settings, ProxyPool.load(pools[0]), pools[1], cpu)
        compare(Upstream(host.spec, host.repo, pools[0], settings), arms(weights), seeds, tmp_path / out, judge)
        result: dict[str, Any] = json.loads((tmp_path / out / "compare.json").read_text())
        return result

    def images(out: str, entry: str) -> torch.Tensor:
        return load_set(tmp_path / out / "entries" / entry / "set-000006.pt").images

    result = run("out", (1e-12, 1.0), 1)
    assert torch.allclose(images("out", "weight-0-seed0"), images("out", "weight-1e-12-host-seed0"), atol=1e-4)
    baseline, _, arm = result["summary"]
    assert arm["cmi_heldout"] < baseline["cmi_heldout"]
    assert arm["lambda"] > 0
    run("again", (), 2)
    assert torch.equal(images("again", "weight-0-seed0"), images("out", "weight-0-seed0"))
    assert not torch.allclose(images("again", "weight-0-seed1"), images("out", "weight-0-seed0"), atol=0.1)
