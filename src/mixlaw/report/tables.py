"""The report's tables: plain rows of text, made from the data."""

import math
from dataclasses import dataclass

import numpy as np

from mixlaw.domains import Domain
from mixlaw.predict import difference_sd
from mixlaw.report.data import ReportData
from mixlaw.report.decision import (
    bits_per_byte,
    decide,
    measured_losses,
    predicted_losses,
    target_weights,
)
from mixlaw.report.numbers import (
    format_count,
    format_interval,
    format_number,
    format_seconds,
    format_share,
    format_with_error,
    interval_error,
)
from mixlaw.report.palette import (
    clean_name,
    domain_colours,
    mixture_label,
    mixture_styles,
)
from mixlaw.report.sentences import (
    gain_in_bits,
    loss_word,
    objective_words,
    percent_of_loss,
    unit_words,
)
from mixlaw.verify import OPTIMUM, Comparison

UNKNOWN = "not known"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell: its text and, where it has one, its look."""

    text: str
    mark: str = ""
    """A short remark beside it."""
    chip: str = ""
    """CSS colour of a small square before the text."""
    glyph: str = ""
    """A marker instead of the square."""
    style: str = ""
    """CSS of the cell; never made from names."""
    hint: str = ""
    """What a pointer over it shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table; the first cell of a row is its header."""

    caption: str
    columns: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    strong_rows: int = 0
    """How many of the first rows are set off."""
    is_matrix: bool = False
    """Whether it is a heat map: narrow cells, upright column names where there are many."""


def header_cells(*texts: str) -> tuple[Cell, ...]:
    """Returns the names of columns."""
    return tuple(Cell(text=text) for text in texts)


# -------------------------------------------------------------------------------- the mixture


def mixture_table(data: ReportData) -> Table:
    """Returns the shares of the optimum and the baselines, with tokens and epochs."""
    optimum, chosen = data.optimum, decide(data)
    colours, styles = domain_colours(data), mixture_styles(data)
    known = {domain.name: domain for domain in data.domains}
    whose = "" if chosen.name == OPTIMUM else f" of {mixture_label(chosen.name)}"
    rows: list[tuple[Cell, ...]] = []
    for name in ranked_domains(data):
        low, high = optimum.proportion_range[name]
        near = None if optimum.near_optimal is None else optimum.near_optimal.shares[name]
        tokens, epochs = _supply(known.get(name), name, chosen.mixture[name], data)
        rows.append(
            (
                Cell(text=clean_name(name), chip=colours[name]),
                Cell(text=f"{optimum.mixture[name]:.3f}", mark=_bound(data, name)),
                Cell(text=_share_range(low, high)),
                *([] if near is None else [Cell(text=_share_range(near.low, near.high))]),
                *(Cell(text=f"{gain.mixture[name]:.3f}") for gain in optimum.gains),
                Cell(text=tokens),
                Cell(text=epochs),
            )
        )
    return Table(
        caption="Share of training tokens by domain",
        columns=(
            Cell(text="Domain"),
            Cell(text="Optimum", glyph=styles[OPTIMUM].glyph, chip=styles[OPTIMUM].css),
            Cell(text=f"its {optimum.level:.0%} range"),
            *([] if optimum.near_optimal is None else [Cell(text="as good")]),
            *(
                Cell(
                    text=_column_name(gain.baseline),
                    glyph=styles[gain.baseline].glyph,
                    chip=styles[gain.baseline].css,
                )
                for gain in optimum.gains
            ),
            Cell(text=f"Tokens{whose}"),
            Cell(text=f"Epochs{whose}, of those allowed"),
        ),
        rows=tuple(rows),
    )


def ranked_domains(data: ReportData) -> list[str]:
    """Returns the training domains, the largest shares of the optimum first."""
    mixture = data.optimum.mixture
    return sorted(data.fit.domains, key=lambda name: (-round(mixture[name], 6), name))


def _bound(data: ReportData, name: str) -> str:
    if name in data.optimum.at_floor:
        return "at its floor"
    return "at its cap" if name in data.optimum.at_cap else ""


def _share_range(low: float, high: float) -> str:
    if not math.isfinite(high - low):
        return UNKNOWN
    return f"{low:.2f} to {high:.2f}"


def _column_name(name: str) -> str:
    short = {
        "reference": "Yours",
        "proportional": "Proportional",
        "uniform": "Uniform",
        "unimax": "UniMax",
        "temperature": "Temperature",
    }
    return short.get(name, clean_name(name))


def _supply(domain: Domain | None, name: str, share: float, data: ReportData) -> tuple[str, str]:
    """Returns tokens and epochs of a domain at the scale."""
    if data.scale is None:
        return UNKNOWN, UNKNOWN
    tokens = format_count(share * data.scale.tokens) if share else "0"
    epochs = None if domain is None else domain.epochs(share, data.scale.tokens)
    if domain is None or epochs is None:
        return tokens, UNKNOWN
    words = format_number(epochs, 0.04) if epochs < 10 else format_count(epochs)
    return tokens, f"{words} of {domain.max_epochs:g}"


def gain_table(data: ReportData) -> Table:
    """Returns the predicted gain over each baseline."""
    styles, unit = mixture_styles(data), objective_words(data).removeprefix("of ")
    has_bits = any(gain_in_bits(data, gain) is not None for gain in data.optimum.gains)
    has_savings = any(s.steps_saved is not None for s in data.optimum.savings.values())
    rows: list[tuple[Cell, ...]] = []
    for gain in data.optimum.gains:
        style, sign = styles[gain.baseline], "" if gain.value >= 0 else "\N{MINUS SIGN}"
        bits = gain_in_bits(data, gain)
        rows.append(
            (
                Cell(text=_column_name(gain.baseline), glyph=style.glyph, chip=style.css),
                Cell(text=format_number(gain.value, interval_error(gain.low, gain.high))),
                Cell(text=format_interval(gain.low, gain.high)),
                *([Cell(text=UNKNOWN if bits is None else sign + bits)] if has_bits else []),
                Cell(text=sign + percent_of_loss(data, gain)),
                *([Cell(text=_saved(data, gain.baseline))] if has_savings else []),
                Cell(text=_verdict(gain.verdict)),
            )
        )
    return Table(
        caption="Predicted gain of the optimum over each baseline: positive is better",
        columns=header_cells(
            "Over",
            f"Gain, {unit}",
            f"{data.optimum.level:.0%} interval",
            *(["bits per byte"] if has_bits else []),
            f"of its {loss_word(data)}",
            *(["steps saved"] if has_savings else []),
            "Verdict",
        ),
        rows=tuple(rows),
    )


def _saved(data: ReportData, baseline: str) -> str:
    """Returns which share of its steps a baseline's loss takes less."""
    found = data.optimum.savings.get(baseline)
    if found is None or found.steps_saved is None:
        return UNKNOWN
    low, high = (
        None if end is None else f"{100 * end / found.steps:.0f}" for end in (found.low, found.high)
    )
    limits = "" if low is None and high is None else f" ({low or '?'} to {high or '?'}%)"
    return f"{100 * found.steps_saved / found.steps:.0f}%{limits}"


