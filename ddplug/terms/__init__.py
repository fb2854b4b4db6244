"""The terms: functions of features and classes, one file each. Know nothing else."""

from ddplug.terms import (  # noqa: F401, registers them
    centralisation as _centralisation,
)
from ddplug.terms import cmi_real as _cmi_real  # noqa: F401
from ddplug.terms import covariance as _covariance  # noqa: F401
from ddplug.terms import diversity as _diversity  # noqa: F401
from ddplug.terms import mim as _mim  # noqa: F401
from ddplug.terms import ncmi as _ncmi  # noqa: F401
from ddplug.terms import proxy_ce as _proxy_ce  # noqa: F401
from ddplug.terms import spread as _spread  # noqa: F401
from ddplug.terms.base import Groups, Term, register, terms
from ddplug.terms.cmi import CMI
from ddplug.terms.combined import Sum, TermSpec, make
from ddplug.terms.real import Real, RealTerm

__all__ = ["CMI", "Groups", "Real", "RealTerm", "Sum", "Term", "TermSpec", "make", "register", "terms"]
