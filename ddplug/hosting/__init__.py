"""Functions called by the lines that a patch inserts: `import ddplug.hosting as ddplug_cmi`."""

from ddplug.hosting.from_options import start
from ddplug.hosting.layer import NAME, Attached, Layer, require_rounds, save_all
from ddplug.hosting.options import INNER, OPTIONS, Inner, Option, Views, add_config, add_options, weight

__all__ = [
    "INNER",
    "NAME",
    "OPTIONS",
    "Attached",
    "Inner",
    "Layer",
    "Option",
    "Views",
    "add_config",
    "add_options",
    "require_rounds",
    "save_all",
    "start",
    "weight",
]
