"""The executor trains a run after the one whose weights it starts from, or says why it can't."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import runs_sgd
from mixlaw.errors import RunError
from mixlaw.runs import LocalExecutor, RunStore
from mixlaw.runs.attempt import Attempt
from mixlaw.runs.folder import RESULT_FILE, TrainingSummary, read_result
from mixlaw.runs.spec import RunSpec
from mixlaw.runs.starts import start_of_run


@dataclass(frozen=True, kw_only=True)
class FollowingTrainer(runs_sgd.SgdTrainer):
    """Refuses a run whose parent is not trained."""

    def train(self, spec: RunSpec, attempt: Attempt) -> TrainingSummary:
        name = spec.parent_run_id
        if name is not None and read_result(attempt.folder.parent / name, name) is None:
            raise RunError("came before its parent")
        return super().train(spec, attempt)


@dataclass(frozen=True, kw_only=True)
class RefusingTrainer(runs_sgd.SgdTrainer):
    """Fails on runs that start from nothing."""

    def train(self, spec: RunSpec, attempt: Attempt) -> TrainingSummary:
        if spec.start is None:
            raise RunError("this one can't be trained")
        return super().train(spec, attempt)


def make_family(children: int = 3) -> list[RunSpec]:
    """A parent, children that are longer, so that they'd be first, and a grandchild."""
    parent, *others = runs_sgd.make_specs(1 + children, steps=8)
    younger = [
        replace(spec, start=start_of_run(parent), steps=30, eval_steps=(0, 30)) for spec in others
    ]
    grandchild = replace(younger[0], start=start_of_run(younger[0]), steps=50, eval_steps=(0, 50))
    return [parent, *younger, grandchild]


def make_executor(folder: Path, specs: list[RunSpec], slots: int = 2) -> LocalExecutor:
    store = RunStore.at(folder / "study.db")
    store.add(specs)
    return LocalExecutor(store=store, runs_folder=folder / "runs", slots=slots)


@pytest.mark.parametrize("slots", [1, 4])
def test_parents_are_trained_before_their_children(tmp_path: Path, slots: int) -> None:
    family = make_family()
    executor = make_executor(tmp_path, family[::-1], slots)
    counts = executor.run(FollowingTrainer())
    assert (counts.total, counts.done) == (5, 5)


def test_a_parent_that_is_not_asked_for_is_trained_too(tmp_path: Path) -> None:
    family = make_family()
    executor = make_executor(tmp_path, family)
    counts = executor.run(FollowingTrainer(), run_ids=[family[-1].run_id])
    assert (counts.total, counts.done) == (3, 3)
    statuses = {run_id: status for run_id, (status, _) in executor.store.statuses().items()}
    assert [statuses[spec.run_id] for spec in family] == [
        *("done", "done", "pending", "pending", "done")
    ]
    again = executor.run(FollowingTrainer(), run_ids=[family[-1].run_id])
    assert (again.total, again.reused) == (1, 1)


def test_a_parent_whose_files_are_lost_is_trained_again_for_a_new_child(tmp_path: Path) -> None:
    family = make_family()
    executor = make_executor(tmp_path, family[:2])
    executor.run(FollowingTrainer())
    (tmp_path / "runs" / family[0].run_id / RESULT_FILE).unlink()
    executor.store.add(family[2:])
    counts = executor.run(FollowingTrainer(), run_ids=[family[2].run_id])
    assert (counts.total, counts.done) == (2, 2)


def test_a_failed_parent_fails_its_children_with_the_reason(tmp_path: Path) -> None:
    family = make_family()
    stranger = runs_sgd.make_specs(5)[-1]
    stranger = replace(stranger, start="run:" + "0" * 16)  # a parent that the store does not know
    executor = make_executor(tmp_path, [*family, stranger])
    counts = executor.run(RefusingTrainer())
    assert (counts.total, counts.failed, counts.done) == (6, 5, 1)
    rows = {row.run_id: row for row in executor.store.rows()}
    assert "this one can't be trained" in str(rows[family[0].run_id].error)
    for child in family[1:]:
        assert rows[child.run_id].error == (
            f"run {child.parent_run_id}, whose weights it starts from, is failed; retry both once"
            " that can be trained"
        )
    executor.store.retry()
    assert executor.run(FollowingTrainer(), run_ids=[s.run_id for s in family]).done == 5


def test_a_cancelled_parent_fails_its_children(tmp_path: Path) -> None:
    family = make_family(1)
    executor = make_executor(tmp_path, family)
    executor.store.cancel([family[0].run_id])
    counts = executor.run(FollowingTrainer())
    assert (counts.cancelled, counts.failed) == (1, 2)
    assert "is cancelled" in str(executor.store.rows([family[1].run_id])[0].error)
