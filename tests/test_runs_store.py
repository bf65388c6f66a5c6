import json
import multiprocessing
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

import runs_sgd
from mixlaw.errors import RunError
from mixlaw.mixtures import Mixture
from mixlaw.runs import store as store_module
from mixlaw.runs.spec import RunSpec
from mixlaw.runs.store import RunStore

HOSTILE_NAMES = ("<script>alert(1)</script>", "$(id)", "../x", 'it\'s "quoted"', "🦜", "r:web")


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.at(tmp_path / "study.db")


def test_a_run_that_is_there_is_left_alone(store: RunStore) -> None:
    specs = runs_sgd.make_specs(3)
    assert store.add(specs[:2]) == 2
    assert store.add([*specs, specs[2]], role="holdout") == 1
    assert [row.role for row in store.rows()] == ["design", "design", "holdout"]
    assert [row.spec for row in store.rows()] == [
        RunSpec.from_json(spec.to_json()) for spec in specs
    ]


def test_specs_survive_the_store_whatever_their_domains_are_called(store: RunStore) -> None:
    (spec,) = runs_sgd.make_specs(1, names=HOSTILE_NAMES)
    store.add([spec])
    (row,) = store.rows()
    assert row.run_id == spec.run_id == row.spec.run_id
    assert dict(row.spec.mixture) == dict(spec.mixture)


def test_the_longest_run_is_claimed_first(store: RunStore) -> None:
    short, long, middle = (runs_sgd.make_specs(1, params=params)[0] for params in (10, 30, 20))
    store.add([short, long, middle])
    with store.coordinator() as owner:
        claimed = [store.claim(owner) for _ in range(4)]
    assert [spec and spec.params for spec in claimed] == [30, 20, 10, None]


def test_only_the_runs_that_are_asked_for_are_claimed(store: RunStore) -> None:
    specs = runs_sgd.make_specs(3)
    store.add(specs)
    with store.coordinator() as owner:
        claimed = store.claim(owner, [specs[1].run_id])
        assert claimed is not None
        assert claimed.run_id == specs[1].run_id
        assert store.claim(owner, [specs[1].run_id]) is None


def test_only_the_owner_ends_a_run(store: RunStore) -> None:
    (spec,) = runs_sgd.make_specs(1)
    store.add([spec])
    with store.coordinator() as owner, store.coordinator() as other:
        store.claim(owner)
        assert not store.finish(spec.run_id, other)
        assert not store.release(spec.run_id, other)
        assert store.finish(spec.run_id, owner, wall_seconds=2.5)
        assert not store.fail(spec.run_id, owner, "too late")
    (row,) = store.rows()
    assert (row.status, row.owner, row.attempts, row.wall_seconds) == ("done", None, 1, 2.5)


def test_a_coordinator_that_leaves_gives_its_runs_back(store: RunStore, tmp_path: Path) -> None:
    store.add(runs_sgd.make_specs(2))
    with store.coordinator() as owner:
        assert store.claim(owner) is not None
        assert len(list((tmp_path / "coordinators").iterdir())) == 1
    assert store.count() == {"pending": 2}
    assert list((tmp_path / "coordinators").iterdir()) == []


def claim_all(path: Path) -> list[str]:
    store, claimed = RunStore.at(path), []
    with store.coordinator() as owner:
        while (spec := store.claim(owner)) is not None:
            claimed.append(spec.run_id)
            store.finish(spec.run_id, owner)
    return claimed


