"""What the tests against the upstream code share: checkouts, real data, proxies, and the seeded world they run in.

`DDPLUG_HOSTS` names the folder of the checkouts; without it these tests are skipped. `DDPLUG_HOSTS_DATA` names the
folder of the data (`make_data.py` writes it); by default it is the folder `data` among the checkouts.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ddplug import InputSpace, ProxyPool
from ddplug.datasets.images import ImageData
from ddplug.hosting.checkout import HostSpec, load
from ddplug.lab.compare import compare
from ddplug.lab.judge import Judge
from ddplug.lab.measure import measure
from ddplug.lab.plan import Settings, arms
from ddplug.lab.upstream_host import Upstream

DRIVE = Path(__file__).with_name("drive.py")
CIFAR = InputSpace.normalized((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


NO_MD5 = """
import pathlib
import torchvision.datasets.cifar as cifar
cifar.check_integrity = lambda path, md5=None: pathlib.Path(path).is_file()
"""


@pytest.fixture(autouse=True)
def no_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run is reported anywhere."""
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture
def no_md5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes started from now on take CIFAR-10 as it is: the copy at hand has other bytes than the release."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(NO_MD5)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def hosts_folder() -> Path:
    named = os.environ.get("DDPLUG_HOSTS")
    if not named:
        pytest.skip("DDPLUG_HOSTS does not name the folder of the upstream checkouts")
    return Path(named).resolve()


@pytest.fixture(scope="session")
def data_folder(hosts_folder: Path) -> Path:
    folder = Path(os.environ.get("DDPLUG_HOSTS_DATA") or hosts_folder / "data").resolve()
    if not (folder / "cifar-10-batches-py" / "test_batch").is_file():
        pytest.skip(f"no CIFAR-10 in {folder}; write some with tests/upstream/make_data.py")
    return folder


@pytest.fixture(scope="session")
def cifar(data_folder: Path) -> ImageData:
    """The part of CIFAR-10 that the hosts are given."""

    def read(names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        held = [pickle.loads((data_folder / "cifar-10-batches-py" / name).read_bytes()) for name in names]
        images = torch.cat([torch.from_numpy(part["data"]).view(-1, 3, 32, 32).float() / 255 for part in held])
        return CIFAR.from_unit(images), torch.tensor([label for part in held for label in part["labels"]])

    names = pickle.loads((data_folder / "cifar-10-batches-py" / "batches.meta").read_bytes())["label_names"]
    train, test = read([f"data_batch_{n}" for n in range(1, 6)]), read(["test_batch"])
    return ImageData("cifar10", tuple(names), CIFAR, *train, *test)


@pytest.fixture(scope="session")
def pools(cifar: ImageData, data_folder: Path) -> tuple[Path, ProxyPool]:
    """A pool's folder for the regulariser, and held-out proxies that it never sees; both kept beside the data."""
    from ddplug.proxies.pretrain import pretrain

    small: dict[str, Any] = {"architecture": "convnet", "options": {"width": 32}, "progress": False}
    made = [
        pretrain(cifar, data_folder / f"pool-{cifar.fingerprint()}-{seed}", count=2, epochs=6, seed=seed, **small)
        for seed in (0, 100)
    ]  # fmt: skip
    return data_folder / f"pool-{cifar.fingerprint()}-0", made[1]


@pytest.fixture
def one_proxy(pools: tuple[Path, ProxyPool], tmp_path: Path) -> Path:
    """A pool of one, so that whoever draws from it draws the same."""
    pool = ProxyPool.load(pools[0])
    ProxyPool(pool.proxies[:1], pool.info).save(tmp_path / "one")
    return tmp_path / "one"


@pytest.fixture(scope="session")
def experts(data_folder: Path) -> Path:
    """Two small experts of MTT and DATM, in the folder that their option buffer_path names; kept with the data."""
    folder = data_folder / "experts"
    if not (folder / "CIFAR10_NO_ZCA" / "ConvNetW32" / "replay_buffer_0.pt").is_file():
        made = DRIVE.with_name("make_buffer.py")
        subprocess.run([sys.executable, str(made), str(data_folder), str(folder)], check=True, capture_output=True)
    return folder


@dataclass(frozen=True)
class Ran:
    """A program that has ended."""

    status: int
    output: str


@dataclass(frozen=True)
class Bench:
    """One host, its checkout, and how its script is run."""

    spec: HostSpec
    repo: Path
    folder: Path
    """Where the runs are."""

    def world(self, **more: Any) -> str:
        return json.dumps(
            {"seed": 0, "clock": str(self.repo), "cpu": self.spec.redirect_cuda,
             "numpy": list(self.spec.numpy_aliases), "path": [str(self.repo / p) for p in self.spec.path], **more}
        )  # fmt: skip

    def drive(self, *arguments: object, status: int | None = 0, **world: Any) -> Ran:
        """Run `drive.py` in the runs' folder; `status` is what it must end with, None for any failure."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        ran = subprocess.run(
            [sys.executable, str(DRIVE), self.world(**world), *map(str, arguments)], cwd=self.folder, env=environment,
            capture_output=True, text=True, timeout=1500, check=False,
        )  # fmt: skip
        output = ran.stdout + ran.stderr
        assert ran.returncode == status if status is not None else ran.returncode != 0, output[-6000:]
        return Ran(ran.returncode, output)

    def direct(self, *arguments: object, repo: Path | None = None, **world: Any) -> Ran:
        """The upstream script started by itself."""
        return self.drive("direct", (repo or self.repo) / self.spec.script, *arguments, **world)

    def ddplug(self, options: tuple[object, ...], *arguments: object, **world: Any) -> Ran:
        """`ddplug run HOST OPTIONS -- ARGUMENTS`."""
        return self.drive("ddplug", "run", self.spec.name, "--repo", self.repo, *options, "--", *arguments, **world)

    def seen(self, name: str, **more: object) -> dict[str, Any]:
        """What to put into the world of a run for its first steps to be written down, for `read` to find."""
        return {"spy": str(self.folder / f"{name}.pt"), "spy_steps": 1, **more}

    def read(self, name: str) -> dict[str, Any]:
        """What was written down of a run."""
        return torch.load(self.folder / f"{name}.pt")  # type: ignore[no-any-return]

    def records(self) -> list[dict[str, Any]]:
        """What the layer wrote in each run of a host that has a folder for each, in the order of the runs."""
        files = sorted(self.folder.glob("logged_files/**/cmi.json"), key=lambda file: file.stat().st_mtime)
        return [json.loads(file.read_text()) for file in files]

    def copy(self) -> Path:
        """A copy of the checkout that may be written to."""
        target = self.folder / "copy"
        shutil.copytree(self.repo, target, symlinks=True, ignore=shutil.ignore_patterns(".git", "__pycache__"))
        return target


@pytest.fixture
def bench(hosts_folder: Path, tmp_path: Path) -> Iterator[Callable[[str], Bench]]:
    """The bench of a host, by name; afterwards the checkout must be what it was."""
    with benches(hosts_folder, tmp_path) as make:
        yield make


@contextmanager
def benches(hosts_folder: Path, folder: Path) -> Iterator[Callable[[str], Bench]]:
    """The bench of a host, by name, with its runs in `folder`; at the end the checkout must be what it was."""
    used: list[tuple[Path, str]] = []

    def make(name: str) -> Bench:
        spec = load(name)
        repo = hosts_folder / spec.folder
        if not (repo / spec.script).is_file():
            pytest.skip(f"no checkout of {spec.title} in {repo}")
        used.append((repo, tree_hash(repo)))
        return Bench(spec, repo, folder)

    yield make
    for repo, before in used:
        assert tree_hash(repo) == before, f"{repo} was changed"


@pytest.fixture(scope="module")
def benches_of_module(hosts_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Bench]]:
    """As `bench`, for tests that share runs."""
    with benches(hosts_folder, tmp_path_factory.mktemp("runs")) as make:
        yield make


def tree_hash(folder: Path) -> str:
    """One hash of every path and every byte in a folder, git's own excepted."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] == ".git":
            continue
        digest.update(f"{name}\0{path.is_file()}\0".encode())
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], str]:
    return tree_hash


