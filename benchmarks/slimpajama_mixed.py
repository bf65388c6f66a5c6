"""The mixed model of single mixtures (`mixlaw.fit.scaling`), as a rival of the joint laws.

It knows fitted mixtures only. The one choice between it and a joint law: which of the two predicts
the largest fitted size better from the smaller ones.

Shape letters: R rows, T targets.
"""

import numpy as np
import polars as pl

from mixlaw.fit.joint import JointPrediction
from mixlaw.fit.joint_table import JointTable
from mixlaw.fit.scaling import fit_scaling
from mixlaw.observations import PROPORTION_PREFIX

NAME = "mixed"
TOKENS_PER_STEP = 1e6
"""Steps of the tables below, in tokens."""


def mixed_holdout_error(fitted: JointTable) -> float:
    """Returns the mean relative error on the largest size, predicted from the smaller ones."""
    largest = fitted.params_R == fitted.params_R.max()
    rows = fitted.select(largest)
    value_RT = predict_mixed(fitted.select(~largest), rows).value_RT
    return float(np.mean(np.nanmean(np.abs(value_RT / rows.y_RT - 1), axis=0)))


def predict_mixed(fitted: JointTable, rows: JointTable) -> JointPrediction:
    """Returns the losses of new runs with 90% intervals; NaN for mixtures that were not fitted."""
    fit = fit_scaling(*_frames(fitted), targets=list(fitted.targets))
    points, point_R = np.unique(rows.x_RX[:, -2:], axis=0, return_inverse=True)
    params, steps = list(points[:, 0]), list(points[:, 1] / TOKENS_PER_STEP)
    center = fit.predict(params, steps)
    low, high = np.quantile(fit.draw(params, steps), [0.05, 0.95], axis=0)
    place = {mixture_id: i for i, mixture_id in enumerate(fit.mixture_ids)}
    mixture_R = np.array([place.get(mixture_id, -1) for mixture_id in rows.mixture_ids])
    order = [fit.targets.index(target) for target in rows.targets]
    value_RT, low_RT, high_RT = (
        np.where(mixture_R[:, None] < 0, np.nan, part[point_R, mixture_R][:, order])
        for part in (center, low, high)
    )
    return JointPrediction(value_RT=value_RT, low_RT=low_RT, high_RT=high_RT, level=0.9)


def fill(prediction: JointPrediction, other: JointPrediction) -> JointPrediction:
    """Returns the first prediction, and the other one where the first has none."""
    known_RT = ~np.isnan(prediction.value_RT)
    return JointPrediction(
        value_RT=np.where(known_RT, prediction.value_RT, other.value_RT),
        low_RT=np.where(known_RT, prediction.low_RT, other.low_RT),
        high_RT=np.where(known_RT, prediction.high_RT, other.high_RT),
        level=prediction.level,
    )


def _frames(table: JointTable) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Returns the table as runs and observations."""
    shares = {
        PROPORTION_PREFIX + domain: table.x_RX[:, i] for i, domain in enumerate(table.domains)
    }
    rows = pl.DataFrame(
        {
            "run_id": table.run_ids,
            "mixture_id": table.mixture_ids,
            "role": "imported",
            "params_total": table.params_R,
            "tokens": table.tokens_R,
            "step": (table.tokens_R / TOKENS_PER_STEP).round().astype(np.int64),
            **shares,
            **dict(zip(table.targets, table.y_RT.T, strict=True)),
        }
    )
    runs = rows.select("run_id", "mixture_id", "role", "params_total", *shares)
    observations = rows.unpivot(
        on=list(table.targets), index=["run_id", "step", "tokens"], variable_name="target"
    ).filter(pl.col("value").is_not_nan())
    unit = pl.lit("nats_per_token").alias("unit")
    return runs.unique("run_id", maintain_order=True), observations.with_columns(unit)
