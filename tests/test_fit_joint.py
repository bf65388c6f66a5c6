"""Fits of joint laws: planted laws recovered, larger sizes predicted, intervals that hold."""

from dataclasses import replace
from functools import cache

import numpy as np
import polars as pl
import pytest
from scipy.optimize import minimize

from mixlaw.errors import FitError, TableError
from mixlaw.fit.allocation import fit_allocation
from mixlaw.fit.joint import JointFit, fit_joint, fit_joint_table
from mixlaw.fit.joint_choice import choose_joint
from mixlaw.fit.joint_holdout import distance_beyond
from mixlaw.fit.joint_pool import fit_pooled, in_units, run_weights
from mixlaw.fit.joint_solver import JointProblem, descend
from mixlaw.fit.joint_table import JointTable, joint_table
from mixlaw.importers.published import read_slimpajama
from mixlaw.laws.allocation import AllocationLaw
from mixlaw.laws.joint import ADDITIVE, INTERACTION, JOINT_LAWS, MIXTURE, JointLaw
from mixlaw.laws.joint_priors import default_shrinkage
from published import published_data

NUM_DOMAINS = 4
SIZES = (1e8, 2e8, 4e8, 8e8)
TOKENS = (4e9, 6e9, 9e9, 14e9, 20e9)
UNIT = np.array([3e8, 1e10])


def planted_parameters(law: JointLaw, num_targets: int = 3) -> np.ndarray:
    """Targets that differ in all but the exponents, which they nearly share."""
    rng = np.random.default_rng(3)
    index = law.index(NUM_DOMAINS)
    theta = np.zeros((num_targets, law.num_parameters(NUM_DOMAINS)))
    values = {"c": 0.8, "log g": np.log(0.5), "log a": np.log(0.3), "log b": np.log(0.8)}
    values |= {"log A": np.log(0.3), "log B": np.log(0.35), "log A[]": np.log(0.3)}
    values |= {"log B[]": np.log(0.35), "log C[]": -0.3, "d": 0.15, "kappa A": 0.2, "kappa B": 0.3}
    for slot, places in index.items():
        theta[:, places] = values[slot]
        if slot == "log C[]":
            theta[:, places] += rng.normal(0, 0.6, (num_targets, NUM_DOMAINS))
        if slot in ("log a", "log b", "c"):
            theta[:, places] += rng.normal(0, 0.03, (num_targets, 1))
    return theta


def planted_table(
    law: JointLaw = MIXTURE, *, noise: float = 0.002, num_mixtures: int = 14
) -> JointTable:
    rng = np.random.default_rng(5)
    shares = rng.dirichlet(np.ones(NUM_DOMAINS), num_mixtures)
    rows = [
        (f"{size:.0f}/{i}", f"mixture{i}", *shares[i], size, tokens)
        for size in SIZES
        for i in range(num_mixtures)
        for tokens in TOKENS
    ]
    x = np.array([row[2:] for row in rows])
    loss = law.predict(in_units(x, UNIT), planted_parameters(law)).T
    return JointTable(
        run_ids=tuple(row[0] for row in rows),
        mixture_ids=tuple(row[1] for row in rows),
        domains=("a", "b", "c", "d"),
        targets=("t0", "t1", "t2"),
        x_RX=x,
        y_RT=loss * np.exp(noise * rng.normal(size=loss.shape)),
    )


def smaller(table: JointTable, size: float = SIZES[-1]) -> JointTable:
    return table.select(table.params_R < size)


def largest(table: JointTable) -> JointTable:
    return table.select(table.params_R == SIZES[-1])


@cache
def planted_fit() -> JointFit:
    return fit_joint_table(MIXTURE, smaller(planted_table()), num_draws=20)


def test_planted_law_predicts_a_size_twice_as_large() -> None:
    truth = largest(planted_table(noise=0.0))
    value = planted_fit().predict(truth.x_RX).value_RT
    assert np.mean(np.abs(value / truth.y_RT - 1)) < 0.002


