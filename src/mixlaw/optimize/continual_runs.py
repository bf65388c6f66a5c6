"""From the tables of runs that continue a model to the critical proportion, at every checkpoint.

Shape letters: R runs, T targets, K checkpoints.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from mixlaw.errors import FitError, MixlawError, OptimizeError
from mixlaw.fit.continual import NoisePrior
from mixlaw.fit.noise import level_shift, replicate_residuals, shared_seed
from mixlaw.fit.ratio import RatioFit, checkpoint_noise, fit_ratio
from mixlaw.laws.base import MixingLaw
from mixlaw.laws.library import MIXING_LAWS
from mixlaw.laws.mixing import ExponentialLaw
from mixlaw.observations import LossTable, constant_runs, loss_table
from mixlaw.optimize.continual import CriticalProportion, find_critical
from mixlaw.optimize.continual_path import PathFit, SharePath, fit_path
from mixlaw.optimize.objective import WeightedLoss
from mixlaw.optimize.trade_off import TradeOff, trade_losses

FITTED = ("design", "imported")
ROLES = (*FITTED, "noise")
NEARLY_ALL = 0.9
"""A step counts as a checkpoint when this share of the runs was observed there."""
OTHER_LAWS = ("log-linear", "linear", "bimix")
"""Laws whose answers stand beside the chosen one's: of two parameters, and a power of the share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContinualQuestion:
    """What must be kept, and which data is which."""

    old_loss: WeightedLoss
    """The loss that must be kept."""
    original: tuple[str, ...]
    """Domains of the original data."""
    new: tuple[str, ...] | None = None
    """Domains of the new data; None: all others."""
    new_loss: WeightedLoss | None = None
    """The loss that the new data is for; None: no trade-off is shown."""
    tolerance: float = 0.0
    """What the old loss may lose."""
    original_loss: float | None = None
    """The old loss of the original model; None: as observed at step 0."""
    level: float = 0.9
    law: MixingLaw = field(default_factory=ExponentialLaw)
    prior: NoisePrior | None = None
    """What was known of the noise between runs before."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Checkpoint:
    """The critical proportion of one model size after some continued training."""

    params: float | None
    """Parameters without embeddings; None: not known."""
    step: int
    tokens: float | None
    critical: CriticalProportion


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ContinualAnswer:
    """The critical proportion at the largest model's last checkpoint, and what is around it."""

    critical: CriticalProportion
    line: PathFit
    """The old loss along the shares, at that checkpoint."""
    checkpoints: tuple[Checkpoint, ...]
    """Every checkpoint of every size, the answer's last."""
    weak: CriticalProportion | None
    """The answer with the noise that all checkpoints tell together; None: they tell nothing."""
    other_laws: Mapping[str, float | None]
    """Critical proportion under other laws; None: there is none."""
    trade_off: TradeOff | None
    by_tokens: RatioFit | None
    """Largest share of new data by tokens; None: see the notes."""
    by_params: RatioFit | None
    """Largest share of new data by model size; None: see the notes."""
    notes: tuple[str, ...]

    def sentences(self) -> tuple[str, ...]:
        """Returns the answer in sentences."""
        return (*self.critical.sentences(), *_surroundings(self), *self.notes)

    def to_json(self) -> dict[str, Any]:
        """Returns the answer as plain values."""
        curve = self.trade_off
        return {
            **_plain(self.critical),
            "mixture": None if self.critical.mixture is None else dict(self.critical.mixture),
            "checkpoints": [
                {"params": c.params, "step": c.step, "tokens": c.tokens, **_plain(c.critical)}
                for c in self.checkpoints
            ],
            "with_checkpoint_noise": None if self.weak is None else _plain(self.weak),
            "other_laws": dict(self.other_laws),
            "trade_off": None
            if curve is None
            else {
                "original_share": curve.share_S.tolist(),
                "old_loss": curve.old_S.tolist(),
                "old_half_width": curve.old_half_S.tolist(),
                "new_loss": curve.new_S.tolist(),
                "new_half_width": curve.new_half_S.tolist(),
            },
            "by_tokens": None if self.by_tokens is None else self.by_tokens.sentence("tokens"),
            "by_params": None if self.by_params is None else self.by_params.sentence("parameters"),
            "sentences": list(self.sentences()),
        }


