"""The optimum: certified, within its bounds, the same as an independent solver's."""

from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, minimize

from mixlaw.domains import Domain
from mixlaw.errors import FitError, MixtureError, OptimizeError
from mixlaw.fit import FitResult, fit_law
from mixlaw.laws.mixing import ExponentialLaw
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.optimize import WeightedLoss, baseline_mixtures, optimize_mixture
from mixlaw.optimize.baselines import distance_to_runs
from mixlaw.optimize.objective import LossSum, ObjectiveFunction
from mixlaw.optimize.optimum import CERTIFIED_GAP, round_shares
from mixlaw.optimize.solver import minimize_objective
from simulated import Noise, SimulatedStudy, simulate_study


@pytest.fixture(scope="module")
def study() -> SimulatedStudy:
    return simulate_study(seed=2)


@pytest.fixture(scope="module")
def fit(study: SimulatedStudy) -> FitResult:
    return fit_law(
        "m4", study.runs, study.observations, num_draws=20, targets=("d0", "d1", "unseen0")
    )


def random_problem(seed: int, domains: int, targets: int) -> LossSum:
    rng = np.random.default_rng(seed)
    theta_TP = np.column_stack([rng.uniform(1, 2, targets), rng.normal(0, 1, (targets, domains))])
    return LossSum(ExponentialLaw(), theta_TP, rng.dirichlet(np.ones(targets)))


def region(domains: int, *, floor: float = 0.01, cap: float = 0.5) -> CappedSimplex:
    names = [f"d{i}" for i in range(domains)]
    return CappedSimplex.of(names, floors=floor, caps=dict.fromkeys(names, cap))


@pytest.mark.parametrize("seed", range(5))
def test_the_minimum_equals_that_of_another_solver(seed: int) -> None:
    problem, allowed = random_problem(seed, 8, 4), region(8)
    found = minimize_objective(problem, allowed)
    with np.errstate(all="ignore"):  # the other solver's own arithmetic
        other = minimize(
            lambda r_M: problem.value(r_M[None])[0],
            np.full(8, 1 / 8),
            jac=problem.gradient,
            method="trust-constr",
            bounds=list(zip(allowed.floors, allowed.caps, strict=True)),
            constraints=LinearConstraint(np.ones(8), 1, 1),
            options={"gtol": 1e-10, "xtol": 1e-12, "maxiter": 2000},
        )
    assert found.value <= other.fun + 1e-8
    assert found.gap < 1e-6


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 60), st.integers(1, 5))
def test_bounds_hold_and_the_gap_certifies(seed: int, domains: int, targets: int) -> None:
    allowed = region(domains, floor=0.2 / domains, cap=min(1.0, 3 / domains))
    found = minimize_objective(random_problem(seed, domains, targets), allowed)
    assert allowed.contains(found.r_M, 1e-9)
    assert found.gap < 1e-6


def test_two_hundred_domains_are_certified() -> None:
    assert minimize_objective(random_problem(7, 200, 10), region(200, floor=0.0)).gap < 1e-6


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12))
def test_rounded_shares_are_allowed_and_close(seed: int, domains: int) -> None:
    allowed = region(domains, floor=0.123456 / domains, cap=min(1.0, 2.5 / domains))
    r_M = allowed.nearest(np.random.default_rng(seed).dirichlet(np.ones(domains)))
    rounded_M = round_shares(r_M, allowed)
    assert allowed.contains(rounded_M, 1e-9)
    assert np.max(np.abs(rounded_M - r_M)) <= domains * 1e-4


def test_the_order_of_the_domains_does_not_matter(fit: FitResult) -> None:
    objective = WeightedLoss({fit.targets[0]: 1.0, fit.targets[1]: 2.0})
    allowed = CappedSimplex.of(fit.domains, floors=0.04)
    turned = CappedSimplex.of(fit.domains[::-1], floors=0.04)
    assert dict(optimize_mixture(fit, objective, allowed).mixture) == pytest.approx(
        dict(optimize_mixture(fit, objective, turned).mixture), abs=2e-4
    )


