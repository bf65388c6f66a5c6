"""Which mixing law to fit: the one, or the stack, that predicts mixtures best that it did not see.

Shape letters: R runs, T targets.

Every candidate is fitted without each mixture (or fold of mixtures) and asked for its losses there;
`mixlaw.selection.choice` has the rule. Candidates are data: no law is preferred by its name.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from mixlaw.errors import FitError
from mixlaw.fit.fitted_runs import check_table, read_fitted
from mixlaw.fit.law import find_law
from mixlaw.fit.learners import LawLearner, Learner, MeanLearner
from mixlaw.laws.base import MixingLaw
from mixlaw.laws.stack import StackedLaw
from mixlaw.observations import LossTable
from mixlaw.selection.choice import LearnerChoice, LearnerScore, choose_learner
from mixlaw.selection.text import align_columns, show_number

DEFAULT_LAWS = (
    "linear", "log-linear", "m4",
    "reciprocal", "reciprocal-shared", "power-reciprocal", "power-reciprocal-shared",
)  # fmt: skip
"""Laws that are worth their time on most runs and always convex, so that an optimum is certified;
`MIXING_LAWS` has all."""
MOST_LEFT_OUT = 30
"""Up to so many mixtures each is left out alone; beyond, folds of mixtures are."""
NUM_FOLDS = 10
SHOWN_BESIDE = ("m4", "mean")
"""Whose errors stand beside the choice in one line, where they took part: the law of Ye et al.,
which readers know, and the simplest prediction. They have no part in the choice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LawChoice:
    """Laws and baselines out of sample, and the law that follows from it."""

    best: MixingLaw
    """What to fit: the chosen law, or a stack of several where that predicts better."""
    single: str
    """The one law that the rule picks, whether or not a stack is better."""
    stack_error: float
    """Error of the stack, its weights from other mixtures than those it is judged on."""
    scores: tuple[LearnerScore, ...]
    """Of every law, then of every baseline. An `error` is in `measure`."""
    laws: tuple[str, ...]
    """Which of them could be chosen."""
    measure: str
    """What `error` counts, in words."""
    unit: str
    """Of the losses."""
    num_mixtures: int
    num_folds: int
    """As many as mixtures: each was left out alone."""
    repeats: int
    notes: tuple[str, ...] = ()
    """Which runs were left out, and what else to know, in sentences."""

    @property
    def error(self) -> float:
        """Left-out error of what was chosen."""
        return self.stack_error if isinstance(self.best, StackedLaw) else self.score(self.single)

    @property
    def name(self) -> str:
        """What was chosen, in a few words."""
        if not isinstance(self.best, StackedLaw):
            return self.best.name
        members = zip(self.best.weights, self.best.laws, strict=True)
        ranked = sorted(((weight, law.name) for weight, law in members), reverse=True)
        return " + ".join(f"{weight:.2f} {name}" for weight, name in ranked)

    @property
    def folds(self) -> str:
        """How mixtures were left out, in words."""
        if self.num_folds == self.num_mixtures:
            return f"each of {self.num_mixtures} mixtures left out"
        again = "" if self.repeats == 1 else f", {self.repeats} times"
        return f"{self.num_mixtures} mixtures left out in {self.num_folds} folds{again}"

    def score(self, name: str) -> float:
        """Returns the left-out error of a law or baseline."""
        return next(score.error for score in self.scores if score.name == name)

    def sentence(self) -> str:
        """Returns what was chosen and why, in one line."""
        is_stack = isinstance(self.best, StackedLaw)
        laws = [score for score in self.scores if score.name in self.laws]
        others = sorted(
            (score for score in laws if score.name != self.single), key=lambda score: score.error
        )
        why = ""
        if not is_stack and others and others[0].error < self.error:
            why = ", within one standard error of the least and with fewer parameters"
        first = [self.single] if is_stack else [score.name for score in others[:1]]
        names = [name for name in (*first, *SHOWN_BESIDE) if self._has(name) and name != self.name]
        errors = [f"{name} {show_number(self.score(name))}" for name in dict.fromkeys(names)]
        beside = f"; {'alone' if is_stack else 'next'} {', '.join(errors)}" if errors else ""
        error = f"{show_number(self.error)} ({self.measure})"
        return f"law {self.name}: left-out error {error}{why}{beside}"

    def table(self) -> str:
        """Returns all laws and baselines as plain text, the least error first."""
        rows = [
            (
                score.name,
                "-" if math.isinf(score.num_parameters) else f"{score.num_parameters:g}",
                show_number(score.error),
                show_number(score.standard_error),
                show_number(score.mae),
                show_number(score.median),
                "-" if math.isnan(score.spearman) or score.is_constant else f"{score.spearman:.3f}",
                "-" if score.is_constant else show_number(score.regret),
                f"{score.weight:.2f}" if score.name in self.laws else "-",
                f"{score.wins:.0%}",
            )
            for score in sorted(self.scores, key=lambda score: score.error)
        ]
        columns = ("law", "parameters", "error", "+-", "MAE", "median", "Spearman", "regret")
        return align_columns((*columns, "stack", "wins"), rows)

    def __str__(self) -> str:
        return "\n".join(
            (
                f"{self.folds}; error: {self.measure}; +-: of the difference from the least;"
                f" MAE, median, regret: {self.unit}",
                self.table(),
                self.sentence(),
                *self.notes,
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the choice as plain values, from which `read_choice` makes it again."""
        members = (
            dict(zip((law.name for law in self.best.laws), self.best.weights, strict=True))
            if isinstance(self.best, StackedLaw)
            else {self.best.name: 1.0}
        )
        return {
            "chosen": members,
            "single": self.single,
            "error": _finite(self.error),
            "stack_error": _finite(self.stack_error),
            "measure": self.measure,
            "unit": self.unit,
            "num_mixtures": self.num_mixtures,
            "num_folds": self.num_folds,
            "repeats": self.repeats,
            "laws": list(self.laws),
            "scores": [
                {key: _finite(value) for key, value in asdict(score).items()}
                for score in self.scores
            ],
            "notes": list(self.notes),
        }

    def _has(self, name: str) -> bool:
        return any(score.name == name for score in self.scores)


def select_law(
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    *,
    laws: Sequence[MixingLaw | str] | None = None,
    targets: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    step: int | None = None,
    params: float | None = None,
    num_folds: int | None = None,
    repeats: int = 3,
    baselines: Sequence[Learner] = (MeanLearner(),),
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> LawChoice:
    """Returns which mixing law to fit, judged on mixtures that the fits did not see.

    Args:
        runs: The runs table; the same runs count as in `fit_law`.
        observations: The observation table.
        laws: Candidates; those that are worth their time by default. `MIXING_LAWS` has all.
        targets: Which targets; all by default.
        weights: Weights of targets: their weighted loss decides. All targets alike, by default.
        step: At which step; the last one that all fitted runs have, by default.
        params: Of which model size; the largest by default.
        num_folds: Folds of mixtures; up to 30 mixtures each is left out alone, beyond 10 folds.
        repeats: How often mixtures are dealt into folds anew.
        baselines: What is scored beside the laws, but can't be chosen.
        seed: Seed of the folds.
        on_progress: Called with the share that is done.

    Raises:
        TableError: The tables are not what they must be.
        FitError: No law, an unknown one or target, fewer than four mixtures, or infinite losses.
    """
    found = read_fitted(runs, observations, targets=targets, step=step, params=params)
    candidates = find_laws(laws)
    weight_T, measure, notes = decide_measure(found.fitted, weights)
    folds, repeats = count_folds(found.fitted, num_folds, repeats)
    choice = score_learners(
        found.fitted,
        laws=candidates,
        baselines=baselines,
        weight_T=weight_T,
        num_folds=folds,
        repeats=repeats,
        seed=seed,
        on_progress=on_progress,
    )
    return LawChoice(
        best=_chosen_law(choice, candidates),
        single=choice.scores[choice.best].name,
        stack_error=choice.stack_error,
        scores=choice.scores,
        laws=tuple(law.name for law in candidates),
        measure=measure,
        unit=found.fitted.unit,
        num_mixtures=len(set(found.fitted.mixture_ids)),
        num_folds=folds,
        repeats=repeats,
        notes=(*found.notes, *notes),
    )


def find_laws(laws: Sequence[MixingLaw | str] | None) -> tuple[MixingLaw, ...]:
    """Returns the candidates, given as laws or names.

    Raises:
        FitError: None, an unknown one, or one twice.
    """
    found = tuple(find_law(law) for law in (DEFAULT_LAWS if laws is None else laws))
    names = [law.name for law in found]
    if not found:
        raise FitError("a choice needs at least one law, found none")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise FitError(f"the law {twice!r} is a candidate twice", do="leave one of them out")
    return found


def decide_measure(
    fitted: LossTable, weights: Mapping[str, float] | None
) -> tuple[Float[np.ndarray, " T"] | None, str, tuple[str, ...]]:
    """Returns the weights that errors are counted with, that in words, and what to know of it.

    Raises:
        FitError: A weighted target is not measured.
    """
    alike = "mean over targets, in units of each one's mean deviation"
    if weights is None:
        return None, alike, ()
    for target in weights:
        if target not in fitted.targets:
            raise FitError(
                f"{target!r} is no target of these runs",
                do=f"the targets are {', '.join(fitted.targets)}",
            )
    weight_T = np.array([float(weights.get(target, 0.0)) for target in fitted.targets])
    complete_R = np.isfinite(fitted.y_RT[:, weight_T != 0]).all(axis=1)
    mixtures = {fitted.mixture_ids[i] for i in np.flatnonzero(complete_R)}
    if len(mixtures) < 4 or not weight_T.any():
        note = (
            f"only {len(mixtures)} mixtures have every weighted loss: all targets count alike in"
            " the choice of the law"
        )
        return None, alike, (note,)
    return weight_T, f"of the weighted loss, {fitted.unit}", ()


def count_folds(fitted: LossTable, num_folds: int | None, repeats: int) -> tuple[int, int]:
    """Returns the folds and the repeats; leaving each mixture out is the same every time.

    Raises:
        FitError: Fewer than two folds, or no repeat.
    """
    num_mixtures = len(set(fitted.mixture_ids))
    if num_folds is None:
        num_folds = num_mixtures if num_mixtures <= MOST_LEFT_OUT else NUM_FOLDS
    if num_folds < 2 or repeats < 1:
        raise FitError(
            f"a cross-validation needs at least 2 folds and 1 repeat, found {num_folds} and"
            f" {repeats}"
        )
    num_folds = min(num_folds, num_mixtures)
    return num_folds, 1 if num_folds == num_mixtures else repeats


def score_learners(
    fitted: LossTable,
    *,
    laws: Sequence[MixingLaw],
    baselines: Sequence[Learner],
    weight_T: Float[np.ndarray, " T"] | None,
    num_folds: int,
    repeats: int,
    seed: int,
    on_progress: Callable[[float], None] | None = None,
) -> LearnerChoice:
    """Returns laws and baselines by cross-validation; only laws can be chosen."""
    check_table(fitted)
    with threadpool_limits(limits=1):
        return choose_learner(
            fitted.r_RM,
            fitted.y_RT,
            learners=(*(LawLearner(law) for law in laws), *baselines),
            mixture_ids=fitted.mixture_ids,
            weight_T=weight_T,
            num_folds=num_folds,
            repeats=repeats,
            seed=seed,
            eligible=[True] * len(laws) + [False] * len(baselines),
            on_progress=on_progress,
        )


def read_choice(values: Mapping[str, Any]) -> LawChoice:
    """Returns the choice that `LawChoice.to_json` wrote.

    Raises:
        FitError: It names a law that this version does not have.
        KeyError, TypeError: These are not such values.
    """
    weights = {find_law(name): float(weight) for name, weight in values["chosen"].items()}
    stacked = len(weights) > 1
    best = StackedLaw(tuple(weights), tuple(weights.values())) if stacked else next(iter(weights))
    scores = [
        LearnerScore(**{key: _read(key, value) for key, value in score.items()})
        for score in values["scores"]
    ]
    plain = ("single", "measure", "unit", "num_mixtures", "num_folds", "repeats")
    return LawChoice(
        best=best,
        stack_error=_read("stack_error", values["stack_error"]),
        scores=tuple(scores),
        laws=tuple(values["laws"]),
        notes=tuple(values["notes"]),
        **{key: values[key] for key in plain},
    )


def _chosen_law(choice: LearnerChoice, laws: Sequence[MixingLaw]) -> MixingLaw:
    members = [(law, float(w)) for law, w in zip(laws, choice.weight_L, strict=False) if w > 0]
    if len(members) == 1:
        return members[0][0]
    return StackedLaw(tuple(law for law, _ in members), tuple(weight for _, weight in members))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(key: str, value: Any) -> Any:
    """Returns a number that JSON has no word for: no formula's parameters, an unknown rank."""
    if value is not None:
        return value
    return math.inf if key == "num_parameters" else math.nan
