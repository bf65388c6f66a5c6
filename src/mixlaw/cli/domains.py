"""`mixlaw domains merge`, `split`, `name`, `undo`: domains that change after runs were trained."""

from typing import TYPE_CHECKING, Annotated

import typer

from mixlaw.cli.app import HERE, JsonOption, StudyOption, domains_app, open_study
from mixlaw.errors import ConfigError

if TYPE_CHECKING:
    from mixlaw.study.domain_edits import ChangedDomains


@domains_app.command("merge")
def domains_merge(
    names: Annotated[list[str], typer.Argument(help="The domains to merge.")],
    into: Annotated[str, typer.Option(help="Name of the merged domain.")],
    study: StudyOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Make one domain of several; their shares add up in all earlier runs.

    Example: mixlaw domains merge news blogs --into web
    """
    _show(open_study(study).merge_domains(names, into), as_json=as_json)


@domains_app.command("split")
def domains_split(
    name: Annotated[str, typer.Argument(help="The domain to split.")],
    into: Annotated[str, typer.Option(metavar="A,B", help="Names of its parts.")],
    shares: Annotated[
        str | None,
        typer.Option(metavar="X,Y", help="Each part's share of it in earlier runs; equal ones."),
    ] = None,
    study: StudyOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Make several domains of one; no law tells them apart until runs do.

    Example: mixlaw domains split code --into python,rust --shares 0.8,0.2
    """
    parts = [part.strip() for part in into.split(",") if part.strip()]
    changed = open_study(study).split_domain(name, parts, shares=_numbers(shares))
    _show(changed, as_json=as_json)


@domains_app.command("name")
def domains_name(
    name: Annotated[str, typer.Argument(help="The new domain.")],
    tokens: Annotated[
        float | None, typer.Option(min=1, help="Unique tokens that there are of it.")
    ] = None,
    study: StudyOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Name a new domain without its text; its share in earlier runs is 0.

    Example: mixlaw domains name math --tokens 2e10
    """
    _show(open_study(study).name_domain(name, available_tokens=tokens), as_json=as_json)


@domains_app.command("undo")
def domains_undo(study: StudyOption = HERE, as_json: JsonOption = False) -> None:
    """Take the last merge, split or addition back, with mixlaw.toml as it was.

    Example: mixlaw domains undo
    """
    from mixlaw.cli.show import print_json, print_lines

    change = open_study(study).undo_domain_change()
    if as_json:
        print_json({"undone": change.sentence()})
        return
    print_lines(f"taken back: {change.sentence()}")


def _show(changed: "ChangedDomains", *, as_json: bool) -> None:
    """Prints what changed, and which conclusions fell."""
    from mixlaw.cli.show import print_json, print_lines

    if as_json:
        print_json(
            {
                "change": changed.change.sentence(),
                "domains": changed.domains,
                "fell": changed.fell,
                "notes": changed.notes,
            }
        )
        return
    print_lines(changed.change.sentence(), *changed.notes)
    if changed.fell:
        print_lines("what no longer holds:", *(f"  {what}" for what in changed.fell))
        print_lines("`mixlaw fit` and the commands after it make them anew from the same runs")
    if changed.change.kind == "split":
        print_lines(
            "no run tells the parts apart yet: the law takes them for one, and how the optimum"
            " divides their share is arbitrary; `mixlaw plan --next` or a new design varies them"
        )


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"shares must be numbers with commas between, found {text!r}",
            do="for example: --shares 0.8,0.2",
        ) from None