def test_scaling_the_weights_changes_nothing(fit: FitResult) -> None:
    allowed = CappedSimplex.of(fit.domains, floors=0.04)
    one = optimize_mixture(fit, WeightedLoss({fit.targets[0]: 1.0, fit.targets[1]: 3.0}), allowed)
    ten = optimize_mixture(fit, WeightedLoss({fit.targets[0]: 10.0, fit.targets[1]: 30.0}), allowed)
    assert one.mixture == ten.mixture
    assert one.loss == ten.loss


def test_an_optimum_is_certified_and_says_where_it_is_bounded(fit: FitResult) -> None:
    names = fit.domains
    allowed = CappedSimplex.of(names, floors=0.04, caps={names[0]: 0.1})
    best = optimize_mixture(fit, WeightedLoss({names[0]: 1.0}), allowed)
    assert names[0] in best.at_cap
    assert best.mixture[names[0]] == pytest.approx(0.1)
    assert best.certificate.startswith("certified: no allowed mixture is more than")
    assert best.gap < 1e-6


def test_a_baseline_that_is_the_optimum_is_no_evidence_of_a_gain(fit: FitResult) -> None:
    objective = WeightedLoss({fit.targets[0]: 1.0})
    allowed = CappedSimplex.of(fit.domains, floors=0.04)
    best = optimize_mixture(fit, objective, allowed)
    again = optimize_mixture(fit, objective, allowed, baselines={"same": best.mixture})
    with pytest.raises(OptimizeError, match="not compared with 'nobody'") as caught:
        again.gain_over("nobody")
    assert caught.value.do == "the baselines are same"
    gain = again.gain_over("same")
    assert gain.verdict == "no evidence"
    assert gain.value == pytest.approx(0.0, abs=1e-9)
    assert gain.low < 0 < gain.high


def test_a_clear_gain_is_called_one(fit: FitResult, study: SimulatedStudy) -> None:
    target = fit.domains[0]
    poor = Mixture.normalized({name: 0.04 if name == target else 1.0 for name in fit.domains})
    best = optimize_mixture(
        fit,
        WeightedLoss({target: 1.0}),
        CappedSimplex.of(fit.domains, floors=0.03),
        baselines={"poor": poor},
    )
    gain = best.gain_over("poor")
    truth = study.truth(np.stack([poor.array(study.domains), best.mixture.array(study.domains)]))
    i = study.targets.index(target)
    assert gain.verdict == "gain"
    assert gain.low < truth[0, i] - truth[1, i] < gain.high


def test_a_fits_notes_reach_the_optimum(fit: FitResult) -> None:
    noted = replace(fit, notes=("2 runs are left out",))
    best = optimize_mixture(
        noted, WeightedLoss({fit.targets[0]: 1.0}), CappedSimplex.of(fit.domains)
    )
    assert "2 runs are left out" in best.notes


def test_baselines_are_moved_into_what_is_allowed() -> None:
    domains = [
        Domain(name="a", available_tokens=90),
        Domain(name="b", available_tokens=9),
        Domain(name="c", available_tokens=1),
    ]
    allowed = CappedSimplex.of(["a", "b", "c"], floors=0.05)
    found = baseline_mixtures(
        domains, allowed, reference=Mixture.of({"a": 1.0, "b": 0.0, "c": 0.0})
    )
    assert list(found) == ["reference", "proportional", "uniform"]
    assert dict(found["reference"]) == pytest.approx({"a": 0.9, "b": 0.05, "c": 0.05})
    # the projection takes the 0.04 that c gains from a and b alike: (.88, .07, .05)
    assert dict(found["proportional"]) == pytest.approx({"a": 0.88, "b": 0.07, "c": 0.05})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": -1.0}, "weights of the objective must be finite and not negative, but 'a' has -1"),
        ({"a": float("nan")}, "weights of the objective must be finite and not negative"),
        ({"a": 0.0}, "the objective must weigh at least one target"),
        ({}, "the objective must weigh at least one target"),
    ],
)
def test_weights_that_say_nothing_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(OptimizeError, match=message):
        WeightedLoss(weights)


def test_unknown_targets_and_domains_are_refused(fit: FitResult) -> None:
    allowed = CappedSimplex.of(fit.domains)
    with pytest.raises(FitError, match="'nothing' is no fitted target"):
        optimize_mixture(fit, WeightedLoss({"nothing": 1.0}), allowed)
    with pytest.raises(MixtureError):
        optimize_mixture(fit, WeightedLoss({fit.targets[0]: 1.0}), CappedSimplex.of(["x", "y"]))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("domains", [2, 5, 60])
