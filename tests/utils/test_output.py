"""Printing never fails a run, and files are written whatever can be printed."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ddplug
from ddplug.utils.output import Safe, say
from ddplug.utils.progress import Bars

FULL = Path("/dev/full")


def _output(kind: str) -> io.TextIOWrapper:
    """A standard output that cannot print everything, or nothing."""
    if kind == "full":
        return FULL.open("w", encoding="utf-8")
    stream = io.TextIOWrapper(io.BytesIO(), encoding=kind if kind != "closed" else "utf-8")
    if kind == "closed":
        stream.close()
    return stream


KINDS = ["ascii", "latin-1", "closed", pytest.param("full", marks=pytest.mark.skipif(not FULL.exists(), reason="no"))]


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_printed(kind: str, monkeypatch: pytest.MonkeyPatch, pool: ddplug.ProxyPool) -> None:
    """Lines, tables, bars and the regulariser's own announcements, on outputs that take no line or no such character.

    Kind: prints between a run and its files. Looked at: every `print`, `Console` and bar of the package, which now go
    through one function; JSON that is a command's product is the exception, and fails the command.
    """
    from rich.table import Table

    stream = _output(kind)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    say("CMI 0.1 ± 0.2 λ → Ö")
    say("λ", error=True)
    table = Table("λ ± Ö", title="→")
    table.add_row("± 1")
    say(table)
    with Bars() as bars:
        bars("λ", 1, 2, "±")
        bars.say("→")
    trainer_images = torch.randn(6, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([trainer_images], lr=0.1)
    reg = ddplug.Regularizer(pool, 1.0, representation="logit", weighting=ddplug.Relative(1))
    for _ in range(3):
        optimizer.zero_grad()
        reg(trainer_images * 1, torch.tensor([0, 0, 1, 1, 2, 2])).square().sum().backward()
        optimizer.step()
    assert reg.lam is not None
    if kind == "latin-1":
        stream.flush()
        assert stream.buffer.getvalue().decode(kind).startswith("CMI 0.1 ± 0.2 ? ? Ö")  # type: ignore[attr-defined]
    monkeypatch.undo()


def test_a_safe_stream_is_the_stream() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    safe = Safe(stream)
    print("λ", file=safe)  # type: ignore[call-overload]
    assert safe.isatty() is False
    stream.flush()
    assert stream.buffer.getvalue() == "λ\n".encode()  # type: ignore[attr-defined]


COMMANDS = {
    "compare": (
        "compare own --ipc 2 --iterations 2 --batch-real 4 --width 8 --checkpoints 1 --runs 1 --epochs 1 --seeds 1 "
        "--data digits --out made --weights 0,1 --calibrate 1 --proxies pool",
        "made/compare.json",
    ),
    "evaluate": ("evaluate set.pt --data digits --runs 1 --epochs 1 --width 8 --json made.json", "made.json"),
}


@pytest.mark.parametrize(("command", "output"), [("compare", "ascii"), ("compare", "full"), ("evaluate", "ascii")])
def test_files_are_written_whatever_can_be_printed(command: str, output: str, tmp_path: Path) -> None:
    """A command that has run for hours writes its files, and ends well, also where its output ends up nowhere."""
    pytest.importorskip("sklearn")
    if output == "full" and not FULL.exists():
        pytest.skip("no such device")
    from ddplug import datasets
    from ddplug.datasets.synthetic import SyntheticSet, save_set
    from ddplug.proxies.pretrain import pool_info

    data = datasets.load("digits")
    folder = tmp_path / "λ ± Ö"
    folder.mkdir()
    save_set(SyntheticSet(data.train_images[:20], data.train_labels[:20], data.space), folder / "set.pt")
    if command == "compare":
        network = ddplug.networks.build("convnet", num_classes=10, channels=1, size=[8, 8], width=8)
        made = ddplug.ProxyPool.from_modules([network])
        made.info = pool_info(data)
        made.save(folder / "pool")
    line, file = COMMANDS[command]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1", "PYTHONUTF8": "0"}
    with (FULL if output == "full" else tmp_path / "log").open("w") as log:
        done = subprocess.run(
            [sys.executable, "-m", "ddplug", *line.split()], cwd=folder, env=environment, stdout=log,
            stderr=subprocess.PIPE, text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (folder / file).stat().st_size > 0