def judge_continual(
    runs: pl.DataFrame, observations: pl.DataFrame, question: ContinualQuestion
) -> ContinualAnswer:
    """Returns the critical proportion from runs that continue one model, by checkpoint and size.

    Args:
        runs: The runs table: roles design, imported and noise count.
        observations: The observation table, with the original model's losses at step 0, or those of
            its own run.
        question: What must be kept.

    Raises:
        OptimizeError: Domains make no sense, or the original loss is not known.
        FitError: Too few shares were run, or runs of one size continue several models.
        TableError: A target is unknown, or no run has an observation.
    """
    constant = constant_runs(runs)
    notes: list[str] = []
    if staged := runs.height - constant.height:
        notes.append(f"{staged} runs whose mixture changes on the way are left out")
    runs = constant
    sizes = _sizes(runs)
    if len(sizes) > 1 and question.original_loss is not None:
        raise OptimizeError(
            f"one original loss can't be that of models of {len(sizes)} sizes",
            do="import the losses of each original model as observations at step 0",
        )
    checkpoints: list[Checkpoint] = []
    lines: list[PathFit] = []
    for params in sizes:
        of_size = runs if params is None else runs.filter(pl.col("params_non_embedding") == params)
        original_loss = _original_loss(of_size, runs, observations, question)
        lines = []
        for step in _common_steps(of_size, observations):
            line, told = _fit_step(of_size, observations, question, step)
            lines.append(line)
            notes += told
            critical = find_critical(line, original_loss, question.tolerance, level=question.level)
            tokens = _tokens_at(of_size, observations, step)
            checkpoints.append(
                Checkpoint(params=params, step=step, tokens=tokens, critical=critical)
            )
    last = checkpoints[-1]
    by_tokens, told_tokens = _by_tokens(checkpoints, last)
    by_params, told_params = _by_params(checkpoints)
    return ContinualAnswer(
        critical=last.critical,
        line=lines[-1],
        checkpoints=tuple(checkpoints),
        weak=_weak_answer(lines, last.critical),
        other_laws=_other_laws(runs, observations, question, last),
        trade_off=_trade_off(runs, observations, question, last, lines[-1]),
        by_tokens=by_tokens,
        by_params=by_params,
        notes=tuple(dict.fromkeys((*notes, *told_tokens, *told_params))),
    )


def _sizes(runs: pl.DataFrame) -> list[float | None]:
    """Returns the model sizes, the largest last; [None]: not known."""
    sizes = runs.filter(pl.col("role").is_in(ROLES))["params_non_embedding"]
    known = sorted(set(sizes.drop_nulls().to_list()))
    return [*known] if known else [None]


def _common_steps(runs: pl.DataFrame, observations: pl.DataFrame) -> list[int]:
    """Returns the steps after step 0 that nearly all runs have."""
    used = runs.filter(
        pl.col("role").is_in(ROLES), pl.col("status").fill_null("done") == "done"
    ).select("run_id")
    rows = observations.join(used, on="run_id", how="semi").filter(pl.col("step") > 0)
    rows = rows.select("run_id", "step").unique()
    num_runs = rows["run_id"].n_unique()
    counts = rows.group_by("step").len().filter(pl.col("len") >= NEARLY_ALL * num_runs)
    if not counts.height:
        raise FitError(
            "runs that continue a model must have a step in common at which they were observed",
            do="train them with `mixlaw critical --train`, or import them with `mixlaw import` and"
            " a column of steps: losses at step 0 are those of the original model",
        )
    return sorted(counts["step"].to_list())


def _fit_step(
    runs: pl.DataFrame, observations: pl.DataFrame, question: ContinualQuestion, step: int
) -> tuple[PathFit, tuple[str, ...]]:
    return _fit_loss(runs, observations, question, question.old_loss, step)


def _fit_loss(
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    question: ContinualQuestion,
    loss: WeightedLoss,
    step: int,
) -> tuple[PathFit, tuple[str, ...]]:
    """Returns one loss along the shares at a step, and what is to be said of its noise."""
    shares = loss.shares
    table = loss_table(runs, observations, targets=tuple(shares), roles=ROLES, step=step)
    weight_T = np.array(list(shares.values()))
    design, shift, common_sd, notes = _seed_noise(runs, table, weight_T)
    path = SharePath.of(design, original=question.original, new=question.new)
    line = fit_path(
        question.law,
        design,
        weight_T,
        path=path,
        prior=question.prior,
        shift=shift,
        common_sd=common_sd,
    )
    return line, notes


