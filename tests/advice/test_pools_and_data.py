"""The advice of the messages of pools, networks, data and files, followed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from advice.following import Cases, Cause, World
from attaching.loop import Trainer, attach
from ddplug.datasets import as_image_data, load, random_real
from ddplug.datasets.images import ImageData
from ddplug.datasets.spaces import InputSpace
from ddplug.datasets.synthetic import SyntheticSet, load_set
from ddplug.lab.measure import measure, measure_term
from ddplug.networks import zoo
from ddplug.networks.training import fit
from ddplug.proxies.pool import PoolInfo, ProxyPool
from ddplug.proxies.pretrain import pretrain

advice = Cases()
UNIT, NORMALIZED = InputSpace.unit(3), InputSpace.normalized((0.5,) * 3, (0.25,) * 3)


def small(classes: int = 3, size: int = 4) -> nn.Module:
    """A network that a pool's file can hold."""
    return ddplug.networks.build("convnet", num_classes=classes, size=(size, size), width=4, depth=1).double()


def few(name: str = "few") -> ImageData:
    """Images (30, 3, 4, 4), brighter in each class."""
    labels = torch.arange(60) % 3
    images = (torch.rand(60, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + labels[:, None, None, None]) / 3
    return as_image_data((images[:30], labels[:30]), name=name, test=(images[30:], labels[30:]))


def trained(world: World, folder: str = "pool", **options: Any) -> ProxyPool:
    """A pool as `ddplug pretrain` makes it."""
    settings = {"count": 2, "epochs": 1, "options": {"width": 4, "depth": 1}, "progress": False, **options}
    return pretrain(settings.pop("data", few()), world.path / folder, **settings)


# Proxies


@advice("is no pool at ... Make one with `ddplug pretrain`, or from your own networks with ProxyPool.from_modules(...)")
def _(world: World) -> Iterator[Cause]:
    yield lambda: ddplug.Regularizer(world.path / "pool")
    trained(world)
    assert len(ddplug.Regularizer(world.path / "pool").pool) == 2
    world.acts(world.layer(pool=ProxyPool.from_modules([world.network(7)])))


@advice("cannot be read as a pool's header ... Copy the pool again, or delete the folder and make the pool again")
def _(world: World) -> Iterator[Cause]:
    trained(world)
    header = world.path / "pool" / "pool.json"
    whole = header.read_text()
    header.write_text(whole[:50])
    yield lambda: ProxyPool.load(world.path / "pool")
    header.write_text(whole)
    assert len(ProxyPool.load(world.path / "pool")) == 2


@advice("cannot be saved ... Build it with ddplug.networks.build(...) ... known by ddplug.networks.register(function)")
def _(world: World) -> Iterator[Cause]:
    yield lambda: world.pool.save(world.path / "pool")

    def mine(width: int = 5) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(48, width), nn.ReLU(), nn.Linear(width, 3))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "_REGISTRY", dict(zoo._REGISTRY))
        ddplug.networks.register(mine)
        for name, network in (("built", small()), ("own", ddplug.networks.build("mine"))):
            ProxyPool.from_modules(network).save(world.path / name)
            assert len(ProxyPool.load(world.path / name)) == 1


@advice("is unfinished: 1 of 2 networks. Run the same `ddplug pretrain` again ... or with a smaller --count to end it")
def _(world: World) -> Iterator[Cause]:
    def stopped(folder: str) -> None:
        def stop(*_: object) -> None:
            if (world.path / folder / "proxy_000.safetensors").exists():
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("ddplug.proxies.pretrain.accuracy", lambda *_: 1.0)
            patch.setattr("ddplug.proxies.pretrain.fit", lambda *_, **__: stop())
            trained(world, folder)

    stopped("pool")
    yield lambda: ProxyPool.load(world.path / "pool")
    assert len(trained(world)) == 2
    stopped("other")
    assert len(trained(world, "other", count=1)) == 1


