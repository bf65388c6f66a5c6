"""Shares and tokens of a study between the tokenizer of its corpus and that of the target.

What is whose: shares, available tokens, caps and the scale are in the target tokenizer's tokens;
the corpus, the proxies' lengths and their specs are in the corpus tokenizer's. `Study.tables` gives
runs in the target's shares. Where the two are not known to differ they are taken as one.
"""

from collections.abc import Mapping
from dataclasses import replace

import polars as pl

from mixlaw.config import Config
from mixlaw.corpora import Corpus
from mixlaw.domains import Domain, ShareConversion
from mixlaw.errors import DesignError
from mixlaw.mixtures import Mixture
from mixlaw.observations import PROPORTION_PREFIX, decode_stages, encode_stages, proportion_domains
from mixlaw.study.question import Question, find_conversion

LEAST_TEXT = 0.02
"""Share of a domain's text on hand below which matching its repetition is refused: so few tokens
are no sample of it."""


def convert_runs(
    runs: pl.DataFrame, conversion: ShareConversion | None, *, to_proxy: bool = False
) -> pl.DataFrame:
    """Returns runs that were trained here with shares of the target tokenizer's tokens.

    Args:
        runs: The runs table, in the proxies' shares; imported runs are left as they are.
        conversion: Between the two; None: nothing is converted.
        to_proxy: The other way round.
    """
    if conversion is None or not runs.height:
        return runs
    names = [name for name in proportion_domains(runs) if name in conversion.target]
    columns = [PROPORTION_PREFIX + name for name in names]
    rows: list[tuple[str, str | None, dict[str, float]]] = []
    for row in runs.iter_rows(named=True):
        shares = {name: row[PROPORTION_PREFIX + name] for name in names}
        if row["origin"] not in (None, "trained") or not sum(shares.values()) > 0:
            rows.append((row["mixture_id"], row["stages"], shares))
            continue
        mixture = _converted(shares, conversion, to_proxy)
        stages = row["stages"]
        if stages is not None:
            stages = encode_stages(
                [
                    (until, _converted(dict(stage), conversion, to_proxy))
                    for until, stage in decode_stages(stages)
                ]
            )
        rows.append((mixture.mixture_id, stages, dict(mixture)))
    return runs.with_columns(
        pl.Series("mixture_id", [mixture_id for mixture_id, _, _ in rows], dtype=pl.String),
        pl.Series("stages", [stages for _, stages, _ in rows], dtype=pl.String),
        *(
            pl.Series(column, [shares[name] for _, _, shares in rows], dtype=pl.Float64)
            for name, column in zip(names, columns, strict=True)
        ),
    )


def target_shares(runs: pl.DataFrame, config: Config, corpus: Corpus | None) -> pl.DataFrame:
    """Returns runs trained on a corpus with shares of the target tokenizer's tokens."""
    if corpus is None:
        return runs
    counted = {domain.name: domain for domain in corpus.as_domains()}
    return convert_runs(runs, find_conversion(config, counted))


def describe_tokens(question: Question) -> tuple[str, ...]:
    """Returns what is to be said of tokenizers: what was converted, or what can't be."""
    if question.config.scale is None or not question.has_corpus:
        return ()
    if question.conversion is not None:
        return (
            "shares are of the target tokenizer's tokens; those of the proxies' tokens follow from"
            " bytes per token",
        )
    given = {domain.name: domain.bytes_per_token for domain in question.config.domains}
    missing = [name for name in question.names if given.get(name) is None]
    if not missing:
        return ()
    which = "any domain" if len(missing) == len(question.names) else ", ".join(missing)
    return (
        f"bytes per token of the target tokenizer are not given for {which}: shares, token supply"
        " and scale are taken to be of the corpus' tokenizer",
    )


def token_limits(question: Question, corpus: Corpus) -> dict[str, int]:
    """Returns the tokens of each domain that proxies may use to repeat text as the target would.

    A domain with U tokens in a run of D is repeated as often as one with U x d / D in a run of d.
    Domains whose supply is not known, or of which there is too little text here to be limited, have
    no limit.

    Raises:
        DesignError: A domain would have next to no text left.
    """
    if not question.config.design.match_repetition or question.config.scale is None:
        return {}
    shorter = question.proxy_scale.tokens / proxy_scale_tokens(question)
    on_corpus = {domain.name for domain in corpus.domains}
    limits: dict[str, int] = {}
    for domain in question.domains:
        if domain.available_tokens is None or domain.name not in on_corpus:
            continue
        on_hand = corpus.domain(domain.name).train_tokens
        supply = domain.available_tokens
        if question.conversion is not None:
            supply /= question.conversion.target_tokens(domain.name, 1.0)
        limit = round(supply * shorter)
        if limit >= on_hand:
            continue
        if limit < LEAST_TEXT * on_hand and limit < 20_000:
            raise DesignError(
                f"to repeat {domain.name} as often as the run of the scale does, proxies would"
                f" have {limit} of its {on_hand} tokens",
                where="match_repetition in [design]",
                do="train longer proxies, or turn it off",
            )
        limits[domain.name] = limit
    return limits


def describe_limits(question: Question, corpus: Corpus) -> tuple[str, ...]:
    """Returns what matching the target's repetition takes from the proxies' text."""
    if not question.config.design.match_repetition:
        return ()
    limits = token_limits(question, corpus)
    if not limits:
        return ("no domain's text has to be limited for proxies to repeat it as the target would",)
    parts = [
        f"{name} {limit / corpus.domain(name).train_tokens:.0%}" for name, limit in limits.items()
    ]
    return (
        "so that text is repeated as often as in the run of the scale, proxies use part of it: "
        + ", ".join(parts),
    )


def proxy_domains(question: Question, corpus: Corpus) -> list[Domain]:
    """Returns the domains with the tokens that proxies may use, as the corpus counts them.

    A domain that was made of others has no text of its own there: it is what mixlaw.toml says.
    """
    named = {domain.name: domain for domain in question.domains}
    counted = named | {domain.name: domain for domain in corpus.as_domains()}
    limits = token_limits(question, corpus)
    if not limits:
        return [counted[domain.name] for domain in question.domains]
    return [
        replace(
            counted[domain.name],
            available_tokens=limits.get(domain.name, counted[domain.name].available_tokens),
            max_epochs=domain.max_epochs,  # the target's, as the epochs are
        )
        for domain in question.domains
    ]


def proxy_scale_tokens(question: Question) -> float:
    """Returns the scale's tokens as the proxies' tokenizer would count them, for a typical mixture.

    The shares of the reference, else of what is on hand, else all alike are typical.
    """
    scale = question.scale or question.proxy_scale
    if question.conversion is None or question.config.scale is None:
        return scale.tokens
    mixture = question.compared_reference or Mixture.uniform(question.names)
    conversion = question.conversion
    return scale.tokens * sum(
        share * conversion.target[name] / conversion.proxy[name] for name, share in mixture.items()
    )


def _converted(shares: Mapping[str, float], conversion: ShareConversion, to_proxy: bool) -> Mixture:
    convert = conversion.to_proxy if to_proxy else conversion.to_target
    return Mixture.normalized(convert(shares))
