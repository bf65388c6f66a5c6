"""Tables of others: joined by key, whatever their order, format and names."""

import json
import math
import os
import random
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlaw.importers import import_tables, tables_from_frames
from mixlaw.importers.reading import as_number
from mixlaw.observations import loss_table, proportion_domains, run_mixture, target_names

PUBLISHED = Path(
    os.environ.get("MIXLAW_PUBLISHED_DATA", Path(__file__).parents[2] / "shared" / "data")
)
ODD_NAMES = ("<script>alert(1)</script>", "$(id)", "../x", 'quo"te', "émoji 🎲", "=cmd()", "a,b")

RUNS = """run,mix/web,mix/code,params,seed
a,0.5,0.5,1000,0
b,0.9,0.1,1000,0
c,0.25,0.75,1000,1
"""
METRICS = """run,step,eval/web/loss,eval/code/loss
c,100,3.5,2.5
a,100,3.0,3.25
b,100,2.75,4.0
a,50,3.5,3.75
"""


def write(path, text):
    path.write_text(text, encoding="utf-8", newline="")
    return path


def by_name(tables):
    """Returns (web share, target, step) -> loss, which does not depend on any order."""
    shares = dict(tables.runs.select("run_id", "r:web").iter_rows())
    columns = tables.observations.select("run_id", "target", "step", "value")
    return {(shares[run], target, step): value for run, target, step, value in columns.iter_rows()}


def test_two_files_are_joined_by_key(tmp_path):
    tables = import_tables(write(tmp_path / "r.csv", RUNS), write(tmp_path / "m.csv", METRICS))
    assert by_name(tables) == {
        (0.25, "web", 100): 3.5, (0.25, "code", 100): 2.5,
        (0.5, "web", 100): 3.0, (0.5, "code", 100): 3.25,
        (0.9, "web", 100): 2.75, (0.9, "code", 100): 4.0,
        (0.5, "web", 50): 3.5, (0.5, "code", 50): 3.75,
    }  # fmt: skip
    assert tables.runs["seed"].to_list() == [0, 0, 1]
    assert tables.runs["params_non_embedding"].to_list() == [1000.0] * 3
    assert tables.runs["origin"].to_list() == ["r.csv"] * 3
    assert set(tables.observations["unit"]) == {"nats_per_token"}
    assert tables.notes == (
        "runs: 3 of r.csv, named by the column 'run'",
        "domains: 2 by mix/{domain}: web, code",
        "targets: 2 of m.csv by eval/{target}/loss: web, code",
        "further columns: params_non_embedding from 'params'",
    )


@given(st.randoms(use_true_random=False))
def test_the_order_of_rows_and_columns_does_not_matter(rng):
    frames = [pl.read_csv(text.encode()) for text in (RUNS, METRICS)]
    expected = by_name(tables_from_frames(*frames, source="s"))
    shuffled = []
    for frame in frames:
        rows = list(range(frame.height))
        columns = list(frame.columns)
        rng.shuffle(rows)
        rng.shuffle(columns)
        shuffled.append(frame[rows].select(columns))
    assert by_name(tables_from_frames(*shuffled, source="s")) == expected


def test_long_losses_say_the_same_as_wide_ones(tmp_path):
    wide = pl.read_csv(METRICS.encode())
    long = wide.unpivot(index=["run", "step"], variable_name="metric", value_name="value")
    long = long.with_columns(pl.col("metric").str.extract("eval/(.*)/loss"), stderr=pl.lit(0.01))
    runs = pl.read_csv(RUNS.encode())
    tables = tables_from_frames(runs, long, source="s")
    assert by_name(tables) == by_name(tables_from_frames(runs, wide, source="s"))
    assert set(tables.observations["standard_error"]) == {0.01}


