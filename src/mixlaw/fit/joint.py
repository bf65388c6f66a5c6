"""Fits of joint laws in mixture, model size and tokens, with intervals that grow with distance.

Shape letters: R rows, X inputs (M shares, params, tokens), T targets, P parameters, B draws.

Three things make a new run's loss uncertain, and an interval has all three. What a single run of a
mixture does by itself: errors of left-out mixtures (conformal, per target). What the fitted runs
leave open: a Bayesian bootstrap over mixtures, with priors' centres drawn anew. And what no fit of
these runs can know, since larger models and later steps are not like smaller and earlier ones: an
error common to all mixtures, learned from rolling hold-outs, that grows with the log distance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy.special import ndtri, stdtrit
from threadpoolctl import threadpool_limits

from mixlaw.errors import FitError
from mixlaw.fit.joint_holdout import (
    ErrorModel,
    LeftOut,
    distance_beyond,
    learn_errors,
    leave_out,
    mixture_memory,
)
from mixlaw.fit.joint_pool import PooledFit, fit_pooled, run_weights
from mixlaw.fit.joint_table import JointTable, check_mixtures, group_index, joint_table
from mixlaw.laws.joint import JointLaw

NUM_FOLDS = 5
"""Parts into which the mixtures are cut to see errors on new ones."""
PRIOR_FREEDOM = 3
"""Degrees of freedom that the error of extrapolation has before any hold-out. Each hold-out adds
one, however many runs it has: their errors have a common part."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class JointPrediction:
    """Losses of one new run at each row, with intervals."""

    value_RT: Float[np.ndarray, "R T"]
    low_RT: Float[np.ndarray, "R T"]
    high_RT: Float[np.ndarray, "R T"]
    level: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class JointFit:
    """A joint law fitted to every target, and how wrong it is."""

    law: JointLaw
    table: JointTable
    """What it was fitted to."""
    pooled: PooledFit
    draws: tuple[PooledFit, ...]
    """Fits under drawn weights of the mixtures and drawn centres of the priors."""
    new_error_T: tuple[Float[np.ndarray, " K"], ...]
    """Absolute errors of log loss on mixtures that were left out."""
    left_out: tuple[LeftOut, ...]
    """Sizes and steps that were left out, each predicted from smaller and earlier ones."""
    errors: ErrorModel
    memory: Mapping[str, Float[np.ndarray, " T"]]
    """For each fitted mixture, what the law gets wrong on it at its largest size; log loss."""

    def predict(
        self,
        x_RX: Float[np.ndarray, "R X"],
        *,
        mixture_ids: Sequence[str] | None = None,
        level: float = 0.9,
    ) -> JointPrediction:
        """Returns the losses of new runs, with the interval of one run's loss.

        Args:
            x_RX: Rows of shares, params and tokens.
            mixture_ids: The mixture of each row: of those that were fitted, what the law got wrong
                on them is taken into account. By default the law alone predicts.
            level: Share of new runs that intervals are to hold.
        """
        if not 0 < level < 1:
            raise FitError(f"the level of an interval must lie between 0 and 1, found {level}")
        log_RT = np.log(self.pooled.predict(x_RX))
        num_rows, num_targets = log_RT.shape
        half_RT = np.tile([_quantile(e, level) for e in self.new_error_T], (num_rows, 1))
        if mixture_ids is not None:
            unknown_T = np.full(num_targets, np.nan)
            memory_RT = np.stack([self.memory.get(i, unknown_T) for i in mixture_ids])
            known_RT = ~np.isnan(memory_RT)
            log_RT = log_RT - self.errors.recall * np.where(known_RT, memory_RT, 0.0)
            own_T = np.array([_quantile(e, level) for e in self.errors.own_error_T])
            noise_T = self.errors.step_noise * self.pooled.scale_T * ndtri((1 + level) / 2)
            half_RT = np.where(known_RT, np.hypot(own_T, noise_T), half_RT)
        # Both kinds of error are possible at once, and independent.
        few = stdtrit(len(self.left_out) + PRIOR_FREEDOM, (1 + level) / 2)
        half_RT = np.hypot(half_RT, few * self._common_error(x_RX))
        return JointPrediction(
            value_RT=np.exp(log_RT),
            low_RT=np.exp(log_RT - half_RT),
            high_RT=np.exp(log_RT + half_RT),
            level=level,
        )

    def _common_error(self, x_RX: Float[np.ndarray, "R X"]) -> Float[np.ndarray, "R T"]:
        """Returns the standard deviation of log loss that new runs have in common."""
        drawn = np.stack([np.log(draw.predict(x_RX)) for draw in self.draws])
        distance_R2 = distance_beyond(x_RX, self.table.x_RX)
        growth_R = np.sqrt(distance_R2**2 @ self.errors.growth_2**2)
        return np.hypot(drawn.std(axis=0), growth_R[:, None] * self.pooled.scale_T)

    def report(self) -> str:
        """Returns the fit in words."""
        pooled = self.pooled
        names = ", ".join(
            f"{slot.removeprefix('log ')} {np.exp(mean) if slot.startswith('log') else mean:.3g}"
            for slot, (mean, _) in pooled.exponents.items()
        )
        lines = [f"{self.law.name}: {self.law.formula}", f"exponents, mean over targets: {names}"]
        lines += [f"{part.name}: {part.relative_error:.2%} off" for part in self.left_out]
        if not self.errors.is_learned:
            lines.append(
                "fewer than three sizes: how errors grow with model size is a guess, not learned"
            )
        for i, target in enumerate(self.table.targets):
            names_P = np.array(self.law.parameter_names(self.table.domains))
            held = ", ".join(names_P[pooled.at_bound_TP[i]])
            state = "converged" if pooled.converged_T[i] else "did not converge"
            bound = f"; {held} at a bound, not estimated" if held else ""
            lines.append(f"{target}: {state}, residuals {pooled.scale_T[i]:.2%}{bound}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.report()


def fit_joint(
    law: JointLaw,
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    *,
    targets: Sequence[str] | None = None,
    pooled: bool = True,
    num_draws: int = 100,
    seed: int = 0,
) -> JointFit:
    """Returns a joint law fitted to every target, with what predictions need.

    Args:
        law: The law.
        runs: The runs table (`mixlaw.observations`), of several sizes.
        observations: The observation table: all steps are fitted.
        targets: Which targets; all by default.
        pooled: Whether exponents are pooled over targets; the law's priors hold them otherwise.
        num_draws: Bootstrap draws.
        seed: Seed of the draws and of the folds.

    Raises:
        TableError: The tables are not what they must be.
        FitError: A target has losses of fewer than four mixtures, or one that is not positive.
    """
    table = joint_table(runs, observations, targets=targets)
    return fit_joint_table(law, table, pooled=pooled, num_draws=num_draws, seed=seed)


def fit_joint_table(
    law: JointLaw,
    table: JointTable,
    *,
    pooled: bool = True,
    num_draws: int = 100,
    seed: int = 0,
    left_out: tuple[LeftOut, ...] | None = None,
) -> JointFit:
    """Returns `fit_joint` of a table; `left_out` is the law's `leave_out`, if already known."""
    if num_draws < 2:
        raise FitError(f"a joint fit needs at least two draws, found {num_draws}")
    check_mixtures(table)
    rng = np.random.default_rng(seed)
    with threadpool_limits(limits=1):
        fit = fit_pooled(law, table, pooled=pooled)
        inside_RT = _fold_errors(fit, table, rng)
        left_out = leave_out(law, table, pooled=pooled) if left_out is None else left_out
        draws = _bootstrap(fit, table, num_draws, rng)
    return JointFit(
        law=law,
        table=table,
        pooled=fit,
        draws=draws,
        new_error_T=tuple(np.abs(column[~np.isnan(column)]) for column in inside_RT.T),
        left_out=left_out,
        errors=learn_errors(left_out, inside_RT, table, fit.scale_T),
        memory=mixture_memory(fit, table),
    )


def _fold_errors(
    fit: PooledFit, table: JointTable, rng: np.random.Generator
) -> Float[np.ndarray, "R T"]:
    """Returns log predicted - log observed of every row, by fits without its mixture."""
    group_R = group_index(table.mixture_ids)
    fold_R = rng.permutation(int(group_R.max()) + 1)[group_R] % NUM_FOLDS
    error_RT = np.full(table.y_RT.shape, np.nan)
    for fold in range(NUM_FOLDS):
        rest = fit_pooled(fit.law, table.select(fold_R != fold), start=fit)
        left_R = fold_R == fold
        error_RT[left_R] = np.log(rest.predict(table.x_RX[left_R])) - np.log(table.y_RT[left_R])
    return error_RT


def _bootstrap(
    fit: PooledFit, table: JointTable, num_draws: int, rng: np.random.Generator
) -> tuple[PooledFit, ...]:
    # Bayesian bootstrap: every mixture keeps some weight, its runs share it.
    group_R = group_index(table.mixture_ids)
    weight_BG = rng.exponential(size=(num_draws, int(group_R.max()) + 1))
    run_R = run_weights(table.run_ids)
    return tuple(
        fit_pooled(fit.law, table, start=fit, weight_R=weight_G[group_R] * run_R, rng=rng)
        for weight_G in weight_BG
    )


def _quantile(error_K: Float[np.ndarray, " K"], level: float) -> float:
    return float(np.quantile(error_K, level)) if len(error_K) else float("nan")
