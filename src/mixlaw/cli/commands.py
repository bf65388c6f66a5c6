"""The commands, one per stage; each calls one method of `Study` and prints what it returns.

What is heavy is imported inside the commands: `mixlaw --help` must not wait for it.
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


@app.command()
def demo(
    study: Annotated[
        Path, typer.Option("--study", metavar="DIR", help="Folder to work in; made when missing.")
    ] = Path("mixlaw-demo"),
    corpus: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="A corpus of your own instead of the text that is fetched."
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option(help="Forget the runs of an earlier demo.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the design and of the training.")] = 0,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Runs at once; one per CPU core by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the whole loop on real text: train, fit, optimize, verify, report.

    Five minutes on two CPU cores. The text (60 MB) comes out of Python packages.

    Example: mixlaw demo
    """
    from mixlaw.cli.live import LiveProgress
    from mixlaw.cli.results import show_demo
    from mixlaw.cli.show import print_json
    from mixlaw.study.demo import run_demo

    with LiveProgress(quiet=as_json) as live:
        result = run_demo(
            study,
            corpus=corpus,
            fresh=fresh,
            seed=seed,
            slots=slots,
            on_stage=live.say,
            on_progress=live.stage,
            on_runs=live.runs,
        )
    print_json(result) if as_json else show_demo(result)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    as_json: JsonOption = False,
) -> None:
    """Make a study: a folder with a commented mixlaw.toml.

    Example: mixlaw init spring
    """
    from mixlaw.cli.show import print_json, print_lines
    from mixlaw.study import Study

    study = Study.create(folder)
    if as_json:
        print_json({"study": study.path, "config": study.path / "mixlaw.toml"})
        return
    print_lines(
        f"made {study.path / 'mixlaw.toml'}",
        "next: add text with `mixlaw domains add NAME PATH...`, or runs with `mixlaw import`",
    )


