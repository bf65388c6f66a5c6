"""The minimum of a smooth objective on the capped simplex, with a certificate where it is convex.

Shape letters: M training domains.

The search is SciPy's SLSQP. The certificate is the Frank-Wolfe gap: for a convex f, no allowed
mixture lies lower than f(r) - max_s grad f(r) . (r - s), and that maximum over the capped simplex
is a linear problem whose answer is known (Jaggi 2013, Eq. 2).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from mixlaw.errors import OptimizeError
from mixlaw.mixtures import CappedSimplex
from mixlaw.optimize.objective import ObjectiveFunction


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
        found = minimize(
            lambda r_M: float(objective.value(r_M[None])[0]),
            allowed.nearest(start_M),
            jac=objective.gradient,
            bounds=list(zip(allowed.floors, allowed.caps, strict=True)),
            constraints={
                "type": "eq",
                "fun": lambda r_M: np.sum(r_M) - 1.0,
                "jac": np.ones_like,
            },
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-14},
        )
    if not np.all(np.isfinite(found.x)):
        raise OptimizeError(f"the search for the best mixture failed: {found.message}")
    # Rounding of 1e-16 outside the bounds is cleaned by a projection that changes nothing else.
    r_M = allowed.nearest(np.asarray(found.x, dtype=np.float64))
    gradient_M = objective.gradient(r_M)
    gap = float(gradient_M @ (r_M - allowed.linear_minimum(gradient_M)))
    return Minimum(r_M=r_M, value=float(objective.value(r_M[None])[0]), gap=max(gap, 0.0))
