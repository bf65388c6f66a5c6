"""Studies whose truth is known: mixtures, losses with the noise of seeds, and tables made of them.

Shape letters: R runs, M training domains, T targets.

Shared by the tests and `benchmarks/coverage.py`. The default study is like the demo: 20 design
mixtures of 5 domains, spread out on the paper's grid, that share one seed; 2 of them again with
fresh seeds; 8 held-out mixtures, drawn uniformly, each with a fresh seed of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from mixlaw.design import sample_mixtures
from mixlaw.domains import Domain
from mixlaw.mixtures import CappedSimplex, Mixture, stack_mixtures

DESIGN_SEED = 0
"""The seed that all design runs share."""
STEP = 500
"""The one step of every run."""


class Truth(Protocol):
    """Expected losses of mixtures, one column per target."""

    def __call__(self, r_RM: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class ExponentialTruth:
    """c + exp(t . r), the law that is fitted."""

    c_T: np.ndarray
    t_TM: np.ndarray

    def __call__(self, r_RM: np.ndarray) -> np.ndarray:
        return self.c_T + np.exp(r_RM @ self.t_TM.T)


@dataclass(frozen=True, kw_only=True)
class PowerTruth:
    """c + 1 / sum_j C_j (r_j + 0.01)^g: steeper where a domain is nearly absent than any M4."""

    c_T: np.ndarray
    C_TM: np.ndarray
    g_T: np.ndarray

    def __call__(self, r_RM: np.ndarray) -> np.ndarray:
        power_RTM = (r_RM[:, None, :] + 0.01) ** self.g_T[None, :, None]
        return self.c_T + 1.0 / np.sum(self.C_TM * power_RTM, axis=2)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What training adds to an expected loss; seeds differ by hypot(offset_sd, own_sd)."""

    offset_sd: float = 0.007
    """What a seed does to a target's loss on every mixture."""
    own_sd: float = 0.007
    """What it does on one mixture alone, the error of the evaluation included."""


@dataclass(frozen=True, kw_only=True)
class SimulatedStudy:
    """Tables as a study has them, and the truth behind them."""

    domains: tuple[str, ...]
    targets: tuple[str, ...]
    truth: Truth
    noise: Noise
    runs: pl.DataFrame
    observations: pl.DataFrame
    heldout: tuple[Mixture, ...]
    heldout_RT: np.ndarray
    """Observed losses of the held-out mixtures, each with a fresh seed of its own."""


def exponential_truth(rng: np.random.Generator, num_domains: int, num_extra: int) -> Truth:
    """Returns an M4 truth: each target is helped most by its own domain, extra ones by two."""
    t_TM = rng.normal(0.0, 0.35, size=(num_domains + num_extra, num_domains))
    for i, t_M in enumerate(t_TM):
        if i < num_domains:
            t_M[i] -= rng.uniform(1.0, 3.0)
        else:
            t_M[rng.choice(num_domains, 2, replace=False)] -= rng.uniform(0.5, 2.0, size=2)
    return ExponentialTruth(c_T=rng.uniform(1.2, 2.2, size=len(t_TM)), t_TM=t_TM)


def power_truth(rng: np.random.Generator, num_domains: int, num_extra: int) -> Truth:
    """Returns a power-form truth with the same roles of domains."""
    C_TM = rng.uniform(0.05, 0.4, size=(num_domains + num_extra, num_domains))
    for i, C_M in enumerate(C_TM):
        if i < num_domains:
            C_M[i] += rng.uniform(0.6, 1.6)
        else:
            C_M[rng.choice(num_domains, 2, replace=False)] += rng.uniform(0.3, 1.0, size=2)
    return PowerTruth(
        c_T=rng.uniform(1.0, 1.8, size=len(C_TM)),
        C_TM=C_TM,
        g_T=rng.uniform(0.3, 0.8, size=len(C_TM)),
    )


def sample_proportions(
    rng: np.random.Generator, num_mixtures: int, num_domains: int, floor: float
) -> np.ndarray:
    """Returns mixtures drawn uniformly from the simplex above a floor."""
    share = 1.0 - floor * num_domains
    return floor + share * rng.dirichlet(np.ones(num_domains), size=num_mixtures)


