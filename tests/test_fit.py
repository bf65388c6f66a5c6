import json

import numpy as np
import polars as pl
import pytest
from scipy.optimize import least_squares

from mixlaw.errors import FitError, TableError
from mixlaw.fit import FitResult, fit_law
from mixlaw.fit.law import fit_table
from mixlaw.fit.noise import COMMON_SHARE, level_shift, replicate_residuals, shared_seed
from mixlaw.fit.result import evaluate_law
from mixlaw.fit.solver import HUBER, Problems, minimize_problems
from mixlaw.laws.mixing import ExponentialLaw
from mixlaw.observations import LossTable, loss_table
from simulated import (
    ExponentialTruth,
    Noise,
    SimulatedStudy,
    exponential_truth,
    make_tables,
    power_truth,
    sample_proportions,
    simulate_study,
)

LAW = ExponentialLaw()
CENTER_1M = np.full((1, 5), 0.2)


@pytest.fixture(scope="module")
def study() -> SimulatedStudy:
    return simulate_study(7)


@pytest.fixture(scope="module")
def fit(study: SimulatedStudy) -> FitResult:
    return fit_law("m4", study.runs, study.observations, num_draws=20)


def make_table(
    r_RM: np.ndarray, y_RT: np.ndarray, *, seeds: list[int | None] | None = None
) -> LossTable:
    domains = [f"d{j}" for j in range(r_RM.shape[1])]
    targets = [f"t{k}" for k in range(y_RT.shape[1])]
    return loss_table(*make_tables(domains, targets, r_RM, y_RT, seeds=seeds), targets=targets)


# The parameters.


def test_planted_parameters_are_recovered_within_their_standard_errors() -> None:
    rng = np.random.default_rng(0)
    truth = exponential_truth(rng, 3, 0)
    assert isinstance(truth, ExponentialTruth)
    r_RM = sample_proportions(rng, 40, 3, 0.0)
    y_RT = truth(r_RM) + rng.normal(0, 0.01, (40, 3))
    fit = fit_table(LAW, make_table(r_RM, y_RT), num_draws=60)
    planted_TP = np.hstack([truth.c_T[:, None], truth.t_TM])
    error_TP = np.std(fit.theta_draws_BTP, axis=0)
    z_TP = (fit.theta_TP - planted_TP) / error_TP
    assert np.abs(z_TP).max() < 4
    assert 0.5 < np.sqrt(np.mean(z_TP**2)) < 1.6
    assert np.max(error_TP) < 0.3
    assert all(status.sentence == "converged" for status in fit.status)


