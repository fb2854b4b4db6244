"""The layer of one synthetic set, made from a host's own options."""

from __future__ import annotations

from typing import Any

from ddplug.core.flags import HOSTS, keywords
from ddplug.core.regularizer import Regularizer
from ddplug.errors import noted
from ddplug.hosting.host import upstream
from ddplug.hosting.layer import Layer, layer_of, started
from ddplug.hosting.options import options_of
from ddplug.hosting.proxies import resolve
from ddplug.utils.output import say


@noted
def start(host: str, args: Any, **context: Any) -> Layer:
    """The layer of one synthetic set, made from the host's options; at `--cmi_weight 0` one that does nothing.

    Args:
        host: the adapter's name.
        args: the host's options, ours among them.
        context: values for the adapter: normalisation, real data, number of the experiment, `steps` and so on.
    """
    options = options_of(args)
    if options["weight"] == 0:
        return Layer(None)
    adapter = upstream(host)
    pool = resolve(options["proxies"], adapter, args, context)
    regularizer = Regularizer(
        pool, input_space=pool.derived_space(adapter.space(args, context)),
        **keywords(options["weight"], adapter.setting(args), **{name: options[name] for name in HOSTS}),
    )  # fmt: skip
    regularizer.real.sample_from(lambda: adapter.real(args, context))
    say(f"ddplug: {host}, weight {options['weight']}, {pool}")
    return started(layer_of(adapter, regularizer, args, context, options["views"], options["inner"]))
