"""A study's tasks: how well losses tell their errors, and the errors of mixtures."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mixlaw.errors import FitError
from mixlaw.fit.error_links import fit_links
from mixlaw.fit.task_table import TaskTable, read_tasks
from mixlaw.mixtures import Mixture
from mixlaw.observations import task_target_names
from mixlaw.selection.downstream import (
    UNTESTED,
    DownstreamFit,
    fit_downstream,
    predict_downstream,
)
from mixlaw.selection.downstream_score import score_held_out, score_left_out
from mixlaw.selection.downstream_summary import Downstream
from mixlaw.study.scaled import find_point

if TYPE_CHECKING:
    from mixlaw.study.folder import Study


def downstream_fit(
    study: "Study",
    *,
    tasks: Sequence[str] | None = None,
    losses: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
) -> DownstreamFit:
    """Returns the chain from mixtures to task errors, by the study's own mixing law.

    Args:
        study: The study.
        tasks: Which tasks; all by default.
        losses: Which losses the tasks are predicted from; what predicts best by default.
        weights: Weights of the tasks in their mean; all alike by default.

    Raises:
        StudyError: There are no finished runs.
        FitError: There are no tasks, or the runs allow no law.
    """
    runs, observations = study.tables()
    table = read_tasks(runs, observations, tasks=tasks)  # says what is missing before any fit
    return fit_downstream(
        study.fit(),
        runs,
        observations,
        tasks=tasks,
        losses=_for_all(table, losses),
        weights=weights,
    )


def study_downstream(
    study: "Study",
    mixtures: Sequence[Mixture] = (),
    *,
    tasks: Sequence[str] | None = None,
    losses: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Downstream:
    """Returns the error laws, how well the chain predicts, and the errors of mixtures.

    Runs that allow no mixing law still tell how losses and errors go together.

    Args:
        study: The study.
        mixtures: Mixtures to predict.
        tasks: Which tasks; all by default.
        losses: Which losses the tasks are predicted from; what predicts best by default.
        weights: Weights of the tasks in their mean; all alike by default.

    Raises:
        StudyError: There are no finished runs.
        FitError: There are no tasks; or mixtures are asked for and the runs allow no mixing law.
    """
    runs, observations = study.tables()
    table = read_tasks(runs, observations, tasks=tasks)
    try:
        chain = downstream_fit(study, tasks=tasks, losses=losses, weights=weights)
    except FitError as error:
        if mixtures:
            raise
        return _links_alone(table, _for_all(table, losses), error)
    return Downstream(
        table=chain.table,
        links=chain.links,
        chain=chain,
        left_out=score_left_out(chain),
        held_out=score_held_out(chain, runs, observations),
        prediction=predict_downstream(chain, mixtures) if mixtures else None,
        notes=(*chain.notes, *_scale_note(study, chain)),
    )


def reported_downstream(study: "Study", mixtures: Sequence[Mixture]) -> Downstream | None:
    """Returns what a report shows of the tasks; None: there are none, or too few runs for a law.

    Args:
        study: The study.
        mixtures: The optimum and the baselines.
    """
    if not task_target_names(study.tables()[1]):
        return None
    try:
        return study_downstream(study, mixtures)
    except FitError:
        return None


def _scale_note(study: "Study", chain: DownstreamFit) -> tuple[str, ...]:
    """Returns what is to be said where another scale than the runs' is asked about."""
    point, _, is_out_of_reach = find_point(chain.fit, *study.fitted_tables(), study.question)
    if point is None and not is_out_of_reach:
        return ()
    return (
        "task errors are those of runs as large and as long as the fitted ones, not of the scale in"
        " mixlaw.toml",
    )


def _for_all(table: TaskTable, losses: Sequence[str] | None) -> dict[str, Sequence[str]] | None:
    return None if losses is None else dict.fromkeys(table.tasks, losses)


def _links_alone(
    table: TaskTable, losses: Mapping[str, Sequence[str]] | None, error: FitError
) -> Downstream:
    links = fit_links(table, losses=losses)
    untested = () if links[0].sets else (UNTESTED,)
    return Downstream(
        table=table,
        links=links,
        chain=None,
        left_out=(),
        held_out=(),
        prediction=None,
        notes=(f"no mixing law, so no error of a mixture: {error.problem}", *untested),
    )
