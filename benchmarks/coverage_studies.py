"""Simulated studies with a known truth, and what `mixlaw optimize` answers in them.

Shape letters: R mixtures, M training domains, T targets.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from coverage_truths import families, scaled_truth
from mixlaw.fit import FitResult, fit_law
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.optimize import WeightedLoss
from mixlaw.selection import LawChoice, select_law
from simulated import Noise, SimulatedStudy, floored_simplex, simulate_study

NUM_WEIGHTED = 3
"""Targets in the objective."""
SEED_SD = (np.log(0.0075), 0.3)
"""Log standard deviation between seeds, in nats: its mean and its deviation over studies. On the
demo's six targets it is .002 to .013, .007 in the middle."""
COMMON = (0.3, 0.7)
"""Share of the seeds' variance that all mixtures have in common, lowest and highest."""
CLOSE = 0.7
"""Share of the true optimum in the baseline that is hard to beat."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a team has planned: how many domains, mixtures and floors."""

    num_domains: int
    num_mixtures: int
    num_extra: int
    floor: float
    method: str


LAYOUTS = {
    "demo": Layout(num_domains=5, num_mixtures=20, num_extra=1, floor=0.04, method="sobol"),
    "sparse": Layout(num_domains=7, num_mixtures=32, num_extra=0, floor=0.0, method="dirichlet"),
}
"""Like the demo's, and one more like the runs on RedPajama, some of whose shares are nearly 0."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A simulated study and what is asked of it."""

    study: SimulatedStudy
    family: str
    objective: WeightedLoss
    allowed: CappedSimplex
    baselines: dict[str, Mixture]
    """`true optimum` and `close` to it among them: where there is no gain, or a small one."""


def make_question(number: int, *, half: str, layout: str) -> Question:
    """Returns the study of a number; its truth is one of the half's families, in turn."""
    shape, kinds = LAYOUTS[layout], families(half)
    family = kinds[number % len(kinds)]
    rng = np.random.default_rng([number, 3])
    study = simulate_study(
        number,
        num_domains=shape.num_domains,
        num_mixtures=shape.num_mixtures,
        num_extra=shape.num_extra,
        floor=shape.floor,
        method=shape.method,
        noise=draw_noise(rng),
        make_truth=lambda rng, design_RM: scaled_truth(
            rng, family, shape.num_domains, shape.num_extra, design_RM
        ),
    )
    weighted = rng.choice(len(study.targets), NUM_WEIGHTED, replace=False)
    weights = rng.dirichlet(np.full(NUM_WEIGHTED, 3.0))
    objective = WeightedLoss(
        {study.targets[i]: float(w) for i, w in zip(weighted, weights, strict=True)}
    )
    allowed = floored_simplex(study, shape.floor)
    best = true_optimum(study, objective, allowed)
    uniform = Mixture.uniform(study.domains)
    room = 1 - shape.floor * shape.num_domains
    skewed, reference = (
        Mixture.from_array(study.domains, shape.floor + room * above_M)
        for above_M in (rng.dirichlet(np.full(shape.num_domains, alike)) for alike in (1.5, 4.0))
    )
    close_M = CLOSE * best.array() + (1 - CLOSE) * uniform.array()
    baselines = {
        "proportional": skewed,
        "reference": reference,
        "uniform": uniform,
        "close": Mixture.from_array(study.domains, close_M),
        "true optimum": best,
    }
    return Question(
        study=study, family=family, objective=objective, allowed=allowed, baselines=baselines
    )


def draw_noise(rng: np.random.Generator) -> Noise:
    """Returns the noise of one study's seeds: `mixlaw` takes half of its variance to be common."""
    sd, common = np.exp(rng.normal(*SEED_SD)), rng.uniform(*COMMON)
    return Noise(offset_sd=float(sd * common**0.5), own_sd=float(sd * (1 - common) ** 0.5))


def true_objective(study: SimulatedStudy, objective: WeightedLoss, r_RM: np.ndarray) -> np.ndarray:
    """Returns the expected objective of mixtures, in truth."""
    weight_T = np.array([objective.shares.get(target, 0.0) for target in study.targets])
    return study.truth(r_RM) @ weight_T


def true_optimum(study: SimulatedStudy, objective: WeightedLoss, allowed: CappedSimplex) -> Mixture:
    """Returns the mixture that is best in truth; a gain over it can only be claimed in error."""
    rng = np.random.default_rng(0)
    count = len(study.domains)
    floor_M = allowed.floor_M
    tried_RM = floor_M + (1 - floor_M.sum()) * rng.dirichlet(np.full(count, 0.7), size=2000)
    starts_SM = tried_RM[np.argsort(true_objective(study, objective, tried_RM))[:3]]
    ends = [
        minimize(
            lambda r_M: float(true_objective(study, objective, r_M[None])[0]),
            start_M,
            bounds=list(zip(allowed.floors, allowed.caps, strict=True)),
            constraints={"type": "eq", "fun": lambda r_M: np.sum(r_M) - 1.0},
            method="SLSQP",
            options={"ftol": 1e-10},
        )
        for start_M in starts_SM
    ]
    found_SM = np.stack([*(allowed.nearest(end.x) for end in ends), *starts_SM])
    best = int(np.argmin(true_objective(study, objective, found_SM)))
    return Mixture.from_array(study.domains, found_SM[best])


def decide(question: Question, *, num_draws: int) -> tuple[LawChoice, FitResult]:
    """Returns the law that `mixlaw optimize` would choose, and its fit."""
    study = question.study
    choice = select_law(study.runs, study.observations, weights=question.objective.shares)
    return choice, fit_law(choice.best, study.runs, study.observations, num_draws=num_draws)
