"""Fits of laws to observations, and how sure they are."""

from mixlaw.fit.law import fit_law
from mixlaw.fit.result import FitResult, TargetStatus

__all__ = ["FitResult", "TargetStatus", "fit_law"]
