"""The two tables that everything after training or importing reads: runs and observations.

Runs and observations are Polars frames with the schemas below; a run's token shares stand in one
column per domain, named `r:<domain>`. Where a run has stages, these are the shares of all its
tokens, and `stages` has the mixture of each. `LossTable` is what a fit takes: one row per run, one
column per target.

Shape letters: R runs, M training domains, T targets.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
from jaxtyping import Float

from mixlaw.errors import TableError
from mixlaw.mixtures import Mixture

PROPORTION_PREFIX = "r:"
"""Column names of proportions in the runs table are this and the domain's name."""

RUN_SCHEMA: dict[str, pl.DataType] = {
    "run_id": pl.String(),
    "mixture_id": pl.String(),
    "role": pl.String(),  # design | noise | holdout | verify | original | imported
    "params_non_embedding": pl.Float64(),
    "params_total": pl.Float64(),
    "tokens_per_step": pl.Float64(),
    "schedule": pl.String(),
    "schedule_steps": pl.Int64(),
    "learning_rate": pl.Float64(),
    "tokenizer": pl.String(),
    "corpus": pl.String(),
    "trainer": pl.String(),
    "seed": pl.Int64(),
    "parent_run_id": pl.String(),  # or the hash of the weights that it started from
    "status": pl.String(),
    "origin": pl.String(),  # "trained", or the source that was imported
    "stages": pl.String(),  # JSON, see `encode_stages`; null: one mixture
}
"""Columns of the runs table beside the proportions; null is "not known"."""

OBSERVATION_SCHEMA: dict[str, pl.DataType] = {
    "run_id": pl.String(),
    "step": pl.Int64(),
    "tokens": pl.Float64(),
    "target": pl.String(),
    "value": pl.Float64(),
    "unit": pl.String(),  # nats_per_token | bits_per_byte | error
    "standard_error": pl.Float64(),
}
"""Columns of the observation table; a null standard error is "not known"."""

ERROR_UNIT = "error"
"""Unit of targets that are a task's error; all others are losses."""


def proportion_domains(runs: pl.DataFrame) -> tuple[str, ...]:
    """Returns the domains whose proportions the runs table has, in its order."""
    return tuple(
        name.removeprefix(PROPORTION_PREFIX)
        for name in runs.columns
        if name.startswith(PROPORTION_PREFIX)
    )