@domains_app.command("add")
def domains_add(
    name: Annotated[str, typer.Argument(help="Name of the domain.")],
    paths: Annotated[
        list[Path],
        typer.Argument(help="Text, JSONL (also .gz, .zst) or Parquet files, or folders."),
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="bytes, bpe:SIZE (trained on this text) or a tokenizer.json."),
    ] = None,
    text_field: Annotated[str, typer.Option(help="Field or column that holds the text.")] = "text",
    target_only: Annotated[
        bool, typer.Option(help="Only measure losses on it; no mixture trains on it.")
    ] = False,
    licence: Annotated[str | None, typer.Option(help="Licence, for the report.")] = None,
    source: Annotated[str | None, typer.Option(help="Attribution, for the report.")] = None,
    replace: Annotated[bool, typer.Option(help="Replace a domain of that name.")] = False,
    study: StudyOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Add text as a domain: split, tokenized and counted.

    Example: mixlaw domains add code data/code/*.jsonl.zst
    """
    from mixlaw.cli.live import LiveProgress
    from mixlaw.cli.results import show_domain
    from mixlaw.cli.show import print_json

    opened = _open(study)
    with LiveProgress(quiet=as_json) as live:
        added = opened.add_domain(
            name,
            list[str | Path](paths),
            tokenizer=tokenizer,
            text_field=text_field,
            target_only=target_only,
            licence=licence,
            source=source,
            replace=replace,
            progress=live.stage,
        )
    print_json(added) if as_json else show_domain(added)


@domains_app.command("list")
def domains_list(study: StudyOption = HERE, as_json: JsonOption = False) -> None:
    """List the domains, what there is of each, and their caps at the scale.

    Example: mixlaw domains list
    """
    from mixlaw.cli.results import show_domains
    from mixlaw.cli.show import print_json

    opened = _open(study)
    print_json(opened.question.domains) if as_json else show_domains(opened)


@app.command()
def plan(
    write: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the mixtures as CSV, JSON and Megatron blends."),
    ] = None,
    prefix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DOMAIN=PATH", help="Megatron's data prefix of a domain, with --write."
        ),
    ] = None,
    study: StudyOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Show the mixtures to train, with tokens, epochs, FLOPs and time.

    Example: mixlaw plan --write mixtures
    """
    from mixlaw.cli.results import show_plan
    from mixlaw.cli.show import print_json, print_lines

    opened = _open(study)
    planned = opened.plan()
    prefixes = _pairs(prefix, "--prefix", known=opened.question.names)
    written = [] if write is None else opened.write_plan(write, prefixes=prefixes)
    if as_json:
        print_json({"plan": planned, "written": written})
        return
    show_plan(planned)
    if written:
        print_lines(f"wrote {len(written)} files to {write}")


@app.command()
def run(
    slots: Annotated[
        int | None, typer.Option(min=1, help="Runs at once; one per CPU core by default.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try failed runs again.")] = False,
    study: StudyOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Train the planned proxies; goes on where it was stopped.

    Example: mixlaw run --slots 2
    """
    from mixlaw.cli.live import LiveProgress
    from mixlaw.cli.results import show_counts
    from mixlaw.cli.show import print_json

    opened = _open(study)
    with LiveProgress(quiet=as_json) as live:
        counts = opened.run(slots=slots, retry=retry, on_runs=live.runs)
    print_json(counts) if as_json else show_counts(counts)
    if counts.failed:
        raise typer.Exit(3)


@app.command()
def status(study: StudyOption = HERE, as_json: JsonOption = False) -> None:
    """Show what the study has and how its runs stand.

    Example: mixlaw status --json
    """
    from mixlaw.cli.results import show_status
    from mixlaw.cli.show import print_json

    state = _open(study).status()
    print_json(state) if as_json else show_status(state)


@app.command("import")
def import_command(
    runs: Annotated[Path, typer.Argument(help="Table of runs: CSV, TSV, JSONL or Parquet.")],
    metrics: Annotated[
        Path | None, typer.Argument(help="Table of losses, where that is another file.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Column that joins the two files.")] = None,
    proportions: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Columns of shares, such as 'mix/{domain}'."),
    ] = None,
    losses: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Columns of losses, such as 'val/{target}'."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="How far a row's sum may be from 1; it is then rescaled.")
    ] = 0.02,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=COLUMN", help="Column of a further field, such as step=iter."),
    ] = None,
    unit: Annotated[
        str, typer.Option(help="Of the losses: nats_per_token, bits_per_byte or error.")
    ] = "nats_per_token",
    source: Annotated[
        str | None, typer.Option(help="Name of the source; that of the file by default.")
    ] = None,
    drop_unmatched: Annotated[
        bool, typer.Option(help="Leave out runs that only one of the two files has.")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Show what was matched, import nothing.")] = False,
    study: StudyOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Import runs that a team already has; makes the study when there is none.

    Rows of two files are joined by key, never by their order. Needs no PyTorch.

    Example: mixlaw import runs.csv metrics.csv --key run
    """
    from mixlaw.cli.results import show_imported
    from mixlaw.cli.show import print_json
    from mixlaw.study import Study

    imported = Study.for_import(study).import_tables(
        runs,
        metrics,
        key=key,
        proportions=proportions,
        losses=losses,
        columns=_pairs(column, "--column"),
        unit=unit,
        source=source,
        tolerance=tolerance,
        drop_unmatched=drop_unmatched,
        dry_run=dry_run,
    )
    print_json(imported) if as_json else show_imported(imported, dry_run=dry_run)


@app.command("validate")
def validate_command(
    laws: Annotated[
        str | None, typer.Option(metavar="A,B", help="Laws by name; the usual ones by default.")
    ] = None,
    every: Annotated[
        bool,
        typer.Option("--all", help="Every law, and the baselines of the `baselines` extra."),
    ] = False,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Folds of mixtures; 5 up to 30 mixtures, 10 beyond.")
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="How often mixtures are dealt into folds.")
    ] = 3,
    study: StudyOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Judge every law by what it did not see: mixtures, the largest size, the latest steps.

    Example: mixlaw validate --laws m4,reciprocal
    """
    from mixlaw.cli.live import LiveProgress
    from mixlaw.cli.show import print_json, print_lines

    opened = _open(study)
    with LiveProgress(quiet=as_json) as live:
        found = opened.validate(
            laws=None if laws is None else [name.strip() for name in laws.split(",")],
            num_folds=folds,
            repeats=repeats,
            with_all=every,
            on_progress=live.stage,
        )
    print_json(found) if as_json else print_lines(*str(found).splitlines())


@app.command()
def fit(
    law: Annotated[
        str | None,
        typer.Option(
            help="A law by name, or `select`: only to look; [fit] in mixlaw.toml sets it for all."
        ),
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="Step of the losses; the last that all runs share.")
    ] = None,
    study: StudyOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Fit the mixing law that predicts best to every target, and say how well it does.

    Exit code 3 when a target's fit did not converge.

    Example: mixlaw fit
    """
    from mixlaw.cli.live import LiveProgress
    from mixlaw.cli.results import show_fit
    from mixlaw.cli.show import print_json

    opened = _open(study)
    with LiveProgress(quiet=as_json) as live:
        fitted = opened.fit(law=law, step=step, on_progress=live.stage)
        choice = opened.choice(law=law, step=step)
        score = opened.score(fitted)
    if as_json:
        print_json({"fit": fitted, "choice": choice, "holdout": score})
    else:
        show_fit(fitted, choice, score)
    if not all(status.converged for status in fitted.status):
        raise typer.Exit(3)


@app.command()
def predict(
    mixture: Annotated[
        list[str],
        typer.Option("--mixture", "-m", metavar="'A=0.7,B=0.3'", help="Shares by domain."),
    ],
    study: StudyOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Predict the losses of mixtures, with 90% intervals of a new run.

    Example: mixlaw predict -m web=0.7,code=0.3
    """
    from mixlaw.cli.results import show_prediction
    from mixlaw.cli.show import print_json

    opened = _open(study)
    prediction = opened.predict([_mixture(text) for text in mixture])
    print_json(prediction) if as_json else show_prediction(prediction)


@app.command()
def optimize(
    weights: Annotated[
        str | None,
        typer.Option(metavar="'A=2,B=1'", help="Weights by target instead of [objective]."),
    ] = None,
    study: StudyOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Find the best mixture under the law and the constraints.

    Exit code 3 when no gain over the first baseline can be told from the error.

    Example: mixlaw optimize --weights code=1,web=2
    """
    from mixlaw.cli.live import LiveProgress
    from mixlaw.cli.results import show_optimum
    from mixlaw.cli.show import print_json

    opened = _open(study)
    with LiveProgress(quiet=as_json) as live:
        best = opened.optimize(
            weights=None if weights is None else _shares(weights), on_progress=live.stage
        )
    print_json(best) if as_json else show_optimum(opened, best)
    is_better = not best.gains or best.gains[0].verdict == "gain"
    if not is_better or any(gain.verdict == "loss" for gain in best.gains):
        raise typer.Exit(3)


@app.command()
def verify(
    slots: Annotated[int | None, typer.Option(min=1, help="Runs at once.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=3, help="Seeds of each mixture instead of [verify].")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try failed runs again.")] = False,
    study: StudyOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Train the optimum and the baselines with fresh seeds, and compare.

    Exit code 3 when the optimum did not win against the first baseline, or lost to another.

    Example: mixlaw verify --seeds 5
    """
    from mixlaw.cli.live import LiveProgress
    from mixlaw.cli.results import show_verification
    from mixlaw.cli.show import print_json

    opened = _open(study)
    with LiveProgress(quiet=as_json) as live:
        verified = opened.verify(
            slots=slots, seeds=seeds, retry=retry, on_runs=live.runs, on_progress=live.stage
        )
    print_json(verified) if as_json else show_verification(verified)
    winners = [comparison.winner for comparison in verified.comparisons]
    if winners and (winners[0] != "optimum" or {*winners} - {"optimum", "undecided"}):
        raise typer.Exit(3)


@app.command()
def report(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to; report.html in the study.")
    ] = None,
    study: StudyOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Write the report: one HTML file that opens without a network.

    Example: mixlaw report -o report.html
    """
    from mixlaw.cli.live import LiveProgress
    from mixlaw.cli.show import print_json, print_lines

    opened = _open(study)
    with LiveProgress(quiet=as_json) as live:
        path = opened.report(output, on_progress=live.stage)
    print_json({"report": path}) if as_json else print_lines(f"wrote {path}")


@app.command()
def export(
    framework: Annotated[str, typer.Argument(help="json, csv or megatron.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to; `mixture.*` in the current folder."),
    ] = None,
    mixture: Annotated[
        str | None,
        typer.Option(
            "--mixture", "-m", metavar="'A=0.7,B=0.3'", help="Shares instead of the optimum."
        ),
    ] = None,
    prefix: Annotated[
        list[str] | None,
        typer.Option(metavar="DOMAIN=PATH", help="Megatron's data prefix of a domain."),
    ] = None,
    study: StudyOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Write the optimum (or a given mixture) for a training framework.

    Example: mixlaw export megatron --prefix web=/data/web_text_document -o blend.txt
    """
    from mixlaw.cli.show import print_json, print_lines

    opened = _open(study)
    given = None if mixture is None else _mixture(mixture)
    prefixes = _pairs(prefix, "--prefix", known=opened.question.names)
    result = opened.export(framework, output, mixture=given, prefixes=prefixes)
    if as_json:
        print_json(result)
        return
    print_lines(f"wrote {result.path}", *result.notes)


def _open(folder: Path) -> "Study":
    from mixlaw.study import Study

    return Study.open(folder)


def _pairs(given: list[str] | None, option: str, *, known: Sequence[str] = ()) -> dict[str, str]:
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


def _mixture(text: str) -> "Mixture":
    """Returns the mixture that a person typed."""
    from mixlaw.mixtures import Mixture

    try:
        return Mixture.normalized(_shares(text), tolerance=1e-3)
    except MixtureError as error:
        raise MixtureError(
            error.problem,
            where=f"--mixture {text}",
            do="give each domain's share of the tokens, for example: web=0.7,code=0.3",
        ) from None


def _shares(text: str) -> dict[str, float]:
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
