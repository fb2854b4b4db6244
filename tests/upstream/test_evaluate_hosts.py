"""`ddplug evaluate` against the hosts: their networks, their own judging of a set, their files."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import nn

from ddplug import InputSpace
from ddplug.datasets.host_files import apart
from ddplug.datasets.images import ImageData, load, random_real
from ddplug.datasets.synthetic import SyntheticSet, load_set
from ddplug.lab.evaluate import evaluate
from ddplug.lab.judging import DSAViews
from ddplug.networks.zoo import build, seeded

pytestmark = pytest.mark.upstream

JUDGE = Path(__file__).with_name("judge.py")
STRATEGY = "color_crop_cutout_flip_scale_rotate"


def upstream(hosts_folder: Path, *arguments: object) -> Any:
    repo = hosts_folder / "DatasetCondensation"
    if not (repo / "networks.py").is_file():
        pytest.skip(f"no checkout of DM in {repo}")
    ran = subprocess.run(
        [sys.executable, "-B", str(JUDGE), str(repo), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads(ran.stdout)


@pytest.mark.parametrize(
    ("theirs", "name", "options"),
    [
        ("VGG11", "vgg11", {}),
        ("VGG11BN", "vgg11", {"norm": "batch"}),
        ("AlexNet", "alexnet", {}),
        ("AlexNetBN", "alexnet", {"norm": "batch"}),
        ("ResNet18", "resnet18", {}),
    ],
)
def test_networks_have_the_hosts_sizes(hosts_folder: Path, theirs: str, name: str, options: dict[str, Any]) -> None:
    with seeded(0):
        net = build(name, **options)
    head = net.classifier
    assert isinstance(head, nn.Linear)
    ours = [sum(p.numel() for p in net.parameters()), head.in_features, head.out_features]
    assert upstream(hosts_folder, "networks", theirs)[theirs] == ours


@pytest.fixture(scope="module")
def digits() -> ImageData:
    """Digits as the host's networks take them, 3 x 32 x 32, with 200 to test on."""
    pytest.importorskip("sklearn")
    data = load("digits", size=32)
    space = InputSpace.normalized(data.space.to_json()["mean"] * 3, data.space.to_json()["std"] * 3)
    train, test = (images.expand(-1, 3, -1, -1).contiguous() for images in (data.train_images, data.test_images))
    chosen = slice(None, None, 3)
    return replace(
        data, space=space, train_images=train, test_images=test[chosen], test_labels=data.test_labels[chosen]
    )


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["none", STRATEGY])
def test_accuracies_are_those_of_the_hosts_own_judging(
    hosts_folder: Path, digits: ImageData, tmp_path: Path, strategy: str
) -> None:
    """Ten images per class, 30 epochs, 6 networks each: means within 3 points, where 10 % is chance.

    The host trains one epoch more, at the high rate, and forgets its momentum when the rate falls.
    """
    images, labels = random_real(digits, 10, torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {"runs": 6, "epochs": 30}
    job = {"images": images, "labels": labels, "test_images": digits.test_images, "test_labels": digits.test_labels,
           "model": "ConvNetW32", "strategy": strategy, **settings}  # fmt: skip
    torch.save(job, tmp_path / "job.pt")
    theirs = upstream(hosts_folder, "judge", tmp_path / "job.pt")
    ours = evaluate(
        SyntheticSet(images, labels, digits.space), digits, options={"width": 32},
        augment=None if strategy == "none" else DSAViews(strategy), **settings,
    ).accuracies["convnet"]  # fmt: skip
    print(f"{strategy}: ours {fmean(ours):.2%} {ours}, theirs {fmean(theirs):.2%} {theirs}")
    assert fmean(theirs) > 0.8
    assert abs(fmean(ours) - fmean(theirs)) < 0.03


@pytest.mark.parametrize(("size", "factor"), [(32, 1), (32, 2), (32, 3), (28, 2), (29, 3)])
def test_formed_images_are_taken_apart_as_the_host_does(hosts_folder: Path, size: int, factor: int) -> None:
    source = hosts_folder / "Efficient-Dataset-Condensation" / "test.py"
    if not source.is_file():
        pytest.skip("no checkout of IDC")
    # Its module imports half of the world; the one function is all that is needed.
    tree = ast.parse(source.read_text())
    wanted: list[ast.stmt] = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "decode_zoom"
    ]
    names: dict[str, Any] = {"nn": nn, "F": nn.functional, "torch": torch, "ceil": ceil}
    exec(compile(ast.Module(wanted, []), str(source), "exec"), names)
    images = torch.rand(6, 3, size, size, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6)
    theirs, their_labels = names["decode_zoom"](images, labels, factor)
    ours, our_labels = apart(images, labels, factor, formed=True)
    order = their_labels.argsort(stable=True)  # theirs: all first parts, then all second ones
    torch.testing.assert_close(ours, theirs[order])
    assert torch.equal(our_labels, their_labels[order])


def test_what_dm_leaves_can_be_judged(bench: Callable[[str], Any], data_folder: Path, cifar: ImageData) -> None:
    host = bench("dm")
    host.direct("--model", "ConvNetW32", "--ipc", 10, "--batch_real", 8, "--num_exp", 1, "--num_eval", 1,
                "--epoch_eval_train", 1, "--Iteration", 0, "--data_path", data_folder,
                "--save_path", "out")  # fmt: skip
    (file,) = (host.folder / "out").glob("res_*.pt")
    record = torch.load(file, weights_only=False)
    assert type(record["accs_all_exps"]["ConvNetW32"][0]).__module__ == "numpy"
    result = evaluate(load_set(file), cifar, runs=1, epochs=1, options={"width": 8})
    assert result.settings["space"] == str(cifar.space)


def test_what_idc_leaves_can_be_judged(bench: Callable[[str], Any], data_folder: Path, cifar: ImageData) -> None:
    host = bench("idc")
    host.direct("-d", "cifar10", "--data_dir", data_folder, "--test", "--width", 0.125, "--ipc", 2, "-f", 2, "--niter",
                1, "--inner_loop", 2, "--n_data", 16, "--batch_real", 8, "--workers", 0)  # fmt: skip
    (file,) = host.folder.glob("results/**/data.pt")
    synthetic = load_set(file)
    assert synthetic.images.shape == (80, 3, 32, 32)
    assert evaluate(synthetic, cifar, runs=1, epochs=1, options={"width": 8}).settings["space"] == str(cifar.space)
