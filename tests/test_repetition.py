"""What repeated text is worth: the formula, the law around it, and the fit of its constant."""

from functools import cache

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixlaw.errors import FitError
from mixlaw.fit import FitResult, fit_law
from mixlaw.fit.repetition import fit_repetition, fit_token_loss
from mixlaw.laws.mixing import ExponentialLaw
from mixlaw.laws.repetition import (
    PUBLISHED_CONSTANT,
    RepeatedLaw,
    effective_shares,
    effective_tokens,
    nominal_shares,
    seen_tokens,
)
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.optimize.objective import ObjectiveFunction
from mixlaw.optimize.repetition import (
    compare_epochs,
    effective_map,
    fit_effective,
    repeat_fit,
)
from mixlaw.optimize.solver import minimize_objective

SUPPLY = np.array([1e6, 2e5, 5e4])
THETA = np.array([1.2, 0.4, 0.1, -0.5, 0.3, 0.4, 9.0])
LAW = RepeatedLaw(ExponentialLaw(), tuple(SUPPLY), 1e6)


def shares(count: int, seed: int = 0, domains: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(domains), size=count)


@given(st.floats(0.0, 1e9), st.floats(1.0, 1e9), st.floats(0.1, 1e3), st.floats(0.0, 1e8))
def test_effective_tokens_rise_and_never_exceed_those_seen(
    seen: float, supply: float, constant: float, more: float
) -> None:
    few, many = effective_tokens(
        np.array([[seen], [seen + more]]), np.array([supply]), constant=constant
    )[:, 0]
    assert few <= seen * (1 + 1e-12)
    assert many >= few * (1 - 1e-12)
    assert many <= supply * (1 + constant) * (1 + 1e-12) or many == seen + more


@given(st.floats(0.0, 1.0), st.floats(0.1, 100.0))
def test_below_one_epoch_a_token_is_a_token(share: float, constant: float) -> None:
    seen = np.array([[share * 3e5]])
    assert effective_tokens(seen, np.array([3e5]), constant=constant) == pytest.approx(seen)


def test_four_epochs_are_worth_what_the_paper_says() -> None:
    # Muennighoff et al. 2305.16264, Eq. 5 by hand: 1 + 15.388 (1 - exp(-3 / 15.388)) = 3.7257.
    worth = effective_tokens(np.array([[4.0]]), np.array([1.0]), constant=PUBLISHED_CONSTANT)
    assert worth[0, 0] == pytest.approx(3.7257, abs=1e-4)


def test_an_unknown_supply_never_repeats() -> None:
    seen = np.array([[1e30, 5.0]])
    worth = effective_tokens(seen, np.array([np.inf, 10.0]), constant=2.0)
    np.testing.assert_array_equal(worth, seen)


def test_seen_tokens_undo_effective_ones() -> None:
    seen = shares(50) * 1e6
    worth = effective_tokens(seen, SUPPLY, constant=5.0)
    np.testing.assert_allclose(seen_tokens(worth, SUPPLY, constant=5.0), seen, rtol=1e-9)


def test_nominal_shares_undo_effective_ones() -> None:
    r_RM = np.vstack([shares(50), np.eye(3)])
    q_RM, _ = effective_shares(r_RM, SUPPLY, tokens=1e6, constant=5.0)
    again = nominal_shares(q_RM, SUPPLY, tokens=1e6, constant=5.0)
    np.testing.assert_allclose(again, r_RM, atol=1e-9)


def test_gradient_and_jacobian_are_those_of_finite_differences() -> None:
    r_RM, step = shares(20), 1e-6
    theta_BP = np.stack([THETA, THETA + 0.1])  # two constants at once
    gradient = LAW.gradient(r_RM, theta_BP)
    jacobian = LAW.jacobian(r_RM, theta_BP)
    for j in range(3):
        up, down = r_RM.copy(), r_RM.copy()
        up[:, j] += step
        down[:, j] -= step
        slope = (LAW.predict(up, theta_BP) - LAW.predict(down, theta_BP)) / (2 * step)
        np.testing.assert_allclose(gradient[..., j], slope, rtol=1e-5, atol=1e-7)
    for p in range(len(THETA)):
        shift = np.zeros(len(THETA))
        shift[p] = step
        slope = (LAW.predict(r_RM, theta_BP + shift) - LAW.predict(r_RM, theta_BP - shift)) / (
            2 * step
        )
        np.testing.assert_allclose(jacobian[..., p], slope, rtol=1e-5, atol=1e-7)


