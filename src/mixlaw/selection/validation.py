"""Every law and baseline by what it did not see, and the choice between them likewise.

Shape letters: L learners, R runs, T targets, M training domains, G mixtures.

Cross-validation over mixtures says how well a law predicts a new mixture; leaving each one out, and
choosing the law anew without it, what the choice itself is worth. Where runs have several sizes or
steps, the largest and the latest are left out as well (`mixlaw.selection.scale_holdout`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from mixlaw.fit.fitted_runs import check_table, read_fitted
from mixlaw.fit.learners import (
    GaussianProcessLearner,
    LawLearner,
    Learner,
    LightGBMLearner,
    MeanLearner,
    has_baselines,
)
from mixlaw.laws.base import MixingLaw
from mixlaw.observations import LossTable
from mixlaw.selection.choice import (
    NUM_FOLDS,
    LearnerChoice,
    LeftOut,
    choose_from,
    group_index,
    leave_out,
)
from mixlaw.selection.nested import leave_out_with_choice
from mixlaw.selection.scale_holdout import leave_largest_size_out, leave_latest_steps_out
from mixlaw.selection.select import MOST_LEFT_OUT, count_folds, decide_measure, find_laws
from mixlaw.selection.validation_table import ValidationRow, ValidationTable, average_rows, make_row

FOLDS_OF_MANY = 10
MOST_ALONE = 100
"""Up to so many mixtures each is left out alone: beyond, folds say the same in less time."""
MOST_NESTED = 40
"""Up to so many, the choice is made anew without each."""
SELECTED = "selected"
"""The row of the choice itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """Tables of errors out of sample, one for each way of leaving out."""

    tables: tuple[ValidationTable, ...]
    selected: str
    """What the choice is with all mixtures in view."""
    measure: str
    """What `error` counts in the tables of mixtures, in words."""
    unit: str
    level: float
    """Of the intervals."""
    notes: tuple[str, ...]

    def __str__(self) -> str:
        parts = [str(table) for table in self.tables]
        legend = (
            f"error: {self.measure}; MAE, median, regret and width: {self.unit}; inside: losses"
            f" within their {self.level:.0%} interval"
        )
        return "\n\n".join((*parts, "\n".join((legend, f"chosen: {self.selected}", *self.notes))))

    def to_json(self) -> dict[str, Any]:
        """Returns the tables as plain values."""
        return {
            "selected": self.selected,
            "measure": self.measure,
            "unit": self.unit,
            "level": self.level,
            "tables": [table.to_json() for table in self.tables],
            "notes": list(self.notes),
        }


