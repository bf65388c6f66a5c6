"""The largest size, or the latest steps, left out and predicted from the other runs.

Shape letters: G mixtures, C cells (a size and its last step), T targets, R = G C rows.

A mixing law knows nothing of size or steps; what carries losses over are the scaling fit of every
mixture (`mixlaw.fit.scaling`) and the nested step and size laws (`mixlaw.fit.nested`). Beside them
stands the simplest guess, that the losses stay what they were. Both fits are imported when they are
needed: they import SciPy's statistics, for which every command would wait.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from jaxtyping import Float

from mixlaw.errors import MixlawError
from mixlaw.fit.fitted_runs import FITTED_ROLES
from mixlaw.observations import check_observations, check_runs
from mixlaw.selection.measures import mean_spearman, run_errors, top_regret
from mixlaw.selection.validation_table import ValidationRow, ValidationTable

EARLY = 0.1
"""Steps before this share of the last one follow another law and are left out of scaling fits."""
KEPT_STEPS = 0.7
"""Steps up to this share of the last one predict it."""
FEWEST_STEPS = 3
"""Steps, and sizes, that are needed to predict the next one."""
Cell = tuple[float, int]
"""A model size and a step."""
Predicted = tuple[
    Float[np.ndarray, "R T"], tuple[Float[np.ndarray, "R T"], Float[np.ndarray, "R T"]] | None
]
"""Losses, and the limits of their intervals where there are any."""


def leave_largest_size_out(
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    *,
    targets: Sequence[str],
    weights: Mapping[str, float] | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> ValidationTable | str:
    """Returns errors of predicting the largest size at its last step, or why there are none."""
    runs, rows = _finished(runs, observations, targets)
    sizes = sorted(rows["params"].unique().to_list())
    if len(sizes) < FEWEST_STEPS:
        found = "unknown" if not sizes else "one" if len(sizes) == 1 else "two"
        return f"the runs have {found} model size(s): leaving the largest out needs three"
    largest = sizes[-1]
    kept = rows.filter(pl.col("params") < largest)
    last = int(rows.filter(pl.col("params") == largest)["step"].max())  # pyright: ignore
    return _judge(
        runs,
        rows,
        kept,
        cells=[(largest, last)],
        before=[(sizes[-2], last)],
        title=f"size {largest:.4g} at step {last} left out, predicted from smaller ones",
        targets=targets,
        weights=weights,
        level=level,
        seed=seed,
    )


def leave_latest_steps_out(
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    *,
    targets: Sequence[str],
    weights: Mapping[str, float] | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> ValidationTable | str:
    """Returns errors of predicting each size's last step from the earlier ones, or why none."""
    runs, rows = _finished(runs, observations, targets)
    cells: list[Cell] = []
    before: list[Cell] = []
    parts: list[pl.DataFrame] = []
    for params in sorted(rows["params"].unique().to_list()):
        mine = rows.filter(pl.col("params") == params)
        steps = sorted(mine["step"].unique().to_list())
        early = [step for step in steps if EARLY * steps[-1] <= step <= KEPT_STEPS * steps[-1]]
        if len(early) >= FEWEST_STEPS:
            cells.append((params, steps[-1]))
            before.append((params, early[-1]))
            parts.append(mine.filter(pl.col("step") <= early[-1]))
    if not cells:
        return f"no size was observed at {FEWEST_STEPS} steps before its last third: none left out"
    return _judge(
        runs,
        rows,
        pl.concat(parts),
        cells=cells,
        before=before,
        title="last steps left out, predicted from steps up to "
        + ", ".join(sorted({f"{step}" for _, step in before}, key=int)),
        targets=targets,
        weights=weights,
        level=level,
        seed=seed,
    )


def _judge(
    runs: pl.DataFrame,
    rows: pl.DataFrame,
    kept: pl.DataFrame,
    *,
    cells: Sequence[Cell],
    before: Sequence[Cell],
    title: str,
    targets: Sequence[str],
    weights: Mapping[str, float] | None,
    level: float,
    seed: int,
) -> ValidationTable | str:
    """Returns the errors of all that carry losses to other cells."""
    ids = sorted(rows["mixture_id"].unique().to_list())
    y_RT = _losses(rows, ids, cells, targets)
    found: dict[str, Predicted] = {"unchanged": (_losses(kept, ids, before, targets), None)}
    told: list[str] = []
    used = runs.join(kept.select("run_id").unique(), on="run_id", how="semi")
    for name, predict in (("scaling", _predict_scaling), ("nested", _predict_nested)):
        try:
            found[name] = predict(used, kept, ids, cells, targets=targets, level=level, seed=seed)
        except MixlawError as error:
            told.append(f"{name}: {error.problem}")
    weight_T = None if weights is None else np.array([weights.get(t, 0.0) for t in targets])
    rows_out = [
        _row(name, value_RT, limits, y_RT, weight_T, len(cells))
        for name, (value_RT, limits) in found.items()
        if np.isfinite(value_RT - y_RT).any()
    ]
    if not rows_out:
        return f"{title}: no mixture was run on both sides"
    return ValidationTable(title="; ".join((title, *told)), rows=tuple(rows_out))


