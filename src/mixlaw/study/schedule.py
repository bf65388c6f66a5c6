"""Schedules in a study: the runs whose mixture changes on the way, and the best schedule."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from mixlaw.domains import Domain, Scale
from mixlaw.errors import MixlawError, StudyError
from mixlaw.exporters import export_mixture
from mixlaw.files import write_atomic
from mixlaw.fit.fitted_runs import FITTED_ROLES
from mixlaw.fit.stages import Schedule, StagedFit, fit_schedules, read_schedules
from mixlaw.observations import check_observations, check_runs, fill_shares, loss_target_names
from mixlaw.optimize.objective import Objective, WeightedLoss
from mixlaw.optimize.schedule import ScheduleOptimum, optimize_schedule
from mixlaw.runs import Progress as RunProgress
from mixlaw.runs import RunCounts, read_tables
from mixlaw.runs.plan import PlannedRun
from mixlaw.runs.plan_schedules import plan_schedules, sample_schedules
from mixlaw.selection.schedules import ScheduleScore, score_schedules
from mixlaw.study.artefacts import save_json, table_hash
from mixlaw.study.imported import read_imported
from mixlaw.study.plain import to_plain
from mixlaw.study.tokens import target_shares
from mixlaw.study.training import base_spec, is_alike, make_plan

if TYPE_CHECKING:
    from mixlaw.study.folder import Study

ROLES = ("design", "noise", "imported")
NUM_DRAWS = 200
HOLDOUT_SEED_STEP = 7919
"""Seed of the held-out schedules: other pairs of mixtures than those that are fitted."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScheduleAnswer:
    """The best schedule of a study's run, and what it means for its domains."""

    optimum: ScheduleOptimum
    staged: StagedFit
    """The law of schedules behind it."""
    held_out: tuple[ScheduleScore, ...]
    """How well it predicted schedules that were not fitted; empty: there are none."""
    domains: tuple[Domain, ...]
    scale: Scale | None
    """The run that is to be decided; None: not known."""

    def epochs(self, name: str) -> float | None:
        """Returns how often the run sees a domain in all its stages; None: not known."""
        domain = next(domain for domain in self.domains if domain.name == name)
        share = self.optimum.schedule.mean[name]
        return None if self.scale is None else domain.epochs(share, self.scale.tokens)

    def to_json(self) -> dict[str, Any]:
        """Returns the answer as plain values."""
        best = self.optimum
        schedule = best.schedule.to_json()
        for stage, ranges in zip(schedule["stages"], best.proportion_range, strict=True):
            stage["range"] = to_plain(ranges)
            if self.scale is not None:
                stage["until_tokens"] = stage["until"] * self.scale.tokens
        return {
            **schedule,
            "mean": dict(best.schedule.mean),
            "epochs": {name: self.epochs(name) for name in best.schedule.names},
            "best_constant": dict(best.constant),
            "objective": best.objective.describe(),
            "loss": best.loss,
            "best_constant_loss": best.constant_loss,
            "target_losses": to_plain(best.target_losses),
            "best_constant_target_losses": to_plain(best.constant_target_losses),
            "gains": [
                {
                    "baseline": gain.baseline,
                    "value": gain.value,
                    "low": gain.low,
                    "high": gain.high,
                    "verdict": gain.verdict,
                }
                for gain in best.gains
            ],
            "verdict": best.verdict,
            "is_constant": best.is_constant,
            "prices": to_plain(best.prices),
            "gap": best.gap,
            "certificate": best.certificate,
            "left_out_errors": to_plain(best.errors),
            "held_out": to_plain(self.held_out),
            "recency": to_plain(best.recency),
            "staged_runs": best.num_staged,
            "level": best.level,
            "notes": list(best.notes),
        }


