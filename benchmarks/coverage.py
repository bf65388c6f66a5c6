# ruff: noqa: E402 - threads are pinned before NumPy is imported
"""How often intervals hold what they should, on simulated studies like the demo.

    python benchmarks/coverage.py [--json] [--studies N] [--draws N] [--workers N]

Each study has 20 design mixtures of 5 domains (floor 0.04) that share one seed, 6 runs of two of
them with fresh seeds, and 8 held-out mixtures with fresh seeds. Half the truths are M4, the law
that is fitted; half are a power form, which M4 can't follow near the floors. Seeds differ by 0.01
nats: a common offset and an own part of each run, equally large. Intervals are meant to hold 90%.
Standard errors are over studies, which are independent; targets and mixtures within one are not.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
from scipy.optimize import minimize

from mixlaw.fit import fit_law
from mixlaw.mixtures import Mixture
from mixlaw.optimize import Optimum, WeightedLoss, optimize_mixture
from mixlaw.predict import Prediction, predict_losses, predict_weighted
from simulated import DESIGN_SEED, SimulatedStudy, floored_simplex, observe_losses, simulate_study

FORMS = ("exponential", "power")
"""Truths of the studies, in turn."""
OBJECTIVE = WeightedLoss({"d0": 0.5, "d1": 0.3, "unseen0": 0.2})
PROPORTIONAL = (0.08, 0.12, 0.5, 0.2, 0.1)
"""Of the tokens on hand: skewed, and not towards what the objective weighs."""


@dataclass(frozen=True, kw_only=True)
class GainRecord:
    """One predicted gain and what was true."""

    verdict: str
    predicted: float
    true: float
    """Difference of expected losses."""
    holds_true: bool
    holds_measured: bool
    """Whether the interval holds the difference of two runs with a fresh seed each."""


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """What one study says."""

    form: str
    coverage: float
    width: float
    mae: float
    objective_inside: float
    objective_width: float
    objective_mae: float
    mean_mae: float
    """Mean absolute error of predicting the mean of the design."""
    optimum_inside: bool
    """Whether a run of the optimum, with a fresh seed, lies in its interval."""
    gains: dict[str, GainRecord]


def score_study(number: int, *, draws: int) -> StudyRecord:
    """Returns the record of the study with this number."""
    form = FORMS[number % len(FORMS)]
    study = simulate_study(number, form=form)
    fit = fit_law("m4", study.runs, study.observations, num_draws=draws)
    each = predict_losses(fit, study.heldout)
    whole = predict_weighted(fit, study.heldout, OBJECTIVE.shares)
    weight_T = OBJECTIVE.row(fit)
    observed_R1 = (study.heldout_RT @ weight_T)[:, None]
    optimum = true_optimum(study, weight_T)
    uniform = Mixture.uniform(study.domains)
    close_M = 0.7 * optimum.array() + 0.3 * uniform.array()
    baselines = {
        "proportional": Mixture.from_array(study.domains, np.array(PROPORTIONAL)),
        "uniform": uniform,
        "close": Mixture.from_array(study.domains, close_M),
        "true optimum": optimum,
    }
    best = optimize_mixture(fit, OBJECTIVE, floored_simplex(study), baselines=baselines)
    return StudyRecord(
        form=form,
        coverage=float(np.mean(is_inside(each, study.heldout_RT))),
        width=float(np.mean(each.high_RK - each.low_RK)),
        mae=float(np.mean(np.abs(each.value_RK - study.heldout_RT))),
        objective_inside=float(np.mean(is_inside(whole, observed_R1))),
        objective_width=float(np.mean(whole.high_RK - whole.low_RK)),
        objective_mae=float(np.mean(np.abs(whole.value_RK - observed_R1))),
        mean_mae=float(np.mean(np.abs(fit.table.y_RT.mean(axis=0) - study.heldout_RT))),
        optimum_inside=holds_optimum(study, best, weight_T, number),
        gains={name: score_gain(study, best, name, weight_T, number) for name in baselines},
    )


def is_inside(predicted: Prediction, observed_RK: np.ndarray) -> np.ndarray:
    """Returns which observations lie inside their intervals."""
    return (predicted.low_RK <= observed_RK) & (observed_RK <= predicted.high_RK)


def true_optimum(study: SimulatedStudy, weight_T: np.ndarray) -> Mixture:
    """Returns the mixture that is best in truth; a gain over it can only be claimed in error."""
    count = len(study.domains)
    found = minimize(
        lambda r_M: float(study.truth(r_M[None])[0] @ weight_T),
        np.full(count, 1 / count),
        bounds=[(0.04, 1.0)] * count,
        constraints={"type": "eq", "fun": lambda r_M: np.sum(r_M) - 1.0},
        method="SLSQP",
        options={"ftol": 1e-12},
    )
    return Mixture.from_array(study.domains, floored_simplex(study).nearest(found.x))


def holds_optimum(study: SimulatedStudy, best: Optimum, weight_T: np.ndarray, number: int) -> bool:
    """Returns whether a run of the optimum with a fresh seed lies in its predicted interval."""
    r_1M = best.mixture.array(study.domains)[None]
    rng = np.random.default_rng([number, 2])
    measured = observe_losses(rng, study.truth, r_1M, (DESIGN_SEED + 6000,), study.noise) @ weight_T
    return best.loss_low <= float(measured[0]) <= best.loss_high


def score_gain(
    study: SimulatedStudy, best: Optimum, name: str, weight_T: np.ndarray, number: int
) -> GainRecord:
    """Returns what the gain over a baseline was predicted to be and is."""
    gain = best.gain_over(name)
    r_2M = np.stack([gain.mixture.array(study.domains), best.mixture.array(study.domains)])
    true_2 = study.truth(r_2M) @ weight_T
    rng = np.random.default_rng([number, 1])
    fresh = (DESIGN_SEED + 5000, DESIGN_SEED + 5001)
    measured_2 = observe_losses(rng, study.truth, r_2M, fresh, study.noise) @ weight_T
    true, measured = float(true_2[0] - true_2[1]), float(measured_2[0] - measured_2[1])
    return GainRecord(
        verdict=gain.verdict,
        predicted=gain.value,
        true=true,
        holds_true=gain.low <= true <= gain.high,
        holds_measured=gain.low <= measured <= gain.high,
    )


def summarize(records: Sequence[StudyRecord]) -> dict[str, Any]:
    """Returns means over the studies."""
    coverage = np.array([record.coverage for record in records])
    inside = np.array([record.objective_inside for record in records])
    root = np.sqrt(len(records))
    return {
        "studies": len(records),
        "coverage": float(coverage.mean()),
        "coverage_se": float(coverage.std(ddof=1) / root),
        "width_over_mae": _ratio(records, "width", "mae"),
        "mae": float(np.mean([record.mae for record in records])),
        "mae_over_mean_mae": _ratio(records, "mae", "mean_mae"),
        "objective_coverage": float(inside.mean()),
        "objective_coverage_se": float(inside.std(ddof=1) / root),
        "objective_width_over_mae": _ratio(records, "objective_width", "objective_mae"),
        "optimum_coverage": float(np.mean([record.optimum_inside for record in records])),
        "gains": {
            name: _summarize_gains([record.gains[name] for record in records])
            for name in records[0].gains
        },
    }


def _summarize_gains(gains: Sequence[GainRecord]) -> dict[str, Any]:
    claimed = [gain for gain in gains if gain.verdict == "gain"]
    return {
        "claimed": len(claimed) / len(gains),
        "wrongly_claimed": sum(gain.true <= 0 for gain in claimed) / len(gains),
        "loss_claimed": sum(gain.verdict == "loss" for gain in gains) / len(gains),
        "true_gains_missed": sum(g.true > 0 and g.verdict != "gain" for g in gains) / len(gains),
        "holds_true": float(np.mean([gain.holds_true for gain in gains])),
        "holds_measured": float(np.mean([gain.holds_measured for gain in gains])),
        "predicted": float(np.mean([gain.predicted for gain in gains])),
        "true": float(np.mean([gain.true for gain in gains])),
    }


def _ratio(records: Sequence[StudyRecord], above: str, below: str) -> float:
    mean = {name: np.mean([getattr(record, name) for record in records]) for name in (above, below)}
    return float(mean[above] / mean[below])


def main() -> None:
    """Scores the studies and prints the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--draws", type=int, default=200, help="bootstrap draws of each fit")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    started = time.perf_counter()
    # Polars has threads, which a fork does not survive.
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        score = partial(score_study, draws=options.draws)
        records = list(pool.map(score, range(options.studies), chunksize=4))
    result = {
        "all": summarize(records),
        **{form: summarize([r for r in records if r.form == form]) for form in FORMS},
        "level": 0.9,
        "wall_seconds": round(time.perf_counter() - started, 1),
    }
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for form in ("all", *FORMS):
        print_summary(form, result[form])