def _seed_noise(
    runs: pl.DataFrame, table: LossTable, weight_T: Float[np.ndarray, " T"]
) -> tuple[LossTable, float, float, tuple[str, ...]]:
    """Returns the runs to fit, and the shift and noise of a fresh seed that they don't hold.

    Where the design shares a seed, runs with fresh seeds tell what that hides; otherwise all runs
    are fitted, and the noise between seeds is in how they lie around the law.
    """
    role = dict(runs.select("run_id", "role").iter_rows())
    rows = [i for i, run_id in enumerate(table.run_ids) if role[run_id] in FITTED]
    design = table.select(rows)
    if shared_seed(design) is None:
        return table, 0.0, 0.0, ()
    shift_T, factor = level_shift(design, table)
    replicate_NT, freedom = replicate_residuals(table)
    if not freedom:
        note = "all runs share one seed: what another one would change is not in the interval"
        return design, 0.0, 0.0, (note,)
    seed_sd = math.sqrt(float(np.sum((replicate_NT @ weight_T) ** 2)) / freedom)
    return design, float(shift_T @ weight_T), math.sqrt(factor) * seed_sd, ()


def _original_loss(
    runs: pl.DataFrame,
    all_runs: pl.DataFrame,
    observations: pl.DataFrame,
    question: ContinualQuestion,
) -> float:
    """Returns the old loss before the runs go on: at step 0, or of the run they start from."""
    if question.original_loss is not None:
        return question.original_loss
    used = runs.filter(pl.col("role").is_in(ROLES))
    parents = used["parent_run_id"].drop_nulls().unique().to_list()
    if len(parents) > 1:
        raise FitError(
            f"runs of one size must continue one model, but these continue {len(parents)}:"
            f" {', '.join(sorted(parents)[:4])}",
            do="keep those of one `parent_run_id`",
        )
    first = observations.filter(pl.col("step") == 0).join(used, on="run_id", how="semi")
    if not first.height and parents and parents[0] in all_runs["run_id"]:
        own = observations.filter(pl.col("run_id") == parents[0])
        first = own.filter(pl.col("step") == pl.col("step").max())
    values = dict(first.group_by("target").agg(pl.col("value").mean()).iter_rows())
    missing = [target for target in question.old_loss.shares if values.get(target) is None]
    if missing:
        raise OptimizeError(
            f"the original model's loss on {missing[0]!r} must be known, but no run was observed at"
            " step 0 there",
            do="import its losses as observations at step 0, or give the old loss with"
            " `--original-loss`",
        )
    return math.fsum(share * values[target] for target, share in question.old_loss.shares.items())


def _tokens_at(runs: pl.DataFrame, observations: pl.DataFrame, step: int) -> float | None:
    rows = observations.filter(pl.col("step") == step).join(runs, on="run_id", how="semi")
    tokens = rows["tokens"].drop_nulls().unique().to_list()
    return tokens[0] if len(tokens) == 1 else None


