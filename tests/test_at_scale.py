"""A law at a scale that no run has: where it may be asked for, and planted optima there."""

import tomllib
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mixlaw.config import parse_config
from mixlaw.domains import Scale
from mixlaw.errors import FitError
from mixlaw.fit import FitResult, fit_law
from mixlaw.laws.repetition import RepeatedLaw
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.observations import check_observations, check_runs
from mixlaw.optimize.at_scale import LawAtScale, ScalePoint, fit_at_scale, locate_scale
from mixlaw.optimize.objective import ObjectiveFunction, WeightedLoss
from mixlaw.optimize.optimum import optimize_mixture
from mixlaw.optimize.solver import minimize_objective
from mixlaw.predict import predict_losses
from mixlaw.study import Study
from mixlaw.study.question import ImportedRegion, Question
from mixlaw.study.scaled import ScaledFit, fit_at_question, savings_of

SIZES = (1e5, 4e5, 1.6e6)
STEPS = (250, 500, 750, 1000)
TARGET_SIZE = 6.4e6
NAMES = ("a", "b", "c")


def truth(r_RM: np.ndarray, size: float, step: float) -> np.ndarray:
    """Losses of two targets; what helps a small model helps a large one in another measure."""
    small, steps = (size / 4e5) ** -0.3, (step / 1000) ** -0.25
    t_TM = np.array([[0.2, -0.3, -0.9], [-0.6, 0.1, 0.3]])
    s_TM = np.array([[-0.9, -0.3, 0.1], [0.2, -0.6, -0.6]])
    return 1.5 + np.exp(r_RM @ t_TM.T) * steps + np.exp(r_RM @ s_TM.T) * small


def make_tables(noise: float, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    rng = np.random.default_rng(seed)
    r_RM = rng.dirichlet(np.ones(3), size=10) * 0.7 + 0.1
    rows: list[tuple[str, int, float, str, float]] = []
    runs: list[dict[str, str | int | float]] = []
    for size in SIZES:
        for i, r_M in enumerate(r_RM):
            run_id = f"{i:02}-{size:g}"
            runs.append(
                {"run_id": run_id, "mixture_id": f"m{i:02}", "role": "design", "seed": 0,
                 "params_non_embedding": size, "params_total": size * 1.2,
                 "tokens_per_step": 2000.0}
                | {f"r:{n}": r_M[j] for j, n in enumerate(NAMES)}
            )  # fmt: skip
            for step in STEPS:
                loss_T = truth(r_M[None], size, step)[0] + noise * rng.standard_normal(2)
                rows += [
                    (run_id, step, step * 2000.0, t, loss)
                    for t, loss in zip(("one", "two"), loss_T.tolist(), strict=True)
                ]
    names = ["run_id", "step", "tokens", "target", "value"]
    return pl.DataFrame(runs), pl.DataFrame(rows, schema=names, orient="row")


@pytest.fixture(scope="module")
def scaled() -> tuple[FitResult, LawAtScale]:
    runs, observations = make_tables(0.002)
    base = fit_law("m4", runs, observations, num_draws=60)
    point = locate_scale(Scale(params=TARGET_SIZE, tokens=1500 * 2000.0), runs, observations)
    return base, fit_at_scale(base, runs, observations, point)


def optimum(fit: FitResult) -> np.ndarray:
    allowed = CappedSimplex.of(NAMES, floors=dict.fromkeys(NAMES, 0.1))
    function = ObjectiveFunction.of(fit.law, fit.theta_TP, np.array([0.5, 0.5]))
    return minimize_objective(function, allowed).r_M


def true_optimum(size: float, step: float) -> np.ndarray:
    grid = np.array([(a, b, 100 - a - b) for a in range(10, 81) for b in range(10, 91 - a)]) / 100
    grid = grid[grid[:, 2] >= 0.1]
    return grid[np.argmin(truth(grid, size, step).mean(axis=1))]


def test_the_optimum_moves_towards_that_of_the_scale(scaled: tuple[FitResult, LawAtScale]) -> None:
    base, there = scaled

    def regret(r_M: np.ndarray) -> float:
        best_M = true_optimum(TARGET_SIZE, 1500)
        pair = truth(np.stack([r_M, best_M]), TARGET_SIZE, 1500).mean(axis=1)
        return float(pair[0] - pair[1])

    assert regret(optimum(there.fit)) < 0.5 * regret(optimum(base))


def test_intervals_of_losses_hold_the_truth_at_the_scale(
    scaled: tuple[FitResult, LawAtScale],
) -> None:
    _, there = scaled
    r_RM = np.random.default_rng(5).dirichlet(np.ones(3), size=40) * 0.7 + 0.1
    mixtures = [Mixture.from_array(NAMES, r_M) for r_M in r_RM]
    found = predict_losses(there.fit, mixtures)
    loss_RT = truth(r_RM, TARGET_SIZE, 1500)
    inside = (found.low_RK <= loss_RT) & (loss_RT <= found.high_RK)
    assert inside.mean() > 0.85


def test_the_levels_error_widens_losses_but_moves_no_draw(
    scaled: tuple[FitResult, LawAtScale],
) -> None:
    _, there = scaled
    fit = there.fit
    assert fit.level_draws_BT is not None
    assert np.all(fit.level_draws_BT.std(axis=0) > 0)
    drawn_BT = fit.draw_losses(fit.table.r_RM).mean(axis=1)
    off = drawn_BT - fit.losses(fit.table.r_RM).mean(axis=0)
    assert np.all(off.std(axis=0) < fit.level_draws_BT.std(axis=0))


def test_curves_at_the_scale_end_at_its_losses(scaled: tuple[FitResult, LawAtScale]) -> None:
    _, there = scaled
    assert there.losses.steps[-1] == 1500
    np.testing.assert_allclose(there.losses.y_SRT[-1], there.fit.table.y_RT)
    assert np.all(np.diff(there.losses.y_SRT, axis=0) < 0)


def test_the_runs_own_scale_needs_no_curves() -> None:
    runs, observations = make_tables(0.0)
    own = locate_scale(Scale(params=SIZES[-1], tokens=1000 * 2000.0), runs, observations)
    assert own == ScalePoint(params=SIZES[-1], step=1000.0, is_beyond=False)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (Scale(params=7e9, tokens=2e6), "beyond the runs"),
        (Scale(params=1.6e6, tokens=1e12), "beyond the runs"),
    ],
)
def test_a_scale_too_far_away_is_refused(scale: Scale, expected: str) -> None:
    with pytest.raises(FitError, match=expected):
        locate_scale(scale, *make_tables(0.0))


