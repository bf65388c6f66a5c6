"""One contract for every mixing law: what fits, predictions and optima take for granted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixlaw.fit.law import fit_table
from mixlaw.fit.solver import Problems, minimize_problems
from mixlaw.laws.base import MixingLaw
from mixlaw.laws.implicit import ImplicitDomainLaw
from mixlaw.laws.library import MIXING_LAWS
from mixlaw.laws.mixing import CONTRAST_PRIOR, ExponentialLaw, LogLinearLaw
from mixlaw.laws.reciprocal import (
    FIXED_FLOOR,
    PowerReciprocalLaw,
    PowerReciprocalSharedLaw,
    ReciprocalLaw,
    ReciprocalSharedLaw,
)
from mixlaw.laws.sums import ProductLaw
from mixlaw.observations import loss_table
from simulated import make_tables

every_law = pytest.mark.parametrize("law", MIXING_LAWS.values(), ids=lambda law: law.name)
SEEDS = st.integers(0, 2**31)


def make_case(
    law: MixingLaw, seed: int, num_domains: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns mixtures (corners among them), plausible parameters and their losses."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 8)) if num_domains is None else num_domains
    r_RM = np.vstack([rng.dirichlet(np.ones(size), size=12), np.eye(size)])
    y_R = rng.uniform(1.5, 3.5) + rng.uniform(0.0, 1.0, size=len(r_RM))
    starts_SP = law.starts(r_RM, y_R)
    low_P, high_P = law.bounds(r_RM, y_R)
    jitter_P = rng.normal(0.0, 0.3, size=starts_SP.shape[1])
    theta_P = np.clip(starts_SP[0] + jitter_P, low_P, high_P)
    return r_RM, theta_P, law.predict(r_RM, theta_P)


def central_difference(function, point: np.ndarray) -> np.ndarray:
    """Returns derivatives by each entry of the point, as a new last axis."""
    steps = 1e-6 * np.maximum(np.abs(point), 1.0)
    columns = []
    for j, step in enumerate(steps):
        up, down = point.copy(), point.copy()
        up[j] += step
        down[j] -= step
        columns.append((function(up) - function(down)) / (2 * step))
    return np.stack(columns, axis=-1)


@every_law
@settings(max_examples=30)
@given(seed=SEEDS)
def test_jacobian_is_that_of_predict(law: MixingLaw, seed: int) -> None:
    r_RM, theta_P, _ = make_case(law, seed)
    numeric = central_difference(lambda theta: law.predict(r_RM, theta), theta_P)
    assert np.allclose(law.jacobian(r_RM, theta_P), numeric, rtol=1e-6, atol=1e-7)


@every_law
@settings(max_examples=30)
@given(seed=SEEDS)
def test_gradient_is_that_of_predict_by_the_proportions(law: MixingLaw, seed: int) -> None:
    r_RM, theta_P, _ = make_case(law, seed)
    inside_RM = 0.9 * r_RM + 0.1 / r_RM.shape[1]
    for r_M, gradient_M in zip(inside_RM, law.gradient(inside_RM, theta_P), strict=True):
        numeric = central_difference(lambda r: law.predict(r[None], theta_P)[0], r_M)
        assert np.allclose(gradient_M, numeric, rtol=1e-6, atol=1e-7)


@every_law
@settings(max_examples=30)
@given(seed=SEEDS)
def test_penalty_jacobian_is_that_of_the_penalty(law: MixingLaw, seed: int) -> None:
    _, theta_P, _ = make_case(law, seed)
    numeric = central_difference(law.penalty, theta_P)
    assert np.allclose(law.penalty_jacobian(theta_P), numeric, rtol=1e-6, atol=1e-8)


@every_law
@settings(max_examples=30)
@given(seed=SEEDS)
def test_contrasts_are_what_moving_share_to_a_domain_does(law: MixingLaw, seed: int) -> None:
    r_RM, theta_P, _ = make_case(law, seed)
    size = r_RM.shape[1]
    # Inside: where a share is nearly 0, some laws bend within the differences' step.
    r_M, step = 0.9 * r_RM[0] + 0.1 / size, 1e-6

    def moved(j: int, by: float) -> float:
        return float(law.predict((r_M + by * (np.eye(size)[j] - r_M))[None], theta_P)[0])

    numeric = [(moved(j, step) - moved(j, -step)) / (2 * step) for j in range(size)]
    assert np.allclose(law.contrasts(r_M, theta_P), numeric, rtol=1e-6, atol=1e-7)


@every_law
@settings(max_examples=30)
@given(seed=SEEDS)
def test_contrasts_are_the_gradient_less_its_mean_under_the_mixture(
    law: MixingLaw, seed: int
) -> None:
    r_RM, theta_P, _ = make_case(law, seed)
    gradient_M = law.gradient(r_RM[:1], theta_P)[0]
    expected = gradient_M - r_RM[0] @ gradient_M
    assert np.allclose(law.contrasts(r_RM[0], theta_P), expected, rtol=1e-9, atol=1e-12)


@every_law
@settings(max_examples=50)
@given(seed=SEEDS)
def test_convexity_holds_along_segments_where_it_is_claimed(law: MixingLaw, seed: int) -> None:
    r_RM, theta_P, _ = make_case(law, seed)
    if not law.is_convex(theta_P):
        return
    share = np.linspace(0.0, 1.0, 11)[:, None]
    ends = r_RM[np.random.default_rng(seed).choice(len(r_RM), 2, replace=False)]
    along = law.predict((1 - share) * ends[0] + share * ends[1], theta_P)
    chord = (1 - share[:, 0]) * along[0] + share[:, 0] * along[-1]
    assert np.all(along <= chord + 1e-9 * np.abs(chord))


@every_law
@settings(max_examples=30)
@given(seed=SEEDS)
def test_starts_lie_within_the_bounds(law: MixingLaw, seed: int) -> None:
    r_RM, _, _ = make_case(law, seed)
    y_R = np.random.default_rng(seed).lognormal(size=len(r_RM))
    low_P, high_P = law.bounds(r_RM, y_R)
    starts_SP = law.starts(r_RM, y_R)
    assert np.all(low_P < high_P)
    assert np.all(starts_SP >= low_P)
    assert np.all(starts_SP <= high_P)
    assert np.all(np.isfinite(law.predict(r_RM, starts_SP[0])))


@every_law
@pytest.mark.parametrize("y", [2.5, 0.0, -1.0, 1e-9, 1e6])
def test_constant_losses_have_bounds_and_starts(law: MixingLaw, y: float) -> None:
    r_RM, _, _ = make_case(law, 0)
    y_R = np.full(len(r_RM), y)
    low_P, high_P = law.bounds(r_RM, y_R)
    starts_SP = law.starts(r_RM, y_R)
    assert np.all(low_P < high_P)
    assert np.all((low_P <= starts_SP) & (starts_SP <= high_P))


@every_law
@settings(max_examples=20)
@given(seed=SEEDS)
def test_permuting_domains_permutes_the_law(law: MixingLaw, seed: int) -> None:
    r_RM, theta_P, y_R = make_case(law, seed)
    order, index = permutation(law, seed, r_RM.shape[1])
    moved_RM, moved_P = r_RM[:, order], theta_P[index]
    assert np.allclose(law.predict(moved_RM, moved_P), y_R, rtol=1e-9)
    assert np.allclose(
        law.gradient(moved_RM, moved_P), law.gradient(r_RM, theta_P)[:, order], rtol=1e-6
    )
    assert np.isclose(np.sum(law.penalty(moved_P) ** 2), np.sum(law.penalty(theta_P) ** 2))
    assert law.is_convex(moved_P) == law.is_convex(theta_P)
    for side_P, moved_side_P in zip(law.bounds(r_RM, y_R), law.bounds(moved_RM, y_R), strict=True):
        assert np.allclose(moved_side_P, side_P[index])


@every_law
@settings(max_examples=20)
@given(seed=SEEDS)
def test_permuting_domains_permutes_the_starts(law: MixingLaw, seed: int) -> None:
    if isinstance(law, ImplicitDomainLaw):
        # With several implicit domains the starts break a symmetry by random numbers that know
        # the domains' order; `test_implicit_starts_permute_on_average` has what is left.
        law = ImplicitDomainLaw(num_implicit=1)
    r_RM, _, y_R = make_case(law, seed)
    order, index = permutation(law, seed, r_RM.shape[1])
    starts_SP, moved_SP = law.starts(r_RM, y_R), law.starts(r_RM[:, order], y_R)
    assert np.allclose(moved_SP, starts_SP[:, index], rtol=1e-7, atol=1e-9)


def permutation(law: MixingLaw, seed: int, num_domains: int) -> tuple[np.ndarray, list[int]]:
    """Returns an order of the domains, and that of the parameters that belongs to it."""
    order = np.random.default_rng(seed).permutation(num_domains)
    names = tuple(f"d{j}" for j in range(num_domains))
    there = law.parameter_names(names)
    moved = law.parameter_names(tuple(names[j] for j in order))
    return order, [there.index(name) for name in moved]


@every_law
@settings(max_examples=10)
@given(seed=SEEDS)
def test_a_stack_of_parameters_gives_the_stacked_answers(law: MixingLaw, seed: int) -> None:
    r_RM, theta_P, _ = make_case(law, seed)
    jitter_BP = np.random.default_rng(seed).normal(0.0, 0.05, size=(2, 3, len(theta_P)))
    theta_BP = theta_P + jitter_BP
    for method in (law.predict, law.jacobian, law.gradient):
        assert_stacked(method(r_RM, theta_BP), theta_BP, lambda theta, f=method: f(r_RM, theta))
    for method in (law.penalty, law.penalty_jacobian):
        assert_stacked(method(theta_BP), theta_BP, method)


@every_law
@settings(max_examples=10)
@given(seed=SEEDS)
def test_a_stack_of_losses_has_the_stacked_bounds_and_starts(law: MixingLaw, seed: int) -> None:
    r_RM, _, y_R = make_case(law, seed)
    rng = np.random.default_rng(seed)
    y_BR = y_R + rng.normal(0.0, 0.1, size=(2, 3, len(y_R)))
    y_BR[rng.random(y_BR.shape) < 0.1] = np.nan
    assert_stacked(law.starts(r_RM, y_BR), y_BR, lambda y: law.starts(r_RM, y))
    for i in (0, 1):
        assert_stacked(law.bounds(r_RM, y_BR)[i], y_BR, lambda y, i=i: law.bounds(r_RM, y)[i])


def assert_stacked(stacked_B: np.ndarray, argument_BN: np.ndarray, function) -> None:
    """Checks what came from a stack of two leading axes against one call for each entry."""
    for i in np.ndindex(argument_BN.shape[:2]):
        one = function(argument_BN[i])
        assert stacked_B[i].shape == one.shape
        assert np.allclose(stacked_B[i], one, rtol=1e-9, atol=1e-11)


@every_law
@pytest.mark.parametrize("seed", range(3))
def test_a_missing_loss_is_as_good_as_no_run(law: MixingLaw, seed: int) -> None:
    """The bounds and the minimum from a given start are those without the run."""
    r_RM, theta_P, y_R = make_case(law, seed)
    known_R = np.arange(len(y_R)) % 5 != 2
    missing_R = np.where(known_R, y_R, np.nan)
    low_P, high_P = law.bounds(r_RM, missing_R)
    for side_P, fewer_P in zip((low_P, high_P), law.bounds(r_RM[known_R], y_R[known_R]),
                               strict=True):  # fmt: skip
        assert np.array_equal(side_P, fewer_P)
    starts_SP = law.starts(r_RM, missing_R)
    assert np.all((low_P <= starts_SP) & (starts_SP <= high_P))
    ends = [
        minimize_problems(
            Problems.of(law, r, y[None], scale_B=np.array([0.1]), strength_B=np.ones(1)),
            np.clip(theta_P, low_P, high_P)[None],
        )
        for r, y in ((r_RM, missing_R), (r_RM[known_R], y_R[known_R]))
    ]
    assert np.isclose(ends[0].objective_B[0], ends[1].objective_B[0], rtol=1e-8)


@every_law
@pytest.mark.parametrize("seed", range(2))
def test_a_planted_law_is_recovered_by_its_predictions(law: MixingLaw, seed: int) -> None:
    """Raw parameters need not be identified; fresh mixtures are within three noises (rms)."""
    rng = np.random.default_rng(seed)
    r_RM, fresh_RM = rng.dirichlet(np.ones(3), size=30), rng.dirichlet(np.ones(3), size=30)
    theta_P = plausible_parameters(law, r_RM, seed)
    y_R = law.predict(r_RM, theta_P)
    noise = 0.003 * np.std(y_R)
    y_RT = (y_R + rng.normal(0.0, noise, size=len(y_R)))[:, None]
    table = loss_table(*make_tables(["a", "b", "c"], ["t"], r_RM, y_RT), targets=["t"])
    fit = fit_table(law, table, num_draws=1)
    error_R = fit.losses(fresh_RM)[:, 0] - law.predict(fresh_RM, theta_P)
    assert np.sqrt(np.mean(error_R**2)) < 3 * noise


def plausible_parameters(law: MixingLaw, r_RM: np.ndarray, seed: int) -> np.ndarray:
    """Returns parameters near the law's guess for losses that fall steeply at first."""
    rng = np.random.default_rng(1000 + seed)
    weight_M = np.exp(rng.normal(0.0, 1.0, size=r_RM.shape[1]))
    y_R = 1.5 + 1 / ((r_RM + 0.02) ** 0.4 @ weight_M)
    start_P = law.starts(r_RM, y_R)[0]
    return np.clip(start_P * rng.normal(1.0, 0.2, size=len(start_P)), *law.bounds(r_RM, y_R))


