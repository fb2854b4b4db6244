"""The terms: functions of features and classes, one file each. Know nothing else."""

from ddplug.terms import centralisation, cmi_real, covariance, diversity, mim, ncmi, proxy_ce, spread  # noqa: F401
from ddplug.terms.base import Groups, Term, register, terms
from ddplug.terms.cmi import CMI
from ddplug.terms.combined import Sum, TermSpec, make
from ddplug.terms.real import Real, RealTerm

__all__ = ["CMI", "Groups", "Real", "RealTerm", "Sum", "Term", "TermSpec", "make", "register", "terms"]
