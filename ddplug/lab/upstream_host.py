"""Entries of a comparison that an upstream host distils: its own unedited script, by `ddplug run`, once per run.

Each run is in a process of its own (`ddplug.lab.deterministic`), in which the same seed means the same draws.
An interrupted run of a host begins anew, and gives the same. The adapter completes the host's command line and finds
its sets: `command` and `saved` of `ddplug.hosting.host.Host`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddplug.core.flags import FLAGS, HOSTS, keywords
from ddplug.core.regularizer import Regularizer
from ddplug.datasets.synthetic import save_set
from ddplug.errors import HostError, InputError
from ddplug.hosting.checkout import HostSpec
from ddplug.hosting.host import comparable
from ddplug.lab.deterministic import TIMES
from ddplug.lab.folder import DONE, Facts, Times, read_json, set_name, write_done
from ddplug.lab.judge import Judge
from ddplug.lab.plan import Arm, Run, Settings
from ddplug.utils.digest import file_sha256, short_sha256
from ddplug.utils.files import user_path

LOG, RUN = "host.log", "host"
_TOLD = 12
"""Lines of a failed host's log that its error repeats."""


@dataclass(frozen=True)
class Upstream:
    """Distils runs by an upstream host.

    `repo` is its checkout, `proxies` the regulariser's pool; the host's own arguments are `settings.arguments`.
    `runner` is how a process that takes the JSON of `ddplug.lab.deterministic` is started.
    """

    spec: HostSpec
    repo: Path
    proxies: Path
    settings: Settings
    download: bool = False
    runner: tuple[str, ...] = (sys.executable, "-m", "ddplug.lab.deterministic")

    @property
    def length(self) -> int:
        """A host's run is one step."""
        return 1

    @property
    def made_with(self) -> dict[str, Any]:
        """A hash over the checkout's Python files, and what else decides by the adapter's account."""
        return {"checkout": code_digest(self.repo), **comparable(self.spec.name).extra_inputs(self.arguments)}

    def check(self, arms: Sequence[Arm], judge: Judge) -> None:
        """Raise for a checkout, options or arguments that the host cannot be run with, before anything is done."""
        adapter, arguments = comparable(self.spec.name), self.arguments
        adapter.comparable(arguments)
        options = self._options()
        self.spec.patched(self.repo)
        setting = adapter.expected_setting(arguments)
        if setting[1] != judge.data.name:
            raise InputError(
                f"{self.spec.name} would distil {setting[1]} (its --dataset), and its sets would be judged on "
                f"{judge.data.name} (--data); name the same data set in both."
            )
        for arm in arms:
            if not arm.baseline:
                Regularizer(judge.pool, **keywords(arm.weight, setting, term=self.settings.term_of(arm), **options))
        if self.spec.run is not None and any(arm.views != "host" for arm in arms):
            raise InputError(f"views clean are for hosts with a patch, and {self.spec.name} has none; leave them out.")
        self.settings.check_arms(arms, adapter.views_per_class(arguments))
        if not self.download:
            adapter.preflight(arguments)

    def __call__(self, run: Run, folder: Path, tell: Callable[[int], object]) -> None:
        """Run the host for `run`, unless it has finished, and keep its sets in `folder`; call `tell(1)` at the end."""
        if (folder / DONE).is_file():
            return
        tell(0)
        if not (folder / RUN).is_dir():
            self._run(run, folder)
        advice = f"delete the folder '{folder / RUN}', and the same command runs the host again"
        notes, facts = [], self._record(folder / RUN, advice)
        times = read_json(folder / RUN / TIMES, advice, Times)
        for iteration, made in sorted(comparable(self.spec.name).saved(folder / RUN, self.arguments).items()):
            save_set(made, folder / set_name(iteration))
            lam = facts["lambda"] if facts else None
            notes.append({"iteration": iteration, "lambda": lam, "share": None, "times": times})
        if not notes:
            raise HostError(f"{self.spec.name} left no set in '{folder / RUN}'; look at {LOG} there for why.")
        write_done(folder, notes, facts["skipped"] if facts else 0)
        tell(1)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The host's own."""
        return self.settings.arguments or ()

    def _run(self, run: Run, folder: Path) -> None:
        """One run of the host, whose folder gets its name when it has ended well."""
        for left in folder.glob(f".{RUN}-*"):  # of a run that was killed
            shutil.rmtree(left)
        attempt = folder.resolve() / f".{RUN}-{os.getpid()}"  # hosts may change the working directory
        attempt.mkdir(parents=True)
        given = {
            "host": self.spec.name, "repo": str(self.repo.resolve()), "seed": run.seed,
            "must": not run.arm.baseline, "folder": str(attempt), "times": str(attempt / TIMES),
            "arguments": comparable(self.spec.name).command(self.arguments, attempt), "ours": self._ours(run),
        }  # fmt: skip
        status = self._wait_for([*self.runner, json.dumps(given)], attempt / LOG)
        if status != 0:
            lines = (attempt / LOG).read_text(encoding="utf-8", errors="replace").splitlines()[-_TOLD:]
            raise HostError(
                f"{self.spec.name} ended with status {status} in run {run.name}; its output is in "
                f"'{attempt / LOG}' and ends with:\n" + "\n".join(lines)
            )
        os.replace(attempt, folder / RUN)

    def _wait_for(self, command: Sequence[str], log: Path) -> int:
        """Run a process to its end; its stdin is open for as long as we live, and by that it knows when to end."""
        with (
            log.open("wb") as output,
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**comparable(self.spec.name).quiet_env, **os.environ},
            ) as process,
        ):
            try:
                return process.wait()
            except BaseException:
                process.kill()
                raise

    def _ours(self, run: Run) -> dict[str, Any]:
        """Our options of a run, as a command line has them; at weight 0 that is the weight alone."""
        ours: dict[str, Any] = {"weight": run.arm.weight}
        term = self.settings.term_of(run.arm)
        if not run.arm.baseline:
            ours |= {
                "views": run.arm.views, "seed": run.seed, "proxies": str(user_path(self.proxies).resolve()),
                **({"term": term} if term != FLAGS["term"].default else {}),
                **{name: FLAGS[name].written(value) for name, value in self._options().items()},
            }  # fmt: skip
        return ours

    def _options(self) -> dict[str, Any]:
        """The regulariser's options that hosts have; `InputError` for another that is not left as it is."""
        given = {name: value for name, value in self.settings.regularizer.items() if value != FLAGS[name].default}
        if odd := [f"--{name}" for name in sorted(set(given) - set(HOSTS))]:
            raise InputError(f"{', '.join(odd)} cannot be set in a host; leave it out, or compare own.")
        return given

    def _record(self, run: Path, advice: str) -> dict[str, Any] | None:
        """Read the layer's record beside the host's results; None if it is missing, as at weight 0."""
        found = sorted(run.rglob("cmi*.json"))
        return read_json(found[-1], advice, Facts) if found else None


def code_digest(repo: Path) -> str:
    """Sixteen hex digits of the Python files of a checkout and their names; hidden folders are ignored."""
    parts: list[bytes] = []
    for folder, inner, files in os.walk(repo):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(file for file in files if file.endswith(".py")):
            path = Path(folder, name)
            parts.append(f"{path.relative_to(repo).as_posix()}\0".encode())
            parts.append(bytes.fromhex(file_sha256(path)))
    return short_sha256(parts)
