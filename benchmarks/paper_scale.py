"""The part of `paper.py` beyond the runs: larger sizes, more steps, and new mixtures there.

Shape letters: G fitted mixtures, X predicted ones, M training domains, T targets, B draws.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from mixlaw.errors import FitError
from mixlaw.fit.nested import extrapolate_nested, group_targets
from mixlaw.fit.official import fit_restarts
from mixlaw.fit.scaling import ScalingFit, fit_scaling
from mixlaw.importers.published import add_overall
from mixlaw.observations import PROPORTION_PREFIX, proportion_domains
from mixlaw.selection.scaled import predict_scaled
from paper_mixing import CANDIDATES, FEWEST_MIXTURES, SIZES, Record, Study, learners_of, size_name
from records import unseen

FIRST_STEP, LAST_STEP, WARMUP_STEPS = 10_000, 30_000, 2_000
"""Steps that are fitted, as in the paper, and the runs' warm-up."""
NEAR_SIZES = (SIZES["70M"], SIZES["160M"], SIZES["305M"])
CALIBRATION_STEPS = (*range(10_000, 30_000, 4_000), *range(30_000, 101_000, 10_000))
"""Steps of 5Mix's runs that calibrate RedPajama's: neighbours say the same again, and cost most of
the time."""
NUM_FOLDS = 5
NUM_RESTARTS = 3
"""Of the released code's 30 implicit domains; it takes 16."""
OVERALL = "overall"
TOKENS_PER_STEP = 1_048_576


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """What is fitted and what is predicted; bounds are inclusive."""

    name: str
    fit_sizes: tuple[float, ...] | None = None
    fit_last_step: int = LAST_STEP
    sizes: tuple[float, ...] | None = None
    steps: tuple[int, ...] = ()
    """Steps to predict; all from the first one on, by default."""
    long_runs: tuple[float, ...] = ()
    """Sizes whose runs beyond `fit_last_step` are fitted as well."""
    leave_mixtures: bool = False
    """In folds of mixtures, which are then new."""
    laws: tuple[str, ...] = ("selected", "nested", "official")


NEAR = (
    Holdout(name="70M-305M to 410M", fit_sizes=NEAR_SIZES, sizes=(SIZES["410M"],)),
    Holdout(name="10k-20k to 30k", fit_last_step=20_000, steps=(30_000,)),
    Holdout(name="70M+160M to 410M", fit_sizes=NEAR_SIZES[:2], sizes=(SIZES["410M"],)),
    Holdout(
        name="new mixtures, 70M-305M to 410M", fit_sizes=NEAR_SIZES, sizes=(SIZES["410M"],),
        steps=(30_000,), leave_mixtures=True,
    ),
)  # fmt: skip
FAR = (
    Holdout(name="30k to 90k and 100k", steps=(90_000, 100_000)),
    Holdout(
        name="long 160M, 70M to 90k and 100k", steps=(90_000, 100_000),
        sizes=(SIZES["70M"],), long_runs=(SIZES["160M"],), laws=("selected",),
    ),
)  # fmt: skip
HOLDOUTS = {("RedPajama", *(NEAR[i].name,)): ("RedPajama", NEAR[i]) for i in range(len(NEAR))} | {
    ("5Mix", one.name): ("5Mix", one) for one in (*NEAR, *FAR)
}


def holdout_names() -> tuple[tuple[str, str], ...]:
    """Returns the set and the name of every hold-out."""
    return tuple(HOLDOUTS)


def run_holdout(folder: Path, set_name: str, name: str) -> list[Record]:
    """Returns the records of one hold-out."""
    _, holdout = HOLDOUTS[set_name, name]
    study = Study.read(folder, set_name)
    calibration = _calibration(folder, set_name)
    shares: list[Prediction] = []
    for kept in _folds(study, holdout):
        fitted = _cut(study, holdout, kept)
        asked = _asked(study, holdout, kept)
        for law in holdout.laws:
            shares += _predict(law, fitted, asked, calibration)
    return _records(set_name, holdout.name, shares, every_domain=False)