def test_planted_exponents_are_recovered_within_their_spread() -> None:
    exponents = planted_fit().pooled.exponents
    for slot, truth in {"log b": np.log(0.8), "d": 0.15}.items():
        mean, spread = exponents[slot]
        assert abs(mean - truth) < 2 * spread


def test_intervals_hold_new_runs_at_a_larger_size() -> None:
    table = largest(planted_table())
    fit = planted_fit()
    for mixture_ids in (None, table.mixture_ids):
        found = fit.predict(table.x_RX, mixture_ids=mixture_ids)
        inside = (found.low_RT <= table.y_RT) & (table.y_RT <= found.high_RT)
        assert inside.mean() >= 0.8
        assert np.all(found.high_RT - found.low_RT < 0.05)


def test_intervals_grow_with_distance_and_with_level() -> None:
    fit = planted_fit()
    x = largest(planted_table()).x_RX
    further = x * np.where(np.arange(x.shape[1]) == NUM_DOMAINS, 4.0, 1.0)
    near, far, wide = (
        fit.predict(x),
        fit.predict(further),
        fit.predict(x, level=0.98),
    )
    assert np.all(np.log(far.high_RT / far.low_RT) > np.log(near.high_RT / near.low_RT))
    assert np.all(wide.high_RT > near.high_RT)


def test_minimum_is_scipys() -> None:
    table = smaller(planted_table())
    weight, offset = default_shrinkage(INTERACTION.slots, INTERACTION.num_parameters(NUM_DOMAINS))
    problem = JointProblem(
        law=INTERACTION,
        x_RX=in_units(table.x_RX, UNIT),
        y_R=table.y_RT[:, 0],
        weight_R=run_weights(table.run_ids),
        scale=0.01,
        shrink_QP=weight,
        shrink_Q=offset,
    )
    start = INTERACTION.starts(problem.x_RX, problem.y_R)[0]
    end = descend(problem, start, tolerance=1e-12)
    low, high = INTERACTION.bounds(problem.x_RX, problem.y_R)
    theirs = minimize(
        lambda theta: problem.expand(theta).value,
        end.theta_P + 0.01,
        jac=lambda theta: problem.expand(theta).slope_P,
        bounds=list(zip(low, high, strict=True)),
        method="L-BFGS-B",
        options={"maxiter": 5000, "maxfun": 20000, "ftol": 1e-15, "gtol": 1e-9},
    )
    assert end.converged
    assert end.objective <= theirs.fun + 1e-6


def test_slope_is_that_of_the_objective() -> None:
    table = smaller(planted_table())
    weight, offset = default_shrinkage(ADDITIVE.slots, ADDITIVE.num_parameters(NUM_DOMAINS))
    problem = JointProblem(
        law=ADDITIVE,
        x_RX=in_units(table.x_RX, UNIT),
        y_R=table.y_RT[:, 1],
        weight_R=run_weights(table.run_ids),
        scale=0.05,
        shrink_QP=weight,
        shrink_Q=offset,
    )
    theta = ADDITIVE.starts(problem.x_RX, problem.y_R)[0]
    expected = [
        (problem.expand(theta + step).value - problem.expand(theta - step).value) / 2e-6
        for step in 1e-6 * np.eye(len(theta))
    ]
    np.testing.assert_allclose(problem.expand(theta).slope_P, expected, rtol=1e-4, atol=1e-4)


def test_pooling_narrows_how_far_exponents_of_targets_lie_apart() -> None:
    table = smaller(planted_table(noise=0.01))
    place = int(MIXTURE.index(NUM_DOMAINS)["log a"][0])
    own = fit_pooled(MIXTURE, table, pooled=False).theta_TP[:, place]
    pooled = fit_pooled(MIXTURE, table).theta_TP[:, place]
    assert np.std(pooled) < np.std(own)


def test_a_run_weighs_one_however_many_checkpoints_it_has() -> None:
    np.testing.assert_allclose(run_weights(["a", "b", "b", "b", "b"]), [1, 0.25, 0.25, 0.25, 0.25])


