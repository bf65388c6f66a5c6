"""What extrapolation adds to the errors of a model: learned by holding out sizes and steps.

Shape letters: P points (a model size and a step), G mixtures, T targets, Q new points, B draws,
H hold-outs, S the two directions (log size, log area).

Beyond the runs nothing is exchangeable. Each larger size is predicted from smaller ones, and each
late window of steps from earlier ones. What these errors have beyond what the model itself
expects is taken as normal, and as growing in proportion to the log distance and to how fast the
loss falls in that direction: a part that all mixtures share, from the mean error over mixtures, and
a part of each mixture's own, from what is left. Both are called empirical.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mixlaw.fit.mixed import MixedModel
from mixlaw.fit.surface import Points

USUAL_EXCESS = 0.05
"""Scale of the half-normal prior: an error of this share of the slope per unit of log distance."""
STEP_SHARES = (0.45, 0.65)
"""Shares of the distinct steps that are fitted to predict the last one."""
HOLDOUT_DRAWS = 64
"""Draws that say how large an error of the mean over mixtures the model itself expects."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Excess:
    """The error beyond the runs, in log size and in log area."""

    share_S: Float[np.ndarray, " S"]
    """Standard deviation of what all mixtures share, as a share of the loss' slope times the log
    distance."""
    own_share_S: Float[np.ndarray, " S"]
    """Likewise, of what each mixture has for itself."""
    slopes_TS: Float[np.ndarray, "T S"]
    """How fast each target falls, in nats per unit of log size and log area."""
    size_range: tuple[float, float]
    last_area: float
    num_holdouts: tuple[int, int]

    def draw(
        self, points: Points, num_mixtures: int, *, num: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "B Q G S"]:
        """Returns draws of the error, in units of the slopes."""
        distance_QS = _distances(points, self.size_range, self.last_area)
        common_BS = rng.standard_normal((num, 2)) * self.share_S
        own_BGS = rng.standard_normal((num, num_mixtures, 2)) * self.own_share_S
        return (common_BS[:, None] + own_BGS)[:, None] * distance_QS[:, None]

    def sentence(self) -> str:
        """Returns what was learned, in words."""
        sizes, windows = self.num_holdouts
        return (
            f"error beyond the runs, from {sizes} sizes and {windows} windows of steps held out, in"
            f" shares of the loss' slope: {self.share_S[0]:.1%} per unit of log size"
            f" ({self.own_share_S[0]:.1%} for each mixture alone), {self.share_S[1]:.1%} per unit"
            f" of log area under the learning rate ({self.own_share_S[1]:.1%})"
        )


