"""An objective plus a price on each proportion.

Shape letters: R mixtures, M training domains, I pieces, K rows of a curvature.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mixlaw.laws.base import Curvature
from mixlaw.optimize.objective import ObjectiveFunction, PiecewiseFunction


def tilt(function: ObjectiveFunction, price_M: Float[np.ndarray, " M"]) -> ObjectiveFunction:
    """Returns the objective plus `price . r`."""
    if isinstance(function, PiecewiseFunction):
        return TiltedPieces(function, price_M)
    return TiltedFunction(function, price_M)


@dataclass(frozen=True, slots=True, eq=False)
class TiltedFunction(ObjectiveFunction):
    """A smooth objective plus a price."""

    function: ObjectiveFunction
    price_M: Float[np.ndarray, " M"]

    def value(self, r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        """Returns the objective of each mixture plus its price."""
        return self.function.value(r_RM) + r_RM @ self.price_M

    def gradient(self, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        """Returns the derivatives by the proportions."""
        return self.function.gradient(r_M) + self.price_M

    def curvature(self, r_M: Float[np.ndarray, " M"]) -> Curvature | None:
        """Returns the second derivatives, which a price leaves as they are."""
        own = getattr(self.function, "curvature", None)
        return None if own is None else own(r_M)

    @property
    def is_convex(self) -> bool:
        """Whether the objective is: a price is linear."""
        return self.function.is_convex


@dataclass(frozen=True, slots=True, eq=False)
class TiltedPieces(PiecewiseFunction):
    """A piecewise objective plus a price, which is added to every piece."""

    function: PiecewiseFunction
    price_M: Float[np.ndarray, " M"]

    @property
    def most(self) -> float:
        """The largest weight of a piece."""
        return self.function.most

    def value(self, r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        """Returns the objective of each mixture plus its price."""
        return self.function.value(r_RM) + r_RM @ self.price_M

    def pieces(
        self, r_M: Float[np.ndarray, " M"]
    ) -> tuple[Float[np.ndarray, " I"], Float[np.ndarray, "I M"]]:
        """Returns the values and the slopes of all pieces."""
        piece_I, slope_IM = self.function.pieces(r_M)
        return piece_I + self.price_M @ r_M, slope_IM + self.price_M

    def piece_curvature(
        self, r_M: Float[np.ndarray, " M"], weight_I: Float[np.ndarray, " I"]
    ) -> Curvature | None:
        """Returns the second derivatives of a weighted sum of the pieces."""
        return self.function.piece_curvature(r_M, weight_I)

    @property
    def is_convex(self) -> bool:
        """Whether the objective is: a price is linear."""
        return self.function.is_convex
