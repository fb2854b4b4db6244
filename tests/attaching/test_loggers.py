"""Loggers are told of every round once, in order, never of one that was undone, and never end a run."""

from __future__ import annotations

import copy
import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import ddplug
from ddplug import DDPlugWarning
from ddplug.attaching.loggers import COLUMNS, CSVLog, TensorBoardLog, WandbLog, log
from ddplug.core.history import History, Round
from ddplug.errors import DataError, FileError, InputError


class Told:
    """A logger of our own."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.numbers: list[int] = []
        self.closed = 0
        self.fail_at = fail_at

    def write(self, rounds: Sequence[Round]) -> None:
        if self.fail_at is not None and rounds[-1].number >= self.fail_at:
            raise OSError("no space left")
        self.numbers += [each.number for each in rounds]

    def close(self) -> None:
        self.closed += 1


def add(history: History, *numbers: int) -> None:
    for number in numbers:
        history.append(number, 2.0, 4, torch.tensor(number / 10), torch.tensor(True), torch.tensor(0.5))


class Trainer:
    """A trainer whose loss is the sum of its views."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(6, 3, 4, 4, generator=generator, dtype=torch.float64).requires_grad_()
        self.labels = torch.tensor([0, 0, 1, 1, 2, 2])
        self.optimizer = torch.optim.SGD([self.images], lr=0.01)

    def augment(self, images: torch.Tensor) -> torch.Tensor:
        return images * 1.0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.augment(self.images).square().sum().backward()
            self.optimizer.step()


def test_each_round_once_in_order_and_the_last_at_the_end() -> None:
    history, told = History(), Told()
    add(history, 0, 1)
    end = log(history, told)
    assert told.numbers == []
    add(history, 2)
    assert told.numbers == [0, 1], "the last one may still be undone"
    add(history, 3)
    late = Told()
    log(history, late)
    end()
    end()
    assert told.numbers == [0, 1, 2, 3]
    assert told.closed == 1
    add(history, 4, 5)
    assert told.numbers == [0, 1, 2, 3]
    assert late.numbers == [0, 1, 2, 3, 4]


def test_a_round_that_is_undone_is_not_told_of() -> None:
    history, told = History(), Told()
    end = log(history, told)
    add(history, 0, 1)
    history.truncate(1)
    add(history, 1, 2)
    end()
    assert told.numbers == [0, 1, 2]


