"""Next runs of a study: chosen, kept in `next.json`, and trained with the rest by `mixlaw run`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixlaw.advise import Advice, advise_mixtures, choose_group
from mixlaw.errors import StudyError
from mixlaw.files import write_atomic
from mixlaw.mixtures import Mixture
from mixlaw.runs.plan import Plan, PlannedRun
from mixlaw.study.artefacts import table_hash
from mixlaw.study.optimizing import ask

if TYPE_CHECKING:
    from mixlaw.study.folder import Progress, Study

FILE_NAME = "next.json"
FLOPS_PER_PARAM_AND_TOKEN = 6.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NextRuns:
    """What a study is advised to run next."""

    advice: Advice
    pending: tuple[Mixture, ...]
    """Mixtures of earlier advice that are not trained or imported yet."""
    tokens: float | None
    """Of all advised runs; None: the length of the runs is not known."""
    flops: float | None
    path: Path | None
    """The file in which they are kept for `mixlaw run`; None: they were only looked at."""


def advise_study(
    study: "Study",
    n: int | None,
    *,
    method: str = "optimum",
    tokens: float | None = None,
    flops: float | None = None,
    keep: bool = False,
    on_progress: "Progress | None" = None,
) -> NextRuns:
    """Returns the mixtures that most lessen the doubt about a study's optimum.

    Args:
        study: The study.
        n: How many; None: as many as the budget allows.
        method: See `mixlaw.advise.advise_mixtures`.
        tokens: Training tokens that all of them may take.
        flops: FLOPs that all of them may take.
        keep: Keep them in the study: `mixlaw run` then trains them with the design.
        on_progress: Is told how far the fit is.

    Raises:
        StudyError: There are no finished runs, no budget, or one below a single run.
        DesignError: So many different mixtures are not there.
    """
    asked = ask(study, on_progress=on_progress)
    run_tokens, run_flops = _run_cost(study, asked.own_fit.table.tokens)
    count = _affordable(n, (tokens, run_tokens, "tokens"), (flops, run_flops, "FLOPs"))
    pending = pending_mixtures(study.path, asked.own_fit.table.mixture_ids)
    advice = advise_mixtures(
        asked.own_fit,
        asked.objective,
        asked.question.constraints.region(asked.question.scale, runs_RM=asked.own_fit.table.r_RM),
        n=count,
        method=method,
        pending=[mixture for mixture in pending if set(mixture) == set(asked.own_fit.domains)],
    )
    path = None
    if keep:
        path = keep_next(study.path, advice, made_from=table_hash(*study.fitted_tables()))
    return NextRuns(
        advice=advice,
        pending=pending,
        tokens=None if run_tokens is None else run_tokens * count,
        flops=None if run_flops is None else run_flops * count,
        path=path,
    )


def choose_study_group(study: "Study", size: int, *, seed: int = 0) -> dict[str, Mixture]:
    """Returns the mixtures, by their run, of the group whose law predicts all mixtures best.

    Raises:
        DesignError: The group must be smaller than all mixtures.
    """
    asked = ask(study)
    table = asked.own_fit.table
    chosen = choose_group(asked.own_fit, asked.objective, size=size, seed=seed)
    return {
        table.run_ids[i]: Mixture.from_array(table.domains, table.r_RM[i])
        for i in (table.mixture_ids.index(mixture_id) for mixture_id in chosen)
    }


def _run_cost(study: "Study", fitted_tokens: float | None) -> tuple[float | None, float | None]:
    """Returns tokens and FLOPs of one run, where they are known."""
    question = study.question
    scale = question.proxy_scale if question.has_corpus else question.scale
    tokens = fitted_tokens if scale is None else scale.tokens
    params = None if scale is None else scale.params
    if tokens is None or params is None:
        return tokens, None
    return tokens, FLOPS_PER_PARAM_AND_TOKEN * params * tokens


def _affordable(n: int | None, *budgets: tuple[float | None, float | None, str]) -> int:
    counts = [] if n is None else [n]
    for budget, cost, unit in budgets:
        if budget is None:
            continue
        if cost is None:
            raise StudyError(
                f"a budget in {unit} needs the size and length of a run, which are not known",
                do="give [scale] or [proxies] in mixlaw.toml, or the number of runs with `--next`",
            )
        if budget < cost:
            raise StudyError(
                f"the budget must allow a run, but {budget:.3g} {unit} are less than the"
                f" {cost:.3g} of one",
                do="raise it, or make the proxies smaller",
            )
        counts.append(int(budget // cost))
    if not counts:
        raise StudyError("either a number of runs or a budget must be given")
    return min(counts)


def keep_next(folder: Path, advice: Advice, *, made_from: str) -> Path:
    """Adds advised mixtures to those that the study keeps, and returns the file."""
    rounds = _read_rounds(folder)
    rounds.append(
        {
            "made_from": made_from,
            "method": advice.method,
            "expected_regret_before": advice.regret_now,
            "mixtures": [dict(mixture) for mixture in advice.mixtures],
            "expected_regrets": [s.expected_regret for s in advice.suggestions],
        }
    )
    text = json.dumps({"rounds": rounds}, indent=1, ensure_ascii=False)
    return write_atomic(folder / FILE_NAME, text + "\n")


def kept_mixtures(folder: Path) -> tuple[Mixture, ...]:
    """Returns all advised mixtures that a study keeps, each once.

    Raises:
        StudyError: The file is damaged.
    """
    try:
        found = [
            Mixture.normalized(shares, tolerance=1e-6)
            for one in _read_rounds(folder)
            for shares in one["mixtures"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, error) from error
    return tuple({mixture.mixture_id: mixture for mixture in found}.values())


def pending_mixtures(folder: Path, fitted_ids: Sequence[str]) -> tuple[Mixture, ...]:
    """Returns the kept mixtures that the fit has not seen."""
    return tuple(m for m in kept_mixtures(folder) if m.mixture_id not in set(fitted_ids))


def _read_rounds(folder: Path) -> list[dict[str, Any]]:
    path = folder / FILE_NAME
    if not path.exists():
        return []
    try:
        rounds = json.loads(path.read_text(encoding="utf-8"))["rounds"]
        if not isinstance(rounds, list):
            raise TypeError("`rounds` must be a list")
        return rounds
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> StudyError:
    return StudyError(
        f"the kept mixtures can't be read ({error})",
        where=str(folder / FILE_NAME),
        do="delete the file and ask for advice again: runs that were trained stay",
    )


def with_next_runs(plan: Plan, study: "Study") -> Plan:
    """Returns a plan with the kept mixtures, which are trained like those of the design."""
    base = next((run for run in plan.runs if run.role == "design"), None)
    question = study.question
    known = {mixture.mixture_id for mixture in plan.design.mixtures}
    kept = [
        mixture.reordered(question.names)
        for mixture in kept_mixtures(study.path)
        if set(mixture) == set(question.names) and mixture.mixture_id not in known
    ]
    if not kept:
        return plan
    design = replace(plan.design, mixtures=(*plan.design.mixtures, *kept))
    note = f"{len(kept)} mixtures of earlier advice (`mixlaw plan --next`) are part of the design"
    plan = replace(plan, design=design, coverage=design.coverage(), notes=(*plan.notes, note))
    if base is None:
        return plan
    added = tuple(
        PlannedRun(spec=replace(base.spec, mixture=question.proxy_mixture(mixture)), role="design")
        for mixture in kept
    )
    longer = 1 + len(added) / len(plan.runs)
    return replace(
        plan,
        runs=(*plan.runs, *added),
        tokens=plan.tokens + sum(run.spec.tokens for run in added),
        flops=plan.flops + sum(run.spec.flops for run in added),
        seconds=None if plan.seconds is None else plan.seconds * longer,
    )