def test_one_file_can_hold_shares_and_losses(tmp_path):
    frames = [pl.read_csv(text.encode()) for text in (RUNS, METRICS)]
    path = tmp_path / "all.csv"
    frames[1].join(frames[0], on="run").write_csv(path)
    tables = import_tables(path)
    assert by_name(tables) == by_name(tables_from_frames(*frames, source="s"))
    assert tables.runs.height == 3


@pytest.mark.parametrize("kind", ["csv", "tsv", "semicolon", "jsonl", "nested", "parquet", "bom"])
def test_formats_say_the_same(kind, tmp_path):
    runs, metrics = (pl.read_csv(text.encode()) for text in (RUNS, METRICS))
    path = tmp_path / ("runs.tsv" if kind == "tsv" else "runs.dat")
    if kind in ("csv", "bom"):
        path.write_bytes((b"\xef\xbb\xbf" if kind == "bom" else b"") + RUNS.encode())
    elif kind in ("tsv", "semicolon"):
        runs.write_csv(path, separator="\t" if kind == "tsv" else ";")
    elif kind == "jsonl":
        runs.write_ndjson(path)
    elif kind == "nested":
        rows = [
            {"run": r["run"], "mix": {"web": r["mix/web"], "code": r["mix/code"]}}
            for r in runs.to_dicts()
        ]
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        runs.write_parquet(path)
    losses = tmp_path / "metrics.csv"
    metrics.write_csv(losses)
    tables = import_tables(path, losses)
    assert by_name(tables) == by_name(tables_from_frames(runs, metrics, source="s"))


def test_importing_twice_gives_the_same_runs_wherever_the_file_lies(tmp_path):
    (tmp_path / "other").mkdir()
    ids = [
        import_tables(
            write(folder / "r.csv", text), write(folder / "m.csv", METRICS)
        ).runs["run_id"].to_list()
        for folder, text in ((tmp_path, RUNS), (tmp_path / "other", RUNS.replace("0.9", "0.90")))
    ]  # fmt: skip
    assert ids[0] == ids[1]
    # SHA-256 of '["imported", "r.csv", "a"]', 16 digits; a change would double every import.
    assert ids[0][0] == "f700a2ff8ee6f901"
    named = import_tables(tmp_path / "r.csv", tmp_path / "m.csv", source="spring")
    assert not set(named.runs["run_id"]) & set(ids[0])


def test_names_are_data(tmp_path):
    names = list(ODD_NAMES)
    runs = pl.DataFrame(
        {"run": ["../../etc", "$(id)"]}
        | {f"mix/{name}": [1 / 7, 0.4 if i == 0 else 0.1] for i, name in enumerate(names)}
    )
    metrics = pl.DataFrame(
        {"run": ["$(id)", "../../etc"]} | {f"eval/{name}/loss": [1.0, 2.0] for name in names}
    )
    runs.write_csv(tmp_path / "r.csv")
    metrics.write_csv(tmp_path / "m.csv")
    tables = import_tables(tmp_path / "r.csv", tmp_path / "m.csv")
    assert proportion_domains(tables.runs) == ODD_NAMES
    assert target_names(tables.observations) == ODD_NAMES
    second = run_mixture(tables.runs, tables.runs["run_id"][1])
    assert second[ODD_NAMES[0]] == pytest.approx(0.4)


def test_rounded_shares_are_divided_by_their_sum_and_said(tmp_path):
    text = "run,mix/web,mix/code\na,0.333,0.66\nb,0.5,0.5\n"
    metrics = "run,loss/web\na,1\nb,2\n"
    tables = import_tables(write(tmp_path / "r.csv", text), write(tmp_path / "m.csv", metrics))
    assert tables.runs["r:web"].to_list() == [pytest.approx(0.333 / 0.993), 0.5]
    assert "shares sum to 0.993 to 1; 1 of 2 rows were divided by their sum" in tables.notes


