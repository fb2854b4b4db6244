"""A round belongs to a step of the images: passes that are wiped, raised or for a log leave no trace."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ddplug

Batch = tuple[Tensor, Tensor]
STEPS = 6
Extra = Callable[["Run"], None]


class Run:
    """Six steps of a host on two networks; `before` and `instead` are what happens around its own pass."""

    def __init__(self, network: Callable[..., nn.Module], batch: Batch, **options: Any) -> None:
        self.images, self.labels = batch[0].clone().requires_grad_(), batch[1]
        self.host = network(7)
        self.optimizer = torch.optim.SGD([self.images], lr=0.5, momentum=0.5)
        options = {"weighting": ddplug.Relative(3), "announce": lambda line: None, **options}
        self.regularizer = ddplug.Regularizer([network(seed) for seed in range(3)], 1, **options)
        self.number = 0

    def loss(self) -> Tensor:
        views = self.regularizer(self.images * 1.5, self.labels)
        return F.cross_entropy(self.host(views), self.labels)

    def go(self, around: Extra | None = None, steps: int = STEPS) -> Run:
        for self.number in range(steps):
            self.optimizer.zero_grad()
            if around is None:
                self.loss().backward()
            else:
                around(self)
            self.optimizer.step()
        return self


def same(one: Run, other: Run) -> None:
    """Equal to the bit: both runs have computed the same things in the same shapes."""
    assert one.regularizer.lam is not None
    assert one.regularizer.lam == other.regularizer.lam
    assert one.regularizer.history.state_dict() == other.regularizer.history.state_dict()
    assert one.regularizer.rounds == other.regularizer.rounds
    assert torch.equal(one.images, other.images)


def boom(*_: object) -> None:
    raise MemoryError


def leaf_hook(run: Run) -> None:
    handle = run.images.register_hook(boom)
    with pytest.raises(MemoryError):
        run.loss().backward()
    handle.remove()
    run.optimizer.zero_grad()
    run.loss().backward()


def same_graph_after_exception(run: Run) -> None:
    loss = run.loss()
    handle = run.images.register_hook(boom)
    with pytest.raises(MemoryError):
        loss.backward(retain_graph=True)
    handle.remove()
    loss.backward()


def first_wiped(run: Run, *, to_none: bool) -> None:
    run.loss().backward()
    run.optimizer.zero_grad(set_to_none=to_none)
    run.loss().backward()


def wiped_by_hand(run: Run) -> None:
    run.loss().backward()
    run.images.grad = torch.zeros_like(run.images)
    run.loss().backward()


def logged_on_the_graph(run: Run) -> None:
    loss = run.loss()
    torch.autograd.grad(loss, run.images, retain_graph=True)
    loss.backward()


def another_loss_logged(run: Run) -> None:
    """The share is of the pass that counts, not of the one for the log."""
    loss = run.loss()
    torch.autograd.grad(3 * loss, run.images, retain_graph=True)
    loss.backward()


def walked_on_the_graph(run: Run, *, to_none: bool) -> None:
    loss = run.loss()
    loss.backward(retain_graph=True)
    run.optimizer.zero_grad(set_to_none=to_none)
    loss.backward()


def logged_anew(run: Run) -> None:
    torch.autograd.grad(run.loss(), run.images)
    run.loss().backward()


def logged_after(run: Run) -> None:
    run.loss().backward()
    torch.autograd.grad(run.loss(), run.images)


def logged_at_the_views(run: Run) -> None:
    """The pass for the log ends before it comes to the images."""
    views = run.images * 1.5
    loss = F.cross_entropy(run.host(run.regularizer(views, run.labels)), run.labels)
    torch.autograd.grad(loss, views, retain_graph=True)
    loss.backward()


def raised_twice_then_logged(run: Run) -> None:
    leaf_hook(run)
    run.optimizer.zero_grad()
    same_graph_after_exception(run)
    run.optimizer.zero_grad()
    logged_on_the_graph(run)


CASES: dict[str, Extra] = {
    "a hook on the leaf raises": leaf_hook,
    "the same graph after an exception": same_graph_after_exception,
    "wiped to None": lambda run: first_wiped(run, to_none=True),
    "wiped to zeros": lambda run: first_wiped(run, to_none=False),
    "wiped by hand": wiped_by_hand,
    "autograd.grad, then backward on the graph": logged_on_the_graph,
    "autograd.grad of another loss": another_loss_logged,
    "autograd.grad to the views": logged_at_the_views,
    "backward, wiped to None, backward on the graph": lambda run: walked_on_the_graph(run, to_none=True),
    "backward, wiped to zeros, backward on the graph": lambda run: walked_on_the_graph(run, to_none=False),
    "autograd.grad on a graph of its own": logged_anew,
    "autograd.grad after the pass": logged_after,
    "all": raised_twice_then_logged,
}


@pytest.mark.parametrize(
    "options",
    [{}, {"compute": ddplug.Compute(every=2)}, {"weighting": ddplug.Sustained(3)}],
    ids=["", "every", "sustained"],
)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_as_if_it_had_not_happened(
    network: Callable[..., nn.Module], batch: Batch, case: Extra, options: dict[str, Any]
) -> None:
    steps = STEPS * options.get("every", 1)
    clean = Run(network, batch, **options).go(steps=steps)
    assert clean.regularizer.rounds == steps
    same(Run(network, batch, **options).go(case, steps), clean)


def test_only_now_and_then(network: Callable[..., nn.Module], batch: Batch) -> None:
    """Each step has another of the cases, and the draws of the proxies go on as if there had been none."""
    cases = list(CASES.values())
    clean = Run(network, batch).go(steps=13)
    same(Run(network, batch).go(lambda run: cases[run.number](run), 13), clean)


def test_networks_trained_between_the_steps_of_the_images(network: Callable[..., nn.Module], batch: Batch) -> None:
    """HaBa's shape: an optimizer of the host's network steps on passes that go through the layer to the images too."""

    def go(*, through: bool) -> Run:
        run = Run(network, batch)
        other = torch.optim.SGD(run.host.parameters(), lr=0.01)

        def step(run: Run) -> None:
            for _ in range(2):
                other.zero_grad()
                views = run.images * 1.5
                if through:
                    views = run.regularizer(views, run.labels)
                F.cross_entropy(run.host(views if through else views.detach()), run.labels).backward()
                other.step()
                run.optimizer.zero_grad()
            other.zero_grad()
            run.loss().backward()

        return run.go(step)

    same(go(through=True), go(through=False))


def test_passes_that_add_up_before_a_step_all_count(network: Callable[..., nn.Module], batch: Batch) -> None:
    def twice(run: Run) -> None:
        run.loss().backward()
        run.loss().backward()

    with pytest.warns(ddplug.DDPlugWarning, match="several"):
        run = Run(network, batch).go(twice)
    assert run.regularizer.rounds == len(run.regularizer.history) == 2 * STEPS


def test_a_gradient_that_is_changed_before_the_step_counts(network: Callable[..., nn.Module], batch: Batch) -> None:
    """Normalised, clipped, or computed by autograd.grad and assigned: the step has it."""

    def replaced(run: Run) -> None:
        run.loss().backward()
        assert run.images.grad is not None
        run.images.grad = run.images.grad * 1.0

    def changed(run: Run) -> None:
        run.loss().backward()
        torch.nn.utils.clip_grad_norm_([run.images], 1e9)

    def assigned(run: Run) -> None:
        (run.images.grad,) = torch.autograd.grad(run.loss(), run.images)

    clean = Run(network, batch).go()
    for case in (replaced, changed, assigned):
        same(Run(network, batch).go(case), clean)


@pytest.mark.parametrize("how", ["data", "in place", "new leaf"])
def test_steps_that_no_optimizer_takes(network: Callable[..., nn.Module], batch: Batch, how: str) -> None:
    run = Run(network, batch)
    del run.optimizer
    run.images = run.images.detach().clone().requires_grad_()
    for _ in range(STEPS):
        (grad,) = torch.autograd.grad(run.loss(), run.images)
        if how == "data":
            run.images.data -= 0.1 * grad
        elif how == "in place":
            with torch.no_grad():
                run.images -= 0.1 * grad
        else:
            run.images = (run.images - 0.1 * grad).detach().requires_grad_()
    assert run.regularizer.rounds == len(run.regularizer.history) == STEPS
    assert run.regularizer.lam is not None


def test_a_graph_that_is_walked_again_after_the_step(network: Callable[..., nn.Module], batch: Batch) -> None:
    run = Run(network, batch)
    loss = run.loss()
    loss.backward(retain_graph=True)
    run.optimizer.step()
    with pytest.raises(ddplug.errors.InputError, match="anew"):
        loss.backward()


# The record: each round once, when it is committed


def recorded(run: Run) -> tuple[list[str], list[int]]:
    """The run's announcements and the numbers of the rounds that a logger gets."""
    said: list[str] = []
    logged: list[int] = []
    run.regularizer._progress.announce = said.append
    run.regularizer.history.subscribe(lambda rounds: logged.extend(round_.number for round_ in rounds))
    return said, logged


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_lambda_is_announced_once_and_each_round_logged_once(
    network: Callable[..., nn.Module], batch: Batch, case: Extra
) -> None:
    """Also if the pass that settled lambda is wiped, and the next one settles it again."""
    clean, run = Run(network, batch), Run(network, batch)
    expected, got = recorded(clean), recorded(run)
    clean.go()
    run.go(case)
    assert len(expected[0]) == 1
    assert got == expected == (expected[0], list(range(STEPS)))


