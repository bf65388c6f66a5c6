r"""The surface of a loss over model size and step, linear in three coefficients of a mixture.

Shape letters: P points (a model size and a step), X exponents, C coefficients, K parameters.

    L(N, S) = E + A phi(N) + B n^d psi(N, S)
    phi = (n^-a - 1) / a,   psi = (f^-b(n) - 1) / b(n) + c (rate - rate_0),   b(n) = b n^s

n is the size and f the area under the learning rate so far, both relative to the middle of the
runs, so E is the loss there, A and B are how fast it falls with log size and log area, and
a, b, c, d and s say only how these slopes change. With c = s = 0 it is E' + A' N^-a + B' N^d
(S^-b - S_0^-b): at the middle step a plain size law, and steps that matter more to large models.

Area and rate are those of Tissue et al. 2024 (arXiv:2408.11029): what the schedule has spent, and
what its annealing has gained. Where the schedule is not known, the area is the step itself, the
rate is 1 throughout, and c has nothing to act on.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mixlaw.errors import FitError

EXPONENTS = ("log_a", "log_b", "d", "c", "s")
PARAMETERS = (
    *EXPONENTS,
    *("log_sd_E", "log_sd_A", "log_sd_B", "tie_AE", "tie_BE", "tie_BA"),
    *("log_run", "log_drift", "log_noise", "log_order", "log_step", "log_point", "log_size"),
)
"""Exponents, the covariance of (E, A, B) between mixtures, standard deviations of the errors."""
NUM_EXPONENTS = len(EXPONENTS)
SD, TIE, NOISE = NUM_EXPONENTS, NUM_EXPONENTS + 3, NUM_EXPONENTS + 6
"""Where the last two begin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A learning rate that warms up linearly and falls along a cosine."""

    steps: float | None = None
    """Where the cosine ends; None: the schedule is not known."""
    warmup_steps: float = 0.0
    final_rate: float = 0.1
    """The rate at the end, as a share of the peak."""

    def rate(self, step_P: Float[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
        """Returns the learning rate at a step, as a share of its peak."""
        if self.steps is None:
            return np.ones_like(step_P)
        cosine = (1 + np.cos(np.pi * self._progress(step_P))) / 2
        fallen = self.final_rate + (1 - self.final_rate) * cosine
        return np.where(step_P < self.warmup_steps, step_P / max(self.warmup_steps, 1e-9), fallen)

    def area(self, step_P: Float[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
        """Returns the area under the learning rate so far, in steps at its peak."""
        if self.steps is None:
            return step_P.copy()
        progress, length = self._progress(step_P), self.steps - self.warmup_steps
        cosine = (progress + np.sin(np.pi * progress) / np.pi) / 2
        fallen = length * (self.final_rate * progress + (1 - self.final_rate) * cosine)
        after = np.maximum(step_P - self.steps, 0.0) * self.final_rate
        warm = np.minimum(step_P, self.warmup_steps)
        return warm**2 / max(2 * self.warmup_steps, 1e-9) + fallen + after

    def _progress(self, step_P: Float[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
        assert self.steps is not None
        if self.warmup_steps >= self.steps:
            raise FitError(
                f"warm-up must end before the schedule does, found {self.warmup_steps:g} of"
                f" {self.steps:g} steps"
            )
        return np.clip((step_P - self.warmup_steps) / (self.steps - self.warmup_steps), 0.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Points:
    """Where losses are observed or wanted."""

    size_P: Float[np.ndarray, " P"]
    """Parameters that count as the model's size."""
    step_P: Float[np.ndarray, " P"]
    area_P: Float[np.ndarray, " P"]
    """Area under the learning rate so far, in steps at its peak."""
    rate_P: Float[np.ndarray, " P"]
    """The learning rate, as a share of its peak."""

    def __len__(self) -> int:
        return len(self.size_P)

    def join(self, other: "Points") -> "Points":
        """Returns both sets of points, these first."""
        return Points(
            size_P=np.concatenate([self.size_P, other.size_P]),
            step_P=np.concatenate([self.step_P, other.step_P]),
            area_P=np.concatenate([self.area_P, other.area_P]),
            rate_P=np.concatenate([self.rate_P, other.rate_P]),
        )

    def take(self, index: Bool[np.ndarray, " P"] | Int[np.ndarray, " N"]) -> "Points":
        """Returns some of the points."""
        return Points(
            size_P=self.size_P[index],
            step_P=self.step_P[index],
            area_P=self.area_P[index],
            rate_P=self.rate_P[index],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """The middle of the runs, around which the surface bends."""

    size: float
    area: float
    rate: float

    @classmethod
    def of(cls, points: Points) -> "Reference":
        """Returns the geometric mean of the distinct sizes, and the middle of the steps."""
        return cls(
            size=float(np.exp(np.mean(np.log(np.unique(points.size_P))))),
            area=float(np.exp(np.mean(np.log(points.area_P)))),
            rate=float(np.mean(points.rate_P)),
        )


def basis(points: Points, reference: Reference, exponent_X: np.ndarray) -> np.ndarray:
    """Returns what E, A and B are multiplied by at each point, "*X P C"; complex where given so.

    Args:
        points: Sizes and steps.
        reference: The middle of the runs.
        exponent_X: The exponents, in the first axis; further axes are a batch.
    """
    log_a, log_b, d, c, s = exponent_X[..., None]
    a, b = np.exp(log_a), np.exp(log_b)
    log_n = np.log(points.size_P / reference.size)
    log_f = np.log(points.area_P / reference.area)
    bent = b * np.exp(s * log_n)
    psi = (np.exp(-bent * log_f) - 1) / bent + c * (points.rate_P - reference.rate)
    phi = (np.exp(-a * log_n) - 1) / a
    return np.stack([np.ones_like(psi), phi + 0 * psi, np.exp(d * log_n) * psi], axis=-1)


def basis_slopes(
    points: Points, reference: Reference, exponent_X: Float[np.ndarray, " X"]
) -> Float[np.ndarray, "X P C"]:
    """Returns the derivatives of the basis by the exponents, exact to rounding."""
    # A complex step: the basis is analytic in the exponents, and nothing is subtracted.
    nudged_XX = exponent_X[:, None] + 1e-20j * np.eye(NUM_EXPONENTS)
    return np.imag(basis(points, reference, nudged_XX)) / 1e-20
