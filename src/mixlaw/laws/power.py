r"""Power laws in size, steps and tokens: one family, and Gadre et al.'s law as a case of it.

Shape letters: R runs, K variables, Q exponents (K, or one for all), P = 1 + K + Q parameters, *B
any batch of laws, *X of
points, *Y what the two broadcast to.

$L(x) = E + \sum_k A_k x_k^{-a_k}$. Over-training is a change of variables: with $C = 6ND$ and
$M = D/N$ (N total parameters, D tokens), $E + (a M^\eta + b M^{-\eta}) C^{-\eta}$ is
$E + A N^{-2\eta} + B D^{-2\eta}$ with $A = a\,6^{-\eta}$ and $B = b\,6^{-\eta}$.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

FLOPS_PER_PARAMETER_TOKEN = 6.0
"""C = 6 N D: forward and backward pass (Gadre et al. 2024, section 2)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """Loss as a constant and one falling power per variable, $E + sum_k A_k x_k^{-a_k}$.

    A law holds no data and no parameters: both are arguments.
    """

    name: str
    """Short name, as reports print it."""
    variables: tuple[str, ...]
    """What the x_k are, with their unit: `params`, `steps`, `tokens`."""
    letters: tuple[str, ...]
    """The coefficients' letters; the exponent of coefficient A is called a."""
    tied: bool = False
    """Whether all terms have one exponent, which is then called after the first."""

    @property
    def num_terms(self) -> int:
        """K, the number of variables."""
        return len(self.variables)

    @property
    def num_exponents(self) -> int:
        """Q: one where they are tied, else K."""
        return 1 if self.tied else self.num_terms

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the P parameters: E, the coefficients, the exponents."""
        exponents = tuple(letter.lower() for letter in self.letters[: self.num_exponents])
        return ("E", *self.letters, *exponents)

    def predict(
        self, x_RK: Float[np.ndarray, "*X R K"], theta_P: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*Y R"]:
        """Returns the loss at each point; batch axes of both are broadcast."""
        _, terms_RK = self._terms(x_RK, theta_P)
        return theta_P[..., :1] + terms_RK.sum(axis=-1)

    def jacobian(
        self, x_RK: Float[np.ndarray, "*X R K"], theta_P: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*Y R P"]:
        """Returns the derivatives of `predict` by the parameters."""
        powers_RK, terms_RK = self._terms(x_RK, theta_P)
        slope_RK = -terms_RK * np.log(x_RK)
        if self.tied:
            slope_RK = slope_RK.sum(axis=-1, keepdims=True)
        ones_R1 = np.ones((*terms_RK.shape[:-1], 1))
        return np.concatenate([ones_R1, powers_RK, slope_RK], axis=-1)

    def elasticity(
        self, x_RK: Float[np.ndarray, "*X R K"], theta_P: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*Y R K"]:
        """Returns the derivatives of `predict` by log x: how much each variable still buys."""
        _, terms_RK = self._terms(x_RK, theta_P)
        return -terms_RK * self.exponents(theta_P)[..., None, :]

    def exponents(self, theta_P: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B K"]:
        """Returns the exponent of each term, whether tied or not."""
        exponent_Q = theta_P[..., 1 + self.num_terms :]
        return np.broadcast_to(exponent_Q, (*theta_P.shape[:-1], self.num_terms))

    def _terms(self, x_RK: np.ndarray, theta_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns x^-a and A x^-a."""
        powers_RK = np.exp(-self.exponents(theta_P)[..., None, :] * np.log(x_RK))
        return powers_RK, theta_P[..., None, 1 : 1 + self.num_terms] * powers_RK


