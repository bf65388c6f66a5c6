"""A mixture's predicted loss over the steps of the runs: the law fitted anew at each of them.

Shape letters: S steps, R runs, M training domains, T targets, X mixtures, P parameters, B draws.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from mixlaw.fit.law import DRAW_TOLERANCE
from mixlaw.fit.result import FitResult
from mixlaw.fit.solver import Problems, minimize_problems
from mixlaw.mixtures import Mixture
from mixlaw.predict import weight_row

EARLY = 0.1
"""Steps before this share of the last one follow another law and are left out."""
MOST_STEPS = 5
"""Steps of a curve that are fitted: neighbours say the same again."""
NEARLY_ALL = 0.9
"""A step counts when this share of the runs was observed there."""
CURVE_DRAWS = 20
"""Bootstrap draws of the law at each step."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepLosses:
    """Losses of a fit's runs (or of its mixtures, at another scale) at several steps."""

    steps: tuple[int, ...]
    """Ascending; the last one is that of the fit."""
    y_SRT: Float[np.ndarray, "S R T"]
    """In the order of the fit's table."""
    tokens_per_step: float | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepCurve:
    """A mixture's predicted loss over the steps of the runs."""

    steps: tuple[int, ...]
    """Ascending; the last one is the end of the runs."""
    loss_S: Float[np.ndarray, " S"]
    draws_BS: Float[np.ndarray, "B S"]
    """Bootstrap draws, joint over steps."""
    tokens_per_step: float | None


def read_step_losses(fit: FitResult, runs: pl.DataFrame, observations: pl.DataFrame) -> StepLosses:
    """Returns the losses of a fit's runs at the steps up to its own that nearly all of them have.

    Args:
        fit: The fit; its targets and runs are taken.
        runs: The runs table.
        observations: Their losses at all steps.
    """
    index = {run_id: i for i, run_id in enumerate(fit.table.run_ids)}
    rows = observations.filter(
        pl.col("run_id").is_in(list(index)), pl.col("target").is_in(list(fit.targets))
    )
    last = rows["step"].max() if fit.table.step is None else fit.table.step
    rows = rows.filter(pl.col("step") <= last, pl.col("step") > 0)
    counts = rows.group_by("step").agg(pl.col("run_id").n_unique().alias("count")).sort("step")
    common = counts.filter(pl.col("count") >= NEARLY_ALL * len(index))["step"].to_list()
    steps = _thinned([step for step in common if step >= EARLY * common[-1]])
    y_SRT = np.full((len(steps), len(index), len(fit.targets)), np.nan)
    step_of = {step: s for s, step in enumerate(steps)}
    column_of = {target: t for t, target in enumerate(fit.targets)}
    for run_id, step, target, value in (
        rows.filter(pl.col("step").is_in(steps))
        .select("run_id", "step", "target", "value")
        .iter_rows()
    ):
        cell = step_of[step], index[run_id], column_of[target]
        y_SRT[cell] = math.nan if value is None else value
    mine = runs.filter(pl.col("run_id").is_in(list(index)))
    known = mine["tokens_per_step"].drop_nulls().unique().to_list()
    return StepLosses(
        steps=tuple(steps),
        y_SRT=y_SRT,
        tokens_per_step=float(known[0]) if len(known) == 1 else None,
    )


def predict_step_curves(
    fit: FitResult,
    losses: StepLosses,
    mixtures: Mapping[str, Mixture],
    weights: Mapping[str, float],
    *,
    seed: int = 0,
) -> dict[str, StepCurve]:
    """Returns the weighted loss of mixtures at every step, by the fit's law fitted anew at each.

    Args:
        fit: The fit at the last step; its law, shrinkage and residuals' scale hold for all steps.
        losses: What its runs lost at each step.
        mixtures: Which mixtures, by name.
        weights: Weights of targets.
        seed: Seed of the bootstrap, whose weights are the same at each step.
    """
    weight_T = weight_row(fit, weights)[0]
    used_T = weight_T > 0
    num_steps, num_runs, _ = losses.y_SRT.shape
    ids = {name: g for g, name in enumerate(sorted(set(fit.table.mixture_ids)))}
    group_R = np.array([ids[name] for name in fit.table.mixture_ids])
    drawn_BG = np.random.default_rng(seed).exponential(size=(CURVE_DRAWS, len(ids)))
    weight_BR = np.vstack([np.ones((1, num_runs)), drawn_BG[:, group_R]])
    num_draws, num_targets = len(weight_BR), int(used_T.sum())
    y_CR = losses.y_SRT[:, :, used_T].transpose(0, 2, 1).reshape(-1, num_runs)
    strength_T = np.array([status.strength for status in fit.status])[used_T]
    problems = Problems.of(
        fit.law,
        fit.table.r_RM,
        np.tile(y_CR, (num_draws, 1)),
        scale_B=np.tile(fit.scale_T[used_T], num_draws * num_steps),
        strength_B=np.tile(strength_T, num_draws * num_steps),
        weight_BR=np.repeat(weight_BR, num_steps * num_targets, axis=0),
    )
    start_BP = np.tile(fit.theta_TP[used_T], (num_draws * num_steps, 1))
    with threadpool_limits(limits=1):
        ends = minimize_problems(problems, start_BP, tolerance=DRAW_TOLERANCE)
    r_XM = np.stack([mixture.array(fit.domains) for mixture in mixtures.values()])
    loss_BX = fit.law.predict(r_XM, ends.theta_BP)
    loss_BSTX = loss_BX.reshape(num_draws, num_steps, num_targets, len(r_XM))
    loss_BSX = np.einsum("bstx,t->bsx", loss_BSTX, weight_T[used_T])
    return {
        name: StepCurve(
            steps=losses.steps,
            loss_S=loss_BSX[0, :, x],
            draws_BS=loss_BSX[1:, :, x],
            tokens_per_step=losses.tokens_per_step,
        )
        for x, name in enumerate(mixtures)
    }


def _thinned(steps: list[int]) -> list[int]:
    """Returns at most a few of many steps, evenly spaced, the first and the last among them."""
    if len(steps) <= MOST_STEPS:
        return steps
    wanted = np.linspace(0, len(steps) - 1, MOST_STEPS).round().astype(int)
    return [steps[i] for i in wanted]
