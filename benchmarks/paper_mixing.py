"""The part of `paper.py` at one size and step: laws on mixtures that they did not see.

Shape letters: R runs, M training domains, T targets, L learners, X mixtures that are predicted.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.optimize import brentq

from mixlaw.fit.learners import (
    GaussianProcessLearner,
    LawLearner,
    Learner,
    LightGBMLearner,
    MeanLearner,
    has_baselines,
)
from mixlaw.importers.published import read_mixinglaws, read_valid_weights
from mixlaw.importers.standard import PublishedRuns
from mixlaw.laws.library import MIXING_LAWS
from mixlaw.observations import PROPORTION_PREFIX, LossTable, loss_table
from mixlaw.predict import conformal_halfwidth
from mixlaw.selection.choice import (
    LearnerChoice,
    choose_learner,
    mean_spearman,
    top_regret,
)
from mixlaw.selection.nested import leave_out_with_choice
from records import unseen

SIZES = {
    "70M": 18_915_328.0,
    "160M": 85_056_000.0,
    "305M": 201_541_632.0,
    "410M": 302_311_424.0,
    "1B": 805_736_448.0,
}
"""Parameters without embeddings."""
CANDIDATES = (
    "mean",
    "linear",
    "m4",
    "m1",
    "bimix",
    "exp-power",
    "reciprocal-shared",
    "reciprocal",
    "power-reciprocal-shared",
    "power-reciprocal",
)
"""Between these the choice is made."""
SHOWN = ("m2", "m3", "log-linear", "implicit")
"""These stand beside them."""
STEP = 30_000
NUM_SPLITS = 20
FEWEST_MIXTURES = 8
SCALED_SETS = ("RedPajama", "5Mix")
"""Sets whose further sizes and steps are predicted (`paper_scale.py`)."""
LEVEL = 0.9

Record = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """One set of runs, and the weights of its overall loss; None: it has none."""

    runs: PublishedRuns
    weights: dict[str, float] | None

    @classmethod
    def read(cls, folder: Path, name: str, *, weights_from: Path | None = None) -> "Study":
        """Returns a set of a folder of the published runs; the weights may lie in another one."""
        weights = read_valid_weights((weights_from or folder) / "valid_weight.json")
        found = read_mixinglaws(folder / name)
        targets = set(found.observations["target"].unique())
        return cls(found, weights if set(weights) <= targets else None)

    def table(self, params: float, step: int) -> LossTable | None:
        """Returns the losses of one size at one step."""
        runs = self.runs.runs.filter(pl.col("params_non_embedding") == params)
        seen = self.runs.observations.filter(pl.col("step") == step)
        if not seen.join(runs, on="run_id", how="semi").height:
            return None
        targets = None if self.weights is None else list(self.weights)
        return loss_table(runs, seen, targets=targets, step=step)

    def weight_row(self, table: LossTable) -> np.ndarray | None:
        """Returns the weights in the table's order."""
        if self.weights is None:
            return None
        return np.array([self.weights[target] for target in table.targets])


def learners_of(names: Sequence[str]) -> list[Learner]:
    """Returns learners by name."""
    baselines: dict[str, Learner] = {
        "mean": MeanLearner(),
        "lightgbm": LightGBMLearner(),
        "gp": GaussianProcessLearner(),
    }
    return [baselines.get(name) or LawLearner(MIXING_LAWS[name]) for name in names]


def shown_learners() -> list[Learner]:
    """Returns all that stand in the tables, with the baselines that are installed."""
    return learners_of((*CANDIDATES, *SHOWN, *(("gp", "lightgbm") if has_baselines() else ())))


def law_field(name: str) -> str | None:
    """Returns the schema's name of a law; None: it stands in no table of its own."""
    return None if name.startswith("power-reciprocal") else name


def five_domains(folder: Path, size: str) -> list[Record]:
    """Returns leave-one-out errors of the overall loss, the choice repeated in each fold."""
    study = Study.read(folder, "5Mix")
    table = study.table(SIZES[size], STEP)
    return [] if table is None else _leave_one_out(study, table, f"5mix/{size}", size)


