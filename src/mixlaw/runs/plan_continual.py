"""The runs of continual pre-training: an original model, and runs that go on from its weights.

Each continued run mixes the original data with new data at another share. They share one seed, so
that they see each domain's text in one order, and another one than the original's, so that it is
not the order that the original saw. Replicates with fresh seeds say how much that order matters;
how much the original model matters, other originals say (plan again with another seed).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mixlaw.errors import DesignError
from mixlaw.mixtures import Mixture
from mixlaw.runs.plan import (
    PlannedRun,
    choose_noise_mixtures,
    fresh_seed,
    log_spaced_steps,
    whole_steps,
)
from mixlaw.runs.spec import RunSpec
from mixlaw.runs.starts import start_of_run


def plan_continual(
    original: RunSpec,
    *,
    new: Mixture,
    old_shares: Sequence[float],
    old: Mixture | None = None,
    tokens: float | None = None,
    steps: int | None = None,
    eval_steps: Sequence[int] | None = None,
    start: str | None = None,
    replicates: int = 0,
    seed: int = 0,
) -> tuple[PlannedRun, ...]:
    """Returns the original run and those that go on from its weights, one per share of old data.

    Train them with `ProxyTrainer(..., keep_weights=True)`. The first evaluation, at step 0, is of
    the original model. The learning rate warms up again to the original's peak, and the optimizer's
    moments begin at zero.

    Args:
        original: The run whose weights are gone on from.
        new: Token shares of the new data.
        old_shares: Shares of the original data, one run each.
        old: Token shares of the original data; those that the original run was trained on.
        tokens: Tokens of each continued run, rounded to whole steps; either this or `steps`.
        steps: Optimizer steps of each continued run.
        eval_steps: Steps after which losses are measured; 0 and `log_spaced_steps` by default.
        start: Given weights of the same size instead, as `keep_checkpoint` returns them; the
            original run is then not trained.
        replicates: Runs that repeat the middle share and the farthest, in turn, with fresh seeds.
        seed: Decides the seeds of the continued runs.

    Raises:
        DesignError: A share is not between 0 and 1, or `tokens` and `steps` are not one of the two.
        RunError: A number of steps that no run can have.
    """
    if replicates < 0:
        raise DesignError(f"replicates must not be negative, found {replicates}")
    steps = whole_steps(tokens, steps, original.tokens_per_step)
    base = replace(
        original,
        steps=steps,
        eval_steps=tuple((0, *log_spaced_steps(steps)) if eval_steps is None else eval_steps),
        later_stages=(),
        start=start_of_run(original) if start is None else start,
        seed=fresh_seed(seed, "original", 0),
        token_limits={},
    )
    before = original.mean_mixture if old is None else old
    mixtures = [blend_mixtures(before, new, share) for share in old_shares]
    repeated = choose_noise_mixtures(mixtures)
    continued = [
        *(PlannedRun(spec=replace(base, mixture=mixture), role="design") for mixture in mixtures),
        *(
            PlannedRun(
                spec=replace(
                    base,
                    mixture=repeated[index % len(repeated)],
                    seed=fresh_seed(seed, "noise", index),
                ),
                role="noise",
            )
            for index in range(replicates)
        ),
    ]
    parents = () if start is not None else (PlannedRun(spec=original, role="original"),)
    return (*parents, *continued)


def blend_mixtures(old: Mapping[str, float], new: Mapping[str, float], share: float) -> Mixture:
    """Returns the mixture of old and new data, `share` of the tokens being old.

    Its domains are those of both: the old ones in their order, then the others.

    Raises:
        DesignError: The share is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise DesignError(f"a share of old data must be between 0 and 1, found {share:g}")
    return Mixture.normalized(
        {
            name: math.fsum([share * old.get(name, 0.0), (1 - share) * new.get(name, 0.0)])
            for name in dict.fromkeys([*old, *new])
        }
    )