def predict_beyond(fit_folder: Path, predict_folder: Path, set_name: str) -> list[Record]:
    """Returns predictions of unseen losses at sizes and steps where few mixtures were fitted."""
    study = Study.read(fit_folder, set_name)
    other = Study.read(predict_folder, set_name, weights_from=fit_folder)
    new = unseen(study.runs, other.runs)
    rows = _with_size(new.observations, new.runs).filter(pl.col("step") > 0)
    counts = (
        _with_size(study.runs.observations, study.runs.runs)
        .group_by("size", "step")
        .agg(pl.col("run_id").n_unique().alias("mixtures"))
    )
    few = counts.filter(pl.col("mixtures") < FEWEST_MIXTURES)
    rows = pl.concat(
        [rows.join(few, on=["size", "step"], how="semi"),
         rows.join(counts, on=["size", "step"], how="anti")]
    )  # fmt: skip
    if not rows.height:
        return []
    calibration = _calibration(fit_folder, set_name)
    largest = max(SIZES["410M"], 0.0)
    holdout = Holdout(name="prediction", long_runs=tuple(SIZES.values()))
    fitted = _cut(study, replace(holdout, fit_sizes=_sizes_up_to(study, largest)), None)
    asked = Study(replace(new, observations=rows.select(new.observations.columns)), study.weights)
    shares: list[Prediction] = []
    for law in ("selected", "nested", "official"):
        shares += _predict(law, fitted, asked, calibration)
    return _records(set_name, "prediction", shares, every_domain=True)


def _calibration(folder: Path, set_name: str) -> Study | None:
    """Returns 5Mix's runs, whose recipe is RedPajama's; None: there are none, or no need."""
    if set_name != "RedPajama":
        return None
    if not (folder / "5Mix").is_dir():
        print("RedPajama without 5Mix: the steps are not calibrated", file=sys.stderr)
        return None
    return Study.read(folder, "5Mix")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Losses of several runs at one size and step, in the order of `run_ids`."""

    law: str
    law_name: str | None
    params: float
    step: int
    num_fitted: int
    run_ids: tuple[str, ...]
    targets: tuple[str, ...]
    value_XT: np.ndarray
    draws_BXT: np.ndarray | None
    observed_XT: np.ndarray


def _predict(
    law: str, fitted: Study, asked: Study, calibration: Study | None
) -> Iterator[Prediction]:
    assert fitted.weights is not None
    targets = (*fitted.weights, OVERALL)
    runs = fitted.runs.runs
    domains = proportion_domains(runs)
    fits = _fit_scaling(fitted, calibration) if law == "selected" else None
    like = None
    # The embeddings of a new size are left to follow those of the fitted ones: a little better on
    # both sets' 410M than the published number (docs/log.md).
    for params, step, group in _points(asked):
        shares = group.select(PROPORTION_PREFIX + domain for domain in domains).to_numpy()
        ids = group["mixture_id"].to_list()
        observed_XT = _observed(asked, group["run_id"].to_list(), step, targets)
        if fits is not None:
            parts, whole = fits
            found = predict_scaled(
                parts, shares, ids, params=params, step=step,
                learners=learners_of(CANDIDATES), weights=fitted.weights, whole=whole,
                like=like,
            )  # fmt: skip
            law_name = "scaling"
            if found.choice is not None:
                like = found
                law_name = f"scaling, then {found.choice.selected_name}"
            value_XT, draws_BXT = found.value_XT, found.draws_BXT
        else:
            law_name, draws_BXT = None, None
            try:
                value_XT = _nested_values(law, fitted, shares, ids, params, step)
            except FitError as error:  # two sizes are too few for a size law of one's own
                print(f"{law} at {params:.4g}: {error.problem}", file=sys.stderr)
                return
        yield Prediction(
            law=law, law_name=law_name, params=params, step=step, num_fitted=runs.height,
            run_ids=tuple(group["run_id"].to_list()), targets=targets, value_XT=value_XT,
            draws_BXT=draws_BXT, observed_XT=observed_XT,
        )  # fmt: skip


def _fit_scaling(fitted: Study, calibration: Study | None) -> tuple[ScalingFit, ScalingFit]:
    """Returns the fits of the domains' losses and of the overall loss."""
    assert fitted.weights is not None
    other = None
    if calibration is not None:
        losses = add_overall(calibration.runs.observations, fitted.weights)
        losses = losses.filter(pl.col("step").is_in(CALIBRATION_STEPS))
        other = (calibration.runs.runs, losses)
    observations = add_overall(fitted.runs.observations, fitted.weights)
    parts, whole = (
        fit_scaling(
            fitted.runs.runs, observations, targets=list(targets), calibration=other,
            first_step=FIRST_STEP, warmup_steps=WARMUP_STEPS,
        )
        for targets in (tuple(fitted.weights), (OVERALL,))
    )  # fmt: skip
    return parts, whole


