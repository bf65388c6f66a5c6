r"""The critical proportion of continual pre-training: how much original data keeps the old loss.

A model goes on training on a share s of its original data and 1 - s of new data. Its loss on the
original targets falls with s; at the critical proportion it is what it was before (Ye et al. 2025,
arXiv:2403.16952, Section 4.2). 1 - s is the largest share of new data that costs nothing, the
critical mixture ratio of Gu et al. 2024 (arXiv:2407.17467).

The interval inverts a test: a share belongs to it if a law that meets the original loss there fits
the runs not significantly worse than the best one (profile likelihood, Student's t). Like
Fieller's, it is open where the runs can't bound it, and that is said.

Shape letters: T targets, S shares of original data.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq

from mixlaw.errors import OptimizeError
from mixlaw.fit.continual import Noise, NoisePrior, profile_squares
from mixlaw.fit.result import FitResult
from mixlaw.mixtures import Mixture
from mixlaw.optimize.continual_path import PathFit, SharePath, fit_path
from mixlaw.optimize.objective import WeightedLoss

Outcome = Literal["found", "always kept", "never kept"]

GRID = 1001
"""Shares at which the loss is compared with the original one."""
PROFILE = 21
"""Shares of the interval's profile over the whole line; as many lie around the estimate."""
CLOSE = 0.03
"""How far the second look reaches around both ends."""
CLOSE_POINTS = 7
"""Shares around each end on the second look."""
NEAR = 5.0
"""How far those reach, in standard errors times Student's t."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CriticalProportion:
    """The smallest share of original data at which the old loss is kept."""

    outcome: Outcome
    """Whether the loss crosses the original one along the line, or is kept or lost everywhere."""
    share: float | None
    """The share of original data; 0: kept without any; None: lost at any share."""
    low: float | None
    """Lower end of the interval, from 0 on; None: no noise is known."""
    high: float | None
    """Upper end; None: open, the runs don't rule out that the loss is lost at any share."""
    safe_share: float | None
    """Smallest share at which a single new run keeps the loss with the level's certainty (one-sided
    limit); None: none is known."""
    level: float
    original_loss: float
    tolerance: float
    """What may be lost, in the unit of the loss."""
    slope: float | None
    """Change of the loss per unit of share of original data at the critical one."""
    noise: Noise | None
    """What the interval's width comes from; None: nothing is known of it."""
    path: SharePath
    """The line of mixtures."""
    run_shares: tuple[float, ...]
    """Shares of original data that were run."""
    law: str
    is_monotone: bool
    """Whether the loss falls all along the line."""
    kept_until: float | None
    """The share above the critical one at which the loss is lost again; None: nowhere."""
    notes: tuple[str, ...]

    @property
    def new_share(self) -> float | None:
        """The largest share of new data at which the old loss is kept; None: none is small enough.

        The critical mixture ratio of arXiv:2407.17467.
        """
        return None if self.share is None else 1 - self.share

    @property
    def mixture(self) -> Mixture | None:
        """The mixture with the critical proportion; None: there is none."""
        return None if self.share is None else self.path.mixture(self.share)

    @property
    def is_identified(self) -> bool:
        """Whether the runs say how much original data is enough, or that no share is."""
        return self.high is not None or (self.outcome == "never kept" and self.low == 1.0)

    @property
    def is_beyond_runs(self) -> bool:
        """Whether it lies outside of the shares that were run."""
        first, last = self.run_shares[0], self.run_shares[-1]
        return self.share is None or not first <= self.share <= last

    def sentences(self) -> tuple[str, ...]:
        """Returns the answer, its interval and where that comes from, in sentences."""
        return (_answer(self), *_doubts(self), *self.notes)


def critical_proportion(
    fit: FitResult,
    original_loss: float,
    tolerance: float = 0.0,
    *,
    objective: WeightedLoss | Mapping[str, float],
    original: Sequence[str],
    new: Sequence[str] | None = None,
    level: float = 0.9,
    prior: NoisePrior | None = None,
) -> CriticalProportion:
    """Returns the smallest share of original data at which the old loss is kept.

    The fit's law is fitted anew to the weighted loss, by plain least squares: the shrunk fits of
    many targets would add up to one whose error nobody knows.

    Args:
        fit: A law fitted to runs that continue one model with several shares of original data.
        original_loss: The weighted loss of that model, before it goes on.
        tolerance: What may be lost, in the unit of the loss.
        objective: The old loss: weights of targets.
        original: Domains of the original data, in their own proportions as in the runs.
        new: Domains of the new data; all others by default.
        level: Level of the interval.
        prior: What was known of the noise between runs before.

    Raises:
        OptimizeError: Domains, tolerance or level make no sense.
        FitError: A target is not in the fit, or fewer than three shares were run.
    """
    weights = objective if isinstance(objective, WeightedLoss) else WeightedLoss(objective)
    weight_T = weights.row(fit)
    seed_sd = float(fit.seed_sd(weight_T[None])[0])
    line = fit_path(
        fit.law,
        fit.table,
        weight_T,
        path=SharePath.of(fit.table, original=original, new=new),
        prior=prior,
        shift=float(fit.level_shift_T @ weight_T),
        common_sd=0.0 if math.isnan(seed_sd) else math.sqrt(fit.seed_factor) * seed_sd,
    )
    return find_critical(line, original_loss, tolerance, level=level)


