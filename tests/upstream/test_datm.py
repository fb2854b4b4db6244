"""DATM: the unedited upstream script on real CIFAR-10, on the CPU, with two small experts."""

from __future__ import annotations

import json
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
def datm(bench: Callable[[str], Any]) -> Any:
    return bench("datm")


def options(data: Path, experts: Path, last: int, **more: object) -> dict[str, object]:
    return {
        "dataset": "CIFAR10", "ipc": IPC, "model": "ConvNetW32", "batch_syn": 25, "syn_steps": STEPS,
        "expert_epochs": 1, "min_start_epoch": 0, "current_max_start_epoch": 2, "max_start_epoch": 3,
        "expansion_end_epoch": 10, "data_path": str(data), "buffer_path": str(experts), "zca": False,
        "pix_init": "real", "Iteration": last, "skip_first_eva": True, "parall_eva": True, "eval_it": 1000,
        "num_eval": 1, "epoch_eval_train": 1, "lr_img": 1000, "threshold": 10.0, **more,
    }  # fmt: skip


def config(host: Any, given: dict[str, object]) -> tuple[str, Path]:
    """The options as the host takes them: a file, in YAML, of which JSON is a part."""
    file = host.folder / "options.yaml"
    file.write_text(json.dumps(given))
    return "--cfg", file


def test_weight_zero_gives_the_images_of_upstream(datm: Any, data_folder: Path, experts: Path) -> None:
    """(a), the host's own evaluation and its saved images and labels included"""
    given = config(datm, options(data_folder, experts, 3, eval_it=3))
    datm.direct(*given, **datm.seen("direct", spy_steps=9))
    saved = {file.name: torch.load(file) for file in datm.folder.glob("logged_files/**/*.pt")}
    assert {"images_3.pt", "labels_3.pt", "lr_3.pt"} <= saved.keys()
    shutil.rmtree(datm.folder / "logged_files")
    datm.ddplug(("--weight", 0), *given, **datm.seen("zero", spy_steps=9))
    theirs, ours = datm.read("direct"), datm.read("zero")
    assert theirs["count"] == ours["count"] == 4
    for one, other in zip(theirs["steps"], ours["steps"], strict=True):
        assert torch.equal(one["images"], other["images"])
        assert torch.equal(one["grad"], other["grad"])
    files = {file.name: torch.load(file) for file in datm.folder.glob("logged_files/**/*.*")}
    assert files.keys() == saved.keys(), "weight 0 leaves nothing of ours behind"
    assert all(torch.equal(files[name], saved[name]) for name in saved)


def test_the_layer_fires_at_every_step_and_cmi_falls(
    datm: Any, data_folder: Path, experts: Path, pools: tuple[Path, Any], held_out_cmi: Callable[..., float]
) -> None:
    """(b)"""
    given = config(datm, options(data_folder, experts, 39))
    datm.ddplug(("--weight", 0), *given, **datm.seen("off"))
    datm.ddplug(("--weight", 0.1, "--proxies", pools[0]), *given, **datm.seen("on"))
    (wrote,) = datm.records()
    assert wrote["rounds"] == len(wrote["history"]) == datm.read("on")["count"] == 40
    assert wrote["skipped"] == 0
    assert {round_["images"] for round_ in wrote["history"]} == {25}, "the views of one inner step"
    assert wrote["lambda"] > 0
    off, on = (held_out_cmi(datm.read(run)["last"], LABELS) for run in ("off", "on"))
    print(f"DATM: held-out CMI {off:.4f} without, {on:.4f} with, lambda {wrote['lambda']:.4g}, 40 steps")
    assert on < off


