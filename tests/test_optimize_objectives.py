"""Objectives: what they are worth at a mixture, what is certified, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from mixlaw.errors import FitError, OptimizeError
from mixlaw.fit import FitResult, fit_law
from mixlaw.fit.error import ErrorFit, fit_error
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.optimize.objective import Objective, RelativeLoss, WeightedLoss
from mixlaw.optimize.objectives_error import TaskError, WeightedErrors
from mixlaw.optimize.objectives_risk import MeanPlusSpread, TailLoss, WorstLoss
from mixlaw.optimize.solver import minimize_draws, minimize_objective
from simulated import simulate_study

TARGETS = ("d0", "d1", "d2", "unseen0")


@pytest.fixture(scope="module")
def fit() -> FitResult:
    study = simulate_study(seed=2)
    return fit_law("m4", study.runs, study.observations, num_draws=40, targets=TARGETS)


@pytest.fixture(scope="module")
def allowed(fit: FitResult) -> CappedSimplex:
    return CappedSimplex.of(fit.domains, floors=0.03)


@pytest.fixture(scope="module")
def reference(fit: FitResult) -> Mixture:
    return Mixture.uniform(fit.domains)


def error_law(fit: FitResult, losses: tuple[str, ...], *, seed: int) -> ErrorFit:
    """A law fitted to errors that follow one exactly, at the losses of the fit's own runs."""
    rng = np.random.default_rng(seed)
    columns = [fit.targets.index(loss) for loss in losses]
    loss_RF = fit.losses(fit.table.r_RM)[:, columns]
    rates = rng.uniform(0.4, 1.2, len(losses))
    error_R = 0.8 - rng.uniform(0.8, 1.5) * np.exp(-loss_RF @ rates)
    return fit_error(loss_RF, error_R, losses=losses)


def every_objective(fit: FitResult, reference: Mixture) -> dict[str, Objective]:
    weighted = WeightedLoss({"d0": 1.0, "unseen0": 2.0})
    one = error_law(fit, ("d0", "d1"), seed=1)
    other = error_law(fit, ("d2",), seed=2)
    return {
        "weighted": weighted,
        "groups": WeightedLoss({"g": 1.0, "d2": 1.0}, {"g": ("d0", "d1")}),
        "relative": RelativeLoss({"d0": 1.0, "d1": 1.0}, reference),
        "worst": WorstLoss(),
        "worst relative": WorstLoss(("g", "d2"), {"g": ("d0", "d1")}, reference),
        "tail": TailLoss(weighted, 0.8),
        "spread": MeanPlusSpread(weighted, 1.0),
        "error": TaskError("swap", one),
        "errors": WeightedErrors({"a": one, "b": other}, {"a": 1.0, "b": 3.0}),
    }


SMOOTH_KINDS = ("weighted", "groups", "relative", "error", "errors")
KINDS = (*SMOOTH_KINDS, "worst", "worst relative", "tail", "spread")
CERTIFIED = set(KINDS) - {"spread", "errors"}


@pytest.mark.parametrize("kind", KINDS)
def test_each_objective_finds_what_a_general_solver_finds(
    fit: FitResult, allowed: CappedSimplex, reference: Mixture, kind: str
) -> None:
    function = every_objective(fit, reference)[kind].function(fit)
    found = minimize_objective(function, allowed)
    rng = np.random.default_rng(0)
    lowest = np.inf
    for start_M in rng.dirichlet(np.ones(len(fit.domains)), 4):
        other = minimize(
            lambda r_M: function.value(r_M[None])[0],
            allowed.nearest(start_M),
            bounds=list(zip(allowed.floors, allowed.caps, strict=True)),
            constraints={"type": "eq", "fun": lambda r_M: np.sum(r_M) - 1},
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )
        lowest = min(lowest, float(other.fun))
    assert found.value <= lowest + 1e-8
    assert found.is_certified == (kind in CERTIFIED)
    if found.is_certified:
        assert found.gap < 1e-6
        assert lowest >= found.value - found.gap - 1e-9
    assert allowed.contains(found.r_M, 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_values(fit: FitResult, reference: Mixture, kind: str) -> None:
    function = every_objective(fit, reference)[kind].function(fit)
    r_M = np.random.default_rng(5).dirichlet(np.ones(len(fit.domains)))
    step = 1e-6
    for j in range(len(r_M) - 1):
        toward_M = np.zeros(len(r_M))
        toward_M[j], toward_M[-1] = step, -step
        up, down = function.value(np.stack([r_M + toward_M, r_M - toward_M]))
        slope = float(function.gradient(r_M) @ toward_M) / step
        assert (up - down) / (2 * step) == pytest.approx(slope, abs=1e-5)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"tail", "spread"}))
