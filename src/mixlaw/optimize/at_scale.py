"""A mixing law at a size and length that no run has: fitted to what the runs' curves lead to.

Shape letters: G mixtures, M training domains, T targets, P parameters, B draws.

Each mixture's losses are carried to the scale by its own curves (`mixlaw.fit.scaling`), and the
mixing law is fitted to them, so that everything that takes a `FitResult` answers at the scale. The
draws are joint: one draw of all mixtures' curves, one set of bootstrap weights, one refit of the
law. What is common to all mixtures moves no optimum, but it widens the intervals of losses; it is
kept apart (`FitResult.level_draws_BT`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from mixlaw.domains import Scale
from mixlaw.errors import FitError
from mixlaw.fit.law import DRAW_TOLERANCE, fit_table
from mixlaw.fit.result import FitResult
from mixlaw.fit.scaling import ScalingFit, fit_scaling
from mixlaw.fit.solver import Problems, minimize_problems
from mixlaw.fit.stacked import stack_fits
from mixlaw.laws.base import MixingLaw
from mixlaw.laws.stack import StackedLaw
from mixlaw.observations import LossTable
from mixlaw.optimize.step_curves import StepLosses

EARLY = 0.1
"""Steps before this share of the last one follow another law and are left out."""
SAME_TOKENS, SAME_PARAMS = 0.05, 0.2
"""A scale within these shares of the runs' own is theirs."""
CURVE_SHARES = (0.4, 0.55, 0.75, 1.0)
"""Where the curves at the scale are evaluated, as shares of its steps."""
WHOLE = "objective"
"""Name of the weighted loss among the targets of its own scaling fit."""
FURTHEST = 30.0
"""Factor in size or in steps beyond the runs up to which curves are followed. The published runs
test factors of 1.5 to 3.6 in size and 3.3 in steps; the error grows with the log distance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalePoint:
    """Where a law is wanted, in the runs' own terms."""

    params: float
    """Without embeddings."""
    step: float
    """In the runs' tokens per step."""
    is_beyond: bool
    """Whether it is another size or length than the runs', and their curves have to be followed."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LawAtScale:
    """A law at another scale, and how the losses fall there."""

    fit: FitResult
    losses: StepLosses
    """Expected losses of the fit's mixtures at some steps up to the scale's."""


def locate_scale(
    scale: Scale, runs: pl.DataFrame, observations: pl.DataFrame, *, at: float | None = None
) -> ScalePoint:
    """Returns where a scale lies, if the runs' curves lead there.

    Args:
        scale: The run that is to be decided.
        runs: The fitted runs.
        observations: Their losses.
        at: Step that the law at the runs' own scale is fitted at; the last one, by default.

    Raises:
        FitError: Sizes or tokens are not known, the runs have one size or fewer than three steps
            where another is asked for, or the scale is too far away.
    """
    sizes = _known_sizes(runs)
    ratio = _tokens_per_step(runs, observations)
    steps_N = np.array(sorted(observations.filter(pl.col("step") > 0)["step"].unique().to_list()))
    last = float(steps_N[-1] if at is None else at)
    params = sizes[-1] if scale.params is None else scale.params
    step = scale.tokens / ratio
    same_size = abs(params / sizes[-1] - 1) <= SAME_PARAMS
    same_step = abs(step / last - 1) <= SAME_TOKENS
    if not same_size:
        _check_direction(params, sizes, 2, "model sizes", "parameters")
    if not same_step:
        usable_N = steps_N[steps_N >= EARLY * steps_N[-1]]
        _check_direction(step, [float(one) for one in usable_N], 3, "steps", "steps")
    return ScalePoint(
        params=sizes[-1] if same_size else params,
        step=last if same_step else step,
        is_beyond=not (same_size and same_step),
    )


def fit_at_scale(
    base: FitResult,
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    point: ScalePoint,
    *,
    law: MixingLaw | None = None,
    weights: Mapping[str, float] | None = None,
    share_map: Callable[[np.ndarray], np.ndarray] | None = None,
    seed: int = 0,
) -> LawAtScale:
    """Returns a law at another scale, with draws that hold the uncertainty of getting there.

    Args:
        base: The fit at the runs' own scale: its law, its number of draws, and what it knows of the
            noise between seeds, which is taken to be the same at the scale.
        runs: The runs table, all sizes.
        observations: All their losses, at all steps.
        point: Where the law is wanted.
        law: Another law than that of `base`.
        weights: The objective: its errors are those of its own curves, since the targets' errors
            go together. All targets alike, by default.
        share_map: Turns the runs' token shares into what the law takes, where text repeats.
        seed: Seed of the draws.

    Raises:
        FitError: The curves can't be fitted, or the law not to fewer than four mixtures.
    """
    law = base.law if law is None else law
    weight_T = np.array([(weights or {}).get(target, 0.0) for target in base.targets])
    weight_T = np.ones(len(weight_T)) if not weight_T.any() else weight_T
    weight_T = weight_T / weight_T.sum()
    first = EARLY * float(observations["step"].max())  # pyright: ignore[reportArgumentType]
    scaling, whole = (
        fit_scaling(
            runs, rows, targets=targets, first_step=first, num_draws=len(base.theta_draws_BTP),
            seed=seed,
        )
        for rows, targets in (
            (observations, base.targets),
            (_weighted_rows(observations, dict(zip(base.targets, weight_T, strict=True))), None),
        )
    )  # fmt: skip
    value_GT = scaling.losses(point.params, point.step)
    usable_G = np.isfinite(value_GT).all(axis=1)
    error_BGT = scaling.draws(point.params, point.step) - value_GT
    known_G = np.array([name in whole.mixture_ids for name in scaling.mixture_ids])
    usable_G &= known_G
    row_G = [whole.mixture_ids.index(name) for name in np.array(scaling.mixture_ids)[usable_G]]
    own_BG = (whole.draws(point.params, point.step) - whole.losses(point.params, point.step))[
        :, row_G, 0
    ]
    error_BGT = error_BGT[:, usable_G]
    # The weighted sum of the targets' errors becomes that of the whole's own curves.
    error_BGT = error_BGT + (own_BG - error_BGT @ weight_T)[..., None]
    table = _table_at(scaling, value_GT, usable_G, base.table, point)
    level_BT = error_BGT.mean(axis=1)
    members = law.laws if isinstance(law, StackedLaw) else (law,)
    if share_map is not None:
        table = replace(table, r_RM=share_map(table.r_RM))
    with threadpool_limits(limits=1):
        fits = [
            _refit(member, table, error_BGT - level_BT[:, None], seed=seed) for member in members
        ]
    fit = stack_fits(law, fits) if isinstance(law, StackedLaw) else fits[0]
    fit = replace(
        fit,
        replicate_NT=base.replicate_NT,
        replicate_freedom=base.replicate_freedom,
        level_shift_T=base.level_shift_T,
        seed_factor=base.seed_factor,
        level_draws_BT=level_BT,
        notes=(*scaling.notes, scaling.excess.sentence()),
    )
    steps = np.unique(np.round(np.array(CURVE_SHARES) * point.step)).tolist()
    y_SGT = scaling.predict([point.params] * len(steps), steps)[:, usable_G]
    known = runs["tokens_per_step"].drop_nulls().unique().to_list()
    return LawAtScale(
        fit=fit,
        losses=StepLosses(
            steps=tuple(round(step) for step in steps),
            y_SRT=y_SGT,
            tokens_per_step=float(known[0]) if len(known) == 1 else None,
        ),
    )


def _weighted_rows(observations: pl.DataFrame, weights: Mapping[str, float]) -> pl.DataFrame:
    """Returns the weighted loss of every run and step where all its targets are known."""
    wanted = pl.DataFrame({"target": list(weights), "weight": list(weights.values())}).filter(
        pl.col("weight") > 0
    )
    return (
        observations.join(wanted, on="target", how="inner")
        .filter(pl.col("value").is_finite())
        .group_by("run_id", "step", maintain_order=True)
        .agg((pl.col("value") * pl.col("weight")).sum(), pl.len().alias("targets"))
        .filter(pl.col("targets") == wanted.height)
        .select("run_id", "step", pl.lit(WHOLE).alias("target"), "value")
    )


def _refit(
    law: MixingLaw, table: LossTable, error_BGT: Float[np.ndarray, "B G T"], *, seed: int
) -> FitResult:
    """Returns the fit to expected losses, with draws refitted to drawn losses at drawn weights."""
    fit = fit_table(law, table, num_draws=1, seed=seed)
    num_draws, num_mixtures, num_targets = error_BGT.shape
    weight_BG = np.random.default_rng(seed).exponential(size=(num_draws, num_mixtures))
    y_BTG = (table.y_RT + error_BGT).transpose(0, 2, 1)
    problems = Problems.of(
        law,
        table.r_RM,
        y_BTG.reshape(-1, num_mixtures),
        scale_B=np.tile(fit.scale_T, num_draws),
        strength_B=np.tile([status.strength for status in fit.status], num_draws),
        weight_BR=np.repeat(weight_BG, num_targets, axis=0),
    )
    ends = minimize_problems(
        problems, np.tile(fit.theta_TP, (num_draws, 1)), tolerance=DRAW_TOLERANCE
    )
    return replace(fit, theta_draws_BTP=ends.theta_BP.reshape(num_draws, num_targets, -1))


def _table_at(
    scaling: ScalingFit,
    value_GT: Float[np.ndarray, "G T"],
    usable_G: np.ndarray,
    seen: LossTable,
    point: ScalePoint,
) -> LossTable:
    """Returns the expected losses at the scale as if they had been observed, one per mixture."""
    seed_of = dict(zip(seen.mixture_ids, seen.seeds, strict=True))
    ids = [name for name, usable in zip(scaling.mixture_ids, usable_G, strict=True) if usable]
    shared = set(seen.seeds)
    return LossTable(
        run_ids=tuple(f"{name} at the scale" for name in ids),
        mixture_ids=tuple(ids),
        seeds=tuple(seed_of.get(name, next(iter(shared), None)) for name in ids),
        domains=scaling.domains,
        targets=scaling.targets,
        r_RM=scaling.proportions[usable_G],
        y_RT=value_GT[usable_G],
        standard_error_RT=np.full((len(ids), len(scaling.targets)), np.nan),
        step=round(point.step),
        tokens=_tokens_at(seen, point),
        unit=seen.unit,
    )


def _tokens_at(seen: LossTable, point: ScalePoint) -> float | None:
    if seen.tokens is None or not seen.step:
        return None
    return seen.tokens / seen.step * point.step


def _known_sizes(runs: pl.DataFrame) -> list[float]:
    """Returns the runs' sizes, ascending."""
    sizes = runs["params_non_embedding"].unique().to_list()
    if not sizes or None in sizes:
        raise FitError("the sizes of the runs are not known, so no other scale can be reached")
    return sorted(sizes)


