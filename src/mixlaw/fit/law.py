"""The one entry point of fits: a law, runs and observations in, a `FitResult` out.

Shape letters: R runs, M training domains, T targets, P parameters, B bootstrap draws, G mixtures,
N runs that repeat a mixture.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int
from threadpoolctl import threadpool_limits

from mixlaw.errors import FitError, TableError
from mixlaw.fit.noise import level_shift, replicate_residuals
from mixlaw.fit.result import FitResult, TargetStatus
from mixlaw.fit.solver import (
    LEAST_SCALE,
    Candidate,
    Solution,
    choose_strength,
    first_candidate,
    settle_scale,
    solve_target,
    try_strengths,
)
from mixlaw.laws.base import MixingLaw
from mixlaw.laws.mixing import ExponentialLaw
from mixlaw.observations import LossTable, check_observations, check_runs, loss_table

FITTED_ROLES = ("design", "imported")
"""Roles of runs that a law is fitted to."""
LITTLE = 0.5
"""A law that explains less of a loss' variance than this is said to."""
FAR_OFF = 8.0
"""Residuals larger than this many usual ones are far off the law."""
NEARLY_ALL = 0.9
"""A step counts as common when this share of the runs was observed there."""
COMPARED_ROLES = (*FITTED_ROLES, "noise")
"""Roles of runs that say how much a mixture's loss differs between seeds."""


