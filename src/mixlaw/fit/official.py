"""The third stage of the pipeline that Ye et al. released: 30 implicit domains, many restarts.

Their code fits networks that are such sums of exponentials, and boosts and restarts them: with more
parameters than runs, where a fit ends depends on where it starts, and the mean over restarts is
what predicts. Here each restart is a shrunk fit from another start that is stopped early, as theirs
are after a set number of steps; stopped later, it predicts no better (`docs/log.md`).

Shape letters: R runs, M training domains, T targets, K starts, P parameters.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mixlaw.errors import FitError
from mixlaw.fit.solver import Problems, minimize_problems
from mixlaw.fit.strength import spread
from mixlaw.laws.implicit import ImplicitDomainLaw

NUM_IMPLICIT = 30
"""Implicit domains of the released code."""
NUM_RESTARTS = 16
"""Seeds of the released code."""
SCALES = (1.0, 0.3, 0.1)
"""Scales of the residuals in turn, as shares of the losses' standard deviation. With the last one
alone, most runs would be outliers to a start, and stay so."""
EARLY = 0.1
"""A restart ends when its next step promises to lower the objective by no more than this share."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RestartedFit:
    """An implicit law fitted from several starts: the prediction is the mean over them."""

    law: ImplicitDomainLaw
    theta_TKP: Float[np.ndarray, "T K P"]

    def predict(self, r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, "R T"]:
        """Returns the mean over restarts of every target's loss."""
        return self.law.predict(r_RM, self.theta_TKP).mean(axis=1).T

    def disagreement(self, r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, "R T"]:
        """Returns the standard deviation over restarts: what the runs leave open."""
        return self.law.predict(r_RM, self.theta_TKP).std(axis=1).T


def fit_restarts(
    r_RM: Float[np.ndarray, "R M"],
    y_RT: Float[np.ndarray, "R T"],
    *,
    num_implicit: int = NUM_IMPLICIT,
    num_restarts: int = NUM_RESTARTS,
    seed: int = 0,
) -> RestartedFit:
    """Returns the implicit law fitted to each target from several starts.

    Args:
        r_RM: Mixtures.
        y_RT: Losses, in nats per token; NaN where there is none.
        num_implicit: Number of implicit domains.
        num_restarts: Number of starts.
        seed: Seed of the first start; the others count up from it.

    Raises:
        FitError: A target has losses of fewer than two mixtures, or there is no start.
    """
    least = int(np.isfinite(y_RT).sum(axis=0).min(initial=len(r_RM)))
    if least < 2 or num_restarts < 1:
        raise FitError(
            "restarts need two losses of each target and one start, found"
            f" {least} and {num_restarts}"
        )
    laws = [ImplicitDomainLaw(num_implicit, seed + k) for k in range(num_restarts)]
    start_TKP = np.stack([law.starts(r_RM, y_RT.T)[:, 0] for law in laws], axis=1)
    theta_BP = start_TKP.reshape(-1, start_TKP.shape[-1])
    for scale in SCALES:
        problems = Problems.of(
            laws[0], r_RM, y_RT.T, scale_B=scale * spread(y_RT.T), strength_B=np.ones(y_RT.shape[1])
        ).select(np.repeat(np.arange(y_RT.shape[1]), num_restarts))
        theta_BP = minimize_problems(problems, theta_BP, tolerance=EARLY).theta_BP
    return RestartedFit(law=laws[0], theta_TKP=theta_BP.reshape(start_TKP.shape))
