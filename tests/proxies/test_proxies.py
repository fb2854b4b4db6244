"""Proxies: what they read off a network, how they refuse one that cannot serve, and whom they leave alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from ddplug import InputSpace, ProxyPool
from ddplug.datasets.zca import space_from_json
from ddplug.errors import InputError, ProxyError
from ddplug.networks.zoo import build, seeded
from ddplug.proxies.pool import PoolInfo
from ddplug.proxies.proxy import Proxy
from ddplug.proxies.representations import check_representation

pytestmark = pytest.mark.numerical

Networks = Callable[..., Any]  # nn.Sequential, whose entries mypy does not know
SPACES = ("feature", "logit")


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def hooks(network: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for module in network.modules()
    )


def vgg_like() -> Any:
    """The layout of torchvision's VGG: features, then a Sequential classifier with several linear layers."""

    class Vgg(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
            self.classifier = nn.Sequential(
                nn.Linear(16, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 5)
            )

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.classifier(self.features(x).flatten(1))
            return logits

    with seeded(1):
        return Vgg()


class HeadFirst(nn.Module):
    """Its head is registered before its other linear layer, so the last linear layer is not the head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.body = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x.flatten(1)))
        return logits


class UnusedLast(HeadFirst):
    """The last linear layer takes no part (as an auxiliary classifier in eval mode)."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(6, 3)


class Faulty(nn.Module):
    """Reaches its head, then fails as networks of other people do when an image does not suit them."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 3)
        self.error: Exception | None = error

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.flatten(1))
        if self.error is not None:
            raise self.error
        return logits


class WithFeatures(nn.Module):
    """Returns its features beside the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(12, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x.flatten(1))
        return self.head(features), features


class KeywordHead(nn.Module):
    """Calls its head by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(input=x.flatten(1))
        return logits


# --- features and logits


@pytest.mark.parametrize(("architecture", "size"), [("convnet", 8), ("resnet18", 16)])
def test_features_and_logits_of_our_own_networks(architecture: str, size: int) -> None:
    with seeded(0):
        network: Any = build(architecture, num_classes=4, channels=3, size=(size, size), width=8).eval()
    proxy = ProxyPool.from_modules(network).proxies[0]
    x = images(5, 3, size, size)
    assert proxy.head == "classifier"
    assert torch.equal(proxy(x, "feature"), network.embed(x))
    assert torch.equal(proxy(x, "logit"), network(x))


def test_features_are_the_default(pool: ProxyPool, batch: tuple[Tensor, Tensor]) -> None:
    proxy = pool.proxies[0]
    assert torch.equal(proxy(batch[0]), proxy(batch[0], "feature"))
    assert proxy(batch[0]).shape == (12, 12)


def test_features_and_logits_of_a_sequential(network: Networks, batch: tuple[Tensor, Tensor]) -> None:
    net, (x, _) = network(3), batch
    proxy = Proxy(net)
    assert torch.equal(proxy(x, "feature"), net[:-1](x))
    assert torch.equal(proxy(x, "logit"), net(x))


def test_features_and_logits_of_a_torchvision_resnet() -> None:
    torchvision = pytest.importorskip("torchvision")
    with seeded(0):
        net = torchvision.models.resnet18(num_classes=4).eval()
    proxy = ProxyPool.from_modules(net).proxies[0]
    x = images(2, 3, 32, 32)
    trunk = nn.Sequential(*list(net.children())[:-1], nn.Flatten())
    assert proxy.head == "fc"
    assert torch.equal(proxy(x, "feature"), trunk(x))
    assert torch.equal(proxy(x, "logit"), net(x))


def test_features_of_a_classifier_of_several_linear_layers_are_the_last_ones() -> None:
    net = vgg_like().eval()
    proxy = Proxy(net)
    x = images(3, 3, 6, 6)
    assert proxy.head == "classifier.6"
    assert torch.equal(proxy(x, "feature"), net.classifier[:-1](net.features(x).flatten(1)))
    assert torch.equal(proxy(x, "logit"), net(x))


def test_a_named_head_is_taken_at_its_word() -> None:
    net = vgg_like().eval()
    x = images(3, 3, 6, 6)
    named = Proxy(net, "classifier.3")
    assert torch.equal(named(x, "feature"), net.classifier[:3](net.features(x).flatten(1)))
    assert Proxy(HeadFirst(), "head")(images(2, 3, 2, 2), "logit").shape == (2, 3)


def test_features_of_maps_are_flattened_per_image(network: Networks, batch: tuple[Tensor, Tensor]) -> None:
    assert Proxy(network(3), "2")(batch[0], "feature").shape == (12, 6 * 4 * 4)  # the input of nn.Flatten


def test_a_network_that_also_returns_its_features_is_understood() -> None:
    assert Proxy(WithFeatures())(images(2, 3, 2, 2)).shape == (2, 6)
    assert Proxy(WithFeatures())(images(2, 3, 2, 2), "logit").shape == (2, 3)


def test_a_head_that_is_called_by_keyword_is_understood() -> None:
    x = images(2, 3, 2, 2)
    assert torch.equal(Proxy(KeywordHead())(x), x.flatten(1))


def test_features_are_differentiable_in_the_images(pool: ProxyPool, batch: tuple[Tensor, Tensor]) -> None:
    x = batch[0][:2].requires_grad_()
    assert torch.autograd.gradcheck(pool.proxies[0], x)


def test_images_are_cast_to_the_weights_dtype(pool: ProxyPool) -> None:
    assert pool.proxies[0].dtype == torch.float64
    assert pool.proxies[0](images(2, 3, 4, 4)).dtype == torch.float64
    assert Proxy(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))(images(2, 1, 2, 2).double()).dtype == torch.float32


def test_dropout_and_batch_statistics_are_off(untouched: None) -> None:
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(16, 2)).train()
    pool = ProxyPool.from_modules(net)
    x = images(6, 3, 4, 4)
    whole = pool.proxies[0](x)
    assert torch.equal(whole, pool.proxies[0](x))
    assert torch.allclose(whole[:2], pool.proxies[0](x[:2]), atol=1e-6)


# --- the user's own modules


def test_the_users_modules_stay_as_they_are(network: Networks, batch: tuple[Tensor, Tensor]) -> None:
    net = network(1).train()
    net[0].register_forward_hook(lambda *_: None)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pool = ProxyPool.from_modules(net)
    pool.proxies[0](batch[0])
    assert all(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert hooks(net) == 1
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(not p.requires_grad for proxy in pool for p in proxy.network.parameters())
    assert all(not module.training for proxy in pool for module in proxy.network.modules())


def test_training_the_original_on_does_not_change_the_pool(network: Networks, batch: tuple[Tensor, Tensor]) -> None:
    net, (x, y) = network(1), batch
    pool = ProxyPool.from_modules([net])
    before = pool.proxies[0](x)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    torch.autograd.backward(torch.nn.functional.cross_entropy(net(x), y))
    optimizer.step()
    assert not torch.equal(net[:-1](x), before)
    assert torch.equal(pool.proxies[0](x), before)


@pytest.mark.parametrize("space", SPACES)
def test_no_hook_is_left_after_a_call(pool: ProxyPool, batch: tuple[Tensor, Tensor], space: Any) -> None:
    pool.proxies[0](batch[0], space)
    assert hooks(pool.proxies[0].network) == 0


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), torch.OutOfMemoryError("full")], ids=repr)
def test_no_hook_is_left_after_an_exception(error: BaseException) -> None:
    proxy = Proxy(Faulty(error))  # type: ignore[arg-type]
    with pytest.raises((ProxyError, KeyboardInterrupt, torch.OutOfMemoryError)):
        proxy(images(2, 3, 2, 2))
    assert hooks(proxy.network) == 0
    proxy.network.error = None  # type: ignore[assignment]
    assert proxy(images(2, 3, 2, 2)).shape == (2, 12)


def test_running_out_of_memory_is_not_called_a_wrong_shape() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Proxy(Faulty(torch.OutOfMemoryError("full")))(images(2, 3, 2, 2))


# --- refusals that name what would do


def test_a_wrongly_named_head_lists_the_linear_layers() -> None:
    with pytest.raises(ProxyError, match=r"no layer 'fc'.*classifier\.0, classifier\.3, classifier\.6"):
        ProxyPool.from_modules(vgg_like(), head="fc")


@pytest.mark.parametrize("kind", [HeadFirst, UnusedLast])
def test_a_last_linear_layer_that_is_not_the_head_is_noticed(kind: type[nn.Module]) -> None:
    with pytest.raises(ProxyError, match=r"not the head.*head='\.\.\.'.*candidates: head, body"):
        Proxy(kind())(images(2, 3, 2, 2))


def test_a_named_layer_that_is_not_reached_is_noticed() -> None:
    with pytest.raises(ProxyError, match=r"'auxiliary'.*not reached.*candidates: head, body"):
        Proxy(UnusedLast(), "auxiliary")(images(2, 3, 2, 2))


def test_a_network_without_linear_layers_asks_for_the_head() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ProxyError, match=r"no linear layer.*head='\.\.\.'"):
        ProxyPool.from_modules(net, names=["mine"])
    assert ProxyPool.from_modules(net, head="1").proxies[0](images(2, 3, 5, 5)).shape == (2, 100)


def test_a_head_that_sees_other_rows_than_images_is_refused() -> None:
    net = nn.Sequential(nn.Flatten(0, 1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ProxyError, match="6 rows for 2 images"):
        Proxy(net)(images(2, 3, 2, 2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(network: Networks, value: float) -> None:
    net = network(0)
    with torch.no_grad():
        net[3].weight[0, 0] = value
    with pytest.raises(ProxyError, match=r"'expert-2'.*3\.weight"):
        ProxyPool.from_modules([network(1), net], names=["expert-1", "expert-2"])


def test_running_statistics_that_are_not_finite_are_refused() -> None:
    net: Any = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
    net[0].running_var[1] = float("nan")
    with pytest.raises(ProxyError, match="running_var"):
        Proxy(net)


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 3, 6, 6)], ids=["channels", "size"])
def test_images_the_network_does_not_take(pool: ProxyPool, shape: tuple[int, ...]) -> None:
    x = images(*shape)
    pool.check(x, None)  # the pool does not know its shape; the network says it
    with pytest.raises(ProxyError, match=r"does not take images of shape .*" + str(shape[2])):
        pool.proxies[0](x)


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 3, 6, 6)], ids=["channels", "size"])
def test_images_of_another_shape_than_the_pool_records(network: Networks, shape: tuple[int, ...]) -> None:
    pool = ProxyPool.from_modules(network(0), info=PoolInfo(dataset="mine", shape=(3, 4, 4)))
    pool.check(images(2, 3, 4, 4), None)
    with pytest.raises(ProxyError, match=r"\(3, 4, 4\) \(mine\)"):
        pool.check(images(*shape), None)


def test_a_vision_transformer_says_that_the_size_is_wrong() -> None:
    torchvision = pytest.importorskip("torchvision")
    with seeded(0):
        net = torchvision.models.VisionTransformer(
            image_size=8, patch_size=4, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8, num_classes=3
        )
    proxy = ProxyPool.from_modules(net).proxies[0]
    assert proxy(images(2, 3, 8, 8)).shape == (2, 8)
    with pytest.raises(ProxyError, match="does not take images"):  # the network itself raises AssertionError
        proxy(images(2, 3, 16, 16))


@pytest.mark.parametrize(
    "error", [ValueError(), RuntimeError(""), IndexError("index 5 is out of bounds"), AssertionError()], ids=repr
)
def test_whatever_the_network_raises_becomes_a_proxy_error(error: Exception) -> None:
    with pytest.raises(ProxyError, match="does not take images"):
        Proxy(Faulty(error))(images(2, 3, 2, 2))


@pytest.mark.parametrize("x", [torch.zeros(3, 4, 4), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)], ids=["3-d", "uint8"])
def test_only_batches_of_floats_are_images(pool: ProxyPool, x: Tensor) -> None:
    with pytest.raises(InputError, match="floating-point"):
        pool.check(x, None)


def test_an_unknown_feature_space_is_refused() -> None:
    assert [check_representation(name) for name in ("feature", "logit")]
    with pytest.raises(InputError, match=r"'feature'.*'logit'"):
        check_representation("pixels")


# --- input spaces

CIFAR = InputSpace.normalized((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
HALF = InputSpace.normalized((0.5, 0.5, 0.5), (0.5, 0.25, 0.125))


@pytest.mark.parametrize("host", [HALF, InputSpace.unit(3), CIFAR], ids=["half", "unit", "the pool's own"])
def test_views_are_converted_to_the_pools_space(
    network: Networks, batch: tuple[Tensor, Tensor], host: InputSpace
) -> None:
    pool = ProxyPool.from_modules(network(0), info=PoolInfo(space=CIFAR))
    x = batch[0]

    def column(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).view(3, 1, 1)

    by_hand = (x * column(host.std) + column(host.mean) - column(CIFAR.mean)) / column(CIFAR.std)
    pool.check(x, host)
    assert torch.allclose(pool.prepare(x, host), by_hand, rtol=0, atol=1e-14)
    assert torch.allclose(pool.proxies[0](pool.prepare(x, host)), pool.proxies[0](by_hand), rtol=0, atol=1e-13)


def test_conversion_is_differentiable_and_there_and_back_is_exact(batch: tuple[Tensor, Tensor]) -> None:
    x = batch[0].requires_grad_()
    there = HALF.convert(x, CIFAR)
    (gradient,) = torch.autograd.grad(there.sum(), x)
    scale = torch.tensor(HALF.std, dtype=torch.float64) / torch.tensor(CIFAR.std, dtype=torch.float64)
    assert torch.allclose(gradient, scale.view(3, 1, 1).expand_as(x), rtol=0, atol=1e-14)
    assert torch.allclose(CIFAR.convert(there, HALF), x, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("own", "host"), [(None, HALF), (CIFAR, None), (CIFAR, CIFAR)])
def test_an_unknown_or_equal_space_changes_nothing(
    network: Networks, batch: tuple[Tensor, Tensor], own: InputSpace | None, host: InputSpace | None
) -> None:
    pool = ProxyPool.from_modules(network(0), info=PoolInfo(space=own))
    assert pool.prepare(batch[0], host) is batch[0]


def test_spaces_of_other_channels_are_refused(network: Networks, batch: tuple[Tensor, Tensor]) -> None:
    pool = ProxyPool.from_modules(network(0), info=PoolInfo(space=CIFAR))
    with pytest.raises(InputError, match="3 channels in an input space of 1"):
        pool.check(batch[0], InputSpace.unit(1))
    with pytest.raises(InputError, match="1 channels against 3"):
        pool.prepare(images(2, 1, 4, 4), InputSpace.unit(1))


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5, 0.5)), ((0.5,), (0.0,)), ((), ()), ((0.1,), (-1.0,))])
def test_a_space_needs_a_mean_and_a_positive_std_per_channel(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="one positive std per channel"):
        InputSpace.normalized(mean, std)


def test_a_space_survives_its_record() -> None:
    assert space_from_json(CIFAR.to_json()) == CIFAR
    for record, said in (
        ({"kind": "lab"}, "unknown kind.*'lab'"),
        ({"kind": "normalized"}, "no record"),
        ([], "no record"),
    ):
        with pytest.raises(InputError, match=said):
            space_from_json(record)  # type: ignore[arg-type]


# --- drawing


@pytest.fixture
def five(network: Networks) -> ProxyPool:
    return ProxyPool.from_modules([network(seed) for seed in range(5)])


def names(drawn: list[Proxy]) -> list[str]:
    return [proxy.name for proxy in drawn]


def test_drawn_proxies_are_distinct_and_all_are_reachable(five: ProxyPool) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [names(five.draw(2, generator)) for _ in range(60)]
    assert all(len(set(draw)) == 2 for draw in draws)
    assert {draw[0] for draw in draws} == {draw[1] for draw in draws} == {proxy.name for proxy in five}
    assert sorted(names(five.draw(5, generator))) == sorted(proxy.name for proxy in five)


def test_draws_come_from_the_given_generator_only(five: ProxyPool, untouched: None) -> None:
    first, second = (torch.Generator().manual_seed(4) for _ in range(2))
    drawn = [names(five.draw(2, first)) for _ in range(10)]
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert [names(five.draw(2, second)) for _ in range(10)] == drawn
    assert torch.equal(first.get_state(), second.get_state())
    assert not torch.equal(first.get_state(), torch.Generator().manual_seed(4).get_state())


@pytest.mark.parametrize("count", [0, 6, -1])
def test_more_proxies_than_there_are_cannot_be_drawn(five: ProxyPool, count: int) -> None:
    with pytest.raises(InputError, match=f"between 1 and the pool's size, 5, got {count}"):
        five.draw(count, torch.Generator())


def test_everything_leaves_the_global_random_state_alone(
    five: ProxyPool, batch: tuple[Tensor, Tensor], untouched: None
) -> None:
    pool = ProxyPool.from_modules([proxy.network for proxy in five], info=PoolInfo(space=CIFAR))
    for proxy in pool.draw(2, torch.Generator().manual_seed(0)):
        proxy(pool.prepare(batch[0], HALF), "logit")
    pool.to("cpu")


# --- what users pass as proxies


def test_of_takes_a_pool_a_network_several_and_a_folder(network: Networks, tmp_path: Path) -> None:
    pool = ProxyPool.from_modules(network(0))
    assert ProxyPool.of(pool) is pool
    assert len(ProxyPool.of(network(0))) == 1
    assert len(ProxyPool.of([network(0), network(1)])) == len(ProxyPool.of((network(0), network(1)))) == 2
    several = [Proxy(network(0)), Proxy(network(1))]
    assert ProxyPool.of(several[1]).proxies == several[1:]
    assert ProxyPool.of(several).proxies == ProxyPool.of(tuple(several)).proxies == several
    with seeded(0):
        ProxyPool.from_modules(build("convnet", channels=1, size=(8, 8), width=4)).save(tmp_path / "pool")
    assert len(ProxyPool.of(tmp_path / "pool")) == len(ProxyPool.of(str(tmp_path / "pool"))) == 1


@pytest.mark.parametrize("wrong", [None, 3, {}, torch.zeros(2)], ids=lambda value: type(value).__name__)
def test_of_refuses_anything_else_by_its_type(wrong: object) -> None:
    with pytest.raises(ProxyError, match=f"got {type(wrong).__name__} as proxies, expected a ProxyPool"):
        ProxyPool.of(wrong)


def test_of_refuses_a_list_of_something_else(network: Networks) -> None:
    with pytest.raises(ProxyError, match=r"got dict as a proxy, expected a torch\.nn\.Module"):
        ProxyPool.of([network(0), {"weights": 1}])
    with pytest.raises(ProxyError, match="at least one proxy"):
        ProxyPool.of([])
    with pytest.raises(ProxyError, match="found no folder"):
        ProxyPool.of("nowhere/at-all")


def test_names_must_be_as_many_as_modules(network: Networks) -> None:
    with pytest.raises(ddplug.DDPlugError, match="names"):
        ProxyPool.from_modules([network(0)], names=["a", "b"])


def test_a_pool_says_what_it_is(five: ProxyPool, network: Networks) -> None:
    assert repr(five) == "ProxyPool(5 x Sequential, unknown data set)"
    assert "mine" in repr(ProxyPool.from_modules(network(0), info=PoolInfo(dataset="mine")))
    assert [proxy.name for proxy in five][:2] == ["Sequential-0", "Sequential-1"]
