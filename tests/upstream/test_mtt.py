"""MTT: the unedited upstream script on real CIFAR-10, on the CPU, with two small experts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.upstream, pytest.mark.slow]

IPC, STEPS = 5, 4
LABELS = torch.arange(10).repeat_interleave(IPC)


@pytest.fixture
def mtt(bench: Callable[[str], Any]) -> Any:
    return bench("mtt")


def options(data: Path, experts: Path, last: int, **more: object) -> dict[str, object]:
    return {
        "ipc": IPC, "model": "ConvNetW32", "batch_syn": 25, "syn_steps": STEPS, "expert_epochs": 1,
        "max_start_epoch": 2, "data_path": str(data), "buffer_path": str(experts), "lr_img": 1000, "Iteration": last,
        "eval_it": -1, "num_eval": 1, "epoch_eval_train": 1, **more,
    }  # fmt: skip


def line(given: dict[str, object]) -> list[object]:
    """Options as a command line."""
    return [part for name, value in given.items() for part in (f"--{name}", *([] if value is True else [value]))]


def test_weight_zero_gives_the_images_of_upstream(mtt: Any, data_folder: Path, experts: Path) -> None:
    """(a), the host's own evaluation and its saved images included"""
    given = line(options(data_folder, experts, 3, eval_it=3))
    mtt.direct(*given, **mtt.seen("direct", spy_steps=9))
    saved = {file.name: torch.load(file) for file in mtt.folder.glob("logged_files/*/*/*.pt")}
    assert "images_best.pt" in saved
    shutil.rmtree(mtt.folder / "logged_files")
    mtt.ddplug(("--weight", 0), *given, **mtt.seen("zero", spy_steps=9))
    theirs, ours = mtt.read("direct"), mtt.read("zero")
    assert theirs["count"] == ours["count"] == 4
    for one, other in zip(theirs["steps"], ours["steps"], strict=True):
        assert torch.equal(one["images"], other["images"])
        assert torch.equal(one["grad"], other["grad"])
    files = {file.name: torch.load(file) for file in mtt.folder.glob("logged_files/*/*/*")}
    assert files.keys() == saved.keys(), "weight 0 leaves nothing of ours behind"
    assert all(torch.equal(files[name], saved[name]) for name in saved)


def test_the_layer_fires_at_every_step_and_cmi_falls(
    mtt: Any, data_folder: Path, experts: Path, pools: tuple[Path, Any], held_out_cmi: Callable[..., float]
) -> None:
    """(b)"""
    given = line(options(data_folder, experts, 39))
    mtt.ddplug(("--weight", 0), *given, **mtt.seen("off"))
    ran = mtt.ddplug(("--weight", 0.1, "--proxies", pools[0]), *given, **mtt.seen("on"))
    (wrote,) = mtt.records()
    assert wrote["rounds"] == len(wrote["history"]) == 40
    assert wrote["skipped"] == 0
    assert {round_["images"] for round_ in wrote["history"]} == {25}, "the views of one inner step"
    assert wrote["lambda"] > 0
    assert re.search(r"ddplug: lambda = \S+ from now on", ran.output)
    off, on = (held_out_cmi(mtt.read(run)["last"], LABELS) for run in ("off", "on"))
    print(f"MTT: held-out CMI {off:.4f} without, {on:.4f} with, lambda {wrote['lambda']:.4g}, 40 steps")
    assert on < off


def test_patch_check_run_reverse(mtt: Any, data_folder: Path, experts: Path, tree: Callable[[Path], str]) -> None:
    """(c)"""
    repo = mtt.copy()
    before = tree(repo)
    assert "the patch fits" in mtt.drive("ddplug", "patch", "mtt", repo, "--check").output
    mtt.drive("ddplug", "patch", "mtt", repo, "--diff")
    assert tree(repo) == before
    mtt.drive("ddplug", "patch", "mtt", repo)
    assert tree(repo) != before
    given = line(options(data_folder, experts, 2))
    mtt.direct(*given, repo=repo, clock=str(repo), **mtt.seen("patched"))
    mtt.direct(*given, **mtt.seen("direct"))
    assert torch.equal(mtt.read("patched")["last"], mtt.read("direct")["last"])
    mtt.direct(*given, "--cmi_weight", 0.1, repo=repo, clock=str(repo), **mtt.seen("regularised"))
    assert not torch.equal(mtt.read("regularised")["last"], mtt.read("direct")["last"])
    assert [wrote["rounds"] for wrote in mtt.records()] == [3], "saved at the end, without ddplug run as well"
    mtt.drive("ddplug", "patch", "mtt", repo, "--reverse")
    assert tree(repo) == before


def test_git_applies_the_patch_too(mtt: Any) -> None:
    repo = mtt.copy()
    patch = mtt.folder / "ours.patch"
    patch.write_bytes(mtt.spec.patch.raw)
    subprocess.run(["git", "apply", "--unidiff-zero", str(patch)], cwd=repo, check=True, capture_output=True)
    assert set(mtt.spec.check(repo).values()) == {"patched"}


