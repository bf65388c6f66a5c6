"""Sampled mixtures: within floors and caps, distinct, and the same for any order of domains."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, kstest

from mixlaw.design import METHODS, Design, measure_coverage, sample_mixtures
from mixlaw.design.points import fill_to_caps, moved_shares, sobol_simplex, walk_below_caps
from mixlaw.domains import Domain, Scale
from mixlaw.errors import DesignError, DomainError, MixtureError
from mixlaw.mixtures import CappedSimplex, Mixture

ODD_NAMES = ("<script>alert(1)</script>", "$(id)", "../x", 'quo"te', "émoji 🎲", "=cmd()")


def make_domains(names=("web", "code", "books", "wiki", "law"), tokens=None):
    tokens = [None] * len(names) if tokens is None else tokens
    return [Domain(name=n, available_tokens=t) for n, t in zip(names, tokens, strict=True)]


@st.composite
def capped_problems(draw):
    size = draw(st.integers(2, 6))
    names = [f"d{i}" for i in range(size)]
    caps = draw(st.lists(st.floats(0.05, 1.2), min_size=size, max_size=size))
    scale = 1.0 + draw(st.floats(0.02, 2.0))  # the caps sum to this at least
    caps = [min(1.5, cap * max(1.0, scale / sum(caps))) for cap in caps]
    if sum(min(cap, 1) for cap in caps) < 1.01:
        caps = [cap * 3 for cap in caps]
    share = draw(st.floats(0, 0.9))
    floor = share * min(*caps, 1.0, 1 / size)
    domains = make_domains(names, [cap * 1e9 for cap in caps])
    return domains, floor


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25, deadline=None)
@given(problem=capped_problems(), seed=st.integers(0, 10**6))
def test_sums_floors_and_caps_always_hold(method, spread, problem, seed):
    domains, floor = problem
    scale = Scale(tokens=1e9)
    try:
        design = sample_mixtures(
            domains, n=6, scale=scale, method=method, floor=floor, spread=spread, seed=seed
        )
    except DesignError:
        assert method == "double-diminishing"  # a grid can have too few points, a region can't
        return
    assert len({mixture.mixture_id for mixture in design.mixtures}) == 6
    for mixture in design.mixtures:
        assert abs(math.fsum(mixture.proportions) - 1) < 1e-9
        for domain in domains:
            assert floor - 1e-9 <= mixture[domain.name] <= domain.cap(scale) + 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_domains_does_not_matter(method):
    domains = make_domains(tokens=[3e8, 4e8, 1e9, 1e9, 5e8])
    scale = Scale(tokens=1e9)
    one = sample_mixtures(domains, n=8, scale=scale, method=method, spread=True)
    other = sample_mixtures(domains[::-1], n=8, scale=scale, method=method, spread=True)
    assert [dict(m) for m in one.mixtures] == [dict(m) for m in other.mixtures]
    assert other.mixtures[0].names == ("law", "wiki", "books", "code", "web")


@pytest.mark.parametrize("method", METHODS)
def test_one_seed_gives_one_design_and_another_seed_another(method):
    designs = [
        sample_mixtures(make_domains(), n=8, scale=None, method=method, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert designs[0] == designs[1]
    assert designs[0].mixtures != designs[2].mixtures


@pytest.mark.parametrize("method", METHODS)
def test_names_are_data(method):
    design = sample_mixtures(make_domains(ODD_NAMES), n=4, scale=None, method=method, floor=0.05)
    assert design.domains == ODD_NAMES
    assert all(mixture.names == ODD_NAMES for mixture in design.mixtures)


def test_given_mixtures_come_first_and_are_drawn_once():
    domains = make_domains(("a", "b"))
    uniform, skewed = Mixture.uniform(("a", "b")), Mixture.of({"b": 0.25, "a": 0.75})
    design = sample_mixtures(domains, n=8, scale=None, include=(uniform, skewed), delta=1 / 64)
    assert design.mixtures[0] == uniform
    assert dict(design.mixtures[1]) == {"a": 0.75, "b": 0.25}
    assert len({mixture.mixture_id for mixture in design.mixtures}) == 8


def test_avoided_mixtures_are_not_drawn():
    first = sample_mixtures(make_domains(("a", "b", "c")), n=20, scale=None, seed=0)
    second = sample_mixtures(
        make_domains(("a", "b", "c")), n=20, scale=None, seed=0, avoid=first.mixtures
    )
    taken = {mixture.mixture_id for mixture in first.mixtures}
    assert not taken & {mixture.mixture_id for mixture in second.mixtures}


def test_sobol_mixtures_are_uniform_on_the_simplex():
    r_RM = sobol_simplex(4, 10, seed=5)
    np.testing.assert_allclose(r_RM.sum(axis=1), 1, atol=1e-12)
    for share_R in r_RM.T:  # a share of a uniform point of M domains is Beta(1, M - 1)
        assert kstest(share_R, "beta", args=(1, 3)).pvalue > 0.01


def test_a_longer_sobol_sequence_begins_with_the_shorter_one():
    np.testing.assert_array_equal(sobol_simplex(3, 4, seed=1), sobol_simplex(3, 6, seed=1)[:16])


def test_rejection_keeps_sobol_uniform_within_the_caps():
    # Of three domains, one capped at a half: the uniform density of its share is 2 (1 - x), so its
    # distribution below the cap is (1 - (1 - x)^2) / 0.75.
    domains = make_domains(("a", "b", "c"), [5e8, 2e9, 2e9])
    design = sample_mixtures(domains, n=400, scale=Scale(tokens=1e9), method="sobol")
    shares = [mixture["a"] for mixture in design.mixtures]
    assert design.notes == ()
    assert kstest(shares, lambda x: (1 - (1 - x) ** 2) / 0.75).pvalue > 0.01


def test_dirichlet_of_strength_one_is_uniform_and_stronger_ones_lie_near_the_prior():
    domains = make_domains(("a", "b", "c"))
    design = sample_mixtures(
        domains, n=500, scale=None, method="dirichlet", strengths=(1.0, 1.0), seed=3
    )
    assert kstest([m["b"] for m in design.mixtures], "beta", args=(1, 2)).pvalue > 0.01
    prior = {"a": 0.7, "b": 0.2, "c": 0.1}
    near = sample_mixtures(
        domains, n=200, scale=None, method="dirichlet", prior=prior, strengths=(300.0, 300.0)
    )
    mean = np.mean([m.array(("a", "b", "c")) for m in near.mixtures], axis=0)
    np.testing.assert_allclose(mean, [0.7, 0.2, 0.1], atol=0.01)
    spread = np.std([m["a"] for m in near.mixtures])
    assert spread == pytest.approx(math.sqrt(0.7 * 0.3 / 901), rel=0.2)  # Dirichlet's variance


def test_caps_too_tight_for_rejection_leave_the_distribution_as_it_is():
    domains = make_domains([f"d{i:02}" for i in range(40)], [1e9] * 40)
    for method in ("sobol", "dirichlet"):
        design = sample_mixtures(domains, n=50, scale=Scale(tokens=3e10), method=method)
        assert max(max(m.proportions) for m in design.mixtures) <= 1 / 30 + 1e-9
        mean_M = np.mean([m.array() for m in design.mixtures], axis=0)
        np.testing.assert_allclose(mean_M, 1 / 40, atol=0.006)
    design = sample_mixtures(domains, n=10, scale=Scale(tokens=3.8e10), method="sobol")
    assert design.notes == (
        "the caps are so tight that the Sobol points are random ones, not evenly spaced",
    )


def test_the_walk_below_caps_draws_from_the_distribution_that_is_cut_off():
    cap_M = np.array([0.5, 1.0, 1.0])
    start_RM = np.tile([0.5, 0.25, 0.25], (2000, 1))
    uniform_RM = walk_below_caps(start_RM, cap_M, np.ones(3), np.random.default_rng(0))
    assert kstest(uniform_RM[:, 0], lambda x: (1 - (1 - x) ** 2) / 0.75).pvalue > 0.01
    alpha_M = np.array([2.0, 3.0, 0.7])
    drawn_RM = walk_below_caps(start_RM, cap_M, alpha_M, np.random.default_rng(1))
    np.testing.assert_allclose(drawn_RM.sum(axis=1), 1, atol=1e-12)
    cut_off = beta(2.0, 3.7)  # a share of a Dirichlet distribution is Beta(alpha, the others' sum)
    assert kstest(drawn_RM[:, 0], lambda x: cut_off.cdf(x) / cut_off.cdf(0.5)).pvalue > 0.01


@given(
    shares=st.lists(st.floats(0.0, 1.0), min_size=3, max_size=6).filter(lambda x: sum(x) > 0.01),
    room=st.lists(st.floats(0.2, 1.0), min_size=6, max_size=6).filter(lambda x: min(x) > 0),
)
def test_filled_points_keep_their_ratios_below_the_caps(shares, room):
    r_M = np.array(shares) / sum(shares)
    cap_M = np.array(room[: len(shares)])
    cap_M = np.minimum(1.0, cap_M / min(1.0, cap_M.sum() * 0.99))
    filled_M = fill_to_caps(r_M[None], cap_M)[0]
    assert filled_M.sum() == pytest.approx(1, abs=1e-9)
    assert np.all(filled_M <= cap_M + 1e-9)
    below = (filled_M < cap_M - 1e-6) & (r_M > 1e-3)
    if below.sum() > 1:
        ratios = filled_M[below] / r_M[below]
        assert ratios.max() / ratios.min() == pytest.approx(1, abs=1e-6)


def test_zeros_and_given_mixtures_outside_are_said():
    domains = make_domains(("a", "b", "c"))
    outside = Mixture.of({"a": 0.99, "b": 0.01, "c": 0.0})
    design = sample_mixtures(
        domains, n=5, scale=None, method="sobol", floor=0.05, include=[outside]
    )
    assert design.notes == (
        "given mixture 1 lies outside the floors or caps: a 0.99, b 0.01, c 0",
        (
            "1 of 5 mixtures leave out a domain; the losses of small models jump where a domain is"
            " absent, and a floor of about 0.04 avoids that"
        ),
    )


def exponential_law_error(mixtures):
    """Standard error of c + exp(t.r) between the mixtures, for noise of one, averaged over laws."""
    rng = np.random.default_rng(0)
    r_RM = np.stack([mixture.array() for mixture in mixtures])
    probes_SM = 0.04 + 0.8 * sobol_simplex(5, 10, seed=9)
    errors = []
    for own in range(5):
        t_M = rng.normal(1.0, 0.25, 5)
        t_M[own] -= 1.3

        def jacobian(r_RM, t_M=t_M):
            return np.column_stack([np.ones(len(r_RM)), np.exp(r_RM @ t_M)[:, None] * r_RM])

        J_RP, J_SP = jacobian(r_RM), jacobian(probes_SM)
        variance_S = np.einsum("sp,pq,sq->s", J_SP, np.linalg.inv(J_RP.T @ J_RP), J_SP)
        errors.append(math.sqrt(variance_S.mean()))
    return float(np.mean(errors))


def test_spread_halves_the_error_of_the_exponential_law():
    uniform = Mixture.uniform(("web", "code", "books", "wiki", "law"))
    errors = {}
    for method, spread in (("double-diminishing", False), ("sobol", False), ("sobol", True)):
        designs = [
            sample_mixtures(
                make_domains(), n=20, scale=None, method=method, floor=0.04, spread=spread,
                include=[uniform], seed=seed,
            )
            for seed in range(10)
        ]  # fmt: skip
        errors[method, spread] = np.mean([exponential_law_error(d.mixtures) for d in designs])
    assert errors["sobol", True] < 0.55 * errors["double-diminishing", False]
    assert errors["sobol", True] < 0.8 * errors["sobol", False]


def test_spread_chooses_mixtures_that_lie_farther_apart():
    pairs, gaps = [], []
    for is_spread in (False, True):
        designs = [
            sample_mixtures(
                make_domains(), n=20, scale=None, method="sobol", floor=0.04, spread=is_spread,
                seed=seed,
            )
            for seed in range(5)
        ]  # fmt: skip
        pairs.append(np.mean([design.coverage().nearest_pair for design in designs]))
        gaps.append(np.mean([design.coverage().largest_gap for design in designs]))
        assert designs[0].method == ("sobol, spread" if is_spread else "sobol")
    assert pairs[1] > 1.5 * pairs[0]
    assert gaps[1] < 0.9 * gaps[0]


def test_coverage_of_the_corners_is_what_it_must_be():
    corners = [Mixture.of({"a": 1.0, "b": 0.0}), Mixture.of({"a": 0.0, "b": 1.0})]
    coverage = measure_coverage(corners)
    assert coverage.domains == ("a", "b")
    assert coverage.smallest == (0.0, 0.0)
    assert coverage.largest == (1.0, 1.0)
    assert coverage.condition_number == 1.0
    assert (coverage.zeros, coverage.mixtures_with_zero) == (2, 2)
    assert coverage.nearest_pair == 1.0
    assert coverage.largest_gap == pytest.approx(0.5, abs=0.001)  # from the middle to a corner
    assert coverage.mean_gap == pytest.approx(0.25, abs=0.001)


def test_coverage_says_what_is_not_measured():
    line = [Mixture.of({"a": x, "b": 0.5 - x, "c": 0.5}) for x in (0.1, 0.2, 0.3)]
    assert measure_coverage(line).condition_number == math.inf
    single = measure_coverage(line[:1])
    assert math.isnan(single.nearest_pair)
    assert single.condition_number == math.inf


def test_coverage_looks_only_at_what_is_allowed():
    middle = [Mixture.uniform(("a", "b"))]
    narrow = CappedSimplex.of(("b", "a"), floors=0.4)
    assert measure_coverage(middle, narrow).largest_gap == pytest.approx(0.1, abs=0.001)
    only = CappedSimplex.of(("a", "b"), floors=0.5)
    assert measure_coverage(middle, only).largest_gap == 0


def test_moved_shares_count_tokens_that_change_domain():
    a = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(moved_shares(a, a), [[0, 0.5], [0.5, 0]])


def test_a_design_can_be_given():
    design = Design(
        domains=("a", "b"), mixtures=(Mixture.uniform(("a", "b")),), method="given", seed=0
    )
    assert design.coverage().zeros == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"method": "sobel"},
            "method must be one of double-diminishing, dirichlet, sobol, found 'sobel'",
        ),
        (
            {"n": 0},
            ("a design needs at least one mixture and room for the 0 that are given, but 0 are asked"
            " for"),
        ),
        (
            {"floor": 0.5},
            "the floors sum to 1, which leaves a single mixture\n  do: lower them",
        ),
        (
            {"n": 30},
            ("there must be 30 more mixtures to draw, but method 'double-diminishing' has 14 within"
            " these floors and caps\n  do: ask for fewer mixtures, lower the floors, or use method"
            ' "sobol"'),
        ),
        (
            {"method": "dirichlet", "strengths": (0.0, 1.0)},
            "strengths must be two positive numbers, the smaller first, found (0.0, 1.0)",
        ),
    ],
)  # fmt: skip
def test_what_can_not_be_sampled_is_said(arguments, message):
    given_arguments = {"n": 4, "scale": None, **arguments}
    with pytest.raises(DesignError) as caught:
        sample_mixtures(make_domains(("a", "b")), **given_arguments)
    assert str(caught.value) == message


def test_floors_and_caps_that_conflict_are_said():
    domains = make_domains(("a", "b"), [1e8, 1e9])
    with pytest.raises(MixtureError, match=r"the cap of 'a' \(0.1\) is below its floor \(0.2\)"):
        sample_mixtures(domains, n=4, scale=Scale(tokens=1e9), floor=0.2)
    with pytest.raises(DomainError, match="the domains must hold the 1e"):
        sample_mixtures(domains, n=4, scale=Scale(tokens=1e10))
    with pytest.raises(MixtureError, match="the mixture must give a share for 'b'"):
        sample_mixtures(domains, n=4, scale=None, include=[Mixture.of({"a": 1.0})])
