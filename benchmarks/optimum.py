"""The optimum: how exact and how fast, beside CVXPY, the paper's grid and RegMix's random draws.

    python benchmarks/optimum.py --fit DIR [--json] [--repeats N] [--without-cvxpy]

Random convex problems: weighted sums of losses over floors and caps. `seconds` are wall seconds of
one search from the middle, the median of the repeats, with the set-up of the region; the unit cpu_s
are CPU seconds of the same. `gap` is the proof that comes with the answer, `violation` by how much
the worst constraint is broken, `difference` the objective less CVXPY's, which has a formulation of
its own (exponential and power cones).

Published runs: one law is fitted, and its optimum sought in three ways. The paper scores all points
of its double-diminishing grid; RegMix scores 100,000 draws from a Dirichlet distribution and takes
the mean of the best 128. `difference` is their objective less ours; `ratio` their CPU seconds over
ours: those of scoring with our own vectorized law, and of listing the grid's points.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from records import Records, benchmark_arguments, dataset_folder  # isort: skip - pins threads

import numpy as np
from scipy import sparse

from mixlaw.design.lattice import DyadicGrid
from mixlaw.fit.law import fit_table
from mixlaw.fit.result import FitResult
from mixlaw.importers.published import read_regmix
from mixlaw.mixtures import CappedSimplex
from mixlaw.observations import loss_table
from mixlaw.optimize.objective import LossSum, ObjectiveFunction, WeightedLoss
from mixlaw.optimize.objectives_risk import MeanAndSpread, TailMean
from mixlaw.optimize.region import Region
from mixlaw.optimize.solver import Minimum, minimize_objective
from paper_mixing import SIZES, Study
from random_problems import random_bounds, random_losses

SIZES_OF_PROBLEMS = ((20, 20), (100, 20), (1000, 50))
"""Domains and targets."""
LAWS = ("m4", "reciprocal")
DRAWS = 200
STEP = 30_000
CHUNK = 8192
"""Mixtures that are scored at a time, as in the paper's code."""
REGMIX_DRAWS, REGMIX_TOP = 100_000, 128
FINE_DELTA = 1 / 128
LATTICE = 64
MOST_CVXPY = 5000
"""Power cones with which CVXPY is still asked."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """An answer, and what it took."""

    answer: Any
    seconds: float
    cpu_seconds: float


def main() -> None:
    """Solves, compares and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="searches per timing")
    parser.add_argument("--without-cvxpy", action="store_true", help="leave the other solver out")
    options = benchmark_arguments(__doc__, parser=parser)
    records = Records("optimum")
    for law in LAWS:
        for domains, targets in SIZES_OF_PROBLEMS:
            add_random(records, law, domains, targets, options)
        add_draws(records, law)
        add_risk(records, law, options.repeats)
    add_five_domains(records, dataset_folder(options.fit, "mixinglaws"), options.repeats)
    add_regmix(records, dataset_folder(options.fit, "regmix"), options.repeats)
    records.finish(options.json)


def timed(function: Callable[[], Any], repeats: int = 1) -> Timed:
    """Returns the last answer and the medians of what it took."""
    wall: list[float] = []
    cpu: list[float] = []
    answer: Any = None
    for _ in range(repeats):
        began, worked = time.perf_counter(), time.process_time()
        answer = function()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - worked)
    return Timed(answer=answer, seconds=statistics.median(wall), cpu_seconds=statistics.median(cpu))


def add_time(records: Records, case: str, law: str, took: Timed, *, per: int = 1) -> None:
    """Adds the seconds of something, divided by how often it was done."""
    shared: dict[str, Any] = {"case": case, "law": law, "metric": "seconds"}
    records.add(value=took.seconds / per, unit="s", **shared)
    records.add(value=took.cpu_seconds / per, unit="cpu_s", **shared)


