"""Unrolled inner loops and gated steps, on loops of our own of MTT's and DATM's shape, in float64.

What the three choices of inner steps estimate is checked against the loss form, to the accuracy of the numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import ddplug
from ddplug.errors import HostError
from ddplug.hosting.layer import Layer
from ddplug.hosting.options import Inner

pytestmark = pytest.mark.numerical

STEPS = 4


def off(views: Tensor, labels: Tensor, **_: object) -> Tensor:
    return views


def augmented(images: Tensor, step: int) -> Tensor:
    """Another view at every inner step, the same one in every run."""
    return images.roll(step, 3) * (1 + 0.2 * step)


def unrolled(images: Tensor, targets: Tensor, layer: Any, steps: int = STEPS, classes: Tensor | None = None) -> Tensor:
    """A loop of MTT's shape: a linear student takes `steps` steps on the views, and is compared with an expert."""
    generator = torch.Generator().manual_seed(1)
    student, expert = (torch.randn(48, 3, generator=generator, dtype=torch.float64) * 0.1 for _ in range(2))
    student.requires_grad_()
    for step in range(steps):
        views = layer(augmented(images, step), targets if classes is None else classes, step=step)
        loss = F.cross_entropy(views.flatten(1) @ student, targets)
        (grad,) = torch.autograd.grad(loss, student, create_graph=True)
        student = student - 0.5 * grad
    return (student - expert).square().sum()


