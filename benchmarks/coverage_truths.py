"""Truths of simulated studies: laws that can be fitted, and laws that can't.

Shape letters: R mixtures, M training domains, T targets, K hidden parts of a target, F waves.

Each target has one domain that helps it most (a target that is no training domain has two), as the
laws fitted to the demo's, 5Mix's and RedPajama's runs have it. A family gives the shape of each
loss; `scaled_truth` gives it the level and the spread over mixtures that losses of real runs have.
Shapes keep their form under it: all are c + A h(r).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mixlaw.laws.allocation import AllocationLaw
from mixlaw.laws.library import MIXING_LAWS

Shape = Callable[[np.ndarray], np.ndarray]
"""From mixtures (R, M) to the shapes of the losses (R, T)."""

FITTED = ("m4", "reciprocal-shared", "reciprocal", "power-reciprocal-shared", "power-reciprocal")
"""Truths among the laws that `select_law` tries."""
NOT_FITTED = ("effective", "parts", "implicit", "pairs", "allocation", "waves")
"""Truths that no law of the library is."""
SPREAD = (np.log(0.11), 0.5)
"""Log standard deviation of a target's loss over mixtures, in nats: mean and deviation over
targets; .05 to .17 on the demo, .04 to .5 on the paper's runs."""
LEVELS = (1.5, 3.5)
"""Least loss of a target, in nats."""


@dataclass(frozen=True, kw_only=True)
class ScaledTruth:
    """Expected losses c + A h(r)."""

    shape: Shape
    level_T: np.ndarray
    factor_T: np.ndarray

    def __call__(self, r_RM: np.ndarray) -> np.ndarray:
        """Returns the losses of mixtures (R, M) by target (R, T)."""
        return self.level_T + self.factor_T * self.shape(np.clip(r_RM, 0.0, 1.0))


def scaled_truth(
    rng: np.random.Generator, family: str, num_domains: int, num_extra: int, sample_RM: np.ndarray
) -> ScaledTruth:
    """Returns a truth of a family, its losses spread over a sample as those of real runs are."""
    helped_TM = domain_roles(rng, num_domains, num_extra)
    shape = make_shape(rng, family, helped_TM)
    value_RT = shape(sample_RM)
    spread_T = np.exp(rng.normal(*SPREAD, size=len(helped_TM)))
    factor_T = spread_T / value_RT.std(axis=0)
    least_T = rng.uniform(*LEVELS, size=len(helped_TM))
    level_T = least_T - factor_T * value_RT.min(axis=0)
    return ScaledTruth(shape=shape, level_T=level_T, factor_T=factor_T)


def domain_roles(rng: np.random.Generator, num_domains: int, num_extra: int) -> np.ndarray:
    """Returns log helpfulness by target and domain: 0 for what helps most, about -2 for others."""
    helped_TM = -rng.gamma(2.0, 0.9, size=(num_domains + num_extra, num_domains))
    for i, helped_M in enumerate(helped_TM):
        own = [i] if i < num_domains else rng.choice(num_domains, 2, replace=False)
        helped_M[own] = rng.normal(0.0, 0.2, size=len(own))
    return helped_TM


def make_shape(rng: np.random.Generator, family: str, helped_TM: np.ndarray) -> Shape:
    """Returns the shapes of one family, with parameters drawn at random."""
    makers: dict[str, Callable[[np.random.Generator, np.ndarray], Shape]] = {
        "effective": effective_tokens,
        "parts": power_of_parts,
        "implicit": implicit_domains,
        "pairs": pair_products,
        "allocation": split_capacity,
        "waves": waves_on_a_law,
    }
    if family in makers:
        return makers[family](rng, helped_TM)
    return fitted_law(rng, helped_TM, name=family)


def fitted_law(rng: np.random.Generator, helped_TM: np.ndarray, *, name: str) -> Shape:
    """A law of the library; parameters vary as those fitted to real runs do (docs/log.md)."""
    law, num_domains = MIXING_LAWS[name], helped_TM.shape[1]
    names = law.parameter_names(tuple(f"d{j}" for j in range(num_domains)))
    rows: list[list[float]] = []
    for helped_M in helped_TM:
        log_g, log_b, log_e = rng.normal((-0.45, -0.35, -8.0), (0.35, 0.3, 0.3))
        domains = iter(range(num_domains))
        row: list[float] = []
        for parameter in names:
            if parameter == "c":
                row.append(0.0)
            elif parameter == "log b":
                row.append(log_b)
            elif parameter == "log e":
                row.append(log_e)
            elif parameter.startswith("log g"):
                own = rng.normal(0.0, 0.15) if "[" in parameter else 0.0
                row.append(min(log_g + own, 0.0))
            elif parameter.startswith("log C"):
                row.append(helped_M[next(domains)])
            else:  # t of M4
                row.append(-3.0 * float(np.exp(helped_M[next(domains)])))
        rows.append(row)
    theta_TP = np.array(rows)
    return lambda r_RM: law.predict(r_RM, theta_TP).T