def add_minimum(
    records: Records, case: str, law: str, minimum: Minimum, allowed: CappedSimplex
) -> None:
    """Adds what an answer proves, and how well it keeps to the constraints."""
    if minimum.is_certified:
        records.add(case=case, law=law, metric="gap", value=minimum.gap)
    broken = max(
        float(np.max(allowed.floor_M - minimum.r_M)),
        float(np.max(minimum.r_M - allowed.cap_M)),
        abs(float(np.sum(minimum.r_M)) - 1),
    )
    records.add(case=case, law=law, metric="violation", value=max(broken, 0.0), unit="share")


# Random problems.


def add_random(
    records: Records, law: str, domains: int, targets: int, options: argparse.Namespace
) -> None:
    """Adds one size of random problem, with CVXPY's answer where it has one in time."""
    case = f"optimum/random/{domains}x{targets}"
    losses, allowed = random_losses(law, domains, targets), random_bounds(domains)
    minimize_objective(losses, allowed)  # what is imported and cached once is not timed
    took = timed(lambda: minimize_objective(losses, allowed), options.repeats)
    add_time(records, case, law, took)
    add_minimum(records, case, law, took.answer, allowed)
    cones = domains * targets if law == "reciprocal" else targets
    if options.without_cvxpy or cones > MOST_CVXPY:
        return
    other = timed(lambda: solve_with_cvxpy(law, losses, allowed))
    add_time(records, f"{case}/cvxpy", law, other)
    difference = took.answer.value - other.answer
    records.add(case=f"{case}/cvxpy", law=law, metric="difference", value=difference)
    ratio = other.cpu_seconds / took.cpu_seconds
    records.add(case=f"{case}/cvxpy", law=law, metric="ratio", value=ratio)


def solve_with_cvxpy(law: str, losses: LossSum, allowed: CappedSimplex) -> float:
    """Returns the minimum by CVXPY and Clarabel, from the formulas alone."""
    import cvxpy as cp

    size = len(allowed.names)
    r_M = cp.Variable(size)
    rules: list[Any] = [cp.sum(r_M) == 1, r_M >= allowed.floor_M, r_M <= allowed.cap_M]
    theta_TP = losses.theta_TP
    if law == "m4":
        each = theta_TP[:, 0] + cp.exp(theta_TP[:, 1:] @ r_M)
    else:
        g_TM = np.exp(theta_TP[:, 1 : 1 + size])
        power_TM = cp.Variable(g_TM.shape)
        shares_TM = np.ones((len(g_TM), 1)) @ cp.reshape(r_M + 1e-3, (1, size), order="C")
        rules.append(cp.PowCone3D(shares_TM, np.ones(g_TM.shape), power_TM, g_TM))
        scale_TM = np.exp(theta_TP[:, 1 + size :])
        sums = cp.sum(cp.multiply(scale_TM, power_TM), axis=1)
        each = theta_TP[:, 0] + cp.inv_pos(sums)
    problem = cp.Problem(cp.Minimize(losses.weight_T @ each), rules)
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    return float(problem.value)


