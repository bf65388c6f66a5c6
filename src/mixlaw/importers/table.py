"""Runs and observations out of tables that a team already has, joined by key, never by row order.

Shares are checked and, within the tolerance, divided by their sum, since published ones are
rounded. Everything that was matched, altered or left out is said in `notes`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from mixlaw.errors import TableError
from mixlaw.importers.columns import Layout, Wanted, match_columns, match_layout
from mixlaw.importers.reading import RawTable, read_frame, read_table
from mixlaw.importers.rows import SourceRows, read_rows
from mixlaw.mixtures import Mixture
from mixlaw.observations import (
    OBSERVATION_SCHEMA,
    PROPORTION_PREFIX,
    RUN_SCHEMA,
    check_observations,
    check_runs,
)

TASK_PREFIX = "task:"
"""Names of tasks are this and what stands in the pattern's braces."""
UNITS = ("nats_per_token", "bits_per_byte", "error")
_KEPT_ROLES = ("noise", "holdout")  # the others say nothing that a fit would use


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImportedTables:
    """What an import brought."""

    runs: pl.DataFrame
    """In the schema of `mixlaw.observations`."""
    observations: pl.DataFrame
    """In the schema of `mixlaw.observations`."""
    notes: tuple[str, ...]
    """What was matched, altered and left out, in sentences."""


def import_tables(
    runs_path: str | Path,
    metrics_path: str | Path | None = None,
    *,
    key: str | None = None,
    proportions: str | Mapping[str, str] | None = None,
    losses: str | Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    tolerance: float = 0.02,
    unit: str = "nats_per_token",
    errors: str | Mapping[str, str] | None = None,
    source: str | None = None,
    drop_unmatched: bool = False,
) -> ImportedTables:
    """Returns the runs and observations in one wide file, or in two that are joined by key.

    Losses stand in one column per target, or one per row in the columns `target` and `value`. A
    column `role` may mark runs as `holdout` or `noise`.

    Args:
        runs_path: CSV, TSV, JSON lines or Parquet with one row per run (or run and step).
        metrics_path: The losses, where they are in a file of their own.
        key: Column that names the run; guessed by default.
        proportions: Columns of the shares: a pattern such as `mix/{domain}`, or the column of each
            domain; guessed by default.
        losses: Columns of the losses: a pattern such as `eval/{target}/loss`, or the column of each
            target; guessed by default.
        columns: Columns of further fields, such as {"step": "iter"}; fields are those of the two
            tables' schemas, by default recognised by their names.
        tolerance: How far a row of shares may be from a sum of one; within it, it is divided.
        unit: nats_per_token, bits_per_byte or error.
        errors: Columns of task errors between 0 and 1, beside the losses: a pattern such as
            `error/{task}`, or the column of each task.
        source: Name of the source, which with the key makes the run's id; by default the name of
            the runs' file. Importing a source again gives the same ids.
        drop_unmatched: Leave out runs that only one of the two files has; by default an error.

    Raises:
        TableError: A file, column or cell is not what it must be; the message names it.
    """
    wanted = Wanted(key=key, proportions=proportions, losses=losses, columns=columns or {})
    runs = read_table(Path(runs_path))
    metrics = None if metrics_path is None else read_table(Path(metrics_path))
    imported = _import(
        runs,
        metrics,
        wanted,
        source=Path(runs_path).name if source is None else source,
        tolerance=tolerance,
        unit=unit,
        drop_unmatched=drop_unmatched,
    )
    if errors is None:
        return imported
    pattern = errors.replace("{task}", "{target}") if isinstance(errors, str) else errors
    _check_errors_apart(metrics or runs, wanted.losses, pattern, imported)
    with_errors = _import(
        runs,
        metrics,
        replace(wanted, losses=pattern),
        source=Path(runs_path).name if source is None else source,
        tolerance=tolerance,
        unit="error",
        drop_unmatched=True,  # a run may lack all errors
    )
    return _join_errors(imported, with_errors)


