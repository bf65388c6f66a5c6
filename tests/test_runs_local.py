import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import polars as pl
import psutil
import pytest
from polars.testing import assert_frame_equal

import runs_sgd
from mixlaw.errors import ConfigError, RunError
from mixlaw.runs import Attempt, LocalExecutor, Progress, RunCounts, RunStore, read_tables
from mixlaw.runs.folder import CHECKPOINT_FILE, METRICS_FILE, read_metrics
from mixlaw.runs.spec import RunSpec

HOSTILE_NAMES = ("<script>alert(1)</script>", "$(id)", "../x", 'it\'s "quoted"', "🦜")
TRAINER = runs_sgd.SgdTrainer()


@dataclass(frozen=True)
class Study:
    folder: Path
    store: RunStore

    def executor(self, **settings: int | float) -> LocalExecutor:
        return LocalExecutor(
            store=self.store, runs_folder=self.folder / "runs", **{"slots": 2, **settings}
        )

    def error(self, spec: RunSpec) -> str:
        return str(self.store.rows([spec.run_id])[0].error)

    def metrics(self, spec: RunSpec) -> Path:
        return self.folder / "runs" / spec.run_id / METRICS_FILE

    def start_coordinator(self, step_seconds: float = 0.02) -> "subprocess.Popen[bytes]":
        script = [sys.executable, runs_sgd.__file__, str(self.folder), "2", str(step_seconds)]
        return subprocess.Popen(script, process_group=0, stderr=subprocess.PIPE)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(folder=tmp_path, store=RunStore.at(tmp_path / "study.db"))


