"""The whole loop through `Study`, on generated text and on made-up tables."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mixlaw.config import Config, load_config, write_template
from mixlaw.errors import FitError, MixtureError, RunError, StudyError
from mixlaw.exporters import check_export
from mixlaw.fit import FitResult
from mixlaw.mixtures import Mixture
from mixlaw.study import Study
from mixlaw.study.demo import DemoResult, demo_config, run_demo
from mixlaw.study.plain import to_plain
from tiny_studies import (
    CLEAN,
    copy_imported,
    copy_trained,
    few_draws,  # noqa: F401 - applies to every test here
    list_files,
    make_study,
    write_tables,
    write_text,
)

TOKENS = 20 * 2048
"""What each run of a tiny study is trained on."""


def same_numbers(a: FitResult, b: FitResult) -> bool:
    """Whether two fits are equal bit by bit."""
    return all(
        np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True)
        for name in ("theta_TP", "theta_loo_RTP", "theta_draws_BTP", "scale_T", "replicate_NT")
    )


def change_config(study: Study, old: str, new: str) -> Study:
    """Returns the study after an edit of its `mixlaw.toml`."""
    file = study.path / "mixlaw.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return Study.open(study.path)


# ---------------------------------------------------------------------- with text


@pytest.mark.train
def test_the_whole_loop(tmp_path: Path) -> None:
    study = copy_trained(tmp_path / "s")
    assert study.status().runs == {
        "design": {"done": 8},
        "noise": {"done": 2},
        "holdout": {"done": 2},
    }
    fit = study.fit()
    assert fit.domains == ("books", "code", "web")
    assert fit.targets == ("books", "code", "recipes", "web")
    assert fit.table.tokens == TOKENS

    best = study.optimize()
    question = study.question
    assert min(best.mixture.values()) >= 0.05 - 1e-9  # the design's floor
    assert all(share <= question.caps[name] + 1e-9 for name, share in best.mixture.items())
    assert set(best.objective.shares) == {"books", "code", "web"}  # all training domains alike
    assert [gain.baseline for gain in best.gains] == ["proportional", "uniform", "temperature"]

    verified = study.verify()
    assert [mixture.name for mixture in verified.mixtures] == ["optimum", "proportional", "uniform"]
    assert study.status().runs["verify"] == {"done": 9}
    # What was verified is not what is fitted.
    assert same_numbers(Study.open(study.path).fit(), fit)
    assert set(fit.table.run_ids).isdisjoint(
        study.tables()[0].filter(pl.col("role").is_in(["verify", "holdout"]))["run_id"]
    )

    page = study.report().read_text(encoding="utf-8")
    for text in ("tiny", "recipes", "generator 0", "public domain"):
        assert text in page
    assert study.status().sentences[0] == ("there is a fit, an optimum, a verification, a report")
    again = study.run()
    assert (again.total, again.done, again.reused) == (12, 12, 12)
    shown = DemoResult(  # what `mixlaw demo --json` prints
        study=study.path,
        trained=again,
        fit=fit,
        choice=study.choice(),
        holdout=study.score(fit),
        optimum=best,
        verification=verified,
        report=study.path / "report.html",
        seconds={"total": 1.0},
    )
    assert json.loads(json.dumps(to_plain(shown)))["study"] == str(study.path)
    again = study.verify()  # reuses its runs, too
    assert [m.predicted for m in again.mixtures] == [m.predicted for m in verified.mixtures]
    assert study.status().runs["verify"] == {"done": 9}


@pytest.mark.train
def test_a_kept_fit_is_the_same_bit_by_bit(tmp_path: Path) -> None:
    study = copy_trained(tmp_path / "s")
    kept = study.fit()
    before = (study.path / "fits" / "fit.npz").stat().st_mtime_ns
    assert same_numbers(Study.open(study.path).fit(), kept)
    assert (study.path / "fits" / "fit.npz").stat().st_mtime_ns == before
    shutil.rmtree(study.path / "fits")
    assert same_numbers(study.fit(), kept)  # made again, from the same observations


@pytest.mark.train
@pytest.mark.parametrize("damage", [b"", b"no archive"])
def test_a_damaged_kept_fit_is_made_again(damage: bytes, tmp_path: Path) -> None:
    study = copy_trained(tmp_path / "s")
    kept = study.fit()
    (study.path / "fits" / "fit.npz").write_bytes(damage)
    assert same_numbers(study.fit(), kept)


@pytest.mark.train
def test_a_changed_observation_gives_another_fit(tmp_path: Path) -> None:
    study = copy_trained(tmp_path / "s")
    before = study.fit()
    file = study.runs_folder / before.table.run_ids[0] / "observations.parquet"
    rows = pl.read_parquet(file, glob=False)
    rows.with_columns(pl.col("value") + 0.01).write_parquet(file)
    after = study.fit()
    assert not same_numbers(before, after)
    assert np.max(after.table.y_RT - before.table.y_RT) == pytest.approx(0.01)


@pytest.mark.train
def test_a_changed_held_out_observation_changes_the_score_and_not_the_fit(tmp_path: Path) -> None:
    study = copy_trained(tmp_path / "s")
    before, score = study.fit(), study.score()
    assert score is not None
    file = study.runs_folder / score.run_ids[0] / "observations.parquet"
    pl.read_parquet(file, glob=False).with_columns(pl.col("value") + 1.0).write_parquet(file)
    assert same_numbers(study.fit(), before)
    changed = study.score()
    assert changed is not None
    assert changed.objective.mae != score.objective.mae


@pytest.mark.train
def test_lost_files_of_a_run_are_named_and_trained_again(tmp_path: Path) -> None:
    study = copy_trained(tmp_path / "s")
    before = study.fit()
    lost = study.runs_folder / before.table.run_ids[0]
    shutil.rmtree(lost)
    with pytest.raises(RunError, match="run again: what is lost is trained anew"):
        study.fit()
    counts = study.run()
    assert (counts.done, counts.reused) == (12, 11)
    assert same_numbers(study.fit(), before)


@pytest.mark.train
def test_a_failed_run_is_tried_again_only_when_asked(tmp_path: Path) -> None:
    study = copy_trained(tmp_path / "s")
    run_id = study.fit().table.run_ids[0]
    study.store.reopen([run_id])
    with study.store.coordinator() as owner:
        assert study.store.claim(owner, [run_id]) is not None
        study.store.fail(run_id, owner, "the disk is full")
    assert study.run().failed == 1
    assert study.status().failures == {run_id: "the disk is full"}
    assert "`--retry`" in study.status().sentences[-1]
    assert run_id not in study.fit().table.run_ids  # nothing half done is fitted
    counts = study.run(retry=True)
    assert (counts.done, counts.failed) == (12, 0)
    assert run_id in study.fit().table.run_ids


@pytest.mark.train
def test_the_optimum_keeps_floors_and_caps(tmp_path: Path) -> None:
    study = copy_trained(tmp_path / "s")
    free = study.optimize().mixture
    largest = max(free, key=lambda name: free[name])
    smallest = min(free, key=lambda name: free[name])
    file = study.path / "mixlaw.toml"
    file.write_text(
        file.read_text()
        + f"[constraints]\ncap = {{ {largest} = 0.3 }}\nfloor = {{ {smallest} = 0.32 }}\n"
    )
    best = Study.open(study.path).optimize()
    assert best.mixture[largest] <= 0.3 + 1e-9
    assert best.mixture[smallest] >= 0.32 - 1e-9
    for gain in best.gains:  # what it is compared with keeps them as well
        assert gain.mixture[largest] <= 0.3 + 1e-9


@pytest.mark.train
def test_token_supply_and_epochs_cap_the_optimum_at_the_scale(tmp_path: Path) -> None:
    study = copy_trained(tmp_path / "s")
    supply = {d.name: d.available_tokens or 0 for d in study.question.domains}
    tokens = 0.9 * sum(supply.values())
    file = study.path / "mixlaw.toml"
    file.write_text(f"{file.read_text()}\n[scale]\ntokens = {tokens}\n")
    question = Study.open(study.path).question
    assert question.caps == pytest.approx({n: min(1, s / tokens) for n, s in supply.items()})
    best = Study.open(study.path).optimize()
    assert all(best.mixture[name] <= question.caps[name] + 1e-9 for name in supply)


@pytest.mark.train
@pytest.mark.parametrize("framework", ["json", "csv", "megatron"])
def test_an_export_reads_back_as_the_optimum(framework: str, tmp_path: Path) -> None:
    study = copy_trained(tmp_path / "s")
    prefixes = {name: f"/data/{name}" for name in study.question.names}
    result = study.export(framework, tmp_path / "out", prefixes=prefixes)
    read = check_export(result.path, framework, prefixes=prefixes)
    best = study.optimize().mixture
    assert {n: read[n] for n in best} == pytest.approx(dict(best), abs=1e-9)


@pytest.mark.train
def test_a_given_mixture_is_exported_in_the_order_of_the_study(tmp_path: Path) -> None:
    study = copy_trained(tmp_path / "s")
    given = Mixture.of({"books": 0.2, "web": 0.5, "code": 0.3})
    result = study.export("csv", tmp_path / "m.csv", mixture=given)
    assert list(check_export(result.path, "csv").items()) == [
        ("web", 0.5),
        ("code", 0.3),
        ("books", 0.2),
    ]


@pytest.mark.train
def test_the_order_of_a_mixture_does_not_change_its_prediction(tmp_path: Path) -> None:
    study = copy_trained(tmp_path / "s")
    one = study.predict([Mixture.of({"books": 0.2, "web": 0.5, "code": 0.3})])
    other = study.predict([Mixture.of({"web": 0.5, "code": 0.3, "books": 0.2})])
    assert one.columns == other.columns == ("books", "code", "recipes", "web", "objective")
    assert np.array_equal(one.value_RK, other.value_RK)
    assert np.array_equal(one.low_RK, other.low_RK)


@pytest.mark.train
def test_weights_that_are_given_are_not_kept(tmp_path: Path) -> None:
    study = copy_trained(tmp_path / "s")
    study.optimize()
    kept = (study.path / "optimum.json").read_bytes()
    best = study.optimize(weights={"recipes": 1.0})
    assert best.objective.shares == {"recipes": 1.0}
    assert (study.path / "optimum.json").read_bytes() == kept


@pytest.mark.train
def test_a_plan_does_not_depend_on_the_order_of_domains(tmp_path: Path) -> None:
    study = copy_trained(tmp_path / "s")
    text = (study.path / "mixlaw.toml").read_text()
    head, *entries = text.split("[[domains]]")
    (study.path / "mixlaw.toml").write_text("[[domains]]".join([head, *reversed(entries)]))
    assert Study.open(study.path).question.names == ("books", "code", "web")
    assert study.question.names == ("web", "code", "books")
    ids = {run.spec.run_id for run in study.plan().runs}
    assert {run.spec.run_id for run in Study.open(study.path).plan().runs} == ids


# ---------------------------------------------------------------------- mixlaw.toml


def test_adding_text_keeps_comments_and_names_the_domain_once(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "s")
    text = (study.path / "mixlaw.toml").read_text()
    path = write_text(tmp_path, "a", "abcd")
    study.add_domain("web", [path])
    study.add_domain("web", [path], replace=True)
    study.add_domain("recipes", [path], target_only=True)
    after = (study.path / "mixlaw.toml").read_text()
    assert tomllib.loads(after)["domains"] == [{"name": "web"}]
    assert after.startswith(text.rstrip("\n").split("\n[[domains]]")[0][:200])
    assert {line for line in text.splitlines() if line.startswith("#")} <= set(after.splitlines())


@pytest.mark.parametrize(
    "written",
    [
        'domains = [{ name = "web", max_epochs = 2 }]\n',
        '[[domains]]\nname = "web"\nmax_epochs = 2\n',
    ],
)
def test_domains_may_be_written_inline_or_as_tables(written: str, tmp_path: Path) -> None:
    (tmp_path / "mixlaw.toml").write_text(written)
    Study.open(tmp_path).add_domain("code", [write_text(tmp_path, "a", "abcd")])
    domains = load_config(tmp_path / "mixlaw.toml").domains
    assert [(d.name, d.max_epochs) for d in domains] == [("web", 2.0), ("code", 1.0)]


def test_a_new_study_is_named_after_its_folder_and_never_overwritten(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "spring")
    assert study.config.study.name == "spring"
    assert load_config(study.path / "mixlaw.toml") == study.config
    with pytest.raises(StudyError, match="is a study already"):
        Study.create(tmp_path / "spring")


def test_the_domains_of_the_configuration_take_their_counts_from_the_corpus(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", targets=())
    counted = study.question.domains[0]
    assert study.corpus is not None
    assert counted.available_tokens == study.corpus.domain("web").train_tokens
    changed = change_config(study, 'name = "web"', 'name = "web"\navailable_tokens = 5e9')
    assert changed.question.domains[0].available_tokens == 5e9
    assert changed.question.domains[0].documents == counted.documents


# ---------------------------------------------------------------------- tables that were imported


def test_an_imported_study_answers_without_torch(tmp_path: Path) -> None:
    table = write_tables(tmp_path)
    program = f"""
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "safetensors", "tokenizers"):
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Absent())
from mixlaw import Study
study = Study.for_import({str(tmp_path / "s")!r})
study.import_tables({str(table)!r})
study.fit()
best = study.optimize(weights={{"web": 1, "recipes": 1}})
study.report()
study.export("json", {str(tmp_path / "m.json")!r})
print(best.mixture)
"""
    subprocess.run([sys.executable, "-c", program], env=CLEAN, check=True, capture_output=True)
    assert (tmp_path / "s" / "report.html").stat().st_size > 10_000
    assert sum(check_export(tmp_path / "m.json", "json").values()) == pytest.approx(1)


def test_importing_twice_changes_nothing(tmp_path: Path) -> None:
    study = copy_imported(tmp_path / "s")
    fit, before = study.fit(), list_files(study.path)
    again = study.import_tables(write_tables(tmp_path))
    assert list_files(study.path) == before
    assert not any("replaces" in note for note in again.notes)
    assert study.status().runs == {"imported": {"done": 14}}
    assert same_numbers(study.fit(), fit)


def test_a_changed_source_replaces_what_was_imported_of_it(tmp_path: Path) -> None:
    study = copy_imported(tmp_path / "s")
    before = study.fit()
    table = write_tables(tmp_path)
    rows = pl.read_csv(table)
    rows[:13].with_columns(pl.col("loss/web") + 0.5).write_csv(table)
    imported = study.import_tables(table)
    assert imported.notes[-1] == (
        "this replaces an earlier import named 'runs.csv'; --source tells two apart"
    )
    assert study.status().runs == {"imported": {"done": 13}}
    assert len(list((study.path / "imported").glob("*.json"))) == 1
    assert not same_numbers(study.fit(), before)


def test_two_sources_are_both_kept(tmp_path: Path) -> None:
    study = copy_imported(tmp_path / "s")
    study.import_tables(write_tables(tmp_path), source="second")
    assert study.status().runs == {"imported": {"done": 28}}
    assert len(study.fit().table.run_ids) == 28


@pytest.mark.parametrize("renames", range(4))
def test_a_kill_between_the_writes_of_an_import_leaves_the_old_or_the_new(
    renames: int, tmp_path: Path
) -> None:
    study = copy_imported(tmp_path / "s")
    old = study.tables()[1]["value"].to_list()
    table = write_tables(tmp_path)
    pl.read_csv(table).with_columns(pl.col("loss/web") + 0.5).write_csv(table)
    program = f"""
