"""Continual pre-training in a study: the runs that go on from a model, and what they say."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import polars as pl

from mixlaw.config import ContinualSection
from mixlaw.errors import MixlawError, StudyError
from mixlaw.fit.continual import NoisePrior
from mixlaw.fit.law import find_law
from mixlaw.laws.base import MixingLaw
from mixlaw.laws.mixing import ExponentialLaw
from mixlaw.mixtures import Mixture
from mixlaw.observations import check_observations, check_runs, fill_shares, loss_target_names
from mixlaw.optimize import WeightedLoss
from mixlaw.optimize.continual_runs import ContinualAnswer, ContinualQuestion, judge_continual
from mixlaw.runs import Progress as RunProgress
from mixlaw.runs import RunCounts, RunSpec, read_tables
from mixlaw.runs.plan import PlannedRun, fresh_seed, log_spaced_steps, whole_steps
from mixlaw.runs.plan_continual import plan_continual
from mixlaw.runs.starts import keep_checkpoint
from mixlaw.study.imported import read_imported
from mixlaw.study.tokens import target_shares
from mixlaw.study.training import base_spec, is_alike

if TYPE_CHECKING:
    from mixlaw.study.folder import Study

SECTION = "[continual] in mixlaw.toml"
ROLES = ("design", "noise", "imported")


@dataclass(frozen=True, kw_only=True, slots=True)
class CriticalOptions:
    """What a command or a call says instead of `mixlaw.toml`; None: what that says."""

    original: tuple[str, ...] | None = None
    new: tuple[str, ...] | None = None
    weights: Mapping[str, float] | None = None
    new_weights: Mapping[str, float] | None = None
    tolerance: float | None = None
    original_loss: float | None = None
    level: float = 0.9
    law: str | None = None
    prior: NoisePrior | None = None

    def section(self, given: ContinualSection) -> ContinualSection:
        """Returns the section of the configuration with what is said instead."""
        return replace(
            given,
            original=given.original if self.original is None else self.original,
            new=given.new if self.new is None else self.new,
            weights=given.weights if self.weights is None else self.weights,
            new_weights=given.new_weights if self.new_weights is None else self.new_weights,
            tolerance=given.tolerance if self.tolerance is None else self.tolerance,
        )


def answer_critical(study: "Study", options: CriticalOptions | None = None) -> ContinualAnswer:
    """Returns the critical proportion from a study's runs that go on from a model.

    Runs that were trained here count before imported ones.

    Raises:
        StudyError: There are no such runs, or it is not said which data is original.
        OptimizeError: The original loss is not known, or domains make no sense.
        FitError: There is no such law, or too few shares were run.
    """
    asked = CriticalOptions() if options is None else options
    section = asked.section(study.config.continual)
    runs, observations = continued_tables(study, section)
    targets = loss_target_names(observations)
    original = _original(section)
    question = ContinualQuestion(
        old_loss=_old_loss(section, targets),
        original=original,
        new=section.new or None,
        new_loss=_new_loss(section, targets),
        tolerance=section.tolerance,
        original_loss=asked.original_loss,
        level=asked.level,
        law=_law(study, asked.law),
        prior=asked.prior,
    )
    return judge_continual(runs, observations, question)


def reported_critical(study: "Study") -> ContinualAnswer | None:
    """Returns the critical proportion that a report shows; None: it isn't asked, or not answered.

    It is asked where `[continual]` names the original data.
    """
    if not study.config.continual.original:
        return None
    try:
        return answer_critical(study)
    except MixlawError:  # a report of everything else is worth having
        return None


def train_critical(
    study: "Study",
    options: CriticalOptions | None = None,
    *,
    slots: int | None = None,
    retry: bool = False,
    on_runs: Callable[[RunProgress], None] | None = None,
) -> RunCounts:
    """Trains the original model and the runs that go on from it, and returns how they ended.

    Raises:
        StudyError: There is no corpus, or it is not said which data is original.
    """
    asked = CriticalOptions() if options is None else options
    planned = plan_critical(study, asked.section(study.config.continual))
    return study.train_planned(
        planned, slots=slots, retry=retry, on_runs=on_runs, stage="continual"
    )


def plan_critical(study: "Study", section: ContinualSection) -> tuple[PlannedRun, ...]:
    """Returns the original run, where no checkpoint is given, and those that go on from it.

    Every continued run has a seed of its own: what seeds do is then in how far runs lie from the
    law, and no part of it is hidden.

    Raises:
        StudyError: There is no corpus, or it is not said which data is original.
        RunError: The checkpoint can't be read.
    """
    corpus = study.corpus
    if corpus is None:
        raise StudyError(
            "runs that go on from a model need text to train on, and the study has no corpus",
            where=str(study.path),
            do="add text with `mixlaw domains add`, or import such runs with `mixlaw import`",
        )
    question = study.question
    base = base_spec(question, corpus)
    original = _original(section)
    new = section.new or tuple(name for name in question.names if name not in original)
    old_mixture, new_mixture = (_part(section, names, question.names) for names in (original, new))
    seed = question.config.design.seed
    start = (
        keep_checkpoint(study.path / section.checkpoint, study.path) if section.checkpoint else None
    )
    tokens = section.tokens or question.config.proxies.tokens / 2
    steps = whole_steps(tokens, None, base.tokens_per_step)
    runs = plan_continual(
        replace(base, mixture=question.proxy_mixture(old_mixture), eval_steps=(base.steps,)),
        old=old_mixture,
        new=new_mixture,
        old_shares=section.shares,
        steps=steps,
        eval_steps=(0, *log_spaced_steps(steps, section.evaluations)),
        start=start,
        seed=seed,
    )
    parents = tuple(run for run in runs if run.role == "original")
    continued = [run.spec for run in runs if run.role == "design"]
    count = len(continued)
    return (
        *parents,
        *(
            PlannedRun(
                spec=replace(
                    spec,
                    mixture=question.proxy_mixture(spec.mixture),
                    seed=fresh_seed(seed, "design", index + repeat * count),
                ),
                role="design",
            )
            for repeat in range(section.seeds)
            for index, spec in enumerate(continued)
        ),
    )


def continued_tables(
    study: "Study", section: ContinualSection
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Returns the runs that go on from a model, and the models that were trained here for that.

    Raises:
        StudyError: There are none.
    """
    trained = _trained_tables(study, section)
    if trained is not None:
        return trained
    parts = [part for part in read_imported(study.path) if part[0].height]
    if not parts:
        raise StudyError(
            "the study has no runs that go on from a model",
            where=str(study.path),
            do="train some with `mixlaw critical --train`, which"
            f" {SECTION} describes, or import them with `mixlaw import`",
        )
    runs = check_runs(fill_shares(pl.concat([part[0] for part in parts], how="diagonal")))
    observations = check_observations(pl.concat([part[1] for part in parts]))
    continued = runs.filter(pl.col("parent_run_id").is_not_null())
    return (continued if continued.height else runs), observations


