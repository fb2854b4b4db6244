"""The adapters of the hosts added later: what their options mean, how they are run, and which of their files count."""

from __future__ import annotations

import json
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddplug.attaching import registry
from ddplug.datasets.synthetic import load_set
from ddplug.errors import DataError, HostError
from ddplug.hosting import host as adapters
from ddplug.hosting.host import Host
from ddplug.hosting.script import CudaOnCpu

IMAGES, LABELS = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])


def comparable(name: str) -> Any:
    made = adapters.comparable(name)
    assert isinstance(made, Host)
    return made


@pytest.mark.parametrize("name", ["idm", "datadam", "iid"])
def test_forks_of_dm_are_not_taken_for_it(name: str) -> None:
    """They keep its option, or set its name; the paper's weights of DM are not theirs."""
    args = SimpleNamespace(method="DM", dataset="CIFAR10", model="ConvNet", ipc=10, save_path="result")
    assert adapters.upstream(name).setting(args) == (name, "cifar10", 10)
    assert comparable(name).expected_setting(["--ipc", "10"]) == (name, "cifar10", 10)


def test_sets_of_dms_forks(tmp_path: Path) -> None:
    torch.save({"data": [[IMAGES, LABELS]], "accs_all_exps": {}}, tmp_path / "res_X_CIFAR10_ConvNet_1ipc.pt")
    for name, given, iterations, count, meaning in (
        ("idm", [], 8, 2, "normalized"), ("idm", ["--aug", "--zca"], 8, 8, "zca"),
        ("datadam", ["--zca", "True"], 7, 2, "zca"), ("iid", [], 8, 2, "normalized"),
    ):  # fmt: skip
        ((found, made),) = comparable(name).saved(tmp_path, ["--Iteration", "7", *given]).items()
        assert (found, len(made.images), made.meaning) == (iterations, count, meaning)
    assert comparable("idm").views_per_class(["--ipc", "3", "--aug"]) == 12
    assert comparable("idm").saved(tmp_path / "none", []) == {}


def test_dms_forks_are_run_so_that_a_set_is_left(tmp_path: Path) -> None:
    assert comparable("idm").command([], tmp_path)[-2] == "--eval_interval"
    assert {"--eval_mode", "last"} <= set(comparable("datadam").command([], tmp_path))


def test_networks_trained_beforehand_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, folder in (("iid", "pre_dict_res18_40"), ("dsdm", "pre_trained_model")):
        Path(folder).mkdir()
        comparable(name).command(["--ipc", "1"], tmp_path / name)
        assert (tmp_path / name / folder).resolve() == tmp_path / folder


def test_numbered_sets_of_idcs_forks(tmp_path: Path) -> None:
    """The last of DREAM's, the only one of DSDM's, whatever is beside; the factor is read from the host's options."""
    options = {"factor": 2, "niter": 30}  # DSDM has no inner loop
    for folder, names in (("results/test", ("data40.pt", "data280.pt")), ("results/cifar10/tag", ("data_best.pt",))):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "args.txt").write_text(json.dumps(options))
        for name in names:
            torch.save([IMAGES, LABELS], tmp_path / folder / name)
    for name, iterations in (("dream", 280), ("dsdm", 30)):
        ((found, made),) = comparable(name).saved(tmp_path, []).items()
        assert (found, len(made.images)) == (iterations, 8)


def test_formed_sets_are_known_by_the_options_beside_them(tmp_path: Path) -> None:
    for name in ("data_500.pt", "data_best.pt", "data40.pt", "database.pt"):
        torch.save([IMAGES, LABELS], tmp_path / name)
        assert len(load_set(tmp_path / name).images) == 2, "a pair like any other"
    (tmp_path / "args.log").write_text(json.dumps({"factor": 2}))
    for name in ("data_500.pt", "data_best.pt", "data40.pt"):
        assert len(load_set(tmp_path / name).images) == 8
    assert len(load_set(tmp_path / "database.pt").images) == 2
    torch.save([IMAGES, LABELS], tmp_path / "data.pt")
    (tmp_path / "args.log").unlink()
    with pytest.raises(DataError, match=r"args\.txt is not beside it"):
        load_set(tmp_path / "data.pt")


def test_the_average_of_ftd_is_what_counts(tmp_path: Path) -> None:
    for before, shift in (("", 0.0), ("ema_", 1.0)):
        folder = tmp_path / f"{before}logged_files/CIFAR10/run"
        folder.mkdir(parents=True)
        for number in (0, 1000):
            torch.save(IMAGES + shift, folder / f"{before}images_{number}.pt")
            torch.save(LABELS, folder / f"{before}labels_{number}.pt")
    ((found, made),) = comparable("ftd").saved(tmp_path, []).items()
    assert found == 1000
    assert torch.equal(made.images, IMAGES + 1)
    assert torch.equal(comparable("mtt").saved(tmp_path, [])[1000].images, IMAGES), "of MTT, the images themselves"


def test_what_idcs_forks_need_is_said_beforehand(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    given = ["--data_dir", str(tmp_path), "--ipc", "10"]
    adapters.upstream("dream").preflight([*given, "--niter", "200", "--match", "grad"])
    with pytest.raises(HostError, match="below 200, dream divides by zero"):
        adapters.upstream("dream").preflight([*given, "--niter", "199", "--match", "grad"])
    with pytest.raises(HostError, match="no loss for --match bi_match"):
        adapters.upstream("dream").preflight([*given, "--niter", "200"])
    adapters.upstream("dsdm").preflight([*given, "--niter", "3"])
    with pytest.raises(HostError, match="only with --reproduce"):
        adapters.upstream("dance").preflight(given)
    adapters.upstream("dance").preflight([*given, "--reproduce"])
    with pytest.raises(HostError, match="cannot find the sets of dance"):
        adapters.comparable("dance")


def test_files_are_read_to_the_cpu_where_hosts_say_cuda(tmp_path: Path) -> None:
    torch.save(IMAGES, tmp_path / "images.pt")
    load = torch.load
    with CudaOnCpu():
        for read in (
            torch.load(tmp_path / "images.pt", map_location="cuda"),
            torch.load(tmp_path / "images.pt", "cuda:0"),
        ):
            assert torch.equal(read, IMAGES)
    assert torch.load is load


def test_of_scripts_of_one_name_each_is_its_own_hosts(tmp_path: Path) -> None:
    """IDC's and DREAM's are both called condense.py; what was changed is known by the name of its clone."""
    for name, folder in (("idc", "Efficient-Dataset-Condensation"), ("dream", "DREAM")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "condense.py").write_text("# changed")
        module = types.ModuleType("condense")
        module.__file__ = str(tmp_path / folder / "condense.py")
        assert [found for found in ("idc", "dream") if adapters.upstream(found).recognises(module)] == [name]


def test_a_script_is_no_hosts_by_its_name_alone(tmp_path: Path) -> None:
    """TESLA's and CAFE's are called distill.py, as MTT's is."""
    module = types.ModuleType("distill")
    module.__file__ = str(tmp_path / "distill.py")
    Path(module.__file__).write_text("def DiffAugment(images): return images")
    assert registry.find(module) is None