@advice("already exists and is not an empty folder; choose another, or delete it first")
def _(world: World) -> Iterator[Cause]:
    pool = ProxyPool.from_modules(small())
    (world.path / "pool").mkdir()
    (world.path / "pool" / "mine.txt").touch()
    yield lambda: pool.save(world.path / "pool")
    pool.save(world.path / "another")
    assert len(ProxyPool.load(world.path / "another")) == 1


@advice("a pool made with other settings ... 'lr': (0.01, 0.02) ... Choose another folder, or the settings it has")
def _(world: World) -> Iterator[Cause]:
    trained(world, lr=0.01)
    yield lambda: trained(world, lr=0.02)
    for folder, rate in (("another", 0.02), ("pool", 0.01)):
        assert len(trained(world, folder, lr=rate)) == 2


@advice("mcmi_epochs and start are of a fine-tuning: give its weight, mcmi=0.15 say (0 is plain)")
def _(world: World) -> Iterator[Cause]:
    yield lambda: trained(world, mcmi_epochs=1)
    for weight in (0.15, 0):
        pool = trained(world, f"tuned{weight}", mcmi=weight, mcmi_epochs=1)
        assert pool.proxies[0].record["mcmi"] == weight


@advice("on theirs, not on few ... with `ddplug pretrain`; or ... leave dataset and fingerprint out of the pool's info")
def _(world: World) -> Iterator[Cause]:
    info = PoolInfo(dataset="theirs", fingerprint="0123", shape=(3, 4, 4))
    pool = ProxyPool.from_modules([world.network(7)], info=info)

    def attached(pool: ProxyPool) -> None:
        trainer = Trainer(world.images, world.labels)
        with attach(trainer, pool, data=few()) as handle:
            handle.regularizer.watch.likeness = None
            trainer.gradient()
        assert len(handle.history) == 1

    yield lambda: attached(pool)
    pool.info = dataclasses.replace(info, dataset=None, fingerprint=None)
    attached(pool)
    assert trained(world).check_data("few", few().fingerprint()) is None  # type: ignore[func-returns-value]


@advice("what its proxies were trained on ... from_modules(networks, input_space='normalized:cifar10'), or ... leave")
def _(world: World) -> Iterator[Cause]:
    yield lambda: world.layer(input_space="unit")
    networks = [world.network(7)]
    pool = ProxyPool.from_modules(networks, input_space="normalized:cifar10")
    world.acts(world.layer(pool=pool, input_space="unit"), world.images.sigmoid())
    world.acts(world.layer())


@advice("input space 'uint', expected an InputSpace, 'unit' for [0, 1], 'normalized:NAME' (cifar10, ... or 'zca'")
def _(world: World) -> Iterator[Cause]:
    pool = ProxyPool.from_modules([world.network(7)], input_space="normalized:cifar10")
    yield lambda: world.layer(pool=pool, input_space="uint")
    for given in (NORMALIZED, "unit", "normalized:svhn"):
        world.acts(world.layer(pool=pool, input_space=given), world.images.sigmoid())


@advice("has none. Pass the host's: ddplug.zca.ZCASpace.fit(images in [0, 1]), or ddplug.zca.ZCASpace.from_kornia(")
def _(world: World) -> Iterator[Cause]:
    from kornia.enhance import ZCAWhitening

    pool = ProxyPool.from_modules([world.network(7)], input_space="unit")
    yield lambda: world.layer(pool=pool, input_space="zca")
    images = world.images.sigmoid()
    transform = ZCAWhitening(eps=0.1, compute_inv=True).fit(images)
    for space in (ddplug.zca.ZCASpace.fit(images), ddplug.zca.ZCASpace.from_kornia(transform, (3, 4, 4))):
        world.acts(world.layer(pool=pool, input_space=space), space.from_unit(images))


@advice("'unit' needs to know how many channels the images have: write InputSpace.unit(channels)")
def _(world: World) -> Iterator[Cause]:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double()
    yield lambda: ProxyPool.from_modules([flat], input_space="unit")
    pool = ProxyPool.from_modules([flat], input_space=InputSpace.unit(3))
    world.acts(world.layer(pool=pool), world.images.sigmoid())


