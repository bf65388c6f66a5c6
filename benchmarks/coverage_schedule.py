# ruff: noqa: E402 - threads are pinned before NumPy is imported
"""How often the interval of a schedule's gain holds the true gain, on simulated studies.

    python benchmarks/coverage_schedule.py [--json] [--studies N] [--first N] [--draws N]

Each study has 20 constant mixtures of 5 domains (floor 0.04) and 16 pairs of these, one for the
first 80% of a run and one for the rest, all with one seed, and 6 runs of two mixtures with fresh
seeds. The objective weighs three targets; the domain that counts most is capped at 15% of the run.
Half the truths are the law of schedules that is fitted, over M4. In the other half losses are a
power form, each domain is forgotten at a rate of its own, and changing the mixture costs something:
no parameters of the law follow that. Seeds differ by 0.01 nats. The gain is that of the schedule
over the constant mixture that are chosen, in expected losses; intervals are meant to hold 90%.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import polars as pl

from mixlaw.fit.stages import Schedule, fit_schedules
from mixlaw.laws.mixing import ExponentialLaw
from mixlaw.laws.stages import StagedLaw, stage_weights
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.observations import encode_stages
from mixlaw.optimize import WeightedLoss
from mixlaw.optimize.schedule import optimize_schedule
from mixlaw.selection.schedules import predict_schedules
from simulated import STEP, ExponentialTruth, PowerTruth, exponential_truth, power_truth

FORMS = ("planted", "other")
"""Truths of the studies, in turn."""
FRACTIONS = (0.8, 0.2)
ENDS = (0.8, 1.0)
CAP = 0.15
FLOOR = 0.04
WEIGHTS = {"d0": 0.5, "d1": 0.3, "unseen0": 0.2}
NUM_DOMAINS, NUM_CONSTANT, NUM_STAGED, NUM_NOISE = 5, 20, 16, 6
OFFSET_SD = OWN_SD = 0.007


@dataclass(frozen=True, kw_only=True)
class GainRecord:
    """One predicted gain over the best constant mixture and what was true."""

    form: str
    predicted: float
    low: float
    high: float
    true: float
    verdict: str
    schedule_inside: float
    """Share of schedules that were not run, each with a fresh seed, inside their intervals."""


class ScheduleTruth:
    """Expected losses of two-stage schedules, one column per target."""

    def __init__(self, rng: np.random.Generator, form: str) -> None:
        self.form = form
        num_targets = NUM_DOMAINS + 1
        if form == "planted":
            truth = exponential_truth(rng, NUM_DOMAINS, 1)
            assert isinstance(truth, ExponentialTruth)
            extra = np.column_stack(
                [
                    rng.uniform(1.0, 6.0, num_targets),
                    rng.uniform(-0.5, 3.0, num_targets),
                    rng.normal(0.0, 1.0, num_targets),
                ]
            )
            self.theta_TP = np.column_stack([truth.c_T, truth.t_TM, extra])
            self.law = StagedLaw(ExponentialLaw(), ENDS)
        else:
            truth = power_truth(rng, NUM_DOMAINS, 1)
            assert isinstance(truth, PowerTruth)
            self.power = truth
            self.rate_M = rng.uniform(1.0, 6.0, NUM_DOMAINS)
            self.cost_T = rng.uniform(0.0, 0.05, num_targets)

    def __call__(self, x_RX: np.ndarray) -> np.ndarray:
        """Returns the expected losses of schedules."""
        if self.form == "planted":
            return self.law.predict(x_RX, self.theta_TP).T
        r_RSM = x_RX.reshape(len(x_RX), 2, -1) / np.array(FRACTIONS)[:, None]
        weight_MS = stage_weights(self.rate_M, ENDS)[0]
        seen_RM = np.einsum("ms,rsm->rm", weight_MS, r_RSM)
        moved_R = np.abs(r_RSM[:, 1] - r_RSM[:, 0]).sum(axis=1) / 2
        return self.power(seen_RM) + moved_R[:, None] ** 2 * self.cost_T


def rows_of(schedules: Sequence[Schedule], domains: tuple[str, ...]) -> np.ndarray:
    """Returns schedules as shares by stage and domain."""
    return np.stack([schedule.shares(ENDS, domains) for schedule in schedules])


def score_study(number: int, *, draws: int) -> GainRecord:
    """Returns the record of the study with this number."""
    form = FORMS[number % len(FORMS)]
    rng = np.random.default_rng([number, 17])
    truth = ScheduleTruth(rng, form)
    domains = tuple(f"d{j}" for j in range(NUM_DOMAINS))
    drawn = FLOOR + (1 - FLOOR * NUM_DOMAINS) * rng.dirichlet(np.ones(NUM_DOMAINS), NUM_CONSTANT)
    mixtures = [Mixture.from_array(domains, r_M) for r_M in drawn]
    order = rng.permutation(NUM_CONSTANT)
    constant = [Schedule.constant(mixture, FRACTIONS) for mixture in mixtures]
    staged = [Schedule(FRACTIONS, (mixtures[i], mixtures[order[i]])) for i in range(NUM_STAGED)]
    noise = [constant[i % 2] for i in range(NUM_NOISE)]
    schedules = [*constant, *staged, *noise]
    seeds = [0] * (len(constant) + len(staged)) + list(range(1, 1 + NUM_NOISE))
    y_RT = observe(rng, truth, rows_of(schedules, domains), seeds)
    runs, observations = make_tables(schedules, y_RT, seeds, len(noise), domains)
    fitted = fit_schedules(
        "m4", runs, observations, fractions=FRACTIONS, targets=list(WEIGHTS), num_draws=draws
    )
    allowed = CappedSimplex.of(domains, floors=FLOOR, caps={"d0": CAP})
    objective = WeightedLoss(WEIGHTS)
    best = optimize_schedule(fitted, objective, allowed, fractions=FRACTIONS)
    weight_T = np.array([WEIGHTS.get(name, 0.0) for name in (*domains, "unseen0")])
    pair = [Schedule.constant(best.constant, FRACTIONS), best.schedule]
    true_2 = truth(rows_of(pair, domains)) @ weight_T
    gain = best.gains[0]
    held = [Schedule(FRACTIONS, (mixtures[order[i]], mixtures[i])) for i in range(12)]
    seen = observe(rng, truth, rows_of(held, domains), list(range(500, 512))) @ weight_T
    told = predict_schedules(fitted, held, WEIGHTS)
    inside = (told.low_RK[:, 0] <= seen) & (seen <= told.high_RK[:, 0])
    return GainRecord(
        form=form,
        predicted=gain.value,
        low=gain.low,
        high=gain.high,
        true=float(true_2[0] - true_2[1]),
        verdict=gain.verdict,
        schedule_inside=float(inside.mean()),
    )


def observe(
    rng: np.random.Generator, truth: ScheduleTruth, x_RX: np.ndarray, seeds: Sequence[int]
) -> np.ndarray:
    """Returns losses of runs: the truth, what their seed does to all runs, and their own."""
    y_RT = truth(x_RX)
    offset = {s: rng.normal(0.0, OFFSET_SD, y_RT.shape[1]) for s in dict.fromkeys(seeds)}
    return y_RT + np.stack([offset[s] for s in seeds]) + rng.normal(0.0, OWN_SD, y_RT.shape)


def make_tables(
    schedules: Sequence[Schedule],
    y_RT: np.ndarray,
    seeds: Sequence[int],
    num_noise: int,
    domains: tuple[str, ...],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Returns the runs and the observations table; the last runs are those for the noise."""
    rows: list[dict[str, Any]] = []
    cells: list[dict[str, Any]] = []
    for i, (schedule, y_T) in enumerate(zip(schedules, y_RT, strict=True)):
        ends = [round(end * STEP) for end in schedule.ends]
        text = encode_stages(list(zip(ends, schedule.mixtures, strict=True)))
        is_constant = schedule.mixtures[0] == schedule.mixtures[-1]
        rows.append(
            {
                "run_id": f"run{i:03d}",
                "mixture_id": schedule.mixtures[0].mixture_id if is_constant else f"staged{i}",
                "role": "noise" if i >= len(schedules) - num_noise else "design",
                "seed": seeds[i],
                "stages": None if is_constant else text,
                **{f"r:{name}": share for name, share in schedule.mean.items()},
            }
        )
        cells += [
            {"run_id": f"run{i:03d}", "step": STEP, "tokens": 1e6, "target": target,
             "value": float(value), "unit": "nats_per_token"}
            for target, value in zip((*domains, "unseen0"), y_T, strict=True)
        ]  # fmt: skip
    runs = pl.DataFrame(rows, schema_overrides={"stages": pl.String}, infer_schema_length=None)
    return runs, pl.DataFrame(cells)


