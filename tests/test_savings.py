"""Steps, tokens and FLOPs that a gain saves: planted curves, and the measured definition."""

import re

import numpy as np
import polars as pl
import pytest

from mixlaw.fit import fit_law
from mixlaw.mixtures import Mixture
from mixlaw.optimize.savings import predict_savings
from mixlaw.optimize.step_curves import StepCurve, predict_step_curves, read_step_losses
from mixlaw.verify import first_step_below

STEPS = (100, 200, 400, 800, 1000)


def curve(
    level: float, exponent: float = 0.4, steps: tuple[int, ...] = STEPS, draws: int = 30
) -> StepCurve:
    """Returns level + 3 s^-exponent, with draws that differ in how steep they are."""
    step_S = np.array(steps, dtype=float)
    loss_S = level + 3 * step_S**-exponent
    steep_B = np.random.default_rng(0).normal(1, 0.05, draws)
    return StepCurve(
        steps=steps,
        loss_S=loss_S,
        draws_BS=level + 3 * steep_B[:, None] * step_S**-exponent,
        tokens_per_step=2000.0,
    )


def gain_of(step: float, exponent: float = 0.4) -> float:
    """Returns how far the curve lies above its end at a step."""
    return 3 * (step**-exponent - STEPS[-1] ** -exponent)


def test_steps_saved_are_those_of_the_planted_curve() -> None:
    gain = gain_of(600.0)
    saved = predict_savings((gain, gain, gain), curve(1.0), baseline="today", params=5e4)
    assert saved.steps_to_match == pytest.approx(600.0, rel=1e-3)
    assert saved.steps_saved == pytest.approx(400.0, rel=3e-3)
    assert saved.tokens_saved == pytest.approx(400 * 2000, rel=3e-3)
    assert saved.flops_saved == pytest.approx(6 * 5e4 * 400 * 2000, rel=3e-3)


def test_the_baseline_would_train_longer_by_its_own_curve() -> None:
    # 3 (1000^-.4 - s^-.4) = gain has the solution s = 1500.
    gain = 3 * (1000**-0.4 - 1500**-0.4)
    saved = predict_savings((gain, gain, gain), curve(1.0), baseline="today")
    assert saved.longer == pytest.approx(1.5, rel=5e-3)
    assert saved.longer_low is not None
    assert saved.longer_low <= 1.5
    assert saved.longer_high is not None
    assert saved.longer_high >= 1.5


def test_a_surer_gain_has_a_narrower_interval() -> None:
    gain = gain_of(600.0)
    wide, narrow = (
        predict_savings((gain, gain - half, gain + half), curve(1.0), baseline="today")
        for half in (gain / 2, gain / 10)
    )
    assert wide.low is not None
    assert wide.high is not None
    assert narrow.low is not None
    assert narrow.high is not None
    assert narrow.high - narrow.low < wide.high - wide.low
    assert wide.low < 400 < wide.high


def test_a_gain_that_may_be_none_has_no_lower_limit() -> None:
    gain = gain_of(900.0)
    saved = predict_savings((gain, -gain, 3 * gain), curve(1.0), baseline="today")
    assert saved.low is None
    assert saved.note is not None
    assert "may save nothing" in saved.note


def test_one_step_says_why_nothing_is_known() -> None:
    one = curve(1.0, steps=(1000,))
    saved = predict_savings((0.1, 0.05, 0.15), one, baseline="today")
    assert saved.steps_saved is None
    assert saved.sentence() == (
        "the steps saved are not known: the runs were observed at one step only"
    )


def test_a_gain_beyond_the_first_step_is_not_extrapolated() -> None:
    saved = predict_savings((5.0, 4.0, 6.0), curve(1.0), baseline="today")
    assert saved.steps_saved is None
    assert saved.note is not None
    assert "at least 900 of 1000 steps are saved" in saved.note


