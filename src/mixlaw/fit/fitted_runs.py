"""Which runs a mixing law is fitted to: those of one size, at one step, with usable losses."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from mixlaw.errors import FitError, TableError
from mixlaw.observations import (
    LossTable,
    check_observations,
    check_runs,
    constant_runs,
    loss_table,
)

FITTED_ROLES = ("design", "imported")
"""Roles of runs that a law is fitted to."""
COMPARED_ROLES = (*FITTED_ROLES, "noise")
"""Roles of runs that say how much a mixture's loss differs between seeds."""
NEARLY_ALL = 0.9
"""A step counts as common when this share of the runs was observed there."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FittedRuns:
    """The losses that a law is fitted to, and those that say how much seeds differ."""

    fitted: LossTable
    compared: LossTable
    """Those and the runs that repeat mixtures."""
    notes: tuple[str, ...]
    """Which runs were left out, in sentences."""


def read_fitted(
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    *,
    targets: Sequence[str] | None = None,
    step: int | None = None,
    params: float | None = None,
) -> FittedRuns:
    """Returns the losses of the runs of one size at one step, all from one starting point.

    Runs whose mixture changes on the way are left out: a mixing law knows one mixture. So are runs
    that start from another run's weights, unless all of the fitted ones start from the same.

    Args:
        runs: The runs table.
        observations: The observation table.
        targets: Which targets; all by default.
        step: At which step; the last one that nearly all runs have, by default.
        params: Of which model size; the largest by default.

    Raises:
        TableError: The tables are not what they must be.
        FitError: No run has one mixture or that size, or the runs have no step or no starting point
            in common.
    """
    runs, observations = check_runs(runs), check_observations(observations)
    runs, notes = one_start(runs)
    runs, of_other_sizes = _one_size(runs, params)
    notes += of_other_sizes
    if step is None:
        step, left_out = _last_common_step(runs, observations)
        notes += left_out
    fitted = loss_table(runs, observations, targets=targets, roles=FITTED_ROLES, step=step)
    compared = loss_table(
        runs, observations, targets=fitted.targets, roles=COMPARED_ROLES, step=fitted.step
    )
    return FittedRuns(fitted=fitted, compared=compared, notes=notes)


def check_table(fitted: LossTable) -> None:
    """Raises where a target has infinite losses, or too few mixtures to fit any law."""
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


def one_start(runs: pl.DataFrame) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Returns the runs of one mixture each and of one starting point, and what was left out.

    From scratch where a fitted run is; else from the weights that all fitted runs start from.

    Raises:
        FitError: No run has one mixture, or they start from several weights.
    """
    constant = constant_runs(runs)
    notes: tuple[str, ...] = ()
    if staged := runs.height - constant.height:
        if not constant.height:
            raise FitError(
                "a mixing law needs runs of one mixture each, but all have several stages",
                do="fit a law of schedules to them (`mixlaw schedule`)",
            )
        notes += (f"{staged} runs whose mixture changes on the way are left out",)
    fitted = constant.filter(
        pl.col("role").is_in(FITTED_ROLES), pl.col("status").fill_null("done") == "done"
    )
    starts = fitted["parent_run_id"].unique().to_list()
    if len(starts) > 1 and None not in starts:
        raise FitError(
            f"a mixing law needs runs of one starting point, but these start from {len(starts)}:"
            f" {', '.join(sorted(start for start in starts if start is not None)[:4])}",
            do="keep those of one `parent_run_id`",
        )
    start = None if None in starts or not starts else starts[0]
    is_chosen = pl.col("parent_run_id").eq_missing(pl.lit(start, pl.String))
    chosen = constant.filter(is_chosen)
    if others := fitted.height - fitted.filter(is_chosen).height:
        notes += (f"{others} runs that start from other weights are left out",)
    return chosen, notes


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
