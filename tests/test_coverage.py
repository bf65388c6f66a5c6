"""The simulated studies of the coverage benchmark, and the intervals that they judge."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mixlaw.fit import FitResult, fit_law
from mixlaw.laws.library import MIXING_LAWS
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.optimize import WeightedLoss, optimize_mixture
from mixlaw.optimize.misfit import measure_misfit
from simulated import ExponentialTruth, Noise, make_tables, sample_proportions, simulate_study

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import coverage_judge
import coverage_summary
import coverage_truths
from coverage_studies import LAYOUTS, make_question, true_objective

ALL_FAMILIES = (*coverage_truths.FITTED, *coverage_truths.NOT_FITTED)
QUIET = Noise(offset_sd=0.0, own_sd=1e-6)


def sample(num_domains: int = 4, count: int = 60) -> np.ndarray:
    return sample_proportions(np.random.default_rng(0), count, num_domains, 0.02)


def drawn_truth(family: str, seed: int = 0) -> coverage_truths.ScaledTruth:
    rng = np.random.default_rng(seed)
    return coverage_truths.scaled_truth(rng, family, 4, 1, sample())


def fitted(seed: int = 3, *, noise: Noise, num_repeated: int = 2) -> FitResult:
    study = simulate_study(seed, noise=noise, num_repeated=num_repeated)
    return fit_law("m4", study.runs, study.observations, num_draws=30)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_losses_of_every_truth_are_finite_and_spread_as_those_of_runs(family: str) -> None:
    truth = drawn_truth(family)
    loss_RT = truth(sample())
    assert loss_RT.shape == (60, 5)
    assert np.all((loss_RT > 1.4) & (loss_RT < 10))
    assert np.all((loss_RT.std(axis=0) > 0.02) & (loss_RT.std(axis=0) < 0.6))
    assert np.all(np.isfinite(truth(np.eye(4))))


@pytest.mark.parametrize("family", coverage_truths.FITTED)
def test_a_fitted_truth_is_followed_by_its_own_law(family: str) -> None:
    r_RM = sample(count=30)
    loss_RT = drawn_truth(family)(r_RM)[:, :3]
    runs, observations = make_tables([f"d{j}" for j in range(4)], ["a", "b", "c"], r_RM, loss_RT)
    fit = fit_law(family, runs, observations, num_draws=1)
    left_out = np.sqrt(np.mean(fit.left_out_residual_RT**2, axis=0)) / loss_RT.std(axis=0)
    assert np.median(left_out) < 0.02


@pytest.mark.parametrize("family", coverage_truths.NOT_FITTED)
def test_no_default_law_follows_a_truth_that_is_not_fitted(family: str) -> None:
    r_RM = sample(count=30)
    loss_RT = drawn_truth(family)(r_RM)[:, :2]
    runs, observations = make_tables([f"d{j}" for j in range(4)], ["a", "b"], r_RM, loss_RT)
    for law in ("m4", "power-reciprocal-shared"):
        fit = fit_law(law, runs, observations, num_draws=1)
        left_out = np.sqrt(np.mean(fit.left_out_residual_RT**2, axis=0)) / loss_RT.std(axis=0)
        assert np.max(left_out) > 0.01, law


def test_the_true_optimum_is_not_beaten_by_any_allowed_mixture_that_is_tried() -> None:
    for half in coverage_summary.HALVES:
        for layout in LAYOUTS:
            question = make_question(5, half=half, layout=layout)
            floor_M = question.allowed.floor_M
            tried_RM = floor_M + (1 - floor_M.sum()) * np.random.default_rng(9).dirichlet(
                np.full(len(floor_M), 0.8), size=1000
            )
            best_M = question.baselines["true optimum"].array(question.study.domains)
            losses_R = true_objective(question.study, question.objective, tried_RM)
            best = true_objective(question.study, question.objective, best_M[None])[0]
            assert best <= losses_R.min() + 1e-6
            assert question.allowed.contains(best_M, 1e-9)


def test_a_study_is_the_same_every_time() -> None:
    one, two = (make_question(7, half="other", layout="sparse") for _ in range(2))
    assert one.study.observations.equals(two.study.observations)
    assert one.baselines == two.baselines
    assert one.objective == two.objective


def test_no_noise_and_the_true_law_leave_no_misfit() -> None:
    fit = fitted(noise=QUIET)
    misfit = measure_misfit(fit, np.full(len(fit.targets), 1 / len(fit.targets)))
    assert misfit.variance < (0.01 * np.std(fit.table.y_RT)) ** 2


def test_noise_that_repeated_runs_know_is_no_misfit() -> None:
    """Where the law is right, most of what runs lie off it is the noise that repeats show."""
    shares = []
    for seed in range(2):
        fit = fitted(seed, noise=Noise(offset_sd=0.02, own_sd=0.02), num_repeated=4)
        weight_T = np.full(len(fit.targets), 1 / len(fit.targets))
        unknown = replace(fit, replicate_freedom=0)
        shares.append(
            measure_misfit(fit, weight_T).variance / measure_misfit(unknown, weight_T).variance
        )
    assert np.mean(shares) < 0.5


def test_the_misfit_of_a_wrong_law_is_found() -> None:
    """The linear law on exponential losses: most of its residuals is misfit, in the right size."""
    study = simulate_study(4, noise=QUIET)
    fit = fit_law("linear", study.runs, study.observations, num_draws=1)
    r_RM = sample_proportions(np.random.default_rng(1), 400, 5, 0.04)
    error_T = np.sqrt(np.mean((fit.losses(r_RM) - study.truth(r_RM)) ** 2, axis=0))
    found_T = [
        math.sqrt(np.mean(measure_misfit(fit, row_T).variances(r_RM)))
        for row_T in np.eye(len(fit.targets))
    ]
    assert 0.5 < np.mean(found_T) / np.mean(error_T) < 2


def test_two_mixtures_closer_than_the_runs_share_a_part_of_their_misfit() -> None:
    fit = fitted(noise=Noise())
    misfit = measure_misfit(fit, np.full(len(fit.targets), 1 / len(fit.targets)))
    one_M, other_M = fit.table.r_RM[0], fit.table.r_RM[1]
    apart = [misfit.difference_sd(one_M, one_M + s * (other_M - one_M)) for s in (0, 0.05, 0.2, 1)]
    assert apart[0] == 0
    assert apart == sorted(apart)
    assert apart[3] == pytest.approx(
        math.sqrt(np.sum(misfit.variances(np.stack([one_M, other_M])))), rel=1e-12
    )


def test_what_the_shared_seed_does_to_all_mixtures_moves_the_loss_but_not_the_gain() -> None:
    study = simulate_study(6)
    moved = study.observations.with_columns(pl.col("value") + 0.05)
    objective = WeightedLoss({"d0": 0.5, "d2": 0.5})
    allowed = CappedSimplex.of(study.domains, floors=0.04)
    uniform = {"uniform": Mixture.uniform(study.domains)}
    one, two = (
        optimize_mixture(
            fit_law("m4", study.runs, rows, num_draws=30), objective, allowed,
            baselines=uniform, with_details=False,
        )
        for rows in (study.observations, moved)
    )  # fmt: skip
    assert two.loss_low - one.loss_low == pytest.approx(0.05, abs=1e-4)
    assert two.gains[0].low == pytest.approx(one.gains[0].low, abs=1e-4)
    assert two.gains[0].high == pytest.approx(one.gains[0].high, abs=1e-4)


def test_the_loss_of_an_optimum_is_corrected_upwards_for_having_been_chosen() -> None:
    """Much noise, few runs, many domains: what the law promises of its choice is too little."""
    shifts = []
    for seed in range(2):
        study = simulate_study(
            60 + seed, num_domains=7, num_mixtures=12, noise=Noise(offset_sd=0.0, own_sd=0.1)
        )
        fit = fit_law("m4", study.runs, study.observations, num_draws=25)
        best = optimize_mixture(
            fit, WeightedLoss(dict.fromkeys(study.targets, 1.0)),
            CappedSimplex.of(study.domains, floors=0.04), with_details=False,
        )  # fmt: skip
        shifts.append((best.loss_low + best.loss_high) / 2 - best.loss)
    assert np.mean(shifts) > 0


def test_the_probability_of_a_run_inside_is_that_of_many_runs() -> None:
    question = make_question(11, half="fitted", layout="demo")
    study = question.study
    fit = fit_law("m4", study.runs, study.observations, num_draws=20)
    best = optimize_mixture(fit, question.objective, question.allowed, with_details=False)
    true = float(
        true_objective(study, question.objective, best.mixture.array(study.domains)[None])[0]
    )
    sd = math.hypot(study.noise.offset_sd, study.noise.own_sd) * math.sqrt(
        sum(share**2 for share in question.objective.shares.values())
    )
    best = replace(best, loss_low=true - 0.8 * sd, loss_high=true + 1.5 * sd)
    judged = coverage_judge.judge_loss(question, best)
    run_N = np.random.default_rng(2).normal(true, sd, 400_000)
    low, high = best.loss_low, best.loss_high
    assert judged["inside"] == pytest.approx(np.mean((run_N > low) & (run_N < high)), abs=3e-3)
    missed = np.maximum(low - run_N, 0) + np.maximum(run_N - high, 0)
    assert judged["score"] == pytest.approx(high - low + 20 * np.mean(missed), rel=0.02)


def test_studies_that_were_judged_are_not_judged_again(tmp_path: Path) -> None:
    kept = {"layout": "demo", "half": "fitted", "number": 3, "marked": True}
    (tmp_path / "studies.jsonl").write_text('{"layout": "demo", "ha\n' + json.dumps(kept) + "\n")
    assert coverage_summary.judge_all([("demo", "fitted", 3)], tmp_path, 1) == [kept]


def test_every_family_is_in_one_half_and_fitted_ones_are_laws() -> None:
    assert not set(coverage_truths.FITTED) & set(coverage_truths.NOT_FITTED)
    assert set(coverage_truths.FITTED) <= set(MIXING_LAWS)
    truth = ExponentialTruth(c_T=np.ones(1), t_TM=-np.ones((1, 3)))
    assert truth(np.full((1, 3), 1 / 3))[0, 0] == pytest.approx(1 + np.exp(-1))


def test_losses_that_are_all_alike_are_no_evidence_of_a_gain() -> None:
    study = simulate_study(3, num_domains=3, num_mixtures=12, num_extra=0, num_heldout=0)
    alike = study.observations.with_columns(pl.lit(2.0).alias("value"))
    fit = fit_law("linear", study.runs, alike, num_draws=20)
    best = optimize_mixture(
        fit,
        WeightedLoss({fit.targets[0]: 1.0}),
        CappedSimplex.of(fit.domains),
        baselines={"uniform": Mixture.uniform(fit.domains)},
    )
    assert best.verdict == "no evidence"
