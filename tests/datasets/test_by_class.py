"""Images by class, held to loops that say the same."""

from __future__ import annotations

import torch

from ddplug.datasets.by_class import ByClass

LABELS = torch.tensor([3, 0, 3, 1, 0, 3, 3])


def test_the_first_images_of_every_class() -> None:
    for count in (1, 2, 5):
        expected = [row for label in (0, 1, 3) for row in (label == LABELS).nonzero().flatten().tolist()[:count]]
        assert ByClass(LABELS).first(count).tolist() == expected
    assert ByClass(LABELS, 6).counts.tolist() == [2, 1, 0, 4, 0, 0]


def test_drawn_images_are_of_the_classes_asked_for_and_each_comes_up() -> None:
    drawn = ByClass(LABELS).draw(torch.tensor([3, 0]), 60, torch.Generator().manual_seed(0)).view(2, 60)
    assert set(drawn[0].tolist()) == {0, 2, 5, 6}
    assert set(drawn[1].tolist()) == {1, 4}
