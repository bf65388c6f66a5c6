"""Which runs a mixing law is fitted to: of one mixture each, and from one starting point."""

import numpy as np
import polars as pl
import pytest

from mixlaw.errors import FitError
from mixlaw.fit import fit_law
from mixlaw.fit.fitted_runs import read_fitted
from mixlaw.laws.library import MIXING_LAWS
from mixlaw.mixtures import Mixture
from mixlaw.observations import encode_stages
from mixlaw.selection import select_law
from mixlaw.selection.holdout import score_holdout

STAGES = encode_stages([(5, Mixture.of({"a": 1.0})), (9, Mixture.of({"b": 1.0}))])


def make_tables(
    groups: dict[str, tuple[str | None, str | None]], *, count: int = 12
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Runs by group, each with its parent and its stages; the groups' losses lie 1 apart."""
    rng = np.random.default_rng(0)
    runs: list[dict[str, object]] = []
    observations: list[dict[str, object]] = []
    for offset, (group, (parent, stages)) in enumerate(groups.items()):
        for index, share in enumerate(np.linspace(0.1, 0.9, count)):
            run_id = f"{group}-{index}"
            runs.append(
                {
                    "run_id": run_id,
                    "role": "holdout" if index % 4 == 3 else "design",
                    "parent_run_id": parent,
                    "stages": stages,
                    "r:a": share,
                    "r:b": 1 - share,
                }
            )
            loss = 2 + offset + np.exp(-2 * share) + 1e-3 * rng.standard_normal()
            for target, value, unit in (("a", loss, "nats_per_token"), ("task:a", 0.5, "error")):
                observations.append(
                    {"run_id": run_id, "step": 9, "target": target, "value": value, "unit": unit}
                )
    schema = {"parent_run_id": pl.String(), "stages": pl.String()}
    return pl.DataFrame(runs, schema_overrides=schema), pl.DataFrame(observations)


def groups_of(run_ids: tuple[str, ...]) -> set[str]:
    return {run_id.rpartition("-")[0] for run_id in run_ids}


PLAIN, STAGED = (None, None), (None, STAGES)


def test_staged_and_continued_runs_are_left_out_and_told() -> None:
    tables = make_tables({"plain": PLAIN, "staged": STAGED, "continued": ("plain-0", None)})
    found = read_fitted(*tables)
    assert groups_of(found.fitted.run_ids) == groups_of(found.compared.run_ids) == {"plain"}
    assert found.notes == (
        "12 runs whose mixture changes on the way are left out",
        "9 runs that start from other weights are left out",
    )
    assert read_fitted(*make_tables({"plain": PLAIN})).notes == ()


def test_runs_that_all_start_from_the_same_weights_are_fitted() -> None:
    tables = make_tables({"continued": ("0123456789abcdef", None), "staged": STAGED})
    found = read_fitted(*tables)
    assert groups_of(found.fitted.run_ids) == {"continued"}


def test_runs_of_several_starting_points_are_told() -> None:
    tables = make_tables({"one": ("p", None), "two": ("q", None)})
    with pytest.raises(FitError, match=r"(?s)these start from 2: p, q.*one `parent_run_id`"):
        read_fitted(*tables)


def test_schedules_alone_are_told() -> None:
    with pytest.raises(FitError, match=r"(?s)runs of one mixture each.*mixlaw schedule"):
        read_fitted(*make_tables({"staged": STAGED}))


def test_a_law_and_its_choice_are_of_plain_losses_whatever_else_there_is() -> None:
    alone = make_tables({"plain": PLAIN})
    mixed = make_tables({"plain": PLAIN, "staged": STAGED, "continued": ("plain-0", None)})
    law = MIXING_LAWS["m4"]
    fits = [fit_law(law, *tables) for tables in (alone, mixed)]
    assert fits[0].targets == fits[1].targets == ("a",)
    assert np.array_equal(fits[0].theta_TP, fits[1].theta_TP)
    choices = [select_law(*tables) for tables in (alone, mixed)]
    assert choices[0].best.name == choices[1].best.name
    scores = [
        score_holdout(fit, *tables, {"a": 1.0})
        for fit, tables in zip(fits, (alone, mixed), strict=True)
    ]
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[0].run_ids == scores[1].run_ids == ("plain-3", "plain-7", "plain-11")
