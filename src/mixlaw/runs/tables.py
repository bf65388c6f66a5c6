"""From the folders of finished runs to the two tables that everything after them reads."""

import io
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from mixlaw.errors import RunError
from mixlaw.files import write_atomic
from mixlaw.observations import (
    OBSERVATION_SCHEMA,
    PROPORTION_PREFIX,
    RUN_SCHEMA,
    check_observations,
    check_runs,
    encode_stages,
)
from mixlaw.runs.folder import (
    OBSERVATIONS_FILE,
    RESULT_FILE,
    TrainingSummary,
    check_metrics,
    full_disk_named,
    read_result,
)
from mixlaw.runs.spec import RunSpec
from mixlaw.runs.store import RunRow, RunStore


def write_observations(folder: Path, spec: RunSpec) -> Path:
    """Writes the observations of a finished run from its metrics, and returns the Parquet file.

    Raises:
        RunError: The metrics are not complete, or the disk is full.
    """
    records = [
        (
            spec.run_id,
            row.step,
            float(row.tokens),
            target,
            value,
            row.unit_of(target),
            standard_error,
        )
        for row in check_metrics(folder, spec)
        for target, (value, standard_error) in row.values.items()
    ]
    content = io.BytesIO()
    pl.DataFrame(records, schema=OBSERVATION_SCHEMA, orient="row").write_parquet(content)
    with full_disk_named(folder):
        return write_atomic(folder / OBSERVATIONS_FILE, content.getvalue())


def read_tables(store: RunStore, runs_folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Returns the runs and the observations of all runs that were trained here and are done.

    Args:
        store: Which runs are done.
        runs_folder: Where their folders are.

    Returns:
        The runs table, a column `r:<domain>` for every domain that any of them trained on (sorted;
        0 where a run does not name it), and the observations, run after run.

    Raises:
        RunError: A run's files are missing or damaged.
    """
    done = [row for row in store.rows() if row.status == "done" and row.role != "imported"]
    runs = _runs_table(done, runs_folder)
    if not done:
        return runs, pl.DataFrame(schema=OBSERVATION_SCHEMA)
    return check_runs(runs), check_observations(_read_observations(done, runs_folder))


def _runs_table(rows: Sequence[RunRow], runs_folder: Path) -> pl.DataFrame:
    domains = sorted({name for row in rows for name in row.spec.domains})
    records = [
        (
            row.run_id,
            row.spec.mixture_id,
            row.role,
            float(summary.params_non_embedding),
            float(summary.params_total),
            float(row.spec.tokens_per_step),
            row.spec.schedule,
            row.spec.steps,
            summary.learning_rate,
            row.spec.tokenizer,
            row.spec.corpus,
            row.spec.trainer,
            row.spec.seed,
            None if row.spec.parent is None else row.spec.parent[1],
            row.status,
            "trained",
            _stages_text(row.spec),
            *(mixture.get(domain, 0.0) for domain in domains),
        )
        for row in rows
        for mixture in [row.spec.mean_mixture]
        for summary in [_summary_of(row, runs_folder)]
    ]
    shares = {PROPORTION_PREFIX + domain: pl.Float64() for domain in domains}
    return pl.DataFrame(records, schema={**RUN_SCHEMA, **shares}, orient="row")


def _stages_text(spec: RunSpec) -> str | None:
    """Returns the stages of a run as the runs table has them; None: its mixture is constant."""
    if not spec.later_stages:
        return None
    return encode_stages(spec.stages)


def _summary_of(row: RunRow, runs_folder: Path) -> TrainingSummary:
    summary = read_result(runs_folder / row.run_id, row.run_id)
    if summary is None:
        raise _lost(runs_folder / row.run_id / RESULT_FILE)
    return summary


def _read_observations(rows: Sequence[RunRow], runs_folder: Path) -> pl.DataFrame:
    paths = [runs_folder / row.run_id / OBSERVATIONS_FILE for row in rows]
    for path in paths:
        if not path.exists():
            raise _lost(path)
    try:
        return pl.concat(pl.read_parquet(path, glob=False) for path in paths)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RunError(
            f"the observations of a finished run can't be read ({error})",
            where=str(_first_unreadable(paths)),
            do="delete that file and run again: it is made anew from the run's metrics",
        ) from error


def _first_unreadable(paths: Sequence[Path]) -> Path:
    for path in paths:
        try:
            if pl.read_parquet(path, glob=False).schema != pl.Schema(OBSERVATION_SCHEMA):
                return path
        except (pl.exceptions.PolarsError, OSError):
            return path
    return paths[0]


def _lost(path: Path) -> RunError:
    return RunError(
        "a run that is done must have its files, but this one is missing",
        where=str(path),
        do="run again: what is lost is trained anew, and only that",
    )
