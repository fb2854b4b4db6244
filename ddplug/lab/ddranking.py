"""Sets in the form that other evaluators take: DD-Ranking's tensors, and a config file for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddplug.datasets.images import ImageData
from ddplug.datasets.spaces import InputSpace
from ddplug.datasets.synthetic import SyntheticSet
from ddplug.errors import InputError
from ddplug.lab.judging import STANDARD_LR, STANDARD_VIEWS, resolve
from ddplug.lab.meaning import is_whitened, with_space
from ddplug.networks.training import Augment
from ddplug.utils.files import user_path, write_json
from ddplug.utils.reading import write_tensors

_DATASETS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}
_SPACE = InputSpace.normalized((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
"""The normalisation of DD-Ranking's test images, of CIFAR-100's too."""
_NETWORKS = {"convnet": "ConvNet-3", "resnet18": "ResNet-18", "vgg11": "VGG-11", "alexnet": "AlexNet"}
_DSA = {"flip": 0.5, "scale": 1.2, "rotate": 15.0, "crop": 0.125, "cutout": 0.5,
        "brightness": 1.0, "saturation": 2.0, "contrast": 0.5, "siamese": False, "latestseed": -1}  # fmt: skip


def export_ddranking(
    synthetic: SyntheticSet,
    data: ImageData,
    folder: str | Path,
    *,
    architecture: str = "convnet",
    runs: int = 5,
    epochs: int = 1000,
    lr: float | None = None,
    batch_size: int = 256,
    augment: Augment | None = STANDARD_VIEWS,
    settings: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write images.pt, labels.pt, lr.pt and config.json for DD-Ranking's label-robust scores; returns their paths.

    The images, float32 (n, c, h, w), are sorted by class and in the space of its test images: whitened ones as they
    are, all others normalised with CIFAR-10's constants, which it uses for CIFAR-100 too. Soft labels are stored as
    logarithms, because it takes a softmax of them. `settings` go into config.json under "ddplug".

    Raises what `check_export` raises, and `InputError` if it is not known what the images mean.
    """
    folder = user_path(folder)
    check_export(synthetic, data, folder, architecture=architecture, augment=augment)
    name, network = _DATASETS[data.name], _NETWORKS[resolve(architecture)]
    per_class = _per_class(synthetic.classes, data.num_classes)
    space = with_space(synthetic, None, data).space
    assert space is not None  # with_space sees to it
    whitened = is_whitened(space)
    order = synthetic.classes.argsort(stable=True)
    images = synthetic.images if whitened else space.convert(synthetic.images, _SPACE)
    labels, soft = synthetic.labels[order], synthetic.labels.ndim == 2
    tiny = torch.finfo(torch.float32).tiny
    rate = lr if lr is not None else synthetic.lr if synthetic.lr is not None else STANDARD_LR
    config: dict[str, Any] = {
        "dataset": name,
        "real_data_path": "./dataset",
        "ipc": per_class,
        "im_size": list(data.shape[1:]),
        "use_zca": whitened,
        "model_name": network,
        "data_aug_func": "dsa" if augment is not None else None,
        "aug_params": dict(_DSA),
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "lr_scheduler": "step",
        "step_size": epochs // 2 + 1,
        "num_eval": runs,
        "num_epochs": epochs,
        "syn_batch_size": batch_size,
        "real_batch_size": 256,
        "default_lr": rate,
        "num_workers": 4,
        "device": "cuda",
        "dist": False,
        "use_torchvision": False,
        "stu_use_torchvision": False,
        "tea_use_torchvision": False,
        "custom_train_trans": None,
        "custom_val_trans": None,
        "random_data_format": "tensor",
        "random_data_path": "./random_data",
        "eval_full_data": True,
        "save_path": f"./results/{name}-{network}-ipc{per_class}.csv",
        "ddplug": {"images": "images.pt", "labels": "labels.pt", "lr": "lr.pt", **(settings or {})},
    }
    if soft:
        config |= {
            "use_soft_label": True,
            "soft_label_mode": "S",
            "soft_label_criterion": "sce",
            "loss_fn_kwargs": {"temperature": 1.0, "scale_loss": False},
            "use_aug_for_hard": augment is not None,
            "teacher_dir": "./teacher_models",
            "teacher_model_names": [network],
        }
    tensors = {
        "images.pt": images[order].detach().float().cpu().clone(),
        "labels.pt": (labels.clamp_min(tiny).log() if soft else labels).detach().cpu().clone(),
        "lr.pt": torch.tensor(rate),
    }
    for file, tensor in tensors.items():
        write_tensors(tensor, folder / file)
    write_json(config, folder / "config.json", sealed=False)
    return [folder / file for file in (*tensors, "config.json")]


def check_export(
    synthetic: SyntheticSet,
    data: ImageData,
    folder: str | Path,
    *,
    architecture: str = "convnet",
    augment: Augment | None = STANDARD_VIEWS,
) -> None:
    """Raise for what `export_ddranking` would refuse, which is better known before networks are trained.

    `InputError` for other data than CIFAR-10 and CIFAR-100, networks and augmentations that DD-Ranking does not have,
    classes of unequal size, and a folder that is none.
    """
    if data.name not in _DATASETS or resolve(architecture) not in _NETWORKS:
        raise InputError(
            f"DD-Ranking's export is for {', '.join(_DATASETS)} and the networks {', '.join(_NETWORKS)}, got "
            f"{data.name} and {architecture}; leave --export out."
        )
    if augment not in (None, STANDARD_VIEWS):
        raise InputError(f"DD-Ranking has DSA with the standard strategy, or none; {augment} cannot be exported.")
    _per_class(synthetic.classes, data.num_classes)
    if user_path(folder).exists() and not user_path(folder).is_dir():
        raise InputError(f"'{folder}' is a file, expected a folder to export to; name another with --export.")


def _per_class(classes: Tensor, num_classes: int) -> int:
    """Images per class, which must be as many in each."""
    counts = torch.bincount(classes, minlength=num_classes).tolist()
    if len(set(counts)) != 1:
        raise InputError(
            f"DD-Ranking compares with as many random images of every class; this set has {min(counts)} to "
            f"{max(counts)} per class. Leave --export out."
        )
    return int(counts[0])
