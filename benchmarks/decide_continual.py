"""The critical proportion put to the test: predicted from six shares, then measured with others.

A proxy is trained on four of the demo's domains. Its weights go on on the fifth, with six shares of
original data and three seeds each; `mixlaw critical` predicts from them the smallest share at which
the mean loss of the four is kept. Then runs are trained that it did not see, five seeds each: at
the predicted share, a little to both sides of it, and at half of it. Those around it measure the
critical proportion by a straight line of their own; a run at the predicted share should lie within
the interval of one run around the original loss, one at half of it should not. What is trained
stays in the folder.

    python benchmarks/decide_continual.py [--folder bench/decide/continual] [--slots 2] [--seed 0]
                                          [--json]
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mixlaw.cli.live import LiveProgress
from mixlaw.config import FILE_NAME, Config, ContinualSection, ProxiesSection, StudySection
from mixlaw.corpora import fetch_demo_corpus
from mixlaw.laws.mixing import LinearLaw
from mixlaw.observations import loss_table
from mixlaw.optimize.continual import CriticalProportion, find_critical
from mixlaw.optimize.continual_path import SharePath, fit_path
from mixlaw.optimize.continual_runs import ContinualAnswer
from mixlaw.runs import RunSpec, read_tables
from mixlaw.runs.plan import PlannedRun, fresh_seed
from mixlaw.runs.plan_continual import blend_mixtures
from mixlaw.study import Study
from mixlaw.study.continual import plan_critical

ORIGINAL: tuple[str, ...] = ("apidocs", "encyclopedia", "legal", "speeches")
NEW = "code"
TOKENS = 1_000_000.0
"""Of the original model."""
MORE_TOKENS = 1_500_000.0
"""Of each run that goes on from it."""
SHARES = (0.15, 0.25, 0.4, 0.55, 0.7, 0.85)
"""Shares of original data that the prediction is made from."""
FIT_SEEDS = 3
OFFSETS = (-0.08, -0.04, 0.0, 0.04, 0.08)
"""Held-out shares around the predicted one."""
SEEDS = 5
"""Fresh seeds of each held-out share."""
LEVEL = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """The held-out runs of one share of original data."""

    share: float
    losses: tuple[float, ...]
    """Their old losses."""


def run_part(
    folder: str | Path,
    slots: int = 2,
    seed: int = 0,
    *,
    seeds: int = SEEDS,
    fit_seeds: int = FIT_SEEDS,
    tokens: float = TOKENS,
    more_tokens: float = MORE_TOKENS,
) -> dict[str, Any]:
    """Trains what is missing, and returns what was predicted and what was measured.

    Args:
        folder: Where the study is.
        slots: Runs at once.
        seed: Of the training.
        seeds: Fresh seeds of each held-out share.
        fit_seeds: Fresh seeds of each share that is fitted.
        tokens: Of the original model.
        more_tokens: Of each run that goes on from it.
    """
    study = _open(Path(folder), seed, fit_seeds, tokens, more_tokens)
    with LiveProgress() as live:
        fetch_demo_corpus(study.path / study.config.study.corpus, progress=live.stage)
        counts = study.train_critical(slots=slots, retry=True, on_runs=live.runs)
        if counts.failed:
            raise SystemExit(f"{counts.failed} of {counts.total} runs failed: see `mixlaw status`")
        answer = study.critical()
        found = answer.critical
        if found.share is None or not found.share > 0:
            return {"predicted": answer.to_json(), "verdict": "no crossing: nothing to test"}
        around = [min(max(found.share + offset, 0.0), 1.0) for offset in OFFSETS]
        planned = _plan_held_out(study, (*around, found.share / 2), seeds)
        study.train_planned(planned, slots=slots, retry=True, on_runs=live.runs, stage="held out")
    specs = [run.spec for run in planned]
    near = [spec for spec in specs if _share(spec) > found.share * 3 / 4]
    measured = _measure(study, near, found)
    groups = _group(study, specs)
    return summarize(answer, measured, groups)


def summarize(
    answer: ContinualAnswer, measured: CriticalProportion, groups: Sequence[HeldOut]
) -> dict[str, Any]:
    """Returns the figures: predicted, measured, and the runs at the share and at half of it."""
    found = answer.critical
    share = found.share
    assert share is not None
    by_distance = sorted(groups, key=lambda group: abs(group.share - share))
    at, half = by_distance[0], min(groups, key=lambda group: group.share)
    width = float(answer.line.run_half_widths(np.array([share]), level=LEVEL)[0])
    low, high = found.original_loss - width, found.original_loss + width
    kept = [low <= loss <= high for loss in at.losses]
    lost = [loss > high for loss in half.losses]
    return {
        "original_loss": found.original_loss,
        "predicted_share": found.share,
        "predicted_interval": [found.low, found.high],
        "noise": None if found.noise is None else found.noise.sentence,
        "measured_share": measured.share,
        "measured_interval": [measured.low, measured.high],
        "interval_holds_measured": _holds(found, measured.share),
        "agree_within_both_errors": _agree(found, measured),
        "run_interval": [low, high],
        "at_predicted": list(at.losses),
        "at_predicted_inside": f"{sum(kept)} of {len(kept)}",
        "at_predicted_mean_change": float(np.mean(at.losses)) - found.original_loss,
        "half_share": half.share,
        "at_half": list(half.losses),
        "at_half_lost": f"{sum(lost)} of {len(lost)}",
        "at_half_mean_change": float(np.mean(half.losses)) - found.original_loss,
        "keeps_at_predicted_and_loses_at_half": _mostly(kept) and all(lost),
        "other_laws": dict(answer.other_laws),
        "by_tokens": None if answer.by_tokens is None else answer.by_tokens.sentence("tokens"),
        "checkpoints": [
            [c.tokens, c.critical.share, c.critical.low, c.critical.high]
            for c in answer.checkpoints
        ],
        "held_out": {f"{group.share:.4f}": list(group.losses) for group in groups},
        "sentences": list(answer.sentences()),
    }


def _mostly(kept: Sequence[bool]) -> bool:
    """Whether as many runs lie inside as nine of ten should: at most one of five does not."""
    return sum(kept) >= len(kept) - max(1, len(kept) // 5)


def _holds(found: CriticalProportion, share: float | None) -> bool:
    if share is None or found.low is None:
        return False
    return found.low <= share <= (1.0 if found.high is None else found.high)


def _agree(predicted: CriticalProportion, measured: CriticalProportion) -> bool | None:
    """Whether the difference is within the errors of both, which are independent; None: unknown."""
    ends = (predicted.low, predicted.high, measured.low, measured.high)
    if predicted.share is None or measured.share is None or None in ends:
        return None
    low, high, measured_low, measured_high = (float(end or 0.0) for end in ends)
    error = float(np.hypot(high - low, measured_high - measured_low)) / 2
    return abs(predicted.share - measured.share) <= error


def _open(folder: Path, seed: int, fit_seeds: int, tokens: float, more_tokens: float) -> Study:
    """Returns the study in a folder, made there if it is not yet."""
    if (folder / FILE_NAME).exists():
        return Study.open(folder)
    config = Config(
        study=StudySection(name="continual pre-training"),
        proxies=ProxiesSection(tokens=tokens),
        continual=ContinualSection(
            original=ORIGINAL,
            new=(NEW,),
            shares=SHARES,
            seeds=fit_seeds,
            tokens=more_tokens,
        ),
    )
    return Study.create(folder, replace(config, design=replace(config.design, seed=seed)))


def _plan_held_out(study: Study, shares: Sequence[float], seeds: int) -> tuple[PlannedRun, ...]:
    """Returns runs like those that were fitted, with other shares and seeds."""
    spec = plan_critical(study, study.config.continual)[-1].spec
    seed = study.config.design.seed
    old: dict[str, float] = dict.fromkeys(ORIGINAL, 1 / len(ORIGINAL))
    return tuple(
        PlannedRun(
            spec=replace(
                spec,
                mixture=blend_mixtures(old, {NEW: 1.0}, share),
                seed=fresh_seed(seed, "holdout", index * seeds + repeat),
            ),
            role="holdout",
        )
        for index, share in enumerate(shares)
        for repeat in range(seeds)
    )


def _share(spec: RunSpec) -> float:
    return 1 - spec.mixture[NEW]


def _tables(study: Study, specs: Sequence[RunSpec]) -> tuple[pl.DataFrame, pl.DataFrame]:
    runs, observations = read_tables(study.store, study.runs_folder)
    runs = runs.filter(pl.col("run_id").is_in([spec.run_id for spec in specs]))
    return runs, observations.join(runs.select("run_id"), on="run_id", how="semi")


def _measure(
    study: Study, specs: Sequence[RunSpec], predicted: CriticalProportion
) -> CriticalProportion:
    """Returns the critical proportion that the held-out runs have among themselves."""
    table = loss_table(*_tables(study, specs), targets=ORIGINAL)
    weight_T = np.full(len(ORIGINAL), 1 / len(ORIGINAL))
    path = SharePath.of(table, original=ORIGINAL, new=(NEW,))
    line = fit_path(LinearLaw(), table, weight_T, path=path)
    return find_critical(line, predicted.original_loss, level=LEVEL)


def _group(study: Study, specs: Sequence[RunSpec]) -> list[HeldOut]:
    table = loss_table(*_tables(study, specs), targets=ORIGINAL)
    loss_of = dict(zip(table.run_ids, table.y_RT.mean(axis=1).tolist(), strict=True))
    by_share: dict[float, list[float]] = {}
    for spec in specs:
        if spec.run_id in loss_of:
            by_share.setdefault(_share(spec), []).append(loss_of[spec.run_id])
    return [HeldOut(share=share, losses=tuple(by_share[share])) for share in sorted(by_share)]


def main() -> int:
    """Runs the part and prints its figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("bench/decide/continual"))
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    found = run_part(given.folder, slots=given.slots, seed=given.seed)
    if given.json:
        json.dump(found, sys.stdout, indent=1)
    else:
        print("\n".join(f"{name}: {value}" for name, value in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
