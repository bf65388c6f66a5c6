"""The weights that a run starts from: read, and checked to be those of its model."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from mixlaw.errors import RunError
from mixlaw.proxy.checkpoint import HEADER_LENGTH_BYTES
from mixlaw.proxy.model import FlatTensors, tensor_sizes
from mixlaw.proxy.optimizer import GIVEN_AVERAGE_STEPS
from mixlaw.proxy.shape import ModelShape
from mixlaw.runs.spec import RunSpec
from mixlaw.runs.starts import content_hash, start_path

METADATA_KEY = "mixlaw"
"""What a file says of its weights is JSON under one key: safetensors writes several in an order
that changes from process to process, and the same weights shall be the same file."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Start:
    """Weights to start from, and what their file says of them."""

    weights: Tensor
    """All of them as one flat tensor."""
    run_id: str | None
    """The run that they are of; None: not known."""
    averaged_steps: int
    """Steps that they were trained for, which they count for in the average that goes on."""


def read_start(spec: RunSpec, shape: ModelShape, runs_folder: Path) -> Start | None:
    """Returns the weights that a run starts from; None: it draws its own.

    Raises:
        RunError: They are missing, damaged, not those that the spec names, or of another model.
    """
    path, parent = start_path(spec, runs_folder), spec.parent
    if path is None or parent is None:
        return None
    kind, name = parent
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise _missing(path, kind, name) from None
    except OSError as error:
        raise RunError(
            f"the weights to start from can't be read: {error.strerror}", where=str(path)
        ) from error
    if kind == "file" and content_hash(content) != name:
        raise RunError(
            f"the weights to start from must have the hash {name}, but those in the file have"
            f" {content_hash(content)}: it is torn or was changed",
            where=str(path),
            do="keep the file once more with `keep_checkpoint`",
        )
    start = parse_weights(content, shape, where=str(path))
    if kind == "run" and start.run_id != name:
        raise RunError(
            f"the weights to start from must be those of run {name}, but the file says"
            f" {start.run_id or 'nothing'}",
            where=str(path),
            do=f"delete the folder {path.parent} and train that run again",
        )
    return start


def read_weights(path: Path, shape: ModelShape) -> Tensor:
    """Returns the weights in a file as one flat tensor.

    Raises:
        RunError: The file is no safetensors file, or has other tensors than the model.
    """
    return parse_weights(path.read_bytes(), shape, where=str(path)).weights


def parse_weights(content: bytes, shape: ModelShape, *, where: str) -> Start:
    """Returns a file's weights and what it says of them.

    Args:
        content: Of a safetensors file.
        shape: The model that they must be of.
        where: Its name for messages.

    Raises:
        RunError: The file is torn, or has other tensors than the model, or NaN.
    """
    try:
        length = int.from_bytes(content[:HEADER_LENGTH_BYTES], "little")
        header = json.loads(content[HEADER_LENGTH_BYTES : HEADER_LENGTH_BYTES + length])
        tensors = load_tensors(content)
        about = dict(json.loads(header.get("__metadata__", {}).get(METADATA_KEY, "{}")))
        averaged_steps = max(0, int(about.get("averaged_steps", GIVEN_AVERAGE_STEPS)))
    except (ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise RunError(
            f"the weights to start from must be a whole safetensors file, but it is none ({error})",
            where=where,
            do="give the file once more: it may be torn, or of another format",
        ) from error
    if wrong := next(_differences(tensors, shape), None):
        raise RunError(
            f"the weights to start from must be those of the run's model (width {shape.width},"
            f" depth {shape.depth}, {shape.vocab_size} tokens, sequences of"
            f" {shape.sequence_length}), but {wrong}",
            where=where,
            do="plan the run with the size and the tokenizer of these weights, or give others",
        )
    weights = FlatTensors(shape, torch.empty(shape.params_total))
    for name, view in weights.views.items():
        view.copy_(tensors[name])
    return Start(weights=weights.flat, run_id=about.get("run_id"), averaged_steps=averaged_steps)


def _differences(tensors: dict[str, Tensor], shape: ModelShape) -> Iterator[str]:
    sizes = dict(tensor_sizes(shape))
    for name in sizes.keys() - tensors.keys():
        yield f"{name!r} is missing"
    for name in sorted(tensors.keys() - sizes.keys()):
        yield f"it has no {name!r}"
    for name, size in sizes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != size:
            yield f"{name!r} is {_times(tensor.shape)} instead of {_times(size)}"
        elif tensor.dtype != torch.float32:
            yield f"{name!r} is {str(tensor.dtype).removeprefix('torch.')} instead of float32"
        elif not bool(torch.isfinite(tensor).all()):
            yield f"{name!r} has numbers that are not finite"


def _times(size: tuple[int, ...] | torch.Size) -> str:
    return " x ".join(map(str, size))


def _missing(path: Path, kind: str, name: str) -> RunError:
    if kind == "file":
        return RunError(
            f"the weights {name} to start from must be in the study, but they are not",
            where=str(path),
            do="keep their file with `keep_checkpoint`",
        )
    return RunError(
        f"run {name}, whose weights this one starts from, must have kept them, but it has not",
        where=str(path),
        do=f"delete the folder {path.parent}, if it is there, and train that run again with a"
        " trainer that keeps weights: ProxyTrainer(..., keep_weights=True)",
    )
