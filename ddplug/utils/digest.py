"""Hashes by which data, weights, files and settings are known to be the same.

Their values are recorded in pools, checkpoints and results: a change makes those of others. tests/utils/test_digest.py
holds them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Parts = Iterable[bytes | memoryview]
"""Bytes that are hashed one after another; their division into parts makes no difference."""


def sha256(parts: Parts) -> str:
    """The SHA-256 of `parts`, 64 hex digits."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()


def short_sha256(parts: Parts) -> str:
    """The first sixteen hex digits of the SHA-256 of `parts`."""
    return sha256(parts)[:16]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits; `OSError` if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def blob_hash(data: bytes) -> str:
    """The hash that git gives a file of this content, 40 hex digits."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The values of a tensor of any shape, dtype and device as bytes, without their shape and dtype."""
    import torch

    values: memoryview = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return values


def typed_bytes(tensors: Iterable[Tensor]) -> Iterator[bytes | memoryview]:
    """Dtype and shape of every tensor, then its values."""
    for tensor in tensors:
        yield f"{tensor.dtype} {tuple(tensor.shape)}".encode()
        yield tensor_bytes(tensor)


def named_bytes(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[bytes | memoryview]:
    """The name of every tensor, then its values."""
    for name, tensor in tensors:
        yield name.encode()
        yield tensor_bytes(tensor)
