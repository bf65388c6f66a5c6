"""The one entry point of fits: a law, runs and observations in, a `FitResult` out.

Shape letters: R runs, M training domains, T targets, P parameters, B bootstrap draws, G mixtures,
N runs that repeat a mixture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from mixlaw.errors import FitError
from mixlaw.fit.fitted_runs import check_table, read_fitted
from mixlaw.fit.noise import level_shift, replicate_residuals
from mixlaw.fit.result import CONVERGED, FitResult, TargetStatus
from mixlaw.fit.solver import MAX_ITERATIONS, Problems, minimize_problems
from mixlaw.fit.stacked import stack_fits
from mixlaw.fit.strength import (
    LEAST_SCALE,
    Candidates,
    Solutions,
    choose_strength,
    retry_strengths,
    solve_starts,
    try_strengths,
)
from mixlaw.laws.base import MixingLaw
from mixlaw.laws.library import MIXING_LAWS
from mixlaw.laws.stack import StackedLaw
from mixlaw.observations import LossTable

TARGETS_AT_ONCE = 8
"""Targets that are fitted in the same calls."""
DRAW_TOLERANCE = 1e-5
"""Tolerance of the bootstrap's refits, relative to the objective: predictions are then within 0.04
residual scales of those at 1e-7, where draws spread 0.36 (docs/log.md)."""
MOST_FOLDS = 100
"""Mixtures are left out one at a time up to this many; beyond, in this many folds, so that the cost
grows as the runs do."""
LITTLE = 0.5
"""A law that explains less of a loss' variance than this is said to."""
FAR_OFF = 8.0
"""Residuals larger than this many usual ones are far off the law."""