def test_empty_cells_doubled_rows_and_other_columns_are_said(tmp_path):
    runs = "run,mix/web,mix/code,comment\na,1,0,x\nb,0,1,\na,1,0,x\n"
    metrics = "run,loss/web,loss/code\nb,2,NA\na,1,3\nb,2,\n"
    tables = import_tables(write(tmp_path / "r.csv", runs), write(tmp_path / "m.csv", metrics))
    assert by_name(tables) == {
        (1.0, "web", 0): 1.0, (1.0, "code", 0): 3.0, (0.0, "web", 0): 2.0
    }  # fmt: skip
    assert tables.notes[3:] == (
        "doubled: 2 rows or losses were there before, with the same values",
        "no column of steps: all losses are taken for those at the runs' ends (step 0)",
        "missing: 1 of 4 losses",
        "ignored columns: comment",
    )


def test_tokens_come_from_the_row_the_steps_or_the_run():
    runs = pl.DataFrame({"run": ["a"], "r:x": [0.5], "r:y": [0.5], "tokens": [1e9]})
    final = pl.DataFrame({"run": ["a"], "loss/x": [1.0]})
    assert tables_from_frames(runs, final, source="s").observations["tokens"].to_list() == [1e9]
    steps = pl.DataFrame({"run": ["a", "a"], "step": [1, 2], "loss/x": [1.0, 0.5]})
    per_step = runs.drop("tokens").with_columns(tokens_per_step=pl.lit(1024))
    tables = tables_from_frames(per_step, steps, source="s")
    assert tables.observations["tokens"].to_list() == [1024.0, 2048.0]
    own = steps.with_columns(tokens=pl.Series([5, 6]))
    assert tables_from_frames(runs, own, source="s").observations["tokens"].to_list() == [5.0, 6.0]
    unknown = tables_from_frames(runs.drop("tokens"), steps, source="s")
    assert unknown.observations["tokens"].null_count() == 2


def test_roles_mark_held_out_and_noise_runs():
    runs = pl.DataFrame(
        {"run": list("abcd"), "r:x": [0.5] * 4, "r:y": [0.5] * 4,
         "role": ["design", "holdout", "noise", "baseline"], "loss/x": [1.0] * 4}
    )  # fmt: skip
    tables = tables_from_frames(runs, source="s")
    assert tables.runs["role"].to_list() == ["imported", "holdout", "noise", "imported"]


def test_columns_can_be_named_one_by_one():
    frame = pl.DataFrame(
        {"name": ["a", "b"], "w": [0.25, 0.5], "c": [0.75, 0.5], "l": [2.0, 3.0], "it": [7, 7]}
    )
    tables = tables_from_frames(
        frame,
        source="s",
        key="name",
        proportions={"web": "w", "code": "c"},
        losses={"books": "l"},
        columns={"step": "it"},
    )
    assert by_name(tables) == {(0.25, "books", 7): 2.0, (0.5, "books", 7): 3.0}
    assert "further columns: step from 'it'" in tables.notes


def test_runs_without_a_name_are_named_by_their_row():
    frame = pl.DataFrame({"r:web": [0.25, 0.5], "r:code": [0.75, 0.5], "loss/x": [2.0, 3.0]})
    tables = tables_from_frames(frame, source="s")
    assert tables.runs["run_id"].n_unique() == 2
    assert tables.notes[0] == ("runs: 2 of the runs frame, named by their row (keep their order)")


def test_plain_columns_of_two_files_are_guessed(tmp_path):
    # As olmix has them: ratios.csv and metrics.csv with the domains' and tasks' names as columns.
    runs = "run,name,web,code,wall\n1,x,0.5,0.5,99\n2,y,0.1,0.9,98\n"
    metrics = "run,name,web,hellaswag\n2.0,y,2.5,1.5\n1.0,x,2.75,1.25\n"
    tables = import_tables(write(tmp_path / "r.csv", runs), write(tmp_path / "m.csv", metrics))
    assert by_name(tables)[0.1, "hellaswag", 0] == 1.5
    assert "ignored columns: name, wall" in tables.notes


