"""Errors of predictions in one row per law or baseline.

Shape letters: R runs, T targets, M training domains, G mixtures.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mixlaw.predict import conformal_halfwidth
from mixlaw.selection.measures import mean_by_mixture, mean_spearman, run_errors, top_regret
from mixlaw.selection.text import align_columns, show_number

BLOCKS = 20
"""Intervals of a mixture come from errors on mixtures of other blocks; at most so many blocks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationRow:
    """How one law or baseline did on what it had not seen; NaN: not known."""

    name: str
    num_parameters: float | None
    """For one target; infinite: no formula; None: it has no own number."""
    error: float
    """Of the weighted loss, or of all targets in units of their mean deviation."""
    mae: float
    """Mean absolute error over losses."""
    median: float
    """Median absolute error, likewise."""
    spearman: float
    """Rank correlation over mixtures, mean over targets."""
    regret: float
    """Loss of the mixture that it would have chosen less that of the best one."""
    coverage: float
    """Share of losses inside their interval."""
    width: float
    """Mean width of the intervals."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationTable:
    """One way of leaving out."""

    title: str
    rows: tuple[ValidationRow, ...]

    def row(self, name: str) -> ValidationRow:
        """Returns the row of a law or baseline."""
        return next(row for row in self.rows if row.name == name)

    def __str__(self) -> str:
        columns = ("law", "parameters", "error", "MAE", "median", "Spearman", "regret", "inside")
        cells = [
            (
                row.name,
                _size(row.num_parameters),
                *map(show_number, (row.error, row.mae, row.median)),
                "-" if math.isnan(row.spearman) else f"{row.spearman:.3f}",
                show_number(row.regret),
                "-" if math.isnan(row.coverage) else f"{row.coverage:.0%}",
                show_number(row.width),
            )
            for row in sorted(self.rows, key=lambda row: row.error)
        ]
        return f"{self.title}\n{align_columns((*columns, 'width'), cells)}"

    def to_json(self) -> dict[str, Any]:
        """Returns the rows as plain values."""
        return {"title": self.title, "rows": [asdict(row) for row in self.rows]}


def make_row(
    name: str,
    predicted_RT: Float[np.ndarray, "R T"],
    y_RT: Float[np.ndarray, "R T"],
    *,
    r_RM: Float[np.ndarray, "R M"],
    group_R: Int[np.ndarray, " R"],
    weight_T: Float[np.ndarray, " T"] | None,
    num_parameters: float | None,
    level: float,
) -> ValidationRow:
    """Returns the errors of predictions of runs whose mixtures were not seen."""
    off_RT = np.abs(predicted_RT - y_RT)
    error_R = run_errors(predicted_RT[None], y_RT, weight_T)[0]
    error_G = mean_by_mixture(error_R[None], group_R)[0]
    known_G = error_G[np.isfinite(error_G)]
    coverage, width = count_inside(predicted_RT, y_RT, r_RM=r_RM, group_R=group_R, level=level)
    ranks = num_parameters is None or num_parameters > 1
    return ValidationRow(
        name=name,
        num_parameters=num_parameters,
        error=float(np.mean(known_G)) if len(known_G) else math.nan,
        mae=float(np.nanmean(off_RT)),
        median=float(np.nanmedian(off_RT)),
        spearman=mean_spearman(predicted_RT, y_RT) if ranks else math.nan,
        regret=top_regret(predicted_RT, y_RT, weight_T) if ranks else math.nan,
        coverage=coverage,
        width=width,
    )


def count_inside(
    predicted_RT: Float[np.ndarray, "R T"],
    y_RT: Float[np.ndarray, "R T"],
    *,
    r_RM: Float[np.ndarray, "R M"],
    group_R: Int[np.ndarray, " R"],
    level: float,
) -> tuple[float, float]:
    """Returns the share of losses inside conformal intervals, and these intervals' mean width.

    The interval of a mixture is made from the left-out errors on others, as `predict_losses` makes
    them; what the noise of a fresh seed would add is not in them, nor in these losses.
    """
    first_G = np.unique(group_R, return_index=True)[1]
    off_RT = y_RT - predicted_RT
    off_GT = np.stack([_root_mean_square(off_RT[group_R == group_R[i]]) for i in first_G])
    half_GT = np.full_like(off_GT, np.nan)
    design_GM = r_RM[first_G]
    num_blocks = min(BLOCKS, len(first_G))
    for block in range(num_blocks):
        is_out_G = np.arange(len(first_G)) % num_blocks == block
        half_GT[is_out_G], _ = conformal_halfwidth(
            off_GT[~is_out_G],
            off_GT[~is_out_G],
            design_GM=design_GM[~is_out_G],
            r_RM=design_GM[is_out_G],
            level=level,
        )
    half_RT = half_GT[np.searchsorted(group_R[first_G], group_R)]
    known_RT = np.isfinite(off_RT) & np.isfinite(half_RT)
    if not known_RT.any():
        return math.nan, math.nan
    inside_RT = np.abs(off_RT) <= half_RT
    return float(np.mean(inside_RT[known_RT])), float(2 * np.mean(half_RT[known_RT]))


def average_rows(rows: Sequence[ValidationRow]) -> ValidationRow:
    """Returns the means over repeats of one law's errors."""
    if len(rows) == 1:
        return rows[0]
    numbers = [f.name for f in fields(ValidationRow) if f.name not in ("name", "num_parameters")]
    means = {key: float(np.mean([getattr(row, key) for row in rows])) for key in numbers}
    return ValidationRow(name=rows[0].name, num_parameters=rows[0].num_parameters, **means)


def _root_mean_square(off_NT: Float[np.ndarray, "N T"]) -> Float[np.ndarray, " T"]:
    known_NT = np.isfinite(off_NT)
    total_T = np.where(known_NT, off_NT, 0.0) ** 2
    count_T = known_NT.sum(axis=0)
    mean_T = total_T.sum(axis=0) / np.maximum(count_T, 1)
    return np.where(count_T > 0, np.sqrt(mean_T), np.nan)


def _size(num_parameters: float | None) -> str:
    if num_parameters is None or math.isinf(num_parameters):
        return "-"
    return f"{num_parameters:g}"