def validate(
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
    level: float = 0.9,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> Validation:
    """Returns how well laws, baselines and the choice between laws predict what they did not see.

    Args:
        runs: The runs table; the same runs count as in `fit_law`.
        observations: The observation table.
        laws: Candidates; those that are worth their time by default. `MIXING_LAWS` has all.
        targets: Which targets; all by default.
        weights: Weights of targets: their weighted loss decides. All targets alike, by default.
        step: At which step mixtures are compared; the last one that all have, by default.
        params: At which model size; the largest by default.
        num_folds: Folds of mixtures; 10, or 5 up to 30 mixtures, by default.
        repeats: How often mixtures are dealt into folds anew.
        baselines: What stands beside the laws, but can't be chosen.
        level: Level of the intervals.
        seed: Seed of the folds.
        on_progress: Called with the share that is done.

    Raises:
        TableError: The tables are not what they must be.
        FitError: No law, an unknown one or target, fewer than four mixtures, or infinite losses.
    """
    found = read_fitted(runs, observations, targets=targets, step=step, params=params)
    fitted = found.fitted
    check_table(fitted)
    candidates = find_laws(laws)
    weight_T, measure, notes = decide_measure(fitted, weights)
    group_R = group_index(fitted.mixture_ids)
    few = int(group_R.max()) + 1 <= MOST_LEFT_OUT
    folds, repeats = count_folds(
        fitted, num_folds or (NUM_FOLDS if few else FOLDS_OF_MANY), repeats
    )
    judged = _Judged(
        fitted=fitted,
        group_R=group_R,
        learners=(*(LawLearner(law) for law in candidates), *baselines),
        num_laws=len(candidates),
        weight_T=weight_T,
        level=level,
        seed=seed,
    )

    def tell(share: float) -> None:
        if on_progress is not None:
            on_progress(share)

    with threadpool_limits(limits=1):
        by_fold, choice = judged.leave_folds_out(folds, repeats, lambda share: tell(0.4 * share))
        alone, told, chosen = judged.leave_each_out(lambda share: tell(0.4 + 0.4 * share))
    scaled = [
        leave(runs, observations, targets=fitted.targets, weights=weights, level=level, seed=seed)
        for leave in (leave_largest_size_out, leave_latest_steps_out)
    ]
    tell(1.0)
    return Validation(
        tables=(by_fold, *alone, *(one for one in scaled if isinstance(one, ValidationTable))),
        selected=(chosen or choice).selected_name,
        measure=measure,
        unit=fitted.unit,
        level=level,
        notes=(*found.notes, *notes, *told, *(one for one in scaled if isinstance(one, str))),
    )


def all_baselines(seed: int = 0) -> tuple[Learner, ...]:
    """Returns the mean, and boosted trees and a Gaussian process where these are installed."""
    if not has_baselines():
        return (MeanLearner(),)
    return MeanLearner(), LightGBMLearner(seed=seed), GaussianProcessLearner(seed=seed)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Judged:
    """Losses, and who is to predict them."""

    fitted: LossTable
    group_R: Int[np.ndarray, " R"]
    learners: tuple[Learner, ...]
    """The laws first."""
    num_laws: int
    weight_T: Float[np.ndarray, " T"] | None
    level: float
    seed: int

    def leave_folds_out(
        self, num_folds: int, repeats: int, tell: Callable[[float], None]
    ) -> tuple[ValidationTable, LearnerChoice]:
        """Returns errors by cross-validation, means over the repeats, and the choice."""
        rng = np.random.default_rng(self.seed)
        rounds = self._rounds(self.learners, num_folds, repeats, rng, tell)
        rows = [
            average_rows([self._row(learner.name, one.left_out_LRT[i], learner) for one in rounds])
            for i, learner in enumerate(self.learners)
        ]
        again = "" if repeats == 1 else f", {repeats} times"
        title = f"{self.num_groups} mixtures left out in {num_folds} folds{again}"
        return ValidationTable(title=title, rows=tuple(rows)), self._choose(rounds, self.learners)

    def leave_each_out(
        self, tell: Callable[[float], None]
    ) -> tuple[list[ValidationTable], tuple[str, ...], LearnerChoice | None]:
        """Returns errors with each mixture left out, those of the choice among them, and notes.

        Last comes the choice that `select_law` makes, where it leaves out each mixture too.
        """
        count = self.num_groups
        if count > MOST_ALONE:
            note = f"{count} mixtures: too many to leave each out alone, folds say the same"
            return [], (note,), None
        notes: tuple[str, ...] = ()
        choice: LearnerChoice | None = None
        rows: list[ValidationRow] = []
        others = self.learners
        if count <= MOST_NESTED:
            laws, others = self.learners[: self.num_laws], self.learners[self.num_laws :]
            nested = leave_out_with_choice(
                self.fitted.r_RM,
                self.fitted.y_RT,
                learners=laws,
                mixture_ids=self.fitted.mixture_ids,
                weight_T=self.weight_T,
                seed=self.seed,
            )
            rows = [self._row(law.name, nested.left_out_LRT[i], law) for i, law in enumerate(laws)]
            rows.append(self._row(SELECTED, nested.selected_RT, None))
            if count <= MOST_LEFT_OUT:
                choice = self._choose([LeftOut(nested.left_out_LRT, self.group_R)], laws)
        else:
            notes = (f"{count} mixtures: too many to repeat the choice of the law without each",)
        if others:
            rng = np.random.default_rng(self.seed)
            (one,) = self._rounds(others, count, 1, rng, tell)
            rows += [self._row(it.name, one.left_out_LRT[i], it) for i, it in enumerate(others)]
        title = f"each of {count} mixtures left out; {SELECTED}: the law chosen anew without it"
        return [ValidationTable(title=title, rows=tuple(rows))], notes, choice

    @property
    def num_groups(self) -> int:
        """Mixtures."""
        return int(self.group_R.max()) + 1

    def _rounds(
        self,
        learners: Sequence[Learner],
        num_folds: int,
        repeats: int,
        rng: np.random.Generator,
        tell: Callable[[float], None],
    ) -> list[LeftOut]:
        return leave_out(
            self.fitted.r_RM,
            self.fitted.y_RT,
            learners=learners,
            group_R=self.group_R,
            num_folds=num_folds,
            repeats=repeats,
            rng=rng,
            on_progress=tell,
        )

    def _choose(self, rounds: Sequence[LeftOut], learners: Sequence[Learner]) -> LearnerChoice:
        """Returns the choice among the laws, which stand first."""
        return choose_from(
            rounds,
            self.fitted.y_RT,
            learners=learners,
            group_R=self.group_R,
            weight_T=self.weight_T,
            num_domains=len(self.fitted.domains),
            rng=np.random.default_rng(self.seed),
            eligible=[i < self.num_laws for i in range(len(learners))],
        )

    def _row(
        self, name: str, predicted_RT: Float[np.ndarray, "R T"], learner: Learner | None
    ) -> ValidationRow:
        size = None if learner is None else learner.num_parameters(len(self.fitted.domains))
        return make_row(
            name,
            predicted_RT,
            self.fitted.y_RT,
            r_RM=self.fitted.r_RM,
            group_R=self.group_R,
            weight_T=self.weight_T,
            num_parameters=size,
            level=self.level,
        )
