"""Nothing fails silently: what looks like a mistake around the layer is said, once, and nothing else is."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from ddplug.proxies.pool import PoolInfo
from ddplug.proxies.proxy import Proxy

Batch = tuple[Tensor, Tensor]
UNIT, NORMALISED = ddplug.InputSpace.unit(3), ddplug.InputSpace.normalized((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def layer(pool: object, weight: float = 0.7, **options: Any) -> ddplug.Regularizer:
    options = {"weighting": "absolute", "announce": lambda line: None, **options}
    return ddplug.Regularizer(pool, weight, **options)


def step(regularizer: ddplug.Regularizer, batch: Batch, leaf: Tensor | None = None) -> Tensor:
    leaf = batch[0].clone().requires_grad_() if leaf is None else leaf
    regularizer(leaf, batch[1]).square().sum().backward()
    assert leaf.grad is not None
    return leaf.grad


# A layer that never acts


def test_graphs_that_are_never_walked(pool: ddplug.ProxyPool, batch: Batch) -> None:
    regularizer, leaf = layer(pool), batch[0].clone().requires_grad_()
    with pytest.warns(ddplug.DDPlugWarning, match="at the layer never came into action: 40 batches of views passed"):
        for _ in range(50):
            leaf.grad = None
            views = regularizer(leaf, batch[1]).detach()  # the mistake
            (leaf - views.mean()).square().sum().backward()
    assert regularizer.rounds == 0


def test_views_that_never_need_a_gradient(pool: ddplug.ProxyPool, batch: Batch) -> None:
    regularizer = layer(pool)
    with pytest.warns(ddplug.DDPlugWarning, match="200 batches of views came to the layer, and none needed a gradient"):
        for _ in range(300):
            regularizer(*batch)


def test_real_batches_between_synthetic_ones_are_no_mistake(pool: ddplug.ProxyPool, batch: Batch) -> None:
    regularizer = layer(pool)
    for _ in range(3):
        step(regularizer, batch)
        for _ in range(200):
            regularizer(*batch)


def test_many_calls_before_one_backward_pass_are_no_mistake(pool: ddplug.ProxyPool, batch: Batch) -> None:
    regularizer, leaf = layer(pool), batch[0].clone().requires_grad_()
    torch.stack([regularizer(leaf, batch[1]).sum() for _ in range(300)]).sum().backward()
    assert len(regularizer.history) == 1


class Loop:
    """A trainer whose augmentation is used for real images only."""

    def __init__(self, batch: Batch) -> None:
        self.images, self.labels = batch[0].clone().requires_grad_(), batch[1]
        self.optimizer = torch.optim.SGD([self.images], lr=0.1)

    def augment(self, images: Tensor, labels: Tensor) -> Tensor:
        return images * 1.5

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.images.square().sum().backward()
            self.optimizer.step()


def test_steps_of_the_images_without_a_round(pool: ddplug.ProxyPool, batch: Batch) -> None:
    loop, other = Loop(batch), Loop(batch)
    handle = ddplug.attach(loop, 0.7, proxies=pool, announce=lambda line: None)
    other.run(60)  # somebody else's
    loop.run(49)
    with pytest.warns(ddplug.DDPlugWarning, match=r"Loop.augment never came into action: .* took 50 steps"):
        loop.run(1)
    loop.run(60)
    handle.detach()  # says it no second time


class LoopModule(nn.Module):
    """The same, as people write it for Lightning: the images are a parameter."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.images = nn.Parameter(batch[0].clone())
        self.register_buffer("labels", batch[1])

    def augment(self, images: Tensor) -> Tensor:
        return images * 1.5


def test_steps_of_a_modules_images_without_a_round(pool: ddplug.ProxyPool, batch: Batch) -> None:
    loop = LoopModule(batch)
    optimizer = torch.optim.SGD(loop.parameters(), lr=0.1)
    handle = ddplug.attach(loop, 0.7, proxies=pool, announce=lambda line: None)
    with pytest.warns(ddplug.DDPlugWarning, match=r"LoopModule.augment never came into action: .* took 50 steps"):
        for _ in range(50):
            optimizer.zero_grad()
            loop.images.square().sum().backward()
            optimizer.step()
    handle.detach()


