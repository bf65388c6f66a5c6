r"""How much repeated text is worth, from runs whose domains repeat, and what more tokens are worth.

Shape letters: N losses (a run at a step), M training domains, T targets, P parameters, V values of
R* that are tried, R runs, C cells of a run (its steps by targets), B draws.

Of each target, at given R*, $L = c + (\sum_j D_j / D_0)^{-\beta} \exp(\sum_j t_j q_j)$ with the
effective tokens D_j and their shares q_j (`mixlaw.laws.repetition`): M4 times a power of the
effective tokens. It is M4 itself, of shares and one further column, so that M4's solver fits it.
R* is the same for all targets and domains: the least of the objective's profile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy.special import stdtrit
from threadpoolctl import threadpool_limits

from mixlaw.errors import FitError
from mixlaw.fit.repetition_table import TokenLosses, read_token_losses, supply_array
from mixlaw.fit.solver import Problems, minimize_problems
from mixlaw.fit.strength import LEAST_SCALE, spread
from mixlaw.laws.mixing import ExponentialLaw
from mixlaw.laws.repetition import effective_shares

SEARCHED = (0.1, 1000.0)
"""Values of R* that are tried: from repeats that are worth nothing to repeats like fresh text."""
NUM_TRIED = 17
NUM_CLOSER, MOST_CLOSER = 7, 6
"""Values of R* between the neighbours of the best, and how often the grid is made finer: until the
interval spans several of them."""
LEVEL = 0.9
WEAK = 0.1
"""Strength of the shrinkage, in units of the law's prior."""
ROUNDS = 3
"""Rounds of fitting and estimating the scale of the residuals."""
TOLERANCE = 1e-7


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenLoss:
    """What more tokens are worth at a run's length: the step law of each target there."""

    loss_T: Float[np.ndarray, " T"]
    """Loss that more tokens would still remove, at `tokens` and a typical mixture; 0: unknown."""
    exponent_T: Float[np.ndarray, " T"]
    tokens: float

    def at(self, tokens: float) -> Float[np.ndarray, " T"]:
        """Returns the loss that more tokens would still remove at another length."""
        return self.loss_T * (tokens / self.tokens) ** -self.exponent_T


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RepetitionFit:
    """The constant of repetition that runs show, and how sure it is."""

    constant: float
    """R*."""
    low: float
    """Limits of the 90% interval; the ends of what was searched where it is open."""
    high: float
    is_identified: bool
    """Whether the interval has two ends: the runs can tell repeated text from fresh and useless."""
    tried_V: Float[np.ndarray, " V"]
    profile_V: Float[np.ndarray, " V"]
    """Twice the objective's rise above its least, for correlated losses of one run scaled down."""
    most_epochs: float
    """The most epochs that any run saw of a domain."""
    token_loss: TokenLoss
    sentence: str

    def draw(self, num: int, *, seed: int = 0) -> Float[np.ndarray, " B"]:
        """Returns draws of R*, flat in its logarithm before the runs were seen."""
        chance_V = np.exp(-0.5 * self.profile_V) * np.gradient(np.log(self.tried_V))
        rng = np.random.default_rng(seed)
        return rng.choice(self.tried_V, size=num, p=chance_V / chance_V.sum())


def fit_repetition(
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    supply: Mapping[str, float],
    *,
    targets: Sequence[str] | None = None,
    params: float | None = None,
) -> RepetitionFit:
    """Returns the constant R* that the runs show, with its profile interval.

    Args:
        runs: The runs table; those with the role design or imported are fitted.
        observations: Their losses; several steps tell what more tokens are worth.
        supply: Unique tokens of each domain that these runs had; a domain not named never repeats.
        targets: Which targets; all by default.
        params: Of which model size; the largest by default.

    Raises:
        FitError: No run repeated a domain, or there are too few losses.
    """
    losses = read_token_losses(runs, observations, targets, params)
    supply_M = supply_array(losses.domains, supply)
    epochs_NM = losses.r_NM * losses.tokens_N[:, None] / supply_M
    most = float(epochs_NM.max())
    if most <= 1:
        raise FitError(
            f"the worth of repeated text needs runs that repeat some, but the most epochs of any"
            f" domain are {most:.2g}",
            do='give proxies less text ([design] match_repetition), or use law = "muennighoff"',
        )
    threshold = float(stdtrit(_freedom(losses), (1 + LEVEL) / 2)) ** 2
    with threadpool_limits(limits=1):
        profile = _profile(losses, supply_M, threshold)
    low, high, is_open = _interval(profile.tried_V, profile.rise_V, threshold)
    constant = float(profile.tried_V[np.argmin(profile.rise_V)])
    return RepetitionFit(
        constant=constant,
        low=low,
        high=high,
        is_identified=not is_open,
        tried_V=profile.tried_V,
        profile_V=profile.rise_V,
        most_epochs=most,
        token_loss=_token_loss(losses, profile.best),
        sentence=_describe(constant, low, high, most, is_open),
    )


