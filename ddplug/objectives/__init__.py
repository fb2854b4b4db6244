"""The terms: functions of features and classes. Know nothing else."""

from ddplug.objectives import cmi as _cmi  # noqa: F401, registers it
from ddplug.objectives.base import Groups, Objective, make, register, terms

__all__ = ["Groups", "Objective", "make", "register", "terms"]
