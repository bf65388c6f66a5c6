"""Predictions: intervals of one new run, and what they say of themselves."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from mixlaw.errors import FitError, MixtureError
from mixlaw.fit import FitResult, fit_law
from mixlaw.mixtures import Mixture
from mixlaw.predict import (
    Prediction,
    difference_sd,
    error_growth,
    predict_losses,
    predict_weighted,
    squared_distance,
)
from simulated import (
    ExponentialTruth,
    SimulatedStudy,
    make_tables,
    sample_proportions,
    simulate_study,
)


def fitted(study: SimulatedStudy) -> FitResult:
    return fit_law("m4", study.runs, study.observations, num_draws=10)


@pytest.fixture(scope="module")
def study() -> SimulatedStudy:
    return simulate_study(seed=1)


@pytest.fixture(scope="module")
def fit(study: SimulatedStudy) -> FitResult:
    return fitted(study)


def test_a_weighted_sum_of_one_target_is_that_target(study: SimulatedStudy, fit: FitResult) -> None:
    each = predict_losses(fit, study.heldout)
    target = fit.targets[1]
    whole = predict_weighted(fit, study.heldout, {target: 1.0})
    np.testing.assert_allclose(whole.value_RK[:, 0], each.value_RK[:, 1], rtol=1e-12)
    np.testing.assert_allclose(whole.low_RK[:, 0], each.low_RK[:, 1], rtol=1e-12)
    np.testing.assert_allclose(whole.high_RK[:, 0], each.high_RK[:, 1], rtol=1e-12)


def test_the_interval_holds_the_prediction_and_grows_with_the_level(
    study: SimulatedStudy, fit: FitResult
) -> None:
    narrow = predict_losses(fit, study.heldout, level=0.5)
    wide = predict_losses(fit, study.heldout, level=0.9)
    assert np.all(wide.low_RK < narrow.low_RK)
    assert np.all(narrow.low_RK < narrow.value_RK)
    assert np.all(narrow.value_RK < narrow.high_RK)
    assert np.all(narrow.high_RK < wide.high_RK)


def test_intervals_hold_about_as_many_held_out_losses_as_they_should() -> None:
    """90% is meant; `benchmarks/coverage.py` counts hundreds of studies."""
    inside, width, error = [], [], []
    for seed in range(8):
        study = simulate_study(seed=100 + seed, form=("exponential", "power")[seed % 2])
        targets = (study.targets[seed % 5], "unseen0")
        alone = fit_law("m4", study.runs, study.observations, num_draws=1, targets=targets)
        prediction = predict_losses(alone, study.heldout)
        observed_RT = study.heldout_RT[:, [study.targets.index(target) for target in targets]]
        inside.append(
            np.mean((prediction.low_RK <= observed_RT) & (observed_RT <= prediction.high_RK))
        )
        width.append(np.mean(prediction.high_RK - prediction.low_RK))
        error.append(np.mean(np.abs(prediction.value_RK - observed_RT)))
    assert 0.82 <= np.mean(inside) <= 0.99
    assert np.mean(width) < 7 * np.mean(error)


def test_a_mixture_further_out_than_any_run_is_named(fit: FitResult) -> None:
    corner = Mixture.of({name: float(name == fit.domains[0]) for name in fit.domains})
    inner = Mixture.from_array(fit.domains, fit.table.r_RM.mean(axis=0))
    assert any("further from all runs" in note for note in predict_losses(fit, [corner]).notes)
    assert not any("further from all runs" in note for note in predict_losses(fit, [inner]).notes)


def test_intervals_are_wider_at_the_edge_when_errors_grow_outwards() -> None:
    distance_G = np.linspace(0, 8, 20)
    signs = np.where(np.arange(20) % 2, 1.0, -1.0)
    flat = (signs * 0.01)[:, None].repeat(4, axis=1)
    growing = (signs * 0.01 * (1 + 0.5 * distance_G))[:, None].repeat(4, axis=1)
    assert error_growth(flat, distance_G) < 0.01
    assert error_growth(growing, distance_G) == pytest.approx(0.5, rel=0.05)


def test_the_middle_of_a_design_is_at_distance_zero(fit: FitResult) -> None:
    r_RM = fit.table.r_RM
    assert squared_distance(r_RM.mean(axis=0)[None], r_RM)[0] == pytest.approx(0.0, abs=1e-12)
    # the mean squared Mahalanobis distance of n points in M - 1 dimensions is (M - 1)(n - 1) / n
    mean = float(np.mean(squared_distance(r_RM, r_RM)))
    assert mean == pytest.approx((r_RM.shape[1] - 1) * (len(r_RM) - 1) / len(r_RM))


def test_the_order_of_a_mixtures_domains_does_not_matter(
    study: SimulatedStudy, fit: FitResult
) -> None:
    turned = [mixture.reordered(mixture.names[::-1]) for mixture in study.heldout]
    np.testing.assert_array_equal(
        predict_losses(fit, turned).value_RK, predict_losses(fit, study.heldout).value_RK
    )


def test_without_noise_runs_the_interval_says_what_it_lacks(study: SimulatedStudy) -> None:
    design = study.runs.filter(pl.col("role") == "design")
    alone = fit_law("m4", design, study.observations, num_draws=1, targets=("d0",))
    assert predict_losses(alone, study.heldout[:1]).notes[0] == (
        "the noise between seeds is not in the intervals: no mixture was run with several"
    )


def test_few_mixtures_fall_back_to_student(study: SimulatedStudy) -> None:
    few = fit_law("m4", study.runs.head(8), study.observations, num_draws=1, targets=("d0",))
    notes = predict_losses(few, study.heldout[:1]).notes
    assert notes[0] == "8 mixtures are too few for a quantile at 90%: Student's t instead"


def test_errors_of_differences_hold_what_seeds_do(study: SimulatedStudy, fit: FitResult) -> None:
    weights = {fit.targets[0]: 1.0}
    seed_sd = float(fit.seed_sd(np.eye(len(fit.targets))[:1])[0])
    assert difference_sd(fit, weights) > seed_sd


def test_a_level_that_is_none_is_refused(study: SimulatedStudy, fit: FitResult) -> None:
    with pytest.raises(FitError, match="level of an interval must lie between 0 and 1, found 1"):
        predict_losses(fit, study.heldout, level=1.0)


def test_other_domains_are_refused(fit: FitResult) -> None:
    with pytest.raises(MixtureError, match="must give a share for"):
        predict_losses(fit, [Mixture.of({"x": 0.5, "y": 0.5})])


def test_an_unknown_target_is_refused(study: SimulatedStudy, fit: FitResult) -> None:
    with pytest.raises(FitError, match="'nothing' is no fitted target"):
        predict_weighted(fit, study.heldout, {"nothing": 1.0})


def test_the_truth_of_simulated_studies_is_a_law(study: SimulatedStudy) -> None:
    assert isinstance(study.truth, ExponentialTruth)


def test_runs_of_unknown_seeds_leave_a_note(study: SimulatedStudy) -> None:
    runs = study.runs.filter(pl.col("role") == "design").with_columns(seed=pl.lit(None, pl.Int64))
    alone = fit_law("m4", runs, study.observations, num_draws=1, targets=("d0",))
    assert predict_losses(alone, study.heldout[:1]).notes[0] == (
        "the runs' seeds are not known: if they share one, its noise is not in the intervals"
    )


def test_noise_that_residuals_do_not_show_is_common_to_all_runs(fit: FitResult) -> None:
    """Residuals of 0.001 and seeds 0.1 apart: nearly all of their variance is a common offset."""
    rows = np.where(np.arange(len(fit.table.run_ids)) % 2, 0.001, -0.001)[:, None]
    exact_RT = fit.table.y_RT - fit.left_out_residual_RT + rows
    still = replace(
        fit,
        table=replace(fit.table, y_RT=exact_RT),
        replicate_NT=np.array([[0.1], [-0.1]]) * np.ones(6),
        replicate_freedom=2,
        seed_factor=0.75,
    )
    seed_sd = 0.1  # sqrt(2 * 0.1^2 / 2)
    half_RK = _halfwidth(predict_losses(still, [Mixture.uniform(fit.domains)]))
    # Student's t at 95% for two degrees of freedom: 2.92; the common share is 1, not a half
    assert np.allclose(half_RK, 2.92 * seed_sd * np.sqrt(0.75 / 0.5), rtol=0.01)
    assert difference_sd(still, {"d0": 1.0}) == pytest.approx(np.sqrt(2) * seed_sd, rel=0.01)


def _halfwidth(prediction: Prediction) -> np.ndarray:
    return (prediction.high_RK - prediction.low_RK) / 2


def test_replicates_of_one_mixture_are_one_residual_and_not_several(
    study: SimulatedStudy, fit: FitResult
) -> None:
    rows = [*range(20), *[3] * 8]
    often = replace(fit, table=fit.table.select(rows), theta_loo_RTP=fit.theta_loo_RTP[rows])
    once_RK, often_RK = (_halfwidth(predict_losses(each, study.heldout)) for each in (fit, often))
    assert np.allclose(once_RK, often_RK, rtol=1e-12)
    weights = {"d0": 1.0, "d1": 2.0}
    assert difference_sd(often, weights) == pytest.approx(difference_sd(fit, weights))


def test_a_constant_loss_has_an_interval_of_no_width() -> None:
    r_RM = sample_proportions(np.random.default_rng(0), 12, 3, 0.0)
    y_RT = np.column_stack([np.full(12, 2.5), r_RM[:, 0]])
    tables = make_tables(("d0", "d1", "d2"), ("flat", "d0"), r_RM, y_RT)
    prediction = predict_losses(
        fit_law("m4", *tables, num_draws=1), [Mixture.uniform(("d0", "d1", "d2"))]
    )
    assert np.allclose(prediction.value_RK[0, 0], 2.5, atol=1e-9)
    assert _halfwidth(prediction)[0, 0] < 1e-9
    assert np.isfinite(prediction.high_RK).all()


def test_no_mixtures_are_refused(fit: FitResult) -> None:
    with pytest.raises(MixtureError, match="at least one mixture is needed, found none"):
        predict_losses(fit, [])


def test_differences_at_the_edge_are_less_sure_than_in_the_middle(fit: FitResult) -> None:
    distance_R = squared_distance(fit.table.r_RM, fit.table.r_RM)
    signs_R1 = np.where(np.arange(20) % 2, 0.01, -0.01)[:, None]
    grown_RT = signs_R1 * (1 + 0.5 * distance_R[:, None]) * np.ones(6)
    exact_RT = fit.table.y_RT - fit.left_out_residual_RT + grown_RT
    growing = replace(fit, table=replace(fit.table, y_RT=exact_RT), replicate_freedom=0)
    names, middle_M = fit.domains, fit.table.r_RM.mean(axis=0)
    middle = Mixture.from_array(names, middle_M)
    edge = Mixture.from_array(names, fit.table.r_RM[np.argmax(distance_R)])
    near = difference_sd(growing, {"d0": 1.0}, between=(middle, middle))
    far = difference_sd(growing, {"d0": 1.0}, between=(middle, edge))
    # sd 0.01 in the middle, 0.01 (1 + d^2 / 2) at the edge; a variance of 20 values: 20 / 19
    factor = 1 + 0.5 * np.max(distance_R)
    assert near == pytest.approx(0.01 * np.sqrt(2 * 20 / 19), rel=0.05)
    assert far == pytest.approx(0.01 * np.sqrt((1 + factor**2) * 20 / 19), rel=0.05)