@advice("Their normalisation is not given ... pass input_space='unit' (for [0, 1]), 'normalized:cifar10' or the like")
def _(world: World) -> Iterator[Cause]:
    pool = ProxyPool.from_modules([world.network(7)], input_space="normalized:cifar10")
    yield lambda: world.step(world.layer(pool=pool), world.images.sigmoid())
    for given in ("unit", "normalized:cifar10"):
        world.acts(world.layer(pool=pool, input_space=given), world.images.sigmoid())


@advice("Say what the images are: input_space='unit' (for [0, 1]), 'normalized:cifar10' ... `space` of a SyntheticSet")
def _(world: World) -> Iterator[Cause]:
    pool = ProxyPool.from_modules([world.network(7)], input_space="normalized:cifar10")
    images, labels = world.images.sigmoid(), world.labels
    yield lambda: measure(pool, images, labels)
    found = [measure(pool, images, labels, input_space="unit").cmi]
    found.append(measure_term(ddplug.terms.CMI(), pool, SyntheticSet(images, labels, space=UNIT)))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    measure(pool, images, labels, input_space="normalized:cifar10")


@advice("takes 0 of 12 of the first views for what their labels say ... in another input space (input_space=)")
def _(world: World) -> Iterator[Cause]:
    theirs = InputSpace.normalized((0.2,) * 3, (0.5,) * 3)
    pool = ProxyPool.from_modules([world.network(7)], input_space=NORMALIZED)
    pool.proxies[0].record["test_accuracy"] = 0.9
    every = torch.randn(400, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    right, wrong = (pool.proxies[0](views, "logit").argmax(1) for views in (theirs.convert(every, NORMALIZED), every))
    views, labels = every[right != wrong][:12], right[right != wrong][:12]
    yield lambda: world.step(world.layer(pool=pool), views, labels=labels)
    world.acts(world.layer(pool=pool, input_space=theirs), views, labels=labels)


@advice("have mean ... If the host normalises otherwise, pass input_space=ddplug.InputSpace.normalized(mean, std)")
def _(world: World) -> Iterator[Cause]:
    data = few()
    mean, std = data.train_images.mean((0, 2, 3)).tolist(), data.train_images.std((0, 2, 3)).tolist()
    pool = ProxyPool.from_modules([world.network(7)], input_space="unit")

    def run(**options: Any) -> None:
        trainer = Trainer(InputSpace.normalized(mean, std).from_unit(data.train_images.double()), data.train_labels)
        trainer.augment = lambda images, labels=None: images * 1  # type: ignore[method-assign]
        with attach(trainer, pool, data=(data.train_images, data.train_labels), **options) as handle:
            for _ in range(20):
                trainer.gradient()
        assert len(handle.history) == 20

    yield run
    run(input_space=ddplug.InputSpace.normalized(mean, std))


@advice("is right on 34.0% of its test images ... train them longer (`ddplug pretrain` with more --epochs)")
def _(world: World) -> Iterator[Cause]:
    pool = ProxyPool.from_modules([world.network(7)])
    pool.proxies[0].record["test_accuracy"] = 0.34
    yield lambda: world.step(world.layer(pool=pool))
    longer = trained(world, epochs=30, lr=0.1, options={"width": 8, "depth": 1}, batch_size=8)
    images, labels = few().train_images[:12], few().train_labels[:12]
    world.acts(world.layer(pool=longer), images, labels=labels)


@advice("so it is not the head. Name the head (head='...'); candidates: head, body")
def _(world: World) -> Iterator[Cause]:
    class HeadFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(7, 3), nn.Linear(48, 7)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.body(images.flatten(1)).tanh())

    network = HeadFirst().double()
    yield lambda: world.step(world.layer(pool=network))
    world.acts(world.layer(pool=ProxyPool.from_modules(network, head="head")))