def fit_law(
    law: MixingLaw | str,
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    *,
    targets: Sequence[str] | None = None,
    step: int | None = None,
    params: float | None = None,
    num_draws: int = 200,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> FitResult:
    """Returns a mixing law fitted to every target, with its left-out errors and bootstrap draws.

    Args:
        law: Which law, or its name in `MIXING_LAWS`; `mixlaw.selection.select_law` finds out which
            one predicts best.
        runs: The runs table (`mixlaw.observations`); runs with the role design or imported are
            fitted, those with the role noise say how much seeds differ.
        observations: The observation table.
        targets: Which targets; all by default.
        step: At which step; the last one that all fitted runs have, by default.
        params: Of which model size (parameters without embeddings); the largest by default.
        num_draws: Bootstrap draws.
        seed: Seed of the bootstrap.
        on_progress: Called with the share that is done.

    Raises:
        TableError: The tables are not what they must be.
        FitError: There is no such law, or a target has losses of fewer than four mixtures, or one
            that is not finite.
    """
    law = find_law(law)
    found = read_fitted(runs, observations, targets=targets, step=step, params=params)
    fit = fit_table(
        law,
        found.fitted,
        compared=found.compared,
        num_draws=num_draws,
        seed=seed,
        on_progress=on_progress,
    )
    return replace(fit, notes=found.notes)


def find_law(law: MixingLaw | str) -> MixingLaw:
    """Returns the law of a name, or the law that it is already.

    Raises:
        FitError: There is none of that name.
    """
    if isinstance(law, MixingLaw):
        return law
    if law not in MIXING_LAWS:
        raise FitError(f"there is no law {law!r}", do=f"the laws are {', '.join(MIXING_LAWS)}")
    return MIXING_LAWS[law]


def fit_table(
    law: MixingLaw,
    fitted: LossTable,
    *,
    compared: LossTable | None = None,
    num_draws: int = 200,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> FitResult:
    """Returns the law fitted to a table of losses; `compared` adds runs that repeat mixtures."""
    if num_draws < 1:
        raise FitError(f"the bootstrap needs at least one draw, found {num_draws}")
    check_table(fitted)
    compared = fitted if compared is None else compared
    if isinstance(law, StackedLaw):
        return _fit_members(
            law, fitted, compared=compared, num_draws=num_draws, seed=seed, on_progress=on_progress
        )
    group_R = _group_index(fitted.mixture_ids)
    rng = np.random.default_rng(seed)
    # Bayesian bootstrap: every mixture keeps some weight, its replicates share it.
    weight_BG = rng.exponential(size=(num_draws, int(group_R.max()) + 1))
    num_targets = len(fitted.targets)
    parts: list[_TargetsFit] = []
    with threadpool_limits(limits=1):
        # A few targets at a time: together they are faster, but somebody watches the progress.
        for first in range(0, num_targets, TARGETS_AT_ONCE):
            y_TR = fitted.y_RT[:, first : first + TARGETS_AT_ONCE].T
            parts.append(_fit_targets(law, fitted.r_RM, y_TR, group_R, weight_BG[:, group_R]))
            if on_progress is not None:
                on_progress(min(1.0, (first + TARGETS_AT_ONCE) / num_targets))
    shift_T, seed_factor = level_shift(fitted, compared)
    replicate_NT, freedom = replicate_residuals(compared)
    return FitResult(
        law=law,
        table=fitted,
        theta_TP=np.concatenate([part.solutions.theta_BP for part in parts]),
        theta_loo_RTP=np.concatenate([part.theta_loo_RTP for part in parts], axis=1),
        theta_draws_BTP=np.concatenate([part.theta_draws_BTP for part in parts], axis=1),
        scale_T=np.concatenate([part.chosen.scale_B for part in parts]),
        replicate_NT=replicate_NT,
        replicate_freedom=freedom,
        level_shift_T=shift_T,
        seed_factor=seed_factor,
        status=tuple(
            _describe(law, fitted, n * TARGETS_AT_ONCE + i, part, i)
            for n, part in enumerate(parts)
            for i in range(len(part.solutions.theta_BP))
        ),
    )


def _fit_members(
    law: StackedLaw,
    fitted: LossTable,
    *,
    compared: LossTable,
    num_draws: int,
    seed: int,
    on_progress: Callable[[float], None] | None,
) -> FitResult:
    """Returns the stack of fits: each member on its own, under the same draws of the bootstrap."""
    fits: list[FitResult] = []
    for member in law.laws:
        done = len(fits)

        def tell(share: float, done: int = done) -> None:
            if on_progress is not None:
                on_progress((done + share) / len(law.laws))

        fits.append(
            fit_table(
                member,
                fitted,
                compared=compared,
                num_draws=num_draws,
                seed=seed,
                on_progress=tell,
            )
        )
    return stack_fits(law, fits)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _TargetsFit:
    """The fits of some targets to all runs, and their refits."""

    chosen: Candidates
    solutions: Solutions
    theta_loo_RTP: Float[np.ndarray, "R T P"]
    """For each run, the parameters without its mixture: scale and strength are chosen anew."""
    theta_draws_BTP: Float[np.ndarray, "B T P"]
    """The parameters for each row of weights, at the scale and strength of the fit."""


def _fit_targets(
    law: MixingLaw,
    r_RM: Float[np.ndarray, "R M"],
    y_TR: Float[np.ndarray, "T R"],
    group_R: Int[np.ndarray, " R"],
    weight_BR: Float[np.ndarray, "B R"],
) -> _TargetsFit:
    tried = try_strengths(law, r_RM, y_TR)
    chosen = choose_strength(tried)
    solutions = solve_starts(
        law,
        r_RM,
        y_TR,
        scale_B=chosen.scale_B,
        strength_B=chosen.strength_B,
        start_BSP=np.concatenate([chosen.theta_BP[:, None], law.starts(r_RM, y_TR)], axis=1),
    )
    return _TargetsFit(
        chosen=chosen,
        solutions=solutions,
        theta_loo_RTP=_leave_out(law, r_RM, y_TR, group_R=group_R, tried=tried),
        theta_draws_BTP=_reweight(
            law, r_RM, y_TR, weight_BR=weight_BR, chosen=chosen, theta_TP=solutions.theta_BP
        ),
    )


def _leave_out(
    law: MixingLaw,
    r_RM: Float[np.ndarray, "R M"],
    y_TR: Float[np.ndarray, "T R"],
    *,
    group_R: Int[np.ndarray, " R"],
    tried: Sequence[Candidates],
) -> Float[np.ndarray, "R T P"]:
    num_groups, num_targets = int(group_R.max()) + 1, len(y_TR)
    order_G = np.random.default_rng(0).permutation(num_groups)
    fold_R = order_G[group_R] * min(num_groups, MOST_FOLDS) // num_groups
    folds = np.arange(int(fold_R.max()) + 1)
    y_BR = np.where((fold_R == folds[:, None])[:, None], np.nan, y_TR).reshape(-1, len(group_R))
    again = [part.select(np.tile(np.arange(num_targets), len(folds))) for part in tried]
    theta_BP = retry_strengths(law, r_RM, y_BR, tried=again).theta_BP
    return theta_BP.reshape(len(folds), num_targets, -1)[fold_R]


def _reweight(
    law: MixingLaw,
    r_RM: Float[np.ndarray, "R M"],
    y_TR: Float[np.ndarray, "T R"],
    *,
    weight_BR: Float[np.ndarray, "B R"],
    chosen: Candidates,
    theta_TP: Float[np.ndarray, "T P"],
) -> Float[np.ndarray, "B T P"]:
    num_draws, num_targets = len(weight_BR), len(y_TR)
    index = np.tile(np.arange(num_targets), num_draws)
    problems = Problems.of(
        law,
        r_RM,
        y_TR[index],
        scale_B=chosen.scale_B[index],
        strength_B=chosen.strength_B[index],
        weight_BR=np.repeat(weight_BR, num_targets, axis=0),
    )
    ends = minimize_problems(problems, theta_TP[index], tolerance=DRAW_TOLERANCE)
    return ends.theta_BP.reshape(num_draws, num_targets, -1)


def _group_index(mixture_ids: Sequence[str]) -> Int[np.ndarray, " R"]:
    # Sorted, so that a mixture has the same bootstrap weights whatever the order of the runs.
    index = {mixture_id: i for i, mixture_id in enumerate(sorted(set(mixture_ids)))}
    return np.array([index[mixture_id] for mixture_id in mixture_ids])


def _describe(
    law: MixingLaw, fitted: LossTable, column: int, part: _TargetsFit, i: int
) -> TargetStatus:
    """Returns the status of one column of the table, target `i` of its part."""
    solutions, theta_P = part.solutions, part.solutions.theta_BP[i]
    converged = bool(solutions.converged_B[i])
    known_R = np.isfinite(fitted.y_RT[:, column])
    low_P, high_P = law.bounds(fitted.r_RM[known_R], fitted.y_RT[known_R, column])
    near_P = 1e-4 * np.maximum(high_P - low_P, 1e-12)
    names = law.parameter_names(fitted.domains)
    at_bound = tuple(
        name
        for name, value, low, high, near in zip(names, theta_P, low_P, high_P, near_P, strict=True)
        if value - low < near or high - value < near
    )
    sentences: list[str] = []
    if not converged:
        sentences.append(f"did not converge in {MAX_ITERATIONS} steps")
    if at_bound:
        sentences.append(f"{', '.join(at_bound)} at a bound, not estimated")
    sentences.extend(_describe_residuals(law, fitted, column, theta_P))
    mixtures = len({fitted.mixture_ids[j] for j in np.flatnonzero(known_R)})
    if mixtures < 2.5 * len(names):
        sentences.append(
            f"{mixtures} mixtures for {len(names)} parameters: held by the shrinkage"
            if mixtures <= len(names)
            else f"{mixtures} mixtures for {len(names)} parameters, fewer than 2.5 for each"
        )
    if not known_R.all():
        sentences.append(f"{int((~known_R).sum())} of {len(known_R)} runs have no loss")
    return TargetStatus(
        target=fitted.targets[column],
        converged=converged,
        sentence="; ".join(sentences) or CONVERGED,
        at_bound=at_bound,
        num_starts=solutions.num_starts,
        starts_agreeing=int(solutions.agreeing_B[i]),
        strength=float(part.chosen.strength_B[i]),
    )


def _describe_residuals(
    law: MixingLaw, fitted: LossTable, i: int, theta_P: Float[np.ndarray, " P"]
) -> list[str]:
    """Returns sentences on a loss that mixtures hardly move, and on runs far off the law."""
    known = np.flatnonzero(np.isfinite(fitted.y_RT[:, i]))
    y_R = fitted.y_RT[known, i]
    if np.ptp(y_R) == 0:
        return ["all losses are equal"]
    residual_R = np.abs(y_R - law.predict(fitted.r_RM[known], theta_P))
    # 1.4826: a normal's standard deviation in median absolute deviations
    usual = max(1.4826 * float(np.median(residual_R)), LEAST_SCALE * float(np.std(y_R)))
    odd_R = residual_R > FAR_OFF * usual
    varies = max(float(np.var(y_R[~odd_R])), 1e-300)
    explained = 1 - float(np.mean(residual_R[~odd_R] ** 2)) / varies
    sentences: list[str] = []
    if explained < LITTLE:
        sentences.append(f"the mixtures explain only {max(explained, 0):.0%} of its variance")
    if odd_R.any():
        furthest = fitted.run_ids[known[np.argmax(residual_R)]]
        sentences.append(
            f"{odd_R.sum()} of {len(y_R)} runs lie far off the law, {furthest!r} furthest"
        )
    return sentences
