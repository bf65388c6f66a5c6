"""What surrounds the critical proportion: laws by tokens and size, trade-off, other mixtures, figure."""

import math
from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest

from mixlaw.errors import FitError, OptimizeError
from mixlaw.fit.continual import NoisePrior
from mixlaw.fit.ratio import (
    checkpoint_noise,
    effective_count,
    fit_ratio,
    neighbour_correlation,
)
from mixlaw.laws.mixing import ExponentialLaw
from mixlaw.laws.ratio import RatioLaw
from mixlaw.mixtures import CappedSimplex
from mixlaw.optimize.continual import find_critical
from mixlaw.optimize.continual_mixtures import minimize_original
from mixlaw.optimize.continual_path import PathFit, SharePath, fit_path
from mixlaw.optimize.continual_runs import ContinualAnswer
from mixlaw.optimize.objective import ObjectiveFunction
from mixlaw.optimize.trade_off import trade_losses
from mixlaw.report.critical import critical_sentences, draw_trade_off
from test_continual_critical import line_table

# Gu et al. 2024, 460M: R = .22525 T^.26944 - .48140, with T in units of 0.2B tokens
# (references/literature.md, row CMR).
CMR_460M = (0.22525, 0.26944, -0.48140)


def old_line(**options: float | int) -> PathFit:
    table = line_table(**options)  # type: ignore[arg-type]
    path = SharePath.of(table, original=("old",))
    return fit_path(ExponentialLaw(), table, np.array([1.0, 0.0]), path=path)


def test_the_published_law_by_tokens_is_recovered() -> None:
    factor, power, level = CMR_460M
    tokens = np.geomspace(20, 400, 9)
    noise = 1e-5 * np.array([1, -1, 1, -1, 1, -1, 1, -1, 1])
    found = fit_ratio(tokens.tolist(), (factor * tokens**power + level + noise).tolist())
    assert found.theta_P[0] == pytest.approx(power, abs=5e-3)
    assert found.theta_P[2] == pytest.approx(level, abs=0.02)
    value, low, high = found.predict(800.0)
    assert value == pytest.approx(factor * 800**power + level, abs=1e-3)
    assert low <= value <= high


def test_the_jacobian_of_the_law_is_that_of_finite_differences() -> None:
    amount_K, theta_P = np.array([0.3, 1.0, 4.0]), np.array([0.4, 0.2, 0.1])
    for law, theta in ((RatioLaw(), theta_P), (RatioLaw(has_level=False), theta_P[:2])):
        steps = 1e-6 * np.eye(len(theta))
        numeric = [
            (law.predict(amount_K, theta + step) - law.predict(amount_K, theta - step)) / 2e-6
            for step in steps
        ]
        np.testing.assert_allclose(
            law.jacobian(amount_K, theta), np.stack(numeric, axis=1), atol=1e-8
        )


def test_too_few_or_too_correlated_points_are_refused_in_words() -> None:
    with pytest.raises(FitError, match="at 5 checkpoints at least, found 4"):
        fit_ratio([1.0, 2.0, 4.0, 8.0], [0.5, 0.6, 0.65, 0.7])
    with pytest.raises(FitError, match="at 3 sizes at least, found 2"):
        fit_ratio([1e7, 1e8], [0.3, 0.4], has_level=False, are_independent=True)
    tokens = np.arange(1.0, 17.0)
    wave = 0.5 + 0.05 * np.sin(tokens * 2 * math.pi / 16)
    with pytest.raises(FitError, match=r"err alike .* no degree of freedom"):
        fit_ratio(tokens.tolist(), wave.tolist())


def test_the_law_by_size_is_a_power() -> None:
    sizes = [4.6e8, 9.4e8, 1.6e9, 3.1e9]
    # The critical mixture ratios of Gu et al. (Finance): 29.8, 34.9, 41.4 and 47.8%.
    found = fit_ratio(sizes, [0.298, 0.349, 0.414, 0.478], has_level=False, are_independent=True)
    assert found.theta_P[0] == pytest.approx(0.25, abs=0.03)
    value, low, high = found.predict(7e9)
    assert low < value < high
    assert value == pytest.approx(0.59, abs=0.03)


def test_a_common_error_of_the_points_widens_what_is_predicted() -> None:
    tokens, ratios = np.geomspace(1, 100, 12), np.linspace(0.4, 0.7, 12)
    ratios = ratios + 1e-3 * np.random.default_rng(0).standard_normal(12)
    alone, common = (
        fit_ratio(tokens.tolist(), ratios.tolist(), point_sd=sd).predict(50.0) for sd in (0.0, 0.05)
    )
    assert common[2] - common[1] > alone[2] - alone[1]


