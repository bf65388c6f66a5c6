"""The best schedule of mixtures, and what it is expected to gain over the best constant mixture.

Shape letters: R runs, S stages, M training domains, X = S M columns, T targets, B bootstrap draws,
K rows of a curvature.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from mixlaw.fit.result import FitResult
from mixlaw.fit.stages import (
    Schedule,
    ScheduleError,
    StagedFit,
    ends_of,
    mixture_law,
    staged_law,
)
from mixlaw.laws.stages import stage_columns
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.optimize.interval import LEVEL, Gain
from mixlaw.optimize.objective import LossSum, Objective, RelativeLoss
from mixlaw.optimize.objectives_risk import WorstLoss
from mixlaw.optimize.region import Region
from mixlaw.optimize.schedule_gain import judge_schedule
from mixlaw.optimize.schedule_region import schedule_region
from mixlaw.optimize.schedule_ties import break_ties
from mixlaw.optimize.solver import minimize_draws, minimize_objective
from mixlaw.predict import Prediction
from mixlaw.selection.schedules import predict_schedules

CERTIFIED_GAP = 1e-6
"""A gap below this, in the objective's unit, is called certified."""
CONSTANT = "best constant mixture"
"""The baseline that every schedule is judged against first."""
CHANGED = 1e-4
"""A schedule whose stages differ by less than this share is constant."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScheduleOptimum:
    """The best schedule under a fitted law of schedules, with what is needed to judge it."""

    schedule: Schedule
    constant: Mixture
    """The best constant mixture under the same law and constraints."""
    objective: Objective
    loss: tuple[float, float, float]
    """Predicted objective of the schedule: value, and the interval of one new run."""
    constant_loss: tuple[float, float, float]
    """That of the best constant mixture."""
    target_losses: Mapping[str, tuple[float, float, float]]
    """Predicted loss of each target under the schedule: value, low, high."""
    constant_target_losses: Mapping[str, tuple[float, float, float]]
    gap: float
    """No allowed schedule is lower than the loss less this under the law, if it is convex."""
    is_convex: bool
    moved: float
    """Share of the tokens that breaking ties moved, towards one mixture: schedules on that way are
    as good. 0: there are no ties."""
    proportion_range: tuple[Mapping[str, tuple[float, float]], ...]
    """By stage: the middle 90% of each proportion's optimum over the bootstrap draws."""
    gains: tuple[Gain, ...]
    """Over the best constant mixture first, then over each baseline."""
    prices: Mapping[str, float]
    """What each binding constraint costs: change of the objective per unit of its limit."""
    errors: tuple[ScheduleError, ...]
    """How well the law predicts schedules that it did not see, and how well simple rules do."""
    recency: Mapping[str, tuple[float, float, float]]
    """k of each target, low and high: a token at the end of a run counts e^k times one at its
    beginning."""
    num_staged: int
    """Runs of several stages behind it."""
    level: float
    notes: tuple[str, ...]

    @property
    def is_constant(self) -> bool:
        """Whether all stages have the same mixture."""
        shares_SM = np.stack([m.array(self.schedule.names) for m in self.schedule.mixtures])
        return bool(np.ptp(shares_SM, axis=0).max() < CHANGED)

    @property
    def verdict(self) -> str:
        """What the first gain says: gain, no evidence or loss."""
        return self.gains[0].verdict

    @property
    def certificate(self) -> str:
        """What is proven about the optimum, in a sentence."""
        if not self.is_convex:
            return "not certified: the law is not convex, a lower schedule may lie elsewhere"
        if self.gap > CERTIFIED_GAP:
            return f"not certified: a schedule could be {self.gap:.2g} lower under this law"
        return (
            f"certified: no allowed schedule is more than {max(self.gap, 1e-9):.1g} lower under"
            " this law; a certificate is about the law, not about the world"
        )


