"""What a team would do without a law: its reference, proportional, uniform."""

from collections.abc import Sequence

import numpy as np

from mixlaw.domains import Domain
from mixlaw.mixtures import CappedSimplex, Mixture


def baseline_mixtures(
    domains: Sequence[Domain], allowed: CappedSimplex, *, reference: Mixture | None = None
) -> dict[str, Mixture]:
    """Returns the baselines by name, each moved to the closest mixture that is allowed.

    `reference` where it is given, `proportional` to the tokens on hand where they are known, and
    `uniform`.
    """
    names = tuple(domain.name for domain in domains)
    wanted: dict[str, Mixture] = {} if reference is None else {"reference": reference}
    tokens = [domain.available_tokens for domain in domains]
    if all(count is not None for count in tokens):
        wanted["proportional"] = Mixture.normalized(
            {name: float(count or 0) for name, count in zip(names, tokens, strict=True)}
        )
    wanted["uniform"] = Mixture.uniform(names)
    return {
        label: Mixture.from_array(allowed.names, allowed.nearest(mixture.array(allowed.names)))
        for label, mixture in wanted.items()
    }


def distance_to_runs(r_M: np.ndarray, r_RM: np.ndarray) -> float:
    """Returns how much share must move to get from a mixture to the closest one that was run."""
    return float(np.min(np.abs(r_RM - r_M).sum(axis=1)) / 2)