def tables_from_frames(
    runs: object,
    metrics: object = None,
    *,
    source: str,
    key: str | None = None,
    proportions: str | Mapping[str, str] | None = None,
    losses: str | Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    tolerance: float = 0.02,
    unit: str = "nats_per_token",
    drop_unmatched: bool = False,
) -> ImportedTables:
    """Returns the runs and observations in dataframes of any library that Narwhals knows.

    The arguments are those of `import_tables`; `source` has to be given, since a dataframe has no
    name.

    Raises:
        TableError: A frame, column or cell is not what it must be; the message names it.
    """
    wanted = Wanted(key=key, proportions=proportions, losses=losses, columns=columns or {})
    return _import(
        read_frame(runs, "the runs frame"),
        None if metrics is None else read_frame(metrics, "the metrics frame"),
        wanted,
        source=source,
        tolerance=tolerance,
        unit=unit,
        drop_unmatched=drop_unmatched,
    )


def _import(
    runs: RawTable,
    metrics: RawTable | None,
    wanted: Wanted,
    *,
    source: str,
    tolerance: float,
    unit: str,
    drop_unmatched: bool,
) -> ImportedTables:
    if not 0 <= tolerance < 1:
        raise TableError(f"the tolerance of row sums must lie in [0, 1), found {tolerance:g}")
    if unit not in UNITS:
        raise TableError(f"the unit must be one of {', '.join(UNITS)}, found {unit!r}")
    layout = match_layout(runs, metrics, wanted)
    rows = read_rows(runs, metrics, layout, source=source, tolerance=tolerance, unit=unit)
    names = (runs.name, (metrics or runs).name)
    rows, dropped = _match_keys(rows, names, drop_unmatched=drop_unmatched)
    if not rows.losses:
        raise TableError(f"{names[1]} must have losses, but all cells are empty")
    return ImportedTables(
        runs=_runs_frame(rows, layout, source),
        observations=_observations_frame(rows, unit),
        notes=(*_describe(rows, layout, names), *dropped),
    )


def _check_errors_apart(
    table: RawTable,
    losses: str | Mapping[str, str] | None,
    errors: str | Mapping[str, str],
    imported: ImportedTables,
) -> None:
    """Raises where a column was taken for a loss and for an error."""
    tasks = set(match_columns(table, errors, kind="target", taken=()).columns.values())
    known = (
        set(imported.observations["target"])  # guessed losses may have their columns' whole names
        if losses is None
        else set(match_columns(table, losses, kind="target", taken=()).columns.values())
    )
    if both := sorted(tasks & known):
        raise TableError(
            f"a column must hold losses or task errors, but {both[0]!r} was taken for both",
            do="give patterns that tell them apart: `--losses` and `--errors`",
        )


def _join_errors(imported: ImportedTables, with_errors: ImportedTables) -> ImportedTables:
    """Returns losses and task errors of the same runs as one import; tasks are `task:<name>`."""
    is_named = pl.col("target").str.starts_with(TASK_PREFIX)
    errors = with_errors.observations.with_columns(
        target=pl.when(is_named).then("target").otherwise(TASK_PREFIX + pl.col("target"))
    )
    runs = imported.runs["run_id"].implode()
    kept = errors.filter(pl.col("run_id").is_in(runs))
    names = ", ".join(errors["target"].unique(maintain_order=True).to_list())
    return ImportedTables(
        runs=imported.runs,
        observations=check_observations(pl.concat([imported.observations, kept])),
        notes=(
            *(note for note in imported.notes if not note.startswith("ignored columns")),
            f"task errors: {kept.height} of {kept['run_id'].n_unique()} runs: {names}",
        ),
    )


def _match_keys(
    rows: SourceRows, names: tuple[str, str], *, drop_unmatched: bool
) -> tuple[SourceRows, list[str]]:
    """Returns the rows of runs that have both shares and losses, and notes on the others."""
    measured = dict.fromkeys(key for key, _, _ in rows.losses)
    without_losses = [key for key in rows.runs if key not in measured]
    without_shares = [key for key in measured if key not in rows.runs]
    found = [
        f"{_count_keys(keys)} of {there} {'is' if len(keys) == 1 else 'are'} not in {missing}"
        for keys, there, missing in (
            (without_losses, names[0], names[1] if names[0] != names[1] else "its losses"),
            (without_shares, names[1], names[0]),
        )
        if keys
    ]
    if found and not drop_unmatched:
        raise TableError(
            f"every run must have shares and losses, but {', and '.join(found)}",
            do="correct the names; `--drop-unmatched` leaves such runs out",
        )
    kept = replace(
        rows,
        runs={key: run for key, run in rows.runs.items() if key in measured},
        losses={place: loss for place, loss in rows.losses.items() if place[0] in rows.runs},
    )
    return kept, [f"left out: {sentence}" for sentence in found]


