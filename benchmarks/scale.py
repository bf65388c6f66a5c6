"""What the optimum at a larger scale and the steps saved are worth, on runs that were left out.

    python benchmarks/scale.py DIR

DIR is `mixinglaws` of the published runs of Ye et al. (arXiv 2403.16952), or a folder that holds
it. First: the law at 410M parameters from the runs of 70M to 305M against that of the real 410M
runs: regret of its optimum, coverage of differences between mixtures. Then: mixtures left out in
five folds, and for each pair of them the step at which the better one reaches the other's last
loss, predicted and measured. All targets weigh the same; `reciprocal` and `m4` are fitted.

Shape letters: G mixtures, M training domains, T targets, B draws.
"""

import math
import sys
from itertools import combinations
from pathlib import Path

# Pins threads: before NumPy.
import records  # noqa: F401  # pyright: ignore[reportUnusedImport]  # isort: skip

import numpy as np
import polars as pl
from scipy.stats import t as t_distribution

from mixlaw.fit import FitResult, fit_law
from mixlaw.importers.published import read_mixinglaws
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.observations import proportion_domains, run_mixture
from mixlaw.optimize.at_scale import ScalePoint, fit_at_scale
from mixlaw.optimize.objective import ObjectiveFunction
from mixlaw.optimize.savings import predict_savings
from mixlaw.optimize.solver import minimize_objective
from mixlaw.optimize.step_curves import predict_step_curves, read_step_losses
from mixlaw.predict import difference_sd
from mixlaw.verify import first_step_below

SIZES = {"70M": 18_915_328.0, "160M": 85_056_000.0, "410M": 302_311_424.0}
FIRST_STEP, LAST_STEP = 10_000, 30_000
LAWS = ("reciprocal", "m4")
NUM_FOLDS = 5
Tables = tuple[pl.DataFrame, pl.DataFrame]


def main() -> None:
    """Prints both parts for 5Mix and RedPajama."""
    folder = Path(sys.argv[1])
    folder = folder if (folder / "5Mix").is_dir() else folder / "mixinglaws"
    for set_name in ("5Mix", "RedPajama"):
        tables = read_tables(folder / set_name)
        for law in LAWS:
            print(f"{set_name}, {law}: {judge_scale(law, tables)}", flush=True)
        for size in ("70M", "160M"):
            print(f"{set_name}, {size}: {judge_savings(tables, SIZES[size])}", flush=True)


def read_tables(folder: Path) -> Tables:
    """Returns runs and their losses at the paper's steps."""
    published = read_mixinglaws(folder)
    steps = pl.col("step").is_between(FIRST_STEP, LAST_STEP)
    return published.runs, published.observations.filter(steps)


def judge_scale(law: str, tables: Tables) -> str:
    """Returns how the law that was carried to 410M compares with the one fitted there."""
    runs, observations = tables
    small = runs.filter(pl.col("params_non_embedding") < SIZES["410M"])
    rows = observations.join(small.select("run_id"), on="run_id", how="semi")
    base = fit_law(law, small, rows)
    point = ScalePoint(params=SIZES["410M"], step=LAST_STEP, is_beyond=True)
    there = fit_at_scale(base, small, rows, point).fit
    real = fit_law(law, runs, observations, params=SIZES["410M"], step=LAST_STEP, num_draws=2)
    r_GM = there.table.r_RM
    allowed = CappedSimplex(
        there.domains, tuple(r_GM.min(axis=0).tolist()), tuple(r_GM.max(axis=0).tolist())
    )

    def loss(r_M: np.ndarray) -> float:
        return float(real.losses(r_M[None]).mean())

    best_M, own_M, old_M = (optimum(fit, allowed) for fit in (real, there, base))
    uniform_M = allowed.nearest(np.full(len(best_M), 1 / len(best_M)))
    covered, width = cover_differences(there, real)
    regrets = ", ".join(f"{loss(r_M) - loss(best_M):.5f}" for r_M in (own_M, old_M, uniform_M))
    return (
        f"regret at 410M of the optimum carried there, of that of 305M, of uniform: {regrets};"
        f" measured differences covered {covered:.0%}, width {width:.3f}"
    )


def optimum(fit: FitResult, allowed: CappedSimplex) -> np.ndarray:
    """Returns the mixture with the least mean loss."""
    weight_T = np.full(len(fit.targets), 1 / len(fit.targets))
    return minimize_objective(ObjectiveFunction.of(fit.law, fit.theta_TP, weight_T), allowed).r_M


