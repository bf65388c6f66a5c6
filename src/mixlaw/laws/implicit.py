r"""The mixing law with implicit domains: an overall loss whose composition is unknown.

Shape letters: B any leading axes, R runs, M training domains, K implicit validation domains, P = 1
+ K M parameters (c, then t of one implicit domain after the other), S starts, Q shrinkage
residuals.

Ye et al. write $\sum_k s_k (c_k + e^{t_k \cdot r})$ with unknown shares s. Only the sum of the s_k
c_k is identified, and since training shares sum to one, $\log s_k$ can be a part of $t_k$:
$L(r) = c + \sum_k e^{t_k \cdot r}$. The implicit domains have no order, no names and no shares of
their own; what is identified is the set of the $t_k$, up to what the runs can tell apart.
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
    no_diagonal,
    tiled,
    with_level,
)
from mixlaw.laws.mixing import LOG_LIMIT, ExponentialLaw

CONTRAST_PRIOR = 3.0
"""Standard deviation of a domain's t_j around their mean: M4's. 10 lets implicit domains bend more
steeply and does better on 26 mixtures of 5 domains, but with 24 of 17 it does worse than the mean
(docs/log.md)."""
LEVEL_PRIOR = 2.0
"""Standard deviation of the implicit domains' levels around their mean: shares that differ by a
factor of 50 are two of them apart. Without it an unused domain would have no minimum."""
BREAKINGS = 2
"""Starts per level of c: equal domains would stay equal, so that each start breaks the symmetry."""
BREAKING_SCALE = 1.0
"""Standard deviation of a start's t around those of one domain."""


