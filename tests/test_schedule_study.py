"""`mixlaw schedule`: on runs that it trains, on imported ones, and what it says without any."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from mixlaw.fit.stages import Schedule
from mixlaw.observations import encode_stages
from mixlaw.study import Study
from schedule_studies import DOMAINS, STEPS, TARGETS, planted_study, true_losses
from tiny_studies import (
    call_here,
    copy_trained,
    few_draws,  # noqa: F401  # pyright: ignore[reportUnusedImport]
)

Capture = pytest.CaptureFixture[str]
QUESTION = """
[study]
name = "schedules"
[fit]
law = "m4"
[objective]
weights = { code = 0.7, prose = 0.3 }
[constraints]
cap = { code = 0.15 }
[scale]
params = 49000
tokens = 1000000
[schedule]
fractions = [0.8, 0.2]
"""

TRAINED = """
[objective]
weights = { code = 1.0 }
[fit]
law = "m4"
[schedule]
fractions = [0.75, 0.25]
runs = 4
holdout = 2
"""


@pytest.fixture(autouse=True)
def few_schedule_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer bootstrap draws: these tests are not about intervals."""
    monkeypatch.setattr("mixlaw.study.schedule.NUM_DRAWS", 20)


def write_runs(path: Path, *, noise: float = 0.004, count: int = 20) -> Path:
    """Writes runs of one stage, then of two, with their losses."""
    schedules = planted_study()[0][:count]
    rng = np.random.default_rng(5)
    y_RT = true_losses(schedules)
    y_RT = y_RT + noise * rng.normal(size=y_RT.shape)
    header = ["run", "step", *(f"mix/{name}" for name in DOMAINS), "stages"]
    lines: list[list[str]] = [[*header, *(f"loss/{target}" for target in TARGETS)]]
    for i, (schedule, y_T) in enumerate(zip(schedules, y_RT, strict=True)):
        mean = [repr(schedule.mean[name]) for name in DOMAINS]
        lines.append(
            [f"run-{i}", str(STEPS), *mean, stages_text(schedule), *map(repr, map(float, y_T))]
        )
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    return path


def stages_text(schedule: Schedule) -> str:
    """Returns the cell of the stages; empty where there is one mixture."""
    if len(set(schedule.mixtures)) == 1:
        return ""
    ends = [round(end * STEPS) for end in schedule.ends]
    return encode_stages(list(zip(ends, schedule.mixtures, strict=True)))


def imported_study(folder: Path, *, question: str = QUESTION, count: int = 20) -> Study:
    """Returns a study with imported runs of one and of two stages."""
    folder.mkdir()
    (folder / "mixlaw.toml").write_text(question)
    study = Study.open(folder)
    study.import_tables(write_runs(folder / "runs.csv", count=count))
    return study


def test_schedule_of_imported_runs_is_printed_and_kept(tmp_path: Path, capsys: Capture) -> None:
    study = imported_study(tmp_path / "s")
    answer = call_here(capsys, "schedule", "--study", str(study.path))
    assert answer.code == 0, answer.err
    assert "80% of the tokens" in answer.out
    assert "over the best constant mixture: +" in answer.out
    assert ": a gain" in answer.out
    assert "error on 10 schedules: the law, schedule left out" in answer.out
    kept = json.loads((study.path / "schedule.json").read_text())
    first, last = kept["stages"]
    assert (first["until"], last["until_tokens"]) == (0.8, 1e6)
    assert last["proportions"]["code"] > first["proportions"]["code"]
    assert kept["mean"]["code"] == pytest.approx(0.15, abs=1e-6)


def test_json_and_files_hold_the_same_schedule(tmp_path: Path, capsys: Capture) -> None:
    study = imported_study(tmp_path / "s")
    out = tmp_path / "out"
    answer = call_here(
        capsys, "schedule", "--fractions", "0.8,0.2", "--json", "--write", str(out),
        "--study", str(study.path),
    )  # fmt: skip
    told = json.loads(answer.out)
    assert told["verdict"] == "gain"
    assert json.loads((out / "schedule.json").read_text())["stages"] == told["stages"]
    assert sorted(path.name for path in out.iterdir()) == [
        "schedule.json", "stage-1.json", "stage-2.json"
    ]  # fmt: skip


def test_no_evidence_of_a_gain_exits_with_3(tmp_path: Path, capsys: Capture) -> None:
    study = imported_study(tmp_path / "s", question=QUESTION.replace("code = 0.15", "code = 0.9"))
    answer = call_here(capsys, "schedule", "--study", str(study.path))
    assert answer.code == 3
    assert "no evidence of a gain" in answer.out


