"""From fitted laws to the losses of mixtures, with intervals for one new run of each.

Shape letters: R mixtures, M training domains, T targets, K linear combinations of targets, G fitted
mixtures.

Inside the region of the runs the interval is conformal over mixtures: the quantile of left-out
residuals, in units of a scale that grows from the middle of the runs outwards (Lei et al. 2018,
arXiv:1604.04173, Section 5.2; jackknife: Barber et al. 2021, arXiv:1905.02928). Residuals of all
targets, each in its own root mean square, give the one quantile: twenty mixtures alone would not.
Design runs share a seed, which hides what seeds do to all of them at once; that noise, measured on
repeated mixtures, is added in quadrature.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from mixlaw.errors import FitError
from mixlaw.fit.noise import COMMON_SHARE, shared_seed
from mixlaw.fit.result import FitResult
from mixlaw.mixtures import Mixture, stack_mixtures

GROWTH_BOUNDS = (-7.0, 2.0)
"""Of the logarithm of `error_growth`: from none to be seen to a scale that is all distance."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """Predicted losses of mixtures; the interval is that of one new run with a fresh seed."""

    mixtures: tuple[Mixture, ...]
    columns: tuple[str, ...]
    """Targets, or the name of a combination of them."""
    value_RK: Float[np.ndarray, "R K"]
    low_RK: Float[np.ndarray, "R K"]
    high_RK: Float[np.ndarray, "R K"]
    level: float
    """Share of new runs that the interval is meant to hold."""
    unit: str
    notes: tuple[str, ...]
    """What the intervals do not hold, in sentences."""

    def joined(self, other: "Prediction") -> "Prediction":
        """Returns the columns of both predictions, which are of the same mixtures."""
        return replace(
            self,
            columns=(*self.columns, *other.columns),
            value_RK=np.hstack([self.value_RK, other.value_RK]),
            low_RK=np.hstack([self.low_RK, other.low_RK]),
            high_RK=np.hstack([self.high_RK, other.high_RK]),
            notes=tuple(dict.fromkeys((*self.notes, *other.notes))),
        )


def predict_losses(
    fit: FitResult, mixtures: Sequence[Mixture], *, level: float = 0.9
) -> Prediction:
    """Returns the loss of every target on each mixture.

    Raises:
        MixtureError: A mixture has other domains than the fit.
    """
    return _predict(fit, mixtures, np.eye(len(fit.targets)), fit.targets, level)


def predict_weighted(
    fit: FitResult,
    mixtures: Sequence[Mixture],
    weights: Mapping[str, float],
    *,
    name: str = "objective",
    level: float = 0.9,
) -> Prediction:
    """Returns a weighted sum of target losses on each mixture, with its own interval.

    Raises:
        FitError: A weighted target is not in the fit.
        MixtureError: A mixture has other domains than the fit.
    """
    return _predict(fit, mixtures, weight_row(fit, weights), (name,), level)


def predict_combinations(
    fit: FitResult,
    mixtures: Sequence[Mixture],
    weight_KT: Float[np.ndarray, "K T"],
    *,
    level: float = 0.9,
) -> Prediction:
    """Returns several weighted sums of target losses on each mixture; the columns have numbers.

    Raises:
        MixtureError: A mixture has other domains than the fit.
    """
    return _predict(fit, mixtures, weight_KT, [str(k) for k in range(len(weight_KT))], level)


def weight_row(fit: FitResult, weights: Mapping[str, float]) -> Float[np.ndarray, "1 T"]:
    """Returns weights by target as a row in the fit's order.

    Raises:
        FitError: A weighted target is not in the fit.
    """
    for target in weights:
        if target not in fit.targets:
            raise FitError(
                f"{target!r} is no fitted target", do=f"the targets are {', '.join(fit.targets)}"
            )
    return np.array([[float(weights.get(target, 0.0)) for target in fit.targets]])


def difference_sd(
    fit: FitResult,
    weights: Mapping[str, float],
    *,
    between: tuple[Mixture, Mixture] | None = None,
) -> float:
    """Returns the standard deviation of the error of a predicted difference between two mixtures.

    What left-out residuals have in common cancels in a difference, what they do not counts twice;
    what seeds do to all mixtures, of which the residuals know nothing where the runs share a seed,
    counts twice as well: the two runs have different ones.

    Args:
        fit: The fit.
        weights: Weights by target.
        between: Which mixtures: errors grow outwards. Two like the fitted ones, by default.

    Raises:
        FitError: A weighted target is not in the fit.
        MixtureError: A mixture has other domains than the fit.
    """
    weight_KT = weight_row(fit, weights)
    residual_R = _combined(fit.left_out_residual_RT, weight_KT)[:, 0]
    variance = _weighted_variance(fit, residual_R)
    both = 2 * variance
    if between is not None:
        pair_2M = stack_mixtures([mixture.reordered(fit.domains) for mixture in between])
        scale_R, scale_2 = (error_scale(fit, r_RM) for r_RM in (fit.table.r_RM, pair_2M))
        both = _weighted_variance(fit, residual_R / scale_R) * float(np.sum(scale_2**2))
    seed_sd = float(fit.seed_sd(weight_KT)[0])
    if shared_seed(fit.table) is not None and not math.isnan(seed_sd):
        both += 2 * max(COMMON_SHARE * seed_sd**2, seed_sd**2 - variance)
    return math.sqrt(both)


def _weighted_variance(fit: FitResult, value_R: Float[np.ndarray, " R"]) -> float:
    """Returns the variance over mixtures of what is known of runs; every mixture counts once."""
    known_R = np.isfinite(value_R)
    value_R, weight_R = value_R[known_R], fit.weight_R[known_R]
    off_R = value_R - np.average(value_R, weights=weight_R)
    count = fit.num_mixtures
    return float(np.average(off_R**2, weights=weight_R)) * count / (count - 1)


def error_scale(fit: FitResult, r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
    """Returns how large errors are at mixtures, in units of those in the middle of the runs."""
    first_G, design_GM = _fitted_mixtures(fit)
    residual_GT = _by_mixture(fit, fit.left_out_residual_RT, first_G)
    growth = error_growth(residual_GT, squared_distance(design_GM, design_GM))
    return 1 + growth * squared_distance(r_RM, design_GM)


def _predict(
    fit: FitResult,
    mixtures: Sequence[Mixture],
    weight_KT: Float[np.ndarray, "K T"],
    columns: Sequence[str],
    level: float,
) -> Prediction:
    if not 0 < level < 1:
        raise FitError(f"the level of an interval must lie between 0 and 1, found {level:g}")
    ordered = tuple(mixture.reordered(fit.domains) for mixture in mixtures)
    r_RM = stack_mixtures(ordered)
    value_RK = fit.losses(r_RM) @ weight_KT.T
    left_out_RK, notes = _left_out_halfwidth(fit, r_RM, weight_KT, level)
    seed_K, seed_notes = _seed_halfwidth(fit, weight_KT, level)
    half_RK = np.hypot(left_out_RK, np.hypot(seed_K, _level_halfwidth(fit, weight_KT, level)))
    return Prediction(
        mixtures=ordered,
        columns=tuple(columns),
        value_RK=value_RK,
        low_RK=value_RK - half_RK,
        high_RK=value_RK + half_RK,
        level=level,
        unit=fit.table.unit,
        notes=(*notes, *seed_notes, *_distance_notes(fit, ordered)),
    )


def _left_out_halfwidth(
    fit: FitResult,
    r_RM: Float[np.ndarray, "R M"],
    weight_KT: Float[np.ndarray, "K T"],
    level: float,
) -> tuple[Float[np.ndarray, "R K"], tuple[str, ...]]:
    """Returns the half-width of the interval of one new run, as left-out residuals tell it."""
    first_G, design_GM = _fitted_mixtures(fit)
    combined_RK = _combined(fit.left_out_residual_RT, weight_KT)
    return conformal_halfwidth(
        _by_mixture(fit, fit.left_out_residual_RT, first_G),
        _by_mixture(fit, combined_RK, first_G),
        design_GM=design_GM,
        r_RM=r_RM,
        level=level,
    )


def conformal_halfwidth(
    residual_GT: Float[np.ndarray, "G T"],
    combined_GK: Float[np.ndarray, "G K"],
    *,
    design_GM: Float[np.ndarray, "G M"],
    r_RM: Float[np.ndarray, "R M"],
    level: float,
) -> tuple[Float[np.ndarray, "R K"], tuple[str, ...]]:
    """Returns half-widths of intervals of one new run, from residuals of left-out mixtures.

    Args:
        residual_GT: Left-out residuals by fitted mixture and target, with or without their sign;
            NaN where there is none.
        combined_GK: Those of the quantities whose intervals are wanted.
        design_GM: Token shares of the fitted mixtures.
        r_RM: Mixtures to predict.
        level: Share of new runs that the intervals are meant to hold.

    Returns:
        Half-widths, and what is to be said of them in sentences.
    """
    distance_G = squared_distance(design_GM, design_GM)
    growth = error_growth(residual_GT, distance_G)
    scale_G1 = 1 + growth * distance_G[:, None]
    spread_K = np.sqrt(_known_mean((combined_GK / scale_G1) ** 2))
    scaled_GT = np.abs(residual_GT) / scale_G1
    rms_T = np.sqrt(_known_mean(scaled_GT**2))
    typical_GT = scaled_GT / np.where(rms_T > 0, rms_T, np.nan)  # a constant loss tells nothing
    quantile, notes = _residual_quantile(typical_GT, level)
    scale_R = 1 + growth * squared_distance(r_RM, design_GM)
    return quantile * spread_K * scale_R[:, None], notes


def _residual_quantile(
    typical_GT: Float[np.ndarray, "G T"], level: float
) -> tuple[float, tuple[str, ...]]:
    """Returns the quantile of scaled residuals, in root mean squares, over all targets together."""
    count = len(typical_GT)
    share = level * (1 + 1 / count)
    if share <= 1:
        known = typical_GT[np.isfinite(typical_GT)]
        return float(np.quantile(known, share)) if len(known) else 0.0, ()
    from scipy.stats import t

    note = f"{count} mixtures are too few for a quantile at {level:.0%}: Student's t instead"
    return float(t.ppf((1 + level) / 2, count - 1)) * math.sqrt(1 + 1 / count), (note,)


def error_growth(
    residual_GT: Float[np.ndarray, "G T"],
    distance_G: Float[np.ndarray, " G"],
    *,
    power: float = 1.0,
) -> float:
    """Returns b of the scale (1 + b d^2)^power with which errors grow from the runs' middle.

    One number for all targets, each of which has its own level: the normal likelihood's maximum.
    """
    from scipy.optimize import minimize_scalar

    count = residual_GT.shape[1]

    def negative_log_likelihood(log_growth: float) -> float:
        scale_G = (1 + math.exp(log_growth) * distance_G) ** power
        variance_T = np.maximum(_known_mean((residual_GT / scale_G[:, None]) ** 2), 1e-300)
        return float(
            count * np.sum(np.log(scale_G)) + len(distance_G) / 2 * np.nansum(np.log(variance_T))
        )

    found = minimize_scalar(negative_log_likelihood, bounds=GROWTH_BOUNDS, method="bounded")
    return math.exp(float(found.x))


def squared_distance(
    r_RM: Float[np.ndarray, "R M"], design_GM: Float[np.ndarray, "G M"]
) -> Float[np.ndarray, " R"]:
    """Returns squared Mahalanobis distances from the middle of a design, in its own covariance."""
    apart_RM = r_RM - np.mean(design_GM, axis=0)
    precision_MM = np.linalg.pinv(np.cov(design_GM.T))
    return np.maximum(np.einsum("rm,mn,rn->r", apart_RM, precision_MM, apart_RM), 0.0)


def _fitted_mixtures(
    fit: FitResult,
) -> tuple[Int[np.ndarray, " G"], Float[np.ndarray, "G M"]]:
    """Returns the first run of each fitted mixture, and the mixtures."""
    ids = np.array(fit.table.mixture_ids)
    first_G = np.array([np.flatnonzero(ids == name)[0] for name in dict.fromkeys(ids)])
    return first_G, fit.table.r_RM[first_G]


def _by_mixture(
    fit: FitResult, residual_RK: Float[np.ndarray, "R K"], first_G: Int[np.ndarray, " G"]
) -> Float[np.ndarray, "G K"]:
    """Returns root mean squares over replicates: left out together, they are one residual."""
    ids = np.array(fit.table.mixture_ids)
    return np.sqrt([_known_mean(residual_RK[ids == ids[i]] ** 2) for i in first_G])


def _seed_halfwidth(
    fit: FitResult, weight_KT: Float[np.ndarray, "K T"], level: float
) -> tuple[Float[np.ndarray, " K"], tuple[str, ...]]:
    nothing = np.zeros(len(weight_KT))
    if shared_seed(fit.table) is None:
        if None not in fit.table.seeds:
            return nothing, ()  # runs with several seeds: the residuals hold the noise
        note = "the runs' seeds are not known: if they share one, its noise is not in the intervals"
        return nothing, (note,)
    seed_K = fit.seed_sd(weight_KT)
    if np.any(np.isnan(seed_K)):
        note = "the noise between seeds is not in the intervals: no mixture was run with several"
        return nothing, (note,)
    from scipy.stats import t

    quantile = float(t.ppf((1 + level) / 2, fit.replicate_freedom))
    # A run's own part of the noise is in the left-out residuals: the rest is common, if more than
    # is usual.
    squared_RK = _combined(fit.left_out_residual_RT, weight_KT) ** 2
    known_RK = np.isfinite(squared_RK)
    own_K = fit.weight_R @ np.where(known_RK, squared_RK, 0.0) / (fit.weight_R @ known_RK)
    rest_K = 1 - own_K / np.maximum(seed_K**2, 1e-300)
    factor_K = fit.seed_factor * np.maximum(rest_K / COMMON_SHARE, 1.0)
    return quantile * seed_K * np.sqrt(factor_K), ()


def _level_halfwidth(
    fit: FitResult, weight_KT: Float[np.ndarray, "K T"], level: float
) -> Float[np.ndarray, " K"]:
    """Returns the half-width of the error beyond the runs' scale that all mixtures share.

    The targets' errors are taken to go together, as those of one run do: what is drawn of each
    target alone would average out in a weighted sum.
    """
    if fit.level_draws_BT is None:
        return np.zeros(len(weight_KT))
    from scipy.stats import norm

    return float(norm.ppf((1 + level) / 2)) * np.abs(weight_KT) @ np.std(fit.level_draws_BT, axis=0)


def _distance_notes(fit: FitResult, mixtures: Sequence[Mixture]) -> tuple[str, ...]:
    """Names mixtures that lie further out than any run does from its nearest other one."""
    r_RM = fit.table.r_RM
    apart_RR = np.abs(r_RM[:, None] - r_RM).sum(axis=2) / 2
    apart_RR[apart_RR == 0] = np.inf  # itself and its replicates
    usual = float(np.max(np.min(apart_RR, axis=1)))
    far = [m for m in mixtures if float(np.min(np.abs(r_RM - m.array()).sum(axis=1))) / 2 > usual]
    return tuple(
        f"the mixture {mixture} lies further from all runs than any run from its nearest one: what"
        " its interval should be there is not known"
        for mixture in far
    )


def _combined(
    value_RT: Float[np.ndarray, "R T"], weight_KT: Float[np.ndarray, "K T"]
) -> Float[np.ndarray, "R K"]:
    """Returns weighted sums of targets; NaN only where a target that counts is missing."""
    missing_RK = ~np.isfinite(value_RT) @ (weight_KT != 0).T
    sums_RK = np.where(np.isfinite(value_RT), value_RT, 0.0) @ weight_KT.T
    return np.where(missing_RK, np.nan, sums_RK)


def _known_mean(value_NK: Float[np.ndarray, "N K"]) -> Float[np.ndarray, " K"]:
    """Returns the means over the rows that are known; NaN where none is."""
    known_NK = np.isfinite(value_NK)
    count_K = known_NK.sum(axis=0)
    total_K = np.where(known_NK, value_NK, 0.0).sum(axis=0)
    return np.where(count_K > 0, total_K / np.maximum(count_K, 1), np.nan)
