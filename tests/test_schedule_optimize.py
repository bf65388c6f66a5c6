"""The best schedule: allowed, certified, and the best constant mixture where order is nothing.

Shape letters: S stages, M training domains, X columns of a schedule.
"""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from mixlaw.domains import Domain, Scale
from mixlaw.errors import OptimizeError
from mixlaw.fit.stages import Schedule, StagedFit, fit_schedules
from mixlaw.laws.mixing import LinearLaw
from mixlaw.laws.stages import StagedLaw
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.optimize import WeightedLoss
from mixlaw.optimize.constraints import Constraints
from mixlaw.optimize.objective import LossSum
from mixlaw.optimize.region import Region
from mixlaw.optimize.schedule import ScheduleOptimum, optimize_schedule, schedule_view
from mixlaw.optimize.schedule_region import constant_schedules, schedule_region
from mixlaw.optimize.schedule_ties import break_ties
from mixlaw.optimize.solver import minimize_objective
from schedule_studies import DOMAINS, THETA_TP, planted_study, true_losses

FRACTIONS = (0.8, 0.2)
OBJECTIVE = WeightedLoss({"code": 0.7, "prose": 0.3})
SCARCE = CappedSimplex.of(DOMAINS, floors=0.05, caps={"code": 0.15})
WEIGHT_T = np.array([0.7, 0.3])


@pytest.fixture(scope="module")
def staged() -> StagedFit:
    """The fit to runs with a little noise."""
    _, runs, observations = planted_study(noise=0.004)
    return fit_schedules("m4", runs, observations, num_draws=20)


@pytest.fixture(scope="module")
def best(staged: StagedFit) -> ScheduleOptimum:
    """The schedule where the domain that counts most is scarce."""
    uniform = {"uniform": Mixture.of({"code": 0.15, "prose": 0.425, "web": 0.425})}
    return optimize_schedule(staged, OBJECTIVE, SCARCE, fractions=FRACTIONS, baselines=uniform)


def test_scarce_domain_that_counts_comes_late(best: ScheduleOptimum) -> None:
    first, last = best.schedule.mixtures
    assert last["code"] > 2 * first["code"]


def test_caps_hold_for_the_whole_run_and_floors_in_each_stage(best: ScheduleOptimum) -> None:
    assert best.schedule.mean["code"] <= 0.15 + 1e-9
    assert min(min(mixture.values()) for mixture in best.schedule.mixtures) >= 0.05 - 1e-9
    for mixture in best.schedule.mixtures:
        assert sum(mixture.values()) == pytest.approx(1.0, abs=1e-12)


def test_gain_is_claimed_and_is_there(best: ScheduleOptimum) -> None:
    constant = Schedule.constant(best.constant, FRACTIONS)
    true_2 = true_losses([constant, best.schedule]) @ WEIGHT_T
    gain = best.gains[0]
    assert gain.baseline == "best constant mixture"
    assert best.verdict == "gain"
    assert gain.low <= true_2[0] - true_2[1] <= gain.high


def test_gains_over_baselines_are_judged_too(best: ScheduleOptimum) -> None:
    assert [gain.baseline for gain in best.gains] == ["best constant mixture", "uniform"]
    assert best.gains[1].value >= best.gains[0].value


def test_optimum_is_certified_and_the_same_as_an_independent_solver(
    staged: StagedFit, best: ScheduleOptimum
) -> None:
    assert best.is_convex
    assert best.gap < 1e-6
    assert "certified: no allowed schedule" in best.certificate
    view = schedule_view(staged, FRACTIONS)
    function = OBJECTIVE.function(view)
    found = minimize(
        lambda x_X: float(function.value(x_X[None])[0]),
        np.outer(FRACTIONS, [0.15, 0.4, 0.45]).ravel(),
        jac=function.gradient,
        bounds=[(0.05 * f, f) for f in FRACTIONS for _ in DOMAINS],
        constraints=[
            {"type": "eq", "fun": lambda x_X: x_X[:3].sum() - 0.8},
            {"type": "eq", "fun": lambda x_X: x_X[3:].sum() - 0.2},
            {"type": "ineq", "fun": lambda x_X: 0.15 - x_X[0] - x_X[3]},
        ],
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 500},
    )
    assert best.loss[0] == pytest.approx(float(found.fun), abs=1e-7)


def test_best_constant_mixture_is_that_of_the_constant_law(
    staged: StagedFit, best: ScheduleOptimum
) -> None:
    alone = minimize_objective(OBJECTIVE.function(staged.constant), SCARCE)
    np.testing.assert_allclose(best.constant.array(DOMAINS), alone.r_M, atol=1e-9)
    assert best.constant_loss[0] == pytest.approx(alone.value, abs=1e-12)


def test_schedules_held_to_one_mixture_give_the_constant_optimum(staged: StagedFit) -> None:
    region = schedule_region(Region.of(SCARCE), FRACTIONS)
    found = minimize_objective(
        OBJECTIVE.function(schedule_view(staged, FRACTIONS)), constant_schedules(region, FRACTIONS)
    )
    alone = minimize_objective(OBJECTIVE.function(staged.constant), SCARCE)
    shares_SM = found.r_M.reshape(2, -1) / np.array(FRACTIONS)[:, None]
    np.testing.assert_allclose(shares_SM, np.stack([alone.r_M] * 2), atol=1e-6)
    assert found.value == pytest.approx(alone.value, abs=1e-9)


