"""From a design to the runs that measure it, and what they will take.

All runs of the design share one seed: the same initialisation and the same order of each domain's
text (common random numbers), which makes mixtures comparable. How much seeds differ is then hidden,
so `noise_runs` repeats two of the mixtures with fresh seeds, and every held-out mixture has a fresh
seed of its own, as the run that is to be predicted will.

The mixtures are handed to teams that train with their own tools by `mixlaw.exporters.write_plan`.

Shape letters: R runs or mixtures, M training domains.
"""

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mixlaw.design import Coverage, Design
from mixlaw.design.points import moved_shares
from mixlaw.domains import Domain
from mixlaw.errors import DesignError
from mixlaw.mixtures import Mixture, stack_mixtures
from mixlaw.runs.spec import RunSpec

Role = Literal["design", "noise", "holdout", "verify", "original", "imported"]
_ROLES: dict[Role, str] = {
    "design": "of the design",
    "noise": "with fresh seeds for the noise",
    "holdout": "held out",
    "verify": "to verify",
    "original": "whose weights others start from",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """A run and what it is for."""

    spec: RunSpec
    role: Role


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainUse:
    """How much of a domain the runs train on."""

    name: str
    mean_tokens: float
    """Tokens of this domain per run, on average over the runs."""
    largest_tokens: float
    """Tokens of this domain in the run that takes most of it."""
    mean_epochs: float | None
    """How often a run sees the domain, on average over the runs; None: its size is not known."""
    largest_epochs: float | None
    """How often the run that takes most of the domain sees it; None: its size is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The runs to train, and what they will take."""

    design: Design
    coverage: Coverage
    """What the design covers of the mixtures that are allowed."""
    runs: tuple[PlannedRun, ...]
    domains: tuple[DomainUse, ...]
    tokens: int
    """Tokens of all runs."""
    flops: float
    """About the floating-point operations of all runs: 6 per parameter and token."""
    seconds: float | None
    """About the time that training takes, with runs side by side; None: no speed is known."""
    slots: int
    """Runs that train at once."""
    notes: tuple[str, ...] = ()
    """What a reader should know, in sentences."""

    def sentences(self) -> tuple[str, ...]:
        """Returns the plan in sentences: coverage, runs, tokens and epochs, compute and time."""
        return tuple(_sentences(self))


def plan_runs(
    design: Design,
    *,
    params: float | Sequence[float],
    tokens_per_step: int,
    corpus: str,
    tokenizer: str,
    trainer: str,
    tokens: float | None = None,
    steps: int | None = None,
    eval_steps: Sequence[int] | None = None,
    precision: str = "fp32",
    schedule: str = "constant",
    learning_rate: float | None = None,
    noise_runs: int = 0,
    holdout: Sequence[Mixture] = (),
    token_limits: Mapping[str, int] | None = None,
    seed: int = 0,
) -> tuple[PlannedRun, ...]:
    """Returns the runs of a design at each size: its mixtures, the noise runs, the held-out ones.

    Args:
        design: The mixtures.
        params: Parameters without embeddings; several: each mixture at each size.
        tokens_per_step: Tokens per optimizer step.
        corpus: Hash of the corpus' manifest.
        tokenizer: Identity of the tokenizer.
        trainer: Recipe and version of the trainer.
        tokens: Tokens of each run, rounded to whole steps; either this or `steps`.
        steps: Optimizer steps of each run.
        eval_steps: Steps after which losses are measured; `log_spaced_steps` by default.
        precision: Resolved precision of matrix products, fp32 or bf16.
        schedule: Learning-rate schedule.
        learning_rate: Peak learning rate; None: the trainer's own.
        noise_runs: Runs per size that repeat two of the mixtures, in turn, with fresh seeds: the
            one in the middle of the design and the one that is farthest from it.
        holdout: Mixtures that are trained but not fitted.
        token_limits: How many tokens of a domain's training text all runs may use; all of them
            where a domain is not named.
        seed: Seed that all runs of the design share; fresh seeds are derived from it.

    Raises:
        DesignError: `tokens` or `steps` is missing, or both are given, or a number is negative.
        RunError: A size or a number of steps that no run can have.
    """
    steps = whole_steps(tokens, steps, tokens_per_step)
    if noise_runs < 0:
        raise DesignError(f"noise_runs must not be negative, found {noise_runs}")
    repeated = choose_noise_mixtures(design.mixtures)
    base = RunSpec(
        mixture=repeated[0],
        params=1,
        steps=steps,
        tokens_per_step=tokens_per_step,
        eval_steps=tuple(log_spaced_steps(steps) if eval_steps is None else eval_steps),
        schedule=schedule,
        learning_rate=learning_rate,
        corpus=corpus,
        tokenizer=tokenizer,
        trainer=trainer,
        precision=precision,
        token_limits=token_limits or {},
    )
    of_each_size: list[tuple[Mixture, Role, int]] = [
        *((mixture, "design", seed) for mixture in design.mixtures),
        *(
            (repeated[index % len(repeated)], "noise", fresh_seed(seed, "noise", index))
            for index in range(noise_runs)
        ),
        *(
            (mixture.reordered(design.domains), "holdout", fresh_seed(seed, "holdout", index))
            for index, mixture in enumerate(holdout)
        ),
    ]
    sizes = [params] if isinstance(params, int | float) else params
    return tuple(
        PlannedRun(
            spec=replace(base, mixture=mixture, params=round(size), seed=run_seed), role=role
        )
        for size in sizes
        for mixture, role, run_seed in of_each_size
    )


def describe_plan(
    runs: Sequence[PlannedRun],
    *,
    design: Design,
    domains: Sequence[Domain],
    tokens_per_second: float | Mapping[int, float] | None = None,
    slots: int = 1,
) -> Plan:
    """Returns the runs with what they will take.

    Args:
        runs: The planned runs.
        design: The design that they measure.
        domains: The training domains, with the tokens that the runs are trained on.
        tokens_per_second: Speed of a slot, for all sizes or by the runs' `params`; None: not known.
        slots: Runs that train at once.
    """
    specs = [run.spec for run in runs]
    uses = tuple(_domain_use(domain, specs) for domain in domains)
    return Plan(
        design=design,
        coverage=design.coverage(),
        runs=tuple(runs),
        domains=uses,
        tokens=sum(spec.tokens for spec in specs),
        flops=sum(spec.flops for spec in specs),
        seconds=_seconds(specs, tokens_per_second, slots),
        slots=slots,
        notes=(*design.notes, *_repetition_notes(domains, uses)),
    )


def log_spaced_steps(steps: int, count: int = 4, *, first: int | None = None) -> tuple[int, ...]:
    """Returns at most `count` distinct steps, evenly spaced in their logarithm, up to the last.

    Args:
        steps: The last step.
        count: How many; fewer come out where `steps` has not so many.
        first: The first one; by default halving from the last: an eighth of it for four.
    """
    if steps < 1 or count < 1:
        raise DesignError(f"steps and count must be positive, found {steps} and {count}")
    start = steps / 2 ** (count - 1) if first is None else first
    start = min(max(1.0, start), float(steps))
    spaced = np.geomspace(start, steps, count) if count > 1 else [steps]
    return tuple(sorted({round(float(step)) for step in spaced} | {steps}))


def fresh_seed(seed: int, role: Role, index: int) -> int:
    """Returns a seed below 2**31 of its own for the index-th run of a role.

    It stays the same when more runs are planned, and differs between studies with other seeds.
    """
    digest = hashlib.sha256(f"{seed}/{role}/{index}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def choose_noise_mixtures(mixtures: Sequence[Mixture]) -> tuple[Mixture, ...]:
    """Returns the mixture in the middle of a design and the one that is farthest from it."""
    if not mixtures:
        raise DesignError("a plan needs at least one mixture", do="draw some with sample_mixtures")
    ordered = sorted(mixtures, key=lambda mixture: mixture.mixture_id)
    r_RM = stack_mixtures(ordered)
    centre = int(np.argmin(moved_shares(r_RM, np.mean(r_RM, axis=0)[None])[:, 0]))
    farthest = int(np.argmax(moved_shares(r_RM, r_RM[centre : centre + 1])[:, 0]))
    return (ordered[centre],) if farthest == centre else (ordered[centre], ordered[farthest])


def whole_steps(tokens: float | None, steps: int | None, tokens_per_step: int) -> int:
    """Returns the steps that a plan's runs take, from either tokens or steps.

    Raises:
        DesignError: Both are given or none, or tokens are not positive.
    """
    if (tokens is None) == (steps is None):
        raise DesignError("a plan needs either tokens or steps per run, and not both")
    if steps is not None:
        return steps
    assert tokens is not None
    if not (math.isfinite(tokens) and tokens > 0 and tokens_per_step > 0):
        raise DesignError(
            f"tokens and tokens_per_step must be positive, found {tokens:g} and {tokens_per_step}"
        )
    return max(1, round(tokens / tokens_per_step))


def _domain_use(domain: Domain, specs: Sequence[RunSpec]) -> DomainUse:
    tokens = [spec.mean_mixture.get(domain.name, 0.0) * spec.tokens for spec in specs] or [0.0]
    mean, largest = math.fsum(tokens) / len(tokens), max(tokens)
    return DomainUse(
        name=domain.name,
        mean_tokens=mean,
        largest_tokens=largest,
        mean_epochs=domain.epochs(1.0, mean),
        largest_epochs=domain.epochs(1.0, largest),
    )


def _repetition_notes(domains: Sequence[Domain], uses: Sequence[DomainUse]) -> Iterator[str]:
    for domain, use in zip(domains, uses, strict=True):
        if use.largest_epochs is not None and use.largest_epochs > domain.max_epochs:
            yield (
                f"a run sees {domain.name} {use.largest_epochs:.2g} times, more often than the"
                f" {domain.max_epochs:g} epochs that are allowed: repeated text is worth less"
            )


def _seconds(
    specs: Sequence[RunSpec], tokens_per_second: float | Mapping[int, float] | None, slots: int
) -> float | None:
    """Time until the last slot is done, when each next run goes to the slot that is free first."""
    if slots < 1:
        raise DesignError(f"slots must be at least 1, found {slots}")
    if tokens_per_second is None:
        return None
    lengths: list[float] = []
    for spec in specs:
        speed = (
            tokens_per_second
            if isinstance(tokens_per_second, int | float)
            else tokens_per_second.get(spec.params)
        )
        if speed is None:
            return None
        lengths.append(spec.tokens / speed)
    free = [0.0] * slots
    for length in sorted(lengths, reverse=True):
        heapq.heappush(free, heapq.heappop(free) + length)
    return max(free)


def _sentences(plan: Plan) -> Iterator[str]:
    if len(plan.design.mixtures) > 1:
        yield _coverage_sentence(plan.coverage)
    if plan.runs:
        roles: Counter[Role] = Counter(run.role for run in plan.runs)
        parts = [f"{count} {_ROLES.get(role, role)}" for role, count in roles.items()]
        yield f"runs: {len(plan.runs)} ({', '.join(parts)})"
        for use in plan.domains:
            yield _use_sentence(use)
        time = "" if plan.seconds is None else f", about {_duration(plan.seconds)}"
        slots = f" with {plan.slots} at once" if time else ""
        yield f"in all: {_count(plan.tokens)} tokens, {plan.flops:.2g} FLOPs{time}{slots}"
    yield from plan.notes


def _coverage_sentence(coverage: Coverage) -> str:
    return (
        f"coverage: the most alike mixtures differ in {coverage.nearest_pair:.0%} of the tokens, an"
        f" allowed mixture in at most {coverage.largest_gap:.0%} from the nearest of the design;"
        f" condition number {coverage.condition_number:.3g}"
    )


def _use_sentence(use: DomainUse) -> str:
    text = (
        f"{use.name}: {_count(use.mean_tokens)} tokens per run, {_count(use.largest_tokens)} at"
        " most"
    )
    if use.mean_epochs is None or use.largest_epochs is None:
        return text
    return f"{text}; {use.mean_epochs:.2g} epochs, {use.largest_epochs:.2g} at most"


def _count(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