def test_the_minimum_equals_that_of_an_interior_point_solver(domains: int, seed: int) -> None:
    """Clarabel's exponential cone: another formulation, another algorithm."""
    rng = np.random.default_rng([seed, domains])
    problem = random_problem(seed, domains, 4)
    floors = rng.uniform(0, [0.5, 0.99][seed % 2] / domains, size=domains)
    caps = np.minimum(1.0, floors + rng.uniform(1.2, 4.0, size=domains) / domains)
    names = tuple(f"d{i}" for i in range(domains))
    allowed = CappedSimplex(names, tuple(floors.tolist()), tuple(caps.tolist()))
    found = minimize_objective(problem, allowed)
    r_M = cp.Variable(domains)
    loss = sum(
        float(weight) * (theta_P[0] + cp.exp(theta_P[1:] @ r_M))
        for weight, theta_P in zip(problem.weight_T, problem.theta_TP, strict=True)
    )
    with np.errstate(all="ignore"):  # the other solver's own arithmetic
        other = cp.Problem(cp.Minimize(loss), [cp.sum(r_M) == 1, r_M >= floors, r_M <= caps])
        other.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    assert found.value == pytest.approx(float(other.value), abs=1e-7)
    assert found.gap < CERTIFIED_GAP
    assert allowed.contains(found.r_M, 1e-9)


@pytest.mark.parametrize("unit", [1e-9, 1e6])
def test_the_unit_of_the_losses_does_not_move_the_optimum(unit: float) -> None:
    problem, allowed = random_problem(3, 5, 3), region(5)
    scaled_TP = problem.theta_TP * np.array([unit, 1, 1, 1, 1, 1])
    scaled_TP[:, 1:] += np.log(unit)
    scaled = LossSum(problem.law, scaled_TP, problem.weight_T)
    found, other = minimize_objective(problem, allowed), minimize_objective(scaled, allowed)
    assert np.allclose(found.r_M, other.r_M, rtol=0, atol=1e-5)
    assert other.gap < CERTIFIED_GAP * unit


def test_a_single_allowed_mixture_is_the_optimum() -> None:
    floors = np.array([0.2, 0.3, 0.5])
    allowed = CappedSimplex(("d0", "d1", "d2"), tuple(floors.tolist()), (1.0, 1.0, 1.0))
    found = minimize_objective(random_problem(0, 3, 2), allowed)
    assert np.allclose(found.r_M, floors, rtol=0, atol=1e-12)
    uniform = CappedSimplex.of([f"d{i}" for i in range(25)], floors=1 / 25)
    assert np.allclose(minimize_objective(random_problem(1, 25, 2), uniform).r_M, 1 / 25)


def test_targets_that_weigh_nothing_are_not_looked_at() -> None:
    problem = random_problem(5, 4, 3)
    weight_T = np.array([0.0, 1.0, 0.0])
    lost_TP = problem.theta_TP.copy()
    lost_TP[0] = np.nan
    one = ObjectiveFunction.of(problem.law, lost_TP, weight_T)
    found = minimize_objective(one, region(4))
    assert one.is_convex
    assert found.gap < CERTIFIED_GAP
    assert found.value == pytest.approx(
        minimize_objective(LossSum(problem.law, problem.theta_TP, weight_T), region(4)).value
    )


def test_the_gradient_is_that_of_the_weighted_loss() -> None:
    problem = random_problem(6, 5, 3)
    r_M = np.array([0.1, 0.2, 0.3, 0.15, 0.25])
    step = 1e-6 * np.eye(5)
    numeric = (problem.value(r_M + step) - problem.value(r_M - step)) / 2e-6
    assert np.allclose(problem.gradient(r_M), numeric, rtol=1e-6)


@pytest.mark.parametrize("cap", [0.12346, 0.3333333])
def test_rounding_leaves_a_share_at_its_bound(cap: float) -> None:
    """0.12346 to four digits is below this cap: the gap would be 1e-5, no certificate."""
    allowed = CappedSimplex.of(("a", "b", "c"), floors=0.2 / 3, caps={"a": cap})
    r_M = np.array([cap, 0.2 / 3, 1 - cap - 0.2 / 3])
    assert np.allclose(round_shares(r_M, allowed), r_M, rtol=0, atol=1e-12)
    assert allowed.contains(round_shares(r_M, allowed), 1e-12)


