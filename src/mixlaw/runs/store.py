"""The state of all runs in a SQL database, and which coordinator works on which.

A run is pending -> running (by a coordinator) -> done | failed | cancelled. The database holds
nothing else: losses are files in the run's folder, so a lost database costs no training (add the
same specs to a new one).

A coordinator holds a file lock for as long as it lives, `coordinators/<owner>.lock` beside the
database. The kernel frees it with the process, however that ends, so others on the host see at once
that its runs are up for grabs: no clock decides. Other hosts may not see the lock; a coordinator of
another host counts as dead when its lock is free and its heartbeat counter stood still for
`FOREIGN_SILENCE_SECONDS` of the observer's own time.
"""

import json
import os
import platform
import threading
import time
import uuid
from collections import Counter
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from mixlaw.errors import RunError
from mixlaw.runs.spec import RunSpec

Status = Literal["pending", "running", "done", "failed", "cancelled"]
Role = Literal["design", "noise", "holdout", "verify", "original", "imported"]

SCHEMA_VERSION = 1
BUSY_SECONDS = 60
"""How long a transaction waits for those of other processes."""
HEARTBEAT_SECONDS = 10.0
FOREIGN_SILENCE_SECONDS = 60.0

_METADATA = sa.MetaData()
_SCHEMA = sa.Table("mixlaw_schema", _METADATA, sa.Column("version", sa.Integer, primary_key=True))
_COORDINATORS = sa.Table(
    "coordinators",
    _METADATA,
    sa.Column("owner", sa.String, primary_key=True),
    sa.Column("host", sa.String, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("heartbeats", sa.Integer, nullable=False, default=0),
)
_RUNS = sa.Table(
    "runs",
    _METADATA,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run_id", sa.String, nullable=False, unique=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("role", sa.String, nullable=False),
    sa.Column("flops", sa.Float, nullable=False),  # the longest runs are claimed first
    sa.Column("status", sa.String, nullable=False, default="pending", index=True),
    sa.Column("owner", sa.ForeignKey("coordinators.owner")),  # null unless running
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("deaths", sa.Integer, nullable=False, default=0),
    sa.Column("error", sa.Text),
    sa.Column("wall_seconds", sa.Float),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRow:
    """One run and how it stands."""

    run_id: str
    spec: RunSpec
    role: str
    """What it is for: design, noise, holdout, verify, original (others start from its weights) or
    imported."""
    status: str
    """pending, running, done, failed or cancelled."""
    owner: str | None
    """The coordinator that works on it; None unless it is running."""
    attempts: int
    """How often it was started."""
    deaths: int
    """How many of its attempts were killed or crashed, on their own rather than asked to stop."""
    error: str | None
    """Why it failed, or why its last attempt ended; None: nothing went wrong."""
    wall_seconds: float | None
    """Time that training took; None while it is not done."""


class RunStore:
    """Runs and their status, in SQLite or another SQL database.

    Safe to share between threads, and between processes that each open their own.

    Args:
        url: `sqlite:///study.db`, or another SQLAlchemy URL; see also `RunStore.at`.
        coordinators_folder: Where coordinators keep their locks; beside a SQLite database by
            default. Everyone who uses the store must see the same folder.

    Raises:
        RunError: The database is that of something else or of another version, or can't be read.
    """

    def __init__(self, url: str | sa.URL, *, coordinators_folder: Path | None = None) -> None:
        self._url = _parse_url(url)
        self._folder = coordinators_folder or _default_coordinators_folder(self._url)
        self._engine = _make_engine(self._url)
        self._silence: dict[str, tuple[int, float]] = {}
        self._create_or_check()

    @classmethod
    def at(cls, path: Path) -> "RunStore":
        """Returns the store in a SQLite file, which is created when missing."""
        return cls(sa.URL.create("sqlite", database=str(path)))

    def __repr__(self) -> str:
        return f"RunStore({self._url.render_as_string(hide_password=True)!r})"

    # ------------------------------------------------------------------ what there is

    def add(self, specs: Sequence[RunSpec], role: Role = "design") -> int:
        """Adds runs as pending and returns how many are new; a run that is there is left alone."""
        by_id = {spec.run_id: spec for spec in specs}
        with self._begin() as connection:
            known = set(connection.scalars(sa.select(_RUNS.c.run_id)))
            rows = [
                {
                    "run_id": run_id,
                    "spec": json.dumps(spec.to_json(), ensure_ascii=True),
                    "role": role,
                    "flops": spec.flops,
                }
                for run_id, spec in by_id.items()
                if run_id not in known
            ]
            if rows:
                connection.execute(sa.insert(_RUNS), rows)
        return len(rows)

    def rows(self, run_ids: Collection[str] | None = None) -> list[RunRow]:
        """Returns runs in the order in which they were added; all by default.

        Raises:
            RunError: One of `run_ids` is not in the store.
        """
        with self._begin(write=False) as connection:
            found = connection.execute(sa.select(_RUNS).order_by(_RUNS.c.position)).all()
        wanted = None if run_ids is None else set(run_ids)
        if wanted is not None and (missing := wanted - {row.run_id for row in found}):
            raise RunError(
                f"run {min(missing)!r} is not in the store", where=repr(self), do="add it first"
            )
        return [_decode_run(row) for row in found if wanted is None or row.run_id in wanted]

    def statuses(self, run_ids: Collection[str] | None = None) -> dict[str, tuple[str, str | None]]:
        """Returns status and owner by run; cheaper than `rows`."""
        with self._begin(write=False) as connection:
            found = connection.execute(sa.select(_RUNS.c.run_id, _RUNS.c.status, _RUNS.c.owner))
            wanted = None if run_ids is None else set(run_ids)
            return {
                run_id: (status, owner)
                for run_id, status, owner in found
                if wanted is None or run_id in wanted
            }

    def count(self) -> dict[str, int]:
        """Returns the number of runs by status."""
        return dict(Counter(status for status, _ in self.statuses().values()))

    # ------------------------------------------------------------------ who works on what

    @contextmanager
    def coordinator(self) -> Generator[str]:
        """Registers a coordinator, alive until the block or the process ends; gives its name.

        Runs that it still holds at the end of the block go back to pending.
        """
        owner = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        lock = self._lock_of(owner)
        lock.acquire(timeout=BUSY_SECONDS)  # someone may just look whether it is a leftover
        ended = threading.Event()
        try:
            with self._begin() as connection:
                connection.execute(
                    sa.insert(_COORDINATORS).values(
                        owner=owner, host=platform.node(), pid=os.getpid()
                    )
                )
            beat = threading.Thread(target=self._beat, args=(owner, ended), daemon=True)
            beat.start()
            try:
                with self._engine.connect() as open_:  # SQLite tidies up after the last one
                    open_.exec_driver_sql("SELECT version FROM mixlaw_schema").close()
                    yield owner
            finally:
                ended.set()
                beat.join()
                self._bury(owner)
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def claim(self, owner: str, run_ids: Collection[str] | None = None) -> RunSpec | None:
        """Returns the longest pending run, now running for `owner` and no one else; None: no more.

        Args:
            owner: The coordinator.
            run_ids: Only one of these; of all by default.
        """
        with self._begin() as connection:
            pending = connection.execute(
                sa.select(_RUNS.c.run_id, _RUNS.c.spec)
                .where(_RUNS.c.status == "pending")
                .order_by(_RUNS.c.flops.desc(), _RUNS.c.position)
            ).all()
            for run_id, spec in pending:
                if run_ids is not None and run_id not in run_ids:
                    continue
                taken = connection.execute(
                    sa.update(_RUNS)
                    .where(_RUNS.c.run_id == run_id, _RUNS.c.status == "pending")
                    .values(status="running", owner=owner, attempts=_RUNS.c.attempts + 1)
                )
                if taken.rowcount:
                    return RunSpec.from_json(json.loads(spec))
        return None

    def finish(self, run_id: str, owner: str, *, wall_seconds: float | None = None) -> bool:
        """Marks a run as done; False: it is no longer the owner's."""
        return self._leave(run_id, owner, status="done", wall_seconds=wall_seconds, error=None)

    def fail(self, run_id: str, owner: str, error: str, *, died: bool = False) -> bool:
        """Marks a run as failed for good, for a reason; False: it is no longer the owner's."""
        return self._leave(run_id, owner, status="failed", error=error, died=died)

    def release(
        self, run_id: str, owner: str, *, died: bool = False, error: str | None = None
    ) -> bool:
        """Puts a run back to pending; False: it is no longer the owner's.

        Args:
            run_id: The run.
            owner: The coordinator that held it.
            died: Its attempt crashed, which counts towards the retries.
            error: Why.
        """
        return self._leave(run_id, owner, status="pending", error=error, died=died)

    def take_over(self) -> int:
        """Puts runs of dead coordinators back to pending and returns how many."""
        with self._begin(write=False) as connection:
            coordinators = connection.execute(sa.select(_COORDINATORS)).all()
        taken = 0
        for owner, host, _pid, heartbeats in coordinators:
            if self._may_be_dead(owner, host, heartbeats):
                with self._lock_if_free(owner) as is_free:
                    taken += self._bury(owner) if is_free else 0
        known = {row.owner for row in coordinators}
        for path in self._folder.glob("*.lock"):  # left by one killed while it came or went
            if path.stem not in known:
                with self._lock_if_free(path.stem):
                    pass
        return taken

    # ------------------------------------------------------------------ a person's decisions

    def cancel(self, run_ids: Collection[str] | None = None) -> int:
        """Cancels pending and running runs and returns how many; all by default.

        The coordinator of a running one stops its attempt within seconds.
        """
        return self._decide(("pending", "running"), run_ids, status="cancelled", owner=None)

    def retry(self, run_ids: Collection[str] | None = None) -> int:
        """Puts failed and cancelled runs back to pending and returns how many; all by default."""
        return self._decide(("failed", "cancelled"), run_ids, status="pending", deaths=0)

    def reopen(self, run_ids: Collection[str]) -> int:
        """Puts done runs, whose files are lost, back to pending and returns how many."""
        return self._decide(("done",), run_ids, status="pending", deaths=0, wall_seconds=None)

    # ------------------------------------------------------------------ inside

    def _leave(
        self, run_id: str, owner: str, *, died: bool = False, **values: str | float | None
    ) -> bool:
        with self._begin() as connection:
            changed = connection.execute(
                sa.update(_RUNS)
                .where(
                    _RUNS.c.run_id == run_id,
                    _RUNS.c.owner == owner,
                    _RUNS.c.status == "running",
                )
                .values(owner=None, deaths=_RUNS.c.deaths + int(died), **values)
            )
        return bool(changed.rowcount)

    def _decide(
        self, of: tuple[str, ...], run_ids: Collection[str] | None, **values: str | float | None
    ) -> int:
        with self._begin() as connection:
            found = connection.scalars(sa.select(_RUNS.c.run_id).where(_RUNS.c.status.in_(of)))
            chosen = [run_id for run_id in found if run_ids is None or run_id in run_ids]
            for run_id in chosen:
                connection.execute(
                    sa.update(_RUNS).where(_RUNS.c.run_id == run_id).values(**values)
                )
        return len(chosen)

    def _lock_of(self, owner: str) -> filelock.BaseFileLock:
        self._folder.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(self._folder / f"{owner}.lock", thread_local=False)

    @contextmanager
    def _lock_if_free(self, owner: str) -> Generator[bool]:
        """Holds a dead coordinator's lock, whose file goes afterwards; gives whether it is dead."""
        lock = self._lock_of(owner)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            yield False
            return
        try:
            yield True
            Path(lock.lock_file).unlink(missing_ok=True)  # no one takes this name again
        finally:
            lock.release()

    def _may_be_dead(self, owner: str, host: str, heartbeats: int) -> bool:
        if host == platform.node():
            return True  # its lock decides
        seen, since = self._silence.get(owner, (-1, 0.0))
        now = time.monotonic()
        if heartbeats != seen:
            self._silence[owner] = (heartbeats, now)
            return False
        return now - since >= FOREIGN_SILENCE_SECONDS

    def _bury(self, owner: str) -> int:
        with self._begin() as connection:
            released = connection.execute(
                sa.update(_RUNS).where(_RUNS.c.owner == owner).values(status="pending", owner=None)
            )
            connection.execute(sa.delete(_COORDINATORS).where(_COORDINATORS.c.owner == owner))
        return released.rowcount

    def _beat(self, owner: str, ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            with suppress(RunError), self._begin() as connection:  # the next one may get through
                connection.execute(
                    sa.update(_COORDINATORS)
                    .where(_COORDINATORS.c.owner == owner)
                    .values(heartbeats=_COORDINATORS.c.heartbeats + 1)
                )

    def _create_or_check(self) -> None:
        if self._url.get_backend_name() == "sqlite":
            self._check_before_writing()
        with self._begin() as connection:
            if not sa.inspect(connection).get_table_names():
                _METADATA.create_all(connection)
                connection.execute(sa.insert(_SCHEMA).values(version=SCHEMA_VERSION))
            self._check_version(connection)

    def _check_before_writing(self) -> None:
        """Checks that a SQLite file is ours or new before it gets a journal that stays with it."""
        with self._begin(write=False) as connection:
            if sa.inspect(connection).get_table_names():
                self._check_version(connection)
                return
        with self._begin(write=None) as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")

    def _check_version(self, connection: sa.Connection) -> None:
        tables = set(sa.inspect(connection).get_table_names())
        if not tables.issuperset(_METADATA.tables):
            raise RunError(
                f"the store must be a database of mixlaw, found one with the tables"
                f" {', '.join(sorted(tables)[:5])}",
                where=repr(self),
                do="name another database as the study's store",
            )
        versions = list(connection.scalars(sa.select(_SCHEMA.c.version)))
        if versions != [SCHEMA_VERSION]:
            raise RunError(
                f"the store must have version {SCHEMA_VERSION} of the schema, found"
                f" {', '.join(map(str, versions)) or 'none'}",
                where=repr(self),
                do="open it with the version of mixlaw that made it, or start a new database: runs"
                " that are done are taken from their folders",
            )

    @contextmanager
    def _begin(self, *, write: bool | None = True) -> Generator[sa.Connection]:
        """Opens a transaction; for `write`, SQLite's lock is taken at its start (None: at none)."""
        engine = self._engine.execution_options(mixlaw_begin=_BEGIN[write])
        try:
            with engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            raise self._explain(error) from error

    def _explain(self, error: DBAPIError) -> RunError:
        found = str(error.orig)
        for words, problem, do in _DATABASE_ERRORS:
            if words in found:
                return RunError(f"{problem} ({found})", where=repr(self), do=do)
        return RunError(f"the database refused: {found}", where=repr(self))


_BEGIN = {True: "BEGIN IMMEDIATE", False: "BEGIN", None: None}

_RESCUE = (
    "restore it from a backup, or move it away and plan again: runs that are done are taken from"
    " their folders"
)
_DATABASE_ERRORS = (
    ("locked", f"another process locks the store for more than {BUSY_SECONDS} s",
     "end the program that holds it open"),
    ("disk is full", "the disk of the store is full", "make space and run again"),
    ("not a database", "the store must be an SQLite database", _RESCUE),
    ("malformed", "the store is damaged", _RESCUE),
    ("unable to open", "the store can't be opened", "check that its folder exists"),
    ("readonly", "the store can't be written", "check the permissions of the file and its folder"),
)  # fmt: skip


def _parse_url(url: str | sa.URL) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except ArgumentError as error:
        raise RunError(
            "the store must be a database URL",
            do="write sqlite:///study.db or postgresql+psycopg://user@host/database",
        ) from error
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise RunError(
            "the store must be a file, which several processes can share, found none",
            do="write sqlite:///study.db",
        )
    return parsed


def _default_coordinators_folder(url: sa.URL) -> Path:
    if url.get_backend_name() != "sqlite":
        raise RunError(
            "a store that is no file needs a folder for its coordinators' locks",
            do="give `coordinators_folder`, on storage that all of them see",
        )
    return Path(str(url.database)).resolve().parent / "coordinators"


def _make_engine(url: sa.URL) -> sa.Engine:
    # A connection per transaction: nothing stays open that a fork could share or a thread could
    # close, and between a coordinator's life and the next the store is one file.
    try:
        engine = sa.create_engine(url, poolclass=sa.NullPool)
    except (NoSuchModuleError, ImportError) as error:
        raise RunError(
            f"there is no driver for {url.drivername}: {error}",
            do="install the database's driver, or use sqlite:///study.db",
        ) from error
    if url.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver opens no transactions of its own
    connection.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: sa.Connection) -> None:
    statement = connection.get_execution_options().get("mixlaw_begin")
    if statement is not None:
        connection.exec_driver_sql(statement)


def _decode_run(row: Any) -> RunRow:
    return RunRow(
        run_id=row.run_id,
        spec=RunSpec.from_json(json.loads(row.spec)),
        role=row.role,
        status=row.status,
        owner=row.owner,
        attempts=row.attempts,
        deaths=row.deaths,
        error=row.error,
        wall_seconds=row.wall_seconds,
    )
