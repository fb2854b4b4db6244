"""Hashes that are written into pools, checkpoints and results: known values, which no change of the code may move."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ddplug import ProxyPool, datasets
from ddplug.datasets.zca import ZCASpace
from ddplug.hosting.expert_buffers import experts_in
from ddplug.lab.upstream_host import code_digest
from ddplug.networks.training import identity_of
from ddplug.utils.digest import blob_hash, file_sha256, named_bytes, short_sha256, tensor_bytes, typed_bytes

VALUES = torch.arange(24.0).reshape(2, 3, 4)
TENSORS = [VALUES, torch.arange(3), VALUES.mT]


def test_a_training() -> None:
    assert (
        identity_of((1, "a", None, 0.5), TENSORS) == "f3fd797aa54a039dd1ba7f5c00c3064660d4070bc7fef307391755ef51e71c5e"
    )


def test_the_numbers_of_a_set() -> None:
    assert short_sha256(typed_bytes(TENSORS)) == "e85f45fe7fd9084b"


def test_weights_by_name() -> None:
    named = [("a.weight", VALUES), ("n", torch.tensor(3)), ("h", VALUES.half().mT)]
    assert short_sha256(named_bytes(named)) == "0ee19231d13c4128"


def test_a_proxy_and_a_pool() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    network.load_state_dict({"1.weight": torch.arange(8.0).reshape(2, 4), "1.bias": torch.full((2,), 0.5)})
    pool = ProxyPool.from_modules([network, network])
    assert pool.proxies[0].digest() == "e0d91efacf79424f"
    assert pool.digest() == "930b8801b22d6b9e"


def test_a_data_set() -> None:
    pytest.importorskip("sklearn")
    assert datasets.load("digits").fingerprint() == "1ad5c8fc92699b78"


def test_a_whitening() -> None:
    eye = torch.eye(4)
    space = ZCASpace((1, 2, 2), torch.zeros(1, 4), 2 * eye, eye / 2)
    assert space.digest == "2abbd75ed16b6aea2e6a8390826410e0f9163780571015501a7d11674e51f0a6"


def test_a_file_as_we_and_as_git_name_it(tmp_path: Path) -> None:
    file = tmp_path / "b.py"
    file.write_bytes(b"x = 1\n")
    assert file_sha256(file) == "9e26bf369911c45c243c684147b23fc9e1dcfcf257d299a1c632016a6fcd33f4"
    assert blob_hash(b"x = 1\n") == "7d4290a117a4ddcc11daae7ea675841033830c8f"
    with pytest.raises(OSError, match="No such file"):
        file_sha256(tmp_path / "c.py")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, content in {
        "b.py": b"x = 1\n", "a/c.py": b"", ".h/z.py": b"1", "t.txt": b"1", "replay_buffer_0.pt": b"ab" * 50000,
        "a/replay_buffer_1.pt": b"c",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_the_code_of_a_checkout(checkout: Path) -> None:
    assert code_digest(checkout) == "c51c81e1796daae5"
    (checkout / ".h/z.py").write_bytes(b"2")
    assert code_digest(checkout) == "c51c81e1796daae5", "hidden folders are ignored"
    (checkout / "a/c.py").write_bytes(b"2")
    assert code_digest(checkout) != "c51c81e1796daae5"


def test_expert_buffers(checkout: Path) -> None:
    assert experts_in(checkout) == "1c120906319d4fa1"


@pytest.mark.parametrize(
    "tensor", [torch.tensor(True), torch.empty(0, 3), torch.ones(2, 2, dtype=torch.bfloat16), VALUES.mT], ids=str
)
def test_tensors_of_every_kind_have_bytes(tensor: Tensor) -> None:
    held = tensor_bytes(tensor)
    assert len(held) == tensor.numel() * tensor.element_size()
    again = torch.frombuffer(bytearray(held), dtype=tensor.dtype) if len(held) else torch.empty(0)
    assert torch.equal(again.reshape(tensor.shape).to(tensor.dtype), tensor)