@every_law
@pytest.mark.parametrize("num_domains", [2, 30])
def test_every_shape_fits_the_number_of_domains(law: MixingLaw, num_domains: int) -> None:
    r_RM, theta_P, y_R = make_case(law, 1, num_domains)
    names = law.parameter_names(tuple(f"d{j}" for j in range(num_domains)))
    low_P, high_P = law.bounds(r_RM, y_R)
    assert len(set(names)) == len(names) == len(theta_P) == len(low_P) == len(high_P)
    assert law.jacobian(r_RM, theta_P).shape == (len(r_RM), len(names))
    assert law.gradient(r_RM, theta_P).shape == r_RM.shape
    assert law.contrasts(r_RM[0], theta_P).shape == (num_domains,)
    assert len(law.penalty(theta_P)) == len(law.penalty_jacobian(theta_P))


def test_laws_are_found_by_their_names() -> None:
    assert all(name == law.name for name, law in MIXING_LAWS.items())
    assert len({law.formula for law in MIXING_LAWS.values()}) == len(MIXING_LAWS)


# What is special to M4.


@given(st.floats(-5.0, 5.0), SEEDS)
def test_k_and_the_level_of_t_are_one_parameter(shift: float, seed: int) -> None:
    """(t + a, k e^-a) is the same law (Ye et al. 2025, Eq. 7): k = 1 loses nothing."""
    law = ExponentialLaw()
    r_RM, theta_P, y_R = make_case(law, seed)
    k = np.exp(-shift)
    paper_R = theta_P[0] + k * np.exp(r_RM @ (theta_P[1:] + shift))
    assert np.allclose(paper_R, y_R, rtol=1e-9)


