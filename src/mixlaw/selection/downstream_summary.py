"""What is known of a study's tasks: laws, what they are worth, and errors of mixtures."""

from dataclasses import dataclass
from typing import Any

from mixlaw.fit.error_links import TaskLink
from mixlaw.fit.task_table import TaskTable
from mixlaw.selection.downstream import MEAN, DownstreamFit, DownstreamPrediction
from mixlaw.selection.downstream_score import TaskScore


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Downstream:
    """What a study knows of its tasks."""

    table: TaskTable
    links: tuple[TaskLink, ...]
    """The error law of each task."""
    chain: DownstreamFit | None
    """From mixtures to errors; None: the runs allow no mixing law."""
    left_out: tuple[TaskScore, ...]
    """On the fitted mixtures, each left out of both laws."""
    held_out: tuple[TaskScore, ...]
    """On the held-out runs, where there are any with errors."""
    prediction: DownstreamPrediction | None
    """Of the mixtures that were asked for."""
    notes: tuple[str, ...]

    @property
    def is_trusted(self) -> bool:
        """Whether the chain was tested across mixtures, and predicts better than their mean."""
        scores = {score.task: score for score in self.left_out}
        if self.chain is None or MEAN not in scores:
            return False
        errors = scores[MEAN].error
        return self.chain.is_tested and errors["chain"] < errors["mean"]

    def sentences(self) -> tuple[str, ...]:
        """Returns the notes, and how the chain compares with what is simpler."""
        scores = self.held_out or self.left_out
        where = "held-out" if self.held_out else "left-out"
        return (*self.notes, *(_compare(score, where) for score in scores[-1:]))

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {
            "tasks": {link.task: _link_json(link, self.table) for link in self.links},
            "runs": len(set(self.table.run_ids)),
            "rows": len(self.table.run_ids),
            "training_sets": len(set(self.table.sets)),
            "is_tested_across_mixtures": bool(self.links[0].sets),
            "is_trusted": self.is_trusted,
            "left_out": self.left_out,
            "held_out": self.held_out,
            "prediction": self.prediction,
            "notes": self.sentences(),
        }


def _compare(score: TaskScore, where: str) -> str:
    errors = ", ".join(f"{way} {value:.4f}" for way, value in score.error.items())
    rest = (
        "nothing simpler is better"
        if score.best == "chain"
        else f"{score.best} is better here: the chain earns nothing"
    )
    return f"mean over tasks, {score.count} {where} mixtures: error of {errors}; {rest}"


def _link_json(link: TaskLink, table: TaskTable) -> dict[str, Any]:
    items = table.num_items_K[table.tasks.index(link.task)]
    return {
        "from": list(link.fit.law.losses),
        "parameters": dict(
            zip(link.fit.law.parameter_names, map(float, link.fit.theta_P), strict=True)
        ),
        "intervals": link.fit.intervals(),
        "description": link.fit.describe(),
        "items": float(items),
        "candidates": dict(link.candidates),
    }
