"""The report's figures, drawn from the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float

from mixlaw.observations import PROPORTION_PREFIX
from mixlaw.report.data import ReportData
from mixlaw.report.decision import comparisons
from mixlaw.report.evidence import LeftOut, held_out, left_out, most_helpful_domains
from mixlaw.report.figures import (
    Axes,
    drawing,
    find_limits,
    finish,
    plot_marks,
    set_named_rows,
    set_plain_axis,
    set_step_axis,
)
from mixlaw.report.numbers import format_interval, format_share
from mixlaw.report.palette import (
    INK,
    MUTED,
    SHARE_COLOURS,
    SURFACE,
    clean_name,
    mixture_label,
    mixture_styles,
)
from mixlaw.report.sentences import steps_sentence, unit_words
from mixlaw.report.tables import ranked_domains, ranked_targets
from mixlaw.verify import OPTIMUM, Verification, VerifiedMixture

PANELS = 12
"""Panels of a figure with one per target, at most."""
PANEL_WIDTH = 310
"""Width of a panel, in CSS pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """A figure, or one of several beside each other."""

    name: str
    """What it is of: a target, or nothing."""
    svg: str
    note: str = ""
    """What to know about this panel alone."""


def draw_mixture(data: ReportData) -> str:
    """Returns the optimum's share of each domain, its range, and the baselines'."""
    optimum, styles = data.optimum, mixture_styles(data)
    names = ranked_domains(data)
    rows = np.arange(len(names), dtype=float)
    share_M = optimum.mixture.array(names)
    best = styles[OPTIMUM]
    with drawing(70 + 26 * len(names)) as (figure, axes):
        axes.barh(rows, share_M, height=0.62, color=best.colour, alpha=0.35, linewidth=0)
        ranges = np.array([optimum.proportion_range[name] for name in names])
        axes.hlines(rows, ranges[:, 0], ranges[:, 1], color=best.colour, linewidth=2)
        if optimum.near_optimal is not None:
            limits = [optimum.near_optimal.shares[name] for name in names]
            near = np.array([(one.low, one.high) for one in limits])
            axes.hlines(rows, near[:, 0], near[:, 1], color=best.colour, linewidth=7, alpha=0.18)
            ranges = np.concatenate([ranges, near])
        axes.plot(share_M, rows, best.marker, color=best.colour, markersize=6.5)
        count = len(optimum.gains)
        for gain, shift in zip(optimum.gains, np.linspace(-0.2, 0.2, count), strict=True):
            marks = rows + (shift if count > 1 else 0.0)  # equal shares stay apart
            plot_marks(axes, gain.mixture.array(names), marks, styles[gain.baseline])
        shown = [*share_M, *ranges.flat, *(s for g in optimum.gains for s in g.mixture.values())]
        right = find_limits([0.0, *shown])[1]
        _draw_caps(axes, data, names, right)
        axes.set(xlim=(0, right), ylim=(len(names) - 0.4, -0.6), xlabel="share of training tokens")
        set_named_rows(axes, names)
        set_plain_axis(axes, "x")
        return finish(
            figure,
            key="mixture",
            title="Share of each domain in the optimum and in the baselines",
            description="; ".join(
                f"{clean_name(name)} {format_share(share)}"
                for name, share in zip(names, share_M, strict=True)
            ),
        )


def _draw_caps(axes: Axes, data: ReportData, names: Sequence[str], right: float) -> None:
    caps = {d.name: 1.0 if data.scale is None else d.cap(data.scale) for d in data.domains}
    for row, name in enumerate(names):
        if caps.get(name, 1.0) < min(1.0, right):
            axes.vlines(caps[name], row - 0.42, row + 0.42, color=INK, linewidth=2)


# -------------------------------------------------------------------------------- the test


