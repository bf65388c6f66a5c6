"""From a design to runs: seeds, roles, steps, tokens, epochs, compute and time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlaw.design import Design, sample_mixtures
from mixlaw.domains import Domain
from mixlaw.errors import DesignError, RunError
from mixlaw.mixtures import Mixture
from mixlaw.runs.plan import (
    choose_noise_mixtures,
    describe_plan,
    fresh_seed,
    log_spaced_steps,
    plan_runs,
)

ODD_NAMES = ("<script>alert(1)</script>", "$(id)", "../x", 'quo"te', "émoji 🎲")
RECIPE = {"tokens_per_step": 1000, "corpus": "c0ffee", "tokenizer": "bytes", "trainer": "proxy/1"}


def make_design(*proportions, names=("web", "code")):
    mixtures = tuple(Mixture(names, shares) for shares in proportions)
    return Design(domains=names, mixtures=mixtures, method="given", seed=0)


DESIGN = make_design((0.5, 0.5), (0.9, 0.1), (0.3, 0.7))


def test_runs_of_the_design_share_one_seed_and_the_others_have_fresh_ones():
    held_out = [Mixture(("code", "web"), (0.2, 0.8)), Mixture(("web", "code"), (0.6, 0.4))]
    runs = plan_runs(DESIGN, params=1000, steps=8, noise_runs=4, holdout=held_out, seed=3, **RECIPE)
    assert [run.role for run in runs] == ["design"] * 3 + ["noise"] * 4 + ["holdout"] * 2
    assert [run.spec.seed for run in runs[:3]] == [3, 3, 3]
    fresh = [run.spec.seed for run in runs[3:]]
    assert len({3, *fresh}) == 7
    assert all(0 <= seed < 2**31 for seed in fresh)
    assert runs[7].spec.mixture == Mixture(("web", "code"), (0.8, 0.2))  # the design's order
    assert len({run.spec.run_id for run in runs}) == 9


def test_noise_runs_repeat_the_middle_and_the_farthest_mixture_in_turn():
    # Shares of web: 0.3, 0.5, 0.9 with mean 0.567, so 0.5 is the middle and 0.9 the farthest.
    runs = plan_runs(DESIGN, params=1000, steps=8, noise_runs=3, **RECIPE)
    assert [run.spec.mixture["web"] for run in runs[3:]] == [0.5, 0.9, 0.5]


def test_more_noise_runs_leave_the_earlier_ones_as_they_are():
    few = plan_runs(DESIGN, params=1000, steps=8, noise_runs=2, **RECIPE)
    many = plan_runs(DESIGN, params=1000, steps=8, noise_runs=6, **RECIPE)
    assert many[: len(few)] == few


def test_the_order_of_a_design_does_not_change_its_runs():
    names = ("c", "a", "b")
    domains = [Domain(name=name) for name in names]
    design = sample_mixtures(domains, n=6, scale=None, method="sobol")
    other = sample_mixtures(domains[::-1], n=6, scale=None, method="sobol")
    backwards = Design(domains=other.domains, mixtures=other.mixtures[::-1], method="sobol", seed=0)
    one = plan_runs(design, params=1000, steps=8, noise_runs=2, **RECIPE)
    two = plan_runs(backwards, params=1000, steps=8, noise_runs=2, **RECIPE)
    assert {run.spec.run_id for run in one} == {run.spec.run_id for run in two}


def test_every_mixture_is_trained_at_every_size():
    runs = plan_runs(DESIGN, params=(1000, 4000.0), tokens=7600, noise_runs=1, **RECIPE)
    assert [run.spec.params for run in runs] == [1000] * 4 + [4000] * 4
    assert {run.spec.steps for run in runs} == {8}  # 7.6 steps of 1000 tokens


def test_a_plan_counts_tokens_epochs_compute_and_time():
    domains = [
        Domain(name="web", available_tokens=16_000),
        Domain(name="code", available_tokens=4_000, max_epochs=1.0),
    ]
    runs = plan_runs(DESIGN, params=(1000, 2000), steps=8, noise_runs=0, **RECIPE)
    plan = describe_plan(
        runs, design=DESIGN, domains=domains, tokens_per_second={1000: 8000, 2000: 4000}, slots=2
    )
    assert plan.tokens == 6 * 8000
    assert plan.flops == 6 * (3 * 1000 + 3 * 2000) * 8000
    # 2 s for each large run and 1 s for each small one, the longest first: 2 2 | 2 1 | 1 1.
    assert plan.seconds == pytest.approx(5.0)
    web, code = plan.domains
    assert web.name == "web"
    assert web.mean_tokens == pytest.approx(8000 * (0.5 + 0.9 + 0.3) / 3)
    assert web.largest_tokens == pytest.approx(7200)
    assert web.mean_epochs == pytest.approx(8000 * 1.7 / 3 / 16_000)
    assert web.largest_epochs == pytest.approx(0.45)
    assert code.largest_epochs == pytest.approx(1.4)
    assert plan.sentences() == (
        ("coverage: the most alike mixtures differ in 20% of the tokens, an allowed mixture in at"
        " most 30% from the nearest of the design; condition number 1"),
        "runs: 6 (6 of the design)",
        "web: 4.53k tokens per run, 7.2k at most; 0.28 epochs, 0.45 at most",
        "code: 3.47k tokens per run, 5.6k at most; 0.87 epochs, 1.4 at most",
        "in all: 48k tokens, 4.3e+08 FLOPs, about 5 s with 2 at once",
        ("a run sees code 1.4 times, more often than the 1 epochs that are allowed: repeated text"
        " is worth less"),
    )  # fmt: skip


def test_what_is_not_known_is_not_said():
    domains = [Domain(name="web"), Domain(name="code")]
    runs = plan_runs(DESIGN, params=1000, steps=8, **RECIPE)
    plan = describe_plan(runs, design=DESIGN, domains=domains, tokens_per_second={7: 1.0})
    assert plan.seconds is None
    assert plan.domains[0].largest_epochs is None
    assert plan.sentences()[-1] == "in all: 24k tokens, 1.4e+08 FLOPs"
    alone = describe_plan((), design=make_design((0.5, 0.5)), domains=domains)
    assert alone.sentences() == ()


def test_names_are_data_in_a_plan():
    design = make_design((0.2,) * 5, (0.1, 0.3, 0.2, 0.2, 0.2), names=ODD_NAMES)
    runs = plan_runs(design, params=1000, steps=8, noise_runs=2, **RECIPE)
    plan = describe_plan(runs, design=design, domains=[Domain(name=name) for name in ODD_NAMES])
    assert [use.name for use in plan.domains] == list(ODD_NAMES)


@given(steps=st.integers(1, 10**6), count=st.integers(1, 30), first=st.none() | st.integers(1, 100))
def test_log_spaced_steps_rise_to_the_last(steps, count, first):
    spaced = log_spaced_steps(steps, count, first=first)
    assert list(spaced) == sorted(set(spaced))
    assert 1 <= len(spaced) <= count
    assert spaced[-1] == steps
    assert spaced[0] >= 1


def test_log_spaced_steps_are_halves_by_default():
    assert log_spaced_steps(800) == (100, 200, 400, 800)
    assert log_spaced_steps(500, 3) == (125, 250, 500)
    assert log_spaced_steps(1000, 4, first=1) == (1, 10, 100, 1000)
    assert log_spaced_steps(2, 10) == (1, 2)


def test_fresh_seeds_are_certified():
    # The first 31 bits of SHA-256 of "0/noise/0"; a change would train other noise runs.
    assert fresh_seed(0, "noise", 0) == 0x434540AD
    assert (
        len({fresh_seed(s, r, i) for s in (0, 1) for r in ("noise", "verify") for i in range(50)})
        == 200
    )


def test_a_design_of_one_mixture_repeats_it():
    single = make_design((0.5, 0.5))
    assert choose_noise_mixtures(single.mixtures) == single.mixtures
    runs = plan_runs(single, params=1000, steps=8, noise_runs=2, **RECIPE)
    assert [run.spec.mixture for run in runs] == [single.mixtures[0]] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "a plan needs either tokens or steps per run, and not both"),
        ({"steps": 4, "tokens": 4e3}, "a plan needs either tokens or steps per run, and not both"),
        (
            {"tokens": -1.0},
            "tokens and tokens_per_step must be positive, found -1 and 1000",
        ),
        ({"steps": 4, "noise_runs": -1}, "noise_runs must not be negative, found -1"),
        ({"steps": 0}, "steps and count must be positive, found 0 and 4"),
    ],
)
def test_what_can_not_be_planned_is_said(arguments, message):
    with pytest.raises(DesignError) as caught:
        plan_runs(DESIGN, params=1000, **arguments, **RECIPE)
    assert str(caught.value) == message


def test_a_run_that_can_not_be_is_said():
    with pytest.raises(RunError, match="a run's params must be positive, found 0"):
        plan_runs(DESIGN, params=0.2, steps=4, **RECIPE)
    with pytest.raises(RunError, match="eval_steps must rise and end at the last step 4"):
        plan_runs(DESIGN, params=1000, steps=4, eval_steps=[1, 2], **RECIPE)
    with pytest.raises(DesignError, match="a plan needs at least one mixture"):
        plan_runs(
            Design(domains=("a",), mixtures=(), method="given", seed=0),
            params=1000,
            steps=4,
            **RECIPE,
        )
    with pytest.raises(DesignError, match="slots must be at least 1, found 0"):
        describe_plan((), design=DESIGN, domains=[], slots=0)
