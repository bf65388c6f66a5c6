"""The whole demo with several seeds: is what it says true on mixtures that it did not see?

Each seed draws its own design, trains its own runs and verifies its own optimum. Printed are, per
seed and over all: errors on held-out mixtures against predicting the mean, rank correlation,
coverage and width of the 90% intervals, and how the optimum did against the baselines.

    python benchmarks/demo.py [--seeds 3] [--folder bench] [--fresh] [--json]
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixlaw.cli.live import LiveProgress
from mixlaw.study.demo import DemoResult, run_demo


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedRecord:
    """What one seed's demo showed."""

    seed: int
    seconds: dict[str, float]
    reused: int
    runs: int
    held_out: int
    objective_mae: float
    mean_mae: float
    spearman: float
    inside: int
    losses: int
    interval_width: float
    target_mae: float
    gain: dict[str, float]
    difference: dict[str, float]
    difference_low: dict[str, float]
    seed_sd: dict[str, float]
    winner: dict[str, str]
    speedup: dict[str, float | None]
    verified_inside: int
    verified_runs: int


def main() -> int:
    """Runs the demos, prints the figures, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("bench"))
    parser.add_argument("--fresh", action="store_true", help="train again what is there")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    records = []
    for seed in range(given.seeds):
        with LiveProgress() as live:
            live.say(f"== seed {seed}")
            result = run_demo(
                given.folder / f"demo-{seed}",
                fresh=given.fresh,
                seed=seed,
                on_stage=live.say,
                on_progress=live.stage,
                on_runs=live.runs,
            )
        records.append(record(seed, result))
    summary = summarize(records)
    if given.json:
        plain = [{name: getattr(r, name) for name in SeedRecord.__slots__} for r in records]
        json.dump({"benchmark": "demo", "seeds": plain, "summary": summary}, sys.stdout, indent=1)
    else:
        show(records, summary)
    return 0


def record(seed: int, result: DemoResult) -> SeedRecord:
    """Returns one seed's figures."""
    score, verified = result.holdout, result.verification
    assert score is not None
    targets = score.scores[:-1]
    by_name = {c.baseline: c for c in verified.comparisons}
    return SeedRecord(
        seed=seed,
        seconds=dict(result.seconds),
        reused=result.trained.reused,
        runs=result.trained.total,
        held_out=len(score.run_ids),
        objective_mae=score.objective.mae,
        mean_mae=score.objective.mean_mae,
        spearman=score.objective.spearman,
        inside=sum(s.inside for s in targets),
        losses=sum(s.count for s in targets),
        interval_width=float(np.mean([s.width for s in targets])),
        target_mae=float(np.mean([s.mae for s in targets])),
        gain={gain.baseline: gain.value for gain in result.optimum.gains},
        difference={name: c.difference for name, c in by_name.items()},
        difference_low={name: c.low for name, c in by_name.items()},
        seed_sd={name: c.seed_sd for name, c in by_name.items()},
        winner={name: c.winner for name, c in by_name.items()},
        speedup={name: c.speedup for name, c in by_name.items()},
        verified_inside=sum(m.num_inside for m in verified.mixtures),
        verified_runs=sum(len(m.measured) for m in verified.mixtures),
    )


def summarize(records: list[SeedRecord]) -> dict[str, float]:
    """Returns the figures over all seeds."""
    return {
        "objective_mae_over_mean_mae_worst": max(r.objective_mae / r.mean_mae for r in records),
        "spearman_least": min(r.spearman for r in records),
        "coverage": sum(r.inside for r in records) / sum(r.losses for r in records),
        "width_over_mae": float(
            np.mean([r.interval_width for r in records]) / np.mean([r.target_mae for r in records])
        ),
        "verified_inside": sum(r.verified_inside for r in records)
        / sum(r.verified_runs for r in records),
        "seconds_longest": max(r.seconds["total"] for r in records),
    }


def show(records: list[SeedRecord], summary: dict[str, float]) -> None:
    """Prints the figures as text."""
    for r in records:
        print(
            f"seed {r.seed}: {r.runs} runs ({r.reused} reused), {r.held_out} held out:"
            f" objective MAE {r.objective_mae:.4f} against {r.mean_mae:.4f} of the mean"
            f" ({r.objective_mae / r.mean_mae:.2f}), Spearman {r.spearman:.3f},"
            f" {r.inside}/{r.losses} inside, width {r.interval_width:.4f}"
            f" = {r.interval_width / r.target_mae:.1f} MAE"
        )
        for name, difference in r.difference.items():
            print(
                f"    against {name}: predicted {r.gain[name]:+.4f}, measured {difference:+.4f}"
                f" (low {r.difference_low[name]:+.4f}, seed sd {r.seed_sd[name]:.4f}):"
                f" {r.winner[name]}, speed-up {r.speedup[name]}"
            )
        print(f"    verified runs inside {r.verified_inside}/{r.verified_runs}; {r.seconds}")
    for name, value in summary.items():
        print(f"{name}: {value:.3f}")


if __name__ == "__main__":
    sys.exit(main())
