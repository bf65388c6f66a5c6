"""`mixlaw plan --next` and `--best`: what to run next, printed."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixlaw.study import Study


def show_next(
    study: "Study",
    *,
    n: int | None,
    method: str,
    tokens: float | None,
    flops: float | None,
    keep: bool,
    as_json: bool,
) -> None:
    """Prints the mixtures to run next, and what each is expected to buy."""
    from mixlaw.cli.live import LiveProgress
    from mixlaw.cli.show import print_json, print_lines, print_table

    with LiveProgress(quiet=as_json) as live:
        found = study.advise(
            n, method=method, tokens=tokens, flops=flops, keep=keep, on_progress=live.stage
        )
    if as_json:
        print_json(found)
        return
    advice = found.advice
    names = advice.best.names
    print_table(
        ("next", *names, "expected regret", "optimum moves", "from runs"),
        (
            (
                str(i + 1),
                *(f"{one.mixture[name]:.3f}" for name in names),
                f"{one.expected_regret:.2g}",
                f"{one.spread:.1%}",
                f"{one.distance_to_runs:.0%}",
            )
            for i, one in enumerate(advice.suggestions)
        ),
        title=f"{len(advice.suggestions)} mixtures by {advice.method}; each row with those before",
    )
    print_lines("", advice.sentence(), *advice.notes)
    if found.tokens is not None:
        cost = "" if found.flops is None else f", {found.flops:.3g} FLOPs"
        print_lines(f"they take {found.tokens:.3g} tokens{cost}")
    if found.pending:
        print_lines(f"{len(found.pending)} mixtures of earlier advice are taken to be trained too")
    trains = (
        "`mixlaw run`" if study.corpus is not None else "your trainer, by `mixlaw plan --write`,"
    )
    if found.path is None:
        print_lines(f"`--keep` keeps them in the study, and {trains} then trains them")
    else:
        print_lines(f"kept in {found.path}: {trains} trains them with the design")


def show_group(study: "Study", size: int, *, as_json: bool) -> None:
    """Prints the group of mixtures that is enough to fit the law."""
    from mixlaw.cli.show import print_json, print_lines, print_table

    group = study.best_group(size)
    if as_json:
        print_json({"group": group})
        return
    names = next(iter(group.values())).names
    print_table(
        ("run", *names),
        ((run_id, *(f"{m[name]:.3f}" for name in names)) for run_id, m in group.items()),
        title=f"{size} mixtures whose law predicts all the others best",
    )
    print_lines("", "train these at the larger size; the law of the rest follows from them")
