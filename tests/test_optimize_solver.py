"""The solver: the same minimum as CVXPY's, gaps that are proofs, prices that come true."""

from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from mixlaw.domains import Domain, Scale
from mixlaw.laws.base import MixingLaw
from mixlaw.laws.library import MIXING_LAWS
from mixlaw.laws.stack import StackedLaw
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.optimize.constraints import Constraints, GroupBound
from mixlaw.optimize.objective import LossSum, ObjectiveFunction
from mixlaw.optimize.objectives_risk import TailMean
from mixlaw.optimize.region import Region
from mixlaw.optimize.solver import minimize_objective
from random_problems import (
    CONVEX_LAWS,
    domain_names,
    random_bounds,
    random_losses,
    random_theta,
)

M = 8
NAMES = domain_names(M)
DOMAINS = tuple(Domain(name=name, available_tokens=30) for name in NAMES)
RUNS = np.random.default_rng(1).dirichlet(np.full(M, 3.0), 12)
REFERENCE = np.random.default_rng(2).dirichlet(np.full(M, 3.0))
KINDS: dict[str, dict[str, Any]] = {
    "bounds": {"floors": {"d0": 0.02, "d3": 0.1}, "caps": {"d1": 0.2}},
    "kl": {"reference": Mixture.from_array(NAMES, REFERENCE), "kl_to_reference": 0.1},
    "l1": {"reference": Mixture.from_array(NAMES, REFERENCE), "l1_to_reference": 0.3},
    "runs": {"distance_to_runs": 0.05},
    "groups": {
        "groups": (
            GroupBound(domains=("d0", "d1"), low=0.3),
            GroupBound(domains=("d1", "d2"), high=0.2),
            GroupBound(domains=("d3", "d4"), low=0.1, high=0.1),
        ),
        "fixed": {"d5": 0.07},
    },
    "all": {
        "reference": Mixture.from_array(NAMES, REFERENCE),
        "kl_to_reference": 0.2,
        "l1_to_reference": 0.5,
        "distance_to_runs": 0.1,
        "floors": {"d0": 0.02},
        "groups": (GroupBound(domains=("d0", "d1"), low=0.2),),
    },
}


def make_region(kind: str) -> Region:
    return Constraints(domains=DOMAINS, **KINDS[kind]).region(Scale(tokens=100), runs_RM=RUNS)


def cvxpy_constraints(kind: str, r_M: cp.Variable) -> list[Any]:
    """The same constraints in CVXPY's words: nothing of ours is used."""
    given_, caps = KINDS[kind], np.full(M, 0.3)
    floors = np.zeros(M)
    for name, share in given_.get("floors", {}).items():
        floors[NAMES.index(name)] = share
    for name, share in given_.get("caps", {}).items():
        caps[NAMES.index(name)] = share
    rules: list[Any] = [cp.sum(r_M) == 1, r_M >= floors, r_M <= caps]
    for name, share in given_.get("fixed", {}).items():
        rules.append(r_M[NAMES.index(name)] == share)
    for group in given_.get("groups", ()):
        total = sum(r_M[NAMES.index(name)] for name in group.domains)
        rules += [] if group.low is None else [total >= group.low]
        rules += [] if group.high is None else [total <= group.high]
    if "kl_to_reference" in given_:
        divergence = cp.sum(cp.kl_div(r_M, REFERENCE) + r_M - REFERENCE)
        rules.append(divergence <= given_["kl_to_reference"])
    if "l1_to_reference" in given_:
        rules.append(cp.norm1(r_M - REFERENCE) <= given_["l1_to_reference"])
    if "distance_to_runs" in given_:
        weights = cp.Variable(len(RUNS), nonneg=True)
        rules += [
            cp.sum(weights) == 1,
            cp.norm1(r_M - RUNS.T @ weights) / 2 <= given_["distance_to_runs"],
        ]
    return rules


def cvxpy_losses(theta_TP: np.ndarray, r_M: cp.Variable) -> list[Any]:
    """M4 in CVXPY's words."""
    return [theta_P[0] + cp.exp(theta_P[1:] @ r_M) for theta_P in theta_TP]


