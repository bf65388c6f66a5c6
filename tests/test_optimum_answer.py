"""What an answer holds beside the mixture: prices, near-optimal shares, rivals, sensitivity."""

from dataclasses import replace

import cvxpy as cp
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixlaw.domains import Domain, Scale
from mixlaw.errors import MixtureError, OptimizeError
from mixlaw.fit import FitResult, fit_law
from mixlaw.laws.mixing import ExponentialLaw, LinearLaw
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.optimize import Constraints, Objective, WeightedLoss, WorstLoss, optimize_mixture
from mixlaw.optimize.baselines import TEMPERATURE, baseline_mixtures, unimax_mixture
from mixlaw.optimize.near_optimal import find_near_optimal
from mixlaw.optimize.objective import LossSum
from mixlaw.optimize.pareto import pareto_front
from mixlaw.optimize.prices import find_prices
from mixlaw.optimize.region import Region
from mixlaw.optimize.rivals import compare_rivals, fit_rivals, tied_laws
from mixlaw.optimize.solver import minimize_objective
from mixlaw.selection import LawChoice, select_law
from simulated import SimulatedStudy, simulate_study

DOMAINS = ("d0", "d1", "d2", "d3", "d4")


@pytest.fixture(scope="module")
def study() -> SimulatedStudy:
    return simulate_study(seed=2)


@pytest.fixture(scope="module")
def fit(study: SimulatedStudy) -> FitResult:
    return fit_law(
        "m4", study.runs, study.observations, num_draws=20, targets=("d0", "d1", "unseen0")
    )


@pytest.fixture(scope="module")
def objective(fit: FitResult) -> WeightedLoss:
    return WeightedLoss({fit.targets[0]: 1.0, fit.targets[2]: 1.0})


def problem(seed: int, domains: int = 5, targets: int = 3) -> LossSum:
    rng = np.random.default_rng(seed)
    theta_TP = np.column_stack([rng.uniform(1, 2, targets), rng.normal(0, 1, (targets, domains))])
    return LossSum(ExponentialLaw(), theta_TP, rng.dirichlet(np.ones(targets)))


def capped(domains: int = 5, *, floor: float = 0.01, cap: float = 0.5) -> Region:
    names = [f"d{i}" for i in range(domains)]
    return Region.of(CappedSimplex.of(names, floors=floor, caps=dict.fromkeys(names, cap)))


# ------------------------------------------------------------------ baselines


def test_unimax_fills_small_domains_first() -> None:
    """Chung et al. 2023, Algorithm 1, by hand: budget 90, supplies 10, 20 and 1000, one epoch.

    The smallest gets min(10, 90 / 3), the next min(20, 80 / 2), the last the rest.
    """
    domains = [
        Domain(name="large", available_tokens=1000),
        Domain(name="small", available_tokens=10),
        Domain(name="middle", available_tokens=20),
    ]
    found = unimax_mixture(domains, Scale(tokens=90))
    assert dict(found) == pytest.approx({"large": 60 / 90, "small": 10 / 90, "middle": 20 / 90})


def test_unimax_counts_each_domains_epochs_and_is_uniform_where_none_binds() -> None:
    domains = [
        Domain(name="a", available_tokens=10, max_epochs=3),
        Domain(name="b", available_tokens=1e6),
    ]
    assert dict(unimax_mixture(domains, Scale(tokens=100)))["a"] == pytest.approx(0.3)
    assert dict(unimax_mixture(domains, Scale(tokens=50)))["a"] == pytest.approx(0.5)


def test_temperature_lies_between_proportional_and_uniform() -> None:
    domains = [Domain(name="a", available_tokens=900), Domain(name="b", available_tokens=100)]
    free = CappedSimplex.of(["a", "b"])
    found = baseline_mixtures(domains, free, temperature=TEMPERATURE)
    # 900^0.3 : 100^0.3 = 1.933 : 1, mT5's exponent
    assert found["temperature"]["a"] == pytest.approx(9**0.3 / (1 + 9**0.3))
    assert found["uniform"]["a"] < found["temperature"]["a"] < found["proportional"]["a"]


