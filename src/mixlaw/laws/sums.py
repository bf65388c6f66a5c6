r"""Laws that add a term for each domain: the paper's M1, M2 and M3, and BiMix at fixed tokens.

Shape letters: B any leading axes, R runs, M training domains, P parameters, S starts, Q shrinkage
residuals.

M1 to M3 are the candidates that Ye et al. (2025, arXiv:2403.16952, Section 3.2 and Table 1) compare
with M4. They stand here as baselines, exactly as published up to what is not identified: of M3's
product of t_j r_j only the product of all t is.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from mixlaw.laws.base import (
    Curvature,
    MixingLaw,
    level_guesses,
    loss_range,
    no_factor,
    ridge_solution,
    tiled,
    with_level,
)
from mixlaw.laws.reciprocal import FIXED_FLOOR

RATE_LIMIT = 30.0
"""Bound of |t|."""
RATE_PRIOR = 10.0
"""Standard deviation of t around 0 (M1, M2, M3): a domain that halves its term at a share of 7%."""
WEIGHT_PRIOR = 3.0
"""Standard deviation of M1's k, in nats per token."""
TYPICAL_RATES = (-5.0, -15.0, -1.5)
"""Where starts put t, in turn."""
TYPICAL_POWER = 0.1
"""Where starts put BiMix's exponents."""
POWER_PRIOR = 1.0
"""Standard deviation of the logarithm of BiMix's exponents."""
POWER_BOUNDS = (1e-4, 3.0)
LOG_WEIGHT_LIMIT = 30.0


