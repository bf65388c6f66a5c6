r"""Which losses tell a task's error, and how well on training sets that the law has not seen.

Shape letters: N rows (a run at a step), F losses, K tasks, S training sets, V rates, P parameters.

With the rate fixed, $\epsilon - k e^{-\gamma L}$ is linear in $\epsilon$ and $k$: refits without
each training set are solved for all rates of a grid at once, then on finer ones around the best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mixlaw.errors import FitError
from mixlaw.fit.error import RATE_BOUNDS, ErrorFit, fit_error
from mixlaw.fit.task_table import TaskTable
from mixlaw.laws.error import loss_weights

GRID, ZOOMS = 80, 2
"""Rates of the first search, 12% apart; each further one has as many around the best of them."""
EPSILON_BOUNDS = (-1.0, 2.0)
"""As in `fit_error`: beyond, the law is a straight line."""
MEAN = "mean of all"
"""Name of the candidate that is the mean of all losses."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TaskLink:
    """The law from losses to one task's error, and what it is worth on a new training set."""

    task: str
    fit: ErrorFit
    source: str
    """What the error is predicted from, in words: a loss, several, or the mean of all."""
    columns: tuple[int, ...]
    """Columns of those losses in the task table."""
    sets: tuple[str, ...]
    """Training sets, each of which was left out once; fewer than two: none was."""
    theta_SP: Float[np.ndarray, "S P"]
    """Parameters without each of them."""
    residual_N: Float[np.ndarray, " N"]
    """Observed less predicted error by row, from measured losses and without the row's set; NaN
    where the task was not measured, or where there is one set only."""
    line_residual_N: Float[np.ndarray, " N"]
    """The same for a straight line in the same losses."""
    mean_residual_N: Float[np.ndarray, " N"]
    """The same for the mean of the other sets."""
    candidates: Mapping[str, float]
    """Mean absolute left-out error at the runs' ends, by what the error is predicted from."""

    def without(self, training_set: str) -> Float[np.ndarray, " P"]:
        """Returns the parameters that a training set did not move."""
        if training_set in self.sets:
            return self.theta_SP[self.sets.index(training_set)]
        return self.fit.theta_P


def fit_links(
    table: TaskTable, *, losses: Mapping[str, Sequence[str]] | None = None
) -> tuple[TaskLink, ...]:
    """Returns the law of each task.

    A task named `task:<domain>` is predicted from the loss on that domain where there is one; other
    tasks from the loss, or the mean of all, that predicts them best on training sets left out.

    Args:
        table: Losses and errors.
        losses: What to predict a task from instead; the weights of several are fitted.

    Raises:
        FitError: An unknown name, or too few runs.
    """
    chosen = losses or {}
    for task in chosen:
        if task not in table.tasks:
            raise FitError(f"{task!r} is no task here", do=f"there are {', '.join(table.tasks)}")
    return tuple(
        _fit_link(table, k, chosen.get(task, own_losses(task, table.losses)))
        for k, task in enumerate(table.tasks)
    )


def own_losses(task: str, losses: Sequence[str]) -> tuple[str, ...] | None:
    """Returns the loss on the text that a task was made from; None: it is not known."""
    name = task.partition(":")[2]
    return (name,) if name in losses else None


