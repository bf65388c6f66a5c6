# ruff: noqa: E402 - threads are pinned before PyTorch is imported
"""Tokens per CPU second of the proxy trainer, against a textbook decoder and plain fp32.

    python benchmarks/throughput.py [--json] [--steps N] [--repeats N]

At about 0.2 million parameters (embeddings aside), on one thread, in processor time: what else runs
on the machine costs cache and memory bandwidth, so variants take turns and medians are given. Each
variant is a process of its own, since our way of keeping freed memory is for a whole process.
Losses are those after the same tokens of the same real text: sources and documentation of the
Python packages that are installed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import torch

from mixlaw.corpora import Corpus, add_domain
from mixlaw.mixtures import Mixture
from mixlaw.proxy import ProxyTrainer, nearest_shape, proxy_recipe
from mixlaw.proxy.data import TrainingBatches, validation_sequences
from mixlaw.proxy.model import FlatTensors, ProxyModel, initial_weights
from mixlaw.proxy.optimizer import Optimizer, schedule_factor
from mixlaw.proxy.recipe import BF16_FEATURES, processor_features
from mixlaw.proxy.train import keep_freed_memory
from mixlaw.runs import Attempt, RunSpec
from throughput_models import Choices, PlainTrainer

PARAMS = 200_000
BATCH = 16
PRECISION = "bf16" if processor_features() & BF16_FEATURES else "fp32"
"""What the trainer takes on this machine."""
SHAPE = nearest_shape(PARAMS)  # width 128, one layer: 196,608 parameters
TEXTBOOK = Choices(width=SHAPE.width, depth=SHAPE.depth, heads=SHAPE.heads)
DEEP_TEXTBOOK = Choices(width=64, depth=4, heads=2)
"""Equally many parameters in a textbook's proportions, which are less wide and less shallow."""
TEXTBOOK_RATE, DEEP_TEXTBOOK_RATE = 8e-3, 1.6e-2
"""Each one's best of 1e-3, 2e-3, ..., 3.2e-2 on this text after 400 steps (docs/log.md)."""
TRAINING_SEED = 0

Step = Callable[[torch.Tensor], object]


# ---------------------------------------------------------------------- what is timed


def plain_step(choices: Choices, *, keeps_memory: bool = False) -> Step:
    """A step of a tutorial's training loop."""
    if keeps_memory:
        keep_freed_memory()
    return PlainTrainer(choices, learning_rate=1e-3).step


def our_step(precision: str, *, keeps_memory: bool) -> Step:
    """A step as `mixlaw.proxy.train` makes it, the average of weights included."""
    if keeps_memory:
        keep_freed_memory()
    torch.set_flush_denormal(True)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = ProxyModel(SHAPE, dtype=dtype, device=torch.device("cpu"))
    weights = FlatTensors(SHAPE, torch.from_numpy(initial_weights(SHAPE, 0)))
    gradients = FlatTensors(SHAPE, torch.zeros_like(weights.flat))
    optimizer = Optimizer(weights.flat, gradients.flat)

    @torch.inference_mode()
    def step(tokens: torch.Tensor) -> None:
        found = model.loss_and_gradients(weights, model.matrices_of(weights), tokens)[1]
        for name, gradient in found.items():
            gradients[name].copy_(gradient)
        optimizer.update(step=100, learning_rate=1e-3, tokens=BATCH * SHAPE.sequence_length)

    return step


NO_ROTATION = replace(TEXTBOOK, rotary=False)
LAYER_NORM = replace(NO_ROTATION, rms_norm=False)
RELU = replace(LAYER_NORM, gelu=False)
OURS_PLAIN = replace(RELU, input_tokens=3)

DEEP = "textbook, 4 layers of 64"
PLAIN = "+ trigram inputs = our architecture in plain fp32"
OURS = "+ kept memory = ours"
LADDER: dict[str, Callable[[], Step]] = {
    "textbook": lambda: plain_step(TEXTBOOK),
    "+ learned positions": lambda: plain_step(NO_ROTATION),
    "+ LayerNorm without weights": lambda: plain_step(LAYER_NORM),
    "+ ReLU": lambda: plain_step(RELU),
    PLAIN: lambda: plain_step(OURS_PLAIN),
    f"+ products in {PRECISION}": lambda: plain_step(replace(OURS_PLAIN, bf16=PRECISION == "bf16")),
    "+ written-out gradient, flat buffers": lambda: our_step(PRECISION, keeps_memory=False),
    OURS: lambda: our_step(PRECISION, keeps_memory=True),
}
"""Each changes one thing in the one before."""
VARIANTS: dict[str, Callable[[], Step]] = {
    DEEP: lambda: plain_step(DEEP_TEXTBOOK),
    **LADDER,
    "ours in fp32": lambda: our_step("fp32", keeps_memory=True),
    "plain fp32 with kept memory": lambda: plain_step(OURS_PLAIN, keeps_memory=True),
}


