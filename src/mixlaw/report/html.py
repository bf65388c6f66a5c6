"""The page: sentences, tables and figures put into one file that fetches nothing."""

from collections.abc import Mapping
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from mixlaw.files import write_atomic
from mixlaw.report.answer import (
    distance_sentence,
    front_sentence,
    left_out_sentence,
    left_out_table,
    near_sentence,
    price_sentence,
    price_table,
    rival_sentence,
    rival_table,
)
from mixlaw.report.cautions import cautions
from mixlaw.report.critical import critical_sentences, draw_trade_off, trade_off_table
from mixlaw.report.data import ReportData
from mixlaw.report.decision import comparisons, decide
from mixlaw.report.downstream import (
    downstream_prediction_table,
    downstream_score_table,
    downstream_sentences,
)
from mixlaw.report.evidence import influence_table, score_table
from mixlaw.report.laws import (
    choice_sentence,
    fitted_laws,
    law_sources,
    law_table,
    letters_sentence,
)
from mixlaw.report.numbers import count_words, format_share, join_words
from mixlaw.report.palette import (
    OTHER_COLOUR,
    clean_name,
    domain_colours,
    mixture_label,
    mixture_styles,
)
from mixlaw.report.schedule import draw_schedule, schedule_sentences, schedule_table
from mixlaw.report.sentences import (
    alerts,
    baselines_sentence,
    certainty_sentence,
    headline,
    heldout_sentence,
    objective_sentence,
    savings_sentence,
    scale_sentence,
    steps_sentence,
    test_sentence,
    unit_words,
    winner_sentence,
)
from mixlaw.report.tables import (
    attribution_table,
    comparison_table,
    gain_table,
    measured_table,
    mixture_table,
    ranked_domains,
    seconds_table,
    target_table,
)
from mixlaw.verify import OPTIMUM


def write_report(data: ReportData, path: Path) -> Path:
    """Writes the report as one HTML file, and returns its path; the same data give the same bytes.

    Raises:
        OSError: The folder can't be written.
    """
    return write_atomic(path, render_report(data))


