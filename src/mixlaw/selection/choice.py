"""The choice between learners by what they predict for mixtures that they did not see.

Shape letters: L learners, R runs, M training domains, T targets, K folds, X mixtures that are
predicted.

A learner's error on a run is that of the objective where weights are given, else the mean over
targets of the absolute error in units of the target's own spread. The least mean error wins, but a
learner with fewer parameters within one standard error of the paired difference wins over it. A
stack, non-negative weights that sum to one, is taken where its own out-of-sample error (its weights
from the other folds) is less than the winner's. No data set and no learner is named anywhere.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import nnls

from mixlaw.errors import FitError
from mixlaw.fit.learners import Learner
from mixlaw.selection.measures import (
    mean_by_mixture,
    mean_deviation,
    mean_spearman,
    run_errors,
    top_regret,
)

NUM_FOLDS = 5
LEAST_WEIGHT = 0.05
"""Stacked learners with less weight are dropped: they cost a fit and bring nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerScore:
    """How one learner did on what it had not seen."""

    name: str
    num_parameters: float
    """For one target; infinite: no formula."""
    error: float
    """Mean of the errors that decide."""
    standard_error: float
    """Of that mean's difference from the least one that may be chosen, over mixtures."""
    mae: float
    """Mean absolute error over runs and targets, in the unit of the losses."""
    median: float
    """Median absolute error, likewise."""
    spearman: float
    """Rank correlation over runs, mean over targets; NaN below three runs."""
    regret: float
    """Loss of the run that it would have chosen less that of the best one, mean over targets, or
    of the objective."""
    weight: float
    """In the stack."""
    wins: float
    """Share of resamples of the mixtures in which its error is the least."""

    @property
    def is_constant(self) -> bool:
        """Whether it predicts one number for all mixtures: rank and regret mean nothing then."""
        return self.num_parameters <= 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LearnerChoice:
    """Every learner out of sample, and what was chosen."""

    learners: tuple[Learner, ...]
    scores: tuple[LearnerScore, ...]
    """One per learner, in their order."""
    best: int
    """Index of the one learner that was chosen."""
    stack_error: float
    """Out-of-sample error of the stack."""
    stack_L: Float[np.ndarray, " L"]
    """Weights of the stack."""
    left_out_LRT: Float[np.ndarray, "L R T"]
    """Predictions for each run of fits that did not see its mixture, of the first repeat."""
    stack_left_out_RT: Float[np.ndarray, "R T"]
    """Those of the stack, with weights that did not see the run's fold either."""

    @property
    def uses_stack(self) -> bool:
        """Whether the stack predicts better than the one that was chosen."""
        return self.stack_error < self.scores[self.best].error

    @property
    def weight_L(self) -> Float[np.ndarray, " L"]:
        """Weights of what is used: those of the stack, or 1 for the chosen one."""
        return self.stack_L if self.uses_stack else np.eye(len(self.learners))[self.best]

    @property
    def selected_name(self) -> str:
        """What is used, in words: the one that was chosen, or the stack with its weights."""
        parts = [
            (weight, learner.name)
            for weight, learner in zip(self.weight_L, self.learners, strict=True)
            if weight > 0
        ]
        if len(parts) == 1:
            return parts[0][1]
        return " + ".join(f"{weight:.2f} {name}" for weight, name in sorted(parts, reverse=True))

    @property
    def selected_left_out_RT(self) -> Float[np.ndarray, "R T"]:
        """Out-of-sample predictions of what is used."""
        return self.stack_left_out_RT if self.uses_stack else self.left_out_LRT[self.best]

    def predict(
        self,
        r_RM: Float[np.ndarray, "R M"],
        y_RT: Float[np.ndarray, "R T"],
        *,
        r_XM: Float[np.ndarray, "X M"],
    ) -> Float[np.ndarray, "X T"]:
        """Returns what the chosen learners predict for mixtures after learning from all runs."""
        value_XT = np.zeros((len(r_XM), y_RT.shape[1]))
        for weight, learner in zip(self.weight_L, self.learners, strict=True):
            if weight > 0:
                value_XT += weight * learner.predict(r_RM, y_RT, r_XM=r_XM)
        return value_XT


