"""A pool's model card: `README.md` beside `pool.json`, which says to people what the header says to programs.

Nothing reads it. It has no checksum, as people are to add to it; who deletes its marker keeps what they wrote.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from ddplug.utils.files import write_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from ddplug.proxies.pool_header import Header

CARD = "README.md"
MARKER = "<!-- Written by ddplug from pool.json. Delete this line, and the file stays as you leave it. -->"

_CARD = """\
---
library_name: ddplug
tags: [image-classification, dataset-distillation]
---
{marker}

# {count} of {dataset}

Frozen classifiers for ddplug, whose weights are in safetensors files; `pool.json` holds their checksums, and is what
ddplug reads. The method is that of [arXiv 2412.09945](https://arxiv.org/abs/2412.09945).

{table}

## Trained on

{data}

## Recipe

{recipe}

## Use

{use}

They serve to estimate terms such as CMI of synthetic images of the same data, in the input space above. As classifiers
they are nothing special, and of images of other kinds they say nothing.

## Licence

Not said: the weights are their makers' to license, within the terms of the data that they were trained on. Name a
licence here before you pass them on. ddplug's own licence, MIT, is that of its code only.
"""


def write_card(folder: Path, header: Header) -> None:
    """Write the model card of a complete pool into its folder, unless somebody wrote a README of their own there.

    Raises `FileError` if it cannot be written.
    """
    path = folder / CARD
    if path.exists() and MARKER not in path.read_text(encoding="utf-8", errors="replace"):
        return
    write_bytes(card(header).encode(), path)


def card(header: Header) -> str:
    """The text of the model card of a pool, in Markdown, with the metadata that model hubs read on top."""
    info = header.info
    dataset = _plain(info.dataset) or "data that nothing is known of"
    return _CARD.format(
        marker=MARKER,
        count="One proxy" if len(header.networks) == 1 else f"{len(header.networks)} proxies",
        dataset=dataset,
        table=_table(header),
        data="\n".join(_data(header)),
        recipe="\n".join(_recipe(header)),
        use=_use(dataset),
    )


def _use(dataset: str) -> str:
    return (
        "```python\nimport ddplug\n\n"
        f"pool = ddplug.ProxyPool.load(FOLDER, dataset={dataset!r})\n"
        "regularizer = ddplug.Regularizer(pool, weight=1)\n```"
    )


def _table(header: Header) -> str:
    rows = ["| network | architecture | test accuracy | epochs | seed |", "|---|---|---|---|---|"]
    for network in header.networks:
        record = network["record"]
        reached = record.get("test_accuracy")
        shown = f"{reached:.2%}" if isinstance(reached, int | float) else "not known"
        cells = (network["name"], network["architecture"], shown, record.get("epochs", "-"), record.get("seed", "-"))
        rows.append("| " + " | ".join(_plain(cell) for cell in cells) + " |")
    return "\n".join(rows)


def _data(header: Header) -> list[str]:
    info = header.info
    said = [("data set", _plain(info.dataset) if info.dataset else "not known")]
    if info.class_names is not None:
        names = ", ".join(_plain(name) for name in info.class_names[:20])
        said.append(("classes", f"{len(info.class_names)}: {names}{', ...' if len(info.class_names) > 20 else ''}"))
    if info.shape is not None:
        said.append(("images", "{} x {} x {} (channels, height, width)".format(*info.shape)))
    said.append(("input space", _plain(info.space) if info.space is not None else "not known"))
    if info.fingerprint is not None:
        said.append(("fingerprint of the training images", _plain(info.fingerprint)))
    return [f"- {what}: {value}" for what, value in said]


def _recipe(header: Header) -> list[str]:
    recipe = header.recipe
    if not recipe:
        return ["Not known: the networks were not trained by `ddplug pretrain`."]
    lines = [f"- {_plain(key)}: {_plain(value)}" for key, value in recipe.items()]
    return [
        "SGD with momentum 0.9, cosine from `lr` to zero, random shifts by an eighth of the side, mirroring if `flip`:",
        "",
        *lines,
        "",
        "```sh",
        _command(header),
        "```",
    ]


def _command(header: Header) -> str:
    """The command that trains the same pool; options that `ddplug pretrain` does not have are in the recipe."""
    recipe: dict[str, Any] = {"precision": "exact", **header.recipe}
    options = recipe.get("options") or {}
    given = {
        "data": header.info.dataset, "arch": recipe.get("architecture"), "count": header.wanted,
        **{key.replace("_", "-"): recipe.get(key) for key in ("epochs", "lr", "batch_size", "seed", "precision")},
        **{key: options[key] for key in ("norm", "width") if key in options},
    }  # fmt: skip
    said = [part for key, value in given.items() if value is not None for part in (f"--{key}", str(value))]
    flip = "--flip" if recipe.get("flip") else "--no-flip"
    whitened = ["--zca"] if getattr(header.info.space, "tensors", None) is not None else []
    return shlex.join(["ddplug", "pretrain", "FOLDER", *said, flip, *whitened])


def _plain(value: object) -> str:
    """`value` as text that is no markup, on one line."""
    text = " ".join(str(value).split())
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in text)
