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
    """Images, features or labels that no estimate can be made from."""


class WeightError(DDPlugError, ValueError):
    """An invalid weight, schedule or weighting."""


class ProxyError(DDPlugError):
    """A network that cannot serve as a proxy, or cannot take the images it was given."""


class PoolError(DDPlugError):
    """A folder of proxies that is missing, half-written, or made for other data."""


class SpaceError(DDPlugError):
    """Two input spaces (normalisations) between which there is no exact conversion."""


class DataError(DDPlugError):
    """A missing data set, one of an unknown layout, or one inconsistent with its description."""


class FileError(DDPlugError, OSError):
    """A file that cannot be written; what was there before is unchanged."""


class AttachError(DDPlugError):
    """A host without a place for the regulariser, or with one already attached."""


class HostError(DDPlugError):
    """An upstream codebase that is not there, is another one than expected, or did not do what it should."""


class PatchError(DDPlugError):
    """A patch that is not one of ours, or a file that it does not fit; nothing was changed."""


class SecondDerivativeError(DDPlugError, RuntimeError):
    """The identity layer was differentiated twice; only the loss form, `ddplug.CMI`, can be."""


class ProcessError(DDPlugError, RuntimeError):
    """Processes of one distributed run that differ, or that others wait for in vain."""


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