def answer_schedule(
    study: "Study",
    *,
    fractions: Sequence[float] | None = None,
    weights: Mapping[str, float] | None = None,
    on_progress: Callable[[str, float, float | None], None] | None = None,
) -> ScheduleAnswer:
    """Returns the best schedule under the study's objective and constraints.

    Args:
        study: The study.
        fractions: Share of the tokens that each stage takes; those of `[schedule]` by default.
        weights: Weights of targets; those of `mixlaw.toml` by default.
        on_progress: Is told how far it is.

    Raises:
        StudyError: There are no runs of several stages.
        FitError: There are too few of them, or losses that can't be used.
        MixtureError: The fractions don't sum to one.
        OptimizeError: The objective or the search has no answer, or the constraints conflict.
    """
    shares = schedule_fractions(study) if fractions is None else tuple(fractions)
    runs, observations = schedule_tables(study)
    fitted = runs.filter(pl.col("role").is_in(ROLES))
    question = study.question
    if weights is not None:
        asked = replace(question.config.objective, weights=weights)
        question = replace(question, config=replace(question.config, objective=asked))
    targets = loss_target_names(observations)
    objective = question.goal(targets)
    staged = fit_schedules(
        study.fit(on_progress=on_progress).law,
        fitted,
        observations,
        fractions=shares,
        targets=_needed(objective, targets),
        num_draws=NUM_DRAWS,
        on_progress=None
        if on_progress is None
        else lambda share: on_progress("fitting schedules", share, 1.0),
    )
    runs_RM = staged.constant.table.r_RM
    region = question.constraints.region(question.scale, runs_RM=runs_RM)
    best = optimize_schedule(
        staged, objective, region, fractions=shares, baselines=question.baselines
    )
    answer = ScheduleAnswer(
        optimum=best,
        staged=staged,
        held_out=score_schedules(staged, runs, observations, question.objective(targets).shares)
        if set(question.objective(targets).shares) <= set(staged.fit.targets)
        else (),
        domains=question.domains,
        scale=question.scale,
    )
    if weights is None:
        key = table_hash(runs, observations)
        save_json(study.path / "schedule.json", answer.to_json(), made_from=key)
    return answer


def reported_schedule(study: "Study") -> ScheduleOptimum | None:
    """Returns the schedule that a report shows; None: too few runs have stages, or no answer."""
    try:
        return answer_schedule(study).optimum
    except MixlawError:  # a report of everything else is worth having
        return None


def train_schedules(
    study: "Study",
    *,
    slots: int | None = None,
    retry: bool = False,
    on_runs: Callable[[RunProgress], None] | None = None,
) -> RunCounts:
    """Trains the runs of several stages that are not done, and returns how they ended.

    Raises:
        StudyError: There is no corpus.
    """
    planned = plan_staged(study)
    return study.train_planned(planned, slots=slots, retry=retry, on_runs=on_runs, stage="schedule")


def plan_staged(study: "Study") -> tuple[PlannedRun, ...]:
    """Returns the runs of several stages: each stage has a mixture of the study's design.

    They share the seed of the design, so that they can be compared with its runs.

    Raises:
        StudyError: There is no corpus, or the design has too few mixtures.
    """
    corpus, section = study.corpus, study.config.schedule
    if corpus is None:
        raise StudyError(
            "runs of several stages need text to train on, and the study has no corpus",
            where=str(study.path),
            do="add text with `mixlaw domains add`, or import such runs with `mixlaw import`",
        )
    question = study.question
    seed = question.config.design.seed
    mixtures = make_plan(question, corpus).design.mixtures
    if len(mixtures) < max(section.runs, section.holdout):
        raise StudyError(
            f"{max(section.runs, section.holdout)} schedules need as many mixtures, but the design"
            f" has {len(mixtures)}",
            do="lower `runs` and `holdout` of [schedule], or raise `mixtures` of [design]",
        )
    fractions = schedule_fractions(study)
    mixtures = tuple(question.proxy_mixture(mixture) for mixture in mixtures)
    schedules = sample_schedules(mixtures, stages=len(fractions), seed=seed)
    others = sample_schedules(mixtures, stages=len(fractions), seed=seed + HOLDOUT_SEED_STEP)
    return plan_schedules(
        base_spec(question, corpus),
        schedules[: section.runs],
        end_shares=Schedule.constant(mixtures[0], fractions).ends,
        holdout=others[: section.holdout],
        seed=seed,
    )