def render_report(data: ReportData) -> str:
    """Returns the report as one HTML page that fetches nothing and runs no script."""
    # Both take a moment to import, which a command that only needs `ReportData` must not pay.
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from mixlaw.report import charts
    from mixlaw.report.front import draw_front

    package = files("mixlaw.report")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["svg"] = (
        Markup  # made by `inline_svg`, which has escaped all names, or ours
    )
    template = environment.from_string(
        package.joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    style = package.joinpath("report.css").read_text(encoding="utf-8")
    verification = data.verification
    return template.render(
        style=Markup(style),  # noqa: S704 - a file of this package
        **_words(data),
        **_tables(data),
        mixture_figure=charts.draw_mixture(data),
        front_figure=draw_front(data) if data.front else None,
        schedule_figure=draw_schedule(data.schedule) if data.schedule else None,
        critical_figure=draw_trade_off(data.critical) if data.critical else None,
        measured_figure=verification and charts.draw_measured(data, verification),
        race_figure=verification and charts.draw_race(data, verification),
        prediction_panels=charts.draw_predictions(data),
        curve_panels=charts.draw_curves(data),
    )


def _words(data: ReportData) -> Mapping[str, Any]:
    do, why = headline(data)
    return {
        "study": clean_name(data.study),
        "version": data.version,
        "created": _date_words(data.created),
        "made_from": data.made_from,
        "do": do,
        "why": why,
        "alerts": alerts(data),
        "scale": "" if data.is_extrapolated else scale_sentence(data),
        "certainty": certainty_sentence(data),
        "test": test_sentence(data),
        "winner": winner_sentence(data) if data.verification else "",
        "objective": objective_sentence(data),
        "unit": unit_words(data),
        "is_nats": data.fit.table.unit == "nats_per_token",
        "baselines": baselines_sentence(data),
        "steps": [steps_sentence(comparison) for comparison in comparisons(data)],
        "heldout": heldout_sentence(data),
        "downstream": downstream_sentences(data),
        "schedule": schedule_sentences(data),
        "critical": critical_sentences(data.critical) if data.critical else (),
        "cautions": cautions(data),
        "certificate": _sentence(data.optimum.certificate),
        "laws": fitted_laws(data),
        "law_sources": law_sources(data),
        "letters": letters_sentence(data),
        "choice": choice_sentence(data),
        "level": f"{data.optimum.level:.0%}",
        "runs": _runs_sentence(data),
        "recipe": _recipe(data),
        "distance": distance_sentence(data),
        "near": near_sentence(data),
        "prices": price_sentence(data),
        "rivals": rival_sentence(data),
        "left_out": left_out_sentence(data),
        "front": front_sentence(data),
        "savings": savings_sentence(data),
        "num_targets": len(data.fit.targets),
        "num_domains": len(data.fit.domains),
        "has_holdout": data.holdout is not None,
        "has_seeds": data.fit.replicate_freedom > 0,
        "strips": _strips(data),
        "legend": _mixture_legend(data),
    }


def _tables(data: ReportData) -> Mapping[str, Any]:
    has_test = data.verification is not None
    return {
        "mixture_table": mixture_table(data),
        "gain_table": gain_table(data) if data.optimum.gains else None,
        "target_table": target_table(data),
        "price_table": price_table(data),
        "schedule_table": schedule_table(data),
        "trade_off_table": trade_off_table(data.critical),
        "rival_table": rival_table(data),
        "left_out_table": left_out_table(data),
        "comparison_table": comparison_table(data) if has_test and comparisons(data) else None,
        "measured_table": measured_table(data) if has_test else None,
        "score_table": score_table(data),
        "law_table": law_table(data),
        "influence_table": influence_table(data),
        "task_score_table": downstream_score_table(data),
        "task_prediction_table": downstream_prediction_table(data),
        "attribution_table": attribution_table(data),
        "seconds_table": seconds_table(data),
    }


def _date_words(created: str) -> str:
    """Returns a date as `2 March 2026, 09:30 UTC`; what is no ISO date stays as it is."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return clean_name(created)
    return f"{moment.day} {moment:%B %Y, %H:%M %Z}".strip()


def _sentence(text: str) -> str:
    text = clean_name(text)
    return text[:1].upper() + text[1:].rstrip(".") + "."


_ROLES = {
    "design": "to fit the law",
    "imported": "imported, to fit the law",
    "noise": "that repeat a mixture with fresh seeds",
    "holdout": "held out, to test the law",
    "verify": "to compare the optimum with the baselines",
}


def _runs_sentence(data: ReportData) -> str:
    """Returns how many runs of which kind there are."""
    roles = data.runs["role"].to_list()
    counts = {role: roles.count(role) for role in _ROLES}
    words = [f"{count} {_ROLES[role]}" for role, count in counts.items() if count]
    total = count_words(sum(counts.values()), "run")
    return f"{total} of {len(data.fit.domains)} domains: {join_words(words)}."


def _recipe(data: ReportData) -> list[tuple[str, str]]:
    """Returns what the runs were trained with, where it is known."""
    found: list[tuple[str, str]] = []
    for column in ("trainer", "tokenizer", "corpus", "schedule", "origin"):
        values = data.runs[column].drop_nulls().unique().sort() if column in data.runs else None
        if values is not None and len(values):
            found.append((column, clean_name(join_words([str(value) for value in values]))))
    return found


def _strips(data: ReportData) -> list[dict[str, Any]]:
    """Returns the mixtures as bars of coloured parts; the one to train on comes first."""
    chosen = decide(data).name
    is_kept = chosen in [gain.baseline for gain in data.optimum.gains[:1]]
    mixtures = {OPTIMUM: data.optimum.mixture}
    mixtures |= {gain.baseline: gain.mixture for gain in data.optimum.gains}
    mixtures = dict(sorted(mixtures.items(), key=lambda item: item[0] != chosen))
    colours = domain_colours(data)
    order = ranked_domains(data)
    named = [name for name in order if colours[name] != OTHER_COLOUR]
    strips: list[dict[str, Any]] = []
    for name, mixture in mixtures.items():
        parts = [(clean_name(domain), mixture[domain], colours[domain]) for domain in named]
        rest = sum(mixture[domain] for domain in order if domain not in named)
        if rest > 0:
            parts.append((f"{len(order) - len(named)} others", rest, OTHER_COLOUR))
        label = mixture_label(name)
        strips.append(
            {
                "label": label[0].upper() + label[1:],
                "is_chosen": name == chosen,
                "advice": "keep this" if is_kept else "train on this",
                "words": join_words([f"{part} {format_share(share)}" for part, share, _ in parts]),
                "parts": [
                    {
                        "name": part,
                        "share": format_share(share),
                        "width": f"{100 * share:.3f}%",
                        "colour": colour,
                        "is_wide": share >= 0.09,
                    }
                    for part, share, colour in parts
                    if share > 0
                ],
            }
        )
    return strips


def _mixture_legend(data: ReportData) -> list[dict[str, str]]:
    legend: list[dict[str, str]] = []
    for name, style in mixture_styles(data).items():
        label = mixture_label(name)
        legend.append(
            {"label": label.removeprefix("the "), "glyph": style.glyph, "colour": style.css}
        )
    return legend
