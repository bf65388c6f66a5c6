r"""What expected losses are off by: the law's misfit, apart from noise and from having few runs.

A left-out residual holds three things: the noise of its own run, the error of a fit that lacks that
run, and what the law misses there. An optimum is judged by expected losses under the fit to all
runs. For a smoother with leverage h, residual times left-out residual, $e^2 / (1 - h)$, has the
variance of a run around the law as its mean: noise and misfit, without the error of a fit. The
noise between seeds is known from repeated mixtures; the rest is misfit. What few runs cost is in
the bootstrap, whose residuals are too small by the same leverage.

Shape letters: R runs, M training domains, T targets, G mixtures.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mixlaw.fit.noise import COMMON_SHARE, shared_seed
from mixlaw.fit.result import FitResult, evaluate_law
from mixlaw.predict import error_growth, squared_distance


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Misfit:
    """How far the expected value of a weighted loss lies off the law."""

    variance: float
    """In the middle of the runs."""
    growth: float
    """b of the variance's growth 1 + b d^2 with the distance from there."""
    inflation: float
    """Variance of runs around the law, in mean squares of the fit's residuals; at least 1."""
    freedom: float
    """Degrees of freedom: mixtures less what the law's parameters take of them."""
    noise_variance: float
    """Of a run's own noise between seeds; 0: not known, and in `variance`."""
    spacing: float
    """Share that must move from a typical mixture to its nearest one."""
    design_GM: Float[np.ndarray, "G M"]

    def variances(self, r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        """Returns the variance of the misfit at mixtures."""
        return self.variance * (1 + self.growth * squared_distance(r_RM, self.design_GM))

    def difference_sd(
        self, one_M: Float[np.ndarray, " M"], other_M: Float[np.ndarray, " M"]
    ) -> float:
        """Returns the standard deviation of the difference between two mixtures' misfits."""
        variance = float(np.sum(self.variances(np.stack([one_M, other_M]))))
        return math.sqrt(self.apart(one_M, other_M) * variance)

    def apart(self, one_M: Float[np.ndarray, " M"], other_M: Float[np.ndarray, " M"]) -> float:
        """Returns which share of two mixtures' misfits is each one's own.

        Within the spacing of the runs a misfit is shared in part: losses are smooth.
        """
        moved = float(np.abs(one_M - other_M).sum()) / 2
        return min(1.0, moved / self.spacing) if self.spacing > 0 else 1.0


def measure_misfit(fit: FitResult, weight_T: Float[np.ndarray, " T"]) -> Misfit:
    """Returns the misfit of a weighted sum of targets.

    Args:
        fit: The fit.
        weight_T: Weights of the targets, of any sign.
    """
    inside_RT = fit.table.y_RT - evaluate_law(fit.law, fit.table.r_RM, fit.theta_TP)
    outside_RT = fit.left_out_residual_RT
    used_T = weight_T != 0
    inside_R1, outside_R1 = (
        (residual_RT[:, used_T] @ weight_T[used_T])[:, None]
        for residual_RT in (inside_RT, outside_RT)
    )
    ids = fit.table.mixture_ids
    rows = [[i for i, one in enumerate(ids) if one == name] for name in dict.fromkeys(ids)]
    design_GM = np.stack([fit.table.r_RM[row[0]] for row in rows])
    distance_G = squared_distance(design_GM, design_GM)
    square_RT = np.maximum(inside_RT * outside_RT, inside_RT**2)
    square_R1 = np.maximum(inside_R1 * outside_R1, inside_R1**2)
    square_GT = np.stack([_mean(square_RT[row]) for row in rows])
    square_G1 = np.stack([_mean(square_R1[row]) for row in rows])
    growth = error_growth(np.sqrt(square_GT), distance_G, power=0.5)
    around = float(_mean(square_G1)[0])
    residual = float(_mean(np.stack([_mean(inside_R1[row] ** 2) for row in rows]))[0])
    noise = _noise_variance(fit, weight_T)
    share = _misfit_share(fit, noise / around if around > 0 else 0.0, _mean(square_GT))
    middle = float(_mean(square_G1 / (1 + growth * distance_G[:, None]))[0])
    inflation = around / residual if residual > 0 else 1.0  # 1 / (1 - mean leverage)
    return Misfit(
        variance=share * middle,
        growth=growth,
        inflation=inflation,
        freedom=max(len(rows) / inflation, 1.0),
        noise_variance=noise,
        spacing=_spacing(design_GM),
        design_GM=design_GM,
    )


def _noise_variance(fit: FitResult, weight_T: Float[np.ndarray, " T"]) -> float:
    """Returns the variance of a run's own noise in a weighted sum; 0: not known."""
    seed_sd = float(fit.seed_sd(weight_T[None])[0])
    if math.isnan(seed_sd):
        return 0.0
    own = 1.0 if shared_seed(fit.table) is None else 1 - COMMON_SHARE
    return own * seed_sd**2


def _misfit_share(fit: FitResult, noise_share: float, square_T: Float[np.ndarray, " T"]) -> float:
    """Returns which share of the variance around the law is misfit.

    The mean of two estimates: the objective's own, which a handful of repeated runs tells badly,
    and that of all targets together.
    """
    noise_T = np.array([_noise_variance(fit, row_T) for row_T in np.eye(len(square_T))])
    known_T = square_T > 0
    pooled = float(np.sum(noise_T[known_T]) / np.sum(square_T[known_T])) if known_T.any() else 0.0
    return (max(1 - noise_share, 0.0) + max(1 - pooled, 0.0)) / 2


def _spacing(design_GM: Float[np.ndarray, "G M"]) -> float:
    """Returns the median distance of a mixture from its nearest one."""
    apart_GG = np.abs(design_GM[:, None] - design_GM).sum(axis=2) / 2
    np.fill_diagonal(apart_GG, np.inf)
    nearest_G = apart_GG.min(axis=1)
    return float(np.median(nearest_G)) if len(nearest_G) > 1 else 0.0


def _mean(value_RT: Float[np.ndarray, "R T"]) -> Float[np.ndarray, " T"]:
    """Returns the means of what is known; NaN where nothing is."""
    known_RT = np.isfinite(value_RT)
    count_T = known_RT.sum(axis=0)
    total_T = np.where(known_RT, value_RT, 0.0).sum(axis=0)
    return np.where(count_T > 0, total_T / np.maximum(count_T, 1), np.nan)
