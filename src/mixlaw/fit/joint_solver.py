"""One target's joint law: robust, shrunk least squares on the log of the loss.

Shape letters: R rows, X inputs, P parameters, Q shrinkage residuals.

It minimizes sum_i w_i rho((log L(x_i) - log y_i) / s) + |W theta - o|^2 / 2 within the law's
bounds, with Huber's rho. A fit has a few thousand rows and thirty parameters, so its normal
equations are cheap and well conditioned by the shrinkage; tests hold its minima against SciPy's.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from mixlaw.laws.joint import JointLaw

HUBER = 1.345
"""Residuals beyond this many scales count linearly; 95% efficient under normal noise (Huber)."""
FIRST_DAMPING = 1e-2
LEAST_DAMPING = 1e-9
MAX_TRIES = 12
"""Steps, ever shorter, after which nothing lowers the objective in float64."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class JointProblem:
    """What is minimized."""

    law: JointLaw
    x_RX: Float[np.ndarray, "R X"]
    y_R: Float[np.ndarray, " R"]
    """Losses, all known."""
    weight_R: Float[np.ndarray, " R"]
    scale: float
    """Of the residuals of log loss."""
    shrink_QP: Float[np.ndarray, "Q P"]
    shrink_Q: Float[np.ndarray, " Q"]

    def log_residual(self, theta_P: Float[np.ndarray, " P"]) -> Float[np.ndarray, " R"]:
        """Returns log L - log y."""
        return np.log(self.law.predict(self.x_RX, theta_P)) - np.log(self.y_R)

    def expand(self, theta_P: Float[np.ndarray, " P"]) -> "Expansion":
        """Returns the objective around the parameters."""
        loss_R, jacobian_RP = self.law.predict_with_jacobian(self.x_RX, theta_P)
        misfit_R = (np.log(loss_R) - np.log(self.y_R)) / self.scale
        size_R = np.abs(misfit_R)
        rho_R = np.where(size_R > HUBER, HUBER * (size_R - HUBER / 2), size_R**2 / 2)
        shrunk_Q = self.shrink_QP @ theta_P - self.shrink_Q
        # Iterative reweighting: the longer a residual beyond Huber's bound, the less it weighs.
        robust_R = self.weight_R * HUBER / np.maximum(size_R, HUBER)
        jacobian_RP /= (loss_R * self.scale)[:, None]
        return Expansion(
            value=float(self.weight_R @ rho_R + shrunk_Q @ shrunk_Q / 2),
            slope_P=(robust_R * misfit_R) @ jacobian_RP + shrunk_Q @ self.shrink_QP,
            curvature_PP=(jacobian_RP.T * robust_R) @ jacobian_RP
            + self.shrink_QP.T @ self.shrink_QP,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Expansion:
    """The objective at some parameters."""

    value: float
    """Minus the log posterior density, up to a constant."""
    slope_P: Float[np.ndarray, " P"]
    curvature_PP: Float[np.ndarray, "P P"]
    """Gauss-Newton's."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Descent:
    """Where a descent ended."""

    theta_P: Float[np.ndarray, " P"]
    objective: float
    converged: bool
    low_P: Float[np.ndarray, " P"]
    high_P: Float[np.ndarray, " P"]


def descend(
    problem: JointProblem,
    start_P: Float[np.ndarray, " P"],
    *,
    tolerance: float = 1e-9,
    max_steps: int = 300,
) -> Descent:
    """Returns a local minimum within the law's bounds, by Levenberg and Marquardt's steps."""
    low_P, high_P = problem.law.bounds(problem.x_RX, problem.y_R)
    theta_P = np.clip(start_P, low_P, high_P)
    here, damping, converged = problem.expand(theta_P), FIRST_DAMPING, False
    for _ in range(max_steps):
        inward_P = np.where(theta_P <= low_P, here.slope_P < 0, here.slope_P > 0)
        free_P = (theta_P > low_P) & (theta_P < high_P) | inward_P
        trial_P, trial = theta_P, here
        for _ in range(MAX_TRIES):
            trial_P = np.clip(theta_P + _step(here, free_P, damping), low_P, high_P)
            trial = problem.expand(trial_P)
            if trial.value < here.value:
                break
            damping *= 4
        converged = here.value - trial.value <= tolerance * max(1.0, here.value)
        if trial.value < here.value:
            theta_P, here, damping = trial_P, trial, max(damping / 5, LEAST_DAMPING)
        if converged:
            break
    return Descent(
        theta_P=theta_P, objective=here.value, converged=converged, low_P=low_P, high_P=high_P
    )


def _step(
    here: Expansion, free_P: Bool[np.ndarray, " P"], damping: float
) -> Float[np.ndarray, " P"]:
    """Returns the damped Gauss-Newton step of the parameters that no bound holds."""
    step_P = np.zeros_like(here.slope_P)
    places = np.flatnonzero(free_P)
    damped = here.curvature_PP[np.ix_(places, places)]
    damped = damped + np.diag(damping * np.diag(damped) + 1e-12)
    step_P[places] = -np.linalg.solve(damped, here.slope_P[places])
    return step_P
