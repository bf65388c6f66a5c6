"""What a run's spec has to know of the trainer, and how long a run takes; without PyTorch.

Everything that decides a proxy's losses and is no field of `RunSpec` is in the trainer's name, such
as `proxy/1-T128-V192-cpu`: version 1 of this package's recipe, sequences of 128 tokens, losses over
192 sequences per target, trained on a CPU. With `-W400` at its end 400 items of the task of swapped
words are measured per target too (`proxy/tasks.py`), which changes no loss.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mixlaw.corpora import Corpus
from mixlaw.errors import RunError
from mixlaw.proxy.shape import ModelShape, nearest_shape
from mixlaw.runs.spec import RunSpec

VERSION = 1
"""Raised by every change to model, optimizer or data order that changes losses."""

Precision = Literal["fp32", "bf16"]
Device = Literal["cpu", "cuda"]

BF16_FEATURES = {"avx512_bf16", "amx_bf16"}
"""Processor features with which bf16 products are faster: 2.1 to 2.3 times at these shapes with
AVX512-BF16 on Zen 4 (docs/log.md), 4 to 8 times with AMX."""

TASK_ITEMS = 400
"""Items per target of the task of swapped words: a standard error of 0.025 at most."""

_PATTERN = re.compile(r"proxy/(\d+)-T([1-9]\d*)-V([1-9]\d*)-(cpu|cuda)(?:-W([1-9]\d*))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProxyRecipe:
    """How proxies on one corpus are trained, their size, length and mixture aside."""

    corpus: str
    """Hash of the corpus."""
    tokenizer: str
    vocab_size: int
    targets: int
    """Targets whose loss is measured at every evaluation."""
    precision: Precision
    """Of matrix products."""
    device: Device
    sequence_length: int
    tokens_per_step: int
    validation_sequences: int
    """Sequences per target over which a loss is measured, where its text is long enough."""
    task_items: int = 0
    """Items per target of the task of swapped words; 0: it is not measured."""

    @property
    def trainer(self) -> str:
        """The recipe's name in a `RunSpec`."""
        lengths = f"T{self.sequence_length}-V{self.validation_sequences}"
        tasks = f"-W{self.task_items}" if self.task_items else ""
        return f"proxy/{VERSION}-{lengths}-{self.device}{tasks}"

    def shape(self, params: float) -> ModelShape:
        """Returns the model that is trained when `params` are asked for."""
        return nearest_shape(
            params, vocab_size=self.vocab_size, sequence_length=self.sequence_length
        )

    def tokens_per_second(self, params: float) -> float:
        """Returns about how many tokens one processor trains on in a second, evaluations aside.

        On a GPU the answer is that of a processor, far too low.
        """
        return 1 / (_seconds_per_token(self.shape(params), self.precision) * _machine_factor())

    def estimate_seconds(self, spec: RunSpec) -> float:
        """Returns about how long a run takes on one processor, evaluations included."""
        sequences = self.validation_sequences + 4 * self.task_items
        tokens = self.targets * sequences * self.sequence_length
        evaluation = FORWARD_SHARE * tokens * len(spec.eval_steps)
        return (spec.tokens + evaluation) / self.tokens_per_second(spec.params)


def proxy_recipe(
    corpus: Corpus,
    *,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    sequence_length: int = 128,
    batch_size: int = 16,
    validation_sequences: int = 192,
    tasks: bool | int = False,
) -> ProxyRecipe:
    """Returns how proxies on a corpus are trained on this machine.

    Args:
        corpus: What they are trained on.
        precision: Of matrix products; auto takes bf16 where this machine is faster with it.
        device: Where to train; auto takes a GPU where there is one.
        sequence_length: Tokens per sequence.
        batch_size: Sequences per optimizer step.
        validation_sequences: Sequences per target over which a loss is measured.
        tasks: Measure the error of choosing true text among versions with two words swapped: on
            `TASK_ITEMS` items per target, or on as many as are given.

    Raises:
        RunError: A number is too small.
    """
    numbers = {
        "sequence_length": sequence_length,
        "batch_size": batch_size,
        "validation_sequences": validation_sequences,
    }
    for name, number in numbers.items():
        least = 4 if name == "sequence_length" else 1
        if number < least:
            raise RunError(f"{name} must be at least {least}, found {number}")
    chosen_device = _find_device() if device == "auto" else device
    return ProxyRecipe(
        corpus=corpus.hash,
        tokenizer=corpus.tokenizer,
        vocab_size=corpus.vocab_size,
        targets=len(corpus.target_names),
        precision=_find_precision(chosen_device) if precision == "auto" else precision,
        device=chosen_device,
        sequence_length=sequence_length,
        tokens_per_step=sequence_length * batch_size,
        validation_sequences=validation_sequences,
        task_items=_task_items(tasks),
    )


