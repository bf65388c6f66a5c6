"""The report's sentences, each made from the data."""

import math

from mixlaw.mixtures import Mixture
from mixlaw.optimize import Gain, MeanPlusSpread, TailLoss, WeightedLoss
from mixlaw.optimize.baselines import TEMPERATURE
from mixlaw.report.data import ReportData
from mixlaw.report.decision import (
    Decision,
    bits_per_byte,
    comparisons,
    decide,
    is_decisive,
    missed_mixtures,
    predicted_losses,
)
from mixlaw.report.numbers import (
    count_words,
    format_count,
    format_error,
    format_interval,
    format_number,
    format_percent,
    format_share,
    interval_error,
    join_words,
)
from mixlaw.report.palette import clean_name, mixture_label
from mixlaw.verify import OPTIMUM, Comparison, Verification

_UNITS = {
    "nats_per_token": "nats per token",
    "bits_per_byte": "bits per byte",
    "error": "of error",
    "relative": "of the reference's loss",
}


def unit_words(data: ReportData) -> str:
    """Returns the unit of all losses."""
    unit = data.fit.table.unit
    return _UNITS.get(unit, clean_name(unit))


def objective_words(data: ReportData) -> str:
    """Returns the unit of the objective, of its gains and of prices."""
    unit = data.optimum.objective.unit(data.fit.table.unit)
    return _UNITS.get(unit, clean_name(unit))


def share_words(mixture: Mixture, limit: int = 6) -> str:
    """Returns `code 0.41, web 0.35 and books 0.24`, the largest shares first."""
    ranked = sorted(mixture.items(), key=lambda item: (-item[1], item[0]))
    shown = ranked
    if len(ranked) > limit + 1:
        shown = [item for item in ranked[:limit] if item[1] >= 0.02] or ranked[:1]
    words = [f"{clean_name(name)} {format_share(share)}" for name, share in shown]
    rest = ranked[len(shown) :]
    if rest:
        together = format_share(math.fsum(share for _, share in rest))
        words.append(f"{len(rest)} smaller ones {together} together (listed below)")
    return join_words(words)


# -------------------------------------------------------------------------------- first lines


def headline(data: ReportData) -> tuple[str, str]:
    """Returns what to do, and why: the two parts of the first sentence."""
    decision = decide(data)
    shares = share_words(decision.mixture)
    if decision.name == OPTIMUM:
        return f"Train on {shares}:", _reason(data, decision)
    label = mixture_label(decision.name)
    is_first = not data.optimum.gains or decision.name == data.optimum.gains[0].baseline
    do = f"Keep {label}" if is_first else f"Train on {label} instead"
    return f"{do}: {shares}.", _reason(data, decision)


def _reason(data: ReportData, decision: Decision) -> str:
    if decision.baseline is None:
        return "the lowest loss that the law predicts. There is no baseline to compare it with."
    unit, label = unit_words(data), mixture_label(decision.baseline)
    if decision.is_measured:
        found = next(c for c in comparisons(data) if c.baseline == decision.baseline)
        level = data.optimum.level if data.verification is None else data.verification.level
        value, limits = _difference(found.difference, found.low, found.high, level)
        seeds = count_words(len(found.steps_to_match), "seed")
        if decision.verdict == "gain":
            return f"trained with {seeds}, it ended {value} {unit} below {label} ({limits})."
        side = "below" if found.difference > 0 else "above"
        if decision.verdict == "loss":
            return (
                f"Trained with {seeds}, the law's optimum lost: it ended {value} {unit}"
                f" {side} {label} ({limits})."
            )
        return (
            f"There is no evidence of a gain: trained with {seeds}, the law's optimum ended"
            f" {value} {unit} {side} {label}, within the noise of seeds ({limits})."
        )
    gain, unit = data.optimum.gain_over(decision.baseline), objective_words(data)
    value, limits = _difference(gain.value, gain.low, gain.high, data.optimum.level)
    if decision.verdict == "gain":
        where = "at the scale of the small runs, " if data.is_extrapolated else ""
        ahead = f"{where}predicted to end {value} {unit} below {label} ({limits})"
        return f"{ahead}. Not tested by training yet."
    if decision.verdict == "loss":
        return (
            f"The law's optimum is predicted to be worse than {label} ({_gain_limits(data, gain)})."
        )
    return (
        f"There is no evidence of a gain: the law's optimum is predicted to end {value} {unit}"
        f" {'below' if gain.value > 0 else 'above'} {label}, within the error of such predictions"
        f" ({_gain_limits(data, gain)})."
    )


