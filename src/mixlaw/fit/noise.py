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
    """Returns losses of repeated mixtures less their mixture's mean, and the degrees of freedom."""
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
    """Returns what fresh seeds add on average to the losses of the seed that all fitted runs share.

    Zero, with no degrees of freedom, where the fitted runs have seeds of their own (their residuals
    then hold the noise) or fewer than two fresh seeds tell it.
    """
    none = np.zeros(len(fitted.targets)), 0
    shared = shared_seed(fitted)
    if shared is None:
        return none
    differences: list[np.ndarray] = []
    for members in _groups(compared):
        base = [i for i in members if compared.seeds[i] == shared]
        fresh = [i for i in members if compared.seeds[i] not in (shared, None)]
        if base and fresh:
            base_T = np.mean(compared.y_RT[base], axis=0)
            differences.extend(compared.y_RT[i] - base_T for i in fresh)
    if len(differences) < 2:
        return none
    shift_T = np.mean(np.stack(differences), axis=0)
    return np.where(np.isfinite(shift_T), shift_T, 0.0), len(differences)


def shared_seed(fitted: LossTable) -> int | None:
    """Returns the seed that all runs share; None: they have several, or it is not known."""
    seeds = set(fitted.seeds)
    return seeds.pop() if len(seeds) == 1 else None


def _groups(table: LossTable) -> list[list[int]]:
    members: dict[str, list[int]] = {}
    for i, mixture_id in enumerate(table.mixture_ids):
        members.setdefault(mixture_id, []).append(i)
    return list(members.values())
