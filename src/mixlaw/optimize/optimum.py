"""The best mixture, what it is expected to gain, and how sure that is.

Shape letters: R runs, M training domains, T targets, B bootstrap draws, K two mixtures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from mixlaw.domains import Domain, Scale
from mixlaw.errors import OptimizeError
from mixlaw.fit.result import FitResult
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.optimize.baselines import distance_to_runs
from mixlaw.optimize.constraints import Constraints
from mixlaw.optimize.interval import LEVEL, Gain, bracket_loss, judge_gain
from mixlaw.optimize.misfit import measure_misfit
from mixlaw.optimize.near_optimal import NearOptimal, find_near_optimal
from mixlaw.optimize.objective import Objective, ObjectiveFunction
from mixlaw.optimize.prices import ShadowPrice, find_prices
from mixlaw.optimize.region import Region, distance_to_hull
from mixlaw.optimize.rivals import LawOptimum, compare_rivals, fit_rivals
from mixlaw.optimize.savings import Savings
from mixlaw.optimize.sensitivity import LeftOutOptimum, leave_mixtures_out
from mixlaw.optimize.solver import Minimum, minimize_draws, minimize_objective
from mixlaw.predict import difference_sd, predict_losses
from mixlaw.selection import LawChoice

CERTIFIED_GAP = 1e-6
"""A gap below this, in the objective's unit, is called certified."""
AT_BOUND = 1e-6
"""A share this close to its floor or cap is at it."""
DIGITS = 4
"""Digits of the optimum's shares."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Optimum:
    """The best mixture under a fitted law, with all that is needed to judge it."""

    mixture: Mixture
    objective: Objective
    loss: float
    """Predicted objective, in the unit of the fit."""
    loss_low: float
    loss_high: float
    weights: Mapping[str, float]
    """What each target's loss counts at the optimum: the objective's derivatives, those that are
    not zero."""
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
    distance_to_hull: float
    """Share that must move to get between the runs, into their convex hull; 0: it is there."""
    gains: tuple[Gain, ...]
    """Against each baseline."""
    target_gains: Mapping[str, Mapping[str, tuple[float, float, float]]]
    """By baseline and target: loss of the baseline less that of the optimum, low and high."""
    level: float
    notes: tuple[str, ...]
    law: str = ""
    """The law that was fitted."""
    unit: str = ""
    """Of the losses."""
    starts: tuple[int, int] = (1, 1)
    """Starts of the search, and how many of them ended at this optimum."""
    epochs: Mapping[str, float | None] = field(default_factory=dict[str, float | None])
    """How often the run to be decided would see each domain; None: not known."""
    prices: tuple[ShadowPrice, ...] = ()
    """What each binding constraint costs, the dearest first."""
    near_optimal: NearOptimal | None = None
    """How far each share can move at a loss below the noise; None: not asked for."""
    rivals: tuple[LawOptimum, ...] = ()
    """The optima of the other laws that predict as well, within one standard error."""
    left_out: tuple[LeftOutOptimum, ...] = ()
    """The optimum without each mixture, the one that moves it most first."""
    savings: Mapping[str, Savings] = field(default_factory=dict[str, Savings])
    """By baseline: steps, tokens and FLOPs until its loss is reached, where runs tell."""
    is_extrapolated: bool = False
    """Whether the run to be decided has another scale than the law is for."""

    @property
    def objective_unit(self) -> str:
        """Unit of the objective, its gains and prices: that of losses, `relative` or `error`."""
        return self.objective.unit(self.unit)

    @property
    def certificate(self) -> str:
        """What is proven about the optimum, in a sentence."""
        if not self.is_convex:
            count, agreeing = self.starts
            tried = f"; {agreeing} of {count} starts ended here" if count > 1 else ""
            return (
                "not certified: the objective is not convex under this law, a lower mixture may lie"
                f" elsewhere{tried}"
            )
        if self.gap > CERTIFIED_GAP:
            return f"not certified: a mixture could be {self.gap:.2g} lower under this law"
        return (
            f"certified: no allowed mixture is more than {max(self.gap, 1e-9):.1g} lower under"
            " this law; a certificate is about the law, not about the world"
        )

    @property
    def verdict(self) -> str:
        """Gain | no evidence | loss, against the first baseline; `no baseline` without one."""
        return self.gains[0].verdict if self.gains else "no baseline"

    def gain_over(self, baseline: str) -> Gain:
        """Returns the gain over a baseline by its name.

        Raises:
            OptimizeError: It was not compared with such a baseline.
        """
        gains = {gain.baseline: gain for gain in self.gains}
        if baseline not in gains:
            raise OptimizeError(
                f"the optimum was not compared with {baseline!r}",
                do=f"the baselines are {', '.join(gains) or 'none'}",
            )
        return gains[baseline]


def optimize_mixture(
    fit: FitResult,
    objective: Objective,
    constraints: Constraints | Region | CappedSimplex,
    *,
    scale: Scale | None = None,
    baselines: Mapping[str, Mixture] | None = None,
    choice: LawChoice | None = None,
    rivals: Sequence[FitResult] = (),
    domains: Sequence[Domain] = (),
    with_details: bool = True,
) -> Optimum:
    """Returns the mixture with the least objective among the allowed ones.

    Args:
        fit: A fitted law.
        objective: What is minimised.
        constraints: Which mixtures are allowed, over the domains of the fit.
        scale: The run that is to be decided: caps from the token supply, epochs and prices per
            token follow from it.
        baselines: Mixtures that the optimum is compared with, by name.
        choice: How well each law predicts: those within one standard error of the best are fitted
            as well, and asked for their optima.
        rivals: Such laws where they are fitted already.
        domains: What is known of the domains' tokens; those of the constraints by default.
        with_details: Also prices, the near-optimal set and what each mixture contributed.

    Raises:
        FitError: A target of the objective is not in the fit.
        MixtureError: The domains are not those of the fit.
        OptimizeError: The constraints conflict, or the search failed.
    """
    region = as_region(constraints, fit, scale=scale)
    if isinstance(constraints, Constraints):
        domains = domains or constraints.domains
    known = {domain.name: domain for domain in domains}
    rivals = (*rivals, *(() if choice is None else fit_rivals(fit, choice)))
    function = objective.function(fit)
    minimum = minimize_objective(function, region)
    r_M = _round_cheaply(function, minimum, region)
    chosen_BM = minimize_draws(objective, fit, region, start_M=minimum.r_M)
    mixture = Mixture.from_array(fit.domains, r_M)
    loss = bracket_loss(fit, objective, r_M=r_M, chosen_BM=chosen_BM)
    compared = {name: one.reordered(fit.domains) for name, one in (baselines or {}).items()}
    weights = _named(objective.weights_at(fit, r_M), fit.targets)
    # What rounding costs is no news about the law: it is added to the gap.
    gap = float(function.value(r_M[None])[0]) - minimum.value + minimum.gap
    noise = difference_sd(fit, weights) if weights else 0.0
    return Optimum(
        mixture=mixture,
        objective=objective,
        loss=loss.value,
        loss_low=loss.low,
        loss_high=loss.high,
        weights=weights,
        target_losses=_target_losses(fit, mixture),
        gap=max(gap, 0.0),
        is_convex=minimum.is_certified,
        at_floor=_at_bounds(fit.domains, r_M - region.floor_M, region.floor_M >= 0),
        at_cap=_at_bounds(fit.domains, region.cap_M - r_M, region.cap_M < 1),
        proportion_range=_draw_ranges(fit.domains, chosen_BM),
        distance_to_runs=distance_to_runs(r_M, fit.table.r_RM),
        distance_to_hull=distance_to_hull(r_M, fit.table.r_RM),
        gains=tuple(
            judge_gain(fit, objective, name=name, baseline=one, r_M=r_M, chosen_BM=chosen_BM)
            for name, one in compared.items()
        ),
        target_gains={name: _target_gains(fit, one, mixture) for name, one in compared.items()},
        level=LEVEL,
        notes=(*fit.notes, *loss.notes),
        law=fit.law.name,
        unit=fit.table.unit,
        starts=(minimum.num_starts, minimum.starts_agreeing),
        epochs=_epochs(mixture, known, scale),
        rivals=compare_rivals(fit, objective, region, r_M=r_M, rivals=rivals),
        prices=find_prices(function, region, minimum=minimum, domains=known, scale=scale)
        if with_details
        else (),
        near_optimal=find_near_optimal(function, region, minimum=minimum, tolerance=noise)
        if with_details and noise > 0
        else None,
        left_out=leave_mixtures_out(fit, objective, region, r_M=r_M) if with_details else (),
    )


def as_region(
    constraints: Constraints | Region | CappedSimplex, fit: FitResult, *, scale: Scale | None
) -> Region:
    """Returns the allowed mixtures over the domains of a fit, in their order.

    Raises:
        MixtureError: The domains are not those of the fit.
        OptimizeError: The constraints conflict.
    """
    if isinstance(constraints, Constraints):
        region = constraints.region(scale, runs_RM=fit.table.r_RM)
    elif isinstance(constraints, CappedSimplex):
        region = Region.of(constraints)
    else:
        region = constraints
    Mixture.uniform(region.names).array(fit.domains)  # raises where the domains differ
    return region.reordered(fit.domains)


def _round_cheaply(
    function: ObjectiveFunction, minimum: Minimum, region: Region
) -> Float[np.ndarray, " M"]:
    """Returns the minimum to as few digits, from four on, as leave its certificate whole."""
    for digits in (DIGITS, DIGITS + 1, DIGITS + 2):
        r_M = round_shares(minimum.r_M, region, digits=digits)
        if float(function.value(r_M[None])[0]) - minimum.value <= CERTIFIED_GAP / 2:
            return r_M
    return minimum.r_M


def round_shares(
    r_M: Float[np.ndarray, " M"], allowed: Region | CappedSimplex, *, digits: int = DIGITS
) -> Float[np.ndarray, " M"]:
    """Returns the shares to four digits, within the bounds; the one with most room takes the rest.

    A team writes no more digits, and two machines must find the same mixture. What lies at a bound
    stays there, however many digits the bound has: next to it, each 1e-4 costs in the first order.
    Where other constraints do not allow the rounded shares, all digits stay.
    """
    rounded_M = np.clip(np.round(r_M, digits), allowed.floor_M, allowed.cap_M)
    rounded_M = np.where(r_M - allowed.floor_M < AT_BOUND, allowed.floor_M, rounded_M)
    rounded_M = np.where(allowed.cap_M - r_M < AT_BOUND, allowed.cap_M, rounded_M)
    room_M = np.minimum(rounded_M - allowed.floor_M, allowed.cap_M - rounded_M)
    for j in np.argsort(-room_M, kind="stable"):
        share = rounded_M[j] + 1.0 - float(np.sum(rounded_M))
        rounded_M[j] = min(max(share, allowed.floors[j]), allowed.caps[j])
    return rounded_M if allowed.contains(rounded_M) else r_M


def _target_losses(fit: FitResult, mixture: Mixture) -> dict[str, tuple[float, float, float]]:
    found = predict_losses(fit, [mixture], level=LEVEL)
    limits = zip(found.value_RK[0], found.low_RK[0], found.high_RK[0], strict=True)
    return {
        target: (float(value), float(low), float(high))
        for target, (value, low, high) in zip(fit.targets, limits, strict=True)
    }


def _target_gains(
    fit: FitResult, baseline: Mixture, best: Mixture
) -> dict[str, tuple[float, float, float]]:
    """Returns by how much each target's expected loss is lower than a baseline's, with limits.

    The mixtures were not chosen by this target alone, so there is no optimism to take off.
    """
    pair_2M = np.stack([baseline.array(), best.array()])
    loss_2T = fit.losses(pair_2M)
    quantile = float(stdtrit(max(fit.num_mixtures - 1, 1), (1 + LEVEL) / 2))
    found: dict[str, tuple[float, float, float]] = {}
    for i, weight_T in enumerate(np.eye(len(fit.targets))):
        half = quantile * expected_difference_sd(fit, weight_T, pair_2M)
        value = float(loss_2T[0, i] - loss_2T[1, i])
        found[fit.targets[i]] = (value, value - half, value + half)
    return found


def expected_difference_sd(
    fit: FitResult, weight_T: Float[np.ndarray, " T"], pair_2M: Float[np.ndarray, "K M"]
) -> float:
    """Returns the error of a predicted difference between the expected losses of two mixtures.

    The spread of the draws, as runs scatter around the law, and how far the law lies off; both
    mixtures are given, none was chosen.
    """
    misfit = measure_misfit(fit, weight_T)
    draw_B2 = fit.draw_losses(pair_2M) @ weight_T
    spread = misfit.inflation * float(np.var(draw_B2[:, 0] - draw_B2[:, 1]))
    return math.hypot(math.sqrt(spread), misfit.difference_sd(pair_2M[0], pair_2M[1]))


def _draw_ranges(
    domains: tuple[str, ...], chosen_BM: Float[np.ndarray, "B M"]
) -> dict[str, tuple[float, float]]:
    low_M, high_M = np.quantile(chosen_BM, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {
        name: (float(low), float(high))
        for name, low, high in zip(domains, low_M, high_M, strict=True)
    }


def _at_bounds(
    domains: tuple[str, ...], room_M: Float[np.ndarray, " M"], counts_M: np.ndarray
) -> tuple[str, ...]:
    return tuple(
        name
        for name, room, counts in zip(domains, room_M, counts_M, strict=True)
        if room < AT_BOUND and counts
    )


def _named(weight_T: Float[np.ndarray, " T"], targets: tuple[str, ...]) -> dict[str, float]:
    return {
        target: float(weight)
        for target, weight in zip(targets, weight_T, strict=True)
        if weight != 0 and math.isfinite(weight)
    }


def _epochs(
    mixture: Mixture, known: Mapping[str, Domain], scale: Scale | None
) -> dict[str, float | None]:
    if scale is None:
        return dict.fromkeys(mixture)
    return {
        name: known[name].epochs(share, scale.tokens) if name in known else None
        for name, share in mixture.items()
    }
