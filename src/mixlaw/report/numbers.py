"""Numbers as text: never more digits than the error bar supports."""

import math
from collections.abc import Sequence

MINUS = "\N{MINUS SIGN}"
_SUFFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def supported_decimals(error: float) -> int | None:
    """Returns how many decimals a standard error supports; None: it is no positive number.

    Two digits of the error while its first three lie below 355, else one: the rounding rule of the
    Particle Data Group (Review of Particle Physics, introduction, 5.3).
    """
    if not (math.isfinite(error) and error > 0):
        return None
    exponent = math.floor(math.log10(error))
    digits = 2 if error / 10.0**exponent < 3.55 else 1
    return min(max(digits - 1 - exponent, 0), 12)


def format_number(value: float, error: float = math.nan) -> str:
    """Returns a value with the digits that its error supports; three digits without an error."""
    if math.isnan(value):
        return "unknown"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    decimals = supported_decimals(error)
    if decimals is None:
        decimals = 2 if value == 0 else min(max(2 - math.floor(math.log10(abs(value))), 0), 12)
    text = f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def format_with_error(value: float, error: float) -> str:
    """Returns `value ± error`; the value alone when the error is not known."""
    if supported_decimals(error) is None:
        return format_number(value)
    return f"{format_number(value, error)} ± {format_number(error, error)}"


def format_error(mean: float, count: float) -> str:
    """Returns a mean absolute error or a standard deviation over `count` runs.

    Its own standard error is about 1 / sqrt(2 count) of it (exact for a normal sample's deviation).
    """
    return format_number(mean, mean / math.sqrt(2 * max(count, 1)))


def format_interval(low: float, high: float) -> str:
    """Returns `low to high`, with the digits that half the width supports."""
    if not (math.isfinite(low) and math.isfinite(high)):
        if math.isfinite(low):
            return f"above {format_number(low)}"
        if math.isfinite(high):
            return f"below {format_number(high)}"
        return "no limits known"
    error = interval_error(low, high)
    return f"{format_number(low, error)} to {format_number(high, error)}"


def interval_error(low: float, high: float) -> float:
    """Returns what decides the digits of a value with this interval; NaN: not known."""
    return (high - low) / 2 if math.isfinite(high - low) else math.nan


def format_share(share: float) -> str:
    """Returns a proportion: two decimals, or one digit where that would be nothing."""
    if share == 0 or share >= 0.00995:
        return f"{share:.2f}" if share else "0"
    return f"{share:.1g}" if share >= 1e-4 else "<0.0001"


def format_count(count: float) -> str:
    """Returns a number of tokens, parameters or steps: `500`, `1.02M`, `7B`."""
    for size, suffix in _SUFFIXES:
        value = count / size
        if value >= 0.9995:
            return (f"{value:.3g}" if value < 999.5 else f"{value:.0f}") + suffix
    return f"{count:.3g}"


def format_percent(share: float, error: float = math.nan) -> str:
    """Returns a share as percent; one digit after the point at most without an error."""
    if not math.isfinite(share):
        return "unknown"
    decimals = supported_decimals(100 * error)
    if decimals is None:
        decimals = 0 if abs(share) >= 0.1 else 1
    text = f"{100 * share:.{min(decimals, 2)}f}"
    return f"{text.lstrip('-') if float(text) == 0 else text}%".replace("-", MINUS)


def format_seconds(seconds: float) -> str:
    """Returns a duration: `0.4 s`, `83 s`, `12 min`, `3.5 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def join_words(words: Sequence[str]) -> str:
    """Returns `a`, `a and b` or `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def count_words(count: int, noun: str, plural: str | None = None) -> str:
    """Returns `1 run` or `2 runs`."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"