def test_the_loss_of_a_corner_is_c_plus_what_that_domain_leaves() -> None:
    theta_P = np.array([2.0, np.log(0.5), np.log(0.25), np.log(1.5)])
    assert np.allclose(ExponentialLaw().predict(np.eye(3), theta_P), [2.5, 2.25, 3.5])


def test_the_same_t_for_all_domains_is_not_shrunk_and_moves_nothing() -> None:
    theta_P = np.array([2.0, 0.7, 0.7, 0.7])
    law = ExponentialLaw()
    assert np.allclose(law.penalty(theta_P), 0.0)
    assert np.allclose(law.contrasts(np.array([0.2, 0.3, 0.5]), theta_P), 0.0)


def test_the_penalty_is_in_units_of_the_prior() -> None:
    theta_P = np.array([2.0, CONTRAST_PRIOR, -CONTRAST_PRIOR])
    assert np.allclose(ExponentialLaw().penalty(theta_P), [1.0, -1.0])


def test_c_is_not_negative_where_losses_are_positive() -> None:
    law = ExponentialLaw()
    r_RM = np.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]])
    assert law.bounds(r_RM, np.array([2.0, 2.5, 4.0]))[0][0] == 0.0
    assert law.bounds(r_RM, np.array([2.0, 2.5, 4.0]))[1][0] == 2.5
    assert law.bounds(r_RM, np.array([0.0, 0.5, 1.0]))[0][0] == -10.0