def optimize_schedule(
    staged: StagedFit,
    objective: Objective,
    allowed: Region | CappedSimplex,
    *,
    fractions: Sequence[float],
    stage_floors: Mapping[str, float] | None = None,
    stage_caps: Mapping[str, float] | None = None,
    baselines: Mapping[str, Mixture] | None = None,
) -> ScheduleOptimum:
    """Returns the schedule with the least objective whose whole run is an allowed mixture.

    Args:
        staged: A fitted law of schedules.
        objective: What is minimised.
        allowed: Limits of the mixture of the whole run, over the domains of the fit.
        fractions: Share of the tokens that each stage takes.
        stage_floors: Least share of a domain inside each stage; by default the least that a stage
            of any run had, so that nothing is extrapolated.
        stage_caps: Largest share of a domain inside each stage.
        baselines: Constant mixtures that the schedule is compared with as well, by name.

    Raises:
        FitError: A stage ends where none of the fit's does, or a target is not in the fit.
        OptimizeError: The constraints conflict, or the search failed.
    """
    whole = Region.of(allowed).reordered(staged.domains)
    view = schedule_view(staged, fractions)
    region = schedule_region(
        whole,
        fractions,
        stage_floors=_seen_floors(staged, whole) if stage_floors is None else stage_floors,
        stage_caps=stage_caps,
        runs_RX=view.table.r_RM,
    )
    on_stages = _on_schedules(objective, staged.domains, fractions)
    function = on_stages.function(view)
    constant = minimize_objective(objective.function(staged.constant), whole)
    constant_X = _repeat(constant.r_M, fractions)
    found = minimize_objective(function, region, start_M=constant_X)
    x_X = found.r_M
    if isinstance(function, LossSum):
        x_X = break_ties(function, region, x_X, fractions=fractions)
    value_2 = function.value(np.stack([x_X, constant_X]))
    constant_BM = minimize_draws(objective, staged.constant, whole, start_M=constant.r_M)
    chosen_BX = minimize_draws(on_stages, view, region, start_M=x_X)
    schedule = _to_schedule(x_X, staged.domains, fractions)
    best_constant = Mixture.from_array(staged.domains, constant.r_M)
    pair = (schedule, Schedule.constant(best_constant, fractions))
    each = predict_schedules(staged, pair)
    weights = _named(on_stages.weights_at(view, x_X), view.targets)
    both = predict_schedules(staged, pair, weights)
    half_2 = (both.high_RK - both.low_RK)[:, 0] / 2
    on_fit = _on_schedules(objective, staged.domains, staged.fractions)
    judged = {CONSTANT: (constant.r_M, constant_BM)}
    for name, mixture in (baselines or {}).items():
        r_M = mixture.array(staged.domains)
        judged[name] = (r_M, np.broadcast_to(r_M, constant_BM.shape))
    return ScheduleOptimum(
        schedule=schedule,
        constant=best_constant,
        objective=objective,
        loss=_interval(value_2[0], half_2[0]),
        constant_loss=_interval(value_2[1], half_2[1]),
        target_losses=_by_target(each, 0),
        constant_target_losses=_by_target(each, 1),
        gap=max(float(value_2[0]) - found.value + found.gap, 0.0),
        is_convex=function.is_convex,
        moved=float(np.abs(x_X - found.r_M).sum() / 2),
        proportion_range=_ranges(chosen_BX, staged.domains, fractions),
        gains=tuple(
            judge_schedule(
                staged.fit,
                on_fit,
                name=name,
                baseline_X=_repeat(r_M, staged.fractions),
                best_X=_expand(x_X, staged, fractions),
                baseline_BX=_repeat(r_BM, staged.fractions),
                best_BX=_expand(chosen_BX, staged, fractions),
            )
            for name, (r_M, r_BM) in judged.items()
        ),
        prices={name.text: price for name, price in found.prices.items() if name.kind != "group"},
        errors=staged.errors,
        recency=staged.recency(),
        num_staged=staged.num_staged,
        level=LEVEL,
        notes=staged.notes,
    )


def schedule_view(staged: StagedFit, fractions: Sequence[float]) -> FitResult:
    """Returns the fit over the shares of a schedule with these stages.

    Raises:
        FitError: A stage ends where none of the fit's does.
    """
    uniform = Schedule.constant(Mixture.uniform(staged.domains), fractions)
    uniform.shares(staged.ends, staged.domains)  # raises where a stage ends elsewhere
    ends = ends_of(fractions)
    fit, size = staged.fit, len(staged.domains)
    stage_E = np.searchsorted(np.array(ends), np.array(staged.ends) - 1e-3)
    inner_RSM = fit.table.r_RM.reshape(len(fit.table.r_RM), -1, size)
    inside_SE = (stage_E == np.arange(len(ends))[:, None]).astype(np.float64)
    sums_RSM = np.einsum("se,rem->rsm", inside_SE, inner_RSM)
    return replace(
        fit,
        law=staged_law(mixture_law(fit.law), ends),
        table=replace(
            fit.table,
            domains=stage_columns(staged.domains, len(ends)),
            r_RM=sums_RSM.reshape(len(inner_RSM), -1),
        ),
    )


