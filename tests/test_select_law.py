"""The choice of the law on tables: what is chosen, what stands beside it, what is refused."""

import json
from functools import cache

import numpy as np
import polars as pl
import pytest

from mixlaw.errors import FitError
from mixlaw.fit import fit_law
from mixlaw.fit.learners import MeanLearner
from mixlaw.laws.library import MIXING_LAWS
from mixlaw.laws.stack import StackedLaw
from mixlaw.selection import LawChoice, read_choice, select_law, validate
from mixlaw.selection.select import DEFAULT_LAWS
from published import published_data
from simulated import SimulatedStudy, make_tables, simulate_study

FEW = ("linear", "m4", "reciprocal-shared")
"""Enough candidates for a test, and fast."""


@cache
def power_study() -> SimulatedStudy:
    """A study whose truth is a reciprocal law over powers."""
    return simulate_study(1, form="power", num_extra=0)


@cache
def power_choice() -> LawChoice:
    study = power_study()
    return select_law(study.runs, study.observations, laws=FEW)


def members(choice: LawChoice) -> dict[str, float]:
    best = choice.best
    if isinstance(best, StackedLaw):
        return {law.name: w for law, w in zip(best.laws, best.weights, strict=True)}
    return {best.name: 1.0}


# ------------------------------------------------------------------------- what is chosen


def test_a_planted_power_law_beats_m4_and_linear() -> None:
    choice = power_choice()
    assert choice.single == "reciprocal-shared"
    assert members(choice).get("reciprocal-shared", 0) > 0.8
    assert choice.score("reciprocal-shared") < 0.5 * choice.score("m4")
    assert choice.score("m4") < choice.score("linear") < choice.score("mean")


def test_without_the_winner_the_next_one_wins_by_the_same_code() -> None:
    study, left = power_study(), list(FEW)
    ranked = sorted(power_choice().scores, key=lambda score: score.error)
    for expected in [score.name for score in ranked if score.name in FEW]:
        choice = select_law(study.runs, study.observations, laws=left)
        assert choice.single == expected
        assert max(members(choice), key=members(choice).__getitem__) == expected
        left.remove(expected)


def test_a_planted_m4_is_not_lost_to_a_law_with_more_parameters() -> None:
    study = simulate_study(0, num_extra=0)
    choice = select_law(study.runs, study.observations, laws=("m4", "reciprocal", "exp-power"))
    assert choice.single == "m4"  # nearly tied: the fewest parameters win


def test_baselines_are_scored_but_never_chosen() -> None:
    study = simulate_study(2, num_extra=0)
    noise = study.observations.with_columns(
        pl.Series("value", 2 + np.random.default_rng(0).normal(0, 0.1, study.observations.height))
    )
    choice = select_law(study.runs, noise, laws=("m4", "linear"), baselines=(MeanLearner(),))
    assert choice.score("mean") < choice.score("m4")  # nothing to learn: the mean is best
    assert choice.single in ("m4", "linear")
    assert "mean" not in members(choice)


def test_weights_decide_by_the_weighted_loss() -> None:
    study = power_study()
    weights = {"d0": 0.75, "d1": 0.25}
    choice = select_law(study.runs, study.observations, laws=("m4",), weights=weights)
    assert choice.measure == "of the weighted loss, nats_per_token"
    fit = fit_law("m4", study.runs, study.observations, num_draws=1, targets=("d0", "d1"))
    by_run = np.abs(fit.left_out_residual_RT @ [0.75, 0.25])
    ids = np.array(fit.table.mixture_ids)
    by_mixture = [np.mean(by_run[ids == name]) for name in set(ids)]
    assert choice.score("m4") == pytest.approx(np.mean(by_mixture), rel=0.02)


def test_replicates_of_a_mixture_are_left_out_together() -> None:
    study = power_study()
    twin = study.runs.with_columns(pl.col("run_id") + "-again")
    rows = study.observations.with_columns(pl.col("run_id") + "-again")
    doubled = select_law(
        pl.concat([study.runs, twin]), pl.concat([study.observations, rows]), laws=FEW
    )
    assert doubled.num_mixtures == power_choice().num_mixtures == 20
    # Were a twin in view, an error would be that of the noise alone.
    for name in FEW:
        assert doubled.score(name) == pytest.approx(power_choice().score(name), rel=0.25)


def test_a_loss_that_no_mixture_moves_chooses_something_and_says_no_error() -> None:
    r_RM = np.random.default_rng(0).dirichlet(np.ones(3), 8)
    choice = select_law(*tables(r_RM, np.full((8, 1), 2.0)), laws=("m4", "linear"))
    assert choice.single in ("m4", "linear")
    assert choice.scores[0].mae < 1e-6


def test_missing_losses_of_a_target_do_not_stop_the_choice() -> None:
    study = power_study()
    some = study.observations.filter(
        ~((pl.col("target") == "d0") & (pl.col("run_id").str.ends_with("3")))
    )
    choice = select_law(study.runs, some, laws=FEW)
    assert choice.single == "reciprocal-shared"
    assert all(np.isfinite(score.error) for score in choice.scores)