def test_at_the_end_of_the_program() -> None:
    """50 backward passes, no round, no detach: said at exit."""
    program = """
        import torch, ddplug
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
        class Trainer:
            labels = torch.arange(4) % 2
            def augment(self, images): return images * 1
        trainer, leaf = Trainer(), torch.randn(4, 3, 2, 2, requires_grad=True)
        ddplug.attach(trainer, 1, proxies=network)
        for _ in range(50):
            (leaf * 2).sum().backward()
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert "the regulariser at Trainer.augment never came into action" in ran.stderr
    quiet = textwrap.dedent(program).replace("trainer, 1,", "trainer, 0,")
    ran = subprocess.run([sys.executable, "-c", quiet], capture_output=True, text=True, check=True)
    assert ran.stderr == ""


# Batches that are cut


def test_a_backward_pass_per_class(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch

    def by_class(regularizer: ddplug.Regularizer) -> None:
        for c in range(3):
            leaf = images[labels == c].clone().requires_grad_()
            regularizer(leaf, labels[labels == c]).sum().backward()

    with pytest.warns(ddplug.DDPlugWarning, match="images of one class only.*round.*set_size="):
        by_class(layer(pool))
    by_class(layer(pool, weighting=ddplug.Absolute(set_size=12)))
    together = layer(pool)
    with together.round():
        by_class(together)
    by_class(layer(pool, weighting="relative"))  # measured on such passes, so right for them


def test_backward_passes_that_add_up(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    leaf = images.clone().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=0.1)

    def accumulated(regularizer: ddplug.Regularizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            for part in torch.arange(12).tensor_split(3):
                (regularizer(leaf[part] * 1, labels[part]).square().mean() / 3).backward()
            optimizer.step()

    with pytest.warns(ddplug.DDPlugWarning, match="several backward passes through the layer add up before a step"):
        accumulated(layer(pool), 1)


@pytest.mark.parametrize("how", ["step", "data", "none"])
def test_a_step_between_two_passes_is_no_cut(pool: ddplug.ProxyPool, batch: Batch, how: str) -> None:
    """Also one that goes past autograd's version counter, or none at all as long as gradients are cleared."""
    regularizer, leaf = layer(pool), batch[0].clone().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=0.1)
    for _ in range(6):
        step(regularizer, batch, leaf)
        if how == "step":
            optimizer.step()  # and the gradient stays, as the host clears it after its forward pass
        elif how == "data":
            leaf.data -= 0.1 * leaf.grad  # type: ignore[operator]
            leaf.grad = None
        else:
            optimizer.zero_grad(set_to_none=False)


# Loss scaling


def scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=65536.0)


def test_a_scaler_at_work_of_which_nothing_was_said(pool: ddplug.ProxyPool, batch: Batch) -> None:
    used = scaler()
    leaf, regularizer = batch[0].clone().requires_grad_(), layer(pool)
    with pytest.warns(ddplug.DDPlugWarning, match=r"GradScaler is at work.*65536.*scale=scaler.get_scale"):
        used.scale(regularizer(leaf, batch[1]).square().sum()).backward()
    del used


def test_a_scaler_that_was_spoken_of_or_is_idle(pool: ddplug.ProxyPool, batch: Batch) -> None:
    idle = scaler()
    step(layer(pool), batch)
    used = scaler()
    leaf, regularizer = batch[0].clone().requires_grad_(), layer(pool, scale=used.get_scale)
    used.scale(regularizer(leaf, batch[1]).square().sum()).backward()
    assert idle.is_enabled()


