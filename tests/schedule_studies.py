"""Simulated runs of one and of several stages, whose truth is a law of schedules.

Shape letters: R runs, M training domains, T targets, X columns of a schedule.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from mixlaw.fit.stages import Schedule, ends_of
from mixlaw.laws.mixing import ExponentialLaw
from mixlaw.laws.stages import StagedLaw
from mixlaw.mixtures import Mixture
from mixlaw.observations import encode_stages

DOMAINS = ("code", "prose", "web")
TARGETS = ("code", "prose")
THETA_TP = np.array(
    [
        [1.5, -2.5, 0.2, 0.1, 4.0, 0.8, 0.5],
        [1.2, 0.3, -2.0, -0.4, 3.0, 0.5, -0.5],
    ]
)
"""By target: c, t of each domain, k, d and the logit of b."""
STEPS = 500


def true_losses(schedules: Sequence[Schedule], theta_TP: np.ndarray = THETA_TP) -> np.ndarray:
    """Returns the expected losses of schedules, whatever their stages."""
    return np.stack(
        [
            StagedLaw(ExponentialLaw(), s.ends).predict(s.shares(s.ends, DOMAINS)[None], theta_TP)[
                :, 0
            ]
            for s in schedules
        ]
    )


def draw_mixtures(rng: np.random.Generator, count: int) -> list[Mixture]:
    """Returns mixtures with at least 0.05 of each domain."""
    return [
        Mixture.from_array(DOMAINS, 0.05 + 0.85 * rng.dirichlet([1.0] * 3)) for _ in range(count)
    ]


def draw_pairs(
    rng: np.random.Generator, count: int, fractions: tuple[float, ...] = (0.8, 0.2)
) -> list[Schedule]:
    """Returns schedules of as many stages as fractions."""
    return [Schedule(fractions, tuple(draw_mixtures(rng, len(fractions)))) for _ in range(count)]


def staged_tables(
    schedules: Sequence[Schedule],
    y_RT: np.ndarray,
    *,
    roles: Sequence[str] | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Returns the runs and the observations table."""
    rows: list[dict[str, object]] = []
    cells: list[dict[str, object]] = []
    for i, (schedule, y_T) in enumerate(zip(schedules, y_RT, strict=True)):
        ends = [round(end * STEPS) for end in schedule.ends]
        is_constant = len(set(schedule.mixtures)) == 1
        text = encode_stages(list(zip(ends, schedule.mixtures, strict=True)))
        rows.append(
            {
                "run_id": f"run{i:03d}",
                "mixture_id": f"schedule{i}",
                "role": "design" if roles is None else roles[i],
                "seed": 0,
                "params_non_embedding": 49_000.0,
                "stages": None if is_constant else text,
                **{f"r:{name}": share for name, share in schedule.mean.items()},
            }
        )
        for target, value in zip(TARGETS, y_T, strict=True):
            cells.append(
                {
                    "run_id": f"run{i:03d}",
                    "step": STEPS,
                    "tokens": 1e6,
                    "target": target,
                    "value": float(value),
                    "unit": "nats_per_token",
                }
            )
    runs = pl.DataFrame(rows, schema_overrides={"stages": pl.String}, infer_schema_length=None)
    return runs, pl.DataFrame(cells)


def planted_study(
    *,
    seed: int = 0,
    noise: float = 0.0,
    fractions: tuple[float, ...] = (0.8, 0.2),
    theta_TP: np.ndarray = THETA_TP,
) -> tuple[list[Schedule], pl.DataFrame, pl.DataFrame]:
    """Returns 10 constant runs and 10 of several stages."""
    rng = np.random.default_rng(seed)
    ends_of(fractions)  # raises where they make no sense
    constant = [Schedule.constant(m, fractions) for m in draw_mixtures(rng, 10)]
    schedules = [*constant, *draw_pairs(rng, 10, fractions)]
    y_RT = true_losses(schedules, theta_TP)
    return schedules, *staged_tables(schedules, y_RT + noise * rng.normal(size=y_RT.shape))
