"""Breaks every contract once, on purpose, in a copy of the checkout, and sees its test go red.

    python tests/mutants.py [WORD ...]      # only the mutants whose name contains one of the words

A test that stays green on its mutant cannot fail and is a defect; so is a mutant whose text is no longer in the code.
"""

from __future__ import annotations

import os
import shlex
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
    """What pytest is given: a test file, FILE::NAME, or FILE -k WORD."""


CMI, LAYER, ATTACH = "tests/test_cmi.py", "tests/test_regularizer.py", "tests/test_attach.py"
PROXIES, FILES, SETS = "tests/test_proxies.py", "tests/test_pool_files.py", "tests/test_sets_and_measure.py"
CUT, WATCH = "tests/test_cut_batches.py", "tests/test_watch.py"
ENGINE, STREAMING = "tests/test_engine.py", "tests/test_streaming.py"
COMMANDS, WHEEL = "tests/test_cli.py", "tests/test_packaging.py"

COMPARE, COMPARE_HOST = "tests/test_compare.py", "tests/test_compare_host.py"
BASELINE, REPORT = "tests/test_compare_baseline.py", "tests/test_compare_report.py"

MUTANTS = [
    # The estimator
    Mutant("log base 2", "cmi.py", "kl = (p * log_ratio).sum(-1)", "kl = (p * log_ratio).sum(-1) / 0.6931", CMI),
    Mutant("no shift in log-sum-exp", "cmi.py", '.scatter_reduce_(0, rows, log_p.detach(), "amax")', ".zero_()", CMI),
    Mutant("half precision inside", "cmi.py", "wide = features if features.dtype == torch.float64 else features.float()",
           "wide = features", f"{CMI}::test_finite_for_peaked_features"),
    Mutant("centroid without class size", "cmi.py", " - groups.counts.to(log_p).log()[:, None]", "", CMI),
    Mutant("classes weighted alike", "cmi.py", "temperature).sum() / len(features)",
           "temperature).div(groups.counts).mean()", f"{CMI}::test_equals_the_definition"),
    Mutant("temperature forgotten in the derivative", "cmi.py", "else derivative / temperature", "else derivative", CMI),
    Mutant("KL forgotten in the derivative", "cmi.py", "(log_ratio - kl[:, None])", "log_ratio", CMI),
    Mutant("class sums without the class's size", "cmi.py", "sums + sizes * sizes.log()", "sums", CMI),
    Mutant("second derivative lost", "cmi.py", "if torch.is_grad_enabled():", "if False:", f"{CMI}::test_derivatives"),
    Mutant("may be negative", "cmi.py", "sums.clamp(min=0)", "sums - 1e-6", f"{CMI}::test_bounds"),
    Mutant("wrong pairs", "cmi.py", "n * n - (counts * counts).sum()", "n * n", CMI),
    Mutant("negative labels pass", "cmi.py", "if (labels < 0).any():", "if False:", CMI),
    Mutant("float labels pass", "cmi.py", "labels.is_floating_point() or", "", CMI),
    Mutant("one image per class unsaid", "cmi.py", "if groups.one_image_per_class:", "if False:", CMI),
    # The engine
    Mutant("graphs of other pieces", "gradient.py", "leaf, seen = graphs.pop() if", "leaf, seen = graphs.pop(0) if", ENGINE),
    Mutant("pieces in reverse", "gradient.py", "gradients[::-1]", "gradients", ENGINE),
    Mutant("mean of each piece", "gradient.py", "derivative / len(views)", "derivative / plan.piece", ENGINE),
    Mutant("kept graphs forgotten", "pieces.py", "max(1, int(BUDGET / max(piece * cost.total, 1)))", "1", ENGINE),
    Mutant("all graphs kept", "pieces.py", "return Plan(min(chunk, images), 1)", "return Plan(min(chunk, images), images)", ENGINE),
    Mutant("graph in a cycle", "pieces.py", "return tensor.detach()", "return tensor", ENGINE),
    Mutant("mixtures unseen", "pieces.py", "bool(difference > 0.05", "bool(difference > 1e9", ENGINE),
    Mutant("proxies summed", "gradient.py", "grad / len(proxies)", "grad", ENGINE),
    Mutant("forward in bf16", "precision.py", "return torch.conv2d(inputs, weight, bias, *how)\n\n", "return torch.conv2d(inputs.bfloat16(), weight.bfloat16(), None, *how).float()\n\n", ENGINE),
    Mutant("checkpointed layers too", "precision.py", 'and not getattr(hooks[0], "only_looks", False)', "and False", ENGINE),
    Mutant("closed form in fp32", "gradient.py", "torch.cat(features).double()", "torch.cat(features)", ENGINE),
    Mutant("graphs without end", "graphs.py", "len(self._made | self._wanted) < AT_MOST", "True", ENGINE),
    Mutant("graph believed unseen", "graphs.py", "made.note(proxy, same)", "made.note(proxy, True)", ENGINE),
    Mutant("kinds by their making alone", "proxy.py", "(repr(sorted(spec.items())), repr(self.network), _digest(unsaved))", "repr(sorted(spec.items()))", ENGINE),
    Mutant("no word of detached features", "gradient.py", "if not seen.requires_grad:", "if False:", ENGINE),
    Mutant("backward in fp32", "precision.py", "elif precision == \"auto\" and fast_bf16(device):", "elif False:", ENGINE),
    Mutant("trained layers too", "precision.py", " and not weight.requires_grad", "", ENGINE),
    Mutant("doubles too", "precision.py", "frozen and inputs.dtype == weight.dtype == torch.float32", "frozen", ENGINE),
    Mutant("padding by name", "precision.py", " and not isinstance(how[1], str)", "", ENGINE),
    Mutant("images in bf16", "precision.py", "weight.shape[1] * how[3] <= COLOURS", "False", ENGINE),
    Mutant("stale weights in a slot", "graphs.py", "self._slot.take(proxy)", "pass", ENGINE),
    Mutant("stale views in a graph", "graphs.py", "self._views.copy_(views)", "pass", ENGINE),
    Mutant("stale groups in a graph", "graphs.py", "self._groups.index.copy_(groups.index)", "pass", ENGINE),
    Mutant("a replay's own memory handed out", "graphs.py", "grad.clone()", "grad", ENGINE),
    Mutant("captured without end", "graphs.py", "key not in self._made and", "", ENGINE),
    Mutant('never captured', 'estimator.py', 'self.step.make_wanted()', 'pass', ENGINE),
    Mutant("slot is the proxy", "slots.py", "copy.deepcopy(of.network)", "of.network", ENGINE),
    Mutant("classes go with proxies", "estimator.py", "manual_seed(seed + 0xC1A55E5)", "manual_seed(seed)", ENGINE),
    Mutant("classes unscaled", "estimator.py", "grad * some.factor", "grad", ENGINE),
    Mutant('CMI of classes unscaled', 'estimator.py', 'Estimate(cmi * some.factor,', 'Estimate(cmi,', ENGINE),
    Mutant("class sizes ignored", "estimator.py", "len(present) / self.classes * len(some) / len(labels)", "1.0", ENGINE),
    Mutant('classes in calibration', 'keeper.py', 'all_classes=self.weighting.lam is None', 'all_classes=False', ENGINE),
    Mutant("draws of classes start over", "estimator.py", 'self.class_generator.set_state(state["class_generator"].cpu())', "pass", ENGINE),
    # Streamed pools
    Mutant("everything stays", "streaming.py", "while len(self._here) > self.resident:", "while False:", STREAMING),
    Mutant("nothing ahead", "streaming.py", "self._stream.ask_for(self._number, self._device, together)", "pass", STREAMING),
    Mutant("one network for all", "streaming.py", "functional_call(self.network, self.weights(), (images,), tie_weights=False)", "self.network(images)", STREAMING),
    Mutant("weights in the file's dtype", "streaming.py", "value.to(dtypes[key])", "value", STREAMING),
    Mutant("tied weights", "streaming.py", ", tie_weights=False", "", STREAMING),
    Mutant("relative folder", "poolfiles.py", "folder.resolve() /", "folder /", STREAMING),
    Mutant("fewer at once than asked for", "streaming.py", "self.resident = max(self.resident, together)", "pass", STREAMING),
    Mutant("looking ahead draws", "proxies.py", "generator.clone_state()", "generator", STREAMING),
    Mutant("streamed pool saved as one network", "poolfiles.py", "_save_tensors(proxy.weights()", "_save_tensors(proxy.network.state_dict()", STREAMING),
    # The layer
    Mutant("lambda twice", "keeper.py", "delta * (lam *", "2 * delta * (lam *", f"{LAYER}::test_plain_loss"),
    Mutant("a copy instead of the data", "rounds.py", "return views.detach()", "return views.detach().clone()",
           f"{LAYER}::test_forward_is_the_very_same_data"),
    Mutant("each call its own round", 'keeper.py', 'reached = [found for found in live if found is call or found.reached()]', 'reached = [call]', f"{LAYER}::test_a_call_per_class"),
    Mutant("stale graphs in the round", 'keeper.py', 'if found is call or found.reached()]', ']', f"{LAYER}::test_a_graph_that_is_alive_but_not_walked_is_not_in_the_round"),
    Mutant("counted at every walk", "rounds.py", "self.done = True", "self.done = False",
           f"{LAYER}::test_views_used_twice_and_walked_twice"),
    Mutant("global generator", "estimator.py", "self.generator = torch.Generator().manual_seed(seed)",
           "self.generator = torch.default_generator", LAYER),
    Mutant('weight 0 acts', 'regularizer.py', 'return self.enabled and (self.weight != 0 or self.record)', 'return self.enabled', LAYER),
    Mutant("detach does nothing", "keeper.py", "self.enabled = False", "pass", LAYER),
    Mutant('keeps its calls', 'keeper.py', 'self._pending = [*alive, weakref.ref(call)]', "self._pending = [*alive, weakref.ref(call)]; self.__dict__.setdefault('kept', []).append(call.views)", f"{LAYER}::test_nothing_is_kept_alive_between_rounds"),
    Mutant("reference cycle", "rounds.py", "call.node = weakref.ref(ctx)", "call.node = weakref.ref(ctx); call.cycle = ctx",
           f"{LAYER}::test_nothing_is_kept_alive_between_rounds"),
    Mutant("lazy but not scaled", 'keeper.py', 'factor = self.every * self._scheduled(number)', 'factor = self._scheduled(number)', LAYER),
    Mutant("NaN handed to the host", 'keeper.py', 'extra = torch.where(round_.finite, extra, 0.0)', 'pass', LAYER),
    Mutant('NaN in the calibration', 'weighting.py', '0 < cmi < math.inf and 0 < host < math.inf', 'True', LAYER),
    Mutant('NaN unreported', 'keeper.py', 'if read and self.history.skipped > self.reported:', 'if False:', LAYER),
    Mutant("second derivative silently wrong", 'rounds.py', 'if torch.is_grad_enabled():', 'if torch.is_grad_enabled() and grad.requires_grad:', LAYER),
    Mutant("changes in place unnoticed", "rounds.py", "call.views._version != call.version", "False", LAYER),
    Mutant('share of the square', 'weighting.py', 'self.factor * math.sqrt(self._host / self._cmi)', 'self.factor * (self._host / self._cmi)', LAYER),
    Mutant("never frozen", 'weighting.py', 'if self.lam is None and self._complete == self.rounds:', 'if False:', LAYER),
    Mutant("no schedule", 'keeper.py', 'return float(factor)', 'return 1.0', LAYER),
    Mutant("generator not continued", "estimator.py", 'self.generator.set_state(state["generator"].cpu())', "pass",
           f"{LAYER}::test_state_dict_continues_the_run"),
    Mutant("warns every time", 'watch.py', 'self._warned.add(about)', 'pass', LAYER),
    Mutant("negative weight passes", "weighting.py", "or weight < 0", "", LAYER),
    Mutant("input space ignored", "proxies.py", "return space.convert(images, self.info.space)", "return images", LAYER),
    Mutant("history grows twice", "history.py", "            self._pending.clear()\n\n    @property", "            pass\n\n    @property", LAYER),
    # Attaching
    Mutant("attribute left behind", "hooks.py", "delattr(owner, name)", "pass", ATTACH),
    Mutant("original not put back", "hooks.py", "setattr(owner, name, original)", "pass", ATTACH),
    Mutant("module hooks left behind", "hooks.py", "handle.remove()", "pass", ATTACH),
    Mutant("mark left behind", 'hooks.py', '_HOOKED.discard(module)', 'pass', ATTACH),
    Mutant("attached twice", 'hooks.py', 'if isinstance(replaced, Intercepted) or (isinstance(target, nn.Module) and target in _HOOKED):', 'if False:', ATTACH),
    Mutant("still works after detach", 'hooks.py', 'if not self.active:\n            return self._target', 'if False:\n            return self._target', ATTACH),
    Mutant('never fired, unsaid', 'attach.py', 'self.regularizer.watch.report()', 'pass', ATTACH),
    Mutant('optimizer rows unmasked', 'places.py', 'rows = grad.flatten(1).ne(0).any(1)', 'rows = torch.ones(len(grad), dtype=torch.bool)', ATTACH),
    Mutant("closure accepted", "places.py", "if any(callable(given)", "if False and any(callable(given)", ATTACH),
    Mutant("adapters not asked", "attach.py", "known = registry.find(trainer)", "known = None", ATTACH),
    Mutant("clean views are the host's", "places.py", 'if views == "clean" and given.requires_grad:', "if False:", ATTACH),
    Mutant("a draw for each batch", "sharing.py", "kind in self._served or", "True or", ATTACH),
    Mutant("one draw for ever", "sharing.py", "kind in self._served or partner not in self._served", "False", ATTACH),
    Mutant("views per image ignored", "estimator.py", "for _ in range(self.views_per_image)]", "for _ in range(1)] * self.views_per_image", ATTACH),
    Mutant("views not continued", "estimator.py", 'self.view.load_state_dict(state["view"])', "pass", LAYER),
    Mutant("tuple becomes a tuple only", "places.py", 'if hasattr(result, "_fields")', "if False", ATTACH),
    # What a hostile review found
    Mutant("half precision before lambda", "gradient.py", "wide = views if views.dtype == torch.float64 else views.float()", "wide = views", f"{LAYER} -k half_precision"),
    Mutant("overflow with lambda", "keeper.py", "round_.finite = round_.finite & torch.isfinite(extra).all()", "pass", f"{LAYER} -k overflows"),
    Mutant("the host's autocast in ours", "gradient.py", ", torch.autocast(views.device.type, enabled=False)", "", f"{LAYER} -k autocast"),
    Mutant("the host's autocast in the loss form", 'proxy.py', 'with layers(images.device, precision):', 'if True:', f"{LAYER} -k autocast"),
    Mutant("loss scaling not added", "keeper.py", "lam * round_.factor * scale", "lam * round_.factor", f"{LAYER} -k scaling"),
    Mutant("loss scaling not measured", "keeper.py", "_squared_norm(grad) / scale**2", "_squared_norm(grad)", f"{LAYER} -k scaling"),
    Mutant("half a round kept", "keeper.py", "round_.host = round_.host + _squared_norm(grad) / scale**2", "round_.host = self.__dict__.setdefault('left', 0) + _squared_norm(grad); self.left = round_.host", LAYER),
    Mutant("a failed round is lost", "keeper.py", "if found is call or found.reached()]\n            self._start_round(reached)", "if found.reached()]\n            self._pending = []\n            self._start_round(reached)", f"{LAYER} -k tried_again"),
    Mutant("walked again in silence", "keeper.py", "if call.acted:", "if False:", f"{LAYER} -k walked_twice"),
    Mutant("schedules unchecked", "keeper.py", "and math.isfinite(factor) and factor >= 0", "", f"{LAYER} -k schedule"),
    Mutant('skips reported twice', 'regularizer.py', '        self._keeper.reported = self.history.skipped\n', '        pass\n', f"{LAYER} -k reported_again"),
    Mutant("proxies may draw", "proxies.py", "if not torch.equal(before, _random_state(image.device)):", "if False:", f"{LAYER} -k hosts_generator"),
    Mutant("copies stay attached", "hooks.py", "return _itself, (self._target,)", "raise copy.Error", f"{ATTACH} -k copy"),
    Mutant("copied hooks act", "hooks.py", "if module is self._module() else None", "", f"{ATTACH} -k copy"),
    Mutant("slots not restored", "hooks.py", "setattr(owner, name, target)  # a slot", "pass  # a slot", f"{ATTACH} -k slots"),
    Mutant("installed at weight 0", "attach.py", "_nothing_to_undo if idle else install(regularizer)", "install(regularizer)", f"{ATTACH} -k zero"),
    Mutant('maximised', 'places.py', '-1.0 if _maximizes(optimizer, leaves[0]) else 1.0', '1.0', f"{ATTACH} -k maximising"),
    Mutant("fused optimizers unscaled", "places.py", "1.0 if scale is None else float(scale)", "1.0", f"{ATTACH} -k unscales"),
    Mutant("data not compared", "attach.py", "_check_data(regularizer.pool, real)", "pass", f"{ATTACH} -k other_data"),
    Mutant('space of the data ignored', 'attach.py', 'regularizer.input_space = regularizer.pool.derived_space(real.space)', 'pass', f"{ATTACH} -k other_data"),
    Mutant('attached though announcing failed', 'attach.py', '        handle.detach()\n        raise', '        raise', f"{ATTACH} -k mean_nothing"),
    # Batches that are cut, and what is said
    Mutant("the host's gradient held back", "keeper.py", "torch.autograd.backward(call.source, grad, retain_graph=True)", "pass", CUT),
    Mutant("CMI of a round of passes lost", "keeper.py", "torch.autograd.backward(*zip(*reached, strict=True))", "pass", CUT),
    Mutant("part of a set as a whole", "keeper.py", "part = 1.0 if self.set_size is None else len(views) / self.set_size", "part = 1.0", CUT),
    Mutant("part of a set unmeasured", "keeper.py", "float(round_.own) * round_.part**2", "float(round_.own)", CUT),
    Mutant("a step within a round", "keeper.py", "if any(id(leaf) in held for leaf in leaves(waiting)):", "if False:", CUT),
    Mutant("rounds within rounds", "keeper.py", "        if self._collected is not None:\n            raise", "        if False:\n            raise", CUT),
    Mutant("one pass fewer", "rounds.py", "len(self._seen) == self.passes and all", "len(self._seen) == self.passes - 1 and all", CUT),
    Mutant("a pass not waited for", "rounds.py", "and all(other.arrived is not None for other in self._last)", "", CUT),
    Mutant("a skipped pass kept", "keeper.py", "waiting += self._collected.waiting()", "pass", CUT),
    Mutant("create_graph in a round", "rounds.py", "if ctx.call.source is not None and torch.is_grad_enabled():", "if False:", CUT),
    Mutant("threads unlocked", "keeper.py", "self._lock = threading.RLock()", "from contextlib import nullcontext; self._lock = nullcontext()", f"{CUT} -k threads"),
    Mutant("lost graphs unsaid", "watch.py", "if self._lost >= LOST and not self.rounds:", "if False:", WATCH),
    Mutant("idle views unsaid", "watch.py", "if self._untouched == UNTOUCHED and", "if False and", WATCH),
    Mutant("idle steps unsaid", "watch.py", "if self._steps == STEPS and not self.rounds:", "if False:", WATCH),
    Mutant("anybody's steps", "attach.py", "and _holds(owner, optimizer, parameters)", "", WATCH),
    Mutant("nothing at the end", "watch.py", "@atexit.register\n", "", WATCH),
    Mutant("classes cut unsaid", "watch.py", "if len(self._single) > 1 and absolute:", "if False:", WATCH),
    Mutant("a share is cut, too", "watch.py", "if len(self._single) > 1 and absolute:", "if len(self._single) > 1:", WATCH),
    Mutant("passes cut unsaid", "watch.py", "if self._cut >= 2:", "if False:", WATCH),
    Mutant("steps unseen", "watch.py", "leaf._version == version and", "", WATCH),
    Mutant("cleared gradients unseen", "watch.py", "and bool(leaf.grad.any())", "", WATCH),
    Mutant("scaler unsaid", "watch.py", "                if factor != 1:", "                if False:", WATCH),
    Mutant("scaler not found", "attach.py", 'options = {"scale": held.get_scale, **options}', "pass", WATCH),
    Mutant("space ignored", "proxies.py", "if own is None and not self.pending:", "if False:", WATCH),
    Mutant("range not looked at", "proxies.py", "        if not wrong:\n", "        if True:\n", WATCH),
    Mutant("classes not looked at", "proxies.py", "if names is not None and len(labels) and", "if False and", WATCH),
    Mutant("outputs not looked at", "proxies.py", "if not known or int(labels.max()) < max(known):", "if True:", WATCH),
    Mutant("accuracy not looked at", "proxies.py", "if accuracy < least:", "if False:", WATCH),
    Mutant("floor without chance", "proxies.py", "least = 1 / classes + FLOOR * (1 - 1 / classes)", "least = FLOOR", WATCH),
    Mutant("bf16 not compared", "gradient.py", "if cosine < FAITHFUL:", "if False:", WATCH),
    Mutant("bf16 compared each time", "gradient.py", "self._compared.add(proxy.network)", "pass", WATCH),
    Mutant("options of a state ignored", "regularizer.py", "for key in own if given.get(key) != own[key]", "for key in own if False", WATCH),
    Mutant("pool of a state ignored", "regularizer.py", "if expected is not None and expected != self.pool.digest():", "if False:", WATCH),
    Mutant("pool of a state forgotten", "regularizer.py", 'self._expected_pool = state.get("pool")', "pass", WATCH),
    Mutant("record adds", "keeper.py", "if self.weight == 0:\n            found = self.estimator.value", "if False:\n            found = self.estimator.value", WATCH),
    Mutant("share without lambda", "keeper.py", ".sqrt() * applied if", ".sqrt() if", WATCH),
    Mutant("off asks for the pool", "regularizer.py", "off = weight == 0 and not record", "off = False", WATCH),
    Mutant("labels from nowhere", "labelling.py", "These labels are {source}.", "", ATTACH),
    Mutant("one class for ever", "labelling.py", "self.calls += 1", "self.calls = 1", ATTACH),
    Mutant("loss for augmentation", "places.py", "if name in LOSSES and problems:", "if False:", ATTACH),
    Mutant("compiled arguments unseen", "hooks.py", "    function = original(function)\n", "", ATTACH),
    Mutant("wrapped optimizers", "attach.py", "    trainer = original(trainer)\n", "", ATTACH),
    Mutant("first tensor only", "places.py", "every = torch.cat([leaf.detach() for leaf in leaves])", "every = leaves[0].detach()", ATTACH),
    Mutant("tensors have names", "attach.py", "and (data is None or isinstance(data, ImageData | str))", "", ATTACH),
    # Proxies
    Mutant("features and logits swapped", "proxy.py", 'if representation == "logit":', 'if representation != "logit":', PROXIES),
    Mutant("first linear layer is the head", "proxy.py", "return found[-1]", "return found[0]", PROXIES),
    Mutant("head not verified", "proxy.py", "not (self._named_by_user or _same(output, seen[-1][-1]))", "False", PROXIES),
    Mutant("named head verified too", "proxy.py", "not (self._named_by_user or _same(output, seen[-1][-1]))", "not _same(output, seen[-1][-1])", PROXIES),
    Mutant("hook stays after an exception", "proxy.py", "        finally:\n            hook.remove()\n", "        hook.remove()\n", PROXIES),
    Mutant("hook stays", "proxy.py", "            hook.remove()", "            pass", PROXIES),
    Mutant('out of memory renamed', 'proxy.py', 'except (torch.OutOfMemoryError, DDPlugError):', 'except (MemoryError, DDPlugError):', PROXIES),
    Mutant("candidates not named", "proxy.py", "candidates: {', '.join(_candidates(self.network)) or 'none'}", "", PROXIES),
    Mutant("layers not named", "proxy.py", "linear layers: {', '.join(_candidates(network)) or 'none'}", "", PROXIES),
    Mutant("no copy of the user's module", "proxies.py", "copy.deepcopy(m)", "m", PROXIES),
    Mutant("a shallow copy", "proxies.py", "copy.deepcopy(m)", "copy.copy(m)", PROXIES),
    Mutant("train mode kept", "proxy.py", "self.network.eval().requires_grad_(False)", "self.network.requires_grad_(False)", PROXIES),
    Mutant("not frozen", "proxy.py", "self.network.eval().requires_grad_(False)", "self.network.eval()", PROXIES),
    Mutant("NaN weights pass", "proxy.py", "        if broken:", "        if False:", PROXIES),
    Mutant("buffers not looked at", "proxy.py", "in self.network.state_dict().items() if", "in self.network.named_parameters() if", PROXIES),
    Mutant("images not cast", "proxy.py", "self._read(images.to(self.dtype), representation)", "self._read(images, representation)", PROXIES),
    Mutant("rows not counted", "proxy.py", "if len(features) != len(images):", "if False:", PROXIES),
    Mutant("recorded shape not checked", "proxies.py", "tuple(images.shape[1:]) != self.info.shape", "False", PROXIES),
    Mutant("channels of the space not checked", "proxies.py", "space.channels != images.shape[1]", "False", PROXIES),
    Mutant("spaces not converted", "proxies.py", "return space.convert(images, self.info.space)", "return images", PROXIES),
    Mutant("converted the wrong way", "proxies.py", "space.convert(images, self.info.space)", "self.info.space.convert(images, space)", PROXIES),
    Mutant("channels of two spaces not compared", "spaces.py", "if self.channels != to.channels:", "if False:", PROXIES),
    Mutant("mean forgotten", "spaces.py", "(images - _per_channel(self.mean, images)) /", "images /", PROXIES),
    Mutant("global draw", "proxies.py", "torch.randperm(len(self), generator=generator)", "torch.randperm(len(self))", PROXIES),
    Mutant("drawn twice", "proxies.py", "torch.randperm(len(self), generator=generator)[:count]", "torch.randint(len(self), (count,), generator=generator)", PROXIES),
    Mutant("last proxy never drawn", "proxies.py", "torch.randperm(len(self), generator=generator)[:count]", "torch.randperm(len(self) - 1, generator=generator)[:count]", PROXIES),
    Mutant("draw not bounded", "proxies.py", "not 1 <= count <= len(self)", "False", PROXIES),
    Mutant("of copies a pool", "proxies.py", "        if isinstance(proxies, cls):\n            return proxies", "        if isinstance(proxies, cls):\n            return copy.copy(proxies)", PROXIES),
    Mutant("of without folders", "proxies.py", "isinstance(proxies, str | Path)", "isinstance(proxies, Path)", PROXIES),
    Mutant("of without lists", "proxies.py", "isinstance(proxies, Sequence)", "isinstance(proxies, tuple)", PROXIES),
    # Pool files
    Mutant("checksum not checked", "poolfiles.py", ' or _sha256(path) != record["sha256"]', "", FILES),
    Mutant("files outside the pool", "poolfiles.py", "path.parent != folder or not path.is_file()", "not path.is_file()", FILES),
    Mutant("newer version read", "poolfiles.py", ' or record["version"] > VERSION', "", FILES),
    Mutant("data set not compared", "poolfiles.py", "dataset is not None and header.info.dataset != dataset", "False", FILES),
    Mutant("unfinished pools load", "poolfiles.py", "not (header.complete or partial)", "False", FILES),
    Mutant("partial ignored", "poolfiles.py", "not (header.complete or partial)", "not header.complete", FILES),
    Mutant("builders ignored", "poolfiles.py", "(builders or {}).get(architecture)", "None", FILES),
    Mutant("loading draws globally", "poolfiles.py", "with seeded(0):", "if True:", FILES),
    Mutant("saved over", "poolfiles.py", "if folder.exists() and (not", "if False and (not", FILES),
    Mutant("failed save stays", "poolfiles.py", "shutil.rmtree(temporary, ignore_errors=True)", "pass", FILES),
    Mutant("records lost", "poolfiles.py", '"record": proxy.record,', '"record": {},', FILES),
    Mutant("space lost", "poolfiles.py", "info.space.to_json() if info.space is not None else None", "None", FILES),
    Mutant("tied weights refused", "poolfiles.py", ".contiguous().clone()", ".contiguous()", f"{FILES} -k twice"),
    # Pretraining
    Mutant("no checkpoints", "pretrain.py", 'checkpoint=folder / f".proxy_{index:03d}.checkpoint"', "checkpoint=None", f"{FILES}::test_a_killed_pretraining_ends_with_the_same_weights"),
    Mutant("one seed for all", "pretrain.py", "precision=precision, seed=seed + index,", "precision=precision, seed=seed,", f"{FILES} -k each_network"),
    Mutant("initial weights unseeded", "pretrain.py", "            with seeded(seed + index):\n", "            if True:\n", f"{FILES} -k pretrain"),
    Mutant("seed recorded wrong", "pretrain.py", '{"seed": seed + index, "epochs"', '{"seed": seed, "epochs"', f"{FILES} -k records_what"),
    Mutant("accuracy of the training images", "pretrain.py", "accuracy(network, data.test_images, data.test_labels)", "accuracy(network, data.train_images, data.train_labels)", f"{FILES} -k records_what"),
    Mutant("generator not resumed", "training.py", 'generator.set_state(state["generator"])', "pass", f"{FILES} -k killed"),
    Mutant("optimizer not resumed", "training.py", 'optimizer.load_state_dict(state["optimizer"])', "pass", f"{FILES} -k killed"),
    Mutant("other recipes continue", "pretrain.py", "or found.recipe != wanted.recipe", "", f"{FILES} -k recipe"),
    Mutant("other data continue", "pretrain.py", "found.info != wanted.info or", "", f"{FILES} -k other_data"),
    Mutant("count not extended", 'pretrain.py', 'if wanted.wanted != found.wanted and (wanted.wanted > found.wanted or not found.complete):', 'if False:', f"{FILES} -k larger_count"),
    Mutant("foreign folder taken", "pretrain.py", "if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):", "if False:", f"{FILES} -k something_else"),
    Mutant("cache variable ignored", "pretrain.py", 'os.environ.get("DDPLUG_CACHE") or', "", f"{FILES} -k named_cache"),
    Mutant("default pool by name only", "pretrain.py", "{data.name}-{data.fingerprint()}-", "{data.name}-", f"{FILES} -k default_pool"),
    # Sets
    Mutant("pickles run", "hostfiles.py", "weights_only=True)\n    except", "weights_only=False)\n    except", SETS),
    Mutant("DM's first run", "sets.py", "record = record[-1]", "record = record[0]", SETS),
    Mutant("lengths not compared", "sets.py", "if len(images) != len(labels):", "if False:", SETS),
    Mutant("dtype kept", "sets.py", "images = images.float()", "pass", SETS),
    Mutant("NumPy's numbers not read", "hostfiles.py", "*((scalar, name) for name in names), ", "", "tests/test_hostfiles.py -k numpy"),
    Mutant("logits taken for probabilities", "hostfiles.py", "labels = labels.detach().float().softmax(1)", "pass", "tests/test_hostfiles.py -k logits"),
    Mutant("another iteration's labels", "hostfiles.py", 'f"labels_{name}"', '"labels_100.pt"', "tests/test_hostfiles.py -k beside"),
    Mutant("whitening not noticed", "hostfiles.py", 'any(path.parent.glob(f"{_IMAGES}zca_*.pt"))', "False", "tests/test_hostfiles.py -k pictures"),
    Mutant("formed images: columns first", "hostfiles.py", "(n i j) c h w", "(n j i) c h w", "tests/test_hostfiles.py -k quarter"),
    Mutant("formed images: labels tiled", "hostfiles.py", "labels.repeat_interleave(factor**2, dim=0)", "torch.cat([labels] * factor**2)", "tests/test_hostfiles.py -k quarter"),
    Mutant("formed images: padded black", "hostfiles.py", "value=0.5", "value=0.0", "tests/test_hostfiles.py -k lacks"),
    Mutant("formed images: not clamped", "hostfiles.py", "images = images.clamp(0, 1)", "pass", "tests/test_hostfiles.py -k has_to_be_given"),
    Mutant("the host's factor not read", "hostfiles.py", 'int(record["factor"])', "1", "tests/test_hostfiles.py -k hosts_arguments"),
    Mutant("set's space lost", "sets.py", '"space": synthetic.space.to_json() if synthetic.space else None', '"space": None', SETS),
    # Measuring
    Mutant("spread of the population", "measure.py", "by_proxy.std().item()", "by_proxy.std(correction=0).item()", SETS),
    Mutant("NCMI of the means", "measure.py", "(by_proxy / gamma).mean()", "(by_proxy.mean() / gamma.mean())", SETS),
    Mutant("class sums not divided", "measure.py", ".mean(0) / groups.counts", ".mean(0)", SETS),
    Mutant("temperature ignored", "measure.py", "class_sums(features, groups, temperature)", "class_sums(features, groups, 1.0)", SETS),
    Mutant("separation kind ignored", "measure.py", "labels, kind=separation,", "labels,", SETS),
    Mutant("first proxy only", "measure.py", "for proxy in pool:", "for proxy in pool.proxies[:1] * len(pool):", SETS),
    Mutant("input space ignored", "measure.py", "pool.prepare(batch, found)", "batch", SETS),
    Mutant("features not checked", "measure.py", "if not torch.isfinite(features).all():", "if False:", SETS),
    Mutant("one image per class warns", "measure.py", "by_proxy = torch", "from ddplug.cmi import cmi; cmi(features, labels)\n    by_proxy = torch", SETS),
    Mutant("one class separated", "measure.py", "several = len(groups.classes) > 1", "several = True", SETS),
    # Report
    Mutant("std left out", "report.py", " ± {measurement.cmi_std:.6f}", "", SETS),
    Mutant("classes counted, not named", "report.py", "for label, value in measurement.per_class.items():", "for label, value in enumerate(measurement.per_class.values()):", SETS),
    Mutant("rows by columns", "report.py", "(row column) c h w -> (row h) (column w) c", "(column row) c h w -> (column h) (row w) c", SETS),
    Mutant("picture not in unit space", "report.py", "space.to_unit(images.detach().cpu().float())", "images.detach().cpu().float()", SETS),
    Mutant("through pyplot", "report.py", "    return Figure(figsize=(width, height))", "    import matplotlib.pyplot as plt\n    return plt.figure(figsize=(width, height))", SETS),
    Mutant("permissions as the writer likes", "files.py", "if mode_of(temporary) != mode:", "if False:", "tests/test_files.py -k permissions"),
    Mutant("permissions of a new file", "files.py", "mode_of(path) if path.is_file() else _new_mode", "_new_mode", "tests/test_files.py -k permissions"),
    Mutant("a pool's folder closed", "poolfiles.py", "temporary.mkdir()", "temporary.mkdir(0o700)", "tests/test_files.py -k permissions"),
    Mutant("an empty folder's permissions lost", "poolfiles.py", "temporary.chmod(mode_of(folder))", "pass", "tests/test_files.py -k permissions"),
    Mutant("home taken literally", "files.py", "return Path(given).expanduser()", "return Path(given)", "tests/test_files.py"),
    Mutant("parts of any file clamped", "hostfiles.py", "return _parts(images, labels", "return _parts(images.clamp(0, 1), labels", "tests/test_hostfiles.py -k hold_others"),
    Mutant("classes of parts not repeated", "sets.py", "given.repeat_interleave(factor**2)", "given", "tests/test_hostfiles.py -k hold_others"),
    Mutant("a factor that divides nothing", "hostfiles.py", "factor < 1 or height % factor or width % factor", "factor < 1", "tests/test_hostfiles.py -k divide"),
    Mutant("bytes taken for floats", "splits.py", "if not images.is_floating_point():", "if False:", "tests/test_own_data.py"),
    Mutant("labels taken from fractions", "splits.py", "labels.is_floating_point() or", "", "tests/test_own_data.py"),
    Mutant("NaN images taken", "splits.py", "if not torch.isfinite(images).all():", "if False:", "tests/test_own_data.py"),
    Mutant("test images trained on", "datasets.py", "images, labels = images[~in_test], labels[~in_test]", "pass", "tests/test_own_data.py -k tenth"),
    Mutant("the first images are for testing", "splits.py", "torch.randperm(len(members), generator=generator)", "torch.arange(len(members))", "tests/test_own_data.py -k first"),
    Mutant("a share drawn where there is none", "plot.py", "if any(shares.values()):", "if True:", "tests/test_plot.py -k nobody"),
    Mutant("a hidden file stays", "files.py", "temporary.unlink(missing_ok=True)", "pass", SETS),
    # Command line
    Mutant("status 1", "cli.py", "        sys.exit(2)", "        sys.exit(1)", f"{COMMANDS} -k 'errors or traceback'"),
    Mutant("errors are tracebacks", "cli.py", "except (DDPlugError, OSError) as error:", "except ZeroDivisionError as error:", f"{COMMANDS} -k 'errors or traceback'"),
    Mutant("errors on stdout", "cli.py", 'print(f"ddplug: error: {error}", file=sys.stderr)', 'print(f"ddplug: error: {error}")', f"{COMMANDS} -k 'errors or traceback'"),
    Mutant("interruption unsaid", "cli.py", "if status == INTERRUPTED:", "if False:", f"{COMMANDS} -k interruption"),
    Mutant("set of other data measured", "cli.py", "chosen.dataset is not None and pool.info.dataset not in (None, chosen.dataset)", "False", f"{COMMANDS} -k another_data_set"),
    Mutant("demo takes any pool", "cli.py", "ProxyPool.load(proxies, dataset=real.name) if proxies", "ProxyPool.load(proxies) if proxies", f"{COMMANDS} -k another_data_set"),
    Mutant("unit ignored", "cli.py", "if unit else chosen.space", "if False else chosen.space", f"{COMMANDS} -k plain_intensities"),
    Mutant("split ignored", "cli.py", 'if split == "train" else', "if True else", f"{COMMANDS} -k real_data"),
    Mutant("table in place of JSON", "cli.py", "    if as_json:", "    if False:", f"{COMMANDS} -k json"),
    Mutant("command lost", "cli.py", "@app.command()\ndef measure(", "def measure(", f"{COMMANDS} -k help"),
    # Demo
    Mutant("finished runs redone", "demo.py", "            if run is None:", "            if True:", f"{COMMANDS} -k 'second_demo or interrupted'"),
    Mutant("stale runs reused", "demo.py", 'if record["made_with"] == json.loads(json.dumps(made_with)) else None', "", f"{COMMANDS} -k other_settings"),
    Mutant("runs not kept", "demo.py", 'folder / f"{name}.json")', 'folder / f"{name}.json.gone")', f"{COMMANDS} -k demo"),
    Mutant("weight in both arms", "demo.py", "settings.weight if arm == WITH else 0.0", "settings.weight", f"{COMMANDS} -k weight"),
    Mutant("weight in no arm", "demo.py", "settings.weight if arm == WITH else 0.0", "0.0", f"{COMMANDS} -k weight"),
    Mutant("arms from other seeds", "demo.py", '"width": settings.width}, seed=seed, device=device,', '"width": settings.width}, seed=seed + (arm == WITH), device=device,', f"{COMMANDS} -k weight"),
    Mutant("difference the other way", "demo.py", "(fmean(b.accuracies) - fmean(a.accuracies))", "(fmean(a.accuracies) - fmean(b.accuracies))", f"{COMMANDS} -k numbers_of_its_runs"),
    Mutant("judged by the proxies it used", "demo.py", "pool.proxies[-settings.held_out :]", "pool.proxies[: -settings.held_out]", f"{COMMANDS} -k numbers_of_its_runs"),
    Mutant("pools known by their records only", "demo.py", "proxy.digest() for proxy in pool", "proxy.record for proxy in pool", f"{COMMANDS} -k another_pool"),
    # Judging a set
    Mutant("one network for all runs", "evaluate.py", "with seeded(seed + run):", "with seeded(seed):", "tests/test_evaluate.py -k fresh_network"),
    Mutant("one order for all runs", "evaluate.py", "seed=seed + run, on_epoch", "seed=seed, on_epoch", "tests/test_evaluate.py -k fresh_network"),
    Mutant("tested on training images", "evaluate.py", "judge.test_images.to(device), judge.test_labels.to(device)", "judge.train_images.to(device), judge.train_labels.to(device)", "tests/test_evaluate.py -k fresh_network"),
    Mutant("views share one draw", "evaluate.py", "siamese=False, seed=seed", "siamese=True, seed=seed", "tests/test_evaluate.py -k own_numbers"),
    Mutant("views of one seed", "evaluate.py", "siamese=False, seed=seed", "siamese=False, seed=0", "tests/test_evaluate.py -k drawn_from"),
    Mutant("learned rate ignored", "evaluate.py", "synthetic.lr if synthetic.lr is not None else FIELDS_LR", "FIELDS_LR", "tests/test_evaluate.py -k learned_rate"),
    Mutant("set not converted", "evaluate.py", "space.convert(synthetic.images, judge.space)", "synthetic.images", "tests/test_evaluate.py -k another_normalisation"),
    Mutant("whitened set judged plain", "evaluate.py", "data.to_space(space) if is_whitened(space) else data", "data", "tests/test_evaluate.py -k judged_whitened"),
    Mutant("CMI in the wrong space", "evaluate.py", "input_space=pool.derived_space(space)", "input_space=judge.space", "tests/test_evaluate.py -k own_space"),
    Mutant("unknown space guessed", "evaluate.py", "meaning = given or (synthetic.meaning", 'meaning = given or "normalized" or (synthetic.meaning', "tests/test_evaluate.py -k has_to_be_known"),
    Mutant("networks not tried first", "evaluate.py", "        with seeded(0):\n            maker()", "        pass", "tests/test_evaluate.py -k nothing_is_trained"),
    Mutant("settings not compared", "finished.py", "if differing and any(runs.values()):", "if False:", "tests/test_evaluate.py -k refused"),
    Mutant("runs not kept", "finished.py", "if self.path is not None:", "if False:", "tests/test_evaluate.py -k interrupted"),
    Mutant("runs of the command not kept", "cli_evidence.py", "keep=keep", "keep=None", "tests/test_evaluate.py -k command"),
    Mutant("runs written late", "finished.py", "            finished._write()", "            pass", "tests/test_evaluate.py -k share_a_file"),
    Mutant("no runs bind", "finished.py", "if differing and any(runs.values()):", "if differing:", "tests/test_evaluate.py -k binds_nobody"),
    Mutant("an unwritable place found late", "finished.py", "with alone(", "with __import__('contextlib').nullcontext(", "tests/test_evaluate.py -k 'cannot_be_is_refused or share_a_file'"),
    Mutant("augmentations by address", "evaluate.py", 'if " at 0x" not in said:', "if True:", "tests/test_evaluate.py -k named_alike"),
    Mutant("any rate", "evaluate.py", 'lr is not None and not 0 < lr < float("inf")', "False", "tests/test_evaluate.py -k bad_input"),
    Mutant("export refused late", "cli_evidence.py", "        check_export(", "        str(", "tests/test_evaluate.py -k export_that_cannot"),
    Mutant("runs gone before the export", "cli_evidence.py", "    if export is not None:\n        for", "    if json_file is None:\n        keep.unlink()\n    if export is not None:\n        for", "tests/test_evaluate.py -k outlive"),
    Mutant("export to a file", "export.py", "if user_path(folder).exists() and not user_path(folder).is_dir():", "if False:", "tests/test_evaluate.py -k cannot_take"),
    Mutant("export not sorted", "export.py", "images[order].detach()", "images.detach()", "tests/test_evaluate.py -k sorted"),
    Mutant("export in our space", "export.py", "space.convert(synthetic.images, _SPACE)", "synthetic.images", "tests/test_evaluate.py -k sorted"),
    Mutant("export of probabilities", "export.py", "labels.clamp_min(tiny).log() if soft else labels", "labels", "tests/test_evaluate.py -k logarithms"),
    # IDC's networks
    Mutant("IDC: epochs as text", "idcpools.py", "return int(found[0]) if found else -1", "return 0", "tests/test_idc.py"),
    Mutant("IDC: norms exchanged", "idcpools.py", '("bn1", "residual.1"), ("conv2", "residual.3"), ("bn2", "residual.4")', '("bn1", "residual.4"), ("conv2", "residual.3"), ("bn2", "residual.1")', "tests/test_idc.py"),
    Mutant("IDC: code in a file of weights", "idcpools.py", "weights_only=True)", "weights_only=False)", "tests/test_idc.py"),
    Mutant("IDC: grey images not padded", "idcpools.py", "size = 28 if channels == 1 else side", "size = side", "tests/test_idc.py"),
    Mutant("IDC: the folder's data set not looked at", "idcpools.py", "next((part for part in reversed(folder.parts) if _space(part)), adapter.setting(args)[1])", "adapter.setting(args)[1]", "tests/test_idc.py"),
    # Comparisons
    Mutant("arms of other starts", "compare_entry.py", "trainer = self.trainer(entry.seed)", "trainer = self.trainer(entry.seed + (not entry.arm.baseline))", f"{COMPARE} -k differ_by_cmi"),
    Mutant("resumed without the regulariser", "compare_entry.py", 'handle.load_state_dict(state["regularizer"])', "pass", f"{COMPARE} -k killed"),
    Mutant("resumed without the trainer", "compare_entry.py", 'trainer.load_state_dict(state["trainer"])', "pass", f"{COMPARE} -k killed"),
    Mutant("resumed without the notes", "compare_entry.py", 'return list(state["notes"])', "return []", f"{COMPARE} -k killed"),
    Mutant("resumed without the augmentation", "distill.py", 'self.dsa.load_state_dict(state["dsa"])', "pass", f"{COMPARE} -k goes_on"),
    Mutant("resumed without momentum", "distill.py", 'self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))', "pass", f"{COMPARE} -k goes_on"),
    Mutant("a look moves the run", "compare_entry.py", "            trainer.load_state_dict(before)", "            pass", f"{COMPARE} -k looking"),
    Mutant("share of a gradient with CMI in it", "compare_entry.py", "handle.regularizer.enabled = False", "handle.regularizer.enabled = True", f"{COMPARE} -k two_gradients"),
    Mutant("entries distilled again", "compare_entry.py", "if (folder / DONE).is_file():", "if False:", f"{COMPARE} -k use_what_is_there"),
    Mutant("judged again", "compare_judge.py", "record = read_json(path) if path.is_file() else {}", "record = {}", f"{COMPARE} -k use_what_is_there"),
    Mutant("judges of one seed", "compare_judge.py", "1000 * (seed + 1) + run", "1000 * (seed + 1)", f"{COMPARE} -k own_judges"),
    Mutant("other settings gone on with", "compare_baseline.py", "    if differing:", "    if False:", f"{COMPARE} -k refused_and_named"),
    Mutant("pools by any other name", "compare.py", "[proxy.digest() for proxy in pool]", "[]", f"{COMPARE} -k refused_and_named"),
    Mutant("a baseline for each kind of views", "compare_plan.py", "for weight in checked if weight != 0]", "for weight in checked]", f"{COMPARE} -k baseline_is_one"),
    Mutant("another baseline taken", "compare_baseline.py", "    if differing:", "    if False:", f"{BASELINE} -k refused"),
    Mutant("CMI of another comparison", "compare_baseline.py", 'write_json({"accuracies": accuracies},', 'write_json({"accuracies": accuracies, "cmi": 0.0, "cmi_heldout": 0.0},', f"{BASELINE} -k would_have_been"),
    Mutant("half an entry taken for one", "compare_baseline.py", "not (out / entry.name / DONE).is_file()", "not (out / entry.name).exists()", f"{BASELINE} -k broken_off"),
    Mutant("the regulariser's options kept from the baseline", "compare.py", "ignored=REGULARIZERS", "ignored=()", f"{BASELINE} -k would_have_been"),
    Mutant("always from seed 0", "compare.py", "range(first_seed, first_seed + seeds)", "range(seeds)", f"{BASELINE} -k another_one_on"),
    Mutant("drawn without intervals", "plot.py", 'row["interval"] or 0.0', "0.0", "tests/test_plot.py -k intervals"),
    Mutant("CMI drawn under the training pool", "plot.py", 'row["cmi_heldout_ratio"] or row["cmi_ratio"]', 'row["cmi_ratio"]', "tests/test_plot.py -k intervals"),
    Mutant("skipped rounds drawn", "plot.py", 'if not of["skipped"]', "if True", "tests/test_plot.py -k skipped"),
    Mutant("mixed pictures", "plot.py", "if len(kinds) > 1:", "if False:", "tests/test_plot.py -k cannot_be_drawn"),
    Mutant("learned labels are classes", "hostfiles.py", "if images % kinds == 0:", "if False:", "tests/test_hostfiles.py -k learned"),
    Mutant("classes not saved", "sets.py", '"given_classes": synthetic.given_classes.cpu() if synthetic.given_classes is not None else None,', "", "tests/test_hostfiles.py -k learned"),
    Mutant("a host's folder left relative", "upstream.py", "str(user_path(option(arguments, name, default)).resolve())", "option(arguments, name, default)", "tests/test_compare_adapters.py"),
    Mutant("hosts report", "compare_host.py", "env={**upstream(self.spec.name).quietly, **os.environ},", "", f"{COMPARE_HOST} -k report_nowhere"),
    Mutant("told to report and not done", "compare_host.py", "env={**upstream(self.spec.name).quietly, **os.environ},", "env={**os.environ, **upstream(self.spec.name).quietly},", f"{COMPARE_HOST} -k report_nowhere"),
    Mutant("a host works where we are", "repeatable.py", 'os.chdir(given["folder"])', "pass", f"{COMPARE_HOST} -k folder_of_its_entry"),
    Mutant("stale judgements kept", "compare.py", "                stale.unlink()", "                pass", f"{BASELINE} -k given_up"),
    Mutant("abbreviations pass", "upstream.py", "    if short:", "    if False:", "tests/test_compare_adapters.py"),
    Mutant("any classes taken", "sets.py", "found.dtype == torch.int64 and found.shape == (count,)", "True", "tests/test_hostfiles.py -k none_are_refused"),
    Mutant("ConvNets for all", "pretrain.py", 'return "resnet18" if', 'return "convnet" if', f"{FILES} -k large_enough"),
    Mutant("one seed too many for t", "compare_report.py", "t_quantile(len(values) - 1)", "t_quantile(len(values))", f"{REPORT} -k by_hand"),
    Mutant("differences not in pairs", "compare_report.py", "zip(scores, without, strict=True)]", "zip(scores, without[::-1], strict=True)]", f"{REPORT} -k by_hand"),
    Mutant("reaching is being above", "compare_report.py", ">= aim:", "> aim:", f"{REPORT} -k by_hand"),
    Mutant("a page that needs the network", "compare_html.py", "<meta charset=utf-8>", '<meta charset=utf-8><link rel=stylesheet href="https://x">', f"{REPORT} -k one_page"),
    Mutant("one clock for all seeds", "repeatable.py", "random.Random(seed)", "random.Random(0)", f"{COMPARE_HOST} -k clock"),
    Mutant("the host's clock for everybody", "repeatable.py", "if not sys._getframe(1).f_code.co_filename.startswith(within):", "if False:", f"{COMPARE_HOST} -k clock"),
    Mutant("an orphan works on", "repeatable.py", "    os._exit(1)", "    return", f"{COMPARE_HOST} -k ends_with"),
    Mutant("a host's run redone", "compare_host.py", "if not (folder / RUN).is_dir():", "if True:", f"{COMPARE_HOST} -k killed_after"),
    Mutant("judges not tried first", "compare.py", "    judge.check()", "    pass", f"{COMPARE_HOST} -k judges_that_cannot_be"),
    Mutant("judges' networks not tried", "compare_judge.py", "        with seeded(0):\n            self._network()", "        pass", f"{COMPARE_HOST} -k judges_that_cannot_be"),
    Mutant("judges' augmentation not tried", "compare_judge.py", "        DSA(self.settings.strategy)\n", "", f"{COMPARE_HOST} -k judges_that_cannot_be"),
    Mutant("a host's regulariser not tried", "compare_host.py", "if not arm.baseline:\n                Regularizer", "if False:\n                Regularizer", f"{COMPARE_HOST} -k fails_before_it"),
    Mutant("judged on other data", "compare_host.py", "if setting[1] != judge.data.name:", "if False:", f"{COMPARE_HOST} -k fails_before_it"),
    Mutant("a host's one image per class", "compare_host.py", "self.settings.check_arms(arms, adapter.views_per_class(arguments))", "pass", f"{COMPARE_HOST} -k fails_before_it"),
    Mutant("another checkout gone on with", "compare_host.py", "hashlib.sha256(path.read_bytes()).digest()", 'b""', f"{COMPARE_HOST} -k another_checkout"),
    Mutant("hidden folders are code", "compare_host.py", 'if not name.startswith(".")', "", f"{COMPARE_HOST} -k another_checkout"),
    Mutant("no CMI to compare", "compare_plan.py", "if weighted and ipc == 1 and", "if False and", f"{COMPARE} -k compare_nothing"),
    Mutant("no lambda to compare", "compare_plan.py", "rounds <= self.option", "rounds < self.option", f"{COMPARE} -k compare_nothing"),
    Mutant("rounds without the first", "compare_entry.py", "-(-settings.iterations // settings.option(\"every\"))", "settings.iterations // settings.option(\"every\")", f"{COMPARE} -k compare_nothing"),
    Mutant("arms of one name", "compare_plan.py", "by_name.setdefault(arm.name, arm)", "by_name[repr(arm)] = arm", f"{COMPARE} -k baseline_is_one"),
    Mutant("versions not noted", "compare.py", '"ddplug": importlib.metadata.version("ddplug"),', '"ddplug": "",', f"{COMPARE} -k another_version"),
    Mutant("unknown is different", "compare.py", "if key in there or key not in NOTED", "", f"{COMPARE} -k another_version"),
    Mutant("anything may be unknown", "compare.py", "if key in there or key not in NOTED}", "if key in there}\n    known |= {'settings': there['settings']}", f"{COMPARE} -k another_version"),
    Mutant("two at once", "locking.py", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB", "tests/test_evaluate.py -k share_a_file"),
    Mutant("no lock on a comparison", "compare.py", "    with alone(out / LOCK, out):", "    if True:", f"{COMPARE} -k one_process"),
    Mutant("the lock stays", "locking.py", "lock.unlink(missing_ok=True)", "pass", f"{COMPARE} -k one_process"),
    Mutant("left out and unsaid", "compare.py", "_others(out, entries))", "[])", f"{COMPARE} -k not_in_the_report"),
    Mutant("what is unfinished left out", "compare.py", 'glob(f"*/{DONE}")', 'glob("*/")', f"{COMPARE} -k not_in_the_report"),
    Mutant("what is left out not printed", "cli_compare.py", "console.print(missing,", "str(missing,", f"{REPORT} -k one_page"),
    Mutant("memory with what stood", "meter.py", "peak - self._stood", "peak", f"{COMPARE} -k on_top"),
    Mutant("memory forgotten", "meter.py", 'record.get("extra_memory")', "None", f"{COMPARE} -k on_top"),
    Mutant("another kind of memory", "compare_report.py", 'time["extra_memory"] for time in last if time.get("extra_memory")', 'time.get("extra_memory", time.get("memory")) for time in last if time.get("extra_memory", time.get("memory"))', f"{COMPARE} -k older_comparisons"),
    Mutant("the judges' recipe unsaid", "compare_report.py", "networks\\n{judging(result)}", "networks", f"{REPORT} -k one_page"),
    Mutant("a failed host passes", "compare_host.py", "if status != 0:", "if False:", f"{COMPARE_HOST} -k fails"),
    # Packaging
    Mutant("py.typed left out", "../pyproject.toml", "[tool.setuptools.package-data]", '[tool.setuptools.exclude-package-data]\n"ddplug" = ["py.typed"]\n\n[tool.setuptools.package-data]', WHEEL),
    Mutant("adapters left out", "../pyproject.toml", 'packages = ["ddplug", "ddplug.adapters", "ddplug.patches"]', 'packages = ["ddplug", "ddplug.patches"]', WHEEL),
    Mutant("patches left out", "../pyproject.toml", 'packages = ["ddplug", "ddplug.adapters", "ddplug.patches"]', 'packages = ["ddplug", "ddplug.adapters"]', WHEEL),
    Mutant("version not in the text", "__init__.py", '__version__ = "0.1.0"', '__version__ = str("0.1.0")', WHEEL),
    Mutant("torchvision at import", "datasets.py", "import hashlib\n", "import hashlib\nimport torchvision\n", WHEEL),
    Mutant('kornia at import', 'attach.py', 'import weakref\n', 'import weakref\nimport kornia\n', WHEEL),
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
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *shlex.split(mutant.tests)],
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
        shutil.copytree(
            ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "ddplug-demo", "*.egg-info", "__pycache__")
        )
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
