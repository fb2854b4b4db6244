"""Breaks every contract once, on purpose, in a copy of the checkout, and sees its test go red.

    python tests/mutants.py [WORD ...]      # only the mutants whose name contains one of the words

A test that stays green on its mutant cannot fail and is a defect; so is a mutant whose text is no longer in the code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: str
    """A test file, or FILE::NAME."""


CMI, LAYER, ATTACH = "tests/test_cmi.py", "tests/test_regularizer.py", "tests/test_attach.py"

MUTANTS = [
    # The estimator
    Mutant("log base 2", "cmi.py", "kl = (p * log_ratio).sum(-1)", "kl = (p * log_ratio).sum(-1) / 0.6931", CMI),
    Mutant("no shift in log-sum-exp", "cmi.py", '.scatter_reduce(0, rows, log_p.detach(), "amax")', ".zero_()", CMI),
    Mutant("half precision inside", "cmi.py", "wide = features if features.dtype == torch.float64 else features.float()",
           "wide = features", f"{CMI}::test_finite_for_peaked_features"),
    Mutant("centroid without class size", "cmi.py", " - groups.counts.to(log_p).log()[:, None]", "", CMI),
    Mutant("classes weighted alike", "cmi.py", "temperature).sum() / len(features)",
           "temperature).div(groups.counts).mean()", f"{CMI}::test_equals_the_definition"),
    Mutant("temperature forgotten in the derivative", "cmi.py", "kl[:, None]) / temperature", "kl[:, None])", CMI),
    Mutant("KL forgotten in the derivative", "cmi.py", "(log_ratio - kl[:, None])", "log_ratio", CMI),
    Mutant("second derivative lost", "cmi.py", "if torch.is_grad_enabled():", "if False:", f"{CMI}::test_derivatives"),
    Mutant("may be negative", "cmi.py", "sums.clamp(min=0)", "sums - 1e-6", f"{CMI}::test_bounds"),
    Mutant("wrong pairs", "cmi.py", "n * n - (counts * counts).sum()", "n * n", CMI),
    Mutant("negative labels pass", "cmi.py", "classes[0] < 0", "False", CMI),
    Mutant("float labels pass", "cmi.py", "labels.is_floating_point() or", "", CMI),
    Mutant("one image per class unsaid", "cmi.py", "if groups.one_image_per_class:", "if False:", CMI),
    # The layer
    Mutant("lambda twice", "regularizer.py", "delta * (lam *", "2 * delta * (lam *", f"{LAYER}::test_plain_loss"),
    Mutant("a copy instead of the data", "rounds.py", "return views.detach()", "return views.detach().clone()",
           f"{LAYER}::test_forward_is_the_very_same_data"),
    Mutant("each call its own round", "regularizer.py", "reached = [found for found in live if found.reached()]",
           "reached = [call]", f"{LAYER}::test_a_call_per_class"),
    Mutant("stale graphs in the round", "regularizer.py", "if found.reached()]", "]",
           f"{LAYER}::test_a_graph_that_is_alive_but_not_walked_is_not_in_the_round"),
    Mutant("counted at every walk", "rounds.py", "self.done = True", "self.done = False",
           f"{LAYER}::test_views_used_twice_and_walked_twice"),
    Mutant("global generator", "regularizer.py", "self.generator = torch.Generator().manual_seed(seed)",
           "self.generator = torch.default_generator", LAYER),
    Mutant("weight 0 acts", "regularizer.py", "not self.enabled or self.weight == 0 or", "not self.enabled or", LAYER),
    Mutant("detach does nothing", "regularizer.py", "self.enabled = False", "pass", LAYER),
    Mutant("keeps its calls", "regularizer.py", "self._pending.append(weakref.ref(call))",
           "self._pending.append(weakref.ref(call)); self.__dict__.setdefault('kept', []).append(call.views)",
           f"{LAYER}::test_nothing_is_kept_alive_between_rounds"),
    Mutant("reference cycle", "rounds.py", "call.node = weakref.ref(ctx)", "call.node = weakref.ref(ctx); call.cycle = ctx",
           f"{LAYER}::test_nothing_is_kept_alive_between_rounds"),
    Mutant("lazy but not scaled", "regularizer.py", "factor = self.every * (", "factor = 1 * (", LAYER),
    Mutant("NaN handed to the host", "regularizer.py", "torch.where(round_.finite, delta * (lam * round_.factor), 0.0)",
           "delta * (lam * round_.factor)", LAYER),
    Mutant("NaN in the calibration", "weighting.py", "if math.isfinite(host) and math.isfinite(cmi):", "if True:", LAYER),
    Mutant("NaN unreported", "regularizer.py", "if read and self.history.skipped > self._reported:", "if False:", LAYER),
    Mutant("second derivative silently wrong", "rounds.py", "if torch.is_grad_enabled() and grad.requires_grad:",
           "if False:", f"{LAYER}::test_differentiating_through_the_layer_twice"),
    Mutant("changes in place unnoticed", "rounds.py", "call.views._version != call.version", "False", LAYER),
    Mutant("share of the square", "weighting.py", "self.share * math.sqrt(host / cmi)", "self.share * (host / cmi)", LAYER),
    Mutant("never frozen", "weighting.py", "if self._complete == self.rounds:", "if False:", LAYER),
    Mutant("no schedule", "regularizer.py", "(self.schedule(number) if self.schedule else 1.0)", "1.0", LAYER),
    Mutant("generator not continued", "regularizer.py", 'self.generator.set_state(state["generator"].cpu())', "pass",
           f"{LAYER}::test_state_dict_continues_the_run"),
    Mutant("warns every time", "regularizer.py", "self._warned.add(key)", "pass", LAYER),
    Mutant("negative weight passes", "weighting.py", "or weight < 0", "", LAYER),
    Mutant("input space ignored", "proxies.py", "return space.convert(images, self.info.space)", "return images", LAYER),
    Mutant("history grows twice", "history.py", "self._rounds.append(Round(number, value, lam, images, not finite))",
           "self._rounds.append(Round(number, value, lam, images, not finite)); "
           "self.__dict__.setdefault('leak', []).append(bytes(2000))", LAYER),
    # Attaching
    Mutant("attribute left behind", "hooks.py", "delattr(owner, name)", "pass", ATTACH),
    Mutant("original not put back", "hooks.py", "setattr(owner, name, original)", "pass", ATTACH),
    Mutant("module hooks left behind", "hooks.py", "handle.remove()", "pass", ATTACH),
    Mutant("mark left behind", "hooks.py", "module.__dict__.pop(_MARK, None)", "pass", ATTACH),
    Mutant("attached twice", "hooks.py", "if getattr(target, _MARK, False):", "if False:", ATTACH),
    Mutant("still works after detach", "hooks.py", "if not active:\n            return target", "if False:\n            return target",
           ATTACH),
    Mutant("never fired, unsaid", "attach.py", "if self.regularizer.rounds == 0 and self.regularizer.weight != 0:",
           "if False:", ATTACH),
    Mutant("optimizer rows unmasked", "places.py", "rows = leaf.grad.flatten(1).ne(0).any(1)",
           "rows = torch.ones(len(leaf), dtype=torch.bool)", ATTACH),
    Mutant("closure accepted", "places.py", "if any(callable(given)", "if False and any(callable(given)", ATTACH),
    Mutant("adapters not asked", "attach.py", "known = adapters.find(trainer)", "known = None", ATTACH),
    Mutant("clean views are the host's", "places.py", 'if views == "clean" and given.requires_grad:', "if False:", ATTACH),
    Mutant("a draw for each batch", "sharing.py", "kind in self._served or", "True or", ATTACH),
    Mutant("one draw for ever", "sharing.py", "kind in self._served or partner not in self._served", "False", ATTACH),
    Mutant("views per image ignored", "regularizer.py", "for _ in range(self.views_per_image)]", "for _ in range(1)] * self.views_per_image", ATTACH),
    Mutant("views not continued", "regularizer.py", 'self.view.load_state_dict(state["view"])', "pass", LAYER),
    Mutant("tuple becomes a tuple only", "places.py", 'if hasattr(result, "_fields")', "if False", ATTACH),
]  # fmt: skip


def survives(mutant: Mutant, copy: Path) -> str | None:
    """Why the mutant counts as alive, or None if its tests went red."""
    path = copy / "ddplug" / mutant.file
    original = path.read_text()
    if original.count(mutant.old) < 1:
        return "its text is not in the code"
    path.write_text(original.replace(mutant.old, mutant.new, 1))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutant.tests],
            cwd=copy, capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
    finally:
        path.write_text(original)
    return None if done.returncode == 1 else f"pytest ended with {done.returncode}:\n{done.stdout[-800:]}"


def main(words: list[str]) -> int:
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    alive = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "ddplug"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__"))
        for number, mutant in enumerate(chosen, 1):
            why = survives(mutant, copy)
            print(f"{number:3}/{len(chosen)}  {'red' if why is None else 'ALIVE'}  {mutant.name}", flush=True)
            if why is not None:
                alive.append(mutant.name)
                print(f"      {why}")
    print(f"{len(chosen) - len(alive)} of {len(chosen)} mutants turned their tests red")
    return len(alive)


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
