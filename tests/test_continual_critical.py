"""The critical proportion: its definition, its interval, the published runs, other cases."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from scipy.stats import t as t_distribution

from mixlaw.errors import FitError, OptimizeError
from mixlaw.fit import fit_law
from mixlaw.fit.continual import (
    NoisePrior,
    average_mixtures,
    fit_means,
    judge_noise,
    profile_squares,
)
from mixlaw.importers.published import read_mixinglaws, read_valid_weights
from mixlaw.laws.library import MIXING_LAWS
from mixlaw.laws.mixing import ExponentialLaw
from mixlaw.mixtures import Mixture
from mixlaw.observations import LossTable
from mixlaw.optimize.continual import CriticalProportion, critical_proportion, find_critical
from mixlaw.optimize.continual_path import SharePath, fit_path
from mixlaw.optimize.continual_runs import ContinualAnswer, ContinualQuestion, judge_continual
from mixlaw.optimize.objective import WeightedLoss
from published import published_data

SHARES = (0.1, 0.2, 0.3, 0.45, 0.6)


def truth(share: np.ndarray) -> np.ndarray:
    """Returns a loss that falls from 2.2 to about 2."""
    return 2 + 0.2 * np.exp(-4 * share)


def line_table(
    shares: tuple[float, ...] = SHARES, *, seeds: int = 1, sd: float = 0.0, seed: int = 0
) -> LossTable:
    """Returns runs on the line between `old` and `new`, with noise of their own."""
    share_R = np.repeat(shares, seeds)
    rng = np.random.default_rng(seed)
    r_RM = np.column_stack([share_R, 1 - share_R])
    losses = truth(share_R) + sd * rng.standard_normal(len(share_R))
    new = 3 - 0.5 * (1 - share_R)
    return LossTable(
        run_ids=tuple(f"run{i}" for i in range(len(share_R))),
        mixture_ids=tuple(Mixture.from_array(("old", "new"), r_M).mixture_id for r_M in r_RM),
        seeds=tuple(range(len(share_R))),
        domains=("old", "new"),
        targets=("old", "new"),
        r_RM=r_RM,
        y_RT=np.column_stack([losses, new]),
        standard_error_RT=np.full((len(share_R), 2), np.nan),
        step=1,
        tokens=None,
        unit="nats_per_token",
    )


def find(
    table: LossTable,
    loss: float,
    tolerance: float = 0.0,
    *,
    law: str = "m4",
    level: float = 0.9,
    prior: NoisePrior | None = None,
) -> CriticalProportion:
    path = SharePath.of(table, original=("old",))
    line = fit_path(MIXING_LAWS[law], table, np.array([1.0, 0.0]), path=path, prior=prior)
    return find_critical(line, loss, tolerance, level=level)


@settings(max_examples=5, deadline=None)
@given(st.floats(0.12, 0.58))
def test_without_noise_the_crossing_is_found(share: float) -> None:
    found = find(line_table(), float(truth(np.array([share]))[0]))
    assert found.outcome == "found"
    assert found.share == pytest.approx(share, abs=1e-5)
    assert found.new_share == pytest.approx(1 - share, abs=1e-5)
    assert found.mixture is not None
    assert found.mixture["old"] == pytest.approx(share, abs=1e-5)
    assert found.low is not None
    assert found.high is not None
    assert found.share is not None
    assert found.low <= found.share <= found.high
    assert found.high - found.low < 1e-2


def test_a_tolerance_lowers_the_share_by_what_the_law_says() -> None:
    loss = float(truth(np.array([0.4]))[0])
    strict, lax = find(line_table(), loss), find(line_table(), loss, 0.02)
    expected = -math.log((loss + 0.02 - 2) / 0.2) / 4
    assert strict.share == pytest.approx(0.4, abs=1e-5)
    assert lax.share == pytest.approx(expected, abs=1e-5)


def test_the_interval_is_that_of_an_independent_profile() -> None:
    """SciPy fits the curve through (s, loss), with that constraint solved for c."""
    table = line_table(seeds=2, sd=0.004)
    loss = float(truth(np.array([0.3]))[0])
    found = find(table, loss)
    s_R, y_R = table.r_RM[:, 0], table.y_RT[:, 0]

    def squares(at: float | None) -> float:
        def residuals(theta: np.ndarray) -> np.ndarray:
            log_k, rate = theta[:2]
            curve = np.exp(log_k - rate * s_R)
            level = theta[2] if at is None else loss - np.exp(log_k - rate * at)
            return level + curve - y_R

        start = [-1.6, 4.0] if at is not None else [-1.6, 4.0, 2.0]
        return 2 * float(least_squares(residuals, start, xtol=1e-14, ftol=1e-14).cost)

    assert found.noise is not None
    quantile = t_distribution.ppf(0.95, found.noise.freedom)
    for end in (found.low, found.high):
        assert end is not None
        grown = squares(end) - squares(None)
        assert math.sqrt(grown) == pytest.approx(quantile * found.noise.sd, rel=0.02)


@pytest.mark.parametrize("law", ["m4", "log-linear", "linear", "bimix", "m1"])
def test_laws_agree_where_the_runs_are_close_to_the_crossing(law: str) -> None:
    table = line_table((0.26, 0.28, 0.3, 0.32, 0.34))
    found = find(table, float(truth(np.array([0.3]))[0]), law=law)
    assert found.share == pytest.approx(0.3, abs=2e-3)


def test_replicates_that_agree_with_the_law_add_their_degrees_of_freedom() -> None:
    table = line_table(seeds=3, sd=0.003, seed=2)
    found = find(table, 2.06)
    assert found.noise is not None
    assert found.noise.source == "residuals and replicates"
    assert found.noise.freedom == 5 - 3 + 5 * 2
    assert found.noise.sd == pytest.approx(0.003, rel=0.5)


def test_a_law_that_the_replicates_refute_is_judged_by_its_own_scatter() -> None:
    table = line_table(seeds=3, sd=1e-4)
    bent = replace(table, y_RT=table.y_RT + 0.01 * np.sin(20 * table.r_RM[:, :1]))
    found = find(bent, 2.06)
    assert found.noise is not None
    assert found.noise.source == "residuals"
    assert found.noise.freedom == 2
    assert found.noise.sd > 0.003


def test_one_degree_of_freedom_is_named_and_makes_the_interval_wide() -> None:
    four = find(line_table((0.1, 0.25, 0.4, 0.6), sd=0.002, seed=1), 2.06)
    assert four.noise is not None
    assert four.noise.freedom == 1
    assert "next to nothing is known" in " ".join(four.sentences())
    assert four.noise.quantile(0.9) == pytest.approx(6.314, abs=1e-3)


def test_without_noise_to_be_known_nothing_is_identified_unless_a_prior_is_stated() -> None:
    table = line_table((0.1, 0.3, 0.6))
    blind = find(table, 2.06)
    assert blind.noise is None
    assert blind.share is not None
    assert not blind.is_identified
    assert "not identified" in " ".join(blind.sentences())
    told = find(table, 2.06, prior=NoisePrior(sd=0.002, freedom=8.0))
    assert told.is_identified
    assert told.noise is not None
    assert told.noise.source == "prior"
    assert "a stated prior of 0.002" in told.noise.sentence


def test_a_loss_that_is_kept_everywhere_needs_no_original_data() -> None:
    found = find(line_table(sd=1e-4, seeds=2), 2.3)
    assert found.outcome == "always kept"
    assert found.share == 0.0
    assert found.low == 0.0
    assert found.is_identified
    assert "kept without any original data" in found.sentences()[0]
    assert any("law extrapolates" in sentence for sentence in found.sentences())


def test_a_loss_that_is_lost_everywhere_has_no_share() -> None:
    found = find(line_table(sd=1e-4, seeds=2), 1.9)
    assert found.outcome == "never kept"
    assert found.share is None
    assert found.mixture is None
    assert found.new_share is None
    assert found.low == 1.0
    assert found.is_identified
    unsure = find(line_table(sd=0.02, seeds=2), 2.0)
    assert unsure.high is None
    assert not unsure.is_identified


def test_a_crossing_beyond_the_runs_is_called_extrapolated() -> None:
    found = find(line_table(sd=1e-4, seeds=2), float(truth(np.array([0.8]))[0]))
    assert found.outcome == "found"
    assert found.is_beyond_runs
    assert any("extrapolated by the law" in sentence for sentence in found.sentences())


def test_a_loss_that_rises_again_is_lost_again() -> None:
    table = line_table((0.05, 0.2, 0.4, 0.6, 0.8, 0.95), seeds=2, sd=1e-5)
    valley = 2 + (table.r_RM[:, 0] - 0.5) ** 2
    bent = replace(table, y_RT=np.column_stack([valley, table.y_RT[:, 1]]))
    found = find(bent, 2.04, law="m1")  # a sum of two exponentials has a valley
    assert not found.is_monotone
    assert found.share == pytest.approx(0.3, abs=0.02)
    assert found.kept_until == pytest.approx(0.7, abs=0.02)


def test_the_safe_share_lies_above_the_critical_one() -> None:
    found = find(line_table(seeds=2, sd=0.003), 2.06)
    assert found.safe_share is not None
    assert found.share is not None
    assert found.safe_share > found.share


def test_a_higher_level_gives_a_wider_interval() -> None:
    table = line_table(seeds=2, sd=0.003)
    widths = []
    for level in (0.5, 0.9, 0.99):
        found = find(table, 2.06, level=level)
        assert found.low is not None
        assert found.high is not None
        widths.append(found.high - found.low)
    assert widths[0] < widths[1] < widths[2]


def test_the_parts_keep_their_own_proportions() -> None:
    names = ("a", "b", "c")
    old = Mixture.of({"a": 0.7, "b": 0.3, "c": 0.0})
    new = Mixture.of({"a": 0.0, "b": 0.0, "c": 1.0})
    path = SharePath(original=old, new=new)
    table = line_table(seeds=2, sd=1e-4)
    r_RM = path.rows(table.r_RM[:, 0])
    three = replace(table, domains=names, r_RM=r_RM)
    assert path.mixture(0.5) == Mixture.of({"a": 0.35, "b": 0.15, "c": 0.5})
    found_path = SharePath.of(three, original=("a", "b"))
    np.testing.assert_allclose(found_path.original.array(), old.array(), atol=1e-12)
    line = fit_path(ExponentialLaw(), three, np.array([1.0, 0.0]), path=found_path)
    assert line.is_line
    two = find(table, 2.06)
    assert find_critical(line, 2.06).share == pytest.approx(two.share, abs=1e-9)


def test_runs_off_the_line_are_fitted_by_a_law_of_all_domains() -> None:
    rng = np.random.default_rng(0)
    r_RM = rng.dirichlet([2, 2, 2], size=14)
    losses = 2 + np.exp(-2 - r_RM @ np.array([2.0, 1.0, -1.0]))
    table = replace(
        line_table(),
        run_ids=tuple(f"r{i}" for i in range(14)),
        mixture_ids=tuple(f"m{i}" for i in range(14)),
        seeds=tuple(range(14)),
        domains=("a", "b", "c"),
        r_RM=r_RM,
        y_RT=np.column_stack([losses, losses]),
        standard_error_RT=np.full((14, 2), np.nan),
    )
    even = SharePath(
        original=Mixture.of({"a": 0.5, "b": 0.5, "c": 0.0}),
        new=Mixture.of({"a": 0.0, "b": 0.0, "c": 1.0}),
    )
    line = fit_path(ExponentialLaw(), table, np.array([1.0, 0.0]), path=even)
    assert not line.is_line
    at = 2 + math.exp(-2 - (0.4 * 1.5 - 0.6))
    assert find_critical(line, at).share == pytest.approx(0.4, abs=1e-4)


@pytest.mark.parametrize(
    ("original", "new", "message"),
    [
        (("lod",), None, "'lod' is no domain of the runs"),
        (("old",), ("old",), "'old' is named as both"),
        (("old", "new"), None, "both original and new data must have a domain"),
        ((), None, "both original and new data must have a domain"),
    ],
)
def test_parts_that_make_no_sense_are_refused(
    original: tuple[str, ...], new: tuple[str, ...] | None, message: str
) -> None:
    with pytest.raises(OptimizeError, match=message):
        SharePath.of(line_table(), original=original, new=new)


def test_too_few_shares_and_senseless_numbers_are_refused() -> None:
    with pytest.raises(FitError, match="at least 3 different shares of original data, found 2"):
        find(line_table((0.2, 0.5), seeds=2), 2.06)
    with pytest.raises(OptimizeError, match="the tolerance must be finite and not negative"):
        find(line_table(), 2.06, -0.1)
    with pytest.raises(OptimizeError, match="the original loss must be finite"):
        find(line_table(), math.nan)
    with pytest.raises(OptimizeError, match="level of an interval must lie between 0 and 1"):
        find(line_table(), 2.06, level=1.0)
    with pytest.raises(FitError, match="positive standard deviation"):
        NoisePrior(sd=0.0)


def test_the_squares_grow_by_nothing_where_the_best_law_already_is() -> None:
    table = line_table(seeds=2, sd=0.003)
    fit = fit_means(ExponentialLaw(), average_mixtures(table, np.array([1.0, 0.0])))
    r_SM = np.array([[0.3, 0.7]])
    at = float(fit.losses(r_SM)[0])
    assert profile_squares(fit, r_SM, at)[0] == pytest.approx(0.0, abs=1e-9)
    up = profile_squares(fit, r_SM, at + 1e-3)[0]
    assert up == pytest.approx(1e-6 / fit.leverage(r_SM)[0], rel=0.1)
    assert judge_noise(fit) is not None


# ---------------------------------------------------------------------- the published runs


def published_runs() -> tuple[pl.DataFrame, pl.DataFrame, dict[str, float]]:
    folder = published_data() / "mixinglaws"
    found = read_mixinglaws(folder / "ct")
    return found.runs, found.observations, dict(read_valid_weights(folder / "valid_weight.json"))


def last_step(observations: pl.DataFrame) -> pl.DataFrame:
    """Returns the original model's losses and those at the end."""
    return observations.filter(pl.col("step").is_in([0, 10_000]))


