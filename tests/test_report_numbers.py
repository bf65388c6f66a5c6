"""Numbers of the report: the digits that an error bar supports, and no more."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlaw.report.numbers import (
    MINUS,
    count_words,
    format_count,
    format_error,
    format_interval,
    format_number,
    format_percent,
    format_seconds,
    format_share,
    format_with_error,
    join_words,
    supported_decimals,
)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        # Review of Particle Physics, introduction, 5.3: 0.827 +- 0.119 is given as 0.83 +- 0.12,
        # 0.827 +- 0.367 as 0.8 +- 0.4.
        (0.827, 0.119, "0.83 ± 0.12"),
        (0.827, 0.367, "0.8 ± 0.4"),
        (2.13456, 0.0123, "2.135 ± 0.012"),
        (-0.00004, 0.012, "0.000 ± 0.012"),
        (-0.5, 0.02, f"{MINUS}0.500 ± 0.020"),
        (12345.6, 300.0, "12346 ± 300"),
        (2.13456, math.nan, "2.13"),
        (2.13456, 0.0, "2.13"),
        (2.13456, math.inf, "2.13"),
        (math.nan, 0.1, "unknown ± 0.10"),
    ],
)
def test_value_has_the_digits_of_its_error(value: float, error: float, text: str) -> None:
    assert format_with_error(value, error) == text


@given(
    st.floats(min_value=-1e3, max_value=1e3),
    st.floats(min_value=1e-6, max_value=1e2),
)
def test_last_digit_shown_is_between_a_twentieth_and_three_errors(
    value: float, error: float
) -> None:
    decimals = supported_decimals(error)
    assert decimals is not None
    shown = float(format_number(value, error).replace(MINUS, "-"))
    assert abs(shown - value) <= 0.5001 * 10.0**-decimals
    if decimals > 0:
        assert 10.0**-decimals >= error / 36  # two digits at most
        assert 10.0**-decimals <= 1.001 * error


def test_interval_has_the_digits_of_half_its_width() -> None:
    assert format_interval(0.1512, 0.2688) == "0.15 to 0.27"
    assert format_interval(-0.0123, 0.0049) == f"{MINUS}0.012 to 0.005"


def test_interval_without_a_limit_says_so() -> None:
    assert format_interval(-math.inf, math.inf) == "no limits known"
    assert format_interval(math.nan, 1.0) == "below 1.00"
    assert format_interval(0.5, math.inf) == "above 0.500"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (500, "500"),
        (49_152, "49.2k"),
        (999_600, "1M"),
        (1_024_000, "1.02M"),
        (7e9, "7B"),
        (1e12, "1T"),
        (4.2e15, "4200T"),
    ],
)
def test_counts_have_three_digits_and_a_unit(count: float, text: str) -> None:
    assert format_count(count) == text


def test_small_shares_are_not_rounded_to_nothing() -> None:
    assert [format_share(s) for s in (0, 0.0033, 0.04, 0.41234, 1, 1e-6)] == [
        "0", "0.003", "0.04", "0.41", "1.00", "<0.0001",
    ]  # fmt: skip


def test_percent_follows_its_error() -> None:
    assert format_percent(0.0843, 0.009) == "8.4%"
    assert format_percent(0.0843) == "8.4%"
    assert format_percent(0.843) == "84%"
    assert format_percent(-0.02, 0.05) == f"{MINUS}2%"
    assert format_percent(math.nan) == "unknown"


def test_mean_error_has_the_digits_of_its_count() -> None:
    assert format_error(0.00442, 8) == "0.0044"
    assert format_error(0.00442, 100_000) == "0.004420"
    assert format_error(0.0, 8) == "0.00"


def test_words() -> None:
    assert [format_seconds(s) for s in (0.44, 83, 720, 12_600)] == [
        "0.4 s", "83 s", "12 min", "3.5 h",
    ]  # fmt: skip
    assert join_words(["a"]) == "a"
    assert join_words(["a", "b", "c"]) == "a, b and c"
    assert join_words([]) == ""
    assert count_words(1, "run was", "runs were") == "1 run was"
