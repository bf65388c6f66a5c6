"""A shadow price put to the test: a cap that binds is moved, and both optima are trained.

The demo's design is trained and its law chosen and fitted as `mixlaw demo` does. A cap on code that
binds has a price: by how much the loss falls per unit of share by which the cap is raised. The cap
is raised until the predicted change of the optimum is four standard deviations between seeds, as
the design's repeated mixtures tell them. Then both optima are trained with the same fresh seeds,
and the measured change is compared with what the price promised at either end of the move and with
what solving again promised. What is trained stays in the folder.

    python benchmarks/decide_cap.py [--folder bench/decide/cap] [--slots 2] [--seed 0] [--json]
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import t as student

from mixlaw.cli.live import LiveProgress
from mixlaw.config import FILE_NAME
from mixlaw.corpora import fetch_demo_corpus
from mixlaw.fit import FitResult
from mixlaw.mixtures import Mixture
from mixlaw.optimize import WeightedLoss
from mixlaw.optimize.optimum import expected_difference_sd, round_shares
from mixlaw.optimize.region import Region
from mixlaw.optimize.solver import Minimum, minimize_objective
from mixlaw.study import Study
from mixlaw.study.demo import demo_config
from mixlaw.study.training import plan_verification

DOMAIN = "code"
SEEDS = 6
"""Fresh seeds of each optimum."""
SDS = 4.0
"""Predicted change, in standard deviations between seeds."""
LOW_CAPS = (0.6, 0.5, 0.4, 0.3, 0.2)
"""Shares of the free optimum's proportion at which the lower cap is tried: the first from which the
move still ends at a cap that binds."""
MOST = 0.95
"""Largest share of the free optimum's proportion at which the upper cap may lie."""
LEVEL = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """A cap and where it is moved to, with the optimum at either end."""

    caps: tuple[float, float]
    minima: tuple[Minimum, Minimum]
    prices: tuple[float, float]
    """Fall of the loss per unit of share at either end."""
    seed_sd: float
    goal: float
    """The predicted change that was asked for."""

    @property
    def change(self) -> float:
        """Predicted fall of the loss, the problem solved again."""
        return self.minima[0].value - self.minima[1].value

    @property
    def by(self) -> float:
        """How far the cap is moved."""
        return self.caps[1] - self.caps[0]


def run_part(
    folder: str | Path,
    slots: int = 2,
    seed: int = 0,
    *,
    seeds: int = SEEDS,
    tokens: float | None = None,
    sds: float = SDS,
) -> dict[str, Any]:
    """Trains what is missing, and returns the predicted and the measured change.

    Args:
        folder: Where the study is; that of a finished demo will do.
        slots: Runs at once.
        seed: Of the design and of the training.
        seeds: Fresh seeds of each optimum.
        tokens: Of each run, for a look; the demo's by default.
        sds: Size of the move in standard deviations.
    """
    study = _open(Path(folder), seed=seed, tokens=tokens)
    with LiveProgress() as live:
        fetch_demo_corpus(study.path / study.config.study.corpus, progress=live.stage)
        counts = study.run(slots=slots, retry=True, on_runs=live.runs)
        if counts.failed:
            raise SystemExit(f"{counts.failed} of {counts.total} runs failed: see `mixlaw status`")
        fit = study.fit(on_progress=live.stage)
        objective = study.question.objective(fit.targets)
        move = plan_move(fit, objective, _region(study, fit), sds=sds)
        mixtures = [_as_mixture(fit, minimum, cap, study) for minimum, cap in
                    zip(move.minima, move.caps, strict=True)]  # fmt: skip
        assert study.corpus is not None
        names: dict[str, Mixture] = {"low": mixtures[0], "high": mixtures[1]}
        planned = plan_verification(study.question, study.corpus, names, seeds=seeds)
        study.train_planned(planned, slots=slots, retry=True, on_runs=live.runs, stage="cap")
    measured_KS = measure(study, mixtures, objective, seeds=seeds)
    return summarize(fit, objective, move, mixtures, measured_KS)


