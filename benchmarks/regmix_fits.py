"""Fits of all laws and baselines to subsets of RegMix's training runs, two processes at a time.

Shape letters: R runs, M training domains, T targets, X predicted mixtures, L learners.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from records import unseen  # isort: skip - pins threads

import numpy as np

from mixlaw.fit.learners import (
    GaussianProcessLearner,
    LawLearner,
    Learner,
    LightGBMLearner,
    MeanLearner,
    has_baselines,
)
from mixlaw.importers.published import PublishedRuns, read_regmix
from mixlaw.importers.swarms import REGMIX_FILES
from mixlaw.laws.library import MIXING_LAWS
from mixlaw.observations import PROPORTION_PREFIX
from mixlaw.selection.choice import (
    NUM_FOLDS,
    LearnerChoice,
    LeftOut,
    choose_from,
    deal_folds,
)

NUM_SEEDS = {24: 4, 32: 4, 64: 4, 128: 3, 256: 2, 400: 3}
"""Subsets by number of fitted runs: as many as make five minutes on two cores."""
MOST_RUNS_FOR_GP = 64
"""With more, a Gaussian process costs more than all laws together."""
LEVEL = 0.9


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Runs as arrays."""

    labels: tuple[str, ...]
    """RegMix's index of each run."""
    domains: tuple[str, ...]
    targets: tuple[str, ...]
    r_RM: np.ndarray
    y_RT: np.ndarray
    """NaN where there is no loss."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What learners that were fitted to some of the runs predict for others."""

    n: int
    seed: int
    rest_R: np.ndarray
    """Indices of the training runs that were left over, in the order of the predictions."""
    value_LXT: Mapping[str, np.ndarray]
    """Predictions by learner, `selected` among them: first of what was left over, then of all
    test runs."""
    law_name: str
    """What `selected` was."""
    half_T: np.ndarray
    """Half the width of the 90% intervals of `selected`."""


def read_training(folder: Path) -> tuple[PublishedRuns, Runs]:
    """Returns the training runs, as published and as arrays."""
    published = read_regmix(folder)
    domains = [name for name in published.runs.columns if name.startswith(PROPORTION_PREFIX)]
    targets = published.observations["target"].unique(maintain_order=True).to_list()
    return published, tabulate(published, domains=domains, targets=targets)


def read_tests(folder: Path, published: PublishedRuns, train: Runs) -> dict[str, Runs]:
    """Returns the test runs by size, as far as their files are there, less those of training."""
    found: dict[str, Runs] = {}
    for size in ("1m", "60m", "1b"):
        if not all((folder / name).is_file() for name in REGMIX_FILES[size]):
            print(f"no test runs of {size} in {folder}", file=sys.stderr)
            continue
        test = unseen(published, read_regmix(folder, which=size))
        for note in test.notes:
            print(f"{size}: {note}", file=sys.stderr)
        found[size] = tabulate(test, domains=train.domains, targets=train.targets)
    return found


def tabulate(published: PublishedRuns, *, domains: Sequence[str], targets: Sequence[str]) -> Runs:
    """Returns runs as arrays with given columns.

    A domain that the runs do not name has a share of 0 in them. Runs with tokens of a domain that
    is not among the columns are left out: no fit knows what it does.
    """
    runs = published.runs
    named = [name for name in runs.columns if name.startswith(PROPORTION_PREFIX)]
    strange = [name for name in named if name not in domains]
    known_R = (
        (runs.select(strange).to_numpy() == 0).all(axis=1)
        if strange
        else np.ones(runs.height, dtype=bool)
    )
    if not known_R.all():
        print(f"left out: {np.sum(~known_R)} runs with tokens of {strange}", file=sys.stderr)
    runs = runs.filter(known_R)
    shares = [runs[name].to_numpy() if name in named else np.zeros(runs.height) for name in domains]
    wide = published.observations.pivot(on="target", index="run_id", values="value")
    wide = runs.select("run_id").join(wide, on="run_id", how="left", maintain_order="left")
    losses = [
        wide[target].to_numpy() if target in wide.columns else np.full(runs.height, np.nan)
        for target in targets
    ]
    return Runs(
        labels=tuple(published.labels[run_id] for run_id in runs["run_id"].to_list()),
        domains=tuple(domains),
        targets=tuple(targets),
        r_RM=np.column_stack(shares).astype(np.float64),
        y_RT=np.column_stack(losses).astype(np.float64),
    )


