"""Constraints as a team states them, and the region of mixtures that they leave at a scale.

Shape letters: R runs, M training domains.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from mixlaw.domains import Domain, Scale, check_domains
from mixlaw.errors import OptimizeError
from mixlaw.mixtures import Mixture
from mixlaw.optimize.feasibility import require_feasible
from mixlaw.optimize.region import (
    ConstraintName,
    Distance,
    KLBall,
    L1Ball,
    LinearBound,
    Region,
    RunsBall,
    Sense,
)

_Shares = Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupBound:
    """Limits of the sum of several domains' shares."""

    domains: tuple[str, ...]
    """The domains of the group; groups may overlap."""
    low: float | None = None
    """Least share of the group; None: none."""
    high: float | None = None
    """Largest share of the group; None: none."""

    def __post_init__(self) -> None:
        if not self.domains or len(set(self.domains)) < len(self.domains):
            raise OptimizeError(
                f"a group must name each of its domains once, found {list(self.domains)}"
            )
        for limit in (self.low, self.high):
            _check_share(limit, f"the group {self.subject}")
        if self.low is None and self.high is None:
            raise OptimizeError(f"the group {self.subject} must have a least or a largest share")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise OptimizeError(
                f"the group {self.subject} has a least share of {self.low:g} above its largest,"
                f" {self.high:g}"
            )

    @property
    def subject(self) -> str:
        """The group's domains: `web+cc`."""
        return "+".join(self.domains)


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraints:
    """What a mixture must satisfy, in shares of the tokens of the scale."""

    domains: tuple[Domain, ...]
    """All domains; their token supply and epochs cap their shares."""
    floors: _Shares = field(default_factory=dict[str, float])
    """Least share by domain."""
    caps: _Shares = field(default_factory=dict[str, float])
    """Largest share by domain, where the token supply allows more."""
    groups: tuple[GroupBound, ...] = ()
    """Limits of sums of shares."""
    fixed: _Shares = field(default_factory=dict[str, float])
    """Shares that must be as given."""
    reference: Mixture | None = None
    """The mixture that distances are measured from."""
    kl_to_reference: float | None = None
    """Largest sum of r log(r / reference), in nats; None: any."""
    l1_to_reference: float | None = None
    """Largest sum of absolute differences, twice the share that moves; None: any."""
    distance_to_runs: float | None = None
    """Largest share that must move to reach the convex hull of the runs' mixtures; None: any."""

    def __post_init__(self) -> None:
        check_domains(self.domains)
        for shares, what in ((self.floors, "floor"), (self.caps, "cap"), (self.fixed, "share")):
            for name, share in shares.items():
                self._check_name(name, f"the constraints give a {what} of")
                _check_share(share, f"the {what} of {name!r}")
        for group in self.groups:
            for name in group.domains:
                self._check_name(name, "a group of the constraints holds")
        for field_name in ("kl_to_reference", "l1_to_reference", "distance_to_runs"):
            self._check_distance(field_name)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the domains."""
        return tuple(domain.name for domain in self.domains)

    def region(
        self, scale: Scale | None = None, *, runs_RM: Float[np.ndarray, "R M"] | None = None
    ) -> Region:
        """Returns the mixtures that the constraints leave.

        Args:
            scale: The run that is to be decided: its tokens turn supplies into caps. None: the
                supply does not bind.
            runs_RM: Token shares of the runs, for `distance_to_runs`.

        Raises:
            OptimizeError: Constraints conflict, the reference lacks a domain, or there are no runs.
        """
        floors = {name: float(self.floors.get(name, 0.0)) for name in self.names}
        floor_names = {n: ConstraintName("floor", n, f"floor of {n}") for n in self.names}
        caps, cap_names = self._caps(scale)
        linear = [bound for group in self.groups for bound in self._group_bounds(group)]
        for name, share in self.fixed.items():
            fixed = ConstraintName("fixed", name, f"fixed share of {name}")
            if floors[name] <= share <= caps[name]:
                floors[name] = caps[name] = float(share)
                floor_names[name] = cap_names[name] = fixed
            else:  # kept beside the bounds, so that the conflict has its names
                linear.append(self._sum_bound(fixed, (name,), "equal", float(share)))
        distances = self._distances(caps, runs_RM)
        region = Region(
            names=self.names,
            floors=tuple(floors.values()),
            caps=tuple(caps.values()),
            floor_names=tuple(floor_names.values()),
            cap_names=tuple(cap_names.values()),
            linear=tuple(linear),
            distances=distances,
        )
        require_feasible(region)
        return self._pinned(region)

    def _pinned(self, region: Region) -> Region:
        """Returns the one mixture that a distance of 0 leaves; else the region."""
        for distance in region.distances:
            if distance.limit == 0 and isinstance(distance, L1Ball):
                shares = tuple(map(float, distance.reference_M))
                names = (distance.name,) * len(shares)
                return Region(
                    names=self.names, floors=shares, caps=shares, floor_names=names, cap_names=names
                )
        return region

    def _caps(self, scale: Scale | None) -> tuple[dict[str, float], dict[str, ConstraintName]]:
        caps: dict[str, float] = {}
        names: dict[str, ConstraintName] = {}
        for domain in self.domains:
            name, given = domain.name, float(self.caps.get(domain.name, 1.0))
            supply = 1.0 if scale is None else domain.cap(scale)
            caps[name] = min(given, supply)
            text = f"cap of {name}" + (" (token supply)" if supply < given else "")
            names[name] = ConstraintName("cap", name, text)
        return caps, names

    def _group_bounds(self, group: GroupBound) -> list[LinearBound]:
        if group.low is not None and group.low == group.high:
            text = f"group {group.subject} at {group.low:g}"
            name = ConstraintName("group", group.subject, text)
            return [self._sum_bound(name, group.domains, "equal", group.low)]
        bounds: list[LinearBound] = []
        sides: tuple[tuple[Sense, float | None], ...] = (
            ("at least", group.low),
            ("at most", group.high),
        )
        for sense, limit in sides:
            if limit is not None:
                text = f"group {group.subject} {sense} {limit:g}"
                name = ConstraintName("group", group.subject, text)
                bounds.append(self._sum_bound(name, group.domains, sense, limit))
        return bounds

    def _sum_bound(
        self, name: ConstraintName, domains: tuple[str, ...], sense: Sense, limit: float
    ) -> LinearBound:
        weight_M = np.array([float(domain in domains) for domain in self.names])
        return LinearBound(name=name, weight_M=weight_M, sense=sense, limit=limit)

    def _distances(
        self, caps: dict[str, float], runs_RM: Float[np.ndarray, "R M"] | None
    ) -> tuple[Distance, ...]:
        distances: list[Distance] = []
        if self.kl_to_reference is not None and self.reference is not None:
            limit, reference_M = self.kl_to_reference, self.reference.array(self.names)
            name = ConstraintName("kl", "", f"KL to the reference at most {limit:g}")
            if limit == 0:  # the reference itself, for which cones have no inside
                distances.append(L1Ball(name=name, reference_M=reference_M, limit=0.0))
            else:
                self._check_support(reference_M, caps)
                distances.append(KLBall(name=name, reference_M=reference_M, limit=limit))
        if self.l1_to_reference is not None and self.reference is not None:
            limit, reference_M = self.l1_to_reference, self.reference.array(self.names)
            name = ConstraintName("l1", "", f"L1 distance to the reference at most {limit:g}")
            distances.append(L1Ball(name=name, reference_M=reference_M, limit=limit))
        if self.distance_to_runs is not None:
            if runs_RM is None or len(runs_RM) == 0:
                raise OptimizeError(
                    "a limit of the distance to the runs needs the runs' mixtures, found none",
                    do="give `runs_RM`, or leave `distance_to_runs` out",
                )
            limit = self.distance_to_runs
            name = ConstraintName("distance", "", f"distance to the runs at most {limit:g}")
            distances.append(RunsBall(name=name, runs_RM=runs_RM, limit=limit))
        return tuple(distances)

    def _check_support(self, reference_M: Float[np.ndarray, " M"], caps: dict[str, float]) -> None:
        for name, share in zip(self.names, reference_M, strict=True):
            if share == 0 and caps[name] > 0:
                raise OptimizeError(
                    f"KL to the reference needs a share of every domain there, but {name!r} has 0:"
                    " any share of it would be infinitely far",
                    do=f"give {name!r} a small share in the reference, a cap of 0, or use"
                    " `l1_to_reference`",
                )

    def _check_distance(self, field_name: str) -> None:
        limit = getattr(self, field_name)
        if limit is None:
            return
        if not (np.isfinite(limit) and limit >= 0):
            raise OptimizeError(f"{field_name} must be finite and not negative, found {limit:g}")
        if field_name != "distance_to_runs" and self.reference is None:
            raise OptimizeError(
                f"{field_name} needs a reference mixture, found none",
                do="give the mixture that you would use today: [reference] in mixlaw.toml",
            )

    def _check_name(self, name: str, what: str) -> None:
        if name not in self.names:
            raise OptimizeError(
                f"{what} {name!r}, which is no domain here",
                do=f"the domains are {', '.join(self.names)}",
            )


def _check_share(share: float | None, whose: str) -> None:
    if share is not None and not 0 <= share <= 1:
        raise OptimizeError(f"{whose} must lie in [0, 1], found {share:g}")
