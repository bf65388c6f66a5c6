"""What the other laws would choose: those that predict as well, within one standard error.

Shape letters: M training domains.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from mixlaw.fit.result import FitResult
from mixlaw.fit.strength import choose_strength, solve_starts, try_strengths
from mixlaw.laws.base import MixingLaw
from mixlaw.laws.library import MIXING_LAWS
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.optimize.objective import Objective
from mixlaw.optimize.region import Region
from mixlaw.optimize.solver import minimize_objective
from mixlaw.selection import LawChoice


@dataclass(frozen=True, kw_only=True, slots=True)
class LawOptimum:
    """The optimum of another law that predicts as well, and what the two think of each other."""

    law: str
    mixture: Mixture
    loss: float
    """Its own prediction of the objective at its own optimum."""
    loss_here: float
    """Its prediction at the optimum of the fitted law."""
    fitted_loss: float
    """The fitted law's prediction at its optimum."""
    excess: float
    """What its optimum costs under the fitted law: `fitted_loss` less the fitted optimum's."""
    share_moved: float
    """Share of the tokens by which the two optima differ."""

    @property
    def regret(self) -> float:
        """What the fitted law's optimum costs if this law is right."""
        return self.loss_here - self.loss


def tied_laws(choice: LawChoice) -> tuple[str, ...]:
    """Returns the laws whose left-out error lies within one standard error of the least."""
    eligible = [score for score in choice.scores if score.name in choice.laws]
    if not eligible:
        return ()
    least = min(score.error for score in eligible)
    tied = [score for score in eligible if score.error - least <= score.standard_error]
    return tuple(score.name for score in sorted(tied, key=lambda score: score.error))


def fit_rivals(fit: FitResult, choice: LawChoice) -> tuple[FitResult, ...]:
    """Returns the other laws within one standard error, fitted to the same losses.

    What matters is what they predict, not how sure they are: there are no refits, and the fitted
    parameters stand for the one draw and for each left-out fit.
    """
    names = [name for name in tied_laws(choice) if name in MIXING_LAWS and name != fit.law.name]
    return tuple(_fit_alone(MIXING_LAWS[name], fit) for name in names)


def _fit_alone(law: MixingLaw, fit: FitResult) -> FitResult:
    """Returns another law fitted to the losses of a fit, as `fit_law` would, without refits."""
    r_RM, y_TR = fit.table.r_RM, fit.table.y_RT.T
    with threadpool_limits(limits=1):
        chosen = choose_strength(try_strengths(law, r_RM, y_TR))
        theta_TP = solve_starts(
            law,
            r_RM,
            y_TR,
            scale_B=chosen.scale_B,
            strength_B=chosen.strength_B,
            start_BSP=np.concatenate([chosen.theta_BP[:, None], law.starts(r_RM, y_TR)], axis=1),
        ).theta_BP
    return replace(
        fit,
        law=law,
        theta_TP=theta_TP,
        theta_loo_RTP=np.broadcast_to(theta_TP, (len(r_RM), *theta_TP.shape)),
        theta_draws_BTP=theta_TP[None],
        scale_T=chosen.scale_B,
        level_draws_BT=None,
    )


def compare_rivals(
    fit: FitResult,
    objective: Objective,
    allowed: Region | CappedSimplex,
    *,
    r_M: Float[np.ndarray, " M"],
    rivals: Sequence[FitResult],
) -> tuple[LawOptimum, ...]:
    """Returns the optimum of each rival, and how far it lies from the fitted law's.

    Args:
        fit: The fitted law.
        objective: What is minimised, under every law.
        allowed: The allowed mixtures.
        r_M: The fitted law's optimum.
        rivals: Other laws, fitted to the same losses.
    """
    function = objective.function(fit)
    found: list[LawOptimum] = []
    for rival in rivals:
        theirs = objective.function(rival)
        minimum = minimize_objective(theirs, allowed, start_M=r_M)
        pair_2M = np.stack([minimum.r_M, r_M])
        own_2, fitted_2 = theirs.value(pair_2M), function.value(pair_2M)
        found.append(
            LawOptimum(
                law=rival.law.name,
                mixture=Mixture.from_array(fit.domains, minimum.r_M),
                loss=float(own_2[0]),
                loss_here=float(own_2[1]),
                fitted_loss=float(fitted_2[0]),
                excess=float(fitted_2[0] - fitted_2[1]),
                share_moved=float(np.abs(minimum.r_M - r_M).sum() / 2),
            )
        )
    return tuple(found)
