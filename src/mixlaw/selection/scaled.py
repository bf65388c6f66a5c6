"""Losses of any mixture at a size and step beyond the runs: a scaling fit, then a mixing law.

Shape letters: G fitted mixtures, X mixtures that are predicted, M training domains, T targets, B
draws.

A fitted mixture has its own curve in size and steps (`mixlaw.fit.scaling`). A new one is predicted
from the losses that all fitted ones are expected to have there, by the learners that do that best
when mixtures are left out. Its draws are those of the fitted mixtures, what is common to them and
what is one mixture's own, and the error of left-out mixtures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mixlaw.fit.learners import Learner
from mixlaw.fit.scaling import ScalingFit
from mixlaw.predict import conformal_halfwidth
from mixlaw.selection.choice import LearnerChoice, choose_learner

HALF_WIDTH = 1.645
"""Of a normal's 90% interval, in standard deviations."""
LEVEL = 0.9


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScaledPrediction:
    """Losses of mixtures at one size and step."""

    targets: tuple[str, ...]
    value_XT: Float[np.ndarray, "X T"]
    draws_BXT: Float[np.ndarray, "B X T"]
    """Losses of one new run of each mixture; a draw is joint over mixtures."""
    choice: LearnerChoice | None
    """How new mixtures were predicted; None: there was none."""
    residual_GT: Float[np.ndarray, "G T"] | None
    """Errors of that on fitted mixtures that were left out."""

    def interval(
        self, level: float = LEVEL
    ) -> tuple[Float[np.ndarray, "X T"], Float[np.ndarray, "X T"]]:
        """Returns the limits of one new run of each mixture, around the expected loss."""
        low_XT, high_XT = np.quantile(self.draws_BXT, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return np.minimum(low_XT, self.value_XT), np.maximum(high_XT, self.value_XT)


def predict_scaled(
    fit: ScalingFit,
    r_XM: Float[np.ndarray, "X M"],
    mixture_ids: Sequence[str],
    *,
    params: float,
    step: float,
    params_total: float | None = None,
    learners: Sequence[Learner],
    weights: Mapping[str, float] | None = None,
    whole: ScalingFit | None = None,
    like: ScaledPrediction | None = None,
    seed: int = 0,
) -> ScaledPrediction:
    """Returns losses of mixtures at a size and step, whether they were fitted or not.

    A weighted loss is predicted better, and its interval far better, from its own curves than from
    the sum of its targets' (whose errors go together), but a new mixture better from the targets:
    `whole` has the curves, the targets the differences between mixtures.

    Args:
        fit: The scaling fit.
        r_XM: Token shares of the mixtures, domains in the fit's order.
        mixture_ids: Their ids; one that the fit knows is predicted by its own curve.
        params: Model size, as in the fit's runs.
        step: Training step.
        params_total: Parameters with embeddings; by default they follow those of the runs.
        learners: Who takes part in predicting new mixtures.
        weights: Weights of targets by which these learners are chosen; all alike, by default.
        whole: The scaling fit of the weighted loss, to the same runs: a further, last target.
        like: A prediction of the same fit at another size or step, whose choice is kept.
        seed: Seed of the folds and of the draws.
    """
    fits = (fit,) if whole is None else (fit, whole)
    value_GT, draws_BGT = (
        np.concatenate([at(params, step, params_total=params_total) for at in sides], axis=-1)
        for sides in ([one.losses for one in fits], [one.draws for one in fits])
    )
    targets = tuple(target for one in fits for target in one.targets)
    known = {mixture_id: g for g, mixture_id in enumerate(fit.mixture_ids)}
    index_X = np.array([known.get(mixture_id, -1) for mixture_id in mixture_ids], dtype=np.int64)
    value_XT, draws_BXT = value_GT[index_X], draws_BGT[:, index_X]
    new_X = np.flatnonzero(index_X < 0)
    if not len(new_X):
        return ScaledPrediction(
            targets=targets, value_XT=value_XT, draws_BXT=draws_BXT, choice=None, residual_GT=None
        )
    weight_T = np.array([(weights or {}).get(target, 0.0) for target in fit.targets])
    usable_G = np.isfinite(value_GT).all(axis=1)
    r_GM, value_GT, r_XM = fit.proportions[usable_G], value_GT[usable_G], r_XM[new_X]
    part_GT = value_GT[:, : len(fit.targets)]
    if like is not None and like.choice is not None and like.residual_GT is not None:
        choice, residual_GT = like.choice, like.residual_GT
    else:
        choice = choose_learner(
            r_GM, part_GT, learners=learners, weight_T=None if weights is None else weight_T,
            num_folds=len(r_GM) if len(r_GM) <= 30 else 10, seed=seed,
        )  # fmt: skip
        residual_GT = choice.selected_left_out_RT - part_GT
        if whole is not None:
            residual_GT = np.column_stack([residual_GT, residual_GT @ weight_T])
    new_XT = choice.predict(r_GM, part_GT, r_XM=r_XM)
    if whole is not None:
        apart = float(np.mean(value_GT[:, -1] - part_GT @ weight_T))
        new_XT = np.column_stack([new_XT, new_XT @ weight_T + apart])
    value_XT[new_X] = new_XT
    draws_BXT[:, new_X] = new_XT + _new_mixtures_errors(
        draws_BGT[:, usable_G] - value_GT, residual_GT, r_GM, r_XM, seed=seed
    )
    return ScaledPrediction(
        targets=targets, value_XT=value_XT, draws_BXT=draws_BXT, choice=choice,
        residual_GT=residual_GT,
    )  # fmt: skip


def _new_mixtures_errors(
    error_BGT: Float[np.ndarray, "B G T"],
    residual_GT: Float[np.ndarray, "G T"],
    r_GM: Float[np.ndarray, "G M"],
    r_XM: Float[np.ndarray, "X M"],
    *,
    seed: int,
) -> Float[np.ndarray, "B X T"]:
    """Returns draws of the errors of new mixtures.

    One fitted mixture's errors stand for those that the new one's curve would have; to these comes
    one left-out mixture's residual, whole across targets and with a random sign, scaled to where
    the new one lies.
    """
    rng = np.random.default_rng(seed)
    num_draws, num_fitted = error_BGT.shape[:2]
    chosen_BX: Int[np.ndarray, "B X"] = rng.integers(num_fitted, size=(num_draws, len(r_XM)))
    curve_BXT = error_BGT[np.arange(num_draws)[:, None], chosen_BX]
    half_XT, _ = conformal_halfwidth(
        residual_GT, residual_GT, design_GM=r_GM, r_RM=r_XM, level=LEVEL
    )
    rms_T = np.maximum(np.sqrt(np.mean(residual_GT**2, axis=0)), 1e-12)
    drawn_BX = rng.integers(num_fitted, size=(num_draws, len(r_XM)))
    sign_BX1 = rng.choice([-1.0, 1.0], size=(num_draws, len(r_XM), 1))
    typical_BXT = sign_BX1 * residual_GT[drawn_BX] / rms_T
    return curve_BXT + typical_BXT * half_XT / HALF_WIDTH