import os, sys
from mixlaw.study import Study
study, left = Study.open({str(study.path)!r}), {renames}
def kill(event, arguments):
    global left
    if event in ("os.rename", "shutil.rmtree"):
        if left == 0:
            os._exit(9)
        left -= 1
sys.addaudithook(kill)
study.import_tables({str(table)!r})
"""
    done = subprocess.run([sys.executable, "-c", program], env=CLEAN, check=False)
    assert done.returncode == 9
    found = study.tables()[1]["value"].to_list()
    assert (found == old) == (renames < 3)  # the third rename is that of the pointer
    study.import_tables(table)
    assert len(list((study.path / "imported").glob("[!.]*"))) == 2  # one folder, one pointer
    assert study.tables()[1]["value"].to_list() != old


def test_a_dry_run_keeps_nothing(tmp_path: Path) -> None:
    imported = Study.for_import(tmp_path / "s").import_tables(write_tables(tmp_path), dry_run=True)
    assert (imported.runs, imported.domains, imported.targets) == (
        14,
        ("web", "code", "books"),
        ("web", "code", "recipes"),
    )
    assert not (tmp_path / "s").exists()


def test_a_failed_import_leaves_no_study_behind(tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    table.write_text("run,mix/web,mix/code,loss/web\na,0.5,0.4,3\n")
    with pytest.raises(Exception, match="must sum to 1"):
        Study.for_import(tmp_path / "s").import_tables(table)
    assert not (tmp_path / "s").exists()


def test_an_imported_mixture_is_optimized_within_what_its_runs_have_seen(tmp_path: Path) -> None:
    study = copy_imported(tmp_path / "s")
    seen = {name: study.tables()[0][f"r:{name}"] for name in ("web", "code", "books")}
    best = study.optimize()
    for name, column in seen.items():
        assert min(column) - 1e-9 <= best.mixture[name] <= max(column) + 1e-9
    assert set(best.objective.shares) == {"web", "code"}


def test_what_a_study_keeps_says_what_it_was_made_from(tmp_path: Path) -> None:
    study = copy_imported(tmp_path / "s")
    kept = json.loads((study.path / "optimum.json").read_text())
    fit = json.loads((study.path / "fits" / "fit.json").read_text())
    assert kept["version"] == fit["version"] == "0.1.0"
    assert fit["made_from"].startswith(kept["made_from"])


def test_a_fit_at_another_step_must_name_one_that_was_observed(tmp_path: Path) -> None:
    study = copy_imported(tmp_path / "s")
    with pytest.raises(StudyError, match="no run was observed at step 7"):
        study.fit(step=7)


# ---------------------------------------------------------------------- the demo's refusals


def make_demo(folder: Path) -> Study:
    study = Study.create(folder, demo_config())
    (folder / "runs" / "kept").mkdir(parents=True)
    (folder / "study.db").write_text("kept")
    return study


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", ["spring", "demo"])
def test_the_demo_leaves_another_study_alone(fresh: bool, name: str, tmp_path: Path) -> None:
    study = Study.create(tmp_path / name)
    (study.path / "runs" / "mine").mkdir(parents=True)
    (study.path / "runs" / "mine" / "result.json").write_text("{}")
    before = list_files(study.path)
    with pytest.raises(StudyError, match="holds another study"):
        run_demo(study.path, fresh=fresh)
    assert list_files(study.path) == before


def test_the_demo_is_not_mixed_with_one_of_another_seed(tmp_path: Path) -> None:
    study = make_demo(tmp_path / "d")
    before = list_files(study.path)
    with pytest.raises(StudyError) as caught:
        run_demo(study.path, seed=1)
    assert str(caught.value) == (
        f"the demo in {study.path} was made with seed 0 and the corpus corpus\n"
        "  do: name another folder with `--study`"
    )
    assert list_files(study.path) == before


def test_the_demo_says_what_is_wrong_with_a_corpus_before_it_makes_anything(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="must be a corpus, but it has no manifest"):
        run_demo(tmp_path / "d", corpus=tmp_path)
    assert not (tmp_path / "d").exists()


def test_a_demo_with_a_corpus_of_ones_own_weighs_all_domains_alike(tmp_path: Path) -> None:
    config = demo_config(seed=3, corpus=tmp_path)
    assert not config.objective.weights
    assert config.study.corpus == str(tmp_path)
    (tmp_path / "mixlaw.toml").write_text(write_template(config))
    assert load_config(tmp_path / "mixlaw.toml") == config


# ---------------------------------------------------------------------- errors


def test_a_study_without_runs_says_how_to_get_some(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "s", Config())
    for stage in (study.fit, study.optimize, study.report):
        with pytest.raises(StudyError, match="train some with `mixlaw run`, or import them"):
            stage()


def test_too_few_mixtures_are_refused(tmp_path: Path) -> None:
    table = write_tables(tmp_path)
    pl.read_csv(table)[:3].write_csv(table)
    study = Study.for_import(tmp_path / "s")
    study.import_tables(table)
    with pytest.raises(FitError, match="losses of at least 4 mixtures"):
        study.fit()


def test_a_reference_over_other_domains_names_its_section(tmp_path: Path) -> None:
    study = copy_imported(tmp_path / "s")
    file = study.path / "mixlaw.toml"
    file.write_text(
        file.read_text().replace(
            "[reference]", "[reference]\nproportions = { web = 0.5, press = 0.5 }"
        )
    )
    with pytest.raises(MixtureError, match=r"in \[reference\] in mixlaw.toml"):
        Study.open(study.path).optimize()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StudyError, match="Permission denied"):
        Study.create(tmp_path / "s")
