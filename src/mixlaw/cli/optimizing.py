"""`mixlaw optimize`: from flags to a question, and from its answer to tables and sentences."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from mixlaw.cli.app import HERE, JsonOption, StudyOption, app, open_study, read_shares
from mixlaw.errors import ConfigError, OptimizeError

if TYPE_CHECKING:
    from mixlaw.config import ConstraintsSection, ObjectiveSection
    from mixlaw.domains import Scale
    from mixlaw.study import Study


@app.command()
def optimize(
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="'A=2,B=1'",
            help="Weights by target or group instead of [objective].",
        ),
    ] = None,
    groups: Annotated[
        list[str] | None,
        typer.Option(
            "--groups", metavar="NAME=A+B", help="A named group of targets: the mean of theirs."
        ),
    ] = None,
    worst_case: Annotated[
        bool, typer.Option("--worst-case", help="Minimize the worst of the targets.")
    ] = False,
    relative: Annotated[
        bool,
        typer.Option(
            "--relative-to-reference", help="Count losses by their change against the reference."
        ),
    ] = False,
    risk_sd: Annotated[
        float | None,
        typer.Option(
            metavar="LAMBDA", min=0, help="Add LAMBDA standard deviations over the fit's draws."
        ),
    ] = None,
    cvar: Annotated[
        float | None,
        typer.Option(metavar="ALPHA", help="Mean of the draws worse than this level, such as 0.9."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="NAME", help="Minimize a downstream task's error.")
    ] = None,
    floor: Annotated[
        str | None, typer.Option(metavar="'A=0.1'", help="Least share of domains.")
    ] = None,
    cap: Annotated[
        str | None, typer.Option(metavar="'A=0.5'", help="Largest share of domains.")
    ] = None,
    fix: Annotated[
        str | None, typer.Option(metavar="'A=0.2'", help="Shares that domains must have.")
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(metavar="'A+B>=0.3'", help="A bound of several domains together."),
    ] = None,
    kl: Annotated[
        float | None, typer.Option(min=0, help="Largest KL from the reference mixture, in nats.")
    ] = None,
    l1: Annotated[
        float | None, typer.Option(min=0, help="Largest sum of changes against the reference.")
    ] = None,
    max_distance: Annotated[
        float | None,
        typer.Option(min=0, help="Largest share that may move to get between the runs."),
    ] = None,
    tokens: Annotated[
        float | None, typer.Option(min=1, help="Tokens of the run to be decided, not [scale]'s.")
    ] = None,
    params: Annotated[
        float | None, typer.Option(min=1, help="Parameters of the run to be decided.")
    ] = None,
    pareto: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="'A=1' 'B=1'", help="The trade-off between two weighted losses instead."
        ),
    ] = None,
    points: Annotated[int, typer.Option(min=2, help="Mixtures on that trade-off.")] = 15,
    study: StudyOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Find the best mixture under the law and the constraints, and say how sure that is.

    Flags ask another question about the same runs; optimum.json keeps the study's own answer only.
    Exit code 3 when no gain over the first baseline can be told from the error.

    Example: mixlaw optimize --weights code=1,web=2 --cap web=0.4 --group 'web+books>=0.5'
    """
    from mixlaw.cli.answer import show_front, show_optimum
    from mixlaw.cli.live import LiveProgress
    from mixlaw.cli.show import print_json
    from mixlaw.study.optimizing import trade_off

    opened = open_study(study)
    config = opened.config
    config = replace(
        config,
        objective=_objective(
            config.objective,
            weights=weights,
            groups=groups,
            worst_case=worst_case,
            relative=relative,
            risk_sd=risk_sd,
            cvar=cvar,
            task=task,
        ),
        constraints=_constraints(
            config.constraints,
            floor=floor,
            cap=cap,
            fix=fix,
            group=group,
            kl=kl,
            l1=l1,
            max_distance=max_distance,
        ),
        scale=_scale(opened, tokens=tokens, params=params),
    )
    if pareto is not None:
        with LiveProgress(quiet=as_json) as live:
            front = trade_off(
                opened,
                read_shares(pareto[0]),
                read_shares(pareto[1]),
                config=config,
                num_points=points,
                on_progress=live.stage,
            )
        print_json(front) if as_json else show_front(front)
        return
    with LiveProgress(quiet=as_json) as live, _blaming("--weights", when=weights is not None):
        best = opened.optimize(config=config, on_progress=live.stage)
    print_json(best) if as_json else show_optimum(best)
    if best.verdict not in ("gain", "no baseline") or any(g.verdict == "loss" for g in best.gains):
        raise typer.Exit(3)


