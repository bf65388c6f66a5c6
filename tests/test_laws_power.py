import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlaw.laws.power import (
    OVERTRAINING_LAW,
    SIZE_LAW,
    SIZE_STEP_LAW,
    SIZE_TOKEN_LAW,
    STEP_LAW,
    OvertrainingParameters,
    PowerLaw,
    ReleasedParameters,
    from_compute,
    from_paper,
    overtraining_loss,
    paper_to_released,
    released_to_paper,
    to_compute,
    to_paper,
)

LAWS = (STEP_LAW, SIZE_LAW, SIZE_STEP_LAW, SIZE_TOKEN_LAW, OVERTRAINING_LAW)
POSITIVE = st.floats(0.05, 0.9)


def sample(law: PowerLaw, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x_RK = np.exp(rng.uniform(2, 20, (7, law.num_terms)))
    exponents = rng.uniform(0.1, 0.9, law.num_exponents)
    return x_RK, np.concatenate([[1.7], rng.uniform(1, 90, law.num_terms), exponents])


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_jacobian_equals_finite_differences(law: PowerLaw) -> None:
    x_RK, theta_P = sample(law, 0)
    jacobian_RP = law.jacobian(x_RK, theta_P)
    assert jacobian_RP.shape == (7, len(law.parameter_names))
    for p in range(len(theta_P)):
        step = 1e-6 * theta_P[p]
        shift_P = step * (np.arange(len(theta_P)) == p)
        ends = law.predict(x_RK, theta_P + shift_P) - law.predict(x_RK, theta_P - shift_P)
        assert jacobian_RP[:, p] == pytest.approx(ends / (2 * step), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_elasticity_is_the_derivative_by_log_x(law: PowerLaw) -> None:
    x_RK, theta_P = sample(law, 1)
    found_RK = law.elasticity(x_RK, theta_P)
    for k in range(law.num_terms):
        factor_K = np.exp(1e-6 * (np.arange(law.num_terms) == k))
        ends = law.predict(x_RK * factor_K, theta_P) - law.predict(x_RK / factor_K, theta_P)
        assert found_RK[:, k] == pytest.approx(ends / 2e-6, rel=1e-5, abs=1e-8)


def test_laws_take_batches_of_parameters_and_of_points() -> None:
    x_RK, first_P = sample(SIZE_STEP_LAW, 2)
    _, second_P = sample(SIZE_STEP_LAW, 3)
    theta_SP = np.stack([first_P, second_P])
    both_SR = SIZE_STEP_LAW.predict(x_RK, theta_SP)
    assert both_SR.shape == (2, 7)
    assert both_SR[1] == pytest.approx(SIZE_STEP_LAW.predict(x_RK, second_P))
    apart_SR = SIZE_STEP_LAW.predict(np.stack([x_RK, 2 * x_RK]), theta_SP)
    assert apart_SR[0] == pytest.approx(both_SR[0])
    assert np.all(apart_SR[1] < both_SR[1])


@given(eta=POSITIVE, a=st.floats(1, 500), b=st.floats(1, 500))
def test_gadres_form_is_the_same_law_in_other_variables(eta: float, a: float, b: float) -> None:
    """L(C, M) = E + (a M^eta + b M^-eta) C^-eta, Gadre et al. 2024, Eq. 4."""
    params_R, tokens_R = np.array([1e7, 4e8, 7e9]), np.array([2e8, 3e11, 1.4e11])
    paper = OvertrainingParameters(E=1.8, a=a, b=b, eta=eta)
    flops_R, multiplier_R = to_compute(params_R, tokens_R)
    ours_R = OVERTRAINING_LAW.predict(np.stack([params_R, tokens_R], axis=1), from_paper(paper))
    assert ours_R == pytest.approx(overtraining_loss(flops_R, multiplier_R, paper), rel=1e-12)
    assert to_paper(from_paper(paper)) == pytest.approx(paper, rel=1e-12)
    assert from_compute(flops_R, multiplier_R)[0] == pytest.approx(params_R, rel=1e-12)


@given(b=st.floats(-0.9, -0.05), alpha=st.floats(1, 500), beta=st.floats(1, 500))
def test_the_released_codes_form_is_the_papers(b: float, alpha: float, beta: float) -> None:
    """alpha N^b + beta 6^(b/2) (M N)^b + E, as `powlaw_ours` in the released code has it."""
    params_R, multiplier_R = np.array([1e7, 4e8, 7e9]), np.array([20.0, 640.0, 5.0])
    released = ReleasedParameters(E=1.8, alpha=alpha, beta=beta, b=b)
    theirs_R = alpha * params_R**b + beta * 6 ** (b / 2) * (multiplier_R * params_R) ** b + 1.8
    flops_R, _ = to_compute(params_R, multiplier_R * params_R)
    paper = released_to_paper(released)
    assert overtraining_loss(flops_R, multiplier_R, paper) == pytest.approx(theirs_R, rel=1e-12)
    assert paper_to_released(paper) == pytest.approx(released, rel=1e-12)
