"""Malformed input through the command line: each has its exact message and leaves no traceback.

What is wrong inside a table of runs or a single key of `mixlaw.toml` is in `test_import_errors.py`
and `test_config.py`; this is what a study, its folder and the commands say.
"""

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomlkit

from mixlaw.study import Study
from tiny_studies import (
    call_here,
    copy_imported,
    few_draws,  # noqa: F401 - applies to every test here
    make_study,
    write_text,
)

Make = Callable[[Path], object]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing that is wrong, the command that meets it, and what it says."""

    name: str
    make: Make
    """Makes the study in the folder `s` of the folder that it is given, with what is wrong."""
    call: tuple[str, ...]
    """Arguments; `{}` stands for the folder."""
    says: str
    """Standard error; `{}` stands for the folder."""


def imported(extra: str = "") -> Make:
    """Returns what makes a study with imported runs and something added to its mixlaw.toml."""

    def make(folder: Path) -> None:
        study = copy_imported(folder / "s")
        file = study.path / "mixlaw.toml"
        document = tomlkit.parse(file.read_text())
        for section in ("reference", "objective", "constraints"):
            document.pop(section, None)
        file.write_text(tomlkit.dumps(document) + "\n" + extra)

    return make


def with_text(config: str = "", **domains: str) -> Make:
    """Returns what makes a study with text of two domains, and this configuration."""
    named = domains or {"web": "abcd", "code": "{}()"}
    return lambda folder: make_study(folder / "s", domains=named, targets=(), config=config)


def empty(config: str = "") -> Make:
    """Returns what makes a study with nothing but a configuration."""

    def make(folder: Path) -> None:
        (folder / "s").mkdir()
        (folder / "s" / "mixlaw.toml").write_text(config)

    return make


def nothing(folder: Path) -> None:
    """Makes nothing."""


def file_named(path: str, content: str, make: Make = nothing) -> Make:
    """Returns what makes a study and then a file."""

    def both(folder: Path) -> None:
        make(folder)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)

    return both


def text_file(make: Make) -> Make:
    """Returns what makes a study and then a file with good text, `t.jsonl`."""

    def both(folder: Path) -> None:
        make(folder)
        write_text(folder, "t", "abcd")

    return both


def other_database(folder: Path) -> None:
    """Makes a study whose store is a database of something else."""
    empty()(folder)
    with sqlite3.connect(folder / "s" / "study.db") as connection:
        connection.execute("CREATE TABLE birds (name TEXT)")
    connection.close()


def newer_store(folder: Path) -> None:
    """Makes a study whose store is of a version that does not exist yet."""
    with_text()(folder)
    study = Study.open(folder / "s")
    assert study.store.count() == {}
    with sqlite3.connect(folder / "s" / "study.db") as connection:
        connection.execute("UPDATE mixlaw_schema SET version = 99")
    connection.close()


def damaged_manifest(change: Callable[[dict[str, object]], object]) -> Make:
    """Returns what makes a study with text and then changes the manifest of its corpus."""

    def make(folder: Path) -> None:
        with_text()(folder)
        file = folder / "s" / "corpus" / "manifest.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return make


def damaged_import(content: str) -> Make:
    """Returns what makes a study with an import whose pointer says something else."""

    def make(folder: Path) -> None:
        study = copy_imported(folder / "s")
        (pointer,) = (study.path / "imported").glob("*.json")
        pointer.rename(pointer.with_name("a.json")).write_text(content)

    return make


def two_runs(folder: Path) -> None:
    """Makes a study with too few imported runs."""
    folder.joinpath("r.csv").write_text("run,mix/web,mix/code,loss/web\na,0.5,0.5,3\nb,0.2,0.8,4\n")
    Study.for_import(folder / "s").import_tables(folder / "r.csv")


def cut_tokens(folder: Path) -> None:
    """Makes a study whose corpus has lost half a token file."""
    with_text()(folder)
    corpus = Study.open(folder / "s").corpus
    assert corpus is not None
    path = corpus.path / corpus.domain("code").folder / "train.bin"
    path.rename(path.with_name("train.bin")).write_bytes(path.read_bytes()[:1000])


SMALL = "[design]\nmixtures = 8\n[proxies]\nparams = 3000\ntokens = 40960\n"
RUNS = "run,mix/web,mix/code,loss/web\n"
AT = ("--study", "s")
CASES = [
    Case(
        name="no command of that name",
        make=nothing,
        call=("trane",),
        says=(
            "Usage: mixlaw [OPTIONS] COMMAND [ARGS]...\n"
            "Try 'mixlaw -h' for help.\n"
            "\n"
            "Error: No such command 'trane'."
        ),
    ),
    Case(
        name="no study",
        make=nothing,
        call=(
            "status",
            *AT,
        ),
        says=(
            "ConfigError: there is no mixlaw.toml in s\n"
            "  do: make one with `mixlaw init`, or name a study folder with `--study`"
        ),
    ),
    Case(
        name="study folder is a file",
        make=file_named("s", "text"),
        call=(
            "status",
            *AT,
        ),
        says=(
            "ConfigError: there is no mixlaw.toml in s\n"
            "  do: make one with `mixlaw init`, or name a study folder with `--study`"
        ),
    ),
    Case(
        name="init over a file",
        make=file_named("s", "text"),
        call=(
            "init",
            "s",
        ),
        says=(
            "StudyError: a study must be a folder that can be written, but s can't: File exists\n"
            "  do: choose another folder"
        ),
    ),
    Case(
        name="init over a study",
        make=empty(),
        call=(
            "init",
            "s",
        ),
        says=(
            "StudyError: s is a study already\n  do: edit s/mixlaw.toml, or choose another folder"
        ),
    ),
    Case(
        name="shares without numbers",
        make=imported(),
        call=(
            "predict",
            *AT,
            "-m",
            "web",
        ),
        says=(
            "ConfigError: shares and weights must be NAME=NUMBER with commas between, found 'web'\n"
            "  do: for example: web=0.7,code=0.3; or a JSON object, for names with a comma"
        ),
    ),
    Case(
        name="share that is no number",
        make=imported(),
        call=(
            "predict",
            *AT,
            "-m",
            "web=most,code=0.5",
        ),
        says=(
            "ConfigError: shares and weights must be NAME=NUMBER with commas between, found 'web=most'\n"
            "  do: for example: web=0.7,code=0.3; or a JSON object, for names with a comma"
        ),
    ),
    Case(
        name="share given twice",
        make=imported(),
        call=(
            "predict",
            *AT,
            "-m",
            "web=0.5,web=0.5",
        ),
        says=(
            "ConfigError: 'web' is given twice in 'web=0.5,web=0.5'\n  do: leave one of them out"
        ),
    ),
    Case(
        name="share given twice in JSON",
        make=imported(),
        call=(
            "predict",
            *AT,
            "-m",
            '{"web": 0.5, "web": 0.5}',
        ),
        says=(
            'ConfigError: shares and weights must be numbers by name, found \'{"web": 0.5, "web": 0.5}\'\n'
            '  do: for example: {"web": 0.7, "code": 0.3}'
        ),
    ),
    Case(
        name="JSON of the wrong kind",
        make=imported(),
        call=(
            "predict",
            *AT,
            "-m",
            '{"web": "most"}',
        ),
        says=(
            'ConfigError: shares and weights must be numbers by name, found \'{"web": "most"}\'\n'
            '  do: for example: {"web": 0.7, "code": 0.3}'
        ),
    ),
    Case(
        name="mixture that does not sum to one",
        make=imported(),
        call=(
            "predict",
            *AT,
            "-m",
            "web=0.2,code=0.2,books=0.2",
        ),
        says=(
            "MixtureError: proportions must sum to 1 within 0.001, but they sum to 0.6, in --mixture web=0.2,code=0.2,books=0.2\n"
            "  do: give each domain's share of the tokens, for example: web=0.7,code=0.3"
        ),
    ),
    Case(
        name="mixture with a negative share",
        make=imported(),
        call=(
            "predict",
            *AT,
            "-m",
            "web=-0.2,code=0.7,books=0.5",
        ),
        says=(
            "MixtureError: proportions must not be negative, but 'web' is -0.2, in --mixture web=-0.2,code=0.7,books=0.5\n"
            "  do: give each domain's share of the tokens, for example: web=0.7,code=0.3"
        ),
    ),
    Case(
        name="mixture with NaN",
        make=imported(),
        call=(
            "predict",
            *AT,
            "-m",
            "web=nan,code=0.7,books=0.3",
        ),
        says=(
            "MixtureError: proportions must be finite, but 'web' is nan, in --mixture web=nan,code=0.7,books=0.3\n"
            "  do: give each domain's share of the tokens, for example: web=0.7,code=0.3"
        ),
    ),
    Case(
        name="mixture without a domain",
        make=imported(),
        call=(
            "predict",
            *AT,
            "-m",
            "web=0.3,code=0.7",
        ),
        says=(
            "MixtureError: the mixture must give a share for 'books'\n"
            "  do: add it (0 is a share); the domains are web, code, books"
        ),
    ),
    Case(
        name="mixture with an unknown domain",
        make=imported(),
        call=(
            "export",
            "json",
            *AT,
            "-m",
            "web=0.3,code=0.5,books=0.1,press=0.1",
        ),
        says=("MixtureError: 'press' is no domain here\n  do: the domains are web, code, books"),
    ),
    Case(
        name="weight of an unknown target",
        make=imported(),
        call=(
            "optimize",
            *AT,
            "--weights",
            "press=1",
        ),
        says=(
            "OptimizeError: the objective weighs 'press', which is not measured, in --weights\n"
            "  do: the targets are web, code, recipes"
        ),
    ),
    Case(
        name="negative weight",
        make=imported(),
        call=(
            "optimize",
            *AT,
            "--weights",
            "web=-1,code=2",
        ),
        says=(
            "OptimizeError: weights of the objective must be finite and not negative, but 'web' has"
            " -1, in --weights\n  do: give weights from 0 on, one above it"
        ),
    ),
    Case(
        name="all weights zero",
        make=imported(),
        call=(
            "optimize",
            *AT,
            "--weights",
            "web=0,code=0",
        ),
        says=(
            "OptimizeError: the objective must weigh at least one target, in --weights\n"
            "  do: give weights from 0 on, one above it"
        ),
    ),
    Case(
        name="step without observations",
        make=imported(),
        call=(
            "fit",
            *AT,
            "--step",
            "12",
        ),
        says=("StudyError: no run was observed at step 12\n  do: the steps are 0"),
    ),
    Case(
        name="unknown framework",
        make=imported(),
        call=(
            "export",
            "megatrn",
            *AT,
        ),
        says=(
            "ExportError: 'megatrn' is no framework that mixlaw exports to\n"
            "  do: did you mean 'megatron'? there are json, csv, megatron"
        ),
    ),
    Case(
        name="export to a missing folder",
        make=imported(),
        call=(
            "export",
            "json",
            *AT,
            "-o",
            "missing/m.json",
        ),
        says=("ExportError: the folder of an export must exist, but missing does not"),
    ),
    Case(
        name="export onto a folder",
        make=imported(),
        call=(
            "export",
            "json",
            *AT,
            "-o",
            "s",
        ),
        says=("ExportError: an export must be a file, but s is a folder\n  do: add a file name"),
    ),
    Case(
        name="report to a missing folder",
        make=imported(),
        call=(
            "report",
            *AT,
            "-o",
            "missing/r.html",
        ),
        says=(
            "StudyError: missing/r.html can't be written: No such file or directory\n"
            "  do: name a file in a folder that exists"
        ),
    ),
    Case(
        name="report onto a folder",
        make=imported(),
        call=(
            "report",
            *AT,
            "-o",
            "s",
        ),
        says=(
            "StudyError: s can't be written: Is a directory\n"
            "  do: name a file in a folder that exists"
        ),
    ),
    Case(
        name="prefix without a path",
        make=imported(),
        call=(
            "export",
            "megatron",
            *AT,
            "--prefix",
            "web",
        ),
        says=(
            "ConfigError: --prefix must be NAME=VALUE, found 'web'\n"
            "  do: for example: web=/data/web"
        ),
    ),
    Case(
        name="prefix given twice",
        make=imported(),
        call=(
            "export",
            "megatron",
            *AT,
            "--prefix",
            "web=/a",
            "--prefix",
            "web=/b",
        ),
        says=("ConfigError: --prefix gives 'web' twice\n  do: leave one of them out"),
    ),
    Case(
        name="prefix of an unknown domain",
        make=imported(),
        call=(
            "export",
            "megatron",
            *AT,
            "--prefix",
            "press=/a",
        ),
        says=(
            "ExportError: a prefix was given for 'press', which is no domain here\n"
            "  do: the domains are web, code, books"
        ),
    ),
    Case(
        name="prefix with a space",
        make=imported(),
        call=(
            "export",
            "megatron",
            *AT,
            "--prefix",
            "web=/a b",
        ),
        says=(
            "ExportError: the Megatron prefix of 'web' must have no white space or control characters, found '/a b'\n"
            "  do: give the path of its token files without .bin or .idx; link them to such a path"
        ),
    ),
    Case(
        name="column without a name",
        make=imported(),
        call=(
            "import",
            "r.csv",
            *AT,
            "--column",
            "step",
        ),
        says=(
            "ConfigError: --column must be NAME=VALUE, found 'step'\n  do: for example: step=iter"
        ),
    ),
    Case(
        name="plan written onto a file",
        make=file_named("plan", "text", with_text(SMALL)),
        call=(
            "plan",
            *AT,
            "--write",
            "plan",
        ),
        says=("ExportError: plan must be a folder: File exists"),
    ),
    Case(
        name="slots below one",
        make=nothing,
        call=(
            "run",
            "--slots",
            "0",
        ),
        says=(
            "Usage: mixlaw run [OPTIONS]\n"
            "Try 'mixlaw run -h' for help.\n"
            "\n"
            "Error: Invalid value for '--slots': Input should be greater than or equal to 1"
        ),
    ),
    Case(
        name="too few seeds",
        make=nothing,
        call=(
            "verify",
            "--seeds",
            "2",
        ),
        says=(
            "Usage: mixlaw verify [OPTIONS]\n"
            "Try 'mixlaw verify -h' for help.\n"
            "\n"
            "Error: Invalid value for '--seeds': Input should be greater than or equal to 3"
        ),
    ),
    Case(
        name="toml that is none",
        make=empty("[study\nname = 1"),
        call=(
            "status",
            *AT,
        ),
        says=(
            "ConfigError: s/mixlaw.toml must be TOML, but: Expected ']' at the end of a table declaration (at line 1, column 7)\n"
            "  do: correct that place of the file"
        ),
    ),
    Case(
        name="unknown key",
        make=empty("[desing]\nmixtures = 8"),
        call=(
            "status",
            *AT,
        ),
        says=("ConfigError: `desing` is no key, in s/mixlaw.toml\n  do: did you mean `design`?"),
    ),
    Case(
        name="no domains anywhere",
        make=empty(),
        call=(
            "plan",
            *AT,
        ),
        says=(
            "StudyError: the study has no domains\n"
            "  do: add text with `mixlaw domains add`, import runs with `mixlaw import`, or name them in mixlaw.toml"
        ),
    ),
    Case(
        name="one domain",
        make=empty("[[domains]]\nname = 'web'"),
        call=(
            "plan",
            *AT,
        ),
        says=(
            "DomainError: a mixture needs at least two domains, found 1, in the study's domains\n"
            "  do: add domains with `mixlaw domains add NAME PATH...`"
        ),
    ),
    Case(
        name="a domain twice",
        make=empty("[[domains]]\nname = 'web'\n[[domains]]\nname = 'web'"),
        call=(
            "plan",
            *AT,
        ),
        says=(
            "DomainError: domain names must differ, but 'web' is there 2 times, in the study's domains\n"
            "  do: correct it in mixlaw.toml"
        ),
    ),
    Case(
        name="a name with a line break",
        make=empty("[[domains]]\nname = '''a\nb'''"),
        call=(
            "plan",
            *AT,
        ),
        says=(
            "DomainError: a domain's name must be printable text, found 'a\\nb', in s/mixlaw.toml\n"
            "  do: give it a name without control characters"
        ),
    ),
    Case(
        name="scale below zero",
        make=empty("[scale]\ntokens = -1"),
        call=(
            "plan",
            *AT,
        ),
        says=(
            "DomainError: tokens of the scale must be positive, found -1.0, in s/mixlaw.toml\n"
            "  do: correct it there"
        ),
    ),
    Case(
        name="a domain without text",
        make=with_text(SMALL + "[[domains]]\nname = 'press'\n"),
        call=(
            "plan",
            *AT,
        ),
        says=(
            "StudyError: domain 'press' of mixlaw.toml has no text to train on, in s/corpus\n"
            "  do: add it with `mixlaw domains add`, or remove it; the corpus has code, web"
        ),
    ),
    Case(
        name="supply too small for the scale",
        make=with_text(SMALL + "[scale]\ntokens = 1e9\n"),
        call=(
            "plan",
            *AT,
        ),
        says=(
            "DomainError: the domains must hold the 1e+09 tokens of the scale, but with the epochs that are allowed they hold 1.018e+05\n"
            "  do: raise `max_epochs`, plan fewer tokens, or give `available_tokens` in [[domains]] where the corpus is only a sample of what there is"
        ),
    ),
    Case(
        name="more mixtures than a design has room for",
        make=with_text(SMALL.replace("mixtures = 8", "mixtures = 8\nfloor = 0.5")),
        call=(
            "plan",
            *AT,
        ),
        says=("DesignError: the floors sum to 1, which leaves a single mixture\n  do: lower them"),
    ),
    Case(
        name="floors above one",
        make=imported("[constraints]\nfloor = { web = 0.6, code = 0.6 }"),
        call=(
            "optimize",
            *AT,
        ),
        says=(
            "MixtureError: floors must sum to at most 1, but they sum to 1.273, in [constraints] in mixlaw.toml, or what runs and token supply allow\n"
            "  do: lower the floors"
        ),
    ),
    Case(
        name="floor above its cap",
        make=imported("[constraints]\nfloor = { web = 0.6 }\ncap = { web = 0.5 }"),
        call=(
            "optimize",
            *AT,
        ),
        says=(
            "MixtureError: the cap of 'web' (0.5) is below its floor (0.6), in [constraints] in mixlaw.toml, or what runs and token supply allow\n"
            "  do: lower the floor, or allow more tokens or epochs of this domain"
        ),
    ),
    Case(
        name="caps below one",
        make=imported("[constraints]\ncap = { web = 0.3, code = 0.3, books = 0.3 }"),
        call=(
            "optimize",
            *AT,
        ),
        says=(
            "MixtureError: caps must sum to at least 1, but they sum to 0.9, in [constraints] in mixlaw.toml, or what runs and token supply allow\n"
            "  do: allow more tokens or epochs"
        ),
    ),
    Case(
        name="a cap above one",
        make=imported("[constraints]\ncap = { web = 1.5 }"),
        call=(
            "optimize",
            *AT,
        ),
        says=(
            "MixtureError: floor and cap must lie in [0, 1], but 'web' has 0 and 1.5, in [constraints] in mixlaw.toml, or what runs and token supply allow\n"
            "  do: correct it in mixlaw.toml"
        ),
    ),
    Case(
        name="floor of an unknown domain",
        make=imported("[constraints]\nfloor = { press = 0.1 }"),
        call=(
            "optimize",
            *AT,
        ),
        says=(
            "MixtureError: 'press' is no domain here, in [constraints] in mixlaw.toml, or what runs and token supply allow\n"
            "  do: the domains are web, code, books"
        ),
    ),
    Case(
        name="reference of other domains",
        make=imported("[reference]\nproportions = { web = 0.5, press = 0.5 }"),
        call=(
            "optimize",
            *AT,
        ),
        says=(
            "MixtureError: the mixture must give a share for 'code', in [reference] in mixlaw.toml\n"
            "  do: add it (0 is a share); the domains are web, code, books"
        ),
    ),
    Case(
        name="reference that does not sum to one",
        make=imported("[reference]\nproportions = { web = 0.5, code = 0.1, books = 0.1 }"),
        call=(
            "optimize",
            *AT,
        ),
        says=(
            "MixtureError: proportions must sum to 1 within 0.001, but they sum to 0.7, in [reference] in mixlaw.toml\n"
            "  do: give each domain's share of the tokens"
        ),
    ),
    Case(
        name="objective over an unknown target",
        make=imported("[objective]\nweights = { press = 1 }"),
        call=(
            "optimize",
            *AT,
        ),
        says=(
            "OptimizeError: the objective weighs 'press', which is not measured, in [objective] in mixlaw.toml\n"
            "  do: the targets are web, code, recipes"
        ),
    ),
    Case(
        name="objective with a negative weight",
        make=imported("[objective]\nweights = { web = -1 }"),
        call=(
            "optimize",
            *AT,
        ),
        says=(
            "OptimizeError: weights of the objective must be finite and not negative, but 'web' has -1, in [objective] in mixlaw.toml\n"
            "  do: give weights from 0 on, one above it"
        ),
    ),
    Case(
        name="objective of zeros",
        make=imported("[objective]\nweights = { web = 0 }"),
        call=(
            "optimize",
            *AT,
        ),
        says=(
            "OptimizeError: the objective must weigh at least one target, in [objective] in mixlaw.toml\n"
            "  do: give weights from 0 on, one above it"
        ),
    ),
    Case(
        name="run without text",
        make=imported(),
        call=(
            "run",
            *AT,
        ),
        says=(
            "StudyError: proxies need text to train on, and the study has no corpus, in s\n"
            "  do: add text with `mixlaw domains add`, or import runs with `mixlaw import`"
        ),
    ),
    Case(
        name="verify without text",
        make=imported(),
        call=(
            "verify",
            *AT,
        ),
        says=(
            "StudyError: verification trains models, and the study has no corpus, in s\n"
            "  do: add the text of the same domains with `mixlaw domains add`"
        ),
    ),
    Case(
        name="fit before any run",
        make=with_text(SMALL),
        call=(
            "fit",
            *AT,
        ),
        says=(
            "StudyError: the study has no finished runs, in s\n"
            "  do: train some with `mixlaw run`, or import them with `mixlaw import`"
        ),
    ),
    Case(
        name="optimize before any run",
        make=with_text(SMALL),
        call=(
            "optimize",
            *AT,
        ),
        says=(
            "StudyError: the study has no finished runs, in s\n"
            "  do: train some with `mixlaw run`, or import them with `mixlaw import`"
        ),
    ),
    Case(
        name="report before any run",
        make=with_text(SMALL),
        call=(
            "report",
            *AT,
        ),
        says=(
            "StudyError: the study has no finished runs, in s\n"
            "  do: train some with `mixlaw run`, or import them with `mixlaw import`"
        ),
    ),
    Case(
        name="too few runs for a fit",
        make=two_runs,
        call=(
            "fit",
            *AT,
        ),
        says=(
            "FitError: a fit needs the losses of at least 4 mixtures, but 'web' has 2\n"
            "  do: train or import more mixtures, about three per domain"
        ),
    ),
    Case(
        name="store that is another database",
        make=other_database,
        call=(
            "status",
            *AT,
        ),
        says=(
            "RunError: the store must be a database of mixlaw, found one with the tables birds, in RunStore('sqlite:///s/study.db')\n"
            "  do: name another database as the study's store"
        ),
    ),
    Case(
        name="store that is a text file",
        make=file_named(
            "s/study.db", "not a database, but text that is long enough " * 20, empty()
        ),
        call=(
            "status",
            *AT,
        ),
        says=(
            "RunError: the store must be an SQLite database (file is not a database), in RunStore('sqlite:///s/study.db')\n"
            "  do: restore it from a backup, or move it away and plan again: runs that are done are taken from their folders"
        ),
    ),
    Case(
        name="store of a later version",
        make=newer_store,
        call=(
            "status",
            *AT,
        ),
        says=(
            "RunError: the store must have version 1 of the schema, found 99, in RunStore('sqlite:///s/study.db')\n"
            "  do: open it with the version of mixlaw that made it, or start a new database: runs that are done are taken from their folders"
        ),
    ),
    Case(
        name="store at no URL",
        make=empty("[study]\nstore = 'nonsense'"),
        call=(
            "status",
            *AT,
        ),
        says=(
            "RunError: the store must be a database URL\n"
            "  do: write sqlite:///study.db or postgresql+psycopg://user@host/database"
        ),
    ),
    Case(
        name="import that was damaged",
        make=damaged_import("{}"),
        call=(
            "fit",
            *AT,
        ),
        says=(
            "StudyError: what was kept of an import can't be read (it names no folder), in s/imported/a.json\n"
            "  do: import that source again"
        ),
    ),
    Case(
        name="import that is no object",
        make=damaged_import("[]"),
        call=(
            "fit",
            *AT,
        ),
        says=(
            "StudyError: what was kept of an import can't be read (it names no folder), in s/imported/a.json\n"
            "  do: import that source again"
        ),
    ),
    Case(
        name="corpus that is a file",
        make=file_named("s/corpus", "text", empty()),
        call=(
            "plan",
            *AT,
        ),
        says=(
            "CorpusError: s/corpus must be a corpus, but it has no manifest.json\n"
            "  do: add text with `mixlaw domains add NAME PATH...`"
        ),
    ),
    Case(
        name="corpus without a manifest",
        make=file_named("s/corpus/x", "text", empty()),
        call=(
            "plan",
            *AT,
        ),
        says=(
            "CorpusError: s/corpus must be a corpus, but it has no manifest.json\n"
            "  do: add text with `mixlaw domains add NAME PATH...`"
        ),
    ),
    Case(
        name="manifest of another version",
        make=damaged_manifest(lambda content: content.update(format="mixlaw-corpus/9")),
        call=(
            "plan",
            *AT,
        ),
        says=(
            "CorpusError: the format of a corpus must be 'mixlaw-corpus/1', found 'mixlaw-corpus/9', in s/corpus/manifest.json\n"
            "  do: open it with the version of mixlaw that wrote it, or build it anew"
        ),
    ),
    Case(
        name="manifest without a key",
        make=damaged_manifest(lambda content: content.pop("vocab_size")),
        call=(
            "plan",
            *AT,
        ),
        says=(
            "CorpusError: s/corpus/manifest.json must be a manifest that mixlaw wrote, but `vocab_size` of the manifest is missing or unknown\n"
            "  do: build the corpus anew"
        ),
    ),
    Case(
        name="manifest that points elsewhere",
        make=damaged_manifest(lambda content: content["domains"][0].update(folder="../x")),
        call=(
            "plan",
            *AT,
        ),
        says=(
            "CorpusError: s/corpus/manifest.json must be a manifest that mixlaw wrote, but '../x' is no folder of a domain\n"
            "  do: build the corpus anew"
        ),
    ),
    Case(
        name="token file that was cut",
        make=cut_tokens,
        call=(
            "plan",
            *AT,
        ),
        says=(
            "CorpusError: the train tokens of 'code' must be 46408 bytes of uint8, but s/corpus/5694d08a2e53ffca-efdb8147/train.bin has 1000\n"
            "  do: add the domain again with `--replace`"
        ),
    ),
    Case(
        name="text that is not there",
        make=empty(),
        call=(
            "domains",
            "add",
            "web",
            "missing.txt",
            *AT,
        ),
        says=("CorpusError: missing.txt must be a file or a folder, but it is not there"),
    ),
    Case(
        name="domain that is there",
        make=text_file(with_text(SMALL)),
        call=(
            "domains",
            "add",
            "web",
            "t.jsonl",
            *AT,
        ),
        says=(
            "CorpusError: the names of domains must differ, but 'web' is in the corpus in s/corpus\n"
            "  do: choose another name, or pass `--replace` to put this text in its place"
        ),
    ),
    Case(
        name="domain without a name",
        make=text_file(empty()),
        call=(
            "domains",
            "add",
            " ",
            "t.jsonl",
            *AT,
        ),
        says=(
            "DomainError: a domain's name must be printable text, found ' '\n"
            "  do: give it a name without control characters"
        ),
    ),
    Case(
        name="tokenizer that is none",
        make=text_file(empty()),
        call=(
            "domains",
            "add",
            "web",
            "t.jsonl",
            "--tokenizer",
            "words",
            *AT,
        ),
        says=(
            "CorpusError: a tokenizer must be `bytes`, `bpe:SIZE` or the path of a tokenizer.json, found 'words'\n"
            "  do: give one of these, such as `bpe:4096`"
        ),
    ),
    Case(
        name="field that is not there",
        make=text_file(empty()),
        call=(
            "domains",
            "add",
            "web",
            "t.jsonl",
            "--text-field",
            "body",
            *AT,
        ),
        says=(
            "CorpusError: a line must have the field 'body', but it has 'text', in line 1 of t.jsonl\n"
            "  do: name what holds the text with `--text-field`"
        ),
    ),
    Case(
        name="table that is not there",
        make=nothing,
        call=(
            "import",
            "missing.csv",
            *AT,
        ),
        says=("TableError: missing.csv can't be read: No such file or directory"),
    ),
    Case(
        name="loss that is NaN",
        make=file_named("r.csv", RUNS + "a,0.5,0.5,nan\n"),
        call=(
            "import",
            "r.csv",
            *AT,
        ),
        says=(
            "TableError: losses must be finite, but line 2 of r.csv has nan in column 'loss/web'\n"
            "  do: leave the cell empty where nothing was measured, and a run out that diverged"
        ),
    ),
    Case(
        name="shares that do not sum to one",
        make=file_named("r.csv", RUNS + "a,0.5,0.4,3\n"),
        call=(
            "import",
            "r.csv",
            *AT,
        ),
        says=(
            "TableError: the shares of a run must sum to 1 within 0.02, but line 2 of r.csv (run 'a') sums to 0.9\n"
            "  do: give shares of tokens, allow more with `--tolerance`, or check the columns: mix/web, mix/code"
        ),
    ),
    Case(
        name="unit that is none",
        make=file_named("r.csv", RUNS + "a,0.5,0.5,3\n"),
        call=(
            "import",
            "r.csv",
            "--unit",
            "nats",
            *AT,
        ),
        says=(
            "TableError: the unit must be one of nats_per_token, bits_per_byte, error, found 'nats'"
        ),
    ),
    Case(
        name="one domain in a table",
        make=file_named("r.csv", "run,mix/web,loss/web\na,1,3\n"),
        call=(
            "import",
            "r.csv",
            *AT,
        ),
        says=(
            "TableError: no columns of r.csv look like shares of two domains or more: 'run', 'mix/web', 'loss/web'\n"
            "  do: name them with `--proportions`, such as `--proportions 'mix/{domain}'`"
        ),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_malformed_input_is_said_exactly(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    answer = call_here(capsys, *(part.replace("{}", str(tmp_path)) for part in case.call))
    assert answer.err.replace(str(tmp_path), "{}") == case.says + "\n"
    assert answer.out == ""
    assert answer.code == (2 if case.says.startswith("Usage") else 1)
