"""The advice of the messages of `ddplug.attach`, followed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from advice.following import Cases, Cause, World
from attaching.loop import LAM, Trainer, attach, check
from ddplug.attaching import registry
from ddplug.attaching.loggers import CSVLog
from ddplug.proxies.pool import PoolInfo

advice = Cases()


def hosted(world: World, **held: Any) -> SimpleNamespace:
    """A trainer of what it is made with, whose optimizer steps `syn` and everything else that needs a gradient."""
    host = SimpleNamespace(**{"syn": world.leaf(), **held})
    leaves = [each for each in vars(host).values() if isinstance(each, Tensor) and each.requires_grad]
    host.optimizer = torch.optim.SGD(leaves, lr=0.1)
    return host


def acts(world: World, trainer: Any, run: Callable[[], object] | None = None, **options: Any) -> None:
    """Attached, a step has the gradient of the loss and of CMI with the right labels."""

    def step() -> None:
        trainer.syn.sum().backward()
        trainer.optimizer.step()

    leaf = world.leaf()
    options = {"augment": "none", **options} if run is None else options
    with attach(trainer, world.pool, **options) as handle:
        (run or step)()
    (of_cmi,) = torch.autograd.grad(ddplug.CMI(world.pool)(leaf, world.labels), leaf)
    torch.testing.assert_close(trainer.syn.grad - 1, LAM * of_cmi, rtol=1e-9, atol=1e-12)
    assert len(handle.history) == 1


class Loop:
    """A trainer whose `augment` leaves the images as they are, and needs labels."""

    def __init__(self, world: World, augment: Callable[[Tensor], Tensor], **held: Any) -> None:
        self.syn, self._augment = world.leaf(), augment
        self.optimizer = torch.optim.SGD([self.syn], lr=0.1)
        vars(self).update(held)

    def augment(self, images: Tensor) -> Tensor:
        return self._augment(images)

    def run(self) -> None:
        self.augment(self.syn).sum().backward()
        self.optimizer.step()


@advice("unknown augment 'dsa', expected 'host', 'none', 'kornia' or a ddplug.augment.DSA")
def _(world: World) -> Iterator[Cause]:
    batch = world.images, world.labels
    yield lambda: attach(Trainer(*batch), world.pool, augment="dsa")
    for augment in ("host", "none", "kornia", ddplug.augment.DSA()):
        trainer = Trainer(*batch)
        with attach(trainer, world.pool, augment=augment) as handle:
            trainer.gradient()
        assert len(handle.history) == 1


@advice("no proxies given ... Pass data= (a data set, or images and labels), or proxies= (trained networks")
def _(world: World) -> Iterator[Cause]:
    batch = world.images, world.labels
    yield lambda: ddplug.attach(Trainer(*batch))
    data = torch.rand(60, 3, 4, 4), torch.arange(60) % 3
    for given in ({"data": data}, {"proxies": [world.network(7)]}):
        trainer = Trainer(*batch)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ddplug.proxies.pretrain.default_pool", lambda _: world.pool)  # takes minutes
            handle = ddplug.attach(trainer, LAM, weighting="absolute", announce=lambda line: None, **given)
        trainer.gradient()
        handle.detach()
        assert len(handle.history) == 1


@advice("1 steps of the images, and CMI was added in none ... Attach where they pass, at='NAME', or to the optimizer")
def _(world: World) -> Iterator[Cause]:
    class Other(Loop):
        """Calls another method than the one that looks like the augmentation."""

        def run(self) -> None:
            self.flip(self.syn).sum().backward()
            self.optimizer.step()

        def flip(self, images: Tensor) -> Tensor:
            return images * 1

    def made() -> Other:
        return Other(world, lambda images: images, labels=world.labels)

    def ended() -> None:
        trainer = made()
        with attach(trainer, world.pool):
            trainer.run()

    yield ended
    acts(world, trainer := made(), trainer.run, at="flip")
    trainer = made()
    with attach(trainer.optimizer, world.pool, labels=trainer.labels) as handle:  # type: ignore[attr-defined]
        trainer.run()
    assert len(handle.history) == 1


@advice("Loop has no method or function 'agument'; it has: augment, run")
def _(world: World) -> Iterator[Cause]:
    trainer = Loop(world, lambda images: images * 1, labels=world.labels)
    yield lambda: attach(trainer, world.pool, at="agument")
    acts(world, trainer, trainer.run, at="augment")


@advice("got the class Trainer, expected an instance of it or a module: attach once it is made")
def _(world: World) -> Iterator[Cause]:
    yield lambda: attach(Trainer, world.pool)
    check(Trainer(world.images, world.labels), world.pool, (world.images, world.labels))


@advice("is compiled by torch.jit, which takes no hooks. Call it in a function or method and attach there: at='NAME'")
def _(world: World) -> Iterator[Cause]:
    class Jitted(Loop):
        def views(self, images: Tensor) -> Tensor:
            return self.net(images)

        def run(self) -> None:
            self.views(self.syn).sum().backward()
            self.optimizer.step()

    with pytest.warns(FutureWarning):
        net = torch.jit.script(nn.Identity())
    trainer = Jitted(world, lambda images: images, net=net, labels=world.labels)
    yield lambda: attach(trainer, world.pool, at="net")
    acts(world, trainer, trainer.run, at="views")


@advice("Slots.augment cannot be replaced ... views = ddplug.Regularizer(proxies, weight)(views, labels)")
def _(world: World) -> Iterator[Cause]:
    class Slots:
        __slots__ = ("labels",)

        def augment(self, images: Tensor, labels: Tensor) -> Tensor:
            return images * 1

    yield lambda: attach(Slots(), world.pool)
    by_hand(world)


def by_hand(world: World) -> None:
    """The line that puts the layer into a loop, in each step."""
    proxies, weight, labels, leaf = world.pool, 1.0, world.labels, world.leaf()
    regularizer = ddplug.Regularizer(proxies, weight)
    for _ in range(2):
        views = regularizer(leaf, labels)
        views.sum().backward()
        torch.optim.SGD([leaf], lr=0.1).step()
    assert regularizer.rounds == 2


@advice("no place for the regulariser was found ... Say where: attach(..., at='NAME', labels='NAME'), or put")
def _(world: World) -> Iterator[Cause]:
    class Strange(Loop):
        def munge(self, stuff: Tensor) -> Tensor:
            return stuff * 1

        def run(self) -> None:
            self.munge(self.syn).sum().backward()
            self.steps.step()

    def made() -> Strange:
        trainer = Strange(world, lambda images: images, which=world.labels)
        trainer.augment, trainer.steps = None, trainer.__dict__.pop("optimizer")  # type: ignore[assignment]
        trainer.syn.requires_grad_()
        return trainer

    yield lambda: attach(SimpleNamespace(munge=lambda stuff: stuff, which=world.labels), world.pool)
    trainer = made()
    acts(world, trainer, trainer.run, at="munge", labels="which")
    by_hand(world)


@advice("loss is attached to as a loss ... to the augmentation (at='augment'), or to the optimizer of the images")
def _(world: World) -> Iterator[Cause]:
    trainer = Trainer(world.images, world.labels)
    yield lambda: attach(trainer, world.pool, at="loss", augment="none")
    check(trainer, world.pool, (world.images, world.labels), at="augment", augment="none", scale=1)
    with attach(trainer.optimizer, world.pool, labels=world.labels, augment="none") as handle:
        trainer.gradient()
    assert len(handle.history) == 1


@advice("has no image argument ... name it with images='...'")
def _(world: World) -> Iterator[Cause]:
    class Munges(Loop):
        def augment(self, stuff: Tensor) -> Tensor:  # type: ignore[override]
            return stuff * 2

    trainer = Munges(world, lambda images: images, labels=world.labels)
    yield lambda: attach(trainer, world.pool, at="augment", augment="none")
    with attach(trainer, world.pool, at="augment", augment="none", images="stuff") as handle:
        trainer.run()
    assert len(handle.history) == 1


@advice("images='pictures' holds no leaf ... a tensor or a list of tensors, or the name of an attribute or an argument")
def _(world: World) -> Iterator[Cause]:
    def made() -> Loop:
        return Loop(world, lambda images: images * 1, labels=world.labels)

    yield lambda: attach(made(), world.pool, images="pictures")
    for given in (lambda host: host.syn, lambda host: [host.syn], lambda host: "syn", lambda host: "images"):
        acts(world, trainer := made(), trainer.run, images=given(trainer))


@advice("loss: not taken, as there is an augmentation; at='loss' if it sees the images")
def _(world: World) -> Iterator[Cause]:
    class Losing(Loop):
        def loss(self, images: Tensor, labels: Tensor) -> Tensor:
            return images.sum()

        def run(self) -> None:
            self.loss(self.syn * 1, world.labels).backward()
            self.optimizer.step()

    trainer = Losing(world, lambda images: images)
    optimizer = trainer.__dict__.pop("optimizer")
    yield lambda: attach(trainer, world.pool)
    trainer.optimizer = optimizer
    acts(world, trainer, trainer.run, at="loss")


# Labels


def labels_four_ways(world: World, made: Callable[[], Any]) -> None:
    """Pass labels= as the messages list them, to a trainer with `run`, of whose views there is one per image."""
    trainer = made()
    trainer.kinds = world.labels
    for given in (world.labels, "kinds", lambda views: world.labels):
        trainer = made()
        trainer.kinds = world.labels
        acts(world, trainer, trainer.run, labels=given)


class PerClass(Loop):
    """Takes one class after the other."""

    def run(self) -> None:
        for label in range(3):
            self.augment(self.syn[self.order == label]).sum().backward()  # type: ignore[attr-defined]
            self.optimizer.step()
            self.optimizer.zero_grad()


@advice("no labels for 'augment(images ... Pass labels= ... ddplug.one_class_per_call(classes)")
def _(world: World) -> Iterator[Cause]:
    yield lambda: attach(Loop(world, lambda images: images * 1), world.pool, at="augment")
    labels_four_ways(world, lambda: Loop(world, lambda images: images * 1))
    trainer = PerClass(world, lambda images: images * 1, order=world.labels)
    share = ddplug.Relative(set_size=12)
    with attach(trainer, world.pool, labels=ddplug.one_class_per_call(3), weighting=share) as handle:
        trainer.run()
    assert len(handle.history) == 3


@advice("no labels for the 12 synthetic images ... Integers of other names or lengths: order (12,) ... Pass labels=")
def _(world: World) -> Iterator[Cause]:
    def made() -> Loop:
        return Loop(world, lambda images: images * 1, order=world.labels, targets=world.labels[:7])

    def later() -> None:
        optimizer = (trainer := made()).__dict__.pop("optimizer")
        with attach(trainer, world.pool):
            trainer.optimizer = optimizer
            trainer.run()

    yield later
    labels_four_ways(world, made)


@advice("'labels' (12, 3) may be soft or one-hot labels ... CMI needs class numbers, one for each image. Pass labels=")
def _(world: World) -> Iterator[Cause]:
    def made() -> Loop:
        return Loop(world, lambda images: images * 1, labels=nn.functional.one_hot(world.labels).double())

    yield lambda: run(made(), world, labels=None)
    labels_four_ways(world, made)


def run(trainer: Any, world: World, **options: Any) -> None:
    with attach(trainer, world.pool, **options) as handle:
        handle.regularizer.watch.expect("never acts")
        trainer.run()


@advice("may be labels, targets, which differ. Pass labels=")
def _(world: World) -> Iterator[Cause]:
    def made() -> Loop:
        return Loop(world, lambda images: images * 1, labels=world.labels, targets=world.labels.flip(0))

    yield lambda: run(made(), world)
    labels_four_ways(world, made)


@advice("one class per call needs class numbers >= 0, or how many there are, got -1")
def _(world: World) -> Iterator[Cause]:
    yield lambda: ddplug.one_class_per_call(-1)
    assert ddplug.one_class_per_call(3).classes == ddplug.one_class_per_call([0, 1, 2]).classes


@advice("one_class_per_call: a call ... came on images of several classes ... Pass labels=: a tensor (n,)")
def _(world: World) -> Iterator[Cause]:
    class Parts(Loop):
        def run(self) -> None:
            for rows in (slice(0, 4), slice(4, 8), slice(0, 12)):
                views = self.augment(self.syn[rows])
            views.sum().backward()
            self.optimizer.step()

    def made() -> Parts:
        return Parts(world, lambda images: images * 1)

    yield lambda: run(made(), world, labels=ddplug.one_class_per_call(3))
    acts(world, trainer := made(), trainer.run, labels=world.labels)


@advice("Loop.augment was called on synthetic images without 'kinds'. Pass labels=")
def _(world: World) -> Iterator[Cause]:
    def made() -> Loop:
        return Loop(world, lambda images: images * 1)

    def gone() -> None:
        (trainer := made()).kinds = world.labels  # type: ignore[attr-defined]
        with attach(trainer, world.pool, labels="kinds"):
            del trainer.kinds  # type: ignore[attr-defined]
            trainer.run()

    yield gone
    labels_four_ways(world, made)


@advice("the labels passed to Passing.augment differ from 'labels' ... Name those that are meant. Pass labels=")
def _(world: World) -> Iterator[Cause]:
    class Passing(Loop):
        def augment(self, images: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
            return images * 1

        def run(self) -> None:
            self.augment(self.syn, world.labels.flip(0)).sum().backward()
            self.optimizer.step()

    def made() -> Passing:
        return Passing(world, lambda images: images, labels=world.labels)

    yield lambda: run(made(), world)
    labels_four_ways(world, made)
    acts(world, trainer := made(), trainer.run, labels="labels")


@advice("several images each ... Attach before the images are mixed, or name the labels of the views. Pass labels=")
def _(world: World) -> Iterator[Cause]:
    class Mixing(Loop):
        def crop(self, images: Tensor) -> Tensor:
            return images * 1

        def run(self) -> None:
            self.augment(self.crop(self.syn)).sum().backward()
            self.optimizer.step()

    def made() -> Mixing:
        mixed = torch.eye(12, dtype=torch.float64) / 2 + torch.eye(12, dtype=torch.float64).roll(1, 0) / 2
        return Mixing(world, lambda images: torch.einsum("nm,mchw->nchw", mixed, images), labels=world.labels)

    yield lambda: run(made(), world)
    acts(world, trainer := made(), trainer.run, at="crop")
    with attach(trainer := made(), world.pool, labels=lambda views: world.labels) as handle:
        trainer.run()
    assert len(handle.history) == 1


@advice("between them is a checkpointed function ... Pass labels= ... a function from the views to their labels")
def _(world: World) -> Iterator[Cause]:
    class Again(Loop):
        def run(self) -> None:
            from torch.utils.checkpoint import checkpoint

            checkpoint(self.augment, self.syn, use_reentrant=True).sum().backward()
            self.optimizer.step()

    def made() -> Again:
        return Again(world, lambda images: images * 1, labels=world.labels)

    yield lambda: run(made(), world)
    acts(world, trainer := made(), trainer.run, labels=lambda views: world.labels)


# Images that an optimizer steps


@advice("the labels of its 12 images; pass labels= as a tensor of shape (12,) ... or a function from the images")
def _(world: World) -> Iterator[Cause]:
    yield lambda: attach(hosted(world).optimizer, world.pool)
    for labels in (world.labels, lambda images: world.labels):
        host = hosted(world)
        with attach(host.optimizer, world.pool, labels=labels) as handle:
            host.syn.sum().backward()
            host.optimizer.step()
        assert len(handle.history) == 1


@advice(
    "'syn' of shape (12, 3, 4, 4) may be the 12 synthetic ... Under other names: kinds. Pass labels=: such a name, or a"
)
def _(world: World) -> Iterator[Cause]:
    yield lambda: attach(hosted(world, kinds=world.labels), world.pool)
    for labels in ("kinds", world.labels):
        acts(world, hosted(world, kinds=world.labels), labels=labels)


class Generator(nn.Module):
    """Makes images of latents."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.latents = nn.Parameter(world.images.flatten(1)[:, :5].clone())
        self.register_buffer("matrix", torch.ones(5, 48, dtype=torch.float64))
        self.optimizer = torch.optim.SGD([self.latents], lr=0.1)

    def decode(self, latents: Tensor) -> Tensor:
        return (latents @ self.matrix).reshape(-1, 3, 4, 4)

    def run(self) -> None:
        self.decode(self.latents).sum().backward()
        self.optimizer.step()