def test_processes_claim_each_run_exactly_once(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    specs = runs_sgd.make_specs(60)
    RunStore.at(path).add(specs)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        claimed = pool.map(claim_all, [path] * 4, chunksize=1)
        pool.close()
        pool.join()
    assert sorted(run_id for of_one in claimed for run_id in of_one) == sorted(
        spec.run_id for spec in specs
    )
    assert RunStore.at(path).count() == {"done": 60}


CLAIM_AND_DIE = """
import os, signal, sys
from pathlib import Path
from mixlaw.runs.store import RunStore
store = RunStore.at(Path(sys.argv[1]))
with store.coordinator() as owner:
    store.claim(owner)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_runs_of_a_killed_coordinator_are_taken_over_at_once(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    store = RunStore.at(path)
    store.add(runs_sgd.make_specs(2))
    killed = subprocess.run([sys.executable, "-c", CLAIM_AND_DIE, str(path)], check=False)
    assert killed.returncode == -9
    assert store.count() == {"pending": 1, "running": 1}
    with store.coordinator() as owner:
        store.claim(owner)
        assert store.take_over() == 1  # and not the run of the one who asks
        assert store.count() == {"pending": 1, "running": 1}
        assert store.take_over() == 0
    assert [row.deaths for row in store.rows()] == [0, 0]


def test_locks_that_a_kill_has_left_are_swept_out(store: RunStore, tmp_path: Path) -> None:
    with store.coordinator() as owner:
        (tmp_path / "coordinators" / "left-over.lock").touch()
        store.take_over()
        assert [p.stem for p in (tmp_path / "coordinators").iterdir()] == [owner]


def test_another_host_is_dead_once_its_heartbeat_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "study.db"
    store = RunStore.at(path)
    (spec,) = runs_sgd.make_specs(1)
    store.add([spec])
    with sqlite3.connect(path) as database:
        database.execute("INSERT INTO coordinators VALUES ('theirs', 'elsewhere', 1, 7)")
        database.execute("UPDATE runs SET status = 'running', owner = 'theirs'")
    assert store.take_over() == 0  # seen for the first time
    assert store.take_over() == 0  # not silent for long enough
    monkeypatch.setattr(store_module, "FOREIGN_SILENCE_SECONDS", 0.0)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE coordinators SET heartbeats = 8")
    assert store.take_over() == 0  # it lives
    assert store.take_over() == 1
    database.close()


def test_a_living_coordinator_has_a_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "HEARTBEAT_SECONDS", 0.01)
    path = tmp_path / "study.db"
    with RunStore.at(path).coordinator(), sqlite3.connect(path) as database:
        query = "SELECT heartbeats FROM coordinators"
        while database.execute(query).fetchone()[0] < 2:
            pass
    database.close()


def test_cancel_retry_and_reopen_change_only_what_they_may(store: RunStore) -> None:
    specs = runs_sgd.make_specs(4)
    done, failed, running, pending = (spec.run_id for spec in specs)
    store.add(specs)
    with store.coordinator() as owner:
        for run_id in (done, failed, running):
            store.claim(owner, [run_id])
        store.finish(done, owner)
        store.fail(failed, owner, "the loss diverged", died=True)
        assert store.cancel() == 2
        assert not store.finish(running, owner)
        assert [row.status for row in store.rows()] == ["done", "failed", "cancelled", "cancelled"]
        assert store.rows([failed])[0].error == "the loss diverged"
        assert store.retry([failed, pending]) == 2
        assert store.reopen([done, running]) == 1
        assert [row.status for row in store.rows()] == [
            "pending",
            "pending",
            "cancelled",
            "pending",
        ]
        assert [row.deaths for row in store.rows()] == [0, 0, 0, 0]


def test_an_unknown_run_is_named(store: RunStore) -> None:
    with pytest.raises(RunError, match="run 'feed' is not in the store"):
        store.rows(["feed"])


def test_a_foreign_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "music.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE albums (title TEXT)")
    database.close()
    before = path.read_bytes()
    with pytest.raises(RunError, match=r"must be a database of mixlaw, found .* tables albums"):
        RunStore.at(path)
    assert path.read_bytes() == before


def test_another_version_of_the_schema_is_refused(store: RunStore, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("UPDATE mixlaw_schema SET version = 99")
    database.close()
    with pytest.raises(RunError, match="must have version 1 of the schema, found 99"):
        RunStore.at(tmp_path / "study.db")


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    path.write_text("name,loss\n" * 200)
    with pytest.raises(
        RunError, match=r"must be an SQLite database .*in RunStore\('sqlite:///.*db'"
    ):
        RunStore.at(path)


def test_a_damaged_database_is_named(store: RunStore, tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    store.add(runs_sgd.make_specs(40))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(RunError, match="the store is damaged"):
        store.rows()


def test_a_store_that_stays_locked_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "study.db"
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0)
    store = RunStore.at(path)
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    with pytest.raises(RunError, match="another process locks the store"):
        store.add(runs_sgd.make_specs(1))
    database.close()


def test_a_store_in_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the store can't be opened"):
        RunStore.at(tmp_path / "nowhere" / "study.db")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_store_in_memory_is_refused(url: str) -> None:
    with pytest.raises(RunError, match="the store must be a file"):
        RunStore(url)


def test_what_is_no_url_is_refused() -> None:
    with pytest.raises(RunError, match="the store must be a database URL"):
        RunStore("study.db")


def test_a_missing_driver_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no driver for nosuchdb"):
        RunStore("nosuchdb://host/study", coordinators_folder=tmp_path)


def test_passwords_appear_in_no_text(store: RunStore) -> None:
    store._url = sa.make_url("postgresql+psycopg://ann:s3cret@host/study")
    assert repr(store) == "RunStore('postgresql+psycopg://ann:***@host/study')"


def test_the_order_of_domains_changes_no_run() -> None:
    (spec,) = runs_sgd.make_specs(1, names=("b", "a", "c"))
    values = json.loads(json.dumps(spec.to_json()))
    assert RunSpec.from_json(values).run_id == spec.run_id
    turned = Mixture.of({name: spec.mixture[name] for name in ("c", "b", "a")})
    assert RunSpec.from_json({**values, "mixture": turned}).run_id == spec.run_id


def test_a_spec_of_another_version_is_refused() -> None:
    (spec,) = runs_sgd.make_specs(1)
    with pytest.raises(RunError, match="'dropout' is missing or unknown"):
        RunSpec.from_json({**spec.to_json(), "dropout": 0.1})


def test_numbers_that_are_the_same_give_the_same_run() -> None:
    (spec,) = runs_sgd.make_specs(1)
    same = {
        **spec.to_json(),
        "params": 1e3,
        "steps": np.int64(40),
        "eval_steps": [0.0, np.int32(13), 26, 40],
    }
    assert RunSpec.from_json(same).run_id == spec.run_id
    whole, decimal = ({**spec.to_json(), "learning_rate": rate} for rate in (1, 1.0))
    assert RunSpec.from_json(whole).run_id == RunSpec.from_json(decimal).run_id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": 2.5}, "a run's params must be a whole number, found 2.5"),
        ({"steps": "many"}, "a run's steps must be a whole number, found 'many'"),
        ({"params": 0}, "a run's params must be positive, found 0"),
        ({"learning_rate": float("nan")}, "a run's learning_rate must be positive, found nan"),
        ({"eval_steps": [40, 13]}, r"eval_steps must rise and end at the last step 40, found \[40"),
    ],
)
def test_specs_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    (spec,) = runs_sgd.make_specs(1)
    with pytest.raises(RunError, match=message):
        RunSpec.from_json({**spec.to_json(), **change})
