"""Runs a host's script deterministically, in a process of its own: `python -m ddplug.lab.deterministic JSON`.

Upstream scripts seed nothing, or seed from the clock. Here torch, NumPy and Python start from one seed, and where the
host's own files call `time.time`, a clock answers that depends on that seed and on the number of calls.
Two runs that differ in the regulariser only then draw the same. The script itself runs as under `ddplug run`.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddplug.core.flags import FLAGS, read
from ddplug.hosting.checkout import HostSpec
from ddplug.hosting.host import upstream
from ddplug.hosting.script import run
from ddplug.scripts.any_script import Unpatched, run_unpatched
from ddplug.utils.files import write_json
from ddplug.utils.meter import Meter

TIMES = "times.json"
_EPOCH = 1.7e9  # some time in 2023; hosts take milliseconds of it for seeds


@contextmanager
def clock(folder: Path, seed: int) -> Iterator[None]:
    """Within, `time.time` called from files in `folder` goes on by between half a second and one and a half per call.

    A generator of our own draws the step. Other callers get the time.
    """
    steps = random.Random(seed)
    real, now, within = time.time, _EPOCH, str(folder) + os.sep

    def fake() -> float:
        nonlocal now
        if not sys._getframe(1).f_code.co_filename.startswith(within):
            return real()
        now += steps.randrange(500, 1500) / 1000
        return now

    time.time = fake
    try:
        yield
    finally:
        time.time = real


def seed_everything(seed: int) -> None:
    """Start the global generators of torch (every device's), NumPy and Python from `seed`."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def run_host(given: dict[str, Any], spec: HostSpec) -> None:
    """Run the script with the host's own arguments, and ours in the form that a patch or a row takes."""
    repo, ours = Path(given["repo"]), given["ours"]
    if spec.run is None:
        words = [f"--cmi_{name}={value}" for name, value in ours.items()]
        run(spec, repo, [*given["arguments"], *words], must=given["must"])
    else:
        flags = {name: read(name, value) for name, value in ours.items() if name in FLAGS}
        row = Unpatched.of_host(spec, repo)
        run_unpatched(row, given["arguments"], ours["weight"], ours.get("proxies"), **flags)


def main() -> None:
    """Run the host of the command line, and write seconds and peak memory (bytes, or null) to the file it names."""
    given: dict[str, Any] = json.loads(sys.argv[1])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    spec, repo = upstream(given["host"]).spec(), Path(given["repo"])
    os.chdir(given["folder"])  # hosts write to where they are
    meter = Meter("cpu")  # asking after CUDA would start it, and hosts choose their devices before that
    seed_everything(given["seed"])
    with meter, clock(repo, given["seed"]):
        run_host(given, spec)
    times = meter.read()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        times["extra_memory"] = max(
            torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count())
        )
    write_json(times, Path(given["times"]))


def _end_with_parent() -> None:
    """End the process, whatever it is doing, when the one that started it is gone: its end of our stdin closes."""
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
