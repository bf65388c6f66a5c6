"""Report data from simulated studies: real fits, optima and verifications of made-up losses."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import polars as pl

from mixlaw.domains import Domain, Scale, token_caps
from mixlaw.fit import FitResult, fit_law
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.observations import check_observations, check_runs
from mixlaw.optimize import WeightedLoss, baseline_mixtures, optimize_mixture
from mixlaw.predict import predict_losses, predict_weighted
from mixlaw.report import Attribution, ReportData
from mixlaw.selection import score_holdout
from mixlaw.verify import OPTIMUM, compare_runs

DOMAINS = ("encyclopedia", "code", "legal", "speeches", "apidocs")
TARGETS = ("encyclopedia", "code", "recipes")
STEPS = 500
TOKENS_PER_STEP = 2048
FLOOR = 0.04


class Losses:
    """Planted losses: each target is helped most by its own domain; every seed has its own luck."""

    def __init__(self, domains: Sequence[str], targets: Sequence[str], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.targets = tuple(targets)
        self.c_T = rng.uniform(1.3, 2.0, len(targets))
        self.t_TM = rng.normal(0.1, 0.35, (len(targets), len(domains)))
        for i in range(min(len(domains), len(targets))):
            self.t_TM[i, i] -= 1.6
        for i in range(len(domains), len(targets)):
            self.t_TM[i, rng.choice(len(domains), 2, replace=False)] -= 1.2
        self.rng = rng
        self.offsets: dict[int, np.ndarray] = {}

    def curve(self, r_M: np.ndarray, steps: Sequence[int], seed: int) -> np.ndarray:
        """Returns losses at steps, of shape (steps, targets)."""
        if seed not in self.offsets:
            self.offsets[seed] = self.rng.normal(0.0, 0.006, len(self.targets))
        last_T = self.c_T + np.exp(self.t_TM @ r_M)
        rate_S = (STEPS / np.asarray(steps, dtype=float)) ** 0.45
        own_T = self.rng.normal(0.0, 0.005, len(self.targets))
        return 0.4 * last_T + 0.6 * last_T * rate_S[:, None] + self.offsets[seed] + own_T


def make_rows(
    losses: Losses,
    mixtures: Sequence[tuple[Mixture, int, str]],
    steps: Sequence[int],
    penalty: Mapping[str, float],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Returns runs and observations; `penalty` raises all losses of a mixture by its id."""
    runs: list[dict[str, object]] = []
    rows: list[dict[str, object]] = []
    for mixture, seed, role in mixtures:
        run_id = f"{role}-{mixture.mixture_id}-{seed}"
        runs.append(
            {
                "run_id": run_id,
                "mixture_id": mixture.mixture_id,
                "role": role,
                "params_non_embedding": 49_152.0,
                "seed": seed,
                "trainer": "proxy/1",
                "tokenizer": "bytes",
                "schedule": "constant",
                "corpus": "0123456789abcdef",
                "status": "done",
                "origin": "trained",
                **{f"r:{name}": share for name, share in mixture.items()},
            }
        )
        values = losses.curve(mixture.array(), steps, seed) + penalty.get(mixture.mixture_id, 0.0)
        rows += [
            {
                "run_id": run_id,
                "step": step,
                "tokens": float(step * TOKENS_PER_STEP),
                "target": target,
                "value": float(value),
                "unit": "nats_per_token",
            }
            for step, row in zip(steps, values, strict=True)
            for target, value in zip(losses.targets, row, strict=True)
        ]
    return check_runs(pl.DataFrame(runs)), check_observations(pl.DataFrame(rows))


