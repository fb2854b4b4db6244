"""Finished runs of an evaluation in a small JSON file, so that an interrupted evaluation can be resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from ddplug.errors import InputError
from ddplug.utils.files import exclusive_lock, user_path, write_json
from ddplug.utils.records import Fraction, read_record


class _Runs(TypedDict):
    settings: dict[str, Any]
    runs: dict[str, dict[str, Fraction]]


@dataclass(frozen=True)
class Finished:
    """Finished runs, by architecture and number, and the file they are kept in."""

    path: Path | None
    settings: dict[str, Any]
    runs: dict[str, dict[str, float]]

    @classmethod
    @contextmanager
    def open(cls, path: str | Path | None, settings: dict[str, Any]) -> Iterator[Finished]:
        """Read the file, if it exists. It is written at once, and locked until the end.

        `path` is None to keep nothing; `settings` are everything that decides how a run ends, in JSON's own types.

        Raises `InputError` if the file keeps runs of other settings, cannot be read or written, or if another process
        is at work in it.
        """
        ours = json.loads(json.dumps(settings))
        if path is None:
            yield cls(None, ours, {})
            return
        path = user_path(path)
        with exclusive_lock(path.with_name(f".{path.name}.lock"), path):
            finished = cls._read(path, ours) if path.exists() else cls(path, ours, {})
            finished._write()  # a file that cannot be written must be noticed before the first run
            yield finished

    @classmethod
    def _read(cls, path: Path, ours: dict[str, Any]) -> Finished:
        record = read_record(path, _Runs, "the runs of an evaluation", "Delete it to begin anew.", error=InputError)
        theirs, runs = record["settings"], record["runs"]
        differing = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
        if differing and any(runs.values()):
            said = "; ".join(f"{key} was {theirs.get(key)!r}, now {ours.get(key)!r}" for key in differing)
            raise InputError(
                f"'{path}' keeps runs of an evaluation with other settings: {said}. Use the same ones to go on, keep "
                "these runs in another file, or delete it to begin anew."
            )
        return cls(path, ours, runs)

    def get(self, name: str, run: int) -> float | None:
        """The accuracy of a run, or None if it is not finished."""
        return self.runs.get(name, {}).get(str(run))

    def put(self, name: str, run: int, value: float) -> None:
        """Keep the accuracy of a run that has just finished."""
        self.runs.setdefault(name, {})[str(run)] = value
        self._write()

    def _write(self) -> None:
        if self.path is not None:
            write_json({"settings": self.settings, "runs": self.runs}, self.path)
