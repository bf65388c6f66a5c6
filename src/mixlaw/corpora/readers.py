"""Documents out of text, JSONL and Parquet files, streamed: no file need fit in memory.

A text file is one document, or several pieces of one where it is long; a line of a JSONL file and
a row of a Parquet file are one document each.
"""

import difflib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixlaw.corpora.documents import cut_pieces
from mixlaw.corpora.streams import COMPRESSED_SUFFIXES, ByteCounter, open_bytes, unreadable
from mixlaw.errors import CorpusError

MAX_LINE_BYTES = 1 << 28
"""A longer line of JSONL is taken for a file that is no JSONL."""

_PARQUET_BATCH_BYTES = 1 << 23
_PARQUET_BATCH_ROWS = 4096
_SNIFFED_BYTES = 8192
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HALF_PAIR = re.compile("[\ud800-\udfff]")  # of surrogates: JSON can spell it, UTF-8 can't


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read documents from."""

    path: Path
    is_named: bool = True
    """Given by name: then it must hold text. One found in a folder is skipped where it doesn't."""


class ReadLog(ByteCounter):
    """What was read, and what was altered or left out on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.replaced_characters = 0
        self._first_replaced = ""
        self._skipped: list[Path] = []

    def record_replaced(self, count: int, where: str) -> None:
        """Records characters that were no valid text and became U+FFFD."""
        if count:
            self.replaced_characters += count
            self._first_replaced = self._first_replaced or where

    def record_skipped(self, path: Path) -> None:
        """Records a file of a folder that holds no text."""
        self._skipped.append(path)

    def notes(self) -> tuple[str, ...]:
        """Returns a phrase for each kind of thing that was altered or left out."""
        notes: list[str] = []
        if self.replaced_characters:
            notes.append(
                f"characters that were not UTF-8, replaced: {self.replaced_characters},"
                f" the first in {self._first_replaced}"
            )
        if self._skipped:
            notes.append(
                f"files without text, skipped: {len(self._skipped)}, the first is"
                f" {self._skipped[0]}"
            )
        return tuple(notes)


def find_files(paths: Sequence[Path], *, outside: Path | None = None) -> tuple[SourceFile, ...]:
    """Returns the files that paths name; of a folder, all that are not hidden, in sorted order.

    Args:
        paths: Files and folders.
        outside: A folder whose files are left out: the corpus itself.

    Raises:
        CorpusError: A path is missing, or a folder has no file.
    """
    if not paths:
        raise CorpusError("a domain needs at least one file or folder, found none")
    found: dict[Path, SourceFile] = {}
    excluded = None if outside is None else outside.resolve()
    for path in paths:
        try:
            files = list(_files_of(path, excluded))
        except OSError as error:
            raise unreadable(path, error) from None
        for file in files:
            found.setdefault(file.path.resolve(), file)
    return tuple(found.values())


def _files_of(path: Path, excluded: Path | None) -> Iterator[SourceFile]:
    if path.is_dir():
        count = 0
        for file in _walk(path):
            if excluded is None or not file.resolve().is_relative_to(excluded):
                count += 1
                yield SourceFile(file, is_named=False)
        if not count:
            raise CorpusError(
                f"a folder must hold files to read, but {path} has none",
                do="give the folder or the files that hold the text (hidden ones don't count)",
            )
    elif path.exists():
        yield SourceFile(path)
    else:
        raise CorpusError(f"{path} must be a file or a folder, but it is not there")


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                yield path


def read_documents(
    files: Sequence[SourceFile], *, text_field: str = "text", log: ReadLog | None = None
) -> Iterator[str]:
    """Yields the documents of files in their order; the name of a file tells how it is read.

    `.jsonl`, `.ndjson`, `.json.gz` and `.json.zst` are JSON lines, `.parquet` is Parquet, anything
    else is text; all but Parquet may be compressed (`.gz`, `.zst`).

    Args:
        files: What `find_files` found.
        text_field: Field of a JSON line, or column of a Parquet file, that holds the text.
        log: Records what was read and altered.

    Raises:
        CorpusError: A file is unreadable, damaged, or is not what its name says; a line or row
            has no text.
    """
    log = ReadLog() if log is None else log
    for file in files:
        name = file.path.name.lower()
        compressed = name.endswith(COMPRESSED_SUFFIXES)
        plain = name.rsplit(".", 1)[0] if compressed else name
        if plain.endswith((".jsonl", ".ndjson")) or (compressed and plain.endswith(".json")):
            yield from _read_jsonl(file.path, text_field, log)
        elif name.endswith(".parquet"):
            yield from _read_parquet(file.path, text_field, log)
        else:
            yield from _read_text(file, log)


def _read_text(file: SourceFile, log: ReadLog) -> Iterator[str]:
    path = file.path
    with open_bytes(path, log) as stream:
        is_first = True
        for piece in cut_pieces(stream):
            if is_first and b"\0" in piece[:_SNIFFED_BYTES]:
                if file.is_named:
                    raise CorpusError(
                        f"{path} must be text in UTF-8, but it holds zero bytes",
                        do="convert it (from UTF-16, for one) or leave it out",
                    )
                log.record_skipped(path)
                return
            data = piece.removeprefix(_BYTE_ORDER_MARK) if is_first else piece
            is_first = False
            yield _decode(data, log, str(path))
        if is_first and file.is_named:
            raise CorpusError(f"{path} must hold text, but it is empty", do="leave it out")


def _decode(data: bytes, log: ReadLog, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
        log.record_replaced(text.count("\ufffd") - data.count("\ufffd".encode()), where)
        return text


def _read_jsonl(path: Path, text_field: str, log: ReadLog) -> Iterator[str]:
    with open_bytes(path, log) as stream:
        for number, line in enumerate(_lines(stream, path), start=1):
            if line.isspace():
                continue
            where = f"line {number} of {path}"
            data = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            text = _text_of(_parse_object(_decode(data, log, where), where), text_field, where)
            if b"\\u" in line:
                text, count = _HALF_PAIR.subn("\ufffd", text)
                log.record_replaced(count, where)
            yield text


def _lines(stream: io.BufferedIOBase, path: Path) -> Iterator[bytes]:
    number = 0
    while line := stream.readline(MAX_LINE_BYTES):
        number += 1
        if len(line) >= MAX_LINE_BYTES:
            raise CorpusError(
                f"a line of JSON must be shorter than {MAX_LINE_BYTES >> 20} MB, but line {number}"
                " is longer",
                where=str(path),
                do="write one document per line",
            )
        yield line


def _parse_object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        found = f"it is no JSON ({error.msg}, column {error.colno})"
    except (ValueError, RecursionError):  # a number of thousands of digits, brackets without end
        found = "it is JSON that can't be read (too long a number, or nested too deep)"
    else:
        if isinstance(value, dict):
            return value
        found = f"it is {_json_kind(value)}"
    raise CorpusError(
        f"a line must be a JSON object, but {found}", where=where, do="correct or remove the line"
    )


def _text_of(value: Mapping[str, Any], text_field: str, where: str) -> str:
    if text_field not in value:
        raise CorpusError(
            f"a line must have the field {text_field!r}, but {_found_names(list(value))}",
            where=where,
            do=_name_hint(text_field, list(value)),
        )
    text = value[text_field]
    if not isinstance(text, str):
        raise CorpusError(
            f"the field {text_field!r} must be a string, but it is {_json_kind(text)}",
            where=where,
            do="correct or remove the line, or name another field with `--text-field`",
        )
    return text


def _json_kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"


def _found_names(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8]) + (", ..." if len(names) > 8 else "")
    return f"it has {shown}" if names else "it has none"


def _name_hint(wanted: str, names: Sequence[str]) -> str:
    """Returns what to do when a field is missing: names the one that is nearest, if any."""
    near = difflib.get_close_matches(wanted, names, n=1)
    if not near:  # `content` is not near `text`, but `article_text` holds it
        near = [name for name in names if wanted.lower() in name.lower()][:1]
    if near:
        return f"the nearest is {near[0]!r}: pass `--text-field {near[0]}` if that is meant"
    return "name what holds the text with `--text-field`"


def _read_parquet(path: Path, column: str, log: ReadLog) -> Iterator[str]:
    import polars as pl

    try:
        schema = pl.read_parquet_schema(path)
        if column not in schema:
            raise CorpusError(
                f"the table must have the column {column!r}, but {_found_names(list(schema))}",
                where=str(path),
                do=_name_hint(column, list(schema)),
            )
        if schema[column] != pl.String:
            raise CorpusError(
                f"the column {column!r} must hold text, but it holds {schema[column]}",
                where=str(path),
                do="name the column that holds the text with `--text-field`",
            )
        frame = pl.scan_parquet(path, glob=False).select(column)
        rows = frame.select(pl.len()).collect().item()
        size = path.stat().st_size
        batch = max(1, min(_PARQUET_BATCH_ROWS, rows * _PARQUET_BATCH_BYTES // size))
        for start in range(0, rows, batch):
            # Slices and not one lazy batch iterator, which holds whole row groups in memory.
            texts = frame.slice(start, batch).collect()[column]
            for row, text in enumerate(texts, start=start + 1):
                if text is None:
                    raise CorpusError(
                        f"the column {column!r} must hold text, but row {row} holds null",
                        where=str(path),
                        do="remove such rows",
                    )
                yield text
            log.bytes_read += size * len(texts) // rows
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise CorpusError(
            f"{path} must be a Parquet file, but it can't be read ({reason})",
            do="copy or download it again, or name it after what it holds",
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None
