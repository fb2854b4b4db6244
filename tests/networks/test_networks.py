"""The field's networks: their sizes, their two halves, their records, and the random state they leave alone."""

import json

import pytest
import torch
from torch import nn

from ddplug import ProxyPool, networks
from ddplug.errors import ProxyError
from ddplug.networks import zoo
from ddplug.networks.zoo import build, seeded

pytestmark = pytest.mark.numerical

BUILDS = [
    ("convnet", {"width": 16}),
    ("convnet", {"width": 16, "norm": "batch", "depth": 2, "channels": 1, "size": (8, 12), "num_classes": 3}),
    ("convnet", {"width": 16, "norm": "none"}),
    ("convnet", {"width": 16, "channels": 1, "size": (28, 28)}),
    ("resnet18", {"width": 8}),
    ("resnet18", {"width": 8, "norm": "batch", "size": (8, 8), "channels": 1, "num_classes": 4}),
    ("resnet18", {"width": 8, "size": (9, 9)}),
    ("vgg11", {"width": 8}),
    ("vgg11", {"width": 8, "norm": "batch", "channels": 1, "size": (28, 28), "num_classes": 4}),
    ("vgg11", {"width": 8, "norm": "none", "size": (64, 40)}),
    ("alexnet", {"width": 8}),
    ("alexnet", {"width": 8, "norm": "batch", "channels": 1, "size": (28, 28), "num_classes": 4}),
    ("alexnet", {"width": 8, "norm": "instance", "size": (8, 17)}),
]


def images_for(options, count=4):
    size = options.get("size", (32, 32))
    return torch.randn(count, options.get("channels", 3), *size, generator=torch.Generator().manual_seed(0))


def parameter_count(net):
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("name", "options", "parameters", "features"),
    [
        ("convnet", {}, 320_010, 2048),
        ("resnet18", {}, 11_173_962, 512),
        ("resnet18", {"norm": "batch"}, 11_173_962, 512),
        # one channel has 2 * 9 * 128 weights less in the first convolution, and 28x28 is padded to 32x32
        ("convnet", {"channels": 1, "size": (28, 28)}, 320_010 - 2 * 9 * 128, 2048),
        # without norms, three pairs of affine maps are gone
        ("convnet", {"norm": "none"}, 320_010 - 3 * 2 * 128, 2048),
        ("vgg11", {}, 9_231_114, 512),
        ("vgg11", {"norm": "batch"}, 9_231_114, 512),
        ("vgg11", {"channels": 1, "size": (28, 28)}, 9_231_114 - 2 * 9 * 64, 512),
        ("alexnet", {}, 1_872_202, 3072),
        # batch norm brings an affine map for each of the 128 + 192 + 256 + 192 + 192 channels
        ("alexnet", {"norm": "batch"}, 1_872_202 + 2 * 960, 3072),
        ("alexnet", {"channels": 1, "size": (28, 28)}, 1_872_202 - 2 * 25 * 128, 3072),
    ],
)
def test_sizes_are_those_of_the_literature(name, options, parameters, features):
    with seeded(0):
        net = build(name, **options)
    assert parameter_count(net) == parameters
    assert net.classifier.in_features == features
    assert net.classifier.out_features == 10


@pytest.mark.parametrize(("name", "options"), BUILDS)
def test_forward_is_classifier_after_embed(name, options):
    with seeded(0):
        net = build(name, **options)
    images = images_for(options)
    seen = []
    net.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits = net.eval()(images)
    features = net.embed(images)
    assert torch.equal(seen[0], features)
    assert torch.equal(net.classifier(features), logits)
    assert logits.shape == (4, options.get("num_classes", 10))
    assert features.std() > 0.01