# ------------------------------------------------------------------ near-optimal shares


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10_000))
def test_the_limits_of_shares_equal_those_of_an_interior_point_solver(seed: int) -> None:
    function, region = problem(seed), capped()
    minimum = minimize_objective(function, region)
    tolerance = 0.01
    found = find_near_optimal(function, region, minimum=minimum, tolerance=tolerance)
    assert found.is_proven
    r_M = cp.Variable(5)
    loss = sum(
        float(weight) * (theta_P[0] + cp.exp(theta_P[1:] @ r_M))
        for weight, theta_P in zip(function.weight_T, function.theta_TP, strict=True)
    )
    within = [
        cp.sum(r_M) == 1,
        r_M >= region.floor_M,
        r_M <= region.cap_M,
        loss <= minimum.value + tolerance,
    ]
    for j, name in enumerate(region.names):
        with np.errstate(all="ignore"):  # the other solver's own arithmetic
            low = cp.Problem(cp.Minimize(r_M[j]), within).solve(solver=cp.CLARABEL)
            high = cp.Problem(cp.Maximize(r_M[j]), within).solve(solver=cp.CLARABEL)
        limits = found.shares[name]
        # What was found is attained, so it never goes beyond; it stops a little short of the end.
        assert low - 1e-5 <= limits.low <= low + 0.01
        assert high - 0.01 <= limits.high <= high + 1e-5


def test_a_law_with_flat_directions_gives_the_whole_segment() -> None:
    """Linear: the path jumps between corners, the limits lie between them."""
    function = LossSum(LinearLaw(), np.array([[1.0, 2.0, 3.0]]), np.ones(1))
    region = capped(3, floor=0.0, cap=1.0)
    minimum = minimize_objective(function, region)
    found = find_near_optimal(function, region, minimum=minimum, tolerance=0.5)
    # 1 a + 2 b + 3 c <= 1.5 on the simplex: b up to 0.5, c up to 0.25, a from 0.5 on
    assert found.is_proven
    assert found.shares["d1"].high == pytest.approx(0.5, abs=2e-3)
    assert found.shares["d2"].high == pytest.approx(0.25, abs=2e-3)
    assert found.shares["d0"].low == pytest.approx(0.5, abs=2e-3)


def test_shares_of_a_worst_case_are_limited_as_well(fit: FitResult) -> None:
    function = WorstLoss().function(fit)
    region = Region.of(CappedSimplex.of(fit.domains, floors=0.04))
    minimum = minimize_objective(function, region)
    found = find_near_optimal(function, region, minimum=minimum, tolerance=0.02)
    assert found.is_proven
    for name, limits in found.shares.items():
        share = minimum.r_M[fit.domains.index(name)]
        assert limits.low - 1e-6 <= share <= limits.high + 1e-6


# ------------------------------------------------------------------ prices


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10_000))
def test_a_price_is_what_moving_the_limit_gains(seed: int) -> None:
    function, region = problem(seed), capped(floor=0.04, cap=0.33)
    minimum = minimize_objective(function, region)
    found = find_prices(function, region, minimum=minimum)
    assert found
    for price in found:
        direction = 1.0 if price.kind == "cap" else -1.0
        name = next(name for name in minimum.prices if str(name) == price.constraint)
        moved = minimize_objective(function, region.shifted(name, direction * 1e-4))
        assert minimum.value - moved.value == pytest.approx(1e-4 * price.price, rel=0.05, abs=1e-8)
        # The step that is told holds: the slope promises at most a quarter more.
        assert 0.8 * price.price * price.step <= price.step_gain + 1e-9
        assert price.step_gain <= price.price * price.step + 1e-9


def test_a_price_is_told_in_tokens_and_epochs(fit: FitResult, objective: WeightedLoss) -> None:
    scale = Scale(tokens=1e12)
    domains = tuple(
        Domain(name=name, available_tokens=1.5e11 if name == fit.domains[0] else 9e12)
        for name in fit.domains
    )
    best = optimize_mixture(
        fit,
        objective,
        Constraints(domains=domains, floors=dict.fromkeys(fit.domains, 0.04)),
        scale=scale,
    )
    price = next(p for p in best.prices if p.subject == fit.domains[0])
    assert price.kind == "cap"
    assert price.step_tokens == pytest.approx(price.step * 1e12)
    assert price.epoch_price == pytest.approx(price.price * 0.15)
    assert price.sentence("nats").startswith(f"{price.step_tokens / 1e9:.3g}B more tokens of")
    assert best.epochs[fit.domains[0]] == pytest.approx(1.0)


