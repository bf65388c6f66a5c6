r"""Objectives that mind the worst: the worst target, the worst draws, the spread over draws.

Both "the worst of several losses" and "the mean of the worst tenth of the draws" are
$\max_{\lambda} \sum_i \lambda_i F_i(r)$ over weights $\lambda \ge 0$ that sum to one and are at
most u: u = 1 is the worst one, u = 1 / (0.1 B) the mean of the worst tenth of B (Rockafellar and
Uryasev 2000). Where all $F_i$ are convex, so is that.

Shape letters: R mixtures, M training domains, T targets, B draws, P parameters, N evaluations of a
law, I pieces (weighted sums of these).
"""

import math
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from scipy import sparse

from mixlaw.errors import OptimizeError
from mixlaw.fit.result import FitResult
from mixlaw.laws.base import Curvature, MixingLaw
from mixlaw.mixtures import Mixture
from mixlaw.optimize.objective import (
    Groups,
    LossSum,
    Objective,
    ObjectiveFunction,
    PiecewiseFunction,
    WeightedLoss,
    check_groups,
    group_rows,
    reference_losses,
    sum_curvatures,
)


@dataclass(frozen=True, slots=True, eq=False)
class TailMean(PiecewiseFunction):
    """The mean of the worst pieces, each of which is a weighted sum of losses."""

    law: MixingLaw
    theta_NP: Float[np.ndarray, "N P"]
    weight_IN: "sparse.csr_array"
    """Not negative."""
    offset_I: Float[np.ndarray, " I"]
    largest: float
    """Largest weight of a piece in the mean."""

    @property
    def most(self) -> float:
        """The largest weight of a piece, from 1 / I (the mean of all) to 1 (the worst)."""
        return self.largest

    def value(self, r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        """Returns the mean of the worst pieces, for each mixture."""
        piece_IR = self.weight_IN @ self.law.predict(r_RM, self.theta_NP) + self.offset_I[:, None]
        return np.array([self.weigh(piece_I) @ piece_I for piece_I in piece_IR.T])

    def pieces(
        self, r_M: Float[np.ndarray, " M"]
    ) -> tuple[Float[np.ndarray, " I"], Float[np.ndarray, "I M"]]:
        """Returns the values and the slopes of all pieces."""
        value_N = self.law.predict(r_M[None], self.theta_NP)[:, 0]
        slope_NM = self.law.gradient(r_M[None], self.theta_NP)[:, 0]
        return self.weight_IN @ value_N + self.offset_I, self.weight_IN @ slope_NM

    def piece_curvature(
        self, r_M: Float[np.ndarray, " M"], weight_I: Float[np.ndarray, " I"]
    ) -> Curvature | None:
        """Returns the second derivatives of a weighted sum of the pieces."""
        return sum_curvatures(self.law, r_M, self.theta_NP, weight_N=self.weight_IN.T @ weight_I)

    @property
    def is_convex(self) -> bool:
        """Whether every law that counts is convex on the simplex."""
        return all(self.law.is_convex(theta_P) for theta_P in self.theta_NP)


@dataclass(frozen=True, slots=True)
class WorstLoss(Objective):
    """The largest loss of several targets, as it is or relative to a reference's."""

    targets: tuple[str, ...] | None = None
    """Targets and groups; None: all targets."""
    groups: Groups = field(default_factory=dict[str, tuple[str, ...]])
    """Targets of each named group."""
    reference: Mixture | None = None
    """The worst of (L - L of this mixture) / L of this mixture; None: of the losses."""

    def __post_init__(self) -> None:
        check_groups(self.groups)
        if self.targets is not None and not self.targets:
            raise OptimizeError("the worst of no targets is not defined: name at least one")

    def under(self, fit: FitResult, theta_TP: Float[np.ndarray, "T P"]) -> TailMean:
        """Returns the largest loss under given parameters."""
        weight_IT, offset_I = self._rows(fit, theta_TP)
        counted_T = np.any(weight_IT != 0, axis=0)
        offset_I = offset_I + weight_IT @ fit.level_shift_T
        return TailMean(
            fit.law, theta_TP[counted_T], sparse.csr_array(weight_IT[:, counted_T]), offset_I, 1.0
        )

    def weights_at(self, fit: FitResult, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " T"]:
        """Returns the weights of the target that is worst at a mixture."""
        weight_IT, offset_I = self._rows(fit, fit.theta_TP)
        return weight_IT[int(np.argmax(weight_IT @ fit.losses(r_M[None])[0] + offset_I))]

    def describe(self) -> str:
        """Returns which targets take part."""
        which = "all targets" if self.targets is None else ", ".join(self.targets)
        against = "" if self.reference is None else ", relative to the reference's losses"
        return f"the worst of {which}{against}"

    def unit(self, loss_unit: str) -> str:
        """Returns that of losses, or none where they are relative."""
        return loss_unit if self.reference is None else "relative"

    def _rows(
        self, fit: FitResult, theta_TP: Float[np.ndarray, "T P"]
    ) -> tuple[Float[np.ndarray, "I T"], Float[np.ndarray, " I"]]:
        names = fit.targets if self.targets is None else self.targets
        weight_IT = group_rows(fit, names, self.groups)
        if self.reference is None:
            return weight_IT, np.zeros(len(names))
        base_T = reference_losses(fit, theta_TP, self.reference)
        return weight_IT / base_T, -np.ones(len(names))


@dataclass(frozen=True, slots=True)
class TailLoss(Objective):
    """The mean of a weighted loss over its worst bootstrap draws (CVaR)."""

    loss: WeightedLoss
    level: float = 0.9
    """Share of the draws that don't count: at 0.9, the mean of the worst tenth."""

    def __post_init__(self) -> None:
        if not 0 <= self.level < 1:
            raise OptimizeError(
                f"the level of a tail mean must be at least 0 and below 1, found {self.level:g}"
            )

    def under(self, fit: FitResult, theta_TP: Float[np.ndarray, "T P"]) -> LossSum:
        """Returns the weighted loss: under one set of parameters there are no draws."""
        return self.loss.under(fit, theta_TP)

    def function(self, fit: FitResult) -> TailMean:
        """Returns the tail mean over the fit's draws.

        Raises:
            OptimizeError: The fit has no draws.
        """
        theta_NP, weight_BN, offset = weigh_draws(fit, self.loss)
        num_draws = weight_BN.shape[0]
        most = min(1.0, 1.0 / max((1 - self.level) * num_draws, 1e-12))
        return TailMean(fit.law, theta_NP, weight_BN, np.full(num_draws, offset), most)

    def weights_at(self, fit: FitResult, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " T"]:
        """Returns the weights of the targets in the loss."""
        return self.loss.weights_at(fit, r_M)

    def describe(self) -> str:
        """Returns the loss and how much of the tail is looked at."""
        return f"mean of the worst {1 - self.level:.3g} of the draws of {self.loss.describe()}"


@dataclass(frozen=True, slots=True)
class MeanPlusSpread(Objective):
    """The mean of a weighted loss over the draws plus a number of standard deviations."""

    loss: WeightedLoss
    num_sds: float = 1.0
    """Standard deviations that are added."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.num_sds) and self.num_sds >= 0):
            raise OptimizeError(
                "the number of standard deviations must be finite and not negative, found"
                f" {self.num_sds:g}"
            )

    def under(self, fit: FitResult, theta_TP: Float[np.ndarray, "T P"]) -> LossSum:
        """Returns the weighted loss: under one set of parameters there is no spread."""
        return self.loss.under(fit, theta_TP)

    def function(self, fit: FitResult) -> "MeanAndSpread":
        """Returns the mean and spread over the fit's draws.

        Raises:
            OptimizeError: The fit has no draws.
        """
        theta_NP, weight_BN, offset = weigh_draws(fit, self.loss)
        return MeanAndSpread(fit.law, theta_NP, weight_BN, offset, self.num_sds)

    def weights_at(self, fit: FitResult, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " T"]:
        """Returns the weights of the targets in the loss."""
        return self.loss.weights_at(fit, r_M)

    def describe(self) -> str:
        """Returns the loss and how much of the spread is added."""
        return f"mean + {self.num_sds:.3g} sd over the draws of {self.loss.describe()}"


@dataclass(frozen=True, slots=True, eq=False)
class MeanAndSpread(ObjectiveFunction):
    """Mean plus standard deviations over draws: smooth, but a spread is not convex."""

    law: MixingLaw
    theta_NP: Float[np.ndarray, "N P"]
    weight_BN: "sparse.csr_array"
    offset: float
    num_sds: float

    def value(self, r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        """Returns mean plus spread of each mixture."""
        draw_BR = self.weight_BN @ self.law.predict(r_RM, self.theta_NP)
        return draw_BR.mean(axis=0) + self.num_sds * draw_BR.std(axis=0) + self.offset

    def gradient(self, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        """Returns the derivatives; where the draws agree, those of the mean."""
        off_B, slope_BM = self._standardized(r_M)[:2]
        return (1.0 + self.num_sds * off_B) @ slope_BM / len(off_B)

    def curvature(self, r_M: Float[np.ndarray, " M"]) -> Curvature | None:
        """Returns the part of the second derivatives that is not negative.

        The spread bends as its draws do, each weighed by how far it is from the mean, and upwards
        along what the slopes of the draws don't share.
        """
        off_B, slope_BM, spread = self._standardized(r_M)
        count = len(off_B)
        weight_B = np.maximum(1.0 + self.num_sds * off_B, 0.0) / count
        weight_N = self.weight_BN.T @ weight_B
        curvature = sum_curvatures(self.law, r_M, self.theta_NP, weight_N=weight_N)
        if curvature is None or spread == 0:
            return curvature
        apart_BM = slope_BM - slope_BM.mean(axis=0)
        apart_BM = apart_BM - np.outer(off_B, off_B @ apart_BM) / count
        factor_BM = np.sqrt(self.num_sds / (spread * count)) * apart_BM
        return curvature[0], np.concatenate([curvature[1], factor_BM])

    def _standardized(
        self, r_M: Float[np.ndarray, " M"]
    ) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, "B M"], float]:
        """Returns the draws in standard deviations from their mean, their slopes, and the sd."""
        draw_B = self.weight_BN @ self.law.predict(r_M[None], self.theta_NP)[:, 0]
        slope_BM = self.weight_BN @ self.law.gradient(r_M[None], self.theta_NP)[:, 0]
        spread = float(draw_B.std())
        off_B = draw_B - draw_B.mean()
        return (off_B / spread if spread > 0 else 0.0 * off_B), slope_BM, spread

    @property
    def is_convex(self) -> bool:
        """Whether nothing is added to the mean, and that is convex."""
        return self.num_sds == 0 and all(self.law.is_convex(row_P) for row_P in self.theta_NP)


def weigh_draws(
    fit: FitResult, loss: WeightedLoss
) -> tuple[Float[np.ndarray, "N P"], "sparse.csr_array", float]:
    """Returns the parameters of all draws, the weights that make a loss of each, and its shift.

    Raises:
        OptimizeError: The fit has no draws.
    """
    num_draws = len(fit.theta_draws_BTP)
    if num_draws == 0:
        raise OptimizeError(
            "an objective over draws needs a fit that has some, but this one has none",
            do="fit with `num_draws` above 0",
        )
    weight_T = loss.row(fit)
    counted_T = weight_T != 0
    theta_BTP = fit.theta_draws_BTP[:, counted_T]
    weight_BN = sparse.csr_array(sparse.kron(sparse.eye(num_draws), weight_T[counted_T][None]))
    offset = float(weight_T @ fit.level_shift_T)
    return theta_BTP.reshape(-1, theta_BTP.shape[-1]), weight_BN, offset
