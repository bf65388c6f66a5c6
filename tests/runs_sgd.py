"""A small real trainer for the tests of the runs stage, and a program that runs a sweep with it.

Noisy gradient descent of a linear model on a mixture of seeded regression problems, one per domain:
the batch is a function of (seed, step), checkpoints go through NumPy, so that resumed runs repeat
bit for bit. `python runs_sgd.py STUDY_FOLDER SLOTS` is a coordinator.
"""

import io
import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixlaw.files import write_atomic
from mixlaw.mixtures import Mixture
from mixlaw.runs.attempt import Attempt, Interrupted
from mixlaw.runs.folder import TrainingSummary
from mixlaw.runs.spec import RunSpec

WIDTH = 24


@dataclass(frozen=True, kw_only=True)
class SgdTrainer:
    """Trains in about `steps * step_seconds`."""

    step_seconds: float = 0.0
    preload: tuple[str, ...] = ("numpy", "mixlaw.runs.attempt")

    def train(self, spec: RunSpec, attempt: Attempt) -> TrainingSummary:
        started = time.monotonic()
        weights, step = self.start(spec), 0
        if attempt.checkpoint_path.exists():
            with np.load(attempt.checkpoint_path, allow_pickle=False) as kept:
                weights, step = kept["weights"], int(kept["step"])
        attempt.resume_from(step)
        saved = time.monotonic()
        while True:
            if step in spec.eval_steps:
                attempt.append_metrics(
                    step, step * spec.tokens_per_step, self.losses(spec, weights)
                )
            if step == spec.steps:
                break
            if attempt.should_stop():
                self.save(attempt, weights, step)
                raise Interrupted
            if time.monotonic() - saved >= attempt.checkpoint_seconds:
                self.save(attempt, weights, step)
                saved = time.monotonic()
            weights = weights - 0.02 * self.gradient(spec, weights, step)
            step += 1
            time.sleep(self.step_seconds)
            attempt.report_progress(step, spec.steps, step * spec.tokens_per_step, 1.0)
        return TrainingSummary(
            params_non_embedding=WIDTH,
            params_total=WIDTH,
            learning_rate=0.02,
            wall_seconds=time.monotonic() - started,
            cpu_seconds=0.0,
            tokens=spec.tokens,
        )

    def start(self, spec: RunSpec) -> np.ndarray:
        return np.random.default_rng(spec.seed).standard_normal(WIDTH)

    def gradient(self, spec: RunSpec, weights: np.ndarray, step: int) -> np.ndarray:
        rng = np.random.default_rng((spec.seed, step))
        names = sorted(spec.mixture)
        shares = np.array([spec.mixture[name] for name in names])
        domain = names[int(rng.choice(len(names), p=shares / shares.sum()))]
        inputs = rng.standard_normal((8, WIDTH))
        residual = inputs @ (weights - optimum(domain)) + 0.1 * rng.standard_normal(8)
        return inputs.T @ residual / 8

    def losses(self, spec: RunSpec, weights: np.ndarray) -> dict[str, tuple[float, float | None]]:
        return {
            name: (float(np.mean((weights - optimum(name)) ** 2)), 0.01)
            for name in sorted(spec.mixture)
        }

    def save(self, attempt: Attempt, weights: np.ndarray, step: int) -> None:
        content = io.BytesIO()
        np.savez(content, weights=weights, step=step)
        write_atomic(attempt.checkpoint_path, content.getvalue())


@dataclass(frozen=True, kw_only=True)
class CrashingTrainer(SgdTrainer):
    """Is killed in the middle of a run, as often as it should be; saves before."""

    marks: Path
    times: int

    def gradient(self, spec: RunSpec, weights: np.ndarray, step: int) -> np.ndarray:
        if step == 15:
            seen = len(list(self.marks.glob(f"{spec.run_id}-*")))
            if seen < self.times:
                (self.marks / f"{spec.run_id}-{seen}").touch()
                sys.stdout.write("reading the last batch\n")
                os.kill(os.getpid(), signal.SIGKILL)
        return super().gradient(spec, weights, step)


@dataclass(frozen=True, kw_only=True)
class DivergingTrainer(SgdTrainer):
    """The loss of runs with an even seed is not a number after some steps."""

    def losses(self, spec: RunSpec, weights: np.ndarray) -> dict[str, tuple[float, float | None]]:
        losses = super().losses(spec, weights)
        if spec.seed % 2 == 0 and not np.array_equal(weights, self.start(spec)):
            losses["code"] = (math.nan, None)
        return losses


@dataclass(frozen=True, kw_only=True)
class BrokenTrainer(SgdTrainer):
    """Has a bug."""

    def start(self, spec: RunSpec) -> np.ndarray:
        return np.zeros(WIDTH) + np.zeros(WIDTH + 1)


@dataclass(frozen=True, kw_only=True)
class FullDiskTrainer(SgdTrainer):
    """Its disk is full, as Linux's /dev/full is, when it saves the run with seed 1."""

    def save(self, attempt: Attempt, weights: np.ndarray, step: int) -> None:
        if '"seed": 1,' in (attempt.folder / "spec.json").read_text():
            Path("/dev/full").write_bytes(weights.tobytes())
        super().save(attempt, weights, step)


@dataclass(frozen=True, kw_only=True)
class DeafTrainer(SgdTrainer):
    """Never looks whether it shall stop."""

    def gradient(self, spec: RunSpec, weights: np.ndarray, step: int) -> np.ndarray:
        while step >= 1:
            time.sleep(1)
        return super().gradient(spec, weights, step)


def optimum(domain: str) -> np.ndarray:
    """Where the loss of a domain is least."""
    return np.random.default_rng(list(domain.encode())).standard_normal(WIDTH)


def make_specs(
    count: int, *, steps: int = 40, names: tuple[str, ...] = ("web", "code"), params: int = 1000
) -> list[RunSpec]:
    """Runs of different mixtures and lengths."""
    specs: list[RunSpec] = []
    for index in range(count):
        shares = np.random.default_rng(index).dirichlet(np.ones(len(names)))
        length = steps + index % 3
        specs.append(
            RunSpec(
                mixture=Mixture.normalized(dict(zip(names, shares.tolist(), strict=True))),
                params=params,
                steps=length,
                tokens_per_step=64,
                eval_steps=(0, length // 3, 2 * length // 3, length),
                seed=index,
                corpus="0123456789abcdef",
                tokenizer="bytes",
                trainer="sgd/1",
            )
        )
    return specs


def main() -> None:
    from mixlaw.runs.local import LocalExecutor
    from mixlaw.runs.store import RunStore

    study, slots, step_seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    executor = LocalExecutor(
        store=RunStore.at(study / "study.db"),
        runs_folder=study / "runs",
        slots=slots,
        checkpoint_seconds=4 * step_seconds,
        retries=1000,
    )
    executor.run(SgdTrainer(step_seconds=step_seconds))


if __name__ == "__main__":
    main()