def seven_domains(folder: Path, size: str) -> list[Record]:
    """Returns the same for RedPajama."""
    study = Study.read(folder, "RedPajama")
    table = study.table(SIZES[size], STEP)
    return [] if table is None else _leave_one_out(study, table, "redpajama/overall", size)


def two_domains(folder: Path, size: str) -> list[Record]:
    """Returns leave-one-out errors on five mixtures of two domains."""
    study = Study.read(folder, "2Mix")
    table = study.table(SIZES[size], STEP)
    if table is None:
        return []
    out = ~np.eye(len(table.r_RM), dtype=bool)
    rows: list[Record] = []
    for learner in learners_of(("mean", "linear", "log-linear", "m4", "reciprocal-shared")):
        predicted = learner.predict_folds(table.r_RM, table.y_RT, keep_KR=out, r_XM=table.r_RM)
        value_RT = predicted[np.arange(len(out)), np.arange(len(out))]
        rows.append(
            _shared(f"2mix/{size}", size, table)
            | {"law": learner.name, "metric": "mae", "target": "mean", "split": "leave-one-out"}
            | {"value": float(np.mean(np.abs(value_RT - table.y_RT)))}
        )
    return rows


def three_domains(folder: Path) -> list[Record]:
    """Returns errors on random splits into 18 mixtures and the rest, mean over three targets."""
    study = Study.read(folder, "3Mix")
    table = study.table(SIZES["410M"], 60_000)
    if table is None:
        return []
    rows: list[Record] = []
    found: dict[str, list[tuple[float, float, str | None]]] = {}
    candidates = learners_of(CANDIDATES)
    for seed in range(NUM_SPLITS):
        order = np.random.default_rng(seed).permutation(len(table.r_RM))
        fit, rest = order[:18], order[18:]
        r_RM, y_RT = table.r_RM[fit], table.y_RT[fit]
        predicted = {
            learner.name: learner.predict(r_RM, y_RT, r_XM=table.r_RM[rest])
            for learner in shown_learners()
        }
        choice = choose_learner(r_RM, y_RT, learners=candidates, num_folds=18)
        predicted["selected"] = np.einsum(
            "l,lxt->xt", choice.weight_L, np.stack([predicted[one.name] for one in candidates])
        )
        for name, value_XT in predicted.items():
            mae = float(np.nanmean(np.abs(value_XT - table.y_RT[rest])))
            label = choice.selected_name if name == "selected" else None
            rank = mean_spearman(value_XT, table.y_RT[rest])
            found.setdefault(name, []).append((mae, rank, label))
    for name, values in found.items():
        law = law_field(name)
        if law is None:
            continue
        maes, ranks, labels = zip(*values, strict=True)
        shared = _shared("3mix/410M", "410M", table) | {"law": law, "target": "mean", "n": 18}
        for metric, series in (("mae", maes), ("spearman", ranks)):
            rows.append(
                shared | {"metric": metric, "values": list(series), "law_names": list(labels)}
            )
    return rows


