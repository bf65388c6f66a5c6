"""What commands print: small tables for people, JSON for machines."""

import json
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mixlaw.study.plain import to_plain

PIPE_WIDTH = 160


def print_json(value: object) -> None:
    """Prints a result as one JSON value on standard output."""
    can_all = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    json.dump(to_plain(value), sys.stdout, indent=1, ensure_ascii=not can_all)
    sys.stdout.write("\n")


def print_lines(*lines: str) -> None:
    """Prints plain lines; nothing in them is markup."""
    for line in lines:
        Console(soft_wrap=True, highlight=False, markup=False, emoji=False).print(line)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None
) -> None:
    """Prints a table; the first column is left-aligned, names in it are data."""
    if title is not None:
        print_lines(title)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i > 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:  # a pipe or a file has no width to fit
        console = Console(highlight=False, markup=False, emoji=False, width=PIPE_WIDTH)
    console.print(table)
