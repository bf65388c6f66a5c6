r"""M4 over powers of the shares: steeper than M4 where a domain is nearly absent.

Shape letters: B any leading axes, R runs, M training domains, P parameters, S starts, Q shrinkage
residuals.
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
    ridge_solution,
    tiled,
    with_level,
)
from mixlaw.laws.mixing import CONTRAST_PRIOR, LOG_LIMIT
from mixlaw.laws.reciprocal import (
    EXPONENT_BOUNDS,
    EXPONENT_PRIOR,
    FIXED_FLOOR,
    TYPICAL_EXPONENT,
)

LOG_EXPONENT_BOUNDS = tuple(float(bound) for bound in np.log(EXPONENT_BOUNDS))


@dataclass(frozen=True, slots=True)
class ExponentialPowerLaw(MixingLaw):
    r"""M4 over powers of the shares, $L(r) = c + \exp(a + \sum_j t_j (r_j + e)^g)$.

    The powers of the shares don't sum to one: the level a is a parameter of its own.
    """

    name: ClassVar[str] = "exp-power"
    formula: ClassVar[str] = "L(r) = c + exp(a + sum_j t_j (r_j + e)^g)"

    def parameter_names(self, domains: tuple[str, ...]) -> tuple[str, ...]:
        """Returns `c`, `log g`, `a` and one `t[domain]` per domain."""
        return ("c", "log g", "a", *(f"t[{domain}]" for domain in domains))

    def predict(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R"]:
        """Returns c + exp(a + (r + e)^g @ t)."""
        return theta_BP[..., :1] + self._reducible(r_RM, theta_BP)[0]

    def jacobian(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R P"]:
        """Returns the chain rule through the exponential."""
        lost_BR, powers_BRM = self._reducible(r_RM, theta_BP)
        jacobian_BRP = np.empty((*lost_BR.shape, theta_BP.shape[-1]))
        jacobian_BRP[..., 0] = 1.0
        logs_BRM = powers_BRM * np.log(r_RM + FIXED_FLOOR)
        by_log_g_BR = np.einsum("...rm,...m->...r", logs_BRM, theta_BP[..., 3:])
        jacobian_BRP[..., 1] = lost_BR * np.exp(theta_BP[..., 1:2]) * by_log_g_BR
        jacobian_BRP[..., 2] = lost_BR
        np.multiply(lost_BR[..., None], powers_BRM, out=jacobian_BRP[..., 3:])
        return jacobian_BRP

    def gradient(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R M"]:
        """Returns the chain rule through the exponential."""
        lost_BR, powers_BRM = self._reducible(r_RM, theta_BP)
        slope_BM = np.exp(theta_BP[..., 1:2]) * theta_BP[..., 3:]
        return lost_BR[..., None] * slope_BM[..., None, :] * powers_BRM / (r_RM + FIXED_FLOOR)

    def curvature(
        self, r_M: Float[np.ndarray, " M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Curvature:
        """Returns the chain rule through the exponential; domains with t > 0 have no diagonal."""
        lost_BR, powers_BRM = self._reducible(r_M[None], theta_BP)
        g_B1, q_M = np.exp(theta_BP[..., 1:2]), r_M + FIXED_FLOOR
        slope_BM = g_B1 * theta_BP[..., 3:] * powers_BRM[..., 0, :] / q_M
        diag_BM = lost_BR * np.maximum((g_B1 - 1) * slope_BM / q_M, 0.0)
        return diag_BM, (np.sqrt(lost_BR) * slope_BM)[..., None, :]

    def bounds(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> tuple[Float[np.ndarray, "*B P"], Float[np.ndarray, "*B P"]]:
        """Returns those of the level for c, 0.02 <= g <= 1, |a| and |t| <= 30."""
        one_K = np.ones(1 + r_RM.shape[1])
        sides = zip(LOG_EXPONENT_BOUNDS, (-LOG_LIMIT, LOG_LIMIT), strict=True)
        low_K, high_K = (np.concatenate([[g], limit * one_K]) for g, limit in sides)
        return with_level(y_BR, low_K, high_K)

    def starts(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> Float[np.ndarray, "*B S P"]:
        """Returns, for several levels of c, the ridge solution of log(y - c)."""
        c_BS = level_guesses(y_BR)
        least_B11 = 1e-3 * loss_range(y_BR)[2][..., None]
        log_BSR = np.log(np.maximum(y_BR[..., None, :] - c_BS[..., None], least_B11))
        level_BS1 = np.nanmean(log_BSR, axis=-1, keepdims=True)
        powers_RM = (r_RM + FIXED_FLOOR) ** TYPICAL_EXPONENT
        middle_M = powers_RM.mean(axis=0)
        t_BSM = np.clip(ridge_solution(powers_RM - middle_M, log_BSR - level_BS1), -20, 20)
        a_BS1 = np.clip(level_BS1 - (t_BSM @ middle_M)[..., None], -20, 20)
        log_g_BS1 = np.full((*c_BS.shape, 1), np.log(TYPICAL_EXPONENT))
        return np.concatenate([c_BS[..., None], log_g_BS1, a_BS1, t_BSM], axis=-1)

    def penalty(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q"]:
        """Returns log g - log 0.4 and t, in units of the prior."""
        exponent_B1 = (theta_BP[..., 1:2] - np.log(TYPICAL_EXPONENT)) / EXPONENT_PRIOR
        return np.concatenate([exponent_B1, theta_BP[..., 3:] / CONTRAST_PRIOR], axis=-1)

    def penalty_jacobian(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q P"]:
        """Returns a constant matrix."""
        size = theta_BP.shape[-1]
        matrix_QP = np.zeros((size - 2, size))
        matrix_QP[0, 1] = 1 / EXPONENT_PRIOR
        matrix_QP[1:, 3:] = np.eye(size - 3) / CONTRAST_PRIOR
        return tiled(matrix_QP, theta_BP)

    def is_convex(self, theta_P: Float[np.ndarray, " P"]) -> bool:
        """Where no domain raises the loss by more than others do: all t <= 0."""
        return bool(np.all(theta_P[3:] <= 0))

    def _reducible(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> tuple[Float[np.ndarray, "*B R"], Float[np.ndarray, "*B R M"]]:
        """Returns the loss above c, and the powers of the shares."""
        powers_BRM = np.exp(np.exp(theta_BP[..., None, 1:2]) * np.log(r_RM + FIXED_FLOOR))
        inner_BR = np.einsum("...rm,...m->...r", powers_BRM, theta_BP[..., 3:])
        # The limit keeps the worst trial step of a fit finite.
        return np.exp(np.minimum(theta_BP[..., 2:3] + inner_BR, LOG_LIMIT)), powers_BRM