def _trained_tables(
    study: "Study", section: ContinualSection
) -> tuple[pl.DataFrame, pl.DataFrame] | None:
    """Returns the runs that were trained here as the study now says; None: there are none."""
    if not study.has_store():
        return None
    rows = [row for row in study.store.rows() if row.status == "done"]
    continued = [row.spec for row in rows if row.spec.start is not None and row.role in ROLES]
    if not continued:
        return None
    given = study.path / section.checkpoint
    if study.corpus is not None and section.original and given.exists():
        planned = plan_critical(study, section)[-1].spec
        continued = [spec for spec in continued if is_alike(spec, planned)]
    else:  # nothing can be trained now: the last ones count
        continued = [spec for spec in continued if spec.start == continued[-1].start]
    if not continued:
        return None
    wanted = {spec.run_id for spec in continued} | _parents(continued)
    runs, observations = read_tables(study.store, study.runs_folder)
    runs = target_shares(
        runs.filter(pl.col("run_id").is_in(list(wanted))), study.config, study.corpus
    )
    return check_runs(_without_unused(runs)), observations.join(runs, on="run_id", how="semi")


def _without_unused(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns the runs without domains that none of them has: those of other studies' runs."""
    unused = [name for name in runs.columns if name.startswith("r:") and not (runs[name] > 0).any()]
    return runs.drop(unused)


def _parents(specs: Sequence[RunSpec]) -> set[str]:
    return {spec.parent_run_id for spec in specs if spec.parent_run_id is not None}


def _original(section: ContinualSection) -> tuple[str, ...]:
    if not section.original:
        raise StudyError(
            "it must be said which domains the model was trained on",
            do=f"name them with `--old`, or as `original` of {SECTION}",
        )
    return section.original


def _part(section: ContinualSection, names: Sequence[str], domains: Sequence[str]) -> Mixture:
    """Returns the proportions within the original or the new data."""
    for name in names:
        if name not in domains:
            raise StudyError(
                f"{name!r} is no domain of the study", do=f"the domains are {', '.join(domains)}"
            )
    given = section.proportions
    return Mixture.normalized({name: given.get(name, 0.0) if given else 1.0 for name in names})


def _old_loss(section: ContinualSection, targets: Sequence[str]) -> WeightedLoss:
    if section.weights:
        return _known_loss(section.weights, targets)
    alike = [name for name in section.original if name in targets]
    if not alike:
        raise StudyError(
            "it must be said which losses must be kept: no target is named like an original domain",
            do="name them with `--target`, or as `weights` of"
            f" {SECTION}; the targets are {', '.join(targets)}",
        )
    return WeightedLoss(dict.fromkeys(alike, 1.0))


def _new_loss(section: ContinualSection, targets: Sequence[str]) -> WeightedLoss | None:
    if section.new_weights:
        return _known_loss(section.new_weights, targets)
    others = section.new or [name for name in targets if name not in section.original]
    alike = [name for name in others if name in targets and name not in section.weights]
    return WeightedLoss(dict.fromkeys(alike, 1.0)) if alike else None


def _known_loss(weights: Mapping[str, float], targets: Sequence[str]) -> WeightedLoss:
    for target in weights:
        if target not in targets:
            raise StudyError(
                f"{target!r} is no target of the runs", do=f"the targets are {', '.join(targets)}"
            )
    return WeightedLoss(weights)


def _law(study: "Study", name: str | None) -> MixingLaw:
    """Returns the named law; M4 where the study chooses by prediction: a line has few shares."""
    given = name or study.config.fit.law
    return ExponentialLaw() if given == "select" else find_law(given)