@advice("an optimizer steps 'latents' ... holds no images of shape (3, 4, 4) ... at='NAME', labels=...")
def _(world: World) -> Iterator[Cause]:
    data = torch.rand(60, 3, 4, 4), torch.arange(60) % 3
    yield lambda: attach(Generator(world), world.pool, data=data)
    with attach(trainer := Generator(world), world.pool, at="decode", labels=world.labels) as handle:
        trainer.run()
    assert len(handle.history) == 1


@advice("evaluates its closure several times a step ... (SGD, Adam, ...), or add CMI to the loss: ddplug.CMI")
def _(world: World) -> Iterator[Cause]:
    def run(kind: Any, **settings: Any) -> ddplug.Handle:
        optimizer = kind([leaf := world.leaf()], **settings)

        def closure() -> Tensor:
            optimizer.zero_grad()
            (loss := leaf.square().sum()).backward()
            return loss

        with attach(optimizer, world.pool, labels=world.labels) as handle:
            optimizer.step(closure)
        return handle

    yield lambda: run(torch.optim.LBFGS, line_search_fn="strong_wolfe")
    for kind in (torch.optim.SGD, torch.optim.Adam):
        assert len(run(kind, lr=0.1).history) == 1
    world.loss_form()


@advice("has a first_step, as SAM has ... Attach where views pass: attach(trainer, at='NAME')")
def _(world: World) -> Iterator[Cause]:
    class SAM(torch.optim.SGD):
        def first_step(self) -> None:
            """Perturb the images."""

    def made() -> Loop:
        trainer = Loop(world, lambda images: images * 1, labels=world.labels)
        trainer.optimizer = SAM([trainer.syn], lr=0.1)
        return trainer

    yield lambda: attach(made().optimizer, world.pool, labels=world.labels)
    acts(world, trainer := made(), trainer.run, at="augment")