def serve_steps(name: str) -> None:
    """Makes as many steps as each line of standard input asks for, and answers with seconds."""
    torch.set_num_threads(1)
    step = VARIANTS[name]()
    generator = torch.Generator().manual_seed(0)
    size = (BATCH, SHAPE.sequence_length + 1)
    batches = [torch.randint(32, 127, size, generator=generator) for _ in range(4)]
    for line in sys.stdin:
        start = time.process_time()
        for index in range(int(line)):
            step(batches[index % len(batches)])
        print(time.process_time() - start, flush=True)


def measure_variants(repeats: int, steps: int = 10) -> dict[str, list[float]]:
    """Returns tokens per CPU second of every variant, several times, taking turns."""
    processes = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in VARIANTS
    }

    def ask(name: str, count: int) -> float:
        process = processes[name]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{count}\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    try:
        for name in VARIANTS:
            ask(name, 3)
        for _ in range(repeats):
            for name, values in found.items():
                ask(name, 1)  # its memory is out of the caches
                tokens = steps * BATCH * SHAPE.sequence_length
                values.append(tokens / ask(name, steps))
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return found


def measure_peak(dtype: torch.dtype) -> float:
    """Returns the best rate of matrix products in GF/s, over sizes from the cache's to large."""
    best = 0.0
    for size in (256, 512, 1024):
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        for _ in range(10):
            start = time.process_time()
            for _ in range(max(1, 2 * 10**8 // size**3)):
                a @ b
            products = max(1, 2 * 10**8 // size**3)
            best = max(best, 2e-9 * size**3 * products / (time.process_time() - start))
    return best


# ---------------------------------------------------------------------- losses


def build_corpus(path: Path) -> Corpus:
    """Returns a corpus of what is installed with Python anywhere: sources and documentation."""
    library, packages = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    sources = sorted(p for p in library.glob("*/*.py") if "site-packages" not in p.parts)
    documents = sorted(
        p
        for pattern in ("**/METADATA", "**/*.md", "**/*.rst", "**/LICENSE*")
        for p in packages.glob(pattern)
        if p.is_file()
    )
    headers = sorted(packages.glob("torch/include/ATen/**/*.h"))
    for name, files in (("python", sources), ("c++", headers), ("documents", documents)):
        texts = path.parent / f"{name}.jsonl"
        with texts.open("w") as lines:
            for file in _sample(files, 600):
                text = file.read_text(encoding="utf-8", errors="replace")[:40_000]
                lines.write(json.dumps({"text": text}) + "\n")
        add_domain(path, name, [texts], validation_share=0.1)
    return Corpus.open(path)


def _sample(files: Sequence[Path], count: int) -> list[Path]:
    return (
        [files[i * len(files) // count] for i in range(count)] if len(files) > count else [*files]
    )


def train_textbook(
    corpus: Corpus, choices: Choices, *, steps: int, learning_rate: float
) -> dict[str, float]:
    """Returns losses of a textbook decoder with a textbook's cosine schedule."""
    torch.set_num_threads(1)
    batches = TrainingBatches(
        corpus,
        Mixture.uniform(corpus.training_names),
        seed=TRAINING_SEED,
        batch_size=BATCH,
        sequence_length=SHAPE.sequence_length,
    )
    trainer = PlainTrainer(choices, learning_rate=learning_rate)
    for step in range(steps):
        factor = schedule_factor("cosine", step=step, steps=steps)
        trainer.step(torch.from_numpy(batches.batch(step)), learning_rate=factor * learning_rate)
    return {
        name: float(
            torch.cat([trainer.losses(part) for part in _validation(corpus, name).split(BATCH)])
            .double()
            .mean()
        )
        for name in corpus.target_names
    }


def _validation(corpus: Corpus, name: str) -> torch.Tensor:
    return torch.from_numpy(
        validation_sequences(
            corpus.tokens(name, "validation"),
            sequence_length=SHAPE.sequence_length,
            count=192,
            where=name,
        )
    )


def train_ours(corpus: Corpus, precision: str, *, steps: int) -> tuple[dict[str, float], float]:
    """Returns losses of our recipe, and tokens per CPU second of the whole run but evaluation."""
    recipe = proxy_recipe(corpus, precision=precision, device="cpu", batch_size=BATCH)
    spec = RunSpec(
        mixture=Mixture.uniform(corpus.training_names),
        params=PARAMS,
        steps=steps,
        tokens_per_step=recipe.tokens_per_step,
        eval_steps=(steps,),
        seed=TRAINING_SEED,
        corpus=recipe.corpus,
        tokenizer=recipe.tokenizer,
        trainer=recipe.trainer,
        precision=recipe.precision,
    )
    seconds: list[float] = []
    for each in (replace(spec, steps=1, eval_steps=(1,)), spec):
        with tempfile.TemporaryDirectory() as folder:
            attempt = Attempt(folder=Path(folder))
            seconds.append(ProxyTrainer(corpus.path).train(each, attempt).cpu_seconds)
            row = attempt.metrics()[-1]
    losses = {name: value for name, (value, _) in row.values.items()}
    return losses, (steps - 1) * recipe.tokens_per_step / (seconds[1] - seconds[0])


LOSSES: dict[str, Callable[[Corpus, int], dict[str, Any]]] = {
    "textbook": lambda corpus, steps: {
        "losses": train_textbook(corpus, TEXTBOOK, steps=steps, learning_rate=TEXTBOOK_RATE),
    },
    DEEP: lambda corpus, steps: {
        "losses": train_textbook(
            corpus, DEEP_TEXTBOOK, steps=steps, learning_rate=DEEP_TEXTBOOK_RATE
        ),
    },
    "ours": lambda corpus, steps: dict(
        zip(
            ("losses", "tokens_per_cpu_second"),
            train_ours(corpus, PRECISION, steps=steps),
            strict=True,
        )
    ),
}


def measure_losses(steps: int) -> dict[str, dict[str, Any]]:
    """Returns losses after the same tokens; each model trains in a process of its own."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        corpus = build_corpus(Path(folder) / "corpus")

        def train(name: str) -> dict[str, Any]:
            command = [sys.executable, __file__, "--train", name, str(corpus.path), str(steps)]
            return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

        return dict(zip(LOSSES, pool.map(train, LOSSES), strict=True))


# ---------------------------------------------------------------------- what is said


def summarise(
    speeds: Mapping[str, Sequence[float]], losses: dict[str, dict[str, Any]], *, steps: int
) -> dict[str, Any]:
    """Returns everything that was measured, with medians, ratios and whether targets are met."""
    median = {name: statistics.median(values) for name, values in speeds.items()}
    peaks = {"fp32": measure_peak(torch.float32), "bf16": measure_peak(torch.bfloat16)}
    useful = median[OURS] * SHAPE.flops_per_token / 1e9
    means = {name: statistics.mean(found["losses"].values()) for name, found in losses.items()}
    ratios = {
        "textbook": median[OURS] / median["textbook"],
        DEEP: median[OURS] / median[DEEP],
        "our architecture in plain fp32": median[OURS] / median[PLAIN],
    }
    return {
        "machine": _describe_machine(),
        "params_non_embedding": SHAPE.params_non_embedding,
        "tokens_per_cpu_second": {
            name: {"median": median[name], "all": list(values)} for name, values in speeds.items()
        },
        "what_each_change_brings": {
            name: median[name] / median[before] for before, name in pairwise(LADDER)
        },
        "times_as_fast_as": ratios,
        "losses": {
            "tokens": steps * BATCH * SHAPE.sequence_length,
            "nats_per_token": {name: found["losses"] for name, found in losses.items()},
            "mean": means,
        },
        "tokens_per_cpu_second_in_a_run": losses["ours"]["tokens_per_cpu_second"],
        "peak_gigaflops": peaks,
        "our_gigaflops": useful,
        "share_of_peak": {name: useful / peak for name, peak in peaks.items()},
        "targets": {
            "twice_as_fast_as_textbooks": min(ratios["textbook"], ratios[DEEP]) >= 2.0,
            "no_worse_loss": means["ours"] <= min(means["textbook"], means[DEEP]),
            "1.3_times_as_fast_as_plain_fp32": ratios["our architecture in plain fp32"] >= 1.3,
        },
    }


def _describe_machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
    return {
        "processor": model or platform.processor(),
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
    }


def show(result: dict[str, Any]) -> None:
    """Prints the summary as tables and sentences."""
    print(f"{result['params_non_embedding']:,} parameters without embeddings, one thread")
    print(f"{'tokens per CPU second':50} {'median':>9} {'x':>6}")
    changes = result["what_each_change_brings"]
    for name, found in result["tokens_per_cpu_second"].items():
        change = f"{changes[name]:6.2f}" if name in changes else ""
        print(f"{name:50} {found['median']:9,.0f} {change}")
    for name, ratio in result["times_as_fast_as"].items():
        print(f"ours is {ratio:.2f} times as fast as {name}")
    for name, mean in result["losses"]["mean"].items():
        print(f"loss after {result['losses']['tokens']:,} tokens: {mean:.3f} nats, {name}")
    for name, share in result["share_of_peak"].items():
        print(
            f"ours: {result['our_gigaflops']:.0f} GF/s, {share:.0%} of the {name} peak of"
            f" {result['peak_gigaflops'][name]:.0f}"
        )
    for name, met in result["targets"].items():
        print(f"target {name}: {'met' if met else 'MISSED'}")


def main() -> None:
    """Measures, or does what a measuring process asked of this one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--steps", type=int, default=400, help="steps of the runs for the loss")
    parser.add_argument("--repeats", type=int, default=5, help="how often speeds are measured")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--train", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve_steps(arguments.serve)
    elif arguments.train:
        name, path, steps = arguments.train
        print(json.dumps(LOSSES[name](Corpus.open(path), int(steps))))
    else:
        torch.set_num_threads(1)
        speeds = measure_variants(arguments.repeats)
        losses = measure_losses(arguments.steps)
        result = summarise(speeds, losses, steps=arguments.steps)
        print(json.dumps(result, indent=2)) if arguments.json else show(result)


if __name__ == "__main__":
    main()
