"""Losses of schedules as a law of schedules predicts them, and how that went where it was tried.

Shape letters: R runs, T targets, K columns of a prediction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from mixlaw.fit.result import evaluate_law
from mixlaw.fit.stages import Schedule, StagedFit, read_schedules
from mixlaw.mixtures import stack_mixtures
from mixlaw.observations import check_runs, loss_table
from mixlaw.predict import Prediction, predict_losses, predict_weighted

HELD_OUT = ("holdout",)
OBJECTIVE = "objective"


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleScore:
    """How well held-out schedules were predicted: one target, or the objective."""

    target: str
    count: int
    """Runs."""
    mae: float
    """Mean absolute error of the law of schedules."""
    mean_mixture_mae: float
    """The same fit, for runs that keep to the whole run's mixture."""
    last_stage_mae: float
    """The same fit, for runs that keep to the last stage's mixture."""
    inside: int
    """Runs inside their intervals."""
    level: float
    width: float
    """Mean width of the intervals."""


def predict_schedules(
    staged: StagedFit,
    schedules: Sequence[Schedule],
    weights: Mapping[str, float] | None = None,
    *,
    level: float = 0.9,
) -> Prediction:
    """Returns the losses of schedules, or a weighted sum of them, with intervals of one new run.

    Raises:
        FitError: A stage ends where none of the fit's does, or a weighted target is not fitted.
        MixtureError: The domains differ.
    """
    rows = [staged.row(schedule) for schedule in schedules]
    if weights is None:
        return predict_losses(staged.fit, rows, level=level)
    return predict_weighted(staged.fit, rows, weights, name=OBJECTIVE, level=level)


def score_schedules(
    staged: StagedFit,
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    weights: Mapping[str, float],
    *,
    level: float = 0.9,
) -> tuple[ScheduleScore, ...]:
    """Returns how well held-out runs of several stages are predicted; none: there are none.

    Args:
        staged: The fit, which has not seen them.
        runs: The runs table; those with the role holdout and stages count.
        observations: The observation table.
        weights: Of the objective, which comes last.
        level: Of the intervals.
    """
    found = read_schedules(runs, roles=HELD_OUT)
    runs = check_runs(runs).filter(
        pl.col("run_id").is_in(list(found)), pl.col("status").fill_null("done") == "done"
    )
    fit = staged.fit
    if not runs.height:
        return ()
    table = loss_table(runs, observations, targets=fit.targets, roles=HELD_OUT, step=fit.table.step)
    schedules = [found[run_id] for run_id in table.run_ids]
    weight_T = np.array([float(weights.get(target, 0.0)) for target in fit.targets])
    predicted = predict_schedules(staged, schedules, level=level).joined(
        predict_schedules(staged, schedules, weights, level=level)
    )
    observed_RK = _with_objective(table.y_RT, weight_T)
    constant = staged.constant
    rules: list[np.ndarray] = []
    for mixtures in ([s.mean for s in schedules], [s.mixtures[-1] for s in schedules]):
        r_RM = stack_mixtures([mixture.reordered(staged.domains) for mixture in mixtures])
        loss_RT = evaluate_law(constant.law, r_RM, constant.theta_TP) + constant.level_shift_T
        rules.append(np.abs(_with_objective(loss_RT, weight_T) - observed_RK))
    off_RK = np.abs(predicted.value_RK - observed_RK)
    inside_RK = (predicted.low_RK <= observed_RK) & (observed_RK <= predicted.high_RK)
    return tuple(
        ScheduleScore(
            target=target,
            count=int(np.isfinite(observed_RK[:, k]).sum()),
            mae=float(np.nanmean(off_RK[:, k])),
            mean_mixture_mae=float(np.nanmean(rules[0][:, k])),
            last_stage_mae=float(np.nanmean(rules[1][:, k])),
            inside=int(inside_RK[:, k].sum()),
            level=level,
            width=float(np.mean((predicted.high_RK - predicted.low_RK)[:, k])),
        )
        for k, target in enumerate(predicted.columns)
    )


def _with_objective(y_RT: np.ndarray, weight_T: np.ndarray) -> np.ndarray:
    return np.column_stack([y_RT, y_RT @ weight_T])
