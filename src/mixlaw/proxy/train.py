"""The training loop of one proxy, which goes on after any stop to the same bits."""

import ctypes
import json
import logging
import math
import os
import platform
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from mixlaw.corpora import Corpus
from mixlaw.errors import RunError, TrainingError
from mixlaw.files import write_atomic
from mixlaw.proxy.checkpoint import Progress, load_checkpoint, save_checkpoint
from mixlaw.proxy.data import TrainingBatches, validation_sequences
from mixlaw.proxy.model import FlatTensors, ProxyModel, initial_weights
from mixlaw.proxy.optimizer import (
    SCHEDULES,
    Optimizer,
    averages_weights,
    schedule_factor,
)
from mixlaw.proxy.recipe import ProxyRecipe
from mixlaw.proxy.starts import METADATA_KEY, read_start
from mixlaw.proxy.tasks import SwapTask, make_swap_task, task_target
from mixlaw.runs.attempt import Attempt, Interrupted
from mixlaw.runs.folder import TrainingSummary
from mixlaw.runs.spec import RunSpec
from mixlaw.runs.starts import WEIGHTS_FILE

_log = logging.getLogger(__name__)

LOOK_STEPS = 10
"""Steps between looks at the loss: on a GPU each one waits for all that was started."""


class Training:
    """One run, being trained.

    Args:
        spec: The run.
        attempt: Where its checkpoints and losses go.
        corpus: Its text.
        recipe: What its spec says of the trainer.

    Raises:
        RunError: The run can't be trained here as it was planned.
        CorpusError: A domain's text is shorter than one sequence.
    """

    def __init__(
        self, spec: RunSpec, attempt: Attempt, *, corpus: Corpus, recipe: ProxyRecipe
    ) -> None:
        if spec.schedule not in SCHEDULES:
            raise RunError(
                f"a schedule must be one of {', '.join(SCHEDULES)}, found {spec.schedule!r}"
            )
        self._spec = spec
        self._attempt = attempt
        self._corpus = corpus
        self._recipe = recipe
        self._device = _open_device(recipe)
        self._shape = recipe.shape(spec.params)
        self._learning_rate = (
            self._shape.learning_rate if spec.learning_rate is None else spec.learning_rate
        )
        self._batches = TrainingBatches(
            corpus,
            spec.mixture,
            seed=spec.seed,
            batch_size=spec.tokens_per_step // recipe.sequence_length,
            sequence_length=recipe.sequence_length,
            later_stages=spec.later_stages,
            token_limits=spec.token_limits,
        )
        self._targets = {name: self._validation(name) for name in corpus.target_names}
        self._tasks = self._make_tasks()
        dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
        self._model = ProxyModel(self._shape, dtype=dtype, device=self._device)
        self._loss_and_gradients = self._model.loss_and_gradients
        if self._device.type == "cuda":  # on a CPU it takes half a minute and makes steps slower
            self._loss_and_gradients = torch.compile(self._loss_and_gradients, dynamic=False)
        self._start_afresh()

    def run(self, *, keep_weights: bool = False) -> TrainingSummary:
        """Trains to the end, from the checkpoint where there is one.

        Raises:
            Interrupted: The attempt was asked to stop, and has saved a checkpoint.
            TrainingError: The loss diverged.
        """
        with _quiet_process(), torch.inference_mode():
            self._restore()
            self._train()
            if keep_weights:
                self._write_weights()
        return TrainingSummary(
            params_non_embedding=self._shape.params_non_embedding,
            params_total=self._shape.params_total,
            learning_rate=self._learning_rate,
            wall_seconds=self._clock.wall_seconds,
            cpu_seconds=self._clock.cpu_seconds,
            tokens=self._spec.tokens,
        )

    def _train(self) -> None:
        spec, attempt = self._spec, self._attempt
        measured = {row.step for row in attempt.metrics()}
        saved = time.monotonic()
        while True:
            if self._step in spec.eval_steps and self._step not in measured:
                self._measure()
            if self._step == spec.steps:
                return
            if attempt.should_stop():
                self._save()
                raise Interrupted
            if time.monotonic() - saved >= attempt.checkpoint_seconds:
                self._save()
                saved = time.monotonic()
            loss = self._make_step()
            if self._step % LOOK_STEPS == 0 or self._step == spec.steps:
                self._look_at(float(loss))

    def _make_step(self) -> Tensor:
        """Makes one optimizer step and returns the loss before it."""
        spec = self._spec
        tokens = self._to_device(self._batches.batch(self._step))
        matrices = self._model.matrices_of(self._weights)
        loss, gradients = self._loss_and_gradients(self._weights, matrices, tokens)
        for name, gradient in gradients.items():
            self._gradients[name].copy_(gradient)
        factor = schedule_factor(spec.schedule, step=self._step, steps=spec.steps)
        self._optimizer.update(
            step=self._step,
            learning_rate=self._learning_rate * factor,
            tokens=spec.tokens_per_step,
        )
        self._step += 1
        return loss

    def _look_at(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss must stay finite, but at step {self._step} of {self._spec.steps} it is"
                f" {loss}",
                where=f"run {self._spec.run_id}",
                do=f"train with a learning rate below {self._learning_rate:.3g}",
            )
        tokens = self._step * self._spec.tokens_per_step
        self._attempt.report_progress(self._step, self._spec.steps, tokens, loss)

    # ------------------------------------------------------------------ losses

    def _measure(self) -> None:
        """Appends every target's loss, with its standard error over sequences, and task errors."""
        weights = FlatTensors(self._shape, self._measured_weights())
        matrices = self._model.matrices_of(weights)
        size = self._spec.tokens_per_step // self._recipe.sequence_length

        def losses_of(sequences: Tensor) -> Iterator[Tensor]:
            for part in sequences.split(size):
                yield self._model.token_losses(weights, matrices, part.to(self._device))

        values: dict[str, tuple[float, float | None]] = {}
        for name, sequences in self._targets.items():
            losses = torch.cat([part.mean(1) for part in losses_of(sequences)])
            values[name] = _mean_and_error(losses.double().cpu().numpy())
        for name, task in self._tasks.items():
            losses = torch.cat([part.cpu() for part in losses_of(torch.from_numpy(task.tokens))])
            values[task_target(name)] = task.error(losses.numpy())
        self._attempt.append_metrics(
            self._step,
            self._step * self._spec.tokens_per_step,
            values,
            units=dict.fromkeys(map(task_target, self._tasks), "error"),
        )

    def _measured_weights(self) -> Tensor:
        averaged = averages_weights(self._spec.schedule)
        return self._optimizer.average if averaged else self._weights.flat

    def _validation(self, name: str) -> Tensor:
        return torch.from_numpy(
            validation_sequences(
                self._corpus.tokens(name, "validation"),
                sequence_length=self._recipe.sequence_length,
                count=self._recipe.validation_sequences,
                where=repr(name),
            )
        )

    def _make_tasks(self) -> dict[str, SwapTask]:
        recipe = self._recipe
        if not recipe.task_items:
            return {}
        return {
            name: make_swap_task(
                self._corpus, name, sequence_length=recipe.sequence_length, items=recipe.task_items
            )
            for name in self._corpus.target_names
        }

    # ------------------------------------------------------------------ state

    def _start_afresh(self) -> None:
        """Goes to step 0: drawn or given weights, fresh moments, an average that begins there."""
        start = read_start(self._spec, self._shape, self._attempt.folder.parent)
        self._averaged_steps = 0 if start is None else start.averaged_steps
        first = (
            torch.from_numpy(initial_weights(self._shape, self._spec.seed))
            if start is None
            else start.weights
        )
        flat = first.to(self._device)
        self._weights = FlatTensors(self._shape, flat)
        self._gradients = FlatTensors(self._shape, torch.zeros_like(flat))
        self._optimizer = Optimizer(flat, self._gradients.flat, averaged_steps=self._averaged_steps)
        self._step = 0
        self._clock = _Clock.start(0.0, 0.0)

    def _tensors(self) -> dict[str, Tensor]:
        return {
            "weights": self._weights.flat,
            "average": self._optimizer.average,
            "first_moment": self._optimizer.first_moment,
            "second_moment": self._optimizer.second_moment,
        }

    def _save(self) -> None:
        progress = Progress(
            run_id=self._spec.run_id,
            step=self._step,
            wall_seconds=self._clock.wall_seconds,
            cpu_seconds=self._clock.cpu_seconds,
        )
        tensors = {name: tensor.cpu() for name, tensor in self._tensors().items()}
        save_checkpoint(self._attempt.checkpoint_path, progress, tensors)

    def _restore(self) -> None:
        """Goes to where the checkpoint was saved; to the start where there is none of use."""
        found = load_checkpoint(self._attempt.checkpoint_path, self._spec.run_id)
        if found is None or not self._fits(*found):
            self._attempt.resume_from(-1)
            return
        progress, tensors = found
        for name, tensor in self._tensors().items():
            tensor.copy_(tensors[name])
        self._step = progress.step
        self._optimizer.go_on_after(progress.step)
        self._clock = _Clock.start(progress.wall_seconds, progress.cpu_seconds)
        self._attempt.resume_from(progress.step)

    def _fits(self, progress: Progress, tensors: dict[str, Tensor]) -> bool:
        own = {name: (tensor.shape, tensor.dtype) for name, tensor in self._tensors().items()}
        if {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} != own:
            _log.warning("the checkpoint has other tensors: the run starts again")
            return False
        measured = {row.step for row in self._attempt.metrics()}
        if not {step for step in self._spec.eval_steps if step < progress.step} <= measured:
            _log.warning("losses before the checkpoint are missing: the run starts again")
            return False
        return 0 <= progress.step <= self._spec.steps

    def _write_weights(self) -> None:
        """Writes the weights whose losses were measured, by name."""
        named = FlatTensors(self._shape, self._measured_weights().cpu()).views
        about = {
            "averaged_steps": self._averaged_steps + self._spec.steps,
            "heads": self._shape.heads,
            "run_id": self._spec.run_id,
        }
        content = save_tensors(
            {name: tensor.clone() for name, tensor in named.items()},
            metadata={METADATA_KEY: json.dumps(about)},
        )
        write_atomic(self._attempt.folder / WEIGHTS_FILE, content)

    def _to_device(self, batch: np.ndarray) -> Tensor:
        tokens = torch.from_numpy(batch)
        if self._device.type == "cpu":
            return tokens
        return tokens.pin_memory().to(self._device, non_blocking=True)


