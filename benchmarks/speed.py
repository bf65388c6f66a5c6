"""How long fits take: against the official recipe, in hundreds of refits, and as data grow.

    python benchmarks/speed.py --fit DIR [--json]

DIR holds `mixinglaws` and `regmix` as published. One process. The official recipe's 6,000 starts
are timed on 200 and scaled; comparisons are in CPU seconds of one thread, which a busy machine
doesn't change much, all else is wall time. Cases: speed/five-domains (one target: fits of M4 to the
same objective, without shrinkage), speed/five-domains-all (all targets in one call, per target),
speed/five-domains-rule (our whole rule: scale, strength, starts), speed/refits, speed/nested,
speed/runs, speed/targets, speed/domains (the whole rule, as one of them grows). `value` is seconds,
or a ratio theirs / ours; standard error says with which power seconds grow.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent))

from records import Records, benchmark_arguments  # isort: skip - pins threads

import numpy as np
import polars as pl

from mixlaw.fit import fit_law
from mixlaw.fit.law import DRAW_TOLERANCE
from mixlaw.fit.nested import extrapolate_nested
from mixlaw.fit.solver import HUBER, Problems, minimize_problems
from mixlaw.fit.strength import (
    Candidates,
    Solutions,
    choose_strength,
    solve_starts,
    try_strengths,
)
from mixlaw.importers.published import read_mixinglaws, read_regmix
from mixlaw.laws.base import MixingLaw
from mixlaw.laws.library import MIXING_LAWS
from mixlaw.observations import LossTable, loss_table
from speed_peers import CLOCK, DELTA, Trial, curve_fit_starts, official_starts

Answer = TypeVar("Answer")

USUAL = "power-reciprocal"
"""The law that selection chooses most often on the published runs."""
LAWS = {"m4": "m4", "selected": USUAL}
TARGET, SIZE_410M, STEP = "Pile-CC", 302_311_424, 30_000
OFFICIAL_STARTS, TIMED_STARTS = 6000, 200
CLOSE = 1e-6
"""The recipe has arrived when its objective is this close to ours."""
NUM_REFITS, REFITS_AT_ONCE = 200, 10
REFIT_SECONDS = 40.0
"""Refits that take longer than this are scaled from those that were done."""
FIRST_STEP = 10_000
"""Steps that the nested pipeline fits, as in the paper."""
FAR_PARAMS, FAR_STEP = 805_736_448, 100_000
NUM_RUNS = (100, 316, 1000, 3162, 10_000)
NUM_TARGETS = (1, 3, 10, 20, 50)
NUM_DOMAINS = (5, 20, 50, 100, 200)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What the rule of `mixlaw.fit` finds for all targets of a table."""

    chosen: Candidates
    solutions: Solutions


def main() -> None:
    """Times everything and prints."""
    options = benchmark_arguments(__doc__)
    records = Records("speed")
    papers, swarm = options.fit / "mixinglaws", options.fit / "regmix"
    if (papers / "5Mix").is_dir():
        add_five_domains(records, papers / "5Mix")
    if swarm.is_dir():
        add_refits(records, swarm)
    if (papers / "RedPajama").is_dir():
        add_nested(records, papers / "RedPajama")
    add_growth(records)
    records.finish(options.json)


def timed(
    function: Callable[[], Answer],
    *,
    repeats: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Answer, float]:
    """Returns the answer and the median of the seconds that it took."""
    seconds: list[float] = []
    for _ in range(repeats):
        began = clock()
        answer = function()
        seconds.append(clock() - began)
    return answer, float(np.median(seconds))


def fit_rule(law: MixingLaw, r_RM: np.ndarray, y_TR: np.ndarray) -> Fit:
    """Returns the fit to all runs as `fit_table` makes it: scale, strength, starts."""
    chosen = choose_strength(try_strengths(law, r_RM, y_TR))
    start_TSP = np.concatenate([chosen.theta_BP[:, None], law.starts(r_RM, y_TR)], axis=1)
    solutions = solve_starts(
        law,
        r_RM,
        y_TR,
        scale_B=chosen.scale_B,
        strength_B=chosen.strength_B,
        start_BSP=start_TSP,
    )
    return Fit(chosen=chosen, solutions=solutions)


def fit_official_objective(r_RM: np.ndarray, y_TR: np.ndarray) -> np.ndarray:
    """Returns the minima of the official objective, by our solver from M4's own starts."""
    law = MIXING_LAWS["m4"]
    scale_T = np.full(len(y_TR), DELTA / HUBER)
    solutions = solve_starts(
        law,
        r_RM,
        y_TR,
        scale_B=scale_T,
        strength_B=np.zeros(len(y_TR)),
        start_BSP=law.starts(r_RM, y_TR),
    )
    return solutions.objective_B * scale_T**2


# Against others.