def test_another_size_needs_runs_of_several_sizes() -> None:
    runs, observations = make_tables(0.0)
    one = runs.filter(pl.col("params_non_embedding") == SIZES[0])
    with pytest.raises(FitError, match="at least 2 model sizes"):
        locate_scale(
            Scale(params=4e5, tokens=2e6), one, observations.join(one, on="run_id", how="semi")
        )


def test_another_length_needs_runs_at_several_steps() -> None:
    runs, observations = make_tables(0.0)
    last = observations.filter(pl.col("step") == 1000)
    with pytest.raises(FitError, match="at least 3 steps"):
        locate_scale(Scale(params=1.6e6, tokens=4e6), runs, last)


def test_a_token_count_that_is_not_known_is_said() -> None:
    runs, observations = make_tables(0.0)
    with pytest.raises(FitError, match="tokens per step"):
        locate_scale(
            Scale(tokens=4e6),
            runs.with_columns(pl.lit(None).alias("tokens_per_step")),
            observations.with_columns(pl.lit(None).cast(pl.Float64).alias("tokens")),
        )


# ---------------------------------------------------------------- in a study


def imported_question(scale: str, extra: str = "") -> tuple[Question, pl.DataFrame, pl.DataFrame]:
    """Returns a question about the runs above, as if they were imported."""
    runs, observations = make_tables(0.002)
    runs = check_runs(runs.with_columns(pl.lit("imported").alias("role")))
    observations = check_observations(
        observations.with_columns(pl.lit("nats_per_token").alias("unit"))
    )
    values = tomllib.loads(scale + extra)
    region = ImportedRegion.of([(runs, observations)])
    config = parse_config(values, where="test")
    return Question.of(config, None, region), runs, observations


DOMAINS = "".join(
    f'[[domains]]\nname = "{name}"\navailable_tokens = {supply}\nmax_epochs = 20\n'
    for name, supply in zip(NAMES, (4e5, 1.0e6, 3e5), strict=True)
)


def test_a_study_answers_at_its_scale_where_the_runs_lead_there() -> None:
    question, runs, observations = imported_question("[scale]\nparams = 6.4e6\ntokens = 3e6\n")
    fit = fit_law("m4", runs, observations, num_draws=20)
    found = fit_at_question(fit, runs, observations, question)
    assert not found.is_extrapolated
    assert found.fit.table.step == 1500
    assert found.sentences == (
        "the law is fitted to losses at 6.4e+06 parameters and step 1500, to which each mixture's"
        " own curve was followed",
    )


def test_a_study_keeps_its_law_and_says_why_where_they_do_not() -> None:
    question, runs, observations = imported_question("[scale]\nparams = 7e9\ntokens = 1e12\n")
    fit = fit_law("m4", runs, observations, num_draws=2)
    found = fit_at_question(fit, runs, observations, question)
    assert found.is_extrapolated
    assert found.fit is fit
    assert found.sentences[0].startswith("the law is that of the runs' own scale: 7e+09 parameters")


def test_a_study_without_a_scale_has_its_fit_unchanged() -> None:
    question, runs, observations = imported_question("")
    fit = fit_law("m4", runs, observations, num_draws=2)
    found = fit_at_question(fit, runs, observations, question)
    assert found.fit is fit
    assert found.sentences == ()