def _nested_values(
    law: str,
    fitted: Study,
    shares_XM: np.ndarray,
    ids: Sequence[str],
    params: float,
    step: int,
) -> np.ndarray:
    """Returns what the paper's pipeline predicts, the overall loss last; NaN where it says none."""
    assert fitted.weights is not None
    weight_T = np.array(list(fitted.weights.values()))
    observations = fitted.runs.observations.filter(pl.col("step") >= FIRST_STEP)
    if law == "official":
        observations = group_targets(observations, fitted.weights)
    form = "official" if law == "official" else "nested"
    found = extrapolate_nested(
        fitted.runs.runs, observations, params=params, step=step, form=form,
        targets=None if law == "official" else list(fitted.weights),
    )  # fmt: skip
    known = {mixture_id: g for g, mixture_id in enumerate(found.mixture_ids)}
    index_X = np.array([known.get(mixture_id, -1) for mixture_id in ids])
    value_XT = found.value_GT[index_X].copy()
    usable_G = np.isfinite(found.value_GT).all(axis=1)
    r_GM, value_GT = found.r_GM[usable_G], found.value_GT[usable_G]
    if np.any(index_X < 0):
        new_XM = shares_XM[index_X < 0]
        if law == "official":
            new_XT = fit_restarts(r_GM, value_GT, num_restarts=NUM_RESTARTS).predict(new_XM)
        else:
            new_XT = learners_of(("m4",))[0].predict(r_GM, value_GT, r_XM=new_XM)
        value_XT[index_X < 0] = new_XT
    if law == "official":  # groups of targets, which add up to the overall loss
        nothing_XT = np.full((len(value_XT), len(weight_T)), np.nan)
        return np.column_stack([nothing_XT, value_XT.sum(axis=1)])
    return np.column_stack([value_XT, value_XT @ weight_T])


def _records(
    set_name: str, split: str, found: Sequence[Prediction], *, every_domain: bool
) -> list[Record]:
    rows: list[Record] = []
    for law in dict.fromkeys(one.law for one in found):
        mine = [one for one in found if one.law == law]
        groups = [mine]
        if set_name != "RedPajama":  # a case for each size
            sizes = dict.fromkeys(one.params for one in mine)
            groups = [[one for one in mine if one.params == size] for size in sizes]
            if len(groups) > 1:
                pooled = float(np.mean(np.abs(_errors(mine, "overall")[0])))
                print(f"{set_name}, {split}, {law}, all sizes: MAE {pooled:.4f}", file=sys.stderr)
        for group in groups:
            rows += _scores(set_name, split, group)
        for one in mine:
            rows += _single_predictions(set_name, split, one, every_domain=every_domain)
    return rows


