"""The minimum of a smooth objective on the capped simplex, with a certificate where it is convex.

Shape letters: M training domains.

The search is SciPy's SLSQP, over a few domains at a time where there are many: an optimum leaves
most of them at their bounds. The certificate is the Frank-Wolfe gap: for a convex f, no allowed
mixture lies lower than f(r) - max_s grad f(r) . (r - s), and that maximum over the capped simplex
is a linear problem whose answer is known (Jaggi 2013, Eq. 2).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from mixlaw.errors import OptimizeError
from mixlaw.mixtures import CappedSimplex
from mixlaw.optimize.objective import ObjectiveFunction

WORKING_SET = 40
"""Domains that move at a time; SLSQP's work grows with the cube of their number."""
ENOUGH = 1e-8
"""The search over many domains ends at a gap below this share of the objective."""
MAX_ROUNDS = 50
"""Working sets that are tried; about M / WORKING_SET + 2 are usual."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Minimum:
    """The lowest point that was found."""

    r_M: Float[np.ndarray, " M"]
    value: float
    gap: float
    """How much lower any allowed mixture can be, if the objective is convex."""


def minimize_objective(
    objective: ObjectiveFunction,
    allowed: CappedSimplex,
    *,
    start_M: Float[np.ndarray, " M"] | None = None,
) -> Minimum:
    """Returns the minimum over the allowed mixtures.

    Raises:
        OptimizeError: The search failed.
    """
    num_domains = len(allowed.names)
    if start_M is None:
        start_M = np.full(num_domains, 1.0 / num_domains)
    with threadpool_limits(limits=1):
        r_M = allowed.nearest(start_M)
        if num_domains <= WORKING_SET:
            r_M = _search(objective, allowed, r_M, np.arange(num_domains))
        else:
            r_M = _search_by_parts(objective, allowed, r_M)
    gradient_M = objective.gradient(r_M)
    gap = float(gradient_M @ (r_M - allowed.linear_minimum(gradient_M)))
    return Minimum(r_M=r_M, value=float(objective.value(r_M[None])[0]), gap=max(gap, 0.0))


def _search_by_parts(
    objective: ObjectiveFunction, allowed: CappedSimplex, r_M: Float[np.ndarray, " M"]
) -> Float[np.ndarray, " M"]:
    """Returns the minimum, found by moving the domains that promise most, in turn."""
    for _ in range(MAX_ROUNDS):
        gradient_M = objective.gradient(r_M)
        gap = gradient_M @ (r_M - allowed.linear_minimum(gradient_M))
        if gap <= ENOUGH * abs(float(objective.value(r_M[None])[0])):
            break
        # Those that gain most by growing, and those that gain most by shrinking.
        grow_M = np.where(r_M < allowed.cap_M - 1e-12, gradient_M, np.inf)
        shrink_M = np.where(r_M > allowed.floor_M + 1e-12, -gradient_M, np.inf)
        half = WORKING_SET // 2
        moving = np.union1d(np.argsort(grow_M)[:half], np.argsort(shrink_M)[:half])
        r_M = _search(objective, allowed, r_M, moving)
    return r_M


def _search(
    objective: ObjectiveFunction,
    allowed: CappedSimplex,
    r_M: Float[np.ndarray, " M"],
    moving: Int[np.ndarray, " W"],
) -> Float[np.ndarray, " M"]:
    """Returns the minimum over the shares of some domains, the others held."""
    total = float(np.sum(r_M[moving]))
    # SLSQP's tolerance is absolute: losses of any unit become one whose slopes differ by one.
    level, gradient_M = float(objective.value(r_M[None])[0]), objective.gradient(r_M)
    unit = max(float(np.ptp(gradient_M)), 1e-12 * abs(level), 1e-300)

    def whole(shares: np.ndarray) -> np.ndarray:
        moved_M = r_M.copy()
        moved_M[moving] = shares
        return moved_M

    found = minimize(
        lambda shares: (float(objective.value(whole(shares)[None])[0]) - level) / unit,
        r_M[moving],
        jac=lambda shares: objective.gradient(whole(shares))[moving] / unit,
        bounds=[(allowed.floors[j], allowed.caps[j]) for j in moving],
        constraints={
            "type": "eq",
            "fun": lambda shares: np.sum(shares) - total,
            "jac": np.ones_like,
        },
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
    )
    if not np.all(np.isfinite(found.x)):
        raise OptimizeError(f"the search for the best mixture failed: {found.message}")
    # Rounding of 1e-16 outside the bounds is cleaned by a projection that changes nothing else.
    return allowed.nearest(whole(np.asarray(found.x, dtype=np.float64)))