def cvxpy_reciprocals(theta_TP: np.ndarray, r_M: cp.Variable) -> tuple[list[Any], list[Any]]:
    """The reciprocal law with cones for the powers, s <= (r + e)^g, and these cones."""
    size = r_M.shape[0]
    losses: list[Any] = []
    cones: list[Any] = []
    for theta_P in theta_TP:
        g_M, scale_M = np.exp(theta_P[1 : 1 + size]), np.exp(theta_P[1 + size :])
        power_M = cp.Variable(size)
        cones.append(cp.PowCone3D(r_M + 1e-3, np.ones(size), power_M, g_M))
        losses.append(theta_P[0] + cp.inv_pos(scale_M @ power_M))
    return losses, cones


def solve_with_cvxpy(objective: Any, rules: list[Any]) -> float:
    problem = cp.Problem(cp.Minimize(objective), rules)
    with np.errstate(all="ignore"):  # the other solver's own arithmetic
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    return float(problem.value)


def tail_mean(losses: LossSum, most: float) -> TailMean:
    count = len(losses.theta_TP)
    eye = sparse.csr_array(np.eye(count))
    return TailMean(losses.law, losses.theta_TP, eye, np.zeros(count), most)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["sum", "worst", "tail"])
def test_the_minimum_is_that_of_an_independent_formulation(kind: str, form: str) -> None:
    losses, region = random_losses("m4", M, 5, seed=4), make_region(kind)
    r_M = cp.Variable(M)
    each = cvxpy_losses(losses.theta_TP, r_M)
    level = cp.Variable()
    ours: dict[str, ObjectiveFunction] = {
        "sum": losses,
        "worst": tail_mean(losses, 1.0),
        "tail": tail_mean(losses, 0.4),
    }
    theirs = {
        "sum": losses.weight_T @ cp.hstack(each),
        "worst": cp.max(cp.hstack(each)),
        "tail": level + 0.4 * cp.sum(cp.pos(cp.hstack(each) - level)),
    }
    found = minimize_objective(ours[form], region)
    other = solve_with_cvxpy(theirs[form], cvxpy_constraints(kind, r_M))
    assert found.is_certified
    assert found.value == pytest.approx(other, abs=1e-7)
    assert found.gap < 1e-6
    assert region.contains(found.r_M, 1e-9)


@pytest.mark.parametrize("kind", ["bounds", "kl", "runs"])
def test_reciprocal_laws_have_the_minimum_of_an_independent_formulation(kind: str) -> None:
    losses, region = random_losses("reciprocal", M, 3, seed=5), make_region(kind)
    r_M = cp.Variable(M)
    each, cones = cvxpy_reciprocals(losses.theta_TP, r_M)
    found = minimize_objective(losses, region)
    rules = [*cvxpy_constraints(kind, r_M), *cones]
    other = solve_with_cvxpy(losses.weight_T @ cp.hstack(each), rules)
    assert found.value == pytest.approx(other, abs=1e-7)
    assert found.gap < 1e-6


@pytest.mark.parametrize("law", CONVEX_LAWS)
@pytest.mark.parametrize("kind", ["bounds", "all"])
def test_every_convex_law_is_certified(law: str, kind: str) -> None:
    region = make_region(kind)
    found = minimize_objective(random_losses(law, M, 4, seed=6), region)
    assert found.is_certified
    assert found.gap < 1e-6
    assert region.contains(found.r_M, 1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(CONVEX_LAWS), st.sampled_from(tuple(KINDS)))
def test_no_allowed_mixture_is_lower_than_the_gap_says(seed: int, law: str, kind: str) -> None:
    region, losses = make_region(kind), random_losses(law, M, 3, seed=seed)
    found = minimize_objective(losses, region)
    points = np.random.default_rng(seed).dirichlet(np.ones(M), 6)
    others = np.stack([region.nearest(point) for point in points])
    near = found.r_M + 1e-3 * (others - found.r_M)
    lowest = min(np.min(losses.value(others)), np.min(losses.value(near)))
    assert lowest >= found.value - found.gap - 1e-12
    assert region.contains(found.r_M, 1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["sum", "worst"])
def test_prices_are_what_moving_a_limit_changes(kind: str, form: str) -> None:
    losses, region = random_losses("m4", M, 5, seed=7), make_region(kind)
    objective = losses if form == "sum" else tail_mean(losses, 1.0)
    found = minimize_objective(objective, region)
    assert found.prices
    step = 1e-4
    for name, price in found.prices.items():
        more, less = (
            minimize_objective(objective, region.shifted(name, side)).value
            for side in (step, -step)
        )
        assert (more - less) / (2 * step) == pytest.approx(price, rel=2e-3, abs=1e-4)