def test_weights_that_no_run_has_all_losses_of_are_said_and_not_used() -> None:
    study = power_study()
    is_even = pl.col("run_id").str.slice(-1).is_in(["0", "2", "4", "6", "8"])
    some = study.observations.filter((pl.col("target") == "d0") == is_even)
    choice = select_law(study.runs, some, laws=("m4",), weights={"d0": 0.5, "d1": 0.5})
    assert "only 0 mixtures have every weighted loss" in choice.notes[-1]


# ------------------------------------------------------------------------- how it is told


def test_up_to_thirty_mixtures_each_is_left_out_and_beyond_ten_folds_are() -> None:
    assert power_choice().folds == "each of 20 mixtures left out"
    study = simulate_study(0, num_mixtures=33, num_extra=0)
    choice = select_law(study.runs, study.observations, laws=("linear",), repeats=2)
    assert choice.folds == "33 mixtures left out in 10 folds, 2 times"


def test_the_sentence_names_the_error_the_next_law_and_the_mean() -> None:
    sentence = power_choice().sentence()
    assert sentence.startswith(f"law {power_choice().name}: left-out error 0.0")
    assert "m4 0.1" in sentence
    assert sentence.endswith(f"mean {power_choice().score('mean'):.2f}")
    assert "\n" not in sentence


def test_the_table_has_a_row_for_every_law_and_baseline() -> None:
    lines = power_choice().table().splitlines()
    assert lines[0].split() == [
        "law", "parameters", "error", "+-", "MAE", "median", "Spearman", "regret", "stack", "wins",
    ]  # fmt: skip
    assert {line.split()[0] for line in lines[1:]} == {*FEW, "mean"}
    assert lines[-1].split()[6:8] == ["-", "-"]  # the mean ranks nothing


def test_a_choice_is_the_same_after_json() -> None:
    values = json.loads(json.dumps(power_choice().to_json(), allow_nan=False))
    again = read_choice(values)
    assert again.best == power_choice().best
    assert again.sentence() == power_choice().sentence()
    assert again.table() == power_choice().table()


def test_the_default_laws_are_in_the_library() -> None:
    assert set(DEFAULT_LAWS) <= set(MIXING_LAWS)


# ------------------------------------------------------------------------- what is refused


def test_unknown_laws_and_targets_are_named_with_those_that_are_known() -> None:
    study = power_study()
    with pytest.raises(FitError, match="there is no law 'm5'") as raised:
        select_law(study.runs, study.observations, laws=("m5",))
    assert "the laws are m1, m2, m3, m4, linear" in str(raised.value)
    with pytest.raises(FitError, match="'m4' is a candidate twice"):
        select_law(study.runs, study.observations, laws=("m4", "m4"))
    with pytest.raises(FitError, match="at least one law, found none"):
        select_law(study.runs, study.observations, laws=())
    with pytest.raises(FitError, match="'poems' is no target of these runs"):
        select_law(study.runs, study.observations, weights={"poems": 1.0})


def test_three_mixtures_are_too_few() -> None:
    r_RM = np.random.default_rng(0).dirichlet(np.ones(3), 3)
    with pytest.raises(FitError, match="at least 4 mixtures"):
        select_law(*tables(r_RM, r_RM[:, :1]), laws=("linear",))


# ------------------------------------------------------------------------- a stack


def test_a_stack_is_fitted_member_by_member() -> None:
    study = power_study()
    stack = StackedLaw((MIXING_LAWS["m4"], MIXING_LAWS["reciprocal-shared"]), (0.25, 0.75))
    fits = [
        fit_law(law, study.runs, study.observations, num_draws=5, targets=("d0", "d1"))
        for law in (stack, *stack.laws)
    ]
    r_RM = study.runs.select(pl.col("^r:.*$")).to_numpy()[:4]
    both, m4, power = fits
    for each in ("losses", "draw_losses", "left_out_losses"):
        expected = 0.25 * getattr(m4, each)(r_RM) + 0.75 * getattr(power, each)(r_RM)
        assert np.allclose(getattr(both, each)(r_RM), expected, rtol=1e-12)
    assert both.status[0].converged
    assert "0.75 reciprocal-shared: L(r) = c + 1 / sum_j" in both.report()