@advice("sees 6 rows for 2 images, expected one row per image. Name another head")
def _(world: World) -> Iterator[Cause]:
    class ByChannel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.each = nn.Conv2d(3, 3, 4), nn.Linear(1, 5)

        def forward(self, images: Tensor) -> Tensor:
            return self.each(self.mix(images).flatten(0, 1).flatten(1)).unflatten(0, (-1, 3)).flatten(1)

    network = ByChannel().double()
    yield lambda: world.step(world.layer(pool=ProxyPool.from_modules(network, head="each")))
    world.acts(world.layer(pool=ProxyPool.from_modules(network, head="mix")))


@advice("changes its input in place, which is the host's. Have its first layer work on a copy: inplace=False")
def _(world: World) -> Iterator[Cause]:
    changing, copying = (
        nn.Sequential(nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(48, 3)).double() for inplace in (True, False)
    )
    yield lambda: world.layer(pool=changing)(world.leaf() * 1, world.labels)
    world.acts(world.layer(pool=copying))


@advice("draws random numbers even in eval mode ... dropout called as a function does so. Make it respect eval mode")
def _(world: World) -> Iterator[Cause]:
    class Dropping(nn.Module):
        def __init__(self, heed: bool) -> None:
            super().__init__()
            self.head, self.heed = nn.Linear(48, 3), heed

        def forward(self, images: Tensor) -> Tensor:
            return self.head(nn.functional.dropout(images.flatten(1), training=self.training or not self.heed))

    yield lambda: world.step(world.layer(pool=Dropping(False).double()))
    world.acts(world.layer(pool=Dropping(True).double()))


@advice("this term is defined on logits only, got representation='feature'; leave it out")
def _(world: World) -> Iterator[Cause]:
    yield lambda: world.layer(term="proxy_ce", representation="feature")
    world.acts(world.layer(term="proxy_ce"))


# Networks and views


@advice("it takes images of 3 channels, got channels=1; use convnet, or timm/NAME")
def _(world: World) -> Iterator[Cause]:
    yield lambda: ddplug.networks.build("torchvision/resnet18", channels=1)
    for name in ("convnet", "timm/resnet10t"):
        if name == "convnet" or pytest.importorskip("timm"):
            assert ddplug.networks.build(name, channels=1, size=[8, 8])(torch.rand(2, 1, 8, 8)).shape[0] == 2


@advice("unknown architecture 'resnet19'; known are ... for example torchvision/resnet18, and timm/NAME")
def _(world: World) -> Iterator[Cause]:
    yield lambda: ddplug.networks.build("resnet19")
    ddplug.networks.build("torchvision/resnet18")


@advice("The smallest size that works is 9x9: enlarge the images, or use norm='batch' or a convnet")
def _(world: World) -> Iterator[Cause]:
    yield lambda: ddplug.networks.build("resnet18", size=(8, 8), width=4)
    for name, options in (("resnet18", {"norm": "batch", "width": 4}), ("convnet", {})):
        ddplug.networks.build(name, size=(8, 8), **options)
    ddplug.networks.build("resnet18", size=(9, 9), width=4)


@advice("of depth 3 halves the image 3 times and cannot take 4x4 ... 8x8: enlarge the images or use a smaller depth")
def _(world: World) -> Iterator[Cause]:
    yield lambda: ddplug.networks.build("convnet", size=(4, 4))
    for options in ({"size": (8, 8)}, {"size": (4, 4), "depth": 2}):
        ddplug.networks.build("convnet", **options)


@advice("the loss became ... Use a smaller lr, and see that the images are finite and normalised")
def _(world: World) -> Iterator[Cause]:
    def trained(lr: float) -> None:
        network = ddplug.networks.build("convnet", num_classes=3, size=(4, 4), width=4, depth=1, norm="none")
        fit(network, few().train_images, few().train_labels, epochs=3, lr=lr, batch_size=8, seed=0)

    yield lambda: trained(1e15)
    trained(0.01)


