"""Breaks every contract once, on purpose, in a copy of the checkout, and sees its test go red.

    python tests/tools/mutants.py [WORD ...]      # only the mutants whose name contains one of the words
    python tests/tools/mutants.py --first 200     # from that one on, as their numbers are printed

A test that stays green on its mutant cannot fail and is a defect; so is a mutant whose text is no longer in the code.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import shlex
import shutil
import sys
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: str
    """What pytest is given: a test file, FILE::NAME, or FILE -k WORD."""
    torch: str = ""
    """The version with which it is red, where newer ones do by themselves what the line is there for."""


CMI, LAYER = "tests/objectives/test_cmi.py", "tests/core/test_regularizer.py"
ATTACH = " ".join(
    f"tests/attaching/test_{about}.py" for about in ("attach", "optimizers", "views", "labels", "refusals", "compiled")
)
PROXIES, FILES, SETS = (
    "tests/proxies/test_proxies.py",
    "tests/proxies/test_pool_files.py",
    "tests/evaluation/test_sets_and_measure.py",
)
SHARED, SHARED_COMPARISON = "tests/proxies/test_shared_pretraining.py", "tests/comparison/test_shared_comparison.py"
MEMORY, FAILURES, HIDDEN = (
    "tests/engine/test_memory.py",
    "tests/core/test_failures.py",
    "tests/core/test_hidden_state.py",
)
AROUND, STORED = "tests/objectives/test_around.py", "tests/core/test_stored_centroids.py"
DISTRIBUTED = "tests/core/test_distributed.py"
CUT, WATCH, SUSTAINED = "tests/core/test_cut_batches.py", "tests/core/test_watch.py", "tests/core/test_sustained.py"
ENGINE, STREAMING = "tests/engine/test_engine.py", "tests/proxies/test_streaming.py"
COMMANDS, WHEEL = "tests/cli/test_cli.py", "tests/project/test_packaging.py"
REFERENCES, TUNE = "tests/comparison/test_references.py", "tests/comparison/test_tune.py"
DEMO, JUDGING = "tests/comparison/test_demo.py", "tests/evaluation/test_judging.py"

TOYS = "tests/hosting/test_toy_hosts.py"
ANY, FIND = "tests/hosting/test_any_script.py", "tests/hosting/test_find.py"
COMPARE, COMPARE_HOST = "tests/comparison/test_compare.py", "tests/comparison/test_compare_host.py"
SEALING, RECORDS, FILES_TESTS = (
    "tests/utils/test_sealing.py",
    "tests/utils/test_records.py",
    "tests/utils/test_files.py",
)
SYNTHETIC, PATCHING = "tests/datasets/test_synthetic.py", "tests/hosting/test_patching.py"
BASELINE, REPORT = "tests/comparison/test_compare_baseline.py", "tests/comparison/test_compare_report.py"
TERMS, SUMS, REAL = (
    "tests/objectives/test_further_terms.py",
    "tests/objectives/test_sums.py",
    "tests/core/test_real_images.py",
)
MCMI, RELABEL, COMPARE_TERMS = (
    "tests/proxies/test_mcmi.py",
    "tests/evaluation/test_relabel.py",
    "tests/comparison/test_compare_terms.py",
)

MUTANTS = [
    # Further terms, sums of them, real images
    Mutant("terms: centralisation's derivative", "objectives/centralisation.py", "(2 / len(features))", "(1 / len(features))", f"{TERMS}::test_value_and_grad_is_autograds"),
    Mutant("terms: covariance without class size", "objectives/covariance.py", 'groups.sum(products) / rearrange(groups.counts.to(features), "c -> c 1 1")', "groups.sum(products)", f"{TERMS}::test_equals_the_published_definition"),
    Mutant("terms: positions first", "objectives/covariance.py", "n (channel p) -> n channel p", "n (p channel) -> n channel p", f"{TERMS}::test_options_of_a_term_are_those_of_its_formula"),
    Mutant("terms: an image with itself", "objectives/diversity.py", " & ~torch.eye(here.shape[1], dtype=torch.bool, device=here.device)", "", f"{TERMS}::test_equals_the_published_definition"),
    Mutant("terms: filled-up images count", "objectives/diversity.py", ".abs() * cross", ".abs()", f"{TERMS}::test_equals_the_published_definition"),
    Mutant("terms: infinite slope at distance 0", "objectives/diversity.py", "squared.clamp(min=1e-24).sqrt()", "squared.sqrt()", f"{TERMS}::test_diversity_where_an_image_is_the_real_one_it_started_as"),
    Mutant("terms: pairs with itself", "objectives/spread.py", "(sizes - 1).clamp(min=1)", "sizes", f"{TERMS}::test_equals_the_published_definition"),
    Mutant("terms: critic without prior", "objectives/mim.py", " - (negatives / len(real.features)).log()[:, None]", "", f"{TERMS}::test_equals_the_published_definition"),
    Mutant("terms: one class contrasts", "objectives/mim.py", "if len(real.groups.classes) < 2:", "if False:", f"{TERMS}::test_one_class_only"),
    Mutant("terms: a class that is not there", "objectives/real.py", "if absent.any():", "if False:", f"{TERMS}::test_real_images_that_are_not_there"),
    Mutant("sums: factors of gradients", "objectives/combined.py", "grads = [factor * grad for factor, _, grad in found]", "grads = [grad for factor, _, grad in found]", f"{SUMS}::test_value_and_gradient_are_the_weighted_sums"),
    Mutant("sums: a sum of one", "objectives/combined.py", "if len(parts) == 1 and parts[0][0] == 1 else Sum(parts)", "if False else Sum(parts)", f"{SUMS}::test_one_term_alone_is_that_term"),
    Mutant("sums: minus forgotten", "objectives/combined.py", '-size if sign == "-" else size', "size", f"{SUMS}::test_how_sums_are_written"),
    Mutant("sums: in each other", "objectives/combined.py", "(_factor(term.name, factor) * inner, each)", "(inner, each)", f"{SUMS}::test_a_sum_in_a_sum_is_its_terms"),
    Mutant("sums: two of one name", "objectives/combined.py", "if names.count(name) > 1", "if False", f"{SUMS}::test_sums_that_are_none"),
    Mutant("real images: of the first call only", "core/real.py", "for batch in offered if batch is not None and", "for batch in offered[:1] if batch is not None and", f"{REAL}::test_class_by_class_in_one_round"),
    Mutant("real images: a batch serves for ever", "core/real.py", "passing, self._passing = self._passing, None", "passing = self._passing", f"{REAL}::test_the_real_batch_of_an_augmentation"),
    Mutant("real images: of any class", "core/real.py", "if not (labels == single).all():", "if False:", f"{REAL}::test_an_unlabelled_batch_beside_views_of_several_classes"),
    Mutant("real images: kept after the round", "core/autograd.py", "self.collected = self.real = None", "self.collected = None", f"{REAL}::test_nothing_is_kept_after_a_round"),
    Mutant("real images: sample of other classes", "datasets/by_class.py", "self._first[classes, None] + ", "", f"{REAL}::test_a_sample_of_the_data"),
    Mutant("real images: draws start over", "core/estimator.py", 'self.real.generator.set_state(state["real_generator"].cpu())', "pass", f"{REAL}::test_a_continued_run_draws_the_same"),
    Mutant("real images: draws gone on", "core/estimator.py", '{**own, "real images": self.real.generator}', "own", f"{REAL}::test_a_round_that_an_exception_ends_leaves_the_draw"),
    Mutant("real images: not in further views", "core/estimator.py", "                images = self.view(images)\n", "                pass\n", f"{REAL}::test_further_views_of_real_images_too"),
    Mutant("real images: rows before forgotten", "hosting/layer.py", "if first or real is not None:", "if real is not None:", f"{TOYS} -k rows_before"),
    # Maximum CMI, soft labels, comparisons of terms
    Mutant("MCMI: minimised", "proxies/mcmi.py", "loss - self.weight * kl", "loss + self.weight * kl", f"{MCMI}::test_the_loss_is_cross_entropy_less_kl_to_the_epochs_centroids"),
    Mutant("MCMI: centroids of training mode", "proxies/mcmi.py", "    net.eval()\n", "", f"{MCMI}::test_the_loss_is_cross_entropy_less_kl_to_the_epochs_centroids"),
    Mutant("MCMI: another weight's checkpoint", "networks/training.py", "settings = (*settings, repr(loss_of))", "pass", f"{MCMI}::test_another_weights_checkpoint_is_refused"),
    Mutant("MCMI: trained again", "proxies/pretrain.py", "keep_checkpoint=bool(tuning), ", "", f"{MCMI}::test_what_was_trained_is_not_trained_again"),
    Mutant("MCMI: weights of a streamed pool", "proxies/pretrain.py", "network.load_state_dict(proxy.weights())", "pass", f"{MCMI}::test_a_streamed_pool_can_be_begun_with"),
    Mutant("relabel: class by the teachers", "evaluation/relabel.py", ", given_classes=classes", "", f"{RELABEL}::test_labels_are_the_teachers_mean_probabilities"),
    Mutant("relabel: temperature forgotten", "evaluation/relabel.py", " / temperature, 1)", ", 1)", f"{RELABEL}::test_labels_are_the_teachers_mean_probabilities"),
    Mutant("relabel: space forgotten", "evaluation/relabel.py", "teachers.prepare(batch, space)", "batch", f"{RELABEL}::test_a_set_in_another_space_is_converted"),
    Mutant("measure: a term in float32", "evaluation/measure.py", "found = (each.double() for each in", "found = (each for each in", f"{RELABEL}::test_what_is_nearly_equal_is_measured_to_its_digits"),
    Mutant("the paper's lambda for another term", "core/options.py", 'if weight == "paper" and objective.name != "cmi":', "if False:", f"{LAYER}::test_weights_by_name"),
    Mutant("a ratio without logarithms", "comparison/statistics.py", "logs = [log(value / other) for", "logs = [log(value) for", f"{DEMO} -k ratio_of_cmi"),
    Mutant("standing: all seeds at each", "comparison/standing.py", 'paired if each["seed"] == run["seed"]', "paired", "tests/comparison/test_standing.py::test_a_line_for_every_run"),
    Mutant("standing: told at the end", "comparison/standing.py", "self._said = len(records)", "pass", "tests/comparison/test_standing.py::test_a_line_for_every_run"),
    Mutant("bars: lines beside a table", "utils/progress.py", "if not self._lines and tenth", "if tenth", "tests/utils/test_progress.py::test_in_a_file_results_take_the_place_of_lines_at_every_tenth"),
    Mutant("compare: one term for all arms", "comparison/plan.py", "return arm.term or self.term", "return self.term", f"{COMPARE_TERMS}::test_each_arm_is_regularised_by_its_term"),
    Mutant("noise of no seed", "comparison/dm_trainer.py", "torch.randn(start.shape, generator=self.generator)", "torch.randn(start.shape)", f"{COMPARE} -k begin_as_noise"),
    Mutant("older records began as nothing", "comparison/plan.py", 'ADDED = ("term", "judge_last", "init")', 'ADDED = ("term", "judge_last")', f"{COMPARE} -k an_older_version"),
    Mutant("compare: terms unpaired", "comparison/statistics.py", "shared = [seed for seed in scores[0] if seed in scores[1]]", "shared = sorted(scores[1], reverse=True)", f"{COMPARE_TERMS}::test_terms_are_compared_in_pairs_of_a_seed"),
    # Memory that runs out, rounds that are broken off
    Mutant("memory: not taken apart", "engine/step.py", "smaller = plan.smaller() if out_of_memory(error) else None", "smaller = None", MEMORY),
    Mutant("memory: graphs of larger pieces", "engine/step.py", "                graphs.clear()\n", "                pass\n", MEMORY),
    Mutant("memory: said in every round", "engine/step.py", "            if self._fits is None:\n", "            if True:\n", MEMORY),
    Mutant("memory: tried again in every round", "engine/step.py", ".at_most(self._fits)", "", MEMORY),
    Mutant("failed: not undone", "core/before.py", "        if error is not None:\n            self.restore()", "        pass", FAILURES),
    Mutant("failed: draws gone on", "core/before.py", "        keeper.estimator.set_generators(self._generators)\n", "", FAILURES),
    Mutant("failed: history kept", "core/before.py", "        keeper.history.truncate(self._history)\n", "", FAILURES),
    Mutant("failed: measured", "core/before.py", "        vars(keeper.weighting).update(self._weighting)\n", "", FAILURES),
    Mutant("hidden: the parent's lock", "utils/thread_lock.py", "if self._process != os.getpid():", "if False:", HIDDEN),
    Mutant("hidden: the child answers", "core/watch.py", " and self._process == os.getpid()", "", HIDDEN),
    Mutant("hidden: replicas left out", "attaching/hooks.py", ' or getattr(module, "_is_replica", False)', "", HIDDEN),
    Mutant("shared pool: trained again", "proxies/pretrain.py", " or _aside(folder, index, header) is not None", "", SHARED),
    Mutant("shared pool: out of turn", "proxies/pretrain.py", "_aside(folder, len(header.networks), header)) is not None", "_aside(folder, header.wanted - 1, header)) is not None", SHARED),
    Mutant("shared pool: left lying", "proxies/pretrain.py", "        shutil.rmtree(_name(folder, len(header.networks) - 1))\n", "", SHARED),
    Mutant("shared runs: all wait for the first", "comparison/compare.py", "with suppress(HeldError):", "if True:", f"{SHARED_COMPARISON} -k hopeless"),
    Mutant("shared runs: not divided", "comparison/compare.py", "range(self.rank, self.rank + self.size)", "range(self.size)", f"{SHARED_COMPARISON} -k divided"),
    Mutant("shared runs: unlocked", "comparison/compare.py", "nullcontext() if self.size == 1 else", "nullcontext() if True else", f"{SHARED_COMPARISON} -k at_a_time"),
    Mutant("shared runs: hosts take part", "utils/processes.py", "if not _TORCHRUN.fullmatch(name)", "if True", f"{SHARED_COMPARISON} -k hosts"),
    Mutant("any order: weight forgotten", "core/regularizer.py", '        self.weighting.load_state_dict(state["weighting"])\n', "", "tests/core/test_machine.py"),
    Mutant("memory: the proxy's fault", "proxies/proxy.py", "isinstance(error, DDPlugError) or out_of_memory(error)", "isinstance(error, DDPlugError)", MEMORY),
    # Several processes
    Mutant("processes: own features only", "utils/processes.py", "        if not self.pooled:\n            return rows", "        if True:\n            return rows", f"{DISTRIBUTED} -k 2-shards"),
    Mutant("processes: another's rows", "utils/processes.py", "sum(sizes[: dist.get_rank(self.group)])", "sum(sizes[1 : dist.get_rank(self.group) + 1])", f"{DISTRIBUTED} -k 2-shards"),
    Mutant("processes: norms of one", "utils/processes.py", "if self.together else numbers", "if False else numbers", f"{DISTRIBUTED} -k 2-shards"),
    Mutant("processes: averaging forgotten", "utils/processes.py", 'return self.size if self.sharing == "averaged" else 1', "return 1", f"{DISTRIBUTED} -k 2-averaged"),
    Mutant("processes: norms as averaged", "utils/processes.py", '{"averaged": self.size**2, "replicated": self.size}', "{}", f"{DISTRIBUTED} -k 2-averaged"),
    Mutant("processes: norms of copies", "utils/processes.py", ', "replicated": self.size}', "}", f"{DISTRIBUTED} -k 2-replicated"),
    Mutant("processes: copies counted", "utils/processes.py", "if self.pooled else count", "if self.together else count", f"{DISTRIBUTED} -k 2-replicated"),
    Mutant("processes: copies gathered", "utils/processes.py", 'self.sharing != "replicated" and self.together', "self.together", f"{DISTRIBUTED} -k 2-replicated"),
    Mutant("processes: nothing said", "utils/processes.py", 'if self.sharing == "one" and self.size > 1:', "if False:", f"{DISTRIBUTED} -k 2-said_wrongly"),
    Mutant("processes: differing seeds", "utils/processes.py", "if any(answer != own for answer in answers):", "if False:", f"{DISTRIBUTED} -k 2-said_wrongly"),
    Mutant("processes: torch's own error", "utils/processes.py", "except RuntimeError as error:", "except ZeroDivisionError as error:", f"{DISTRIBUTED} -k 2-fewer_rounds"),
    Mutant("processes: classes of one", "core/estimator.py", "every, own = self.processes.gather(labels)", "every, own = labels, slice(None)", f"{DISTRIBUTED} -k 2-options"),
    Mutant("processes: broken in one only", "core/rounds.py", "            finite = self.processes.total((~finite).double()) == 0\n", "            pass\n", f"{DISTRIBUTED} -k 2-not_finite"),
    Mutant("processes: size of a part", "core/rounds.py", "else images / self.set_size", "else len(views) / self.set_size", f"{DISTRIBUTED} -k 2-options"),
    Mutant("processes: rows of no gradient", "attaching/places.py", "if not rows.any() and not shared:", "if not rows.any():", f"{DISTRIBUTED} -k 2-attached"),
    # The estimator
    Mutant("log base 2", "objectives/cmi.py", "kl = (p * log_ratio).sum(-1)", "kl = (p * log_ratio).sum(-1) / 0.6931", CMI),
    Mutant("no shift in log-sum-exp", "objectives/cmi.py", '.scatter_reduce_(0, rows, log_p.detach(), "amax")', ".zero_()", CMI),
    Mutant("half precision inside", "objectives/cmi.py", "wide = features if features.dtype == torch.float64 else features.float()",
           "wide = features", f"{CMI}::test_finite_for_peaked_features"),
    Mutant("centroid without class size", "objectives/cmi.py", " - groups.counts.to(log_p).log()[:, None]", "", CMI),
    Mutant("classes weighted alike", "objectives/cmi.py", "temperature).sum() / len(features)",
           "temperature).div(groups.counts).mean()", f"{CMI}::test_equals_the_definition"),
    Mutant("temperature forgotten in the derivative", "objectives/cmi.py", "else derivative / temperature", "else derivative", CMI),
    Mutant("KL forgotten in the derivative", "objectives/cmi.py", "(log_ratio - kl[:, None])", "log_ratio", CMI),
    Mutant("class sums without the class's size", "objectives/cmi.py", "sums + sizes * sizes.log()", "sums", CMI),
    Mutant("second derivative lost", "objectives/cmi.py", "if torch.is_grad_enabled():", "if False:", f"{CMI}::test_derivatives"),
    Mutant("may be negative", "objectives/cmi.py", "sums.clamp(min=0)", "sums - 1e-6", f"{CMI}::test_bounds"),
    Mutant("wrong pairs", "objectives/separation.py", "n * n - (counts * counts).sum()", "n * n", CMI),
    Mutant("negative labels pass", "objectives/base.py", "if (labels < 0).any():", "if False:", CMI),
    Mutant('float labels pass', 'objectives/base.py', 'labels.is_floating_point() or', '', CMI),
    Mutant("one image per class unsaid", "objectives/cmi.py", "if groups.one_image_per_class:", "if False:", CMI),
    # The engine
    Mutant("graphs of other pieces", "engine/step.py", "leaf, seen = graphs.pop() if", "leaf, seen = graphs.pop(0) if", ENGINE),
    Mutant("pieces in reverse", "engine/step.py", "gradients[::-1]", "gradients", ENGINE),
    Mutant('mean of each piece', 'objectives/cmi.py', 'derivative / len(features)', 'derivative / (len(features) + 1)', ENGINE),
    Mutant("kept graphs forgotten", "engine/chunking.py", "max(1, int(BUDGET / max(piece * cost.total, 1)))", "1", ENGINE),
    Mutant("all graphs kept", "engine/chunking.py", "return Plan(min(chunk, images), 1)", "return Plan(min(chunk, images), images)", ENGINE),
    Mutant("graph in a cycle", "engine/chunking.py", "return tensor.detach()", "return tensor", ENGINE),
    Mutant("mixtures unseen", "engine/chunking.py", "bool(difference > 0.05", "bool(difference > 1e9", ENGINE),
    Mutant("proxies summed", "engine/step.py", "grad / len(proxies)", "grad", ENGINE),
    Mutant("forward in bf16", "networks/precision.py", "return torch.conv2d(inputs, weight, bias, *how)\n\n", "return torch.conv2d(inputs.bfloat16(), weight.bfloat16(), None, *how).float()\n\n", ENGINE),
    Mutant("checkpointed layers too", "networks/precision.py", 'and not isinstance(hooks[0], Observer)', "and False", ENGINE),
    Mutant("closed form in fp32", "engine/step.py", "        every = gathered.double()\n", "        every = gathered\n", ENGINE),
    Mutant("graphs without end", "engine/cuda_graphs.py", "len(self._made | self._wanted) < AT_MOST", "True", ENGINE),
    Mutant("graph believed unseen", "engine/cuda_graphs.py", "made.note(proxy, same)", "made.note(proxy, True)", ENGINE),
    Mutant("kinds by their making alone", "proxies/proxy.py", "(repr(sorted(spec.items())), repr(self.network), short_sha256(named_bytes(unsaved)))", "repr(sorted(spec.items()))", ENGINE),
    Mutant("no word of detached features", "engine/step.py", "if not seen.requires_grad:", "if False:", ENGINE),
    Mutant("backward in fp32", "networks/precision.py", "elif precision == \"auto\" and fast_bf16(device):", "elif False:", ENGINE),
    Mutant("trained layers too", "networks/precision.py", " and not weight.requires_grad", "", ENGINE),
    Mutant("doubles too", "networks/precision.py", "frozen and inputs.dtype == weight.dtype == torch.float32", "frozen", ENGINE),
    Mutant("padding by name", "networks/precision.py", " and not isinstance(how[1], str)", "", ENGINE),
    Mutant("images in bf16", "networks/precision.py", "weight.shape[1] * how[3] <= COLOURS", "False", ENGINE),
    Mutant("stale weights in a slot", "engine/cuda_graphs.py", "self._slot.take(proxy)", "pass", ENGINE),
    Mutant("stale views in a graph", "engine/cuda_graphs.py", "self._views.copy_(views)", "pass", ENGINE),
    Mutant("stale groups in a graph", "engine/cuda_graphs.py", "self._groups.index.copy_(groups.index)", "pass", ENGINE),
    Mutant("a replay's own memory handed out", "engine/cuda_graphs.py", "grad.clone()", "grad", ENGINE),
    Mutant("captured without end", "engine/cuda_graphs.py", "key not in self._made and", "", ENGINE),
    Mutant('never captured', "core/estimator.py", 'self.step.make_wanted()', 'pass', ENGINE),
    Mutant("slot is the proxy", "engine/slots.py", "copy.deepcopy(of.network)", "of.network", ENGINE),
    Mutant("classes go with proxies", "core/estimator.py", "manual_seed(seed + 0xC1A55E5)", "manual_seed(seed)", ENGINE),
    Mutant("classes unscaled", "core/estimator.py", "grad * some.factor", "grad", ENGINE),
    Mutant('CMI of classes unscaled', "core/estimator.py", 'value=found.value * some.factor', 'value=found.value', ENGINE),
    Mutant("class sizes ignored", "core/estimator.py", "int(of_drawn.sum()) / len(every) / part", "1.0", ENGINE),
    Mutant('classes in calibration', "core/rounds.py", 'all_classes=self.weighting.lam is None', 'all_classes=False', ENGINE),
    Mutant("draws of classes start over", "core/estimator.py", 'self.class_generator.set_state(state["class_generator"].cpu())', "pass", ENGINE),
    # Streamed pools
    Mutant("everything stays", "proxies/streaming.py", "while len(self._here) > self.resident:", "while False:", STREAMING),
    Mutant("nothing ahead", "proxies/streaming.py", "self._stream.ask_for(self._number, self._device, together)", "pass", STREAMING),
    Mutant("one network for all", "proxies/streaming.py", "functional_call(self.network, self.weights(), (images,), tie_weights=False)", "self.network(images)", STREAMING),
    Mutant("weights in the file's dtype", "proxies/streaming.py", "value.to(dtypes[key])", "value", STREAMING),
    Mutant("tied weights", "proxies/streaming.py", ", tie_weights=False", "", STREAMING),
    Mutant("relative folder", "proxies/pool_files.py", "folder.resolve() /", "folder /", STREAMING),
    Mutant("fewer at once than asked for", "proxies/streaming.py", "self.resident = max(self.resident, together)", "pass", STREAMING),
    Mutant("looking ahead draws", "proxies/pool.py", "generator.clone_state()", "generator", STREAMING),
    Mutant("streamed pool saved as one network", "proxies/pool_files.py", "save_tensors(proxy.weights()", "save_tensors(proxy.network.state_dict()", STREAMING),
    # The layer
    Mutant("lambda twice", "core/rounds.py", "delta * (round_.lam *", "2 * delta * (round_.lam *", f"{LAYER}::test_plain_loss"),
    Mutant("a copy instead of the data", "core/autograd.py", "return views.detach()", "return views.detach().clone()",
           f"{LAYER}::test_forward_is_the_very_same_data"),
    Mutant("each call its own round", "core/rounds.py", 'reached = [found for found in live if found is call or found.reached()]', 'reached = [call]', f"{LAYER}::test_a_call_per_class"),
    Mutant("stale graphs in the round", "core/rounds.py", 'if found is call or found.reached()]', ']', f"{LAYER}::test_a_graph_that_is_alive_but_not_walked_is_not_in_the_round"),
    Mutant("counted at every walk", "core/autograd.py", "self.done = True", "self.done = False",
           f"{LAYER}::test_views_used_twice_and_walked_twice"),
    Mutant("global generator", "core/estimator.py", "self.generator = torch.Generator().manual_seed(seed)",
           "self.generator = torch.default_generator", LAYER),
    Mutant('weight 0 acts', "core/regularizer.py", 'return self.enabled and (self.weight != 0 or self.record)', 'return self.enabled', LAYER),
    Mutant("detach does nothing", "core/rounds.py", "self.enabled = False", "pass", LAYER),
    Mutant('keeps its calls', "core/rounds.py", 'self._pending = [*alive, weakref.ref(call)]', "self._pending = [*alive, weakref.ref(call)]; self.__dict__.setdefault('kept', []).append(call.views)", f"{LAYER}::test_nothing_is_kept_alive_between_rounds"),
    Mutant("reference cycle", "core/autograd.py", "call.node = weakref.ref(ctx)", "call.node = weakref.ref(ctx); call.cycle = ctx",
           f"{LAYER}::test_nothing_is_kept_alive_between_rounds"),
    Mutant("lazy but not scaled", "core/rounds.py", 'factor = self.every * scheduled(self.schedule, number)', 'factor = scheduled(self.schedule, number)', LAYER),
    Mutant("NaN handed to the host", "core/rounds.py", 'extra = torch.where(round_.finite.to(extra.device), extra, 0.0)', 'pass', LAYER),
    Mutant('NaN in the calibration', "core/weighting.py", 'counts = (torch.isfinite(norms) & (norms > 0)).all()', 'counts = torch.tensor(True)', LAYER),
    Mutant("no bound on a sustained lambda", "core/weighting.py", "self.lam = min(lam, limit)", "self.lam = lam", SUSTAINED),
    Mutant("a sustained share of rounds, not of sets", "core/weighting.py", "        return part\n", "        return 1\n", SUSTAINED),
    Mutant("a sustained share never measured anew", "core/weighting.py", "        return True\n", "        return self.lam is None\n", SUSTAINED),
    Mutant("lambda changes within a round", "core/rounds.py", "delta * (round_.lam", "delta * (self.weighting.so_far", SUSTAINED),
    Mutant("a share of some classes", "core/rounds.py", "round_.own * round_.drawn", "round_.own", SUSTAINED),
    Mutant('NaN unreported', "core/rounds.py", 'if read and self.history.skipped > self.reported:', 'if False:', LAYER),
    Mutant("second derivative silently wrong", "core/autograd.py", 'if torch.is_grad_enabled():', 'if torch.is_grad_enabled() and grad.requires_grad:', LAYER),
    Mutant("changes in place unnoticed", "core/autograd.py", "call.views._version != call.version", "False", LAYER),
    Mutant('share of the square', "core/weighting.py", 'self.factor * math.sqrt(host / own)', 'self.factor * (host / own)', LAYER),
    Mutant("never frozen", "core/weighting.py", 'self._settle() if self._complete > self.rounds - 1e-9 else None', 'None', LAYER),
    Mutant("no schedule", "core/weighting.py", 'return float(factor)', 'return 1.0', LAYER),
    Mutant("generator not continued", "core/estimator.py", 'self.generator.set_state(state["generator"].cpu())', "pass",
           f"{LAYER}::test_state_dict_continues_the_run"),
    Mutant("warns every time", "core/watch.py", 'self._warned.add(about)', 'pass', LAYER),
    Mutant("negative weight passes", "core/weighting.py", "or weight < 0", "", LAYER),
    Mutant("input space ignored", "proxies/pool.py", "            return space.convert(images, self.info.space)", "            return images", LAYER),
    Mutant("history grows twice", "core/history.py", "            self._pending.clear()\n\n    @property", "            pass\n\n    @property", LAYER),
    # Attaching
    Mutant("attribute left behind", "attaching/hooks.py", "delattr(owner, name)", "pass", ATTACH),
    Mutant("original not put back", "attaching/hooks.py", "setattr(owner, name, original)", "pass", ATTACH),
    Mutant("module hooks left behind", "attaching/hooks.py", "handle.remove()", "pass", ATTACH),
    Mutant("mark left behind", "attaching/hooks.py", '_HOOKED.discard(module)', 'pass', ATTACH),
    Mutant("attached twice", "attaching/hooks.py", 'if isinstance(replaced, Intercepted) or (isinstance(target, nn.Module) and target in _HOOKED):', 'if False:', ATTACH),
    Mutant("still works after detach", "attaching/hooks.py", 'if not self.active:\n            return self._target', 'if False:\n            return self._target', ATTACH),
    Mutant('never fired, unsaid', "attaching/attach.py", 'self.regularizer.watch.report()', 'pass', ATTACH),
    Mutant('optimizer rows unmasked', "attaching/places.py", 'rows = grad.flatten(1).ne(0).any(1)', 'rows = torch.ones(len(grad), dtype=torch.bool)', ATTACH),
    Mutant("closure forgotten", "attaching/places.py", 'if callable(closure := kwargs.get("closure")):', "if False:", ATTACH),
    Mutant("closure evaluated again", "attaching/places.py", "if evaluations > 1:", "if False:", ATTACH),
    Mutant("adapters not asked", "attaching/attach.py", "known = registry.find(trainer)", "known = None", ATTACH),
    Mutant("clean views are the host's", 'attaching/places.py', 'if views == "clean" and _wanted(regularizer, given, partial(read_real, args, kwargs)):', 'if False:', ATTACH),
    Mutant("a draw for each batch", "augment/shared.py", "kind in self._served or", "True or", ATTACH),
    Mutant("one draw for ever", "augment/shared.py", "kind in self._served or partner not in self._served", "False", ATTACH),
    Mutant("views per image ignored", "core/estimator.py", "for _ in range(self.views_per_image)]", "for _ in range(1)] * self.views_per_image", ATTACH),
    Mutant("views not continued", "core/estimator.py", 'self.view.load_state_dict(state["view"])', "pass", LAYER),
    Mutant("tuple becomes a tuple only", "attaching/places.py", 'if hasattr(result, "_fields")', "if False", ATTACH),
    # What a hostile review found
    Mutant("half precision before lambda", "engine/step.py", "wide = views if views.dtype == torch.float64 else views.float()", "wide = views", f"{LAYER} -k half_precision"),
    Mutant("overflow with lambda", "core/rounds.py", "round_.finite = round_.finite & torch.isfinite(extra).all().to(home)", "pass", f"{LAYER} -k overflows"),
    Mutant("the host's autocast in ours", "engine/step.py", ", torch.autocast(views.device.type, enabled=False)", "", f"{LAYER} -k autocast"),
    Mutant("the host's autocast in a conversion", "proxies/pool.py", "with torch.autocast(images.device.type, enabled=False):", "if True:", f"{LAYER} -k autocast"),
    Mutant("the host's autocast in the loss form", "proxies/proxy.py", 'with layers(images.device, precision):', 'if True:', f"{LAYER} -k autocast"),
    Mutant("loss scaling not added", "core/rounds.py", "lam * round_.factor * scale", "lam * round_.factor", f"{LAYER} -k scaling"),
    Mutant("loss scaling not measured", "core/rounds.py", "_squared_norm(grad).to(home) / scale**2", "_squared_norm(grad).to(home)", f"{LAYER} -k scaling"),
    Mutant("half a round kept", "core/rounds.py", "round_.host = round_.host + _squared_norm(grad).to(home) / scale**2", "round_.host = self.__dict__.setdefault('left', 0) + _squared_norm(grad); self.left = round_.host", LAYER),
    Mutant("a failed round is lost", "core/rounds.py", "if found is call or found.reached()]\n            self._start_round(reached)", "if found.reached()]\n            self._pending = []\n            self._start_round(reached)", f"{LAYER} -k tried_again"),
    Mutant("walked again in silence", "core/rounds.py", "if call.acted:", "if False:", f"{LAYER} -k walked_twice"),
    Mutant("schedules unchecked", "core/weighting.py", "and math.isfinite(factor) and factor >= 0", "", f"{LAYER} -k schedule"),
    Mutant('skips reported twice', "core/regularizer.py", '        self._keeper.reported = self.history.skipped\n', '        pass\n', f"{LAYER} -k reported_again"),
    Mutant("proxies may draw", "proxies/pool.py", "if not torch.equal(before, _random_state(image.device)):", "if False:", f"{LAYER} -k hosts_generator"),
    Mutant("copies stay attached", "attaching/hooks.py", "return _itself, (self._target,)", "raise copy.Error", f"{ATTACH} -k copy"),
    Mutant("copied hooks act", "attaching/hooks.py", "if own else None", "", f"{ATTACH} -k copy"),
    Mutant("slots not restored", "attaching/hooks.py", "setattr(owner, name, target)  # a slot", "pass  # a slot", f"{ATTACH} -k slots"),
    Mutant("installed at weight 0", "attaching/attach.py", "_nothing_to_undo if idle else install(regularizer)", "install(regularizer)", f"{ATTACH} -k zero"),
    Mutant('maximised', "attaching/places.py", '-1.0 if _maximizes(optimizer, leaves[0]) else 1.0', '1.0', f"{ATTACH} -k maximising"),
    Mutant("fused optimizers unscaled", "attaching/places.py", "1.0 if scale is None else float(scale)", "1.0", f"{ATTACH} -k unscales"),
    Mutant("data not compared", "attaching/attach.py", "regularizer.pool.check_data(real.name, real.fingerprint())", "pass", f"{ATTACH} -k other_data"),
    Mutant('space of the data ignored', "attaching/attach.py", 'regularizer.input_space = regularizer.pool.derived_space(real.space)', 'pass', f"{ATTACH} -k other_data"),
    Mutant('attached though announcing failed', "attaching/attach.py", '        handle.detach()\n        raise', '        raise', f"{ATTACH} -k mean_nothing"),
    # Batches that are cut, and what is said
    Mutant("the host's gradient held back", "core/rounds.py", "torch.autograd.backward(call.source, grad, retain_graph=True)", "pass", CUT),
    Mutant('CMI of a round of passes lost', 'core/rounds.py', 'torch.autograd.backward([s for s, _ in rest], [extra for _, extra in rest], retain_graph=True)', 'pass', CUT),
    Mutant("part of a set as a whole", "core/rounds.py", "part = 1.0 if self.set_size is None else images / self.set_size", "part = 1.0", CUT),
    Mutant("part of a set unmeasured", "core/weighting.py", "own * part**2])", "own])", CUT),
    Mutant('a step within a round', 'core/collected.py', 'if any(id(leaf) in held for leaf in self.images()):', 'if False:', CUT),
    Mutant("rounds within rounds", "core/rounds.py", "        if self._collected is not None:\n            raise", "        if False:\n            raise", CUT),
    Mutant("one pass fewer", "core/collected.py", "len(self._seen) == self.passes and all", "len(self._seen) == self.passes - 1 and all", CUT),
    Mutant("a pass not waited for", "core/collected.py", "and all(other.arrived is not None for other in self._last)", "", CUT),
    Mutant('a skipped pass kept', 'core/rounds.py', 'waiting += collected.waiting()', 'pass', CUT),
    Mutant('create_graph in a round', 'core/autograd.py', 'if ctx.call.cut and torch.is_grad_enabled():', 'if False:', CUT),
    Mutant("threads unlocked", "core/rounds.py", "self._lock = ThreadLock()", "from contextlib import nullcontext; self._lock = nullcontext()", f"{CUT} -k threads"),
    Mutant("lost graphs unsaid", "core/watch.py", "if self._lost >= LOST and not self.rounds:", "if False:", WATCH),
    Mutant("idle views unsaid", "core/watch.py", "if self._untouched == UNTOUCHED and", "if False and", WATCH),
    Mutant("idle steps unsaid", "core/watch.py", "if self._steps == STEPS and not self.rounds:", "if False:", WATCH),
    Mutant("a module's images unknown", "attaching/attach.py", '(*held.values(), *held.get("_parameters", {}).values())', "held.values()", WATCH),
    Mutant("way back compiled", "core/rounds.py", "@uncompiled\n    def _on_backward", "def _on_backward", f"{ATTACH} -k compiled_as_a_whole"),
    Mutant("anybody's steps", 'core/watch.py', 'if holds(optimizer, parameters):', 'if True:', WATCH),
    Mutant("nothing at the end", "core/watch.py", "@atexit.register\n", "", WATCH),
    Mutant("classes cut unsaid", "core/watch.py", "if len(self._single) > 1 and absolute:", "if False:", WATCH),
    Mutant("a share is cut, too", "core/watch.py", "if len(self._single) > 1 and absolute:", "if len(self._single) > 1:", WATCH),
    Mutant("passes cut unsaid", "core/watch.py", "if self._cut >= 2:", "if False:", WATCH),
    Mutant('steps unseen', 'core/watch.py', 'leaf._version != self._version or', 'False or', WATCH),
    Mutant('cleared gradients unseen', 'core/watch.py', 'and bool(leaf.grad.any())', '', WATCH),
    Mutant('scaler unsaid', 'core/watch.py', 'if factor != 1 and found not in _ASKED_ABOUT:', 'if False:', WATCH),
    Mutant("space ignored", "proxies/pool.py", "if own is None and not self.pending:", "if False:", WATCH),
    Mutant("range not looked at", "proxies/doubts.py", "    if not wrong:\n", "    if True:\n", WATCH),
    Mutant("classes not looked at", "proxies/pool.py", "if names is not None and len(labels) and", "if False and", WATCH),
    Mutant("outputs not looked at", "proxies/doubts.py", "if not known or int(labels.max()) < max(known):", "if True:", WATCH),
    Mutant("accuracy not looked at", "proxies/doubts.py", "if accuracy < least:", "if False:", WATCH),
    Mutant("views of other classes", "proxies/doubts.py", "if odds >= RARE:", "if True:", f"{WATCH} -k takes_for_something_else"),
    Mutant("always right expected", "proxies/doubts.py", "expected = accuracy / 2", "expected = accuracy", f"{WATCH} -k takes_for_something_else"),
    Mutant("noise is a mistake", "proxies/doubts.py", "if not found and not from_noise and", "if not found and", f"{WATCH} -k takes_for_something_else"),
    Mutant("floor without chance", "proxies/doubts.py", "least = 1 / classes + FLOOR * (1 - 1 / classes)", "least = FLOOR", WATCH),
    Mutant("bf16 not compared", "engine/step.py", "if cosine < FAITHFUL:", "if False:", WATCH),
    Mutant("bf16 compared each time", "engine/step.py", "self._compared.add(proxy.network)", "pass", WATCH),
    Mutant("options of a state ignored", "core/state.py", "for key in own if given.get(key) != own[key]", "for key in own if False", WATCH),
    Mutant("pool of a state ignored", "core/state.py", "if expected is not None and expected != pool.digest():", "if False:", WATCH),
    Mutant("pool of a state forgotten", "core/regularizer.py", 'self._expected_pool = state.get("pool")', "pass", WATCH),
    Mutant("record adds", "core/rounds.py", "if self.weight == 0:\n            found = self.estimator.value", "if False:\n            found = self.estimator.value", WATCH),
    Mutant("share without lambda", "core/rounds.py", ".sqrt() * applied if", ".sqrt() if", WATCH),
    Mutant("off asks for the pool", "core/regularizer.py", "off = weight == 0 and not record", "off = False", WATCH),
    Mutant("labels from nowhere", "attaching/labels.py", "These labels are {source}.", "", ATTACH),
    Mutant("one class for ever", "attaching/labels.py", "self.calls += 1", "self.calls = 1", ATTACH),
    Mutant("loss for augmentation", "attaching/places.py", "if name in LOSSES and problems:", "if False:", ATTACH),
    Mutant("compiled arguments unseen", "attaching/hooks.py", "    function = original(function)\n", "", ATTACH),
    Mutant('wrapped optimizers', 'attaching/attach.py', 'compiled, trainer = trainer, original(trainer)', 'compiled = trainer', ATTACH),
    Mutant("first tensor only", "attaching/places.py", "every = torch.cat([leaf.detach() for leaf in leaves])", "every = leaves[0].detach()", ATTACH),
    Mutant("tensors have names", "attaching/attach.py", "and (data is None or isinstance(data, ImageData | str))", "", ATTACH),
    Mutant("a lazy round of passes", "core/rounds.py", "            sources, arrived = [call.source for call in calls], [call.arrived for call in calls]\n            before = Before(self)\n            self._start_round(calls)", "            before = Before(self)\n            self._start_round(calls)\n            sources, arrived = [call.source for call in calls], [call.arrived for call in calls]", CUT),
    Mutant("lazy rounds unseen", "core/rounds.py", "        self.watch.rounds += 1\n", "", WATCH),
    Mutant("a round cut through", "core/rounds.py", "            if stepped:\n", "            if False:\n", CUT),
    Mutant("a broken pass for ever", "core/collected.py", "and running not in self._seen and len(self._seen) == self.passes:", "and False:", CUT),
    Mutant("an empty round unsaid", "core/rounds.py", "if collected.added and not collected.arrived and self.enabled:", "if False:", CUT),
    Mutant("calls of a round kept", "core/collected.py", "self._waiting = [*alive, weakref.ref(call)]", "self._waiting = [*alive, weakref.ref(call)]; self.__dict__.setdefault('kept', []).append(call)", CUT),
    Mutant("views of a round kept", "core/autograd.py", "            self.source = None\n        self.done", "            pass\n        self.done", CUT),
    Mutant("one round for all threads", "core/rounds.py", "self._own = threading.local()", "import types; self._own = types.SimpleNamespace()", f"{CUT} -k threads"),
    Mutant("recording cuts", "core/rounds.py", "                if self.weight != 0:\n", "                if True:\n", CUT),
    Mutant("an optimizer's passes", "core/rounds.py", "        if self._collected is not None:\n            raise InputError(\n                \"the gradient is added", "        if False:\n            raise InputError(\n                \"the gradient is added", CUT),
    Mutant("half a state taken", "core/regularizer.py", "            self._take(before)\n", "", f"{WATCH} -k half_way"),
    Mutant("copies undo", "attaching/attach.py", "    handle._undo = None\n    return handle", "    return handle", WATCH),
    Mutant("labels asked for all", "attaching/places.py", "if views.requires_grad and torch.is_grad_enabled() and regularizer.active:", "if views.requires_grad:", ATTACH),
    Mutant("compiled before", "attaching/attach.py", "        undo = _compiling_anew(undo)\n", "        pass\n", "tests/attaching/test_compiled.py", torch="2.6"),
    Mutant("classes of any term", "core/options.py", "if self.classes is not None and not objective.additive_over_classes:", "if False:", "tests/objectives/test_terms.py"),
    Mutant("too few for a term", "core/rounds.py", "if groups.fewer_than(objective.min_per_class):", "if False:", "tests/objectives/test_terms.py"),
    # Proxies
    Mutant("features and logits swapped", "proxies/proxy.py", 'if representation == "logit":', 'if representation != "logit":', PROXIES),
    Mutant("first linear layer is the head", "proxies/proxy.py", "return found[-1]", "return found[0]", PROXIES),
    Mutant("head not verified", "proxies/proxy.py", "not (self._named_by_user or _same(output, seen[-1][-1]))", "False", PROXIES),
    Mutant("named head verified too", "proxies/proxy.py", "not (self._named_by_user or _same(output, seen[-1][-1]))", "not _same(output, seen[-1][-1])", PROXIES),
    Mutant("hook stays after an exception", "proxies/proxy.py", "        finally:\n            hook.remove()\n", "        finally:\n            pass\n", PROXIES),
    Mutant("hook stays", "proxies/proxy.py", "            hook.remove()", "            pass", PROXIES),
    Mutant('out of memory renamed', "proxies/proxy.py", 'isinstance(error, DDPlugError) or out_of_memory(error)', 'isinstance(error, DDPlugError)', PROXIES),
    Mutant("candidates not named", "proxies/proxy.py", "candidates: {', '.join(_candidates(self.network)) or 'none'}", "", PROXIES),
    Mutant("layers not named", "proxies/proxy.py", "linear layers: {', '.join(_candidates(network)) or 'none'}", "", PROXIES),
    Mutant("no copy of the user's module", "proxies/pool.py", "copy.deepcopy(m)", "m", PROXIES),
    Mutant("a shallow copy", "proxies/pool.py", "copy.deepcopy(m)", "copy.copy(m)", PROXIES),
    Mutant("train mode kept", "proxies/proxy.py", "self.network.eval().requires_grad_(False)", "self.network.requires_grad_(False)", PROXIES),
    Mutant("not frozen", "proxies/proxy.py", "self.network.eval().requires_grad_(False)", "self.network.eval()", PROXIES),
    Mutant("NaN weights pass", "proxies/proxy.py", "        if broken:", "        if False:", PROXIES),
    Mutant("buffers not looked at", "proxies/proxy.py", "in self.network.state_dict().items() if", "in self.network.named_parameters() if", PROXIES),
    Mutant("images not cast", "proxies/proxy.py", "self._read(images.to(self.dtype), representation)", "self._read(images, representation)", PROXIES),
    Mutant("rows not counted", "proxies/proxy.py", "if len(features) != len(images):", "if False:", PROXIES),
    Mutant("recorded shape not checked", "proxies/pool.py", "tuple(images.shape[1:]) != self.info.shape", "False", PROXIES),
    Mutant("channels of the space not checked", "proxies/pool.py", "space.channels != images.shape[1]", "False", PROXIES),
    Mutant("spaces not converted", "proxies/pool.py", "return space.convert(images, self.info.space)", "return images", PROXIES),
    Mutant("converted the wrong way", "proxies/pool.py", "space.convert(images, self.info.space)", "self.info.space.convert(images, space)", PROXIES),
    Mutant("channels of two spaces not compared", "datasets/spaces.py", "if self.channels != to.channels:", "if False:", PROXIES),
    Mutant("mean forgotten", "datasets/spaces.py", "(images - _per_channel(self.mean, images)) /", "images /", PROXIES),
    Mutant("global draw", "proxies/pool.py", "torch.randperm(len(self), generator=generator)", "torch.randperm(len(self))", PROXIES),
    Mutant("drawn twice", "proxies/pool.py", "torch.randperm(len(self), generator=generator)[:count]", "torch.randint(len(self), (count,), generator=generator)", PROXIES),
    Mutant("last proxy never drawn", "proxies/pool.py", "torch.randperm(len(self), generator=generator)[:count]", "torch.randperm(len(self) - 1, generator=generator)[:count]", PROXIES),
    Mutant("draw not bounded", "proxies/pool.py", "not 1 <= count <= len(self)", "False", PROXIES),
    Mutant("of copies a pool", "proxies/pool.py", "        if isinstance(proxies, cls):\n            return proxies", "        if isinstance(proxies, cls):\n            return copy.copy(proxies)", PROXIES),
    Mutant("of without folders", "proxies/pool.py", "isinstance(proxies, str | Path)", "isinstance(proxies, Path)", PROXIES),
    Mutant("of without lists", "proxies/pool.py", "isinstance(proxies, Sequence)", "isinstance(proxies, tuple)", PROXIES),
    # Pool files
    Mutant("checksum not checked", "proxies/pool_files.py", ' or file_sha256(path) != record["sha256"]', "", FILES),
    Mutant("files outside the pool", "proxies/pool_files.py", "path.parent != folder or not path.is_file()", "not path.is_file()", FILES),
    Mutant("newer version read", "proxies/pool_header.py", ' or record["version"] > VERSION', "", FILES),
    Mutant("data set not compared", "proxies/pool_files.py", "    if dataset is not None:", "    if False:", FILES),
    Mutant("unfinished pools load", "proxies/pool_files.py", "not (header.complete or partial)", "False", FILES),
    Mutant("partial ignored", "proxies/pool_files.py", "not (header.complete or partial)", "not header.complete", FILES),
    Mutant("builders ignored", "proxies/pool_files.py", "(builders or {}).get(architecture)", "None", FILES),
    Mutant("loading draws globally", "proxies/pool_files.py", "with seeded(0):", "if True:", FILES),
    Mutant("saved over", "proxies/pool_files.py", "if folder.exists() and (not", "if False and (not", FILES),
    Mutant("failed save stays", "proxies/pool_files.py", "shutil.rmtree(temporary, ignore_errors=True)", "pass", FILES),
    Mutant("records lost", "proxies/pool_files.py", '"record": proxy.record,', '"record": {},', FILES),
    Mutant("space lost", "proxies/pool_header.py", "info.space.to_json() if info.space is not None else None", "None", FILES),
    Mutant("tied weights refused", "proxies/pool_header.py", ".contiguous().clone()", ".contiguous()", f"{FILES} -k twice"),
    # Pretraining
    Mutant("no checkpoints", "proxies/pretrain.py", 'lr=recipe["lr"], checkpoint=checkpoint,', 'lr=recipe["lr"], checkpoint=None,', f"{FILES}::test_a_killed_pretraining_ends_with_the_same_weights"),
    Mutant("one seed for all", "proxies/pretrain.py", '"precision": recipe["precision"], "seed": seed + index,', '"precision": recipe["precision"], "seed": seed,', f"{FILES} -k each_network"),
    Mutant("initial weights unseeded", "proxies/pretrain.py", "            with seeded(seed + index):\n", "            if True:\n", f"{FILES} -k pretrain"),
    Mutant("seed recorded wrong", "proxies/pretrain.py", '{"seed": seed + index, "epochs"', '{"seed": seed, "epochs"', f"{FILES} -k records_what"),
    Mutant("accuracy of the training images", "proxies/pretrain.py", "accuracy(network, data.test_images, data.test_labels)", "accuracy(network, data.train_images, data.train_labels)", f"{FILES} -k records_what"),
    Mutant("generator not resumed", "networks/training.py", 'generator.set_state(state["generator"])', "pass", f"{FILES} -k killed"),
    Mutant("optimizer not resumed", "networks/training.py", 'optimizer.load_state_dict({**state, "param_groups": groups})', "pass", f"{FILES} -k killed"),
    Mutant("other recipes continue", "proxies/pretrain.py", "or found.recipe != wanted.recipe", "", f"{FILES} -k recipe"),
    Mutant("other data continue", "proxies/pretrain.py", "found.info != wanted.info or", "", f"{FILES} -k other_data"),
    Mutant("count not extended", "proxies/pretrain.py", 'if wanted.wanted != found.wanted and (wanted.wanted > found.wanted or not found.complete):', 'if False:', f"{FILES} -k larger_count"),
    Mutant("foreign folder taken", "proxies/pretrain.py", "if folder.exists() and (not folder.is_dir() or any(not held.name.startswith(\".\") for held in folder.iterdir())):", "if False:", f"{FILES} -k something_else"),
    Mutant("cache variable ignored", "proxies/pretrain.py", 'os.environ.get("DDPLUG_CACHE") or', "", f"{FILES} -k named_cache"),
    Mutant("default pool by name only", "proxies/pretrain.py", "{data.name}-{data.fingerprint()}-", "{data.name}-", f"{FILES} -k default_pool"),
    # Sets
    Mutant('pickles run', 'utils/reading.py', '"cpu", weights_only=True)', '"cpu", weights_only=False)', SETS),
    Mutant("DM's first run", "datasets/synthetic.py", "record = record[-1]", "record = record[0]", SETS),
    Mutant("lengths not compared", "datasets/synthetic.py", "if len(images) != len(labels):", "if False:", SETS),
    Mutant("dtype kept", "datasets/synthetic.py", "images = images.float()", "pass", SETS),
    Mutant("NumPy's numbers not read", "utils/reading.py", "*((scalar, name) for name in names), ", "", "tests/datasets/test_hostfiles.py -k numpy"),
    Mutant("logits taken for probabilities", "datasets/host_files.py", "labels = labels.detach().float().softmax(1)", "pass", "tests/datasets/test_hostfiles.py -k logits"),
    Mutant("another iteration's labels", "datasets/host_files.py", 'f"{before}labels_{name}"', '"labels_100.pt"', "tests/datasets/test_hostfiles.py -k beside"),
    Mutant("whitening not noticed", "datasets/host_files.py", 'any(path.parent.glob(f"{_IMAGES}zca_*.pt"))', "False", "tests/datasets/test_hostfiles.py -k pictures"),
    Mutant("formed images: columns first", "datasets/host_files.py", "(n i j) c h w", "(n j i) c h w", "tests/datasets/test_hostfiles.py -k quarter"),
    Mutant("formed images: labels tiled", "datasets/host_files.py", "labels.repeat_interleave(factor**2, dim=0)", "torch.cat([labels] * factor**2)", "tests/datasets/test_hostfiles.py -k quarter"),
    Mutant("formed images: padded black", "datasets/host_files.py", "value=0.5", "value=0.0", "tests/datasets/test_hostfiles.py -k lacks"),
    Mutant("formed images: not clamped", "datasets/host_files.py", "images = images.clamp(0, 1)", "pass", "tests/datasets/test_hostfiles.py -k has_to_be_given"),
    Mutant("the host's factor not read", "datasets/host_files.py", 'int(content["factor"])', "1", "tests/datasets/test_hostfiles.py -k hosts_arguments"),
    Mutant("set's space lost", "datasets/synthetic.py", '"space": synthetic.space.to_json() if synthetic.space else None', '"space": None', SETS),
    # Measuring
    Mutant("spread of the population", "evaluation/measure.py", "by_proxy.std().item()", "by_proxy.std(correction=0).item()", SETS),
    Mutant("NCMI of the means", "evaluation/measure.py", "(by_proxy / gamma).mean()", "(by_proxy.mean() / gamma.mean())", SETS),
    Mutant("class sums not divided", "evaluation/measure.py", ".mean(0) / groups.counts", ".mean(0)", SETS),
    Mutant("temperature ignored", "evaluation/measure.py", "class_sums(features, groups, temperature)", "class_sums(features, groups, 1.0)", SETS),
    Mutant("separation kind ignored", "evaluation/measure.py", "labels, kind=separation,", "labels,", SETS),
    Mutant("first proxy only", "evaluation/measure.py", "for proxy in pool:", "for proxy in pool.proxies[:1] * len(pool):", SETS),
    Mutant("input space ignored in measuring", "evaluation/measure.py", "pool.prepare(batch, found)", "batch", SETS),
    Mutant("features not checked", "evaluation/measure.py", "if not torch.isfinite(features).all():", "if False:", SETS),
    Mutant("one image per class warns", "evaluation/measure.py", "by_proxy = torch", "from ddplug.cmi import cmi; cmi(features, labels)\n    by_proxy = torch", SETS),
    Mutant("one class separated", "evaluation/measure.py", "several = len(groups.classes) > 1", "several = True", SETS),
    # Report
    Mutant("std left out", "evaluation/report.py", " ± {measurement.cmi_std:.6f}", "", SETS),
    Mutant("classes counted, not named", "evaluation/report.py", "for label, value in measurement.per_class.items():", "for label, value in enumerate(measurement.per_class.values()):", SETS),
    Mutant("rows by columns", "evaluation/report.py", "(row column) c h w -> (row h) (column w) c", "(column row) c h w -> (column h) (row w) c", SETS),
    Mutant("picture not in unit space", "evaluation/report.py", "space.to_unit(images.detach().cpu().float())", "images.detach().cpu().float()", SETS),
    Mutant("through pyplot", "evaluation/report.py", "    return Figure(figsize=(width, height))", "    import matplotlib.pyplot as plt\n    return plt.figure(figsize=(width, height))", SETS),
    Mutant("permissions as the writer likes", "utils/files.py", "if mode_of(temporary) != mode:", "if False:", "tests/utils/test_files.py -k permissions"),
    Mutant("permissions of a new file", "utils/files.py", "mode_of(path) if path.is_file() else _new_mode", "_new_mode", "tests/utils/test_files.py -k permissions"),
    Mutant("a pool's folder closed", "proxies/pool_files.py", "temporary.mkdir()", "temporary.mkdir(0o700)", "tests/utils/test_files.py -k permissions"),
    Mutant("an empty folder's permissions lost", "proxies/pool_files.py", "temporary.chmod(mode_of(folder))", "pass", "tests/utils/test_files.py -k permissions"),
    Mutant("home taken literally", "utils/files.py", "return Path(given).expanduser()", "return Path(given)", "tests/utils/test_files.py"),
    Mutant("parts of any file clamped", "datasets/host_files.py", "return _parts(images, labels", "return _parts(images.clamp(0, 1), labels", "tests/datasets/test_hostfiles.py -k hold_others"),
    Mutant("classes of parts not repeated", "datasets/synthetic.py", "given.repeat_interleave(factor**2)", "given", "tests/datasets/test_hostfiles.py -k hold_others"),
    Mutant("a factor that divides nothing", "datasets/host_files.py", "factor < 1 or height % factor or width % factor", "factor < 1", "tests/datasets/test_hostfiles.py -k divide"),
    Mutant("bytes taken for floats", "datasets/splits.py", "if not images.is_floating_point():", "if False:", "tests/datasets/test_own_data.py"),
    Mutant("labels taken from fractions", "datasets/splits.py", "labels.is_floating_point() or", "", "tests/datasets/test_own_data.py"),
    Mutant("NaN images taken", "datasets/splits.py", "if not torch.isfinite(images).all():", "if False:", "tests/datasets/test_own_data.py"),
    Mutant("test images trained on", "datasets/images.py", "images, labels = images[~in_test], labels[~in_test]", "pass", "tests/datasets/test_own_data.py -k tenth"),
    Mutant("the first images are for testing", "datasets/splits.py", "torch.randperm(len(members), generator=generator)", "torch.arange(len(members))", "tests/datasets/test_own_data.py -k first"),
    Mutant("a share drawn where there is none", "evaluation/rounds_figure.py", "if any(shares.values()):", "if True:", "tests/comparison/test_plot.py -k nobody"),
    Mutant("a hidden file stays", "utils/files.py", "temporary.unlink(missing_ok=True)", "pass", SETS),
    # Command line
    Mutant("status 1", "cli/app.py", "        sys.exit(2)", "        sys.exit(1)", f"{COMMANDS} -k 'errors or traceback'"),
    Mutant("errors are tracebacks", "cli/app.py", "except (DDPlugError, OSError) as error:", "except ZeroDivisionError as error:", f"{COMMANDS} -k 'errors or traceback'"),
    Mutant("errors on stdout", "cli/app.py", 'print(f"ddplug: error: {error}", file=sys.stderr)', 'print(f"ddplug: error: {error}")', f"{COMMANDS} -k 'errors or traceback'"),
    Mutant("interruption unsaid", "cli/app.py", "if status == INTERRUPTED:", "if False:", f"{COMMANDS} -k interruption"),
    Mutant("set of other data measured", "cli/app.py", "        if chosen.dataset is not None:", "        if False:", f"{COMMANDS} -k another_data_set"),
    Mutant("demo takes any pool", "cli/app.py", "ProxyPool.load(proxies, dataset=real.name) if proxies", "ProxyPool.load(proxies) if proxies", f"{COMMANDS} -k another_data_set"),
    Mutant("unit ignored", "cli/app.py", "if unit else chosen.space", "if False else chosen.space", f"{COMMANDS} -k plain_intensities"),
    Mutant("split ignored", "cli/app.py", 'if split == "train" else', "if True else", f"{COMMANDS} -k real_data"),
    Mutant("table in place of JSON", "cli/app.py", "    if as_json:", "    if False:", f"{COMMANDS} -k json"),
    Mutant("command lost", "cli/app.py", "@app.command()\ndef measure(", "def measure(", f"{COMMANDS} -k help"),
    # Demo
    Mutant("demo judged at every checkpoint", "comparison/plan.py", "return 0 if self.judge_last and iteration != last else self.runs", "return self.runs", f"{DEMO} -k numbers_of_the_runs"),
    Mutant("demo's pictures not said", "comparison/demo.py", 'return [out / "images.png", out / "cmi.png"]', "return []", f"{DEMO} -k two_pictures"),
    Mutant("judged by the proxies it used", "comparison/demo.py", "pool.proxies[-preset.held_out :]", "pool.proxies[: -preset.held_out]", f"{DEMO} -k 'only_measures or numbers_of_the_runs'"),
    Mutant("demo without a weight", "comparison/demo.py", "if self.arm == BASELINE:", "if False:", f"{COMMANDS} -k errors"),
    Mutant("more checkpoints than iterations", "comparison/demo.py", "checkpoints=max(1, points)", "checkpoints=self.settings.checkpoints", f"{DEMO} -k presets"),
    # CMI around stored centroids
    Mutant("stored: means without logs", "objectives/around.py", "torch.logaddexp(self.logs[rows] + torch.log1p(-part), own + part.log())", "((1 - part) * self.logs[rows].exp() + part * own.exp()).log()", f"{AROUND} -k underflowed"),
    Mutant("stored: moved by what is not finite", "objectives/around.py", "if not torch.isfinite(features).all():", "if False:", f"{AROUND} -k not_finite"),
    Mutant("stored: for ever a mean of all", "objectives/around.py", ".clamp(min=momentum)", "", f"{AROUND} -k momentum"),
    Mutant("stored: another derivative", "objectives/around.py", "p * (log_ratio - kl)", "p * log_ratio", f"{AROUND} -k batchs"),
    Mutant("stored: one table for all proxies", "engine/step.py", "self.objective.of_proxy(proxy.digest()) if self.objective.remembers else self.objective", "self.objective", f"{STORED} -k begin"),
    Mutant("stored: one proxy's for all", "engine/step.py", "self._bound.get((proxy.digest(), device))", "next(iter(self._bound.values()), None)", f"{STORED} -k of_the_batch"),
    Mutant("stored: never moved", "engine/step.py", "        objective.saw(features, groups)\n", "", f"{STORED} -k begin"),
    Mutant("stored: moved by a failed round", "core/before.py", "        keeper.estimator.objective.set_state(self._kept)\n", "", f"{STORED} -k exception"),
    Mutant("stored: not continued", "core/estimator.py", '        self.objective.set_state(state.get("objective", {}))\n', "", f"{STORED} -k continued"),
    Mutant("stored: in a graph", "core/options.py", "if self.graphs and objective.remembers:", "if False:", f"{STORED} -k cannot"),
    Mutant("stored: a sample by the seed", "core/real.py", ".manual_seed(_FIXED)", ".manual_seed(self.generator.initial_seed())", f"{STORED} -k seen_once"),
    # Judging a set
    Mutant("one network for all runs", "evaluation/judging.py", "with seeded(seed):", "with seeded(0):", f"{JUDGING} -k fresh_network"),
    Mutant("one seed for all runs", "evaluation/evaluate.py", "seed=seed + run, on_epoch", "seed=seed, on_epoch", "tests/evaluation/test_evaluate.py -k fresh_network"),
    Mutant("one order for all networks", "evaluation/judging.py", "augment=augment, seed=seed,", "augment=augment, seed=0,", f"{JUDGING} -k fresh_network"),
    Mutant("comparisons draw as evaluate does", "evaluation/judging.py", "self.augment.of_network(seed) if", "self.augment if", f"{JUDGING} -k from_the_network"),
    Mutant("one augmentation for all networks", "evaluation/judging.py", "dsa = DSA(self.strategy, siamese=False, seed=seed)", "dsa = DSA(self.strategy, siamese=False, seed=0)", f"{JUDGING} -k from_the_network"),
    Mutant("a set of other classes judged", "evaluation/judging.py", "        check_fits(images, labels, data)\n", "", f"{JUDGING} -k does_not_fit"),
    Mutant("tested on training images", "evaluation/judging.py", "accuracy(net, data.test_images, data.test_labels)", "accuracy(net, data.train_images, data.train_labels)", f"{JUDGING} -k fresh_network"),
    Mutant("views share one draw", "evaluation/judging.py", "DSA(self.strategy, siamese=False, seed=seed)(images)", "DSA(self.strategy, siamese=True, seed=seed)(images)", "tests/evaluation/test_evaluate.py -k own_numbers"),
    Mutant("views of one seed", "evaluation/judging.py", "DSA(self.strategy, siamese=False, seed=seed)(images)", "DSA(self.strategy, siamese=False, seed=0)(images)", "tests/evaluation/test_evaluate.py -k drawn_from"),
    Mutant("learned rate ignored", "evaluation/evaluate.py", "synthetic.lr if synthetic.lr is not None else STANDARD_LR", "STANDARD_LR", "tests/evaluation/test_evaluate.py -k learned_rate"),
    Mutant("set not converted", "evaluation/evaluate.py", "space.convert(synthetic.images, judge.space)", "synthetic.images", "tests/evaluation/test_evaluate.py -k another_normalisation"),
    Mutant("whitened set judged plain", "evaluation/evaluate.py", "data.to_space(space) if is_whitened(space) else data", "data", "tests/evaluation/test_evaluate.py -k judged_whitened"),
    Mutant("CMI in the wrong space", "evaluation/evaluate.py", "input_space=pool.derived_space(space)", "input_space=judge.space", "tests/evaluation/test_evaluate.py -k own_space"),
    Mutant("unknown space guessed", "evaluation/evaluate.py", "meaning = given or (synthetic.meaning", 'meaning = given or "normalized" or (synthetic.meaning', "tests/evaluation/test_evaluate.py -k has_to_be_known"),
    Mutant("networks not tried first", "evaluation/evaluate.py", "        with seeded(0):\n            fresh()", "        pass", "tests/evaluation/test_evaluate.py -k nothing_is_trained"),
    Mutant("settings not compared", "evaluation/run_store.py", "if differing and any(runs.values()):", "if False:", "tests/evaluation/test_evaluate.py -k refused"),
    Mutant("runs not kept", "evaluation/run_store.py", "if self.path is not None:", "if False:", "tests/evaluation/test_evaluate.py -k interrupted"),
    Mutant("runs of the command not kept", "cli/evaluate.py", "keep=keep", "keep=None", "tests/evaluation/test_evaluate.py -k command"),
    Mutant("runs written late", "evaluation/run_store.py", "            finished._write()", "            pass", "tests/evaluation/test_evaluate.py -k share_a_file"),
    Mutant("no runs bind", "evaluation/run_store.py", "if differing and any(runs.values()):", "if differing:", "tests/evaluation/test_evaluate.py -k binds_nobody"),
    Mutant("an unwritable place found late", "evaluation/run_store.py", "with exclusive_lock(", "with __import__('contextlib').nullcontext(", "tests/evaluation/test_evaluate.py -k 'cannot_be_is_refused or share_a_file'"),
    Mutant("augmentations by address", "networks/training.py", 'if " at 0x" not in said:', "if True:", "tests/evaluation/test_evaluate.py -k named_alike"),
    Mutant("any rate", "evaluation/evaluate.py", 'lr is not None and not 0 < lr < float("inf")', "False", "tests/evaluation/test_evaluate.py -k bad_input"),
    Mutant("export refused late", "cli/evaluate.py", "        check_export(", "        str(", "tests/evaluation/test_evaluate.py -k export_that_cannot"),
    Mutant("runs gone before the export", "cli/evaluate.py", "    if export is not None:\n        for", "    if json_file is None:\n        keep.unlink()\n    if export is not None:\n        for", "tests/evaluation/test_evaluate.py -k outlive"),
    Mutant("export to a file", "evaluation/ddranking.py", "if user_path(folder).exists() and not user_path(folder).is_dir():", "if False:", "tests/evaluation/test_evaluate.py -k cannot_take"),
    Mutant("export not sorted", "evaluation/ddranking.py", "images[order].detach()", "images.detach()", "tests/evaluation/test_evaluate.py -k sorted"),
    Mutant("export in our space", "evaluation/ddranking.py", "space.convert(synthetic.images, _SPACE)", "synthetic.images", "tests/evaluation/test_evaluate.py -k sorted"),
    Mutant("export of probabilities", "evaluation/ddranking.py", "labels.clamp_min(tiny).log() if soft else labels", "labels", "tests/evaluation/test_evaluate.py -k logarithms"),
    # IDC's networks
    Mutant("IDC: epochs as text", "proxies/idc_checkpoints.py", "return int(found[0]) if found else -1", "return 0", "tests/adapters/test_idc.py"),
    Mutant("IDC: norms exchanged", "proxies/idc_checkpoints.py", '("bn1", "residual.1"), ("conv2", "residual.3"), ("bn2", "residual.4")', '("bn1", "residual.4"), ("conv2", "residual.3"), ("bn2", "residual.1")', "tests/adapters/test_idc.py"),
    Mutant('IDC: code in a file of weights', 'utils/reading.py', '"cpu", weights_only=True)', '"cpu", weights_only=False)', "tests/adapters/test_idc.py"),
    Mutant("IDC: grey images not padded", "proxies/idc_checkpoints.py", "size = 28 if channels == 1 else side", "size = side", "tests/adapters/test_idc.py"),
    Mutant("IDC: the folder's data set not looked at", "proxies/idc_checkpoints.py", "next((part for part in reversed(folder.parts) if _space(part)), adapter.setting(args)[1])", "adapter.setting(args)[1]", "tests/adapters/test_idc.py"),
    # Comparisons
    Mutant("arms of other starts", "comparison/own_trainer.py", "trainer = self.trainer(run.seed)", "trainer = self.trainer(run.seed + (not run.arm.baseline))", f"{COMPARE} -k differ_by_cmi"),
    Mutant("resumed without the regulariser", "comparison/own_trainer.py", 'handle.load_state_dict(state["regularizer"])', "pass", f"{COMPARE} -k killed"),
    Mutant("resumed without the trainer", "comparison/own_trainer.py", 'trainer.load_state_dict(state["trainer"])', "pass", f"{COMPARE} -k killed"),
    Mutant("resumed without the notes", "comparison/own_trainer.py", 'return list(state["notes"])', "return []", f"{COMPARE} -k killed"),
    Mutant("resumed without the augmentation", "comparison/dm_trainer.py", 'self.dsa.load_state_dict(state["dsa"])', "pass", f"{COMPARE} -k goes_on"),
    Mutant("resumed without momentum", "comparison/dm_trainer.py", 'self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))', "pass", f"{COMPARE} -k goes_on"),
    Mutant("a look moves the run", "comparison/own_trainer.py", "            trainer.load_state_dict(before)", "            pass", f"{COMPARE} -k looking"),
    Mutant("share of a gradient with CMI in it", "comparison/own_trainer.py", "handle.regularizer.enabled = False", "handle.regularizer.enabled = True", f"{COMPARE} -k two_gradients"),
    Mutant("runs distilled again", "comparison/own_trainer.py", "if (folder / DONE).is_file():", "if False:", f"{COMPARE} -k use_what_is_there"),
    Mutant("judged again", "comparison/judge.py", "record = read_json(path, AGAIN, JUDGEMENT) if path.is_file() else {}", "record = {}", f"{COMPARE} -k use_what_is_there"),
    Mutant("judges of one seed", "comparison/judge.py", "1000 * (seed + 1) + run", "1000 * (seed + 1)", f"{COMPARE} -k own_judges"),
    Mutant("other settings resumed", "comparison/folder.py", "    if found := differing(out, wanted):", "    if False:", f"{COMPARE} -k refused_and_named"),
    Mutant("pools by any other name", "comparison/folder.py", "[proxy.digest() for proxy in pool]", "[]", f"{COMPARE} -k refused_and_named"),
    Mutant("a baseline for each kind of views", "comparison/plan.py", "        for weight in checked\n        if weight != 0\n", "        for weight in checked\n", f"{COMPARE} -k baseline_is_one"),
    Mutant("another baseline taken", "comparison/baseline.py", "    if differing:", "    if False:", f"{BASELINE} -k refused"),
    Mutant("CMI of another comparison", "comparison/baseline.py", 'write_json({"accuracies": accuracies},', 'write_json({"accuracies": accuracies, "cmi": 0.0, "cmi_heldout": 0.0},', f"{BASELINE} -k would_have_been"),
    Mutant("half a run taken for one", "comparison/baseline.py", "not (out / run.name / DONE).is_file()", "not (out / run.name).exists()", f"{BASELINE} -k broken_off"),
    Mutant("the regulariser's options kept from the baseline", "comparison/compare.py", "ignored=REGULARIZERS", "ignored=()", f"{BASELINE} -k would_have_been"),
    Mutant("always from seed 0", "comparison/compare.py", "range(first_seed, first_seed + seeds)", "range(seeds)", f"{BASELINE} -k another_one_on"),
    Mutant("drawn without intervals", "comparison/plot.py", 'row["interval"] or 0.0', "0.0", "tests/comparison/test_plot.py -k intervals"),
    Mutant("CMI drawn under the training pool", "comparison/plot.py", 'row["cmi_heldout_ratio"] or row["cmi_ratio"]', 'row["cmi_ratio"]', "tests/comparison/test_plot.py -k intervals"),
    Mutant("skipped rounds drawn", "comparison/plot.py", 'if not of["skipped"]', "if True", "tests/comparison/test_plot.py -k skipped"),
    Mutant("mixed pictures", "comparison/plot.py", "if len(kinds) > 1:", "if False:", "tests/comparison/test_plot.py -k cannot_be_drawn"),
    Mutant("learned labels are classes", "datasets/host_files.py", "if images % kinds == 0:", "if False:", "tests/datasets/test_hostfiles.py -k learned"),
    Mutant("classes not saved", "datasets/synthetic.py", '"given_classes": synthetic.given_classes.cpu() if synthetic.given_classes is not None else None,', "", "tests/datasets/test_hostfiles.py -k learned"),
    Mutant("a host's folder left relative", "hosting/arguments.py", "str(user_path(option(arguments, name, default)).resolve())", "option(arguments, name, default)", "tests/adapters/test_compare_adapters.py"),
    Mutant("hosts report", "comparison/upstream_host.py", "env={**comparable(self.spec.name).quiet_env, **environment_of_one()},", "", f"{COMPARE_HOST} -k report_nowhere"),
    Mutant("told to report and not done", "comparison/upstream_host.py", "env={**comparable(self.spec.name).quiet_env, **environment_of_one()},", "env={**environment_of_one(), **comparable(self.spec.name).quiet_env},", f"{COMPARE_HOST} -k report_nowhere"),
    Mutant("a host works where we are", "hosting/deterministic.py", 'os.chdir(given["folder"])', "pass", f"{COMPARE_HOST} -k folder_of_its_entry"),
    Mutant("stale judgements kept", "comparison/compare.py", "                stale.unlink()", "                pass", f"{BASELINE} -k given_up"),
    Mutant("tables with us only", "hosting/patched_host.py", "load(self.name, self.patches)", "load(self.name)", f"{TOYS} -k weight_zero"),
    Mutant("any host compared", "hosting/adapter.py", "if not isinstance(made, ComparableHost):", "if False:", f"{TOYS} -k only_integrates"),
    Mutant("a gated step counted", "hosting/layer.py", "            self.regularizer.skip()", "            pass", f"{TOYS} -k left_out"),
    Mutant("real rows regularised", "hosting/layer.py", "chosen = views[first:] if first else views", "chosen = views", f"{TOYS} -k first_steps"),
    Mutant("no patch beside its table", "hosting/checkout.py", "if not patch.is_file():", "if False:", f"{TOYS} -k without_table"),
    Mutant("abbreviations pass", "hosting/arguments.py", "    if short:", "    if False:", "tests/adapters/test_compare_adapters.py"),
    Mutant("any classes taken", "datasets/synthetic.py", "found.dtype == torch.int64 and found.shape == (count,)", "True", "tests/datasets/test_hostfiles.py -k none_are_refused"),
    Mutant("large proxies without a GPU", "proxies/pretrain.py", "if min(data.shape[1:]) > 8 and", "if False and", f"{FILES} -k small_without_a_gpu"),
    Mutant("one seed too many for t", "comparison/statistics.py", "t_quantile(len(values) - 1)", "t_quantile(len(values))", f"{REPORT} -k by_hand"),
    Mutant("differences not in pairs", "comparison/statistics.py", "zip(scores, against, strict=True)]\n    return", "zip(scores, against[::-1], strict=True)]\n    return", f"{REPORT} -k by_hand"),
    Mutant("reaching is being above", "comparison/statistics.py", ">= aim:", "> aim:", f"{REPORT} -k by_hand"),
    Mutant("a term that is not measured", "comparison/judge.py", 'if self.settings.term == "cmi":', "if True:", f"{REPORT} -k another_term"),
    Mutant("a term called CMI", "comparison/statistics.py", 'isinstance(term, Mapping)', "False", f"{REPORT} -k another_term"),
    Mutant("an older record is of another term", "comparison/folder.py", "{name: getattr(Settings, name) for name in ADDED}", "{}", f"{COMPARE} -k an_older_version"),
    Mutant("real images drawn once for all seeds", "comparison/references.py", "else _RANDOM + run.seed", "else _RANDOM", f"{REFERENCES} -k paired_by_seed"),
    Mutant("random is the trainer's start", "comparison/references.py", "else _RANDOM + run.seed", "else run.seed", f"{REFERENCES} -k paired_by_seed"),
    Mutant("one image for two centres", "comparison/references.py", "distances[chosen, centre] = torch.inf", "pass", f"{REFERENCES} -k 'paired_by_seed or nearest'"),
    Mutant("k-means in pixels whatever is said", "comparison/references.py", "if proxy is None:\n        return images", "if True:\n        return images", f"{REFERENCES} -k paired_by_seed"),
    Mutant("references tried late", "comparison/compare.py", "    check_references(references, host, judge.pool)\n", "", f"{REFERENCES} -k refused_first"),
    Mutant("references in the rule", "comparison/compare.py", "hopeless(records, [arm.name for arm in going_on])", "hopeless(records, list(dict.fromkeys(r['arm'] for r in records)))", f"{REFERENCES} -k no_further_seeds"),
    Mutant("every set judged by all architectures", "comparison/judge.py", "for name in self.cross_arch] if last else []", "for name in self.cross_arch]", f"{REFERENCES} -k further_architectures"),
    Mutant("further architectures of the first's width", "comparison/judge.py", "return maker(arch, self.data, {})", "return maker(arch, self.data, self.settings.network)", f"{REFERENCES} -k further_architectures"),
    Mutant("all architectures reported", "comparison/judge.py", "kept = {name: by_arch[name] for name in names}", "kept = by_arch", f"{REFERENCES} -k further_architectures"),
    Mutant("stopped for a wide interval", "comparison/statistics.py", "fmean(gains) + half < 0:", "fmean(gains) < 0:", f"{REFERENCES} -k by_hand"),
    Mutant("the baseline stopped", "comparison/statistics.py", "for arm in arms[1:]:", "for arm in arms:", f"{REFERENCES} -k by_hand"),
    Mutant("stopped and not recorded", "comparison/compare.py", 'result["stopped"] = stopped', "pass", f"{REFERENCES} -k no_further_seeds"),
    Mutant("fewer seeds against all", "comparison/statistics.py", 'against = [baseline[run["seed"]] for run in runs]', "against = list(baseline.values())[-len(runs):]", f"{REFERENCES} -k those_seeds"),
    Mutant("confirmed on the seeds of the sweep", "comparison/tune.py", "first_seed=fresh,", "first_seed=first_seed,", f"{TUNE} -k fresh_seeds"),
    Mutant("a baseline for each variant", "comparison/tune.py", "out / folders[0] if folders else None", "None", f"{TUNE} -k fresh_seeds"),
    Mutant("options that were not swept left out of the lines to paste", "comparison/tune.py", "options = {**choice[\"options\"], **(fixed or {})}", "options = choice[\"options\"]", f"{TUNE} -k what_was_not_swept"),
    Mutant("confirmed where others were", "comparison/tune.py", 'of["seeds"], *(each["end"] for each in noted), 0)', 'of["seeds"], 0)', f"{TUNE} -k nothing_has_seen"),
    Mutant("the same sweep confirmed anew", "comparison/tune.py", 'if each["of"] == of:', "if False:", f"{TUNE} -k nothing_has_seen"),
    Mutant("what was given left out", "comparison/tune.py", '"--proxies", proxies, *given,', '"--proxies", proxies,', f"{TUNE} -k lines_to_paste"),
    Mutant("the worst chosen", "comparison/tune.py", "best = max(sweep", "best = min(sweep", f"{TUNE} -k fresh_seeds"),
    Mutant("a loss confirmed", "comparison/tune.py", 'if best["difference"] > 0 else', "if True else", f"{TUNE} -k nothing_is_better"),
    Mutant("a doubtful gain confirmed", "comparison/tune.py", "if gain - half > 0 else", "if gain > 0 else", f"{TUNE} -k lines_to_paste"),
    Mutant("a page that is not escaped", "comparison/page.py", "autoescape=True", "autoescape=False", f"{REPORT} -k is_escaped"),
    Mutant("a page that needs the network", "comparison/page.html.j2", "<meta charset=utf-8>", '<meta charset=utf-8><link rel=stylesheet href="https://x">', f"{REPORT} -k one_page"),
    Mutant("one clock for all seeds", "hosting/deterministic.py", "random.Random(seed)", "random.Random(0)", f"{COMPARE_HOST} -k clock"),
    Mutant("the host's clock for everybody", "hosting/deterministic.py", "if not sys._getframe(1).f_code.co_filename.startswith(within):", "if False:", f"{COMPARE_HOST} -k clock"),
    Mutant("an orphan works on", "hosting/deterministic.py", "    os._exit(1)", "    return", f"{COMPARE_HOST} -k ends_with"),
    Mutant("a host's run redone", "comparison/upstream_host.py", "if not (folder / RUN).is_dir():", "if True:", f"{COMPARE_HOST} -k killed_after"),
    Mutant("judges not tried first", "comparison/compare.py", "    judge.check()", "    pass", f"{COMPARE_HOST} -k judges_that_cannot_be"),
    Mutant("architectures by their spelling", "comparison/judge.py", "resolve(self.settings.arch)}", "self.settings.arch}", f"{REFERENCES} -k spelt"),
    Mutant("judges' networks not tried", "comparison/judge.py", "            with seeded(0):\n                self._maker(arch)()", "            pass", f"{COMPARE_HOST} -k judges_that_cannot_be"),
    Mutant("judges' augmentation not tried", "comparison/judge.py", "        recipe = self.recipe\n        assert isinstance(recipe.augment, DSAPerNetwork)  # made, and so checked\n", "", f"{COMPARE_HOST} -k judges_that_cannot_be"),
    Mutant("a host's regulariser not tried", "comparison/upstream_host.py", "if not arm.baseline:\n                Regularizer", "if False:\n                Regularizer", f"{COMPARE_HOST} -k fails_before_it"),
    Mutant("judged on other data", "comparison/upstream_host.py", "if setting[1] != judge.data.name:", "if False:", f"{COMPARE_HOST} -k fails_before_it"),
    Mutant("a host's one image per class", "comparison/upstream_host.py", "self.settings.check_arms(arms, adapter.views_per_class(arguments))", "pass", f"{COMPARE_HOST} -k fails_before_it"),
    Mutant("another checkout gone on with", "comparison/upstream_host.py", "bytes.fromhex(file_sha256(path))", 'b""', f"{COMPARE_HOST} -k another_checkout"),
    Mutant("hidden folders are code", "comparison/upstream_host.py", 'if not name.startswith(".")', "", f"{COMPARE_HOST} -k another_checkout"),
    Mutant("no CMI to compare", "comparison/plan.py", "if weighted and ipc == 1 and", "if False and", f"{COMPARE} -k compare_nothing"),
    Mutant("no lambda to compare", "comparison/plan.py", "rounds <= self.option", "rounds < self.option", f"{COMPARE} -k compare_nothing"),
    Mutant("rounds without the first", "comparison/own_trainer.py", "-(-settings.iterations // settings.option(\"every\"))", "settings.iterations // settings.option(\"every\")", f"{COMPARE} -k compare_nothing"),
    Mutant("arms of one name", "comparison/plan.py", "by_name.setdefault(arm.name, arm)", "by_name[repr(arm)] = arm", f"{COMPARE} -k baseline_is_one"),
    Mutant("versions not noted", "comparison/folder.py", '"ddplug": importlib.metadata.version("ddplug"),', '"ddplug": "",', f"{COMPARE} -k another_version"),
    Mutant("unknown is different", "comparison/folder.py", "if key in there or key not in NOTED", "", f"{COMPARE} -k another_version"),
    Mutant("anything may be unknown", "comparison/folder.py", "if key in there or key not in NOTED}", "if key in there}\n    known |= {'settings': there['settings']}", f"{COMPARE} -k another_version"),
    Mutant("two at once", "utils/files.py", "held.acquire()", "pass", "tests/evaluation/test_evaluate.py -k share_a_file"),
    Mutant("no lock on a comparison", "comparison/compare.py", "    with exclusive_lock(out / (f\"{LOCK}_{rank}\" if rank else LOCK), out):", "    if True:", f"{COMPARE} -k one_process"),
    Mutant("the lock stays", "utils/files.py", "lock.unlink(missing_ok=True)", "pass", f"{COMPARE} -k one_process"),
    Mutant("left out and unsaid", "comparison/compare.py", "_others(out, records))", "[])", f"{COMPARE} -k not_in_the_report"),
    Mutant("what is unfinished left out", "comparison/compare.py", 'glob(f"*/{DONE}")', 'glob("*/")', f"{COMPARE} -k not_in_the_report"),
    Mutant("what is left out not printed", "cli/compare.py", "(stopped(result), left_out(result))", "(stopped(result),)", f"{REPORT} -k one_page"),
    Mutant("memory with what stood", "utils/meter.py", "peak - self._stood", "peak", f"{COMPARE} -k on_top"),
    Mutant("memory forgotten", "utils/meter.py", 'record.get("extra_memory")', "None", f"{COMPARE} -k on_top"),
    Mutant("another kind of memory", "comparison/statistics.py", 'time["extra_memory"] for time in last if time.get("extra_memory")', 'time.get("extra_memory", time.get("memory")) for time in last if time.get("extra_memory", time.get("memory"))', f"{COMPARE} -k older_comparisons"),
    Mutant("the judges' recipe unsaid", "comparison/statistics.py", "networks\\n{judging(result)}", "networks", f"{REPORT} -k one_page"),
    Mutant("a failed host passes", "comparison/upstream_host.py", "if status != 0:", "if False:", f"{COMPARE_HOST} -k fails"),
    # Files: checksums, tables of what they may hold, full disks
    Mutant("torch files without a check", "utils/sealing.py", "if last[len(_MARK) :] != ", "if False and last != ", f"{SEALING} -k flipped_bit_of_a_torch"),
    Mutant("cut torch files pass", "utils/sealing.py", "            raise BrokenError(\"its end is missing or damaged\")", "            pass", f"{SEALING} -k 'cut_short or flipped'"),
    Mutant("foreign comments refused", "utils/sealing.py", "if comment is None or _SHA256.fullmatch(", "if comment is None or comment and (", f"{SEALING} -k another_program"),
    Mutant("a copy beside the file", "utils/reading.py", "write_bytes(archive, path)", "write_bytes(bytes(archive), path)", f"{SEALING} -k memory"),
    Mutant("records without a check", "utils/sealing.py", "if content[KEY] != _of_record(bare):", "if False:", f"{SEALING} -k record"),
    Mutant("a checksum loses its name", "utils/sealing.py", "isinstance(value, str) and _SHA256.fullmatch(value)]:", "value is _SHA256]:", f"{SEALING} -k flipped_bit_of_a_record"),
    Mutant("old files not noted", "utils/sealing.py", "if what not in _noted:", "if False:", f"{SEALING} -k noted_once"),
    Mutant("old files noted each time", "utils/sealing.py", "_noted.add(what)", "pass", f"{SEALING} -k noted_once"),
    Mutant("the layout counts", "utils/sealing.py", "sort_keys=True, ", "", f"{SEALING} -k laid_out"),
    Mutant("NaN is a number", "utils/records.py", "            if finite:\n", "            if False:\n", f"{RECORDS} -k allowed"),
    Mutant("true is a number", "utils/records.py", "if isinstance(value, bool) or not isinstance(value, int | float):", "if not isinstance(value, int | float):", f"{RECORDS} -k allowed"),
    Mutant("endless depth", "utils/records.py", "if depth == DEEPEST:", "if False:", f"{RECORDS} -k 'depth or in_a_file'"),
    Mutant("deep JSON", "utils/records.py", "OSError, ValueError, RecursionError) as cause", "OSError, ValueError) as cause", f"{RECORDS} -k in_a_file"),
    Mutant("expanded tensors", "utils/records.py", ".nbytes() + beyond", ".nbytes() + 10**15", f"{RECORDS} -k larger_than"),
    Mutant("a full disk in torch's words", "utils/files.py", "if isinstance(error, FileError) or error.errno not in _NOT_WRITABLE or", "if True or", f"{FILES_TESTS} -k full_disk"),
    Mutant("free space unsaid", "utils/files.py", "if error.errno not in _NO_SPACE:", "if True:", f"{FILES_TESTS} -k 'full_disk or limit'"),
    Mutant("another file's error", "utils/files.py", "return named is None or Path", "return True or Path", f"{FILES_TESTS} -k another_file"),
    Mutant("sets by their name", "utils/reading.py", "    with buffer.getbuffer() as archive:\n        write_bytes(archive, path)", "    torch.save(content, str(path))", f"{FILES_TESTS} -k same_bytes"),
    Mutant("pretraining without a lock", "proxies/pretrain.py", 'with exclusive_lock(folder / (f"{LOCK}_{rank}" if rank else LOCK), folder):', "if True:", f"{FILES} -k two_processes"),
    Mutant("reading takes the lock", "proxies/pretrain.py", "if there is None or not there.complete or wanted.wanted > there.wanted:", "if True:", f"{FILES} -k two_processes"),
    Mutant("the header unchecked", "proxies/pool_header.py", "read_record(path, _header,", "read_record(path, anything,", f"{FILES} -k 'header_that_cannot or wrong_types'"),
    Mutant("matrices unchecked", "proxies/pool_header.py", 'if "space_file" in data and not', 'if False and not', f"{FILES} -k matrices"),
    Mutant("a saved whitening unchecked", "datasets/zca.py", 'if "sha256" in metadata and metadata["sha256"]', 'if False and metadata["sha256"]', "tests/datasets/test_zca.py -k flipped"),
    Mutant("memory before shapes", "networks/fitting.py", "    if differing:", "    if False:", "tests/networks/test_networks.py -k do_not_fit"),
    Mutant("more epochs than there are", "networks/training.py", "if done > epochs:", "if False:", "tests/networks/test_training.py -k cannot_be_is_refused"),
    Mutant("another torch's settings", "networks/training.py", "groups.append({**ours, **both})", "groups.append(saved)", "tests/networks/test_training.py -k another_torch"),
    Mutant("another momentum", "networks/training.py", "if any(ours[name] != value for name, value in both.items() if name != \"lr\"):", "if False:", "tests/networks/test_training.py -k cannot_be_is_refused"),
    Mutant("images of bytes", "datasets/synthetic.py", "or not images.is_floating_point() or", "or", SYNTHETIC),
    Mutant("images that are not finite", "datasets/synthetic.py", "not bool(torch.isfinite(images.float()).all())", "False", SYNTHETIC),
    Mutant("fractional labels", "datasets/synthetic.py", " & (numbers == numbers.round())", "", SYNTHETIC),
    Mutant("a rate of any kind", "datasets/synthetic.py", '"lr": optional(number(1e-30, 1e30)),', "", SYNTHETIC),
    Mutant("a state unchecked", "core/state.py", "    check_record(dict(state), _STATE,", "    0 and check_record(dict(state), _STATE,", "tests/core/test_state.py"),
    Mutant("an interrupted patching stays", "hosting/checkout.py", 'names = [name for name, how in held.items() if how == "patched"]', "names = list(held)", f"{PATCHING} -k killed"),
    Mutant("left beside the files", "hosting/checkout.py", "        clear(repo, self.files)\n", "", f"{PATCHING} -k killed"),
    Mutant("root keeps the files", "hosting/patch.py", "os.chown(temporary, found.st_uid, found.st_gid)", "pass", f"{PATCHING} -k root"),
    Mutant("a patch without a lock", "hosting/checkout.py", "with exclusive_lock(repo / LOCK, repo) if repo.is_dir() else nullcontext():", "with nullcontext():", f"{PATCHING} -k one_process"),
    # Scripts without a patch
    Mutant("real batches regularised", "hosting/view_calls.py", "    return images.requires_grad and torch.is_grad_enabled()", "    return True", f"{ANY} -k refused"),
    Mutant("real rows of a batch regularised", "hosting/mixed.py", "            return _part(node, images) if in_place else _unknown(images)", "            return 0, len(images)", f"{ANY} -k 'bit or rows'"),
    Mutant("rows moved before they are told", "hosting/mixed.py", "in_place = in_place and node.name() in ROW_BY_ROW", "in_place = True", f"{ANY} -k need_a_gradient"),
    Mutant("labels that differ", "hosting/found_labels.py", "            if differing:", "            if False:", f"{ANY} -k refused"),
    Mutant("labels that come to differ", "hosting/found_labels.py", "            if not torch.equal(labels.cpu(), other.cpu()):", "            if False:", f"{ANY} -k refused"),
    Mutant("two places at once", "hosting/view_calls.py", "if self._one and others:", "if False:", f"{ANY} -k refused"),
    Mutant("a script that never fired", "hosting/any_script.py", "    if not at.synthetic:", "    if False:", f"{ANY} -k refused"),
    Mutant("views that nothing reaches", "hosting/any_script.py", "    if not rounds:", "    if False:", f"{ANY} -k refused"),
    Mutant("calls miscounted", "hosting/any_script.py", "if counted and layer.labels.calls % counted:", "if False:", f"{ANY} -k refused"),
    Mutant("the host's variables kept", "hosting/frames.py", "        held.clear()", "        pass", f"{ANY} -k kept_alive"),
    Mutant("the inner step forgotten", "hosting/any_script.py", "        self._calls += 1", "        pass", f"{ANY} -k bit"),
    Mutant("outside other decorators", "hosting/placing.py", "function.decorator_list.append(", "function.decorator_list.insert(0, ", f"{ANY} -k however"),
    Mutant("candidates without a gradient", "hosting/flow.py", 'CUTS = {"detach", ', "CUTS = {", f"{FIND} -k no_gradient"),
    Mutant("backward passes unlooked for", "hosting/finding.py", "            if reaches:", "            if False:", f"{FIND} -k likelier"),
    Mutant("observed without end", "hosting/trying.py", "if self.done >= self.passes:", "if self.done > self.passes:", f"{FIND} -k few_steps"),
    # Packaging
    Mutant("py.typed left out", "../pyproject.toml", "[tool.setuptools.package-data]", '[tool.setuptools.exclude-package-data]\n"ddplug" = ["py.typed"]\n\n[tool.setuptools.package-data]', WHEEL),
    Mutant("adapters left out", "../pyproject.toml", '    "ddplug.adapters",\n', '', WHEEL),
    Mutant("patches left out", "../pyproject.toml", '    "ddplug.patches",\n', '', WHEEL),
    Mutant("version not in the text", "__init__.py", "__version__ = ", "__version__ = str() or ", WHEEL),
    Mutant("torchvision at import", "datasets/images.py", "\nimport torch\n", "\nimport torch\nimport torchvision\n", WHEEL),
    Mutant('kornia at import', "attaching/attach.py", 'import weakref\n', 'import weakref\nimport kornia\n', WHEEL),
    Mutant("log: each round once", "core/history.py", "self._tell_one(entry, self._rounds[told:])", "self._tell_one(entry, self._rounds)", "tests/attaching/test_loggers.py -k each_round_once"),
    Mutant("log: not before the end", "core/history.py", "        if self._readers:\n            self._tell_read()\n", "", "tests/attaching/test_loggers.py -k each_round_once"),
    Mutant("log: a copy writes, too", "core/history.py", 'return {**self.__dict__, "_readers": []}', "return dict(self.__dict__)", "tests/attaching/test_loggers.py -k copies"),
    Mutant("metric: kl is cross-entropy", "evaluation/metrics.py", 'if self.separation == "kl":', "if False:", "tests/evaluation/test_metrics.py -k every_separation"),
    Mutant("doctor: interrupted", "hosting/doctor.py", "if len(held) > 1:", "if False:", "tests/hosting/test_doctor.py -k states"),
    Mutant("card: overwrites people's", "proxies/model_card.py", "if path.exists() and MARKER not in", "if False and MARKER not in", "tests/proxies/test_model_card.py -k grows"),
]  # fmt: skip


SLOW_TO_IMPORT = ("torch", "torchvision", "kornia", "sklearn.cluster", "matplotlib.pyplot", "hypothesis")
"""Others' modules that most tests use: imported once, and there in every process that is forked to run tests."""