@pytest.fixture(scope="module")
def published_answer() -> ContinualAnswer:
    runs, observations, weights = published_runs()
    return judge_continual(
        runs,
        observations,
        ContinualQuestion(
            old_loss=WeightedLoss(weights),
            original=("Pile",),
            new_loss=WeightedLoss({"starcoder.python": 1.0}),
        ),
    )


def test_four_published_mixtures_put_it_between_28_and_29_percent(
    published_answer: ContinualAnswer,
) -> None:
    """The authors' notebook has .28622 (references/literature.md, 3.1)."""
    found = published_answer.critical
    assert found.share is not None
    assert found.low is not None
    assert found.high is not None
    assert 0.28 < found.share < 0.29
    assert found.share == pytest.approx(0.28622, abs=0.004)
    assert found.low < 0.28622 < found.high
    assert found.noise is not None
    assert (found.noise.source, found.noise.freedom) == ("residuals", 1)
    assert any("1 degree of freedom" in sentence for sentence in found.sentences())


def test_published_checkpoints_tell_a_trend_and_a_weak_interval(
    published_answer: ContinualAnswer,
) -> None:
    assert [c.step for c in published_answer.checkpoints] == list(range(1000, 10_001, 1000))
    weak, found = published_answer.weak, published_answer.critical
    assert weak is not None
    assert weak.noise is not None
    assert weak.noise.source == "checkpoints"
    assert weak.noise.freedom < 5  # of five checkpoints of the same runs
    assert weak.share == found.share
    assert published_answer.by_tokens is not None
    assert published_answer.by_params is None
    assert any("the runs have one size" in note for note in published_answer.notes)


