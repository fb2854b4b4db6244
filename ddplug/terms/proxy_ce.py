"""Cross-entropy of the proxy: how sure a trained network is of the class that an image was made for."""

from __future__ import annotations

from torch import Tensor

from ddplug.errors import InputError
from ddplug.terms.base import Groups, register
from ddplug.terms.cmi import Softened, log_probabilities


@register("proxy_ce")
class ProxyCrossEntropy(Softened):
    """Mean over images of -log softmax(z / T)[class], in nats, of the proxy's logits z.

    Args:
        temperature: T > 0.
    """

    label = "proxy CE"
    unit = "nats"
    additive_over_classes = True
    representation = "logit"

    def __call__(self, features: Tensor, groups: Groups) -> Tensor:
        """The mean cross-entropy, a scalar; `features` are logits."""
        log_p = log_probabilities(features, self.temperature)
        if groups.classes.device.type == "cpu" and int(groups.classes[-1]) >= log_p.shape[1]:
            raise InputError(
                f"proxy_ce needs a logit for class {int(groups.classes[-1])}, and there are {log_p.shape[1]}; use "
                "proxies of the same classes, and logits."
            )
        return -log_p.gather(1, groups.classes[groups.index][:, None]).mean()