def test_order_of_rows_and_domains_does_not_matter() -> None:
    table = smaller(planted_table())
    order = np.random.default_rng(0).permutation(len(table.run_ids))
    columns = [2, 0, 3, 1, 4, 5]
    shuffled = replace(
        table,
        run_ids=tuple(table.run_ids[i] for i in order),
        mixture_ids=tuple(table.mixture_ids[i] for i in order),
        domains=tuple(table.domains[i] for i in columns[:4]),
        x_RX=table.x_RX[order][:, columns],
        y_RT=table.y_RT[order],
    )
    x = largest(planted_table()).x_RX
    ours, theirs = fit_pooled(INTERACTION, table), fit_pooled(INTERACTION, shuffled)
    np.testing.assert_allclose(theirs.predict(x[:, columns]), ours.predict(x), rtol=1e-4)


def test_same_seed_gives_the_same_bits() -> None:
    table, x = smaller(planted_table()), largest(planted_table()).x_RX
    first, second = (fit_joint_table(ADDITIVE, table, num_draws=3).predict(x) for _ in range(2))
    np.testing.assert_array_equal(first.low_RT, second.low_RT)


def test_missing_cells_are_left_out() -> None:
    table = smaller(planted_table())
    holes = table.y_RT.copy()
    holes[::7, 0] = np.nan
    fit = fit_pooled(MIXTURE, replace(table, y_RT=holes))
    truth = largest(planted_table(noise=0.0))
    assert np.mean(np.abs(fit.predict(truth.x_RX) / truth.y_RT - 1)) < 0.003


def test_the_planted_form_is_chosen_and_the_next_one_without_it() -> None:
    table = smaller(planted_table(INTERACTION, noise=0.001), size=1e12)
    laws = [ADDITIVE, INTERACTION, JOINT_LAWS["joint-product"]]
    choice = choose_joint(table, laws)
    assert choice.best == INTERACTION
    assert choice.score["joint-interaction"] < choice.score["joint-additive"]
    assert "joint-interaction (chosen)" in choice.report()
    rest = choose_joint(table, [law for law in laws if law != INTERACTION])
    assert rest.best in (ADDITIVE, JOINT_LAWS["joint-product"])


def test_one_size_and_one_step_leave_nothing_to_choose_by() -> None:
    table = planted_table()
    single = table.select((table.params_R == SIZES[0]) & (table.tokens_R == TOKENS[0]))
    with pytest.raises(FitError, match="leaving out the largest of three sizes"):
        choose_joint(single, [ADDITIVE])


def test_two_sizes_say_that_growth_with_size_is_a_guess() -> None:
    fit = fit_joint_table(ADDITIVE, smaller(planted_table(), SIZES[2]), num_draws=2)
    assert "fewer than three sizes" in fit.report()


def test_distance_is_counted_in_fitted_ranges() -> None:
    fitted = np.array([[0.5, 0.5, 1e8, 1e9], [0.5, 0.5, 1e9, 1e10]])
    beyond = np.array([[0.5, 0.5, 1e10, 1e9], [0.5, 0.5, 1e8, 1e12]])
    np.testing.assert_allclose(distance_beyond(beyond, fitted), [[1, 0], [0, 2]])


def standard_frames() -> tuple[pl.DataFrame, pl.DataFrame]:
    table = smaller(planted_table(num_mixtures=6))
    names = [f"r:{domain}" for domain in table.domains]
    runs = pl.DataFrame(
        {"run_id": table.run_ids, "mixture_id": table.mixture_ids, "params_total": table.params_R}
        | dict(zip(names, table.x_RX[:, :4].T, strict=True))
    ).unique("run_id", maintain_order=True)
    observations = pl.DataFrame(
        {
            "run_id": table.run_ids * 3,
            "step": np.tile((table.tokens_R / 1e6).astype(int), 3),
            "tokens": np.tile(table.tokens_R, 3),
            "target": np.repeat(table.targets, len(table.run_ids)),
            "value": table.y_RT.T.ravel(),
        }
    )
    return runs, observations