def find_critical(
    line: PathFit, original_loss: float, tolerance: float = 0.0, *, level: float = 0.9
) -> CriticalProportion:
    """Returns the critical proportion of a loss that is fitted along a line of mixtures.

    Raises:
        OptimizeError: Loss, tolerance or level make no sense.
    """
    _check(original_loss, tolerance, level)
    limit = original_loss + tolerance
    share_S = np.linspace(0.0, 1.0, GRID)
    above_S = line.losses(share_S) - limit
    outcome, share = _first_kept(line, limit, share_S, above_S)
    slope = None if share is None else _slope(line, share)
    low, high = _interval(line, limit, outcome=outcome, share=share, slope=slope, level=level)
    lost = None
    if share is not None:
        again = np.flatnonzero((share_S > share) & (above_S > 0))
        lost = float(share_S[again[0]]) if len(again) else None
    return CriticalProportion(
        outcome=outcome,
        share=share,
        low=low,
        high=high,
        safe_share=_safe_share(line, limit, share_S, above_S, level),
        level=level,
        original_loss=original_loss,
        tolerance=tolerance,
        slope=slope,
        noise=line.noise,
        path=line.path,
        run_shares=line.run_shares,
        law=line.fit.law.name,
        is_monotone=bool(np.all(np.diff(above_S) <= 1e-12)),
        kept_until=lost,
        notes=line.notes,
    )


def _first_kept(
    line: PathFit,
    limit: float,
    share_S: Float[np.ndarray, " S"],
    above_S: Float[np.ndarray, " S"],
) -> tuple[Outcome, float | None]:
    kept = np.flatnonzero(above_S <= 0)
    if not len(kept):
        return "never kept", None
    if kept[0] == 0:
        return "always kept", 0.0

    def above(share: float) -> float:
        return float(line.losses(np.array([share]))[0]) - limit

    low, high = float(share_S[kept[0] - 1]), float(share_S[kept[0]])
    return "found", float(brentq(above, low, high, xtol=1e-10))


def _slope(line: PathFit, share: float) -> float:
    ends = np.clip(np.array([share - 1e-5, share + 1e-5]), 0.0, 1.0)
    low, high = line.losses(ends)
    return float((high - low) / (ends[1] - ends[0]))


def _interval(
    line: PathFit,
    limit: float,
    *,
    outcome: Outcome,
    share: float | None,
    slope: float | None,
    level: float,
) -> tuple[float | None, float | None]:
    """Returns both ends; the upper one is None where it is open."""
    if line.noise is None:
        return None, None
    start = 1.0 if share is None else share
    share_S = _profile_shares(line, start, slope, level)
    root_S = _signed_roots(line, limit, share_S)
    if outcome == "found":
        root_S[share_S == start] = 0.0  # by definition; the solver's rounding aside
    bound = line.noise.quantile(level) * line.noise.sd
    low, high = _ends(share_S, root_S, outcome, start, bound)
    # Once more around the ends, where the coarse profile is only nearly straight.
    ends = [end for end in (low, high) if end is not None]
    near_S = np.concatenate([np.linspace(end - CLOSE, end + CLOSE, CLOSE_POINTS) for end in ends])
    near_S = np.setdiff1d(np.clip(near_S, 0.0, 1.0), share_S)
    share_S, order = np.unique(np.concatenate([share_S, near_S]), return_index=True)
    root_S = np.concatenate([root_S, _signed_roots(line, limit, near_S)])[order]
    return _ends(share_S, root_S, outcome, start, bound)


def _ends(
    share_S: Float[np.ndarray, " S"],
    root_S: Float[np.ndarray, " S"],
    outcome: Outcome,
    start: float,
    bound: float,
) -> tuple[float, float | None]:
    """Returns where a profile leaves the interval; below, at 0 at the latest."""
    low = None if outcome == "always kept" else _crossing(share_S, root_S, start, bound, -1)
    high = None if outcome == "never kept" else _crossing(share_S, root_S, start, -bound, +1)
    return low or 0.0, high


def _profile_shares(
    line: PathFit, start: float, slope: float | None, level: float
) -> Float[np.ndarray, " S"]:
    """Returns shares over the whole line, more around the estimate, the estimate among them."""
    shares = [np.linspace(0.0, 1.0, PROFILE), np.array([start])]
    if slope and line.noise is not None:
        error = float(line.sds(np.array([start]))[0]) / abs(slope)
        reach = NEAR * line.noise.quantile(level) * error
        shares.append(np.linspace(start - reach, start + reach, PROFILE))
    return np.unique(np.clip(np.concatenate(shares), 0.0, 1.0))


