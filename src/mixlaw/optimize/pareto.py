"""The trade-off between two objectives: mixtures that are best for one at a given level of other.

Shape letters: R mixtures, M training domains, K the two objectives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from mixlaw.domains import Scale
from mixlaw.errors import OptimizeError
from mixlaw.fit.result import FitResult
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.optimize.constraints import Constraints
from mixlaw.optimize.objective import Objective, ObjectiveFunction
from mixlaw.optimize.optimum import as_region
from mixlaw.optimize.region import Region
from mixlaw.optimize.solver import Minimum, minimize_objective
from mixlaw.predict import predict_weighted

END = 1e-3
"""Weight of the other objective at an end of the front: of all best mixtures, one that is not worse
than need be for the other."""
FINEST = 1e-4
"""Weights closer than this are not told apart."""
LEVEL = 0.9
"""Level of the intervals."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParetoPoint:
    """A mixture that no allowed one beats in both objectives."""

    mixture: Mixture
    weight: float
    """Weight of the second objective, the first's being the rest; each in units of its range."""
    first: tuple[float, float, float]
    """Predicted first objective with the interval of one new run: value, low, high."""
    second: tuple[float, float, float]
    gap: float
    """By how much the weighted objective could be lower, in units of the objectives' ranges."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParetoFront:
    """The front from the best mixture of the first objective to that of the second."""

    first: str
    """What the first objective is."""
    second: str
    points: tuple[ParetoPoint, ...]
    is_certified: bool
    """Whether each point is the minimum of its weighted objective, under the law."""
    unit: str


@dataclass(frozen=True, slots=True, eq=False)
class WeightedFunction(ObjectiveFunction):
    """A weighted sum of two objectives, each less its level and in units of its range."""

    parts: tuple[ObjectiveFunction, ObjectiveFunction]
    weight_K: Float[np.ndarray, " K"]
    level_K: Float[np.ndarray, " K"]

    def value(self, r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        """Returns the weighted sum for each mixture."""
        pairs = zip(self.parts, self.level_K, strict=True)
        values = [part.value(r_RM) - level for part, level in pairs]
        return self.weight_K[0] * values[0] + self.weight_K[1] * values[1]

    def gradient(self, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        """Returns the derivatives by the proportions."""
        slopes = [part.gradient(r_M) for part in self.parts]
        return self.weight_K[0] * slopes[0] + self.weight_K[1] * slopes[1]

    @property
    def is_convex(self) -> bool:
        """Whether both objectives are."""
        return all(part.is_convex for part in self.parts)


def pareto_front(
    fit: FitResult,
    first: Objective,
    second: Objective,
    *,
    constraints: Constraints | Region | CappedSimplex,
    scale: Scale | None = None,
    num_points: int = 15,
) -> ParetoFront:
    """Returns mixtures from the best for one objective to the best for the other.

    Each is the minimum of a weighted sum. New weights go where neighbours lie furthest apart, so
    that the front is covered evenly; where the law is convex, all of the front can be had this way.

    Args:
        fit: A fitted law.
        first: One objective.
        second: The other.
        constraints: What mixtures are allowed.
        scale: The run that is to be decided, for caps from the token supply.
        num_points: How many mixtures.

    Raises:
        OptimizeError: Fewer than two points are wanted, or the constraints conflict.
    """
    if num_points < 2:
        raise OptimizeError(f"a front needs at least two points, found {num_points}")
    region = as_region(constraints, fit, scale=scale)
    parts = (first.function(fit), second.function(fit))
    ends = [minimize_objective(part, region).r_M for part in parts]
    value_KK = np.stack([part.value(np.stack(ends)) for part in parts])
    level_K = np.diagonal(value_KK)
    range_K = np.maximum(np.abs(value_KK[:, ::-1].diagonal() - level_K), 1e-12)
    tried: dict[float, tuple[Minimum, Float[np.ndarray, " K"]]] = {}

    def solve(weight: float, start_M: Float[np.ndarray, " M"]) -> None:
        shares = np.array([1 - weight, weight])
        function = WeightedFunction(parts, shares / range_K, level_K)
        minimum = minimize_objective(function, region, start_M=start_M)
        place_K = np.array([part.value(minimum.r_M[None])[0] for part in parts])
        tried[weight] = minimum, (place_K - level_K) / range_K

    solve(END, ends[0])
    solve(1 - END, ends[1])
    while len(tried) < num_points:
        weights = sorted(tried)
        gaps = [
            float(np.linalg.norm(tried[b][1] - tried[a][1])) if b - a > FINEST else -1.0
            for a, b in pairwise(weights)
        ]
        k = int(np.argmax(gaps))
        if gaps[k] <= 0:
            break
        solve((weights[k] + weights[k + 1]) / 2, tried[weights[k]][0].r_M)
    return _front(fit, (first, second), [(w, tried[w][0]) for w in sorted(tried)])


def _front(
    fit: FitResult,
    objectives: tuple[Objective, Objective],
    found: Sequence[tuple[float, Minimum]],
) -> ParetoFront:
    return ParetoFront(
        first=objectives[0].describe(),
        second=objectives[1].describe(),
        points=tuple(
            ParetoPoint(
                mixture=Mixture.from_array(fit.domains, minimum.r_M),
                weight=weight,
                first=predict_objective(fit, objectives[0], minimum.r_M),
                second=predict_objective(fit, objectives[1], minimum.r_M),
                gap=minimum.gap,
            )
            for weight, minimum in found
        ),
        is_certified=all(minimum.is_certified for _, minimum in found),
        unit=fit.table.unit,
    )


def predict_objective(
    fit: FitResult, objective: Objective, r_M: Float[np.ndarray, " M"]
) -> tuple[float, float, float]:
    """Returns an objective's value with the interval of one new run.

    The interval is that of the weighted sum of losses to which it comes down near the mixture.
    """
    value = float(objective.function(fit).value(r_M[None])[0])
    mixture = Mixture.from_array(fit.domains, r_M)
    weight_T = objective.weights_at(fit, r_M)
    if not np.any(weight_T):
        return value, value, value
    weights = dict(zip(fit.targets, map(float, weight_T), strict=True))
    found = predict_weighted(fit, [mixture], weights, level=LEVEL)
    half = float(found.high_RK[0, 0] - found.low_RK[0, 0]) / 2
    return value, value - half, value + half