def test_noiseless_losses_are_reproduced() -> None:
    rng = np.random.default_rng(1)
    truth = exponential_truth(rng, 3, 0)
    r_RM = sample_proportions(rng, 15, 3, 0.0)
    fit = fit_table(LAW, make_table(r_RM, truth(r_RM)), num_draws=1)
    fresh_RM = sample_proportions(rng, 50, 3, 0.0)
    assert np.allclose(fit.losses(fresh_RM), truth(fresh_RM), rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_solution_equals_that_of_scipys_bounded_solver(seed: int) -> None:
    """The same objective, written down again, minimized by another method; bounds bind in some."""
    rng = np.random.default_rng(seed)
    truth = (exponential_truth, power_truth)[seed % 2](rng, 5, 1)
    r_RM = sample_proportions(rng, 20, 5, 0.04)
    y_RT = truth(r_RM) + rng.normal(0, 0.02, (20, 6))
    weight_R = rng.exponential(size=20)
    for y_R in y_RT.T:
        scale, strength = 0.02, (1.0, 30.0)[seed % 2]
        starts_SP = LAW.starts(r_RM, y_R)
        low_P, high_P = LAW.bounds(r_RM, y_R)

        def residuals(theta_P: np.ndarray, y_R: np.ndarray = y_R) -> np.ndarray:
            misfit_R = (LAW.predict(r_RM, theta_P) - y_R) / 0.02
            u = np.concatenate([misfit_R, (1.0, 30.0)[seed % 2] * LAW.penalty(theta_P)])
            rho = np.where(np.abs(u) <= HUBER, u**2 / 2, HUBER * np.abs(u) - HUBER**2 / 2)
            return np.sqrt(2 * rho * np.concatenate([weight_R, np.ones(5)])) * np.sign(u)

        reference = min(
            (
                least_squares(
                    residuals,
                    np.clip(start_P, low_P + 1e-9, high_P - 1e-9),
                    bounds=(low_P, high_P),
                    x_scale="jac",
                    **dict.fromkeys(("ftol", "xtol", "gtol"), 1e-13),
                )
                for start_P in starts_SP
            ),
            key=lambda found: found.cost,
        )
        problems = Problems.of(
            LAW,
            r_RM,
            np.tile(y_R, (len(starts_SP), 1)),
            scale_B=np.full(len(starts_SP), scale),
            strength_B=np.full(len(starts_SP), strength),
            weight_BR=np.tile(weight_R, (len(starts_SP), 1)),
        )
        minima = minimize_problems(problems, starts_SP)
        best = int(np.argmin(minima.objective_B))
        theta_P, objective = minima.theta_BP[best], minima.objective_B[best]
        assert minima.converged_B.all()
        assert objective <= reference.cost * (1 + 1e-6) + 1e-9
        assert np.sum(residuals(theta_P) ** 2) / 2 == pytest.approx(objective, rel=1e-9)
        assert np.all((theta_P >= low_P) & (theta_P <= high_P))


def test_one_seed_gives_the_same_bits(study: SimulatedStudy, fit: FitResult) -> None:
    again, once_more = (
        fit_law("m4", study.runs, study.observations, num_draws=20, targets=("d0",))
        for _ in range(2)
    )
    for name in ("theta_TP", "theta_loo_RTP", "theta_draws_BTP"):
        assert np.array_equal(getattr(again, name), getattr(once_more, name)), name
    other = fit_law("m4", study.runs, study.observations, num_draws=20, targets=("d0",), seed=1)
    assert np.array_equal(other.theta_TP, again.theta_TP)
    assert not np.allclose(other.theta_draws_BTP, again.theta_draws_BTP)


def test_the_order_of_runs_domains_and_targets_changes_nothing(
    study: SimulatedStudy, fit: FitResult
) -> None:
    domains, targets = study.domains[::-1], ("unseen0", "d0")
    others = [name for name in study.runs.columns if not name.startswith("r:")]
    runs = study.runs.sample(fraction=1.0, shuffle=True, seed=3).select(
        *others, *(f"r:{name}" for name in domains)
    )
    rows = study.observations.sample(fraction=1.0, shuffle=True, seed=4)
    moved = fit_law("m4", runs, rows, num_draws=20, targets=targets)
    r_RM = sample_proportions(np.random.default_rng(0), 30, 5, 0.04)
    column = [fit.targets.index(target) for target in targets]
    assert np.allclose(moved.losses(r_RM[:, ::-1]), fit.losses(r_RM)[:, column], rtol=0, atol=1e-6)
    assert np.allclose(
        moved.draw_losses(r_RM[:, ::-1]), fit.draw_losses(r_RM)[:, :, column], rtol=0, atol=1e-4
    )
    row = [moved.table.run_ids.index(run_id) for run_id in fit.table.run_ids]
    assert np.allclose(
        moved.left_out_residual_RT[row], fit.left_out_residual_RT[:, column], rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("shift", [1.0, -1.0, 10.0])
def test_one_odd_run_moves_the_law_little(shift: float) -> None:
    rng = np.random.default_rng(5)
    truth = exponential_truth(rng, 4, 0)
    r_RM = sample_proportions(rng, 24, 4, 0.02)
    y_RT = (truth(r_RM) + rng.normal(0, 0.01, (24, 4)))[:, :1]
    clean = fit_table(LAW, make_table(r_RM, y_RT), num_draws=1)
    y_RT[3] += shift
    odd = fit_table(LAW, make_table(r_RM, y_RT), num_draws=1)
    fresh_RM = sample_proportions(rng, 100, 4, 0.02)
    moved = np.abs(odd.losses(fresh_RM) - clean.losses(fresh_RM))
    assert np.mean(moved) < 0.005
    assert np.max(moved) < 0.03
    assert "1 of 24 runs lie far off the law, 'run003' furthest" in odd.status[0].sentence


# What was left out.


def test_replicates_of_a_mixture_are_left_out_together() -> None:
    rng = np.random.default_rng(2)
    truth = exponential_truth(rng, 3, 0)
    r_RM = sample_proportions(rng, 12, 3, 0.02)
    rows = [*range(12), 4, 4]
    y_RT = (truth(r_RM) + rng.normal(0, 0.01, (12, 3)))[rows][:, :2]
    y_RT[[4, 12, 13]] += 0.3
    table = make_table(r_RM[rows], y_RT, seeds=list(range(14)))
    fit = fit_table(LAW, table, num_draws=1)
    assert fit.num_mixtures == 12
    assert np.array_equal(fit.theta_loo_RTP[4], fit.theta_loo_RTP[12])
    assert np.array_equal(fit.theta_loo_RTP[4], fit.theta_loo_RTP[13])
    without = fit_table(LAW, table.select([i for i in range(14) if rows[i] != 4]), num_draws=1)
    expected = without.losses(r_RM[4:5])[0]
    assert np.allclose(y_RT[4] - fit.left_out_residual_RT[4], expected, rtol=0, atol=1e-4)
    others = np.mean(y_RT[[i for i in range(14) if rows[i] != 4]], axis=0)
    assert np.allclose(fit.mean_residual_RT[4], y_RT[4] - others)


@pytest.mark.parametrize("make", [exponential_truth, power_truth])
def test_few_runs_of_many_domains_do_not_explode(make) -> None:
    """24 runs, 17 domains: more parameters than any plain fit survives (RegMix's domains)."""
    ratios = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        truth = make(rng, 17, 1)
        r_RM = sample_proportions(rng, 24, 17, 0.0)
        y_RT = (truth(r_RM) + rng.normal(0, 0.01, (24, 18)))[:, [0, 17]]
        fit = fit_table(LAW, make_table(r_RM, y_RT), num_draws=1)
        left_out_T = np.mean(np.abs(fit.left_out_residual_RT), axis=0)
        mean_T = np.mean(np.abs(fit.mean_residual_RT), axis=0)
        assert "24 mixtures for 18 parameters, fewer than 2.5 for each" in fit.status[0].sentence
        ratios.extend(left_out_T / mean_T)
    assert max(ratios) < 1


def test_pure_noise_is_predicted_about_as_well_as_by_the_mean() -> None:
    rng = np.random.default_rng(3)
    r_RM = sample_proportions(rng, 20, 12, 0.0)
    fit = fit_table(LAW, make_table(r_RM, 2.0 + rng.normal(0, 0.01, (20, 1))), num_draws=1)
    left_out = np.mean(np.abs(fit.left_out_residual_RT))
    assert left_out < 1.3 * np.mean(np.abs(fit.mean_residual_RT))
    fresh_RM = sample_proportions(rng, 100, 12, 0.0)
    assert np.mean(np.abs(fit.losses(fresh_RM) - 2.0)) < 0.008


def test_bootstrap_keeps_every_mixture() -> None:
    """Bayesian bootstrap: with a corner seen once, no draw forgets it."""
    rng = np.random.default_rng(4)
    truth = exponential_truth(rng, 3, 0)
    r_RM = np.vstack([0.02 + 0.94 * np.eye(3), sample_proportions(rng, 9, 3, 0.2)])
    fit = fit_table(LAW, make_table(r_RM, truth(r_RM)[:, :2]), num_draws=50)
    spread_RT = np.std(fit.draw_losses(r_RM), axis=0)
    assert np.max(spread_RT) < 0.05


# Edges.


@pytest.mark.parametrize("y", [2.5, 0.0])
def test_constant_losses_are_predicted_as_constant(y: float) -> None:
    r_RM = sample_proportions(np.random.default_rng(0), 10, 3, 0.0)
    fit = fit_table(LAW, make_table(r_RM, np.full((10, 1), y)), num_draws=3)
    assert np.allclose(fit.losses(np.eye(3)), y, rtol=0, atol=1e-9)
    assert "all losses are equal" in fit.status[0].sentence


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_unit_of_the_losses_does_not_matter(unit: float) -> None:
    rng = np.random.default_rng(6)
    truth = exponential_truth(rng, 3, 0)
    r_RM = sample_proportions(rng, 15, 3, 0.0)
    y_RT = (truth(r_RM) + rng.normal(0, 0.01, (15, 3)))[:, :1]
    plain = fit_table(LAW, make_table(r_RM, y_RT), num_draws=1)
    scaled = fit_table(LAW, make_table(r_RM, unit * y_RT), num_draws=1)
    assert np.allclose(scaled.losses(r_RM) / unit, plain.losses(r_RM), rtol=0, atol=1e-3)


def test_losses_at_zero_and_below_are_fitted() -> None:
    rng = np.random.default_rng(6)
    truth = exponential_truth(rng, 3, 0)
    r_RM = sample_proportions(rng, 15, 3, 0.0)
    y_RT = truth(r_RM)[:, :1]
    for shift in (np.min(y_RT), 5.0):
        fit = fit_table(LAW, make_table(r_RM, y_RT - shift), num_draws=1)
        assert np.allclose(fit.losses(r_RM), y_RT - shift, rtol=0, atol=0.02)


@pytest.mark.parametrize("num_domains", [2, 30])
def test_two_and_thirty_domains_are_fitted(num_domains: int) -> None:
    rng = np.random.default_rng(8)
    truth = exponential_truth(rng, num_domains, 0)
    r_RM = sample_proportions(rng, 2 * num_domains + 8, num_domains, 0.0)
    fit = fit_table(LAW, make_table(r_RM, truth(r_RM)[:, :1]), num_draws=1)
    error = np.mean(np.abs(fit.left_out_residual_RT))
    assert error < 0.2 * np.mean(np.abs(fit.mean_residual_RT))


def test_runs_without_a_loss_are_left_out_of_that_target_only(study: SimulatedStudy) -> None:
    cell = (pl.col("run_id") == "run003") & (pl.col("target") == "d1")
    rows = study.observations.filter(~cell)
    fit = fit_law("m4", study.runs, rows, num_draws=1, targets=("d0", "d1"))
    assert fit.status[1].sentence == "1 of 20 runs have no loss"
    assert fit.status[0].sentence == "converged"
    assert np.isnan(fit.left_out_residual_RT[3, 1])
    assert np.isfinite(fit.theta_loo_RTP).all()
    assert np.isnan(fit.left_out_residual_RT).sum() == 1


# Status.


def test_too_few_mixtures_for_the_parameters_are_said_to_be_held_by_the_shrinkage() -> None:
    rng = np.random.default_rng(9)
    r_RM = sample_proportions(rng, 6, 5, 0.0)
    truth = exponential_truth(rng, 5, 0)
    fit = fit_table(LAW, make_table(r_RM, truth(r_RM)[:, :1]), num_draws=1)
    assert "6 mixtures for 6 parameters: held by the shrinkage" in fit.status[0].sentence


def test_a_parameter_at_its_bound_is_said_not_to_be_estimated() -> None:
    """Losses that fall ever faster want c below any loss: it ends at its bound, 0."""
    r_RM = sample_proportions(np.random.default_rng(0), 16, 3, 0.0)
    concave_R1 = 3 - np.exp(r_RM @ np.array([1.0, 0.0, -1.0]))[:, None]
    (status,) = fit_table(LAW, make_table(r_RM, concave_R1), num_draws=1).status
    assert status.at_bound == ("c",)
    assert "c at a bound, not estimated" in status.sentence
    assert status.converged


def test_a_loss_that_no_mixture_moves_is_said_to_be_one() -> None:
    rng = np.random.default_rng(3)
    r_RM = sample_proportions(rng, 16, 2, 0.0)
    fit = fit_table(LAW, make_table(r_RM, 2.0 + rng.normal(0, 0.01, (16, 1))), num_draws=1)
    assert "the mixtures explain only" in fit.status[0].sentence
    assert "% of its variance" in fit.status[0].sentence


def test_starts_that_agree_are_counted(fit: FitResult) -> None:
    for status in fit.status:
        assert status.num_starts == 5
        assert 1 <= status.starts_agreeing <= 5
    assert np.mean([status.starts_agreeing for status in fit.status]) > 3


def test_the_report_says_how_well_each_target_is_predicted(fit: FitResult) -> None:
    report = fit.report()
    lines = report.splitlines()
    assert "law m4: L(r) = c + exp(sum_j t_j r_j)" in report
    assert "20 mixtures of 5 domains" in report
    row = next(line for line in lines if line.startswith("d0 "))
    error = np.mean(np.abs(fit.left_out_residual_RT[:, 0]))
    seeds = fit.seed_sd(np.eye(6))[0]
    assert row.split()[1] == f"{error:.4f}"
    assert row.split()[3] == f"{seeds:.4f}"
    plain = json.loads(json.dumps(fit.to_json(), allow_nan=False))
    assert list(plain["targets"]) == list(fit.targets)
    assert plain["targets"]["d0"]["left_out_mae"] == pytest.approx(error, rel=1e-5)
    assert list(plain["targets"]["d0"]["parameters"])[:2] == ["c", "t[d0]"]


def test_an_unknown_noise_of_seeds_is_unknown_and_not_zero() -> None:
    study = simulate_study(7, num_repeated=0)
    fit = fit_law("m4", study.runs, study.observations, num_draws=1, targets=("d0",))
    assert np.isnan(fit.seed_sd(np.eye(1))).all()
    assert "unknown" in fit.report()
    assert fit.to_json()["targets"]["d0"]["seed_sd"] is None


# The noise of seeds, on tables made by hand.


def repeated_table() -> LossTable:
    """Three mixtures with seed 0; the first two again with fresh seeds."""
    r_RM = np.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1], [0.2, 0.8], [0.2, 0.8], [0.5, 0.5]])
    y_RT = np.array([[3.0, 1.0], [2.5, 2.0], [2.0, 3.0], [3.1, 1.0], [3.2, 1.3], [2.7, 1.9]])
    return make_table(r_RM, y_RT, seeds=[0, 0, 0, 1, 2, 3])


