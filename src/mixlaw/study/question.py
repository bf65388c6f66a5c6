"""What a study asks: which domains, at which scale, for which objective, within what limits."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import polars as pl

from mixlaw.config import Config
from mixlaw.corpora import Corpus
from mixlaw.domains import Domain, Scale, check_domains, token_caps
from mixlaw.errors import DomainError, MixtureError, OptimizeError, StudyError
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.observations import PROPORTION_PREFIX, fill_shares, proportion_domains
from mixlaw.optimize import WeightedLoss, baseline_mixtures

CONSTRAINTS = "[constraints] in mixlaw.toml, or what runs and token supply allow"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedRegion:
    """What imported runs have seen: how little and how much of each domain, at which scale."""

    least: Mapping[str, float]
    most: Mapping[str, float]
    scale: Scale | None
    """Parameters and tokens where all runs agree on the tokens; None: they don't, or not known."""

    @classmethod
    def of(cls, sources: Sequence[tuple[pl.DataFrame, pl.DataFrame]]) -> "ImportedRegion | None":
        """Returns the region of the imported sources' runs; None: there are none."""
        if not sources:
            return None
        runs = fill_shares(pl.concat([source[0] for source in sources], how="diagonal"))
        tokens = pl.concat([source[1] for source in sources]).group_by("run_id")
        last = tokens.agg(pl.col("tokens").max())["tokens"].unique().to_list()
        sizes = runs["params_non_embedding"].unique().to_list()
        known = len(last) == 1 and last[0]
        shares = {name: runs[PROPORTION_PREFIX + name] for name in proportion_domains(runs)}
        return cls(
            least={name: min(column.to_list()) for name, column in shares.items()},
            most={name: max(column.to_list()) for name, column in shares.items()},
            scale=Scale(tokens=last[0], params=sizes[0] if len(sizes) == 1 else None)
            if known
            else None,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """Domains, scale, objective and limits, from `mixlaw.toml` and what the corpus counts."""

    config: Config
    domains: tuple[Domain, ...]
    """Training domains, in the order of `mixlaw.toml`."""
    has_corpus: bool
    """Whether proxies can be trained here; otherwise the runs are imported."""
    imported: ImportedRegion | None
    """What the imported runs have seen; None: there are none."""

    @classmethod
    def of(
        cls, config: Config, corpus: Corpus | None, imported: ImportedRegion | None
    ) -> "Question":
        """Returns the question of a study.

        The domains are those of `mixlaw.toml`, completed with what the corpus counts; without any
        there, those of the corpus, else those of the imported runs.

        Raises:
            StudyError: There are no domains anywhere.
            DomainError: Fewer than two, or two of one name.
        """
        counted = {} if corpus is None else {d.name: d for d in corpus.as_domains()}
        if config.domains:
            domains = [_complete(domain, counted.get(domain.name)) for domain in config.domains]
        elif counted:
            domains = list(counted.values())
        else:
            domains = [Domain(name=name) for name in imported.least] if imported else []
        if not domains:
            raise StudyError(
                "the study has no domains",
                do="add text with `mixlaw domains add`, import runs with `mixlaw import`, or name"
                " them in mixlaw.toml",
            )
        with _located("the study's domains"):
            checked = check_domains(domains)
        return cls(config=config, domains=checked, has_corpus=corpus is not None, imported=imported)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the domains."""
        return tuple(domain.name for domain in self.domains)

    @property
    def proxy_scale(self) -> Scale:
        """The scale of the proxies."""
        proxies = self.config.proxies
        return Scale(tokens=proxies.tokens, params=proxies.params)

    @property
    def scale(self) -> Scale | None:
        """The run that is to be decided.

        Where none is given: the proxies' own scale, or that of the imported runs; None: they have
        several, or it is not known.
        """
        if self.config.scale is not None:
            return self.config.scale
        if self.has_corpus:
            return self.proxy_scale
        return None if self.imported is None else self.imported.scale

    @property
    def supply(self) -> dict[str, float]:
        """Largest share of each domain that its tokens allow at the scale.

        Raises:
            DomainError: All domains together hold too few tokens for the scale.
        """
        if self.scale is None:
            return dict.fromkeys(self.names, 1.0)
        return token_caps(self.domains, self.scale)

    @property
    def design_floor(self) -> dict[str, float]:
        """Least share of each domain in the design: the configured one, or half of a small cap."""
        floor = self.config.design.floor
        return {name: min(floor, cap / 2) for name, cap in self.supply.items()}

    @property
    def reference(self) -> Mixture | None:
        """The mixture that the team would use today, where it is given.

        Raises:
            MixtureError: It is no mixture of the study's domains.
        """
        proportions = self.config.reference.proportions
        if not proportions:
            return None
        place = "[reference] in mixlaw.toml"
        with _located(place, do="give each domain's share of the tokens"):
            mixture = Mixture.normalized(proportions, tolerance=1e-3)
        with _located(place):
            return mixture.reordered(self.names)

    @property
    def caps(self) -> dict[str, float]:
        """Largest share of each domain: its token supply at the scale, and what is given.

        Raises:
            DomainError: The supply is too small for the scale.
            MixtureError: A given cap names no domain.
        """
        given = self.config.constraints.cap
        with _located(CONSTRAINTS):
            CappedSimplex.of(self.names, caps={**dict.fromkeys(self.names, 1.0), **given})
        return {name: min(cap, given.get(name, 1.0)) for name, cap in self.supply.items()}

    @property
    def allowed(self) -> CappedSimplex:
        """The mixtures that may be the answer.

        What `[constraints]` leaves open is bounded by what the runs have seen: the design's floor
        for proxies trained here, the least and the largest share of each domain for imported runs.

        Raises:
            DomainError: The supply is too small for the scale.
            MixtureError: A name is unknown, or floors and caps conflict.
        """
        given, caps = self.config.constraints, self.caps
        seen: Mapping[str, float] = {}
        if self.has_corpus:
            seen = self.design_floor
        elif self.imported is not None:
            seen = {name: min(caps[name], self.imported.least.get(name, 0.0)) for name in caps}
            caps = {
                name: cap if name in given.cap else min(cap, self.imported.most.get(name, 1.0))
                for name, cap in caps.items()
            }
        with _located(CONSTRAINTS):
            return CappedSimplex.of(self.names, floors={**seen, **given.floor}, caps=caps)

    @property
    def baselines(self) -> dict[str, Mixture]:
        """The mixtures that an answer is compared with, by name."""
        return baseline_mixtures(self.domains, self.allowed, reference=self.reference)

    @property
    def moved_baselines(self) -> tuple[str, ...]:
        """Baselines that floors or caps don't allow: the closest allowed mixture stands in."""
        free = CappedSimplex.of(self.names)
        wanted = baseline_mixtures(self.domains, free, reference=self.reference)
        return tuple(
            name
            for name, mixture in self.baselines.items()
            if mixture.mixture_id != wanted[name].mixture_id
        )

    def objective(self, targets: Sequence[str]) -> WeightedLoss:
        """Returns the objective: the weights that are given, else all training domains alike.

        Raises:
            OptimizeError: A weighted target is not measured.
        """
        weights = self.config.objective.weights
        for target in weights:
            if target not in targets:
                raise OptimizeError(
                    f"the objective weighs {target!r}, which is not measured",
                    where="[objective] in mixlaw.toml",
                    do=f"the targets are {', '.join(targets)}",
                )
        if not weights:
            alike = [target for target in targets if target in self.names] or targets
            weights = dict.fromkeys(alike, 1.0)
        with _located("[objective] in mixlaw.toml", do="give weights from 0 on, one above it"):
            return WeightedLoss(weights)


@contextmanager
def _located(place: str, *, do: str | None = None) -> Generator[None]:
    """Says where in the study an error comes from, and what to do, if more is known of that."""
    try:
        yield
    except (DomainError, MixtureError, OptimizeError) as error:
        way_out = do or error.do or "correct it in mixlaw.toml"
        raise type(error)(error.problem, where=place, do=way_out) from None


def _complete(domain: Domain, counted: Domain | None) -> Domain:
    """Returns a domain of the configuration with what it leaves open taken from the corpus."""
    if counted is None:
        return domain
    return replace(
        domain,
        available_tokens=domain.available_tokens or counted.available_tokens,
        documents=domain.documents or counted.documents,
        bytes_per_token=domain.bytes_per_token or counted.bytes_per_token,
    )
