r"""Fits of the law from losses to task errors, and what it is worth on another training set.

Shape letters: R runs, F losses, P = 2 + F parameters, V values on a profile, S training sets.

Over the losses of small models $\epsilon - k e^{-\gamma L}$ is nearly a straight line, which has
two parameters: many triples fit alike. A fit says so in words and with profile intervals;
predictions inside the range of losses don't depend on it, predictions far outside do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares
from scipy.special import fdtri, stdtrit

from mixlaw.errors import FitError
from mixlaw.fit.power import ProfileInterval
from mixlaw.laws.error import ErrorLaw, loss_weights

RATE_BOUNDS = (1e-3, 8.0)
"""Range of gamma per nat: at its low end the law is a straight line."""
RATE_POINTS = 2000
"""Rates on a profile, evenly in the logarithm: 0.5% apart."""
STARTS = (0.1, 0.4, 1.0, 2.5)
"""Sums of the rates that descents start from."""
INFLATION_CUTS = (0.02, 0.05, 0.1, 0.2)
"""Shares of the largest compute up to which the law is fitted to learn what its intervals lack."""
FAR = 5.0
"""Compute of the runs that are then predicted, at least, in units of the most that was fitted."""
LEAST_RUNS = 8
"""Runs that such a fit needs."""
LEAST_SPREAD = 1e-9
"""Losses that lie closer together are the same."""
BARELY = 3.0
"""A positive parameter whose interval spans more than this factor is called barely identified."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ErrorFit:
    """The law of the mean error over some tasks."""

    law: ErrorLaw
    theta_P: Float[np.ndarray, " P"]
    loss_RF: Float[np.ndarray, "R F"]
    error_R: Float[np.ndarray, " R"]
    has_given_weights: bool
    """Whether the weights of the losses were given and not fitted."""
    seed_shift: float = 0.0
    """What a fresh seed is expected to add to the errors of the runs' own; 0: unknown."""
    set_sd: float = 0.0
    """Standard deviation of the law's bias on a training set that it has not seen; 0: unknown."""
    set_freedom: int = 0
    """Degrees of freedom of that: training sets less one."""

    @property
    def residual_R(self) -> Float[np.ndarray, " R"]:
        """Predicted less observed error."""
        return self.law.predict(self.loss_RF, self.theta_P) - self.error_R

    @property
    def num_fitted(self) -> int:
        """Parameters that the runs had to tell."""
        return 3 if self.has_given_weights else len(self.theta_P)

    def predict(self, loss_RF: Float[np.ndarray, "R F"]) -> Float[np.ndarray, " R"]:
        """Returns errors, kept between 0 and 1."""
        return np.clip(self.law.predict(loss_RF, self.theta_P), 0.0, 1.0)

    def half_width(
        self, loss_RF: Float[np.ndarray, "R F"], *, level: float = 0.9
    ) -> Float[np.ndarray, " R"]:
        """Returns the half width of intervals for new models: the noise, and what is not known.

        The second grows outwards with what the parameters leave open (the delta method).
        """
        new_RP = self.law.jacobian(loss_RF, self.theta_P)
        factor = float(stdtrit(self._free, 0.5 + level / 2))
        return factor * np.sqrt(self.noise_variance + self._parameter_variance(new_RP))

    def difference_sd(self, loss_2F: Float[np.ndarray, "R F"]) -> float:
        """Returns the error of a difference between two errors that the parameters leave open."""
        new_2P = self.law.jacobian(loss_2F, self.theta_P)
        return float(np.sqrt(self._parameter_variance(new_2P[:1] - new_2P[1:])[0]))

    @property
    def _free(self) -> int:
        return max(len(self.error_R) - self.num_fitted, 1)

    @property
    def noise_variance(self) -> float:
        """Variance of a run's error around the law."""
        return float(np.sum(self.residual_R**2)) / self._free

    def _parameter_variance(self, new_RP: Float[np.ndarray, "R P"]) -> Float[np.ndarray, " R"]:
        """Returns the variances of sums of parameters, as the runs leave them."""
        jacobian_RP = self.law.jacobian(self.loss_RF, self.theta_P)
        scale_P = np.linalg.norm(jacobian_RP, axis=0) + np.finfo(float).tiny
        inverse_PP = np.linalg.pinv((jacobian_RP / scale_P).T @ (jacobian_RP / scale_P))
        scaled_RP = new_RP / scale_P
        leverage_R = np.einsum("rp,pq,rq->r", scaled_RP, inverse_PP, scaled_RP)
        return self.noise_variance * np.maximum(leverage_R, 0.0)

    def intervals(self, *, level: float = 0.9) -> tuple[ProfileInterval, ...]:
        """Returns the profile intervals of epsilon, k and gamma (the sum of the rates).

        The weights of several losses are held at their fitted values.
        """
        return tuple(_profile(self, name, level) for name in ("epsilon", "k", "gamma"))

    def describe(self, *, level: float = 0.9) -> str:
        """Returns in words what the runs tell of the parameters."""
        intervals = self.intervals(level=level)
        mean_R = self.loss_RF @ loss_weights(self.theta_P)
        ranges = ", ".join(
            f"{i.name} {i.value:.3g} ({i.low:.3g} to {'any' if i.is_open else f'{i.high:.3g}'})"
            for i in intervals
        )
        weak = [i.name for i in intervals if i.is_open or i.high > BARELY * max(i.low, 1e-9)]
        verdict = (
            f"{', '.join(weak)} barely identified: the law is nearly a line there, so trust"
            " predictions near these losses only"
            if weak
            else "all three identified"
        )
        return (
            f"{ranges} at {level:.0%}, from {len(self.error_R)} runs with losses from"
            f" {mean_R.min():.2f} to {mean_R.max():.2f}; {verdict}"
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SetsOut:
    """How well the law carries over to a training set that it has not seen."""

    names: tuple[str, ...]
    in_set_S: Float[np.ndarray, " S"]
    """Mean absolute error of a fit to that set alone, each run left out in turn."""
    left_out_S: Float[np.ndarray, " S"]
    """Mean absolute error of a fit to the other sets."""
    bias_S: Float[np.ndarray, " S"]
    """Mean error of that fit, predicted less observed."""

    def half_width(self, level: float) -> float:
        """Returns the half width of an interval of a new set's bias: few sets, so Student's t."""
        count = len(self.names)
        spread = np.sqrt(np.mean(self.bias_S**2))
        return float(spread * stdtrit(count - 1, 0.5 + level / 2))


def fit_error(
    loss_RF: Float[np.ndarray, "R F"],
    error_R: Float[np.ndarray, " R"],
    *,
    losses: Sequence[str] = ("loss",),
    weights: Sequence[float] | None = None,
) -> ErrorFit:
    """Returns the least-squares law from losses to the mean error.

    Args:
        loss_RF: Losses of the runs.
        error_R: Their mean error over the tasks, between 0 and 1.
        losses: Names of the losses.
        weights: Weights of the losses in their mean; fitted where they are not given.

    Raises:
        FitError: If there are no more runs than parameters, or their losses are all alike.
    """
    law = ErrorLaw(losses=tuple(losses))
    weight_GF = np.eye(len(losses)) if weights is None else np.array([weights], float)
    weight_GF = weight_GF / weight_GF.sum(axis=1, keepdims=True)
    fitted_RG = loss_RF @ weight_GF.T  # what rates are fitted to: the losses, or their given mean
    if len(error_R) < fitted_RG.shape[1] + 2:
        raise FitError(
            f"an error law of {fitted_RG.shape[1]} losses needs {fitted_RG.shape[1] + 2} runs,"
            f" but has {len(error_R)}"
        )
    if not np.ptp(fitted_RG.mean(axis=1)) > LEAST_SPREAD:
        raise FitError(
            f"an error law needs runs with different losses, but {', '.join(losses)} is the same"
            f" in all {len(error_R)}"
        )
    best_P = _descend(fitted_RG, error_R)
    theta_P = np.concatenate([best_P[:2], best_P[2:] @ weight_GF])
    return ErrorFit(
        law=law,
        theta_P=theta_P,
        loss_RF=loss_RF,
        error_R=error_R,
        has_given_weights=weights is not None,
    )


def _descend(loss_RG: np.ndarray, error_R: np.ndarray) -> np.ndarray:
    """Returns the best of several descents, in losses less their means so that k is a size."""
    center_G = loss_RG.mean(axis=0)
    centered_RG = loss_RG - center_G
    count = loss_RG.shape[1]
    law = ErrorLaw(losses=("",) * count)
    low_P = np.array([-1.0, 0.0, *([0.0] * count)])
    high_P = np.array([2.0, np.inf, *([RATE_BOUNDS[1]] * count)])
    best_cost, best_P = np.inf, low_P
    for rate in STARTS:
        eps, k, _ = _solve_rates(centered_RG.mean(axis=1), error_R, np.array([rate]))
        start_P = np.array([eps[0], max(k[0], 1e-3), *([rate / count] * count)])
        found = least_squares(
            lambda theta_P: law.predict(centered_RG, theta_P) - error_R,
            np.clip(start_P, low_P + 1e-9, high_P - 1e-9),
            jac=lambda theta_P: law.jacobian(centered_RG, theta_P),
            bounds=(low_P, high_P),
            x_scale="jac",
            ftol=1e-14,
            xtol=1e-14,
            gtol=1e-14,
        )
        if found.cost < best_cost:
            best_cost, best_P = float(found.cost), found.x
    best_P[1] *= np.exp(best_P[2:] @ center_G)
    return best_P


def _solve_rates(
    loss_R: np.ndarray, error_R: np.ndarray, rate_V: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns, for each rate, the best epsilon and k, and the sum of squares."""
    power_VR = np.exp(-rate_V[:, None] * loss_R)
    mean_V, level = power_VR.mean(axis=1), error_R.mean()
    spread_VR = power_VR - mean_V[:, None]
    k_V = -(spread_VR @ (error_R - level)) / np.sum(spread_VR**2, axis=1)
    k_V = np.maximum(k_V, 0.0)
    epsilon_V = level + k_V * mean_V
    residual_VR = epsilon_V[:, None] - k_V[:, None] * power_VR - error_R
    return epsilon_V, k_V, np.sum(residual_VR**2, axis=1)


def _profile(fit: ErrorFit, name: str, level: float) -> ProfileInterval:
    """Returns the interval of one parameter, from all rates and what is best at each of them."""
    loss_R = fit.loss_RF @ loss_weights(fit.theta_P)
    rate = float(fit.theta_P[2:].sum())
    value = {"epsilon": float(fit.theta_P[0]), "k": float(fit.theta_P[1]), "gamma": rate}[name]
    squares = float(np.sum(fit.residual_R**2))
    free = len(fit.error_R) - fit.num_fitted
    low, high = {"epsilon": (0.0, 5.0), "k": (value * 1e-6, value * 1e12), "gamma": RATE_BOUNDS}[
        name
    ]
    if free <= 0 or not low < value < high:
        return ProfileInterval(name=name, value=value, low=low, high=high, is_open=True)
    limit = squares * (1 + float(fdtri(1, free, level)) / free)
    rate_V = np.geomspace(*RATE_BOUNDS, RATE_POINTS)
    if name == "gamma":
        inside_V = _solve_rates(loss_R, fit.error_R, rate_V)[2] <= limit
        reached_V = rate_V[inside_V]
        ends = (reached_V.min(), reached_V.max()) if len(reached_V) else (value, value)
        is_open = bool(inside_V[0] or inside_V[-1])
        return _interval(name, value, ends, is_open)
    ends = _reached(loss_R, fit.error_R, rate_V, name == "epsilon", limit)
    is_open = bool(_solve_rates(loss_R, fit.error_R, rate_V[:1])[2][0] <= limit)
    return _interval(name, value, ends, is_open)


def _interval(name: str, value: float, ends: tuple[float, float], is_open: bool) -> ProfileInterval:
    low, high = min(float(ends[0]), value), max(float(ends[1]), value)
    return ProfileInterval(name=name, value=value, low=low, high=high, is_open=is_open)


def _reached(
    loss_R: np.ndarray, error_R: np.ndarray, rate_V: np.ndarray, is_epsilon: bool, limit: float
) -> tuple[float, float]:
    """Returns the least and largest epsilon or k that some rate reaches below the limit.

    At a given rate the sum of squares is a parabola in (epsilon, k), whose level set is an ellipse.
    """
    epsilon_V, k_V, squares_V = _solve_rates(loss_R, error_R, rate_V)
    power_VR = np.exp(-rate_V[:, None] * loss_R)
    variance_V = np.mean((power_VR - power_VR.mean(axis=1, keepdims=True)) ** 2, axis=1)
    count = len(error_R)
    per_unit_V = 1 / (count * variance_V)
    if is_epsilon:
        per_unit_V = per_unit_V * np.mean(power_VR**2, axis=1)
    reach_V = np.sqrt(np.maximum(limit - squares_V, 0.0) * per_unit_V)
    inside_V = squares_V <= limit
    center_V = epsilon_V if is_epsilon else k_V
    if not inside_V.any():
        return np.inf, -np.inf
    low = float(np.min((center_V - reach_V)[inside_V]))
    return max(low, 0.0), float(np.max((center_V + reach_V)[inside_V]))


def leave_sets_out(
    loss_RF: Float[np.ndarray, "R F"],
    error_R: Float[np.ndarray, " R"],
    sets: Sequence[str],
    *,
    losses: Sequence[str] = ("loss",),
    weights: Sequence[float] | None = None,
    with_in_set: bool = True,
) -> SetsOut:
    """Returns the error on each training set of a law that has not seen it, and of one that has.

    Without `with_in_set` the second is not computed, and NaN.

    Raises:
        FitError: If there is one set only, or too few runs.
    """
    label_R = np.array(sets)
    names = tuple(dict.fromkeys(sets))
    if len(names) < 2:
        raise FitError("leaving a training set out needs two of them", do="add runs on other data")
    in_set: list[float] = []
    left_out: list[np.ndarray] = []
    for name in names:
        own_R = label_R == name
        fit = fit_error(loss_RF[~own_R], error_R[~own_R], losses=losses, weights=weights)
        left_out.append(fit.law.predict(loss_RF[own_R], fit.theta_P) - error_R[own_R])
        own = (
            []
            if not with_in_set
            else [
                _left_out_residual(loss_RF[own_R], error_R[own_R], i, losses, weights)
                for i in range(int(own_R.sum()))
            ]
        )
        in_set.append(float(np.mean(np.abs(own))) if own else np.nan)
    return SetsOut(
        names=names,
        in_set_S=np.array(in_set),
        left_out_S=np.array([np.mean(np.abs(error)) for error in left_out]),
        bias_S=np.array([np.mean(error) for error in left_out]),
    )


def _left_out_residual(
    loss_RF: np.ndarray,
    error_R: np.ndarray,
    number: int,
    losses: Sequence[str],
    weights: Sequence[float] | None,
) -> float:
    others_R = np.arange(len(error_R)) != number
    fit = fit_error(loss_RF[others_R], error_R[others_R], losses=losses, weights=weights)
    return float(fit.law.predict(loss_RF[[number]], fit.theta_P)[0] - error_R[number])


def predict_error(
    fit: ErrorFit,
    loss_RF: Float[np.ndarray, "R F"],
    *,
    loss_half_width_RF: Float[np.ndarray, "R F"] | None = None,
    inflation: float = 1.0,
    new_set: SetsOut | None = None,
    level: float = 0.9,
) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    """Returns errors of new models with their intervals.

    Args:
        fit: The law.
        loss_RF: Losses, measured or predicted.
        loss_half_width_RF: Half widths of the predicted losses' intervals; they are taken to go
            together, as all come from one model. None: measured losses.
        inflation: What the law's own intervals are multiplied by (`error_inflation`).
        new_set: How the law carries over, where the model's training set is new.
        level: Share of new models that intervals are meant to hold.
    """
    value_R = fit.predict(loss_RF)
    square_R = (inflation * fit.half_width(loss_RF, level=level)) ** 2
    if loss_half_width_RF is not None:
        slope_RF = fit.law.slope(loss_RF, fit.theta_P)
        square_R = square_R + np.sum(slope_RF * loss_half_width_RF, axis=1) ** 2
    if new_set is not None:
        square_R = square_R + new_set.half_width(level) ** 2
    width_R = np.sqrt(square_R)
    return value_R, np.maximum(value_R - width_R, 0.0), np.minimum(value_R + width_R, 1.0)


def error_inflation(
    loss_RF: Float[np.ndarray, "R F"],
    error_R: Float[np.ndarray, " R"],
    flops_R: Float[np.ndarray, " R"],
    *,
    losses: Sequence[str] = ("loss",),
    level: float = 0.9,
) -> float:
    """Returns the factor, at least 1, at which intervals would have held runs with more compute.

    The law is fitted up to several amounts of compute, and asked for runs with `FAR` times more:
    its own intervals know of noise, and not that the law is wrong.
    """
    ratios: list[np.ndarray] = []
    for share in INFLATION_CUTS:
        near_R = flops_R <= share * flops_R.max()
        far_R = flops_R >= FAR * share * flops_R.max()
        if near_R.sum() < LEAST_RUNS:
            continue
        fit = fit_error(loss_RF[near_R], error_R[near_R], losses=losses)
        miss_R = np.abs(fit.predict(loss_RF[far_R]) - error_R[far_R])
        ratios.append(miss_R / np.maximum(fit.half_width(loss_RF[far_R], level=level), 1e-9))
    return max(1.0, float(np.quantile(np.concatenate(ratios), level))) if ratios else 1.0
