"""What an overall loss is composed of, where the losses of its parts were observed beside it.

The implicit law's domains have no shares of their own (`laws/implicit.py`): only losses that were
observed per target can tell what each target weighs.

Shape letters: R runs, T targets.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls

from mixlaw.errors import FitError

SUM_WEIGHT = 1e6
"""Weight of the equation that the shares sum to one: exact, for all purposes."""
LEAST_RANK = 1e-6
"""Singular values below this share of the largest don't count: targets that move together."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ShareFit:
    """Shares of the targets in an overall loss."""

    share_T: Float[np.ndarray, " T"]
    """Non-negative, summing to one."""
    is_identified: bool
    """Whether other shares would give another loss; if not, these are one choice of many."""
    largest_residual: float
    """Of the overall loss, in its unit: far above rounding, a part is missing from the targets."""


def estimate_shares(overall_R: Float[np.ndarray, " R"], y_RT: Float[np.ndarray, "R T"]) -> ShareFit:
    r"""Returns the shares s of $L = \sum_t s_t L_t$ by non-negative least squares.

    Args:
        overall_R: The overall loss of each run.
        y_RT: The losses of each run on its parts.

    Raises:
        FitError: A loss is missing.
    """
    if not (np.all(np.isfinite(overall_R)) and np.all(np.isfinite(y_RT))):
        raise FitError("shares need every run's loss on every target", do="drop the other runs")
    num_targets = y_RT.shape[1]
    left = np.vstack([y_RT, np.full((1, num_targets), SUM_WEIGHT)])
    right = np.append(overall_R, SUM_WEIGHT)
    share_T, _ = nnls(left, right)
    share_T = share_T / share_T.sum()
    # Shares move within sum s = 0: what is identified is seen there.
    spread_RT = y_RT @ (np.eye(num_targets) - 1 / num_targets)
    rank = np.linalg.matrix_rank(spread_RT, tol=LEAST_RANK * np.linalg.norm(spread_RT, 2))
    return ShareFit(
        share_T=share_T,
        is_identified=bool(rank >= num_targets - 1),
        largest_residual=float(np.abs(y_RT @ share_T - overall_R).max()),
    )
