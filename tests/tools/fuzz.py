"""Damages every kind of file that ddplug reads, in thousands of ways, and sees what its readers make of it.

    python tests/tools/fuzz.py [--cases N] [--first N] [READER ...]      # all readers, 10 000 cases of each

A case fails if a reader raises anything but a `DDPlugError`, takes more than five seconds, asks for more than some
gigabytes, or, for a file that ddplug wrote, takes in other content after its bytes were changed. A case is known by its
reader and number, and `--first N --cases 1` repeats it.
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ddplug import DDPlugError

sys.path.insert(0, str(Path(__file__).parent))
from fuzz_readers import READERS, Reader

SLOW, MEMORY = 5, 6 * 2**30
"""Seconds that a case may take, and bytes that it may ask for."""


def damage(whole: bytes, draw: random.Random) -> bytes:
    """A flipped bit, most of the time; or cut off, blanked, doubled, moved or lengthened."""
    made, at = bytearray(whole), draw.randrange(len(whole))
    length = draw.choice((1, 4, 64, 1024))
    way = draw.random()
    if way < 0.5:
        made[at] ^= 1 << draw.randrange(8)
    elif way < 0.65:
        del made[at:]
    elif way < 0.75:
        made[at : at + length] = bytes(len(made[at : at + length]))
    elif way < 0.85:
        made[at : at + length] = draw.randbytes(len(made[at : at + length]))
    elif way < 0.9:
        del made[at : at + length]
    elif way < 0.95:
        made[at:at] = made[at : at + length] or b"\0"
    else:
        made += draw.randbytes(length)
    return bytes(made) if made != whole else whole[:-1]


class TooSlowError(BaseException):
    """Not an `Exception`, which a reader may catch."""


@dataclass
class Cases:
    """What came of a reader's cases."""

    name: str
    reader: Reader
    whole: bytes = b""
    before: Any = None
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.whole = self.reader.path.read_bytes()
        self.before = plain(self.reader.read())
        assert plain(self.reader.read()) == self.before, f"{self.name} is not read twice alike"

    def run(self, number: int) -> None:
        """Damage the file in the way that belongs to this number, read it, and put it right again."""
        damaged = damage(self.whole, random.Random(f"{self.name} {number}"))
        self.reader.path.write_bytes(damaged)
        began = time.monotonic()
        wrong = None
        try:
            with at_most(SLOW), redirect_stderr(io.StringIO()), warnings.catch_warnings(action="ignore"):
                found = plain(self.reader.read())
            outcome = "taken unchanged" if found == self.before else "taken changed"
            if outcome == "taken changed" and self.reader.ours:
                wrong = "other content was taken in"
        except DDPlugError:
            outcome = "refused"
        except TooSlowError:
            outcome, wrong = "slow", f"more than {SLOW} s"
        except Exception as error:
            outcome, wrong = "foreign", f"{type(error).__name__}: {str(error)[:200]}"
        finally:
            self.reader.path.write_bytes(self.whole)
        if wrong is not None:
            self.failures.append(f"{self.name} {number}: {wrong}")
        took = time.monotonic() - began
        self.slowest, self.seconds = max(self.slowest, took), self.seconds + took
        self.counts[outcome] += 1


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise `TooSlowError` in what takes longer, as soon as it comes back to Python."""

    def late(_: int, __: FrameType | None) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def plain(found: Any) -> Any:
    """What was read, so that it can be compared: tensors by their values, NaN as equal to itself."""
    if isinstance(found, Tensor):
        values = found.detach().cpu().contiguous()
        return (str(values.dtype), tuple(values.shape), values.reshape(-1).view(torch.uint8).numpy().tobytes())
    if isinstance(found, dict):
        return {str(key): plain(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [plain(value) for value in found]
    return repr(found)


def run(names: Sequence[str], first: int, cases: int, folder: Path) -> Iterator[Cases]:
    """Each reader's cases, by number; all readers if none is named."""
    for name in names or READERS:
        (folder / name).mkdir()
        made = Cases(name, READERS[name](folder / name))
        for number in range(first, first + cases):
            made.run(number)
        yield made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="READER")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
        for result in run(given.names, given.first, given.cases, Path(folder)):
            counted = ", ".join(f"{count} {what}" for what, count in sorted(result.counts.items()))
            each = f"{result.seconds:.0f} s, slowest {result.slowest:.2f} s"
            print(f"{result.name}: {counted}; {len(result.failures)} failures ({each})", flush=True)
            for failure in result.failures[:20]:
                print(f"    {failure}", flush=True)
            status |= bool(result.failures)
    return status


if __name__ == "__main__":
    sys.exit(main())