def schedule_fractions(study: "Study") -> tuple[float, ...]:
    """Returns the fractions of `[schedule]`.

    Raises:
        StudyError: There are not as many as stages.
    """
    section = study.config.schedule
    if not section.fractions:
        return equal_fractions(section.stages)
    if len(section.fractions) != section.stages:
        raise StudyError(
            f"{section.stages} stages need as many fractions, found {len(section.fractions)}",
            where="[schedule] in mixlaw.toml",
            do="correct `stages` or `fractions`",
        )
    return section.fractions


def equal_fractions(stages: int) -> tuple[float, ...]:
    """Returns the fractions of stages of equal length."""
    return (1.0 / stages,) * stages


def schedule_tables(study: "Study") -> tuple[pl.DataFrame, pl.DataFrame]:
    """Returns the runs of one and of several stages, imported and trained as the study now says.

    Raises:
        StudyError: There are none of several stages.
    """
    parts = read_imported(study.path)
    if study.has_store() and study.corpus is not None:
        base = base_spec(study.question, study.corpus)
        current = [
            row.run_id
            for row in study.store.rows()
            if is_alike(replace(row.spec, later_stages=()), base)
        ]
        runs, observations = read_tables(study.store, study.runs_folder)
        runs = runs.filter(pl.col("run_id").is_in(current))
        runs = target_shares(runs, study.config, study.corpus)
        parts.append((runs, observations.join(runs, on="run_id", how="semi")))
    parts = [part for part in parts if part[0].height]
    runs = (
        check_runs(fill_shares(pl.concat([p[0] for p in parts], how="diagonal"))) if parts else None
    )
    if runs is None or not read_schedules(runs, roles=FITTED_ROLES):
        raise StudyError(
            "the study has no runs whose mixture changes on the way",
            where=str(study.path),
            do="train some with `mixlaw schedule --train`, which [schedule] in mixlaw.toml"
            " describes, or import runs with a `stages` column",
        )
    runs = runs.filter(pl.col("role").is_in((*ROLES, "holdout")))
    observations = check_observations(pl.concat([part[1] for part in parts]))
    return runs, observations.join(runs.select("run_id"), on="run_id", how="semi")


def write_schedule(
    answer: ScheduleAnswer,
    folder: str | Path,
    *,
    framework: str = "json",
    prefixes: Mapping[str, str] | None = None,
) -> tuple[Path, ...]:
    """Writes the schedule, and the mixture of each stage for a training framework.

    Args:
        answer: The schedule.
        folder: Where to.
        framework: json, csv or megatron: the format of the stages' files.
        prefixes: Megatron's data prefix of each domain.

    Raises:
        ExportError: The framework is not known or can't take the mixtures.
        StudyError: The folder can't be written.
    """
    target, best = Path(folder), answer.optimum.schedule
    try:
        target.mkdir(parents=True, exist_ok=True)
        text = json.dumps(answer.to_json(), indent=1, ensure_ascii=False) + "\n"
        written = [write_atomic(target / "schedule.json", text)]
    except OSError as error:
        raise StudyError(
            f"{target} can't be written: {error.strerror or error}",
            do="name a folder that can be made",
        ) from error
    suffix = {"megatron": "txt"}.get(framework, framework)
    for number, (fraction, mixture) in enumerate(
        zip(best.fractions, best.mixtures, strict=True), start=1
    ):
        scale = answer.scale
        written.append(
            export_mixture(
                mixture,
                framework=framework,
                path=target / f"stage-{number}.{suffix}",
                domains=answer.domains,
                scale=None if scale is None else replace(scale, tokens=scale.tokens * fraction),
                prefixes=prefixes,
            ).path
        )
    return tuple(written)


def _needed(objective: Objective, targets: Sequence[str]) -> tuple[str, ...]:
    """Returns the targets that an objective weighs; all of them where it does not say."""
    if isinstance(objective, WeightedLoss):
        return tuple(target for target in targets if target in objective.shares)
    return tuple(targets)