def _difference(value: float, low: float, high: float, level: float) -> tuple[str, str]:
    """Returns the size of a difference and its interval, turned so that both are positive."""
    if value < 0:
        low, high = -high, -low
    number = format_number(abs(value), interval_error(low, high))
    return number, f"{level:.0%} interval {format_interval(low, high)}"


def _gain_limits(data: ReportData, gain: Gain) -> str:
    return f"{data.optimum.level:.0%} interval of the gain {format_interval(gain.low, gain.high)}"


def scale_sentence(data: ReportData) -> str:
    """Returns which run is decided, and whether that is beyond the runs that were observed."""
    own = _scale_words(data.proxy_params, data.proxy_tokens)
    if data.answer_fit is not None and data.answer_fit is not data.fit:
        there = _scale_words(data.scale.params, data.scale.tokens) if data.scale else ""
        return (
            f"This is a decision at {there}. The runs have at most {own}: each mixture's losses"
            " were followed along its own curve to that scale, and the law was fitted there. The"
            " error of that step is in the intervals as far as larger runs, held out, tell it."
        )
    if not data.is_extrapolated:
        where = "the proxies' own scale" if _is_trained(data) else "the scale of the imported runs"
        return f"This is a decision at {where} ({own}); nothing is extrapolated."
    scale = data.scale
    params = data.proxy_params if scale is None or scale.params is None else scale.params
    wanted = _scale_words(params, None if scale is None else scale.tokens)
    return (
        "This is an extrapolation, and the law cannot vouch for it. It was fitted to runs of"
        f" {own}; the run to be decided has {wanted}. A mixing law knows nothing of size: it says"
        " what is best for the small runs, and all intervals hold there. Whether that is still"
        " best at the larger scale is not known."
    )


def _scale_words(params: float | None, tokens: float | None) -> str:
    return (
        ("an unknown number of" if params is None else format_count(params))
        + " parameters, "
        + ("an unknown number of" if tokens is None else format_count(tokens))
        + " tokens"
    )


def _is_trained(data: ReportData) -> bool:
    return "imported" not in data.runs["role"].to_list()


def objective_sentence(data: ReportData) -> str:
    """Returns what is minimised."""
    objective = data.optimum.objective
    if not isinstance(objective, WeightedLoss):
        return clean_name(objective.describe())
    shares = sorted(objective.shares.items(), key=lambda item: (-item[1], item[0]))
    if len(shares) == 1:
        return f"the loss on held-back text of {clean_name(shares[0][0])}"
    if len({round(share, 9) for _, share in shares}) == 1:
        names = [clean_name(target) for target, _ in shares]
        if len(names) > 8:
            names = [*names[:6], f"{len(names) - 6} more"]
        return f"the mean loss on held-back text of {join_words(names)}"
    words = [f"{clean_name(target)} {format_share(share)}" for target, share in shares[:6]]
    if len(shares) > 6:
        rest = math.fsum(share for _, share in shares[6:])
        words.append(f"{len(shares) - 6} more {format_share(rest)} together")
    return f"the weighted loss on held-back text, with the weights {join_words(words)}"


def certainty_sentence(data: ReportData) -> str:
    """Returns the predicted gain over the first baseline, and the verdict."""
    optimum = data.optimum
    error = interval_error(optimum.loss_low, optimum.loss_high)
    limits = format_interval(optimum.loss_low, optimum.loss_high)
    loss = (
        f"The law predicts {format_number(optimum.loss, error)} {objective_words(data)} for its"
        f" optimum ({optimum.level:.0%} interval {limits})"
    )
    if not optimum.gains:
        return f"{loss}. There is no baseline, so there is no gain to state."
    first = optimum.gains[0]
    others = [gain for gain in optimum.gains[1:] if gain.verdict != first.verdict]
    text = f"{loss}, {gain_words(data, first)} {_verdict_words(first)}"
    for gain in others:
        value, limits = _difference(gain.value, gain.low, gain.high, optimum.level)
        side = "below" if gain.value >= 0 else "above"
        text += f" Against {mixture_label(gain.baseline)} it is {value} {side} ({limits}):"
        text += f" {_VERDICTS[gain.verdict]}."
    return text


def savings_sentence(data: ReportData) -> str:
    """Returns how much sooner the optimum is predicted to be as good as the first baseline."""
    gains = data.optimum.gains
    savings = data.optimum.savings.get(gains[0].baseline) if gains else None
    if savings is None or savings.steps_saved is None or gains[0].verdict != "gain":
        return ""
    text = savings.sentence().replace("the baseline", mixture_label(gains[0].baseline))
    return f"Predicted: the optimum {text}."


