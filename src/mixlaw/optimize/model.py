"""What a search knows of an objective: its value and slopes at a mixture, and how it bends.

Shape letters: M training domains, I pieces, K rows of a curvature.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mixlaw.errors import OptimizeError
from mixlaw.laws.base import Curvature
from mixlaw.optimize.conic import ConicForm
from mixlaw.optimize.objective import ObjectiveFunction, PiecewiseFunction
from mixlaw.optimize.subproblem import Pieces, Step, solve_model


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LocalView:
    """An objective around a mixture, with slopes less their mean over domains.

    Shares sum to one, so that only differences between slopes matter.
    """

    value: float
    gradient_M: Float[np.ndarray, " M"]
    piece_I: Float[np.ndarray, " I"]
    """Values of the pieces; empty where the objective is smooth."""
    slope_IM: Float[np.ndarray, "I M"]
    unit: float
    """Of the objective: the largest difference between slopes."""

    @property
    def is_smooth(self) -> bool:
        """Whether there are no pieces."""
        return len(self.piece_I) == 0

    def least_gap(self, r_M: Float[np.ndarray, " M"]) -> float:
        """Returns a gap that holds on the whole simplex."""
        return float(self.gradient_M @ r_M - np.min(self.gradient_M))


def look_at(objective: ObjectiveFunction, r_M: Float[np.ndarray, " M"]) -> LocalView:
    """Returns what is known of an objective at a mixture.

    Raises:
        OptimizeError: It is not finite there.
    """
    if isinstance(objective, PiecewiseFunction):
        piece_I, slope_IM = objective.pieces(r_M)
        slope_IM = slope_IM - slope_IM.mean(axis=1, keepdims=True)
        weight_I = objective.weigh(piece_I)
        value, gradient_M = float(weight_I @ piece_I), weight_I @ slope_IM
        unit = float(np.max(np.ptp(slope_IM, axis=1)))
    else:
        value, gradient_M = float(objective.value(r_M[None])[0]), objective.gradient(r_M)
        gradient_M = gradient_M - gradient_M.mean()
        piece_I, slope_IM = np.zeros(0), np.zeros((0, len(r_M)))
        unit = float(np.ptp(gradient_M))
    if not (np.isfinite(value) and np.all(np.isfinite(gradient_M))):
        raise OptimizeError("the objective is not finite at an allowed mixture")
    return LocalView(
        value=value, gradient_M=gradient_M, piece_I=piece_I, slope_IM=slope_IM, unit=unit
    )


@dataclass(slots=True)
class Model:
    """The quadratic model of an objective: of its own curvature, or of one learned on the way."""

    objective: ObjectiveFunction
    is_convex: bool
    size: int
    hessian_MM: Float[np.ndarray, "M M"] | None = None
    """What is learned (BFGS), where the objective is not convex or doesn't know its curvature."""
    weight_I: Float[np.ndarray, " I"] | None = None
    """Weights of the pieces in the last quadratic program."""

    def keep(self, least: float, new: float) -> float:
        """Returns the best lower bound: of a convex objective, every one holds for all."""
        return max(least, new) if self.is_convex else new

    def solve(self, form: ConicForm, r_M: Float[np.ndarray, " M"], at: LocalView) -> Step:
        """Returns the minimum of the model, in units of the objective."""
        diag_M, factor_KM = self._curvature(r_M, at)
        factor_KM = factor_KM - factor_KM.mean(axis=1, keepdims=True)
        curvature = diag_M / at.unit, factor_KM / np.sqrt(at.unit)
        slope: Float[np.ndarray, " M"] | Pieces = at.gradient_M / at.unit
        if isinstance(self.objective, PiecewiseFunction):
            slope = Pieces(
                value_I=(at.piece_I - at.value) / at.unit,
                slope_IM=at.slope_IM / at.unit,
                most=self.objective.most,
            )
        step = solve_model(form, r_M, slope, curvature)
        if not at.is_smooth:
            self.weight_I = step.weight_I
        return step

    def learn(
        self,
        r_M: Float[np.ndarray, " M"],
        at: LocalView,
        new_M: Float[np.ndarray, " M"],
        new: LocalView,
    ) -> None:
        """Updates what was learned by Powell's damped BFGS formula."""
        if self.hessian_MM is None:
            return
        step_M = new_M - r_M
        change_M = new.gradient_M - at.gradient_M
        if self.weight_I is not None:
            change_M = self.weight_I @ (new.slope_IM - at.slope_IM)
        bent_M = self.hessian_MM @ step_M
        bend, seen = float(step_M @ bent_M), float(step_M @ change_M)
        if bend <= 0:
            return
        if seen < 0.2 * bend:
            part = 0.8 * bend / (bend - seen)
            change_M = part * change_M + (1 - part) * bent_M
            seen = 0.2 * bend
        self.hessian_MM = (
            self.hessian_MM - np.outer(bent_M, bent_M) / bend + np.outer(change_M, change_M) / seen
        )

    def _curvature(self, r_M: Float[np.ndarray, " M"], at: LocalView) -> Curvature:
        if self.hessian_MM is None:
            curvature = self._known_curvature(r_M, at)
            if curvature is not None:
                return curvature
            self.hessian_MM = at.unit * np.eye(self.size)
        values, vectors = np.linalg.eigh(self.hessian_MM)
        factor_MM = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
        return np.zeros(self.size), factor_MM

    def _known_curvature(self, r_M: Float[np.ndarray, " M"], at: LocalView) -> Curvature | None:
        if isinstance(self.objective, PiecewiseFunction):
            weight_I = self.weight_I
            if weight_I is None:
                weight_I = self.objective.weigh(at.piece_I)
            return self.objective.piece_curvature(r_M, weight_I)
        return self.objective.curvature(r_M)
