"""Torch files of tensors and numbers: written whole, and read without executing anything in them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddplug.errors import DataError, DDPlugError
from ddplug.utils.files import write_bytes
from ddplug.utils.records import UnfitError


def write_tensors(content: object, path: str | Path) -> None:
    """Write a torch file, whole or not at all, that `torch.load(..., weights_only=True)` reads.

    The same content gives the same bytes, whatever the file is called. Raises `FileError` if it cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with buffer.getbuffer() as archive:
        write_bytes(archive, path)


def load_tensors(
    path: Path,
    what: str,
    expected: str,
    advice: str = "",
    *,
    error: type[DDPlugError] = DataError,
    mmap: bool = False,
) -> Any:
    """The content of a torch file that holds tensors, numbers, strings and containers of them, on the CPU.

    Args:
        path: the file.
        what: its kind, in a few words, for the error if the file is missing.
        expected: the expected content, "a state dict" for instance, for both errors.
        advice: a sentence on what to do about a file that cannot be read.
        error: class of the error.
        mmap: leave the tensors on disk until they are used, where the format of the file allows it, and unchecked.

    Raises `error` if the file is not there or cannot be read, if a checksum in it is not that of its content, or if it
    holds any other Python object.
    """
    if not path.is_file():
        raise error(f"there is no {what} at '{path}'; expected {expected}. {advice}".rstrip())
    with reported_as(path, expected, advice, error=error), torch.serialization.safe_globals(_numbers()):
        archive = zipfile.is_zipfile(path)  # files in torch's old format are none
        if archive and not mmap and zipfile.ZipFile(path).testzip():  # torch looks at no checksum
            raise UnfitError("its content is not what was written: a checksum differs")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and archive)


@contextmanager
def reported_as(path: Path, expected: str, advice: str = "", *, error: type[DDPlugError] = DataError) -> Iterator[None]:
    """Turn whatever is raised while the content of `path` is read or used into `error`, other than `error` itself.

    The message says that the file is not `expected`, and ends with `advice`, a sentence on what to do.
    """
    try:
        yield
    except error:
        raise
    except UnfitError as cause:
        raise error(f"'{path}' cannot be read as {expected}: {cause}. {advice}".rstrip()) from cause
    except Exception as cause:  # torch's readers raise whatever a damaged file makes them stumble over
        # Torch's own text advises to load such a file without its safeguard; it is left out on purpose.
        raise error(
            f"'{path}' cannot be read as {expected} ({type(cause).__name__}): it is damaged, half-copied or of another "
            f"kind, or holds more than tensors and numbers; Python objects are not executed. {advice}".rstrip()
        ) from cause


def _numbers() -> list[Any]:
    """Return the functions that read NumPy's numbers: DM keeps accuracies as such, under a name NumPy 2 changed."""
    scalar = np.float64(0).__reduce__()[0]
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)]
    return [*((scalar, name) for name in names), np.dtype, *kinds]
