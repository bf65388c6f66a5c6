"""The one entry point of fits: a law, runs and observations in, a `FitResult` out.

Shape letters: R runs, M training domains, T targets, P parameters, B bootstrap draws, G mixtures,
N runs that repeat a mixture.
"""

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from mixlaw.errors import FitError, TableError
from mixlaw.fit.noise import level_shift, replicate_residuals
from mixlaw.fit.result import FitResult, TargetStatus
from mixlaw.fit.solver import (
    FIRST_SCALE,
    Solution,
    residual_scale,
    solve_target,
    spread,
)
from mixlaw.laws.base import MixingLaw
from mixlaw.laws.mixing import ExponentialLaw
from mixlaw.observations import LossTable, loss_table

FITTED_ROLES = ("design", "imported")
"""Roles of runs that a law is fitted to."""
COMPARED_ROLES = (*FITTED_ROLES, "noise")
"""Roles of runs that say how much a mixture's loss differs between seeds."""


def fit_law(
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    *,
    law: MixingLaw | None = None,
    targets: Sequence[str] | None = None,
    step: int | None = None,
    num_draws: int = 200,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> FitResult:
    """Returns a mixing law fitted to every target, with its left-out errors and bootstrap draws.

    Args:
        runs: The runs table (`mixlaw.observations`); runs with the role design or imported are
            fitted, those with the role noise say how much seeds differ.
        observations: The observation table.
        law: Which law; M4 by default.
        targets: Which targets; all by default.
        step: At which step; the last one that all fitted runs have, by default.
        num_draws: Bootstrap draws.
        seed: Seed of the bootstrap.
        on_progress: Called with the share that is done.

    Raises:
        TableError: The tables are not what they must be.
        FitError: Fewer than three mixtures, or a target without losses.
    """
    law = ExponentialLaw() if law is None else law
    step = _last_shared_step(runs, observations) if step is None else step
    fitted = loss_table(runs, observations, targets=targets, roles=FITTED_ROLES, step=step)
    compared = loss_table(
        runs, observations, targets=fitted.targets, roles=COMPARED_ROLES, step=fitted.step
    )
    return fit_table(
        law, fitted, compared=compared, num_draws=num_draws, seed=seed, on_progress=on_progress
    )


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
    _check_table(fitted)
    compared = fitted if compared is None else compared
    group_R = _group_index(fitted.mixture_ids)
    rng = np.random.default_rng(seed)
    # Bayesian bootstrap: every mixture keeps some weight, its replicates share it.
    weight_BG = rng.exponential(size=(num_draws, int(group_R.max()) + 1))
    num_targets = len(fitted.targets)
    solutions: list[Solution] = []
    scales: list[float] = []
    left_out: list[np.ndarray] = []
    draws: list[np.ndarray] = []
    with threadpool_limits(limits=1):
        for i in range(num_targets):
            solution, scale = _fit_target(law, fitted.r_RM, fitted.y_RT[:, i])
            solutions.append(solution)
            scales.append(scale)
            refit = _Refit(law, fitted.r_RM, fitted.y_RT[:, i], scale, solution.theta_P)
            left_out.append(refit.leave_out(group_R))
            draws.append(refit.reweight(weight_BG[:, group_R]))
            if on_progress is not None:
                on_progress((i + 1) / num_targets)
    shift_T, shift_freedom = level_shift(fitted, compared)
    replicate_NT, freedom = replicate_residuals(compared)
    return FitResult(
        law=law,
        table=fitted,
        theta_TP=np.stack([solution.theta_P for solution in solutions]),
        theta_loo_RTP=np.stack(left_out, axis=1),
        theta_draws_BTP=np.stack(draws, axis=1),
        scale_T=np.array(scales),
        replicate_NT=replicate_NT,
        replicate_freedom=freedom,
        level_shift_T=shift_T,
        level_freedom=shift_freedom,
        status=tuple(_describe(law, fitted, i, solution) for i, solution in enumerate(solutions)),
    )


def _fit_target(
    law: MixingLaw, r_RM: Float[np.ndarray, "R M"], y_R: Float[np.ndarray, " R"]
) -> tuple[Solution, float]:
    known_R = np.isfinite(y_R)
    r_RM, y_R = r_RM[known_R], y_R[known_R]
    starts_SP = law.starts(r_RM, y_R)
    first = solve_target(law, r_RM, y_R, scale=FIRST_SCALE * spread(y_R), starts_SP=starts_SP)
    scale = residual_scale(law, r_RM, y_R, first.theta_P)
    starts_SP = np.vstack([first.theta_P[None], starts_SP])
    return solve_target(law, r_RM, y_R, scale=scale, starts_SP=starts_SP), scale


class _Refit:
    """Refits of one target from its solution: without a mixture, or with other weights."""

    def __init__(
        self,
        law: MixingLaw,
        r_RM: Float[np.ndarray, "R M"],
        y_R: Float[np.ndarray, " R"],
        scale: float,
        start_P: Float[np.ndarray, " P"],
    ) -> None:
        self.law, self.r_RM, self.y_R = law, r_RM, y_R
        self.scale, self.start_P = scale, start_P
        self.known_R = np.isfinite(y_R)

    def leave_out(self, group_R: Int[np.ndarray, " R"]) -> Float[np.ndarray, "R P"]:
        """Returns, for each run, the parameters without its mixture."""
        by_group = {
            group: self._solve(self.known_R & (group_R != group), None)
            for group in np.unique(group_R)
        }
        return np.stack([by_group[group] for group in group_R])

    def reweight(self, weight_BR: Float[np.ndarray, "B R"]) -> Float[np.ndarray, "B P"]:
        """Returns the parameters for each row of weights."""
        return np.stack([self._solve(self.known_R, weight_R) for weight_R in weight_BR])

    def _solve(
        self, keep_R: np.ndarray, weight_R: Float[np.ndarray, " R"] | None
    ) -> Float[np.ndarray, " P"]:
        return solve_target(
            self.law,
            self.r_RM[keep_R],
            self.y_R[keep_R],
            scale=self.scale,
            starts_SP=self.start_P[None],
            weight_R=None if weight_R is None else weight_R[keep_R],
        ).theta_P


def _group_index(mixture_ids: Sequence[str]) -> Int[np.ndarray, " R"]:
    index = {mixture_id: i for i, mixture_id in enumerate(dict.fromkeys(mixture_ids))}
    return np.array([index[mixture_id] for mixture_id in mixture_ids])


def _check_table(fitted: LossTable) -> None:
    for i, target in enumerate(fitted.targets):
        y_R = fitted.y_RT[:, i]
        infinite = np.flatnonzero(np.isinf(y_R))
        if len(infinite):
            raise FitError(
                f"losses must be finite, but run {fitted.run_ids[infinite[0]]!r} has"
                f" {y_R[infinite[0]]} for {target!r}",
                do="mark the run as failed, or leave it out of the import",
            )
        mixtures = {fitted.mixture_ids[j] for j in np.flatnonzero(np.isfinite(y_R))}
        if len(mixtures) < 4:
            raise FitError(
                f"a fit needs the losses of at least 4 mixtures, but {target!r} has"
                f" {len(mixtures)}",
                do="train or import more mixtures, about three per domain",
            )


def _describe(law: MixingLaw, fitted: LossTable, i: int, solution: Solution) -> TargetStatus:
    known_R = np.isfinite(fitted.y_RT[:, i])
    low_P, high_P = law.bounds(fitted.r_RM[known_R], fitted.y_RT[known_R, i])
    near_P = 1e-4 * np.maximum(high_P - low_P, 1e-12)
    names = law.parameter_names(fitted.domains)
    theta_P = solution.theta_P
    at_bound = tuple(
        name
        for name, value, low, high, near in zip(names, theta_P, low_P, high_P, near_P, strict=True)
        if value - low < near or high - value < near
    )
    sentences: list[str] = []
    if not solution.converged:
        sentences.append(f"did not converge ({solution.message.rstrip('.')})")
    if at_bound:
        sentences.append(f"{', '.join(at_bound)} at a bound, not estimated")
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
        target=fitted.targets[i],
        converged=solution.converged,
        sentence="; ".join(sentences) or "converged",
        at_bound=at_bound,
        num_starts=solution.num_starts,
        starts_agreeing=solution.starts_agreeing,
    )


def _last_shared_step(runs: pl.DataFrame, observations: pl.DataFrame) -> int:
    """Returns the last step at which every fitted run was observed."""
    fitted = runs.filter(pl.col("role").is_in(FITTED_ROLES)).select("run_id")
    rows = observations.join(fitted, on="run_id", how="semi").select("run_id", "step").unique()
    num_runs = rows["run_id"].n_unique()
    if num_runs == 0:
        raise TableError(
            "no finished run has an observation",
            do="train some with `mixlaw run`, or import them with `mixlaw import`",
        )
    shared = rows.group_by("step").len().filter(pl.col("len") == num_runs)
    if not shared.height:
        raise FitError(
            f"the {num_runs} runs have no step in common",
            do="name one with `--step`; runs that were not observed there are left out",
        )
    return int(shared["step"].max())  # pyright: ignore[reportArgumentType]