def test_as_many_steps_are_accepted_with_the_layer_as_without(
    datm: Any, data_folder: Path, experts: Path, pools: tuple[Path, Any]
) -> None:
    """The layer leaves the loss as it is; what the gate refuses is no round, and no part of how lambda is measured."""
    given = config(datm, options(data_folder, experts, 11, threshold=0.86))
    datm.ddplug(("--weight", 0), *given, **datm.seen("off"))
    datm.ddplug(("--weight", 0.1, "--proxies", pools[0]), *given, **datm.seen("on"))
    off, on = (datm.read(run)["count"] for run in ("off", "on"))
    (wrote,) = datm.records()
    print(f"DATM: {off} of 12 steps accepted without the layer, {on} with it, {wrote['rounds']} rounds")
    assert 0 < off < 12, "the gate is closed now and then"
    assert on == off == wrote["rounds"]


def test_learned_labels_get_no_gradient_of_cmi(datm: Any, data_folder: Path, experts: Path, one_proxy: Path) -> None:
    """After one step at a large lambda the images differ from those without CMI, the labels and the rate do not."""
    given = config(datm, options(data_folder, experts, 1, eval_it=1))
    saved = []
    for ours in (
        ("--weight", 0),
        ("--weight", 50, "--weighting", "absolute", "--precision", "exact", "--proxies", one_proxy),
    ):
        datm.ddplug(ours, *given)
        saved.append({file.name: torch.load(file) for file in datm.folder.glob("logged_files/**/*_1.pt")})
        shutil.rmtree(datm.folder / "logged_files")
    off, on = saved
    assert not torch.equal(off["images_1.pt"], on["images_1.pt"])
    assert torch.equal(off["labels_1.pt"], on["labels_1.pt"])
    assert torch.equal(off["lr_1.pt"], on["lr_1.pt"])


def test_patch_check_run_reverse(datm: Any, data_folder: Path, experts: Path, tree: Callable[[Path], str]) -> None:
    """(c)"""
    repo = datm.copy()
    before = tree(repo)
    assert "the patch fits" in datm.drive("ddplug", "patch", "datm", repo, "--check").output
    datm.drive("ddplug", "patch", "datm", repo, "--diff")
    assert tree(repo) == before
    datm.drive("ddplug", "patch", "datm", repo)
    assert tree(repo) != before
    given = config(datm, options(data_folder, experts, 2))
    ours = {"repo": repo, "clock": str(repo), "path": [str(repo)]}
    datm.direct(*given, **ours, **datm.seen("patched"))
    datm.direct(*given, **datm.seen("direct"))
    assert torch.equal(datm.read("patched")["last"], datm.read("direct")["last"])
    datm.direct(*given, "--cmi_weight", 0.1, **ours, **datm.seen("regularised"))
    assert not torch.equal(datm.read("regularised")["last"], datm.read("direct")["last"])
    assert [wrote["rounds"] for wrote in datm.records()] == [3], "saved at the end, without ddplug run as well"
    datm.drive("ddplug", "patch", "datm", repo, "--reverse")
    assert tree(repo) == before


def test_git_applies_the_patch_too(datm: Any) -> None:
    repo = datm.copy()
    patch = datm.folder / "ours.patch"
    patch.write_bytes(datm.spec.patch.raw)
    subprocess.run(["git", "apply", "--unidiff-zero", str(patch)], cwd=repo, check=True, capture_output=True)
    assert set(datm.spec.check(repo).values()) == {"patched"}


@pytest.mark.parametrize("inner", ["one", "last", "all"])
def test_the_gradient_is_the_hosts_plus_lambda_times_cmis(
    inner: str, datm: Any, data_folder: Path, experts: Path, one_proxy: Path
) -> None:
    """(d): at the first step, where both runs are at the same images."""
    given, lam = config(datm, options(data_folder, experts, 0)), 5.0
    datm.ddplug(("--weight", 0), *given, **datm.seen("off"))
    absolute = ("--weight", lam, "--weighting", "absolute", "--precision", "exact", "--proxies", one_proxy)
    datm.ddplug((*absolute, "--inner", inner), *given, **datm.seen("on", pool=str(one_proxy)))
    off, on = (datm.read(run)["steps"][0] for run in ("off", "on"))
    assert torch.equal(off["images"], on["images"])
    assert len(on["labels"]) == (25 * STEPS if inner == "all" else 25)
    assert not on["labels"].is_floating_point(), "numbers of classes, not learned logits"
    wanted = off["grad"] + lam * on["cmi"]
    added = (lam * on["cmi"]).norm() / off["grad"].norm()
    error = (on["grad"] - wanted).norm() / wanted.norm()
    print(f"DATM {inner}: relative error {error:.2e}, CMI's part {added:.2f} of the host's")
    assert added > 0.01, "CMI's part must be large enough to be missed"
    assert error < 1e-5


