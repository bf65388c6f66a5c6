"""The optimum: certified, within its bounds, the same as an independent solver's."""

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
from mixlaw.optimize.objective import ObjectiveFunction
from mixlaw.optimize.optimum import round_shares
from mixlaw.optimize.solver import minimize_objective
from simulated import SimulatedStudy, simulate_study


@pytest.fixture(scope="module")
def study() -> SimulatedStudy:
    return simulate_study(seed=2)


@pytest.fixture(scope="module")
def fit(study: SimulatedStudy) -> FitResult:
    return fit_law(study.runs, study.observations, num_draws=20)


def random_problem(seed: int, domains: int, targets: int) -> ObjectiveFunction:
    rng = np.random.default_rng(seed)
    theta_TP = np.column_stack([rng.uniform(1, 2, targets), rng.normal(0, 1, (targets, domains))])
    return ObjectiveFunction(ExponentialLaw(), theta_TP, rng.dirichlet(np.ones(targets)))


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
    from dataclasses import replace

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
