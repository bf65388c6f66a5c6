"""From an original run and shares of its data to the runs that go on from its weights."""

from dataclasses import replace

import pytest

from mixlaw.errors import DesignError, RunError
from mixlaw.mixtures import Mixture
from mixlaw.runs.plan_continual import blend_mixtures, plan_continual
from mixlaw.runs.spec import RunSpec, Stage
from mixlaw.runs.starts import start_of_run

OLD = Mixture.of({"<script>": 0.75, "web": 0.25})
NEW = Mixture.of({"code": 0.5, "web": 0.5})
ORIGINAL = RunSpec(
    mixture=OLD,
    params=1000,
    steps=100,
    tokens_per_step=1000,
    eval_steps=(50, 100),
    corpus="c0ffee",
    tokenizer="bytes",
    trainer="proxy/1",
)


def test_continued_runs_mix_old_and_new_data_and_start_from_the_original() -> None:
    planned = plan_continual(ORIGINAL, new=NEW, old_shares=(0.2, 0.6), steps=40)
    assert [run.role for run in planned] == ["original", "design", "design"]
    assert planned[0].spec == ORIGINAL
    first, second = (run.spec for run in planned[1:])
    assert dict(first.mixture) == pytest.approx({"<script>": 0.15, "web": 0.45, "code": 0.4})
    assert dict(second.mixture) == pytest.approx({"<script>": 0.45, "web": 0.35, "code": 0.2})
    assert {first.start, second.start} == {start_of_run(ORIGINAL)}
    assert first.eval_steps == (0, 5, 10, 20, 40)
    assert replace(first, mixture=second.mixture) == second


def test_seeds_are_fresh_and_shared_by_the_shares() -> None:
    planned = plan_continual(ORIGINAL, new=NEW, old_shares=(0.1, 0.3, 0.9), steps=4, replicates=4)
    seeds = [run.spec.seed for run in planned]
    assert len(set(seeds[1:4])) == 1
    assert len(set(seeds)) == 6  # the original's, that of the shares, four of replicates
    other = plan_continual(ORIGINAL, new=NEW, old_shares=(0.1, 0.3, 0.9), steps=4, seed=1)
    assert other[1].spec.seed not in seeds
    # Shares 0.1, 0.3 and 0.9 have the mean 0.43: 0.3 is nearest to it and 0.9 farthest from that.
    repeated = [planned[4 + k].spec.mixture for k in range(4)]
    assert repeated == [planned[2].spec.mixture, planned[3].spec.mixture] * 2


def test_more_replicates_leave_the_earlier_ones_as_they_are() -> None:
    few = plan_continual(ORIGINAL, new=NEW, old_shares=(0.1, 0.3), tokens=4e3, replicates=1)
    many = plan_continual(ORIGINAL, new=NEW, old_shares=(0.1, 0.3), tokens=4e3, replicates=3)
    assert many[: len(few)] == few
    assert few[1].spec.steps == 4


def test_given_weights_need_no_original_run() -> None:
    start = "file:0123456789abcdef"
    planned = plan_continual(ORIGINAL, new=NEW, old_shares=(0.5,), steps=4, start=start)
    assert [(run.role, run.spec.start) for run in planned] == [("design", start)]


def test_an_original_with_stages_is_continued_with_all_its_data() -> None:
    staged = replace(ORIGINAL, later_stages=(Stage(from_step=50, mixture=NEW),))
    planned = plan_continual(staged, new=Mixture.of({"law": 1.0}), old_shares=(1.0,), steps=4)
    assert dict(planned[1].spec.mixture) == pytest.approx(
        {"<script>": 0.375, "web": 0.375, "code": 0.25, "law": 0.0}
    )
    assert planned[1].spec.later_stages == ()
    only = plan_continual(staged, new=NEW, old=OLD, old_shares=(1.0,), steps=4)
    assert only[1].spec.mixture["<script>"] == 0.75


def test_what_can_not_be_planned_is_said() -> None:
    with pytest.raises(DesignError, match=r"must be between 0 and 1, found 1\.5"):
        blend_mixtures(OLD, NEW, 1.5)
    with pytest.raises(DesignError, match="either tokens or steps"):
        plan_continual(ORIGINAL, new=NEW, old_shares=(0.5,))
    with pytest.raises(DesignError, match="at least one mixture"):
        plan_continual(ORIGINAL, new=NEW, old_shares=(), steps=4)
    with pytest.raises(DesignError, match="replicates must not be negative, found -1"):
        plan_continual(ORIGINAL, new=NEW, old_shares=(0.5,), steps=4, replicates=-1)
    with pytest.raises(RunError, match="must be `run:` or `file:`"):
        plan_continual(ORIGINAL, new=NEW, old_shares=(0.5,), steps=4, start="weights")