def test_attach_on_the_imported_module_is_the_same_run(
    datm: Any, data_folder: Path, experts: Path, pools: tuple[Path, Any]
) -> None:
    given = options(data_folder, experts, 2)
    datm.ddplug(("--weight", 0.1, "--proxies", pools[0]), *config(datm, given), **datm.seen("run"))
    rest = {
        "subset": "imagenette", "eval_mode": "S", "lr_lr": 1e-5, "lr_teacher": 0.01, "batch_real": 256,
        "batch_train": 256, "dsa": True, "dsa_strategy": "color_crop_cutout_flip_scale_rotate", "load_all": False,
        "no_aug": False, "max_files": None, "max_experts": None, "project": "TEST", "device": [0], "lr_y": 2.0,
        "Momentum_y": 0.9, "Sequential_Generation": True, "force_save": False, "lr_init": 0.01,
    }  # fmt: skip
    said = json.dumps({"weight": 0.1, "proxies": str(pools[0])})
    folder = datm.repo / "distill"
    more = {"options": {**rest, **given}, "path": [str(datm.repo)], **datm.seen("attached")}
    datm.drive("attach", folder, "DATM", "main", said, **more)
    assert torch.equal(datm.read("run")["last"], datm.read("attached")["last"])
    first, second = datm.records()
    assert first["history"] == second["history"]


def test_whitened_images_reach_the_proxies_in_their_own_space(
    datm: Any, data_folder: Path, experts: Path, one_proxy: Path
) -> None:
    """The host's ZCA, with proxies of images that are not whitened, and with experts of images that are."""
    whitened = datm.folder / "experts" / "CIFAR10"
    shutil.copytree(experts / "CIFAR10_NO_ZCA", whitened)  # not trained on whitened images, but that is not asked here
    given = config(datm, options(data_folder, whitened.parent, 0, zca=True))
    absolute = ("--weight", 5, "--weighting", "absolute", "--precision", "exact", "--inner", "last")
    for proxies in (one_proxy, f"buffer:{experts / 'CIFAR10_NO_ZCA' / 'ConvNetW32'}#3"):
        datm.ddplug((*absolute, "--proxies", proxies), *given)
    datm.ddplug(absolute, *given)
    pool, plain, own = (wrote["history"][0]["value"] for wrote in datm.records())
    assert pool > 0
    assert plain != own, "the same weights, asked about images of two kinds"


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ((), {"data_path": "nowhere"}, "no cifar-10-batches-py"),
        ((), {"syn_stepss": 3}, "syn_stepss"),
        ((), {"buffer_path": "nowhere"}, "there is no replay_buffer_0.pt in"),
        ((), {"zca": True}, "There are experts without ZCA whitening in"),
        (("--proxies", "buffer:nowhere"), {}, "no expert buffer in"),
    ],
)
def test_bad_input_is_a_clear_error(
    ours: tuple[object, ...], theirs: dict[str, object], said: str, datm: Any, data_folder: Path, experts: Path
) -> None:
    given = config(datm, options(data_folder, experts, 0, **theirs))
    ran = datm.ddplug(ours, *given, status=None)
    assert said in ran.output
    assert [file.name for file in datm.folder.iterdir()] == ["options.yaml"], "nothing changed on disk"
    if "syn_stepss" not in theirs:  # of which the host itself says what is wrong
        assert "Traceback" not in ran.output


def test_a_configuration_is_asked_for(datm: Any) -> None:
    for given in ((), ("--cfg", "nowhere.yaml")):
        assert "takes its options from a file" in datm.ddplug((), *given, status=None).output