def _leave_one_out(study: Study, table: LossTable, case: str, size: str) -> list[Record]:
    weight_T = study.weight_row(table)
    assert weight_T is not None
    candidates = learners_of(CANDIDATES)
    nested = leave_out_with_choice(
        table.r_RM, table.y_RT, learners=candidates, mixture_ids=table.mixture_ids,
        weight_T=weight_T,
    )  # fmt: skip
    predicted = dict(zip((one.name for one in candidates), nested.left_out_LRT, strict=True))
    out = ~np.eye(len(table.r_RM), dtype=bool)
    index = np.arange(len(table.r_RM))
    for learner in learners_of((*SHOWN, *(("gp",) if has_baselines() else ()))):
        folds = learner.predict_folds(table.r_RM, table.y_RT, keep_KR=out, r_XM=table.r_RM)
        predicted[learner.name] = folds[index, index]
    predicted["selected"] = nested.selected_RT
    observed_R = table.y_RT @ weight_T
    shared = _shared(case, size, table) | {"split": "leave-one-out", "n": len(table.r_RM) - 1}
    rows: list[Record] = []
    for name, value_RT in predicted.items():
        law = law_field(name)
        if law is None:
            continue
        value_R1 = (value_RT @ weight_T)[:, None]
        error_RT = np.abs(value_RT - table.y_RT)
        scores = {
            ("mae", "overall"): float(np.mean(np.abs(value_R1[:, 0] - observed_R))),
            ("mae", "mean"): float(np.mean(error_RT)),
            ("spearman", "overall"): mean_spearman(value_R1, observed_R[:, None]),
            ("regret", "overall"): top_regret(value_R1, observed_R[:, None]),
        }
        name_of = _names(nested.choices) if name == "selected" else None
        rows += [
            shared | {"law": law, "metric": metric, "target": target, "value": value}
            | {"law_name": name_of}
            for (metric, target), value in scores.items()
        ]  # fmt: skip
    return rows + _left_out_predictions(table, nested.choices, nested.selected_RT, weight_T, shared)


def _left_out_predictions(
    table: LossTable,
    choices: Sequence[LearnerChoice],
    selected_RT: np.ndarray,
    weight_T: np.ndarray,
    shared: Record,
) -> list[Record]:
    """Returns one prediction per left-out mixture, with the interval that the others give it."""
    rows: list[Record] = []
    inside, widths = [], []
    for i, choice in enumerate(choices):
        rest = np.array([j for j, m in enumerate(table.mixture_ids) if m != table.mixture_ids[i]])
        residual_RT = choice.selected_left_out_RT - table.y_RT[rest]
        half, _ = conformal_halfwidth(
            residual_RT,
            (residual_RT @ weight_T)[:, None],
            design_GM=table.r_RM[rest],
            r_RM=table.r_RM[i : i + 1],
            level=LEVEL,
        )
        value, observed = float(selected_RT[i] @ weight_T), float(table.y_RT[i] @ weight_T)
        low, high = value - float(half[0, 0]), value + float(half[0, 0])
        inside.append(low <= observed <= high)
        widths.append(high - low)
        rows.append(
            shared | {"law": "selected", "law_name": choice.selected_name, "metric": "prediction"}
            | {"value": value, "low": low, "high": high, "observed": observed}
            | {"target": "overall", "run_id": table.run_ids[i]}
        )  # fmt: skip
    shared = shared | {"law": "selected", "target": "overall", "law_name": _names(choices)}
    rows.append(shared | {"metric": "coverage", "value": float(np.mean(inside))})
    rows.append(shared | {"metric": "width", "value": float(np.mean(widths))})
    return rows


def predict_mixtures(fit_folder: Path, predict_folder: Path, name: str) -> list[Record]:
    """Returns predictions of unseen mixtures at sizes and steps at which others were fitted."""
    study = Study.read(fit_folder, name)
    asked = Study.read(predict_folder, name, weights_from=fit_folder)
    new = unseen(study.runs, asked.runs)
    if not new.runs.height:
        return []
    rows: list[Record] = []
    where = new.observations.join(new.runs.select("run_id", "params_non_embedding"), on="run_id")
    for params, step in sorted(where.select("params_non_embedding", "step").unique().iter_rows()):
        table = study.table(params, step)
        if table is not None and len(set(table.mixture_ids)) >= FEWEST_MIXTURES:
            rows += _predict_table(study, table, asked_losses(new, table, params), name, params)
        elif name not in SCALED_SETS:
            print(f"{name}: too few mixtures to predict {params:.4g} at {step}", file=sys.stderr)
    return rows


@dataclass(frozen=True)
class Asked:
    """Losses that are predicted: one row per run, a column per target; NaN where there is none."""

    run_ids: tuple[str, ...]
    r_XM: np.ndarray
    y_XT: np.ndarray


