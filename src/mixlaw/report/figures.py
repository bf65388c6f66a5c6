"""Canvas and axes of the report's figures; the one module that imports Matplotlib.

A figure is as wide as a phone and its letters as large as the page's: it is shown at its own size
or somewhat larger, never much smaller.
"""

import math
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any, Literal

import matplotlib.style
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from mixlaw.report.numbers import MINUS, format_count
from mixlaw.report.palette import GRID, INK, MUTED, SURFACE, MixtureStyle, shorten_name
from mixlaw.report.svg import inline_svg

WIDTH = 360
"""Usual width of a figure, in CSS pixels."""
_STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.solid_capstyle": "round",
    "text.parse_math": False,  # a domain may be called $x$
    "svg.fonttype": "none",
    "svg.hashsalt": "mixlaw",
}


@contextmanager
def drawing(height: float, width: float = WIDTH) -> Generator[tuple[Figure, Axes]]:
    """Gives a figure of a height and width in CSS pixels, and its axes.

    The user's own Matplotlib settings stay out, and names may hold letters that no font has.
    """
    with (
        matplotlib.style.context(["default", _STYLE]),
        warnings.catch_warnings(),
        np.errstate(all="ignore"),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support .*")
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
        axes = figure.subplots()
        axes.tick_params(length=3, width=0.8)
        yield figure, axes


def finish(figure: Figure, *, key: str, title: str, description: str) -> str:
    """Returns a figure, inside its `drawing`, as an SVG element."""
    file = StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return inline_svg(file.getvalue(), key=key, title=title, description=description)


def plot_marks(
    axes: Axes, x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], style: MixtureStyle
) -> None:
    """Draws hollow marks in the look of a mixture."""
    axes.plot(
        x,
        y,
        style.marker,
        color=style.colour,
        markerfacecolor=SURFACE,
        markeredgewidth=1.6,
        markersize=6.5,
        clip_on=False,
    )


def find_limits(values: Sequence[float]) -> tuple[float, float]:
    """Returns the range of the finite values, with a margin."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def set_named_rows(axes: Axes, names: Sequence[str]) -> None:
    """Makes the vertical axis one of named rows, the first on top."""
    words = [shorten_name(name) for name in names]
    axes.yaxis.set_major_locator(FixedLocator(list(range(len(words)))))
    axes.yaxis.set_major_formatter(_formatter(lambda value: words[round(value)]))
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


def set_plain_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """Gives an axis a few round ticks."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(4 if which == "x" else 5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(_formatter(lambda value: f"{value:.6g}".replace("-", MINUS)))


def set_step_axis(axes: Axes, first: int, last: int) -> None:
    """Makes the horizontal axis one of steps, with a tick at the last one and at each half."""
    axes.set_xscale("log")
    axes.set_xlim(first / 1.06, last * 1.06)
    ticks = [float(last)]
    while ticks[-1] / 2 >= first * 0.98 and len(ticks) < 6:
        ticks.append(ticks[-1] / 2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(_formatter(lambda value: format_count(round(value))))


def _formatter(words: Callable[[float], str]) -> FuncFormatter:
    def format_tick(value: float, _place: int | None) -> str:
        return words(value)

    return FuncFormatter(format_tick)
