"""Losses of runs at several lengths, as a fit of repetition takes them.

Shape letters: N losses (a run at a step), M training domains, T targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from mixlaw.errors import FitError
from mixlaw.fit.fitted_runs import FITTED_ROLES
from mixlaw.observations import (
    PROPORTION_PREFIX,
    check_observations,
    check_runs,
    constant_runs,
    proportion_domains,
    target_names,
)

EARLY = 0.1
"""Steps before this share of the last one follow another law and are left out."""
LEAST_LOSSES = 2
"""Losses for each parameter of a target that a fit needs."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenLosses:
    """Losses of runs at several steps."""

    r_NM: Float[np.ndarray, "N M"]
    tokens_N: Float[np.ndarray, " N"]
    run_N: Int[np.ndarray, " N"]
    y_TN: Float[np.ndarray, "T N"]
    targets: tuple[str, ...]
    domains: tuple[str, ...]

    @property
    def has_steps(self) -> bool:
        """Whether there are several lengths, without which nothing is known of tokens."""
        return len(np.unique(self.tokens_N)) > 1


def supply_array(domains: Sequence[str], supply: Mapping[str, float]) -> Float[np.ndarray, " M"]:
    """Returns unique tokens in the order of the domains; infinite where they are not named."""
    return np.array([float(supply.get(name, np.inf)) for name in domains])


def read_token_losses(
    runs: pl.DataFrame,
    observations: pl.DataFrame,
    targets: Sequence[str] | None,
    params: float | None,
) -> TokenLosses:
    """Returns the losses of finished runs of one size, each with one mixture from start to end.

    Raises:
        FitError: Too few losses, or none at a known number of tokens.
    """
    runs, observations = constant_runs(check_runs(runs)), check_observations(observations)
    runs = runs.filter(
        pl.col("parent_run_id").is_null(),
        pl.col("role").is_in(FITTED_ROLES),
        pl.col("status").fill_null("done") == "done",
    )
    size = runs["params_non_embedding"].max() if params is None else params
    if size is not None:
        runs = runs.filter(pl.col("params_non_embedding") == size)
    chosen = target_names(observations) if targets is None else tuple(targets)
    rows = observations.filter(
        pl.col("target").is_in(list(chosen)), pl.col("step") > 0, pl.col("tokens").is_not_null()
    ).join(runs.select("run_id"), on="run_id", how="semi")
    if not rows.height:
        raise FitError("no run has losses at a known number of tokens")
    last: float = rows["tokens"].max()  # pyright: ignore[reportAssignmentType]
    wide = (
        rows.filter(pl.col("tokens") >= EARLY * last)
        .pivot("target", index=["run_id", "tokens"], values="value")
        .sort("run_id", "tokens")
    )
    domains = proportion_domains(runs)
    shares = runs.select("run_id", *(pl.col(PROPORTION_PREFIX + d) for d in domains))
    joined = wide.join(shares, on="run_id", how="left", maintain_order="left")
    needed = LEAST_LOSSES * (len(domains) + 2)
    if joined.height < needed:
        raise FitError(
            f"a law of repetition needs {needed} losses of each target, found {joined.height}",
            do="train or import more mixtures",
        )
    run_ids = joined["run_id"].to_list()
    index = {run_id: i for i, run_id in enumerate(dict.fromkeys(run_ids))}
    y_NT = joined.select(chosen).to_numpy().astype(float)
    return TokenLosses(
        r_NM=joined.select(PROPORTION_PREFIX + d for d in domains).to_numpy().astype(float),
        tokens_N=joined["tokens"].to_numpy().astype(float),
        run_N=np.array([index[run_id] for run_id in run_ids]),
        y_TN=np.ascontiguousarray(y_NT.T),
        targets=chosen,
        domains=domains,
    )
