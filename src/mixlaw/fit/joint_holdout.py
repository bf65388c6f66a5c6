"""What a joint law gets wrong beyond its runs: larger sizes and later steps, each left out in turn.

Shape letters: R rows, X inputs, T targets, 2 the directions params and tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import nnls

from mixlaw.fit.joint_pool import PooledFit, fit_pooled
from mixlaw.fit.joint_table import JointTable, group_index
from mixlaw.laws.joint import JointLaw

STEP_CUTS = (0.35, 0.6)
"""Shares of the longest run at which steps are cut into what is fitted and what is predicted."""
FEWEST = 0.2
"""A cut must leave at least this share of the rows on either side."""
PRIOR_GROWTH = 1.0
"""Error common to all mixtures, in residual scales per fitted range, where no hold-out tells."""
LEAST_RANGE = float(np.log(2))
"""Logarithm of the least range of params or tokens: runs of one size only have none."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LeftOut:
    """Predictions of rows by a fit that saw only smaller sizes, or only earlier steps."""

    name: str
    """What was predicted from what."""
    rows: JointTable
    """What was predicted."""
    error_RT: Float[np.ndarray, "R T"]
    """log predicted - log observed; NaN where nothing was observed."""
    distance_R2: Float[np.ndarray, "R 2"]
    """How far beyond the fitted rows, in params and tokens (`distance_beyond`)."""
    scale_T: Float[np.ndarray, " T"]
    """Residual scale of the fit."""
    memory_RT: Float[np.ndarray, "R T"]
    """What the fit got wrong on the row's mixture at its largest size; NaN: a new mixture."""

    @property
    def relative_error(self) -> float:
        """Mean over targets of the mean absolute relative error."""
        return float(np.mean(self.relative_error_T))

    @property
    def relative_error_T(self) -> Float[np.ndarray, " T"]:
        """Mean absolute relative error of each target."""
        return np.nanmean(np.abs(np.expm1(self.error_RT)), axis=0)


def leave_out(law: JointLaw, table: JointTable, *, pooled: bool = True) -> tuple[LeftOut, ...]:
    """Returns what the law predicts of each size from the smaller ones, and of late steps."""
    left_out: list[LeftOut] = []
    for train_R, tests in _splits(table):
        fit = fit_pooled(law, table.select(train_R), pooled=pooled)
        for name, test_R in tests:
            left_out.append(_predict_left_out(fit, table, train_R, test_R, name))
    return tuple(left_out)


def _splits(
    table: JointTable,
) -> list[tuple[Bool[np.ndarray, " R"], list[tuple[str, Bool[np.ndarray, " R"]]]]]:
    """Returns what is fitted, with everything that is then predicted."""
    sizes = np.unique(table.params_R)
    splits: list[tuple[np.ndarray, list[tuple[str, np.ndarray]]]] = []
    # From one size alone nothing follows for the next: the loss at infinite size is not known.
    for i in range(2, len(sizes)):
        tests = [
            (f"{size:.3g} parameters from at most {sizes[i - 1]:.3g}", table.params_R == size)
            for size in sizes[i:]
        ]
        splits.append((table.params_R < sizes[i], tests))
    for share in STEP_CUTS:
        cut = share * float(table.tokens_R.max())
        early_R = table.tokens_R <= cut
        if FEWEST <= early_R.mean() <= 1 - FEWEST:
            splits.append((early_R, [(f"beyond {cut:.3g} tokens", ~early_R)]))
    return splits


def _predict_left_out(
    fit: PooledFit,
    table: JointTable,
    train_R: Bool[np.ndarray, " R"],
    test_R: Bool[np.ndarray, " R"],
    name: str,
) -> LeftOut:
    train, rows = table.select(train_R), table.select(test_R)
    memory = mixture_memory(fit, train)
    unknown_T = np.full(len(table.targets), np.nan)
    return LeftOut(
        name=name,
        rows=rows,
        error_RT=np.log(fit.predict(rows.x_RX)) - np.log(rows.y_RT),
        distance_R2=distance_beyond(rows.x_RX, train.x_RX),
        scale_T=fit.scale_T,
        memory_RT=np.stack([memory.get(i, unknown_T) for i in rows.mixture_ids]),
    )


def distance_beyond(
    x_RX: Float[np.ndarray, "R X"], fitted_RX: Float[np.ndarray, "F X"]
) -> Float[np.ndarray, "R 2"]:
    """Returns how far rows lie beyond the fitted params and tokens, in fitted ranges.

    Both distance and range are logarithms: with sizes from 1e8 to 1e9, 1e10 is one range beyond. A
    range twice as wide tells an exponent about twice as well.
    """
    log_fitted_F2 = np.log(fitted_RX[:, -2:])
    highest_2 = log_fitted_F2.max(axis=0)
    range_2 = np.maximum(highest_2 - log_fitted_F2.min(axis=0), LEAST_RANGE)
    return np.maximum(np.log(x_RX[:, -2:]) - highest_2, 0.0) / range_2


