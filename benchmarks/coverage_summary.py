"""Records of many simulated studies: kept on disk as they come, and summed up."""

import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from coverage_judge import judge_study

HALVES = ("fitted", "other")
FIRST_NUMBER = 10_000
"""Studies below this number were used to find the intervals (docs/log.md)."""
USUAL = ("proportional", "reference", "uniform")
"""Baselines that a team has; the other two are close to the true optimum, or it."""
LEVEL = 0.9

Record = dict[str, Any]


def judge_all(jobs: Sequence[tuple[str, str, int]], folder: Path, workers: int) -> list[Record]:
    """Returns a record for each layout, half and number; those that are kept are not judged again.

    One line of JSON per study is added as it comes; a line cut short by a kill is judged again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "studies.jsonl"
    kept: dict[tuple[str, str, int], Record] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record: Record = json.loads(line)
        except json.JSONDecodeError:
            continue
        kept[record["layout"], record["half"], record["number"]] = record
    missing = [job for job in jobs if job not in kept]
    # Polars has threads, which a fork does not survive.
    with (
        ProcessPoolExecutor(workers, get_context("spawn")) as pool,
        path.open("a", encoding="utf-8") as file,
    ):
        for done, record in enumerate(pool.map(_judge, missing), start=1):
            file.write("\n" + json.dumps(record))
            file.flush()
            kept[record["layout"], record["half"], record["number"]] = record
            if done % 20 == 0:
                print(f"{done} of {len(missing)} studies", file=sys.stderr)
    return [kept[job] for job in jobs]


def _judge(job: tuple[str, str, int]) -> Record:
    layout, half, number = job
    return judge_study(number, half=half, layout=layout)


def summarize(records: Sequence[Record]) -> dict[str, Any]:
    """Returns coverage, widths and verdicts of some studies."""
    usual = [gain for r in records for name, gain in r["gains"].items() if name in USUAL]
    return {
        "studies": len(records),
        "left_out_over_spread": float(np.median([r["left_out_over_spread"] for r in records])),
        "heldout_coverage": _mean([r["heldout_coverage"] for r in records]),
        "optimum_loss": _interval([r["loss"] for r in records]),
        "optimum_loss_error": _mean([r["loss"]["error"] for r in records]),
        "gain": _interval(usual) | {"coverage_se": _study_error(records)},
        "gain_by_baseline": {
            name: _interval([r["gains"][name] for r in records]) for name in records[0]["gains"]
        },
        "verdicts": {
            name: _verdicts([r["gains"][name] for r in records]) for name in records[0]["gains"]
        },
        "all_gains_wrong": _verdicts(usual)["wrong_of_claimed"],
        "regret": _mean([r["regret"] for r in records]),
        "near_optimal_holds_true_optimum": _mean([r["near_optimal"] for r in records]),
        "draws_hold_true_share": _mean([r["share_inside"] for r in records]),
        "price_sign_right": _mean([price for r in records for price in r["price_signs"]]),
        "stacks": _mean([r["is_stack"] for r in records]),
        "seconds": _mean([r["seconds"] for r in records]),
    }


def _interval(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    inside = np.array([float(one["inside"]) for one in found])
    return {
        "coverage": float(inside.mean()),
        "coverage_se": float(inside.std(ddof=1) / np.sqrt(len(inside))) if len(inside) > 1 else 0.0,
        "too_high": _mean([one["too_high"] for one in found]),
        "too_low": _mean([one["too_low"] for one in found]),
        "width": _mean([one["width"] for one in found]),
        "score": _mean([one["score"] for one in found]),
    }


def _study_error(records: Sequence[Record]) -> float:
    """Returns the standard error over studies: the baselines of one share its optimum."""
    inside = [np.mean([r["gains"][name]["inside"] for name in USUAL]) for r in records]
    return float(np.std(inside, ddof=1) / np.sqrt(len(inside))) if len(inside) > 1 else 0.0


def _verdicts(gains: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    claimed = [gain for gain in gains if gain["verdict"] == "gain"]
    real = [gain for gain in gains if gain["true"] > 0]
    wrong = [gain for gain in claimed if gain["true"] <= 0]
    return {
        "claimed": len(claimed) / len(gains),
        "wrong": len(wrong) / len(gains),
        "wrong_of_claimed": len(wrong) / max(len(claimed), 1),
        "missed": sum(gain["verdict"] != "gain" for gain in real) / max(len(real), 1),
        "predicted": _mean([gain["value"] for gain in gains]),
        "true": _mean([gain["true"] for gain in gains]),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
