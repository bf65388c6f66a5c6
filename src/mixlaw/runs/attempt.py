"""One attempt at one run, in a process of its own.

The process ends by itself when its coordinator is gone, holds the run folder's lock while it works,
and appends what it measures. A trainer sees an `Attempt`; whatever happens to the process, the next
attempt goes on from the last checkpoint, to the same numbers.
"""

import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Literal, Protocol

import filelock

from mixlaw.errors import MixlawError, RunError, TrainingError
from mixlaw.files import write_atomic
from mixlaw.runs.folder import (
    CHECKPOINT_FILE,
    LOCK_FILE,
    LOG_FILE,
    LOG_HEADER,
    METRICS_FILE,
    SPEC_FILE,
    MetricsRow,
    TrainingSummary,
    check_metrics,
    encode_metrics,
    full_disk_named,
    read_metrics,
    read_result,
    write_result,
)
from mixlaw.runs.spec import RunSpec

INTERRUPTED_CODE = 75
"""Exit code of an attempt that was asked to stop: EX_TEMPFAIL of sysexits.h."""
FAILED_CODE = 65
"""Exit code of an attempt that no retry would help: EX_DATAERR of sysexits.h."""

ORPHAN_GRACE_SECONDS = 10.0
"""How long an attempt whose coordinator is gone may take to save a checkpoint."""
REPORT_SECONDS = 0.2
"""Progress is sent to the coordinator at most this often."""
Unit = Literal["nats_per_token", "bits_per_byte", "error"]

LARGEST_REPORT = 3500
"""Bytes of a message that a pipe takes whole or not at all, below POSIX's PIPE_BUF of 4096."""


