"""`mixlaw critical`: how much original data a model needs to keep its old loss."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from mixlaw.cli.app import HERE, JsonOption, StudyOption, app, open_study, read_shares

if TYPE_CHECKING:
    from mixlaw.optimize.continual_runs import Checkpoint, ContinualAnswer
    from mixlaw.optimize.trade_off import TradeOff

TRADE_OFF_ROWS = 6
"""Shares of the trade-off that are printed."""


@app.command()
def critical(
    old: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Domains of the original data; [continual] by default."),
    ] = None,
    new: Annotated[
        str | None, typer.Option(metavar="A,B", help="Domains of the new data; all others.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Targets of the old loss: names, or 'A=2,B=1'."),
    ] = None,
    new_target: Annotated[
        str | None, typer.Option(metavar="A,B", help="Targets of the new loss, likewise.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="What the old loss may lose, in its unit.")
    ] = None,
    original_loss: Annotated[
        float | None,
        typer.Option(help="Old loss of the original model; as observed at step 0 by default."),
    ] = None,
    level: Annotated[float, typer.Option(help="Level of the intervals.")] = 0.9,
    law: Annotated[
        str | None, typer.Option(help="A law by name; m4, or that of [fit] in mixlaw.toml.")
    ] = None,
    noise_sd: Annotated[
        float | None,
        typer.Option(help="What is known of the noise between runs: its standard deviation."),
    ] = None,
    noise_freedom: Annotated[
        float, typer.Option(help="Degrees of freedom that --noise-sd is worth.")
    ] = 5.0,
    train: Annotated[
        bool, typer.Option("--train", help="First train the runs of [continual] that are not done.")
    ] = False,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Runs at once, with --train; one per CPU core.")
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try failed runs again, with --train.")
    ] = False,
    study: StudyOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Find the smallest share of original data at which the old loss is kept.

    For runs that go on from a model on original and new data. Exit code 3 when the runs do not say
    how much is enough.

    Example: mixlaw critical --old pile --new python --target wikipedia,github
    """
    from mixlaw.cli.live import LiveProgress
    from mixlaw.cli.show import print_json
    from mixlaw.fit.continual import NoisePrior
    from mixlaw.study.continual import CriticalOptions

    opened = open_study(study)
    options = CriticalOptions(
        original=_names(old, "--old"),
        new=_names(new, "--new"),
        weights=_weights(target),
        new_weights=_weights(new_target),
        tolerance=tolerance,
        original_loss=original_loss,
        level=level,
        law=law,
        prior=None if noise_sd is None else NoisePrior(sd=noise_sd, freedom=noise_freedom),
    )
    failed = 0
    if train:
        with LiveProgress(quiet=as_json) as live:
            counts = opened.train_critical(options, slots=slots, retry=retry, on_runs=live.runs)
        failed = counts.failed
    answer = opened.critical(options)
    print_json(answer.to_json()) if as_json else show_critical(answer)
    if failed or not answer.critical.is_identified:
        raise typer.Exit(3)


def show_critical(answer: "ContinualAnswer") -> None:
    """Prints the critical proportion by checkpoint, the trade-off, and what is to be said."""
    from mixlaw.cli.show import print_lines, print_table

    level = f"{answer.critical.level:.0%}"
    has_sizes = len({checkpoint.params for checkpoint in answer.checkpoints}) > 1
    print_table(
        ("step", *(("params",) if has_sizes else ()), "tokens", "original", level, "new"),
        (_row(checkpoint, has_sizes=has_sizes) for checkpoint in answer.checkpoints),
        title="smallest share of original data that keeps the old loss, by checkpoint",
    )
    if answer.trade_off is not None:
        print_lines("")
        print_table(
            ("original", "old loss", level, "new loss", level),
            _trade_rows(answer.trade_off),
            title="trade-off at the last checkpoint",
        )
    print_lines("", *answer.sentences())


def _row(checkpoint: "Checkpoint", *, has_sizes: bool) -> tuple[str, ...]:
    found = checkpoint.critical
    share = "none" if found.share is None else f"{found.share:.3f}"
    new = "none" if found.new_share is None else f"{found.new_share:.3f}"
    if found.low is None:
        interval = "not known"
    elif found.high is None:
        interval = f"{found.low:.3f} or more"
    else:
        interval = f"{found.low:.3f} to {found.high:.3f}"
    params = (f"{checkpoint.params:.4g}",) if has_sizes else ()
    tokens = "" if checkpoint.tokens is None else f"{checkpoint.tokens:.4g}"
    return (str(checkpoint.step), *params, tokens, share, interval, new)


def _trade_rows(curve: "TradeOff") -> list[tuple[str, ...]]:
    last = len(curve.share_S) - 1
    rows = [round(i * last / (TRADE_OFF_ROWS - 1)) for i in range(TRADE_OFF_ROWS)]
    return [
        (
            f"{curve.share_S[i]:.3f}",
            f"{curve.old_S[i]:.4f}",
            _half_width(float(curve.old_half_S[i])),
            f"{curve.new_S[i]:.4f}",
            _half_width(float(curve.new_half_S[i])),
        )
        for i in rows
    ]


def _half_width(half: float) -> str:
    return "not known" if math.isnan(half) else f"± {half:.4f}"


def _names(text: str | None, option: str) -> tuple[str, ...] | None:
    """Returns `A,B` as names."""
    if text is None:
        return None
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        from mixlaw.errors import ConfigError

        raise ConfigError(f"{option} must name a domain, found {text!r}")
    return names


def _weights(text: str | None) -> dict[str, float] | None:
    """Returns `A=2,B=1` as weights, or `A,B` as equal ones."""
    if text is None:
        return None
    if "=" in text or text.lstrip().startswith("{"):
        return read_shares(text)
    names: Sequence[str] = _names(text, "--target") or ()
    return dict.fromkeys(names, 1.0)