def drawn(losses: LossSum, seed: int) -> LossSum:
    """Returns losses whose parameters differ as bootstrap draws do."""
    noise_TP = np.random.default_rng(seed).normal(0, 0.1, losses.theta_TP.shape)
    theta_TP = losses.theta_TP + noise_TP
    if losses.law.name == "reciprocal":  # as in a fit, no exponent is above 1
        exponents = slice(1, (theta_TP.shape[1] + 1) // 2)
        theta_TP[:, exponents] = np.minimum(theta_TP[:, exponents], 0.0)
    return replace(losses, theta_TP=theta_TP)


def add_draws(records: Records, law: str) -> None:
    """Adds the seconds of one optimum among those of 200 draws, started at the fit's."""
    for domains, targets in ((5, 1), (5, 50), (20, 1), (20, 50)):
        losses, region = random_losses(law, domains, targets), Region.of(random_bounds(domains))
        start_M = minimize_objective(losses, region).r_M
        draws = [drawn(losses, seed) for seed in range(DRAWS)]
        took = timed(lambda: find_each(draws, region, start_M))  # noqa: B023 - called at once
        case = f"optimum/draw/{domains}x{targets}"
        add_time(records, case, law, took, per=DRAWS)
        worst = max(minimum.gap for minimum in took.answer)
        records.add(case=case, law=law, metric="gap", value=worst, n=DRAWS)


def find_each(draws: list[LossSum], region: Region, start_M: np.ndarray) -> list[Minimum]:
    """Returns the optimum of each draw, without prices."""
    return [minimize_objective(draw, region, start_M=start_M, with_prices=False) for draw in draws]


def add_risk(records: Records, law: str, repeats: int) -> None:
    """Adds objectives over draws and over targets, with 20 domains and 20 targets."""
    losses, allowed = random_losses(law, 20, 20), random_bounds(20)
    count = len(losses.theta_TP)
    theta_NP = np.concatenate([drawn(losses, seed).theta_TP for seed in range(DRAWS)])
    weight_BN = sparse.csr_array(sparse.kron(sparse.eye(DRAWS), losses.weight_T[None]))
    nothing, single = np.zeros(DRAWS), sparse.csr_array(np.eye(count))
    functions: dict[str, ObjectiveFunction] = {
        "tail-of-200-draws": TailMean(losses.law, theta_NP, weight_BN, nothing, 10 / DRAWS),
        "worst-of-20-targets": TailMean(losses.law, losses.theta_TP, single, np.zeros(count), 1.0),
        "mean-plus-sd-of-200-draws": MeanAndSpread(losses.law, theta_NP, weight_BN, 0.0, 1.0),
    }
    for name, function in functions.items():
        took = timed(lambda: minimize_objective(function, allowed), repeats)  # noqa: B023 - called at once
        add_time(records, f"optimum/{name}", law, took)
        add_minimum(records, f"optimum/{name}", law, took.answer, allowed)


# Published runs.


def add_five_domains(records: Records, folder: Path, repeats: int) -> None:
    """Adds the paper's grid on its own five domains: their overall loss, with any shares."""
    study = Study.read(folder, "5Mix")
    table = study.table(SIZES["410M"], STEP)
    if table is None or study.weights is None:
        print("no 5Mix runs of 410M at step 30,000", file=sys.stderr)
        return
    allowed = CappedSimplex.of(table.domains)
    for law in LAWS:
        fit = fit_table(law_of(law), table, num_draws=1)
        function = WeightedLoss(study.weights).function(fit)
        case = "optimum/5mix/410M"
        took = add_ours(records, case, law, function, allowed, repeats)
        for delta in (1 / 16, FINE_DELTA):
            theirs = timed(lambda: search_grid(function, allowed.cap_M, delta), repeats)  # noqa: B023 - called at once
            value, count = theirs.answer
            name = f"{case}/grid-1/{round(1 / delta)}"
            add_theirs(records, name, law, value, theirs, took, n=count)
        theirs = timed(lambda: search_lattice(function, len(table.domains)))  # noqa: B023 - called at once
        value, count = theirs.answer
        add_theirs(records, f"{case}/all-shares-of-1/64", law, value, theirs, took, n=count)


def search_lattice(function: LossSum, size: int) -> tuple[float, int]:
    """Returns the lowest of all mixtures with shares of whole 64ths, and how many there are."""
    bars = itertools.combinations(range(LATTICE + size - 1), size - 1)
    bars_GK = np.array(list(bars), dtype=np.int16)
    edges_GK = np.pad(bars_GK, ((0, 0), (1, 1)), constant_values=(-1, LATTICE + size - 1))
    lattice_GM = (np.diff(edges_GK, axis=1) - 1) / LATTICE
    return float(np.min(score(function, lattice_GM))), len(lattice_GM)


def search_grid(function: LossSum, caps: np.ndarray, delta: float) -> tuple[float, int]:
    """Returns the lowest point of the paper's grid, and how many points it has."""
    grid_GM = enumerate_grid(caps, delta)
    return float(np.min(score(function, grid_GM))), len(grid_GM)


def add_regmix(records: Records, folder: Path, repeats: int) -> None:
    """Adds RegMix's own search, for its Pile-CC loss and for the mean of all its losses."""
    published = read_regmix(folder)
    table = loss_table(published.runs, published.observations)
    # The shares of the Pile are not among the files: the mixtures were drawn around them.
    prior_M = table.r_RM.mean(axis=0)
    draw_GM = np.random.default_rng(0).dirichlet(prior_M / prior_M.sum(), REGMIX_DRAWS)
    allowed = CappedSimplex.of(table.domains)
    for law in LAWS:
        fit = fit_table(law_of(law), table, num_draws=1)
        for name, weights in objectives(fit).items():
            function = WeightedLoss(weights).function(fit)
            case = f"optimum/regmix/{name}"
            took = add_ours(records, case, law, function, allowed, repeats)
            theirs = timed(lambda: score(function, draw_GM), repeats)  # noqa: B023 - called at once
            best_GM = draw_GM[np.argsort(theirs.answer)]
            top_M = best_GM[:REGMIX_TOP].mean(axis=0)
            for kind, r_M in (("best-draw", best_GM[0]), ("mean-of-128", top_M)):
                value = float(function.value(r_M[None])[0])
                add_theirs(records, f"{case}/{kind}", law, value, theirs, took, n=REGMIX_DRAWS)


def law_of(name: str) -> Any:
    """Returns a law by its name."""
    from mixlaw.laws.library import MIXING_LAWS

    return MIXING_LAWS[name]


def objectives(fit: FitResult) -> dict[str, dict[str, float]]:
    """Returns the losses that RegMix's runs are optimized for."""
    web = next(target for target in fit.targets if "pile" in target.lower())
    return {"pile-cc": {web: 1.0}, "mean": dict.fromkeys(fit.targets, 1.0)}


def add_ours(
    records: Records,
    case: str,
    law: str,
    function: LossSum,
    allowed: CappedSimplex,
    repeats: int,
) -> Timed:
    """Adds our optimum."""
    minimize_objective(function, allowed)
    took = timed(lambda: minimize_objective(function, allowed), repeats)
    add_time(records, case, law, took)
    add_minimum(records, case, law, took.answer, allowed)
    value = took.answer.value
    records.add(case=case, law=law, metric="objective", value=value, unit="nats_per_token")
    return took


def add_theirs(
    records: Records, case: str, law: str, value: float, theirs: Timed, ours: Timed, *, n: int
) -> None:
    """Adds what another search finds, less ours, and its seconds over ours."""
    difference = value - ours.answer.value
    add_time(records, case, law, theirs)
    records.add(
        case=case, law=law, metric="difference", value=difference, unit="nats_per_token", n=n
    )
    ratio = theirs.cpu_seconds / ours.cpu_seconds
    records.add(case=case, law=law, metric="ratio", value=ratio, n=n)


def score(function: LossSum, r_GM: np.ndarray) -> np.ndarray:
    """Returns the objective of many mixtures, in chunks."""
    chunks = [function.value(r_GM[i : i + CHUNK]) for i in range(0, len(r_GM), CHUNK)]
    return np.concatenate(chunks)


def enumerate_grid(caps: np.ndarray, delta: float) -> np.ndarray:
    """Returns all points of the paper's grid, domains in the order of the caps."""
    order = np.argsort(-caps, kind="stable")
    grid = DyadicGrid.of(caps[order].tolist(), delta)
    points = np.array(list(_points(grid)), dtype=np.float64) / grid.total
    return points[:, np.argsort(order, kind="stable")]


def _points(grid: DyadicGrid) -> Iterator[tuple[int, ...]]:
    """Yields the points as units: all candidates, and what is left for the last domain."""

    def extend(units: tuple[int, ...], left: int) -> Iterator[tuple[int, ...]]:
        if len(units) == len(grid.candidates):
            if left <= grid.last_cap:
                yield (*units, left)
            return
        for candidate in grid.candidates[len(units)]:
            if candidate <= left:
                yield from extend((*units, candidate), left - candidate)

    yield from extend((), grid.total)


if __name__ == "__main__":
    main()
