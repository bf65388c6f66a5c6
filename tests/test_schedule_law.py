"""The law of schedules: a law of mixtures where nothing changes, convex, and its own derivatives.

Shape letters: R runs, S stages, M training domains, X columns, P parameters.
"""

from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad

from mixlaw.errors import FitError
from mixlaw.laws.library import MIXING_LAWS
from mixlaw.laws.stack import StackedLaw
from mixlaw.laws.stages import StagedLaw, stage_columns, stage_weights

ENDS = (0.3, 0.8, 1.0)
FRACTIONS = np.diff(ENDS, prepend=0.0)
NAMES = ("m4", "reciprocal", "power-reciprocal-shared", "linear", "bimix")
DOMAINS = ("a", "b", "c", "d")


def draw_schedules(rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns schedules as shares by stage and domain."""
    r_RSM = 0.05 + 0.8 * rng.dirichlet(np.ones(len(DOMAINS)), size=(count, len(ENDS)))
    return (r_RSM * FRACTIONS[:, None]).reshape(count, -1)


def draw_parameters(rng: np.random.Generator, law: StagedLaw, x_RX: np.ndarray) -> np.ndarray:
    """Returns plausible parameters of two targets."""
    y_BR = 2 + rng.uniform(0, 1, size=(2, len(x_RX)))
    theta_BP = law.starts(x_RX, y_BR)[:, 0] + 0.05 * rng.normal(size=(2, 1))
    theta_BP[:, -3:] = [[4.0, 0.7, -0.5], [-0.001, 0.0, 1.0]]
    return theta_BP


@pytest.mark.parametrize("name", NAMES)
def test_constant_schedule_has_the_loss_of_its_mixture(name: str) -> None:
    rng = np.random.default_rng(0)
    law = StagedLaw(MIXING_LAWS[name], ENDS)
    theta_BP = draw_parameters(rng, law, draw_schedules(rng, 12))
    r_RM = rng.dirichlet(np.ones(len(DOMAINS)), size=7)
    x_RX = (FRACTIONS[:, None] * r_RM[:, None]).reshape(7, -1)
    np.testing.assert_allclose(
        law.predict(x_RX, theta_BP), law.law.predict(r_RM, theta_BP[:, :-3]), rtol=1e-12
    )


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_are_those_of_finite_differences(name: str) -> None:
    rng = np.random.default_rng(1)
    law = StagedLaw(MIXING_LAWS[name], ENDS)
    x_RX = draw_schedules(rng, 6)
    theta_BP = draw_parameters(rng, law, x_RX)
    jacobian_BRP, gradient_BRX = law.jacobian(x_RX, theta_BP), law.gradient(x_RX, theta_BP)
    step = 1e-6
    for p in range(theta_BP.shape[1]):
        up, down = theta_BP.copy(), theta_BP.copy()
        up[:, p] += step
        down[:, p] -= step
        slope_BR = (law.predict(x_RX, up) - law.predict(x_RX, down)) / (2 * step)
        np.testing.assert_allclose(jacobian_BRP[..., p], slope_BR, rtol=1e-5, atol=1e-8)
    for k in range(x_RX.shape[1]):
        up, down = x_RX.copy(), x_RX.copy()
        up[:, k] += step
        down[:, k] -= step
        slope_BR = (law.predict(up, theta_BP) - law.predict(down, theta_BP)) / (2 * step)
        np.testing.assert_allclose(gradient_BRX[..., k], slope_BR, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["m4", "reciprocal", "linear"])
def test_curvature_is_that_of_the_gradient(name: str) -> None:
    rng = np.random.default_rng(2)
    law = StagedLaw(MIXING_LAWS[name], ENDS)
    x_RX = draw_schedules(rng, 12)
    theta_BP = draw_parameters(rng, law, x_RX)
    curvature = law.curvature(x_RX[0], theta_BP)
    assert curvature is not None
    diag_BX, factor_BKX = curvature
    hessian_BXX = np.swapaxes(factor_BKX, 1, 2) @ factor_BKX
    assert not diag_BX.any()
    for k in range(x_RX.shape[1]):
        step_X = 1e-6 * np.eye(x_RX.shape[1])[k]
        pair_2X = np.stack([x_RX[0] + step_X, x_RX[0] - step_X])
        gradient_B2X = law.gradient(pair_2X, theta_BP)
        slope_BX = (gradient_B2X[:, 0] - gradient_B2X[:, 1]) / 2e-6
        np.testing.assert_allclose(hessian_BXX[:, k], slope_BX, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["m4", "reciprocal", "power-reciprocal-shared"])
def test_mean_of_schedules_is_no_worse_than_the_mean_of_their_losses(name: str) -> None:
    rng = np.random.default_rng(3)
    law = StagedLaw(MIXING_LAWS[name], ENDS)
    x_RX = draw_schedules(rng, 40)
    theta_BP = draw_parameters(rng, law, x_RX)
    assert law.is_convex(theta_BP[0])
    loss_BR = law.predict(x_RX, theta_BP)
    between_BR = law.predict((x_RX[:20] + x_RX[20:]) / 2, theta_BP)
    assert np.all(between_BR <= (loss_BR[:, :20] + loss_BR[:, 20:]) / 2 + 1e-12)


@pytest.mark.parametrize("k", [-15.0, -0.009, 0.0, 1e-5, 0.0099, 0.0101, 4.0, 30.0])
def test_weights_are_integrals_of_the_exponential(k: float) -> None:
    weight_S, slope_S = stage_weights(np.array(k), ENDS)
    expected_S = np.array(
        [quad(lambda u: np.exp(k * (u - 1)), a, b)[0] for a, b in pairwise((0.0, *ENDS))]
    )
    np.testing.assert_allclose(weight_S, expected_S / expected_S.sum(), rtol=1e-8, atol=1e-11)
    step = 1e-4
    both = [stage_weights(np.array(k + sign * step), ENDS)[0] for sign in (1, -1)]
    np.testing.assert_allclose(slope_S, (both[0] - both[1]) / (2 * step), rtol=1e-5, atol=1e-8)


def test_recency_of_zero_gives_stages_their_share_of_the_tokens() -> None:
    np.testing.assert_allclose(stage_weights(np.array(0.0), ENDS)[0], FRACTIONS, rtol=1e-14)


def test_dividing_a_stage_changes_nothing() -> None:
    rng = np.random.default_rng(4)
    law = StagedLaw(MIXING_LAWS["m4"], (0.5, 1.0))
    finer = StagedLaw(MIXING_LAWS["m4"], (0.2, 0.5, 0.6, 1.0))
    r_RSM = rng.dirichlet(np.ones(4), size=(5, 2))
    theta_P = np.array([1.5, -1.0, 0.2, 0.1, 0.3, 3.0, 1.0, 0.4])
    coarse_RX = (r_RSM * 0.5).reshape(5, -1)
    fine_RX = (r_RSM[:, [0, 0, 1, 1]] * np.array([0.2, 0.3, 0.1, 0.4])[:, None]).reshape(5, -1)
    np.testing.assert_allclose(
        law.predict(coarse_RX, theta_P), finer.predict(fine_RX, theta_P), rtol=1e-12
    )


def test_late_stage_counts_more_when_recency_is_positive() -> None:
    law = StagedLaw(MIXING_LAWS["m4"], (0.5, 1.0))
    theta_P = np.array([1.0, -2.0, 0.0, 4.0, 0.0, 2.0])
    early, late = [0.4, 0.1, 0.1, 0.4], [0.1, 0.4, 0.4, 0.1]
    loss_2 = law.predict(np.array([early, late]), theta_P)
    assert loss_2[1] < loss_2[0]


def test_parameters_are_named_after_the_domains() -> None:
    law = StagedLaw(MIXING_LAWS["m4"], ENDS)
    names = law.parameter_names(stage_columns(("a", "b"), 3))
    assert names == ("c", "t[a]", "t[b]", "k", "d", "logit b")


def test_stack_of_staged_laws_is_the_mean_of_its_members() -> None:
    rng = np.random.default_rng(5)
    members = tuple(StagedLaw(MIXING_LAWS[name], ENDS) for name in ("m4", "reciprocal"))
    stack = StackedLaw(members, (0.3, 0.7))
    x_RX = draw_schedules(rng, 6)
    parts = [draw_parameters(rng, member, x_RX) for member in members]
    expected = 0.3 * members[0].predict(x_RX, parts[0]) + 0.7 * members[1].predict(x_RX, parts[1])
    np.testing.assert_allclose(stack.predict(x_RX, np.hstack(parts)), expected, rtol=1e-12)
    assert stack.is_convex(np.hstack(parts)[0])


@pytest.mark.parametrize("ends", [(), (0.5,), (0.5, 0.5, 1.0), (0.0, 1.0), (0.9, 1.1)])
def test_ends_that_do_not_rise_to_one_are_refused(ends: tuple[float, ...]) -> None:
    with pytest.raises(FitError, match="must rise"):
        StagedLaw(MIXING_LAWS["m4"], ends)
