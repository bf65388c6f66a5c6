"""Losses of runs as a scaling fit takes them: mixtures by points (a model size and a step).

Shape letters: R runs, G mixtures, M training domains, P points, T targets, Q new points.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float

from mixlaw.errors import FitError, TableError
from mixlaw.fit.surface import Points, Schedule
from mixlaw.mixtures import Mixture
from mixlaw.observations import (
    PROPORTION_PREFIX,
    check_observations,
    check_runs,
    loss_target_names,
    proportion_domains,
    target_names,
)

FITTED_ROLES = ("design", "imported")
"""Roles of runs that are fitted."""
EMBEDDING_SHARE = 0.5
"""Share of the embedding parameters that counts as size: the output matrix, which every token is
multiplied by, and not the input table, of which every token reads one row."""
LEAST_MIXTURES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Widths:
    """How many embedding parameters models have; None: sizes are taken as they are given."""

    known: tuple[tuple[float, float], ...] | None
    """Parameters without embeddings, and those of the embeddings, of each size."""

    def size(self, params: float | int, params_total: float | int | None) -> float:
        """Returns the parameters that count; the embeddings follow the known sizes if need be."""
        if self.known is None:
            return float(params if params_total is None else params_total)
        if params_total is not None:
            return params + EMBEDDING_SHARE * (params_total - params)
        return params + EMBEDDING_SHARE * self._embedding(params)

    def _embedding(self, params: float | int) -> float:
        assert self.known is not None
        for known, embedding in self.known:
            if np.isclose(known, params, rtol=1e-6):
                return embedding
        if len(self.known) == 1:
            return self.known[0][1]
        log_params, log_embedding = np.log(np.maximum(np.array(self.known), 1.0)).T
        slope, level = np.polyfit(log_params, log_embedding, 1)
        return float(np.exp(level + slope * np.log(params)))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScalingTable:
    """Losses of mixtures at several sizes and steps."""

    mixture_ids: tuple[str, ...]
    domains: tuple[str, ...]
    r_GM: Float[np.ndarray, "G M"]
    targets: tuple[str, ...]
    points: Points
    y_GPT: Float[np.ndarray, "G P T"]
    """Losses, the mean over runs that repeat a mixture; NaN where there is none."""
    widths: Widths
    schedule: Schedule
    notes: tuple[str, ...]

    def locate(
        self,
        params: Sequence[float | int],
        step: Sequence[float | int],
        params_total: Sequence[float | int | None],
    ) -> Points:
        """Returns the points of runs that the table need not have."""
        step_Q = np.array(step, dtype=float)
        size_Q = np.array([self.widths.size(*p) for p in zip(params, params_total, strict=True)])
        if not (np.all(size_Q > 0) and np.all(step_Q > 0)):
            raise FitError("parameters and steps of a prediction must be positive")
        return _points(size_Q, step_Q, self.schedule)


def build_table(
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    *,
    targets: Sequence[str] | None,
    first_step: float,
    warmup_steps: float,
    final_rate: float,
) -> ScalingTable:
    """Returns the losses of finished runs from `first_step` on.

    Raises:
        TableError: The tables are not what they must be, or a target is unknown.
        FitError: Too few mixtures, or runs whose steps can't be compared.
    """
    runs, observations = check_runs(runs), check_observations(observations)
    domains = proportion_domains(runs)
    known = target_names(observations)
    chosen = loss_target_names(observations) if targets is None else tuple(targets)
    unknown = [target for target in chosen if target not in known]
    if unknown:
        raise TableError(
            f"{unknown[0]!r} is no target of these runs", do=f"the targets are {', '.join(known)}"
        )
    runs = runs.filter(
        pl.col("role").is_in(FITTED_ROLES), pl.col("status").fill_null("done") == "done"
    )
    rows = observations.filter(
        pl.col("target").is_in(list(chosen)), pl.col("step") >= first_step, pl.col("step") > 0
    )
    runs = runs.join(rows.select("run_id").unique(), on="run_id", how="semi", maintain_order="left")
    if not runs.height:
        raise TableError(f"no finished run has an observation from step {first_step:g} on")
    schedule = _one_schedule(runs, warmup_steps, final_rate)
    widths, size_R, notes = _sizes(runs)
    r_RM = runs.select(pl.col(PROPORTION_PREFIX + d) for d in domains).to_numpy()
    ids = [
        mixture_id or Mixture.from_array(domains, r_M).mixture_id
        for mixture_id, r_M in zip(runs["mixture_id"].to_list(), r_RM, strict=True)
    ]
    mixture_ids = tuple(sorted(set(ids)))
    if len(mixture_ids) < LEAST_MIXTURES:
        raise FitError(
            f"a scaling fit needs at least {LEAST_MIXTURES} mixtures, found {len(mixture_ids)}",
            do="train or import more mixtures",
        )
    cells, y_GPT = _losses(runs, rows, size_R, ids=ids, mixture_ids=mixture_ids, targets=chosen)
    first_row = {mixture_id: i for i, mixture_id in reversed(list(enumerate(ids)))}
    return ScalingTable(
        mixture_ids=mixture_ids,
        domains=domains,
        r_GM=np.ascontiguousarray(r_RM[[first_row[name] for name in mixture_ids]]),
        targets=chosen,
        points=_points(cells[:, 0], cells[:, 1], schedule),
        y_GPT=y_GPT,
        widths=widths,
        schedule=schedule,
        notes=(*notes, *_describe(cells)),
    )


def _points(size_P: np.ndarray, step_P: np.ndarray, schedule: Schedule) -> Points:
    return Points(
        size_P=size_P, step_P=step_P, area_P=schedule.area(step_P), rate_P=schedule.rate(step_P)
    )


def _one_schedule(runs: pl.DataFrame, warmup_steps: float, final_rate: float) -> Schedule:
    """Returns the schedule that all runs share, or one that is not known."""
    tokens = runs["tokens_per_step"].drop_nulls().unique()
    if len(tokens) > 1:
        raise FitError(
            f"the runs must have the same tokens per step, found {tokens.min():g} to"
            f" {tokens.max():g}",
            do="fit them one by one, or give steps in units of the same number of tokens",
        )
    kinds = runs.select("schedule", "schedule_steps").unique().rows()
    if len(kinds) == 1 and kinds[0][0] == "cosine" and kinds[0][1] is not None:
        return Schedule(steps=float(kinds[0][1]), warmup_steps=warmup_steps, final_rate=final_rate)
    return Schedule()


def _sizes(runs: pl.DataFrame) -> tuple[Widths, np.ndarray, list[str]]:
    """Returns how embeddings count, the size of each run, and what there is to say about it."""
    both = runs.select("params_non_embedding", "params_total")
    inner, total = (both[name].to_numpy().astype(float) for name in both.columns)
    if np.all(np.isfinite(inner)) and np.all(np.isfinite(total)):
        known = tuple(sorted({(float(a), float(b - a)) for a, b in zip(inner, total, strict=True)}))
        return Widths(known=known), inner + EMBEDDING_SHARE * (total - inner), []
    for size_R, name in ((inner, "parameters without embeddings"), (total, "total parameters")):
        if np.all(np.isfinite(size_R)):
            return Widths(known=None), size_R, [f"sizes are {name}: the others are not known"]
    raise FitError(
        "every run must have a size, in params_non_embedding or params_total",
        do="import the runs with their parameters",
    )


def _losses(
    runs: pl.DataFrame,
    rows: pl.DataFrame,
    size_R: np.ndarray,
    *,
    ids: Sequence[str],
    mixture_ids: Sequence[str],
    targets: Sequence[str],
) -> tuple[Float[np.ndarray, "P 2"], Float[np.ndarray, "G P T"]]:
    """Returns the distinct (size, step), and the mean loss of each mixture there."""
    row_of = {name: i for i, name in enumerate(mixture_ids)}
    column_of = {name: i for i, name in enumerate(targets)}
    keyed = runs.select(
        "run_id", pl.Series("g", [row_of[name] for name in ids]), pl.Series("size", size_R)
    )
    mean = (
        rows.join(keyed, on="run_id", how="inner")
        .filter(pl.col("value").is_not_null() & pl.col("value").is_not_nan())
        .group_by("g", "size", "step", "target")
        .agg(pl.col("value").mean())
    )
    value = mean["value"].to_numpy()
    if np.any(np.isinf(value)):
        raise FitError("losses must be finite", do="mark runs that diverged as failed")
    places, where = np.unique(
        mean.select("size", "step").to_numpy().astype(float), axis=0, return_inverse=True
    )
    y_GPT = np.full((len(mixture_ids), len(places), len(targets)), np.nan)
    column = np.array([column_of[name] for name in mean["target"].to_list()], dtype=np.int64)
    y_GPT[mean["g"].to_numpy(), where.ravel(), column] = value
    few = [t for i, t in enumerate(targets) if _mixtures_seen(y_GPT[..., i]) < LEAST_MIXTURES]
    if few:
        raise FitError(
            f"a scaling fit needs at least {LEAST_MIXTURES} mixtures, but {few[0]!r} has losses of"
            f" {_mixtures_seen(y_GPT[..., column_of[few[0]]])}"
        )
    return places, y_GPT


def _mixtures_seen(y_GP: np.ndarray) -> int:
    return int(np.isfinite(y_GP).any(axis=1).sum())


def _describe(cells: Float[np.ndarray, "P 2"]) -> list[str]:
    sizes, steps = (len(np.unique(column)) for column in cells.T)
    if sizes == 1 and steps == 1:
        raise FitError(
            "a scaling fit needs at least two sizes or two steps, found one of each",
            do="import earlier checkpoints, or train another size",
        )
    notes: list[str] = []
    if sizes == 1:
        notes.append("one model size: other sizes are the prior's guess, with intervals to match")
    if steps == 1:
        notes.append("one step: other steps are the prior's guess, with intervals to match")
    return notes
