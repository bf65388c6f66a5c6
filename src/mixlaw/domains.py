"""Domains: the sources of training text, how much of each there is, and what that allows."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mixlaw.errors import DomainError

_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
"""Control characters, halves of surrogate pairs (no file can hold them) and line separators."""

_CONFIG: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}
"""How these are read from `mixlaw.toml`: an unknown key is an error, docstrings are comments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Domain:
    """One source of training text."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CONFIG

    name: str
    """As it appears in tables, files and exports."""
    available_tokens: float | None = None
    """Unique tokens on hand, of the target tokenizer; not given: counted from the corpus, or not
    known."""
    documents: int | None = None
    """Documents on hand; not given: counted from the corpus, or not known."""
    max_epochs: float = 1.0
    """How often the domain may be repeated before it is used up."""
    bytes_per_token: float | None = None
    """Bytes of text per token of the target tokenizer; not given: that of the corpus, or not known.
    """

    def __post_init__(self) -> None:
        where = f"domain {self.name!r}"
        if not self.name.strip() or any(unicodedata.category(c) in _UNPRINTABLE for c in self.name):
            raise DomainError(
                f"a domain's name must be printable text, found {self.name!r}",
                do="give it a name without control characters",
            )
        for field in ("available_tokens", "max_epochs", "bytes_per_token", "documents"):
            value = getattr(self, field)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise DomainError(
                    f"{field} must be a positive number, found {value}",
                    where=where,
                    do=f"correct `{field}`, or leave it out where it is not known",
                )

    def cap(self, scale: "Scale") -> float:
        """Returns the largest proportion that the token supply allows at a scale, at most 1."""
        if self.available_tokens is None:
            return 1.0
        return min(1.0, self.available_tokens * self.max_epochs / scale.tokens)

    def epochs(self, proportion: float, tokens: float) -> float | None:
        """Returns how often a run of `tokens` tokens would see this domain; None: not known."""
        if self.available_tokens is None:
            return None
        return proportion * tokens / self.available_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """The run that is to be decided."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CONFIG

    tokens: float
    """Tokens that it will be trained on."""
    params: float | None = None
    """Its parameters, without embeddings; not given: those of the proxies."""

    def __post_init__(self) -> None:
        for field in ("tokens", "params"):
            value = getattr(self, field)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise DomainError(f"{field} of the scale must be positive, found {value}")


def check_domains(domains: Sequence[Domain]) -> tuple[Domain, ...]:
    """Returns the domains as a tuple.

    Raises:
        DomainError: There are fewer than two, or two have one name.
    """
    names = [domain.name for domain in domains]
    if len(names) < 2:
        raise DomainError(
            f"a mixture needs at least two domains, found {len(names)}",
            do="add domains with `mixlaw domains add NAME PATH...`",
        )
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DomainError(
            f"domain names must differ, but {doubled[0]!r} is there {names.count(doubled[0])} times"
        )
    return tuple(domains)


def token_caps(domains: Sequence[Domain], scale: Scale) -> dict[str, float]:
    """Returns each domain's cap at a scale: available tokens x allowed epochs / tokens, at most 1.

    Raises:
        DomainError: All domains together hold fewer tokens than the scale needs.
    """
    caps = {domain.name: domain.cap(scale) for domain in check_domains(domains)}
    if sum(caps.values()) < 1.0 - 1e-12:
        supply = sum((d.available_tokens or math.inf) * d.max_epochs for d in domains)
        raise DomainError(
            f"the domains must hold the {scale.tokens:.4g} tokens of the scale, but with the epochs"
            f" that are allowed they hold {supply:.4g}",
            do="raise `max_epochs`, plan fewer tokens, or give `available_tokens` in [[domains]]"
            " where the corpus is only a sample of what there is",
        )
    return caps


def convert_shares(
    shares: Mapping[str, float],
    bytes_from: Mapping[str, float],
    bytes_to: Mapping[str, float],
) -> dict[str, float]:
    """Returns shares of another tokenizer's tokens, for the same text.

    A domain's text has share x bytes per token of one tokenizer, which divided by bytes per token
    of the other gives its share there, when all are scaled to sum to one.

    Args:
        shares: Token shares.
        bytes_from: Bytes per token of each domain, of the tokenizer that the shares are of.
        bytes_to: Those of the other tokenizer.

    Raises:
        DomainError: A domain's bytes per token are not given.
    """
    for name in shares:
        if name not in bytes_from or name not in bytes_to:
            raise DomainError(
                f"shares of another tokenizer need the bytes per token of every domain, but those"
                f" of {name!r} are not given",
                do="give `bytes_per_token` for it in [[domains]]",
            )
    tokens = {name: share * bytes_from[name] / bytes_to[name] for name, share in shares.items()}
    total = math.fsum(tokens.values())
    return {name: count / total for name, count in tokens.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareConversion:
    """The same text in the tokens of two tokenizers: that of the proxies and that of the target."""

    proxy: Mapping[str, float]
    """Bytes per token of each domain's text, of the proxies' tokenizer."""
    target: Mapping[str, float]
    """Those of the tokenizer of the run that is to be decided."""

    def to_target(self, shares: Mapping[str, float]) -> dict[str, float]:
        """Returns shares of the target tokenizer's tokens, from those of the proxies'."""
        return convert_shares(shares, self.proxy, self.target)

    def to_proxy(self, shares: Mapping[str, float]) -> dict[str, float]:
        """Returns shares of the proxies' tokens, from those of the target tokenizer's."""
        return convert_shares(shares, self.target, self.proxy)

    def target_tokens(self, name: str, tokens: float) -> float:
        """Returns how many of the target tokenizer's tokens a domain's proxy tokens are."""
        return tokens * self.proxy[name] / self.target[name]
