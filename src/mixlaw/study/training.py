"""From a study's question to the runs that answer it, and the trainer that trains them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixlaw.config import Config
from mixlaw.corpora import Corpus
from mixlaw.design import Design, sample_mixtures
from mixlaw.errors import StudyError
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.proxy import ProxyRecipe, ProxyTrainer, proxy_recipe
from mixlaw.runs.local import count_processors
from mixlaw.runs.plan import (
    Plan,
    PlannedRun,
    Role,
    describe_plan,
    fresh_seed,
    log_spaced_steps,
    plan_runs,
)
from mixlaw.runs.spec import RunSpec
from mixlaw.runs.store import RunRow
from mixlaw.study.question import Question
from mixlaw.study.tokens import (
    describe_limits,
    describe_tokens,
    proxy_domains,
    token_limits,
)

VERIFY: Role = "verify"
HOLDOUT_SEED_STEP = 7919
"""The held-out mixtures' sampling seed lies this far from the design's: another draw."""


def make_plan(question: Question, corpus: Corpus | None) -> Plan:
    """Returns the runs to train; without a corpus the design alone, for teams that train elsewhere.

    Raises:
        DesignError: So many mixtures can't be drawn.
        StudyError: A domain of the study has no text in the corpus.
    """
    config = question.config
    design = sample_mixtures(
        question.domains,
        n=config.design.mixtures,
        scale=question.scale,
        method=config.design.method,
        floor=question.design_floor,
        spread=config.design.spread,
        include=_fitting(question),
        seed=config.design.seed,
    )
    if corpus is None:
        return describe_plan((), design=design, domains=question.domains)
    _check_text(question, corpus)
    recipe = _recipe(question, corpus)
    base = base_spec(question, corpus)
    runs = plan_runs(
        design,
        params=base.params,
        steps=base.steps,
        eval_steps=base.eval_steps,
        tokens_per_step=base.tokens_per_step,
        corpus=base.corpus,
        tokenizer=base.tokenizer,
        trainer=base.trainer,
        precision=base.precision,
        schedule=base.schedule,
        noise_runs=config.design.noise_runs,
        holdout=_held_out(question, design),
        token_limits=base.token_limits,
        seed=config.design.seed,
    )
    runs = tuple(
        replace(run, spec=replace(run.spec, mixture=question.proxy_mixture(run.spec.mixture)))
        for run in runs
    )
    plan = describe_plan(
        runs,
        design=design,
        domains=proxy_domains(question, corpus),
        tokens_per_second=base.tokens / recipe.estimate_seconds(base),  # evaluations included
        slots=config.study.slots or count_processors(),
    )
    told = (*describe_tokens(question), *describe_limits(question, corpus))
    return replace(plan, notes=(*plan.notes, *told))


def base_spec(question: Question, corpus: Corpus) -> RunSpec:
    """Returns the spec that all runs of a study have in common, for the uniform mixture.

    Raises:
        RunError: The proxies can't be trained as they are configured.
    """
    proxies = question.config.proxies
    recipe = _recipe(question, corpus)
    steps = max(1, round(proxies.tokens / recipe.tokens_per_step))
    return RunSpec(
        mixture=Mixture.uniform(question.names),
        params=round(proxies.params),
        steps=steps,
        tokens_per_step=recipe.tokens_per_step,
        eval_steps=log_spaced_steps(steps, proxies.evaluations),
        schedule=proxies.schedule,
        seed=question.config.design.seed,
        corpus=recipe.corpus,
        tokenizer=recipe.tokenizer,
        trainer=recipe.trainer,
        precision=recipe.precision,
        token_limits=token_limits(question, corpus),
    )


def _recipe(question: Question, corpus: Corpus) -> ProxyRecipe:
    proxies = question.config.proxies
    return proxy_recipe(
        corpus, precision=proxies.precision, device=proxies.device, tasks=proxies.tasks
    )


def is_alike(spec: RunSpec, base: RunSpec) -> bool:
    """Whether two runs differ in mixture, seed and evaluated steps at most."""
    return _without_mixture(spec) == _without_mixture(base) and set(spec.mixture) == set(
        base.mixture
    )


def _without_mixture(spec: RunSpec) -> dict[str, Any]:
    """Returns what a run's losses depend on beside its mixture and seed."""
    values = spec.to_json()
    return {n: v for n, v in values.items() if n not in ("mixture", "seed", "eval_steps")}


def serves_other_runs(row: RunRow) -> bool:
    """Whether a run has stages, goes on from weights or gives them: no mixing law is fitted to it.

    `mixlaw critical` and `mixlaw schedule` read these.
    """
    spec = row.spec
    return bool(spec.later_stages) or spec.start is not None or row.role == "original"


def plan_verification(
    question: Question,
    corpus: Corpus,
    mixtures: Mapping[str, Mixture],
    *,
    seeds: int,
) -> tuple[PlannedRun, ...]:
    """Returns runs of the given mixtures with the same fresh seeds, evaluated often.

    Args:
        question: The study's question.
        corpus: What to train on.
        mixtures: The optimum and the baselines, by name.
        seeds: How many seeds.
    """
    _check_text(question, corpus)
    base = base_spec(question, corpus)
    eval_steps = log_spaced_steps(
        base.steps, question.config.verify.evaluations, first=max(1, base.steps // 50)
    )
    planned: dict[str, PlannedRun] = {}
    for mixture in mixtures.values():
        for index in range(seeds):
            spec = replace(
                base,
                mixture=question.proxy_mixture(mixture),
                eval_steps=eval_steps,
                seed=fresh_seed(question.config.design.seed, VERIFY, index),
            )
            planned[spec.run_id] = PlannedRun(spec=spec, role=VERIFY)
    return tuple(planned.values())


def make_trainer(config: Config, corpus_path: Path, *, keep_weights: bool = False) -> ProxyTrainer:
    """Returns the trainer of the study's proxies.

    Args:
        config: The study's configuration.
        corpus_path: Folder of the corpus.
        keep_weights: Keep weights in the runs' folders: other runs start from them.
    """
    return ProxyTrainer(
        corpus_path=corpus_path.resolve(),
        device=config.proxies.device,
        keep_weights=keep_weights,
    )


def _fitting(question: Question) -> tuple[Mixture, ...]:
    """Returns the baselines that the design may hold: within its floor and the token supply."""
    region = CappedSimplex.of(question.names, floors=question.design_floor, caps=question.supply)
    distinct = {m.mixture_id: m for m in question.baselines.values()}
    return tuple(m for m in distinct.values() if region.contains(m.array(question.names)))


def _held_out(question: Question, design: Design) -> tuple[Mixture, ...]:
    """Returns mixtures drawn uniformly from the allowed ones, none of them in the design."""
    config = question.config.design
    if not config.holdout:
        return ()
    drawn = sample_mixtures(
        question.domains,
        n=config.holdout,
        scale=question.scale,
        method="dirichlet",
        strengths=(1.0, 1.0),
        floor=question.design_floor,
        avoid=design.mixtures,
        seed=config.seed + HOLDOUT_SEED_STEP,
    )
    return drawn.mixtures


def _check_text(question: Question, corpus: Corpus) -> None:
    for domain in question.domains:
        if domain.name not in corpus.training_names:
            known = ", ".join(corpus.training_names) or "none"
            raise StudyError(
                f"domain {domain.name!r} of mixlaw.toml has no text to train on",
                where=str(corpus.path),
                do=f"add it with `mixlaw domains add`, or remove it; the corpus has {known}",
            )