def plan_move(fit: FitResult, objective: WeightedLoss, region: Region, *, sds: float) -> Move:
    """Returns the move of the cap that is predicted to change the loss by so many deviations."""
    function = objective.function(fit)
    free = minimize_objective(function, region).r_M[fit.domains.index(DOMAIN)]
    seed_sd = float(fit.seed_sd(objective.row(fit)[None])[0])
    goal = sds * seed_sd

    def solve(cap: float) -> Minimum:
        caps = [min(own, cap) if name == DOMAIN else own
                for name, own in zip(region.names, region.caps, strict=True)]  # fmt: skip
        return minimize_objective(function, replace(region, caps=tuple(caps)))

    for share in LOW_CAPS:
        low = share * float(free)
        start = solve(low)
        if start.value - solve(MOST * free).value < goal:
            continue

        def excess(cap: float, start: Minimum = start) -> float:
            return start.value - solve(cap).value - goal

        high = float(brentq(excess, low, MOST * float(free), xtol=1e-6))
        ends = (start, solve(high))
        return Move(
            caps=(low, high),
            minima=ends,
            prices=(_price(ends[0]), _price(ends[1])),
            seed_sd=seed_sd,
            goal=goal,
        )
    raise SystemExit(f"no cap on {DOMAIN} changes the predicted loss by {goal:.4f}")


def _price(minimum: Minimum) -> float:
    slopes = [price for name, price in minimum.prices.items()
              if name.kind == "cap" and name.subject == DOMAIN]  # fmt: skip
    return -slopes[0] if slopes else 0.0


def measure(
    study: Study, mixtures: Sequence[Mixture], objective: WeightedLoss, *, seeds: int
) -> np.ndarray:
    """Returns the measured objective of both optima at the last step, by seed."""
    import polars as pl

    runs, observations = study.tables()
    shares = objective.shares
    rows: list[list[float]] = []
    for mixture in mixtures:
        mine = runs.filter((pl.col("role") == "verify")
                           & (pl.col("mixture_id") == mixture.mixture_id)).sort("seed")  # fmt: skip
        values: list[float] = []
        for run_id in mine["run_id"].to_list()[:seeds]:
            own = observations.filter(pl.col("run_id") == run_id)
            last = own.filter(pl.col("step") == own["step"].max())
            loss = dict(zip(last["target"], last["value"], strict=True))
            values.append(sum(weight * loss[target] for target, weight in shares.items()))
        rows.append(values)
    return np.array(rows)


def summarize(
    fit: FitResult,
    objective: WeightedLoss,
    move: Move,
    mixtures: Sequence[Mixture],
    measured_KS: np.ndarray,
) -> dict[str, Any]:
    """Returns the figures: the price's promise at either end, the problem solved again, measured.

    The predicted change's interval is that of the error of a predicted difference between the
    expected losses of two mixtures; the measured one's is Student's t over paired seeds.
    """
    change_S = measured_KS[0] - measured_KS[1]
    count = len(change_S)
    mean = float(np.mean(change_S))
    own_sd = float(np.std(change_S, ddof=1))
    half = float(student.ppf((1 + LEVEL) / 2, count - 1)) * own_sd / math.sqrt(count)
    pair_2M = np.stack([mixture.array(fit.domains) for mixture in mixtures])
    value_2 = objective.function(fit).value(pair_2M)
    predicted = float(value_2[0] - value_2[1])
    quantile = float(student.ppf((1 + LEVEL) / 2, fit.num_mixtures - 1))
    error = quantile * expected_difference_sd(fit, objective.row(fit), pair_2M)
    promised = sorted(price * move.by for price in move.prices)
    return {
        "part": "cap",
        "domain": DOMAIN,
        "law": fit.law.name,
        "runs": int(fit.table.r_RM.shape[0]),
        "seeds": count,
        "caps": list(move.caps),
        "prices_nats_per_share": list(move.prices),
        "seed_sd": move.seed_sd,
        "sd_of_difference_of_means": math.sqrt(2 / count) * move.seed_sd,
        "goal": move.goal,
        "mixtures": [dict(mixture) for mixture in mixtures],
        "promised_by_price": promised,
        "predicted": predicted,
        "predicted_interval": [predicted - error, predicted + error],
        "measured": mean,
        "measured_interval": [mean - half, mean + half],
        "measured_by_seed": change_S.tolist(),
        "measured_paired_sd": own_sd,
        "has_right_sign": mean - half > 0,
        "is_inside_prediction": predicted - error <= mean <= predicted + error,
        "holds_prediction": mean - half <= predicted <= mean + half,
        "holds_price": mean - half <= promised[1] and promised[0] <= mean + half,
        "ratio": mean / predicted,
    }