def summarize(records: Sequence[GainRecord]) -> dict[str, float]:
    """Returns means over the studies."""
    inside = np.array([r.low <= r.true <= r.high for r in records])
    claimed = [r for r in records if r.verdict == "gain"]
    return {
        "studies": len(records),
        "gain_coverage": float(inside.mean()),
        "gain_coverage_se": float(np.sqrt(inside.mean() * (1 - inside.mean()) / len(records))),
        "below": float(np.mean([r.true < r.low for r in records])),
        "above": float(np.mean([r.true > r.high for r in records])),
        "width": float(np.mean([r.high - r.low for r in records])),
        "predicted": float(np.mean([r.predicted for r in records])),
        "true": float(np.mean([r.true for r in records])),
        "mae": float(np.mean([abs(r.true - r.predicted) for r in records])),
        "claimed": len(claimed) / len(records),
        "wrongly_claimed": sum(r.true <= 0 for r in claimed) / len(records),
        "heldout_coverage": float(np.mean([r.schedule_inside for r in records])),
    }


def main() -> None:
    """Scores the studies and prints the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first study")
    parser.add_argument("--draws", type=int, default=100, help="bootstrap draws of each fit")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    started = time.perf_counter()
    numbers = range(given.first, given.first + given.studies)
    records = [score_study(number, draws=given.draws) for number in numbers]
    result: dict[str, Any] = {
        form: summarize([r for r in records if r.form == form])
        for form in FORMS
        if any(r.form == form for r in records)
    }
    result["seconds"] = round(time.perf_counter() - started, 1)
    if given.json:
        json.dump({**result, "records": [asdict(r) for r in records]}, sys.stdout, indent=1)
        return
    for name, figures in result.items():
        print(name, figures)


if __name__ == "__main__":
    main()
