r"""From losses to the error on downstream tasks.

Shape letters: R runs, F losses, P = 2 + F parameters (eps, k, gamma_1 .. gamma_F), *B any batch.

$\mathrm{Err}(L) = \epsilon - k\,e^{-\gamma L}$ for one loss. For several, $\gamma L$ becomes
$\sum_f \gamma_f L_f$ with $\gamma_f \ge 0$: the law of a weighted mean loss, with the weights
$\gamma_f / \sum \gamma$ and the rate $\sum \gamma$.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorLaw:
    """Mean error over tasks as a function of one or several losses.

    A law holds no data and no parameters: both are arguments.

    References:
        Gadre et al. 2024, arXiv:2403.08540, Eq. 5.
    """

    losses: tuple[str, ...]
    """Names of the F losses."""

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the P parameters."""
        if len(self.losses) == 1:
            return ("epsilon", "k", "gamma")
        return ("epsilon", "k", *(f"gamma[{loss}]" for loss in self.losses))

    def predict(
        self, loss_RF: Float[np.ndarray, "R F"], theta_P: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R"]:
        """Returns the error of each run, between 0 and 1 where the parameters make sense."""
        return theta_P[..., :1] - self._reduction(loss_RF, theta_P)

    def jacobian(
        self, loss_RF: Float[np.ndarray, "R F"], theta_P: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R P"]:
        """Returns the derivatives of `predict` by the parameters."""
        power_R = np.exp(-(theta_P[..., 2:] @ loss_RF.T))
        reduction_R1 = (theta_P[..., 1:2] * power_R)[..., None]
        ones_R1 = np.ones((*power_R.shape, 1))
        return np.concatenate([ones_R1, -power_R[..., None], reduction_R1 * loss_RF], axis=-1)

    def slope(
        self, loss_RF: Float[np.ndarray, "R F"], theta_P: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R F"]:
        """Returns the derivatives of `predict` by the losses: what a nat of loss costs."""
        return self._reduction(loss_RF, theta_P)[..., None] * theta_P[..., None, 2:]

    def _reduction(self, loss_RF: np.ndarray, theta_P: np.ndarray) -> np.ndarray:
        """Returns k exp(-gamma . L): how far the error lies below epsilon."""
        return theta_P[..., 1:2] * np.exp(-(theta_P[..., 2:] @ loss_RF.T))


def loss_weights(theta_P: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B F"]:
    """Returns the weights of the losses, which sum to one, and to zero where no loss matters."""
    rate_F = theta_P[..., 2:]
    total = rate_F.sum(axis=-1, keepdims=True)
    return rate_F / np.where(total > 0, total, 1.0)
