"""A study's fit at the scale that it asks about, with repeated text counted as it is configured.

What is whose: shares, available tokens, caps and the scale are in the target tokenizer's tokens;
the corpus, the proxies' lengths and their steps are in the corpus tokenizer's. `Study.tables` gives
the runs' shares in the target's, `ShareConversion` goes between them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from jaxtyping import Float

from mixlaw.corpora import Corpus
from mixlaw.domains import Domain, Scale, ShareConversion
from mixlaw.errors import FitError, MixlawError
from mixlaw.fit import FitResult
from mixlaw.fit.repetition import RepetitionFit, TokenLoss, fit_repetition, fit_token_loss
from mixlaw.laws.repetition import PUBLISHED_CONSTANT
from mixlaw.mixtures import Mixture
from mixlaw.optimize import Optimum
from mixlaw.optimize.at_scale import ScalePoint, fit_at_scale, locate_scale
from mixlaw.optimize.repetition import (
    ShareMap,
    compare_epochs,
    effective_map,
    fit_effective,
    repeat_fit,
    supply_array,
)
from mixlaw.optimize.savings import Savings, predict_savings
from mixlaw.optimize.step_curves import StepLosses, predict_step_curves, read_step_losses
from mixlaw.study.question import Question
from mixlaw.study.tokens import convert_runs, proxy_domains, proxy_scale_tokens


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScaledFit:
    """A law for the run that is to be decided."""

    fit: FitResult
    """Takes that run's token shares."""
    curve_fit: FitResult
    """The same law of effective shares, for the curves over steps."""
    losses: StepLosses | None
    """Losses of its mixtures by step; None: those that were observed."""
    effective: ShareMap | None
    """Turns that run's token shares into effective ones; None: they are the same."""
    sentences: tuple[str, ...]
    """What was done to get there, and why it wasn't where it wasn't."""
    is_extrapolated: bool
    """Whether the scale is another than the law is for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Repeats:
    """What repeated text is worth, as the study wants it."""

    constant: float
    fitted: RepetitionFit | None
    token_loss: TokenLoss | None
    sentences: tuple[str, ...]


def fit_at_question(
    fit: FitResult,
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    question: Question,
    corpus: Corpus | None = None,
) -> ScaledFit:
    """Returns the law for the run that a study is to decide.

    Args:
        fit: The law at the runs' own scale.
        runs: The fitted runs, all sizes, in the target tokenizer's shares.
        observations: Their losses at all steps.
        question: The study's question.
        corpus: What proxies are trained on; None: the runs are imported.

    Raises:
        MixlawError: The law can't be fitted again.
    """
    point, sentences, is_extrapolated = find_point(fit, runs, observations, question)
    repeats = _find_repeats(fit, runs, observations, question, corpus)
    share_map = _proxy_map(fit, question, corpus, repeats)
    losses = None
    if point is None:
        inner = fit if share_map is None else fit_effective(fit, share_map)
    else:
        weights = question.objective(fit.targets).shares
        there = fit_at_scale(fit, runs, observations, point, weights=weights, share_map=share_map)
        inner, losses = there.fit, there.losses
    if repeats is not None and repeats.token_loss is not None and is_extrapolated:
        # The law stays that of the runs' length, and so does what more tokens are worth.
        lengthened = replace(repeats.token_loss, tokens=proxy_scale_tokens(question))
        repeats = replace(repeats, token_loss=lengthened)
    answer, effective = _put_into_run(inner, question, repeats)
    return ScaledFit(
        fit=answer,
        curve_fit=inner,
        losses=losses,
        effective=effective,
        sentences=(*sentences, *(() if repeats is None else repeats.sentences)),
        is_extrapolated=is_extrapolated,
    )


def savings_of(
    best: Optimum,
    scaled: ScaledFit,
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    *,
    params: float | None = None,
    token_factor: float = 1.0,
) -> dict[str, Savings]:
    """Returns what an optimum saves against each baseline.

    Args:
        best: The optimum.
        scaled: The fit that it was found with.
        runs: The fitted runs.
        observations: Their losses at all steps.
        params: Parameters of the run that is to be decided, without embeddings.
        token_factor: The target tokenizer's tokens in one of the runs'.
    """
    fit = scaled.curve_fit
    mixtures = {"": best.mixture, **{gain.baseline: gain.mixture for gain in best.gains}}
    if scaled.effective is not None:
        mixtures = {
            name: Mixture.from_array(
                fit.domains, scaled.effective(mixture.array(fit.domains)[None])[0]
            )
            for name, mixture in mixtures.items()
        }
    losses = scaled.losses or read_step_losses(fit, runs, observations)
    if losses.tokens_per_step is not None:
        losses = replace(losses, tokens_per_step=losses.tokens_per_step * token_factor)
    curves = predict_step_curves(fit, losses, mixtures, best.weights)
    params = None if scaled.is_extrapolated else params
    found = {
        gain.baseline: predict_savings(
            (gain.value, gain.low, gain.high),
            curves[""],
            baseline=gain.baseline,
            baseline_curve=curves[gain.baseline],
            params=params,
        )
        for gain in best.gains
    }
    if not scaled.is_extrapolated:
        return found
    return {
        name: replace(one, note="; ".join(filter(None, (one.note, "of the runs' own length"))))
        for name, one in found.items()
    }


def repetition_cautions(
    best: Optimum,
    fit: FitResult,
    question: Question,
    corpus: Corpus | None = None,
) -> tuple[str, ...]:
    """Returns sentences on domains that the answer repeats more often than the proxies did.

    Args:
        best: The answer.
        fit: The fit at the runs' own scale.
        question: The study's question.
        corpus: What proxies are trained on.
    """
    if question.scale is None or fit.table.tokens is None:
        return ()
    epochs_M = _proxy_epochs(fit, question, corpus)
    return compare_epochs(
        best.mixture,
        _tokens(question.domains),
        tokens=question.scale.tokens,
        proxy_epochs=dict(zip(fit.domains, epochs_M.tolist(), strict=True)),
    )


def find_point(
    fit: FitResult, runs: pl.DataFrame, observations: pl.DataFrame, question: Question
) -> tuple[ScalePoint | None, tuple[str, ...], bool]:
    """Returns where the law is wanted, what is to be said of it, and whether it is out of reach."""
    scale = question.config.scale
    if scale is None:
        return None, (), False
    wanted = Scale(tokens=proxy_scale_tokens(question), params=scale.params)
    try:
        at = None if fit.table.step is None else float(fit.table.step)
        point = locate_scale(wanted, runs, observations, at=at)
    except FitError as error:
        return None, (f"the law is that of the runs' own scale: {error.problem}",), True
    if not point.is_beyond:
        return None, (), False
    told = (
        f"the law is fitted to losses at {point.params:.4g} parameters and step {point.step:.0f},"
        " to which each mixture's own curve was followed"
    )
    return point, (told,), False


def _find_repeats(
    fit: FitResult,
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    question: Question,
    corpus: Corpus | None,
) -> _Repeats | None:
    """Returns what repeated text is worth; None: as much as fresh text, or nothing repeats."""
    law = question.config.repetition.law
    if law == "none":
        return None
    if not _can_repeat(question) and _proxy_epochs(fit, question, corpus).max() <= 1:
        return _Repeats(
            constant=PUBLISHED_CONSTANT,
            fitted=None,
            token_loss=None,
            sentences=(
                "neither the runs nor any allowed mixture repeat a domain: repetition changes"
                " nothing",
            ),
        )
    supply = _known(_proxy_supply(question, corpus))
    theirs = convert_runs(runs, question.conversion, to_proxy=True)
    fitted, told = None, (
        f"repeated text counts as the constant of Muennighoff et al. says, R* ="
        f" {PUBLISHED_CONSTANT:g}: measured on one domain with larger models, not on these runs"
    )  # fmt: skip
    if law == "fitted":
        try:
            fitted = fit_repetition(theirs, observations, supply, targets=fit.targets)
            told = f"repeated text counts by {fitted.sentence}"
            if not fitted.is_identified:
                told = f"{fitted.sentence}: the constant of Muennighoff et al. is used instead"
                fitted = None
        except FitError as error:
            told = f"{error.problem}: the constant of Muennighoff et al. is used instead"
    constant = PUBLISHED_CONSTANT if fitted is None else fitted.constant
    token_loss, sentences = None, [told]
    try:
        found = fit_token_loss(theirs, observations, supply, constant=constant, targets=fit.targets)
        token_loss = found if np.any(found.loss_T > 0) else None
    except MixlawError:
        pass  # too few losses: said in the next line
    if token_loss is None:
        sentences.append(
            "what more tokens are worth is not known (it takes runs at several steps): repetition"
            " counts in the shares alone, not in the length of the run"
        )
    return _Repeats(
        constant=constant, fitted=fitted, token_loss=token_loss, sentences=tuple(sentences)
    )


def _can_repeat(question: Question) -> bool:
    if question.scale is None:
        return False
    tokens, caps = question.scale.tokens, question.caps
    return any(
        domain.available_tokens is not None
        and caps[domain.name] * tokens > domain.available_tokens * (1 + 1e-9)
        for domain in question.domains
    )


def _proxy_epochs(
    fit: FitResult, question: Question, corpus: Corpus | None
) -> Float[np.ndarray, " M"]:
    """Returns the most epochs of each domain in any fitted run; 0 where they are not known."""
    if fit.table.tokens is None:
        return np.zeros(len(fit.domains))
    supply_M = supply_array(fit.domains, _proxy_supply(question, corpus))
    r_RM = _rows(fit.table.r_RM, fit.domains, question.conversion, to_proxy=True)
    return np.max(r_RM * fit.table.tokens / supply_M, axis=0)


def _proxy_map(
    fit: FitResult, question: Question, corpus: Corpus | None, repeats: _Repeats | None
) -> ShareMap | None:
    """Returns what turns the runs' shares into effective ones; None: none of them repeats text."""
    if repeats is None or fit.table.tokens is None:
        return None
    in_proxy_tokens = effective_map(
        fit.domains,
        _proxy_supply(question, corpus),
        tokens=fit.table.tokens,
        constant=repeats.constant,
    )

    def effective(r_RM: np.ndarray) -> np.ndarray:
        p_RM = _rows(r_RM, fit.domains, question.conversion, to_proxy=True)
        return _rows(in_proxy_tokens(p_RM), fit.domains, question.conversion, to_proxy=False)

    return effective


