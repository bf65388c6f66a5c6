import csv
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from downstream_studies import simulate_tasks
from mixlaw.errors import TableError
from mixlaw.importers import import_tables
from mixlaw.selection.downstream import UNTESTED
from mixlaw.study import Study
from tiny_studies import Answer, call_mixlaw


def run_cli(*arguments: str) -> Answer:
    return call_mixlaw(*arguments, cwd=Path())


def write_table(path: Path, *, mixtures: int | None = None) -> Path:
    """Writes a simulated study with tasks as one wide table."""
    simulated = simulate_tasks(0)
    runs = simulated.study.runs
    if mixtures is not None:
        kept = runs["mixture_id"].unique(maintain_order=True)[:mixtures].implode()
        runs = runs.filter(pl.col("mixture_id").is_in(kept))
    wide = simulated.observations.with_columns(
        pl.when(pl.col("unit") == "error")
        .then("error/" + pl.col("target").str.strip_prefix("task:"))
        .otherwise("loss/" + pl.col("target"))
        .alias("target")
    ).pivot(on="target", index=["run_id", "step"], values="value")
    table = wide.join(runs.drop("mixture_id"), on="run_id").rename({"run_id": "run"})
    table.with_columns(
        role=pl.when(pl.col("role") == "design").then(None).otherwise(pl.col("role"))
    ).write_csv(path)
    return path


def imported(folder: Path, **options: int) -> Path:
    table = write_table(folder / "runs.csv", **options)
    study = folder / "study"
    found = run_cli(
        "import", str(table), "--proportions", "r:{domain}", "--losses", "loss/{target}",
        "--errors", "error/{task}", "--study", str(study),
    )  # fmt: skip
    assert found.code == 0, found.err
    assert "task errors: " in found.out
    return study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = imported(tmp_path_factory.mktemp("tasks"))
    toml = (folder / "mixlaw.toml").read_text()
    (folder / "mixlaw.toml").write_text(toml.replace('law = "select"', 'law = "m4"'))
    return folder


def test_imported_errors_stand_beside_the_losses_of_the_same_runs(study: Path) -> None:
    _, observations = Study.open(study).tables()
    units = dict(observations.group_by("unit").len().iter_rows())
    assert units == {"nats_per_token": 34 * 3 * 5, "error": 34 * 3 * 5}
    assert Study.open(study).fit().targets == tuple(f"d{j}" for j in range(5))


def test_the_command_predicts_errors_of_a_mixture_and_judges_itself(study: Path) -> None:
    mixture = "d0=0.4,d1=0.3,d2=0.1,d3=0.1,d4=0.1"
    shown = run_cli("downstream", "-m", mixture, "--study", str(study))
    assert shown.code == 0, shown.err
    assert "held-out runs (8)" in shown.out
    found = json.loads(run_cli("downstream", "-m", mixture, "--json", "--study", str(study)).out)
    assert found["is_tested_across_mixtures"]
    assert found["is_trusted"]
    prediction = found["prediction"]
    assert prediction["columns"] == [*(f"task:d{j}" for j in range(5)), "mean"]
    low, value, high = (prediction[name][0] for name in ("low_RJ", "value_RJ", "high_RJ"))
    assert np.all(np.array(low) < value)
    assert np.all(np.array(value) < high)
    assert {score["task"] for score in found["held_out"]} >= {"mean"}


def test_the_report_has_the_tasks_and_their_predicted_errors(study: Path, tmp_path: Path) -> None:
    page = Study.open(study).report(tmp_path / "report.html").read_text()
    assert "Downstream tasks" in page
    assert "Predicted task errors" in page
    assert "mixing law of errors" in page


def test_a_single_mixture_is_said_to_leave_the_chain_untested(tmp_path: Path) -> None:
    folder = imported(tmp_path, mixtures=1)
    shown = run_cli("downstream", "--json", "--study", str(folder))
    assert shown.code == 3
    found = json.loads(shown.out)
    assert UNTESTED in found["notes"]
    assert not found["is_tested_across_mixtures"]
    assert found["prediction"] is None
    mixture = "d0=0.4,d1=0.3,d2=0.1,d3=0.1,d4=0.1"
    refused = run_cli("downstream", "-m", mixture, "--study", str(folder))
    assert refused.code == 1
    assert "Traceback" not in refused.err


def test_a_study_without_tasks_is_told_how_to_get_them(tmp_path: Path) -> None:
    table = write_table(tmp_path / "runs.csv")
    folder = tmp_path / "study"
    run_cli(
        "import", str(table), "--proportions", "r:{domain}", "--losses", "loss/{target}",
        "--study", str(folder),
    )  # fmt: skip
    shown = run_cli("downstream", "--study", str(folder))
    assert shown.code == 1
    assert "tasks = true" in shown.err
    assert "--errors" in shown.err


@pytest.mark.parametrize("wrong", ["1.7", "-0.1", "half"])
def test_an_error_outside_its_range_is_named(tmp_path: Path, wrong: str) -> None:
    table = write_table(tmp_path / "runs.csv")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    rows[4]["error/d0"] = wrong
    with table.open("w") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(TableError, match=r"line 6 of runs\.csv"):
        import_tables(
            table, proportions="r:{domain}", losses="loss/{target}", errors="error/{task}"
        )


def test_a_column_that_is_taken_for_a_loss_and_an_error_is_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path / "runs.csv")
    with pytest.raises(TableError, match="taken for both"):
        import_tables(table, proportions="r:{domain}", losses="{target}/d0", errors="error/{task}")