def _fit_link(table: TaskTable, k: int, losses: Sequence[str] | None) -> TaskLink:
    candidates = _candidates(table, losses)
    scores: dict[str, float] = {}
    if len(candidates) > 1:
        scores = {
            source: _left_out_mae(table, _leave_out(table, k, weight_F)[1])
            for source, weight_F in candidates.items()
        }
    best = min(candidates, key=lambda source: scores.get(source, 0.0))
    weight_F = candidates[best]
    columns = tuple(int(f) for f in np.flatnonzero(weight_F))
    names = tuple(table.losses[f] for f in columns)
    seen_N = np.isfinite(table.error_NK[:, k])
    fit = fit_error(
        table.loss_NF[seen_N][:, columns],
        table.error_NK[seen_N, k],
        losses=names,
        weights=None if best != MEAN else weight_F[list(columns)].tolist(),
    )
    if len(columns) > 1 and best != MEAN:
        weight_F = np.zeros(len(table.losses))
        weight_F[list(columns)] = loss_weights(fit.theta_P)
    refits_S3, residual_N = _leave_out(table, k, weight_F)
    rate_SF = refits_S3[:, 2:] * weight_F[list(columns)]
    line_N, mean_N = _simple_residuals(table, k, weight_F)
    return TaskLink(
        task=table.tasks[k],
        fit=fit,
        source=best,
        columns=columns,
        sets=_set_names(table),
        theta_SP=np.concatenate([refits_S3[:, :2], rate_SF], axis=1),
        residual_N=residual_N,
        line_residual_N=line_N,
        mean_residual_N=mean_N,
        candidates=scores or {best: _left_out_mae(table, residual_N)},
    )


def _candidates(
    table: TaskTable, losses: Sequence[str] | None
) -> dict[str, Float[np.ndarray, " F"]]:
    """Returns what an error may be predicted from, as weights of the losses."""
    one_FF = np.eye(len(table.losses))
    if losses is not None:
        for loss in losses:
            if loss not in table.losses:
                raise FitError(
                    f"{loss!r} is no loss of the runs with task errors",
                    do=f"there are {', '.join(table.losses)}",
                )
        index = [table.losses.index(loss) for loss in dict.fromkeys(losses)]
        return {", ".join(table.losses[f] for f in index): one_FF[index].mean(axis=0)}
    singles = dict(zip(table.losses, one_FF, strict=True))
    if len(singles) == 1 or len(_set_names(table)) < 2:
        # Nothing tells them apart out of sample: the mean of all, which needs no choice.
        return {MEAN if len(singles) > 1 else table.losses[0]: one_FF.mean(axis=0)}
    return {**singles, MEAN: one_FF.mean(axis=0)}


def _set_names(table: TaskTable) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(table.sets))
    return names if len(names) > 1 else ()


