r"""The paper's mixing law M4: an exponential of a linear function of the token shares.

Shape letters: R runs, M training domains, P = M + 1 parameters (c, t_1 .. t_M).

Because shares sum to one, the scale k of the paper's $L = c + k \exp(\sum_j t_j r_j)$ and the level
of t are one and the same: (t + a, k e^-a) is the same law. Here k = 1; t_j is then the log of the
loss above c that would remain on domain j alone.
"""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from mixlaw.laws.base import MixingLaw

LOG_LIMIT = 30.0
"""Bound of |t|: exp(30) nats is no loss, and keeps every product finite in float64."""
CONTRAST_PRIOR = 3.0
"""Standard deviation to which t_j is shrunk around the mean of t. A contrast of 3 is a factor of 20
in the reducible loss between two domains: weak. A fit may shrink more strongly (`fit/solver.py`).
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
        self, r_RM: Float[np.ndarray, "R M"], theta_P: Float[np.ndarray, " P"]
    ) -> Float[np.ndarray, " R"]:
        """Returns c + exp(r @ t)."""
        return theta_P[0] + np.exp(r_RM @ theta_P[1:])

    def jacobian(
        self, r_RM: Float[np.ndarray, "R M"], theta_P: Float[np.ndarray, " P"]
    ) -> Float[np.ndarray, "R P"]:
        """Returns (1, exp(r @ t) r)."""
        jacobian_RP = np.empty((len(r_RM), len(theta_P)))
        jacobian_RP[:, 0] = 1.0
        jacobian_RP[:, 1:] = np.exp(r_RM @ theta_P[1:])[:, None] * r_RM
        return jacobian_RP

    def gradient(
        self, r_RM: Float[np.ndarray, "R M"], theta_P: Float[np.ndarray, " P"]
    ) -> Float[np.ndarray, "R M"]:
        """Returns exp(r @ t) t."""
        return np.exp(r_RM @ theta_P[1:])[:, None] * theta_P[None, 1:]

    def bounds(
        self, r_RM: Float[np.ndarray, "R M"], y_R: Float[np.ndarray, " R"]
    ) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
        """Returns 0 <= c <= the median loss (a lower floor where losses reach 0), and |t| <= 30.

        The median, not the least loss: one run that is far too low must not drag c with it.
        """
        limit_M = np.full(r_RM.shape[1], LOG_LIMIT)
        lowest, middle = float(np.min(y_R)), float(np.median(y_R))
        floor = 0.0 if lowest > 0 else lowest - max(10 * float(np.ptp(y_R)), 1e-6)
        return np.concatenate([[floor], -limit_M]), np.concatenate([[middle], limit_M])

    def starts(
        self, r_RM: Float[np.ndarray, "R M"], y_R: Float[np.ndarray, " R"]
    ) -> Float[np.ndarray, "S P"]:
        """Returns, for several levels of c, the ridge solution of log(y - c) = r @ t."""
        lowest, spread = float(np.min(y_R)), max(float(np.ptp(y_R)), 1e-9)
        floor = float(self.bounds(r_RM, y_R)[0][0])
        ridge_MM = 1e-3 * np.eye(r_RM.shape[1])
        guesses: list[np.ndarray] = []
        for distance in (0.5, 0.1, 2.0, 8.0):
            c = max(lowest - distance * spread, floor)
            log_R = np.log(np.maximum(y_R - c, 1e-3 * spread))
            level = float(np.mean(log_R))
            t_M = level + np.linalg.solve(r_RM.T @ r_RM + ridge_MM, r_RM.T @ (log_R - level))
            guesses.append(np.concatenate([[c], np.clip(t_M, -LOG_LIMIT, LOG_LIMIT)]))
        return np.stack(guesses)

    def penalty(self, theta_P: Float[np.ndarray, " P"]) -> Float[np.ndarray, " Q"]:
        """Returns (t - mean t) in units of the prior."""
        t_M = theta_P[1:]
        return (t_M - t_M.sum() / len(t_M)) / CONTRAST_PRIOR

    def penalty_jacobian(self, theta_P: Float[np.ndarray, " P"]) -> Float[np.ndarray, "Q P"]:
        """Returns the centring matrix in units of the prior, and 0 for c."""
        return _centring(len(theta_P) - 1)

    def is_convex(self, theta_P: Float[np.ndarray, " P"]) -> bool:
        """Always: an exponential of a linear function, with k = 1 > 0."""
        return True

    def contrasts(
        self, r_M: Float[np.ndarray, " M"], theta_P: Float[np.ndarray, " P"]
    ) -> Float[np.ndarray, " M"]:
        """Returns exp(r @ t) (t_j - r @ t)."""
        t_M = theta_P[1:]
        return np.exp(r_M @ t_M) * (t_M - r_M @ t_M)


@cache
def _centring(num_domains: int) -> Float[np.ndarray, "M P"]:
    """Returns the derivatives of `penalty`: one read-only array per number of domains."""
    centring_MM = np.eye(num_domains) - 1.0 / num_domains
    jacobian_MP = np.hstack([np.zeros((num_domains, 1)), centring_MM / CONTRAST_PRIOR])
    jacobian_MP.setflags(write=False)
    return jacobian_MP
