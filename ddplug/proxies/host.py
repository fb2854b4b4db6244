"""What the core of the hosting code asks of a host's adapter, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ddplug.datasets.images import ImageData
from ddplug.datasets.spaces import AnySpace
from ddplug.proxies.pool import ProxyPool


class Host(Protocol):
    """What a host's own names mean; `args` are its options, `context` the keywords that the patch passes to `start`."""

    name: str
    class_by_class: bool

    def setting(self, args: Any) -> tuple[str, str, int]:
        """(host, data set, images per class)."""

    def record(self, args: Any, context: Mapping[str, Any]) -> Path:
        """The JSON file for CMI's history."""

    def space(self, args: Any, context: Mapping[str, Any]) -> AnySpace | None:
        """The input space of the views."""

    def experts(self, args: Any, context: Mapping[str, Any]) -> ProxyPool | None:
        """The host's own pretrained networks, if it has any at hand."""

    def real(self, args: Any, context: Mapping[str, Any]) -> ImageData | None:
        """The host's real data, to train proxies on."""
