"""Power laws fitted to many series at once: exponents own, tied in groups, or tied over all.

Shape letters: S series (runs x targets), R points of a series, K variables, Q exponents, G groups
of series with common exponents, P parameters, V values on a profile.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import fdtri

from mixlaw.errors import FitError
from mixlaw.fit.power_solver import PowerProblem, polish, search_grid
from mixlaw.laws.power import PowerLaw

EXPONENT_BOUNDS = (0.02, 4.0)
"""Range of exponents: published ones lie between 0.05 and 1; at 0.02 a power is a logarithm."""
NEGLIGIBLE = 1e-9
"""A coefficient whose term is a smaller share of the losses is as good as 0."""
SEARCHED_LOG = 30.0
"""How far a coefficient's profile is followed, in its logarithm."""
PROFILE_POINTS = 30
PROFILE_ROUNDS = 3
"""Values tried at once on either side, and how often the cell that holds the end is divided."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PowerFit:
    """A power law fitted to each of many series."""

    law: PowerLaw
    theta_SP: Float[np.ndarray, "S P"]
    group_S: Int[np.ndarray, " S"]
    """Which series have their exponents in common, numbered from 0."""
    objective_G: Float[np.ndarray, " G"]
    """Sum of weight x rho(residual), with rho(u) = u^2 / 2 near 0."""
    converged_G: Bool[np.ndarray, " G"]
    residual_SR: Float[np.ndarray, "S R"]
    """Predicted less observed loss (or their logs); NaN where nothing was observed."""
    problem: PowerProblem
    """What was fitted."""

    def predict(self, x_RK: Float[np.ndarray, "*X R K"]) -> Float[np.ndarray, "S R"]:
        """Returns every series' law at new points."""
        return self.law.predict(x_RK, self.theta_SP)

    def at_bound(self) -> Bool[np.ndarray, "S P"]:
        """Returns which parameters lie at a bound: E or a coefficient at 0, an exponent at its end.

        An exponent at its lower end says that the series can't tell a power from a logarithm.
        """
        low_SP, high_SP = self.problem.bounds(self.group_S)
        count = self.law.num_terms
        value_SP = self.theta_SP.copy()  # coefficients as losses at a typical point
        value_SP[:, 1 : 1 + count] *= np.exp(-value_SP[:, 1 + count :] * self.problem.center_K)
        slack_SP = np.zeros_like(low_SP)
        slack_SP[:, : 1 + count] = NEGLIGIBLE * self.problem.y_SR.max(axis=1, keepdims=True)
        return (value_SP <= low_SP + slack_SP) | (value_SP >= high_SP)


def fit_power(
    law: PowerLaw,
    x_RK: Float[np.ndarray, "*S R K"],
    y_SR: Float[np.ndarray, "S R"],
    *,
    group_S: Int[np.ndarray, " S"] | None = None,
    huber: float | None = None,
    log: bool = False,
    weight_SR: Float[np.ndarray, "S R"] | None = None,
    exponent_bounds: tuple[float, float] | Sequence[tuple[float, float]] = EXPONENT_BOUNDS,
    start: PowerFit | None = None,
) -> PowerFit:
    """Returns a power law for each series, with E and the coefficients not negative.

    Args:
        law: The formula.
        x_RK: The variables, positive: one set of points for all series, or one per series.
        y_SR: Losses; NaN where there is none.
        group_S: Series with one number have their exponents in common. None: each has its own;
            zeros: one set for all.
        huber: Residuals beyond this count linearly, in their own unit. None: least squares.
        log: Whether to fit the log of the loss, which makes residuals relative.
        weight_SR: Weights of the points. None: all 1.
        exponent_bounds: Least and largest exponent, for all or for each; equal ones fix it.
        start: A fit of nearly the same losses, to go on from instead of searching a grid.

    Raises:
        FitError: If variables or losses can't be used, or a series has no loss at all.
    """
    problem = make_problem(law, x_RK, y_SR, group_S, huber, log, weight_SR, exponent_bounds)
    if start is None:
        coefficient_SL, exponent_GQ = search_grid(problem)
    else:
        exponent_SQ = start.theta_SP[:, 1 + law.num_terms :]
        exponent_GQ = exponent_SQ[np.unique(problem.group_S, return_index=True)[1]]
        coefficient_SL = start.theta_SP[:, : 1 + law.num_terms].copy()
        coefficient_SL[:, 1:] *= np.exp(-exponent_SQ * problem.center_K)
    return _finish(problem, coefficient_SL, exponent_GQ)