def changed(mutant: Mutant, root: Path = ROOT) -> str:
    """The file as the mutant has it; `ValueError` if that changes nothing, or is no Python, as any test would go red."""
    path = root / "ddplug" / mutant.file
    original = path.read_text()
    if mutant.old not in original or mutant.old == mutant.new:
        raise ValueError("its text is not in the code")
    text = original.replace(mutant.old, mutant.new, 1)
    if path.suffix == ".py":
        try:
            ast.parse(text)
        except SyntaxError as error:
            raise ValueError(f"it is no Python: {error}") from error
    return text


def survives(mutant: Mutant, copy: Path) -> str | None:
    """Why the mutant counts as alive, or None if its tests went red."""
    path = copy / "ddplug" / mutant.file
    original = path.read_text()
    try:
        path.write_text(changed(mutant, copy))
    except ValueError as error:
        return str(error)
    try:
        status, output = _tested(mutant.tests, copy)
    finally:
        path.write_text(original)
    return None if status == 1 else f"pytest ended with {status}:\n{output[-800:]}"


def _tested(tests: str, copy: Path) -> tuple[int, str]:
    """How pytest, stopping at the first red test, ends in a process of its own in `copy`, and what it prints."""
    log = copy.parent / "log"
    if (child := os.fork()) == 0:
        status = -1
        with suppress(BaseException), log.open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os.chdir(copy)
            sys.path[0] = os.environ["PYTHONPATH"] = str(copy)  # of this process, and of those that tests start
            status = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *shlex.split(tests)])
            sys.stdout.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), log.read_text(errors="replace")


def main(words: list[str], first: int = 1) -> int:
    """Try the mutants whose names contain one of `words`, from the `first` on; returns how many live."""
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    for name in SLOW_TO_IMPORT:
        importlib.import_module(name)
    alive, left_out = [], 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "ddplug"
        shutil.copytree(
            ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "ddplug-demo", "*.egg-info", "__pycache__")
        )
        for number, mutant in enumerate(chosen[first - 1 :], first):
            if not version("torch").startswith(mutant.torch):
                print(f"{number:3}/{len(chosen)}  left out, needs torch {mutant.torch}: {mutant.name}", flush=True)
                left_out += 1
                continue
            why = survives(mutant, copy)
            print(f"{number:3}/{len(chosen)}  {'red' if why is None else 'ALIVE'}  {mutant.name}", flush=True)
            if why is not None:
                alive.append(mutant.name)
                print(f"      {why}", flush=True)
    tried = len(chosen) - first + 1 - left_out
    print(f"{tried - len(alive)} of {tried} mutants turned their tests red")
    return len(alive)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--first", type=int, default=1)
    given = parser.parse_args()
    sys.exit(1 if main(given.words, given.first) else 0)
