"""The best mixture, what it is expected to gain, and how sure that is.

Shape letters: R runs, M training domains, T targets, B bootstrap draws.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mixlaw.fit.result import FitResult
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.optimize.baselines import distance_to_runs
from mixlaw.optimize.objective import ObjectiveFunction, WeightedLoss
from mixlaw.optimize.solver import minimize_objective
from mixlaw.predict import difference_sd, predict_losses, predict_weighted

CERTIFIED_GAP = 1e-6
"""A gap below this, in the objective's unit, is called certified."""
AT_BOUND = 1e-6
"""A share this close to its floor or cap is at it."""
LEVEL = 0.9
"""Level of all intervals here."""
DIGITS = 4
"""Digits of the optimum's shares."""


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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Optimum:
    """The best mixture under a fitted law, with all that is needed to judge it."""

    mixture: Mixture
    objective: WeightedLoss
    loss: float
    """Predicted objective, in the unit of the fit."""
    loss_low: float
    loss_high: float
    target_losses: Mapping[str, tuple[float, float, float]]
    """Predicted loss of each target with the interval of one new run: value, low, high."""
    gap: float
    """No allowed mixture is lower than `loss - gap` under this law, if it is convex."""
    is_convex: bool
    at_floor: tuple[str, ...]
    at_cap: tuple[str, ...]
    proportion_range: Mapping[str, tuple[float, float]]
    """Middle 90% of each proportion's optimum over the bootstrap draws."""
    distance_to_runs: float
    """Share that must move to get to the closest mixture that was run."""
    gains: tuple[Gain, ...]
    """Against each baseline."""
    level: float
    notes: tuple[str, ...]

    @property
    def certificate(self) -> str:
        """What is proven about the optimum, in a sentence."""
        if not self.is_convex:
            return "not certified: the law is not convex, a lower mixture may lie elsewhere"
        if self.gap > CERTIFIED_GAP:
            return f"not certified: a mixture could be {self.gap:.2g} lower under this law"
        return (
            f"certified: no allowed mixture is more than {max(self.gap, 1e-9):.1g} lower under"
            " this law; a certificate is about the law, not about the world"
        )

    def gain_over(self, baseline: str) -> Gain:
        """Returns the gain over a baseline by its name."""
        return next(gain for gain in self.gains if gain.baseline == baseline)


