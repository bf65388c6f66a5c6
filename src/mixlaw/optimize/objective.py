"""What is minimized: objectives, and the functions of the proportions that they become.

An objective speaks of targets by name. Under a fit, or under one of its draws, it becomes an
objective function, which has values, slopes and curvatures and knows whether it is convex.

Shape letters: R mixtures, M training domains, T targets, P parameters, N evaluations of a law (a
target under a set of parameters), K rows of a curvature.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from mixlaw.errors import FitError, OptimizeError
from mixlaw.fit.result import FitResult, evaluate_law
from mixlaw.laws.base import Curvature, MixingLaw
from mixlaw.mixtures import Mixture
from mixlaw.predict import weight_row

Groups = Mapping[str, tuple[str, ...]]
"""Named groups of targets; a group's loss is the mean of theirs."""


class ObjectiveFunction(ABC):
    """A function of the proportions that is minimized."""

    __slots__ = ()

    @staticmethod
    def of(
        law: MixingLaw, theta_TP: Float[np.ndarray, "T P"], weight_T: Float[np.ndarray, " T"]
    ) -> "LossSum":
        """Returns a weighted sum of losses, without the targets that weigh nothing."""
        return LossSum.weighted(law, theta_TP, weight_T)

    @abstractmethod
    def value(self, r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        """Returns the objective of each mixture."""

    @abstractmethod
    def gradient(self, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        """Returns the derivatives by the proportions; where there is a kink, one of its slopes."""

    @property
    @abstractmethod
    def is_convex(self) -> bool:
        """Whether the function is convex on the simplex."""

    def curvature(self, r_M: Float[np.ndarray, " M"]) -> Curvature | None:
        """Returns the second derivatives by the proportions; None: not known."""
        del r_M
        return None


class PiecewiseFunction(ObjectiveFunction):
    r"""The largest weighted mean of pieces $F_i$, $\max_\lambda \sum_i \lambda_i F_i(r)$.

    The weights are not negative, sum to one, and are at most `most`.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def most(self) -> float:
        """The largest weight of a piece, from 1 / I (the mean of all) to 1 (the worst)."""

    @abstractmethod
    def pieces(
        self, r_M: Float[np.ndarray, " M"]
    ) -> tuple[Float[np.ndarray, " I"], Float[np.ndarray, "I M"]]:
        """Returns the values and the slopes of all pieces."""

    @abstractmethod
    def piece_curvature(
        self, r_M: Float[np.ndarray, " M"], weight_I: Float[np.ndarray, " I"]
    ) -> Curvature | None:
        """Returns the second derivatives of a weighted sum of the pieces; None: not known."""

    def gradient(self, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        """Returns the slope of the pieces that are the worst there."""
        piece_I, slope_IM = self.pieces(r_M)
        return self.weigh(piece_I) @ slope_IM

    def weigh(self, piece_I: Float[np.ndarray, " I"]) -> Float[np.ndarray, " I"]:
        """Returns the weights that make the weighted mean of the pieces the largest."""
        weight_I = np.zeros_like(piece_I)
        order = np.argsort(-piece_I, kind="stable")
        whole = min(int(1 / self.most + 1e-9), len(order))
        weight_I[order[:whole]] = self.most
        if whole < len(order):
            weight_I[order[whole]] = max(1.0 - whole * self.most, 0.0)
        return weight_I / weight_I.sum()


@dataclass(frozen=True, slots=True, eq=False)
class LossSum(ObjectiveFunction):
    """A weighted sum of losses under one set of parameters: smooth in the proportions."""

    law: MixingLaw
    theta_TP: Float[np.ndarray, "T P"]
    weight_T: Float[np.ndarray, " T"]
    offset: float = 0.0
    """Added to the sum."""

    @classmethod
    def weighted(
        cls,
        law: MixingLaw,
        theta_TP: Float[np.ndarray, "T P"],
        weight_T: Float[np.ndarray, " T"],
        *,
        offset: float = 0.0,
    ) -> "LossSum":
        """Returns the sum without what weighs nothing."""
        weighted_T = weight_T != 0
        return cls(law, theta_TP[weighted_T], weight_T[weighted_T], offset)

    def value(self, r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        """Returns the weighted loss of each mixture."""
        return evaluate_law(self.law, r_RM, self.theta_TP) @ self.weight_T + self.offset

    def gradient(self, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        """Returns the derivatives of the weighted loss by the proportions."""
        return self.weight_T @ self.law.gradient(r_M[None], self.theta_TP)[:, 0]

    def curvature(self, r_M: Float[np.ndarray, " M"]) -> Curvature | None:
        """Returns the second derivatives; None where the law doesn't know its own."""
        return sum_curvatures(self.law, r_M, self.theta_TP, weight_N=self.weight_T)

    @property
    def is_convex(self) -> bool:
        """Whether every weighted term is convex on the simplex."""
        return bool(np.all(self.weight_T >= 0)) and all(
            self.law.is_convex(theta_P) for theta_P in self.theta_TP
        )


def sum_curvatures(
    law: MixingLaw,
    r_M: Float[np.ndarray, " M"],
    theta_NP: Float[np.ndarray, "N P"],
    *,
    weight_N: Float[np.ndarray, " N"],
) -> Curvature | None:
    """Returns the curvature of a weighted sum; what has a negative weight is left out."""
    counted_N = weight_N > 0
    curvature = law.curvature(r_M, theta_NP[counted_N])
    if curvature is None:
        return None
    diag_NM, factor_NKM = curvature
    weight_N = weight_N[counted_N]
    factor_NKM = np.sqrt(weight_N)[:, None, None] * factor_NKM
    return weight_N @ diag_NM, factor_NKM.reshape(-1, len(r_M))


class Objective(ABC):
    """What is minimized, in terms of targets."""

    __slots__ = ()

    @abstractmethod
    def under(self, fit: FitResult, theta_TP: Float[np.ndarray, "T P"]) -> ObjectiveFunction:
        """Returns the objective as it would be if these parameters were the truth.

        That is how a bootstrap draw or a fit without one mixture judges mixtures. An objective that
        weighs the draws themselves is, under one of them, the loss that it weighs.

        Raises:
            FitError: A target of the objective is not in the fit.
        """

    @abstractmethod
    def weights_at(self, fit: FitResult, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " T"]:
        """Returns the derivatives of the objective by the losses of the targets, at a mixture."""

    @abstractmethod
    def describe(self) -> str:
        """Returns the objective in words."""

    def function(self, fit: FitResult) -> ObjectiveFunction:
        """Returns what is minimized, under the fitted parameters."""
        return self.under(fit, fit.theta_TP)

    def unit(self, loss_unit: str) -> str:
        """Returns the objective's unit, given that of losses; `relative`: shares of a reference."""
        return loss_unit

    def own_halfwidth(self, fit: FitResult, r_M: Float[np.ndarray, " M"], *, level: float) -> float:
        """Returns the half-width that a new run's value has even where its losses are known."""
        del fit, r_M, level
        return 0.0

    def own_difference_sd(
        self, fit: FitResult, one_M: Float[np.ndarray, " M"], other_M: Float[np.ndarray, " M"]
    ) -> float:
        """Returns the error of a difference of expected values where the losses are known."""
        del fit, one_M, other_M
        return 0.0


@dataclass(frozen=True, slots=True)
class WeightedLoss(Objective):
    """A sum of target losses with non-negative weights, which are scaled to sum to one."""

    weights: Mapping[str, float]
    """Weight of each target or group; those not named count nothing."""
    groups: Groups = field(default_factory=dict[str, tuple[str, ...]])
    """Targets of each named group."""

    def __post_init__(self) -> None:
        check_weights(self.weights, "the objective")
        check_groups(self.groups)

    @property
    def shares(self) -> dict[str, float]:
        """The weights of targets that are not zero, scaled to sum to one."""
        total = sum(self.weights.values())
        shares: dict[str, float] = {}
        for name, weight in self.weights.items():
            for target in self.groups.get(name, (name,)):
                part = weight / total / len(self.groups.get(name, (name,)))
                shares[target] = shares.get(target, 0.0) + part
        return {target: share for target, share in shares.items() if share > 0}

    def row(self, fit: FitResult) -> Float[np.ndarray, " T"]:
        """Returns the weights in the order of a fit's targets.

        Raises:
            FitError: A weighted target is not in the fit.
        """
        return weight_row(fit, self.shares)[0]

    def under(self, fit: FitResult, theta_TP: Float[np.ndarray, "T P"]) -> LossSum:
        """Returns the weighted loss under given parameters."""
        weight_T = self.row(fit)
        offset = float(weight_T @ fit.level_shift_T)
        return LossSum.weighted(fit.law, theta_TP, weight_T, offset=offset)

    def function(self, fit: FitResult) -> LossSum:
        """Returns the weighted loss under the fitted parameters."""
        return self.under(fit, fit.theta_TP)

    def weights_at(self, fit: FitResult, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " T"]:
        """Returns the weights, which are the same everywhere."""
        del r_M
        return self.row(fit)

    def describe(self) -> str:
        """Returns the weights: `0.5 code + 0.5 web`."""
        return describe_weights(self.weights)


@dataclass(frozen=True, slots=True)
class RelativeLoss(Objective):
    r"""The mean relative loss against a reference, $\sum_i w_i (L_i(r) - L_i(p)) / L_i(p)$.

    Below zero is better than the reference. Every target counts in units of its own loss there.
    """

    weights: Mapping[str, float]
    """Weight of each target or group; scaled to sum to one."""
    reference: Mixture
    """The mixture p that is compared with."""
    groups: Groups = field(default_factory=dict[str, tuple[str, ...]])
    """Targets of each named group."""

    def __post_init__(self) -> None:
        check_weights(self.weights, "the objective")
        check_groups(self.groups)

    def under(self, fit: FitResult, theta_TP: Float[np.ndarray, "T P"]) -> LossSum:
        """Returns the relative loss, against what the same parameters say of the reference."""
        weight_T = self._row(fit)
        base_T = reference_losses(fit, theta_TP, self.reference)
        weight_T = weight_T / base_T
        offset = float(weight_T @ (fit.level_shift_T - base_T))
        return LossSum.weighted(fit.law, theta_TP, weight_T, offset=offset)

    def weights_at(self, fit: FitResult, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " T"]:
        """Returns the weights over the reference's losses."""
        del r_M
        return self._row(fit) / reference_losses(fit, fit.theta_TP, self.reference)

    def describe(self) -> str:
        """Returns what is weighed against what."""
        return f"loss relative to the reference's: {describe_weights(self.weights)}"

    def unit(self, loss_unit: str) -> str:
        """Returns that it has none."""
        del loss_unit
        return "relative"

    def _row(self, fit: FitResult) -> Float[np.ndarray, " T"]:
        return WeightedLoss(self.weights, self.groups).row(fit)


def reference_losses(
    fit: FitResult, theta_TP: Float[np.ndarray, "T P"], reference: Mixture
) -> Float[np.ndarray, " T"]:
    """Returns the losses of a reference mixture, which others are measured by.

    Raises:
        OptimizeError: A loss is not positive: nothing can be measured in units of it.
    """
    r_1M = reference.array(fit.domains)[None]
    base_T = evaluate_law(fit.law, r_1M, theta_TP)[0] + fit.level_shift_T
    if not np.all(base_T > 0):
        worst = int(np.argmin(base_T))
        raise OptimizeError(
            "a relative objective needs positive losses of the reference, but that of"
            f" {fit.targets[worst]!r} is {base_T[worst]:.4g}",
            do="weigh losses themselves: `WeightedLoss`",
        )
    return base_T


def check_weights(weights: Mapping[str, float], whose: str) -> None:
    """Raises an error where weights are no weights.

    Raises:
        OptimizeError: A weight is negative or not finite, or all are zero.
    """
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise OptimizeError(
                f"weights of the objective must be finite and not negative, but {name!r} has"
                f" {weight:g}"
            )
    if not sum(weights.values()) > 0:
        raise OptimizeError(
            f"{whose} must weigh at least one target",
            do="give weights in [objective] or with `--weights target=weight,...`",
        )


def check_groups(groups: Groups) -> None:
    """Raises an error where a group has no targets, or one of them twice.

    Raises:
        OptimizeError: A group is empty or repeats a target.
    """
    for name, members in groups.items():
        if not members:
            raise OptimizeError(f"the group of targets {name!r} must have at least one target")
        if len(set(members)) < len(members):
            raise OptimizeError(f"the group of targets {name!r} names a target twice")


def group_rows(fit: FitResult, names: tuple[str, ...], groups: Groups) -> Float[np.ndarray, "N T"]:
    """Returns a row of weights for each target or group: a group is the mean of its targets.

    Raises:
        FitError: A target is not in the fit.
    """
    rows: list[np.ndarray] = []
    for name in names:
        if name not in groups and name not in fit.targets:
            known = ", ".join((*groups, *fit.targets))
            raise FitError(f"{name!r} is no fitted target and no group", do=f"they are {known}")
        members = groups.get(name, (name,))
        rows.append(weight_row(fit, dict.fromkeys(members, 1.0 / len(members)))[0])
    return np.stack(rows)


def describe_weights(weights: Mapping[str, float]) -> str:
    """Returns weights scaled to sum to one as a sum: `0.5 code + 0.5 web`."""
    total = sum(weights.values())
    terms = [f"{weight / total:.3g} {name}" for name, weight in weights.items() if weight > 0]
    return " + ".join(terms)
