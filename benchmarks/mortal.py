"""The victims of benchmarks/kills.py: processes that end themselves inside a write when told to.

No hooks in mixlaw are needed: Python's audit events tell the process that a file is opened or
renamed, SQLAlchemy's events that a transaction is about to commit. It dies there by SIGKILL when a
file of that name lies in the study's folder `armed`, which it removes first.
`python mortal.py STUDY ...` is such a coordinator, whose attempts are mortal as well.
"""

import argparse
import importlib
import json
import os
import random
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixlaw.runs.attempt import Attempt, Trainer
from mixlaw.runs.folder import TrainingSummary
from mixlaw.runs.spec import RunSpec

ATTEMPT_PLACES = (
    "checkpoint, file just opened",
    "checkpoint, while written",
    "checkpoint, before the rename",
    "metrics, while appended",
    "result, file just opened",
    "result, before the rename",
)
COORDINATOR_PLACES = (
    "claim, before the commit",
    "claim, after the commit",
    "observations, file just opened",
    "observations, before the rename",
    "finish, before the commit",
    "take-over, before the commit",
)
PLACES = ATTEMPT_PLACES + COORDINATOR_PLACES


@dataclass(frozen=True, kw_only=True)
class Mortal:
    """A trainer whose process kills itself inside a write when that place is armed."""

    trainer: Trainer
    armed: Path

    @property
    def preload(self) -> tuple[str, ...]:
        """What the trainer itself preloads."""
        return self.trainer.preload

    def train(self, spec: RunSpec, attempt: Attempt) -> TrainingSummary:
        """Trains as the trainer does."""
        listen_to_files(self.armed)
        return self.trainer.train(spec, attempt)


def die_if_armed(armed: Path, place: str, *, after: float | None = None) -> None:
    """Ends this process by SIGKILL if that place is armed, for one process only."""
    try:
        (armed / place).unlink()
    except FileNotFoundError:
        return
    if after is None:
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()


def listen_to_files(armed: Path) -> None:
    """Makes the process mortal where it writes files."""
    kinds = {
        "checkpoint.safetensors": "checkpoint",
        "result.json": "result",
        "observations.parquet": "observations",
    }

    def hear(event: str, args: tuple[Any, ...]) -> None:
        if event == "os.rename":
            if kind := kinds.get(Path(os.fsdecode(args[1])).name):
                die_if_armed(armed, f"{kind}, before the rename")
        elif event == "open" and isinstance(args[0], str | Path):
            name = Path(args[0]).name
            if name == "metrics.jsonl" and args[1] == "a":
                die_if_armed(armed, "metrics, while appended", after=random.uniform(0, 0.002))
            for start, kind in kinds.items():
                if name.startswith(f".{start}."):
                    die_if_armed(armed, f"{kind}, file just opened")
                    die_if_armed(armed, f"{kind}, while written", after=random.uniform(0, 0.003))

    sys.addaudithook(hear)


def listen_to_database(armed: Path) -> None:
    """Makes the process mortal where it changes the store."""
    from sqlalchemy import Engine, Pool, event

    last: dict[int, str] = {}  # what a thread's transaction changes

    def executed(_c: Any, _cursor: Any, statement: str, parameters: Any, *_more: Any) -> None:
        if statement.startswith("UPDATE runs"):
            kind = {"running": "claim", "done": "finish"}.get(next(iter(parameters)))
            if kind is not None:
                last[threading.get_ident()] = kind
        elif statement.startswith("DELETE FROM coordinators"):
            last[threading.get_ident()] = "take-over"

    def committing(_connection: Any) -> None:
        if kind := last.get(threading.get_ident()):
            die_if_armed(armed, f"{kind}, before the commit")

    def committed(*_args: Any) -> None:
        if kind := last.pop(threading.get_ident(), None):
            die_if_armed(armed, f"{kind}, after the commit")

    event.listen(Engine, "after_cursor_execute", executed)
    event.listen(Engine, "commit", committing)
    event.listen(Pool, "checkin", committed)


def make_trainer(name: str, arguments: dict[str, Any]) -> Trainer:
    """Returns `package.module:Class(**arguments)`."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)(**arguments)


def coordinate(
    study: Path, trainer: str, arguments: str, *, slots: int, checkpoint_seconds: float
) -> None:
    """Trains what is left of a sweep, mortal, and prints how far it is: a process of its own."""
    from mixlaw.runs import LocalExecutor, Progress, RunStore

    armed = study / "armed"
    listen_to_files(armed)
    listen_to_database(armed)

    def show(progress: Progress) -> None:
        here = sum(attempt.step / attempt.steps for attempt in progress.attempts)
        print(f"progress {(progress.done + here) / progress.total:.5f}", flush=True)

    executor = LocalExecutor(
        store=RunStore.at(study / "study.db"),
        runs_folder=study / "runs",
        slots=slots,
        checkpoint_seconds=checkpoint_seconds,
        retries=10**6,  # here a run may be killed as often as chance wants
    )
    victim = Mortal(trainer=make_trainer(trainer, json.loads(arguments)), armed=armed)
    counts = executor.run(victim, on_progress=show)
    sys.exit(0 if counts.done == counts.total else 1)


def main() -> None:
    """Is a coordinator."""
    parser = argparse.ArgumentParser(description="the coordinator of benchmarks/kills.py")
    parser.add_argument("study", type=Path)
    parser.add_argument("--trainer", required=True)
    parser.add_argument("--arguments", required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--checkpoint-seconds", type=float, required=True)
    given = parser.parse_args()
    coordinate(
        given.study,
        given.trainer,
        given.arguments,
        slots=given.slots,
        checkpoint_seconds=given.checkpoint_seconds,
    )


if __name__ == "__main__":
    import mortal  # as a module, whose classes the attempts can import

    mortal.main()
