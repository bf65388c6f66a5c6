"""Several laws as one: their weighted mean, with weights that are fixed.

Shape letters: B any leading axes, R runs, M training domains, P parameters of all members, one
after the other, S starts, Q shrinkage residuals.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from mixlaw.errors import FitError
from mixlaw.laws.base import (
    Curvature,
    MixingLaw,
)


@dataclass(frozen=True, slots=True)
class StackedLaw(MixingLaw):
    """A weighted mean of laws, each of which is fitted on its own.

    Selection makes one where several laws together predict better than any of them.
    """

    laws: tuple[MixingLaw, ...]
    weights: tuple[float, ...]
    """One per law; not negative, and they sum to one."""

    name: ClassVar[str] = "stack"
    formula: ClassVar[str] = "L(r) = sum_k w_k L_k(r)"

    def __post_init__(self) -> None:
        total = math.fsum(self.weights)
        is_mean = all(weight >= 0 for weight in self.weights) and abs(total - 1) <= 1e-9
        if not self.laws or len(self.laws) != len(self.weights) or not is_mean:
            raise FitError(
                "a stack needs one weight per law, none below 0, that sum to 1, but"
                f" {len(self.laws)} laws have {len(self.weights)} weights that sum to {total:.6g}"
            )
        names = [law.name for law in self.laws]
        if len(set(names)) < len(names):
            raise FitError(f"the laws of a stack must differ, but they are {', '.join(names)}")

    def describe(self) -> str:
        """Returns the members with their weights and formulas."""
        members = zip(self.weights, self.laws, strict=True)
        return "; ".join(f"{weight:.2f} {law.name}: {law.describe()}" for weight, law in members)

    def parameter_names(self, domains: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the members' names of parameters, each with its law's name in front."""
        return tuple(
            f"{law.name}.{name}" for law in self.laws for name in law.parameter_names(domains)
        )

    def predict(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R"]:
        """Returns the weighted mean of the members' losses."""
        members = self.split(theta_BP, r_RM.shape[1])
        return sum_arrays(weight * law.predict(r_RM, part) for law, weight, part in members)

    def jacobian(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R P"]:
        """Returns the derivatives of `predict` by the parameters."""
        members = self.split(theta_BP, r_RM.shape[1])
        parts = [weight * law.jacobian(r_RM, part) for law, weight, part in members]
        return np.concatenate(parts, axis=-1)

    def gradient(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R M"]:
        """Returns the derivatives of `predict` by the proportions."""
        members = self.split(theta_BP, r_RM.shape[1])
        return sum_arrays(weight * law.gradient(r_RM, part) for law, weight, part in members)

    def curvature(
        self, r_M: Float[np.ndarray, " M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Curvature | None:
        """Returns the weighted sum of the members'; None where one doesn't know its own."""
        diagonals: list[np.ndarray] = []
        factors: list[np.ndarray] = []
        for law, weight, part in self.split(theta_BP, len(r_M)):
            curvature = law.curvature(r_M, part)
            if curvature is None:
                return None
            diagonals.append(weight * curvature[0])
            factors.append(np.sqrt(weight) * curvature[1])
        return sum_arrays(iter(diagonals)), np.concatenate(factors, axis=-2)

    def bounds(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> tuple[Float[np.ndarray, "*B P"], Float[np.ndarray, "*B P"]]:
        """Returns the members' bounds."""
        pairs = [law.bounds(r_RM, y_BR) for law in self.laws]
        low_BP, high_BP = (np.concatenate(side, axis=-1) for side in zip(*pairs, strict=True))
        return low_BP, high_BP

    def starts(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> Float[np.ndarray, "*B S P"]:
        """Returns the members' guesses side by side; a member with fewer begins again."""
        guesses = [law.starts(r_RM, y_BR) for law in self.laws]
        most = max(guess.shape[-2] for guess in guesses)
        filled = [guess[..., np.arange(most) % guess.shape[-2], :] for guess in guesses]
        return np.concatenate(filled, axis=-1)

    def penalty(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q"]:
        """Returns the residuals of the members' shrinkage."""
        parts = [law.penalty(part) for law, _, part in self._split_alone(theta_BP)]
        return np.concatenate(parts, axis=-1)

    def penalty_jacobian(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q P"]:
        """Returns the derivatives of `penalty`: each member's own block."""
        blocks = [law.penalty_jacobian(part) for law, _, part in self._split_alone(theta_BP)]
        rows = sum(block.shape[-2] for block in blocks)
        jacobian_BQP = np.zeros((*theta_BP.shape[:-1], rows, theta_BP.shape[-1]))
        row = column = 0
        for block in blocks:
            down, right = row + block.shape[-2], column + block.shape[-1]
            jacobian_BQP[..., row:down, column:right] = block
            row, column = down, right
        return jacobian_BQP

    def is_convex(self, theta_P: Float[np.ndarray, " P"]) -> bool:
        """Whether every member is convex: a mean of convex functions is."""
        return all(law.is_convex(part) for law, _, part in self._split_alone(theta_P))

    def split(
        self, theta_BP: Float[np.ndarray, "*B P"], num_domains: int
    ) -> Iterator[tuple[MixingLaw, float, Float[np.ndarray, "*B K"]]]:
        """Yields each member with its weight and its part of the parameters."""
        first = 0
        for law, weight in zip(self.laws, self.weights, strict=True):
            last = first + len(law.parameter_names(("",) * num_domains))
            yield law, weight, theta_BP[..., first:last]
            first = last

    def _split_alone(
        self, theta_BP: Float[np.ndarray, "*B P"]
    ) -> Iterator[tuple[MixingLaw, float, Float[np.ndarray, "*B K"]]]:
        """Splits parameters where nothing says how many domains there are: their number does."""
        size = theta_BP.shape[-1]
        # Every law has more parameters for more domains, or as many: the total never falls.
        num_domains = next(
            count for count in range(1, size + 1) if self._num_parameters(count) >= size
        )
        return self.split(theta_BP, num_domains)

    def _num_parameters(self, num_domains: int) -> int:
        return sum(len(law.parameter_names(("",) * num_domains)) for law in self.laws)


def sum_arrays(parts: Iterator[np.ndarray]) -> np.ndarray:
    """Returns the sum of arrays of one shape."""
    total = next(parts)
    for part in parts:
        total = total + part
    return total
