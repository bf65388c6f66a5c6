"""`mixlaw downstream`: task errors by losses, and of mixtures."""

import math
from typing import TYPE_CHECKING, Annotated

import typer

from mixlaw.cli.app import HERE, JsonOption, StudyOption, app, open_study, read_mixture

if TYPE_CHECKING:
    from mixlaw.selection.downstream import DownstreamPrediction
    from mixlaw.selection.downstream_score import TaskScore
    from mixlaw.selection.downstream_summary import Downstream


@app.command()
def downstream(
    mixture: Annotated[
        list[str] | None,
        typer.Option("--mixture", "-m", metavar="'A=0.7,B=0.3'", help="Predict its task errors."),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this task; may be repeated.")
    ] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Predict the tasks from this loss; may be repeated."),
    ] = None,
    study: StudyOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Fit task errors to losses, and predict them for mixtures.

    Errors are measured on the proxies, or imported. Exit code 3 when the chain from mixtures to
    errors was not tested across mixtures, or predicts no better than the mean of the runs.

    Example: mixlaw downstream -m web=0.7,code=0.3
    """
    from mixlaw.cli.show import print_json

    opened = open_study(study)
    mixtures = [read_mixture(text) for text in mixture or ()]
    found = opened.downstream(mixtures, tasks=task, losses=loss)
    print_json(found.to_json()) if as_json else show_downstream(found)
    if not found.is_trusted:
        raise typer.Exit(3)


def show_downstream(found: "Downstream") -> None:
    """Prints the error laws, what they are worth, and the predicted errors."""
    from mixlaw.cli.show import print_lines, print_table

    table = found.table
    print_table(
        ("task", "from", "items", "epsilon", "k", "gamma", "left out", "line", "mean"),
        (
            (
                link.task,
                link.source,
                _whole(table.num_items_K[k]),
                *(f"{value:.3g}" for value in (*link.fit.theta_P[:2], link.fit.theta_P[2:].sum())),
                *(
                    _mean_error(residual_N[table.is_last_N])
                    for residual_N in (link.residual_N, link.line_residual_N, link.mean_residual_N)
                ),
            )
            for k, link in enumerate(found.links)
        ),
        title=f"errors by measured losses: {len(set(table.run_ids))} runs at"
        f" {len(table.run_ids)} checkpoints, each of {len(set(table.sets))} training sets left out"
        " in turn",
    )
    print_lines("", *(f"{link.task}: {link.fit.describe()}" for link in found.links))
    if found.left_out:
        _show_scores(found.left_out, "errors by proportions alone, mixtures left out of both laws")
    if found.held_out:
        _show_scores(found.held_out, "errors by proportions alone, held-out runs")
    if found.prediction is not None:
        _show_prediction(found.prediction)
    print_lines("", *found.sentences())


def _show_scores(scores: "tuple[TaskScore, ...]", title: str) -> None:
    from mixlaw.cli.show import print_table

    print_table(
        ("task", "chain", "line", "direct", "mean", "items' noise", "spread", "in interval"),
        (
            (
                score.task,
                *(f"{value:.4f}" for value in score.error.values()),
                "?" if math.isnan(score.item_sd) else f"{score.item_sd:.4f}",
                f"{score.spread:.4f}",
                "" if score.inside is None else f"{score.inside}/{score.count}",
            )
            for score in scores
        ),
        title=f"\n{title} ({scores[0].count})",
    )


def _show_prediction(prediction: "DownstreamPrediction") -> None:
    from mixlaw.cli.show import print_lines, print_table

    for i, mixture in enumerate(prediction.mixtures):
        print_table(
            ("task", "error", "low", "high", *prediction.parts),
            (
                (
                    column,
                    f"{prediction.value_RJ[i, j]:.4f}",
                    f"{prediction.low_RJ[i, j]:.4f}",
                    f"{prediction.high_RJ[i, j]:.4f}",
                    *(f"{part_RJ[i, j]:.4f}" for part_RJ in prediction.parts.values()),
                )
                for j, column in enumerate(prediction.columns)
            ),
            title=f"\n{mixture} (error, {prediction.level:.0%} of new runs; then half-widths that"
            " the links have alone)",
        )
    print_lines(*prediction.notes)


def _mean_error(residual_N: "object") -> str:
    import numpy as np

    known = np.asarray(residual_N)[np.isfinite(np.asarray(residual_N))]
    return f"{np.mean(np.abs(known)):.4f}" if len(known) else "?"


def _whole(number: float) -> str:
    return "?" if math.isnan(number) else f"{number:.0f}"