def test_replicate_residuals_are_deviations_from_the_mean_of_a_mixture() -> None:
    residual_NT, freedom = replicate_residuals(repeated_table())
    expected = [[-0.1, -0.1], [0.0, -0.1], [0.1, 0.2], [-0.1, 0.05], [0.1, -0.05]]
    assert np.allclose(residual_NT, expected)
    assert freedom == 3


def test_level_shift_is_shrunk_towards_none() -> None:
    compared = repeated_table()
    shift_T, factor = level_shift(compared.select([0, 1, 2]), compared)
    mean_T = np.array([(0.1 + 0.2 + 0.2) / 3, (0.0 + 0.3 - 0.1) / 3])
    # Three fresh seeds, two mixtures: the error of the mean in units of the seeds' variance.
    error = COMMON_SHARE / 3 + (1 - COMMON_SHARE) * (1 / 3 + 1 / 2)
    trust = COMMON_SHARE / (COMMON_SHARE + error)
    assert np.allclose(shift_T, trust * mean_T)
    assert factor == pytest.approx(COMMON_SHARE * (2 - trust))


def test_a_seed_on_several_mixtures_counts_once() -> None:
    r_RM = np.array([[0.2, 0.8], [0.5, 0.5]] * 2)
    y_RT = np.array([[3.0], [2.0], [3.1], [2.3]])
    compared = make_table(r_RM, y_RT, seeds=[0, 0, 5, 5])
    shift_T, _ = level_shift(compared.select([0, 1]), compared)
    error = COMMON_SHARE + (1 - COMMON_SHARE) * (1 + 1 / 2)
    assert np.allclose(shift_T, 0.2 * COMMON_SHARE / (COMMON_SHARE + error))


