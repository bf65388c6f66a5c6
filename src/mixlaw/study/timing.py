"""How long each stage of a study took, for the report."""

import json
from pathlib import Path

from mixlaw.files import write_atomic

FILE_NAME = "seconds.json"
SHORTEST = 0.05
"""A stage that took less did nothing new: it is not recorded."""


def record_seconds(study: Path, stage: str, seconds: float) -> None:
    """Keeps how long a stage took, instead of what it took before."""
    if seconds < SHORTEST:
        return
    kept = read_seconds(study)
    kept[stage] = round(seconds, 2)
    write_atomic(study / FILE_NAME, json.dumps(kept, indent=1) + "\n")


def read_seconds(study: Path) -> dict[str, float]:
    """Returns wall seconds by stage; empty when nothing is kept or it is damaged."""
    try:
        kept = json.loads((study / FILE_NAME).read_text(encoding="utf-8"))
        return {str(stage): float(seconds) for stage, seconds in kept.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
