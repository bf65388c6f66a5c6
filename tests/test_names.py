"""Names are data: whatever a domain is called, nothing is run, escaped from or written elsewhere."""

import csv
import json
import re
import sys
from pathlib import Path

import polars as pl
import pytest

from mixlaw.config import load_config
from mixlaw.exporters import check_export
from mixlaw.mixtures import Mixture
from mixlaw.study import Study
from tiny_studies import (
    TINY,
    Answer,
    call_here,
    few_draws,  # noqa: F401 - applies to every test here
    list_files,
    make_study,
    write_tables,
)

SCRIPT = "<script>alert(1)</script>"
EVIL = (
    SCRIPT,
    "$(touch pwned)",
    "../x",
    "a \"quote\" 'n'; `id`",
    "🦜 [red]/",
    "=cmd()",
    "a,b=c",
    "n" * 200,
)
TRIPLES = (EVIL[:3], EVIL[3:6], (*EVIL[6:], "-m"))
PROCESSES = {"subprocess.Popen", "os.system", "os.posix_spawn", "os.exec"}

events: list[str] = []
is_watching = False


def watch(event: str, arguments: tuple[object, ...]) -> None:
    """Notes programs that are started and files that are opened for writing."""
    if is_watching and event in PROCESSES:
        events.append(f"{event} {arguments[0]!r}")


sys.addaudithook(watch)


@pytest.fixture(autouse=True)
def no_program_is_started(monkeypatch: pytest.MonkeyPatch, few_draws: None) -> object:  # noqa: F811
    """Whatever a name holds, no shell and no other program sees it."""
    events.clear()
    monkeypatch.setattr(sys.modules[__name__], "is_watching", True)
    yield
    assert events == []


def check_page(page: str) -> None:
    """Names must not have become elements or attributes of a page."""
    assert "<script>alert" not in page
    assert not re.search(r"<[a-z][^>]*\salert", page)


@pytest.mark.parametrize("names", TRIPLES, ids=["markup", "quotes", "commas"])
def test_imported_names_are_data(
    names: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def call(*arguments: str) -> Answer:
        answer = call_here(capsys, *arguments)
        assert answer.code in (0, 3), answer.err
        return answer

    monkeypatch.chdir(tmp_path)
    write_tables(tmp_path, domains=names)
    call("import", "runs.csv", "--study", "s")
    monkeypatch.chdir(tmp_path / "s")
    assert Study.open(".").question.names == names
    weights = json.dumps({names[0]: 1, names[1]: 2})
    listed = call("domains", "list").out
    assert all(name[:20] in listed for name in names)
    assert names[0] in call("fit").out.replace("\n", " ") or len(names[0]) > 20
    call("optimize", "--weights", weights)
    best = Study.open(".").optimize().mixture
    assert call("predict", "-m", json.dumps(dict(best))).out.count("objective") == 1
    call("report")
    page = (tmp_path / "s" / "report.html").read_text(encoding="utf-8")
    check_page(page)
    for framework in ("json", "csv"):
        call("export", framework, "-o", "m")
        read = check_export("m", framework)
        assert read.names == names
        assert read.proportions == pytest.approx([best[name] for name in names], abs=1e-9)
    prefixes = {name: f"/data/{i}_text" for i, name in enumerate(names)}
    given = [f"--prefix={name}={prefix}" for name, prefix in prefixes.items()]
    call("export", "megatron", "-o", "m", *given)
    assert set(check_export("m", "megatron", prefixes=prefixes)) == {
        n for n in names if best[n] > 0
    }
    with Path("m").open() as file:
        assert set("".join(file)) <= set("0123456789.e- /data_txn\n")
    assert {path.name for path in tmp_path.iterdir()} == {"runs.csv", "s"}


@pytest.mark.parametrize("names", TRIPLES, ids=["markup", "quotes", "commas"])
def test_plans_hand_names_out_as_they_are(
    names: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(
        tmp_path / "s", domains=dict(zip(names, ("abcd", "{}()", "XYZ"), strict=True))
    )
    assert [d.name for d in load_config(study.path / "mixlaw.toml").domains] == list(names)
    prefixes = [f"--prefix={name}=/data/{i}_text" for i, name in enumerate(names)]
    out = tmp_path / "w"
    answer = call_here(capsys, "plan", "--study", str(study.path), "--write", str(out), *prefixes)
    assert answer.code == 0, answer.err
    with (out / "runs.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert [column[2:] for column in header if column.startswith("r:")] == list(names)
    assert all(sum(map(float, row[-3:])) == pytest.approx(1) for row in rows)
    assert {path.name for path in tmp_path.iterdir()} == {"s", "s-text", "w"}
    assert all(re.fullmatch(r"(runs|mixture-\d+)\.[a-z.]+", path.name) for path in out.iterdir())


@pytest.mark.train
def test_odd_names_are_trained_and_verified_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "is_watching", False)  # workers are processes
    config = TINY.replace("mixtures = 8", "mixtures = 5").replace("holdout = 2", "holdout = 0")
    config = config.replace("noise_runs = 2", "noise_runs = 0")
    study = make_study(
        tmp_path / "s",
        domains={SCRIPT: "abcdefgh", "../x": "{}()=+;_"},
        targets=("$(touch pwned)",),
        config=config,
    )
    outside = {name for name in list_files(tmp_path) if not name.startswith("s/")}
    assert study.run().done == 5
    assert study.fit().targets == tuple(sorted((SCRIPT, "../x", "$(touch pwned)")))
    study.optimize()
    check_page(study.report().read_text(encoding="utf-8"))
    runs, observations = study.tables()
    assert {"r:../x", f"r:{SCRIPT}"} <= set(runs.columns)
    assert set(observations["target"]) == {SCRIPT, "../x", "$(touch pwned)"}
    assert {name for name in list_files(tmp_path) if not name.startswith("s/")} == outside
    assert not any("pwned" in name or "script" in name for name in list_files(study.path))


@pytest.mark.parametrize("source", EVIL)
def test_the_name_of_a_source_names_no_file(source: str, tmp_path: Path) -> None:
    study = Study.for_import(tmp_path / "s")
    study.import_tables(write_tables(tmp_path), source=source)
    assert study.tables()[0]["origin"].unique().to_list() == [source]
    assert {path.name for path in tmp_path.iterdir()} == {"runs.csv", "s"}
    for path in (study.path / "imported").iterdir():
        assert re.fullmatch(r"[0-9a-f]{16}(-[0-9a-f]{8}|\.json)", path.name)


@pytest.mark.parametrize("name", EVIL)
def test_a_study_may_have_any_name(name: str, tmp_path: Path) -> None:
    study = Study.for_import(tmp_path / "s")
    file = study.path / "mixlaw.toml"
    study.import_tables(write_tables(tmp_path))
    file.write_text(f"[study]\nname = {json.dumps(name, ensure_ascii=False)}\n", encoding="utf-8")
    assert Study.open(study.path).status().name == name
    assert isinstance(Study.open(study.path).tables()[0], pl.DataFrame)


def test_a_mixture_of_any_names_survives_the_command_line() -> None:
    from mixlaw.cli.app import read_mixture

    given = Mixture.of(dict(zip(EVIL, [0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05], strict=True)))
    assert read_mixture(json.dumps(dict(given))) == given
    text = ",".join(f"{name}={share}" for name, share in given.items() if "," not in name)
    assert set(read_mixture(text + ",rest=0.05")) == {n for n in EVIL if "," not in n} | {"rest"}
