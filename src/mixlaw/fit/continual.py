r"""One loss along the shares of original data: its least squares, and what its noise is known from.

Shape letters: R runs, G mixtures, M training domains (two on a line: original and new), T targets,
P parameters, S points of a profile.

The loss that must be kept is one number per run, a weighted sum of targets. It is fitted directly
and without shrinkage, since its error is what counts: the shrunk fits of many targets would add up
to one whose error nobody knows. Replicates of a mixture enter as their mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from mixlaw.errors import FitError
from mixlaw.fit.solver import Problems, minimize_problems
from mixlaw.laws.base import MixingLaw
from mixlaw.observations import LossTable

FREE = 1e-7
"""Strength of the shrinkage: next to none, what no run decides stays finite."""
HELD = 1e5
"""Weight of the point that a profile's curve must go through, in weights of a run."""
ROUGH = 1e-6
"""Tolerance of a profile's fits, relative to their sum of squares."""
AT_ONCE = 64
"""Points of a profile that are fitted together: each adds a row to the data of all."""
MISFIT = 0.5
"""Quantile of F above which the scatter of mixtures around the law is more than replicates explain:
their own noise then says too little. Of 0.5, 0.75 and never, this one covers (docs/log.md)."""
LEAST_RANGE = 1e-12
"""Below this share of the losses' range squared a variance is rounding."""