def test_runs_with_seeds_of_their_own_have_no_level_shift() -> None:
    compared = repeated_table()
    own = compared.select([0, 3, 5])
    assert shared_seed(own) is None
    shift_T, factor = level_shift(own, compared)
    assert np.array_equal(shift_T, [0.0, 0.0])
    assert factor == 0.0


def test_without_fresh_seeds_the_shared_one_may_be_any() -> None:
    table = repeated_table().select([0, 1, 2])
    shift_T, factor = level_shift(table, table)
    assert np.array_equal(shift_T, [0.0, 0.0])
    assert factor == 2 * COMMON_SHARE
    residual_NT, freedom = replicate_residuals(table)
    assert residual_NT.shape == (0, 2)
    assert freedom == 0


def test_an_incomplete_run_says_nothing_about_seeds() -> None:
    compared = repeated_table()
    compared.y_RT[3, 1] = np.nan
    residual_NT, freedom = replicate_residuals(compared)
    assert np.isfinite(residual_NT).all()
    assert freedom == 2


def test_the_seeds_noise_of_a_combination_is_not_that_of_its_parts() -> None:
    """Deviations that cancel in a sum leave no noise in it."""
    r_RM = np.array([[0.2, 0.8]] * 2 + [[0.5, 0.5], [0.9, 0.1], [0.6, 0.4]])
    y_RT = np.array([[3.0, 1.0], [3.2, 0.8], [2.5, 2.0], [2.0, 3.0], [2.4, 2.1]])
    fit = fit_table(LAW, make_table(r_RM, y_RT, seeds=[0, 1, 0, 0, 0]), num_draws=1)
    sd = fit.seed_sd(np.array([[1.0, 0.0], [0.5, 0.5]]))
    assert np.allclose(sd, [np.sqrt(0.02), 0.0], atol=1e-12)