class Interrupted(Exception):  # noqa: N818 - not an error: the attempt was asked to stop
    """What a trainer raises, after it has saved a checkpoint, when `should_stop` is true."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgressReport:
    """How far an attempt is."""

    step: int
    steps: int
    tokens: int
    loss: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class FailureReport:
    """Why an attempt ended for good."""

    error: str


Report = ProgressReport | FailureReport


class Attempt:
    """What a trainer sees of the attempt that it runs in; also made by hand, outside of a process.

    Args:
        folder: The run's folder, which exists.
        checkpoint_seconds: How often the trainer shall save a checkpoint, in seconds.
        reports: Where progress goes; nowhere by default.
    """

    def __init__(
        self,
        *,
        folder: Path,
        checkpoint_seconds: float = 30.0,
        reports: Connection | None = None,
    ) -> None:
        self.folder = folder
        self.checkpoint_path = folder / CHECKPOINT_FILE
        self.checkpoint_seconds = checkpoint_seconds
        self._reports = reports
        self._reported = -math.inf
        self._stop = False
        self._rows: list[MetricsRow] | None = None

    def should_stop(self) -> bool:
        """Whether the trainer shall save a checkpoint and raise `Interrupted`, soon."""
        return self._stop

    def ask_to_stop(self) -> None:
        """Makes `should_stop` true."""
        self._stop = True

    def metrics(self) -> list[MetricsRow]:
        """Returns the evaluations so far; one that a kill has cut off is dropped."""
        if self._rows is None:
            self._rows = read_metrics(self._metrics_path)
            self._write_metrics(self._rows)  # appending after a torn line would spoil both
        return list(self._rows)

    def resume_from(self, step: int) -> None:
        """Drops the evaluations after a step, that of the checkpoint from which training goes on.

        Args:
            step: Optimizer steps that the checkpoint has seen; -1: all are dropped.
        """
        rows = [row for row in self.metrics() if row.step <= step]
        self._write_metrics(rows)
        self._rows = rows

    def append_metrics(
        self,
        step: int,
        tokens: int,
        values: Mapping[str, tuple[float, float | None]],
        unit: Unit = "nats_per_token",
        *,
        units: Mapping[str, Unit] | None = None,
    ) -> None:
        """Keeps one evaluation, safe on disk when this returns.

        The same evaluation once more is fine, as after a checkpoint that was saved before it.

        Args:
            step: Optimizer steps before it.
            tokens: Training tokens before it.
            values: Loss and its standard error (None: not known) by target.
            unit: Unit of the losses.
            units: Units of the targets that have another one.

        Raises:
            TrainingError: A loss is not finite.
            RunError: There is another evaluation at this step, or a later one; the disk is full.
        """
        for target, (value, _) in values.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"a loss must be finite, but that of {target!r} is {value} after step {step}",
                    do="train with a lower learning rate, or leave this mixture out",
                )
        row = MetricsRow(
            step=int(step),
            tokens=int(tokens),
            values=_plain_values(values),
            unit=unit,
            units=dict(units or {}),
        )
        rows = self.metrics()
        if rows and rows[-1].step >= row.step:
            if row in rows:
                return
            raise RunError(
                f"a trainer must measure each step once and in order, but after step"
                f" {rows[-1].step} it measured step {row.step}, with another result if again",
                do="call `resume_from` with the step of the checkpoint; train deterministically",
            )
        with full_disk_named(self.folder), self._metrics_path.open("ab") as file:
            file.write(encode_metrics([row]))
            file.flush()
            os.fsync(file.fileno())  # a checkpoint that counts on it must not outlive it
        self._rows = [*rows, row]

    def report_progress(self, step: int, steps: int, tokens: int, loss: float | None) -> None:
        """Shows the coordinator how far the run is; never blocks, never fails.

        Args:
            step: Optimizer steps so far.
            steps: Steps of the whole run.
            tokens: Training tokens so far.
            loss: The latest loss, where there is one.
        """
        now = time.monotonic()
        if self._reports is None or (now - self._reported < REPORT_SECONDS and step < steps):
            return
        self._reported = now
        with suppress(OSError):  # the pipe is full or no one listens
            self._reports.send(ProgressReport(step=step, steps=steps, tokens=tokens, loss=loss))

    @property
    def _metrics_path(self) -> Path:
        return self.folder / METRICS_FILE

    def _write_metrics(self, rows: list[MetricsRow]) -> None:
        content = encode_metrics(rows)
        try:
            if self._metrics_path.read_bytes() == content:
                return
        except FileNotFoundError:
            if not rows:
                return
        with full_disk_named(self.folder):
            write_atomic(self._metrics_path, content)


class Trainer(Protocol):
    """What trains: a value that can be pickled, of a class that can be imported."""

    @property
    def preload(self) -> tuple[str, ...]:
        """Modules that the fork server imports once for all attempts; they must start no thread."""
        ...

    def train(self, spec: RunSpec, attempt: Attempt) -> TrainingSummary:
        """Trains one run, from its checkpoint where there is one.

        It evaluates at `spec.eval_steps`, saves a checkpoint every `attempt.checkpoint_seconds` and
        when `attempt.should_stop()`, after which it raises `Interrupted`. Checkpoints are written
        atomically, after the evaluation of their step, and resuming from one gives the same bits.

        Raises:
            Interrupted: It was asked to stop, and has saved a checkpoint.
            MixlawError: The run has failed and would fail again.
        """
        ...


def run_attempt(
    trainer: Trainer, spec: RunSpec, folder: Path, checkpoint_seconds: float, reports: Connection
) -> None:
    """Trains a run that no other attempt has finished; the body of an attempt's process.

    Exits with 0 when the run is trained, `INTERRUPTED_CODE` when it was asked to stop and
    `FAILED_CODE`, after a `FailureReport`, when it failed for good. Any other end is a crash.
    """
    attempt = Attempt(folder=folder, checkpoint_seconds=checkpoint_seconds, reports=reports)
    _heed_signals(attempt)
    _leave_when_orphaned(attempt)
    try:
        with full_disk_named(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _redirect_output(folder / LOG_FILE)
            os.set_blocking(reports.fileno(), False)
            with _hold_lock(attempt):
                _train_unless_done(trainer, spec, attempt)
    except Interrupted:
        sys.exit(INTERRUPTED_CODE)
    except MixlawError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the log of the attempt
        _report_failure(reports, error)
        sys.exit(FAILED_CODE)


def _train_unless_done(trainer: Trainer, spec: RunSpec, attempt: Attempt) -> None:
    folder = attempt.folder
    if read_result(folder, spec.run_id) is not None:
        attempt.checkpoint_path.unlink(missing_ok=True)
        return
    for left_over in folder.glob(".*.tmp"):  # of a write that a kill has cut off
        left_over.unlink(missing_ok=True)
    write_atomic(folder / SPEC_FILE, _spec_text(spec))
    if not attempt.checkpoint_path.exists():
        attempt.resume_from(-1)
    summary = trainer.train(spec, attempt)
    check_metrics(folder, spec)
    write_result(folder, spec, summary)
    attempt.checkpoint_path.unlink(missing_ok=True)  # nothing will be resumed from it


def _spec_text(spec: RunSpec) -> str:
    return json.dumps(spec.to_json(), indent=2, ensure_ascii=True) + "\n"


@contextmanager
def _hold_lock(attempt: Attempt) -> Generator[None]:
    """Holds the run folder's lock; waits while an earlier attempt is still ending."""
    lock = filelock.FileLock(attempt.folder / LOCK_FILE, thread_local=False)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=0.5, poll_interval=0.02)
        except filelock.Timeout:
            if attempt.should_stop():
                raise Interrupted from None
    try:
        yield
    finally:
        lock.release()


def _heed_signals(attempt: Attempt) -> None:
    """Stops gracefully on Ctrl-C, which reaches all processes of a terminal, SIGTERM and SIGHUP."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # there is no SIGHUP on Windows
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: attempt.ask_to_stop())


def _leave_when_orphaned(attempt: Attempt) -> None:
    coordinator = multiprocessing.parent_process()
    if coordinator is None:
        return

    def watch() -> None:
        wait([coordinator.sentinel])  # readable once the coordinator has ended, in whatever way
        attempt.ask_to_stop()
        time.sleep(ORPHAN_GRACE_SECONDS)
        os._exit(INTERRUPTED_CODE)

    threading.Thread(target=watch, daemon=True, name="coordinator-watch").start()


def _redirect_output(path: Path) -> None:
    """Sends what the process prints from here on, C libraries included, to the end of a file."""
    with path.open("ab") as file:
        file.write(f"{LOG_HEADER}{os.getpid()}\n".encode())
        file.flush()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]


def _report_failure(reports: Connection, error: MixlawError) -> None:
    text = str(error).encode()[:LARGEST_REPORT].decode("utf-8", errors="ignore")
    os.set_blocking(reports.fileno(), True)
    with suppress(OSError):
        reports.send(FailureReport(error=text))


def _plain_values(
    values: Mapping[str, tuple[float, float | None]],
) -> dict[str, tuple[float, float | None]]:
    """Returns losses as Python floats; the standard error of a single sequence is not known."""
    return {
        target: (float(value), None if error is None or math.isnan(error) else float(error))
        for target, (value, error) in values.items()
    }