def test_nothing_is_dear_where_nothing_binds() -> None:
    function, region = problem(3), capped(floor=0.0, cap=1.0)
    flat = replace(function, weight_T=function.weight_T * 0 + 1e-300)
    assert find_prices(flat, region, minimum=minimize_objective(flat, region)) == ()


# ------------------------------------------------------------------ rivals, runs, distances


@pytest.fixture(scope="module")
def choice(study: SimulatedStudy) -> LawChoice:
    return select_law(study.runs, study.observations, laws=("m4", "log-linear"), num_folds=4)


@pytest.mark.parametrize(
    ("errors", "tied"), [((0.1, 0.15), ("m4",)), ((0.1, 0.12), ("m4", "log-linear"))]
)
def test_rivals_are_the_laws_within_one_standard_error(
    choice: LawChoice, errors: tuple[float, float], tied: tuple[str, ...]
) -> None:
    error = dict(zip(("m4", "log-linear"), errors, strict=True))
    scores = tuple(
        replace(score, error=error.get(score.name, 0.0), standard_error=0.03)
        for score in choice.scores
    )
    # the mean of all runs errs least here, but it is no law
    assert tied_laws(replace(choice, scores=scores)) == tied


def test_a_rival_is_the_same_fit_as_its_own(
    study: SimulatedStudy, fit: FitResult, choice: LawChoice
) -> None:
    scores = tuple(replace(score, standard_error=1e9) for score in choice.scores)
    (rival,) = fit_rivals(fit, replace(choice, scores=scores))
    own = fit_law("log-linear", study.runs, study.observations, num_draws=1, targets=fit.targets)
    assert np.allclose(rival.theta_TP, own.theta_TP, rtol=1e-9)


def test_a_rivals_optimum_is_no_better_under_the_fitted_law(
    study: SimulatedStudy, fit: FitResult, objective: WeightedLoss
) -> None:
    other = fit_law("log-linear", study.runs, study.observations, num_draws=1, targets=fit.targets)
    region = Region.of(CappedSimplex.of(fit.domains, floors=0.04))
    r_M = minimize_objective(objective.function(fit), region).r_M
    (found,) = compare_rivals(fit, objective, region, r_M=r_M, rivals=[other])
    assert found.excess >= -1e-9
    assert found.regret >= -1e-9
    assert found.law == "log-linear"


def test_leaving_a_mixture_out_is_fitting_without_it(
    study: SimulatedStudy, fit: FitResult, objective: WeightedLoss
) -> None:
    best = optimize_mixture(fit, objective, CappedSimplex.of(fit.domains, floors=0.04))
    most = best.left_out[0]
    assert len(best.left_out) == fit.num_mixtures
    assert most.share_moved == max(one.share_moved for one in best.left_out)
    runs = study.runs.filter(~pl.col("run_id").is_in(list(most.run_ids)))
    kept = study.observations.join(runs.select("run_id"), on="run_id", how="semi")
    without = fit_law("m4", runs, kept, num_draws=1, targets=fit.targets)
    again = optimize_mixture(
        without, objective, CappedSimplex.of(fit.domains, floors=0.04), with_details=False
    )
    moved = np.abs(again.mixture.array(fit.domains) - best.mixture.array()).sum() / 2
    assert moved == pytest.approx(most.share_moved, abs=0.01)


def test_a_mixture_between_runs_is_in_their_hull(fit: FitResult, objective: WeightedLoss) -> None:
    middle = Mixture.from_array(fit.domains, fit.table.r_RM.mean(axis=0))
    only = CappedSimplex(fit.domains, middle.proportions, middle.proportions)
    best = optimize_mixture(fit, objective, only, with_details=False)
    assert best.distance_to_hull == pytest.approx(0.0, abs=1e-7)
    corner = CappedSimplex.of(fit.domains, floors={fit.domains[0]: 0.99})
    far = optimize_mixture(fit, objective, corner, with_details=False)
    assert 0.05 < far.distance_to_hull <= far.distance_to_runs + 1e-9


