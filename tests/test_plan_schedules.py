"""From mixtures to schedules of a few stages, and to the runs that train them."""

from collections import Counter
from dataclasses import replace

import pytest

from mixlaw.errors import DesignError, RunError
from mixlaw.mixtures import Mixture
from mixlaw.runs.plan_schedules import (
    plan_schedules,
    sample_schedules,
    schedule_spec,
    stage_ends,
)
from mixlaw.runs.spec import RunSpec

MIXTURES = [Mixture.of({"$(id)": k / 10, "web": 1 - k / 10}) for k in range(1, 9)]
BASE = RunSpec(
    mixture=MIXTURES[0],
    params=1000,
    steps=100,
    tokens_per_step=1000,
    eval_steps=(50, 100),
    corpus="c0ffee",
    tokenizer="bytes",
    trainer="proxy/1",
)


def test_every_mixture_is_once_in_every_stage() -> None:
    drawn = sample_schedules(MIXTURES, stages=3, seed=1)
    assert len(drawn) == 8
    for stage in range(3):
        assert Counter(schedule[stage] for schedule in drawn) == Counter(MIXTURES)
    assert drawn == sample_schedules(MIXTURES, stages=3, seed=1)
    assert drawn != sample_schedules(MIXTURES, stages=3, seed=2)


def test_constant_schedules_are_added_and_keep_the_run_ids_of_constant_runs() -> None:
    drawn = sample_schedules(MIXTURES, stages=2, constant=2)
    assert drawn[8:] == ((MIXTURES[0],) * 2, (MIXTURES[4],) * 2)
    runs = plan_schedules(BASE, drawn)
    assert [run.spec.run_id for run in runs[8:]] == [
        replace(BASE, mixture=MIXTURES[k]).run_id for k in (0, 4)
    ]
    assert sample_schedules(MIXTURES, stages=1) == tuple((mixture,) for mixture in MIXTURES)


def test_runs_of_the_design_share_one_seed_and_the_others_have_fresh_ones() -> None:
    drawn = sample_schedules(MIXTURES, stages=2)
    runs = plan_schedules(BASE, drawn[:4], noise_runs=3, holdout=drawn[4:6], seed=9)
    assert [run.role for run in runs] == ["design"] * 4 + ["noise"] * 3 + ["holdout"] * 2
    assert [run.spec.seed for run in runs[:4]] == [9] * 4
    assert len({9, *(run.spec.seed for run in runs[4:])}) == 6
    assert [run.spec.mixture_id for run in runs[4:7]] == [
        runs[index].spec.mixture_id for index in (0, 2, 0)
    ]


def test_stages_end_at_whole_steps() -> None:
    assert stage_ends(100, 3) == (33, 67, 100)
    assert stage_ends(100, 2, shares=(0.805, 1.0)) == (80, 100)
    assert stage_ends(7, 1) == (7,)
    spec = schedule_spec(BASE, (MIXTURES[2], MIXTURES[5]), ends=(80, 100), seed=4)
    assert spec.stages == ((80, MIXTURES[2]), (100, MIXTURES[5]))
    assert spec.seed == 4
    (run,) = plan_schedules(BASE, [(MIXTURES[2], MIXTURES[5])], end_shares=(0.8, 1.0))
    assert run.spec.stages == spec.stages
    assert run.spec.mean_mixture["$(id)"] == pytest.approx(0.8 * 0.3 + 0.2 * 0.6)


def test_what_can_not_be_planned_is_said() -> None:
    pair = (MIXTURES[0], MIXTURES[1])
    with pytest.raises(DesignError, match=r"schedules of one number of stages, found \[1, 2\]"):
        plan_schedules(BASE, [pair, pair[:1]])
    with pytest.raises(DesignError, match="schedules of one number of stages, found none"):
        plan_schedules(BASE, [])
    for shares in ((0.5,), (0.5, 0.9), (0.6, 0.4), (0.0, 1.0)):
        with pytest.raises(DesignError, match="the ends of 2 stages must rise to 1"):
            plan_schedules(BASE, [pair], end_shares=shares)
    with pytest.raises(RunError, match=r"stages must begin after one another.*found \[0\]"):
        plan_schedules(BASE, [pair], end_shares=(0.001, 1.0))
    with pytest.raises(DesignError, match="noise_runs must not be negative, found -1"):
        plan_schedules(BASE, [pair], noise_runs=-1)
    with pytest.raises(DesignError, match="found 1, 2 and 0"):
        sample_schedules(MIXTURES[:1], stages=2)