def test_published_trade_off_gives_python_for_pile(published_answer: ContinualAnswer) -> None:
    curve = published_answer.trade_off
    assert curve is not None
    assert np.all(np.diff(curve.old_S) < 0)
    assert np.all(np.diff(curve.new_S) > 0)
    old, _ = curve.at(published_answer.critical.share or math.nan)
    assert old == pytest.approx(published_answer.critical.original_loss, abs=1e-4)


def test_the_same_answer_comes_from_a_fit_of_every_target() -> None:
    runs, observations, weights = published_runs()
    first = observations.filter(pl.col("step") == 0).unique("target")
    values = dict(first.select("target", "value").iter_rows())
    original_loss = sum(WeightedLoss(weights).shares[name] * values[name] for name in weights)
    fit = fit_law("m4", runs, last_step(observations), num_draws=1)
    found = critical_proportion(fit, original_loss, objective=weights, original=("Pile",))
    assert found.share is not None
    assert 0.28 < found.share < 0.29


def test_the_answer_is_plain_json(published_answer: ContinualAnswer) -> None:
    plain = json.loads(json.dumps(published_answer.to_json(), allow_nan=False))
    assert plain["original_share"] == published_answer.critical.share
    assert plain["noise"]["freedom"] == 1
    assert len(plain["checkpoints"]) == 10
    assert plain["is_identified"] is True