def _weak_answer(
    lines: Sequence[PathFit], critical: CriticalProportion
) -> CriticalProportion | None:
    """Returns the answer with the noise of the later half of the checkpoints."""
    noise = checkpoint_noise([line.fit for line in lines[len(lines) // 2 :]])
    if noise is None:
        return None
    return find_critical(
        replace(lines[-1], noise=noise),
        critical.original_loss,
        critical.tolerance,
        level=critical.level,
    )


def _other_laws(
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    question: ContinualQuestion,
    last: Checkpoint,
) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    of_size = _of_size(runs, last)
    for name in OTHER_LAWS:
        if name == question.law.name:
            continue
        asked = replace(question, law=MIXING_LAWS[name])
        line, _ = _fit_step(of_size, observations, asked, last.step)
        other = find_critical(
            replace(line, noise=None),
            last.critical.original_loss,
            question.tolerance,
            level=question.level,
        )
        found[name] = other.share
    return found


def _trade_off(
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    question: ContinualQuestion,
    last: Checkpoint,
    old: PathFit,
) -> TradeOff | None:
    if question.new_loss is None:
        return None
    of_size = _of_size(runs, last)
    new, _ = _fit_loss(of_size, observations, question, question.new_loss, last.step)
    return trade_losses(old, new, level=question.level)


def _of_size(runs: pl.DataFrame, checkpoint: Checkpoint) -> pl.DataFrame:
    if checkpoint.params is None:
        return runs
    return runs.filter(pl.col("params_non_embedding") == checkpoint.params)


def _by_tokens(
    checkpoints: Sequence[Checkpoint], last: Checkpoint
) -> tuple[RatioFit | None, tuple[str, ...]]:
    """Returns the law by tokens at the largest size, or why there is none."""
    points = [c for c in checkpoints if c.params == last.params and _is_point(c)]
    return _try_ratio(
        [c.tokens or 0.0 for c in points],
        [c.critical.new_share or 0.0 for c in points],
        name="tokens",
        has_level=True,
        are_independent=False,
        point_sd=_point_sd(last.critical),
    )


def _by_params(
    checkpoints: Sequence[Checkpoint],
) -> tuple[RatioFit | None, tuple[str, ...]]:
    """Returns the law by model size at the last checkpoint of each, or why there is none."""
    ends = {c.params: c for c in checkpoints if c.params is not None}
    points = [c for c in ends.values() if _is_point(c)]
    if len(ends) < 2:
        return None, ("as a function of model size: the runs have one size",)
    return _try_ratio(
        [c.params or 0.0 for c in points],
        [c.critical.new_share or 0.0 for c in points],
        name="model size",
        has_level=False,
        are_independent=True,
        point_sd=0.0,
    )


def _is_point(checkpoint: Checkpoint) -> bool:
    return checkpoint.critical.outcome == "found" and bool(checkpoint.tokens)


def _point_sd(critical: CriticalProportion) -> float:
    """Returns the standard error of one checkpoint's share, from its interval."""
    if critical.low is None or critical.high is None or critical.noise is None:
        return 0.0
    return (critical.high - critical.low) / 2 / critical.noise.quantile(critical.level)


def _try_ratio(
    amounts: Sequence[float],
    ratios: Sequence[float],
    *,
    name: str,
    has_level: bool,
    are_independent: bool,
    point_sd: float,
) -> tuple[RatioFit | None, tuple[str, ...]]:
    try:
        found = fit_ratio(
            amounts,
            ratios,
            has_level=has_level,
            are_independent=are_independent,
            point_sd=point_sd,
        )
    except MixlawError as error:
        return None, (f"as a function of {name}: {error.problem}",)
    return found, ()


def _plain(found: CriticalProportion) -> dict[str, Any]:
    noise = found.noise
    return {
        "outcome": found.outcome,
        "is_identified": found.is_identified,
        "original_share": found.share,
        "low": found.low,
        "high": found.high,
        "level": found.level,
        "new_share": found.new_share,
        "safe_original_share": found.safe_share,
        "original_loss": found.original_loss,
        "tolerance": found.tolerance,
        "slope": found.slope,
        "noise": None
        if noise is None
        else {"source": noise.source, "sd": noise.sd, "freedom": noise.freedom},
        "law": found.law,
        "run_shares": list(found.run_shares),
    }


def _surroundings(answer: ContinualAnswer) -> list[str]:
    sentences: list[str] = []
    weak = answer.weak
    if weak and weak.noise and weak.share is not None and weak.low is not None:
        end = "on" if weak.high is None else f"to {weak.high:.1%}"
        sentences.append(
            f"with the noise of all checkpoints: {weak.low:.1%} {end}; {weak.noise.sentence}"
        )
    if answer.other_laws:
        told = ", ".join(
            f"{name} {'none' if share is None else f'{share:.1%}'}"
            for name, share in answer.other_laws.items()
        )
        sentences.append(f"other laws put it at: {told}")
    if answer.by_tokens is not None:
        sentences.append(answer.by_tokens.sentence("tokens"))
    if answer.by_params is not None:
        sentences.append(answer.by_params.sentence("parameters"))
    return sentences
