"""Laws of schedules fitted to runs of one and of several stages."""

import numpy as np
import polars as pl
import pytest

from mixlaw.errors import FitError, MixtureError
from mixlaw.fit import fit_law
from mixlaw.fit.stages import Schedule, StagedFit, fit_schedules, read_schedules
from mixlaw.laws.library import MIXING_LAWS
from mixlaw.laws.stack import StackedLaw
from mixlaw.mixtures import Mixture
from mixlaw.selection.schedules import predict_schedules, score_schedules
from schedule_studies import (
    DOMAINS,
    THETA_TP,
    draw_pairs,
    planted_study,
    staged_tables,
    true_losses,
)

FRACTIONS = (0.8, 0.2)


@pytest.fixture(scope="module")
def exact() -> StagedFit:
    """The fit to runs without noise."""
    _, runs, observations = planted_study()
    return fit_schedules("m4", runs, observations, num_draws=2)


def test_planted_losses_are_predicted_where_nothing_was_run(exact: StagedFit) -> None:
    held = draw_pairs(np.random.default_rng(9), 20)
    told = predict_schedules(exact, held)
    assert np.max(np.abs(told.value_RK - true_losses(held))) < 0.003


def test_left_out_schedules_are_predicted_better_than_by_simple_rules(exact: StagedFit) -> None:
    law, mean, last = exact.errors
    assert (mean.name, last.name) == ("mean mixture", "last stage only")
    assert law.mae < 0.1 * min(mean.mae, last.mae)


def test_other_stages_than_those_of_the_runs_are_predicted() -> None:
    _, runs, observations = planted_study()
    fit = fit_schedules("m4", runs, observations, fractions=(0.3, 0.3, 0.4), num_draws=2)
    assert fit.ends == pytest.approx((0.3, 0.6, 0.8, 1.0))
    held = draw_pairs(np.random.default_rng(8), 20, (0.3, 0.3, 0.4))
    off = predict_schedules(fit, held).value_RK - true_losses(held)
    # What is early in the first 80% was never told apart: k and d follow from the last fifth alone.
    assert np.mean(np.abs(off)) < 0.02


def test_constant_part_of_the_fit_says_what_constant_schedules_say(exact: StagedFit) -> None:
    mixture = Mixture.of({"code": 0.2, "prose": 0.5, "web": 0.3})
    whole = predict_schedules(exact, [Schedule.constant(mixture, FRACTIONS)]).value_RK[0]
    np.testing.assert_allclose(exact.constant.losses(mixture.array()[None])[0], whole, rtol=1e-12)


def test_runs_of_one_mixture_alone_are_fitted_as_before() -> None:
    _, runs, observations = planted_study(noise=0.01)
    constant = runs.filter(pl.col("stages").is_null())
    plain = fit_law("m4", constant, observations, num_draws=2)
    staged = fit_schedules("m4", runs, observations, num_draws=2)
    r_RM = plain.table.r_RM
    assert np.max(np.abs(plain.losses(r_RM) - staged.constant.losses(r_RM))) < 0.02


def test_recency_of_the_planted_law_is_found(exact: StagedFit) -> None:
    found = exact.recency()
    assert found["code"][0] == pytest.approx(THETA_TP[0, 4], abs=0.8)
    assert found["prose"][0] == pytest.approx(THETA_TP[1, 4], abs=0.8)


def test_order_that_does_not_matter_is_found_not_to() -> None:
    theta_TP = THETA_TP.copy()
    theta_TP[:, 4:] = [0.0, 0.0, 6.0]
    _, runs, observations = planted_study(theta_TP=theta_TP, noise=0.003)
    fit = fit_schedules("m4", runs, observations, num_draws=2)
    assert all(abs(k) < 0.7 for k, _, _ in fit.recency().values())