@pytest.mark.numerical
def test_a_trainers_scaler_is_not_taken_without_a_word(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """It may be another model's: one that is idle changes nothing, one that is at work is asked about."""

    class Scaled(Loop):
        def __init__(self, batch: Batch) -> None:
            super().__init__(batch)
            self.scaler = scaler()

        def gradient(self, used: bool) -> Tensor:
            self.images.grad = None
            loss = self.augment(self.images, self.labels).square().sum()
            (self.scaler.scale(loss) if used else loss).backward()
            assert self.images.grad is not None
            return self.images.grad

    options: dict[str, Any] = {"proxies": pool, "weighting": "absolute", "announce": lambda line: None}
    trainer, loop = Scaled(batch), Loop(batch)
    loop.augment(loop.images, loop.labels).square().sum().backward()
    with ddplug.attach(trainer, 0.7, **options):
        (of_cmi,) = torch.autograd.grad(ddplug.CMI(pool)(1.5 * loop.images, batch[1]), loop.images)
        torch.testing.assert_close(trainer.gradient(False), loop.images.grad + 0.7 * of_cmi, rtol=1e-9, atol=1e-12)
    with (
        pytest.warns(ddplug.DDPlugWarning, match=r"GradScaler is at work.*scale=lambda: 1\.0, if it is another"),
        ddplug.attach(trainer, 0.7, **options),
    ):
        trainer.gradient(True)
    with ddplug.attach(trainer, 0.7, **options, scale=trainer.scaler.get_scale):
        got = trainer.gradient(True) / 65536
    torch.testing.assert_close(got, loop.images.grad + 0.7 * of_cmi, rtol=1e-9, atol=1e-12)


def test_an_optimizers_gradient_is_unscaled_when_it_steps(pool: ddplug.ProxyPool, batch: Batch) -> None:
    leaf = batch[0].clone().requires_grad_()
    optimizer, used = torch.optim.SGD([leaf], lr=0.1), scaler()
    with ddplug.attach(optimizer, 0.7, proxies=pool, labels=batch[1], augment="none", announce=lambda line: None):
        used.scale((leaf * 9).square().sum()).backward()
        used.step(optimizer)


# Input spaces, classes, accuracies


def normalised(network: Callable[..., nn.Module], **info: Any) -> ddplug.ProxyPool:
    return ddplug.ProxyPool.from_modules([network(7)], info=PoolInfo(**{"space": NORMALISED, **info}))


def test_a_space_for_a_pool_that_does_not_know_its_own_is_refused(pool: ddplug.ProxyPool, batch: Batch) -> None:
    for given in (UNIT, "unit", "normalized:cifar10"):
        for use in (layer, ddplug.CMI):
            with pytest.raises(ddplug.errors.InputError, match="does not say what its proxies .*from_modules"):
                use(pool, input_space=given)
        with pytest.raises(ddplug.errors.InputError, match="does not say"):
            from ddplug.lab.measure import measure

            measure(pool, *batch, input_space=given)


@pytest.mark.numerical
def test_spaces_by_name(network: Callable[..., nn.Module], batch: Batch) -> None:
    """[0, 1] images and normalised ones give different gradients, and the right ones."""
    images, labels = batch[0].sigmoid(), batch[1]
    pool = ddplug.ProxyPool.from_modules([network(7)], input_space="normalized:cifar10")
    cifar = ddplug.InputSpace.normalized((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert pool.info.space == cifar
    by_hand = ddplug.ProxyPool.from_modules([network(7)])
    as_unit, as_normalised = images.clone().requires_grad_(), images.clone().requires_grad_()
    ddplug.CMI(by_hand)(cifar.from_unit(as_unit), labels).backward()
    ddplug.CMI(by_hand)(as_normalised, labels).backward()
    for given, expected in (("unit", as_unit), (UNIT, as_unit), ("normalized:CIFAR-10", as_normalised)):
        leaf = images.clone().requires_grad_()
        (layer(pool, 1.0, input_space=given)(leaf, labels) * 0).sum().backward()
        assert leaf.grad is not None
        assert expected.grad is not None
        torch.testing.assert_close(leaf.grad, expected.grad, rtol=1e-9, atol=1e-12)
    assert ddplug.ProxyPool.from_modules([network(7)], input_space="unit").info.space == UNIT


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("unti", "unknown input space 'unti', expected an InputSpace, 'unit'"),
        ("normalized:mars", "unknown input space 'normalized:mars'"),
        ("zca", "'zca' means the pool's own whitening, and this pool has none"),
        (3, "got int as an input space"),
    ],
)
def test_spaces_that_mean_nothing_are_refused_at_once(network: Callable[..., nn.Module], given: Any, says: str) -> None:
    with pytest.raises(ddplug.errors.InputError, match=says):
        layer(normalised(network), input_space=given)


def test_zca_is_the_pools_own(network: Callable[..., nn.Module]) -> None:
    images = torch.rand(60, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    space = ddplug.datasets.zca.ZCASpace.fit(images)
    assert layer(normalised(network, space=space), input_space="zca").input_space is space


def test_images_whose_range_cannot_be_the_pools(network: Callable[..., nn.Module], batch: Batch) -> None:
    images, labels = batch
    unit = (images.sigmoid(), labels)
    with pytest.warns(ddplug.DDPlugWarning, match=r"run from 0\.\d+ to 0\.\d+, and these proxies.*input_space='unit'"):
        step(layer(normalised(network)), unit)
    with pytest.warns(ddplug.DDPlugWarning, match=r"run from -.*trained on images \[0, 1\]"):
        step(layer(normalised(network, space=UNIT)), batch)
    step(layer(normalised(network)), batch)
    step(layer(normalised(network), input_space="unit"), unit)
    step(layer(normalised(network, space=UNIT)), unit)


def test_labels_that_the_pools_data_does_not_have(network: Callable[..., nn.Module], batch: Batch) -> None:
    images, labels = batch
    named = normalised(network, class_names=("a", "b", "c"))
    with pytest.raises(ddplug.errors.InputError, match=r"labels up to 24.*3 classes \(0 to 2\)"):
        layer(named)(images.clone().requires_grad_(), labels + 22)
    step(layer(named), batch)
    with pytest.warns(ddplug.DDPlugWarning, match="labels up to 24, but the proxies tell 3 classes apart"):
        layer(normalised(network))(images.clone().requires_grad_(), labels + 22).sum().backward()


@pytest.mark.parametrize(("wrong", "remarked"), [(0, False), (8, False), (11, True), (12, True)])
def test_views_that_a_good_proxy_takes_for_something_else(
    network: Callable[..., nn.Module], batch: Batch, wrong: int, remarked: bool
) -> None:
    """Of 12 views, at least half of 0.9 should be right: the odds of 4 or fewer are 0.30, those of one are 0.008."""
    images, _ = batch
    names, record = ("a", "b", "c"), {"test_accuracy": 0.9}
    pool = ddplug.ProxyPool([Proxy(network(7), name="good", record=record)], PoolInfo(class_names=names))
    labels = pool.proxies[0](images, "logit").argmax(1)
    labels[:wrong] = (labels[:wrong] + 1) % 3
    if not remarked:
        step(layer(pool), (images, labels))
        return
    right = rf"'good', which is right on 90.0% of its test images, takes {12 - wrong} of 12 "
    with pytest.warns(ddplug.DDPlugWarning, match=f"{right}.*another order.*input_space=.*noise"):
        step(layer(pool), (images, labels))


def test_of_proxies_of_which_nothing_is_known_nothing_is_expected(
    network: Callable[..., nn.Module], batch: Batch
) -> None:
    images, _ = batch
    pool = ddplug.ProxyPool.from_modules([network(7)])
    step(layer(pool), (images, (pool.proxies[0](images, "logit").argmax(1) + 1) % 3))


@pytest.mark.parametrize(("accuracy", "remarked"), [(0.37, True), (0.55, True), (0.56, False), (0.9, False)])
def test_proxies_that_know_little(
    network: Callable[..., nn.Module], batch: Batch, accuracy: float, remarked: bool
) -> None:
    """Of three classes a third of the way from guessing, 1/3, to 1 is 5/9."""
    proxy = Proxy(network(7), name="weak", record={"test_accuracy": accuracy})
    pool = ddplug.ProxyPool([proxy], PoolInfo(class_names=("a", "b", "c")))
    if remarked:
        with pytest.warns(ddplug.DDPlugWarning, match="proxy 'weak' is right on .*guessing is right on 33.3%.*epochs"):
            step(layer(pool), batch)
    else:
        step(layer(pool), batch)


# bf16


def test_bf16_under_an_untrained_network_is_said(batch: Batch) -> None:
    with ddplug.networks.seeded(0):
        network = ddplug.networks.build("resnet18", num_classes=3, channels=3, size=(16, 16), width=4)
    images = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    regularizer = layer(ddplug.ProxyPool.from_modules([network]), compute=ddplug.Compute(precision="bf16"))
    with pytest.warns(ddplug.DDPlugWarning, match=r"in bf16 has a cosine of 0\.\d+ with the exact one"):
        regularizer(images.requires_grad_(), torch.arange(24) % 3).sum().backward()
    images.grad = None
    regularizer(images * 1, torch.arange(24) % 3).sum().backward()  # said once


def test_bf16_that_is_faithful_is_not_remarked_upon() -> None:
    """A linear network has no kinks."""
    with ddplug.networks.seeded(0):
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 16), nn.Linear(16, 3))
    images = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    regularizer = layer(ddplug.ProxyPool.from_modules([network]), compute=ddplug.Compute(precision="bf16"))
    regularizer(images.requires_grad_(), torch.arange(24) % 3).sum().backward()


