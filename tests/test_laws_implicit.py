"""The law of implicit domains: a sum of M4s whose composition is unknown."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from mixlaw.fit.solver import Problems, minimize_problems
from mixlaw.laws.implicit import ImplicitDomainLaw, sum_explicit
from mixlaw.laws.mixing import ExponentialLaw


def planted(
    num_implicit: int, seed: int, *, num_runs: int = 60, num_domains: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns mixtures, the parameters of a law and its losses."""
    rng = np.random.default_rng(seed)
    r_RM = rng.dirichlet(np.full(num_domains, 0.5), size=num_runs)
    t_KM = rng.normal(0, 1, size=(num_implicit, num_domains)) - 1
    t_KM[np.arange(num_implicit), np.arange(num_implicit) % num_domains] -= 2
    theta_P = np.concatenate([[1.5], t_KM.ravel()])
    return r_RM, theta_P, ImplicitDomainLaw(num_implicit).predict(r_RM, theta_P)


def least_squares(
    law: ImplicitDomainLaw, r_RM: np.ndarray, y_R: np.ndarray, *, strength: float
) -> tuple[np.ndarray, float]:
    """Returns the best of the law's own starts and its largest residual."""
    start_SP = law.starts(r_RM, y_R[None])[0]
    count = len(start_SP)
    problems = Problems.of(
        law,
        r_RM,
        np.tile(y_R, (count, 1)),
        scale_B=np.full(count, 0.1),
        strength_B=np.full(count, strength),
    )
    ends = minimize_problems(problems, start_SP)
    theta_P = ends.theta_BP[np.argmin(ends.objective_B)]
    return theta_P, float(np.abs(law.predict(r_RM, theta_P) - y_R).max())


def test_one_implicit_domain_is_m4() -> None:
    r_RM, theta_P, _ = planted(1, 0)
    law, m4 = ImplicitDomainLaw(1), ExponentialLaw()
    y_BR = np.random.default_rng(1).uniform(2, 3, size=(3, len(r_RM)))
    np.testing.assert_array_equal(law.predict(r_RM, theta_P), m4.predict(r_RM, theta_P))
    np.testing.assert_array_equal(law.jacobian(r_RM, theta_P), m4.jacobian(r_RM, theta_P))
    np.testing.assert_allclose(law.gradient(r_RM, theta_P), m4.gradient(r_RM, theta_P), rtol=1e-14)
    np.testing.assert_array_equal(law.starts(r_RM, y_BR), m4.starts(r_RM, y_BR))


def test_known_shares_make_it_the_explicit_sum() -> None:
    rng = np.random.default_rng(2)
    share_K, c_K = rng.dirichlet(np.ones(3)), rng.uniform(1, 2, size=3)
    t_KM = rng.normal(size=(3, 5))
    r_RM = rng.dirichlet(np.ones(5), size=20)
    m4 = ExponentialLaw()
    explicit_R = sum(
        share * m4.predict(r_RM, np.array([c, *t_M]))
        for share, c, t_M in zip(share_K, c_K, t_KM, strict=True)
    )
    implicit_R = ImplicitDomainLaw(3).predict(r_RM, sum_explicit(share_K, c_K, t_KM))
    np.testing.assert_allclose(implicit_R, explicit_R, rtol=1e-14)


