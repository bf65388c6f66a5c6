"""A law that takes some domains for one: what runs can't tell apart is not told apart.

Shape letters: B any leading axes, R runs, M training domains, N groups of them, P parameters.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mixlaw.laws.base import Curvature, MixingLaw


@dataclass(frozen=True, slots=True)
class TiedLaw(MixingLaw):
    """Another law over groups of domains, whose shares add up.

    It is a law over all domains, whose predictions don't depend on how a group's share is split.
    """

    law: MixingLaw
    """The law over the groups."""
    group_of: tuple[int, ...]
    """Number of each domain's group; groups are numbered in the order of their first domain."""

    @property
    def name(self) -> str:  # type: ignore[override]  # pyright: ignore
        """The inner law's."""
        return self.law.name

    @property
    def formula(self) -> str:  # type: ignore[override]  # pyright: ignore
        """The inner law's."""
        return self.law.formula

    @property
    def sums_MN(self) -> Float[np.ndarray, "M N"]:
        """The matrix that adds shares up by group."""
        return np.eye(max(self.group_of) + 1)[list(self.group_of)]

    def describe(self) -> str:
        """Returns the inner law's formula."""
        return self.law.describe()

    def parameter_names(self, domains: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the inner names; a group is named by its domains, with plus signs."""
        names = tuple(
            "+".join(d for d, group in zip(domains, self.group_of, strict=True) if group == n)
            for n in range(max(self.group_of) + 1)
        )
        return self.law.parameter_names(names)

    def predict(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R"]:
        """Returns the inner law's losses."""
        return self.law.predict(r_RM @ self.sums_MN, theta_BP)

    def jacobian(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R P"]:
        """Returns the inner law's derivatives by the parameters."""
        return self.law.jacobian(r_RM @ self.sums_MN, theta_BP)

    def gradient(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R M"]:
        """Returns each group's derivative for all of its domains."""
        return self.law.gradient(r_RM @ self.sums_MN, theta_BP) @ self.sums_MN.T

    def curvature(
        self, r_M: Float[np.ndarray, " M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Curvature | None:
        """Returns the inner law's, whose diagonal becomes rows: one for each group."""
        found = self.law.curvature(r_M @ self.sums_MN, theta_BP)
        if found is None:
            return None
        diag_BN, factor_BKN = found
        spread_BNN = np.sqrt(diag_BN)[..., None] * np.eye(diag_BN.shape[-1])
        rows_BKM = np.concatenate([factor_BKN, spread_BNN], axis=-2) @ self.sums_MN.T
        return np.zeros((*diag_BN.shape[:-1], len(self.group_of))), rows_BKM

    def bounds(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> tuple[Float[np.ndarray, "*B P"], Float[np.ndarray, "*B P"]]:
        """Returns the inner law's."""
        return self.law.bounds(r_RM @ self.sums_MN, y_BR)

    def starts(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> Float[np.ndarray, "*B S P"]:
        """Returns the inner law's."""
        return self.law.starts(r_RM @ self.sums_MN, y_BR)

    def penalty(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q"]:
        """Returns the inner law's."""
        return self.law.penalty(theta_BP)

    def penalty_jacobian(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q P"]:
        """Returns the inner law's."""
        return self.law.penalty_jacobian(theta_BP)

    def is_convex(self, theta_P: Float[np.ndarray, " P"]) -> bool:
        """Whether the inner law is: sums of shares are linear."""
        return self.law.is_convex(theta_P)
