"""Measures of predictions: errors of runs, rank correlation, regret.

Shape letters: L learners, R runs, T targets, G mixtures, U different values.
"""

import math

import numpy as np
from jaxtyping import Float, Int


def run_errors(
    left_out_LRT: Float[np.ndarray, "L R T"],
    y_RT: Float[np.ndarray, "R T"],
    weight_T: Float[np.ndarray, " T"] | None,
) -> Float[np.ndarray, "L R"]:
    """Returns the error of each learner on each run; NaN where the run has no loss."""
    error_LRT = left_out_LRT - y_RT
    if weight_T is not None:
        counts_T = weight_T != 0
        return np.abs(error_LRT[..., counts_T] @ weight_T[counts_T])
    relative_LRT = np.abs(error_LRT) / mean_deviation(y_RT)
    known_RT = np.isfinite(y_RT)
    total_LR = np.where(known_RT, relative_LRT, 0.0).sum(axis=2)
    return np.where(known_RT.any(axis=1), total_LR / np.maximum(known_RT.sum(axis=1), 1), np.nan)


def mean_by_mixture(
    error_LR: Float[np.ndarray, "L R"], group_R: Int[np.ndarray, " R"]
) -> Float[np.ndarray, "L G"]:
    """Returns each mixture's mean over the runs whose error is known; NaN where none is."""
    in_GR = group_R == np.unique(group_R)[:, None]
    known_LGR = np.isfinite(error_LR)[:, None] & in_GR
    count_LG = known_LGR.sum(axis=2)
    total_LG = np.where(known_LGR, error_LR[:, None], 0.0).sum(axis=2)
    return np.where(count_LG > 0, total_LG / np.maximum(count_LG, 1), np.nan)


def mean_deviation(y_RT: Float[np.ndarray, "R T"]) -> Float[np.ndarray, " T"]:
    """Returns mean absolute deviations from the mean, or a tiny number where losses are equal."""
    return np.maximum(np.nanmean(np.abs(y_RT - np.nanmean(y_RT, axis=0)), axis=0), 1e-12)


def mean_spearman(predicted_RT: Float[np.ndarray, "R T"], y_RT: Float[np.ndarray, "R T"]) -> float:
    """Returns the rank correlation of each target over runs, averaged over targets.

    A constant prediction ranks nothing: its correlation counts as 0.
    """
    found: list[float] = []
    for predicted_R, y_R in zip(predicted_RT.T, y_RT.T, strict=True):
        known_R = np.isfinite(y_R)
        if known_R.sum() < 3 or np.ptp(y_R[known_R]) == 0:
            continue
        if np.ptp(predicted_R[known_R]) == 0:
            found.append(0.0)
            continue
        ranks = average_ranks(predicted_R[known_R]), average_ranks(y_R[known_R])
        found.append(float(np.corrcoef(*ranks)[0, 1]))
    return float(np.mean(found)) if found else math.nan


def average_ranks(value_R: Float[np.ndarray, " R"]) -> Float[np.ndarray, " R"]:
    """Returns ranks from 1 on; equal values share their mean rank.

    SciPy has it in its statistics, whose import takes longer than a whole choice.
    """
    _, index_R, count_U = np.unique(value_R, return_inverse=True, return_counts=True)
    return (np.cumsum(count_U) - (count_U - 1) / 2)[index_R]


def top_regret(
    predicted_RT: Float[np.ndarray, "R T"],
    y_RT: Float[np.ndarray, "R T"],
    weight_T: Float[np.ndarray, " T"] | None = None,
) -> float:
    """Returns how much worse the run with the best prediction is than the best run."""
    if weight_T is not None:
        counts_T = weight_T != 0
        predicted_RT = (predicted_RT[:, counts_T] @ weight_T[counts_T])[:, None]
        y_RT = (y_RT[:, counts_T] @ weight_T[counts_T])[:, None]
    regrets: list[float] = []
    for predicted_R, y_R in zip(predicted_RT.T, y_RT.T, strict=True):
        known_R = np.isfinite(y_R)
        if known_R.any():
            chosen = y_R[known_R][np.argmin(predicted_R[known_R])]
            regrets.append(float(chosen - np.min(y_R[known_R])))
    return float(np.mean(regrets)) if regrets else math.nan
