r"""The solver of power laws: many series at once, exponents own or in common.

Shape letters: S series, R points of a series, K variables, L = 1 + K coefficients, Q exponents,
G groups of series with common exponents, B any batch of small systems.

Coefficients are linear given the exponents, and not negative. They are solved out on a fine grid of
exponents, all series together; damped Gauss-Newton steps then polish everything, with each series'
coefficients eliminated from its group's equations. No random numbers: the same data give the same
fit.
"""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, Int

from mixlaw.laws.power import PowerLaw

GRID_POINTS = {1: 60, 2: 16}
"""Grid points per exponent, evenly in its logarithm, by the number of exponents."""
GRID_ROUNDS = 2
"""Reweighted linear fits per grid point, which start from the last point's weights: enough to find
the right cell; polishing does the rest."""
MAX_ITERATIONS = 400
SETTLED = 1e-12
"""A group has converged when a step that is little damped changes its objective by less."""
MAX_DAMPING = 1e8
"""Beyond it no step lowers the objective: the rounding of float64 is reached."""
EPSILON = float(np.finfo(float).eps)
TINY = 1e-300


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PowerProblem:
    """Series, weights and bounds, with the variables centered in their logarithm."""

    law: PowerLaw
    log_x_SRK: Float[np.ndarray, "S R K"]
    center_K: Float[np.ndarray, " K"]
    """Subtracted from log x, so that coefficients are losses at a typical point."""
    y_SR: Float[np.ndarray, "S R"]
    weight_SR: Float[np.ndarray, "S R"]
    """0 where nothing was observed."""
    group_S: Int[np.ndarray, " S"]
    huber: float
    """Residuals beyond this count linearly; infinite for least squares."""
    log: bool
    """Whether residuals are differences of logs."""
    low_SL: Float[np.ndarray, "S L"]
    high_SL: Float[np.ndarray, "S L"]
    low_GQ: Float[np.ndarray, "G Q"]
    high_GQ: Float[np.ndarray, "G Q"]

    @property
    def num_groups(self) -> int:
        """G, the number of groups."""
        return len(self.low_GQ)

    def bounds(
        self, group_S: Int[np.ndarray, " S"]
    ) -> tuple[Float[np.ndarray, "S P"], Float[np.ndarray, "S P"]]:
        """Returns the bounds of all parameters, by series."""
        return (
            np.hstack([self.low_SL, self.low_GQ[group_S]]),
            np.hstack([self.high_SL, self.high_GQ[group_S]]),
        )

    def take(self, groups: Int[np.ndarray, " G"]) -> tuple["PowerProblem", np.ndarray]:
        """Returns the problem of some groups alone, and which series those are."""
        position = np.full(self.num_groups, -1)
        position[groups] = np.arange(len(groups))
        series = np.flatnonzero(position[self.group_S] >= 0)
        part = replace(
            self,
            log_x_SRK=self.log_x_SRK[series],
            y_SR=self.y_SR[series],
            weight_SR=self.weight_SR[series],
            group_S=position[self.group_S[series]],
            low_SL=self.low_SL[series],
            high_SL=self.high_SL[series],
            low_GQ=self.low_GQ[groups],
            high_GQ=self.high_GQ[groups],
        )
        return part, series

    def by_group(self, value_S: Float[np.ndarray, "S ..."]) -> Float[np.ndarray, "G ..."]:
        """Returns sums over the series of each group."""
        if np.array_equal(self.group_S, np.arange(self.num_groups)):
            return value_S
        total = np.zeros((self.num_groups, *value_S.shape[1:]))
        np.add.at(total, self.group_S, value_S)
        return total

    def columns(
        self, exponent_GQ: Float[np.ndarray, "G Q"]
    ) -> tuple[Float[np.ndarray, "S R L"], Float[np.ndarray, "S R K"]]:
        """Returns what the coefficients multiply (1 and the powers), and the centered log x."""
        z_SRK = self.log_x_SRK - self.center_K
        powers_SRK = np.exp(-exponent_GQ[self.group_S][:, None, :] * z_SRK)
        return np.concatenate([np.ones((*z_SRK.shape[:2], 1)), powers_SRK], axis=2), z_SRK

    def residuals(self, predicted_SR: Float[np.ndarray, "S R"]) -> Float[np.ndarray, "S R"]:
        """Returns predicted less observed, or the same of the logs."""
        if not self.log:
            return predicted_SR - self.y_SR
        return np.log(np.maximum(predicted_SR, TINY)) - np.log(self.y_SR)

    def objective(self, residual_SR: Float[np.ndarray, "S R"]) -> Float[np.ndarray, " G"]:
        """Returns each group's sum of weighted Huber losses."""
        size_SR = np.abs(residual_SR)
        inner_SR = np.minimum(size_SR, self.huber)
        return self.by_group(np.sum(self.weight_SR * inner_SR * (size_SR - inner_SR / 2), axis=1))

    def rounding(self) -> Float[np.ndarray, " G"]:
        """Returns what float64 leaves of each group's objective where the law fits exactly."""
        size_SR = np.ones_like(self.y_SR) if self.log else self.y_SR
        return self.by_group(np.sum(self.weight_SR * (4 * EPSILON * size_SR) ** 2, axis=1))

    def robust_weights(self, residual_SR: Float[np.ndarray, "S R"]) -> Float[np.ndarray, "S R"]:
        """Returns the weights of the least squares that has the same gradient."""
        if np.isinf(self.huber):
            return self.weight_SR
        return self.weight_SR * (self.huber / np.maximum(np.abs(residual_SR), self.huber))