Source = Literal["residuals", "replicates", "residuals and replicates", "checkpoints", "prior"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MixtureMeans:
    """One loss, averaged over the runs of each mixture."""

    r_GM: Float[np.ndarray, "G M"]
    loss_G: Float[np.ndarray, " G"]
    count_G: Float[np.ndarray, " G"]
    """Runs of each mixture."""
    replicate_squares: float
    """Sum of squares of runs around their mixture's mean."""
    replicate_freedom: int
    """Runs less mixtures. 0: no mixture was run twice."""

    @property
    def range(self) -> float:
        """Largest less smallest loss; never 0."""
        return max(float(np.ptp(self.loss_G)), 1e-12)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CurveFit:
    """A law's least squares to the means of mixtures."""

    law: MixingLaw
    means: MixtureMeans
    theta_P: Float[np.ndarray, " P"]
    squares: float
    """Weighted sum of squares of the means around the law."""
    num_parameters: int
    """Parameters that the runs can decide."""

    @property
    def freedom(self) -> int:
        """Residual degrees of freedom: mixtures less parameters."""
        return len(self.means.loss_G) - self.num_parameters

    def losses(self, r_SM: Float[np.ndarray, "S M"]) -> Float[np.ndarray, " S"]:
        """Returns the expected loss of mixtures."""
        return self.law.predict(r_SM, self.theta_P)

    def leverage(self, r_SM: Float[np.ndarray, "S M"]) -> Float[np.ndarray, " S"]:
        """Returns the variance of expected losses, in units of one run's variance."""
        jacobian_GP = self.law.jacobian(self.means.r_GM, self.theta_P)
        matrix_PP = jacobian_GP.T @ (self.means.count_G[:, None] * jacobian_GP)
        jacobian_SP = self.law.jacobian(r_SM, self.theta_P)
        inverse_PP = np.linalg.pinv(matrix_PP, rcond=1e-10, hermitian=True)
        return np.maximum(np.einsum("sp,pq,sq->s", jacobian_SP, inverse_PP, jacobian_SP), 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """How far one run lies from the law, and what that is known from."""

    source: Source
    sd: float
    """Standard deviation, in the unit of the loss."""
    freedom: float
    """Degrees of freedom; infinite: taken as known."""
    sentence: str

    def quantile(self, level: float) -> float:
        """Returns Student's t for a two-sided interval."""
        from scipy.stats import t  # takes half a second to import

        return float(t.ppf((1 + level) / 2, self.freedom))


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisePrior:
    """What was known of the noise between runs before these."""

    sd: float
    """Standard deviation between runs of one mixture, in the unit of the loss."""
    freedom: float = 5.0
    """Degrees of freedom that it is worth."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sd) and self.sd > 0 and self.freedom > 0):
            raise FitError(
                "a prior of the noise must have a positive standard deviation and degrees of"
                f" freedom, found {self.sd:g} and {self.freedom:g}"
            )


def average_mixtures(
    table: LossTable,
    weight_T: Float[np.ndarray, " T"],
    *,
    r_RM: Float[np.ndarray, "R M"] | None = None,
    rows: Sequence[int] | None = None,
) -> MixtureMeans:
    """Returns a weighted sum of targets, averaged over the runs of each mixture.

    Args:
        table: Losses of runs; a run that lacks a weighted target is left out.
        weight_T: Weights of the targets.
        r_RM: Shares instead of the table's own, of fewer domains for one.
        rows: Which runs; all by default.

    Raises:
        FitError: No run has all weighted targets.
    """
    used = np.flatnonzero(weight_T != 0)
    y_R = table.y_RT[:, used] @ weight_T[used]
    shares_RM = table.r_RM if r_RM is None else r_RM
    members: dict[str, list[int]] = {}
    for i in range(len(y_R)) if rows is None else rows:
        if math.isfinite(y_R[i]):
            members.setdefault(table.mixture_ids[i], []).append(i)
    if not members:
        raise FitError("no run has the losses of all targets that must be kept")
    groups = list(members.values())
    loss_G = np.array([float(np.mean(y_R[group])) for group in groups])
    return MixtureMeans(
        r_GM=np.stack([shares_RM[group[0]] for group in groups]),
        loss_G=loss_G,
        count_G=np.array([float(len(group)) for group in groups]),
        replicate_squares=sum(
            float(np.sum((y_R[group] - mean) ** 2))
            for group, mean in zip(groups, loss_G, strict=True)
        ),
        replicate_freedom=sum(len(group) - 1 for group in groups),
    )


def fit_means(law: MixingLaw, means: MixtureMeans) -> CurveFit:
    """Returns the least squares of a law, from all of its starts."""
    y_BR = means.loss_G[None]
    start_SP = law.starts(means.r_GM, y_BR)[0]
    count = len(start_SP)
    problems = Problems.of(
        law,
        means.r_GM,
        np.repeat(y_BR, count, axis=0),
        scale_B=np.full(count, _wide(means)),
        strength_B=np.full(count, FREE),
        weight_BR=np.tile(means.count_G, (count, 1)),
    )
    with threadpool_limits(limits=1):
        ends = minimize_problems(problems, start_SP)
    best = int(np.argmin(ends.objective_B))
    theta_P = ends.theta_BP[best]
    jacobian_GP = law.jacobian(means.r_GM, theta_P)
    return CurveFit(
        law=law,
        means=means,
        theta_P=theta_P,
        squares=float(means.count_G @ (means.loss_G - law.predict(means.r_GM, theta_P)) ** 2),
        num_parameters=_count_parameters(jacobian_GP),
    )


def profile_squares(
    fit: CurveFit, r_SM: Float[np.ndarray, "S M"], loss: float
) -> Float[np.ndarray, " S"]:
    """Returns by how much the sum of squares grows when the law must have a loss at each mixture.

    Each is a fit with one more point, whose weight is so large that the curve goes through it.
    """
    parts = [
        _held_squares(fit, r_SM[first : first + AT_ONCE], loss)
        for first in range(0, len(r_SM), AT_ONCE)
    ]
    return np.maximum(np.concatenate(parts) - fit.squares, 0.0)


def _held_squares(
    fit: CurveFit, r_SM: Float[np.ndarray, "S M"], loss: float
) -> Float[np.ndarray, " S"]:
    means, law = fit.means, fit.law
    count, runs = len(r_SM), len(means.loss_G)
    weight_BR = np.zeros((count, runs + count))
    weight_BR[:, :runs] = means.count_G
    weight_BR[np.arange(count), runs + np.arange(count)] = HELD
    problems = Problems.of(
        law,
        np.vstack([means.r_GM, r_SM]),
        np.tile(np.concatenate([means.loss_G, np.full(count, loss)]), (count, 1)),
        scale_B=np.full(count, _wide(means)),
        strength_B=np.full(count, FREE),
        weight_BR=weight_BR,
    )
    with threadpool_limits(limits=1):
        ends = minimize_problems(problems, np.tile(fit.theta_P, (count, 1)), tolerance=ROUGH)
    return 2 * ends.objective_B * _wide(means) ** 2


def judge_noise(fit: CurveFit, *, prior: NoisePrior | None = None) -> Noise | None:
    """Returns how far runs lie from the law, from all that is known; None: nothing is.

    Mixtures scatter around the law by the noise of their runs and by what the law can't follow.
    Replicates tell the two apart. Where they explain the scatter, both are pooled; where they
    don't, the mixtures' scatter alone is taken, with its few degrees of freedom.
    """
    means = fit.means
    freedom, rounding = fit.freedom, LEAST_RANGE * means.range**2
    if freedom <= 0:
        found = replicate_noise(means)
    else:
        squares = max(fit.squares, rounding)
        variance = squares / freedom
        found = _residual_noise(math.sqrt(variance), freedom, means)
        if means.replicate_freedom:
            from scipy.stats import f  # takes half a second to import

            own = max(means.replicate_squares / means.replicate_freedom, rounding)
            limit = float(f.ppf(MISFIT, freedom, means.replicate_freedom))
            if variance <= limit * own:
                both = freedom + means.replicate_freedom
                found = _pooled_noise(
                    math.sqrt((squares + means.replicate_squares) / both), both, fit
                )
    return found if prior is None else with_prior(found, prior)


def replicate_noise(means: MixtureMeans) -> Noise | None:
    """Returns the noise between runs of one mixture; None: no mixture was run twice."""
    freedom = means.replicate_freedom
    if not freedom:
        return None
    sd = math.sqrt(max(means.replicate_squares / freedom, LEAST_RANGE * means.range**2))
    return Noise(
        source="replicates",
        sd=sd,
        freedom=float(freedom),
        sentence=f"runs of one mixture differ by {sd:.2g} ({_freedom_words(freedom)}); what the law"
        " can't follow is not in it",
    )


def with_prior(noise: Noise | None, prior: NoisePrior) -> Noise:
    """Returns the noise when a stated prior adds its degrees of freedom."""
    own = 0.0 if noise is None else noise.freedom
    squares = prior.freedom * prior.sd**2 + (0.0 if noise is None else own * noise.sd**2)
    freedom = prior.freedom + own
    sd = math.sqrt(squares / freedom)
    seen = "" if noise is None else f", and {noise.sd:.2g} from the {noise.source} ({own:.3g})"
    return Noise(
        source="prior",
        sd=sd,
        freedom=float(freedom),
        sentence=f"a stated prior of {prior.sd:.2g}, worth {prior.freedom:.3g} degrees of freedom"
        f"{seen}: {sd:.2g} together",
    )


def _residual_noise(sd: float, freedom: int, means: MixtureMeans) -> Noise:
    count = len(means.loss_G)
    poor = ": next to nothing is known of it" if freedom == 1 else ""
    return Noise(
        source="residuals",
        sd=sd,
        freedom=float(freedom),
        sentence=f"the {count} mixtures lie {sd:.2g} from the law"
        f" ({_freedom_words(freedom)}{poor})",
    )


def _pooled_noise(sd: float, freedom: int, fit: CurveFit) -> Noise:
    return Noise(
        source="residuals and replicates",
        sd=sd,
        freedom=float(freedom),
        sentence=f"runs lie {sd:.2g} from the law ({_freedom_words(freedom)}:"
        f" {fit.freedom} of the mixtures, {fit.means.replicate_freedom} of replicates)",
    )


def _wide(means: MixtureMeans) -> float:
    """Returns a scale so large that no residual is an outlier: Huber's loss is plain squares."""
    return 10 * means.range


def _freedom_words(freedom: int) -> str:
    return "1 degree of freedom" if freedom == 1 else f"{freedom} degrees of freedom"


def _count_parameters(jacobian_GP: Float[np.ndarray, "G P"]) -> int:
    """Returns how many parameters the mixtures can tell apart."""
    size_P = np.linalg.norm(jacobian_GP, axis=0)
    scaled_GP = jacobian_GP / np.where(size_P > 0, size_P, 1.0)
    return int(np.linalg.matrix_rank(scaled_GP, tol=1e-9))
