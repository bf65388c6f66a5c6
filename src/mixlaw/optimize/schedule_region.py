"""The schedules that constraints of mixtures allow.

A schedule is a row of shares x_sj of all tokens by stage and domain (`mixlaw.laws.stages`), so its
region is one of mixtures over these pairs. What bounds a mixture bounds the whole run: the token
supply caps sum_s x_sj. What keeps a prediction between the runs bounds each stage.

Shape letters: R runs, S stages, M training domains, X = S M columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from mixlaw.errors import OptimizeError
from mixlaw.laws.stages import stage_columns
from mixlaw.optimize.feasibility import require_feasible
from mixlaw.optimize.region import (
    ConstraintName,
    Distance,
    LinearBound,
    Region,
    RunsBall,
)


def schedule_region(
    region: Region,
    fractions: Sequence[float],
    *,
    stage_floors: Mapping[str, float] | None = None,
    stage_caps: Mapping[str, float] | None = None,
    runs_RX: Float[np.ndarray, "R X"] | None = None,
) -> Region:
    """Returns the schedules whose whole run is an allowed mixture.

    A distance to a reference is the mean over stages of their distances: of a constant schedule
    that of its mixture, of any other at least that of its whole run.

    Args:
        region: The mixtures that are allowed.
        fractions: Share of the tokens that each stage takes.
        stage_floors: Least share of a domain inside each stage; those of the region by default.
        stage_caps: Largest share of a domain inside each stage; none by default.
        runs_RX: Schedules of the runs, for a distance to them.

    Raises:
        OptimizeError: A stage's limits name no domain, or conflict with the others.
    """
    num_stages, size = len(fractions), len(region.names)
    fraction_S = np.array(fractions)
    floors = dict(zip(region.names, region.floors, strict=True))
    floor_M = _by_domain(region, stage_floors, floors)
    cap_M = _by_domain(region, stage_caps, dict.fromkeys(region.names, 1.0))
    found = Region(
        names=stage_columns(region.names, num_stages),
        floors=tuple(np.outer(fraction_S, floor_M).ravel().tolist()),
        caps=tuple(np.outer(fraction_S, cap_M).ravel().tolist()),
        floor_names=_stage_names(region, "floor", num_stages),
        cap_names=_stage_names(region, "cap", num_stages),
        linear=(
            *_stage_sums(fraction_S, size),
            *_whole_run_bounds(region, num_stages, floor_M, cap_M),
            *(replace(b, weight_M=np.tile(b.weight_M, num_stages)) for b in region.linear),
        ),
        distances=tuple(_widen(d, fraction_S, runs_RX) for d in region.distances),
    )
    if stage_floors is not None or stage_caps is not None:
        require_feasible(found)
    return found


def constant_schedules(region: Region, fractions: Sequence[float]) -> Region:
    """Returns the schedules of a region that keep to one mixture: each stage has the first's."""
    size = len(region.names) // len(fractions)
    equal: list[LinearBound] = []
    for s in range(1, len(fractions)):
        for j in range(size):
            weight_X = np.zeros(len(region.names))
            weight_X[s * size + j], weight_X[j] = 1 / fractions[s], -1 / fractions[0]
            name = ConstraintName("group", f"{s}/{j}", f"{region.names[s * size + j]} as before")
            equal.append(LinearBound(name=name, weight_M=weight_X, sense="equal", limit=0.0))
    return replace(region, linear=(*region.linear, *equal))


def _by_domain(
    region: Region, given: Mapping[str, float] | None, default: Mapping[str, float]
) -> Float[np.ndarray, " M"]:
    for name in given or ():
        if name not in region.names:
            raise OptimizeError(
                f"a stage's limits name {name!r}, which is no domain here",
                do=f"the domains are {', '.join(region.names)}",
            )
    chosen = {**default, **(given or {})}
    return np.array([float(chosen[name]) for name in region.names])


def _stage_names(region: Region, kind: str, num_stages: int) -> tuple[ConstraintName, ...]:
    is_cap = kind == "cap"
    return tuple(
        ConstraintName(
            "cap" if is_cap else "floor", f"{name}/{s}", f"{kind} of {name} in stage {s + 1}"
        )
        for s in range(num_stages)
        for name in region.names
    )


def _stage_sums(fraction_S: Float[np.ndarray, " S"], size: int) -> list[LinearBound]:
    """Returns that each stage takes its fraction of the tokens; the last one follows."""
    bounds: list[LinearBound] = []
    for s, fraction in enumerate(fraction_S[:-1]):
        weight_X = np.zeros(len(fraction_S) * size)
        weight_X[s * size : (s + 1) * size] = 1.0
        name = ConstraintName("group", f"stage {s + 1}", f"tokens of stage {s + 1}")
        bounds.append(
            LinearBound(name=name, weight_M=weight_X, sense="equal", limit=float(fraction))
        )
    return bounds


def _whole_run_bounds(
    region: Region,
    num_stages: int,
    floor_M: Float[np.ndarray, " M"],
    cap_M: Float[np.ndarray, " M"],
) -> list[LinearBound]:
    """Returns the limits of each domain over all stages, where those of stages are wider."""
    bounds: list[LinearBound] = []
    for j in range(len(region.names)):
        weight_X = np.tile(np.eye(len(region.names))[j], num_stages)
        if region.caps[j] < min(1.0, cap_M[j]):
            cap = region.cap_names[j]
            bounds.append(
                LinearBound(name=cap, weight_M=weight_X, sense="at most", limit=region.caps[j])
            )
        if region.floors[j] > floor_M[j]:
            floor = region.floor_names[j]
            bounds.append(
                LinearBound(name=floor, weight_M=weight_X, sense="at least", limit=region.floors[j])
            )
    return bounds


def _widen(
    distance: Distance,
    fraction_S: Float[np.ndarray, " S"],
    runs_RX: Float[np.ndarray, "R X"] | None,
) -> Distance:
    if isinstance(distance, RunsBall):
        if runs_RX is None:
            raise OptimizeError("a distance to the runs needs the schedules of the runs")
        return replace(distance, runs_RM=runs_RX)
    return replace(distance, reference_M=np.outer(fraction_S, distance.reference_M).ravel())
