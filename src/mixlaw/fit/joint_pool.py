"""Joint laws of all targets at once: exponents pooled, strength of the shrinkage from the data.

Shape letters: R rows, X inputs, M training domains, T targets, P parameters.

One target hardly tells its exponents: a loss that falls slowly to a low floor and one that falls
fast to a high floor look alike over a factor of ten in size. So each exponent is a draw from a
normal distribution over targets, whose mean and spread are estimated with the fits, by
expectation-maximization (empirical Bayes); likewise the spread of what each domain has its own.

Checkpoints of one run are no independent observations: a run weighs as much as one observation,
however many checkpoints it has. Without that, exponents look far better known than they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from mixlaw.fit.joint_solver import JointProblem, descend
from mixlaw.fit.joint_table import JointTable, group_index
from mixlaw.laws.joint import JointLaw
from mixlaw.laws.joint_priors import contrast_priors, exponent_priors, shrinkage

ROUNDS = 8
"""Rounds of expectation-maximization; the exponents' means then move by less than .01."""
PRIOR_COUNT = 2.0
"""How many targets, or domains, the prior of a spread is worth."""
NARROWER = 3.0
"""Targets are expected to differ in an exponent by the prior's standard deviation over this."""
FIRST_SCALES = (0.05, 0.02, 0.01)
"""Scales of the residuals of log loss in the first descents: 5%, 2%, 1%."""
LEAST_SCALE = 1e-4
"""Noiseless data must not turn the shrinkage off altogether."""
USED = 0.7
"""Share of the parameters that count when the scale is estimated: the rest is shrunk away."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PooledFit:
    """A joint law fitted to every target."""

    law: JointLaw
    unit_2: Float[np.ndarray, " 2"]
    """Params and tokens that the law counts in."""
    theta_TP: Float[np.ndarray, "T P"]
    scale_T: Float[np.ndarray, " T"]
    """Robust standard deviation of log loss around the law."""
    converged_T: tuple[bool, ...]
    at_bound_TP: np.ndarray
    exponents: Mapping[str, tuple[float, float]]
    """Mean and spread of each exponent over the targets."""
    contrasts_T: tuple[Mapping[str, float], ...]
    """For each target, the spread of what each domain has its own."""

    def predict(self, x_RX: Float[np.ndarray, "R X"]) -> Float[np.ndarray, "R T"]:
        """Returns the expected loss of each row of shares, params and tokens."""
        return self.law.predict(in_units(x_RX, self.unit_2), self.theta_TP).T


def in_units(
    x_RX: Float[np.ndarray, "R X"], unit_2: Float[np.ndarray, " 2"]
) -> Float[np.ndarray, "R X"]:
    """Returns the rows with params and tokens in the law's units."""
    return np.concatenate([x_RX[:, :-2], x_RX[:, -2:] / unit_2], axis=1)


def fit_pooled(
    law: JointLaw,
    table: JointTable,
    *,
    pooled: bool = True,
    rounds: int = ROUNDS,
    weight_R: Float[np.ndarray, " R"] | None = None,
    start: PooledFit | None = None,
    rng: np.random.Generator | None = None,
) -> PooledFit:
    """Returns the law fitted to every target.

    Args:
        law: The law.
        table: Losses.
        pooled: Whether the mean and spread of exponents are estimated from the targets; the law's
            priors otherwise.
        rounds: Rounds of fitting and pooling.
        weight_R: Weights of the rows; by default each run has the weight 1.
        start: A fit of nearly the same rows to start from; its pooled priors are kept.
        rng: Draws the centres of the priors anew, each within its own spread: with weights drawn
            too, the fit is then a draw from what is known.
    """
    weight_R = run_weights(table.run_ids) if weight_R is None else weight_R
    if start is None:
        unit_2 = np.exp(np.mean(np.log(table.x_RX[:, -2:]), axis=0))
        targets = [_Target(law, table, i, unit_2, weight_R) for i in range(len(table.targets))]
        exponents = dict(exponent_priors(law.slots))
    else:
        unit_2 = start.unit_2
        targets = [
            _Target(law, table, i, unit_2, weight_R, start) for i in range(len(table.targets))
        ]
        for target in targets:
            target.shift_priors(rng)
        exponents, rounds, pooled = dict(start.exponents), 1, False
    for number in range(rounds):
        for target in targets:
            target.solve(exponents, tolerance=1e-9 if number == rounds - 1 else 1e-5)
        if pooled and number:
            exponents = _pool_exponents(law, table, targets)
        if start is None:
            for target in targets:
                target.pool_contrasts()
    ends = [target.end for target in targets]
    return PooledFit(
        law=law,
        unit_2=unit_2,
        theta_TP=np.stack([end.theta_P for end in ends]),
        scale_T=np.array([target.problem.scale for target in targets]),
        converged_T=tuple(end.converged for end in ends),
        at_bound_TP=np.stack(
            [(end.theta_P <= end.low_P) | (end.theta_P >= end.high_P) for end in ends]
        ),
        exponents=exponents,
        contrasts_T=tuple(target.contrasts for target in targets),
    )


def run_weights(run_ids: Sequence[str]) -> Float[np.ndarray, " R"]:
    """Returns weights of rows that sum to 1 over each run."""
    group_R = group_index(run_ids)
    return 1.0 / np.bincount(group_R)[group_R]


