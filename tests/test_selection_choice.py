"""The choice between learners: its rule, its stack, and the choice itself left out."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from mixlaw.errors import FitError
from mixlaw.fit.learners import LawLearner, Learner, MeanLearner
from mixlaw.laws.library import MIXING_LAWS
from mixlaw.selection.choice import choose_learner, deal_folds
from mixlaw.selection.measures import average_ranks, mean_spearman, top_regret
from mixlaw.selection.nested import leave_out_with_choice

LAWS = {name: LawLearner(MIXING_LAWS[name]) for name in ("linear", "m4", "reciprocal-shared")}


@dataclass(frozen=True, slots=True)
class Offset(Learner):
    """Knows the truth, less an error of its own: what the rule makes of errors can be seen."""

    label: str
    off_R: tuple[float, ...]
    size: float = 3.0

    @property
    def name(self) -> str:
        return self.label

    def num_parameters(self, num_domains: int) -> float:
        return self.size

    def predict_folds(
        self,
        r_RM: np.ndarray,
        y_RT: np.ndarray,
        *,
        keep_KR: np.ndarray,
        r_XM: np.ndarray,
        start_K: np.ndarray | None = None,
    ) -> np.ndarray:
        value_XT = truth(r_XM) + np.array(self.off_R)[:, None]
        return np.repeat(value_XT[None], len(keep_KR), axis=0)


def truth(r_RM: np.ndarray) -> np.ndarray:
    return np.stack([2 + r_RM[:, 0], 3 - r_RM[:, 1] ** 2], axis=1)


def design(num_runs: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(3), num_runs)


def planted(law: str, num_runs: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns mixtures and losses of a law, with noise."""
    rng = np.random.default_rng(seed)
    r_RM = rng.dirichlet(np.ones(4), num_runs)
    if law == "m4":
        t_TM = rng.normal(0, 1.0, (2, 4))
        y_RT = 2 + np.exp(r_RM @ t_TM.T)
    else:
        C_TM = np.exp(rng.normal(0, 1.0, (2, 4)))
        y_RT = 2 + 1 / ((r_RM + 0.001) ** 0.3 @ C_TM.T)
    return r_RM, y_RT + rng.normal(0, noise, y_RT.shape)


# ------------------------------------------------------------------------- the rule


def test_the_least_error_wins_when_it_is_clear() -> None:
    r_RM = design()
    good, bad = Offset("good", (0.01,) * 12, size=9), Offset("bad", (0.1,) * 12, size=2)
    choice = choose_learner(r_RM, truth(r_RM), learners=(bad, good))
    assert choice.scores[choice.best].name == "good"
    assert choice.scores[1].wins == 1.0


def test_a_tie_goes_to_the_fewest_parameters() -> None:
    r_RM = design()
    rng = np.random.default_rng(1)
    off_R = rng.normal(0, 0.1, 12)
    large = Offset("large", tuple(off_R), size=9)
    small = Offset("small", tuple(off_R + rng.normal(0, 0.02, 12)), size=2)
    choice = choose_learner(r_RM, truth(r_RM), learners=(large, small))
    scores = {score.name: score for score in choice.scores}
    assert abs(scores["large"].error - scores["small"].error) < max(
        scores["large"].standard_error, scores["small"].standard_error
    )
    assert choice.scores[choice.best].name == "small"


def test_who_is_not_eligible_is_scored_but_neither_chosen_nor_stacked() -> None:
    r_RM = design()
    off_R = np.random.default_rng(2).normal(0, 0.1, 12)
    best, other = Offset("best", (0.0,) * 12), Offset("other", tuple(off_R))
    learners = (best, other, Offset("opposite", tuple(-off_R)))
    choice = choose_learner(r_RM, truth(r_RM), learners=learners, eligible=[False, True, True])
    assert choice.scores[choice.best].name != "best"
    assert choice.stack_L[0] == choice.weight_L[0] == 0
    assert choice.scores[0].error < choice.scores[1].error
    assert choice.scores[0].wins == 1.0


def test_a_stack_is_used_where_errors_cancel_and_its_weights_sum_to_one() -> None:
    r_RM = design()
    off_R = np.random.default_rng(3).normal(0, 0.1, 12)
    one, two = Offset("one", tuple(off_R)), Offset("two", tuple(-off_R))
    choice = choose_learner(r_RM, truth(r_RM), learners=(one, two, MeanLearner()))
    assert choice.uses_stack
    assert choice.weight_L.sum() == pytest.approx(1.0, abs=1e-12)
    assert choice.weight_L[:2] == pytest.approx([0.5, 0.5], abs=0.02)
    assert choice.stack_error < 0.2 * choice.scores[0].error
    assert choice.selected_name.count("0.50") == 2


