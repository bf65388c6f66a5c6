"""Losses of every fitted mixture at larger sizes and more steps, with draws of a new run's loss.

Shape letters: G mixtures, M training domains, P points (a model size and a step), T targets,
Q new points, B draws, K parameters, X exponents.

Each target has a mixed model (`mixlaw.fit.mixed`) of its own; the exponents are shared, the median
of those that the targets want, since a single target hardly identifies them. Runs of another study
that went further can calibrate them. What the model gets wrong beyond the runs is learned from
holding out sizes and steps (`mixlaw.fit.rolling`) and added to every draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from mixlaw.errors import FitError
from mixlaw.fit.mixed import MixedModel, Prior
from mixlaw.fit.rolling import Excess, learn_excess
from mixlaw.fit.scaling_prior import build_prior, study_prior
from mixlaw.fit.scaling_table import ScalingTable, build_table
from mixlaw.fit.surface import EXPONENTS, NUM_EXPONENTS, PARAMETERS, Points, Reference

FAR_OFF = 6.0
"""A loss further than this many usual residuals from its mixture's surface is left out."""
ODD_ROUNDS = 2
"""Rounds of leaving out; each refits the rest."""
LEAST_RESIDUAL = 1e-5
"""Floor of the usual residual, as a share of the loss: rounding is not odd."""
DRAWS_PER_EXPONENT = 8
"""Draws of the losses for each draw of the exponents and variances."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScalingFit:
    """Mixed models of the targets, and what extrapolation adds to their errors."""

    table: ScalingTable
    models: tuple[MixedModel, ...]
    """One per target."""
    exponent_X: Float[np.ndarray, " X"]
    """The exponents, in the order of `surface.EXPONENTS`."""
    exponent_covariance_XX: Float[np.ndarray, "X X"]
    excess: Excess
    num_draws: int
    seed: int
    notes: tuple[str, ...]

    @property
    def mixture_ids(self) -> tuple[str, ...]:
        """The fitted mixtures, in the order of all results."""
        return self.table.mixture_ids

    @property
    def domains(self) -> tuple[str, ...]:
        """The training domains."""
        return self.table.domains

    @property
    def proportions(self) -> Float[np.ndarray, "G M"]:
        """Token shares of the fitted mixtures."""
        return self.table.r_GM

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets, in the order of all results."""
        return self.table.targets

    def losses(
        self, params: float | int, step: float | int, *, params_total: float | int | None = None
    ) -> Float[np.ndarray, "G T"]:
        """Returns the expected losses of every fitted mixture.

        Args:
            params: Parameters without embeddings, as in the runs table; total ones where the runs
                have no others.
            step: Training step, in the runs' tokens per step.
            params_total: With embeddings; by default the embeddings follow those of the runs.
        """
        return self.predict([params], [step], params_total=[params_total])[0]

    def draws(
        self, params: float | int, step: float | int, *, params_total: float | int | None = None
    ) -> Float[np.ndarray, "B G T"]:
        """Returns draws of one new run's losses; the arguments are those of `losses`.

        A draw is joint over mixtures, so that differences have intervals of their own. Where the
        mixture has a run of that size, it is this run that goes on. Targets share the exponents
        and the error of extrapolation, and are independent otherwise: give a weighted loss as a
        target of its own.
        """
        return self.draw([params], [step], params_total=[params_total])[:, 0]

    def predict(
        self,
        params: Sequence[float | int],
        step: Sequence[float | int],
        *,
        params_total: Sequence[float | int | None] | None = None,
    ) -> Float[np.ndarray, "Q G T"]:
        """Returns the expected losses at several points at once."""
        points = self.table.locate(params, step, params_total or [None] * len(params))
        with threadpool_limits(limits=1):
            return np.stack([model.predict(points).T for model in self.models], axis=-1)

    def draw(
        self,
        params: Sequence[float | int],
        step: Sequence[float | int],
        *,
        params_total: Sequence[float | int | None] | None = None,
    ) -> Float[np.ndarray, "B Q G T"]:
        """Returns draws at several points, joint over points too."""
        points = self.table.locate(params, step, params_total or [None] * len(params))
        rng = np.random.default_rng(self.seed)
        outer = -(-self.num_draws // DRAWS_PER_EXPONENT)
        shift_UX = rng.standard_normal((outer, NUM_EXPONENTS)) @ _factor(
            self.exponent_covariance_XX
        )
        drawn = np.empty(
            (outer * DRAWS_PER_EXPONENT, len(points), len(self.mixture_ids), len(self.targets))
        )
        beyond_BQGS = self.excess.draw(points, len(self.mixture_ids), num=len(drawn), rng=rng)
        with threadpool_limits(limits=1):
            for t, model in enumerate(self.models):
                shift_UK = rng.standard_normal((outer, len(PARAMETERS))) @ _factor(
                    _without_exponents(model.covariance_KK)
                )
                shift_UK[:, :NUM_EXPONENTS] += shift_UX
                for u, shift_K in enumerate(shift_UK):
                    block = slice(u * DRAWS_PER_EXPONENT, (u + 1) * DRAWS_PER_EXPONENT)
                    loss_BGQ = model.draw(
                        points, model.theta_K + shift_K, num=DRAWS_PER_EXPONENT, rng=rng
                    )
                    drawn[block, ..., t] = loss_BGQ.transpose(0, 2, 1)
                drawn[..., t] += beyond_BQGS @ self.excess.slopes_TS[t]
        return drawn[: self.num_draws]

    def report(self) -> str:
        """Returns a plain-text account: exponents, errors, and how far they can be trusted."""
        table = self.table
        sizes, steps = np.unique(table.points.size_P), np.unique(table.points.step_P)
        lines = [
            f"{len(self.mixture_ids)} mixtures, {len(sizes)} sizes from {sizes[0]:.4g} to"
            f" {sizes[-1]:.4g} parameters, steps {steps[0]:g} to {steps[-1]:g}",
            *self.notes,
        ]
        sd_X = np.sqrt(np.diag(self.exponent_covariance_XX))
        lines += [
            _describe_exponent(name, float(value), float(sd))
            for name, value, sd in zip(EXPONENTS, self.exponent_X, sd_X, strict=True)
        ]
        lines.append(self.excess.sentence())
        stuck = [t for t, m in zip(self.targets, self.models, strict=True) if not m.converged]
        if stuck:
            lines.append(f"did not converge: {', '.join(stuck)}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.report()


def fit_scaling(
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    *,
    targets: Sequence[str] | None = None,
    calibration: tuple[pl.DataFrame, pl.DataFrame] | None = None,
    first_step: float | int = 0,
    warmup_steps: float | int = 0,
    final_rate: float = 0.1,
    num_draws: int = 200,
    seed: int = 0,
) -> ScalingFit:
    """Returns a fit that predicts every mixture's losses at other sizes and steps.

    Args:
        runs: The runs table; those with the role design or imported are fitted.
        observations: The observation table.
        targets: Which targets, all by default. They share their exponents.
        calibration: Runs and observations of another study with the same recipe, best with longer
            runs; only what they say about the exponents is used.
        first_step: Losses before this step are left out: early steps follow another law.
        warmup_steps: Steps of warm-up, where the runs table says that the schedule is a cosine.
        final_rate: Where that cosine ends, as a share of its peak.
        num_draws: Draws that `ScalingFit.draws` returns.
        seed: Seed of the draws.

    Raises:
        TableError: The tables are not what they must be.
        FitError: Fewer than three mixtures, one size and one step, or runs that can't be compared.
    """
    if num_draws < 1:
        raise FitError(f"at least one draw is needed, found {num_draws}")
    tables = [
        build_table(
            *pair,
            targets=targets,
            first_step=float(first_step),
            warmup_steps=float(warmup_steps),
            final_rate=final_rate,
        )
        for pair in ((runs, observations), calibration)
        if pair is not None
    ]
    table, *others = tables
    reference = Reference.of(table.points)
    if others and (others[0].schedule.steps is None) != (table.schedule.steps is None):
        raise FitError(
            "the calibration must have the recipe of the runs, but only one of them has a known"
            " schedule",
            do="give both a schedule and its steps, or neither",
        )
    with threadpool_limits(limits=1):
        study = (
            study_prior(*_shared_exponents(_fit_targets(others[0], reference, None)))
            if others
            else None
        )
        models = _fit_targets(table, reference, study)
        exponent_X, covariance_XX = _shared_exponents(models)
        if len(models) > 1:
            models = [_hold(model, exponent_X).fit(model.theta_K) for model in models]
        excess = learn_excess(
            table.points,
            table.y_GPT,
            tuple(models),
            fit=lambda points, y_GP: _model(points, y_GP, table, reference, study).fit(),
            seed=seed,
        )
    return ScalingFit(
        table=table,
        models=tuple(models),
        exponent_X=exponent_X,
        exponent_covariance_XX=covariance_XX,
        excess=excess,
        num_draws=num_draws,
        seed=seed,
        notes=(
            *table.notes,
            *_describe_left_out(table, models),
            *(_describe_calibration(other) for other in others),
        ),
    )


def _fit_targets(
    table: ScalingTable, reference: Reference, study: Prior | None
) -> list[MixedModel]:
    """Returns a model of each target, with the exponents that it alone wants."""
    return [
        _leave_out_odd(_model(table.points, table.y_GPT[..., t], table, reference, study).fit())
        for t in range(len(table.targets))
    ]


def _shared_exponents(
    models: Sequence[MixedModel],
) -> tuple[Float[np.ndarray, " X"], Float[np.ndarray, "X X"]]:
    """Returns exponents for all targets, and how sure they are."""
    # The median: a target with a bump in its curve wants an absurd exponent, and is sure of it.
    exponent_X = np.median([model.theta_K[:NUM_EXPONENTS] for model in models], axis=0)
    # Targets see the same runs: their errors don't average out.
    covariances = [model.covariance_KK[:NUM_EXPONENTS, :NUM_EXPONENTS] for model in models]
    return exponent_X, np.mean(covariances, axis=0)


def _leave_out_odd(model: MixedModel) -> MixedModel:
    """Returns the fit without losses that are far off: they would pass for noise everywhere."""
    for _ in range(ODD_ROUNDS):
        residual_GP = np.nan_to_num(np.abs(model.predict(model.points) - model.loss_GP))
        # 1.4826: a normal's standard deviation in median absolute deviations
        usual = 1.4826 * float(np.median(residual_GP[np.isfinite(model.loss_GP)]))
        limit = FAR_OFF * max(usual, LEAST_RESIDUAL * model.level)
        # The furthest drag others along: those get another chance without them.
        odd_GP = residual_GP > max(limit, residual_GP.max() / 2)
        if not odd_GP.any():
            break
        loss_GP = np.where(odd_GP, np.nan, model.loss_GP)
        rest = MixedModel(model.points, loss_GP, reference=model.reference, prior=model.prior)
        model = rest.fit(model.theta_K)
    return model


def _hold(model: MixedModel, exponent_X: np.ndarray) -> MixedModel:
    """Returns the model with given exponents, and only its variances to fit."""
    mean_K = model.prior.mean_K.copy()
    mean_K[:NUM_EXPONENTS] = exponent_X
    prior = Prior(mean_K=mean_K, covariance_KK=_without_exponents(model.prior.covariance_KK))
    return MixedModel(model.points, model.loss_GP, reference=model.reference, prior=prior)


def _model(
    points: Points,
    y_GP: Float[np.ndarray, "G P"],
    table: ScalingTable,
    reference: Reference,
    study: Prior | None,
) -> MixedModel:
    scheduled = table.schedule.steps is not None
    prior = build_prior(float(np.nanmean(y_GP)), scheduled=scheduled, study=study)
    return MixedModel(points, y_GP, reference=reference, prior=prior)


def _describe_exponent(name: str, value: float, sd: float) -> str:
    ends = value, value - 1.645 * sd, value + 1.645 * sd
    if name.startswith("log_"):
        name, ends = name.removeprefix("log_"), tuple(np.exp(ends))
    sure = "held" if sd == 0 else f"90% interval {ends[1]:.3f} to {ends[2]:.3f}"
    return f"{name} = {ends[0]:.3f}, {sure}"


def _describe_left_out(table: ScalingTable, models: Sequence[MixedModel]) -> list[str]:
    known = int(np.isfinite(table.y_GPT).sum())
    odd = known - sum(int(np.isfinite(model.loss_GP).sum()) for model in models)
    return [f"{odd} of {known} losses lie far off and are left out"] if odd else []


def _describe_calibration(table: ScalingTable) -> str:
    return (
        f"the exponents lean on {len(table.mixture_ids)} mixtures of another study, to"
        f" step {table.points.step_P.max():g}"
    )


def _without_exponents(covariance_KK: np.ndarray) -> np.ndarray:
    held_KK = covariance_KK.copy()
    held_KK[:NUM_EXPONENTS] = held_KK[:, :NUM_EXPONENTS] = 0.0
    return held_KK


def _factor(covariance: np.ndarray) -> np.ndarray:
    """Returns the factor that gives standard normal rows this covariance, singular or not."""
    value, vector = np.linalg.eigh(covariance)
    return (vector * np.sqrt(np.maximum(value, 0.0))).T