@advice(
    "the leaf (12, 5) that the optimizer steps holds no images ... attach to what makes them: at='NAME' of that method"
)
def _(world: World) -> Iterator[Cause]:
    pool = ddplug.ProxyPool.from_modules([world.network(7)], info=PoolInfo(shape=(3, 4, 4)))
    trainer = Generator(world)

    def stepped() -> None:
        with attach(trainer, pool, images=[trainer.latents], labels=world.labels):
            trainer.run()

    yield stepped
    with attach(trainer := Generator(world), pool, at="decode", labels=world.labels) as handle:
        trainer.run()
    assert len(handle.history) == 1


@advice("between them is 2 tensors, whose order is unknown; name them by images=")
def _(world: World) -> Iterator[Cause]:
    halves = [half.clone().requires_grad_() for half in (world.images[:6], world.images[6:])]
    optimizer = torch.optim.SGD(halves, lr=0.1)

    class Local:
        labels = world.labels

        def augment(self, images: Tensor) -> Tensor:
            return images * 1

    def step(**options: Any) -> ddplug.Handle:
        optimizer.zero_grad()
        with attach(trainer := Local(), world.pool, **options) as handle:
            handle.regularizer.watch.expect("never acts")
            trainer.augment(torch.cat(halves)).sum().backward()
            optimizer.step()
        return handle

    yield step
    assert len(step(images=halves).history) == 1


