"""Constraints: what they cap, how they measure, and which of them contradict each other."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixlaw.domains import Domain, Scale
from mixlaw.errors import MixtureError, OptimizeError
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.optimize.constraints import Constraints, GroupBound
from mixlaw.optimize.feasibility import find_conflict
from mixlaw.optimize.region import ConstraintName, LinearBound, Region, distance_to_hull
from random_problems import domain_names, random_bounds

NAMES = domain_names(4)
UNIFORM = Mixture.uniform(NAMES)
RUNS = np.array([[0.25, 0.25, 0.25, 0.25], [0.1, 0.3, 0.3, 0.3]])


def domains(tokens: float | None = None, *, epochs: float = 1.0) -> tuple[Domain, ...]:
    return tuple(Domain(name=name, available_tokens=tokens, max_epochs=epochs) for name in NAMES)


def conflict(scale: Scale | None = None, **stated: Any) -> OptimizeError:
    given_domains = stated.pop("domains", domains())
    with pytest.raises(OptimizeError) as caught:
        Constraints(domains=given_domains, **stated).region(scale, runs_RM=RUNS)
    return caught.value


def test_caps_come_from_tokens_and_epochs_at_the_scale() -> None:
    stated = Constraints(domains=domains(10, epochs=4), caps={"d1": 0.3, "d2": 0.9})
    region = stated.region(Scale(tokens=100))
    assert region.caps == (0.4, 0.3, 0.4, 0.4)
    assert [str(name) for name in region.cap_names] == [
        "cap of d0 (token supply)",
        "cap of d1",
        "cap of d2 (token supply)",
        "cap of d3 (token supply)",
    ]
    assert stated.region().caps == (1.0, 0.3, 0.9, 1.0)


def test_what_excludes_nothing_has_no_name() -> None:
    assert Constraints(domains=domains()).region().constraint_names == ()
    region = Constraints(domains=domains(), floors={"d2": 0.1, "d3": 0.0}).region()
    assert [str(name) for name in region.constraint_names] == ["floor of d2"]


def test_names_say_what_is_limited() -> None:
    region = Constraints(
        domains=domains(),
        fixed={"d0": 0.3},
        groups=(GroupBound(domains=("d1", "d2"), low=0.1, high=0.6),),
        reference=UNIFORM,
        kl_to_reference=0.5,
        l1_to_reference=0.4,
        distance_to_runs=0.2,
    ).region(runs_RM=RUNS)
    assert [str(name) for name in region.constraint_names] == [
        "fixed share of d0",
        "group d1+d2 at least 0.1",
        "group d1+d2 at most 0.6",
        "KL to the reference at most 0.5",
        "L1 distance to the reference at most 0.4",
        "distance to the runs at most 0.2",
    ]


def test_slack_is_the_room_that_is_left() -> None:
    region = Constraints(
        domains=domains(),
        floors={"d0": 0.1},
        caps={"d1": 0.4},
        groups=(GroupBound(domains=("d1", "d2"), low=0.3),),
        reference=UNIFORM,
        kl_to_reference=0.5,
        l1_to_reference=0.4,
        distance_to_runs=0.2,
    ).region(runs_RM=RUNS)
    r_M = np.array([0.3, 0.3, 0.2, 0.2])
    # KL: 0.6 log 1.2 + 0.4 log 0.8; to the hull: 0.05 must move from d0 and 0.05 from d1.
    assert {str(name): room for name, room in region.slack(r_M).items()} == pytest.approx(
        {
            "floor of d0": 0.2,
            "cap of d1": 0.1,
            "group d1+d2 at least 0.3": 0.2,
            "KL to the reference at most 0.5": 0.5 - 0.6 * np.log(1.2) - 0.4 * np.log(0.8),
            "L1 distance to the reference at most 0.4": 0.2,
            "distance to the runs at most 0.2": 0.1,
        }
    )


def test_distance_to_the_hull_is_the_share_that_must_move() -> None:
    runs = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert distance_to_hull(np.array([0.3, 0.7, 0.0]), runs) == pytest.approx(0.0, abs=1e-12)
    assert distance_to_hull(np.array([0.3, 0.5, 0.2]), runs) == pytest.approx(0.2)
    assert distance_to_hull(np.array([0.0, 0.0, 1.0]), runs) == pytest.approx(1.0)


def test_floors_that_exceed_one_are_named_with_what_each_must_give() -> None:
    error = conflict(floors={"d0": 0.6, "d1": 0.5, "d2": 0.1})
    assert str(error) == (
        "these constraints can't hold together: floor of d0 at 0.6 and floor of d1 at 0.5\n"
        "  do: loosen one of them: floor of d0 by 0.1 or floor of d1 by 0.1"
    )


def test_a_supply_that_is_too_small_is_named() -> None:
    error = conflict(Scale(tokens=100), domains=domains(20))
    assert "cap of d0 (token supply) at 0.2" in error.problem
    assert "by 0.2" in str(error.do)
    assert "`max_epochs`" in str(error.do)


def test_a_fixed_share_above_the_supply_is_named() -> None:
    error = conflict(Scale(tokens=100), domains=domains(50), fixed={"d0": 0.6})
    assert error.problem == (
        "these constraints can't hold together: fixed share of d0 at 0.6 and cap of d0"
        " (token supply) at 0.5"
    )


@pytest.mark.parametrize(
    ("stated", "parts"),
    [
        (
            {
                "floors": {"d2": 0.1},
                "caps": {"d1": 0.2, "d3": 0.5},
                "groups": (
                    GroupBound(domains=("d0", "d1"), low=0.8),
                    GroupBound(domains=("d1", "d2"), low=0.5),
                ),
            },
            # 0.8 + 0.5 - 0.2 = 1.1: by 0.1 too much
            {
                "cap of d1": 0.1,
                "group d0+d1 at least 0.8": 0.1,
                "group d1+d2 at least 0.5": 0.1,
            },
        ),
        (
            {"reference": UNIFORM, "l1_to_reference": 0.1, "floors": {"d0": 0.6}},
            # 0.35 more of d0 is an L1 distance of 0.7
            {"floor of d0": 0.3, "L1 distance to the reference at most 0.1": 0.6},
        ),
        (
            {"reference": UNIFORM, "kl_to_reference": 0.0, "floors": {"d0": 0.6}},
            {"floor of d0": 0.35, "KL to the reference at most 0": 0.7},
        ),
        (
            {"distance_to_runs": 0.1, "floors": {"d0": 0.6}, "caps": {"d3": 0.9}},
            {"floor of d0": 0.25, "distance to the runs at most 0.1": 0.25},
        ),
        (
            {
                "fixed": {"d0": 0.5},
                "groups": (GroupBound(domains=("d0", "d1"), high=0.3),),
                "floors": {"d2": 0.1},
            },
            {"fixed share of d0": 0.2, "group d0+d1 at most 0.3": 0.2},
        ),
    ],
)
def test_conflicts_are_irreducible_and_say_how_much(
    stated: dict[str, Any], parts: dict[str, float]
) -> None:
    error = conflict(**stated)
    for name, give in parts.items():
        assert name in error.problem
        assert f"{name} by {give:.4g}" in str(error.do)
    assert error.problem.count(" of ") + error.problem.count("group") + error.problem.count(
        " to the "
    ) == len(parts)


def test_a_kl_conflict_says_how_much_divergence_would_do() -> None:
    error = conflict(reference=UNIFORM, kl_to_reference=0.05, floors={"d0": 0.6})
    needed = 0.6 * np.log(0.6 / 0.25) + 0.4 * np.log(0.4 / 3 / 0.25)
    assert f"KL to the reference at most 0.05 by {needed - 0.05:.4g}" in str(error.do)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_giving_way_by_what_is_said_resolves_a_conflict(seed: int) -> None:
    rng = np.random.default_rng(seed)
    free = Constraints(domains=domains()).region()
    made: dict[ConstraintName, LinearBound] = {}
    for number in range(3):
        name = ConstraintName("group", str(number), f"group {number}")
        weight_M = np.zeros(4)
        weight_M[rng.choice(4, 2, replace=False)] = 1.0
        limit = float(rng.uniform(0.4, 0.9))
        made[name] = LinearBound(name=name, weight_M=weight_M, sense="at least", limit=limit)
    region = Region(
        names=free.names,
        floors=free.floors,
        caps=(0.4, 1.0, 1.0, 1.0),
        floor_names=free.floor_names,
        cap_names=free.cap_names,
        linear=tuple(made.values()),
    )
    found = find_conflict(region)
    if found is None:
        return
    for name, give in found.gives.items():
        others = [bound for bound in made.values() if bound.name in found.gives]
        keeps_cap = any(other.kind == "cap" for other in found.gives)
        only = Region(
            names=free.names,
            floors=free.floors,
            caps=region.caps if keeps_cap else free.caps,
            floor_names=free.floor_names,
            cap_names=free.cap_names,
            linear=tuple(others),
        )
        assert find_conflict(only) is not None
        sign = 1.0 if name.kind == "cap" else -1.0
        assert find_conflict(only.shifted(name, sign * (give + 1e-6))) is None
        assert find_conflict(only.shifted(name, sign * (give - 1e-4))) is not None


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"floors": {"d9": 0.1}}, "give a floor of 'd9', which is no domain here"),
        ({"caps": {"d9": 0.1}}, "give a cap of 'd9', which is no domain here"),
        ({"fixed": {"d9": 0.1}}, "give a share of 'd9', which is no domain here"),
        ({"floors": {"d0": -0.1}}, r"the floor of 'd0' must lie in \[0, 1\], found -0.1"),
        ({"caps": {"d0": 1.1}}, r"the cap of 'd0' must lie in \[0, 1\], found 1.1"),
        ({"caps": {"d0": float("nan")}}, "the cap of 'd0' must lie in"),
        ({"kl_to_reference": 0.5}, "kl_to_reference needs a reference mixture"),
        ({"l1_to_reference": 0.5}, "l1_to_reference needs a reference mixture"),
        (
            {"reference": UNIFORM, "kl_to_reference": -1.0},
            "kl_to_reference must be finite and not negative, found -1",
        ),
    ],
)
def test_impossible_constraints_are_refused(stated: dict[str, Any], message: str) -> None:
    with pytest.raises(OptimizeError, match=message):
        Constraints(domains=domains(), **stated)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"domains": ("a", "b")}, r"the group a\+b must have a least or a largest share"),
        ({"domains": (), "low": 0.1}, "a group must name each of its domains once"),
        ({"domains": ("a", "a"), "low": 0.1}, "a group must name each of its domains once"),
        ({"domains": ("a",), "low": 0.5, "high": 0.4}, "has a least share of 0.5 above"),
        ({"domains": ("a",), "low": 1.5}, r"must lie in \[0, 1\]"),
    ],
)
def test_impossible_groups_are_refused(stated: dict[str, Any], message: str) -> None:
    with pytest.raises(OptimizeError, match=message):
        GroupBound(**stated)


def test_a_group_of_unknown_domains_is_refused() -> None:
    with pytest.raises(OptimizeError, match="a group of the constraints holds 'x'"):
        Constraints(domains=domains(), groups=(GroupBound(domains=("d0", "x"), low=0.1),))


def test_kl_to_a_reference_without_a_domain_says_the_way_out() -> None:
    reference = Mixture.of({"d0": 0.5, "d1": 0.5, "d2": 0.0, "d3": 0.0})
    stated: dict[str, Any] = {"reference": reference, "kl_to_reference": 0.5}
    error = conflict(**stated)
    assert "'d2' has 0" in error.problem
    assert "`l1_to_reference`" in str(error.do)
    # Where those domains may not be used, there is nothing to be infinite.
    region = Constraints(domains=domains(), caps={"d2": 0.0, "d3": 0.0}, **stated).region()
    assert region.contains(reference.array(), 1e-9)


def test_a_distance_to_runs_needs_runs() -> None:
    with pytest.raises(OptimizeError, match="needs the runs' mixtures, found none"):
        Constraints(domains=domains(), distance_to_runs=0.1).region()


def test_no_distance_to_the_runs_leaves_their_means() -> None:
    runs_RM = np.array([[0.6, 0.2, 0.1, 0.1], [0.2, 0.6, 0.1, 0.1], [0.2, 0.2, 0.5, 0.1]])
    region = Constraints(domains=domains(), distance_to_runs=0.0).region(runs_RM=runs_RM)
    nearest_M = region.nearest(np.array([1.0, 0.0, 0.0, 0.0]))
    assert nearest_M == pytest.approx(runs_RM[0], abs=1e-6)
    assert distance_to_hull(nearest_M, runs_RM) < 1e-9
    with pytest.raises(OptimizeError, match="distance to the runs at most 0"):
        Constraints(domains=domains(), floors={NAMES[0]: 0.7}, distance_to_runs=0.0).region(
            runs_RM=runs_RM
        )


def test_no_distance_to_the_reference_leaves_the_reference() -> None:
    for stated in ({"kl_to_reference": 0.0}, {"l1_to_reference": 0.0}):
        region = Constraints(domains=domains(), reference=UNIFORM, **stated).region()
        assert region.nearest(np.array([1.0, 0, 0, 0])) == pytest.approx(UNIFORM.array())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_nearest_mixture_is_allowed_and_the_nearest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    region = Constraints(
        domains=domains(),
        caps={"d0": 0.6},
        groups=(GroupBound(domains=("d0", "d1"), low=0.2, high=0.7),),
        reference=UNIFORM,
        kl_to_reference=0.3,
        distance_to_runs=0.3,
    ).region(runs_RM=RUNS)
    point_M, other_M = rng.dirichlet(np.full(4, 0.3), 2)
    near_M = region.nearest(point_M)
    assert region.contains(near_M, 1e-9)
    allowed_M = region.nearest(other_M)
    # The projection makes an obtuse angle with every allowed mixture.
    assert (point_M - near_M) @ (allowed_M - near_M) <= 1e-7
    cheap_M = region.linear_minimum(point_M)
    assert region.contains(cheap_M, 1e-9)
    assert cheap_M @ point_M <= allowed_M @ point_M + 1e-8


def test_a_region_of_floors_and_caps_is_the_capped_simplex() -> None:
    simplex = random_bounds(6)
    region, cost = Region.of(simplex), np.random.default_rng(0).normal(size=6)
    assert np.array_equal(region.linear_minimum(cost), simplex.linear_minimum(cost))
    assert np.array_equal(region.nearest(cost), simplex.nearest(cost))
    assert Region.of(region) is region


def test_a_linear_minimum_fills_the_cheapest_first() -> None:
    simplex = CappedSimplex(("a", "b", "c"), (0.1, 0.0, 0.2), (0.5, 0.6, 1.0))
    assert simplex.linear_minimum(np.array([2.0, 1.0, 3.0])) == pytest.approx([0.2, 0.6, 0.2])


def test_reordering_keeps_what_is_allowed() -> None:
    region = Constraints(
        domains=domains(),
        floors={"d1": 0.1},
        groups=(GroupBound(domains=("d0", "d1"), low=0.3),),
        reference=UNIFORM,
        l1_to_reference=0.5,
        distance_to_runs=0.1,
    ).region(runs_RM=RUNS)
    turned = region.reordered(NAMES[::-1])
    r_M = np.random.default_rng(0).dirichlet(np.ones(4))
    assert turned.slack(r_M[::-1]) == pytest.approx(region.slack(r_M))
    with pytest.raises(MixtureError):
        region.reordered(("d0", "d1", "d2", "x"))


def test_shifting_an_unknown_constraint_is_refused() -> None:
    region = Constraints(domains=domains()).region()
    with pytest.raises(OptimizeError, match="no constraint is called 'nothing'"):
        region.shifted(ConstraintName("group", "", "nothing"), 0.1)


def test_a_single_domain_needs_no_mixture() -> None:
    with pytest.raises(Exception, match="at least two domains"):
        Constraints(domains=(Domain(name="a"),))


def test_a_point_that_breaks_a_ball_by_rounding_needs_no_projection() -> None:
    # Met on the demo with `mixlaw optimize --cap code=0.3 --kl 0.05`: Clarabel made no progress.
    names = domain_names(5)
    reference = (
        0.38229100610301836, 0.27797375682673015, 0.05320312302698166, 0.1574377147164307,
        0.1290943993268391,
    )  # fmt: skip
    region = Constraints(
        domains=tuple(Domain(name=name) for name in names),
        floors=dict.fromkeys(names, 0.04),
        caps={"d1": 0.3},
        reference=Mixture.of(dict(zip(names, reference, strict=True))),
        kl_to_reference=0.05,
    ).region()
    point_M = np.array([
        0.28725634591651483, 0.29915308029953114, 0.06701895768224911, 0.12024535117071478,
        0.22632626493099028,
    ])  # fmt: skip
    assert not region.contains(point_M, 0.0)
    moved_M = region.nearest(point_M)
    assert region.contains(moved_M, 1e-12)
    assert np.max(np.abs(moved_M - point_M)) < 1e-8