# States


@pytest.mark.parametrize(
    ("name", "value", "options"),
    [
        ("representation", "feature", {"representation": "feature"}),
        ("temperature", 2.0, {"term": ddplug.terms.CMI(2.0)}),
        ("every", 2, {"compute": ddplug.Compute(every=2)}),
        ("draw", 2, {"compute": ddplug.Compute(draw=2)}),
        ("views", 2, {"views": 2}),
        ("set_size", 12, {"weighting": ddplug.Relative(1, set_size=12)}),
    ],
)
def test_a_state_goes_with_its_options(
    network: Callable[..., nn.Module], batch: Batch, name: str, value: Any, options: Any
) -> None:
    """A frozen lambda means something else under others."""
    pool = ddplug.ProxyPool.from_modules([network(1), network(2)])
    first = layer(pool, weighting=ddplug.Relative(1))
    step(first, batch)
    second = layer(pool, **{"weighting": ddplug.Relative(1), **options})
    before = second.state_dict()
    with pytest.raises(ddplug.errors.InputError, match=f"made with {name} .*here {value!r}"):
        second.load_state_dict(first.state_dict())
    assert repr(second.state_dict()) == repr(before)


def test_a_state_goes_with_its_proxies(network: Callable[..., nn.Module], batch: Batch) -> None:
    first = layer(ddplug.ProxyPool.from_modules([network(1)]), weighting=ddplug.Relative(1))
    step(first, batch)
    second = layer(ddplug.ProxyPool.from_modules([network(2)]), weighting=ddplug.Relative(1))
    with pytest.raises(ddplug.errors.InputError, match="made with other proxies"):
        second.load_state_dict(first.state_dict())
    assert second.lam is None
    layer(ddplug.ProxyPool.from_modules([network(1)]), weighting=ddplug.Relative(1)).load_state_dict(first.state_dict())


