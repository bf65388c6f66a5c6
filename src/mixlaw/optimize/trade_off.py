"""Old loss against new loss, along the share of original data.

Shape letters: S shares of original data.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mixlaw.optimize.continual_path import PathFit

POINTS = 41
"""Shares on a curve."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TradeOff:
    """The old and the new loss at each share of original data, with intervals of their means."""

    share_S: Float[np.ndarray, " S"]
    """Shares of original data, from the least to the largest that was run."""
    old_S: Float[np.ndarray, " S"]
    old_half_S: Float[np.ndarray, " S"]
    """Half-widths of the intervals; NaN: the noise is not known."""
    new_S: Float[np.ndarray, " S"]
    new_half_S: Float[np.ndarray, " S"]
    level: float

    def at(self, share: float) -> tuple[float, float]:
        """Returns old and new loss at a share between those that were run."""
        old = float(np.interp(share, self.share_S, self.old_S))
        return old, float(np.interp(share, self.share_S, self.new_S))


def trade_losses(old: PathFit, new: PathFit, *, level: float = 0.9) -> TradeOff:
    """Returns the trade-off between two losses that were fitted along one line of mixtures."""
    share_S = np.linspace(
        max(old.run_shares[0], new.run_shares[0]),
        min(old.run_shares[-1], new.run_shares[-1]),
        POINTS,
    )
    return TradeOff(
        share_S=share_S,
        old_S=old.losses(share_S),
        old_half_S=_half_widths(old, share_S, level),
        new_S=new.losses(share_S),
        new_half_S=_half_widths(new, share_S, level),
        level=level,
    )


def _half_widths(
    line: PathFit, share_S: Float[np.ndarray, " S"], level: float
) -> Float[np.ndarray, " S"]:
    if line.noise is None:
        return np.full(len(share_S), np.nan)
    return line.noise.quantile(level) * line.sds(share_S)