def effective_tokens(rng: np.random.Generator, helped_TM: np.ndarray) -> Shape:
    """(r_i + sum_j tau_j k_j (1 - exp(-r_j / k_j)) + e)^-b: other domains help until they don't."""
    share_TM = np.exp(helped_TM)
    limit_TM = rng.uniform(0.05, 0.4, size=share_TM.shape)
    b_T = rng.uniform(0.3, 1.2, size=len(share_TM))
    e_T = np.exp(rng.uniform(np.log(0.003), np.log(0.05), size=len(share_TM)))

    def shape(r_RM: np.ndarray) -> np.ndarray:
        seen_RTM = limit_TM * (1 - np.exp(-r_RM[:, None] / limit_TM))
        return (np.sum(share_TM * seen_RTM, axis=-1) + e_T) ** -b_T

    return shape


def power_of_parts(rng: np.random.Generator, helped_TM: np.ndarray) -> Shape:
    """sum_k s_k (a_k . r + e_k)^-b_k: a target is made of parts that other domains help."""
    size = (len(helped_TM), 4)
    help_TKM = np.exp(helped_TM[:, None] + rng.normal(0.0, 1.0, size=(*size, helped_TM.shape[1])))
    s_TK = rng.dirichlet(np.ones(4), size=size[0])
    b_TK = rng.uniform(0.2, 1.5, size=size)
    e_TK = np.exp(rng.uniform(np.log(0.003), np.log(0.05), size=size))

    def shape(r_RM: np.ndarray) -> np.ndarray:
        part_RTK = np.einsum("rm,tkm->rtk", r_RM, help_TKM) / help_TKM.mean(axis=-1)
        part_RTK = (part_RTK + e_TK) ** -b_TK
        return np.sum(s_TK * part_RTK, axis=-1)

    return shape


def implicit_domains(rng: np.random.Generator, helped_TM: np.ndarray) -> Shape:
    """sum_k s_k exp(-t_k . r): hidden domains, of which some need little and some need much."""
    size = (len(helped_TM), 4)
    t_TKM = np.exp(helped_TM[:, None] + rng.normal(0.0, 0.8, size=(*size, helped_TM.shape[1])))
    t_TKM *= np.exp(rng.uniform(np.log(1.0), np.log(12.0), size=(*size, 1)))
    s_TK = rng.dirichlet(np.ones(4), size=size[0])
    return lambda r_RM: np.sum(s_TK * np.exp(-np.einsum("rm,tkm->rtk", r_RM, t_TKM)), axis=-1)


def pair_products(rng: np.random.Generator, helped_TM: np.ndarray) -> Shape:
    """exp(-t . r - r U r): pairs of domains help more, or less, together than each alone."""
    t_TM = 3.0 * np.exp(helped_TM)
    u_TMM = rng.normal(0.0, 0.5, size=(*t_TM.shape, t_TM.shape[1]))
    return lambda r_RM: np.exp(-(r_RM @ t_TM.T) - np.einsum("rm,tmn,rn->rt", r_RM, u_TMM, r_RM))


def split_capacity(rng: np.random.Generator, helped_TM: np.ndarray) -> Shape:
    """Dai and Zheng's law: a model splits its capacity; other targets mix two domains' losses."""
    law, count = AllocationLaw(), helped_TM.shape[1]
    params, tokens = 1e6, 2e7
    theta_P = np.concatenate(
        [
            np.log(rng.uniform(5.0, 30.0, count)), np.log(rng.uniform(0.15, 0.4, count)),
            np.log(rng.uniform(100.0, 800.0, count)), np.log(rng.uniform(0.3, 0.5, count)),
            np.zeros(count), [np.log(0.2 * params)],
        ]
    )  # fmt: skip
    mixed_TK = np.exp(helped_TM)
    mixed_TK[:count] = np.eye(count)

    def shape(r_RM: np.ndarray) -> np.ndarray:
        scale_R2 = np.broadcast_to([params, tokens], (len(r_RM), 2))
        return law.predict(np.hstack([r_RM, scale_R2]), theta_P) @ mixed_TK.T

    return shape


def waves_on_a_law(rng: np.random.Generator, helped_TM: np.ndarray) -> Shape:
    """A fitted law with a smooth random function on it: what no formula has."""
    law = fitted_law(rng, helped_TM, name="power-reciprocal-shared")
    count, num_domains = helped_TM.shape
    height_T = rng.uniform(0.05, 0.25, size=count)
    wave_FM = rng.normal(0.0, 2.5, size=(64, num_domains))
    phase_F = rng.uniform(0.0, 2 * np.pi, size=64)
    weight_TF = rng.normal(0.0, np.sqrt(2 / 64), size=(count, 64))
    sample_RM = rng.dirichlet(np.ones(num_domains), size=200)
    unit_T = law(sample_RM).std(axis=0)

    def shape(r_RM: np.ndarray) -> np.ndarray:
        # Square roots of shares: losses change fastest where a domain is nearly absent.
        wave_RF = np.cos(np.sqrt(r_RM) @ wave_FM.T + phase_F)
        return law(r_RM) + height_T * unit_T * (wave_RF @ weight_TF.T)

    return shape


def families(half: str) -> Sequence[str]:
    """Returns the families of one half of the studies."""
    return FITTED if half == "fitted" else NOT_FITTED