def test_prices_have_the_sign_of_what_they_loosen() -> None:
    for kind in KINDS:
        found = minimize_objective(random_losses("m4", M, 5, seed=8), make_region(kind))
        for name, price in found.prices.items():
            at_least = name.kind == "floor" or "at least" in name.text
            if name.kind == "fixed" or " at 0" in name.text:
                continue
            assert price > 0 if at_least else price < 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(("m4", "reciprocal", "bimix")))
def test_permuting_the_domains_permutes_the_minimum(seed: int, law: str) -> None:
    region, losses = make_region("all"), random_losses(law, M, 4, seed=seed)
    order = np.random.default_rng(seed).permutation(M)
    start = losses.theta_TP.shape[1] % M
    blocks = [start + M * block + order for block in range((losses.theta_TP.shape[1] - start) // M)]
    turned_P = np.concatenate([np.arange(start), *blocks])
    turned = replace(losses, theta_TP=losses.theta_TP[:, turned_P])
    found = minimize_objective(losses, region)
    other = minimize_objective(turned, region.reordered([NAMES[j] for j in order]))
    assert other.value == pytest.approx(found.value, abs=1e-9)
    assert np.allclose(losses.value(other.r_M[np.argsort(order)][None]), found.value, atol=1e-9)


@pytest.mark.parametrize("law", [*CONVEX_LAWS, "stack"])
def test_curvatures_are_those_of_the_gradients(law: str) -> None:
    r_M = 0.02 + 0.84 * np.random.default_rng(3).dirichlet(np.ones(M))
    made: MixingLaw
    if law == "stack":
        made = StackedLaw((MIXING_LAWS["m4"], MIXING_LAWS["reciprocal"]), (0.3, 0.7))
        parts = [random_theta(name, M, 3, seed=9) for name in ("m4", "reciprocal")]
        theta_TP = np.concatenate(parts, axis=1)
    else:
        made, theta_TP = MIXING_LAWS[law], random_theta(law, M, 3, seed=9)
    curvature = made.curvature(r_M, theta_TP)
    assert curvature is not None
    hessian_TMM = np.einsum("tkm,tkn->tmn", curvature[1], curvature[1])
    hessian_TMM[:, np.arange(M), np.arange(M)] += curvature[0]
    step = 1e-5
    for j, unit_M in enumerate(np.eye(M)):
        up, down = (made.gradient((r_M + side * unit_M)[None], theta_TP) for side in (step, -step))
        numeric_TM = (up - down)[:, 0] / (2 * step)
        scale = max(float(np.max(np.abs(hessian_TMM))), 1.0)
        assert np.allclose(hessian_TMM[:, j], numeric_TM, rtol=0, atol=1e-5 * scale)


def test_the_curvature_of_a_law_that_is_not_convex_leaves_out_what_is_negative() -> None:
    theta_P = np.array([1.0, -1.0, 2.0, 1.0, 1.0])  # m1: k = (-1, 2), t = (1, 1)
    curvature = MIXING_LAWS["m1"].curvature(np.array([0.5, 0.5]), theta_P)
    assert curvature is not None
    assert curvature[0] == pytest.approx([0.0, 2 * np.exp(0.5)])


def test_two_domains_and_one_free_domain() -> None:
    losses = LossSum(MIXING_LAWS["m4"], np.array([[1.0, -1.0, 1.0]]), np.ones(1))
    two = minimize_objective(losses, CappedSimplex.of(("a", "b"), floors=0.1))
    assert two.r_M == pytest.approx([0.9, 0.1], abs=1e-12)
    domains = tuple(Domain(name=name) for name in ("a", "b", "c"))
    region = Constraints(domains=domains, fixed={"a": 0.2, "b": 0.3}).region()
    one = minimize_objective(random_losses("reciprocal", 3, 2), region)
    assert one.r_M == pytest.approx([0.2, 0.3, 0.5], abs=1e-12)
    assert one.gap == pytest.approx(0.0, abs=1e-12)


def test_floors_that_sum_to_one_leave_one_mixture() -> None:
    floors = {"d0": 0.2, "d1": 0.3, "d2": 0.5}
    domains = tuple(Domain(name=name) for name in floors)
    found = minimize_objective(
        random_losses("m4", 3, 2), Constraints(domains=domains, floors=floors).region()
    )
    assert found.r_M == pytest.approx(list(floors.values()), abs=1e-12)
    assert found.gap == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("law", ["reciprocal", "bimix", "power-reciprocal"])
def test_a_domain_without_a_share_is_no_trouble_for_steep_laws(law: str) -> None:
    """Their slope at a share of 0 is e^(g - 1): a hundred times that of the others."""
    losses = random_losses(law, 4, 3, seed=1)
    region = CappedSimplex.of(domain_names(4), caps={"d0": 0.0})
    start_M = np.array([0.0, 1.0, 0.0, 0.0])
    found = minimize_objective(losses, region, start_M=start_M)
    assert found.r_M[0] == 0
    assert found.gap < 1e-6


def test_duplicated_domains_share_what_one_would_get() -> None:
    losses = random_losses("m4", 3, 2, seed=2)
    doubled = replace(losses, theta_TP=losses.theta_TP[:, [0, 1, 2, 3, 3]])
    one = minimize_objective(losses, CappedSimplex.of(domain_names(3)))
    two = minimize_objective(doubled, CappedSimplex.of(domain_names(4)))
    assert two.value == pytest.approx(one.value, abs=1e-9)
    assert two.r_M[2] + two.r_M[3] == pytest.approx(one.r_M[2], abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_loss_is_the_least_everywhere(kind: str) -> None:
    theta_TP = np.array([[1.0, *[0.7] * M], [2.0, *[0.0] * M]])
    region = make_region(kind)
    found = minimize_objective(LossSum(MIXING_LAWS["m4"], theta_TP, np.ones(2)), region)
    assert found.value == pytest.approx(1 + np.exp(0.7) + 2 + 1)
    assert found.gap < 1e-9
    assert region.contains(found.r_M, 1e-9)
    assert not found.prices


def test_a_share_next_to_a_bound_is_put_on_it() -> None:
    found = minimize_objective(random_losses("m4", 30, 5, seed=3), random_bounds(30, seed=3))
    room_M = np.minimum(
        found.r_M - random_bounds(30, seed=3).floor_M, random_bounds(30, seed=3).cap_M - found.r_M
    )
    assert np.all((room_M == 0) | (room_M > 1e-7))


def test_a_law_that_is_not_convex_is_searched_from_several_starts_and_not_certified() -> None:
    rng = np.random.default_rng(0)
    theta_TP = np.concatenate([[1.0], rng.normal(0, 1, 5), rng.normal(0, 4, 5)])[None]
    losses = LossSum(MIXING_LAWS["m1"], theta_TP, np.ones(1))
    region = CappedSimplex.of(domain_names(5))
    found = minimize_objective(losses, region)
    assert not found.is_certified
    assert found.num_starts > 1
    assert 1 <= found.starts_agreeing <= found.num_starts
    grid = rng.dirichlet(np.full(5, 0.4), 20_000)
    assert found.value <= np.min(losses.value(grid)) + 1e-9


def test_a_law_without_a_known_curvature_is_minimized_all_the_same() -> None:
    """M3's product is not convex; with t < 0 and k > 0 equal shares are best."""
    losses = LossSum(MIXING_LAWS["m3"], np.array([[1.0, 2.0, -1.5]]), np.ones(1))
    found = minimize_objective(losses, CappedSimplex.of(domain_names(4), floors=0.01))
    assert found.r_M == pytest.approx([0.25] * 4, abs=1e-4)
    assert not found.is_certified


@pytest.mark.parametrize(("law", "domains"), [("m4", 400), ("reciprocal", 200)])
def test_many_domains_are_certified(law: str, domains: int) -> None:
    region = random_bounds(domains)
    found = minimize_objective(random_losses(law, domains, 10), region)
    assert found.gap < 1e-6
    assert region.contains(found.r_M, 1e-9)


def test_a_search_is_repeated_bit_by_bit() -> None:
    losses, region = random_losses("reciprocal", M, 4, seed=11), make_region("all")
    first, second = (minimize_objective(losses, region) for _ in range(2))
    assert np.array_equal(first.r_M, second.r_M)
    assert first.prices == second.prices
