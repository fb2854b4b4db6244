"""IDC: the unedited upstream script on real CIFAR-10, on the CPU, at small sizes.

The host cannot be told to make fewer than a thousand image steps; it saves its images after a tenth of them, and the
world in which it runs ends it soon after (see `drive.py`).
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from torch.nn import functional as F

from ddplug import InputSpace, ProxyPool

pytestmark = [pytest.mark.upstream, pytest.mark.slow]

IPC, FACTOR, CLASSES = 2, 2, 10
SMALL = ("-d", "cifar10", "--width", 0.125, "--ipc", IPC, "--factor", FACTOR, "--niter", 1, "--inner_loop", 2,
         "--n_data", 16, "--batch_real", 8, "--workers", 0, "--test")  # fmt: skip
SAVED, LONG = 100, 200
"""Image steps after which the host saves its images for the first and for the second time."""

UNIT = InputSpace.unit(3)


def arguments(data: Path) -> tuple[object, ...]:
    return (*SMALL, "--data_dir", data)


def moved(folder: Path, name: str) -> Path:
    """The host's results, out of the way of the next run: with --test, all runs share one folder."""
    return (folder / "results" / "test").rename(folder / name)


def result(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = torch.load(folder / "data.pt")
    return images, labels


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "cmi.json").read_text())  # type: ignore[no-any-return]


