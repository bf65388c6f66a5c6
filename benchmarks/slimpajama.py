"""Joint laws in mixture, model size and tokens on the published SlimPajama runs.

    python benchmarks/slimpajama.py --fit DIR [--fit-below PARAMS] [--predict DIR] [--json]

Runs below PARAMS total parameters are fitted, from 4B tokens on. What is predicted, from 4B tokens
on: all losses of `--predict` that are not in `--fit`; without it, the runs of PARAMS and more; by
default the largest size. Without either option there is a second split, named far: the largest
size from the two smallest ones. It is not part of the records that sum up the splits.

Every law is fitted to the 8 targets at once. `selected` is the law that predicts left-out sizes and
steps best inside the fitted runs, with what it got wrong on each fitted mixture; or the mixed model
of single mixtures, where that predicts the largest fitted size better.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from records import ALL_SPLITS, Records, benchmark_arguments, unseen  # isort: skip - pins threads

import numpy as np
import polars as pl
from scipy.stats import spearmanr

from mixlaw.errors import TableError
from mixlaw.fit.joint import JointFit, JointPrediction, fit_joint_table
from mixlaw.fit.joint_choice import choose_joint
from mixlaw.fit.joint_holdout import LeftOut
from mixlaw.fit.joint_table import JointTable, joint_table
from mixlaw.importers.published import PublishedRuns, read_slimpajama
from mixlaw.laws.joint import JOINT_LAWS
from mixlaw.observations import PROPORTION_PREFIX, proportion_domains
from slimpajama_mixed import NAME as MIXED
from slimpajama_mixed import fill, mixed_holdout_error, predict_mixed

CASE = "slimpajama"
FIRST_TOKENS = 4e9
"""Earlier rows are neither fitted nor predicted: the learning rate is still near its peak."""
SHOWN = ("joint-additive", "joint-interaction", "joint-mixture")
"""Parametric laws over all mixtures that have their own records."""
NORMAL_90 = 1.645


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """One law's predictions of what was held out."""

    law: str
    law_name: str
    prediction: JointPrediction