def test_repetition_enters_the_law_where_mixtures_may_repeat() -> None:
    question, runs, observations = imported_question(
        "[scale]\nparams = 1.6e6\ntokens = 2e6\n", DOMAINS + '[repetition]\nlaw = "muennighoff"\n'
    )
    fit = fit_law("m4", runs, observations, num_draws=4)
    found = fit_at_question(fit, runs, observations, question)
    assert isinstance(found.fit.law, RepeatedLaw)
    assert found.fit.law.supply == (4e5, 1.0e6, 3e5)
    assert "R* = 15.388" in found.sentences[0]
    # The runs repeat what the run of the scale does: its residuals are theirs.
    np.testing.assert_allclose(found.fit.table.r_RM, fit.table.r_RM, atol=1e-6)


def test_repetition_of_plenty_changes_nothing() -> None:
    plenty = DOMAINS.replace("max_epochs = 20", "max_epochs = 1")
    for supply in ("400000.0", "1000000.0", "300000.0"):
        plenty = plenty.replace(supply, "9e6")
    question, runs, observations = imported_question(
        "[scale]\nparams = 1.6e6\ntokens = 2e6\n", plenty + '[repetition]\nlaw = "muennighoff"\n'
    )
    fit = fit_law("m4", runs, observations, num_draws=2)
    found = fit_at_question(fit, runs, observations, question)
    assert found.fit is fit
    assert found.sentences == (
        "neither the runs nor any allowed mixture repeat a domain: repetition changes nothing",
    )


def test_runs_that_repeat_are_told_of_where_the_target_does_not() -> None:
    # The runs saw some domain more than once, the run of the scale can't: its shares are fresh.
    question, runs, observations = imported_question(
        "[scale]\nparams = 1.6e6\ntokens = 1e6\n",
        DOMAINS.replace("max_epochs = 20", "max_epochs = 1")
        + '[repetition]\nlaw = "muennighoff"\n',
    )
    fit = fit_law("m4", runs, observations, num_draws=2)
    found = fit_at_question(fit, runs, observations, question)
    assert found.fit is not fit
    assert "R* = 15.388" in " ".join(found.sentences)
    assert "changes nothing" not in " ".join(found.sentences)


def test_a_studys_predictions_are_those_of_the_run_that_its_optimum_is_for(tmp_path: Path) -> None:
    runs, observations = make_tables(0.002)
    runs = runs.drop("role", "mixture_id", "seed")
    runs.rename({"run_id": "run"}).write_csv(tmp_path / "runs.csv")
    wide = observations.pivot("target", index=["run_id", "step", "tokens"], values="value")
    wide.rename({"run_id": "run", "one": "loss/one", "two": "loss/two"}).write_csv(
        tmp_path / "losses.csv"
    )
    study = Study.for_import(tmp_path / "study")
    study.import_tables(
        tmp_path / "runs.csv", tmp_path / "losses.csv", key="run", proportions="r:{domain}",
        losses="loss/{target}",
    )  # fmt: skip
    file = tmp_path / "study" / "mixlaw.toml"
    text = file.read_text().replace('law = "select"', 'law = "m4"')
    file.write_text(text + "\n[scale]\ntokens = 3e6\nparams = 6.4e6\n")
    study = Study.open(tmp_path / "study")
    best = study.optimize()
    predicted = study.predict([best.mixture])
    assert any("followed" in note for note in predicted.notes)
    assert predicted.value_RK[0, -1] == pytest.approx(best.loss, abs=1e-9)
    for target, (value, low, high) in best.target_losses.items():
        column = predicted.columns.index(target)
        found = predicted.value_RK[0, column], predicted.low_RK[0, column]
        assert found == pytest.approx((value, low), abs=1e-9)
        assert predicted.high_RK[0, column] == pytest.approx(high, abs=1e-9)


def test_tokens_saved_are_the_target_tokenizers() -> None:
    runs, observations = make_tables(0.002)
    runs, observations = check_runs(runs), check_observations(observations)
    fit = fit_law("m4", runs, observations, num_draws=20)
    scaled = ScaledFit(
        fit=fit, curve_fit=fit, losses=None, effective=None, sentences=(), is_extrapolated=False
    )
    best = optimize_mixture(
        fit,
        WeightedLoss({"one": 1.0}),
        CappedSimplex.of(NAMES),
        baselines={"uniform": Mixture.uniform(NAMES)},
        with_details=False,
    )
    theirs, ours = (
        savings_of(best, scaled, runs, observations, params=1e6, token_factor=factor)["uniform"]
        for factor in (0.25, 1.0)
    )
    assert ours.tokens_saved is not None
    assert ours.flops_saved is not None
    assert theirs.steps_saved == ours.steps_saved
    assert theirs.tokens_saved == pytest.approx(0.25 * ours.tokens_saved)
    assert theirs.flops_saved == pytest.approx(0.25 * ours.flops_saved)