def make_problem(
    law: PowerLaw,
    x_RK: np.ndarray,
    y_SR: np.ndarray,
    group_S: np.ndarray | None,
    huber: float | None,
    log: bool,
    weight_SR: np.ndarray | None,
    exponent_bounds: tuple[float, float] | Sequence[tuple[float, float]],
) -> PowerProblem:
    """Returns the checked problem."""
    seen_SR = np.isfinite(y_SR)
    if weight_SR is not None:
        seen_SR &= weight_SR > 0
    if not np.all(np.isfinite(x_RK)) or np.any(x_RK <= 0):
        raise FitError(
            f"{' and '.join(law.variables)} must be positive numbers", do="drop the other rows"
        )
    if log and np.any(y_SR[seen_SR] <= 0):
        raise FitError("a fit of log losses needs positive losses", do="fit with log=False")
    if not np.all(seen_SR.any(axis=1)):
        number = int(np.flatnonzero(~seen_SR.any(axis=1))[0])
        raise FitError(f"every series needs a loss, but series {number} has none")
    count, length = y_SR.shape
    log_x_SRK = np.broadcast_to(np.log(x_RK), (count, length, law.num_terms))
    groups = np.arange(count) if group_S is None else np.unique(group_S, return_inverse=True)[1]
    bounds_Q2 = np.broadcast_to(np.asarray(exponent_bounds, float), (law.num_exponents, 2))
    num_groups = int(groups.max()) + 1
    return PowerProblem(
        law=law,
        log_x_SRK=log_x_SRK,
        center_K=log_x_SRK[seen_SR].mean(axis=0),
        y_SR=np.where(seen_SR, y_SR, 1.0),
        weight_SR=np.where(seen_SR, 1.0 if weight_SR is None else weight_SR, 0.0),
        group_S=groups,
        huber=np.inf if huber is None else huber,
        log=log,
        low_SL=np.zeros((count, 1 + law.num_terms)),
        high_SL=np.full((count, 1 + law.num_terms), np.inf),
        low_GQ=np.tile(bounds_Q2[:, 0], (num_groups, 1)),
        high_GQ=np.tile(bounds_Q2[:, 1], (num_groups, 1)),
    )


