"""Is the chain from mixture through losses to task error worth its two laws?

It is compared with what is simpler: a mixing law fitted to the errors themselves, a straight line
from the predicted losses to the error, and the mean of the training runs. All of them predict
mixtures that they did not see, from the proportions alone.

Shape letters: R runs, T targets, N rows of the task table, K tasks, J = K + 1 columns (the tasks
and their mean), G mixtures, W ways to predict.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from jaxtyping import Float

from mixlaw.fit.error_links import TaskLink
from mixlaw.fit.law import fit_table
from mixlaw.fit.result import evaluate_law
from mixlaw.fit.task_table import TaskTable, read_tasks
from mixlaw.mixtures import Mixture
from mixlaw.observations import LossTable, run_mixture
from mixlaw.selection.downstream import MEAN, DownstreamFit, predict_downstream

WAYS = ("chain", "line", "direct", "mean")
"""The chain of laws; a line from predicted losses; the mixing law fitted to errors; the mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScore:
    """Mean absolute errors on mixtures that were not seen, by way of predicting."""

    task: str
    """A task, or `mean`."""
    error: dict[str, float]
    """By way: see `WAYS`."""
    item_sd: float
    """Standard deviation that the number of items leaves of a measured error; NaN: not known."""
    spread: float
    """Standard deviation of the measured errors between mixtures: what there was to predict."""
    count: int
    """Mixtures, or held-out runs."""
    inside: int | None = None
    """Of them, how many lay in the chain's intervals; None: not judged on what made them."""
    width: float | None = None
    """Mean width of these intervals."""

    @property
    def best(self) -> str:
        """The way with the least error."""
        return min(self.error, key=lambda way: self.error[way])


def score_left_out(chain: DownstreamFit) -> tuple[TaskScore, ...]:
    """Returns how well each way predicts the fitted mixtures, each left out with all its runs.

    Args:
        chain: A chain whose mixing law and error laws share runs; otherwise nothing is scored.
    """
    if len(chain.rows_G) < 4:
        return ()
    table, fit = chain.table, chain.fit
    rows = [row for rows in chain.rows_G for row in rows]
    error_NK = table.error_NK[rows]
    group_N = np.array([g for g, members in enumerate(chain.rows_G) for _ in members])
    index_N = [fit.table.run_ids.index(table.run_ids[row]) for row in rows]
    loss_NT = np.concatenate(
        [evaluate_law(fit.law, fit.table.r_RM[i : i + 1], fit.theta_loo_RTP[i]) for i in index_N]
    )
    predicted = {
        "chain": _left_out(chain, rows, loss_NT),
        "line": np.stack(
            [
                [
                    _line(table, link, loss_NT[n, chain.targets_of(link)], table.sets[row])
                    for n, row in enumerate(rows)
                ]
                for link in chain.links
            ],
            axis=1,
        ),
        "direct": error_NK - _direct_residual(chain, rows, index_N),
        "mean": np.stack(
            [_others_mean(error_NK, group_N, g) for g in group_N],
        ),
    }
    return _scores(chain, error_NK, predicted, item_sd_NK=table.item_sd_NK[rows], group_N=group_N)


def score_held_out(
    chain: DownstreamFit,
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    *,
    roles: Sequence[str] = ("holdout",),
    level: float = 0.9,
) -> tuple[TaskScore, ...]:
    """Returns how well each way predicts runs that nothing was fitted to, and the coverage.

    Args:
        chain: The fitted chain.
        runs: The runs table; nothing is scored where no run with these roles has errors.
        observations: The observation table.
        roles: Roles of the runs to predict.
        level: Level of the intervals.
    """
    held_ids = runs.filter(pl.col("role").is_in(list(roles)))["run_id"].to_list()
    measured = observations.filter(
        pl.col("run_id").is_in(held_ids), pl.col("target").is_in(list(chain.tasks))
    )
    if not measured.height:
        return ()
    held = read_tasks(runs, observations, tasks=chain.tasks, losses=chain.table.losses, roles=roles)
    last = np.flatnonzero(held.is_last_N)
    mixtures = [run_mixture(runs, held.run_ids[n]) for n in last]
    prediction = predict_downstream(chain, mixtures, level=level)
    loss_NT = chain.fit.losses(_shares(mixtures, chain.fit.domains))
    fitted_NK = chain.table.error_NK[[row for rows in chain.rows_G for row in rows]]
    error_NK = held.error_NK[last]
    line_NK = [
        [_line(chain.table, link, loss_T[chain.targets_of(link)], None) for loss_T in loss_NT]
        for link in chain.links
    ]
    predicted = {
        "chain": prediction.value_RJ[:, :-1],
        "line": np.stack(line_NK, axis=1) + chain.seeds.shift_J[:-1],
        "direct": _direct_prediction(chain, mixtures),
        "mean": np.broadcast_to(np.nanmean(fitted_NK, axis=0), error_NK.shape),
    }
    scores = _scores(
        chain, error_NK, predicted, item_sd_NK=held.item_sd_NK[last], group_N=np.arange(len(last))
    )
    error_NJ = np.hstack([error_NK, error_NK @ chain.weight_K[:, None]])
    inside_NJ = (prediction.low_RJ <= error_NJ) & (error_NJ <= prediction.high_RJ)
    width_J = np.mean(prediction.high_RJ - prediction.low_RJ, axis=0)
    return tuple(
        replace(score, inside=int(inside_NJ[:, j].sum()), width=float(width_J[j]))
        for j, score in enumerate(scores)
    )