def search_grid(
    problem: PowerProblem,
) -> tuple[Float[np.ndarray, "S L"], Float[np.ndarray, "G Q"]]:
    """Returns the best exponents of a grid by group, with the coefficients solved out."""
    num = GRID_POINTS[problem.law.num_exponents]
    fraction_N = np.linspace(0, 1, num)
    low_GQ, log_range_GQ = problem.low_GQ, np.log(problem.high_GQ / problem.low_GQ)
    best_G = np.full(problem.num_groups, np.inf)
    exponent_GQ = low_GQ.copy()
    coefficient_SL = np.zeros_like(problem.low_SL)
    weight_SR = problem.weight_SR
    for fraction_Q in product(fraction_N, repeat=problem.law.num_exponents):
        tried_GQ = low_GQ * np.exp(np.array(fraction_Q) * log_range_GQ)
        tried_SL, residual_SR, weight_SR = _solve_linear(problem, tried_GQ, weight_SR)
        objective_G = problem.objective(residual_SR)
        better_G = objective_G < best_G
        best_G[better_G], exponent_GQ[better_G] = objective_G[better_G], tried_GQ[better_G]
        better_S = better_G[problem.group_S]
        coefficient_SL[better_S] = tried_SL[better_S]
    return coefficient_SL, exponent_GQ