def asked_losses(new: PublishedRuns, table: LossTable, params: float | None) -> Asked:
    """Returns unseen losses at the table's step, targets and domains in its order."""
    rows = new.observations.filter(
        pl.col("step") == table.step, pl.col("target").is_in(list(table.targets))
    )
    runs = new.runs.join(rows, on="run_id", how="semi", maintain_order="left")
    if params is not None:
        runs = runs.filter(pl.col("params_non_embedding") == params)
    run_ids = tuple(runs["run_id"].to_list())
    row_of, column_of = ({one: i for i, one in enumerate(n)} for n in (run_ids, table.targets))
    y_XT = np.full((len(run_ids), len(table.targets)), np.nan)
    for run_id, target, value in rows.select("run_id", "target", "value").iter_rows():
        if run_id in row_of:
            y_XT[row_of[run_id], column_of[target]] = value
    shares = runs.select(PROPORTION_PREFIX + domain for domain in table.domains)
    return Asked(run_ids, shares.to_numpy().reshape(len(run_ids), -1), y_XT)


def _predict_table(
    study: Study, table: LossTable, new: Asked, name: str, params: float
) -> list[Record]:
    if not len(new.run_ids):
        return []
    weight_T = study.weight_row(table)
    candidates = learners_of(CANDIDATES)
    choice = choose_learner(
        table.r_RM, table.y_RT, learners=candidates, mixture_ids=table.mixture_ids,
        weight_T=weight_T, num_folds=len(table.r_RM),
    )  # fmt: skip
    residual_RT = choice.selected_left_out_RT - table.y_RT
    whole = np.eye(len(table.targets))
    if weight_T is not None:
        whole = np.vstack([whole, weight_T])
    observed_XK = new.y_XT
    if weight_T is not None:
        observed_XK = np.column_stack([new.y_XT, new.y_XT @ weight_T])
    half_XK, _ = conformal_halfwidth(
        residual_RT, residual_RT @ whole.T, design_GM=table.r_RM, r_RM=new.r_XM, level=LEVEL
    )
    names = (*table.targets, *(() if weight_T is None else ("overall",)))
    shared = {"params": params, "step": table.step, "tokens": table.tokens}
    shared |= {"unit": table.unit, "n": len(table.r_RM), "split": "new mixtures"}
    rows: list[Record] = []
    by_law = {
        learner.name: learner.predict(table.r_RM, table.y_RT, r_XM=new.r_XM)
        for learner in shown_learners()
    }
    by_law["selected"] = np.einsum(
        "l,lxt->xt", choice.weight_L, np.stack([by_law[one.name] for one in candidates])
    )
    for law_key, value_XT in by_law.items():
        law = law_field(law_key)
        if law is None:
            continue
        law_name = choice.selected_name if law == "selected" else None
        value_XK = value_XT @ whole.T
        for x, run_id in enumerate(new.run_ids):
            for k, target in enumerate(names):
                value, half = float(value_XK[x, k]), float(half_XK[x, k])
                limits = {"low": value - half, "high": value + half} if law == "selected" else {}
                rows.append(
                    shared | {"law": law, "law_name": law_name, "metric": "prediction"}
                    | {"case": case_of(name, params, target)}
                    | {"target": target, "run_id": run_id, "value": value, **limits}
                    | {"observed": float(observed_XK[x, k])}
                )  # fmt: skip
        target = "overall" if weight_T is not None else "mean"
        error_XK = np.abs(value_XK - observed_XK)
        error_XK = error_XK[:, -1:] if weight_T is not None else error_XK
        known = error_XK[np.isfinite(error_XK)]
        mae = float(np.mean(known)) if len(known) else math.nan
        rows.append(
            shared | {"law": law, "law_name": law_name, "metric": "mae"}
            | {"case": case_of(name, params, target), "target": target, "value": mae}
        )  # fmt: skip
    return rows


