"""Tiny proxies on the text of Python's own library: a corpus, specs, and runs in this process."""

import os
import signal
import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixlaw.corpora import Corpus, add_domain
from mixlaw.mixtures import Mixture
from mixlaw.proxy import ProxyTrainer, proxy_recipe
from mixlaw.proxy.data import TrainingBatches
from mixlaw.runs import Attempt, Interrupted, RunSpec, TrainingSummary
from mixlaw.runs.folder import MetricsRow

STDLIB = Path(sysconfig.get_path("stdlib"))
NAMES = ("net <script>", "../$(id)", "🍲'\"")
"""Training domains; the last one of the corpus, "unseen", is only a target."""


def build_corpus(path: Path, **options: Any) -> Corpus:
    """Builds a corpus with three training domains and a target that none trains on."""
    sources = ("email", "asyncio", "unittest")
    for name, source in zip(NAMES, sources, strict=True):
        files = sorted((STDLIB / source).glob("*.py"))
        add_domain(path, name, files, validation_share=0.2, **options)
    add_domain(path, "unseen", sorted((STDLIB / "json").glob("*.py")), target_only=True, **options)
    return Corpus.open(path)


def make_spec(corpus: Corpus, **changes: Any) -> RunSpec:
    """Returns a run of 24 steps; changes are of the recipe or of the spec."""
    recipe = proxy_recipe(
        corpus,
        precision=changes.pop("precision", "fp32"),
        device="cpu",
        sequence_length=changes.pop("sequence_length", 32),
        batch_size=8,
        validation_sequences=changes.pop("validation_sequences", 12),
        tasks=changes.pop("tasks", False),
    )
    spec = RunSpec(
        mixture=Mixture.of(dict(zip(NAMES, (0.5, 0.3, 0.2), strict=True))),
        params=12_288,
        steps=24,
        tokens_per_step=recipe.tokens_per_step,
        eval_steps=(0, 6, 12, 24),
        corpus=recipe.corpus,
        tokenizer=recipe.tokenizer,
        trainer=recipe.trainer,
        precision=recipe.precision,
    )
    return replace(spec, **changes)


class StoppedAttempt(Attempt):
    """Is asked to stop after so many steps, as by a signal."""

    def __init__(self, folder: Path, *, after: int, checkpoint_seconds: float = 1e9) -> None:
        super().__init__(folder=folder, checkpoint_seconds=checkpoint_seconds)
        self.left = after

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left < 0


def train(
    corpus: Corpus, spec: RunSpec, folder: Path, **options: Any
) -> tuple[list[MetricsRow], TrainingSummary]:
    """Trains a run to its end in this process."""
    folder.mkdir(exist_ok=True, parents=True)
    attempt = Attempt(folder=folder)
    summary = ProxyTrainer(corpus.path, **options).train(spec, attempt)
    return attempt.metrics(), summary


def train_until(corpus: Corpus, spec: RunSpec, folder: Path, steps: int) -> None:
    """Trains so many steps more, and leaves a checkpoint."""
    folder.mkdir(exist_ok=True, parents=True)
    with pytest.raises(Interrupted):
        ProxyTrainer(corpus.path).train(spec, StoppedAttempt(folder, after=steps))


@dataclass(frozen=True, kw_only=True)
class DyingTrainer:
    """A trainer of proxies whose process is killed once before each of some steps of every run."""

    trainer: ProxyTrainer
    marks: Path
    """A folder that says who has died where."""
    steps: tuple[int, ...]

    @property
    def preload(self) -> tuple[str, ...]:
        return self.trainer.preload

    def train(self, spec: RunSpec, attempt: Attempt) -> TrainingSummary:
        read_batch, marks, steps = TrainingBatches.batch, self.marks, self.steps

        def die_or_read(self: TrainingBatches, step: int) -> np.ndarray:
            mark = marks / f"{spec.run_id}-{step}"
            if step in steps and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return read_batch(self, step)

        TrainingBatches.batch = die_or_read  # of this attempt's own process
        return self.trainer.train(spec, attempt)
