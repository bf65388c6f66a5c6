"""From fitted laws to the losses of mixtures, with intervals for one new run of each.

Shape letters: R mixtures, M training domains, T targets, K linear combinations of targets, L
left-out fits.

Inside the region of the runs the interval is jackknife+ over mixtures (Barber et al. 2021,
arXiv:1905.02928, Eq. 1.6): each left-out fit predicts the new mixture, and its own left-out
residual says how wrong such a prediction is. Design runs share a seed, which hides what seeds do to
all of them at once; that noise, measured on repeated mixtures, is added in quadrature. What
jackknife+ guarantees at a level of 90% is 80%; it is 90% where the fits are stable, which they are
here (docs/benchmarks).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from mixlaw.errors import FitError
from mixlaw.fit.noise import COMMON_SHARE, shared_seed
from mixlaw.fit.result import FitResult
from mixlaw.mixtures import Mixture, stack_mixtures


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


def difference_sd(fit: FitResult, weights: Mapping[str, float]) -> float:
    """Returns the standard deviation of the error of a predicted difference between two mixtures.

    What left-out residuals have in common cancels in a difference, what they do not counts twice;
    what seeds do to all mixtures, of which the residuals know nothing where the runs share a seed,
    counts twice as well: the two runs have different ones.
    """
    weight_KT = weight_row(fit, weights)
    residual_R = _combined(fit.left_out_residual_RT, weight_KT)[:, 0]
    residual_R = residual_R[np.isfinite(residual_R)]
    variance = 2 * float(np.var(residual_R, ddof=1))
    seed_sd = float(fit.seed_sd(weight_KT)[0])
    if shared_seed(fit.table) is not None and not math.isnan(seed_sd):
        variance += 2 * COMMON_SHARE * seed_sd**2
    return math.sqrt(variance)


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
    low_RK, high_RK, notes = _jackknife_plus(fit, r_RM, weight_KT, level)
    seed_K, seed_notes = _seed_halfwidth(fit, weight_KT, level)
    # The jackknife's quantiles need not hold the fit's own prediction; an interval that is reported
    # beside it must.
    below_RK = np.hypot(np.maximum(value_RK - low_RK, 0.0), seed_K)
    above_RK = np.hypot(np.maximum(high_RK - value_RK, 0.0), seed_K)
    return Prediction(
        mixtures=ordered,
        columns=tuple(columns),
        value_RK=value_RK,
        low_RK=value_RK - below_RK,
        high_RK=value_RK + above_RK,
        level=level,
        unit=fit.table.unit,
        notes=(*notes, *seed_notes, *_distance_notes(fit, ordered)),
    )


def _jackknife_plus(
    fit: FitResult,
    r_RM: Float[np.ndarray, "R M"],
    weight_KT: Float[np.ndarray, "K T"],
    level: float,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Returns low and high ends of the interval of one new run, both of shape (R, K)."""
    ids = np.array(fit.table.mixture_ids)
    first_G = np.array([np.flatnonzero(ids == name)[0] for name in dict.fromkeys(ids)])
    center_GRK = (fit.left_out_losses(r_RM) @ weight_KT.T)[first_G]
    squared_RK = _combined(fit.left_out_residual_RT, weight_KT) ** 2
    # Replicates of a mixture are left out together: they are one residual, not several.
    residual_GK = np.sqrt([_known_mean(squared_RK[ids == ids[i]]) for i in first_G])
    low_RK, high_RK = np.empty(center_GRK.shape[1:]), np.empty(center_GRK.shape[1:])
    notes: dict[str, None] = {}
    for k in range(len(weight_KT)):
        known_G = np.isfinite(residual_GK[:, k])
        center_GR, residual_G = center_GRK[known_G, :, k], residual_GK[known_G, k]
        low_RK[:, k], high_RK[:, k], note = _column_interval(center_GR, residual_G, level)
        notes |= dict.fromkeys(note)
    return low_RK, high_RK, tuple(notes)


def _column_interval(
    center_GR: Float[np.ndarray, "G R"], residual_G: Float[np.ndarray, " G"], level: float
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Returns the interval's ends for each new mixture, from one residual per fitted mixture."""
    count = len(residual_G)
    rank = math.ceil(level * (count + 1) - 1e-9)
    if rank <= count:
        low_GR = np.sort(center_GR - residual_G[:, None], axis=0)
        high_GR = np.sort(center_GR + residual_G[:, None], axis=0)
        return low_GR[count - rank], high_GR[rank - 1], ()
    from scipy.stats import t

    # Too few mixtures for a quantile: Student's t on the left-out residuals instead.
    factor = float(t.ppf((1 + level) / 2, max(count - 1, 1))) * math.sqrt(1 + 1 / count)
    half = factor * float(np.sqrt(np.mean(residual_G**2)))
    mean_R = np.mean(center_GR, axis=0)
    note = f"{count} mixtures are too few for jackknife+ at {level:.0%}: Student's t instead"
    return mean_R - half, mean_R + half, (note,)


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
    return quantile * seed_K * math.sqrt(fit.seed_factor), ()


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
