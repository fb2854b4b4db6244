"""Statistics of a comparison: means over seeds, and paired differences with their interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log, sqrt
from statistics import fmean, stdev
from typing import Any

from ddplug.errors import InputError

# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom.
_T = (
    12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139,
    2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963,
    2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230, 2.042272,
)  # fmt: skip
_NORMAL = 1.959964


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, to 1e-4; `InputError` below one degree of freedom."""
    if freedom < 1:
        raise InputError(f"a t-interval needs at least 1 degree of freedom (two seeds), got {freedom}.")
    if freedom <= len(_T):
        return _T[freedom - 1]
    z, n = _NORMAL, freedom  # beyond, the first terms of the expansion around the normal quantile are good to 1e-4
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)


def interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % t-interval of the mean of `values`; None for fewer than two."""
    if len(values) < 2:
        return None
    return t_quantile(len(values) - 1) * stdev(values) / sqrt(len(values))


def ratio_interval(entries: Sequence[dict[str, Any]], arm: str, key: str) -> tuple[float, float, float] | None:
    """Return the ratio of `arm`'s last `key` to the baseline's, paired by seed: geometric mean, interval's ends.

    The interval is the 95 % t-interval of the mean logarithm of the ratios. None for fewer than two seeds, and where a
    value is not known, or not above 0.
    """
    runs = {(entry["arm"], entry["seed"]): entry["checkpoints"][-1][key] for entry in entries}
    baseline = entries[0]["arm"]
    pairs = [(value, runs[baseline, seed]) for (name, seed), value in runs.items() if name == arm]
    if any(value is None or value <= 0 for pair in pairs for value in pair):
        return None
    logs = [log(value / other) for value, other in pairs]
    half = interval(logs)
    return None if half is None else (exp(fmean(logs)), exp(fmean(logs) - half), exp(fmean(logs) + half))


def summary(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record per arm, the baseline first, of the runs of `compare.json`.

    Accuracies are in [0, 1], the mean of a judgement's networks counting once; the term, whichever it is, stands under
    "cmi" and is in its own unit. All but `reaches` is of the
    last checkpoint. `difference` is to the baseline, paired by seed, and `interval` half its 95 % t-interval.
    `cmi_ratio` is its mean over the baseline's. `reaches` is the first checkpoint at which the arm's mean accuracy is
    at least the baseline's last one. Values that are not known (one seed, no held-out pool) are None.
    """
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        by_arm.setdefault(entry["arm"], []).append(entry)
    baseline = {run["seed"]: run for run in next(iter(by_arm.values()))}
    rows = []
    for arm, runs in by_arm.items():
        against = [baseline[run["seed"]] for run in runs]
        cmi, heldout, lam, share = (_mean(runs, key) for key in ("cmi", "cmi_heldout", "lambda", "share"))
        rows.append(
            {
                "arm": arm, "weight": runs[0]["weight"], "views": runs[0]["views"], "seeds": len(runs),
                **({"term": runs[0]["term"]} if "term" in runs[0] else {}),
                **_accuracy(_last_accuracies(runs), _last_accuracies(against)),
                "cmi": cmi, "cmi_ratio": _ratio(cmi, _mean(against, "cmi")),
                "cmi_heldout": heldout, "cmi_heldout_ratio": _ratio(heldout, _mean(against, "cmi_heldout")),
                **{key: _mean(runs, key) for key in ("recognised", "confidence") if key in runs[0]["checkpoints"][-1]},
                "lambda": lam, "share": share, "reaches": _reaches(runs, fmean(_last_accuracies(against))),
                **_by_architecture(runs, against),
            }
        )  # fmt: skip
    return rows


def _accuracy(scores: Sequence[float], against: Sequence[float]) -> dict[str, float | None]:
    """Mean and spread of accuracies by seed, and their paired difference to others."""
    gains = [score - other for score, other in zip(scores, against, strict=True)]
    return {
        "accuracy": fmean(scores), "accuracy_std": stdev(scores) if len(scores) > 1 else None,
        "difference": fmean(gains), "interval": interval(gains),
    }  # fmt: skip


def _by_architecture(runs: Sequence[dict[str, Any]], against: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the accuracies by further architectures, as far as these have judged all runs."""
    lasts = [run["checkpoints"][-1].get("accuracies_by_arch", {}) for run in (*runs, *against)]
    shared = {name: [fmean(last[name]) for last in lasts] for name in lasts[0] if all(name in last for last in lasts)}
    of = {name: _accuracy(scores[: len(runs)], scores[len(runs) :]) for name, scores in shared.items()}
    return {"by_arch": of} if of else {}


def against(entries: Sequence[dict[str, Any]], arm: str, other: str) -> dict[str, float | None]:
    """Return `arm`'s accuracy minus `other`'s, paired by their common seeds: difference, half interval."""
    scores = [
        {run["seed"]: score for run, score in zip(runs, _last_accuracies(runs), strict=True)}
        for runs in ([entry for entry in entries if entry["arm"] == name] for name in (arm, other))
    ]
    shared = [seed for seed in scores[0] if seed in scores[1]]
    found = _accuracy([scores[0][seed] for seed in shared], [scores[1][seed] for seed in shared])
    return {"difference": found["difference"], "interval": found["interval"]}


def curve(entries: Sequence[dict[str, Any]], arm: str, key: str) -> tuple[list[int], list[list[float]]]:
    """Iterations of the checkpoints of `arm`, and for each the values of `key` by seed ("accuracies": their mean).

    Checkpoints at which they are not known are left out."""
    runs = [entry["checkpoints"] for entry in entries if entry["arm"] == arm]
    values = [[_value(point, key) for point in points] for points in zip(*runs, strict=True)]
    kept = [
        (points["iteration"], [value for value in row if value is not None])
        for points, row in zip(runs[0], values, strict=True)
        if None not in row
    ]
    return [iteration for iteration, _ in kept], [row for _, row in kept]


def cost(result: Mapping[str, Any], arm: str) -> tuple[float | None, int | None]:
    """Mean seconds per iteration of an arm, and its peak memory in bytes beyond that before it; None if unknown."""
    last = [result["times"][entry["name"]][-1] for entry in result["entries"] if entry["arm"] == arm]
    rates = [time["seconds"] / time["iteration"] for time in last if time["iteration"]]
    peaks = [time["extra_memory"] for time in last if time.get("extra_memory") is not None]
    return fmean(rates) if rates else None, max(peaks, default=None)


def _last_accuracies(runs: Sequence[dict[str, Any]]) -> list[float]:
    return [fmean(run["checkpoints"][-1]["accuracies"]) for run in runs]


def _value(point: dict[str, Any], key: str) -> float | None:
    value: list[float] | float | None = point[key]
    if isinstance(value, list):
        return fmean(value) if value else None
    return value


def _mean(runs: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [run["checkpoints"][-1][key] for run in runs]
    return None if any(value is None for value in values) else fmean(values)


def _ratio(value: float | None, other: float | None) -> float | None:
    return value / other if value is not None and other else None


def _reaches(runs: Sequence[dict[str, Any]], aim: float) -> int | None:
    for points in zip(*(run["checkpoints"] for run in runs), strict=True):
        scores = [point["accuracies"] for point in points]
        if all(scores) and fmean(map(fmean, scores)) >= aim:
            return int(points[0]["iteration"])
    return None
