"""One target's fit: robust, shrunk, multi-started least squares (the solver is SciPy's).

Shape letters: R runs, M training domains, P parameters, S starts, Q shrinkage residuals.

The fit minimises sum_i w_i rho((y_i - L(r_i)) / s) + |penalty(theta)|^2 with Huber's rho, so that
one odd run moves it little, and with the law's shrinkage, so that a small design does not explode.
The scale s is that of the residuals: it is estimated from a first fit, by one rule for all data.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares

from mixlaw.laws.base import MixingLaw

HUBER = 1.345
"""Residuals beyond this many scales count linearly; 95% efficient under normal noise (Huber)."""
FIRST_SCALE = 0.1
"""Scale of the residuals in the first fit, as a share of the losses' standard deviation."""
LEAST_SCALE = 1e-3
"""Floor of the scale, likewise: noiseless data must not turn the shrinkage off altogether."""
AGREEMENT = 1e-6
"""Starts agree when their objectives are within this relative distance of the best."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Solution:
    """The best of several starts."""

    theta_P: Float[np.ndarray, " P"]
    objective: float
    converged: bool
    message: str
    num_starts: int
    starts_agreeing: int


def solve_target(
    law: MixingLaw,
    r_RM: Float[np.ndarray, "R M"],
    y_R: Float[np.ndarray, " R"],
    *,
    scale: float,
    starts_SP: Float[np.ndarray, "S P"],
    weight_R: Float[np.ndarray, " R"] | None = None,
) -> Solution:
    """Returns the robust, shrunk least-squares solution at a given scale of the residuals."""
    low_P, high_P = law.bounds(r_RM, y_R)
    # A start on a bound has no room for a trust region; SciPy wants it strictly inside.
    margin_P = 1e-6 * np.maximum(high_P - low_P, 1e-12)
    root_R = np.ones(len(y_R)) if weight_R is None else np.sqrt(weight_R)

    def residuals(theta_P: np.ndarray) -> np.ndarray:
        misfit_R = root_R * (law.predict(r_RM, theta_P) - y_R) / scale
        return np.concatenate([misfit_R, law.penalty(theta_P)])

    def jacobian(theta_P: np.ndarray) -> np.ndarray:
        misfit_RP = root_R[:, None] * law.jacobian(r_RM, theta_P) / scale
        return np.vstack([misfit_RP, law.penalty_jacobian(theta_P)])

    best, objectives = None, []
    for start_P in starts_SP:
        found = least_squares(
            residuals,
            np.clip(start_P, low_P + margin_P, high_P - margin_P),
            jac=jacobian,
            bounds=(low_P, high_P),
            loss="huber",
            f_scale=HUBER,
            x_scale="jac",
            xtol=1e-10,
            ftol=1e-10,
            gtol=1e-8,
            max_nfev=200,
        )
        objectives.append(float(found.cost))
        if best is None or found.cost < best.cost:
            best = found
    assert best is not None
    tolerance = AGREEMENT * max(1.0, abs(float(best.cost)))
    return Solution(
        theta_P=best.x,
        objective=float(best.cost),
        converged=best.status > 0,
        message=str(best.message),
        num_starts=len(objectives),
        starts_agreeing=sum(value <= best.cost + tolerance for value in objectives),
    )


def residual_scale(
    law: MixingLaw,
    r_RM: Float[np.ndarray, "R M"],
    y_R: Float[np.ndarray, " R"],
    theta_P: Float[np.ndarray, " P"],
) -> float:
    """Returns a robust standard deviation of the residuals, corrected for fitted parameters."""
    residual_R = np.abs(y_R - law.predict(r_RM, theta_P))
    freedom = max(len(y_R) - len(theta_P), 1)
    # 1.4826: a normal's standard deviation in median absolute deviations
    robust = 1.4826 * float(np.median(residual_R)) * np.sqrt(len(y_R) / freedom)
    return max(robust, LEAST_SCALE * spread(y_R))


def spread(y_R: Float[np.ndarray, " R"]) -> float:
    """Returns the losses' standard deviation, or a tiny positive number where all are equal."""
    return max(float(np.std(y_R)), 1e-9)