@pytest.mark.parametrize("inner", ["one", "last", "all"])
def test_the_gradient_is_the_hosts_plus_lambda_times_cmis(
    inner: str, mtt: Any, data_folder: Path, experts: Path, one_proxy: Path
) -> None:
    """(d): at the first step, where both runs are at the same images."""
    given, lam = line(options(data_folder, experts, 0)), 5.0
    more = mtt.seen("on", pool=str(one_proxy))
    mtt.ddplug(("--weight", 0), *given, **mtt.seen("off"))
    absolute = ("--weight", lam, "--weighting", "absolute", "--precision", "exact", "--proxies", one_proxy)
    mtt.ddplug((*absolute, "--inner", inner), *given, **more)
    off, on = (mtt.read(run)["steps"][0] for run in ("off", "on"))
    assert torch.equal(off["images"], on["images"])
    assert len(on["labels"]) == (25 * STEPS if inner == "all" else 25)
    wanted = off["grad"] + lam * on["cmi"]
    added = (lam * on["cmi"]).norm() / off["grad"].norm()
    error = (on["grad"] - wanted).norm() / wanted.norm()
    print(f"MTT {inner}: relative error {error:.2e}, CMI's part {added:.2f} of the host's")
    assert added > 0.01, "CMI's part must be large enough to be missed"
    assert error < 1e-5


def test_attach_on_the_imported_module_is_the_same_run(
    mtt: Any, data_folder: Path, experts: Path, pools: tuple[Path, Any]
) -> None:
    given = options(data_folder, experts, 2)
    mtt.ddplug(("--weight", 0.1, "--proxies", pools[0]), *line(given), **mtt.seen("run"))
    rest = {
        "dataset": "CIFAR10", "subset": "imagenette", "res": 128, "eval_mode": "S", "lr_lr": 1e-5, "lr_teacher": 0.01,
        "lr_init": 0.01, "batch_real": 256, "batch_train": 256, "pix_init": "real", "dsa": "True",
        "dsa_strategy": "color_crop_cutout_flip_scale_rotate", "zca": False, "load_all": False, "no_aug": False,
        "texture": False, "canvas_size": 2, "canvas_samples": 1, "max_files": None, "max_experts": None,
        "force_save": False,
    }  # fmt: skip
    said = json.dumps({"weight": 0.1, "proxies": str(pools[0])})
    mtt.drive("attach", mtt.repo, "distill", "main", said, options={**rest, **given}, **mtt.seen("attached"))
    assert torch.equal(mtt.read("run")["last"], mtt.read("attached")["last"])
    first, second = mtt.records()
    assert first["history"] == second["history"]


def test_a_round_has_the_views_of_one_inner_step_however_many_there_are(
    mtt: Any, data_folder: Path, experts: Path
) -> None:
    for steps in (5, 30):
        ran = mtt.ddplug((), *line(options(data_folder, experts, 3, syn_steps=steps)), time=True)
        print(f"MTT, syn_steps {steps}: {re.search('regulariser: .*', ran.output)}")
    few, many = mtt.records()
    for wrote, steps in ((few, 5), (many, 30)):
        assert wrote["steps"] == steps
        assert {round_["images"] for round_ in wrote["history"]} == {25}
        assert wrote["rounds"] == 4


def test_proxies_are_the_hosts_own_experts_at_the_snapshot_asked_for(
    mtt: Any, data_folder: Path, experts: Path
) -> None:
    folder = experts / "CIFAR10_NO_ZCA" / "ConvNetW32"
    given = line(options(data_folder, experts, 0))
    for proxies in ((), ("--proxies", f"buffer:{folder}#1"), ("--proxies", f"buffer:{folder / 'replay_buffer_0.pt'}")):
        mtt.ddplug(proxies, *given)
    own, first, file = (wrote["proxies"] for wrote in mtt.records())
    assert own == file == ["replay_buffer_0/0#3", "replay_buffer_0/1#3"]
    assert first == ["replay_buffer_0/0#1", "replay_buffer_0/1#1"]


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ((), {"data_path": "nowhere"}, "no cifar-10-batches-py"),
        ((), {"syn_stepss": 3}, "unrecognized arguments: --syn_stepss"),
        ((), {"buffer_path": "nowhere"}, "there is no replay_buffer_0.pt in"),
        ((), {"model": "ConvNetW64"}, "there is no replay_buffer_0.pt in"),
        ((), {"zca": True}, "There are experts without ZCA whitening in"),
        (("--proxies", "buffer:nowhere"), {}, "no expert buffer in"),
        (("--proxies", "buffer:whitened/CIFAR10/ConvNetW32"), {}, "trained on ZCA-whitened images"),
        (("--proxies", "buffer:whitened#9"), {}, "name one of them"),
        (("--proxies", "buffer:whitened#last"), {}, "is not a snapshot"),
        ((), {"buffer_path": "aliased"}, "without CUDA"),
    ],
)
def test_bad_input_is_a_clear_error(
    ours: tuple[object, ...], theirs: dict[str, object], said: str, mtt: Any, data_folder: Path, experts: Path
) -> None:
    held = experts / "CIFAR10_NO_ZCA" / "ConvNetW32" / "replay_buffer_0.pt"
    for name in ("whitened/CIFAR10", "aliased/CIFAR10_NO_ZCA"):
        (mtt.folder / name / "ConvNetW32").mkdir(parents=True)
    shutil.copy(held, mtt.folder / "whitened" / "CIFAR10" / "ConvNetW32")
    stuck = [[snapshots[-1]] * 4 for snapshots in torch.load(held)]
    torch.save(stuck, mtt.folder / "aliased" / "CIFAR10_NO_ZCA" / "ConvNetW32" / "replay_buffer_0.pt")
    before = sorted(mtt.folder.glob("**/*"))
    ran = mtt.ddplug(ours, *line(options(data_folder, experts, 0, **theirs)), status=None)
    assert said in ran.output
    assert "Traceback" not in ran.output
    assert sorted(mtt.folder.glob("**/*")) == before, "nothing changed on disk"
