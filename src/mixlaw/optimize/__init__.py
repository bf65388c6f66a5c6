"""The best mixture under a fitted law and constraints, and whether it is really better."""

from mixlaw.optimize.baselines import baseline_mixtures
from mixlaw.optimize.constraints import Constraints, GroupBound
from mixlaw.optimize.objective import Objective, RelativeLoss, WeightedLoss
from mixlaw.optimize.objectives_error import TaskError, WeightedErrors
from mixlaw.optimize.objectives_risk import MeanPlusSpread, TailLoss, WorstLoss
from mixlaw.optimize.optimum import Gain, Optimum, optimize_mixture
from mixlaw.optimize.region import ConstraintName, Region
from mixlaw.optimize.solver import Minimum, minimize_objective

__all__ = [
    "ConstraintName",
    "Constraints",
    "Gain",
    "GroupBound",
    "MeanPlusSpread",
    "Minimum",
    "Objective",
    "Optimum",
    "Region",
    "RelativeLoss",
    "TailLoss",
    "TaskError",
    "WeightedErrors",
    "WeightedLoss",
    "WorstLoss",
    "baseline_mixtures",
    "minimize_objective",
    "optimize_mixture",
]
