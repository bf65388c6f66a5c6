"""The overall loss: what each validation target weighs in it, and its value at every checkpoint."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from mixlaw.errors import TableError
from mixlaw.importers.standard import read_text


def read_valid_weights(path: str | Path) -> dict[str, float]:
    """Returns the share of each validation file in the overall loss, from `valid_weight.json`.

    Raises:
        TableError: The file is no JSON object of non-negative numbers that sum to one.
    """
    path = Path(path)
    try:
        weights = json.loads(read_text(path))
        found = {str(name): float(weight) for name, weight in weights.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise TableError(
            f"weights must be a JSON object of numbers ({error})", where=str(path)
        ) from error
    total = math.fsum(found.values())
    if not abs(total - 1) <= 1e-6 or min(found.values()) < 0:
        raise TableError(
            f"weights must be non-negative and sum to 1, but sum to {total:.6g}", where=str(path)
        )
    return found


def add_overall(
    observations: pl.DataFrame, weights: Mapping[str, float], *, name: str = "overall"
) -> pl.DataFrame:
    """Returns the observations with the weighted sum of the targets as a further target.

    A checkpoint that lacks one of the weighted targets has no such sum.
    """
    share = pl.DataFrame({"target": list(weights), "weight": list(weights.values())})
    added = (
        observations.join(share.filter(pl.col("weight") > 0), on="target", maintain_order="left")
        .group_by("run_id", "step", "tokens", "unit", maintain_order=True)
        .agg(pl.len(), (pl.col("value") * pl.col("weight")).sum())
        .filter(pl.col("len") == sum(weight > 0 for weight in weights.values()))
        .with_columns(
            pl.lit(name).alias("target"), pl.lit(None, pl.Float64).alias("standard_error")
        )
    )
    return pl.concat([observations, added.select(observations.columns)])
