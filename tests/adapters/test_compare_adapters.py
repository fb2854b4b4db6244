"""What `ddplug compare` asks of each host's adapter: the command line of an entry, and the sets that it left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddplug import adapters
from ddplug.datasets.spaces import InputSpace
from ddplug.errors import HostError, InputError

IMAGES, LABELS = torch.rand(4, 3, 8, 8), torch.tensor([0, 0, 1, 1])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user is, apart from the folder of the run."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def values(line: list[str], name: str) -> list[str]:
    return [line[place + 1] for place, word in enumerate(line) if word == name]


@pytest.mark.parametrize("host", ["dm", "dsa"])
def test_dm_and_dsa(host: str, here: Path, tmp_path: Path) -> None:
    adapter, given = adapters.upstream(host), ("--ipc", "10", "--data_path", "mine")
    line = adapter.command(given, tmp_path / "run")
    assert line[: len(given)] == list(given)
    assert values(line, "--data_path")[-1] == str(here / "mine"), "the run has another working directory"
    assert values(adapter.command((), tmp_path), "--data_path") == [str(here / "data")], "the host's default, too"
    assert (values(line, "--save_path"), values(line, "--num_eval")) == ([str(tmp_path / "run")], ["0"])
    for taken in ("--save_path=x", "--num_exp", "--num_eval"):
        with pytest.raises(InputError, match=f"{taken.split('=')[0]} is set by"):
            adapter.comparable((taken, "1"))


def test_mtt(here: Path, tmp_path: Path) -> None:
    mtt, given = adapters.upstream("mtt"), ("--ipc", "10", "--Iteration=2000", "--buffer_path", "/experts")
    mtt.comparable(given)
    line = mtt.command(given, tmp_path)
    assert values(line, "--data_path") == [str(here / "data")]
    assert values(line, "--buffer_path")[-1] == "/experts"
    assert (values(line, "--num_eval"), values(line, "--eval_it")) == (["0"], ["1000"])
    assert mtt.expected_setting(given) == ("mtt", "cifar10", 10)
    assert mtt.expected_setting(()) == ("mtt", "cifar10", 1)
    assert mtt.quiet_env == {"WANDB_MODE": "disabled"}
    for wrong in ("300", "1500", "0"):
        with pytest.raises(HostError, match=f"every 1000 iterations, and Iteration is {wrong}"):
            mtt.comparable(("--Iteration", wrong))
    with pytest.raises(InputError, match="--eval_it is set by"):
        mtt.comparable(("--eval_it", "100"))
    for short in ("--buffer_p", "--zc", "--Iter=1500"):
        with pytest.raises(InputError, match=f"{short.partition('=')[0]} is an abbreviation; write"):
            mtt.comparable((short, "x"))
    with pytest.raises(HostError, match="--texture are larger"):
        mtt.comparable(("--texture",))


def test_other_experts_are_another_comparison(here: Path) -> None:
    (here / "buffers/CIFAR10/ConvNet").mkdir(parents=True)
    file, mtt = here / "buffers/CIFAR10/ConvNet/replay_buffer_0.pt", adapters.upstream("mtt")
    seen = []
    for content in (b"one", b"two", b"three" * 20000, b"three" * 20001):
        file.write_bytes(content)
        seen.append(mtt.extra_inputs(())["experts"])
    assert len(set(seen)) == 4
    assert mtt.extra_inputs(("--buffer_path", str(here / "buffers")))["experts"] == seen[-1]


def save_numbered(folder: Path, number: object, labels: torch.Tensor = LABELS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(IMAGES + (number if isinstance(number, int) else 0.5), folder / f"images_{number}.pt")
    torch.save(labels, folder / f"labels_{number}.pt")


@pytest.mark.parametrize(("given", "meaning"), [((), "normalized"), (("--zca",), "zca")])
def test_sets_of_mtt(given: tuple[str, ...], meaning: str, tmp_path: Path) -> None:
    folder = tmp_path / "logged_files/CIFAR10/some-name"
    for number in (0, 1000, 2000, "best"):
        save_numbered(folder, number)
    found = adapters.upstream("mtt").saved(tmp_path, given)
    assert sorted(found) == [1000, 2000], "neither the start nor the best"
    assert torch.equal(found[2000].images, IMAGES + 2000)
    assert found[1000].meaning == meaning
    assert found[1000].space is None
    torch.save(IMAGES, folder / "images_zca_1000.pt")
    assert adapters.upstream("mtt").saved(tmp_path, ())[1000].meaning == "zca", "what the host wrote says more"


def test_datm(here: Path, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    datm = adapters.upstream("datm")
    given = {"ipc": 10, "Iteration": 3000, "lr_lr": 0.00001, "data_path": "../mine", "zca": False, "num_eval": 5}
    (here / "own.yaml").write_text(yaml.safe_dump(given))
    arguments = ("--cfg", "own.yaml")
    datm.comparable(arguments)
    assert datm.expected_setting(arguments) == ("datm", "cifar10", 10)
    run = tmp_path / "run"
    more = ("--cmi_inner", "all")
    assert datm.command((*arguments, *more), run) == [*arguments, *more, "--cfg", str(run / "config.yaml")]
    said = yaml.safe_load((run / "config.yaml").read_text())
    assert said["data_path"] == str(tmp_path / "mine")
    assert said["buffer_path"] == str(tmp_path / "buffer_storage"), "the host's default, from where the user is"
    assert (said["num_eval"], said["eval_it"], said["skip_first_eva"]) == (0, 1000, True)
    assert (said["lr_lr"], said["ipc"], said["zca"]) == (0.00001, 10, False), "numbers stay numbers"
    save_numbered(run / "logged_files/CIFAR10/10/ConvNet/some-name/Normal", 1000, torch.randn(4, 2))
    found = datm.saved(run, arguments)
    assert list(found) == [1000]
    assert found[1000].meaning == "normalized"
    assert torch.allclose(found[1000].labels.sum(1), torch.ones(4))
    before = datm.extra_inputs(arguments)
    (here / "own.yaml").write_text(yaml.safe_dump({**given, "zca": True, "Iteration": 100}))
    assert datm.saved(run, arguments)[1000].meaning == "normalized", "as the run was told, whatever the file says now"
    assert datm.extra_inputs(arguments)["configuration"] != before["configuration"]
    with pytest.raises(HostError, match="Iteration is 100"):
        datm.comparable(arguments)
    for wrong in ({"Iteration": "1e3"}, {"ipc": 10.0}, {"data_path": None}, {"zca": 1}):
        (here / "own.yaml").write_text(yaml.safe_dump({**given, **wrong}))
        with pytest.raises(HostError, match=f"{next(iter(wrong))} in 'own.yaml' is .*, expected"):
            datm.comparable(arguments)


def test_idc(here: Path, tmp_path: Path) -> None:
    idc, given = adapters.upstream("idc"), ("-d", "cifar10", "-i", "10", "--niter", "2", "--inner_loop", "4")
    idc.comparable(given)
    idc.comparable((*given, "--test"))  # which `command` gives, too
    assert idc.expected_setting(given) == ("idc", "cifar10", 10)
    (here / "pretrained/cifar10").mkdir(parents=True)
    line = idc.command((*given, "--data_dir", "mine", "--imagenet_dir=theirs"), tmp_path)
    assert values(line, "--imagenet_dir") == [str(here / "theirs")]
    assert (tmp_path / "pretrained/cifar10").is_dir(), "where the host will look for it"
    assert values(line, "--data_dir")[-1] == str(here / "mine")
    assert line[-1] == "--test"
    assert idc.saved(tmp_path, given) == {}
    folder = tmp_path / "results/test"
    folder.mkdir(parents=True)
    torch.save([IMAGES, LABELS], folder / "data.pt")
    (folder / "args.txt").write_text(json.dumps({"factor": 2, "niter": 2000, "inner_loop": 100}))
    (found,) = idc.saved(tmp_path, given).items()
    assert found[0] == 2000, "outer iterations, as the host took them: --reproduce changes what was given"
    assert len(found[1].images) == 16, "taken apart"
    assert found[1].space is not None
    assert (idc.views_per_class((*given, "-f", "2")), idc.views_per_class(given)) == (40, 10)
    with pytest.raises(InputError, match="--seed is set by"):
        idc.comparable((*given, "--seed", "1"))
    with pytest.raises(HostError, match="decode_type multi cannot be judged"):
        idc.comparable((*given, "--decode_type", "multi"))


def test_tesla_is_mtt_with_its_own_length(here: Path, tmp_path: Path) -> None:
    tesla = adapters.upstream("tesla")
    line = tesla.command(("--ipc", "2"), tmp_path / "run")
    assert values(line, "--num_eval") == ["0"]
    assert tesla.options(())["Iteration"] == 10000
    with pytest.raises(HostError, match="tesla saves its set every 1000 iterations, and Iteration is 500"):
        tesla.comparable(("--Iteration", "500"))
    assert not tesla.recognises(adapters), "it is found by its script, as others without a patch"


def test_ncfm(here: Path, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    ncfm, run = adapters.upstream("ncfm"), tmp_path / "run"
    run.mkdir()
    given = {"dataset": {"dataset": "cifar10", "data_dir": "mine"}, "train": {"seed": 3, "lr": "1e-3"},
             "condense": {"niter": 1000, "factor": 2},
             "save_path": {"save_dir": "out", "pretrain_dir": "nets"}}  # fmt: skip
    (here / "own.yaml").write_text(yaml.safe_dump(given))
    arguments = ("--gpu", "0", "-i", "5", "--config_path", "own.yaml")
    assert ncfm.command(arguments, run) == [*arguments, "--config_path", str(run / "config.yaml")]
    said = yaml.safe_load((run / "config.yaml").read_text())
    assert said["data_dir"] == str(here / "mine")
    assert run.joinpath(f"./{said['pretrain_dir']}/cifar10").resolve() == here / "nets/cifar10", "as the host puts it"
    assert (said["seed"], said["save_dir"], said["lr"]) == (0, str(run), "1e-3"), "a seed would be that of all runs"
    assert ncfm.expected_setting(arguments) == ("ncfm", "cifar10", 5)
    assert ncfm.views_per_class(arguments) == 20
    ncfm.comparable(arguments)
    assert ncfm.extra_inputs(arguments)["networks"] == {}
    with pytest.raises(HostError, match="would look for cifar10 in 'mine'"):
        ncfm.preflight(arguments)
    sets = run / "condense" / "distilled_data"
    sets.mkdir(parents=True)
    for name in ("init", "1000"):
        torch.save([IMAGES, LABELS], sets / f"data_{name}.pt")
    ((iteration, made),) = ncfm.saved(run, arguments).items()
    assert iteration == 1000
    assert made.images.shape == (16, 3, 8, 8)
    assert made.space == InputSpace.unit(3)
    (here / "own.yaml").write_text(yaml.safe_dump({**given, "condense": {"niter": 500, "ipc": 7}}))
    assert ncfm.views_per_class(arguments) == 7, "the file goes before the command line"
    with pytest.raises(HostError, match="saves its set every 1000 iterations, and niter is 500"):
        ncfm.comparable(arguments)


def test_wmdd(here: Path, tmp_path: Path) -> None:
    wmdd, run = adapters.upstream("wmdd"), tmp_path / "run"
    given = ("--ipc", "2", "--iteration", "7", "--real-data-path", "mine")
    line = wmdd.command(given, run)
    assert values(line, "--real-data-path")[-1] == str(here / "mine")
    assert "--ckpt-path" not in line
    assert "--store-best-images" in line
    assert values(line, "--syn-data-path") == [str(run / "sets")]
    assert wmdd.expected_setting(given) == ("wmdd", "folder", 2)
    with pytest.raises(InputError, match="--exp-name is set by"):
        wmdd.comparable((*given, "--exp-name", "x"))
    for number in range(4):
        folder = run / "sets" / "imagenette" / "last" / f"new00{number // 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (255, 0, 0)).save(folder / f"class00{number // 2}_id00{number}.png")
    (run / "sets" / "imagenette" / "last" / "sample_weights.txt").write_text("0.5\n")
    ((iteration, made),) = wmdd.saved(run, given).items()
    assert iteration == 7
    assert made.labels.tolist() == [0, 0, 1, 1]
    assert (made.images[:, 0] == 1).all()
    assert made.space == InputSpace.unit(3)
