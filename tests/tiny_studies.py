"""Tiny studies for the tests of what is above training: generated text, models of seconds.

A domain's text is words drawn from an alphabet of its own, so that mixtures matter after a few
steps; nothing here is anybody's text.
"""

import atexit
import csv
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mixlaw.cli import main
from mixlaw.study import Study

ALPHABETS = {"web": "abcdefgh", "code": "{}()=+;_", "books": "STUVWXYZ", "recipes": "aeio{}ST"}
TINY = """
[study]
name = "tiny"
slots = 2
[design]
method = "sobol"
mixtures = 8
noise_runs = 2
holdout = 2
floor = 0.05
[proxies]
params = 3000
tokens = 40960
evaluations = 2
precision = "fp32"
device = "cpu"
[verify]
evaluations = 3
"""
"""20 steps of 2,048 tokens: a run takes a tenth of a second."""
CLEAN = {
    **{
        name: value for name, value in os.environ.items() if not name.startswith(("FORCE_", "TTY_"))
    },
    "COLUMNS": "100",
    "NO_COLOR": "1",
    "PYTHONUNBUFFERED": "1",
}


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer bootstrap draws: these tests are not about intervals."""
    monkeypatch.setattr("mixlaw.study.folder.NUM_DRAWS", 20)


def write_text(folder: Path, name: str, alphabet: str, *, documents: int = 160) -> Path:
    """Writes JSON lines of generated documents, the same for the same alphabet."""
    rng = random.Random(alphabet)
    words = ["".join(rng.choices(alphabet, k=rng.randint(2, 6))) for _ in range(40)]
    path = folder / f"{name}.jsonl"
    path.write_text(
        "".join(
            '{"text": "' + " ".join(rng.choices(words, k=60)) + '"}\n' for _ in range(documents)
        )
    )
    return path


def make_study(
    folder: Path,
    *,
    domains: Mapping[str, str] | None = None,
    targets: Sequence[str] = ("recipes",),
    config: str = TINY,
) -> Study:
    """Returns a study with text of each domain, by name and alphabet, and of targets."""
    folder.mkdir(parents=True)
    (folder / "mixlaw.toml").write_text(config)
    study = Study.open(folder)
    texts = folder.parent / f"{folder.name}-text"
    texts.mkdir()
    named = {n: a for n, a in ALPHABETS.items() if n != "recipes"} if domains is None else domains
    for i, (name, alphabet) in enumerate(named.items()):
        study.add_domain(
            name,
            [write_text(texts, f"{i}", alphabet, documents=200 - 40 * i)],
            licence="public domain",
            source=f"generator {i}",
            target_only=False,
        )
    for name in targets:
        path = write_text(texts, f"target-{name}", ALPHABETS["recipes"], documents=40)
        study.add_domain(name, [path], target_only=True)
    return study


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str


def call_mixlaw(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> Answer:
    """Returns what `python -m mixlaw` answers, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "mixlaw", *arguments],
        check=False,
        cwd=cwd,
        env=CLEAN | dict(env or {}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Answer(code=done.returncode, out=done.stdout, err=done.stderr)


def call_here(capsys: pytest.CaptureFixture[str], *arguments: str) -> Answer:
    """Returns what the same command answers in this process, which is cheaper."""
    before, sys.argv = sys.argv, ["mixlaw", *arguments]
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = before
    printed = capsys.readouterr()
    code = ended.value.code
    assert code is None or isinstance(code, int)
    return Answer(code=code or 0, out=printed.out, err=printed.err)


TRUTH = np.array([[0.2, 1.1, 0.9], [1.2, 0.1, 0.8], [0.7, 0.6, 0.2]])
"""log of (loss - 2) of each target on each domain alone, for tables that are made up."""


def write_tables(folder: Path, *, domains: Sequence[str] = ("web", "code", "books")) -> Path:
    """Writes a table of 14 made-up runs with their losses on two of the domains and `recipes`."""
    rng = np.random.default_rng(1)
    shares_RM = 0.05 + 0.85 * rng.dirichlet(np.ones(3), 14)
    losses_RT = 2 + np.exp(shares_RM @ TRUTH.T) + rng.normal(0, 0.003, (14, 3))
    names = [f"mix/{name}" for name in domains]
    targets = [f"loss/{name}" for name in (*domains[:2], "recipes")]
    path = folder / "runs.csv"
    lines = [["run", *names, *targets]]
    lines += [
        [f"run-{i}", *map(repr, map(float, shares)), *map(repr, map(float, losses))]
        for i, (shares, losses) in enumerate(zip(shares_RM, losses_RT, strict=True))
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    return path


@cache
def _trained() -> Path:
    study = make_study(_workplace() / "trained")
    counts = study.run()
    assert (counts.done, counts.failed) == (12, 0)
    study.fit()
    return study.path


@cache
def _imported() -> Path:
    folder = _workplace() / "imported"
    study = Study.for_import(folder)
    study.import_tables(write_tables(_workplace()))
    study.optimize()
    return folder


@cache
def _workplace() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="mixlaw-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def copy_trained(folder: Path) -> Study:
    """Returns a copy, in a new folder, of a study whose runs are trained and fitted."""
    shutil.copytree(_trained(), folder)
    return Study.open(folder)


def copy_imported(folder: Path) -> Study:
    """Returns a copy, in a new folder, of a study with imported runs, a fit and an optimum."""
    shutil.copytree(_imported(), folder)
    return Study.open(folder)


def list_files(folder: Path) -> dict[str, bytes]:
    """Returns the content of every file below a folder, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
