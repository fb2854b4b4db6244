"""The one family of errors, and the one kind of warning, that ddplug raises.

Every message says three things: what was given, what was expected, and what to do about it.
"""

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DDPlugError(Exception):
    """Base class of all errors of ddplug."""


class InputError(DDPlugError, ValueError):
    """An invalid option, image, feature or label, or an input space without an exact conversion."""


class ProxyError(DDPlugError):
    """A network that cannot serve as a proxy, or a pool that is missing, incomplete or made for other data."""


class DataError(DDPlugError):
    """A missing data set, one of an unknown layout, or one inconsistent with its description."""


class FileError(DDPlugError, OSError):
    """A file that cannot be written; what was there before is unchanged."""


class HostError(DDPlugError):
    """A trainer, codebase, checkout or run of several processes that is not as expected; it is left as it was."""


class DDPlugWarning(UserWarning):
    """Valid input that is probably a mistake."""


_ALL_IGNORED = (("ignore", None, Warning), ("ignore", None, UserWarning))
"""Beginnings of the filters by which hosts silence their libraries."""


def caution(text: str, stacklevel: int = 2) -> None:
    """Issue a `DDPlugWarning`, also to a host that ignores all warnings; a filter for `DDPlugWarning` itself counts.

    Args:
        text: the message.
        stacklevel: as of `warnings.warn`, called in the place of this function.
    """
    with warnings.catch_warnings():
        kept = [each for each in warnings.filters if each[:3] not in _ALL_IGNORED]
        warnings.filters = kept
        warnings.warn(text, DDPlugWarning, stacklevel=stacklevel + 1)


RAISED: list[str] = []
"""Messages of errors that were raised into a host's code, which may have caught them and gone on."""


def noted(function: Callable[P, T]) -> Callable[P, T]:
    """Note in `RAISED` the errors of ours that `function`, called by a host, raises."""

    @functools.wraps(function)
    def noting(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except DDPlugError as error:
            if str(error) not in RAISED:
                RAISED.append(str(error))
            raise

    return noting


def caught() -> str:
    """Return a sentence on the first of the errors in `RAISED`, to end a message with; empty if there is none."""
    return f" The host caught an error: {RAISED[0]}" if RAISED else ""