def fit_all(train: Runs, r_XM: np.ndarray, *, workers: int, most_seeds: int) -> list[Fit]:
    """Returns the fits of all sizes and seeds; where test runs are given, also one to all runs."""
    num_runs = len(train.r_RM)
    tasks = [
        (n, seed)
        for n, num_seeds in NUM_SEEDS.items()
        if n < num_runs
        for seed in range(min(num_seeds, most_seeds))
    ]
    if len(r_XM):
        tasks.append((num_runs, 0))
    tasks.sort(reverse=True)  # the longest first, so that no process waits long for the other
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        fits = list(pool.map(partial(fit_subset, train, r_XM), tasks))
    return sorted(fits, key=lambda fit: (fit.n, fit.seed))


def fit_subset(train: Runs, r_XM: np.ndarray, task: tuple[int, int]) -> Fit:
    """Returns the fit to the first n runs of the order that a seed deals."""
    n, seed = task
    started = time.process_time()
    order_R = np.random.default_rng(seed).permutation(len(train.r_RM))
    fitted_R, rest_R = order_R[:n], order_R[n:]
    r_RM, y_RT = train.r_RM[fitted_R], train.y_RT[fitted_R]
    asked_XM = np.concatenate([train.r_RM[rest_R], r_XM])
    choice, value_LXT = choose(r_RM, y_RT, asked_XM, seed=seed)
    if has_baselines() and n <= MOST_RUNS_FOR_GP:
        value_LXT["gp"] = GaussianProcessLearner().predict(r_RM, y_RT, r_XM=asked_XM)
    seconds = time.process_time() - started
    print(f"{n} runs, seed {seed}, {seconds:.0f} s: {choice.selected_name}", file=sys.stderr)
    return Fit(
        n=n,
        seed=seed,
        rest_R=rest_R,
        value_LXT=value_LXT,
        law_name=choice.selected_name,
        half_T=conformal_half_widths(choice.selected_left_out_RT - y_RT),
    )


def choose(
    r_RM: np.ndarray, y_RT: np.ndarray, r_XM: np.ndarray, *, seed: int
) -> tuple[LearnerChoice, dict[str, np.ndarray]]:
    """Returns `choose_learner`'s choice, and what it and each learner predict for mixtures.

    The fit to all runs is one more fold of the cross-validation: what is shared is done once.
    """
    rng = np.random.default_rng(seed)
    index_R = np.arange(len(r_RM))
    fold_R = deal_folds(rng, index_R, NUM_FOLDS)
    keep_KR = fold_R != np.arange(-1, NUM_FOLDS)[:, None]  # fold -1 leaves nothing out
    start_K = np.minimum(np.arange(len(keep_KR)), 1) - 1
    asked_XM = np.concatenate([r_RM, r_XM])
    learners = candidates()
    left_out: list[np.ndarray] = []
    value_LXT: dict[str, np.ndarray] = {}
    for learner in learners:
        value_KXT = learner.predict_folds(
            r_RM, y_RT, keep_KR=keep_KR, r_XM=asked_XM, start_K=start_K
        )
        left_out.append(value_KXT[fold_R + 1, index_R])
        value_LXT[learner.name] = value_KXT[0, len(r_RM) :]
    choice = choose_from(
        [LeftOut(np.stack(left_out), fold_R)],
        y_RT,
        learners=learners,
        group_R=index_R,
        weight_T=None,
        num_domains=r_RM.shape[1],
        rng=rng,
    )
    value_LXT["selected"] = np.tensordot(choice.weight_L, np.stack(list(value_LXT.values())), 1)
    return choice, value_LXT


def candidates() -> list[Learner]:
    """Returns everything that is chosen from."""
    laws: list[Learner] = [LawLearner(law) for law in MIXING_LAWS.values()]
    return [*laws, MeanLearner(), *([LightGBMLearner()] if has_baselines() else [])]


def conformal_half_widths(off_RT: np.ndarray) -> np.ndarray:
    """Returns how far a further run may lie from its prediction, for each target.

    It is the quantile of the errors of fits that did not see the run, with the one run added that
    conformal prediction asks for.
    """
    count = len(off_RT)
    rank = min(int(np.ceil((count + 1) * LEVEL)), count)
    return np.sort(np.abs(off_RT), axis=0)[rank - 1]