def _signed_roots(
    line: PathFit, limit: float, share_S: Float[np.ndarray, " S"]
) -> Float[np.ndarray, " S"]:
    """Returns roots of what the squares grow by; positive where the loss is above the limit.

    They are nearly straight in the share, so that few are needed. Noise that all runs have in
    common, of which their squares know nothing, adds to the variance of the expected loss.
    """
    rows_SM = line.rows(share_S)
    grown_S = profile_squares(line.fit, rows_SM, limit - line.shift)
    if line.common_sd and line.noise is not None:
        own_S = line.noise.sd**2 * np.maximum(line.fit.leverage(rows_SM), 1e-300)
        grown_S = grown_S / (1 + line.common_sd**2 / own_S)
    return np.sign(line.losses(share_S) - limit) * np.sqrt(grown_S)


def _crossing(
    share_S: Float[np.ndarray, " S"],
    root_S: Float[np.ndarray, " S"],
    start: float,
    bound: float,
    direction: Literal[-1, 1],
) -> float | None:
    """Returns where the roots first pass a bound, going one way from the start; None: nowhere."""
    order = np.flatnonzero(share_S * direction >= start * direction)[::direction]
    passed = (root_S[order] - bound) * direction < 0
    if not passed.any():
        return None
    first = int(np.argmax(passed))
    if first == 0:  # beyond it from the very start
        return float(share_S[order[0]])
    inner, outer = order[first - 1], order[first]
    part = (bound - root_S[inner]) / (root_S[outer] - root_S[inner])
    return float(share_S[inner] + part * (share_S[outer] - share_S[inner]))


def _safe_share(
    line: PathFit,
    limit: float,
    share_S: Float[np.ndarray, " S"],
    above_S: Float[np.ndarray, " S"],
    level: float,
) -> float | None:
    if line.noise is None:
        return None
    quantile = line.noise.quantile(2 * level - 1) if level > 0.5 else 0.0  # one-sided
    sd_S = np.hypot(line.sds(share_S), line.noise.sd)
    safe = np.flatnonzero(above_S + quantile * sd_S <= 0)
    return float(share_S[safe[0]]) if len(safe) else None


def _answer(found: CriticalProportion) -> str:
    """Returns the critical proportion and its interval in a sentence."""
    kept = f"the old loss of {found.original_loss:.5g}"
    if found.tolerance:
        kept += f", with {found.tolerance:.3g} to lose,"
    if found.share is None:
        return f"{kept} is lost at any share of original data"
    if found.outcome == "always kept":
        return f"{kept} is kept without any original data"
    return (
        f"{kept} is kept from {found.share:.1%} original data on: at most {1 - found.share:.1%}"
        " may be new"
    )


def _doubts(found: CriticalProportion) -> list[str]:
    sentences = [_interval_sentence(found)]
    if found.is_beyond_runs and found.outcome == "found":
        sentences.append(
            f"that is outside of the shares that were run, {found.run_shares[0]:.3g} to"
            f" {found.run_shares[-1]:.3g}: extrapolated by the law"
        )
    if found.outcome != "found":
        end = "lowest" if found.outcome == "always kept" else "highest"
        share = found.run_shares[0 if found.outcome == "always kept" else -1]
        sentences.append(
            f"the {end} share that was run is {share:.3g}: beyond it the law extrapolates"
        )
    if not found.is_monotone:
        sentences.append("the loss does not fall all along the line")
    if found.kept_until is not None:
        sentences.append(f"it is lost again at {found.kept_until:.1%} original data")
    if found.safe_share is not None:
        sentences.append(
            f"a single new run keeps it with {found.level:.0%} certainty from"
            f" {found.safe_share:.1%} original data on"
        )
    return sentences


def _interval_sentence(found: CriticalProportion) -> str:
    if found.noise is None:
        return (
            "not identified: no noise is known, since the runs leave the law no degree of freedom"
            " and none was repeated; run more shares or seeds, or state a prior of the noise"
        )
    source = f"; noise: {found.noise.sentence}"
    name = f"{found.level:.0%} interval"
    if found.high is not None:
        return f"{name} {found.low:.1%} to {found.high:.1%}{source}"
    if found.is_identified:
        return f"even on original data alone, at {found.level:.0%}{source}"
    return (
        f"not identified: it is at least {found.low:.1%}, but how much is enough the runs do not"
        f" say{source}"
    )


def _check(original_loss: float, tolerance: float, level: float) -> None:
    if not math.isfinite(original_loss):
        raise OptimizeError(f"the original loss must be finite, found {original_loss}")
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise OptimizeError(
            f"the tolerance must be finite and not negative, found {tolerance}",
            do="give what may be lost, in the unit of the loss",
        )
    if not 0 < level < 1:
        raise OptimizeError(f"the level of an interval must lie between 0 and 1, found {level:g}")
