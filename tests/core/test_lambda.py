"""Lambda's measurement and the record of rounds."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ddplug.core.history import History, Round


class Unwalked(list[Round]):
    """A list of rounds that refuses to be walked."""

    def __iter__(self) -> Iterator[Round]:
        raise AssertionError("the whole history was walked")


def append(history: History, finite: bool) -> None:
    history.append(len(history), 1.0, 10, torch.tensor(0.5), torch.tensor(finite))


def test_a_round_costs_the_same_however_long_the_history_is() -> None:
    history = History()
    history._rounds = Unwalked()
    for finite in (True, False, True, False):
        append(history, finite)
    history.truncate(3)
    append(history, False)
    assert len(history) == 4
