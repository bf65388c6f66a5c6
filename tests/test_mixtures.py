import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from mixlaw.errors import MixtureError
from mixlaw.mixtures import CappedSimplex, Mixture, stack_mixtures

SHARES = st.lists(st.floats(0.0, 1.0), min_size=2, max_size=12).filter(lambda v: sum(v) > 0.01)


def named(values: list[float]) -> dict[str, float]:
    return {f"d{i}": value for i, value in enumerate(values)}


@st.composite
def bounds(draw: st.DrawFn) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Floors that sum to at most one and caps that sum to at least one, tight ones among them.

    Plain numbers: beartype draws random numbers where a simplex is made, which strategies may not.
    """
    size = draw(st.integers(2, 12))
    center = np.array(draw(st.lists(st.floats(0.01, 1.0), min_size=size, max_size=size)))
    center /= center.sum()
    below = draw(st.sampled_from([0.0, 0.5, 1.0]))
    above = draw(st.sampled_from([0.0, 0.3, 1.0]))
    caps = np.minimum(1.0, np.maximum(center + above * (1.0 - center), center))
    return tuple((below * center).tolist()), tuple(caps.tolist())


Bounds = tuple[tuple[float, ...], tuple[float, ...]]


def simplex_between(between: Bounds) -> CappedSimplex:
    return CappedSimplex(tuple(f"d{i}" for i in range(len(between[0]))), *between)


@pytest.mark.parametrize(
    ("proportions", "message"),
    [
        ({"a": 0.5, "b": math.nan}, "proportions must be finite, but 'b' is nan"),
        ({"a": math.inf, "b": 0.5}, "proportions must be finite, but 'a' is inf"),
        ({"a": 1.25, "b": -0.25}, "proportions must not be negative, but 'b' is -0.25"),
        (
            {"a": 0.5, "b": 0.4},
            "proportions must sum to 1, but they sum to 0.9\n"
            "  do: give token shares; `Mixture.normalized` rescales within a tolerance",
        ),
    ],
)
def test_proportions_that_are_no_mixture_say_why(
    proportions: dict[str, float], message: str
) -> None:
    with pytest.raises(MixtureError) as error:
        Mixture.of(proportions)
    assert str(error.value) == message


def test_names_and_shares_go_together() -> None:
    with pytest.raises(MixtureError) as error:
        Mixture(("a", "b"), (1.0,))
    assert str(error.value) == "a mixture needs one proportion per domain, found 1 for 2 domains"


def test_a_domain_is_named_once() -> None:
    with pytest.raises(MixtureError) as error:
        Mixture(("a", "a"), (0.5, 0.5))
    assert str(error.value) == "a mixture names each domain once, in ['a', 'a']"


@pytest.mark.parametrize(
    ("proportions", "message"),
    [
        ({"a": 0.0, "b": 0.0}, "proportions must have a positive sum, but they sum to 0"),
        ({"a": math.nan, "b": 1.0}, "proportions must be finite, but 'a' is nan"),
        ({"a": math.inf, "b": -math.inf}, "proportions must be finite, but 'a' is inf"),
        ({"a": 2.0, "b": -1.0}, "proportions must not be negative, but 'b' is -1"),
    ],
)
def test_what_can_not_be_normalized_says_why(proportions: dict[str, float], message: str) -> None:
    with pytest.raises(MixtureError) as error:
        Mixture.normalized(proportions)
    assert str(error.value) == message


def test_normalizing_stays_within_the_tolerance() -> None:
    # The row sum of a published mixture (docs of the mixinglaws data): 1.02.
    assert math.fsum(Mixture.normalized({"a": 0.5, "b": 0.52}, tolerance=0.03).values()) == 1.0
    with pytest.raises(MixtureError) as error:
        Mixture.normalized({"a": 0.5, "b": 0.4}, tolerance=0.02)
    assert str(error.value) == (
        "proportions must sum to 1 within 0.02, but they sum to 0.9\n"
        "  do: give token shares, or allow more with a larger tolerance"
    )


@given(SHARES, st.randoms())
def test_mixture_id_does_not_know_the_order_of_domains(values: list[float], random) -> None:
    mixture = Mixture.normalized(named(values))
    names = list(mixture)
    random.shuffle(names)
    assert mixture.reordered(names).mixture_id == mixture.mixture_id


@given(SHARES)
def test_a_domain_without_share_may_be_left_out_of_the_id(values: list[float]) -> None:
    mixture = Mixture.normalized(named(values))
    assert Mixture.of({**mixture, "nothing": 0.0, "less": 0.0}).mixture_id == mixture.mixture_id


def test_shares_that_round_to_nothing_do_not_change_the_id() -> None:
    assert Mixture.of({"a": 1.0, "b": 1e-14}).mixture_id == Mixture.of({"a": 1.0}).mixture_id


def test_different_shares_have_different_ids() -> None:
    ids = {Mixture.of({"a": a, "b": 1 - a}).mixture_id for a in (0.5, 0.5 + 1e-11, 0.25, 0.75)}
    assert len(ids) == 4


@given(SHARES)
def test_reordering_and_arrays_agree(values: list[float]) -> None:
    mixture = Mixture.normalized(named(values))
    back = list(mixture)[::-1]
    assert np.array_equal(mixture.array(back), mixture.array()[::-1])
    assert dict(mixture.reordered(back)) == dict(mixture)


def test_array_names_the_missing_and_the_unknown_domain() -> None:
    mixture = Mixture.uniform(("a", "b"))
    with pytest.raises(MixtureError) as error:
        mixture.array(("a", "b", "c"))
    assert str(error.value) == (
        "the mixture must give a share for 'c'\n"
        "  do: add it (0 is a share); the domains are a, b, c"
    )
    with pytest.raises(MixtureError) as error:
        Mixture.uniform(("a", "b", "c")).array(("a", "b"))
    assert str(error.value) == "'c' is no domain here\n  do: the domains are a, b"


def test_arrays_that_sum_to_one_up_to_rounding_are_mixtures() -> None:
    mixture = Mixture.from_array(("a", "b"), np.array([1.0 + 1e-13, -1e-13]))
    assert dict(mixture) == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize("r_M", [[0.5, 0.4], [1.1, -0.1], [math.nan, 1.0]])
def test_arrays_that_are_no_mixture_are_refused(r_M: list[float]) -> None:
    with pytest.raises(MixtureError):
        Mixture.from_array(("a", "b"), np.array(r_M))


def test_stacking_takes_the_first_order_of_domains() -> None:
    rows = stack_mixtures([Mixture.of({"a": 0.3, "b": 0.7}), Mixture.of({"b": 0.6, "a": 0.4})])
    assert rows.tolist() == [[0.3, 0.7], [0.4, 0.6]]


def test_stacking_nothing_says_so() -> None:
    with pytest.raises(MixtureError) as error:
        stack_mixtures([])
    assert str(error.value) == "at least one mixture is needed, found none"


@given(bounds(), st.data())
def test_nearest_lies_within_floors_and_caps(between: Bounds, data: st.DataObject) -> None:
    allowed = simplex_between(between)
    size = len(allowed.names)
    point = np.array(data.draw(st.lists(st.floats(-2.0, 2.0), min_size=size, max_size=size)))
    assert allowed.contains(allowed.nearest(point), tolerance=1e-12)


@given(bounds(), st.data())
def test_nearest_is_the_euclidean_projection(between: Bounds, data: st.DataObject) -> None:
    allowed = simplex_between(between)
    size = len(allowed.names)
    point = np.array(data.draw(st.lists(st.floats(-1.0, 1.0), min_size=size, max_size=size)))
    near = allowed.nearest(point)
    # Of a convex set: no allowed direction points closer to the point.
    assert (near - point) @ (allowed.linear_minimum(near - point) - near) >= -1e-9


@given(bounds(), st.data())
def test_linear_minimum_is_allowed_and_no_vertex_is_cheaper(
    between: Bounds, data: st.DataObject
) -> None:
    allowed = simplex_between(between)
    size = len(allowed.names)
    cost = np.array(data.draw(st.lists(st.floats(-1.0, 1.0), min_size=size, max_size=size)))
    least = allowed.linear_minimum(cost)
    assert allowed.contains(least, tolerance=1e-9)
    rng = np.random.default_rng(0)
    for _ in range(5):
        other = allowed.nearest(rng.normal(size=size))
        assert cost @ least <= cost @ other + 1e-9


@given(bounds())
def test_an_allowed_mixture_is_its_own_nearest(between: Bounds) -> None:
    allowed = simplex_between(between)
    near = allowed.nearest(np.zeros(len(allowed.names)))
    assert np.allclose(allowed.nearest(near), near, rtol=0, atol=1e-14)


@settings(max_examples=15)
@given(bounds(), st.integers(0, 1000))
def test_nearest_agrees_with_a_general_solver(between: Bounds, seed: int) -> None:
    allowed = simplex_between(between)
    assume(len(allowed.names) <= 6)
    point = np.random.default_rng(seed).normal(size=len(allowed.names))
    near = allowed.nearest(point)
    found = minimize(
        lambda r: float(np.sum((r - point) ** 2)),
        near,
        jac=lambda r: 2 * (r - point),
        bounds=list(zip(allowed.floors, allowed.caps, strict=True)),
        constraints={"type": "eq", "fun": lambda r: np.sum(r) - 1},
        method="SLSQP",
    )
    assert np.sum((near - point) ** 2) <= found.fun + 1e-9


def test_floors_of_exactly_one_over_m_leave_the_uniform_mixture() -> None:
    names = [f"d{i}" for i in range(25)]
    allowed = CappedSimplex.of(names, floors=1 / 25)
    corner = np.eye(25)[3]
    assert np.allclose(allowed.nearest(corner), 1 / 25, rtol=0, atol=1e-15)
    assert np.allclose(allowed.linear_minimum(corner), 1 / 25, rtol=0, atol=1e-15)


def test_caps_that_sum_to_exactly_one_leave_one_mixture() -> None:
    caps = {"a": 0.1, "b": 0.2, "c": 0.7}
    allowed = CappedSimplex.of(tuple(caps), caps=caps)
    assert np.allclose(allowed.nearest(np.array([0.9, 0.05, 0.05])), [0.1, 0.2, 0.7], atol=1e-15)


@pytest.mark.parametrize(
    ("floors", "caps", "message"),
    [
        (
            {"a": 0.5},
            {"a": 0.4},
            "the cap of 'a' (0.4) is below its floor (0.5)\n"
            "  do: lower the floor, or allow more tokens or epochs of this domain",
        ),
        (
            0.6,
            None,
            "floors must sum to at most 1, but they sum to 1.2\n  do: lower the floors",
        ),
        (
            0.0,
            {"a": 0.3, "b": 0.4},
            "caps must sum to at least 1, but they sum to 0.7\n  do: allow more tokens or epochs",
        ),
        (-0.1, None, "floor and cap must lie in [0, 1], but 'a' has -0.1 and 1"),
        (1.5, None, "floor and cap must lie in [0, 1], but 'a' has 1.5 and 1"),
        (math.nan, None, "floor and cap must lie in [0, 1], but 'a' has nan and 1"),
        ({"c": 0.1}, None, "'c' is no domain here\n  do: the domains are a, b"),
        (0.0, {"c": 0.1}, "'c' is no domain here\n  do: the domains are a, b"),
    ],
)
def test_conflicting_bounds_say_which(
    floors: float | dict[str, float], caps: dict[str, float] | None, message: str
) -> None:
    with pytest.raises(MixtureError) as error:
        CappedSimplex.of(("a", "b"), floors=floors, caps=caps)
    assert str(error.value) == message
