r"""How far to trust a law beyond the runs that it was fitted to: rolling hold-outs.

Shape letters: R runs, T targets, H held-out losses.

Larger runs are predicted from smaller ones, again and again; the errors, in units of what each
target is like, choose the form of the law and teach how intervals have to grow with the distance.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linprog

from mixlaw.errors import FitError
from mixlaw.fit.overtraining import (
    LEAST_MULTIPLIER,
    LEAST_NOISE,
    ScaledRuns,
    fit_overtraining,
)

LEAST_SIZES = 3
"""Sizes that a hold-out must leave for the fit, where there are more: with two, everything rests on
the smallest models, and errors say little about fits to all."""
FAR = 5.0
"""Compute of a held-out run, at least, in units of the most that was fitted."""
COMPUTE_CUTS = 6
"""Hold-outs by compute, evenly in its logarithm."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ErrorGrowth:
    """How large log errors get with the distance: |error| <= scale (near + far distance).

    Learned from hold-outs, so it holds what the law gets wrong and the noise of a new run.
    """

    near: float
    far: float
    scale_T: Float[np.ndarray, " T"]
    """What the targets of one training set have of their own."""
    level: float

    def half_width(self, distance_R: Float[np.ndarray, " R"]) -> Float[np.ndarray, "T R"]:
        """Returns the half width of intervals of log losses."""
        return self.scale_T[:, None] * (self.near + self.far * distance_R)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeldOut:
    """Log errors of one form on runs that its fits had not seen, one entry per run and target."""

    error_H: Float[np.ndarray, " H"]
    distance_H: Float[np.ndarray, " H"]
    target_H: Int[np.ndarray, " H"]


def rolling_holdouts(runs: ScaledRuns, *, form: str) -> HeldOut:
    """Returns the errors of one form on larger runs, each predicted from smaller ones.

    Cuts are made at each size and at several amounts of compute, of which a held-out run needs
    `FAR` times more. Runs of a campaign that a fit had not seen, or short ones, are no test of it.
    """
    parts: list[tuple[np.ndarray, ...]] = []
    for fitted_R, held_R in _cuts(runs):
        part = runs.take(fitted_R)
        tested_R = held_R & np.isin(runs.campaign_R, [0, *part.campaign_R])
        if not tested_R.any():
            continue
        try:
            fit = fit_overtraining(part, form=form)
        except FitError:
            continue
        held = runs.take(tested_R)
        predicted_TR = fit.predict(held.params_R, held.tokens_R, held.campaign_R)
        error_TR = np.log(predicted_TR / held.y_TR)
        distance_R = fit.distance(held.params_R, held.tokens_R)
        shape = error_TR.shape
        parts.append(
            (
                error_TR.ravel(),
                np.broadcast_to(distance_R, shape).ravel(),
                np.broadcast_to(np.arange(shape[0])[:, None], shape).ravel(),
            )
        )
    if not parts:
        raise FitError("no run is much larger than enough others: nothing can be held out")
    error_H, distance_H, target_H = (np.concatenate(column) for column in zip(*parts, strict=True))
    seen_H = np.isfinite(error_H)
    return HeldOut(
        error_H=error_H[seen_H],
        distance_H=distance_H[seen_H],
        target_H=target_H[seen_H],
    )


def _cuts(runs: ScaledRuns) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields which runs are fitted and which are held out."""
    usable_R = runs.multiplier_R >= 2 * LEAST_MULTIPLIER * (1 - 1e-6)
    sizes = np.unique(runs.params_R)
    least = sizes[min(LEAST_SIZES, len(sizes) - 1) - 1]
    for size in sizes[(sizes >= least) & (sizes < sizes[-1])]:
        yield runs.params_R <= size, (runs.params_R > size) & usable_R
    enough = runs.flops_R[(runs.params_R >= least) & (runs.multiplier_R >= LEAST_MULTIPLIER)]
    low, high = float(enough.min()), float(runs.flops_R.max()) / FAR
    if high > low:
        for cut in np.geomspace(low, high, COMPUTE_CUTS):
            yield runs.flops_R <= cut, (runs.flops_R >= FAR * cut) & usable_R


def choose_form(held_out: Mapping[str, Sequence[HeldOut]]) -> str:
    """Returns the form with the least mean absolute log error over several training sets."""
    return min(held_out, key=lambda form: np.mean([mean_error(h) for h in held_out[form]]))


def mean_error(held_out: HeldOut) -> float:
    """Returns the mean absolute log error, every target counted alike."""
    size_H = np.abs(held_out.error_H)
    return float(
        np.mean([size_H[held_out.target_H == t].mean() for t in np.unique(held_out.target_H)])
    )


def learn_growth(
    held_out: Mapping[str, HeldOut], *, num_targets: int, level: float = 0.9
) -> dict[str, ErrorGrowth]:
    """Returns, by training set, the line that holds a share `level` of the hold-outs' errors.

    One line is drawn through all of them by quantile regression, in units of a scale per set and
    target: the geometric mean of its own hold-outs' and of that target's in all sets, as one set's
    hold-outs are few and hang together. The name "" has what a set without hold-outs takes.
    """
    own = {name: _growth_scale(h, num_targets) for name, h in held_out.items()}
    target_T = np.exp(np.mean([np.log(scale_T) for scale_T in own.values()], axis=0))
    scales = {name: np.sqrt(scale_T * target_T) for name, scale_T in own.items()}
    size_H = np.concatenate(
        [np.abs(h.error_H) / scales[s][h.target_H] for s, h in held_out.items()]
    )
    distance_H = np.concatenate([h.distance_H for h in held_out.values()])
    near, far = _quantile_line(distance_H, size_H, level)
    scales[""] = target_T
    return {
        name: ErrorGrowth(near=near, far=far, scale_T=scale_T, level=level)
        for name, scale_T in scales.items()
    }


def _growth_scale(held_out: HeldOut, num_targets: int) -> np.ndarray:
    """Returns the root mean square of error / (1 + distance) by target."""
    rate_H = held_out.error_H / (1 + held_out.distance_H)
    square_T = np.bincount(held_out.target_H, rate_H**2, num_targets)
    count_T = np.bincount(held_out.target_H, minlength=num_targets)
    everyone = float(np.mean(rate_H**2))
    mean_T = np.where(count_T > 0, square_T / np.maximum(count_T, 1), everyone)
    return np.sqrt(np.maximum(mean_T, LEAST_NOISE**2))


def _quantile_line(x_H: np.ndarray, y_H: np.ndarray, level: float) -> tuple[float, float]:
    """Returns the non-negative line that minimizes the quantile loss."""
    count = len(x_H)
    # y = near + far x + over - under, at a cost of level per over and 1 - level per under.
    cost = np.concatenate([[0.0, 0.0], np.full(count, level), np.full(count, 1 - level)])
    eye_HH = np.eye(count)
    design = np.hstack([np.ones((count, 1)), x_H[:, None], eye_HH, -eye_HH])
    found = linprog(cost, A_eq=design, b_eq=y_H, bounds=(0, None), method="highs")
    line = np.asarray(found.x, float)  # always there: any line of zeros and overs is feasible
    return float(line[0]), float(line[1])
