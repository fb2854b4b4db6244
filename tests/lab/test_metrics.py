"""The metrics are `ddplug.cmi` and `ncmi`, however features are cut, over processes, and after a reset."""

from __future__ import annotations

import copy
import typing
from pathlib import Path
from typing import Any

import pytest
import torch

import ddplug
from ddplug.errors import InputError
from ddplug.terms.separation import Separation, ncmi

pytest.importorskip("torchmetrics")
from torchmetrics import MetricCollection

from ddplug.lab.metrics import CMIMetric, NCMIMetric

pytestmark = pytest.mark.numerical


def batches(seed: int = 0, spread: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (40, 6), the first three images far out, and labels of classes 0, 1 and 3, unequally large."""
    generator = torch.Generator().manual_seed(seed)
    features = spread * torch.randn(40, 6, generator=generator, dtype=torch.float64)
    features[:3] *= 50
    labels = torch.tensor([0, 1, 3, 3])[torch.randint(4, (40,), generator=generator)]
    return features, labels


def fed(metric: Any, features: torch.Tensor, labels: torch.Tensor, *cuts: int) -> Any:
    for part in torch.tensor_split(torch.arange(len(labels)), cuts):
        metric.update(features[part], labels[part])
    return metric


def test_cmi_however_the_features_are_cut() -> None:
    """Sums of 40 terms of up to some hundred nats in float64: within 1e-12."""
    features, labels = batches()
    expected = ddplug.cmi(features, labels)
    for cuts in ((), (13,), (0, 5, 17, 39)):
        torch.testing.assert_close(
            fed(CMIMetric(4, 6), features, labels, *cuts).compute(), expected, rtol=1e-12, atol=1e-12
        )


def test_tight_classes_and_temperature() -> None:
    """The images' entropies and the centroids' nearly cancel; what is left of 1e-8 nats is within 1e-14 of right."""
    features, labels = batches(spread=1e-4)
    features[:3] /= 50
    expected = ddplug.cmi(features, labels, temperature=0.5)
    got = fed(CMIMetric(4, 6, temperature=0.5), features, labels, 20).compute()
    assert 0 < expected < 1e-6
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("separation", typing.get_args(Separation))
def test_ncmi_of_every_separation(separation: Separation) -> None:
    features, labels = batches(1)
    expected = ncmi(features, labels, separation=separation)
    got = fed(NCMIMetric(4, 6, separation=separation), features, labels, 11, 30).compute()
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=0)


def test_reset_forgets_and_logits_need_no_number() -> None:
    features, labels = batches(2)
    metric = fed(CMIMetric(6), features, labels)
    metric.reset()
    with pytest.raises(InputError, match="of no images"):
        metric.compute()
    fed(metric, features[:10], labels[:10])
    torch.testing.assert_close(metric.compute(), ddplug.cmi(features[:10], labels[:10]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("flat", [True, False])
def test_in_a_collection(flat: bool) -> None:
    """Metrics in a MetricCollection are what each is alone, also where their sums agree after the first batch.

    Kind: metrics whose states a collection shares. Looked at: temperatures (shared after a first batch of equal
    features, and wrong from then on), separations (rightly shared: the same sums), classes and features (shapes
    differ), a batch without images, a second epoch after `reset`.
    """
    features, labels = batches()
    if flat:
        features[:5] = 0.0
    metrics = {
        "one": CMIMetric(4, 6), "four": CMIMetric(4, 6, temperature=4.0), "kl": NCMIMetric(4, 6, separation="kl"),
        "centroids": NCMIMetric(4, 6, separation="centroid_kl", temperature=4.0), "more": CMIMetric(5, 6),
    }  # fmt: skip
    together = MetricCollection({name: copy.deepcopy(metric) for name, metric in metrics.items()})
    for _ in range(2):
        together.reset()
        fed(together, features, labels, 0, 5, 20)
        found = together.compute()
        for name, metric in metrics.items():
            metric.reset()
            torch.testing.assert_close(found[name], fed(metric, features, labels, 0, 5, 20).compute())
    assert len(together.compute_groups) < len(metrics)


def test_what_cannot_be_is_refused() -> None:
    features, labels = batches()
    metric = CMIMetric(3, 6)
    with pytest.raises(InputError, match="num_classes says"):
        metric.update(features, labels)
    with pytest.raises(InputError, match="num_features says"):
        metric.update(features[:, :5], labels)
    with pytest.raises(InputError, match="labels must be integers"):
        metric.update(features, labels.double())
    with pytest.raises(InputError, match="at least two classes"):
        fed(NCMIMetric(4, 6), features[labels == 3], labels[labels == 3]).compute()
    with pytest.raises(InputError, match="unknown separation"):
        NCMIMetric(4, 6, separation="far")  # type: ignore[arg-type]


def _process(rank: int, rendezvous: str, results: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    features, labels = batches(3)
    own = torch.arange(40) % 3 == 0 if rank == 0 else torch.arange(40) % 3 != 0
    metric = fed(NCMIMetric(4, 6), features[own], labels[own])
    torch.save(metric.compute(), f"{results}/{rank}")
    torch.distributed.destroy_process_group()


def test_over_processes(tmp_path: Path) -> None:
    """Each gets the metric of all images."""
    given = (str(tmp_path / "rendezvous"), str(tmp_path))
    torch.multiprocessing.start_processes(_process, given, nprocs=2, start_method="fork")
    features, labels = batches(3)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / str(rank)), ncmi(features, labels), rtol=1e-11, atol=0)