def expected_metrics(spec: RunSpec, folder: Path) -> bytes:
    """What the run measures in one go, in this process."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    runs_sgd.SgdTrainer().train(spec, Attempt(folder=folder))
    return (folder / METRICS_FILE).read_bytes()


def assert_as_undisturbed(study: Study, specs: list[RunSpec]) -> None:
    for spec in specs:
        expected = expected_metrics(spec, study.folder / "expected")
        assert study.metrics(spec).read_bytes() == expected


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---------------------------------------------------------------------- when all goes well


def test_a_sweep_gives_what_training_in_one_go_gives(study: Study) -> None:
    specs = runs_sgd.make_specs(5, names=HOSTILE_NAMES)
    study.store.add(specs)
    seen: list[Progress] = []
    counts = study.executor().run(TRAINER, on_progress=seen.append)
    assert counts == RunCounts(total=5, done=5, failed=0, cancelled=0, reused=0)
    assert_as_undisturbed(study, specs)
    assert (seen[-1].done, seen[-1].running, seen[-1].pending, seen[-1].seconds_left) in (
        (5, 0, 0, 0.0),
        (5, 0, 0, None),  # too short for two reports
    )
    folders = {path.name for path in (study.folder / "runs").iterdir()}
    assert folders == {spec.run_id for spec in specs}
    assert {path.name for path in study.folder.iterdir()} == {
        "study.db", "runs", "coordinators", "expected",
    }  # fmt: skip


def test_nothing_is_trained_twice(study: Study) -> None:
    specs = runs_sgd.make_specs(3)
    study.store.add(specs[:2])
    study.executor().run(TRAINER)
    before = {path: path.stat() for path in (study.folder / "runs").rglob("*")}
    study.store.add(specs)
    counts = study.executor().run(TRAINER)
    assert counts == RunCounts(total=3, done=3, failed=0, cancelled=0, reused=2)
    assert {path: path.stat() for path in before} == before


def test_only_the_runs_that_are_asked_for_are_trained(study: Study) -> None:
    specs = runs_sgd.make_specs(3)
    study.store.add(specs)
    counts = study.executor().run(TRAINER, run_ids=[specs[1].run_id])
    assert (counts.total, counts.done) == (1, 1)
    assert study.store.count() == {"done": 1, "pending": 2}


def test_progress_tells_of_steps_pace_and_the_time_left(study: Study) -> None:
    study.store.add(runs_sgd.make_specs(3, steps=60))
    seen: list[Progress] = []
    study.executor(slots=1).run(runs_sgd.SgdTrainer(step_seconds=0.02), on_progress=seen.append)
    told = [p for p in seen if p.attempts and p.seconds_left and p.tokens_per_second]
    assert told
    assert all(p.running == len(p.attempts) == 1 and p.attempts[0].steps >= 60 for p in told)
    assert told[-1].seconds_left < told[0].seconds_left  # type: ignore[operator]
    # a step of 64 tokens takes 0.02 s and some more
    assert all(0 < p.tokens_per_second < 64 / 0.02 for p in told)  # type: ignore[operator]


def test_attempts_after_the_first_start_at_once(study: Study) -> None:
    study.store.add(runs_sgd.make_specs(5, steps=3))
    ends: list[float] = []

    def note(progress: Progress) -> None:
        if progress.note:
            ends.append(time.monotonic())

    study.executor(slots=1).run(TRAINER, on_progress=note)
    # a whole run, its four evaluations and its claim included
    assert min(late - early for early, late in pairwise(ends)) < 0.3


def test_two_coordinators_share_a_study(study: Study) -> None:
    specs = runs_sgd.make_specs(8)
    study.store.add(specs)
    counts: list[RunCounts] = []

    def coordinate() -> None:
        counts.append(study.executor().run(runs_sgd.SgdTrainer(step_seconds=0.005)))

    threads = [threading.Thread(target=coordinate) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [c.done for c in counts] == [8, 8]
    assert [row.attempts for row in study.store.rows()] == [1] * 8
    assert_as_undisturbed(study, specs)


# ---------------------------------------------------------------------- runs that go wrong


def test_a_killed_attempt_is_started_again_and_nothing_changes(study: Study) -> None:
    specs = runs_sgd.make_specs(3)
    study.store.add(specs)
    trainer = runs_sgd.CrashingTrainer(marks=study.folder, times=2)
    counts = study.executor(checkpoint_seconds=0.0).run(trainer)
    assert counts.done == 3
    assert [(row.attempts, row.deaths) for row in study.store.rows()] == [(3, 2)] * 3
    assert_as_undisturbed(study, specs)


def test_a_run_that_is_killed_every_time_fails_and_says_how(study: Study) -> None:
    (spec,) = runs_sgd.make_specs(1)
    study.store.add([spec])
    counts = study.executor(retries=1).run(runs_sgd.CrashingTrainer(marks=study.folder, times=9))
    assert (counts.done, counts.failed) == (0, 1)
    log = study.folder / "runs" / spec.run_id / "log.txt"
    assert study.error(spec) == (
        "the attempt was killed by SIGKILL, as the kernel does when memory runs out; 2 of its"
        f" attempts ended like that or crashed otherwise\nlast lines of {log}:\n"
        "reading the last batch"
    )


def test_a_diverged_loss_fails_at_once_and_alone(study: Study) -> None:
    specs = runs_sgd.make_specs(3)
    study.store.add(specs)
    counts = study.executor().run(runs_sgd.DivergingTrainer())
    assert (counts.done, counts.failed) == (1, 2)
    assert [row.attempts for row in study.store.rows()] == [1, 1, 1]
    assert study.error(specs[0]).startswith(
        "a loss must be finite, but that of 'code' is nan after step 13\n  do: train with a lower"
    )
    runs, _ = read_tables(study.store, study.folder / "runs")
    assert runs["run_id"].to_list() == [specs[1].run_id]


def test_a_failed_run_stays_failed_until_it_is_retried(study: Study) -> None:
    specs = runs_sgd.make_specs(1)
    study.store.add(specs)
    study.executor().run(runs_sgd.DivergingTrainer())
    assert study.executor().run(TRAINER).failed == 1
    assert study.store.retry() == 1
    assert study.executor().run(TRAINER).done == 1
    assert_as_undisturbed(study, specs)


def test_a_bug_in_the_trainer_ends_in_its_traceback(study: Study) -> None:
    (spec,) = runs_sgd.make_specs(1)
    study.store.add([spec])
    assert study.executor(retries=0).run(runs_sgd.BrokenTrainer()).failed == 1
    assert "ended with exit code 1 before its result was there" in study.error(spec)
    assert "ValueError: operands could not be broadcast together" in study.error(spec)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_fails_the_run_and_spoils_nothing(study: Study) -> None:
    specs = runs_sgd.make_specs(3)
    study.store.add(specs)
    counts = study.executor(checkpoint_seconds=0.0).run(runs_sgd.FullDiskTrainer())
    assert (counts.done, counts.failed) == (2, 1)
    assert study.error(specs[1]).startswith("the disk is full, in ")
    study.store.retry()
    assert study.executor().run(TRAINER).done == 3
    assert_as_undisturbed(study, specs)


def test_a_trainer_that_can_not_be_pickled_is_refused(study: Study) -> None:
    @dataclass(frozen=True)
    class Local:
        preload: tuple[str, ...] = ()

        def train(self, spec: RunSpec, attempt: Attempt) -> runs_sgd.TrainingSummary:
            raise NotImplementedError

    with pytest.raises(RunError, match="a value that can be pickled, but Local is not"):
        study.executor().run(Local())


def test_settings_that_make_no_sense_are_refused(study: Study) -> None:
    with pytest.raises(ConfigError, match="slots must be at least 1, found 0"):
        study.executor(slots=0)
    with pytest.raises(ConfigError, match="retries must not be negative, found -1"):
        study.executor(retries=-1)


# ---------------------------------------------------------------------- files that are lost


def test_a_folder_that_was_deleted_is_trained_again_and_no_other(study: Study) -> None:
    specs = runs_sgd.make_specs(3)
    study.store.add(specs)
    study.executor().run(TRAINER)
    shutil.rmtree(study.folder / "runs" / specs[1].run_id)
    with pytest.raises(RunError, match=r"this one is missing, in .*result.json\n  do: run again"):
        read_tables(study.store, study.folder / "runs")
    assert study.executor().run(TRAINER).reused == 2
    assert [row.attempts for row in study.store.rows()] == [1, 2, 1]
    assert_as_undisturbed(study, specs)


def test_lost_observations_are_made_anew_without_training(study: Study) -> None:
    specs = runs_sgd.make_specs(2)
    study.store.add(specs)
    study.executor().run(TRAINER)
    _, before = read_tables(study.store, study.folder / "runs")
    path = study.folder / "runs" / specs[0].run_id / "observations.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RunError, match=f"can't be read .*{specs[0].run_id}/observations.parquet"):
        read_tables(study.store, study.folder / "runs")
    path.unlink()
    study.executor().run(runs_sgd.BrokenTrainer())
    assert_frame_equal(read_tables(study.store, study.folder / "runs")[1], before)


def test_a_lost_database_costs_no_training(study: Study) -> None:
    specs = runs_sgd.make_specs(3)
    study.store.add(specs)
    study.executor().run(TRAINER)
    (study.folder / "study.db").unlink()
    anew = Study(folder=study.folder, store=RunStore.at(study.folder / "study.db"))
    anew.store.add(specs)
    assert anew.executor().run(runs_sgd.BrokenTrainer()).done == 3


def test_metrics_that_were_lost_fail_the_run_and_say_so(study: Study) -> None:
    (spec,) = runs_sgd.make_specs(1)
    study.store.add([spec])
    study.executor().run(TRAINER)
    study.metrics(spec).unlink()
    (study.folder / "runs" / spec.run_id / "observations.parquet").unlink()
    assert study.executor().run(TRAINER).failed == 1
    assert "evaluation at each of the steps [0, 13, 26, 40], found []" in study.error(spec)


def test_leftovers_of_a_cut_off_write_are_swept_out(study: Study) -> None:
    (spec,) = runs_sgd.make_specs(1)
    study.store.add([spec])
    folder = study.folder / "runs" / spec.run_id
    folder.mkdir(parents=True)
    (folder / ".checkpoint.safetensors.abc.tmp").write_bytes(b"half")
    (folder / METRICS_FILE).write_bytes(b'{"step": 0, "tok')
    study.executor().run(TRAINER)
    assert list(folder.glob(".*")) == []
    assert_as_undisturbed(study, [spec])


# ---------------------------------------------------------------------- stopping


@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM", "Ctrl-C in a terminal"])
def test_a_stop_saves_checkpoints_and_loses_nothing(study: Study, kind: str) -> None:
    specs = runs_sgd.make_specs(3, steps=300)
    study.store.add(specs)
    coordinator = study.start_coordinator()
    wait_until(lambda: sum(len(read_metrics(study.metrics(s))) > 1 for s in specs) == 2)
    if kind == "Ctrl-C in a terminal":  # which sends it to all processes of the group
        os.killpg(coordinator.pid, signal.SIGINT)
    else:
        coordinator.send_signal(getattr(signal, kind))
    _, errors = coordinator.communicate(timeout=20)
    assert coordinator.returncode == -signal.SIGINT  # Python's way of saying KeyboardInterrupt
    assert errors.endswith(b"KeyboardInterrupt\n")
    assert study.store.count() == {"pending": 3}
    assert [row.deaths for row in study.store.rows()] == [0, 0, 0]
    assert len(list((study.folder / "runs").glob(f"*/{CHECKPOINT_FILE}"))) == 2
    before = [len(read_metrics(study.metrics(spec))) for spec in specs]
    assert study.executor().run(TRAINER).done == 3
    assert_as_undisturbed(study, specs)
    assert max(before) > 1


def test_a_second_ctrl_c_does_not_wait(study: Study) -> None:
    study.store.add(runs_sgd.make_specs(2))
    executor = study.executor(grace_seconds=60.0)
    started = time.monotonic()

    def interrupt(progress: Progress) -> None:
        if progress.attempts:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        executor.run(runs_sgd.DeafTrainer(), on_progress=interrupt)
    assert time.monotonic() - started < 30
    assert study.store.count() == {"pending": 2}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_attempt_that_will_not_stop_is_killed_after_the_grace(study: Study) -> None:
    study.store.add(runs_sgd.make_specs(1))

    def interrupt(progress: Progress) -> None:
        if progress.note is None and progress.attempts:
            study.store.cancel()

    counts = study.executor(grace_seconds=0.2).run(runs_sgd.DeafTrainer(), on_progress=interrupt)
    assert (counts.cancelled, counts.failed) == (1, 0)


def test_an_error_while_showing_progress_leaves_no_process_behind(study: Study) -> None:
    study.store.add(runs_sgd.make_specs(2))
    children: list[psutil.Process] = []

    def fail(progress: Progress) -> None:
        if progress.attempts:
            children.extend(p for p in psutil.Process().children(True) if is_attempt(p))
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        study.executor().run(runs_sgd.SgdTrainer(step_seconds=0.05), on_progress=fail)
    assert children
    assert not any(is_attempt(process) for process in children)
    assert study.store.count() == {"pending": 2}


def is_attempt(process: psutil.Process) -> bool:
    try:
        parent = process.parent()
        return parent is not None and "forkserver" in " ".join(parent.cmdline())
    except psutil.NoSuchProcess:
        return False


def test_a_killed_fork_server_costs_a_retry_and_nothing_else(study: Study) -> None:
    specs = runs_sgd.make_specs(3, steps=60)
    study.store.add(specs)
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        if progress.attempts and not killed:
            (server,) = {p.ppid() for p in psutil.Process().children(True) if is_attempt(p)}
            killed.append(server)
            os.kill(server, signal.SIGKILL)

    trainer = runs_sgd.SgdTrainer(step_seconds=0.02)
    assert study.executor().run(trainer, on_progress=kill).done == 3
    assert killed
    assert_as_undisturbed(study, specs)


def test_after_a_killed_coordinator_the_next_one_goes_on_at_once(study: Study) -> None:
    specs = runs_sgd.make_specs(3, steps=300)
    study.store.add(specs)
    coordinator = study.start_coordinator()
    wait_until(lambda: sum(len(read_metrics(study.metrics(s))) > 1 for s in specs) == 2)
    coordinator.kill()
    coordinator.communicate()
    assert study.store.count() == {"pending": 1, "running": 2}
    assert study.executor().run(TRAINER).done == 3
    assert sorted(row.attempts for row in study.store.rows()) == [1, 2, 2]
    assert [row.deaths for row in study.store.rows()] == [0, 0, 0]
    assert_as_undisturbed(study, specs)


# ---------------------------------------------------------------------- where it is called from


CALL = """
    study = Path(sys.argv[1])
    store = RunStore.at(study / "study.db")
    store.add(runs_sgd.make_specs(2))
    counts = LocalExecutor(store=store, runs_folder=study / "runs", slots=2).run(TRAINER)
    sys.exit(0 if counts.done == 2 else 1)
