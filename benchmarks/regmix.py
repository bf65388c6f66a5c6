"""Mixing laws and baselines on the published RegMix runs, with 24 to 512 of them fitted.

    python benchmarks/regmix.py --fit DIR [--predict DIR] [--json] [--seeds N] [--workers N]

Seed s deals the training runs of `--fit` into an order; a fit takes the first n of them, so that
the runs of a smaller n are among those of a larger one. regmix/1m-cv predicts the runs that a fit
left over. Its records with the split `same-rows` are of the runs that even the largest of these
fits left over: there, any two n are compared on the same runs. regmix/1m, regmix/60m and regmix/1b
predict the test runs of `--predict`, as far as its files are there; for them, all training runs are
fitted once more.

The fits know losses of models with 1M parameters only. A larger model's losses lie elsewhere: for
regmix/60m and regmix/1b there are ranks and the regret of the choice, but no losses.

`selected` is chosen by cross-validation inside the fitted runs, from all laws, the mean and
LightGBM: one of them, or their non-negative stack. Its intervals are conformal, from the errors of
that cross-validation.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from records import (  # isort: skip - pins threads
    ALL_SPLITS,
    HIGH_PERCENTILE,
    LOW_PERCENTILE,
    Records,
    benchmark_arguments,
)

import numpy as np

from mixlaw.fit.learners import has_baselines
from mixlaw.selection.choice import mean_spearman, top_regret
from regmix_fits import Fit, Runs, fit_all, read_tests, read_training

HOLDOUT = "regmix/1m-cv"
FITTED_SIZE = "1m"
"""The test runs that are of the same size as the fitted ones."""
SHOWN = (
    "selected", "mean", "linear", "log-linear", "m1", "m2", "m3", "m4", "reciprocal",
    "reciprocal-shared", "exp-power", "bimix", "implicit", "lightgbm", "gp",
)  # fmt: skip
"""What has its own records; `selected` may be yet another law."""
SAME_ROWS = "same-rows"
UNIT = "nats_per_token"
UNITS = {"spearman": None, "regret": UNIT, "mae": UNIT, "coverage": "fraction", "width": UNIT}
RANKS = ("spearman", "regret")
"""What can be said of models of another size."""


def main() -> None:
    """Reads, fits, predicts and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100, help="at most so many subsets of a size")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    options = benchmark_arguments(__doc__, source="regmix", parser=parser)
    records = Records("regmix")
    if not has_baselines():
        print("no LightGBM, no Gaussian process: pip install 'mixlaw[baselines]'", file=sys.stderr)
    published, train = read_training(options.fit)
    tests = read_tests(options.predict, published, train) if options.predict is not None else {}
    fits = fit_all(
        train,
        np.concatenate([train.r_RM[:0], *(test.r_RM for test in tests.values())]),
        workers=options.workers,
        most_seeds=options.seeds,
    )
    add_holdouts(records, train, fits)
    add_tests(records, tests, fits)
    records.finish(options.json)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Predictions of one fit beside what was observed."""

    fit: Fit
    value_LXT: Mapping[str, np.ndarray]
    y_XT: np.ndarray


def add_holdouts(records: Records, train: Runs, fits: Sequence[Fit]) -> None:
    """Adds the records of the training runs that fits left over."""
    fits = [fit for fit in fits if len(fit.rest_R)]
    fewest = min(len(fit.rest_R) for fit in fits)
    compared = {fit.seed for fit in fits if len(fit.rest_R) == fewest}
    for _, group in groupby(fits, key=lambda fit: fit.n):
        scored = [score_rows(fit, train.y_RT[fit.rest_R], first=0) for fit in group]
        add_metrics(records, scored, HOLDOUT, train.targets)
        # The last rows of a seed's order are those that its largest fit left over.
        same = [
            score_rows(one.fit, one.y_XT[-fewest:], first=len(one.y_XT) - fewest)
            for one in scored
            if one.fit.seed in compared
        ]
        add_metrics(records, same, HOLDOUT, train.targets, split=SAME_ROWS)


def add_tests(records: Records, tests: Mapping[str, Runs], fits: Sequence[Fit]) -> None:
    """Adds the records of the test runs of each size."""
    before = 0
    for size, test in tests.items():
        case = f"regmix/{size}"
        in_nats = size == FITTED_SIZE
        for _, group in groupby(fits, key=lambda fit: fit.n):
            scored = [score_rows(fit, test.y_RT, first=len(fit.rest_R) + before) for fit in group]
            add_metrics(records, scored, case, test.targets, in_nats=in_nats)
            if in_nats and not len(scored[0].fit.rest_R):
                add_predictions(records, scored[0], case, test)
        before += len(test.y_RT)


def score_rows(fit: Fit, y_XT: np.ndarray, *, first: int) -> Scored:
    """Returns the predictions of some rows, from a first one on, with their losses."""
    rows = slice(first, first + len(y_XT))
    value_LXT = {name: value_XT[rows] for name, value_XT in fit.value_LXT.items()}
    return Scored(fit=fit, value_LXT=value_LXT, y_XT=y_XT)


def add_metrics(
    records: Records,
    scored: Sequence[Scored],
    case: str,
    targets: Sequence[str],
    *,
    in_nats: bool = True,
    split: str | None = None,
) -> None:
    """Adds each law's metrics over seeds.

    Args:
        records: Where they go.
        scored: One per seed, all with the same number of fitted runs.
        case: The case.
        targets: The targets' names.
        in_nats: Whether the models that are predicted have the size of the fitted ones.
        split: Name of a selection of rows; without it, the record that sums up is named `all`.
    """
    for law in SHOWN:
        if any(law not in one.value_LXT for one in scored):
            continue
        by_seed = [score_targets(one, law) for one in scored]
        for metric in by_seed[0]:
            if metric in RANKS or in_nats:
                value_ST = np.stack([score[metric] for score in by_seed])
                shared: dict[str, Any] = {
                    "case": case,
                    "law": law,
                    "metric": metric,
                    "unit": UNITS[metric],
                    "n": scored[0].fit.n,
                }
                names = [one.fit.law_name if law == "selected" else law for one in scored]
                add_seeds(records, value_ST, scored, names, targets, shared=shared, split=split)


def add_seeds(
    records: Records,
    value_ST: np.ndarray,
    scored: Sequence[Scored],
    law_names: Sequence[str],
    targets: Sequence[str],
    *,
    shared: Mapping[str, Any],
    split: str | None,
) -> None:
    """Adds the mean over targets for each seed and over all, and over all for each target."""
    name = law_names[0] if len(set(law_names)) == 1 else None
    known_T = np.isfinite(value_ST).all(axis=0)
    mean_S = value_ST[:, known_T].mean(axis=1)
    if split is None:
        seeds = [one.fit.seed for one in scored]
        records.aggregate(mean_S.tolist(), seeds=seeds, law_names=law_names, law_name=name,
                          target="mean", **shared)  # fmt: skip
        columns = {t: value_ST[:, i] for i, t in enumerate(targets) if known_T[i]}
    else:
        columns = {"mean": mean_S}
    for target, value_S in columns.items():
        low, high = np.percentile(value_S, [LOW_PERCENTILE, HIGH_PERCENTILE])
        records.add(
            value=float(value_S.mean()),
            low=low,
            high=high,
            law_name=name,
            target=target,
            split=ALL_SPLITS if split is None else split,
            num_splits=len(value_S),
            **shared,
        )


def score_targets(scored: Scored, law: str) -> dict[str, np.ndarray]:
    """Returns each metric of a law, for every target; NaN where it has no losses."""
    value_XT, y_XT = scored.value_LXT[law], scored.y_XT
    columns = [(value_XT[:, [i]], y_XT[:, [i]]) for i in range(y_XT.shape[1])]
    off_XT = np.abs(value_XT - y_XT)
    metrics = {
        "spearman": np.array([mean_spearman(value_X1, y_X1) for value_X1, y_X1 in columns]),
        "regret": np.array([top_regret(value_X1, y_X1) for value_X1, y_X1 in columns]),
        "mae": mean_known(off_XT),
    }
    if law == "selected":
        inside_XT = np.where(np.isfinite(y_XT), off_XT <= scored.fit.half_T, np.nan)
        metrics["coverage"] = mean_known(inside_XT)
        metrics["width"] = 2 * scored.fit.half_T
    return metrics


def mean_known(value_XT: np.ndarray) -> np.ndarray:
    """Returns each column's mean of what is not NaN; NaN where nothing is left."""
    count_T = np.isfinite(value_XT).sum(axis=0)
    total_T = np.nansum(value_XT, axis=0)
    return np.where(count_T > 0, total_T / np.maximum(count_T, 1), np.nan)


def add_predictions(records: Records, scored: Scored, case: str, test: Runs) -> None:
    """Adds one record per run and target that was observed."""
    value_XT, half_T = scored.value_LXT["selected"], scored.fit.half_T
    for row, column in np.argwhere(np.isfinite(test.y_RT)):
        records.add(
            case=case,
            law="selected",
            law_name=scored.fit.law_name,
            metric="prediction",
            value=value_XT[row, column],
            low=value_XT[row, column] - half_T[column],
            high=value_XT[row, column] + half_T[column],
            observed=test.y_RT[row, column],
            unit=UNIT,
            n=scored.fit.n,
            target=test.targets[column],
            mixture=test.labels[row],
            seed=scored.fit.seed,
        )


if __name__ == "__main__":
    main()
