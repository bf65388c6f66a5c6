"""Verification: who won, by how much, and how much sooner."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlaw.errors import StudyError
from mixlaw.mixtures import Mixture
from mixlaw.optimize import WeightedLoss
from mixlaw.predict import Prediction
from mixlaw.verify import Verification, compare_runs, first_step_below

BEST = Mixture.of({"a": 0.7, "b": 0.3})
BASE = Mixture.of({"a": 0.5, "b": 0.5})
STEPS = (10, 100, 1000)


def prediction(columns: tuple[str, ...], values: list[list[float]]) -> Prediction:
    value_RK = np.array(values)
    return Prediction(
        mixtures=(BEST, BASE),
        columns=columns,
        value_RK=value_RK,
        low_RK=value_RK - 0.05,
        high_RK=value_RK + 0.05,
        level=0.9,
        unit="nats_per_token",
        notes=(),
    )


def verify(best: list[list[float]], base: list[list[float]]) -> Verification:
    """Compares loss curves (seed by step) of the optimum and of a baseline."""
    run_rows, rows = [], []
    for mixture, curves in ((BEST, best), (BASE, base)):
        for seed, curve in enumerate(curves):
            run_id = f"{mixture.mixture_id}-{seed}"
            run_rows.append((run_id, mixture.mixture_id, "verify", seed))
            rows += [(run_id, step, "a", value) for step, value in zip(STEPS, curve, strict=True)]
    runs = pl.DataFrame(run_rows, schema=["run_id", "mixture_id", "role", "seed"], orient="row")
    observations = pl.DataFrame(rows, schema=["run_id", "step", "target", "value"], orient="row")
    return compare_runs(
        runs,
        observations,
        mixtures={"optimum": BEST, "proportional": BASE},
        objective=WeightedLoss({"a": 2.0}),
        predicted=prediction(("objective",), [[1.0], [1.2]]),
        predicted_targets=prediction(("a",), [[1.0], [1.2]]),
    )


def test_the_optimum_wins_when_paired_differences_are_clear() -> None:
    best = [[3.0, 1.5, 1.00], [3.1, 1.6, 1.10], [3.2, 1.7, 1.21]]
    base = [[3.0, 2.0, 1.20], [3.1, 2.1, 1.30], [3.2, 2.2, 1.40]]
    comparison = verify(best, base).comparisons[0]
    # differences 0.20, 0.20, 0.19: mean 0.19667, sd 0.0057735, t(0.95, 2) = 2.91999
    assert comparison.difference == pytest.approx(0.59 / 3)
    half = 2.91999 * 0.00577350 / math.sqrt(3)
    assert comparison.low == pytest.approx(0.59 / 3 - half, rel=1e-5)
    assert comparison.high == pytest.approx(0.59 / 3 + half, rel=1e-5)
    assert comparison.winner == "optimum"
    assert comparison.speedup is not None
    assert comparison.speedup > 1


def test_a_lost_comparison_names_the_baseline_and_has_no_speedup() -> None:
    best = [[3.0, 2.0, 1.20], [3.1, 2.1, 1.30], [3.2, 2.2, 1.40]]
    base = [[3.0, 1.5, 1.00], [3.1, 1.6, 1.10], [3.2, 1.7, 1.21]]
    comparison = verify(best, base).comparisons[0]
    assert comparison.winner == "proportional"
    assert comparison.steps_to_match == (None, None, None)
    assert comparison.speedup is None


def test_differences_within_the_noise_are_undecided() -> None:
    best = [[3.0, 1.5, 1.0], [3.0, 1.5, 1.3], [3.0, 1.5, 1.1]]
    base = [[3.0, 1.5, 1.1], [3.0, 1.5, 1.1], [3.0, 1.5, 1.2]]
    assert verify(best, base).comparisons[0].winner == "undecided"


def test_identical_mixtures_are_undecided() -> None:
    curves = [[3.0, 1.5, 1.0], [3.0, 1.5, 1.1], [3.0, 1.5, 1.2]]
    comparison = verify(curves, curves).comparisons[0]
    assert comparison.winner == "undecided"
    assert comparison.speedup == pytest.approx(1.0)


def test_measured_losses_inside_the_predicted_interval_are_counted() -> None:
    best = [[3.0, 1.5, 1.0], [3.0, 1.5, 1.04], [3.0, 1.5, 1.06]]
    verified = verify(best, best)
    assert verified.mixture("optimum").num_inside == 2
    assert verified.mixture("optimum").target_measured["a"] == (1.0, 1.04, 1.06)


def test_one_seed_decides_nothing() -> None:
    comparison = verify([[3.0, 1.5, 1.0]], [[3.0, 2.0, 1.9]]).comparisons[0]
    assert comparison.winner == "undecided"
    assert comparison.low == -math.inf


def test_a_mixture_without_runs_is_named() -> None:
    with pytest.raises(StudyError, match="the proportional mixture has no finished verification"):
        verify([[3.0, 1.5, 1.0]], [])


def test_the_step_that_matches_is_interpolated_in_the_logarithm() -> None:
    # half way in loss between steps 10 and 1000 is step 100
    assert first_step_below((10, 1000), (2.0, 1.0), 1.5) == pytest.approx(100.0)
    assert first_step_below((10, 1000), (2.0, 1.0), 0.9) is None
    assert first_step_below((10, 1000), (2.0, 1.0), 2.5) == 10.0


@given(
    st.lists(st.floats(0.5, 5.0), min_size=2, max_size=6),
    st.floats(0.5, 5.0),
)
def test_the_step_that_matches_lies_within_the_curve(losses: list[float], level: float) -> None:
    steps = tuple(2**i for i in range(len(losses)))
    found = first_step_below(steps, losses, level)
    if found is None:
        assert min(losses) > level
    else:
        assert steps[0] <= found <= steps[-1] * (1 + 1e-12)
