"""Robust, shrunk nonlinear least squares for many problems at once: targets, folds, draws, starts.

Shape letters: B problems, R runs, M training domains, P parameters, Q shrinkage residuals.

Each problem minimizes sum_i w_i rho((y_i - L(r_i)) / s) + sum_q rho(lambda penalty_q) within the
law's bounds, with Huber's rho in both: one odd run moves the law little, and one domain that
matters much is shrunk little. A fit of a mixing law is tiny, and there are thousands of them, so
what SciPy's solvers cost per call is what counts; this one takes Levenberg-Marquardt steps for all
problems in the same NumPy calls. `docs/decisions/0007` has the comparison; tests hold its minima
against SciPy's.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mixlaw.laws.base import MixingLaw

HUBER = 1.345
"""Residuals beyond this many scales count linearly; 95% efficient under normal noise (Huber)."""
MAX_ITERATIONS = 300
"""Steps after which a descent is given up; ten to thirty are usual."""
FIRST_DAMPING = 1e-3
LEAST_DAMPING = 1e-12
MOST_DAMPING = 1e12
"""Beyond it no step in float64 lowers the objective."""
PROBE = 0.1
"""Share of a step at which the residuals' curvature along it is measured."""
MOST_BEND = 0.75
"""A step is bent by at most this share of its length: beyond, the curvature says little."""
MAX_HITS = 4
"""Rounds in which a step finds out which bounds it runs into; one or two are usual."""
CHUNK = 300_000
"""Entries of the Jacobians that are held at once: what stays in the cache."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Problems:
    """Fits of one law to the same mixtures: losses, weights, scales and strengths may differ."""

    law: MixingLaw
    r_RM: Float[np.ndarray, "R M"]
    y_BR: Float[np.ndarray, "B R"]
    """Losses; whatever they are where the weight is 0."""
    weight_BR: Float[np.ndarray, "B R"]
    """Weight of each run; 0: not there."""
    scale_B: Float[np.ndarray, " B"]
    """Scale of the residuals, in the unit of the losses."""
    strength_B: Float[np.ndarray, " B"]
    """Strength of the shrinkage, in units of the law's prior."""
    low_BP: Float[np.ndarray, "B P"]
    high_BP: Float[np.ndarray, "B P"]

    @classmethod
    def of(
        cls,
        law: MixingLaw,
        r_RM: Float[np.ndarray, "R M"],
        y_BR: Float[np.ndarray, "B R"],
        *,
        scale_B: Float[np.ndarray, " B"],
        strength_B: Float[np.ndarray, " B"],
        weight_BR: Float[np.ndarray, "B R"] | None = None,
    ) -> "Problems":
        """Returns the problems with the law's bounds; losses that are NaN have no weight."""
        known_BR = np.isfinite(y_BR)
        if weight_BR is not None:
            known_BR &= weight_BR > 0
        low_BP, high_BP = law.bounds(r_RM, np.where(known_BR, y_BR, np.nan))
        weights = 1.0 if weight_BR is None else weight_BR
        return cls(
            law=law,
            r_RM=r_RM,
            y_BR=np.where(known_BR, y_BR, 0.0),
            weight_BR=np.where(known_BR, weights, 0.0),
            scale_B=scale_B,
            strength_B=strength_B,
            low_BP=low_BP,
            high_BP=high_BP,
        )

    def select(self, index_B: Int[np.ndarray, " C"]) -> "Problems":
        """Returns some of the problems, in the order of the index; one may be there twice."""
        return Problems(
            law=self.law,
            r_RM=self.r_RM,
            y_BR=self.y_BR[index_B],
            weight_BR=self.weight_BR[index_B],
            scale_B=self.scale_B[index_B],
            strength_B=self.strength_B[index_B],
            low_BP=self.low_BP[index_B],
            high_BP=self.high_BP[index_B],
        )

    def objective(self, theta_BP: Float[np.ndarray, "B P"]) -> Float[np.ndarray, " B"]:
        """Returns the objectives: log densities up to sign and constants."""
        misfit_BR, shrinkage_BQ = self._residuals(theta_BP)
        fit_B = np.einsum("br,br->b", self.weight_BR, _huber(misfit_BR))
        return fit_B + np.sum(_huber(shrinkage_BQ), axis=1)

    def expand(self, theta_BP: Float[np.ndarray, "B P"]) -> "Expansion":
        """Returns the objective's slope and Gauss-Newton curvature at some parameters."""
        misfit_BR, shrinkage_BQ = self._residuals(theta_BP)
        jacobian_BRP = self.law.jacobian(self.r_RM, theta_BP)
        penalty_BQP = self.law.penalty_jacobian(theta_BP)
        trust_BR, trust_BQ = _huber_weight(misfit_BR), _huber_weight(shrinkage_BQ)
        weight_BR = self.weight_BR / self.scale_B[:, None]
        strength_B1 = self.strength_B[:, None]
        pull_BR, pull_BQ = weight_BR * trust_BR * misfit_BR, strength_B1 * trust_BQ * shrinkage_BQ
        # Beyond HUBER rho has no curvature; a little of it keeps the matrices positive. More
        # of it in the shrinkage: no step must run off where only that holds a parameter.
        curve_BR = weight_BR / self.scale_B[:, None] * trust_BR**3
        curve_BQ = strength_B1**2 * trust_BQ**2
        return Expansion(
            misfit_BR=misfit_BR,
            jacobian_BRP=jacobian_BRP,
            curve_BR=curve_BR,
            gradient_BP=(pull_BR[:, None] @ jacobian_BRP + pull_BQ[:, None] @ penalty_BQP)[:, 0],
            runs_BPP=np.swapaxes(jacobian_BRP * curve_BR[..., None], 1, 2) @ jacobian_BRP,
            shrinkage_BPP=np.swapaxes(penalty_BQP * curve_BQ[..., None], 1, 2) @ penalty_BQP,
        )

    def bend(
        self,
        theta_BP: Float[np.ndarray, "B P"],
        step_BP: Float[np.ndarray, "B P"],
        *,
        expansion: "Expansion",
    ) -> Float[np.ndarray, "B P"]:
        """Returns the slope that the residuals' curvature along a step adds.

        Half the Gauss-Newton solution for it turns a straight step into a parabola that follows a
        curved valley (geodesic acceleration, Transtrum and Sethna 2012, arXiv:1201.5885).
        """
        near_BP = np.clip(theta_BP + PROBE * step_BP, self.low_BP, self.high_BP)
        near_BR = (self.law.predict(self.r_RM, near_BP) - self.y_BR) / self.scale_B[:, None]
        straight_BR = (expansion.jacobian_BRP @ step_BP[..., None])[..., 0] / self.scale_B[:, None]
        second_BR = 2 / PROBE * ((near_BR - expansion.misfit_BR) / PROBE - straight_BR)
        pull_BR = expansion.curve_BR * self.scale_B[:, None] * second_BR
        return (pull_BR[:, None] @ expansion.jacobian_BRP)[:, 0]

    def effective_parameters(self, theta_BP: Float[np.ndarray, "B P"]) -> Float[np.ndarray, " B"]:
        """Returns how many parameters the runs decide, rather than the shrinkage or a bound."""
        expansion = self.expand(theta_BP)
        runs_BPP, shrinkage_BPP = expansion.runs_BPP, expansion.shrinkage_BPP
        free_BP = (theta_BP > self.low_BP) & (theta_BP < self.high_BP)
        both_BPP = _hold(runs_BPP + shrinkage_BPP, free_BP)
        both_BPP += _floor(both_BPP)
        runs_BPP = runs_BPP * free_BP[:, None] * free_BP[:, :, None]
        return np.trace(np.linalg.solve(both_BPP, runs_BPP), axis1=1, axis2=2)

    def _residuals(
        self, theta_BP: Float[np.ndarray, "B P"]
    ) -> tuple[Float[np.ndarray, "B R"], Float[np.ndarray, "B Q"]]:
        misfit_BR = (self.law.predict(self.r_RM, theta_BP) - self.y_BR) / self.scale_B[:, None]
        return misfit_BR, self.strength_B[:, None] * self.law.penalty(theta_BP)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Expansion:
    """The objectives near some parameters."""

    misfit_BR: Float[np.ndarray, "B R"]
    """Residuals of the runs, in scales."""
    jacobian_BRP: Float[np.ndarray, "B R P"]
    """Derivatives of the losses."""
    curve_BR: Float[np.ndarray, "B R"]
    """Curvature of the objective by each loss."""
    gradient_BP: Float[np.ndarray, "B P"]
    runs_BPP: Float[np.ndarray, "B P P"]
    """Gauss-Newton matrix of the runs."""
    shrinkage_BPP: Float[np.ndarray, "B P P"]
    """Gauss-Newton matrix of the shrinkage."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Minima:
    """Where the descents ended."""

    theta_BP: Float[np.ndarray, "B P"]
    objective_B: Float[np.ndarray, " B"]
    converged_B: Bool[np.ndarray, " B"]


def minimize_problems(
    problems: Problems, start_BP: Float[np.ndarray, "B P"], *, tolerance: float = 1e-12
) -> Minima:
    """Returns a local minimum of each problem, from one start for each.

    Args:
        problems: The problems.
        start_BP: Where to start; moved into the bounds.
        tolerance: A descent ends when the step that it would take next promises to lower the
            objective by no more than this share.
    """
    count, size = start_BP.shape
    theta_BP = np.empty((count, size))
    objective_B, converged_B = np.empty(count), np.empty(count, dtype=bool)
    step = max(1, CHUNK // (len(problems.r_RM) * size))
    for first in range(0, count, step):
        part = slice(first, min(first + step, count))
        index_B = np.arange(part.start, part.stop)
        end = _descend(problems.select(index_B), start_BP[part], tolerance)
        theta_BP[part], objective_B[part], converged_B[part] = end
    return Minima(theta_BP=theta_BP, objective_B=objective_B, converged_B=converged_B)


def _descend(
    problems: Problems, start_BP: Float[np.ndarray, "B P"], tolerance: float
) -> tuple[Float[np.ndarray, "B P"], Float[np.ndarray, " B"], Bool[np.ndarray, " B"]]:
    """Takes damped steps until each problem is done; only those that aren't are evaluated."""
    theta_BP = np.clip(start_BP, problems.low_BP, problems.high_BP)
    objective_B = problems.objective(theta_BP)
    damping_B = np.full(len(theta_BP), FIRST_DAMPING)
    stiff_BP = np.zeros_like(theta_BP)
    converged_B = np.zeros(len(theta_BP), dtype=bool)
    index = np.arange(len(theta_BP))
    for _ in range(MAX_ITERATIONS):
        part = problems.select(index)
        here, value, damping = theta_BP[index], objective_B[index], damping_B[index]
        step, promised, stiff_BP[index] = _damped_step(part, here, damping, stiff_BP[index])
        there = np.clip(here + step, part.low_BP, part.high_BP)
        reached = part.objective(there)
        lower = reached < value
        theta_BP[index] = np.where(lower[:, None], there, here)
        objective_B[index] = np.where(lower, reached, value)
        kept = np.clip(value - reached, -9 * promised, 9 * promised) / np.maximum(promised, 1e-300)
        easier = damping * np.maximum(0.1, 1 - (2 * kept - 1) ** 3)
        damping_B[index] = np.where(lower, np.maximum(easier, LEAST_DAMPING), 4 * damping)
        small = promised <= tolerance * np.maximum(value, 1e-300)
        # A strongly damped step promises little anywhere.
        done = (small & (damping <= 1)) | (damping > MOST_DAMPING)
        converged_B[index[done]] = True
        index = index[~done]
        if not len(index):
            break
    return theta_BP, objective_B, converged_B