def test_runs_without_the_original_loss_ask_for_it() -> None:
    runs, observations, _ = published_runs()
    question = ContinualQuestion(old_loss=WeightedLoss({"Github": 1.0}), original=("Pile",))
    later = last_step(observations).filter(pl.col("step") > 0)
    with pytest.raises(OptimizeError, match="no run was observed at step 0"):
        judge_continual(runs, later, question)
    told = judge_continual(runs, later, replace(question, original_loss=1.0))
    assert told.critical.original_loss == 1.0


def test_a_run_of_the_original_model_stands_in_for_step_0(tmp_path: Path) -> None:
    runs, observations, _ = published_runs()
    observations = last_step(observations)
    question = ContinualQuestion(old_loss=WeightedLoss({"Pile-CC": 1.0}), original=("Pile",))
    whole = judge_continual(runs, observations, question)
    first = observations.filter(pl.col("step") == 0, pl.col("run_id") == runs["run_id"][0])
    parent = runs[:1].with_columns(
        pl.lit("pythia_70m_step20000").alias("run_id"),
        pl.lit(None, pl.String).alias("parent_run_id"),
        pl.lit("original").alias("role"),
    )
    own = first.with_columns(
        pl.lit("pythia_70m_step20000").alias("run_id"), pl.lit(20_000, pl.Int64).alias("step")
    )
    again = judge_continual(
        pl.concat([runs, parent]),
        pl.concat([observations.filter(pl.col("step") > 0), own]),
        question,
    )
    assert again.critical.share == whole.critical.share


def test_runs_of_two_models_are_not_taken_together() -> None:
    runs, observations, _ = published_runs()
    mixed = runs.with_columns(
        pl.when(pl.col("r:Pile") < 0.2)
        .then(pl.lit("another"))
        .otherwise(pl.col("parent_run_id"))
        .alias("parent_run_id")
    )
    question = ContinualQuestion(old_loss=WeightedLoss({"Pile-CC": 1.0}), original=("Pile",))
    with pytest.raises(FitError, match="must continue one model, but these continue 2"):
        judge_continual(mixed, last_step(observations), question)
