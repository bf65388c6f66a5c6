"""From a study's question to the runs that answer it, and the trainer that trains them."""

import os
from collections.abc import Mapping
from pathlib import Path

from mixlaw.config import Config
from mixlaw.corpora import Corpus
from mixlaw.design import Design, sample_mixtures
from mixlaw.errors import StudyError
from mixlaw.mixtures import Mixture
from mixlaw.proxy import ProxyTrainer, proxy_recipe
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
from mixlaw.study.question import Question

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
        floor=config.design.floor,
        spread=config.design.spread,
        include=_fitting(question),
        seed=config.design.seed,
    )
    if corpus is None:
        return describe_plan((), design=design, domains=question.domains)
    _check_text(question, corpus)
    proxies = config.proxies
    recipe = proxy_recipe(corpus, precision=proxies.precision, device=proxies.device)
    steps = max(1, round(proxies.tokens / recipe.tokens_per_step))
    runs = plan_runs(
        design,
        params=proxies.params,
        steps=steps,
        eval_steps=log_spaced_steps(steps, proxies.evaluations),
        tokens_per_step=recipe.tokens_per_step,
        corpus=recipe.corpus,
        tokenizer=recipe.tokenizer,
        trainer=recipe.trainer,
        precision=recipe.precision,
        schedule=proxies.schedule,
        noise_runs=config.design.noise_runs,
        holdout=_held_out(question, design),
        seed=config.design.seed,
    )
    counted = {domain.name: domain for domain in corpus.as_domains()}
    return describe_plan(
        runs,
        design=design,
        domains=[counted[domain.name] for domain in question.domains],
        tokens_per_second=recipe.tokens_per_second(round(proxies.params)),
        slots=config.study.slots or count_processors(),
    )


def plan_verification(
    question: Question,
    corpus: Corpus,
    mixtures: Mapping[str, Mixture],
    *,
    like: Plan,
    seeds: int,
) -> tuple[PlannedRun, ...]:
    """Returns runs of the given mixtures with the same fresh seeds, evaluated often.

    Args:
        question: The study's question.
        corpus: What to train on.
        mixtures: The optimum and the baselines, by name.
        like: A plan whose runs these are like.
        seeds: How many seeds.
    """
    _check_text(question, corpus)
    base = like.runs[0].spec
    eval_steps = log_spaced_steps(
        base.steps, question.config.verify.evaluations, first=max(1, base.steps // 50)
    )
    planned: dict[str, PlannedRun] = {}
    for mixture in mixtures.values():
        for index in range(seeds):
            spec = RunSpec.from_json(
                {
                    **base.to_json(),
                    "mixture": dict(mixture),
                    "eval_steps": list(eval_steps),
                    "seed": fresh_seed(question.config.design.seed, VERIFY, index),
                }
            )
            planned[spec.run_id] = PlannedRun(spec=spec, role=VERIFY)
    return tuple(planned.values())


def make_trainer(config: Config, corpus_path: Path) -> ProxyTrainer:
    """Returns the trainer of the study's proxies."""
    proxies = config.proxies
    return ProxyTrainer(corpus_path=corpus_path.resolve(), device=proxies.device)


def count_processors() -> int:
    """Returns the processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def _fitting(question: Question) -> tuple[Mixture, ...]:
    """Returns the baselines that the design may hold: within its floor and the caps."""
    floor = question.config.design.floor
    distinct = {m.mixture_id: m for m in question.baselines.values()}
    return tuple(
        mixture for mixture in distinct.values() if min(mixture.proportions) >= floor - 1e-12
    )


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
        floor=config.floor,
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
