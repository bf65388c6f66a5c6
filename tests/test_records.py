"""What the benchmarks print: one JSON object that its schema allows."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
FIELDS = (
    "case",
    "law",
    "law_name",
    "metric",
    "value",
    "low",
    "high",
    "observed",
    "unit",
    "n",
    "params",
    "step",
    "tokens",
    "target",
    "mixture",
    "seed",
    "split",
    "num_splits",
)

SCRIPT = """
import os, sys
from records import Records, benchmark_arguments
options = benchmark_arguments("A benchmark.")
records = Records("paper")
print("a library's chatter")
os.system("echo chatter of a child")
records.add(
    case="redpajama/overall", law="selected", metric="prediction", law_name="nested", value=2.5,
    low=2.4, high=2.6, observed=2.45, unit="nats_per_token", n=20, params=302311424, step=30000,
    tokens=30000 * 1048576, target="overall", mixture="RP_0-0.5-0.5",
)
records.aggregate(
    [1.0, 2.0, float("nan"), 3.0], case="5mix/70M", law="m4", metric="mae", seeds=[5, 6, 7, 8],
    unit="nats_per_token", n=20,
)
records.add(case="ct", law="mean", metric="spearman", value=float("inf"))
EXTRA
records.finish(options.json)
"""


def run_script(*arguments: str, extra: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("EXTRA", extra), "--fit", ".", *arguments],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    done = run_script("--json")
    assert done.returncode == 0, done.stderr
    assert "chatter" in done.stderr
    assert "chatter of a child" in done.stderr
    return json.loads(done.stdout, parse_constant=lambda text: pytest.fail(f"{text} in JSON"))


def test_standard_output_is_one_json_object_that_the_schema_allows(
    document: dict[str, Any],
) -> None:
    schema = json.loads((BENCHMARKS / "records.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(document)
    assert document["benchmark"] == "paper"
    assert document["schema"] == 1
    assert set(document) == {"benchmark", "schema", "version", "machine", "seconds", "records"}


def test_every_record_has_all_fields(document: dict[str, Any]) -> None:
    assert {tuple(record) for record in document["records"]} == {FIELDS}


def test_what_is_not_finite_is_null(document: dict[str, Any]) -> None:
    assert document["records"][-1]["value"] is None


def test_an_aggregate_has_one_record_per_split_and_one_of_all(document: dict[str, Any]) -> None:
    *splits, whole = [r for r in document["records"] if r["metric"] == "mae"]
    assert [(r["split"], r["seed"], r["value"]) for r in splits] == [
        ("0", 5, 1.0),
        ("1", 6, 2.0),
        ("2", 7, None),
        ("3", 8, 3.0),
    ]
    assert (whole["split"], whole["seed"], whole["num_splits"]) == ("all", None, 4)
    assert (whole["value"], whole["low"], whole["high"]) == pytest.approx((2.0, 1.1, 2.9))


def test_the_table_hides_single_predictions_and_splits() -> None:
    done = run_script()
    assert done.returncode == 0, done.stderr
    assert "chatter" not in done.stdout
    row = " ".join(done.stdout.splitlines()[1].split())
    assert row == "5mix/70M m4 mae 2 1.1 2.9 nats_per_token 20 all 4"
    assert "7 records" in done.stdout


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("records.add(case='ct', law='m5', metric='mae', value=1.0)", "'m5' is not one of"),
        ("records.add(case='ct', law='m4', metric='r2', value=1.0)", "'r2' is not one of"),
        ("records.add(case='elsewhere', law='m4', metric='mae', value=1.0)", "does not match"),
    ],
)
def test_a_record_that_the_schema_forbids_is_an_error(extra: str, message: str) -> None:
    done = run_script("--json", extra=extra)
    assert done.returncode != 0
    assert message in done.stderr
    assert done.stdout == ""


def test_what_is_in_the_fit_is_not_predicted(tmp_path: Path) -> None:
    def write(folder: str, rows: list[str]) -> None:
        path = tmp_path / folder / "S"
        path.mkdir(parents=True)
        (path / "70M.txt").write_text("".join(f"x/{row}\n" for row in rows))

    seen, later = "70M_0-0.5-0.5/1000\tA.bin\t3.5", "70M_0-0.5-0.5/2000\tA.bin\t3.25"
    copied = "70M_9-0.5-0.5/1000\tA.bin\t3.5"
    replicate = "70M_8-0.5-0.5/1000\tA.bin\t3.5625"
    write("fit", [seen])
    write("predict", [seen, later, copied, replicate])
    code = (
        "from records import unseen\n"
        "from mixlaw.importers.published import read_mixinglaws\n"
        f"fit, predict = (read_mixinglaws(f'{tmp_path}/{{name}}/S') for name in ('fit', 'predict'))\n"
        "left = unseen(fit, predict)\n"
        "print(left.observations.select('run_id', 'step').rows(), left.notes, sep='|')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=True
    )
    rows, notes = done.stdout.split("|")
    assert rows == "[('S/70M/0-0.5-0.5', 2000), ('S/70M/8-0.5-0.5', 1000)]"
    assert "left out: 2 of 4 values, which are in the fit" in notes
