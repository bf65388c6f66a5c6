"""Losses of runs at all their sizes and steps: what a joint law is fitted to.

Shape letters: R rows (a run at a step), X inputs (M shares, params, tokens), T targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from mixlaw.errors import FitError, TableError
from mixlaw.observations import (
    PROPORTION_PREFIX,
    check_observations,
    check_runs,
    loss_target_names,
    proportion_domains,
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class JointTable:
    """One row for each run and step, one column for each target."""

    run_ids: tuple[str, ...]
    mixture_ids: tuple[str, ...]
    domains: tuple[str, ...]
    targets: tuple[str, ...]
    x_RX: Float[np.ndarray, "R X"]
    """Shares, params, and tokens (steps where tokens are not known)."""
    y_RT: Float[np.ndarray, "R T"]
    """Losses; NaN where there is none."""

    @property
    def params_R(self) -> Float[np.ndarray, " R"]:
        """Model size of each row."""
        return self.x_RX[:, -2]

    @property
    def tokens_R(self) -> Float[np.ndarray, " R"]:
        """Tokens, or steps, of each row."""
        return self.x_RX[:, -1]

    def select(self, keep_R: Bool[np.ndarray, " R"]) -> "JointTable":
        """Returns the table of some of the rows."""
        places = np.flatnonzero(keep_R)
        return replace(
            self,
            run_ids=tuple(self.run_ids[i] for i in places),
            mixture_ids=tuple(self.mixture_ids[i] for i in places),
            x_RX=self.x_RX[places],
            y_RT=self.y_RT[places],
        )


def joint_table(
    runs: pl.DataFrame, observations: pl.DataFrame, *, targets: Sequence[str] | None = None
) -> JointTable:
    """Returns the losses of finished runs at every step, sorted by run and step.

    Model size is the total parameters where every run has them, else those without embeddings;
    training length is tokens where every row has them, else steps.

    Raises:
        TableError: No run has an observation, or a size is not known.
        FitError: A loss, a size or a length is not a positive number.
    """
    runs, observations = check_runs(runs), check_observations(observations)
    domains = proportion_domains(runs)
    chosen = loss_target_names(observations) if targets is None else tuple(targets)
    runs = runs.filter(pl.col("status").fill_null("done") == "done")
    size = "params_non_embedding" if runs["params_total"].null_count() else "params_total"
    wide = (
        observations.filter(pl.col("target").is_in(list(chosen)))
        .pivot("target", index=["run_id", "step"], values="value", aggregate_function="first")
        .join(_lengths(observations), on=["run_id", "step"])
    )
    rows = runs.join(wide, on="run_id").sort("run_id", "step")
    missing = [target for target in chosen if target not in rows.columns]
    if not rows.height or missing:
        raise TableError(f"no finished run has an observation of {', '.join(missing or chosen)}")
    if rows[size].null_count():
        raise TableError(
            "a joint law needs the size of every run, but"
            f" {rows.filter(pl.col(size).is_null())['run_id'][0]!r} has none",
            do="give params_total or params_non_embedding in the runs table",
        )
    inputs = [*(PROPORTION_PREFIX + d for d in domains), size, "length"]
    shares = [PROPORTION_PREFIX + d for d in domains]
    table = JointTable(
        run_ids=tuple(rows["run_id"]),
        mixture_ids=tuple(
            mixture_id or "-".join(f"{share:.6g}" for share in row)
            for mixture_id, row in zip(
                rows["mixture_id"], rows.select(shares).iter_rows(), strict=True
            )
        ),
        domains=domains,
        targets=chosen,
        x_RX=rows.select(inputs).cast(pl.Float64).to_numpy().astype(np.float64),
        y_RT=rows.select(chosen).cast(pl.Float64).to_numpy().astype(np.float64),
    )
    _check_positive(table)
    return table


def _lengths(observations: pl.DataFrame) -> pl.DataFrame:
    column = "step" if observations["tokens"].null_count() else "tokens"
    return observations.group_by("run_id", "step").agg(
        pl.col(column).first().cast(pl.Float64).alias("length")
    )


def _check_positive(table: JointTable) -> None:
    scale_R2 = table.x_RX[:, -2:]
    if not np.all(scale_R2 > 0):
        raise FitError(
            "a joint law needs params and tokens above 0, but run"
            f" {table.run_ids[int(np.argmin(scale_R2.min(axis=1)))]!r} has a row with none",
            do="leave step 0 out",
        )
    bad_RT = ~np.isnan(table.y_RT) & ~((table.y_RT > 0) & np.isfinite(table.y_RT))
    if bad_RT.any():
        row, column = np.argwhere(bad_RT)[0]
        raise FitError(
            f"losses must be positive numbers, but run {table.run_ids[row]!r} has"
            f" {table.y_RT[row, column]} for {table.targets[column]!r}",
            do="mark the run as failed, or leave it out",
        )


def check_mixtures(table: JointTable) -> None:
    """Raises where a target has too few mixtures to fit a law to.

    Raises:
        FitError: A target has losses of fewer than 4 mixtures.
    """
    for target, y_R in zip(table.targets, table.y_RT.T, strict=True):
        known = np.flatnonzero(~np.isnan(y_R))
        mixtures = len({table.mixture_ids[i] for i in known})
        if mixtures < 4:
            raise FitError(
                f"a joint fit needs the losses of at least 4 mixtures, but {target!r} has"
                f" {mixtures}",
                do="train or import more mixtures, about three per domain",
            )


def group_index(labels: Sequence[str]) -> Int[np.ndarray, " R"]:
    """Returns the place of each label among the sorted different ones."""
    return np.unique(np.asarray(labels), return_inverse=True)[1].astype(np.int64)
