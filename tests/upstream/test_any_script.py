"""Upstream scripts by `ddplug run --script`, without their patch: to the bit what they are with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ddplug.scripts.any_script import Unpatched
from ddplug.scripts.finding import find

pytestmark = [pytest.mark.upstream, pytest.mark.slow]

SHORT: dict[str, tuple[object, ...]] = {
    "dm": ("--ipc", 10, "--batch_real", 16, "--num_exp", 1, "--num_eval", 0, "--model", "ConvNetW32",
           "--Iteration", 2, "--save_path", "out"),
    "idm": ("--ipc", 4, "--batch_real", 16, "--num_exp", 1, "--num_eval", 0, "--Iteration", 1, "--trained_bs", 16,
            "--model_train_steps", 1, "--fetch_net_num", 1, "--train_net_num", 1, "--embed_last", 1000,
            "--lr_img", 0.2, "--aug", "--syn_ce", "--save_path", "out", "--eval_interval", 100000),
    "mtt": ("--ipc", 5, "--model", "ConvNetW32", "--batch_syn", 25, "--syn_steps", 4, "--expert_epochs", 1,
            "--max_start_epoch", 2, "--lr_img", 1000, "--Iteration", 2, "--eval_it", -1),
}  # fmt: skip
OURS = {"dm": (), "idm": ("--redirect-cuda",), "mtt": ("--redirect-cuda", "--steps", "args.syn_steps")}
MODULES = {"dm": "utils.py", "idm": "dc_utils.py", "mtt": "utils.py"}
PLACES = {"dm": (158, 176), "idm": (298,), "mtt": (359,)}


UNCHECKED = """
import torchvision.datasets.cifar as cifar, torchvision.datasets.utils as utils
cifar.check_integrity = utils.check_integrity = lambda *_, **__: True
"""
"""The part of CIFAR-10 that is read has other md5 sums than the original release."""


@pytest.fixture(params=SHORT)
def host(request: pytest.FixtureRequest, bench: Callable[[str], Any]) -> Any:
    from ddplug.attaching import registry

    if request.param not in registry.names():
        pytest.skip(f"there is no patch for {request.param}")
    return bench(str(request.param))


def test_without_its_patch_it_is_the_same_run(
    host: Any, data_folder: Path, pools: tuple[Path, Any], request: pytest.FixtureRequest
) -> None:
    name = host.spec.name
    theirs = [*SHORT[name], "--data_path", data_folder]
    if name == "mtt":
        theirs += ["--buffer_path", request.getfixturevalue("experts")]
    on = ("--weight", 0.5, "--proxies", pools[0])
    script = ("run", "--script", host.repo / host.spec.script, "--at", f"{MODULES[name]}:DiffAugment", *OURS[name])
    host.ddplug(on, *theirs, **host.seen("patched", spy_steps=99))
    ran = host.drive("ddplug", *script, *on, "--", *theirs, **host.seen("script", spy_steps=99))
    host.direct(*theirs, **host.seen("direct", spy_steps=99))
    host.drive("ddplug", *script, "--weight", 0, "--", *theirs, **host.seen("zero", spy_steps=99))
    patched, without, direct, zero = (host.read(run) for run in ("patched", "script", "direct", "zero"))
    for one, other in ((patched, without), (direct, zero)):
        assert one["count"] == other["count"] > 1
        assert all(torch.equal(a["grad"], b["grad"]) for a, b in zip(one["steps"], other["steps"], strict=True))
        assert torch.equal(one["last"], other["last"])
    assert not torch.equal(without["last"], direct["last"])
    assert f"CMI acted in {without['count'] - 1} of {without['count']} steps of the images" in ran.output


def test_find_has_its_place_among_the_first(
    host: Any, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    name = host.spec.name
    theirs = [*SHORT[name], "--data_path", data_folder]
    if name == "mtt":
        theirs += ["--buffer_path", request.getfixturevalue("experts")]
    (tmp_path / "sitecustomize.py").write_text(UNCHECKED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    found = find(Unpatched(host.repo / host.spec.script, redirect_cuda=True), [*map(str, theirs)], seconds=300)
    first = [line for line in found[1:5:2] if line.startswith(f"{MODULES[name]}:DiffAugment makes views")]
    assert int(first[0].rstrip(":").rpartition(":")[2]) in PLACES[name]