def _tokens_per_step(runs: pl.DataFrame, observations: pl.DataFrame) -> float:
    known = runs["tokens_per_step"].drop_nulls().unique().to_list()
    if len(known) == 1:
        return float(known[0])
    rows = observations.filter(pl.col("step") > 0, pl.col("tokens").is_not_null())
    ratios = (rows["tokens"] / rows["step"]).unique().to_list()
    if not known and ratios and max(ratios) / min(ratios) < 1 + 1e-6:
        return float(ratios[0])
    raise FitError(
        "the runs must have one known number of tokens per step for another length to be reached"
    )


def _check_direction(
    wanted: float, known: Sequence[float], fewest: int, plural: str, unit: str
) -> None:
    """Raises where runs say nothing of a direction, or the point is too far in it."""
    if len(known) < fewest:
        raise FitError(
            f"{wanted:.4g} {unit} need runs of at least {fewest} {plural}, found {len(known)}",
            do=f"train or import runs of more {plural}",
        )
    factor = max(wanted / known[-1], known[0] / wanted)
    if factor > FURTHEST:
        raise FitError(
            f"{wanted:.4g} {unit} lie a factor of {factor:.3g} beyond the runs; their curves are"
            f" followed up to {FURTHEST:g}",
            do="train larger or longer proxies",
        )
