"""Tables as people have them, CSV, TSV, JSON lines, Parquet or any dataframe, read cell by cell.

Cells stay as they are in the file, and every row remembers its place, so that what is wrong later
can be said with file, line and column.
"""

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import narwhals as nw
import polars as pl

from mixlaw.errors import TableError

_NO_VALUE = frozenset({"", "na", "n/a", "null", "none", "-"})
_WHOLE = re.compile(r"^(-?\d+)\.0+$")
_TEXT_KINDS = "CSV, TSV, JSON lines or Parquet"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RawTable:
    """Columns of cells, and where each row stands."""

    name: str
    """How errors name it: the file's name."""
    columns: Mapping[str, Sequence[Any]]
    places: Sequence[int]
    """Line in the file, or row, of each row of cells; counted from 1."""
    place_word: str
    """What a place is: line or row."""

    def where(self, row: int) -> str:
        """Returns the place of a row, such as `line 17 of runs.csv`."""
        return f"{self.place_word} {self.places[row]} of {self.name}"

    def text(self, column: str, row: int) -> str | None:
        """Returns a cell as text; None where it is empty.

        Whole numbers read the same from every format: 7, 7.0 and "7.0" are all "7".
        """
        value = self.columns[column][row]
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        text = str(value).strip()
        return (_WHOLE.sub(r"\1", text) if ".0" in text else text) or None

    def number(self, column: str, row: int) -> float | None:
        """Returns a cell as a number; None where it is empty.

        Raises:
            TableError: It is no number; NaN and infinity are numbers here.
        """
        value = self.columns[column][row]
        number = as_number(value)
        if number is None and not is_empty(value):
            raise TableError(
                f"column {column!r} must hold numbers, but {self.where(row)} has {value!r}"
            )
        return number

    def share_of_numbers(self, column: str) -> float:
        """Returns the share of a column's cells that are numbers, the empty ones left out; 1: all.

        A column without any value counts as numbers: it may be one that was not filled in.
        """
        filled = [value for value in self.columns[column] if not is_empty(value)]
        return sum(as_number(v) is not None for v in filled) / len(filled) if filled else 1.0


def is_empty(value: object) -> bool:
    """Whether a cell stands for no value."""
    return value is None or (isinstance(value, str) and value.strip().lower() in _NO_VALUE)


def as_number(value: object) -> float | None:
    """Returns the number in a cell; None where there is none."""
    if isinstance(value, bool) or is_empty(value):
        return None
    if isinstance(value, int | float | Decimal):
        return float(value)
    if isinstance(value, str) and "_" not in value:  # Python reads 1_000, nobody else does
        try:
            return float(value)
        except ValueError:
            return None
    return None


