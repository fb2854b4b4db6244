"""The advice of the messages of terms and of the layer, followed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from advice.following import Cases, Cause, World
from ddplug.core.compiled import Compiled
from ddplug.core.flags import keywords
from ddplug.core.options import Compute
from ddplug.terms.combined import Sum

advice = Cases()


# Terms


@advice("unknown term 'cim' ... a sum such as 'cmi+0.3*proxy_ce', or an instance of a class derived from")
def _(world: World) -> Iterator[Cause]:
    yield lambda: world.layer(term="cim")

    class Cim(ddplug.terms.Term):
        def __call__(self, features: Tensor, groups: Any) -> Tensor:
            return features.square().sum()

    for term in ("cmi+0.3*proxy_ce", Cim()):
        world.acts(world.layer(term=term, representation="logit"))


@advice("a sum has no terms; expected factors by name, e.g. {'cmi': 1, 'proxy_ce': 0.3}")
def _(world: World) -> Iterator[Cause]:
    yield lambda: world.layer(term={})
    world.acts(world.layer(term={"cmi": 1, "proxy_ce": 0.3}, representation="logit"))


@advice("term 'cmi' occurs 2 times in a sum ... add its factors up, or give the class of one another name")
def _(world: World) -> Iterator[Cause]:
    class Hot(ddplug.terms.CMI):
        name = "hot"

    yield lambda: world.layer(term="cmi+2*cmi")
    one = world.step(world.layer(representation="logit"))
    torch.testing.assert_close(world.step(world.layer(term="3*cmi", representation="logit")), 3 * one)
    both = Sum([(1, ddplug.terms.CMI()), (2, Hot())])
    torch.testing.assert_close(world.step(world.layer(term=both, representation="logit")), 3 * one)


@advice(
    "every class has exactly one image here ... Use more images per class; or several views of every image (views=4, "
    "--views-per-image 4); or CMI around the centroids of real images (term='cmi_real', data="
)
def _(world: World) -> Iterator[Cause]:
    three = {"images": world.images[:3], "labels": torch.arange(3)}
    yield lambda: world.step(world.layer(), **three)
    world.acts(world.layer(views=4), **three)
    world.acts(world.layer(term="cmi_real", data=(world.images.sigmoid(), world.labels)), **three)
    world.acts(world.layer(), images=world.images[:6], labels=torch.arange(6) % 3)


@advice("labels must be integers ... torch.float64 of shape (12, 3) ... e.g. labels.argmax(1)")
def _(world: World) -> Iterator[Cause]:
    labels = nn.functional.one_hot(world.labels).double()
    yield lambda: world.layer()(world.leaf(), labels)
    world.acts(world.layer(), labels=labels.argmax(1))


@advice("labels must be integers ... torch.float64 of shape (12, 1) ... e.g. labels.flatten().long()")
def _(world: World) -> Iterator[Cause]:
    labels = world.labels.double()[:, None]
    yield lambda: world.layer()(world.leaf(), labels)
    torch.testing.assert_close(world.step(world.layer(), labels=labels.flatten().long()), world.step(world.layer()))


@advice("got labels of shape (12, 1) for 12 images, expected shape (12,)")
def _(world: World) -> Iterator[Cause]:
    yield lambda: world.layer()(world.leaf(), world.labels[:, None])
    world.acts(world.layer(), labels=world.labels)


@advice("labels must be class numbers >= 0, got -1. Images without a class (often marked -1) ... leave them out")
def _(world: World) -> Iterator[Cause]:
    labels = world.labels.masked_fill(torch.arange(12) == 3, -1)
    yield lambda: world.layer()(world.leaf(), labels)
    world.acts(world.layer(), world.images[labels >= 0], labels=labels[labels >= 0])


@advice("positions=5 does not divide the 12 features ... 1 for logits")
def _(world: World) -> Iterator[Cause]:
    def layer(positions: int, representation: str) -> ddplug.Regularizer:
        term = ddplug.terms.make("covariance", positions=positions)
        return world.layer(term=term, representation=representation)

    real = {"real": (world.images + 1, world.labels)}
    yield lambda: world.step(layer(5, "feature"), **real)
    world.acts(layer(1, "logit"), **real)


@advice(
    "has none. Pass data=, a data set or (images, labels), or ... regularizer(views, labels, real=(images, labels))"
)
def _(world: World) -> Iterator[Cause]:
    images, labels = world.images.sigmoid(), world.labels
    yield lambda: world.step(world.layer(term="mim"))
    world.acts(world.layer(term="mim", data=(images, labels)))
    world.acts(world.layer(term="mim"), real=(images, labels))


# Core


@advice(
    "unknown weighting 'frozen', expected 'relative', ... or a ddplug.Relative, ddplug.Sustained or ddplug.Absolute"
)
def _(world: World) -> Iterator[Cause]:
    yield lambda: world.layer(weighting="frozen")
    for how in ("relative", "sustained", "absolute", ddplug.Relative(1), ddplug.Sustained(1), ddplug.Absolute()):
        layer = world.layer(weighting=how)
        world.step(layer)
        assert layer.rounds == 1


@advice("unknown precision 'half', expected auto, exact, bf16")
def _(world: World) -> Iterator[Cause]:
    yield lambda: Compute(precision="half")  # type: ignore[arg-type]
    for precision in ("auto", "exact"):
        world.acts(world.layer(compute=Compute(precision=precision)))  # type: ignore[arg-type]


@advice("chunk=4 takes 12 images apart ... Leave chunk out, which keeps this batch whole")
def _(world: World) -> Iterator[Cause]:
    network = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), world.network(7)).double()
    pool = ddplug.ProxyPool.from_modules([network])
    yield lambda: world.step(world.layer(pool=pool, compute=ddplug.Compute(chunk=4)))
    world.acts(world.layer(pool=pool, compute=ddplug.Compute()))


@advice("classes=2 lets some classes stand for all ... leave classes out")
def _(world: World) -> Iterator[Cause]:
    yield lambda: world.layer(term="ncmi", compute=ddplug.Compute(classes=2))
    world.acts(world.layer(term="ncmi", compute=ddplug.Compute()))


@advice("weight of a Regularizer cannot be changed; make another one with it")
def _(world: World) -> Iterator[Cause]:
    yield lambda: setattr(world.layer(), "weight", 2.0)
    torch.testing.assert_close(world.step(world.layer(2.0)), 2 * world.step(world.layer()))


@advice("this state was made with weight 2.0 ... Give the same options, or start without the state")
def _(world: World) -> Iterator[Cause]:
    earlier = world.layer(2.0)
    world.acts(earlier)
    layer = world.layer()
    yield lambda: layer.load_state_dict(earlier.state_dict())
    world.acts(layer)
    (same := world.layer(2.0)).load_state_dict(earlier.state_dict())
    world.acts(same)


@advice("made with other proxies ... Give the same proxies, in the same order, or start without the state")
def _(world: World) -> Iterator[Cause]:
    networks = [world.network(1), world.network(2)]
    earlier = world.layer(pool=networks)
    world.acts(earlier)
    yield lambda: world.layer(pool=networks[::-1]).load_state_dict(earlier.state_dict())
    (same := world.layer(pool=networks)).load_state_dict(earlier.state_dict())
    world.acts(same)


@advice("a second time ... Use the loss form there ... loss = loss + lam * ddplug.CMI(proxies)(views, labels)")
def _(world: World) -> Iterator[Cause]:
    leaf = world.leaf()

    def twice(loss: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), leaf)[0]

    yield lambda: twice(world.layer()(leaf, world.labels).square().sum())
    loss, lam, proxies, views, labels = leaf.square().sum(), 1.0, world.pool, leaf, world.labels
    without = twice(loss)
    assert (twice(loss + lam * ddplug.CMI(proxies)(views, labels)) - without).norm() > 0


@advice(
    "was used within torch.func ... Use the loss form there: loss = loss + lam * ddplug.CMI(proxies)(views, labels)"
)
def _(world: World) -> Iterator[Cause]:
    yield lambda: torch.func.grad(lambda views: world.layer()(views, world.labels).sum())(world.images)
    loss_form = torch.func.grad(lambda views: ddplug.CMI(world.pool)(views, world.labels))(world.images)
    torch.testing.assert_close(loss_form, world.loss_form())


@advice("ddplug.CMI was called within torch.vmap ... for each set in a loop; torch.func.grad, jvp and jacfwd work")
def _(world: World) -> Iterator[Cause]:
    sets, cmi = world.images.expand(2, -1, -1, -1, -1), ddplug.CMI(world.pool)
    yield lambda: torch.vmap(lambda images: cmi(images, world.labels))(sets)
    assert all(cmi(images, world.labels) > 0 for images in sets)

    def of(images: Tensor) -> Tensor:
        return cmi(images, world.labels)

    grad, along = torch.func.grad(of)(world.images), torch.ones_like(world.images)
    _, slope = torch.func.jvp(of, (world.images,), (along,))
    torch.testing.assert_close(slope, grad.sum())
    torch.testing.assert_close(torch.func.jacfwd(of)(world.images), grad)


@advice("create_graph=True came within a round ... Use plain backward passes there, or the loss form, ddplug.CMI")
def _(world: World) -> Iterator[Cause]:
    layer, leaf = world.layer(), world.leaf()

    def in_round(**how: bool) -> None:
        with layer.round():
            for _ in range(2):
                layer(leaf, world.labels).sum().backward(**how)

    yield lambda: in_round(create_graph=True)
    in_round()
    assert layer.rounds == 1
    world.loss_form()


@advice("changed in place after they passed ... Put the layer after the change, or make the change on a copy")
def _(world: World) -> Iterator[Cause]:
    layer = world.layer()
    yield lambda: world.step(lambda images, labels: layer(images * 1, labels).add_(1))
    world.acts(layer := world.layer())
    assert world.step(lambda images, labels: layer((images * 1).add_(1), labels)).norm() > 0
    assert world.step(lambda images, labels: layer(images * 1, labels).clone().add_(1)).norm() > 0
    assert layer.rounds == 3


@advice("an optimizer evaluates its closure at several images ... Use the loss form there: loss = loss")
def _(world: World) -> Iterator[Cause]:
    def search(loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = world.leaf()
        optimizer = torch.optim.LBFGS([leaf], line_search_fn="strong_wolfe")

        def closure() -> float:
            optimizer.zero_grad()
            (loss := loss_of(leaf)).backward()
            return loss.item()

        optimizer.step(closure)
        return loss_of(leaf) / loss_of(world.images)

    layer, lam, proxies, labels = world.layer(), 1.0, world.pool, world.labels
    yield lambda: search(lambda views: layer(views, labels).square().sum())
    assert search(lambda views: views.square().sum() + lam * ddplug.CMI(proxies)(views, labels)) < 0.1


@advice("stepped, or changed in place, within a round ... Put the step after the `with regularizer.round():` block")
def _(world: World) -> Iterator[Cause]:
    regularizer, leaf = world.layer(), world.leaf()
    optimizer = torch.optim.SGD([leaf], lr=0.1)

    def within() -> None:
        with regularizer.round():
            regularizer(leaf, world.labels).sum().backward()
            optimizer.step()

    yield within
    with regularizer.round():
        regularizer(leaf, world.labels).sum().backward()
    optimizer.step()
    assert regularizer.rounds == 1


@advice("1 batches of views ended, and no gradient ... belong within the `with regularizer.round():` block")
def _(world: World) -> Iterator[Cause]:
    regularizer, leaf = world.layer(), world.leaf()

    def after() -> None:
        with regularizer.round():
            views = regularizer(leaf, world.labels)
        views.sum().backward()

    yield after
    with regularizer.round():
        regularizer(leaf, world.labels).sum().backward()
    torch.optim.SGD([leaf], lr=0.1).step()
    assert regularizer.rounds == 1


@advice("more than set_size=6 for the whole set ... Count every view of an image: set_size is in views")
def _(world: World) -> Iterator[Cause]:
    yield lambda: world.step(world.layer(weighting=ddplug.Absolute(set_size=6)))
    world.acts(world.layer(weighting=ddplug.Absolute(set_size=12)))


@advice("100 times the share ... ddplug.Relative(rounds=...), or all the time, weighting='sustained'")
def _(world: World) -> Iterator[Cause]:
    def run(how: Any) -> ddplug.Regularizer:
        layer, leaf = world.layer(0.1, weighting=how), world.leaf()
        for number in range(30):
            (0.8**number * layer(leaf, world.labels)).sum().backward()
            torch.optim.SGD([leaf], lr=0.0).step()
            leaf.grad = None
        assert layer.rounds == 30
        return layer

    yield lambda: run(ddplug.Relative(rounds=1))
    run(ddplug.Relative(rounds=20))
    run("sustained")


@advice("the further views of 12 images are 12, expected 24 ... look at make= of ddplug.Views")
def _(world: World) -> Iterator[Cause]:
    yield lambda: world.step(world.layer(views=ddplug.Views(2, make=lambda images: images[::2])))
    world.acts(world.layer(views=ddplug.Views(2, make=lambda images: images.flip(-1))))


@advice("several backward passes through the layer add up ... `with regularizer.round():` around the passes")
def _(world: World) -> Iterator[Cause]:
    regularizer, leaf = world.layer(), world.leaf()

    def passes() -> None:
        for half in (slice(0, None, 2), slice(1, None, 2), slice(0, None, 3)):
            regularizer(leaf[half], world.labels[half]).sum().backward()

    yield passes
    regularizer = world.layer()
    with regularizer.round():
        passes()
    torch.optim.SGD([leaf], lr=0.1).step()
    assert regularizer.rounds == 1


@advice("images of one class only ... set_size= ... or give a share (weighting='relative')")
def _(world: World) -> Iterator[Cause]:
    def steps(layer: ddplug.Regularizer) -> None:
        for label in range(3):
            of_class = world.labels == label
            world.step(layer, world.images[of_class], labels=world.labels[of_class])
        assert layer.rounds == 3

    yield lambda: steps(world.layer())
    steps(world.layer(weighting=ddplug.Absolute(set_size=12)))
    steps(world.layer(weighting="relative"))
    regularizer, leaf = world.layer(), world.leaf()
    with regularizer.round():
        for label in range(3):
            of_class = world.labels == label
            regularizer(leaf[of_class], world.labels[of_class]).sum().backward()
    torch.testing.assert_close(leaf.grad, 1 + world.step(world.layer()))


@advice("a GradScaler is at work ... Pass scale=scaler.get_scale; or scale=lambda: 1.0, if it is another model's")
def _(world: World) -> Iterator[Cause]:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    scaled = lambda layer: world.step(lambda images, labels: scaler.scale(layer(images, labels)))  # noqa: E731
    yield lambda: scaled(world.layer())
    plain = world.step(world.layer())
    torch.testing.assert_close(scaled(world.layer(scale=scaler.get_scale)) + 1 - 1024, 1024 * plain)
    torch.testing.assert_close(world.step(world.layer(scale=lambda: 1.0)), plain)


@advice("failed (OSError: disk) ... history.save(PATH) writes them")
def _(world: World) -> Iterator[Cause]:
    layer = world.layer()

    def broken(rounds: object) -> None:
        raise OSError("disk")

    layer.history.subscribe(broken)
    yield lambda: (world.step(layer), layer.history)
    layer.history.save(world.path / "rounds.json")
    assert '"rounds": 1' in (world.path / "rounds.json").read_text()


@advice("walked again after the step of the images ... Call the layer anew for each gradient that images follow")
def _(world: World) -> Iterator[Cause]:
    layer, leaf = world.layer(), world.leaf()
    optimizer = torch.optim.SGD([leaf], lr=0.1)

    def step(loss: Tensor) -> None:
        loss.backward(retain_graph=True)
        optimizer.step()

    step(loss := layer(leaf, world.labels).sum())
    yield lambda: step(loss)
    step(layer(leaf, world.labels).sum())
    assert layer.rounds == 2


@advice("walked again after the round ... Walk it within the round, or call the layer anew")
def _(world: World) -> Iterator[Cause]:
    def passes(within: int, layer: ddplug.Regularizer) -> Tensor:
        leaf = world.leaf()
        with layer.round():
            loss = layer(leaf, world.labels).sum()
            for _ in range(within):
                loss.backward(retain_graph=True)
        torch.optim.SGD([leaf], lr=0.1).step()
        assert layer.rounds == 1
        return loss

    yield lambda: passes(1, world.layer()).backward()
    passes(2, layer := world.layer())
    world.acts(layer)


@advice(
    "after 3 torch.autograd.grad passes ... or attach to the optimizer of the images, where CMI is added once per step"
)
def _(world: World) -> Iterator[Cause]:
    leaf = world.leaf()
    optimizer = torch.optim.SGD([leaf], lr=0.1)

    def by_hand(views: Callable[[Tensor, Tensor], Tensor]) -> None:
        grads = [torch.autograd.grad(views(leaf, world.labels).sum(), leaf)[0] for _ in range(3)]
        leaf.grad = torch.stack(grads).sum(0)
        optimizer.step()

    yield lambda: by_hand(world.layer())
    with ddplug.attach(optimizer, 1.0, proxies=world.pool, labels=world.labels, augment="none") as handle:
        by_hand(lambda images, labels: images)
    assert len(handle.history) == 1


@advice("memory ran out with 12 images at a time ... To begin so, pass compute=ddplug.Compute(chunk=6), or --chunk 6")
def _(world: World) -> Iterator[Cause]:
    class Hungry(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> Any:
            return torch.empty(2**60) if len(images) > 6 else self.network(images)

    hungry = Hungry(world.network(7))
    yield lambda: world.step(world.layer(pool=hungry))
    torch.testing.assert_close(
        world.step(world.layer(pool=hungry, compute=ddplug.Compute(chunk=6))), world.step(world.layer())
    )


@advice("in bf16 has a cosine of ... Leave precision out, which keeps the forward pass exact")
def _(world: World) -> Iterator[Cause]:
    with ddplug.networks.seeded(0):
        network = ddplug.networks.build("resnet18", num_classes=3, channels=3, size=(16, 16), width=4)
    images = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(24) % 3
    yield lambda: world.step(world.layer(pool=network, compute=Compute(precision="bf16")), images, labels=labels)
    world.acts(world.layer(pool=network, compute=Compute()), images, labels=labels)


@advice("cannot be compiled: without its head 'head' ... Leave compile out")
def _(world: World) -> Iterator[Cause]:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(48, 3)

        def forward(self, images: Tensor) -> Any:
            return self.head(images.flatten(1)) * 2

    pool = ddplug.ProxyPool.from_modules(Scaled(), head="head")
    proxy = pool.proxies[0]
    yield lambda: Compiled(proxy, "feature").check(proxy, world.images.float())
    world.acts(world.layer(pool=pool))


@advice("weight paper is known for hosts with a patch only; give the weight as a number")
def _(world: World) -> Iterator[Cause]:
    yield lambda: keywords("paper")
    world.acts(world.layer(**keywords(0.1, weighting="absolute")))


@advice("weight paper is for CMI within the batch, not for NCMI; give a number")
def _(world: World) -> Iterator[Cause]:
    yield lambda: keywords("paper", ("dm", "cifar10", 10), term="ncmi")
    world.acts(world.layer(**keywords(0.1, ("dm", "cifar10", 10), term="ncmi", weighting="absolute")))


@pytest.mark.parametrize("message", advice)
def test_the_advice_works(message: str, world: World) -> None:
    advice.follow(message, world)