@advice("so the step is the round, whatever passes it took: leave out round()")
def _(world: World) -> Iterator[Cause]:
    def step(rounds: Callable[[ddplug.Handle], Any]) -> ddplug.Handle:
        host = hosted(world, labels=world.labels)
        with attach(host, world.pool) as handle:
            handle.regularizer.watch.expect("never acts")
            with rounds(handle):
                for half in (slice(0, 6), slice(6, 12)):
                    host.syn[half].sum().backward()
                host.optimizer.step()
        return handle

    yield lambda: step(lambda handle: handle.round())
    assert len(step(lambda handle: nullcontext()).history) == 1


# Adapters


class Mine:
    """An adapter of a host with `hook`."""

    def recognises(self, host: object) -> bool:
        return hasattr(host, "hook")

    def install(self, host: Any, regularizer: ddplug.Regularizer) -> Callable[[], None]:
        host.hook = regularizer
        return lambda: None


class Configured(Mine):
    def configure(self, views: str, inner: str) -> None:
        """Take any."""


def adapted(world: World, adapter: type[Mine], **options: Any) -> None:
    """Attach to a host that `adapter` knows, and step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_ADAPTERS", {})
        ddplug.adapters.register("mine")(adapter)
        host = SimpleNamespace(hook=None, syn=world.leaf())
        with attach(host, world.pool, **options) as handle:
            host.hook(host.syn, world.labels).sum().backward()
        assert len(handle.history) == 1


@advice("host mine augments real and synthetic images itself; augment='kornia' or a DSA is for loops without")
def _(world: World) -> Iterator[Cause]:
    yield lambda: adapted(world, Configured, augment="kornia")
    adapted(world, Configured)


@advice("the adapter of mine has no options; leave out augment= and inner=")
def _(world: World) -> Iterator[Cause]:
    yield lambda: adapted(world, Mine, inner="last")
    adapted(world, Mine)


@advice("there already is an adapter named 'mine'; choose another name")
def _(world: World) -> Iterator[Cause]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_ADAPTERS", {"mine": Mine})
        yield lambda: ddplug.adapters.register("mine")(Configured)
        ddplug.adapters.register("another")(Configured)
        assert "another" in ddplug.adapters.names()


@advice("is not an adapter: it needs the methods recognises(host) and install(host, regularizer)")
def _(world: World) -> Iterator[Cause]:
    def load(name: str) -> object:
        return registry._load(EntryPoint("mine", f"{__name__}:{name}", registry.GROUP))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, __name__, SimpleNamespace(Loop=SimpleNamespace, Mine=Mine))
        yield lambda: load("Loop")
        assert isinstance(load("Mine"), registry.Adapter)


# Logs


@advice("begins with 'step,loss', so it is no log of rounds; give another file")
def _(world: World) -> Iterator[Cause]:
    (world.path / "log.csv").write_text("step,loss\n")
    yield lambda: CSVLog(world.path / "log.csv")
    CSVLog(world.path / "other.csv").close()
    assert (world.path / "other.csv").read_text().startswith("number,")


@pytest.mark.parametrize("message", advice)
def test_the_advice_works(message: str, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    advice.follow(message, world)
