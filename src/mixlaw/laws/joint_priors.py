"""What is known of a joint law's parameters before any data, and the shrinkage that follows.

Shape letters: M training domains, P parameters, Q shrinkage residuals, K places.

A slot is a name in a law's list of parameters; one that ends in [] stands for one per domain.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np
from jaxtyping import Float, Int

PRIORS: Mapping[str, tuple[float, float]] = {
    "log a": (float(np.log(0.35)), 0.5),
    "log b": (float(np.log(0.6)), 0.7),
    "d": (0.0, 0.15),
    "log K": (float(np.log(0.05)), 2.0),
    "log g": (float(np.log(0.4)), 0.5),
    "log q": (0.0, 0.5),
    "kappa A": (0.0, 1.0),
    "kappa B": (0.0, 1.0),
    "power A": (1.0, 0.5),
    "power B": (1.0, 0.5),
}
"""Mean and standard deviation of each exponent before any data. a and b: the published fits of
language models lie between 0.15 and 0.6 for a, 0.3 and 1.2 for b; fits replace these by the mean
and the spread of the targets' own (`fit/joint_pool.py`)."""
CONTRAST_PRIORS: Mapping[str, float] = {"log C[]": 3.0, "t[]": 3.0, "log g[]": 0.3}
"""Standard deviations around their mean of parameters that each domain has."""
AMPLITUDE_PRIOR = 0.5
"""Likewise, of a log-linear amplitude's."""
DEVIATION_PRIOR = 0.1
"""Likewise, where the amplitude already follows the mixing term."""


def contrast_priors(slots: tuple[str, ...]) -> Mapping[str, float]:
    """Returns, for each slot that domains have, its standard deviation around its mean."""
    follows = any(slot.startswith("kappa") for slot in slots)
    amplitude = DEVIATION_PRIOR if follows else AMPLITUDE_PRIOR
    return {slot: CONTRAST_PRIORS.get(slot, amplitude) for slot in slots if slot.endswith("[]")}


def exponent_priors(slots: tuple[str, ...]) -> Mapping[str, tuple[float, float]]:
    """Returns the mean and standard deviation of each exponent among the slots."""
    return {slot: PRIORS[slot] for slot in slots if slot in PRIORS}


@cache
def slot_index(slots: tuple[str, ...], num_domains: int) -> Mapping[str, Int[np.ndarray, " K"]]:
    """Returns, for each slot, the places of its parameters."""
    places: dict[str, np.ndarray] = {}
    start = 0
    for slot in slots:
        places[slot] = np.arange(start, start + (num_domains if slot.endswith("[]") else 1))
        start = int(places[slot][-1]) + 1
    return places


def shrinkage(
    slots: tuple[str, ...],
    num_domains: int,
    *,
    exponents: Mapping[str, tuple[float, float]],
    contrasts: Mapping[str, float],
) -> tuple[Float[np.ndarray, "Q P"], Float[np.ndarray, " Q"]]:
    """Returns W and o: the shrinkage's residuals are W theta - o, in units of the priors."""
    index = slot_index(slots, num_domains)
    num_parameters = sum(len(places) for places in index.values())
    centring_MM = np.eye(num_domains) - 1.0 / num_domains
    weights: list[np.ndarray] = []
    offsets: list[np.ndarray] = []
    for slot, deviation in contrasts.items():
        block_MP = np.zeros((num_domains, num_parameters))
        block_MP[:, index[slot]] = centring_MM / deviation
        weights.append(block_MP)
        offsets.append(np.zeros(num_domains))
    for slot, (mean, deviation) in exponents.items():
        row_1P = np.zeros((1, num_parameters))
        row_1P[:, index[slot]] = 1.0 / deviation
        weights.append(row_1P)
        offsets.append(np.array([mean / deviation]))
    return np.concatenate(weights), np.concatenate(offsets)


@cache
def default_shrinkage(
    slots: tuple[str, ...], num_parameters: int
) -> tuple[Float[np.ndarray, "Q P"], Float[np.ndarray, " Q"]]:
    """Returns W and o of the shrinkage before any data."""
    of_domains = sum(slot.endswith("[]") for slot in slots)
    return shrinkage(
        slots,
        (num_parameters - len(slots) + of_domains) // of_domains,
        exponents=exponent_priors(slots),
        contrasts=contrast_priors(slots),
    )