@contextmanager
def _blaming(flag: str, *, when: bool) -> Generator[None]:
    """Says of an objective that came from a flag that it did."""
    try:
        yield
    except OptimizeError as error:
        if not when or not (error.where or "").startswith("[objective]"):
            raise
        raise OptimizeError(error.problem, where=flag, do=error.do) from None


def _objective(
    own: "ObjectiveSection",
    *,
    weights: str | None,
    groups: list[str] | None,
    worst_case: bool,
    relative: bool,
    risk_sd: float | None,
    cvar: float | None,
    task: str | None,
) -> "ObjectiveSection":
    """Returns the objective that flags ask for; what is made of the losses is theirs alone."""
    from mixlaw.study.goal import check_modes

    if weights is not None:
        # Weights ask for losses, also where the study's own objective is a task's error.
        own = replace(own, weights=read_shares(weights), task="")
    if groups:
        own = replace(own, groups={**own.groups, **dict(_group(text) for text in groups)})
    if cvar is not None and not 0 < cvar < 1:
        raise ConfigError(
            f"the level of CVaR must lie between 0 and 1, found {cvar:g}", where="--cvar"
        )
    if not (worst_case or relative or risk_sd is not None or cvar is not None or task):
        return own
    asked = replace(
        own,
        worst_case=worst_case,
        relative_to_reference=relative,
        risk_sd=risk_sd,
        cvar=cvar,
        task=task or "",
    )
    check_modes(asked, where="the flags of `mixlaw optimize`")
    if task and weights is not None:
        raise ConfigError(
            "an objective is a task's error or weighted losses, but --task and --weights are given",
            do="leave one of them out",
        )
    return asked


def _group(text: str) -> tuple[str, tuple[str, ...]]:
    name, _, members = text.partition("=")
    targets = tuple(part.strip() for part in members.split("+") if part.strip())
    if not name or not targets:
        raise ConfigError(
            f"a group of targets must be NAME=A+B, found {text!r}",
            where="--groups",
            do="for example: code=python+rust; names with a + go into [objective]",
        )
    return name.strip(), targets


def _constraints(
    own: "ConstraintsSection",
    *,
    floor: str | None,
    cap: str | None,
    fix: str | None,
    group: list[str] | None,
    kl: float | None,
    l1: float | None,
    max_distance: float | None,
) -> "ConstraintsSection":
    """Returns the constraints of `mixlaw.toml` with those of the flags put in or added."""
    return replace(
        own,
        floor={**own.floor, **(read_shares(floor) if floor else {})},
        cap={**own.cap, **(read_shares(cap) if cap else {})},
        fixed={**own.fixed, **(read_shares(fix) if fix else {})},
        groups=(*own.groups, *(group or ())),
        kl_to_reference=own.kl_to_reference if kl is None else kl,
        l1_to_reference=own.l1_to_reference if l1 is None else l1,
        distance_to_runs=own.distance_to_runs if max_distance is None else max_distance,
    )


def _scale(study: "Study", *, tokens: float | None, params: float | None) -> "Scale | None":
    from mixlaw.domains import Scale

    if tokens is None and params is None:
        return study.config.scale
    own = study.question.scale
    if tokens is None and own is None:
        raise ConfigError("--params needs --tokens: the study has no scale", do="give both")
    known = 0.0 if own is None else own.tokens
    size = None if own is None else own.params
    return Scale(
        tokens=known if tokens is None else tokens, params=size if params is None else params
    )