def test_weights_are_the_slopes_by_the_losses(
    fit: FitResult, reference: Mixture, kind: str
) -> None:
    """Raising a target's loss everywhere but at the reference is a shift of that target."""
    objective = every_objective(fit, reference)[kind]
    r_M = np.random.default_rng(6).dirichlet(np.ones(len(fit.domains)))
    weight_T = objective.weights_at(fit, r_M)
    away_M = r_M * np.array([1 + 1e-4, *[1.0] * (len(r_M) - 1)])
    away_M /= away_M.sum()
    losses = fit.losses(np.stack([away_M, r_M]))
    values = objective.function(fit).value(np.stack([away_M, r_M]))
    assert weight_T @ (losses[0] - losses[1]) == pytest.approx(values[0] - values[1], abs=1e-7)


def test_values_are_those_of_the_predicted_losses(fit: FitResult, reference: Mixture) -> None:
    """Written out by hand, shifts of fresh seeds included."""
    moved = replace(fit, level_shift_T=np.array([0.1, -0.2, 0.3, 0.05]))
    r_RM = np.random.default_rng(1).dirichlet(np.ones(len(fit.domains)), 5)
    losses = dict(zip(moved.targets, moved.losses(r_RM).T, strict=True))
    at = moved.losses(reference.array(fit.domains)[None])[0]
    base = dict(zip(moved.targets, at, strict=True))
    made = every_objective(moved, reference)
    value = {kind: made[kind].function(moved).value(r_RM) for kind in made}
    assert value["weighted"] == pytest.approx((losses["d0"] + 2 * losses["unseen0"]) / 3)
    group = (losses["d0"] + losses["d1"]) / 2
    assert value["groups"] == pytest.approx((group + losses["d2"]) / 2)
    relative = {name: losses[name] / base[name] - 1 for name in TARGETS}
    assert value["relative"] == pytest.approx((relative["d0"] + relative["d1"]) / 2)
    assert value["worst"] == pytest.approx(np.max(list(losses.values()), axis=0))
    # A group relative to a reference: the mean of its members' relative losses.
    pair = (relative["d0"] + relative["d1"]) / 2
    assert value["worst relative"] == pytest.approx(np.maximum(pair, relative["d2"]))
    draws_BR = moved.draw_losses(r_RM) @ WeightedLoss({"d0": 1.0, "unseen0": 2.0}).row(moved)
    worst_BR = -np.sort(-draws_BR, axis=0)
    assert value["tail"] == pytest.approx(worst_BR[:8].mean(axis=0))  # a fifth of 40
    assert value["spread"] == pytest.approx(draws_BR.mean(axis=0) + draws_BR.std(axis=0))
    one, other = error_law(moved, ("d0", "d1"), seed=1), error_law(moved, ("d2",), seed=2)
    error = one.law.predict(np.stack([losses["d0"], losses["d1"]], axis=1), one.theta_P)
    assert value["error"] == pytest.approx(error)
    second = other.law.predict(losses["d2"][:, None], other.theta_P)
    assert value["errors"] == pytest.approx((error + 3 * second) / 4)


def test_the_tail_of_all_draws_is_their_mean_and_that_of_few_the_worst(fit: FitResult) -> None:
    weighted = WeightedLoss({"d0": 1.0})
    r_RM = np.random.default_rng(1).dirichlet(np.ones(len(fit.domains)), 3)
    draws_BR = fit.draw_losses(r_RM)[:, :, 0]
    assert TailLoss(weighted, 0.0).function(fit).value(r_RM) == pytest.approx(draws_BR.mean(axis=0))
    assert TailLoss(weighted, 0.99).function(fit).value(r_RM) == pytest.approx(draws_BR.max(axis=0))


def test_under_a_draw_an_objective_over_draws_is_the_loss_itself(fit: FitResult) -> None:
    weighted = WeightedLoss({"d0": 1.0, "d1": 1.0})
    r_RM = np.random.default_rng(1).dirichlet(np.ones(len(fit.domains)), 3)
    theta_TP = fit.theta_draws_BTP[3]
    for objective in (TailLoss(weighted), MeanPlusSpread(weighted)):
        ours = objective.under(fit, theta_TP).value(r_RM)
        assert np.array_equal(ours, weighted.under(fit, theta_TP).value(r_RM))


def test_the_worst_of_one_target_is_that_target(fit: FitResult, allowed: CappedSimplex) -> None:
    worst = minimize_objective(WorstLoss(("d1",)).function(fit), allowed)
    alone = minimize_objective(WeightedLoss({"d1": 1.0}).function(fit), allowed)
    assert worst.value == pytest.approx(alone.value, abs=1e-9)


