"""Files and paths: permissions of what is written, and `~` in every path that somebody may give."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from typer.testing import CliRunner

from ddplug import DDPlugWarning, ProxyPool, datasets
from ddplug.cli import app as cli
from ddplug.core.figures import save_figure
from ddplug.datasets.images import ImageData, random_real
from ddplug.datasets.spaces import InputSpace
from ddplug.datasets.synthetic import SyntheticSet, load_set, save_set
from ddplug.datasets.zca import ZCASpace
from ddplug.errors import FileError, InputError
from ddplug.hosting import checkout as hosts
from ddplug.hosting import expert_buffers as buffers
from ddplug.hosting import idc_checkpoints as idcpools
from ddplug.hosting.arguments import absolute
from ddplug.lab.compare import compare
from ddplug.lab.demo import run_demo
from ddplug.lab.evaluate import kept_runs
from ddplug.lab.judge import Judge
from ddplug.lab.own_trainer import Own
from ddplug.lab.plan import Settings, arms
from ddplug.lab.plot import labelled
from ddplug.networks.zoo import build, seeded
from ddplug.proxies.pool import PoolInfo
from ddplug.proxies.pool_files import read_header
from ddplug.proxies.pretrain import default_pool, pretrain
from ddplug.utils.files import exclusive_lock, replacing, user_path, write_json
from ddplug.utils.reading import write_tensors

IMAGES, LABELS = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1])
NOBODY = "~nobody-of-this-name/x"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def small_pool(**info: Any) -> ProxyPool:
    with seeded(0):
        network = build("convnet", num_classes=2, channels=1, size=(8, 8), width=4)
    return ProxyPool.from_modules([network], info=PoolInfo("mine", ("a", "b"), (1, 8, 8), **info))


# --- permissions


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_pool_has_the_permissions_of_any_new_file(umask: int, tmp_path: Path) -> None:
    whitened = ZCASpace.fit(torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    small_pool(space=whitened).save(tmp_path / "pool")
    found = {path.name: mode(path) for path in tmp_path.rglob("*")}
    assert found == {
        "pool": 0o777 & ~umask,
        **dict.fromkeys(("pool.json", "proxy_000.safetensors", "space.safetensors"), 0o666 & ~umask),
    }


def test_a_pool_in_an_empty_folder_leaves_it_its_permissions(umask: int, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool").chmod(0o2750)
    small_pool().save(tmp_path / "pool")
    assert mode(tmp_path / "pool") == 0o2750


def test_what_is_replaced_keeps_its_permissions(umask: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_json({}, path)
    assert mode(path) == 0o666 & ~umask, "a new file"
    for wanted in (0o640, 0o604):
        path.chmod(wanted)
        write_json({}, path)
        assert mode(path) == wanted
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_nothing_written_is_an_error_and_not_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(FileError), replacing(tmp_path / "file"):
        pass
    assert not list(tmp_path.iterdir())


# --- places where nothing can be written


def few_digits() -> ImageData:
    pytest.importorskip("sklearn")
    data = datasets.load("digits")
    return replace(data, train_images=data.train_images[:60], train_labels=data.train_labels[:60])


def pretrained(path: Path) -> object:
    options = {"width": 64}
    return pretrain(few_digits(), path, architecture="convnet", count=1, epochs=2, options=options, progress=False)


def compared(path: Path) -> object:
    with seeded(0):
        network = build("convnet", num_classes=10, channels=1, size=(8, 8), width=4)
    settings = Settings(ipc=20, iterations=2, batch_real=4, width=4, checkpoints=1, runs=1, epochs=1)
    data, pool, cpu = datasets.load("digits"), ProxyPool.from_modules([network]), torch.device("cpu")
    return compare(Own(data, settings, pool, cpu), arms([]), 1, path, Judge(data, settings, pool, None, cpu))


LARGE: dict[str, Callable[[Path], object]] = {
    "a set": lambda path: save_set(SyntheticSet(torch.rand(100, 1, 16, 16), torch.arange(100) % 2), path),
    "a record": lambda path: write_json({"a": ["x" * 1000] * 100}, path),
    "a state": lambda path: write_tensors({"a": torch.rand(30_000)}, path),
    "a pool": lambda path: small_pool(space=ZCASpace.fit(torch.rand(9, 1, 12, 12))).save(path),
    "pretraining": pretrained,
    "a comparison": compared,
}


@pytest.mark.parametrize("write", LARGE.values(), ids=LARGE)
def test_a_full_disk_is_one_clear_error_and_changes_nothing(write: Callable[[Path], object], small_disk: Path) -> None:
    with pytest.raises(FileError) as caught:
        write(small_disk / "made")
    said = rf"^cannot write '{small_disk}/.*made.*' \(No space left on device\); nothing was changed\. Make room"
    assert re.search(said, str(caught.value))
    assert [path.name for path in small_disk.glob("*") if path.is_file()] == []
    assert not [path for path in small_disk.rglob("*") if "safetensors" in path.name]


def test_what_was_there_survives_a_full_disk(small_disk: Path, fill: Callable[[Path, int], None]) -> None:
    path = small_disk / "set.pt"
    save_set(SyntheticSet(IMAGES, LABELS), path)
    before = path.read_bytes()
    fill(small_disk, 0)
    with pytest.raises(FileError, match="No space left"):
        save_set(SyntheticSet(IMAGES + 1, LABELS), path)
    assert path.read_bytes() == before
    assert sorted(each.name for each in small_disk.iterdir()) == ["filler", "set.pt"]


def test_pretraining_goes_on_when_there_is_room_again(
    small_disk: Path, tmp_path: Path, fill: Callable[[Path, int], None]
) -> None:
    """The disk is full for the weights, after the first checkpoint was written."""
    data, settings = few_digits(), {"architecture": "convnet", "count": 1, "epochs": 1, "options": {"width": 8}}
    folder = small_disk / "pool"
    fill(small_disk, 28_000)  # for the header and a checkpoint, whose momentum makes it twice as large as the network
    with pytest.raises(FileError, match=r"cannot write '.*pool/.*No space left"):
        pretrain(data, folder, **settings, progress=False)  # type: ignore[arg-type]
    (small_disk / "filler").unlink()
    pool = pretrain(data, folder, **settings, progress=False)  # type: ignore[arg-type]
    assert sorted(path.name for path in folder.iterdir()) == ["pool.json", "proxy_000.safetensors"]
    whole = pretrain(data, tmp_path / "whole", **settings, progress=False)  # type: ignore[arg-type]
    assert pool.digest() == whole.digest()


@pytest.mark.skipif(os.name == "nt", reason="needs limits of a process")
def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(FileError, match=r"set\.pt' \(File too large\)"):
            save_set(SyntheticSet(IMAGES, LABELS), tmp_path / "set.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file/set.pt", "folder", "x" * 300])
def test_a_place_that_is_none(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    with pytest.raises(FileError, match=rf"^cannot write '.*{name}' \(.*choose another place"):
        save_set(SyntheticSet(IMAGES, LABELS), tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "inner"]


def test_a_set_is_the_same_bytes_in_every_process_and_under_every_name(tmp_path: Path) -> None:
    synthetic = SyntheticSet(IMAGES, LABELS, InputSpace.unit(1), "mine", lr=0.25)
    save_set(synthetic, tmp_path / "a.pt")
    save_set(synthetic, tmp_path / "other name.pt")
    child = os.fork() if hasattr(os, "fork") else 0
    if child == 0:
        save_set(load_set(tmp_path / "a.pt"), tmp_path / "again.pt")
        if hasattr(os, "fork"):
            os._exit(0)
    else:
        os.waitpid(child, 0)
    contents = {path.read_bytes() for path in tmp_path.glob("*.pt")}
    assert len(contents) == 1
    assert len(list(tmp_path.glob("*.pt"))) == 3


# --- ~


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Our home, not where we are; a folder called ~ must never come about."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return few_digits()


def call(*arguments: object) -> str:
    result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(cli.app, [str(word) for word in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def test_a_path_means_what_a_shell_would_make_of_it(home: Path) -> None:
    assert user_path("~/x") == user_path(Path("~/x")) == home / "x"
    assert user_path("~") == home
    assert [str(user_path(given)) for given in ("x/~", "a~", "/a/b")] == ["x/~", "a~", "/a/b"]
    with pytest.raises(InputError, match=rf"'{NOBODY}' begins with the home.*write the path in full"):
        user_path(NOBODY)


def test_sets_and_files_at_home(home: Path) -> None:
    save_set(SyntheticSet(IMAGES, LABELS), "~/sets/set.pt")
    assert torch.equal(load_set("~/sets/set.pt").images, IMAGES)
    write_json({"a": 1}, Path("~/a.json"))
    with kept_runs("~/b.runs", {}):
        pass
    assert sorted(path.name for path in home.iterdir()) == ["a.json", "b.runs", "sets"]
    assert not list(Path().iterdir())


def test_pools_at_home(home: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    small_pool().save("~/pool")
    assert len(ProxyPool.load("~/pool")) == 1
    assert len(ProxyPool.load(Path("~/pool"), budget=0)) == 1
    assert read_header(Path("~/pool")).complete
    for _ in range(2):  # made, and found again
        pretrain(digits, "~/trained", architecture="convnet", count=1, epochs=1, options={"width": 4}, progress=False)
    assert (home / "trained" / "pool.json").is_file()
    monkeypatch.setenv("DDPLUG_CACHE", "~/cache")
    monkeypatch.setattr("ddplug.proxies.pretrain.pretrain", lambda data, folder, **_: folder)
    assert default_pool(digits).is_relative_to(home / "cache")  # type: ignore[attr-defined]
    assert not list(Path().iterdir())


def test_data_at_home(home: Path) -> None:
    for part in ("train", "test"):
        for name in ("a", "b"):
            folder = home / "data" / part / name
            folder.mkdir(parents=True)
            pixels = np.random.default_rng(len(name)).integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "0.png")
    assert len(datasets.load("folder", "~/data", progress=False).train_images) == 2


def test_hosts_at_home(home: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = hosts.load("dm")
    assert hosts.find_repo(spec, Path("~/repo")) == home / "repo"
    (home / spec.folder / spec.script).parent.mkdir(parents=True)
    (home / spec.folder / spec.script).touch()
    monkeypatch.setenv("DDPLUG_HOSTS", "~")
    for words in (["patch", "dm", "~/repo", "--check"], ["run", "dm", "--repo=~/repo"]):
        refused = CliRunner().invoke(cli.app, words)
        assert f"{home}/repo" in str(refused.exception), refused
    assert hosts.find_repo(spec) == home / spec.folder
    assert absolute(["--data", "~/d"], {"data": "."}) == ["--data", str(home / "d")]
    assert buffers.split("~/b") == (home / "b", -1)
    assert buffers.split("~/b#3") == (home / "b", 3)


def test_what_idc_trained_at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    monkeypatch.setattr(idcpools, "read", lambda folders, *_: read.extend(folders))
    adapter: Any = type("Adapter", (), {"setting": lambda *_: ("idc", "cifar10", 1)})()
    idcpools.read_for_host("~/cifar10", adapter, None, {})
    assert read == [home / "cifar10"]


def test_results_at_home(home: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "run=1").mkdir()
    assert labelled(["~/run=1", "a=~/b"]) == {"run=1": home / "run=1", "a": home / "b"}
    monkeypatch.setattr("ddplug.lab.compare.check_folder", lambda out: pytest.fail(str(out)))
    nothing: Any = type("Nothing", (), {"check": lambda *_: None, "pool": None})()
    with pytest.raises(pytest.fail.Exception, match=str(home / "compared")):
        compare(nothing, [], 1, "~/compared", nothing, host="own")
    monkeypatch.setattr("ddplug.lab.demo._pool", lambda data, out, *_: pytest.fail(str(out)))
    with pytest.raises(pytest.fail.Exception, match=str(home / "demo")):
        run_demo(digits, "~/demo")


@pytest.mark.parametrize("option", ["--out=~/p.png", "--out=p.png"])
def test_plot_at_home(home: Path, option: str) -> None:
    pytest.importorskip("matplotlib")
    rounds = [{"number": n, "value": 0.1, "lam": 2.0, "images": 4, "skipped": False} for n in range(3)]
    (home / "cmi.json").write_text(json.dumps({"format": "ddplug-run", "history": rounds}))
    call("plot", "~/cmi.json", option)
    assert (home / "p.png").is_file() == ("~" in option)


@pytest.mark.filterwarnings("ignore:proxy .* is right on")
def test_commands_at_home(home: Path, digits: ImageData) -> None:
    pytest.importorskip("matplotlib")
    call("pretrain", "~/pool", "--count", 1, "--epochs", 1, "--width", 4, "--device", "cpu")
    images, labels = random_real(digits, 2, torch.Generator().manual_seed(0))
    save_set(SyntheticSet(images, labels, digits.space, "digits"), "~/set.pt")
    assert "CMI" in call("measure", "~/set.pt", "--proxies=~/pool", "--device", "cpu")
    quick = ("--runs", 1, "--epochs", 1, "--width", 4, "--device", "cpu")
    call("evaluate", "~/set.pt", "--proxies=~/pool", *quick)
    assert sorted(path.name for path in home.iterdir()) == ["pool", "set.pt"], "the runs' file is gone when all is done"
    call("evaluate", "~/set.pt", "--json=~/result.json", *quick)
    assert sorted(path.name for path in home.glob("result*")) == ["result.json", "result.json.runs"]
    compared = call(
        "compare", "own", "--data", "digits", "--out=~/compared", "--proxies=~/pool", "--seeds", 1, "--ipc", 2,
        "--iterations", 2, "--calibrate", 1, "--batch-real", 4, "--checkpoints", 1, *quick,
    )  # fmt: skip
    assert f"wrote {home / 'compared' / 'compare.json'}" in compared
    assert (home / "compared" / "report.html").is_file()
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    "use",
    [
        load_set, lambda path: save_set(SyntheticSet(IMAGES, LABELS), path), ProxyPool.load, small_pool().save,
        lambda path: datasets.load("folder", path), lambda path: labelled([path]), buffers.split,
        lambda path: save_figure(None, f"{path}.png"),
    ],
)  # fmt: skip
def test_somebody_who_has_no_home(use: Callable[[str], object]) -> None:
    with pytest.raises(InputError, match="begins with the home folder of a user who has none here"):
        use(NOBODY)


# --- locks


def test_a_file_system_without_locks_is_worth_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with (
        pytest.warns(DDPlugWarning, match=r"'.*\.lock' cannot be locked \(No locks available\); see to it yourself"),
        exclusive_lock(tmp_path / ".lock", tmp_path),
    ):
        (tmp_path / "kept").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="no folder is read-only here")
def test_a_read_only_place_cannot_be_locked(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with (
        pytest.raises(InputError, match="nothing can be kept in .*Permission denied.*choose another place"),
        exclusive_lock(tmp_path / ".lock", tmp_path),
    ):
        pytest.fail("nobody can hold this lock")


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    lock = tmp_path / "new" / ".lock"
    with pytest.raises(KeyError), exclusive_lock(lock, tmp_path):
        assert lock.is_file()
        raise KeyError
    with exclusive_lock(lock, tmp_path):
        assert lock.is_file()
    assert not lock.exists()
