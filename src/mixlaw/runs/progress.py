"""How far a sweep is and how long it still takes, from what its attempts report."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mixlaw.runs.attempt import ProgressReport
from mixlaw.runs.spec import RunSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptProgress:
    """One run that is training here and now."""

    run_id: str
    step: int
    """Optimizer steps so far."""
    steps: int
    """Steps of the whole run."""
    tokens: int
    """Training tokens so far."""
    loss: float | None
    """The latest training loss; None: not known yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """A moment of a sweep, for a live display."""

    total: int
    """Runs that were asked for."""
    done: int
    failed: int
    cancelled: int
    running: int
    """Runs that train here."""
    elsewhere: int
    """Runs that another coordinator trains."""
    tokens_per_second: float | None
    """Training tokens per second of all attempts here together; None: not known yet."""
    seconds_left: float | None
    """Estimate for all runs, from the floating-point operations done and left; None: not known."""
    attempts: tuple[AttemptProgress, ...]
    """What trains here."""
    note: str | None = None
    """One sentence about what has just happened, to keep as a line; None: nothing did."""

    @property
    def pending(self) -> int:
        """Runs that wait for a slot."""
        ended = self.done + self.failed + self.cancelled
        return self.total - ended - self.running - self.elsewhere


class Pace:
    """Counts what the attempts of one executor train, from their reports."""

    def __init__(self) -> None:
        self._reports: dict[str, ProgressReport] = {}
        self._started: float | None = None
        self._tokens = 0
        self._flops = 0.0

    def add(self, spec: RunSpec, report: ProgressReport) -> None:
        """Takes a report in; the first of a run counts from where its checkpoint was."""
        if self._started is None:
            self._started = time.monotonic()
        before = self._reports.get(spec.run_id)
        if before is not None and report.tokens > before.tokens:
            self._tokens += report.tokens - before.tokens
            self._flops += spec.flops * (report.tokens - before.tokens) / spec.tokens
        self._reports[spec.run_id] = report

    def forget(self, run_id: str) -> None:
        """Ends an attempt: the next one starts from its checkpoint."""
        self._reports.pop(run_id, None)

    def measure(
        self,
        specs: Mapping[str, RunSpec],
        statuses: Mapping[str, tuple[str, str | None]],
        owner: str,
        *,
        running: Iterable[str],
        note: str | None,
    ) -> Progress:
        """Returns where the sweep stands.

        Args:
            specs: The runs that were asked for.
            statuses: Status and owner of each.
            owner: The coordinator here.
            running: Runs with an attempt here.
            note: What has just happened.
        """
        here = [run_id for run_id in running if run_id in specs]
        count = Counter(statuses[run_id][0] for run_id in specs if run_id not in here)
        elapsed = 0.0 if self._started is None else time.monotonic() - self._started
        return Progress(
            total=len(specs),
            done=count["done"],
            failed=count["failed"],
            cancelled=count["cancelled"],
            running=len(here),
            elsewhere=sum(
                statuses[run_id][0] == "running" and statuses[run_id][1] != owner
                for run_id in specs
                if run_id not in here
            ),
            tokens_per_second=self._tokens / elapsed if self._tokens else None,
            seconds_left=(
                self._flops_left(specs, statuses) * elapsed / self._flops if self._flops else None
            ),
            attempts=tuple(self._attempt(run_id) for run_id in here if run_id in self._reports),
            note=note,
        )

    def _attempt(self, run_id: str) -> AttemptProgress:
        report = self._reports[run_id]
        return AttemptProgress(
            run_id=run_id,
            step=report.step,
            steps=report.steps,
            tokens=report.tokens,
            loss=report.loss,
        )

    def _flops_left(
        self, specs: Mapping[str, RunSpec], statuses: Mapping[str, tuple[str, str | None]]
    ) -> float:
        left = 0.0
        for run_id, spec in specs.items():
            if statuses[run_id][0] in ("pending", "running"):
                report = self._reports.get(run_id)
                trained = 0.0 if report is None else report.tokens / spec.tokens
                left += spec.flops * max(0.0, 1.0 - trained)
        return left
