"""Rows of imported tables, checked one by one: runs with their shares, and losses.

What is wrong is said with its place. What is altered or doubled is counted for the notes.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from mixlaw.errors import MixlawError, TableError
from mixlaw.importers.columns import Layout
from mixlaw.importers.reading import RawTable, is_empty
from mixlaw.observations import RUN_SCHEMA, decode_stages, mean_shares

_EXACT = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRun:
    """A run as a source has it."""

    run_id: str
    place: str
    """Where its shares stand."""
    shares: tuple[float, ...]
    """In the order of the layout's domains, summing to one."""
    row_sum: float
    """What they summed to."""
    known: Mapping[str, float | str | None]
    """Further fields."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceLoss:
    """A loss as a source has it."""

    place: str
    """Where it stands."""
    value: float
    tokens: float | None
    standard_error: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRows:
    """What the tables of a source hold."""

    runs: Mapping[str, SourceRun]
    """By key."""
    losses: Mapping[tuple[str, int, str], SourceLoss]
    """By key, step and target."""
    doubled: int
    """Rows of runs and losses that were there before, with the same values."""
    missing: int
    """Losses whose cell is empty."""


def read_rows(
    runs: RawTable,
    metrics: RawTable | None,
    layout: Layout,
    *,
    source: str,
    tolerance: float,
    unit: str,
) -> SourceRows:
    """Returns the runs and losses of one table, or of two.

    Args:
        runs: The table with the shares.
        metrics: The table with the losses; None: they stand beside the shares.
        layout: Which columns hold what.
        source: Name of the source.
        tolerance: How far a row of shares may be from a sum of one.
        unit: Unit of the losses.

    Raises:
        TableError: A cell is not what it must be, or rows with one key disagree.
    """
    if layout.key is None and "step" in layout.loss_fields:
        raise TableError(
            f"{runs.name} has a step per row, so it must have a column that names the run",
            do="say which it is with `--key`",
        )
    by_key: dict[str, SourceRun] = {}
    doubled_runs = 0
    for row in range(len(runs.places)):
        key = _key(runs, layout.key, row)
        run = _read_run(runs, row, key, layout, source, tolerance)
        first = by_key.setdefault(key, run)
        if (first.shares, first.known) != (run.shares, run.known):
            raise TableError(
                f"rows of one run must agree, but {key!r} has other shares or settings in"
                f" {run.place} than in {first.place}",
                do="give runs names of their own, or say which column names them with `--key`",
            )
        doubled_runs += first is not run
    losses, doubled_losses, missing = _read_losses(metrics or runs, by_key, layout, unit)
    return SourceRows(
        runs=by_key,
        losses=losses,
        doubled=doubled_losses + (0 if metrics is None else doubled_runs),
        missing=missing,
    )


def _read_run(
    table: RawTable, row: int, key: str, layout: Layout, source: str, tolerance: float
) -> SourceRun:
    place = table.where(row)
    shares = [
        _share(table, domain, column, row) for domain, column in layout.shares.columns.items()
    ]
    total = math.fsum(shares)
    if not abs(total - 1) <= tolerance:
        raise TableError(
            f"the shares of a run must sum to 1 within {tolerance:g}, but {place} (run {key!r})"
            f" sums to {total:.6g}",
            do=_way_out(total, layout),
        )
    if abs(total - 1) > _EXACT:
        shares = [share / total for share in shares]
    known = {name: _known(table, name, column, row) for name, column in layout.run_fields.items()}
    if isinstance(stages := known.get("stages"), str) and stages:
        by_domain = dict(zip(layout.shares.columns, shares, strict=True))
        _check_stages(table, row, stages, by_domain, tolerance)
    return SourceRun(
        run_id=_run_id(source, key),
        place=place,
        shares=tuple(shares),
        row_sum=total,
        known=known,
    )


def _share(table: RawTable, domain: str, column: str, row: int) -> float:
    share = table.number(column, row)
    if share is None:
        raise TableError(
            f"every run must have a share of {domain!r}, but {table.where(row)} has none in column"
            f" {column!r}",
            do="write 0 where the domain was left out",
        )
    if not (math.isfinite(share) and share >= 0):
        raise TableError(
            f"shares must be numbers from 0 on, but {table.where(row)} has {share:g} in column"
            f" {column!r}"
        )
    return share


def _way_out(total: float, layout: Layout) -> str:
    if abs(total - 100) < 2:
        return "these look like percentages: divide them by 100"
    columns = ", ".join(layout.shares.columns.values())
    return f"give shares of tokens, allow more with `--tolerance`, or check the columns: {columns}"


def _known(table: RawTable, name: str, column: str, row: int) -> float | str | None:
    kind = RUN_SCHEMA.get(name)  # `tokens` is of the observations
    if kind is not None and not kind.is_numeric():
        return table.text(column, row)
    number = table.number(column, row)
    if number is None:
        return None
    if kind is not None and kind.is_integer():
        return _whole(table, name, number, row)
    if not (math.isfinite(number) and number >= 0):
        raise TableError(
            f"{name} must be a number from 0 on, but {table.where(row)} has {number:g}"
        )
    return number


def _check_stages(
    table: RawTable, row: int, text: str, shares: Mapping[str, float], tolerance: float
) -> None:
    """Raises where a run's stages are none, or come to other shares than the run has."""
    try:
        stages = decode_stages(text)
    except MixlawError as error:
        raise TableError(error.problem, where=table.where(row), do=error.do) from None
    unknown = sorted({name for _, mixture in stages for name in mixture} - shares.keys())
    if unknown:
        raise TableError(
            f"a run's stages must be of its domains, but {unknown[0]!r} is none",
            where=table.where(row),
            do=f"the columns of shares are of {', '.join(shares)}",
        )
    for (name, share), mean in zip(shares.items(), mean_shares(stages, [*shares]), strict=True):
        if abs(share - mean) > tolerance:
            raise TableError(
                f"the shares of a run must be those of all its stages together, but that of"
                f" {name!r} is {share:.4g} and its stages come to {mean:.4g}",
                where=table.where(row),
                do="give the shares of all tokens of the run, or correct `until` of the stages",
            )