def choose_learner(
    r_RM: Float[np.ndarray, "R M"],
    y_RT: Float[np.ndarray, "R T"],
    *,
    learners: Sequence[Learner],
    mixture_ids: Sequence[str] | None = None,
    weight_T: Float[np.ndarray, " T"] | None = None,
    num_folds: int = NUM_FOLDS,
    repeats: int = 1,
    seed: int = 0,
    eligible: Sequence[bool] | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> LearnerChoice:
    """Returns every learner's errors by cross-validation over mixtures, and the choice.

    Args:
        r_RM: Token shares.
        y_RT: Losses; NaN where there is none.
        learners: Who takes part, baselines included.
        mixture_ids: Runs with one id are left out together; all differ, by default.
        weight_T: Weights of the objective; all targets count alike, by default.
        num_folds: Folds of the cross-validation; as many as there are mixtures: leave-one-out.
        repeats: How often mixtures are dealt into folds anew.
        seed: Seed of the folds and of the resamples.
        eligible: Which learners may be chosen and stacked; the others are only scored. All, by
            default.
        on_progress: Called with the share that is done.

    Raises:
        FitError: Fewer than four mixtures, or no learner.
    """
    ids = [str(i) for i in range(len(r_RM))] if mixture_ids is None else list(mixture_ids)
    group_R = group_index(ids)
    num_groups = int(group_R.max()) + 1
    if num_groups < 4 or not any(learners if eligible is None else eligible):
        raise FitError(
            f"a choice needs at least 4 mixtures and one law, found {num_groups} and"
            f" {len(learners)}",
            do="train or import more mixtures, about three per domain",
        )
    rng = np.random.default_rng(seed)
    rounds = leave_out(
        r_RM, y_RT, learners=learners, group_R=group_R, num_folds=num_folds, repeats=repeats,
        rng=rng, on_progress=on_progress,
    )  # fmt: skip
    return choose_from(
        rounds, y_RT, learners=learners, group_R=group_R, weight_T=weight_T,
        num_domains=r_RM.shape[1], rng=rng, eligible=eligible,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class LeftOut:
    """Predictions of one cross-validation, and its folds."""

    left_out_LRT: Float[np.ndarray, "L R T"]
    fold_R: Int[np.ndarray, " R"]

    def select(self, index_C: Int[np.ndarray, " C"]) -> "LeftOut":
        """Returns the predictions of some of the learners."""
        return LeftOut(self.left_out_LRT[index_C], self.fold_R)


def choose_from(
    rounds: Sequence[LeftOut],
    y_RT: Float[np.ndarray, "R T"],
    *,
    learners: Sequence[Learner],
    group_R: Int[np.ndarray, " R"],
    weight_T: Float[np.ndarray, " T"] | None,
    num_domains: int,
    rng: np.random.Generator,
    eligible: Sequence[bool] | None = None,
) -> LearnerChoice:
    """Returns the choice that follows from what learners predicted for what they had not seen."""
    eligible_L = np.ones(len(learners), dtype=bool) if eligible is None else np.array(eligible)
    index_C = np.flatnonzero(eligible_L)
    errors_LR = np.mean([run_errors(one.left_out_LRT, y_RT, weight_T) for one in rounds], axis=0)
    stacks = [_stack_out_of_fold(one.select(index_C), y_RT) for one in rounds]
    stacked_R = np.mean([run_errors(stack[None], y_RT, weight_T)[0] for stack in stacks], axis=0)
    every_CRT = np.concatenate([one.left_out_LRT[index_C] for one in rounds], axis=1)
    stack_L = np.zeros(len(learners))
    stack_L[index_C] = _stack_weights(every_CRT, np.concatenate([y_RT] * len(rounds)))
    by_group_LG = mean_by_mixture(errors_LR, group_R)
    sizes = [learner.num_parameters(num_domains) for learner in learners]
    error_L = np.nanmean(by_group_LG, axis=1)
    least = int(index_C[np.argmin(error_L[index_C])])
    standard_error_L = _paired_standard_errors(by_group_LG, least)
    left_out_LRT = rounds[0].left_out_LRT
    wins_L = _wins(by_group_LG, rng)
    return LearnerChoice(
        learners=tuple(learners),
        scores=tuple(
            _score(
                learner.name, sizes[i], float(error_L[i]), float(standard_error_L[i]),
                left_out_RT=left_out_LRT[i], y_RT=y_RT, weight_T=weight_T,
                weight=float(stack_L[i]), wins=float(wins_L[i]),
            )
            for i, learner in enumerate(learners)
        ),
        best=int(
            index_C[
                _simplest_of_the_best(
                    error_L[index_C], standard_error_L[index_C], [sizes[i] for i in index_C]
                )
            ]
        ),
        stack_error=float(np.nanmean(stacked_R)),
        stack_L=stack_L,
        left_out_LRT=left_out_LRT,
        stack_left_out_RT=stacks[0],
    )  # fmt: skip


def leave_out(
    r_RM: Float[np.ndarray, "R M"],
    y_RT: Float[np.ndarray, "R T"],
    *,
    learners: Sequence[Learner],
    group_R: Int[np.ndarray, " R"],
    num_folds: int,
    repeats: int,
    rng: np.random.Generator,
    on_progress: Callable[[float], None] | None = None,
) -> list[LeftOut]:
    """Returns what learners predict for mixtures that they did not see, once per repeat."""
    rounds: list[LeftOut] = []
    for i in range(repeats):
        fold_R = deal_folds(rng, group_R, min(num_folds, int(group_R.max()) + 1))
        predicted: list[Float[np.ndarray, "R T"]] = []
        for j, learner in enumerate(learners):
            predicted.append(leave_folds_out(r_RM, y_RT, learner, fold_R))
            if on_progress is not None:
                on_progress((i + (j + 1) / len(learners)) / repeats)
        rounds.append(LeftOut(np.stack(predicted), fold_R))
    return rounds


def group_index(mixture_ids: Sequence[str]) -> Int[np.ndarray, " R"]:
    """Returns a number for each run; runs of one mixture have the same."""
    return np.unique(np.array(mixture_ids), return_inverse=True)[1]


def deal_folds(
    rng: np.random.Generator, group_R: Int[np.ndarray, " R"], num_folds: int
) -> Int[np.ndarray, " R"]:
    """Returns the fold of each run; runs of one mixture are in the same one."""
    num_groups = int(group_R.max()) + 1
    fold_G = np.empty(num_groups, dtype=np.int64)
    fold_G[rng.permutation(num_groups)] = np.arange(num_groups) % num_folds
    return fold_G[group_R]


def leave_folds_out(
    r_RM: Float[np.ndarray, "R M"],
    y_RT: Float[np.ndarray, "R T"],
    learner: Learner,
    fold_R: Int[np.ndarray, " R"],
) -> Float[np.ndarray, "R T"]:
    """Returns a learner's prediction for each run by the fit that left out its fold.

    Descents start from the fit to all runs, fold -1.
    """
    keep_KR: Bool[np.ndarray, "K R"] = fold_R != np.arange(-1, int(fold_R.max()) + 1)[:, None]
    start_K = np.minimum(np.arange(len(keep_KR)), 1) - 1
    value_KRT = learner.predict_folds(r_RM, y_RT, keep_KR=keep_KR, r_XM=r_RM, start_K=start_K)
    return value_KRT[fold_R + 1, np.arange(len(r_RM))]


def _stack_weights(
    left_out_LRT: Float[np.ndarray, "L R T"], y_RT: Float[np.ndarray, "R T"]
) -> Float[np.ndarray, " L"]:
    """Returns non-negative weights that sum to one and least squared relative errors."""
    off_LRT = (left_out_LRT - y_RT) / mean_deviation(y_RT)
    off_LN = off_LRT[:, np.isfinite(y_RT)]
    # The weights sum to one exactly after scaling; a heavy row makes the solver aim at it.
    heavy = 100 * math.sqrt(float(np.mean(off_LN**2)) * off_LN.shape[1]) or 1.0
    matrix = np.vstack([off_LN.T, np.full((1, len(off_LN)), heavy)])
    weight_L, _ = nnls(matrix, np.concatenate([np.zeros(off_LN.shape[1]), [heavy]]))
    weight_L = np.where(weight_L >= LEAST_WEIGHT * weight_L.sum(), weight_L, 0.0)
    return weight_L / weight_L.sum()


def _stack_out_of_fold(one: LeftOut, y_RT: Float[np.ndarray, "R T"]) -> Float[np.ndarray, "R T"]:
    """Returns the stack's predictions, for each fold with the weights of the others."""
    value_RT = np.empty_like(y_RT)
    for fold in np.unique(one.fold_R):
        out_R = one.fold_R == fold
        weight_L = _stack_weights(one.left_out_LRT[:, ~out_R], y_RT[~out_R])
        value_RT[out_R] = np.einsum("l,lrt->rt", weight_L, one.left_out_LRT[:, out_R])
    return value_RT


def _paired_standard_errors(
    error_LG: Float[np.ndarray, "L G"], least: int
) -> Float[np.ndarray, " L"]:
    """Returns standard errors of the mean difference from the learner with the least error."""
    apart_LG = error_LG - error_LG[least]
    known_L = np.sum(np.isfinite(apart_LG), axis=1)
    return np.nanstd(apart_LG, axis=1, ddof=1) / np.sqrt(np.maximum(known_L, 1))


def _simplest_of_the_best(
    error_L: Float[np.ndarray, " L"],
    standard_error_L: Float[np.ndarray, " L"],
    sizes: Sequence[float],
) -> int:
    """Returns the learner with the fewest parameters within one standard error of the least."""
    least = float(np.min(error_L))
    tied = [
        i
        for i, (error, standard_error) in enumerate(zip(error_L, standard_error_L, strict=True))
        if error - least <= standard_error
    ]
    return min(tied, key=lambda i: (sizes[i], error_L[i]))


def _wins(
    error_LG: Float[np.ndarray, "L G"], rng: np.random.Generator, num_resamples: int = 1000
) -> Float[np.ndarray, " L"]:
    """Returns how often each learner has the least error when the mixtures are drawn again."""
    known_LG = error_LG[:, np.isfinite(error_LG).all(axis=0)]
    count_SG = rng.multinomial(known_LG.shape[1], np.full(known_LG.shape[1], 1 / known_LG.shape[1]),
                               size=num_resamples)  # fmt: skip
    winner_S = np.argmin(known_LG @ count_SG.T, axis=0)
    return np.bincount(winner_S, minlength=len(error_LG)) / num_resamples


def _score(
    name: str,
    num_parameters: float,
    error: float,
    standard_error: float,
    *,
    left_out_RT: Float[np.ndarray, "R T"],
    y_RT: Float[np.ndarray, "R T"],
    weight_T: Float[np.ndarray, " T"] | None,
    weight: float,
    wins: float,
) -> LearnerScore:
    off_RT = np.abs(left_out_RT - y_RT)
    return LearnerScore(
        name=name,
        num_parameters=num_parameters,
        error=error,
        standard_error=standard_error,
        mae=float(np.nanmean(off_RT)),
        median=float(np.nanmedian(off_RT)),
        spearman=mean_spearman(left_out_RT, y_RT),
        regret=top_regret(left_out_RT, y_RT, weight_T),
        weight=weight,
        wins=wins,
    )
