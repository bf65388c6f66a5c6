"""What learns losses from runs: laws, the mean, boosted trees, a Gaussian process."""

import numpy as np
import pytest

from mixlaw.fit.learners import (
    REACH,
    GaussianProcessLearner,
    LawLearner,
    Learner,
    LightGBMLearner,
    MeanLearner,
    within_reach,
)
from mixlaw.importers.published import read_regmix
from mixlaw.laws.library import MIXING_LAWS
from mixlaw.observations import loss_table
from published import published_data

BASELINES = {"lightgbm": LightGBMLearner(), "gp": GaussianProcessLearner()}
NAMES = [*MIXING_LAWS, "mean", *BASELINES]


def learner_of(name: str) -> Learner:
    """The learner; the test is skipped where its package is missing."""
    if name in BASELINES:
        pytest.importorskip("lightgbm")
        pytest.importorskip("sklearn")
        return BASELINES[name]
    return MeanLearner() if name == "mean" else LawLearner(MIXING_LAWS[name])


@pytest.fixture(params=NAMES)
def learner(request: pytest.FixtureRequest) -> Learner:
    return learner_of(request.param)


@pytest.fixture(params=[*MIXING_LAWS, "mean"])
def formula(request: pytest.FixtureRequest) -> Learner:
    """A learner that does not care for the order of domains."""
    return learner_of(request.param)


