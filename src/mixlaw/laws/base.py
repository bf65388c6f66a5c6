"""What every mixing law is, and what laws share: level bounds, least-squares starts, shrinkage.

Shape letters: B any leading axes of problems that are solved together (targets, folds, draws), R
runs, M training domains, P parameters, S starts, Q shrinkage residuals.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float

Curvature = tuple[Float[np.ndarray, "*B M"], Float[np.ndarray, "*B K M"]]
"""A diagonal d and K rows F: the second derivatives of a law by the proportions, diag(d) + F' F."""
LEVEL_DISTANCES = (0.5, 0.1, 2.0, 8.0)
"""How far below the least loss starts put c, in units of the losses' range."""


@dataclass(frozen=True, slots=True)
class MixingLaw(ABC):
    """Validation loss as a function of the token shares, at fixed size and tokens.

    A law holds no data and no parameters: both are arguments. Parameters may have any leading axes:
    a thousand fits (targets, folds, bootstrap draws) are evaluated in one call.
    """

    name: ClassVar[str]
    """Short name, as `--law` takes it."""
    formula: ClassVar[str]
    """The formula as plain text, with the paper's letters."""

    @abstractmethod
    def parameter_names(self, domains: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the names of the P parameters, in the order of `theta_BP`."""

    @abstractmethod
    def predict(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R"]:
        """Returns the loss of each mixture, in the unit that the law was fitted in."""

    @abstractmethod
    def jacobian(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R P"]:
        """Returns the derivatives of `predict` by the parameters."""

    @abstractmethod
    def gradient(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R M"]:
        """Returns the derivatives of `predict` by the proportions."""

    def curvature(
        self, r_M: Float[np.ndarray, " M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Curvature | None:
        """Returns the second derivatives of `predict` by the proportions: diag(d) + F' F.

        Where a law is not convex, its part that is: what curves downwards is left out. None: not
        known, and a search for the optimum learns it from gradients.
        """
        del r_M, theta_BP
        return None

    @abstractmethod
    def bounds(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> tuple[Float[np.ndarray, "*B P"], Float[np.ndarray, "*B P"]]:
        """Returns the least and the largest value of each parameter; NaN losses are not there."""

    @abstractmethod
    def starts(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> Float[np.ndarray, "*B S P"]:
        """Returns guesses from the data, the most plausible first; NaN losses are not there."""

    @abstractmethod
    def penalty(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q"]:
        """Returns the residuals of the shrinkage: in units of the prior's standard deviation."""

    @abstractmethod
    def penalty_jacobian(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q P"]:
        """Returns the derivatives of `penalty` by the parameters."""

    @abstractmethod
    def is_convex(self, theta_P: Float[np.ndarray, " P"]) -> bool:
        """Whether `predict` is convex in the proportions, on the whole simplex."""

    def describe(self) -> str:
        """Returns the formula; a law that is made of others spells them out."""
        return self.formula

    def contrasts(
        self, r_M: Float[np.ndarray, " M"], theta_P: Float[np.ndarray, " P"]
    ) -> Float[np.ndarray, " M"]:
        """Returns how each domain moves the loss at a mixture, whatever the gauge.

        Entry j is the change of the loss per unit of share that moves to domain j, taken from
        all domains in proportion: the gradient less its mean under `r_M`.
        """
        gradient_M = self.gradient(r_M[None], theta_P)[0]
        return gradient_M - r_M @ gradient_M


def no_diagonal(factor_BKM: Float[np.ndarray, "*B K M"]) -> Float[np.ndarray, "*B M"]:
    """Returns the diagonal of a curvature that is all in its rows."""
    return np.zeros((*factor_BKM.shape[:-2], factor_BKM.shape[-1]))


def no_factor(diag_BM: Float[np.ndarray, "*B M"]) -> Float[np.ndarray, "*B 0 M"]:
    """Returns the rows of a curvature that is all in its diagonal."""
    return np.zeros((*diag_BM.shape[:-1], 0, diag_BM.shape[-1]))


def loss_range(
    y_BR: Float[np.ndarray, "*B R"],
) -> tuple[Float[np.ndarray, "*B 1"], Float[np.ndarray, "*B 1"], Float[np.ndarray, "*B 1"]]:
    """Returns the least loss, the median and the range (never 0) of what is not NaN."""
    lowest_B1 = np.nanmin(y_BR, axis=-1, keepdims=True)
    highest_B1 = np.nanmax(y_BR, axis=-1, keepdims=True)
    middle_B1 = np.nanmedian(y_BR, axis=-1, keepdims=True)
    return lowest_B1, middle_B1, np.maximum(highest_B1 - lowest_B1, 1e-9)


def level_bounds(
    y_BR: Float[np.ndarray, "*B R"],
) -> tuple[Float[np.ndarray, "*B 1"], Float[np.ndarray, "*B 1"]]:
    """Returns 0 <= c <= the median loss; a lower floor where losses reach 0.

    The median, not the least loss: one run that is far too low must not drag c with it.
    """
    lowest_B1, middle_B1, spread_B1 = loss_range(y_BR)
    floor_B1 = lowest_B1 - np.maximum(10 * spread_B1, 1e-6)
    return np.where(lowest_B1 > 0, 0.0, floor_B1), middle_B1


def level_guesses(y_BR: Float[np.ndarray, "*B R"]) -> Float[np.ndarray, "*B S"]:
    """Returns several c below the least loss, within the bounds, the most plausible first."""
    lowest_B1, _, spread_B1 = loss_range(y_BR)
    return np.maximum(lowest_B1 - spread_B1 * np.array(LEVEL_DISTANCES), level_bounds(y_BR)[0])


def with_level(
    y_BR: Float[np.ndarray, "*B R"], low_K: Float[np.ndarray, " K"], high_K: Float[np.ndarray, " K"]
) -> tuple[Float[np.ndarray, "*B P"], Float[np.ndarray, "*B P"]]:
    """Returns the bounds of c followed by those of K other parameters."""
    low_BP, high_BP = (
        np.concatenate([c_B1, np.broadcast_to(side_K, (*c_B1.shape[:-1], len(side_K)))], axis=-1)
        for c_B1, side_K in zip(level_bounds(y_BR), (low_K, high_K), strict=True)
    )
    return low_BP, high_BP


def ridge_solution(
    x_RK: Float[np.ndarray, "R K"], z_BR: Float[np.ndarray, "*B R"], *, ridge: float = 1e-3
) -> Float[np.ndarray, "*B K"]:
    """Returns least-squares coefficients, shrunk to 0; rows where `z_BR` is NaN don't count."""
    known_BR: Bool[np.ndarray, "*B R"] = np.isfinite(z_BR)
    weighted_BKR = known_BR[..., None, :] * x_RK.T
    square_BKK = weighted_BKR @ x_RK + ridge * np.eye(x_RK.shape[1])
    right_BK = weighted_BKR @ np.where(known_BR, z_BR, 0.0)[..., None]
    return np.linalg.solve(square_BKK, right_BK)[..., 0]


def centering(num_domains: int) -> Float[np.ndarray, "M M"]:
    """Returns the matrix that takes the mean from M numbers."""
    return np.eye(num_domains) - 1.0 / num_domains


def tiled(
    matrix_QP: Float[np.ndarray, "Q P"], theta_BP: Float[np.ndarray, "*B P"]
) -> Float[np.ndarray, "*B Q P"]:
    """Returns a constant matrix with the leading axes of parameters, as a read-only view."""
    return np.broadcast_to(matrix_QP, (*theta_BP.shape[:-1], *matrix_QP.shape))