def test_weights_count_only_the_targets_that_weigh() -> None:
    r_RM = design()
    y_RT = truth(r_RM)
    y_RT[:, 1] = np.random.default_rng(0).normal(0, 5, 12)  # nobody can predict it
    choice = choose_learner(
        r_RM, y_RT, learners=(Offset("exact", (0.0,) * 12),), weight_T=np.array([1.0, 0.0])
    )
    assert choice.scores[0].error < 1e-12


# ------------------------------------------------------------------------- laws


def test_planted_powers_are_found_and_m4_and_linear_are_not_taken() -> None:
    r_RM, y_RT = planted("powers", 24, noise=0.003)
    choice = choose_learner(r_RM, y_RT, learners=tuple(LAWS.values()))
    scores = {score.name: score for score in choice.scores}
    assert choice.scores[choice.best].name == "reciprocal-shared"
    assert scores["reciprocal-shared"].error < 0.6 * scores["m4"].error
    assert scores["m4"].error < scores["linear"].error


def test_planted_m4_is_taken_over_laws_with_more_parameters() -> None:
    r_RM, y_RT = planted("m4", 24, noise=0.01)
    learners = (LAWS["reciprocal-shared"], LAWS["m4"], LawLearner(MIXING_LAWS["exp-power"]))
    choice = choose_learner(r_RM, y_RT, learners=learners)
    assert choice.scores[choice.best].name == "m4"


def test_the_choice_left_out_itself_errs_about_as_much_as_the_best_law() -> None:
    r_RM, y_RT = planted("powers", 16, noise=0.003)
    learners = (LAWS["m4"], LAWS["reciprocal-shared"])
    nested = leave_out_with_choice(r_RM, y_RT, learners=learners)
    m4, powers = np.abs(nested.left_out_LRT - y_RT).mean(axis=(1, 2))
    selected = np.abs(nested.selected_RT - y_RT).mean()
    assert selected < 1.1 * powers
    assert selected < 0.7 * m4
    assert len(nested.choices) == 16


def test_what_is_left_out_is_not_seen() -> None:
    r_RM, y_RT = planted("powers", 12, noise=0.003)
    learners = (LAWS["m4"], LAWS["linear"])
    once = leave_out_with_choice(r_RM, y_RT, learners=learners)
    spoiled = y_RT.copy()
    spoiled[4] += 0.5
    again = leave_out_with_choice(r_RM, spoiled, learners=learners)
    moved_LR = np.abs(again.left_out_LRT - once.left_out_LRT).max(axis=2)
    # Descents start from fits to all runs, and scales settle to 1%: a little of that is left.
    assert moved_LR[:, 4].max() < 0.05 * np.median(moved_LR)


# ------------------------------------------------------------------------- what is unusual


def test_runs_of_one_mixture_are_in_one_fold() -> None:
    group_R = np.array([0, 0, 1, 2, 2, 2, 3, 4])
    for seed in range(5):
        fold_R = deal_folds(np.random.default_rng(seed), group_R, 3)
        pairs = pairwise(zip(group_R, fold_R, strict=True))
        assert all(a[1] == b[1] for a, b in pairs if a[0] == b[0])
        assert set(fold_R) == {0, 1, 2}


def test_equal_losses_and_missing_ones_leave_a_choice() -> None:
    r_RM = design()
    equal = choose_learner(r_RM, np.full((12, 2), 2.0), learners=tuple(LAWS.values()))
    assert not equal.uses_stack
    y_RT = truth(r_RM)
    y_RT[:3, 0] = np.nan
    y_RT[7] = np.nan
    some = choose_learner(r_RM, y_RT, learners=(LAWS["linear"], MeanLearner()))
    assert some.scores[some.best].name == "linear"
    assert all(np.isfinite(score.error) for score in some.scores)


def test_too_few_mixtures_or_nobody_to_choose_is_said() -> None:
    r_RM = design(6)
    with pytest.raises(FitError, match="at least 4 mixtures and one law, found 3 and 1") as raised:
        choose_learner(
            r_RM, truth(r_RM), learners=(MeanLearner(),), mixture_ids=["a", "a", "b", "b", "c", "c"]
        )
    assert "about three per domain" in str(raised.value)
    with pytest.raises(FitError, match="found 6 and 0"):
        choose_learner(r_RM, truth(r_RM), learners=())


def test_a_constant_ranks_nothing_and_regret_is_what_its_choice_costs() -> None:
    y_RT = np.array([[1.0], [2.0], [3.0]])
    assert mean_spearman(np.zeros((3, 1)), y_RT) == 0.0
    assert mean_spearman(-y_RT, y_RT) == pytest.approx(-1.0)
    assert average_ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert top_regret(y_RT, y_RT) == 0.0
    assert top_regret(-y_RT, y_RT) == 2.0
