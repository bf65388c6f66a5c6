r"""What repeated text is worth, and a mixing law of mixtures whose domains repeat.

Shape letters: B any leading axes, R runs, M training domains, P parameters, S starts, Q shrinkage
residuals, C different constants.

A domain with U unique tokens that is seen for e epochs gives as much as D tokens of fresh text:

$$D = U e \;(e \le 1), \qquad D = U + U R^* (1 - \exp(-(e - 1) / R^*)) \;(e > 1).$$

A run's mixture acts through the *shares* of these, $q_j = D_j / \sum_k D_k$, which sum to one as
shares must, and its length through their *sum*. Whatever scale a law keeps its parameters in, the
answer is the same: the law sees nothing but shares.

References:
    Muennighoff et al. 2023, arXiv:2305.16264, Eq. 5.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from mixlaw.errors import FitError
from mixlaw.laws.base import MixingLaw

PUBLISHED_CONSTANT = 15.388
"""R* of data in Muennighoff et al. 2023: models to 8.7B parameters on C4, one domain, to 1,500
epochs. Up to 4 epochs cost little, beyond 16 or so further ones are worth less and less, and at 40
next to nothing."""
OWN_PARAMETERS = ("token_loss", "token_exponent", "R*")
"""What a law of repeated text has beside the parameters of its mixing law."""
BISECTIONS = 100
"""Halvings that find the length of a run with given effective shares: to the last bit."""


def effective_tokens(
    seen_RM: Float[np.ndarray, "R M"], supply_M: Float[np.ndarray, " M"], *, constant: float
) -> Float[np.ndarray, "R M"]:
    """Returns the fresh tokens that the tokens seen of each domain are worth.

    Args:
        seen_RM: Tokens that runs see of each domain.
        supply_M: Unique tokens of each domain; infinite: no text is seen twice.
        constant: R*, how many further epochs are worth something; infinite: all are.

    References:
        Muennighoff et al. 2023, arXiv:2305.16264, Eq. 5.
    """
    again_RM = np.maximum(seen_RM / supply_M - 1.0, 0.0)
    if np.isinf(constant) or not np.any(again_RM):
        return seen_RM.copy()
    worth_RM = -constant * np.expm1(-again_RM / constant)
    once_M = np.where(np.isinf(supply_M), 0.0, supply_M)
    return np.where(again_RM > 0, once_M * (1.0 + worth_RM), seen_RM)


def seen_tokens(
    effective_RM: Float[np.ndarray, "R M"], supply_M: Float[np.ndarray, " M"], *, constant: float
) -> Float[np.ndarray, "R M"]:
    """Returns the tokens that must be seen to be worth so many fresh ones; infinite: too many."""
    again_RM = np.maximum(effective_RM / supply_M - 1.0, 0.0)
    if np.isinf(constant) or not np.any(again_RM):
        return effective_RM.copy()
    left_RM = np.maximum(1.0 - again_RM / constant, 0.0)
    with np.errstate(divide="ignore"):
        epochs_RM = 1.0 - constant * np.log(left_RM)
    once_M = np.where(np.isinf(supply_M), 0.0, supply_M)
    seen_RM = np.where(again_RM > 0, once_M, 0.0) * np.where(again_RM > 0, epochs_RM, 1.0)
    return np.where(again_RM > 0, seen_RM, effective_RM)


def effective_shares(
    r_RM: Float[np.ndarray, "R M"],
    supply_M: Float[np.ndarray, " M"],
    *,
    tokens: float | Float[np.ndarray, " R"],
    constant: float,
) -> tuple[Float[np.ndarray, "R M"], Float[np.ndarray, " R"]]:
    """Returns the shares of the effective tokens, and their sum as a share of the tokens seen."""
    tokens_R1 = np.broadcast_to(np.asarray(tokens, dtype=float), len(r_RM))[:, None]
    worth_RM = effective_tokens(r_RM * tokens_R1, supply_M, constant=constant) / tokens_R1
    sum_R = worth_RM.sum(axis=1)
    return worth_RM / sum_R[:, None], sum_R


def nominal_shares(
    q_RM: Float[np.ndarray, "R M"],
    supply_M: Float[np.ndarray, " M"],
    *,
    tokens: float,
    constant: float,
) -> Float[np.ndarray, "R M"]:
    """Returns the token shares with which a run has given effective shares: the other way round.

    There is always one: the tokens that must be seen grow with the effective ones without end.
    """
    # A domain can't be worth more than U (1 + R*), which bounds the sum.
    most_RM = np.broadcast_to(supply_M * (1.0 + constant), q_RM.shape)
    with np.errstate(divide="ignore"):
        ceiling_R = np.min(np.where(q_RM > 0, most_RM, np.inf) / np.maximum(q_RM, 1e-300), axis=1)
    low_R = np.zeros(len(q_RM))
    high_R = np.minimum(tokens, ceiling_R)
    for _ in range(BISECTIONS):
        middle_R = (low_R + high_R) / 2
        seen_R = seen_tokens(q_RM * middle_R[:, None], supply_M, constant=constant).sum(axis=1)
        low_R, high_R = (
            np.where(seen_R < tokens, middle_R, low_R),
            np.where(seen_R < tokens, high_R, middle_R),
        )
    seen_RM = seen_tokens(q_RM * low_R[:, None], supply_M, constant=constant)
    return seen_RM / seen_RM.sum(axis=1, keepdims=True)


@dataclass(frozen=True, slots=True)
class RepeatedLaw(MixingLaw):
    r"""A mixing law for runs of one length in which domains repeat.

    $L(r) = L_{mix}(q) + a ((\sum_j D_j / D)^{-b} - 1)$: a is the loss that more tokens would still
    remove at the run's D tokens (0: no step law is known), b the exponent of the step law.

    The mixing law's parameters come from a fit to effective shares; nothing here is fitted as it
    stands.
    """

    law: MixingLaw
    """The law of the effective shares."""
    supply: tuple[float, ...]
    """Unique tokens of each domain, in the order of the proportions; infinite: not known."""
    tokens: float
    """Tokens of the run."""

    name: ClassVar[str] = "repeated"
    formula: ClassVar[str] = "L(r) = L_mix(q) + a ((sum_j D_j / D)^-b - 1), q_j = D_j / sum_k D_k"

    def __post_init__(self) -> None:
        if not (self.tokens > 0 and all(supply > 0 for supply in self.supply)):
            raise FitError("a law of repeated text needs positive tokens and supplies")

    def describe(self) -> str:
        """Returns the formula and that of the mixing law."""
        return f"{self.formula}; L_mix: {self.law.describe()}"

    def parameter_names(self, domains: tuple[str, ...]) -> tuple[str, ...]:
        """Returns those of the mixing law, then `token_loss` a, `token_exponent` b and `R*`."""
        return (*self.law.parameter_names(domains), *OWN_PARAMETERS)

    def predict(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R"]:
        """Returns the mixing law's loss of the effective shares and what shorter runs lose."""

        def of(constant: float, theta_CP: np.ndarray) -> np.ndarray:
            q_RM, sum_R = self._effective(r_RM, constant)
            a_C1, b_C1 = theta_CP[:, -3, None], theta_CP[:, -2, None]
            shorter_CR = a_C1 * np.expm1(-b_C1 * np.log(sum_R))
            return self.law.predict(q_RM, theta_CP[:, :-3]) + shorter_CR

        return self._by_constant(of, theta_BP, (len(r_RM),))

    def jacobian(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R P"]:
        """Returns the derivatives of `predict` by the parameters, R* among them."""

        def of(constant: float, theta_CP: np.ndarray) -> np.ndarray:
            q_RM, sum_R = self._effective(r_RM, constant)
            a_C1, b_C1 = theta_CP[:, -3, None], theta_CP[:, -2, None]
            power_CR = np.exp(-b_C1 * np.log(sum_R))
            again_RM = self._again(r_RM) / constant
            share_M = np.minimum(np.array(self.supply) / self.tokens, 1.0)
            by_constant_RM = share_M * (-np.expm1(-again_RM) - again_RM * np.exp(-again_RM))
            own_CR3 = np.stack(
                [
                    power_CR - 1.0,
                    -a_C1 * power_CR * np.log(sum_R),
                    self._chain(q_RM, sum_R, theta_CP, by_constant_RM).sum(axis=-1),
                ],
                axis=-1,
            )
            return np.concatenate([self.law.jacobian(q_RM, theta_CP[:, :-3]), own_CR3], axis=-1)

        return self._by_constant(of, theta_BP, (len(r_RM), theta_BP.shape[-1]))

    def gradient(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R M"]:
        """Returns the derivatives of `predict` by the proportions."""

        def of(constant: float, theta_CP: np.ndarray) -> np.ndarray:
            q_RM, sum_R = self._effective(r_RM, constant)
            slope_RM = np.exp(-self._again(r_RM) / constant)
            return self._chain(q_RM, sum_R, theta_CP, slope_RM)

        return self._by_constant(of, theta_BP, r_RM.shape)

    def bounds(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> tuple[Float[np.ndarray, "*B P"], Float[np.ndarray, "*B P"]]:
        """Returns those of the mixing law, and positive numbers for the rest."""
        low_BP, high_BP = self.law.bounds(r_RM, y_BR)
        own_B3 = np.ones((*low_BP.shape[:-1], len(OWN_PARAMETERS)))
        return (
            np.concatenate([low_BP, own_B3 * [0.0, 0.0, 1e-3]], axis=-1),
            np.concatenate([high_BP, own_B3 * [1e3, 4.0, 1e6]], axis=-1),
        )

    def starts(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> Float[np.ndarray, "*B S P"]:
        """Returns those of the mixing law, with the published constant and no step law."""
        starts_BSP = self.law.starts(r_RM, y_BR)
        own_BS3 = np.ones((*starts_BSP.shape[:-1], len(OWN_PARAMETERS)))
        return np.concatenate([starts_BSP, own_BS3 * [0.0, 1.0, PUBLISHED_CONSTANT]], axis=-1)

    def penalty(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q"]:
        """Returns that of the mixing law."""
        return self.law.penalty(theta_BP[..., :-3])

    def penalty_jacobian(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q P"]:
        """Returns that of the mixing law, and 0 for the rest."""
        inner_BQP = self.law.penalty_jacobian(theta_BP[..., :-3])
        return np.concatenate([inner_BQP, np.zeros((*inner_BQP.shape[:-1], 3))], axis=-1)

    def is_convex(self, theta_P: Float[np.ndarray, " P"]) -> bool:
        """Whether the mixing law is convex and no mixture at all repeats a domain."""
        return bool(min(self.supply) >= self.tokens) and self.law.is_convex(theta_P[:-3])

    def _again(self, r_RM: np.ndarray) -> np.ndarray:
        """Returns the epochs of each domain after the first."""
        return np.maximum(r_RM * self.tokens / np.array(self.supply) - 1.0, 0.0)

    def _effective(self, r_RM: np.ndarray, constant: float) -> tuple[np.ndarray, np.ndarray]:
        return effective_shares(r_RM, np.array(self.supply), tokens=self.tokens, constant=constant)

    def _chain(
        self, q_RM: np.ndarray, sum_R: np.ndarray, theta_CP: np.ndarray, slope_RM: np.ndarray
    ) -> Float[np.ndarray, "C R M"]:
        """Returns the loss' derivatives by effective tokens, times those tokens' own derivatives.

        dq_j / dD_k = (1[j = k] - q_j) / sum D, in units of the run's tokens.
        """
        gradient_CRM = self.law.gradient(q_RM, theta_CP[:, :-3])
        mean_CR1 = np.sum(q_RM * gradient_CRM, axis=-1, keepdims=True)
        a_C1, b_C1 = theta_CP[:, -3, None], theta_CP[:, -2, None]
        shorter_CR = -a_C1 * b_C1 * np.exp((-b_C1 - 1.0) * np.log(sum_R))
        mixed_CRM = (gradient_CRM - mean_CR1) / sum_R[:, None]
        return (mixed_CRM + shorter_CR[..., None]) * slope_RM

    @staticmethod
    def _by_constant(
        of: Callable[[float, np.ndarray], np.ndarray],
        theta_BP: np.ndarray,
        shape: tuple[int, ...],
    ) -> np.ndarray:
        """Returns a function of parameters that have one R* at a time, put together again."""
        flat_CP = theta_BP.reshape(-1, theta_BP.shape[-1])
        values = np.empty((len(flat_CP), *shape))
        for constant in np.unique(flat_CP[:, -1]):
            mine_C = flat_CP[:, -1] == constant
            values[mine_C] = of(float(constant), flat_CP[mine_C])
        return values.reshape(*theta_BP.shape[:-1], *shape)