def test_stack_is_fitted_member_by_member() -> None:
    _, runs, observations = planted_study(noise=0.003)
    law = StackedLaw((MIXING_LAWS["m4"], MIXING_LAWS["linear"]), (0.8, 0.2))
    fit = fit_schedules(law, runs, observations, num_draws=2)
    held = draw_pairs(np.random.default_rng(9), 10)
    assert np.mean(np.abs(predict_schedules(fit, held).value_RK - true_losses(held))) < 0.03
    mixture = Mixture.of({"code": 0.2, "prose": 0.5, "web": 0.3})
    whole = predict_schedules(fit, [Schedule.constant(mixture, FRACTIONS)]).value_RK[0]
    np.testing.assert_allclose(fit.constant.losses(mixture.array()[None])[0], whole, rtol=1e-12)
    assert set(fit.recency()) == {"code", "prose"}


def test_held_out_schedules_are_scored_beside_simple_rules() -> None:
    rng = np.random.default_rng(3)
    schedules, _, _ = planted_study()
    held = draw_pairs(rng, 10)
    everything = [*schedules, *held]
    y_RT = true_losses(everything) + 0.005 * rng.normal(size=(len(everything), 2))
    roles = ["design"] * len(schedules) + ["holdout"] * len(held)
    runs, observations = staged_tables(everything, y_RT, roles=roles)
    fit = fit_schedules("m4", runs, observations, num_draws=20)
    assert fit.num_staged == 10
    scores = score_schedules(fit, runs, observations, {"code": 0.5, "prose": 0.5})
    assert [score.target for score in scores] == ["code", "prose", "objective"]
    assert all(score.count == 10 for score in scores)
    assert all(score.mae < 0.5 * score.last_stage_mae for score in scores)
    assert sum(score.inside for score in scores) >= 24


def test_too_few_staged_runs_are_refused_with_a_way_out() -> None:
    _, runs, observations = planted_study()
    staged = pl.col("stages").is_not_null()
    few = pl.concat([runs.filter(~staged), runs.filter(staged).head(3)])
    with pytest.raises(FitError, match="at least 4 runs whose mixture changes") as caught:
        fit_schedules("m4", few, observations)
    assert "mixlaw schedule --train" in str(caught.value)


def test_staged_runs_of_another_size_are_left_out_and_told() -> None:
    _, runs, observations = planted_study()
    last = pl.col("run_id") == "run019"
    other = runs.with_columns(
        pl.when(last)
        .then(1e6)
        .otherwise(pl.col("params_non_embedding"))
        .alias("params_non_embedding")
    )
    fit = fit_schedules("m4", other, observations, num_draws=2)
    assert fit.num_staged == 9
    assert any("1 runs of several stages" in note for note in fit.notes)


def test_schedule_that_ends_elsewhere_is_refused(exact: StagedFit) -> None:
    schedule = Schedule.constant(Mixture.uniform(DOMAINS), (0.5, 0.5))
    with pytest.raises(FitError, match="no end of the fit"):
        exact.row(schedule)


@pytest.mark.parametrize("fractions", [(0.5, 0.4), (1.2, -0.2), (float("nan"), 0.5)])
def test_fractions_that_do_not_sum_to_one_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(MixtureError, match="must be positive and sum to 1"):
        Schedule.constant(Mixture.uniform(DOMAINS), fractions)


def test_schedules_are_read_from_the_runs_table() -> None:
    schedules, runs, _ = planted_study()
    found = read_schedules(runs)
    assert len(found) == 10
    np.testing.assert_allclose(found["run015"].fractions, FRACTIONS)
    assert found["run015"].mixtures == schedules[15].mixtures


def test_mean_of_a_schedule_counts_tokens() -> None:
    first, last = Mixture.of({"a": 1.0, "b": 0.0}), Mixture.of({"a": 0.0, "b": 1.0})
    assert dict(Schedule(FRACTIONS, (first, last)).mean) == pytest.approx({"a": 0.8, "b": 0.2})


def test_bootstrap_is_the_same_twice() -> None:
    _, runs, observations = planted_study(noise=0.01)
    first, second = (
        fit_schedules("m4", runs, observations, targets=["code"], num_draws=4) for _ in range(2)
    )
    assert np.array_equal(first.fit.theta_draws_BTP, second.fit.theta_draws_BTP)
    assert first.fit.num_mixtures == 20