def test_seed_sd_is_that_of_the_simulated_noise() -> None:
    study = simulate_study(
        3, num_repeated=10, fresh_seeds=8, noise=Noise(offset_sd=0.03, own_sd=0.04)
    )
    fit = fit_law("m4", study.runs, study.observations, num_draws=1, targets=("d0",))
    assert fit.replicate_freedom == 80
    assert fit.seed_sd(np.eye(1))[0] == pytest.approx(0.05, rel=0.2)


# Which step, and what is refused.


def test_the_last_step_that_all_runs_reached_is_fitted(
    study: SimulatedStudy, fit: FitResult
) -> None:
    early = study.observations.with_columns(step=pl.lit(100, pl.Int64), value=pl.col("value") + 1)
    late = study.observations.with_columns(step=pl.lit(900, pl.Int64))
    rows = pl.concat([early, study.observations, late.filter(pl.col("run_id") < "run010")])
    alone = fit_law("m4", study.runs, rows, num_draws=1, targets=("d0",))
    assert alone.table.step == 500
    assert np.allclose(alone.losses(CENTER_1M)[:, 0], fit.losses(CENTER_1M)[:, 0], rtol=1e-9)


def test_a_step_that_is_named_is_fitted(study: SimulatedStudy, fit: FitResult) -> None:
    early = study.observations.with_columns(step=pl.lit(100, pl.Int64), value=pl.col("value") + 1)
    rows = pl.concat([early, study.observations])
    shifted = fit_law("m4", study.runs, rows, num_draws=1, step=100, targets=("d1",))
    assert np.allclose(shifted.losses(CENTER_1M)[0, 0], fit.losses(CENTER_1M)[0, 1] + 1, atol=0.02)


