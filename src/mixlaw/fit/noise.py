"""What differs between runs of one mixture: the noise of seeds, which shared seeds hide.

Shape letters: T targets, N runs that repeat a mixture.

Design runs share their seed (common random numbers), so that mixtures are comparable: whatever that
seed does to all of them is in no residual. Runs of the same mixtures with fresh seeds show it: how
far apart seeds are (`replicate_residuals`) and whether the shared seed is a good or a bad one
(`level_shift`).
"""

import numpy as np
from jaxtyping import Float

from mixlaw.observations import LossTable

COMMON_SHARE = 0.5
"""Share of the variance between seeds that all mixtures have in common: 0.48 over six targets, from
three mixtures with three seeds each (docs/log.md)."""


def replicate_residuals(compared: LossTable) -> tuple[Float[np.ndarray, "N T"], int]:
    """Returns losses of repeated mixtures less their mixture's mean, and the degrees of freedom.

    Runs that lack a loss are left out: combinations of targets need all of them.
    """
    rows: list[np.ndarray] = []
    freedom = 0
    for members in _groups(compared):
        if len(members) > 1:
            y_RT = compared.y_RT[members]
            rows.append(y_RT - np.mean(y_RT, axis=0))
            freedom += len(members) - 1
    if not rows:
        return np.zeros((0, len(compared.targets))), 0
    return np.vstack(rows), freedom


def level_shift(fitted: LossTable, compared: LossTable) -> tuple[Float[np.ndarray, " T"], float]:
    r"""Returns what a fresh seed is expected to add to predictions, and the noise that it adds.

    Part of what a seed does is common to all mixtures (variance $\sigma_c^2$), part is a run's own
    ($\sigma_o^2$, which residuals hold). The mean difference between F fresh seeds and the shared
    one, on B mixtures, estimates the common part of the shared seed with the error
    $v = \sigma_c^2 / F + \sigma_o^2 (1/F + 1/B)$. It is shrunk by
    $w = \sigma_c^2 / (\sigma_c^2 + v)$; a new run's common part then has the variance
    $\sigma_c^2 (2 - w)$ around it.

    Returns:
        The shift by target, and that variance in units of the seeds' whole variance: 0 where the
        fitted runs have seeds of their own (their residuals then hold all noise).
    """
    nothing = np.zeros(len(fitted.targets))
    shared = shared_seed(fitted)
    if shared is None:
        return nothing, 0.0
    by_seed: dict[int | None, list[np.ndarray]] = {}
    bases = 0
    for members in _groups(compared):
        base = [i for i in members if compared.seeds[i] == shared]
        fresh = [i for i in members if compared.seeds[i] not in (shared, None)]
        if base and fresh:
            bases += 1
            base_T = np.mean(compared.y_RT[base], axis=0)
            for i in fresh:
                by_seed.setdefault(compared.seeds[i], []).append(compared.y_RT[i] - base_T)
    if not by_seed:
        return nothing, 2 * COMMON_SHARE
    # A seed that was used on several mixtures is one seed.
    mean_T = np.mean([np.mean(rows, axis=0) for rows in by_seed.values()], axis=0)
    own_share, fresh_seeds = 1 - COMMON_SHARE, len(by_seed)
    error = COMMON_SHARE / fresh_seeds + own_share * (1 / fresh_seeds + 1 / bases)
    trust = COMMON_SHARE / (COMMON_SHARE + error)
    return trust * mean_T, COMMON_SHARE * (2 - trust)


def shared_seed(fitted: LossTable) -> int | None:
    """Returns the seed that all runs share; None: they have several, or it is not known."""
    seeds = set(fitted.seeds)
    return seeds.pop() if len(seeds) == 1 else None


def _groups(table: LossTable) -> list[list[int]]:
    """Returns the complete runs of each mixture."""
    members: dict[str, list[int]] = {}
    for i, mixture_id in enumerate(table.mixture_ids):
        if np.all(np.isfinite(table.y_RT[i])):
            members.setdefault(mixture_id, []).append(i)
    return list(members.values())
