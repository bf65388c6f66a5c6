r"""Objectives in task errors: from proportions to losses to the error on a task.

The error law $\epsilon - k\,e^{-\sum_f \gamma_f L_f}$ rises with every loss. One task's error is
therefore the least where a weighted sum of losses is, and as certain. A sum of several such errors
is not convex.

Shape letters: R mixtures, M training domains, T targets, P parameters, A tasks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from mixlaw.errors import OptimizeError
from mixlaw.fit.error import ErrorFit
from mixlaw.fit.result import FitResult, evaluate_law
from mixlaw.laws.base import Curvature, MixingLaw
from mixlaw.optimize.objective import (
    LossSum,
    Objective,
    ObjectiveFunction,
    check_weights,
    describe_weights,
    sum_curvatures,
)
from mixlaw.predict import weight_row


@dataclass(frozen=True, slots=True, eq=False)
class ErrorOfLoss(ObjectiveFunction):
    """One task's error: it rises with a weighted sum of losses."""

    exponent: LossSum
    """gamma . L, which has no unit."""
    epsilon: float
    k: float

    def value(self, r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        """Returns the error of each mixture."""
        return self.of_exponent(self.exponent.value(r_RM))

    def gradient(self, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        """Returns the slope of the error law times that of the exponent."""
        return self.slope(r_M) * self.exponent.gradient(r_M)

    def of_exponent(self, exponent_R: Float[np.ndarray, " R"]) -> Float[np.ndarray, " R"]:
        """Returns the errors of given sums."""
        return self.epsilon - self.k * np.exp(-exponent_R)

    def slope(self, r_M: Float[np.ndarray, " M"]) -> float:
        """Returns the derivative of the error by the exponent."""
        return self.k * float(np.exp(-self.exponent.value(r_M[None])[0]))

    @property
    def is_convex(self) -> bool:
        """Not in general; but where the exponent is, the error is the least where that is."""
        return False


@dataclass(frozen=True, slots=True)
class TaskError(Objective):
    """The error on one task, or the mean error that an error law was fitted to."""

    task: str
    """Its name."""
    error_fit: ErrorFit
    """The law from losses to the error; its losses are targets of the fit."""

    def under(self, fit: FitResult, theta_TP: Float[np.ndarray, "T P"]) -> ErrorOfLoss:
        """Returns the error under given parameters of the mixing law."""
        rate_T = rate_row(fit, self.error_fit)
        offset = float(rate_T @ fit.level_shift_T)
        exponent = LossSum.weighted(fit.law, theta_TP, rate_T, offset=offset)
        epsilon, k = map(float, self.error_fit.theta_P[:2])
        return ErrorOfLoss(exponent, epsilon + self.error_fit.seed_shift, k)

    def weights_at(self, fit: FitResult, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " T"]:
        """Returns what a nat of each loss costs, in error."""
        return self.under(fit, fit.theta_TP).slope(r_M) * rate_row(fit, self.error_fit)

    def own_halfwidth(self, fit: FitResult, r_M: Float[np.ndarray, " M"], *, level: float) -> float:
        """Returns the error law's: its noise, its parameters, and its bias on a new mixture."""
        error_fit = self.error_fit
        half = float(error_fit.half_width(self._losses(fit, r_M[None]), level=level)[0])
        if not error_fit.set_freedom:
            return half
        return math.hypot(
            half, float(stdtrit(error_fit.set_freedom, 0.5 + level / 2)) * error_fit.set_sd
        )

    def own_difference_sd(
        self, fit: FitResult, one_M: Float[np.ndarray, " M"], other_M: Float[np.ndarray, " M"]
    ) -> float:
        """Returns the error law's: what its parameters leave open, and two mixtures' biases."""
        loss_2F = self._losses(fit, np.stack([one_M, other_M]))
        return math.hypot(
            self.error_fit.difference_sd(loss_2F), math.sqrt(2) * self.error_fit.set_sd
        )

    def _losses(self, fit: FitResult, r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, "R F"]:
        columns = [fit.targets.index(loss) for loss in self.error_fit.law.losses]
        return fit.losses(r_RM)[:, columns]

    def describe(self) -> str:
        """Returns whose error it is."""
        return f"error on {self.task}"

    def unit(self, loss_unit: str) -> str:
        """Returns that of errors."""
        del loss_unit
        return "error"


@dataclass(frozen=True, slots=True, eq=False)
class ErrorSum(ObjectiveFunction):
    """A weighted sum of task errors: smooth, not convex."""

    law: MixingLaw
    theta_TP: Float[np.ndarray, "T P"]
    shift_T: Float[np.ndarray, " T"]
    rate_AT: Float[np.ndarray, "A T"]
    epsilon_A: Float[np.ndarray, " A"]
    k_A: Float[np.ndarray, " A"]
    weight_A: Float[np.ndarray, " A"]

    def value(self, r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        """Returns the weighted error of each mixture."""
        loss_RT = evaluate_law(self.law, r_RM, self.theta_TP) + self.shift_T
        return self.weight_A @ (
            self.epsilon_A[:, None] - self.k_A[:, None] * np.exp(-self.rate_AT @ loss_RT.T)
        )

    def gradient(self, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        """Returns the chain rule through losses and errors."""
        loss_T = evaluate_law(self.law, r_M[None], self.theta_TP)[0] + self.shift_T
        return self.slope_T(loss_T) @ self.law.gradient(r_M[None], self.theta_TP)[:, 0]

    def curvature(self, r_M: Float[np.ndarray, " M"]) -> Curvature | None:
        """Returns the losses' part of the second derivatives; that of the error law is negative."""
        loss_T = evaluate_law(self.law, r_M[None], self.theta_TP)[0] + self.shift_T
        return sum_curvatures(self.law, r_M, self.theta_TP, weight_N=self.slope_T(loss_T))

    def slope_T(self, loss_T: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
        """Returns the derivatives of the weighted error by the losses."""
        return (self.weight_A * self.k_A * np.exp(-self.rate_AT @ loss_T)) @ self.rate_AT

    @property
    def is_convex(self) -> bool:
        """Never known: a sum of functions that each rise with a convex one."""
        return False


@dataclass(frozen=True, slots=True)
class WeightedErrors(Objective):
    """A weighted mean of the errors on several tasks, each with its own error law."""

    errors: Mapping[str, ErrorFit]
    """Error law of each task."""
    weights: Mapping[str, float]
    """Weight of each task; scaled to sum to one."""

    def __post_init__(self) -> None:
        check_weights(self.weights, "the objective")
        for task in self.weights:
            if task not in self.errors:
                raise OptimizeError(
                    f"the objective weighs {task!r}, which has no error law",
                    do=f"the tasks are {', '.join(self.errors)}",
                )

    def under(self, fit: FitResult, theta_TP: Float[np.ndarray, "T P"]) -> ErrorSum:
        """Returns the weighted error under given parameters of the mixing law."""
        total = sum(self.weights.values())
        tasks = [task for task, weight in self.weights.items() if weight > 0]
        rate_AT = np.stack([rate_row(fit, self.errors[task]) for task in tasks])
        counted_T = np.any(rate_AT != 0, axis=0)
        theta_A2 = np.stack([self.errors[task].theta_P[:2] for task in tasks])
        shift_A = np.array([self.errors[task].seed_shift for task in tasks])
        return ErrorSum(
            law=fit.law,
            theta_TP=theta_TP[counted_T],
            shift_T=fit.level_shift_T[counted_T],
            rate_AT=rate_AT[:, counted_T],
            epsilon_A=theta_A2[:, 0] + shift_A,
            k_A=theta_A2[:, 1],
            weight_A=np.array([self.weights[task] / total for task in tasks]),
        )

    def weights_at(self, fit: FitResult, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " T"]:
        """Returns what a nat of each loss costs, in weighted error."""
        rows = [
            weight
            / sum(self.weights.values())
            * TaskError(task, self.errors[task]).weights_at(fit, r_M)
            for task, weight in self.weights.items()
        ]
        return np.sum(rows, axis=0)

    def own_halfwidth(self, fit: FitResult, r_M: Float[np.ndarray, " M"], *, level: float) -> float:
        """Returns the weighted sum of the error laws' own, as if their errors went together."""
        return sum(share * one.own_halfwidth(fit, r_M, level=level) for share, one in self._each())

    def own_difference_sd(
        self, fit: FitResult, one_M: Float[np.ndarray, " M"], other_M: Float[np.ndarray, " M"]
    ) -> float:
        """Returns the weighted sum of the error laws' own, as if their errors went together."""
        return sum(
            share * one.own_difference_sd(fit, one_M, other_M) for share, one in self._each()
        )

    def _each(self) -> list[tuple[float, TaskError]]:
        total = sum(self.weights.values())
        return [
            (weight / total, TaskError(task, self.errors[task]))
            for task, weight in self.weights.items()
        ]

    def describe(self) -> str:
        """Returns the weights of the tasks."""
        return f"weighted error: {describe_weights(self.weights)}"

    def unit(self, loss_unit: str) -> str:
        """Returns that of errors."""
        del loss_unit
        return "error"


def rate_row(fit: FitResult, error_fit: ErrorFit) -> Float[np.ndarray, " T"]:
    """Returns the rates of an error law in the order of a fit's targets.

    Raises:
        FitError: A loss of the error law is no target of the fit.
    """
    rates = dict(zip(error_fit.law.losses, map(float, error_fit.theta_P[2:]), strict=True))
    return weight_row(fit, rates)[0]
