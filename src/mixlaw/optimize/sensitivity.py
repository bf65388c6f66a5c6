"""How much the optimum hangs on single mixtures: chosen anew without each of them.

Shape letters: R runs, M training domains, T targets, P parameters, G groups left out together.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mixlaw.fit.result import FitResult
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.optimize.objective import Objective
from mixlaw.optimize.region import Region
from mixlaw.optimize.solver import minimize_objective


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOutOptimum:
    """The optimum of the law that did not see one mixture (or fold of mixtures)."""

    run_ids: tuple[str, ...]
    """The runs that were left out: all of one mixture, or of a fold where there are many."""
    left_out: Mixture
    """The first of the mixtures that were left out."""
    mixture: Mixture
    """The optimum without them."""
    share_moved: float
    """Share of the tokens by which it differs from the optimum of all runs."""
    loss_change: float
    """Change of the predicted objective of the best mixture."""
    regret: float
    """What that optimum costs under the law that saw all runs."""


def leave_mixtures_out(
    fit: FitResult,
    objective: Objective,
    allowed: Region | CappedSimplex,
    *,
    r_M: Float[np.ndarray, " M"],
) -> tuple[LeftOutOptimum, ...]:
    """Returns the optimum without each mixture, the one that moves it most first.

    Args:
        fit: The fitted law, with its parameters without each mixture.
        objective: What is minimised.
        allowed: The allowed mixtures.
        r_M: The optimum of all runs.
    """
    theta_GTP, group_R = np.unique(fit.theta_loo_RTP, axis=0, return_inverse=True)
    function = objective.function(fit)
    loss = float(function.value(r_M[None])[0])
    found: list[LeftOutOptimum] = []
    for g, theta_TP in enumerate(theta_GTP):
        rows = np.flatnonzero(group_R.reshape(-1) == g)
        without = objective.under(fit, theta_TP)
        minimum = minimize_objective(without, allowed, start_M=r_M)
        at_fit = float(function.value(minimum.r_M[None])[0])
        found.append(
            LeftOutOptimum(
                run_ids=tuple(fit.table.run_ids[i] for i in rows),
                left_out=Mixture.from_array(fit.domains, fit.table.r_RM[rows[0]]),
                mixture=Mixture.from_array(fit.domains, minimum.r_M),
                share_moved=float(np.abs(minimum.r_M - r_M).sum() / 2),
                loss_change=minimum.value - loss,
                regret=max(at_fit - loss, 0.0),
            )
        )
    return tuple(sorted(found, key=lambda one: (-one.share_moved, one.run_ids)))
