"""What `mixlaw optimize` says of one simulated study, beside the truth.

Shape letters: R mixtures, M training domains, T targets, K columns.
"""

import math
import time
from typing import Any

import numpy as np
from scipy.stats import norm

from coverage_studies import Question, decide, make_question, true_objective
from mixlaw.fit import FitResult
from mixlaw.laws.stack import StackedLaw
from mixlaw.mixtures import Mixture
from mixlaw.optimize import Gain, Optimum, optimize_mixture
from mixlaw.predict import difference_sd, predict_losses

MISSED = 2 / (1 - 0.9)
"""What the interval score counts for each unit that a 90% interval misses by."""
STEP = 1e-5
"""Share that moves in a difference quotient."""


def judge_study(number: int, *, half: str, layout: str, num_draws: int = 200) -> dict[str, Any]:
    """Returns the record of one study, as plain values."""
    started = time.perf_counter()
    question = make_question(number, half=half, layout=layout)
    choice, fit = decide(question, num_draws=num_draws)
    best = optimize_mixture(
        fit,
        question.objective,
        question.allowed,
        baselines=question.baselines,
        with_details=False,
    )
    seconds = time.perf_counter() - started
    weight_T = question.objective.row(fit)
    left_out_R = fit.left_out_residual_RT @ weight_T
    heldout = predict_losses(fit, question.study.heldout)
    observed_RT = question.study.heldout_RT
    return {
        "layout": layout,
        "half": half,
        "number": number,
        "family": question.family,
        "law": choice.name,
        "is_stack": isinstance(choice.best, StackedLaw),
        "left_out_over_spread": float(
            np.sqrt(np.mean(left_out_R**2)) / np.std(fit.table.y_RT @ weight_T)
        ),
        "heldout_coverage": float(
            np.mean((heldout.low_RK <= observed_RT) & (observed_RT <= heldout.high_RK))
        ),
        "loss": judge_loss(question, best),
        "gains": {gain.baseline: judge_gain_of(question, best, gain) for gain in best.gains},
        **judge_optimum(question, fit, best),
        "seconds": seconds,
    }


def judge_loss(question: Question, best: Optimum) -> dict[str, float]:
    """Returns how probable it is that one new run of the optimum lies in its interval."""
    study = question.study
    true = float(_true(question, best.mixture)[0])
    shares = np.array(list(question.objective.shares.values()))
    sd = math.hypot(study.noise.offset_sd, study.noise.own_sd) * float(np.sqrt(np.sum(shares**2)))
    low, high = (best.loss_low - true) / sd, (best.loss_high - true) / sd
    below, above = float(norm.cdf(low)), float(norm.sf(high))
    missed = sd * (_excess(-low) + _excess(high))
    width = best.loss_high - best.loss_low
    return {
        "inside": 1 - below - above,
        "too_high": below,
        "too_low": above,
        "width": width,
        "score": width + MISSED * missed,
        "error": true - best.loss,
    }


def _excess(bound: float) -> float:
    """Returns the mean of what a standard normal number lies above a bound by."""
    return float(norm.pdf(bound) - bound * norm.sf(bound))


def judge_gain_of(question: Question, best: Optimum, gain: Gain) -> dict[str, Any]:
    """Returns whether a gain's interval holds the true difference of expected losses."""
    base, optimum = _true(question, gain.mixture, best.mixture)
    true = float(base - optimum)
    missed = max(gain.low - true, 0.0) + max(true - gain.high, 0.0)
    width = gain.high - gain.low
    return {
        "inside": gain.low <= true <= gain.high,
        "too_high": true < gain.low,
        "too_low": true > gain.high,
        "width": width,
        "score": width + MISSED * missed,
        "verdict": gain.verdict,
        "value": gain.value,
        "true": true,
    }


def judge_optimum(question: Question, fit: FitResult, best: Optimum) -> dict[str, Any]:
    """Returns how good the optimum is, and what is said of mixtures around it."""
    true_best = question.baselines["true optimum"]
    pair = np.stack([true_best.array(fit.domains), best.mixture.array(fit.domains)])
    true_2 = _true(question, true_best, best.mixture)
    predicted_2 = question.objective.function(fit).value(pair)
    tolerance = difference_sd(fit, question.objective.shares)
    ranges = [best.proportion_range[name] for name in fit.domains]
    inside = [
        low - 1e-4 <= share <= high + 1e-4
        for share, (low, high) in zip(pair[0], ranges, strict=True)
    ]
    return {
        "regret": float(true_2[1] - true_2[0]),
        "near_optimal": bool(predicted_2[0] - predicted_2[1] <= tolerance),
        "share_inside": float(np.mean(inside)),
        "price_signs": judge_prices(question, fit, best),
    }


def judge_prices(question: Question, fit: FitResult, best: Optimum) -> list[bool]:
    """Returns for each domain at its floor whether more of it would harm, as its price says.

    A price is the slope towards the domain less that towards those that lie at no bound.
    """
    r_M = best.mixture.array(fit.domains)
    floor_M = question.allowed.floor_M
    free_M = (r_M > floor_M + 1e-3) & (r_M < 1 - 1e-3)
    if not free_M.any():
        return []
    slope_M = question.objective.function(fit).gradient(r_M)
    ahead_MM = r_M + STEP * np.eye(len(r_M))
    true_M = true_objective(question.study, question.objective, np.vstack([r_M, ahead_MM]))
    true_slope_M = (true_M[1:] - true_M[0]) / STEP
    bound = np.flatnonzero(r_M <= floor_M + 1e-6)
    return [
        bool((slope[j] > slope[free_M].mean()) == (true_slope[j] > true_slope[free_M].mean()))
        for j in bound
        for slope, true_slope in [(slope_M, true_slope_M)]
    ]


def _true(question: Question, *mixtures: Mixture) -> np.ndarray:
    r_RM = np.stack([mixture.array(question.study.domains) for mixture in mixtures])
    return true_objective(question.study, question.objective, r_RM)