@pytest.mark.parametrize(("name", "options"), BUILDS)
def test_spec_survives_json_and_builds_the_same_network(name, options):
    with seeded(3):
        net = build(name, **options)
    spec = json.loads(json.dumps(net.spec))
    assert spec["architecture"] == name
    with seeded(3):
        again = build(spec["architecture"], **spec["options"])
    assert again.spec == net.spec
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_spec_holds_the_defaults_too():
    assert networks.convnet(num_classes=7, width=4).spec == {
        "architecture": "convnet",
        "options": {"num_classes": 7, "channels": 3, "size": [32, 32], "width": 4, "depth": 3, "norm": "instance"},
    }


def test_parameters_come_in_the_order_in_which_layers_act():
    kinds = [tuple(parameter.shape) for parameter in networks.convnet(width=4, depth=2).parameters()]
    block = [(4,), (4,), (4,)]
    assert kinds == [(4, 3, 3, 3), *block, (4, 4, 3, 3), *block, (10, 256), (10,)]


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_instance_norm_alone_makes_an_image_independent_of_its_batch(norm):
    with seeded(0):
        net = build("convnet", width=8, norm=norm)
    images = images_for({}, 6)
    alone_or_not = torch.allclose(net.train()(images)[:2], net(images[:2]), atol=1e-5)
    assert alone_or_not == (norm == "instance")


def test_equal_seeds_give_equal_weights_and_others_do_not():
    def weights(seed):
        with seeded(seed):
            return build("convnet", width=8).features[0].weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.usefixtures("untouched")
def test_building_leaves_the_global_random_state_alone():
    with seeded(0):
        build("convnet", width=8)
        build("resnet18", width=8)
        build("torchvision/resnet18")
        torch.rand(3)
    with pytest.raises(ProxyError), seeded(0):
        build("resnet18", norm="unknown")  # fails half-way, with weights drawn already


def test_seeded_nests():
    with seeded(1):
        expected = torch.rand(2), torch.rand(2)
    with seeded(1):
        first = torch.rand(2)
        with seeded(9):
            torch.rand(5)
        second = torch.rand(2)
    assert torch.equal(first, expected[0])
    assert torch.equal(second, expected[1])


def test_networks_are_built_on_the_cpu_whatever_the_default_device():
    with seeded(0):
        expected = build("convnet", width=4)
    with torch.device("meta"), seeded(0):
        net = build("convnet", width=4)
    assert torch.equal(net.classifier.weight, expected.classifier.weight)


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("depth", [1, 3, 4])
def test_convnet_names_the_smallest_size_that_works(depth, norm):
    smallest = 2**depth
    with pytest.raises(ProxyError, match=f"smallest size that works is {smallest}x{smallest}"):
        build("convnet", width=4, depth=depth, norm=norm, size=(smallest, smallest - 1))
    with seeded(0):
        net = build("convnet", width=4, depth=depth, norm=norm, size=(smallest, smallest))
    assert net.embed(images_for({"size": (smallest, smallest)})).std() > 0.01


@pytest.mark.parametrize(("name", "smallest"), [("vgg11", 32), ("alexnet", 8)])
def test_networks_that_pool_name_the_smallest_size_that_works(name, smallest):
    with pytest.raises(ProxyError, match=f"smallest size that works is {smallest}x{smallest}"):
        build(name, width=4, size=(smallest - 1, smallest))
    with seeded(0):
        net = build(name, width=4, size=(smallest, smallest))
    assert net(images_for({"size": (smallest, smallest)})).shape == (4, 10)


def test_resnet_refuses_a_last_stage_of_one_normalised_pixel():
    with pytest.raises(ProxyError, match=r"cannot take 8x8 images.*smallest size that works is 9x9"):
        build("resnet18", width=4, size=(8, 8))
    # and rightly so: at that size every feature is zero but for rounding, whatever the images
    with seeded(0):
        net = build("resnet18", width=4)
    assert net.embed(images_for({"size": (8, 8)})).abs().max() < 1e-3
    assert net.embed(images_for({"size": (9, 9)})).abs().max() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "layer"}, "unknown norm 'layer'; expected 'instance', 'batch' or 'none'"),
        ({"colour": True}, "options it does not have .*colour.*num_classes"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ProxyError, match=message):
        build("convnet", **options)


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ProxyError, match=r"'alexnot'; known are alexnet, convnet, resnet18, vgg11 and torchvision"):
        build("alexnot")
    with pytest.raises(ProxyError, match=r"torchvision/resnet19 cannot be built .*Unknown model"):
        build("torchvision/resnet19")


