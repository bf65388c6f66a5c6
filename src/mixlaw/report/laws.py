"""Which law was fitted and why: its formula in words, its source, and the table of laws."""

import math
from dataclasses import dataclass

from mixlaw.laws.base import MixingLaw
from mixlaw.laws.stack import StackedLaw
from mixlaw.report.data import ReportData
from mixlaw.report.numbers import format_error, format_number, format_share, join_words
from mixlaw.report.palette import clean_name
from mixlaw.report.sentences import unit_words
from mixlaw.report.tables import Cell, Table, header_cells
from mixlaw.selection import LawChoice, LearnerScore

_SHARES = "w_j is the loss that a mixture of domain j alone would have"
_EXPONENTIAL = "t_j says how domain j moves the loss above c"
_POWERS = "C_j says how much domain j helps, and g how soon more of it helps less"
_LETTERS = {
    "m1": "k_j and t_j say how domain j moves the loss",
    "m2": "k and t_j say how domain j moves the loss",
    "m3": "t says how much the loss depends on an even mixture of the M domains",
    "m4": _EXPONENTIAL,
    "linear": _SHARES,
    "log-linear": "t_j is the logarithm of the loss on domain j alone",
    "bimix": "F_j and a_j say how domain j lowers the loss",
    "reciprocal": _POWERS,
    "reciprocal-shared": _POWERS,
    "power-reciprocal": _POWERS,
    "power-reciprocal-shared": _POWERS,
    "exp-power": f"{_EXPONENTIAL}, and g how soon more of it does less",
    "implicit": "t_kj says how domain j moves the loss of the unknown domain k of the target",
}
"""What the letters of a law mean beside r and c, by its name."""

_YE = "Ye et al. 2025, <cite>Data Mixing Laws</cite>, arXiv:2403.16952"
_SHUKOR = "Shukor et al. 2025, arXiv:2507.09404: the law's term of the mixture"
_SOURCES = {
    "m1": f"{_YE}, Section 3.2: the law.",
    "m2": f"{_YE}, Section 3.2: the law.",
    "m3": f"{_YE}, Section 3.2: the law.",
    "m4": f"{_YE}, Eq. 7: the law.",
    "implicit": f"{_YE}, Eq. 8: the law.",
    "bimix": "BiMix, arXiv:2405.14908: the law.",
    "reciprocal": f"{_SHUKOR}.",
    "reciprocal-shared": f"{_SHUKOR}.",
    "power-reciprocal": f"{_SHUKOR}, here with one more exponent.",
    "power-reciprocal-shared": f"{_SHUKOR}, here with one more exponent.",
    "exp-power": f"{_YE}, Eq. 7: the law, here over powers of the shares.",
}
"""Where laws come from, by name, as HTML of our own; the others are textbook regressions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedLaw:
    """One fitted formula, for the section on methods."""

    name: str
    formula: str
    weight: str
    """Its share in a stack; empty where it stands alone."""
    letters: str
    source: str
    """HTML of our own; empty where there is none."""


def fitted_laws(data: ReportData) -> tuple[FittedLaw, ...]:
    """Returns the law, or the members of the stack, the heaviest first."""
    law = data.fit.law
    if not isinstance(law, StackedLaw):
        return (_fitted(law, ""),)
    members = sorted(zip(law.weights, law.laws, strict=True), key=lambda member: -member[0])
    return tuple(_fitted(member, format_share(weight)) for weight, member in members)


def law_sources(data: ReportData) -> tuple[str, ...]:
    """Returns where the fitted laws come from, as HTML of our own."""
    return tuple(dict.fromkeys(law.source for law in fitted_laws(data) if law.source))


def letters_sentence(data: ReportData) -> str:
    """Returns what the letters of the formulas mean."""
    laws = fitted_laws(data)
    words = ["r_j is the share of domain j"]
    if any(" c + " in law.formula for law in laws):
        words.append("c the loss that no mixture removes")
    return f"Here {join_words(words)}; {'; '.join(dict.fromkeys(law.letters for law in laws))}."


def choice_sentence(data: ReportData) -> str:
    """Returns why it is that law."""
    choice = data.choice
    if choice is None:
        return f"The law {data.fit.law.name} was asked for; no other was tried."
    laws = len(choice.laws)
    text = (
        f"{laws} laws were fitted without some of the mixtures, and asked for these"
        f" ({choice.folds}). "
    )
    mean = next((score for score in choice.scores if score.is_constant), None)
    beside = "" if mean is None else f"; predicting the mean errs by {_error(choice, mean)}"
    error = format_error(choice.error, choice.num_mixtures)
    measure = choice.measure.replace(choice.unit, unit_words(data))
    if isinstance(choice.best, StackedLaw):
        single = format_error(choice.score(choice.single), choice.num_mixtures)
        return (
            f"{text}Several together, weighted, err by {error} ({measure}); {choice.single}, the"
            f" choice if it had to be one, errs by {single}{beside}."
        )
    least = _least(choice)
    if least.name == choice.single:
        return f"{text}{choice.single} erred least: by {error} ({measure}){beside}."
    return (
        f"{text}{choice.single}, which errs by {error} ({measure}), has the fewest"
        f" parameters of those within one standard error of the least, {_error(choice, least)} of"
        f" {least.name}{beside}."
    )


def law_table(data: ReportData) -> Table | None:
    """Returns the left-out errors of all laws and baselines; None: no choice was made."""
    choice = data.choice
    if choice is None:
        return None
    rows = [
        (
            Cell(text=clean_name(score.name)),
            Cell(text=_size(score.num_parameters)),
            Cell(text=_error(choice, score)),
            Cell(text=format_error(score.mae, choice.num_mixtures)),
            Cell(text="" if score.is_constant else format_number(score.spearman, 0.005)),
            Cell(text=_regret(choice, score)),
            Cell(text=_use(choice, score)),
        )
        for score in sorted(choice.scores, key=lambda score: score.error)
    ]
    return Table(
        caption=f"Laws and baselines on mixtures that they did not see ({choice.folds}); losses in"
        f" {unit_words(data)}",
        columns=header_cells(
            "Law", "Parameters", "Error that decides", "Mean abs. error", "Rank corr.", "Regret",
            "Used",
        ),
        rows=tuple(rows),
    )  # fmt: skip


def _fitted(law: MixingLaw, weight: str) -> FittedLaw:
    return FittedLaw(
        name=law.name,
        formula=law.describe(),
        weight=weight,
        letters=_LETTERS.get(law.name, "the other letters are fitted"),
        source=_SOURCES.get(law.name, ""),
    )


def _least(choice: LawChoice) -> LearnerScore:
    return min((s for s in choice.scores if s.name in choice.laws), key=lambda score: score.error)


def _error(choice: LawChoice, score: LearnerScore) -> str:
    return format_error(score.error, choice.num_mixtures)


def _regret(choice: LawChoice, score: LearnerScore) -> str:
    if score.is_constant:
        return ""
    return format_error(score.regret, choice.num_mixtures) if score.regret > 0 else "0"


def _size(num_parameters: float) -> str:
    return "any" if math.isinf(num_parameters) else f"{num_parameters:g}"


def _use(choice: LawChoice, score: LearnerScore) -> str:
    best = choice.best
    if score.name not in choice.laws:
        return "to compare"
    if isinstance(best, StackedLaw):
        weights = {law.name: w for law, w in zip(best.laws, best.weights, strict=True)}
        return f"weight {format_share(weights[score.name])}" if score.name in weights else "no"
    return "yes" if score.name == best.name else "no"
