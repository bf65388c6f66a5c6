"""The choice itself out of sample: chosen anew without a mixture, then asked for its losses.

Shape letters: L learners, R runs, M training domains, T targets, G mixtures, K folds of the inner
cross-validation, X mixtures that are predicted.

A choice made with a mixture's losses in view flatters what was chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mixlaw.fit.learners import Learner
from mixlaw.selection.choice import (
    NUM_FOLDS,
    LearnerChoice,
    LeftOut,
    choose_from,
    deal_folds,
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NestedLeaveOut:
    """What was predicted for each run by learners, and by a choice, without its mixture."""

    left_out_LRT: Float[np.ndarray, "L R T"]
    selected_RT: Float[np.ndarray, "R T"]
    choices: tuple[LearnerChoice, ...]
    """One per run: those of runs of one mixture are the same."""


def leave_out_with_choice(
    r_RM: Float[np.ndarray, "R M"],
    y_RT: Float[np.ndarray, "R T"],
    *,
    learners: Sequence[Learner],
    mixture_ids: Sequence[str] | None = None,
    weight_T: Float[np.ndarray, " T"] | None = None,
    num_folds: int = NUM_FOLDS,
    seed: int = 0,
) -> NestedLeaveOut:
    """Returns leave-one-mixture-out predictions, the choice of learner repeated inside each fold.

    Args:
        r_RM: Token shares.
        y_RT: Losses; NaN where there is none.
        learners: Who takes part.
        mixture_ids: Runs with one id are left out together; all differ, by default.
        weight_T: Weights of the objective by which is chosen.
        num_folds: Folds of the inner cross-validation.
        seed: Seed of the folds.
    """
    ids = [str(i) for i in range(len(r_RM))] if mixture_ids is None else list(mixture_ids)
    group_R = np.unique(np.array(ids), return_inverse=True)[1]
    num_groups = int(group_R.max()) + 1
    rng = np.random.default_rng(seed)
    out_GR = group_R == np.arange(num_groups)[:, None]
    folds = min(num_folds, num_groups - 1)
    fold_GR = np.full(out_GR.shape, -1)
    for g in range(num_groups):
        rest_R = np.unique(group_R[~out_GR[g]], return_inverse=True)[1]
        fold_GR[g, ~out_GR[g]] = deal_folds(rng, rest_R, folds)
    inner_GKR = (fold_GR[:, None] != np.arange(folds)[:, None]) & ~out_GR[:, None]
    keep_KR = np.concatenate([~out_GR, inner_GKR.reshape(-1, len(r_RM))])
    # Inner folds start from the fit to all that their outer fold keeps.
    start_K = np.concatenate([np.full(num_groups, -1), np.repeat(np.arange(num_groups), folds)])
    predicted_LKRT = np.stack(
        [
            learner.predict_folds(r_RM, y_RT, keep_KR=keep_KR, r_XM=r_RM, start_K=start_K)
            for learner in learners
        ]
    )
    index_R = np.arange(len(r_RM))
    left_out_LRT = predicted_LKRT[:, group_R, index_R]
    inner_LGKRT = predicted_LKRT[:, num_groups:].reshape(
        len(learners), num_groups, folds, *y_RT.shape
    )
    by_group: list[LearnerChoice] = []
    for g in range(num_groups):
        rest_R = index_R[~out_GR[g]]
        fold_R = fold_GR[g, rest_R]
        one = LeftOut(inner_LGKRT[:, g, fold_R, rest_R], fold_R)
        by_group.append(
            choose_from(
                [one],
                y_RT[rest_R],
                learners=learners,
                group_R=group_R[rest_R],
                weight_T=weight_T,
                num_domains=r_RM.shape[1],
                rng=rng,
            )
        )
    choices = tuple(by_group[g] for g in group_R)
    weight_RL = np.stack([choice.weight_L for choice in choices])
    return NestedLeaveOut(
        left_out_LRT=left_out_LRT,
        selected_RT=np.einsum("rl,lrt->rt", weight_RL, left_out_LRT),
        choices=choices,
    )
