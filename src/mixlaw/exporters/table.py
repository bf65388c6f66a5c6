"""What every exporter writes from: one row per domain, with its tokens and epochs at the scale."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mixlaw.domains import Domain, Scale
from mixlaw.errors import ExportError
from mixlaw.mixtures import Mixture


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportRow:
    """One domain of a mixture."""

    name: str
    proportion: float
    """Share of the tokens."""
    tokens: int | None
    """Tokens of this domain at the scale; None: no scale was given."""
    epochs: float | None
    """How often the domain is seen at the scale; None: its size or the scale is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportTable:
    """A mixture as it is exported."""

    mixture: Mixture
    rows: tuple[ExportRow, ...]
    scale: Scale | None
    prefixes: Mapping[str, str]
    """Path prefix of each domain's token files, where it was given."""

    @classmethod
    def of(
        cls,
        mixture: Mixture,
        *,
        domains: Sequence[Domain] | None = None,
        scale: Scale | None = None,
        prefixes: Mapping[str, str] | None = None,
    ) -> "ExportTable":
        """Returns the table of a mixture, in the order of `domains` where they are given.

        Raises:
            ExportError: A name can't be written as text, or a prefix is for an unknown domain.
            MixtureError: The mixture is over other domains.
        """
        known = {domain.name: domain for domain in domains or ()}
        if known:
            mixture = mixture.reordered(tuple(known))
        for name in mixture:
            if re.search("[\ud800-\udfff]", name):
                raise ExportError(
                    f"a domain's name must be Unicode text to be written, found {name!r}",
                    do="rename the domain",
                )
        for name in prefixes or ():
            if name not in mixture:
                raise ExportError(
                    f"a prefix was given for {name!r}, which is no domain here",
                    do=f"the domains are {', '.join(mixture)}",
                )
        return cls(
            mixture=mixture,
            rows=tuple(
                _row(name, share, known.get(name), scale) for name, share in mixture.items()
            ),
            scale=scale,
            prefixes=dict(prefixes or {}),
        )


def _row(name: str, share: float, domain: Domain | None, scale: Scale | None) -> ExportRow:
    return ExportRow(
        name=name,
        proportion=share,
        tokens=None if scale is None else round(share * scale.tokens),
        epochs=None if scale is None or domain is None else domain.epochs(share, scale.tokens),
    )
