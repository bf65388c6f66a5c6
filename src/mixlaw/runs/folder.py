"""The folder of one run: metrics while it goes, its result when it is done.

`runs/<run_id>/` holds `spec.json`, `lock` (held by the attempt that works on it), `metrics.jsonl`
(one line per evaluation, only ever appended to), `checkpoint.safetensors`, `weights.safetensors`
(of a run that others start from), `result.json` (written last by the attempt: the run is trained),
`observations.parquet` (made of the metrics by the coordinator) and `log.txt` (what the attempts
printed).
"""

import errno
import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mixlaw.errors import RunError
from mixlaw.files import write_atomic
from mixlaw.runs.spec import RunSpec

SPEC_FILE = "spec.json"
LOCK_FILE = "lock"
METRICS_FILE = "metrics.jsonl"
CHECKPOINT_FILE = "checkpoint.safetensors"
RESULT_FILE = "result.json"
OBSERVATIONS_FILE = "observations.parquet"
LOG_FILE = "log.txt"

LOG_HEADER = "--- attempt, process "
"""Each attempt's part of the log starts with this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSummary:
    """What a trainer says of a run that it has finished."""

    params_non_embedding: int
    """Parameters without embeddings of the model that was trained."""
    params_total: int
    """All its parameters."""
    learning_rate: float
    """Peak learning rate."""
    wall_seconds: float
    """Time that training and evaluation took, all attempts together as far as it is known."""
    cpu_seconds: float
    """Processor time of the same."""
    tokens: int
    """Tokens that it was trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsRow:
    """One evaluation: every target's loss after one step."""

    step: int
    """Optimizer steps before it."""
    tokens: int
    """Training tokens before it."""
    values: dict[str, tuple[float, float | None]]
    """Loss and its standard error (None: not known) by target."""
    unit: str
    """Unit of the losses: nats_per_token, bits_per_byte or error."""
    units: dict[str, str] = field(default_factory=dict[str, str])
    """Units of the targets that have another one."""

    def unit_of(self, target: str) -> str:
        """Returns the unit of a target's value."""
        return self.units.get(target, self.unit)


def encode_metrics(rows: Sequence[MetricsRow]) -> bytes:
    """Returns evaluations as JSON lines, which keep every bit of their numbers."""
    return b"".join(
        json.dumps(_plain_row(row), ensure_ascii=True, allow_nan=False).encode() + b"\n"
        for row in rows
    )


def _plain_row(row: MetricsRow) -> dict[str, Any]:
    values = asdict(row)
    if not row.units:
        del values["units"]
    return values


def read_metrics(path: Path) -> list[MetricsRow]:
    """Returns the evaluations in a metrics file; a last line that a kill has torn is dropped.

    Raises:
        RunError: A line before the last is no evaluation.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    lines.pop()  # empty, or torn: a whole line ends with a newline
    rows: list[MetricsRow] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_decode_row(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):  # a lost block can end in a newline too
                break
            raise RunError(
                f"line {number} must be an evaluation in JSON, found {line[:60]!r}",
                where=str(path),
                do=f"delete the folder {path.parent} and run again: this run starts from scratch",
            ) from error
    return rows


def _decode_row(values: Mapping[str, Any]) -> MetricsRow:
    return MetricsRow(
        step=int(values["step"]),
        tokens=int(values["tokens"]),
        values={
            target: (float(value), None if error is None else float(error))
            for target, (value, error) in values["values"].items()
        },
        unit=str(values["unit"]),
        units={target: str(unit) for target, unit in values.get("units", {}).items()},
    )


def check_metrics(folder: Path, spec: RunSpec) -> list[MetricsRow]:
    """Returns the evaluations of a finished run.

    Raises:
        RunError: They are not at the steps of the spec, or not of the same targets every time.
    """
    rows = read_metrics(folder / METRICS_FILE)
    steps = [row.step for row in rows]
    if steps != list(spec.eval_steps):
        raise RunError(
            f"a finished run must have an evaluation at each of the steps {list(spec.eval_steps)},"
            f" found {steps}",
            where=str(folder / METRICS_FILE),
            do=f"delete the folder {folder} and run again: this run starts from scratch",
        )
    for row in rows[1:]:
        if list(row.values) != list(rows[0].values):
            raise RunError(
                f"all evaluations must be of {', '.join(rows[0].values)}, but that at step"
                f" {row.step} is of {', '.join(row.values)}",
                where=str(folder / METRICS_FILE),
                do="mend the trainer: it measures the same targets every time",
            )
        for target in row.values:
            if row.unit_of(target) != rows[0].unit_of(target):
                raise RunError(
                    f"a target must have one unit, but {target!r} is in {rows[0].unit_of(target)}"
                    f" and, at step {row.step}, in {row.unit_of(target)}",
                    where=str(folder / METRICS_FILE),
                    do="mend the trainer: it measures a target in the same unit every time",
                )
    return rows


def write_result(folder: Path, spec: RunSpec, summary: TrainingSummary) -> Path:
    """Writes the file that says that a run is trained, and returns it."""
    from mixlaw import __version__

    content = {"run_id": spec.run_id, "mixlaw": __version__, "summary": asdict(summary)}
    return write_atomic(folder / RESULT_FILE, json.dumps(content, indent=2) + "\n")


def read_result(folder: Path, run_id: str) -> TrainingSummary | None:
    """Returns the summary of a run, None while it is not trained.

    Raises:
        RunError: The file is damaged or that of another run.
    """
    path = folder / RESULT_FILE
    try:
        content = json.loads(path.read_bytes())
        if content["run_id"] == run_id:
            return TrainingSummary(**content["summary"])
        found = f"that of run {content['run_id']!r}"
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        found = f"something else ({type(error).__name__}: {error})"
    raise RunError(
        f"the file must be the result of run {run_id!r}, found {found}",
        where=str(path),
        do=f"delete the folder {folder} and run again",
    )


def read_log_tail(folder: Path, *, lines: int = 12, characters: int = 2000) -> str:
    """Returns the last lines that the last attempt printed."""
    try:
        with (folder / LOG_FILE).open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 65536))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    after = text.rpartition(LOG_HEADER)[2].splitlines()[1:]
    return "\n".join(after[-lines:])[-characters:]


@contextmanager
def full_disk_named(folder: Path) -> Generator[None]:
    """Turns the error of a full disk into one that says so and what to do.

    Raises:
        RunError: There was no space left.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(
            "the disk is full",
            where=error.filename or str(folder),
            do="make space, then retry the failed runs: they go on from their checkpoints",
        ) from error
