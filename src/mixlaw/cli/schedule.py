"""`mixlaw schedule`: the best mixture for each stage of a run."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixlaw.cli.app import (
    HERE,
    JsonOption,
    StudyOption,
    app,
    open_study,
    read_pairs,
    read_shares,
)
from mixlaw.errors import ConfigError

if TYPE_CHECKING:
    from mixlaw.study.schedule import ScheduleAnswer

AT_BOUND = 5e-5
"""Shares that differ by less are shown alike."""


@app.command()
def schedule(
    stages: Annotated[
        int | None, typer.Option(min=1, help="Stages of equal length; [schedule] by default.")
    ] = None,
    fractions: Annotated[
        str | None,
        typer.Option(metavar="0.8,0.2", help="Share of the tokens that each stage takes."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="'A=2,B=1'", help="Weights by target instead of [objective]."),
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="First train the runs of [schedule] that are not done.")
    ] = False,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Runs at once, with --train; one per CPU core.")
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try failed runs again, with --train.")
    ] = False,
    write: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the schedule, and a file for each stage."),
    ] = None,
    framework: Annotated[
        str, typer.Option(help="Of the stages' files, with --write: json, csv or megatron.")
    ] = "json",
    prefix: Annotated[
        list[str] | None,
        typer.Option(metavar="DOMAIN=PATH", help="Megatron's data prefix of a domain."),
    ] = None,
    study: StudyOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Find the best mixture for each stage of the run, under the caps of the whole run.

    Needs runs whose mixture changes on the way. Exit code 3 when no gain over the best constant
    mixture can be told from the error.

    Example: mixlaw schedule --stages 2 --fractions 0.8,0.2
    """
    from mixlaw.cli.live import LiveProgress
    from mixlaw.cli.show import print_json, print_lines
    from mixlaw.study.schedule import write_schedule

    opened = open_study(study)
    shares = read_fractions(stages, fractions)
    prefixes = read_pairs(prefix, "--prefix", known=opened.question.names)
    failed = 0
    with LiveProgress(quiet=as_json) as live:
        if train:
            counts = opened.train_schedules(slots=slots, retry=retry, on_runs=live.runs)
            failed = counts.failed
        answer = opened.schedule(
            fractions=shares,
            weights=None if weights is None else read_shares(weights),
            on_progress=live.stage,
        )
    written = (
        ()
        if write is None
        else write_schedule(answer, write, framework=framework, prefixes=prefixes)
    )
    if as_json:
        print_json({**answer.to_json(), "written": written})
    else:
        show_schedule(answer)
        if written:
            print_lines(f"wrote {', '.join(str(path) for path in written)}")
    if failed or answer.optimum.verdict != "gain":
        raise typer.Exit(3)


def read_fractions(stages: int | None, fractions: str | None) -> tuple[float, ...] | None:
    """Returns `0.8,0.2`, or stages of equal length; None: neither is given.

    Raises:
        ConfigError: They are no numbers, or not as many as stages.
    """
    from mixlaw.study.schedule import equal_fractions

    if fractions is None:
        return None if stages is None else equal_fractions(stages)
    try:
        shares = tuple(float(part) for part in fractions.split(","))
    except ValueError:
        raise ConfigError(
            f"--fractions must be numbers with commas between, found {fractions!r}",
            do="give each stage's share of the tokens, for example: 0.8,0.2",
        ) from None
    if stages is not None and len(shares) != stages:
        raise ConfigError(
            f"--fractions must give one share for each of {stages} stages, found {len(shares)}",
            do="leave --stages out, or give as many fractions",
        )
    return shares


def show_schedule(answer: "ScheduleAnswer") -> None:
    """Prints the schedule, what it gains, and how far the law is to be trusted."""
    from mixlaw.cli.show import print_lines, print_table

    best = answer.optimum
    numbers = range(1, len(best.schedule.mixtures) + 1)
    stages = [f"{f:.0%} of the tokens" for f in best.schedule.fractions]
    header = (column for text in stages for column in (text, f"{best.level:.0%}"))
    print_table(
        ("domain", *header, "whole run", "epochs", "best constant"),
        _share_rows(answer),
        title=f"mixture of stages {', '.join(map(str, numbers))}",
    )
    print_lines("")
    print_table(
        ("loss", "schedule", f"{best.level:.0%}", "best constant", f"{best.level:.0%}"),
        _loss_rows(answer),
        title=f"predicted; objective: {best.objective.describe()}",
    )
    print_lines("", *schedule_sentences(answer))


def schedule_sentences(answer: "ScheduleAnswer") -> Iterator[str]:
    """Yields what is to be said of a schedule, the gain first."""
    best = answer.optimum
    for gain in best.gains:
        verdict = {"gain": "a gain", "loss": "a loss"}.get(gain.verdict, "no evidence of a gain")
        yield (
            f"over the {gain.baseline}: {gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f}):"
            f" {verdict}"
        )
    if best.is_constant:
        yield "the best schedule keeps to one mixture"
    if best.moved > AT_BOUND:
        yield (
            f"other schedules are as good under the law: of these it is the one closest to one"
            f" mixture ({best.moved:.1%} of the tokens moved)"
        )
    yield best.certificate
    for name, price in sorted(best.prices.items(), key=lambda item: -abs(item[1])):
        if name.startswith("cap"):
            yield f"{name}: {price / 100:+.4f} per percent of the run's tokens"
    rules = ", ".join(f"{error.name} {error.mae:.4f}" for error in best.errors)
    yield f"error on {best.num_staged} schedules: {rules}"
    for score in answer.held_out[-1:]:
        yield (
            f"{score.count} held-out schedules, {score.target}: error {score.mae:.4f}, by the mean"
            f" mixture {score.mean_mixture_mae:.4f}, by the last stage {score.last_stage_mae:.4f};"
            f" {score.inside} inside their {score.level:.0%} intervals"
        )
    late = ", ".join(
        f"{target} {k:.1f} ({low:.1f} to {high:.1f})"
        for target, (k, low, high) in best.recency.items()
    )
    yield f"k, a token at the end counts e^k times one at the beginning: {late}"
    yield from best.notes


def _share_rows(answer: "ScheduleAnswer") -> Iterator[tuple[str, ...]]:
    best = answer.optimum
    for name in best.schedule.names:
        epochs = answer.epochs(name)
        cells: list[str] = []
        for mixture, ranges in zip(best.schedule.mixtures, best.proportion_range, strict=True):
            low, high = ranges[name]
            cells += [f"{mixture[name]:.3f}", f"{low:.3f} to {high:.3f}"]
        yield (
            name,
            *cells,
            f"{best.schedule.mean[name]:.3f}",
            "" if epochs is None else f"{epochs:.2g}",
            f"{best.constant[name]:.3f}",
        )


def _loss_rows(answer: "ScheduleAnswer") -> Iterator[tuple[str, ...]]:
    best = answer.optimum
    pairs = {
        "objective": (best.loss, best.constant_loss),
        **{
            target: (best.target_losses[target], best.constant_target_losses[target])
            for target in best.target_losses
        },
    }
    for name, both in pairs.items():
        cells: list[str] = []
        for value, low, high in both:
            cells += [f"{value:.4f}", f"{low:.4f} to {high:.4f}"]
        yield (name, *cells)
