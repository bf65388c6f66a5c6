"""The fit of a stack of laws, put together from the fits of its members.

Shape letters: R runs, T targets.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from mixlaw.fit.result import CONVERGED, FitResult, TargetStatus, evaluate_law
from mixlaw.fit.strength import LEAST_SCALE, spread
from mixlaw.laws.stack import StackedLaw


def stack_fits(law: StackedLaw, fits: Sequence[FitResult]) -> FitResult:
    """Returns the fit of a stack, from those of its members to one table under the same draws."""
    stacked = replace(
        fits[0],
        law=law,
        theta_TP=np.concatenate([fit.theta_TP for fit in fits], axis=-1),
        theta_loo_RTP=np.concatenate([fit.theta_loo_RTP for fit in fits], axis=-1),
        theta_draws_BTP=np.concatenate([fit.theta_draws_BTP for fit in fits], axis=-1),
        status=tuple(
            _join_status(law, statuses)
            for statuses in zip(*(fit.status for fit in fits), strict=True)
        ),
    )
    return replace(stacked, scale_T=_residual_scale(stacked))


def _join_status(law: StackedLaw, statuses: Sequence[TargetStatus]) -> TargetStatus:
    """Returns one status of a target from those of the members, each under its law's name."""
    named = list(zip((member.name for member in law.laws), statuses, strict=True))
    told = [f"{name}: {one.sentence}" for name, one in named if one.sentence != CONVERGED]
    return TargetStatus(
        target=statuses[0].target,
        converged=all(one.converged for one in statuses),
        sentence="; ".join(told) or CONVERGED,
        at_bound=tuple(f"{name}.{bound}" for name, one in named for bound in one.at_bound),
        num_starts=min(one.num_starts for one in statuses),
        starts_agreeing=min(one.starts_agreeing for one in statuses),
        strength=max(one.strength for one in statuses),
    )


def _residual_scale(fit: FitResult) -> Float[np.ndarray, " T"]:
    """Returns the robust scale of what the stack leaves of the losses it was fitted to."""
    off_RT = np.abs(fit.table.y_RT - evaluate_law(fit.law, fit.table.r_RM, fit.theta_TP))
    # 1.4826: a normal's standard deviation in median absolute deviations
    return np.maximum(1.4826 * np.nanmedian(off_RT, axis=0), LEAST_SCALE * spread(fit.table.y_RT.T))