def draw_measured(data: ReportData, verification: Verification) -> str:
    """Returns what was predicted for each verified mixture, and what its runs measured."""
    mixtures, styles = verification.mixtures, mixture_styles(data)
    shown = [v for m in mixtures for v in (*m.measured, m.predicted)]
    shown += [v for m in mixtures for v in (m.predicted_low, m.predicted_high)]
    limits = find_limits(shown)
    with drawing(70 + 52 * len(mixtures)) as (figure, axes):
        for row, mixture in enumerate(mixtures):
            style = styles[mixture.name]
            low, high = np.clip([mixture.predicted_low, mixture.predicted_high], *limits)
            axes.hlines(row + 0.16, low, high, color=style.colour, linewidth=9, alpha=0.3)
            axes.plot(mixture.predicted, row + 0.16, "|", color=style.colour, ms=13, mew=2.2)
            measured = np.array(mixture.measured)
            plot_marks(axes, measured, np.full(len(measured), row - 0.2), style)
        axes.set(xlim=limits, ylim=(len(mixtures) - 0.45, -0.6))
        axes.set_xlabel(f"objective, {unit_words(data)}")
        short = {OPTIMUM: "optimum", "reference": "yours"}
        set_named_rows(axes, [short.get(mixture.name, mixture.name) for mixture in mixtures])
        set_plain_axis(axes, "x")
        return finish(
            figure,
            key="measured",
            title="Predicted interval and measured losses of each verified mixture",
            description="; ".join(_measured_words(mixture) for mixture in mixtures),
        )


def _measured_words(mixture: VerifiedMixture) -> str:
    seeds = ", ".join(f"{value:.3f}" for value in mixture.measured)
    limits = format_interval(mixture.predicted_low, mixture.predicted_high)
    return f"{mixture_label(mixture.name)}: predicted {limits}, measured {seeds}"


def draw_race(data: ReportData, verification: Verification) -> str | None:
    """Returns the objective of the verified mixtures over the steps; None: one step only."""
    styles = mixture_styles(data)
    steps = [step for mixture in verification.mixtures for step in mixture.curve_steps]
    first, last = _first_step(steps), max(steps)
    if first is None:
        return None
    seen: list[float] = []
    with drawing(270) as (figure, axes):
        for mixture in verification.mixtures:
            style = styles[mixture.name]
            for curve in mixture.curve:
                points = zip(mixture.curve_steps, curve, strict=False)
                shown = np.array([point for point in points if point[0] >= first])
                axes.plot(*shown.T, color=style.colour, ls=style.dashes, lw=1.3, alpha=0.8)
                plot_marks(axes, shown[-1:, 0], shown[-1:, 1], style)
                seen += shown[:, 1].tolist()
        for found in verification.comparisons:
            level = verification.mixture(found.baseline).mean
            _draw_match(axes, found.steps_to_match, level, last, styles[found.baseline].colour)
        axes.set(ylim=find_limits(seen), xlabel="steps (each tick doubles)")
        axes.set_ylabel(f"objective, {unit_words(data)}")
        set_step_axis(axes, first, last)
        set_plain_axis(axes, "y")
        return finish(
            figure,
            key="race",
            title="Objective of the verified mixtures over training",
            description=" ".join(steps_sentence(found) for found in comparisons(data)),
        )


def _first_step(steps: Sequence[int]) -> int | None:
    """Returns where a race is shown from: its last three doublings, or all of a short one."""
    known = sorted({step for step in steps if step > 0})
    if len(known) < 2:
        return None
    late = [step for step in known if step >= known[-1] / 8]
    return late[0] if len(late) > 1 else known[0]


def _draw_match(
    axes: Axes, steps: Sequence[float | None], level: float, last: int, colour: str
) -> None:
    """Draws, from where the optimum is as good as a baseline's end, a line to that end."""
    reached = [step for step in steps if step is not None]
    if reached and len(reached) == len(steps):
        start = float(np.mean(reached))
        axes.plot([start, last], [level, level], color=colour, linewidth=1, linestyle=":")
        axes.plot([start], [level], "|", color=colour, markersize=14, markeredgewidth=2)


# -------------------------------------------------------------------------------- predictions


def draw_predictions(data: ReportData) -> list[Panel]:
    """Returns predicted against observed losses: the objective, then the heaviest targets."""
    panels: list[Panel] = []
    for i, one in enumerate(left_out(data)[:PANELS]):
        name = "the objective" if i == 0 else clean_name(one.name)
        held = held_out(data, None if i == 0 else one.name)
        panels.append(
            Panel(name=name, svg=_draw_prediction(data, one, held, key=f"seen{i}", name=name))
        )
    return panels