def forget_details(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns runs as an import makes them of a table with mixtures and losses alone."""
    unknown = ("params_non_embedding", "seed", "trainer", "tokenizer", "schedule", "corpus")
    return check_runs(
        runs.with_columns(
            *(pl.lit(None).alias(name) for name in unknown),
            role=pl.lit("imported"),
            origin=pl.lit("runs.csv"),
        )
    )


@dataclass(frozen=True, kw_only=True)
class FittedStudy:
    """A study up to its fit, from which several reports can go on."""

    losses: Losses
    domains: tuple[Domain, ...]
    floor: float
    runs: pl.DataFrame
    observations: pl.DataFrame
    fit: FitResult


@cache
def fit_study(
    *,
    domains: tuple[str, ...],
    targets: tuple[str, ...],
    num_mixtures: int,
    num_draws: int,
    holdout: int,
    noise: bool,
    steps: tuple[int, ...],
    imported: bool,
    seed: int,
) -> FittedStudy:
    """Returns runs of drawn mixtures and the law fitted to them."""
    rng = np.random.default_rng(seed)
    losses = Losses(domains, targets, seed)
    count, floor = len(domains), min(FLOOR, 0.2 / len(domains))
    supply = 3e6 * np.array([2.0 ** -(i % 5) for i in range(count)])
    listed = tuple(
        Domain(name=name)
        if imported
        else Domain(name=name, available_tokens=float(tokens), max_epochs=1 + 3 * (i % 2))
        for i, (name, tokens) in enumerate(zip(domains, supply, strict=True))
    )
    drawn = floor + (1 - floor * count) * rng.dirichlet(np.ones(count), num_mixtures + holdout)
    design = [Mixture.from_array(domains, row) for row in drawn]
    plan = [(mixture, 0, "design") for mixture in design[:num_mixtures]]
    plan += [(mixture, 900 + i, "holdout") for i, mixture in enumerate(design[num_mixtures:])]
    if noise:
        plan += [(design[i], 100 + 10 * i + k, "noise") for i in (0, 1) for k in range(3)]
    runs, observations = make_rows(losses, plan, steps, {})
    runs = forget_details(runs) if imported else runs
    return FittedStudy(
        losses=losses,
        domains=listed,
        floor=floor,
        runs=runs,
        observations=observations,
        fit=fit_law("m4", runs, observations, num_draws=num_draws),
    )


@cache
def simulate_report(
    *,
    domains: tuple[str, ...] = DOMAINS,
    targets: tuple[str, ...] = TARGETS,
    num_mixtures: int = 18,
    num_draws: int = 10,
    num_seeds: int = 3,
    holdout: int = 8,
    noise: bool = True,
    reference: bool = False,
    optimum_penalty: float = 0.0,
    steps: tuple[int, ...] = (125, 250, 500),
    imported: bool = False,
    seed: int = 3,
) -> ReportData:
    """Returns the data of a study's report.

    Args:
        domains: Training domains.
        targets: Targets; the first ones belong to the domains.
        num_mixtures: Mixtures that are fitted.
        num_draws: Bootstrap draws of the fit.
        num_seeds: Seeds of the verification; 0: none is done.
        holdout: Mixtures that are held out.
        noise: Whether two mixtures are run again with fresh seeds.
        reference: Whether the team has a mixture of its own.
        optimum_penalty: What is added to all losses of the optimum when it is trained.
        steps: Evaluated steps of the proxies.
        imported: Whether the fitted runs were imported, so that little else is known of them.
        seed: Of everything that is drawn.
    """
    study = fit_study(
        domains=domains,
        targets=targets,
        num_mixtures=num_mixtures,
        num_draws=num_draws,
        holdout=holdout,
        noise=noise,
        steps=steps,
        imported=imported,
        seed=seed,
    )
    fit, runs, observations = study.fit, study.runs, study.observations
    scale = Scale(tokens=float(STEPS * TOKENS_PER_STEP), params=49_152.0)
    caps = token_caps(study.domains, scale)
    allowed = CappedSimplex.of(domains, floors=study.floor, caps=caps)
    heaviest = (targets[-1], *targets[:2])
    objective = WeightedLoss(dict(zip(heaviest, (0.5, 0.3, 0.2), strict=False)))
    own = Mixture.normalized({name: 2.0 ** (1.5 * -(i % 5)) for i, name in enumerate(domains)})
    baselines = baseline_mixtures(study.domains, allowed, reference=own if reference else None)
    optimum = optimize_mixture(fit, objective, allowed, baselines=baselines)
    verification = None
    if num_seeds:
        tested = {OPTIMUM: optimum.mixture, **baselines}
        dense = tuple(sorted({round(4 * (STEPS / 4) ** (i / 22)) for i in range(23)}))
        plan = [(m, 1000 + s, "verify") for m in tested.values() for s in range(num_seeds)]
        penalty = {optimum.mixture.mixture_id: optimum_penalty}
        more_runs, more_rows = make_rows(deepcopy(study.losses), plan, dense, penalty)
        runs, observations = pl.concat([runs, more_runs]), pl.concat([observations, more_rows])
        verification = compare_runs(
            runs,
            observations,
            mixtures=tested,
            objective=objective,
            predicted=predict_weighted(fit, list(tested.values()), objective.shares),
            predicted_targets=predict_losses(fit, list(tested.values())),
        )
    return ReportData(
        study="spring",
        version="0.1.0",
        created="2026-03-02T09:30:00+00:00",
        domains=study.domains,
        scale=scale,
        proxy_params=None if imported else 49_152.0,
        proxy_tokens=None if imported else scale.tokens,
        is_extrapolated=False,
        runs=runs,
        observations=observations,
        fit=fit,
        optimum=optimum,
        holdout=score_holdout(fit, runs, observations, objective.shares),
        verification=verification,
        bytes_per_token={} if imported else dict.fromkeys(targets, 1.0),
        attributions=() if imported else tuple(attribute(name) for name in domains),
        seconds={"corpus": 8.2, "runs": 96.4, "fit": 2.3, "optimize": 1.1, "verify": 41.0},
        made_from="deadbeefdeadbeef",
    )


def attribute(domain: str) -> Attribution:
    """Returns where a made-up domain comes from."""
    source = f"Collected works on {domain}, by many authors"
    return Attribution(domain=domain, source=source, licence="CC BY-SA 4.0")


def repeat_targets(data: ReportData, count: int) -> ReportData:
    """Returns an untested study with `count` targets `t0`, `t1`, ...: those of `data` in turn."""
    fit, known = data.fit, data.fit.targets
    pick = np.arange(count) % len(known)
    names = tuple(f"t{i}" for i in range(count))
    source = dict(zip(names, (known[i] for i in pick), strict=True))
    table = replace(
        fit.table,
        targets=names,
        y_RT=fit.table.y_RT[:, pick],
        standard_error_RT=fit.table.standard_error_RT[:, pick],
    )
    rows = [
        data.observations.filter(pl.col("target") == old).with_columns(target=pl.lit(name))
        for name, old in source.items()
    ]
    losses = data.optimum.target_losses
    return replace(
        data,
        observations=pl.concat(rows),
        fit=replace(
            fit,
            table=table,
            theta_TP=fit.theta_TP[pick],
            theta_loo_RTP=fit.theta_loo_RTP[:, pick],
            theta_draws_BTP=fit.theta_draws_BTP[:, pick],
            scale_T=fit.scale_T[pick],
            replicate_NT=fit.replicate_NT[:, pick],
            level_shift_T=fit.level_shift_T[pick],
            status=tuple(
                replace(fit.status[i], target=name) for name, i in zip(names, pick, strict=True)
            ),
        ),
        optimum=replace(
            data.optimum,
            objective=WeightedLoss(dict.fromkeys(names[:9], 1.0)),
            weights=dict.fromkeys(names[:9], 1 / 9),
            target_losses={name: losses[old] for name, old in source.items()},
        ),
        holdout=None,
        verification=None,
    )


def extrapolated(data: ReportData) -> ReportData:
    """Returns the same study, asked about a run that is much larger, with as much more text."""
    more = 1e12 / data.scale.tokens
    domains = tuple(
        replace(domain, available_tokens=more * (domain.available_tokens or 1.0))
        for domain in data.domains
    )
    scale = Scale(tokens=1e12, params=7e9)
    return replace(data, domains=domains, scale=scale, is_extrapolated=True)