def _expand(
    x_BX: Float[np.ndarray, "*B X"], staged: StagedFit, fractions: Sequence[float]
) -> Float[np.ndarray, "*B E"]:
    """Returns schedules over the stages of the fit, which may divide those of the schedule."""
    ends, fine = np.array(ends_of(fractions)), np.array(staged.ends)
    stage_E = np.searchsorted(ends, fine - 1e-3)
    share_E = np.diff(fine, prepend=0.0) / np.array(fractions)[stage_E]
    x_BSM = x_BX.reshape(*x_BX.shape[:-1], len(ends), -1)
    return (share_E[:, None] * x_BSM[..., stage_E, :]).reshape(*x_BX.shape[:-1], -1)


def _repeat(
    r_BM: Float[np.ndarray, "*B M"], fractions: Sequence[float]
) -> Float[np.ndarray, "*B X"]:
    """Returns constant schedules."""
    x_BSM = np.array(fractions)[:, None] * r_BM[..., None, :]
    return x_BSM.reshape(*r_BM.shape[:-1], -1)


def _to_schedule(
    x_X: Float[np.ndarray, " X"], domains: tuple[str, ...], fractions: Sequence[float]
) -> Schedule:
    shares_SM = x_X.reshape(len(fractions), -1) / np.array(fractions)[:, None]
    return Schedule(
        tuple(float(f) for f in fractions),
        tuple(Mixture.from_array(domains, r_M / r_M.sum()) for r_M in shares_SM),
    )


def _seen_floors(staged: StagedFit, whole: Region) -> dict[str, float]:
    """Returns the least share that a stage of a run had, or the floor where that is lower."""
    fraction_S = np.diff(staged.ends, prepend=0.0)
    r_RSM = staged.fit.table.r_RM.reshape(len(staged.fit.table.r_RM), len(fraction_S), -1)
    least_M = (r_RSM / fraction_S[:, None]).min(axis=(0, 1))
    floor_M = np.minimum(np.clip(least_M, 0.0, 1.0), whole.floor_M)
    return dict(zip(staged.domains, map(float, floor_M), strict=True))


def _on_schedules(
    objective: Objective, domains: tuple[str, ...], fractions: Sequence[float]
) -> Objective:
    """Returns an objective of mixtures as one of schedules: its reference becomes a constant one.

    Raises:
        MixtureError: The reference has other domains.
    """
    reference = getattr(objective, "reference", None)
    if not isinstance(objective, RelativeLoss | WorstLoss) or reference is None:
        return objective
    row_X = _repeat(reference.array(domains), fractions)
    names = stage_columns(domains, len(fractions))
    return replace(objective, reference=Mixture.from_array(names, row_X))


def _interval(value: float, half: float) -> tuple[float, float, float]:
    return float(value), float(value - half), float(value + half)


def _named(weight_T: Float[np.ndarray, " T"], targets: Sequence[str]) -> dict[str, float]:
    return {t: float(w) for t, w in zip(targets, weight_T, strict=True) if w != 0}


def _by_target(predicted: Prediction, row: int) -> dict[str, tuple[float, float, float]]:
    columns = (predicted.value_RK[row], predicted.low_RK[row], predicted.high_RK[row])
    return {
        target: (float(value), float(low), float(high))
        for target, value, low, high in zip(predicted.columns, *columns, strict=True)
    }


def _ranges(
    chosen_BX: Float[np.ndarray, "B X"], domains: tuple[str, ...], fractions: Sequence[float]
) -> tuple[dict[str, tuple[float, float]], ...]:
    """Returns the middle 90% of each share inside its stage."""
    shares_BSM = chosen_BX.reshape(len(chosen_BX), len(fractions), -1)
    shares_BSM = shares_BSM / np.array(fractions)[:, None]
    low_SM, high_SM = np.quantile(shares_BSM, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return tuple(
        {name: (float(low), float(high)) for name, low, high in zip(domains, *side, strict=True)}
        for side in zip(low_SM, high_SM, strict=True)
    )