def _left_out(
    chain: DownstreamFit, rows: Sequence[int], loss_NT: Float[np.ndarray, "N T"]
) -> Float[np.ndarray, "N K"]:
    """Returns the chain's errors without each row's mixture."""
    columns: list[list[float]] = []
    for link in chain.links:
        own_NF = loss_NT[:, chain.targets_of(link)]
        columns.append(
            [
                float(link.fit.law.predict(own_NF[[n]], link.without(chain.table.sets[row]))[0])
                for n, row in enumerate(rows)
            ]
        )
    return np.clip(np.array(columns).T, 0.0, 1.0)


def _line(
    table: TaskTable, link: TaskLink, loss_F: Float[np.ndarray, " F"], without: str | None
) -> float:
    """Returns the error at losses by the straight line through the other sets' rows."""
    from mixlaw.laws.error import loss_weights

    k = table.tasks.index(link.task)
    weight_F = loss_weights(link.fit.theta_P)
    kept_N = np.isfinite(table.error_NK[:, k])
    if without is not None:
        kept_N &= np.array(table.sets) != without
    mean_N = table.loss_NF[kept_N][:, link.columns] @ weight_F
    slope, level = np.polyfit(mean_N, table.error_NK[kept_N, k], 1)
    return float(level + slope * (loss_F @ weight_F))


def _error_table(chain: DownstreamFit) -> LossTable:
    """Returns the errors of the mixing law's runs in the place of their losses."""
    rows = [row for rows in chain.rows_G for row in rows]
    index = [chain.fit.table.run_ids.index(chain.table.run_ids[row]) for row in rows]
    return replace(
        chain.fit.table.select(index),
        targets=chain.tasks,
        y_RT=chain.table.error_NK[rows],
        standard_error_RT=chain.table.item_sd_NK[rows],
        unit="error",
    )


def _direct_residual(
    chain: DownstreamFit, rows: Sequence[int], index_N: Sequence[int]
) -> Float[np.ndarray, "N K"]:
    table = _error_table(chain)
    residual_RK = fit_table(chain.fit.law, table, num_draws=1).left_out_residual_RT
    place = {run_id: i for i, run_id in enumerate(table.run_ids)}
    assert len(rows) == len(index_N)
    return residual_RK[[place[chain.table.run_ids[row]] for row in rows]]


def _direct_prediction(
    chain: DownstreamFit, mixtures: Sequence[Mixture]
) -> Float[np.ndarray, "N K"]:
    """Returns the errors by a mixing law of their own, which learns of seeds as that of losses."""
    fit = fit_table(
        chain.fit.law, _error_table(chain), compared=_with_replicates(chain), num_draws=1
    )
    return fit.losses(_shares(mixtures, chain.fit.domains))


def _with_replicates(chain: DownstreamFit) -> LossTable:
    """Returns the errors of all runs of the fitted mixtures, those with fresh seeds too."""
    table, fitted = chain.table, chain.fit.table
    row_of = {mixture_id: i for i, mixture_id in enumerate(fitted.mixture_ids)}
    last = [int(n) for n in np.flatnonzero(table.is_last_N) if table.mixture_ids[n] in row_of]
    return replace(
        fitted.select([row_of[table.mixture_ids[n]] for n in last]),
        run_ids=tuple(table.run_ids[n] for n in last),
        seeds=tuple(table.seeds[n] for n in last),
        targets=chain.tasks,
        y_RT=table.error_NK[last],
        standard_error_RT=table.item_sd_NK[last],
        unit="error",
    )


def _others_mean(
    error_NK: Float[np.ndarray, "N K"], group_N: np.ndarray, group: int
) -> Float[np.ndarray, " K"]:
    return np.nanmean(error_NK[group_N != group], axis=0)


def _shares(mixtures: Sequence[Mixture], domains: tuple[str, ...]) -> Float[np.ndarray, "R M"]:
    return np.stack([mixture.array(domains) for mixture in mixtures])


def _scores(
    chain: DownstreamFit,
    error_NK: Float[np.ndarray, "N K"],
    predicted: dict[str, Float[np.ndarray, "N K"]],
    *,
    item_sd_NK: Float[np.ndarray, "N K"],
    group_N: np.ndarray,
) -> tuple[TaskScore, ...]:
    """Returns the scores of all tasks and their mean; every mixture counts once."""
    weight_K1 = chain.weight_K[:, None]
    weight_N = 1.0 / np.bincount(group_N)[group_N]
    off = {way: error_NK - value_NK for way, value_NK in predicted.items()}
    both = {way: np.hstack([off_NK, off_NK @ weight_K1]) for way, off_NK in off.items()}
    error_NJ = np.hstack([error_NK, error_NK @ weight_K1])
    item_J = np.sqrt(np.mean(np.hstack([item_sd_NK**2, item_sd_NK**2 @ weight_K1**2]), axis=0))
    return tuple(
        TaskScore(
            task=name,
            error={
                way: float(np.average(np.abs(off_NJ[known_N, j]), weights=weight_N[known_N]))
                for way, off_NJ in both.items()
            },
            item_sd=float(item_J[j]),
            spread=float(np.std(error_NJ[known_N, j])),
            count=len(np.unique(group_N[known_N])),
        )
        for j, name in enumerate((*chain.tasks, MEAN))
        if (known_N := np.isfinite(error_NJ[:, j])).any()
    )
