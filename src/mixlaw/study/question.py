"""What a study asks: which domains, at which scale, for which objective, within what limits."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import polars as pl

from mixlaw.config import Config
from mixlaw.corpora import Corpus
from mixlaw.domains import Domain, Scale, ShareConversion, check_domains, token_caps
from mixlaw.errors import ConfigError, DomainError, MixtureError, OptimizeError, StudyError
from mixlaw.fit.error import ErrorFit
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.observations import PROPORTION_PREFIX, fill_shares, proportion_domains
from mixlaw.optimize import WeightedLoss, baseline_mixtures
from mixlaw.optimize.baselines import TEMPERATURE
from mixlaw.optimize.constraints import Constraints
from mixlaw.optimize.objective import Objective
from mixlaw.study.goal import group_bounds, make_objective

CONSTRAINTS = "[constraints] in mixlaw.toml, or what runs and token supply allow"
OBJECTIVE = "[objective] in mixlaw.toml"
SAME_TOKENIZER = 0.005
"""Bytes per token that differ by less are of one tokenizer."""


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
    conversion: ShareConversion | None = None
    """Between the tokenizers of the corpus and of the target; None: they are taken as one."""

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
        conversion = find_conversion(config, counted)
        if config.domains:
            domains = [
                _complete(domain, counted.get(domain.name), conversion) for domain in config.domains
            ]
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
        return cls(
            config=config,
            domains=checked,
            has_corpus=corpus is not None,
            imported=imported,
            conversion=conversion,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the domains."""
        return tuple(domain.name for domain in self.domains)

    def proxy_mixture(self, mixture: Mixture) -> Mixture:
        """Returns the shares of the proxies' tokens for shares of the target tokenizer's."""
        if self.conversion is None:
            return mixture
        return Mixture.normalized(self.conversion.to_proxy(mixture))

    def target_mixture(self, mixture: Mixture) -> Mixture:
        """Returns the shares of the target tokenizer's tokens for shares of the proxies'."""
        if self.conversion is None:
            return mixture
        return Mixture.normalized(self.conversion.to_target(mixture))

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
    def all_baselines(self) -> dict[str, Mixture]:
        """The baselines, and those that are only predicted: UniMax and temperature.

        One that is the same mixture as an earlier one is left out.
        """
        found = baseline_mixtures(
            self.domains,
            self.allowed,
            reference=self.reference,
            scale=self.scale,
            temperature=TEMPERATURE,
        )
        distinct = dict(self.baselines)
        for name, mixture in found.items():
            if mixture.mixture_id not in {one.mixture_id for one in distinct.values()}:
                distinct[name] = mixture
        return distinct

    @property
    def baseline_notes(self) -> tuple[str, ...]:
        """What was made of the baselines, in sentences.

        Where floors or caps don't allow one, the closest allowed mixture stands in; one that is the
        same mixture as an earlier one is not shown twice.
        """
        shown = self.all_baselines
        free, allowed = (
            baseline_mixtures(
                self.domains,
                simplex,
                reference=self.reference,
                scale=self.scale,
                temperature=TEMPERATURE,
            )
            for simplex in (CappedSimplex.of(self.names), self.allowed)
        )
        notes = [
            f"floors or caps don't allow the {name} mixture: the closest one that they allow is"
            " compared with"
            for name, mixture in shown.items()
            if mixture.mixture_id != free[name].mixture_id
        ]
        for name, mixture in allowed.items():
            if name not in shown:
                pairs = shown.items()
                same = next(one for one, its in pairs if its.mixture_id == mixture.mixture_id)
                notes.append(f"the {name} mixture is the {same} one here, so it has no row")
        return tuple(notes)

    def objective(self, targets: Sequence[str]) -> WeightedLoss:
        """Returns the weighted loss: the weights that are given, else all training domains alike.

        By it the law is chosen and scored; `goal` says what is made of it.

        Raises:
            OptimizeError: A weighted target or a member of a group is not measured.
        """
        section = self.config.objective
        weights, groups = section.weights, section.groups
        for target in (*weights, *(name for members in groups.values() for name in members)):
            if target not in targets and target not in groups:
                raise OptimizeError(
                    f"the objective weighs {target!r}, which is not measured",
                    where=OBJECTIVE,
                    do=f"the targets are {', '.join((*groups, *targets))}",
                )
        if not weights and section.worst_case:
            grouped = {name for members in groups.values() for name in members}
            weights = dict.fromkeys([*groups, *(t for t in targets if t not in grouped)], 1.0)
        if not weights:
            alike = [target for target in targets if target in self.names] or targets
            weights = dict.fromkeys(alike, 1.0)
        with _located(OBJECTIVE, do="give weights from 0 on, one above it"):
            return WeightedLoss(weights, groups)

    def goal(
        self, targets: Sequence[str], errors: Mapping[str, ErrorFit] | None = None
    ) -> Objective:
        """Returns what is minimized.

        Args:
            targets: What is measured.
            errors: Fitted error laws by task, where a task's error is to be minimized.

        Raises:
            ConfigError: `[objective]` asks for two things at once, or for what is not there.
            OptimizeError: A weighted target is not measured.
        """
        loss = self.objective(targets)
        return make_objective(
            self.config.objective, loss, reference=self.compared_reference, errors=errors
        )

    @property
    def compared_reference(self) -> Mixture | None:
        """The reference that is given, else the mixture in proportion to the tokens on hand."""
        if self.reference is not None:
            return self.reference
        free = CappedSimplex.of(self.names)
        return baseline_mixtures(self.domains, free).get("proportional")

    @property
    def constraints(self) -> Constraints:
        """All that the answer must respect: `allowed`, and what bounds several domains together.

        Raises:
            ConfigError: A bound of a group can't be read, or a reference is needed.
            DomainError: The supply is too small for the scale.
            MixtureError: A name is unknown, or floors and caps conflict.
        """
        given, allowed = self.config.constraints, self.allowed
        supply = self.supply
        limits = (given.kl_to_reference, given.l1_to_reference)
        needs_reference = any(limit is not None for limit in limits)
        reference = self.compared_reference if needs_reference else None
        if needs_reference and reference is None:
            raise ConfigError(
                "a distance to the reference needs one, and none is known",
                where=CONSTRAINTS,
                do="give it in [reference], or the domains' available_tokens",
            )
        caps = zip(allowed.names, allowed.caps, strict=True)
        floors = zip(allowed.names, allowed.floors, strict=True)
        fixed = given.fixed
        return Constraints(
            domains=self.domains,
            # What the token supply allows is the region's own to know, at its scale.
            # A fixed share may leave what the runs have seen, but not what is asked for beside it.
            caps={
                name: given.cap[name] if name in fixed else cap
                for name, cap in caps
                if (name in given.cap if name in fixed else cap < supply[name])
            },
            floors={
                name: given.floor[name] if name in fixed else floor
                for name, floor in floors
                if (name in given.floor if name in fixed else floor > 0)
            },
            groups=group_bounds(given, self.names, where=CONSTRAINTS),
            fixed=fixed,
            reference=reference,
            kl_to_reference=given.kl_to_reference,
            l1_to_reference=given.l1_to_reference,
            distance_to_runs=given.distance_to_runs,
        )


