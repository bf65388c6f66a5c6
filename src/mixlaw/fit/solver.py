"""One target's fit: robust, shrunk, multi-started least squares; the solver is MINPACK's, in SciPy.

Shape letters: R runs, M training domains, P parameters, S starts, Q shrinkage residuals.

The fit minimizes sum_i w_i rho((y_i - L(r_i)) / s) + sum_q rho(lambda penalty_q), with Huber's rho
in both: one odd run moves the law little, and one domain that matters much is shrunk little. The
scale s of the residuals and the strength lambda of the shrinkage are estimated from the same runs,
by one rule for all data: s by Huber's proposal 2 with the effective number of parameters, lambda by
generalized cross-validation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import leastsq

from mixlaw.laws.base import MixingLaw

HUBER = 1.345
"""Residuals beyond this many scales count linearly; 95% efficient under normal noise (Huber)."""
HUBER_VARIANCE = 0.7102
"""Mean of min(|u|, HUBER)^2 for a standard normal u: what makes the scale one of normal noise."""
STRENGTHS = (1.0, 3.0, 30.0, 300.0)
"""Strengths of the shrinkage that are tried, in units of the law's prior, the weakest first. Where
the runs say little, the last one leaves about the mean of the losses: some no mixture moves."""
CLEARLY_BETTER = 0.9
"""A stronger shrinkage must lower the score of the cross-validation to this share of the best."""
HOPELESS = 1.5
"""A strength that scores this many times worse than the best ends the search for stronger ones."""
FIRST_SCALE = 0.1
"""Scale of the residuals in the first fit, as a share of the losses' standard deviation."""
LEAST_SCALE = 1e-3
"""Floor of the scale, likewise: noiseless data must not turn the shrinkage off altogether."""
AGREEMENT = 1e-4
"""Starts agree when their objectives, log densities up to sign, are within this of the best."""
ROUGH = 1e-7
"""Tolerance of descents that are compared or go on; only the best is polished."""
MAX_SCALE_ROUNDS = 10
"""Rounds of fitting and estimating the scale anew; three or four are usual."""
ROUND_EVALUATIONS = 30
"""Evaluations after which a descent looks where it is: far outside the bounds it would crawl on."""
MAX_ROUNDS = 40
"""Such rounds; one or two are usual."""
MAX_RELEASES = 3
"""How often a descent lets parameters go from their bounds; on flat ground it might not end."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Solution:
    """The best of several starts."""

    theta_P: Float[np.ndarray, " P"]
    objective: float
    converged: bool
    message: str
    num_starts: int
    starts_agreeing: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Candidate:
    """A fit at one strength of the shrinkage, with the scale that its own residuals have."""

    strength: float
    scale: float
    theta_P: Float[np.ndarray, " P"]
    score: float
    """Generalized cross-validation: the residuals' variance, times what fitted parameters hide."""


def solve_target(
    law: MixingLaw,
    r_RM: Float[np.ndarray, "R M"],
    y_R: Float[np.ndarray, " R"],
    *,
    scale: float,
    strength: float,
    starts_SP: Float[np.ndarray, "S P"],
    weight_R: Float[np.ndarray, " R"] | None = None,
    tolerance: float = 1e-10,
) -> Solution:
    """Returns the robust, shrunk least-squares solution at a given scale and strength."""
    problem = _Problem(law, r_RM, y_R, scale, strength, weight_R)
    rough = tolerance if len(starts_SP) == 1 else max(tolerance, ROUGH)
    ends = [_descend(problem, start_P, rough) for start_P in starts_SP]
    best = min(ends, key=lambda end: end.objective)
    if rough > tolerance:
        best = _descend(problem, best.theta_P, tolerance)
    agreed = best.objective + AGREEMENT * max(1.0, best.objective)
    return Solution(
        theta_P=best.theta_P,
        objective=best.objective,
        converged=not best.message,
        message=best.message,
        num_starts=len(ends),
        starts_agreeing=sum(end.objective <= agreed for end in ends),
    )


def try_strengths(
    law: MixingLaw,
    r_RM: Float[np.ndarray, "R M"],
    y_R: Float[np.ndarray, " R"],
    *,
    start: Candidate,
) -> tuple[Candidate, ...]:
    """Returns a fit for each strength of the shrinkage, weakest first, until one is hopeless."""
    tried: list[Candidate] = []
    limit = np.inf
    for strength in STRENGTHS:
        start = settle_scale(law, r_RM, y_R, start=replace(start, strength=strength), limit=limit)
        if start.score > limit:
            break
        tried.append(start)
        limit = min(limit, HOPELESS * start.score)
    return tuple(tried)


