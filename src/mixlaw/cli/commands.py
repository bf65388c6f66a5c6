"""The commands of the loop: from a study's folder to its report and export."""

from pathlib import Path
from typing import Annotated

import typer

from mixlaw.cli.app import (
    HERE,
    JsonOption,
    StudyOption,
    app,
    domains_app,
    open_study,
    read_mixture,
    read_pairs,
)


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

    opened = open_study(study)
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
    from mixlaw.cli.show import print_json, print_lines

    opened = open_study(study)
    if as_json:
        print_json(opened.question.domains)
        return
    show_domains(opened)
    print_lines(*(f"change: {change.sentence()}" for change in opened.domain_changes))


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
    following: Annotated[
        int | None,
        typer.Option("--next", min=1, help="Mixtures to run next, for most news of the optimum."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="Of --next: optimum, regret, improvement, parameters (D-optimal) or space."
        ),
    ] = "optimum",
    tokens: Annotated[
        float | None, typer.Option(min=1, help="Tokens that the next runs may take in all.")
    ] = None,
    flops: Annotated[
        float | None, typer.Option(min=1, help="FLOPs that the next runs may take in all.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep them in the study: `mixlaw run` trains them.")
    ] = False,
    best: Annotated[
        int | None,
        typer.Option(min=4, help="Of the mixtures that were run, those that tell the law best."),
    ] = None,
    study: StudyOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Show the mixtures to train, with tokens, epochs, FLOPs and time.

    With --next or a budget: which mixtures to run next, and what each is expected to buy.

    Example: mixlaw plan --next 4 --keep
    """
    from mixlaw.cli.results import show_plan
    from mixlaw.cli.show import print_json, print_lines

    is_next = not (following is None and tokens is None and flops is None)
    if is_next and best is not None:
        raise typer.BadParameter("--best goes without --next, --tokens and --flops")
    if keep and not is_next:
        raise typer.BadParameter("--keep goes with --next, --tokens or --flops")
    if write is not None and (is_next or best is not None):
        raise typer.BadParameter("--write is of the whole plan; --keep makes next runs part of it")
    opened = open_study(study)
    if best is not None:
        from mixlaw.cli.advising import show_group

        show_group(opened, best, as_json=as_json)
        return
    if is_next:
        from mixlaw.cli.advising import show_next

        show_next(
            opened, n=following, method=method, tokens=tokens, flops=flops, keep=keep,
            as_json=as_json,
        )  # fmt: skip
        return
    planned = opened.plan()
    prefixes = read_pairs(prefix, "--prefix", known=opened.question.names)
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

    opened = open_study(study)
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

    state = open_study(study).status()
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
    errors: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Columns of task errors, such as 'error/{task}'."),
    ] = None,
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
        columns=read_pairs(column, "--column"),
        unit=unit,
        errors=errors,
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

    opened = open_study(study)
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

    opened = open_study(study)
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

    opened = open_study(study)
    prediction = opened.predict([read_mixture(text) for text in mixture])
    print_json(prediction) if as_json else show_prediction(prediction)


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

    opened = open_study(study)
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

    opened = open_study(study)
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

    opened = open_study(study)
    given = None if mixture is None else read_mixture(mixture)
    prefixes = read_pairs(prefix, "--prefix", known=opened.question.names)
    result = opened.export(framework, output, mixture=given, prefixes=prefixes)
    if as_json:
        print_json(result)
        return
    print_lines(f"wrote {result.path}", *result.notes)
