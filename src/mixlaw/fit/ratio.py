r"""Fits of the critical mixture ratio by tokens (checkpoints of the same runs) and by model size.

Shape letters: K checkpoints or sizes, G mixtures, P parameters.

Checkpoints of the same runs err alike: their number counts for as much as the correlation of
neighbours leaves, K (1 - rho) / (1 + rho). Where too little is left, nothing is fitted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize_scalar

from mixlaw.errors import FitError
from mixlaw.fit.continual import CurveFit, Noise
from mixlaw.laws.ratio import RatioLaw

POWERS = (-3.0, 3.0)
"""Range of the exponent."""
POWER_POINTS = 241
"""Exponents on the first look."""
LEAST_CHECKPOINTS = 5
"""Checkpoints without which a law of three parameters is not fitted."""
LEAST_SIZES = 3
"""Sizes without which a power of the size is not fitted."""
LEAST_FREEDOM = 1.0
"""Degrees of freedom, after correlation, without which no interval is given."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RatioFit:
    """The largest share of new data as a function of tokens or of model size."""

    law: RatioLaw
    unit: float
    """What amounts are divided by: their geometric mean."""
    theta_P: Float[np.ndarray, " P"]
    """Exponent, factor at one unit, and level."""
    amount_K: Float[np.ndarray, " K"]
    """Tokens, or parameters without embeddings."""
    ratio_K: Float[np.ndarray, " K"]
    """Largest shares of new data."""
    sd: float
    """Standard deviation of the points around the law."""
    correlation: float
    """Correlation of neighbouring residuals."""
    freedom: float
    """Degrees of freedom that it leaves."""
    point_sd: float
    """Standard error that all points have in common: that of one checkpoint's share. The points'
    scatter around the law knows nothing of it."""

    def predict(self, amount: float, *, level: float = 0.9) -> tuple[float, float, float]:
        """Returns the largest share of new data with its interval, within 0 and 1."""
        from scipy.stats import t  # takes half a second to import

        scaled_1 = np.array([amount / self.unit])
        value = float(self.law.predict(scaled_1, self.theta_P)[0])
        slope_P = self.law.jacobian(scaled_1, self.theta_P)[0]
        jacobian_KP = self.law.jacobian(self.amount_K / self.unit, self.theta_P)
        inverse_PP = np.linalg.pinv(jacobian_KP.T @ jacobian_KP, rcond=1e-12, hermitian=True)
        effective = (self.freedom + len(self.theta_P)) / len(self.amount_K)
        variance = self.sd**2 * float(slope_P @ inverse_PP @ slope_P) / effective
        quantile = float(t.ppf((1 + level) / 2, self.freedom))
        half = quantile * math.hypot(math.sqrt(variance), self.point_sd)
        low, value, high = np.clip([value - half, value, value + half], 0.0, 1.0).tolist()
        return value, low, high

    def sentence(self, what: str) -> str:
        """Returns the law in numbers; `what` names the amounts."""
        exponent, factor = self.theta_P[:2]
        level = f" {self.theta_P[2]:+.3g}" if self.law.has_level else ""
        return (
            f"largest share of new data = {factor:.3g} ({what} / {self.unit:.3g})^{exponent:.2g}"
            f"{level}; points lie {self.sd:.2g} from it, {len(self.ratio_K)} of them worth"
            f" {self.freedom:.2g} degrees of freedom"
        )


