"""Task errors of mixtures that no law has seen, from their proportions alone, on real training.

A design of mixtures of the demo's text, two of them again with fresh seeds, and held-out ones are
trained with the word-swap task on. The chain (mixing law, then error laws) predicts the errors of
the held-out runs; beside it a mixing law fitted to the errors, a straight line from the predicted
losses, and the mean of the design's errors. What is trained stays in the folder.

    python benchmarks/decide_downstream.py [--folder bench/downstream] [--slots 2] [--seed 0]
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixlaw.cli.downstream import show_downstream
from mixlaw.config import FILE_NAME, Config
from mixlaw.corpora import fetch_demo_corpus
from mixlaw.selection.downstream import MEAN
from mixlaw.selection.downstream_score import WAYS, TaskScore
from mixlaw.selection.downstream_summary import Downstream
from mixlaw.study import Study

TOKENS = 1_500_000
"""Of each proxy; after 1M tokens the mean error has fallen from 0.75 (chance) to about 0.45."""
EVALUATIONS = 3
"""At a quarter of a run, at half of it and at its end; each costs about 400k tokens of training."""
MIXTURES, NOISE_RUNS, HELD_OUT = 24, 6, 10


def make_study(folder: Path, *, seed: int, tokens: int = TOKENS, small: bool = False) -> Study:
    """Returns the study in a folder, made if it is missing."""
    if (folder / FILE_NAME).exists():
        return Study.open(folder)
    default = Config()
    config = replace(
        default,
        study=replace(default.study, name="downstream"),
        design=replace(
            default.design,
            method="sobol",
            seed=seed,
            mixtures=8 if small else MIXTURES,
            noise_runs=2 if small else NOISE_RUNS,
            holdout=2 if small else HELD_OUT,
        ),
        proxies=replace(default.proxies, tokens=tokens, evaluations=EVALUATIONS, tasks=True),
    )
    return Study.create(folder, config)


def run_part(
    folder: str | Path,
    slots: int = 2,
    seed: int = 0,
    *,
    tokens: int = TOKENS,
    small: bool = False,
) -> dict[str, Any]:
    """Trains what is missing, and returns what the chain was worth on held-out mixtures.

    Args:
        folder: Where the study is.
        slots: Runs at once.
        seed: Of the design and of the training.
        tokens: Of each run.
        small: A few runs only, to see that it works.
    """
    study = make_study(Path(folder), seed=seed, tokens=tokens, small=small)
    fetch_demo_corpus(study.path / study.config.study.corpus)
    counts = study.run(slots=slots, retry=True)
    if counts.failed:
        raise SystemExit(f"{counts.failed} of {counts.total} runs failed: see `mixlaw status`")
    return summarize(study.downstream(), study)


def summarize(found: Downstream, study: Study) -> dict[str, Any]:
    """Returns the figures: errors by way of predicting, coverage and width, items' noise."""
    tasks = [score for score in found.held_out if score.task != MEAN]
    means = [score for score in found.held_out if score.task == MEAN]
    inside = sum(score.inside or 0 for score in tasks)
    count = sum(score.count for score in tasks)
    fit = study.fit()
    return {
        "part": "downstream",
        "law": fit.law.name,
        "runs": len(set(found.table.run_ids)) + (found.held_out[0].count if found.held_out else 0),
        "tokens": study.config.proxies.tokens,
        "error_per_task": _average(tasks),
        "error_of_the_mean": _average(means),
        "items_noise_per_task": sum(score.item_sd for score in tasks) / max(len(tasks), 1),
        "spread_per_task": sum(score.spread for score in tasks) / max(len(tasks), 1),
        "width_per_task": sum(score.width or 0.0 for score in tasks) / max(len(tasks), 1),
        "left_out": {score.task: _plain(score) for score in found.left_out},
        "held_out": {score.task: _plain(score) for score in found.held_out},
        "inside": inside,
        "count": count,
        "coverage": inside / count if count else None,
        "wins": {way: sum(score.best == way for score in tasks) for way in tasks[0].error}
        if tasks
        else {},
        "notes": list(found.sentences()),
    }


def _average(scores: list[TaskScore]) -> dict[str, float]:
    """Returns the mean absolute errors on held-out runs by way of predicting."""
    return {way: sum(s.error[way] for s in scores) / len(scores) for way in WAYS if scores}


def _plain(score: TaskScore) -> dict[str, Any]:
    return {
        **score.error,
        "item_sd": score.item_sd,
        "spread": score.spread,
        "inside": score.inside,
        "count": score.count,
        "width": score.width,
    }


def main() -> int:
    """Runs the part, prints its figures, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("bench/downstream"))
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--small", action="store_true", help="a few runs, to see that it works")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    given = parser.parse_args()
    figures = run_part(
        given.folder, given.slots, given.seed, tokens=given.tokens, small=given.small
    )
    if given.json:
        json.dump(figures, sys.stdout, indent=1)
    else:
        show_downstream(Study.open(given.folder).downstream())
    return 0


if __name__ == "__main__":
    sys.exit(main())
