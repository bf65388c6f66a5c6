"""Losses and task errors of larger and longer runs from small ones, on Gadre et al.'s models.

    python benchmarks/overtraining.py --fit ../shared/data/overtraining [--predict DIR] [--json]

`gadre` is the paper's own configuration: five models for the loss, one more for the error.
`selected` is mixlaw's default: its form, its losses and its intervals are learned from hold-outs
inside the fitted models. `mean` predicts the mean of the fitted models. Without --predict the
largest models are held out: the fitted ones have 12, 25, 50 and 100 times less compute, at most. A
task error is predicted from predicted losses, and with the target `measured loss` from measured
ones.
"""

from records import Records, benchmark_arguments

# isort: split
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mixlaw.errors import FitError
from mixlaw.fit.error import (
    ErrorFit,
    SetsOut,
    error_inflation,
    fit_error,
    leave_sets_out,
    predict_error,
)
from mixlaw.fit.extrapolation import choose_form, learn_growth, rolling_holdouts
from mixlaw.fit.overtraining import FORMS, ScaledRuns, fit_overtraining
from mixlaw.fit.power import fit_power, profile_interval
from mixlaw.laws.power import OVERTRAINING_LAW, paper_to_released, to_paper
from overtraining_models import Models, read_both

LEVEL = 0.9
NORMAL = 1.645
"""Standard deviations that a normal interval has at that level, to either side."""
SHRINKAGE = (12, 25, 50, 100)
"""Without --predict: how much less compute than the largest model the fitted ones may have."""
FAR = 5.0
"""And how much more than those the held-out ones need."""
LEAST_MULTIPLIER = 19.0
"""Tokens per parameter of a held-out model: shorter runs are no one's target."""
PAPER_LOSS = "c4_val"
"""The loss from which the paper predicts errors."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Losses (targets x models) with their limits, where there are any."""

    value_TR: np.ndarray
    low_TR: np.ndarray
    high_TR: np.ndarray
    name: str
    num_fitted: int


# Losses.


def five_points(runs: ScaledRuns, *, more: int = 0) -> np.ndarray:
    """Returns which runs the paper fits: the four smallest at M = 20, the smallest at M = 320."""
    standard_R = np.isclose(runs.multiplier_R, 20, rtol=0.02)
    sizes = np.sort(runs.params_R[standard_R])[: 4 + more]
    smallest_R = runs.params_R == runs.params_R.min()
    return (standard_R & np.isin(runs.params_R, sizes)) | (
        smallest_R & np.isclose(runs.multiplier_R, 320, rtol=0.02)
    )


def predict_gadre(fitted: Models, held: ScaledRuns) -> Predicted:
    """Returns the paper's predictions: plain least squares on five points, without intervals."""
    part = fitted.runs.take(five_points(fitted.runs))
    fit = fit_power(OVERTRAINING_LAW, part.x_RK, part.y_TR)
    value_TR = fit.predict(held.x_RK)
    nothing_TR = np.full_like(value_TR, np.nan)
    return Predicted(
        value_TR=value_TR, low_TR=nothing_TR, high_TR=nothing_TR, name="gadre",
        num_fitted=len(part.params_R),
    )  # fmt: skip


def predict_mean(fitted: Models, held: ScaledRuns) -> Predicted:
    """Returns the mean loss of the fitted models."""
    shape = (len(fitted.runs.targets), len(held.params_R))
    value_TR = np.broadcast_to(fitted.runs.y_TR.mean(axis=1, keepdims=True), shape)
    nothing_TR = np.full(shape, np.nan)
    return Predicted(
        value_TR=value_TR, low_TR=nothing_TR, high_TR=nothing_TR, name="mean",
        num_fitted=len(fitted.names),
    )  # fmt: skip


