"""Mixtures: points of the simplex of token shares, and the part of it that is allowed.

Shape letters: M training domains, R mixtures.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mixlaw.errors import MixtureError

SUM_TOLERANCE = 1e-9
"""How far a checked mixture's sum may be from one; what is imported is renormalised before."""


@dataclass(frozen=True, slots=True)
class Mixture(Mapping[str, float]):
    """Token shares of the training domains: finite, non-negative, summing to one."""

    names: tuple[str, ...]
    """Domains, in the order of `proportions`."""
    proportions: tuple[float, ...]
    """Share of each domain's tokens."""

    def __post_init__(self) -> None:
        if len(self.names) != len(self.proportions):
            raise MixtureError(
                f"a mixture needs one proportion per domain, found {len(self.proportions)} for"
                f" {len(self.names)} domains"
            )
        if len(set(self.names)) != len(self.names):
            raise MixtureError("a mixture names each domain once", where=f"{list(self.names)}")
        for name, share in zip(self.names, self.proportions, strict=True):
            if not math.isfinite(share):
                raise MixtureError(f"proportions must be finite, but {name!r} is {share}")
            if share < 0:
                raise MixtureError(f"proportions must not be negative, but {name!r} is {share:g}")
        total = math.fsum(self.proportions)
        if abs(total - 1.0) > SUM_TOLERANCE:
            raise MixtureError(
                f"proportions must sum to 1, but they sum to {total:.6g}",
                do="give token shares; `Mixture.normalized` rescales within a tolerance",
            )

    @classmethod
    def of(cls, proportions: Mapping[str, float]) -> "Mixture":
        """Returns the mixture with these shares, in this order."""
        return cls(tuple(proportions), tuple(float(share) for share in proportions.values()))

    @classmethod
    def from_array(cls, names: Sequence[str], r_M: Float[np.ndarray, " M"]) -> "Mixture":
        """Returns the mixture of an array of shares that sums to one up to rounding."""
        values = np.asarray(r_M, dtype=np.float64)
        if np.all(np.isfinite(values)) and np.all(values >= -1e-12):
            values = np.maximum(values, 0.0)
            total = math.fsum(values.tolist())
            if abs(total - 1.0) < 1e-6:
                values = values / total
        return cls(tuple(names), tuple(float(v) for v in values))

    @classmethod
    def normalized(
        cls, proportions: Mapping[str, float], *, tolerance: float = math.inf
    ) -> "Mixture":
        """Returns the shares divided by their sum.

        Raises:
            MixtureError: A share is negative or not finite, or the sum is not positive or further
                than `tolerance` from one.
        """
        values = {name: float(value) for name, value in proportions.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise MixtureError(f"proportions must be finite, but {name!r} is {value}")
            if value < 0:
                raise MixtureError(f"proportions must not be negative, but {name!r} is {value:g}")
        total = math.fsum(values.values())
        if total <= 0:
            raise MixtureError(f"proportions must have a positive sum, but they sum to {total:g}")
        if abs(total - 1.0) > tolerance:
            raise MixtureError(
                f"proportions must sum to 1 within {tolerance:g}, but they sum to {total:.6g}",
                do="give token shares, or allow more with a larger tolerance",
            )
        return cls.of({name: value / total for name, value in values.items()})

    @classmethod
    def uniform(cls, names: Sequence[str]) -> "Mixture":
        """Returns equal shares."""
        return cls.normalized(dict.fromkeys(names, 1.0))

    @property
    def mixture_id(self) -> str:
        """A hash of the shares to 12 digits, the same whatever the order of the domains.

        A share that rounds to nothing is one of 0, and a domain of share 0 may as well be missing.
        """
        digits = {name: f"{share:.12f}" for name, share in self.items() if share > 0}
        shares = sorted(item for item in digits.items() if float(item[1]) > 0)
        return hashlib.sha256(json.dumps(shares).encode()).hexdigest()[:16]

    def array(self, names: Sequence[str] | None = None) -> Float[np.ndarray, " M"]:
        """Returns the shares in the order of `names`.

        Raises:
            MixtureError: A name is missing from either side.
        """
        if names is None or tuple(names) == self.names:
            return np.array(self.proportions)
        missing = [name for name in names if name not in self.names]
        unknown = [name for name in self.names if name not in names]
        if missing:
            raise MixtureError(
                f"the mixture must give a share for {missing[0]!r}",
                do=f"add it (0 is a share); the domains are {', '.join(names)}",
            )
        if unknown:
            raise MixtureError(
                f"{unknown[0]!r} is no domain here", do=f"the domains are {', '.join(names)}"
            )
        return np.array([self[name] for name in names])

    def reordered(self, names: Sequence[str]) -> "Mixture":
        """Returns the same mixture with its domains in the order of `names`."""
        return Mixture(tuple(names), tuple(float(v) for v in self.array(names)))

    def __getitem__(self, name: str) -> float:
        try:
            return self.proportions[self.names.index(name)]
        except ValueError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        return ", ".join(f"{name} {share:.3g}" for name, share in self.items())


@dataclass(frozen=True, slots=True)
class CappedSimplex:
    """The mixtures whose proportions lie between floors and caps."""

    names: tuple[str, ...]
    floors: tuple[float, ...]
    caps: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, floor, cap in zip(self.names, self.floors, self.caps, strict=True):
            if not (0 <= floor <= 1 and 0 <= cap <= 1):
                raise MixtureError(
                    f"floor and cap must lie in [0, 1], but {name!r} has {floor:g} and {cap:g}"
                )
            if cap < floor:
                raise MixtureError(
                    f"the cap of {name!r} ({cap:.4g}) is below its floor ({floor:.4g})",
                    do="lower the floor, or allow more tokens or epochs of this domain",
                )
        if math.fsum(self.floors) > 1 + SUM_TOLERANCE:
            raise MixtureError(
                f"floors must sum to at most 1, but they sum to {math.fsum(self.floors):.4g}",
                do="lower the floors",
            )
        if math.fsum(self.caps) < 1 - SUM_TOLERANCE:
            raise MixtureError(
                f"caps must sum to at least 1, but they sum to {math.fsum(self.caps):.4g}",
                do="allow more tokens or epochs",
            )

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        *,
        floors: Mapping[str, float] | float = 0.0,
        caps: Mapping[str, float] | None = None,
    ) -> "CappedSimplex":
        """Returns the simplex over `names` with these floors (one for all, or by name) and caps.

        Raises:
            MixtureError: A name is unknown, a cap lies below its floor, or nothing is left.
        """
        by_name = dict.fromkeys(names, floors) if isinstance(floors, int | float) else floors
        ceilings: Mapping[str, float] = {} if caps is None else caps
        for given in (by_name, ceilings):
            for name in given:
                if name not in names:
                    raise MixtureError(
                        f"{name!r} is no domain here", do=f"the domains are {', '.join(names)}"
                    )
        return cls(
            tuple(names),
            tuple(float(by_name.get(name, 0.0)) for name in names),
            tuple(float(ceilings.get(name, 1.0)) for name in names),
        )

    @property
    def floor_M(self) -> Float[np.ndarray, " M"]:
        """Floors as an array."""
        return np.array(self.floors)

    @property
    def cap_M(self) -> Float[np.ndarray, " M"]:
        """Caps as an array."""
        return np.array(self.caps)

    def contains(self, r_M: Float[np.ndarray, " M"], tolerance: float = SUM_TOLERANCE) -> bool:
        """Whether the proportions sum to one and lie within floors and caps."""
        within = np.all(r_M >= self.floor_M - tolerance) and np.all(r_M <= self.cap_M + tolerance)
        return bool(within and abs(float(np.sum(r_M)) - 1.0) <= tolerance)

    def nearest(self, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        """Returns the closest allowed mixture in the Euclidean sense.

        The projection is clip(r - s, floor, cap) with the one shift s at which it sums to one. That
        sum falls with s, in straight lines between the shifts at which a share meets a bound.
        """
        floor_M, cap_M = self.floor_M, self.cap_M
        bends = np.sort(np.concatenate([r_M - floor_M, r_M - cap_M]))[::-1]
        totals = np.clip(r_M - bends[:, None], floor_M, cap_M).sum(axis=1)
        return np.clip(r_M - np.interp(1.0, totals, bends), floor_M, cap_M)

    def linear_minimum(self, cost_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        """Returns the allowed mixture that minimises a linear cost: fill the cheapest first."""
        r_M = self.floor_M
        order = np.argsort(cost_M, kind="stable")
        room_M = (self.cap_M - r_M)[order]
        before_M = np.cumsum(room_M) - room_M  # room of cheaper domains, which is filled first
        r_M[order] += np.clip(1.0 - np.sum(r_M) - before_M, 0.0, room_M)
        return r_M


def stack_mixtures(mixtures: Sequence[Mixture]) -> Float[np.ndarray, "R M"]:
    """Returns mixtures over the same domains as rows, in the first one's order of domains.

    Raises:
        MixtureError: There is none, or the domains differ.
    """
    if not mixtures:
        raise MixtureError("at least one mixture is needed, found none")
    return np.stack([mixture.array(mixtures[0].names) for mixture in mixtures])
