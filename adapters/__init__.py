"""Adapters: for each known host, how to recognise it and where its synthetic views pass. One file per host.

They are announced as entry points, as anybody's are: see `ddplug.attaching.registry`.
"""

from ddplug.attaching.registry import GROUP, Adapter, find, names, register
from ddplug.hosting.host import upstream

__all__ = ["GROUP", "Adapter", "find", "names", "register", "upstream"]
