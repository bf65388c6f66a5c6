"""One contract for every mixing law: what fits, predictions and optima take for granted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixlaw.laws.base import MixingLaw
from mixlaw.laws.mixing import CONTRAST_PRIOR, ExponentialLaw

LAWS = [ExponentialLaw()]
every_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
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
    r_M, size = r_RM[0], r_RM.shape[1]
    step = 1e-6

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
    r_RM, _, y_R = make_case(law, seed)
    order = np.random.default_rng(seed).permutation(r_RM.shape[1])
    names = tuple(f"d{j}" for j in range(len(order)))
    there = law.parameter_names(names)
    moved = law.parameter_names(tuple(names[j] for j in order))
    index = [there.index(name) for name in moved]
    theta_P, moved_P = law.starts(r_RM, y_R)[0], law.starts(r_RM[:, order], y_R)[0]
    assert np.allclose(moved_P, theta_P[index], rtol=1e-7, atol=1e-9)
    assert np.allclose(law.predict(r_RM[:, order], moved_P), law.predict(r_RM, theta_P), rtol=1e-8)
    assert np.allclose(
        law.gradient(r_RM[:, order], moved_P), law.gradient(r_RM, theta_P)[:, order], rtol=1e-6
    )


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
