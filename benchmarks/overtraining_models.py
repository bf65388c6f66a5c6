"""Gadre et al.'s models as `overtraining.py` takes them: by training set, with their campaigns."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from mixlaw.fit.overtraining import ScaledRuns
from mixlaw.importers.published import PublishedRuns, read_overtraining, read_random_baselines
from records import unseen

PAPER_TASKS_MODEL = "d=576_"
"""A task counts among the paper's 17 if such a model is 10 points above guessing."""
ABOVE_GUESSING = 0.1


@dataclass(frozen=True, kw_only=True)
class Models:
    """Models of one training set."""

    names: tuple[str, ...]
    runs: ScaledRuns
    error_CR: Mapping[str, np.ndarray]
    """Mean error over tasks, by the case's name; NaN for a model that was not evaluated."""

    def take(self, keep_R: np.ndarray) -> "Models":
        """Returns some of the models."""
        return Models(
            names=tuple(name for name, keep in zip(self.names, keep_R, strict=True) if keep),
            runs=self.runs.take(keep_R),
            error_CR={case: error_R[keep_R] for case, error_R in self.error_CR.items()},
        )


def choose_tasks(published: PublishedRuns, baselines: Mapping[str, float]) -> dict[str, list[str]]:
    """Returns the paper's two groups of tasks."""
    errors = published.observations.filter(pl.col("unit") == "error")
    tasks = errors["target"].unique().sort().to_list()
    small = [i for i, name in published.labels.items() if PAPER_TASKS_MODEL in name]
    best = dict(
        errors.filter(pl.col("run_id").is_in(small))
        .group_by("target")
        .agg(pl.col("value").min())
        .iter_rows()
    )
    good = [t for t in tasks if best.get(t, 1.0) < baselines.get(t, 0.0) - ABOVE_GUESSING]
    if (len(good), len(tasks)) != (17, 46):
        print(
            f"error-17 and error-46 have {len(good)} and {len(tasks)} tasks here", file=sys.stderr
        )
    return {"error-17": good, "error-46": tasks}


def read_campaigns(folder: Path) -> dict[str, tuple[str, bool]]:
    """Returns each model's build of the corpus, and whether its files record a seed.

    Both tell when a model was trained: later ones record the seed, and two have another RedPajama.
    """
    found: dict[str, tuple[str, bool]] = {}
    for path in sorted((folder / "models").glob("*.json")):
        model = json.loads(path.read_text(encoding="utf-8"))
        has_seed = "seed" in model.get("hyperparameters", {})
        found[str(model["name"])] = (str(model.get("dataset_uuid", "")), has_seed)
    return found


def number_campaigns(
    fitted: Mapping[str, tuple[str, bool]], all_models: Mapping[str, tuple[str, bool]]
) -> dict[str, int]:
    """Returns a number per model; 0 is the campaign that most of the fitted ones are of."""
    counts: dict[tuple[str, bool], int] = {}
    for campaign in fitted.values():
        counts[campaign] = counts.get(campaign, 0) + 1
    for campaign in all_models.values():
        counts.setdefault(campaign, 0)
    order = sorted(counts, key=lambda campaign: (-counts[campaign], campaign))
    return {name: order.index(campaign) for name, campaign in all_models.items()}


def split_sets(
    published: PublishedRuns,
    tasks: Mapping[str, Sequence[str]],
    targets: Sequence[str],
    campaigns: Mapping[str, Mapping[str, int]],
) -> dict[str, Models]:
    """Returns the models of each training set, small ones first."""
    wide = published.observations.pivot(on="target", index="run_id", values="value")
    tokens = published.observations.group_by("run_id").agg(pl.col("tokens").first())
    table = published.runs.join(wide, on="run_id").join(tokens, on="run_id")
    table = table.sort("params_total", "tokens", "run_id")
    found: dict[str, Models] = {}
    for (name,), rows in table.group_by("corpus", maintain_order=True):
        names = tuple(published.labels[run_id] for run_id in rows["run_id"])
        found[str(name)] = Models(
            names=names,
            runs=ScaledRuns(
                targets=tuple(targets),
                params_R=rows["params_total"].to_numpy(),
                tokens_R=rows["tokens"].to_numpy(),
                campaign_R=np.array([campaigns[str(name)][model] for model in names]),
                y_TR=_columns(rows, targets).T,
            ),
            error_CR={case: _columns(rows, group).mean(axis=1) for case, group in tasks.items()},
        )
    return dict(sorted(found.items()))


def _columns(rows: pl.DataFrame, names: Sequence[str]) -> np.ndarray:
    """Returns columns, of NaN where the table has none."""
    missing = np.full(len(rows), np.nan)
    held = [rows[n].cast(float).to_numpy() if n in rows.columns else missing for n in names]
    return np.stack(held, axis=1)


def read_both(fit: Path, predict: Path | None) -> tuple[dict[str, Models], dict[str, Models]]:
    """Returns the models to fit and, where there is another folder, those to predict."""
    published = read_overtraining(fit)
    both = (
        [published]
        if predict is None
        else [published, unseen(published, read_overtraining(predict))]
    )
    for note in (note for part in both for note in part.notes):
        print(note, file=sys.stderr)
    tasks = choose_tasks(published, read_random_baselines(fit))
    losses = published.observations.filter(pl.col("unit") != "error")
    targets = losses["target"].unique(maintain_order=True).to_list()
    raw = [read_campaigns(folder) for folder in (fit, predict) if folder is not None]
    known = {name: campaign for part in reversed(raw) for name, campaign in part.items()}
    sets = {
        published_part.labels[row[0]]: str(row[1])
        for published_part in both
        for row in published_part.runs.select("run_id", "corpus").iter_rows()
    }
    campaigns = {
        name: number_campaigns(
            {m: c for m, c in raw[0].items() if sets.get(m) == name},
            {m: c for m, c in known.items() if sets.get(m) == name},
        )
        for name in set(sets.values())
    }
    parts = [split_sets(part, tasks, targets, campaigns) for part in both]
    return parts[0], parts[1] if predict is not None else {}