def _single_predictions(
    set_name: str, split: str, one: Prediction, *, every_domain: bool
) -> list[Record]:
    """Returns predictions of the overall loss, of pairs' differences and of each domain."""
    rows: list[Record] = []
    shared = _shared(one, split)
    for t, target in enumerate(one.targets):
        if target != OVERALL and not every_domain:
            continue
        for x, run_id in enumerate(one.run_ids):
            limits = _limits(one, one.draws_BXT[:, x, t]) if one.draws_BXT is not None else {}
            rows.append(
                shared | {"case": _case(set_name, one, target), "metric": "prediction"}
                | {"target": target, "run_id": run_id, "value": float(one.value_XT[x, t])}
                | {"observed": float(one.observed_XT[x, t])} | limits
            )  # fmt: skip
    if set_name == "RedPajama" and every_domain:
        for i, j in _pairs(len(one.run_ids)):
            draws = one.draws_BXT
            apart_B = None if draws is None else draws[:, i, -1] - draws[:, j, -1]
            rows.append(
                shared | {"case": "redpajama/difference", "metric": "prediction"}
                | {"target": OVERALL, "run_id": one.run_ids[i], "other_run_id": one.run_ids[j]}
                | {"value": float(one.value_XT[i, -1] - one.value_XT[j, -1])}
                | {"observed": float(one.observed_XT[i, -1] - one.observed_XT[j, -1])}
                | ({} if apart_B is None else _limits(one, apart_B))
            )  # fmt: skip
    return [row for row in rows if np.isfinite(row["value"])]


def _scores(set_name: str, split: str, found: Sequence[Prediction]) -> list[Record]:
    """Returns mean absolute error, coverage and width of one law."""
    rows: list[Record] = []
    first = found[0]
    shared = _shared(first, split) | {"params": None, "step": None, "tokens": None}
    if len({one.params for one in found}) == 1:
        shared["params"] = first.params
    if len({one.law_name for one in found}) > 1:
        shared["law_name"] = None if first.draws_BXT is None else "scaling, then what was chosen"
    views = {"overall": OVERALL, "domain": "mean", "difference": OVERALL}
    for view, target in views.items():
        if set_name != "RedPajama" and view == "difference":
            continue
        error, inside, width = _errors(found, view)
        if not len(error):
            continue
        case = _case(set_name, first, OVERALL if view == "overall" else "", view)
        scored = shared | {"case": case, "target": target}
        rows.append(scored | {"metric": "mae", "value": float(np.mean(np.abs(error)))})
        if len(inside):
            rows.append(scored | {"metric": "coverage", "value": float(np.mean(inside))})
            rows.append(scored | {"metric": "width", "value": float(np.mean(width))})
    return rows