def _put_into_run(
    inner: FitResult, question: Question, repeats: _Repeats | None
) -> tuple[FitResult, ShareMap | None]:
    """Returns the fit of the run's own shares, and what makes effective ones of them."""
    if repeats is None or not _can_repeat(question) or question.scale is None:
        return inner, None
    supply = _tokens(question.domains)
    tokens = question.scale.tokens
    token_loss = repeats.token_loss
    if token_loss is not None:  # in the target tokenizer's tokens
        factor = tokens / proxy_scale_tokens(question)
        token_loss = replace(token_loss, tokens=token_loss.tokens * factor)
    draws_B = None
    if repeats.fitted is not None:
        draws_B = repeats.fitted.draw(len(inner.theta_draws_BTP))
    answer = repeat_fit(
        inner,
        supply,
        tokens=tokens,
        constant=repeats.constant,
        constant_draws=draws_B,
        token_loss=token_loss,
    )
    share_map = effective_map(inner.domains, supply, tokens=tokens, constant=repeats.constant)
    return answer, share_map


def _proxy_supply(question: Question, corpus: Corpus | None) -> dict[str, float | None]:
    """Returns the tokens of each domain that the runs had, in their own tokenizer's tokens."""
    return _tokens(question.domains if corpus is None else proxy_domains(question, corpus))


def _tokens(domains: Sequence[Domain]) -> dict[str, float | None]:
    return {
        domain.name: None if domain.available_tokens is None else float(domain.available_tokens)
        for domain in domains
    }


def _known(supply: Mapping[str, float | None]) -> dict[str, float]:
    return {name: tokens for name, tokens in supply.items() if tokens is not None}


def _rows(
    r_RM: Float[np.ndarray, "R M"],
    domains: tuple[str, ...],
    conversion: ShareConversion | None,
    *,
    to_proxy: bool,
) -> Float[np.ndarray, "R M"]:
    """Returns rows of shares of the other tokenizer's tokens."""
    if conversion is None:
        return r_RM
    ratio_M = np.array([conversion.target_tokens(name, 1.0) for name in domains])
    scaled_RM = r_RM / ratio_M if to_proxy else r_RM * ratio_M
    return scaled_RM / scaled_RM.sum(axis=1, keepdims=True)