def _without_sets(table: TaskTable, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights of the rows without each set (S x N), and the set of each row."""
    names = _set_names(table)
    set_N = np.array([names.index(name) if names else 0 for name in table.sets])
    seen_N = np.isfinite(table.error_NK[:, k])
    return (set_N != np.arange(len(names))[:, None]) & seen_N, set_N


def _leave_out(
    table: TaskTable, k: int, weight_F: Float[np.ndarray, " F"]
) -> tuple[Float[np.ndarray, "S 3"], Float[np.ndarray, " N"]]:
    """Returns epsilon, k and gamma without each set, and the residuals of what was left out."""
    weight_SN, set_N = _without_sets(table, k)
    loss_N, error_N = table.loss_NF @ weight_F, table.error_NK[:, k]
    if not len(weight_SN):
        return np.zeros((0, 3)), np.full(len(loss_N), np.nan)
    theta_S3 = refit_errors(loss_N, error_N, weight_SN.astype(np.float64))
    eps_N, k_N, rate_N = theta_S3[set_N].T
    return theta_S3, error_N - np.clip(eps_N - k_N * np.exp(-rate_N * loss_N), 0.0, 1.0)


def _simple_residuals(
    table: TaskTable, k: int, weight_F: Float[np.ndarray, " F"]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Returns left-out residuals of a straight line, and of the mean of the other sets' ends."""
    weight_SN, set_N = _without_sets(table, k)
    loss_N, error_N = table.loss_NF @ weight_F, table.error_NK[:, k]
    if not len(weight_SN):
        nothing_N = np.full(len(loss_N), np.nan)
        return nothing_N, nothing_N
    total_S = weight_SN.sum(axis=1)
    known_N = np.where(np.isfinite(error_N), error_N, 0.0)
    center_S, level_S = weight_SN @ loss_N / total_S, weight_SN @ known_N / total_S
    apart_SN = np.where(weight_SN, loss_N - center_S[:, None], 0.0)
    spread_S = np.maximum(np.sum(apart_SN**2, axis=1), 1e-300)
    slope_S = np.sum(apart_SN * known_N, axis=1) / spread_S
    line_N = level_S[set_N] + slope_S[set_N] * (loss_N - center_S[set_N])
    last_SN = weight_SN & table.is_last_N
    mean_S = last_SN @ known_N / np.maximum(last_SN.sum(axis=1), 1)
    return error_N - line_N, error_N - mean_S[set_N]


def _left_out_mae(table: TaskTable, residual_N: Float[np.ndarray, " N"]) -> float:
    """Returns the mean absolute residual at the runs' ends, in which each set counts once."""
    last_N = table.is_last_N & np.isfinite(residual_N)
    sets = np.array(table.sets)[last_N]
    means = [np.mean(np.abs(residual_N[last_N][sets == name])) for name in dict.fromkeys(sets)]
    return float(np.mean(means)) if means else float("nan")


def refit_errors(
    loss_N: Float[np.ndarray, " N"],
    error_N: Float[np.ndarray, " N"],
    weight_SN: Float[np.ndarray, "S N"],
) -> Float[np.ndarray, "S 3"]:
    """Returns epsilon, k and gamma of the weighted least-squares law of one loss, for each row.

    Args:
        loss_N: The loss of each run.
        error_N: Its error; NaN where there is none, which then must weigh nothing.
        weight_SN: Weights of the runs in each fit.
    """
    known_N = np.where(np.isfinite(error_N), error_N, 0.0)
    center = float(np.mean(loss_N))
    apart_N = loss_N - center
    each_S = np.arange(len(weight_SN))
    # All fits try the same rates first, so that their powers are computed once.
    rate_SV = np.geomspace(*RATE_BOUNDS, GRID)[None]
    for _ in range(ZOOMS):
        squares_SV = _solve_weighted(apart_N, known_N, weight_SN, rate_SV)[2]
        best_S = np.argmin(squares_SV, axis=1)
        tried_SV = np.broadcast_to(rate_SV, squares_SV.shape)
        low_S = tried_SV[each_S, np.maximum(best_S - 1, 0)]
        high_S = tried_SV[each_S, np.minimum(best_S + 1, GRID - 1)]
        rate_SV = np.geomspace(low_S, high_S, GRID, axis=1)
    eps_SV, k_SV, squares_SV = _solve_weighted(apart_N, known_N, weight_SN, rate_SV)
    best_S = np.argmin(squares_SV, axis=1)
    eps_S, k_S, rate_S = (values_SV[each_S, best_S] for values_SV in (eps_SV, k_SV, rate_SV))
    return np.stack([eps_S, k_S * np.exp(rate_S * center), rate_S], axis=1)


def _solve_weighted(
    loss_N: np.ndarray, error_N: np.ndarray, weight_SN: np.ndarray, rate_SV: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns, for each fit and rate, the best epsilon and k within bounds, and the squares."""
    share_SN1 = (weight_SN / weight_SN.sum(axis=1, keepdims=True))[..., None]
    power_SVN = np.exp(-rate_SV[..., None] * loss_N)
    power_SV, square_SV, cross_SV = (
        (values_SVN @ share_SN1)[..., 0]
        for values_SVN in (power_SVN, power_SVN**2, power_SVN * error_N)
    )
    level_S1 = share_SN1[..., 0] @ error_N[:, None]
    spread_SV = np.maximum(square_SV - power_SV**2, 1e-300)
    k_SV = np.maximum((power_SV * level_S1 - cross_SV) / spread_SV, 0.0)
    free_SV = level_S1 + k_SV * power_SV
    eps_SV = np.clip(free_SV, *EPSILON_BOUNDS)
    bound_SV = np.maximum((eps_SV * power_SV - cross_SV) / square_SV, 0.0)
    k_SV = np.where(eps_SV == free_SV, k_SV, bound_SV)
    squares_SV = (
        eps_SV**2 - 2 * eps_SV * level_S1 + k_SV**2 * square_SV
        - 2 * eps_SV * k_SV * power_SV + 2 * k_SV * cross_SV
    )  # fmt: skip
    return eps_SV, k_SV, squares_SV