class _Target:
    """One target's fit, round after round."""

    def __init__(
        self,
        law: JointLaw,
        table: JointTable,
        column: int,
        unit_2: Float[np.ndarray, " 2"],
        weight_R: Float[np.ndarray, " R"],
        start: PooledFit | None = None,
    ) -> None:
        known_R = ~np.isnan(table.y_RT[:, column])
        self.num_domains = len(table.domains)
        self.contrasts = dict(
            contrast_priors(law.slots) if start is None else start.contrasts_T[column]
        )
        exponents = exponent_priors(law.slots) if start is None else start.exponents
        shrink_QP, shrink_Q = shrinkage(
            law.slots, self.num_domains, exponents=exponents, contrasts=self.contrasts
        )
        self.problem = JointProblem(
            law=law,
            x_RX=in_units(table.x_RX[known_R], unit_2),
            y_R=table.y_RT[known_R, column],
            weight_R=weight_R[known_R],
            scale=FIRST_SCALES[0] if start is None else float(start.scale_T[column]),
            shrink_QP=shrink_QP,
            shrink_Q=shrink_Q,
        )
        self.keeps_scale = start is not None
        self.shift_Q = np.zeros_like(shrink_Q)
        self.theta_P = self._first() if start is None else start.theta_TP[column]

    def _first(self) -> Float[np.ndarray, " P"]:
        ends: list[tuple[float, np.ndarray]] = []
        for theta_P in self.problem.law.starts(self.problem.x_RX, self.problem.y_R):
            for scale in FIRST_SCALES[:-1]:
                self.problem = replace(self.problem, scale=scale)
                end = descend(self.problem, theta_P, tolerance=1e-4, max_steps=60)
                theta_P = end.theta_P  # noqa: PLW2901 - the next descent goes on from here
            self.problem = replace(self.problem, scale=FIRST_SCALES[-1])
            end = descend(self.problem, theta_P, tolerance=1e-4, max_steps=60)
            ends.append((end.objective, end.theta_P))
        return min(ends, key=lambda end: end[0])[1]

    def shift_priors(self, rng: np.random.Generator | None) -> None:
        """Moves the centre of each prior by a draw from it."""
        if rng is not None:
            self.shift_Q = rng.normal(size=len(self.shift_Q))

    def solve(self, exponents: Mapping[str, tuple[float, float]], *, tolerance: float) -> None:
        """Fits under pooled priors, and estimates the scale anew."""
        law = self.problem.law
        shrink_QP, shrink_Q = shrinkage(
            law.slots, self.num_domains, exponents=exponents, contrasts=self.contrasts
        )
        self.problem = replace(self.problem, shrink_QP=shrink_QP, shrink_Q=shrink_Q + self.shift_Q)
        self.end = descend(self.problem, self.theta_P, tolerance=tolerance)
        self.theta_P = self.end.theta_P
        if self.keeps_scale:
            return
        residual_R = self.problem.log_residual(self.theta_P)
        count = len(residual_R)
        left = max(count - USED * len(self.theta_P), 0.1 * count)
        # 1.4826: a normal's standard deviation in median absolute deviations
        scale = 1.4826 * float(np.median(np.abs(residual_R))) * np.sqrt(count / left)
        self.problem = replace(self.problem, scale=max(float(scale), LEAST_SCALE))
        curvature_PP = self.problem.expand(self.theta_P).curvature_PP
        self.covariance_PP = np.linalg.inv(curvature_PP + 1e-9 * np.eye(len(curvature_PP)))

    def pool_contrasts(self) -> None:
        """Estimates how far domains differ, for each slot that they have."""
        centring_MM = np.eye(self.num_domains) - 1.0 / self.num_domains
        index = self.problem.law.index(self.num_domains)
        for slot, prior in contrast_priors(self.problem.law.slots).items():
            places = index[slot]
            centred_M = centring_MM @ self.theta_P[places]
            spread_MM = centring_MM @ self.covariance_PP[np.ix_(places, places)] @ centring_MM
            total = centred_M @ centred_M + np.trace(spread_MM) + PRIOR_COUNT * prior**2
            self.contrasts[slot] = float(np.sqrt(total / (self.num_domains - 1 + PRIOR_COUNT)))


def _pool_exponents(
    law: JointLaw, table: JointTable, targets: Sequence[_Target]
) -> dict[str, tuple[float, float]]:
    """Returns the mean and spread of each exponent over the targets."""
    index = law.index(len(table.domains))
    pooled: dict[str, tuple[float, float]] = {}
    for slot, (prior_mean, prior_spread) in exponent_priors(law.slots).items():
        place = int(index[slot][0])
        value_T = np.array([target.theta_P[place] for target in targets])
        variance_T = np.array([target.covariance_PP[place, place] for target in targets])
        between = float(np.var(value_T) + np.mean(variance_T))
        precision = len(targets) / between + 1 / prior_spread**2
        mean = float((value_T.sum() / between + prior_mean / prior_spread**2) / precision)
        expected = PRIOR_COUNT * (prior_spread / NARROWER) ** 2
        total = float(np.sum((value_T - mean) ** 2 + variance_T)) + expected
        pooled[slot] = mean, float(np.sqrt(total / (len(targets) + PRIOR_COUNT)))
    return pooled
