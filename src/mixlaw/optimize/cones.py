"""Cone programs, as Clarabel solves them (Goulart and Chen 2024, arXiv:2405.12762).

Clarabel is imported here and nowhere else, and only when a program is solved.

Shape letters: X variables, Y rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

Cone = tuple[Literal["zero", "nonnegative", "exponential"], int]
"""A kind of cone and how many numbers (or triples of the exponential cone) are in it."""
TOLERANCE = 1e-11
"""Absolute and relative gap, and feasibility."""
LOOSE_TOLERANCE = 1e-8
"""What is still used where rounding ends the search earlier."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ConicSolution:
    """What Clarabel found."""

    x: Float[np.ndarray, " X"]
    dual: Float[np.ndarray, " Y"]
    is_solved: bool


def solve_cone(P: Any, q: Any, A: Any, b: Any, cones: Sequence[Cone]) -> ConicSolution:
    """Returns the minimum of x' P x / 2 + q' x under A x + s = b, s in the cones.

    Args:
        P: Upper half of a positive semidefinite matrix, sparse by columns.
        q: Linear costs.
        A: Rows, sparse by columns.
        b: Right-hand sides.
        cones: Cones of the rows, in their order.
    """
    clarabel, settings = _clarabel()
    made: list[Any] = []
    for kind, count in cones:
        if kind == "exponential":
            made += [clarabel.ExponentialConeT()] * count
        elif count:
            cone = clarabel.ZeroConeT if kind == "zero" else clarabel.NonnegativeConeT
            made.append(cone(count))
    found = clarabel.DefaultSolver(P, q, A, b, made, settings).solve()
    return ConicSolution(
        x=np.array(found.x),
        dual=np.array(found.z),
        is_solved=str(found.status) in {"Solved", "AlmostSolved"},
    )


@cache
def _clarabel() -> tuple[Any, Any]:
    """Returns the module, which has no types, and the settings."""
    clarabel = import_module("clarabel")
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.max_iter = 200
    settings.presolve_enable = False  # it would drop rows, and their dual variables
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = TOLERANCE
    settings.reduced_tol_gap_abs = settings.reduced_tol_gap_rel = LOOSE_TOLERANCE
    settings.reduced_tol_feas = LOOSE_TOLERANCE
    return clarabel, settings