def test_what_is_saved_at_least_has_its_own_error() -> None:
    gain = gain_of(90.0)
    sure = predict_savings((gain, gain, gain), curve(1.0), baseline="today")
    assert sure.note is not None
    told = re.search(r"at least 900 of 1000 steps are saved \((\d+) with 90%\)", sure.note)
    assert told is not None
    assert 850 < int(told[1]) <= 900
    unsure = predict_savings((gain, -gain, 3 * gain), curve(1.0), baseline="today")
    assert unsure.note is not None
    assert "(that it saves nothing is within the error)" in unsure.note


def test_a_loss_saves_nothing() -> None:
    saved = predict_savings((-0.1, -0.2, -0.05), curve(1.0), baseline="today")
    assert saved.steps_saved is None
    assert "nothing is saved" in saved.sentence()


def test_the_sentence_gives_share_tokens_and_flops() -> None:
    gain = gain_of(600.0)
    saved = predict_savings((gain, gain * 0.8, gain * 1.2), curve(1.0), baseline="b", params=5e4)
    assert saved.sentence().startswith("reaches the baseline's loss after 0.60 of its steps (0.")
    assert "800k tokens and 2.4e+11 FLOPs saved" in saved.sentence()


def planted_tables(noise: float = 0.001) -> tuple[pl.DataFrame, pl.DataFrame, np.ndarray]:
    """Returns runs of L = c + exp(t . r) s^-0.4 at five steps."""
    rng = np.random.default_rng(3)
    r_RM = rng.dirichlet(np.ones(3), size=16) * 0.85 + 0.05
    t_M = np.array([1.2, 0.6, 0.1])
    runs = pl.DataFrame(
        {
            "run_id": [f"r{i}" for i in range(16)],
            "role": ["design"] * 16,
            "tokens_per_step": [2000.0] * 16,
            "seed": list(range(16)),
            **{f"r:d{j}": r_RM[:, j] for j in range(3)},
        }
    )
    rows = [
        (f"r{i}", step, step * 2000.0, "loss", 1.0 + np.exp(r_RM[i] @ t_M) * step**-0.4
         + noise * rng.standard_normal())
        for i in range(16) for step in STEPS
    ]  # fmt: skip
    names = ["run_id", "step", "tokens", "target", "value"]
    return runs, pl.DataFrame(rows, schema=names, orient="row"), t_M


def test_predicted_steps_are_those_that_runs_of_the_truth_would_measure() -> None:
    runs, observations, t_M = planted_tables()
    fit = fit_law("m4", runs, observations, num_draws=4)
    best, today = (Mixture.of({"d0": a, "d1": b, "d2": c}) for a, b, c in (
        (0.1, 0.2, 0.7), (0.4, 0.3, 0.3)))  # fmt: skip
    curves = predict_step_curves(
        fit,
        read_step_losses(fit, runs, observations),
        {"best": best, "today": today},
        {"loss": 1.0},
    )
    gain = float(curves["today"].loss_S[-1] - curves["best"].loss_S[-1])
    saved = predict_savings((gain, gain * 0.95, gain * 1.05), curves["best"], baseline="today")
    steps = range(50, 1001)
    truth = {
        name: [1.0 + np.exp(mixture.array() @ t_M) * step**-0.4 for step in steps]
        for name, mixture in (("best", best), ("today", today))
    }
    measured = first_step_below(steps, truth["best"], truth["today"][-1])
    assert measured is not None
    assert saved.steps_to_match == pytest.approx(measured, rel=0.03)
    assert saved.low is not None
    assert saved.high is not None
    assert saved.low <= 1000 - measured <= saved.high


def test_a_step_that_few_runs_reached_is_left_out() -> None:
    runs, observations, _ = planted_tables()
    few = observations.filter((pl.col("step") != 200) | pl.col("run_id").is_in(["r0", "r1"]))
    fit = fit_law("m4", runs, few, num_draws=2)
    assert read_step_losses(fit, runs, few).steps == (100, 400, 800, 1000)
