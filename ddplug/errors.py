"""The one family of errors, and the one kind of warning, that ddplug raises.

Every message says three things: what was given, what was expected, and what to do about it.
"""

import functools
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
