"""Processes of attempts: where they come from, what they report, how they end.

Attempts come from a fork server that has imported the trainer's modules once, so that the next one
starts within milliseconds; where a system has none, each is a fresh interpreter.
"""

import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Any

from mixlaw.runs.attempt import FailureReport, ProgressReport, Trainer, run_attempt
from mixlaw.runs.spec import RunSpec

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "POLARS_MAX_THREADS",
)
ONE_SIGNAL_SECONDS = 1.0
"""Signals that are closer together are taken for one."""

_STARTING = threading.Lock()
"""One process starts at a time: meanwhile, what it inherits from this one is another."""


@dataclass(kw_only=True, slots=True, eq=False)
class AttemptProcess:
    """A run with a process that works on it."""

    spec: RunSpec
    process: BaseProcess
    reports: Connection | None
    """None once the process has closed its end."""
    failure: str | None = None
    kill_at: float | None = None
    """When it must have ended, on the monotonic clock; None: it has not been asked to."""

    @classmethod
    def start(
        cls,
        context: BaseContext,
        trainer: Trainer,
        spec: RunSpec,
        *,
        folder: Path,
        checkpoint_seconds: float,
    ) -> "AttemptProcess":
        """Returns a run with a process that has just started to train it.

        Raises:
            OSError, EOFError: The fork server was killed; the next attempt gets a new one.
        """
        receiving, sending = context.Pipe(duplex=False)
        process: BaseProcess = context.Process(  # type: ignore[attr-defined]
            target=run_attempt,
            args=(trainer, spec, folder, checkpoint_seconds, sending),
            name=f"mixlaw-{spec.run_id}",
        )
        try:
            # The first attempt starts the fork server, which hands on its environment.
            with _STARTING, _one_thread_each(), _main_module_left_alone(trainer):
                process.start()
        except BaseException:
            receiving.close()
            raise
        finally:
            sending.close()
        return cls(spec=spec, process=process, reports=receiving)

    def ask_to_stop(self, grace_seconds: float) -> None:
        """Sends SIGTERM, once, and sets the time by which it must have ended."""
        if self.kill_at is None:
            self.kill_at = time.monotonic() + grace_seconds
            self.process.terminate()

    def receive(self) -> list[ProgressReport]:
        """Returns what it has reported since the last time, and keeps the reason of a failure."""
        found: list[ProgressReport] = []
        while self.reports is not None:
            try:
                if not self.reports.poll():
                    break
                report = self.reports.recv()
            except (EOFError, OSError):
                self.reports.close()
                self.reports = None
                break
            if isinstance(report, FailureReport):
                self.failure = report.error
            else:
                found.append(report)
        return found

    def close(self) -> None:
        """Frees what the ended process has left."""
        if self.reports is not None:
            self.reports.close()
        self.process.close()


def process_context(preload: Sequence[str]) -> BaseContext:
    """Returns where attempts come from: a fork server where the system has one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mixlaw.runs.attempt", *preload])
    return context


@contextmanager
def _one_thread_each() -> Generator[None]:
    """Lets processes that start meanwhile use one thread in matrix products."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _main_module_left_alone(trainer: Trainer) -> Generator[None]:
    """Keeps processes that start meanwhile from importing the main script again.

    `multiprocessing` has them do so for the sake of classes defined there. Without it, an attempt
    starts faster by whatever the script imports, and a script that forgot its
    `if __name__ == "__main__":` does no harm.
    """
    main = sys.modules["__main__"]
    if b"__main__" not in pickle.dumps(trainer):
        sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class StopSignals:
    """Counts Ctrl-C, SIGTERM and SIGHUP instead of being ended by them, in the main thread.

    A signal that the process ignores, as under nohup, stays ignored. Signals in quick succession
    are one: a program around this one may pass on what the terminal has sent to both.
    """

    def __init__(self) -> None:
        self.count = 0
        self._heard = -math.inf
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)  # there is no SIGHUP on Windows
                if number is not None and signal.getsignal(number) not in (
                    signal.SIG_IGN,
                    None,
                ):
                    self._before[number] = signal.signal(number, self._heed)
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _where: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heed(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._heard > ONE_SIGNAL_SECONDS:
            self.count += 1
            self._heard = now


def describe_exit(code: int) -> str:
    """Returns how a process ended that was not asked to, to go on from "the attempt"."""
    if code >= 0:
        return f"ended with exit code {code} before its result was there"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"