def test_held_out_runs_are_not_fitted(study: SimulatedStudy, fit: FitResult) -> None:
    rows = study.observations.with_columns(
        value=pl.when(pl.col("run_id") >= "run026").then(99.0).otherwise("value")
    )
    alone = fit_law("m4", study.runs, rows, num_draws=1, targets=("d0",))
    assert np.allclose(alone.losses(CENTER_1M)[:, 0], fit.losses(CENTER_1M)[:, 0], rtol=1e-9)


def test_progress_ends_at_one(study: SimulatedStudy) -> None:
    seen: list[float] = []
    fit_law(
        "m4",
        study.runs,
        study.observations,
        num_draws=1,
        targets=("d0", "d1"),
        on_progress=seen.append,
    )
    assert seen == [1.0]


def test_too_few_mixtures_are_refused() -> None:
    r_RM = np.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1], [0.9, 0.1]])
    with pytest.raises(FitError) as error:
        fit_table(LAW, make_table(r_RM, np.ones((4, 1))), num_draws=1)
    assert str(error.value) == (
        "a fit needs the losses of at least 4 mixtures, but 't0' has 3\n"
        "  do: train or import more mixtures, about three per domain"
    )


def test_an_infinite_loss_names_its_run() -> None:
    r_RM = sample_proportions(np.random.default_rng(0), 6, 3, 0.0)
    y_RT = np.ones((6, 2))
    y_RT[4, 1] = np.inf
    with pytest.raises(FitError) as error:
        fit_table(LAW, make_table(r_RM, y_RT), num_draws=1)
    assert str(error.value) == (
        "losses must be finite, but run 'run004' has inf for 't1'\n"
        "  do: mark the run as failed, or leave it out of the import"
    )


