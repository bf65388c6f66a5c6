r"""What a seed does to task errors beside what it does to the losses.

Shape letters: N rows (a run at a step), J columns (tasks, and their mean), S fresh seeds.

Design runs share their seed. Small models guess where they don't know, and how they guess is partly
their seed's: on the demo's word-swap tasks near chance, runs with fresh seeds lay 0.05 off the law
of the shared one (docs/log.md), whatever their losses. Runs with fresh seeds tell how much of that
all mixtures have in common.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mixlaw.fit.task_table import TaskTable


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SeedShift:
    """What a fresh seed adds to errors that a law of runs with one shared seed predicts."""

    shift_J: Float[np.ndarray, " J"]
    """Expected difference."""
    sd_J: Float[np.ndarray, " J"]
    """Standard deviation around it; 0 where the runs have seeds of their own."""
    num_seeds: int
    """Fresh seeds that told it; 0: not known, or nothing to tell."""
    is_shared: bool
    """Whether the design runs share a seed."""


def learn_seed_shift(table: TaskTable, residual_NJ: Float[np.ndarray, "N J"]) -> SeedShift:
    r"""Returns the shift of a fresh seed, from observed less predicted errors at measured losses.

    A run's residual is a part that its seed does to all mixtures (variance $\sigma_c^2$) and its
    own ($\sigma_o^2$, items included). With S fresh seeds, of n runs each, and B runs of the shared
    one, a squared difference of means has the expectation
    $2 \sigma_c^2 + \sigma_o^2 (1/n + 1/B)$; the ratio of the two variances is taken to be the same
    for all columns. The mean difference is then shrunk as in `mixlaw.fit.noise.level_shift`.

    Args:
        table: Where the residuals come from.
        residual_NJ: NaN where there is none.
    """
    nothing = np.zeros(residual_NJ.shape[1])
    last_N = table.is_last_N & np.isfinite(residual_NJ).all(axis=1)
    seeds = np.array([-1 if seed is None else seed for seed in table.seeds])[last_N]
    known_NJ = residual_NJ[last_N]
    counts = {int(seed): int(np.sum(seeds == seed)) for seed in np.unique(seeds) if seed >= 0}
    shared = max(counts, key=lambda seed: counts[seed], default=-1)
    if counts.get(shared, 0) < max(4, len(known_NJ) / 2):
        return SeedShift(shift_J=nothing, sd_J=nothing, num_seeds=0, is_shared=False)
    base_NJ = known_NJ[seeds == shared]
    fresh = [known_NJ[seeds == seed] for seed in counts if seed != shared]
    if not fresh:
        return SeedShift(shift_J=nothing, sd_J=nothing, num_seeds=0, is_shared=True)
    own_J = np.maximum(np.var(base_NJ, axis=0, ddof=1), 1e-12)
    apart_SJ = np.stack([rows_NJ.mean(axis=0) for rows_NJ in fresh]) - base_NJ.mean(axis=0)
    count, per_seed = len(fresh), float(np.mean([1 / len(rows_NJ) for rows_NJ in fresh]))
    per_base = 1 / len(base_NJ)
    ratio = max(0.0, (float(np.mean(apart_SJ**2 / own_J)) - per_seed - per_base) / 2)
    trust = ratio / (ratio + (ratio + per_seed) / count + per_base)
    return SeedShift(
        shift_J=trust * apart_SJ.mean(axis=0),
        sd_J=np.sqrt(ratio * (2 - trust) * own_J),
        num_seeds=count,
        is_shared=True,
    )
