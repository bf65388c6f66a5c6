"""The best mixture under a fitted law and constraints, and whether it is really better."""

from mixlaw.optimize.baselines import baseline_mixtures
from mixlaw.optimize.objective import WeightedLoss
from mixlaw.optimize.optimum import Gain, Optimum, optimize_mixture

__all__ = ["Gain", "Optimum", "WeightedLoss", "baseline_mixtures", "optimize_mixture"]
