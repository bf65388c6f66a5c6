"""Among schedules that are equally good, the one that is closest to a constant mixture.

Under the law only weighted sums over stages matter, so that shares can often move between stages
at no cost. A team had better not change what needs no change.

Shape letters: S stages, M training domains, X = S M columns, K rows of a curvature.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from mixlaw.optimize.conic import clean, conic_form
from mixlaw.optimize.objective import LossSum
from mixlaw.optimize.region import ConstraintName, LinearBound, Region
from mixlaw.optimize.subproblem import solve_model

TIED = 1e-8
"""Schedules whose objectives differ by less, in its unit, are equally good."""
SEEN = 1e-6
"""Directions with less than this share of the largest curvature have none."""


def break_ties(
    function: LossSum,
    region: Region,
    x_X: Float[np.ndarray, " X"],
    *,
    fractions: Sequence[float],
) -> Float[np.ndarray, " X"]:
    """Returns the schedule closest to a constant one among those as good as a given optimum.

    Directions in which the objective is neither curved nor sloped are free: in these the mean
    square difference of the stages from the whole run is minimized, a quadratic program. Where
    what it finds is worse than the optimum after all, the optimum is kept.
    """
    curvature = function.curvature(x_X)
    if curvature is None:
        return x_X
    gradient_X = function.gradient(x_X)
    slope = LinearBound(
        name=ConstraintName("group", "objective", "objective"),
        weight_M=gradient_X,
        sense="at most",
        limit=float(gradient_X @ x_X),
    )
    kept = [
        LinearBound(
            name=ConstraintName("group", f"curvature {k}", f"curvature {k}"),
            weight_M=row_X,
            sense="equal",
            limit=float(row_X @ x_X),
        )
        for k, row_X in enumerate(_curved_directions(*curvature))
    ]
    tied = replace(region, linear=(*region.linear, slope, *kept))
    spread_KX = _spread_rows(fractions, len(x_X) // len(fractions))
    step = solve_model(
        conic_form(tied),
        x_X,
        spread_KX.T @ (spread_KX @ x_X),
        (np.zeros(len(x_X)), spread_KX),
    )
    if not step.is_solved:
        return x_X
    moved_X = clean(region, step.r_M)
    value_2 = function.value(np.stack([x_X, moved_X]))
    closer = np.sum((spread_KX @ moved_X) ** 2) < np.sum((spread_KX @ x_X) ** 2)
    return moved_X if closer and value_2[1] <= value_2[0] + TIED else x_X


def _curved_directions(
    diag_X: Float[np.ndarray, " X"], factor_KX: Float[np.ndarray, "K X"]
) -> Float[np.ndarray, "N X"]:
    """Returns orthogonal directions that span those in which there is a curvature."""
    rows = np.vstack([np.diag(np.sqrt(diag_X)), factor_KX])
    _, size_N, direction_NX = np.linalg.svd(rows, full_matrices=False)
    return direction_NX[size_N > SEEN * max(float(size_N[0]), 1e-300)]


def _spread_rows(fractions: Sequence[float], size: int) -> Float[np.ndarray, "X X"]:
    """Returns the map from x to sqrt(f_s) (r^s_j - mean_j): its square is the spread of stages."""
    fraction_S = np.array(fractions)
    own_SS = np.diag(1 / fraction_S) - 1.0
    return np.kron(np.sqrt(fraction_S)[:, None] * own_SS, np.eye(size))
