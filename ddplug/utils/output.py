"""Lines and tables for people: printing them can fail in many ways, and none of them ends a run."""

from __future__ import annotations

import random
import sys
from contextlib import suppress
from typing import Any, TextIO


class Safe:
    """A text stream whose writing fails never.

    Characters that its encoding lacks are written as "?". What cannot be written at all is left out: the disk is full,
    the reader of a pipe is gone, or the stream is closed.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text`."""
        with suppress(OSError, ValueError):
            try:
                self._stream.write(text)
            except UnicodeError:
                encoding = self._stream.encoding
                self._stream.write(text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def load_rich() -> None:
    """Import rich, which draws from Python's generator when it is first imported; the host's state stays as it was."""
    state = random.getstate()
    import rich.style  # noqa: F401

    random.setstate(state)


def say(what: object, *, error: bool = False) -> None:
    """Print a line, or a table of rich's, on the standard output, or else on the standard error."""
    stream: Any = Safe(sys.stderr if error else sys.stdout)
    if isinstance(what, str):
        print(what, file=stream, flush=True)
    else:
        from rich.console import Console

        Console(file=stream).print(what)