def fit_token_loss(
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    supply: Mapping[str, float],
    *,
    constant: float,
    targets: Sequence[str] | None = None,
    params: float | None = None,
) -> TokenLoss:
    """Returns what more tokens are worth at given R*: zeros where runs have one step only.

    The arguments are those of `fit_repetition`.

    Raises:
        FitError: There are too few losses.
    """
    losses = read_token_losses(runs, observations, targets, params)
    with threadpool_limits(limits=1):
        return _token_loss(losses, _settle(losses, supply_array(losses.domains, supply), constant))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Fit:
    theta_TP: Float[np.ndarray, "T P"]
    scale_T: Float[np.ndarray, " T"]
    residual_TN: Float[np.ndarray, "T N"]
    """In units of the scale."""
    objective: float
    column_NP: Float[np.ndarray, "N P1"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Profile:
    tried_V: Float[np.ndarray, " V"]
    rise_V: Float[np.ndarray, " V"]
    best: _Fit


def _freedom(losses: TokenLosses) -> int:
    """Returns the runs that are left when each parameter of a target has taken one."""
    return max(1, len(np.unique(losses.run_N)) - losses.r_NM.shape[1] - 1 - losses.has_steps)


def _profile(losses: TokenLosses, supply_M: np.ndarray, threshold: float) -> _Profile:
    """Returns the objective's rise at values of R*, densely where it is below the threshold."""
    tried_V = np.geomspace(*SEARCHED, NUM_TRIED)
    pilot = _settle(losses, supply_M, float(np.median(tried_V)))
    known: dict[float, _Fit] = {}
    inflation, values_V, rise_V = 1.0, tried_V, np.zeros(NUM_TRIED)
    for closer in range(MOST_CLOSER):
        for value in tried_V.tolist():
            known[value] = _solve(losses, supply_M, value, pilot.scale_T, pilot.theta_TP)
        if closer == 0:  # the residuals' scale is that of the best fit, for all values
            best = min(known, key=lambda value: known[value].objective)
            pilot = _settle(losses, supply_M, best, start=known[best])
            known = {
                value: _solve(losses, supply_M, value, pilot.scale_T, fit.theta_TP)
                for value, fit in known.items()
            }
            inflation = _inflation(pilot.residual_TN, losses)
        values_V = np.array(sorted(known))
        objective_V = np.array([known[value].objective for value in values_V.tolist()])
        rise_V = 2 * (objective_V - objective_V.min()) / inflation
        best_v = int(np.argmin(rise_V))
        pilot = known[float(values_V[best_v])]
        if np.sum(rise_V <= threshold) >= NUM_CLOSER // 2:
            break
        around = values_V[max(best_v - 1, 0)], values_V[min(best_v + 1, len(values_V) - 1)]
        tried_V = np.geomspace(*around, NUM_CLOSER + 2)[1:-1]
    return _Profile(tried_V=values_V, rise_V=rise_V, best=pilot)


def _columns(losses: TokenLosses, supply_M: np.ndarray, constant: float) -> np.ndarray:
    """Returns effective shares and the log of the effective tokens, as M4 takes shares."""
    q_NM, sum_N = effective_shares(losses.r_NM, supply_M, tokens=losses.tokens_N, constant=constant)
    if not losses.has_steps:
        return q_NM
    return np.column_stack([q_NM, np.log(losses.tokens_N * sum_N / losses.tokens_N.max())])


def _settle(
    losses: TokenLosses, supply_M: np.ndarray, constant: float, *, start: _Fit | None = None
) -> _Fit:
    """Returns the fit at one R* whose residuals have the scale that it was fitted with."""
    scale_T = 0.1 * spread(losses.y_TN) if start is None else start.scale_T
    theta_TP = None if start is None else start.theta_TP
    fit = _solve(losses, supply_M, constant, scale_T, theta_TP)
    for _ in range(ROUNDS):
        count = fit.theta_TP.shape[1]
        off_TN = np.abs(fit.residual_TN) * fit.scale_T[:, None]
        # 1.4826: a normal's standard deviation in median absolute deviations
        usual_T = 1.4826 * np.nanmedian(off_TN, axis=1)
        known_T = np.isfinite(losses.y_TN).sum(axis=1)
        usual_T *= np.sqrt(known_T / np.maximum(known_T - count, 1))
        scale_T = np.maximum(usual_T, LEAST_SCALE * spread(losses.y_TN))
        fit = _solve(losses, supply_M, constant, scale_T, fit.theta_TP)
    return fit


def _solve(
    losses: TokenLosses,
    supply_M: np.ndarray,
    constant: float,
    scale_T: np.ndarray,
    start_TP: np.ndarray | None,
) -> _Fit:
    law = ExponentialLaw()
    columns = _columns(losses, supply_M, constant)
    if start_TP is None:
        start_TP = law.starts(columns, losses.y_TN)[:, 0]
    problems = Problems.of(
        law, columns, losses.y_TN, scale_B=scale_T, strength_B=np.full(len(scale_T), WEAK)
    )
    ends = minimize_problems(problems, start_TP, tolerance=TOLERANCE)
    return _Fit(
        theta_TP=ends.theta_BP,
        scale_T=scale_T,
        residual_TN=(losses.y_TN - law.predict(columns, ends.theta_BP)) / scale_T[:, None],
        objective=float(np.sum(ends.objective_B)),
        column_NP=columns,
    )


def _token_loss(losses: TokenLosses, fit: _Fit) -> TokenLoss:
    tokens = float(losses.tokens_N.max())
    if not losses.has_steps:
        nothing_T = np.zeros(len(fit.theta_TP))
        return TokenLoss(loss_T=nothing_T, exponent_T=nothing_T + 1.0, tokens=tokens)
    last_N = losses.tokens_N == tokens
    above_TN = np.exp(fit.theta_TP[:, 1:] @ fit.column_NP[last_N].T)
    exponent_T = np.maximum(-fit.theta_TP[:, -1], 0.0)
    return TokenLoss(
        loss_T=np.where(exponent_T > 0, above_TN.mean(axis=1), 0.0),
        exponent_T=exponent_T,
        tokens=tokens,
    )


def _inflation(residual_TN: Float[np.ndarray, "T N"], losses: TokenLosses) -> float:
    """Returns by how much correlated losses of one run overstate what the runs say.

    The mean squared correlation between a run's cells, less what chance alone gives.
    """
    num_runs = int(losses.run_N.max()) + 1
    steps = np.unique(losses.tokens_N)
    step_N = np.searchsorted(steps, losses.tokens_N)
    cell_RC = np.full((num_runs, len(steps), len(residual_TN)), np.nan)
    cell_RC[losses.run_N, step_N] = residual_TN.T
    cell_RC = cell_RC.reshape(num_runs, -1)
    cell_RC = cell_RC[np.isfinite(cell_RC).all(axis=1)]
    count, cells = cell_RC.shape
    if count < 4 or cells < 2:
        return float(max(cells, 1))
    centred_RC = cell_RC - cell_RC.mean(axis=0)
    size_C = np.sqrt(np.sum(centred_RC**2, axis=0))
    unit_RC = centred_RC / np.where(size_C > 0, size_C, 1.0)
    squared_CC = (unit_RC.T @ unit_RC) ** 2
    mean = (squared_CC.sum() - np.trace(squared_CC)) / (cells * (cells - 1))
    return float(1 + (cells - 1) * max(mean - 1 / (count - 1), 0.0))


def _interval(
    tried_V: np.ndarray, rise_V: np.ndarray, threshold: float
) -> tuple[float, float, bool]:
    """Returns where the profile crosses a threshold on both sides, and whether an end is open."""
    best = int(np.argmin(rise_V))
    ends: list[float] = []
    is_open = False
    for side in (range(best, -1, -1), range(best, len(tried_V))):
        above = [i for i in side if rise_V[i] > threshold]
        if not above:
            is_open = True
            ends.append(float(tried_V[side[-1]]))
            continue
        outer = above[0]
        inner = outer + (1 if side.step < 0 else -1)
        share = (threshold - rise_V[inner]) / (rise_V[outer] - rise_V[inner])
        log_inner, log_outer = np.log(tried_V[inner]), np.log(tried_V[outer])
        ends.append(float(np.exp(log_inner + share * (log_outer - log_inner))))
    return ends[0], ends[1], is_open


def _describe(constant: float, low: float, high: float, most: float, is_open: bool) -> str:
    seen = f"from runs with up to {most:.2g} epochs of a domain"
    if not is_open:
        return f"R* = {constant:.3g}, 90% interval {low:.3g} to {high:.3g}, {seen}"
    if high >= SEARCHED[1] and low <= SEARCHED[0]:
        return f"R* is not identified {seen}: they say nothing about what repeats are worth"
    if high >= SEARCHED[1]:
        return (
            f"R* is not identified {seen}: more than {low:.3g} with 95%, but repeated text can't be"
            " told from fresh text"
        )
    return (
        f"R* is not identified {seen}: less than {high:.3g} with 95%, but repeated text can't be"
        " told from none"
    )