def predict_selected(
    fitted: Mapping[str, Models], held: Mapping[str, Models]
) -> dict[str, Predicted]:
    """Returns mixlaw's predictions, the form and the intervals learned inside the fitted models."""
    held_out = {form: {} for form in FORMS}
    for form in FORMS:
        for name, models in fitted.items():
            try:
                held_out[form][name] = rolling_holdouts(models.runs, form=form)
            except FitError as error:
                print(f"{name}: {error}", file=sys.stderr)
    form = choose_form({form: list(by_set.values()) for form, by_set in held_out.items()})
    num_targets = len(next(iter(fitted.values())).runs.targets)
    growth = learn_growth(held_out[form], num_targets=num_targets, level=LEVEL)
    predicted: dict[str, Predicted] = {}
    for name, models in held.items():
        runs = models.runs
        fit = fit_overtraining(fitted[name].runs, form=form)
        value_TR = fit.predict(runs.params_R, runs.tokens_R, runs.campaign_R)
        distance_R = fit.distance(runs.params_R, runs.tokens_R)
        half_TR = growth.get(name, growth[""]).half_width(distance_R)
        half_TR = np.hypot(half_TR, NORMAL * fit.campaign_spread(runs.campaign_R))
        predicted[name] = Predicted(
            value_TR=value_TR,
            low_TR=value_TR * np.exp(-half_TR),
            high_TR=value_TR * np.exp(half_TR),
            name=f"{form}-exponents",
            num_fitted=len(fit.runs.params_R),
        )
    return predicted


# Errors.


