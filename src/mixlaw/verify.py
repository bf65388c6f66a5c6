"""The answer put to the test: the optimum and the baselines trained for real, and compared.

Every mixture is trained with the same fresh seeds, so that differences are paired: what a seed does
to all mixtures cancels.

Shape letters: S seeds, E evaluated steps.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float

from mixlaw.errors import StudyError
from mixlaw.mixtures import Mixture
from mixlaw.optimize import WeightedLoss
from mixlaw.predict import Prediction

OPTIMUM = "optimum"
"""Name of the optimum among the verified mixtures."""
LEVEL = 0.9
"""Level of all intervals here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifiedMixture:
    """One mixture: what was predicted and what its runs measured."""

    name: str
    mixture: Mixture
    seeds: tuple[int, ...]
    measured: tuple[float, ...]
    """Objective at the last step, one value per seed."""
    predicted: float
    predicted_low: float
    predicted_high: float
    target_measured: Mapping[str, tuple[float, ...]]
    """Loss of each target at the last step, one value per seed."""
    target_predicted: Mapping[str, tuple[float, float, float]]
    """Predicted loss of each target with its interval: value, low, high."""
    curve_steps: tuple[int, ...]
    curve: tuple[tuple[float, ...], ...]
    """Objective at each of these steps, one curve per seed."""

    @property
    def mean(self) -> float:
        """Mean objective over the seeds."""
        return float(np.mean(self.measured))

    @property
    def num_inside(self) -> int:
        """Runs whose objective lies inside the predicted interval."""
        return sum(self.predicted_low <= value <= self.predicted_high for value in self.measured)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The optimum against one baseline, paired by seed."""

    baseline: str
    difference: float
    """Mean of baseline less optimum; positive: the optimum is better."""
    low: float
    high: float
    """Limits of Student's t interval of that mean."""
    seed_sd: float
    """Standard deviation of the paired differences between seeds."""
    winner: str
    """`optimum`, the baseline's name, or `undecided` when the interval holds zero."""
    steps_to_match: tuple[float | None, ...]
    """Steps after which the optimum reached the baseline's final objective, by seed; None: not."""
    steps: int
    """Steps of the runs."""

    @property
    def speedup(self) -> float | None:
        """Steps of the baseline per step of the optimum, mean over seeds; None: not reached."""
        if any(step is None for step in self.steps_to_match):
            return None
        return float(np.mean([self.steps / step for step in self.steps_to_match if step]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """All verified mixtures, the optimum first, and the comparisons."""

    mixtures: tuple[VerifiedMixture, ...]
    comparisons: tuple[Comparison, ...]
    level: float
    unit: str

    def mixture(self, name: str) -> VerifiedMixture:
        """Returns a verified mixture by its name."""
        return next(mixture for mixture in self.mixtures if mixture.name == name)


def compare_runs(
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    *,
    mixtures: Mapping[str, Mixture],
    objective: WeightedLoss,
    predicted: Prediction,
    predicted_targets: Prediction,
) -> Verification:
    """Returns what the verification runs say.

    Args:
        runs: The runs table; those with the role verify count.
        observations: The observation table.
        mixtures: The verified mixtures by name, `optimum` among them.
        objective: What was minimised.
        predicted: The objective's prediction, in the order of `mixtures`.
        predicted_targets: Each target's prediction, likewise.

    Raises:
        StudyError: A mixture has no finished verification run.
    """
    runs = runs.filter(pl.col("role") == "verify")
    verified: list[VerifiedMixture] = []
    for i, (name, mixture) in enumerate(mixtures.items()):
        mine = runs.filter(pl.col("mixture_id") == mixture.mixture_id).sort("seed")
        if not mine.height:
            raise StudyError(
                f"the {name} mixture has no finished verification run",
                do="run `mixlaw verify` again; `mixlaw status` tells what failed",
            )
        verified.append(
            _verified(name, mixture, mine, observations, objective, predicted, predicted_targets, i)
        )
    best = next(mixture for mixture in verified if mixture.name == OPTIMUM)
    return Verification(
        mixtures=tuple(verified),
        comparisons=tuple(_compare(best, other) for other in verified if other is not best),
        level=LEVEL,
        unit=predicted.unit,
    )


def _verified(
    name: str,
    mixture: Mixture,
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    objective: WeightedLoss,
    predicted: Prediction,
    predicted_targets: Prediction,
    row: int,
) -> VerifiedMixture:
    rows = observations.join(runs.select("run_id", "seed"), on="run_id", how="inner")
    weights = pl.DataFrame(
        {"target": list(objective.shares), "weight": list(objective.shares.values())}
    )
    curve = (
        rows.join(weights, on="target", how="inner")
        .group_by("seed", "step")
        .agg((pl.col("value") * pl.col("weight")).sum().alias("objective"), pl.len())
        .filter(pl.col("len") == weights.height)
        .sort("seed", "step")
    )
    seeds: list[int] = runs["seed"].to_list()
    steps: list[int] = sorted(set(curve["step"].to_list()))
    if curve.height != len(seeds) * len(steps) or not steps:
        raise StudyError(
            f"all verification runs of the {name} mixture must have every weighted target at the"
            " same steps, but some losses are missing",
            do="delete the folder of the run that lacks them, and run `mixlaw verify` again",
        )
    curves = [curve.filter(pl.col("seed") == seed)["objective"].to_list() for seed in seeds]
    last = rows.filter(pl.col("step") == steps[-1]).sort("seed")
    return VerifiedMixture(
        name=name,
        mixture=mixture,
        seeds=tuple(seeds),
        measured=tuple(values[-1] for values in curves),
        predicted=float(predicted.value_RK[row, 0]),
        predicted_low=float(predicted.low_RK[row, 0]),
        predicted_high=float(predicted.high_RK[row, 0]),
        target_measured={
            target: tuple(last.filter(pl.col("target") == target)["value"].to_list())
            for target in predicted_targets.columns
        },
        target_predicted={
            target: (
                float(predicted_targets.value_RK[row, k]),
                float(predicted_targets.low_RK[row, k]),
                float(predicted_targets.high_RK[row, k]),
            )
            for k, target in enumerate(predicted_targets.columns)
        },
        curve_steps=tuple(steps),
        curve=tuple(tuple(values) for values in curves),
    )


def _compare(best: VerifiedMixture, other: VerifiedMixture) -> Comparison:
    shared = [seed for seed in best.seeds if seed in other.seeds]
    difference_S = np.array(
        [
            other.measured[other.seeds.index(seed)] - best.measured[best.seeds.index(seed)]
            for seed in shared
        ]
    )
    mean = float(np.mean(difference_S)) if shared else math.nan
    low, high, seed_sd = _student_interval(difference_S)
    winner = OPTIMUM if low > 0 else other.name if high < 0 else "undecided"
    return Comparison(
        baseline=other.name,
        difference=mean,
        low=low,
        high=high,
        seed_sd=seed_sd,
        winner=winner,
        steps_to_match=tuple(
            first_step_below(
                best.curve_steps,
                best.curve[best.seeds.index(seed)],
                other.measured[other.seeds.index(seed)],
            )
            for seed in shared
        ),
        steps=best.curve_steps[-1],
    )


def _student_interval(difference_S: Float[np.ndarray, " S"]) -> tuple[float, float, float]:
    """Returns low and high ends of the mean's interval and the standard deviation."""
    count = len(difference_S)
    if count < 2:
        return -math.inf, math.inf, math.nan
    from scipy.stats import t

    seed_sd = float(np.std(difference_S, ddof=1))
    half = float(t.ppf((1 + LEVEL) / 2, count - 1)) * seed_sd / math.sqrt(count)
    mean = float(np.mean(difference_S))
    return mean - half, mean + half, seed_sd


def first_step_below(steps: Sequence[int], losses: Sequence[float], level: float) -> float | None:
    """Returns the step at which a loss curve first falls to a level; None: it does not.

    Between evaluations the curve is taken as straight in the logarithm of the step.
    """
    previous: tuple[int, float] | None = None
    for step, loss in zip(steps, losses, strict=True):
        if loss <= level:
            if previous is None or step == 0 or previous[0] == 0 or previous[1] == loss:
                return float(step)
            share = (previous[1] - level) / (previous[1] - loss)
            return float(math.exp(math.log(previous[0]) * (1 - share) + math.log(step) * share))
        previous = step, loss
    return None
