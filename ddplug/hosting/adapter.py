"""Adapters of hosts with a patch: three small interfaces, composed, and found by a host's name.

- `HostNames`: what the host's own names mean. Every host needs it.
- `PatchedHost`: how the layer is put in. Said by `name` and the patch; seldom overridden.
- `ComparableHost`: what `ddplug compare` asks. Only for hosts that are to be compared.

`dm_like`, `mtt_like` and `idc_like` implement them for the loops and command lines that many published hosts share.
"""

from __future__ import annotations

from ddplug.attaching import registry
from ddplug.errors import HostError
from ddplug.hosting.comparable_host import ComparableHost
from ddplug.hosting.host_names import HostNames
from ddplug.hosting.patched_host import PatchedHost


class HostAdapter(HostNames, PatchedHost):
    """Base of the adapters of hosts with a patch. With `ComparableHost` as a second base it can be compared, too."""


def upstream(name: str) -> HostAdapter:
    """The adapter of the patched host `name`; `HostError` if there is none of that name."""
    made = registry.make(name)
    if not isinstance(made, HostAdapter):
        raise HostError(f"there is no host '{name}' with a patch; ddplug knows {', '.join(registry.names())}.")
    return made


def comparable(name: str) -> ComparableHost:
    """The same for a comparison; `HostError` if the host's adapter says nothing about comparisons."""
    made = upstream(name)
    if not isinstance(made, ComparableHost):
        raise HostError(
            f"`ddplug compare` does not know how to find the sets of {name}: its adapter is no ComparableHost. Run it "
            "with `ddplug run`, once per weight, and judge its sets; or add that interface, see docs/hosts/own.md."
        )
    return made
