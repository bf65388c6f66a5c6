"""Checkpoints: everything that a run needs to go on to the same bits, in one safetensors file."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from mixlaw.files import write_atomic

_log = logging.getLogger(__name__)

HEADER_LENGTH_BYTES = 8
"""A safetensors file starts with the length of its JSON header, a 64-bit number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a run is, beside its tensors."""

    run_id: str
    step: int
    """Optimizer steps so far."""
    wall_seconds: float
    """Time that all attempts so far took."""
    cpu_seconds: float
    """Processor time of the same."""


def save_checkpoint(path: Path, progress: Progress, tensors: Mapping[str, Tensor]) -> Path:
    """Writes a checkpoint atomically and returns its path."""
    metadata = {
        "run_id": progress.run_id,
        "step": str(progress.step),
        "wall_seconds": repr(progress.wall_seconds),
        "cpu_seconds": repr(progress.cpu_seconds),
    }
    return write_atomic(path, save_tensors(dict(tensors), metadata=metadata))


def load_checkpoint(path: Path, run_id: str) -> tuple[Progress, dict[str, Tensor]] | None:
    """Returns a run's checkpoint; None, with a line in the log, where there is none to go on from.

    A torn file, another run's or one with NaN in its header costs the time since the start of the
    run, never the run.
    """
    try:
        content = path.read_bytes()
        length = int.from_bytes(content[:HEADER_LENGTH_BYTES], "little")
        header = json.loads(content[HEADER_LENGTH_BYTES : HEADER_LENGTH_BYTES + length])
        metadata = header["__metadata__"]
        progress = Progress(
            run_id=metadata["run_id"],
            step=int(metadata["step"]),
            wall_seconds=float(metadata["wall_seconds"]),
            cpu_seconds=float(metadata["cpu_seconds"]),
        )
        tensors = load_tensors(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        _log.warning("%s is no checkpoint (%s): the run starts again", path, error)
        return None
    if progress.run_id != run_id:
        _log.warning("%s is one of run %s: this run starts again", path, progress.run_id)
        return None
    return progress, tensors
