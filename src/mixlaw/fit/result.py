"""What a fit returns: parameters, how well they predict what they did not see, how sure they are.

Shape letters: R runs, M training domains, T targets, P parameters, B bootstrap draws, N runs that
repeat a mixture, K linear combinations of targets.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mixlaw.laws.base import MixingLaw
from mixlaw.observations import LossTable

CONVERGED = "converged"
"""The status of a fit of which there is nothing else to say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetStatus:
    """How the fit of one target went."""

    target: str
    converged: bool
    sentence: str
    """What happened, in words."""
    at_bound: tuple[str, ...]
    """Parameters that sit at a bound: these could not be estimated."""
    num_starts: int
    starts_agreeing: int
    """Starts that ended at the best objective."""
    strength: float = 1.0
    """Strength of the shrinkage that cross-validation chose; 1 is the law's prior."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FitResult:
    """A mixing law fitted to every target, at the size and tokens of its runs."""

    law: MixingLaw
    table: LossTable
    """What it was fitted to."""
    theta_TP: Float[np.ndarray, "T P"]
    """Parameters."""
    theta_loo_RTP: Float[np.ndarray, "R T P"]
    """Parameters without run r's mixture, all its replicates left out."""
    theta_draws_BTP: Float[np.ndarray, "B T P"]
    """Parameters of the Bayesian bootstrap over mixtures."""
    scale_T: Float[np.ndarray, " T"]
    """Robust standard deviation of the residuals."""
    replicate_NT: Float[np.ndarray, "N T"]
    """Losses of runs that repeat a mixture with fresh seeds, less their mixture's mean."""
    replicate_freedom: int
    """Degrees of freedom of these: runs less mixtures. 0: the noise between seeds is not known."""
    level_shift_T: Float[np.ndarray, " T"]
    """What a fresh seed is expected to add to the losses of the shared one; 0: unknown."""
    seed_factor: float
    """Variance that a fresh seed adds to a prediction, in units of the variance between seeds; 0:
    the residuals hold it."""
    status: tuple[TargetStatus, ...]
    notes: tuple[str, ...] = ()
    """Which runs were left out, in sentences."""
    level_draws_BT: Float[np.ndarray, "B T"] | None = None
    """Draws of an error that all mixtures share, beyond the runs' scale; None: there is none."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Training domains, in the order of the proportions."""
        return self.table.domains

    @property
    def targets(self) -> tuple[str, ...]:
        """Targets, in the order of the losses."""
        return self.table.targets

    @property
    def num_mixtures(self) -> int:
        """Different mixtures that it was fitted to."""
        return len(set(self.table.mixture_ids))

    @property
    def weight_R(self) -> Float[np.ndarray, " R"]:
        """Weights of runs by which every mixture counts once, however often it was run; sum 1."""
        counts = Counter(self.table.mixture_ids)
        return np.array([1.0 / counts[i] for i in self.table.mixture_ids]) / len(counts)

    def losses(self, r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, "R T"]:
        """Returns the expected losses of mixtures, at a fresh seed."""
        return evaluate_law(self.law, r_RM, self.theta_TP) + self.level_shift_T

    def draw_losses(self, r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, "B R T"]:
        """Returns the losses of mixtures under each bootstrap draw."""
        return evaluate_law(self.law, r_RM, self.theta_draws_BTP) + self.level_shift_T

    def left_out_losses(self, r_RM: Float[np.ndarray, "R M"]) -> Float[np.ndarray, "L R T"]:
        """Returns the losses of mixtures under each leave-one-out fit."""
        return evaluate_law(self.law, r_RM, self.theta_loo_RTP) + self.level_shift_T

    @property
    def left_out_residual_RT(self) -> Float[np.ndarray, "R T"]:
        """Observed loss less the prediction of the fit that did not see its mixture."""
        predicted = [
            evaluate_law(self.law, self.table.r_RM[i : i + 1], theta_TP)[0]
            for i, theta_TP in enumerate(self.theta_loo_RTP)
        ]
        return self.table.y_RT - np.stack(predicted)

    @property
    def mean_residual_RT(self) -> Float[np.ndarray, "R T"]:
        """Observed loss less the mean of all other mixtures: the simplest prediction there is."""
        y_RT, ids = self.table.y_RT, np.array(self.table.mixture_ids)
        others = [np.nanmean(y_RT[ids != mixture_id], axis=0) for mixture_id in ids]
        return y_RT - np.stack(others)

    def seed_sd(self, weight_KT: Float[np.ndarray, "K T"]) -> Float[np.ndarray, " K"]:
        """Returns the standard deviation between seeds of combined losses; NaN: not known."""
        if self.replicate_freedom == 0:
            return np.full(len(weight_KT), np.nan)
        combined_NK = self.replicate_NT @ weight_KT.T
        return np.sqrt(np.sum(combined_NK**2, axis=0) / self.replicate_freedom)

    def report(self) -> str:
        """Returns a plain-text account: how well each target is predicted, and what is wrong."""
        error_T = np.nanmean(np.abs(self.left_out_residual_RT), axis=0)
        mean_T = np.nanmean(np.abs(self.mean_residual_RT), axis=0)
        seed_T = self.seed_sd(np.eye(len(self.targets)))
        width = max(6, *(len(target) for target in self.targets))
        lines = [
            f"law {self.law.name}: {self.law.describe()}",
            f"{self.num_mixtures} mixtures of {len(self.domains)} domains, {self._when()},"
            f" {self.table.unit}",
            *self.notes,
            f"{'target':{width}}  {'left out':>9}  {'mean':>7}  {'seeds':>7}  status",
        ]
        for i, status in enumerate(self.status):
            seeds = "unknown" if math.isnan(seed_T[i]) else f"{seed_T[i]:.4f}"
            lines.append(
                f"{status.target:{width}}  {error_T[i]:9.4f}  {mean_T[i]:7.4f}  {seeds:>7}"
                f"  {status.sentence}"
            )
        lines.append(
            "left out: mean absolute error on mixtures that the fit did not see; mean: the same for"
            " predicting the mean; seeds: standard deviation between runs of one mixture"
        )
        return "\n".join(lines)

    def _when(self) -> str:
        step = "at the end of each run" if self.table.step is None else f"step {self.table.step}"
        tokens = self.table.tokens
        return step if tokens is None else f"{step} ({tokens:.4g} tokens)"

    def to_json(self) -> dict[str, Any]:
        """Returns the fit as plain values, without the observations."""
        names = self.law.parameter_names(self.domains)
        return {
            "law": self.law.name,
            "formula": self.law.describe(),
            "unit": self.table.unit,
            "step": self.table.step,
            "tokens": self.table.tokens,
            "domains": list(self.domains),
            "runs": list(self.table.run_ids),
            "notes": list(self.notes),
            "targets": {
                status.target: {
                    "parameters": dict(zip(names, map(float, self.theta_TP[i]), strict=True)),
                    "level_shift": float(self.level_shift_T[i]),
                    "residual_scale": float(self.scale_T[i]),
                    "left_out_mae": _number(np.nanmean(np.abs(self.left_out_residual_RT[:, i]))),
                    "mean_mae": _number(np.nanmean(np.abs(self.mean_residual_RT[:, i]))),
                    "seed_sd": _number(self.seed_sd(np.eye(len(self.targets)))[i]),
                    "shrinkage": status.strength,
                    "converged": status.converged,
                    "status": status.sentence,
                    "at_bound": list(status.at_bound),
                    "num_starts": status.num_starts,
                    "starts_agreeing": status.starts_agreeing,
                }
                for i, status in enumerate(self.status)
            },
        }

    def __str__(self) -> str:
        return self.report()


def evaluate_law(
    law: MixingLaw, r_RM: Float[np.ndarray, "R M"], theta_BTP: Float[np.ndarray, "*B T P"]
) -> Float[np.ndarray, "*B R T"]:
    """Returns the losses of mixtures for every target."""
    return np.swapaxes(law.predict(r_RM, theta_BTP), -1, -2)


def _number(value: float | np.floating[Any]) -> float | None:
    return None if math.isnan(value) else float(f"{value:.6g}")
