"""Continual pre-training in a study: `mixlaw critical` on imported runs and on runs trained here."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mixlaw.config import ContinualSection
from mixlaw.errors import MixlawError, StudyError
from mixlaw.fit.continual import NoisePrior
from mixlaw.mixtures import Mixture
from mixlaw.observations import encode_stages
from mixlaw.optimize import WeightedLoss
from mixlaw.optimize.continual_runs import ContinualQuestion, judge_continual
from mixlaw.study import Study
from mixlaw.study.continual import (
    CriticalOptions,
    continued_tables,
    plan_critical,
    reported_critical,
)
from tiny_studies import TINY, call_here, make_study

CONTINUAL = """
[continual]
original = ["web", "books"]
shares = [0.1, 0.3, 0.6, 0.9]
seeds = 2
tokens = 20480
evaluations = 2
"""


def write_runs(folder: Path, *, seeds: int = 2, with_start: bool = True) -> Path:
    """Writes made-up runs that continue one model, whose old loss was 2.06 on `wiki`."""
    rng = np.random.default_rng(0)
    rows = []
    for share in (0.1, 0.2, 0.3, 0.45, 0.6):
        for seed in range(seeds):
            start = {"step": 0, "loss/wiki": 2.06, "loss/py": 2.5}
            old = 2 + 0.2 * np.exp(-4 * share) + 0.002 * rng.standard_normal()
            end = {"step": 100, "loss/wiki": old, "loss/py": 1.5 + 0.2 * share}
            run = {
                "run": f"{share}-{seed}",
                "seed": seed + int(100 * share),
                "mix/pile": share,
                "mix/python": 1 - share,
                "parent_run_id": "base",
            }
            measured = [start, end] if with_start else [end]
            rows += [run | losses | {"tokens": losses["step"] * 1e6} for losses in measured]
    path = folder / "continued.csv"
    pl.DataFrame(rows).write_csv(path)
    return path


def import_runs(folder: Path, *, with_start: bool = True, seeds: int = 2) -> Study:
    path = write_runs(folder, with_start=with_start, seeds=seeds)
    study = Study.for_import(folder / "study")
    study.import_tables(path, proportions="mix/{domain}", losses="loss/{target}")
    return Study.open(folder / "study")


def test_imported_runs_answer_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = import_runs(tmp_path)
    asked = ("--study", str(study.path), "--old", "pile", "--target", "wiki", "--new-target", "py")
    answer = call_here(capsys, "critical", *asked)
    assert answer.code == 0
    assert "trade-off at the last checkpoint" in answer.out
    assert "may be new" in answer.out
    plain = json.loads(call_here(capsys, "critical", *asked, "--json").out)
    # 2 + 0.2 exp(-4 s) = 2.06
    assert plain["original_share"] == pytest.approx(0.301, abs=0.02)
    assert plain["low"] < 0.301 < plain["high"]
    assert plain["original_loss"] == pytest.approx(2.06)
    assert plain["new_share"] == pytest.approx(1 - plain["original_share"])
    lax = json.loads(call_here(capsys, "critical", *asked, "--tolerance", "0.02", "--json").out)
    assert lax["original_share"] < plain["original_share"]


def test_what_is_not_identified_ends_with_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = import_runs(tmp_path, with_start=False)
    asked = ("--study", str(study.path), "--old", "pile", "--target", "wiki")
    unknown = call_here(capsys, "critical", *asked)
    assert unknown.code == 1
    assert "no run was observed at step 0" in unknown.err
    beyond = call_here(capsys, "critical", *asked, "--original-loss", "2.0", "--noise-sd", "0.01")
    assert beyond.code == 3
    assert "not identified" in beyond.out
    assert "a stated prior of 0.01" in beyond.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "which domains the model was trained on"),
        (("--old", "pile"), "which losses must be kept"),
        (("--old", "pile", "--target", "wikki"), "'wikki' is no target of the runs"),
        (("--old", "pil", "--target", "wiki"), "'pil' is no domain of the runs"),
        (("--old", ",", "--target", "wiki"), "--old must name a domain"),
        (("--old", "pile", "--target", "wiki", "--level", "2"), "between 0 and 1, found 2"),
        (("--old", "pile", "--target", "wiki", "--law", "m9"), "there is no law 'm9'"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    study = import_runs(tmp_path)
    answer = call_here(capsys, "critical", "--study", str(study.path), *options)
    assert answer.code == 1
    assert message in answer.err
    assert "Traceback" not in answer.err


def test_the_question_may_stand_in_the_configuration(tmp_path: Path) -> None:
    study = import_runs(tmp_path)
    section = ContinualSection(original=("pile",), weights={"wiki": 1.0}, tolerance=0.01)
    study.config = replace(study.config, continual=section)
    told = study.critical()
    asked = study.critical(CriticalOptions(tolerance=0.0, prior=NoisePrior(sd=0.002)))
    assert told.critical.tolerance == 0.01
    assert asked.critical.share is not None
    assert told.critical.share is not None
    assert told.critical.share < asked.critical.share


def test_the_report_shows_the_critical_proportion_where_it_is_asked(tmp_path: Path) -> None:
    study = import_runs(tmp_path)
    assert reported_critical(study) is None  # nothing says which data is original
    section = ContinualSection(original=("pile",), weights={"wiki": 1.0}, new_weights={"py": 1.0})
    study.config = replace(study.config, continual=section)
    page = study.report().read_text(encoding="utf-8")
    assert "Going on from a model" in page
    assert f"The old loss of 2.06 is kept from {study.critical().critical.share:.1%}" in page
    assert "What the old loss costs the new one" in page
    study.config = replace(study.config, continual=replace(section, original=("nowhere",)))
    assert "Going on from a model" not in study.report().read_text(encoding="utf-8")


def test_runs_that_change_their_mixture_are_left_out(tmp_path: Path) -> None:
    study = import_runs(tmp_path)
    runs, observations = continued_tables(study, ContinualSection(original=("pile",)))
    question = ContinualQuestion(old_loss=WeightedLoss({"wiki": 1.0}), original=("pile",))
    plain = judge_continual(runs, observations, question)
    stages = encode_stages([(50, Mixture.of({"pile": 1.0})), (100, Mixture.of({"python": 1.0}))])
    added = runs[:1].with_columns(
        pl.lit("staged").alias("run_id"),
        pl.lit(stages).alias("stages"),
        pl.lit(0.5).alias("r:pile"),
        pl.lit(0.5).alias("r:python"),
    )
    losses = observations.filter(pl.col("run_id") == runs["run_id"][0])
    both = judge_continual(
        pl.concat([runs, added]),
        pl.concat([observations, losses.with_columns(pl.lit("staged").alias("run_id"))]),
        question,
    )
    assert both.critical.share == plain.critical.share
    assert "1 runs whose mixture changes on the way are left out" in both.notes


def test_one_original_loss_is_not_that_of_two_sizes(tmp_path: Path) -> None:
    study = import_runs(tmp_path)
    runs, observations = continued_tables(study, ContinualSection(original=("pile",)))
    sizes = pl.Series("params_non_embedding", [1e6, 2e6] * (runs.height // 2))
    question = ContinualQuestion(
        old_loss=WeightedLoss({"wiki": 1.0}), original=("pile",), original_loss=2.06
    )
    with pytest.raises(MixlawError, match="models of 2 sizes"):
        judge_continual(runs.with_columns(sizes), observations, question)


def test_without_noise_no_interval_of_the_trade_off_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three, path = [0.1, 0.3, 0.6], tmp_path / "three.csv"
    pl.read_csv(write_runs(tmp_path, seeds=1)).filter(pl.col("mix/pile").is_in(three)).write_csv(
        path
    )
    study = Study.for_import(tmp_path / "few")
    study.import_tables(path, proportions="mix/{domain}", losses="loss/{target}")
    options = ("--old", "pile", "--target", "wiki", "--new-target", "py")
    answer = call_here(capsys, "critical", "--study", str(study.path), *options)
    assert answer.code == 3
    assert "not known" in answer.out
    assert "nan" not in answer.out


def test_a_study_without_such_runs_says_how_to_get_them(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "empty")
    with pytest.raises(StudyError, match="no runs that go on from a model") as refused:
        study.critical(CriticalOptions(original=("a",)))
    assert "mixlaw critical --train" in str(refused.value)
    with pytest.raises(StudyError, match="the study has no corpus"):
        study.train_critical(CriticalOptions(original=("a",)))


def test_runs_trained_here_start_from_the_original_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path / "study", config=TINY + CONTINUAL)
    planned = plan_critical(study, study.config.continual)
    assert [run.role for run in planned] == ["original", *["design"] * 8]
    original, *continued = [run.spec for run in planned]
    assert dict(original.mixture) == {"web": 0.5, "books": 0.5}
    assert len({spec.seed for spec in continued}) == 8  # a seed of its own for every run
    assert continued[0].eval_steps[0] == 0
    answer = call_here(capsys, "critical", "--train", "--study", str(study.path), "--slots", "2")
    assert answer.code in (0, 3)
    assert "original" in answer.out
    runs, observations = continued_tables(study, study.config.continual)
    assert runs.filter(pl.col("role") == "design").height == 8
    first = observations.filter(pl.col("step") == 0, pl.col("target") == "web")["value"]
    assert first.n_unique() == 1  # the original model's
    found = study.critical()
    assert found.critical.run_shares == pytest.approx((0.1, 0.3, 0.6, 0.9))
    assert found.critical.original_loss == pytest.approx(
        np.mean(
            observations.filter(
                pl.col("run_id") == original.run_id, pl.col("target").is_in(["web", "books"])
            )["value"].to_numpy()
        )
    )
    assert study.train_critical().reused == 9
    told = "; ".join(study.status().sentences)
    assert "9 of the runs have stages, or belong to continual pre-training" in told
    assert "not used" not in told
    # An ordinary fit knows nothing of them.
    with pytest.raises(MixlawError, match="no finished runs"):
        study.tables()


def test_a_given_checkpoint_takes_the_place_of_the_original_run(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", config=TINY + CONTINUAL)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights of a model")
    section = replace(study.config.continual, checkpoint=str(path))
    planned = plan_critical(study, section)
    assert {run.role for run in planned} == {"design"}
    assert len({run.spec.start for run in planned}) == 1
    assert (planned[0].spec.start or "").startswith("file:")
    (study.path / "beside.safetensors").write_bytes(b"weights of a model")
    beside = plan_critical(study, replace(section, checkpoint="beside.safetensors"))
    assert beside == planned  # a relative path is relative to the study
    with pytest.raises(MixlawError, match="it can't be read"):
        plan_critical(study, replace(section, checkpoint="nowhere.safetensors"))
    with pytest.raises(StudyError, match="'pile' is no domain of the study"):
        plan_critical(study, replace(section, original=("pile",)))
