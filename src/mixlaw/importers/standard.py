"""From what a published format holds to the two standard tables.

Each reader of a format makes one row per run (its id, label, raw shares and what is known of it)
and one row per loss. What they share is here: shares are divided by their sum, equal mixtures get
one id, doubled losses are dropped, and contradictions are errors that name file and line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from mixlaw.errors import MixtureError, TableError
from mixlaw.mixtures import Mixture
from mixlaw.observations import PROPORTION_PREFIX, check_observations, check_runs

SUM_TOLERANCE = 0.03
"""How far a published row of shares may be from a sum of one: they run from 0.996 to 1.02."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PublishedRuns:
    """Runs and losses that a paper published."""

    runs: pl.DataFrame
    """In the schema of `mixlaw.observations`. A run has the same id in each folder of its layout,
    so that what is in two of them can be told."""
    observations: pl.DataFrame
    """In the schema of `mixlaw.observations`."""
    labels: dict[str, str]
    """What the source calls the mixture or model of each run, by run id."""
    notes: tuple[str, ...]
    """What was altered or left out, in sentences with counts."""


def publish(
    runs: pl.DataFrame,
    losses: pl.DataFrame,
    *,
    domains: Sequence[str],
    source: str,
    notes: Sequence[str] = (),
) -> PublishedRuns:
    """Returns the standard tables of runs and losses as a reader found them.

    Args:
        runs: One row per run: `run_id`, `label`, `where` (file and line), the raw shares in
            `r:<domain>`, and any column of the runs table that is known.
        losses: One row per loss, null where a cell is empty: the columns of the observation table,
            and `where`.
        domains: The domains, in order.
        source: Name of the source, which becomes each run's `origin`.
        notes: What the reader has to say already.

    Raises:
        TableError: A loss is there twice with different values, or there is none.
        MixtureError: A row of shares is negative, or too far from a sum of one.
    """
    runs, altered = _normalize_shares(runs, domains)
    observations, doubled = _drop_doubled(losses)
    missing = observations["value"].null_count()
    observations = observations.drop_nulls("value")
    if not observations.height:
        raise TableError(f"{source} must have losses, but there is none")
    if missing:
        notes = (*notes, f"missing: {count(missing, 'loss', 'losses')} with an empty cell")
    known = runs.with_columns(
        pl.lit("imported").alias("role"),
        pl.lit("done").alias("status"),
        pl.lit(source).alias("origin"),
    )
    return PublishedRuns(
        runs=check_runs(known),
        observations=check_observations(observations.drop("where")),
        labels=dict(zip(runs["run_id"].to_list(), runs["label"].to_list(), strict=True)),
        notes=(*notes, *altered, *doubled),
    )


def count(number: int, one: str, many: str | None = None) -> str:
    """Returns a number with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def read_bytes(path: Path) -> bytes:
    """Returns a file's content.

    Raises:
        TableError: It can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise TableError(
            f"the file must be readable ({error.strerror or error})", where=str(path)
        ) from error


def read_text(path: Path) -> str:
    """Returns a text file's content.

    Raises:
        TableError: It can't be read, or is no text.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise TableError("the file must be UTF-8 text", where=f"{path}, line {line}") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise TableError("the file must be text, but is binary", where=f"{path}, line {line}")
    return text


def _normalize_shares(
    runs: pl.DataFrame, domains: Sequence[str]
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Returns the runs with shares that sum to one and a mixture id, and a note on the sums."""
    names = [PROPORTION_PREFIX + domain for domain in domains]
    raw_RM = runs.select(names).to_numpy().astype(np.float64)
    sum_R = raw_RM.sum(axis=1)
    unfit_R = ~(np.abs(sum_R - 1) <= SUM_TOLERANCE) | (raw_RM < 0).any(axis=1)
    if unfit_R.any():
        row = int(np.argmax(unfit_R))
        raise MixtureError(
            f"shares must be non-negative and sum to 1 within {SUM_TOLERANCE:g}, but those of"
            f" {runs['label'][row]!r} sum to {sum_R[row]:.6g}",
            where=runs["where"][row],
        )
    mixtures = [Mixture.from_array(tuple(domains), r_M) for r_M in raw_RM / sum_R[:, None]]
    runs = runs.with_columns(
        pl.Series("mixture_id", [mixture.mixture_id for mixture in mixtures]),
        *(
            pl.Series(name, [mixture.proportions[j] for mixture in mixtures])
            for j, name in enumerate(names)
        ),
    )
    altered = int(np.sum(np.abs(sum_R - 1) > 1e-9))
    if not altered:
        return runs, ()
    return runs, (
        f"shares sum to {sum_R.min():.6g} to {sum_R.max():.6g}; {altered} of {len(sum_R)} rows were"
        " divided by their sum",
    )


def _drop_doubled(losses: pl.DataFrame) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Returns each loss once, and a note; an empty cell gives way to a value."""
    cell = ["run_id", "step", "target"]
    distinct = losses.drop_nulls("value").group_by(cell).agg(pl.col("value").n_unique())
    conflicts = losses.join(distinct.filter(pl.col("value") > 1), on=cell, how="semi")
    if conflicts.height:
        first = conflicts.row(0, named=True)
        same = [
            row for row in conflicts.iter_rows(named=True) if all(row[k] == first[k] for k in cell)
        ]
        other = next(row for row in same if row["value"] != first["value"])
        raise TableError(
            f"a run has one value per step and target, but {first['target']!r} of"
            f" {first['run_id']!r} at step {first['step']} is {first['value']!r} in"
            f" {first['where']}, and {other['value']!r} in {other['where']}"
        )
    kept = losses.sort("value", nulls_last=True, maintain_order=True).unique(
        cell, keep="first", maintain_order=True
    )
    kept = losses.join(kept.select(*cell, "where"), on=[*cell, "where"], how="semi")
    kept = kept.unique([*cell, "where"], keep="first", maintain_order=True)
    doubled = losses.height - kept.height
    if not doubled:
        return kept, ()
    return kept, (
        f"doubled: {count(doubled, 'loss', 'losses')} had been there, with the same value",
    )
