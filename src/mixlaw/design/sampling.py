"""Mixtures to try, on the simplex of token shares between floors and caps.

Three methods; what the floors leave of the simplex is called the span:

- `double-diminishing`: the paper's grid on the span, uniformly within its two classes (`lattice`).
- `dirichlet`: floor + span * Dirichlet(strength * M * prior), where the prior is what the given one
  has above the floors. Each mixture has a strength of its own, log-spaced between two limits, so
  that some lie at the edges and some near the prior; a uniform prior with strength 1 is uniform.
- `sobol`: a shifted Sobol sequence, mapped so that it is uniform on the span (`points`).

Dirichlet and Sobol draws above a cap are rejected, so that below the caps the distribution stays
what it is. Where the caps leave so little room that this does not end, a random walk draws from the
same distribution (`points`).

`spread` draws 5 times as many mixtures and keeps those that lie farthest apart, one after the
other. For 20 mixtures of 5 domains above a floor of 0.04, that halves the standard error of the
paper's law, on average over the allowed mixtures, against the plain grid (there is a test of it).

Shape letters: R mixtures, M training domains.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from mixlaw.design.coverage import Coverage, measure_coverage
from mixlaw.design.lattice import draw_lattice
from mixlaw.design.points import (
    fill_to_caps,
    spread_indices,
    uniform_points,
    walk_below_caps,
)
from mixlaw.domains import Domain, Scale, check_domains, token_caps
from mixlaw.errors import DesignError
from mixlaw.mixtures import CappedSimplex, Mixture

Method = Literal["double-diminishing", "dirichlet", "sobol"]
METHODS: tuple[str, ...] = get_args(Method)
POOL_PER_MIXTURE = 5
"""How many mixtures `spread` chooses one from; more would push all of them into corners."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """The mixtures to try."""

    domains: tuple[str, ...]
    """Training domains, in the order of every mixture."""
    mixtures: tuple[Mixture, ...]
    """Distinct mixtures; those that were given come first."""
    method: str
    """How they were drawn."""
    seed: int
    """What seeded the draw."""
    simplex: CappedSimplex | None = None
    """The mixtures that are allowed; None: not known."""
    notes: tuple[str, ...] = ()
    """What a reader should know, in sentences."""

    def coverage(self) -> Coverage:
        """Returns how well the mixtures cover the ones that are allowed."""
        return measure_coverage(self.mixtures, self.simplex)


def sample_mixtures(
    domains: Sequence[Domain],
    *,
    n: int,
    scale: Scale | None,
    method: str = "double-diminishing",
    floor: float | Mapping[str, float] = 0.0,
    prior: Mapping[str, float] | None = None,
    strengths: tuple[float, float] = (0.5, 5.0),
    delta: float | None = None,
    spread: bool = False,
    include: Sequence[Mixture] = (),
    avoid: Sequence[Mixture] = (),
    seed: int = 0,
) -> Design:
    """Returns distinct mixtures between the floors and the caps that token supply sets.

    The order of the domains does not matter: with another order the same mixtures come out.

    Args:
        domains: The training domains.
        n: Mixtures in the design, those of `include` counted.
        scale: The run that is to be decided, which sets the caps; None: no caps.
        method: `double-diminishing`, `dirichlet` or `sobol`.
        floor: Smallest share of every domain, or of each by name.
        prior: Where `dirichlet` is centred; uniform by default.
        strengths: Smallest and largest strength of `dirichlet`.
        delta: Smallest share of the double-diminishing grid; by default as coarse as allows a
            choice, from 1/16 on.
        spread: Keep those that lie farthest apart out of 5 times as many.
        include: Mixtures that the design starts with, such as the uniform one and the reference.
        avoid: Mixtures that must not be drawn, such as those of another design.
        seed: Seeds the draw.

    Raises:
        DesignError: There are not so many mixtures, or an argument is not what it must be.
        MixtureError: Floors and caps conflict, or a given mixture is over other domains.
        DomainError: The domains hold too few tokens for the scale.
    """
    names = tuple(domain.name for domain in check_domains(domains))
    _check_arguments(n, method, len(include), strengths)
    caps = None if scale is None else token_caps(domains, scale)
    simplex = CappedSimplex.of(sorted(names), floors=floor, caps=caps)
    fixed = [mixture.reordered(names) for mixture in include]
    excluded = {mixture.mixture_id for mixture in avoid}
    wanted = n - len(fixed)
    pool_size = wanted * (POOL_PER_MIXTURE if spread else 1)
    draws, notes = _draws(simplex, method, pool_size, prior, strengths, delta, seed)
    excluded |= {mixture.mixture_id for mixture in fixed}
    drawn = list(itertools.islice(_distinct(draws, simplex, names, excluded), pool_size))
    if len(drawn) < wanted:
        raise DesignError(
            f"there must be {wanted} more mixtures to draw, but method {method!r} has"
            f" {len(drawn)} within these floors and caps",
            do='ask for fewer mixtures, lower the floors, or use method "sobol"',
        )
    if spread and wanted:
        pool_RM = np.stack([mixture.array() for mixture in drawn])
        start = fixed or [Mixture.from_array(names, np.mean(pool_RM, axis=0))]
        start_SM = np.stack([mixture.array() for mixture in start])
        drawn = [drawn[i] for i in spread_indices(pool_RM, wanted, start_SM)]
    mixtures = (*fixed, *drawn[:wanted])
    return Design(
        domains=names,
        mixtures=mixtures,
        method=f"{method}, spread" if spread else method,
        seed=seed,
        simplex=simplex,
        notes=(*notes, *_remarks(mixtures, fixed, simplex)),
    )


def _check_arguments(n: int, method: str, given: int, strengths: tuple[float, float]) -> None:
    if method not in METHODS:
        raise DesignError(f"method must be one of {', '.join(METHODS)}, found {method!r}")
    if n < max(1, given):
        raise DesignError(
            f"a design needs at least one mixture and room for the {given} that are given, but"
            f" {n} are asked for"
        )
    if not 0 < strengths[0] <= strengths[1] < float("inf"):
        raise DesignError(
            f"strengths must be two positive numbers, the smaller first, found {strengths}"
        )


def _draws(
    simplex: CappedSimplex,
    method: str,
    count: int,
    prior: Mapping[str, float] | None,
    strengths: tuple[float, float],
    delta: float | None,
    seed: int,
) -> tuple[Iterator[Float[np.ndarray, " M"]], list[str]]:
    """Returns points of the span, in the order of the simplex' names, and notes on them."""
    span = 1 - float(np.sum(simplex.floor_M))
    if span < 1e-9:
        raise DesignError("the floors sum to 1, which leaves a single mixture", do="lower them")
    room_M = np.minimum(1.0, (simplex.cap_M - simplex.floor_M) / span)
    if method == "double-diminishing":
        order = sorted(range(len(room_M)), key=lambda j: (-room_M[j], simplex.names[j]))
        caps = [float(room_M[j]) for j in order]
        points, note = draw_lattice(caps, count, seed=seed, delta=delta)
        back = np.argsort(order)
        return (np.array(point)[back] for point in points), [note] if note else []
    if method == "dirichlet":
        prior_M = _prior(simplex, prior, span)
        return _dirichlet_points(room_M, count, prior_M, strengths, seed), []
    points_RM, is_even = uniform_points(room_M, 2 * count, seed)
    note = "the caps are so tight that the Sobol points are random ones, not evenly spaced"
    return iter(points_RM), [] if is_even else [note]