def gradient(images: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    leaf = images.clone().requires_grad_()
    loss_of(leaf).backward()
    assert leaf.grad is not None
    return leaf.grad


def cmi_gradient(pool: ddplug.ProxyPool, images: Tensor, labels: Tensor, chosen: list[int]) -> Tensor:
    """Of CMI of the views of these inner steps together, in the loss form."""

    def loss(leaf: Tensor) -> Tensor:
        return ddplug.CMI(pool)(torch.cat([augmented(leaf, step) for step in chosen]), labels.repeat(len(chosen)))

    return gradient(images, loss)


def layer_of(pool: ddplug.ProxyPool, inner: Inner, weight: float = 3.0, steps: int = STEPS, **more: Any) -> Layer:
    options = {"weighting": "absolute", **more}
    return Layer(ddplug.Regularizer(pool, weight, **options), steps=steps, inner=inner)


@pytest.mark.parametrize(("inner", "chosen"), [("last", [3]), ("all", [0, 1, 2, 3])])
def test_the_images_get_the_gradient_of_the_steps_meant(
    inner: Inner, chosen: list[int], pool: ddplug.ProxyPool, batch: tuple[Tensor, Tensor], untouched: None
) -> None:
    images, labels = batch
    layer = layer_of(pool, inner)
    got = gradient(images, lambda leaf: unrolled(leaf, labels, layer))
    host = gradient(images, lambda leaf: unrolled(leaf, labels, off))
    assert torch.allclose(got, host + 3.0 * cmi_gradient(pool, images, labels, chosen), rtol=1e-10, atol=1e-12)
    assert layer.rounds == 1


@pytest.mark.parametrize("inner", ["one", "last", "all"])
def test_a_gradient_per_step(
    inner: Inner, pool: ddplug.ProxyPool, batch: tuple[Tensor, Tensor], untouched: None
) -> None:
    """A host that takes one gradient per inner step, as TESLA does: of one step CMI is right, of all it is refused."""
    images, labels = batch
    layer = layer_of(pool, inner)

    def added() -> Tensor:
        leaf = images.clone().requires_grad_()
        losses = [layer(augmented(leaf, step), labels, step=step).sum() for step in range(STEPS)]
        with_cmi = torch.stack([torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in losses]).sum(0)
        host = torch.autograd.grad(sum(augmented(leaf, step).sum() for step in range(STEPS)), leaf)[0]
        return (with_cmi - host) / 3.0

    if inner == "all":
        with pytest.raises(HostError, match="reached 1 of the 4 inner steps.*inner='one'"):
            added()
        return
    single = [cmi_gradient(pool, images, labels, [step]) for step in range(STEPS)]
    got = added()
    assert sum(torch.allclose(got, each, rtol=1e-9, atol=1e-12) for each in single) == 1


def test_one_step_is_unbiased_for_the_mean_over_the_steps(
    pool: ddplug.ProxyPool, batch: tuple[Tensor, Tensor], untouched: None
) -> None:
    """Each backward pass gets exactly the gradient of one step's CMI, and every step has its turn equally often."""
    images, labels = batch
    layer = layer_of(pool, "one")
    host = gradient(images, lambda leaf: unrolled(leaf, labels, off))
    single = torch.stack([cmi_gradient(pool, images, labels, [step]) for step in range(STEPS)])
    counts, total = [0] * STEPS, torch.zeros_like(images)
    for _ in range(200):
        added = (gradient(images, lambda leaf: unrolled(leaf, labels, layer)) - host) / 3.0
        distance = (single - added).flatten(1).norm(dim=1)
        step = int(distance.argmin())
        assert distance[step] < 1e-10 * single[step].norm()
        counts[step] += 1
        total += added
    assert all(30 <= count <= 70 for count in counts), counts
    every_step_once = single.mean(0)

    def mean_of_cmi(leaf: Tensor) -> Tensor:
        return torch.stack([ddplug.CMI(pool)(augmented(leaf, step), labels) for step in range(STEPS)]).mean()

    assert torch.allclose(every_step_once, gradient(images, mean_of_cmi), rtol=1e-10, atol=1e-14)
    error = (total / 200 - every_step_once).norm() / every_step_once.norm()
    assert error < 3 * single.sub(single.mean(0)).norm() / STEPS**0.5 / 200**0.5 / every_step_once.norm()


def test_all_views_together_is_the_mean_over_the_steps_plus_their_spread(
    pool: ddplug.ProxyPool, batch: tuple[Tensor, Tensor]
) -> None:
    """Why "one" does not stand for "all": the latter's centroids are shared."""
    images, labels = batch
    value = ddplug.CMI(pool)
    views = [augmented(images, step) for step in range(STEPS)]
    mean = torch.stack([value(view, labels) for view in views]).mean()
    assert value(torch.cat(views), labels.repeat(STEPS)) > mean * 1.01


@pytest.mark.parametrize("steps", [5, 30])
def test_a_round_of_one_step_has_that_steps_images_only(
    steps: int, pool: ddplug.ProxyPool, batch: tuple[Tensor, Tensor]
) -> None:
    images, labels = batch
    layer = layer_of(pool, "one", steps=steps)
    gradient(images, lambda leaf: unrolled(leaf, labels, layer, steps))
    assert layer.regularizer is not None
    assert [round_["images"] for round_ in layer.regularizer.history.state_dict()] == [len(images)]


def test_the_step_does_not_go_with_the_proxy_drawn(
    network: Callable[..., torch.nn.Module], batch: tuple[Tensor, Tensor]
) -> None:
    """Two generators of one seed would show each proxy the same half of the steps for ever."""
    images, labels = batch
    networks = [network(seed) for seed in (1, 2)]
    layer = layer_of(ddplug.ProxyPool.from_modules(networks), "one")
    host = gradient(images, lambda leaf: unrolled(leaf, labels, off))
    single = torch.stack(
        [cmi_gradient(ddplug.ProxyPool.from_modules([n]), images, labels, [s]) for n in networks for s in range(STEPS)]
    )
    found = set()
    for _ in range(80):
        added = (gradient(images, lambda leaf: unrolled(leaf, labels, layer)) - host) / 3.0
        found.add(int((single - added).flatten(1).norm(dim=1).argmin()))
    assert found == set(range(2 * STEPS))


def gated(
    pool: ddplug.ProxyPool | None, batch: tuple[Tensor, Tensor], rejected: set[int], iterations: int = 6
) -> tuple[list[bool], list[Tensor], Layer]:
    """A loop of DATM's shape: labels are learned logits, and steps of which the loss is too large are left out.

    In the iterations `rejected` the expert is far away, whatever the images are. Returns which steps were taken, the
    labels' gradients, and the layer.
    """
    images, classes = batch
    leaf, logits = images.clone().requires_grad_(), (4.0 * F.one_hot(classes, 3)).double().requires_grad_()
    options: dict[str, Any] = {"weighting": ddplug.Relative(3), "announce": lambda text: None}
    layer = Layer(None if pool is None else ddplug.Regularizer(pool, 0.5, **options), steps=STEPS, inner="last")
    accepted, gradients = [], []
    for iteration in range(iterations):
        factor = 1e6 if iteration in rejected else 1.0
        loss = factor * unrolled(leaf, logits.softmax(1), layer, classes=classes)
        leaf.grad = logits.grad = None
        layer.gate(loss, 1e3)
        loss.backward()
        assert leaf.grad is not None
        assert logits.grad is not None
        gradients.append(logits.grad.clone())
        accepted.append(bool(loss <= 1e3))
        if accepted[-1]:
            with torch.no_grad():
                leaf -= 0.01 * leaf.grad
    return accepted, gradients, layer


def test_a_gate_takes_as_many_steps_with_the_layer_as_without(
    pool: ddplug.ProxyPool, batch: tuple[Tensor, Tensor]
) -> None:
    without, plain, _ = gated(None, batch, {1, 4})
    taken, with_cmi, layer = gated(pool, batch, {1, 4})
    assert taken == without == [True, False, True, True, False, True]
    assert layer.rounds == 4, "what was left out is no round"
    assert torch.equal(plain[0], with_cmi[0]), "learned labels get no gradient of CMI"


def test_steps_that_are_left_out_are_no_part_of_lambda(pool: ddplug.ProxyPool, batch: tuple[Tensor, Tensor]) -> None:
    lambdas = []
    for rejected, iterations in ((set(), 4), ({0, 2, 5}, 7)):
        layer = gated(pool, batch, rejected, iterations)[2]
        assert layer.regularizer is not None
        lambdas.append((layer.regularizer.lam, [r["value"] for r in layer.regularizer.history.state_dict()]))
    assert lambdas[0][0] is not None
    assert lambdas[0] == lambdas[1]


def test_a_loss_that_is_no_number_is_left_out(pool: ddplug.ProxyPool, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    layer = layer_of(pool, "last")
    leaf = images.clone().requires_grad_()
    loss = unrolled(leaf, labels, layer) * float("nan")
    layer.gate(loss, 1.0)
    loss.backward()
    assert layer.rounds == 0


def test_a_gate_of_a_layer_that_is_off_does_not_look(batch: tuple[Tensor, Tensor]) -> None:
    layer = Layer(None)
    layer.gate(torch.empty(3), 1.0)  # would not be a number
    assert layer.rounds == 0


def test_one_lambda_means_the_same_whichever_steps_are_used(
    pool: ddplug.ProxyPool, batch: tuple[Tensor, Tensor]
) -> None:
    """Where all inner steps see the same views and the host pulls on each of them alike."""
    from ddplug.hosting.host import Host
    from ddplug.hosting.layer import layer_of

    class Host(Host):
        name = "host"

        def setting(self, args: Any) -> tuple[str, str, int]:
            return "host", "none", 4

        def record(self, args: Any, context: Any) -> Any:
            return Path("nowhere.json")

    images, labels = batch
    pull = torch.randn(images.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = {}
    for inner in ("one", "last", "all"):
        regularizer = ddplug.Regularizer(pool, 0.1, weighting=ddplug.Relative(1), announce=lambda text: None)
        layer = layer_of(Host(), regularizer, None, {"steps": STEPS}, "host", inner)
        layer.record = None
        leaf = images.clone().requires_grad_()
        sum((layer(leaf * 1.0, labels, step=step) * pull).sum() for step in range(STEPS)).backward()
        found[inner] = regularizer.lam
    assert found["one"] == pytest.approx(found["all"], rel=1e-9)
    assert found["last"] == found["one"]
