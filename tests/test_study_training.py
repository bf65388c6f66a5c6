"""A study's plain answer beside runs with stages, continued runs and tasks in the same folder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mixlaw.mixtures import Mixture
from mixlaw.observations import loss_target_names, task_target_names
from mixlaw.runs import read_tables
from mixlaw.runs.plan_continual import plan_continual
from mixlaw.runs.plan_schedules import plan_schedules, sample_schedules
from mixlaw.study import Study
from mixlaw.study.training import base_spec
from tiny_studies import (
    copy_trained,
    few_draws,  # noqa: F401 - applies to every test here
)

pytestmark = pytest.mark.train


def test_other_runs_change_nothing_of_the_plain_answer(tmp_path: Path) -> None:
    study = copy_trained(tmp_path / "s")
    tables, fit, status = study.tables(), study.fit(), study.status()
    assert study.corpus is not None
    base = base_spec(study.question, study.corpus)
    two = base.mixture.names[:2]
    planned = (
        *plan_continual(
            replace(base, mixture=Mixture.uniform(two)),
            new=Mixture.of({base.mixture.names[2]: 1.0}),
            old_shares=(0.3, 0.7),
            steps=10,
        ),
        *plan_schedules(
            base,
            sample_schedules(
                [
                    Mixture.of(dict(zip(base.mixture, r, strict=True)))
                    for r in ((0.5, 0.3, 0.2), (0.2, 0.3, 0.5))
                ],
                stages=2,
                seed=2,
            ),
        ),
    )
    assert sum(bool(run.spec.later_stages) for run in planned) == 2
    counts = study.train_planned(planned, slots=2, retry=False, on_runs=None)
    assert (counts.done, counts.failed) == (5, 0)
    for before, after in zip(tables, study.tables(), strict=True):
        assert before.equals(after)
    assert np.array_equal(fit.theta_TP, study.fit().theta_TP)
    now = study.status()
    *plain, others = now.sentences
    assert tuple(plain) == status.sentences  # none of them is called unused
    assert others.startswith("5 of the runs have stages, or belong to continual pre-training")
    assert now.runs["original"] == {"done": 1}
    assert now.runs["design"] == {"done": status.runs["design"]["done"] + 4}
    runs, _ = read_tables(study.store, study.runs_folder)
    assert runs["stages"].drop_nulls().len() == 2
    assert runs["parent_run_id"].drop_nulls().len() == 2


def test_a_study_with_tasks_is_fitted_to_losses(tmp_path: Path) -> None:
    study = copy_trained(tmp_path / "s")
    losses = study.fit().table.y_RT
    file = study.path / "mixlaw.toml"
    file.write_text(file.read_text().replace("params = 3000", "params = 3000\ntasks = true"))
    study = Study.open(study.path)
    plan = study.plan()
    assert {run.spec.trainer for run in plan.runs} == {"proxy/1-T128-V192-cpu-W400"}
    assert "12 runs of an earlier text or configuration are kept, but not used" in str(
        study.status().sentences
    )
    design = [run for run in plan.runs if run.role == "design"]
    counts = study.train_planned(design, slots=2, retry=False, on_runs=None)
    assert (counts.done, counts.failed) == (8, 0)
    _, observations = study.tables()
    assert loss_target_names(observations) == ("books", "code", "recipes", "web")
    assert task_target_names(observations) == tuple(
        f"task:{name}" for name in loss_target_names(observations)
    )
    fit = study.fit()
    assert fit.targets == loss_target_names(observations)
    assert np.array_equal(fit.table.y_RT, losses)
