"""Functions that read and check a host's own command line."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddplug.errors import HostError, InputError
from ddplug.utils.files import user_path


def option(arguments: Sequence[str], name: str, default: str) -> str:
    """The value of `--name` on a command line."""
    value = default
    for index, argument in enumerate(arguments):
        if argument == f"--{name}" and index + 1 < len(arguments):
            value = arguments[index + 1]
        elif argument.startswith(f"--{name}="):
            value = argument.split("=", 1)[1]
    return value


def read_options(arguments: Sequence[str], defaults: Mapping[str, Any], short: Collection[str] = ()) -> dict[str, Any]:
    """The options in `defaults` by a command line: text, whole numbers, and flags, whose default is False.

    Those in `short` may also be given by their first letter. `HostError` for text instead of a number.
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
    """Options that name folders, made absolute; `folders` are their defaults."""
    return [
        word
        for name, default in folders.items()
        for word in (f"--{name}", str(user_path(option(arguments, name, default)).resolve()))
    ]


def refuse_short(arguments: Sequence[str], names: Sequence[str]) -> None:
    """Raise `InputError` for an abbreviation of one of `names`, which the host accepts and the adapter cannot read."""
    words = [word[2:].partition("=")[0] for word in arguments if word.startswith("--")]
    short = [word for word in words if word not in names and any(name.startswith(word) for name in names)]
    if short:
        raise InputError(f"--{short[0]} is an abbreviation; write the host's options in full for `ddplug compare`.")


def refuse(arguments: Sequence[str], names: Sequence[str]) -> None:
    """Raise `InputError` for options that `ddplug compare` sets itself."""
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
"""Files in the data folder without which a host would download the data set, by the hosts' name for it."""


def check_data(
    host: str, dataset: str, folder: str, names: Mapping[str, str] = TORCHVISION_FILES, *, fetches: bool = True
) -> None:
    """Raise `HostError` unless `dataset` is in `folder`, where the host would download it or fail."""
    wanted = names.get(dataset)
    if wanted is not None and not (Path(folder) / wanted).exists():
        fetch = ", or let the host fetch it: --download" if fetches else "; the host does not fetch it"
        raise HostError(
            f"{host} would look for {dataset} in '{folder}', where there is no {wanted}. Name the folder that has it "
            f"among the host's own arguments{fetch}. Nothing was changed."
        )