def _prior(
    simplex: CappedSimplex, prior: Mapping[str, float] | None, span: float
) -> Float[np.ndarray, " M"]:
    """Returns the prior on the span: what it has above the floors, never quite zero."""
    if prior is None:
        return np.full(len(simplex.names), 1 / len(simplex.names))
    above_M = (Mixture.of(prior).array(simplex.names) - simplex.floor_M) / span
    above_M = np.maximum(above_M, 1e-3)
    return above_M / np.sum(above_M)


def _dirichlet_points(
    room_M: Float[np.ndarray, " M"],
    count: int,
    prior_M: Float[np.ndarray, " M"],
    strengths: tuple[float, float],
    seed: int,
) -> Iterator[Float[np.ndarray, " M"]]:
    """Yields twice `count` points, each of its own strength; the second half is for doubles."""
    rng = np.random.default_rng(seed)
    levels = np.geomspace(*strengths, max(count, 1)) * len(room_M)
    for strength in (*rng.permutation(levels), *rng.permutation(levels)):
        alpha_M = strength * prior_M
        tries_RM = np.empty((0, len(room_M)))
        for size in (1, 15, 240):
            tries_RM = rng.dirichlet(alpha_M, size=size)
            within = np.flatnonzero(np.all(tries_RM <= room_M, axis=1))
            if len(within):
                yield tries_RM[within[0]]
                break
        else:
            start_RM = fill_to_caps(tries_RM[:1], room_M)
            yield walk_below_caps(start_RM, room_M, alpha_M, rng)[0]


def _distinct(
    points: Iterator[Float[np.ndarray, " M"]],
    simplex: CappedSimplex,
    names: tuple[str, ...],
    excluded: set[str],
) -> Iterator[Mixture]:
    """Yields the mixtures of points on the span that differ from those before and excluded."""
    span = 1 - float(np.sum(simplex.floor_M))
    order = [simplex.names.index(name) for name in names]
    seen = set(excluded)
    for x_M in points:
        r_M = np.minimum(simplex.floor_M + span * x_M, simplex.cap_M)
        mixture = Mixture.from_array(names, r_M[order])
        if mixture.mixture_id not in seen:
            seen.add(mixture.mixture_id)
            yield mixture


def _remarks(
    mixtures: Sequence[Mixture], given: Sequence[Mixture], simplex: CappedSimplex
) -> Iterator[str]:
    for index, mixture in enumerate(given, start=1):
        if not simplex.contains(mixture.array(simplex.names)):
            yield f"given mixture {index} lies outside the floors or caps: {mixture}"
    with_zero = sum(min(mixture.proportions) == 0 for mixture in mixtures)
    if with_zero:
        yield (
            f"{with_zero} of {len(mixtures)} mixtures leave out a domain; the losses of small"
            " models jump where a domain is absent, and a floor of about 0.04 avoids that"
        )
