"""What a study keeps of imported runs: two Parquet files per source, replaced as a whole."""

import hashlib
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from mixlaw import __version__
from mixlaw.errors import StudyError
from mixlaw.files import write_atomic
from mixlaw.importers import ImportedTables
from mixlaw.observations import proportion_domains, target_names

FOLDER = "imported"


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What an import brought."""

    runs: int
    domains: tuple[str, ...]
    targets: tuple[str, ...]
    observations: int
    notes: tuple[str, ...]
    """What was matched, altered or left out."""

    @classmethod
    def of(cls, tables: ImportedTables) -> "Imported":
        """Returns the summary of imported tables."""
        return cls(
            runs=tables.runs.height,
            domains=proportion_domains(tables.runs),
            targets=target_names(tables.observations),
            observations=tables.observations.height,
            notes=tuple(tables.notes),
        )

    def sentence(self, *, dry_run: bool) -> str:
        """Returns what was imported, in a sentence."""
        verb = "would import" if dry_run else "imported"
        return (
            f"{verb} {self.runs} runs of {len(self.domains)} domains with"
            f" {self.observations} losses of {len(self.targets)} targets"
        )


def keep_imported(study: Path, tables: ImportedTables, *, source: str) -> tuple[Path, bool]:
    """Keeps the tables of a source in a study, instead of what it had of that source before.

    Returns the folder, and whether there was another import of that name.

    Both files are written to a new folder, then one atomic write makes that folder the source's: a
    kill leaves the old tables or the new ones.
    """
    root = study / FOLDER
    name = hashlib.sha256(source.encode()).hexdigest()[:16]
    contents = {
        "runs.parquet": _parquet(tables.runs),
        "observations.parquet": _parquet(tables.observations),
    }
    digest = hashlib.sha256(b"".join(contents.values())).hexdigest()[:8]
    folder = root / f"{name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        write_atomic(folder / file, content)
    pointer: dict[str, Any] = {
        "folder": folder.name,
        "source": source,
        "version": __version__,
        "notes": list(tables.notes),
    }
    write_atomic(root / f"{name}.json", json.dumps(pointer, indent=1, ensure_ascii=False) + "\n")
    others = [old for old in root.glob(f"{name}-*") if old != folder]
    for old in others:
        shutil.rmtree(old, ignore_errors=True)
    return folder, bool(others)


def read_imported(study: Path) -> list[tuple[pl.DataFrame, pl.DataFrame]]:
    """Returns runs and observations of each imported source.

    Raises:
        StudyError: What was kept of a source is damaged.
    """
    sources: list[tuple[pl.DataFrame, pl.DataFrame]] = []
    for pointer in sorted((study / FOLDER).glob("*.json")):
        try:
            kept = json.loads(pointer.read_text(encoding="utf-8"))
            if not (isinstance(kept, dict) and isinstance(kept.get("folder"), str)):
                raise ValueError("it names no folder")
            folder = pointer.parent / kept["folder"]
            sources.append(
                (
                    pl.read_parquet(folder / "runs.parquet", glob=False),
                    pl.read_parquet(folder / "observations.parquet", glob=False),
                )
            )
        except (OSError, ValueError, pl.exceptions.PolarsError) as error:
            raise StudyError(
                f"what was kept of an import can't be read ({error})",
                where=str(pointer),
                do="import that source again",
            ) from error
    return sources


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()