def test_table_joins_by_run_not_by_row() -> None:
    runs, observations = standard_frames()
    table = joint_table(runs, observations)
    mixed = joint_table(
        runs.sample(fraction=1, shuffle=True, seed=1),
        observations.sample(fraction=1, shuffle=True, seed=2),
        targets=table.targets,
    )
    assert mixed.run_ids == table.run_ids
    np.testing.assert_array_equal(mixed.x_RX, table.x_RX)
    np.testing.assert_array_equal(mixed.y_RT, table.y_RT)


def test_runs_and_observations_are_fitted_in_one_call() -> None:
    runs, observations = standard_frames()
    fit = fit_joint(ADDITIVE, runs, observations, targets=["t1"], num_draws=2)
    assert fit.table.targets == ("t1",)
    assert "joint-additive: L = c" in str(fit)


def test_unknown_size_is_an_error_that_names_the_run() -> None:
    runs, observations = standard_frames()
    with pytest.raises(TableError, match="needs the size of every run"):
        joint_table(runs.with_columns(params_total=None), observations)


def test_unusable_losses_are_errors_that_say_why() -> None:
    runs, observations = standard_frames()
    with pytest.raises(FitError, match="positive numbers"):
        joint_table(runs, observations.with_columns(value=-pl.col("value")))
    with pytest.raises(FitError, match="above 0"):
        joint_table(runs, observations.with_columns(tokens=0.0))
    few = runs.filter(pl.col("mixture_id").is_in(["mixture0", "mixture1"]))
    with pytest.raises(FitError, match="at least 4 mixtures"):
        fit_joint(ADDITIVE, few, observations)
    with pytest.raises(TableError, match="nothing"):
        joint_table(runs, observations, targets=["nothing"])


def test_a_single_draw_says_nothing() -> None:
    with pytest.raises(FitError, match="at least two draws"):
        fit_joint_table(ADDITIVE, planted_table(), num_draws=1)


def test_level_must_be_a_share() -> None:
    with pytest.raises(FitError, match="between 0 and 1"):
        planted_fit().predict(largest(planted_table()).x_RX, level=90.0)


def test_planted_allocation_of_capacity_predicts_a_larger_size() -> None:
    table = planted_table()
    theta = np.concatenate(
        [
            np.log([0.5, 0.4, 0.6, 0.3]),
            np.log([0.3, 0.2, 0.4, 0.3]),
            np.log([0.5, 0.3, 0.4, 0.4]),
            np.log([0.3, 0.4, 0.2, 0.3]),
            [1.0, 1.2, 0.9, 1.1],
            [np.log(0.1)],
        ]
    )
    loss = AllocationLaw().predict(in_units(table.x_RX, UNIT), theta)
    table = replace(table, targets=table.domains, y_RT=loss)
    held_out = largest(table)
    fit = fit_allocation(smaller(table))
    assert np.mean(np.abs(fit.predict(held_out.x_RX) / held_out.y_RT - 1)) < 0.003


def test_allocation_needs_a_target_for_every_domain() -> None:
    with pytest.raises(FitError, match="a target for every domain, but 'a' has none"):
        fit_allocation(planted_table())


def test_published_runs_below_700m_predict_937m_to_half_a_percent() -> None:
    # Published forms: 1.17% and 1.04%; the aim of this law is 0.45%.
    published = read_slimpajama(published_data() / "slimpajama")
    table = joint_table(published.runs, published.observations.filter(pl.col("tokens") >= 4e9))
    held_out = table.select(table.params_R > 7e8)
    fit = fit_pooled(MIXTURE, table.select(table.params_R < 7e8))
    error = np.abs(fit.predict(held_out.x_RX) / held_out.y_RT - 1)
    assert np.nanmean(error, axis=0).mean() < 0.0045
