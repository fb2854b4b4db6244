"""A host's own command line, as `preflight` and a comparison read it."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddplug.errors import HostError, InputError
from ddplug.utils.files import user_path


def option(arguments: Sequence[str], name: str, default: str) -> str:
    """The value of `--name` on a command line, for `preflight`."""
    value = default
    for index, argument in enumerate(arguments):
        if argument == f"--{name}" and index + 1 < len(arguments):
            value = arguments[index + 1]
        elif argument.startswith(f"--{name}="):
            value = argument.split("=", 1)[1]
    return value


def read_options(arguments: Sequence[str], defaults: Mapping[str, Any], short: Collection[str] = ()) -> dict[str, Any]:
    """The options in `defaults` as a command line gives them: text, whole numbers, and flags, whose default is False.

    Those in `short` may also be given by their first letter. `HostError` for a number that is none.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, default in defaults.items():
        kind: dict[str, Any] = {"action": "store_true"} if default is False else {"type": type(default)}
        parser.add_argument(f"--{name}", *([f"-{name[0]}"] if name in short else []), default=default, **kind)
    try:
        return vars(parser.parse_known_args(list(arguments))[0])
    except argparse.ArgumentError as error:
        raise HostError(f"among the host's own arguments, {error}. Nothing was changed.") from error


def absolute(arguments: Sequence[str], folders: Mapping[str, str]) -> list[str]:
    """Options that name folders, with their defaults, as they mean the same wherever the host is started."""
    return [
        word
        for name, default in folders.items()
        for word in (f"--{name}", str(user_path(option(arguments, name, default)).resolve()))
    ]


def refuse_short(arguments: Sequence[str], names: Sequence[str]) -> None:
    """`InputError` for an abbreviation of one of `names`, which the host would understand and we would not see."""
    words = [word[2:].partition("=")[0] for word in arguments if word.startswith("--")]
    short = [word for word in words if word not in names and any(name.startswith(word) for name in names)]
    if short:
        raise InputError(f"--{short[0]} is an abbreviation; write the host's options in full for `ddplug compare`.")


def refuse(arguments: Sequence[str], names: Sequence[str]) -> None:
    """`InputError` for options that `ddplug compare` sets itself."""
    flags = [f"--{name}" for name in names]
    taken = [flag for flag in flags for word in arguments if word == flag or word.startswith(f"{flag}=")]
    if taken:
        raise InputError(
            f"{', '.join(taken)} is set by `ddplug compare`, which runs the host once per seed and judges its sets "
            "itself; leave it out."
        )


TORCHVISION_FILES = {
    "CIFAR10": "cifar-10-batches-py",
    "CIFAR100": "cifar-100-python",
    "MNIST": "MNIST/raw",
    "FashionMNIST": "FashionMNIST/raw",
    "SVHN": "train_32x32.mat",
    "TinyImageNet": "tinyimagenet.pt",
}
"""Files that must be in the data folder for a data set not to be fetched, by the hosts' name for it."""


def check_data(host: str, dataset: str, folder: str, names: Mapping[str, str] = TORCHVISION_FILES) -> None:
    """`HostError` unless `dataset` is in `folder`: the hosts would make the folder and go to the network for it."""
    wanted = names.get(dataset)
    if wanted is not None and not (Path(folder) / wanted).exists():
        raise HostError(
            f"{host} would look for {dataset} in '{folder}', where there is no {wanted}. Name the folder that has it "
            "among the host's own arguments, or let the host fetch it: `ddplug run --download`. Nothing was changed."
        )
