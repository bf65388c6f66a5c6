"""Tables of numbers as plain text."""

import math
from collections.abc import Iterable, Sequence


def show_number(value: float) -> str:
    """Returns an error with three digits, or `-` where it is not known."""
    if not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    return f"{value:.1e}" if size < -6 else f"{value:.{max(2 - size, 0)}f}"


def align_columns(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table: the first column to the left, numbers to the right."""
    lines = [tuple(columns), *(tuple(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
