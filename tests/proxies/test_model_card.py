"""The README in a pool's folder says what its header says, and nothing depends on it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ddplug import PoolInfo, ProxyPool
from ddplug.cli.app import app
from ddplug.datasets import load
from ddplug.networks.zoo import build, seeded
from ddplug.proxies.model_card import MARKER
from ddplug.proxies.pretrain import pretrain

pytestmark = pytest.mark.filterwarnings("ignore:proxy .* is right on")


def trained(folder: Path, count: int = 1) -> ProxyPool:
    pytest.importorskip("sklearn")
    return pretrain(load("digits"), folder, count=count, epochs=1, options={"width": 4}, progress=False)


def test_it_says_what_the_pool_was_trained_on_how_and_how_well(tmp_path: Path) -> None:
    pool = trained(tmp_path / "pool", 2)
    text = (tmp_path / "pool" / "README.md").read_text()
    for proxy in pool:
        assert f"| {proxy.name} | convnet | {proxy.record['test_accuracy']:.2%} | 1 | {proxy.record['seed']} |" in text
    recipe = json.loads((tmp_path / "pool" / "pool.json").read_text())["recipe"]
    assert all(f"- {key}: ".replace("_", "\\_") in text for key in recipe)
    for said in ("# 2 proxies of digits", "1 x 8 x 8", "10: 0, 1, 2", "## Licence", str(pool.info.fingerprint)):
        assert said in text, said


def test_its_command_makes_the_pool_again(tmp_path: Path) -> None:
    pool = trained(tmp_path / "pool")
    text = (tmp_path / "pool" / "README.md").read_text()
    command = shlex.split(next(line for line in text.splitlines() if line.startswith("ddplug pretrain")))
    told = [str(tmp_path / "again") if word == "FOLDER" else word for word in command[1:]]
    done = CliRunner().invoke(app, told)
    assert done.exit_code == 0, done.output
    assert ProxyPool.load(tmp_path / "again").digest() == pool.digest()


def test_a_pool_of_ones_own_networks_has_one_too(tmp_path: Path) -> None:
    with seeded(0):
        network = build("convnet", channels=1, size=(8, 8), width=4)
    ProxyPool.from_modules(network, info=PoolInfo("*mine* | <b>"), names=["a|b"]).save(tmp_path / "pool")
    text = (tmp_path / "pool" / "README.md").read_text()
    assert "| a\\|b | convnet | not known | - | - |" in text
    assert "\\*mine\\* \\| \\<b\\>" in text
    assert "not trained by `ddplug pretrain`" in text


@pytest.mark.parametrize("content", ["anything \udcff", None])
def test_reading_does_not_care_for_it(tmp_path: Path, content: str | None) -> None:
    before = trained(tmp_path / "pool").digest()
    path = tmp_path / "pool" / "README.md"
    path.unlink()
    if content is not None:
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert ProxyPool.load(tmp_path / "pool").digest() == before
    assert trained(tmp_path / "pool").digest() == before, "a complete pool is only read"
    assert path.exists() == (content is not None)


def test_a_pool_that_grows_has_a_new_one_unless_somebody_wrote_it(tmp_path: Path) -> None:
    trained(tmp_path / "pool")
    path = tmp_path / "pool" / "README.md"
    trained(tmp_path / "pool", 2)
    assert "# 2 proxies" in path.read_text()
    own = path.read_text().replace(MARKER, "Licence: mine.")
    path.write_text(own)
    trained(tmp_path / "pool", 3)
    assert path.read_text() == own
