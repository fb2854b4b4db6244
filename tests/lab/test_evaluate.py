"""Judging a set: the recipe, what is kept and gone on from, and the command."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from ddplug import DDPlugError, InputSpace, ProxyPool, datasets
from ddplug.cli import app as cli
from ddplug.datasets.images import ImageData, random_real
from ddplug.datasets.synthetic import SyntheticSet, load_set, save_set
from ddplug.datasets.zca import ZCASpace
from ddplug.errors import DataError, InputError, ProxyError
from ddplug.lab import judging as module
from ddplug.lab.evaluate import Evaluation, evaluate
from ddplug.lab.judging import DSAViews, Recipe, resolve
from ddplug.lab.meaning import with_space
from ddplug.lab.measure import measure
from ddplug.networks.training import accuracy, fit, named
from ddplug.networks.zoo import build, seeded
from ddplug.proxies.pool import PoolInfo
from ddplug.utils.files import write_json

pytestmark = pytest.mark.numerical

pytest.importorskip("sklearn")

TINY: dict[str, Any] = {"epochs": 2, "runs": 2, "batch_size": 8, "options": {"width": 8}}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return datasets.load("digits")


@pytest.fixture(scope="module")
def few(digits: ImageData) -> SyntheticSet:
    """Two real digits of each class."""
    images, labels = random_real(digits, 2, torch.Generator().manual_seed(0))
    return SyntheticSet(images, labels, digits.space, "digits")


@pytest.fixture(scope="module")
def pool(digits: ImageData) -> ProxyPool:
    networks = []
    for seed in range(2):
        with seeded(seed):
            networks.append(build("convnet", channels=1, size=(8, 8), width=8))
    return ProxyPool.from_modules(networks, info=PoolInfo(dataset="digits", space=digits.space))


# --- augmentation


def noise(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.usefixtures("untouched")
def test_views_are_drawn_from_the_generator_given() -> None:
    views = DSAViews()
    first, again = (views(noise(), torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, again)
    generator = torch.Generator().manual_seed(4)
    drawn = [views(noise(), generator) for _ in range(3)]
    assert torch.equal(drawn[0], first)
    assert not torch.equal(drawn[1], first)
    assert not torch.equal(drawn[2], drawn[1])


def test_every_image_has_its_own_numbers() -> None:
    same = noise(1).expand(16, 3, 8, 8)
    views = DSAViews("scale")(same, torch.Generator().manual_seed(0))
    assert len({tuple(view.flatten().tolist()) for view in views}) == 16


def test_views_have_a_name_that_is_alike_in_every_run() -> None:
    assert repr(DSAViews("flip_crop")) == "DSAViews(strategy='flip_crop')"
    with pytest.raises(InputError, match="swirl"):
        DSAViews("swirl")


def test_a_training_with_views_goes_on_from_its_checkpoint(few: SyntheticSet, tmp_path: Path) -> None:
    def train(**more: Any) -> Tensor:
        with seeded(0):
            net = build("convnet", channels=1, size=(8, 8), width=4)
        trained = fit(net, few.images, few.labels, epochs=4, batch_size=8, augment=DSAViews(), seed=0, **more)
        return torch.cat([parameter.detach().flatten() for parameter in trained.parameters()])

    def stop(done: int, _: float) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(checkpoint=tmp_path / "state", on_epoch=stop)
    assert torch.equal(train(checkpoint=tmp_path / "state"), train())


# --- the recipe


@pytest.mark.usefixtures("untouched")
def test_a_run_is_a_fresh_network_trained_on_the_set_and_tested_on_real_images(
    digits: ImageData, few: SyntheticSet
) -> None:
    result = evaluate(few, digits, architectures=("ConvNet", "AlexNet"), seed=3, **TINY)
    views = DSAViews("color_crop_cutout_scale_rotate")  # digits are not mirrored
    assert list(result.accuracies) == ["convnet", "alexnet"]
    for name, runs in result.accuracies.items():
        for run, found in enumerate(runs):
            with seeded(3 + run):
                net = build(name, num_classes=10, channels=1, size=(8, 8), width=8)
            fit(net, few.images, few.labels, epochs=2, lr=0.01, batch_size=8, augment=views, seed=3 + run)
            assert found == accuracy(net, digits.test_images, digits.test_labels)


def test_more_images_and_epochs_teach_more(digits: ImageData, few: SyntheticSet) -> None:
    images, labels = random_real(digits, 40, torch.Generator().manual_seed(0))
    much = SyntheticSet(images, labels, digits.space)
    options: dict[str, Any] = {"runs": 1, "epochs": 30, "lr": 0.05, "batch_size": 32, "augment": None}
    result = evaluate(much, digits, options={"width": 16}, **options)
    assert result.mean("convnet") > 0.85
    wrong = replace(much, labels=(labels + 1) % 10)
    assert evaluate(wrong, digits, options={"width": 16}, **options).mean("convnet") < 0.1


def test_soft_labels_are_learned_from(digits: ImageData, few: SyntheticSet) -> None:
    hard = torch.nn.functional.one_hot(few.labels, 10).float()
    rolled = replace(few, labels=hard.roll(1, dims=1))
    settings = {**TINY, "augment": None, "runs": 1, "epochs": 5}
    expected = evaluate(replace(few, labels=(few.labels + 1) % 10), digits, **settings)
    # The two losses differ in the order of a sum of ten terms: 10 x 2^-24 a step, 15 steps. Of 360 test images, those
    # whose two largest logits are nearer to each other than that may be judged either way; three at the very most.
    found = evaluate(rolled, digits, **settings).accuracies["convnet"]
    assert found == pytest.approx(expected.accuracies["convnet"], rel=0, abs=3 / 360)


def test_the_learned_rate_is_used_unless_another_is_given(digits: ImageData, few: SyntheticSet) -> None:
    learned = replace(few, lr=0.2)
    rates = [
        evaluate(chosen, digits, **{**TINY, "runs": 1, "epochs": 1}, lr=lr).settings["lr"]
        for chosen, lr in ((few, None), (learned, None), (learned, 0.3))
    ]
    assert rates == [0.01, 0.2, 0.3]


def test_mean_and_std_and_json() -> None:
    result = Evaluation({"epochs": 3}, {"convnet": [0.5, 0.7, 0.6], "alexnet": [0.25]})
    assert result.mean("convnet") == pytest.approx(fmean([0.5, 0.7, 0.6]))
    assert result.std("convnet") == pytest.approx(stdev([0.5, 0.7, 0.6]))
    assert result.std("alexnet") == 0
    record = json.loads(json.dumps(result.to_json()))
    assert record["settings"] == {"epochs": 3}
    assert record["results"]["alexnet"] == {"mean": 0.25, "std": 0.0, "accuracies": [0.25]}
    assert record["cmi"] is None


def test_progress_goes_from_the_first_epoch_to_the_last(digits: ImageData, few: SyntheticSet) -> None:
    told: list[tuple[str, int, int, str]] = []
    result = evaluate(few, digits, on_progress=lambda *what: told.append(what), **TINY)
    assert [done for _, done, _, _ in told] == [1, 2, 2, 3, 4, 4]
    assert {(what, total) for what, _, total, _ in told} == {("convnet", 4)}
    assert told[-1][3] == f"{result.accuracies['convnet'][1]:.2%}"


# --- spaces


def test_a_set_in_another_normalisation_is_judged_in_the_datas(
    digits: ImageData, few: SyntheticSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def watched(net: torch.nn.Module, images: Tensor, *args: Any, **settings: Any) -> torch.nn.Module:
        seen.append(images)
        return fit(net, images, *args, **settings)

    monkeypatch.setattr(module, "fit", watched)
    unit = replace(few, images=digits.space.to_unit(few.images), space=InputSpace.unit(1))
    evaluate(unit, digits, **{**TINY, "runs": 1})
    torch.testing.assert_close(seen[0], few.images)


def test_a_whitened_set_is_judged_whitened(digits: ImageData, few: SyntheticSet) -> None:
    space = ZCASpace.fit(digits.space.to_unit(digits.train_images).clamp(0, 1))
    white = replace(few, images=digits.space.convert(few.images, space), space=None, dataset=None, meaning="zca")
    found = evaluate(white, digits, **TINY)
    whitened = digits.to_space(space)
    expected = [
        Recipe(epochs=2, batch_size=8).judge(
            white.images, white.labels, whitened, lambda: build("convnet", channels=1, size=(8, 8), width=8), seed=run
        )
        for run in range(2)
    ]
    assert found.accuracies["convnet"] == expected
    assert found.settings["space"] == "ZCA-whitened"
    assert evaluate(replace(white, meaning=None, space=space), digits, **TINY).accuracies == found.accuracies


def test_the_space_has_to_be_known(digits: ImageData, few: SyntheticSet) -> None:
    mute = replace(few, space=None)
    with pytest.raises(InputError, match="does not say.*--input-space"):
        evaluate(mute, digits, **TINY)
    assert with_space(mute, "normalized", digits).space == digits.space
    assert with_space(mute, "unit", digits).space == InputSpace.unit(1)
    assert with_space(replace(mute, meaning="normalized"), None, digits).space == digits.space
    assert with_space(replace(mute, meaning="normalized"), "unit", digits).space == InputSpace.unit(1)
    assert with_space(few, "normalized", digits).space == digits.space
    with pytest.raises(InputError, match="leave it out"):
        with_space(few, "unit", digits)
    with pytest.raises(InputError, match="unknown input space 'bytes'"):
        with_space(mute, "bytes", digits)


# --- CMI


def test_cmi_of_the_set_is_measured_in_its_own_space(digits: ImageData, few: SyntheticSet, pool: ProxyPool) -> None:
    result = evaluate(few, digits, pool=pool, **{**TINY, "runs": 1, "epochs": 1})
    assert result.cmi == measure(pool, few.images, few.labels, input_space=digits.space)
    unit = replace(few, images=digits.space.to_unit(few.images), space=InputSpace.unit(1))
    again = evaluate(unit, digits, pool=pool, **{**TINY, "runs": 1, "epochs": 1}).cmi
    assert again is not None
    assert result.cmi is not None
    assert again.cmi == pytest.approx(result.cmi.cmi, rel=1e-3)
    soft = replace(few, labels=torch.nn.functional.one_hot(few.labels, 10).float() * 0.9 + 0.01)
    assert evaluate(soft, digits, pool=pool, **{**TINY, "runs": 1, "epochs": 1}).cmi == result.cmi


# --- going on


def test_an_interrupted_evaluation_goes_on(
    digits: ImageData, few: SyntheticSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(few, digits, architectures=("convnet", "alexnet"), **TINY)
    trained: list[int] = []

    def fit_three(*args: Any, seed: int, **settings: Any) -> Any:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(seed)
        return fit(*args, seed=seed, **settings)

    monkeypatch.setattr(module, "fit", fit_three)
    keep = tmp_path / "new" / "runs.json"
    with pytest.raises(KeyboardInterrupt):
        evaluate(few, digits, architectures=("convnet", "alexnet"), keep=keep, **TINY)
    assert json.loads(keep.read_text())["runs"]["convnet"] == dict(enumerate_text(whole.accuracies["convnet"]))
    trained[:] = [0, 0]  # one more may be trained
    went_on = evaluate(few, digits, architectures=("convnet", "alexnet"), keep=keep, **TINY)
    assert went_on.accuracies == whole.accuracies
    assert evaluate(few, digits, keep=keep, **TINY).accuracies == {"convnet": whole.accuracies["convnet"]}
    monkeypatch.setattr(module, "fit", fit)
    more = evaluate(few, digits, keep=keep, **{**TINY, "runs": 3}).accuracies["convnet"]
    assert more[:2] == whole.accuracies["convnet"]
    assert len(more) == 3


def enumerate_text(values: list[float]) -> list[tuple[str, float]]:
    return [(str(index), value) for index, value in enumerate(values)]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"epochs": 3}, "epochs was 2, now 3"),
        ({"lr": 0.2}, "lr was 0.01, now 0.2"),
        ({"batch_size": 4}, "batch_size was 8, now 4"),
        ({"seed": 1}, "seed was 0, now 1"),
        ({"augment": None}, "augment was .*DSAViews.*, now 'None'"),
        ({"augment": DSAViews("flip")}, "augment was"),
        ({"options": {"width": 4}}, "options was {'width': 8}, now {'width': 4}"),
    ],
    ids=str,
)
def test_runs_of_other_settings_are_refused(
    changed: dict[str, Any], said: str, digits: ImageData, few: SyntheticSet, tmp_path: Path
) -> None:
    keep = tmp_path / "runs.json"
    settings = {**TINY, "runs": 1}
    evaluate(few, digits, keep=keep, **settings)
    before = keep.read_bytes()
    with pytest.raises(InputError, match=f"other settings: {said}.*delete"):
        evaluate(few, digits, keep=keep, **{**settings, **changed})
    assert keep.read_bytes() == before


def test_runs_of_another_set_or_data_are_refused(digits: ImageData, few: SyntheticSet, tmp_path: Path) -> None:
    keep = tmp_path / "runs.json"
    settings = {**TINY, "runs": 1}
    evaluate(few, digits, keep=keep, **settings)
    for other in (replace(few, images=few.images + 0.1), replace(few, labels=few.labels.flip(0))):
        with pytest.raises(InputError, match="set was"):
            evaluate(other, digits, keep=keep, **settings)
    with pytest.raises(InputError, match="data was"):
        evaluate(few, replace(digits, test_labels=digits.test_labels.flip(0)), keep=keep, **settings)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_two_evaluations_do_not_share_a_file(
    digits: ImageData, few: SyntheticSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = tmp_path / "runs.json"
    said = []

    def fit_beside_another(*args: Any, **settings: Any) -> Any:
        assert json.loads(keep.read_text())["runs"] == {}, "written at once"
        with pytest.raises(InputError, match="another process is at work in") as refused:
            evaluate(few, digits, keep=keep, **TINY)  # locks are of the open file, so we are another as well
        said.append(str(refused.value))
        monkeypatch.setattr(module, "fit", fit)
        return fit(*args, **settings)

    monkeypatch.setattr(module, "fit", fit_beside_another)
    evaluate(few, digits, keep=keep, **TINY)
    assert str(keep) in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["runs.json"]


def test_a_file_without_runs_binds_nobody(digits: ImageData, few: SyntheticSet, tmp_path: Path) -> None:
    keep = tmp_path / "runs.json"
    evaluate(few, digits, keep=keep, **TINY)
    write_json({**json.loads(keep.read_text()), "runs": {}}, keep)
    evaluate(few, digits, keep=keep, **{**TINY, "epochs": 1})
    assert json.loads(keep.read_text())["settings"]["epochs"] == 1


def test_a_file_that_cannot_be_is_refused_before_training(
    digits: ImageData, few: SyntheticSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(InputError, match="nothing can be kept in .*choose another place"):
        evaluate(few, digits, keep=tmp_path / "file" / "runs.json", **TINY)


def test_augmentations_are_named_alike_in_every_process() -> None:
    assert named(None) == "None"
    assert named(DSAViews("flip")) == "DSAViews(strategy='flip')"
    assert named(enumerate_text).endswith("test_evaluate.enumerate_text")  # type: ignore[arg-type]

    class Mirrored:
        def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
            return images.flip(-1)

    assert named(Mirrored()) == named(Mirrored())
    assert named(Mirrored()).endswith("Mirrored")
    assert " at 0x" not in named(lambda images, generator: images)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"settings": {}}', '{"settings": {}, "runs": {"a": {"0": "x"}}}'])
def test_a_damaged_file_of_runs_is_refused(text: str, digits: ImageData, few: SyntheticSet, tmp_path: Path) -> None:
    (tmp_path / "runs.json").write_text(text)
    with pytest.raises(InputError, match=r"runs\.json' cannot be read.*Delete it"):
        evaluate(few, digits, keep=tmp_path / "runs.json", **TINY)


# --- what cannot be judged


def test_names_in_any_case() -> None:
    names = ["ConvNet", "ResNet18", "VGG11", "AlexNet", "torchvision/resnet18"]
    assert [resolve(name) for name in names] == ["convnet", "resnet18", "vgg11", "alexnet", "torchvision/resnet18"]


def test_nothing_is_trained_if_one_network_cannot_be_built(
    digits: ImageData, few: SyntheticSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ProxyError, match="unknown architecture 'mlp'"):
        evaluate(few, digits, architectures=("convnet", "MLP"), **TINY)
    with pytest.raises(ProxyError, match="vgg11 halves"):
        evaluate(few, digits, architectures=("convnet", "VGG11"), **TINY)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": torch.zeros(20, 3, 8, 8)}, "do not fit digits"),
        ({"labels": torch.full((20,), 10)}, "labels for 11 classes"),
        ({"labels": torch.full((20, 3), 1 / 3)}, "labels for 3 classes"),
        ({"dataset": "cifar10"}, "distilled from cifar10"),
        ({"images": torch.full((20, 1, 8, 8), float("nan"))}, "not all finite"),
    ],
    ids=["shape", "labels", "soft labels", "data set", "nan"],
)
def test_a_set_that_does_not_fit(change: dict[str, Any], said: str, digits: ImageData, few: SyntheticSet) -> None:
    with pytest.raises(InputError, match=said):
        evaluate(replace(few, **change), digits, **TINY)


@pytest.mark.parametrize(
    "more", [{"runs": 0}, {"architectures": ()}, {"architectures": ("convnet", "ConvNet")}, {"epochs": 0}], ids=str
)
def test_settings_that_mean_nothing(more: dict[str, Any], digits: ImageData, few: SyntheticSet) -> None:
    with pytest.raises(InputError):
        evaluate(few, digits, **{**TINY, **more})


def test_a_pool_of_other_data(digits: ImageData, few: SyntheticSet, pool: ProxyPool) -> None:
    other = ProxyPool(pool.proxies, replace(pool.info, dataset="cifar10"))
    with pytest.raises(ProxyError, match="trained on cifar10"):
        evaluate(few, digits, pool=other, **TINY)


# --- the command


@pytest.fixture
def set_file(few: SyntheticSet, tmp_path: Path) -> Path:
    save_set(few, tmp_path / "set.pt")
    return tmp_path / "set.pt"


QUICK = ("--epochs", 2, "--runs", 2, "--width", 8, "--batch-size", 8, "--device", "cpu")


def run(*arguments: object) -> str:
    result = CliRunner(env={"COLUMNS": "220", "TERM": "dumb"}).invoke(cli.app, ["evaluate", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_prints_and_writes_what_came_out(
    set_file: Path, digits: ImageData, few: SyntheticSet, pool: ProxyPool, tmp_path: Path
) -> None:
    pool.save(tmp_path / "pool")
    out = tmp_path / "result.json"
    shown = run(set_file, *QUICK, "--arch", "ConvNet, AlexNet", "--proxies", tmp_path / "pool", "--json", out)
    expected = evaluate(few, digits, architectures=("convnet", "alexnet"), pool=pool, **TINY)
    assert json.loads(out.read_text()).items() >= json.loads(json.dumps(expected.to_json())).items()
    for name in ("convnet", "alexnet"):
        assert re.search(rf"{name}\W+{expected.mean(name):.2%} ± {expected.std(name):.2%}", shown)
    assert expected.cmi is not None
    assert f"{expected.cmi.cmi:.6f}" in shown
    assert json.loads((tmp_path / "result.json.runs").read_text())["runs"] == {
        name: dict(enumerate_text(runs)) for name, runs in expected.accuracies.items()
    }


def test_the_command_goes_on_and_leaves_nothing_unasked(
    set_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = run(set_file, *QUICK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.pt"]
    calls = 0

    def second_fails(*args: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return fit(*args, **settings)

    monkeypatch.setattr(module, "fit", second_fails)
    result = CliRunner().invoke(cli.app, ["evaluate", *map(str, (set_file, *QUICK))])
    assert result.exit_code != 0
    assert (tmp_path / "set.pt.runs").is_file()
    with pytest.raises(InputError, match="epochs was 2, now 3"):
        run(set_file, *QUICK, "--epochs", 3)
    assert run(set_file, *QUICK).splitlines()[-6:] == whole.splitlines()[-6:]
    assert calls == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.pt"]


def test_without_augmentation(set_file: Path, digits: ImageData, few: SyntheticSet, tmp_path: Path) -> None:
    for name, options in {"off": ("--no-dsa",)}.items():
        run(set_file, *QUICK, *options, "--json", tmp_path / f"{name}.json")
        found = json.loads((tmp_path / f"{name}.json").read_text())["results"]["convnet"]["accuracies"]
        assert found == evaluate(few, digits, augment=None, **TINY).accuracies["convnet"]


def test_a_hosts_formed_images(digits: ImageData, few: SyntheticSet, tmp_path: Path) -> None:
    images = digits.space.to_unit(few.images)
    torch.save([images, few.labels], tmp_path / "data.pt")
    with pytest.raises(DataError, match="Give the factor"):
        run(tmp_path / "data.pt", *QUICK)
    run(tmp_path / "data.pt", *QUICK, "--factor", 2, "--json", tmp_path / "out.json")
    chosen = load_set(tmp_path / "data.pt", factor=2)
    expected = evaluate(chosen, digits, **TINY)
    assert json.loads((tmp_path / "out.json").read_text())["settings"] == expected.settings
    assert len(chosen.images) == 80


def test_images_that_hold_others_in_any_file(set_file: Path, digits: ImageData, tmp_path: Path) -> None:
    run(set_file, *QUICK, "--factor", 2, "--json", tmp_path / "out.json")
    chosen = load_set(set_file, factor=2)
    assert len(chosen.images) == 4 * len(load_set(set_file).images)
    expected = evaluate(chosen, digits, **TINY)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["settings"] == expected.settings
    assert found["results"]["convnet"]["accuracies"] == expected.accuracies["convnet"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--arch", ""), "at least one architecture"),
        (("--arch", "LeNet"), "unknown architecture 'lenet'"),
        (("--dsa", "swirl"), "swirl"),
        (("--input-space", "unit"), "leave it out"),
        (("--lr", 0), "lr must be more than 0 and finite, got 0.0"),
        (("--lr", -0.1), "lr must be more than 0"),
        (("--lr", "inf"), "finite, got inf"),
        (("--lr", "nan"), "finite, got nan"),
        (("--factor", 3), "divides its height and width; got 3"),
        (("--proxies", "nowhere"), "no pool"),
    ],
    ids=str,
)
def test_bad_input_is_one_of_our_errors(options: tuple[object, ...], said: str, set_file: Path) -> None:
    with pytest.raises(DDPlugError, match=said):
        run(set_file, *QUICK, *options)
    assert [path.name for path in set_file.parent.iterdir() if path.name not in ("set.pt", "set.pt.runs")] == []
