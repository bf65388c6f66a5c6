"""The minimum of an objective over a region, with a certificate where that is possible.

Newton's method with constraints (sequential quadratic programming): each step minimizes a quadratic
model of the objective over the whole region, by Clarabel, and is shortened until the objective
falls. All iterates are allowed mixtures. The certificate is the gap f(r) - min_s f(r) + g (s - r):
a convex f lies above its slope, so that no allowed mixture is lower than f(r) less that gap (Jaggi
2013, Eq. 2). The minimum of the slope is known where only floors and caps bind, and is else bounded
from below by the dual variables of the last quadratic program.

Shape letters: M training domains, I pieces, B draws, P parameters, T targets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from jaxtyping import Float
from threadpoolctl import ThreadpoolController

from mixlaw.fit.result import FitResult
from mixlaw.mixtures import CappedSimplex
from mixlaw.optimize.conic import ConicForm, clean, conic_form, meet_equalities
from mixlaw.optimize.model import LocalView, Model, look_at
from mixlaw.optimize.objective import Objective, ObjectiveFunction, PiecewiseFunction
from mixlaw.optimize.objectives_error import ErrorOfLoss
from mixlaw.optimize.region import ConstraintName, Region
from mixlaw.optimize.subproblem import Step

ENOUGH = 1e-9
"""The search ends at a gap below this, in units of the differences between slopes."""
MAX_STEPS = 100
LEAST_SHORTENING = 1e-10
SUFFICIENT = 1e-4
"""Share of the fall that a model promises and that a step must reach (Armijo)."""
NUM_STARTS = 12
"""Starts where an objective is not convex."""
AGREEING = 1e-6
"""Minima this close, in units of the differences between slopes, are one."""
NEAR_BOUND = 1e-7
"""Shares this close to a bound are put on it, where that does not cost."""
BINDING = 1e-6
"""A constraint with less room than this binds."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Minimum:
    """The lowest point that was found."""

    r_M: Float[np.ndarray, " M"]
    value: float
    gap: float
    """How much lower any allowed mixture can be; a proof only if `is_certified`."""
    is_certified: bool
    """Whether the objective is one for which the gap is a proof."""
    prices: Mapping[ConstraintName, float] = field(default_factory=dict[ConstraintName, float])
    """Derivative of the least value by the limit of each named constraint that binds."""
    num_starts: int = 1
    starts_agreeing: int = 1
    """Starts that ended at the lowest value."""


def minimize_objective(
    objective: ObjectiveFunction,
    allowed: Region | CappedSimplex,
    *,
    start_M: Float[np.ndarray, " M"] | None = None,
    num_starts: int = NUM_STARTS,
    seed: int = 0,
    with_prices: bool = True,
) -> Minimum:
    """Returns the minimum over the allowed mixtures.

    Args:
        objective: What is minimized.
        allowed: Where.
        start_M: Where the search starts, if not in the middle.
        num_starts: Starts for an objective that is not convex.
        seed: Of the further starts.
        with_prices: Whether the prices of constraints are wanted; without, it can be faster.

    Raises:
        OptimizeError: The search failed.
    """
    region = Region.of(allowed)
    size = len(region.names)
    first_M = np.full(size, 1.0 / size) if start_M is None else start_M
    with _threads().limit(limits=1):
        if isinstance(objective, ErrorOfLoss):
            return _minimize_error(objective, region, first_M, with_prices=with_prices)
        if objective.is_convex:
            return _search(objective, region, region.nearest(first_M), with_prices=with_prices)
        rng = np.random.default_rng(seed)
        starts = [first_M, *rng.dirichlet(np.ones(size), max(num_starts - 1, 0))]
        found = [
            _search(objective, region, region.nearest(start), with_prices=with_prices)
            for start in starts
        ]
        best = min(found, key=lambda minimum: minimum.value)
        unit = float(np.ptp(objective.gradient(region.nearest(first_M))))
        agreeing = sum(minimum.value <= best.value + AGREEING * unit for minimum in found)
        return replace(best, is_certified=False, num_starts=len(found), starts_agreeing=agreeing)


@cache
def _threads() -> ThreadpoolController:
    """Returns what limits threads; to look for the libraries takes longer than a small problem."""
    return ThreadpoolController()


def minimize_draws(
    objective: Objective,
    fit: FitResult,
    allowed: Region | CappedSimplex,
    *,
    start_M: Float[np.ndarray, " M"],
) -> Float[np.ndarray, "B M"]:
    """Returns the optimum under each bootstrap draw of a fit, each search started at one mixture.

    Raises:
        OptimizeError: A search failed.
    """
    region = Region.of(allowed)
    chosen = [
        minimize_objective(
            objective.under(fit, theta_TP),
            region,
            start_M=start_M,
            num_starts=1,
            with_prices=False,
        ).r_M
        for theta_TP in fit.theta_draws_BTP
    ]
    return np.array(chosen).reshape(-1, len(region.names))


def _minimize_error(
    objective: ErrorOfLoss,
    region: Region,
    start_M: Float[np.ndarray, " M"],
    *,
    with_prices: bool,
) -> Minimum:
    """Returns the least error, which is where the weighted loss is the least."""
    inner = minimize_objective(objective.exponent, region, start_M=start_M, with_prices=with_prices)
    slope = objective.slope(inner.r_M)
    value, least = objective.of_exponent(np.array([inner.value, inner.value - inner.gap]))
    return replace(
        inner,
        value=float(value),
        gap=max(float(value - least), 0.0),
        prices={name: slope * price for name, price in inner.prices.items()},
    )


