"""Whether the best schedule is better than the best constant mixture, both of them chosen.

Shape letters: X columns of a schedule, B bootstrap draws, P parameters, T targets.
"""

import math

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri, stdtrit

from mixlaw.fit.result import FitResult
from mixlaw.mixtures import Mixture
from mixlaw.optimize.interval import LEVEL, Gain
from mixlaw.optimize.misfit import measure_misfit
from mixlaw.optimize.objective import Objective

NOISE_DRAWS = 20
"""Draws of the error of differences for each draw of the bootstrap."""


def judge_schedule(
    fit: FitResult,
    objective: Objective,
    *,
    name: str,
    baseline_X: Float[np.ndarray, " X"],
    best_X: Float[np.ndarray, " X"],
    baseline_BX: Float[np.ndarray, "B X"],
    best_BX: Float[np.ndarray, "B X"],
) -> Gain:
    """Returns the gain of a schedule over another one, with limits that know of the winner's curse.

    In each draw both are chosen anew (a baseline that is not chosen is the same in all draws). What
    a draw promises for its choices, less what these gain under the fit itself, is its error; the
    mean of these errors is the optimism of choosing. The limits are meant to hold the difference of
    expected losses: those of the promised gain less the errors of the draws, plus the law's misfit
    (`mixlaw.optimize.interval`).

    Args:
        fit: The fitted law of schedules.
        objective: What was minimised.
        name: Of the baseline.
        baseline_X: The baseline.
        best_X: The chosen schedule.
        baseline_BX: The baseline in each draw.
        best_BX: The chosen schedule in each draw.
    """
    function = objective.under(fit, fit.theta_TP)
    value_2 = function.value(np.stack([baseline_X, best_X]))
    gain = float(value_2[0] - value_2[1])
    under_fit_B = function.value(baseline_BX) - function.value(best_BX)
    promised_B = np.empty(len(best_BX))
    for b, theta_TP in enumerate(fit.theta_draws_BTP):
        pair_2 = objective.under(fit, theta_TP).value(np.stack([baseline_BX[b], best_BX[b]]))
        promised_B[b] = pair_2[0] - pair_2[1]
    misfits = [measure_misfit(fit, objective.weights_at(fit, x)) for x in (best_X, baseline_X)]
    error_sd = max(misfit.difference_sd(baseline_X, best_X) for misfit in misfits)
    error_B = math.sqrt(misfits[0].inflation) * (promised_B - under_fit_B)
    optimism, freedom = float(np.mean(error_B)), misfits[0].freedom
    reach = float(stdtrit(freedom, (1 + LEVEL) / 2) / ndtri((1 + LEVEL) / 2))
    # The same draws for every call: a verdict must not change between two reports of one study.
    rng = np.random.default_rng(0)
    noise = rng.standard_t(freedom, (NOISE_DRAWS, len(error_B))) * error_sd
    possible = gain - optimism - (error_B - optimism) * reach + noise
    low, high = np.quantile(possible, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Gain(
        baseline=name,
        mixture=Mixture.from_array(fit.domains, baseline_X),
        value=gain,
        low=float(low),
        high=float(high),
        verdict="gain" if low > 0 else "loss" if high < 0 else "no evidence",
    )
