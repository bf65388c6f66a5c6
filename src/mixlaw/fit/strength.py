"""How a target is fitted: starts, the residuals' scale and the shrinkage, by one rule for all data.

Shape letters: B problems (targets, or targets without a mixture), R runs, M training domains, P
parameters, S starts.

The scale s of the residuals is Huber's proposal 2 with the effective number of parameters; the
strength lambda of the shrinkage is chosen by generalized cross-validation. Both come from the same
runs as the law.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from mixlaw.fit.solver import HUBER, Problems, minimize_problems
from mixlaw.laws.base import MixingLaw

HUBER_VARIANCE = 0.7102
"""Mean of min(|u|, HUBER)^2 for a standard normal u: what makes the scale one of normal noise."""
STRENGTHS = (1.0, 3.0, 30.0, 300.0)
"""Strengths of the shrinkage that are tried, in units of the law's prior, the weakest first. Where
the runs say little, the last one leaves about the mean of the losses: some no mixture moves."""
CLEARLY_BETTER = 0.9
"""A stronger shrinkage must lower the score of the cross-validation to this share of the best."""
FIRST_SCALE = 0.1
"""Scale of the residuals in the first fit, as a share of the losses' standard deviation."""
LEAST_SCALE = 1e-3
"""Floor of the scale, likewise: noiseless data must not turn the shrinkage off altogether."""
AGREEMENT = 1e-4
"""Starts agree when their objectives, log densities up to sign, are within this of the best."""
ROUGH = 1e-6
"""Tolerance of descents that are compared or go on; only the best is polished."""
FIRST_TOLERANCE = 1e-3
"""Tolerance of the first fit, whose scale is a guess: it finds out which start leads furthest."""
COARSE = 1e-5
"""Tolerance while the scale is still being found, and of starts that are compared."""
HOPELESS = 1.5
"""A strength that scores this many times worse than the best is left, and with it stronger ones."""
MAX_SCALE_ROUNDS = 10
"""Rounds of fitting and estimating the scale anew; three or four are usual."""
SETTLED = 0.01
"""A scale has settled when its logarithm changes by less."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Candidates:
    """Fits at one strength of the shrinkage, with the scales that their own residuals have."""

    strength_B: Float[np.ndarray, " B"]
    scale_B: Float[np.ndarray, " B"]
    theta_BP: Float[np.ndarray, "B P"]
    score_B: Float[np.ndarray, " B"]
    """Generalized cross-validation: the residuals' variance, times what fitted parameters hide."""

    def select(self, index_B: Int[np.ndarray, " C"]) -> "Candidates":
        """Returns some of the problems' fits."""
        return Candidates(
            strength_B=self.strength_B[index_B],
            scale_B=self.scale_B[index_B],
            theta_BP=self.theta_BP[index_B],
            score_B=self.score_B[index_B],
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Solutions:
    """The best of several starts, for each problem."""

    theta_BP: Float[np.ndarray, "B P"]
    objective_B: Float[np.ndarray, " B"]
    converged_B: Bool[np.ndarray, " B"]
    agreeing_B: Int[np.ndarray, " B"]
    """Starts that ended at the best objective."""
    num_starts: int


def spread(y_BR: Float[np.ndarray, "B R"]) -> Float[np.ndarray, " B"]:
    """Returns the losses' standard deviations, or a tiny positive number where all are equal."""
    return np.maximum(np.nanstd(y_BR, axis=1), 1e-9)


def try_strengths(
    law: MixingLaw,
    r_RM: Float[np.ndarray, "R M"],
    y_BR: Float[np.ndarray, "B R"],
) -> tuple[Candidates, ...]:
    """Returns fits from the law's own starts, for each strength of the shrinkage, weakest first.

    The score of a hopeless strength is infinite; stronger ones are not tried.
    """
    scale_B = FIRST_SCALE * spread(y_BR)
    best = solve_starts(
        law,
        r_RM,
        y_BR,
        scale_B=scale_B,
        strength_B=np.full(len(y_BR), STRENGTHS[0]),
        start_BSP=law.starts(r_RM, y_BR),
        tolerance=FIRST_TOLERANCE,
    )
    start = Candidates(
        strength_B=np.full(len(y_BR), STRENGTHS[0]),
        scale_B=scale_B,
        theta_BP=best.theta_BP,
        score_B=np.zeros(len(y_BR)),
    )
    tried: list[Candidates] = []
    best_B = np.full(len(y_BR), np.inf)
    for strength in STRENGTHS:
        strength_B = np.full(len(y_BR), strength)
        start = settle_scales(law, r_RM, y_BR, start=replace(start, strength_B=strength_B))
        best_B = np.minimum(best_B, start.score_B)
        start = replace(
            start, score_B=np.where(start.score_B > HOPELESS * best_B, np.inf, start.score_B)
        )
        tried.append(start)
    return tuple(tried)


def retry_strengths(
    law: MixingLaw,
    r_RM: Float[np.ndarray, "R M"],
    y_BR: Float[np.ndarray, "B R"],
    *,
    tried: Sequence[Candidates],
) -> Candidates:
    """Returns the choice for other problems like those tried, each from where these ended."""
    return choose_strength([settle_scales(law, r_RM, y_BR, start=start) for start in tried])


def choose_strength(tried: Sequence[Candidates]) -> Candidates:
    """Returns the fits with the least scores; a stronger shrinkage must be clearly better."""
    best = tried[0]
    for other in tried[1:]:
        better_B = other.score_B < CLEARLY_BETTER * best.score_B
        best = Candidates(
            strength_B=np.where(better_B, other.strength_B, best.strength_B),
            scale_B=np.where(better_B, other.scale_B, best.scale_B),
            theta_BP=np.where(better_B[:, None], other.theta_BP, best.theta_BP),
            score_B=np.where(better_B, other.score_B, best.score_B),
        )
    return best


def settle_scales(
    law: MixingLaw,
    r_RM: Float[np.ndarray, "R M"],
    y_BR: Float[np.ndarray, "B R"],
    *,
    start: Candidates,
) -> Candidates:
    """Returns fits whose residuals have the scales that they were fitted with.

    Hopeless ones are left as they are.
    """
    theta_BP, scale_B, score_B = start.theta_BP.copy(), start.scale_B.copy(), start.score_B.copy()
    problems = Problems.of(law, r_RM, y_BR, scale_B=scale_B, strength_B=start.strength_B)
    least_B = LEAST_SCALE * spread(y_BR)
    tried = np.flatnonzero(np.isfinite(score_B))
    index = tried
    for _ in range(MAX_SCALE_ROUNDS):
        if not len(index):
            break
        part = replace(problems.select(index), scale_B=scale_B[index])
        theta_BP[index] = minimize_problems(part, theta_BP[index], tolerance=COARSE).theta_BP
        found, score = _scales(part, theta_BP[index])
        found = np.maximum(found, least_B[index])
        moved = np.abs(np.log(found / scale_B[index])) >= SETTLED
        scale_B[index], score_B[index] = found, score
        index = index[moved]
    part = replace(problems.select(tried), scale_B=scale_B[tried])
    theta_BP[tried] = minimize_problems(part, theta_BP[tried], tolerance=ROUGH).theta_BP
    return replace(start, scale_B=scale_B, theta_BP=theta_BP, score_B=score_B)


def _scales(
    problems: Problems, theta_BP: Float[np.ndarray, "B P"]
) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
    """Returns Huber's proposal 2 for the scales, and the cross-validation's scores."""
    count_B = np.sum(problems.weight_BR > 0, axis=1)
    used_B = problems.effective_parameters(theta_BP)
    left_B = np.maximum(count_B - used_B, 1e-3 * count_B)
    off_BR = np.abs(problems.y_BR - problems.law.predict(problems.r_RM, theta_BP))
    misfit_BR = np.minimum(off_BR / problems.scale_B[:, None], HUBER)
    total_B = np.sum(np.where(problems.weight_BR > 0, misfit_BR, 0.0) ** 2, axis=1)
    scale_B = problems.scale_B * np.sqrt(total_B / (HUBER_VARIANCE * left_B))
    return scale_B, scale_B**2 * count_B / left_B


def solve_starts(
    law: MixingLaw,
    r_RM: Float[np.ndarray, "R M"],
    y_BR: Float[np.ndarray, "B R"],
    *,
    scale_B: Float[np.ndarray, " B"],
    strength_B: Float[np.ndarray, " B"],
    start_BSP: Float[np.ndarray, "B S P"],
    tolerance: float = 1e-12,
) -> Solutions:
    """Returns the best of several starts at given scales and strengths; the best is polished."""
    count, num_starts, size = start_BSP.shape
    problems = Problems.of(law, r_RM, y_BR, scale_B=scale_B, strength_B=strength_B)
    repeated = problems.select(np.repeat(np.arange(count), num_starts))
    rough = tolerance if num_starts == 1 else max(tolerance, COARSE)
    ends = minimize_problems(repeated, start_BSP.reshape(-1, size), tolerance=rough)
    objective_BS = ends.objective_B.reshape(count, num_starts)
    best_B = np.argmin(objective_BS, axis=1)
    theta_BP = ends.theta_BP.reshape(start_BSP.shape)[np.arange(count), best_B]
    best = minimize_problems(problems, theta_BP, tolerance=tolerance)
    agreed_B = best.objective_B + AGREEMENT * np.maximum(1.0, best.objective_B)
    return Solutions(
        theta_BP=best.theta_BP,
        objective_B=best.objective_B,
        converged_B=best.converged_B,
        agreeing_B=np.sum(objective_BS <= agreed_B[:, None], axis=1),
        num_starts=num_starts,
    )