_VERDICTS = {
    "gain": "a gain",
    "no evidence": "no evidence of a gain",
    "loss": "a loss",
}


def gain_words(data: ReportData, gain: Gain) -> str:
    """Returns a predicted gain in the unit, in bits per byte where known, and in percent."""
    value, limits = _difference(gain.value, gain.low, gain.high, data.optimum.level)
    side = "below" if gain.value >= 0 else "above"
    also = [f"{percent_of_loss(data, gain)} of its {loss_word(data)}"]
    bits = gain_in_bits(data, gain)
    if bits is not None:
        also.insert(0, f"{bits} bits per byte")
    return f"{value} {side} {mixture_label(gain.baseline)} ({limits}; {', '.join(also)})."


def loss_word(data: ReportData) -> str:
    """Returns what the objective is called beside a number."""
    return "error" if data.optimum.objective_unit == "error" else "loss"


def percent_of_loss(data: ReportData, gain: Gain) -> str:
    """Returns a predicted difference in percent of the baseline's loss, without its sign."""
    # The baseline's own value; a relative objective is a share of a loss already.
    is_relative = data.optimum.objective_unit == "relative"
    base = 1.0 if is_relative else data.optimum.loss + gain.value
    return format_percent(abs(gain.value) / base, interval_error(gain.low, gain.high) / base)


def gain_in_bits(data: ReportData, gain: Gain) -> str | None:
    """Returns a predicted difference in bits per byte, without its sign; None: not known.

    Only a weighted loss has one: of the worst of several, two mixtures have different ones.
    """
    if not isinstance(data.optimum.objective, WeightedLoss | TailLoss | MeanPlusSpread):
        return None
    best = predicted_losses(data, data.optimum.mixture)
    base = predicted_losses(data, gain.mixture)
    bits = bits_per_byte(data, {target: base[target] - best[target] for target in base})
    if bits is None:
        return None
    ratio = abs(bits / gain.value) if gain.value else 1.0
    return format_number(abs(bits), ratio * interval_error(gain.low, gain.high))


def _verdict_words(gain: Gain) -> str:
    if gain.verdict == "gain":
        return "Verdict: a gain; even the lower limit is above zero."
    if gain.verdict == "loss":
        return "Verdict: a loss; the whole interval is below zero."
    return "Verdict: no evidence of a gain; the interval holds zero."


# -------------------------------------------------------------------------------- the test


def test_sentence(data: ReportData) -> str:
    """Returns what training the optimum and the baselines has shown."""
    verification = data.verification
    if verification is None:
        return (
            "Not tested yet: all of this is a prediction. “mixlaw verify” trains the optimum and"
            " the baselines with fresh seeds and compares them."
        )
    parts = [winner_sentence(data)]
    first = next(iter(verification.comparisons), None)
    if first is not None:
        parts.append(steps_sentence(first))
    parts.append(coverage_sentence(verification))
    return " ".join(part for part in parts if part)


def winner_sentence(data: ReportData) -> str:
    """Returns which baselines the optimum beat when both were trained, and which beat it."""
    found = comparisons(data)
    groups = {
        "beat": [c for c in found if is_decisive(c) and c.winner == OPTIMUM],
        "lost to": [c for c in found if is_decisive(c) and c.winner == c.baseline],
    }
    groups["showed no clear difference from"] = [
        c for c in found if is_decisive(c) and c.winner not in (OPTIMUM, c.baseline)
    ]
    groups["was trained with too few seeds to compare it with"] = [
        c for c in found if not is_decisive(c)
    ]
    words = [
        f"{verb} {join_words([mixture_label(c.baseline) for c in members])}"
        for verb, members in groups.items()
        if members
    ]
    if not words:
        return "Only the optimum was trained, so nothing was compared."
    seeds = min(len(c.steps_to_match) for c in found)
    return f"Trained with {count_words(seeds, 'seed')} each, the optimum {join_words(words)}."


def steps_sentence(comparison: Comparison) -> str:
    """Returns after how many steps the optimum was as good as a baseline at its end."""
    label = mixture_label(comparison.baseline)
    reached = [step for step in comparison.steps_to_match if step is not None]
    if not reached:
        return (
            f"The optimum did not reach the final loss of {label} within {comparison.steps} steps."
        )
    after = f"{sum(reached) / len(reached):.0f} of {comparison.steps} steps"
    text = f"The optimum reached the final loss of {label} after {after}"
    if len(reached) > 1:
        text += f" (by seed {join_words([f'{step:.0f}' for step in reached])})"
    missing = len(comparison.steps_to_match) - len(reached)
    if missing:
        return f"{text}; with {count_words(missing, 'seed')} it did not reach it."
    speedup = comparison.speedup
    if speedup is not None and speedup >= 1.05:
        return f"{text}: {format_number(speedup, 0.05)} times as fast."
    return f"{text}."


