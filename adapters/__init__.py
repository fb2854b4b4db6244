"""The adapters of the hosts in `patches/hosts.toml`, each made from its row, and the adapters of other packages."""

from functools import partial

from ddplug.attaching.registry import GROUP, Adapter, find, names, register
from ddplug.hosting.checkout import table
from ddplug.hosting.host import from_row, upstream

__all__ = ["GROUP", "Adapter", "find", "names", "register", "upstream"]

for _name in table():
    register(_name)(partial(from_row, _name))
