r"""Dai and Zheng's law: a model splits its capacity between domains as the mixture asks for.

Shape letters: R rows, K domains (each training domain has its own target), X = K + 2 inputs (the
shares, then params, then tokens), P = 5 K + 1 parameters.

$L_i = E_i + c_i x_i^{-b_i} + A_i (D h_i)^{-a_i}$, where x is the split of the parameters N that a
model would choose: it minimizes $\sum_i h_i c_i x_i^{-b_i}$ under $\sum_i x_i = N + (K - 1) H$ and
$x_i \ge H$. H is the capacity that serves all domains at once.

Targets are not fitted one by one, since every c and b takes part in every split.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

LEAST_SHARE = 1e-4
"""Added to shares: a domain of which nothing is seen would have an infinite loss."""
BISECTIONS = 60
"""Halvings of the bracket of the split's multiplier; float64 has no more digits."""


@dataclass(frozen=True, slots=True)
class AllocationLaw:
    """Losses of all domains, each of which is trained on and validated.

    References:
        Dai & Zheng 2026, arXiv:2606.08167.
    """

    name: str = "allocation"

    def parameter_names(self, domains: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the names of the P parameters, in the order of `theta_P`."""
        blocks = ("log c", "log b", "log A", "log a", "E")
        return (*(f"{block}[{domain}]" for block in blocks for domain in domains), "log H")

    def predict(
        self, x_RX: Float[np.ndarray, "R X"], theta_P: Float[np.ndarray, " P"]
    ) -> Float[np.ndarray, "R K"]:
        """Returns the loss of every domain; H must be below the least params."""
        return self.predict_with_jacobian(x_RX, theta_P)[0]

    def jacobian(
        self, x_RX: Float[np.ndarray, "R X"], theta_P: Float[np.ndarray, " P"]
    ) -> Float[np.ndarray, "R K P"]:
        """Returns the derivatives of `predict` by the parameters."""
        return self.predict_with_jacobian(x_RX, theta_P)[1]

    def predict_with_jacobian(
        self, x_RX: Float[np.ndarray, "R X"], theta_P: Float[np.ndarray, " P"]
    ) -> tuple[Float[np.ndarray, "R K"], Float[np.ndarray, "R K P"]]:
        """Returns both, for the price of the second."""
        count = x_RX.shape[1] - 2
        log_c_K, log_b_K, log_A_K, log_a_K, E_K = theta_P[:-1].reshape(5, count)
        b_K, a_K, shared = np.exp(log_b_K), np.exp(log_a_K), float(np.exp(theta_P[-1]))
        h_RK = x_RX[:, :-2] + LEAST_SHARE
        # Checkpoints of a run share its split.
        splits_SX, of_R = np.unique(x_RX[:, :-1], axis=0, return_inverse=True)
        log_x_SK, active_SK = split_capacity(
            splits_SX[:, :-1] + LEAST_SHARE, splits_SX[:, -1], log_c_K, b_K, shared
        )
        log_x_RK, active_RK = log_x_SK[of_R], active_SK[of_R]
        capacity_RK = np.exp(log_c_K - b_K * log_x_RK)
        log_seen_RK = np.log(h_RK * x_RX[:, -1:])
        data_RK = np.exp(log_A_K - a_K * log_seen_RK)

        jacobian_RKP = np.zeros((len(x_RX), count, 5 * count + 1))
        by_x_RKP = _split_slopes(log_x_RK, active_RK, b_K, shared)
        jacobian_RKP[..., : 2 * count] = by_x_RKP[..., :-1]
        jacobian_RKP[..., -1] = by_x_RKP[..., -1]
        jacobian_RKP *= -b_K[:, None]
        own = np.arange(count)
        jacobian_RKP[:, own, own] += 1.0
        jacobian_RKP[:, own, own + count] -= b_K * log_x_RK
        jacobian_RKP *= capacity_RK[..., None]
        jacobian_RKP[:, own, own + 2 * count] = data_RK
        jacobian_RKP[:, own, own + 3 * count] = -data_RK * a_K * log_seen_RK
        jacobian_RKP[:, own, own + 4 * count] = 1.0
        return E_K + capacity_RK + data_RK, jacobian_RKP


def split_capacity(
    h_RK: Float[np.ndarray, "R K"],
    params_R: Float[np.ndarray, " R"],
    log_c_K: Float[np.ndarray, " K"],
    b_K: Float[np.ndarray, " K"],
    shared: float,
) -> tuple[Float[np.ndarray, "R K"], Bool[np.ndarray, "R K"]]:
    """Returns the log of each domain's capacity x, and which ones are above the shared H.

    Where x > H, h c b x^-(b + 1) is the same for all domains: the multiplier, found by bisection.
    """
    count = h_RK.shape[1]
    log_pull_RK = np.log(h_RK) + log_c_K + np.log(b_K)
    total_R1 = (params_R + (count - 1) * shared)[:, None]
    low_R1 = np.max(log_pull_RK - (1 + b_K) * np.log(total_R1), axis=1, keepdims=True)
    high_R1 = np.max(log_pull_RK - (1 + b_K) * np.log(total_R1 / count), axis=1, keepdims=True)
    for _ in range(BISECTIONS):
        middle_R1 = (low_R1 + high_R1) / 2
        x_RK = np.maximum(np.exp((log_pull_RK - middle_R1) / (1 + b_K)), shared)
        too_much_R1 = x_RK.sum(axis=1, keepdims=True) > total_R1
        low_R1 = np.where(too_much_R1, middle_R1, low_R1)
        high_R1 = np.where(too_much_R1, high_R1, middle_R1)
    log_x_RK = (log_pull_RK - (low_R1 + high_R1) / 2) / (1 + b_K)
    active_RK = log_x_RK > np.log(shared)
    return np.where(active_RK, log_x_RK, np.log(shared)), active_RK


def _split_slopes(
    log_x_RK: Float[np.ndarray, "R K"],
    active_RK: Bool[np.ndarray, "R K"],
    b_K: Float[np.ndarray, " K"],
    shared: float,
) -> Float[np.ndarray, "R K Q"]:
    """Returns the derivatives of log x by log c, log b (one per domain) and log H."""
    count = len(b_K)
    weight_RK = np.where(active_RK, np.exp(log_x_RK) / (1 + b_K), 0.0)
    sum_R1 = weight_RK.sum(axis=1, keepdims=True)
    weight_RK /= sum_R1
    by_c_RKK = (np.eye(count) - weight_RK[:, None, :]) / (1 + b_K)[:, None]
    by_b_RKK = by_c_RKK * (1 - b_K * log_x_RK)[:, None, :]
    idle_R1 = (~active_RK).sum(axis=1, keepdims=True)
    by_H_RK = -(idle_R1 - (count - 1)) * shared / sum_R1 / (1 + b_K)
    slopes_RKQ = np.concatenate([by_c_RKK, by_b_RKK, by_H_RK[..., None]], axis=2)
    at_least_Q = np.append(np.zeros(2 * count), 1.0)
    return np.where(active_RK[..., None], slopes_RKQ, at_least_Q)