def test_a_pass_whose_step_never_comes_does_not_count(network: Callable[..., nn.Module], batch: Batch) -> None:
    """It is in no history, no log and no state, and lambda is not announced by it."""
    clean, run = Run(network, batch).go(steps=2), Run(network, batch)
    said, logged = recorded(run)
    run.go(steps=2)
    run.optimizer.zero_grad()
    run.loss().backward()  # the third, which would settle lambda
    assert run.regularizer.rounds == len(run.regularizer.history) == 2
    assert (said, logged) == ([], [0, 1])
    state, expected = run.regularizer.state_dict(), clean.regularizer.state_dict()
    for name in ("weighting", "rounds", "seen", "history"):
        assert state[name] == expected[name]
    for name, generator in expected["generators"].items():
        assert torch.equal(state["generators"][name], generator)
    run.optimizer.step()
    assert run.regularizer.rounds == len(run.regularizer.history) == 3
    assert (len(said), logged) == (1, [0, 1, 2])


def test_images_that_no_optimizer_steps_are_named_in_one_line(network: Callable[..., nn.Module], batch: Batch) -> None:
    by_hand, stepped = Run(network, batch), Run(network, batch)
    by_hand.images = by_hand.images.detach().clone().requires_grad_()
    said, expected = recorded(by_hand)[0], recorded(stepped)[0]
    for _ in range(STEPS):
        (grad,) = torch.autograd.grad(by_hand.loss(), by_hand.images)
        by_hand.images.data -= 0.1 * grad
    stepped.go()
    for run in (by_hand, stepped):
        run.regularizer.detach()
        run.regularizer.detach()
    assert len(expected) == 1
    assert len(said) == 2
    assert "no optimizer was seen to step the images; each of 6 rounds" in said[-1]