def test_blocks_on_a_device_are_not_read_for_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that wait in a block stay there until it is full, or until the end."""
    history, told = History(block=4), Told()
    history._buffer = torch.zeros(4, 3, dtype=torch.float64)  # as on a GPU
    end = log(history, told)
    add(history, 0, 1, 2)
    assert (told.numbers, len(history._pending)) == ([], 3)
    add(history, 3, 4)
    assert told.numbers == [0, 1, 2, 3]
    end()
    assert told.numbers == [0, 1, 2, 3, 4]


def test_a_logger_that_fails_is_dropped_with_a_word() -> None:
    history, broken, told = History(), Told(fail_at=1), Told()
    end = log(history, broken, told)
    add(history, 0, 1)
    with pytest.warns(DDPlugWarning, match=r"OSError: no space left.*history.save"):
        add(history, 2)
    add(history, 3)
    end()
    assert broken.numbers == [0]
    assert told.numbers == [0, 1, 2, 3]


def test_copies_and_resumed_runs_do_not_write_again() -> None:
    history, told = History(), Told()
    log(history, told)
    add(history, 0)
    twin = copy.deepcopy(history)
    assert not twin._readers
    add(twin, 1, 2)
    assert told.numbers == []
    resumed, later = History(), Told()
    resumed.load_state_dict(history.state_dict())
    end = log(resumed, later)
    add(resumed, 1)
    end()
    assert later.numbers == [1]


def test_attached_logged_and_drawn(pool: ddplug.ProxyPool, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    trainer = Trainer()
    options: dict[str, Any] = {"representation": "logit", "announce": lambda text: None}
    with ddplug.attach(trainer, weight=1, proxies=pool, **options) as handle:
        handle.log_to(CSVLog(tmp_path / "logs" / "cmi.csv"))
        with pytest.raises(DataError, match="no round to draw"):
            handle.plot()
        trainer.run(12)
    rows = list(csv.DictReader((tmp_path / "logs" / "cmi.csv").open(encoding="utf-8")))
    assert list(rows[0]) == list(COLUMNS)
    assert [float(row["value"]) for row in rows] == handle.history.values
    assert [float(row["lam"]) for row in rows] == [each.lam for each in handle.history]
    assert [float(row["share"]) for row in rows] == handle.history.share
    figure = handle.plot(tmp_path / "cmi.png")
    drawn = [axis.get_ylabel() for axis in figure.axes]
    assert drawn == ["CMI of the views (nats)", "lambda", "share of the host's gradient"]
    assert list(figure.axes[0].lines[0].get_ydata()) == handle.history.values
    assert (tmp_path / "cmi.png").stat().st_size > 0
    with pytest.raises(InputError, match="a picture's name"):
        handle.plot(tmp_path / "cmi.txt")
    handle.log_to(CSVLog(tmp_path / "after.csv"))
    assert len((tmp_path / "after.csv").read_text().splitlines()) == 13


def test_a_csv_is_continued(tmp_path: Path) -> None:
    for numbers in ((0, 1), (2,)):
        history = History()
        end = log(history, CSVLog(tmp_path / "cmi.csv"))
        add(history, *numbers)
        end()
    lines = (tmp_path / "cmi.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["number", "0", "1", "2"]
    with pytest.raises(FileError):
        CSVLog(tmp_path / "cmi.csv" / "below.csv")


def test_skipped_rounds_have_no_point() -> None:
    points: list[str] = []

    class Writer:
        def add_scalar(self, name: str, value: float, step: int) -> None:
            points.append(name)

    TensorBoardLog(Writer()).write([Round(7, float("nan"), 1.0, 4, True)])
    assert points == []


class Run:
    """A stand-in for a run of wandb 0.31 with its rule for rows, as seen in the files of real runs.

    `log` without a step commits the open row, which moves the counter by one. With a step, it is dropped if the
    counter is past that step; else it opens that row, or adds to it. `commit=False` adds to the open row.
    """

    def __init__(self) -> None:
        self.step, self.open = 0, dict[str, Any]()
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.metrics: list[tuple[str, str | None]] = []

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, values: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        if step is not None and step < self.step:
            return
        if step is not None and step > self.step:
            self.finish()
            self.step = step
        self.open.update(values)
        if commit or (commit is None and step is None):
            self.finish()
            self.step += 1

    def finish(self) -> None:
        if self.open:
            self.rows.append((self.step, self.open))
            self.open = {}

    def column(self, name: str) -> list[Any]:
        self.finish()
        return [row[name] for _, row in self.rows if name in row]


@pytest.mark.parametrize("block", [1, 4, 64])
@pytest.mark.parametrize("numbered", [True, False])
def test_the_host_rows_are_all_kept(block: int, numbered: bool) -> None:
    """A logger beside a host that logs to the same place leaves the host's rows and steps as they are.

    Kind: two writers to one log. Looked at: `WandbLog` (rows of its own moved the counter, and the host's were
    dropped), `TensorBoardLog` (steps are per tag; a host's writer stays open), `CSVLog`
    (appended its rows to any file, a host's own log too). Each with rounds read one by one, and in blocks.
    """
    history, run = History(block), Run()
    history._buffer = torch.zeros(block, 3, dtype=torch.float64)  # as on a GPU
    end = log(history, WandbLog(run))
    for step in range(60):
        add(history, step)
        run.log({"loss": step}, **({"step": step} if numbered else {}))
    end()
    assert run.column("loss") == list(range(60))
    assert [step for step, row in run.rows if "loss" in row] == list(range(60))
    assert run.column("ddplug/round")[-1] == 59
    assert run.metrics == [("ddplug/round", None), ("ddplug/*", "ddplug/round")]


def test_a_csv_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n0,1.5\n")
    with pytest.raises(DataError, match="no log of rounds"):
        CSVLog(path)
    assert path.read_text() == "step,loss\n0,1.5\n"


def test_tensorboard_of_a_host(tmp_path: Path) -> None:
    """The host's writer, its own points at later steps than ours: both curves are whole."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(tmp_path))  # type: ignore[no-untyped-call]
    history = History(block=4)
    history._buffer = torch.zeros(4, 3, dtype=torch.float64)
    end = log(history, TensorBoardLog(writer))
    for step in range(10):
        add(history, step)
        writer.add_scalar("loss", step, step)
    end()
    writer.close()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert sorted(read.Tags()["scalars"]) == ["ddplug/lambda", "ddplug/share", "ddplug/value", "loss"]
    for tag in ("loss", "ddplug/value"):
        assert [event.step for event in read.Scalars(tag)] == list(range(10))


@pytest.mark.slow
def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real run of theirs, offline, whose own steps stay as they are."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run = wandb.init(mode="offline", project="ddplug-test", dir=str(tmp_path))
    history = History()
    end = log(history, WandbLog(run))
    for step in range(5):
        add(history, 2 * step, 2 * step + 1)
        run.log({"loss": step}, step=step)
    end()
    folder = Path(run.dir).parent
    run.finish()
    for _ in range(100):  # its own process writes the file
        if len(rows := wandb_rows(next(folder.glob("*.wandb")))) >= 5:
            break
        time.sleep(0.1)
    assert [(row["_step"], row["loss"], row["ddplug/round"]) for row in rows] == [
        (0, 0, 2), (1, 1, 4), (2, 2, 6), (3, 3, 8), (4, 4, 9),
    ]  # fmt: skip


def wandb_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows in a file of an offline run: records in blocks of 32 KiB, as LevelDB's logs are."""
    from wandb.proto import wandb_internal_pb2

    content, at, record, rows = path.read_bytes(), 7, b"", []
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole one, or the last part of one
            read = wandb_internal_pb2.Record.FromString(record)
            if read.HasField("history"):
                items = read.history.item
                rows.append({each.key or ".".join(each.nested_key): json.loads(each.value_json) for each in items})
            record = b""
    return rows