def add_five_domains(records: Records, folder: Path) -> None:
    """Adds the times of M4 on the paper's 26 five-domain mixtures, ours and others'."""
    published = read_mixinglaws(folder)
    runs = published.runs.filter(pl.col("params_non_embedding") == SIZE_410M)
    table = loss_table(runs, published.observations, step=STEP)
    y_TR, r_RM = table.y_RT.T, table.r_RM
    y_1R = y_TR[[table.targets.index(TARGET)]]
    about = {"n": len(y_1R[0]), "params": SIZE_410M, "step": STEP}
    fit_official_objective(r_RM, y_1R)  # warm
    best_1, one = timed(lambda: fit_official_objective(r_RM, y_1R), repeats=21, clock=CLOCK)
    _, every = timed(lambda: fit_official_objective(r_RM, y_TR), repeats=7, clock=CLOCK)
    _, rule = timed(lambda: fit_rule(MIXING_LAWS["m4"], r_RM, y_1R), repeats=7, clock=CLOCK)
    ours = {
        "speed/five-domains": (one, TARGET),
        "speed/five-domains-all": (every / len(y_TR), "mean"),
        "speed/five-domains-rule": (rule, TARGET),
    }
    for case, (seconds, target) in ours.items():
        records.add(case=case, law="m4", metric="seconds", value=seconds, unit="s", target=target,
                    **about)  # fmt: skip
    print(f"ours on {TARGET}: objective {best_1[0]:.9f}, {one:.5f} s", file=sys.stderr)
    add_curve_fit(records, r_RM, y_1R[0], best=float(best_1[0]), ours=one)
    if find_spec("torch") is None:
        print("torch is not installed: the official recipe is not timed", file=sys.stderr)
        return
    trials = list(official_starts(r_RM, y_1R[0], num_starts=TIMED_STARTS))
    theirs = sum(t.seconds for t in trials) * OFFICIAL_STARTS / TIMED_STARTS
    print(
        f"official recipe: {OFFICIAL_STARTS} starts, timed on {TIMED_STARTS} and scaled:"
        f" {theirs:.0f} s; best objective of the {TIMED_STARTS} {least(trials):.9f}",
        file=sys.stderr,
    )
    for case, (seconds, target) in ours.items():
        records.add(case=case, law="official", metric="seconds", value=theirs, unit="s",
                    target=target, num_splits=TIMED_STARTS, **about)  # fmt: skip
        records.add(case=case, law="m4", metric="ratio", value=theirs / seconds, target=target,
                    **about)  # fmt: skip
    add_arrival(records, trials, best=float(best_1[0]), ours=one)


def least(trials: Sequence[Trial]) -> float:
    """Returns the least objective of some trials."""
    return min(trial.objective for trial in trials)


def add_arrival(records: Records, trials: Sequence[Trial], *, best: float, ours: float) -> None:
    """Adds the time until the recipe first comes as low as ours; null if it never does.

    Within 1e-6 squared nats, and within 1e-6 of the objective itself, which is far stricter.
    """
    close = {
        "speed/five-domains-arrival": CLOSE,
        "speed/five-domains-arrival-relative": CLOSE * best,
    }
    passed_S = np.cumsum([trial.seconds for trial in trials])
    for case, distance in close.items():
        there = [i for i, trial in enumerate(trials) if trial.objective <= best + distance]
        seconds = float(passed_S[there[0]]) if there else None
        low = None if there else float(passed_S[-1])
        word = f"after {seconds:.3f} s" if seconds is not None else f"not within {low:.1f} s"
        print(f"official recipe within {distance:.1e} of our objective: {word}", file=sys.stderr)
        records.add(case=case, law="official", metric="seconds", value=seconds, low=low, unit="s",
                    target=TARGET)  # fmt: skip
        records.add(case=case, law="m4", metric="ratio",
                    value=None if seconds is None else seconds / ours,
                    low=None if low is None else low / ours, target=TARGET)  # fmt: skip


def add_curve_fit(
    records: Records, r_RM: np.ndarray, y_R: np.ndarray, *, best: float, ours: float
) -> None:
    """Adds SciPy's curve_fit, from one start and from as many as ours has."""
    trials = list(curve_fit_starts(r_RM, y_R, num_starts=20))
    for name, part in (("one-start", trials[:1]), ("20-starts", trials)):
        seconds = sum(trial.seconds for trial in part)
        case = f"speed/curve-fit-{name}"
        records.add(case=case, law="m4", metric="seconds", value=seconds, unit="s", target=TARGET)
        records.add(case=case, law="m4", metric="ratio", value=seconds / ours, target=TARGET)
        print(f"curve_fit, {name}: {seconds:.4f} s, Huber objective {least(part):.9f} (ours"
              f" {best:.9f})", file=sys.stderr)  # fmt: skip


# Hundreds of refits, and the nested pipeline.