def choose_strength(tried: Sequence[Candidate]) -> Candidate:
    """Returns the candidate with the least score; a stronger shrinkage must be clearly better."""
    best = tried[0]
    for candidate in tried[1:]:
        if candidate.score < CLEARLY_BETTER * best.score:
            best = candidate
    return best


def first_candidate(
    law: MixingLaw, r_RM: Float[np.ndarray, "R M"], y_R: Float[np.ndarray, " R"]
) -> Candidate:
    """Returns the best fit from the law's own starts, at a rough scale of the residuals."""
    scale = FIRST_SCALE * spread(y_R)
    solution = solve_target(
        law,
        r_RM,
        y_R,
        scale=scale,
        strength=STRENGTHS[0],
        starts_SP=law.starts(r_RM, y_R),
        tolerance=ROUGH,
    )
    return Candidate(strength=STRENGTHS[0], scale=scale, theta_P=solution.theta_P, score=np.inf)


def spread(y_R: Float[np.ndarray, " R"]) -> float:
    """Returns the losses' standard deviation, or a tiny positive number where all are equal."""
    return max(float(np.std(y_R)), 1e-9)


def settle_scale(
    law: MixingLaw,
    r_RM: Float[np.ndarray, "R M"],
    y_R: Float[np.ndarray, " R"],
    *,
    start: Candidate,
    limit: float = np.inf,
) -> Candidate:
    """Returns the fit whose residuals have the scale that it was fitted with.

    It gives up once the score has risen above `limit`.
    """
    theta_P, scale, score = start.theta_P, start.scale, np.inf
    count, least = len(y_R), LEAST_SCALE * spread(y_R)
    for _ in range(MAX_SCALE_ROUNDS):
        problem = _Problem(law, r_RM, y_R, scale, start.strength, None)
        end = _descend(problem, theta_P, ROUGH)
        theta_P = end.theta_P
        used = problem.effective_parameters(theta_P, end.free_P)
        left = max(count - used, 1e-3 * count)
        misfit_R = np.minimum(np.abs(y_R - law.predict(r_RM, theta_P)) / scale, HUBER)
        found = max(scale * np.sqrt(np.sum(misfit_R**2) / (HUBER_VARIANCE * left)), least)
        settled = abs(np.log(found / scale)) < 0.03
        scale, score = float(found), float(found**2 * count / left)
        if settled or score > limit:
            break
    return replace(start, scale=scale, theta_P=theta_P, score=score)