def _verdict(verdict: str) -> str:
    return {"gain": "a gain", "loss": "a loss"}.get(verdict, "no evidence of a gain")


def target_table(data: ReportData) -> Table:
    """Returns what each target gains or pays: predicted and, where it was trained, measured."""
    first = data.optimum.gains[0] if data.optimum.gains else None
    base = None if first is None else predicted_losses(data, first.mixture)
    measured = _measured_changes(data)
    rows: list[tuple[Cell, ...]] = []
    for target in ranked_targets(data):
        value, low, high = data.optimum.target_losses[target]
        weight = target_weights(data).get(target, 0.0)
        row = [
            Cell(text=clean_name(target)),
            Cell(text=format_share(weight)),
            Cell(text=format_number(value, interval_error(low, high))),
            Cell(text=format_interval(low, high)),
        ]
        if base is not None:
            error = difference_sd(data.fit, {target: 1.0})
            row.append(_change_cell(value - base[target], error))
        if measured:
            row.append(_change_cell(*measured[target]))
        rows.append(tuple(row))
    label = "" if first is None else mixture_label(first.baseline)
    change = f", and its change against {label} ± one standard error: negative is better"
    return Table(
        caption=f"Loss of each target with the optimum, in {unit_words(data)}"
        + (change if label else ""),
        columns=header_cells(
            "Target",
            "Weight",
            "Predicted",
            f"{data.optimum.level:.0%} interval",
            *(["Predicted change"] if label else []),
            *(["Measured change"] if measured else []),
        ),
        rows=tuple(rows),
    )


def ranked_targets(data: ReportData) -> list[str]:
    """Returns the targets, those with the largest weights first."""
    shares = target_weights(data)
    return sorted(data.fit.targets, key=lambda target: -shares.get(target, 0.0))


def _change_cell(change: float, error: float) -> Cell:
    if math.isnan(change):
        return Cell(text=UNKNOWN)
    text = format_with_error(change, error)
    return Cell(text=text if change < 0 else f"+{text}")


def _measured_changes(data: ReportData) -> dict[str, tuple[float, float]]:
    """Returns each target's measured change against the first baseline, with its error."""
    verification = data.verification
    if verification is None or not data.optimum.gains:
        return {}
    names = {mixture.name: mixture for mixture in verification.mixtures}
    baseline = names.get(data.optimum.gains[0].baseline)
    if baseline is None or OPTIMUM not in names:
        return {}
    best = names[OPTIMUM]
    changes: dict[str, tuple[float, float]] = {}
    for target in data.fit.targets:
        one = dict(zip(best.seeds, best.target_measured.get(target, ()), strict=False))
        other = dict(zip(baseline.seeds, baseline.target_measured.get(target, ()), strict=False))
        paired = [one[seed] - other[seed] for seed in one if seed in other]
        error = np.std(paired, ddof=1) / math.sqrt(len(paired)) if len(paired) > 1 else math.nan
        changes[target] = (float(np.mean(paired)) if paired else math.nan, float(error))
    return changes


