"""The local executor: trains runs on this machine, each attempt a process, some at a time.

A script that defines its own trainer must call `run` under `if __name__ == "__main__":`, as always
with `multiprocessing`, since each attempt then imports the script again; better, put the trainer in
a module. With a trainer from a module, scripts need nothing special.
"""

import os
import pickle
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from mixlaw.errors import ConfigError, RunError
from mixlaw.runs.attempt import INTERRUPTED_CODE, Trainer
from mixlaw.runs.folder import (
    LOG_FILE,
    OBSERVATIONS_FILE,
    RESULT_FILE,
    read_log_tail,
    read_result,
)
from mixlaw.runs.processes import AttemptProcess, StopSignals, describe_exit, process_context
from mixlaw.runs.progress import Pace, Progress
from mixlaw.runs.spec import RunSpec
from mixlaw.runs.store import RunRow, RunStore
from mixlaw.runs.tables import write_observations

TICK_SECONDS = 0.2
"""How long a signal, a free slot or a run of another coordinator may go unnoticed."""
LOOK_SECONDS = 1.0
"""How often the store is asked what others did: cancelled runs, coordinators that ended."""
SHOW_SECONDS = 0.5
"""How often progress is shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCounts:
    """How the runs that were asked for ended."""

    total: int
    done: int
    failed: int
    """Runs that have failed for good; `RunStore.rows` has the reasons."""
    cancelled: int
    reused: int
    """Of those that are done, how many were so before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalExecutor:
    """Trains runs in processes of this machine, one thread each."""

    store: RunStore
    """The runs and their status."""
    runs_folder: Path
    """Where each run gets its folder."""
    slots: int | None = None
    """How many runs train at a time; None: one per processor."""
    checkpoint_seconds: float = 30.0
    """How often each saves a checkpoint."""
    retries: int = 3
    """How often a run whose attempt crashes or is killed is started again."""
    grace_seconds: float = 20.0
    """How long attempts that are asked to stop may take for their checkpoints."""

    def __post_init__(self) -> None:
        if self.slots is not None and self.slots < 1:
            raise ConfigError(f"slots must be at least 1, found {self.slots}")
        if self.retries < 0:
            raise ConfigError(f"retries must not be negative, found {self.retries}")

    def run(
        self,
        trainer: Trainer,
        *,
        run_ids: Collection[str] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> RunCounts:
        """Trains all runs that are not done, the longest first, and returns how they ended.

        A run that starts from another one's weights waits until that is done: it is trained too if
        it is in the store, whether asked for or not, and if it fails the runs after it fail too.

        Returns when each is done, failed or cancelled, here or at another coordinator of the same
        store. Runs that have failed stay so (`RunStore.retry`). On Ctrl-C, SIGTERM or SIGHUP, when
        called in the main thread, the attempts save checkpoints and end, at a second one at once;
        the runs are pending again, and `KeyboardInterrupt` is raised.

        Args:
            trainer: What trains; it is pickled into each attempt.
            run_ids: Which runs; all of the store by default.
            on_progress: Called with the state of things about twice a second and after each note.

        Raises:
            KeyboardInterrupt: It was asked to stop, and all is safe on disk.
            RunError: A run is not in the store, the store can't be used, or the trainer can't be
                pickled.
        """
        _check_picklable(trainer)
        self.runs_folder.mkdir(parents=True, exist_ok=True)
        rows = self._with_parents(run_ids)
        self.store.reopen(
            [row.run_id for row in rows if row.role != "imported" and self._has_lost_files(row)]
        )
        specs = {row.run_id: row.spec for row in rows}
        reused = sum(status == "done" for status, _ in self.store.statuses(specs).values())
        with StopSignals() as signals, self.store.coordinator() as owner:
            _Sweep(self, trainer, specs, owner=owner, signals=signals, show=on_progress).train()
        if signals.count:
            raise KeyboardInterrupt
        ended = [status for status, _ in self.store.statuses(specs).values()]
        return RunCounts(
            total=len(ended),
            done=ended.count("done"),
            failed=ended.count("failed"),
            cancelled=ended.count("cancelled"),
            reused=reused,
        )

    def _with_parents(self, run_ids: Collection[str] | None) -> list[RunRow]:
        """Returns the runs that are asked for, and before them those whose weights they need."""
        known = {row.run_id: row for row in self.store.rows()}
        rows = self.store.rows(run_ids)
        wanted = {row.run_id for row in rows}
        missing = [row for row in rows if row.status != "done"]
        parents: list[RunRow] = []
        while missing:
            parent = known.get(missing.pop().spec.parent_run_id or "")
            if parent is not None and parent.run_id not in wanted:
                wanted.add(parent.run_id)
                parents.append(parent)
                missing.append(parent)
        return [*parents, *rows]

    def _has_lost_files(self, row: RunRow) -> bool:
        folder = self.runs_folder / row.run_id
        return not all((folder / name).exists() for name in (RESULT_FILE, OBSERVATIONS_FILE))


class _Sweep:
    """The loop of one `LocalExecutor.run`: starts attempts, listens to them, settles their end."""

    def __init__(
        self,
        executor: LocalExecutor,
        trainer: Trainer,
        specs: dict[str, RunSpec],
        *,
        owner: str,
        signals: StopSignals,
        show: Callable[[Progress], None] | None,
    ) -> None:
        self._executor = executor
        self._store = executor.store
        self._trainer = trainer
        self._specs = specs
        self._owner = owner
        self._signals = signals
        self._show = show
        self._slots = executor.slots or count_processors()
        self._context = process_context(trainer.preload)
        self._running: dict[str, AttemptProcess] = {}
        self._pace = Pace()
        self._statuses: dict[str, tuple[str, str | None]] = {}
        self._looked = self._shown = float("-inf")
        self._told = False

    def train(self) -> None:
        """Returns when every run has ended or, once a signal came, when every attempt has."""
        try:
            while True:
                self._look_around()
                if self._signals.count:
                    self._stop_attempts()
                else:
                    self._fill_slots()
                if not self._running and (self._signals.count or self._all_ended()):
                    break
                self._listen()
                self._settle_ended()
            self._note(None)
        finally:
            self._end_attempts()  # there are some only after an error

    # ------------------------------------------------------------------ starting

    def _fill_slots(self) -> None:
        while len(self._running) < self._slots:
            parents = self._parent_statuses()
            spec = self._store.claim(self._owner, self._startable(parents))
            if spec is None:
                return
            if self._settle_trained(spec):  # by a coordinator that then ended
                continue
            status = parents.get(spec.parent_run_id or "", "done")
            if status == "done":
                self._start(spec)
            else:
                self._fail(
                    spec,
                    f"run {spec.parent_run_id}, whose weights it starts from, is {status};"
                    " retry both once that can be trained",
                )

    def _parent_statuses(self) -> dict[str, str]:
        """Returns how the runs stand that others of the sweep start from, as far as known here."""
        parents = {spec.parent_run_id for spec in self._specs.values()} - {None}
        if not parents:
            return {}
        found = self._store.statuses()
        return {name: found[name][0] for name in parents if name is not None and name in found}

    def _startable(self, parents: Mapping[str, str]) -> Collection[str]:
        """Returns the runs whose parent, where they have one, will not change any more."""
        return {
            run_id
            for run_id, spec in self._specs.items()
            if parents.get(spec.parent_run_id or "") not in ("pending", "running")
        }

    def _start(self, spec: RunSpec) -> None:
        try:
            self._running[spec.run_id] = AttemptProcess.start(
                self._context,
                self._trainer,
                spec,
                folder=self._folder(spec),
                checkpoint_seconds=self._executor.checkpoint_seconds,
            )
        except (OSError, EOFError) as error:
            self._count_death(spec, f"its process could not be started ({error!r})")

    # ------------------------------------------------------------------ listening

    def _listen(self) -> None:
        """Waits for reports or the end of an attempt, at most a tick."""
        sources: list[Any] = [attempt.process.sentinel for attempt in self._running.values()]
        sources += [a.reports for a in self._running.values() if a.reports is not None]
        wait(sources, timeout=TICK_SECONDS)
        for attempt in self._running.values():
            for report in attempt.receive():
                self._pace.add(attempt.spec, report)

    def _look_around(self) -> None:
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            if taken := self._store.take_over():
                self._note(f"took over {taken} runs of a coordinator that has ended")
            statuses = self._store.statuses(self._specs)
            for run_id, attempt in self._running.items():
                if statuses[run_id] != ("running", self._owner):  # cancelled
                    attempt.ask_to_stop(self._executor.grace_seconds)
            self._statuses = statuses
        for attempt in self._running.values():
            if attempt.kill_at is not None and now > attempt.kill_at:
                attempt.process.kill()
        if now - self._shown >= SHOW_SECONDS:
            self._note(None)

    def _all_ended(self) -> bool:
        statuses = self._store.statuses(self._specs)
        return not any(status in ("pending", "running") for status, _ in statuses.values())

    def _note(self, note: str | None) -> None:
        if self._show is None:
            return
        self._shown = time.monotonic()
        if note is not None or not self._running:
            self._statuses = self._store.statuses(self._specs)
        self._show(
            self._pace.measure(
                self._specs, self._statuses, self._owner, running=self._running, note=note
            )
        )

    # ------------------------------------------------------------------ ending

    def _settle_ended(self) -> None:
        for run_id, attempt in list(self._running.items()):
            code = attempt.process.exitcode
            if code is None:
                continue
            attempt.receive()
            del self._running[run_id]
            self._settle(attempt, code)
            self._pace.forget(run_id)
            attempt.close()

    def _settle(self, attempt: AttemptProcess, code: int) -> None:
        spec = attempt.spec
        if self._settle_trained(spec):
            return
        if attempt.failure is not None:
            self._fail(spec, attempt.failure)
        elif code == INTERRUPTED_CODE or attempt.kill_at is not None:
            self._store.release(spec.run_id, self._owner)
        else:
            self._count_death(spec, f"the attempt {describe_exit(code)}")

    def _settle_trained(self, spec: RunSpec) -> bool:
        """Marks a run as done whose result is there, however its attempt ended."""
        folder = self._folder(spec)
        try:
            summary = read_result(folder, spec.run_id)
            if summary is None:
                return False
            write_observations(folder, spec)
        except RunError as error:
            self._fail(spec, str(error))
            return True
        if self._store.finish(spec.run_id, self._owner, wall_seconds=summary.wall_seconds):
            self._note(f"run {spec.run_id} is done")
        return True

    def _fail(self, spec: RunSpec, error: str, *, died: bool = False) -> None:
        if self._store.fail(spec.run_id, self._owner, error, died=died):
            self._note(f"run {spec.run_id} failed: {error}")

    def _count_death(self, spec: RunSpec, what: str) -> None:
        deaths = 1 + self._store.rows([spec.run_id])[0].deaths
        reason = f"{what}; {deaths} of its attempts ended like that or crashed otherwise"
        if tail := read_log_tail(self._folder(spec)):
            reason += f"\nlast lines of {self._folder(spec) / LOG_FILE}:\n{tail}"
        if deaths > self._executor.retries:
            self._fail(spec, reason, died=True)
        elif self._store.release(spec.run_id, self._owner, died=True, error=reason):
            self._note(f"run {spec.run_id} starts again from its checkpoint: {what}")

    def _stop_attempts(self) -> None:
        grace_seconds = self._executor.grace_seconds
        for attempt in self._running.values():
            if attempt.kill_at is None:
                attempt.ask_to_stop(grace_seconds)
            if self._signals.count > 1:
                attempt.kill_at = float("-inf")
        if not self._told:
            self._told = True
            self._note("stopping as soon as checkpoints are saved; once more stops at once")

    def _end_attempts(self) -> None:
        """Stops what still runs, without the store: leaving it puts the runs back."""
        deadline = time.monotonic() + self._executor.grace_seconds
        for attempt in self._running.values():
            attempt.ask_to_stop(self._executor.grace_seconds)
        for attempt in self._running.values():
            attempt.process.join(max(0.0, deadline - time.monotonic()))
            if attempt.process.exitcode is None:
                attempt.process.kill()
                attempt.process.join()
            attempt.close()
        self._running.clear()

    def _folder(self, spec: RunSpec) -> Path:
        return self._executor.runs_folder / spec.run_id


def count_processors() -> int:
    """Returns how many processors this process may use."""
    with suppress(AttributeError):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_picklable(trainer: Trainer) -> None:
    try:
        pickle.dumps(trainer)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise RunError(
            f"a trainer must be a value that can be pickled, but {type(trainer).__name__} is not:"
            f" {error}",
            do="define its class at the top of a module, and open files and models in `train`",
        ) from error