@advice("of a training with other arguments ... Call with the same ones ... or delete it to train from the beginning")
def _(world: World) -> Iterator[Cause]:
    data, file = few(), world.path / "fit.pt"

    def run(lr: float, stop: bool = False) -> None:
        def ended(done: int, loss: float) -> None:
            if stop:
                raise KeyboardInterrupt

        with ddplug.training.seeded(0):
            network = small().float()
        more = {"epochs": 2, "seed": 0, "checkpoint": file, "on_epoch": ended}
        fit(network, data.train_images, data.train_labels, lr=lr, **more)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        run(0.01, stop=True)
    yield lambda: run(0.02)
    run(0.01)
    with pytest.raises(KeyboardInterrupt):
        run(0.01, stop=True)
    file.unlink()
    run(0.02)


@advice("parameters drawn for 4 images cannot serve 5: draw them with siamese=True, or for these images")
def _(world: World) -> Iterator[Cause]:
    dsa, five = ddplug.augment.DSA("rotate", siamese=False), torch.rand(5, 3, 4, 4)
    yield lambda: dsa(five, params=dsa.draw(five[:4]))
    shared = ddplug.augment.DSA("rotate", siamese=True)
    assert shared(five, params=shared.draw(five[:4])).shape == five.shape
    assert dsa(five, params=dsa.draw(five)).shape == five.shape


@advice("expected floating images of shape (n, channels, height, width) ... add a batch axis, or convert integers to")
def _(world: World) -> Iterator[Cause]:
    image = (255 * torch.rand(3, 4, 4)).byte()
    yield lambda: ddplug.augment.DSA()(image)
    assert ddplug.augment.DSA()(image[None] / 255).shape == (1, 3, 4, 4)


# Data

IMAGES, LABELS = few().train_images, few().train_labels


@advice("the data set 'folder' needs its path: --data-path FOLDER, or load('folder', path)")
def _(world: World) -> Iterator[Cause]:
    yield lambda: load("folder")
    assert load("folder", folder_of(world)).num_classes == 2


def folder_of(world: World, per_class: int = 2) -> Path:
    """A folder of pictures CLASS/*."""
    from torchvision.utils import save_image

    for name in ("cat", "dog"):
        (world.path / "pictures" / name).mkdir(parents=True)
        for number in range(per_class):
            save_image(IMAGES[number], world.path / "pictures" / name / f"{number}.png")
    return world.path / "pictures"


@advice("has one image, which cannot train and test; give a test split: (train, test), or the folders train and test")
def _(world: World) -> Iterator[Cause]:
    few_images = IMAGES[:4], torch.tensor([0, 0, 0, 1])
    yield lambda: as_image_data(few_images, class_names=["cat", "dog"])
    assert len(as_image_data((few_images, (IMAGES[4:8], LABELS[4:8] % 2))).train_images) == 4
    pictures = folder_of(world, 1)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (pictures / split).mkdir(exist_ok=True)
            (pictures / split / name).symlink_to(pictures / name)
    assert len(load("folder", pictures).train_images) == 2


@advice("is not cifar10: it has 2 classes. Name the data set that it is, or load it as 'folder'")
def _(world: World) -> Iterator[Cause]:
    pictures = folder_of(world)
    for split in ("train", "test"):
        (pictures / split).mkdir()
        for name in ("cat", "dog"):
            (pictures / split / name).symlink_to(pictures / name)
    yield lambda: load("cifar10", pictures)
    assert load("folder", pictures).class_names == ("cat", "dog")


@advice("images of mnist have 1 channels, found 3; load them as 'folder'")
def _(world: World) -> Iterator[Cause]:
    from torchvision.utils import save_image

    for split in ("train", "test"):
        for label in range(10):
            (world.path / split / str(label)).mkdir(parents=True)
            save_image(IMAGES[label], world.path / split / str(label) / "0.png")
    yield lambda: load("mnist", world.path)
    assert load("folder", world.path).shape == (3, 4, 4)