def _count_keys(keys: list[str]) -> str:
    """Returns how many runs there are, with the first three names."""
    shown = ", ".join(repr(key) for key in keys[:3]) + (", ..." if len(keys) > 3 else "")
    return f"{len(keys)} run{'' if len(keys) == 1 else 's'} ({shown})"


def _describe(rows: SourceRows, layout: Layout, names: tuple[str, str]) -> Iterator[str]:
    """Yields what was matched and altered."""
    by = "their row (keep their order)" if layout.key is None else f"the column {layout.key!r}"
    yield f"runs: {len(rows.runs)} of {names[0]}, named by {by}"
    shares = layout.shares
    yield f"domains: {len(shares.columns)} by {shares.pattern}: {', '.join(shares.columns)}"
    targets = list(dict.fromkeys(target for _, _, target in rows.losses))
    pattern = "rows" if layout.losses is None else layout.losses.pattern
    yield f"targets: {len(targets)} of {names[1]} by {pattern}: {', '.join(targets)}"
    for fields in (layout.run_fields, layout.loss_fields):
        others = [f"{name} from {column!r}" for name, column in fields.items() if name != column]
        if others:
            yield f"further columns: {', '.join(others)}"
    sums = [run.row_sum for run in rows.runs.values()]
    altered = sum(abs(total - 1) > 1e-9 for total in sums)
    if altered:
        yield (
            f"shares sum to {min(sums):.6g} to {max(sums):.6g}; {altered} of {len(sums)} rows were"
            " divided by their sum"
        )
    if rows.doubled:
        yield f"doubled: {rows.doubled} rows or losses were there before, with the same values"
    complete = len({key for key, _, _ in rows.losses}) * len(targets)
    if "step" not in layout.loss_fields:
        yield "no column of steps: all losses are taken for those at the runs' ends (step 0)"
        if len(rows.losses) < complete:
            yield f"missing: {complete - len(rows.losses)} of {complete} losses"
    elif rows.missing:
        yield f"missing: {rows.missing} losses have empty cells"
    if layout.ignored:
        yield f"ignored columns: {', '.join(layout.ignored)}"


def _runs_frame(rows: SourceRows, layout: Layout, source: str) -> pl.DataFrame:
    domains = tuple(layout.shares.columns)
    records: list[dict[str, object]] = []
    for run in rows.runs.values():
        mixture = Mixture.from_array(domains, np.array(run.shares))
        known = {name: value for name, value in run.known.items() if name in RUN_SCHEMA}
        role = run.known.get("role")
        records.append(
            {
                **known,
                "run_id": run.run_id,
                "mixture_id": mixture.mixture_id,
                "role": role if role in _KEPT_ROLES else "imported",
                "status": "done",
                "origin": source,
                **{PROPORTION_PREFIX + name: share for name, share in mixture.items()},
            }
        )
    schema = {**RUN_SCHEMA, **dict.fromkeys((PROPORTION_PREFIX + d for d in domains), pl.Float64())}
    return check_runs(pl.DataFrame(records, schema=schema))


def _observations_frame(rows: SourceRows, unit: str) -> pl.DataFrame:
    records = [
        {
            "run_id": rows.runs[key].run_id,
            "step": step,
            "tokens": loss.tokens,
            "target": target,
            "value": loss.value,
            "unit": unit,
            "standard_error": loss.standard_error,
        }
        for (key, step, target), loss in rows.losses.items()
    ]
    return check_observations(pl.DataFrame(records, schema=OBSERVATION_SCHEMA))
