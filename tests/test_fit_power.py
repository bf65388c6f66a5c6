import time

import numpy as np
import pytest
from scipy.optimize import least_squares

from mixlaw.errors import FitError
from mixlaw.fit.extrapolation import choose_form, learn_growth, rolling_holdouts
from mixlaw.fit.overtraining import ScaledRuns, fit_overtraining
from mixlaw.fit.power import fit_power, profile_interval
from mixlaw.laws.power import OVERTRAINING_LAW, SIZE_LAW, SIZE_STEP_LAW, STEP_LAW, PowerLaw

STEPS_RK = np.linspace(10e3, 30e3, 11)[:, None]
SIZES_RK = np.array([19e6, 85e6, 201e6, 302e6])[:, None]
GRID_RK = np.array([[n, m * n] for n in (1e7, 8e7, 1.5e8, 4e8) for m in (10, 20, 80, 320)])


def planted_steps(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    b = rng.uniform(0.3, 1.0, count)
    B = rng.uniform(0.15, 0.6, count) * 10e3**b
    return np.stack([rng.uniform(1, 3, count), B, b], axis=1)


def noisy(law: PowerLaw, x_RK: np.ndarray, theta_SP: np.ndarray, sd: float) -> np.ndarray:
    rng = np.random.default_rng(1)
    y_SR = law.predict(x_RK, theta_SP)
    return y_SR + sd * rng.standard_normal(y_SR.shape)


@pytest.mark.parametrize(("huber", "log"), [(None, False), (0.01, False), (0.001, True)])
def test_noiseless_laws_are_recovered_to_rounding(huber: float | None, log: bool) -> None:
    theta_SP = planted_steps(50)
    fit = fit_power(STEP_LAW, STEPS_RK, STEP_LAW.predict(STEPS_RK, theta_SP), huber=huber, log=log)
    assert fit.converged_G.all()
    assert fit.theta_SP == pytest.approx(theta_SP, rel=1e-8)
    assert not fit.at_bound().any()


def test_tied_exponents_are_one_number_per_group() -> None:
    rng = np.random.default_rng(2)
    group_S = rng.integers(0, 2, 30)
    a_S = np.array([0.3, 0.5])[group_S]
    theta_SP = np.stack([rng.uniform(1, 3, 30), rng.uniform(0.2, 0.6, 30) * 1e8**a_S, a_S], axis=1)
    y_SR = noisy(SIZE_LAW, SIZES_RK, theta_SP, 0.002)
    fit = fit_power(SIZE_LAW, SIZES_RK, y_SR, group_S=group_S)
    for group, a in enumerate((0.3, 0.5)):
        found = fit.theta_SP[group_S == group, 2]
        assert np.ptp(found) == 0.0
        assert found[0] == pytest.approx(a, abs=0.03)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("huber", "log"), [(None, False), (0.003, False), (0.001, True)])
def test_solution_is_as_good_as_scipys(huber: float | None, log: bool, seed: int) -> None:
    """The same objective, written down again and minimized by SciPy's trust region, many starts."""
    theta_P = np.array([1.8, 166.0, 287.0, 0.27])
    rng = np.random.default_rng(seed)
    y_R = OVERTRAINING_LAW.predict(GRID_RK, theta_P) * np.exp(
        0.01 * rng.standard_t(2, len(GRID_RK))
    )
    fit = fit_power(OVERTRAINING_LAW, GRID_RK, y_R[None], huber=huber, log=log)
    center_K = np.exp(np.log(GRID_RK).mean(axis=0))

    def residuals(u_P: np.ndarray) -> np.ndarray:
        E, A, B, a = u_P
        predicted = E + A * (GRID_RK[:, 0] / center_K[0]) ** -a
        predicted = predicted + B * (GRID_RK[:, 1] / center_K[1]) ** -a
        return np.log(predicted / y_R) if log else predicted - y_R

    scale = np.inf if huber is None else huber
    best = np.inf
    for a in (0.1, 0.25, 0.5, 1.0):
        found = least_squares(
            residuals, (1.5, 0.5, 0.5, a), bounds=(1e-9, 10), x_scale="jac", xtol=1e-15,
            ftol=1e-15, gtol=1e-15, loss="linear" if huber is None else "huber",
            f_scale=1.0 if huber is None else huber, max_nfev=2000,
        )  # fmt: skip
        best = min(best, float(found.cost))
    size = np.abs(fit.residual_SR[0])
    ours = np.sum(np.minimum(size, scale) * (size - np.minimum(size, scale) / 2))
    assert ours == pytest.approx(fit.objective_G[0], rel=1e-9)
    assert ours <= best * (1 + 1e-7)