@pytest.mark.parametrize("weighting", [ddplug.Relative(1), ddplug.Absolute()], ids=["relative", "absolute"])
def test_the_share_of_an_unrolled_loop_is_what_reaches_the_images(
    network: Callable[..., nn.Module], batch: Batch, weighting: Any
) -> None:
    """Eight inner steps with one gradient, of which one passes the layer: the recorded share is the images' own."""
    images, labels = batch[0], batch[1]
    regularizer = ddplug.Regularizer(
        network(7), 0.5, weighting=weighting, representation="logit", announce=lambda line: None
    )
    regularizer.stands_for(8)
    host = network(3)
    for _ in range(3):
        leaf, plain = images.clone().requires_grad_(), images.clone().requires_grad_()
        for step in range(8):
            views = regularizer(leaf, labels) if step == 5 else leaf
            F.cross_entropy(host(views), labels).backward()
        (8 * F.cross_entropy(host(plain), labels)).backward()
        assert leaf.grad is not None
        assert plain.grad is not None
        share = ((leaf.grad - plain.grad).norm() / plain.grad.norm()).item()
    assert regularizer.history[-1].share == pytest.approx(share, rel=1e-9)
    if weighting.kind == "relative":
        assert share == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("how", ["at the end", "in grad", "one graph"])
def test_a_gradient_made_of_several_passes_by_hand(
    passes: int, how: str, network: Callable[..., nn.Module], batch: Batch
) -> None:
    """Kind: torch.autograd.grad per inner step, added up by the host: a lambda as given acts once for each.

    Looked at: a sum at the end, one in `.grad` after each pass, and passes over one graph.
    """

    def by_hand(run: Run) -> None:
        if how == "in grad":
            run.images.grad = torch.zeros_like(run.images)
            for _ in range(passes):
                run.images.grad += torch.autograd.grad(run.loss(), run.images)[0]
            return
        losses = [run.loss()] * passes if how == "one graph" else [run.loss() for _ in range(passes)]
        grads = [torch.autograd.grad(loss, run.images, retain_graph=True)[0] for loss in losses]
        run.images.grad = torch.stack(grads).sum(0)

    run = Run(network, batch, weighting="absolute")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.go(by_hand, 2)
    assert ["after 3 torch.autograd.grad passes" in str(each.message) for each in caught] == [True] * (passes > 1)