def _task_items(tasks: bool | int) -> int:
    items = TASK_ITEMS if tasks is True else int(tasks)
    if items < 0:
        raise RunError(f"items of a task must be at least 1, found {items}")
    return items


def recipe_of(spec: RunSpec, corpus: Corpus) -> ProxyRecipe:
    """Returns the recipe that a run's spec asks for.

    Raises:
        RunError: The spec is for another corpus, trainer or version, or can't be met.
    """
    if spec.corpus != corpus.hash or spec.tokenizer != corpus.tokenizer:
        raise RunError(
            f"the run was planned for corpus {spec.corpus} ({spec.tokenizer}), but the corpus in"
            f" {corpus.path} is {corpus.hash} ({corpus.tokenizer})",
            do="plan again, or put the corpus back as it was",
        )
    match = _PATTERN.fullmatch(spec.trainer)
    if match is None or int(match[1]) != VERSION:
        raise RunError(
            f"the run's trainer must be `proxy/{VERSION}-T<tokens>-V<sequences>-<cpu or cuda>`,"
            f" with `-W<items>` where tasks are measured, found {spec.trainer!r}",
            do="plan again, or run it with the version of mixlaw that planned it",
        )
    sequence_length = int(match[2])
    if spec.tokens_per_step % sequence_length:
        raise RunError(
            f"tokens_per_step must be a multiple of the sequence length {sequence_length}, found"
            f" {spec.tokens_per_step}"
        )
    if spec.precision not in ("fp32", "bf16"):
        raise RunError(f"the run's precision must be fp32 or bf16, found {spec.precision!r}")
    return ProxyRecipe(
        corpus=spec.corpus,
        tokenizer=spec.tokenizer,
        vocab_size=corpus.vocab_size,
        targets=len(corpus.target_names),
        precision=spec.precision,
        device="cuda" if match[4] == "cuda" else "cpu",
        sequence_length=sequence_length,
        tokens_per_step=spec.tokens_per_step,
        validation_sequences=int(match[3]),
        task_items=int(match[5] or 0),
    )


# ---------------------------------------------------------------------- the machine


def _find_device() -> Device:
    if not any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg")):
        return "cpu"  # and PyTorch need not be imported to know it
    try:
        import torch
    except ModuleNotFoundError:
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def _find_precision(device: Device) -> Precision:
    if device == "cuda":
        return "bf16"
    return "bf16" if processor_features() & BF16_FEATURES else "fp32"


def processor_features() -> set[str]:
    """Returns what Linux says the processor can do; nothing where it can't be read."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return set(line.partition(":")[2].split())


# ---------------------------------------------------------------------- how long it takes

REFERENCE_GIGAFLOPS = 100.0
"""What `_measure_gigaflops` gave on one core of the machine of the constants below (Zen 4)."""
GIGAFLOPS: dict[Precision, float] = {"fp32": 75.0, "bf16": 170.0}
"""Rate of a training step's matrix products there."""
SECONDS_PER_TOKEN = 1.6e-6
"""Embeddings, softmax over bytes, loading and updating there."""
SECONDS_PER_FEATURE = 1.3e-8
"""Norms, attention's softmax and casts there, per token, layer and unit of width."""
FORWARD_SHARE = 0.4
"""Time of a token in an evaluation, as a share of that in training."""


def _seconds_per_token(shape: ModelShape, precision: Precision) -> float:
    products = shape.flops_per_token / (1e9 * GIGAFLOPS[precision])
    return products + SECONDS_PER_TOKEN + SECONDS_PER_FEATURE * shape.width * shape.depth


_measured: list[float] = []


def _machine_factor() -> float:
    """Returns how much slower this machine is than the reference, from a product of 50 ms."""
    if not _measured:
        _measured.append(REFERENCE_GIGAFLOPS / _measure_gigaflops())
    return _measured[0]


def _measure_gigaflops() -> float:
    import numpy as np

    a = np.ones((512, 512), dtype=np.float32)
    best = 0.0
    for _ in range(8):
        start = time.process_time()
        np.dot(a, a)
        best = max(best, 2 * 512**3 / max(1e-9, time.process_time() - start))
    return best / 1e9
