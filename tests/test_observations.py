import math

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from mixlaw.errors import TableError
from mixlaw.mixtures import Mixture
from mixlaw.observations import (
    OBSERVATION_SCHEMA,
    RUN_SCHEMA,
    check_observations,
    check_runs,
    constant_runs,
    decode_stages,
    encode_stages,
    loss_table,
    loss_target_names,
    proportion_domains,
    run_mixture,
    target_names,
    task_target_names,
)


def make_runs() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "run_id": ["one", "two", "three"],
            "role": ["design", "design", "holdout"],
            "seed": [0, 0, 7],
            "r:web": [0.2, 0.5, 0.9],
            "r:code": [0.8, 0.5, 0.1],
        }
    )


def make_observations() -> pl.DataFrame:
    rows = [
        ("two", 10, "web", 3.2, 0.02),
        ("two", 20, "web", 3.0, None),
        ("one", 10, "web", 3.5, 0.01),
        ("one", 20, "web", 3.1, 0.03),
        ("one", 20, "wiki", 2.5, 0.03),
        ("three", 20, "web", 2.9, 0.03),
        ("stranger", 20, "web", 9.9, 0.03),
    ]
    return pl.DataFrame(
        rows, schema=["run_id", "step", "target", "value", "standard_error"], orient="row"
    ).with_columns(unit=pl.lit("nats_per_token"), tokens=pl.col("step") * 100.0)


def test_losses_are_joined_by_run_and_not_by_row() -> None:
    table = loss_table(make_runs(), make_observations())
    assert table.run_ids == ("one", "two", "three")
    assert table.targets == ("web", "wiki")
    assert table.y_RT[:, 0].tolist() == [3.1, 3.0, 2.9]
    assert table.y_RT[0, 1] == 2.5
    assert np.isnan(table.y_RT[1:, 1]).all()
    assert table.r_RM.tolist() == [[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]]
    assert table.standard_error_RT[0].tolist() == [0.03, 0.03]
    assert math.isnan(table.standard_error_RT[1, 0])
    assert (table.step, table.tokens, table.unit) == (20, 2000.0, "nats_per_token")
    assert table.seeds == (0, 0, 7)


def test_roles_step_and_targets_choose_what_is_read() -> None:
    table = loss_table(
        make_runs(), make_observations(), roles=("design",), step=10, targets=("web",)
    )
    assert table.run_ids == ("one", "two")
    assert table.y_RT.tolist() == [[3.5], [3.2]]
    assert table.step == 10


def test_each_run_gives_its_last_step_by_default() -> None:
    observations = make_observations().filter(
        ~((pl.col("run_id") == "two") & (pl.col("step") == 20))
    )
    table = loss_table(make_runs(), observations, targets=("web",))
    assert table.y_RT[:, 0].tolist() == [3.1, 3.2, 2.9]
    assert table.step is None
    assert table.tokens is None


@pytest.mark.parametrize("status", ["failed", "cancelled", "running", "pending"])
def test_runs_that_are_not_done_are_left_out(status: str) -> None:
    runs = make_runs().with_columns(status=pl.Series(["done", status, None]))
    assert loss_table(runs, make_observations()).run_ids == ("one", "three")


def test_mixture_ids_are_made_where_they_are_missing() -> None:
    runs = make_runs().with_columns(mixture_id=pl.Series(["given", None, None]))
    table = loss_table(runs, make_observations())
    expected = Mixture.of({"web": 0.5, "code": 0.5}).mixture_id
    assert table.mixture_ids[:2] == ("given", expected)


def test_selecting_rows_keeps_them_together() -> None:
    table = loss_table(make_runs(), make_observations()).select([2, 0])
    assert table.run_ids == ("three", "one")
    assert table.seeds == (7, 0)
    assert table.y_RT[:, 0].tolist() == [2.9, 3.1]
    assert table.r_RM[:, 0].tolist() == [0.9, 0.2]


def test_missing_columns_are_filled_with_null_in_the_schema_order() -> None:
    runs = check_runs(make_runs())
    assert runs.columns == [*RUN_SCHEMA, "r:web", "r:code"]
    assert runs["origin"].null_count() == 3
    assert check_observations(make_observations()).columns == list(OBSERVATION_SCHEMA)
    assert_frame_equal(check_runs(runs), runs)


def test_domains_and_targets_keep_their_order() -> None:
    assert proportion_domains(make_runs()) == ("web", "code")
    assert target_names(make_observations()) == ("web", "wiki")
    assert dict(run_mixture(make_runs(), "three")) == {"web": 0.9, "code": 0.1}


