"""Training a pool of proxies on real data: one network after the other, interruptible at any moment.

Every finished network is in the pool at once; the one under way leaves a checkpoint after every epoch. The same call
again goes on from there and ends with the same pool.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from ddplug.datasets.images import ImageData
from ddplug.errors import InputError, ProxyError
from ddplug.networks.training import ShiftAndFlip, accuracy, cycles, fit, fit_until_steady
from ddplug.networks.zoo import build, seeded
from ddplug.proxies.mcmi import RATE, MaximumCMI, judged, settings_of
from ddplug.proxies.pool import PoolInfo, Proxy, ProxyPool
from ddplug.proxies.pool_files import HEADER, Header, read_header, read_pool, write_header, write_network
from ddplug.utils.files import HeldError, cache_folder, exclusive_lock, user_path
from ddplug.utils.output import say
from ddplug.utils.progress import Bars

# Pictures of which a mirror image is a picture of the same class.
MIRRORED = ("cifar10", "cifar100", "stl10", "shapes")

USUAL = "convnet"
"""The architecture of proxies unless one is named."""


def pretrain(
    data: ImageData,
    folder: str | Path,
    *,
    architecture: str | None = None,
    count: int = 8,
    epochs: int | Literal["auto"] = "auto",
    lr: float = 0.05,
    batch_size: int = 128,
    seed: int = 0,
    flip: bool | None = None,
    precision: Literal["exact", "bf16"] = "exact",
    options: Mapping[str, Any] | None = None,
    mcmi: float | None = None,
    mcmi_epochs: int | None = None,
    start: ProxyPool | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> ProxyPool:
    """Train `count` networks on `data`'s training images into the pool at `folder`, and return the pool.

    SGD with momentum 0.9, a cosine from `lr`, batches of `batch_size`, random shifts by an eighth of the side and, for
    natural images, mirroring. Network i has seed `seed + i`. Each one's record holds seed, epochs and test accuracy.

    Args:
        data: real data, whose name, classes, shape and input space the pool records.
        folder: of the pool. If it holds an unfinished pool of the same recipe, that one is finished; a larger `count`
            than it was made with adds networks.
        architecture: a name that `ddplug.networks.build` knows; a ConvNet-3 unless named.
        count: networks in the pool.
        epochs, lr, batch_size, seed: of the training. With epochs="auto" it ends when accuracy and mean probability of
            the true class on the test images stop rising; see `ddplug.networks.training.fit_until_steady`.
        flip: mirror images at random; None decides by the data set.
        precision: "bf16" trains with bf16 layers, which some devices are much faster at; weights are fp32 in any case.
        options: for the architecture, e.g. {"norm": "batch", "width": 64}.
        mcmi: fine-tune every network by maximum CMI with this weight, in [0, 1), at a tenth of `lr`; see
            `ddplug.proxies.mcmi`. Its record also holds accuracy and CMI on the test images before and after. None for
            no fine-tuning, 0 for one by cross-entropy alone.
        mcmi_epochs: of the fine-tuning; a quarter of `epochs` unless given.
        start: fine-tune copies of this pool's networks, in the place of training new ones by the settings above.
        device: to train on.
        progress: show a progress bar.

    Raises:
        ProxyError: `folder` holds a pool of another recipe or data set, or something else.
        InputError: another process is training this pool.
        ProxyError: an architecture that does not exist or does not fit the images.
    """
    if count < 1 or (epochs != "auto" and epochs < 1):
        raise InputError(f"a pool needs at least 1 network and 1 epoch, got count={count}, epochs={epochs}.")
    folder, architecture = user_path(folder), architecture or USUAL
    flip = data.name in MIRRORED if flip is None else flip
    fixed = {"num_classes": data.num_classes, "channels": data.shape[0], "size": list(data.shape[1:])}
    resolved = {**fixed, **(options or {})}
    recipe = {
        "architecture": architecture, "options": resolved, "epochs": epochs, "lr": lr, "batch_size": batch_size,
        "seed": seed, "flip": flip, "precision": precision,
        **settings_of(
            mcmi, mcmi_epochs, _longest(data, epochs, batch_size), start.digest() if start is not None else None
        ),
    }  # fmt: skip
    if start is not None:
        start.check_data(data.name, data.fingerprint())
        count = len(start)
    with seeded(seed):
        build(architecture, **resolved)  # an impossible network is refused before anything is on disk
    wanted = Header(pool_info(data), count, [], recipe)
    there = _there(folder, wanted)
    if there is None or not there.complete or wanted.wanted > there.wanted:  # one that is only read needs no lock
        with exclusive_lock(folder / ".lock", folder):
            _train(data, folder, _open(folder, wanted), device, progress, start)
    return ProxyPool(*read_pool(folder)).to(device)


def _train(
    data: ImageData,
    folder: Path,
    header: Header,
    device: torch.device | str,
    progress: bool,
    start: ProxyPool | None,
) -> None:
    """Train the networks that the pool lacks, by the recipe in its header."""
    recipe = header.recipe
    architecture, resolved, epochs, seed = (recipe[key] for key in ("architecture", "options", "epochs", "seed"))
    augment = ShiftAndFlip(max(1, data.shape[1] // 8), recipe["flip"])
    images, labels = data.train_images.to(device), data.train_labels.to(device)
    tuning = recipe.get("mcmi")
    trained = 0 if start is not None else _longest(data, epochs, recipe["batch_size"])
    each = trained + (tuning["epochs"] if tuning else 0)
    what, total = f"proxies, {header.wanted} x {architecture} on {data.name}, epochs", header.wanted * each
    with Bars(on=progress) as bars:

        def epoch_done(before: int, done: int, loss: float) -> None:
            bars(what, before + done, total, f"loss {loss:.3f}")

        for index in range(len(header.networks), header.wanted):
            how: dict[str, Any] = {
                "batch_size": recipe["batch_size"], "augment": augment, "precision": recipe["precision"],
                "seed": seed + index,
            }  # fmt: skip
            checkpoint = folder / f".proxy_{index:03d}.checkpoint"
            if start is not None:
                proxy = start.proxies[index]
                network, name, record = copy.deepcopy(proxy.network), proxy.name, dict(proxy.record)
                network.load_state_dict(proxy.weights())  # of a streamed one, the module has another's
                network = network.to(device).requires_grad_(True)
            else:
                with seeded(seed + index):
                    network = build(architecture, **resolved).to(device)
                how |= {"checkpoint": checkpoint, "lr": recipe["lr"], "on_epoch": partial(epoch_done, index * each)}
                if epochs == "auto":
                    test = data.test_images, data.test_labels
                    passed = fit_until_steady(network, images, labels, test, **how)
                else:
                    passed = epochs
                    fit(network, images, labels, epochs=epochs, schedule="cosine", keep_checkpoint=bool(tuning), **how)
                name, record = f"{architecture}-{index}", {"seed": seed + index, "epochs": passed}
            if tuning:
                record["before"] = judged(network, data)
                how |= {
                    "checkpoint": folder / f".proxy_{index:03d}.tuning", "lr": recipe["lr"] * RATE,
                    "on_epoch": partial(epoch_done, index * each + trained),
                }  # fmt: skip
                loss = MaximumCMI(tuning["weight"])
                fit(network, images, labels, epochs=tuning["epochs"], schedule="cosine", loss_of=loss, **how)
                checkpoint.unlink(missing_ok=True)
                record |= {"mcmi": tuning["weight"], "mcmi_epochs": tuning["epochs"], **judged(network, data)}
            else:
                record["test_accuracy"] = accuracy(network, data.test_images, data.test_labels)
            head = "classifier" if hasattr(network, "embed") else None
            header.networks.append(write_network(folder, index, Proxy(network, head, name, record)))
            write_header(folder, header)
            bars(what, (index + 1) * each, total, f"test accuracy {record['test_accuracy']:.1%}")


def _longest(data: ImageData, epochs: int | Literal["auto"], batch_size: int) -> int:
    """Return the epochs that a training takes at most."""
    return sum(cycles(len(data.train_images), batch_size)) if epochs == "auto" else epochs


def pool_info(data: ImageData) -> PoolInfo:
    """Return the information that a pool trained on `data` records of it."""
    return PoolInfo(data.name, data.class_names, data.shape, data.space, data.fingerprint())


def default_pool(data: ImageData, *, cache: Path | None = None, device: torch.device | str | None = None) -> ProxyPool:
    """A small pool for `data` out of the cache, trained once if it is not there; says where it is.

    Where several processes want it at once, one trains it and the others wait.

    The cache is `cache_folder()` unless one is given. The proxies are three ConvNet-3 on a GPU, and elsewhere two of
    half width, five to fifteen minutes each on CIFAR-10 and one core. They are trained until the mean probability of
    the true class stops rising. On CIFAR-10 logits of a ConvNet-3 gained as much as a ResNet-18's; see docs/results.
    """
    cache = cache_folder() if cache is None else cache
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    recipe: dict[str, Any] = {"count": 3}
    if torch.device(device).type != "cuda":
        recipe = {"count": 2, "options": {"width": 64}}
    size = "".join(f"-{name}{value}" for name, value in recipe.get("options", {}).items())
    folder = cache / "pools" / f"{data.name}-{data.fingerprint()}-{USUAL}{size}"
    header = read_header(folder) if (folder / HEADER).is_file() else None
    if header is not None and header.info.space is not None:  # a fingerprint is of intensities, in any space
        data = data.to_space(header.info.space)
    there = header is not None and header.complete
    say(f"ddplug: no proxies given; {'taking' if there else 'training'} a small pool of {data.name} in {folder}")
    found = -1
    while True:
        try:
            return pretrain(data, folder, architecture=USUAL, epochs="auto", device=device, **recipe)
        except HeldError:  # as under torchrun, or in an array of jobs
            done = len(read_header(folder).networks) if (folder / HEADER).is_file() else 0
            if done > found:
                say(f"ddplug: another process is training it: {done} of {recipe['count']} networks")
            found = done
            time.sleep(1)


def _open(folder: Path, wanted: Header) -> Header:
    """The header to go on from: the one in `folder` if it is of the same recipe, else a new one, written."""
    found = _there(folder, wanted)
    if found is None:
        write_header(folder, wanted)
        return wanted
    if wanted.wanted != found.wanted and (wanted.wanted > found.wanted or not found.complete):
        found.wanted = max(wanted.wanted, len(found.networks))
        write_header(folder, found)
    return found


def _there(folder: Path, wanted: Header) -> Header | None:
    """The header of the pool in `folder`, None if there is none; `ProxyError` for one of another recipe, or no pool."""
    if not (folder / HEADER).is_file():
        if folder.exists() and (not folder.is_dir() or any(not held.name.startswith(".") for held in folder.iterdir())):
            raise ProxyError(f"'{folder}' exists and is not a pool of proxies; choose another folder.")
        return None
    found = read_header(folder)
    if found.info != wanted.info or found.recipe != wanted.recipe:
        differing = {
            key: (found.recipe.get(key), wanted.recipe.get(key))
            for key in {*found.recipe, *wanted.recipe}
            if found.recipe.get(key) != wanted.recipe.get(key)
        }
        what = f"other settings (there, asked for): {differing}" if differing else f"other data: {found.info.dataset}"
        raise ProxyError(f"'{folder}' holds a pool made with {what}. Choose another folder, or the settings it has.")
    return found
