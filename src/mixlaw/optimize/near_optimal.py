"""How far each proportion can move before the predicted loss rises by more than the noise.

Shape letters: R mixtures, M training domains.

The least share of a domain among all allowed mixtures with f(r) <= f* + e is the end of a path:
r(p), the minimum of f(r) + p r_j, leaves the optimum as the price p grows, and reaches the level
f* + e at the wanted share. Each point of the path proves a limit as well: by weak duality no
allowed mixture within the level has less than (min_r [f(r) + p r_j] - f* - e) / p of the domain.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from mixlaw.mixtures import CappedSimplex
from mixlaw.optimize.objective import ObjectiveFunction
from mixlaw.optimize.objectives_error import ErrorOfLoss
from mixlaw.optimize.region import Region
from mixlaw.optimize.solver import Minimum, minimize_objective
from mixlaw.optimize.tilted import tilt

MOST_PRICES = 10
"""Prices that are tried for each end of each share."""
CLOSE = 0.03
"""The search for a price ends when the level is met to this share of the tolerance."""
PROVEN = 0.01
"""A limit is called proven where the share that was found and its bound differ by no more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareLimits:
    """The least and the largest share of a domain among mixtures that are practically as good."""

    low: float
    high: float
    is_proven: bool
    """Whether no mixture within the noise goes further, under the law."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NearOptimal:
    """The mixtures whose predicted loss lies within the noise of the optimum's."""

    tolerance: float
    """What counts as noise: one standard deviation of the error of a predicted difference."""
    shares: Mapping[str, ShareLimits]
    """Limits of each domain's share, all others free to follow."""

    @property
    def is_proven(self) -> bool:
        """Whether all limits are."""
        return all(limits.is_proven for limits in self.shares.values())


def find_near_optimal(
    function: ObjectiveFunction,
    region: Region | CappedSimplex,
    *,
    minimum: Minimum,
    tolerance: float,
) -> NearOptimal:
    """Returns how far each share can move while the objective stays within the tolerance.

    Args:
        function: What was minimised.
        region: The allowed mixtures.
        minimum: Its minimum there.
        tolerance: By how much the objective may be higher.
    """
    if isinstance(function, ErrorOfLoss):  # it rises with a convex function: the same mixtures
        function, minimum, within = _exponent(function, minimum, tolerance)
    else:
        within = tolerance
    shares: dict[str, ShareLimits] = {}
    for j, name in enumerate(region.names):
        ends: list[tuple[float, float]] = []
        for sign in (1.0, -1.0):
            direction_M = np.zeros(len(region.names))
            direction_M[j] = sign
            ends.append(_follow(function, region, minimum, within, direction_M))
        (low, low_bound), (minus_high, minus_bound) = ends
        shares[name] = ShareLimits(
            low=low,
            high=-minus_high,
            is_proven=function.is_convex
            and low - low_bound <= PROVEN
            and minus_high - minus_bound <= PROVEN,
        )
    return NearOptimal(tolerance=tolerance, shares=shares)


def _exponent(
    function: ErrorOfLoss, minimum: Minimum, tolerance: float
) -> tuple[ObjectiveFunction, Minimum, float]:
    """Returns the function that an error rises with, its minimum, and the tolerance in its unit."""
    from scipy.optimize import brentq

    least = float(function.exponent.value(minimum.r_M[None])[0])

    def excess(more: float) -> float:
        error_2 = function.of_exponent(np.array([least + more, least]))
        return float(error_2[0] - error_2[1]) - tolerance

    most = 1.0
    while excess(most) < 0 and most < 1e6:
        most *= 2
    within = most if excess(most) < 0 else float(brentq(excess, 0.0, most))
    return function.exponent, replace(minimum, value=least), within


def _follow(
    function: ObjectiveFunction,
    region: Region | CappedSimplex,
    minimum: Minimum,
    tolerance: float,
    direction_M: Float[np.ndarray, " M"],
) -> tuple[float, float]:
    """Returns the least of `direction . r` within the tolerance that was found, and a bound of it.

    The rise of the objective grows about as the square of the price, so the search is regula falsi
    in its square root; where the path jumps (a linear law), the segment between its ends is
    feasible, since the objective is convex.
    """
    extreme_M = region.linear_minimum(direction_M)
    least = float(direction_M @ extreme_M)
    here = float(direction_M @ minimum.r_M)
    if here - least < 1e-9:
        return here, here
    if _rise(function, extreme_M, minimum) <= tolerance:
        return least, least
    below_M, above_M = minimum.r_M, extreme_M
    rise_below, rise_above = 0.0, _rise(function, extreme_M, minimum)
    price_below, price_above = 0.0, math.inf
    price = 2 * tolerance / (here - least)
    bound = least
    start_M = minimum.r_M
    for _ in range(MOST_PRICES):
        tilted = tilt(function, price * direction_M)
        found = minimize_objective(tilted, region, start_M=start_M, num_starts=1)
        start_M = found.r_M
        bound = max(bound, (found.value - found.gap - minimum.value - tolerance) / price)
        rise = _rise(function, found.r_M, minimum)
        if rise <= tolerance:
            below_M, rise_below, price_below = found.r_M, rise, price
        else:
            above_M, rise_above, price_above = found.r_M, rise, price
        if abs(rise - tolerance) <= CLOSE * tolerance:
            break
        if not math.isfinite(price_above):
            price *= min(10.0, math.sqrt(tolerance / max(rise, 1e-2 * tolerance)) * 1.05)
            if float(direction_M @ found.r_M) - least < 1e-6:
                break
            continue
        low, middle, high = (math.sqrt(max(v, 0.0)) for v in (rise_below, tolerance, rise_above))
        part = (middle - low) / (high - low) if high > low else 0.5
        step = min(max(part, 0.05), 0.95)  # never stuck at one end
        price = price_below + step * (price_above - price_below)
    reached_M = _interpolate(function, minimum, tolerance, below_M, above_M)
    return float(direction_M @ reached_M), min(bound, float(direction_M @ reached_M))


def _interpolate(
    function: ObjectiveFunction,
    minimum: Minimum,
    tolerance: float,
    below_M: Float[np.ndarray, " M"],
    above_M: Float[np.ndarray, " M"],
) -> Float[np.ndarray, " M"]:
    """Returns the furthest point of a segment that is within the tolerance, to a thousandth."""
    part_S = np.linspace(0.0, 1.0, 1001)
    r_SM = below_M + part_S[:, None] * (above_M - below_M)
    within_S = function.value(r_SM) - minimum.value <= tolerance * (1 + 1e-9)
    return r_SM[int(np.flatnonzero(within_S)[-1])] if within_S.any() else below_M


def _rise(function: ObjectiveFunction, r_M: Float[np.ndarray, " M"], minimum: Minimum) -> float:
    return float(function.value(r_M[None])[0]) - minimum.value