def test_names_of_domains_are_data() -> None:
    names = ["<script>alert(1)</script>", "$(id)", "../x", "r:a'b\"", "🦜"]
    runs = pl.DataFrame({"run_id": ["one"], **{f"r:{name}": [0.2] for name in names}})
    assert proportion_domains(check_runs(runs)) == tuple(names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda runs: runs.drop("run_id"),
            "the runs table must have `run_id` and at least two `r:<domain>` columns, found role,"
            " seed, r:web, r:code",
        ),
        (
            lambda runs: runs.drop("r:code"),
            "the runs table must have `run_id` and at least two `r:<domain>` columns, found run_id,"
            " role, seed, r:web",
        ),
        (
            lambda runs: pl.concat([runs, runs.head(1)]),
            "run ids must differ, but 'one' is there twice",
        ),
        (
            lambda runs: runs.with_columns(pl.Series("r:web", [0.2, 0.4, 0.9])),
            "the proportions of run 'two' must be non-negative and sum to 1, but they sum to 0.9",
        ),
        (
            lambda runs: runs.with_columns(pl.Series("r:web", [0.2, None, 0.9])),
            "the proportions of run 'two' must be non-negative and sum to 1, but they sum to nan",
        ),
        (
            lambda runs: runs.with_columns(
                pl.Series("r:web", [1.5, 0.5, 0.9]), pl.Series("r:code", [-0.5, 0.5, 0.1])
            ),
            "the proportions of run 'one' must be non-negative and sum to 1, but they sum to 1",
        ),
    ],
)
def test_runs_that_make_no_sense_say_why(change, message: str) -> None:
    with pytest.raises(TableError) as error:
        loss_table(change(make_runs()), make_observations())
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: rows.drop("value").select("run_id", "step", "target"),
            "the observations table must have `value`, found run_id, step, target",
        ),
        (
            lambda rows: pl.concat([rows, rows.head(1)]),
            "a run has one value per step and target, but run 'two', step 10, target 'web' is there"
            " twice",
        ),
        (
            lambda rows: rows.with_columns(
                unit=pl.when(pl.col("target") == "wiki")
                .then(pl.lit("bits_per_byte"))
                .otherwise("unit")
            ),
            "the losses must have one unit, found bits_per_byte, nats_per_token\n"
            "  do: name targets of one unit: losses, or errors of tasks",
        ),
        (
            lambda rows: rows.with_columns(
                unit=pl.when(pl.col("target") == "wiki").then(None).otherwise("unit")
            ),
            "the losses must have one unit, found nats_per_token, none\n"
            "  do: name targets of one unit: losses, or errors of tasks",
        ),
    ],
)
def test_observations_that_make_no_sense_say_why(change, message: str) -> None:
    with pytest.raises(TableError) as error:
        loss_table(make_runs(), change(make_observations()))
    assert str(error.value) == message


def test_an_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(TableError) as error:
        loss_table(make_runs(), make_observations(), targets=("web", "law"))
    assert str(error.value) == ("'law' is no target of these runs\n  do: the targets are web, wiki")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"step": 11}, " at step 11"),
        ({"roles": ("noise",)}, " among the runs with role noise"),
        ({"step": 10, "roles": ("holdout",)}, " at step 10 among the runs with role holdout"),
    ],
)
def test_nothing_to_read_says_what_was_looked_for(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(TableError) as error:
        loss_table(make_runs(), make_observations(), **arguments)
    assert str(error.value) == (
        f"no finished run has an observation{words}\n"
        "  do: train some with `mixlaw run`, or import them with `mixlaw import`"
    )


def with_task() -> pl.DataFrame:
    """Observations with errors of a task beside the losses, first in the table."""
    errors = make_observations().with_columns(
        target=pl.lit("task:") + pl.col("target"),
        value=pl.col("value") / 10,
        unit=pl.lit("error"),
    )
    return pl.concat([errors, make_observations()])


def test_a_table_is_of_losses_unless_errors_are_asked_for() -> None:
    table = loss_table(make_runs(), with_task())
    assert (table.targets, table.unit) == (("web", "wiki"), "nats_per_token")
    assert table.y_RT[:, 0].tolist() == [3.1, 3.0, 2.9]
    errors = loss_table(make_runs(), with_task(), targets=["task:web"])
    assert (errors.targets, errors.unit) == (("task:web",), "error")
    assert errors.y_RT[:, 0] == pytest.approx([0.31, 0.30, 0.29])
    only = with_task().filter(pl.col("unit") == "error")
    assert loss_table(make_runs(), only).targets == ("task:web", "task:wiki")
    with pytest.raises(TableError, match="must have one unit, found error, nats_per_token"):
        loss_table(make_runs(), with_task(), targets=["web", "task:web"])


def test_targets_are_told_apart_by_unit() -> None:
    assert loss_target_names(with_task()) == ("web", "wiki")
    assert task_target_names(with_task()) == ("task:web", "task:wiki")
    assert task_target_names(make_observations()) == ()
    without_units = make_observations().with_columns(unit=pl.lit(None, pl.String))
    assert loss_target_names(without_units) == ("web", "wiki")


def test_stages_come_back_from_their_text() -> None:
    stages = ((5, Mixture.of({"<b>": 0.1, "🦜": 0.9})), (9, Mixture.of({"🦜": 1.0})))
    assert decode_stages(encode_stages(stages)) == stages
    for text in ("", "[1]", '{"until": 1}', '[{"until": 3}]', "null"):
        with pytest.raises(TableError, match="a run's stages must be JSON"):
            decode_stages(text)


@pytest.mark.parametrize("ends", [(), (0,), (-5, 9), (9, 9), (9, 5)])
def test_stages_without_a_length_are_refused(ends: tuple[int, ...]) -> None:
    text = encode_stages([(end, Mixture.of({"web": 1.0})) for end in ends])
    with pytest.raises(TableError, match="must end after one another"):
        decode_stages(text)


def test_stages_that_never_end_are_refused() -> None:
    with pytest.raises(TableError, match="must be JSON"):
        decode_stages('[{"until": 1e999, "proportions": {"web": 1.0}}]')


def test_runs_with_stages_are_not_constant() -> None:
    staged = make_runs().with_columns(stages=pl.Series([None, "[]", None], dtype=pl.String))
    assert constant_runs(staged)["run_id"].to_list() == ["one", "three"]
    assert constant_runs(make_runs()).height == 3