def test_an_optimum_at_bounds_of_many_digits_is_certified(fit: FitResult) -> None:
    names = fit.domains
    allowed = CappedSimplex.of(names, floors=0.13 / 3, caps={names[0]: 0.212346})
    best = optimize_mixture(fit, WeightedLoss({names[0]: 1.0}), allowed)
    assert best.at_cap == (names[0],)
    assert best.mixture[names[0]] == pytest.approx(0.212346, abs=1e-12)
    assert best.certificate.startswith("certified")


def test_a_non_convex_law_is_not_certified(fit: FitResult) -> None:
    best = optimize_mixture(
        fit, WeightedLoss({fit.targets[0]: 1.0}), CappedSimplex.of(fit.domains, floors=0.04)
    )
    assert replace(best, is_convex=False).certificate == (
        "not certified: the objective is not convex under this law, a lower mixture may lie"
        " elsewhere"
    )
    assert replace(best, gap=0.012).certificate == (
        "not certified: a mixture could be 0.012 lower under this law"
    )


def test_conflicting_bounds_are_refused_before_any_search() -> None:
    with pytest.raises(MixtureError, match=r"caps must sum to at least 1, but they sum to 0\.4"):
        region(4, cap=0.1)


def test_choosing_the_best_of_noisy_predictions_is_optimistic() -> None:
    """The winner's curse: what the optimum promises is more than it holds, on average."""
    promised, held, limits = [], [], []
    for seed in range(4):
        noisy = simulate_study(40 + seed, num_mixtures=12, noise=Noise(offset_sd=0.0, own_sd=0.08))
        fit = fit_law("m4", noisy.runs, noisy.observations, num_draws=15, targets=("unseen0",))
        objective = WeightedLoss({"unseen0": 1.0})
        allowed = CappedSimplex.of(noisy.domains, floors=0.04)
        best = optimize_mixture(
            fit, objective, allowed, baselines={"uniform": Mixture.uniform(noisy.domains)}
        )
        gain = best.gain_over("uniform")
        r_2M = np.stack([np.full(5, 0.2), best.mixture.array(noisy.domains)])
        true_2 = noisy.truth(r_2M)[:, noisy.targets.index("unseen0")]
        promised.append(gain.value)
        held.append(true_2[0] - true_2[1])
        limits.append((gain.low + gain.high) / 2)
    assert np.mean(promised) > np.mean(held)
    assert np.mean(limits) < np.mean(promised)  # the limits take the optimism off


def test_the_range_of_proportions_holds_the_optimum_of_most_draws(fit: FitResult) -> None:
    best = optimize_mixture(
        fit, WeightedLoss({fit.targets[-1]: 1.0}), CappedSimplex.of(fit.domains, floors=0.04)
    )
    for name, (low, high) in best.proportion_range.items():
        assert 0.04 - 1e-9 <= low <= high <= 1
        assert low - 0.1 <= best.mixture[name] <= high + 0.1


def test_the_distance_to_the_runs_is_the_share_that_moves() -> None:
    runs_RM = np.array([[0.5, 0.5, 0.0], [0.2, 0.2, 0.6]])
    assert distance_to_runs(np.array([0.2, 0.3, 0.5]), runs_RM) == pytest.approx(0.1)
    assert distance_to_runs(runs_RM[1], runs_RM) == 0.0


def test_without_token_counts_there_is_no_proportional_baseline() -> None:
    domains = [Domain(name="a", available_tokens=90), Domain(name="b")]
    assert list(baseline_mixtures(domains, CappedSimplex.of(["b", "a"]))) == ["uniform"]


def test_an_unknown_baseline_names_other_domains(fit: FitResult) -> None:
    with pytest.raises(MixtureError, match="must give a share for"):
        optimize_mixture(
            fit,
            WeightedLoss({fit.targets[0]: 1.0}),
            CappedSimplex.of(fit.domains),
            baselines={"other": Mixture.uniform(["x", "y"])},
        )
