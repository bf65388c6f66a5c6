# ruff: noqa: E402 - threads are pinned before NumPy is imported
"""What the benchmarks on published runs print: records of one schema, as JSON or as a table.

A script imports this module first (it pins the threads), and then:

    options = benchmark_arguments(__doc__)
    records = Records("paper")
    records.add(case="ct", law="m4", metric="critical_proportion", value=0.286, unit="share")
    records.finish(options.json)

From the creation of `Records` on, all that is printed goes to standard error, whoever prints it:
with `--json`, standard output is exactly one JSON object, valid against `records.schema.json`.
"""

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np
import polars as pl

from mixlaw import __version__
from mixlaw.importers.standard import PublishedRuns

SCHEMA_PATH = Path(__file__).with_name("records.schema.json")
SCHEMA_VERSION = 1
ALL_SPLITS = "all"
"""`split` of the record that sums up the splits."""
LOW_PERCENTILE, HIGH_PERCENTILE = 5, 95


class Records:
    """Collects the records of one benchmark and prints them.

    Args:
        benchmark: Its name: paper, regmix, slimpajama, overtraining, speed or optimum.
    """

    def __init__(self, benchmark: str) -> None:
        self.benchmark = benchmark
        self.rows: list[dict[str, Any]] = []
        self._started = time.perf_counter()
        # At the level of file descriptors, since libraries in C print too.
        sys.stdout.flush()
        self._output = os.dup(1)
        os.dup2(2, 1)

    def add(
        self,
        *,
        case: str,
        law: str,
        metric: str,
        value: float | None,
        low: float | None = None,
        high: float | None = None,
        observed: float | None = None,
        law_name: str | None = None,
        unit: str | None = None,
        n: int | None = None,
        params: float | None = None,
        step: int | None = None,
        tokens: float | None = None,
        target: str | None = None,
        mixture: str | None = None,
        seed: int | None = None,
        split: str | int | None = None,
        num_splits: int | None = None,
    ) -> None:
        """Adds one record; a number that is not finite becomes null.

        Args:
            case: What was predicted or timed, such as `redpajama/overall`.
            law: The law's name, or `selected`.
            metric: What `value` is; for `prediction`, `low` and `high` are the 90% limits of one
                new run, for an aggregate the 5th and 95th percentile over splits.
            value: The number itself.
            low: Lower limit.
            high: Upper limit.
            observed: What was measured, beside a prediction.
            law_name: Which law `selected` was.
            unit: Unit of the value.
            n: Number of runs in the fit.
            params: Non-embedding parameters, or total ones where the source has only those.
            step: Training step.
            tokens: Training tokens.
            target: The validation file's name, `overall` or `mean`.
            mixture: The source's name of the mixture or model.
            seed: Seed of the split.
            split: Name of the split, or `all`.
            num_splits: How many splits there are.
        """
        row: dict[str, Any] = {
            "case": case,
            "law": law,
            "law_name": law_name,
            "metric": metric,
            "value": _number(value),
            "low": _number(low),
            "high": _number(high),
            "observed": _number(observed),
            "unit": unit,
            "n": _integer(n),
            "params": _number(params),
            "step": _integer(step),
            "tokens": _number(tokens),
            "target": target,
            "mixture": mixture,
            "seed": _integer(seed),
            "split": None if split is None else str(split),
            "num_splits": _integer(num_splits),
        }
        self.rows.append(row)

    def aggregate(
        self,
        values: Sequence[float],
        *,
        case: str,
        law: str,
        metric: str,
        seeds: Sequence[int] | None = None,
        splits: Sequence[str] | None = None,
        law_names: Sequence[str] | None = None,
        law_name: str | None = None,
        unit: str | None = None,
        n: int | None = None,
        params: float | None = None,
        step: int | None = None,
        tokens: float | None = None,
        target: str | None = None,
    ) -> None:
        """Adds one record per split, and one of them all: mean, 5th and 95th percentile.

        Args:
            values: One value per split; one that is not finite is left out of the mean.
            case: As in `add`.
            law: As in `add`.
            metric: As in `add`.
            seeds: Seed of each split; the split's number by default.
            splits: Name of each split; its number by default.
            law_names: What `selected` was in each split.
            law_name: What `selected` was in all of them.
            unit: As in `add`.
            n: As in `add`.
            params: As in `add`.
            step: As in `add`.
            tokens: As in `add`.
            target: As in `add`.
        """
        count = len(values)
        shared: dict[str, Any] = {
            "case": case,
            "law": law,
            "metric": metric,
            "unit": unit,
            "n": n,
            "params": params,
            "step": step,
            "tokens": tokens,
            "target": target,
            "num_splits": count,
        }
        for i, value in enumerate(values):
            self.add(
                value=value,
                seed=i if seeds is None else seeds[i],
                split=i if splits is None else splits[i],
                law_name=law_name if law_names is None else law_names[i],
                **shared,
            )
        finite = [float(value) for value in values if math.isfinite(value)]
        low, high = (
            np.percentile(finite, [LOW_PERCENTILE, HIGH_PERCENTILE]) if finite else (None,) * 2
        )
        mean = float(np.mean(finite)) if finite else None
        self.add(value=mean, low=low, high=high, split=ALL_SPLITS, law_name=law_name, **shared)

    def document(self) -> dict[str, Any]:
        """Returns what `--json` prints."""
        return {
            "benchmark": self.benchmark,
            "schema": SCHEMA_VERSION,
            "version": __version__,
            "machine": _machine(),
            "seconds": round(time.perf_counter() - self._started, 3),
            "records": self.rows,
        }

    def finish(self, as_json: bool) -> None:
        """Prints the records on standard output, and gives it back."""
        document = self.document()
        check_document(document)
        text = _json_text(document) if as_json else _table_text(document)
        sys.stdout.flush()
        os.dup2(self._output, 1)
        os.close(self._output)
        sys.stdout.write(text)
        sys.stdout.flush()