def optimize_mixture(
    fit: FitResult,
    objective: WeightedLoss,
    allowed: CappedSimplex,
    *,
    baselines: Mapping[str, Mixture] | None = None,
) -> Optimum:
    """Returns the mixture with the least weighted loss among the allowed ones.

    Args:
        fit: A fitted law.
        objective: What is minimised.
        allowed: Floors and caps, over the domains of the fit.
        baselines: Mixtures that the optimum is compared with, by name.

    Raises:
        FitError: A weighted target is not in the fit.
        MixtureError: The allowed domains are not those of the fit.
    """
    allowed = _ordered(allowed, fit.domains)
    weight_T = objective.row(fit)
    function = ObjectiveFunction.of(fit.law, fit.theta_TP, weight_T)
    minimum = minimize_objective(function, allowed)
    r_M = round_shares(minimum.r_M, allowed)
    mixture = Mixture.from_array(fit.domains, r_M)
    # What rounding costs is no news about the law: it is added to the gap.
    gap = float(function.value(r_M[None])[0]) - minimum.value + minimum.gap
    chosen_BM = np.stack(
        [
            minimize_objective(
                ObjectiveFunction.of(fit.law, theta_TP, weight_T), allowed, start_M=minimum.r_M
            ).r_M
            for theta_TP in fit.theta_draws_BTP
        ]
    )
    whole = predict_weighted(fit, [mixture], objective.shares, level=LEVEL)
    each = predict_losses(fit, [mixture], level=LEVEL)
    low_M, high_M = np.quantile(chosen_BM, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return Optimum(
        mixture=mixture,
        objective=objective,
        loss=float(whole.value_RK[0, 0]),
        loss_low=float(whole.low_RK[0, 0]),
        loss_high=float(whole.high_RK[0, 0]),
        target_losses={
            target: (
                float(each.value_RK[0, i]),
                float(each.low_RK[0, i]),
                float(each.high_RK[0, i]),
            )
            for i, target in enumerate(fit.targets)
        },
        gap=max(gap, 0.0),
        is_convex=function.is_convex,
        at_floor=tuple(
            name
            for name, share, floor in zip(fit.domains, r_M, allowed.floors, strict=True)
            if share - floor < AT_BOUND
        ),
        at_cap=tuple(
            name
            for name, share, cap in zip(fit.domains, r_M, allowed.caps, strict=True)
            if cap - share < AT_BOUND and cap < 1
        ),
        proportion_range={
            name: (float(low), float(high))
            for name, low, high in zip(fit.domains, low_M, high_M, strict=True)
        },
        distance_to_runs=distance_to_runs(r_M, fit.table.r_RM),
        gains=tuple(
            _gain(fit, objective, name, baseline.reordered(fit.domains), r_M, chosen_BM)
            for name, baseline in (baselines or {}).items()
        ),
        level=LEVEL,
        notes=(*fit.notes, *whole.notes),
    )


def round_shares(r_M: Float[np.ndarray, " M"], allowed: CappedSimplex) -> Float[np.ndarray, " M"]:
    """Returns the shares to four digits, within the bounds; the one with most room takes the rest.

    A team writes no more digits, and two machines must find the same mixture. What lies at a bound
    stays there, however many digits the bound has: next to it, each 1e-4 costs in the first order.
    """
    rounded_M = np.clip(np.round(r_M, DIGITS), allowed.floor_M, allowed.cap_M)
    rounded_M = np.where(r_M - allowed.floor_M < AT_BOUND, allowed.floor_M, rounded_M)
    rounded_M = np.where(allowed.cap_M - r_M < AT_BOUND, allowed.cap_M, rounded_M)
    room_M = np.minimum(rounded_M - allowed.floor_M, allowed.cap_M - rounded_M)
    for j in np.argsort(-room_M, kind="stable"):
        share = rounded_M[j] + 1.0 - float(np.sum(rounded_M))
        rounded_M[j] = min(max(share, allowed.floors[j]), allowed.caps[j])
    return rounded_M


def _gain(
    fit: FitResult,
    objective: WeightedLoss,
    name: str,
    baseline: Mixture,
    r_M: Float[np.ndarray, " M"],
    chosen_BM: Float[np.ndarray, "B M"],
) -> Gain:
    """Returns the gain over a baseline, with limits that know of the winner's curse.

    In each draw the optimum is chosen anew; what that draw promises less what its choice gains
    under the fit itself is the optimism of choosing. The limits are those of the promised gain less
    the optimism, plus the error of predicted differences between mixtures, seeds included.
    """
    weight_T = objective.row(fit)
    base_M = baseline.array()
    value_2 = fit.losses(np.stack([base_M, r_M])) @ weight_T
    gain = float(value_2[0] - value_2[1])
    under_fit_B = value_2[0] - fit.losses(chosen_BM) @ weight_T
    promised_B = np.array(
        [
            (difference := ObjectiveFunction(fit.law, theta_TP, weight_T).value(pair_2M))[0]
            - difference[1]
            for theta_TP, pair_2M in zip(
                fit.theta_draws_BTP,
                np.stack([np.broadcast_to(base_M, chosen_BM.shape), chosen_BM], axis=1),
                strict=True,
            )
        ]
    )
    optimism_B = promised_B - under_fit_B
    best = Mixture.from_array(fit.domains, r_M)
    error_sd = difference_sd(fit, objective.shares, between=(baseline, best))
    # The same draws for every call: a verdict must not change between two reports of one study.
    rng = np.random.default_rng(0)
    noise_B = rng.standard_t(fit.num_mixtures - 1, (20, len(optimism_B))) * error_sd
    possible = gain - optimism_B + noise_B
    low, high = np.quantile(possible, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    verdict = "gain" if low > 0 else "loss" if high < 0 else "no evidence"
    return Gain(
        baseline=name,
        mixture=baseline,
        value=gain,
        low=float(low),
        high=float(high),
        verdict=verdict,
    )


def _ordered(allowed: CappedSimplex, domains: tuple[str, ...]) -> CappedSimplex:
    """Returns the floors and caps in the order of the fit's domains."""
    floors = dict(zip(allowed.names, allowed.floors, strict=True))
    caps = dict(zip(allowed.names, allowed.caps, strict=True))
    Mixture.uniform(allowed.names).array(domains)  # raises where the domains differ
    return CappedSimplex(
        domains, tuple(floors[name] for name in domains), tuple(caps[name] for name in domains)
    )