def test_a_stack_has_the_derivatives_of_its_prediction() -> None:
    stack = StackedLaw((MIXING_LAWS["m4"], MIXING_LAWS["power-reciprocal"]), (0.4, 0.6))
    rng = np.random.default_rng(0)
    r_RM, y_BR = rng.dirichlet(np.ones(3), 7), rng.normal(3, 0.2, (2, 7))
    theta_BP = stack.starts(r_RM, y_BR)[:, 0]
    assert theta_BP.shape[1] == len(stack.parameter_names(("a", "b", "c")))
    low_BP, high_BP = stack.bounds(r_RM, y_BR)
    assert (low_BP <= theta_BP).all()
    assert (theta_BP <= high_BP).all()
    step = 1e-6
    for p in range(theta_BP.shape[1]):
        up, down = theta_BP.copy(), theta_BP.copy()
        up[:, p] += step
        down[:, p] -= step
        slope = (stack.predict(r_RM, up) - stack.predict(r_RM, down)) / (2 * step)
        assert np.allclose(stack.jacobian(r_RM, theta_BP)[..., p], slope, rtol=1e-5, atol=1e-7)
        slope = (stack.penalty(up) - stack.penalty(down)) / (2 * step)
        assert np.allclose(stack.penalty_jacobian(theta_BP)[..., p], slope, atol=1e-7)
    for m in range(3):
        up, down = r_RM.copy(), r_RM.copy()
        up[:, m] += step
        down[:, m] -= step
        slope = (stack.predict(up, theta_BP) - stack.predict(down, theta_BP)) / (2 * step)
        assert np.allclose(stack.gradient(r_RM, theta_BP)[..., m], slope, rtol=1e-5, atol=1e-7)
    assert stack.is_convex(theta_BP[0])


def test_stacked_weights_must_be_those_of_a_mean() -> None:
    laws = (MIXING_LAWS["m4"], MIXING_LAWS["linear"])
    for weights in ((0.5, 0.6), (1.5, -0.5), (1.0,)):
        with pytest.raises(FitError, match="one weight per law, none below 0, that sum to 1"):
            StackedLaw(laws, weights)
    with pytest.raises(FitError, match="must differ"):
        StackedLaw(laws[:1] * 2, (0.5, 0.5))


# ------------------------------------------------------------------------- validation


def test_validation_has_every_law_in_every_table_and_the_choice_among_them() -> None:
    study = power_study()
    found = validate(study.runs, study.observations, laws=FEW, repeats=2)
    folds, alone = found.tables
    assert folds.title == "20 mixtures left out in 5 folds, 2 times"
    assert {row.name for row in folds.rows} == {*FEW, "mean"}
    assert {row.name for row in alone.rows} == {*FEW, "mean", "selected"}
    assert alone.row("selected").mae < 1.2 * alone.row("reciprocal-shared").mae
    assert alone.row("reciprocal-shared").error == pytest.approx(
        power_choice().score("reciprocal-shared"), rel=0.01
    )
    assert found.selected.startswith(power_choice().name[:4])
    for row in (*folds.rows, *alone.rows):
        assert 0.8 <= row.coverage <= 1
        assert row.width > 2 * row.mae
    assert any("size" in note for note in found.notes)
    json.dumps(found.to_json())
    assert "inside" in str(found)


def test_the_largest_size_and_the_latest_steps_are_left_out_where_there_are_several() -> None:
    # L = E + A N^-0.35 + B S^-0.5 for every mixture: both hold-outs can be predicted well.
    rng = np.random.default_rng(0)
    r_GM = rng.dirichlet(np.ones(3), 8)
    runs, rows = [], []
    for size in (1e7, 2e7, 4e7, 8e7):
        for g, r_M in enumerate(r_GM):
            name = f"{g}-{size:.0f}"
            runs.append({
                "run_id": name, "mixture_id": f"m{g}", "role": "imported", "seed": 0,
                "params_non_embedding": size, **{f"r:d{j}": r_M[j] for j in range(3)},
            })  # fmt: skip
            for step in range(2000, 20001, 2000):
                value = 2 + 0.5 * r_M[0] + 90 * size**-0.35 + (10 + 3 * r_M[1]) * step**-0.5
                value += rng.normal(0, 0.001)
                rows.append({"run_id": name, "step": step, "target": "t", "value": value})
    found = validate(pl.DataFrame(runs), pl.DataFrame(rows), laws=("linear", "m4"), repeats=1)
    size, steps = found.tables[2:]
    assert size.title == "size 8e+07 at step 20000 left out, predicted from smaller ones"
    assert steps.title == "last steps left out, predicted from steps up to 14000"
    for table in (size, steps):
        assert table.row("scaling").mae < 0.5 * table.row("unchanged").mae
        assert table.row("nested").mae < table.row("unchanged").mae
        assert table.row("scaling").width > 0


def test_on_published_runs_what_is_chosen_errs_less_than_half_as_much_as_m4() -> None:
    """Overall loss of 5Mix's 26 mixtures, 70M at 30k steps, each left out in turn."""
    from mixlaw.importers.published import read_mixinglaws, read_valid_weights

    folder = published_data() / "mixinglaws"
    read = read_mixinglaws(folder / "5Mix")
    weights = read_valid_weights(folder / "valid_weight.json")
    choice = select_law(
        read.runs, read.observations, laws=("m4", "reciprocal"),
        weights=weights, step=30000, params=18915328.0,
    )  # fmt: skip
    assert choice.num_mixtures == 26
    assert choice.error < 0.0070
    assert choice.error < 0.4 * choice.score("m4")


def tables(r_RM: np.ndarray, y_RT: np.ndarray) -> tuple[pl.DataFrame, pl.DataFrame]:
    domains = [f"d{j}" for j in range(r_RM.shape[1])]
    return make_tables(domains, [f"t{i}" for i in range(y_RT.shape[1])], r_RM, y_RT)
