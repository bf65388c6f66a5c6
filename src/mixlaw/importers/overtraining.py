"""Models and evaluations of Gadre et al. 2024 (arXiv:2403.08540), one JSON file each."""

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from mixlaw.errors import TableError
from mixlaw.importers.standard import PublishedRuns, count, publish, read_text
from mixlaw.observations import PROPORTION_PREFIX

TRAINING_SETS = ("c4_original", "rpj", "rw_original")
"""C4, RedPajama and RefinedWeb, as the files name them."""
_SIGMAS = 2 * 1.959964
"""Width of a 95% interval in standard errors."""


def read_overtraining(folder: str | Path) -> PublishedRuns:
    """Returns one run per model: 8 losses, and the error (1 - accuracy) on each of 46 tasks.

    A model saw one training set, so that its mixture has the share 1 of one of the "domains"
    `c4_original`, `rpj` and `rw_original`; the set also stands in `corpus`. The files say tokens,
    not steps: all values are those at the runs' ends, as step 0. Losses and errors have different
    units, so that a fit has to name its targets. A run's label is the model's name.

    Args:
        folder: The folder with `models/*.json` and `evals/*.json`, joined by the model's name.

    Raises:
        TableError: A file is not what it must be; the message names it.
    """
    folder = Path(folder)
    paths = sorted((folder / "models").glob("*.json"))
    if not paths:
        raise TableError("the folder must have models/*.json, found none", where=str(folder))
    models = {path: _read_object(path) for path in paths}
    sets = {_text(model, "dataset_name", path) for path, model in models.items()}
    domains = [*TRAINING_SETS, *sorted(sets - set(TRAINING_SETS))]
    runs = pl.DataFrame(
        [_run_row(model, path, domains) for path, model in models.items()],
        infer_schema_length=None,
    )
    evals = sorted((folder / "evals").glob("evaluation_*_heavy.json"))
    rows = [row for path, model in models.items() for row in _loss_rows(model, path)]
    rows += [row for path in evals for row in _error_rows(_read_object(path), path)]
    values = pl.DataFrame(rows, infer_schema_length=None).join(
        runs.select("label", "run_id", "tokens"), on="label", how="left", maintain_order="left"
    )
    return publish(
        runs,
        values.drop_nulls("run_id").drop("label"),
        domains=domains,
        source="overtraining",
        notes=_describe_join(
            set(runs["label"].to_list()), {_evaluated_model(path) for path in evals}
        ),
    )


def read_random_baselines(folder: str | Path) -> dict[str, float]:
    """Returns the error of guessing on each task, between 0 and 1, from `eval_metadata.csv`.

    Raises:
        TableError: The file is not what it must be.
    """
    path = Path(folder) / "eval_metadata.csv"
    rows = csv.DictReader(io.StringIO(read_text(path)))
    found: dict[str, float] = {}
    for row in rows:
        task = (row.get("Eval Task") or "").strip()
        if not task:
            continue
        try:
            found[task] = 1 - float(row["Random baseline"]) / 100
        except (KeyError, TypeError, ValueError) as error:
            raise TableError(
                f"the task {task!r} must have a number as its `Random baseline`",
                where=f"{path}, line {rows.line_num}",
            ) from error
    if not found:
        raise TableError("the file must have tasks, found none", where=str(path))
    return found


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise TableError(
            f"the file must be JSON ({error.msg})", where=f"{path}, line {error.lineno}"
        ) from error
    if not isinstance(found, dict):
        raise TableError("the file must hold one JSON object", where=str(path))
    return found


def _text(holder: dict[str, Any], key: str, path: Path) -> str:
    value = holder.get(key)
    if not (isinstance(value, str) and value):
        raise TableError(f"`{key}` must be a text, found {value!r}", where=str(path))
    return value


def _number(holder: dict[str, Any], key: str, path: Path) -> float:
    value = holder.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise TableError(f"`{key}` must be a number, found {value!r}", where=str(path))
    return float(value)


def _run_row(model: dict[str, Any], path: Path, domains: list[str]) -> dict[str, object]:
    name, training_set = _text(model, "name", path), _text(model, "dataset_name", path)
    settings = model.get("hyperparameters")
    if not isinstance(settings, dict):
        raise TableError("a model must have `hyperparameters`", where=str(path))
    return {
        "run_id": f"overtraining/{name}",
        "label": name,
        "where": str(path),
        "params_total": _number(settings, "params", path),
        "params_non_embedding": _number(settings, "params_no_embed", path),
        "tokens": _number(settings, "tokens", path),
        "learning_rate": _number(settings, "lr", path),
        "corpus": training_set,
        **{PROPORTION_PREFIX + domain: float(domain == training_set) for domain in domains},
    }


def _loss_rows(model: dict[str, Any], path: Path) -> Iterator[dict[str, object]]:
    """Yields the losses; the target is the folder of the validation data."""
    results = model.get("results")
    if not isinstance(results, list) or not results:
        raise TableError("a model must have a list of `results`", where=str(path))
    for result in results:
        data = result.get("val_data") if isinstance(result, dict) else None
        if not (isinstance(data, list) and data and "/" in str(data[0])):
            raise TableError("a result must name its `val_data`", where=str(path))
        value = _number(result, "loss", path)
        bounds = [result.get(f"loss_sequences_{side}_95") for side in ("lower", "upper")]
        known = [float(bound) for bound in bounds if isinstance(bound, int | float)]
        error = (known[1] - known[0]) / _SIGMAS if len(known) == 2 else None
        target = str(data[0]).split("/")[-2]
        yield _value_row(
            str(model["name"]), target, value, unit="nats_per_token", error=error, path=path
        )


def _error_rows(evaluation: dict[str, Any], path: Path) -> Iterator[dict[str, object]]:
    metrics = evaluation.get("eval_metrics")
    accuracies = metrics.get("icl") if isinstance(metrics, dict) else None
    if not isinstance(accuracies, dict) or not accuracies:
        raise TableError("an evaluation must have `eval_metrics.icl`", where=str(path))
    for task in accuracies:
        accuracy = _number(accuracies, task, path)
        if not 0 <= accuracy <= 1:
            raise TableError(
                f"the accuracy on {task!r} must lie in [0, 1], found {accuracy:g}", where=str(path)
            )
        yield _value_row(
            _evaluated_model(path), task, 1 - accuracy, unit="error", error=None, path=path
        )


def _value_row(
    label: str, target: str, value: float, *, unit: str, error: float | None, path: Path
) -> dict[str, object]:
    return {
        "label": label,
        "step": 0,
        "target": target,
        "value": value,
        "unit": unit,
        "standard_error": error,
        "where": str(path),
    }


def _evaluated_model(path: Path) -> str:
    return path.stem.removeprefix("evaluation_").removesuffix("_heavy")


def _describe_join(models: set[str], evaluated: set[str]) -> list[str]:
    notes: list[str] = []
    if models - evaluated:
        notes.append(f"missing: {count(len(models - evaluated), 'model')} without an evaluation")
    if evaluated - models:
        notes.append(f"left out: {count(len(evaluated - models), 'evaluation')} without a model")
    return notes
