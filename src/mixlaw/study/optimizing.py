"""The answer of a study: its fit, objective and constraints put together into an optimum."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mixlaw.config import Config
from mixlaw.errors import ConfigError, FitError, StudyError
from mixlaw.fit import FitResult
from mixlaw.mixtures import Mixture
from mixlaw.optimize import Optimum, optimize_mixture
from mixlaw.optimize.objective import Objective, WeightedLoss
from mixlaw.optimize.pareto import ParetoFront, pareto_front
from mixlaw.optimize.savings import Savings
from mixlaw.selection import LawChoice
from mixlaw.selection.downstream import DownstreamFit
from mixlaw.study.question import Question
from mixlaw.study.scaled import ScaledFit, fit_at_question, repetition_cautions, savings_of
from mixlaw.study.tokens import describe_tokens, proxy_scale_tokens

if TYPE_CHECKING:
    from mixlaw.study.folder import Progress, Study

VERIFIED = ("reference", "proportional", "uniform")
"""Baselines that `mixlaw verify` trains; the others are only predicted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A question with all that answers it."""

    question: Question
    own_fit: FitResult
    """At the scale of the runs."""
    scaled: ScaledFit
    """At the scale that is asked about."""
    choice: LawChoice | None
    """Why it is that law; None: it was named, or the fit is one over scales."""
    objective: Objective
    task_notes: tuple[str, ...] = ()
    """What is to be said of the error law, where a task's error is minimized."""

    @property
    def fit(self) -> FitResult:
        """The law for the run that is to be decided."""
        return self.scaled.fit


def ask(
    study: "Study", config: Config | None = None, *, on_progress: "Progress | None" = None
) -> Asked:
    """Returns a study's question, or another one about the same runs, with its fit.

    Args:
        study: The study.
        config: What is asked instead: another objective, other constraints, another scale.
        on_progress: Is told how far the fit is.

    Raises:
        ConfigError: The objective asks for two things at once, or for what is not there.
        FitError: Too few mixtures, or losses that can't be used.
        OptimizeError: The objective weighs what is not measured.
    """
    fit = study.fit(on_progress=on_progress)
    question = study.question if config is None else replace(study.question, config=config)
    task = question.config.objective.task
    chain = _task_chain(study, task) if task else None
    objective = question.goal(fit.targets, None if chain is None else chain.error_fits)
    scaled = fit_at_question(fit, *study.fitted_tables(), question, study.corpus)
    return Asked(
        question=question,
        own_fit=fit,
        scaled=scaled,
        choice=study.choice() if scaled.fit is fit else None,
        objective=objective,
        task_notes=() if chain is None else chain.notes,
    )


def fit_for_question(study: "Study") -> tuple[FitResult, tuple[str, ...]]:
    """Returns the law for the run that a study is to decide, and what was done to get it."""
    fit, question = study.fit(), study.question
    scaled = fit_at_question(fit, *study.fitted_tables(), question, study.corpus)
    return scaled.fit, (*scaled.sentences, *describe_tokens(question))


def _task_chain(study: "Study", task: str) -> DownstreamFit:
    """Returns the chain from mixtures to the error of a study's task.

    Raises:
        ConfigError: The study has no errors of that task.
    """
    try:
        return study.downstream_fit(tasks=[task])
    except (FitError, StudyError) as error:
        raise ConfigError(
            f"the error of the task {task!r} can't be minimized: {error.problem}",
            where=error.where,
            do=error.do,
        ) from None


def optimize_study(
    study: "Study", config: Config | None = None, *, on_progress: "Progress | None" = None
) -> Optimum:
    """Returns the best mixture for a study's question, or for another one about the same runs.

    Raises:
        ConfigError: The objective or a constraint can't be read.
        OptimizeError: The objective or the search has no answer, or the constraints conflict.
        MixtureError: Floors and caps conflict.
    """
    asked = ask(study, config, on_progress=on_progress)
    question = asked.question
    best = optimize_mixture(
        asked.fit,
        asked.objective,
        question.constraints,
        scale=question.scale,
        baselines=question.all_baselines,
        choice=asked.choice,
    )
    repeats = repetition_cautions(best, asked.own_fit, question, study.corpus)
    notes = (
        *asked.task_notes,
        *asked.scaled.sentences,
        *question.baseline_notes,
        *repeats,
        *describe_tokens(question),
    )
    return replace(
        best,
        notes=tuple(dict.fromkeys((*best.notes, *notes))),
        is_extrapolated=asked.scaled.is_extrapolated,
        savings=_savings(study, asked, best),
    )


def _savings(study: "Study", asked: Asked, best: Optimum) -> Mapping[str, Savings]:
    """Returns what the optimum saves against each baseline; empty where no curve can be fitted."""
    runs, observations = study.fitted_tables()
    scale = asked.question.scale
    params = None if scale is None else scale.params
    sizes: list[float] = runs["params_non_embedding"].drop_nulls().unique().to_list()
    if params is None and len(sizes) == 1:
        params = sizes[0]
    factor = 1.0 if scale is None else scale.tokens / proxy_scale_tokens(asked.question)
    try:
        return savings_of(
            best, asked.scaled, runs, observations, params=params, token_factor=factor
        )
    except FitError:
        return {}


def trade_off(
    study: "Study",
    first: Mapping[str, float],
    second: Mapping[str, float],
    *,
    config: Config | None = None,
    num_points: int = 15,
    on_progress: "Progress | None" = None,
) -> ParetoFront:
    """Returns the trade-off between two weighted losses under a study's constraints.

    Args:
        study: The study.
        first: Weights by target or group of one objective.
        second: Those of the other.
        config: What is asked instead of the study's own question.
        num_points: Mixtures on the front.
        on_progress: Is told how far the fit is.

    Raises:
        FitError: A weighted target is not in the fit.
        OptimizeError: The weights are none, or the constraints conflict.
    """
    asked = ask(study, config, on_progress=on_progress)
    groups = asked.question.config.objective.groups
    return pareto_front(
        asked.fit,
        WeightedLoss(first, groups),
        WeightedLoss(second, groups),
        constraints=asked.question.constraints,
        scale=asked.question.scale,
        num_points=num_points,
    )


def main_trade_off(asked: Asked, best: Optimum, *, num_points: int = 12) -> ParetoFront | None:
    """Returns the trade-off between the two targets that count most; None: only one counts."""
    ranked = sorted(best.weights, key=lambda name: (-best.weights[name], name))
    if len(ranked) < 2:
        return None
    return pareto_front(
        asked.fit,
        WeightedLoss({ranked[0]: 1.0}),
        WeightedLoss({ranked[1]: 1.0}),
        constraints=asked.question.constraints,
        scale=asked.question.scale,
        num_points=num_points,
    )


def compared_mixtures(best: Optimum, optimum_name: str) -> dict[str, Mixture]:
    """Returns the optimum and the baselines that are trained to test it, by name."""
    trained = {gain.baseline: gain.mixture for gain in best.gains if gain.baseline in VERIFIED}
    return {optimum_name: best.mixture, **trained}


def weighted_objective(best: Optimum) -> WeightedLoss:
    """Returns the weighted loss that an optimum's objective is, or comes down to near it."""
    if isinstance(best.objective, WeightedLoss):
        return best.objective
    return WeightedLoss({name: weight for name, weight in best.weights.items() if weight > 0})