def planted(num_runs: int = 20, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Shares of four domains, and two losses that fall with them as powers, with noise."""
    rng = np.random.default_rng(seed)
    r_RM = rng.dirichlet(np.ones(4), size=num_runs)
    mixed_RT = np.sqrt(r_RM + 0.01) @ np.array([[1.0, 0.2], [0.3, 0.1], [0.2, 1.0], [0.1, 0.6]])
    return r_RM, 2 + 1 / (1 + mixed_RT) + 0.003 * rng.normal(size=(num_runs, 2))


ASKED = np.random.default_rng(5).dirichlet(np.ones(4), size=7)


def test_names_are_distinct(learner: Learner) -> None:
    assert NAMES.count(learner.name) == 1
    assert learner.num_parameters(4) >= 1


@pytest.mark.filterwarnings("ignore:The optimal value found")
def test_order_of_runs_does_not_matter(learner: Learner) -> None:
    r_RM, y_RT = planted()
    order_R = np.random.default_rng(1).permutation(len(r_RM))
    there = learner.predict(r_RM, y_RT, r_XM=ASKED)
    again = learner.predict(r_RM[order_R], y_RT[order_R], r_XM=ASKED)
    np.testing.assert_allclose(again, there, atol=1e-4)


def test_order_of_domains_does_not_matter(formula: Learner) -> None:
    r_RM, y_RT = planted()
    order_M = [2, 0, 3, 1]
    there = formula.predict(r_RM, y_RT, r_XM=ASKED)
    again = formula.predict(r_RM[:, order_M], y_RT, r_XM=ASKED[:, order_M])
    np.testing.assert_allclose(again, there, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The optimal value found")
def test_run_that_no_fold_keeps_is_never_seen(learner: Learner) -> None:
    r_RM, y_RT = planted()
    keep_KR = np.ones((2, len(r_RM)), dtype=bool)
    keep_KR[0, :5] = keep_KR[1, :2] = False
    there = learner.predict_folds(r_RM, y_RT, keep_KR=keep_KR, r_XM=ASKED)
    y_RT[:2] = 99.0
    again = learner.predict_folds(r_RM, y_RT, keep_KR=keep_KR, r_XM=ASKED)
    np.testing.assert_array_equal(again, there)


@pytest.mark.filterwarnings("ignore:The optimal value found")
def test_fold_does_not_learn_from_a_run_that_only_others_keep(learner: Learner) -> None:
    r_RM, y_RT = planted()
    keep_KR = np.arange(len(r_RM)) % 3 != np.arange(3)[:, None]
    there = learner.predict_folds(r_RM, y_RT, keep_KR=keep_KR, r_XM=ASKED)
    y_RT[0] = 99.0
    again = learner.predict_folds(r_RM, y_RT, keep_KR=keep_KR, r_XM=ASKED)
    np.testing.assert_allclose(again[0], there[0], rtol=0, atol=1e-6)  # of 2 to 3 nats


@pytest.mark.filterwarnings("ignore:The optimal value found")
def test_missing_loss_is_as_if_the_run_were_not_there(learner: Learner) -> None:
    r_RM, y_RT = planted()
    y_RT[:4, 0] = np.nan
    there = learner.predict(r_RM, y_RT, r_XM=ASKED)
    without = learner.predict(r_RM[4:], y_RT[4:, :1], r_XM=ASKED)
    np.testing.assert_allclose(there[:, :1], without, atol=1e-4)
    whole = learner.predict(r_RM, y_RT[:, 1:], r_XM=ASKED)
    np.testing.assert_allclose(there[:, 1:], whole, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The optimal value found")
def test_constant_losses_are_predicted_everywhere(learner: Learner) -> None:
    r_RM, y_RT = planted()
    y_RT[:] = 3.25
    np.testing.assert_allclose(learner.predict(r_RM, y_RT, r_XM=ASKED), 3.25, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The optimal value found")
@pytest.mark.parametrize("num_runs", [2, 5])
def test_few_runs_give_predictions_near_their_losses(learner: Learner, num_runs: int) -> None:
    r_RM, y_RT = planted(num_runs)
    value_XT = learner.predict(r_RM, y_RT, r_XM=np.vstack([ASKED, np.eye(4)]))
    reach_T = (REACH + 1e-9) * np.ptp(y_RT, axis=0)
    assert np.all(value_XT >= y_RT.min(axis=0) - reach_T)
    assert np.all(value_XT <= y_RT.max(axis=0) + reach_T)


@pytest.mark.filterwarnings("ignore:The optimal value found")
@pytest.mark.parametrize(
    "name", ["reciprocal", "reciprocal-shared", "power-reciprocal", "exp-power", "lightgbm", "gp"]
)
def test_planted_losses_are_predicted_better_than_by_the_mean(name: str) -> None:
    r_RM, y_RT = planted(40)
    asked_RM, true_RT = planted(40, seed=1)
    value_XT = learner_of(name).predict(r_RM, y_RT, r_XM=asked_RM)
    assert np.abs(value_XT - true_RT).mean() < 0.5 * np.abs(true_RT - y_RT.mean(axis=0)).mean()


def test_mean_is_that_of_the_kept_losses() -> None:
    y_RT = np.array([[1.0, 5.0], [2.0, np.nan], [6.0, 7.0]])
    keep_KR = np.array([[True, True, False], [False, True, True]])
    value_KXT = MeanLearner().predict_folds(np.eye(3), y_RT, keep_KR=keep_KR, r_XM=np.eye(3)[:1])
    np.testing.assert_array_equal(value_KXT[:, 0], [[1.5, 5.0], [4.0, 7.0]])


def test_predictions_lie_at_most_one_range_beyond_the_losses() -> None:
    value_KXT = np.array([[[-50.0]], [[50.0]]])
    y_RT = np.array([[1.0], [2.0], [4.0]])
    keep_KR = np.array([[True, True, False], [True, True, True]])
    np.testing.assert_array_equal(
        within_reach(value_KXT, y_RT, keep_KR), [[[0.0]], [[7.0]]]
    )  # fmt: skip


@pytest.mark.parametrize("name", list(MIXING_LAWS))
def test_with_24_runs_of_17_domains_no_law_is_worse_than_the_mean(name: str) -> None:
    published = read_regmix(published_data() / "regmix")
    targets = ("arxiv", "dm_mathematics", "pile_cc", "github")
    table = loss_table(published.runs, published.observations, targets=targets)
    ratios = []
    for seed in range(3):
        order_R = np.random.default_rng(seed).permutation(len(table.r_RM))
        fitted_R, rest_R = order_R[:24], order_R[24:]
        learn = (table.r_RM[fitted_R], table.y_RT[fitted_R])
        value_XT = learner_of(name).predict(*learn, r_XM=table.r_RM[rest_R])
        mean_T = table.y_RT[fitted_R].mean(axis=0)
        ratios.append(
            np.abs(value_XT - table.y_RT[rest_R]).mean()
            / np.abs(mean_T - table.y_RT[rest_R]).mean()
        )
    assert np.mean(ratios) <= 1.0