def _damped_step(
    problems: Problems,
    theta_BP: Float[np.ndarray, "B P"],
    damping_B: Float[np.ndarray, " B"],
    stiff_BP: Float[np.ndarray, "B P"],
) -> tuple[Float[np.ndarray, "B P"], Float[np.ndarray, " B"], Float[np.ndarray, "B P"]]:
    """Returns the Levenberg-Marquardt step, what it promises, and how stiff parameters have been.

    A parameter at a bound, which the slope pushes outwards, stays there. Damping is in units of the
    largest curvature so far, as in MINPACK: one that moves little now must not run off.
    """
    expansion = problems.expand(theta_BP)
    gradient_BP = expansion.gradient_BP
    at_low_BP, at_high_BP = theta_BP <= problems.low_BP, theta_BP >= problems.high_BP
    free_BP = ~((at_low_BP & (gradient_BP > 0)) | (at_high_BP & (gradient_BP < 0)))
    matrix_BPP = expansion.runs_BPP + expansion.shrinkage_BPP
    damped_BPP = matrix_BPP + _floor(matrix_BPP)
    index = np.arange(theta_BP.shape[1])
    stiff_BP = np.maximum(stiff_BP, damped_BPP[:, index, index])
    damped_BPP[:, index, index] += damping_B[:, None] * stiff_BP
    step_BP = np.zeros_like(theta_BP)
    for _ in range(MAX_HITS):
        # What has hit a bound stops there; the others take it into account.
        slope_BP = gradient_BP + np.einsum("bpq,bq->bp", damped_BPP, step_BP)
        step_BP = step_BP + _solve_free(damped_BPP, -slope_BP, free_BP)
        there_BP = theta_BP + step_BP
        outside_BP = (there_BP < problems.low_BP) | (there_BP > problems.high_BP)
        step_BP = np.clip(there_BP, problems.low_BP, problems.high_BP) - theta_BP
        free_BP &= ~outside_BP
        if not outside_BP.any():
            break
    curved_B = np.einsum("bp,bpq,bq->b", step_BP, matrix_BPP, step_BP)
    promised_B = -np.einsum("bp,bp->b", gradient_BP, step_BP) - curved_B / 2
    slope_BP = problems.bend(theta_BP, step_BP, expansion=expansion)
    bend_BP = _solve_free(damped_BPP, -slope_BP, free_BP)
    length_B, bent_B = (np.sum(stiff_BP * x_BP**2, axis=1) for x_BP in (step_BP, bend_BP))
    step_BP += np.where((bent_B <= MOST_BEND**2 * length_B)[:, None], bend_BP / 2, 0.0)
    return step_BP, np.maximum(promised_B, 0.0), stiff_BP


