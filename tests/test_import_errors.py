"""Malformed tables: each has its exact message, with file, line and column."""

import polars as pl
import pytest

from mixlaw.errors import TableError
from mixlaw.importers import import_tables, tables_from_frames

RUNS = "run,mix/web,mix/code\na,0.5,0.5\nb,0.9,0.1\n"
METRICS = "run,loss/web\nb,2.5\na,3.5\n"

ONE_FILE = [
    ("", "r.csv must have a header and rows, but it is empty"),
    (" \n\n", "r.csv must have a header and rows, but it is empty"),
    ("run,mix/web,mix/code\n", "r.csv must have rows below its header, but it has none"),
    (
        "a\0b",
        "r.csv must be CSV, TSV, JSON lines or Parquet, but it is binary (a zero byte at offset 1)",
    ),
    (
        b"run,mix/w\xe9b\n",
        ("r.csv must be CSV, TSV, JSON lines or Parquet, but it is binary, or not UTF-8 (byte 0xe9"
        " at offset 9)\n  do: unpack it, or save it as UTF-8"),
    ),
    (
        b"\x1f\x8b\x08 packed",
        ("r.csv must be CSV, TSV, JSON lines or Parquet, but it is binary, or not UTF-8 (byte 0x8b"
        " at offset 1)\n  do: unpack it, or save it as UTF-8"),
    ),
    (b"PAR1 but not really", "r.csv begins like Parquet, but can't be read: "),
    (
        RUNS + "c,0.5\n",
        ("line 4 of r.csv must have 3 cells like the header, found 2\n"
        "  do: quote cells that hold the separator"),
    ),
    ('run,mix/web,mix/code\n"a"b,0.5,0.5\n', "line 2 of r.csv can't be read: "),
    (
        "run,mix/web,mix/web\na,1,0\n",
        "the columns of r.csv must have names of their own, but 'mix/web' is there 2 times",
    ),
    ("run,,mix/web,mix/code\na,x,1,0\n", "column 2 of r.csv must have a name"),
    ('{"run": "a"}\nnonsense\n', "every line of r.csv must be JSON, but line 2 is not: "),
    ('{"run": "a"}\n[1]\n', "every line of r.csv must be a JSON object, but line 2 is not"),
    (
        "run,mix/web,mix/code\na,0.5,0.4\n",
        ("the shares of a run must sum to 1 within 0.02, but line 2 of r.csv (run 'a') sums to 0.9\n"
        "  do: give shares of tokens, allow more with `--tolerance`, or check the columns: mix/web,"
        " mix/code"),
    ),
    (
        "run,mix/web,mix/code\na,60,40\n",
        ("the shares of a run must sum to 1 within 0.02, but line 2 of r.csv (run 'a') sums to 100\n"
        "  do: these look like percentages: divide them by 100"),
    ),
    (
        "run,mix/web,mix/code\na,1.5,-0.5\n",
        "shares must be numbers from 0 on, but line 2 of r.csv has -0.5 in column 'mix/code'",
    ),
    (
        "run,mix/web,mix/code\na,nan,0.5\n",
        "shares must be numbers from 0 on, but line 2 of r.csv has nan in column 'mix/web'",
    ),
    (
        "run,mix/web,mix/code\n\na,,1\n",
        ("every run must have a share of 'web', but line 3 of r.csv has none in column 'mix/web'\n"
        "  do: write 0 where the domain was left out"),
    ),
    (
        "run,mix/web,mix/code\na,0.5,0.5\nb,half,0.5\nc,0.5,0.5\n",
        "column 'mix/web' must hold numbers, but line 3 of r.csv has 'half'",
    ),
    (
        RUNS + "a,0.4,0.6\n",
        ("rows of one run must agree, but 'a' has other shares or settings in line 4 of r.csv than"
        " in line 2 of r.csv\n"
        "  do: give runs names of their own, or say which column names them with `--key`"),
    ),
    (RUNS + ",0.4,0.6\n", "every row must name its run, but line 4 of r.csv has nothing in column 'run'"),
    (
        "run,seed,mix/web,mix/code\na,1.5,1,0\n",
        "seed must be a whole number from 0 on, but line 2 of r.csv has 1.5",
    ),
    (
        "run,params,mix/web,mix/code\na,-1,1,0\n",
        "params_non_embedding must be a number from 0 on, but line 2 of r.csv has -1",
    ),
    (
        "run,params,mix/web,mix/code\na,7B,1,0\n",
        "column 'params' must hold numbers, but line 2 of r.csv has '7B'",
    ),
    (
        "run,x,y\na,one,two\n",
        ("no columns of r.csv look like shares of two domains or more: 'run', 'x', 'y'\n"
        "  do: name them with `--proportions`, such as `--proportions 'mix/{domain}'`"),
    ),
    (
        "run,mix/web,mix/code,weight/web,weight/code\na,1,0,1,0\n",
        ("it must be clear which columns of r.csv hold the shares, but they fit both 'mix/{domain}'"
        " and 'weight/{domain}'\n  do: say which with `--proportions`"),
    ),
    (
        "id,mix/web,mix/code\na,1,0\n",
        ("r.csv and m.csv must have one column in common that names the run, found none\n"
        "  do: say which it is with `--key`"),
    ),
    (
        RUNS.replace("b,", "c,") + "d,1,0\n",
        ("every run must have shares and losses, but 2 runs ('c', 'd') of r.csv are not in m.csv,"
        " and 1 run ('b') of m.csv is not in r.csv\n"
        "  do: correct the names; `--drop-unmatched` leaves such runs out"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), ONE_FILE)
def test_a_malformed_table_of_runs_is_said(content, message, tmp_path):
    path, metrics = tmp_path / "r.csv", tmp_path / "m.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    metrics.write_text(METRICS)
    with pytest.raises(TableError) as caught:
        import_tables(path, metrics)
    # What follows a colon at the end is in the words of the library that read the file.
    text = str(caught.value)
    assert text.startswith(message) if message.endswith(": ") else text == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "run,loss/web\na,nan\nb,1\n",
            ("losses must be finite, but line 2 of m.csv has nan in column 'loss/web'\n  do: leave the"
            " cell empty where nothing was measured, and a run out that diverged"),
        ),
        (
            "run,loss/web\na,-1\nb,1\n",
            ("values in nats_per_token must be numbers from 0 on, but line 2 of m.csv has -1 in"
            " column 'loss/web'"),
        ),
        (
            "run,step,loss/web\na,1,2\nb,1,2\na,1,2.5\n",
            ("a run must have one loss per step and target, but run 'a', step 1, target 'web' is 2 in"
            " line 2 of m.csv and 2.5 in line 4 of m.csv"),
        ),
        (
            "run,step,loss/web\na,last,2\n",
            "column 'step' must hold numbers, but line 2 of m.csv has 'last'",
        ),
        ("run,step,loss/web\na,,2\n", "every loss must have a step, but line 2 of m.csv has none"),
        (
            "run,step,loss/web\na,1.5,2\n",
            "step must be a whole number from 0 on, but line 2 of m.csv has 1.5",
        ),
        (
            "run,target,value\na,,2\n",
            "every loss must have a target, but line 2 of m.csv has none in column 'target'",
        ),
        (
            "run,target,value,stderr\na,web,2,-1\n",
            "a standard error must be a number from 0 on, but line 2 of m.csv has -1",
        ),
        (
            "run,target,value\na,web,two\n",
            "column 'value' must hold numbers, but line 2 of m.csv has 'two'",
        ),
        (
            "run,comment\na,good\n",
            ("no columns of m.csv look like losses: 'run', 'comment'\n"
            "  do: name them with `--losses`, such as `--losses 'eval/{target}/loss'`"),
        ),
        (
            "run,loss/web,val/web\na,1,2\n",
            ("it must be clear which columns of m.csv hold the losses, but they fit both"
            " 'loss/{target}' and 'val/{target}'\n  do: say which with `--losses`"),
        ),
    ],
)  # fmt: skip
def test_a_malformed_table_of_losses_is_said(content, message, tmp_path):
    (tmp_path / "r.csv").write_text(RUNS)
    (tmp_path / "m.csv").write_text(content)
    with pytest.raises(TableError) as caught:
        import_tables(tmp_path / "r.csv", tmp_path / "m.csv")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"proportions": "mixture/{domain}"},
            ("'mixture/{domain}' must fit a column of r.csv, but it fits none of 'run', 'mix/web',"
            " 'mix/code'\n  do: write {domain} where the column's name holds the domain"),
        ),
        (
            {"proportions": "mix/*"},
            "the pattern 'mix/*' must have {domain} once\n  do: such as 'mix/{domain}'",
        ),
        (
            {"proportions": "mix/w{domain}"},
            "a mixture needs two domains or more, but 'mix/w{domain}' fits only 'mix/web' of r.csv",
        ),
        (
            {"proportions": {"web": "mix/wbe", "code": "mix/code"}},
            ("the column of 'web' must be a column of r.csv, but there is no 'mix/wbe'\n"
            "  do: did you mean 'mix/web'?"),
        ),
        (
            {"losses": "eval/{target}"},
            ("'eval/{target}' must fit a column of m.csv, but it fits none of 'run', 'loss/web'\n"
            "  do: write {target} where the column's name holds the target"),
        ),
        (
            {"key": "rnu"},
            "the key must be a column of r.csv, but there is no 'rnu'\n  do: did you mean 'run'?",
        ),
        (
            {"columns": {"step": "iteration"}},
            ("the column of 'step' must be a column of r.csv or m.csv, but there is no 'iteration'\n"
            "  do: there are 'run', 'mix/web', 'mix/code', 'loss/web'"),
        ),
        (
            {"columns": {"stpe": "run"}},
            "a column can't hold 'stpe'\n  do: did you mean 'step'?",
        ),
        ({"tolerance": 1.5}, "the tolerance of row sums must lie in [0, 1), found 1.5"),
        (
            {"unit": "nats"},
            "the unit must be one of nats_per_token, bits_per_byte, error, found 'nats'",
        ),
    ],
)  # fmt: skip
def test_arguments_that_fit_nothing_are_said(arguments, message, tmp_path):
    (tmp_path / "r.csv").write_text(RUNS)
    (tmp_path / "m.csv").write_text(METRICS)
    with pytest.raises(TableError) as caught:
        import_tables(tmp_path / "r.csv", tmp_path / "m.csv", **arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (
            "run,web,code,books\na,0.5,0.5,3.5\n",
            {},
            ("it must be clear which columns of r.csv hold shares and which losses, but their names"
            " don't say\n  do: say so with `--proportions` and `--losses`"),
        ),
        (
            "run,x_web,x_code\na,0.5,0.5\n",
            {"proportions": "x_{domain}", "losses": "x_{target}"},
            ("a column must hold shares or losses, but 'x_code' of r.csv fits both 'x_{domain}' and"
            " 'x_{target}'"),
        ),
        (
            "step,mix/web,mix/code,loss/web\n1,0.5,0.5,3.5\n",
            {},
            ("r.csv has a step per row, so it must have a column that names the run\n"
            "  do: say which it is with `--key`"),
        ),
        (
            "run,mix/web,mix/code,loss/web\na,0.5,0.5,\n",
            {"losses": "loss/{target}"},
            ("every run must have shares and losses, but 1 run ('a') of r.csv is not in its losses\n"
            "  do: correct the names; `--drop-unmatched` leaves such runs out"),
        ),
        (
            "run,mix/web,mix/code,loss/web\na,0.5,0.5,1.5\n",
            {"unit": "error"},
            ("values in error must be numbers from 0 to 1, but line 2 of r.csv has 1.5 in column"
            " 'loss/web'"),
        ),
    ],
)  # fmt: skip
def test_a_single_table_that_is_not_clear_is_said(text, arguments, message, tmp_path):
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(TableError) as caught:
        import_tables(tmp_path / "r.csv", **arguments)
    assert str(caught.value) == message


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(TableError, match=r"no\.csv can't be read: No such file or directory"):
        import_tables(tmp_path / "no.csv")
    with pytest.raises(TableError, match="can't be read: Is a directory"):
        import_tables(tmp_path)


def test_frames_that_are_none_are_said():
    with pytest.raises(TableError) as caught:
        tables_from_frames({"run": ["a"]}, source="s")
    assert str(caught.value) == (
        "the runs frame must be a dataframe (polars, pandas, ...), found dict\n"
        "  do: collect a lazy frame first"
    )
    with pytest.raises(TableError, match="the runs frame must have rows, but it has none"):
        tables_from_frames(pl.DataFrame({"run": []}), source="s")
    with pytest.raises(TableError, match="row 2 of the runs frame"):
        tables_from_frames(
            pl.DataFrame({"run": ["a", "b"], "r:x": [0.5, 0.1], "r:y": [0.5, 0.1], "loss/z": 1.0}),
            source="s",
        )