def add_refits(records: Records, folder: Path) -> None:
    """Adds the times of 200 bootstrap refits of all RegMix targets, from the fit to all runs."""
    published = read_regmix(folder)
    table = loss_table(published.runs, published.observations, step=0)
    print(f"refits: {table.y_RT.shape[1]} targets, {table.r_RM.shape} shares", file=sys.stderr)
    weight_DR = np.random.default_rng(0).exponential(size=(NUM_REFITS, len(table.r_RM)))
    for label, name in LAWS.items():
        law = MIXING_LAWS[name]
        fit, first = timed(lambda law=law: fit_rule(law, table.r_RM, table.y_RT.T))
        done, began = 0, time.perf_counter()
        while done < NUM_REFITS and time.perf_counter() - began < REFIT_SECONDS:
            refit(law, table, fit, weight_DR[done : done + REFITS_AT_ONCE])
            done += REFITS_AT_ONCE
        seconds = (time.perf_counter() - began) * NUM_REFITS / done
        scaled = "" if done == NUM_REFITS else f", scaled from {done}"
        print(f"refits of {name}: {seconds:.1f} s{scaled}; first fit {first:.1f} s",
              file=sys.stderr)  # fmt: skip
        about = {"law": label, "law_name": name, "metric": "seconds", "unit": "s"}
        records.add(case="speed/refits", value=seconds, n=len(table.r_RM), num_splits=done, **about)
        records.add(case="speed/refits-first-fit", value=first, n=len(table.r_RM), **about)


def refit(law: MixingLaw, table: LossTable, fit: Fit, weight_DR: np.ndarray) -> np.ndarray:
    """Returns the parameters under each row of weights, as the bootstrap of `fit_table` does."""
    index = np.tile(np.arange(len(table.targets)), len(weight_DR))
    problems = Problems.of(
        law,
        table.r_RM,
        table.y_RT.T[index],
        scale_B=fit.chosen.scale_B[index],
        strength_B=fit.chosen.strength_B[index],
        weight_BR=np.repeat(weight_DR, len(table.targets), axis=0),
    )
    start_BP = fit.solutions.theta_BP[index]
    return minimize_problems(problems, start_BP, tolerance=DRAW_TOLERANCE).theta_BP


def add_nested(records: Records, folder: Path) -> None:
    """Adds the times of Algorithm 1 on all RedPajama runs, with left-out errors and a bootstrap."""
    published = read_mixinglaws(folder)
    late = published.observations.filter(pl.col("step") >= FIRST_STEP)
    losses, extrapolation = timed(
        lambda: extrapolate_nested(published.runs, late, params=FAR_PARAMS, step=FAR_STEP)
    )
    print(f"nested: {losses.value_GT.shape} losses in {extrapolation:.1f} s", file=sys.stderr)
    runs, observations = losses.tables()
    for label, name in LAWS.items():
        _, seconds = timed(lambda name=name: fit_law(MIXING_LAWS[name], runs, observations))
        records.add(case="speed/nested", law=label, law_name=name, metric="seconds", unit="s",
                    value=extrapolation + seconds, n=len(losses.mixture_ids))  # fmt: skip
        print(f"nested with {name}: {extrapolation + seconds:.1f} s", file=sys.stderr)


# How the cost grows.


def add_growth(records: Records) -> None:
    """Adds seconds of the fit to all runs as runs, targets and domains grow."""
    shapes = {
        "runs": [(n, 2, 10) for n in NUM_RUNS],
        "targets": [(200, n, 10) for n in NUM_TARGETS],
        "domains": [(500, 1, n) for n in NUM_DOMAINS],
    }
    for what, cases in shapes.items():
        for label, name in LAWS.items():
            sizes, seconds = [], []
            for shape in cases:
                size = shape[("runs", "targets", "domains").index(what)]
                r_RM, y_TR = simulate(*shape)
                _, took = timed(lambda name=name, r=r_RM, y=y_TR: fit_rule(MIXING_LAWS[name], r, y))
                sizes.append(size)
                seconds.append(took)
                records.add(case=f"speed/{what}", law=label, law_name=name, metric="seconds",
                            value=took, unit="s", n=size)  # fmt: skip
            slope = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
            print(f"{what} {sizes}, {name}: {np.round(seconds, 3)} s, growing with the power"
                  f" {slope:.2f}", file=sys.stderr)  # fmt: skip


def simulate(num_runs: int, num_targets: int, num_domains: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns sparse mixtures and losses that fall with powers of the shares, with noise."""
    rng = np.random.default_rng(0)
    r_RM = rng.dirichlet(np.full(num_domains, 0.5), size=num_runs)
    weight_TM = np.exp(rng.normal(0.0, 1.0, size=(num_targets, num_domains)))
    powers_RM = (r_RM + 0.001) ** rng.uniform(0.3, 0.5, size=num_domains)
    loss_TR = 1.5 + num_domains**0.5 / (weight_TM @ powers_RM.T)
    return r_RM, loss_TR + rng.normal(0.0, 0.01, size=loss_TR.shape)


if __name__ == "__main__":
    main()