def main() -> None:
    """Reads, fits, predicts and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--fit-below", type=float, metavar="PARAMS", help="fit runs with fewer total parameters"
    )
    options = benchmark_arguments(__doc__, source="slimpajama", parser=parser)
    records = Records("slimpajama")
    published = read_slimpajama(options.fit)
    fitted = late_rows(published)
    labels = dict(published.labels)
    if options.predict is not None:
        below = np.inf if options.fit_below is None else options.fit_below
        further = unseen(published, read_slimpajama(options.predict))
        labels |= further.labels
        held_out = like_fitted(further, fitted)
        if held_out is None:
            print("nothing is to be predicted: no further loss from 4B tokens on", file=sys.stderr)
        else:
            add_split(records, fitted.select(fitted.params_R < below), held_out, labels)
    else:
        sizes = np.unique(fitted.params_R)
        below = sizes[-1] if options.fit_below is None else options.fit_below
        held_out = fitted.select(fitted.params_R >= below)
        add_split(records, fitted.select(fitted.params_R < below), held_out, labels)
        if options.fit_below is None and len(sizes) > 3:
            far = fitted.select(fitted.params_R < sizes[2])
            add_split(records, far, held_out, labels, name="far")
    records.finish(options.json)


def late_rows(published: PublishedRuns, *, targets: Sequence[str] | None = None) -> JointTable:
    """Returns the losses from 4B tokens on; a missing cell stays missing."""
    late = published.observations.filter(pl.col("tokens") >= FIRST_TOKENS)
    return joint_table(published.runs, late, targets=targets)


def like_fitted(further: PublishedRuns, fitted: JointTable) -> JointTable | None:
    """Returns the late losses with the domains and targets of the fit; None: there are none.

    A target that the second folder lacks is missing everywhere; a domain that it lacks has share 0.
    """
    late = further.observations.filter(
        pl.col("tokens") >= FIRST_TOKENS, pl.col("target").is_in(list(fitted.targets))
    )
    if not late.height:
        return None
    ours = [PROPORTION_PREFIX + domain for domain in fitted.domains]
    theirs = [PROPORTION_PREFIX + domain for domain in proportion_domains(further.runs)]
    strange = [column for column in theirs if column not in ours]
    if strange and further.runs.select(strange).sum().sum_horizontal().item() > 0:
        raise TableError(
            f"the fit has no domain {strange[0].removeprefix(PROPORTION_PREFIX)!r}",
            do=f"its domains are {', '.join(fitted.domains)}",
        )
    runs = further.runs.with_columns(
        pl.lit(0.0).alias(column) for column in ours if column not in theirs
    )
    runs = runs.select(*(c for c in runs.columns if not c.startswith(PROPORTION_PREFIX)), *ours)
    known = [target for target in fitted.targets if target in set(late["target"])]
    found = joint_table(runs, late, targets=known)
    y_RT = np.full((len(found.y_RT), len(fitted.targets)), np.nan)
    y_RT[:, [fitted.targets.index(target) for target in known]] = found.y_RT
    return replace(found, targets=fitted.targets, y_RT=y_RT)


def add_split(
    records: Records,
    fitted: JointTable,
    held_out: JointTable,
    labels: Mapping[str, str],
    *,
    name: str | None = None,
) -> None:
    """Adds the records of all laws, fitted to some runs and judged on others."""
    sizes = ", ".join(f"{size:.3g}" for size in np.unique(fitted.params_R))
    print(f"fitted: {len(set(fitted.run_ids))} runs of {sizes} parameters", file=sys.stderr)
    for predicted in predict_all(fitted, held_out):
        add_predictions(records, predicted, fitted, held_out, labels=labels, split=name)
        add_metrics(records, predicted, fitted, held_out, split=name)


def predict_all(fitted: JointTable, held_out: JointTable) -> list[Predicted]:
    """Returns the predictions of every law, the selected one and the mean."""
    choice = choose_joint(fitted)
    print(choice.report(), file=sys.stderr)
    predictions: list[Predicted] = []
    for name in dict.fromkeys((*SHOWN, choice.best.name)):
        fit = fit_joint_table(JOINT_LAWS[name], fitted, left_out=choice.left_out[name])
        print(fit.report(), file=sys.stderr)
        if name in SHOWN:
            prediction = fit.predict(held_out.x_RX)
            predictions.append(Predicted(law=name, law_name=name, prediction=prediction))
        if name == choice.best.name:
            predictions.append(select(fit, choice.left_out[name], fitted, held_out))
    predictions.append(
        Predicted(law="mean", law_name="mean", prediction=predict_mean(fitted, held_out))
    )
    return predictions


def select(
    fit: JointFit, left_out: Sequence[LeftOut], fitted: JointTable, held_out: JointTable
) -> Predicted:
    """Returns the predictions of the chosen joint law, or of the mixed model if that is better.

    Better at the largest fitted size from the smaller ones, if there are three sizes.
    """
    prediction = fit.predict(held_out.x_RX, mixture_ids=held_out.mixture_ids)
    law_name = fit.law.name
    sizes = [part for part in left_out if part.distance_R2[:, 0].max() > 0]
    if sizes:
        mixed, joint = mixed_holdout_error(fitted), sizes[-1].relative_error
        print(f"largest fitted size: {law_name} {joint:.3%}, mixed {mixed:.3%}", file=sys.stderr)
        if mixed < joint:
            prediction, law_name = fill(predict_mixed(fitted, held_out), prediction), MIXED
    return Predicted(law="selected", law_name=law_name, prediction=prediction)


def predict_mean(fitted: JointTable, held_out: JointTable) -> JointPrediction:
    """Returns the mean over mixtures at the largest fitted size, at the nearest tokens."""
    largest = fitted.select(fitted.params_R == fitted.params_R.max())
    steps = np.unique(largest.tokens_R)
    mean_ST = np.stack([np.nanmean(largest.y_RT[largest.tokens_R == s], axis=0) for s in steps])
    error_T = np.stack(
        [np.nanstd(largest.y_RT[largest.tokens_R == s], axis=0) for s in steps]
    ).mean(axis=0)
    nearest_R = np.abs(np.log(held_out.tokens_R[:, None] / steps)).argmin(axis=1)
    value_RT = mean_ST[nearest_R]
    half_T = NORMAL_90 * error_T
    return JointPrediction(
        value_RT=value_RT, low_RT=value_RT - half_T, high_RT=value_RT + half_T, level=0.9
    )


def add_predictions(
    records: Records,
    predicted: Predicted,
    fitted: JointTable,
    held_out: JointTable,
    *,
    labels: Mapping[str, str],
    split: str | None,
) -> None:
    """Adds one record per run, step and target that was observed."""
    num_runs = len(set(fitted.run_ids))
    prediction = predicted.prediction
    for row, column in np.argwhere(~np.isnan(held_out.y_RT)):
        records.add(
            case=CASE,
            law=predicted.law,
            law_name=predicted.law_name,
            metric="prediction",
            value=prediction.value_RT[row, column],
            low=prediction.low_RT[row, column],
            high=prediction.high_RT[row, column],
            observed=held_out.y_RT[row, column],
            unit="nats_per_token",
            n=num_runs,
            params=held_out.params_R[row],
            tokens=held_out.tokens_R[row],
            target=held_out.targets[column],
            mixture=labels[held_out.run_ids[row]],
            split=split,
        )


def add_metrics(
    records: Records,
    predicted: Predicted,
    fitted: JointTable,
    held_out: JointTable,
    *,
    split: str | None,
) -> None:
    """Adds relative error, coverage, width, error and rank, per target and their mean."""
    metrics = score(predicted.prediction, held_out)
    targets = (*held_out.targets, "mean")
    for metric, (unit, value_T) in metrics.items():
        known_T = np.asarray(value_T)[np.isfinite(value_T)]
        mean = float(known_T.mean()) if len(known_T) else np.nan
        for target, value in zip(targets, (*value_T, mean), strict=True):
            records.add(
                case=CASE,
                law=predicted.law,
                law_name=predicted.law_name,
                metric=metric,
                value=value,
                unit=unit,
                n=len(set(fitted.run_ids)),
                params=common_size(held_out),
                target=target,
                split=ALL_SPLITS if split is None else split,
                num_splits=1,
            )


def common_size(table: JointTable) -> float | None:
    """Returns the size that all rows have, if they have one."""
    sizes = np.unique(table.params_R)
    return float(sizes[0]) if len(sizes) == 1 else None


def score(
    prediction: JointPrediction, held_out: JointTable
) -> dict[str, tuple[str | None, Sequence[float]]]:
    """Returns each metric's unit and its value for every target; missing losses don't count."""
    y_RT = held_out.y_RT
    error_RT = np.abs(prediction.value_RT - y_RT)
    known_RT = np.where(np.isnan(y_RT), np.nan, 1.0)
    inside_RT = (prediction.low_RT <= y_RT) & (y_RT <= prediction.high_RT)
    return {
        "relative_error": ("fraction", np.nanmean(error_RT / y_RT, axis=0)),
        "coverage": ("fraction", np.nanmean(inside_RT * known_RT, axis=0)),
        "width": (
            "nats_per_token",
            np.nanmean((prediction.high_RT - prediction.low_RT) * known_RT, axis=0),
        ),
        "mae": ("nats_per_token", np.nanmean(error_RT, axis=0)),
        "spearman": (None, rank_correlation(prediction.value_RT, held_out)),
    }


def rank_correlation(value_RT: np.ndarray, held_out: JointTable) -> list[float]:
    """Returns each target's Spearman correlation over mixtures, mean over sizes and steps."""
    cells = np.unique(held_out.x_RX[:, -2:], axis=0)
    found: list[list[float]] = []
    for cell in cells:
        in_cell_R = np.all(held_out.x_RX[:, -2:] == cell, axis=1)
        row: list[float] = []
        for value_R, y_R in zip(value_RT[in_cell_R].T, held_out.y_RT[in_cell_R].T, strict=True):
            known_R = ~np.isnan(y_R)
            varies = known_R.sum() > 2 and np.ptp(value_R[known_R]) > 0
            row.append(
                float(spearmanr(value_R[known_R], y_R[known_R]).statistic) if varies else np.nan
            )
        found.append(row)
    return [float(np.mean(column[~np.isnan(column)])) if np.isfinite(column).any() else np.nan
            for column in np.array(found).T]  # fmt: skip


if __name__ == "__main__":
    main()