def coverage_sentence(verification: Verification) -> str:
    """Returns how many of the verification runs ended where they were predicted."""
    inside = sum(mixture.num_inside for mixture in verification.mixtures)
    count = sum(len(mixture.measured) for mixture in verification.mixtures)
    return (
        f"{inside} of {count} runs ended inside their predicted {verification.level:.0%} interval."
    )


def alerts(data: ReportData) -> tuple[str, ...]:
    """Returns what must not be overlooked: extrapolation, a lost test, a wrong prediction."""
    found: list[str] = [scale_sentence(data)] if data.is_extrapolated else []
    promised = {gain.baseline for gain in data.optimum.gains if gain.verdict == "gain"}
    decisive = [comparison for comparison in comparisons(data) if is_decisive(comparison)]
    lost = [comparison for comparison in decisive if comparison.winner == comparison.baseline]
    if lost:
        values = [
            f"{format_number(-c.difference, interval_error(c.low, c.high))} above"
            f" {mixture_label(c.baseline)}"
            for c in lost
        ]
        surprise = any(comparison.baseline in promised for comparison in lost)
        found.append(
            f"The optimum lost when it was trained: it ended {join_words(values)}, in"
            f" {unit_words(data)}." + (" The law had predicted a gain." if surprise else "")
        )
    open_ones = [c for c in decisive if c.winner not in (OPTIMUM, c.baseline)]
    unconfirmed = [mixture_label(c.baseline) for c in open_ones if c.baseline in promised]
    if unconfirmed:
        words = join_words(unconfirmed)
        found.append(f"The predicted gain over {words} was not confirmed by training.")
    for missed in missed_mixtures(data):
        error = interval_error(missed.predicted_low, missed.predicted_high)
        limits = format_interval(missed.predicted_low, missed.predicted_high)
        found.append(
            f"The prediction was wrong for {mixture_label(missed.name)}: predicted"
            f" {format_number(missed.predicted, error)} ({data.optimum.level:.0%} interval"
            f" {limits}),"
            f" measured {format_number(missed.mean, error)} {unit_words(data)} on average."
        )
    return tuple(text.strip() for text in found)


# -------------------------------------------------------------------------------- predictions


def heldout_sentence(data: ReportData) -> str:
    """Returns how well losses of mixtures that the fit did not see were predicted."""
    score = data.holdout
    if score is None:
        return (
            "No mixture was held out, so the only test of the law is to fit it without one mixture"
            " and predict that one, for each in turn."
        )
    whole = score.objective
    targets = score.scores[:-1]
    count, inside = sum(s.count for s in targets), sum(s.inside for s in targets)
    ratio = whole.mean_mae / whole.mae if whole.mae > 0 else math.inf
    law_error = format_error(whole.mae, whole.count)
    mean_error = format_error(whole.mean_mae, whole.count)
    text = (
        f"On {count_words(len(score.run_ids), 'mixture')} that the fit did not see, the objective"
        f" was predicted with a mean error of {law_error} {unit_words(data)}."
        f" Predicting the mean of the fitted runs instead errs by {mean_error}"
    )
    text += (
        f", {format_number(ratio, ratio / 4)} times as much."
        if ratio >= 1
        else ", less than the law."
    )
    if not math.isnan(whole.spearman):
        text += f" The rank correlation is {format_number(whole.spearman, 0.05)}"
        text += " (1: the order of the mixtures was predicted without a mistake)."
    if count:
        text += (
            f" {inside} of {count} losses ({inside / count:.0%}) lay inside their"
            f" {score.level:.0%} interval, which is {score.width_ratio:.1f} mean errors wide."
        )
    return text


def baselines_sentence(data: ReportData) -> str:
    """Returns what the baselines are, and that some had to be moved."""
    names = [gain.baseline for gain in data.optimum.gains]
    meanings = {
        "reference": "your mixture is what you would use today",
        "proportional": "the proportional mixture takes each domain in proportion to its tokens",
        "uniform": "the uniform mixture takes all alike",
        "unimax": "the UniMax mixture takes all as alike as the allowed epochs let it",
        "temperature": "the temperature mixture takes the tokens to the power 1/τ, with τ ="
        f" {TEMPERATURE:.2f}",
    }
    words = [meanings[name] for name in names if name in meanings]
    if not words:
        return ""
    text = join_words(words) + "."
    return text[0].upper() + text[1:] + " Floors and caps hold for them as well."