def simulate_study(
    seed: int,
    *,
    form: str = "exponential",
    num_domains: int = 5,
    num_mixtures: int = 20,
    num_extra: int = 1,
    num_heldout: int = 8,
    num_repeated: int = 2,
    fresh_seeds: int = 3,
    seeds_shared: bool = False,
    floor: float = 0.04,
    noise: Noise | None = None,
    make_truth: Callable[[np.random.Generator, np.ndarray], Truth] | None = None,
    method: str = "double-diminishing",
) -> SimulatedStudy:
    """Returns one study.

    Args:
        seed: Of everything that is drawn.
        form: `exponential` or `power`.
        num_domains: Training domains; each is a target.
        num_mixtures: Mixtures of the design.
        num_extra: Targets that are no training domain.
        num_heldout: Held-out mixtures.
        num_repeated: Mixtures of the design that are run again.
        fresh_seeds: How often each of them is.
        seeds_shared: Whether the repeated mixtures are run again with the same fresh seeds.
        floor: Least share of every domain in every run.
        noise: Of the seeds.
        make_truth: Makes the truth, instead of `form`, from random numbers and the design.
        method: How the design is drawn.
    """
    rng = np.random.default_rng(seed)
    noise = Noise() if noise is None else noise
    make = {"exponential": exponential_truth, "power": power_truth}[form]
    truth = make(rng, num_domains, num_extra)
    domains = tuple(f"d{j}" for j in range(num_domains))
    design = sample_mixtures(
        [Domain(name=name) for name in domains],
        n=num_mixtures,
        scale=None,
        method=method,
        floor=floor,
        spread=True,
        seed=seed,
    )
    design_RM = stack_mixtures(design.mixtures)
    if make_truth is not None:
        truth = make_truth(rng, design_RM)
    heldout_RM = sample_proportions(rng, num_heldout, num_domains, floor)
    repeated = rng.choice(num_mixtures, num_repeated, replace=False)
    fresh = [
        1 + k + (0 if seeds_shared else i * fresh_seeds)
        for i in range(num_repeated)
        for k in range(fresh_seeds)
    ]
    r_RM = np.vstack([design_RM, design_RM[np.repeat(repeated, fresh_seeds)], heldout_RM])
    seeds = [DESIGN_SEED] * num_mixtures + fresh + [1000 + i for i in range(num_heldout)]
    roles = (
        ["design"] * num_mixtures
        + ["noise"] * (num_repeated * fresh_seeds)
        + ["holdout"] * num_heldout
    )
    y_RT = observe_losses(rng, truth, r_RM, seeds, noise)
    targets = (*domains, *(f"unseen{j}" for j in range(num_extra)))
    runs, observations = make_tables(domains, targets, r_RM, y_RT, seeds=seeds, roles=roles)
    return SimulatedStudy(
        domains=domains,
        targets=targets,
        truth=truth,
        noise=noise,
        runs=runs,
        observations=observations,
        heldout=tuple(Mixture.from_array(domains, r_M) for r_M in heldout_RM),
        heldout_RT=y_RT[len(y_RT) - num_heldout :],
    )


def observe_losses(
    rng: np.random.Generator, truth: Truth, r_RM: np.ndarray, seeds: Sequence[int], noise: Noise
) -> np.ndarray:
    """Returns losses of runs: the truth, what their seed does to all mixtures, and their own."""
    y_RT = truth(r_RM)
    offset = {s: rng.normal(0.0, noise.offset_sd, size=y_RT.shape[1]) for s in dict.fromkeys(seeds)}
    return (
        y_RT + np.stack([offset[s] for s in seeds]) + rng.normal(0.0, noise.own_sd, size=y_RT.shape)
    )


def make_tables(
    domains: Sequence[str],
    targets: Sequence[str],
    r_RM: np.ndarray,
    y_RT: np.ndarray,
    *,
    seeds: Sequence[int | None] | None = None,
    roles: Sequence[str] | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Returns the runs and the observations table; a NaN loss is left out."""
    count = len(r_RM)
    run_ids = [f"run{i:03d}" for i in range(count)]
    runs = pl.DataFrame(
        {
            "run_id": run_ids,
            "mixture_id": [Mixture.from_array(domains, r_M).mixture_id for r_M in r_RM],
            "role": list(roles) if roles is not None else ["design"] * count,
            "seed": list(seeds) if seeds is not None else [DESIGN_SEED] * count,
            **{f"r:{name}": r_RM[:, j] for j, name in enumerate(domains)},
        },
        schema_overrides={"seed": pl.Int64},
    )
    rows = [
        {
            "run_id": run_ids[i],
            "step": STEP,
            "tokens": 1e6,
            "target": target,
            "value": float(y_RT[i, k]),
            "unit": "nats_per_token",
        }
        for i in range(count)
        for k, target in enumerate(targets)
        if not np.isnan(y_RT[i, k])
    ]
    return runs, pl.DataFrame(rows)


def floored_simplex(study: SimulatedStudy, floor: float = 0.04) -> CappedSimplex:
    """Returns the mixtures that the design covers."""
    return CappedSimplex.of(study.domains, floors=floor)
