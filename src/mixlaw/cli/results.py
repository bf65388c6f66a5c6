"""Each result as a small table and a few sentences."""

import math

from mixlaw.cli.answer import show_optimum
from mixlaw.cli.live import format_seconds
from mixlaw.cli.show import print_lines, print_table
from mixlaw.corpora import CorpusDomain
from mixlaw.fit import FitResult
from mixlaw.predict import Prediction
from mixlaw.runs import RunCounts
from mixlaw.runs.plan import Plan
from mixlaw.selection import HoldoutScore, LawChoice
from mixlaw.study import Study, StudyStatus
from mixlaw.study.demo import DemoResult
from mixlaw.study.imported import Imported
from mixlaw.verify import Comparison, Verification


def show_domain(added: CorpusDomain) -> None:
    """Prints what was added to the corpus."""
    print_lines(
        f"added {added.name!r}: {_count(added.train_tokens)} tokens in"
        f" {added.train_documents:,} documents to train on,"
        f" {_count(added.validation_tokens)} in {added.validation_documents:,} to validate"
    )
    if added.dropped_documents:
        print_lines(f"{added.dropped_documents:,} empty or doubled documents were left out")
    print_lines(*added.notes)


def show_domains(study: Study) -> None:
    """Prints the domains with their caps."""
    question = study.question
    given, scale = study.config.constraints.cap, question.scale
    supply = {d.name: 1.0 if scale is None else d.cap(scale) for d in question.domains}
    print_table(
        ("domain", "tokens", "documents", "epochs allowed", "cap", "bytes/token"),
        (
            (
                domain.name,
                _count(domain.available_tokens),
                "?" if domain.documents is None else f"{domain.documents:,}",
                f"{domain.max_epochs:g}",
                f"{min(supply[domain.name], given.get(domain.name, 1.0)):.3f}",
                "?" if domain.bytes_per_token is None else f"{domain.bytes_per_token:.2f}",
            )
            for domain in question.domains
        ),
        title=f"at {_count(scale.tokens)} tokens" if scale else "at an unknown scale: no caps",
    )
    measured = () if study.corpus is None else study.corpus.domains
    for domain in measured:
        if not domain.train_tokens:
            tokens = _count(domain.validation_tokens)
            print_lines(f"{domain.name!r} is only measured: {tokens} tokens to validate")


def show_plan(plan: Plan) -> None:
    """Prints the mixtures, their coverage, tokens and cost."""
    names = plan.design.domains
    print_table(
        ("mixture", *names),
        (
            (str(i + 1), *(f"{mixture[name]:.3f}" for name in names))
            for i, mixture in enumerate(plan.design.mixtures)
        ),
        title=f"{len(plan.design.mixtures)} mixtures, {plan.design.method}",
    )
    print_lines("", *plan.sentences())


def show_counts(counts: RunCounts) -> None:
    """Prints how a sweep ended."""
    parts = [f"{counts.done} of {counts.total} runs are done"]
    if counts.reused:
        parts.append(f"{counts.reused} were before")
    if counts.failed:
        parts.append(f"{counts.failed} failed: see `mixlaw status`")
    if counts.cancelled:
        parts.append(f"{counts.cancelled} cancelled")
    print_lines(", ".join(parts))


def show_status(status: StudyStatus) -> None:
    """Prints what a study has."""
    print_lines(f"study {status.name} in {status.path}")
    if status.runs:
        print_table(
            ("role", "done", "running", "pending", "failed", "cancelled"),
            (
                (
                    role,
                    *(
                        str(counts.get(state, 0))
                        for state in ("done", "running", "pending", "failed", "cancelled")
                    ),
                )
                for role, counts in status.runs.items()
            ),
        )
    for run_id, error in status.failures.items():
        print_lines(f"run {run_id} failed: {error}")
    print_lines(*status.sentences)


def show_imported(imported: Imported, *, dry_run: bool) -> None:
    """Prints what was matched and kept."""
    print_lines(*imported.notes, imported.sentence(dry_run=dry_run))


def show_fit(fit: FitResult, choice: LawChoice | None, score: HoldoutScore | None) -> None:
    """Prints why it is that law, and how well each target is predicted."""
    print_lines(fit.report())
    if choice is not None:
        print_lines(
            f"chosen: {choice.sentence()}",
            *(note for note in choice.notes if note not in fit.notes),
        )
    if score is None:
        return
    print_table(
        ("held out", "error", "mean's error", "rank corr.", "in interval"),
        (
            (
                s.name,
                f"{s.mae:.4f}",
                f"{s.mean_mae:.4f}",
                "?" if math.isnan(s.spearman) else f"{s.spearman:.3f}",
                f"{s.inside}/{s.count}",
            )
            for s in score.scores
        ),
        title=f"\n{len(score.run_ids)} mixtures that were not fitted, {score.level:.0%} intervals",
    )


def show_prediction(prediction: Prediction) -> None:
    """Prints the losses of each mixture with their intervals."""
    for i, mixture in enumerate(prediction.mixtures):
        print_table(
            ("target", "loss", "low", "high"),
            (
                (
                    column,
                    f"{prediction.value_RK[i, k]:.4f}",
                    f"{prediction.low_RK[i, k]:.4f}",
                    f"{prediction.high_RK[i, k]:.4f}",
                )
                for k, column in enumerate(prediction.columns)
            ),
            title=f"{mixture} ({prediction.unit}, {prediction.level:.0%} of new runs)",
        )
    print_lines(*prediction.notes)


def show_verification(verified: Verification) -> None:
    """Prints predicted against measured, and who won."""
    print_table(
        ("mixture", "predicted", "interval", "measured", "inside"),
        (
            (
                mixture.name,
                f"{mixture.predicted:.4f}",
                f"{mixture.predicted_low:.4f} to {mixture.predicted_high:.4f}",
                f"{mixture.mean:.4f}",
                f"{mixture.num_inside}/{len(mixture.measured)}",
            )
            for mixture in verified.mixtures
        ),
    )
    print_lines("", *(comparison_sentence(comparison) for comparison in verified.comparisons))


def show_demo(result: DemoResult) -> None:
    """Prints the answer, and what took how long."""
    show_fit(result.fit, result.choice, result.holdout)
    print_lines("")
    show_optimum(result.optimum)
    print_lines("")
    show_verification(result.verification)
    print_lines("")
    print_table(
        ("stage", "time"),
        ((stage, format_seconds(seconds)) for stage, seconds in result.seconds.items()),
    )
    print_lines("", f"report: {result.report}")


def comparison_sentence(comparison: Comparison) -> str:
    """Returns who won, by how much, and how much sooner."""
    difference = (
        f"{comparison.difference:+.4f} ({comparison.low:+.4f} to {comparison.high:+.4f}),"
        f" {len(comparison.steps_to_match)} seeds"
    )
    if comparison.winner == "undecided":
        return f"against {comparison.baseline}: undecided, {difference}"
    speed = comparison.speedup
    sooner = "" if speed is None else f"; it gets there in 1/{speed:.2f} of the steps"
    if comparison.winner != "optimum":
        return f"against {comparison.baseline}: the optimum LOST, {difference}"
    return f"against {comparison.baseline}: the optimum won, {difference}{sooner}"


def _count(number: float | None) -> str:
    if number is None:
        return "?"
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}"
