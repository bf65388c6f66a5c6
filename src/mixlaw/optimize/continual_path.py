"""The line of mixtures between original and new data, and one loss along it.

Shape letters: R runs, M training domains, T targets, S shares of original data.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mixlaw.errors import FitError, OptimizeError
from mixlaw.fit.continual import (
    CurveFit,
    MixtureMeans,
    Noise,
    NoisePrior,
    average_mixtures,
    fit_means,
    judge_noise,
)
from mixlaw.laws.base import MixingLaw
from mixlaw.laws.mixing import ExponentialLaw
from mixlaw.laws.stack import StackedLaw
from mixlaw.mixtures import Mixture
from mixlaw.observations import LossTable

ON_LINE = 0.01
"""Share of the tokens that may move between a run and the line; published shares are rounded."""
LEAST_SHARES = 3
"""Different shares of original data without which nothing is said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SharePath:
    """The mixtures s * original + (1 - s) * new, each part in proportions of its own."""

    original: Mixture
    """Proportions of the original data; new domains have share 0."""
    new: Mixture
    """Proportions of the new data; original domains have share 0."""

    @classmethod
    def of(
        cls,
        table: LossTable,
        *,
        original: Sequence[str],
        new: Sequence[str] | None = None,
    ) -> "SharePath":
        """Returns the line on which the runs lie: each part as it is in them, on average.

        Args:
            table: The runs.
            original: Domains of the original data.
            new: Domains of the new data; all others by default.

        Raises:
            OptimizeError: A domain is unknown or in both parts, or one part has no tokens.
        """
        others = tuple(name for name in table.domains if name not in original)
        parts = (tuple(original), others if new is None else tuple(new))
        _check_parts(table.domains, *parts)
        halves: list[Mixture] = []
        for part in parts:
            used = np.array([name in part for name in table.domains])
            total_M = np.where(used, table.r_RM, 0.0).sum(axis=0)
            if not total_M.sum() > 0:
                raise OptimizeError(f"no run has any tokens of {', '.join(part)}")
            halves.append(Mixture.from_array(table.domains, total_M / total_M.sum()))
        return cls(original=halves[0], new=halves[1])

    @property
    def domains(self) -> tuple[str, ...]:
        """All domains, in the order of the runs."""
        return self.original.names

    def rows(self, share_S: Float[np.ndarray, " S"]) -> Float[np.ndarray, "S M"]:
        """Returns the mixtures with these shares of original data."""
        old_M, new_M = self.original.array(), self.new.array(self.domains)
        return share_S[:, None] * old_M + (1 - share_S)[:, None] * new_M

    def mixture(self, share: float) -> Mixture:
        """Returns the mixture with this share of original data."""
        return Mixture.from_array(self.domains, self.rows(np.array([share]))[0])

    def shares(self, r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        """Returns the shares of original data."""
        return r_RM @ (self.original.array() > 0).astype(float)

    def distances(self, r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        """Returns which share of the tokens would have to move to get onto the line."""
        return np.abs(r_RM - self.rows(self.shares(r_RM))).sum(axis=1) / 2


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PathFit:
    """One loss along the line, and how far runs lie from it."""

    path: SharePath
    fit: CurveFit
    is_line: bool
    """Whether the law has two domains, original and new; otherwise all of them."""
    noise: Noise | None
    """None: nothing is known of it."""
    run_shares: tuple[float, ...]
    """Shares of original data of the fitted mixtures, sorted."""
    shift: float = 0.0
    """What a fresh seed is expected to add to the loss of the runs' shared one."""
    common_sd: float = 0.0
    """What a fresh seed does to all runs alike, where the runs share one; 0: it is in the noise."""
    notes: tuple[str, ...] = ()

    def rows(self, share_S: Float[np.ndarray, " S"]) -> Float[np.ndarray, "S M"]:
        """Returns the mixtures with these shares of original data, as the law takes them."""
        if self.is_line:
            return np.column_stack([share_S, 1 - share_S])
        return self.path.rows(share_S)

    def losses(self, share_S: Float[np.ndarray, " S"]) -> Float[np.ndarray, " S"]:
        """Returns the expected loss at shares of original data."""
        return self.fit.losses(self.rows(share_S)) + self.shift

    def sds(self, share_S: Float[np.ndarray, " S"]) -> Float[np.ndarray, " S"]:
        """Returns the standard errors of expected losses; NaN: the noise is not known."""
        if self.noise is None:
            return np.full(len(share_S), np.nan)
        variance_S = self.noise.sd**2 * self.fit.leverage(self.rows(share_S))
        return np.sqrt(variance_S + self.common_sd**2)

    def run_half_widths(
        self, share_S: Float[np.ndarray, " S"], *, level: float = 0.9
    ) -> Float[np.ndarray, " S"]:
        """Returns half-widths of the intervals of one new run; NaN: the noise is not known."""
        if self.noise is None:
            return np.full(len(share_S), np.nan)
        return self.noise.quantile(level) * np.hypot(self.sds(share_S), self.noise.sd)


def fit_path(
    law: MixingLaw,
    table: LossTable,
    weight_T: Float[np.ndarray, " T"],
    *,
    path: SharePath,
    prior: NoisePrior | None = None,
    noise: Noise | None = None,
    shift: float = 0.0,
    common_sd: float = 0.0,
) -> PathFit:
    """Returns one loss along a line of mixtures.

    Where all runs lie on the line, the law is one of two domains. Otherwise it is one of all
    domains and takes all runs, if they leave it a degree of freedom; if not, those on the line.

    Args:
        law: Which law; of a stack, M4 stands in.
        table: Losses of runs at one step.
        weight_T: Weights of the targets that make up the loss.
        path: The line.
        prior: What was known of the noise before.
        noise: The noise instead of what these runs say.
        shift: Expected difference of a fresh seed to the runs' shared one.
        common_sd: Noise of a fresh seed that these runs know nothing of.

    Raises:
        FitError: Fewer than three different shares, or no run has all weighted targets.
    """
    notes: list[str] = []
    if isinstance(law, StackedLaw):
        law = ExponentialLaw()
        notes.append("a stack of laws has no least squares of its own: M4 is fitted instead")
    line, is_line, told = _fit_runs(law, table, weight_T, path)
    shares_G = path.shares(_whole_rows(table, path, line, is_line=is_line))
    distinct = np.unique(np.round(shares_G, 6))
    if len(distinct) < LEAST_SHARES:
        raise FitError(
            f"runs must have at least {LEAST_SHARES} different shares of original data, found"
            f" {len(distinct)}",
            do="train or import runs with more shares of it; six are good, with replicates",
        )
    return PathFit(
        path=path,
        fit=line,
        is_line=is_line,
        noise=judge_noise(line, prior=prior) if noise is None else noise,
        run_shares=tuple(float(share) for share in distinct),
        shift=shift,
        common_sd=common_sd,
        notes=(*notes, *told),
    )


def _fit_runs(
    law: MixingLaw, table: LossTable, weight_T: Float[np.ndarray, " T"], path: SharePath
) -> tuple[CurveFit, bool, tuple[str, ...]]:
    """Returns the fit, whether it is one of two domains, and which runs were left out."""
    off_R = path.distances(table.r_RM)
    on_line = np.flatnonzero(off_R <= ON_LINE)
    share_R = path.shares(table.r_RM)
    two_R2 = np.column_stack([share_R, 1 - share_R])
    if len(on_line) < len(off_R):
        whole = fit_means(law, average_mixtures(table, weight_T))
        if whole.freedom > 0 or not len(on_line):
            return whole, False, ()
        note = (
            f"{len(off_R) - len(on_line)} of {len(off_R)} runs have other proportions within the"
            " original or the new data and are left out: they are too few for a law of all domains"
        )
        means = average_mixtures(table, weight_T, r_RM=two_R2, rows=on_line.tolist())
        return fit_means(law, means), True, (note,)
    return fit_means(law, average_mixtures(table, weight_T, r_RM=two_R2)), True, ()


def _whole_rows(
    table: LossTable, path: SharePath, fit: CurveFit, *, is_line: bool
) -> Float[np.ndarray, "G M"]:
    """Returns the fitted mixtures in all domains."""
    means: MixtureMeans = fit.means
    return path.rows(means.r_GM[:, 0]) if is_line else means.r_GM


def _check_parts(domains: Sequence[str], original: tuple[str, ...], new: tuple[str, ...]) -> None:
    for name in (*original, *new):
        if name not in domains:
            raise OptimizeError(
                f"{name!r} is no domain of the runs", do=f"the domains are {', '.join(domains)}"
            )
    both = sorted({*original} & {*new})
    if both:
        raise OptimizeError(f"a domain is original or new, but {both[0]!r} is named as both")
    if not original or not new:
        raise OptimizeError(
            "both original and new data must have a domain, found none of"
            f" {'the original' if not original else 'the new'}",
            do=f"the domains are {', '.join(domains)}",
        )
    rest = [name for name in domains if name not in (*original, *new)]
    if rest:
        raise OptimizeError(
            f"each domain must be original or new, but {rest[0]!r} is neither",
            do="name it as one of them",
        )