@settings(max_examples=25)
@given(st.floats(-5, 5))
def test_the_gauge_of_the_mixing_law_changes_nothing(shift: float) -> None:
    """(t + a, k e^-a) is one law on shares; with tokens in place of shares it would be two."""
    c, t_M = THETA[0], THETA[1:4]
    r_RM = shares(30)
    q_RM, sum_R = effective_shares(r_RM, SUPPLY, tokens=1e6, constant=THETA[-1])
    moved = c + np.exp(-shift) * np.exp(q_RM @ (t_M + shift)) + 0.3 * (sum_R**-0.4 - 1)
    np.testing.assert_allclose(LAW.predict(r_RM, THETA), moved, rtol=1e-9)
    unnormalised = q_RM * sum_R[:, None]
    assert not np.allclose(
        np.exp(-1) * np.exp(unnormalised @ (t_M + 1)), np.exp(unnormalised @ t_M)
    )


def test_a_run_without_repetition_has_the_mixing_laws_own_loss() -> None:
    plenty = RepeatedLaw(ExponentialLaw(), (1e9, 1e9, np.inf), 1e6)
    r_RM = shares(10)
    expected = ExponentialLaw().predict(r_RM, THETA[:4])
    np.testing.assert_allclose(plenty.predict(r_RM, THETA), expected, rtol=1e-12)
    assert plenty.is_convex(THETA)
    assert not LAW.is_convex(THETA)


def test_permuting_domains_permutes_the_gradient() -> None:
    order = np.array([2, 0, 1])
    turned = RepeatedLaw(ExponentialLaw(), tuple(SUPPLY[order]), 1e6)
    theta = np.concatenate([THETA[:1], THETA[1:4][order], THETA[4:]])
    r_RM = shares(5)
    np.testing.assert_allclose(
        turned.gradient(r_RM[:, order], theta), LAW.gradient(r_RM, THETA)[:, order], rtol=1e-10
    )


# ---------------------------------------------------------------- the fit of the constant

STEPS, PER_STEP = (125, 250, 500), 2000.0
REPEATED = {"a": 3e5, "b": 5e4, "c": 1e5, "d": 4e4}
"""Unique tokens; 500 steps see up to 25 epochs of `d`."""


