"""What is minimised: a weighted sum of target losses.

Shape letters: R mixtures, M training domains, T targets, P parameters.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mixlaw.errors import OptimizeError
from mixlaw.fit.result import FitResult, evaluate_law
from mixlaw.laws.base import MixingLaw
from mixlaw.predict import weight_row


@dataclass(frozen=True, slots=True)
class WeightedLoss:
    """A sum of target losses with non-negative weights, which are scaled to sum to one."""

    weights: Mapping[str, float]
    """Weight of each target; those not named count nothing."""

    def __post_init__(self) -> None:
        for target, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise OptimizeError(
                    f"weights of the objective must be finite and not negative, but {target!r} has"
                    f" {weight:g}"
                )
        if not sum(self.weights.values()) > 0:
            raise OptimizeError(
                "the objective must weigh at least one target",
                do="give weights in [objective] or with `--weights target=weight,...`",
            )

    @property
    def shares(self) -> dict[str, float]:
        """The weights that are not zero, scaled to sum to one."""
        total = sum(self.weights.values())
        return {target: weight / total for target, weight in self.weights.items() if weight > 0}

    def row(self, fit: FitResult) -> Float[np.ndarray, " T"]:
        """Returns the weights in the order of a fit's targets.

        Raises:
            FitError: A weighted target is not in the fit.
        """
        return weight_row(fit, self.shares)[0]


@dataclass(frozen=True, slots=True, eq=False)
class ObjectiveFunction:
    """A weighted loss under one set of parameters: a smooth function of the proportions."""

    law: MixingLaw
    theta_TP: Float[np.ndarray, "T P"]
    weight_T: Float[np.ndarray, " T"]

    @classmethod
    def of(
        cls, law: MixingLaw, theta_TP: Float[np.ndarray, "T P"], weight_T: Float[np.ndarray, " T"]
    ) -> "ObjectiveFunction":
        """Returns the function without the targets that weigh nothing."""
        weighted_T = weight_T != 0
        return cls(law, theta_TP[weighted_T], weight_T[weighted_T])

    def value(self, r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        """Returns the weighted loss of each mixture."""
        return evaluate_law(self.law, r_RM, self.theta_TP) @ self.weight_T

    def gradient(self, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        """Returns the derivatives of the weighted loss by the proportions."""
        return self.weight_T @ self.law.gradient(r_M[None], self.theta_TP)[:, 0]

    @property
    def is_convex(self) -> bool:
        """Whether every weighted term is convex on the simplex."""
        return bool(np.all(self.weight_T >= 0)) and all(
            self.law.is_convex(theta_P) for theta_P in self.theta_TP
        )
