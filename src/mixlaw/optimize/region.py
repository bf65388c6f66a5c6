"""The mixtures that constraints allow: a convex set whose constraints have names.

Shape letters: R runs, M training domains.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from mixlaw.errors import OptimizeError
from mixlaw.mixtures import SUM_TOLERANCE, CappedSimplex, Mixture

Kind = Literal["cap", "floor", "fixed", "group", "kl", "l1", "distance"]
Sense = Literal["at least", "at most", "equal"]


@dataclass(frozen=True, slots=True)
class ConstraintName:
    """What a constraint is called."""

    kind: Kind
    subject: str
    """The domain, or the group as `web+cc`; empty for distances."""
    text: str
    """As it is shown: `cap of code (token supply)`."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LinearBound:
    """A limit of a weighted sum of shares."""

    name: ConstraintName
    weight_M: Float[np.ndarray, " M"]
    sense: Sense
    limit: float

    def slack(self, r_M: Float[np.ndarray, " M"]) -> float:
        """Returns how much room is left; negative where the limit is broken."""
        over = float(self.weight_M @ r_M) - self.limit
        return {"at least": over, "at most": -over, "equal": -abs(over)}[self.sense]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KLBall:
    r"""The mixtures with $\sum_j r_j \log(r_j / p_j)$ up to a limit, in nats."""

    name: ConstraintName
    reference_M: Float[np.ndarray, " M"]
    """p; where it is 0, the share is 0 as well."""
    limit: float

    def slack(self, r_M: Float[np.ndarray, " M"]) -> float:
        """Returns how much room is left; negative where the limit is broken."""
        used_M = (r_M > 0) & (self.reference_M > 0)
        ratio = np.log(r_M[used_M] / self.reference_M[used_M])
        return self.limit - float(r_M[used_M] @ ratio)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class L1Ball:
    """The mixtures whose shares differ from a reference's by a sum up to a limit."""

    name: ConstraintName
    reference_M: Float[np.ndarray, " M"]
    limit: float

    def slack(self, r_M: Float[np.ndarray, " M"]) -> float:
        """Returns how much room is left; negative where the limit is broken."""
        return self.limit - float(np.sum(np.abs(r_M - self.reference_M)))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunsBall:
    """The mixtures of which at most a share must move to reach the convex hull of the runs."""

    name: ConstraintName
    runs_RM: Float[np.ndarray, "R M"]
    limit: float

    def slack(self, r_M: Float[np.ndarray, " M"]) -> float:
        """Returns how much room is left; negative where the limit is broken."""
        return self.limit - distance_to_hull(r_M, self.runs_RM)