@pytest.fixture(scope="session")
def bench_of() -> Callable[[HostSpec, Path, Path], Bench]:
    """Makes the bench of any description of a host, its checkout and the folder of its runs."""
    return Bench


@pytest.fixture
def held_out_cmi(pools: tuple[Path, ProxyPool]) -> Callable[..., float]:
    """CMI of a set, labels included, under proxies that the regulariser never saw."""

    def cmi(images: torch.Tensor, labels: torch.Tensor, space: InputSpace = CIFAR) -> float:
        return measure(pools[1], images, labels, input_space=space, representation="logit").cmi

    return cmi


@pytest.fixture
def pairs(
    bench: Callable[[str], Any],
    cifar: ImageData,
    pools: tuple[Path, ProxyPool],
    tmp_path: Path,
    no_md5: None,
) -> Any:
    """A comparison of one seed at weight 1, and its host's runs."""

    def run(name: str, *arguments: object) -> dict[str, Any]:
        host, cpu = bench(name), torch.device("cpu")
        given = tuple(map(str, arguments))
        settings = Settings(width=8, runs=1, epochs=2, arguments=given, regularizer={"calibrate": 2})
        judge = Judge(cifar, settings, ProxyPool.load(pools[0]), pools[1], cpu)
        distil = Upstream(host.spec, host.repo, pools[0], settings)
        compare(distil, arms([1.0]), 1, tmp_path / "out", judge, host=name)
        result: dict[str, Any] = json.loads((tmp_path / "out/compare.json").read_text())
        return result

    return run


@pytest.fixture
def compared() -> Callable[[dict[str, Any], list[int]], None]:
    """Looks at a comparison by `pairs`: its sets are there, and CMI is lower with the regulariser."""

    def look(result: dict[str, Any], iterations: list[int]) -> None:
        baseline, arm = result["summary"]
        for entry in result["entries"]:
            assert [point["iteration"] for point in entry["checkpoints"]] == iterations
        assert baseline["lambda"] is None
        assert arm["lambda"] > 0
        assert arm["cmi_heldout"] < baseline["cmi_heldout"]

    return look
