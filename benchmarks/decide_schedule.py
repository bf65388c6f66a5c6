"""A two-stage schedule put to the test: predicted and measured gain over the best constant mixture.

The demo's design is trained as it is, and its mixtures again in pairs, one for the first 80% of a
run and one for the last 20%. A law of schedules is fitted to both, and asked for held-out pairs.
There is little code and little of the encyclopedia (caps of 15% of the run's tokens each), and both
count: what matters should then come late. The best schedule and the best constant mixture under
these caps are trained with the same fresh seeds. What is trained stays in the folder.

    python benchmarks/decide_schedule.py [--folder bench/decide/schedule] [--slots 2] [--seed 0]
                                         [--json]
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from mixlaw.cli.live import LiveProgress
from mixlaw.cli.schedule import show_schedule
from mixlaw.config import FILE_NAME, Config
from mixlaw.corpora import fetch_demo_corpus
from mixlaw.observations import loss_table
from mixlaw.optimize import WeightedLoss
from mixlaw.runs import read_tables
from mixlaw.runs.plan import PlannedRun, fresh_seed
from mixlaw.runs.plan_schedules import schedule_spec
from mixlaw.runs.spec import RunSpec
from mixlaw.selection.schedules import ScheduleScore, predict_schedules
from mixlaw.study import Study
from mixlaw.study.demo import demo_config
from mixlaw.study.schedule import ScheduleAnswer
from mixlaw.study.training import base_spec

FRACTIONS = (0.8, 0.2)
CAPS = {"code": 0.15, "encyclopedia": 0.15}
"""Of the run's tokens; the free optimum has half of them code."""
STAGED_RUNS, HELD_OUT = 20, 8
SEEDS = 10
"""Fresh seeds of the schedule and of the constant mixture, the same ones for both."""
LEVEL = 0.9


def run_part(
    folder: str | Path,
    slots: int = 2,
    seed: int = 0,
    *,
    seeds: int = SEEDS,
    tokens: float | None = None,
    small: bool = False,
) -> dict[str, Any]:
    """Trains what is missing, and returns the predicted and the measured gain.

    Args:
        folder: Where the study is.
        slots: Runs at once.
        seed: Of the design and of the training.
        seeds: Fresh seeds of either arm.
        tokens: Of each run, for a look; the demo's by default.
        small: Fewer runs, to see that it works.
    """
    study = open_study(Path(folder), seed=seed, tokens=tokens, small=small)
    with LiveProgress() as live:
        fetch_demo_corpus(study.path / study.config.study.corpus, progress=live.stage)
        for counts in (
            study.run(slots=slots, retry=True, on_runs=live.runs),
            study.train_schedules(slots=slots, retry=True, on_runs=live.runs),
        ):
            if counts.failed:
                raise SystemExit(f"{counts.failed} of {counts.total} runs failed")
        answer = study.schedule(on_progress=live.stage)
        arms = plan_arms(study, answer, seeds=seeds)
        planned = [PlannedRun(spec=s, role="verify") for specs in arms.values() for s in specs]
        study.train_planned(planned, slots=slots, retry=True, on_runs=live.runs, stage="verify")
    show_schedule(answer)
    return summarize(study, answer, arms)


def open_study(folder: Path, *, seed: int, tokens: float | None, small: bool) -> Study:
    """Returns the study in a folder, made if it is missing."""
    if (folder / FILE_NAME).exists():
        return Study.open(folder)
    return Study.create(folder, make_config(seed=seed, tokens=tokens, small=small))


def make_config(*, seed: int, tokens: float | None, small: bool) -> Config:
    """Returns the demo's configuration with caps and schedules."""
    config = demo_config(seed=seed)
    proxies = config.proxies if tokens is None else replace(config.proxies, tokens=tokens)
    design = config.design
    if small:
        design = replace(design, mixtures=8, noise_runs=2, holdout=0)
    return replace(
        config,
        study=replace(config.study, name="schedule"),
        design=design,
        proxies=proxies,
        constraints=replace(config.constraints, cap=CAPS),
        schedule=replace(
            config.schedule,
            fractions=FRACTIONS,
            runs=6 if small else STAGED_RUNS,
            holdout=2 if small else HELD_OUT,
        ),
    )


