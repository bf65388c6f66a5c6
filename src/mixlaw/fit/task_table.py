"""The runs and checkpoints that have both losses and task errors: what an error law is fitted to.

Shape letters: N rows (a run at a step), F losses, K tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from mixlaw.errors import FitError
from mixlaw.mixtures import Mixture
from mixlaw.observations import (
    ERROR_UNIT,
    PROPORTION_PREFIX,
    check_observations,
    check_runs,
    proportion_domains,
    target_names,
)

LINKED_ROLES = ("design", "noise", "imported")
"""Roles of runs that error laws are fitted to: none that is held out."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TaskTable:
    """Losses and task errors of the same runs at the same steps."""

    run_ids: tuple[str, ...]
    """Run of each row."""
    mixture_ids: tuple[str, ...]
    """Mixture of each row's run."""
    corpora: tuple[str, ...]
    """Training text of each row's run; empty where it is not known."""
    seeds: tuple[int | None, ...]
    """Seed of each row's run; None: not known."""
    steps: tuple[int, ...]
    losses: tuple[str, ...]
    tasks: tuple[str, ...]
    loss_NF: Float[np.ndarray, "N F"]
    error_NK: Float[np.ndarray, "N K"]
    """Errors, between 0 and 1; NaN where there is none."""
    item_sd_NK: Float[np.ndarray, "N K"]
    """Standard error that the number of items leaves; NaN where it is not known."""

    @property
    def is_last_N(self) -> Bool[np.ndarray, " N"]:
        """Whether a row is the last one of its run."""
        last = {run_id: max(self._steps_of(run_id)) for run_id in set(self.run_ids)}
        return np.array([s == last[i] for i, s in zip(self.run_ids, self.steps, strict=True)])

    @property
    def sets(self) -> tuple[str, ...]:
        """Training set of each row: its mixture, and its text where there are several.

        What a row shares with another one of its set it need not share with a new set.
        """
        several = len(set(self.corpora)) > 1
        return tuple(
            f"{mixture} on {corpus}" if several else mixture
            for mixture, corpus in zip(self.mixture_ids, self.corpora, strict=True)
        )

    @property
    def num_items_K(self) -> Float[np.ndarray, " K"]:
        """Items of each task, from the binomial standard errors; NaN where they are not known."""
        variance_NK = self.error_NK * (1 - self.error_NK)
        with np.errstate(divide="ignore", invalid="ignore"):
            items_NK = variance_NK / self.item_sd_NK**2
        items_NK = np.where(np.isfinite(items_NK), items_NK, np.nan)
        return np.array(
            [np.median(row[known]) if (known := np.isfinite(row)).any() else np.nan
             for row in items_NK.T]
        )  # fmt: skip

    def _steps_of(self, run_id: str) -> list[int]:
        return [s for i, s in zip(self.run_ids, self.steps, strict=True) if i == run_id]


def read_tasks(
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    *,
    tasks: Sequence[str] | None = None,
    losses: Sequence[str] | None = None,
    roles: Sequence[str] = LINKED_ROLES,
) -> TaskTable:
    """Returns the runs and checkpoints that have every loss and a task's error.

    Args:
        runs: The runs table; runs whose status is not `done` are left out.
        observations: The observation table; task errors have the unit `error`.
        tasks: Which tasks; all by default.
        losses: Which losses; all that every such run has, by default.
        roles: Roles of the runs that count.

    Raises:
        TableError: The tables are not what they must be.
        FitError: There is no task, an unknown name, or no run that has both.
    """
    runs, observations = check_runs(runs), check_observations(observations)
    runs = runs.filter(
        pl.col("role").is_in(list(roles)), pl.col("status").fill_null("done") == "done"
    )
    rows = observations.join(runs.select("run_id"), on="run_id", how="semi")
    is_error = pl.col("unit").fill_null("") == ERROR_UNIT
    chosen_tasks = _named(tasks, target_names(rows.filter(is_error)), "task")
    known = target_names(rows.filter(~is_error))
    chosen_losses = _named(losses, known, "loss")
    places = rows.select("run_id", "step").unique(maintain_order=True)
    keys = list(places.iter_rows())
    loss_NF = _values(rows.filter(~is_error), keys, chosen_losses, "value")
    error_NK = _values(rows.filter(is_error), keys, chosen_tasks, "value")
    item_sd_NK = _values(rows.filter(is_error), keys, chosen_tasks, "standard_error")
    usable_N = np.logical_and(
        np.isfinite(loss_NF).all(axis=1), np.isfinite(error_NK).any(axis=1), dtype=bool
    )
    if not usable_N.any():
        raise FitError(
            "no run has both the losses and a task's error at the same step",
            do="measure both at the same steps, or name the losses that they have in common",
        )
    places = places.filter(usable_N.tolist()).join(
        runs, on="run_id", how="left", maintain_order="left"
    )
    return TaskTable(
        run_ids=tuple(places["run_id"].to_list()),
        mixture_ids=tuple(_mixture_ids(places)),
        corpora=tuple(places["corpus"].fill_null("").to_list()),
        seeds=tuple(places["seed"].to_list()),
        steps=tuple(places["step"].to_list()),
        losses=chosen_losses,
        tasks=chosen_tasks,
        loss_NF=loss_NF[usable_N],
        error_NK=error_NK[usable_N],
        item_sd_NK=item_sd_NK[usable_N],
    )


def _named(wanted: Sequence[str] | None, known: Sequence[str], kind: str) -> tuple[str, ...]:
    if not known:
        raise FitError(
            f"the runs have no {kind}" + (" errors (unit `error`)" if kind == "task" else ""),
            do="measure tasks on the proxies (`[proxies] tasks = true` in mixlaw.toml), or import"
            " errors with `mixlaw import --errors`"
            if kind == "task"
            else None,
        )
    for name in wanted or ():
        if name not in known:
            raise FitError(f"{name!r} is no {kind} here", do=f"there are {', '.join(known)}")
    return tuple(known) if wanted is None else tuple(dict.fromkeys(wanted))


def _values(
    rows: pl.DataFrame, keys: Sequence[tuple[object, ...]], names: Sequence[str], column: str
) -> Float[np.ndarray, "N K"]:
    """Returns a column of the observations, one row per run and step, one column per name."""
    row_of = {key: i for i, key in enumerate(keys)}
    column_of = {name: i for i, name in enumerate(names)}
    value_NK = np.full((len(keys), len(names)), np.nan)
    chosen = rows.filter(pl.col("target").is_in(list(names)), pl.col(column).is_not_null())
    for run_id, step, target, value in chosen.select(
        "run_id", "step", "target", column
    ).iter_rows():
        value_NK[row_of[run_id, step], column_of[target]] = value
    return value_NK


def _mixture_ids(runs: pl.DataFrame) -> list[str]:
    domains = proportion_domains(runs)
    r_NM = runs.select(PROPORTION_PREFIX + domain for domain in domains).to_numpy()
    return [
        given or Mixture.from_array(domains, np.asarray(r_M, dtype=np.float64)).mixture_id
        for given, r_M in zip(runs["mixture_id"].to_list(), r_NM, strict=True)
    ]