def _solve_linear(
    problem: PowerProblem, exponent_GQ: np.ndarray, weight_SR: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns coefficients at given exponents, residuals, and the weights to go on with."""
    columns_SRL, _ = problem.columns(exponent_GQ)
    coefficient_SL, residual_SR = _solve_weighted(problem, columns_SRL, weight_SR)
    if np.isfinite(problem.huber):
        for _ in range(GRID_ROUNDS - 1):
            weight_SR = problem.robust_weights(residual_SR)
            coefficient_SL, residual_SR = _solve_weighted(problem, columns_SRL, weight_SR)
    return coefficient_SL, residual_SR, problem.robust_weights(residual_SR)


def _solve_weighted(
    problem: PowerProblem, columns_SRL: np.ndarray, weight_SR: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the coefficients of one weighted least squares, and the residuals."""
    scaled_SR = weight_SR / problem.y_SR**2 if problem.log else weight_SR
    weighted_SLR = (columns_SRL * scaled_SR[:, :, None]).transpose(0, 2, 1)
    moment_SL = (weighted_SLR @ problem.y_SR[:, :, None])[:, :, 0]
    coefficient_SL = _solve_nonnegative(weighted_SLR @ columns_SRL, moment_SL)
    predicted_SR = np.einsum("srl,sl->sr", columns_SRL, coefficient_SL)
    return coefficient_SL, problem.residuals(predicted_SR)


def _solve_nonnegative(
    gram_SLL: Float[np.ndarray, "S L L"], moment_SL: Float[np.ndarray, "S L"]
) -> Float[np.ndarray, "S L"]:
    """Returns the non-negative least squares of many small problems: the best feasible support."""
    count = moment_SL.shape[1]
    size_SL = np.maximum(np.einsum("sll->sl", gram_SLL), TINY)
    gram_SLL = gram_SLL + 1e-12 * size_SL[:, :, None] * np.eye(count)
    best_SL = _solve_free(gram_SLL, moment_SL[:, :, None], np.ones(moment_SL.shape, bool))[:, :, 0]
    hard = np.flatnonzero((best_SL < 0).any(axis=1))
    if len(hard) == 0:
        return best_SL
    gram_HLL, moment_HL = gram_SLL[hard], moment_SL[hard]
    best_HL, gain_H = np.zeros_like(moment_HL), np.zeros(len(hard))
    for support in product((True, False), repeat=count):
        free_HL = np.broadcast_to(np.array(support), moment_HL.shape)
        solved_HL = _solve_free(gram_HLL, moment_HL[:, :, None], free_HL)[:, :, 0]
        tried_H = np.where((solved_HL >= 0).all(axis=1), np.sum(solved_HL * moment_HL, axis=1), 0)
        better_H = tried_H > gain_H
        best_HL[better_H], gain_H[better_H] = solved_HL[better_H], tried_H[better_H]
    best_SL[hard] = best_HL
    return best_SL


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PowerSolution:
    """Coefficients and exponents in centered variables."""

    coefficient_SL: Float[np.ndarray, "S L"]
    exponent_GQ: Float[np.ndarray, "G Q"]
    objective_G: Float[np.ndarray, " G"]
    converged_G: Bool[np.ndarray, " G"]


def polish(
    problem: PowerProblem,
    coefficient_SL: Float[np.ndarray, "S L"],
    exponent_GQ: Float[np.ndarray, "G Q"],
) -> PowerSolution:
    """Returns the minimum near a start, by damped Gauss-Newton steps inside the bounds."""
    coefficient_SL, exponent_GQ = coefficient_SL.copy(), exponent_GQ.copy()
    columns_SRL, _ = problem.columns(exponent_GQ)
    objective_G = problem.objective(
        problem.residuals(np.einsum("srl,sl->sr", columns_SRL, coefficient_SL))
    )
    floor_G = problem.rounding()
    damping_G = np.full(problem.num_groups, 1e-3)
    going_G = np.ones(problem.num_groups, bool)
    for _ in range(MAX_ITERATIONS):
        groups = np.flatnonzero(going_G)
        if len(groups) == 0:
            break
        part, series = problem.take(groups)
        step_SL, step_GQ = _step(
            part, coefficient_SL[series], exponent_GQ[groups], damping_G[groups]
        )
        tried_SL = np.clip(coefficient_SL[series] + step_SL, part.low_SL, part.high_SL)
        tried_GQ = np.clip(exponent_GQ[groups] + step_GQ, part.low_GQ, part.high_GQ)
        columns_SRL, _ = part.columns(tried_GQ)
        tried_G = part.objective(part.residuals(np.einsum("srl,sl->sr", columns_SRL, tried_SL)))
        fall_G = objective_G[groups] - tried_G
        better_G = fall_G >= 0
        settled_G = np.abs(fall_G) <= SETTLED * objective_G[groups] + floor_G[groups]
        stuck_G = damping_G[groups] > MAX_DAMPING
        going_G[groups] = ~((settled_G & (damping_G[groups] <= 1)) | stuck_G)
        taken, taken_S = groups[better_G], series[better_G[part.group_S]]
        coefficient_SL[taken_S] = tried_SL[better_G[part.group_S]]
        exponent_GQ[taken], objective_G[taken] = tried_GQ[better_G], tried_G[better_G]
        damping_G[groups] *= np.where(better_G, 0.2, 8.0)
        damping_G = np.maximum(damping_G, 1e-15)
    return PowerSolution(
        coefficient_SL=coefficient_SL,
        exponent_GQ=exponent_GQ,
        objective_G=objective_G,
        converged_G=~going_G,
    )


def _step(
    problem: PowerProblem,
    coefficient_SL: np.ndarray,
    exponent_GQ: np.ndarray,
    damping_G: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns one damped step of coefficients and exponents.

    What sits at a bound and would leave it is held. Each series' coefficients are eliminated (Schur
    complement), so that the work grows linearly in the series whatever they have in common.
    """
    columns_SRL, z_SRK = problem.columns(exponent_GQ)
    predicted_SR = np.einsum("srl,sl->sr", columns_SRL, coefficient_SL)
    residual_SR = problem.residuals(predicted_SR)
    slope_SRQ = -(coefficient_SL[:, None, 1:] * columns_SRL[:, :, 1:] * z_SRK)
    if problem.law.tied:
        slope_SRQ = slope_SRQ.sum(axis=2, keepdims=True)
    if problem.log:
        inverse_SR1 = 1 / np.maximum(predicted_SR, TINY)[:, :, None]
        columns_SRL, slope_SRQ = columns_SRL * inverse_SR1, slope_SRQ * inverse_SR1
    weight_SR1 = problem.robust_weights(residual_SR)[:, :, None]
    weighted_SLR = (columns_SRL * weight_SR1).transpose(0, 2, 1)
    weighted_SQR = (slope_SRQ * weight_SR1).transpose(0, 2, 1)
    gradient_SL = (weighted_SLR @ residual_SR[:, :, None])[:, :, 0]
    gradient_GQ = problem.by_group((weighted_SQR @ residual_SR[:, :, None])[:, :, 0])
    free_SL = _is_free(gradient_SL, coefficient_SL, problem.low_SL, problem.high_SL)
    free_GQ = _is_free(gradient_GQ, exponent_GQ, problem.low_GQ, problem.high_GQ)

    damping_S = damping_G[problem.group_S]
    own_SLL = _damp(weighted_SLR @ columns_SRL, damping_S)
    cross_SLQ = np.where(free_SL[:, :, None], weighted_SLR @ slope_SRQ, 0.0)
    shared_GQQ = _damp(problem.by_group(weighted_SQR @ slope_SRQ), damping_G)
    right_SLX = np.concatenate([cross_SLQ, gradient_SL[:, :, None]], axis=2)
    solved_SLX = _solve_free(own_SLL, right_SLX, free_SL)
    eliminated_SQX = cross_SLQ.transpose(0, 2, 1) @ solved_SLX
    eliminated_GQX = problem.by_group(eliminated_SQX)
    step_GQ = -_solve_free(
        shared_GQQ - eliminated_GQX[:, :, :-1],
        (gradient_GQ - eliminated_GQX[:, :, -1])[:, :, None],
        free_GQ,
    )[:, :, 0]
    step_SL = -solved_SLX[:, :, -1] - np.einsum(
        "slq,sq->sl", solved_SLX[:, :, :-1], step_GQ[problem.group_S]
    )
    return step_SL, step_GQ


def _is_free(
    gradient: np.ndarray, value: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Returns which values are inside their bounds or would move inwards."""
    return ~(((value <= low) & (gradient >= 0)) | ((value >= high) & (gradient <= 0)))


def _damp(matrix_BLL: np.ndarray, damping_B: np.ndarray) -> np.ndarray:
    """Returns the matrices with their diagonals raised, and nowhere zero."""
    diagonal_BL = np.einsum("bll->bl", matrix_BLL)
    raised_BL = diagonal_BL * damping_B[:, None] + 1e-14 * diagonal_BL + TINY
    return matrix_BLL + raised_BL[:, :, None] * np.eye(matrix_BLL.shape[1])


def _solve_free(matrix_BLL: np.ndarray, right_BLX: np.ndarray, free_BL: np.ndarray) -> np.ndarray:
    """Returns the solutions in the free entries, 0 in the others."""
    both_BLL = free_BL[:, :, None] & free_BL[:, None, :]
    size_BL = np.sqrt(np.where(free_BL, np.einsum("bll->bl", matrix_BLL), 1.0))
    scale_BL = 1 / np.maximum(size_BL, 1e-150)
    scaled_BLL = matrix_BLL * scale_BL[:, :, None] * scale_BL[:, None, :]
    masked_BLL = np.where(both_BLL, scaled_BLL, np.eye(matrix_BLL.shape[1]))
    right_BLX = np.where(free_BL[:, :, None], right_BLX * scale_BL[:, :, None], 0.0)
    return scale_BL[:, :, None] * np.linalg.solve(masked_BLL, right_BLX)