def mixture_memory(fit: PooledFit, table: JointTable) -> dict[str, Float[np.ndarray, " T"]]:
    """Returns, for each mixture, the mean error on it at its largest size.

    What all mixtures have in common at a size and step is taken out: that is the step's or the
    size's, not the mixture's.
    """
    error_RT = np.log(fit.predict(table.x_RX)) - np.log(table.y_RT)
    own_RT = error_RT - common_error(error_RT, table)
    mixture_ids = np.asarray(table.mixture_ids)
    memory: dict[str, np.ndarray] = {}
    for mixture_id in np.unique(mixture_ids):
        rows_R = mixture_ids == mixture_id
        rows_R &= table.params_R == table.params_R[rows_R].max()
        memory[str(mixture_id)] = _nan_mean(own_RT[rows_R])
    return memory


def common_error(error_RT: Float[np.ndarray, "R T"], table: JointTable) -> Float[np.ndarray, "R T"]:
    """Returns the mean error of all rows with the same size and tokens, for each row."""
    cell_R = _cells(table)
    mean_CT = np.stack([_nan_mean(error_RT[cell_R == cell]) for cell in range(cell_R.max() + 1)])
    return mean_CT[cell_R]


def _cells(table: JointTable) -> np.ndarray:
    return group_index([f"{params:.6g}/{tokens:.6g}" for params, tokens in table.x_RX[:, -2:]])


def _nan_mean(values_RT: Float[np.ndarray, "R T"]) -> Float[np.ndarray, " T"]:
    count_T = np.sum(~np.isnan(values_RT), axis=0)
    return np.where(count_T > 0, np.nansum(values_RT, axis=0) / np.maximum(count_T, 1), np.nan)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ErrorModel:
    """How wrong predictions are, learned from what was left out."""

    growth_2: Float[np.ndarray, " 2"]
    """Error common to all mixtures, in residual scales per fitted range of params and tokens."""
    step_noise: float
    """Error that all mixtures share at a size and step inside the runs, in residual scales."""
    recall: float
    """Share of what a fit got wrong on a mixture that it gets wrong again at a larger size."""
    own_error_T: tuple[Float[np.ndarray, " K"], ...]
    """Absolute errors on single runs of known mixtures, less what is common; log loss."""
    is_learned: bool
    """Whether a larger size was left out; otherwise the growth with params is a prior."""


def learn_errors(
    left_out: Sequence[LeftOut],
    inside_RT: Float[np.ndarray, "R T"],
    table: JointTable,
    scale_T: Float[np.ndarray, " T"],
) -> ErrorModel:
    """Returns the error model from left-out sizes and steps, and from errors inside."""
    step_noise = float(np.sqrt(np.nanmean((common_error(inside_RT, table) / scale_T) ** 2)))
    sizes = [part for part in left_out if part.distance_R2[:, 0].max() > 0]
    recall = _recall(sizes)
    own_parts = [
        np.abs(part.error_RT - common_error(part.error_RT, part.rows) - recall * part.memory_RT)
        for part in sizes
    ]
    own_RT = np.concatenate(own_parts) if own_parts else np.abs(inside_RT)
    return ErrorModel(
        growth_2=_growth(left_out, step_noise),
        step_noise=step_noise,
        recall=recall,
        own_error_T=tuple(column[~np.isnan(column)] for column in own_RT.T),
        is_learned=bool(sizes),
    )


def _growth(left_out: Sequence[LeftOut], step_noise: float) -> Float[np.ndarray, " 2"]:
    """Returns the growth whose squares add up to the squared errors common to all mixtures."""
    squares: list[np.ndarray] = []
    designs: list[np.ndarray] = []
    for part in left_out:
        error_RT = common_error(part.error_RT, part.rows) / part.scale_T
        _, first = np.unique(_cells(part.rows), return_index=True)
        distance_C2 = part.distance_R2[first]
        # Errors grow with distance and so do their squares: near ones say as much as far ones.
        weight_C = 1 / (0.1 + (distance_C2**2).sum(axis=1))
        squares.append((np.nanmean(error_RT[first] ** 2, axis=1) - step_noise**2) * weight_C)
        designs.append(distance_C2**2 * weight_C[:, None])
    growth_2 = np.full(2, PRIOR_GROWTH)
    if designs:
        design_C2 = np.concatenate(designs)
        found_2 = np.sqrt(nnls(design_C2, np.concatenate(squares))[0])
        growth_2 = np.where(design_C2.max(axis=0) > 0, found_2, growth_2)
    return growth_2


def _recall(left_out: Sequence[LeftOut]) -> float:
    """Returns the slope of new errors on remembered ones, over all targets, within 0 and 1."""
    product, square = 0.0, 0.0
    for part in left_out:
        own_RT = (part.error_RT - common_error(part.error_RT, part.rows)) / part.scale_T
        memory_RT = part.memory_RT / part.scale_T
        product += float(np.nansum(own_RT * memory_RT))
        square += float(np.nansum(np.where(np.isnan(own_RT), np.nan, memory_RT) ** 2))
    return min(max(product / square, 0.0), 1.0) if square > 0 else 0.0