# What is special to the others.


def test_log_linear_is_m4_without_a_floor() -> None:
    r_RM, theta_P, _ = make_case(ExponentialLaw(), 0)
    without_P = np.concatenate([[0.0], theta_P[1:]])
    m4_R = ExponentialLaw().predict(r_RM, without_P)
    assert np.array_equal(LogLinearLaw().predict(r_RM, theta_P[1:]), m4_R)


def test_reciprocal_is_one_over_a_sum_of_powers() -> None:
    r_RM, theta_P, y_R = make_case(ReciprocalLaw(), 3, 4)
    c, g_M, scale_M = theta_P[0], np.exp(theta_P[1:5]), np.exp(theta_P[5:])
    expected_R = c + 1 / np.sum(scale_M * (r_RM + FIXED_FLOOR) ** g_M, axis=1)
    assert np.allclose(y_R, expected_R, rtol=1e-12)


def test_members_of_the_reciprocal_family_agree_where_their_parameters_do() -> None:
    """Tied exponents, b = 1 and e = 0.001 make every member the reciprocal law with one exponent."""
    r_RM, theta_P, y_R = make_case(ReciprocalSharedLaw(), 4, 5)
    c, log_g, log_scale_M = theta_P[:1], theta_P[1:2], theta_P[2:]
    tied_M, fixed_K = np.repeat(log_g, 5), np.array([0.0, np.log(FIXED_FLOOR)])
    own_P = np.concatenate([c, tied_M, log_scale_M])
    power_P = np.concatenate([c, fixed_K, tied_M, log_scale_M])
    power_shared_P = np.concatenate([c, fixed_K, log_g, log_scale_M])
    assert np.allclose(ReciprocalLaw().predict(r_RM, own_P), y_R, rtol=1e-12)
    assert np.allclose(PowerReciprocalLaw().predict(r_RM, power_P), y_R, rtol=1e-12)
    assert np.allclose(PowerReciprocalSharedLaw().predict(r_RM, power_shared_P), y_R, rtol=1e-12)
    shared_RP = ReciprocalSharedLaw().jacobian(r_RM, theta_P)
    own_RP = ReciprocalLaw().jacobian(r_RM, own_P)
    assert np.allclose(shared_RP[:, 1], own_RP[:, 1:6].sum(axis=1), rtol=1e-12)