def test_the_advice_to_mark_a_run_as_failed_works(study: SimulatedStudy) -> None:
    rows = study.observations.with_columns(
        value=pl.when(pl.col("run_id") == "run004").then(np.inf).otherwise("value")
    )
    with pytest.raises(FitError, match="run 'run004' has inf"):
        fit_law("m4", study.runs, rows, num_draws=1)
    runs = study.runs.with_columns(
        status=pl.when(pl.col("run_id") == "run004").then(pl.lit("failed")).otherwise(None)
    )
    assert fit_law("m4", runs, rows, num_draws=1, targets=("d0",)).num_mixtures == 19


def test_no_draws_are_refused() -> None:
    r_RM = sample_proportions(np.random.default_rng(0), 6, 3, 0.0)
    with pytest.raises(FitError) as error:
        fit_table(LAW, make_table(r_RM, np.ones((6, 1))), num_draws=0)
    assert str(error.value) == "the bootstrap needs at least one draw, found 0"


def test_tables_without_a_finished_design_run_are_refused(study: SimulatedStudy) -> None:
    with pytest.raises(TableError) as error:
        fit_law("m4", study.runs.filter(pl.col("role") == "noise"), study.observations)
    assert str(error.value) == (
        "no finished run has an observation\n"
        "  do: train some with `mixlaw run`, or import them with `mixlaw import`"
    )


def test_evaluating_a_law_gives_one_column_per_target() -> None:
    theta_TP = np.array([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    assert np.allclose(evaluate_law(LAW, np.eye(2), theta_TP), [[2.0, 3.0, 4.0]] * 2)
