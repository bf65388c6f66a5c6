import numpy as np
import pytest

from mixlaw.errors import FitError
from mixlaw.fit.error import error_inflation, fit_error, leave_sets_out, predict_error
from mixlaw.laws.error import ErrorLaw, loss_weights

PLANTED_P = np.array([0.857, 2.2, 0.7])


def planted(count: int = 40, sd: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    loss_RF = rng.uniform(2.5, 5.5, (count, 1))
    clean_R = ErrorLaw(losses=("loss",)).predict(loss_RF, PLANTED_P)
    return loss_RF, clean_R + sd * rng.standard_normal(count)


def test_jacobian_and_slope_equal_finite_differences() -> None:
    law = ErrorLaw(losses=("c4", "ptb"))
    loss_RF = np.random.default_rng(0).uniform(2, 5, (6, 2))
    theta_P = np.array([0.86, 2.0, 0.5, 0.2])
    for p in range(4):
        shift_P = 1e-6 * (np.arange(4) == p)
        ends = law.predict(loss_RF, theta_P + shift_P) - law.predict(loss_RF, theta_P - shift_P)
        assert law.jacobian(loss_RF, theta_P)[:, p] == pytest.approx(ends / 2e-6, abs=1e-8)
    for f in range(2):
        shift_F = 1e-6 * (np.arange(2) == f)
        ends = law.predict(loss_RF + shift_F, theta_P) - law.predict(loss_RF - shift_F, theta_P)
        assert law.slope(loss_RF, theta_P)[:, f] == pytest.approx(ends / 2e-6, abs=1e-8)


def test_a_noiseless_law_is_recovered() -> None:
    fit = fit_error(*planted())
    assert fit.theta_P == pytest.approx(PLANTED_P, rel=1e-6)


def test_weights_of_several_losses_are_fitted_or_given() -> None:
    rng = np.random.default_rng(1)
    loss_RF = rng.uniform(2.5, 5.5, (60, 2))
    theta_P = np.array([0.86, 2.2, 0.525, 0.175])
    law = ErrorLaw(losses=("c4", "ptb"))
    error_R = law.predict(loss_RF, theta_P)
    fitted = fit_error(loss_RF, error_R, losses=law.losses)
    assert loss_weights(fitted.theta_P) == pytest.approx([0.75, 0.25], abs=1e-5)
    given = fit_error(loss_RF, error_R, losses=law.losses, weights=(3.0, 1.0))
    assert given.theta_P == pytest.approx(theta_P, rel=1e-5)
    assert given.num_fitted == 3


def test_a_loss_that_does_not_matter_gets_no_weight() -> None:
    loss_RF, error_R = planted(60)
    extra_R1 = np.random.default_rng(2).uniform(2, 5, (60, 1))
    fit = fit_error(np.hstack([loss_RF, extra_R1]), error_R, losses=("a", "b"))
    assert loss_weights(fit.theta_P) == pytest.approx([1, 0], abs=1e-4)


def test_profile_intervals_hold_planted_parameters() -> None:
    held = np.zeros(3)
    for seed in range(30):
        fit = fit_error(*planted(25, 0.004, seed))
        held += [i.low <= p <= i.high for i, p in zip(fit.intervals(), PLANTED_P, strict=True)]
    # 90% of 30 is 27; 22 or fewer has a probability of 1% where intervals are right.
    assert held.min() > 22


def test_over_a_narrow_range_of_losses_the_fit_says_that_nothing_is_identified() -> None:
    rng = np.random.default_rng(3)
    loss_RF = rng.uniform(3.0, 3.4, (20, 1))
    error_R = ErrorLaw(losses=("loss",)).predict(loss_RF, PLANTED_P)
    fit = fit_error(loss_RF, error_R + 0.003 * rng.standard_normal(20))
    assert "epsilon, k, gamma barely identified" in fit.describe()
    assert "losses from 3.0" in fit.describe()
    assert "all three identified" in fit_error(*planted(60, 0.002)).describe()


def test_leaving_a_set_out_shows_what_is_its_own() -> None:
    loss_RF, error_R = planted(60, 0.003)
    sets = ["a", "b", "c"] * 20
    same = leave_sets_out(loss_RF, error_R, sets)
    assert same.left_out_S == pytest.approx(same.in_set_S, abs=0.0015)
    off_R = error_R + 0.03 * (np.array(sets) == "b")
    other = leave_sets_out(loss_RF, off_R, sets)
    assert other.bias_S[1] == pytest.approx(-0.03, abs=0.002)
    assert other.left_out_S[1] > 5 * other.in_set_S[1]
    assert other.half_width(0.9) > 0.03


def test_intervals_of_a_new_model_hold_it_and_grow_with_what_is_not_known() -> None:
    loss_RF, error_R = planted(60, 0.004)
    fit = fit_error(loss_RF, error_R)
    new_RF, new_R = planted(400, 0.004, seed=9)
    _, low_R, high_R = predict_error(fit, new_RF)
    assert 0.85 < np.mean((low_R <= new_R) & (new_R <= high_R)) < 0.95
    sets = leave_sets_out(
        loss_RF, error_R + np.repeat([0, 0.02, -0.01], 20), np.repeat(["a", "b", "c"], 20).tolist()
    )
    for wider in (
        predict_error(fit, new_RF, loss_half_width_RF=np.full((400, 1), 0.05)),
        predict_error(fit, new_RF, inflation=2.0),
        predict_error(fit, new_RF, new_set=sets),
    ):
        assert np.all(wider[2] - wider[1] > high_R - low_R)


def test_inflation_is_one_for_the_true_law_and_more_for_a_wrong_one() -> None:
    rng = np.random.default_rng(4)
    loss_RF = np.linspace(5.5, 2.5, 60)[:, None]
    flops_R = np.geomspace(1e16, 1e20, 60)
    noise_R = 0.003 * rng.standard_normal(60)
    right_R = ErrorLaw(losses=("loss",)).predict(loss_RF, PLANTED_P) + noise_R
    bent_R = 0.55 + 0.3 / (1 + np.exp(-4 * (loss_RF[:, 0] - 3.2))) + noise_R
    assert error_inflation(loss_RF, right_R, flops_R) < 1.5
    assert error_inflation(loss_RF, bent_R, flops_R) > 2.0


def test_too_few_runs_are_an_error() -> None:
    with pytest.raises(FitError, match="needs 3 runs"):
        fit_error(np.array([[3.0], [4.0]]), np.array([0.6, 0.7]))
    with pytest.raises(FitError, match="two of them"):
        leave_sets_out(*planted(10), ["a"] * 10)
