"""The critical proportion in the report: its figure, the trade-off, and sentences."""

import math

import numpy as np

from mixlaw.optimize.continual_runs import ContinualAnswer
from mixlaw.report.numbers import format_share
from mixlaw.report.palette import INK, MIXTURE_COLOURS, MUTED, clean_name
from mixlaw.report.tables import Cell, Table, header_cells

HEIGHT = 230
"""Of the figure, in CSS pixels."""
BAND = 0.18
"""Opacity of intervals."""
TRADE_OFF_ROWS = 6
"""Shares in the table of the trade-off."""


def critical_sentences(answer: ContinualAnswer) -> tuple[str, ...]:
    """Returns the answer as sentences of a page: a capital first, a full stop last."""
    return tuple(
        clean_name(f"{sentence[0].upper()}{sentence[1:]}.")
        for sentence in answer.sentences()
        if sentence
    )


def trade_off_table(answer: ContinualAnswer | None) -> Table | None:
    """Returns old and new loss by the share of original data; None: no new loss is asked for."""
    curve = None if answer is None else answer.trade_off
    if curve is None:
        return None
    rows = np.linspace(0, len(curve.share_S) - 1, TRADE_OFF_ROWS).round().astype(int)
    return Table(
        caption=f"What the old loss costs the new one, with {curve.level:.0%} intervals",
        columns=header_cells("Original data", "old loss", "new loss"),
        rows=tuple(
            (
                Cell(text=format_share(float(curve.share_S[i]))),
                Cell(text=_loss_words(float(curve.old_S[i]), float(curve.old_half_S[i]))),
                Cell(text=_loss_words(float(curve.new_S[i]), float(curve.new_half_S[i]))),
            )
            for i in rows
        ),
    )


def _loss_words(loss: float, half: float) -> str:
    return f"{loss:.4f}" if math.isnan(half) else f"{loss:.4f} ± {half:.4f}"


def draw_trade_off(answer: ContinualAnswer) -> str:
    """Returns the old loss along the share of original data, with what the runs say of it.

    The original loss is a line across, the critical proportion and its interval stand on it; the
    runs are marks.
    """
    # Drawing takes a second to import, which a report without such runs must not pay.
    from mixlaw.report.figures import drawing, find_limits, finish, set_plain_axis

    line, found = answer.line, answer.critical
    share_S = np.linspace(max(0.0, line.run_shares[0] - 0.05), min(1.0, line.run_shares[-1] + 0.05))
    old_S = line.losses(share_S)
    limit = found.original_loss + found.tolerance
    colour = MIXTURE_COLOURS[0]
    means = line.fit.means
    mark_G = means.r_GM[:, 0] if line.is_line else line.path.shares(means.r_GM)
    with drawing(HEIGHT) as (figure, axes):
        axes.plot(share_S, old_S, color=colour, linewidth=1.8)
        if line.noise is not None:
            half_S = line.noise.quantile(found.level) * line.sds(share_S)
            axes.fill_between(
                share_S, old_S - half_S, old_S + half_S, color=colour, alpha=BAND, linewidth=0
            )
        axes.plot(mark_G, means.loss_G + line.shift, "o", color=colour, markersize=5)
        axes.axhline(limit, color=MUTED, linewidth=1.0, linestyle="--")
        if found.share is not None and found.low is not None:
            high = share_S[-1] if found.high is None else min(found.high, float(share_S[-1]))
            axes.plot([found.low, high], [limit, limit], color=INK, linewidth=3.0)
            axes.plot([found.share], [limit], "D", color=INK, markersize=6)
        axes.set_xlim(float(share_S[0]), float(share_S[-1]))
        axes.set_ylim(*find_limits([*old_S.tolist(), *means.loss_G.tolist(), limit]))
        axes.set_xlabel("share of original data")
        axes.set_ylabel("old loss")
        set_plain_axis(axes, "x")
        set_plain_axis(axes, "y")
        return finish(
            figure,
            key="critical",
            title="Old loss by the share of original data",
            description=" ".join(critical_sentences(answer)[:2]),
        )