def critical_proportion(fit_folder: Path, predict_folder: Path | None) -> list[Record]:
    """Returns the share of old data at which the old loss is kept, from the published four runs.

    The old loss is the overall one on the Pile; M4 in two domains is fitted at the last step.
    """
    study = Study.read(fit_folder, "ct")
    assert study.weights is not None
    runs = study.runs.runs
    at_start = study.runs.observations.filter(pl.col("step") == 0)
    step = int(study.runs.observations["step"].max() or 0)
    table = loss_table(runs, study.runs.observations, targets=list(study.weights), step=step)
    weight_T = np.array([study.weights[target] for target in table.targets])
    first = loss_table(runs, at_start, targets=table.targets, step=0)
    original = float((first.y_RT @ weight_T)[0])
    y_R1 = (table.y_RT @ weight_T)[:, None]
    rows: list[Record] = []
    shared = {"case": "ct", "step": step, "tokens": table.tokens, "n": len(y_R1)}
    shared |= {"params": SIZES["70M"], "target": "overall"}
    for learner in learners_of(("m4", "reciprocal-shared", "linear")):

        def excess(old: float, learner: Learner = learner) -> float:
            r_1M = np.array([[old, 1 - old]])
            return float(learner.predict(table.r_RM, y_R1, r_XM=r_1M)[0, 0]) - original

        low, high = float(table.r_RM[:, 0].min()) / 2, 0.999
        if excess(low) * excess(high) < 0:
            value = float(brentq(excess, low, high, xtol=1e-6))
            rows.append(
                shared | {"law": learner.name, "metric": "critical_proportion"}
                | {"value": value, "unit": "share of old data"}
            )  # fmt: skip
    if predict_folder is not None and (predict_folder / "ct").is_dir():
        asked = Study.read(predict_folder, "ct", weights_from=fit_folder)
        new = unseen(study.runs, asked.runs)
        rows += _predict_continued(study, new)
    return rows


def _predict_continued(study: Study, new: PublishedRuns) -> list[Record]:
    """Returns M4's predictions of unseen mixtures of the continued runs, at each step."""
    rows: list[Record] = []
    for step in sorted(new.observations["step"].unique().to_list()):
        seen = study.runs.observations.filter(pl.col("step") == step)
        if step == 0 or not seen.height:
            print(f"ct: nothing was fitted at step {step}", file=sys.stderr)
            continue
        table = loss_table(study.runs.runs, seen, step=step)
        asked = asked_losses(new, table, None)
        if not len(asked.run_ids):
            continue
        value_XT = learners_of(("m4",))[0].predict(table.r_RM, table.y_RT, r_XM=asked.r_XM)
        rows += [
            {"case": "ct", "law": "m4", "metric": "prediction", "step": step}
            | {"tokens": table.tokens, "params": SIZES["70M"], "target": target}
            | {"run_id": run_id, "value": float(value_XT[x, t])}
            | {"observed": float(asked.y_XT[x, t]), "n": len(table.r_RM)}
            for x, run_id in enumerate(asked.run_ids)
            for t, target in enumerate(table.targets)
        ]
    return rows


def case_of(name: str, params: float, target: str) -> str:
    """Returns the case of a prediction."""
    if name == "RedPajama":
        return "redpajama/overall" if target == "overall" else "redpajama/domain"
    return f"{name.lower()}/{size_name(params)}"


def size_name(params: float) -> str:
    """Returns the name of a size, such as 410M."""
    return next((name for name, count in SIZES.items() if count == params), f"{params / 1e6:.0f}M")


def _shared(case: str, size: str, table: LossTable) -> Record:
    return {
        "case": case,
        "params": SIZES[size],
        "step": table.step,
        "tokens": table.tokens,
        "unit": table.unit,
        "n": len(table.r_RM),
    }


def _names(choices: Sequence[LearnerChoice]) -> str:
    """Returns what was chosen, and how often."""
    found: dict[str, int] = {}
    for choice in choices:
        name = "a stack" if choice.uses_stack else choice.learners[choice.best].name
        found[name] = found.get(name, 0) + 1
    return ", ".join(f"{name} {n}x" for name, n in sorted(found.items(), key=lambda x: -x[1]))