def read_table(path: Path) -> RawTable:
    """Returns the table in a file; its content decides what kind of file it is.

    Raises:
        TableError: The file is missing, empty, binary, or has a row that does not fit its header.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TableError(f"{path} can't be read: {error.strerror or error}") from error
    if content[:4] == b"PAR1":
        return _read_parquet(content, path.name)
    text = _decode(content, path.name)
    if not text.strip():
        raise TableError(f"{path.name} must have a header and rows, but it is empty")
    if path.suffix.lower() in (".jsonl", ".ndjson") or text.lstrip()[0] in "{[":
        return _read_json_lines(text, path.name)
    return _read_csv(text, path.name, is_tsv=path.suffix.lower() == ".tsv")


def read_frame(frame: object, name: str) -> RawTable:
    """Returns the table in a dataframe of any library that Narwhals knows.

    Raises:
        TableError: It is no dataframe, or has no rows.
    """
    try:
        data = nw.from_native(cast("Any", frame), eager_only=True)
    except TypeError as error:
        raise TableError(
            f"{name} must be a dataframe (polars, pandas, ...), found {type(frame).__name__}",
            do="collect a lazy frame first",
        ) from error
    columns = {
        str(column): [
            None if empty else value
            for value, empty in zip(
                data[column].to_list(), data[column].is_null().to_list(), strict=True
            )
        ]
        for column in data.columns
    }
    return _numbered(columns, name)


def _decode(content: bytes, name: str) -> str:
    problem = f"{name} must be {_TEXT_KINDS}, but it is binary"
    if b"\0" in content:
        raise TableError(f"{problem} (a zero byte at offset {content.index(0)})")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TableError(
            f"{problem}, or not UTF-8 (byte 0x{content[error.start]:02x} at offset {error.start})",
            do="unpack it, or save it as UTF-8",
        ) from error


def _read_parquet(content: bytes, name: str) -> RawTable:
    try:
        frame = pl.read_parquet(io.BytesIO(content))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise TableError(f"{name} begins like Parquet, but can't be read: {error}") from error
    if any(dtype.is_nested() for dtype in frame.dtypes):
        return _from_records(frame.to_dicts(), name, range(1, frame.height + 1), "row")
    return _numbered(frame.to_dict(as_series=False), name)


def _numbered(columns: Mapping[str, Sequence[Any]], name: str) -> RawTable:
    count = len(next(iter(columns.values()), ()))
    if not count:
        raise TableError(f"{name} must have rows, but it has none")
    return RawTable(name=name, columns=columns, places=range(1, count + 1), place_word="row")


def _read_json_lines(text: str, name: str) -> RawTable:
    records: list[dict[str, Any]] = []
    places: list[int] = []
    for place, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise TableError(
                f"every line of {name} must be JSON, but line {place} is not: {error}"
            ) from error
        if not isinstance(record, dict):
            raise TableError(f"every line of {name} must be a JSON object, but line {place} is not")
        records.append(cast("dict[str, Any]", record))
        places.append(place)
    return _from_records(records, name, places, "line")


def _from_records(
    records: Sequence[Mapping[str, Any]], name: str, places: Sequence[int], place_word: str
) -> RawTable:
    """Returns the table of records; the keys of nested objects are joined by dots."""
    flat = [_flatten(record) for record in records]
    names = list(dict.fromkeys(key for record in flat for key in record))
    columns = {key: [record.get(key) for record in flat] for key in names}
    return RawTable(name=name, columns=columns, places=places, place_word=place_word)


def _flatten(record: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(cast("Mapping[str, Any]", value), f"{before}{key}."))
        else:
            flat[before + key] = value
    return flat


def _read_csv(text: str, name: str, *, is_tsv: bool) -> RawTable:
    first_line = text.lstrip().split("\n", 1)[0]
    delimiter = "\t" if is_tsv else max(",\t;", key=first_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    rows: list[list[str]] = []
    places: list[int] = []
    end = 0
    try:
        for cells in reader:
            place, end = end + 1, reader.line_num  # a quoted cell can span lines
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                continue
            if len(cells) != len(header):
                raise TableError(
                    f"line {place} of {name} must have {len(header)} cells like the header, found"
                    f" {len(cells)}",
                    do="quote cells that hold the separator",
                )
            rows.append(cells)
            places.append(place)
    except csv.Error as error:
        raise TableError(f"line {reader.line_num} of {name} can't be read: {error}") from error
    assert header is not None
    if not rows:
        raise TableError(f"{name} must have rows below its header, but it has none")
    columns: dict[str, Sequence[Any]] = dict(zip(header, zip(*rows, strict=True), strict=True))
    _check_header(header, columns, name)
    return RawTable(name=name, columns=columns, places=places, place_word="line")


def _check_header(header: list[str], columns: dict[str, Any], name: str) -> None:
    """Makes sure that columns have names of their own; pandas leaves its index without one."""
    doubled = next((column for column in header if header.count(column) > 1), None)
    if doubled is not None:
        raise TableError(
            f"the columns of {name} must have names of their own, but {doubled!r} is there"
            f" {header.count(doubled)} times"
        )
    if "" in columns:
        cells = columns.pop("")
        if header[0] == "" and "index" not in columns:
            columns["index"] = cells
        elif any(cell.strip() for cell in cells):
            raise TableError(f"column {header.index('') + 1} of {name} must have a name")