def test_correlated_checkpoints_count_for_less() -> None:
    assert effective_count(10, 0.0) == 10
    assert effective_count(10, 0.8) == pytest.approx(10 * 0.2 / 1.8)
    assert effective_count(3, 0.99) == 1
    rng = np.random.default_rng(1)
    steady = np.repeat(rng.standard_normal((1, 4)), 6, axis=0)
    assert neighbour_correlation(steady) == pytest.approx(0.99)
    assert neighbour_correlation(rng.standard_normal((200, 4))) < 0.2
    fits = [old_line(sd=0.003, seed=seed).fit for seed in range(5)]
    noise = checkpoint_noise(fits)
    assert noise is not None
    assert noise.source == "checkpoints"
    assert 2 <= noise.freedom <= 10
    assert checkpoint_noise(fits[:2]) is None


def test_the_trade_off_falls_in_the_old_and_rises_in_the_new_loss() -> None:
    table = line_table(seeds=2, sd=0.001)
    path = SharePath.of(table, original=("old",))
    old, new = (
        fit_path(ExponentialLaw(), table, weight_T, path=path)
        for weight_T in (np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    )
    curve = trade_losses(old, new)
    assert np.all(np.diff(curve.old_S) < 0)
    assert np.all(np.diff(curve.new_S) > 0)
    assert np.all(curve.old_half_S > 0)
    np.testing.assert_allclose(curve.share_S[[0, -1]], [0.1, 0.6])
    half = old.run_half_widths(np.array([0.3]))[0]
    assert half > old.noise.quantile(0.9) * old.sds(np.array([0.3]))[0]  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", range(5))
def test_the_least_original_data_equals_that_of_an_interior_point_solver(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = tuple(f"d{i}" for i in range(5))
    theta_TP = np.column_stack([rng.uniform(1, 2, 2), rng.normal(0, 0.5, (2, 5))])
    theta_TP[:, 1] -= 3  # the original data helps the old loss,
    theta_TP[:, 4:] += 2  # the new data does not
    function = ObjectiveFunction.of(ExponentialLaw(), theta_TP, np.array([0.5, 0.5]))
    allowed = CappedSimplex.of(names, floors=0.02)
    limit = float(function.value(np.array([[0.2, 0.1, 0.1, 0.2, 0.4]]))[0])
    found = minimize_original(function, limit, allowed=allowed, original=names[:3])
    r_M = cp.Variable(5)
    loss = sum(0.5 * (theta_P[0] + cp.exp(theta_P[1:] @ r_M)) for theta_P in theta_TP)
    with np.errstate(all="ignore"):  # the other solver's own arithmetic
        other = cp.Problem(
            cp.Minimize(cp.sum(r_M[:3])), [cp.sum(r_M) == 1, r_M >= 0.02, loss <= limit]
        )
        other.solve(solver=cp.CLARABEL)
    assert found.share == pytest.approx(float(other.value), abs=1e-6)
    assert found.loss <= limit + 1e-6
    assert found.gap < 1e-6
    assert found.is_convex
    assert "not about the world" in found.certificate


def test_a_loss_that_no_mixture_keeps_is_refused() -> None:
    function = ObjectiveFunction.of(ExponentialLaw(), np.array([[2.0, -1.0, 0.0]]), np.ones(1))
    with pytest.raises(OptimizeError, match="no allowed mixture keeps the loss"):
        minimize_original(function, 2.0, allowed=CappedSimplex.of(("a", "b")), original=("a",))


def test_the_figure_and_its_sentences_stand_alone() -> None:
    line = old_line(seeds=2, sd=0.003)
    answer = ContinualAnswer(
        critical=find_critical(line, 2.06),
        line=line,
        checkpoints=(),
        weak=None,
        other_laws={"linear": 0.31, "bimix": None},
        trade_off=None,
        by_tokens=None,
        by_params=None,
        notes=("a note",),
    )
    svg = draw_trade_off(answer)
    assert svg.startswith("<svg")
    assert "share of original data" in svg
    assert svg == draw_trade_off(answer)
    sentences = critical_sentences(answer)
    assert sentences[0].startswith("The old loss of 2.06 is kept from")
    assert sentences[-1] == "A note."
    assert any("linear 31.0%, bimix none" in sentence for sentence in sentences)
    blind = replace(answer, critical=find_critical(replace(line, noise=None), 2.06))
    assert draw_trade_off(replace(blind, line=replace(line, noise=None))).startswith("<svg")


def test_a_prior_that_agrees_narrows_the_interval_of_few_runs() -> None:
    table = line_table((0.1, 0.25, 0.4, 0.6), sd=0.002, seed=4)
    path = SharePath.of(table, original=("old",))
    widths = []
    for prior in (None, NoisePrior(sd=0.002, freedom=10.0)):
        line = fit_path(ExponentialLaw(), table, np.array([1.0, 0.0]), path=path, prior=prior)
        found = find_critical(line, 2.06)
        assert found.low is not None
        widths.append((1.0 if found.high is None else found.high) - found.low)
    assert widths[1] < widths[0]
