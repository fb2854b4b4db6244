"""`ddplug tune`: a small paired sweep over weights and options of the regulariser, and its choice on fresh seeds.

Made of comparisons in folders of their own, so that it is resumed, and added to, as they are: `sweep-...` for every
representation and weighting, which share the runs at weight 0, and `confirm-...`. The sweep takes the best of many, and
so flatters; the figure to believe is the confirmation's, on seeds that nothing in the folder has seen. Which those
are is noted before they are used, so that the same sweep is resumed on the same seeds and another gets others.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypedDict

from ddplug.core.flags import FLAGS, code
from ddplug.errors import DataError, InputError
from ddplug.lab.folder import SETTINGS, read_json
from ddplug.lab.plan import arms
from ddplug.lab.setup import Setup
from ddplug.lab.tables import gain, plus_minus, weight_name
from ddplug.utils.files import user_path, write_json
from ddplug.utils.records import Count

RESULT, CONFIRMED = "tune.json", "confirmed.json"
Progress = Callable[[str, int, int, str], object]


class Confirmation(TypedDict):
    """The sweep that was confirmed, and the seeds, `end` excluded."""

    of: dict[str, Any]
    first_seed: Count
    end: Count


class Confirmations(TypedDict):
    """Content of `confirmed.json`."""

    confirmations: list[Confirmation]


@dataclass(frozen=True)
class Tuned:
    """Result of tuning: the sweep, the choice, and its result on fresh seeds.

    `sweep` has a record per weight and options: those of a comparison's summary, with `options`. `choice` is one of
    them, None if none is better than weight 0; `confirmation` is the summary's record of it on other seeds.
    """

    sweep: list[dict[str, Any]]
    choice: dict[str, Any] | None
    confirmation: dict[str, Any] | None
    comparisons: list[str]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {"format": "ddplug-tune", "version": 1, **asdict(self)}


def tune(
    setup: Setup,
    out: str | Path,
    weights: Sequence[float | str],
    options: Mapping[str, Sequence[str]],
    *,
    seeds: int = 2,
    confirm: int = 3,
    first_seed: int = 0,
    on_progress: Progress | None = None,
) -> Tuned:
    """Sweep, choose the largest mean difference to weight 0, and confirm it; writes `tune.json` into `out`.

    Args:
        setup: host, data, pools and settings of all comparisons.
        out: folder of the comparisons.
        weights: of `ddplug.lab.plan.read_weights`.
        options: values to try of options of the regulariser that have choices, such as `representation`.
        seeds: of the sweep, from `first_seed` on.
        confirm: seeds of the confirmation, which come after those, and after those of every sweep and confirmation
            before in `out` that were others.
        on_progress: called with (what, steps done, steps in all, a note).

    Raises:
        InputError: nothing to sweep, an option without such a choice, fewer than two seeds to confirm on, and what
            `compare` raises.
        DataError: `out` is the folder of a comparison, `confirmed.json` is damaged, and what `compare` raises.
    """
    out, chosen_arms = user_path(out), arms(weights)
    if len(chosen_arms) < 2:
        raise InputError("tune needs at least one weight above 0 to hold against none.")
    if confirm < 2:
        raise InputError(f"a confirmation needs at least 2 seeds for its interval, got {confirm}.")
    for name, values in options.items():
        allowed = FLAGS[name].choices or ()
        if not values or len(set(values)) < len(values) or not set(values) <= set(allowed):
            raise InputError(f"{name} to sweep: some of {', '.join(allowed)}, each once, got {', '.join(values)}.")
    if (out / SETTINGS).is_file():
        raise DataError(f"'{out}' is the folder of one comparison, and tune makes several; choose another --out.")
    sweep, folders = [], list[str]()
    for values in product(*options.values()):
        given = dict(zip(options, values, strict=True))
        folder, variant = "-".join(("sweep", *values)), setup.regularised(**given)
        result = variant.compare(
            chosen_arms, seeds, out / folder, first_seed=first_seed, on_progress=on_progress,
            baseline=out / folders[0] if folders else None,
        )  # fmt: skip
        sweep += [{**row, "options": given} for row in result["summary"][1:]]
        folders.append(folder)
    best = max(sweep, key=lambda row: float(row["difference"]))
    choice, confirmation = (best, None) if best["difference"] > 0 else (None, None)
    if choice is not None:
        of = {
            "arms": [arm.name for arm in chosen_arms], "options": {name: [*values] for name, values in options.items()},
            "first_seed": first_seed, "seeds": seeds, "confirm": confirm,
        }  # fmt: skip
        fresh = _fresh_seed(out, of)
        folder = "-".join(("confirm", choice["arm"], *choice["options"].values()))
        variant = setup.regularised(**choice["options"])
        chosen = arms([choice["weight"]])
        result = variant.compare(chosen, confirm, out / folder, first_seed=fresh, on_progress=on_progress)
        confirmation = result["summary"][1]
        folders.append(folder)
    tuned = Tuned(sweep, choice, confirmation, folders)
    write_json(tuned.to_json(), out / RESULT)
    return tuned


def _fresh_seed(out: Path, of: dict[str, Any]) -> int:
    """The first seed of the confirmation of a sweep: the one it had before, else one that nothing in `out` has seen."""
    path = out / CONFIRMED
    advice = "delete it, and give a --first-seed beyond all that were used here"
    noted = read_json(path, advice, Confirmations)["confirmations"] if path.is_file() else []
    for each in noted:
        if each["of"] == of:
            return int(each["first_seed"])
    fresh = max(of["first_seed"] + of["seeds"], *(each["end"] for each in noted), 0)
    noted.append({"of": of, "first_seed": fresh, "end": fresh + of["confirm"]})
    write_json({"confirmations": noted}, path)
    return int(fresh)


def said(
    tuned: Tuned,
    host: str,
    proxies: str,
    fixed: Mapping[str, Any],
    repo: Path | None = None,
    arguments: Sequence[str] = (),
) -> list[str]:
    """Return the result in sentences and, for a choice, the code or command line to paste.

    `fixed` are options of the regulariser that were not swept and are not as they are by default; `repo` and
    `arguments` are the checkout of a host, if it was given, and the host's own arguments.
    """
    choice, confirmed = tuned.choice, tuned.confirmation
    if choice is None or confirmed is None:
        return ["No weight was better than none in the sweep; try others, more iterations, or other proxies."]
    shown = gain(confirmed["difference"], confirmed["interval"], "fresh seeds", confirmed["seeds"])
    verdict = f"weight {weight_name(choice)}, {_options(choice)}, against weight 0: {shown}."
    options = {**choice["options"], **fixed}
    if host == "own":
        return [f"ddplug.attach(trainer, {code(choice['weight'], **options)}, proxies={proxies!r})", verdict]
    flags = {"weight": weight_name(choice), **{name: FLAGS[name].written(value) for name, value in options.items()}}
    flags |= {"proxies": proxies, **({} if repo is None else {"repo": repo})}
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return [shlex.join(["ddplug", "run", host, *words, "--", *arguments]), verdict]


def _options(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in row["options"].items())


def table_rows(tuned: Tuned) -> list[tuple[str, ...]]:
    """Weight, options, accuracy and difference of everything swept."""
    return [
        (
            weight_name(row), _options(row), plus_minus(row["accuracy"], row["accuracy_std"]),
            plus_minus(row["difference"], row["interval"], sign=True),
        )
        for row in tuned.sweep
    ]  # fmt: skip