# -------------------------------------------------------------------------------- the test


def comparison_table(data: ReportData) -> Table:
    """Returns who won, by how much, and how soon."""
    assert data.verification is not None
    styles = mixture_styles(data)
    gains = {gain.baseline: gain for gain in data.optimum.gains}
    rows: list[tuple[Cell, ...]] = []
    for found in data.verification.comparisons:
        style, gain = styles[found.baseline], gains.get(found.baseline)
        promised = (
            UNKNOWN
            if gain is None
            else format_number(gain.value, interval_error(gain.low, gain.high))
            + f" ({format_interval(gain.low, gain.high)})"
        )
        rows.append(
            (
                Cell(text=_column_name(found.baseline), glyph=style.glyph, chip=style.css),
                Cell(text=promised),
                Cell(text=format_number(found.difference, interval_error(found.low, found.high))),
                Cell(text=format_interval(found.low, found.high)),
                Cell(text=_winner(found)),
                Cell(text=_steps(found)),
                Cell(text=UNKNOWN if found.speedup is None else f"{found.speedup:.2g} times"),
            )
        )
    level = f"{data.verification.level:.0%}"
    return Table(
        caption="The optimum against each baseline, both trained with the same seeds: a positive"
        f" difference means that the optimum ended lower ({unit_words(data)})",
        columns=header_cells(
            "Against",
            "Predicted",
            "Measured",
            f"{level} interval",
            "Winner",
            f"Steps to match, of {_total_steps(data)}",
            "Speed",
        ),
        rows=tuple(rows),
    )


def _total_steps(data: ReportData) -> str:
    assert data.verification is not None
    return " or ".join(
        format_count(steps) for steps in sorted({c.steps for c in data.verification.comparisons})
    )


def _winner(found: Comparison) -> str:
    if not math.isfinite(found.low):
        return "not known: one seed"
    if found.winner == OPTIMUM:
        return "the optimum"
    return mixture_label(found.winner) if found.winner == found.baseline else "undecided"


def _steps(found: Comparison) -> str:
    if not found.steps_to_match:
        return UNKNOWN
    if all(step is None for step in found.steps_to_match):
        return "not reached"
    return ", ".join("not reached" if s is None else f"{s:.0f}" for s in found.steps_to_match)


def measured_table(data: ReportData) -> Table:
    """Returns the objective of each verified mixture: predicted, and measured by seed."""
    assert data.verification is not None
    styles = mixture_styles(data)
    rows: list[tuple[Cell, ...]] = []
    bits = {m.name: bits_per_byte(data, measured_losses(m)) for m in data.verification.mixtures}
    has_bits = all(value is not None for value in bits.values())
    several = [m.measured for m in data.verification.mixtures if len(m.measured) > 1]
    spread = float(np.sqrt(np.mean([np.var(v, ddof=1) for v in several]))) if several else math.nan
    for mixture in data.verification.mixtures:
        style = styles[mixture.name]
        error = interval_error(mixture.predicted_low, mixture.predicted_high)
        digits = error if math.isnan(spread) else spread
        name = "Optimum" if mixture.name == OPTIMUM else _column_name(mixture.name)
        in_bits = bits[mixture.name]
        scale = (in_bits or 0.0) / mixture.mean if mixture.mean else 1.0
        rows.append(
            (
                Cell(text=name, glyph=style.glyph, chip=style.css),
                Cell(text=format_number(mixture.predicted, error)),
                Cell(text=format_interval(mixture.predicted_low, mixture.predicted_high)),
                Cell(text=", ".join(format_number(v, digits) for v in mixture.measured)),
                *([Cell(text=format_number(in_bits or 0.0, scale * digits))] if has_bits else []),
                Cell(text=f"{mixture.num_inside} of {len(mixture.measured)}"),
            )
        )
    return Table(
        caption=f"Objective at the last step, in {unit_words(data)}",
        columns=header_cells(
            "Mixture",
            "Predicted",
            f"{data.verification.level:.0%} interval",
            "Measured, by seed",
            *(["mean, bits per byte"] if has_bits else []),
            "Inside",
        ),
        rows=tuple(rows),
    )


# -------------------------------------------------------------------------------- sources


def attribution_table(data: ReportData) -> Table:
    """Returns where the text comes from and under which licence."""
    return Table(
        caption="Sources and licences of the text",
        columns=header_cells("Domain", "Source", "Licence"),
        rows=tuple(
            (
                Cell(text=clean_name(one.domain)),
                Cell(text=UNKNOWN if one.source is None else clean_name(one.source)),
                Cell(text=UNKNOWN if one.licence is None else clean_name(one.licence)),
            )
            for one in data.attributions
        ),
    )


def seconds_table(data: ReportData) -> Table:
    """Returns what each stage took."""
    return Table(
        caption="Time by stage",
        columns=header_cells("Stage", "Time"),
        rows=tuple(
            (Cell(text=clean_name(stage)), Cell(text=format_seconds(seconds)))
            for stage, seconds in data.seconds.items()
        ),
    )
