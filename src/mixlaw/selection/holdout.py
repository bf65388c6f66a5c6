"""Laws judged out of sample: on mixtures that were trained but not fitted.

Shape letters: R held-out runs, T targets.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float

from mixlaw.fit.result import FitResult
from mixlaw.mixtures import Mixture
from mixlaw.observations import check_runs, constant_runs, loss_table
from mixlaw.predict import predict_losses, predict_weighted


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How well one quantity was predicted on held-out runs."""

    name: str
    """The target, or `objective`."""
    mae: float
    """Mean absolute error."""
    mean_mae: float
    """That of predicting the mean of the fitted runs."""
    spearman: float
    """Rank correlation between predicted and observed; NaN below three runs."""
    inside: int
    """Runs inside their interval."""
    count: int
    """Runs."""
    width: float
    """Mean width of the intervals."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HoldoutScore:
    """Predicted against observed on held-out runs."""

    run_ids: tuple[str, ...]
    columns: tuple[str, ...]
    """The targets, then `objective`."""
    observed_RK: Float[np.ndarray, "R K"]
    predicted_RK: Float[np.ndarray, "R K"]
    low_RK: Float[np.ndarray, "R K"]
    high_RK: Float[np.ndarray, "R K"]
    scores: tuple[Score, ...]
    """One per column."""
    level: float

    @property
    def objective(self) -> Score:
        """The score of the objective."""
        return self.scores[-1]

    @property
    def coverage(self) -> float:
        """Share of held-out (run, target) losses inside their interval."""
        return sum(s.inside for s in self.scores[:-1]) / sum(s.count for s in self.scores[:-1])

    @property
    def width_ratio(self) -> float:
        """Mean width of the targets' intervals in mean absolute errors."""
        targets = self.scores[:-1]
        return float(np.mean([s.width for s in targets]) / np.mean([s.mae for s in targets]))


def score_holdout(
    fit: FitResult,
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    weights: Mapping[str, float],
    *,
    level: float = 0.9,
) -> HoldoutScore | None:
    """Returns how well a fit predicts the runs with the role holdout; None: there are none.

    Args:
        fit: The fit; none of these runs was in it.
        runs: The runs table.
        observations: The observation table.
        weights: Weights of the objective by target.
        level: Level of the intervals.
    """
    runs = check_runs(runs)
    fitted = runs.filter(pl.col("run_id").is_in(list(fit.table.run_ids)))
    runs = constant_runs(runs).filter(
        pl.col(name).is_in(fitted[name].unique(), nulls_equal=True)
        for name in ("params_non_embedding", "parent_run_id")
    )
    held_out = runs.filter(pl.col("role") == "holdout")
    seen = observations.join(held_out, on="run_id", how="semi")
    if fit.table.step is not None:
        seen = seen.filter(pl.col("step") == fit.table.step)
    if not seen.height:
        return None
    table = loss_table(
        runs, observations, targets=fit.targets, roles=("holdout",), step=fit.table.step
    )
    mixtures = [Mixture.from_array(table.domains, r_M) for r_M in table.r_RM]
    each = predict_losses(fit, mixtures, level=level)
    whole = predict_weighted(fit, mixtures, weights, level=level)
    observed_RK = _with_objective(table.y_RT, fit.targets, weights)
    fitted_RK = _with_objective(fit.table.y_RT, fit.targets, weights)
    predicted_RK = np.hstack([each.value_RK, whole.value_RK])
    low_RK = np.hstack([each.low_RK, whole.low_RK])
    high_RK = np.hstack([each.high_RK, whole.high_RK])
    columns = (*fit.targets, "objective")
    return HoldoutScore(
        run_ids=table.run_ids,
        columns=columns,
        observed_RK=observed_RK,
        predicted_RK=predicted_RK,
        low_RK=low_RK,
        high_RK=high_RK,
        scores=tuple(
            _score(
                name,
                observed_RK[:, i],
                predicted_RK[:, i],
                low_RK[:, i],
                high_RK[:, i],
                float(np.nanmean(fitted_RK[:, i])),
            )
            for i, name in enumerate(columns)
        ),
        level=level,
    )


def _with_objective(
    y_RT: Float[np.ndarray, "R T"], targets: Sequence[str], weights: Mapping[str, float]
) -> Float[np.ndarray, "R K"]:
    """Returns the losses with the objective last; a loss that counts nothing may be missing."""
    weighted = [i for i, target in enumerate(targets) if weights.get(target, 0.0)]
    weight_W = np.array([weights[targets[i]] for i in weighted])
    return np.hstack([y_RT, (y_RT[:, weighted] @ weight_W)[:, None]])


def _score(
    name: str,
    observed_R: Float[np.ndarray, " R"],
    predicted_R: Float[np.ndarray, " R"],
    low_R: Float[np.ndarray, " R"],
    high_R: Float[np.ndarray, " R"],
    mean: float,
) -> Score:
    known_R = np.isfinite(observed_R)
    if not known_R.any():
        unknown = math.nan
        return Score(
            name=name, mae=unknown, mean_mae=unknown, spearman=unknown, inside=0, count=0,
            width=unknown,
        )  # fmt: skip
    observed_R, predicted_R = observed_R[known_R], predicted_R[known_R]
    low_R, high_R = low_R[known_R], high_R[known_R]
    return Score(
        name=name,
        mae=float(np.mean(np.abs(observed_R - predicted_R))),
        mean_mae=float(np.mean(np.abs(observed_R - mean))),
        spearman=_spearman(observed_R, predicted_R),
        inside=int(np.sum((low_R <= observed_R) & (observed_R <= high_R))),
        count=len(observed_R),
        width=float(np.mean(high_R - low_R)),
    )


def _spearman(a_R: Float[np.ndarray, " R"], b_R: Float[np.ndarray, " R"]) -> float:
    if len(a_R) < 3 or np.ptp(a_R) == 0 or np.ptp(b_R) == 0:
        return math.nan
    from scipy.stats import spearmanr

    return float(spearmanr(a_R, b_R).statistic)
