"""What runs start from: another run's weights, or a file of weights that the study keeps.

A run that is trained here keeps the weights whose losses were measured in its own folder,
`runs/<run_id>/weights.safetensors`, when its trainer is told so. Weights from elsewhere are kept
beside that folder, `checkpoints/<hash>.safetensors`, named by the hash of their content, so that a
spec says exactly what its run starts from, wherever the file came from.
"""

import hashlib
from pathlib import Path

from mixlaw.errors import RunError
from mixlaw.files import write_atomic
from mixlaw.runs.folder import full_disk_named
from mixlaw.runs.spec import RunSpec

WEIGHTS_FILE = "weights.safetensors"
"""In a run's folder: the weights whose losses were measured last."""
CHECKPOINTS_FOLDER = "checkpoints"
"""Beside the folder of all runs: weights that were given."""


def start_of_run(parent: RunSpec) -> str:
    """Returns what `RunSpec.start` is for runs that go on from another one's weights.

    A run_id decides the weights as it decides the losses, so the parent may not be trained yet.
    """
    return f"run:{parent.run_id}"


def keep_checkpoint(path: str | Path, study_folder: str | Path) -> str:
    """Keeps a file of weights in a study and returns what `RunSpec.start` is for its runs.

    Twice is once. The file's tensors are checked when a run starts from it, whose shape is known
    then; `mixlaw.proxy.starts.read_weights` does the same at once.

    Args:
        path: A safetensors file with the tensors of `weights.safetensors`.
        study_folder: Where the study's `runs` folder is.

    Raises:
        RunError: It can't be read, or the disk is full.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise RunError(
            f"a file of weights must be there to start from, but it can't be read:"
            f" {error.strerror or error}",
            where=str(path),
            do="give the path of a safetensors file",
        ) from error
    folder = Path(study_folder) / CHECKPOINTS_FOLDER
    kept = folder / f"{content_hash(content)}.safetensors"
    with full_disk_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not kept.exists() or kept.read_bytes() != content:
            write_atomic(kept, content)
    return f"file:{content_hash(content)}"


def content_hash(content: bytes) -> str:
    """Returns the hash that names a file of weights."""
    return hashlib.sha256(content).hexdigest()[:16]


def start_path(spec: RunSpec, runs_folder: Path) -> Path | None:
    """Returns the file with the weights that a run starts from; None: it has none."""
    parent = spec.parent
    if parent is None:
        return None
    kind, name = parent
    if kind == "run":
        return runs_folder / name / WEIGHTS_FILE
    return runs_folder.parent / CHECKPOINTS_FOLDER / f"{name}.safetensors"
