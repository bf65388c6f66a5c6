# ruff: noqa: E402 - threads are pinned before NumPy is imported
"""How often the interval of the critical proportion holds the truth, on simulated studies.

    python benchmarks/coverage_continual.py [--json] [--studies N] [--workers N]

A study has 4 to 8 shares of original data with 1 to 3 seeds each, every run with noise of its own:
0.3% to 6% of the range of the losses. In half of the studies the old loss follows M4, the law that
is fitted; in the others a shifted power (D-CPT, arXiv:2406.01375), the reciprocal of a sum of
powers, a sum of exponentials or a shifted logarithm, which M4 can't follow. The original loss is
that of a share between the smallest and the largest that were run.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np

from mixlaw.laws.mixing import ExponentialLaw
from mixlaw.mixtures import Mixture
from mixlaw.observations import LossTable
from mixlaw.optimize.continual import find_critical
from mixlaw.optimize.continual_path import SharePath, fit_path

FITTED = "exponential"
OTHERS = ("shifted power", "reciprocal", "sum of exponentials", "logarithm")
Curve = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class ContinualStudy:
    """A simulated study of continual pre-training."""

    form: str
    """Form of the true loss along the share of original data."""
    table: LossTable
    """Losses of the runs, of the domains `old` and `new`."""
    original_loss: float
    share: float
    """The true critical proportion."""
    seeds: int
    """Runs of each share."""


@dataclass(frozen=True, kw_only=True)
class ContinualRecord:
    """What the interval said, and what was true."""

    form: str
    seeds: int
    shares: int
    true: float
    estimate: float | None
    low: float | None
    high: float | None
    """None: open, or nothing is known."""
    source: str
    """What the noise is known from."""

    @property
    def holds(self) -> bool:
        """Whether the interval holds the truth."""
        high = 1.0 if self.high is None else self.high
        return self.low is not None and self.low <= self.true <= high


def simulate_continual(seed: int) -> ContinualStudy:
    """Returns a study; even seeds follow the fitted law, odd ones do not."""
    rng = np.random.default_rng([20, seed])
    form = FITTED if seed % 2 == 0 else OTHERS[seed // 2 % len(OTHERS)]
    curve = _draw_curve(form, rng)
    count, seeds = int(rng.integers(4, 9)), int(rng.integers(1, 4))
    low, high = rng.uniform(0.05, 0.15), rng.uniform(0.45, 0.75)
    space = np.geomspace if rng.random() < 0.5 else np.linspace
    shares = np.repeat(space(low, high, count), seeds)
    true = float(rng.uniform(low + 0.1 * (high - low), high - 0.2 * (high - low)))
    size = float(np.ptp(curve(np.array([low, high])))) * np.exp(rng.uniform(*np.log([0.003, 0.06])))
    r_RM = np.column_stack([shares, 1 - shares])
    losses = curve(shares) + size * rng.standard_normal(len(shares))
    table = LossTable(
        run_ids=tuple(f"run{i}" for i in range(len(shares))),
        mixture_ids=tuple(Mixture.from_array(("old", "new"), r_M).mixture_id for r_M in r_RM),
        seeds=tuple(range(len(shares))),
        domains=("old", "new"),
        targets=("old",),
        r_RM=r_RM,
        y_RT=losses[:, None],
        standard_error_RT=np.full((len(shares), 1), np.nan),
        step=1,
        tokens=None,
        unit="nats_per_token",
    )
    return ContinualStudy(
        form=form,
        table=table,
        original_loss=float(curve(np.array([true]))[0]),
        share=true,
        seeds=seeds,
    )


def judge_study(study: ContinualStudy, *, level: float = 0.9) -> ContinualRecord:
    """Returns what the product says of a study, beside the truth."""
    path = SharePath.of(study.table, original=("old",))
    line = fit_path(ExponentialLaw(), study.table, np.ones(1), path=path)
    found = find_critical(line, study.original_loss, level=level)
    return ContinualRecord(
        form=study.form,
        seeds=study.seeds,
        shares=len(line.run_shares),
        true=study.share,
        estimate=found.share,
        low=found.low,
        high=found.high,
        source="unknown" if found.noise is None else found.noise.source,
    )


def judge_seed(seed: int) -> ContinualRecord:
    """Returns what the product says of the study of a seed."""
    return judge_study(simulate_continual(seed))


def summarize(records: list[ContinualRecord]) -> dict[str, Any]:
    """Returns coverage with its standard error, widths, and how far estimates are off."""
    holds = np.array([record.holds for record in records])
    bounded = [r for r in records if r.high is not None and r.low is not None]
    widths = [(r.high or 0.0) - (r.low or 0.0) for r in bounded]
    errors = [abs(r.estimate - r.true) for r in records if r.estimate is not None]
    coverage = float(np.mean(holds))
    return {
        "studies": len(records),
        "coverage": coverage,
        "coverage_se": float(np.sqrt(coverage * (1 - coverage) / len(records))),
        "open": 1 - len(bounded) / len(records),
        "width_median": float(np.median(widths)),
        "width_mean": float(np.mean(widths)),
        "error_mean": float(np.mean(errors)),
        "below": float(np.mean([r.true < (r.low or 0.0) for r in records])),
        "above": float(np.mean([r.high is not None and r.true > r.high for r in records])),
    }


def summarize_all(records: list[ContinualRecord]) -> dict[str, Any]:
    """Returns the summaries of all studies, of both halves, and by form and seeds."""
    parts = {
        "all": records,
        "fitted form": [r for r in records if r.form == FITTED],
        "another form": [r for r in records if r.form != FITTED],
        **{form: [r for r in records if r.form == form] for form in OTHERS},
        **{f"{seeds} seeds": [r for r in records if r.seeds == seeds] for seeds in (1, 2, 3)},
        "4 shares, 1 seed": [r for r in records if r.shares == 4 and r.seeds == 1],
    }
    return {name: summarize(part) for name, part in parts.items() if part}


def _draw_curve(form: str, rng: np.random.Generator) -> Curve:
    """Returns a loss that falls with the share of original data."""
    if form == FITTED:
        factor, rate = rng.uniform(0.05, 0.3), rng.uniform(1, 6)
        return lambda s: 2 + factor * np.exp(-rate * s)
    if form == "shifted power":
        shift, power, factor = rng.uniform([0.03, 0.3, 0.02], [0.2, 1.2, 0.1])
        return lambda s: 2 + factor / (s + shift) ** power
    if form == "reciprocal":
        power, new, old = rng.uniform([0.2, 0.1, 0.5], [0.7, 0.4, 2.0])
        return lambda s: 2 + 0.1 / (new * (1 - s) ** power + old * s**power + 0.1)
    if form == "sum of exponentials":
        weights, rates = rng.dirichlet(np.ones(3)), rng.uniform(0.5, 14, 3)
        factor = rng.uniform(0.1, 0.3)
        return lambda s: 2 + factor * np.exp(-np.multiply.outer(s, rates)) @ weights
    shift, factor = rng.uniform([0.005, 0.01], [0.05, 0.05])
    return lambda s: 2 - factor * np.log(s + shift)


def main() -> None:
    """Judges the studies and prints what they show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=600)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    started = time.perf_counter()
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        records = list(pool.map(judge_seed, range(options.studies), chunksize=10))
    parts = summarize_all(records)
    seconds = round(time.perf_counter() - started, 1)
    if options.json:
        print(json.dumps({**parts, "level": 0.9, "wall_seconds": seconds}, indent=1))
        return
    for name, part in parts.items():
        print(
            f"{name:20} {part['studies']:4} studies: holds {part['coverage']:.1%}"
            f" (se {part['coverage_se']:.1%}), width {part['width_median']:.3f} median"
            f" {part['width_mean']:.3f} mean, open {part['open']:.1%}, estimates off by"
            f" {part['error_mean']:.4f}; truth below {part['below']:.1%}, above {part['above']:.1%}"
        )
    print(f"{seconds} s")


if __name__ == "__main__":
    main()