class _Problem:
    """Pseudo-residuals f with sum f^2 / 2 = the objective, and their Jacobian.

    MINPACK calls these thousands of times; shapes are checked where it is called.
    """

    def __init__(
        self,
        law: MixingLaw,
        r_RM: Float[np.ndarray, "R M"],
        y_R: Float[np.ndarray, " R"],
        scale: float,
        strength: float,
        weight_R: Float[np.ndarray, " R"] | None,
    ) -> None:
        self.law, self.r_RM, self.y_R = law, r_RM, y_R
        self.scale, self.strength = scale, strength
        self.root_R = None if weight_R is None else np.sqrt(weight_R)
        self.low_P, self.high_P = law.bounds(r_RM, y_R)
        self._last: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def values(self, theta_P: np.ndarray) -> np.ndarray:
        return self._huber_root(theta_P)[0]

    def jacobian(self, theta_P: np.ndarray) -> np.ndarray:
        count = len(self.y_R)
        _, slope = self._huber_root(theta_P)
        jacobian_RP = self.law.jacobian(self.r_RM, theta_P)
        jacobian_QP = self.law.penalty_jacobian(theta_P)
        return np.concatenate(
            [
                (slope[:count] / self.scale)[:, None] * jacobian_RP,
                (slope[count:] * self.strength)[:, None] * jacobian_QP,
            ]
        )

    def _huber_root(self, theta_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns f with f^2 / 2 = w rho(u) and the sign of u, and its derivative by u."""
        # MINPACK asks for the Jacobian where it has just asked for the values.
        if self._last is not None and np.array_equal(self._last[0], theta_P):
            return self._last[1:]
        misfit_R = (self.law.predict(self.r_RM, theta_P) - self.y_R) / self.scale
        u = np.concatenate([misfit_R, self.strength * self.law.penalty(theta_P)])
        size = np.abs(u)
        if size.max() <= HUBER:
            value, slope = u, np.ones_like(u)
        else:
            root = np.sqrt(2 * HUBER * np.maximum(size, HUBER) - HUBER**2)
            excess = size > HUBER
            value = np.where(excess, np.copysign(root, u), u)
            slope = np.where(excess, HUBER / root, 1.0)
        if self.root_R is not None:
            value[: len(self.root_R)] *= self.root_R
            slope[: len(self.root_R)] *= self.root_R
        self._last = theta_P.copy(), value, slope
        return value, slope

    def objective(self, theta_P: np.ndarray) -> float:
        value = self.values(theta_P)
        return float(value @ value) / 2

    def effective_parameters(
        self, theta_P: Float[np.ndarray, " P"], free_P: Bool[np.ndarray, " P"]
    ) -> float:
        """Returns how many parameters the runs decide, rather than the shrinkage or a bound."""
        orthogonal, _ = np.linalg.qr(self.jacobian(theta_P)[:, free_P])
        return float(np.sum(orthogonal[: len(self.y_R)] ** 2))


@dataclass(frozen=True, slots=True, eq=False)
class _End:
    """Where one descent ended."""

    theta_P: Float[np.ndarray, " P"]
    objective: float
    free_P: Bool[np.ndarray, " P"]
    """Parameters that are not held by a bound."""
    message: str
    """Why it did not converge; empty where it did."""


def _descend(problem: _Problem, start_P: Float[np.ndarray, " P"], tolerance: float) -> _End:
    """Returns the local minimum within the bounds.

    MINPACK knows no bounds: a parameter that leaves them is held at its bound while the others go
    on, and is let go again when the slope there points inwards.
    """
    low_P, high_P = problem.low_P, problem.high_P
    theta_P = np.clip(start_P, low_P, high_P)
    free_P = (theta_P > low_P) & (theta_P < high_P)
    releases = 0
    for _ in range(MAX_ROUNDS):
        if free_P.any():
            theta_P, done = _minimize_free(problem, theta_P, free_P, tolerance)
            outside_P = (theta_P < low_P) | (theta_P > high_P)
            if outside_P.any():
                theta_P = np.clip(theta_P, low_P, high_P)
                free_P &= ~outside_P
                continue
            if not done:
                continue
        slope_P = problem.jacobian(theta_P).T @ problem.values(theta_P)
        inward_P = ~free_P & np.where(theta_P <= low_P, slope_P < 0, slope_P > 0)
        if not inward_P.any() or releases == MAX_RELEASES:
            return _End(theta_P, problem.objective(theta_P), free_P, "")
        free_P |= inward_P
        releases += 1
    message = f"no minimum after {MAX_ROUNDS * ROUND_EVALUATIONS} evaluations"
    return _End(theta_P, problem.objective(theta_P), free_P, message)


def _minimize_free(
    problem: _Problem,
    base_P: Float[np.ndarray, " P"],
    free_P: Bool[np.ndarray, " P"],
    tolerance: float,
) -> tuple[Float[np.ndarray, " P"], bool]:
    """Returns where one round of MINPACK ends, maybe outside the bounds, and if it converged."""
    # Steps that go far out are refused anyway; this keeps exp() of them finite.
    width_P = problem.high_P - problem.low_P
    least_P, most_P = problem.low_P - width_P, problem.high_P + width_P

    def whole(free: np.ndarray) -> np.ndarray:
        theta_P = base_P.copy()
        theta_P[free_P] = free
        return np.minimum(np.maximum(theta_P, least_P), most_P)

    free, _, _, _, status = leastsq(
        lambda free: problem.values(whole(free)),
        base_P[free_P],
        Dfun=lambda free: problem.jacobian(whole(free))[:, free_P],
        full_output=True,
        ftol=tolerance,
        xtol=tolerance,
        gtol=0.0,
        maxfev=ROUND_EVALUATIONS,
    )
    # 5: too many evaluations; 6 to 8: no further decrease is possible in float64
    return whole(free), status != 5