def _search(
    objective: ObjectiveFunction,
    region: Region,
    r_M: Float[np.ndarray, " M"],
    *,
    with_prices: bool,
) -> Minimum:
    """Returns the minimum that one descent finds."""
    is_convex = objective.is_convex
    form, model = conic_form(region), Model(objective, is_convex, len(r_M))
    at = look_at(objective, r_M)
    dual_Y = np.zeros(len(form.b_Y))
    least, unit, is_current = -np.inf, 0.0, False
    for _ in range(MAX_STEPS):
        unit = max(unit, at.unit)  # at an optimum inside the region, slopes no longer differ
        enough = max(ENOUGH * unit, 4 * np.finfo(float).eps * abs(at.value))
        least = model.keep(least, at.value - _gap(region, form, r_M, at, None))
        if at.value - least <= enough:
            break
        step = model.solve(form, r_M, at)
        if not step.is_solved:
            break
        dual_Y, is_current = step.dual_Y * at.unit, True
        least = model.keep(least, at.value - _gap(region, form, r_M, at, step))
        if at.value - least <= enough:
            break
        moved = _move(objective, r_M, at, meet_equalities(region, step.r_M))
        if moved is None:
            break
        model.learn(r_M, at, *moved)
        (r_M, at), is_current = moved, False
    if with_prices and not is_current and at.unit > 0:
        dual_Y = model.solve(form, r_M, at).dual_Y * at.unit
    minimum = _finish(objective, region, r_M, at, unit=unit, least=least)
    prices = _prices(region, minimum.r_M, dual_Y, unit=unit) if with_prices else {}
    return replace(minimum, is_certified=is_convex, prices=prices)


def _gap(
    region: Region,
    form: ConicForm,
    r_M: Float[np.ndarray, " M"],
    at: LocalView,
    step: Step | None,
) -> float:
    """Returns how much lower a convex objective may be elsewhere, from its slopes at a mixture.

    Any weights of the pieces and any dual variables give a valid gap; those of a quadratic program
    around the optimum give the smallest one.
    """
    gradient_M, lost = at.gradient_M, 0.0
    if step is not None and not at.is_smooth:
        gradient_M = step.weight_I @ at.slope_IM
        lost = at.value - float(step.weight_I @ at.piece_I)
    if region.has_only_bounds:
        return lost + float(gradient_M @ (r_M - region.linear_minimum(gradient_M)))
    if step is None:
        return at.least_gap(r_M)
    dual_Y = step.dual_Y * at.unit
    return lost + float(gradient_M @ r_M) - form.lower_bound(gradient_M, dual_Y)


def _move(
    objective: ObjectiveFunction,
    r_M: Float[np.ndarray, " M"],
    at: LocalView,
    trial_M: Float[np.ndarray, " M"],
) -> tuple[Float[np.ndarray, " M"], LocalView] | None:
    """Returns a lower mixture on the way to a trial point; None: rounding hides what falls."""
    step_M = trial_M - r_M
    promised = float(at.gradient_M @ step_M)
    if isinstance(objective, PiecewiseFunction):
        linear_I = at.piece_I + at.slope_IM @ step_M
        promised = float(objective.weigh(linear_I) @ linear_I) - at.value
    rounding = 4 * np.finfo(float).eps * abs(at.value)
    if promised >= 0:
        return None
    share = 1.0
    while share > LEAST_SHORTENING:
        new_M = r_M + share * step_M
        value = float(objective.value(new_M[None])[0])
        if value <= at.value + SUFFICIENT * share * promised + rounding:
            return new_M, look_at(objective, new_M)
        # The minimum of the parabola through the value, its slope and the trial's value.
        over = value - at.value - share * promised
        shorter = -share * promised / (2 * over) if np.isfinite(over) else 0.1
        share *= min(max(shorter, 0.1), 0.5)
    return None


def _finish(
    objective: ObjectiveFunction,
    region: Region,
    r_M: Float[np.ndarray, " M"],
    at: LocalView,
    *,
    unit: float,
    least: float,
) -> Minimum:
    """Returns the minimum with shares next to a bound on it, and every constraint met."""
    near_M = np.where(r_M - region.floor_M < NEAR_BOUND, region.floor_M, r_M)
    near_M = np.where(region.cap_M - near_M < NEAR_BOUND, region.cap_M, near_M)
    value, found_M = at.value, clean(region, near_M)
    snapped = float(objective.value(found_M[None])[0])
    if snapped > value + ENOUGH * unit:
        found_M = clean(region, r_M)
        snapped = float(objective.value(found_M[None])[0])
    return Minimum(
        r_M=found_M,
        value=snapped,
        gap=max(snapped - least, 0.0),
        is_certified=False,
    )


def _prices(
    region: Region,
    r_M: Float[np.ndarray, " M"],
    dual_Y: Float[np.ndarray, " Y"],
    *,
    unit: float,
) -> dict[ConstraintName, float]:
    """Returns the prices of the constraints that bind."""
    slack = region.slack(r_M)
    return {
        name: price
        for name, price in conic_form(region).prices(dual_Y).items()
        if slack[name] < BINDING and abs(price) > NEAR_BOUND * unit
    }