def formed(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The quarters of every image, each enlarged to an image, which is what the host trains on."""
    parts = rearrange(images, "n c (i h) (j w) -> (i j n) c h w", i=FACTOR, j=FACTOR)
    return F.interpolate(parts, scale_factor=FACTOR, mode="bilinear"), labels.repeat(FACTOR**2)


def test_weight_zero_gives_the_images_of_upstream(bench: Callable[[str], Any], data_folder: Path) -> None:
    """(a)"""
    host = bench("idc")
    host.direct(*arguments(data_folder), stop=SAVED + 10)
    theirs = moved(host.folder, "direct")
    host.ddplug(("--weight", 0), *arguments(data_folder), stop=SAVED + 10)
    ours = moved(host.folder, "zero")
    for first, second in zip(result(theirs), result(ours), strict=True):
        assert torch.equal(first, second)
    assert sorted(path.name for path in theirs.iterdir()) == sorted(path.name for path in ours.iterdir())
    tags = [json.loads((folder / "args.txt").read_text())["tag"] for folder in (theirs, ours)]
    assert tags[0] == tags[1], "weight 0 leaves the folder's name as it is"


def test_the_layer_fires_at_every_step_and_cmi_falls(
    bench: Callable[[str], Any], data_folder: Path, pools: tuple[Path, Any], held_out_cmi: Callable[..., float]
) -> None:
    """(b): and with a larger share it falls further."""
    host, weights = bench("idc"), (0, 0.1, 1.0)
    cmi = []
    for weight in weights:
        proxies = ("--proxies", pools[0]) if weight else ()
        host.ddplug(("--weight", weight, *proxies), *arguments(data_folder), stop=LONG)
        run = moved(host.folder, str(weight))
        cmi.append(held_out_cmi(*formed(*result(run)), UNIT))
        if not weight:
            continue
        wrote = record(run)
        assert wrote["rounds"] == LONG + 1, "each step, and the one at which the run was ended"
        assert wrote["skipped"] == 0
        assert {round_["images"] for round_ in wrote["history"]} == {IPC * FACTOR**2}, "one class's views per round"
        assert wrote["lambda"] > 0
        assert f"_cmi-relative-{weight}_" in json.loads((run / "args.txt").read_text())["tag"]
    print(f"IDC: held-out CMI {', '.join(f'{value:.5f}' for value in cmi)} at weights {weights} after {LONG} steps")
    assert cmi[2] < cmi[1] < cmi[0]


def test_patch_check_run_reverse(
    bench: Callable[[str], Any], data_folder: Path, pools: tuple[Path, Any], tree: Callable[[Path], str]
) -> None:
    """(c): and the patched script does what `ddplug run` does, at weight 0 and at another."""
    host = bench("idc")
    repo = host.copy()
    before = tree(repo)
    assert host.drive("ddplug", "patch", "idc", repo, "--check").output.count("the patch fits") == 3
    assert tree(repo) == before
    host.drive("ddplug", "patch", "idc", repo)
    assert tree(repo) != before
    assert host.drive("ddplug", "patch", "idc", repo, "--check").output.count("patched") == 3
    runs = {}
    for name, ours, source in (("zero", (), repo), ("direct", (), host.repo),
                               ("patched", ("--cmi_weight", 0.1, "--cmi_proxies", pools[0]), repo)):  # fmt: skip
        host.direct(*arguments(data_folder), *ours, repo=source, stop=SAVED + 10)
        runs[name] = moved(host.folder, name)
    host.ddplug(("--weight", 0.1, "--proxies", pools[0]), *arguments(data_folder), stop=SAVED + 10)
    runs["run"] = moved(host.folder, "run")
    images = {name: result(folder)[0] for name, folder in runs.items()}
    assert torch.equal(images["zero"], images["direct"])
    assert torch.equal(images["patched"], images["run"])
    assert not torch.equal(images["patched"], images["zero"])
    assert record(runs["patched"])["history"] == record(runs["run"])["history"]
    host.drive("ddplug", "patch", "idc", repo, "--reverse")
    assert tree(repo) == before


def test_git_applies_the_patch_too(bench: Callable[[str], Any]) -> None:
    host = bench("idc")
    repo = host.copy()
    patch = host.folder / "ours.patch"
    patch.write_bytes(host.spec.patch.raw)
    subprocess.run(["git", "apply", "--unidiff-zero", str(patch)], cwd=repo, check=True, capture_output=True)
    assert set(host.spec.check(repo).values()) == {"patched"}


def test_the_gradient_is_the_hosts_plus_lambda_times_cmis(
    bench: Callable[[str], Any], data_folder: Path, pools: tuple[Path, Any], tmp_path: Path
) -> None:
    """(d): in the first step of each class, where both runs are at the same images of that class and the same network.

    One proxy, so that both sides draw the same; CMI of the spy is computed on the views as they are, normalised.
    """
    pool = ProxyPool.load(pools[0])
    one = tmp_path / "one"
    ProxyPool(pool.proxies[:1], pool.info).save(one)
    host, lam = bench("idc"), 500.0
    seen = {}
    exact = ("--weight", lam, "--weighting", "absolute", "--precision", "exact", "--proxies", one)
    for name, options in (("off", ("--weight", 0)), ("on", exact)):
        host.ddplug(options, *arguments(data_folder), spy=str(tmp_path / f"{name}.pt"), pool=str(one),
                    spy_steps=CLASSES, stop=CLASSES + 1)  # fmt: skip
        moved(host.folder, name)
        seen[name] = torch.load(tmp_path / f"{name}.pt")["steps"]
    errors, shares = [], []
    for label, (off, on) in enumerate(zip(seen["off"], seen["on"], strict=True)):
        rows = slice(label * IPC, (label + 1) * IPC)
        others = torch.ones(CLASSES * IPC, dtype=torch.bool)
        others[rows] = False
        assert set(on["labels"].tolist()) == {label}
        assert not on["grad"][others].any(), "no other class's rows get a gradient"
        assert not on["cmi"][others].any()
        assert torch.equal(off["images"][rows], on["images"][rows])
        wanted = off["grad"] + lam * on["cmi"]
        errors.append(float((on["grad"] - wanted).norm() / wanted.norm()))
        shares.append(float(lam * on["cmi"].norm() / off["grad"].norm()))
    print(f"IDC: largest relative error {max(errors):.2e}, CMI's part at least {min(shares):.2f} of the host's")
    assert len(errors) == CLASSES
    assert min(shares) > 0.01, "CMI's part must be large enough to be missed"
    assert max(errors) < 1e-5


def test_attach_on_the_imported_module_is_the_same_run(
    bench: Callable[[str], Any], data_folder: Path, pools: tuple[Path, Any]
) -> None:
    host = bench("idc")
    host.ddplug(("--weight", 0.1, "--proxies", pools[0]), *arguments(data_folder), stop=SAVED + 10)
    run = moved(host.folder, "run")
    options = json.dumps({"weight": 0.1, "proxies": str(pools[0])})
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("attach_idc.py")), host.world(stop=SAVED + 10), str(host.repo),
         options, *map(str, arguments(data_folder))],
        cwd=host.folder, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-4000:]
    attached = moved(host.folder, "attached")
    assert torch.equal(result(run)[0], result(attached)[0])
    assert record(run)["history"] == record(attached)["history"]


def test_clean_views_are_taken_as_zero_to_one(
    bench: Callable[[str], Any], data_folder: Path, pools: tuple[Path, Any]
) -> None:
    """The images before the augmentation are not normalised yet; CMI of them is that of the normalised ones."""
    from ddplug.lab.measure import measure

    host, pool = bench("idc"), ProxyPool.load(pools[0])
    one = host.folder / "one"
    ProxyPool(pool.proxies[:1], pool.info).save(one)
    host.ddplug(("--views", "clean", "--proxies", one), *arguments(data_folder), spy=str(host.folder / "spy.pt"),
                pool=str(one), spy_steps=1, stop=2)  # fmt: skip
    images = torch.load(host.folder / "spy.pt")["steps"][0]["images"][:IPC]
    views, labels = formed(images, torch.zeros(IPC, dtype=torch.long))
    wrote = record(moved(host.folder, "clean"))
    assert wrote["views"] == "clean"
    wanted = measure(ProxyPool.load(one), views, labels, input_space=UNIT, representation="logit").cmi
    assert wrote["history"][0]["value"] == pytest.approx(wanted, rel=1e-4)


PRETRAIN = ("-d", "cifar10", "--width", 0.125, "--workers", 0, "--pt_from", 1, "--pt_num", 2, "--batch_real", 8,
            "--batch_size", 64)  # fmt: skip


def test_the_hosts_own_pretrained_networks_are_its_proxies(
    bench: Callable[[str], Any], data_folder: Path, cifar: Any
) -> None:
    """pretrain.py, unedited, makes them; they are found by themselves, or by --proxies idc:PATH."""
    host = bench("idc")
    for seed in (1, 2):
        host.drive("direct", host.repo / "pretrain.py", *PRETRAIN, "--seed", seed, "--data_dir", data_folder)
    folder = host.folder / "pretrained" / "cifar10"
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 2
    for name, options in (("found", ()), ("named", ("--proxies", f"idc:{folder}"))):
        host.ddplug(options, *arguments(data_folder), stop=10)
        wrote = record(moved(host.folder, name))
        assert wrote["proxies"] == [f"{experiment}/checkpoint2" for experiment in names]
        assert wrote["rounds"] == 10 + 1


def test_the_loop_over_a_part_of_the_classes_too(bench: Callable[[str], Any], data_folder: Path) -> None:
    """condense_mp.py, which knows CIFAR-100 and ImageNet only: here, CIFAR-10's images under a hundred labels."""
    host = bench("idc")
    repo, data = host.copy(), host.folder / "cifar-100-python"
    data.mkdir()
    pixels = pickle.loads((data_folder / "cifar-10-batches-py" / "data_batch_1").read_bytes())["data"]
    for name, count in (("train", 6600), ("test", 300)):
        held = {"data": np.resize(pixels, (count, 3072)), "fine_labels": [n % 100 for n in range(count)]}
        (data / name).write_bytes(pickle.dumps(held))
    (data / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {n}" for n in range(100)]}))
    common = ("-d", "cifar100", "--data_dir", host.folder, "--width", 0.125, "--workers", 0)
    host.drive("direct", repo / "pretrain.py", *common, "--pt_from", 1, "--pt_num", 1)
    host.drive("ddplug", "patch", "idc", repo)
    part = (*common, "--ipc", 1, "--factor", FACTOR, "--niter", 1, "--inner_loop", 2, "--n_data", 16, "--test",
            "--nclass_sub", 2, "--phase", 3)  # fmt: skip
    runs = {}
    for name, source, ours in (("direct", host.repo, ()), ("zero", repo, ()), ("on", repo, ("--cmi_weight", 0.1))):
        host.drive("direct", source / "condense_mp.py", *part, *ours, stop=25, clock=str(source))
        runs[name] = moved(host.folder, name)
    images, labels = result(runs["direct"])
    assert labels.tolist() == [6, 7]
    assert torch.equal(images, result(runs["zero"])[0])
    assert not torch.equal(images, result(runs["on"])[0])
    wrote = record(runs["on"])
    assert wrote["rounds"] == 25 + 1
    assert wrote["dataset"] == "cifar100"
    assert {round_["images"] for round_ in wrote["history"]} == {FACTOR**2}


@pytest.mark.parametrize(("kind", "depth", "dataset", "norm"), [
    ("convnet", 3, "cifar10", "instance"), ("convnet", 3, "mnist", "batch"), ("convnet", 4, "cifar100", "none"),
    ("resnet", 18, "cifar10", "instance"), ("resnet", 18, "svhn", "batch"),
])  # fmt: skip
def test_networks_read_are_the_hosts_own(
    kind: str, depth: int, dataset: str, norm: str, bench: Callable[[str], Any], tmp_path: Path
) -> None:
    from ddplug.hosting.idc_checkpoints import network, weights

    host = bench("idc")
    script = (
        "import sys, torch; sys.path.insert(0, sys.argv[1])\n"
        "import models.convnet as C, models.resnet as R\n"
        "kind, depth, data, norm = sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5]\n"
        "grey = data == 'mnist'; size = 28 if grey else 32\n"
        "net = (C.ConvNet(10, net_norm=norm, net_depth=depth, net_width=16, channel=1 if grey else 3,\n"
        "                 im_size=(size, size)) if kind == 'convnet' else\n"
        "       R.ResNet(data, depth, 10, norm_type=norm, size=32, nch=3))\n"
        "images = torch.randn(4, 1 if grey else 3, size, size)\n"
        "net(images); net.eval()\n"
        "torch.save(net.state_dict(), 'checkpoint1.pth.tar')\n"
        "torch.save((images, net(images).detach()), 'seen.pt')\n"
    )
    subprocess.run(
        [sys.executable, "-B", "-c", script, str(host.repo), kind, str(depth), dataset, norm], cwd=tmp_path, check=True
    )
    images, logits = torch.load(tmp_path / "seen.pt")
    made = network(weights(tmp_path / "checkpoint1.pth.tar"), "checkpoint1").eval()
    torch.testing.assert_close(made(images).detach(), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "more", "said"),
    [
        ((), ("--data_dir", "nowhere"), "no cifar-10-batches-py"),
        ((), ("--inner_loop", 3), "divides by zero"),
        ((), ("--ipc", 0), "images per class"),
        ((), ("--ipcc", 3), "unrecognized arguments: --ipcc"),
        (("--proxies", "idc:nowhere"), (), "no networks of IDC"),
    ],
)
def test_bad_input_is_a_clear_error(
    options: tuple[object, ...], more: tuple[object, ...], said: str, bench: Callable[[str], Any], data_folder: Path
) -> None:
    host = bench("idc")
    ran = host.ddplug(options, *arguments(data_folder), *more, status=None)
    assert said in ran.output
    assert "Traceback" not in ran.output
    assert not list(host.folder.glob("**/data.pt"))
    if more:
        assert not list(host.folder.iterdir()), "nothing changed on disk"
