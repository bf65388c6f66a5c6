"""The fit of a law of schedules to runs of one mixture and runs of several stages together.

Shape letters: R runs, S stages, M training domains, X = S M columns, T targets, P parameters.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from mixlaw.errors import FitError, MixtureError
from mixlaw.fit.fitted_runs import FITTED_ROLES, read_fitted
from mixlaw.fit.law import find_law, fit_table
from mixlaw.fit.result import FitResult, evaluate_law
from mixlaw.laws.base import MixingLaw
from mixlaw.laws.stack import StackedLaw
from mixlaw.laws.stages import NUM_EXTRA, StagedLaw, stage_columns
from mixlaw.mixtures import Mixture
from mixlaw.observations import LossTable, check_runs, decode_stages, loss_table

LEAST_STAGED = 4
"""Different schedules of several stages that a fit needs: k, d and b of each target, and one."""
SAME_END = 1e-3
"""Stages that end this close, in shares of the run, end together."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A mixture for each stage of a run."""

    fractions: tuple[float, ...]
    """Share of the run's tokens that each stage takes; they sum to one."""
    mixtures: tuple[Mixture, ...]
    """Token shares inside each stage, over the same domains."""

    def __post_init__(self) -> None:
        if not self.mixtures or len(self.fractions) != len(self.mixtures):
            raise MixtureError(
                f"a schedule needs one fraction per stage, found {len(self.fractions)} for"
                f" {len(self.mixtures)} mixtures"
            )
        check_fractions(self.fractions)
        for mixture in self.mixtures[1:]:
            mixture.array(self.mixtures[0].names)  # raises where the domains differ

    @classmethod
    def constant(cls, mixture: Mixture, fractions: Sequence[float] = (1.0,)) -> "Schedule":
        """Returns the schedule that keeps to one mixture."""
        return cls(tuple(fractions), (mixture,) * len(fractions))

    @property
    def names(self) -> tuple[str, ...]:
        """The domains."""
        return self.mixtures[0].names

    @property
    def ends(self) -> tuple[float, ...]:
        """Share of the tokens after which each stage ends."""
        return ends_of(self.fractions)

    @property
    def mean(self) -> Mixture:
        """Token shares of the whole run."""
        shares_SM = np.stack([mixture.array(self.names) for mixture in self.mixtures])
        return Mixture.from_array(self.names, np.array(self.fractions) @ shares_SM)

    def shares(self, ends: Sequence[float], domains: Sequence[str]) -> Float[np.ndarray, " X"]:
        """Returns the shares x of all tokens by stage and domain, for stages that end elsewhere.

        Raises:
            FitError: A stage of the schedule ends inside one of the given stages.
            MixtureError: The domains differ.
        """
        own = np.array(self.ends)
        for end in own:
            if np.min(np.abs(np.array(ends) - end)) > SAME_END:
                raise FitError(
                    f"a stage ends after {end:.3g} of the tokens, which is no end of the fit:"
                    f" {', '.join(f'{e:.3g}' for e in ends)}",
                    do="name the fractions when the law is fitted",
                )
        stage = np.searchsorted(own, np.array(ends) - SAME_END)
        rows = [self.mixtures[s].array(tuple(domains)) for s in stage]
        return (np.diff(ends, prepend=0.0)[:, None] * np.stack(rows)).ravel()

    def to_json(self) -> dict[str, Any]:
        """Returns the stages as plain values."""
        return {
            "stages": [
                {"fraction": fraction, "until": end, "proportions": dict(mixture)}
                for fraction, end, mixture in zip(
                    self.fractions, self.ends, self.mixtures, strict=True
                )
            ]
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScheduleError:
    """How far a prediction of the schedules that were run is off, on average."""

    name: str
    """What predicts: the law, without the schedule in question, or a simple rule."""
    target_mae: Mapping[str, float]
    """Mean absolute error by target."""
    mae: float
    """Mean over targets."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StagedFit:
    """A law of schedules, fitted to every target."""

    fit: FitResult
    """The fit over shares by stage and domain; a schedule is one row of these."""
    domains: tuple[str, ...]
    """Training domains."""
    ends: tuple[float, ...]
    """Share of the tokens after which the stages of the columns end."""
    errors: tuple[ScheduleError, ...]
    """Of schedules of several stages: the law's, each schedule left out, and those of simple
    rules."""
    num_staged: int
    """Runs of several stages that it was fitted to."""
    notes: tuple[str, ...]
    """Which runs were left out, in sentences."""

    @property
    def fractions(self) -> tuple[float, ...]:
        """Share of the tokens that each stage of the columns takes."""
        return tuple(np.diff(self.ends, prepend=0.0).tolist())

    @property
    def constant(self) -> FitResult:
        """The same fit as one of mixtures: what it says of runs that keep to one mixture."""
        fit, size = self.fit, len(self.domains)
        mean_RM = fit.table.r_RM.reshape(len(fit.table.r_RM), -1, size).sum(axis=1)
        law = fit.law
        return replace(
            fit,
            law=mixture_law(law),
            table=replace(fit.table, domains=self.domains, r_RM=mean_RM),
            theta_TP=mixture_parameters(law, fit.theta_TP, size),
            theta_loo_RTP=mixture_parameters(law, fit.theta_loo_RTP, size),
            theta_draws_BTP=mixture_parameters(law, fit.theta_draws_BTP, size),
        )

    def row(self, schedule: Schedule) -> Mixture:
        """Returns a schedule as a point of the simplex that the fit is over.

        Raises:
            FitError: A stage ends where none of the fit's does.
            MixtureError: The domains differ.
        """
        x_X = schedule.shares(self.ends, self.domains)
        return Mixture.from_array(self.fit.domains, x_X)

    def recency(self) -> dict[str, tuple[float, float, float]]:
        """Returns k of each target with the middle 90% of its draws; the mean over a stack."""
        weight_P = _recency_weights(self.fit.law, self.fit.theta_TP.shape[-1], len(self.domains))
        value_T, draws_BT = self.fit.theta_TP @ weight_P, self.fit.theta_draws_BTP @ weight_P
        low_T, high_T = np.quantile(draws_BT, [0.05, 0.95], axis=0)
        return {
            target: (float(value_T[i]), float(low_T[i]), float(high_T[i]))
            for i, target in enumerate(self.fit.targets)
        }


def fit_schedules(
    law: MixingLaw | str,
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    *,
    fractions: Sequence[float] | None = None,
    targets: Sequence[str] | None = None,
    num_draws: int = 200,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> StagedFit:
    """Returns a law of schedules fitted to runs of one mixture and of several stages together.

    Args:
        law: The law of mixtures that it is made of, or its name.
        runs: The runs table; `stages` tells the mixtures of those that have several.
        observations: The observation table; losses at the end of the runs count.
        fractions: Fractions of schedules that will be asked for, beside those of the runs.
        targets: Which targets; all by default.
        num_draws: Bootstrap draws, over schedules.
        seed: Seed of the bootstrap.
        on_progress: Called with the share that is done.

    Raises:
        TableError: The tables are not what they must be.
        FitError: There are too few schedules of several stages.
    """
    law = find_law(law)
    runs = check_runs(runs)
    found = read_fitted(runs.filter(pl.col("stages").is_null()), observations, targets=targets)
    staged, staged_of, notes = _read_staged(runs, observations, found.fitted)
    wanted = () if fractions is None else ends_of(fractions)
    ends = _union([wanted, *(schedule.ends for schedule in staged_of)])
    fitted = _widen(found.fitted, ends)
    table = _join(fitted, staged, staged_of, ends)
    compared = _append(table, _widen(found.compared, ends), roles_of=fitted)
    fit = fit_table(
        staged_law(law, ends),
        table,
        compared=compared,
        num_draws=num_draws,
        seed=seed,
        on_progress=on_progress,
    )
    first = len(found.fitted.run_ids)
    return StagedFit(
        fit=replace(fit, notes=(*found.notes, *notes)),
        domains=found.fitted.domains,
        ends=ends,
        errors=_compare(law, fit, found.fitted, staged, staged_of, first=first),
        num_staged=len(staged_of),
        notes=(*found.notes, *notes),
    )


def read_schedules(
    runs: pl.DataFrame, *, roles: Sequence[str] = FITTED_ROLES
) -> dict[str, Schedule]:
    """Returns the schedules of runs that have several stages, by run id."""
    runs = check_runs(runs).filter(pl.col("stages").is_not_null(), pl.col("role").is_in(roles))
    domains = [name.removeprefix("r:") for name in runs.columns if name.startswith("r:")]
    return {
        run_id: _schedule(decode_stages(text), domains)
        for run_id, text in runs.select("run_id", "stages").iter_rows()
    }


def staged_law(law: MixingLaw, ends: Sequence[float]) -> MixingLaw:
    """Returns a law of mixtures as one of schedules; of a stack, each member."""
    if isinstance(law, StackedLaw):
        members = tuple(StagedLaw(member, tuple(ends)) for member in law.laws)
        return StackedLaw(members, law.weights)
    return StagedLaw(law, tuple(ends))


def mixture_law(law: MixingLaw) -> MixingLaw:
    """Returns the law of mixtures that a law of schedules is made of."""
    if isinstance(law, StackedLaw):
        return StackedLaw(tuple(mixture_law(member) for member in law.laws), law.weights)
    return law.law if isinstance(law, StagedLaw) else law


def mixture_parameters(
    law: MixingLaw, theta_BP: Float[np.ndarray, "*B P"], num_domains: int
) -> Float[np.ndarray, "*B K"]:
    """Returns the parameters of `mixture_law` among those of a law of schedules."""
    if isinstance(law, StackedLaw):
        inner = law.laws[0]
        columns = num_domains * (len(inner.ends) if isinstance(inner, StagedLaw) else 1)
        parts = [part[..., :-NUM_EXTRA] for _, _, part in law.split(theta_BP, columns)]
        return np.concatenate(parts, axis=-1)
    return theta_BP[..., :-NUM_EXTRA]


def ends_of(fractions: Sequence[float]) -> tuple[float, ...]:
    """Returns the share of the tokens after which each stage ends.

    Raises:
        MixtureError: They are not positive numbers that sum to one.
    """
    check_fractions(fractions)
    sums = [math.fsum(fractions[: i + 1]) for i in range(len(fractions))]
    return (*sums[:-1], 1.0)


def check_fractions(fractions: Sequence[float]) -> None:
    """Raises where fractions of stages are not positive numbers that sum to one."""
    good = all(math.isfinite(f) and f > 0 for f in fractions)
    if not fractions or not good or abs(math.fsum(fractions) - 1.0) > 1e-6:
        raise MixtureError(
            "the fractions of a schedule's stages must be positive and sum to 1, found"
            f" {', '.join(f'{f:g}' for f in fractions) or 'none'}",
            do="give each stage's share of the run's tokens, for example: 0.8,0.2",
        )


def _schedule(stages: Sequence[tuple[int, Mixture]], domains: Sequence[str]) -> Schedule:
    last = stages[-1][0]
    ends = [end for end, _ in stages]
    fractions = tuple((end - start) / last for start, end in pairwise([0, *ends]))
    return Schedule(
        fractions,
        tuple(Mixture.of({d: m.get(d, 0.0) for d in domains}) for _, m in stages),
    )


def _read_staged(
    runs: pl.DataFrame, observations: pl.DataFrame, constant: LossTable
) -> tuple[LossTable, tuple[Schedule, ...], tuple[str, ...]]:
    """Returns losses and schedules of the runs of several stages that go with those of one."""
    runs = check_runs(runs)
    like = runs.filter(pl.col("run_id").is_in(list(constant.run_ids)))
    sizes = like["params_non_embedding"].unique().to_list()
    starts = like["parent_run_id"].unique().to_list()
    staged = runs.filter(pl.col("stages").is_not_null(), pl.col("role").is_in(FITTED_ROLES))
    alike = staged.filter(
        pl.col("params_non_embedding").is_null() | pl.col("params_non_embedding").is_in(sizes),
        pl.col("parent_run_id").eq_missing(pl.lit(starts[0], pl.String)),
    )
    at_end = [
        run_id
        for run_id, text in alike.select("run_id", "stages").iter_rows()
        if constant.step is None or decode_stages(text)[-1][0] == constant.step
    ]
    used = alike.filter(pl.col("run_id").is_in(at_end))
    table = None
    if used.height:
        table = loss_table(
            used, observations, targets=constant.targets, roles=FITTED_ROLES, step=constant.step
        )
    found = read_schedules(used)
    # By their stages: what was imported is known by the mixture of the whole run.
    names = () if table is None else tuple(_identity(found[run_id]) for run_id in table.run_ids)
    count = len(set(names))
    if table is None or count < LEAST_STAGED:
        raise FitError(
            f"a law of schedules needs at least {LEAST_STAGED} runs whose mixture changes on the"
            f" way, found {count} that end at the step of the others",
            do="train some with `mixlaw schedule --train`, as [schedule] in mixlaw.toml says, or"
            " import runs with a `stages` column",
        )
    left = staged.height - len(table.run_ids)
    notes = (
        f"{left} runs of several stages have another size, start or end than the others and are"
        " left out",
    )
    schedules = tuple(found[run_id] for run_id in table.run_ids)
    return replace(table, mixture_ids=names), schedules, notes if left else ()


def _identity(schedule: Schedule) -> str:
    ends = (
        f"{end:.6f} {m.mixture_id}" for end, m in zip(schedule.ends, schedule.mixtures, strict=True)
    )
    return "; ".join(ends)


def _union(all_ends: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Returns all ends of stages, those that are nearly the same once; the last one is 1."""
    kept: list[float] = []
    for end in sorted(end for ends in all_ends for end in ends):
        if 1 - end > SAME_END and (not kept or end - kept[-1] > SAME_END):
            kept.append(end)
    return (*kept, 1.0)


def _widen(table: LossTable, ends: Sequence[float]) -> LossTable:
    """Returns runs of one mixture as rows of shares by stage and domain."""
    fraction_S = np.diff(ends, prepend=0.0)
    x_RX = (fraction_S[:, None] * table.r_RM[:, None, :]).reshape(len(table.r_RM), -1)
    return replace(table, domains=stage_columns(table.domains, len(ends)), r_RM=x_RX)


def _join(
    constant: LossTable, staged: LossTable, schedules: Sequence[Schedule], ends: Sequence[float]
) -> LossTable:
    x_RX = np.stack([schedule.shares(ends, staged.domains) for schedule in schedules])
    return _append(constant, replace(staged, domains=constant.domains, r_RM=x_RX))


def _append(first: LossTable, other: LossTable, *, roles_of: LossTable | None = None) -> LossTable:
    """Returns the rows of both tables; `roles_of`: without those of the other that are in it."""
    known = () if roles_of is None else roles_of.run_ids
    other = other.select([i for i, run_id in enumerate(other.run_ids) if run_id not in known])
    return replace(
        first,
        run_ids=(*first.run_ids, *other.run_ids),
        mixture_ids=(*first.mixture_ids, *other.mixture_ids),
        seeds=(*first.seeds, *other.seeds),
        r_RM=np.vstack([first.r_RM, other.r_RM]),
        y_RT=np.vstack([first.y_RT, other.y_RT]),
        standard_error_RT=np.vstack([first.standard_error_RT, other.standard_error_RT]),
    )


def _compare(
    law: MixingLaw,
    fit: FitResult,
    constant: LossTable,
    staged: LossTable,
    schedules: Sequence[Schedule],
    *,
    first: int,
) -> tuple[ScheduleError, ...]:
    """Returns how well the law predicts schedules that it did not see, and how well rules do.

    The rules take the law of mixtures, fitted to the runs of one mixture, for the mixture of the
    whole run, or for that of the last stage.
    """
    plain = fit_table(law, constant, num_draws=1)
    mean_RM = np.stack([s.mean.array(constant.domains) for s in schedules])
    last_RM = np.stack([s.mixtures[-1].array(constant.domains) for s in schedules])
    off: dict[str, np.ndarray] = {"the law, schedule left out": fit.left_out_residual_RT[first:]}
    for name, r_RM in (("mean mixture", mean_RM), ("last stage only", last_RM)):
        off[name] = staged.y_RT - evaluate_law(plain.law, r_RM, plain.theta_TP)
    errors: list[ScheduleError] = []
    for name, residual_RT in off.items():
        mae_T = np.nanmean(np.abs(residual_RT), axis=0)
        by_target = dict(zip(fit.targets, map(float, mae_T), strict=True))
        errors.append(ScheduleError(name=name, target_mae=by_target, mae=float(np.mean(mae_T))))
    return tuple(errors)


def _recency_weights(law: MixingLaw, size: int, num_domains: int) -> Float[np.ndarray, " P"]:
    """Returns the weights that take k out of the parameters."""
    weight_P = np.zeros(size)
    if isinstance(law, StackedLaw):
        inner = law.laws[0]
        columns = num_domains * (len(inner.ends) if isinstance(inner, StagedLaw) else 1)
        for _, weight, index in law.split(np.arange(float(size)), columns):
            weight_P[int(index[-NUM_EXTRA])] = weight
    else:
        weight_P[-NUM_EXTRA] = 1.0
    return weight_P
