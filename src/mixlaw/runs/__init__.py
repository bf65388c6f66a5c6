"""Training runs: what each one is, how it stands, the processes that train them, their tables."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixlaw.runs.attempt import Attempt, Interrupted, Trainer
    from mixlaw.runs.folder import MetricsRow, TrainingSummary
    from mixlaw.runs.local import LocalExecutor, RunCounts
    from mixlaw.runs.progress import AttemptProgress, Progress
    from mixlaw.runs.spec import RunSpec
    from mixlaw.runs.store import RunRow, RunStore
    from mixlaw.runs.tables import read_tables

_HOMES = {
    "Attempt": "attempt",
    "AttemptProgress": "progress",
    "Interrupted": "attempt",
    "LocalExecutor": "local",
    "MetricsRow": "folder",
    "Progress": "progress",
    "RunCounts": "local",
    "RunRow": "store",
    "RunSpec": "spec",
    "RunStore": "store",
    "Trainer": "attempt",
    "TrainingSummary": "folder",
    "read_tables": "tables",
}
"""Imported when first asked for: an attempt needs neither SQLAlchemy nor Polars."""

__all__ = [  # noqa: RUF022 - in the order of the data's path
    "RunSpec",
    "RunStore",
    "RunRow",
    "Trainer",
    "Attempt",
    "Interrupted",
    "MetricsRow",
    "TrainingSummary",
    "LocalExecutor",
    "RunCounts",
    "Progress",
    "AttemptProgress",
    "read_tables",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"mixlaw.runs.{_HOMES[name]}"), name)
