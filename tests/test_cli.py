"""The command line: what it prints where, how it ends, and that it can be interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mixlaw.study import Study
from tiny_studies import (
    CLEAN,
    TINY,
    call_here,
    call_mixlaw,
    copy_imported,
    copy_trained,
    few_draws,  # noqa: F401 - applies to every test here
    make_study,
    write_tables,
    write_text,
)

Capture = pytest.CaptureFixture[str]


def one_json_value(text: str) -> object:
    """Returns the only JSON value of a text."""
    value, end = json.JSONDecoder().raw_decode(text)
    assert text[end:] == "\n"
    return value


# ---------------------------------------------------------------------- every command


def test_init_makes_a_study_and_says_what_comes_next(tmp_path: Path, capsys: Capture) -> None:
    answer = call_here(capsys, "init", str(tmp_path / "spring"))
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == (
        f"made {tmp_path / 'spring' / 'mixlaw.toml'}\n"
        "next: add text with `mixlaw domains add NAME PATH...`, or runs with `mixlaw import`\n"
    )
    answer = call_here(capsys, "init", str(tmp_path / "summer"), "--json")
    assert one_json_value(answer.out) == {
        "study": str(tmp_path / "summer"),
        "config": str(tmp_path / "summer" / "mixlaw.toml"),
    }


def test_domains_are_added_and_listed(tmp_path: Path, capsys: Capture) -> None:
    folder = Study.create(tmp_path / "s").path
    for name, alphabet in (("web", "abcd"), ("code", "{}()")):
        path = write_text(tmp_path, name, alphabet)
        answer = call_here(capsys, "domains", "add", name, str(path), "--study", str(folder))
        assert answer.code == 0
        assert answer.out.startswith(f"added '{name}': ")
    answer = call_here(capsys, "domains", "list", "--study", str(folder))
    assert [line.split()[0] for line in answer.out.splitlines()] == ["at", "domain", "web", "code"]
    answer = call_here(capsys, "domains", "list", "--study", str(folder), "--json")
    listed = one_json_value(answer.out)
    assert isinstance(listed, list)
    assert [domain["name"] for domain in listed] == ["web", "code"]
    extra = write_text(tmp_path, "more", "xyz")
    answer = call_here(
        capsys, "domains", "add", "x", str(extra), "--target-only", "--json", "--study", str(folder)
    )
    added = one_json_value(answer.out)
    assert isinstance(added, dict)
    assert (added["name"], added["train_tokens"]) == ("x", 0)


def test_plan_shows_and_writes_the_mixtures(tmp_path: Path, capsys: Capture) -> None:
    study = make_study(tmp_path / "s")
    answer = call_here(capsys, "plan", "--study", str(study.path))
    assert answer.code == 0
    assert "8 mixtures, sobol" in answer.out
    assert "runs: 12 (8 of the design, 2 with fresh seeds for the noise, 2 held out)" in answer.out
    arguments = ("plan", "--study", str(study.path), "--write", str(tmp_path / "w"))
    answer = call_here(capsys, *arguments, "--prefix", "web=/data/a=b")
    assert answer.out.splitlines()[-1] == f"wrote 21 files to {tmp_path / 'w'}"
    assert "/data/a=b" in (tmp_path / "w" / "mixture-001.megatron.txt").read_text()
    value = one_json_value(call_here(capsys, *arguments, "--json").out)
    assert isinstance(value, dict)
    assert len(value["written"]) == 21
    assert len(value["plan"]["runs"]) == 12


@pytest.mark.train
def test_every_command_answers_on_a_trained_study(tmp_path: Path, capsys: Capture) -> None:
    study = copy_trained(tmp_path / "s")
    at = ("--study", str(study.path))
    answer = call_here(capsys, "run", *at)
    assert (answer.code, answer.out) == (0, "12 of 12 runs are done, 12 were before\n")
    assert answer.err == "training: 12/12 runs\n"  # a plain line, without a terminal
    answer = call_here(capsys, "status", *at)
    assert answer.out.splitlines()[0] == f"study tiny in {study.path}"
    answer = call_here(capsys, "fit", *at)
    assert answer.code == 0
    assert answer.out.startswith("law ")
    assert answer.out.count("\nchosen: law ") == 1
    assert "(of the weighted loss, nats_per_token)" in answer.out
    assert "2 mixtures that were not fitted, 90% intervals" in answer.out
    mixture = "web=0.2,code=0.3,books=0.5"
    answer = call_here(
        capsys, "predict", *at, "-m", mixture, "-m", '{"web": 1, "code": 0, "books": 0}'
    )
    assert answer.code == 0
    assert answer.out.count("objective") == 2
    answer = call_here(capsys, "optimize", *at)
    assert answer.code in (0, 3)
    assert (answer.code == 0) == ("against proportional: a gain" in answer.out)
    answer = call_here(capsys, "report", *at, "-o", str(tmp_path / "r.html"))
    assert (answer.code, answer.out) == (0, f"wrote {tmp_path / 'r.html'}\n")
    answer = call_here(capsys, "export", "csv", *at, "-o", str(tmp_path / "m.csv"), "-m", mixture)
    assert (answer.code, answer.out) == (0, f"wrote {tmp_path / 'm.csv'}\n")


@pytest.mark.train
@pytest.mark.parametrize(
    "command",
    [
        ("run",),
        ("status",),
        ("fit",),
        ("fit", "--law", "m4"),
        ("validate", "--laws", "linear,m4", "--repeats", "1"),
        ("predict", "-m", "web=0.2,code=0.3,books=0.5"),
        ("optimize",),
        ("optimize", "--weights", "recipes=1"),
        ("report",),
        ("export", "json", "-o", "m.json"),
    ],
    ids=" ".join,
)
def test_json_is_one_value_and_nothing_else_is_printed(
    command: tuple[str, ...], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = copy_trained(tmp_path / "s")
    monkeypatch.chdir(tmp_path)
    answer = call_here(capsys, *command, "--study", str(study.path), "--json")
    assert isinstance(one_json_value(answer.out), dict)
    assert answer.err == ""
    assert "NaN" not in answer.out
    assert "Infinity" not in answer.out


def test_fit_takes_a_law_by_name_for_a_look_only(tmp_path: Path, capsys: Capture) -> None:
    study = copy_imported(tmp_path / "s")
    kept = (study.path / "fits" / "fit.json").read_bytes()
    answer = call_here(capsys, "fit", "--law", "linear", "--study", str(study.path))
    assert answer.code == 0
    assert answer.out.startswith("law linear: L(r) = sum_j w_j r_j\n")
    assert "chosen:" not in answer.out
    assert (study.path / "fits" / "fit.json").read_bytes() == kept
    answer = call_here(capsys, "fit", "--law", "m5", "--study", str(study.path))
    assert answer.code == 1
    assert "there is no law 'm5'" in answer.err
    assert "let it be chosen, with 'select'" in answer.err


def test_the_law_of_a_study_is_that_of_its_configuration(tmp_path: Path, capsys: Capture) -> None:
    study = copy_imported(tmp_path / "s")
    config = study.path / "mixlaw.toml"
    text = config.read_text()
    assert 'law = "select"' in text
    config.write_text(text.replace('law = "select"', 'law = "log-linear"'))
    answer = call_here(capsys, "fit", "--study", str(study.path))
    assert answer.out.startswith("law log-linear: ")
    assert json.loads((study.path / "fits" / "fit.json").read_text())["law"] == "log-linear"
    config.write_text(text.replace('law = "select"', 'law = "loglinear"'))
    answer = call_here(capsys, "fit", "--study", str(study.path))
    assert answer.code == 1
    assert "there is no law 'loglinear', in [fit] in mixlaw.toml" in answer.err


def test_validate_prints_a_table_for_each_way_of_leaving_out(
    tmp_path: Path, capsys: Capture
) -> None:
    study = copy_imported(tmp_path / "s")
    at = ("--study", str(study.path))
    answer = call_here(
        capsys, "validate", *at, "--laws", "linear, m4", "--folds", "7", "--repeats", "2"
    )
    assert answer.code == 0
    assert "14 mixtures left out in 7 folds, 2 times\n" in answer.out
    assert "each of 14 mixtures left out; selected: the law chosen anew without it\n" in answer.out
    assert answer.out.count("\nlinear ") == answer.out.count("\nm4 ") == 2
    assert "leaving the largest out needs three" in answer.out
    answer = call_here(capsys, "validate", *at, "--laws", "m4,m5")
    assert answer.code == 1
    assert "there is no law 'm5'" in answer.err


def test_an_import_says_what_was_matched(tmp_path: Path, capsys: Capture) -> None:
    table = str(write_tables(tmp_path))
    at = ("--study", str(tmp_path / "s"))
    answer = call_here(capsys, "import", table, "--dry-run", *at)
    assert answer.out.splitlines()[-1] == (
        "would import 14 runs of 3 domains with 42 losses of 3 targets"
    )
    assert not (tmp_path / "s").exists()
    answer = call_here(capsys, "import", table, *at)
    assert (
        answer.out.splitlines()[-1] == "imported 14 runs of 3 domains with 42 losses of 3 targets"
    )
    value = one_json_value(call_here(capsys, "import", table, *at, "--json").out)
    assert isinstance(value, dict)
    assert (value["runs"], value["domains"]) == (14, ["web", "code", "books"])


# ---------------------------------------------------------------------- exit codes


def test_exit_codes_tell_input_usage_and_doubt_apart(tmp_path: Path, capsys: Capture) -> None:
    study = copy_imported(tmp_path / "s")
    at = ("--study", str(study.path))
    assert call_here(capsys, "status", *at).code == 0
    assert call_here(capsys, "optimize", "--weights", "nothing=1", *at).code == 1
    assert call_here(capsys, "nonsense").code == 2
    assert call_here(capsys, "verify", "--seeds", "2", *at).code == 2
    # Best is what the reference says already: there is no gain.
    best = study.optimize().mixture
    shares = ", ".join(f"{name} = {share!r}" for name, share in best.items())
    file = study.path / "mixlaw.toml"
    text = file.read_text().replace("[reference]", f"[reference]\nproportions = {{ {shares} }}")
    file.write_text(text)
    answer = call_here(capsys, "optimize", *at)
    assert answer.code == 3
    assert "against reference: no evidence of a gain" in answer.out


@pytest.mark.train
def test_failed_runs_exit_with_doubt_and_retry_mends_them(tmp_path: Path, capsys: Capture) -> None:
    study = copy_trained(tmp_path / "s")
    run_id = study.store.rows()[0].run_id
    study.store.reopen([run_id])
    with study.store.coordinator() as owner:
        study.store.claim(owner, [run_id])
        study.store.fail(run_id, owner, "the disk is full")
    at = ("--study", str(study.path))
    answer = call_here(capsys, "run", *at)
    assert (answer.code, answer.out) == (
        3,
        "11 of 12 runs are done, 11 were before, 1 failed: see `mixlaw status`\n",
    )
    answer = call_here(capsys, "status", *at)
    assert f"run {run_id} failed: the disk is full" in answer.out
    answer = call_here(capsys, "run", "--retry", *at)
    assert (answer.code, answer.out) == (0, "12 of 12 runs are done, 11 were before\n")


def test_an_error_goes_to_standard_error_without_a_traceback(tmp_path: Path) -> None:
    answer = call_mixlaw("status", cwd=tmp_path)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == (
        "ConfigError: there is no mixlaw.toml in .\n"
        "  do: make one with `mixlaw init`, or name a study folder with `--study`\n"
    )


def test_a_path_that_can_not_be_used_is_no_defect(tmp_path: Path, capsys: Capture) -> None:
    study = copy_imported(tmp_path / "s")
    (study.path / "optimum.json").unlink()
    (study.path / "optimum.json").mkdir()
    answer = call_here(capsys, "optimize", "--study", str(study.path))
    assert answer.code == 1
    assert answer.err.splitlines()[0].startswith("IsADirectoryError: Is a directory, in ")
    assert answer.err.splitlines()[1] == (
        "  do: check the path, its permissions and the space on the disk"
    )


def test_next_runs_of_a_study_without_text_are_handed_to_the_teams_trainer(
    tmp_path: Path, capsys: Capture
) -> None:
    study = copy_imported(tmp_path / "s")
    answer = call_here(
        capsys, "plan", "--next", "1", "--method", "space", "--study", str(study.path)
    )
    assert answer.code == 0, answer.err
    assert "`mixlaw plan --write`" in answer.out
    assert "`mixlaw run`" not in answer.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--keep",), "--keep goes with --next"),
        (("--next", "2", "--best", "5"), "--best goes without --next"),
        (("--next", "2", "--write", "mixtures"), "--write is of the whole plan"),
    ],
)
def test_options_of_plan_that_would_do_nothing_are_refused(
    options: tuple[str, ...], message: str, capsys: Capture
) -> None:
    answer = call_here(capsys, "plan", *options)
    assert answer.code == 2
    assert message in answer.err


def test_usage_errors_name_what_is_wrong(capsys: Capture) -> None:
    answer = call_here(capsys, "run", "--slots", "0")
    assert (answer.code, answer.out) == (2, "")
    assert "Invalid value for '--slots'" in answer.err


# ---------------------------------------------------------------------- odd terminals


def test_names_survive_a_terminal_that_can_not_show_them(tmp_path: Path) -> None:
    names = ("🦜", "größe", "[/x] :smile:")
    table = write_tables(tmp_path, domains=names)
    call_mixlaw("import", str(table), "--study", "s", cwd=tmp_path)
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    answer = call_mixlaw("domains", "list", "--study", "s", cwd=tmp_path, env=ascii_only)
    assert answer.code == 0, answer.err
    assert "[/x] :smile:" in answer.out  # no markup, no emoji of Rich's
    answer = call_mixlaw("domains", "list", "--study", "s", "--json", cwd=tmp_path, env=ascii_only)
    listed = one_json_value(answer.out)
    assert isinstance(listed, list)
    assert [domain["name"] for domain in listed] == list(names)


# ---------------------------------------------------------------------- interrupted


SLOW = (
    TINY.replace("tokens = 40960", "tokens = 400_000")
    .replace("mixtures = 8", "mixtures = 4")
    .replace("noise_runs = 2", "noise_runs = 0")
    .replace("holdout = 2", "holdout = 0")
    .replace("\nevaluations = 2", "\nevaluations = 8")
    + "[scale]\ntokens = 40960\n"
)
"""Four runs of about two seconds, whose first evaluation comes soon."""


@pytest.mark.train
def test_ctrl_c_stops_safely_and_the_next_run_finishes(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", targets=(), config=SLOW)
    process = subprocess.Popen(
        [sys.executable, "-m", "mixlaw", "run", "--slots", "1", "--study", str(study.path)],
        env=CLEAN,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 90
    while not any(path.stat().st_size for path in study.runs_folder.glob("*/metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    lines = err.splitlines()
    assert lines[-1] == "interrupted: nothing is lost, the same command goes on from here"
    assert "stopping as soon as checkpoints are saved; once more stops at once" in lines
    assert "Traceback" not in err
    counts = study.store.count()
    assert counts.get("running", 0) == 0
    assert counts["pending"] >= 1

    answer = call_mixlaw("run", "--study", str(study.path), cwd=tmp_path)
    assert answer.code == 0
    assert answer.out.startswith("4 of 4 runs are done")
