"""Simulated studies with task errors: an error law per domain on top of simulated losses."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from simulated import STEP, SimulatedStudy, simulate_study

ITEMS = 400
CHECKPOINTS = ((STEP // 4, 0.8), (STEP // 2, 0.35), (STEP, 0.0))
"""Steps, and how far the losses then lie above the last ones."""


@dataclass(frozen=True, kw_only=True)
class TaskStudy:
    """A simulated study whose observations hold losses and task errors at three steps."""

    study: SimulatedStudy
    observations: pl.DataFrame
    theta_KP: np.ndarray
    """Planted epsilon, k and gamma of each domain's task."""

    @property
    def losses(self) -> pl.DataFrame:
        """The observations without the tasks."""
        return self.observations.filter(pl.col("unit") != "error")


def simulate_tasks(
    seed: int, *, form: str = "exponential", items: int = ITEMS, seed_sd: float = 0.0
) -> TaskStudy:
    """Returns a study with one task per domain, made of that domain's loss.

    Args:
        seed: Of everything that is drawn.
        form: Of the losses' truth.
        items: Of each task; every run's mistakes are drawn on their own.
        seed_sd: What a run's seed does to a task's error on all mixtures.
    """
    study = simulate_study(seed, form=form)
    rng = np.random.default_rng(seed + 500)
    wide = study.observations.pivot(on="target", index="run_id", values="value")
    epsilon_K, gamma_K = rng.uniform(0.8, 0.95, 5), rng.uniform(0.5, 1.2, 5)
    middle_K = wide.select(study.domains).to_numpy().mean(axis=0)
    theta_KP = np.stack([epsilon_K, (epsilon_K - 0.5) * np.exp(gamma_K * middle_K), gamma_K], 1)
    seeds = dict(study.runs.select("run_id", "seed").iter_rows())
    offsets = {s: seed_sd * rng.standard_normal(5) for s in sorted(set(seeds.values()))}
    rows = []
    for run in wide.iter_rows(named=True):
        for step, above in CHECKPOINTS:
            for k, name in enumerate(study.domains):
                loss = run[name] + above
                share = theta_KP[k, 0] - theta_KP[k, 1] * np.exp(-theta_KP[k, 2] * loss)
                share = float(np.clip(share + offsets[seeds[run["run_id"]]][k], 0.01, 0.99))
                error = float(rng.binomial(items, share) / items)
                spread = float(np.sqrt(share * (1 - share) / items))
                rows += [
                    (run["run_id"], step, name, loss, "nats_per_token", None),
                    (run["run_id"], step, f"task:{name}", error, "error", spread),
                ]
    names = ["run_id", "step", "target", "value", "unit", "standard_error"]
    return TaskStudy(
        study=study,
        observations=pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None),
        theta_KP=theta_KP,
    )
