"""What a team would do without a law: its reference, proportional, uniform, UniMax, temperature.

Shape letters: R runs, M training domains.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mixlaw.domains import Domain, Scale
from mixlaw.mixtures import CappedSimplex, Mixture

TEMPERATURE = 1 / 0.3
"""Of the temperature baseline: mT5's exponent of 0.3 (Xue et al. 2021, arXiv:2010.11934, 3.2)."""


def baseline_mixtures(
    domains: Sequence[Domain],
    allowed: CappedSimplex,
    *,
    reference: Mixture | None = None,
    scale: Scale | None = None,
    temperature: float | None = None,
) -> dict[str, Mixture]:
    """Returns the baselines by name, each moved to the closest mixture that is allowed.

    `reference` where it is given, `proportional` to the tokens on hand where they are known, and
    `uniform`; `unimax` where a scale and the tokens are known, `temperature` where one is given.

    Args:
        domains: The domains with what is known of their tokens.
        allowed: Where the baselines must lie.
        reference: What the team would use today.
        scale: The run that is to be decided, which UniMax shares out.
        temperature: tau of the shares p^(1/tau); 1 is proportional, infinity uniform.
    """
    names = tuple(domain.name for domain in domains)
    wanted: dict[str, Mixture] = {} if reference is None else {"reference": reference}
    tokens = [domain.available_tokens for domain in domains]
    is_known = all(count is not None for count in tokens)
    supply = {name: float(count or 0) for name, count in zip(names, tokens, strict=True)}
    if is_known:
        wanted["proportional"] = Mixture.normalized(supply)
    wanted["uniform"] = Mixture.uniform(names)
    if is_known and scale is not None:
        wanted["unimax"] = unimax_mixture(domains, scale)
    if is_known and temperature is not None:
        heated = {name: count ** (1 / temperature) for name, count in supply.items()}
        wanted["temperature"] = Mixture.normalized(heated)
    return {
        label: Mixture.from_array(allowed.names, allowed.nearest(mixture.array(allowed.names)))
        for label, mixture in wanted.items()
    }


def unimax_mixture(domains: Sequence[Domain], scale: Scale) -> Mixture:
    """Returns UniMax: as uniform as the allowed epochs of each domain let it be.

    Domains with the fewest tokens first, each gets an equal part of what is left, or all it has.

    References:
        Chung et al. 2023, arXiv:2304.09151, Algorithm 1; here each domain has its own epochs.
    """
    caps = {domain.name: domain.cap(scale) for domain in domains}
    shares: dict[str, float] = {}
    left = 1.0
    for i, name in enumerate(sorted(caps, key=lambda name: (caps[name], name))):
        shares[name] = min(caps[name], left / (len(caps) - i))
        left -= shares[name]
    return Mixture.normalized({domain.name: shares[domain.name] for domain in domains})


def distance_to_runs(r_M: Float[np.ndarray, " M"], r_RM: Float[np.ndarray, "R M"]) -> float:
    """Returns how much share must move to get from a mixture to the closest one that was run."""
    return float(np.min(np.abs(r_RM - r_M).sum(axis=1)) / 2)