def test_registered_networks_are_built_by_name(monkeypatch):
    monkeypatch.setattr(zoo, "_REGISTRY", dict(zoo._REGISTRY))

    @networks.register
    def pixels(num_classes: int = 10, *, channels: int = 3, size: tuple[int, int] = (4, 4)) -> networks.Network:
        class Pixels(networks.Network):
            def __init__(self):
                super().__init__()
                self.classifier = nn.Linear(channels * size[0] * size[1], num_classes)

            def embed(self, images):
                return images.flatten(1)

        return Pixels()

    assert networks.architectures() == ["alexnet", "convnet", "pixels", "resnet18", "vgg11"]
    net = build("pixels", channels=1)
    assert net(torch.zeros(2, 1, 4, 4)).shape == (2, 10)
    assert net.spec == {"architecture": "pixels", "options": {"num_classes": 10, "channels": 1, "size": [4, 4]}}


def test_torchvision_networks_record_how_to_build_them():
    options = {"num_classes": 5, "channels": 3, "size": [32, 32]}
    with seeded(0):
        net = build("torchvision/resnet18", **options)
    assert net.fc.out_features == 5
    assert net.spec == {"architecture": "torchvision/resnet18", "options": options}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "DEFAULT"}, "multiple values for keyword argument 'weights'"),
        ({"channels": 1}, "3 channels, got channels=1"),
        ({"no_such": 1}, "cannot be built with the options"),
        ({"norm_layer": nn.BatchNorm2d}, "must be numbers, strings"),
    ],
)
def test_torchvision_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ProxyError, match=message):
        build("torchvision/resnet18", **options)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_timm_networks_take_images_of_any_size_and_channels(name):
    pytest.importorskip("timm")
    options = {"num_classes": 5, "channels": 1, "size": [32, 32]}
    with seeded(0):
        net = build(f"timm/{name}", **options)
    assert net.spec == {"architecture": f"timm/{name}", "options": options}
    assert net.eval()(torch.rand(2, 1, 32, 32)).shape == (2, 5)
    pool = ProxyPool.from_modules(net)
    assert pool.proxies[0](torch.rand(2, 1, 32, 32), "feature").shape == (2, net.num_features)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"pretrained": True}, "multiple values for keyword argument 'pretrained'"),
        ("resnet18", {"no_such": 1}, "cannot be built with the options"),
        ("resnet19", {}, "Unknown model"),
    ],
)
def test_timm_options_that_cannot_be_are_refused(name, options, message):
    pytest.importorskip("timm")
    with pytest.raises(ProxyError, match=message):
        build(f"timm/{name}", **options)


def test_a_pool_of_timm_networks_goes_to_a_file_and_back(tmp_path):
    pytest.importorskip("timm")
    with seeded(0):
        net = build("timm/resnet10t", num_classes=3, channels=3, size=[16, 16])
    pool = ProxyPool.from_modules(net)
    pool.save(tmp_path / "pool")
    assert ProxyPool.load(tmp_path / "pool").digest() == pool.digest()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_seeded_covers_the_generator_of_a_cuda_device():
    before = torch.cuda.get_rng_state()
    with seeded(4, "cuda"):
        first = torch.rand(3, device="cuda")
    with seeded(4, "cuda"):
        assert torch.equal(first, torch.rand(3, device="cuda"))
    assert torch.equal(before, torch.cuda.get_rng_state())
