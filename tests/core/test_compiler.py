"""torch.compile where its C++ compiler is missing or fails, in fresh processes, as torch remembers what it found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMPILES = """
import sys, torch, ddplug
from torch import nn
torch.set_num_threads(1)
pool = ddplug.ProxyPool.from_modules([nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 2))])
layer = ddplug.Regularizer(pool, 1.0, weighting="absolute", compute=ddplug.Compute(compile=True))
try:
    layer(torch.randn(4, 3, 2, 2).requires_grad_(), torch.tensor([0, 0, 1, 1])).sum().backward()
except ddplug.errors.ProxyError as error:
    sys.exit(f"first use: {error}")
"""


def compiling_with(compiler: Path, cache: Path) -> str:
    """What a fresh process says that has only this compiler, and nothing compiled before."""
    hidden = {"ATEN_CPU_CAPABILITY", "TORCHINDUCTOR_INSTALL_GXX"}
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    env |= {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(cache), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", COMPILES], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    return done.stderr


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="the compilers of this test are shell scripts")
def test_a_compiler_that_fails_is_quoted_at_first_use(tmp_path: Path) -> None:
    compiler = script(
        tmp_path / "g++",
        'case "$*" in *-dumpversion*|*--version*) echo "g++ (GCC) 12.2.0"; exit 0;; esac\n'
        "echo 'main.cpp:1:10: fatal error: omp.h: No such file or directory' >&2\n"
        "echo 'compilation terminated.' >&2\nexit 1",
    )
    said = compiling_with(compiler, tmp_path / "cache")
    assert "could not be compiled (" in said
    assert "main.cpp:1:10: fatal error: omp.h: No such file or directory" in said
    assert "first use: proxy" in said
    assert "needs a C++ compiler on a CPU" in said
    assert "leave out compile=True." in said
