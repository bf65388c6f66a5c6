"""What is not known, and what could be wrong: the sentences that a reader must not miss."""

import math
from collections.abc import Sequence

import numpy as np

from mixlaw.predict import difference_sd
from mixlaw.report.data import ReportData
from mixlaw.report.decision import predicted_losses, target_weights
from mixlaw.report.numbers import (
    count_words,
    format_number,
    format_share,
    join_words,
)
from mixlaw.report.palette import clean_name, mixture_label
from mixlaw.report.sentences import unit_words
from mixlaw.verify import OPTIMUM


def cautions(data: ReportData) -> tuple[str, ...]:
    """Returns all that limits the answer, in sentences, the gravest first."""
    found = [
        *_untested(data),
        *_seeds(data),
        *_few_mixtures(data),
        *_distance(data),
        *_bounds(data),
        *_uncounted_targets(data),
        *_badly_predicted(data),
        *_supply(data),
        *_notes(data),
    ]
    return tuple(dict.fromkeys(found))


def _untested(data: ReportData) -> list[str]:
    found: list[str] = []
    if data.is_extrapolated:
        found.append(
            "The mixing law knows nothing of model size or of training length. That the best"
            " mixture of the small runs is the best one at the scale is an assumption."
        )
    if data.verification is None:
        found.append("The optimum was not trained: its loss and its gain are predictions.")
    elif not _is_current(data):
        found.append(
            "The verified optimum is not the present one: the fit or the constraints have changed"
            " since. “mixlaw verify” trains the present one."
        )
    if data.holdout is None:
        found.append("No mixture was held out to test the law on.")
    return found


def _is_current(data: ReportData) -> bool:
    verified = data.verification
    assert verified is not None
    mixture = verified.mixture(OPTIMUM).mixture
    return all(
        abs(mixture.get(name, 0.0) - share) < 1e-6 for name, share in data.optimum.mixture.items()
    )


def _seeds(data: ReportData) -> list[str]:
    found: list[str] = []
    if data.fit.replicate_freedom == 0:
        found.append(
            "No mixture was run with several seeds, so how much a loss changes by chance alone is"
            " not known. A difference between mixtures may be chance."
        )
    if data.verification is not None:
        alone = [c for c in data.verification.comparisons if not math.isfinite(c.low)]
        if alone:
            labels = join_words([mixture_label(c.baseline) for c in alone])
            found.append(
                f"Fewer than two seeds were trained for the comparison with {labels}: who won is"
                " not known."
            )
    return found


def _few_mixtures(data: ReportData) -> list[str]:
    """Returns the fits' own sentences, targets with the same one together."""
    by_sentence: dict[str, list[str]] = {}
    for status in data.fit.status:
        if status.sentence != "converged":
            by_sentence.setdefault(clean_name(status.sentence), []).append(
                clean_name(status.target)
            )
    total = len(data.fit.status)
    return [
        f"The fit of {_targets(targets, total)}: {sentence}."
        for sentence, targets in by_sentence.items()
    ]


def _targets(names: list[str], total: int) -> str:
    if len(names) == total:
        return "every target"
    return join_words(names) if len(names) <= 8 else f"{len(names)} of {total} targets"


def _distance(data: ReportData) -> list[str]:
    distance = data.optimum.distance_to_runs
    r_RM = np.unique(data.fit.table.r_RM, axis=0)
    if len(r_RM) < 2:
        return []
    apart_RR = np.abs(r_RM[:, None] - r_RM[None]).sum(axis=2) / 2
    np.fill_diagonal(apart_RR, np.inf)
    usual, largest = (float(f(apart_RR.min(axis=1))) for f in (np.median, np.max))
    if distance <= usual:
        return []
    text = (
        f"The optimum differs from the closest mixture that was run by {format_share(distance)} of"
        f" all tokens; a typical run differs from the one closest to it by {format_share(usual)}."
    )
    if distance > largest:
        text += " It lies further out than any run: trust the law less there."
    return [text]


def _bounds(data: ReportData) -> list[str]:
    optimum = data.optimum
    found: list[str] = []
    if optimum.at_floor:
        floored = _names(optimum.at_floor)
        found.append(
            f"At the least share that is allowed: {floored}. The law would take even less."
        )
    if optimum.at_cap:
        capped = _names(optimum.at_cap)
        found.append(
            f"At the largest share that is allowed: {capped}. More of it, or more epochs, would"
            " lower the loss further under this law."
        )
    return found


def _names(domains: Sequence[str]) -> str:
    if len(domains) > 8:
        return f"{len(domains)} domains (marked in the table)"
    return join_words([clean_name(name) for name in domains])


def _uncounted_targets(data: ReportData) -> list[str]:
    """Returns which targets outside the objective the optimum is predicted to harm."""
    if not data.optimum.gains:
        return []
    first = data.optimum.gains[0]
    base = predicted_losses(data, first.mixture)
    best = predicted_losses(data, data.optimum.mixture)
    worse: list[str] = []
    for target in data.fit.targets:
        change = best[target] - base[target]
        error = difference_sd(data.fit, {target: 1.0})
        if target not in target_weights(data) and change > 1.645 * error:
            worse.append(f"{clean_name(target)} +{format_number(change, error)}")
    if not worse:
        return []
    if len(worse) > 6:
        worse = [*worse[:5], f"{len(worse) - 5} more"]
    label = mixture_label(first.baseline)
    text = (
        f"Predicted to get worse than with {label}, as the objective does not count them:"
        f" {join_words(worse)} {unit_words(data)}."
    )
    return [text]


def _badly_predicted(data: ReportData) -> list[str]:
    error_T = np.nanmean(np.abs(data.fit.left_out_residual_RT), axis=0)
    mean_T = np.nanmean(np.abs(data.fit.mean_residual_RT), axis=0)
    bad = [
        clean_name(target)
        for target, error, mean in zip(data.fit.targets, error_T, mean_T, strict=True)
        if error >= mean
    ]
    if not bad:
        return []
    which = _targets(bad, len(data.fit.targets))
    return [f"The law predicts {which} no better than the mean of the other runs does."]


def _supply(data: ReportData) -> list[str]:
    found: list[str] = []
    known = {domain.name: domain for domain in data.domains}
    unknown = [
        name
        for name in data.fit.domains
        if name not in known or known[name].available_tokens is None
    ]
    if unknown:
        some = "any domain" if len(unknown) == len(data.fit.domains) else _names(unknown)
        found.append(
            f"How many tokens there are of {some} is not known, so the token supply limits no share"
            " and repetition is not counted."
        )
    missing = [t for t in target_weights(data) if t not in data.bytes_per_token]
    if missing and data.fit.table.unit == "nats_per_token":
        found.append(
            "Bytes per token are not known for the objective, so losses can't be given in bits per"
            " byte. Losses in nats per token can't be compared between tokenizers."
        )
    imported = data.runs.filter(data.runs["role"] == "imported").height
    if imported:
        found.append(
            f"{count_words(imported, 'run was', 'runs were')} imported. That they differ in nothing"
            " but their mixture is taken on trust."
        )
    return found


def _notes(data: ReportData) -> list[str]:
    """Returns the notes of the prediction that are not said already."""
    said = "noise between seeds" if data.fit.replicate_freedom == 0 else "\0"
    return [
        clean_name(note[0].upper() + note[1:].rstrip(".")) + "."
        for note in data.optimum.notes
        if note and said not in note
    ]