def test_a_first_column_without_a_name_is_an_index(tmp_path):
    # pandas writes its index so.
    runs = write(tmp_path / "r.csv", ",mix/web,mix/code\n0,0.5,0.5\n1,0.1,0.9\n")
    metrics = write(tmp_path / "m.csv", ",loss/web\n1,1.0\n0,2.0\n")
    tables = import_tables(runs, metrics)
    assert by_name(tables) == {(0.5, "web", 0): 2.0, (0.1, "web", 0): 1.0}
    assert tables.notes[0] == "runs: 2 of r.csv, named by the column 'index'"


def test_unmatched_runs_can_be_left_out(tmp_path):
    runs = write(tmp_path / "r.csv", RUNS + "d,0.5,0.5,1,1\n")
    metrics = write(tmp_path / "m.csv", METRICS + "e,1,1,1\n")
    tables = import_tables(runs, metrics, drop_unmatched=True)
    assert tables.runs.height == 3
    assert tables.notes[-2:] == (
        "left out: 1 run ('d') of r.csv is not in m.csv",
        "left out: 1 run ('e') of m.csv is not in r.csv",
    )


def test_units_are_kept():
    frame = pl.DataFrame({"run": ["a"], "r:x": [0.5], "r:y": [0.5], "loss/x": [0.5]})
    tables = tables_from_frames(frame, source="s", unit="error")
    assert tables.observations["unit"].to_list() == ["error"]


def test_published_runs_are_imported():
    folder = PUBLISHED / "regmix"
    if not folder.exists():
        pytest.skip("the published runs are not here: set MIXLAW_PUBLISHED_DATA to their folder")
    tables = import_tables(
        folder / "train_mixture_1m.csv", folder / "train_pile_loss_1m.csv", key="index"
    )
    assert tables.runs.height == 512
    assert len(proportion_domains(tables.runs)) == 17
    assert len(target_names(tables.observations)) == 13
    assert "shares sum to 0.996 to 1.003; 303 of 512 rows were divided by their sum" in tables.notes
    table = loss_table(tables.runs, tables.observations, targets=["the_pile_arxiv"])
    assert table.y_RT.shape == (512, 1)
    assert table.y_RT[0, 0] == 7.0255866050720215  # the file's first row, index 1
    guessed = import_tables(folder / "train_mixture_1m.csv", folder / "train_pile_loss_1m.csv")
    assert guessed.runs.equals(tables.runs)
    shuffled = pl.read_csv(folder / "train_pile_loss_1m.csv").sample(
        fraction=1, shuffle=True, seed=3
    )
    again = tables_from_frames(
        pl.read_csv(folder / "train_mixture_1m.csv"), shuffled, source="train_mixture_1m.csv"
    )
    assert again.runs.equals(tables.runs)
    order = ["run_id", "target"]
    assert again.observations.sort(order).equals(tables.observations.sort(order))


@given(st.floats(allow_nan=False), st.sampled_from(["", " "]))
def test_numbers_are_read_from_their_text(number, space):
    assert as_number(f"{space}{number!r}{space}") == number
    assert as_number(number) == number


@pytest.mark.parametrize("cell", ["1_000", "1,5", "one", True, b"1", "0x10", [1.0]])
def test_what_is_no_number_is_none(cell):
    assert as_number(cell) is None


def test_a_long_table_keeps_every_loss(tmp_path):
    rng = random.Random(0)
    lines = [
        f"{run},{step},t{t},{rng.random()}\n"
        for run in range(100)
        for step in range(50)
        for t in range(4)
    ]
    rng.shuffle(lines)
    runs = "run,r:x,r:y\n" + "".join(f"{run},0.5,0.5\n" for run in range(100))
    tables = import_tables(
        write(tmp_path / "r.csv", runs),
        write(tmp_path / "m.csv", "run,step,target,value\n" + "".join(lines)),
    )
    assert tables.observations.height == 20_000
    assert math.isclose(
        tables.observations["value"].sum(), sum(float(line.split(",")[3]) for line in lines)
    )