def print_summary(form: str, summary: dict[str, Any]) -> None:
    """Prints the means of one kind of truth."""
    print(
        f"{form}: {summary['studies']} studies, intervals at 90%\n"
        f"  targets    hold {summary['coverage']:.1%} (se {summary['coverage_se']:.1%}),"
        f" width {summary['width_over_mae']:.2f} x mean absolute error"
        f" ({summary['mae']:.4f}, {summary['mae_over_mean_mae']:.2f} of predicting the mean)\n"
        f"  objective  hold {summary['objective_coverage']:.1%}"
        f" (se {summary['objective_coverage_se']:.1%}),"
        f" width {summary['objective_width_over_mae']:.2f} x mean absolute error\n"
        f"  optimum    holds a run of it in {summary['optimum_coverage']:.1%} of the studies"
    )
    for name, gain in summary["gains"].items():
        print(
            f"  gain over {name:12}  claimed {gain['claimed']:.1%},"
            f" wrongly {gain['wrongly_claimed']:.1%}, missed {gain['true_gains_missed']:.1%};"
            f" interval holds the true gain {gain['holds_true']:.1%},"
            f" a measured one {gain['holds_measured']:.1%};"
            f" predicted {gain['predicted']:.4f}, true {gain['true']:.4f}"
        )


if __name__ == "__main__":
    main()