def test_missing_losses_and_weights_count_as_they_should() -> None:
    theta_SP = planted_steps(4)
    y_SR = noisy(STEP_LAW, STEPS_RK, theta_SP, 0.003)
    y_SR[0, 3] = np.nan
    weight_SR = np.ones_like(y_SR)
    weight_SR[1, 3] = 0.0
    fit = fit_power(STEP_LAW, STEPS_RK, y_SR, weight_SR=weight_SR)
    keep = np.arange(11) != 3
    short = fit_power(STEP_LAW, STEPS_RK[keep], y_SR[:, keep])
    assert fit.theta_SP[:2] == pytest.approx(short.theta_SP[:2], rel=1e-5)
    assert np.isnan(fit.residual_SR[0, 3])


def test_one_odd_point_moves_a_robust_fit_little() -> None:
    theta_SP = planted_steps(1)
    y_SR = noisy(STEP_LAW, STEPS_RK, theta_SP, 0.0005)
    odd_SR = y_SR.copy()
    odd_SR[0, 5] += 0.1
    end_RK = np.array([[40e3]])
    clean = fit_power(STEP_LAW, STEPS_RK, y_SR).predict(end_RK)
    plain = fit_power(STEP_LAW, STEPS_RK, odd_SR).predict(end_RK)
    robust = fit_power(STEP_LAW, STEPS_RK, odd_SR, huber=0.001).predict(end_RK)
    assert abs(robust - clean) < 0.2 * abs(plain - clean)


def test_a_series_does_not_depend_on_its_neighbors() -> None:
    y_SR = noisy(STEP_LAW, STEPS_RK, planted_steps(5), 0.002)
    together = fit_power(STEP_LAW, STEPS_RK, y_SR, huber=0.002)
    alone = fit_power(STEP_LAW, STEPS_RK, y_SR[[3]], huber=0.002)
    assert together.predict(STEPS_RK)[3] == pytest.approx(alone.predict(STEPS_RK)[0], rel=1e-7)


def test_the_same_losses_give_the_same_bits() -> None:
    y_SR = noisy(STEP_LAW, STEPS_RK, planted_steps(5), 0.002)
    first, second = (fit_power(STEP_LAW, STEPS_RK, y_SR, huber=0.002).theta_SP for _ in range(2))
    assert np.array_equal(first, second)


def test_two_thousand_step_laws_take_seconds_at_most() -> None:
    """0.2 s on an idle core; the limit leaves room for shape checks and a busy machine."""
    y_SR = noisy(STEP_LAW, STEPS_RK, planted_steps(2200), 0.002)
    started = time.process_time()
    assert fit_power(STEP_LAW, STEPS_RK, y_SR).converged_G.all()
    assert time.process_time() - started < 5


def test_constant_losses_sit_at_bounds_and_say_so() -> None:
    fit = fit_power(STEP_LAW, STEPS_RK, np.full((1, 11), 2.0))
    assert fit.predict(STEPS_RK) == pytest.approx(np.full((1, 11), 2.0))
    assert fit.at_bound()[0, 1]


@pytest.mark.parametrize("name", SIZE_STEP_LAW.parameter_names)
def test_profile_intervals_hold_planted_parameters(name: str) -> None:
    theta_P = np.array([1.8, 0.6 * 1e8**0.35, 0.5 * 1e4**0.5, 0.35, 0.5])
    x_RK = np.array([[n, s] for n in SIZES_RK[:, 0] for s in STEPS_RK[::2, 0]])
    rng = np.random.default_rng(5)
    clean_R = SIZE_STEP_LAW.predict(x_RK, theta_P)
    y_SR = clean_R + 0.002 * rng.standard_normal((12, len(clean_R)))
    fit = fit_power(SIZE_STEP_LAW, x_RK, y_SR)
    column = SIZE_STEP_LAW.parameter_names.index(name)
    found = [profile_interval(fit, name, series=s) for s in range(12)]
    assert all(i.low <= i.value <= i.high for i in found)
    # 90% of 12 is 10.8; 8 or fewer has a probability below 3% where intervals are right.
    assert sum(i.low <= theta_P[column] <= i.high for i in found) > 8


def test_profile_says_what_is_not_bounded() -> None:
    """Four points and four parameters."""
    y_SR = OVERTRAINING_LAW.predict(GRID_RK[:4], np.array([1.8, 166.0, 287.0, 0.27]))[None]
    fit = fit_power(OVERTRAINING_LAW, GRID_RK[:4], y_SR)
    assert profile_interval(fit, "E").is_open