def fit_law(
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    *,
    law: MixingLaw | None = None,
    targets: Sequence[str] | None = None,
    step: int | None = None,
    params: float | None = None,
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
        params: Of which model size (parameters without embeddings); the largest by default.
        num_draws: Bootstrap draws.
        seed: Seed of the bootstrap.
        on_progress: Called with the share that is done.

    Raises:
        TableError: The tables are not what they must be.
        FitError: A target has losses of fewer than four mixtures, or one that is not finite.
    """
    law = ExponentialLaw() if law is None else law
    runs, observations = check_runs(runs), check_observations(observations)
    runs, notes = _one_size(runs, params)
    if step is None:
        step, left_out = _last_common_step(runs, observations)
        notes += left_out
    fitted = loss_table(runs, observations, targets=targets, roles=FITTED_ROLES, step=step)
    compared = loss_table(
        runs, observations, targets=fitted.targets, roles=COMPARED_ROLES, step=fitted.step
    )
    fit = fit_table(
        law, fitted, compared=compared, num_draws=num_draws, seed=seed, on_progress=on_progress
    )
    return replace(fit, notes=notes)


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
    _check_table(fitted)
    compared = fitted if compared is None else compared
    group_R = _group_index(fitted.mixture_ids)
    rng = np.random.default_rng(seed)
    # Bayesian bootstrap: every mixture keeps some weight, its replicates share it.
    weight_BG = rng.exponential(size=(num_draws, int(group_R.max()) + 1))
    num_targets = len(fitted.targets)
    solutions: list[Solution] = []
    chosen: list[Candidate] = []
    left_out: list[np.ndarray] = []
    draws: list[np.ndarray] = []
    with threadpool_limits(limits=1):
        for i in range(num_targets):
            target = _TargetFit(law, fitted.r_RM, fitted.y_RT[:, i])
            solutions.append(target.solution)
            chosen.append(target.chosen)
            left_out.append(target.leave_out(group_R))
            draws.append(target.reweight(weight_BG[:, group_R]))
            if on_progress is not None:
                on_progress((i + 1) / num_targets)
    shift_T, seed_factor = level_shift(fitted, compared)
    replicate_NT, freedom = replicate_residuals(compared)
    return FitResult(
        law=law,
        table=fitted,
        theta_TP=np.stack([solution.theta_P for solution in solutions]),
        theta_loo_RTP=np.stack(left_out, axis=1),
        theta_draws_BTP=np.stack(draws, axis=1),
        scale_T=np.array([candidate.scale for candidate in chosen]),
        replicate_NT=replicate_NT,
        replicate_freedom=freedom,
        level_shift_T=shift_T,
        seed_factor=seed_factor,
        status=tuple(
            _describe(law, fitted, i, solution, candidate.strength)
            for i, (solution, candidate) in enumerate(zip(solutions, chosen, strict=True))
        ),
    )


class _TargetFit:
    """One target's fit to all runs, and its refits: without a mixture, or with other weights."""

    def __init__(
        self, law: MixingLaw, r_RM: Float[np.ndarray, "R M"], y_R: Float[np.ndarray, " R"]
    ) -> None:
        self.law, self.r_RM, self.y_R = law, r_RM, y_R
        self.known_R = np.isfinite(y_R)
        r_RM, y_R = r_RM[self.known_R], y_R[self.known_R]
        self.tried = try_strengths(law, r_RM, y_R, start=first_candidate(law, r_RM, y_R))
        self.chosen = choose_strength(self.tried)
        self.solution = solve_target(
            law,
            r_RM,
            y_R,
            scale=self.chosen.scale,
            strength=self.chosen.strength,
            starts_SP=np.vstack([self.chosen.theta_P[None], law.starts(r_RM, y_R)]),
        )

    def leave_out(self, group_R: Int[np.ndarray, " R"]) -> Float[np.ndarray, "R P"]:
        """Returns, for each run, the parameters without its mixture.

        Scale and strength of the shrinkage are chosen anew without it.
        """
        by_group = {group: self._without(group_R == group) for group in np.unique(group_R)}
        return np.stack([by_group[group] for group in group_R])

    def _without(self, left_out_R: Bool[np.ndarray, " R"]) -> Float[np.ndarray, " P"]:
        keep_R = self.known_R & ~left_out_R
        r_RM, y_R = self.r_RM[keep_R], self.y_R[keep_R]
        tried = [settle_scale(self.law, r_RM, y_R, start=start) for start in self.tried]
        return self._solve(keep_R, choose_strength(tried), None)

    def reweight(self, weight_BR: Float[np.ndarray, "B R"]) -> Float[np.ndarray, "B P"]:
        """Returns the parameters for each row of weights, at the scale and strength of the fit."""
        start = replace(self.chosen, theta_P=self.solution.theta_P)
        return np.stack([self._solve(self.known_R, start, weight_R) for weight_R in weight_BR])

    def _solve(
        self,
        keep_R: Bool[np.ndarray, " R"],
        start: Candidate,
        weight_R: Float[np.ndarray, " R"] | None,
    ) -> Float[np.ndarray, " P"]:
        return solve_target(
            self.law,
            self.r_RM[keep_R],
            self.y_R[keep_R],
            scale=start.scale,
            strength=start.strength,
            starts_SP=start.theta_P[None],
            weight_R=None if weight_R is None else weight_R[keep_R],
            tolerance=1e-8,
        ).theta_P


def _group_index(mixture_ids: Sequence[str]) -> Int[np.ndarray, " R"]:
    # Sorted, so that a mixture has the same bootstrap weights whatever the order of the runs.
    index = {mixture_id: i for i, mixture_id in enumerate(sorted(set(mixture_ids)))}
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


def _describe(
    law: MixingLaw, fitted: LossTable, i: int, solution: Solution, strength: float
) -> TargetStatus:
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
    sentences.extend(_describe_residuals(law, fitted, i, solution.theta_P))
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
        strength=strength,
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


def _one_size(runs: pl.DataFrame, params: float | None) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Returns the runs of one model size, and what was left out: the law knows nothing of size."""
    fitted = runs.filter(pl.col("role").is_in(FITTED_ROLES))
    sizes = fitted["params_non_embedding"].drop_nulls().unique().sort()
    if params is None and sizes.len():
        params = float(sizes[-1])
    if params is None:
        return runs, ()
    chosen = runs.filter(pl.col("params_non_embedding") == params)
    if not chosen.height:
        known = ", ".join(f"{size:.6g}" for size in sizes)
        raise FitError(f"no run has {params:.6g} parameters", do=f"the sizes are {known}")
    others = fitted.height - chosen.filter(pl.col("role").is_in(FITTED_ROLES)).height
    if not others:
        return chosen, ()
    return chosen, (
        f"{others} runs of another or an unknown size are left out; the law is for"
        f" {params:.6g} parameters",
    )


def _last_common_step(
    runs: pl.DataFrame, observations: pl.DataFrame
) -> tuple[int, tuple[str, ...]]:
    """Returns the last step that nearly all fitted runs reached, and which runs did not."""
    fitted = runs.filter(
        pl.col("role").is_in(FITTED_ROLES), pl.col("status").fill_null("done") == "done"
    ).select("run_id")
    rows = observations.join(fitted, on="run_id", how="semi").select("run_id", "step").unique()
    num_runs = rows["run_id"].n_unique()
    if num_runs == 0:
        raise TableError(
            "no finished run has an observation",
            do="train some with `mixlaw run`, or import them with `mixlaw import`",
        )
    counts = rows.group_by("step").len().sort("step")
    common = counts.filter(pl.col("len") >= NEARLY_ALL * num_runs)
    if not common.height:
        last = ", ".join(f"{step} ({count})" for step, count in counts.tail(3).iter_rows())
        raise FitError(
            f"the {num_runs} runs have no step in common; the last ones, with their runs: {last}",
            do="name one with `--step`; runs that were not observed there are left out",
        )
    step, count = common.row(-1)
    if count == num_runs:
        return int(step), ()
    missing = rows.filter(~pl.col("run_id").is_in(rows.filter(pl.col("step") == step)["run_id"]))
    return int(step), (
        f"{num_runs - count} of {num_runs} runs have no loss at step {step} and are left out, run"
        f" {missing['run_id'].min()!r} for one",
    )