def test_a_pool_that_comes_with_the_run_is_compared_then(network: Callable[..., nn.Module], batch: Batch) -> None:
    from ddplug.proxies.pool import DeferredPool

    first = layer(ddplug.ProxyPool.from_modules([network(1)]), weighting=ddplug.Relative(1))
    step(first, batch)
    for seed, fits in ((1, True), (2, False)):
        deferred = DeferredPool("buffer:x")
        second = layer(deferred, weighting=ddplug.Relative(1))
        second.load_state_dict(first.state_dict())
        deferred.fill(ddplug.ProxyPool.from_modules([network(seed)]))
        if fits:
            step(second, batch)
            assert second.lam == first.lam
        else:
            with pytest.raises(ddplug.errors.InputError, match="made with other proxies"):
                step(second, batch)


# Small things that people reach for


class NoWayBack(nn.Module):
    """A layer that cannot be differentiated."""

    def forward(self, images: Tensor) -> Tensor:
        images = images * 1
        if images.requires_grad:
            images.register_hook(lambda _: pytest.fail("differentiated"))
        return images


@pytest.mark.numerical
def test_cmi_at_weight_zero_on_request(pool: ddplug.ProxyPool, batch: Batch, tmp_path: Any) -> None:
    """The baseline's curve: the host bit for bit as it is, and CMI of every round."""
    images, labels = batch
    regularizer, plain = layer(pool, 0.0, weighting="relative", record=True), images.clone().requires_grad_()
    plain.square().sum().backward()
    for factor in (1, 2):
        leaf = images.clone().requires_grad_()
        regularizer(factor * leaf, labels).square().sum().backward()
        if factor == 1:
            assert leaf.grad is not None
            assert plain.grad is not None
            assert torch.equal(leaf.grad, plain.grad)
    cmi = ddplug.CMI(pool, representation="logit")
    expected = [cmi(factor * images, labels).item() for factor in (1, 2)]
    assert regularizer.history.cmi == pytest.approx(expected, rel=1e-12)
    assert [r.lam for r in regularizer.history] == [0.0, 0.0]
    assert regularizer.lam is None
    proxy = ddplug.ProxyPool.from_modules([nn.Sequential(NoWayBack(), nn.Flatten(), nn.Linear(48, 3))])
    measuring = layer(proxy, 0.0, weighting="relative", record=True)
    measuring(images.float().requires_grad_() * 1, labels).sum().backward()
    assert len(measuring.history) == 1, "nothing is differentiated that is not needed"
    assert ddplug.attach(Loop(batch), 0, proxies=pool, record=True, announce=lambda line: None).regularizer.active


