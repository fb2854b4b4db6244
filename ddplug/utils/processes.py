"""Processes of torch.distributed that make one estimate: the contents of each, and their exchange.

Rows of all processes are gathered, rather than a term's sums, so that every term is computed as in one process. A row
of features is smaller than the image it is of, and costs nothing beside that image's way through a network.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor
from torch import distributed as dist

from ddplug.choices import Sharing as Sharing
from ddplug.errors import HostError, InputError

HOW = (
    "Say what each process has: processes='sharded' (images of its own, of one set), 'averaged' (a part of each batch "
    "of one set, whose gradients are averaged over the processes, as DDP does), 'replicated' (the whole set) or "
    "'separate' (a run of its own)."
)


@dataclass(frozen=True)
class Processes:
    """The processes of one run under torch.distributed, and their exchange in a round.

    Gradient and lambda are those of one process with all images.

    Args:
        sharing: "sharded" (each process has images of its own, of one set), "averaged" (a part of each batch of one
            set, whose gradients the host averages over the processes, as DDP does), "replicated" (the whole set),
            "separate" (a run of its own), or "one", which is refused where there are several processes.
        group: of torch.distributed; None for all processes.

    Raises:
        InputError: an unknown `sharing`.

    Every process must take the same rounds in the same order. Whatever keeps one from it (it ended, raised, or takes
    fewer rounds) ends the others with a `HostError`, after the timeout of the group at the latest.
    """

    sharing: Sharing = "separate"
    group: Any = None

    def __post_init__(self) -> None:
        if self.sharing not in get_args(Sharing):
            raise InputError(f"unknown processes={self.sharing!r}. {HOW} 'one' is refused where there are more.")

    @property
    def size(self) -> int:
        """Number of processes."""
        return dist.get_world_size(self.group) if dist.is_available() and dist.is_initialized() else 1

    @property
    def together(self) -> bool:
        """True if other processes take part in each round."""
        return self.sharing not in ("one", "separate") and self.size > 1

    @property
    def pooled(self) -> bool:
        """True if images of other processes are in each round."""
        return self.sharing != "replicated" and self.together

    @property
    def factor(self) -> int:
        """Factor of a gradient that the host will divide by the number of processes."""
        return self.size if self.sharing == "averaged" else 1

    @property
    def norms(self) -> float:
        """Factor that makes squared norms, summed over the processes, those of one process."""
        return 1 / {"averaged": self.size**2, "replicated": self.size}.get(self.sharing, 1)

    def check(self) -> None:
        """Raise `InputError` if there are several processes and no sharing was given, or they were not found."""
        if self.sharing == "one" and self.size > 1:
            raise InputError(
                f"torch.distributed runs {self.size} processes, and each would estimate, and find a lambda, on its own "
                f"images only. {HOW}"
            )
        if self.sharing == "separate":
            return
        if self.size == 1 and self.sharing != "one" and int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise InputError(
                f"processes='{self.sharing}' was asked for and WORLD_SIZE is {os.environ['WORLD_SIZE']}, but "
                "torch.distributed is not initialised. Call torch.distributed.init_process_group() before the layer."
            )
        if self.size < 1:
            raise InputError("this process is not in the group that was given; leave the layer out here.")

    def agree(self, said: Mapping[str, Any], count: int) -> int:
        """`HostError` unless all processes say the same; returns the number of images that they have together.

        `count` is that of this process; copies of one set are counted once.
        """
        everybody: list[Any] = [None] * self.size
        with self._speaking():
            dist.all_gather_object(everybody, (dict(said), count), group=self.group)
        for name, own in said.items():
            answers = [other.get(name) for other, _ in everybody]
            if any(answer != own for answer in answers):
                listed = ", ".join(f"{answer!r} in process {rank}" for rank, answer in enumerate(answers))
                raise HostError(
                    f"the processes of one run differ in {name}: {listed}. All must have the same options, seed and "
                    "proxies, resume from the same state, and take the same rounds in the same order."
                )
        return sum(other for _, other in everybody) if self.pooled else count

    def gather(self, rows: Tensor) -> tuple[Tensor, slice]:
        """The `rows`, (n, ...), of all processes in their order, and the slice of this process."""
        if not self.pooled:
            return rows, slice(None)
        sizes = [int(size) for size in self._all(torch.tensor([len(rows)], device="cpu"))]
        # All send as many, as not every backend takes parts of different sizes.
        sent = rows.new_zeros(max(sizes), *rows.shape[1:])
        sent[: len(rows)] = rows
        parts = [part[:size] for part, size in zip(self._all(sent), sizes, strict=True)]
        before = sum(sizes[: dist.get_rank(self.group)])
        return torch.cat(parts), slice(before, before + len(rows))

    def total(self, numbers: Tensor) -> Tensor:
        """Sum of `numbers` over the processes, added up in the same order everywhere, so to the same bits."""
        return torch.stack(self._all(numbers)).sum(0) if self.together else numbers

    def _all(self, given: Tensor) -> list[Tensor]:
        """The tensors of all processes, which have one shape and dtype, on the device of `given`."""
        backend = dist.get_backend(self.group)
        carrier = {"gloo": torch.device("cpu"), "nccl": torch.device("cuda")}.get(backend, given.device)
        sent = given.detach().to(carrier).contiguous()
        found = [torch.empty_like(sent) for _ in range(self.size)]
        with self._speaking():
            dist.all_gather(found, sent, group=self.group)
        return [tensor.to(given.device) for tensor in found]

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise HostError(
                "the other processes of this run did not take part in a round: one ended or raised an error (look at "
                "its output first), or takes fewer rounds. Every process must take the same rounds; one without images "
                "in a round passes an empty batch, (0, c, h, w), that needs a gradient, and goes backward through it. "
                f"torch says: {str(error).partition(chr(10))[0]}"
            ) from error

    def __deepcopy__(self, memo: dict[int, Any]) -> Processes:
        """Itself: a group cannot be copied, and nothing here changes."""
        return self


SEPARATE = Processes()
"""One process with all images."""
