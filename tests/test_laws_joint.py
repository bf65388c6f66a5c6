"""Joint laws: derivatives, limits, special cases, and what must not matter."""

from dataclasses import replace

import numpy as np
import pytest

from mixlaw.laws.allocation import AllocationLaw, split_capacity
from mixlaw.laws.joint import ADDITIVE, INTERACTION, JOINT_LAWS, MIXTURE, JointLaw

NUM_DOMAINS = 4
LAWS = pytest.mark.parametrize("law", JOINT_LAWS.values(), ids=list(JOINT_LAWS))


def rows(seed: int = 0, count: int = 7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(NUM_DOMAINS), count)
    return np.hstack([shares, rng.uniform(0.3, 3.0, (count, 2))])


def parameters(law: JointLaw, seed: int = 1, spread: float = 0.2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    start = law.starts(rows(), np.linspace(2.0, 3.0, 7))[0]
    return start + rng.normal(0, spread, len(start))


def differences(function, point: np.ndarray, step: float = 1e-6) -> np.ndarray:
    moves = step * np.eye(len(point))
    return np.stack([(function(point + m) - function(point - m)) / (2 * step) for m in moves], -1)


@LAWS
def test_jacobian_agrees_with_finite_differences(law: JointLaw) -> None:
    x, theta = rows(), parameters(law)
    expected = differences(lambda t: law.predict(x, t), theta)
    np.testing.assert_allclose(law.jacobian(x, theta), expected, atol=1e-7)


@LAWS
def test_gradient_agrees_with_finite_differences(law: JointLaw) -> None:
    theta = parameters(law)
    for x in rows():
        expected = differences(
            lambda r, x=x: law.predict(np.concatenate([r, x[-2:]])[None], theta)[0], x[:-2]
        )
        found = law.gradient(x[None], theta)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@LAWS
def test_penalty_jacobian_agrees_with_finite_differences(law: JointLaw) -> None:
    theta = parameters(law)
    np.testing.assert_allclose(
        law.penalty_jacobian(theta), differences(law.penalty, theta), atol=1e-7
    )


@LAWS
def test_leading_axes_of_parameters_are_evaluated_one_by_one(law: JointLaw) -> None:
    x = rows()
    theta = np.stack([parameters(law, seed) for seed in range(6)]).reshape(2, 3, -1)
    loss, jacobian = law.predict_with_jacobian(x, theta)
    assert loss.shape == (2, 3, 7)
    for i in range(2):
        for j in range(3):
            np.testing.assert_allclose(loss[i, j], law.predict(x, theta[i, j]))
            np.testing.assert_allclose(jacobian[i, j], law.jacobian(x, theta[i, j]))


@LAWS
def test_order_of_the_domains_does_not_matter(law: JointLaw) -> None:
    x, theta = rows(), parameters(law)
    order = np.array([2, 0, 3, 1])
    permuted = theta.copy()
    for slot, places in law.index(NUM_DOMAINS).items():
        if slot.endswith("[]"):
            permuted[places] = theta[places[order]]
    moved = np.hstack([x[:, order], x[:, -2:]])
    np.testing.assert_allclose(law.predict(moved, permuted), law.predict(x, theta))
    np.testing.assert_allclose(law.gradient(moved, permuted), law.gradient(x, theta)[:, order])


@LAWS
def test_starts_lie_within_the_bounds_and_near_the_losses(law: JointLaw) -> None:
    x, y = rows(), np.linspace(2.0, 3.0, 7)
    low, high = law.bounds(x, y)
    starts = law.starts(x, y)
    assert np.all((starts >= low) & (starts <= high))
    assert np.all(np.abs(np.log(law.predict(x, starts) / 2.5)) < 0.7)


@LAWS
def test_every_parameter_has_a_name(law: JointLaw) -> None:
    names = law.parameter_names(("w", "x", "y", "z"))
    assert len(names) == len(set(names)) == law.num_parameters(4) == len(parameters(law))


def test_infinite_size_and_tokens_leave_the_mixing_term() -> None:
    x, theta = rows(), parameters(ADDITIVE)
    x[:, -2:] = 1e60
    index = ADDITIVE.index(NUM_DOMAINS)
    g = np.exp(theta[index["log g"]])
    weight = np.exp(theta[index["log C[]"]])
    mixing = 1 / ((x[:, :-2] + 1e-3) ** g @ weight)
    np.testing.assert_allclose(ADDITIVE.predict(x, theta), theta[0] + mixing, rtol=1e-9)


def test_more_tokens_never_raise_the_loss() -> None:
    for law in JOINT_LAWS.values():
        x, theta = rows(), parameters(law)
        longer = x.copy()
        longer[:, -1] *= 2
        assert np.all(law.predict(longer, theta) < law.predict(x, theta))


def test_interaction_without_growth_is_the_additive_law() -> None:
    x, theta = rows(), parameters(ADDITIVE)
    np.testing.assert_allclose(
        INTERACTION.predict(x, np.append(theta, 0.0)), ADDITIVE.predict(x, theta)
    )


def test_amplitudes_that_no_mixture_moves_are_constant() -> None:
    x, theta = rows(), parameters(INTERACTION)
    ours, theirs = INTERACTION.index(NUM_DOMAINS), MIXTURE.index(NUM_DOMAINS)
    wide = np.zeros(MIXTURE.num_parameters(NUM_DOMAINS))
    for slot, places in ours.items():
        wide[theirs[slot if slot in theirs else f"{slot}[]"]] = theta[places]
    np.testing.assert_allclose(MIXTURE.predict(x, wide), INTERACTION.predict(x, theta))


def test_unit_of_the_size_moves_only_the_levels() -> None:
    x, theta = rows(), parameters(MIXTURE)
    index = MIXTURE.index(NUM_DOMAINS)
    moved = theta.copy()
    moved[index["log A[]"]] += np.exp(theta[index["log a"]]) * np.log(1e9)
    moved[index["log B[]"]] -= theta[index["d"]] * np.log(1e9)
    larger = x.copy()
    larger[:, -2] *= 1e9
    np.testing.assert_allclose(MIXTURE.predict(larger, moved), MIXTURE.predict(x, theta))


def test_formula_says_what_the_law_has() -> None:
    assert ADDITIVE.formula == "L = c + (sum_j C_j (r_j + e)^g)^-1 + A N^-a + B D^-b"
    assert MIXTURE.formula == "L = c + (sum_j C_j (r_j + e)^g)^-1 + A(r) N^-a + B(r) N^d D^-b"
    assert "exp(sum_j t_j r_j)" in replace(ADDITIVE, form="exponential").formula


def allocation_parameters(shared: float = 0.2) -> np.ndarray:
    rng = np.random.default_rng(4)
    scales, floors = rng.normal(-1, 0.3, (2, NUM_DOMAINS)), np.ones(NUM_DOMAINS)
    exponents = np.log(rng.uniform(0.1, 0.6, (2, NUM_DOMAINS)))
    blocks = scales[0], exponents[0], scales[1], exponents[1], floors, [np.log(shared)]
    return np.concatenate(blocks)


def test_allocation_jacobian_agrees_with_finite_differences() -> None:
    law, x, theta = AllocationLaw(), rows(count=30), allocation_parameters()
    expected = differences(lambda t: law.predict(x, t), theta)
    np.testing.assert_allclose(law.jacobian(x, theta), expected, atol=1e-6)
    assert len(law.parameter_names(("w", "x", "y", "z"))) == len(theta) == 5 * NUM_DOMAINS + 1


def test_capacity_is_split_until_nothing_is_gained_by_moving_it() -> None:
    x, theta, shared = rows(count=30), allocation_parameters(), 0.2
    c, b = np.exp(theta[:4]), np.exp(theta[4:8])
    log_capacity, above = split_capacity(x[:, :4], x[:, 4], theta[:4], b, shared)
    capacity = np.exp(log_capacity)
    np.testing.assert_allclose(capacity.sum(axis=1), x[:, 4] + 3 * shared)
    assert np.all(capacity >= shared - 1e-12)
    assert 0 < above.mean() < 1
    gain = x[:, :4] * c * b * capacity ** (-b - 1)
    for row, free in zip(gain, above, strict=True):
        np.testing.assert_allclose(row[free], row[free][0])
        assert np.all(row[~free] <= row[free][0] * (1 + 1e-9))


def test_allocation_does_not_depend_on_the_order_of_domains() -> None:
    law, x, theta = AllocationLaw(), rows(), allocation_parameters()
    order = np.array([2, 0, 3, 1])
    permuted = np.append(theta[:-1].reshape(5, 4)[:, order].ravel(), theta[-1])
    moved = np.hstack([x[:, order], x[:, -2:]])
    np.testing.assert_allclose(law.predict(moved, permuted), law.predict(x, theta)[:, order])