@contextmanager
def _located(place: str, *, do: str | None = None) -> Generator[None]:
    """Says where in the study an error comes from, and what to do, if more is known of that."""
    try:
        yield
    except (DomainError, MixtureError, OptimizeError) as error:
        way_out = do or error.do or "correct it in mixlaw.toml"
        raise type(error)(error.problem, where=place, do=way_out) from None


def find_conversion(config: Config, counted: Mapping[str, Domain]) -> ShareConversion | None:
    """Returns how shares convert between the corpus' tokenizer and the target's; None: not at all.

    It takes a [scale] (whose tokens are the target tokenizer's) and `bytes_per_token` of every
    domain, and that the two tokenizers differ.
    """
    given = {domain.name: domain.bytes_per_token for domain in config.domains}
    target = {name: value for name, value in given.items() if value is not None}
    if config.scale is None or not target or set(target) != set(given):
        return None
    proxy = {name: counted[name].bytes_per_token for name in target if name in counted}
    known = {name: value for name, value in proxy.items() if value is not None}
    if set(known) != set(target):
        return None
    ratios = [known[name] / target[name] for name in target]
    is_one = all(abs(ratio - 1) < SAME_TOKENIZER for ratio in ratios)
    return None if is_one else ShareConversion(proxy=known, target=target)


def _complete(domain: Domain, counted: Domain | None, conversion: ShareConversion | None) -> Domain:
    """Returns a domain of the configuration with what it leaves open taken from the corpus.

    What is counted is of the corpus' tokenizer, what is given of the target's.
    """
    if counted is None:
        return domain
    available = domain.available_tokens
    if available is None and counted.available_tokens is not None:
        available = counted.available_tokens
        if conversion is not None:
            available = conversion.target_tokens(domain.name, available)
    return replace(
        domain,
        available_tokens=available,
        documents=domain.documents or counted.documents,
        bytes_per_token=domain.bytes_per_token or counted.bytes_per_token,
    )
