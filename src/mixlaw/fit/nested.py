"""The nested pipeline of Ye et al. 2025, Algorithm 1: step law per run, size law per mixture.

Its answer is the loss of every fitted mixture at a larger size and a later step; a mixing law
fitted to those losses is the third stage (`NestedLosses.tables` is what `fit_law` takes).

Shape letters: R runs, G mixtures, T targets, S steps, N sizes, M training domains.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from mixlaw.errors import FitError
from mixlaw.fit.power import fit_power
from mixlaw.laws.power import SIZE_LAW, STEP_LAW, PowerLaw
from mixlaw.observations import (
    PROPORTION_PREFIX,
    check_observations,
    check_runs,
    loss_target_names,
    proportion_domains,
)

NestedForm = Literal["nested", "official"]
SizeColumn = Literal["params_non_embedding", "params_total"]

STEP_HUBER, SIZE_HUBER = 0.05, 0.08
"""Residuals beyond this many nats count linearly: the values of the released code."""
NUM_GROUPS = 5
"""Into how many targets the released code sums the 22 validation sets of the Pile."""
OWN_POINTS, TIED_POINTS = 3, 2
"""Losses that a series must have where its exponent is its own, and where it has it in common."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NestedLosses:
    """Losses of mixtures at one size and step, extrapolated from smaller and shorter runs."""

    form: NestedForm
    params: float
    """Model size, in the count of parameters that the size law was fitted in."""
    size_column: SizeColumn
    step: int
    mixture_ids: tuple[str, ...]
    domains: tuple[str, ...]
    targets: tuple[str, ...]
    r_GM: Float[np.ndarray, "G M"]
    value_GT: Float[np.ndarray, "G T"]
    """Losses in the runs' unit; NaN where a mixture has too few losses of a target."""
    unit: str | None
    notes: tuple[str, ...]
    """What was left out, in sentences."""

    def tables(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Returns runs and observations of one run per mixture, as `fit_law` takes them."""
        runs = pl.DataFrame(
            {
                "run_id": self.mixture_ids,
                "mixture_id": self.mixture_ids,
                "role": ["imported"] * len(self.mixture_ids),
                "origin": [self.form] * len(self.mixture_ids),
                self.size_column: [self.params] * len(self.mixture_ids),
                **{
                    PROPORTION_PREFIX + domain: self.r_GM[:, j]
                    for j, domain in enumerate(self.domains)
                },
            }
        )
        rows, columns = np.nonzero(np.isfinite(self.value_GT))
        observations = pl.DataFrame(
            {
                "run_id": [self.mixture_ids[i] for i in rows],
                "step": [self.step] * len(rows),
                "target": [self.targets[j] for j in columns],
                "value": self.value_GT[rows, columns],
                "unit": [self.unit] * len(rows),
            },
            schema_overrides={"unit": pl.String},
        )
        return check_runs(runs), check_observations(observations)


def extrapolate_nested(
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    *,
    params: float,
    step: int,
    targets: Sequence[str] | None = None,
    form: NestedForm = "nested",
    size_column: SizeColumn = "params_non_embedding",
) -> NestedLosses:
    r"""Returns each mixture's losses at a size and step, by a step law and then a size law.

    The step law is $E + B S^{-b}$, the size law $E + A N^{-a}$, both with Huber's loss. As the text
    has it (`nested`), each has an exponent of its own for each run and target, or mixture and
    target. As the released code has it (`official`), the targets of a run have one exponent of the
    step law, and all mixtures and targets one of the size law; it is meant for a few sums of
    targets (`group_targets`). What was observed at the step, or has runs of that size, is taken as
    it is. Replicates of a mixture are averaged.

    Args:
        runs: The runs table.
        observations: The observation table; each of its steps counts, so that warm-up is better
            left out (the paper's runs are fitted from step 10,000 on).
        params: Model size to predict, in the count of `size_column`.
        step: Step to predict.
        targets: Which targets; all by default.
        form: Which exponents are shared.
        size_column: Which count of parameters is N; the paper leaves out embeddings.

    Raises:
        TableError: The tables are not what they must be.
        FitError: No mixture has enough steps and sizes.
    """
    runs, rows = _used_tables(runs, observations, targets, size_column)
    chosen = loss_target_names(rows) if targets is None else tuple(targets)
    steps_S, y_RTS = _loss_cube(runs, rows, chosen)
    at_step_RT = _extrapolate_steps(steps_S, y_RTS, step, form)
    mixtures = runs.unique("mixture_id", keep="first", maintain_order=True)
    sizes_N, y_GTN = _average_replicates(runs, at_step_RT, mixtures, size_column)
    value_GT = _extrapolate_sizes(sizes_N, y_GTN, params, form)
    kept_G = np.flatnonzero(np.isfinite(value_GT).any(axis=1))
    if not len(kept_G):
        raise FitError(
            f"no mixture has enough steps and sizes to predict step {step} of"
            f" {params:.6g} parameters",
            do=f"a law with its own exponent takes {OWN_POINTS} of each",
        )
    left_out = len(value_GT) - len(kept_G)
    note = f"{left_out} of {len(value_GT)} mixtures have too few steps or sizes and are left out"
    domains = proportion_domains(runs)
    units = rows["unit"].unique().to_list()
    return NestedLosses(
        form=form,
        params=params,
        size_column=size_column,
        step=step,
        mixture_ids=tuple(mixtures["mixture_id"][kept_G].to_list()),
        domains=domains,
        targets=chosen,
        r_GM=mixtures.select(PROPORTION_PREFIX + d for d in domains).to_numpy()[kept_G],
        value_GT=value_GT[kept_G],
        unit=units[0] if len(units) == 1 else None,
        notes=(note,) if left_out else (),
    )


def group_targets(
    observations: pl.DataFrame, weights: Mapping[str, float], *, num_groups: int = NUM_GROUPS
) -> pl.DataFrame:
    """Returns weighted sums of targets instead of the targets: they add up to the overall loss.

    The released code sums 22 targets into five subsets without a reason to tell them apart; here
    the targets are dealt out in turn. A checkpoint that lacks one of a subset lacks the subset.
    """
    names = [name for name, weight in weights.items() if weight > 0]
    deal = pl.DataFrame(
        {
            "target": names,
            "weight": [weights[name] for name in names],
            "group": [f"subset_{i % num_groups}" for i in range(len(names))],
        }
    ).with_columns(pl.len().over("group").alias("size"))
    return (
        observations.join(deal, on="target", maintain_order="left")
        .group_by("run_id", "step", "tokens", "unit", "group", "size", maintain_order=True)
        .agg(pl.len(), (pl.col("value") * pl.col("weight")).sum())
        .filter(pl.col("len") == pl.col("size"))
        .rename({"group": "target"})
        .drop("size", "len")
    )


def _used_tables(
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    targets: Sequence[str] | None,
    size_column: SizeColumn,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Returns finished runs of known size, and their losses of the targets after step 0."""
    rows = check_observations(observations).filter(pl.col("step") > 0)
    if targets is not None:
        rows = rows.filter(pl.col("target").is_in(list(targets)))
    runs = (
        check_runs(runs)
        .filter(pl.col("status").fill_null("done") == "done", pl.col(size_column).is_not_null())
        .with_columns(pl.col("mixture_id").fill_null(pl.col("run_id")))
        .join(rows.select("run_id").unique(), on="run_id", how="semi", maintain_order="left")
    )
    if not runs.height:
        raise FitError(f"no finished run with a known `{size_column}` has a loss after step 0")
    return runs, rows.join(runs.select("run_id"), on="run_id", how="semi", maintain_order="left")


def _loss_cube(
    runs: pl.DataFrame, rows: pl.DataFrame, targets: Sequence[str]
) -> tuple[Float[np.ndarray, " S"], Float[np.ndarray, "R T S"]]:
    """Returns the steps, and losses by run, target and step; NaN where there is none."""
    steps = rows["step"].unique().sort().to_list()
    keys = (runs["run_id"].to_list(), list(targets), steps)
    y_RTS = np.full([len(key) for key in keys], np.nan)
    index = [
        rows[column].replace_strict(key, range(len(key)), return_dtype=pl.Int64).to_numpy()
        for column, key in zip(("run_id", "target", "step"), keys, strict=True)
    ]
    y_RTS[tuple(index)] = rows["value"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    return np.array(steps, dtype=np.float64), y_RTS


def _extrapolate_steps(
    steps_S: Float[np.ndarray, " S"], y_RTS: Float[np.ndarray, "R T S"], step: int, form: NestedForm
) -> Float[np.ndarray, "R T"]:
    """Returns losses at the step: those observed, else the step law's."""
    num_runs, num_targets, _ = y_RTS.shape
    group_RT = np.repeat(np.arange(num_runs), num_targets) if form == "official" else None
    return _extrapolate(STEP_LAW, steps_S, y_RTS, float(step), group_RT=group_RT, huber=STEP_HUBER)


def _average_replicates(
    runs: pl.DataFrame,
    y_RT: Float[np.ndarray, "R T"],
    mixtures: pl.DataFrame,
    size_column: SizeColumn,
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, "G T N"]]:
    """Returns the sizes, and losses by mixture, target and size; NaN where there is no run."""
    size_R = runs[size_column].to_numpy()
    order = mixtures["mixture_id"].to_list()
    mixture_R = (
        runs["mixture_id"]
        .replace_strict(order, range(len(order)), return_dtype=pl.Int64)
        .to_numpy()
    )
    sizes_N, number_R = np.unique(size_R, return_inverse=True)
    cell_R = mixture_R * len(sizes_N) + number_R
    known_RT = np.isfinite(y_RT)
    total_CT = np.zeros((len(order) * len(sizes_N), y_RT.shape[1]))
    count_CT = np.zeros_like(total_CT)
    np.add.at(total_CT, cell_R, np.where(known_RT, y_RT, 0.0))
    np.add.at(count_CT, cell_R, known_RT)
    mean_CT = np.where(count_CT > 0, total_CT / np.maximum(count_CT, 1), np.nan)
    return sizes_N, np.moveaxis(mean_CT.reshape(len(order), len(sizes_N), -1), 1, 2)


def _extrapolate_sizes(
    sizes_N: Float[np.ndarray, " N"],
    y_GTN: Float[np.ndarray, "G T N"],
    params: float,
    form: NestedForm,
) -> Float[np.ndarray, "G T"]:
    """Returns losses at the size: those of runs that have it, else the size law's."""
    count = y_GTN.shape[0] * y_GTN.shape[1]
    group_GT = np.zeros(count, dtype=np.int64) if form == "official" else None
    return _extrapolate(SIZE_LAW, sizes_N, y_GTN, params, group_RT=group_GT, huber=SIZE_HUBER)


def _extrapolate(
    law: PowerLaw,
    x_S: Float[np.ndarray, " S"],
    y_RTS: Float[np.ndarray, "R T S"],
    x: float,
    *,
    group_RT: Int[np.ndarray, " RT"] | None,
    huber: float,
) -> Float[np.ndarray, "R T"]:
    """Returns the losses at x: those that are there, else those of a law fitted to each series."""
    y_NS = y_RTS.reshape(-1, len(x_S))
    here_S = np.flatnonzero(np.abs(x_S - x) <= 1e-9 * x)
    value_N = y_NS[:, here_S[0]].copy() if len(here_S) else np.full(len(y_NS), np.nan)
    least = OWN_POINTS if group_RT is None else TIED_POINTS
    fitted_N = np.isnan(value_N) & (np.isfinite(y_NS).sum(axis=1) >= least)
    if fitted_N.any():
        group_N = None if group_RT is None else group_RT[fitted_N]
        fit = fit_power(law, x_S[:, None], y_NS[fitted_N], group_S=group_N, huber=huber)
        value_N[fitted_N] = fit.predict(np.array([[x]]))[:, 0]
    return value_N.reshape(y_RTS.shape[:2])