def test_order_that_does_not_matter_gives_the_constant_optimum() -> None:
    theta_TP = THETA_TP.copy()
    theta_TP[:, 4:] = [0.0, 0.0, 0.0]
    _, runs, observations = planted_study(theta_TP=theta_TP)
    staged = fit_schedules("m4", runs, observations, num_draws=3)
    parameters_TP = staged.fit.theta_TP.copy()
    parameters_TP[:, -3:] = [0.0, 0.0, 0.0]  # exactly: the fit only comes close
    draws_BTP = np.stack([parameters_TP] * 3)
    staged = _with_parameters(staged, parameters_TP, draws_BTP)
    best = optimize_schedule(staged, OBJECTIVE, SCARCE, fractions=FRACTIONS)
    alone = minimize_objective(OBJECTIVE.function(staged.constant), SCARCE)
    for mixture in best.schedule.mixtures:
        np.testing.assert_allclose(mixture.array(DOMAINS), alone.r_M, atol=1e-6)
    assert best.loss[0] == pytest.approx(alone.value, abs=1e-9)
    assert best.is_constant
    assert best.verdict == "no evidence"


def test_ties_are_broken_towards_one_mixture() -> None:
    law = StagedLaw(LinearLaw(), (0.8, 1.0))
    function = LossSum(law, np.array([[1.0, 2.0, 3.0, 0.0, 0.0, 0.0]]), np.array([1.0]))
    region = schedule_region(Region.of(SCARCE), FRACTIONS)
    first_X = np.array([0.11, 0.65, 0.04, 0.04, 0.15, 0.01])  # all cheap code that is allowed
    value = float(function.value(first_X[None])[0])
    assert value == pytest.approx(minimize_objective(function, region).value, abs=1e-9)
    tied_X = break_ties(function, region, first_X, fractions=FRACTIONS)
    shares_SM = tied_X.reshape(2, -1) / np.array(FRACTIONS)[:, None]
    np.testing.assert_allclose(shares_SM, [[0.15, 0.8, 0.05]] * 2, atol=1e-6)
    assert float(function.value(tied_X[None])[0]) == pytest.approx(value, abs=1e-8)


def test_token_supply_caps_the_sum_over_stages(staged: StagedFit) -> None:
    domains = (
        Domain(name="code", available_tokens=1e8),
        Domain(name="prose", available_tokens=5e9),
        Domain(name="web", available_tokens=5e9),
    )
    region = Constraints(domains=domains).region(Scale(tokens=1e9))
    best = optimize_schedule(staged, OBJECTIVE, region, fractions=FRACTIONS)
    assert best.schedule.mean["code"] == pytest.approx(0.1, abs=1e-9)
    assert best.schedule.mixtures[1]["code"] > 0.2
    assert best.prices["cap of code (token supply)"] < 0


def test_more_stages_are_never_worse(staged: StagedFit) -> None:
    _, runs, observations = planted_study(noise=0.004)
    finer = fit_schedules("m4", runs, observations, fractions=(0.4, 0.4, 0.2), num_draws=3)
    two = optimize_schedule(finer, OBJECTIVE, SCARCE, fractions=FRACTIONS)
    three = optimize_schedule(finer, OBJECTIVE, SCARCE, fractions=(0.4, 0.4, 0.2))
    one = optimize_schedule(finer, OBJECTIVE, SCARCE, fractions=(1.0,))
    assert three.loss[0] <= two.loss[0] + 1e-9 <= one.loss[0] + 2e-9
    assert one.schedule.mixtures[0].array(DOMAINS) == pytest.approx(one.constant.array(), abs=1e-7)


def test_limits_of_a_stage_hold_inside_it(staged: StagedFit) -> None:
    best = optimize_schedule(
        staged, OBJECTIVE, SCARCE, fractions=FRACTIONS, stage_caps={"code": 0.3}
    )
    assert max(mixture["code"] for mixture in best.schedule.mixtures) <= 0.3 + 1e-9


def test_impossible_limits_of_stages_are_named(staged: StagedFit) -> None:
    with pytest.raises(OptimizeError, match="cap of code"):
        optimize_schedule(
            staged, OBJECTIVE, SCARCE, fractions=FRACTIONS, stage_floors={"code": 0.2}
        )
    with pytest.raises(OptimizeError, match="no domain"):
        optimize_schedule(
            staged, OBJECTIVE, SCARCE, fractions=FRACTIONS, stage_floors={"maths": 0.2}
        )


def test_distance_of_a_constant_schedule_is_that_of_its_mixture() -> None:
    reference = Mixture.of({"code": 0.2, "prose": 0.3, "web": 0.5})
    domains = tuple(Domain(name=name) for name in DOMAINS)
    whole = Constraints(domains=domains, reference=reference, kl_to_reference=0.1).region()
    region = schedule_region(whole, FRACTIONS)
    r_M = np.array([0.4, 0.3, 0.3])
    x_X = np.outer(FRACTIONS, r_M).ravel()
    (ball,), (wide,) = whole.distances, region.distances
    assert wide.slack(x_X) == pytest.approx(ball.slack(r_M), abs=1e-12)


def _with_parameters(staged: StagedFit, theta_TP: np.ndarray, draws_BTP: np.ndarray) -> StagedFit:
    return replace(staged, fit=replace(staged.fit, theta_TP=theta_TP, theta_draws_BTP=draws_BTP))