def test_plain_fit_leaves_runs_of_several_stages_out(tmp_path: Path) -> None:
    study = imported_study(tmp_path / "s")
    fit = study.fit()
    assert fit.num_mixtures == 10
    assert any("10 runs whose mixture changes" in note for note in fit.notes)


def test_schedules_are_trained_and_fitted(tmp_path: Path, capsys: Capture) -> None:
    study = copy_trained(tmp_path / "s")
    with (study.path / "mixlaw.toml").open("a") as file:
        file.write(TRAINED)
    answer = call_here(capsys, "schedule", "--train", "--slots", "1", "--study", str(study.path))
    assert answer.code in (0, 3), answer.err
    assert "75% of the tokens" in answer.out
    assert "2 held-out schedules, objective" in answer.out
    kept = json.loads((study.path / "schedule.json").read_text())
    assert kept["staged_runs"] == 4
    assert Study.open(study.path).fit().num_mixtures == 8


def test_study_without_staged_runs_says_how_to_get_them(tmp_path: Path, capsys: Capture) -> None:
    study = imported_study(tmp_path / "s", count=10)
    answer = call_here(capsys, "schedule", "--study", str(study.path))
    assert answer.code == 1
    assert "no runs whose mixture changes on the way" in answer.err
    assert "mixlaw schedule --train" in answer.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--fractions", "0.8,x"], "must be numbers"),
        (["--fractions", "0.8,0.3"], "must be positive and sum to 1"),
        (["--fractions", "0.8,0.2", "--stages", "3"], "one share for each of 3 stages"),
    ],
)
def test_fractions_that_make_no_sense_are_refused(
    tmp_path: Path, capsys: Capture, arguments: list[str], said: str
) -> None:
    study = imported_study(tmp_path / "s")
    answer = call_here(capsys, "schedule", *arguments, "--study", str(study.path))
    assert answer.code == 1
    assert said in answer.err
    assert "Traceback" not in answer.err


def test_stages_that_are_no_json_are_refused_on_import(tmp_path: Path, capsys: Capture) -> None:
    path = write_runs(tmp_path / "runs.csv")
    text = path.read_text().replace('"[{""until""', '"[{""till""', 1)
    path.write_text(text)
    answer = call_here(capsys, "import", str(path), "--study", str(tmp_path / "s"))
    assert answer.code == 1
    assert "stages must be JSON" in answer.err


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("[]", "must end after one another"),
        ('[{"until": 0, "proportions": {"code": 1}}]', "must end after one another"),
        ('[{"until": 9, "proportions": {"code": 0.7}}]', "must sum to 1, but they sum to 0.7"),
        ('[{"until": 9, "proportions": {"talks": 1}}]', "must be of its domains, but 'talks' is"),
        ('[{"until": 9, "proportions": {"code": 1}}]', "0.5 and its stages come to 1"),
    ],
)
def test_stages_that_make_no_sense_are_refused_on_import_with_their_line(
    tmp_path: Path, capsys: Capture, stages: str, said: str
) -> None:
    path = tmp_path / "runs.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [
                ["run", "step", "mix/code", "mix/prose", "stages", "loss/code"],
                ["a", "9", "0.5", "0.5", stages, "1.0"],
            ]
        )
    answer = call_here(capsys, "import", str(path), "--study", str(tmp_path / "s"))
    assert answer.code == 1
    assert said in answer.err
    assert "line 2 of runs.csv" in answer.err
    assert "Traceback" not in answer.err


def test_config_with_other_fractions_than_stages_is_refused(
    tmp_path: Path, capsys: Capture
) -> None:
    question = QUESTION.replace("[schedule]", "[schedule]\nstages = 3")
    study = imported_study(tmp_path / "s", question=question)
    answer = call_here(capsys, "schedule", "--study", str(study.path))
    assert answer.code == 1
    assert "3 stages need as many fractions, found 2" in answer.err


def test_report_shows_the_schedule(tmp_path: Path) -> None:
    study = imported_study(tmp_path / "s")
    text = study.report().read_text(encoding="utf-8")
    assert "A mixture per stage" in text
    assert "Against the best constant mixture" in text
    assert "80% of the tokens" in text


def test_report_without_staged_runs_has_no_part_on_schedules(tmp_path: Path) -> None:
    study = imported_study(tmp_path / "s", count=10)
    assert "A mixture per stage" not in study.report().read_text(encoding="utf-8")