def _mean_and_error(losses: np.ndarray) -> tuple[float, float | None]:
    """Returns mean and standard error; that of a single sequence is not known."""
    if len(losses) < 2:
        return float(losses.mean()), None
    return float(losses.mean()), float(losses.std(ddof=1) / math.sqrt(len(losses)))


@dataclass(frozen=True, slots=True)
class _Clock:
    """Time of this attempt on top of that of earlier ones."""

    wall_zero: float
    cpu_zero: float

    @classmethod
    def start(cls, wall_seconds: float, cpu_seconds: float) -> "_Clock":
        return cls(time.monotonic() - wall_seconds, time.process_time() - cpu_seconds)

    @property
    def wall_seconds(self) -> float:
        return time.monotonic() - self.wall_zero

    @property
    def cpu_seconds(self) -> float:
        return time.process_time() - self.cpu_zero


# ---------------------------------------------------------------------- the process


def _open_device(recipe: ProxyRecipe) -> torch.device:
    if recipe.device == "cuda":
        if not torch.cuda.is_available():
            raise RunError(
                "the run was planned for a GPU, but PyTorch finds none here",
                do='plan again with `device = "cpu"`, or run it where the GPU is',
            )
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or its sums may differ
        torch.use_deterministic_algorithms(True)
        # This switch, which is missing in the stubs, saves a pass over every new tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore
    return torch.device(recipe.device)


@contextmanager
def _quiet_process() -> Generator[None]:
    """Trains on one thread, without denormals, with memory that stays with the process.

    Two threads that share a core with other work spin in OpenMP's barriers: 99% slower, measured.
    Moments of rare tokens decay into denormals, which processors are slow with.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Has glibc keep what is freed, for the rest of the process: 8 to 14% faster steps.

    By default every large tensor is mapped anew, and its pages are cleared one by one.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # of malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)
    mallopt(top_pad, 64 << 20)