def _errors(found: Sequence[Prediction], view: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns errors of all predictions of a kind, whether intervals hold them, and widths."""
    error: list[np.ndarray] = []
    inside: list[np.ndarray] = []
    width: list[np.ndarray] = []
    for one in found:
        value, observed, draws = one.value_XT[:, -1:], one.observed_XT[:, -1:], None
        if one.draws_BXT is not None:
            draws = one.draws_BXT[..., -1:]
        if view == "domain":
            value, observed = one.value_XT[:, :-1], one.observed_XT[:, :-1]
            draws = None if one.draws_BXT is None else one.draws_BXT[..., :-1]
        if view == "difference":
            pairs = np.array(_pairs(len(value)), dtype=np.int64).reshape(-1, 2)
            i, j = pairs[:, 0], pairs[:, 1]
            value, observed = value[i] - value[j], observed[i] - observed[j]
            draws = None if draws is None else draws[:, i] - draws[:, j]
        known = np.isfinite(value) & np.isfinite(observed)
        error.append((value - observed)[known])
        if draws is not None:
            low, high = np.quantile(draws, [0.05, 0.95], axis=0)
            inside.append(((low <= observed) & (observed <= high))[known])
            width.append((high - low)[known])
    empty = [np.zeros(0)]
    return (
        np.concatenate(error or empty),
        np.concatenate(inside or empty),
        np.concatenate(width or empty),
    )


def _limits(one: Prediction, draws_B: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(draws_B, [0.05, 0.95])
    return {"low": float(low), "high": float(high)}


def _pairs(count: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def _case(set_name: str, one: Prediction, target: str, view: str | None = None) -> str:
    if set_name == "RedPajama":
        return f"redpajama/{view or ('overall' if target == OVERALL else 'domain')}"
    return f"5mix/{size_name(one.params)}"


def _shared(one: Prediction, split: str) -> Record:
    return {
        "law": one.law,
        "law_name": one.law_name,
        "params": one.params,
        "step": one.step,
        "tokens": float(one.step * TOKENS_PER_STEP),
        "n": one.num_fitted,
        "unit": "nats_per_token",
        "split": split,
    }


def _folds(study: Study, holdout: Holdout) -> list[set[str] | None]:
    """Returns the mixtures that are fitted, in each fold; None: all."""
    if not holdout.leave_mixtures:
        return [None]
    runs = study.runs.runs
    everywhere = [
        set(runs.filter(pl.col("params_non_embedding") == size)["mixture_id"])
        for size in (holdout.sizes or ())
    ]
    ids = np.array(sorted(set.intersection(*everywhere)))
    order = np.random.default_rng(0).permutation(len(ids))
    every = set(runs["mixture_id"])
    return [every - set(ids[order[k::NUM_FOLDS]].tolist()) for k in range(NUM_FOLDS)]


def _cut(study: Study, holdout: Holdout, kept: set[str] | None) -> Study:
    """Returns what is fitted."""
    found = study.runs
    rows = _with_size(found.observations, found.runs).filter(
        (pl.col("step") <= holdout.fit_last_step) | pl.col("size").is_in(list(holdout.long_runs))
    )
    runs = found.runs
    if holdout.fit_sizes is not None:
        runs = runs.filter(pl.col("params_non_embedding").is_in(list(holdout.fit_sizes)))
    if kept is not None:
        runs = runs.filter(pl.col("mixture_id").is_in(list(kept)))
    rows = rows.join(runs, on="run_id", how="semi").select(found.observations.columns)
    return Study(replace(found, runs=runs, observations=rows), study.weights)


def _asked(study: Study, holdout: Holdout, kept: set[str] | None) -> Study:
    """Returns what is predicted."""
    found, runs = study.runs, study.runs.runs
    if holdout.sizes is not None:
        runs = runs.filter(pl.col("params_non_embedding").is_in(list(holdout.sizes)))
    if kept is not None:
        runs = runs.filter(~pl.col("mixture_id").is_in(list(kept)))
    chosen = pl.col("step").is_between(FIRST_STEP, LAST_STEP)
    if holdout.steps:
        chosen = pl.col("step").is_in(list(holdout.steps))
    rows = found.observations.filter(chosen).join(runs, on="run_id", how="semi")
    return Study(replace(found, runs=runs, observations=rows), study.weights)


def _points(asked: Study) -> Iterator[tuple[float, int, pl.DataFrame]]:
    """Returns each size and step, and the runs that are asked for there."""
    seen = asked.runs.observations.select("run_id", "step").unique()
    joined = seen.join(asked.runs.runs, on="run_id").sort("params_non_embedding", "step", "run_id")
    for (params, step), group in joined.group_by(
        "params_non_embedding", "step", maintain_order=True
    ):
        yield float(params), int(step), group


def _observed(
    asked: Study, run_ids: Sequence[str], step: int, targets: Sequence[str]
) -> np.ndarray:
    """Returns the measured losses; the overall one where all domains' are there."""
    assert asked.weights is not None
    rows = asked.runs.observations.filter(pl.col("step") == step)
    row_of, column_of = ({name: i for i, name in enumerate(n)} for n in (run_ids, targets))
    value_XT = np.full((len(run_ids), len(targets)), np.nan)
    for run_id, target, value in rows.select("run_id", "target", "value").iter_rows():
        if run_id in row_of and target in column_of:
            value_XT[row_of[run_id], column_of[target]] = value
    weight_T = np.array([asked.weights[target] for target in targets[:-1]])
    value_XT[:, -1] = value_XT[:, :-1] @ weight_T
    return value_XT


def _with_size(observations: pl.DataFrame, runs: pl.DataFrame) -> pl.DataFrame:
    sizes = runs.select("run_id", pl.col("params_non_embedding").alias("size"))
    return observations.join(sizes, on="run_id", maintain_order="left")


def _sizes_up_to(study: Study, largest: float) -> tuple[float, ...]:
    sizes = study.runs.runs["params_non_embedding"].drop_nulls().unique().to_list()
    return tuple(size for size in sizes if size <= largest)
