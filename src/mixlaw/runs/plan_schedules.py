"""Runs whose mixture changes on the way: schedules of a few stages, and the runs that train them.

All runs of the design share one seed, as constant ones do: the same initial weights and the same
order of each domain's text, whichever stage it is seen in.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mixlaw.errors import DesignError
from mixlaw.mixtures import Mixture
from mixlaw.runs.plan import PlannedRun, Role, fresh_seed
from mixlaw.runs.spec import RunSpec, stages_of

Schedule = tuple[Mixture, ...]
"""A mixture per stage."""


def sample_schedules(
    mixtures: Sequence[Mixture], *, stages: int, constant: int = 0, seed: int = 0
) -> tuple[Schedule, ...]:
    """Returns as many schedules as there are mixtures, each mixture being once in every stage.

    Stages are permuted independently, so what is seen early says nothing of what is seen late.

    Args:
        mixtures: What a stage may be, such as those of a design over the domains.
        stages: Stages of each schedule.
        constant: So many of the mixtures, evenly spaced, are trained as constant schedules too.
        seed: Decides which mixtures follow one another.

    Raises:
        DesignError: Fewer than two mixtures or one stage, or more constant ones than mixtures.
    """
    count = len(mixtures)
    if count < 2 or stages < 1 or not 0 <= constant <= count:
        raise DesignError(
            "schedules need at least 2 mixtures and 1 stage, and no more constant ones than"
            f" mixtures, found {count}, {stages} and {constant}"
        )
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed % 2**64, stages])))
    ordered = [np.arange(count), *(rng.permutation(count) for _ in range(stages - 1))]
    drawn = [tuple(mixtures[i] for i in row) for row in np.stack(ordered, axis=1).tolist()]
    spaced = [mixtures[i * count // constant] for i in range(constant)]
    return (*drawn, *((mixture,) * stages for mixture in spaced))


def plan_schedules(
    base: RunSpec,
    schedules: Sequence[Schedule],
    *,
    end_shares: Sequence[float] | None = None,
    noise_runs: int = 0,
    holdout: Sequence[Schedule] = (),
    seed: int = 0,
) -> tuple[PlannedRun, ...]:
    """Returns the runs of schedules: those of the design, the noise runs, the held-out ones.

    A constant schedule is the run of its one mixture, with the run_id that this always had.

    Args:
        base: What all runs have in common: size, steps, evaluations, corpus and trainer.
        schedules: A mixture per stage, all with as many stages.
        end_shares: After which share of the steps each stage ends, the last one being 1; stages of
            equal length by default.
        noise_runs: Runs that repeat the first schedule and the one in the middle of the list, in
            turn, with fresh seeds.
        holdout: Schedules that are trained but not fitted, each with a fresh seed.
        seed: Seed that all runs of the design share; fresh seeds are derived from it.

    Raises:
        DesignError: No schedules, schedules of different lengths, or ends that don't rise to 1.
        RunError: A stage shorter than a step.
    """
    if noise_runs < 0:
        raise DesignError(f"noise_runs must not be negative, found {noise_runs}")
    lengths = {len(schedule) for schedule in (*schedules, *holdout)}
    if not schedules or len(lengths) != 1:
        raise DesignError(
            f"a plan needs schedules of one number of stages, found {sorted(lengths) or 'none'}"
        )
    ends = stage_ends(base.steps, lengths.pop(), shares=end_shares)
    repeated = (schedules[0], schedules[len(schedules) // 2])
    planned: list[tuple[Schedule, Role, int]] = [
        *((schedule, "design", seed) for schedule in schedules),
        *((repeated[i % 2], "noise", fresh_seed(seed, "noise", i)) for i in range(noise_runs)),
        *(
            (schedule, "holdout", fresh_seed(seed, "holdout", index))
            for index, schedule in enumerate(holdout)
        ),
    ]
    return tuple(
        PlannedRun(spec=schedule_spec(base, schedule, ends=ends, seed=run_seed), role=role)
        for schedule, role, run_seed in planned
    )


def schedule_spec(
    base: RunSpec, schedule: Schedule, *, ends: Sequence[int] | None = None, seed: int | None = None
) -> RunSpec:
    """Returns the run of one schedule.

    Args:
        base: What it has in common with others.
        schedule: A mixture per stage.
        ends: After which step each stage ends; stages of equal length by default.
        seed: Of initial weights and data order; the base's by default.

    Raises:
        RunError: Other ends than stages, or a stage shorter than a step.
    """
    chosen = stage_ends(base.steps, len(schedule)) if ends is None else tuple(ends)
    return replace(
        base,
        mixture=schedule[0],
        later_stages=stages_of(schedule, chosen),
        seed=base.seed if seed is None else seed,
    )


def stage_ends(
    steps: int, stages: int, *, shares: Sequence[float] | None = None
) -> tuple[int, ...]:
    """Returns after which step each stage ends: whole steps, the last one being the run's last.

    Args:
        steps: Steps of the whole run.
        stages: How many stages.
        shares: After which share of the steps each stage ends; stages of equal length by default.

    Raises:
        DesignError: Another number of shares than stages, or shares that don't rise to 1.
    """
    chosen = [(k + 1) / stages for k in range(stages)] if shares is None else list(shares)
    rises = all(a < b for a, b in zip([0.0, *chosen], chosen, strict=False))
    if len(chosen) != stages or not rises or abs(chosen[-1] - 1) > 1e-9:
        raise DesignError(
            f"the ends of {stages} stages must rise to 1, the whole run, found {chosen}",
            do="give one share of the steps per stage, such as 0.5 and 1",
        )
    return (*(round(share * steps) for share in chosen[:-1]), steps)
