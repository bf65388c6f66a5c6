"""The report's part on schedules: the mixture of each stage, its gain, and what it rests on."""

import numpy as np

from mixlaw.optimize.interval import Gain
from mixlaw.optimize.schedule import ScheduleOptimum
from mixlaw.report.data import ReportData
from mixlaw.report.numbers import (
    format_error,
    format_interval,
    format_number,
    format_percent,
    format_share,
    interval_error,
)
from mixlaw.report.palette import INK, MIXTURE_COLOURS, clean_name
from mixlaw.report.tables import Cell, Table, header_cells

ROW_HEIGHT, HEAD_HEIGHT = 30, 70
"""Of the figure, in CSS pixels."""
MARKERS = ("o", "s", "^", "D", "v")
"""Of stages, in turn."""


def schedule_sentences(data: ReportData) -> list[str]:
    """Returns what is to be said of the schedule; none where no run has stages."""
    best = data.schedule
    if best is None:
        return []
    gain = best.gains[0]
    verdict = {
        "gain": "the schedule is better",
        "loss": "the schedule is worse",
    }.get(gain.verdict, "there is no evidence that changing the mixture gains anything")
    law, *rules = best.errors
    others = " and ".join(
        f"{format_error(rule.mae, best.num_staged)} ({rule.name})" for rule in rules
    )
    said = [
        f"Against the best constant mixture {_gain_words(gain)} are promised: {verdict}.",
        f"Schedules that the law had not seen were off by"
        f" {format_error(law.mae, best.num_staged)} on average over targets; simple rules are off"
        f" by {others}. {best.num_staged} runs changed their mixture on the way.",
        f"{best.certificate[0].upper()}{best.certificate[1:]}.",
    ]
    if best.is_constant:
        said.insert(0, "The best schedule keeps to one mixture.")
    return said


def schedule_table(data: ReportData) -> Table | None:
    """Returns the share of each domain by stage, with ranges; None: no run has stages."""
    best = data.schedule
    if best is None:
        return None
    stages = [f"{format_percent(f)} of the tokens" for f in best.schedule.fractions]
    rows = [
        (
            Cell(text=clean_name(name)),
            *(
                Cell(text=f"{format_share(mixture[name])} ({format_interval(*ranges[name])})")
                for mixture, ranges in zip(
                    best.schedule.mixtures, best.proportion_range, strict=True
                )
            ),
            Cell(text=format_share(best.schedule.mean[name])),
            Cell(text=format_share(best.constant[name])),
        )
        for name in best.schedule.names
    ]
    return Table(
        caption=f"The schedule, stage by stage, with {best.level:.0%} ranges",
        columns=header_cells("Domain", *stages, "whole run", "best constant"),
        rows=tuple(rows),
    )


def draw_schedule(best: ScheduleOptimum) -> str:
    """Returns the share of each domain in each stage, a mark per stage, and the best constant."""
    from mixlaw.report.figures import (
        drawing,
        find_limits,
        finish,
        set_named_rows,
        set_plain_axis,
    )

    names = best.schedule.names
    rows = np.arange(len(names), dtype=float)
    with drawing(HEAD_HEIGHT + ROW_HEIGHT * len(names)) as (figure, axes):
        shown = [0.0]
        shifts = np.linspace(-0.2, 0.2, len(best.schedule.mixtures))
        for s, (mixture, ranges) in enumerate(
            zip(best.schedule.mixtures, best.proportion_range, strict=True)
        ):
            share_M = mixture.array(names)
            colour = MIXTURE_COLOURS[s % len(MIXTURE_COLOURS)]
            limit_M2 = np.array([ranges[name] for name in names])
            axes.hlines(rows + shifts[s], limit_M2[:, 0], limit_M2[:, 1], color=colour, linewidth=2)
            axes.plot(
                share_M,
                rows + shifts[s],
                MARKERS[s % len(MARKERS)],
                color=colour,
                markersize=6,
                label=f"stage {s + 1}",
            )
            shown += [*share_M.tolist(), *limit_M2.ravel().tolist()]
        axes.plot(
            best.constant.array(names), rows, "|", color=INK, markersize=14, label="best constant"
        )
        axes.set(
            xlim=(0, find_limits(shown)[1]),
            ylim=(len(names) - 0.4, -0.6),
            xlabel="share of a stage's tokens",
        )
        axes.legend(frameon=False, fontsize=9, loc="best")
        set_named_rows(axes, names)
        set_plain_axis(axes, "x")
        return finish(
            figure,
            key="schedule",
            title="Share of each domain in each stage",
            description="; ".join(
                f"stage {s}: "
                + ", ".join(f"{clean_name(name)} {format_share(r)}" for name, r in mixture.items())
                for s, mixture in enumerate(best.schedule.mixtures, start=1)
            ),
        )


def _gain_words(gain: Gain) -> str:
    value = format_number(gain.value, interval_error(gain.low, gain.high))
    return f"{value} ({format_interval(gain.low, gain.high)})"
