"""What every mixing law is.

Shape letters: R runs, M training domains, P parameters, S starts.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, slots=True)
class MixingLaw(ABC):
    """Validation loss of one target as a function of the token shares, at fixed size and tokens.

    A law holds no data and no parameters: both are arguments.
    """

    name: ClassVar[str]
    """Short name, as `--law` takes it."""
    formula: ClassVar[str]
    """The formula as plain text, with the paper's letters."""

    @abstractmethod
    def parameter_names(self, domains: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the names of the P parameters, in the order of `theta_P`."""

    @abstractmethod
    def predict(
        self, r_RM: Float[np.ndarray, "R M"], theta_P: Float[np.ndarray, " P"]
    ) -> Float[np.ndarray, " R"]:
        """Returns the loss of each mixture, in the unit that the law was fitted in."""

    @abstractmethod
    def jacobian(
        self, r_RM: Float[np.ndarray, "R M"], theta_P: Float[np.ndarray, " P"]
    ) -> Float[np.ndarray, "R P"]:
        """Returns the derivatives of `predict` by the parameters."""

    @abstractmethod
    def gradient(
        self, r_RM: Float[np.ndarray, "R M"], theta_P: Float[np.ndarray, " P"]
    ) -> Float[np.ndarray, "R M"]:
        """Returns the derivatives of `predict` by the proportions."""

    @abstractmethod
    def bounds(
        self, r_RM: Float[np.ndarray, "R M"], y_R: Float[np.ndarray, " R"]
    ) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
        """Returns the least and the largest value of each parameter, for these losses."""

    @abstractmethod
    def starts(
        self, r_RM: Float[np.ndarray, "R M"], y_R: Float[np.ndarray, " R"]
    ) -> Float[np.ndarray, "S P"]:
        """Returns guesses from the data, the most plausible first."""

    @abstractmethod
    def penalty(self, theta_P: Float[np.ndarray, " P"]) -> Float[np.ndarray, " Q"]:
        """Returns the residuals of the shrinkage: in units of the prior's standard deviation."""

    @abstractmethod
    def penalty_jacobian(self, theta_P: Float[np.ndarray, " P"]) -> Float[np.ndarray, "Q P"]:
        """Returns the derivatives of `penalty` by the parameters."""

    @abstractmethod
    def is_convex(self, theta_P: Float[np.ndarray, " P"]) -> bool:
        """Whether `predict` is convex in the proportions, on the whole simplex."""

    @abstractmethod
    def contrasts(
        self, r_M: Float[np.ndarray, " M"], theta_P: Float[np.ndarray, " P"]
    ) -> Float[np.ndarray, " M"]:
        """Returns how each domain moves the loss at a mixture, whatever the gauge.

        Entry j is the change of the loss per unit of share that moves to domain j, taken from
        all domains in proportion: the gradient less its mean under `r_M`.
        """
