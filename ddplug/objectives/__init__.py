"""The terms: functions of features and classes, one file each. Know nothing else."""

from ddplug.objectives import (  # noqa: F401, registers them
    centralisation as _centralisation,
)
from ddplug.objectives import cmi as _cmi  # noqa: F401
from ddplug.objectives import covariance as _covariance  # noqa: F401
from ddplug.objectives import diversity as _diversity  # noqa: F401
from ddplug.objectives import mim as _mim  # noqa: F401
from ddplug.objectives import ncmi as _ncmi  # noqa: F401
from ddplug.objectives import proxy_ce as _proxy_ce  # noqa: F401
from ddplug.objectives import spread as _spread  # noqa: F401
from ddplug.objectives.base import Groups, Objective, register, terms
from ddplug.objectives.combined import Sum, TermSpec, make
from ddplug.objectives.real import Real, RealObjective

__all__ = ["Groups", "Objective", "Real", "RealObjective", "Sum", "TermSpec", "make", "register", "terms"]
