"""Runs an upstream script directly, or through ddplug, in the same seeded world; not a test, but what the tests start.

    python drive.py WORLD direct SCRIPT ARGUMENTS...
    python drive.py WORLD ddplug run HOST ...        # the ddplug command line
    python drive.py WORLD attach HOST-FOLDER MODULE FUNCTION ATTACH-JSON ARGUMENTS...
    python drive.py WORLD attach-main SCRIPT ATTACH-JSON ARGUMENTS...   # imported and attached to, then run as main

WORLD is a JSON object: {"seed": 0, "spy": "FILE.pt", "spy_steps": 2, "pool": "FOLDER", "clock": "FOLDER", "cpu": true}.
With "stop": N, the program ends, successfully, where step N of the image optimizer is over and the next is to be taken.

In that world torch, NumPy and Python are seeded; `time.time` counts the calls that come from files in the folder
`clock`; torchvision does not look at md5 sums; with `cpu`, "cuda" means the CPU. With `spy`, the first steps of the
image optimizer are written down: the images, the gradient that reached them, and, with `pool`, CMI's own gradient on
them, computed in the loss form on the very views that went through ddplug's layer. With `options`, an object, the
attached function is called on a namespace of them. With `two_devices`, the host's files are told that there are two;
with `here`, a folder of that name in somebody's home is found where the program runs; `configure` are entries of
Weights & Biases' configuration. With `time`, the layer's own time per round is printed at the end. With `watch`, the
arguments of `watch.Watch`, any optimizer's steps of any images are written down.
"""

from __future__ import annotations

import argparse
import ast
import atexit
import importlib
import json
import os
import random
import runpy
import statistics
import sys
import time
import types
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from watch import Watch


def fake_clock(folder: str) -> None:
    """`time.time` advances by 1.237 s at each call from the host's files, and stands still otherwise."""
    real = time.time
    calls = 0

    def counted() -> float:
        nonlocal calls
        if not sys._getframe(1).f_code.co_filename.startswith(folder):
            return real()
        calls += 1
        return 1.7e9 + 1.237 * calls

    time.time = counted


def no_md5() -> None:
    """The copy of CIFAR-10 at hand has other bytes than the original release."""
    import torchvision.datasets.cifar as cifar

    cifar.check_integrity = lambda path, md5=None: Path(path).is_file()


def two_devices(folder: str) -> None:
    """Files in `folder` are told that there are two CUDA devices; networks that they share out stay on the CPU."""
    counted = torch.cuda.device_count
    torch.cuda.device_count = lambda: 2 if sys._getframe(1).f_code.co_filename.startswith(folder) else counted()


def find_here(name: str) -> None:
    """A folder `name`, wherever it is said to be, is found where we are."""

    def here(original: Any) -> Any:
        def run(path: Any, *args: Any, **kwargs: Any) -> Any:
            before, found, after = str(path).rpartition(name) if isinstance(path, str) else ("", "", "")
            return original(name + after if found and before.startswith("/home") else path, *args, **kwargs)

        return run

    os.listdir, torch.load = here(os.listdir), here(torch.load)


def configure(extra: dict[str, Any]) -> None:
    """Entries that a host reads from Weights & Biases' configuration, and does not put there itself."""
    import wandb

    begun = wandb.init

    def init(*args: Any, **kwargs: Any) -> Any:
        run = begun(*args, **kwargs)
        wandb.config.update(extra)
        return run

    wandb.init = init