def fit_ratio(
    amounts: Sequence[float],
    ratios: Sequence[float],
    *,
    has_level: bool = True,
    are_independent: bool = False,
    point_sd: float = 0.0,
) -> RatioFit:
    """Returns the law of the largest share of new data by tokens, or by size.

    Args:
        amounts: Tokens of the checkpoints, or model sizes.
        ratios: Largest shares of new data.
        has_level: Whether the law has a constant, as it has by tokens.
        are_independent: Whether the points are of other runs each, as sizes are.
        point_sd: Standard error of one point's share.

    Raises:
        FitError: There are too few points, or their correlation leaves no degree of freedom.
    """
    law = RatioLaw(has_level=has_level)
    amount_K, ratio_K = np.asarray(amounts, dtype=float), np.asarray(ratios, dtype=float)
    least, name = (LEAST_SIZES, "sizes") if are_independent else (LEAST_CHECKPOINTS, "checkpoints")
    if len(amount_K) < least:
        raise FitError(
            f"the law needs the critical proportion at {least} {name} at least, found"
            f" {len(amount_K)}",
            do=f"train or import runs with more {name}",
        )
    unit = float(np.exp(np.mean(np.log(amount_K))))
    theta_P = _least_squares(law, amount_K / unit, ratio_K)
    residual_K = ratio_K - law.predict(amount_K / unit, theta_P)
    squares = float(np.sum(residual_K**2))
    correlation = 0.0 if are_independent else neighbour_correlation(residual_K[:, None])
    freedom = effective_count(len(ratio_K), correlation) - len(theta_P)
    if freedom < LEAST_FREEDOM:
        raise FitError(
            f"{len(ratio_K)} {name} that err alike (correlation {correlation:.2f}) leave a law of"
            f" {len(theta_P)} parameters no degree of freedom",
            do=f"train or import runs with more {name}",
        )
    return RatioFit(
        law=law,
        unit=unit,
        theta_P=theta_P,
        amount_K=amount_K,
        ratio_K=ratio_K,
        sd=math.sqrt(squares / (len(ratio_K) - len(theta_P))),
        correlation=correlation,
        freedom=freedom,
        point_sd=point_sd,
    )


def checkpoint_noise(fits: Sequence[CurveFit]) -> Noise | None:
    """Returns the noise as the fits of several checkpoints of the same runs tell it together.

    None: they leave no residuals, or are fewer than three. Their residuals are correlated, and the
    noise of a late checkpoint may not be that of an early one: weak evidence, and called so.
    """
    fits = [fit for fit in fits if fit.freedom > 0]
    if len(fits) < 3 or len({len(fit.means.loss_G) for fit in fits}) > 1:
        return None
    residual_KG = np.stack(
        [np.sqrt(f.means.count_G) * (f.means.loss_G - f.losses(f.means.r_GM)) for f in fits]
    )
    variance = float(np.mean([fit.squares / fit.freedom for fit in fits]))
    correlation = neighbour_correlation(residual_KG)
    worth = effective_count(len(fits), correlation)
    freedom = worth * min(fit.freedom for fit in fits)
    sd = math.sqrt(max(variance, 1e-300))
    return Noise(
        source="checkpoints",
        sd=sd,
        freedom=freedom,
        sentence=f"over {len(fits)} checkpoints of the same runs mixtures lie {sd:.2g} from the law"
        f"; neighbours' correlation is {correlation:.2f}, so they are worth {freedom:.2g} degrees"
        " of freedom: weak evidence",
    )


def neighbour_correlation(residual_KG: Float[np.ndarray, "K G"]) -> float:
    """Returns the correlation of residuals at neighbouring checkpoints, from 0 to 0.99."""
    whole = float(np.sum(residual_KG**2))
    if whole == 0 or len(residual_KG) < 2:
        return 0.0
    pairs = float(np.sum(residual_KG[1:] * residual_KG[:-1])) * len(residual_KG)
    return min(max(pairs / (whole * (len(residual_KG) - 1)), 0.0), 0.99)


def effective_count(count: int, correlation: float) -> float:
    """Returns how many independent points correlated ones are worth; at least 1."""
    return max(1.0, count * (1 - correlation) / (1 + correlation))


def _least_squares(
    law: RatioLaw, scaled_K: Float[np.ndarray, " K"], ratio_K: Float[np.ndarray, " K"]
) -> Float[np.ndarray, " P"]:
    """Returns (s, a[, b]): for each exponent the rest is linear."""

    def solve(power: float) -> tuple[float, np.ndarray]:
        columns = [scaled_K**power, np.ones_like(scaled_K)][: 2 if law.has_level else 1]
        design_KQ = np.stack(columns, axis=1)
        linear_Q = np.linalg.lstsq(design_KQ, ratio_K, rcond=None)[0]
        return float(np.sum((ratio_K - design_KQ @ linear_Q) ** 2)), linear_Q

    powers = np.linspace(*POWERS, POWER_POINTS)
    start = int(np.argmin([solve(float(power))[0] for power in powers]))
    near = powers[max(start - 1, 0)], powers[min(start + 1, len(powers) - 1)]
    best = minimize_scalar(lambda power: solve(power)[0], bounds=near, method="bounded")
    power = float(best.x)
    return np.concatenate([[power], solve(power)[1]])