Distance = KLBall | L1Ball | RunsBall


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Region:
    """The mixtures that are allowed, by named constraints; `Constraints.region` makes one."""

    names: tuple[str, ...]
    """Domains, in the order of the shares."""
    floors: tuple[float, ...]
    caps: tuple[float, ...]
    cap_names: tuple[ConstraintName, ...]
    floor_names: tuple[ConstraintName, ...]
    linear: tuple[LinearBound, ...] = ()
    """Of groups."""
    distances: tuple[Distance, ...] = ()

    @classmethod
    def of(cls, simplex: "CappedSimplex | Region") -> "Region":
        """Returns floors and caps as a region; a region as it is."""
        if isinstance(simplex, Region):
            return simplex
        return cls(
            names=simplex.names,
            floors=simplex.floors,
            caps=simplex.caps,
            cap_names=tuple(ConstraintName("cap", n, f"cap of {n}") for n in simplex.names),
            floor_names=tuple(ConstraintName("floor", n, f"floor of {n}") for n in simplex.names),
        )

    @property
    def floor_M(self) -> Float[np.ndarray, " M"]:
        """Floors as an array."""
        return np.array(self.floors)

    @property
    def cap_M(self) -> Float[np.ndarray, " M"]:
        """Caps as an array."""
        return np.array(self.caps)

    @property
    def has_only_bounds(self) -> bool:
        """Whether floors and caps are all there is."""
        return not self.linear and not self.distances

    @property
    def box(self) -> CappedSimplex:
        """Floors and caps alone."""
        return CappedSimplex(self.names, self.floors, self.caps)

    @property
    def constraint_names(self) -> tuple[ConstraintName, ...]:
        """Names of all constraints that exclude something: not a floor of 0, nor a cap of 1."""
        floors = zip(self.floor_names, self.floors, strict=True)
        caps = zip(self.cap_names, self.caps, strict=True)
        named = [name for name, floor in floors if floor > 0]
        named += [name for name, cap in caps if cap < 1]
        named += [bound.name for bound in (*self.linear, *self.distances)]
        return tuple(dict.fromkeys(named))

    def slack(self, r_M: Float[np.ndarray, " M"]) -> dict[ConstraintName, float]:
        """Returns how much room a mixture leaves each constraint; negative: it is broken."""
        room: dict[ConstraintName, float] = {}
        for j in range(len(self.names)):
            for name, left in (
                (self.floor_names[j], float(r_M[j]) - self.floors[j]),
                (self.cap_names[j], self.caps[j] - float(r_M[j])),
            ):
                room[name] = min(room.get(name, left), left)
        for bound in (*self.linear, *self.distances):
            room[bound.name] = bound.slack(r_M)
        named = set(self.constraint_names)
        return {name: left for name, left in room.items() if name in named}

    def contains(self, r_M: Float[np.ndarray, " M"], tolerance: float = SUM_TOLERANCE) -> bool:
        """Whether the proportions sum to one and no constraint is broken."""
        return self.box.contains(r_M, tolerance) and all(
            bound.slack(r_M) >= -tolerance for bound in (*self.linear, *self.distances)
        )

    def nearest(self, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        """Returns the closest allowed mixture in the Euclidean sense."""
        if self.has_only_bounds:
            return self.box.nearest(r_M)
        if self.contains(r_M, 0.0):
            return r_M
        from mixlaw.optimize.conic import project

        return project(self, r_M)

    def linear_minimum(self, cost_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        """Returns the allowed mixture that minimizes a linear cost."""
        if self.has_only_bounds:
            return self.box.linear_minimum(cost_M)
        from mixlaw.optimize.conic import minimize_linear

        return minimize_linear(self, cost_M)

    def limit_of(self, name: ConstraintName) -> float:
        """Returns the right-hand side of a constraint.

        Raises:
            OptimizeError: No constraint has this name.
        """
        limits = dict(zip(self.floor_names, self.floors, strict=True))
        limits.update(zip(self.cap_names, self.caps, strict=True))
        limits.update((bound.name, bound.limit) for bound in (*self.linear, *self.distances))
        if name not in limits:
            raise OptimizeError(f"no constraint is called {name.text!r}")
        return limits[name]

    def reordered(self, names: Sequence[str]) -> "Region":
        """Returns the same region with its domains in the order of `names`.

        Raises:
            MixtureError: The names are not those of the region.
        """
        if tuple(names) == self.names:
            return self
        Mixture.uniform(self.names).array(tuple(names))  # raises where the domains differ
        order = [self.names.index(name) for name in names]
        return replace(
            self,
            names=tuple(names),
            floors=tuple(self.floors[j] for j in order),
            caps=tuple(self.caps[j] for j in order),
            cap_names=tuple(self.cap_names[j] for j in order),
            floor_names=tuple(self.floor_names[j] for j in order),
            linear=tuple(replace(b, weight_M=b.weight_M[order]) for b in self.linear),
            distances=tuple(_reorder(distance, order) for distance in self.distances),
        )

    def shifted(self, name: ConstraintName, by: float) -> "Region":
        """Returns the region with the right-hand side of one constraint moved.

        Raises:
            OptimizeError: No constraint has this name.
        """
        self.limit_of(name)
        floors = zip(self.floors, self.floor_names, strict=True)
        caps = zip(self.caps, self.cap_names, strict=True)
        return replace(
            self,
            floors=tuple(limit + by * (own == name) for limit, own in floors),
            caps=tuple(limit + by * (own == name) for limit, own in caps),
            linear=tuple(replace(b, limit=b.limit + by * (b.name == name)) for b in self.linear),
            distances=tuple(
                replace(b, limit=b.limit + by * (b.name == name)) for b in self.distances
            ),
        )


def distance_to_hull(r_M: Float[np.ndarray, " M"], runs_RM: Float[np.ndarray, "R M"]) -> float:
    """Returns the share that must move to get from a mixture into the convex hull of runs."""
    from scipy.optimize import linprog

    runs_RM = np.unique(runs_RM, axis=0)
    num_runs, size = runs_RM.shape
    # Variables: the weights of the runs, and what each share lies above and below their mean.
    cost = np.concatenate([np.zeros(num_runs), np.full(2 * size, 0.5)])
    equal = np.hstack([runs_RM.T, np.eye(size), -np.eye(size)])
    whole = np.concatenate([np.ones(num_runs), np.zeros(2 * size)])
    found = linprog(
        cost,
        A_eq=np.vstack([equal, whole]),
        b_eq=np.append(r_M, 1.0),
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    return float(np.asarray(found.fun))


def _reorder(distance: Distance, order: list[int]) -> Distance:
    if isinstance(distance, RunsBall):
        return replace(distance, runs_RM=distance.runs_RM[:, order])
    return replace(distance, reference_M=distance.reference_M[order])