"""
IMPORTS = """
    import sys
    from pathlib import Path
    import runs_sgd
    from mixlaw.runs import LocalExecutor, RunStore
"""
OWN_TRAINER = """
    class Mine(runs_sgd.SgdTrainer):
        pass

    TRAINER = Mine()
    if __name__ == "__main__":
"""


@pytest.mark.parametrize(
    "script",
    [
        textwrap.dedent(IMPORTS + "    TRAINER = runs_sgd.SgdTrainer()" + CALL),
        textwrap.dedent(IMPORTS + OWN_TRAINER) + CALL,
    ],
    ids=["without a guard", "with a trainer of its own"],
)
def test_a_plain_script_can_run_a_sweep(tmp_path: Path, script: str) -> None:
    path = tmp_path / "sweep.py"
    path.write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(Path(runs_sgd.__file__).parent)}
    ended = subprocess.run(
        [sys.executable, str(path), str(tmp_path)],
        check=False,
        env=environment,
        capture_output=True,
    )
    assert ended.stderr == b""
    assert ended.returncode == 0


# ---------------------------------------------------------------------- the tables


def test_tables_join_specs_and_results(study: Study) -> None:
    specs = runs_sgd.make_specs(2, names=("web", "../x"))
    other = runs_sgd.make_specs(1, names=("web", "🦜"))
    study.store.add(specs)
    study.store.add(other, role="holdout")
    study.executor().run(TRAINER)
    runs, observations = read_tables(study.store, study.folder / "runs")
    assert runs.columns[-3:] == ["r:../x", "r:web", "r:🦜"]
    assert runs["role"].to_list() == ["design", "design", "holdout"]
    assert runs["r:🦜"].to_list() == [0.0, 0.0, other[0].mixture["🦜"]]
    assert runs["r:../x"].to_list() == [*(s.mixture["../x"] for s in specs), 0.0]
    first = runs.row(0, named=True)
    assert (first["params_non_embedding"], first["learning_rate"]) == (24.0, 0.02)
    assert (first["schedule_steps"], first["corpus"]) == (40, "0123456789abcdef")
    assert (first["status"], first["origin"]) == ("done", "trained")
    rows = observations.filter(pl.col("run_id") == specs[0].run_id, pl.col("target") == "../x")
    measured = read_metrics(study.metrics(specs[0]))
    assert rows["value"].to_list() == [row.values["../x"][0] for row in measured]
    assert rows["tokens"].to_list() == [64.0 * step for step in specs[0].eval_steps]
    assert rows["unit"].unique().to_list() == ["nats_per_token"]


def test_tables_of_a_study_without_runs_are_empty(study: Study) -> None:
    runs, observations = read_tables(study.store, study.folder / "runs")
    assert (runs.height, observations.height) == (0, 0)
    assert observations.columns[:4] == ["run_id", "step", "tokens", "target"]