STEP_LAW = PowerLaw(name="step", variables=("steps",), letters=("B",))
"""E + B S^-b: one run over its steps (Ye et al. 2025, section 4)."""
SIZE_LAW = PowerLaw(name="size", variables=("params",), letters=("A",))
"""E + A N^-a: one mixture over model sizes (Ye et al. 2025, section 4)."""
SIZE_TOKEN_LAW = PowerLaw(name="size-token", variables=("params", "tokens"), letters=("A", "B"))
"""E + A N^-a + B D^-b (Hoffmann et al. 2022, Eq. 2)."""
SIZE_STEP_LAW = PowerLaw(name="size-step", variables=("params", "steps"), letters=("A", "B"))
"""E + A N^-a + B S^-b: the same with steps for tokens."""
OVERTRAINING_LAW = PowerLaw(
    name="gadre", variables=("params", "tokens"), letters=("A", "B"), tied=True
)
"""E + A N^-a + B D^-a: Gadre et al. 2024, Eq. 4, in N and D."""


class OvertrainingParameters(NamedTuple):
    r"""The paper's letters: $L(C, M) = E + (a M^\eta + b M^{-\eta}) C^{-\eta}$.

    References:
        Gadre et al. 2024, arXiv:2403.08540, Eq. 4.
    """

    E: float
    a: float
    b: float
    eta: float


class ReleasedParameters(NamedTuple):
    r"""The released code's letters: $\alpha N^b + \beta 6^{b/2} (M N)^b + E$, with b < 0.

    References:
        Gadre et al. 2024, `powlaw_ours` in the code that they released.
    """

    E: float
    alpha: float
    beta: float
    b: float


def overtraining_loss(
    flops_R: Float[np.ndarray, "*R"],
    multiplier_R: Float[np.ndarray, "*R"],
    parameters: OvertrainingParameters,
) -> Float[np.ndarray, "*R"]:
    """Returns the loss by compute C and tokens per parameter M, as the paper writes it."""
    E, a, b, eta = parameters
    return E + (a * multiplier_R**eta + b * multiplier_R**-eta) * flops_R**-eta


def to_compute(
    params_R: Float[np.ndarray, "*R"], tokens_R: Float[np.ndarray, "*R"]
) -> tuple[Float[np.ndarray, "*R"], Float[np.ndarray, "*R"]]:
    """Returns C = 6 N D and M = D / N."""
    return FLOPS_PER_PARAMETER_TOKEN * params_R * tokens_R, tokens_R / params_R


def from_compute(
    flops_R: Float[np.ndarray, "*R"], multiplier_R: Float[np.ndarray, "*R"]
) -> tuple[Float[np.ndarray, "*R"], Float[np.ndarray, "*R"]]:
    """Returns N and D."""
    params_R = np.sqrt(flops_R / (FLOPS_PER_PARAMETER_TOKEN * multiplier_R))
    return params_R, multiplier_R * params_R


def to_paper(theta_P: Float[np.ndarray, " 4"]) -> OvertrainingParameters:
    """Returns the paper's letters of a fitted `OVERTRAINING_LAW`."""
    E, A, B, exponent = map(float, theta_P)
    scale = FLOPS_PER_PARAMETER_TOKEN ** (exponent / 2)
    return OvertrainingParameters(E=E, a=A * scale, b=B * scale, eta=exponent / 2)


def from_paper(parameters: OvertrainingParameters) -> Float[np.ndarray, " 4"]:
    """Returns the parameters of `OVERTRAINING_LAW`."""
    E, a, b, eta = parameters
    scale = FLOPS_PER_PARAMETER_TOKEN**-eta
    return np.array([E, a * scale, b * scale, 2 * eta])


def released_to_paper(released: ReleasedParameters) -> OvertrainingParameters:
    """Returns the paper's letters: eta = -b/2, a = alpha 6^eta, b = beta."""
    eta = -released.b / 2
    scale = FLOPS_PER_PARAMETER_TOKEN**eta
    return OvertrainingParameters(E=released.E, a=released.alpha * scale, b=released.beta, eta=eta)


def paper_to_released(parameters: OvertrainingParameters) -> ReleasedParameters:
    """Returns the released code's letters: b = -2 eta, alpha = a 6^-eta, beta = b."""
    E, a, b, eta = parameters
    scale = FLOPS_PER_PARAMETER_TOKEN**-eta
    return ReleasedParameters(E=E, alpha=a * scale, beta=b, b=-2 * eta)