def benchmark_arguments(
    doc: str | None,
    *,
    source: str | None = None,
    parser: argparse.ArgumentParser | None = None,
) -> argparse.Namespace:
    """Returns `fit`, `predict` and `json` of the command line.

    Args:
        doc: The script's docstring, whose first line describes it.
        source: Folder of the source; DIR is it, or holds it. None: DIR is taken as it is.
        parser: A parser with further arguments.
    """
    if parser is None:
        parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument(
        "--fit", type=Path, required=True, metavar="DIR", help="folder with published runs to fit"
    )
    parser.add_argument(
        "--predict", type=Path, metavar="DIR", help="runs in the same layout that are predicted"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if source is not None:
        options.fit = dataset_folder(options.fit, source)
        options.predict = options.predict and dataset_folder(options.predict, source)
    return options


def dataset_folder(folder: Path, name: str) -> Path:
    """Returns the folder of one source, which is given itself or as one of several in a folder."""
    return folder / name if (folder / name).is_dir() else folder


def unseen(fit: PublishedRuns, predict: PublishedRuns) -> PublishedRuns:
    """Returns what `predict` has and `fit` has not: no loss of a fit is predicted.

    A loss is the same if run (mixture and size), step and target are, or if mixture, step, target
    and the loss to its last digit are: a copy under another name.
    """
    cell, copy = ["run_id", "step", "target"], ["mixture_id", "step", "target", "value"]
    theirs, ours = (
        source.observations.join(
            source.runs.select("run_id", "mixture_id"), on="run_id", maintain_order="left"
        )
        for source in (fit, predict)
    )
    # Errors are counts of a few questions, so that two models often have the same.
    losses = theirs.filter(pl.col("unit") != "error")
    left = ours.join(theirs, on=cell, how="anti", maintain_order="left")
    left = left.join(losses, on=copy, how="anti", maintain_order="left").drop("mixture_id")
    runs = predict.runs.join(left, on="run_id", how="semi", maintain_order="left")
    dropped = predict.observations.height - left.height
    note = f"left out: {dropped} of {predict.observations.height} values, which are in the fit"
    return PublishedRuns(
        runs=runs,
        observations=left,
        labels={run_id: predict.labels[run_id] for run_id in runs["run_id"].to_list()},
        notes=(*predict.notes, *((note,) if dropped else ())),
    )


def check_document(document: dict[str, Any]) -> None:
    """Checks the document against the schema; one record of each kind stands for its like.

    Raises:
        ValueError: It is not valid, or holds a number that JSON has not.
    """
    kinds = {
        (row["law"], row["metric"], *(type(value) for value in row.values())): row
        for row in document["records"]
    }
    sample = {**document, "records": list(kinds.values())}
    json.dumps(document, allow_nan=False)
    schema = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))
    if find_spec("jsonschema") is not None:
        from jsonschema import Draft202012Validator

        problem = next(Draft202012Validator(schema).iter_errors(sample), None)
        if problem is not None:
            raise ValueError(f"{problem.json_path} of the records: {problem.message}")
    fields = list(schema["$defs"]["record"]["properties"])
    for row in document["records"]:
        if list(row) != fields:
            raise ValueError(f"a record must have the fields {fields}, found {list(row)}")


def _number(value: float | None) -> float | None:
    """Returns a float of plain Python, or None for what is not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def _integer(value: float | None) -> int | None:
    return None if value is None else int(value)


def _machine() -> str:
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    return f"{system}, Python {platform.python_version()}, NumPy {np.__version__}"


def _json_text(document: dict[str, Any]) -> str:
    """Returns the JSON with one record per line."""
    head = json.dumps({**document, "records": []}, allow_nan=False).removesuffix("]}")
    rows = ",\n".join(json.dumps(row, allow_nan=False) for row in document["records"])
    return f"{head}\n{rows}\n]}}\n"


def _table_text(document: dict[str, Any]) -> str:
    """Returns a table of all but single predictions and single splits."""
    single = [
        row["metric"] == "prediction" or row["split"] not in (None, ALL_SPLITS)
        for row in document["records"]
    ]
    rows = [row for row, hide in zip(document["records"], single, strict=True) if not hide]
    fields = [
        name for name in (rows[0] if rows else {}) if any(row[name] is not None for row in rows)
    ]
    cells = [fields, *([_cell(row[name]) for name in fields] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(fields))]
    lines = ["  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip()
             for line in cells if fields]  # fmt: skip
    tail = (
        f"{document['benchmark']}: {len(document['records'])} records in {document['seconds']:.1f}"
        f" s, {sum(single)} of them single predictions or splits (--json has them)"
    )
    return "\n".join([*lines, tail]) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) and abs(value) < 1e5 else str(value)