# ------------------------------------------------------------------ the answer


def test_differences_by_target_are_those_of_the_law(
    fit: FitResult, objective: WeightedLoss
) -> None:
    uniform = Mixture.uniform(fit.domains)
    best = optimize_mixture(
        fit,
        objective,
        CappedSimplex.of(fit.domains, floors=0.04),
        baselines={"uniform": uniform},
        with_details=False,
    )
    loss_2T = fit.losses(np.stack([uniform.array(), best.mixture.array()]))
    for i, target in enumerate(fit.targets):
        value, low, high = best.target_gains["uniform"][target]
        assert value == pytest.approx(loss_2T[0, i] - loss_2T[1, i])
        assert low < value < high


@pytest.mark.parametrize("objective", [WorstLoss(), WeightedLoss({"d0": 1.0, "d1": 3.0})])
def test_weights_at_the_optimum_are_the_objectives_slopes(
    fit: FitResult, objective: Objective
) -> None:
    best = optimize_mixture(
        fit, objective, CappedSimplex.of(fit.domains, floors=0.04), with_details=False
    )
    assert sum(best.weights.values()) == pytest.approx(1.0, abs=1e-6)
    assert best.verdict == "no baseline"


def test_a_kl_ball_keeps_its_certificate_when_shares_are_rounded(
    fit: FitResult, objective: WeightedLoss
) -> None:
    domains = tuple(Domain(name=name) for name in fit.domains)
    reference = Mixture.uniform(fit.domains)
    limits = Constraints(domains=domains, reference=reference, kl_to_reference=0.05)
    best = optimize_mixture(fit, objective, limits, with_details=False)
    share_M = best.mixture.array()
    assert np.sum(share_M * np.log(share_M * len(share_M))) <= 0.05 + 1e-9
    assert best.certificate.startswith("certified")


# ------------------------------------------------------------------ the trade-off


def test_no_point_of_a_front_is_beaten_by_a_random_mixture(fit: FitResult) -> None:
    region = CappedSimplex.of(fit.domains, floors=0.04)
    parts = (WeightedLoss({"d0": 1.0}), WeightedLoss({"d1": 1.0}))
    front = pareto_front(fit, *parts, constraints=region, num_points=9)
    assert front.is_certified
    assert len(front.points) == 9
    first = np.array([point.first[0] for point in front.points])
    second = np.array([point.second[0] for point in front.points])
    assert np.all(np.diff(first) >= -1e-9)
    assert np.all(np.diff(second) <= 1e-9)
    rng = np.random.default_rng(0)
    drawn_RM = 0.04 + 0.8 * rng.dirichlet(np.ones(len(fit.domains)), 4000)
    loss_R2 = np.stack([part.function(fit).value(drawn_RM) for part in parts], axis=1)
    for point in front.points:
        better = (loss_R2[:, 0] < point.first[0] - 1e-6) & (loss_R2[:, 1] < point.second[0] - 1e-6)
        assert not better.any()


def test_the_ends_of_a_front_are_the_two_optima(fit: FitResult) -> None:
    region = CappedSimplex.of(fit.domains, floors=0.04)
    parts = (WeightedLoss({"d0": 1.0}), WeightedLoss({"unseen0": 1.0}))
    front = pareto_front(fit, *parts, constraints=region, num_points=3)
    for part, value in zip(parts, (front.points[0].first, front.points[-1].second), strict=True):
        least = minimize_objective(part.function(fit), region).value
        assert least - 1e-9 <= value[0] <= least + 1e-3


def test_a_front_of_one_point_or_of_other_domains_is_refused(fit: FitResult) -> None:
    part = WeightedLoss({"d0": 1.0})
    with pytest.raises(OptimizeError, match="a front needs at least two points, found 1"):
        pareto_front(fit, part, part, constraints=CappedSimplex.of(fit.domains), num_points=1)
    with pytest.raises(MixtureError):
        pareto_front(fit, part, part, constraints=CappedSimplex.of(["x", "y"]))
