"""History of rounds, kept without holding a device back.

On a GPU, reading a number waits for the device. Values are collected in a small tensor there and read in blocks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddplug.errors import caution
from ddplug.utils.files import write_json


@dataclass(frozen=True, slots=True)
class Round:
    """One round in which the regulariser acted."""

    number: int
    """Backward passes through the layer before this one, skipped and lazy ones included."""
    value: float
    """The term, CMI in nats say, of the views under the proxies drawn, before the host's step."""
    lam: float
    """The factor on its gradient, schedule and laziness included."""
    images: int
    """Views in the round."""
    skipped: bool
    """True if the gradient was not finite and was left out."""
    share: float | None = None
    """The norm of what was added over that of the host's own gradient on the views; None if it is unknown."""

    @property
    def cmi(self) -> float:
        """`value`, as it is called where the term is CMI, in nats."""
        return self.value


Reader = Callable[[Sequence[Round]], None]
"""A function that is called with new rounds, in order."""


class History:
    """A sequence of `Round`s. Reading it waits for the device, writing does not.

    Rounds that wait for a step of the images are hidden: they may still be undone.
    """

    def __init__(self, block: int = 64) -> None:
        self._block = block
        self._rounds: list[Round] = []
        self._pending: list[tuple[int, float, int]] = []
        self._buffer: Tensor | None = None
        self._readers: list[tuple[Reader, int]] = []
        self._earlier = self._passed = 0
        self._hidden_from: int | None = None
        """The position of the first hidden round."""

    def subscribe(self, reader: Reader) -> Callable[[], None]:
        """Call `reader` with all rounds that this process adds; return a function that passes the last and ends it.

        Every round is passed once, when it is neither hidden nor on the device. A reader that raises is warned about
        and not called again.
        """
        entry = (reader, os.getpid())
        self._readers.append(entry)
        self._pass_to(entry, self._rounds[self._earlier : self._passed])

        def end() -> None:
            if entry in self._readers:
                self.flush()
                self._pass_read()
                with suppress(ValueError):  # it has just failed
                    self._readers.remove(entry)

        return end

    def _pass_read(self) -> None:
        """Pass the new rounds that are neither hidden nor on the device to the readers."""
        new = self._rounds[self._passed : self._hidden_from]
        self._passed += len(new)
        for entry in list(self._readers):
            self._pass_to(entry, new)

    def _pass_to(self, entry: tuple[Reader, int], rounds: Sequence[Round]) -> None:
        reader, process = entry
        if not rounds or process != os.getpid():  # a forked process must not write into the logs of its parent
            return
        try:
            reader(rounds)
        except Exception as error:
            self._readers.remove(entry)
            caution(
                f"{reader!r} failed ({type(error).__name__}: {error}) and gets no further rounds. All are still "
                "in the history: history.save(PATH) writes them.",
            )

    def __getstate__(self) -> dict[str, Any]:
        """The state without the readers, so that a copy is not logged."""
        return {**self.__dict__, "_readers": [], "_hidden_from": None}

    def append(
        self, number: int, lam: float, images: int, value: Tensor, finite: Tensor, share: Tensor | None = None
    ) -> Sequence[Round]:
        """Add a round; return the rounds that were read from the device for it, mostly none on a GPU."""
        if self._readers:
            self._pass_read()
        if self._buffer is None or self._buffer.device != value.device:
            self.flush()
            self._buffer = torch.zeros(self._block if value.is_cuda else 1, 3, dtype=torch.float64, device=value.device)
        row = self._buffer[len(self._pending)]
        row[0].copy_(value.detach())
        row[1].copy_(finite)
        row[2].copy_(share) if share is not None else row[2].fill_(-1.0)
        self._pending.append((number, lam, images))
        if len(self._pending) < len(self._buffer):
            return ()
        read = len(self._pending)
        self.flush()
        return self._rounds[-read:]

    @property
    def total(self) -> int:
        """The number of rounds, hidden ones included."""
        return len(self._rounds) + len(self._pending)

    def acted_since(self, start: int) -> bool:
        """Return True if the term was added in a round from position `start` on; reads nothing from the device."""
        pending = self._pending[max(0, start - len(self._rounds)) :]
        return any(round_.lam for round_ in self._rounds[start:]) or any(lam for _, lam, _ in pending)

    def hide(self, start: int | None) -> None:
        """Hide all rounds from position `start` on, or none."""
        self._hidden_from = start
        if self._readers:
            self._pass_read()

    def truncate(self, length: int) -> None:
        """Forget all rounds but the first `length`, hidden ones included."""
        if length < len(self._rounds):
            self.flush()
            del self._rounds[length:]
            self._passed = min(self._passed, length)
        else:
            del self._pending[length - len(self._rounds) :]

    def flush(self) -> None:
        """Read the values that are on the device."""
        if self._buffer is not None and self._pending:
            values = self._buffer[: len(self._pending)].tolist()
            for (number, lam, images), (value, finite, share) in zip(self._pending, values, strict=True):
                known = share if 0 <= share < math.inf else None
                self._rounds.append(Round(number, value, lam, images, not finite, known))
            self._pending.clear()

    @property
    def values(self) -> list[float]:
        """The term in each round, in its own unit."""
        return [round_.value for round_ in self]

    @property
    def cmi(self) -> list[float]:
        """`values`, as they are called where the term is CMI, in nats."""
        return self.values

    @property
    def skipped(self) -> int:
        """Rounds left out because their gradient was not finite."""
        return sum(round_.skipped for round_ in self)

    @property
    def share(self) -> list[float | None]:
        """Share of the host's gradient that was added in each round; None where it is not known."""
        return [round_.share for round_ in self]

    def __iter__(self) -> Iterator[Round]:
        self.flush()
        return islice(self._rounds, self._hidden_from)

    def __len__(self) -> int:
        return self.total if self._hidden_from is None else min(self.total, self._hidden_from)

    def __getitem__(self, index: int) -> Round:
        self.flush()
        return self._rounds[range(len(self))[index]]

    def __repr__(self) -> str:
        return f"History({len(self)} rounds, {self.skipped} skipped)"

    def save(self, path: str | Path) -> None:
        """Write all rounds as JSON, whole or not at all, in the form that `ddplug plot` draws."""
        rounds = self.state_dict()
        content = {
            "format": "ddplug-run", "version": 1, "rounds": len(rounds), "skipped": self.skipped, "history": rounds,
        }  # fmt: skip
        write_json(content, Path(path))

    def state_dict(self) -> list[dict[str, Any]]:
        """All rounds as plain dictionaries."""
        return [asdict(round_) for round_ in self]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Replace all rounds by those of a `state_dict`."""
        self._pending.clear()
        self._earlier = self._passed = len(state)  # rounds of an earlier run, which its readers got
        self._rounds = [Round(**record) for record in state]