@pytest.mark.parametrize(
    ("x", "y", "log", "words"),
    [
        (0.0, 2.0, False, "must be positive numbers"),
        (1.0, -1.0, True, "positive losses"),
        (1.0, np.nan, False, "series 0 has none"),
    ],
)
def test_unusable_input_is_an_error(x: float, y: float, log: bool, words: str) -> None:
    with pytest.raises(FitError, match=words):
        fit_power(STEP_LAW, np.full((3, 1), x), np.full((1, 3), y), log=log)


# Larger and longer runs.


def planted_runs(*, shift: float = 0.0, sd: float = 0.003, seed: int = 3) -> ScaledRuns:
    rng = np.random.default_rng(seed)
    sizes, multipliers = (1e7, 4e7, 1.5e8, 4e8, 1.2e9), (5, 10, 20, 40, 80, 160, 320)
    x_RK = np.array([[n, m * n] for n in sizes for m in multipliers])
    theta_SP = np.array([[1.8, 166.0, 287.0, 0.27], [1.2, 90.0, 300.0, 0.25]])
    late_R = (np.arange(len(x_RK)) % 6 == 4).astype(int)
    log_TR = np.log(OVERTRAINING_LAW.predict(x_RK, theta_SP))
    log_TR = log_TR + shift * late_R + sd * rng.standard_normal(log_TR.shape)
    return ScaledRuns(
        targets=("first", "second"), params_R=x_RK[:, 0], tokens_R=x_RK[:, 1], campaign_R=late_R,
        y_TR=np.exp(log_TR),
    )  # fmt: skip


@pytest.mark.parametrize("form", ["tied", "own", "mean"])
def test_a_campaigns_shift_is_found_and_predicted(form: str) -> None:
    fit = fit_overtraining(planted_runs(shift=-0.05), form=form)
    assert fit.shift_GT[1] == pytest.approx([-0.05, -0.05], abs=0.006)
    size, tokens = np.array([1e9, 1e9]), np.array([2e10, 2e10])
    value_TR = fit.predict(size, tokens, np.array([0, 1]))
    assert np.log(value_TR[:, 1] / value_TR[:, 0]) == pytest.approx(fit.shift_GT[1])


def test_without_a_shift_none_beyond_the_noise_is_found() -> None:
    fit = fit_overtraining(planted_runs(shift=0.0, sd=0.01))
    standard_error = 0.01 / np.sqrt(np.sum(fit.runs.campaign_R))
    assert np.abs(fit.shift_GT[1]).max() < 2 * standard_error


def test_an_unseen_campaign_is_predicted_without_shift_but_less_surely() -> None:
    fit = fit_overtraining(planted_runs(shift=-0.05))
    one = np.ones(1)
    unseen, main = (fit.predict(1e9 * one, 2e10 * one, np.array([c])) for c in (7, 0))
    assert np.array_equal(unseen, main)
    assert fit.campaign_spread(np.array([0, 1, 7]))[0] == pytest.approx([0, 0, 0.05], abs=0.006)


def test_runs_that_end_in_their_warm_up_are_left_out() -> None:
    assert fit_overtraining(planted_runs()).runs.multiplier_R.min() == pytest.approx(10)
    with pytest.raises(FitError, match="two sizes"):
        fit_overtraining(planted_runs(), least_multiplier=1000.0)


def test_holdouts_choose_the_planted_form() -> None:
    runs = planted_runs()
    held_out = {form: [rolling_holdouts(runs, form=form)] for form in ("tied", "own")}
    assert choose_form(held_out) == "tied"
    assert held_out["tied"][0].distance_H.min() > 0


def test_intervals_learned_from_near_holdouts_hold_far_runs_and_grow() -> None:
    inside: list[np.ndarray] = []
    for seed in range(6):
        runs = planted_runs(seed=seed)
        part = runs.take(runs.flops_R <= runs.flops_R.max() / 30)
        growth = learn_growth({"set": rolling_holdouts(part, form="tied")}, num_targets=2)["set"]
        fit = fit_overtraining(part, form="tied")
        far = runs.take((runs.flops_R > runs.flops_R.max() / 6) & (runs.multiplier_R >= 10))
        error_TR = np.log(fit.predict(far.params_R, far.tokens_R, far.campaign_R) / far.y_TR)
        distance_R = fit.distance(far.params_R, far.tokens_R)
        half_TR = growth.half_width(distance_R)
        inside.append(np.abs(error_TR) <= half_TR)
        assert np.all(np.diff(half_TR[:, np.argsort(distance_R)]) >= 0)
    # Meant to be 90%; runs of one fit go together, so that six fits are few.
    assert np.mean(inside) > 0.7