def stop_after(steps: int) -> None:
    """The program ends when an SGD on one 4-D tensor, the images, is to take one step more than `steps`."""
    stepped = torch.optim.SGD.step
    count = 0

    def step(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if len(held) == 1 and held[0].ndim == 4:
            count += 1
            if count > steps:
                raise SystemExit(0)
        return stepped(optimizer, *args, **kwargs)

    torch.optim.SGD.step = step


def time_the_layer() -> None:
    """Print, when the program ends, how much processor time the layer took: the median over the rounds."""
    from ddplug.core.rounds import RoundKeeper

    spent: dict[int, float] = {}

    def timed(original: Any) -> Any:
        def run(regularizer: Any, *args: Any) -> Any:
            number, begin = len(spent) if original is started else max(spent, default=0), time.process_time()
            result = original(regularizer, *args)
            spent[number] = spent.get(number, 0.0) + time.process_time() - begin
            return result

        return run

    started = RoundKeeper._start_round
    RoundKeeper._start_round, RoundKeeper._hand_out = timed(started), timed(RoundKeeper._hand_out)
    atexit.register(lambda: print(f"regulariser: {1000 * statistics.median(spent.values()):.1f} ms per round"))


class Spy:
    """Writes down what happens at the first steps of the image optimizer."""

    def __init__(self, file: str, pool: str | None, steps: int) -> None:
        from ddplug import CMI, Regularizer

        self.cmi = CMI(pool) if pool else None
        self.steps, self.file = steps, file
        self.leaf: torch.Tensor | None = None
        self.views: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.gradient: torch.Tensor | None = None
        self.seen: list[dict[str, Any]] = []
        self.count = 0
        original, spy = Regularizer.__call__, self

        def spied(regularizer: Any, views: Any, labels: Any) -> Any:
            if spy.cmi is not None and spy.count < spy.steps and views.requires_grad:
                spy.look(views, labels)
            return original(regularizer, views, labels)

        Regularizer.__call__ = spied
        self._watch(torch.optim.SGD)

    def look(self, views: torch.Tensor, labels: torch.Tensor) -> None:
        assert self.cmi is not None
        self.views.append((views, labels))
        total = self.cmi(torch.cat([v for v, _ in self.views]), torch.cat([y.cpu() for _, y in self.views]))
        assert self.leaf is not None
        (self.gradient,) = torch.autograd.grad(total, self.leaf, retain_graph=True)

    def _watch(self, kind: Any) -> None:
        made, stepped, spy = kind.__init__, kind.step, self

        def init(optimizer: Any, params: Any, *args: Any, **kwargs: Any) -> None:
            params = list(params)
            if len(params) == 1 and isinstance(params[0], torch.Tensor) and params[0].ndim == 4:
                spy.leaf = params[0]
            made(optimizer, params, *args, **kwargs)

        def step(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            if spy.leaf is not None and optimizer.param_groups[0]["params"][0] is spy.leaf:
                if spy.count < spy.steps:
                    labels = torch.cat([y.cpu() for _, y in spy.views]) if spy.views else None
                    images, grad = spy.leaf.detach().clone(), spy.leaf.grad.detach().clone()
                    spy.seen.append({"images": images, "grad": grad, "cmi": spy.gradient, "labels": labels})
                spy.count += 1
                spy.views, spy.gradient = [], None
                torch.save({"steps": spy.seen, "count": spy.count, "last": spy.leaf.detach()}, spy.file)
            return stepped(optimizer, *args, **kwargs)

        kind.__init__, kind.step = init, step


def attached(host: object, options: str) -> Any:
    """Attach with the options of a JSON object: the names of flags, and those of `attach` alone."""
    import ddplug
    from ddplug.core.flags import FLAGS, keywords

    given = json.loads(options)
    flags = {name: given.pop(name) for name in FLAGS if name in given}
    return ddplug.attach(host, **keywords(given.pop("weight"), **flags), **given)


def attach_and_run(script: str, options: str, *arguments: str, path: list[str]) -> None:
    """Import a script, attach, and run what it would do as a program: the block below `if __name__ == "__main__"`."""

    sys.path[:0] = [str(Path(script).parent), *path]
    sys.argv = [script, *arguments]
    host = importlib.import_module(Path(script).stem)
    last = ast.parse(Path(script).read_text()).body[-1]
    assert isinstance(last, ast.If)
    functions = {name: f.__code__ for name, f in vars(host).items() if isinstance(f, types.FunctionType)}
    handle = attached(host, options)
    try:
        exec(compile(ast.Module(last.body, []), script, "exec"), vars(host))
    finally:
        handle.detach()
        assert all(vars(host)[name].__code__ is code for name, code in functions.items())
        assert "ddplug_cmi" not in vars(host)


def main() -> None:
    world = json.loads(sys.argv[1])
    mode, *rest = sys.argv[2:]
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    no_md5()
    if world.get("time"):
        time_the_layer()
    if world.get("spy"):
        Spy(world["spy"], world.get("pool"), world.get("spy_steps", 2))
    if world.get("watch"):
        Watch(**world["watch"])
    if world.get("environment"):
        os.environ.update(world["environment"])
    if world.get("two_devices"):
        two_devices(world["clock"])
    if world.get("configure"):
        configure(world["configure"])
    if world.get("here"):
        find_here(world["here"])
    if world.get("stop"):
        stop_after(world["stop"])
    seed = world.get("seed", 0)
    fake_clock(world["clock"])
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    if mode == "ddplug":
        from ddplug.cli.app import main as command

        sys.argv = ["ddplug", *rest]
        command()
    elif mode in ("direct", "attach-main"):
        from ddplug.hosting.script import CudaOnCpu, old_names

        with old_names(world.get("numpy", [])), CudaOnCpu() if world.get("cpu") else nullcontext():
            if mode == "attach-main":
                attach_and_run(*rest, path=world.get("path", []))
                return
            sys.argv = rest
            sys.path[0] = str(Path(rest[0]).parent)
            sys.path[1:1] = world.get("path", [])
            runpy.run_path(rest[0], run_name="__main__")
    else:
        folder, module, function, options, *arguments = rest
        sys.path[:0] = [folder, *world.get("path", [])]
        sys.argv = [module, *arguments]
        host = importlib.import_module(module)
        code = getattr(host, function).__code__
        given = [argparse.Namespace(**world["options"])] if "options" in world else []
        with attached(host, options):
            getattr(host, function)(*given)
        assert getattr(host, function).__code__ is code
        assert "ddplug_cmi" not in vars(host)


if __name__ == "__main__":
    main()