@dataclass(frozen=True, slots=True)
class ImplicitDomainLaw(MixingLaw):
    r"""M4 summed over K unknown validation domains, $L(r) = c + \sum_k \exp(t_k \cdot r)$.

    With K = 1 it is M4. K is chosen out of sample: each further domain has M parameters.

    References:
        Ye et al. 2025, arXiv:2403.16952, Eq. 8 and appendix E.
    """

    name: ClassVar[str] = "implicit"
    formula: ClassVar[str] = "L(r) = c + sum_k exp(sum_j t_kj r_j)"

    num_implicit: int = 2
    """K, the number of implicit domains."""
    seed: int = 0
    """Of the random numbers that tell the domains apart at the starts."""

    def parameter_names(self, domains: tuple[str, ...]) -> tuple[str, ...]:
        """Returns `c` and, for each implicit domain, one `t[k, domain]` per domain."""
        numbers = range(1, self.num_implicit + 1)
        return ("c", *(f"t[{k}, {domain}]" for k in numbers for domain in domains))

    def predict(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R"]:
        """Returns c + sum_k exp(r @ t_k)."""
        return theta_BP[..., :1] + np.exp(self.split(theta_BP) @ r_RM.T).sum(axis=-2)

    def jacobian(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R P"]:
        """Returns (1, exp(r @ t_1) r, ..., exp(r @ t_K) r)."""
        e_BRK = np.swapaxes(np.exp(self.split(theta_BP) @ r_RM.T), -1, -2)
        jacobian_BRP = np.empty((*e_BRK.shape[:-1], theta_BP.shape[-1]))
        jacobian_BRP[..., 0] = 1.0
        each_BRKM = e_BRK[..., None] * r_RM[:, None]
        jacobian_BRP[..., 1:] = each_BRKM.reshape(jacobian_BRP[..., 1:].shape)
        return jacobian_BRP

    def gradient(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R M"]:
        """Returns sum_k exp(r @ t_k) t_k."""
        t_BKM = self.split(theta_BP)
        return np.swapaxes(np.exp(t_BKM @ r_RM.T), -1, -2) @ t_BKM

    def curvature(
        self, r_M: Float[np.ndarray, " M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Curvature:
        """Returns sum_k exp(r @ t_k) t_k t_k'."""
        t_BKM = self.split(theta_BP)
        factor_BKM = np.exp(t_BKM @ r_M / 2)[..., None] * t_BKM
        return no_diagonal(factor_BKM), factor_BKM

    def bounds(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> tuple[Float[np.ndarray, "*B P"], Float[np.ndarray, "*B P"]]:
        """Returns those of the level for c, and |t| <= 30."""
        limit_K = np.full(self.num_implicit * r_RM.shape[1], LOG_LIMIT)
        return with_level(y_BR, -limit_K, limit_K)

    def starts(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> Float[np.ndarray, "*B S P"]:
        """Returns M4's starts split into K parts, which differ by random contrasts.

        The contrasts of a start depend on the seed and its number only, not on the losses.
        """
        one_BSP = ExponentialLaw().starts(r_RM, y_BR)
        num_domains = r_RM.shape[1]
        if self.num_implicit == 1:
            return one_BSP
        shape = (BREAKINGS, self.num_implicit, num_domains)
        apart_NKM = BREAKING_SCALE * np.random.default_rng(self.seed).standard_normal(shape)
        apart_NKM -= apart_NKM.mean(axis=1, keepdims=True)
        t_BS1M = one_BSP[..., None, 1:] - np.log(self.num_implicit)
        t_BNSKM = t_BS1M[..., None, :, :, :] + apart_NKM[:, None]
        c_BNS1 = np.repeat(level_guesses(y_BR)[..., None, :, None], BREAKINGS, axis=-3)
        t_BNSK = np.clip(t_BNSKM, -LOG_LIMIT, LOG_LIMIT).reshape(*c_BNS1.shape[:-1], -1)
        starts_BNSP = np.concatenate([c_BNS1, t_BNSK], axis=-1)
        return starts_BNSP.reshape(*y_BR.shape[:-1], -1, starts_BNSP.shape[-1])

    def penalty(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q"]:
        """Returns each domain's contrasts, and the domains' levels around their mean."""
        t_BKM = self.split(theta_BP)
        level_BK = t_BKM.mean(axis=-1)
        contrast_BKM = (t_BKM - level_BK[..., None]) / CONTRAST_PRIOR
        apart_BK = (level_BK - level_BK.mean(axis=-1, keepdims=True)) / LEVEL_PRIOR
        return np.concatenate([contrast_BKM.reshape(*level_BK.shape[:-1], -1), apart_BK], axis=-1)

    def penalty_jacobian(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q P"]:
        """Returns the centering matrices in units of the priors, and 0 for c."""
        count = self.num_implicit
        size = (theta_BP.shape[-1] - 1) // count
        contrasts = np.kron(np.eye(count), centering(size)) / CONTRAST_PRIOR
        levels = np.kron(centering(count), np.full((1, size), 1 / size)) / LEVEL_PRIOR
        both = np.vstack([contrasts, levels])
        return tiled(np.hstack([np.zeros((len(both), 1)), both]), theta_BP)

    def is_convex(self, theta_P: Float[np.ndarray, " P"]) -> bool:
        """Always: a sum of exponentials of linear functions."""
        return True

    def split(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B K M"]:
        """Returns the t of each implicit domain."""
        return theta_BP[..., 1:].reshape(*theta_BP.shape[:-1], self.num_implicit, -1)


def sum_explicit(
    share_K: Float[np.ndarray, " K"], c_K: Float[np.ndarray, " K"], t_KM: Float[np.ndarray, "K M"]
) -> Float[np.ndarray, " P"]:
    r"""Returns the implicit law's parameters of domains that are known, $\sum_k s_k L_k(r)$.

    Args:
        share_K: Shares of the overall loss, positive.
        c_K: Each domain's c.
        t_KM: Each domain's t, with M4's scale k = 1.
    """
    return np.concatenate([[share_K @ c_K], (t_KM + np.log(share_K)[:, None]).ravel()])