def _draw_prediction(
    data: ReportData, one: LeftOut, held: Float[np.ndarray, "4 H"], *, key: str, name: str
) -> str:
    observed, predicted, low, high = held
    limits = find_limits([*one.observed_R, *one.predicted_R, *observed, *predicted])
    with drawing(290, PANEL_WIDTH) as (figure, axes):
        axes.plot(limits, limits, color=MUTED, linewidth=1)
        bars = np.nan_to_num(np.stack([one.half_R, one.half_R]))
        _draw_bars(axes, one.observed_R, one.predicted_R, bars, MUTED)
        axes.plot(one.observed_R, one.predicted_R, "o", color=MUTED, mfc=SURFACE, ms=5.5, mew=1.2)
        if observed.size:
            ends = np.nan_to_num(np.stack([predicted - low, high - predicted]), posinf=1e6)
            _draw_bars(axes, observed, predicted, np.maximum(ends, 0.0), INK)
            axes.plot(observed, predicted, "D", color=INK, markersize=5)
        axes.set(xlim=limits, ylim=limits, ylabel="predicted")
        axes.set_xlabel(f"observed, {unit_words(data)}")
        set_plain_axis(axes, "x")
        set_plain_axis(axes, "y")
        return finish(
            figure,
            key=key,
            title=f"Predicted against observed: {name}",
            description=(
                f"{len(one.observed_R)} left-out runs, mean error {one.mae:.4f};"
                f" {observed.size} held-out runs. On the line a prediction is right."
            ),
        )


def _draw_bars(
    axes: Axes,
    x: Float[np.ndarray, " N"],
    y: Float[np.ndarray, " N"],
    ends: Float[np.ndarray, "2 N"],
    colour: str,
) -> None:
    is_strong = colour == INK
    axes.errorbar(
        x,
        y,
        yerr=ends,
        fmt="none",
        ecolor=colour,
        elinewidth=1.4 if is_strong else 0.9,
        alpha=0.9 if is_strong else 0.5,
    )


# -------------------------------------------------------------------------------- loss curves


def draw_curves(data: ReportData) -> list[Panel]:
    """Returns the runs' losses over the steps, one panel per target; none: one step only.

    Runs are told apart by their share of the domain that lowers the target's loss most.
    """
    chosen = data.runs.filter(pl.col("role").is_in(["design", "imported", "holdout"]))
    rows = data.observations.join(chosen.select("run_id"), on="run_id", how="semi").filter(
        (pl.col("step") > 0) & pl.col("value").is_finite()
    )
    helpers = most_helpful_domains(data)
    panels: list[Panel] = []
    for target in ranked_targets(data):
        mine = rows.filter(pl.col("target") == target)
        if mine["step"].n_unique() < 2 or len(panels) == PANELS:
            continue
        column = PROPORTION_PREFIX + helpers[target]
        shares = dict(chosen.select("run_id", column).iter_rows())
        svg = _draw_curve_panel(data, target, mine, shares, key=f"curves{len(panels)}")
        note = f"darker: more {clean_name(helpers[target])}"
        panels.append(Panel(name=clean_name(target), svg=svg, note=note))
    return panels


def _draw_curve_panel(
    data: ReportData, target: str, rows: pl.DataFrame, shares: Mapping[str, float], *, key: str
) -> str:
    curves = {
        str(run_id): curve.sort("step")
        for (run_id,), curve in rows.partition_by("run_id", as_dict=True).items()
    }
    ranked = sorted(curves, key=lambda run_id: (shares[run_id], run_id))
    steps: list[int] = rows["step"].to_list()
    with drawing(220, PANEL_WIDTH) as (figure, axes):
        for rank, run_id in enumerate(ranked):
            axes.plot(
                curves[run_id]["step"].to_list(),
                curves[run_id]["value"].to_list(),
                color=SHARE_COLOURS[rank * len(SHARE_COLOURS) // len(ranked)],
                linewidth=1.2,
                marker="o" if curves[run_id].height <= 8 else None,
                markersize=2.8,
            )
        axes.set(ylim=find_limits(rows["value"].to_list()), xlabel="steps (each tick doubles)")
        axes.set_ylabel(f"loss, {unit_words(data)}")
        set_step_axis(axes, min(steps), max(steps))
        set_plain_axis(axes, "y")
        last = rows.filter(pl.col("step") == max(steps))["value"].to_list()
        return finish(
            figure,
            key=key,
            title=f"Loss curves of {len(ranked)} runs: {clean_name(target)}",
            description=f"At the last step the losses lie between {min(last):.3f} and"
            f" {max(last):.3f}.",
        )
