"""Attaches to IDC's imported module as its page in the docs says; not a test, but what `test_idc.py` starts.

    python attach_idc.py WORLD CHECKOUT ATTACH-JSON ARGUMENTS...

Without CUDA, what the host puts there is sent to the CPU, from before its import on.
"""

from __future__ import annotations

import json
import os
import random
import sys

import drive
import numpy as np
import torch

from ddplug.hosting.script import CudaOnCpu, old_names


def main() -> None:
    world = json.loads(sys.argv[1])
    repo, options, *arguments = sys.argv[2:]
    torch.set_num_threads(1)
    drive.no_md5()
    if world.get("stop"):
        drive.stop_after(world["stop"])
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    sys.path[0] = repo
    sys.argv = ["condense.py", *arguments]
    with CudaOnCpu(), old_names(["int"]):
        import condense
        from argument import args
        from misc.utils import Logger

        os.makedirs(args.save_dir, exist_ok=True)
        code = condense.condense.__code__
        handle = drive.attached(condense, options)
        try:
            condense.condense(args, Logger(args.save_dir))
        finally:
            handle.detach()
            assert condense.condense.__code__ is code
            assert "ddplug_cmi" not in vars(condense)


if __name__ == "__main__":
    main()