def learn_excess(
    points: Points,
    y_GPT: Float[np.ndarray, "G P T"],
    models: tuple[MixedModel, ...],
    *,
    fit: Callable[[Points, np.ndarray], MixedModel],
    seed: int,
) -> Excess:
    """Returns the error beyond the runs, learned on the mean of the targets.

    Args:
        points: Where the mixtures were observed.
        y_GPT: Losses.
        models: The fitted models, for their slopes.
        fit: Fits a model to some of the points.
        seed: Seed of the draws of each hold-out.
    """
    # Targets that are missing somewhere would shift the mean there.
    mean_GP = y_GPT.mean(axis=2)
    slopes_TS = np.stack([_slopes(model) for model in models])
    slope_S = slopes_TS.mean(axis=0)
    rng = np.random.default_rng(seed)
    shares: list[tuple[float, float]] = []
    counts: list[int] = []
    for direction, splits in enumerate((_size_splits(points), _step_splits(points))):
        found: list[_HoldOut] = []
        for fitted_P, held_P in splits:
            found += _hold_out(points, mean_GP, fit, fitted_P=fitted_P, held_P=held_P, rng=rng)
        shares.append(_excess_shares(found, slope_S[direction]))
        counts.append(len(found))
    return Excess(
        share_S=np.array([common for common, _ in shares]),
        own_share_S=np.array([own for _, own in shares]),
        slopes_TS=slopes_TS,
        size_range=(float(points.size_P.min()), float(points.size_P.max())),
        last_area=float(points.area_P.max()),
        num_holdouts=(counts[0], counts[1]),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _HoldOut:
    """Errors of one hold-out, and the variances that the model expects of them."""

    error: float
    """Mean over mixtures."""
    expected: float
    own_error_G: Float[np.ndarray, " G"]
    """Of each mixture, the mean over its points, less the mean over mixtures."""
    own_expected_G: Float[np.ndarray, " G"]
    distance: float
    """In log size or log area."""


def _distances(
    points: Points, size_range: tuple[float, float], last_area: float
) -> Float[np.ndarray, "Q S"]:
    log_size = np.log(points.size_P)
    low, high = np.log(size_range)
    beyond_size = np.maximum(log_size - high, 0) + np.maximum(low - log_size, 0)
    beyond_area = np.maximum(np.log(points.area_P / last_area), 0)
    return np.stack([beyond_size, beyond_area], axis=1)


def _slopes(model: MixedModel) -> Float[np.ndarray, " S"]:
    """Returns how fast the mean loss falls over the range of the runs, per unit of log."""
    points = model.points
    corner = np.array([points.size_P.min(), points.size_P.max()])
    ends = np.array([np.argmin(points.area_P), np.argmax(points.area_P)])
    sizes = points.take(np.array([0, 0, ends[0], ends[1]]))
    middle = model.reference.size
    at = Points(
        size_P=np.array([corner[0], corner[1], middle, middle]),
        step_P=np.array([-1.0, -1.0, *sizes.step_P[2:]]),
        area_P=np.array([model.reference.area] * 2 + list(sizes.area_P[2:])),
        rate_P=np.array([model.reference.rate] * 2 + list(sizes.rate_P[2:])),
    )
    loss_Q = model.predict(at).mean(axis=0)
    log_size, log_area = np.log(corner[1] / corner[0]), np.log(at.area_P[3] / at.area_P[2])
    return np.array(
        [
            (loss_Q[0] - loss_Q[1]) / log_size if log_size > 0 else 0.0,
            (loss_Q[2] - loss_Q[3]) / log_area if log_area > 0 else 0.0,
        ]
    )


def _size_splits(points: Points) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns splits that predict each larger size from at least two smaller ones."""
    sizes = np.unique(points.size_P)
    return [
        (points.size_P < size, points.size_P == held)
        for i, size in enumerate(sizes[2:], start=2)
        for held in sizes[i:]
    ]


def _step_splits(points: Points) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns splits that predict the last step that most sizes reached from earlier ones."""
    steps, counts = np.unique(points.step_P, return_counts=True)
    common = steps[counts >= 0.5 * len(np.unique(points.size_P))]
    if len(common) < 4:
        return []
    lasts = {max(2, int(np.ceil(share * len(common)))) for share in STEP_SHARES}
    return [
        (points.step_P <= common[count - 1], points.step_P == common[-1])
        for count in sorted(lasts)
        if count < len(common)
    ]


def _hold_out(
    points: Points,
    y_GP: np.ndarray,
    fit: Callable[[Points, np.ndarray], MixedModel],
    *,
    fitted_P: np.ndarray,
    held_P: np.ndarray,
    rng: np.random.Generator,
) -> list[_HoldOut]:
    """Returns how well some points are predicted from others; nothing where that can't be said."""
    known_G = np.isfinite(y_GP[:, fitted_P]).any(axis=1)
    truth_GQ = y_GP[known_G][:, held_P]
    # Mixtures without all of the points would shift the mean from one to the other.
    whole_G = np.isfinite(truth_GQ).all(axis=1)
    if whole_G.sum() < 3:
        return []
    inside, held = points.take(fitted_P), points.take(held_P)
    model = fit(inside, y_GP[known_G][:, fitted_P])
    error_G = (model.predict(held) - truth_GQ)[whole_G].mean(axis=1)
    value, vector = np.linalg.eigh(model.covariance_KK)
    spread_KK = (vector * np.sqrt(np.maximum(value, 0))).T
    shifts = rng.standard_normal((HOLDOUT_DRAWS // 4, len(value))) @ spread_KK
    drawn = [model.draw(held, model.theta_K + shift, num=4, rng=rng) for shift in shifts]
    drawn_BG = np.concatenate(drawn)[:, whole_G].mean(axis=2)
    mean_B = drawn_BG.mean(axis=1)
    size_range = (float(inside.size_P.min()), float(inside.size_P.max()))
    distance_QS = _distances(held, size_range, float(inside.area_P.max()))
    return [
        _HoldOut(
            float(error_G.mean()),
            float(mean_B.var()),
            error_G - error_G.mean(),
            (drawn_BG - mean_B[:, None]).var(axis=0),
            float(distance_QS.sum(axis=1).mean()),
        )
    ]


def _excess_shares(found: list[_HoldOut], slope: float) -> tuple[float, float]:
    """Returns the shares of the error that mixtures have in common, and of their own."""
    share = np.linspace(0.0, 6 * USUAL_EXCESS, 301)
    common = own = -0.5 * (share / USUAL_EXCESS) ** 2
    for one in found:
        extra = (share * slope * one.distance) ** 2 + 1e-12
        common = common + _log_density(np.array([one.error]), np.array([one.expected]), extra)
        own = own + _log_density(one.own_error_G, one.own_expected_G, extra)
    return _root_mean_square(share, common), _root_mean_square(share, own)


def _log_density(error_G: np.ndarray, expected_G: np.ndarray, extra: np.ndarray) -> np.ndarray:
    variance = expected_G + extra[:, None]
    return -0.5 * np.sum(np.log(variance) + error_G**2 / variance, axis=1)


def _root_mean_square(share: np.ndarray, log_density: np.ndarray) -> float:
    density = np.exp(log_density - log_density.max())
    return float(np.sqrt(np.sum(density * share**2) / density.sum()))
