"""The quadratic programs that a search over a region consists of.

Around a mixture r an objective is replaced by its slope and curvature: the minimum of
g' (s - r) + (s - r)' H (s - r) / 2 over the region is the next trial point s. Where the objective
is the mean of the worst pieces, each piece has its own slope g_i, and the curvature is that of the
pieces' weighted sum. The dual variables of the program give the pieces' weights, a lower bound of
any linear cost over the region, and the prices of constraints.

Shape letters: M training domains, K rows of a curvature, I pieces, V variables of the program, Y
rows of a region.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from mixlaw.laws.base import Curvature
from mixlaw.optimize.cones import solve_cone
from mixlaw.optimize.conic import ConicForm

MOST_DENSE = 150
"""Domains up to which a curvature of few rows is multiplied out as well."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Step:
    """The minimum of a model of the objective."""

    r_M: Float[np.ndarray, " M"]
    dual_Y: Float[np.ndarray, " Y"]
    """Dual variables of the region's rows."""
    weight_I: Float[np.ndarray, " I"]
    """Weights of the pieces; empty where the objective is smooth."""
    is_solved: bool


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pieces:
    """The pieces of an objective at a mixture, of which the worst are averaged."""

    value_I: Float[np.ndarray, " I"]
    slope_IM: Float[np.ndarray, "I M"]
    most: float
    """The largest weight of a piece."""


def solve_model(
    form: ConicForm,
    r_M: Float[np.ndarray, " M"],
    model: Float[np.ndarray, " M"] | Pieces,
    curvature: Curvature,
) -> Step:
    """Returns the minimum of a quadratic model over a region.

    Args:
        form: The region.
        r_M: Where the objective has these slopes and this curvature.
        model: The slope of a smooth objective, or its pieces.
        curvature: Second derivatives, of the pieces' weighted sum where there are pieces.
    """
    diag_M, factor_KM = curvature
    size, num_rows = len(r_M), form.A.shape[0]
    is_linked = size > MOST_DENSE and len(factor_KM) < size
    num_links = len(factor_KM) if is_linked else 0
    num_over = 0 if isinstance(model, np.ndarray) or model.most >= 1 else len(model.value_I)
    num_mean = 0 if isinstance(model, np.ndarray) else 1
    # Variables: those of the region, then v = F s, z and the pieces' excess over z.
    widths = (form.A.shape[1], num_links, num_mean, num_over)
    blocks: list[Any] = [form.A if sum(widths) == widths[0] else _widen(form.A, widths)]
    right, cones = [form.b_Y], list(form.cones)
    P, cost_V = (_linked if is_linked else _dense)(diag_M, factor_KM, r_M, widths)
    if num_links:
        blocks.append(_row_block(widths, factor_KM, link=-1.0))
        right.append(np.zeros(num_links))
        cones.append(("zero", num_links))
    if isinstance(model, np.ndarray):
        cost_V[:size] += model
        count = 0
    else:
        count = len(model.value_I)
        cost_V[sum(widths[:2])] = 1.0
        cost_V[sum(widths[:3]) :] = model.most
        blocks.append(_row_block(widths, model.slope_IM, mean=-1.0, over=-1.0))
        right.append(model.slope_IM @ r_M - model.value_I)
        if num_over:
            blocks.append(_row_block(widths, np.zeros((num_over, 0)), over=-1.0))
            right.append(np.zeros(num_over))
        cones.append(("nonnegative", count + num_over))
    A = blocks[0] if len(blocks) == 1 else sparse.csc_array(sparse.vstack(blocks))
    found = solve_cone(P, cost_V, A, np.concatenate(right), cones)
    weight_I = found.dual[num_rows + num_links :][:count]
    if not isinstance(model, np.ndarray):
        weight_I = np.clip(weight_I, 0.0, model.most)
        weight_I = weight_I / max(float(weight_I.sum()), 1e-300)
    return Step(
        r_M=found.x[:size],
        dual_Y=found.dual[:num_rows],
        weight_I=weight_I,
        is_solved=found.is_solved,
    )


def _dense(
    diag_M: Float[np.ndarray, " M"],
    factor_KM: Float[np.ndarray, "K M"],
    r_M: Float[np.ndarray, " M"],
    widths: tuple[int, int, int, int],
) -> tuple["sparse.csc_array", Float[np.ndarray, " V"]]:
    """Returns the curvature multiplied out, and its part of the cost."""
    hessian_MM = factor_KM.T @ factor_KM
    hessian_MM.flat[:: len(r_M) + 1] += diag_M
    cost_V = np.zeros(sum(widths))
    cost_V[: len(r_M)] = -hessian_MM @ r_M
    return _pad(hessian_MM, sum(widths)), cost_V


def _linked(
    diag_M: Float[np.ndarray, " M"],
    factor_KM: Float[np.ndarray, "K M"],
    r_M: Float[np.ndarray, " M"],
    widths: tuple[int, int, int, int],
) -> tuple["sparse.csc_array", Float[np.ndarray, " V"]]:
    """Returns the curvature with variables v = F s of its own, which keeps the program sparse."""
    diag_V, cost_V = np.zeros(sum(widths)), np.zeros(sum(widths))
    diag_V[: len(r_M)] = diag_M
    diag_V[widths[0] : widths[0] + widths[1]] = 1.0
    cost_V[: len(r_M)] = -diag_M * r_M - factor_KM.T @ (factor_KM @ r_M)
    return sparse.csc_array(sparse.diags_array(diag_V)), cost_V


def _row_block(
    widths: tuple[int, int, int, int],
    dense_IM: Float[np.ndarray, "I M"],
    *,
    link: float = 0.0,
    mean: float = 0.0,
    over: float = 0.0,
) -> Any:
    """Returns rows over all variables: values of the shares, and one per further variable."""
    count, size = dense_IM.shape
    return sparse.hstack(
        [
            sparse.coo_array(dense_IM),
            sparse.coo_array((count, widths[0] - size)),
            sparse.eye_array(count, widths[1]) * link,
            sparse.coo_array(np.full((count, widths[2]), mean)),
            sparse.eye_array(count, widths[3]) * over,
        ]
    )


def _widen(A: Any, widths: tuple[int, int, int, int]) -> Any:
    return sparse.hstack([A, sparse.coo_array((A.shape[0], sum(widths[1:])))])


def _pad(hessian_MM: Float[np.ndarray, "M M"], num_variables: int) -> "sparse.csc_array":
    """Returns the upper half of a matrix over more variables, of which the others are linear."""
    rows, columns, ends = _upper_half(len(hessian_MM), num_variables)
    return sparse.csc_array(
        (hessian_MM[rows, columns], rows, ends), shape=(num_variables, num_variables)
    )


@lru_cache(maxsize=16)
def _upper_half(
    size: int, num_variables: int
) -> tuple[Int[np.ndarray, " E"], Int[np.ndarray, " E"], Int[np.ndarray, " F"]]:
    """Returns rows, columns and where columns end, of a matrix's upper half in columns."""
    columns, rows = np.tril_indices(size)
    ends = np.concatenate([[0], np.cumsum(np.arange(1, size + 1))])
    return rows, columns, np.append(ends, np.full(num_variables - size, ends[-1]))