def plan_arms(study: Study, answer: ScheduleAnswer, *, seeds: int) -> dict[str, list[RunSpec]]:
    """Returns the runs of the schedule and of the constant mixture, with the same fresh seeds."""
    assert study.corpus is not None
    base = base_spec(study.question, study.corpus)
    base = replace(base, eval_steps=(base.steps,))
    best = answer.optimum
    ends = [round(end * base.steps) for end in best.schedule.ends]
    mixtures = {
        "schedule": best.schedule.mixtures,
        "constant": (best.constant,) * len(best.schedule.mixtures),
    }
    fresh = [fresh_seed(study.config.design.seed, "verify", index) for index in range(seeds)]
    return {
        name: [schedule_spec(base, chosen, ends=ends, seed=one) for one in fresh]
        for name, chosen in mixtures.items()
    }


def measure(
    study: Study, arms: Mapping[str, list[RunSpec]], objective: WeightedLoss
) -> dict[str, np.ndarray]:
    """Returns the objective of every run of both arms, seed by seed."""
    runs, observations = read_tables(study.store, study.runs_folder)
    targets = list(objective.shares)
    found: dict[str, np.ndarray] = {}
    for name, specs in arms.items():
        ids = [spec.run_id for spec in specs]
        chosen = runs.filter(runs["run_id"].is_in(ids))
        table = loss_table(chosen, observations, targets=targets)
        by_id = dict(zip(table.run_ids, table.y_RT @ list(objective.shares.values()), strict=True))
        found[name] = np.array([by_id[run_id] for run_id in ids])
    return found


def summarize(
    study: Study, answer: ScheduleAnswer, arms: Mapping[str, list[RunSpec]]
) -> dict[str, Any]:
    """Returns the figures."""
    best, gain = answer.optimum, answer.optimum.gains[0]
    objective = study.question.objective(answer.staged.fit.targets)
    loss = measure(study, arms, objective)
    gain_S = loss["constant"] - loss["schedule"]
    error = float(gain_S.std(ddof=1)) / math.sqrt(len(gain_S))
    reach = float(student.ppf((1 + LEVEL) / 2, len(gain_S) - 1)) * error
    measured = float(gain_S.mean())
    intervals = predict_schedules(answer.staged, [best.schedule], objective.shares)
    low, high = float(intervals.low_RK[0, 0]), float(intervals.high_RK[0, 0])
    return {
        "part": "schedule",
        "law": answer.staged.fit.law.name,
        "objective": objective.describe(),
        "caps": CAPS,
        "fractions": list(best.schedule.fractions),
        "runs": len(answer.staged.fit.table.run_ids),
        "staged_runs": best.num_staged,
        "stages": [dict(mixture) for mixture in best.schedule.mixtures],
        "constant": dict(best.constant),
        "predicted_gain": gain.value,
        "predicted_low": gain.low,
        "predicted_high": gain.high,
        "verdict": gain.verdict,
        "measured_gain": measured,
        "measured_low": measured - reach,
        "measured_high": measured + reach,
        "measured_inside_predicted": gain.low <= measured <= gain.high,
        "seeds": len(gain_S),
        "seeds_won": int((gain_S > 0).sum()),
        "predicted_loss": best.loss[0],
        "measured_loss": float(loss["schedule"].mean()),
        "predicted_constant_loss": best.constant_loss[0],
        "measured_constant_loss": float(loss["constant"].mean()),
        "schedule_runs_inside": int(((low <= loss["schedule"]) & (loss["schedule"] <= high)).sum()),
        "left_out_mae": {error.name: error.mae for error in best.errors},
        "held_out": [_plain(score) for score in answer.held_out],
        "recency": {target: value[0] for target, value in best.recency.items()},
        "certificate": best.certificate,
    }


def _plain(score: ScheduleScore) -> dict[str, Any]:
    return {
        "target": score.target,
        "runs": score.count,
        "mae": score.mae,
        "mean_mixture_mae": score.mean_mixture_mae,
        "last_stage_mae": score.last_stage_mae,
        "inside": score.inside,
        "width": score.width,
    }


def main() -> int:
    """Runs the part, prints its figures, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("bench/decide/schedule"))
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--tokens", type=float, help="of each run, for a look")
    parser.add_argument("--small", action="store_true", help="a few runs, to see that it works")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    given = parser.parse_args()
    figures = run_part(
        given.folder,
        given.slots,
        given.seed,
        seeds=given.seeds,
        tokens=given.tokens,
        small=given.small,
    )
    if given.json:
        json.dump(figures, sys.stdout, indent=1)
    else:
        for name, value in figures.items():
            print(f"{name}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