@pytest.mark.numerical
def test_the_share_of_every_round(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, _ = batch
    regularizer = layer(pool, 5.0)
    added = step(regularizer, batch) - 2 * images
    assert regularizer.history.share == [pytest.approx((added.norm() / (2 * images).norm()).item(), rel=1e-9)]


def test_a_history_as_a_file(pool: ddplug.ProxyPool, batch: Batch, tmp_path: Any) -> None:
    import json

    regularizer = layer(pool)
    step(regularizer, batch)
    regularizer.history.save(tmp_path / "cmi.json")
    record = json.loads((tmp_path / "cmi.json").read_text())
    assert (record["format"], record["rounds"], record["skipped"]) == ("ddplug-run", 1, 0)
    assert record["history"][0]["value"] == regularizer.history.cmi[0]
    assert record["history"][0]["share"] == regularizer.history.share[0]


def test_it_says_what_it_is(pool: ddplug.ProxyPool) -> None:
    regularizer = layer(pool)
    assert repr(regularizer) == f"Regularizer(weight=0.7, absolute, feature, {pool}, 0 rounds, lambda 0.7)"
    assert "measuring" in repr(layer(pool, weighting="relative"))
    regularizer.detach()
    assert "detached" in repr(regularizer)


def test_off_needs_no_pool(batch: Batch) -> None:
    regularizer = ddplug.Regularizer("nowhere", 0)
    views = batch[0].clone().requires_grad_()
    assert regularizer(views, batch[1]) is views
    with pytest.raises(ddplug.errors.ProxyError, match="no pool at 'nowhere'"):
        ddplug.Regularizer("nowhere", 0, record=True)


# What a hostile review found


@pytest.mark.parametrize("kind", ["schedule", "generator", "logged", "evaluated"])
def test_healthy_hosts_are_left_in_peace(pool: ddplug.ProxyPool, batch: Batch, kind: str) -> None:
    images, labels = batch
    if kind == "schedule":  # one that starts late
        loop = Loop(batch)
        options: dict[str, Any] = {
            "weighting": ddplug.Absolute(schedule=lambda number: float(number >= 100)),
            "announce": lambda line: None,
        }
        with ddplug.attach(loop, 0.7, proxies=pool, **options):
            for _ in range(60):
                loop.optimizer.zero_grad()
                loop.augment(loop.images, loop.labels).square().sum().backward()
                loop.optimizer.step()
        return
    regularizer, leaf = layer(pool), images.clone().requires_grad_()
    if kind == "generator":  # whose parameters nobody clears, as only the latents are optimised
        factor = torch.ones(1, dtype=torch.float64, requires_grad=True)
        for _ in range(6):
            leaf.grad = None
            regularizer(factor * leaf, labels).square().sum().backward()
            leaf.data -= 0.01 * leaf.grad  # type: ignore[operator]
    elif kind == "logged":  # a host that takes its gradients by itself
        for _ in range(6):
            (grad,) = torch.autograd.grad(regularizer(1.5 * leaf, labels).square().sum(), [leaf])
            leaf.data -= 0.01 * grad
    else:  # an evaluation without no_grad before the first step
        for _ in range(12):
            regularizer(leaf * 1, labels).sum().item()
        step(regularizer, batch)


def test_a_state_that_is_found_to_be_damaged_half_way_changes_nothing(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """The view comes last, and only it knows what its state may be."""
    options: dict[str, Any] = {"weighting": ddplug.Relative(1)}
    first, second = (layer(pool, views=ddplug.Views(2, nn.BatchNorm2d(3).double().eval()), **options) for _ in range(2))
    step(first, batch)
    before = repr(second.state_dict())
    with pytest.raises(ddplug.errors.InputError, match="(?s)damaged .*nothing was taken"):
        second.load_state_dict({**first.state_dict(), "view": {"weight": torch.ones(4)}})
    assert repr(second.state_dict()) == before
    second.load_state_dict(first.state_dict())
    assert second.lam == first.lam


def test_a_state_goes_with_the_space_of_the_images(network: Callable[..., nn.Module], batch: Batch) -> None:
    first, second = (layer(normalised(network), input_space=space) for space in ("unit", "normalized:svhn"))
    step(first, batch)
    with pytest.raises(ddplug.errors.InputError, match="input_space 'unit' .here 'normalized:svhn'"):
        second.load_state_dict(first.state_dict())


def test_a_copy_of_a_handle_has_nothing_to_undo(pool: ddplug.ProxyPool, batch: Batch) -> None:
    loop = Loop(batch)
    loop.handle = ddplug.attach(loop, 0.7, proxies=pool, announce=print)  # type: ignore[attr-defined]
    other: Any = copy.deepcopy(loop)
    assert not other.handle.attached
    other.handle.detach()
    loop.augment(loop.images, loop.labels).square().sum().backward()
    loop.optimizer.step()
    assert loop.handle.attached  # type: ignore[attr-defined]
    assert len(loop.handle.history) == 1  # type: ignore[attr-defined]
    loop.handle.detach()  # type: ignore[attr-defined]


def test_trainers_that_are_dropped_leave_one_hook_at_most(pool: ddplug.ProxyPool, batch: Batch) -> None:
    from torch.optim.optimizer import _global_optimizer_post_hooks as hooks

    before, alive = len(hooks), []
    for _ in range(5):
        loop = Loop(batch)
        handle = ddplug.attach(loop, 0.7, proxies=pool, announce=lambda line: None)
        handle.regularizer.watch.expect("never acts")
        alive.append(weakref.ref(handle.regularizer))
        del loop, handle
    gc.collect()
    assert [ref() for ref in alive] == [None] * 5
    assert len(hooks) <= before + 1


def test_a_share_of_no_gradient_is_none(pool: ddplug.ProxyPool, batch: Batch) -> None:
    regularizer = layer(pool)
    (regularizer(batch[0].clone().requires_grad_(), batch[1]).sum() * 0).backward()
    assert regularizer.history.share == [None]


def test_spaces_by_name_of_a_pool_that_is_not_there_yet(network: Callable[..., nn.Module], batch: Batch) -> None:
    from ddplug.proxies.pool import DeferredPool

    for weight in (0, 1):
        assert ddplug.Regularizer(DeferredPool("x"), weight, input_space="zca").input_space is None
        with pytest.raises(ddplug.errors.InputError, match="unknown input space 'unti'"):
            ddplug.Regularizer(DeferredPool("x"), weight, input_space="unti")
    deferred = DeferredPool("x")
    regularizer = layer(deferred, input_space="unit")
    deferred.fill(normalised(network))
    step(regularizer, (batch[0].sigmoid(), batch[1]))
    assert regularizer.input_space == UNIT
