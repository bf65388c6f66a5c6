"""The demo: the whole loop on real text, with a question that has an answer.

A team holds much API documentation, some code and little prose, and would train in proportion to
what it has. It wants a model that writes code and prose, and that will be used on recipes, which
nobody has to train on. The best mixture is then far from both the proportional and the uniform one.
"""

import shutil
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mixlaw.config import FILE_NAME, Config, ObjectiveSection, StudySection
from mixlaw.corpora import Corpus, fetch_demo_corpus
from mixlaw.errors import StudyError
from mixlaw.fit import FitResult
from mixlaw.optimize import Optimum
from mixlaw.runs import Progress as RunProgress
from mixlaw.runs import RunCounts
from mixlaw.selection import HoldoutScore, LawChoice
from mixlaw.study.folder import Progress, Study
from mixlaw.verify import Verification

NAME = "mixlaw demo"
"""By its name a demo is told from a study that a person made, which `--fresh` must not empty."""
WEIGHTS: Mapping[str, float] = {"code": 0.5, "encyclopedia": 0.25, "recipes": 0.25}
"""The demo's objective: code, prose, and a domain that no mixture trains on."""
MADE_BY_RUNNING = (
    "study.db",
    "study.db-shm",
    "study.db-wal",
    "runs",
    "fits",
    "coordinators",
    "optimum.json",
    "verification.json",
    "report.html",
    "seconds.json",
)
"""What `--fresh` removes from the folder; the corpus stays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """What a demo found, and how long it took."""

    study: Path
    """Folder of the demo's study."""
    trained: RunCounts
    """The sweep that the law is fitted to, the held-out mixtures among it."""
    fit: FitResult
    choice: LawChoice | None
    """Why it is that law."""
    holdout: HoldoutScore | None
    optimum: Optimum
    verification: Verification
    report: Path
    seconds: Mapping[str, float]
    """Wall seconds of this call by stage, the total last."""


def run_demo(
    path: str | Path,
    *,
    corpus: str | Path | None = None,
    fresh: bool = False,
    seed: int = 0,
    slots: int | None = None,
    on_stage: Callable[[str], None] = lambda _: None,
    on_progress: Progress | None = None,
    on_runs: Callable[[RunProgress], None] | None = None,
) -> DemoResult:
    """Runs the whole loop in a folder: text, design, training, law, optimum, verification, report.

    What an earlier call has trained is reused.

    Args:
        path: Folder of the demo's study; made when missing.
        corpus: A corpus of one's own instead of the text that is fetched.
        fresh: Forget what an earlier call has trained.
        seed: Seed of the design and of the training.
        slots: Runs at once; one per CPU core by default.
        on_stage: Is told what comes next, in a line.
        on_progress: Is told how far the text and the fit are.
        on_runs: Is told how far the training is.

    Raises:
        FetchError: The text can't be fetched.
        StudyError: The folder holds another study, or one with another seed or corpus.
    """
    folder = Path(path)
    seconds: dict[str, float] = {}
    if fresh:
        _forget(folder)
    study = _open(folder, corpus=corpus, seed=seed)
    with _timed(seconds, "text"):
        if corpus is None:
            on_stage("1/6 text: five domains and one that no mixture trains on")
            fetch_demo_corpus(folder / study.config.study.corpus, progress=on_progress)
    with _timed(seconds, "train"):
        planned = study.plan()
        on_stage(
            f"2/6 train: {len(planned.runs)} models on {len(planned.design.mixtures)} mixtures"
            f" and {study.config.design.holdout} held-out ones"
        )
        trained = study.run(slots=slots, retry=True, on_runs=on_runs)
        if trained.reused:
            on_stage(
                f"    {trained.reused} of {trained.total} runs were there already and are reused"
                " (--fresh, or `make demo FRESH=1`, trains again)"
            )
    _refuse_failures(study, trained)
    with _timed(seconds, "fit"):
        on_stage("3/6 fit: the mixing law that predicts best, left-out errors, bootstrap")
        fit = study.fit(on_progress=on_progress)
        choice = study.choice()
        holdout = study.score(fit)
    with _timed(seconds, "optimize"):
        on_stage("4/6 optimize: the best mixture, with a certificate")
        best = study.optimize()
    with _timed(seconds, "verify"):
        on_stage(
            f"5/6 verify: the optimum and {len(best.gains)} baselines,"
            f" {study.config.verify.seeds} fresh seeds each"
        )
        verification = study.verify(slots=slots, retry=True, on_runs=on_runs)
    with _timed(seconds, "report"):
        on_stage("6/6 report")
        report = study.report()
    return DemoResult(
        study=study.path,
        trained=trained,
        fit=fit,
        choice=choice,
        holdout=holdout,
        optimum=best,
        verification=verification,
        report=report,
        seconds={**seconds, "total": sum(seconds.values())},
    )


def demo_config(*, seed: int = 0, corpus: str | Path | None = None) -> Config:
    """Returns the demo's configuration; with a corpus of one's own all domains weigh alike."""
    default = Config()
    own = corpus is not None
    return replace(
        default,
        study=StudySection(
            name=NAME, corpus=str(Path(corpus).resolve()) if corpus is not None else "corpus"
        ),
        objective=ObjectiveSection() if own else ObjectiveSection(weights=WEIGHTS),
        design=replace(default.design, method="sobol", seed=seed),
    )


def _open(folder: Path, *, corpus: str | Path | None, seed: int) -> Study:
    if corpus is not None:
        Corpus.open(Path(corpus))  # says what is wrong before anything is made
    config = demo_config(seed=seed, corpus=corpus)
    if not (folder / FILE_NAME).exists():
        return Study.create(folder, config)
    study = Study.open(folder)
    if study.config.study.name != NAME:
        raise StudyError(f"{folder} holds another study", do="name another folder with `--study`")
    if (study.config.design.seed, study.config.study.corpus) != (seed, config.study.corpus):
        raise StudyError(
            f"the demo in {folder} was made with seed {study.config.design.seed} and the corpus"
            f" {study.config.study.corpus}",
            do="name another folder with `--study`",
        )
    return study


def _forget(folder: Path) -> None:
    if not (folder / FILE_NAME).exists():
        return
    if Study.open(folder).config.study.name != NAME:
        raise StudyError(
            f"{folder} holds another study, which `--fresh` would empty",
            do="name another folder with `--study`",
        )
    for name in MADE_BY_RUNNING:
        made = folder / name
        if made.is_dir():
            shutil.rmtree(made)
        else:
            made.unlink(missing_ok=True)


def _refuse_failures(study: Study, trained: RunCounts) -> None:
    if trained.failed:
        failures = study.status().failures
        run_id, reason = next(iter(failures.items()))
        raise StudyError(
            f"{trained.failed} of {trained.total} runs failed; run {run_id}: {reason}",
            do=f"see {study.runs_folder / run_id / 'log.txt'}, then run the demo again",
        )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Generator[None]:
    start = time.monotonic()
    yield
    seconds[stage] = round(time.monotonic() - start, 2)
