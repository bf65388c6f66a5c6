"""Hands the mixtures of a plan to teams that train with their own tools.

`runs.csv` has one row per run: its name, what it is for, its seed and size, and its shares in
columns `r:<domain>`. With the losses in a second file, by run, `mixlaw import` takes it back.
Beside it stand one JSON file and one Megatron blend per mixture. Files are named by number, never
by a domain's name.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from mixlaw.design import Design
from mixlaw.domains import Domain, Scale
from mixlaw.errors import ExportError
from mixlaw.exporters.export import FRAMEWORKS, write_file
from mixlaw.exporters.table import ExportTable
from mixlaw.mixtures import Mixture
from mixlaw.observations import PROPORTION_PREFIX
from mixlaw.runs.plan import Plan


def write_plan(
    plan: Plan | Design,
    folder: str | Path,
    *,
    domains: Sequence[Domain] | None = None,
    scale: Scale | None = None,
    prefixes: Mapping[str, str] | None = None,
) -> tuple[Path, ...]:
    """Writes the mixtures of a plan, or of a design, and returns the files.

    All files are made before the first is written, so that an error leaves nothing behind.

    Args:
        plan: A plan, whose runs are listed with their seeds and sizes, or a design.
        folder: Where to; it is made if it is not there.
        domains: The training domains, for tokens and epochs in the JSON files; None: without.
        scale: How long each run is, for the same; None: without.
        prefixes: Path prefix of each domain's token files, for Megatron.

    Raises:
        ExportError: A domain has no prefix that Megatron can take, or the folder can't be written.
    """
    rows = _rows(plan)
    mixtures = {mixture.mixture_id: mixture for _, mixture, _ in rows}
    numbers = {mixture_id: index for index, mixture_id in enumerate(mixtures, start=1)}
    contents = {"runs.csv": _run_table(rows, numbers)}
    for mixture_id, mixture in mixtures.items():
        table = ExportTable.of(mixture, domains=domains, scale=scale, prefixes=prefixes)
        stem = f"mixture-{numbers[mixture_id]:03}"
        contents[f"{stem}.json"] = FRAMEWORKS["json"].format(table)[0]
        contents[f"{stem}.megatron.txt"] = FRAMEWORKS["megatron"].format(table)[0]
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"{path} must be a folder: {error.strerror or error}") from error
    return tuple(write_file(path / name, content) for name, content in contents.items())


def _rows(plan: Plan | Design) -> list[tuple[str, Mixture, tuple[object, ...]]]:
    """Returns role, mixture and what else is known of each run."""
    if isinstance(plan, Design) or not plan.runs:
        design = plan if isinstance(plan, Design) else plan.design
        return [("design", mixture, ("", "", "")) for mixture in design.mixtures]
    return [
        (run.role, run.spec.mixture, (run.spec.seed, run.spec.params, run.spec.tokens))
        for run in plan.runs
    ]


def _run_table(
    rows: list[tuple[str, Mixture, tuple[object, ...]]], numbers: Mapping[str, int]
) -> str:
    names = rows[0][1].names
    lines = io.StringIO()
    writer = csv.writer(lines)
    shares = [f"{PROPORTION_PREFIX}{name}" for name in names]
    writer.writerow(["run", "role", "mixture", "seed", "params", "tokens", *shares])
    for index, (role, mixture, known) in enumerate(rows, start=1):
        number = f"mixture-{numbers[mixture.mixture_id]:03}"
        values = [repr(mixture[name]) for name in names]
        writer.writerow([f"run-{index:03}", role, number, *known, *values])
    return lines.getvalue()
