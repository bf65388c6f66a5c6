"""Writes mixtures for training frameworks, and reads what was written."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixlaw.domains import Domain, Scale
from mixlaw.errors import ExportError
from mixlaw.exporters.csv import format_csv, parse_csv
from mixlaw.exporters.json import format_json, parse_json
from mixlaw.exporters.megatron import format_megatron, parse_megatron
from mixlaw.exporters.table import ExportTable
from mixlaw.files import write_atomic
from mixlaw.mixtures import Mixture


@dataclass(frozen=True, kw_only=True, slots=True)
class Framework:
    """How a framework's mixture is written and read."""

    format: Callable[[ExportTable], tuple[str, list[str]]]
    """Returns the file's text, and notes on what a reader should know."""
    parse: Callable[[str, str], Mixture]
    """Returns the mixture in a text; the second argument names its place in errors."""


FRAMEWORKS: dict[str, Framework] = {
    "json": Framework(format=format_json, parse=parse_json),
    "csv": Framework(format=format_csv, parse=parse_csv),
    "megatron": Framework(format=format_megatron, parse=parse_megatron),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportResult:
    """A file that was written."""

    path: Path
    notes: tuple[str, ...]
    """What was left out, and what a reader should know, in sentences."""


def export_mixture(
    mixture: Mixture,
    *,
    framework: str,
    path: str | Path,
    domains: Sequence[Domain] | None = None,
    scale: Scale | None = None,
    prefixes: Mapping[str, str] | None = None,
) -> ExportResult:
    """Writes a mixture for a training framework, and reads it back to make sure.

    Args:
        mixture: Shares of tokens.
        framework: `json`, `csv` or `megatron`.
        path: The file, which is replaced if it is there.
        domains: The training domains, whose order is that of the file; None: that of the mixture.
        scale: The run that is to be decided, for tokens and epochs per domain; None: not known.
        prefixes: Path prefix of each domain's token files, for frameworks that need it.

    Raises:
        ExportError: The framework is unknown or can't take this mixture, or the path can't be
            written.
        MixtureError: The mixture is over other domains.
    """
    chosen = find_framework(framework)
    table = ExportTable.of(mixture, domains=domains, scale=scale, prefixes=prefixes)
    text, notes = chosen.format(table)
    written = chosen.parse(text, str(path))
    shares = sorted(share for share in table.mixture.proportions if share > 0)
    read = sorted(share for share in written.proportions if share > 0)
    assert all(abs(a - b) < 1e-9 for a, b in zip(shares, read, strict=True))
    return ExportResult(path=write_file(Path(path), text), notes=tuple(notes))


def check_export(
    path: str | Path, framework: str, *, prefixes: Mapping[str, str] | None = None
) -> Mixture:
    """Returns the shares of tokens that a framework would read from a file.

    Args:
        path: The file.
        framework: `json`, `csv` or `megatron`.
        prefixes: Path prefix of each domain, to get domains instead of prefixes back.

    Raises:
        ExportError: The file is not what the framework takes.
    """
    chosen = find_framework(framework)
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} can't be read: {error}") from error
    mixture = chosen.parse(text, str(path))
    names = {prefix: name for name, prefix in (prefixes or {}).items()}
    return Mixture(tuple(names.get(name, name) for name in mixture), mixture.proportions)


def find_framework(name: str) -> Framework:
    """Returns the framework of a name.

    Raises:
        ExportError: There is none; the nearest name is suggested.
    """
    if name in FRAMEWORKS:
        return FRAMEWORKS[name]
    near = difflib.get_close_matches(name.lower(), FRAMEWORKS, n=1, cutoff=0.5)
    suggestion = f"did you mean {near[0]!r}? " if near else ""
    raise ExportError(
        f"{name!r} is no framework that mixlaw exports to",
        do=f"{suggestion}there are {', '.join(FRAMEWORKS)}",
    )


def write_file(path: Path, text: str) -> Path:
    """Writes a file atomically and returns its path.

    Raises:
        ExportError: It can't be written there.
    """
    if path.is_dir():
        raise ExportError(f"an export must be a file, but {path} is a folder", do="add a file name")
    if not path.parent.is_dir():
        raise ExportError(f"the folder of an export must exist, but {path.parent} does not")
    try:
        return write_atomic(path, text)
    except OSError as error:
        raise ExportError(f"{path} can't be written: {error.strerror or error}") from error
