"""Random objectives of every law, and regions: what the solver's tests and benchmark share."""

import numpy as np

from mixlaw.laws.library import MIXING_LAWS
from mixlaw.mixtures import CappedSimplex
from mixlaw.optimize.objective import LossSum

CONVEX_LAWS = tuple(name for name in MIXING_LAWS if name != "m3")
"""Laws whose parameters below make them convex."""


def domain_names(count: int) -> tuple[str, ...]:
    """Returns names of that many domains."""
    return tuple(f"d{i}" for i in range(count))


def random_theta(law: str, domains: int, targets: int, *, seed: int) -> np.ndarray:
    """Returns plausible parameters of a law, with which it is convex."""
    rng = np.random.default_rng([seed, domains, targets])
    draws = {
        "c": lambda: rng.uniform(1, 2, targets),
        "t": lambda: rng.normal(0, 1, targets),
        "log g": lambda: np.log(rng.uniform(0.2, 0.8, targets)),
        "log C": lambda: rng.normal(0, 1, targets),
        "log e": lambda: np.full(targets, np.log(3e-4)),
        "log b": lambda: rng.normal(0, 0.3, targets),
        "log F": lambda: rng.normal(-2, 0.5, targets),
        "log a": lambda: np.log(rng.uniform(0.05, 0.5, targets)),
        "k": lambda: rng.uniform(0, 1, targets),
        "log k": lambda: rng.normal(0, 0.3, targets),
        "w": lambda: rng.uniform(1, 4, targets),
        "a": lambda: rng.normal(0, 0.3, targets),
    }
    names = MIXING_LAWS[law].parameter_names(domain_names(domains))
    theta_TP = np.column_stack([draws[name.split("[")[0]]() for name in names])
    if law == "exp-power":
        theta_TP[:, 3:] = -np.abs(theta_TP[:, 3:])
    return theta_TP


def random_losses(law: str, domains: int, targets: int, *, seed: int = 0) -> LossSum:
    """Returns a weighted sum of random losses."""
    weight_T = np.random.default_rng(seed).dirichlet(np.ones(targets))
    return LossSum(MIXING_LAWS[law], random_theta(law, domains, targets, seed=seed), weight_T)


def random_bounds(domains: int, *, seed: int = 0) -> CappedSimplex:
    """Returns floors and caps that leave some room."""
    rng = np.random.default_rng(seed)
    floors = rng.uniform(0, 0.5, domains) / domains
    caps = np.minimum(1.0, floors + rng.uniform(1.2, 8.0, domains) / domains)
    return CappedSimplex(domain_names(domains), tuple(floors.tolist()), tuple(caps.tolist()))
