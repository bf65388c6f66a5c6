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


def level_shift(fitted: LossTable, compared: LossTable) -> tuple[Float[np.ndarray, " T"], int]:
    """Returns what fresh seeds add on average to the losses of the shared one, and their number.

    Zero, and no seeds, where the fitted runs have seeds of their own (their residuals then hold the
    noise) or fewer than two fresh seeds tell it.
    """
    none = np.zeros(len(fitted.targets)), 0
    shared = shared_seed(fitted)
    if shared is None:
        return none
    by_seed: dict[int | None, list[np.ndarray]] = {}
    for members in _groups(compared):
        base = [i for i in members if compared.seeds[i] == shared]
        fresh = [i for i in members if compared.seeds[i] not in (shared, None)]
        if base and fresh:
            base_T = np.mean(compared.y_RT[base], axis=0)
            for i in fresh:
                by_seed.setdefault(compared.seeds[i], []).append(compared.y_RT[i] - base_T)
    if len(by_seed) < 2:
        return none
    # A seed that was used on several mixtures is one seed.
    return np.mean([np.mean(rows, axis=0) for rows in by_seed.values()], axis=0), len(by_seed)


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
