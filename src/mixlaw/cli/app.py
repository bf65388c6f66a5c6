"""The command line's program: its options, and how it reads what a person types.

The commands are in modules of their own, one per stage or topic; each calls one method of `Study`
and prints what it returns. What is heavy is imported inside the commands: `mixlaw --help` must not
wait for it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixlaw import __version__
from mixlaw.errors import ConfigError, MixtureError

if TYPE_CHECKING:
    from mixlaw.mixtures import Mixture
    from mixlaw.study import Study

app = typer.Typer(
    name="mixlaw",
    help="Choose the data mixture of a language model's pre-training from small runs, and know how"
    " sure you are. Start with `mixlaw demo`, or with `mixlaw init` for a study of your own.",
    epilog="Exit codes: 0 done, 1 input to correct, 2 usage, 3 done but not to be trusted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
domains_app = typer.Typer(
    help="The text that mixtures are made of.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(domains_app, name="domains")

StudyOption = Annotated[
    Path, typer.Option("--study", metavar="DIR", help="Folder of the study.", show_default=True)
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON value instead of a table.")
]
HERE = Path()


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Prints the version."""
    if show:
        typer.echo(__version__)
        raise typer.Exit


def open_study(folder: Path) -> "Study":
    """Returns the study in a folder."""
    from mixlaw.study import Study

    return Study.open(folder)


def read_pairs(
    given: list[str] | None, option: str, *, known: Sequence[str] = ()
) -> dict[str, str]:
    """Returns `NAME=VALUE` arguments as a mapping.

    A known name ends where it ends, since it may hold a `=`; otherwise the first one splits.
    """
    pairs: dict[str, str] = {}
    for text in given or ():
        name = max((name for name in known if text.startswith(f"{name}=")), key=len, default=None)
        if name is None:
            name = text.partition("=")[0]
        value = text[len(name) + 1 :]
        if not (name and value):
            raise ConfigError(
                f"{option} must be NAME=VALUE, found {text!r}",
                do="for example: " + ("web=/data/web" if option == "--prefix" else "step=iter"),
            )
        if name in pairs:
            raise ConfigError(f"{option} gives {name!r} twice", do="leave one of them out")
        pairs[name] = value
    return pairs


def read_mixture(text: str) -> "Mixture":
    """Returns the mixture that a person typed."""
    from mixlaw.mixtures import Mixture

    try:
        return Mixture.normalized(read_shares(text), tolerance=1e-3)
    except MixtureError as error:
        raise MixtureError(
            error.problem,
            where=f"--mixture {text}",
            do="give each domain's share of the tokens, for example: web=0.7,code=0.3",
        ) from None


def read_shares(text: str) -> dict[str, float]:
    """Returns `A=0.7,B=0.3`, or the same as a JSON object, as numbers by name."""
    if text.lstrip().startswith("{"):
        return _json_shares(text)
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().rpartition("=")
        try:
            number = float(value)
        except ValueError:
            number = None
        if not name or number is None:
            raise ConfigError(
                f"shares and weights must be NAME=NUMBER with commas between, found {part!r}",
                do="for example: web=0.7,code=0.3; or a JSON object, for names with a comma",
            )
        if name in shares:
            raise ConfigError(f"{name!r} is given twice in {text!r}", do="leave one of them out")
        shares[name] = number
    return shares


def _json_shares(text: str) -> dict[str, float]:
    import json

    from pydantic import TypeAdapter, ValidationError

    try:
        given = json.loads(text, object_pairs_hook=_once)
        return TypeAdapter(dict[str, float]).validate_python(given)
    except (ValueError, ValidationError) as error:
        raise ConfigError(
            f"shares and weights must be numbers by name, found {text!r}",
            do='for example: {"web": 0.7, "code": 0.3}',
        ) from error


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Returns the pairs of a JSON object; a name that is there twice is an error."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name is there twice")
    return dict(pairs)
