r"""The mixing laws of Ye et al. as published, and the two linear baselines.

Shape letters: B any leading axes, R runs, M training domains, P parameters, S starts, Q shrinkage
residuals.

Because shares sum to one, the scale k of the paper's $L = c + k \exp(\sum_j t_j r_j)$ and the level
of t are one and the same: (t + a, k e^-a) is the same law. Here k = 1; t_j is then the log of the
loss above c that would remain on domain j alone.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from mixlaw.laws.base import (
    Curvature,
    MixingLaw,
    centering,
    level_guesses,
    loss_range,
    no_diagonal,
    no_factor,
    ridge_solution,
    tiled,
    with_level,
)

LOG_LIMIT = 30.0
"""Bound of |t|: exp(30) nats is no loss, and keeps every product finite in float64."""
CONTRAST_PRIOR = 3.0
"""Standard deviation to which t_j is shrunk around the mean of t. A contrast of 3 is a factor of 20
in the reducible loss between two domains: weak. A fit may shrink more strongly (`fit/strength.py`).
"""


@dataclass(frozen=True, slots=True)
class ExponentialLaw(MixingLaw):
    r"""M4 with the gauge fixed, $L(r) = c + \exp(\sum_j t_j r_j)$.

    References:
        Ye et al. 2025, arXiv:2403.16952, Eq. 7.
    """

    name: ClassVar[str] = "m4"
    formula: ClassVar[str] = "L(r) = c + exp(sum_j t_j r_j)"

    def parameter_names(self, domains: tuple[str, ...]) -> tuple[str, ...]:
        """Returns `c` and one `t[domain]` per domain."""
        return ("c", *(f"t[{domain}]" for domain in domains))

    def predict(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R"]:
        """Returns c + exp(r @ t)."""
        return theta_BP[..., :1] + np.exp(theta_BP[..., 1:] @ r_RM.T)

    def jacobian(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R P"]:
        """Returns (1, exp(r @ t) r)."""
        e_BR = np.exp(theta_BP[..., 1:] @ r_RM.T)
        jacobian_BRP = np.empty((*e_BR.shape, theta_BP.shape[-1]))
        jacobian_BRP[..., 0] = 1.0
        np.multiply(e_BR[..., None], r_RM, out=jacobian_BRP[..., 1:])
        return jacobian_BRP

    def gradient(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R M"]:
        """Returns exp(r @ t) t."""
        t_BM = theta_BP[..., 1:]
        return np.exp(t_BM @ r_RM.T)[..., None] * t_BM[..., None, :]

    def curvature(
        self, r_M: Float[np.ndarray, " M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Curvature:
        """Returns exp(r @ t) t t'."""
        t_BM = theta_BP[..., 1:]
        factor_BKM = np.exp(t_BM @ r_M / 2)[..., None, None] * t_BM[..., None, :]
        return no_diagonal(factor_BKM), factor_BKM

    def bounds(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> tuple[Float[np.ndarray, "*B P"], Float[np.ndarray, "*B P"]]:
        """Returns those of the level for c, and |t| <= 30."""
        limit_M = np.full(r_RM.shape[1], LOG_LIMIT)
        return with_level(y_BR, -limit_M, limit_M)

    def starts(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> Float[np.ndarray, "*B S P"]:
        """Returns, for several levels of c, the ridge solution of log(y - c) = r @ t."""
        c_BS = level_guesses(y_BR)
        t_BSM = _log_contrasts(r_RM, _log_above(y_BR, c_BS))
        return np.concatenate([c_BS[..., None], t_BSM], axis=-1)

    def penalty(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q"]:
        """Returns (t - mean t) in units of the prior."""
        t_BM = theta_BP[..., 1:]
        return (t_BM - t_BM.mean(axis=-1, keepdims=True)) / CONTRAST_PRIOR

    def penalty_jacobian(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q P"]:
        """Returns the centering matrix in units of the prior, and 0 for c."""
        size = theta_BP.shape[-1] - 1
        return tiled(np.hstack([np.zeros((size, 1)), centering(size)]) / CONTRAST_PRIOR, theta_BP)

    def is_convex(self, theta_P: Float[np.ndarray, " P"]) -> bool:
        """Always: an exponential of a linear function, with k = 1 > 0."""
        return True

    def contrasts(
        self, r_M: Float[np.ndarray, " M"], theta_P: Float[np.ndarray, " P"]
    ) -> Float[np.ndarray, " M"]:
        """Returns exp(r @ t) (t_j - r @ t)."""
        t_M = theta_P[1:]
        return np.exp(r_M @ t_M) * (t_M - r_M @ t_M)


@dataclass(frozen=True, slots=True)
class LogLinearLaw(MixingLaw):
    r"""A loss whose logarithm is linear in the shares, $L(r) = \exp(\sum_j t_j r_j)$: M4, c = 0."""

    name: ClassVar[str] = "log-linear"
    formula: ClassVar[str] = "L(r) = exp(sum_j t_j r_j)"

    def parameter_names(self, domains: tuple[str, ...]) -> tuple[str, ...]:
        """Returns one `t[domain]` per domain."""
        return tuple(f"t[{domain}]" for domain in domains)

    def predict(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R"]:
        """Returns exp(r @ t)."""
        return np.exp(theta_BP @ r_RM.T)

    def jacobian(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R P"]:
        """Returns exp(r @ t) r."""
        return np.exp(theta_BP @ r_RM.T)[..., None] * r_RM

    def gradient(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R M"]:
        """Returns exp(r @ t) t."""
        return np.exp(theta_BP @ r_RM.T)[..., None] * theta_BP[..., None, :]

    def curvature(
        self, r_M: Float[np.ndarray, " M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Curvature:
        """Returns exp(r @ t) t t'."""
        factor_BKM = np.exp(theta_BP @ r_M / 2)[..., None, None] * theta_BP[..., None, :]
        return no_diagonal(factor_BKM), factor_BKM

    def bounds(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> tuple[Float[np.ndarray, "*B P"], Float[np.ndarray, "*B P"]]:
        """Returns |t| <= 30."""
        limit_BM = np.full((*y_BR.shape[:-1], r_RM.shape[1]), LOG_LIMIT)
        return -limit_BM, limit_BM

    def starts(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> Float[np.ndarray, "*B S P"]:
        """Returns the ridge solution of log y = r @ t."""
        return _log_contrasts(r_RM, np.log(np.maximum(y_BR, 1e-9)))[..., None, :]

    def penalty(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q"]:
        """Returns (t - mean t) in units of the prior."""
        return (theta_BP - theta_BP.mean(axis=-1, keepdims=True)) / CONTRAST_PRIOR

    def penalty_jacobian(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q P"]:
        """Returns the centering matrix in units of the prior."""
        return tiled(centering(theta_BP.shape[-1]) / CONTRAST_PRIOR, theta_BP)

    def is_convex(self, theta_P: Float[np.ndarray, " P"]) -> bool:
        """Always."""
        return True


@dataclass(frozen=True, slots=True)
class LinearLaw(MixingLaw):
    r"""A loss that is linear in the shares, $L(r) = \sum_j w_j r_j$."""

    name: ClassVar[str] = "linear"
    formula: ClassVar[str] = "L(r) = sum_j w_j r_j"

    def parameter_names(self, domains: tuple[str, ...]) -> tuple[str, ...]:
        """Returns one `w[domain]` per domain: the loss on that domain alone."""
        return tuple(f"w[{domain}]" for domain in domains)

    def predict(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R"]:
        """Returns r @ w."""
        return theta_BP @ r_RM.T

    def jacobian(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R P"]:
        """Returns r."""
        return tiled(r_RM, theta_BP)

    def gradient(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R M"]:
        """Returns w."""
        return np.repeat(theta_BP[..., None, :], len(r_RM), axis=-2)

    def curvature(
        self, r_M: Float[np.ndarray, " M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Curvature:
        """Returns 0."""
        del r_M
        diag_BM = np.zeros_like(theta_BP)
        return diag_BM, no_factor(diag_BM)

    def bounds(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> tuple[Float[np.ndarray, "*B P"], Float[np.ndarray, "*B P"]]:
        """Returns a hundred ranges of the losses to both sides: none, in practice."""
        _, middle_B1, spread_B1 = loss_range(y_BR)
        far_BM = np.repeat(100 * spread_B1, r_RM.shape[1], axis=-1)
        return middle_B1 - far_BM, middle_B1 + far_BM

    def starts(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> Float[np.ndarray, "*B S P"]:
        """Returns the ridge solution."""
        return _contrasts(r_RM, y_BR)[..., None, :]

    def penalty(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q"]:
        """Returns (w - mean w) in units of the prior, in nats per token."""
        return (theta_BP - theta_BP.mean(axis=-1, keepdims=True)) / CONTRAST_PRIOR

    def penalty_jacobian(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q P"]:
        """Returns the centering matrix in units of the prior."""
        return tiled(centering(theta_BP.shape[-1]) / CONTRAST_PRIOR, theta_BP)

    def is_convex(self, theta_P: Float[np.ndarray, " P"]) -> bool:
        """Always."""
        return True


def _log_above(
    y_BR: Float[np.ndarray, "*B R"], c_BS: Float[np.ndarray, "*B S"]
) -> Float[np.ndarray, "*B S R"]:
    """Returns log(y - c), with a floor for losses near or below c."""
    least_B11 = 1e-3 * loss_range(y_BR)[2][..., None]
    return np.log(np.maximum(y_BR[..., None, :] - c_BS[..., None], least_B11))


def _contrasts(
    r_RM: Float[np.ndarray, "R M"], z_BR: Float[np.ndarray, "*B R"]
) -> Float[np.ndarray, "*B M"]:
    """Returns t of z = r @ t, shrunk to the mean of z."""
    level_B1 = np.nanmean(z_BR, axis=-1, keepdims=True)
    return level_B1 + ridge_solution(r_RM, z_BR - level_B1)


def _log_contrasts(
    r_RM: Float[np.ndarray, "R M"], z_BR: Float[np.ndarray, "*B R"]
) -> Float[np.ndarray, "*B M"]:
    return np.clip(_contrasts(r_RM, z_BR), -LOG_LIMIT, LOG_LIMIT)