@pytest.mark.parametrize(("num_implicit", "num_domains"), [(2, 3), (3, 5), (30, 4)])
def test_derivatives_are_those_of_predict(num_implicit: int, num_domains: int) -> None:
    law = ImplicitDomainLaw(num_implicit)
    r_RM, theta_P, _ = planted(num_implicit, 3, num_runs=7, num_domains=num_domains)
    theta_BP = np.stack([theta_P, theta_P[::-1] / 3])

    def slopes(function, point: np.ndarray) -> np.ndarray:
        step = 1e-6
        moves = np.eye(len(point)) * step
        return np.stack(
            [(function(point + m) - function(point - m)) / (2 * step) for m in moves], -1
        )

    for theta, jacobian_RP, penalty_QP in zip(
        theta_BP, law.jacobian(r_RM, theta_BP), law.penalty_jacobian(theta_BP), strict=True
    ):
        numeric_RP = slopes(lambda point: law.predict(r_RM, point), theta)
        np.testing.assert_allclose(jacobian_RP, numeric_RP, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(penalty_QP, slopes(law.penalty, theta), rtol=1e-6, atol=1e-8)
    for r_M, gradient_M in zip(r_RM, law.gradient(r_RM, theta_P), strict=True):
        numeric_M = slopes(lambda r: law.predict(r[None], theta_P)[0], r_M)
        np.testing.assert_allclose(gradient_M, numeric_M, rtol=1e-6, atol=1e-6)


def test_order_of_the_implicit_domains_says_nothing() -> None:
    law = ImplicitDomainLaw(3)
    r_RM, theta_P, y_R = planted(3, 4)
    swapped_P = np.concatenate([theta_P[:1], law.split(theta_P)[[2, 0, 1]].ravel()])
    np.testing.assert_allclose(law.predict(r_RM, swapped_P), y_R, rtol=1e-14)
    squares = np.sum(law.penalty(theta_P) ** 2)
    assert np.sum(law.penalty(swapped_P) ** 2) == pytest.approx(squares, rel=1e-13)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_planted_domains_are_recovered_up_to_their_order(seed: int) -> None:
    law = ImplicitDomainLaw(2, seed=seed)
    r_RM, planted_P, y_R = planted(2, seed + 10)
    found_P, misfit = least_squares(law, r_RM, y_R, strength=1e-6)
    assert misfit < 1e-6
    found_KM, planted_KM = law.split(found_P), law.split(planted_P)
    cost_KK = np.abs(found_KM[:, None] - planted_KM).max(axis=-1)
    rows, columns = linear_sum_assignment(cost_KK)
    assert cost_KK[rows, columns].max() < 1e-3
    assert found_P[0] == pytest.approx(planted_P[0], abs=1e-4)


def test_starts_break_the_symmetry_and_repeat_bit_for_bit() -> None:
    law = ImplicitDomainLaw(3)
    r_RM, _, y_R = planted(3, 5)
    first_SP = law.starts(r_RM, y_R)
    np.testing.assert_array_equal(first_SP, law.starts(r_RM, y_R))
    assert not np.array_equal(first_SP, ImplicitDomainLaw(3, seed=1).starts(r_RM, y_R))
    t_SKM = law.split(first_SP)
    assert np.abs(t_SKM[:, 0] - t_SKM[:, 1]).max(axis=-1).min() > 0.1


def test_starts_of_many_targets_are_those_of_each() -> None:
    law = ImplicitDomainLaw(3)
    r_RM, _, y_R = planted(3, 6)
    y_BR = np.stack([y_R, 2 * y_R, y_R + 1])
    y_BR[1, :5] = np.nan
    together_BSP = law.starts(r_RM, y_BR)
    for alone_R, start_SP in zip(y_BR, together_BSP, strict=True):
        np.testing.assert_allclose(law.starts(r_RM, alone_R), start_SP, rtol=1e-12)


def test_a_domain_too_many_does_no_harm() -> None:
    r_RM, _, y_R = planted(2, 7)
    noisy_R = y_R + np.random.default_rng(7).normal(0, 0.01, size=len(y_R))
    fresh_RM = np.random.default_rng(8).dirichlet(np.full(4, 0.5), size=40)
    truth_R = ImplicitDomainLaw(2).predict(fresh_RM, planted(2, 7)[1])
    errors = {}
    for count in (1, 2, 4):
        law = ImplicitDomainLaw(count)
        theta_P, _ = least_squares(law, r_RM, noisy_R, strength=1.0)
        errors[count] = np.abs(law.predict(fresh_RM, theta_P) - truth_R).mean()
    assert errors[2] < 0.5 * errors[1]
    assert errors[4] < 2 * errors[2]
