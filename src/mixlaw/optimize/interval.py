"""How sure the optimum's loss and its gain are, given that the optimum was chosen.

In each bootstrap draw the optimum is chosen anew. What the draw promises of its choice, less what
the fit says of it, is the error of one draw; the mean of these errors is the optimism of choosing.
Misfit of the law is added (`misfit`), and to the loss of one new run the noise of its seed.

Shape letters: M training domains, T targets, B bootstrap draws.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mixlaw.fit.result import FitResult
from mixlaw.mixtures import Mixture
from mixlaw.optimize.misfit import measure_misfit
from mixlaw.optimize.objective import Objective
from mixlaw.predict import predict_weighted

LEVEL = 0.9
"""Level of all intervals of an optimum."""
NOISES = 20
"""Misfits that are drawn for each bootstrap draw."""
ROUNDING = 1e-9
"""Differences below this share of the objective are rounding: losses that are all alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """By how much the optimum's loss is expected to lie below a baseline's."""

    baseline: str
    mixture: Mixture
    value: float
    """Predicted difference of the objective, baseline less optimum; positive is better."""
    low: float
    """Lower limit, after the optimism of choosing the best and the error of differences."""
    high: float
    verdict: str
    """gain | no evidence | loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossInterval:
    """The objective at the optimum, as one new run with a fresh seed will have it."""

    value: float
    low: float
    high: float
    notes: tuple[str, ...]
    """What the interval does not hold, in sentences."""


def bracket_loss(
    fit: FitResult,
    objective: Objective,
    *,
    r_M: Float[np.ndarray, " M"],
    chosen_BM: Float[np.ndarray, "B M"],
) -> LossInterval:
    """Returns the objective at the chosen mixture with the interval of one new run of it.

    The value is what the law predicts; the interval lies around what is left of it after the
    optimism of choosing.

    Args:
        fit: The fitted law.
        objective: What was minimised.
        r_M: The chosen mixture.
        chosen_BM: What each bootstrap draw would have chosen.
    """
    weight_T = objective.weights_at(fit, r_M)
    misfit = measure_misfit(fit, weight_T)
    under_fit = objective.under(fit, fit.theta_TP)
    promised_B = np.array(
        [
            float(objective.under(fit, theta_TP).value(chosen_M[None])[0])
            for theta_TP, chosen_M in zip(fit.theta_draws_BTP, chosen_BM, strict=True)
        ]
    )
    error_B = math.sqrt(misfit.inflation) * (promised_B - under_fit.value(chosen_BM))
    value = float(under_fit.value(r_M[None])[0])
    middle = value - float(np.mean(error_B))
    variance = float(np.var(error_B)) + float(misfit.variances(r_M[None])[0])
    half = math.hypot(
        _quantile(misfit.freedom) * math.sqrt(variance),
        _seed_halfwidth(fit, weight_T, misfit.noise_variance),
        objective.own_halfwidth(fit, r_M, level=LEVEL),
    )
    return LossInterval(
        value=value, low=middle - half, high=middle + half, notes=_notes(fit, weight_T, r_M)
    )


def judge_gain(
    fit: FitResult,
    objective: Objective,
    *,
    name: str,
    baseline: Mixture,
    r_M: Float[np.ndarray, " M"],
    chosen_BM: Float[np.ndarray, "B M"],
) -> Gain:
    """Returns the gain over a baseline, with limits that know of the winner's curse.

    The limits are meant to hold the difference of the expected losses, which many runs would show:
    what a seed does to all mixtures cancels in it, and what it does to one run is no gain. They are
    those of the predicted gain less the errors of the draws, plus the misfit's difference.
    """
    base_M = baseline.array()
    value_2 = objective.under(fit, fit.theta_TP).value(np.stack([base_M, r_M]))
    gain = float(value_2[0] - value_2[1])
    misfits = [measure_misfit(fit, objective.weights_at(fit, at_M)) for at_M in (r_M, base_M)]
    # Where the objective's slopes differ between the two, the larger misfit counts.
    error_sd = max(misfit.difference_sd(base_M, r_M) for misfit in misfits)
    error_B = math.sqrt(misfits[0].inflation) * _draw_errors(fit, objective, base_M, chosen_BM)
    optimism, freedom = float(np.mean(error_B)), misfits[0].freedom
    own_sd = objective.own_difference_sd(fit, r_M, base_M)
    error_sd = math.hypot(error_sd, own_sd * math.sqrt(misfits[0].apart(base_M, r_M)))
    # The runs' variance is an estimate: its draws lie as far apart as Student's t has it.
    spread_B = (error_B - optimism) * _quantile(freedom) / _quantile(math.inf)
    # The same draws for every call: a verdict must not change between two reports of one study.
    rng = np.random.default_rng(0)
    noise_B = rng.standard_t(freedom, (NOISES, len(spread_B))) * error_sd
    possible = gain - optimism - spread_B + noise_B
    low, high = np.quantile(possible, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    least = ROUNDING * float(np.max(np.abs(value_2)))
    verdict = "gain" if low > least else "loss" if high < -least else "no evidence"
    return Gain(
        baseline=name,
        mixture=baseline,
        value=gain,
        low=float(low),
        high=float(high),
        verdict=verdict,
    )


def _draw_errors(
    fit: FitResult,
    objective: Objective,
    base_M: Float[np.ndarray, " M"],
    chosen_BM: Float[np.ndarray, "B M"],
) -> Float[np.ndarray, " B"]:
    """Returns the gain that each draw promises of its choice, less what the fit says of it."""
    under_fit = objective.under(fit, fit.theta_TP)
    fitted_B = under_fit.value(base_M[None])[0] - under_fit.value(chosen_BM)
    promised_B = np.empty(len(chosen_BM))
    for i, theta_TP in enumerate(fit.theta_draws_BTP):
        base, chosen = objective.under(fit, theta_TP).value(np.stack([base_M, chosen_BM[i]]))
        promised_B[i] = base - chosen
    return promised_B - fitted_B


def _seed_halfwidth(
    fit: FitResult, weight_T: Float[np.ndarray, " T"], noise_variance: float
) -> float:
    """Returns what one new run's seed adds; 0 where the noise between seeds is not known.

    And what all mixtures share beyond the runs' scale.
    """
    level = 0.0
    if fit.level_draws_BT is not None:
        level = float(np.abs(weight_T) @ np.std(fit.level_draws_BT, axis=0))
    half = _quantile(math.inf) * level
    if noise_variance == 0:
        return half
    seed_sd = float(fit.seed_sd(weight_T[None])[0])
    sd = math.sqrt(noise_variance + fit.seed_factor * seed_sd**2)
    return math.hypot(half, _quantile(float(fit.replicate_freedom)) * sd)


def _quantile(freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, max(freedom, 1.0)))


def _notes(
    fit: FitResult, weight_T: Float[np.ndarray, " T"], r_M: Float[np.ndarray, " M"]
) -> tuple[str, ...]:
    """Returns what a prediction of the mixture would say of what it does not know."""
    weights = dict(zip(fit.targets, map(float, weight_T), strict=True))
    mixture = Mixture.from_array(fit.domains, r_M)
    return predict_weighted(fit, [mixture], weights, level=LEVEL).notes