def _read_losses(
    table: RawTable, runs: Mapping[str, SourceRun], layout: Layout, unit: str
) -> tuple[dict[tuple[str, int, str], SourceLoss], int, int]:
    losses: dict[tuple[str, int, str], SourceLoss] = {}
    doubled = missing = 0
    for row in range(len(table.places)):
        key = _key(table, layout.key, row)
        step = _step(table, layout.loss_fields.get("step"), row)
        tokens = _tokens(table, layout, row, step, runs.get(key))
        for target, column in _cells(table, layout, row):
            if is_empty(table.columns[column][row]):
                missing += 1
                continue
            loss = SourceLoss(
                place=table.where(row),
                value=_loss(table, column, row, unit),
                tokens=tokens,
                standard_error=_standard_error(table, layout, row),
            )
            first = losses.setdefault((key, step, target), loss)
            if first is loss:
                continue
            if (first.value, first.standard_error) != (loss.value, loss.standard_error):
                at = f", step {step}" if "step" in layout.loss_fields else ""
                raise TableError(
                    f"a run must have one loss per step and target, but run {key!r}{at}, target"
                    f" {target!r} is {first.value:g} in {first.place} and {loss.value:g} in"
                    f" {loss.place}"
                )
            doubled += 1
    return losses, doubled, missing


def _cells(table: RawTable, layout: Layout, row: int) -> list[tuple[str, str]]:
    """Returns the targets of a row and the columns of their losses."""
    if layout.losses is not None:
        return list(layout.losses.columns.items())
    target = table.text(layout.loss_fields["target"], row)
    if target is None:
        raise TableError(
            f"every loss must have a target, but {table.where(row)} has none in column"
            f" {layout.loss_fields['target']!r}"
        )
    return [(target, layout.loss_fields["value"])]


def _loss(table: RawTable, column: str, row: int, unit: str) -> float:
    value = table.number(column, row)
    assert value is not None
    if not math.isfinite(value):
        raise TableError(
            f"losses must be finite, but {table.where(row)} has {value:g} in column {column!r}",
            do="leave the cell empty where nothing was measured, and a run out that diverged",
        )
    highest = 1.0 if unit == "error" else math.inf
    if not 0 <= value <= highest:
        limits = "from 0 to 1" if unit == "error" else "from 0 on"
        raise TableError(
            f"values in {unit} must be numbers {limits}, but {table.where(row)} has {value:g} in"
            f" column {column!r}"
        )
    return value


def _standard_error(table: RawTable, layout: Layout, row: int) -> float | None:
    column = layout.loss_fields.get("standard_error")
    error = None if column is None else table.number(column, row)
    if error is not None and not (math.isfinite(error) and error >= 0):
        raise TableError(
            f"a standard error must be a number from 0 on, but {table.where(row)} has {error:g}"
        )
    return error


def _step(table: RawTable, column: str | None, row: int) -> int:
    """Returns the step of a row; 0 where the table has none."""
    if column is None:
        return 0
    number = table.number(column, row)
    if number is None:
        raise TableError(f"every loss must have a step, but {table.where(row)} has none")
    return _whole(table, "step", number, row)


def _tokens(
    table: RawTable, layout: Layout, row: int, step: int, run: SourceRun | None
) -> float | None:
    """Returns the training tokens at a row: its own, those of its steps, or the whole run's."""
    column = layout.loss_fields.get("tokens")
    if column is not None:
        return table.number(column, row)
    known = {} if run is None else run.known
    if "step" not in layout.loss_fields:
        tokens = known.get("tokens")
    else:
        per_step = known.get("tokens_per_step")
        tokens = step * per_step if isinstance(per_step, float) else None
    return tokens if isinstance(tokens, float) else None


def _whole(table: RawTable, name: str, number: float, row: int) -> int:
    if not (math.isfinite(number) and number >= 0 and number == int(number)):
        raise TableError(
            f"{name} must be a whole number from 0 on, but {table.where(row)} has {number:g}"
        )
    return int(number)


def _key(table: RawTable, column: str | None, row: int) -> str:
    if column is None:
        return str(row + 1)
    key = table.text(column, row)
    if key is None:
        raise TableError(
            f"every row must name its run, but {table.where(row)} has nothing in column {column!r}"
        )
    return key


def _run_id(source: str, key: str) -> str:
    """Returns the id of an imported run, the same whenever that source is imported."""
    text = json.dumps(["imported", source, key], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