def _solve_free(
    matrix_BPP: Float[np.ndarray, "B P P"],
    right_BP: Float[np.ndarray, "B P"],
    free_BP: Bool[np.ndarray, "B P"],
) -> Float[np.ndarray, "B P"]:
    """Returns the solutions in the free parameters; 0 in those that are held."""
    right_BP = np.where(free_BP, right_BP, 0.0)
    return np.linalg.solve(_hold(matrix_BPP, free_BP), right_BP[..., None])[..., 0]


def _hold(
    matrix_BPP: Float[np.ndarray, "B P P"], free_BP: Bool[np.ndarray, "B P"]
) -> Float[np.ndarray, "B P P"]:
    """Returns the matrices with the rows and columns of held parameters those of the identity."""
    held_BPP = matrix_BPP * free_BP[:, None] * free_BP[:, :, None]
    index = np.arange(free_BP.shape[1])
    held_BPP[:, index, index] += ~free_BP
    return held_BPP


def _floor(matrix_BPP: Float[np.ndarray, "B P P"]) -> Float[np.ndarray, "B P P"]:
    """Returns what keeps matrices invertible where a parameter moves nothing."""
    most_B = np.max(np.diagonal(matrix_BPP, axis1=1, axis2=2), axis=1)
    return (1e-13 * most_B + 1e-300)[:, None, None] * np.eye(matrix_BPP.shape[1])


def _huber(u: Float[np.ndarray, "B N"]) -> Float[np.ndarray, "B N"]:
    size = np.abs(u)
    inside = np.minimum(size, HUBER)
    return inside * (size - inside / 2)


def _huber_weight(u: Float[np.ndarray, "B N"]) -> Float[np.ndarray, "B N"]:
    """Returns the derivative of rho over its argument."""
    return HUBER / np.maximum(np.abs(u), HUBER)
