"""How well mixtures cover the ones that are allowed.

Shape letters: R mixtures, S probes, M training domains.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mixlaw.design.points import moved_shares, uniform_points
from mixlaw.mixtures import CappedSimplex, Mixture

_NUM_PROBES = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """What a law fitted to these mixtures has seen, and what it has not."""

    domains: tuple[str, ...]
    smallest: tuple[float, ...]
    """Smallest share of each domain over the mixtures."""
    largest: tuple[float, ...]
    """Largest share of each domain over the mixtures."""
    condition_number: float
    """Longest over shortest axis of the cloud of mixtures (singular values of the centred shares):
    near 1 all directions are measured equally well, inf means that one is not measured at all."""
    zeros: int
    """Shares that are zero, over all mixtures."""
    mixtures_with_zero: int
    """Mixtures that leave out a domain."""
    nearest_pair: float
    """Share of tokens that differs between the two most alike mixtures; nan for a single one."""
    largest_gap: float
    """Share of tokens that differs between some allowed mixture and the design's nearest one, at
    the worst of 2048 allowed mixtures, drawn uniformly."""
    mean_gap: float
    """The same, on average over them."""


def measure_coverage(mixtures: Sequence[Mixture], simplex: CappedSimplex | None = None) -> Coverage:
    """Returns how well mixtures cover an allowed region.

    Args:
        mixtures: At least one mixture; all over the same domains.
        simplex: The mixtures that are allowed; None: the whole simplex.
    """
    names = mixtures[0].names
    simplex = CappedSimplex.of(names) if simplex is None else simplex
    r_RM = np.stack([mixture.array(simplex.names) for mixture in mixtures])
    probes_SM = _probes(simplex)
    gap_S = np.min(moved_shares(probes_SM, r_RM), axis=1)
    pairs_RR = moved_shares(r_RM, r_RM)[np.triu_indices(len(r_RM), k=1)]
    order = [simplex.names.index(name) for name in names]
    return Coverage(
        domains=names,
        smallest=tuple(float(v) for v in np.min(r_RM, axis=0)[order]),
        largest=tuple(float(v) for v in np.max(r_RM, axis=0)[order]),
        condition_number=_condition_number(r_RM),
        zeros=int(np.sum(r_RM == 0)),
        mixtures_with_zero=int(np.sum(np.any(r_RM == 0, axis=1))),
        nearest_pair=float(np.min(pairs_RR)) if len(pairs_RR) else math.nan,
        largest_gap=float(np.max(gap_S)),
        mean_gap=float(np.mean(gap_S)),
    )


def _probes(simplex: CappedSimplex) -> np.ndarray:
    span = 1 - float(np.sum(simplex.floor_M))
    if span < 1e-9:
        return simplex.floor_M[None, :]
    room_M = np.minimum(1.0, (simplex.cap_M - simplex.floor_M) / span)
    points_SM, _ = uniform_points(room_M, _NUM_PROBES, seed=0)
    return simplex.floor_M + span * points_SM


def _condition_number(r_RM: np.ndarray) -> float:
    """Ratio of the extreme singular values within the plane in which shares sum to a constant."""
    axes = r_RM.shape[1] - 1
    values = np.linalg.svd(r_RM - np.mean(r_RM, axis=0), compute_uv=False)
    if len(values) < axes or values[axes - 1] <= 1e-12:
        return math.inf
    return float(values[0] / values[axes - 1])
