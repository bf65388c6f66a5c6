"""The smallest share of original data over all mixtures, not only along a line.

Within the original and within the new data the proportions are free: less of it may be needed when
it is the right part. Minimizing a sum of shares while a convex loss stays below a limit is a convex
problem; a Lagrange multiplier and the Frank-Wolfe gap bound how much smaller any share could be.

Shape letters: M training domains.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize, minimize_scalar
from threadpoolctl import threadpool_limits

from mixlaw.errors import OptimizeError
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.optimize.objective import ObjectiveFunction
from mixlaw.optimize.solver import minimize_objective

KEPT = 1e-7
"""How far above the limit the loss may lie, in the unit of the loss."""
MULTIPLIERS = (-8.0, 8.0)
"""Range of the multiplier's logarithm to base 10, in shares per unit of loss."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LeastOriginal:
    """The mixture with the smallest share of original data that keeps a loss."""

    mixture: Mixture
    share: float
    """Of original data."""
    loss: float
    gap: float
    """By how much any allowed share could be smaller under this law, if it is convex."""
    is_convex: bool

    @property
    def certificate(self) -> str:
        """What is proven, in a sentence."""
        if not self.is_convex:
            return "not certified: the loss is not convex, less original data may do elsewhere"
        return (
            f"no allowed mixture has a share more than {max(self.gap, 1e-6):.1g} smaller under this"
            " law; that is about the law, not about the world"
        )


def minimize_original(
    function: ObjectiveFunction,
    limit: float,
    *,
    allowed: CappedSimplex,
    original: Sequence[str],
) -> LeastOriginal:
    """Returns the allowed mixture with the least original data whose loss is at most a limit.

    Args:
        function: The old loss under a fitted law, such as `objective.function(fit)`.
        limit: The original loss and what may be lost.
        allowed: Floors and caps.
        original: Domains of the original data.

    Raises:
        OptimizeError: No allowed mixture keeps the loss, or the search failed.
    """
    start = minimize_objective(function, allowed)
    if start.value > limit + KEPT:
        raise OptimizeError(
            f"no allowed mixture keeps the loss: the least is {start.value:.6g}, the limit is"
            f" {limit:.6g}",
            do="allow more tolerance, or more of the original data",
        )
    cost_M = np.array([float(name in original) for name in allowed.names])
    r_M = _search(function, limit, allowed, cost_M, start.r_M)
    return LeastOriginal(
        mixture=Mixture.from_array(allowed.names, r_M),
        share=float(cost_M @ r_M),
        loss=float(function.value(r_M[None])[0]),
        gap=_gap(function, limit, allowed, cost_M, r_M),
        is_convex=function.is_convex,
    )


def _search(
    function: ObjectiveFunction,
    limit: float,
    allowed: CappedSimplex,
    cost_M: Float[np.ndarray, " M"],
    start_M: Float[np.ndarray, " M"],
) -> Float[np.ndarray, " M"]:
    def room(r_M: np.ndarray) -> float:
        return limit - float(function.value(r_M[None])[0])

    with threadpool_limits(limits=1):
        found = minimize(
            lambda r_M: float(cost_M @ r_M),
            start_M,
            jac=lambda _: cost_M,
            bounds=list(zip(allowed.floors, allowed.caps, strict=True)),
            constraints=(
                {"type": "eq", "fun": lambda r_M: np.sum(r_M) - 1, "jac": np.ones_like},
                {"type": "ineq", "fun": room, "jac": lambda r_M: -function.gradient(r_M)},
            ),
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-13},
        )
    r_M = allowed.nearest(np.asarray(found.x, dtype=np.float64))
    # What rounding loses is taken back towards the start, where there is room.
    for part in (0.0, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4):
        moved_M = r_M + part * (start_M - r_M)
        if room(moved_M) >= -KEPT:
            return moved_M
    raise OptimizeError(f"the search for the least original data failed: {found.message}")


def _gap(
    function: ObjectiveFunction,
    limit: float,
    allowed: CappedSimplex,
    cost_M: Float[np.ndarray, " M"],
    r_M: Float[np.ndarray, " M"],
) -> float:
    """Returns by how much the share exceeds the best bound of any multiplier.

    For each multiplier w >= 0 the share plus w times the excess of a convex loss is at least its
    value at r less its Frank-Wolfe gap there, and no mixture that keeps the loss lies below.
    """
    gradient_M = function.gradient(r_M)
    excess = float(function.value(r_M[None])[0]) - limit

    def gap(weight: float) -> float:
        slope_M = cost_M + weight * gradient_M
        return float(slope_M @ (r_M - allowed.linear_minimum(slope_M))) - weight * excess

    best = minimize_scalar(
        lambda power: gap(10.0**power),
        bounds=MULTIPLIERS,
        method="bounded",
        options={"xatol": 1e-10},
    )
    return max(0.0, min(gap(0.0), float(best.fun)))