@advice("says itself what name= and space= would say; leave it out. Another space or name has data.to_space(space) or")
def _(world: World) -> Iterator[Cause]:
    data = few()
    yield lambda: as_image_data(data, name="other", space=NORMALIZED)
    assert as_image_data(data) is data
    assert data.to_space(NORMALIZED).space == NORMALIZED
    assert dataclasses.replace(data, name="other").name == "other"


@advice("'cat' of data has 3 training images, fewer than ipc=4; use a smaller ipc")
def _(world: World) -> Iterator[Cause]:
    data = as_image_data((IMAGES[:6], torch.arange(6) % 2), class_names=["cat", "dog"], test=(IMAGES[:2], LABELS[:2]))
    yield lambda: random_real(data, 4, torch.Generator())
    assert len(random_real(data, 3, torch.Generator())[0]) == 6


@advice("the data are two splits, and test= is a third; give the test split once")
def _(world: World) -> Iterator[Cause]:
    pair = IMAGES, LABELS
    yield lambda: as_image_data((pair, pair), test=pair)
    assert as_image_data((pair, pair)).fingerprint() == as_image_data(pair, test=pair).fingerprint()


@advice("std), of 3 channels, as input_space= of attach or space= of as_image_data ... 'range'")
def _(world: World) -> Iterator[Cause]:
    pair = NORMALIZED.from_unit(IMAGES), LABELS
    yield lambda: as_image_data(pair)
    torch.testing.assert_close(
        NORMALIZED.to_unit(as_image_data(pair, space=NORMALIZED).train_images).max(), IMAGES.max()
    )
    assert as_image_data(pair, space="range").space is not None
    trainer = Trainer(world.images, world.labels)
    pool = ProxyPool.from_modules([world.network(7)], input_space="unit")
    with attach(trainer, pool, data=pair, input_space=NORMALIZED) as handle:
        trainer.gradient()
    assert len(handle.history) == 1


@advice("have 4 channels and space is [0, 1] x 3 ... images are (n, c, h, w), which images.permute(0, 3, 1, 2) makes")
def _(world: World) -> Iterator[Cause]:
    images = IMAGES.permute(0, 2, 3, 1)
    yield lambda: as_image_data((images, LABELS), space=UNIT)
    assert torch.equal(
        as_image_data((images.permute(0, 3, 1, 2), LABELS), space=UNIT, test=(IMAGES, LABELS)).train_images, IMAGES
    )


@advice("numbers up to 255, images / 255 makes intensities; if they were normalised, give space=InputSpace.normalized(")
def _(world: World) -> Iterator[Cause]:
    images = 255 * IMAGES
    yield lambda: as_image_data((images, LABELS), space="unit")
    assert as_image_data((images / 255, LABELS), space="unit").train_images.max() <= 1
    as_image_data((NORMALIZED.from_unit(IMAGES), LABELS), space=InputSpace.normalized((0.5,) * 3, (0.25,) * 3))


@advice("and labels could be made of ImageFolder ... one size: in torchvision, by transform=Resize((height, width))")
def _(world: World) -> Iterator[Cause]:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Resize
    from torchvision.utils import save_image

    pictures = folder_of(world)
    save_image(torch.rand(3, 6, 5), pictures / "dog" / "large.png")
    yield lambda: as_image_data(ImageFolder(str(pictures)))
    height, width = 4, 4
    assert as_image_data(ImageFolder(str(pictures), transform=Resize((height, width)))).shape == (3, 4, 4)


@advice("which is (n, h, w, c), expected (n, c, h, w): images.permute(0, 3, 1, 2)")
def _(world: World) -> Iterator[Cause]:
    images, path = torch.rand(30, 8, 8, 3), world.path / "set.pt"
    torch.save((images, LABELS), path)
    yield lambda: load_set(path)
    torch.save((images.permute(0, 3, 1, 2), LABELS), path)
    assert load_set(path).images.shape == (30, 3, 8, 8)


@advice("the number of each image's class; of probabilities, labels.argmax(1) makes these")
def _(world: World) -> Iterator[Cause]:
    labels = (3.0 * nn.functional.one_hot(LABELS)).softmax(1)
    yield lambda: as_image_data((IMAGES, labels))
    assert as_image_data((IMAGES, labels.argmax(1))).fingerprint() == as_image_data((IMAGES, LABELS)).fingerprint()


