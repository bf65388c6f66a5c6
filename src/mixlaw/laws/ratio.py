r"""How the share of new data that costs nothing changes with tokens and with model size.

Shape letters: K checkpoints or sizes.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, slots=True)
class RatioLaw:
    r"""The critical mixture ratio by tokens, $R(T) = a T^s + b$, or by size with $b = 0$.

    References:
        Gu et al. 2024, arXiv:2407.17467, whose R is the share of new data.
    """

    name: ClassVar[str] = "cmr"
    formula: ClassVar[str] = "R(T) = a T^s + b"
    has_level: bool = True
    """Whether there is a b; a law across a few sizes has none."""

    def predict(
        self, amount_K: Float[np.ndarray, " K"], theta_P: Float[np.ndarray, " P"]
    ) -> Float[np.ndarray, " K"]:
        """Returns the largest share of new data, for `theta_P` = (s, a[, b])."""
        level = theta_P[2] if self.has_level else 0.0
        return theta_P[1] * amount_K ** theta_P[0] + level

    def jacobian(
        self, amount_K: Float[np.ndarray, " K"], theta_P: Float[np.ndarray, " P"]
    ) -> Float[np.ndarray, "K P"]:
        """Returns the derivatives of `predict` by the parameters."""
        power_K = amount_K ** theta_P[0]
        columns = [theta_P[1] * power_K * np.log(amount_K), power_K]
        if self.has_level:
            columns.append(np.ones_like(amount_K))
        return np.stack(columns, axis=1)