def stack_errors(
    fitted: Mapping[str, Models], case: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Returns losses, errors, compute and training sets of all evaluated models."""
    loss_RF = np.concatenate([models.runs.y_TR.T for models in fitted.values()])
    error_R = np.concatenate([models.error_CR[case] for models in fitted.values()])
    flops_R = np.concatenate([models.runs.flops_R for models in fitted.values()])
    sets = np.array([name for name, models in fitted.items() for _ in models.names])
    seen_R = np.isfinite(error_R) & np.isfinite(loss_RF).all(axis=1)
    return loss_RF[seen_R], error_R[seen_R], flops_R[seen_R], sets[seen_R].tolist()


def choose_loss(fitted: Mapping[str, Models], case: str) -> int:
    """Returns the loss from which errors on a training set left out are predicted best."""
    loss_RF, error_R, _, sets = stack_errors(fitted, case)
    if len(set(sets)) < 2:
        return next(iter(fitted.values())).runs.targets.index(PAPER_LOSS)
    scores = [
        leave_sets_out(loss_RF[:, [f]], error_R, sets, with_in_set=False).left_out_S.mean()
        for f in range(loss_RF.shape[1])
    ]
    return int(np.argmin(scores))


def fit_paper_errors(models: Models, case: str) -> ErrorFit:
    """Returns the paper's error law: six models of one training set, from one loss."""
    part = models.take(five_points(models.runs, more=1))
    loss = models.runs.targets.index(PAPER_LOSS)
    seen_R = np.isfinite(part.error_CR[case])
    return fit_error(part.runs.y_TR[[loss]].T[seen_R], part.error_CR[case][seen_R])


def predict_errors(
    fitted: Mapping[str, Models], held: Models, name: str, case: str, losses: Predicted
) -> dict[tuple[str, str], Predicted]:
    """Returns errors by law and by what they are predicted from."""
    targets = held.runs.targets
    chosen = choose_loss(fitted, case)
    loss_RF, error_R, flops_R, _ = stack_errors(fitted, case)
    ours = fit_error(loss_RF[:, [chosen]], error_R)
    inflation = error_inflation(loss_RF[:, [chosen]], error_R, flops_R, level=LEVEL)
    found: dict[tuple[str, str], Predicted] = {}
    half_R1 = (losses.high_TR - losses.low_TR)[[chosen]].T / 2
    for source, value_TR, half in (
        ("predicted loss", losses.value_TR, half_R1),
        ("measured loss", held.runs.y_TR, None),
    ):
        limits = predict_error(
            ours, value_TR[[chosen]].T, loss_half_width_RF=half, inflation=inflation, level=LEVEL
        )
        found["selected", source] = Predicted(
            value_TR=limits[0][None], low_TR=limits[1][None], high_TR=limits[2][None],
            name=f"error-law[{targets[chosen]}]", num_fitted=len(error_R),
        )  # fmt: skip
    try:
        paper = fit_paper_errors(fitted[name], case)
        paper_losses = predict_gadre(fitted[name], held.runs)
    except FitError as error:
        print(f"{name}, gadre: {error}", file=sys.stderr)
        return found
    row = targets.index(PAPER_LOSS)
    for source, value_TR in (
        ("predicted loss", paper_losses.value_TR), ("measured loss", held.runs.y_TR)
    ):  # fmt: skip
        value_1R = paper.predict(value_TR[[row]].T)[None]
        nothing_1R = np.full_like(value_1R, np.nan)
        found["gadre", source] = Predicted(
            value_TR=value_1R, low_TR=nothing_1R, high_TR=nothing_1R,
            name=f"error-law[{PAPER_LOSS}]", num_fitted=len(paper.error_R),
        )  # fmt: skip
    return found


# Scores.


@dataclass(kw_only=True)
class Tally:
    """Collects predictions as records, and their errors for the sums over splits."""

    records: Records
    num_splits: int
    misses: dict[tuple[str, str, str | None], dict[str, list[np.ndarray]]] = field(
        default_factory=dict
    )
    """By case, law and target, by split: relative error, error, inside, width."""

    def add(
        self, case: str, law: str, split: str | None, predicted: Predicted, row: int,
        held: Models, observed_R: np.ndarray, target: str, unit: str,
    ) -> None:  # fmt: skip
        """Adds the predictions of one case on all held-out models that have a value."""
        value_R, low_R, high_R = (
            array[row] for array in (predicted.value_TR, predicted.low_TR, predicted.high_TR)
        )
        seen_R = np.isfinite(observed_R) & np.isfinite(value_R)
        for i in np.flatnonzero(seen_R):
            self.records.add(
                case=case, law=law, law_name=predicted.name, metric="prediction", value=value_R[i],
                low=low_R[i], high=high_R[i], observed=observed_R[i], unit=unit,
                n=predicted.num_fitted, params=held.runs.params_R[i], tokens=held.runs.tokens_R[i],
                target=target, mixture=held.names[i], split=split, num_splits=self.num_splits,
            )  # fmt: skip
        if not seen_R.any():
            return
        error_R = np.abs(value_R - observed_R)
        inside_R = np.where(
            np.isfinite(low_R), (low_R <= observed_R) & (observed_R <= high_R), np.nan
        )
        scores = np.stack([error_R / observed_R, error_R, inside_R, high_R - low_R])[:, seen_R]
        training_set = case.split("/")[1]
        pools = [(case, target)]
        if unit != "error":
            pools += [
                (f"overtraining/{training_set}/mean", "mean"),
                ("overtraining/all/mean", "mean"),
            ]
        for pool, pool_target in pools:
            by_split = self.misses.setdefault((pool, law, pool_target), {})
            by_split.setdefault(split or "all models", []).append(scores)

    def finish(self) -> None:
        """Adds the means by split and over the splits."""
        for (case, law, target), by_split in self.misses.items():
            scores = [np.concatenate(parts, axis=1) for parts in by_split.values()]
            unit = "error" if "/error-" in case else "nats_per_token"
            metrics = (("relative_error", None), ("mae", unit), ("coverage", None), ("width", unit))
            for row, (metric, metric_unit) in enumerate(metrics):
                values = [float(np.mean(part[row])) for part in scores]
                if np.isfinite(values).any():
                    self.records.aggregate(
                        values, case=case, law=law, metric=metric, splits=list(by_split),
                        unit=metric_unit, target=target,
                    )  # fmt: skip


def score_split(
    tally: Tally, fitted: Mapping[str, Models], held: Mapping[str, Models], split: str | None
) -> None:
    """Predicts the held-out models by every law."""
    selected = predict_selected(fitted, held)
    for name, models in held.items():
        losses = {"selected": selected[name], "mean": predict_mean(fitted[name], models.runs)}
        try:
            losses["gadre"] = predict_gadre(fitted[name], models.runs)
        except FitError as error:
            print(f"{name}, gadre: {error}", file=sys.stderr)
        for row, target in enumerate(models.runs.targets):
            case = f"overtraining/{name}/{target}"
            for law, predicted in losses.items():
                tally.add(
                    case, law, split, predicted, row, models, models.runs.y_TR[row], target,
                    "nats_per_token",
                )  # fmt: skip
        for error_case, observed_R in models.error_CR.items():
            case = f"overtraining/{name}/{error_case}"
            found = predict_errors(fitted, models, name, error_case, selected[name])
            for (law, source), predicted in found.items():
                tally.add(case, law, split, predicted, 0, models, observed_R, source, "error")


def add_sets_out(records: Records, fitted: Mapping[str, Models]) -> None:
    """Adds the error laws' mean absolute error on a training set left out, and inside the sets."""
    for case in next(iter(fitted.values())).error_CR:
        targets = next(iter(fitted.values())).runs.targets
        for law, loss in (
            ("gadre", targets.index(PAPER_LOSS)),
            ("selected", choose_loss(fitted, case)),
        ):
            loss_RF, error_R, _, sets = stack_errors(fitted, case)
            if len(set(sets)) < 2:
                continue
            out: SetsOut = leave_sets_out(loss_RF[:, [loss]], error_R, sets)
            for i, name in enumerate(out.names):
                for split, value_S in (("in set", out.in_set_S), ("set left out", out.left_out_S)):
                    records.add(
                        case=f"overtraining/{name}/{case}", law=law, metric="mae", unit="error",
                        law_name=f"error-law[{targets[loss]}]", value=float(value_S[i]),
                        target="measured loss", split=split, n=len(error_R),
                    )  # fmt: skip


def print_paper_fits(fitted: Mapping[str, Models]) -> None:
    """Prints the parameters of the paper's configuration, in both of its forms."""
    for name, models in fitted.items():
        try:
            part = models.runs.take(five_points(models.runs))
            fit = fit_power(OVERTRAINING_LAW, part.x_RK, part.y_TR)
            row = models.runs.targets.index(PAPER_LOSS)
            paper = to_paper(fit.theta_SP[row])
            print(f"{name}, {PAPER_LOSS}: {paper}, {paper_to_released(paper)}", file=sys.stderr)
            for letter in OVERTRAINING_LAW.parameter_names:
                print(f"  {profile_interval(fit, letter, series=row)}", file=sys.stderr)
            for case in models.error_CR:
                print(
                    f"{name}, {case}: {fit_paper_errors(models, case).describe()}", file=sys.stderr
                )
        except FitError as error:
            print(f"{name}, gadre: {error}", file=sys.stderr)


def hold_out(
    models: Mapping[str, Models], shrinkage: float
) -> tuple[dict[str, Models], dict[str, Models]]:
    """Returns the models with less compute, and those with much more of a known campaign."""
    fitted: dict[str, Models] = {}
    held: dict[str, Models] = {}
    for name, part in models.items():
        runs = part.runs
        cut = runs.flops_R.max() / shrinkage
        fitted[name] = part.take(runs.flops_R <= cut)
        known_R = np.isin(runs.campaign_R, [0, *fitted[name].runs.campaign_R])
        far_R = (runs.flops_R >= FAR * cut) & (runs.multiplier_R >= LEAST_MULTIPLIER) & known_R
        if far_R.any():
            held[name] = part.take(far_R)
    return fitted, held


def main() -> None:
    """Scores every law on the models to predict, or on hold-outs of the fitted ones."""
    options = benchmark_arguments(__doc__, source="overtraining")
    records = Records("overtraining")
    fitted, held = read_both(options.fit, options.predict)
    print_paper_fits(fitted)
    if options.predict is None:
        tally = Tally(records=records, num_splits=len(SHRINKAGE))
        for shrinkage in SHRINKAGE:
            score_split(tally, *hold_out(fitted, shrinkage), f"compute / {shrinkage}")
    else:
        tally = Tally(records=records, num_splits=1)
        for name in held.keys() - fitted.keys():
            print(f"{name}: no fitted model has this training set, not predicted", file=sys.stderr)
        score_split(tally, fitted, {n: m for n, m in held.items() if n in fitted}, None)
    tally.finish()
    add_sets_out(records, fitted)
    records.finish(options.json)


if __name__ == "__main__":
    main()
