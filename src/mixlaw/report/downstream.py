"""The report's part on downstream tasks: what the chain is worth, and what it predicts."""

import math

from mixlaw.report.data import ReportData
from mixlaw.report.numbers import format_error, format_interval, format_number
from mixlaw.report.palette import clean_name, mixture_label
from mixlaw.report.tables import Cell, Table, header_cells
from mixlaw.selection.downstream import MEAN
from mixlaw.verify import OPTIMUM


def downstream_sentences(data: ReportData) -> list[str]:
    """Returns what is to be said of the tasks; none where none was measured."""
    found = data.downstream
    if found is None:
        return []
    sources = [
        f"{clean_name(link.task)} from {clean_name(', '.join(link.fit.law.losses))}"
        for link in found.links
    ]
    intro = (
        "The error of a task follows from losses by the law e - k exp(-g L), fitted to"
        f" {len(set(found.table.run_ids))} runs at {len(found.table.run_ids)} checkpoints:"
        f" {'; '.join(sources)}."
    )
    return [intro, *(_sentence(text) for text in found.sentences())]


def downstream_score_table(data: ReportData) -> Table | None:
    """Returns the errors of the chain and of what is simpler; None: nothing could be left out."""
    found = data.downstream
    scores = () if found is None else found.held_out or found.left_out
    if found is None or not scores:
        return None
    is_held = bool(found.held_out)
    rows = [
        (
            Cell(text=_task_name(score.task)),
            *(Cell(text=format_error(value, score.count)) for value in score.error.values()),
            Cell(text="?" if math.isnan(score.item_sd) else format_number(score.item_sd, 0.001)),
            *([Cell(text=f"{score.inside} of {score.count}")] if is_held else []),
        )
        for score in scores
    ]
    return Table(
        caption="Mean absolute errors of predicted task errors, from proportions alone, on"
        f" {scores[0].count} {'held-out runs' if is_held else 'mixtures left out of both laws'}",
        columns=header_cells(
            "Task",
            "Chain of laws",
            "line in the losses",
            "mixing law of errors",
            "mean instead",
            "noise of the items",
            *(["inside"] if is_held else []),
        ),
        rows=tuple(rows),
    )


def downstream_prediction_table(data: ReportData) -> Table | None:
    """Returns the predicted task errors of the optimum and the baselines; None: there are none."""
    prediction = None if data.downstream is None else data.downstream.prediction
    if prediction is None:
        return None
    names = [OPTIMUM, *(gain.baseline for gain in data.optimum.gains)]
    if len(names) != len(prediction.mixtures):
        return None
    rows = [
        (
            Cell(text=_task_name(task)),
            *(
                Cell(
                    text=f"{prediction.value_RJ[i, j]:.3f}"
                    f" ({format_interval(prediction.low_RJ[i, j], prediction.high_RJ[i, j])})"
                )
                for i in range(len(names))
            ),
        )
        for j, task in enumerate(prediction.columns)
    ]
    return Table(
        caption=f"Predicted task errors, with the interval that holds {prediction.level:.0%} of new"
        " runs",
        columns=header_cells("Task", *(mixture_label(name) for name in names)),
        rows=tuple(rows),
    )


def _task_name(task: str) -> str:
    return "Mean over tasks" if task == MEAN else clean_name(task)


def _sentence(text: str) -> str:
    text = clean_name(text)
    return text[:1].upper() + text[1:].rstrip(".") + "."