def fill_shares(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns runs of several sources, with share 0 of a domain that a source does not name."""
    shares = [name for name in runs.columns if name.startswith(PROPORTION_PREFIX)]
    return runs.with_columns(pl.col(shares).fill_null(0.0))


def run_mixture(runs: pl.DataFrame, run_id: str) -> Mixture:
    """Returns the mixture of one run."""
    row = runs.row(by_predicate=pl.col("run_id") == run_id, named=True)
    return Mixture.of({d: row[PROPORTION_PREFIX + d] for d in proportion_domains(runs)})


def encode_stages(stages: Sequence[tuple[int, Mixture]]) -> str:
    """Returns stages as the runs table has them, from the step that each ends at and its mixture.

    It is JSON: `[{"until": 250, "proportions": {"web": 0.5, "code": 0.5}}, ...]`.
    """
    return json.dumps([{"until": end, "proportions": dict(m)} for end, m in stages])


def decode_stages(text: str) -> tuple[tuple[int, Mixture], ...]:
    """Returns stages as pairs of the step that each ends at and its mixture.

    Raises:
        TableError: The text is not what `encode_stages` gives, or a stage has no length.
        MixtureError: A stage's proportions are no mixture.
    """
    try:
        stages = tuple(
            (
                int(stage["until"]),
                Mixture.of({name: float(share) for name, share in stage["proportions"].items()}),
            )
            for stage in json.loads(text)
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise TableError(
            f"a run's stages must be JSON, a list of `until` and `proportions`, found {text[:60]!r}"
        ) from error
    ends = [end for end, _ in stages]
    if not ends or any(before >= end for before, end in pairwise([0, *ends])):
        raise TableError(
            "a run's stages must end after one another, each at a later step than the one before,"
            f" found {ends}"
        )
    return stages


def mean_shares(
    stages: Sequence[tuple[int, Mixture]], domains: Sequence[str]
) -> Float[np.ndarray, " M"]:
    """Returns the token shares of a whole run, whose stages are given as `decode_stages` does."""
    ends = [end for end, _ in stages]
    lengths = np.diff(ends, prepend=0)
    rows = [[mixture.get(name, 0.0) for name in domains] for _, mixture in stages]
    return lengths @ np.array(rows) / ends[-1]


def constant_runs(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns the runs that have one mixture from their first step to their last."""
    return runs.filter(pl.col("stages").is_null()) if "stages" in runs.columns else runs


def check_runs(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns the runs with every column of the schema, in its order and types.

    Raises:
        TableError: No proportions, a doubled run, or a row that is no mixture.
    """
    domains = proportion_domains(runs)
    if "run_id" not in runs.columns or len(domains) < 2:
        raise TableError(
            "the runs table must have `run_id` and at least two `r:<domain>` columns, found "
            + ", ".join(runs.columns)
        )
    runs = runs.select(
        *(
            (pl.col(name) if name in runs.columns else pl.lit(None)).cast(kind).alias(name)
            for name, kind in RUN_SCHEMA.items()
        ),
        *(pl.col(PROPORTION_PREFIX + d).cast(pl.Float64) for d in domains),
    )
    doubled = runs.filter(pl.col("run_id").is_duplicated())
    if doubled.height:
        raise TableError(f"run ids must differ, but {doubled['run_id'][0]!r} is there twice")
    shares = runs.select(pl.col(PROPORTION_PREFIX + d) for d in domains).to_numpy()
    for index, row in enumerate(shares):
        total = math.fsum(row) if np.all(np.isfinite(row)) else math.nan
        if not abs(total - 1.0) <= 1e-6 or np.min(row) < 0:
            raise TableError(
                f"the proportions of run {runs['run_id'][index]!r} must be non-negative and sum to"
                f" 1, but they sum to {total:.6g}"
            )
    return runs


def check_observations(observations: pl.DataFrame) -> pl.DataFrame:
    """Returns the observations with every column of the schema, in its order and types.

    Raises:
        TableError: A column is missing, or a cell (run, step, target) is there twice.
    """
    needed = {"run_id", "step", "target", "value"} - set(observations.columns)
    if needed:
        raise TableError(
            f"the observations table must have `{min(needed)}`, found "
            + ", ".join(observations.columns)
        )
    observations = observations.select(
        (pl.col(name) if name in observations.columns else pl.lit(None)).cast(kind).alias(name)
        for name, kind in OBSERVATION_SCHEMA.items()
    )
    doubled = observations.filter(pl.struct("run_id", "step", "target").is_duplicated())
    if doubled.height:
        row = doubled.row(0, named=True)
        raise TableError(
            f"a run has one value per step and target, but run {row['run_id']!r}, step"
            f" {row['step']}, target {row['target']!r} is there twice"
        )
    return observations


def target_names(observations: pl.DataFrame) -> tuple[str, ...]:
    """Returns the targets in the order of their first row."""
    return tuple(observations["target"].unique(maintain_order=True).to_list())


def loss_target_names(observations: pl.DataFrame) -> tuple[str, ...]:
    """Returns the targets that are losses, in the order of their first row; all if none is one."""
    losses = observations.filter(pl.col("unit").fill_null("") != ERROR_UNIT)
    return target_names(losses if losses.height else observations)


def task_target_names(observations: pl.DataFrame) -> tuple[str, ...]:
    """Returns the targets that are a task's error, in the order of their first row."""
    return target_names(observations.filter(pl.col("unit") == ERROR_UNIT))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LossTable:
    """Losses of runs at one step: what a mixing law is fitted to."""

    run_ids: tuple[str, ...]
    mixture_ids: tuple[str, ...]
    """Replicates of a mixture share their id."""
    seeds: tuple[int | None, ...]
    """Runs with one seed share initialisation and data order; None: not known."""
    domains: tuple[str, ...]
    targets: tuple[str, ...]
    r_RM: Float[np.ndarray, "R M"]
    """Token shares."""
    y_RT: Float[np.ndarray, "R T"]
    """Losses, in `unit`; NaN where there is none."""
    standard_error_RT: Float[np.ndarray, "R T"]
    """Standard errors of the losses over validation sequences; NaN where not known."""
    step: int | None
    """The step of all losses; None: each run's last."""
    tokens: float | None
    """Training tokens at that step, where all runs agree; None: they differ or it is not known."""
    unit: str

    def select(self, rows: Sequence[int]) -> "LossTable":
        """Returns the table of some of the runs."""
        index = np.asarray(rows, dtype=np.int64)
        return LossTable(
            run_ids=tuple(self.run_ids[i] for i in index),
            mixture_ids=tuple(self.mixture_ids[i] for i in index),
            seeds=tuple(self.seeds[i] for i in index),
            domains=self.domains,
            targets=self.targets,
            r_RM=self.r_RM[index],
            y_RT=self.y_RT[index],
            standard_error_RT=self.standard_error_RT[index],
            step=self.step,
            tokens=self.tokens,
            unit=self.unit,
        )


def loss_table(
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    *,
    targets: Sequence[str] | None = None,
    roles: Sequence[str] | None = None,
    step: int | None = None,
) -> LossTable:
    """Returns the losses of finished runs at one step, joined by run id.

    Runs whose status is not `done` are left out; one without a status counts as done.

    Args:
        runs: The runs table.
        observations: The observations table.
        targets: Which targets, in which order; by default all losses, and where there are none
            all errors.
        roles: Which roles of runs; all by default.
        step: The step to read; each run's last one by default.

    Raises:
        TableError: No run has an observation, a target is unknown, or units are mixed.
    """
    runs = check_runs(runs)
    observations = check_observations(observations)
    domains = proportion_domains(runs)
    known = target_names(observations)
    chosen = loss_target_names(observations) if targets is None else tuple(targets)
    for target in chosen:
        if target not in known:
            raise TableError(
                f"{target!r} is no target of these runs", do=f"the targets are {', '.join(known)}"
            )
    runs = runs.filter(pl.col("status").fill_null("done") == "done")
    if roles is not None:
        runs = runs.filter(pl.col("role").is_in(list(roles)))
    rows = observations.filter(pl.col("target").is_in(list(chosen))).join(
        runs.select("run_id"), on="run_id", how="semi"
    )
    if step is not None:
        rows = rows.filter(pl.col("step") == step)
    else:
        rows = rows.filter(pl.col("step") == pl.col("step").max().over("run_id"))
    runs = runs.join(rows.select("run_id").unique(), on="run_id", how="semi", maintain_order="left")
    if not runs.height:
        raise TableError(
            "no finished run has an observation"
            + ("" if step is None else f" at step {step}")
            + ("" if roles is None else f" among the runs with role {', '.join(roles)}"),
            do="train some with `mixlaw run`, or import them with `mixlaw import`",
        )
    units = rows["unit"].unique().to_list()
    if len(units) > 1:
        found = ", ".join(sorted("none" if unit is None else unit for unit in units))
        raise TableError(
            f"the losses must have one unit, found {found}",
            do="name targets of one unit: losses, or errors of tasks",
        )

    run_ids: list[str] = runs["run_id"].to_list()
    row_of = {run_id: i for i, run_id in enumerate(run_ids)}
    column_of = {target: i for i, target in enumerate(chosen)}
    y_RT = np.full((len(run_ids), len(chosen)), np.nan)
    standard_error_RT = np.full_like(y_RT, np.nan)
    for run_id, target, value, error in rows.select(
        "run_id", "target", "value", "standard_error"
    ).iter_rows():
        cell = row_of[run_id], column_of[target]
        y_RT[cell] = math.nan if value is None else value
        standard_error_RT[cell] = math.nan if error is None else error
    tokens = rows["tokens"].unique().to_list()
    steps = rows["step"].unique().to_list()
    return LossTable(
        run_ids=tuple(run_ids),
        mixture_ids=tuple(
            mixture_id or Mixture.from_array(domains, r_M).mixture_id
            for mixture_id, r_M in zip(
                runs["mixture_id"].to_list(), _proportions(runs, domains), strict=True
            )
        ),
        seeds=tuple(runs["seed"].to_list()),
        domains=domains,
        targets=chosen,
        r_RM=_proportions(runs, domains),
        y_RT=y_RT,
        standard_error_RT=standard_error_RT,
        step=steps[0] if len(steps) == 1 else None,
        tokens=tokens[0] if len(tokens) == 1 else None,
        unit=units[0] or "nats_per_token",
    )


def _proportions(runs: pl.DataFrame, domains: Sequence[str]) -> Float[np.ndarray, "R M"]:
    return np.ascontiguousarray(
        runs.select(pl.col(PROPORTION_PREFIX + d) for d in domains).to_numpy(), dtype=np.float64
    )