def _predict_scaling(
    runs: pl.DataFrame,
    rows: pl.DataFrame,
    ids: Sequence[str],
    cells: Sequence[Cell],
    *,
    targets: Sequence[str],
    level: float,
    seed: int,
) -> Predicted:
    from mixlaw.fit.scaling import fit_scaling

    first = EARLY * float(rows["step"].max())  # pyright: ignore
    fit = fit_scaling(runs, _plain(rows), targets=targets, first_step=first, seed=seed)
    sizes, steps = [params for params, _ in cells], [step for _, step in cells]
    draws_BCGT = fit.draw(sizes, steps)
    ends = np.quantile(draws_BCGT, [(1 - level) / 2, (1 + level) / 2], axis=0)
    value, low, high = (
        _in_order(part_CGT, fit.mixture_ids, ids) for part_CGT in (fit.predict(sizes, steps), *ends)
    )
    return value, (low, high)


def _predict_nested(
    runs: pl.DataFrame,
    rows: pl.DataFrame,
    ids: Sequence[str],
    cells: Sequence[Cell],
    *,
    targets: Sequence[str],
    level: float,
    seed: int,
) -> Predicted:
    from mixlaw.fit.nested import extrapolate_nested

    parts: list[np.ndarray] = []
    for params, step in cells:
        nested = extrapolate_nested(runs, _plain(rows), params=params, step=step, targets=targets)
        parts.append(_in_order(nested.value_GT[None], nested.mixture_ids, ids))
    return np.concatenate(parts), None


def _row(
    name: str,
    value_RT: Float[np.ndarray, "R T"],
    limits: tuple[Float[np.ndarray, "R T"], Float[np.ndarray, "R T"]] | None,
    y_RT: Float[np.ndarray, "R T"],
    weight_T: Float[np.ndarray, " T"] | None,
    num_cells: int,
) -> ValidationRow:
    """Returns the errors; ranks and regret are those within each cell, then their mean."""
    off_RT = np.abs(value_RT - y_RT)
    y_RT = np.where(np.isfinite(value_RT), y_RT, np.nan)
    error_R = run_errors(value_RT[None], y_RT, weight_T)[0]
    coverage = width = math.nan
    if limits is not None:
        known_RT = np.isfinite(off_RT)
        inside_RT = (limits[0] <= y_RT) & (y_RT <= limits[1])
        coverage = float(np.mean(inside_RT[known_RT]))
        width = float(np.mean((limits[1] - limits[0])[known_RT]))
    pairs = list(zip(np.split(value_RT, num_cells), np.split(y_RT, num_cells), strict=True))
    ranks = [rank for rank in (mean_spearman(*pair) for pair in pairs) if not math.isnan(rank)]
    regrets = [top_regret(*pair, weight_T) for pair in pairs]
    return ValidationRow(
        name=name,
        num_parameters=None,
        error=float(np.nanmean(error_R)) if np.isfinite(error_R).any() else math.nan,
        mae=float(np.nanmean(off_RT)),
        median=float(np.nanmedian(off_RT)),
        spearman=float(np.mean(ranks)) if ranks else math.nan,
        regret=float(np.mean(regrets)),
        coverage=coverage,
        width=width,
    )


def _finished(
    runs: pl.DataFrame, observations: pl.DataFrame, targets: Sequence[str]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Returns fitted runs of known size, and their losses with the runs' size and mixture."""
    runs = check_runs(runs).filter(
        pl.col("role").is_in(FITTED_ROLES),
        pl.col("status").fill_null("done") == "done",
        pl.col("params_non_embedding").is_not_null(),
    )
    runs = runs.with_columns(pl.col("mixture_id").fill_null(pl.col("run_id")))
    rows = check_observations(observations).filter(
        pl.col("target").is_in(list(targets)), pl.col("step") > 0
    )
    about = runs.select("run_id", "mixture_id", pl.col("params_non_embedding").alias("params"))
    return runs, rows.join(about, on="run_id", how="inner", maintain_order="left")


def _plain(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.drop("mixture_id", "params")


def _losses(
    rows: pl.DataFrame, ids: Sequence[str], cells: Sequence[Cell], targets: Sequence[str]
) -> Float[np.ndarray, "R T"]:
    """Returns losses by mixture within each cell, replicates averaged; NaN where there is none."""
    row_of = {mixture_id: g for g, mixture_id in enumerate(ids)}
    column_of = {target: t for t, target in enumerate(targets)}
    y_CGT = np.full((len(cells), len(ids), len(targets)), np.nan)
    means = rows.group_by("params", "step", "mixture_id", "target").agg(pl.col("value").mean())
    for c, (params, step) in enumerate(cells):
        mine = means.filter(pl.col("params") == params, pl.col("step") == step)
        for mixture_id, target, value in mine.select("mixture_id", "target", "value").iter_rows():
            y_CGT[c, row_of[mixture_id], column_of[target]] = math.nan if value is None else value
    return y_CGT.reshape(-1, len(targets))


def _in_order(
    value_CGT: Float[np.ndarray, "C G T"], have: Sequence[str], want: Sequence[str]
) -> Float[np.ndarray, "R T"]:
    """Returns values by mixture in the wanted order; NaN for mixtures that are not there."""
    index = {mixture_id: g for g, mixture_id in enumerate(have)}
    ordered_CGT = np.full((len(value_CGT), len(want), value_CGT.shape[2]), np.nan)
    for g, mixture_id in enumerate(want):
        if mixture_id in index:
            ordered_CGT[:, g] = value_CGT[:, index[mixture_id]]
    return ordered_CGT.reshape(-1, value_CGT.shape[2])
