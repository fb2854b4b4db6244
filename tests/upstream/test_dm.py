"""DM, DC and DSA: the unedited upstream scripts on real CIFAR-10, on the CPU, at small sizes."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.upstream, pytest.mark.slow]

SMALL = ("--ipc", 10, "--batch_real", 16, "--num_exp", 1, "--num_eval", 0)

# DC and DSA train their network 450 times an iteration at 10 images per class, so there it is a small one.
CASES = {  # host, its own arguments, the results' name, image steps of one iteration
    "DM": ("dm", ("--model", "ConvNetW32"), "res_DM_CIFAR10_ConvNetW32_10ipc.pt", 1),
    "DC": ("dsa", ("--method", "DC", "--init", "real", "--model", "LeNet"), "res_DC_CIFAR10_LeNet_10ipc.pt", 10),
    "DSA": ("dsa", ("--method", "DSA", "--init", "real", "--model", "LeNet",
                    "--dsa_strategy", "color_crop_cutout_flip_scale_rotate"), "res_DSA_CIFAR10_LeNet_10ipc.pt", 10),
}  # fmt: skip

LONG = {"DM": 35, "DC": 2, "DSA": 2}
"""Last iteration of the runs in which CMI has to fall: some dozens of image steps."""


@pytest.fixture(params=CASES)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def arguments(method: str, data: Path, out: str, last: int) -> tuple[object, ...]:
    return (*CASES[method][1], *SMALL, "--data_path", data, "--Iteration", last, "--save_path", out)


def result(folder: Path, method: str) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = torch.load(folder / CASES[method][2], weights_only=False)["data"][0]
    return images, labels


def record(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("cmi_*.json")
    return json.loads(file.read_text())  # type: ignore[no-any-return]


def test_weight_zero_gives_the_images_of_upstream(method: str, bench: Callable[[str], Any], data_folder: Path) -> None:
    """(a)"""
    host = bench(CASES[method][0])
    last = 3 if method == "DM" else 0
    host.direct(*arguments(method, data_folder, "direct", last))
    host.ddplug(("--weight", 0), *arguments(method, data_folder, "zero", last))
    theirs, ours = result(host.folder / "direct", method), result(host.folder / "zero", method)
    assert torch.equal(theirs[0], ours[0])
    assert torch.equal(theirs[1], ours[1])
    names = [sorted(path.name for path in (host.folder / run).iterdir()) for run in ("direct", "zero")]
    assert names[0] == names[1], "weight 0 leaves nothing of ours behind"


def test_the_layer_fires_at_every_step_and_cmi_falls(
    method: str,
    bench: Callable[[str], Any],
    data_folder: Path,
    pools: tuple[Path, Any],
    held_out_cmi: Callable[..., float],
) -> None:
    """(b)"""
    host, last = bench(CASES[method][0]), LONG[method]
    host.ddplug(("--weight", 0), *arguments(method, data_folder, "off", last))
    ran = host.ddplug(("--weight", 0.1, "--proxies", pools[0]), *arguments(method, data_folder, "on", last))
    wrote = record(host.folder / "on")
    steps = (last + 1) * CASES[method][3]
    assert wrote["rounds"] == steps
    assert len(wrote["history"]) == steps
    assert wrote["skipped"] == 0
    assert {round_["images"] for round_ in wrote["history"]} == {100}
    assert wrote["lambda"] > 0
    assert re.search(r"ddplug: lambda = \S+ from now on", ran.output)
    off, on = (held_out_cmi(*result(host.folder / run, method)) for run in ("off", "on"))
    print(f"{method}: held-out CMI {off:.4f} without, {on:.4f} with, lambda {wrote['lambda']:.4g}, {steps} steps")
    assert on < off


def test_patch_check_run_reverse(
    method: str, bench: Callable[[str], Any], data_folder: Path, tree: Callable[[Path], str]
) -> None:
    """(c)"""
    host = bench(CASES[method][0])
    repo = host.copy()
    before = tree(repo)
    name = host.spec.name
    assert "the patch fits" in host.drive("ddplug", "patch", name, repo, "--check").output
    host.drive("ddplug", "patch", name, repo, "--diff")
    assert tree(repo) == before
    host.drive("ddplug", "patch", name, repo)
    assert tree(repo) != before
    assert "patched" in host.drive("ddplug", "patch", name, repo, "--check").output
    last = 1 if method == "DM" else 0
    host.direct(*arguments(method, data_folder, "patched", last), repo=repo, clock=str(repo))
    host.direct(*arguments(method, data_folder, "direct", last))
    assert torch.equal(result(host.folder / "patched", method)[0], result(host.folder / "direct", method)[0])
    host.drive("ddplug", "patch", name, repo, "--reverse")
    assert tree(repo) == before


def test_git_applies_the_patch_too(method: str, bench: Callable[[str], Any], tree: Callable[[Path], str]) -> None:
    host = bench(CASES[method][0])
    repo = host.copy()
    patch = host.folder / "ours.patch"
    patch.write_bytes(host.spec.patch.raw)
    subprocess.run(["git", "apply", "--unidiff-zero", str(patch)], cwd=repo, check=True, capture_output=True)
    assert set(host.spec.check(repo).values()) == {"patched"}


def test_the_gradient_is_the_hosts_plus_lambda_times_cmis(
    method: str, bench: Callable[[str], Any], data_folder: Path, pools: tuple[Path, Any], tmp_path: Path
) -> None:
    """(d): at the first step, where both runs are at the same images. One proxy, so that both sides draw the same."""
    from ddplug import ProxyPool

    one = tmp_path / "one"
    ProxyPool(ProxyPool.load(pools[0]).proxies[:1], ProxyPool.load(pools[0]).info).save(one)
    host, lam = bench(CASES[method][0]), 500.0
    common = arguments(method, data_folder, "out", 0)
    host.ddplug(("--weight", 0), *common, spy=str(tmp_path / "off.pt"), pool=str(one), spy_steps=1)
    host.ddplug(("--weight", lam, "--weighting", "absolute", "--precision", "exact", "--proxies", one), *common,
                spy=str(tmp_path / "on.pt"), pool=str(one), spy_steps=1)  # fmt: skip
    off, on = (torch.load(tmp_path / f"{run}.pt")["steps"][0] for run in ("off", "on"))
    assert torch.equal(off["images"], on["images"])
    wanted = off["grad"] + lam * on["cmi"]
    added = (lam * on["cmi"]).norm() / off["grad"].norm()
    error = (on["grad"] - wanted).norm() / wanted.norm()
    print(f"{method}: relative error {error:.2e}, CMI's part {added:.2f} of the host's")
    assert added > 0.01, "CMI's part must be large enough to be missed"
    assert error < 1e-5


def test_attach_on_the_imported_module_is_the_same_run(
    method: str, bench: Callable[[str], Any], data_folder: Path, pools: tuple[Path, Any]
) -> None:
    host = bench(CASES[method][0])
    last = 2 if method == "DM" else 0
    host.ddplug(("--weight", 0.1, "--proxies", pools[0]), *arguments(method, data_folder, "run", last))
    options = json.dumps({"weight": 0.1, "proxies": str(pools[0])})
    module = Path(host.spec.script).stem
    host.drive("attach", host.repo, module, "main", options, *arguments(method, data_folder, "attached", last))
    assert torch.equal(result(host.folder / "run", method)[0], result(host.folder / "attached", method)[0])
    assert record(host.folder / "run")["history"] == record(host.folder / "attached")["history"]


def test_clean_views_are_regularised_before_the_augmentation(
    bench: Callable[[str], Any], data_folder: Path, pools: tuple[Path, Any]
) -> None:
    host = bench("dm")
    for views in ("host", "clean"):
        host.ddplug(("--views", views, "--proxies", pools[0]), *arguments("DM", data_folder, views, 1))
    augmented, clean = (record(host.folder / views) for views in ("host", "clean"))
    assert (augmented["views"], clean["views"]) == ("host", "clean")
    assert clean["rounds"] == augmented["rounds"] == 2
    assert clean["history"][0]["value"] != augmented["history"][0]["value"]


@pytest.mark.parametrize(
    ("options", "more", "said"),
    [
        ((), ("--data_path", "nowhere"), "no cifar-10-batches-py"),
        ((), ("--ipcc", 3), "unrecognized arguments: --ipcc"),
        (("--proxies", "nopool"), (), "there is no pool"),
        (("--weight", -1), (), "weight must be"),
        (("--proxies", "tape:x"), (), "unknown kind of proxies"),
    ],
)
def test_bad_input_is_a_clear_error(
    options: tuple[object, ...], more: tuple[object, ...], said: str, bench: Callable[[str], Any], data_folder: Path
) -> None:
    host = bench("dm")
    given = () if "--data_path" in more else ("--data_path", data_folder)
    ran = host.ddplug(options, *SMALL, *given, "--Iteration", 0, *more, status=None)
    assert said in ran.output
    assert "Traceback" not in ran.output
    assert not list(host.folder.glob("**/res_*"))
    if more:
        assert not list(host.folder.iterdir()), "nothing changed on disk"