def simulate(
    constant: float,
    *,
    supply: dict[str, float] | None = None,
    seed: int = 0,
    noise: float = 0.004,
    steps: tuple[int, ...] = STEPS,
    shared: float = 0.6,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Returns runs whose repeats are worth what `constant` says; noise is shared within a run."""
    rng = np.random.default_rng(seed)
    supply = REPEATED if supply is None else supply
    num_runs, num_targets, names = 24, 4, tuple(REPEATED)
    r_RM = rng.dirichlet(np.ones(4), size=num_runs) * 0.8 + 0.05
    t_TM, c_T = rng.normal(-0.2, 0.8, (num_targets, 4)), rng.uniform(1, 2, num_targets)
    b_T = rng.uniform(0.25, 0.45, num_targets)
    own_R1 = rng.normal(0, noise * np.sqrt(shared), (num_runs, 1))
    rows: list[tuple[str, int, float, str, float]] = []
    for step in steps:
        q_RM, sum_R = effective_shares(
            r_RM, np.array(list(supply.values())), tokens=step * PER_STEP, constant=constant
        )
        length_R1 = (sum_R * step * PER_STEP / 1e6)[:, None]
        y_RT = c_T + np.exp(q_RM @ t_TM.T) * length_R1**-b_T + own_R1
        y_RT += rng.normal(0, noise * np.sqrt(1 - shared), y_RT.shape)
        rows += [
            (f"r{i:02}", step, step * PER_STEP, f"t{k}", float(y_RT[i, k]))
            for i in range(num_runs)
            for k in range(num_targets)
        ]
    runs = pl.DataFrame(
        {"run_id": [f"r{i:02}" for i in range(num_runs)], "role": "design", "seed": 0,
         "params_non_embedding": 5e4, "tokens_per_step": PER_STEP}
        | {f"r:{name}": r_RM[:, j] for j, name in enumerate(names)}
    )  # fmt: skip
    names = ["run_id", "step", "tokens", "target", "value"]
    return runs, pl.DataFrame(rows, schema=names, orient="row")


@pytest.mark.parametrize("constant", [2.0, PUBLISHED_CONSTANT])
def test_the_planted_constant_lies_in_its_interval(constant: float) -> None:
    found = [fit_repetition(*simulate(constant, seed=seed), REPEATED) for seed in range(2)]
    assert all(fit.is_identified for fit in found)
    assert sum(fit.low <= constant <= fit.high for fit in found) >= 1
    assert np.median([fit.constant for fit in found]) == pytest.approx(constant, rel=0.1)


def test_draws_of_the_constant_lie_around_its_interval() -> None:
    found = fit_repetition(*simulate(5.0), REPEATED)
    drawn = found.draw(4000)
    inside = np.mean((drawn >= found.low * 0.99) & (drawn <= found.high * 1.01))
    assert 0.8 < inside <= 1.0


def test_hardly_repeated_text_does_not_identify_the_constant() -> None:
    plenty = {"a": 6e5, "b": 6e5, "c": 6e5, "d": 6e5}
    found = fit_repetition(*simulate(15.0, supply=plenty), plenty)
    assert not found.is_identified
    assert "not identified" in found.sentence


def test_runs_that_repeat_nothing_say_so() -> None:
    with pytest.raises(FitError, match="needs runs that repeat some"):
        fit_repetition(*simulate(15.0), dict.fromkeys(REPEATED, 1e9))


def test_what_more_tokens_are_worth_needs_several_steps() -> None:
    tables = simulate(5.0)
    several = fit_token_loss(*tables, REPEATED, constant=5.0)
    assert np.all(several.exponent_T > 0.15)
    assert np.all(several.loss_T > 0)
    one = fit_token_loss(*simulate(5.0, steps=(500,)), REPEATED, constant=5.0)
    np.testing.assert_array_equal(one.loss_T, 0.0)


# ---------------------------------------------------------------- in the answer


@cache
def planted_fit() -> tuple[FitResult, FitResult]:
    """Returns M4 fitted to effective shares, and the same in a run of ten times the tokens."""
    runs, observations = simulate(5.0, noise=0.0005)
    share_map = effective_map(tuple(REPEATED), REPEATED, tokens=1e6, constant=5.0)
    # Runs at one step: the sum of effective tokens differs little between them.
    fit = fit_effective(fit_law("m4", runs, observations, num_draws=10), share_map)
    token_loss = fit_token_loss(runs, observations, REPEATED, constant=5.0)
    return fit, repeat_fit(
        fit, dict.fromkeys(REPEATED, 1e5), tokens=1e7, constant=5.0, token_loss=token_loss
    )


def test_residuals_stay_what_they_were_in_the_longer_run() -> None:
    fit, there = planted_fit()
    np.testing.assert_allclose(there.left_out_residual_RT, fit.left_out_residual_RT, atol=1e-7)
    np.testing.assert_allclose(there.table.r_RM.sum(axis=1), 1.0)


def test_the_optimum_repeats_less_where_repeats_are_worth_less() -> None:
    fit, there = planted_fit()
    weight_T = np.full(4, 0.25)
    allowed = CappedSimplex.of(fit.domains)

    def optimum(one: FitResult) -> np.ndarray:
        return minimize_objective(
            ObjectiveFunction.of(one.law, one.theta_TP, weight_T), allowed
        ).r_M

    plain_M, repeated_M = optimum(fit), optimum(there)
    assert repeated_M.max() < plain_M.max()
    value = ObjectiveFunction.of(there.law, there.theta_TP, weight_T).value
    others_RM = np.random.default_rng(0).dirichlet(np.ones(4), size=3000)
    assert value(repeated_M[None])[0] <= value(others_RM).min() + 1e-9
    assert value(repeated_M[None])[0] < value(plain_M[None])[0]


def test_draws_carry_their_own_constants() -> None:
    fit, _ = planted_fit()
    constants_B = np.linspace(1, 20, 10)
    there = repeat_fit(
        fit, dict.fromkeys(REPEATED, 1e6), tokens=1e7, constant=5.0, constant_draws=constants_B
    )
    np.testing.assert_array_equal(there.theta_draws_BTP[:, 0, -1], constants_B)
    spread = there.draw_losses(np.array([[0.7, 0.1, 0.1, 0.1]])).std(axis=0)
    assert np.all(spread > fit.draw_losses(np.array([[0.7, 0.1, 0.1, 0.1]])).std(axis=0))


def test_a_target_that_repeats_more_than_its_proxies_is_warned_about() -> None:
    mixture = Mixture.of({"web": 0.5, "code": 0.5})
    told = compare_epochs(
        mixture, {"web": 1e9, "code": 1e8}, tokens=1e9, proxy_epochs={"web": 0.1, "code": 0.5}
    )
    assert told == (
        "the run would see code 5 times, the proxies saw it at most 0.5 times: what its repeated"
        " text is worth is not in their losses",
    )