def sentences(figures: dict[str, Any]) -> list[str]:
    """Returns the figures in words."""
    low, high = figures["caps"]
    least, most = figures["promised_by_price"]
    limits = figures["measured_interval"]
    return [
        f"a cap on {figures['domain']} is moved from {low:.3f} to {high:.3f}; its price is"
        f" {figures['prices_nats_per_share'][0]:.3f} nats per unit of share at the start and"
        f" {figures['prices_nats_per_share'][1]:.3f} at the end, so it promises {least:.4f} to"
        f" {most:.4f}; solved again: {figures['predicted']:.4f}"
        f" ({figures['predicted_interval'][0]:.4f} to {figures['predicted_interval'][1]:.4f})",
        f"seeds differ by {figures['seed_sd']:.4f}; the standard deviation of a difference of two"
        f" means of {figures['seeds']} is {figures['sd_of_difference_of_means']:.4f}",
        f"measured: {figures['measured']:.4f} ({limits[0]:.4f} to {limits[1]:.4f},"
        f" {figures['seeds']} paired seeds), {figures['ratio']:.2f} of what was predicted;"
        f" prediction {'inside' if figures['holds_prediction'] else 'OUTSIDE'} the measured"
        f" interval, measurement {'inside' if figures['is_inside_prediction'] else 'OUTSIDE'} the"
        " predicted one",
    ]


def _open(folder: Path, *, seed: int, tokens: float | None) -> Study:
    if (folder / FILE_NAME).exists():
        return Study.open(folder)
    config = demo_config(seed=seed)
    if tokens is not None:
        config = replace(config, proxies=replace(config.proxies, tokens=tokens))
    return Study.create(folder, config)


def _region(study: Study, fit: FitResult) -> Region:
    """Returns what the study allows; the cap that is tested comes on top."""
    return Region.of(study.question.allowed).reordered(fit.domains)


def _as_mixture(fit: FitResult, minimum: Minimum, cap: float, study: Study) -> Mixture:
    """Returns an optimum to four digits, the capped share at its cap."""
    region = _region(study, fit)
    caps = [min(own, cap) if name == DOMAIN else own
            for name, own in zip(region.names, region.caps, strict=True)]  # fmt: skip
    shares_M = round_shares(minimum.r_M, replace(region, caps=tuple(caps)))
    return Mixture.from_array(fit.domains, shares_M)


def main() -> int:
    """Runs the part, prints its figures, and returns the exit code."""
    parser = argparse.ArgumentParser(description="Puts a shadow price to the test.")
    parser.add_argument("--folder", type=Path, default=Path("bench/decide/cap"))
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--tokens", type=float, default=None, help="of each run, for a look")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    given = parser.parse_args()
    figures = run_part(given.folder, given.slots, given.seed, seeds=given.seeds,
                       tokens=given.tokens)  # fmt: skip
    print(*sentences(figures), sep="\n", file=sys.stderr)
    if given.json:
        json.dump(figures, sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
