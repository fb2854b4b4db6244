"""CMI's gradient at the steps of the images' optimizer, in any script: `ddplug run --script SCRIPT --at optimizer`.

No place has to be named, as whatever torch optimizer steps images of the pool's shape is one. The host's views do not
pass there, so CMI is of augmented views of the regulariser's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ddplug.attaching.hooks import Undo
from ddplug.attaching.labels import chosen_labels
from ddplug.attaching.stepped import Stepped, may_be_images
from ddplug.core.autograd import stepped_by
from ddplug.core.regularizer import Regularizer
from ddplug.errors import HostError
from ddplug.hosting.layer import Layer, layer_of, started
from ddplug.hosting.names import Names
from ddplug.scripts.frames import Variables, calling, scope_of

OPTIMIZER = "optimizer"
"""The place before the steps of the images, for `--at`."""
ADVICE = "Name them: --labels EXPRESSION, class numbers of all images, evaluated where the optimizer is stepped."


def stepped_images(optimizer: Optimizer, shape: tuple[int, ...] | None) -> list[Tensor]:
    """Return the images that `optimizer` steps: all its tensors but scalars and vectors, if they may be images."""
    held = stepped_by(optimizer)
    large = [each for each in held if each.ndim > 1]
    return large if large and all(may_be_images(each, shape) for each in large) else []


class LayerAtSteps(Names):
    """Adds CMI's gradient wherever an optimizer of a script steps images.

    Args:
        name: of the script.
        regularizer: at work; its pool knows the shape of an image.
        labels: expression for the labels; "" if they are to be found among the script's variables.
        record: file of the history.
        is_hosts: returns True for a file of the script's own.
    """

    def __init__(
        self, name: str, regularizer: Regularizer, labels: str, record: Path, is_hosts: Callable[[str], bool]
    ) -> None:
        self.name, self.regularizer, self._given, self._record = name, regularizer, labels, record
        self._is_hosts = is_hosts
        self._variables = Variables("--labels")
        self.layer: Layer | None = None
        self.steps = 0
        self.source = labels

    def setting(self, args: Any) -> tuple[str, str, int]:
        """Images per class are not known."""
        return self.name, self.regularizer.pool.info.dataset or "", 0

    def record(self, args: Any, context: Mapping[str, Any]) -> Path:
        """Return the file of CMI's history."""
        return self._record

    def install(self) -> Undo:
        """Put the regulariser before the steps of all optimizers that step images."""
        return Stepped(self._leaves, self._labels, self.regularizer.pool.info.shape).install(self.regularizer)

    def _leaves(self, optimizer: Optimizer) -> list[Tensor]:
        return stepped_images(optimizer, self.regularizer.pool.info.shape)

    def _labels(self, images: Tensor) -> Tensor:
        """The labels of all images, from the variables of the script's functions under way."""
        if self.layer is None:
            self.layer = started(layer_of(self, self.regularizer, None, {}, "host", "one"))
        self.layer.save_when_due()
        self.steps += 1
        self._variables.scopes = [scope_of(frame) for frame in calling(self._is_hosts)]
        try:
            if self._given:
                return torch.as_tensor(self._variables.get(self._given))
            for group in self._variables.groups():
                name, found = chosen_labels(group, len(images), f"the steps of {self.name}", ADVICE)
                if name is not None and found is not None:
                    self.source = name
                    return found
        finally:
            self._variables.scopes = ()
        raise HostError(
            f"no labels for the {len(images)} images that {self.name} steps: none of its functions under way has as "
            f"many class numbers under a name like labels, targets or y. {ADVICE}"
        )