def cover_differences(there: FitResult, real: FitResult) -> tuple[float, float]:
    """Returns how often 90% intervals of differences hold the measured ones, and their width."""
    row = {name: g for g, name in enumerate(there.table.mixture_ids)}
    shared = [i for i, name in enumerate(real.table.mixture_ids) if name in row]
    y_G = real.table.y_RT[shared].mean(axis=1)
    r_GM = there.table.r_RM[[row[real.table.mixture_ids[i]] for i in shared]]
    drawn_BG = there.draw_losses(r_GM).mean(axis=2)
    sd = difference_sd(there, {target: 1 / len(there.targets) for target in there.targets})
    noise_B = np.random.default_rng(0).standard_t(len(r_GM) - 1, 5 * len(drawn_BG)) * sd
    inside: list[bool] = []
    widths: list[float] = []
    for a, b in combinations(range(len(shared)), 2):
        apart_B = np.repeat(drawn_BG[:, a] - drawn_BG[:, b], 5) + noise_B
        low, high = np.quantile(apart_B, [0.05, 0.95])
        inside.append(bool(low <= y_G[a] - y_G[b] <= high))
        widths.append(float(high - low))
    return float(np.mean(inside)), float(np.mean(widths))


def judge_savings(tables: Tables, params: float) -> str:
    """Returns how predicted steps compare with measured ones, over pairs of left-out mixtures."""
    runs = tables[0].filter(pl.col("params_non_embedding") == params)
    rows = tables[1].join(runs.select("run_id"), on="run_id", how="semi")
    weights = dict.fromkeys(sorted(rows["target"].unique().to_list()), 1.0)
    weights = {target: 1 / len(weights) for target in weights}
    ids = sorted(runs["mixture_id"].unique().to_list())
    order = np.random.default_rng(0).permutation(len(ids))
    found: list[tuple[float | None, float, bool]] = []
    for fold in range(NUM_FOLDS):
        out = {ids[i] for i in order[fold::NUM_FOLDS]}
        found += judge_fold(runs, rows, out, weights)
    both = [(match, step) for match, step, _ in found if match is not None and math.isfinite(step)]
    error = np.mean([abs(match - step) for match, step in both])
    spread = np.std([step for _, step in both])
    inside = np.mean([inside for match, _, inside in found if match is not None])
    return (
        f"{len(found)} pairs, {len(both)} with a predicted and a measured step: mean error"
        f" {error:.0f} steps of {LAST_STEP} (they spread by {spread:.0f}); 90% intervals hold"
        f" {inside:.0%}"
    )


def judge_fold(
    runs: pl.DataFrame, rows: pl.DataFrame, out: set[str], weights: dict[str, float]
) -> list[tuple[float | None, float, bool]]:
    """Returns predicted step, measured step and whether the interval holds it, of each pair."""
    kept = runs.filter(~pl.col("mixture_id").is_in(list(out)))
    fit = fit_law("reciprocal", kept, rows, targets=list(weights), num_draws=2)
    first = runs.filter(pl.col("mixture_id").is_in(list(out))).unique("mixture_id", keep="first")
    mixtures: dict[str, Mixture] = {
        name: run_mixture(runs, run_id).reordered(proportion_domains(runs))
        for name, run_id in first.sort("mixture_id").select("mixture_id", "run_id").iter_rows()
    }
    curves = predict_step_curves(fit, read_step_losses(fit, kept, rows), mixtures, weights)
    found: list[tuple[float | None, float, bool]] = []
    for a, b in combinations(mixtures, 2):
        best, other = (a, b) if curves[a].loss_S[-1] <= curves[b].loss_S[-1] else (b, a)
        gain = float(curves[other].loss_S[-1] - curves[best].loss_S[-1])
        sd = difference_sd(fit, weights, between=(mixtures[best], mixtures[other]))
        half = sd * float(t_distribution.ppf(0.95, fit.num_mixtures - 1))
        saved = predict_savings((gain, gain - half, gain + half), curves[best], baseline=other)
        mine, theirs = (measured_curve(runs, rows, name, fit.table.step) for name in (best, other))
        if not theirs or theirs[-1][0] != fit.table.step:
            continue
        step = first_step_below([s for s, _ in mine], [v for _, v in mine], theirs[-1][1])
        at = math.inf if step is None else step
        late = math.inf if saved.low is None else saved.steps - saved.low
        early = -math.inf if saved.high is None else saved.steps - saved.high
        found.append((saved.steps_to_match, at, early <= at <= late))
    return found


def measured_curve(
    runs: pl.DataFrame, rows: pl.DataFrame, mixture_id: str, last: int | None
) -> list[tuple[int, float]]:
    """Returns the mean loss of a mixture's run by step."""
    mine = runs.filter(pl.col("mixture_id") == mixture_id).head(1)
    curve = rows.join(mine.select("run_id"), on="run_id", how="semi").group_by("step").agg(
        pl.col("value").mean(), pl.len()
    )  # fmt: skip
    whole = curve.filter(pl.col("len") == pl.col("len").max(), pl.col("step") <= last).sort("step")
    return list(whole.select("step", "value").iter_rows())


if __name__ == "__main__":
    main()