def test_a_tasks_error_is_the_least_where_its_weighted_loss_is(
    fit: FitResult, allowed: CappedSimplex
) -> None:
    task = TaskError("swap", error_law(fit, ("d0", "d1"), seed=1))
    rates = dict(zip(("d0", "d1"), map(float, task.error_fit.theta_P[2:]), strict=True))
    error = minimize_objective(task.function(fit), allowed)
    loss = minimize_objective(WeightedLoss(rates).function(fit), allowed)
    assert error.r_M == pytest.approx(loss.r_M, abs=1e-5)
    assert error.is_certified
    assert error.prices.keys() == loss.prices.keys()


def test_draws_that_agree_have_no_spread(fit: FitResult, allowed: CappedSimplex) -> None:
    same = replace(fit, theta_draws_BTP=np.repeat(fit.theta_TP[None], 5, axis=0))
    weighted = WeightedLoss({"d0": 1.0, "d2": 1.0})
    best = minimize_objective(weighted.function(same), allowed)
    for objective in (MeanPlusSpread(weighted, 2.0), TailLoss(weighted)):
        found = minimize_objective(objective.function(same), allowed)
        assert found.value == pytest.approx(best.value, abs=1e-8)


def test_each_draw_has_its_own_optimum(fit: FitResult, allowed: CappedSimplex) -> None:
    objective = WeightedLoss({"d0": 1.0, "d1": 1.0})
    start_M = minimize_objective(objective.function(fit), allowed).r_M
    chosen_BM = minimize_draws(objective, fit, allowed, start_M=start_M)
    for theta_TP, r_M in zip(fit.theta_draws_BTP, chosen_BM, strict=True):
        function = objective.under(fit, theta_TP)
        fresh = minimize_objective(function, allowed)
        assert function.value(r_M[None])[0] == pytest.approx(fresh.value, abs=1e-8)


def test_groups_resolve_to_targets_and_may_overlap() -> None:
    objective = WeightedLoss({"g": 2.0, "h": 2.0, "c": 0.0}, {"g": ("a", "b"), "h": ("b", "c")})
    assert objective.shares == {"a": 0.25, "b": 0.5, "c": 0.25}
    assert objective.describe() == "0.5 g + 0.5 h"


def test_what_is_described_is_what_is_minimized(fit: FitResult, reference: Mixture) -> None:
    said = {kind: made.describe() for kind, made in every_objective(fit, reference).items()}
    assert said["weighted"] == "0.333 d0 + 0.667 unseen0"
    assert said["worst relative"] == "the worst of g, d2, relative to the reference's losses"
    assert said["tail"] == "mean of the worst 0.2 of the draws of 0.333 d0 + 0.667 unseen0"
    assert said["errors"] == "weighted error: 0.25 a + 0.75 b"


def test_objectives_that_make_no_sense_are_refused(fit: FitResult, reference: Mixture) -> None:
    weighted = WeightedLoss({"d0": 1.0})
    with pytest.raises(OptimizeError, match="the group of targets 'g' must have at least one"):
        WeightedLoss({"g": 1.0}, {"g": ()})
    with pytest.raises(OptimizeError, match="the group of targets 'g' names a target twice"):
        WorstLoss(("g",), {"g": ("a", "a")})
    with pytest.raises(OptimizeError, match="the worst of no targets"):
        WorstLoss(())
    with pytest.raises(OptimizeError, match="must be at least 0 and below 1, found 1"):
        TailLoss(weighted, 1.0)
    with pytest.raises(OptimizeError, match="must be finite and not negative, found -1"):
        MeanPlusSpread(weighted, -1.0)
    with pytest.raises(OptimizeError, match="which has no error law"):
        WeightedErrors({}, {"a": 1.0})
    with pytest.raises(FitError, match="'nothing' is no fitted target and no group"):
        WorstLoss(("nothing",)).function(fit)
    with pytest.raises(FitError, match="'nothing' is no fitted target"):
        WeightedLoss({"g": 1.0}, {"g": ("nothing",)}).function(fit)
    bare = replace(fit, theta_draws_BTP=fit.theta_draws_BTP[:0])
    with pytest.raises(OptimizeError, match="needs a fit that has some"):
        TailLoss(weighted).function(bare)
    below = replace(fit, level_shift_T=np.full(4, -10.0))
    with pytest.raises(OptimizeError, match="needs positive losses of the reference"):
        RelativeLoss({"d0": 1.0}, reference).function(below)
