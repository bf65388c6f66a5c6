"""What a study asks: which domains, at which scale, for which objective, within what limits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mixlaw.config import Config
from mixlaw.corpora import Corpus
from mixlaw.domains import Domain, Scale, check_domains, token_caps
from mixlaw.errors import OptimizeError, StudyError
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.optimize import WeightedLoss, baseline_mixtures


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """Domains, scale, objective and limits, from `mixlaw.toml` and what the corpus counts."""

    config: Config
    domains: tuple[Domain, ...]
    """Training domains, in the order of `mixlaw.toml`."""
    has_corpus: bool
    """Whether proxies can be trained here; otherwise the runs are imported."""

    @classmethod
    def of(
        cls, config: Config, corpus: Corpus | None, imported_domains: Sequence[str]
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
            domains = [Domain(name=name) for name in imported_domains]
        if not domains:
            raise StudyError(
                "the study has no domains",
                do="add text with `mixlaw domains add`, import runs with `mixlaw import`, or name"
                " them in mixlaw.toml",
            )
        return cls(config=config, domains=check_domains(domains), has_corpus=corpus is not None)

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
    def scale(self) -> Scale:
        """The run that is to be decided; the proxies' own scale where none is given."""
        return self.config.scale or self.proxy_scale

    @property
    def reference(self) -> Mixture | None:
        """The mixture that the team would use today, where it is given.

        Raises:
            MixtureError: It is no mixture of the study's domains.
        """
        proportions = self.config.reference.proportions
        if not proportions:
            return None
        return Mixture.normalized(proportions, tolerance=1e-3).reordered(self.names)

    @property
    def caps(self) -> dict[str, float]:
        """Largest share of each domain: its token supply at the scale, and what is given.

        Raises:
            DomainError: The supply is too small for the scale.
            MixtureError: A given cap names no domain.
        """
        given = self.config.constraints.cap
        CappedSimplex.of(self.names, caps={**dict.fromkeys(self.names, 1.0), **given})
        supply = token_caps(self.domains, self.scale)
        return {name: min(cap, given.get(name, 1.0)) for name, cap in supply.items()}

    @property
    def allowed(self) -> CappedSimplex:
        """The mixtures that may be the answer.

        Without floors of their own, proxies trained here bound the answer by the design's floor: no
        run has seen less of a domain.

        Raises:
            DomainError: The supply is too small for the scale.
            MixtureError: A name is unknown, or floors and caps conflict.
        """
        floors: Mapping[str, float] = self.config.constraints.floor
        if not floors and self.has_corpus:
            floors = dict.fromkeys(self.names, self.config.design.floor)
        return CappedSimplex.of(self.names, floors=floors, caps=self.caps)

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
        return WeightedLoss(weights)


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
