"""From a mixture through its losses to task errors, and what each link of that chain is worth.

Shape letters: R mixtures, M training domains, T targets of the mixing law, N rows of the task
table, K tasks, J = K + 1 columns (the tasks and their mean), G mixtures of the mixing law that have
errors, B bootstrap draws.

Where the runs of the mixing law have errors of their own, intervals are those of the whole chain:
each mixture is left out of both links, and its error is predicted from its proportions alone. Where
the error law comes from other runs, the links' intervals are added in quadrature: the mixing law's
(in the direction in which the error depends on the losses), the error law's own, and its bias on a
training set that it has not seen.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from jaxtyping import Float

from mixlaw.errors import FitError
from mixlaw.fit.error import ErrorFit
from mixlaw.fit.error_links import TaskLink, fit_links
from mixlaw.fit.error_noise import SeedShift, learn_seed_shift
from mixlaw.fit.result import FitResult, evaluate_law
from mixlaw.fit.task_table import TaskTable, read_tasks
from mixlaw.mixtures import Mixture, stack_mixtures
from mixlaw.predict import conformal_halfwidth, predict_combinations

MEAN = "mean"
"""Name of the column that is the weighted mean of the tasks."""
LEAST_MIXTURES = 8
"""Mixtures with losses and errors from which on the whole chain is left out mixture by mixture."""
UNTESTED = (
    "untested across mixtures: all runs with task errors have one training distribution, so that"
    " the intervals don't hold how the error law carries over to another one"
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DownstreamFit:
    """A mixing law for the losses, and a law from the losses to each task's error."""

    fit: FitResult
    """The mixing law."""
    table: TaskTable
    """What the error laws were fitted to."""
    links: tuple[TaskLink, ...]
    """The law of each task, in the order of the table."""
    weight_K: Float[np.ndarray, " K"]
    """Weight of each task in their mean; they sum to one."""
    rows_G: tuple[tuple[int, ...], ...]
    """For each mixture of the mixing law that has errors: its runs' last rows of the task table."""
    residual_GK: Float[np.ndarray, "G K"]
    """Observed less predicted error from the proportions alone, both links without that mixture;
    the mean over its runs."""
    seeds: SeedShift
    """What a fresh seed does to errors (and to their mean, the last column) beside the losses."""
    notes: tuple[str, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return self.table.tasks

    @property
    def error_fits(self) -> dict[str, ErrorFit]:
        """The error law of each task, over targets of the mixing law.

        They know of the seeds, and of their bias on a mixture that they have not seen.
        """
        return {
            link.task: _with_bias(self.table, link, float(self.seeds.shift_J[k]))
            for k, link in enumerate(self.links)
        }

    @property
    def is_end_to_end(self) -> bool:
        """Whether intervals come from the whole chain, left out mixture by mixture."""
        return len(self.residual_GK) >= LEAST_MIXTURES

    @property
    def is_tested(self) -> bool:
        """Whether there is more than one training distribution to leave out."""
        return bool(self.links[0].sets)

    def errors(self, r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, "R K"]:
        """Returns the expected task errors of mixtures."""
        return self.chain(self.fit.losses(r_RM))

    def chain(self, loss_RT: Float[np.ndarray, "R T"]) -> Float[np.ndarray, "R K"]:
        """Returns the task errors at losses, which are in the order of the mixing law's targets."""
        return np.stack(
            [link.fit.predict(loss_RT[:, self.targets_of(link)]) for link in self.links], axis=1
        )

    def slopes(self, loss_RT: Float[np.ndarray, "R T"]) -> Float[np.ndarray, "R K T"]:
        """Returns the derivatives of the task errors by the losses."""
        slope_RKT = np.zeros((len(loss_RT), len(self.links), loss_RT.shape[1]))
        for k, link in enumerate(self.links):
            columns = self.targets_of(link)
            slope_RKT[:, k, columns] = link.fit.law.slope(loss_RT[:, columns], link.fit.theta_P)
        return slope_RKT

    def targets_of(self, link: TaskLink) -> list[int]:
        """Returns where a task's losses stand among the targets of the mixing law."""
        return [self.fit.targets.index(loss) for loss in link.fit.law.losses]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DownstreamPrediction:
    """Predicted task errors of mixtures, the weighted mean last.

    The interval is that of the error that one new run with a fresh seed would be measured to have.
    """

    mixtures: tuple[Mixture, ...]
    columns: tuple[str, ...]
    """Tasks, and `mean`."""
    value_RJ: Float[np.ndarray, "R J"]
    low_RJ: Float[np.ndarray, "R J"]
    high_RJ: Float[np.ndarray, "R J"]
    level: float
    """Share of new runs that the interval is meant to hold."""
    parts: Mapping[str, Float[np.ndarray, "R J"]]
    """Half-widths that the links would have on their own: `mixing law`, `error law`, `new mixture`
    and `items`."""
    notes: tuple[str, ...]
    """What the intervals hold and what they don't, in sentences."""


def fit_downstream(
    fit: FitResult,
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    *,
    tasks: Sequence[str] | None = None,
    losses: Mapping[str, Sequence[str]] | None = None,
    weights: Mapping[str, float] | None = None,
) -> DownstreamFit:
    """Returns the chain from mixtures to task errors.

    Args:
        fit: The mixing law, fitted to losses.
        runs: The runs that the error laws are fitted to: those of the mixing law, or others with
            the same losses. Held-out runs in it don't count.
        observations: Their losses and task errors (unit `error`), checkpoints included.
        tasks: Which tasks; all by default.
        losses: Which losses of the mixing law a task is predicted from.
        weights: Weights of the tasks in their mean; all alike by default.

    Raises:
        TableError: The tables are not what they must be.
        FitError: There are no task errors, an unknown name, or too few runs.
    """
    table = read_tasks(runs, observations, tasks=tasks, losses=_shared(fit, observations))
    links = fit_links(table, losses=losses)
    weight_K = _task_weights(weights, table.tasks)
    rows_G = _rows_by_mixture(fit, table)
    residual_GK = _left_out_chain(fit, table, links, rows_G)
    chain = DownstreamFit(
        fit=fit,
        table=table,
        links=links,
        weight_K=weight_K,
        rows_G=rows_G,
        residual_GK=residual_GK,
        seeds=learn_seed_shift(table, _law_residuals(table, links, weight_K)),
        notes=(),
    )
    return replace(chain, notes=tuple(_describe(chain)))


def _shared(fit: FitResult, observations: pl.DataFrame) -> list[str]:
    """Returns the targets of the mixing law that the runs with errors have too."""
    known = set(observations["target"].unique().to_list())
    shared = [target for target in fit.targets if target in known]
    if not shared:
        raise FitError(
            "the runs with task errors must have losses that the mixing law predicts, but have"
            " none of " + ", ".join(fit.targets)
        )
    return shared


def _task_weights(
    weights: Mapping[str, float] | None, tasks: Sequence[str]
) -> Float[np.ndarray, " K"]:
    for task in weights or ():
        if task not in tasks:
            raise FitError(f"{task!r} is no task here", do=f"there are {', '.join(tasks)}")
    weight_K = np.array([1.0 if weights is None else weights.get(task, 0.0) for task in tasks])
    if not (np.all(np.isfinite(weight_K)) and weight_K.min() >= 0 and weight_K.sum() > 0):
        raise FitError("weights of tasks must not be negative, and one must be positive")
    return weight_K / weight_K.sum()


def _rows_by_mixture(fit: FitResult, table: TaskTable) -> tuple[tuple[int, ...], ...]:
    """Returns the last rows of the mixing law's runs with errors, mixture by mixture."""
    row_of = {table.run_ids[n]: int(n) for n in np.flatnonzero(table.is_last_N)}
    found: dict[str, list[int]] = {}
    for run_id, mixture_id in zip(fit.table.run_ids, fit.table.mixture_ids, strict=True):
        if run_id in row_of:
            found.setdefault(mixture_id, []).append(row_of[run_id])
    return tuple(tuple(rows) for rows in found.values())


def _left_out_chain(
    fit: FitResult,
    table: TaskTable,
    links: Sequence[TaskLink],
    rows_G: Sequence[Sequence[int]],
) -> Float[np.ndarray, "G K"]:
    residual_GK = np.full((len(rows_G), len(links)), np.nan)
    for g, rows in enumerate(rows_G):
        own_NK = np.stack([_chain_residual(fit, table, links, row) for row in rows])
        known_K = np.isfinite(own_NK).any(axis=0)
        residual_GK[g, known_K] = np.nanmean(own_NK[:, known_K], axis=0)
    return residual_GK


def _chain_residual(
    fit: FitResult, table: TaskTable, links: Sequence[TaskLink], row: int
) -> Float[np.ndarray, " K"]:
    """Returns what a run's errors are above those predicted without its mixture."""
    i = fit.table.run_ids.index(table.run_ids[row])
    loss_1T = evaluate_law(fit.law, fit.table.r_RM[i : i + 1], fit.theta_loo_RTP[i])
    predicted: list[float] = []
    for link in links:
        columns = [fit.targets.index(loss) for loss in link.fit.law.losses]
        theta_P = link.without(table.sets[row])
        predicted.append(float(link.fit.law.predict(loss_1T[:, columns], theta_P)[0]))
    return table.error_NK[row] - np.clip(predicted, 0.0, 1.0)


def _law_residuals(
    table: TaskTable, links: Sequence[TaskLink], weight_K: Float[np.ndarray, " K"]
) -> Float[np.ndarray, "N J"]:
    """Returns observed less predicted errors at measured losses, those of the mean last."""
    residual_NK = table.error_NK - np.stack(
        [link.fit.predict(table.loss_NF[:, link.columns]) for link in links], axis=1
    )
    return with_mean(residual_NK, weight_K)


def with_mean(
    value_RK: Float[np.ndarray, "R K"], weight_K: Float[np.ndarray, " K"]
) -> Float[np.ndarray, "R J"]:
    """Returns the tasks' columns and their weighted mean."""
    return np.concatenate([value_RK, value_RK @ weight_K[:, None]], axis=1)


def _with_bias(table: TaskTable, link: TaskLink, seed_shift: float) -> ErrorFit:
    """Returns a task's error law with what its left-out sets say, less the noise of their runs."""
    last_N = table.is_last_N & np.isfinite(link.residual_N)
    names, set_N, count_S = np.unique(
        np.array(table.sets)[last_N], return_inverse=True, return_counts=True
    )
    if len(names) < 2:
        return replace(link.fit, seed_shift=seed_shift)
    bias_S = np.bincount(set_N, link.residual_N[last_N]) / count_S
    own = link.fit.noise_variance * float(np.mean(1 / count_S))
    return replace(
        link.fit,
        seed_shift=seed_shift,
        set_sd=math.sqrt(max(float(np.mean(bias_S**2)) - own, 0.0)),
        set_freedom=len(names) - 1,
    )


def _describe(chain: DownstreamFit) -> Iterator[str]:
    if not chain.is_tested:
        yield UNTESTED
    elif not chain.is_end_to_end:
        yield (
            f"{len(chain.residual_GK)} mixtures of the mixing law have task errors, fewer than"
            f" {LEAST_MIXTURES}: the links' intervals are added up, instead of leaving mixtures out"
            " of the whole chain"
        )
    weak = [link.task for link in chain.links if "barely identified" in link.fit.describe()]
    if weak:
        yield (
            f"epsilon, k or gamma barely identified for {', '.join(weak)}: the error laws are"
            " nearly straight lines over these losses, so trust them there only"
        )


def predict_downstream(
    chain: DownstreamFit,
    mixtures: Sequence[Mixture],
    *,
    level: float = 0.9,
    with_items: bool = False,
) -> DownstreamPrediction:
    """Returns the task errors of mixtures, and their weighted mean, with intervals.

    Args:
        chain: The fitted chain.
        mixtures: Token shares.
        level: Share of new runs that intervals are meant to hold.
        with_items: Widen the intervals to the error on other items of the same kind (binomial);
            by default they are for the items that the runs were measured on.

    Raises:
        MixtureError: A mixture has other domains than the fit.
        FitError: The level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise FitError(f"the level of an interval must lie between 0 and 1, found {level:g}")
    ordered = tuple(mixture.reordered(chain.fit.domains) for mixture in mixtures)
    r_RM = stack_mixtures(ordered)
    loss_RT = chain.fit.losses(r_RM)
    value_RJ = np.clip(with_mean(chain.chain(loss_RT), chain.weight_K) + chain.seeds.shift_J, 0, 1)
    parts, notes = _link_halves(chain, ordered, loss_RT, level)
    if chain.is_end_to_end:
        half_RJ, own_notes = _chain_half(chain, r_RM, level)
    else:
        half_RJ = np.sqrt(sum(part_RJ**2 for part_RJ in parts.values()))
        own_notes = ()
    parts["items"], item_note = _item_half(chain, value_RJ, level)
    if with_items:
        half_RJ = np.hypot(half_RJ, np.nan_to_num(parts["items"]))
        notes = (*notes, *item_note)
    return DownstreamPrediction(
        mixtures=ordered,
        columns=(*chain.tasks, MEAN),
        value_RJ=value_RJ,
        low_RJ=np.clip(value_RJ - half_RJ, 0.0, 1.0),
        high_RJ=np.clip(value_RJ + half_RJ, 0.0, 1.0),
        level=level,
        parts=parts,
        notes=(*chain.notes, *own_notes, *notes),
    )


def _chain_half(
    chain: DownstreamFit, r_RM: Float[np.ndarray, "R M"], level: float
) -> tuple[Float[np.ndarray, "R J"], tuple[str, ...]]:
    """Returns half-widths from mixtures left out of the whole chain, and the noise of seeds."""
    row_of = {run_id: i for i, run_id in enumerate(chain.fit.table.run_ids)}
    first_G = [row_of[chain.table.run_ids[rows[0]]] for rows in chain.rows_G]
    half_RJ, notes = conformal_halfwidth(
        np.abs(chain.residual_GK),
        np.abs(with_mean(chain.residual_GK, chain.weight_K)),
        design_GM=chain.fit.table.r_RM[first_G],
        r_RM=r_RM,
        level=level,
    )
    if not chain.seeds.is_shared:
        return half_RJ, notes
    if not chain.seeds.num_seeds:
        note = "the noise between seeds is not in the intervals: no mixture was run with several"
        return half_RJ, (*notes, note)
    from scipy.stats import t

    seed_RJ = np.hypot(_seed_sd(chain, chain.fit.losses(r_RM)), chain.seeds.sd_J)
    quantile = float(t.ppf((1 + level) / 2, chain.seeds.num_seeds))
    return np.hypot(half_RJ, quantile * seed_RJ), notes


def _seed_sd(chain: DownstreamFit, loss_RT: Float[np.ndarray, "R T"]) -> Float[np.ndarray, "R J"]:
    """Returns what a fresh seed does to the errors of all mixtures through their losses.

    What it flips of the items of one run alone, the residuals hold.
    """
    slope_RJT = _slopes_with_mean(chain, loss_RT)
    sd_RJ = np.stack([chain.fit.seed_sd(slope_JT) for slope_JT in slope_RJT])
    return np.nan_to_num(sd_RJ) * math.sqrt(chain.fit.seed_factor)


def _slopes_with_mean(
    chain: DownstreamFit, loss_RT: Float[np.ndarray, "R T"]
) -> Float[np.ndarray, "R J T"]:
    slope_RKT = chain.slopes(loss_RT)
    mean_R1T = np.einsum("k,rkt->rt", chain.weight_K, slope_RKT)[:, None]
    return np.concatenate([slope_RKT, mean_R1T], axis=1)


def _link_halves(
    chain: DownstreamFit,
    mixtures: Sequence[Mixture],
    loss_RT: Float[np.ndarray, "R T"],
    level: float,
) -> tuple[dict[str, Float[np.ndarray, "R J"]], tuple[str, ...]]:
    """Returns the half-width that each link would have on its own."""
    slope_RJT = _slopes_with_mean(chain, loss_RT)
    num_mixtures, num_columns, num_targets = slope_RJT.shape
    found = predict_combinations(
        chain.fit, mixtures, slope_RJT.reshape(-1, num_targets), level=level
    )
    half_RRJ = ((found.high_RK - found.low_RK) / 2).reshape(num_mixtures, num_mixtures, num_columns)
    own = np.arange(num_mixtures)
    mixing_RJ = half_RRJ[own, own]  # each mixture with the slopes that errors have there
    law_RK = np.stack(
        [
            link.fit.half_width(loss_RT[:, chain.targets_of(link)], level=level)
            for link in chain.links
        ],
        axis=1,
    )
    parts = {
        "mixing law": mixing_RJ,
        "error law": np.concatenate([law_RK, _mean_law_half(chain, law_RK)], axis=1),
        "new mixture": np.broadcast_to(_set_half(chain, level), mixing_RJ.shape),
    }
    return parts, found.notes


def _mean_law_half(
    chain: DownstreamFit, law_RK: Float[np.ndarray, "R K"]
) -> Float[np.ndarray, "R 1"]:
    """Returns the error laws' half-width for the mean: tasks' residuals are partly common."""
    residual_NK = _law_residuals(chain.table, chain.links, chain.weight_K)[:, :-1]
    complete_N = np.isfinite(residual_NK).all(axis=1)
    if complete_N.sum() < 3:
        return law_RK @ chain.weight_K[:, None]  # as if all were common
    common = float(np.sqrt(np.mean((residual_NK[complete_N] @ chain.weight_K) ** 2)))
    own_K = np.sqrt(np.nanmean(residual_NK[complete_N] ** 2, axis=0))
    summed = float(own_K @ chain.weight_K)
    return law_RK @ chain.weight_K[:, None] * (common / max(summed, 1e-300))


def _set_half(chain: DownstreamFit, level: float) -> Float[np.ndarray, " J"]:
    """Returns the half-width of a new training set's bias; zero where none could be left out."""
    names = chain.links[0].sets
    if not names:
        return np.zeros(len(chain.links) + 1)
    from scipy.stats import t

    residual_NK = np.stack([link.residual_N for link in chain.links], axis=1)
    residual_NJ = with_mean(residual_NK, chain.weight_K)
    last_N, sets = chain.table.is_last_N, np.array(chain.table.sets)
    bias_SJ = np.stack(
        [np.mean(_complete(residual_NJ[last_N & (sets == name)]), axis=0) for name in names]
    )
    bias_SJ = bias_SJ[np.isfinite(bias_SJ).all(axis=1)]
    if len(bias_SJ) < 2:
        return np.zeros(len(chain.links) + 1)
    quantile = float(t.ppf(0.5 + level / 2, len(bias_SJ) - 1))
    return quantile * np.sqrt(np.mean(bias_SJ**2, axis=0))


def _complete(value_NJ: Float[np.ndarray, "N J"]) -> Float[np.ndarray, "N J"]:
    """Returns the rows without a gap, or a row of NaN where there is none."""
    complete_NJ = value_NJ[np.isfinite(value_NJ).all(axis=1)]
    return complete_NJ if len(complete_NJ) else np.full((1, value_NJ.shape[1]), np.nan)


def _item_half(
    chain: DownstreamFit, value_RJ: Float[np.ndarray, "R J"], level: float
) -> tuple[Float[np.ndarray, "R J"], tuple[str, ...]]:
    """Returns the half-width that other items of the same kind would add; NaN: not known."""
    from scipy.stats import norm

    num_items_K = chain.table.num_items_K
    variance_RK = value_RJ[:, :-1] * (1 - value_RJ[:, :-1]) / num_items_K
    mean_R1 = variance_RK @ (chain.weight_K[:, None] ** 2)
    half_RJ = float(norm.ppf(0.5 + level / 2)) * np.sqrt(np.hstack([variance_RK, mean_R1]))
    unknown = [task for task, n in zip(chain.tasks, num_items_K, strict=True) if math.isnan(n)]
    if not unknown:
        return half_RJ, ()
    return half_RJ, (
        f"the number of items is not known for {', '.join(unknown)}: their noise is left out",
    )