def test_a_large_outer_exponent_makes_an_exponential_of_logarithms() -> None:
    """(sum_j C_j q_j^(1/b))^-b is prod_j q_j^-C_j but for its second cumulant, if C sums to one."""
    q_RM = np.random.default_rng(0).dirichlet(np.ones(3), size=20) + FIXED_FLOOR
    share_M, b = np.array([0.2, 0.5, 0.3]), 20.0
    log_e = np.log([FIXED_FLOOR])
    log_g_M = np.full(3, np.log(1 / b))
    theta_P = np.concatenate([[0.0, np.log(b)], log_e, log_g_M, np.log(share_M)])
    lost_R = PowerReciprocalLaw().predict(q_RM - FIXED_FLOOR, theta_P)
    log_q_RM = np.log(q_RM)
    variance_R = log_q_RM**2 @ share_M - (log_q_RM @ share_M) ** 2
    assert np.max(variance_R) > 1
    assert np.allclose(np.log(lost_R), -log_q_RM @ share_M - variance_R / (2 * b), atol=0.01)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_m3_is_constant_where_a_domain_is_absent(share: float) -> None:
    """The paper's reason to reject it (Ye et al. 2025, Section 3.2)."""
    r_RM = np.array([[share, 0.5, 0.5 - share], [share, 0.1, 0.9 - share]])
    values_R = ProductLaw().predict(r_RM, np.array([2.0, 0.5, -3.0]))
    assert (values_R[0] == values_R[1] == 2.5) == (share == 0.0)


def test_implicit_domains_have_no_order() -> None:
    law = ImplicitDomainLaw(num_implicit=3)
    r_RM, theta_P, y_R = make_case(law, 5, 4)
    t_KM = law.split(theta_P)
    swapped_P = np.concatenate([theta_P[:1], t_KM[[2, 0, 1]].ravel()])
    assert np.allclose(law.predict(r_RM, swapped_P), y_R, rtol=1e-12)
    assert np.isclose(np.sum(law.penalty(swapped_P) ** 2), np.sum(law.penalty(theta_P) ** 2))


def test_implicit_starts_permute_on_average() -> None:
    """Averaged over the implicit domains, a start is M4's: only the breaking knows an order."""
    law = ImplicitDomainLaw(num_implicit=2)
    r_RM, _, y_R = make_case(law, 6, 5)
    starts_SP, m4_SP = law.starts(r_RM, y_R), ExponentialLaw().starts(r_RM, y_R)
    mean_SM = law.split(starts_SP).mean(axis=1) + np.log(2)
    assert np.allclose(mean_SM, np.tile(m4_SP[:, 1:], (2, 1)), rtol=1e-12)