@advice("that are no probabilities ... If the images' labels are logits, store their softmax")
def _(world: World) -> Iterator[Cause]:
    def stored(labels: Tensor) -> Any:
        torch.save({"images": IMAGES, "labels": labels}, world.path / "set.pt")
        return load_set(world.path / "set.pt")

    logits = 3.0 * nn.functional.one_hot(LABELS)
    yield lambda: stored(logits)
    assert torch.equal(stored(logits.softmax(1)).labels.argmax(1), LABELS)


@advice("a dictionary with the keys images and labels, a pair, DM's results, or images_N.pt with labels_N.pt beside it")
def _(world: World) -> Iterator[Cause]:
    def stored(content: object, name: str = "set.pt") -> Any:
        torch.save(content, world.path / name)
        return load_set(world.path / name)

    yield lambda: stored({"pictures": IMAGES})
    torch.save(LABELS, world.path / "labels_5.pt")
    ways = ({"images": IMAGES, "labels": LABELS}, "set.pt"), ((IMAGES, LABELS), "set.pt"), (IMAGES, "images_5.pt")
    assert all(torch.equal(stored(content, name).images, IMAGES) for content, name in ways)


@advice("of another host? Store it as a dictionary of images and labels under another name than data.pt")
def _(world: World) -> Iterator[Cause]:
    torch.save([4 * IMAGES - 2, LABELS], world.path / "data.pt")
    yield lambda: load_set(world.path / "data.pt", factor=1)
    torch.save({"images": 4 * IMAGES - 2, "labels": LABELS}, world.path / "set.pt")
    assert torch.equal(load_set(world.path / "set.pt").images, 4 * IMAGES - 2)


@advice("cannot be inverted: fit it on more images, or with a larger eps")
def _(world: World) -> Iterator[Cause]:
    flat = torch.full((10, 3, 4, 4), 0.5)
    yield lambda: ddplug.zca.ZCASpace.fit(flat, eps=0.0)
    ddplug.zca.ZCASpace.fit(flat, eps=0.1)
    ddplug.zca.ZCASpace.fit(torch.rand(500, 3, 4, 4, generator=torch.Generator().manual_seed(0)), eps=0.0)


@advice("ZCA is fitted on intensities in [0, 1] ... undo their normalisation first, with InputSpace.to_unit")
def _(world: World) -> Iterator[Cause]:
    images = NORMALIZED.from_unit(IMAGES)
    yield lambda: ddplug.zca.ZCASpace.fit(images)
    ddplug.zca.ZCASpace.fit(NORMALIZED.to_unit(images).clamp(0, 1))


@advice("not fitted yet; call its fit() on intensities in [0, 1] first")
def _(world: World) -> Iterator[Cause]:
    from kornia.enhance import ZCAWhitening

    whitening = ZCAWhitening(eps=0.1)
    yield lambda: ddplug.zca.ZCASpace.from_kornia(whitening, (3, 4, 4))
    whitening.fit(IMAGES)
    ddplug.zca.ZCASpace.from_kornia(whitening, (3, 4, 4))


# Processes


@advice("Say what each process has: processes='sharded' ... 'averaged' ... 'replicated' ... 'separate'")
def _(world: World) -> Iterator[Cause]:
    yield lambda: world.layer(processes="ddp")
    for each in ("sharded", "averaged", "replicated", "separate"):
        world.acts(world.layer(processes=each))


@advice("was asked for and WORLD_SIZE is 2 ... Call torch.distributed.init_process_group() before the layer")
def _(world: World) -> Iterator[Cause]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        yield lambda: world.step(world.layer(processes="sharded"))
    store = f"file://{world.path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    world.acts(world.layer(processes="sharded"))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("message", advice)
def test_the_advice_works(message: str, world: World) -> None:
    advice.follow(message, world)