@dataclass(frozen=True, slots=True)
class SumOfExponentialsLaw(MixingLaw):
    r"""M1, $L(r) = c + \sum_j k_j \exp(t_j r_j)$.

    References:
        Ye et al. 2025, arXiv:2403.16952, Section 3.2.
    """

    name: ClassVar[str] = "m1"
    formula: ClassVar[str] = "L(r) = c + sum_j k_j exp(t_j r_j)"

    def parameter_names(self, domains: tuple[str, ...]) -> tuple[str, ...]:
        """Returns `c`, one `k[domain]` and one `t[domain]` per domain."""
        return ("c", *(f"k[{d}]" for d in domains), *(f"t[{d}]" for d in domains))

    def predict(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R"]:
        """Returns c + sum k exp(t r)."""
        size = r_RM.shape[1]
        powers_BRM = np.exp(theta_BP[..., None, 1 + size :] * r_RM)
        return theta_BP[..., :1] + np.einsum(
            "...rm,...m->...r", powers_BRM, theta_BP[..., 1 : 1 + size]
        )

    def jacobian(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R P"]:
        """Returns (1, exp(t r), k r exp(t r))."""
        size = r_RM.shape[1]
        powers_BRM = np.exp(theta_BP[..., None, 1 + size :] * r_RM)
        jacobian_BRP = np.empty((*powers_BRM.shape[:-1], theta_BP.shape[-1]))
        jacobian_BRP[..., 0] = 1.0
        jacobian_BRP[..., 1 : 1 + size] = powers_BRM
        jacobian_BRP[..., 1 + size :] = powers_BRM * r_RM * theta_BP[..., None, 1 : 1 + size]
        return jacobian_BRP

    def gradient(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R M"]:
        """Returns k t exp(t r)."""
        size = r_RM.shape[1]
        k_B1M, t_B1M = theta_BP[..., None, 1 : 1 + size], theta_BP[..., None, 1 + size :]
        return k_B1M * t_B1M * np.exp(t_B1M * r_RM)

    def curvature(
        self, r_M: Float[np.ndarray, " M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Curvature:
        """Returns k t^2 exp(t r), of domains with k > 0."""
        size = len(r_M)
        k_BM, t_BM = np.maximum(theta_BP[..., 1 : 1 + size], 0.0), theta_BP[..., 1 + size :]
        diag_BM = k_BM * t_BM**2 * np.exp(t_BM * r_M)
        return diag_BM, no_factor(diag_BM)

    def bounds(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> tuple[Float[np.ndarray, "*B P"], Float[np.ndarray, "*B P"]]:
        """Returns those of the level for c, a hundred ranges of the losses for k, |t| <= 30."""
        size = r_RM.shape[1]
        limit_K = np.concatenate([np.ones(size), np.full(size, RATE_LIMIT)])
        low_BP, high_BP = with_level(y_BR, -limit_K, limit_K)
        far_B1 = 100 * loss_range(y_BR)[2]
        low_BP[..., 1 : 1 + size], high_BP[..., 1 : 1 + size] = -far_B1, far_B1
        return low_BP, high_BP

    def starts(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> Float[np.ndarray, "*B S P"]:
        """Returns, for several t common to all domains, the ridge solution for c and k."""
        lowest_B1, _, _ = loss_range(y_BR)
        low_BP, high_BP = self.bounds(r_RM, y_BR)
        starts: list[np.ndarray] = []
        for rate in TYPICAL_RATES:
            powers_RM = np.exp(rate * r_RM)
            c_B1 = np.maximum(lowest_B1 - loss_range(y_BR)[2] / 2, low_BP[..., :1])
            k_BM = ridge_solution(powers_RM, y_BR - c_B1)
            start_BP = np.concatenate([c_B1, k_BM, np.full(k_BM.shape, rate)], axis=-1)
            starts.append(np.clip(start_BP, low_BP, high_BP))
        return np.stack(starts, axis=-2)

    def penalty(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q"]:
        """Returns k and t in units of the prior."""
        return theta_BP[..., 1:] / self._prior((theta_BP.shape[-1] - 1) // 2)

    def penalty_jacobian(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q P"]:
        """Returns a diagonal matrix, and 0 for c."""
        prior_Q = self._prior((theta_BP.shape[-1] - 1) // 2)
        return tiled(np.hstack([np.zeros((len(prior_Q), 1)), np.diag(1 / prior_Q)]), theta_BP)

    def is_convex(self, theta_P: Float[np.ndarray, " P"]) -> bool:
        """Where no k is negative."""
        return bool(np.all(theta_P[1 : 1 + (len(theta_P) - 1) // 2] >= 0))

    def _prior(self, size: int) -> Float[np.ndarray, " Q"]:
        return np.concatenate([np.full(size, WEIGHT_PRIOR), np.full(size, RATE_PRIOR)])


@dataclass(frozen=True, slots=True)
class SharedWeightLaw(MixingLaw):
    r"""M2, $L(r) = c + k \sum_j \exp(t_j r_j)$.

    References:
        Ye et al. 2025, arXiv:2403.16952, Section 3.2.
    """

    name: ClassVar[str] = "m2"
    formula: ClassVar[str] = "L(r) = c + k sum_j exp(t_j r_j)"

    def parameter_names(self, domains: tuple[str, ...]) -> tuple[str, ...]:
        """Returns `c`, `log k` and one `t[domain]` per domain."""
        return ("c", "log k", *(f"t[{domain}]" for domain in domains))

    def predict(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R"]:
        """Returns c + k sum exp(t r)."""
        sum_BR = np.exp(theta_BP[..., None, 2:] * r_RM).sum(axis=-1)
        return theta_BP[..., :1] + np.exp(theta_BP[..., 1:2]) * sum_BR

    def jacobian(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R P"]:
        """Returns (1, k sum exp(t r), k r exp(t r))."""
        terms_BRM = np.exp(theta_BP[..., None, 1:2] + theta_BP[..., None, 2:] * r_RM)
        jacobian_BRP = np.empty((*terms_BRM.shape[:-1], theta_BP.shape[-1]))
        jacobian_BRP[..., 0] = 1.0
        jacobian_BRP[..., 1] = terms_BRM.sum(axis=-1)
        jacobian_BRP[..., 2:] = terms_BRM * r_RM
        return jacobian_BRP

    def gradient(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R M"]:
        """Returns k t exp(t r)."""
        t_B1M = theta_BP[..., None, 2:]
        return t_B1M * np.exp(theta_BP[..., None, 1:2] + t_B1M * r_RM)

    def curvature(
        self, r_M: Float[np.ndarray, " M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Curvature:
        """Returns k t^2 exp(t r)."""
        t_BM = theta_BP[..., 2:]
        diag_BM = t_BM**2 * np.exp(theta_BP[..., 1:2] + t_BM * r_M)
        return diag_BM, no_factor(diag_BM)

    def bounds(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> tuple[Float[np.ndarray, "*B P"], Float[np.ndarray, "*B P"]]:
        """Returns those of the level for c, |log k| <= 30, |t| <= 30."""
        limit_K = np.concatenate([[LOG_WEIGHT_LIMIT], np.full(r_RM.shape[1], RATE_LIMIT)])
        return with_level(y_BR, -limit_K, limit_K)

    def starts(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> Float[np.ndarray, "*B S P"]:
        """Returns, for several t common to all domains, the k that reaches the losses' range."""
        c_B1, spread_B1 = level_guesses(y_BR)[..., :1], loss_range(y_BR)[2]
        starts: list[np.ndarray] = []
        for rate in TYPICAL_RATES:
            log_k_B1 = np.log(spread_B1 / np.mean(np.exp(rate * r_RM).sum(axis=1)))
            t_BM = np.full((*c_B1.shape[:-1], r_RM.shape[1]), rate)
            starts.append(np.concatenate([c_B1, log_k_B1, t_BM], axis=-1))
        return np.stack(starts, axis=-2)

    def penalty(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q"]:
        """Returns t in units of the prior."""
        return theta_BP[..., 2:] / RATE_PRIOR

    def penalty_jacobian(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q P"]:
        """Returns a diagonal matrix, and 0 for c and log k."""
        size = theta_BP.shape[-1] - 2
        return tiled(np.hstack([np.zeros((size, 2)), np.eye(size) / RATE_PRIOR]), theta_BP)

    def is_convex(self, theta_P: Float[np.ndarray, " P"]) -> bool:
        """Always: k > 0."""
        return True


@dataclass(frozen=True, slots=True)
class ProductLaw(MixingLaw):
    r"""M3, $L(r) = c + k \exp(\prod_j t_j r_j)$, with t the product of t_j over that of M.

    A share of 0 makes the product 0, whatever the others are: the paper's reason to reject it.

    References:
        Ye et al. 2025, arXiv:2403.16952, Section 3.2.
    """

    name: ClassVar[str] = "m3"
    formula: ClassVar[str] = "L(r) = c + k exp(t prod_j (M r_j))"

    def parameter_names(self, domains: tuple[str, ...]) -> tuple[str, ...]:
        """Returns `c`, `k` and `t`."""
        return ("c", "k", "t")

    def predict(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R"]:
        """Returns c + k exp(t prod (M r))."""
        return theta_BP[..., :1] + theta_BP[..., 1:2] * self._power(r_RM, theta_BP)

    def jacobian(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R P"]:
        """Returns (1, exp(t prod), k prod exp(t prod))."""
        power_BR = self._power(r_RM, theta_BP)
        slope_BR = theta_BP[..., 1:2] * _scaled_product(r_RM) * power_BR
        return np.stack([np.ones_like(power_BR), power_BR, slope_BR], axis=-1)

    def gradient(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R M"]:
        """Returns k t exp(t prod) times the product of the other shares."""
        size = r_RM.shape[1]
        others_RMM = np.where(np.eye(size, dtype=bool), 1.0, size * r_RM[:, None, :])
        slope_BR = theta_BP[..., 1:2] * theta_BP[..., 2:3] * self._power(r_RM, theta_BP)
        return slope_BR[..., None] * size * others_RMM.prod(axis=-1)

    def bounds(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> tuple[Float[np.ndarray, "*B P"], Float[np.ndarray, "*B P"]]:
        """Returns those of the level for c, a hundred ranges of the losses for k, |t| <= 30."""
        low_BP, high_BP = with_level(y_BR, np.full(2, -RATE_LIMIT), np.full(2, RATE_LIMIT))
        far_B1 = 100 * loss_range(y_BR)[2]
        low_BP[..., 1:2], high_BP[..., 1:2] = -far_B1, far_B1
        # The product is at most 1 (all shares equal), so that exp(30) bounds the power.
        return low_BP, high_BP

    def starts(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> Float[np.ndarray, "*B S P"]:
        """Returns c below the losses, k their range, and t falling or rising."""
        c_B1, spread_B1 = level_guesses(y_BR)[..., :1], loss_range(y_BR)[2]
        return np.stack(
            [
                np.concatenate([c_B1, spread_B1, np.full_like(c_B1, rate)], axis=-1)
                for rate in (-1.0, 1.0, -10.0)
            ],
            axis=-2,
        )

    def penalty(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q"]:
        """Returns t in units of the prior."""
        return theta_BP[..., 2:] / RATE_PRIOR

    def penalty_jacobian(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q P"]:
        """Returns a constant row."""
        return tiled(np.array([[0.0, 0.0, 1 / RATE_PRIOR]]), theta_BP)

    def is_convex(self, theta_P: Float[np.ndarray, " P"]) -> bool:
        """Only where it is constant: a product of shares is neither convex nor concave."""
        return bool(theta_P[1] * theta_P[2] == 0)

    def _power(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R"]:
        return np.exp(theta_BP[..., 2:3] * _scaled_product(r_RM))


@dataclass(frozen=True, slots=True)
class BiMixLaw(MixingLaw):
    r"""A sum of falling powers, $L(r) = \sum_j F_j (r_j + e)^{-a_j}$: BiMix at fixed tokens.

    BiMix itself has one training domain for each validation domain,
    $L_i = (A_i / r_i^{a_i}) (B_i / D^{b_i} + C_i)$; this is its sum over all training domains, as
    Olmix (arXiv:2602.12237) fits it, with a floor e = 0.001 that keeps a share of 0 finite.

    References:
        BiMix, arXiv:2405.14908.
    """

    name: ClassVar[str] = "bimix"
    formula: ClassVar[str] = "L(r) = sum_j F_j (r_j + e)^-a_j, e = 0.001"

    def parameter_names(self, domains: tuple[str, ...]) -> tuple[str, ...]:
        """Returns one `log F[domain]` and one `log a[domain]` per domain."""
        return (*(f"log F[{d}]" for d in domains), *(f"log a[{d}]" for d in domains))

    def predict(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R"]:
        """Returns sum F (r + e)^-a."""
        return self._terms(r_RM, theta_BP).sum(axis=-1)

    def jacobian(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R P"]:
        """Returns the terms, and -a log(r + e) times them."""
        terms_BRM = self._terms(r_RM, theta_BP)
        a_B1M = np.exp(theta_BP[..., None, r_RM.shape[1] :])
        by_log_a_BRM = -a_B1M * np.log(r_RM + FIXED_FLOOR) * terms_BRM
        return np.concatenate([terms_BRM, by_log_a_BRM], axis=-1)

    def gradient(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R M"]:
        """Returns -a F (r + e)^(-a - 1)."""
        a_B1M = np.exp(theta_BP[..., None, r_RM.shape[1] :])
        return -a_B1M * self._terms(r_RM, theta_BP) / (r_RM + FIXED_FLOOR)

    def curvature(
        self, r_M: Float[np.ndarray, " M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Curvature:
        """Returns a (a + 1) F (r + e)^(-a - 2)."""
        a_BM = np.exp(theta_BP[..., len(r_M) :])
        terms_BM = self._terms(r_M[None], theta_BP)[..., 0, :]
        diag_BM = a_BM * (a_BM + 1) * terms_BM / (r_M + FIXED_FLOOR) ** 2
        return diag_BM, no_factor(diag_BM)

    def bounds(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> tuple[Float[np.ndarray, "*B P"], Float[np.ndarray, "*B P"]]:
        """Returns |log F| <= 30 and 0.0001 <= a <= 3."""
        size = r_RM.shape[1]
        shape = (*y_BR.shape[:-1], 2 * size)
        low_P = np.repeat([-LOG_WEIGHT_LIMIT, np.log(POWER_BOUNDS[0])], size)
        high_P = np.repeat([LOG_WEIGHT_LIMIT, np.log(POWER_BOUNDS[1])], size)
        return np.broadcast_to(low_P, shape), np.broadcast_to(high_P, shape)

    def starts(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> Float[np.ndarray, "*B S P"]:
        """Returns equal terms that together reach the median loss, for two exponents."""
        middle_B1 = np.maximum(loss_range(y_BR)[1], 1e-9)
        starts: list[np.ndarray] = []
        for power in (TYPICAL_POWER, TYPICAL_POWER / 4):
            usual = np.mean(((r_RM + FIXED_FLOOR) ** -power).sum(axis=1))
            log_f_BM = np.repeat(np.log(middle_B1 / usual), r_RM.shape[1], axis=-1)
            log_a_BM = np.full_like(log_f_BM, np.log(power))
            starts.append(np.concatenate([log_f_BM, log_a_BM], axis=-1))
        return np.stack(starts, axis=-2)

    def penalty(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q"]:
        """Returns log a around that of the starts, in units of the prior."""
        log_a_BM = theta_BP[..., theta_BP.shape[-1] // 2 :]
        return (log_a_BM - np.log(TYPICAL_POWER)) / POWER_PRIOR

    def penalty_jacobian(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q P"]:
        """Returns a constant matrix, 0 for log F."""
        size = theta_BP.shape[-1] // 2
        return tiled(np.hstack([np.zeros((size, size)), np.eye(size) / POWER_PRIOR]), theta_BP)

    def is_convex(self, theta_P: Float[np.ndarray, " P"]) -> bool:
        """Always: F > 0 and a > 0."""
        return True

    def _terms(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R M"]:
        size = r_RM.shape[1]
        a_B1M = np.exp(theta_BP[..., None, size:])
        return np.exp(theta_BP[..., None, :size] - a_B1M * np.log(r_RM + FIXED_FLOOR))


def _scaled_product(r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
    """Returns the product of M r_j: 1 where all shares are equal."""
    return np.prod(r_RM.shape[1] * r_RM, axis=1)