def _finish(problem: PowerProblem, coefficient_SL: np.ndarray, exponent_GQ: np.ndarray) -> PowerFit:
    """Returns the polished fit in the law's own parameters."""
    solution = polish(problem, coefficient_SL, exponent_GQ)
    coefficient_SL, exponent_GQ = solution.coefficient_SL, solution.exponent_GQ
    columns_SRL, _ = problem.columns(exponent_GQ)
    residual_SR = problem.residuals(np.einsum("srl,sl->sr", columns_SRL, coefficient_SL))
    exponent_SQ = exponent_GQ[problem.group_S]
    scale_SK = np.exp(exponent_SQ * problem.center_K)
    theta_SP = np.hstack([coefficient_SL[:, :1], coefficient_SL[:, 1:] * scale_SK, exponent_SQ])
    return PowerFit(
        law=problem.law,
        theta_SP=theta_SP,
        group_S=problem.group_S,
        objective_G=solution.objective_G,
        converged_G=solution.converged_G,
        residual_SR=np.where(problem.weight_SR > 0, residual_SR, np.nan),
        problem=problem,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileInterval:
    """Values of one parameter that the data can't tell from the best one."""

    name: str
    value: float
    low: float
    high: float
    is_open: bool
    """Whether an end is the edge of what was searched: the data don't bound the parameter there."""


def profile_interval(
    fit: PowerFit, name: str, *, series: int = 0, level: float = 0.9
) -> ProfileInterval:
    """Returns the profile interval of a parameter: all others are fitted anew at each value.

    The threshold is that of an F test, on residuals as large as the group's own. Fits with as many
    parameters as points have open intervals.
    """
    column = fit.law.parameter_names.index(name)
    value = float(fit.theta_SP[series, column])
    profile = _Profile.of(fit, series, column)
    low, high = profile.limits()
    threshold = profile.threshold(level)
    if threshold is None or value <= 0:
        return ProfileInterval(name=name, value=value, low=low, high=high, is_open=True)
    ends = [profile.crossing(value, limit, threshold) for limit in (low, high)]
    return ProfileInterval(
        name=name,
        value=value,
        low=ends[0],
        high=ends[1],
        is_open=bool(ends[0] == low or ends[1] == high),
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Profile:
    """The least objective of one group as a function of one parameter of one series."""

    problem: PowerProblem
    coefficient_SL: np.ndarray
    exponent_Q: np.ndarray
    series: int
    column: int
    residual_SR: np.ndarray
    objective: float

    @classmethod
    def of(cls, fit: PowerFit, series: int, column: int) -> "_Profile":
        group = int(fit.group_S[series])
        problem, members = fit.problem.take(np.array([group]))
        center_K = problem.center_K.copy()
        count = fit.law.num_terms
        if 1 <= column <= count:
            center_K[column - 1] = 0.0  # what is held is the coefficient itself
        exponent_Q = fit.theta_SP[series, 1 + count :]
        coefficient_SL = fit.theta_SP[members, : 1 + count].copy()
        coefficient_SL[:, 1:] *= np.exp(-exponent_Q * center_K)
        return cls(
            problem=replace(problem, center_K=center_K),
            coefficient_SL=coefficient_SL,
            exponent_Q=exponent_Q,
            series=int(np.searchsorted(members, series)),
            column=column,
            residual_SR=fit.residual_SR[members],
            objective=float(fit.objective_G[group]),
        )

    @property
    def term(self) -> int | None:
        """Which coefficient is held; None: E or an exponent."""
        return self.column - 1 if 1 <= self.column <= self.problem.law.num_terms else None

    def limits(self) -> tuple[float, float]:
        """Returns the least and the largest value that is searched."""
        if self.column == 0:
            return 0.0, float(self.problem.y_SR[self.series].max())
        if self.term is not None:
            value = float(self.coefficient_SL[self.series, self.column])
            return value * np.exp(-SEARCHED_LOG), value * np.exp(SEARCHED_LOG)
        number = self.column - 1 - self.problem.law.num_terms
        return float(self.problem.low_GQ[0, number]), float(self.problem.high_GQ[0, number])

    def threshold(self, level: float) -> float | None:
        """Returns the objective at the interval's ends; None without degrees of freedom."""
        seen_SR = np.isfinite(self.residual_SR)
        free = int(seen_SR.sum()) - self.coefficient_SL.size - len(self.exponent_Q)
        if free <= 0:
            return None
        size_N = np.abs(self.residual_SR[seen_SR])
        weight_N = self.problem.weight_SR[seen_SR]
        score = float(np.sum(weight_N * np.minimum(size_N, self.problem.huber) ** 2)) / free
        inside = max(float(np.mean(size_N <= self.problem.huber)), 1 / len(size_N))
        return self.objective + 0.5 * score / inside * float(fdtri(1, free, level))

    def crossing(self, value: float, limit: float, threshold: float) -> float:
        """Returns where the profile rises above a threshold between a value and a limit."""
        scale = _IDENTITY if self.column == 0 else _LOGARITHM
        inner, outer = scale[0](value), scale[0](limit)
        share_V = np.geomspace(1e-5, 1.0, PROFILE_POINTS)
        for _ in range(PROFILE_ROUNDS):
            tried_V = inner + share_V * (outer - inner)
            above_V = self.objectives(scale[1](tried_V)) > threshold
            if not above_V.any():
                return limit
            first = int(np.argmax(above_V))
            inner, outer = tried_V[first - 1] if first else inner, tried_V[first]
            share_V = np.linspace(0, 1, PROFILE_POINTS + 1)[1:]
        return float(scale[1](np.array((inner + outer) / 2)))

    def objectives(self, value_V: Float[np.ndarray, " V"]) -> Float[np.ndarray, " V"]:
        """Returns the least objective with the parameter held at each value, all at once."""
        count, size = len(value_V), len(self.coefficient_SL)
        exponent_VQ = np.tile(self.exponent_Q, (count, 1))
        coefficient_VSL = np.tile(self.coefficient_SL, (count, 1, 1))
        low_VSL = np.tile(self.problem.low_SL, (count, 1, 1))
        high_VSL = np.tile(self.problem.high_SL, (count, 1, 1))
        low_VQ = np.tile(self.problem.low_GQ, (count, 1))
        high_VQ = np.tile(self.problem.high_GQ, (count, 1))
        if self.column <= self.problem.law.num_terms:
            held = coefficient_VSL[:, self.series, self.column]
            if self.term is not None:  # along the valley: the loss at a typical point stays
                typical = float(self.problem.log_x_SRK[..., self.term].mean())
                shift_V = np.log(value_V / held) / typical
                number = 0 if self.problem.law.tied else self.term
                exponent_VQ[:, number] += shift_V
                exponent_VQ = np.clip(exponent_VQ, low_VQ, high_VQ)
            for array in (coefficient_VSL, low_VSL, high_VSL):
                array[:, self.series, self.column] = value_V
        else:
            number = self.column - 1 - self.problem.law.num_terms
            for array in (exponent_VQ, low_VQ, high_VQ):
                array[:, number] = value_V
        many = replace(
            self.problem,
            log_x_SRK=np.tile(self.problem.log_x_SRK, (count, 1, 1)),
            y_SR=np.tile(self.problem.y_SR, (count, 1)),
            weight_SR=np.tile(self.problem.weight_SR, (count, 1)),
            group_S=np.repeat(np.arange(count), size),
            low_SL=low_VSL.reshape(count * size, -1),
            high_SL=high_VSL.reshape(count * size, -1),
            low_GQ=low_VQ,
            high_GQ=high_VQ,
        )
        return polish(many, coefficient_VSL.reshape(count * size, -1), exponent_VQ).objective_G


_Scale = tuple[Callable[[Any], Any], Callable[[Any], Any]]
_IDENTITY: _Scale = (lambda value: value, lambda value: value)
_LOGARITHM: _Scale = (np.log, np.exp)
